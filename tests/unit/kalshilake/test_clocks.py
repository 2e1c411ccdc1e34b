"""The words for clocks and gaps."""

from __future__ import annotations

import pytest

from kalshilake.clocks import CLOCKS_APART_US, check_on_gap, column_of
from marketdata.errors import LakeError


def test_a_clock_is_a_column() -> None:
    """The two that a tape has."""
    assert (column_of("exchange"), column_of("received")) == ("exchange_ts", "received_at")
    assert CLOCKS_APART_US == 10_000_000


@pytest.mark.parametrize("word", ["recieved", "", "exchange_ts", None])
def test_another_word_is_refused(word: str) -> None:
    """A misspelt clock must not mean the usual one."""
    with pytest.raises(LakeError, match="exchange or received"):
        column_of(word)
    with pytest.raises(LakeError, match="raise, column or ignore"):
        check_on_gap(word)
