"""Where one run of a market's events lies in another: candidates, and equality of the overlap.

Purpose: the arithmetic of rules 3 and 4 of the merge. A run is a contiguous substring of the
market's true sequence, so two runs differ by one offset; the offset is proven by equality over the
whole overlap and by nothing less.

Invariants: INV-A1 an event's identity is its transition (kind, side, price, delta, H before): equal
changes in one microsecond stay apart because H differs. INV-A2 time decides only whether a
candidate is admissible, never what is equal. INV-A3 events whose time was inferred are compared
without it.

Does not do: choosing between offsets, votes, epochs (merge.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from marketdata.book import level_constants
from marketdata.rows import DELTA_ROW, DeltaFlag, DeltaRows

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
I32 = npt.NDArray[np.int32]
I16 = npt.NDArray[np.int16]
Bools = npt.NDArray[np.bool_]

# Fixed odd multipliers; any will do, equality of the fields themselves is checked afterwards.
_M_PRICE: Final = np.uint64(0x9E3779B97F4A7C15)
_M_SIDE: Final = np.uint64(0xC2B2AE3D27D4EB4F)
_M_DELTA: Final = np.uint64(0xD6E8FEB86659FD93)
_M_HASH: Final = np.uint64(0xA0761D6478BD642F)
_UNTIMED: Final = int(DeltaFlag.RESET | DeltaFlag.TS_INFERRED)
_MS_ONLY: Final = int(DeltaFlag.TS_MS_ONLY)
_RESET: Final = int(DeltaFlag.RESET)

CANDIDATES_MAX: Final = 256  # offsets tried for one pair; more only occurs in made-up input


@dataclass(slots=True)
class Events:
    """A stretch of one market's events as columns of equal length, in sequence order.

    `h_before`/`h_after`: book hash around each event; both lack the same constant while the run
    floats. `content`: hash of (kind, side, price, delta).
    """

    us: I64
    received_ns: I64
    delta: I64
    price: I32
    side: I16
    flags: I16
    h_before: U64
    h_after: U64
    content: U64

    def __len__(self) -> int:
        return self.us.size

    def part(self, start: int, stop: int) -> Events:
        """Events start..stop, as views."""
        return self.picked(slice(start, stop))

    def picked(self, index: slice | npt.NDArray[np.intp]) -> Events:
        """The events that `index` selects, in its order."""
        return Events(
            self.us[index], self.received_ns[index], self.delta[index], self.price[index],
            self.side[index], self.flags[index], self.h_before[index], self.h_after[index],
            self.content[index],
        )  # fmt: skip

    def shifted(self, constant: int) -> Events:
        """The same events with `constant` added to every book hash (rule 2)."""
        c = np.uint64(constant & 0xFFFFFFFFFFFFFFFF)
        return Events(
            self.us, self.received_ns, self.delta, self.price, self.side, self.flags,
            self.h_before + c, self.h_after + c, self.content,
        )  # fmt: skip

    def keys(self) -> U64:
        """Identity of each event's transition (INV-A1)."""
        return self.content + self.h_before * _M_HASH


def join_events(parts: Sequence[Events]) -> Events:
    """End to end."""
    if len(parts) == 1:
        return parts[0]
    return Events(
        np.concatenate([p.us for p in parts]),
        np.concatenate([p.received_ns for p in parts]),
        np.concatenate([p.delta for p in parts]),
        np.concatenate([p.price for p in parts]),
        np.concatenate([p.side for p in parts]),
        np.concatenate([p.flags for p in parts]),
        np.concatenate([p.h_before for p in parts]),
        np.concatenate([p.h_after for p in parts]),
        np.concatenate([p.content for p in parts]),
    )


def content_keys(price: I32, side: I16, delta: I64, flags: I16) -> U64:
    """Hash of (kind, side, price, delta) for each event; reset or not is part of the kind."""
    kind = (flags & _RESET).astype(np.uint64)
    return (
        price.astype(np.uint64) * _M_PRICE
        + (side.astype(np.uint64) + (kind << np.uint64(8))) * _M_SIDE
        + delta.view(np.uint64) * _M_DELTA
    )


def events_of(rows: DeltaRows, h_start: int) -> Events:
    """Events of gatherer rows (dtype DELTA_ROW) of one run and market, in order.

    `h_start`: book hash before the first row, on the same footing as the rows' `book_hash`.
    """
    return _events_of(rows, h_start) if rows.size else _NOTHING


def _events_of(rows: DeltaRows, h_start: int) -> Events:
    h_after = np.ascontiguousarray(rows["book_hash"])
    h_before = np.empty_like(h_after)
    h_before[:1] = np.uint64(h_start)
    h_before[1:] = h_after[:-1]
    price, side = np.ascontiguousarray(rows["price"]), np.ascontiguousarray(rows["side"])
    delta, flags = np.ascontiguousarray(rows["delta"]), np.ascontiguousarray(rows["flags"])
    return Events(
        np.ascontiguousarray(rows["exchange_us"]), np.ascontiguousarray(rows["received_ns"]),
        delta, price, side, flags, h_before, h_after, content_keys(price, side, delta, flags),
    )  # fmt: skip


