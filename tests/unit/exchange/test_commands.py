"""Commands: replies, error codes, the rules of sid and seq."""

from __future__ import annotations

import json
from typing import Any

import pytest

from exchange.commands import DEFERRED_MAX, carry_out
from exchange.faults import FaultLevel
from exchange.venue import Venue
from tests.exchange_worlds import (
    START_US,
    ScriptSource,
    ask,
    book_client,
    busy_source,
    delta,
    faults_of,
    make_venue,
    sends_of,
    spec,
    taken,
)

T0, T1, T2 = "KXTEST-26-T0", "KXTEST-26-T1", "KXTEST-26-T2"


@pytest.fixture
def venue() -> Venue:
    return make_venue(ScriptSource([spec(0), spec(1), spec(2)], [delta(0, 1), delta(0, 2)]))


def test_one_command_for_two_channels_gets_two_sids(venue: Venue) -> None:
    """Two `subscribed` with one id; neither has a top-level sid or seq."""
    frames = ask(venue, venue.open("0" * 16, 1), "subscribe", channels=["ticker", "trade"])
    assert frames == [
        {"id": 7, "type": "subscribed", "msg": {"channel": "ticker", "sid": 1}},
        {"id": 7, "type": "subscribed", "msg": {"channel": "trade", "sid": 2}},
    ]


def test_a_command_with_id_0_is_answered_without_an_id(venue: Venue) -> None:
    """0 means that the client wants no correlation: no answer of any kind names it."""
    connection = venue.open("0" * 16, 1)
    channels = ["ticker", "orderbook_delta", "no such"]
    frames = ask(venue, connection, "subscribe", id=0, channels=channels, market_ticker=T0)
    frames += ask(venue, connection, "subscribe", id=0, channels=["ticker"], market_ticker=T1)
    frames += ask(venue, connection, "list_subscriptions", id=0)
    frames += ask(venue, connection, "unsubscribe", id=0, sids=[1, 2, 9])
    frames += ask(venue, connection, "no such", id=0)
    kinds = {frame["type"] for frame in frames}
    assert kinds == {"subscribed", "orderbook_snapshot", "ok", "unsubscribed", "error"}
    assert all("id" not in frame for frame in frames)


def test_an_unknown_channel_is_an_error_beside_the_good_ones(venue: Venue) -> None:
    """A partial success, as recorded."""
    connection = venue.open("0" * 16, 1)
    frames = ask(venue, connection, "subscribe", channels=["ticker_v2", "ticker"])
    assert [f["type"] for f in frames] == ["error", "subscribed"]
    assert frames[0]["msg"]["code"] == 8


def test_a_second_subscribe_merges_and_its_ok_uses_up_a_number(venue: Venue) -> None:
    """One sid per channel; `ok` lists the growing set, then the new market's snapshot."""
    connection = venue.open("0" * 16, 1)
    books = {"channels": ["orderbook_delta"]}
    first = ask(venue, connection, "subscribe", **books, market_ticker=T1)
    assert [(f["type"], f.get("seq")) for f in first] == [
        ("subscribed", None),
        ("orderbook_snapshot", 1),
    ]
    second = ask(venue, connection, "subscribe", **books, market_tickers=[T0, T1])
    assert second[0] == {
        "id": 7,
        "sid": 1,
        "seq": 2,
        "type": "ok",
        "msg": {"market_tickers": [T0, T1]},
    }
    assert [(f["seq"], f["msg"]["market_ticker"]) for f in second[1:]] == [(3, T0)]
    third = ask(venue, connection, "subscribe", **books, market_ticker=T0)
    assert [(f["type"], f["seq"]) for f in third] == [("ok", 4)]


def test_skip_ticker_ack_leaves_the_list_out(venue: Venue) -> None:
    """A list of 30,000 tickers is a megabyte: clients ask for this."""
    connection = venue.open("0" * 16, 1)
    params = {"channels": ["orderbook_delta"], "skip_ticker_ack": True}
    ask(venue, connection, "subscribe", **params, market_ticker=T1)
    again = ask(venue, connection, "subscribe", **params, market_ticker=T2)
    assert again[0]["msg"] == {}


def test_update_subscription_adds_deletes_and_snapshots(venue: Venue) -> None:
    """The three actions, each with its numbers; get_snapshot changes nothing."""
    connection = book_client(venue, [0])
    taken(connection)
    update = {"cmd": "update_subscription", "sids": [1]}
    added = ask(venue, connection, **update, action="add_markets", market_tickers=[T1])
    assert [(f["type"], f["seq"]) for f in added] == [("ok", 2), ("orderbook_snapshot", 3)]
    told = ask(venue, connection, **update, action="get_snapshot", market_tickers=[T1, T2], id=9)
    assert [(f["id"], f["seq"], f["msg"]["market_ticker"]) for f in told] == [(9, 4, T1)]
    gone = ask(venue, connection, **update, action="delete_markets", market_tickers=[T0])
    assert gone[0]["msg"] == {"market_tickers": [T1]}
    venue.play(10)
    assert taken(connection) == []


