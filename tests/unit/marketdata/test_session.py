"""The session decides what a recorder asks for and when it gives up: a silent wait is a hole."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import msgspec
import pytest

from marketdata import events
from marketdata.effects import NS_PER_S
from marketdata.session import (
    Effects,
    Reconnect,
    Report,
    ReportKind,
    SendCommand,
    Session,
    SessionSettings,
    SessionState,
)

S = NS_PER_S
SID = 7


class Line:
    """A session with everything it sent, and short ways to answer as the exchange would."""

    def __init__(self, **settings: Any) -> None:
        self.session = Session(SessionSettings(**settings))
        self.sent: list[dict[str, Any]] = []
        self.reports: list[Report] = []
        self.reconnects: list[str] = []
        self.now = 0

    def take(self, effects: Effects) -> list[dict[str, Any]]:
        """Sort effects; return the commands among them."""
        fresh = []
        for effect in effects:
            match effect:
                case SendCommand():
                    command = msgspec.json.decode(effect.payload)
                    assert command["id"] == effect.id
                    fresh.append(command)
                case Report():
                    self.reports.append(effect)
                case Reconnect():
                    self.reconnects.append(effect.reason)
        self.sent += fresh
        return fresh

    def open(self, wanted: Iterable[str] = ()) -> list[dict[str, Any]]:
        self.session.want(wanted, self.now)
        return self.take(self.session.on_open(self.now))

    def want(self, wanted: Iterable[str]) -> list[dict[str, Any]]:
        return self.take(self.session.want(wanted, self.now))

    def event(self, event: events.Decoded) -> list[dict[str, Any]]:
        return self.take(self.session.on_event(event, self.now))

    def gap(self, sid: int = SID, tickers: Iterable[str] | None = None) -> list[dict[str, Any]]:
        return self.take(self.session.on_gap(sid, self.now, tickers))

    def subscribed(
        self, command: dict[str, Any], sid: int | None = SID, *, named: bool = True
    ) -> list[dict[str, Any]]:
        channel = command["params"]["channels"][0] if named else None
        return self.event(events.Subscribed(command["id"], channel, sid))

    def ok(
        self, command: dict[str, Any], markets: list[str] | None = None, sid: int | None = SID
    ) -> list[dict[str, Any]]:
        return self.event(events.Ok(command["id"], sid, 1, markets, None))

    def listing(self, command: dict[str, Any], *pairs: tuple[str, int]) -> list[dict[str, Any]]:
        return self.event(events.Ok(command["id"], None, None, None, list(pairs)))

    def error(
        self,
        code: int,
        command: dict[str, Any] | None = None,
        sid: int | None = None,
        markets: Iterable[str] = (),
    ) -> list[dict[str, Any]]:
        id_ = command["id"] if command else None
        return self.event(events.Error(code, "text", list(markets), id_, sid, None))

    def snapshots(self, *tickers: str) -> list[dict[str, Any]]:
        out = []
        for ticker in tickers:
            out += self.event(events.Snapshot(ticker, [], [], SID, 1, None))
        return out

    def timer(self, after_ns: int = 0) -> list[dict[str, Any]]:
        """Let the time pass to `after_ns` from now, calling `on_timer` whenever it is due."""
        end, out = self.now + after_ns, []
        for _ in range(10_000):
            due = self.session.next_due()
            if due is None or due > end:
                break
            assert due >= self.now, "a due time in the past is a busy loop"
            self.now = due
            out += self.take(self.session.on_timer(self.now))
            after = self.session.next_due()
            assert after is None or after > self.now, "a due time that stays is a busy loop"
        else:
            pytest.fail("the timer never rests")
        self.now = end
        return out

    def kinds(self) -> list[ReportKind]:
        return [report.kind for report in self.reports]


def ready(wanted: Iterable[str] = ("A", "B", "C"), **settings: Any) -> Line:
    """An open line whose books are all subscribed and have their snapshots."""
    line = Line(**{"audit_interval_ns": 0, "data_timeout_ns": 10**15} | settings)
    wanted = tuple(wanted)
    (command,) = line.open(wanted)
    line.subscribed(command)
    line.snapshots(*wanted)
    assert line.session.n_waiting == 0
    line.reports.clear()
    return line


def tickers(commands: Iterable[dict[str, Any]]) -> list[list[str]]:
    return [command["params"]["market_tickers"] for command in commands]


# --- subscribing


def test_session_says_nothing_before_the_connection_is_open() -> None:
    """A shell may tell the wanted markets at any time."""
    session = Session()
    assert session.want(["A"], 0) == []
    assert session.state is SessionState.CONNECTING
    assert session.next_due() is None
    assert session.on_timer(0) == []
    assert session.on_event(events.Snapshot("A", [], [], 1, 1, None), 0) == []
    assert session.on_gap(1, 0) == []


def test_books_are_subscribed_in_one_command_and_channels_in_one_each() -> None:
    """One subscribe a channel: a refused channel cannot take the others with it."""
    line = Line(channels=("trade", "ticker"))
    sent = line.open(["A", "B"])
    assert [c["params"]["channels"] for c in sent] == [["trade"], ["ticker"], ["orderbook_delta"]]
    assert sent[2]["params"] == {
        "channels": ["orderbook_delta"],
        "market_tickers": ["A", "B"],
        "use_yes_price": False,
        "skip_ticker_ack": True,
    }
    for sid, command in enumerate(sent, 1):
        line.subscribed(command, sid)
    assert [line.session.sid_of(c) for c in ("trade", "ticker", "orderbook_delta")] == [1, 2, 3]
    assert line.session.subscribed == {"A", "B"}
    assert line.session.n_waiting == 2
    line.snapshots("A", "B")
    assert line.session.n_waiting == 0
    assert line.kinds().count(ReportKind.SUBSCRIBED) == 3


def test_many_books_go_out_in_chunks_and_the_rest_waits_for_the_sid() -> None:
    """The first command makes the subscription, the others add to it."""
    line = Line(tickers_per_command=2)
    (first,) = line.open(["A", "B", "C", "D", "E"])
    assert tickers([first]) == [["A", "B"]]
    rest = line.subscribed(first)
    assert tickers(rest) == [["C", "D"], ["E"]]
    assert {c["params"]["action"] for c in rest} == {"add_markets"}
    assert {tuple(c["params"]["sids"]) for c in rest} == {(SID,)}


@pytest.mark.parametrize("seed", range(8))
def test_replies_and_snapshots_in_any_order_end_in_the_same_state(seed: int) -> None:
    """INV-40: the exchange was seen to answer commands 2,4,3,6,5,1,8,9,7,12,11,10."""
    rng = random.Random(seed)
    wanted = [f"M{n}" for n in range(20)]
    line = Line(tickers_per_command=3, channels=("trade",))
    trade, first = line.open(wanted)
    pending = [*line.subscribed(first), trade]
    rng.shuffle(pending)
    replies: list[tuple[str, Any]] = [("ok", c) for c in pending]
    replies += [("snapshot", t) for t in wanted]
    rng.shuffle(replies)
    for kind, what in replies:
        if kind == "snapshot":
            line.snapshots(what)
        elif what is trade:
            line.subscribed(trade, 9)
        else:
            line.ok(what)
    assert line.session.subscribed == set(wanted)
    assert line.session.n_waiting == 0
    line.timer(9 * S)
    assert line.reconnects == []
    assert len(line.sent) == 8


def test_subscribe_that_merges_is_answered_by_ok_and_tells_its_sid() -> None:
    """Since September 2025 a repeated subscribe adds to the subscription."""
    line = Line()
    (command,) = line.open(["A"])
    line.ok(command, ["A"], sid=4)
    assert line.session.sid_of("orderbook_delta") == 4
    assert line.session.subscribed == {"A"}
    line.ok(command, ["A"], sid=4)  # a repeated reply changes nothing
    assert line.kinds() == [ReportKind.MARKETS_ADDED]


def test_ok_whose_list_lacks_a_market_refuses_that_market() -> None:
    """The exchange ignores a ticker it does not know; the list of the reply tells."""
    line = Line()
    (command,) = line.open(["A", "X"])
    line.ok(command, ["A"])
    assert line.session.subscribed == {"A"}
    assert line.reports[0].kind is ReportKind.MARKETS_REFUSED
    assert line.reports[0].tickers == ("X",)
    line.snapshots("A")
    assert line.session.n_waiting == 0


def test_oldest_reply_without_sid_asks_for_the_list() -> None:
    """{"type": "subscribed", "id": 1} names neither channel nor sid."""
    line = Line()
    (command,) = line.open(["A"])
    (ask,) = line.subscribed(command, None, named=False)
    assert ask["cmd"] == "list_subscriptions"
    line.listing(ask, ("orderbook_delta", 3), ("fill", 9))
    assert line.session.sid_of("orderbook_delta") == 3
    assert line.session.sid_of("fill") is None
    assert line.session.subscribed == {"A"}


def test_ok_without_sid_to_a_first_subscribe_asks_for_the_list() -> None:
    """Without a sid no snapshot could ever be asked for."""
    line = Line(audit_interval_ns=5 * S)
    (command,) = line.open(["A"])
    (ask,) = line.ok(command, sid=None)
    assert ask["cmd"] == "list_subscriptions"
    line.timer(6 * S)  # an audit is due, but there is no sid to ask on
    assert line.session.n_waiting == 1
    line.listing(ask, ("orderbook_delta", 3))
    assert line.session.sid_of("orderbook_delta") == 3


def test_reply_to_nobody_is_ignored() -> None:
    """Ids of another life, or none."""
    line = ready()
    line.event(events.Ok(999, SID, 5, None, None))
    line.event(events.Ok(None, None, None, None, [("orderbook_delta", 1)]))
    line.event(events.Subscribed(None, None, None))
    line.event(events.Unknown("new", SID, 5, None))
    line.event(events.Unsubscribed(None, 99, 5))
    assert (line.sent[1:], line.reports, line.reconnects) == ([], [], [])


def test_subscribed_without_id_is_matched_by_its_channel() -> None:
    """Id 0 means no id; the channel still tells."""
    line = Line()
    line.open(["A"])
    line.event(events.Subscribed(None, "orderbook_delta", 3))
    assert line.session.sid_of("orderbook_delta") == 3


# --- changes of the wanted set


def test_markets_are_added_and_removed_by_difference() -> None:
    """A new market appears every few minutes; the others must not notice."""
    line = ready()
    added, removed = line.want(["B", "C", "D"])
    assert (added["params"]["action"], tickers([added])) == ("add_markets", [["D"]])
    assert (removed["params"]["action"], tickers([removed])) == ("delete_markets", [["A"]])
    assert line.want(["B", "C", "D"]) == []
    line.ok(added)
    line.ok(removed)
    line.snapshots("D")
    assert line.session.subscribed == {"B", "C", "D"}
    assert line.session.n_waiting == 0
    assert line.kinds() == [ReportKind.MARKETS_ADDED, ReportKind.MARKETS_REMOVED]


def test_market_wanted_again_while_it_is_removed_is_added_after() -> None:
    """Two commands about one market under way at once would race."""
    line = ready()
    (removed,) = line.want(["B", "C"])
    assert line.want(["A", "B", "C"]) == []
    (added,) = line.ok(removed)
    assert tickers([added]) == [["A"]]


def test_removed_market_is_not_waited_for() -> None:
    """Its snapshot will never come."""
    line = ready()
    line.gap()
    assert line.session.n_waiting == 3
    (removed,) = line.want(["A"])
    line.ok(removed)
    assert line.session.n_waiting == 1
    line.snapshots("A")
    assert line.timer(60 * S) == []
    assert line.reconnects == []


# --- gaps and snapshots


def test_gap_asks_for_a_snapshot_of_every_book_of_the_sid() -> None:
    """INV-42: a gap does not tell which market lost a frame."""
    line = ready(tickers_per_snapshot_command=2)
    sent = line.gap()
    assert [c["params"]["action"] for c in sent] == ["get_snapshot"] * 2
    assert tickers(sent) == [["A", "B"], ["C"]]
    assert line.kinds() == [ReportKind.GAP]
    line.snapshots("A", "B", "C")
    assert line.timer(60 * S) == []


def test_gap_of_some_markets_asks_for_those_only() -> None:
    """Where the exchange counts per market."""
    line = ready()
    (sent,) = line.gap(tickers=["B", "unknown"])
    assert tickers([sent]) == [["B"]]


def test_gap_of_another_channel_or_of_no_sid_asks_for_nothing() -> None:
    """Trades have no snapshot; the gap is reported and coverage tells."""
    line = Line(channels=("trade",))
    (command,) = line.open()
    line.subscribed(command, 2)
    assert line.gap(2) == []
    assert line.gap(3) == []
    assert line.kinds() == [ReportKind.SUBSCRIBED, ReportKind.GAP]


def test_second_gap_asks_again_for_snapshots_that_are_under_way() -> None:
    """The answer to the first request may be what was lost."""
    line = ready()
    line.gap()
    line.snapshots("A")
    (again,) = line.gap()
    assert tickers([again]) == [["A", "B", "C"]]
    line.snapshots("A", "B", "C")
    assert line.session.n_waiting == 0


def test_snapshot_of_before_the_gap_does_not_settle_the_request() -> None:
    """One wake-up of the socket brings a snapshot, then a gap: the shell tells the gap first."""
    line = ready(["A"])
    line.take(line.session.on_gap(SID, line.now, None, 50))
    line.event(events.Snapshot("A", [], [], SID, 48, None))
    assert line.session.n_waiting == 1
    line.event(events.Snapshot("A", [], [], SID + 1, 1, None))  # another sid: not comparable
    assert line.session.n_waiting == 0
    line.take(line.session.on_gap(SID, line.now, None, 60))
    line.event(events.Snapshot("A", [], [], SID, 60, None))
    assert line.session.n_waiting == 0


def test_snapshots_asked_for_at_once_are_limited_and_the_rest_follows() -> None:
    """INV-43: too many at once would overflow the exchange's buffer for us."""
    line = ready("ABCDE", snapshots_at_once=2, tickers_per_snapshot_command=2)
    assert tickers(line.gap()) == [["A", "B"]]
    assert line.session.n_waiting == 5
    assert tickers(line.snapshots("A", "B")) == [["C"], ["D"]]
    line.snapshots("C", "D", "E")
    assert line.session.n_waiting == 0


