"""What every recorder relies on: runs of one sid are contiguous pieces of each market's history.

The simulated exchange under harsh faults, with clients that come back, ask for snapshots, drop and
add markets at random, is held against its own truth log by code that shares nothing with it but
numpy: if the exchange broke a promise here, every proof above it would be worthless.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from typing import Any

import pytest

from exchange.commands import carry_out
from exchange.connection import Connection
from exchange.faults import FaultLevel
from exchange.timeline import EmptySnapshotItem, Item
from exchange.venue import Pause, Venue
from tests.exchange_worlds import (
    ScriptSource,
    book_client,
    busy_source,
    events_of,
    make_venue,
    sends_of,
    taken,
)

MARKETS = 4
Book = dict[tuple[int, int], int]


def play(seed: int, *actions: str) -> tuple[Venue, dict[int, list[dict[str, Any]]]]:
    """A harsh play with restless clients; every frame by connection number."""
    rng = random.Random(seed)
    source = busy_source(MARKETS, 3_000, seed=seed, step_us=2_000)
    items: list[Item] = list(source.items())
    at_us = items[-1].at_us + 1_000
    items += [EmptySnapshotItem(at_us, 0), EmptySnapshotItem(at_us + 1, 0)]
    source = ScriptSource(source.markets, items, seconds=7)
    venue = make_venue(source, level=FaultLevel.HARSH, seed=seed)
    clients = [book_client(venue) for _ in range(3)]
    got: dict[int, list[dict[str, Any]]] = defaultdict(list)
    while True:
        pause = venue.play(rng.randint(1, 60))
        for connection in clients:
            got[connection.number] += taken(connection)
        if pause is Pause.END:
            return venue, got
        for connection in list(venue.connections.values()):
            if connection.closing is not None:
                venue.closed(connection)
                clients.append(book_client(venue))
            elif rng.random() < 0.6:
                fidget(venue, connection, rng, actions)


def fidget(
    venue: Venue, connection: Connection, rng: random.Random, actions: tuple[str, ...]
) -> None:
    """A random command about some markets; a new subscription if the old one died."""
    tickers = [m.spec.ticker for m in venue.markets if rng.random() < 0.6]
    if not tickers:
        return
    params: dict[str, Any] = {"market_tickers": tickers}
    held = connection.by_channel.get("orderbook_delta")
    if held is None:
        command = {"id": 5, "cmd": "subscribe", "params": {"channels": ["orderbook_delta"]}}
    else:
        action = rng.choice(actions)
        command = {"id": 5, "cmd": "update_subscription", "params": {"action": action}}
        params["sid"] = held.sid
    command["params"] |= params  # type: ignore[operator]
    connection.commands.append(json.dumps(command).encode())
    carry_out(venue, connection)


def levels_of(msg: dict[str, Any]) -> Book:
    return {
        (side, int(price.replace(".", ""))): int(size.replace(".", ""))
        for side, key in enumerate(("yes_dollars_fp", "no_dollars_fp"))
        for price, size in msg.get(key, [])
    }


class Follower:
    """One sid as a careful recorder would follow it: books valid from a snapshot to a gap."""

    def __init__(self) -> None:
        self.seq = 0
        self.books: dict[str, Book] = {}
        self.audits = 0

    def see(self, frame: dict[str, Any]) -> None:
        seq = frame["seq"]
        if seq == self.seq:
            return  # a duplicate
        if seq != self.seq + 1:
            self.books.clear()
        self.seq = seq
        msg = frame.get("msg", {})
        if frame["type"] == "ok":
            for ticker in set(self.books) - set(msg["market_tickers"]):
                del self.books[ticker]
        elif frame["type"] == "orderbook_delta" and msg["market_ticker"] in self.books:
            side = 0 if msg["side"] == "yes" else 1
            key = (side, int(msg["price_dollars"].replace(".", "")))
            book = self.books[msg["market_ticker"]]
            book[key] = book.get(key, 0) + int(msg["delta_fp"].replace(".", ""))
            assert book[key] >= 0
        elif frame["type"] == "orderbook_snapshot":
            told = levels_of(msg)
            held = self.books.get(msg["market_ticker"])
            if held is not None and told:
                assert {key: size for key, size in held.items() if size} == told
                self.audits += 1
            self.books[msg["market_ticker"]] = told


@pytest.mark.parametrize("seed", range(12))
def test_books_followed_over_runs_agree_with_every_later_snapshot(seed: int) -> None:
    """A snapshot stands at its seq, whatever faults and commands came between (EXCH-11)."""
    _, got = play(seed, "get_snapshot", "get_snapshot", "add_markets", "delete_markets")
    audits = 0
    for frames in got.values():
        followers: dict[int, Follower] = defaultdict(Follower)
        for frame in frames:
            if "seq" in frame:
                followers[frame["sid"]].see(frame)
        audits += sum(follower.audits for follower in followers.values())
    assert audits >= 10


@pytest.mark.parametrize("seed", range(12))
def test_a_run_holds_contiguous_events_of_each_market(seed: int) -> None:
    """Between two neighbours of a run no event of that market is missing (while subscribed)."""
    venue, _ = play(seed, "get_snapshot", "add_markets")
    events, sends = events_of(venue.ledger), sends_of(venue.ledger)
    places: dict[int, int] = {}
    counts: dict[int, int] = defaultdict(int)
    for index, market in enumerate(events["market"].tolist()):
        places[index] = counts[market]
        counts[market] += 1
    last: dict[tuple[int, int, int], tuple[int, bool]] = {}
    joined = 0
    for record in sends:
        conn, sid, market = int(record["conn"]), int(record["sid"]), int(record["market"])
        event, kind = int(record["event"]), int(record["kind"])
        if kind == 1 and event < 0:  # a snapshot: the market may have been away until here
            last.pop((conn, sid, market), None)
        if kind > 1 or event < 0 or record["fault"] == 2:
            continue
        assert int(events["market"][event]) == market
        before = last.get((conn, sid, market))
        if before is not None:
            assert places[event] == before[0] + 1
            joined += 1
        last[conn, sid, market] = (places[event], True)
    assert joined > 1_000


def test_a_silently_missing_delta_is_noticed_by_the_follower() -> None:
    """Negative control: one delta of a run taken out and the numbers closed up."""
    _, got = play(3, "get_snapshot")
    noticed = 0
    for frames in got.values():
        sequenced = [frame for frame in frames if frame.get("seq") and frame["sid"] == 1]
        kinds = [frame["type"] for frame in sequenced]
        if kinds.count("orderbook_snapshot") <= MARKETS:
            continue
        victim = len(kinds) - 1 - kinds[::-1].index("orderbook_snapshot")
        ticker = sequenced[victim]["msg"]["market_ticker"]
        before = [
            at
            for at, frame in enumerate(sequenced[:victim])
            if frame["type"] == "orderbook_delta" and frame["msg"]["market_ticker"] == ticker
        ]
        follower = Follower()
        try:
            for at, frame in enumerate(sequenced):
                if before and at != before[-1]:
                    follower.see({**frame, "seq": frame["seq"] - (at > before[-1])})
        except AssertionError:
            noticed += 1
    assert noticed > 0
