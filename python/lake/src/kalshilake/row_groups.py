"""Where the row groups of an object end.

Purpose: whoever asks for some markets should read those and little else, and row groups are what
every reader can leave out. So a group ends with a market once it has LEAST rows, and before a
market that has so many itself; no group has more than `most` rows.

Invariants:
    L-36 where groups end depends on the rows in their order, not on the parts they came in.

Does not do: sorting (encode).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import numpy as np
import pyarrow as pa

from kalshilake.tables import run_starts

LEAST: Final = 16_384


def row_groups(
    parts: Iterable[pa.Table], most: int, least: int = LEAST, *, subject: str = "market_ticker"
) -> Iterator[pa.Table]:
    """Tables of one row group each. `parts`: in the order of the object, none without rows; sorted
    by `subject` first."""
    least = min(least, most)
    held: list[pa.Table] = []
    rows = 0
    for part in parts:
        held.append(part)
        rows += part.num_rows
        if rows < most + least:
            continue
        together = pa.concat_tables(held)
        at = 0
        for end in ends(_starts(together, subject), rows, most, least, whole=False):
            yield together.slice(at, end - at).combine_chunks()
            at = end
        rest = together.slice(at)
        rows = rest.num_rows
        # A copy: a slice would keep all of what it was cut from.
        held = [rest.take(pa.array(np.arange(rows)))] if rows else []
    if rows:
        together = pa.concat_tables(held)
        at = 0
        for end in ends(_starts(together, subject), rows, most, least, whole=True):
            yield together.slice(at, end - at).combine_chunks()
            at = end


def _starts(rows: pa.Table, subject: str) -> list[int]:
    """Where each market begins."""
    return [int(at) for at in run_starts(rows.column(subject).combine_chunks())]


def ends(starts: Sequence[int], rows: int, most: int, least: int, *, whole: bool) -> Iterator[int]:
    """The end of each group of these rows. `starts`: where each market begins, ascending from 0.

    Unless these are all rows (`whole`), ends that rows after them may still change are left out.
    """
    at = 0
    while at < rows:
        end = _end(starts, rows, at, most, least, whole=whole)
        if end is None:
            return
        yield end
        at = end


def _end(
    starts: Sequence[int], rows: int, at: int, most: int, least: int, *, whole: bool
) -> int | None:
    """The end of the group that begins at `at`; None: more rows have to be known."""
    limit = at + most
    for n in range(bisect_right(starts, at), len(starts)):
        begins = starts[n]
        if begins >= limit:
            break
        known_to = starts[n + 1] if n + 1 < len(starts) else rows
        if begins - at >= least or known_to - begins >= least:
            return begins
        if known_to == rows and not whole:
            return None
    if limit <= rows:
        return limit
    return rows if whole else None