def test_snapshot_that_comes_unasked_settles_the_request_in_the_queue() -> None:
    """The exchange sends one by itself when a market closes."""
    line = ready(snapshots_at_once=1)
    line.gap()
    line.snapshots("C")
    assert tickers(line.snapshots("A")) == [["B"]]


def test_late_snapshot_is_asked_for_again_and_settles_both_requests() -> None:
    """The first answer and the second both come in the end."""
    line = ready(["A", "B"], snapshot_timeout_ns=10 * S)
    line.gap()
    line.snapshots("A")
    (again,) = line.timer(10 * S)
    assert tickers([again]) == [["B"]]
    line.snapshots("B")
    line.snapshots("B")
    assert line.timer(100 * S) == []


def test_market_that_never_shows_a_snapshot_is_reported_and_the_others_live_on() -> None:
    """INV-41: an unknown ticker may be ignored by the exchange without a word."""
    line = Line(audit_interval_ns=0, snapshot_tries=3, data_timeout_ns=10**15)
    (command,) = line.open(["A", "X"])
    line.subscribed(command)
    line.snapshots("A")
    line.now += S
    line.snapshots("A")
    sent = line.timer(60 * S)
    assert tickers(sent) == [["X"], ["X"]]
    assert line.reports[-1].kind is ReportKind.SNAPSHOTS_MISSING
    assert line.reports[-1].tickers == ("X",)
    assert line.reconnects == []
    assert line.session.subscribed == {"A", "X"}


