"""Runs: sequence numbers, ids and control rows."""

from __future__ import annotations

from marketdata import events
from marketdata.continuity import Refused
from marketdata.rows import ControlKind
from marketdata.runs import DUPLICATES_IN_A_ROW_MAX, PROBLEM_ROW_EVERY, PROBLEM_ROWS_MAX
from tests.continuity_feed import BASE, Feed, delta, snapshot, trade

BOOK = "orderbook_delta"


def _ends(feed: Feed) -> list[tuple[str, int]]:
    return [(r.reason, r.seq) for r in feed.controls(ControlKind.RUN_END)]


def _starts(feed: Feed) -> list[tuple[str, int]]:
    return [(r.detail["start"], r.seq) for r in feed.controls(ControlKind.RUN_START)]


def test_a_quiet_subscription_has_a_run_from_its_reply_on() -> None:
    """A trade channel without trades is covered from `subscribed`, not from the first trade."""
    feed = Feed("trade", "ticker")
    assert _starts(feed) == [("subscribed", 1)]
    feed.control(k="close", reason="reset")
    assert _ends(feed) == [("close", 0)]


def test_a_gap_ends_the_run_at_its_last_number_and_begins_the_next_with_the_frame() -> None:
    """The frame behind the gap is the first of a new run; one effect asks for snapshots."""
    feed = Feed(BOOK)
    feed.send(snapshot(1), snapshot(2, market="N"), delta(3), delta(6))
    assert _ends(feed) == [("gap", 3)]
    assert _starts(feed) == [("subscribed", 1), ("gap", 6)]
    effects = feed.continuity.take_effects()
    assert [(e.sid, e.channel, e.missing, e.tickers) for e in effects] == [(1, BOOK, 2, ())]
    assert feed.continuity.take_effects() == []


def test_frames_lost_before_the_first_one_are_a_gap_too() -> None:
    feed = Feed()
    feed.send(snapshot(3))
    assert _starts(feed) == [("gap", 3)]
    assert feed.continuity.take_effects()[0].missing == 2


def test_a_first_frame_with_number_one_begins_an_honest_run() -> None:
    feed = Feed()
    feed.send(snapshot(1))
    assert _starts(feed) == [("subscribed", 1)]
    assert feed.continuity.take_effects() == []


def test_a_duplicate_is_counted_and_not_stored() -> None:
    feed = Feed(BOOK)
    feed.send(snapshot(1), snapshot(2, market="N"), delta(3), delta(3), delta(4))
    assert feed.deltas["seq"].tolist() == [3, 4]
    assert feed.continuity.counts["duplicate"] == 1
    assert _ends(feed) == []


def test_only_old_numbers_for_long_mean_that_counting_began_anew() -> None:
    """Else a restarted count would be dropped as duplicates for ever, in silence."""
    feed = Feed(BOOK)
    n = DUPLICATES_IN_A_ROW_MAX + 10
    feed.send(snapshot(1), snapshot(2, market="N"), *(delta(k) for k in range(3, n)))
    feed.send(*(delta(k) for k in range(3, n)))
    assert _ends(feed) == [("gap", n - 1)]
    assert len(feed.deltas) > n - 3


def test_a_late_frame_ends_the_run_and_is_not_stored() -> None:
    """Its place is known but its order is not; what follows begins a run of its own."""
    feed = Feed(BOOK)
    feed.send(snapshot(1), snapshot(2, market="N"), delta(3), delta(5), delta(4), delta(6))
    assert feed.deltas["seq"].tolist() == [3, 5, 6]
    assert _ends(feed) == [("gap", 3), ("gap", 5)]
    assert feed.continuity.counts["backward"] == 1
    assert len(feed.continuity.take_effects()) == 2


def test_replies_use_a_number() -> None:
    """Measured on recorded data: `ok` counts like any other frame."""
    feed = Feed(BOOK)
    feed.send(snapshot(1), events.Ok(2, 1, 2, ["M"], None), snapshot(3, market="N"))
    assert feed.continuity.counts["gap"] == 0
    assert [r.seq for r in feed.continuity.rows.snapshots] == [1, 3]


