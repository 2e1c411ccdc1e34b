"""Faithful play: recorded frames under the client's own numbers, with the gatherer's losses."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest

from exchange.recorded_venue import ANSWERS, JUMP_MAX
from exchange.recording import DamageItem, StateItem
from exchange.venue import Pause
from marketdata.continuity import Continuity
from tests import wire_frames as wire
from tests.recording_worlds import (
    CONNECT,
    START_US,
    Script,
    ScriptedRecording,
    ask,
    brief,
    client,
    closed,
    opening,
    play_all,
    played,
    taken,
    venue_of,
)


def test_every_recorded_frame_arrives_byte_for_byte_under_the_clients_numbers() -> None:
    """EXCH-18: odd numbers, unknown fields and key orders too; the gatherer's `id` is left out."""
    odd = wire.delta(4, "A").replace(b'"delta_fp"', b'"queue" : 1e3, "delta_fp"')
    answer = wire.snapshot(5, "A").replace(b'{"type"', b'{"id":9,"type"')
    msg = {"market_ticker": "A", "price_dollars": "0.4000", "delta_fp": "1.00", "side": "no",
           "ts_ms": 1786085188000}  # fmt: skip
    turned = json.dumps({"seq": 6, "msg": msg, "sid": 1, "type": "orderbook_delta"}).encode()
    frames = [wire.delta(2, "A"), wire.delta(3, "A"), odd, answer, turned, wire.ticker(3, "A"),
              wire.trade(1, 2, "A")]  # fmt: skip
    script: Script = [*opening(1, "A"), *((1, frame) for frame in frames)]
    venue = played("A", script)
    connection = client(venue, "A", "ticker", "trade")
    taken(connection)
    assert venue.play(100) is Pause.END
    sent = [frame for _, frame in script if isinstance(frame, bytes)][1:]
    sent[4] = wire.snapshot(5, "A")
    given = [frame.replace(b'"sid":3', b'"sid":2') for frame in connection.out]
    expected = [frame.replace(b'"sid":3', b'"sid":2') for frame in sent]
    expected[-1] = expected[-1].replace(b'"sid":2', b'"sid":3')  # trade was the third channel
    given[-1] = given[-1].replace(b'"sid":2', b'"sid":3')
    assert given == expected
    assert (venue.events, venue.trades_told, venue.tickers_told) == (4, 1, 1)
    assert venue.counts == {ANSWERS: 1}


def test_a_client_of_some_markets_has_numbers_of_its_own_without_holes() -> None:
    script = [*opening(1, "AB"), (1, wire.delta(3, "A")), (1, wire.delta(4, "B")),
              (1, wire.delta(5, "A"))]  # fmt: skip
    venue = played("AB", script)
    one, both = client(venue, "A"), client(venue, "AB")
    venue.play(100)
    assert brief(one) == [("snaps", "A", 1), ("delta", "A", 2), ("delta", "A", 3)]
    assert [row[2] for row in brief(both)] == [1, 2, 3, 4, 5]


def test_a_gap_is_a_jump_at_the_same_place_for_whoever_has_something_of_it() -> None:
    """Also where the first frame after it is of another market, or an answer to the gatherer."""
    ok = b'{"id":7,"sid":1,"seq":8,"type":"ok","msg":{}}'
    script = [*opening(1, "AB"), *opening(2, "C"), (1, wire.delta(5, "B")), (1, wire.delta(6, "A")),
              (1, ok), (1, wire.snapshot(9, "A")), (2, wire.delta(2, "C"))]  # fmt: skip
    venue = played("ABC", script)
    a, c, every = client(venue, "A"), client(venue, "C"), client(venue, "ABC")
    venue.play(100)
    assert brief(a) == [("snaps", "A", 1), ("delta", "A", 4), ("snaps", "A", 6)]
    assert brief(c) == [("snaps", "C", 1), ("delta", "C", 2)]
    assert [row[1:] for row in brief(every)] == [
        ("A", 1), ("B", 2), ("C", 3), ("B", 6), ("A", 7), ("A", 9), ("C", 10)
    ]  # fmt: skip
    assert venue.faults["gap"] == 2