def test_no_snapshot_at_all_after_all_tries_gives_the_connection_up() -> None:
    """Nobody answers on this sid: it is dead without having said so."""
    line = ready(snapshot_tries=2)
    line.now += S
    line.gap()
    line.timer(60 * S)
    assert line.reconnects == ["no_snapshots"]
    assert line.session.state is SessionState.CLOSING
    assert line.gap() == []


def test_gaps_beyond_the_limit_of_a_minute_give_the_connection_up() -> None:
    """A path that loses all the time is replaced."""
    line = ready(gaps_per_minute=2)
    for _ in range(6):  # slowly: no harm
        line.gap()
        line.snapshots("A", "B", "C")
        line.timer(31 * S)
    assert line.reconnects == []
    for _ in range(3):
        line.gap()
        line.now += S
    assert line.reconnects == ["gaps"]


def test_older_request_that_runs_out_leaves_the_market_to_the_newer_one() -> None:
    """Two gaps in a few seconds: the market is asked for twice, not four times."""
    line = ready(["A"], snapshot_timeout_ns=10 * S)
    line.gap()
    line.timer(6 * S)
    line.gap()
    assert line.timer(5 * S) == []
    assert tickers(line.timer(5 * S)) == [["A"]]


def test_ok_to_get_snapshot_is_no_snapshot() -> None:
    """Should the exchange acknowledge the command as well, the book is still waited for."""
    line = ready(["A"], snapshot_tries=3)
    (command,) = line.gap()
    line.ok(command)
    assert line.session.n_waiting == 1
    (again,) = line.timer(10 * S)
    assert tickers([again]) == [["A"]]
    line.snapshots("A")
    line.ok(again)
    assert line.timer(100 * S) == []


