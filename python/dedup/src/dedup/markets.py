"""One market in one window: pieces, merge, joints, numbering, and what each run may claim of it.

Purpose: carry a market's end of the tape over one window. The placing is marketdata.merge; here are
rule 7 (joints by shared live time, else a gap row and a new epoch), quiet runs, runs that fall
behind, and the opening and closing of claims.

Invariants: INV-K1 an epoch after the first opens only with a gap row. INV-K2 within an epoch
numbers count 1, 2, 3 and the chain of hashes does not break. INV-K3 rows that are not placed end the claim
of their run before them.

Does not do: reading, evidence of whole runs (window.py), output order (arbitrate.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dedup.drafts import Draft, Drafter, end_hash
from dedup.output import ArbiterSettings, EpochRow, GapRow, QuarantineRow
from dedup.runs import OPEN_US, Keyframe, Market, Pair, Run, Standing, Tail
from dedup.window import PairRows, PlacedSnapshot, RunTimes, WindowSink, empty_block, open_claim
from marketdata.alignment import Events, content_keys, join_events, no_events
from marketdata.coverage import AuditPoint, Mark, MarketClaim
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
from marketdata.rows import DELTA_ROW, DeltaFlag, DeltaRows, SnapshotRow, SnapshotVerdict

_NOT_KEPT = int(DeltaFlag.FLOATING)


@dataclass(slots=True)
class Context:
    """What all markets of one window share."""

    settings: ArbiterSettings
    window: int
    to_us: int
    times: RunTimes
    sink: WindowSink
    runs: dict[tuple[int, int], Run]
    n_markets: dict[tuple[int, int], int]  # of each run
    inherits: Callable[[Run, str], bool]  # was the market subscribed before the run's gap?
    unclaimed: dict[tuple[int, int], dict[str, int]]  # run -> ticker -> seq: waits for a time
    exact: dict[str, int]  # pair of gatherers -> events that both brought equal in exact mode
    modes: dict[str, str]  # pair of gatherers -> mode of rule 10 used last


@dataclass(slots=True)
class Placement:
    """Where a draft's last event stands: `position` events of `epoch` up to and with it."""

    epoch: int
    position: int


