"""Frames to events and commands to frames, in every form the exchange has used."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest

from marketdata import events, typed, wire
from marketdata.errors import MalformedFrame, MissingField, OffScale, WireError
from marketdata.events import TsPrecision
from tests import recorded

MICRO, MILLI, SECOND, NONE = TsPrecision
TS = "2022-11-22T20:44:01Z"
US = 1_669_149_841_000_000


def frame(type_: str, msg: Any = None, **envelope: Any) -> bytes:
    """A frame as the exchange writes it."""
    body = {"type": type_, **envelope}
    if msg is not None:
        body["msg"] = msg
    return json.dumps(body, separators=(",", ":")).encode()


def decode(payload: wire.Payload) -> events.Decoded:
    return wire.Decoder().decode(payload)


DELTA = {
    "market_ticker": "FED-23DEC-T3.00",
    "market_id": "9b0f6b43-5b68-4f9f-9f02-9a2d1b8ac1a1",
    "price_dollars": "0.9600",
    "delta_fp": "-54.00",
    "side": "yes",
    "ts": TS,
    "ts_ms": 1_669_149_841_000,
}


def delta_of(**changes: Any) -> events.Delta:
    """The delta frame with some fields changed (None: absent), decoded."""
    msg = {k: v for k, v in (DELTA | changes).items() if v is not None}
    event = decode(frame("orderbook_delta", msg, sid=2, seq=3))
    assert isinstance(event, events.Delta)
    return event


# --- orderbook_delta


def test_delta_of_the_current_form() -> None:
    """The frame that is 99 % of all."""
    assert delta_of() == events.Delta("FED-23DEC-T3.00", 0, 960_000, -5_400, US, MICRO, 2, 3)


@pytest.mark.parametrize(
    ("changes", "us", "precision"),
    [
        ({"ts": None}, US, MILLI),
        ({"ts": ""}, US, MILLI),
        ({"ts_ms": None}, US, MICRO),
        ({"ts": "2022-11-22T20:44:01.5Z"}, US + 500_000, MICRO),
        ({"ts": "2022-11-22T20:44:01.000001Z"}, US + 1, MICRO),
        ({"ts": "2022-11-22T20:44:01.0000019Z"}, US + 1, MICRO),
        ({"ts": "2022-11-22T20:44:01.25+00:00"}, US + 250_000, MICRO),
        ({"ts": 1_669_149_841, "ts_ms": None}, US, SECOND),
        ({"ts": None, "ts_ms": None}, None, NONE),
    ],
)
def test_delta_time_of_every_form(
    changes: dict[str, Any], us: int | None, precision: TsPrecision
) -> None:
    """`ts` is deprecated, `ts_ms` was absent before April 2026, both are optional."""
    event = delta_of(**changes)
    assert (event.exchange_us, event.ts_precision) == (us, precision)


def test_second_time_in_the_same_second_takes_the_remembered_second() -> None:
    """The memo of seconds must give what the parser gives, for every length of the fraction."""
    decoder = wire.Decoder()
    for digits in ("", ".5", ".05", ".005", ".0005", ".00005", ".000005", ".0000055"):
        text = f"2022-11-22T20:44:01{digits}Z"
        event = decoder.decode(frame("orderbook_delta", DELTA | {"ts": text}))
        assert isinstance(event, events.Delta)
        assert event.exchange_us == US + int((digits[1:] or "0").ljust(6, "0")[:6])


@pytest.mark.parametrize(
    "text",
    ["2022-11-22T20:44:01.Z", "2022-11-22T20:44:01.5", "2022-11-22T20:44:01.5X",
     "2022-11-22T20:44:01:5Z", "2022-11-22T20:44:01.1_0Z", "2022-11-22T20:44:01.\u0665Z",
     "2022-11-22T20:44:01.\u00b2Z", "Z"],
)  # fmt: skip
def test_time_near_a_remembered_second_is_still_checked(text: str) -> None:
    """A shortcut that takes what the parser refuses would be a guess."""
    decoder = wire.Decoder()
    decoder.decode(frame("orderbook_delta", DELTA))
    with pytest.raises(OffScale):
        decoder.decode(frame("orderbook_delta", DELTA | {"ts": text}))


@pytest.mark.parametrize(
    ("price", "micros"),
    [("0.96", 960_000), ("0.960", 960_000), ("0.96001", 960_010), ("1", 1_000_000), ("0.0000", 0)],
)
def test_delta_price_with_any_number_of_decimals(price: str, micros: int) -> None:
    """Four decimals are in a table; all others take the checked way."""
    assert delta_of(price_dollars=price).price == micros


def test_delta_of_the_cents_form_and_of_the_transition() -> None:
    """Before March 2026; both forms side by side before that month's end."""
    cents = {"market_ticker": "M", "price": 96, "delta": -54, "side": "no"}
    assert decode(frame("orderbook_delta", cents, sid=2, seq=3)) == events.Delta(
        "M", 1, 960_000, -5_400, None, NONE, 2, 3
    )
    both = cents | {"price_dollars": "0.965", "delta_fp": "-54.25"}
    assert decode(frame("orderbook_delta", both, sid=2, seq=3)) == events.Delta(
        "M", 1, 965_000, -5_425, None, NONE, 2, 3
    )


