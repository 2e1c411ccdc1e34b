"""From one run's rows and snapshots in one market and window to pieces for the merge.

Purpose: rules 1 and 2. A non-empty snapshot that differs cuts the run; a first snapshot gives H to
the rows before it (never an empty one); after a contradiction the next snapshot begins a new piece.

Invariants: INV-D1 every row is in exactly one draft. INV-D2 only the first draft of a pair
continues what earlier windows placed; only the last one goes on in later windows.

Does not do: placing pieces (marketdata.merge), evidence.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np

from dedup.items import FLOATING
from dedup.runs import Keyframe, Pair, Run, Standing
from marketdata.alignment import Events, chain_break, events_of
from marketdata.book import Book
from marketdata.errors import SegmentError
from marketdata.evidence import Replies
from marketdata.keyframes import after
from marketdata.merge import Piece
from marketdata.rows import DeltaFlag, DeltaRows, SnapshotRow, SnapshotVerdict

MASK: Final = 0xFFFFFFFFFFFFFFFF
TELLING_NS: Final = 1_000_000_000  # a change so close to a reply lets it tell where it stands
EMPTY_LEVELS: Final = bytes(8)  # canonical form of a book without levels


@dataclass(slots=True, eq=False)
class Draft:
    """A piece in the making. `keyframes`: (events of the draft before it, snapshot, its seq)."""

    pair: Pair
    run: Run
    rows: DeltaRows
    piece: Piece
    h_start: int
    keyframes: list[tuple[int, Keyframe, int]] = field(default_factory=list)
    begins_anew: bool = False  # at a snapshot, inside the run: the claim begins anew too
    begin_seq: int = -1
    refused: str = ""  # why its rows may not be merged at all
    broken_at: int = -1  # index of the first row that breaks the chain of hashes


class Drafter:
    """Cuts one pair's items of one window into drafts."""

    def __init__(self, pair: Pair, run: Run, rows: DeltaRows, end_seq: int | None) -> None:
        self.pair = pair
        self.run = run
        self.rows = rows
        self.end_seq = end_seq
        self.drafts: list[Draft] = []
        self.start = 0
        self.h = pair.h
        self.floating = pair.standing == Standing.FLOATING
        self.constant = pair.constant
        self.quarantined = pair.standing == Standing.QUARANTINED
        self.position = pair.position if pair.standing == Standing.PINNED else None
        self.seq_from = pair.seq_from
        self.begins_anew = False
        self.begin_seq = -1
        self.keyframes: list[tuple[int, Keyframe, int]] = []
        if pair.keyframe is not None:  # of a quiet run, waiting for its place
            self.keyframes.append((0, pair.keyframe, -1))
            pair.keyframe = None
        self.audit = 0
        self.replies = Replies()  # what this window's told of the exchange

    def cut(
        self, snapshots: list[SnapshotRow], ahead: SnapshotRow | None, float_hold_ns: int
    ) -> list[Draft]:
        """The drafts; `ahead`: the pair's first snapshot if it lies in a later window."""
        seq = self.rows["seq"]
        for snap in snapshots:
            # A reset's row carries the seq of its snapshot and stands before it.
            after = snap.seq + (snap.verdict == SnapshotVerdict.RESET)
            self._snapshot(snap, int(np.searchsorted(seq, after)))
        if self.floating and self.rows.size > self.start and ahead is not None:
            first_ns = self.pair.first_float_ns or int(self.rows["received_ns"][self.start])
            soon = ahead.received_ns - first_ns <= float_hold_ns
            if soon and ahead.levels != EMPTY_LEVELS:
                self._anchor(ahead, backwards=True)
        self._finish(self.rows.size, None)
        return self.drafts

    def _anchor(self, snap: SnapshotRow, *, backwards: bool) -> None:
        """Rule 2: H backwards, by the difference to the floating hash."""
        self.constant = (snap.book_hash - snap.running_hash) & MASK
        self.h = (self.h + self.constant) & MASK
        self.floating = False
        if backwards:
            self.pair.rests_seq, self.pair.rests_us = snap.seq, snap.exchange_us

    def _snapshot(self, snap: SnapshotRow, at: int) -> None:
        if snap.verdict == SnapshotVerdict.DIFFERS:
            self._note_reply(snap, at, agrees=False)
            self.audit = -1
            self._begin(snap, at)
        elif snap.verdict == SnapshotVerdict.ANCHOR and self.floating:
            # After a gap an empty first snapshot may itself be the reset: it anchors only onwards.
            self._note_reply(snap, at, agrees=None)
            backwards = at > self.start or self.pair.last_seq >= 0 or not self.run.fresh
            if snap.levels == EMPTY_LEVELS and backwards:
                self._begin(snap, at)
            else:
                self._anchor(snap, backwards=backwards)
                self._keep(snap, at)
        elif self.quarantined:
            self._note_reply(snap, at, agrees=None)
            self._begin(snap, at)
        elif snap.verdict == SnapshotVerdict.ANCHOR and not self._fits(snap):
            self._note_reply(snap, at, agrees=False)
            self.audit = -1
            self._begin(snap, at)
        else:
            self._note_reply(snap, at, agrees=True)
            self.audit = 1
            self._keep(snap, at)

    def _note_reply(self, snap: SnapshotRow, at: int, *, agrees: bool | None) -> None:
        """Count a reply to `get_snapshot`: a snapshot in mid-run that is not empty (an empty one is
        sent unasked, at the close), and none with which a subscription begins. None: not known.
        """
        first = snap.verdict == SnapshotVerdict.ANCHOR and self.run.fresh
        if first or snap.levels == EMPTY_LEVELS or snap.verdict == SnapshotVerdict.RESET:
            return
        if agrees is None:
            self.replies.unknown += 1
        elif not agrees:
            self.replies.differed += 1
        elif self._changes_near(snap, at):
            self.replies.agreed += 1
        else:
            self.replies.quiet += 1

    def _changes_near(self, snap: SnapshotRow, at: int) -> bool:
        near = self.rows["received_ns"][max(at - 1, 0) : at + 1]
        return bool((np.abs(near - snap.received_ns) <= TELLING_NS).any())

    def _fits(self, snap: SnapshotRow) -> bool:
        """Does a first snapshot agree with the H that alignment or an earlier look gave?"""
        return (snap.running_hash + self.constant) & MASK == snap.book_hash

    def _keep(self, snap: SnapshotRow, at: int) -> None:
        self.keyframes.append((at - self.start, kept(snap), snap.seq))

    def _begin(self, snap: SnapshotRow, at: int) -> None:
        """A new piece begins at this snapshot."""
        self._finish(at, snap.seq)
        self.start, self.h, self.constant = at, snap.book_hash, 0
        self.floating = self.quarantined = False
        # The snapshot's own seq may have been an event (a reset), so seq counts from the next.
        self.position, self.seq_from, self.begin_seq = None, snap.seq + 1, snap.seq
        self.begins_anew, self.audit = True, 0
        self.keyframes = [(0, kept(snap), snap.seq)]

    def _finish(self, stop: int, cut_seq: int | None) -> None:
        rows = self.rows[self.start : stop]
        if cut_seq is not None and rows.size == 0 and not self.keyframes:
            return
        hashed = rows
        if not self.floating and self.constant and rows.size:
            floating = (rows["flags"] & FLOATING) != 0
            if floating.any():
                hashed = rows.copy()
                hashed["book_hash"][floating] += np.uint64(self.constant)
        events = events_of(hashed, self.h)
        broken = -1 if self.quarantined else chain_break(events)
        piece = Piece(
            gatherer=self.pair.gatherer,
            connection=self.pair.connection,
            run_id=self.pair.run_id,
            seq_from=self.seq_from,
            seq_to=self._seq_to(rows, cut_seq),
            events=events if broken < 0 else events.part(0, broken),
            anchored=not self.floating,
            position=self.position,
            audit=self.audit,
            weak=rows.size > 0 and bool((rows["flags"] & int(DeltaFlag.NEGATIVE)).any()),
            open_end=cut_seq is None and self.end_seq is None,
        )
        self.drafts.append(
            Draft(
                self.pair, self.run, rows, piece, self.h, self.keyframes, self.begins_anew,
                self.begin_seq, "quarantined" if self.quarantined else "", broken,
            )
        )  # fmt: skip

    def _seq_to(self, rows: DeltaRows, cut_seq: int | None) -> int:
        if cut_seq is not None:
            return cut_seq - 1
        if self.end_seq is not None:
            return self.end_seq
        return int(rows["seq"][-1]) if rows.size else max(self.pair.last_seq, self.seq_from)


def kept(snap: SnapshotRow) -> Keyframe:
    """The part of a snapshot that is kept."""
    return Keyframe(snap.exchange_us, snap.received_ns, snap.book_hash, snap.levels)


def end_hash(draft: Draft) -> int:
    """H after the draft's last event, on the footing of its piece (constant of alignment added)."""
    events: Events = draft.piece.events
    h = int(events.h_after[-1]) if len(events) else draft.h_start
    return (h + draft.piece.constant) & MASK


def end_book(draft: Draft, h: int) -> Keyframe | None:
    """The book after the draft's last event, whose hash is `h`; None where no snapshot gives it."""
    if not draft.keyframes or not draft.rows.size:
        return None
    at, frame, _ = draft.keyframes[-1]
    try:
        book = after(Book.from_bytes(frame.levels), draft.rows[at:])
    except SegmentError:
        return None
    last = draft.rows[-1]
    if book.hash != h:
        return None
    return Keyframe(int(last["exchange_us"]), int(last["received_ns"]), h, book.to_bytes())
