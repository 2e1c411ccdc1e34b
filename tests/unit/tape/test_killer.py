"""The kill plan: reproducible, fair, inside the play."""

from __future__ import annotations

from tape.killer import plan_kills

TARGETS = ["g1", "g2", "dedup", "g1.hot", "production"]


def test_same_seed_gives_the_same_plan_and_another_seed_another() -> None:
    """One integer reproduces a failure."""
    assert plan_kills(10, TARGETS, 3) == plan_kills(10, TARGETS, 3)
    assert plan_kills(10, TARGETS, 3) != plan_kills(10, TARGETS, 4)


def test_every_target_dies_before_one_dies_twice() -> None:
    """Ten kills on five targets must hit each of them twice."""
    plan = plan_kills(10, TARGETS, 1)
    assert sorted(k.target for k in plan) == sorted(TARGETS * 2)


def test_kills_stand_in_order_and_only_the_deduplicator_dies_after_the_play() -> None:
    """A gatherer killed after the play would have nobody left to record from."""
    for seed in range(50):
        plan = plan_kills(12, TARGETS, seed)
        assert [k.at for k in plan] == sorted(k.at for k in plan)
        assert {k.target for k in plan if k.at > 1.0} <= {"dedup"}