def test_a_damaged_number_does_not_make_a_jump_without_end() -> None:
    venue = played("A", [*opening(1, "A"), (1, wire.delta(9_000_000_000, "A"))])
    connection = client(venue, "A")
    venue.play(100)
    assert brief(connection)[-1] == ("delta", "A", JUMP_MAX + 2)


def test_a_frame_that_came_twice_or_late_comes_so_again() -> None:
    script = [*opening(1, "AB"), (1, wire.delta(3, "A")), (1, wire.delta(3, "A")),
              (1, wire.delta(6, "B")), (1, wire.delta(5, "A")),
              (1, wire.delta(7, "A"))]  # fmt: skip
    venue = played("AB", script)
    both, a = client(venue, "AB"), client(venue, "A")
    venue.play(100)
    assert [row[2] for row in brief(both)] == [1, 2, 3, 3, 6, 5, 7]
    # The hole stands for A's lost frames too; B's own frame is none of them.
    assert [row[2] for row in brief(a)] == [1, 2, 2, 4, 5]


def test_who_subscribes_in_mid_stream_gets_the_gatherers_book_and_then_the_changes() -> None:
    script = [*opening(1, "AB"), (1, wire.delta(3, "A", size="2.50")), (1, wire.delta(4, "A"))]
    venue = played("AB", script)
    client(venue, "AB")
    venue.play(5)
    late = client(venue, "A")
    assert [(row["seq"], row["msg"]) for row in taken(late) if "seq" in row] == [
        (1, {"market_ticker": "A", "market_id": "x", "yes_dollars_fp": [["0.4000", "7.50"]]})
    ]
    venue.play(100)
    assert brief(late) == [("delta", "A", 2)]


def test_a_snapshot_asked_for_where_the_gatherer_knew_no_book_comes_when_it_came() -> None:
    """After a gap; with the id of the client's command. Before the gap and after it at once."""
    script = [*opening(1, "A"), (1, wire.delta(4, "A")), (1, wire.snapshot(5, "A", size="9.00")),
              (1, wire.delta(6, "A"))]  # fmt: skip
    venue = played("A", script)
    connection = client(venue, "A")
    sid = connection.by_channel["orderbook_delta"].sid
    asking = {"sid": sid, "action": "get_snapshot", "market_tickers": ["A"]}
    venue.play(3)
    taken(connection)
    ask(venue, connection, "update_subscription", id=5, **asking)
    assert [(r["id"], r["seq"]) for r in taken(connection)] == [(5, 2)]
    venue.play(1)
    assert brief(connection) == [("delta", "A", 5)]
    ask(venue, connection, "update_subscription", id=6, **asking)
    ask(venue, connection, "update_subscription", id=7, **asking)
    assert taken(connection) == []
    venue.play(1)
    found = taken(connection)
    assert [(row["id"], row["seq"]) for row in found] == [(6, 6), (7, 7)]
    assert found[0]["msg"]["yes_dollars_fp"] == [["0.4000", "9.00"]]
    venue.play(1)
    ask(venue, connection, "update_subscription", id=8, **asking)
    assert brief(connection) == [("delta", "A", 8), ("snaps", "A", 9)]


@pytest.mark.parametrize(
    ("body", "how", "frame"),
    [
        (closed("closed_by_peer", 1012, "restart"), "close", (1012, "restart")),
        (closed("closed_by_us", 1000), "close", (1000, "")),
        (closed("closed_by_peer", 1005), "close", (None, "")),
        (closed("reset"), "drop", None),
        (closed("data_timeout", 1000), "drop", None),
        (closed("died"), "drop", None),
        (closed("closed_by_peer", 1006), "drop", None),
    ],
)
def test_a_recorded_disconnect_ends_the_clients_that_had_something_of_it(
    body: dict[str, Any], how: str, frame: object
) -> None:
    script = [*opening(1, "AB"), *opening(2, "C"), (1, body), (2, wire.delta(2, "C"))]
    venue = played("ABC", script)
    a, c, every = client(venue, "A"), client(venue, "C"), client(venue, "ABC")
    idle = client(venue)
    play_all(venue)
    assert [x.closing for x in (a, c, every, idle)] == [how, None, how, None]
    assert frame is None or a.close_frame == frame
    assert brief(c)[-1] == ("delta", "C", 2)
    assert all(row[1] != "C" or row[0] == "snaps" for row in brief(every))
    assert venue.refusal() is None
    assert venue.told()["closes"] == 2


