"""The vocabulary between sources and the venue."""

from __future__ import annotations

import msgspec
import pytest

from exchange.timeline import TIME_BOTH, DeltaItem, MarketSpec


def test_items_cannot_be_changed_and_default_to_both_times() -> None:
    """One item goes to every connection: a change on one would be a change on all."""
    item = DeltaItem(1, 0, 0, 1, 1, 1)
    assert item.form == TIME_BOTH
    with pytest.raises(AttributeError):
        item.delta = 2  # type: ignore[misc]
    assert msgspec.structs.replace(item, at_us=5).at_us == 5


def test_specs_do_not_share_their_books() -> None:
    """A mutable default shared by all markets would mix their books."""
    one, two = (MarketSpec(t, "i", "e", "s", "t", 0, 1) for t in "ab")
    one.yes.append((1, 1))
    assert two.yes == []
