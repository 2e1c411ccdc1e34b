"""Where a market's book is known from: epochs, keyframes, and the events from one to a moment.

Purpose: the search that `Lake.book` and the series share.

Does not do: rebuilding (bookview), judging coverage (read).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kalshilake import paths
from kalshilake.bookview import EpochEvents, Keyframe, first_missing, prefix_end
from kalshilake.moments import Moment, moment_us
from kalshilake.objects import MAX_US
from kalshilake.tables import levels_at, times_us, units_of
from marketdata.book import Book
from marketdata.coverage import REPAIRED_EPOCH
from marketdata.errors import LakeError

if TYPE_CHECKING:
    from kalshilake.read import Lake

# How far times of one epoch may lie out of order; the later values are tried only if needed.
STEP_BACK_US: Final = (1_000_000, paths.US_PER_HOUR, 24 * paths.US_PER_HOUR)
_EVENT_COLUMNS: Final = (
    "exchange_ts", "epoch", "market_seq", "kind", "side", "price", "delta",
)  # fmt: skip


def iso(time_us: int) -> str:
    """A moment as text."""
    try:
        return f"{paths.at(time_us):%Y-%m-%dT%H:%M:%S.%f}Z"
    except OverflowError:
        return "the end of time" if time_us > 0 else "the beginning of time"


def bounds(start: Moment | None, end: Moment | None) -> tuple[int, int]:
    """[start, end) in microseconds; None is without a bound. Raises LakeError if it is empty."""
    a = -MAX_US if start is None else moment_us(start)
    b = MAX_US if end is None else moment_us(end)
    if a >= b:
        raise LakeError(f"the interval from {iso(a)} to {iso(b)} holds no moment")
    return a, b


def epoch_at(lake: Lake, market: str, at_us: int) -> int:
    """The epoch of the last row at or before a moment that coverage does not prove."""
    best: tuple[int, int] | None = None
    for table in ("orderbook_deltas", "orderbook_snapshots"):
        for record in reversed(lake.records(table, to_us=at_us + 1)):
            rows = lake.reader.read(
                record, columns=("exchange_ts", "epoch"), markets=[market], to_us=at_us + 1
            )
            if rows.num_rows:
                seen = int(times_us(rows.column("exchange_ts"))[-1])
                best = max(best or (seen, 0), (seen, int(rows.column("epoch")[-1].as_py())))
                break
    if best is None:
        raise LakeError(f"{market}: nothing is known of its book at or before {iso(at_us)}")
    return best[1]


def keyframe_near(lake: Lake, market: str, epoch: int, at_us: int) -> Keyframe:
    """The newest keyframe of the epoch at or before the moment, else the first one after."""
    records = [o for o in lake.records("orderbook_snapshots") if o.rows]
    before = [o for o in reversed(records) if o.min_us <= at_us]
    after = [o for o in records if o.max_us > at_us]
    for objects, later in ((before, False), (after, True)):
        for record in objects:
            rows = lake.reader.read(record, markets=[market])
            mine = rows.filter(pc.equal(rows.column("epoch"), epoch))
            times = times_us(mine.column("exchange_ts"))
            fits = np.flatnonzero((times > at_us) if later else (times <= at_us))
            if len(fits):
                return _keyframe_at(mine, int(fits[0 if later else -1]))
            if _is_past(np.asarray(rows.column("epoch"), np.int64), epoch, later=later):
                break
    raise LakeError(f"{market}: epoch {epoch} has no keyframe, its book cannot be known")


def _is_past(seen: npt.NDArray[np.int64], epoch: int, *, later: bool) -> bool:
    """Whether keyframes of these epochs show that a search has left `epoch` behind. Epochs count up
    with time, but for those that a repair added: they say nothing, and neither does one of them."""
    counted = seen[seen < REPAIRED_EPOCH]
    if not len(counted) or epoch >= REPAIRED_EPOCH:
        return False
    return bool(counted.min() > epoch) if later else bool(counted.max() < epoch)


def events_to(lake: Lake, market: str, keyframe: Keyframe, at_us: int) -> tuple[EpochEvents, int]:
    """(events, last): every event between the keyframe and the end of the prefix for `at_us`.

    Times may step back within an epoch, even over an hour's border, and a keyframe's time is
    inferred: where a number is missing a wider stretch is read. The end of the prefix is known
    only once the number after it was seen (an event may have stepped back before all that was
    read): without it an hour more is read, which is where the search for it ends.
    """
    a, b = sorted((keyframe.exchange_us, at_us))
    missing: int | None = None
    for margin in STEP_BACK_US:
        rows = lake.rows("orderbook_deltas", [market], a - margin, b + margin + 1, _EVENT_COLUMNS)
        events = _epoch_events(rows.filter(pc.equal(rows.column("epoch"), keyframe.epoch)))
        last = prefix_end(keyframe, events, at_us)
        missing = first_missing(keyframe, events, last)
        is_end_seen = margin > STEP_BACK_US[0] or last + 1 in events.market_seq
        if missing is None and is_end_seen:
            return events, last
    raise LakeError(
        f"{market}: event {missing} of epoch {keyframe.epoch} is missing",
        hint=f"tape verify {lake.store.location}",
    )


def epochs_at(
    lake: Lake, market: str, times: npt.NDArray[np.int64]
) -> list[tuple[int | None, npt.NDArray[np.int64]]]:
    """Ascending moments by the epoch of the last row at or before each; None before the first."""
    low, high = int(times[0]), int(times[-1])
    try:
        first: int | None = epoch_at(lake, market, low)
    except LakeError:
        first = None
    seen, numbers = [np.array([low])], [np.array([first or 0])]
    for table in ("orderbook_deltas", "orderbook_snapshots"):
        rows = lake.rows(table, [market], low + 1, high + 1, ("exchange_ts", "epoch"))
        seen.append(times_us(rows.column("exchange_ts")))
        numbers.append(np.asarray(rows.column("epoch"), np.int64))
    at, number = np.concatenate(seen), np.concatenate(numbers)
    order = np.argsort(at, kind="stable")
    number = number[order]
    repaired = number >= REPAIRED_EPOCH
    # A time may step back, an epoch does not; one that a repair added counts until the next row.
    counted = np.maximum.accumulate(np.where(repaired, 0, number))
    number = np.where(repaired, number, counted)
    of_time = number[np.searchsorted(at[order], times, side="right") - 1]
    cuts = np.flatnonzero(of_time[1:] != of_time[:-1]) + 1
    return [
        (int(of_time[mine[0]]) or None, times[mine])
        for mine in np.split(np.arange(len(times)), cuts)
    ]


def _keyframe_at(rows: pa.Table, i: int) -> Keyframe:
    yes, no = (levels_at(rows.column(side), i).tolist() for side in ("yes", "no"))
    book = Book(yes, no)
    stored = rows.column("book_hash")[i].as_py()
    if book.hash != stored:
        raise LakeError(
            f"keyframe of {rows.column('market_ticker')[i].as_py()}: its levels give "
            f"{book.hash:016x}, it says {stored:016x}"
        )
    return Keyframe(
        epoch=rows.column("epoch")[i].as_py(),
        market_seq=rows.column("market_seq")[i].as_py(),
        exchange_us=int(times_us(rows.column("exchange_ts"))[i]),
        book=book,
    )


def _epoch_events(rows: pa.Table) -> EpochEvents:
    seqs = np.asarray(rows.column("market_seq"), np.int64)
    order = np.argsort(seqs, kind="stable")
    reset = np.asarray(pc.equal(rows.column("kind"), "reset"))
    side = np.asarray(pc.fill_null(pc.equal(rows.column("side"), "no"), fill_value=False))
    return EpochEvents(
        market_seq=seqs[order],
        exchange_us=times_us(rows.column("exchange_ts"))[order],
        reset=reset[order],
        side=side[order].astype(np.int64),
        price=units_of(rows.column("price"))[order],
        delta=units_of(rows.column("delta"))[order],
    )
