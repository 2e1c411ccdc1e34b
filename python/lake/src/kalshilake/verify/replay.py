"""The tape: every (market, epoch) replayed over all hours, and held against its keyframes.

Its own book, its own hash: nothing here is shared with the code that made the tape.

Does not do: coverage (claims).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa

from .layout import load, plain, side_levels
from .lists import Place
from .report import Report

MASK: Final = 2**64 - 1
RESET: Final = 1  # bit of `flags`
RIM_US: Final = 1_000_000  # a keyframe's time is inferred: this near the watermark it may lead

Level = tuple[int, int]  # (side, price in micro-dollars)
Event = tuple[int, int, int, int, int, str]  # seq, flags, side, price, delta, key of its object
Moments = list[tuple[int, int, int]]  # time, epoch, flags


@dataclass(slots=True)
class Key:
    """A keyframe: the book after the first `seq` events of an epoch."""

    seq: int
    us: int
    levels: dict[Level, int]
    key: str


@dataclass(slots=True)
class Chain:
    """One (market, epoch) while its events go by."""

    done: int = 0  # market_seq of the last event
    last_key: str = ""
    early: list[Event] = field(default_factory=list)  # before the first keyframe
    book: dict[Level, int] | None = None
    waiting: list[Event] = field(default_factory=list)  # beyond a hole that the next hour may fill
    keys: dict[int, list[Key]] = field(default_factory=dict)
    broken: bool = False  # a negative level was reported


class Tape:
    """Replays every (market, epoch) over all hours."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._chains: dict[tuple[str, int], Chain] = {}
        self._taken: set[str] = set()
        self._constants: dict[Level, int] = {}

    def keyframes(self, found: list[tuple[str, int, Key, int]], *, ahead: bool = False) -> None:
        """Keyframes of an hour; `ahead`: of the hour after the one whose events come next."""
        for market, epoch, keyframe, book_hash in found:
            if keyframe.key in self._taken:
                continue
            self._report.keyframes += 1
            total = sum(self._constant(level) * size for level, size in keyframe.levels.items())
            if total & MASK != book_hash:
                self._report.found(keyframe.key, f"{market}: a book_hash is not that of its levels")
            chain = self._chains.setdefault((market, epoch), Chain())
            chain.keys.setdefault(keyframe.seq, []).append(keyframe)
        if ahead or found:
            self._taken |= {k.key for _, _, k, _ in found}

    def absorb(self, key: str, groups: Iterable[pa.Table]) -> Iterator[tuple[str, Moments]]:
        """Replay an hour's deltas; gives (time, epoch, flags) of each event, market by market."""
        names = ("market_ticker", "exchange_ts", "epoch", "market_seq", "flags", "kind", "side",
                 "price", "delta")  # fmt: skip
        waiting = {name for name, chain in self._chains.items() if chain.waiting}
        visited: set[tuple[str, int]] = set()
        current: str | None = None
        seen: Moments = []
        fresh: dict[tuple[str, int], list[Event]] = {}
        for rows in groups:
            columns = [plain(rows.column(n)) for n in names]
            for market, us, epoch, seq, flags, kind, side, price, delta in zip(
                *columns, strict=True
            ):
                if market != current:
                    if current is not None:
                        visited |= self._replay(key, fresh)
                        yield current, seen
                    current, seen, fresh = market, [], {}
                reset = kind == "reset"
                if reset != bool(flags & RESET) or reset != (side is None) or (
                    not reset and (kind != "delta" or side not in ("yes", "no"))
                ):  # fmt: skip
                    text = f"{market}: event {seq} of epoch {epoch} has a wrong kind"
                    self._report.found(key, text)
                    continue
                seen.append((us, epoch, flags))
                event = (seq, flags, int(side == "no"), price or 0, delta or 0, key)
                fresh.setdefault((market, epoch), []).append(event)
        if current is not None:
            visited |= self._replay(key, fresh)
            yield current, seen
        self._replay(key, {name: [] for name in waiting - visited})

    def _replay(self, key: str, fresh: dict[tuple[str, int], list[Event]]) -> set[tuple[str, int]]:
        """The events of some chains in the hour of this object; these chains."""
        for name in sorted(fresh):
            chain = self._chains.setdefault(name, Chain())
            held = bool(chain.waiting)
            self._extend(name, chain, fresh[name])
            if held and chain.waiting and chain.waiting[0][5] != key:
                self._skip_hole(name, chain)  # an hour later nothing can fill it any more
        return set(fresh)

    def finish(self) -> None:
        """No hour follows: what still waits is missing something."""
        rim = self._report.watermark_us - RIM_US
        for name, chain in sorted(self._chains.items()):
            while chain.waiting:
                self._skip_hole(name, chain)
            self._check_keys(name, chain)
            for keyframe in (k for seq in sorted(chain.keys) for k in chain.keys[seq]):
                self._unreached(name, chain, keyframe, rim)
            if chain.book is None:
                self._report.notes.append(f"{name[0]}: epoch {name[1]} has no keyframe")

    def _unreached(self, name: tuple[str, int], chain: Chain, keyframe: Key, rim_us: int) -> None:
        text = (
            f"{name[0]}: a keyframe stands after event {keyframe.seq} of epoch {name[1]}, the "
            f"events end with {chain.done}"
        )
        if keyframe.us < rim_us:
            last = f" in {chain.last_key}" if chain.last_key else ""
            self._report.found(keyframe.key, text + last)
        else:
            self._report.notes.append(f"{keyframe.key}: {text}")

    def _extend(self, name: tuple[str, int], chain: Chain, events: list[Event]) -> None:
        queue = sorted(chain.waiting + events)
        chain.waiting = []
        self._check_keys(name, chain)
        for i, event in enumerate(queue):
            if event[0] <= chain.done:
                self._report.found(
                    event[5], f"{name[0]}: event {event[0]} of epoch {name[1]} is there twice"
                )
            elif event[0] > chain.done + 1:
                chain.waiting = queue[i:]
                return
            else:
                self._step(name, chain, event)

    def _skip_hole(self, name: tuple[str, int], chain: Chain) -> None:
        event = chain.waiting[0]
        where = f" (the one before is in {chain.last_key})" if chain.last_key != event[5] else ""
        self._report.found(
            event[5],
            f"{name[0]}: events {chain.done + 1} to {event[0] - 1} of epoch {name[1]} are missing"
            + (where if chain.last_key else ""),
        )
        chain.done = event[0] - 1
        chain.book, chain.early = None, []  # unknown until the next keyframe
        self._extend(name, chain, [])

    def _step(self, name: tuple[str, int], chain: Chain, event: Event) -> None:
        chain.done, chain.last_key = event[0], event[5]
        self._report.events += 1
        if chain.book is None:
            chain.early.append(event)
        else:
            self._apply(name, chain, chain.book, event)
        self._check_keys(name, chain)

    def _apply(
        self, name: tuple[str, int], chain: Chain, book: dict[Level, int], event: Event
    ) -> None:
        seq, flags, side, price, delta, key = event
        if flags & RESET:
            book.clear()
            return
        size = book.get((side, price), 0) + delta
        if size:
            book[side, price] = size
        else:
            book.pop((side, price), None)
        if size < 0 and not chain.broken:
            chain.broken = True
            self._report.found(
                key, f"{name[0]}: event {seq} of epoch {name[1]} makes a level negative"
            )

    def _check_keys(self, name: tuple[str, int], chain: Chain) -> None:
        """Compare the book with every keyframe that stands here; anchor it with the first."""
        for keyframe in chain.keys.pop(chain.done, ()):
            if chain.book is None:
                chain.book, events = _before(keyframe.levels, chain.early)
                chain.early = []
                for event in events:
                    self._apply(name, chain, chain.book, event)
            if chain.book != keyframe.levels:
                self._report.found(
                    keyframe.key,
                    f"{name[0]}: keyframe after event {keyframe.seq} of epoch {name[1]} is not the "
                    f"book that the deltas in {chain.last_key or 'no object'} lead to",
                )
                chain.book = dict(keyframe.levels)
            chain.broken = False

    def _constant(self, level: Level) -> int:
        made = self._constants.get(level)
        if made is None:
            x = (level[0] * 2**32 + level[1] + 0x9E3779B97F4A7C15) & MASK
            x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & MASK
            x = ((x ^ x >> 27) * 0x94D049BB133111EB) & MASK
            made = self._constants[level] = (x ^ x >> 31) | 1
        return made


