"""Single fields: which spelling of a price, size, time or side is meant, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from marketdata import fields
from marketdata.errors import MalformedFrame, MissingField, OffScale
from marketdata.events import UNSET, TsPrecision


def test_absent_and_null_required_fields_are_missing() -> None:
    """An absent value is never 0."""
    for msg in ({}, {"a": None}):
        with pytest.raises(MissingField, match="'a'"):
            fields.require(msg, "a")
        with pytest.raises(MissingField):
            fields.text(msg, "a")
        with pytest.raises(MissingField):
            fields.price(msg, "a")
        with pytest.raises(MissingField):
            fields.size(msg, "a")
    assert fields.require({"a": 0}, "a") == 0


def test_texts_are_texts() -> None:
    """A number where a text should be is not converted."""
    assert fields.text({"a": "x"}, "a") == "x"
    assert fields.text_or({}, "a", "none") == "none"
    assert fields.text_or({"a": "x"}, "a") == "x"
    for read in (fields.text, fields.text_or):
        with pytest.raises(MalformedFrame, match="not a text"):
            read({"a": 1}, "a")


@pytest.mark.parametrize("value", [True, "1", 1.0, None, [], 2**53 + 1, -(2**53) - 1])
def test_integer_takes_nothing_but_integers_in_range(value: object) -> None:
    """`true` is 1 in Python and must not be one here."""
    with pytest.raises(OffScale, match="not an integer"):
        fields.integer(value, "a")


def test_numbers_of_the_envelope_are_not_negative() -> None:
    """sid, seq and id count from 0 or 1."""
    assert fields.number_or_none({"seq": 5}, "seq") == 5
    assert fields.number_or_none({"seq": None}, "seq") is None
    assert fields.number_or_none({}, "seq") is None
    with pytest.raises(OffScale, match="below zero"):
        fields.number_or_none({"seq": -1}, "seq")


@pytest.mark.parametrize("value", ["", "A B", "A\x00", "A\n", "Ä", "A" * 257, 5, ["A"]])
def test_ticker_that_no_database_should_see_is_refused(value: object) -> None:
    """A NUL in a text stops every later COPY; better to keep the frame raw and say so."""
    with pytest.raises(MalformedFrame, match="not a ticker"):
        fields.ticker(value)


def test_ticker_of_real_forms_is_taken() -> None:
    """Real ones have dots and up to about 60 characters; the documented limit is 200."""
    for value in ("FED-23DEC-T3.00", "KXBTCD-26FEB1217-T72749.99", "A" * 256):
        assert fields.ticker(value) == value
    with pytest.raises(MissingField, match="'event_ticker'"):
        fields.ticker(None, "event_ticker")


def test_price_prefers_dollars_to_cents() -> None:
    """In the transitional form both stand side by side; the finer one is meant."""
    assert fields.price({"p_dollars": "0.965", "p": 97}, "p") == 965_000
    assert fields.price({"p": 97}, "p") == 970_000
    assert fields.price({"p_dollars": None, "p": 97}, "p") == 970_000


def test_price_of_a_market_that_never_traded_is_unset_only_where_allowed() -> None:
    """`price_dollars` was seen as ""."""
    assert fields.price({"p_dollars": ""}, "p", unset_allowed=True) == UNSET
    with pytest.raises(OffScale):
        fields.price({"p_dollars": ""}, "p")
    with pytest.raises(OffScale, match="not a text"):
        fields.price({"p_dollars": 0.96}, "p")


def test_size_prefers_fixed_point_to_contracts() -> None:
    """Integer counts cannot hold fractions."""
    assert fields.size({"n_fp": "12.35", "n": 12}, "n") == 1_235
    assert fields.size({"n": 12}, "n") == 1_200
    assert fields.size_or_unset({}, "n") == UNSET
    assert fields.size_or_unset({"n": 3}, "n") == 300
    assert fields.size_or_unset({"n_fp": "0.00"}, "n") == 0
    with pytest.raises(OffScale):
        fields.size({"n_fp": 12.35}, "n")


@pytest.mark.parametrize(
    ("msg", "us", "precision"),
    [
        ({"ts": "2022-11-22T20:44:01.5Z", "ts_ms": 9}, 1_669_149_841_500_000, TsPrecision.MICRO),
        ({"time": "2022-11-22T20:44:01Z", "ts": 9}, 1_669_149_841_000_000, TsPrecision.MICRO),
        ({"created_time": "2022-11-22T20:44:01Z"}, 1_669_149_841_000_000, TsPrecision.MICRO),
        ({"ts": 9, "ts_ms": 1_669_149_841_500}, 1_669_149_841_500_000, TsPrecision.MILLI),
        ({"ts": 1_669_149_841}, 1_669_149_841_000_000, TsPrecision.SECOND),
        ({"ts": "", "ts_ms": None}, None, TsPrecision.NONE),
        ({}, None, TsPrecision.NONE),
    ],
)  # fmt: skip
def test_time_is_the_finest_that_is_there(
    msg: dict[str, Any], us: int | None, precision: TsPrecision
) -> None:
    """`ts` is a text in deltas and an integer in trades; `ts_ms` may be absent or alone."""
    assert fields.exchange_time(msg) == (us, precision)


def test_time_that_cannot_be_read_is_refused() -> None:
    """A wrong time orders events wrongly."""
    for msg in ({"ts": "yesterday"}, {"ts": 1.5}, {"ts_ms": "9"}, {"ts": -1}):
        with pytest.raises(OffScale):
            fields.exchange_time(msg)


def test_optional_time_is_none_where_absent_empty_or_never_set() -> None:
    """REST prints the year 1 for "never"."""
    assert fields.time_or_none({}, "t") is None
    assert fields.time_or_none({"t": ""}, "t") is None
    assert fields.time_or_none({"t": "0001-01-01T00:00:00Z"}, "t") is None
    assert fields.time_or_none({"t": "1970-01-01T00:00:01Z"}, "t") == 1_000_000


@pytest.mark.parametrize(
    ("msg", "side"),
    [
        ({"taker_outcome_side": "yes", "taker_side": "no"}, 0),
        ({"taker_book_side": "bid"}, 0),
        ({"taker_book_side": "ask"}, 1),
        ({"taker_side": "no"}, 1),
        ({"taker_side": "unknown"}, UNSET),
        ({"taker_side": None}, UNSET),
        ({}, UNSET),
    ],
)
def test_taker_side_is_read_from_whatever_tells_it(msg: dict[str, Any], side: int) -> None:
    """The deprecated field may vanish any day."""
    assert fields.taker_side(msg) == side


def test_trade_id_is_any_128_bits() -> None:
    """It is printed as a UUID and is none: version and variant bits are arbitrary."""
    text = "961535f3-d80f-5462-e91d-88d4fe6db285"
    assert fields.trade_id_or_none({"trade_id": text}) == bytes.fromhex(text.replace("-", ""))
    assert fields.trade_id_or_none({"trade_id": "F" * 32}) == b"\xff" * 16
    assert fields.trade_id_or_none({"trade_id": ""}) is None
    assert fields.trade_id_or_none({}) is None
    for bad in ("961535f3", text + "0", text[:-1] + "g", text.replace("-", "", 1), text + "\n"):
        with pytest.raises(OffScale, match="128 bits"):
            fields.trade_id_or_none({"trade_id": bad})


def test_levels_of_every_form_are_the_same_book() -> None:
    """Cents, both side by side, fixed-point; a side's key is absent when the side is empty."""
    yes = [(80_000, 30_000), (220_000, 33_300)]
    for msg in (
        {"yes": [[8, 300], [22, 333]]},
        {"yes": [[8, 300], [22, 333]], "yes_dollars": [["0.0800", 300], ["0.2200", 333]]},
        {"yes_dollars": [["0.22", 333], ["0.08", 300]], "no": None},
        {"yes_dollars_fp": [["0.0800", "300.00"], ["0.2200", "333.00"]], "yes": [[1, 1]]},
        {"yes_dollars_fp": [["0.08", "300"], ["0.22", "333.0"], ["0.5", "0.00"]], "no": []},
    ):
        assert fields.levels(msg) == (yes, [])
    assert fields.levels({}) == ([], [])
    assert fields.levels({"no": [[54, 20]]}) == ([], [(540_000, 2_000)])


