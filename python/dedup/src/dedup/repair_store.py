"""Repair and production: what the tape holds of a time, and what a repair adds to it.

What holds:
- A repair is one transaction: rows, epochs, proofs, the hours' new versions and the note of it. It
  is there whole or not at all, and the hours are marked for export with it.
- Nothing is updated but the marks of `lake_hour`; a row that is there already is not written.

Does not do: deciding (repair), reading spools, the lake (export).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from dedup import tape_rows
from dedup.columns import picked
from dedup.hours import moment
from dedup.publication import DAY_US, HOUR_US, signed
from dedup.publish import merger_lock
from dedup.repair import REPAIRED, Fill, Piece, numbered_rows
from dedup.retain import dropped_days
from dedup.tape_rows import Rows
from marketdata.book import Book
from marketdata.errors import StorageError
from marketdata.rows import MERGED_ROW, DeltaFlag
from marketdata.share import Share, share_of
from runtime.partitions import Partitions
from runtime.pgcopy import pack_rows, pack_values, unpack_rows
from runtime.postgres import Connection, copy_in, copy_out

REPAIR_LOCK: Final = 0x4B54_5250  # "KTRP"
COMPARED_US: Final = 600_000_000
"""Read before and after the time that is asked for: what tells that a spool is this tape's."""
TRADE_MARGIN_US: Final = 1_000_000
"""A trade of a frame has the milliseconds of its time, one of REST the microseconds."""


@dataclass(frozen=True, slots=True)
class Proof:
    """A stretch of time that a spool proves. `market_id` 0: every market, channel trade."""

    market_id: int
    channel: str
    gatherer: int
    run_id: int
    from_us: int
    to_us: int
    note: str


@dataclass(slots=True)
class Addition:
    """Everything that one repair adds, with production's market ids."""

    from_us: int
    to_us: int
    at_us: int
    reason: str
    sources: list[str]
    markets: list[tuple[int, str, int]] = field(default_factory=list)
    fills: list[tuple[int, int, Fill]] = field(default_factory=list)  # market, epoch before, fill
    proofs: list[Proof] = field(default_factory=list)
    trades: Rows = field(default_factory=lambda: np.empty(0, tape_rows.TRADE_ROW))
    states: Rows = field(default_factory=lambda: np.empty(0, tape_rows.TICKER_ROW))

    @property
    def counts(self) -> dict[str, int]:
        """What it comes to."""
        return {
            "events": sum(fill.rows.size for _, _, fill in self.fills),
            "epochs": len(self.fills),
            "proofs": len(self.proofs),
            "trades": len(self.trades),
            "tickers": len(self.states),
            "markets": len(self.markets),
        }

    @property
    def empty(self) -> bool:
        """Whether there is nothing to add."""
        return not any(self.counts.values())


async def lock(conn: Connection) -> None:
    """Become the one writer of this tape. Raises StorageError if there is another one."""
    if not await conn.fetchval("SELECT pg_try_advisory_lock($1)", REPAIR_LOCK):
        raise StorageError("another repair of this tape is running")
    mergers = await conn.fetchval("SELECT coalesce(max(shard), 1) FROM merge_state")
    for shard in range(1, mergers + 1):
        if not await conn.fetchval("SELECT pg_try_advisory_lock($1)", merger_lock(shard)):
            raise StorageError(
                "a deduplicator writes this tape",
                hint="stop it; it goes on afterwards where it stood",
            )


async def check_interval(conn: Connection, from_us: int, to_us: int) -> None:
    """Raises StorageError where the tape is still open or has nothing."""
    if from_us >= to_us:
        raise StorageError("the interval is empty: --from is not before --to")
    closed_to_us = int(await conn.fetchval("SELECT min(closed_to_us) FROM merge_state") or 0)
    began_us = await conn.fetchval("SELECT min(first_us) FROM market")
    if began_us is None or to_us <= began_us:
        raise StorageError(f"the tape has nothing before {moment(to_us).isoformat()}")
    if to_us > closed_to_us:
        raise StorageError(
            f"the tape is still open there: it is closed up to {moment(closed_to_us).isoformat()}"
        )
    for day_us in sorted(await dropped_days(conn)):
        if day_us < to_us + COMPARED_US and day_us + DAY_US > from_us - COMPARED_US:
            raise StorageError(
                f"the rows of {moment(day_us):%Y-%m-%d} have left production",
                hint="what the lake holds of that day stays as it is",
            )


