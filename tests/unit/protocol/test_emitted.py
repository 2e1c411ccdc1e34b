"""What the simulated exchange emits is what is published: every frame, every REST body."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from exchange.auth import KEY_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER
from exchange.commands import ERROR_TEXTS
from exchange.connection import Connection
from exchange.faults import FaultLevel, FaultPlan
from exchange.server import HEARTBEAT, WS_PATH
from exchange.synthetic import SyntheticSource
from exchange.timeline import (
    TIME_MS_ONLY,
    TIME_TS_ONLY,
    Item,
    ListingItem,
    StatusItem,
    TickerItem,
    TradeItem,
)
from exchange.truth import Ledger
from exchange.venue import CHANNELS, OVERFLOW_CODE, Venue
from tests.exchange_client import Running, exchange
from tests.exchange_worlds import START_US, ScriptSource, ask, delta, make_venue, spec, taken
from tests.unit.protocol import facts
from tests.unit.protocol.shapes import message_faults, object_faults, sample

T0, T1 = "KXTEST-26-T0", "KXTEST-26-T1"
BROKEN: list[tuple[dict[str, Any], int]] = [  # (command, code of the answer)
    ({"cmd": "subscribe", "channels": []}, 3),
    ({"cmd": "subscribe", "channels": ["ticker_v2"]}, 8),
    ({"cmd": "subscribe", "channels": ["orderbook_delta"]}, 14),
    ({"cmd": "subscribe", "channels": ["trade"], "market_ticker": T0, "market_tickers": [T0]}, 11),
    ({"cmd": "unsubscribe", "sids": []}, 4),
    ({"cmd": "unsubscribe", "sids": [99]}, 7),
    ({"cmd": "update_subscription", "sids": [1, 2], "action": "add_markets"}, 12),
    ({"cmd": "update_subscription", "sids": [1], "market_tickers": [T0]}, 15),
    ({"cmd": "update_subscription", "sids": [1], "action": "swap", "market_tickers": [T0]}, 13),
    ({"cmd": "update_subscription", "sids": [1], "action": "add_markets"}, 14),
    ({"cmd": "subscribe_all"}, 5),
    ({"cmd": "subscribe"}, 2),
]


def world() -> Venue:
    """One market, then another; changes in each form of time; a market's end."""
    items: list[Item] = [
        delta(0, 1),
        delta(0, 2, form=TIME_TS_ONLY),
        delta(0, 3, form=TIME_MS_ONLY),
        ListingItem(START_US + 4_000, spec(1, yes=[], no=[])),
        StatusItem(START_US + 5_000, 1, "determined"),
        StatusItem(START_US + 6_000, 1, "finalized"),
    ]
    return make_venue(ScriptSource([spec(0)], items))


def conversation(venue: Venue) -> Iterator[dict[str, Any]]:
    """Every kind of command, good and bad, and the play in between."""
    connection = venue.open("0" * 16, 1)
    yield from ask(venue, connection, "subscribe", channels=["orderbook_delta"], market_ticker=T0)
    yield from ask(venue, connection, "subscribe", channels=[*CHANNELS[1:]])
    update: dict[str, Any] = {"cmd": "update_subscription", "sids": [1], "market_tickers": [T0]}
    for action in sorted(facts.ACTIONS):
        yield from ask(venue, connection, **update, action=action)
    yield from ask(venue, connection, **update, action="add_markets")
    yield from ask(venue, connection, "list_subscriptions")
    for command, code in BROKEN:
        frames = ask(venue, connection, **command)
        assert [frame["msg"]["code"] for frame in frames] == [code], command
        yield from frames
    venue.play(1_000)
    yield from taken(connection)
    yield from ask(venue, connection, "unsubscribe", sids=[1, 2, 3])


def test_every_frame_of_a_scripted_world_is_as_published() -> None:
    """All types and replies that the simulator has, in every form of time."""
    frames = list(conversation(world()))
    assert [fault for frame in frames for fault in message_faults(frame)] == []
    kinds = Counter(frame["type"] for frame in frames)
    assert set(kinds) == {
        "subscribed", "ok", "unsubscribed", "error", "orderbook_snapshot", "orderbook_delta",
        "market_lifecycle_v2",
    }  # fmt: skip
    times = [set(f["msg"]) & {"ts", "ts_ms"} for f in frames if f["type"] == "orderbook_delta"]
    assert times == [{"ts", "ts_ms"}, {"ts"}, {"ts_ms"}]
    ends = [f["msg"]["event_type"] for f in frames if f["type"] == "market_lifecycle_v2"]
    assert ends == ["created", "determined", "settled"]