@pytest.mark.parametrize("field", ["market_ticker", "price_dollars", "delta_fp", "side"])
def test_delta_without_a_required_field_is_refused(field: str) -> None:
    """An absent price is not the price 0."""
    with pytest.raises(MissingField):
        delta_of(**{field: None})


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"side": "maybe"}, MalformedFrame),
        ({"side": 1}, MalformedFrame),
        ({"market_ticker": "A B"}, MalformedFrame),
        ({"market_ticker": ""}, MalformedFrame),
        ({"price_dollars": "1.0001"}, OffScale),
        ({"price_dollars": "-0.01"}, OffScale),
        ({"price_dollars": 0.96}, OffScale),
        ({"delta_fp": "1.005"}, OffScale),
        ({"delta_fp": 1.5}, OffScale),
        ({"ts": "x"}, OffScale),
        ({"ts": None, "ts_ms": -1}, OffScale),
        ({"ts": None, "ts_ms": 2**52}, OffScale),
    ],
)
def test_delta_with_a_value_off_the_scale_is_refused(
    changes: dict[str, Any], error: type[WireError]
) -> None:
    """It is kept raw and counted by reason; the connection lives on."""
    with pytest.raises(error):
        delta_of(**changes)


@pytest.mark.parametrize("bad", [-1, 2**53 + 1, 1.5, "3", True])
def test_envelope_number_that_is_none_is_refused(bad: object) -> None:
    """A sequence number that is not one would look like a gap of any size."""
    for name in ("sid", "seq"):
        with pytest.raises(OffScale):
            decode(frame("orderbook_delta", DELTA, **{name: bad}))


def test_memo_tables_are_bounded_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """INV-23: a full cache is a slow cache, not a wrong one."""
    wanted = [delta_of(delta_fp=f"{n}.00", ts=f"2022-11-22T20:44:{n:02d}Z") for n in range(5)]
    for name in ("MAX_MEMO_SIZES", "MAX_MEMO_SECONDS", "MAX_MEMO_TICKERS"):
        monkeypatch.setattr(typed, name, 0)
    decoder = wire.Decoder()
    for n, event in enumerate(wanted):
        msg = DELTA | {"delta_fp": f"{n}.00", "ts": f"2022-11-22T20:44:{n:02d}Z"}
        assert decoder.decode(frame("orderbook_delta", msg, sid=2, seq=3)) == event


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda raw: raw.decode()])
def test_payload_of_any_kind_is_read_with_a_newline_at_its_end(kind: Any) -> None:
    """The spool gives views; the text of a frame as received may end in a newline."""
    raw = frame("orderbook_delta", DELTA, sid=2, seq=3) + b"\n"
    assert decode(kind(raw)) == delta_of()


# --- snapshots, trades, tickers


def test_snapshot_of_the_current_form_with_one_side_and_with_none() -> None:
    """A side's key is absent when it is empty."""
    msg = {"market_ticker": "M", "market_id": "x", "yes_dollars_fp": [["0.0100", "5.25"]]}
    assert decode(frame("orderbook_snapshot", msg, sid=2, seq=57, id=9)) == events.Snapshot(
        "M", [(10_000, 525)], [], 2, 57, 9
    )
    empty = decode(frame("orderbook_snapshot", {"market_ticker": "M"}, sid=2, seq=4))
    assert empty == events.Snapshot("M", [], [], 2, 4, None)


def test_snapshot_of_renamed_levels_is_refused() -> None:
    """INV-22."""
    with pytest.raises(MissingField):
        decode(frame("orderbook_snapshot", {"market_ticker": "M", "yes_v3": [["0.01", "5.25"]]}))