class MarketIds(dict[str, int]):
    """ticker -> id. `mergers`: of the tape; each gives ids of its own."""

    mergers = 1

    def new(self, ticker: str) -> int:
        """The id that its merger would give a market that the tape never had."""
        share = Share(share_of(ticker, self.mergers), self.mergers)
        owned = sum(market % share.of == share.number % share.of for market in self.values())
        return share.market_id(owned)


async def market_ids(conn: Connection) -> MarketIds:
    """All ids of the tape."""
    found = MarketIds(await conn.fetch("SELECT ticker, market_id FROM market"))
    told = await conn.fetchval("SELECT settings FROM merge_state ORDER BY shard LIMIT 1")
    found.mergers = json.loads(told or "{}").get("merge_shards", 1)
    return found


async def run_ids(conn: Connection, gatherer: int) -> set[int]:
    """The runs of a gatherer that the tape knows."""
    found = await conn.fetch(
        "SELECT run_id FROM run_progress WHERE gatherer = $1"
        " UNION SELECT run_id FROM market_claim WHERE gatherer = $1",
        gatherer,
    )
    return {r["run_id"] for r in found}


async def load_pieces(
    conn: Connection, market_id: int, from_us: int, to_us: int
) -> tuple[list[Piece], dict[int, int]]:
    """The pieces of a market near [from, to), in the order of time; the deduplicator's epoch that
    each of them is or follows, by epoch."""
    columns = ", ".join(tape_rows.DELTA_COPY.names)
    body = await copy_out(
        conn,
        f"SELECT {columns} FROM orderbook_delta WHERE market_id = {int(market_id)}"  # noqa: S608
        f" AND exchange_ts >= '{moment(from_us).isoformat()}'"
        f" AND exchange_ts < '{moment(to_us).isoformat()}'",
    )
    rows = unpack_rows(tape_rows.DELTA_COPY, body, MERGED_ROW)
    rows = picked(rows, np.lexsort((rows["market_seq"], rows["epoch"])))
    epochs = await conn.fetch(
        "SELECT e.epoch, e.from_us, r.after_epoch, coalesce((SELECT max(market_seq)"
        " FROM orderbook_delta d WHERE d.market_id = e.market_id AND d.epoch = e.epoch), 0) AS n"
        " FROM market_epoch e LEFT JOIN repair_epoch r USING (market_id, epoch)"
        " WHERE e.market_id = $1",
        market_id,
    )
    made: list[tuple[tuple[int, int, int], Piece]] = []
    follows: dict[int, int] = {}
    for r in epochs:
        epoch = r["epoch"]
        mine = rows[rows["epoch"] == epoch]
        follows[epoch] = epoch if r["after_epoch"] is None else r["after_epoch"]
        if mine.size or from_us <= r["from_us"] < to_us:
            place = follows[epoch], int(r["after_epoch"] is not None), r["from_us"]
            made.append((place, Piece(epoch, r["from_us"], r["n"], mine)))
    return [piece for _, piece in sorted(made, key=lambda m: m[0])], follows


async def next_epoch(conn: Connection, market_id: int) -> int:
    """The first free number for an added epoch."""
    last = await conn.fetchval(
        "SELECT max(epoch) FROM market_epoch WHERE market_id = $1 AND epoch >= $2",
        market_id,
        REPAIRED,
    )
    return REPAIRED if last is None else int(last) + 1


