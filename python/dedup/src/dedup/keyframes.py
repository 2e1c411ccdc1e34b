"""Keyframes of our own in production: any reader starts near.

Purpose: before an hour is exported, the books that a reader will want to start from: after every
EVERY_EVENTS-th event of an epoch in the hour, at the hour's start where the market moved in the
hour before, at a day's start for every market that somebody recorded then, and at the start of an
epoch that would have none. Where each belongs is fixed by the tape alone, so that a killed and an
undisturbed deduplicator write the same rows.

What holds:
- A keyframe is written only where its book has the hash that the chain has there
  (marketdata.keyframes); what cannot be proven is counted and left out. `sources` is 0: computed,
  seen by no gatherer.
- Written once: a second time changes nothing. Nothing else of the tape is touched.
- At most CHUNK_ROWS changes and CHUNK_PLACES places are in memory.

Does not do: keyframes that are snapshots of the exchange (the merge places those), objects
(export).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np

from dedup import tape_rows
from dedup.columns import picked
from dedup.hours import by_time, moment
from dedup.publication import DAY_US, HOUR_US, signed
from dedup.tape_rows import Rows
from marketdata.book import Book
from marketdata.keyframes import EVERY_EVENTS, book_at
from marketdata.rows import MERGED_ROW, DeltaFlag
from runtime import logs
from runtime.partitions import Partitions
from runtime.pgcopy import unpack_rows
from runtime.postgres import Connection, copy_out, or_lost

CHUNK_ROWS: Final = 100_000
CHUNK_PLACES: Final = 2_000

log = logs.get("keyframes")

_BY_NUMBER: Final = """
SELECT market_id, epoch, market_seq, (extract(epoch FROM exchange_ts) * 1000000)::bigint AS us,
    received_ns
FROM orderbook_delta
WHERE exchange_ts >= $1 AND exchange_ts < $2
    AND market_seq % $3 = 0
ORDER BY 1, 2, 3
"""
_ENDS: Final = """
SELECT market_id, epoch, min(market_seq) AS first, max(market_seq) AS last FROM orderbook_delta
WHERE exchange_ts >= $1 AND exchange_ts < $2
GROUP BY 1, 2
"""
_RECORDED: Final = """
SELECT DISTINCT market_id FROM market_claim WHERE valid AND to_us > $1 AND from_us <= $1
"""
# The epoch by time: those of a repair have high numbers and lie in the past.
_EPOCHS: Final = """
SELECT m AS market_id, e.epoch FROM unnest($1::int[]) AS m
CROSS JOIN LATERAL (
    SELECT epoch FROM market_epoch WHERE market_id = m AND from_us <= $2
    ORDER BY from_us DESC, epoch DESC LIMIT 1
) AS e
ORDER BY 1
"""
_RECEIVED: Final = """
SELECT o.market_id, o.epoch, o.received_ns
FROM unnest($1::int[], $2::int[], $3::int[]) AS d(m, e, n)
JOIN orderbook_delta AS o ON o.market_id = d.m AND o.epoch = d.e AND o.market_seq = d.n
WHERE o.exchange_ts >= $4 AND o.exchange_ts < $5
"""
# The prefix of the epoch that is older than the moment: a time may step back, a prefix may not.
# Goes through a market's changes by number: for those that have few on one side of the moment.
_STANDING: Final = """
SELECT m AS market_id, e.epoch, coalesce(least(last.market_seq, next.market_seq - 1), 0) AS place,
    coalesce(last.received_ns, 0) AS received_ns