TRADE = {
    "trade_id": "d91bc706-ee49-470d-82d8-11418bda6fed",
    "market_ticker": "M",
    "yes_price_dollars": "0.3600",
    "no_price_dollars": "0.6400",
    "count_fp": "136.00",
    "taker_side": "no",
    "taker_outcome_side": "no",
    "taker_book_side": "ask",
    "is_block_trade": True,
    "ts": 1_669_149_841,
    "ts_ms": 1_669_149_841_000,
}
TRADE_ID = bytes.fromhex("d91bc706ee49470d82d811418bda6fed")


def test_trade_of_the_current_form() -> None:
    """A block trade has no matching delta."""
    assert decode(frame("trade", TRADE, sid=11, seq=2)) == events.Trade(
        "M", TRADE_ID, 360_000, 640_000, 13_600, 1, True, US, MILLI, 11, 2
    )


def test_trade_of_the_cents_form_has_neither_id_nor_seq() -> None:
    """The oldest recordings."""
    msg = {"market_ticker": "M", "yes_price": 36, "no_price": 64, "count": 136, "ts": 1_669_149_841}
    assert decode(frame("trade", msg, sid=11)) == events.Trade(
        "M", None, 360_000, 640_000, 13_600, events.UNSET, False, US, SECOND, 11, None
    )


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"count_fp": "-1.00"}, OffScale),
        ({"count_fp": None}, MissingField),
        ({"no_price_dollars": None}, MissingField),
        ({"trade_id": "xyz"}, OffScale),
        ({"market_ticker": None}, MissingField),
    ],
)
def test_trade_that_is_not_one_is_refused(changes: dict[str, Any], error: type[WireError]) -> None:
    """As for deltas."""
    with pytest.raises(error):
        decode(frame("trade", TRADE | changes))


TICKER = {
    "market_id": "9b0f6b43-5b68-4f9f-9f02-9a2d1b8ac1a1",
    "market_ticker": "M",
    "price_dollars": "0.4800",
    "yes_bid_dollars": "0.4500",
    "yes_ask_dollars": "0.5300",
    "volume_fp": "33896.00",
    "open_interest_fp": "20422.00",
    "dollar_volume": 16948,
    "dollar_open_interest": 10211,
    "yes_bid_size_fp": "300.00",
    "yes_ask_size_fp": "150.00",
    "last_trade_size_fp": "25.00",
    "ts": 1_669_149_841,
    "ts_ms": 1_669_149_841_000,
    "time": TS,
}


def ticker_of(**changes: Any) -> events.Ticker:
    msg = {k: v for k, v in (TICKER | changes).items() if v is not None}
    event = decode(frame("ticker", msg, sid=11))
    assert isinstance(event, events.Ticker)
    return event


def test_ticker_of_the_current_form() -> None:
    """`time` is the finest of its three times."""
    event = ticker_of()
    assert event.payload_key == ticker_of().payload_key
    assert event == events.Ticker(
        "M", 480_000, 450_000, 530_000, 3_389_600, 2_042_200, 16_948, 10_211, 30_000, 15_000,
        2_500, event.payload_key, US, MICRO, 11, None,
    )  # fmt: skip


def test_ticker_of_older_forms() -> None:
    """Sizes were absent until 2026; a market that never traded had the price ""."""
    event = ticker_of(yes_bid_size_fp=None, yes_ask_size_fp=None, last_trade_size_fp=None)
    assert (event.yes_bid_size, event.yes_ask_size, event.last_trade_size) == (-1, -1, -1)
    assert ticker_of(price_dollars="").price == events.UNSET
    cents = {"market_ticker": "M", "price": 12, "yes_bid": 11, "yes_ask": 12, "volume": 351_970}
    cents |= {
        "open_interest": 1,
        "dollar_volume": 2,
        "dollar_open_interest": 3,
        "ts": 1_669_149_841,
    }
    old = decode(frame("ticker", cents | {"Clock": 6_598_272_994}, sid=1))
    assert isinstance(old, events.Ticker)
    assert (old.price, old.volume, old.exchange_us) == (120_000, 35_197_000, US)


@pytest.mark.parametrize("field", sorted(set(TICKER) - {"market_id", "ts", "ts_ms", "time"}))
def test_ticker_without_a_required_field_is_refused_and_sizes_are_optional(field: str) -> None:
    """What the schema of 3.31 requires, but for the three sizes that came late."""
    if "size" in field:
        assert isinstance(ticker_of(**{field: None}), events.Ticker)
        return
    with pytest.raises(MissingField):
        ticker_of(**{field: None})


def test_payload_key_is_of_all_fields_and_not_of_their_order() -> None:
    """Two gatherers must find the same key; any change of any field must change it."""
    key = ticker_of().payload_key
    backwards = dict(reversed(TICKER.items()))
    other = decode(frame("ticker", backwards, sid=99))
    assert isinstance(other, events.Ticker)
    assert other.payload_key == key
    assert ticker_of(dollar_volume=16_949).payload_key != key
    assert ticker_of(new_field=1).payload_key != key


