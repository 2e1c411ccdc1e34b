"""Discovery: REST rounds and lifecycle frames into subscriptions and history."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from gatherer import discovery as module
from gatherer import lifecycle
from gatherer.discovery import Discovery
from gatherer.history import History
from marketdata import events, lookups, roll
from marketdata.plan import Limits, Plan
from marketdata.selection import Selection
from tests.unit.gatherer.rest_lists import COMBO, Exchange, client, market_body, until

HOUR_S = 3_600.0
AWAY = "postgresql://127.0.0.1:1/none"


class Made:
    """A discovery at work, and what the connections carry by its changes alone."""

    def __init__(self, discovery: Discovery) -> None:
        self.discovery = discovery
        self.carried: set[str] = set()

    @property
    def rounds(self) -> int:
        return self.discovery.rounds

    @property
    def looks(self) -> int:
        return self.discovery.found.looks


@asynccontextmanager
async def discovering(
    exchange: Exchange,
    history: History | None = None,
    interval_s: float = 0.02,
    full_round_s: float = HOUR_S,
    **chosen: Any,
) -> AsyncIterator[Made]:
    async with client(exchange) as (rest, clock):
        found = Discovery(
            rest,
            Plan("g1", Limits(4_000)),
            history or History(AWAY),
            clock,
            interval_s=interval_s,
            full_round_s=full_round_s,
            on_changes=lambda changes: (
                made.carried.difference_update(*changes.drop.values()),
                made.carried.update(*changes.add.values()),
            ),
            selection=Selection(**chosen),
        )
        made = Made(found)
        task = asyncio.create_task(found.run())
        try:
            yield made
        finally:
            task.cancel()
            await asyncio.wait([task])


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TICK_S", 0.01)
    monkeypatch.setattr(lifecycle, "POLL_S", 0.005)
    monkeypatch.setattr(lookups, "GATHER_NS", 1_000_000)
    monkeypatch.setattr(lookups, "AGAIN_NS", 1_000_000)


def frame(ticker: str, kind: str, **body: Any) -> events.MarketLifecycle:
    return events.MarketLifecycle(ticker, kind, False, body, 1, 1)


async def test_open_markets_are_subscribed_and_stay_when_lists_do_not_show_them() -> None:
    """A market nobody subscribed to is dark for good: books cannot be bought afterwards."""
    exchange = Exchange()
    async with discovering(exchange, full_round_s=0.0) as made:
        await until(lambda: made.rounds >= 1)
        assert made.carried == {"A", "B"}
        exchange.markets.append(market_body("C"))
        await until(lambda: "C" in made.carried)
        await until(lambda: made.discovery.markets == 3)
        exchange.markets.clear()
        before = made.rounds
        await until(lambda: made.rounds > before + 1)
        assert made.carried == {"A", "B", "C"}
        await until(lambda: made.discovery.found.not_listed >= 3)


async def test_a_market_whose_frame_was_lost_is_found_by_the_next_look() -> None:
    """Between full rounds; the exchange lists what was created or updated since."""
    exchange = Exchange()
    async with discovering(exchange) as made:
        await until(lambda: made.looks >= 1)
        exchange.markets.append(market_body("LOST", 500))
        exchange.markets.append(market_body("PAUSED", 500, status="inactive"))
        await until(lambda: made.carried == {"A", "B", "LOST", "PAUSED"})
        assert made.rounds == 1
        looks = [q for q in exchange.asked if "min_created_ts" in q or "min_updated_ts" in q]
        assert all(q.get("mve_filter") == "exclude" for q in looks if q["path"] == "/markets")
        assert all("status" not in q for q in looks)


async def test_an_exchange_that_ignores_the_filter_is_not_paged_through() -> None:
    """The control of the look: everything is older than asked for, so that the first page ends it;
    the full round is what finds new markets then."""
    bodies = [market_body(f"M{n:04d}") for n in range(2_500)]
    exchange = Exchange(*bodies, market_body("NEWEST", 1_000))
    exchange.knows_filters = False
    async with discovering(exchange) as made:
        await until(lambda: made.looks >= 3)
        assert made.discovery.found.ignored_filters >= 2
        looks = [q for q in exchange.asked if "min_created_ts" in q]
        assert all("cursor" not in q for q in looks)
        assert len(made.carried) == 2_501


async def test_initialized_markets_wait_and_their_statuses_are_lists_of_their_own() -> None:
    exchange = Exchange(
        market_body("OPEN"),
        market_body("PAUSED", status="inactive"),
        market_body("SOON", status="initialized", open_time="2020-01-01T00:00:00Z"),
        market_body("LATER", status="initialized", open_time="2999-01-01T00:00:00Z"),
        market_body("OVER", status="closed"),
    )
    async with discovering(exchange) as made:
        await until(lambda: made.looks >= 1)
        assert made.carried == {"OPEN", "PAUSED", "SOON"}
        assert made.discovery.numbers()["wait_for_opening"] == 1
        assert made.discovery.markets == 1
        statuses = {q.get("status") for q in exchange.asked if q["path"] == "/markets"}
        assert {"open", "unopened", "paused"} <= statuses


async def test_a_list_that_is_refused_does_not_stop_the_round() -> None:
    """A word of the exchange that it takes back; of the open markets it is an error."""
    exchange = Exchange()
    exchange.refused = {"paused"}
    async with discovering(exchange) as made:
        await until(lambda: made.looks >= 1)
        assert made.discovery.found.refused_lists == 1
        assert made.carried == {"A", "B"}
        assert made.discovery.reason == ""
    exchange.refused = {"open"}
    async with discovering(exchange) as made:
        await until(lambda: "400" in made.discovery.reason)
        assert made.rounds == 0


async def test_a_market_that_only_its_event_shows_is_found() -> None:
    exchange = Exchange()
    exchange.hidden = {"B"}
    async with discovering(exchange) as made:
        await until(lambda: made.looks >= 1)
        assert made.carried == {"A", "B"}
        assert made.discovery.found.by_events == 1
        nested = [q for q in exchange.asked if q["path"] == "/events"]
        assert all(q["with_nested_markets"] == "true" for q in nested)


async def test_combinations_are_read_as_chosen() -> None:
    priced = market_body("KXMVE-1-P", **COMBO, volume_fp="3.00")
    exchange = Exchange(market_body("A"), market_body("KXMVE-1-D", **COMBO), priced)
    for combos, expected in (
        ("none", {"A"}),
        ("priced", {"A", "KXMVE-1-P"}),
        ("all", {"A", "KXMVE-1-D", "KXMVE-1-P"}),
    ):
        exchange.asked.clear()
        async with discovering(exchange, combos=combos) as made:
            await until(lambda made=made: made.looks >= 1)
            assert made.carried == expected
            asked = {q.get("mve_filter") for q in exchange.asked if q["path"] == "/markets"}
            assert ("only" in asked) == (combos != "none")


async def test_a_created_market_is_subscribed_before_rest_knows_it() -> None:
    """Then it is asked for until REST knows it: its row of history is due."""
    exchange = Exchange()
    exchange.unknown["NEW"] = 3
    async with discovering(exchange, interval_s=HOUR_S) as made:
        await until(lambda: made.rounds == 1)
        metadata = {"additional_metadata": {"event_ticker": "E-1"}}
        made.discovery.on_event(frame("NEW", "created", **metadata))
        assert "NEW" in made.carried
        exchange.markets.append(market_body("NEW"))
        await until(lambda: made.discovery.numbers()["lookups_pending"] == 0)
        assert ("market", "NEW") in made.discovery._history._pending
        carried = set(made.carried)
        made.discovery.on_event(events.MarketLifecycle("MVE", "created", True, {}, 1, 1))
        made.discovery.on_event(frame("A", "deactivated"))
        made.discovery.on_event(events.EventLifecycle("E-1", {}, 1, 1))
        assert made.carried == carried


async def test_a_settled_market_leaves_after_its_hold_and_its_result_is_kept(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its frames: REST tells the result late, and the history has it with its value."""
    history, exchange = History(dsn), Exchange()
    monkeypatch.setattr(roll, "SETTLED_HOLD_NS", 300_000_000)
    writing = asyncio.create_task(history.run())
    async with discovering(exchange, history, interval_s=HOUR_S) as made:
        await until(lambda: made.rounds == 1)
        made.discovery.on_event(frame("A", "determined", result="yes"))
        made.discovery.on_event(frame("A", "settled"))
        assert "A" in made.carried
        await until(lambda: sum(q["path"] == "/markets/A" for q in exchange.asked) > 2)
        ended = {"status": "finalized", "result": "yes", "settlement_value_dollars": "1.0000"}
        exchange.markets[0] = market_body("A", **ended)
        await until(lambda: made.carried == {"B"})
        await until(lambda: made.discovery.numbers()["lookups_pending"] == 0)
    await history.stop()
    await asyncio.wait_for(writing, 20)
    connection = await asyncpg.connect(dsn)
    rows = await connection.fetch(
        "SELECT status, body FROM market_history WHERE ticker = 'A' ORDER BY valid_from_ns"
    )
    assert [row["status"] for row in rows] == ["active", "finalized"]
    assert json.loads(rows[-1]["body"])["settlement_value_dollars"] == "1.0000"
    await connection.close()


