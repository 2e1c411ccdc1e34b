"""A plan told: every market with its reason, on its connection."""

from __future__ import annotations

from typing import Any

from marketdata.plan import NS_PER_S, RATE_S, Limits, MarketRef, Plan, own_connections
from marketdata.plan_rows import FIELDS, plan_rows, why_text


def made() -> Plan:
    plan = Plan("g1", Limits(3, 2, hot_rate=RATE_S))
    plan.place(MarketRef(f"{event}-{n}", event) for event in "AB" for n in range(4))
    return plan


def told(plan: Plan) -> list[dict[str, Any]]:
    return list(plan_rows(plan, "g1", own_connections(combos=False)))


def test_every_market_is_told_once_and_what_has_no_room_at_the_end() -> None:
    plan = made()
    head, *connections, last = told(plan)
    assert (head["placed"], head["unplaced"], head["connections"]) == (6, 2, 2)
    assert head["limits"]["markets_per_connection"] == 3
    assert head["own"]["trade"] == ["trade"]
    shown = [values[0] for row in connections for values in row["markets"]]
    assert sorted(shown) == sorted(place.ticker for place in plan.places())
    assert last["markets"] == list(plan.unplaced)
    assert all(len(values) == len(FIELDS) for row in connections for values in row["markets"])


def test_a_market_on_its_way_is_told_on_both_connections() -> None:
    plan = Plan("g1", Limits(3, 2, hot_rate=RATE_S))
    plan.place(MarketRef(f"A-{n}", "A") for n in range(6))
    left = plan.books()[1][0]
    plan.remove([left])
    home = list(plan.books()[0])
    plan.rebalance({home[0]: 90 * RATE_S, home[1]: 50 * RATE_S}, NS_PER_S)
    rows = [row for row in told(plan) if row["kind"] == "connection"]
    where = [
        why_text(row["connection"], dict(zip(FIELDS, values, strict=True)))
        for row in rows
        for values in row["markets"]
        if values[0] == home[1]
    ]
    assert len(where) == 2
    assert where[0].endswith("hot at 50 frames/s, moving to connection 1")
    assert where[1].endswith("hot at 50 frames/s, arriving here")


def test_reasons_in_words() -> None:
    market = {"why": "event home", "frames_per_1000_s": 0, "moved_ns": 0, "moving_to": -1}
    assert why_text(0, market) == "event home"
    market |= {"why": "spread because hot", "frames_per_1000_s": 1_500, "moved_ns": 7 * NS_PER_S}
    offset = 1_800_000_000 * NS_PER_S
    told_at = "spread because hot at 1 frames/s, moved at 2027-01-15T08:00:07Z"
    assert why_text(0, market, wall_minus_monotonic_ns=offset) == told_at