async def known_trades(conn: Connection, from_us: int, to_us: int) -> set[bytes]:
    """Ids of the tape's trades of this time and a little around it."""
    found = await conn.fetch(
        "SELECT trade_id FROM trade WHERE exchange_ts >= $1 AND exchange_ts < $2",
        moment(from_us - TRADE_MARGIN_US),
        moment(to_us + TRADE_MARGIN_US),
    )
    return {r["trade_id"].bytes for r in found}


async def known_states(conn: Connection, from_us: int, to_us: int) -> set[tuple[int, int, int]]:
    """(market, time, payload) of the tape's ticker states."""
    found = await conn.fetch(
        "SELECT market_id, (extract(epoch FROM exchange_ts) * 1000000)::bigint AS us, payload_key"
        " FROM ticker WHERE exchange_ts >= $1 AND exchange_ts < $2",
        moment(from_us),
        moment(to_us),
    )
    return {(r["market_id"], r["us"], r["payload_key"]) for r in found}


async def commit(conn: Connection, added: Addition) -> int:
    """Write a repair; its number."""
    hours = _hours(added)
    await _make_partitions(conn, added)
    async with conn.transaction():
        number = int(await conn.fetchval("SELECT coalesce(max(repair_id), 0) + 1 FROM repair"))
        await conn.execute(
            "INSERT INTO repair VALUES ($1, $2, $3, $4, $5, $6, $7)",
            number, added.from_us, added.to_us, added.at_us, added.reason,
            json.dumps(added.sources), json.dumps(added.counts),
        )  # fmt: skip
        await conn.executemany("INSERT INTO market VALUES ($1, $2, $3)", added.markets)
        await _write_fills(conn, number, added.fills)
        await conn.executemany(
            "INSERT INTO repair_proof VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
            [
                (
                    number,
                    n,
                    p.market_id,
                    p.channel,
                    p.gatherer,
                    p.run_id,
                    p.from_us,
                    p.to_us,
                    p.note,
                )
                for n, p in enumerate(added.proofs)
            ],
        )
        for layout, rows in (
            (tape_rows.TRADE_COPY, added.trades),
            (tape_rows.TICKER_COPY, added.states),
        ):
            if len(rows):
                await copy_in(conn, layout, pack_rows(layout, rows))
        await _new_versions(conn, number, hours)
    return number


async def _write_fills(
    conn: Connection, number: int, fills: Sequence[tuple[int, int, Fill]]
) -> None:
    for market_id, after_epoch, fill in fills:
        rows = numbered_rows(fill.rows, fill.epoch)
        rows["market_id"], rows["sources"] = market_id, 1 << fill.stretch.gatherer
        if len(rows):
            await copy_in(conn, tape_rows.DELTA_COPY, pack_rows(tape_rows.DELTA_COPY, rows))
        key = keyframe(market_id, fill)
        await copy_in(conn, tape_rows.SNAPSHOT_COPY, pack_values(tape_rows.SNAPSHOT_COPY, [key]))
        await conn.execute(
            "INSERT INTO market_epoch VALUES ($1, $2, $3, $4, 'repair')",
            market_id, fill.epoch, fill.from_us, key[2],
        )  # fmt: skip
        await conn.execute(
            "INSERT INTO repair_epoch VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
            market_id, fill.epoch, number, after_epoch, fill.from_us, fill.until_us,
            fill.stretch.gatherer, fill.stretch.run_id,
        )  # fmt: skip


def keyframe(market_id: int, fill: Fill) -> tuple[int, int, int, int, int, int, int, bytes]:
    """The book before the fill's first event, as a row of `orderbook_snapshot`."""
    stretch = fill.stretch
    book = Book.from_bytes(stretch.levels)
    for row in stretch.rows[: fill.first].tolist():
        delta, price, side, flags = row[2], row[8], row[9], row[10]
        if flags & DeltaFlag.RESET:
            book.clear()
        else:
            book.apply(side, price, delta)
    us = min(fill.from_us, int(fill.rows["exchange_us"].min())) if fill.rows.size else fill.from_us
    before = stretch.rows[: fill.first]
    received_ns = int(before["received_ns"][-1]) if before.size else stretch.start_received_ns
    return (
        us, received_ns, signed(book.hash), market_id, fill.epoch, 0,
        1 << stretch.gatherer, book.to_bytes(),
    )  # fmt: skip