def test_ticker_of_the_current_form_takes_the_typed_path_and_agrees_with_the_general_one() -> None:
    """INV-21, on the documented example; the property test walks the mixtures."""
    decoder = wire.Decoder()
    for raw in (frame("ticker", TICKER, sid=1), frame("trade", TRADE, sid=1, seq=9)):
        assert decoder.decode(raw) == wire.decode_general(raw)
    assert ticker_of(time="2022-11-22T20:44:01.25Z").exchange_us == US + 250_000
    assert ticker_of(dollar_volume=2**53) != ticker_of()
    with pytest.raises(OffScale):
        ticker_of(dollar_volume=2**53 + 1)


# --- life cycle and replies


def test_lifecycle_messages_keep_their_whole_body() -> None:
    """Their fields change often; nothing of them is lost."""
    msg = {"market_ticker": "M", "event_type": "determined", "result": "yes", "new": [1]}
    assert decode(frame("market_lifecycle_v2", msg, sid=13, seq=7)) == events.MarketLifecycle(
        "M", "determined", False, msg, 13, 7
    )
    combo = decode(frame("multivariate_market_lifecycle", msg, sid=14, seq=1))
    assert isinstance(combo, events.MarketLifecycle)
    assert combo.is_multivariate
    about = {"event_ticker": "E", "fee_type_override": None}
    assert decode(frame("event_fee_update", about, sid=5, seq=9)) == events.EventFeeUpdate(
        "E", about, 5, 9
    )
    assert decode(frame("event_lifecycle", about, sid=5, seq=8)) == events.EventLifecycle(
        "E", about, 5, 8
    )


SUBSCRIBED = events.Subscribed(1, "trade", 4)
LISTED = events.Ok(3, None, None, None, [("trade", 2)])


@pytest.mark.parametrize(
    ("payload", "event"),
    [
        (frame("subscribed", {"channel": "trade", "sid": 4}, id=1), SUBSCRIBED),
        (frame("subscribed", id=1), events.Subscribed(1, None, None)),
        (frame("ok", {"market_tickers": ["A"]}, id=7, sid=1), events.Ok(7, 1, None, ["A"], None)),
        (frame("ok", {}, id=7, sid=1, seq=2), events.Ok(7, 1, 2, None, None)),
        (frame("ok", id=7, sid=1, seq=2), events.Ok(7, 1, 2, None, None)),
        (frame("ok", id=7, sid=1, market_tickers=["A"]), events.Ok(7, 1, None, ["A"], None)),
        (frame("ok", {"market_ids": ["u"]}, id=7, sid=1), events.Ok(7, 1, None, None, None)),
        (frame("ok", [{"channel": "trade", "sid": 2}], id=3), LISTED),
        (frame("ok", [], id=3), events.Ok(3, None, None, None, [])),
        (frame("unsubscribed", id=11, sid=2, seq=7), events.Unsubscribed(11, 2, 7)),
        (frame("error", {"code": 7, "msg": "m"}, id=1), events.Error(7, "m", [], 1, None, None)),
        (frame("error", {"code": 25}, sid=1, seq=501), events.Error(25, "", [], None, 1, 501)),
        (
            frame("error", {"code": 16, "market_ticker": "A", "market_tickers": ["B"]}, id=2),
            events.Error(16, "", ["B", "A"], 2, None, None),
        ),
        (frame("fill", {"any": 1}, sid=13), events.Unknown("fill", 13, None, None)),
        (frame("new_thing", sid=1, seq=42, id=3), events.Unknown("new_thing", 1, 42, 3)),
    ],
)  # fmt: skip
def test_replies_and_unknown_types(payload: bytes, event: events.Decoded) -> None:
    """`ok` has three forms under one type; an unknown type still has its number."""
    assert decode(payload) == event


