"""Runs without events of their own: quiet ones, ended ones, and ones that fall behind.

Purpose: rule 7 for runs that bring no event. A quiet run takes its place by the time it proves and
the book it shows; where that contradicts live runs, it is voted on or disputed, never guessed. Also
the opening of epochs, the end of runs, and runs that did not show what the others have.

Invariants: INV-K1 an epoch after the first opens only with a gap row.

Does not do: events (markets.py), claims (claims.py).
"""

from __future__ import annotations

import numpy as np

from dedup.claims import Claims
from dedup.output import EpochRow, GapRow
from dedup.runs import OPEN_US, Keyframe, Pair, Standing
from dedup.tails import TAIL_EVENTS_MAX, make_tail
from dedup.window import PlacedSnapshot
from marketdata.alignment import Events, join_events, no_events
from marketdata.merge import UNTIMED, Base, Segment


def _place_of(new: Events, before: int, h: int) -> int:
    """Where among `new` events a book of hash `h` may stand: after `before` of them, or past those
    that follow without a time of their own (a reset); -1: nowhere."""
    state = int(new.h_before[0]) if before == 0 else int(new.h_after[before - 1])
    index = before
    while state != h and index < len(new) and new.flags[index] & UNTIMED:
        state = int(new.h_after[index])
        index += 1
    return index if state == h else -1


def _untimed_at_end(events: Events) -> int:
    """How many events at the end have no time of their own. The time that a reset gets is each
    subscription's own: a run that begins before it may bring it in a later window than others did.
    """
    timed = np.flatnonzero((events.flags & UNTIMED) == 0)
    return min(len(events) - (int(timed[-1]) + 1 if timed.size else 0), TAIL_EVENTS_MAX)


