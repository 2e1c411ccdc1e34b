"""What a session calls covered: a book with a snapshot, and no gap since."""

from __future__ import annotations

from marketdata import events
from tests.unit.marketdata.test_session import SID, Line, ready


def test_book_is_covered_from_its_snapshot_not_from_its_acknowledgement() -> None:
    line = Line(audit_interval_ns=0)
    (command,) = line.open(["A", "B"])
    assert line.session.n_covered == 0
    line.subscribed(command)
    assert (len(line.session.subscribed), line.session.n_covered) == (2, 0)
    line.snapshots("A")
    assert line.session.n_covered == 1
    line.snapshots("B")
    assert line.session.n_covered == 2


def test_snapshot_before_the_acknowledgement_counts_once_it_is_subscribed() -> None:
    """Replies come in any order."""
    line = Line(audit_interval_ns=0)
    (command,) = line.open(["A"])
    line.snapshots("A")
    assert line.session.n_covered == 0
    line.subscribed(command)
    assert line.session.n_covered == 1


def test_gap_uncovers_what_it_touched_until_a_snapshot_from_after_it() -> None:
    line = ready()
    line.take(line.session.on_gap(SID, line.now, None, 50))
    assert line.session.n_covered == 0
    line.event(events.Snapshot("A", [], [], SID, 48, None))  # of before the gap
    assert line.session.n_covered == 0
    line.event(events.Snapshot("A", [], [], SID, 51, None))
    assert line.session.n_covered == 1
    line.gap(tickers=["B"])
    line.event(events.Snapshot("C", [], [], SID, 52, None))
    assert line.session.n_covered == 2


def test_audit_under_way_leaves_its_book_covered() -> None:
    """INV-42 has nothing to mend there: the running book is followed without a hole."""
    line = ready(audit_interval_ns=60_000_000_000)
    assert line.timer(60_000_000_000)
    assert line.session.n_waiting == 3
    assert line.session.n_covered == 3


def test_removed_lost_and_refused_books_are_not_counted() -> None:
    line = ready()
    line.gap(tickers=["C"])
    (removed,) = line.want(["A", "B"])
    line.ok(removed)
    assert (len(line.session.subscribed), line.session.n_covered) == (2, 2)
    line.error(25, sid=SID)
    assert line.session.n_covered == 0
    (again,) = [c for c in line.sent[-1:] if c["cmd"] == "subscribe"]
    line.error(11, again, markets=["A"])
    (rest,) = line.sent[-1:]
    line.subscribed(rest)
    line.snapshots("B")
    assert (len(line.session.subscribed), line.session.n_covered) == (1, 1)


def test_new_connection_covers_nothing_until_its_snapshots() -> None:
    line = ready()
    line.session.on_closed()
    (command,) = line.take(line.session.on_open(line.now))
    line.subscribed(command)
    assert line.session.n_covered == 0
    line.snapshots("A", "B", "C")
    assert line.session.n_covered == 3


S = 1_000_000_000


def test_new_books_are_missing_only_after_their_grace() -> None:
    line = Line(audit_interval_ns=0)
    (command,) = line.open(["A", "B"])
    line.subscribed(command)
    assert line.session.n_missing(9 * S, 10 * S) == 0
    assert line.session.n_missing(11 * S, 10 * S) == 2
    line.snapshots("A")
    assert line.session.n_missing(11 * S, 10 * S) == 1


def test_books_that_were_covered_are_missing_at_once() -> None:
    line = ready()
    line.gap(tickers=["B"])
    assert line.session.n_missing(line.now, 10 * S) == 1
    line.snapshots("B")
    assert line.session.n_missing(line.now, 10 * S) == 0
    line.session.on_closed()
    assert line.session.n_missing(line.now, 10 * S) == 3
    (command,) = line.take(line.session.on_open(line.now))
    line.subscribed(command)
    assert line.session.n_missing(line.now, 10 * S) == 3
    line.snapshots("A", "B", "C")
    assert line.session.n_missing(line.now, 10 * S) == 0


def test_refused_book_is_missing() -> None:
    line = Line(audit_interval_ns=0)
    (command,) = line.open(["A", "B"])
    line.error(11, command, markets=["B"])
    (rest,) = line.sent[-1:]
    line.subscribed(rest)
    line.snapshots("A")
    assert (line.session.n_covered, line.session.n_missing(0, 10 * S)) == (1, 1)


def test_a_doubted_book_is_asked_for_and_stays_covered() -> None:
    """An audit by REST failed: whoever is right, the next snapshot says so."""
    line = ready(audit_interval_ns=0)
    line.take(line.session.ask(["B", "unknown"], line.now))
    (asked,) = [c for c in line.sent if c["params"].get("action") == "get_snapshot"][-1:]
    assert asked["params"]["market_tickers"] == ["B"]
    assert line.session.n_covered == 3