def test_requests_that_run_out_together_give_the_connection_up_once() -> None:
    """One socket, one Reconnect."""
    line = ready("AB", snapshot_tries=1, tickers_per_snapshot_command=1)
    line.now += S
    line.gap()
    line.timer(60 * S)
    assert line.reconnects == ["no_snapshots"]


# --- audits


def test_audit_goes_round_all_books_within_its_interval() -> None:
    """Every snapshot is a test of the recorded book."""
    line = ready("ABCDE", audit_interval_ns=30 * S, tickers_per_snapshot_command=2)
    asked: list[str] = []
    for _ in range(30):
        for batch in tickers(line.timer(S)):
            assert len(batch) <= 2
            asked += batch
            line.snapshots(*batch)
    for _ in range(60):
        for batch in tickers(line.timer(S)):
            asked += batch
            line.snapshots(*batch)
    assert asked[:10] == list("ABCDEABCDE")
    assert line.reconnects == []


def test_audit_leaves_out_books_that_are_gone_or_asked_for_already() -> None:
    """A round is planned before it is walked."""
    line = ready("ABCD", audit_interval_ns=40 * S, tickers_per_snapshot_command=1)
    assert tickers(line.timer(40 * S)) == [["A"]]
    line.snapshots("A")
    (removed,) = line.want("AD")
    line.ok(removed)
    assert tickers(line.timer(10 * S)) == []  # B was removed
    line.gap(tickers=["D"])
    assert [t for t in tickers(line.timer(45 * S)) if t == ["C"]] == []


