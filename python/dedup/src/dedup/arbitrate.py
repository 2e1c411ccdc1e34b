"""Feed arbitration: several recordings in, one tape with proof out. Pure: no I/O, no clock.

How it is used (shapes are in dedup.output and marketdata.coverage):

    arbiter = Arbiter(n_gatherers, ArbiterSettings())          # or Arbiter.load(...) after a restart
    arbiter.absorb(batch)                                      # GathererBatch, in batch order per gatherer
    arbiter.nothing_new(gatherer)                              # asked, and there was nothing or no answer
    output = arbiter.step(final=False)                         # WindowOutput, or None = wait
    arbiter.waiting_for                                        # list[str]: why it waits

    Arbiter.load(n_gatherers, settings, market_states, named_states, positions)
        market_states: dict[ticker, bytes], named_states: dict[name, bytes], positions as last published

`step` is called until it gives None. `final=True`: every gatherer has said everything; nothing is
waited for, and once step gives None everything absorbed is published. `counts` of an output are
increments; their names are COUNTS. rows_in = merged_rows + duplicate_rows + quarantined_rows +
skipped_rows holds over each output, rows being order-book delta rows of gatherers.
"""

from __future__ import annotations

from typing import Final

COUNTS: Final = (
    "rows_in",
    "merged_rows",  # rows that became the first witness of a merged event
    "duplicate_rows",  # proven further witnesses of a merged event
    "quarantined_rows",
    "skipped_rows",  # repeats of one (run, seq)
    "merged_events",
    "ambiguous_events",
    "disputed_events",
    "gaps",
    "book_equal_gaps",
    "audits",
    "audits_failed",
    "late_rows",  # of quarantined_rows
    "mode_exact",  # placements of a run by rule 10's first, second and third mode
    "mode_window",
    "mode_groups",
    "mode_changes",  # a pair of gatherers fell back to a weaker mode: an alert
    "trades_in",
    "trades",
    "tickers_in",
    "tickers",
)
