"""Decoding over any bytes and any mixture of field forms."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from marketdata import events, fields, units, wire
from marketdata.errors import WireError
from tests.property import strategies as gen

DECODER = wire.Decoder()
"""Shared by all examples on purpose: its memo tables must change nothing (INV-23)."""

odd = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.lists(st.integers(0, 9), max_size=2),
)


def either(good: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Mostly good, sometimes anything."""
    return st.one_of(good, good, good, good, good, odd)


delta_msgs = st.fixed_dictionaries(
    {
        "market_ticker": either(gen.tickers),
        "price_dollars": either(gen.prices.map(units.format_price)),
        "delta_fp": either(gen.sizes.map(units.format_size)),
        "side": either(st.sampled_from(["yes", "no"])),
    },
    optional={
        "ts": either(gen.times_us.map(units.format_ts_us)),
        "ts_ms": either(st.integers(0, 2**45)),
        "market_id": odd,
        "price": either(st.integers(0, 100)),
        "client_order_id": odd,
    },
)
price_texts = either(gen.prices.map(units.format_price))
size_texts = either(gen.sizes.map(units.format_size))
trade_msgs = st.fixed_dictionaries(
    {
        "market_ticker": either(gen.tickers),
        "trade_id": either(st.uuids().map(str)),
        "yes_price_dollars": price_texts,
        "no_price_dollars": price_texts,
        "count_fp": either(st.integers(0, 10**9).map(units.format_size)),
        "taker_outcome_side": either(st.sampled_from(["yes", "no"])),
        "ts_ms": either(st.integers(0, 2**45)),
    },
    optional={
        "ts": either(st.integers(0, 2**31)),
        "is_block_trade": either(st.booleans()),
        "taker_side": either(st.sampled_from(["yes", "no"])),
        "time": either(gen.times_us.map(units.format_ts_us)),
        "count": odd,
    },
)
ticker_msgs = st.fixed_dictionaries(
    {
        "market_ticker": either(gen.tickers),
        "price_dollars": st.one_of(price_texts, st.just("")),
        "yes_bid_dollars": st.one_of(price_texts, st.just("")),
        "yes_ask_dollars": st.one_of(price_texts, st.just("")),
        "volume_fp": size_texts,
        "open_interest_fp": size_texts,
        "dollar_volume": either(st.integers(0, 10**9)),
        "dollar_open_interest": either(st.integers(0, 10**9)),
        "time": either(gen.times_us.map(units.format_ts_us)),
    },
    optional={
        "yes_bid_size_fp": size_texts,
        "yes_ask_size_fp": size_texts,
        "last_trade_size_fp": size_texts,
        "ts": either(st.integers(0, 2**31)),
        "ts_ms": either(st.integers(0, 2**45)),
        "Clock": odd,
    },
)
envelopes = st.fixed_dictionaries(
    {},
    optional={"sid": either(st.integers(0, 9)), "seq": either(st.integers(0, 2**40)), "id": odd},
)


def outcome(decode: Any, payload: bytes) -> events.Decoded | type[WireError]:
    """The event, or that it was refused (which of two faults is named first may differ)."""
    try:
        event: events.Decoded = decode(payload)
    except WireError:
        return WireError
    return event


kinds = st.sampled_from(
    [("orderbook_delta", delta_msgs), ("trade", trade_msgs), ("ticker", ticker_msgs)]
)


@given(kinds, envelopes, st.booleans(), st.data())
def test_typed_and_general_path_give_the_same_event(
    kind: tuple[str, st.SearchStrategy[dict[str, Any]]],
    envelope: dict[str, Any],
    is_type_last: bool,
    data: st.DataObject,
) -> None:
    """INV-21: a shortcut that reads a frame otherwise would make one gatherer's rows differ."""
    body = {"type": kind[0], **envelope, "msg": data.draw(kind[1])}
    if is_type_last:
        body = dict(reversed(body.items()))
    payload = json.dumps(body).encode()
    typed = outcome(DECODER.decode, payload)
    general = outcome(wire.decode_general, payload)
    if "id" in body and general is WireError:
        return  # data frames have no id: the typed path does not look at it
    assert typed == general


