"""The event array of hftbacktest 2.x: one market as the book of YES, with its trades.

Purpose: `export_hftbacktest` writes the .npz that hftbacktest reads as it is. A bid for NO is shown
as an offer of YES at one dollar less its price.

    what happened                        event
    a proven stretch begins              both sides cleared, then the whole book as snapshot rows
    a level changed                      depth, with the size that now stands there
    the exchange emptied the book        both sides cleared
    a gap begins                         both sides cleared: no old book stands over it
    a trade                              trade, buy where the taker bought YES, sell where the taker
                                         bought NO, no side where the exchange did not tell

`exch_ts` and `local_ts` are nanoseconds; `local_ts` is when the row was received. Both clocks must
ascend for hftbacktest. Changes of the book keep the order of the tape, so one that overtook another
has the later's time. Of one microsecond a trade stands before the changes of the book: its queue
models take back what the trade explains from the change that follows. A row that is in place for
one clock only is given twice, once for each.

Invariants:
    L-35 the rows of each clock ascend, and the book they make is the book of the tape.

Does not do: correcting clocks. Where a gatherer's clock was behind the exchange's, `local_ts` is
before `exch_ts` (hftbacktest.data.correct_local_timestamp moves it). The format holds prices and
sizes as floats: this is the one module that makes them, and it reads none.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kalshilake.exports.stretches import ProvenStretch, of_yes, stretches
from kalshilake.exports.target import known, new_file
from kalshilake.moments import Moment
from kalshilake.read import Lake, OnGap
from kalshilake.tables import times_us, units_of
from marketdata.errors import LakeError
from marketdata.units import PRICE_SCALE, SIZE_SCALE

Ints = npt.NDArray[Any]

# The layout and the numbers of hftbacktest/types.py (2.x); 64 bytes a row.
EVENT: Final = np.dtype(
    [
        ("ev", "<u8"),
        ("exch_ts", "<i8"),
        ("local_ts", "<i8"),
        ("px", "<f8"),
        ("qty", "<f8"),
        ("order_id", "<u8"),
        ("ival", "<i8"),
        ("fval", "<f8"),
    ],
    align=True,
)
DEPTH: Final = 1
TRADE: Final = 2
CLEAR: Final = 3
SNAPSHOT: Final = 4
EXCH: Final = 1 << 31
LOCAL: Final = 1 << 30
BUY: Final = 1 << 29
SELL: Final = 1 << 28
NO_SIDE: Final = 0
_SIDES: Final = np.array([BUY, SELL], np.int64)  # bids for YES, bids for NO


@dataclass(frozen=True, slots=True)
class Rows:
    """Events as integers, before they are ordered; columns of equal length."""

    kind: Ints
    exchange_us: Ints
    local_us: Ints
    price: Ints  # micro-dollars of YES
    size: Ints  # 1/100 contract

    @staticmethod
    def of(*columns: Any) -> Rows:
        """Columns, or single values for all rows of the longest."""
        return Rows(*(np.array(c, np.int64, ndmin=1) for c in np.broadcast_arrays(*columns)))


def export_hftbacktest(
    lake: Lake,
    market: str,
    path: Path,
    start: Moment | None = None,
    end: Moment | None = None,
    *,
    on_gap: OnGap = "raise",
) -> int:
    """Write `market` in [start, end) to a new .npz file; gives the number of events.

    on_gap="ignore" leaves out what is not proven, with the book cleared meanwhile. Raises
    IncompleteTape, LakeError, and TapeError where the file cannot be made.
    """
    if path.suffix != ".npz":
        raise LakeError(f"{path} does not end in .npz", hint="hftbacktest goes by the name")
    with new_file(path) as part:
        made = events(lake, market, start, end, on_gap=on_gap)
        with part.open("wb") as out:
            np.savez_compressed(out, data=made)
    return len(made)


def events(
    lake: Lake,
    market: str,
    start: Moment | None = None,
    end: Moment | None = None,
    *,
    on_gap: OnGap = "raise",
) -> npt.NDArray[np.void]:
    """The rows of EVENT for `market` in [start, end)."""
    if on_gap == "column":
        raise LakeError(
            "hftbacktest has no column for coverage",
            hint='on_gap="ignore" leaves out what is not proven, with an empty book meanwhile',
        )
    known(lake, market)
    found = stretches(lake, market, start, end, on_gap=on_gap)
    parts: list[Rows] = []
    for i, stretch in enumerate(found.stretches):
        parts += _depth_rows(stretch)
        after = found.stretches[i + 1].from_us if i + 1 < len(found.stretches) else found.to_us
        if stretch.to_us < after:
            parts.append(_clear(stretch.to_us, stretch.to_us))
    depth = joined(parts)
    depth = Rows.of(
        depth.kind,
        np.maximum.accumulate(depth.exchange_us),
        np.maximum.accumulate(depth.local_us),
        depth.price,
        depth.size,
    )
    trades = _trade_rows(lake, market, found.from_us, found.to_us, on_gap)
    return ordered(joined([trades, depth]))


def ordered(rows: Rows) -> npt.NDArray[np.void]:
    """Rows as EVENT, in place for both clocks; of one microsecond they keep their order."""
    order = np.argsort(rows.exchange_us, kind="stable")
    local = rows.local_us[order]
    late = local < np.maximum.accumulate(local)
    kept, moved = np.flatnonzero(~late), np.flatnonzero(late)
    # A moved row stands, for the local clock, before the first kept one that was received later.
    before = np.append(kept, len(order))[np.searchsorted(local[kept], local[moved], side="right")]
    source = np.concatenate((np.arange(len(order)), moved))
    place = np.concatenate((np.arange(len(order)), before))
    for_local_only = np.repeat([False, True], [len(order), len(moved)])
    clocks = np.where(late, EXCH, EXCH | LOCAL)
    flags = np.concatenate((clocks, np.full(len(moved), LOCAL)))
    # Of one place the rows for the local clock alone come first, by their time.
    final = np.lexsort((local[source], ~for_local_only, place))
    picked = order[source[final]]
    made = np.zeros(len(picked), EVENT)
    made["ev"] = rows.kind[picked] | flags[final]
    made["exch_ts"] = rows.exchange_us[picked] * 1000
    made["local_ts"] = rows.local_us[picked] * 1000
    made["px"] = rows.price[picked] / PRICE_SCALE
    made["qty"] = rows.size[picked] / SIZE_SCALE
    return made


def joined(parts: list[Rows]) -> Rows:
    """Parts end to end."""
    empty = Rows.of(*([np.zeros(0, np.int64)] * 5))
    return Rows(*(np.concatenate([getattr(p, c) for p in (empty, *parts)]) for c in Rows.__slots__))


def _clear(exchange_us: Any, local_us: Any) -> Rows:
    """Both sides emptied, at each of the moments.

    One row without a side: of a row for one side the library clears only what it holds to be on
    the right side of the other's best price, and a crossed book would keep levels for ever.
    """
    return Rows.of(CLEAR, exchange_us, local_us, 0, 0)


def _depth_rows(found: ProvenStretch) -> list[Rows]:
    """The book at the beginning of a stretch, and its changes."""
    at = found.from_us
    levels = [(side, price, size) for side in (0, 1) for price, size in found.base.levels(side)]
    side, price, size = np.array(levels, np.int64).reshape(-1, 3).T
    snapshot = Rows.of(SNAPSHOT | _SIDES[side], at, at, of_yes(side, price), size)
    changes = Rows.of(
        DEPTH | _SIDES[found.side],
        found.exchange_us,
        found.received_us,
        of_yes(found.side, found.price),
        found.size,
    )
    resets = np.flatnonzero(found.reset)
    changes.kind[resets], changes.price[resets] = CLEAR, 0  # its size is 0
    return [_clear(at, at), snapshot, changes]


def _trade_rows(lake: Lake, market: str, a: int, b: int, on_gap: OnGap) -> Rows:
    found = lake.trades(market, a, b, on_gap=on_gap)
    taker = found.column("taker_side")
    yes, no = (
        np.asarray(pc.equal(taker, pa.scalar(side)).fill_null(fill_value=False))
        for side in ("yes", "no")
    )
    return Rows.of(
        TRADE | np.select([yes, no], [BUY, SELL], NO_SIDE),
        times_us(found.column("exchange_ts")),
        times_us(found.column("received_at")),
        units_of(found.column("yes_price")),
        units_of(found.column("count")),
    )
