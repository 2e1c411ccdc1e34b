"""REST bodies: what a recorder needs of them, in both forms, and one bad item among good ones."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest

from marketdata import events, rest_bodies
from marketdata.errors import MalformedFrame, MissingField, OffScale
from marketdata.events import TsPrecision
from tests import recorded

MARKET = {
    "ticker": "KXA-1",
    "event_ticker": "KXA",
    "status": "active",
    "title": "A",
    "open_time": "1970-01-01T00:00:01Z",
    "close_time": "1970-01-01T00:00:02.5Z",
    "created_time": "0001-01-01T00:00:00Z",
    "exchange_index": 1,
}


def test_market_keeps_its_body_and_reads_its_times() -> None:
    """The body goes to the history whole; the plan needs ticker, status and times."""
    market = rest_bodies.market(MARKET)
    assert (market.ticker, market.event_ticker, market.status) == ("KXA-1", "KXA", "active")
    assert (market.open_us, market.close_us) == (1_000_000, 2_500_000)
    assert (market.created_us, market.updated_us) == (None, None)
    assert (market.exchange_index, market.is_multivariate) == (1, False)
    assert market.body is MARKET
    bare = {"ticker": "T", "event_ticker": "E", "status": "closed", "mve_collection_ticker": "C"}
    assert rest_bodies.market(bare).is_multivariate
    assert rest_bodies.market(bare).exchange_index == 0


def test_bad_market_is_a_problem_and_hides_no_other() -> None:
    """One market in a thousand must not stop discovery."""
    page = rest_bodies.markets_page(
        {"markets": [MARKET, {"ticker": "X"}, "no object", MARKET], "cursor": "next"}
    )
    assert [m.ticker for m in page.items] == ["KXA-1", "KXA-1"]
    assert [type(p) for p in page.problems] == [MissingField, MalformedFrame]
    assert page.cursor == "next"


@pytest.mark.parametrize("end", [{"cursor": ""}, {"cursor": None}, {}])
def test_page_without_cursor_is_the_last(end: dict[str, Any]) -> None:
    """Empty, null or absent."""
    assert rest_bodies.series_page({"series": [], **end}).cursor == ""


def test_body_without_its_list_is_refused() -> None:
    """An error page read as "no markets" would end every subscription."""
    with pytest.raises(MissingField):
        rest_bodies.markets_page({"error": "x"})
    with pytest.raises(MalformedFrame, match="not a list"):
        rest_bodies.events_page({"events": {}})


def test_event_reads_its_nested_markets() -> None:
    """Discovery by events; settled ones come without markets."""
    body = {"event_ticker": "KXA", "series_ticker": "KX", "title": "t", "markets": [MARKET, {}]}
    (event,) = rest_bodies.events_page({"events": [body]}).items
    assert (event.event_ticker, event.series_ticker, event.title) == ("KXA", "KX", "t")
    assert [m.ticker for m in event.markets] == ["KXA-1"]
    assert len(event.problems) == 1
    assert rest_bodies.event({"event_ticker": "E", "series_ticker": "S"}).markets == []


def test_series_reads_its_name_and_category() -> None:
    """As given."""
    series = rest_bodies.series({"ticker": "KX", "title": "t", "category": "Sports"})
    assert series[:3] == ("KX", "t", "Sports")


def test_trades_of_both_forms_are_the_events_of_the_websocket() -> None:
    """Missed trades are filled in from REST and must merge by the same id."""
    current = {
        "trade_id": "d91bc706-ee49-470d-82d8-11418bda6fed",
        "ticker": "M",
        "count_fp": "136.00",
        "yes_price_dollars": "0.3600",
        "no_price_dollars": "0.6400",
        "taker_outcome_side": "no",
        "created_time": "2026-08-07T06:46:28.97871Z",
        "is_block_trade": False,
    }
    cents = {
        "count": 1, "created_time": "2026-01-12T15:00:20.897212Z", "no_price": 94,
        "no_price_dollars": "0.9400", "price": 0.06, "taker_side": "no", "ticker": "M",
        "trade_id": "961535f3-d80f-5462-e91d-88d4fe6db285", "yes_price": 6,
    }  # fmt: skip
    page = rest_bodies.trades_page({"trades": [current, cents], "cursor": "c"})
    assert page.problems == []
    assert page.items[0] == events.Trade(
        "M", bytes.fromhex("d91bc706ee49470d82d811418bda6fed"), 360_000, 640_000, 13_600, 1, False,
        1_786_085_188_978_710, TsPrecision.MICRO, None, None,
    )  # fmt: skip
    assert (page.items[1].yes_price, page.items[1].count) == (60_000, 100)


def test_order_books_of_both_forms() -> None:
    """`orderbook_fp` since March 2026; null sides before."""
    levels = {"yes_dollars": [["0.8800", "114.46"]], "no_dollars": []}
    book = rest_bodies.order_book({"orderbook_fp": levels}, "M")
    assert book == ("M", [(880_000, 11_446)], [])
    old = {"no": None, "no_dollars": None, "yes": [[8, 300]], "yes_dollars": None}
    assert rest_bodies.order_book({"orderbook": old}, "M").yes == [(80_000, 30_000)]
    with pytest.raises(MissingField):
        rest_bodies.order_book({"orderbook_v3": levels}, "M")
    listed = [{"ticker": "M", "orderbook_fp": levels}, {"ticker": "N"}]
    page = rest_bodies.order_books_page({"orderbooks": listed})
    assert [b.ticker for b in page.items] == ["M"]
    assert len(page.problems) == 1


@pytest.mark.parametrize(
    ("raw", "code", "message"),
    [
        (b'{"error":"too many requests"}', "", "too many requests"),
        (b'{"error":{"code":"bad_request","message":"m","details":"d"}}', "bad_request", "m: d"),
        (b'{"code":"not_found","message":"not found","details":""}', "not_found", "not found"),
        (b'{"exchange_active":false}', "", ""),
        (b'["odd"]', "", "['odd']"),
        (b"<html>Forbidden</html>", "", "<html>Forbidden</html>"),
        (b"\xff" * 1000, "", "\ufffd" * 300),
    ],
)
def test_error_body_of_any_form_gives_code_and_message(raw: bytes, code: str, message: str) -> None:
    """Three documented forms, a status body on 503, and a proxy's page."""
    assert rest_bodies.error_body(raw) == (code, message)


