"""A move ends only when the new connection has what the old one had."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from marketdata.moves import OVERLAP_NS, PATIENCE_NS, Moves
from marketdata.plan import NS_PER_S, Changes, Limits, MarketRef, Plan

TICKER = "A-1"


def moving(**limits: int) -> tuple[Plan, Moves, int, int]:
    """A plan with one hot market on its way; from where, to where."""
    plan = Plan("g1", Limits(2, hot_rate=1, **limits))
    plan.place(MarketRef(f"{event}-{n}", event) for event in "AB" for n in range(2))
    old = plan.place_of(TICKER).connection  # type: ignore[union-attr]
    plan.remove([f"B-{n}" for n in range(2)])
    changes = plan.rebalance({"A-0": 9, TICKER: 5}, NS_PER_S)
    new = next(iter(changes.add))
    assert changes == Changes({new: [TICKER]})
    return plan, Moves(plan), old, new


def test_the_old_connection_lets_go_after_both_have_covered_it_for_a_while() -> None:
    plan, moves, old, new = moving()
    seen: list[tuple[int, str]] = []
    assert moves.step(lambda _number, _ticker: False, 0) == []

    def covers(number: int, ticker: str) -> bool:
        seen.append((number, ticker))
        return True

    assert moves.step(covers, NS_PER_S) == []
    assert moves.step(covers, NS_PER_S + OVERLAP_NS - 1) == []
    assert moves.step(covers, NS_PER_S + OVERLAP_NS) == [Changes(drop={old: [TICKER]})]
    assert set(seen) == {(new, TICKER)}
    assert plan.moving == ()
    assert (moves.begun, moves.ended, moves.given_up) == (1, 1, 0)
    assert moves.step(covers, 10 * PATIENCE_NS) == []


def test_a_gap_on_the_new_connection_starts_the_overlap_again() -> None:
    """What was missed there may have been the only thing that happened."""
    plan, moves, old, _ = moving()
    moves.step(lambda _n, _t: True, 0)
    assert moves.step(lambda _n, _t: False, OVERLAP_NS) == []
    assert moves.step(lambda _n, _t: True, OVERLAP_NS + 1) == []
    assert moves.step(lambda _n, _t: True, 2 * OVERLAP_NS) == []
    (ended,) = moves.step(lambda _n, _t: True, 2 * OVERLAP_NS + 1)
    assert ended == Changes(drop={old: [TICKER]})
    assert plan.place_of(TICKER).connection != old  # type: ignore[union-attr]


def test_a_book_that_does_not_come_ends_the_move_where_it_began() -> None:
    plan, moves, old, new = moving()
    moves.step(lambda _n, _t: False, 0)
    assert moves.step(lambda _n, _t: False, PATIENCE_NS - 1) == []
    assert moves.step(lambda _n, _t: False, PATIENCE_NS) == [Changes(drop={new: [TICKER]})]
    assert plan.place_of(TICKER).connection == old  # type: ignore[union-attr]
    assert moves.given_up == 1


def test_a_market_that_ends_on_its_way_ends_on_both() -> None:
    plan, moves, old, new = moving()
    moves.step(lambda _n, _t: True, 0)
    assert plan.remove([TICKER]).drop == {old: [TICKER], new: [TICKER]}
    assert moves.step(lambda _n, _t: True, OVERLAP_NS) == []


@given(st.integers(0, 2**32), st.integers(0, 200))
def test_a_market_is_never_dropped_before_the_other_covered_it_without_a_break(
    seed: int, steps: int
) -> None:
    """INV-80 over any history of gaps."""
    rng = Random(seed)
    _, moves, old, new = moving()
    since: int | None = None
    for second in range(steps):
        now, covered = second * NS_PER_S, rng.random() < 0.8
        since = (now if since is None else since) if covered else None
        for changes in moves.step(lambda _n, _t, covered=covered: covered, now):
            if old in changes.drop:
                assert since is not None
                assert now - since >= OVERLAP_NS
            else:
                assert new in changes.drop
                assert now >= PATIENCE_NS
