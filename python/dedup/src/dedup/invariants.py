"""What must hold of every row that is published, counted while the deduplicator runs.

Purpose: the runtime side of the invariants of docs/invariants.md, by code that shares nothing with
the merge: a second opinion before the rows are committed, never a repair.

    I1  within an epoch `book_hash` is the running sum; a reset leaves 0
    I2  audits that failed
    I3  rows read = merged + duplicate + quarantined + skipped
    I4  `market_seq` counts 1, 2, 3, ... within (market, epoch)
    I5  a level below zero, as the gatherers flagged it
    I8  an epoch after the first opens only with a gap row

I6 (repetition and crashes change nothing) and I7 (a gatherer less changes nothing) compare whole
runs; they live in the tests.

Does not do: stopping. A violation is counted, logged and turns /health red; the rows are published
with it, so that what the merge decided stays visible.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np

from dedup.columns import picked, stable_order
from dedup.publication import Publication
from dedup.tape_rows import Rows
from marketdata.book import MASK, level_constants
from marketdata.rows import DeltaFlag

NAMES: Final = ("I1", "I2", "I3", "I4", "I5", "I8")
_COUNTED: Final = ("merged_rows", "duplicate_rows", "quarantined_rows", "skipped_rows")

Tail = tuple[int, int, int]  # epoch, market_seq, book_hash of a market's last published row


class Invariants:
    """Violations since the start, by name. `tails` begins empty: a first row is taken as it is."""

    __slots__ = ("epochs", "tails", "violations")

    def __init__(self) -> None:
        self.tails: dict[int, Tail] = {}
        self.epochs: dict[tuple[int, int], int] = {}  # (market, epoch) -> start hash, until used
        self.violations: dict[str, int] = dict.fromkeys(NAMES, 0)

    @property
    def broken(self) -> list[str]:
        """Names of those that were violated."""
        return [name for name, seen in self.violations.items() if seen]

    def observe(self, made: Publication) -> None:
        """Everything that is about to be published together."""
        self.observe_epochs(
            [(m, e, h & MASK) for m, e, _, h, _ in made.epochs],
            [(g[0], g[1]) for g in made.gaps],
        )
        self.observe_counts(made.counts)
        self.observe_rows(made.deltas)

    def observe_epochs(
        self, epochs: Iterable[tuple[int, int, int]], gaps: Iterable[tuple[int, int]]
    ) -> None:
        """Epochs that open (market, epoch, start hash) and gap rows (market, epoch after it)."""
        with_gap = set(gaps)
        for market, epoch, start_hash in epochs:
            self.epochs[(market, epoch)] = start_hash
            if epoch > 1 and (market, epoch) not in with_gap:
                self.violations["I8"] += 1

    def observe_counts(self, counts: Mapping[str, int]) -> None:
        """The merge's own accounts of one publication (dedup.arbitrate.COUNTS)."""
        accounted = sum(counts.get(name, 0) for name in _COUNTED)
        self.violations["I3"] += abs(counts.get("rows_in", 0) - accounted)
        self.violations["I2"] += counts.get("audits_failed", 0)

    def observe_rows(self, rows: Rows) -> None:
        """Delta rows of one publication, each market's in the order of the tape."""
        if not len(rows):
            return
        rows = picked(rows, stable_order(rows["market_id"]))
        self.violations["I5"] += int(((rows["flags"] & int(DeltaFlag.NEGATIVE)) != 0).sum())
        epoch, seq, hashes = rows["epoch"], rows["market_seq"], rows["book_hash"]
        opens = np.ones(len(rows), bool)  # first row of its market here
        opens[1:] = rows["market_id"][1:] != rows["market_id"][:-1]
        anew = opens.copy()  # first row of its epoch here
        anew[1:] |= epoch[1:] != epoch[:-1]
        wanted_seq = np.ones(len(rows), np.int64)
        wanted_seq[1:] = np.where(anew[1:], 1, seq[:-1] + 1)
        before = np.zeros(len(rows), np.uint64)
        before[1:] = hashes[:-1]
        known = ~anew
        begun = np.flatnonzero(anew)
        firsts = zip(
            begun.tolist(), rows["market_id"][begun].tolist(), epoch[begun].tolist(),
            opens[begun].tolist(), strict=True,
        )  # fmt: skip
        for at, market, number, first in firsts:
            tail = self.tails.get(market)
            start = self.epochs.pop((market, number), None)
            if first and tail is not None and tail[0] == number:
                wanted_seq[at], before[at], known[at] = tail[1] + 1, tail[2], True
            elif start is not None:
                before[at], known[at] = start, True
            elif first and tail is None:
                wanted_seq[at] = seq[at]  # after a restart: nothing to compare with
        self.violations["I4"] += int((seq != wanted_seq).sum())
        step = level_constants(rows["side"], rows["price"]) * rows["delta"].astype(np.uint64)
        reset = (rows["flags"] & int(DeltaFlag.RESET)) != 0
        expected = np.where(reset, np.uint64(0), before + step)
        self.violations["I1"] += int(((hashes != expected) & (known | reset)).sum())
        last = np.flatnonzero(np.append(opens[1:], True))
        tails = zip(epoch[last].tolist(), seq[last].tolist(), hashes[last].tolist(), strict=True)
        self.tails.update(zip(rows["market_id"][last].tolist(), tails, strict=True))