class MarketWindow:
    """Merges one market's rows of one window onto its end of the tape."""

    def __init__(self, market: Market, index: int, context: Context) -> None:
        self.market = market
        self.index = index
        self.ctx = context
        self.sink = context.sink
        self.drafts: list[Draft] = []
        self.ends: dict[int, Placement] = {}  # id(draft) -> where it ended
        self.settled: set[int] = set()  # ids of quiet drafts: their pairs are up to date
        self.rejects: dict[int, list[Rejected]] = {}
        self.segment_at: dict[int, tuple[int, int]] = {}  # id(segment) -> (epoch, position of [0])
        self.appended: Events = no_events()  # of the current epoch, in this window
        self.appended_masks: list[int] = []
        # The latest keyframe's position, of epochs that ended in this window too: one per place.
        self.keyframed: dict[int, int] = {market.epoch: market.keyframe_at}

    # -- the whole ---------------------------------------------------------------------------------

    def run(self, given: list[PairRows], ahead: dict[tuple[int, int], SnapshotRow]) -> None:
        """Take the window's rows of this market in; afterwards the market stands at its end."""
        for item in given:
            self._draft(item, ahead.get((item.run.gatherer, item.run.run_id)))
        base = self._base()
        tail = base.events if base is not None else no_events()
        tail_masks = list(base.witnesses) if base is not None else []
        pieces = [d.piece for d in self.drafts if not d.refused]
        merged = merge_pieces(base, pieces, self._fallback_us(pieces))
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
        self._end_runs()
        self._settle_quiet()
        self._behind(tail, tail_masks, base)

    def _fallback_us(self, pieces: list[Piece]) -> int:
        """Rule 10: weaker modes only among gatherers whose equal times are not proven yet."""
        pairs = gatherer_pairs({p.gatherer for p in pieces if len(p.events)})
        proven = all(self.ctx.exact.get(pair, 0) >= EXACT_PROOF_EVENTS for pair in pairs)
        return 0 if proven else self.ctx.settings.match_window_us

    def _count_mode(self, merged: Merged, pieces: list[Piece]) -> None:
        busy = [p for p in pieces if len(p.events)]
        pairs = gatherer_pairs({p.gatherer for p in busy})
        if not pairs:
            return
        self.sink.counts[f"mode_{merged.mode}"] += len(busy)
        shared = min(len(p.events) for p in busy)
        for pair in pairs:
            if merged.mode == "exact":
                self.ctx.exact[pair] = self.ctx.exact.get(pair, 0) + shared
            if self.ctx.modes.get(pair, merged.mode) != merged.mode:
                self.sink.counts["mode_changes"] += 1
            self.ctx.modes[pair] = merged.mode

    # -- drafts ------------------------------------------------------------------------------------

    def _draft(self, item: PairRows, ahead: SnapshotRow | None) -> None:
        run, rows = item.run, item.rows
        pair = self._pair(run)
        if rows.size:
            seq = rows["seq"].astype(np.int64)
            fresh = seq > np.concatenate(([pair.last_seq], np.maximum.accumulate(seq)[:-1]))
            self.sink.counts["rows_in"] += int(rows.size)
            if not fresh.all():
                self.sink.counts["skipped_rows"] += int((~fresh).sum())
                rows = rows[fresh]
        if pair.seq_from < 0:
            carried = not run.fresh and self.ctx.inherits(run, self.market.ticker)
            pair.seq_from, pair.claim_seq = _first_seq(run, rows, item.snapshots, carried=carried)
        end = self.ctx.times.end_of(run, self.index)
        drafter = Drafter(pair, run, rows, end.seq if end else None)
        drafts = drafter.cut(item.snapshots, ahead, self.ctx.settings.float_hold_ns)
        if drafter.floating and rows.size and not pair.first_float_ns:
            pair.first_float_ns = int(rows["received_ns"][0])
        pair.constant = drafter.constant
        if rows.size:
            pair.last_seq = int(rows["seq"][-1])
        for snap in item.snapshots:
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

    # -- base and numbering ------------------------------------------------------------------------

    def _base(self) -> Base | None:
        market = self.market
        if market.epoch == 0:
            return None
        events, masks = (
            tail_events(market.tail) if market.tail is not None else (no_events(), list[int]())
        )
        former = {(g, c): (position, seq) for g, c, position, seq in market.former}
        return Base(market.count, market.h_end, market.last_us, events, masks, former)

    def _append(self, segment: Segment, starts: dict[int, int]) -> None:
        """Put a segment's new events onto the tape, with or without a new epoch (rule 7)."""
        market = self.market
        new = segment.events.part(segment.emitted, len(segment.events))
        if len(new):
            self._settle_quiet(int(new.us[0]))
        if segment.is_base:
            self.segment_at[id(segment)] = (market.epoch, market.count - segment.emitted)
        elif len(new) == 0:
            return
        else:
            from_us = _first_known(segment, starts)
            h_start = int(new.h_before[0])
            joined = (
                market.epoch > 0
                and h_start == market.h_end
                and 0 <= from_us <= self._live_to(from_us)
            )
            if not joined:
                first = int(new.us[0])
                self._open_epoch(h_start, first if from_us < 0 else min(first, from_us), from_us)
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
        masks, received = _witnesses(segment, n)
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

    def _mark(self, kind: str, from_us: int, to_us: int, reason: str) -> None:
        ticker = self.market.ticker
        if kind == "gap":
            self.sink.marks.append(Mark(ticker, "gap", from_us, to_us, reason))
        elif kind == "ambiguous":
            self.sink.marks.append(Mark(ticker, "ambiguous", from_us, to_us, reason))
        else:
            self.sink.marks.append(Mark(ticker, "disputed", from_us, to_us, reason))

    # -- proof of live time ------------------------------------------------------------------------

    def _proof_to(self, pair: Pair) -> int:
        key = (pair.gatherer, pair.run_id)
        run = self.ctx.runs[key]
        count = self.ctx.n_markets.get(key, 1)
        return self.ctx.times.proof_to(run, self.index, pair.last_us, count)

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
            and not self._has_rows(p)
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

    # -- claims ------------------------------------------------------------------------------------

    def _claim_starts(self) -> dict[int, int]:
        """id(piece) -> time from which its run proves everything of this market; -1 unknown."""
        starts: dict[int, int] = {}
        for draft in self.drafts:
            pair = draft.pair
            if draft.begins_anew:
                starts[id(draft.piece)] = self._resolve(draft.run, draft.begin_seq)
            elif pair.claim_from_us >= 0:
                starts[id(draft.piece)] = pair.claim_from_us
            elif pair.claim_seq >= 0:
                starts[id(draft.piece)] = self._resolve(draft.run, pair.claim_seq)
            else:
                starts[id(draft.piece)] = -1
        return starts

    def _resolve(self, run: Run, after_seq: int) -> int:
        return self.ctx.times.claim_start(run, self.index, self.market.ticker, after_seq)

    def open_claim(self, pair: Pair, after_seq: int, from_us: int | None = None) -> None:
        """The pair is in sequence after `after_seq`: claim from the first time shown after it."""
        key = (pair.gatherer, pair.run_id)
        run = self.ctx.runs[key]
        start = self._resolve(run, after_seq) if from_us is None else from_us
        pair.claim_seq = after_seq
        if start < 0:
            self.ctx.unclaimed.setdefault(key, {})[self.market.ticker] = after_seq
            return
        self.ctx.unclaimed.get(key, {}).pop(self.market.ticker, None)
        pair.claim_from_us = start
        self.sink.claim(open_claim(self.market.ticker, run, start))

    def _open_waiting(self) -> None:
        """Claims of quiet runs whose first exchange time has come."""
        for pair in self.market.pairs:
            known = pair.standing in (Standing.PINNED, Standing.PENDING)
            if known and pair.claim_from_us < 0 and pair.claim_seq >= 0:
                self.open_claim(pair, pair.claim_seq)

    def close_claim(self, pair: Pair, to_us: int, reason: str) -> None:
        """The pair's claim ends at `to_us` (INV-K3); nothing is claimed again before a snapshot."""
        self.ctx.unclaimed.get((pair.gatherer, pair.run_id), {}).pop(self.market.ticker, None)
        if pair.claim_from_us >= 0:
            to_us = max(to_us, pair.claim_from_us)
            self.sink.claim(
                MarketClaim(
                    self.market.ticker, pair.gatherer, pair.run_id, pair.claim_from_us, to_us,
                    valid=to_us > pair.claim_from_us, reason=reason,
                )
            )  # fmt: skip
        pair.claim_from_us = pair.claim_seq = -1

    # -- after the merge ---------------------------------------------------------------------------

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
        rejects = sorted(self.rejects.get(id(piece), ()), key=lambda r: r.start)
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
            earlier = piece.events.us[:at]
            seen_us = int(earlier[-1]) if earlier.size else before_us
            pair.audited_us = max(pair.audited_us, seen_us)
            known = pair.standing in (Standing.PINNED, Standing.PENDING)
            if seq >= 0 and pair.claim_seq < 0 and known:
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

    def _keyframe(
        self, draft: Draft, at: int, frame: Keyframe, places: list[tuple[Segment, Part]]
    ) -> None:
        pair = draft.pair
        for segment, part in places:
            if part.first <= at <= part.first + part.length:
                epoch, zero = self.segment_at[id(segment)]
                index = part.start + at - part.first
                us = int(segment.events.us[index - 1]) if index > 0 else -1
                self._place_keyframe(frame, pair.gatherer, epoch, zero + index, us)
                return
        if len(draft.piece.events) == 0 and pair.standing == Standing.PINNED:
            self._place_keyframe(
                frame, pair.gatherer, self.market.epoch, pair.position, self.market.last_us
            )
        elif len(draft.piece.events) == 0 and pair.standing == Standing.PENDING:
            pair.keyframe = frame

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

    # -- ends, quiet runs, runs behind -------------------------------------------------------------

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
        ]
        return sorted(found, key=lambda p: (p.claim_from_us, p.gatherer, p.run_id))

    def _place_quiet(self, segment: Segment, new: Events) -> None:
        """Runs that began, and perhaps ended, between two events of a segment."""
        market = self.market
        zero = market.count - len(new)
        for pair in self._quiet(int(new.us[0]), int(new.us.max())):
            before = int(np.count_nonzero(new.us < pair.claim_from_us))
            after = int(np.count_nonzero(new.us < self._proof_to(pair)))
            if int(new.h_after[before - 1]) == pair.h:
                pair.standing, pair.position = int(Standing.PINNED), zero + before
                pair.doubt_since = pair.behind_since = -1
                if pair.keyframe is not None:
                    us = int(new.us[before - 1])
                    frame, pair.keyframe = pair.keyframe, None
                    self._place_keyframe(frame, pair.gatherer, market.epoch, pair.position, us)
                continue
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
                self._pin(pair)
                continue
            live_to = self._live_to(-1)
            alive = any(
                (p.standing == Standing.PINNED and p.position == market.count)
                or self._draft_at_end(p)
                for p in market.pairs
                if self.ctx.times.end_of(self.ctx.runs[(p.gatherer, p.run_id)], self.index) is None
            )
            if pair.claim_from_us <= live_to:
                if pair.h == market.h_end:
                    self._pin(pair)
                elif not alive or (upto_us == OPEN_US and 0 <= pair.doubt_since < self.ctx.window):
                    self._contradicts(pair, alive=alive)
                elif pair.doubt_since < 0:
                    pair.doubt_since = self.ctx.window
            elif not alive:
                self._open_epoch(pair.h, pair.claim_from_us, pair.claim_from_us)
                self._pin(pair)

    def _pin(self, pair: Pair) -> None:
        pair.standing, pair.position = int(Standing.PINNED), self.market.count
        pair.doubt_since = pair.behind_since = -1
        if pair.keyframe is not None:
            frame, pair.keyframe = pair.keyframe, None
            if frame.book_hash == pair.h:
                self._place_keyframe(
                    frame, pair.gatherer, self.market.epoch, self.market.count, self.market.last_us
                )

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
        self._pin(pair)

    def _behind(self, tail: Events, tail_masks: list[int], base: Base | None) -> None:
        """Runs that did not show events the others have: wait one window, then contradict them."""
        market = self.market
        market.tail = None
        behind = [
            p for p in market.pairs if p.standing == Standing.PINNED and p.position < market.count
        ]
        if not behind:
            return
        retained, masks = self.appended, self.appended_masks
        if base is not None and len(tail) and market.count - len(retained) == base.count:
            retained = join_events([tail, retained]) if len(retained) else tail
            masks = tail_masks + masks
        lagging: list[Pair] = []
        for pair in behind:
            run = self.ctx.runs[(pair.gatherer, pair.run_id)]
            at = len(retained) - (market.count - pair.position)
            missed_us = int(retained.us[at]) if at >= 0 else market.last_us
            shown = run.z_us - self.ctx.settings.engine_skew_us > missed_us
            if pair.behind_since < 0 or not shown:
                if pair.behind_since < 0:
                    pair.behind_since = self.ctx.window
                lagging.append(pair)
                continue
            self.close_claim(pair, pair.last_us, "missed an event")
            pair.standing = int(Standing.QUARANTINED)
            if masks[max(at, 0)].bit_count() < 2:
                self._mark("disputed", missed_us, self.ctx.to_us, "one gatherer against one")
        if not lagging:
            return
        keep = market.count - min(p.position for p in lagging)
        if keep > min(len(retained), TAIL_EVENTS_MAX):
            for pair in lagging:
                pair.standing = int(Standing.PENDING)
            return
        market.tail = make_tail(retained.part(len(retained) - keep, len(retained)), masks[-keep:])


