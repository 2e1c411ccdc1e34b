"""Every number of the tape passes through these parsers: a wrong digit here is wrong everywhere."""

from __future__ import annotations

import pytest

from marketdata import units
from marketdata.errors import OffScale


@pytest.mark.parametrize(
    ("text", "micros"),
    [
        ("0", 0),
        ("1", 1_000_000),
        ("0.96", 960_000),
        ("0.960", 960_000),
        ("0.9600", 960_000),
        ("1.0000", 1_000_000),
        ("0.5", 500_000),
        ("0.57", 570_000),
        ("0.0001", 100),
        ("0.000001", 1),
        ("0.999999", 999_999),
        ("1.000000", 1_000_000),
    ],
)
def test_price_of_every_documented_form_is_exact(text: str, micros: int) -> None:
    """The wire prints two to six decimals; "0.57" is the price a truncated float gets wrong."""
    assert units.parse_price_micros(text) == micros


@pytest.mark.parametrize(
    "text",
    ["", ".", "0.", ".5", "-0.5", "+0.5", " 0.5", "0.5 ", "0.5\n", "5e-1", "0,5", "00.5", "2",
     "1.0001", "1.000001", "0.0000001", "0.9600000", "nan", "0x1", "\u0660.\u0665", "0_1"],
)  # fmt: skip
def test_price_of_any_other_form_is_refused(text: str) -> None:
    """A price that is not understood stays raw; it is never guessed."""
    with pytest.raises(OffScale, match="price"):
        units.parse_price_micros(text)


@pytest.mark.parametrize(
    ("text", "centi"),
    [
        ("12", 1200),
        ("12.5", 1250),
        ("-54.00", -5400),
        ("0.00", 0),
        ("-0.00", 0),
        ("-0.01", -1),
        ("12.50000", 1250),
        ("1723201.18", 172_320_118),
        ("10000000000000.00", units.MAX_SIZE_CENTI),
    ],
)
def test_size_with_at_most_two_significant_decimals_is_exact(text: str, centi: int) -> None:
    """Sizes are fractional in real data: 13 % of the deltas are not whole contracts."""
    assert units.parse_size_centi(text) == centi


@pytest.mark.parametrize(
    "text",
    ["", "-", "--1", "+1", "1.", ".5", "1.005", "1.0050", "12.500000000000000", " 1", "1 ", "1\n",
     "1e2", "1_000", "1,000", "\u0661", "10000000000000.01", "99999999999999999"],
)  # fmt: skip
def test_size_finer_than_a_hundredth_or_malformed_is_refused(text: str) -> None:
    """Cutting digits off a size would make books differ by what was cut."""
    with pytest.raises(OffScale, match="size"):
        units.parse_size_centi(text)


def test_cents_and_contracts_of_the_old_form_convert_within_their_range() -> None:
    """Recordings from before March 2026 carry integers only."""
    assert [units.cents_to_micros(c) for c in (0, 57, 100)] == [0, 570_000, 1_000_000]
    assert [units.contracts_to_centi(n) for n in (0, 136, -54)] == [0, 13_600, -5_400]
    for cents in (-1, 101):
        with pytest.raises(OffScale, match="cents"):
            units.cents_to_micros(cents)
    for contracts in (10**13 + 1, -(10**13) - 1):
        with pytest.raises(OffScale, match="contracts"):
            units.contracts_to_centi(contracts)


@pytest.mark.parametrize(
    ("text", "us"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("2022-11-22T20:44:01Z", 1_669_149_841_000_000),
        ("2022-11-22T20:44:01.5Z", 1_669_149_841_500_000),
        ("2026-08-07T06:46:28.97871Z", 1_786_085_188_978_710),
        ("2026-08-07T06:46:29.069549Z", 1_786_085_189_069_549),
        ("2026-08-07T06:46:29.069549+00:00", 1_786_085_189_069_549),
        ("2026-08-07T06:46:29.0695499Z", 1_786_085_189_069_549),
        ("2026-08-07T06:46:29.069549999Z", 1_786_085_189_069_549),
        ("1969-12-31T23:59:59.999999Z", -1),
        ("2024-02-29T23:59:59Z", 1_709_251_199_000_000),
    ],
)
def test_time_with_any_number_of_fraction_digits_is_cut_to_microseconds(text: str, us: int) -> None:
    """The exchange cuts trailing zeros: a fixed format fails once in ten frames."""
    assert units.parse_ts_us(text) == us


@pytest.mark.parametrize(
    "text",
    ["", "2026-08-07", "2026-08-07 06:46:29Z", "2026-08-07T06:46:29", "2026-08-07T06:46:29+02:00",
     "2026-08-07T06:46:29.Z", "2026-08-07T06:46:29.1234567890Z", "2026-08-07T24:00:00Z",
     "2026-08-07T06:60:00Z", "2026-08-07T06:46:60Z", "2026-02-29T06:46:29Z", "2026-13-01T06:46:29Z",
     "0000-01-01T00:00:00Z", "2026-08-07T06:46:29Z\n", "\uff12026-08-07T06:46:29Z"],
)  # fmt: skip
def test_time_of_another_zone_or_form_is_refused(text: str) -> None:
    """A local time read as UTC would order events wrongly by hours."""
    with pytest.raises(OffScale, match="time"):
        units.parse_ts_us(text)


def test_unset_time_of_the_exchange_is_none_and_not_the_year_one() -> None:
    """REST bodies print 0001-01-01 for a time that was never set."""
    assert units.parse_time_or_unset("0001-01-01T00:00:00Z") is None
    assert units.parse_time_or_unset("1970-01-01T00:00:01Z") == 1_000_000


def test_integer_times_convert_within_the_years_a_text_can_name() -> None:
    """`ts_ms` and `ts` in seconds are other spellings of the same time."""
    assert units.ms_to_us(1_669_149_841_500) == 1_669_149_841_500_000
    assert units.seconds_to_us(1_669_149_841) == 1_669_149_841_000_000
    for ms in (-1, 253_402_300_800_000):
        with pytest.raises(OffScale, match="ms"):
            units.ms_to_us(ms)
    for seconds in (-1, 253_402_300_800):
        with pytest.raises(OffScale, match=" s "):
            units.seconds_to_us(seconds)


def test_formats_are_those_of_the_wire() -> None:
    """The simulated exchange prints with these; what it prints must look like the exchange's."""
    assert units.format_price(960_000) == "0.9600"
    assert units.format_price(1_000_000) == "1.0000"
    assert units.format_price(1) == "0.000001"
    assert units.format_price(123_450) == "0.12345"
    assert units.format_size(-5_400) == "-54.00"
    assert units.format_size(-1) == "-0.01"
    assert units.format_size(172_320_118) == "1723201.18"
    assert units.format_ts_us(1_786_085_188_978_710) == "2026-08-07T06:46:28.97871Z"
    assert units.format_ts_us(1_669_149_841_000_000) == "2022-11-22T20:44:01Z"
    assert units.format_ts_us(1_669_149_841_500_000) == "2022-11-22T20:44:01.5Z"
    assert units.format_ts_us(1_669_149_840_000_000) == "2022-11-22T20:44:00Z"
