"""One market's book now, and its depth over the last minutes, from production.

Purpose: the live book and its picture. The book begins at the nearest keyframe of the newest epoch
and takes what follows on the tape and, behind it, what is proven and not on it yet (orderbook_now).

What holds:
- `proven` is true only where the book's hash after the last event is the one the chain has there.
- A moment of the picture for which no keyframe is known is told as such (null), not as empty.
- At most EVENTS_MAX changes are read; where there are more, the picture begins later and says so.
- Prices in micro-dollars, sizes in 1/100 contract, times in microseconds; rows of the picture are
  whole cents of YES, bids and offers apart.

Does not do: books of the past (kalshilake), coverage (calendar).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from dedup.hours import moment
from marketdata.book import Book, unpack_levels
from marketdata.rows import DeltaFlag, Side
from marketdata.units import PRICE_SCALE
from runtime.postgres import Connection

EVENTS_MAX: Final = 20_000
LEVELS_SHOWN: Final = 100
TRADES_SHOWN: Final = 100
COLUMNS: Final = 120
MINUTES_MAX: Final = 60
CENT: Final = PRICE_SCALE // 100
MINUTE_US: Final = 60_000_000
MARKETS_FOUND: Final = 50
MASK: Final = (1 << 64) - 1
RESET: Final = int(DeltaFlag.RESET)

_MARKET: Final = "SELECT market_id FROM market WHERE ticker = $1"
_SEARCH: Final = """
SELECT ticker FROM market WHERE strpos(ticker, $1) > 0 ORDER BY market_id DESC LIMIT $2
"""
# The newest epoch in time: those of a repair have high numbers and lie in the past.
_EPOCH: Final = """
SELECT epoch, from_us, reason FROM market_epoch WHERE market_id = $1
ORDER BY from_us DESC, epoch DESC LIMIT 1
"""
_KEYFRAME: Final = """
SELECT market_seq, levels, received_ns, (extract(epoch FROM exchange_ts) * 1000000)::bigint AS us
FROM orderbook_snapshot WHERE market_id = $1 AND epoch = $2
ORDER BY market_seq DESC, exchange_ts DESC LIMIT 1
"""
_AFTER: Final = """
SELECT market_seq, (extract(epoch FROM exchange_ts) * 1000000)::bigint AS us, received_ns, side,
    price, delta, book_hash, flags, live
FROM orderbook_now WHERE market_id = $1 AND epoch = $2 AND market_seq > $3
ORDER BY market_seq LIMIT $4
"""
_NEWEST: Final = """
SELECT (extract(epoch FROM max(exchange_ts)) * 1000000)::bigint FROM orderbook_now
WHERE market_id = $1 AND epoch = $2
"""
_FRAMES: Final = """
SELECT epoch, market_seq, (extract(epoch FROM exchange_ts) * 1000000)::bigint AS us, levels
FROM orderbook_snapshot WHERE market_id = $1 AND exchange_ts >= $2
    AND exchange_ts < $3
ORDER BY epoch, market_seq LIMIT $4
"""
_BEFORE: Final = """
SELECT epoch, market_seq, (extract(epoch FROM exchange_ts) * 1000000)::bigint AS us, levels
FROM orderbook_snapshot WHERE market_id = $1 AND exchange_ts < $2
    AND exchange_ts >= $2::timestamptz - interval '1 day'
ORDER BY exchange_ts DESC, market_seq DESC LIMIT 1
"""
_CHANGES: Final = """
SELECT epoch, market_seq, (extract(epoch FROM exchange_ts) * 1000000)::bigint AS us, side, price,
    delta, flags
FROM orderbook_now WHERE market_id = $1 AND exchange_ts >= $2
    AND exchange_ts < $3
ORDER BY exchange_ts DESC, epoch DESC, market_seq DESC LIMIT $4
"""
_TRADES: Final = """
SELECT (extract(epoch FROM exchange_ts) * 1000000)::bigint AS us, yes_price, count, taker_side,
    sources
