"""Continuity: what each frame proves about the books, and what nobody may claim."""

from __future__ import annotations

import pytest

from marketdata import events
from marketdata.book import hash_levels, level_constant, unpack_levels
from marketdata.continuity import Continuity, Refused
from marketdata.events import TsPrecision
from marketdata.rows import ControlKind, DeltaFlag, SnapshotVerdict
from tests.continuity_feed import BASE, T0, Feed, delta, snapshot, ticker, trade

BOOK = "orderbook_delta"
YES = [(400_000, 300), (500_000, 200)]
NO = [(300_000, 50)]
MASK = (1 << 64) - 1


def test_changes_after_a_snapshot_carry_the_running_hash_of_the_book() -> None:
    """The hash is the identity the merge rests on: it has to be the book's, not the run's."""
    feed = Feed(BOOK)
    feed.send(snapshot(1, yes=YES, no=NO), delta(2, size=-200), delta(3, side=1, price=300_000))
    after = [
        hash_levels([(400_000, 300)], NO),
        hash_levels([(400_000, 300)], [(300_000, 150)]),
    ]
    assert feed.deltas["book_hash"].tolist() == after
    assert feed.deltas["flags"].tolist() == [0, 0]
    assert feed.verdicts == [SnapshotVerdict.ANCHOR]
    row = feed.continuity.rows.snapshots[0]
    assert unpack_levels(row.levels) == (YES, NO)
    assert (row.market_id, row.run_id, row.seq, row.flags) == (BASE, BASE, 1, 0)


def test_a_snapshot_that_equals_the_running_book_agrees() -> None:
    """Every later snapshot is an audit, passed only by the exact book."""
    feed = Feed(BOOK)
    feed.send(
        snapshot(1, yes=YES), delta(2, size=50), snapshot(3, yes=[(400_000, 300), (500_000, 250)])
    )
    assert feed.verdicts == [SnapshotVerdict.ANCHOR, SnapshotVerdict.AGREES]
    agreed = feed.continuity.rows.snapshots[1]
    assert agreed.book_hash == agreed.running_hash


def test_a_snapshot_that_differs_is_told_and_taken_over() -> None:
    """A silently wrong book must not go on: the row keeps both hashes, the chain the new one."""
    feed = Feed(BOOK)
    feed.send(snapshot(1, yes=YES), snapshot(2, yes=[(400_000, 299)]), delta(3, price=400_000))
    assert feed.verdicts[1] == SnapshotVerdict.DIFFERS
    row = feed.continuity.rows.snapshots[1]
    assert row.running_hash == hash_levels(YES, [])
    assert feed.deltas["book_hash"][0] == hash_levels([(400_000, 399)], [])


def test_an_empty_snapshot_over_a_full_book_is_an_event_of_its_own() -> None:
    """At a market's close the exchange may empty the book without deltas."""
    feed = Feed(BOOK)
    feed.send(snapshot(1, yes=YES), delta(2), snapshot(3), snapshot(4))
    assert feed.verdicts == [SnapshotVerdict.ANCHOR, SnapshotVerdict.RESET, SnapshotVerdict.AGREES]
    reset = feed.deltas[1]
    assert reset["flags"] == DeltaFlag.RESET | DeltaFlag.TS_INFERRED
    assert (reset["book_hash"], reset["delta"], reset["price"], reset["seq"]) == (0, 0, 0, 3)
    assert reset["exchange_us"] == T0 + 2


def test_an_empty_first_snapshot_anchors_an_empty_book() -> None:
    """A market without orders begins with H = 0; it is no reset."""
    feed = Feed(BOOK)
    feed.send(snapshot(1), delta(2, size=7))
    assert feed.verdicts == [SnapshotVerdict.ANCHOR]
    assert feed.deltas["book_hash"][0] == hash_levels([(500_000, 7)], [])


def test_an_empty_snapshot_in_a_floating_chain_is_an_anchor_and_no_reset() -> None:
    """Without a known book nobody can say that it was emptied."""
    feed = Feed(BOOK)
    feed.send(delta(1), snapshot(2))
    assert feed.verdicts == [SnapshotVerdict.ANCHOR]
    assert feed.continuity.rows.snapshots[0].flags == DeltaFlag.FLOATING
    assert len(feed.deltas) == 1


