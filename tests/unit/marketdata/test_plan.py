"""The plan: every market on one connection, events together, stable, hot ones spread."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marketdata.plan import NS_PER_S, Changes, Limits, MarketRef, Plan, Why, own_connections

SMALL = Limits(
    markets_per_connection=4, connections_max=3, hot_rate=1_000, moves_max=2, rest_ns=NS_PER_S
)


def _markets(events: dict[str, int]) -> list[MarketRef]:
    return [
        MarketRef(f"{event}-{n}", event) for event, count in events.items() for n in range(count)
    ]


class Carried:
    """Connections that carry out the plan's changes, and nothing else."""

    def __init__(self) -> None:
        self.books: dict[int, set[str]] = {}

    def apply(self, changes: Changes) -> None:
        for at, tickers in changes.drop.items():
            for ticker in tickers:
                self.books[at].remove(ticker)  # KeyError: it was never carried there
        for at, tickers in changes.add.items():
            held = self.books.setdefault(at, set())
            assert not held & set(tickers)
            assert len(set(tickers)) == len(tickers)
            held.update(tickers)

    def breaches(self, plan: Plan, given: set[str]) -> list[str]:
        """INV-70 to INV-72, judged by what the connections carry."""
        counts = Counter(ticker for held in self.books.values() for ticker in held)
        moving, unplaced = set(plan.moving), set(plan.unplaced)
        found = [
            f"{ticker} is on {counts[ticker]} connections"
            for ticker in given - unplaced
            if counts[ticker] != (2 if ticker in moving else 1)
        ]
        found += [f"{ticker} is carried and not given" for ticker in counts.keys() - given]
        found += [f"{ticker} is unplaced and carried" for ticker in unplaced & counts.keys()]
        limit = plan.limits
        found += [
            f"{at} is overfull" for at, held in self.books.items()
            if len(held) > limit.markets_per_connection
        ]  # fmt: skip
        if sum(bool(held) for held in self.books.values()) > limit.connections_max:
            found.append("too many connections")
        room = limit.markets_per_connection * limit.connections_max - sum(counts.values())
        if unplaced and room:
            found.append(f"{len(unplaced)} unplaced though there is room for {room}")
        if plan.n_placed != len(given) - len(unplaced):
            found.append(f"{plan.n_placed} placed of {len(given)}")
        return found