@pytest.mark.parametrize(
    ("payload", "error"),
    [
        (b"", MalformedFrame),
        (b"{", MalformedFrame),
        (b"\xff", MalformedFrame),
        (b"[]", MalformedFrame),
        (b"null", MalformedFrame),
        (b"{}", MalformedFrame),
        (b'{"type":5}', MalformedFrame),
        (b"[" * 100_000, MalformedFrame),
        (b'{"type":"trade","msg":' + b"[" * 100_000, MalformedFrame),
        (frame("trade"), MissingField),
        (frame("trade", [1]), MalformedFrame),
        (frame("subscribed", {"channel": "trade"}), MissingField),
        (frame("subscribed", {"sid": 1}), MissingField),
        (frame("subscribed", "x"), MalformedFrame),
        (frame("ok", "x"), MalformedFrame),
        (frame("ok", ["trade"]), MalformedFrame),
        (frame("ok", [{"channel": "trade"}]), MissingField),
        (frame("ok", {"market_tickers": "A"}), MalformedFrame),
        (frame("ok", {"market_tickers": [5]}), MalformedFrame),
        (frame("error"), MissingField),
        (frame("error", {"msg": "x"}), MissingField),
        (frame("error", {"code": "7"}), OffScale),
        (frame("market_lifecycle_v2", {"market_ticker": "M"}), MissingField),
        (frame("event_lifecycle", {}), MissingField),
    ],
)
def test_frame_that_is_not_what_it_should_be_is_refused(
    payload: bytes, error: type[WireError]
) -> None:
    """INV-20."""
    with pytest.raises(error):
        decode(payload)


# --- what is left of a refused frame, and what no event carries


def test_envelope_of_a_refused_frame_keeps_its_number() -> None:
    """A frame that is not understood must not look like a lost one."""
    bad = frame("orderbook_delta", DELTA | {"side": "maybe"}, sid=2, seq=3)
    assert wire.envelope(bad) == wire.Envelope("orderbook_delta", 2, 3, None, "FED-23DEC-T3.00")
    assert wire.envelope(b"{") == wire.Envelope(None, None, None, None, None)
    odd = frame("x", {"market_ticker": "A B"}, sid="2", seq=4, id=-1)
    assert wire.envelope(odd) == wire.Envelope("x", None, 4, None, None)
    assert wire.envelope(b'{"type":[],"msg":[]}') == wire.Envelope(None, None, None, None, None)


def test_extras_are_the_fields_no_event_carries() -> None:
    """The specification changes every two weeks: what is new must be findable."""
    raw = frame("ticker", TICKER | {"Clock": 5}, sid=1, shard=2)
    assert wire.extras(raw) == {"msg.Clock": 5, "shard": 2}
    assert wire.extras(frame("orderbook_delta", DELTA, sid=1, seq=2)) == {}
    assert wire.extras(frame("market_lifecycle_v2", {"anything": 1})) == {}
    assert wire.extras(frame("trade", [1])) == {}


# --- commands


def test_commands_are_those_of_the_documented_examples() -> None:
    """Byte for byte where the examples state all we send."""
    assert (
        wire.subscribe(2, ["trade"])
        == b'{"id":2,"cmd":"subscribe","params":{"channels":["trade"]}}'
    )
    assert wire.list_subscriptions(10) == b'{"id":10,"cmd":"list_subscriptions"}'
    assert wire.unsubscribe(11, [1, 2]) == b'{"id":11,"cmd":"unsubscribe","params":{"sids":[1,2]}}'
    assert json.loads(wire.update_subscription(7, 1, "add_markets", ["A", "B"])) == {
        "id": 7,
        "cmd": "update_subscription",
        "params": {"sids": [1], "market_tickers": ["A", "B"], "action": "add_markets"},
    }


def test_subscribe_states_what_has_a_changing_default() -> None:
    """`use_yes_price` is announced to flip: it is always sent where it matters."""
    books = json.loads(wire.subscribe(1, ["orderbook_delta"], ["A"]))["params"]
    assert (books["use_yes_price"], books["skip_ticker_ack"]) == (False, True)
    ticker = json.loads(wire.subscribe(1, ["ticker"], ["A"], send_initial_snapshot=True))["params"]
    assert ticker["send_initial_snapshot"] is True
    assert "use_yes_price" not in ticker


# --- recorded traffic


def test_recorded_frames_all_decode_and_agree_with_an_independent_reader() -> None:
    """Every frame of the small captures: integers against a plain reading of the JSON."""
    checked = 0
    decoder = wire.Decoder()
    for raw in recorded.frames(limit=2):
        event = decoder.decode(raw)
        if not isinstance(event, events.Delta):
            assert not isinstance(event, events.Unknown)
            continue
        msg = orjson.loads(raw)["msg"]
        assert event.market == msg["market_ticker"]
        assert event.side == ("yes", "no").index(msg["side"])
        assert event.price == int(msg["price_dollars"].replace(".", "")) * 100
        assert event.delta == int(msg["delta_fp"].replace(".", ""))
        assert event.exchange_us is not None
        assert event.exchange_us // 1000 == msg["ts_ms"]
        checked += 1
    assert checked > 200