def test_changes_before_the_first_snapshot_float_from_zero() -> None:
    """They become ordinary later by subtraction, so their hash counts from the run's start."""
    feed = Feed(BOOK)
    feed.send(delta(1, size=3), delta(2, size=4), snapshot(3, yes=[(500_000, 9)]))
    assert feed.deltas["flags"].tolist() == [DeltaFlag.FLOATING] * 2
    assert feed.deltas["book_hash"][1] == (level_constant(0, 500_000) * 7) & MASK
    row = feed.continuity.rows.snapshots[0]
    assert row.running_hash == feed.deltas["book_hash"][1]
    assert row.flags == DeltaFlag.FLOATING


def test_after_a_gap_every_market_of_the_subscription_floats_and_no_other() -> None:
    """A gap does not tell which market lost a frame; another sid has its own numbers."""
    feed = Feed(BOOK, "trade")
    feed.send(snapshot(1, yes=YES), snapshot(2, market="N", yes=YES), trade(1))
    feed.send(delta(5), delta(6, market="N"), trade(2), snapshot(7, yes=YES), delta(8))
    assert feed.deltas["flags"].tolist() == [DeltaFlag.FLOATING, DeltaFlag.FLOATING, 0]
    assert feed.trades["run_id"].tolist() == [BASE + 1, BASE + 1]
    assert feed.continuity.rows.snapshots[-1].flags == DeltaFlag.FLOATING
    assert feed.continuity.counts["missing"] == 2


def test_a_level_below_zero_is_flagged_and_the_hash_stays_linear() -> None:
    """The book was wrong; only the next snapshot can say since when."""
    feed = Feed(BOOK)
    feed.send(snapshot(1, yes=[(500_000, 10)]), delta(2, size=-11), delta(3, size=11))
    assert feed.deltas["flags"].tolist() == [DeltaFlag.NEGATIVE, 0]
    assert feed.deltas["book_hash"][1] == hash_levels([(500_000, 10)], [])
    assert feed.continuity.counts["negative"] == 1


def test_a_change_without_time_takes_the_market_s_last_then_the_sid_s_then_any() -> None:
    """Inferred times are flagged; they come from the nearest source there is."""
    feed = Feed(BOOK, "trade")
    none = TsPrecision.NONE
    feed.send(delta(1, precision=none))
    feed.send(trade(1), delta(2, precision=none))
    feed.send(delta(3, market="N", us=T0 + 9), delta(4, precision=none))
    feed.send(delta(5, us=T0 + 20), delta(6, precision=none), delta(7, market="N", precision=none))
    inferred = [0, T0 + 5, T0 + 9, T0 + 9, T0 + 20, T0 + 20, T0 + 9]
    assert feed.deltas["exchange_us"].tolist() == inferred
    flags = feed.deltas["flags"] & DeltaFlag.TS_INFERRED
    assert flags.astype(bool).tolist() == [True, True, False, True, False, True, True]


@pytest.mark.parametrize(
    ("us", "precision", "expected"),
    [
        (T0 - 5_000, TsPrecision.MICRO, DeltaFlag.TS_BACKWARD),
        (T0 - 5_000, TsPrecision.MILLI, DeltaFlag.TS_BACKWARD | DeltaFlag.TS_MS_ONLY),
        (T0, TsPrecision.MILLI, DeltaFlag.TS_MS_ONLY),
        (T0 + 1_000, TsPrecision.MILLI, DeltaFlag.TS_MS_ONLY),
        (T0 + 500, TsPrecision.MICRO, 0),
    ],
)
def test_time_going_back_is_flagged_but_cut_digits_are_not(
    us: int, precision: TsPrecision, expected: int
) -> None:
    """A time in milliseconds may lie before one in microseconds of the same millisecond."""
    feed = Feed(BOOK)
    feed.send(snapshot(1), delta(2, us=T0 + 500), delta(3, us=us, precision=precision))
    assert feed.deltas["flags"][1] == expected
    assert feed.deltas["exchange_us"][1] == us


def test_trades_and_tickers_become_rows_with_all_their_fields() -> None:
    """Nothing of them is needed for books, all of it for the tape."""
    feed = Feed(BOOK, "trade")
    feed.send(trade(1), ticker(), ticker(None))
    (row,) = feed.trades
    assert row["trade_id"].tobytes() == b"t" * 16
    assert [row[name] for name in ("count", "yes_price", "no_price")] == [200, 600_000, 400_000]
    assert [row[name] for name in ("run_id", "seq", "taker_side", "flags")] == [BASE + 1, 1, 0, 1]
    assert feed.tickers["payload_key"].tolist() == [2**63 + 5] * 2
    assert feed.tickers["exchange_us"].tolist() == [T0 + 7, T0 + 7]
    assert feed.continuity.rows.counts() == {"market": 1, "trade": 1, "ticker": 2, "control": 3}


