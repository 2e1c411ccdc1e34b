"""The venue: truth, books, holes, waiting, determinism."""

from __future__ import annotations

import json
from typing import Any

import pytest

from exchange.connection import Connection
from exchange.faults import FaultLevel, TimeFault, TimeKind
from exchange.timeline import (
    TIME_MS_ONLY,
    BookItem,
    EmptySnapshotItem,
    HoleEndItem,
    HoleStartItem,
    ListingItem,
    StatusItem,
    TickerItem,
    TradeItem,
)
from exchange.truth import KIND_DELTA, KIND_HOLE, KIND_RESET, SEND_SNAPSHOT
from exchange.venue import Pause, Venue
from tests.exchange_worlds import (
    START_US,
    ScriptSource,
    ask,
    book_client,
    busy_source,
    delta,
    events_of,
    faults_of,
    make_venue,
    sends_of,
    spec,
    taken,
)


def test_events_are_in_the_truth_although_nobody_is_connected() -> None:
    """An event nobody received must still be known, or no gap could be checked (EXCH-10)."""
    venue = make_venue(ScriptSource([spec(0)], [delta(0, 1), delta(0, 2, -100)]))
    assert venue.play(10) is Pause.END
    events = events_of(venue.ledger)
    assert events["kind"].tolist() == [KIND_DELTA, KIND_DELTA]
    assert events["delta"].tolist() == [100, -100]
    assert venue.done


def test_a_snapshot_states_the_book_at_its_seq() -> None:
    """Everything with a lower seq is in it, nothing with a higher one (EXCH-11)."""
    venue = make_venue(busy_source(3, 300))
    connection = book_client(venue)
    books: dict[str, dict[tuple[str, str], int]] = {}
    checked = 0
    for _ in range(30):
        venue.play(10)
        tickers = [market.spec.ticker for market in venue.markets]
        sid = connection.by_channel["orderbook_delta"].sid
        frames = ask(
            venue,
            connection,
            "update_subscription",
            sid=sid,
            action="get_snapshot",
            market_tickers=tickers,
        )
        for frame in frames:
            msg = frame.get("msg", {})
            if frame["type"] == "orderbook_delta":
                key = (msg["side"], msg["price_dollars"])
                book = books[msg["market_ticker"]]
                book[key] = book.get(key, 0) + round(float(msg["delta_fp"]) * 100)
            elif frame["type"] == "orderbook_snapshot":
                told = {
                    (side, price): round(float(size) * 100)
                    for side in ("yes", "no")
                    for price, size in msg.get(f"{side}_dollars_fp", [])
                }
                if msg["market_ticker"] in books:
                    held = {k: v for k, v in books[msg["market_ticker"]].items() if v}
                    assert held == told
                    checked += 1
                books[msg["market_ticker"]] = told
    assert checked == 90


def test_a_close_of_kind_b_is_one_event_and_its_second_snapshot_none() -> None:
    """The snapshot alone empties the book; the second one agrees and gets the next seq."""
    at_us = START_US + 5_000
    items = [delta(0, 1), EmptySnapshotItem(at_us, 0), EmptySnapshotItem(at_us + 1, 0)]
    venue = make_venue(ScriptSource([spec(0)], items))
    connection = book_client(venue)
    venue.play(10)
    frames = taken(connection)
    assert [(f["type"], f.get("seq")) for f in frames[-3:]] == [
        ("orderbook_delta", 2),
        ("orderbook_snapshot", 3),
        ("orderbook_snapshot", 4),
    ]
    assert set(frames[-1]["msg"]) == {"market_ticker", "market_id"}
    events = events_of(venue.ledger)
    assert events["kind"].tolist() == [KIND_DELTA, KIND_RESET]
    sends = sends_of(venue.ledger)
    snapshots = sends[sends["kind"] == SEND_SNAPSHOT]
    assert snapshots["event"].tolist() == [-1, 1, -1]


