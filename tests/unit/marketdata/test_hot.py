"""The hot path on single cases; the property test walks the mixtures."""

from __future__ import annotations

from marketdata import events, hot, wire
from marketdata.continuity import Continuity
from tests.frame_streams import FrameStream

CONN = 100


def _opened(stream: FrameStream) -> tuple[Continuity, wire.Decoder]:
    continuity, decoder = Continuity(CONN), wire.Decoder()
    hot.absorb_frames(continuity, decoder, CONN, 0, stream.opening(), 1)
    return continuity, decoder


def test_what_a_session_wants_to_see_is_given_back() -> None:
    """Snapshots answer its requests; market data are none of its business."""
    stream = FrameStream(3)
    continuity, decoder = Continuity(CONN), wire.Decoder()
    seen = hot.absorb_frames(continuity, decoder, CONN, 0, stream.opening(), 1)
    kinds = [type(event) for event in seen]
    assert kinds == [events.Subscribed] * 3 + [events.Snapshot] * 4
    assert hot.absorb_frames(continuity, decoder, CONN, 7, stream.frames(200), 2) == []


def test_a_level_below_zero_is_counted_alone_and_in_a_burst() -> None:
    for n in (1, 60):
        stream = FrameStream(4)
        continuity, decoder = _opened(stream)
        hot.absorb_frames(continuity, decoder, CONN, 7, stream.frames(300), 2)
        frames = [stream.delta(delta_fp="-500000.00"), *(stream.delta() for _ in range(n - 1))]
        hot.absorb_frames(continuity, decoder, CONN, 307, frames, 3)
        assert continuity.counts["negative"] >= 1


def test_a_frame_not_understood_is_told_with_its_ordinal() -> None:
    stream = FrameStream(5)
    continuity, decoder = _opened(stream)
    hot.absorb_frames(continuity, decoder, CONN, 7, [stream.delta(), b"\x00torn\xff"], 2)
    (problem,) = [row for row in continuity.rows.controls if row.kind == "problem"]
    assert problem.detail["ordinal"] == 8
    assert "\x00" not in problem.detail["head"]