def test_a_reply_before_the_first_frame_of_a_sid_does_not_name_its_channel() -> None:
    feed = Feed()
    feed.send(events.Ok(2, 1, 1, None, None), snapshot(2), delta(3))
    assert [r.detail["channel"] for r in feed.controls(ControlKind.RUN_START)] == [BOOK]


def test_channels_without_a_promise_have_no_runs() -> None:
    """Lifecycle and ticker: nothing is claimed, so nothing is begun or ended."""
    feed = Feed("market_lifecycle_v2")
    feed.send(events.EventLifecycle("E", {}, 1, 1), events.EventLifecycle("E", {}, 1, 5))
    assert _starts(feed) == []
    assert feed.continuity.counts["other_gap"] == 1
    feed.send(events.EventLifecycle("E", {}, 1, None))
    assert _ends(feed) == []


def test_a_long_stretch_takes_the_short_way_and_still_sees_the_gap() -> None:
    """Once the scope of the numbers is firm the hot path compares by itself."""
    feed = Feed(BOOK)
    feed.send(snapshot(1), snapshot(2, market="N"))
    feed.send(*(delta(k, market="MN"[k % 2]) for k in range(3, 200)))
    scope = feed.continuity._lives[feed.conn_id].scopes[1]
    assert scope.counter is not None
    feed.send(delta(205))
    assert _ends(feed) == [("gap", 199)]
    assert scope.counter is None
    feed.send(delta(206), delta(206))
    assert scope.counter is not None
    assert feed.continuity.counts["duplicate"] == 1


def test_ids_begin_at_the_base_and_are_told_once() -> None:
    feed = Feed(BOOK)
    feed.send(snapshot(1), snapshot(2, market="N"), delta(3))
    assert feed.continuity.rows.markets == [(BASE, "M"), (BASE + 1, "N")]
    assert feed.continuity.take_fresh_markets() == {"M": BASE, "N": BASE + 1}
    assert feed.continuity.take_fresh_markets() == {}
    assert feed.continuity.n_markets == 2
    assert feed.continuity.next_conn_id == BASE + 1
    assert feed.continuity.take().n_rows() == 7
    assert feed.continuity.rows.n_rows() == 0


def test_a_flood_of_problems_is_counted_and_thinned() -> None:
    """Every one counts; rows are limited so that a broken feed cannot fill the database."""
    feed = Feed(BOOK)
    total = PROBLEM_ROW_EVERY * 2
    feed.send(*[Refused("malformed", "?", {}) for _ in range(total)])
    rows = feed.controls(ControlKind.PROBLEM)
    assert len(rows) == PROBLEM_ROWS_MAX + 2
    assert rows[-1].detail["count"] == total
    assert feed.continuity.counts["problem_malformed"] == total


def test_numbers_counted_per_market_never_cover_a_hole() -> None:
    """If the exchange counted per market, no reply can be placed and nothing false is claimed."""
    feed = Feed(BOOK)
    for seq in range(1, 40):
        feed.send(delta(seq, market="M"), delta(seq, market="N"))
    feed.send(events.Ok(5, 1, 3, None, None))
    assert feed.continuity.counts["backward"] >= 1
    stored = feed.deltas
    for market in (BASE, BASE + 1):
        for run in set(stored["run_id"].tolist()):
            seqs = stored["seq"][(stored["market_id"] == market) & (stored["run_id"] == run)]
            assert (seqs[1:] - seqs[:-1] == 1).all()


def test_a_trade_sid_keeps_its_own_count() -> None:
    feed = Feed(BOOK, "trade")
    feed.send(snapshot(1), trade(1), trade(3), delta(2))
    assert [(r.reason, r.sid) for r in feed.controls(ControlKind.RUN_END)] == [("gap", 2)]
    assert feed.deltas["run_id"].tolist() == [BASE]