def synthetic_frames(level: FaultLevel) -> list[dict[str, Any]]:
    """What one client of a made-up exchange receives in some engine seconds."""
    source = SyntheticSource(markets=30, seconds=60, seed=3, events_per_s=None, level=level)
    plan = FaultPlan(level, 3, source.start_us, source.end_us, source.events_expected)
    venue = Venue(source, plan, crew=0, ledger=Ledger())
    frames: list[dict[str, Any]] = []
    connection: Connection | None = None
    while not venue.done:
        if connection is None or connection.closing is not None:
            if connection is not None:
                venue.closed(connection)
            connection = venue.open("0" * 16, 1)
            tickers = [market.spec.ticker for market in venue.markets]
            books: dict[str, Any] = {"channels": ["orderbook_delta"], "market_tickers": tickers}
            frames += ask(venue, connection, "subscribe", **books)
            others = ["ticker", "trade", "market_lifecycle_v2"]
            frames += ask(venue, connection, "subscribe", channels=others)
        venue.play(100)
        frames += taken(connection)
    return frames


@pytest.mark.parametrize("level", [FaultLevel.NONE, FaultLevel.HARSH])
def test_every_frame_of_a_made_up_exchange_is_as_published(level: FaultLevel) -> None:
    """Faults drop, repeat and hold frames and add a type that nobody knows; they bend none."""
    frames = synthetic_frames(level)
    known = [frame for frame in frames if frame["type"] != "weather_notice"]
    assert len(known) == len(frames) or level is FaultLevel.HARSH
    assert [fault for frame in known for fault in message_faults(frame)] == []
    assert {"orderbook_snapshot", "orderbook_delta", "trade", "ticker"} <= {
        frame["type"] for frame in known
    }


def test_a_drifted_simulator_is_found() -> None:
    """Negative control: the same checks over a world that writes one field otherwise."""
    whole = sample(facts.MESSAGES["trade"])
    old = {name: value for name, value in whole.items() if name != "count_fp"} | {"count": 1}
    for msg, wants_fault in ((whole, False), (old, True)):
        text = json.dumps(msg).encode()
        item = TradeItem(START_US + 1, 0, text, text, START_US + 1)
        venue = make_venue(ScriptSource([spec(0)], [item]))
        connection = venue.open("0" * 16, 1)
        ask(venue, connection, "subscribe", channels=["trade"])
        venue.play(10)
        (frame,) = taken(connection)
        assert bool(message_faults(frame)) == wants_fault
    bare = TickerItem(START_US + 1, 0, b'{"market_ticker":"KXTEST-26-T0","price":36}')
    venue = make_venue(ScriptSource([spec(0)], [bare]))
    connection = venue.open("0" * 16, 1)
    ask(venue, connection, "subscribe", channels=["ticker"])
    venue.play(10)
    assert message_faults(taken(connection)[0]) != []


def test_error_codes_and_texts_are_the_published_ones() -> None:
    told = {code: text.lower() for code, text in ERROR_TEXTS.items()}
    assert told == {code: facts.CODES[code] for code in told}
    assert facts.CODES[OVERFLOW_CODE] == "subscription buffer overflow"


def test_header_names_path_and_heartbeat_are_the_published_ones() -> None:
    assert {KEY_HEADER, TIMESTAMP_HEADER, SIGNATURE_HEADER} == facts.HEADERS
    assert WS_PATH == facts.WS_PATH
    assert HEARTBEAT == b"heartbeat"


@pytest.fixture
async def played(tmp_path: Path) -> AsyncIterator[Running]:
    flags = ("--synthetic", "30", "--seconds", "20", "--rate", "max")
    async with exchange(tmp_path, *flags) as running:
        await running.done()
        yield running


async def answer(running: Running, path: str) -> tuple[int, Any]:
    headers = running.keys.headers("GET", facts.REST_PREFIX + path.partition("?")[0])
    async with (
        aiohttp.ClientSession() as session,
        session.get(running.ready["rest_url"] + path, headers=headers) as found,
    ):
        return found.status, await found.json()


async def test_every_rest_body_is_as_published(played: Running) -> None:
    """Lists, single objects, books and refusals."""
    _, page = await answer(played, "/markets?limit=1000")
    market = page["markets"][0]
    _, events = await answer(played, "/events?with_nested_markets=true")
    event = events["events"][0]
    ticker = market["ticker"]
    expected = {
        "/markets?limit=7": (200, "markets page"),
        "/markets?limit=1000": (200, "markets page"),
        f"/markets/{ticker}": (200, "one market"),
        "/events?with_nested_markets=true": (200, "events page"),
        "/events?limit=1": (200, "events page"),
        f"/events/{event['event_ticker']}": (200, "one event"),
        "/series": (200, "series page"),
        f"/series/{event['series_ticker']}": (200, "one series"),
        "/markets/trades?limit=1000": (200, "trades page"),
        f"/markets/{ticker}/orderbook": (200, "one book"),
        f"/markets/orderbooks?tickers={ticker}": (200, "books"),
        "/exchange/status": (200, "status"),
        "/markets/KXNONE": (404, "error"),
        "/markets/orderbooks": (400, "wrapped error"),
    }
    for path, (status, name) in expected.items():
        got = await answer(played, path)
        assert got[0] == status, path
        assert object_faults(name, got[1]) == [], path
    assert {held["status"] for held in page["markets"]} & {"determined", "finalized", "closed"}
