"""The paced exchange: what it says a book is, is what its frames add up to."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from tests.bench import paced
from tests.bench.generator import ticker_name
from tests.bench.paced import Client, Streams


class Wire:
    """Takes what is written and reads it back as frames."""

    def __init__(self) -> None:
        self.frames: list[dict[str, Any]] = []

    def write(self, data: bytes) -> None:
        while data:
            size, head = data[1], 2
            if size == 126:
                size, head = int.from_bytes(data[2:4], "big"), 4
            self.frames.append(json.loads(data[head : head + size]))
            data = data[head + size :]


def summed(frames: list[dict[str, Any]], ticker: str) -> Counter[tuple[str, int]]:
    sums: Counter[tuple[str, int]] = Counter()
    for frame in frames:
        if frame["type"] == "orderbook_delta" and frame["msg"]["market_ticker"] == ticker:
            msg = frame["msg"]
            cents = int(msg["price_dollars"][2:4])
            sums[msg["side"], cents] += int(msg["delta_fp"].replace(".", ""))
    return sums


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Streams:
    monkeypatch.setattr(paced, "CYCLE", 97)
    return Streams(5)


def client_of(streams: Streams) -> tuple[Client, Wire]:
    client, wire = Client(streams), Wire()
    client.transport = wire  # type: ignore[assignment]  # writing is all that is used
    return client, wire


def test_a_book_is_what_its_frames_add_up_to_from_any_place_of_the_cycle(streams: Streams) -> None:
    client, wire = client_of(streams)
    streams.send(41)  # nobody is subscribed yet
    client.give([ticker_name(n) for n in range(5)], is_new=True)
    for count in (7, 100, 49, 300, 1):
        streams.send(count)
        for market in range(5):
            ticker = ticker_name(market)
            told, seen = streams.book(market), summed(wire.frames, ticker)
            assert {k: v for k, v in told.items() if v} == {k: v for k, v in seen.items() if v}
    assert sum(streams.sent[kind] for kind in paced.KINDS) == streams.sent["orderbook_delta"] > 300


def test_numbers_follow_one_another_and_snapshots_stand_among_them(streams: Streams) -> None:
    client, wire = client_of(streams)
    client.give([ticker_name(n) for n in range(5)], is_new=True)
    streams.send(50)
    client.give([ticker_name(0)], is_new=False)
    streams.send(50)
    assert [frame["seq"] for frame in wire.frames] == list(range(1, len(wire.frames) + 1))
    snapshots = [f["msg"] for f in wire.frames if f["type"] == "orderbook_snapshot"]
    assert len(snapshots) == 6
    assert snapshots[0] != snapshots[-1], "the later one has the changes in it"
