"""The words of the merge: what a segment knows of its witnesses."""

from __future__ import annotations

from marketdata.alignment import no_events
from marketdata.pieces import Part, Segment, order_ties, timed_range
from tests.unit.marketdata.streams import piece, plain, stream


def test_witnesses_of_a_stretch_are_those_that_reach_into_it_with_a_sane_book() -> None:
    truth = plain(10)
    segment = Segment(truth)
    segment.parts = [
        Part(piece(truth, 0, 5, 0), 0, 0, 5),
        Part(piece(truth, 4, 10, 1), 0, 4, 6),
        Part(piece(truth, 0, 10, 2, weak=True), 0, 0, 10),
    ]
    assert segment.gatherers(0, 10) == {0, 1}
    assert segment.gatherers(5, 10) == {1}
    assert segment.gatherers(0, 4) == {0}


def test_audits_count_for_runs_that_go_past_a_place() -> None:
    truth = plain(10)
    segment = Segment(truth)
    segment.parts = [
        Part(piece(truth, 0, 5, 0, audit=-1), 0, 0, 5),
        Part(piece(truth, 0, 9, 1, audit=1), 0, 0, 9),
    ]
    assert (segment.audit(0), segment.audit(5), segment.audit(9)) == (0, 1, 0)


def test_the_time_range_leaves_inferred_times_out() -> None:
    assert timed_range(stream([(5, 1, 1), (9, 2, 1), (99, 0, 0)])) == (5, 9)
    assert timed_range(stream([(5, 0, 0)])) is None
    assert timed_range(no_events()) is None


def test_segments_apart_in_time_stay_as_they_are() -> None:
    truth = plain(6)
    parts = [Segment(truth.part(0, 3)), Segment(truth.part(3, 6))]
    assert order_ties(list(parts)) == parts
    assert [s.ambiguous for s in parts] == [[], []]