def test_who_comes_back_gets_each_book_when_the_gatherer_got_it() -> None:
    """The other connection's at once, that of the lost one with the recorded snapshot."""
    back: Script = [(3, CONNECT), (3, wire.subscribed(1)), (3, wire.snapshot(1, "A", size="7.00"))]
    script = [*opening(1, "A"), *opening(2, "C"), (1, closed()), *back, (3, wire.delta(2, "A"))]
    venue = played("AC", script)
    client(venue, "AC")
    assert venue.play(100) is Pause.RETURN
    assert not venue.returned()
    again = client(venue, "AC")
    assert venue.returned()
    assert brief(again) == [("snaps", "C", 1)]
    venue.play(100)
    assert brief(again) == [("snaps", "A", 2), ("delta", "A", 3)]


def test_nobody_connects_while_the_gatherer_was_away() -> None:
    script = [*opening(1, "A"), (1, closed()), (0, {"k": "note"}), *opening(2, "A")]
    venue = played("A", script)
    assert venue.refusal() is None, "before the play anybody may come"
    client(venue, "A")
    venue.play(4)
    assert venue.refusal() is not None
    venue.play(1)
    assert venue.refusal() is not None
    assert venue.play(1) is Pause.RETURN
    assert venue.refusal() is None


def test_a_channel_that_the_gatherer_had_lost_is_answered_once_it_was_back() -> None:
    """Else a client would think that it had all trades of an outage."""
    trades: Script = [(2, CONNECT), (2, wire.subscribed(2, "trade")), (2, wire.trade(1, 2, "A"))]
    again: Script = [(3, CONNECT), (3, wire.subscribed(2, "trade")), (3, wire.trade(1, 2, "A"))]
    script = [*opening(1, "A"), *trades, (2, closed()), (1, wire.delta(2, "A")), *again]
    venue = played("A", script)
    lost = client(venue, "", "trade")
    venue.play(7)
    assert lost.closing == "drop"
    late = client(venue, "A", "trade")
    assert [row["type"] for row in taken(late)] == ["subscribed", "orderbook_snapshot"]
    assert len(late.deferred) == 1
    venue.play(2)
    ask(venue, late, "list_subscriptions")
    assert [row["type"] for row in taken(late)] == ["orderbook_delta", "ok"]
    venue.play(1)  # the recorded `subscribed`
    ask(venue, late, "list_subscriptions")
    assert [row["type"] for row in taken(late)] == ["subscribed", "ok"]
    venue.play(1)
    assert brief(late) == [("trade", "A", 1)]


def test_a_market_on_its_way_between_two_connections_is_played_once() -> None:
    """EXCH-17: the old one stays until it drops the market; then the other's book comes."""
    drop = {"k": "subscribe", "command": {"id": 4, "params": {
        "action": "delete_markets", "market_tickers": ["A"]}}}  # fmt: skip
    ok = b'{"id":4,"sid":1,"seq":4,"type":"ok","msg":{}}'
    script = [*opening(1, "AB"), *opening(2, "CA"), (1, wire.delta(3, "A")),
              (2, wire.delta(3, "A", size="2.00")), (1, drop), (1, ok),
              (2, wire.delta(4, "A"))]  # fmt: skip
    venue = played("ABC", script)
    connection = client(venue, "A")
    venue.play(100)
    assert brief(connection) == [
        ("snaps", "A", 1), ("delta", "A", 2), ("snaps", "A", 3), ("delta", "A", 4)
    ]  # fmt: skip
    assert venue.counts["carried twice"] == 2
    assert connection.closing is None