def test_audit_in_vain_ends_like_any_missing_snapshot() -> None:
    """Error 25 whose frame was lost, then silence on that sid: the audit finds it."""
    line = ready(audit_interval_ns=20 * S, snapshot_tries=2)
    for _ in range(60):
        line.session.on_frames(line.now)  # other data flow
        line.timer(S)
    assert line.reconnects == ["no_snapshots"]


# --- errors


def test_error_25_then_silence_subscribes_anew_with_all_books() -> None:
    """The subscription is dead, the connection is not."""
    line = ready()
    line.gap()
    (again,) = line.error(25, sid=SID)
    assert again["cmd"] == "subscribe"
    assert tickers([again]) == [["A", "B", "C"]]
    assert line.session.subscribed == frozenset()
    assert ReportKind.SUBSCRIPTION_LOST in line.kinds()
    line.subscribed(again, SID + 1)
    line.snapshots("A", "B", "C")
    assert line.session.sid_of("orderbook_delta") == SID + 1
    assert line.timer(100 * S) == []
    assert line.reconnects == []


def test_terminal_error_of_a_channel_subscribes_that_channel_only() -> None:
    """Books go on undisturbed."""
    line = Line(channels=("trade",))
    trade, books = line.open(["A"])
    line.subscribed(trade, 1)
    line.subscribed(books)
    (again,) = line.error(10, sid=1)
    assert again["params"]["channels"] == ["trade"]
    assert line.session.subscribed == {"A"}


def test_subscription_lost_again_and_again_gives_the_connection_up() -> None:
    """Subscribing in a circle is not recording."""
    line = ready(resubscribes_per_minute=2)
    for n in range(3):
        sent = line.error(25, sid=SID + n)
        for command in sent:
            line.subscribed(command, SID + n + 1)
    assert line.reconnects == ["subscription_lost"]


def test_lost_books_leave_commands_of_other_channels_alone() -> None:
    """A trade subscription under way when error 25 hits the books."""
    line = Line(channels=("trade",))
    trade, books = line.open(["A"])
    line.subscribed(books)
    (again,) = line.error(25, sid=SID)
    assert again["params"]["channels"] == ["orderbook_delta"]
    line.subscribed(trade, 2)
    assert line.session.sid_of("trade") == 2


def test_list_acknowledges_what_is_pending_and_nothing_else() -> None:
    """A snapshot request is not answered by a list."""
    line = Line(channels=("trade",))
    trade, books = line.open(["A"])
    (ask,) = line.subscribed(trade, None)
    line.subscribed(books)
    line.snapshots("A")
    line.gap()
    line.listing(ask, ("orderbook_delta", SID), ("trade", 2))
    assert line.session.n_waiting == 1
    assert line.session.sid_of("trade") == 2
    line.snapshots("A")
    assert line.timer(29 * S) == []


def test_unknown_subscription_id_in_reply_to_a_command_is_a_lost_subscription() -> None:
    """Code 7: the exchange has forgotten the sid we use."""
    line = ready()
    (command,) = line.gap()
    (again,) = line.error(7, command)
    assert again["cmd"] == "subscribe"


def test_unsubscribed_that_we_did_not_ask_for_subscribes_anew() -> None:
    """Whoever ended it, the books are wanted."""
    line = ready()
    (again,) = line.event(events.Unsubscribed(None, SID, 99))
    assert again["cmd"] == "subscribe"


