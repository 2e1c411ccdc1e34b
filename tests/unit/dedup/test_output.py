"""The shapes that the publisher relies on."""

from __future__ import annotations

from dedup.output import (
    MERGED_TICKER,
    MERGED_TRADE,
    EpochRow,
    MergedTicker,
    MergedTrade,
    WindowOutput,
    epoch_starts,
)
from dedup.tape_rows import TICKER_ROW, TRADE_ROW
from marketdata.coverage import EpochStart
from marketdata.rows import MERGED_ROW


def test_an_empty_output_has_the_production_row_layout() -> None:
    output = WindowOutput(3, 15_000_000, 20_000_000)
    assert output.deltas.dtype == MERGED_ROW
    assert output.deltas.size == 0
    assert (output.trades.dtype, output.trades.size) == (MERGED_TRADE, 0)
    assert (output.ticker_rows.dtype, output.ticker_rows.size) == (MERGED_TICKER, 0)


def test_merged_rows_have_productions_columns_in_productions_widths() -> None:
    """A narrower field would cut a value before the publisher could refuse it."""
    for kind, merged, tape in (
        (MergedTrade, MERGED_TRADE, TRADE_ROW),
        (MergedTicker, MERGED_TICKER, TICKER_ROW),
    ):
        assert merged.names == kind._fields
        widths = {name: merged[name] for name in merged.names if name != "market"}
        assert widths == {name: tape[name] for name in tape.names or () if name != "market_id"}


def test_two_outputs_share_no_list() -> None:
    """A shared default would publish one window's rows with the next."""
    first, second = WindowOutput(1, 0, 1), WindowOutput(2, 1, 2)
    first.tickers.append("A")
    first.named_states["x"] = None
    assert (second.tickers, second.named_states) == ([], {})


def test_epochs_in_the_form_of_coverage() -> None:
    output = WindowOutput(1, 0, 1, epochs=[EpochRow("A", 2, 77, 5, "gap")])
    assert epoch_starts(output) == [EpochStart("A", 2, 77)]