def _before(levels: dict[Level, int], events: list[Event]) -> tuple[dict[Level, int], list[Event]]:
    """(a known book, the events after it) of events that end in `levels`.

    The book before a reset is unknown and gone: behind one, all that counts comes after the last.
    """
    for i in range(len(events) - 1, -1, -1):
        if events[i][1] & RESET:
            return {}, events[i + 1 :]
    book = dict(levels)
    for _, _, side, price, delta, _ in events:
        book[side, price] = book.get((side, price), 0) - delta
    return {level: size for level, size in book.items() if size}, events


def load_keyframes(
    place: Place, report: Report, entries: Iterable[dict[str, Any]]
) -> list[tuple[str, int, Key, int]]:
    """(market, epoch, keyframe, its book_hash) of these objects."""
    made: list[tuple[str, int, Key, int]] = []
    for entry in entries:
        loaded = load(place, report, entry)
        if loaded is None:
            continue
        for rows in loaded.groups():
            made += _keyframes_of(report, loaded.key, rows)
    return made


def _keyframes_of(report: Report, key: str, rows: pa.Table) -> list[tuple[str, int, Key, int]]:
    names = ("market_ticker", "exchange_ts", "epoch", "market_seq", "book_hash")
    sides = [side_levels(rows.column(side)) for side in ("yes", "no")]
    columns = [plain(rows.column(n)) for n in names]
    made = []
    for market, us, epoch, seq, book_hash, yes, no in zip(*columns, *sides, strict=True):
        levels = {(s, p): q for s, side in enumerate((yes, no)) for p, q in side}
        if len(levels) != len(yes) + len(no) or yes != sorted(yes) or no != sorted(no) or any(
            q <= 0 for q in levels.values()
        ):  # fmt: skip
            report.found(key, f"{market}: levels are not ascending, or not above zero")
        made.append((market, epoch, Key(seq, us, levels, key), book_hash))
    return made