FROM unnest($1::int[]) AS m
CROSS JOIN LATERAL (
    SELECT epoch FROM market_epoch WHERE market_id = m AND from_us <= $2
    ORDER BY from_us DESC, epoch DESC LIMIT 1
) AS e
LEFT JOIN LATERAL (
    SELECT market_seq, received_ns FROM orderbook_delta
    WHERE market_id = m AND epoch = e.epoch AND exchange_ts < $3
    ORDER BY market_seq DESC LIMIT 1
) AS last ON true
LEFT JOIN LATERAL (
    SELECT market_seq FROM orderbook_delta
    WHERE market_id = m AND epoch = e.epoch AND exchange_ts >= $3
    ORDER BY market_seq LIMIT 1
) AS next ON true
ORDER BY 1
"""
_NEAREST: Final = """
SELECT d.n, k.market_seq, k.levels, k.received_ns
FROM unnest($1::int[], $2::int[], $3::int[]) WITH ORDINALITY AS d(m, e, place, n)
CROSS JOIN LATERAL (
    SELECT market_seq, levels, received_ns FROM orderbook_snapshot
    WHERE market_id = d.m AND epoch = d.e AND market_seq <= d.place
    ORDER BY market_seq DESC, exchange_ts LIMIT 1
) AS k
ORDER BY 1
"""
_INSERT: Final = """
INSERT INTO orderbook_snapshot
    (exchange_ts, received_ns, book_hash, market_id, epoch, market_seq, sources, levels)
VALUES ($1, $2, $3, $4, $5, $6, 0, $7) ON CONFLICT DO NOTHING
"""


# Its run's snapshot was placed at the end of the epoch before it, where the run seemed to go on.
_WITHOUT: Final = """
SELECT e.market_id, e.epoch, e.from_us, e.start_hash, coalesce((
    SELECT max(market_seq) FROM orderbook_delta AS o
    WHERE o.market_id = e.market_id AND o.epoch = e.epoch - 1
), 0) AS last
FROM market_epoch AS e
WHERE e.reason = 'book_equal' AND e.from_us > $1 AND e.from_us <= $2 AND NOT EXISTS (
    SELECT FROM orderbook_snapshot AS s
    WHERE s.market_id = e.market_id AND s.epoch = e.epoch AND s.market_seq = 0
)
ORDER BY 1, 2
"""


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where a keyframe is due: after `position` events of an epoch; it says `us`."""

    market_id: int
    epoch: int
    position: int
    us: int
    received_ns: int


@dataclass(frozen=True, slots=True)
class _Start:
    """From where a place is computed. `levels` None: as the place before it leaves them."""

    position: int
    levels: bytes | None
    received_ns: int


_Row: TypeAlias = tuple[int, int, int, int, int, int, bytes]


async def place(conn: Connection, partitions: Partitions, hour_us: int) -> int:
    """Write what is due in the hour; how many were written. Run it before the hour is read.

    Raises:
        asyncpg.PostgresError, OSError: production went away; what was written stays.
    """
    async with by_time(conn, tape_rows.DELTA_COPY.table):
        due = await _by_number(conn, hour_us)
        due += await _at_start(conn, hour_us)
    written = unproven = 0
    for places in _chunks(sorted(due), CHUNK_PLACES):
        made, missed = await _computed(conn, places)
        unproven += missed
        await _insert(conn, partitions, made)
        written += len(made)
    if unproven:
        log.warning("keyframes could not be proven and were left out", hour=hour_us, count=unproven)
    return written


async def begin(conn: Connection, partitions: Partitions, hour_us: int) -> int:
    """Keyframes for epochs that begin in the hour without one, with the book of the epoch before:
    they follow a gap with the same book on both sides. Without it nobody could rebuild a book that
    coverage calls complete. How many were written; run it before `place`.

    Each stands a microsecond before its epoch, where the merge puts none: a snapshot that comes
    late to the epoch's start has the place of its own.

    Raises:
        asyncpg.PostgresError, OSError: production went away; what was written stays.
    """
    written = 0
    while True:  # where several such epochs follow each other, each needs the one before it
        found: dict[int, Any] = {}
        for row in await conn.fetch(_WITHOUT, hour_us, hour_us + HOUR_US):
            found.setdefault(row["market_id"], row)
        made = []
        for some in _chunks(list(found.values()), CHUNK_PLACES):
            places = [Place(r["market_id"], r["epoch"] - 1, r["last"], 0, 0) for r in some]
            computed, _ = await _computed(conn, places)
            for _, received_ns, book_hash, market, _, _, levels in computed:
                row = found[market]
                if book_hash == row["start_hash"]:
                    us = row["from_us"] - 1
                    made.append((us, received_ns, book_hash, market, row["epoch"], 0, levels))
        if not made:
            return written
        written += len(made)
        await _insert(conn, partitions, made)