def _hours(added: Addition) -> dict[int, tuple[bool, bool]]:
    """hour -> (rows changed, proof changed)."""
    rows: set[int] = set()
    for market_id, _, fill in added.fills:
        times = [*fill.rows["exchange_us"].tolist(), keyframe(market_id, fill)[0]]
        rows.update(us - us % HOUR_US for us in times)
    for part in (added.trades, added.states):
        rows.update(np.unique(part["exchange_us"] // HOUR_US * HOUR_US).tolist())
    rows.update(first_us - first_us % HOUR_US for _, _, first_us in added.markets)
    proof: set[int] = set()
    for p in added.proofs:
        proof.update(range(p.from_us - p.from_us % HOUR_US, p.to_us, HOUR_US))
    return {hour: (hour in rows, hour in proof) for hour in sorted(rows | proof)}


async def _make_partitions(conn: Connection, added: Addition) -> None:
    partitions = Partitions()
    times = {
        "orderbook_delta": np.concatenate(
            [np.empty(0, "i8"), *(f.rows["exchange_us"] for _, _, f in added.fills)]
        ),
        "orderbook_snapshot": np.array([keyframe(m, f)[0] for m, _, f in added.fills], "i8"),
        "trade": added.trades["exchange_us"],
        "ticker": added.states["exchange_us"],
    }
    for table, us in times.items():
        for day in np.unique(us // DAY_US).tolist():
            await partitions.ensure(conn, table, day * DAY_US, day * DAY_US, "day")


async def _new_versions(
    conn: Connection, number: int, hours: Mapping[int, tuple[bool, bool]]
) -> None:
    """Mark the hours for export; those that were exported get a new version."""
    for hour, (rows, proof) in hours.items():
        held = await conn.fetch("SELECT key, sha256 FROM export_object WHERE hour_us = $1", hour)
        if held:
            await conn.execute(
                "INSERT INTO hour_version SELECT $1, 2 + count(*), $2, $3 FROM hour_version"
                " WHERE hour_us = $1",
                hour,
                number,
                json.dumps({r["key"]: r["sha256"] for r in held}, sort_keys=True),
            )
        await conn.execute(
            "INSERT INTO lake_hour (hour_us, rows_dirty, proof_dirty) VALUES ($1, $2, $3)"
            " ON CONFLICT (hour_us) DO UPDATE SET rows_dirty = lake_hour.rows_dirty OR $2,"
            " proof_dirty = lake_hour.proof_dirty OR $3",
            hour,
            rows,
            proof or rows,
        )


async def unexported(conn: Connection) -> list[int]:
    """Hours with a new version that the lake does not have yet."""
    found = await conn.fetch(
        "SELECT DISTINCT hour_us FROM hour_version WHERE NOT exported ORDER BY hour_us"
    )
    return [r["hour_us"] for r in found]


async def versions_of(conn: Connection, hour_us: int) -> list[dict[str, Any]]:
    """Why an hour has the version it has, for the lake's commit records."""
    found = await conn.fetch(
        "SELECT v.version, v.previous, repair_id, r.reason, r.at_us, r.sources"
        " FROM hour_version v JOIN repair r USING (repair_id)"
        " WHERE v.hour_us = $1 ORDER BY v.version",
        hour_us,
    )
    return [
        {
            "version": r["version"],
            "repair": r["repair_id"],
            "reason": r["reason"],
            "at": moment(r["at_us"]).isoformat(),
            "sources": json.loads(r["sources"]),
            "previous": json.loads(r["previous"]),
        }
        for r in found
    ]
