"""One market in one window: pieces, merge, joints, numbering.

Purpose: carry a market's end of the tape over one window. The placing is marketdata.merge; here are
the joints of rule 7 (shared live time, else a gap row and a new epoch), the numbering, and what
becomes of each run that brought events.

Invariants: INV-K2 within an epoch numbers count 1, 2, 3 and the chain of hashes does not break.

Does not do: reading, runs without events (quiet.py), output order (arbitrate.py).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from dedup.claims import Context, Placement
from dedup.drafts import Draft, Drafter, end_book, end_hash
from dedup.output import QuarantineRow
from dedup.quiet import QuietRuns
from dedup.runs import Keyframe, Pair, Run, Standing
from dedup.tails import first_known, first_seq, gatherer_pairs, tail_events, witnesses
from dedup.window import PairRows, empty_block
from marketdata.alignment import Events, join_events, no_events
from marketdata.coverage import AuditPoint
from marketdata.merge import (
    UNTIMED,
    Base,
    Merged,
    Part,
    Piece,
    Rejected,
    Segment,
    merge_pieces,
)
from marketdata.rows import DELTA_ROW, DeltaFlag, SnapshotRow, SnapshotVerdict

_NOT_KEPT: Final = int(DeltaFlag.FLOATING)


class MarketWindow(QuietRuns):
    """Merges one market's rows of one window onto its end of the tape."""

    def run(self, given: list[PairRows], ahead: dict[tuple[int, int], SnapshotRow]) -> None:
        """Take the window's rows of this market in; afterwards the market stands at its end."""
        late = {id(i) for i in given if self._begins_at_the_end(i)}
        others = [i for i in given if id(i) not in late]
        held = [i for i in given if id(i) in late and not any(_shows(o, i.rows[0]) for o in others)]
        for item in held:
            pair = self._pair(item.run)
            pair.held, pair.held_snapshots = item.rows.tobytes(), item.snapshots
        for item in (i for i in given if not any(i is one for one in held)):
            self._draft(item, ahead.get((item.run.gatherer, item.run.run_id)))
        base = self._base()
        tail = base.events if base is not None else no_events()
        tail_masks = list(base.witnesses) if base is not None else []
        pieces = [d.piece for d in self.drafts if not d.refused]
        busy = {p.gatherer for p in pieces if len(p.events)}
        if busy:  # what the others brought before this window may be at other times, too
            busy |= {g for mask in tail_masks for g in range(mask.bit_length()) if mask >> g & 1}
        window_us = self.ctx.settings.match_window_us if len(busy) > 1 else 0
        merged = merge_pieces(base, pieces, window_us, proven=self._exact(busy))
        self._count_mode(merged, pieces)
        for reject in merged.rejected:
            self.rejects.setdefault(id(reject.piece), []).append(reject)
        starts = self._claim_starts()
        self._settle_quiet_drafts(starts)
        self._open_waiting()
        for segment in merged.segments:
            self._append(segment, starts)
        self._account(merged)
        self._settle_drafts(merged, starts)
        self._keyframes(merged)
        self._missed_by_ended(tail, tail_masks, base)
        self._end_runs()
        self._settle_quiet()
        self._behind(tail, tail_masks, base)

    def _begins_at_the_end(self, item: PairRows) -> bool:
        """A run that begins at the window's very end is taken with the next window, unless all
        times are proven equal or another run shows its first row here: by the others' times its
        place may lie in that one, and what they show there comes before it.
        """
        rows, pairs = item.rows, self.market.pairs
        if self.market.epoch == 0 or not rows.size:
            return False
        if int(rows["exchange_us"][0]) < self.ctx.to_us - self.ctx.settings.match_window_us:
            return False
        mine = (item.run.gatherer, item.run.run_id)
        known = any(
            (p.gatherer, p.run_id) == mine
            and (p.standing != Standing.PENDING or p.last_us >= 0 or p.held)
            for p in pairs
        )
        if known or self.ctx.times.end_of(item.run, self.index) is not None:
            return False
        return not self._exact({p.gatherer for p in pairs} | {item.run.gatherer})

    def _exact(self, gatherers: set[int]) -> bool:
        """Rule 10: are equal times and order of all these gatherers proven?"""
        return self.ctx.evidence.exact(gatherer_pairs(gatherers), self.ctx.seen)

    def _count_mode(self, merged: Merged, pieces: list[Piece]) -> None:
        busy = [p for p in pieces if len(p.events)]
        if len({p.gatherer for p in busy}) > 1:
            self.sink.counts[f"mode_{merged.mode}"] += len(busy)
            self.ctx.seen.merged(merged)

    def _draft(self, item: PairRows, ahead: SnapshotRow | None) -> None:
        run, rows, snapshots = item.run, item.rows, item.snapshots
        pair = self._pair(run)
        if pair.held:
            rows = np.concatenate((np.frombuffer(pair.held, DELTA_ROW), rows))
            snapshots = pair.held_snapshots + snapshots
            pair.held, pair.held_snapshots = b"", []
        if rows.size:
            seq = rows["seq"].astype(np.int64)
            fresh = seq > np.concatenate(([pair.last_seq], np.maximum.accumulate(seq)[:-1]))
            self.sink.counts["rows_in"] += int(rows.size)
            if not fresh.all():
                self.sink.counts["skipped_rows"] += int((~fresh).sum())
                rows = rows[fresh]
        if pair.seq_from < 0:
            carried = not run.fresh and self.ctx.inherits(run, self.market.ticker)
            pair.seq_from, pair.claim_seq = first_seq(run, rows, snapshots, carried=carried)
        end = self.ctx.times.end_of(run, self.index)
        drafter = Drafter(pair, run, rows, end.seq if end else None)
        drafts = drafter.cut(snapshots, ahead, self.ctx.settings.float_hold_ns)
        self.ctx.seen.replies.add(drafter.replies)
        if drafter.floating and rows.size and not pair.first_float_ns:
            pair.first_float_ns = int(rows["received_ns"][0])
        pair.constant = drafter.constant
        if rows.size:
            pair.last_seq = int(rows["seq"][-1])
        for snap in snapshots:
            pair.last_seq = max(pair.last_seq, snap.seq)
            self._audit(pair, snap)
        self.drafts += drafts

    def _pair(self, run: Run) -> Pair:
        for pair in self.market.pairs:
            if pair.gatherer == run.gatherer and pair.run_id == run.run_id:
                return pair
        pair = Pair(
            run.gatherer, run.run_id, run.connection, int(Standing.FLOATING), 0, seq_from=-1
        )
        self.market.pairs.append(pair)
        self.market.pairs.sort(key=lambda p: (p.gatherer, p.run_id))
        return pair

    def _audit(self, pair: Pair, snap: SnapshotRow) -> None:
        if snap.verdict in (SnapshotVerdict.AGREES, SnapshotVerdict.DIFFERS):
            agrees = snap.verdict == SnapshotVerdict.AGREES
            self.sink.counts["audits" if agrees else "audits_failed"] += 1
            self.sink.audits.append(
                AuditPoint(self.market.ticker, pair.gatherer, snap.exchange_us, agrees)
            )

    def _base(self) -> Base | None:
        market = self.market
        if market.epoch == 0:
            return None
        events, masks = (
            tail_events(market.tail) if market.tail is not None else (no_events(), list[int]())
        )
        former = {(g, c): (position, seq) for g, c, position, seq in market.former}
        from_us = market.epoch_from_us
        begun_us = from_us - self.ctx.settings.engine_skew_us, from_us
        return Base(market.count, market.h_end, market.last_us, events, masks, former, begun_us)

    def _append(self, segment: Segment, starts: dict[int, int]) -> None:
        """Put a segment's new events onto the tape, with or without a new epoch (rule 7)."""
        market = self.market
        new = segment.events.part(segment.emitted, len(segment.events))
        if len(new) and not segment.is_base:
            self._settle_quiet(int(new.us[0]))
        if segment.is_base:
            self.segment_at[id(segment)] = (market.epoch, market.count - segment.emitted)
        elif len(new) == 0:
            return
        else:
            from_us = first_known(segment, starts)
            h_start = int(new.h_before[0])
            joined = (
                market.epoch > 0
                and h_start == market.h_end
                and 0 <= from_us <= self._live_to(from_us)
            )
            if not joined:
                first = int(new.us[0])
                begins = first if from_us < 0 else min(first, from_us)
                # What ended runs left proven stays the former epoch's: they show its book there.
                self._open_epoch(h_start, max(begins, market.live_to_us), from_us)
            self.segment_at[id(segment)] = (market.epoch, market.count)
        epoch, zero = self.segment_at[id(segment)]
        if len(new):
            self._emit(segment, new)
            self._place_quiet(segment, new)
        for part in segment.parts:
            self._note_end(part, epoch, zero)

    def _note_end(self, part: Part, epoch: int, zero: int) -> None:
        """Where the draft of this part ends, if this is its last part."""
        for draft in self.drafts:
            if draft.piece is part.piece and part.first + part.length == len(draft.piece.events):
                self.ends[id(draft)] = Placement(epoch, zero + part.end)

    def _emit(self, segment: Segment, new: Events) -> None:
        market, n = self.market, len(new)
        masks, received = witnesses(segment, n)
        flags = new.flags & ~np.int16(_NOT_KEPT)
        for start, stop in segment.ambiguous:
            low, high = max(start - segment.emitted, 0), max(stop - segment.emitted, 0)
            flags[low:high] |= int(DeltaFlag.AMBIGUOUS)
            self.sink.counts["ambiguous_events"] += high - low
            if high > low:
                self._mark("ambiguous", int(new.us[low]), int(new.us[high - 1]) + 1, "tied order")
        if segment.disputed_from >= 0:
            low = max(segment.disputed_from - segment.emitted, 0)
            flags[low:] |= int(DeltaFlag.DISPUTED)
            self.sink.counts["disputed_events"] += n - low
        block = empty_block(n)
        us = new.us
        if (new.flags & UNTIMED).any():  # an inferred time is not before the event before it
            us = us.copy()
            untimed = (new.flags & UNTIMED) != 0
            floor = np.maximum.accumulate(np.concatenate(([market.last_us], us)))[:-1]
            us[untimed] = np.maximum(us[untimed], floor[untimed])
        block["exchange_us"], block["received_ns"], block["delta"] = us, received, new.delta
        block["book_hash"], block["price"], block["side"] = new.h_after, new.price, new.side
        block["flags"], block["sources"] = flags, masks
        block["market_id"], block["epoch"] = self.index, market.epoch
        block["market_seq"] = np.arange(market.count + 1, market.count + n + 1)
        self.sink.blocks.append(block)
        self.sink.counts["merged_events"] += n
        market.count += n
        market.h_end = int(new.h_after[-1])
        market.last_us = max(market.last_us, int(us.max()))
        market.live_to_us = -1
        market.last_sources = int(masks[-1])
        self.appended = join_events([self.appended, new]) if len(self.appended) else new
        self.appended_masks += masks.tolist()

    def _account(self, merged: Merged) -> None:
        """The books of rows (I3)."""
        counts = self.sink.counts
        placed = 0
        for segment in merged.segments:
            placed += sum(part.length for part in segment.parts)
        # The emitted events of this market were counted by _emit; each has one first witness row.
        fresh = sum(len(s.events) - s.emitted for s in merged.segments if id(s) in self.segment_at)
        counts["merged_rows"] += fresh
        counts["duplicate_rows"] += placed - fresh
        for draft in self.drafts:
            for reject in self.rejects.get(id(draft.piece), ()):
                self._quarantine(draft, reject.start, reject.stop, reject.reason)
            if draft.refused:
                self._quarantine(draft, 0, draft.rows.size, draft.refused)
            elif draft.broken_at >= 0:
                self._quarantine(draft, draft.broken_at, draft.rows.size, "broken_chain")

    def _quarantine(self, draft: Draft, start: int, stop: int, reason: str) -> None:
        rows = draft.rows[start:stop]
        if rows.size == 0:
            return
        self.sink.counts["quarantined_rows"] += int(rows.size)
        self.sink.counts["late_rows"] += int(rows.size) if reason == "late" else 0
        us = rows["exchange_us"]
        self.sink.quarantine.append(
            QuarantineRow(
                self.market.ticker, draft.pair.gatherer, draft.pair.run_id, reason,
                int(us.min()), int(us.max()) + 1, int(rows.size), np.array(rows),
            )
        )  # fmt: skip

    def _settle_quiet_drafts(self, starts: dict[int, int]) -> None:
        """Pairs that had snapshots only: they take their place in time among the segments."""
        busy = {id(d.pair) for d in self.drafts if d.rows.size}
        for draft in self.drafts:
            pair = draft.pair
            if id(pair) in busy:
                continue
            self.settled.add(id(draft))
            self._settle_draft(draft, starts[id(draft.piece)], disputed=False)
            for _, frame, _ in draft.keyframes:
                if frame.book_hash != pair.h:
                    continue  # of before a reset whose row stands in an earlier window
                if pair.standing == Standing.PINNED:
                    self._place_keyframe(
                        frame, pair.gatherer, self.market.epoch, pair.position, self.market.last_us
                    )
                elif pair.standing == Standing.PENDING:
                    pair.keyframe = frame

    def _settle_drafts(self, merged: Merged, starts: dict[int, int]) -> None:
        """Standing, hash and claim of every pair that had rows or snapshots."""
        disputed = {
            id(part.piece)
            for s in merged.segments
            if s.disputed_from >= 0
            for part in s.parts
            if part.end > s.disputed_from
        }
        for segment in merged.segments:
            if segment.disputed_from >= 0 and len(segment.events):
                at = min(segment.disputed_from, len(segment.events) - 1)
                self._mark("disputed", int(segment.events.us[at]), self.ctx.to_us, "contradiction")
        for draft in self.drafts:
            if id(draft) not in self.settled:
                contradicted = id(draft.piece) in disputed
                self._settle_draft(draft, starts[id(draft.piece)], disputed=contradicted)

    def _settle_draft(self, draft: Draft, from_us: int, *, disputed: bool) -> None:
        pair, piece = draft.pair, draft.piece
        # A cut microsecond lies outside of what the run claims anyway.
        refused = (r for r in self.rejects.get(id(piece), ()) if r.reason != "cut_group")
        rejects = sorted(refused, key=lambda r: r.start)
        if draft.begins_anew:
            self.close_claim(pair, pair.audited_us, "snapshot differs")
            pair.claim_seq = draft.begin_seq
        self._settle_standing(draft, rejects)
        spoiled = disputed or bool(rejects) or bool(draft.refused) or draft.broken_at >= 0
        timed = (piece.events.flags & UNTIMED) == 0
        if spoiled:
            keep = rejects[0].start if rejects else (0 if disputed else len(piece.events))
            agreed = piece.events.us[:keep][timed[:keep]]
            before = int(agreed[-1]) if agreed.size else pair.claim_from_us
            seq = pair.last_seq
            self.close_claim(pair, before, rejects[0].reason if rejects else "disputed")
            if pair.standing in (Standing.PINNED, Standing.PENDING) and not disputed:
                self.open_claim(pair, seq)
        elif (
            pair.claim_from_us < 0
            and pair.claim_seq >= 0
            and pair.standing in (Standing.PINNED, Standing.PENDING)
        ):
            self.open_claim(pair, pair.claim_seq, from_us)
        before_us = pair.last_us
        if timed.any():
            pair.last_us = max(pair.last_us, int(piece.events.us[timed][-1]))
        for at, _, seq in draft.keyframes:
            if seq < 0:
                continue  # it waited, and counted in its own window, or it is a book of ours
            earlier = piece.events.us[:at]
            seen_us = int(earlier[-1]) if earlier.size else before_us
            pair.audited_us = max(pair.audited_us, seen_us)
            if pair.claim_seq < 0 and pair.standing in (Standing.PINNED, Standing.PENDING):
                self.open_claim(pair, seq)

    def _settle_standing(self, draft: Draft, rejects: list[Rejected]) -> None:
        pair, piece = draft.pair, draft.piece
        end = self.ends.get(id(draft))
        pair.h = end_hash(draft)
        if draft.refused or draft.broken_at >= 0:
            pair.standing = int(Standing.QUARANTINED)
        elif len(piece.events) == 0:
            if draft.begins_anew or pair.standing == Standing.FLOATING:
                known = piece.anchored
                pair.standing = int(Standing.PENDING if known else Standing.FLOATING)
        elif end is not None and not (rejects and rejects[-1].stop == len(piece.events)):
            if piece.constant:
                pair.constant = piece.constant
            current = end.epoch == self.market.epoch
            pair.standing = int(Standing.PINNED if current else Standing.PENDING)
            pair.position = end.position if current else 0
        else:
            reason = rejects[-1].reason if rejects else "unanchored"
            if reason in ("contradicted", "disputed"):
                pair.standing = int(Standing.QUARANTINED)
            elif piece.anchored:
                pair.standing = int(Standing.PENDING)
            else:
                pair.standing = int(Standing.FLOATING)
        if len(piece.events):
            pair.behind_since = -1

    def _keyframes(self, merged: Merged) -> None:
        """Snapshots whose place is known become keyframes; of quiet runs they wait."""
        places: dict[int, list[tuple[Segment, Part]]] = {}
        for segment in merged.segments:
            if id(segment) in self.segment_at:
                for part in segment.parts:
                    places.setdefault(id(part.piece), []).append((segment, part))
        for draft in self.drafts:
            if id(draft) in self.settled:
                continue
            for at, frame, _ in draft.keyframes:
                self._keyframe(draft, at, frame, places.get(id(draft.piece), []))
            pair = draft.pair
            if pair.standing == Standing.PENDING and pair.keyframe is None:
                # It may open an epoch where it stands now, and nobody else may know the book there.
                pair.keyframe = end_book(draft, pair.h)

    def _keyframe(
        self, draft: Draft, at: int, frame: Keyframe, places: list[tuple[Segment, Part]]
    ) -> None:
        pair = draft.pair
        for segment, part in places:
            if part.first <= at <= part.first + part.length:
                epoch, zero = self.segment_at[id(segment)]
                index = part.start + at - part.first
                us = int(segment.events.us[index - 1]) if index > 0 else -1
                if _book_at(segment, index) != frame.book_hash:
                    return  # inside a microsecond that is in another order on the tape
                self._place_keyframe(frame, pair.gatherer, epoch, zero + index, us)
                return
        if frame.book_hash != pair.h:
            return
        if len(draft.piece.events) == 0 and pair.standing == Standing.PINNED:
            self._place_keyframe(
                frame, pair.gatherer, self.market.epoch, pair.position, self.market.last_us
            )
        elif len(draft.piece.events) == 0 and pair.standing == Standing.PENDING:
            pair.keyframe = frame


def _shows(item: PairRows, row: np.void) -> bool:
    """Whether a run has this row, at this time, in this window."""
    same = np.ones(item.rows.size, bool)
    for name in ("exchange_us", "side", "price", "delta"):
        same &= item.rows[name] == row[name]
    return bool(same.any())


def _book_at(segment: Segment, index: int) -> int:
    """H before the segment's event `index`."""
    events = segment.events
    return int(events.h_before[index] if index < len(events) else events.h_after[-1])


__all__ = ["Context", "MarketWindow"]
