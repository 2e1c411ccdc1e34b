"""Which description of a market counts: the same whoever is asked, whenever."""

from __future__ import annotations

import itertools
import json

from dedup.metadata import Described, choose, event_of, event_record, market_record

BODY = {
    "ticker": "A-1",
    "event_ticker": "A",
    "title": "Will it?",
    "status": "active",
    "open_time": "2026-02-24T15:00:00Z",
    "close_time": "0001-01-01T00:00:00Z",
}


def described(ns: int, **more: object) -> Described:
    return Described("A-1", ns, json.dumps(BODY | more))


def test_newest_known_description_counts_in_any_order() -> None:
    """Gatherers are asked side by side: the answer must not depend on who was first."""
    rows = [described(5), described(9, status="closed"), described(20, status="settled")]
    rows.append(described(9, status="closing"))
    for order in itertools.permutations(rows):
        assert json.loads(choose(order, 10)["A-1"].body)["status"] == "closed"
        assert json.loads(choose(order, 4)["A-1"].body)["status"] == "active"
        assert json.loads(choose(order, 99)["A-1"].body)["status"] == "settled"


def test_record_has_what_the_exchange_told() -> None:
    """Times the exchange calls never set are absent, the body is kept as it is."""
    event = Described("A", 1, json.dumps({"series_ticker": "KX"}))
    record = market_record("A-1", 7, described(5), {"A": event})
    assert record["series_ticker"] == "KX"
    assert record["open_ts"] == 1_771_945_200_000_000
    assert record["close_ts"] is None
    assert record["first_seen"] == 7
    assert json.loads(record["body"]) == BODY
    assert event_of(described(5)) == "A"


def test_series_in_the_market_itself_comes_first() -> None:
    """Some bodies name their series; the event is then not needed."""
    assert market_record("A-1", 7, described(5, series_ticker="KY"), {})["series_ticker"] == "KY"


def test_odd_bodies_lose_fields_not_rows() -> None:
    """A field of another type or an unreadable time stays in `body` alone."""
    odd = described(5, title=3, open_time="soon", event_ticker=None)
    record = market_record("A-1", 7, odd, {})
    assert record["title"] is None
    assert record["open_ts"] is None
    assert record["series_ticker"] is None


def test_market_that_nobody_described_is_still_listed() -> None:
    """Its events are on the tape; the table must have it."""
    assert market_record("A-1", 7, None, {}) == {"market_ticker": "A-1", "first_seen": 7}


def test_an_event_has_what_the_exchange_told() -> None:
    """And what its market tells where it says nothing itself."""
    body = {"title": "Rain", "sub_title": "in May", "category": "Weather", "series_ticker": "KX",
            "mutually_exclusive": False, "strike_date": "2026-02-24T15:00:00Z",
            "strike_period": "day"}  # fmt: skip
    record = event_record("A", 7, "KY", Described("A", 5, json.dumps(body)))
    assert (record["series_ticker"], record["title"], record["sub_title"]) == (
        "KX", "Rain", "in May",
    )  # fmt: skip
    assert (record["mutually_exclusive"], record["strike_period"]) == (False, "day")
    assert record["strike_ts"] == 1_771_945_200_000_000
    assert json.loads(record["body"]) == body
    odd = event_record("A", 7, "KY", Described("A", 5, '{"mutually_exclusive": "no", "title": 4}'))
    assert (odd["series_ticker"], odd["mutually_exclusive"], odd["title"]) == ("KY", None, None)
    assert event_record("A", 7, None, None) == {
        "event_ticker": "A", "first_seen": 7, "series_ticker": None,
    }  # fmt: skip