_NOTHING: Final = _events_of(np.empty(0, DELTA_ROW), 0)  # most runs of a window bring no event


def no_events() -> Events:
    """An empty stretch."""
    return _NOTHING


def chain_break(events: Events) -> int:
    """Index of the first event whose H after is not H before plus its own term; -1 if none."""
    if len(events) == 0:
        return -1
    expected = events.h_before + level_constants(events.side, events.price) * events.delta.view(
        np.uint64
    )
    reset = (events.flags & _RESET) != 0
    wrong = np.where(reset, events.h_after != 0, events.h_after != expected)
    return int(np.argmax(wrong)) if wrong.any() else -1


def times_agree(a: Events, b: Events, tolerance_us: int) -> Bools:
    """Element by element: may these be one event as far as time goes (INV-A2, INV-A3)?"""
    close = np.abs(a.us - b.us) <= tolerance_us
    either = a.flags | b.flags
    if (either & (_UNTIMED | _MS_ONLY)).any():
        close |= (either & _UNTIMED) != 0
        same_ms = np.abs(a.us // 1000 - b.us // 1000) * 1000 <= tolerance_us
        close |= ((either & _MS_ONLY) != 0) & same_ms
    return np.asarray(close, dtype=np.bool_)


def agreement(run: Events, other: Events, offset: int, tolerance_us: int) -> tuple[int, int, int]:
    """(start, agreed, length) of the overlap when run's event i is other's event i + offset.

    `start` is the overlap's first index in `run`; `agreed` of its `length` events are equal from
    there on without a break. The offset is proven if agreed == length > 0.
    """
    start = max(0, -offset)
    stop = min(len(run), len(other) - offset)
    if stop <= start:
        return start, 0, 0
    a, b = run.part(start, stop), other.part(start + offset, stop + offset)
    equal = (
        (a.content == b.content)
        & (a.h_before == b.h_before)
        & (a.price == b.price)
        & (a.delta == b.delta)
        & times_agree(a, b, tolerance_us)
    )
    length = stop - start
    return start, (length if equal.all() else int(np.argmin(equal))), length


def candidate_offsets(run: Events, other: Events, tolerance_us: int) -> list[int]:
    """Offsets at which the first event of one is found in the other, both ways (rule 4)."""
    if len(run) == 0 or len(other) == 0:
        return []
    run_keys, other_keys = run.keys(), other.keys()
    found = {int(j) for j in np.flatnonzero(other_keys == run_keys[0])}
    found |= {-int(i) for i in np.flatnonzero(run_keys == other_keys[0])}
    return sorted(o for o in found if _first_pair_agrees(run, other, o, tolerance_us))[
        :CANDIDATES_MAX
    ]


def floating_offsets(run: Events, other: Events, tolerance_us: int) -> list[tuple[int, int]]:
    """(offset, constant) for a run that has H only up to a constant (rule 3)."""
    if len(run) == 0 or len(other) == 0:
        return []
    found = {int(j) for j in np.flatnonzero(other.content == run.content[0])}
    found |= {-int(i) for i in np.flatnonzero(run.content == other.content[0])}
    result = []
    for offset in sorted(found):
        if not _first_pair_agrees(run, other, offset, tolerance_us):
            continue
        i = max(0, -offset)
        constant = (int(other.h_before[i + offset]) - int(run.h_before[i])) & 0xFFFFFFFFFFFFFFFF
        result.append((offset, constant))
    return result[:CANDIDATES_MAX]


def _first_pair_agrees(run: Events, other: Events, offset: int, tolerance_us: int) -> bool:
    i = max(0, -offset)
    j = i + offset
    return bool(times_agree(run.part(i, i + 1), other.part(j, j + 1), tolerance_us)[0])


def canonical(events: Events) -> Events:
    """The same events with each microsecond in canonical order (rule 10, third mode).

    Order inside a microsecond: by level, then as received; nothing moves across a reset. H is
    recomputed inside, and is unchanged at the end of every whole microsecond.
    """
    if len(events) < 2:
        return events
    is_reset = (events.flags & _RESET) != 0
    barrier = np.cumsum(is_reset)
    group = np.cumsum(np.diff(events.us, prepend=events.us[0]) != 0)
    order = np.lexsort((events.price, events.side, ~is_reset, barrier, group))
    moved = events.picked(order)
    terms = level_constants(moved.side, moved.price) * moved.delta.view(np.uint64)
    h_after = np.empty_like(moved.h_after)
    h_before = np.empty_like(moved.h_before)
    h = events.h_before[0]
    resets = np.flatnonzero((moved.flags & _RESET) != 0).tolist()
    stretches = [(0, resets[0] if resets else len(moved))]
    stretches += list(zip((r + 1 for r in resets), [*resets[1:], len(moved)], strict=False))
    for start, stop in stretches:
        if start:
            h_before[start - 1], h_after[start - 1] = h, 0
            h = np.uint64(0)
        running = h + np.cumsum(terms[start:stop], dtype=np.uint64)
        h_after[start:stop] = running
        h_before[start:stop] = running - terms[start:stop]
        if running.size:
            h = running[-1]
    moved.h_before, moved.h_after = h_before, h_after
    return moved