def test_a_repeated_or_late_trade_is_not_stored_again() -> None:
    feed = Feed(BOOK, "trade")
    feed.send(trade(1), trade(1))
    assert len(feed.trades) == 1


def test_a_trade_form_without_seq_ends_what_was_claimed() -> None:
    """Without numbers nobody can prove that none is missing."""
    feed = Feed(BOOK, "trade")
    feed.send(trade(None), trade(None))
    assert feed.trades["run_id"].tolist() == [0, 0]
    assert [r.reason for r in feed.controls(ControlKind.RUN_END)] == ["unsequenced"]


def test_a_trade_without_an_id_is_a_problem_and_no_row() -> None:
    feed = Feed(BOOK, "trade")
    feed.send(trade(1, trade_id=None))
    assert len(feed.trades) == 0
    assert [r.reason for r in feed.controls(ControlKind.PROBLEM)] == ["missing_field"]


def test_a_change_without_a_number_is_not_stored() -> None:
    """It could not be placed; its absence must not be covered, so the run ends."""
    feed = Feed(BOOK)
    feed.send(snapshot(1), delta(None), snapshot(None))
    assert len(feed.deltas) == 0
    assert [r.reason for r in feed.controls(ControlKind.RUN_END)] == ["unsequenced"]
    assert feed.continuity.counts["unsequenced"] == 2


def test_an_unknown_message_with_a_number_ends_what_is_claimed_and_is_told() -> None:
    """It may be a change under a new name. No number is missing, and nothing is proven past it."""
    feed = Feed(BOOK)
    feed.send(snapshot(1), events.Unknown("novelty", 1, 2, None), delta(3))
    assert len(feed.deltas) == 1
    assert feed.continuity.counts["missing"] == 0
    problem = feed.controls(ControlKind.PROBLEM)[0]
    assert (problem.reason, problem.detail["type"]) == ("unknown_type", "novelty")
    ended = feed.controls(ControlKind.RUN_END)[0]
    assert (ended.sid, ended.seq, ended.reason) == (1, 2, "error")
    assert feed.deltas["flags"].tolist() == [DeltaFlag.FLOATING]
    assert feed.continuity.take_effects()[0].sid == 1  # fresh snapshots of its books


def test_an_unknown_message_without_a_number_ends_nothing() -> None:
    """Sequenced data cannot come without a number: it was none."""
    feed = Feed(BOOK)
    feed.send(snapshot(1), events.Unknown("novelty", 1, None, None), delta(2))
    assert feed.controls(ControlKind.RUN_END) == []
    assert feed.deltas["flags"].tolist() == [0]


def test_lifecycle_frames_use_numbers_of_their_own_sid_without_rows() -> None:
    feed = Feed(BOOK)
    life = events.MarketLifecycle("M", "created", False, {}, 4, 1)
    fee = events.EventFeeUpdate("E", {}, None, None)
    feed.send(life, fee, delta(1))
    assert len(feed.deltas) == 1
    assert feed.continuity.counts["other_in_sequence"] == 1


def test_a_refused_frame_ends_the_claim_on_its_market_only() -> None:
    """A change that cannot be read makes one book unknown: the others are still proven."""
    feed = Feed(BOOK)
    feed.send(snapshot(1, yes=YES), snapshot(2, market="N", yes=YES))
    feed.send(Refused("off_scale", "bad price", {"ordinal": 7}, 1, 3, "M"))
    feed.send(delta(4), delta(5, market="N"))
    removed = feed.controls(ControlKind.MARKET_REMOVED)[0]
    assert (removed.market_id, removed.seq, removed.reason) == (BASE, 3, "off_scale")
    assert feed.deltas["flags"].tolist() == [DeltaFlag.FLOATING, 0]
    gap = feed.continuity.take_effects()[0]
    assert (gap.tickers, gap.sid) == (("M",), 1)
    assert feed.controls(ControlKind.PROBLEM)[0].detail["ordinal"] == 7