@given(gen.tickers, gen.sides, gen.prices, gen.sizes, gen.market_times_us, st.integers(1, 2**40))
def test_delta_as_the_exchange_prints_it_reads_back_exactly(
    market: str, side: int, price: int, delta: int, us: int, seq: int
) -> None:
    """The simulated exchange prints with units; the recorder must read the same numbers."""
    msg = {
        "market_ticker": market,
        "price_dollars": units.format_price(price),
        "delta_fp": units.format_size(delta),
        "side": ("yes", "no")[side],
        "ts": units.format_ts_us(us),
    }
    body = {"type": "orderbook_delta", "sid": 1, "seq": seq, "msg": msg}
    assert DECODER.decode(json.dumps(body)) == events.Delta(
        market, side, price, delta, us, events.TsPrecision.MICRO, 1, seq
    )


@given(gen.tickers, gen.levels(), gen.levels())
def test_snapshot_reads_back_exactly(
    market: str, yes: list[tuple[int, int]], no: list[tuple[int, int]]
) -> None:
    """Absent sides included."""
    msg: dict[str, Any] = {"market_ticker": market}
    for name, side in (("yes_dollars_fp", yes), ("no_dollars_fp", no)):
        if side:
            msg[name] = [[units.format_price(p), units.format_size(s)] for p, s in reversed(side)]
    body = {"type": "orderbook_snapshot", "sid": 1, "seq": 1, "msg": msg}
    assert DECODER.decode(json.dumps(body)) == events.Snapshot(market, yes, no, 1, 1, None)


level_pairs = st.lists(
    st.one_of(
        st.tuples(gen.ticks.map(units.format_price), st.integers(1, 10**6).map(units.format_size)),
        st.tuples(
            st.one_of(st.sampled_from(["0.5", "0.50", "0.5000", "1.0001", "x"]), odd),
            st.one_of(st.sampled_from(["1.00", "0.00", ".50", "-1.00", "1.0", "1.005"]), odd),
        ),
    ).map(list),
    max_size=5,
)


def typed_frame(payload: bytes) -> Any:
    """The frame as the short way reads it; None where it does not."""
    try:
        return DECODER.typed.frame(payload)
    except (ValueError, RecursionError):
        return None


@given(level_pairs, st.booleans())
def test_levels_of_the_usual_form_are_read_as_any_levels_are(
    pairs: list[list[Any]], is_sorted: bool
) -> None:
    """INV-21 for snapshots: the short way takes nothing that the long way reads otherwise."""
    if is_sorted:
        pairs.sort(key=lambda pair: str(pair[0]))
    body = {"type": "orderbook_snapshot", "msg": {"market_ticker": "M", "yes_dollars_fp": pairs}}
    frame = typed_frame(json.dumps(body).encode())
    event = None if frame is None else outcome(lambda _: DECODER.typed.event(frame), b"")
    usual = event.yes if isinstance(event, events.Snapshot) else None
    try:
        expected = fields._any_levels(pairs, "yes_dollars_fp", is_cents=False)
    except WireError:
        assert usual is None
    else:
        assert usual is None or usual == expected


TYPES = [*wire._MESSAGES, *wire._REPLIES, "fill"]
json_values = st.recursive(
    odd,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
)


@given(
    st.one_of(
        st.binary(max_size=60),
        json_values.map(lambda v: json.dumps(v).encode()),
        st.fixed_dictionaries(
            {"type": st.sampled_from(TYPES), "msg": json_values},
            optional={"sid": odd, "seq": odd, "id": odd, "market_tickers": odd},
        ).map(lambda v: json.dumps(v).encode()),
    )
)
def test_any_bytes_give_an_event_or_a_wire_error(payload: bytes) -> None:
    """INV-20: a connection must not die of one frame. The lenient readers never fail at all."""
    with contextlib.suppress(WireError):
        DECODER.decode(payload)
    envelope = wire.envelope(payload)
    assert envelope.seq is None or envelope.seq >= 0
    with contextlib.suppress(WireError):
        wire.extras(payload)


@given(delta_msgs, st.data())
def test_any_changed_byte_of_a_frame_gives_an_event_or_a_wire_error(
    msg: dict[str, Any], data: st.DataObject
) -> None:
    """The socket's checksum is weak; what comes through damaged is kept and counted."""
    raw = bytearray(
        json.dumps({"type": "orderbook_delta", "sid": 1, "seq": 2, "msg": msg}).encode()
    )
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(WireError):
        DECODER.decode(bytes(raw))
