"""Units over their whole range: what is printed is read back, no form is misread."""

from __future__ import annotations

from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from marketdata import units
from marketdata.errors import OffScale
from tests.property import strategies as gen


@given(gen.prices)
def test_price_survives_print_and_parse(micros: int) -> None:
    """The identity that lets a recording be replayed from the database."""
    assert units.parse_price_micros(units.format_price(micros)) == micros


@given(gen.sizes)
def test_size_survives_print_and_parse(centi: int) -> None:
    """As for prices."""
    assert units.parse_size_centi(units.format_size(centi)) == centi


@given(gen.times_us)
def test_time_survives_print_and_parse(us: int) -> None:
    """Trailing zeros are cut by the print; the value must not change."""
    text = units.format_ts_us(us)
    assert units.parse_ts_us(text) == us
    assert not text.endswith("0Z") or "." not in text


@given(st.text(alphabet="0123456789.-+eE _", max_size=20))
def test_any_text_is_read_as_its_exact_decimal_or_refused(text: str) -> None:
    """An independent reader (decimal) must agree with every value that is accepted."""
    for parse, scale in (
        (units.parse_price_micros, units.PRICE_SCALE),
        (units.parse_size_centi, units.SIZE_SCALE),
    ):
        try:
            value = parse(text)
        except OffScale:
            continue
        assert Decimal(text) * scale == value
