"""Faults on demand: each switch does its one thing, tells it, and is undone by its opposite."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import websockets

from exchange.auth import Verifier, load_public_key
from exchange.commands import carry_out
from exchange.connection import Connection
from exchange.poison import MANGLED, STRAYS
from exchange.switches import Switches
from exchange.venue import Venue
from marketdata.errors import ConfigError
from tests.exchange_client import WS_PATH as PATH
from tests.exchange_client import Keys, exchange
from tests.exchange_worlds import (
    ScriptSource,
    book_client,
    delta,
    faults_of,
    make_venue,
    sends_of,
    spec,
)

NOW_MS = 1_788_000_000_000
REST_PATH = "/trade-api/v2/exchange/status"


def world(tmp_path: Path, events: int = 6) -> tuple[Venue, Connection, Switches, Verifier]:
    """One market and one client with its book; its first frames are gone."""
    venue = make_venue(ScriptSource([spec(0)], [delta(0, n * 10) for n in range(events)]))
    connection = book_client(venue)
    connection.out = []
    verifier = Verifier(load_public_key(Keys.make(tmp_path).public_file))
    return venue, connection, Switches(venue, verifier), verifier


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ([], "JSON object"),
        ({}, "JSON object"),
        ({"wether": 1}, "no switch wether"),
        ({"rest": "slow"}, "rest is one of"),
        ({"key": {"pem": "x"}}, "pem and id"),
        ({"key": {"pem": "x", "id": "y"}}, "not a PEM public key"),
        ({"storm": {"channel": "weather", "seconds": 1}}, "no such storm"),
        ({"storm": 3}, "a storm has"),
        ({"poison": ["arsenic"]}, "no poison"),
        ({"poison": "arsenic"}, "a list"),
        ({"slow_client_s": -1}, "slow_client_s"),
    ],
)
def test_what_is_not_understood_is_refused_with_words(tmp_path: Path, body: Any, said: str) -> None:
    """A test whose fault did not happen would prove nothing."""
    venue, _, switches, _ = world(tmp_path)
    with pytest.raises(ConfigError, match=said):
        switches.turn(body)
    assert faults_of(venue.ledger) == []


def test_a_mangled_change_is_a_number_used_up_and_no_event_told(tmp_path: Path) -> None:
    """The truth must not call a change received that nobody could read."""
    venue, connection, switches, _ = world(tmp_path)
    switches.turn({"poison": ["no_price", "large_change"]})
    venue.play(100)
    frames = [json.loads(frame) for frame in connection.out]
    assert [frame["seq"] for frame in frames] == [2, 3, 4, 5, 6, 7]
    assert "price_dollars" not in frames[0]["msg"]
    assert len(connection.out[1]) > 16 << 20
    assert sends_of(venue.ledger)["event"].tolist() == [-1, -1, 1, 2, 3, 4, 5]


def test_strays_come_at_once_and_use_no_number(tmp_path: Path) -> None:
    """They stand beside the play."""
    venue, connection, switches, _ = world(tmp_path)
    before = sends_of(venue.ledger).size
    switches.turn({"poison": [name for name in STRAYS if name != "large"]})
    assert len(connection.out) == len(STRAYS) - 1
    assert sends_of(venue.ledger).size == before
    assert {row["name"] for row in faults_of(venue.ledger)} == set(STRAYS) - {"large"}
    assert not set(STRAYS) & set(MANGLED)


def test_a_storm_ends_the_sid_again_whenever_it_lives(tmp_path: Path) -> None:
    """Who subscribes anew meets the next one, until the storm is over."""
    venue, connection, switches, _ = world(tmp_path)
    switches.turn({"storm": {"channel": "orderbook_delta", "seconds": 2, "every_s": 1}})
    for now_s in (10.0, 10.5, 11.0, 12.5, 13.5):
        switches.attend(now_s)
        frames, connection.out = [json.loads(frame) for frame in connection.out], []
        overflows = [f["msg"]["code"] for f in frames if f["type"] == "error"]
        assert overflows == ([25] if now_s in (10.0, 11.0) else [])
        if "orderbook_delta" not in connection.by_channel and now_s < 12:
            params = {"channels": ["orderbook_delta"], "market_tickers": ["KXTEST-26-T0"]}
            command = {"id": 2, "cmd": "subscribe", "params": params}
            connection.commands.append(json.dumps(command).encode())
            carry_out(venue, connection)
    kinds = [row["kind"] for row in faults_of(venue.ledger)]
    assert (kinds.count("overflow"), kinds[-1]) == (2, "storm_ends")


def test_an_expired_key_cuts_everybody_off_until_its_successor(tmp_path: Path) -> None:
    """The old key stays refused after the rotation."""
    _, connection, switches, verifier = world(tmp_path)
    switches.turn({"key": "expired"})
    assert connection.closing == "close"
    assert verifier.fault({}, "GET", "/x", NOW_MS) == ("key_expired", "the API key has expired")
    new = tmp_path / "new"
    new.mkdir()
    keys = Keys.make(new)
    switches.turn({"key": {"pem": keys.public_file.read_text(), "id": "second"}})
    headers = keys.headers("GET", "/x")
    now_ms = int(headers["KALSHI-ACCESS-TIMESTAMP"])
    assert verifier.fault(headers, "GET", "/x", now_ms) == (
        "unknown_key",
        "there is no such API key",
    )
    headers["KALSHI-ACCESS-KEY"] = "second"
    assert verifier.fault(headers, "GET", "/x", now_ms) is None
    old = {**Keys.make(tmp_path).headers("GET", "/x"), "KALSHI-ACCESS-KEY": "second"}
    fault = verifier.fault(old, "GET", "/x", int(old["KALSHI-ACCESS-TIMESTAMP"]))
    assert fault is not None
    assert fault[0] == "INCORRECT_API_KEY_SIGNATURE"


async def test_rest_goes_down_and_comes_back_over_the_socket(tmp_path: Path) -> None:
    """503, a dropped connection, and again an answer; the switch itself stays reachable."""
    async with exchange(tmp_path, "--synthetic", "1") as running:
        base = f"http://127.0.0.1:{running.ready['port']}"
        async with aiohttp.ClientSession() as http:

            async def turn(body: Any) -> int:
                async with http.post(f"{base}/sim/switch", json=body) as answer:
                    return answer.status

            assert await turn({"rest": "down"}) == 200
            async with http.get(base + REST_PATH) as answer:
                assert answer.status == 503
            assert await turn({"rest": "drop"}) == 200
            with pytest.raises(aiohttp.ClientError):
                await http.get(base + REST_PATH)
            assert await turn({"rest": "up"}) == 200
            async with http.get(base + REST_PATH) as answer:
                assert answer.status == 200
            assert await turn({"rest": "sideways"}) == 400
            assert (await running.status())["faults"]["rest_is_drop"] == 1


async def test_a_client_that_does_not_read_is_cut_off_and_the_play_goes_on(
    tmp_path: Path,
) -> None:
    """Without the switch the play would wait for it for ever, as a demo wants it."""
    flags = ("--synthetic", "20", "--seconds", "600", "--events-per-s", "2000", "--rate", "5")
    async with exchange(tmp_path, *flags) as running:
        tickers = json.loads((running.truth / "markets.json").read_bytes())
        url = running.ready["ws_url"]
        client = await websockets.connect(url, additional_headers=running.keys.headers("GET", PATH))
        params = {"channels": ["orderbook_delta"], "market_tickers": tickers}
        await client.send(json.dumps({"id": 1, "cmd": "subscribe", "params": params}))
        client.transport.pause_reading()
        async with aiohttp.ClientSession() as http:
            switch = f"http://127.0.0.1:{running.ready['port']}/sim/switch"
            while (await running.status())["waiting_for"] != "slow client":  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            held = (await running.status())["events"]
            async with http.post(switch, json={"slow_client_s": 0}) as answer:
                assert answer.status == 200
        while (await running.status())["events"] <= held:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        assert (await running.status())["faults"]["slow_client"] == 1
        client.transport.abort()