async def test_a_first_round_that_fails_is_repeated_at_once() -> None:
    """Without it nothing is recorded; the interval is for later rounds."""
    exchange = Exchange()
    exchange.down = 2
    async with discovering(exchange, interval_s=HOUR_S) as made:
        await until(lambda: made.rounds == 1)
        assert made.discovery.reason == ""


async def test_bodies_that_cannot_be_read_do_not_hide_the_others() -> None:
    exchange = Exchange()
    broken = market_body("", event_ticker="")
    exchange.markets.insert(0, broken)
    async with discovering(exchange) as made:
        await until(lambda: made.looks >= 1)
        assert made.carried == {"A", "B"}
        assert made.discovery.problems >= 1


async def test_only_chosen_series_are_subscribed() -> None:
    """By REST and by lifecycle frames alike; the control: without a choice all are."""
    exchange = Exchange()
    exchange.markets.append(market_body("OTHER-1-A", event_ticker="OTHER-1"))
    async with discovering(exchange, interval_s=HOUR_S, series=frozenset({"OTHER"})) as made:
        await until(lambda: made.rounds == 1)
        assert made.carried == {"OTHER-1-A"}
        for parent in ("E-1", "OTHER-2"):
            metadata = {"additional_metadata": {"event_ticker": parent}}
            made.discovery.on_event(frame(f"{parent}-N", "created", **metadata))
        assert made.carried == {"OTHER-1-A", "OTHER-2-N"}
    async with discovering(exchange, interval_s=HOUR_S) as made:
        await until(lambda: made.rounds == 1)
        assert made.carried == {"A", "B", "OTHER-1-A"}


async def test_processes_of_one_host_divide_the_markets() -> None:
    exchange = Exchange(*(market_body(f"E-{n}-A", event_ticker=f"E-{n}") for n in range(40)))
    parts = []
    for share in (1, 2):
        async with discovering(exchange, interval_s=HOUR_S, share=share, shares=2) as made:
            await until(lambda made=made: made.rounds == 1)
            parts.append(set(made.carried))
    assert not parts[0] & parts[1]
    assert len(parts[0] | parts[1]) == 40
