"""The order-book changes of an hour in parts, for hours that no memory should hold at once.

Purpose: the lake wants an hour by (ticker, time), production gives it by time. The hour is read in
slices of time, each sorted by ticker; beyond IN_MEMORY_ROWS the slices lie in a temporary file (in
/var/tmp where that exists, because /tmp may be memory). Parts of PART_ROWS rows are then put
together from all.

What holds: parts follow each other in the order of the lake's table, whatever the slices were; an
hour can be gone through as often as one likes; the file has no name and goes with the object.

Does not do: the sort inside a part and the encoding (kalshilake.encode).
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Final, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dedup import hours, tape_rows
from dedup.columns import joined, picked
from dedup.publication import HOUR_US
from dedup.tape_rows import Rows
from kalshilake.encode import scratch_folder
from kalshilake.tables import deltas_table
from marketdata.rows import MERGED_ROW
from runtime.postgres import Connection

IN_MEMORY_ROWS: Final = 1_000_000
PART_ROWS: Final = 400_000
SLICE_ROWS: Final = 300_000  # a slice of time gets shorter where it holds more, longer where less
SLICE_MAX_ROWS: Final = 600_000  # more are not taken at once, unless they are of SLICE_MIN_US
SLICE_MIN_US: Final = 1_000_000
SLICE_FIRST_US: Final = 30_000_000

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Slice:
    """Rows of one slice of time, by ticker. `first_row`: where they are in the file, -1: `rows`."""

    ranks: I64  # the tickers in it, ascending
    starts: I64  # where each begins in the slice, and the end
    first_row: int
    rows: Rows

    def span(self, low: int, high: int) -> tuple[int, int]:
        """Where the rows of tickers low <= rank < high are in the slice."""
        a, b = self.ranks.searchsorted((low, high)).tolist()
        return int(self.starts[a]), int(self.starts[b])


class HourParts:
    """An hour's changes; iterating gives Arrow tables that follow each other.

    `progress` is called before each, in the thread that goes through them.
    """

    def __init__(
        self, names: Mapping[int, str], progress: Callable[[], object] = lambda: None
    ) -> None:
        self._names = names
        self._progress = progress
        self._order = {ticker: rank for rank, ticker in enumerate(sorted(names.values()))}
        self._slices: list[_Slice] = []
        self._file: BinaryIO | None = None
        self.num_rows = 0
        self.spilled_rows = 0

    def add(self, rows: Rows) -> None:
        """The rows of the next slice of time; in any order."""
        if not len(rows):
            return
        ids, inverse = np.unique(rows["market_id"], return_inverse=True)
        ranks = np.array([self._order[self._names[i]] for i in ids.tolist()], np.int64)[inverse]
        order = np.argsort(ranks, kind="stable")
        rows, ranks = picked(rows, order), ranks[order]
        found, starts = np.unique(ranks, return_index=True)
        self.num_rows += len(rows)
        here = _Slice(found, np.append(starts, len(rows)), -1, rows)
        self._slices.append(self._written(here) if self._file else here)
        if self._file is None and self.num_rows > IN_MEMORY_ROWS:
            self._file = cast(
                "BinaryIO",
                tempfile.TemporaryFile(dir=scratch_folder(), buffering=0),  # noqa: SIM115 (goes with us)
            )
            weakref.finalize(self, self._file.close)
            self._slices = [self._written(each) for each in self._slices]

    def _written(self, part: _Slice) -> _Slice:
        assert self._file is not None
        memory = memoryview(part.rows.tobytes())
        while memory:
            memory = memory[self._file.write(memory) :]
        first, self.spilled_rows = self.spilled_rows, self.spilled_rows + len(part.rows)
        # Not rows[:0]: a view of nothing keeps all that it was cut from.
        return _Slice(part.ranks, part.starts, first, np.empty(0, MERGED_ROW))

    def _read(self, part: _Slice, low: int, high: int) -> Rows:
        """Rows low to high of a slice."""
        if part.first_row < 0:
            return part.rows[low:high]
        assert self._file is not None
        size = MERGED_ROW.itemsize
        body = os.pread(self._file.fileno(), (high - low) * size, (part.first_row + low) * size)
        if len(body) != (high - low) * size:
            raise OSError(f"a temporary file gave {len(body)} bytes of {(high - low) * size}")
        return np.frombuffer(body, MERGED_ROW)

    def __iter__(self) -> Iterator[pa.Table]:
        """Tables of about PART_ROWS rows; a ticker with more has several, one time after the
        other."""
        totals = np.zeros(len(self._order), np.int64)
        for part in self._slices:
            totals[part.ranks] += np.diff(part.starts)
        for low, high, alone in _ranges(totals.tolist()):
            self._progress()
            pieces: list[Rows] = []
            held = 0
            for part in self._slices:
                a, b = part.span(low, high)
                if a == b:
                    continue
                pieces.append(self._read(part, a, b))
                held += b - a
                if alone and held >= PART_ROWS:
                    yield deltas_table(joined(pieces), self._names)
                    pieces, held = [], 0
            if pieces:
                yield deltas_table(joined(pieces), self._names)


def _ranges(totals: Sequence[int]) -> Iterator[tuple[int, int, bool]]:
    """(first rank, rank behind the last, whether one ticker has it all): neighbouring tickers with
    at most PART_ROWS rows together, or one with more."""
    low = held = tickers = 0
    for rank, count in enumerate(totals):
        if held and held + count > PART_ROWS:
            yield low, rank, tickers == 1
            low, held, tickers = rank, 0, 0
        held += count
        tickers += count > 0
    if held:
        yield low, len(totals), tickers == 1


async def delta_parts(
    conn: Connection,
    hour_us: int,
    names: Mapping[int, str],
    progress: Callable[[], object] = lambda: None,
) -> HourParts:
    """orderbook_deltas of the hour. Run it while nobody writes to the hour.

    `progress` is called for each slice and each part, from any thread: an hour may take minutes.
    """
    async with hours.by_time(conn, tape_rows.DELTA_COPY.table):
        return await _sliced(conn, hour_us, HourParts(names, progress), progress)


async def _sliced(
    conn: Connection, hour_us: int, made: HourParts, progress: Callable[[], object]
) -> HourParts:
    at_us, width_us = hour_us, SLICE_FIRST_US
    adding = asyncio.create_task(asyncio.sleep(0))  # one slice is sorted while the next is read
    while at_us < hour_us + HOUR_US:
        progress()
        to_us = min(at_us + width_us, hour_us + HOUR_US)
        # After a quiet stretch the slices are long, and a burst may lie in the next one.
        most = SLICE_MAX_ROWS + 1 if width_us > SLICE_MIN_US else None
        rows = await hours.rows_between(
            conn, tape_rows.DELTA_COPY, at_us, to_us, MERGED_ROW, limit=most
        )
        if most is not None and len(rows) == most:
            width_us = max(width_us // 4, SLICE_MIN_US)
            continue
        await adding
        adding = asyncio.create_task(asyncio.to_thread(made.add, rows))
        at_us = to_us
        if len(rows) < SLICE_ROWS // 2:
            width_us *= 2
        elif len(rows) > SLICE_ROWS:
            width_us = max(width_us // 2, SLICE_MIN_US)
    await adding
    return made
