"""When /health may say that the capture is complete, and what it says otherwise."""

from __future__ import annotations

from dataclasses import replace

import pytest

from marketdata.capture_state import (
    BOOK_CHANNEL,
    PROOF_NS,
    ChannelState,
    FeedState,
    channel_states,
    verdict,
)

NOW = 1_000_000 * 1_000_000_000
BOOKS = FeedState("books-0", True, "", wanted=10, covered=10, last_frame_ns=NOW - 5)
OTHERS = FeedState(
    "shared", True, "", ("trade", "ticker"), frozenset({"trade", "ticker"}), last_frame_ns=NOW - 7
)


def states(*feeds: FeedState, unplaced: int = 0, now: int = NOW) -> dict[str, ChannelState]:
    return channel_states(feeds, ("trade", "ticker"), unplaced, now)


def test_everything_covered_lately_is_complete() -> None:
    found = states(BOOKS, replace(BOOKS, name="books-1", wanted=3, covered=3), OTHERS)
    assert verdict(found, None) == []
    books = found[BOOK_CHANNEL]
    assert (books.to_cover, books.covered, books.missing, books.joining) == (13, 13, 0, 0)
    assert found["trade"].described()["complete"] is True


@pytest.mark.parametrize(
    ("broken", "channel", "told"),
    [
        (replace(BOOKS, is_open=False, reason="is connecting"), BOOK_CHANNEL, "is connecting"),
        (replace(BOOKS, covered=8, missing=2), BOOK_CHANNEL, "2 of 10 books wait for a snapshot"),
        (replace(BOOKS, last_frame_ns=NOW - PROOF_NS - 1), BOOK_CHANNEL, "silent for 60 s"),
        (replace(OTHERS, subscribed=frozenset({"ticker"})), "trade", "trade is not subscribed"),
        (replace(OTHERS, is_open=False), "ticker", "is not connected"),
    ],
)
def test_each_hole_is_told(broken: FeedState, channel: str, told: str) -> None:
    feeds = {feed.name: feed for feed in (BOOKS, OTHERS)} | {broken.name: broken}
    found = states(*feeds.values())
    assert not found[channel].is_complete
    assert any(told in reason for reason in verdict(found, None))


def test_open_socket_without_a_frame_lately_covers_nothing() -> None:
    """Pings prove the socket, not the feed."""
    found = states(replace(BOOKS, last_frame_ns=NOW - PROOF_NS - 1), OTHERS)
    assert found[BOOK_CHANNEL].covered == 0
    assert found[BOOK_CHANNEL].oldest_feed == "books-0"
    assert found[BOOK_CHANNEL].oldest_proof_ms == 60_000


def test_new_market_is_joining_and_excused() -> None:
    found = states(replace(BOOKS, wanted=12), OTHERS)
    assert found[BOOK_CHANNEL].joining == 2
    assert verdict(found, None) == []


def test_markets_without_a_connection_are_missing() -> None:
    found = states(BOOKS, OTHERS, unplaced=4)
    assert (found[BOOK_CHANNEL].to_cover, found[BOOK_CHANNEL].missing) == (14, 4)
    assert "4 markets beyond the limit" in verdict(found, None)[0]


def test_nothing_known_is_not_complete() -> None:
    """The emptiest state must not be the best one."""
    found = channel_states([], (), 0, NOW)
    assert verdict(found, None) == ["orderbook_delta: no market is known yet"]
    assert states()["trade"].missing == 1


def test_a_spool_that_cannot_be_written_makes_everything_incomplete() -> None:
    assert verdict(states(BOOKS, OTHERS), "No space left on device") == [
        "the spool cannot be written: No space left on device"
    ]


def test_a_channel_is_covered_if_any_of_its_connections_covers_it() -> None:
    dead = replace(OTHERS, name="shared-old", is_open=False, last_frame_ns=0)
    assert states(BOOKS, dead, OTHERS)["trade"].is_complete
    assert states(BOOKS, OTHERS, dead)["trade"].is_complete
    assert not states(BOOKS, dead)["trade"].is_complete
