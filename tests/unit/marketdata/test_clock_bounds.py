"""marketdata.clock_bounds: what whole seconds prove, over many answers, drift, caches and steps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketdata.clock_bounds import (
    CONTRADICTIONS_MAX,
    DATE_STALE_NS,
    DRIFT_PPM,
    Bounds,
    KernelClock,
    OffsetBounds,
    Steps,
    trouble,
)

S = 1_000_000_000
MS = 1_000_000
T0 = 1_786_085_188 * S


def answer(held: OffsetBounds, exchange_ns: int, ours_ns: int, way_ns: int = 20 * MS) -> None:
    """An answer whose Date was written at `exchange_ns`, `ours_ns` by our clock."""
    held.answered(exchange_ns // S, ours_ns - way_ns, ours_ns + way_ns)


def test_one_answer_bounds_to_a_second_and_its_way() -> None:
    held = OffsetBounds()
    assert held.bounds(5) is None
    answer(held, T0 + 300 * MS, 5 * S)
    found = held.bounds(5 * S + 20 * MS)
    assert found is not None
    assert found.low_ns == 5 * S - 20 * MS - T0 - S - DATE_STALE_NS - 1
    assert found.high_ns == 5 * S + 20 * MS - T0 + 1


@given(
    st.integers(-10 * S, 10**9 * S),
    st.integers(-DRIFT_PPM + 1, DRIFT_PPM - 1),
    st.lists(
        st.tuples(
            st.integers(0, 600 * S),  # since the answer before
            st.integers(0, 5 * S),  # way there
            st.integers(0, 5 * S),  # way back
            st.integers(0, DATE_STALE_NS - 1),
        ),
        max_size=40,
    ),
)
def test_the_true_difference_is_within_the_bounds(
    offset_ns: int, drift_ppm: int, answers: list[tuple[int, int, int, int]]
) -> None:
    """INV-76: whatever the ways, the pauses and a drift within what is allowed."""
    held, exchange_ns = OffsetBounds(), T0

    def ours(at_ns: int) -> int:
        return at_ns + offset_ns + (at_ns - T0) * drift_ppm // 1_000_000

    for pause_ns, there_ns, back_ns, stale_ns in answers:
        exchange_ns += pause_ns + there_ns
        written_s = (exchange_ns - stale_ns) // S
        held.answered(written_s, ours(exchange_ns - there_ns), ours(exchange_ns + back_ns))
        exchange_ns += back_ns
        found = held.bounds(ours(exchange_ns))
        assert found is not None
        assert found.low_ns <= ours(exchange_ns) - exchange_ns <= found.high_ns
    assert held.contradictions == 0


def test_many_answers_at_all_phases_of_the_second_are_narrow() -> None:
    held = OffsetBounds()
    for n in range(200):
        at = n * 1_370 * MS
        answer(held, T0 + at, 7 * S + at)
    found = held.bounds(7 * S + 200 * 1_370 * MS)
    assert found is not None
    assert found.high_ns - found.low_ns < 250 * MS
    assert found.low_ns < 7 * S - T0 < found.high_ns
    assert found.answers == 200


def test_an_old_date_out_of_a_cache_is_counted_and_left_out() -> None:
    held = OffsetBounds()
    for n in range(50):
        answer(held, T0 + n * 970 * MS, n * 970 * MS)
    before = held.bounds(50 * S)
    held.answered(T0 // S - 30, 50 * S, 50 * S + 1)
    assert held.contradictions == 1
    assert held.bounds(50 * S) == before


def test_contradictions_in_a_row_begin_anew() -> None:
    """It is the bounds that are wrong then: the exchange set its clock."""
    held = OffsetBounds()
    for n in range(50):
        answer(held, T0 + n * 970 * MS, n * 970 * MS)
    for n in range(CONTRADICTIONS_MAX):
        answer(held, T0 + 3600 * S + n * S, 60 * S + n * S)
    found = held.bounds(63 * S)
    assert found is not None
    assert (found.answers, held.contradictions) == (1, CONTRADICTIONS_MAX)
    assert found.low_ns < 60 * S - T0 - 3600 * S < found.high_ns


def test_bounds_loosen_with_time() -> None:
    held = OffsetBounds()
    answer(held, T0, 0)
    soon, later = held.bounds(20 * MS), held.bounds(20 * MS + 3600 * S)
    assert soon is not None
    assert later is not None
    assert later.high_ns - soon.high_ns == 3600 * S * DRIFT_PPM // 1_000_000


def test_a_step_of_the_wall_clock_shows_at_once_and_moves_only_its_own_bounds() -> None:
    held, steps = OffsetBounds(), Steps()
    for n in range(50):
        answer(held, T0 + n * 970 * MS, n * 970 * MS)
    assert steps.look(T0, 0) == 0
    assert steps.look(T0 + 60 * S, 60 * S) == 0
    assert steps.look(T0 + 3720 * S, 120 * S) == 3600 * S
    assert steps.look(T0 + 3780 * S, 180 * S) == 0
    found = held.bounds(180 * S)
    assert found is not None
    wall = found.shifted(T0 + 3600 * S)
    assert wall.low_ns < 3600 * S < wall.high_ns
    assert held.contradictions == 0


@pytest.mark.parametrize(
    ("bounds", "kernel", "limit_ns", "told"),
    [
        (None, None, S, ""),
        (Bounds(-S, S, 1), KernelClock(True, 0, 0), S, ""),
        (Bounds(S + 1, 2 * S, 9), None, S, "our clock minus the exchange's is 1000 to 2000 ms"),
        (Bounds(-3 * S, -2 * S, 9), None, S, "our clock minus the exchange's is -3000 to -2000 ms"),
        (Bounds(2 * S, 3 * S, 9), None, 0, ""),
        (None, KernelClock(False, 0, 0), S, "the kernel's clock is not synchronised"),
    ],
)
def test_what_is_wrong_is_told_only_where_it_is_proven(
    bounds: Bounds | None, kernel: KernelClock | None, limit_ns: int, told: str
) -> None:
    assert trouble(bounds, kernel, limit_ns) == told
