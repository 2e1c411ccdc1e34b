"""One market's order book: levels, book hash, canonical bytes; one change or whole columns.

Purpose: keep the levels a market has after any number of changes, and the 64-bit hash that lets two
gatherers compare books without sending them.

Invariants:
- INV-1 book hash: H = sum over levels of C(side, price) * size mod 2^64, with
  C = splitmix64(side * 2^32 + price) | 1. It is linear: a delta adds C * delta to any book.
- INV-2 a level of size 0 does not exist; a level below zero does, so that H stays linear and the
  fault stays visible until a snapshot replaces the book.
- INV-3 `from_bytes(to_bytes())` is the same book; equal books have equal bytes.
- `apply_many` and `running_hash` equal `apply` one by one.

Does not do: sequence checks, verdicts on snapshots (continuity), text forms (units), prices of the
NO side on the YES scale: both sides are bids, each on its own scale.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from functools import lru_cache
from itertools import chain
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from marketdata.errors import SegmentError
from marketdata.units import PRICE_SCALE

MASK: Final = 0xFFFF_FFFF_FFFF_FFFF
MAX_CONSTANTS: Final = 65_536
"""Level constants kept per side; a 1/100-cent market uses about 10,000. Past it: computed."""

MAX_FORMS: Final = 1_024
"""Book sizes whose packed form is remembered."""

LEVEL: Final = np.dtype([("price", "<i4"), ("size", "<i8")])
_COUNTS: Final = struct.Struct("<II")
_GOLDEN: Final = 0x9E37_79B9_7F4A_7C15
_MIX_A: Final = 0xBF58_476D_1CE4_E5B9
_MIX_B: Final = 0x94D0_49BB_1331_11EB

Level: TypeAlias = tuple[int, int]
"""(price in micro-dollars, size in 1/100 contract)."""
Ints: TypeAlias = npt.NDArray[np.integer]
Hashes: TypeAlias = npt.NDArray[np.uint64]


class _Constants(dict[int, int]):
    """price -> C(side, price), filled when first asked, up to MAX_CONSTANTS."""

    __slots__ = ("_base",)

    def __init__(self, side: int) -> None:
        super().__init__()
        self._base = side << 32

    def __missing__(self, price: int) -> int:
        x = (self._base + price + _GOLDEN) & MASK
        x = ((x ^ (x >> 30)) * _MIX_A) & MASK
        x = ((x ^ (x >> 27)) * _MIX_B) & MASK
        constant = (x ^ (x >> 31)) | 1
        if len(self) < MAX_CONSTANTS:
            self[price] = constant
        return constant


CONSTANTS: Final = (_Constants(0), _Constants(1))
"""`CONSTANTS[side][price]` is `level_constant(side, price)`, without the call."""


def level_constant(side: int, price: int) -> int:
    """C(side, price): the odd 64-bit weight of one level in the book hash."""
    return CONSTANTS[side][price]


def level_constants(side: Ints, price: Ints) -> Hashes:
    """`level_constant` of whole columns of equal length, as uint64."""
    x = (side.astype(np.uint64) << np.uint64(32)) + price.astype(np.uint64) + np.uint64(_GOLDEN)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_MIX_A)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_MIX_B)
    return np.asarray((x ^ (x >> np.uint64(31))) | np.uint64(1), dtype=np.uint64)


def running_hash(h0: int, side: Ints, price: Ints, delta: Ints) -> Hashes:
    """H after each of n deltas applied in order to a book of hash `h0`: uint64[n]."""
    terms = level_constants(side, price) * delta.astype(np.int64).view(np.uint64)
    out: Hashes = np.cumsum(terms, dtype=np.uint64)
    out += np.uint64(h0)
    return out


def hash_levels(yes: Iterable[Level], no: Iterable[Level]) -> int:
    """H of a book given by its levels (order does not matter)."""
    of_yes, of_no = CONSTANTS
    total = sum(of_yes[price] * size for price, size in yes)
    total += sum(of_no[price] * size for price, size in no)
    return total & MASK


def pack_levels(yes: Iterable[Level], no: Iterable[Level]) -> bytes:
    """Canonical bytes of a book (docs/formats.md section 2). Levels of size 0 are left out."""
    of_yes, of_no = (sorted([level for level in side if level[1]]) for side in (yes, no))
    numbers = chain.from_iterable(of_yes + of_no)
    return _packed_form(len(of_yes) + len(of_no)).pack(len(of_yes), len(of_no), *numbers)


@lru_cache(maxsize=MAX_FORMS)
def _packed_form(n_levels: int) -> struct.Struct:
    """Counts and levels as one struct: a fifth of the time of an array made of tuples."""
    return struct.Struct("<II" + "iq" * n_levels)


def unpack_levels(packed: bytes) -> tuple[list[Level], list[Level]]:
    """(yes, no) levels, ascending by price, from canonical bytes.

    Raises:
        SegmentError: wrong length, or not in canonical form (order, doubled price, size 0).
    """
    if len(packed) < _COUNTS.size:
        raise SegmentError(f"levels of {len(packed)} bytes hold no counts")
    n_yes, n_no = _COUNTS.unpack_from(packed)
    if len(packed) != _COUNTS.size + (n_yes + n_no) * LEVEL.itemsize:
        raise SegmentError(f"levels of {len(packed)} bytes do not hold {n_yes} + {n_no} levels")
    rows = np.frombuffer(packed, dtype=LEVEL, offset=_COUNTS.size)
    for part in (rows[:n_yes], rows[n_yes:]):
        if (np.diff(part["price"]) <= 0).any() or (part["size"] == 0).any():
            raise SegmentError("levels are not ascending by price, or hold a size of 0")
    levels: list[Level] = rows.tolist()
    return levels[:n_yes], levels[n_yes:]


class Book:
    """Levels of one market. `yes` and `no` map price to size; read them, change them by `apply`."""

    __slots__ = ("hash", "no", "yes")

    def __init__(self, yes: Iterable[Level] = (), no: Iterable[Level] = ()) -> None:
        self.yes: dict[int, int] = {}
        self.no: dict[int, int] = {}
        self.hash = 0
        self.load(yes, no)

    def load(self, yes: Iterable[Level], no: Iterable[Level]) -> None:
        """Become the book of a snapshot. Levels of size 0 are left out."""
        self.yes = {price: size for price, size in yes if size != 0}
        self.no = {price: size for price, size in no if size != 0}
        self.hash = hash_levels(self.yes.items(), self.no.items())

    def clear(self) -> None:
        """Become empty, as after the empty snapshot at a market's close."""
        self.yes.clear()
        self.no.clear()
        self.hash = 0

    def apply(self, side: int, price: int, delta: int) -> int:
        """Add `delta` to one level; return its new size. Below zero: the book was wrong (INV-2)."""
        levels = self.no if side else self.yes
        size = levels.get(price, 0) + delta
        if size:
            levels[price] = size
        else:
            levels.pop(price, None)
        self.hash = (self.hash + CONSTANTS[side][price] * delta) & MASK
        return size

    def size(self, side: int, price: int) -> int:
        """Size at one level; 0 where there is none."""
        return (self.no if side else self.yes).get(price, 0)

    def levels(self, side: int) -> list[Level]:
        """(price, size) of one side, ascending by price; the best bid is the last."""
        return sorted((self.no if side else self.yes).items())

    def best_bid(self, side: int = 0) -> Level | None:
        """Highest level of positive size of one side, or None."""
        levels = self.no if side else self.yes
        best = max((price for price, size in levels.items() if size > 0), default=None)
        return None if best is None else (best, levels[best])

    def best_ask(self, side: int = 0) -> Level | None:
        """Lowest offer of one side = one dollar less the other side's best bid, or None."""
        bid = self.best_bid(1 - side)
        return None if bid is None else (PRICE_SCALE - bid[0], bid[1])

    def is_negative(self) -> bool:
        """Whether any level is below zero: some change of this book was never seen."""
        return any(size < 0 for side in (self.yes, self.no) for size in side.values())

    def to_bytes(self) -> bytes:
        """Canonical bytes (`pack_levels`)."""
        return pack_levels(self.yes.items(), self.no.items())

    @classmethod
    def from_bytes(cls, packed: bytes) -> Book:
        """The book of canonical bytes. Raises SegmentError where they are not canonical."""
        return cls(*unpack_levels(packed))

    def copy(self) -> Book:
        """An independent book with the same levels."""
        return Book(self.yes.items(), self.no.items())

    def __bool__(self) -> bool:
        """Whether there is any level."""
        return bool(self.yes or self.no)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Book):
            return NotImplemented
        return self.yes == other.yes and self.no == other.no

    __hash__ = None  # type: ignore[assignment]  # a book changes

    def __repr__(self) -> str:
        return f"Book(yes={len(self.yes)} levels, no={len(self.no)} levels, hash={self.hash:#018x})"


