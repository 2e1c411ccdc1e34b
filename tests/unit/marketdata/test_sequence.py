"""Sequence verdicts: "complete" rests on them, so a hole must never read as in sequence."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from marketdata import sequence
from marketdata.sequence import Scope, Tracker, Verdict
from tests import recorded

IN, GAP, DUP, NONE, BACK = (
    Verdict.IN_SEQUENCE,
    Verdict.GAP,
    Verdict.DUPLICATE,
    Verdict.UNSEQUENCED,
    Verdict.BACKWARD,
)
Numbered = tuple[int | None, str | None]


def verdicts(tracker: Tracker, frames: Iterable[Numbered]) -> list[Verdict]:
    """The verdict on each (seq, market)."""
    return [tracker.observe(seq, market) for seq, market in frames]


def test_one_counter_over_all_markets_and_replies_is_in_sequence() -> None:
    """The start of every recorded subscription: snapshot, ok, snapshot, ok, deltas."""
    tracker = Tracker()
    frames: list[Numbered] = [
        (1, "A"),
        (2, None),
        (3, "B"),
        (4, None),
        (5, "A"),
        (6, "A"),
        (7, "B"),
    ]
    assert set(verdicts(tracker, frames)) == {IN}
    assert tracker.scope is Scope.SID
    assert tracker.next_seq == 8
    assert tracker.firm_counter is None


def test_reply_that_is_lost_is_a_gap() -> None:
    """`ok` consumes a number; a check that counts data frames only would miss or invent gaps."""
    tracker = Tracker()
    assert verdicts(tracker, [(1, "A"), (3, "B")]) == [IN, GAP]
    assert tracker.missing == 1


def test_first_frame_that_is_not_number_one_is_a_gap() -> None:
    """Numbers start at 1 on every sid: what came before was lost."""
    tracker = Tracker()
    assert verdicts(tracker, [(5, "A"), (6, "A")]) == [GAP, IN]
    assert tracker.missing == 4


def test_gap_tells_how_many_and_goes_on_after_it() -> None:
    """The size of the hole goes into the run's record."""
    tracker = Tracker()
    tracker.observe(1, "A")
    assert tracker.observe(11, "A") is GAP
    assert tracker.missing == 9
    assert tracker.observe(12, "A") is IN


def test_repeated_frame_is_a_duplicate() -> None:
    """Stored twice, it would be a change that never was."""
    tracker = Tracker()
    assert verdicts(tracker, [(1, "A"), (2, "B"), (3, "A"), (2, "B"), (3, "A"), (4, "B")]) == [
        IN, IN, IN, DUP, DUP, IN,
    ]  # fmt: skip
    assert tracker.scope is Scope.SID


def test_late_frame_is_backward_once_and_a_duplicate_after() -> None:
    """It was never seen, so it must not be thrown away as a repeat."""
    tracker = Tracker()
    frames: list[Numbered] = [
        (1, "A"),
        (2, "B"),
        (3, "A"),
        (7, "B"),
        (5, "A"),
        (5, "A"),
        (4, "A"),
        (6, "B"),
    ]
    assert verdicts(tracker, frames) == [IN, IN, IN, GAP, BACK, DUP, BACK, BACK]
    assert tracker.scope is Scope.SID
    assert tracker.evidence_market == 0


def test_frame_without_number_is_unsequenced() -> None:
    """Tickers carry none; no gap can be found or excluded by them."""
    tracker = Tracker()
    assert verdicts(tracker, [(None, "A"), (1, "A"), (None, None), (2, "A")]) == [
        NONE,
        IN,
        NONE,
        IN,
    ]


def test_holes_that_were_forgotten_are_backward_and_never_duplicates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The memory of holes is bounded; past it, nothing is called seen that may not have been."""
    monkeypatch.setattr(sequence, "MAX_HOLES", 2)
    tracker = Tracker()
    verdicts(tracker, [(1, "A"), (3, "A"), (5, "A"), (7, "A")])
    assert tracker.observe(2, "A") is BACK
    assert tracker.observe(2, "A") is BACK
    assert tracker.observe(6, "A") is BACK
    assert tracker.observe(6, "A") is DUP


def per_market(counts: str) -> Iterator[tuple[int, str]]:
    """Frames as an exchange that counts per market would number them: "ABA" -> A1 B1 A2."""
    numbers: dict[str, int] = {}
    for market in counts:
        numbers[market] = numbers.get(market, 0) + 1
        yield numbers[market], market


def test_per_market_counting_is_found_from_reused_numbers() -> None:
    """The exchange does not document the scope: if it changes, the recorder must not be blind."""
    tracker = Tracker()
    said = verdicts(tracker, per_market("ABCABCABCABC"))
    assert said[:3] == [IN, BACK, BACK]
    assert tracker.scope is Scope.MARKET
    assert tracker.evidence_market == sequence.DECIDE_MARKET
    assert set(verdicts(tracker, [(5, "A"), (5, "B"), (6, "A"), (1, "D"), (2, "D")])) == {IN}


def test_gap_repeat_and_late_frame_of_one_market_under_per_market_counting() -> None:
    """Each market has its own count then; a reply's number says nothing."""
    tracker = Tracker()
    verdicts(tracker, per_market("ABC" * 4))
    assert verdicts(tracker, [(8, "A"), (5, "B"), (6, "A"), (6, "A"), (9, "A"), (77, None)]) == [
        GAP, IN, BACK, DUP, IN, NONE,
    ]  # fmt: skip
    assert tracker.observe(7, "C") is GAP
    assert tracker.missing == 2