def test_changes_after_a_refused_one_do_not_fit_onto_a_snapshot_before_it() -> None:
    """Their relative hash begun at 0 would be the snapshot's book with the next change: a reader
    who knows that snapshot would find no hole, and would call it complete."""
    feed = Feed(BOOK)
    feed.send(snapshot(1, yes=YES), Refused("off_scale", "?", {}, 1, 2, "M"))
    feed.send(delta(3), delta(4), snapshot(5, yes=YES), delta(6))
    first, second, third = feed.deltas["book_hash"].tolist()
    before, after = feed.continuity.rows.snapshots
    steps = (int(second) - int(first)) & MASK
    assert (int(first) - steps) & MASK != 0  # the same change twice: its base is not 0
    assert before.running_hash == 0
    assert after.running_hash == second
    assert (after.verdict, after.flags) == (SnapshotVerdict.ANCHOR, DeltaFlag.FLOATING)
    assert third == (after.book_hash + steps) & MASK
    assert feed.deltas["flags"].tolist() == [DeltaFlag.FLOATING, DeltaFlag.FLOATING, 0]


def test_a_refused_frame_of_a_market_not_seen_before_asks_for_its_snapshot() -> None:
    feed = Feed(BOOK)
    feed.send(Refused("malformed", "?", {}, 1, 1, "M"))
    assert feed.controls(ControlKind.MARKET_REMOVED) == []
    assert feed.continuity.take_effects()[0].tickers == ("M",)


@pytest.mark.parametrize("refused", [(1, 2, None), (2, 1, "M")])
def test_a_refused_frame_without_market_or_of_trades_ends_the_run(
    refused: tuple[int, int, str | None],
) -> None:
    """What it was about cannot be told, so nothing of the subscription is covered past it."""
    feed = Feed(BOOK, "trade")
    feed.send(snapshot(1), Refused("malformed", "?", {}, *refused))
    assert [(r.sid, r.reason) for r in feed.controls(ControlKind.RUN_END)] == [
        (refused[0], "error")
    ]


@pytest.mark.parametrize("refused", [(None, None, None), (9, 1, "M"), (1, 1, "M")])
def test_a_refused_frame_that_touches_no_live_number_is_only_told(
    refused: tuple[int | None, int | None, str | None],
) -> None:
    """No sid, a sid we do not follow, or a number used before: there is nothing to take back."""
    feed = Feed(BOOK)
    feed.send(snapshot(1), snapshot(2, market="N"), Refused("malformed", "?", {}, *refused))
    assert len(feed.controls(ControlKind.PROBLEM)) == 1
    assert feed.controls(ControlKind.RUN_END) == []


def test_a_deleted_market_leaves_with_the_reply_and_not_with_the_command() -> None:
    """Frames between command and reply still belong to the subscription."""
    feed = Feed(BOOK)
    feed.send(snapshot(1, yes=YES), snapshot(2, market="N", yes=YES))
    command = {"id": 8, "params": {"action": "delete_markets", "market_tickers": ["M", "X"]}}
    feed.control(k="subscribe", command=command)
    feed.control(k="subscribe", command={"id": 9, "cmd": "list_subscriptions"})
    feed.send(delta(3), events.Ok(8, 1, 4, None, None), delta(5), delta(6, market="N"))
    assert [r.market_id for r in feed.controls(ControlKind.MARKET_REMOVED)] == [BASE]
    assert feed.deltas["flags"].tolist() == [0, DeltaFlag.FLOATING, 0]


def test_a_terminal_error_ends_the_run_and_a_harmless_one_does_not() -> None:
    feed = Feed(BOOK)
    feed.send(snapshot(1), events.Error(27, "slow", [], None, 1, 2), delta(3))
    assert feed.controls(ControlKind.RUN_END) == []
    feed.send(events.Error(25, "overflow", [], None, 1, 4))
    assert [(r.reason, r.seq) for r in feed.controls(ControlKind.RUN_END)] == [("error", 4)]
    feed.send(events.Error(8, "unknown channel", [], 3, None, None))
    assert feed.continuity.counts["error_8"] == 1


def test_unsubscribed_ends_the_run() -> None:
    feed = Feed(BOOK)
    feed.send(snapshot(1), events.Unsubscribed(5, 1, 2), events.Unsubscribed(6, None, None))
    assert [r.reason for r in feed.controls(ControlKind.RUN_END)] == ["unsubscribed"]


