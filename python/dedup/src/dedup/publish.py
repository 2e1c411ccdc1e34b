"""Writes the merged tape to production, each window exactly once.

What holds:
- One transaction writes rows, evidence, the arbiter's state and `merge_state`. A crash at any
  instant leaves either all of a publication or nothing of it.
- `merge_state.windows` fences: the update names the value it found, so of two mergers, or of two
  attempts whose first answer was lost, one commits and the other finds out.
- An advisory lock keeps a second merger waiting; it goes with the connection.
- Several mergers that share the markets have each a lock, a fence and a state of their own.

Does not do: deciding what to publish (arbitrate), packing (runtime.pgcopy), exporting.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import asyncpg
import numpy as np

from dedup import tape_rows
from dedup.closings import by_reason, read_closings, write_closings
from dedup.columns import distinct, picked
from dedup.live import Settled
from dedup.live_rows import write_settled
from dedup.output import GathererPosition, WindowOutput
from dedup.publication import DAY_US, HOUR_US, Publication, publication_of
from dedup.tape_rows import Rows
from marketdata.coverage import RunProgress
from marketdata.errors import ConfigError, StorageError
from marketdata.share import Share
from runtime import logs
from runtime.partitions import Partitions
from runtime.pgcopy import CopyLayout, pack_rows, pack_values
from runtime.postgres import (
    TRANSIENT,
    Connection,
    commit_once,
    connect,
    copy_in,
    migrate,
    or_lost,
)

MERGER_LOCK: Final = 0x4B54_4D52  # "KTMR"
EXPORT_LOCK: Final = 0x4B54_4558  # "KTEX": shared by commits, alone in an export
LOCK_POLL_S: Final = 0.2
LATE_MARGIN_US: Final = 1_000_000
"""Around the time of a late trade, where its id is looked for: a frame has the milliseconds of it,
REST the microseconds."""

log = logs.get("publish")


def merger_lock(shard: int) -> int:
    """The advisory lock of one merger."""
    return MERGER_LOCK + (shard - 1 << 32)


@dataclass(slots=True)
class Standing:
    """What production knows: where the tape stands and what the arbiter needs to go on."""

    windows: int = 0
    closed_to_us: int = 0
    received_ns_max: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    ids: dict[str, int] = field(default_factory=dict)
    tails: dict[str, bytes] = field(default_factory=dict)
    named_states: dict[str, bytes] = field(default_factory=dict)
    positions: list[GathererPosition] = field(default_factory=list)
    identifiers: dict[int, int] = field(default_factory=dict)  # gatherer -> system identifier
    reach: dict[tuple[int, int], int] = field(default_factory=dict)
    closings: Counter[str] = field(default_factory=Counter)  # windows by what they closed by

    @property
    def fresh(self) -> bool:
        """Whether nothing was ever published."""
        return self.windows == 0


@contextlib.contextmanager
def broken_once_failed(conn: Connection) -> Iterator[None]:
    """A connection on which something transient failed is not used again."""
    try:
        yield
    except TRANSIENT:
        conn.terminate()
        raise


class Publisher:
    """The single writer of the merged tape.

    `settings`: those that decide the result; production refuses others than the tape began with.
    `on_state` hears in words what holds us up ("" when nothing does). `share`: of its markets.
    """

    def __init__(
        self,
        dsn: str,
        settings: Mapping[str, Any],
        on_state: Callable[[str], None] = lambda _: None,
        share: Share = Share(),  # noqa: B008 (frozen)
    ) -> None:
        self._dsn = dsn
        self._share = share
        self._settings = dict(settings)
        self._on_state = on_state
        self._conn: Connection | None = None
        self._partitions = Partitions()
        self.standing = Standing()
        self._planned: tuple[dict[str, int], dict[tuple[int, int], int]] = {}, {}

    async def open(self) -> Standing:
        """Connect, migrate, become the merger, load where the tape stands."""
        conn = await self.connection()
        await migrate(conn, "production")
        await self._check_settings(conn)
        self.standing = await _load(conn, self._share)
        self.standing.closings = await read_closings(conn, self._share.number)
        self._planned = dict(self.standing.ids), dict(self.standing.reach)
        return self.standing

    async def close(self) -> None:
        """Give up the connection, and the lock with it."""
        conn, self._conn = self._conn, None
        if conn is not None and not conn.is_closed():
            await conn.close()

    async def connection(self) -> Connection:
        """The connection that holds the merger's lock; made anew if the last one broke."""
        if self._conn is not None and not self._conn.is_closed():
            return self._conn
        conn = await connect(self._dsn, on_retry=lambda why: self._on_state(f"production: {why}"))
        try:
            lock = merger_lock(self._share.number)
            while not await conn.fetchval("SELECT pg_try_advisory_lock($1)", lock):
                self._on_state("standby: another deduplicator writes this production database")
                await asyncio.sleep(LOCK_POLL_S)
        except BaseException:
            conn.terminate()
            raise
        self._on_state("")
        self._partitions.forget()
        self._conn = conn
        return conn

    async def _check_settings(self, conn: Connection) -> None:
        """Those of every merger of the tape, before and after ours are there: two that begin with
        different ones at the same moment both hear of it."""
        text = json.dumps(self._settings, sort_keys=True)
        await self._compare_settings(conn)
        await conn.execute(
            "INSERT INTO merge_state"
            " (windows, closed_to_us, received_ns_max, settings, counts, shard)"
            " VALUES (0, 0, 0, $1, '{}', $2) ON CONFLICT DO NOTHING",
            text,
            self._share.number,
        )
        await self._compare_settings(conn)

    async def _compare_settings(self, conn: Connection) -> None:
        for row in await conn.fetch("SELECT settings FROM merge_state ORDER BY shard"):
            began: dict[str, Any] = json.loads(row["settings"])
            if began == self._settings:
                continue
            differ = [k for k in began | self._settings if began.get(k) != self._settings.get(k)]
            raise ConfigError(
                f"this tape began with { ({k: began.get(k) for k in differ}) }, asked is "
                f"{ ({k: self._settings.get(k) for k in differ}) }",
                hint="keep the settings, or begin a new tape in an empty production database",
            )

    def plan(self, outputs: Sequence[WindowOutput]) -> Publication:
        """The publication of the next outputs, made while the ones before it may still be on their
        way. If one of those fails nothing planned is published: `open` begins again from what
        production holds."""
        made = publication_of(outputs, *self._planned, self._share)
        _advance(*self._planned, made)
        return made

    async def commit(
        self, made: Publication, identifiers: Mapping[int, int], settled: Settled | None = None
    ) -> None:
        """Write a publication; returns when it is in production exactly once.

        `identifiers`: gatherer -> system identifier of the cluster its positions count in.
        `settled`: the live rows that are on the tape with it.

        Raises:
            StorageError: another merger went on from where we stood.
        """
        before = self.standing.windows
        counts = dict(self.standing.counts)
        for name, value in made.counts.items():
            counts[name] = counts.get(name, 0) + value

        async def attempt() -> bool:
            conn = await self.connection()
            with broken_once_failed(conn):
                await self._make_partitions(conn, made)
                async with conn.transaction():
                    if not self._share.alone:
                        await conn.execute("SELECT pg_advisory_xact_lock_shared($1)", EXPORT_LOCK)
                    await _move(conn, before, made, counts, self._share.number)
                    await _write_rows(conn, made)
                    await _write_evidence(conn, made)
                    await _write_states(conn, made, identifiers, self._share.number)
                    await _touch_hours(conn, made)
                    await write_closings(conn, made.closings, self._share.number)
                    await write_settled(conn, settled or Settled())
            return True

        async def already_done() -> bool | None:
            conn = await self.connection()
            with broken_once_failed(conn):
                found = await conn.fetchval(
                    "SELECT windows FROM merge_state WHERE shard = $1", self._share.number
                )
            if found == before:
                return None
            if found == before + made.windows:
                return True
            raise StorageError(f"production stands at window {found}, we stood at {before}")

        await commit_once(
            attempt,
            already_done=already_done,
            on_retry=lambda why: self._on_state(f"production: {why}"),
        )
        self._on_state("")
        self._take_over(made, counts)

    def _take_over(self, made: Publication, counts: dict[str, int]) -> None:
        standing = self.standing
        standing.windows += made.windows
        standing.closed_to_us = made.closed_to_us
        standing.received_ns_max = max(standing.received_ns_max, made.received_ns_max)
        standing.counts = counts
        standing.closings += by_reason(made.closings)
        _advance(standing.ids, standing.reach, made)

    async def _make_partitions(self, conn: Connection, made: Publication) -> None:
        """A partition for every day that has rows, before the transaction that needs it."""
        times = {
            "orderbook_delta": made.deltas["exchange_us"],
            "orderbook_snapshot": np.array([s[0] for s in made.snapshots], "i8"),
            "trade": np.concatenate((made.trades["exchange_us"], made.late_trades["exchange_us"])),
            "ticker": made.tickers["exchange_us"],
        }
        for table, exchange_us in times.items():
            for day in distinct(exchange_us // DAY_US):
                await self._partitions.ensure(conn, table, day * DAY_US, day * DAY_US, "day")


def _advance(ids: dict[str, int], reach: dict[tuple[int, int], int], made: Publication) -> None:
    """What the publication after this one is made from."""
    ids.update((ticker, market) for market, ticker, _ in made.new_markets)
    for key, progress in made.progress.items():
        if progress.ended:
            reach.pop(key, None)
        else:
            reach[key] = progress.to_us


async def _move(
    conn: Connection, before: int, made: Publication, counts: Mapping[str, int], shard: int
) -> None:
    """Move the tape's position; whoever finds another one than expected goes no further."""
    status = await conn.execute(
        "UPDATE merge_state SET windows = windows + $2, closed_to_us = $3,"
        " received_ns_max = greatest(received_ns_max, $4), counts = $5"
        " WHERE windows = $1 AND shard = $6",
        before,
        made.windows,
        made.closed_to_us,
        made.received_ns_max,
        json.dumps(counts, sort_keys=True),
        shard,
    )
    if status != "UPDATE 1":
        raise StorageError(
            f"production does not stand at window {before} any more",
            hint="another deduplicator wrote to it; this one starts again from what is there",
        )


async def _copy(conn: Connection, layout: CopyLayout, rows: Rows) -> None:
    if len(rows):
        await copy_in(conn, layout, pack_rows(layout, rows))


async def _write_rows(conn: Connection, made: Publication) -> None:
    await _insert(conn, "market", "market_id ticker first_us", made.new_markets)
    await _copy(conn, tape_rows.DELTA_COPY, made.deltas)
    await _copy(conn, tape_rows.TRADE_COPY, made.trades)
    await _write_late_trades(conn, made)
    await _copy(conn, tape_rows.TICKER_COPY, made.tickers)
    if made.snapshots:
        layout = tape_rows.SNAPSHOT_COPY
        await copy_in(conn, layout, pack_values(layout, made.snapshots))


async def _write_late_trades(conn: Connection, made: Publication) -> None:
    """Trades whose window has long closed: those that production has are left out."""
    rows = made.late_trades
    if not len(rows):
        return
    ids = rows["trade_id"].tolist()
    times = rows["exchange_us"]
    found = await conn.fetch(
        "SELECT trade_id FROM trade WHERE trade_id = ANY($1::uuid[])"
        " AND exchange_ts BETWEEN 'epoch'::timestamptz + $2 * interval '1 microsecond'"
        " AND 'epoch'::timestamptz + $3 * interval '1 microsecond'",
        [uuid.UUID(bytes=trade_id) for trade_id in ids],
        int(times.min()) - LATE_MARGIN_US,
        int(times.max()) + LATE_MARGIN_US,
    )
    known = {row["trade_id"].bytes for row in found}
    new = picked(rows, np.array([n for n, i in enumerate(ids) if i not in known], np.int64))
    await _copy(conn, tape_rows.TRADE_COPY, new)
    made.touched.rows_at(np.unique(new["exchange_us"] // HOUR_US * HOUR_US).tolist())
    log.info("late trades", looked_up=len(ids), stored=len(new))


async def _insert(conn: Connection, table: str, columns: str, rows: Sequence[Any]) -> None:
    if rows:
        await or_lost(
            conn, conn.copy_records_to_table(table, records=rows, columns=columns.split())
        )


async def _write_evidence(conn: Connection, made: Publication) -> None:
    await _insert(conn, "market_epoch", "market_id epoch from_us start_hash reason", made.epochs)
    await _insert(
        conn, "gap", "market_id epoch from_us to_us hash_before hash_after kind", made.gaps
    )
    await _insert(
        conn,
        "quarantine",
        "window_index ord market_id gatherer run_id reason from_us to_us n_rows rows",
        made.quarantine,
    )
    await _insert(conn, "mark", "window_index ord market_id kind from_us to_us reason", made.marks)
    await _insert(
        conn, "audit_point", "window_index ord market_id gatherer exchange_us agrees", made.audits
    )
    if made.progress:
        await conn.execute(
            "INSERT INTO run_progress SELECT * FROM unnest($1::int[], $2::int[], $3::text[],"
            " $4::bigint[], $5::bigint[], $6::boolean[], $7::text[])"
            " ON CONFLICT (gatherer, run_id) DO UPDATE SET from_us = excluded.from_us,"
            " to_us = excluded.to_us, ended = excluded.ended, reason = excluded.reason",
            *_columns([_progress_row(p) for p in made.progress.values()]),
        )
    if made.claims:
        await conn.execute(
            "INSERT INTO market_claim SELECT * FROM unnest($1::int[], $2::int[], $3::int[],"
            " $4::bigint[], $5::bigint[], $6::boolean[], $7::text[])"
            " ON CONFLICT (market_id, gatherer, run_id, from_us) DO UPDATE SET"
            " to_us = excluded.to_us, valid = excluded.valid, reason = excluded.reason",
            *_columns([(*key, c.to_us, c.valid, c.reason) for key, c in made.claims.items()]),
        )


def _progress_row(p: RunProgress) -> tuple[Any, ...]:
    return p.gatherer, p.run_id, p.channel, p.from_us, p.to_us, p.ended, p.reason


def _columns(rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """Rows as columns, for unnest."""
    return [list(column) for column in zip(*rows, strict=True)]


async def _write_states(
    conn: Connection, made: Publication, identifiers: Mapping[int, int], shard: int
) -> None:
    if made.tails:
        await conn.execute(
            "INSERT INTO market_tail SELECT * FROM unnest($1::int[], $2::bytea[])"
            " ON CONFLICT (market_id) DO UPDATE SET state = excluded.state",
            list(made.tails),
            list(made.tails.values()),
        )
    gone = [name for name, state in made.named_states.items() if state is None]
    kept = {name: state for name, state in made.named_states.items() if state is not None}
    await conn.execute(
        "DELETE FROM arbiter_state WHERE name = ANY($1::text[]) AND shard = $2", gone, shard
    )
    await conn.execute(
        "INSERT INTO arbiter_state (name, state, shard)"
        " SELECT *, $3::int FROM unnest($1::text[], $2::bytea[])"
        " ON CONFLICT (shard, name) DO UPDATE SET state = excluded.state",
        list(kept),
        list(kept.values()),
        shard,
    )
    await conn.executemany(
        "INSERT INTO gatherer_cursor"
        " (gatherer, system_identifier, reread_from_batch, seen_batch, shard)"
        " VALUES ($1, $2, $3, $4, $5) ON CONFLICT (shard, gatherer) DO UPDATE SET"
        " system_identifier = excluded.system_identifier,"
        " reread_from_batch = excluded.reread_from_batch, seen_batch = excluded.seen_batch",
        [(g, identifiers.get(g, 0), *at, shard) for g, at in sorted(made.positions.items())],
    )


async def _touch_hours(conn: Connection, made: Publication) -> None:
    await conn.executemany(
        "INSERT INTO lake_hour (hour_us, rows_dirty, proof_dirty) VALUES ($1, $2, $3)"
        " ON CONFLICT (hour_us) DO UPDATE SET rows_dirty = lake_hour.rows_dirty OR $2,"
        " proof_dirty = lake_hour.proof_dirty OR $3",
        [
            (hour, hour in made.touched.rows, hour in made.touched.proof)
            for hour in sorted(made.touched.hours)
        ],
    )


async def _load(conn: asyncpg.Connection, share: Share) -> Standing:
    """Everything needed to go on, in one snapshot."""
    shard = share.number
    async with conn.transaction(isolation="repeatable_read", readonly=True):
        state = await conn.fetchrow(
            "SELECT windows, closed_to_us, received_ns_max, counts FROM merge_state"
            " WHERE shard = $1",
            shard,
        )
        ids = await conn.fetch("SELECT ticker, market_id FROM market ORDER BY market_id")
        tails = await conn.fetch(
            "SELECT ticker, state FROM market_tail JOIN market USING (market_id)"
        )
        named = await conn.fetch("SELECT name, state FROM arbiter_state WHERE shard = $1", shard)
        cursors = await conn.fetch(
            "SELECT gatherer, system_identifier, reread_from_batch, seen_batch"
            " FROM gatherer_cursor WHERE shard = $1 ORDER BY gatherer",
            shard,
        )
        reach = await conn.fetch("SELECT gatherer, run_id, to_us FROM run_progress WHERE NOT ended")
    return Standing(
        windows=state["windows"],
        closed_to_us=state["closed_to_us"],
        received_ns_max=state["received_ns_max"],
        counts=json.loads(state["counts"]),
        ids={r["ticker"]: r["market_id"] for r in ids if share.owns(r["ticker"])},
        tails={r["ticker"]: r["state"] for r in tails if share.owns(r["ticker"])},
        named_states={r["name"]: r["state"] for r in named},
        positions=[
            GathererPosition(r["gatherer"], r["reread_from_batch"], r["seen_batch"])
            for r in cursors
        ],
        identifiers={r["gatherer"]: r["system_identifier"] for r in cursors},
        reach={(r["gatherer"], r["run_id"]): r["to_us"] for r in reach},
    )