FROM trade WHERE market_id = $1 AND exchange_ts >= $2
    AND exchange_ts < $3
ORDER BY exchange_ts DESC LIMIT $4
"""


class UnknownMarketError(Exception):
    """The tape has no market of this name."""


async def market_id_of(conn: Connection, ticker: str) -> int:
    """Production's number of a market. Raises UnknownMarketError."""
    found = await conn.fetchval(_MARKET, ticker)
    if found is None:
        raise UnknownMarketError(ticker)
    return int(found)


async def markets_found(conn: Connection, part: str) -> dict[str, Any]:
    """Markets whose name holds `part`, newest first."""
    rows = await conn.fetch(_SEARCH, part, MARKETS_FOUND + 1)
    names = [r["ticker"] for r in rows]
    return {"markets": names[:MARKETS_FOUND], "more": len(names) > MARKETS_FOUND}


async def book_told(conn: Connection, ticker: str) -> dict[str, Any]:
    """The book as far as anything of it is proven. Raises UnknownMarketError."""
    market_id = await market_id_of(conn, ticker)
    told: dict[str, Any] = {
        "market": ticker, "epoch": 0, "market_seq": 0, "exchange_us": 0, "received_ms": 0,
        "live": False, "proven": False, "why": "", "yes": [], "no": [], "left_out": 0,
    }  # fmt: skip
    epoch = await conn.fetchrow(_EPOCH, market_id)
    frame = await conn.fetchrow(_KEYFRAME, market_id, epoch["epoch"]) if epoch else None
    if epoch is None or frame is None:
        return {**told, "why": "nobody saw its order book yet"}
    told |= {
        "epoch": epoch["epoch"],
        "market_seq": frame["market_seq"],
        "exchange_us": frame["us"],
        "received_ms": frame["received_ns"] // 1_000_000,
        "proven": True,
    }
    book = Book(*unpack_levels(frame["levels"]))
    rows = await conn.fetch(_AFTER, market_id, epoch["epoch"], frame["market_seq"], EVENTS_MAX + 1)
    if len(rows) > EVENTS_MAX:
        return {**told, "proven": False, "why": f"over {EVENTS_MAX} changes since a keyframe"}
    for row in rows:
        book = _changed(book, row["flags"], row["side"], row["price"], row["delta"])
    if rows:
        last = rows[-1]
        whole = [r["market_seq"] for r in rows] == list(
            range(frame["market_seq"] + 1, frame["market_seq"] + 1 + len(rows))
        )
        agrees = whole and book.hash == last["book_hash"] & MASK
        told |= {
            "market_seq": last["market_seq"],
            "exchange_us": last["us"],
            "received_ms": last["received_ns"] // 1_000_000,
            "live": last["live"],
            "proven": agrees,
            "why": "" if agrees else "its hash is not that of the chain",
        }
    yes, no = (sorted(side.items(), reverse=True) for side in (book.yes, book.no))
    return {
        **told,
        "yes": [list(level) for level in yes[:LEVELS_SHOWN]],
        "no": [list(level) for level in no[:LEVELS_SHOWN]],
        "left_out": max(0, len(yes) - LEVELS_SHOWN) + max(0, len(no) - LEVELS_SHOWN),
    }


def _changed(book: Book, flags: int, side: int, price: int, delta: int) -> Book:
    if flags & RESET:
        return Book()
    book.apply(side, price, delta)
    return book