def test_a_new_subscription_on_an_old_sid_begins_anew() -> None:
    """After error 25 the exchange may give the same sid again, counting from 1."""
    feed = Feed(BOOK)
    feed.send(snapshot(1), delta(2), events.Error(25, "overflow", [], None, 1, 3))
    feed.send(events.Subscribed(2, BOOK, 1), snapshot(1, yes=YES), delta(2))
    starts = feed.controls(ControlKind.RUN_START)
    assert [r.detail["start"] for r in starts] == ["subscribed", "subscribed"]
    assert feed.continuity.counts["gap"] == 0
    assert feed.deltas["flags"].tolist() == [0, 0]


def test_frames_before_the_subscribed_reply_belong_to_its_run() -> None:
    """Replies may come late; the run began with the first frame."""
    feed = Feed()
    feed.send(snapshot(1, yes=YES), events.Subscribed(1, BOOK, 1), delta(2))
    assert len(feed.controls(ControlKind.RUN_START)) == 1
    assert feed.deltas["flags"].tolist() == [0]


def test_the_oldest_subscribed_form_names_nothing_and_changes_nothing() -> None:
    feed = Feed()
    feed.send(events.Subscribed(1, None, None), events.Subscribed(1, BOOK, None))
    assert feed.controls(ControlKind.RUN_START) == []


def test_a_close_ends_every_run_and_forgets_the_connection() -> None:
    feed = Feed(BOOK, "trade")
    feed.send(snapshot(1), delta(2), trade(1))
    feed.control(k="close", reason="reset", code=1006)
    ends = feed.controls(ControlKind.RUN_END)
    assert [(r.reason, r.seq) for r in ends] == [("close", 2), ("close", 1)]
    assert ends[0].exchange_us == T0 + 2
    close = feed.controls(ControlKind.CONN_CLOSE)[0]
    assert (close.reason, close.detail) == ("reset", {"code": 1006})
    assert feed.continuity.open_connections() == []
    assert feed.continuity.latest_us() == T0 + 5
    feed.control(k="close", reason="died")
    assert len(feed.controls(ControlKind.CONN_CLOSE)) == 2


def test_a_clean_end_is_told_with_the_last_stamp() -> None:
    feed = Feed(BOOK)
    feed.send(snapshot(1))
    feed.continuity.end()
    assert feed.controls(ControlKind.GATHERER_END)[0].received_ns == feed.clock


def test_errors_of_our_own_are_problems_and_notes_are_silent() -> None:
    feed = Feed()
    feed.control(k="error", reason="markets_refused", detail={"tickers": ["M"]})
    feed.control(k="error")
    feed.control(k="note", text="hello")
    assert [r.reason for r in feed.controls(ControlKind.PROBLEM)] == ["markets_refused", "error"]


def test_a_frame_without_a_connect_record_opens_its_connection() -> None:
    """The record before it may be lost with a torn segment; ids must not be given twice."""
    continuity = Continuity(BASE)
    continuity.absorb(BASE + 5, [snapshot(1)], 1)
    assert continuity.next_conn_id == BASE + 6
    assert continuity.open_connections() == [BASE + 5]


def test_a_frame_without_sid_is_followed_by_itself() -> None:
    """Absent sid: scope 0 of the connection, never another subscription's."""
    feed = Feed(BOOK)
    feed.send(snapshot(1), delta(1, sid=None), delta(2, sid=None), delta(2))
    assert set(feed.deltas["run_id"].tolist()) == {BASE, BASE + 1}


def test_a_reply_that_names_no_subscription_changes_nothing() -> None:
    """The answer to list_subscriptions has neither sid nor number."""
    feed = Feed(BOOK)
    feed.send(snapshot(1), events.Ok(5, None, None, None, [(BOOK, 1)]), delta(2))
    assert feed.deltas["flags"].tolist() == [0]


def test_looks_show_proven_books_only_and_whether_they_changed() -> None:
    """For whoever compares them with another source."""
    feed = Feed(BOOK, "trade")
    feed.send(snapshot(1, yes=YES), delta(2, market="N"))
    state, conn_id = feed.continuity, feed.conn_id
    first = state.looks(conn_id, ["M", "N", "unknown"])
    assert first[0] is not None
    assert first[0].book_hash == hash_levels(YES, [])
    assert first[1:] == [None, None], "one floats until its snapshot, one is not there"
    feed.send(delta(3))
    (second,) = state.looks(conn_id, ["M"])
    assert second is not None
    assert (second.run_id, second.last_us) == (first[0].run_id, T0 + 3)
    feed.send(delta(9))
    assert state.looks(conn_id, ["M"]) == [None], "a gap: nothing is proven any more"
    feed.control(k="close", reason="reset")
    assert state.looks(conn_id, ["M"]) == [None]
