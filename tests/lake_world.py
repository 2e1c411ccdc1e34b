"""Small lakes with a known truth: markets with epochs, gaps, resets, quiet stretches, steps back.

A World is made from a seed, kept as plain Python lists, and written as a lake by the product's
writer. Its own `book_at` replays every event from the start of the epoch, one by one, with nothing
of the product: the oracle for readers and for the verifier.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from kalshilake import paths, tables
from kalshilake.schema import TABLES
from kalshilake.store import LocalStore
from kalshilake.write import Commit, commit_version, write_hour
from marketdata.book import hash_levels
from marketdata.rows import MERGED_ROW, DeltaFlag

START = 485_000 * paths.US_PER_HOUR
Levels = dict[tuple[int, int], int]  # (side, price in micro-dollars) -> size in 1/100 contract


@dataclass
class Event:
    us: int
    reset: bool = False
    side: int = 0
    price: int = 0
    delta: int = 0
    flags: int = 0


@dataclass
class Epoch:
    number: int
    from_us: int  # the claim: [from_us, to_us)
    to_us: int
    before: Levels
    events: list[Event] = field(default_factory=list)
    keyframes: list[int] = field(default_factory=list)  # positions: events before it

    def book_after(self, n: int) -> Levels:
        book = dict(self.before)
        for event in self.events[:n]:
            if event.reset:
                book.clear()
                continue
            key = (event.side, event.price)
            book[key] = book.get(key, 0) + event.delta
            assert book[key] >= 0, "the world itself is wrong"
            if not book[key]:
                del book[key]
        return book


@dataclass
class Market:
    ticker: str
    epochs: list[Epoch] = field(default_factory=list)


@dataclass
class World:
    seed: int
    hours: int
    markets: list[Market]

    @property
    def end_us(self) -> int:
        return START + self.hours * paths.US_PER_HOUR

    def book_at(self, ticker: str, at_us: int) -> tuple[Epoch, int, Levels] | None:
        """(epoch, events in the prefix, book) where the truth is covered; None elsewhere."""
        for epoch in next(m for m in self.markets if m.ticker == ticker).epochs:
            if epoch.from_us <= at_us < epoch.to_us:
                n = 0
                while n < len(epoch.events) and epoch.events[n].us <= at_us:
                    n += 1
                return epoch, n, epoch.book_after(n)
        return None


def make_world(seed: int, *, markets: int = 3, hours: int = 3, events: int = 30) -> World:
    rng = random.Random(seed)
    world = World(seed, hours, [])
    for i in range(markets):
        market = Market(f"KX-{chr(65 + i)}-{rng.randrange(1000)}")
        # Cut the time into alternating claims and gaps; the ends need not be covered.
        cuts = sorted(rng.sample(range(START + 10, world.end_us - 10), 2 * rng.randint(1, 3)))
        for number, (a, b) in enumerate(zip(cuts[::2], cuts[1::2], strict=True), 1):
            market.epochs.append(_make_epoch(rng, number, a, b, rng.randint(0, events)))
        world.markets.append(market)
    world.markets.sort(key=lambda m: m.ticker)
    return world


def _make_epoch(rng: random.Random, number: int, a: int, b: int, n: int) -> Epoch:
    book: Levels = {}
    for _ in range(rng.randint(0, 6)):
        book[rng.randrange(2), rng.randrange(1, 100) * 10_000] = rng.randint(1, 5000)
    epoch = Epoch(number, a, b, dict(book))
    times = sorted(rng.randrange(a, b) for _ in range(n))
    for i in range(1, n):
        if rng.random() < 0.3:
            times[i] = times[i - 1]
    if n and rng.random() < 0.5:
        times[0] = max(a - 1, START)  # the event just before the claim begins
    # A reset needs a keyframe somewhere before it, or the books before it could not be known.
    first_key = rng.randint(0, n)
    for i, us in enumerate(times):
        flags = 0
        if i and rng.random() < 0.05:
            us, flags = max(us - rng.randint(1, 2_000_000), a), int(DeltaFlag.TS_BACKWARD)
        if book and i >= first_key and rng.random() < 0.08:
            book.clear()
            epoch.events.append(Event(us, reset=True, flags=int(DeltaFlag.RESET) | flags))
            continue
        epoch.events.append(_change(rng, book, us, flags))
    epoch.keyframes = sorted({first_key, *(rng.randint(first_key, n) for _ in range(2))})
    return epoch


def _change(rng: random.Random, book: Levels, us: int, flags: int) -> Event:
    if book and rng.random() < 0.5:
        key = rng.choice(sorted(book))
        delta = -book[key] if rng.random() < 0.4 else rng.randint(1 - book[key], 3000)
    else:
        key = (rng.randrange(2), rng.randrange(1, 100) * 10_000)
        delta = rng.randint(1, 5000)
    book[key] = book.get(key, 0) + delta
    if not book[key]:
        del book[key]
    return Event(us, side=key[0], price=key[1], delta=delta, flags=flags)


def merged_rows(world: World) -> tuple[np.ndarray, dict[int, str]]:
    """Every event as MERGED_ROW, ordered by (market, epoch, market_seq)."""
    names = {i: m.ticker for i, m in enumerate(world.markets, 1)}
    made = []
    for i, market in enumerate(world.markets, 1):
        for epoch in market.epochs:
            for seq, e in enumerate(epoch.events, 1):
                book = _hash(epoch.book_after(seq))
                made.append((e.us, e.us * 1000 + 7_000_000, e.delta, book, seq, i, epoch.number,
                             e.price, e.side, e.flags, 1 + seq % 7))  # fmt: skip
    return np.array(made, MERGED_ROW), names


def keyframe_table(world: World) -> pa.Table:
    rows = []
    for market in world.markets:
        for epoch in market.epochs:
            for n in epoch.keyframes:
                # Inferred: the latest exchange time seen so far on the subscription.
                us = max([e.us for e in epoch.events[:n]] or [max(epoch.from_us - 5, START)])
                book = epoch.book_after(n)
                rows.append((market.ticker, us, epoch.number, n, _hash(book), _pack(book)))
    tickers, us, epochs, seqs, hashes, packed = ([r[i] for r in rows] for i in range(6))
    return tables.snapshots_table(
        tickers, np.array(us), np.array(us) * 1000, np.array(epochs), np.array(seqs),
        np.array(hashes, np.uint64), packed, np.full(len(rows), 7),
    )  # fmt: skip


def coverage_rows(world: World) -> list[dict[str, object]]:
    """Coverage that fills every hour, cut at the hours' borders."""
    made = []
    for market in world.markets:
        line = [(START, market.epochs[0].from_us, "dark", "not subscribed", 0, None)]
        for epoch, following in zip(market.epochs, [*market.epochs[1:], None], strict=True):
            line.append((epoch.from_us, epoch.to_us, "complete", "", 7, epoch.number))
            until = following.from_us if following else world.end_us
            line.append((epoch.to_us, until, "gap" if following else "dark", "lost", 0, None))
        for a, b, status, reason, sources, epoch_number in line:
            ticker = "unproven" if status == "complete" else status
            for channel, claim in (("orderbook", status), ("trade", status), ("ticker", ticker)):
                at = a
                while at < b:
                    upto = min(b, paths.hour_of(at) + paths.US_PER_HOUR)
                    made.append({
                        "market_ticker": market.ticker, "channel": channel, "from_ts": at,
                        "to_ts": upto, "status": claim, "reason": reason, "sources": sources,
                        "audits": 0, "epoch": epoch_number if channel == "orderbook" else None,
                    })  # fmt: skip
                    at = upto
    return made