def test_unsubscribe_ends_the_sid_and_list_tells_the_rest(venue: Venue) -> None:
    """`unsubscribed` is the sid's last number; the list reply has neither sid nor seq."""
    connection = book_client(venue, [0])
    ask(venue, connection, "subscribe", channels=["ticker"])
    listed = ask(venue, connection, "list_subscriptions")
    assert listed[0]["msg"] == [
        {"channel": "orderbook_delta", "sid": 1},
        {"channel": "ticker", "sid": 2},
    ]
    ended = ask(venue, connection, "unsubscribe", sids=[1, 2, 5])
    assert [(f["type"], f.get("sid"), f.get("seq")) for f in ended] == [
        ("unsubscribed", 1, 2),
        ("unsubscribed", 2, None),
        ("error", None, None),
    ]
    venue.play(10)
    assert taken(connection) == []
    again = ask(venue, connection, "subscribe", channels=["orderbook_delta"], market_ticker=T0)
    assert again[0]["msg"]["sid"] == 3


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("no json", 1),
        ('{"id": 1}', 1),
        ('{"id": -1, "cmd": "subscribe"}', 1),
        ('{"id": 1, "cmd": "subscribe"}', 2),
        ('{"id": 1, "cmd": "subscribe", "params": {"channels": []}}', 3),
        ('{"id": 1, "cmd": "unsubscribe", "params": {}}', 2),
        ('{"id": 1, "cmd": "unsubscribe", "params": {"sids": [], "x": 1}}', 4),
        ('{"id": 1, "cmd": "fly", "params": {}}', 5),
        ('{"id": 1, "cmd": "update_subscription", "params": {"sid": 9, "action": "x"}}', 7),
        ('{"id": 1, "cmd": "update_subscription", "params": {"sids": [1, 2]}}', 12),
        ('{"id": 1, "cmd": "update_subscription", "params": {"sid": 1, "action": "x"}}', 13),
        ('{"id": 1, "cmd": "update_subscription", "params": {"sid": 1}}', 15),
        ('{"cmd": "update_subscription", "params": {"sid": 1, "action": "add_markets"}}', 14),
        ('{"id": 1, "cmd": "subscribe", "params": {"channels": ["orderbook_delta"]}}', 14),
        ('{"cmd": "subscribe", "params": {"channels": ["trade"], "market_tickers": "b"}}', 11),
    ],
)
def test_wrong_commands_get_their_code(venue: Venue, command: str, code: int) -> None:
    """The exchange's own codes; the connection lives on."""
    connection = book_client(venue, [0])
    taken(connection)
    connection.commands.append(command.encode())
    carry_out(venue, connection)
    frames = taken(connection)
    assert [f["type"] for f in frames] == ["error"]
    assert frames[0]["msg"]["code"] == code
    assert ask(venue, connection, "list_subscriptions")[0]["type"] == "ok"


def test_an_unknown_ticker_is_passed_over_in_silence(venue: Venue) -> None:
    """The retired code 16: clients must check that every ticker brought a snapshot."""
    frames = ask(
        venue,
        venue.open("0" * 16, 1),
        "subscribe",
        channels=["orderbook_delta"],
        market_tickers=["KXNONE", T0],
    )
    assert [f["type"] for f in frames] == ["subscribed", "orderbook_snapshot"]


def ids_answered(seed: int, level: FaultLevel) -> list[int]:
    venue = make_venue(busy_source(8, 10), level=level, seed=seed)
    connection = venue.open("0" * 16, 1)
    for number in range(1, 9):
        params: dict[str, Any] = {
            "channels": ["orderbook_delta"],
            "market_ticker": f"KXTEST-26-T{number - 1}",
        }
        command = {"id": number, "cmd": "subscribe", "params": params}
        connection.commands.append(json.dumps(command).encode())
    carry_out(venue, connection)
    return [f["id"] for f in taken(connection) if "id" in f]


def test_acks_are_shuffled_under_a_fault_plan_only() -> None:
    """Recorded: twelve commands answered as 2,4,3,6,5,1,8,..."""
    assert ids_answered(1, FaultLevel.NONE) == list(range(1, 9))
    shuffled = ids_answered(1, FaultLevel.STANDARD)
    assert shuffled != list(range(1, 9))
    assert sorted(shuffled) == list(range(1, 9))


def test_a_late_snapshot_comes_after_deltas_and_contains_them() -> None:
    """Deltas before the first snapshot: the run floats, the snapshot closes it backwards."""
    seen = 0
    for seed in range(12):
        source = busy_source(1, 3_000, step_us=1_000)
        venue = make_venue(source, level=FaultLevel.HARSH, seed=seed)
        connection = book_client(venue)
        late = [f for f in faults_of(venue.ledger) if f["kind"] == "late_snapshot"]
        venue.play(3_000, START_US + 500_000)
        kinds = [f["type"] for f in taken(connection) if f["type"].startswith("orderbook")]
        if late and "orderbook_snapshot" in kinds[1:]:
            seen += 1
            assert kinds.index("orderbook_snapshot") > 0
    assert seen >= 2
    assert len(sends_of(venue.ledger)) > 0


def test_a_channel_that_the_venue_has_lost_is_answered_when_it_is_back(venue: Venue) -> None:
    """In the order asked for; more than DEFERRED_MAX are refused."""
    connection = venue.open("00" * 8, 1)
    venue.lost = {"trade"}
    both = ask(venue, connection, "subscribe", id=3, channels=["trade", "ticker"])
    assert [(row["id"], row["msg"]["channel"]) for row in both] == [(3, "ticker")]
    for number in range(DEFERRED_MAX):
        rows = ask(venue, connection, "subscribe", id=4 + number, channels=["trade"])
    assert [row["msg"]["code"] for row in rows] == [27]
    venue.lost = set()
    carry_out(venue, connection)
    assert [(row["id"], row["type"]) for row in taken(connection)][:2] == [
        (3, "subscribed"),
        (4, "ok"),
    ]
    assert connection.deferred == []