def test_a_delta_without_ts_is_in_the_truth_as_the_wire_can_tell_it() -> None:
    """The engine's microseconds are not on the wire: no tape can have them."""
    item = delta(0, 1, exchange_us=START_US + 1_234, form=TIME_MS_ONLY)
    venue = make_venue(ScriptSource([spec(0)], [item]))
    connection = book_client(venue)
    venue.play(10)
    assert taken(connection)[-1]["msg"]["ts_ms"] == START_US // 1000 + 1
    assert events_of(venue.ledger)["exchange_us"].tolist() == [START_US + 1_000]


def test_a_hole_throws_everybody_out_and_nobody_in_until_it_ends() -> None:
    """Nobody may claim a hole was covered, so nobody may be connected in it (EXCH-12)."""
    until_us = START_US + 9_000_000
    items = [
        delta(0, 1),
        HoleStartItem(START_US + 2_000, until_us),
        HoleEndItem(until_us, {0: ([(100_000, 300)], [])}),
        delta(0, 9_001, price=100_000),
    ]
    venue = make_venue(ScriptSource([spec(0)], items))
    connection = book_client(venue)
    assert venue.play(10) is Pause.HOLE
    assert connection.closing == "close"
    assert venue.refusal() == "hole"
    assert venue.play(10) is Pause.RETURN
    assert venue.refusal() is None
    back = book_client(venue)
    snapshot = taken(back)[-1]
    assert snapshot["msg"]["yes_dollars_fp"] == [["0.1000", "3.00"]]
    venue.play(10)
    events = events_of(venue.ledger)
    assert events["kind"].tolist() == [KIND_DELTA, KIND_HOLE, KIND_DELTA]
    assert (events["market"][1], events["delta"][1]) == (-1, until_us)
    books = [json.loads(line) for line in bytes(venue.ledger.lines["books"]).splitlines()]
    assert [book["at"] for book in books] == [0, 2]
    assert books[1]["yes"] == [[100_000, 300]]


def cut_client(crew: int, kind: TimeKind) -> tuple[Venue, Connection]:
    """A client whose slot is cut after a second; 2,000 events follow."""
    source = ScriptSource([spec(0)], [delta(0, n * 10) for n in range(2_000)])
    venue = make_venue(source, crew=crew)
    connection = book_client(venue)
    slot = connection.slot
    assert slot is not None
    slot.time_faults = [TimeFault(START_US + 1_000_000, kind, 200_000)]
    venue.set_timer(START_US + 1_000_000, "fault", connection)
    return venue, connection


@pytest.mark.parametrize("kind", [TimeKind.RESET, TimeKind.CLOSE])
def test_a_cut_is_followed_by_a_bounded_run_on_then_a_wait(kind: TimeKind) -> None:
    """Joints with and without overlap must occur, and a short play must not end meanwhile."""
    venue, connection = cut_client(1, kind)
    assert venue.crew_complete()
    assert venue.play(5_000) is Pause.RETURN
    assert connection.closing == kind.value
    assert not venue.crew_complete()
    assert 100 <= venue.events <= 100 + 201
    book_client(venue)
    assert venue.crew_complete()
    assert venue.play(5_000) is Pause.END


def test_error_25_is_the_last_frame_of_its_sid() -> None:
    """Then silence on that sid; the connection lives and may subscribe anew, with a new sid."""
    venue, connection = cut_client(0, TimeKind.OVERFLOW)
    venue.play(500)
    frames = taken(connection)
    assert (frames[-1]["type"], frames[-1]["msg"]["code"]) == ("error", 25)
    assert frames[-1]["seq"] == frames[-2]["seq"] + 1
    assert connection.closing is None
    answer = ask(
        venue,
        connection,
        "subscribe",
        channels=["orderbook_delta"],
        market_ticker=venue.markets[0].spec.ticker,
    )
    assert answer[0]["msg"]["sid"] == 2
    assert answer[1]["seq"] == 1


def test_a_stall_followed_by_a_reset_loses_what_was_held() -> None:
    """The engine goes on; this client's frames do not arrive."""
    venue, connection = cut_client(0, TimeKind.STALL_RESET)
    venue.play(110)
    held_from = len(connection.out)
    venue.play(1_000)
    assert connection.closing == "reset"
    assert len(connection.out) == held_from
    kinds = [row["kind"] for row in faults_of(venue.ledger)]
    assert kinds == ["stall_reset_begins", "stall_reset"]