def apply_many(book: Book, side: Ints, price: Ints, delta: Ints) -> Book:
    """The book after n deltas in order; `book` stays as it is. Equal to n times `Book.apply`."""
    out = book.copy()
    keys, inverse = np.unique(_keys(side, price), return_inverse=True)
    change = np.zeros(len(keys), dtype=np.int64)
    np.add.at(change, inverse, delta)
    out_sides = (out.yes, out.no)
    for key, total in zip(keys.tolist(), change.tolist(), strict=True):
        levels = out_sides[key >> 32]
        at = key & 0xFFFF_FFFF
        size = levels.get(at, 0) + total
        if size:
            levels[at] = size
        else:
            levels.pop(at, None)
    out.hash = hash_levels(out.yes.items(), out.no.items())
    return out


def first_negative(book: Book, side: Ints, price: Ints, delta: Ints) -> int:
    """Index of the first of n deltas that leaves its level below zero, or -1."""
    keys = _keys(side, price)
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=np.int64(-1)))
    counts = np.diff(starts, append=len(ordered))
    sums = np.cumsum(delta[order], dtype=np.int64)
    before = sums[starts] - delta[order][starts]
    held = [book.size(key >> 32, key & 0xFFFF_FFFF) for key in ordered[starts].tolist()]
    offset = np.array(held, dtype=np.int64) - before
    below = order[sums + np.repeat(offset, counts) < 0]
    return int(below.min()) if len(below) else -1


def _keys(side: Ints, price: Ints) -> npt.NDArray[np.int64]:
    """One int64 per level: side in the high half, price in the low half."""
    return (side.astype(np.int64) << 32) | price.astype(np.int64)
