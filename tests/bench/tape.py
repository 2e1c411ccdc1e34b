"""The recorded captures as one lake, as they were recorded: every subscription is an epoch.

Purpose: a lake of real markets, prices, times and pauses with its truth beside it, for measurements
and for readers. Keyframes stand where the deduplicator puts them: at an epoch's start, every
10,000 events, at each hour.

Does not do: merging (the captures are one recording each).
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from exchange.capture import read_frames
from kalshilake import paths, tables
from kalshilake.schema import TABLES
from kalshilake.store import LocalStore
from kalshilake.write import commit_version, write_hour
from marketdata.book import Book, pack_levels
from marketdata.rows import MERGED_ROW, DeltaFlag
from marketdata.units import parse_price_micros, parse_size_centi, parse_ts_us

KEYFRAME_EVENTS = 10_000  # as dedup.keyframes
ALL = 7  # witnesses


@dataclass
class Epoch:
    """One subscription of one market. `rows`: (us, received_ns, delta, hash, price, side, flags);
    `frames`: keyframes as (events before it, us, hash, levels)."""

    ticker: str
    book: Book
    rows: list[tuple[int, ...]] = field(default_factory=list)
    frames: list[tuple[int, int, int, bytes]] = field(default_factory=list)

    @property
    def span(self) -> tuple[int, int]:
        """First and last exchange time."""
        return self.rows[0][0], self.rows[-1][0]

    def keep(self, us: int) -> None:
        """A keyframe of the book as it is now."""
        levels = pack_levels(self.book.levels(0), self.book.levels(1))
        self.frames.append((len(self.rows), us, self.book.hash, levels))

    def change(self, us: int, received_ns: int, msg: dict[str, Any] | None) -> None:
        """A delta; None: the book is emptied."""
        if not self.rows:
            self.keep(us)
        elif paths.hour_of(us) != paths.hour_of(self.rows[-1][0]):
            self.keep(us - 1)
        if msg is None:
            self.book.clear()
            row = (0, self.book.hash, 0, 0, int(DeltaFlag.RESET))
        else:
            side, delta = int(msg["side"] == "no"), parse_size_centi(msg["delta_fp"])
            price = parse_price_micros(msg["price_dollars"])
            self.book.apply(side, price, delta)
            row = (delta, self.book.hash, price, side, 0)
        self.rows.append((us, received_ns, *row))
        if len(self.rows) % KEYFRAME_EVENTS == 0:
            self.keep(us)


@dataclass
class Tape:
    """The epochs of every market in time order, and the truth."""

    epochs: dict[str, list[Epoch]] = field(default_factory=dict)

    @property
    def events(self) -> int:
        return sum(len(e.rows) for found in self.epochs.values() for e in found)

    def hash_at(self, ticker: str, us: int) -> int | None:
        """Book hash after all events up to `us`; None where no subscription tells."""
        for epoch in self.epochs[ticker]:
            if epoch.span[0] <= us <= epoch.span[1]:
                at = bisect.bisect_right(epoch.rows, us, key=lambda row: row[0])
                return epoch.rows[at - 1][3]
        return None


def _levels(msg: dict[str, Any], side: str) -> list[tuple[int, int]]:
    found = msg.get(f"{side}_dollars_fp") or ()
    return [(parse_price_micros(p), parse_size_centi(q)) for p, q in found]


def _epochs(path: Path) -> Iterator[Epoch]:
    open_: dict[tuple[int, str], Epoch] = {}
    last_us: dict[int, int] = {}
    for frame in read_frames(path):
        kind, msg = frame.frame["type"], frame.frame.get("msg", {})
        key = (frame.conn, str(msg.get("market_ticker")))
        if kind == "orderbook_snapshot":
            levels = _levels(msg, "yes"), _levels(msg, "no")
            if key not in open_:
                open_[key] = Epoch(key[1], Book(*levels))
            elif not any(levels) and any(open_[key].book.levels(s) for s in (0, 1)):
                open_[key].change(last_us[frame.conn], frame.received_us * 1000, None)
        elif kind == "orderbook_delta":
            last_us[frame.conn] = parse_ts_us(msg["ts"])
            open_[key].change(last_us[frame.conn], frame.received_us * 1000, msg)
    yield from (epoch for epoch in open_.values() if epoch.rows)


def recorded_tape(captures: list[Path]) -> Tape:
    """Every subscription of the captures that no earlier one of its market overlaps."""
    tape = Tape()
    for epoch in sorted((e for path in captures for e in _epochs(path)), key=lambda e: e.span):
        mine = tape.epochs.setdefault(epoch.ticker, [])
        ordered = all(a[0] <= b[0] for a, b in zip(epoch.rows, epoch.rows[1:], strict=False))
        if ordered and (not mine or mine[-1].span[1] < epoch.span[0]):
            mine.append(epoch)
    tape.epochs = {name: found for name, found in sorted(tape.epochs.items()) if found}
    return tape


def _tables(tape: Tape) -> dict[str, pa.Table]:
    names = dict(enumerate(tape.epochs, 1))
    rows, frames, claims = [], [], []
    for n, name in names.items():
        before: int | None = None
        for number, epoch in enumerate(tape.epochs[name], 1):
            rows += [
                (us, ns, delta, h, seq, n, number, price, side, flags, ALL)
                for seq, (us, ns, delta, h, price, side, flags) in enumerate(epoch.rows, 1)
            ]
            frames += [(name, us, number, seq, h, packed) for seq, us, h, packed in epoch.frames]
            first, last = epoch.span
            if before is not None:
                claims += _claim(name, before, first, "gap", None)
            claims += _claim(name, first, last + 1, "complete", number)
            before = last + 1
    tickers, us, numbers, seqs, hashes, packed = (list(c) for c in zip(*frames, strict=True))
    times = np.array(us, np.int64)
    return {
        "orderbook_deltas": tables.deltas_table(np.array(rows, MERGED_ROW), names),
        "orderbook_snapshots": tables.snapshots_table(
            tickers, times, times * 1000, np.array(numbers), np.array(seqs),
            np.array(hashes, np.uint64), packed, np.full(len(frames), ALL),
        ),
        "coverage": tables.records_table("coverage", claims),
    }  # fmt: skip


def _claim(ticker: str, a: int, b: int, status: str, epoch: int | None) -> list[dict[str, object]]:
    made: list[dict[str, object]] = []
    while a < b:
        upto = min(b, paths.hour_of(a) + paths.US_PER_HOUR)
        made.append({
            "market_ticker": ticker, "channel": "orderbook", "from_ts": a, "to_ts": upto,
            "status": status, "reason": "" if epoch else "gap", "sources": ALL if epoch else 0,
            "audits": 0, "epoch": epoch,
        })  # fmt: skip
        a = upto
    return made


def write_tape(root: Path, tape: Tape) -> None:
    """The tape as a lake of one version."""
    store, records, whole = LocalStore(root), [], _tables(tape)
    every = {
        hour
        for name, rows in whole.items()
        for hour in np.unique(tables.times_us(rows.column(TABLES[name].time)) // paths.US_PER_HOUR)
    }
    for hour in sorted(int(h) * paths.US_PER_HOUR for h in every):
        for name, rows in whole.items():
            times = tables.times_us(rows.column(TABLES[name].time))
            mine = rows.filter(np.logical_and(times >= hour, times < hour + paths.US_PER_HOUR))
            records.append(
                write_hour(store, name, hour, mine, watermark_us=hour + paths.US_PER_HOUR)
            )
    commit_version(store, records, watermark_us=hour + paths.US_PER_HOUR)
