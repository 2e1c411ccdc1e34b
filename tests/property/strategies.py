"""Generators of valid domain objects, shared by all property tests."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from marketdata import segment
from marketdata.units import MAX_PRICE_MICROS, MAX_SIZE_CENTI

prices = st.integers(0, MAX_PRICE_MICROS)
"""Any price in micro-dollars."""

ticks = st.one_of(
    st.integers(1, 99).map(lambda c: c * 10_000),
    st.integers(1, 999).map(lambda m: m * 1_000),
    st.integers(1, 9_999).map(lambda t: t * 100),
)
"""Prices on the exchange's tick ladders."""

sizes = st.integers(-MAX_SIZE_CENTI, MAX_SIZE_CENTI)
"""Any signed size in 1/100 contract."""

deltas = st.one_of(
    st.sampled_from([100, -100, 40_000, -40_000, 5_000]), st.integers(-(10**9), 10**9)
)
"""Changes of a level, with the exchange's favourites, so that levels meet zero often."""

sides = st.integers(0, 1)

changes = st.lists(
    st.tuples(sides, st.one_of(st.integers(1, 5).map(lambda c: c * 10_000), ticks), deltas)
)
"""Changes of one book as (side, price, delta), on few enough levels that they collide."""

times_us = st.integers(-62_135_596_800_000_000, 253_402_300_799_999_999)
"""Every microsecond of the years 1 to 9999."""

market_times_us = st.integers(1_600_000_000_000_000, 1_900_000_000_000_000)
"""Microseconds in which this exchange could trade."""

tickers = st.from_regex(
    r"KX[A-Z0-9]{1,12}(-[0-9]{2}[A-Z]{3}[0-9]{2})?(-[TB][0-9.]{1,8})?", fullmatch=True
)


def levels(max_size: int = 12) -> st.SearchStrategy[list[tuple[int, int]]]:
    """One side of a book: ascending distinct prices, positive sizes."""
    return st.dictionaries(ticks, st.integers(1, 10**12), max_size=max_size).map(
        lambda side: sorted(side.items())
    )


frame_payloads = st.builds(
    lambda conn, ordinal, base, pairs: segment.encode_frames(
        conn, ordinal, base, [p[0] for p in pairs], [p[1] for p in pairs]
    ),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**63),
    st.integers(0, 2**62),
    st.lists(st.tuples(st.integers(0, segment.MAX_STAMP_NS), st.binary(max_size=40)), max_size=4),
)

records = st.one_of(
    st.tuples(st.just(segment.KIND_FRAMES), frame_payloads),
    st.tuples(st.integers(0, 255), st.binary(max_size=40)),
)
"""(kind, payload) of a spool record."""


def segment_bytes(number: int, parts: Sequence[tuple[int, bytes]]) -> bytes:
    """A segment of these records."""
    encoded = [segment.encode_record(kind, payload) for kind, payload in parts]
    return segment.encode_header(number) + b"".join(encoded)