def test_an_overflow_of_the_recording_ends_the_clients_subscription_in_the_same_way() -> None:
    overflow = b'{"type":"error","sid":1,"seq":3,"msg":{"code":25,"msg":"overflow"}}'
    again: Script = [(1, wire.subscribed(2)), (1, wire.snapshot(1, "A", sid=2))]
    script = [*opening(1, "A"), (1, wire.delta(2, "A")), (1, overflow), *again]
    venue = played("A", script)
    connection = client(venue, "A")
    venue.play(5)
    rows = taken(connection)
    assert rows[-1] == {"type": "error", "sid": 1, "seq": 3,
                        "msg": {"code": 25, "msg": "overflow"}}  # fmt: skip
    assert connection.by_sid == {}
    ask(venue, connection, "subscribe", channels=["orderbook_delta"], market_tickers=["A"])
    assert brief(connection) == []
    venue.play(100)
    assert brief(connection) == [("snaps", "A", 1)]


def test_what_cannot_be_given_under_a_sid_is_counted_and_the_rest_is_given() -> None:
    """EXCH-20: a frame that is JSON and names a subscription reaches the client, whatever it is."""
    bad_price = wire.delta(2, "A").replace(b"0.4000", b"lots")
    novel = b'{"type":"novelty","sid":1,"seq":3,"msg":{"x":1}}'
    nowhere = wire.delta(9, "A", sid=7).replace(b'"side":"yes"', b'"side":"up"')
    multi = "multivariate_market_lifecycle"
    life = {"type": multi, "sid": 5, "seq": 1, "msg": {"market_ticker": "A", "event_type": "x"}}
    other: Script = [(1, wire.subscribed(5, multi)), (1, json.dumps(life).encode())]
    script = [*opening(1, "A"), (1, bad_price), (1, b"{torn"), (1, novel), (1, nowhere), *other]
    venue = played("A", script)
    connection = client(venue, "A")
    venue.play(100)
    rows = [row for row in taken(connection) if "seq" in row]
    assert [(row["type"], row["seq"]) for row in rows] == [
        ("orderbook_snapshot", 1), ("orderbook_delta", 2), ("novelty", 3)
    ]  # fmt: skip
    assert rows[1]["msg"]["price_dollars"] == "lots"
    assert venue.counts == {
        ANSWERS: 2, "no JSON object": 1, "no subscription": 1,
        "channel multivariate_market_lifecycle": 1,
    }  # fmt: skip


def test_prices_come_on_the_yes_scale_for_who_asks() -> None:
    """Also in the snapshot that the venue makes itself."""
    no = wire.delta(2, "A").replace(b'"side":"yes"', b'"side":"no"').replace(b"0.4000", b"0.3000")
    venue = played("A", [*opening(1, "A"), (1, no), (1, wire.delta(3, "A"))])
    usual, turned = client(venue, "A"), client(venue, "A", use_yes_price=True)
    venue.play(100)
    prices = [
        [row["msg"]["price_dollars"] for row in taken(c) if row["type"] == "orderbook_delta"]
        for c in (usual, turned)
    ]
    assert prices == [["0.3000", "0.4000"], ["0.7000", "0.4000"]]
    late = taken(client(venue, "A", use_yes_price=True))[-1]["msg"]
    assert late["no_dollars_fp"] == [["0.7000", "1.00"]]
    assert late["yes_dollars_fp"] == [["0.4000", "6.00"]]