async def _insert(conn: Connection, partitions: Partitions, made: Sequence[_Row]) -> None:
    for day in sorted({row[0] // DAY_US for row in made}):
        await partitions.ensure(conn, "orderbook_snapshot", day * DAY_US, day * DAY_US, "day")
    rows = [(moment(us), *rest) for us, *rest in made]
    await or_lost(conn, conn.executemany(_INSERT, rows))


async def _by_number(conn: Connection, hour_us: int) -> list[Place]:
    found = await conn.fetch(_BY_NUMBER, moment(hour_us), moment(hour_us + HOUR_US), EVERY_EVENTS)
    return [
        Place(r["market_id"], r["epoch"], r["market_seq"], r["us"], r["received_ns"]) for r in found
    ]


async def _at_start(conn: Connection, hour_us: int) -> list[Place]:
    """At the hour's start: who moved in the hour before; on a day's first hour who was recorded."""
    if hour_us % DAY_US:
        return await _after_hour(conn, hour_us)
    found = await conn.fetch(_RECORDED, hour_us)
    return await _standing(conn, hour_us, sorted(r["market_id"] for r in found))


async def _after_hour(conn: Connection, hour_us: int) -> list[Place]:
    """Who moved in the hour before. Both hours are gone through once, by time: by number, an hour
    late in the day would go through all of the day."""
    before, at, after = (moment(hour_us + n * HOUR_US) for n in (-1, 0, 1))
    last = {(r["market_id"], r["epoch"]): r["last"] for r in await conn.fetch(_ENDS, before, at)}
    first = {(r["market_id"], r["epoch"]): r["first"] for r in await conn.fetch(_ENDS, at, after)}
    markets = sorted({market for market, _ in last})
    due: list[Place] = []
    for some in _chunks(markets, CHUNK_PLACES):
        standing = [tuple(r) for r in await conn.fetch(_EPOCHS, some, hour_us)]
        known = [(m, e, last[m, e]) for m, e in standing if (m, e) in last]
        columns = [list(column) for column in zip(*known, strict=True)] or [[], [], []]
        received = {
            (r["market_id"], r["epoch"]): r["received_ns"]
            for r in await conn.fetch(_RECEIVED, *columns, before, at)
        }
        due += [
            Place(m, e, min(n, first.get((m, e), n + 1) - 1), hour_us, received[m, e])
            for m, e, n in known
        ]
        others = [m for m, e in standing if (m, e) not in last]
        due += await _standing(conn, hour_us, others)
    return due


async def _standing(conn: Connection, hour_us: int, markets: Sequence[int]) -> list[Place]:
    due: list[Place] = []
    for some in _chunks(markets, CHUNK_PLACES):
        due += [
            Place(r["market_id"], r["epoch"], r["place"], hour_us, r["received_ns"])
            for r in await conn.fetch(_STANDING, some, hour_us, moment(hour_us))
        ]
    return due


async def _starts(conn: Connection, places: Sequence[Place]) -> list[tuple[Place, _Start]]:
    """Each place that can be reached, and from where: the keyframe before it, or the place before
    it where that is nearer. Together the changes in between are read once."""
    near = await conn.fetch(
        _NEAREST,
        [p.market_id for p in places],
        [p.epoch for p in places],
        [p.position for p in places],
    )
    reached: list[tuple[Place, _Start]] = []
    for r in near:
        here = places[r["n"] - 1]
        start = _Start(r["market_seq"], r["levels"], r["received_ns"])
        if reached:
            former = reached[-1][0]
            same = (former.market_id, former.epoch) == (here.market_id, here.epoch)
            if same and former.position > start.position:
                start = _Start(former.position, None, start.received_ns)
        reached.append((here, start))
    return reached


async def _computed(conn: Connection, places: Sequence[Place]) -> tuple[list[_Row], int]:
    """Rows for the places whose book can be proven, and how many cannot; `places`: sorted."""
    made: list[_Row] = []
    before: Book | None = None  # after the place before; None: it was not proven
    for group in _bounded(await _starts(conn, places)):
        rows = by_epoch(await _changes(conn, group))
        for place_, start in group:
            mine = _between(rows, place_, start)
            levels = start.levels
            if levels is None and before is not None:
                levels = before.to_bytes()
            elif levels is None and (mine["flags"] & int(DeltaFlag.RESET)).any():
                levels = Book().to_bytes()  # whatever it was, it was emptied
            before = None
            if levels is not None:
                before = book_at(levels, start.position, mine, place_.position)
            if before is not None:
                received_ns = place_.received_ns or start.received_ns
                made.append(
                    (place_.us, received_ns, signed(before.hash), place_.market_id,
                     place_.epoch, place_.position, before.to_bytes())
                )  # fmt: skip
    return made, len(places) - len(made)


def _bounded(group: Iterable[tuple[Place, _Start]]) -> Iterator[list[tuple[Place, _Start]]]:
    """Parts with at most CHUNK_ROWS changes in all; one place is taken whatever it needs."""
    part: list[tuple[Place, _Start]] = []
    rows = 0
    for place_, start in group:
        needed = place_.position - start.position
        if part and rows + needed > CHUNK_ROWS:
            yield part
            part, rows = [], 0
        part.append((place_, start))
        rows += needed
    if part:
        yield part


async def _changes(conn: Connection, group: Sequence[tuple[Place, _Start]]) -> Rows:
    """The changes between each start and its place, each once, in the order of the tape."""
    columns = ", ".join(f"o.{name}" for name in tape_rows.DELTA_COPY.names)
    wanted = ", ".join(
        f"({p.market_id}, {p.epoch}, {s.position}, {p.position})"
        for p, s in group
        if s.position < p.position
    )
    if not wanted:
        return np.empty(0, MERGED_ROW)
    body = await copy_out(
        conn,
        f"SELECT {columns} FROM (VALUES {wanted}) AS d(m, e, a, b)"  # noqa: S608 (integers)
        " JOIN orderbook_delta AS o ON o.market_id = d.m AND o.epoch = d.e"
        " AND o.market_seq > d.a AND o.market_seq <= d.b",
    )
    rows = unpack_rows(tape_rows.DELTA_COPY, body, MERGED_ROW)
    return picked(rows, np.lexsort((rows["market_seq"], rows["epoch"], rows["market_id"])))


def by_epoch(rows: Rows) -> dict[tuple[int, int], Rows]:
    """Rows in the order of (market, epoch, number), as one piece for each market and epoch."""
    if not rows.size:
        return {}
    new = (np.diff(rows["market_id"]) != 0) | (np.diff(rows["epoch"]) != 0)
    cuts = (np.flatnonzero(new) + 1).tolist()
    return {
        (int(part["market_id"][0]), int(part["epoch"][0])): part for part in np.split(rows, cuts)
    }


def _between(rows: dict[tuple[int, int], Rows], place_: Place, start: _Start) -> Rows:
    found = rows.get((place_.market_id, place_.epoch))
    if found is None:
        return np.empty(0, MERGED_ROW)
    low, high = found["market_seq"].searchsorted((start.position, place_.position), side="right")
    return found[low:high]


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for at in range(0, len(items), size):
        yield items[at : at + size]
