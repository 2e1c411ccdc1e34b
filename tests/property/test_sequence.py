"""Sequence verdicts over any stream: per sid or per market, with frames lost, repeated or late."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from marketdata.sequence import Scope, Tracker, Verdict

Stream = list[tuple[int, str | None]]
markets = st.lists(st.sampled_from(["A", "B", "C", None]), max_size=120)


@st.composite
def per_sid_with_faults(draw: st.DrawFn) -> Stream:
    """One counter; frames are lost, repeated and moved back."""
    stream: Stream = list(enumerate(draw(markets), 1))
    out: Stream = []
    for frame in stream:
        fault = draw(st.sampled_from(["", "", "", "", "drop", "repeat", "late"]))
        if fault == "drop":
            continue
        if fault == "repeat" and out:
            out.append(frame)
            out.append(draw(st.sampled_from(out)))
        elif fault == "late" and out:
            out.insert(len(out) - draw(st.integers(1, min(4, len(out)))), frame)
        else:
            out.append(frame)
    return out


@given(per_sid_with_faults())
def test_faults_in_a_per_sid_stream_never_turn_the_scope_nor_hide_a_new_frame(
    stream: Stream,
) -> None:
    """INV-30 and INV-32: nothing that is new is thrown away; a hole is never in sequence."""
    tracker = Tracker()
    seen: set[int] = set()
    highest = 0
    for seq, market in stream:
        verdict = tracker.observe(seq, market)
        assert (verdict is Verdict.DUPLICATE) <= (seq in seen)
        assert (verdict is Verdict.IN_SEQUENCE) <= (seq == highest + 1)
        assert (verdict is Verdict.GAP) == (seq > highest + 1) or tracker.scope is Scope.UNDECIDED
        seen.add(seq)
        highest = max(highest, seq)
        assert tracker.scope is not Scope.MARKET
    assert tracker.evidence_market == 0


@given(st.lists(st.tuples(st.sampled_from("ABC"), st.booleans()), max_size=80))
def test_per_market_stream_with_drops_is_never_called_gap_free_before_the_scope_is_known(
    frames: list[tuple[str, bool]],
) -> None:
    """INV-31: a market's number was skipped, so the frame after it is cut (or not yet decided)."""
    tracker = Tracker()
    numbers: dict[str, int] = {}
    reached: dict[str, int] = {}
    for market, is_lost in frames:
        numbers[market] = numbers.get(market, 0) + 1
        if is_lost:
            continue
        verdict = tracker.observe(numbers[market], market)
        if tracker.scope is not Scope.SID and market in reached:
            skipped = numbers[market] - reached[market] - 1
            assert not (skipped and verdict is Verdict.IN_SEQUENCE)
        assert verdict is not Verdict.DUPLICATE
        reached[market] = numbers[market]


@given(st.lists(st.sampled_from("ABCDEF"), min_size=60, max_size=120))
def test_per_market_stream_of_several_markets_is_found_out(frames: list[str]) -> None:
    """Without losses the reuse of numbers decides soon, and then every frame is in sequence."""
    tracker = Tracker()
    numbers: dict[str, int] = {}
    after: list[Verdict] = []
    for market in frames:
        numbers[market] = numbers.get(market, 0) + 1
        known = tracker.scope is Scope.MARKET
        verdict = tracker.observe(numbers[market], market)
        if known:
            after.append(verdict)
    assert set(after) <= {Verdict.IN_SEQUENCE}
    assert (tracker.scope is Scope.MARKET) or len(set(frames)) == 1 or tracker.evidence_market < 4


@given(per_sid_with_faults(), st.data())
def test_stored_state_gives_the_same_verdicts(stream: Stream, data: st.DataObject) -> None:
    """INV-33."""
    cut = data.draw(st.integers(0, len(stream)))
    whole, part = Tracker(), Tracker()
    expected = [whole.observe(*frame) for frame in stream]
    got = [part.observe(*frame) for frame in stream[:cut]]
    part = Tracker.restore(json.loads(json.dumps(part.export())))
    got += [part.observe(*frame) for frame in stream[cut:]]
    assert got == expected