async def depth_told(conn: Connection, ticker: str, minutes: int) -> dict[str, Any]:
    """The depth of the last `minutes`, up to the newest event. Raises UnknownMarketError."""
    market_id = await market_id_of(conn, ticker)
    epoch = await conn.fetchrow(_EPOCH, market_id)
    newest = await conn.fetchval(_NEWEST, market_id, epoch["epoch"]) if epoch else None
    if newest is None:
        newest = epoch["from_us"] if epoch else 0
    to_us = int(newest) + 1
    from_us = max(0, to_us - minutes * MINUTE_US)
    frames = list(await conn.fetch(_FRAMES, market_id, moment(from_us), moment(to_us), EVENTS_MAX))
    before = await conn.fetchrow(_BEFORE, market_id, moment(from_us))
    begins_us = from_us
    if before is not None:
        frames.insert(0, before)
        begins_us = before["us"]
    rows = await conn.fetch(_CHANGES, market_id, moment(begins_us), moment(to_us), EVENTS_MAX + 1)
    cut = len(rows) > EVENTS_MAX
    if cut:  # begins at the first keyframe that is whole from there on
        frames = [f for f in frames if f["us"] > rows[-1]["us"]]
    rows = sorted(rows[:EVENTS_MAX], key=lambda r: (r["epoch"], r["market_seq"]))
    trades = await conn.fetch(_TRADES, market_id, moment(from_us), moment(to_us), TRADES_SHOWN)
    columns = columns_of(frames, rows, from_us, to_us)
    return {
        "market": ticker,
        "from_us": from_us,
        "to_us": to_us,
        "step_us": -(-(to_us - from_us) // COLUMNS),
        "shortened": cut,
        "columns": columns,
        "trades": [
            {
                "us": r["us"], "yes_price": r["yes_price"], "count": r["count"],
                "taker": {0: "yes", 1: "no"}.get(r["taker_side"], ""), "sources": r["sources"],
            }
            for r in trades
        ],
    }  # fmt: skip


def columns_of(
    frames: Sequence[Any], rows: Sequence[Any], from_us: int, to_us: int
) -> list[dict[str, list[list[int]]] | None]:
    """The book at the end of each of COLUMNS equal stretches; None where none is known."""
    step = max(1, -(-(to_us - from_us) // COLUMNS))
    made: list[dict[str, list[list[int]]] | None] = [None] * COLUMNS
    starts: dict[int, Any] = {}
    for frame in frames:
        starts.setdefault(frame["epoch"], frame)
    ordered = sorted(starts.values(), key=lambda f: (f["us"], f["epoch"]))
    for n, frame in enumerate(ordered):
        until_us = ordered[n + 1]["us"] if n + 1 < len(ordered) else to_us
        of = (
            r for r in rows
            if r["epoch"] == frame["epoch"] and r["market_seq"] > frame["market_seq"]
        )  # fmt: skip
        _fill(made, frame, of, (from_us, until_us, step))
    return made


def _fill(
    made: list[dict[str, list[list[int]]] | None],
    frame: Any,
    rows: Iterable[Any],
    grid: tuple[int, int, int],
) -> None:
    from_us, until_us, step = grid
    book = Book(*unpack_levels(frame["levels"]))
    coming = iter(rows)
    row = next(coming, None)
    for n in range(COLUMNS):
        ends_us = from_us + (n + 1) * step
        if ends_us <= frame["us"] or ends_us - step >= until_us:
            continue
        while row is not None and row["us"] < ends_us:
            book = _changed(book, row["flags"], row["side"], row["price"], row["delta"])
            row = next(coming, None)
        made[n] = by_cent(book)


def by_cent(book: Book) -> dict[str, list[list[int]]]:
    """[cent of YES, size] of both sides: bids for YES, and offers, which are bids for NO."""
    bids: dict[int, int] = {}
    offers: dict[int, int] = {}
    for side, levels in ((Side.YES, book.yes), (Side.NO, book.no)):
        for price, size in levels.items():
            cent = price // CENT if side == Side.YES else -(-(PRICE_SCALE - price) // CENT)
            of = bids if side == Side.YES else offers
            of[cent] = of.get(cent, 0) + size
    return {
        "bids": [[cent, size] for cent, size in sorted(bids.items())],
        "offers": [[cent, size] for cent, size in sorted(offers.items())],
    }