def test_only_the_chosen_markets_are_played_and_one_unforeseen_is_listed() -> None:
    msg = {"market_ticker": "B", "event_type": "created"}
    row = {"type": "market_lifecycle_v2", "sid": 5, "seq": 1, "msg": msg}
    life = json.dumps(row).encode()
    script = [*opening(1, "AB"), (1, wire.trade(1, 2, "B")), (1, wire.trade(2, 2, "A")),
              (1, wire.subscribed(5, "market_lifecycle_v2")), (1, life)]  # fmt: skip
    for chosen, numbers, kinds in ((True, [1], ["trade"]), (False, [1, 2], ["trade"] * 2)):
        venue = played("A", script, chosen=chosen)
        connection = client(venue, "", "trade", "market_lifecycle_v2")
        venue.play(100)
        rows = [row for row in taken(connection) if "seq" in row]
        assert [row["seq"] for row in rows if row["type"] == "trade"] == numbers
        assert [row["type"] for row in rows] == [*kinds, *(["market_lifecycle_v2"] * (not chosen))]
        assert set(venue.numbers) == ({"A"} if chosen else {"A", "B"})


def test_rest_tells_what_the_gatherer_knew() -> None:
    by_rest = {"trade_id": "961535f3-d80f-5462-e91d-00000000beef", "ticker": "A",
               "yes_price_dollars": "0.4000", "no_price_dollars": "0.6000", "count_fp": "1.00",
               "taker_side": "no", "created_time": "2026-08-07T06:46:27.5Z"}  # fmt: skip
    script = [*opening(1, "A"), (1, wire.trade(1, 2, "A")), (1, wire.ticker(3, "A")),
              (0, {"k": "rest_trades", "trades": [by_rest, {"odd": 1}]}),
              (1, closed())]  # fmt: skip
    venue = played("A", script)
    venue.play(6)
    assert json.loads(venue.orderbook_json(0))["yes_dollars"] == [["0.4000", "5.00"]]
    assert orjson.loads(venue.markets[0].told)["volume_fp"] == "10.00"
    rows = [orjson.loads(text) for _, _, text in venue.rest_trades]
    assert rows[1] == by_rest
    assert rows[0]["ticker"] == "A"
    assert rows[0]["created_time"] == "2026-08-07T06:46:28.5Z"
    assert {"market_ticker", "ts", "ts_ms"}.isdisjoint(rows[0])
    venue.play(1)
    assert json.loads(venue.orderbook_json(0))["yes_dollars"] == [], "it knew no book any more"


def test_after_a_jump_in_time_every_subscriber_gets_the_books_of_that_time() -> None:
    """Those that the gatherer did not know empty; numbers go on."""
    script = [*opening(1, "AB"), (1, wire.delta(3, "A")), (1, wire.delta(4, "A"))]
    source = ScriptedRecording("AB", script)
    venue = venue_of(source)
    connection = client(venue, "AB")
    venue.play(100)
    taken(connection)
    for at_us, sizes in ((START_US + 3_000, ["5.00", None]), (START_US + 5_000, ["6.00", "5.00"])):
        venue.jump(source.items_from(at_us), at_us)
        venue.play(1)
        rows = taken(connection)
        books = [row["msg"].get("yes_dollars_fp") for row in rows]
        assert books == [None if size is None else [["0.4000", size]] for size in sizes]
    venue.play(100)
    assert brief(connection) == [("delta", "A", 9)]


def test_who_begins_in_the_middle_knows_books_of_markets_that_are_quiet_since() -> None:
    script = [*opening(1, "AB"), (1, wire.delta(3, "A")), (1, wire.delta(4, "A"))]
    source = ScriptedRecording("A", script)
    source.items = lambda: source.items_from(START_US + 5_000)  # type: ignore[method-assign]
    venue = venue_of(source)
    assert set(venue.numbers) == {"A", "B"}
    assert brief(client(venue, "B")) == [("snaps", "B", 1)]


def test_damage_of_the_recording_ends_every_client_and_is_told() -> None:
    script = opening(1, "A")
    source = ScriptedRecording("A", script)
    venue = venue_of(source)
    connection, idle = client(venue, "A"), client(venue)
    venue.play(100)
    behind = StateItem(START_US + 3_000, Continuity(0), {}, damage="00000001.seg: unreadable")
    venue.jump(iter([behind, DamageItem(START_US + 3_000, "torn")]), START_US)
    venue.play(100)
    assert (connection.closing, idle.closing) == ("drop", None)
    assert venue.told()["damage"] == ["00000001.seg: unreadable", "torn"]