def trade_table(world: World) -> pa.Table:
    rng = random.Random(world.seed + 1)
    rows = [
        (m.ticker, rng.randrange(START, world.end_us), rng.randbytes(16), rng.randrange(1, 100))
        for m in world.markets
        for _ in range(5)
    ]
    us, cents = np.array([r[1] for r in rows]), np.array([r[3] for r in rows])
    return tables.trades_table(
        [r[0] for r in rows], us, us * 1000, [r[2] for r in rows], cents * 10_000,
        1_000_000 - cents * 10_000, cents, cents % 3 - 1, cents % 2, np.full(len(rows), 3),
    )  # fmt: skip


def world_tables(world: World) -> dict[str, pa.Table]:
    """Every table of the world over all its hours."""
    markets = [
        {"market_ticker": m.ticker, "event_ticker": m.ticker[:4], "first_seen": START, "body": "{}"}
        for m in world.markets
    ]
    events = [
        {"event_ticker": name, "series_ticker": "KX", "title": f"about {name}", "first_seen": START,
         "mutually_exclusive": True, "body": "{}"}
        for name in sorted({m.ticker[:4] for m in world.markets})
    ]  # fmt: skip
    return {
        "orderbook_deltas": tables.deltas_table(*merged_rows(world)),
        "orderbook_snapshots": keyframe_table(world),
        "trades": trade_table(world),
        "coverage": tables.records_table("coverage", coverage_rows(world)),
        "markets": tables.records_table("markets", markets),
        "events": tables.records_table("events", events),
    }


