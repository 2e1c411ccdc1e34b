"""The seeded bugs: real slips that somebody could make in merge, coverage, cursors and publish.

Each is a text of a module and what the slip makes of it. The bug must be caught by a checker on
some seed (mutate). A bug that is not caught is a weakness of the simulation: strengthen that, never
this list.
"""

# ruff: noqa: E501 - texts of the product, as they stand there
from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One seeded bug."""

    name: str
    module: str
    old: str
    new: str
    why: str  # what the slip is, in a few words


MUTANTS = (
    # -- claims and coverage
    Mutant(
        "claim_starts_too_early", "dedup.window",
        "return int(us[at]) + 1 + (0 if own else self.skew_us)",
        "return int(us[at]) - 2_000_000",
        "a claim begins before the first time that was shown after the snapshot",
    ),
    Mutant(
        "claim_from_snapshot_after_gap", "dedup.tails",
        "return run.first_seq, run.first_seq - 1",
        "return 0, 0",
        "a run after a gap claims from the connection's start",
    ),
    Mutant(
        "skew_margin_added", "dedup.window",
        "margin = 0 if n_markets <= 1 else self.skew_us\n        return max",
        "margin = 0 if n_markets <= 1 else -self.skew_us\n        return max",
        "the engines' margin is added where it is to be taken off",
    ),
    Mutant(
        "proof_beyond_shown_time", "dedup.window",
        "return max(own_last_us, shown_us - margin)",
        "return max(own_last_us, shown_us + 3_000_000)",
        "a quiet run proves more silence than it has shown",
    ),
    Mutant(
        "every_market_was_there_before", "dedup.markets",
        "carried = not run.fresh and self.ctx.inherits(run, self.market.ticker)",
        "carried = True",
        "a market that is added to a run is claimed from the run's start",
    ),
    Mutant(
        "removed_market_still_claimed", "dedup.window",
        "return whole or self.ends.get((run.gatherer, run.run_id, market))",
        "return whole",
        "a market that left the subscription is claimed on",
    ),
    Mutant(
        "end_of_run_not_told", "dedup.arbitrate",
        'max(run.z_us - margin, from_us), key in ended, ended.get(key, ""),',
        'max(run.z_us - margin, from_us), False, "",',
        "the progress of an ended run says that it lives",
    ),
    Mutant(
        "open_claim_reaches_for_ever", "marketdata.coverage",
        "        to_us = run.to_us\n    return _Stretch",
        "        to_us = run.to_us + 60_000_000\n    return _Stretch",
        "an open claim reaches beyond its run's progress",
    ),
    # -- merge
    Mutant(
        "epoch_without_gap_row", "dedup.quiet",
        "            self.sink.gaps.append(",
        "            _ = (",
        "an epoch opens and its gap row is forgotten",
    ),
    Mutant(
        "joined_without_live_time", "dedup.markets",
        "and 0 <= from_us <= self._live_to(from_us)",
        "and True",
        "equal books join without shared live time (rule 7)",
    ),
    Mutant(
        "quarantine_not_counted", "dedup.markets",
        'self.sink.counts["quarantined_rows"] += int(rows.size)',
        "pass",
        "rows in quarantine are not accounted for",
    ),
    Mutant(
        "duplicate_witness", "dedup.tails",
        "masks[start:stop] |= 1 << part.piece.gatherer",
        "masks[start:] |= 1 << part.piece.gatherer",
        "a run is named as witness of what follows it",
    ),
    Mutant(
        "witness_lost_in_bulk", "dedup.fast",
        "masks = [sum({1 << b.gatherer for b in t.bunches}) for t in self.taken]",
        "masks = [1 << t.bunches[0].gatherer for t in self.taken]",
        "the fast path names the first gatherer only",
    ),
    Mutant(
        "no_keyframe_at_the_start", "dedup.quiet",
        "if position <= self.keyframed.get(epoch, -1):",
        "if position <= self.keyframed.get(epoch, 0):",
        "a keyframe at an epoch's start counts as placed already",
    ),
    Mutant(
        "complete_without_a_book", "marketdata.coverage",
        "for i in _in_epochs(book)]",
        "for i in book]",
        "time before the first epoch is complete though no book is known",
    ),
    Mutant(
        "snapshot_at_the_wrong_place", "dedup.markets",
        "self._place_keyframe(frame, pair.gatherer, epoch, zero + index, us)",
        "self._place_keyframe(frame, pair.gatherer, epoch, zero + index + 1, us)",
        "a keyframe stands one event too late",
    ),
    Mutant(
        "floating_rows_thrown_away", "dedup.drafts",
        "            if soon and ahead.levels != EMPTY_LEVELS:",
        "            if False and ahead.levels != EMPTY_LEVELS:",
        "rows before a snapshot in a later window lose their H",
    ),
    Mutant(
        "floating_constant_wrong", "dedup.drafts",
        "self.constant = (snap.book_hash - snap.running_hash) & MASK",
        "self.constant = snap.book_hash",
        "H of rows before a snapshot is not carried back by the difference",
    ),
    Mutant(
        "numbers_begin_at_zero_again", "dedup.markets",
        'block["market_seq"] = np.arange(market.count + 1, market.count + n + 1)',
        'block["market_seq"] = np.arange(market.count, market.count + n)',
        "off by one in the numbering of the slow path",
    ),
    Mutant(
        "late_rows_appended", "marketdata.merge",
        'self._reject(piece, first, first + late, "late")',
        "late = 0",
        "rows before the end of the tape are appended to it",
    ),
    # -- windows and waiting
    Mutant(
        "end_before_its_rows", "dedup.inflow",
        "window = max(run.max_window, self.closed + 1)\n            self.ends.append",
        "window = self.closed + 1\n            self.ends.append",
        "the end of a run is taken before its last rows",
    ),
    Mutant(
        "window_of_leaving_by_read", "dedup.inflow",
        "            shown_us = int(shown[at - 1]) if at else shown_us\n            first_us",
        "            shown_us = int(shown[-1])\n            first_us",
        "a market leaves in the window of whatever was read last (INV-R1)",
    ),
    Mutant(
        "grace_forgotten", "dedup.gate",
        "elif not inflow.ended and inflow.max_received_ns < due_ns:",
        "elif False:",
        "a window closes before the others have committed",
    ),
    Mutant(
        "open_runs_not_waited_for", "dedup.gate",
        'if run.ended or run.channel != "orderbook" or inflow.ended:',
        "if True:",
        "a window closes while a run has not shown a later time",
    ),
    # -- cursors and reading
    Mutant(
        "reread_rows_taken_again", "dedup.inflow",
        'new = (window > self.reread[0]) | (rows["batch_id"] > self.reread[1])\n            keep = np.flatnonzero(new)\n            rows, key, window',
        'new = (window >= self.reread[0]) | (rows["batch_id"] > self.reread[1])\n            keep = np.flatnonzero(new)\n            rows, key, window',
        "rows of the last closed window are taken again after a restart",
    ),
    Mutant(
        "reread_from_too_far", "dedup.inflow",
        "return min(batches, default=self.seen_batch + 1)",
        "return self.seen_batch + 1",
        "after a restart reading goes on behind rows that no window has taken",
    ),
    Mutant(
        "xid_window_to_xmax", "dedup.pull",
        "SELECT pg_snapshot_xmin(pg_current_snapshot())::text",
        "SELECT pg_snapshot_xmax(pg_current_snapshot())::text",
        "the window reaches over transactions that are still under way",
    ),
    Mutant(
        "xid_window_not_closed", "dedup.pull",
        "xid >= $1::text::xid8 AND xid < $2::text::xid8",
        "xid > $1::text::xid8 AND xid < $2::text::xid8",
        "the first transaction of each window is left out",
    ),
    Mutant(
        "commit_before_durable", "gatherer.sink",
        "            await self._spool.sync()\n            await self._commit(batch)\n",
        "            await self._commit(batch)\n",
        "rows are committed whose records a crash may still lose",
    ),
    # -- publish
    Mutant(
        "fence_ignored", "dedup.publish",
        '" WHERE windows = $1 AND shard = $6",',
        '" WHERE shard = $6",',
        "a second merger is not stopped",
    ),
    Mutant(
        "states_before_rows", "dedup.publish",
        "                async with conn.transaction():\n                    if not self",
        "                async with conn.transaction():\n                    await _write_states(conn, made, identifiers, self._share.number)\n                async with conn.transaction():\n                    if not self",
        "the cursor is stored in a transaction before the rows",
    ),
    Mutant(
        "gone_states_kept", "dedup.publish",
        'await conn.execute(\n        "DELETE FROM arbiter_state WHERE name = ANY($1::text[]) AND shard = $2", gone, shard\n    )',
        "pass",
        "states that are over stay in production",
    ),
    Mutant(
        "later_claims_not_replaced", "dedup.publication",
        "made.claims[(known[c.ticker], c.gatherer, c.run_id, c.from_us)] = c",
        "made.claims.setdefault((known[c.ticker], c.gatherer, c.run_id, c.from_us), c)",
        "of two words on one claim in one publication the first one stands",
    ),
    Mutant(
        "run_end_reason_ignored",
        "dedup.arbitrate",
        'if end.reason == "gap":\n            self._bequeath(run)',
        "if not end.reason:\n            self._bequeath(run)",
        "the run after a gap does not know which markets were subscribed before it",
    ),
    Mutant(
        "reread_filter_off_by_one",
        "dedup.inflow",
        "return window <= self.reread[0] and batch_id <= self.reread[1]",
        "return window < self.reread[0] and batch_id <= self.reread[1]",
        "snapshots and ends of the last closed window are taken again after a restart",
    ),
    Mutant(
        "new_life_seen_at_the_start_forgotten",
        "dedup.readers",
        "            self._resume_at = None\n        got = ",
        "            self._resume_at = None\n            self._replacements = self.position.replaced\n        got = ",
        "a gatherer whose database was replaced while the deduplicator was away is read as its former life",
    ),
    Mutant(
        "word_of_an_end_believed",
        "dedup.gate",
        "return patience.had_nothing_ns[inflow.gatherer] >= shown_ns",
        "return True",
        "a gatherer that said it ended is not asked whether it began again before a window closes",
    ),
    Mutant(
        "asked_too_early",
        "dedup.gate",
        "    shown_ns = max(i.max_received_ns for i in inflows)\n    if seen",
        "    shown_ns = 0\n    if seen",
        "an answer of a gatherer that ended counts although the others were not as far yet",
    ),
    Mutant(
        "read_again_not_waited_for",
        "dedup.arbitrate",
        "        if self.reading_again:\n",
        "        if self.reading_again and final:\n",
        "windows close after a restart before everything was read again",
    ),
    Mutant(
        "taken_to_forgotten",
        "dedup.state",
        'int(named_states.get(f"{TAKEN_TO}-{g}", core.closed))',
        "core.closed",
        "what windows had taken when a gatherer was left out is forgotten at the next restart",
    ),
    Mutant(
        "left_out_read_from_its_end",
        "dedup.inflow",
        "        if self.behind:\n            return self.resume_from\n",
        "",
        "rows seen before a restart are never read again where windows closed without them",
    ),
    Mutant(
        "late_trades_not_looked_up",
        "dedup.publish",
        'known = {row["trade_id"].bytes for row in found}',
        "known = set()",
        "a late trade that is there already is stored again",
    ),
)  # fmt: skip

NOT_SEEN_YET = (
    Mutant(  # the key of the batch's own row refuses the same batch twice, too
        "cursor_guard_forgotten",
        "gatherer.hot_database",
        '" WHERE spool_uid = $1 AND segment = $5 AND offset_bytes = $6 AND batch_id = $7"',
        '" WHERE spool_uid = $1"',
        "the spool's cursor moves from wherever it stands",
    ),
    Mutant(
        "tail_dropped",
        "dedup.quiet",
        "market.tail = make_tail(kept, masks[-keep:])",
        "market.tail = None",
        "what a run behind has not shown yet is not kept",
    ),
    Mutant(
        "claim_kept_over_reject",
        "dedup.markets",
        'self.close_claim(pair, before, rejects[0].reason if rejects else "disputed")',
        "pass",
        "rows that could not be placed do not end the claim",
    ),
    Mutant(
        "overlap_not_proven",
        "marketdata.alignment",
        "return start, (length if equal.all() else int(np.argmin(equal))), length",
        "return start, (length if equal[0] else 0), length",
        "an offset counts when its first event is equal (rule 4)",
    ),
    Mutant(
        "empty_snapshot_anchors_backwards",
        "dedup.drafts",
        "if snap.levels == EMPTY_LEVELS and backwards:",
        "if False:",
        "an empty first snapshot gives H to the rows before it (rule 2)",
    ),
)
"""Slips that no seed tried so far has shown: here the simulation is to be made stronger. `make
sim-mutants NAMES=...` hunts them by name."""