TAIL_EVENTS_MAX = 4096  # events kept for a run that is behind; past it, it is placed anew
EXACT_PROOF_EVENTS = 1000  # equal events of two gatherers after which their times count as equal


def gatherer_pairs(gatherers: set[int]) -> list[str]:
    """Names of all pairs, ascending: "0-1", "0-2", ..."""
    ordered = sorted(gatherers)
    return [f"{a}-{b}" for i, a in enumerate(ordered) for b in ordered[i + 1 :]]


def _first_seq(
    run: Run, rows: DeltaRows, snapshots: list[SnapshotRow], *, carried: bool
) -> tuple[int, int]:
    """(seq from which the run carries the market, seq after which its claim may start).

    `carried`: the market was subscribed before the gap already, so both are the run's own start
    (rule 2). A market that was added later starts with its own first frame.
    """
    if carried:
        return run.first_seq, run.first_seq - 1
    if snapshots and (rows.size == 0 or snapshots[0].seq <= int(rows["seq"][0])):
        return snapshots[0].seq, snapshots[0].seq
    return int(rows["seq"][0]), int(rows["seq"][0]) - 1


def _first_known(segment: Segment, starts: dict[int, int]) -> int:
    """Earliest time from which a run that begins the segment proves everything; -1 unknown."""
    known = [
        starts[id(p.piece)]
        for p in segment.parts
        if p.start == 0 and p.first == 0 and starts.get(id(p.piece), -1) >= 0
    ]
    return min(known, default=-1)