def test_levels_under_an_unknown_key_are_not_an_empty_book() -> None:
    """A renamed key once left a collector's books empty for months without an error."""
    with pytest.raises(MissingField, match="yes_levels"):
        fields.levels({"yes_levels": [["0.08", "300.00"]]})
    with pytest.raises(MissingField, match="no_v2"):
        fields.levels({"yes_dollars_fp": [["0.08", "300.00"]], "no_v2": [["0.5", "1.00"]]})
    assert fields.levels({"market_ticker": "A", "tags": []}) == ([], [])


@pytest.mark.parametrize(
    ("msg", "error"),
    [
        ({"yes": "none"}, MalformedFrame),
        ({"yes": [8, 300]}, MalformedFrame),
        ({"yes": [[8]]}, MalformedFrame),
        ({"yes": [[8, 300, 1]]}, MalformedFrame),
        ({"yes": [["0.08", 300]]}, OffScale),
        ({"yes_dollars": [[8, 300]]}, OffScale),
        ({"yes_dollars_fp": [["0.08", "-1.00"]]}, OffScale),
        ({"yes_dollars_fp": [["0.08", "1.00"], ["0.0800", "2.00"]]}, OffScale),
        ({"yes_dollars_fp": [["0.08", 1.5]]}, OffScale),
    ],
)
def test_levels_that_make_no_book_are_refused(msg: dict[str, Any], error: type[Exception]) -> None:
    """A snapshot is what everything after it is checked against."""
    with pytest.raises(error):
        fields.levels(msg)