def test_lost_frame_is_not_called_in_sequence_while_the_scope_is_in_doubt() -> None:
    """A1 B1 A2 B2 [A3 lost] B3 A4: the sid's count is unbroken at B3 and A4, A's own is not."""
    tracker = Tracker()
    said = verdicts(tracker, [(1, "A"), (1, "B"), (2, "A"), (2, "B"), (3, "B"), (4, "A")])
    assert said == [IN, BACK, IN, BACK, IN, GAP]
    assert tracker.missing == 1
    assert tracker.scope is Scope.UNDECIDED


def test_reply_that_continues_the_count_is_evidence_for_one_counter() -> None:
    """A reply has no market, so its number can only be the sid's."""
    tracker = Tracker()
    assert tracker.observe(1, "A") is IN
    assert tracker.observe(2, None) is IN  # a reply: the first evidence for one counter
    assert tracker.observe(3, "A") is IN  # the second
    assert tracker.scope is Scope.SID


def test_jump_of_a_known_market_without_other_evidence_is_a_gap(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """INV-31 with the threshold out of reach: doubt is a cut."""
    monkeypatch.setattr(sequence, "DECIDE_SID", 100)
    tracker = Tracker()
    assert verdicts(tracker, [(1, "A"), (2, "B"), (3, "A"), (4, "A")]) == [IN, IN, GAP, IN]
    assert tracker.scope is Scope.UNDECIDED


def test_one_reused_number_is_doubt_and_the_doubt_passes() -> None:
    """A single corrupt frame must not make a good connection useless for ever."""
    tracker = Tracker()
    verdicts(tracker, [(1, "A"), (2, "B"), (3, "A"), (4, "B")])
    assert tracker.scope is Scope.SID
    assert tracker.observe(2, "C") is BACK
    assert tracker.scope is Scope.UNDECIDED
    said = verdicts(tracker, [(n, "AB"[n % 2]) for n in range(5, 60)])
    assert said[:2] == [IN, GAP]  # B goes on by one, A jumps
    assert said[-1] is IN
    assert tracker.scope is Scope.SID


def test_firm_scope_follows_no_market_any_more() -> None:
    """The hot path of a long connection: one comparison, no dictionary."""
    tracker = Tracker()
    verdicts(tracker, [(n, "AB"[n % 2]) for n in range(1, 200)])
    assert tracker.is_firm
    counter = tracker.firm_counter
    assert counter is not None
    assert counter.next == tracker.next_seq == 200
    assert tracker.export()["last"] == {}
    assert verdicts(tracker, [(200, "A"), (199, "A"), (205, None), (203, "Z"), (203, "Z")]) == [
        IN, DUP, GAP, BACK, DUP,
    ]  # fmt: skip


@pytest.mark.parametrize("counts", ["AAAAAA", "ABABABAB", "ABCABCABCABCABC"])
@pytest.mark.parametrize("cut", [1, 4, 6])
def test_state_that_was_stored_goes_on_as_if_it_never_stopped(counts: str, cut: int) -> None:
    """INV-33: a restart in the middle of a spool gives the same rows."""
    for frames in (
        list(per_market(counts)),
        [(n + (n > 3), m) for n, m in enumerate(counts, 1)],
    ):
        whole, part = Tracker(), Tracker()
        expected = verdicts(whole, frames)
        got = verdicts(part, frames[:cut])
        part = Tracker.restore(json.loads(json.dumps(part.export())))
        got += verdicts(part, frames[cut:])
        assert got == expected
        assert part.export() == whole.export()


def recorded_frames(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """(connection, frame) of a capture."""
    if path.suffix == ".json":
        for entry in json.loads(path.read_text())["frames"]:
            yield 1, entry["frame"]
        return
    with gzip.open(path, "rt") as lines:
        for line in lines:
            entry = json.loads(line)
            yield entry["conn"], entry["frame"]


def test_recorded_streams_are_in_sequence_and_drops_are_found_one_by_one() -> None:
    """Real traffic: no gap as recorded; every dropped frame is a gap; the scope never flips."""
    paths = recorded.captures(limit=3)
    multi = recorded.recorded("ws_multi")
    seen = 0
    for path in {*paths, *multi.glob("*.json")}:
        whole: dict[tuple[int, int], Tracker] = {}
        dropping: dict[tuple[int, int], Tracker] = {}
        gaps = dropped = 0
        for n, (conn, frame) in enumerate(recorded_frames(path)):
            seq, sid, msg = frame.get("seq"), frame.get("sid"), frame.get("msg")
            if not isinstance(seq, int) or not isinstance(sid, int):
                continue
            market = msg.get("market_ticker") if isinstance(msg, dict) else None
            key = (conn, sid)
            assert whole.setdefault(key, Tracker()).observe(seq, market) is IN
            tracker = dropping.setdefault(key, Tracker())
            if n % 97 == 50:
                dropped += 1
                continue
            gaps += tracker.observe(seq, market) is GAP
            assert tracker.scope is not Scope.MARKET
            seen += 1
        assert dropped - 1 <= gaps <= dropped  # a drop at the very end cannot be seen
    assert seen > 200
