"""The shapes that the publisher relies on."""

from __future__ import annotations

from dedup.output import EpochRow, WindowOutput, epoch_starts
from marketdata.coverage import EpochStart
from marketdata.rows import MERGED_ROW


def test_an_empty_output_has_the_production_row_layout() -> None:
    output = WindowOutput(3, 15_000_000, 20_000_000)
    assert output.deltas.dtype == MERGED_ROW
    assert output.deltas.size == 0


def test_two_outputs_share_no_list() -> None:
    """A shared default would publish one window's rows with the next."""
    first, second = WindowOutput(1, 0, 1), WindowOutput(2, 1, 2)
    first.tickers.append("A")
    first.named_states["x"] = None
    assert (second.tickers, second.named_states) == ([], {})


def test_epochs_in_the_form_of_coverage() -> None:
    output = WindowOutput(1, 0, 1, epochs=[EpochRow("A", 2, 77, 5, "gap")])
    assert epoch_starts(output) == [EpochStart("A", 2, 77)]
