"""Many frames at once: all of a kind or none; times as columns."""

from __future__ import annotations

import pytest

from marketdata import burst, hot, units, wire
from marketdata.continuity import Continuity
from marketdata.typed import DeltaFrame, TickerFrame, TradeFrame, Typed
from tests.frame_streams import START_US, FrameStream

CONN = 100
SECOND = "2026-08-07T06:46:28"


def _burst(decoder: wire.Decoder, frames: list[bytes]) -> burst.Burst:
    return burst.Burst([decoder.typed.frame(raw) for raw in frames])  # type: ignore[misc]


def test_all_kinds_are_taken_from_a_usual_stream() -> None:
    first = FrameStream(11)
    continuity, decoder = Continuity(CONN), wire.Decoder()
    hot.absorb_frames(continuity, decoder, CONN, 0, first.opening(), 1)
    hot.absorb_frames(continuity, decoder, CONN, 7, first.frames(1_500), 2)
    continuity.take()
    made = _burst(decoder, first.frames(200))
    life = continuity.life(CONN)
    taken = burst.absorb_burst(continuity, life, decoder.typed, 3, made)
    assert taken == {DeltaFrame, TradeFrame, TickerFrame}
    counts = continuity.rows.counts()
    assert counts == {"orderbook_delta": len(made.deltas), "trade": len(made.trades),
                      "ticker": len(made.tickers)}  # fmt: skip
    assert burst.absorb_burst(continuity, life, decoder.typed, 3, made) == {TickerFrame}


@pytest.mark.parametrize(
    ("odd", "left"),
    [
        ("delta_gap", DeltaFrame), ("delta_new", DeltaFrame), ("delta_price", DeltaFrame),
        ("delta_back", DeltaFrame), ("delta_sid", DeltaFrame), ("trade_gap", TradeFrame),
        ("trade_new", TradeFrame), ("trade_count", TradeFrame), ("ticker_new", TickerFrame),
        ("ticker_size", TickerFrame), ("ticker_sid", TickerFrame),
    ],
)  # fmt: skip
def test_one_odd_frame_leaves_its_kind_alone(odd: str, left: type) -> None:
    """All or nothing, and state and rows stay as they were."""
    make = {
        "delta_gap": lambda s: s.delta(skip=1),
        "delta_new": lambda s: s.delta(market_ticker="NEW"),
        "delta_price": lambda s: s.delta(price_dollars="7"),
        "delta_back": lambda s: s.delta(ts="2026-08-07T06:46:28.000001Z"),
        "delta_sid": lambda s: s.delta(sid=8),
        "trade_gap": lambda s: s.trade(skip=1),
        "trade_new": lambda s: s.trade(market_ticker="NEW"),
        "trade_count": lambda s: s.trade(count_fp="-3.00"),
        "ticker_new": lambda s: s.ticker(market_ticker="NEW"),
        "ticker_size": lambda s: s.ticker(volume_fp="many"),
        "ticker_sid": lambda s: s.ticker(sid=None),
    }[odd]
    stream = FrameStream(11)
    continuity, decoder = Continuity(CONN), wire.Decoder()
    hot.absorb_frames(continuity, decoder, CONN, 0, stream.opening(), 1)
    hot.absorb_frames(continuity, decoder, CONN, 7, stream.frames(1_500), 2)
    made = _burst(decoder, [*stream.frames(60), make(stream), *stream.frames(20)])
    before = continuity.export()
    taken = burst.absorb_burst(continuity, continuity.life(CONN), decoder.typed, 3, made)
    assert taken == {DeltaFrame, TradeFrame, TickerFrame} - {left}
    if left is DeltaFrame:
        chains = [life[1]["scopes"][0]["chains"] for life in before["lives"]]
        after = [life[1]["scopes"][0]["chains"] for life in continuity.export()["lives"]]
        assert chains == after


def test_a_change_without_time_leaves_everything_alone() -> None:
    """It takes the latest time of any channel: later frames must not have moved that."""
    stream = FrameStream(11)
    continuity, decoder = Continuity(CONN), wire.Decoder()
    hot.absorb_frames(continuity, decoder, CONN, 0, stream.opening(), 1)
    hot.absorb_frames(continuity, decoder, CONN, 7, stream.frames(1_500), 2)
    made = _burst(decoder, [stream.delta(ts=""), *stream.frames(60)])
    life = continuity.life(CONN)
    assert burst.absorb_burst(continuity, life, decoder.typed, 3, made) == frozenset()


def test_a_floating_book_is_left_to_the_long_way() -> None:
    stream = FrameStream(11)
    continuity, decoder = Continuity(CONN), wire.Decoder()
    hot.absorb_frames(continuity, decoder, CONN, 0, stream.opening(), 1)
    hot.absorb_frames(continuity, decoder, CONN, 7, stream.frames(1_500), 2)
    continuity.life(CONN).scopes[1].chains["KXTEST-0"].anchored = False
    made = _burst(decoder, stream.frames(80))
    life = continuity.life(CONN)
    assert DeltaFrame not in burst.absorb_burst(continuity, life, decoder.typed, 3, made)


def test_times_as_columns_are_those_read_one_by_one() -> None:
    texts = [
        units.format_ts_us(START_US + us)
        for us in (0, 1, 10, 999_999, 1_000_000, 1_200_000, 999_000, 86_400_000_000)
    ]
    one_us = Typed().ts_us
    assert burst.times_us(texts, one_us).tolist() == [units.parse_ts_us(text) for text in texts]


@pytest.mark.parametrize(
    "text",
    [f"{SECOND}.1+00:00", f"{SECOND}.12345xZ", f"{SECOND}.123456x", f"{SECOND}.12345\u0663Z",
     f"{SECOND}.1234567Z", "Z", ""],
)  # fmt: skip
def test_a_time_of_another_form_is_not_read_as_a_column(text: str) -> None:
    with pytest.raises(burst.NotTogether):
        burst.times_us([f"{SECOND}.123456Z", text], Typed().ts_us)


def test_times_of_several_markets_may_cross_but_none_goes_back() -> None:
    """The exchange orders the events of one market, not those of two."""
    stream = FrameStream(11, markets=2)
    continuity, decoder = Continuity(CONN), wire.Decoder()
    hot.absorb_frames(continuity, decoder, CONN, 0, stream.opening(), 1)
    hot.absorb_frames(continuity, decoder, CONN, 5, stream.frames(1_500), 2)
    late, early = (units.format_ts_us(stream.us + us) for us in (50, 20))
    pairs = [stream.delta(market_ticker="KXTEST-0", ts=late)]
    pairs += [stream.delta(market_ticker="KXTEST-1", ts=early) for _ in range(60)]
    life = continuity.life(CONN)
    made = _burst(decoder, pairs)
    assert DeltaFrame in burst.absorb_burst(continuity, life, decoder.typed, 3, made)