def test_a_listing_brings_a_market_a_lifecycle_frame_and_a_book() -> None:
    """New markets appear during the play; their book starts in the truth where they do."""
    new = spec(1, yes=[], no=[])
    items = [delta(0, 1), ListingItem(START_US + 2_000, new), delta(1, 3)]
    items.append(StatusItem(START_US + 4_000, 1, "determined"))
    venue = make_venue(ScriptSource([spec(0)], items))
    connection = venue.open("0" * 16, 1)
    ask(venue, connection, "subscribe", channels=["market_lifecycle_v2"])
    venue.play(10)
    frames = taken(connection)
    assert [f["msg"]["event_type"] for f in frames] == ["created", "determined"]
    assert [f["seq"] for f in frames] == [1, 2]
    assert venue.ledger.markets == ["KXTEST-26-T0", "KXTEST-26-T1"]
    books = [json.loads(line) for line in bytes(venue.ledger.lines["books"]).splitlines()]
    assert books[-1] == {"at": 1, "market": 1, "yes": [], "no": []}


def test_trades_and_tickers_reach_their_subscribers_and_the_truth() -> None:
    """A trade has a seq in its own sid, a ticker has none."""
    trade = TradeItem(START_US + 1, 0, b'{"trade_id":"x"}', b'{"trade_id":"x"}', START_US + 1)
    ticker = TickerItem(START_US + 2, 0, b'{"market_ticker":"KXTEST-26-T0"}')
    venue = make_venue(ScriptSource([spec(0), spec(1)], [trade, ticker]))
    everything, other = venue.open("0" * 16, 1), venue.open("1" * 16, 1)
    ask(venue, everything, "subscribe", channels=["trade", "ticker"])
    ask(venue, other, "subscribe", channels=["trade"], market_tickers=["KXTEST-26-T1"])
    venue.play(10)
    got = {frame["type"]: frame for frame in taken(everything)}
    assert got["trade"]["seq"] == 1
    assert "seq" not in got["ticker"]
    assert taken(other) == []
    assert bytes(venue.ledger.lines["trades"]) == b'{"trade_id":"x"}\n'
    assert len(venue.rest_trades) == 1


def test_no_side_prices_come_on_the_yes_scale_where_asked() -> None:
    """The flag's future default: 0.30 becomes 0.70 under the same key."""
    item = delta(0, 1, side=1, price=300_000)
    venue = make_venue(ScriptSource([spec(0)], [item]))
    plain, turned = book_client(venue), venue.open("0" * 16, 1)
    ticker = venue.markets[0].spec.ticker
    first = ask(
        venue,
        turned,
        "subscribe",
        channels=["orderbook_delta"],
        market_ticker=ticker,
        use_yes_price=True,
    )
    assert first[1]["msg"]["no_dollars_fp"] == [["0.5000", "200.00"]]
    venue.play(10)
    assert taken(turned)[-1]["msg"]["price_dollars"] == "0.7000"
    assert taken(plain)[-1]["msg"]["price_dollars"] == "0.3000"


def played(seed: int) -> tuple[list[bytes], bytes, bytes]:
    venue = make_venue(busy_source(4, 3_000), level=FaultLevel.HARSH, seed=seed)
    connections = [book_client(venue) for _ in range(3)]
    while venue.play(64) is not Pause.END:
        for connection in list(venue.connections.values()):
            if connection.closing is not None:
                venue.closed(connection)
                connections.append(book_client(venue))
    out = [b"".join(connection.out) for connection in connections]
    return out, bytes(venue.ledger.events), bytes(venue.ledger.sends)


def test_the_same_seed_and_commands_give_the_same_bytes() -> None:
    """A failing play must be repeatable from its seed."""
    assert played(3) == played(3)
    assert played(3)[0] != played(4)[0]
    assert played(3)[1] == played(4)[1]