def test_authentication_error_gives_the_connection_up() -> None:
    """Only a new handshake can help."""
    line = Line()
    (command,) = line.open(["A"])
    line.error(9, command)
    assert line.reconnects == ["authentication"]


@pytest.mark.parametrize("code", [18, 27])
def test_command_refused_for_its_rate_is_sent_again_later(code: int) -> None:
    """Error 27 names no culprit: the same command, a second later."""
    line = ready(retry_delay_ns=S)
    (command,) = line.gap()
    assert line.error(code, command) == []
    assert line.timer(S // 2) == []
    (again,) = line.timer(S)
    assert tickers([again]) == tickers([command])


def test_retry_codes_on_first_subscribes_are_retried_too() -> None:
    """Nothing is subscribed yet: the retry must not wait for a sid."""
    line = Line(channels=("trade",), retry_delay_ns=S)
    trade, books = line.open(["A"])
    assert line.error(27, trade) == []
    assert line.error(27, books) == []
    again = line.timer(S)
    assert sorted(c["params"]["channels"][0] for c in again) == ["orderbook_delta", "trade"]


def test_terminal_code_in_reply_to_a_subscribe_is_retried() -> None:
    """There is no sid yet that could be dead."""
    line = Line(channels=("trade",), retry_delay_ns=S)
    (trade,) = line.open()
    assert line.error(10, trade) == []
    (again,) = line.timer(S)
    assert again["params"]["channels"] == ["trade"]


def test_unknown_channel_is_reported_and_tried_again_after_a_while() -> None:
    """Error 8 beside good channels is a partial success; refused for ever would be a quiet hole."""
    line = Line(channels=("trade", "nonsense"), data_timeout_ns=10**15, refusal_ns=60 * S)
    trade, nonsense = line.open()
    line.subscribed(trade, 1)
    assert line.error(8, nonsense) == []
    assert ReportKind.CHANNEL_REFUSED in line.kinds()
    assert line.timer(59 * S) == []
    (again,) = line.timer(S)
    assert again["params"]["channels"] == ["nonsense"]


def test_named_market_is_refused_and_the_others_are_sent_again() -> None:
    """The old error 16 names the market."""
    line = Line()
    (command,) = line.open(["A", "X", "B"])
    (again,) = line.error(16, command, markets=["X"])
    assert tickers([again]) == [["A", "B"]]
    line.subscribed(again)
    line.snapshots("A", "B")
    assert line.session.subscribed == {"A", "B"}
    assert line.want(["A", "X", "B"]) == []  # not yet again
    line.want(["A", "B"])
    assert tickers(line.want(["A", "X", "B"])) == [["X"]]  # unless it was given up between


def test_refused_market_is_asked_for_again_after_a_while() -> None:
    """A market just created is not known everywhere at once."""
    line = Line(refusal_ns=20 * S, data_timeout_ns=10**15)
    (command,) = line.open(["A", "X"])
    line.ok(command, ["A"])
    line.snapshots("A")
    assert line.timer(19 * S) == []
    assert tickers(line.timer(S)) == [["X"]]


def test_named_market_alone_leaves_nothing_to_send() -> None:
    """A command of one bad market."""
    line = ready()
    (command,) = line.want(["A", "B", "C", "X"])
    assert line.error(16, command, markets=["X"]) == []
    assert line.session.n_waiting == 0


def test_bad_market_without_a_name_is_found_by_halving() -> None:
    """One bad ticker must not keep a thousand good ones out."""
    line = Line()
    bad = "M5"
    todo = line.open([f"M{n}" for n in range(8)])
    for _ in range(40):
        if not todo:
            break
        command = todo.pop(0)
        asked = command["params"]["market_tickers"]
        if bad in asked:
            todo += line.error(11, command)
        elif command["cmd"] == "subscribe":
            todo += line.subscribed(command)
        else:
            todo += line.ok(command)
    assert line.session.subscribed == {f"M{n}" for n in range(8)} - {bad}
    refused = [r for r in line.reports if r.kind is ReportKind.MARKETS_REFUSED]
    assert [r.tickers for r in refused] == [(bad,)]


def test_market_limit_refuses_the_whole_command() -> None:
    """Error 26: no retry can help."""
    line = ready()
    (command,) = line.want(["A", "B", "C", "D", "E"])
    assert line.error(26, command) == []
    assert line.reports[-1].tickers == ("D", "E")
    assert line.reports[-1].code == 26


def test_unexplained_error_is_tried_some_times_and_then_halved() -> None:
    """A code that is new to us: persistent, but not for ever."""
    line = ready(command_tries=2, retry_delay_ns=S)
    (command,) = line.want(["A", "B", "C", "D", "E"])
    assert line.error(1, command) == []
    (again,) = line.timer(S)
    halves = line.error(1, again)
    assert tickers(halves) == [["D"], ["E"]]
    for half in halves:
        line.error(1, half)
    assert line.session.n_waiting == 0
    assert ReportKind.MARKETS_REFUSED in line.kinds()


def test_failed_removal_and_failed_snapshot_of_one_market_are_reported() -> None:
    """Neither is waited for; the market stays as it is."""
    line = ready(["A", "B"])
    (removal,) = line.want(["B"])
    line.error(11, removal)
    assert line.kinds()[-1] is ReportKind.COMMAND_FAILED
    (snapshot,) = line.gap(tickers=["B"])
    line.error(11, snapshot)
    assert line.kinds()[-1] is ReportKind.SNAPSHOTS_MISSING
    assert line.session.n_waiting == 0


def test_already_subscribed_asks_for_the_list_and_adds_to_what_is_there() -> None:
    """The retired error 6: there is a sid, we only do not know it."""
    line = Line(retry_delay_ns=S)
    (command,) = line.open(["A"])
    (ask,) = line.error(6, command)
    assert ask["cmd"] == "list_subscriptions"
    (added,) = line.listing(ask, ("orderbook_delta", 3))
    assert added["params"]["sids"] == [3]
    line.ok(added)
    line.snapshots("A")
    assert line.session.n_waiting == 0


def test_already_subscribed_in_reply_to_a_removal_is_an_error_like_any() -> None:
    """Found by the property test: the market was neither removed nor ever tried again."""
    line = ready(["A", "B"], retry_delay_ns=S)
    (removal,) = line.want(["B"])
    assert line.error(6, removal) == []
    assert line.kinds()[-1] is ReportKind.COMMAND_FAILED
    assert tickers(line.want(["B"])) == [["A"]]


def test_terminal_error_about_a_sid_of_the_past_opens_its_markets_again() -> None:
    """Found by the property test: an addition that died with a sid we no longer hold."""
    line = ready()
    (added,) = line.want(["A", "B", "C", "D"])
    (again,) = line.error(25, added, sid=SID + 50)
    assert tickers([again]) == [["D"]]
    line.error(25, sid=SID + 50)
    assert line.reconnects == []


def test_repeated_subscribed_reply_changes_no_sid() -> None:
    """An old one would point every later command at a dead subscription."""
    line = ready()
    line.event(events.Subscribed(1, "orderbook_delta", SID - 1))
    assert line.session.sid_of("orderbook_delta") == SID


def test_already_subscribed_channel_takes_its_sid_from_the_list() -> None:
    """As for books."""
    line = Line(channels=("trade",), retry_delay_ns=S)
    (command,) = line.open()
    (ask,) = line.error(6, command)
    assert line.listing(ask, ("trade", 3)) == []
    assert line.session.sid_of("trade") == 3
    assert line.timer(5 * S) == []


def test_list_that_lacks_our_subscription_subscribes_anew() -> None:
    """The exchange says we are not subscribed: it knows."""
    line = Line(channels=("trade",), data_timeout_ns=20 * S)
    (command,) = line.open()
    line.subscribed(command, 1)
    (probe,) = line.timer(20 * S)
    (again,) = line.listing(probe)
    assert again["params"]["channels"] == ["trade"]


def test_failed_list_is_reported_and_changes_nothing() -> None:
    """An exchange without the command is no reason to reconnect."""
    line = Line(channels=("trade",), data_timeout_ns=20 * S)
    (command,) = line.open()
    line.subscribed(command, 1)
    (probe,) = line.timer(20 * S)
    assert line.error(5, probe) == []
    assert line.kinds()[-1] is ReportKind.COMMAND_FAILED
    assert line.reconnects == []


def test_error_without_id_and_sid_is_reported_only() -> None:
    """Nobody knows what it is about."""
    line = ready()
    line.error(1)
    assert line.kinds() == [ReportKind.COMMAND_FAILED]
    assert line.session.subscribed == {"A", "B", "C"}


def test_exchange_without_get_snapshot_is_recorded_by_reconnecting() -> None:
    """Error 13 on get_snapshot: only a fresh subscription brings snapshots."""
    line = ready(audit_interval_ns=30 * S)
    (command,) = line.gap()
    line.error(13, command)
    assert line.reconnects == ["snapshots_unsupported"]
    line.session.on_closed()
    (again,) = line.open(["A"])
    line.subscribed(again)
    line.snapshots("A")
    assert line.timer(100 * S) == []  # no audit
    line.session.on_frames(line.now)
    line.gap()
    assert line.reconnects[-1] == "gap_without_snapshots"


# --- deadlines, watchdog, limits


def test_command_without_reply_gives_the_connection_up() -> None:
    """INV-41: nothing is waited for without a deadline."""
    line = Line(ack_timeout_ns=5 * S)
    line.open(["A"])
    line.timer(4 * S)
    assert line.reconnects == []
    line.timer(2 * S)
    assert line.reconnects == ["ack_timeout"]
    assert line.timer(100 * S) == []


def test_silence_is_probed_and_an_answer_ends_it() -> None:
    """Data stopped for 16 minutes while pings were answered: the application must look itself."""
    line = ready(data_timeout_ns=30 * S, probe_timeout_ns=10 * S)
    (probe,) = line.timer(30 * S)
    assert (probe["params"]["action"], tickers([probe])) == ("get_snapshot", [["A"]])
    assert line.kinds() == [ReportKind.STALL]
    line.now += S
    line.snapshots("A")
    line.timer(20 * S)
    assert line.reconnects == []


def test_silence_after_the_probe_gives_the_connection_up() -> None:
    """Stalled with pings alive."""
    line = ready(data_timeout_ns=30 * S, probe_timeout_ns=5 * S)
    line.timer(30 * S)
    line.timer(5 * S)
    assert line.reconnects == ["stall"]


def test_any_frame_feeds_the_watchdog() -> None:
    """Trades and tickers are not shown to the session, but they are data."""
    line = ready(data_timeout_ns=30 * S)
    for _ in range(10):
        line.timer(20 * S)
        line.session.on_frames(line.now)
    assert line.reports == []


def test_connection_without_books_is_probed_by_the_list() -> None:
    """It must be answered, whatever is subscribed."""
    line = Line(channels=("trade",), data_timeout_ns=30 * S)
    (command,) = line.open()
    line.subscribed(command, 1)
    (probe,) = line.timer(30 * S)
    assert probe["cmd"] == "list_subscriptions"
    line.listing(probe, ("trade", 1))
    assert line.reconnects == []


def test_commands_of_one_second_are_limited_and_the_rest_follows() -> None:
    """INV-43, with the timer asked for at the right time."""
    line = Line(tickers_per_command=1, commands_per_s=3, audit_interval_ns=0)
    first, *none = line.open("ABCDEFGH")
    assert none == []
    sent = line.subscribed(first)
    assert tickers(sent) == [["B"], ["C"]]
    assert tickers(line.timer(S)) == [["D"], ["E"], ["F"]]
    assert tickers(line.timer(S)) == [["G"], ["H"]]
    (removed, *_) = line.want("BCDEFGH")
    assert tickers([removed]) == [["A"]]


def test_removals_and_retries_wait_for_the_next_second_too() -> None:
    """The limit is of the connection, whatever the command."""
    line = ready("ABC", commands_per_s=1)
    line.now += 2 * S
    assert tickers(line.want("CD")) == [["D"]]
    assert tickers(line.timer(S)) == [["A", "B"]]
    line.now += 2 * S
    (snapshot,) = line.gap(tickers=["C"])
    line.now += 2 * S
    assert line.error(27, snapshot) == []
    line.timer(0)
    assert tickers(line.gap(tickers=["C"])) == [["C"]]
    assert tickers(line.timer(2 * S)) == [["C"]]


def test_snapshot_whose_subscription_is_gone_is_not_asked_for_again() -> None:
    """Deadline of a request of before the loss."""
    line = ready(["A"])
    (command,) = line.gap()
    line.error(18, command)
    (again,) = line.error(25, sid=SID)
    line.subscribed(again, SID + 1)
    line.snapshots("A")
    assert line.timer(100 * S) == []


# --- life


def test_new_connection_starts_from_nothing_and_uses_new_ids() -> None:
    """Sids, commands and refusals belong to one connection."""
    line = ready()
    ids = {c["id"] for c in line.sent}
    line.session.close()
    assert line.session.state is SessionState.CLOSING
    line.session.on_closed()
    assert line.session.state is SessionState.CLOSED
    assert line.session.next_due() is None
    assert line.timer(100 * S) == []
    (again,) = line.take(line.session.on_open(line.now))
    assert tickers([again]) == [["A", "B", "C"]]
    assert again["id"] not in ids
    assert line.session.sid_of("orderbook_delta") is None
    assert line.session.subscribed == frozenset()