def _witnesses(
    segment: Segment, n: int
) -> tuple[np.ndarray[tuple[int], np.dtype[np.int16]], np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """(source masks, smallest received_ns) of the segment's last n events."""
    masks = np.zeros(n, np.int16)
    received = np.full(n, np.iinfo(np.int64).max, np.int64)
    for part in segment.parts:
        start, first = part.start - segment.emitted, part.first
        if start < 0:
            start, first = 0, part.first - start
        stop = part.end - segment.emitted
        if stop <= start:
            continue
        masks[start:stop] |= 1 << part.piece.gatherer
        got = part.piece.events.received_ns[first : first + stop - start]
        np.minimum(received[start:stop], got, out=received[start:stop])
    return masks, received


def make_tail(events: Events, masks: list[int]) -> Tail:
    """Columns of events as plain numbers, for the state."""
    return Tail(
        events.us.tolist(), events.received_ns.tolist(), events.delta.tolist(),
        events.price.tolist(), events.side.tolist(), events.flags.tolist(),
        events.h_before.tolist(), events.h_after.tolist(), masks,
    )  # fmt: skip


def tail_events(tail: Tail) -> tuple[Events, list[int]]:
    """The events of `make_tail`, and their witnesses."""
    price, side = np.array(tail.price, np.int32), np.array(tail.side, np.int16)
    delta, flags = np.array(tail.delta, np.int64), np.array(tail.flags, np.int16)
    events = Events(
        np.array(tail.us, np.int64), np.array(tail.received_ns, np.int64), delta, price, side,
        flags, np.array(tail.h_before, np.uint64), np.array(tail.h_after, np.uint64),
        content_keys(price, side, delta, flags),
    )  # fmt: skip
    return events, list(tail.witnesses)


__all__ = ["DELTA_ROW", "Context", "MarketWindow"]