def test_every_frame_of_a_harsh_play_has_its_record_and_every_number_one() -> None:
    """The proof counts by these records: one per number, sent or dropped (EXCH-8)."""
    venue = make_venue(busy_source(4, 3_000), level=FaultLevel.HARSH, seed=2)
    opened = [book_client(venue) for _ in range(3)]
    got: dict[tuple[int, int, int], int] = {}
    while True:
        pause = venue.play(64)
        for connection in opened:
            for frame in taken(connection):
                if "seq" in frame:
                    key = (connection.number, frame["sid"], frame["seq"])
                    got[key] = got.get(key, 0) + 1
        if pause is Pause.END:
            break
        for connection in list(venue.connections.values()):
            if connection.closing is not None:
                venue.closed(connection)
                opened.append(book_client(venue))
    told: dict[tuple[int, int, int], int] = {}
    numbers: dict[tuple[int, int], list[int]] = {}
    for record in sends_of(venue.ledger):
        key = (int(record["conn"]), int(record["sid"]), int(record["seq"]))
        if record["fault"] != 2:
            numbers.setdefault(key[:2], []).append(key[2])
        if record["fault"] != 1:
            told[key] = told.get(key, 0) + 1
    assert told == got
    for held in numbers.values():
        assert held == list(range(1, len(held) + 1))
    assert sum(venue.faults.values()) > 20


def row(**fields: Any) -> dict[str, Any]:
    return fields


def test_faults_are_told_with_time_place_and_connection() -> None:
    """Who reads a failed proof must see which fault was near."""
    venue, _ = cut_client(0, TimeKind.RESET)
    venue.play(500)
    assert faults_of(venue.ledger) == [
        row(
            at_us=START_US + 1_000_000,
            event=100,
            kind="reset",
            conn=1,
            slot="book0",
            how="reset",
        )
    ]


def test_a_book_known_anew_goes_out_as_a_snapshot_in_the_running_sequence() -> None:
    """After a gap of a tape: the subscriber of another market is not touched."""
    anew = BookItem(START_US + 5_000, 0, [(300_000, 700)], [])
    venue = make_venue(
        ScriptSource([spec(0), spec(1)], [delta(0, 1), anew, delta(0, 9, price=300_000)])
    )
    both, other = book_client(venue), book_client(venue, [1])
    taken(both), taken(other)
    venue.play(10)
    frames = taken(both)
    assert [f["seq"] for f in frames] == [3, 4, 5]
    kinds = [f["type"] for f in frames]
    assert kinds == ["orderbook_delta", "orderbook_snapshot", "orderbook_delta"]
    assert frames[1]["msg"]["yes_dollars_fp"] == [["0.3000", "7.00"]]
    assert "no_dollars_fp" not in frames[1]["msg"]
    assert taken(other) == []


def test_a_book_known_anew_can_close_the_connections_that_hold_it() -> None:
    anew = BookItem(START_US + 5_000, 0, [(300_000, 700)], [], closes=True)
    venue = make_venue(ScriptSource([spec(0), spec(1)], [delta(0, 1), anew, delta(1, 9)]))
    both, other = book_client(venue), book_client(venue, [1])
    venue.play(10)
    assert (both.closing, other.closing) == ("close", None)
    again = taken(book_client(venue, [0]))
    assert again[-1]["msg"]["yes_dollars_fp"] == [["0.3000", "7.00"]]


def test_a_jump_back_goes_on_with_other_items_and_forgets_later_trades() -> None:
    trade = TradeItem(START_US + 2_000, 0, b"{}", b"{}", START_US + 2_000)
    venue = make_venue(ScriptSource([spec(0)], [trade, delta(0, 5)]))
    assert venue.play(10) is Pause.END
    venue.jump(iter([BookItem(START_US + 1_000, 0, [], [])]), START_US + 1_000)
    assert not venue.done
    assert not venue.rest_trades
    assert venue.play(10) is Pause.END
    assert venue.markets[0].levels() == ([], [])


def test_frames_keep_the_engines_order_between_markets_where_that_is_asked_for() -> None:
    venue = make_venue(busy_source(4, 200, step_us=10))
    venue.interleaves = False
    connection = book_client(venue)
    taken(connection)
    venue.play(500)
    names = [frame["msg"]["market_ticker"] for frame in taken(connection)]
    numbers = events_of(venue.ledger)["market"].tolist()
    assert names == [venue.markets[number].spec.ticker for number in numbers]
