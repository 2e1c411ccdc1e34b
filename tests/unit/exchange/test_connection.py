"""One connection: numbers, order, records, and the faults of its slot."""

from __future__ import annotations

import json
from typing import Any

import pytest

from exchange.connection import HELD_BYTES_MAX, Connection, Subscription
from exchange.faults import FrameFault, FrameKind, Slot
from exchange.truth import FAULT_DROPPED, FAULT_DUPLICATE, FAULT_SENT, SEND_REPLY
from exchange.venue import Venue
from tests.exchange_worlds import (
    ScriptSource,
    ask,
    book_client,
    busy_source,
    delta,
    make_venue,
    sends_of,
    spec,
    taken,
)


def with_fault(events: int, fault: FrameFault) -> tuple[Venue, Connection]:
    """One market, one client whose slot has one frame fault planned."""
    items = [delta(0, n * 10) for n in range(events)]
    venue = make_venue(ScriptSource([spec(0)], items))
    connection = book_client(venue)
    taken(connection)
    slot = connection.slot
    assert isinstance(slot, Slot)
    slot.frame_faults = [fault]
    slot.arm()
    return venue, connection


def seqs(frames: list[dict[str, Any]]) -> list[int]:
    return [frame["seq"] for frame in frames if "seq" in frame]


def test_a_dropped_burst_uses_up_numbers_and_leaves_records() -> None:
    """The client sees a gap; the truth knows what it lost."""
    venue, connection = with_fault(10, FrameFault(4, FrameKind.DROP, 3))
    venue.play(100)
    assert seqs(taken(connection)) == [2, 3, 4, 8, 9, 10, 11]
    sends = sends_of(venue.ledger)
    assert sends["seq"].tolist() == list(range(1, 12))
    dropped = sends[sends["fault"] == FAULT_DROPPED]
    assert dropped["event"].tolist() == [3, 4, 5]


def test_a_gap_without_loss_skips_numbers_only() -> None:
    """The client must suspect a loss although there was none."""
    venue, connection = with_fault(6, FrameFault(3, FrameKind.GAP, 2))
    venue.play(100)
    assert seqs(taken(connection)) == [2, 3, 6, 7, 8, 9]
    sends = sends_of(venue.ledger)
    skipped = sends[sends["fault"] == FAULT_DROPPED]
    assert skipped["kind"].tolist() == [SEND_REPLY, SEND_REPLY]
    assert skipped["event"].tolist() == [-1, -1]


def test_a_duplicate_is_the_same_frame_twice() -> None:
    """Equal bytes, equal seq, marked in the truth."""
    venue, connection = with_fault(3, FrameFault(2, FrameKind.DUPLICATE))
    venue.play(100)
    out = list(connection.out)
    assert out[1] == out[2]
    assert seqs([json.loads(frame) for frame in out]) == [2, 3, 3, 4]
    assert sends_of(venue.ledger)["fault"].tolist()[1:] == [
        FAULT_SENT,
        FAULT_SENT,
        FAULT_DUPLICATE,
        FAULT_SENT,
    ]


def test_a_frame_of_an_unknown_type_uses_no_number() -> None:
    """Clients keep what they do not understand and go on."""
    venue, connection = with_fault(3, FrameFault(2, FrameKind.UNKNOWN))
    venue.play(100)
    frames = taken(connection)
    assert [frame["type"] for frame in frames].count("weather_notice") == 1
    assert seqs(frames) == [2, 3, 4]


@pytest.mark.parametrize("ending", ["release", "discard"])
def test_a_stall_holds_everything_then_sends_or_loses_it(ending: str) -> None:
    """What a reset cut off was never sent: the truth must not count it."""
    venue = make_venue(ScriptSource([spec(0)], [delta(0, n) for n in range(5)]))
    connection = book_client(venue)
    taken(connection)
    venue.play(2)
    connection.stall()
    venue.play(3)
    assert len(taken(connection)) == 2
    getattr(connection, ending)()
    sends = sends_of(venue.ledger)
    assert sends["seq"].tolist() == [1, 2, 3, 4, 5, 6]
    if ending == "release":
        assert seqs(taken(connection)) == [4, 5, 6]
        assert set(sends["fault"]) == {FAULT_SENT}
    else:
        assert taken(connection) == []
        assert sends["fault"].tolist()[-3:] == [FAULT_DROPPED] * 3


def test_a_stall_that_holds_too_much_ends_early() -> None:
    """Bounded memory: released, never dropped, and told."""
    venue = make_venue(ScriptSource([spec(0)], []))
    connection = book_client(venue)
    taken(connection)
    connection.stall()
    frame = b"x" * (HELD_BYTES_MAX // 4)
    for _ in range(5):
        connection.put(frame, None)
    assert [len(sent) for sent in connection.out] == [len(frame)] * 5
    assert venue.faults["stall_overfull"] == 1


def test_markets_change_places_between_connections_but_not_within_one_market() -> None:
    """Order within a market is the exchange's; between markets it is each connection's own."""
    venue = make_venue(busy_source(5, 400, step_us=200))
    first, second = book_client(venue), book_client(venue)
    venue.play(1_000)
    orders: list[list[tuple[str, str]]] = []
    for connection in (first, second):
        frames = [f for f in taken(connection) if f["type"] == "orderbook_delta"]
        assert seqs(frames) == list(range(6, 406))
        orders.append([(f["msg"]["market_ticker"], json.dumps(f["msg"])) for f in frames])
    assert orders[0] != orders[1]
    for market in venue.markets:
        mine = [[row for row in order if row[0] == market.spec.ticker] for order in orders]
        assert mine[0] == mine[1]


def test_a_subscription_without_markets_counts_from_one() -> None:
    """Each sid has its own counter; the ticker has none."""
    venue = make_venue(ScriptSource([spec(0)], []))
    connection = venue.open("0" * 16, 1)
    ask(venue, connection, "subscribe", channels=["trade", "ticker"])
    trade, ticker = connection.by_channel["trade"], connection.by_channel["ticker"]
    assert isinstance(trade, Subscription)
    assert (trade.sid, trade.seq, trade.sequenced) == (1, 0, True)
    assert (ticker.sid, ticker.sequenced) == (2, False)