@settings(max_examples=200)
@given(st.integers(0, 2**32), st.integers(1, 60))
def test_the_connections_always_carry_what_the_plan_says(seed: int, steps: int) -> None:
    """Markets come, go, turn hot, arrive or fail to, in any order."""
    rng, plan, carried = Random(seed), Plan("g1", SMALL), Carried()
    given: dict[str, MarketRef] = {}
    for now in range(steps):
        match rng.randrange(6):
            case 0 | 1:
                event = f"E{rng.randrange(6)}"
                new = [MarketRef(f"{event}-{rng.randrange(9)}", event) for _ in range(3)]
                given |= {m.ticker: m for m in new}
                rates = {m.ticker: rng.randrange(5_000) for m in new} if now % 2 else None
                carried.apply(plan.place(new, rates))
            case 2:
                gone = rng.sample(sorted(given), min(len(given), 2))
                carried.apply(plan.remove([*gone, "unknown"]))
                for ticker in gone:
                    del given[ticker]
            case 3:
                rates = {t: rng.randrange(9_000) for t in given}
                carried.apply(plan.rebalance(rates, now * NS_PER_S // 3))
            case _:
                for ticker in plan.moving:
                    ended = plan.arrived if rng.random() < 0.7 else plan.give_up
                    carried.apply(ended(ticker, now * NS_PER_S // 3))
        assert carried.breaches(plan, set(given)) == []
        assert {n: set(t) for n, t in plan.books().items()} == {
            n: t for n, t in carried.books.items() if t
        }
    carried.apply(plan.remove(list(given)))
    assert plan._homes == {}
    assert carried.breaches(plan, set()) == []


def test_a_change_that_is_not_carried_out_is_found() -> None:
    """The control: every kind of breach shows."""
    plan, carried = Plan("g1", SMALL), Carried()
    markets = _markets({"A": 3, "B": 2})
    given = {m.ticker for m in markets}
    plan.place(markets)
    assert len(carried.breaches(plan, given)) == 5
    carried.books = {0: {"A-0", "A-1", "A-2", "B-0", "X"}, 1: {"B-0"}}
    told = "\n".join(carried.breaches(plan, given))
    for word in ("B-0 is on 2", "B-1 is on 0", "X is carried and not given", "0 is overfull"):
        assert word in told


def test_new_markets_move_no_other() -> None:
    """A moved market would be recorded by two connections for nothing."""
    plan = Plan("g1", Limits(4))
    plan.place(_markets({"A": 3, "B": 2}))
    before = plan.books()
    changes = plan.place(_markets({"A": 4, "B": 3, "C": 9}))
    assert not changes.drop
    for number, tickers in before.items():
        assert plan.books()[number][: len(tickers)] == tickers


def test_markets_of_an_event_stay_together_while_they_fit() -> None:
    """A burst and its order across markets stay on one stream."""
    plan = Plan("g1", Limits(11))
    plan.place(_markets({"A": 6, "B": 6, "C": 4}))
    homes = {e: {p.connection for p in plan.places() if p.event == e} for e in "ABC"}
    assert all(len(numbers) == 1 for numbers in homes.values())
    plan.place(_markets({"B": 7}))
    place = plan.place_of("B-6")
    assert place is not None
    assert (place.why, {place.connection}) == (Why.EVENT_HOME, homes["B"])


def test_gatherers_deal_events_in_their_own_order() -> None:
    """So that one connection's fault does not hit the same set of markets everywhere."""
    events = {f"E{n}": 5 for n in range(40)}
    plans = [Plan(name, Limits(20)) for name in ("g1", "g2", "g1")]
    for plan in plans:
        plan.place(_markets(events))
    assert plans[0].books() != plans[1].books()
    assert plans[0].books() == plans[2].books()


def test_a_full_exchange_is_told_and_places_are_used_when_they_come_free() -> None:
    """Beyond all connections markets are named as unplaced, never dropped quietly."""
    plan = Plan("g1", Limits(2, 2))
    plan.place(_markets({"A": 3, "B": 3}))
    assert plan.n_unplaced == 2
    some, waits = plan.books()[0][0], plan.unplaced[0]
    changes = plan.remove([some, "unknown"])
    assert changes == Changes({0: [waits]}, {0: [some]})
    assert plan.place_of(some) is None
    assert plan.n_unplaced == 1
    assert not plan.knows(some)
    assert plan.knows(plan.unplaced[0])


def test_hot_markets_that_are_known_at_the_start_are_dealt_round() -> None:
    """All of one event, yet no two of the hottest on one connection while there are others."""
    plan = Plan("g1", Limits(4, hot_rate=1_000))
    rates = {"A-1": 9_000, "A-3": 5_000, "A-5": 2_000, "A-7": 999}
    plan.place(_markets({"A": 12}), rates)
    hot = {plan.place_of(t).connection: t for t in ("A-1", "A-3", "A-5")}  # type: ignore[union-attr]
    assert len(hot) == 3
    place = plan.place_of("A-1")
    assert place is not None
    assert (place.why, place.rate) == (Why.HOT, 9_000)
    cold = plan.place_of("A-7")
    assert cold is not None
    assert cold.why is not Why.HOT


def test_hot_markets_leave_an_overloaded_connection_one_by_one() -> None:
    """The hottest stays, nothing moves below the threshold, and what moved rests."""
    limits = Limits(5, hot_rate=1_000, rest_ns=100 * NS_PER_S, moves_max=1)
    plan = Plan("g1", limits)
    plan.place(_markets({"A": 5, "B": 5}))
    home = plan.place_of("A-0").connection  # type: ignore[union-attr]
    other = 1 - home
    plan.remove(["B-0", "B-1"])
    rates = {"A-0": 9_000, "A-1": 6_000, "A-2": 5_000, "B-2": 1_000}
    changes = plan.rebalance(rates, NS_PER_S)
    assert changes == Changes({other: ["A-1"]})
    assert plan.moving == ("A-1",)
    assert not plan.rebalance(rates, 2 * NS_PER_S), "one at a time"
    assert plan.arrived("A-1", 3 * NS_PER_S) == Changes(drop={home: ["A-1"]})
    place = plan.place_of("A-1")
    assert place is not None
    assert (place.connection, place.why, place.moved_ns) == (other, Why.HOT, 3 * NS_PER_S)
    back = {"A-1": 9_000, "B-2": 9_500, "A-0": 1_000}
    assert not plan.rebalance(back, 50 * NS_PER_S), "it rests"
    assert plan.rebalance(back, 200 * NS_PER_S) == Changes({home: ["A-1"]})
    assert plan.give_up("A-1", 210 * NS_PER_S) == Changes(drop={home: ["A-1"]})
    assert not plan.arrived("A-1", 211 * NS_PER_S)


def test_an_even_load_moves_nothing() -> None:
    """Hot is no reason to move: only more than the threshold is."""
    plan = Plan("g1", Limits(2, hot_rate=1_000))
    plan.place(_markets({"A": 2, "B": 2, "C": 2}))
    rates = {f"{e}-{n}": 5_000 + n for e in "ABC" for n in range(2)}
    assert not plan.rebalance(rates, NS_PER_S)
    assert not Plan("g1", Limits()).rebalance({}, 0)


def test_channels_without_markets_have_connections_of_their_own() -> None:
    """Trades and tickers are carried by one process of a host, new markets are heard by all."""
    first, second = (own_connections(combos=False, share=n) for n in (1, 2))
    channels = [name for names in first.values() for name in names]
    assert sorted(channels) == ["market_lifecycle_v2", "ticker", "trade"]
    assert len(first) == 3
    assert second == {"lifecycle": first["lifecycle"]}
    combos = own_connections(combos=True)["lifecycle"]
    assert combos == ("market_lifecycle_v2", "multivariate_market_lifecycle")


def test_limits_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="out of range"):
        Limits(0)
    with pytest.raises(ValueError, match="out of range"):
        Limits(10, 0)
    with pytest.raises(ValueError, match="out of range"):
        Limits(10, 201)
