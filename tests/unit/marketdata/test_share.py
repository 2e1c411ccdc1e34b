"""Sharing events between processes: everybody agrees, and little moves when one is added."""

from __future__ import annotations

from collections import Counter

import pytest

from marketdata.share import share_of

EVENTS = [f"KXSERIES{n % 40}-26NOV{n:05d}" for n in range(6_000)]


@pytest.mark.parametrize("shares", [1, 2, 3, 8])
def test_every_event_has_one_share_and_shares_are_about_equal(shares: int) -> None:
    counts = Counter(share_of(event, shares) for event in EVENTS)
    assert set(counts) == set(range(1, shares + 1))
    assert max(counts.values()) < 1.2 * len(EVENTS) / shares


@pytest.mark.parametrize("shares", [1, 2, 5])
def test_one_more_process_takes_events_and_moves_no_other(shares: int) -> None:
    before = {event: share_of(event, shares) for event in EVENTS}
    after = {event: share_of(event, shares + 1) for event in EVENTS}
    moved = [event for event in EVENTS if before[event] != after[event]]
    assert {after[event] for event in moved} == {shares + 1}
    assert len(moved) < 1.2 * len(EVENTS) / (shares + 1)


def test_no_shares_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        share_of("E", 0)
