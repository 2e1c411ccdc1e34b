"""Decoded events: integers, frozen, comparable."""

from __future__ import annotations

import pytest

from marketdata import events
from marketdata.events import TsPrecision


def delta(seq: int) -> events.Delta:
    return events.Delta("M", 0, 960_000, -5_400, 1, TsPrecision.MICRO, 2, seq)


def test_events_compare_by_what_they_say() -> None:
    """Tests and audits compare events; identity would make them all different."""
    assert delta(3) == delta(3)
    assert delta(3) != delta(4)


def test_events_cannot_be_changed() -> None:
    """One event is read by several stages."""
    event = delta(3)
    with pytest.raises(AttributeError):
        event.seq = 4  # type: ignore[misc]