def test_canonical_json_is_one_for_equal_bodies_and_holds_no_nul() -> None:
    """The hash of a body decides whether it is new; jsonb refuses a NUL and with it the row."""
    assert rest_bodies.canonical_json({"b": 1, "a": [2]}) == b'{"a":[2],"b":1}'
    tricky = {"t": "a\x00b", "u": "back\\u0000slash", "v": "\\\x00"}
    got = json.loads(rest_bodies.canonical_json(tricky))
    assert got == {"t": "a\ufffdb", "u": "back\\u0000slash", "v": "\\\ufffd"}


def test_recorded_bodies_are_read_without_a_problem() -> None:
    """Both generations of real responses."""
    read = {
        "markets": rest_bodies.markets_page,
        "events": rest_bodies.events_page,
        "series": rest_bodies.series_page,
        "trades": rest_bodies.trades_page,
    }
    pages = 0
    for path in sorted(recorded.recorded("rest_cents").glob("*.json*")) + sorted(
        recorded.recorded("rest_fixed_point").glob("*.json*")
    ):
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        body = json.loads(raw)
        body = body.get("response", body) if isinstance(body, dict) else {}
        for name, page_of in read.items():
            if isinstance(body.get(name), list):
                page = page_of(body)
                assert page.problems == []
                pages += bool(page.items)
    assert pages >= 4


def test_wrong_number_in_an_item_is_off_scale() -> None:
    """A float where an integer should be."""
    with pytest.raises(OffScale):
        rest_bodies.market(MARKET | {"exchange_index": 1.5})
