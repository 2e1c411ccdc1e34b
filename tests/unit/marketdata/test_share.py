"""Sharing events between processes: everybody agrees, and little moves when one is added."""

from __future__ import annotations

from collections import Counter

import pytest

from marketdata.share import Share, share_of

EVENTS = [f"KXSERIES{n % 40}-26NOV{n:05d}" for n in range(6_000)]
GOLDEN = [2, 1, 1, 3, 1, 2, 2, 1, 3, 3, 2, 3]  # of the first twelve, in three shares


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


@pytest.mark.parametrize("of", [1, 2, 3, 8])
def test_every_market_has_one_owner_and_ids_never_meet(of: int) -> None:
    shares = [Share(number, of) for number in range(1, of + 1)]
    given: list[int] = []
    for share in shares:
        mine = [event for event in EVENTS if share.owns(event)]
        assert all(share_of(event, of) == share.number for event in mine)
        given += [share.market_id(owned) for owned in range(len(mine))]
    assert len(given) == len(set(given)) == len(EVENTS)
    assert min(given) == 1


def test_one_process_alone_numbers_as_it_always_did() -> None:
    share = Share()
    assert share.alone
    assert share.first
    assert [share.market_id(n) for n in range(4)] == [1, 2, 3, 4]


def test_the_share_of_a_ticker_is_the_same_for_ever() -> None:
    """A tape keeps its markets: other shares after an update of this code would be another tape."""
    assert [share_of(event, 3) for event in EVENTS[:12]] == GOLDEN