class QuietRuns(Claims):
    """One market in one window: everything about its runs but their events."""

    def _live_to(self, _from_us: int) -> int:
        """How far runs standing at the end of the tape prove that nothing followed it."""
        market = self.market
        best = market.live_to_us
        for pair in market.pairs:
            at_end = pair.standing == Standing.PINNED and pair.position == market.count
            if at_end or self._draft_at_end(pair):
                best = max(best, self._proof_to(pair))
        quiet = sorted(
            (p.claim_from_us, self._proof_to(p))
            for p in market.pairs
            if p.standing == Standing.PENDING and p.claim_from_us >= 0 and p.h == market.h_end
            and not self._has_rows(p) and not p.held
        )  # fmt: skip
        for from_us, to_us in quiet:
            if from_us <= best:
                best = max(best, to_us)
        return best

    def _has_rows(self, pair: Pair) -> bool:
        return any(d.pair is pair and d.rows.size for d in self.drafts)

    def _draft_at_end(self, pair: Pair) -> bool:
        """Does a draft of this pair, placed in this window, end where the tape ends now?"""
        market = self.market
        for draft in self.drafts:
            if draft.pair is pair:
                end = self.ends.get(id(draft))
                if end is not None and (end.epoch, end.position) == (market.epoch, market.count):
                    return True
        return False

    def _open_epoch(self, h_start: int, from_us: int, proven_from_us: int) -> None:
        """INV-K1. `proven_from_us`: from when the new epoch's run claims; -1 not known."""
        market = self.market
        reason = "first"
        if market.epoch > 0:
            reason = "book_equal" if h_start == market.h_end else "gap"
            gap_from = max(market.last_us, self._live_to(-1))
            gap_to = max(gap_from + 1, proven_from_us, from_us)
            self.sink.gaps.append(
                GapRow(
                    market.ticker, market.epoch + 1, gap_from, gap_to, market.h_end, h_start, reason
                )
            )
            self._mark("gap", gap_from, gap_to, reason)
            self.sink.counts["gaps"] += 1
            self.sink.counts["book_equal_gaps"] += reason == "book_equal"
            from_us = max(from_us, market.last_us)
        for pair in market.pairs:
            if pair.standing == Standing.PINNED:
                pair.standing = int(Standing.PENDING)
        market.epoch += 1
        market.count, market.h_end, market.keyframe_at = 0, h_start, -1
        market.epoch_from_us, market.live_to_us, market.tail = from_us, -1, None
        market.former = []
        self.appended, self.appended_masks = no_events(), []
        self.sink.epochs.append(EpochRow(market.ticker, market.epoch, from_us, h_start, reason))

    def _place_keyframe(
        self, frame: Keyframe, gatherer: int, epoch: int, position: int, us: int
    ) -> None:
        market = self.market
        current = epoch == market.epoch
        if position <= self.keyframed.get(epoch, -1):
            return
        self.keyframed[epoch] = position
        if current:
            market.keyframe_at = position
        floor = max(us, market.epoch_from_us - 1 if current else us)
        if position > 0:
            exchange_us = floor  # right after the event before it
        else:
            exchange_us = market.epoch_from_us if current else max(floor, frame.exchange_us)
        self.sink.snapshots.append(
            PlacedSnapshot(
                market.ticker, epoch, position, exchange_us, frame.received_ns, frame.book_hash,
                frame.levels, 1 << gatherer,
            )
        )  # fmt: skip

    def _end_runs(self) -> None:
        """Runs that ended in this window leave what they prove behind."""
        market, left = self.market, []
        self._settle_quiet()
        for pair in market.pairs:
            run = self.ctx.runs[(pair.gatherer, pair.run_id)]
            end = self.ctx.times.end_of(run, self.index)
            if end is None:
                left.append(pair)
                continue
            to_us = self._proof_to(pair)
            at_end = pair.standing == Standing.PINNED and pair.position == market.count
            quiet = (
                pair.standing == Standing.PENDING
                and pair.h == market.h_end
                and 0 <= pair.claim_from_us <= self._live_to(-1)
            )
            if at_end or quiet:
                market.live_to_us = max(market.live_to_us, to_us)
            if pair.standing in (Standing.PINNED, Standing.PENDING) and pair.claim_from_us >= 0:
                self.close_claim(pair, to_us, end.reason)
            former = [f for f in market.former if f[:2] != (pair.gatherer, pair.connection)]
            if end.reason == "gap" and pair.standing == Standing.PINNED:
                former.append((pair.gatherer, pair.connection, pair.position, end.seq))
            market.former = former
            self.ctx.unclaimed.get((pair.gatherer, pair.run_id), {}).pop(market.ticker, None)
        market.pairs = left

    def _quiet(self, from_us: int, to_us: int) -> list[Pair]:
        """Pending runs without events whose claim starts in from_us < claim <= to_us, by time."""
        found = [
            p
            for p in self.market.pairs
            if p.standing == Standing.PENDING
            and from_us < p.claim_from_us <= to_us
            and not self._has_rows(p)
            and not p.held  # it is not quiet: the next window has its first rows
        ]
        return sorted(found, key=lambda p: (p.claim_from_us, p.gatherer, p.run_id))

    def _place_quiet(self, segment: Segment, new: Events) -> None:
        """Runs that began, and perhaps ended, before or between the events of a live segment."""
        zero = self.market.count - len(new)
        from_us = -1 if segment.is_base else int(new.us[0])
        for pair in self._quiet(from_us, int(new.us.max())):
            before = int(np.count_nonzero(new.us < pair.claim_from_us))
            index = _place_of(new, before, pair.h)
            if index >= 0:
                us = int(new.us[index - 1]) if index else self.market.last_us
                self._pin(pair, zero + index, us)
                continue
            after = int(np.count_nonzero(new.us < self._proof_to(pair)))
            witnesses = segment.gatherers(segment.emitted + before, segment.emitted + after + 1)
            if len(witnesses - {pair.gatherer}) < 2:
                self._mark("disputed", pair.claim_from_us, self.ctx.to_us, "two books at one time")
            self.close_claim(pair, pair.claim_from_us, "contradicted")
            pair.standing = int(Standing.QUARANTINED)

    def _settle_quiet(self, upto_us: int = OPEN_US) -> None:
        """Runs without events: pin them to the end of the tape, or open an epoch there."""
        market = self.market
        pending = self._quiet(-1, upto_us)
        if upto_us == OPEN_US:  # with events but without a place: only their end can be compared
            pending += [
                p
                for p in market.pairs
                if p.standing == Standing.PENDING and p.claim_from_us >= 0 and self._has_rows(p)
            ]
        for pair in sorted(pending, key=lambda p: (p.claim_from_us, p.gatherer, p.run_id)):
            if market.epoch == 0:
                self._open_epoch(pair.h, pair.claim_from_us, pair.claim_from_us)
                self._pin(pair, market.count, market.last_us)
                continue
            live_to = self._live_to(-1)
            alive = any(
                (p.standing == Standing.PINNED and p.position == market.count)
                or self._draft_at_end(p)
                for p in market.pairs
                if self.ctx.times.end_of(self.ctx.runs[(p.gatherer, p.run_id)], self.index) is None
            )
            if pair.claim_from_us <= live_to:
                begun_us = market.last_us if market.count else market.epoch_from_us - 1
                if self._proof_to(pair) <= begun_us:
                    continue  # it has not got there yet: its rows will come, late
                if pair.h == market.h_end:
                    self._pin(pair, market.count, market.last_us)
                elif not alive or (upto_us == OPEN_US and 0 <= pair.doubt_since < self.ctx.window):
                    self._contradicts(pair, alive=alive)
                elif pair.doubt_since < 0:
                    pair.doubt_since = self.ctx.window
            elif not alive and pair.claim_from_us > market.last_us:
                self._open_epoch(pair.h, pair.claim_from_us, pair.claim_from_us)
                self._pin(pair, market.count, market.last_us)

    def _pin(self, pair: Pair, position: int, us: int) -> None:
        """The pair stands at `position`; its waiting keyframe, right behind time `us`, too."""
        pair.standing, pair.position = int(Standing.PINNED), position
        pair.doubt_since = pair.behind_since = -1
        frame, pair.keyframe = pair.keyframe, None
        if frame is not None and frame.book_hash == pair.h:
            self._place_keyframe(frame, pair.gatherer, self.market.epoch, position, us)

    def _contradicts(self, pair: Pair, *, alive: bool) -> None:
        """A quiet run shows another book than the end of the tape at a time both were live."""
        market = self.market
        others = {
            p.gatherer
            for p in market.pairs
            if p.standing == Standing.PINNED and p.position == market.count
        } - {pair.gatherer}
        same = {
            p.gatherer
            for p in market.pairs
            if p.standing == Standing.PENDING and p.h == pair.h and p.claim_from_us >= 0
        }
        if alive and len(others) > len(same):
            self.close_claim(pair, pair.claim_from_us, "contradicted")
            pair.standing = int(Standing.QUARANTINED)
            return
        for other in market.pairs:
            if other.standing == Standing.PINNED:
                self.close_claim(other, min(other.last_us, pair.claim_from_us), "contradicted")
                other.standing = int(Standing.QUARANTINED)
        self._mark("disputed", market.last_us, self.ctx.to_us, "two books at one time")
        self._open_epoch(pair.h, pair.claim_from_us, pair.claim_from_us)
        if not len(same) > len(others):
            self.close_claim(pair, pair.claim_from_us, "disputed")
        self._pin(pair, market.count, market.last_us)

    def _since(self, tail: Events, masks: list[int], base: Base | None) -> tuple[Events, list[int]]:
        """The latest events of the epoch that are at hand, and who saw each."""
        market = self.market
        retained, seen = self.appended, self.appended_masks
        if base is not None and len(tail) and market.count - len(retained) == base.count:
            retained = join_events([tail, retained]) if len(retained) else tail
            seen = masks + seen
        return retained, seen

    def _contradicted(self, pair: Pair, retained: Events, masks: list[int]) -> bool:
        """Did the run go past an event that the others have? Then its claim ends before it."""
        market = self.market
        run = self.ctx.runs[(pair.gatherer, pair.run_id)]
        at = len(retained) - (market.count - pair.position)
        missed_us = int(retained.us[at]) if at >= 0 else market.last_us
        if run.z_us - self.ctx.settings.engine_skew_us <= missed_us:
            return False
        self.close_claim(pair, pair.last_us, "missed an event")
        pair.standing = int(Standing.QUARANTINED)
        if masks[max(at, 0)].bit_count() < 2:
            self._mark("disputed", missed_us, self.ctx.to_us, "one gatherer against one")
        return True

    def _missed_by_ended(self, tail: Events, tail_masks: list[int], base: Base | None) -> None:
        """Runs that end behind the others: nothing more comes of them, so none is waited for."""
        market = self.market
        retained, masks = self._since(tail, tail_masks, base)
        for pair in market.pairs:
            run = self.ctx.runs[(pair.gatherer, pair.run_id)]
            if (
                pair.standing == Standing.PINNED
                and pair.position < market.count
                and self.ctx.times.end_of(run, self.index) is not None
                and len(retained)
            ):
                self._contradicted(pair, retained, masks)

    def _near_the_end(self, events: Events) -> int:
        """How many events at the end a run may show with which it begins in the next window."""
        held = any(p.held for p in self.market.pairs)  # a difference may be seen in this window
        from_us = self.ctx.to_us - 2 * self.ctx.settings.match_window_us
        near = events.us >= (from_us if held else self.ctx.kept_us)
        return min(len(events) - int(np.argmax(near)), TAIL_EVENTS_MAX) if near.any() else 0

    def _behind(self, tail: Events, tail_masks: list[int], base: Base | None) -> None:
        """Runs that did not show events the others have: wait one window, then contradict them."""
        market = self.market
        market.tail = None
        behind = [
            p for p in market.pairs if p.standing == Standing.PINNED and p.position < market.count
        ]
        retained, masks = self._since(tail, tail_masks, base)
        wanted = max(_untimed_at_end(retained), self._near_the_end(retained))
        if not behind and not wanted:
            return
        lagging: list[Pair] = []
        for pair in behind:
            if pair.behind_since < 0:
                pair.behind_since = self.ctx.window
                lagging.append(pair)
            elif not self._contradicted(pair, retained, masks):
                lagging.append(pair)
        keep = market.count - min((p.position for p in lagging), default=market.count)
        if keep > min(len(retained), TAIL_EVENTS_MAX):
            for pair in lagging:
                pair.standing = int(Standing.PENDING)
            keep = 0
        keep = max(keep, wanted)
        if keep:
            kept = retained.part(len(retained) - keep, len(retained))
            market.tail = make_tail(kept, masks[-keep:])