def crowded_world(seed: int) -> tuple[World, dict[str, pa.Table]]:
    """A world, and its tables with trades that share their microseconds with changes."""
    world = make_world(seed, markets=3, hours=2, events=60)
    whole = world_tables(world)
    chosen = [(m.ticker, e.us) for m in world.markets for p in m.epochs for e in p.events][::3]
    n, us = len(chosen), np.array([us for _, us in chosen])
    cents = np.arange(n) % 90 + 1
    whole["trades"] = tables.trades_table(
        [ticker for ticker, _ in chosen], us, us * 1000 + 9_000,
        [i.to_bytes(16, "big") for i in range(n)], cents * 10_000, 1_000_000 - cents * 10_000,
        cents, cents % 3 - 1, cents % 2, np.full(n, 3),
    )  # fmt: skip
    return world, whole


def write_world(root: Path, world: World, whole: dict[str, pa.Table] | None = None) -> Commit:
    """The world as a lake: one version an hour, as the deduplicator would. `whole`: its tables, if
    they are not those of `world_tables`."""
    store = LocalStore(root)
    whole = world_tables(world) if whole is None else whole
    commit = None
    for hour in range(START, world.end_us, paths.US_PER_HOUR):
        records = []
        for name, rows in whole.items():
            times = tables.times_us(rows.column(TABLES[name].time))
            mine = rows.filter(pa.array((times >= hour) & (times < hour + paths.US_PER_HOUR)))
            records.append(
                write_hour(store, name, hour, mine, watermark_us=hour + paths.US_PER_HOUR)
            )
        commit = commit_version(store, records, watermark_us=hour + paths.US_PER_HOUR)
    assert commit is not None
    return commit


def as_levels(book: Levels, side: int) -> tuple[tuple[int, int], ...]:
    """One side of a book, best first."""
    return tuple(sorted(((p, q) for (s, p), q in book.items() if s == side), reverse=True))


def _hash(book: Levels) -> int:
    return hash_levels(
        [(p, q) for (s, p), q in book.items() if s == 0],
        [(p, q) for (s, p), q in book.items() if s == 1],
    )


def _pack(book: Levels) -> bytes:
    yes, no = (sorted((p, q) for (s, p), q in book.items() if s == side) for side in (0, 1))
    return struct.pack("<II", len(yes), len(no)) + b"".join(
        struct.pack("<iq", *level) for level in (*yes, *no)
    )
