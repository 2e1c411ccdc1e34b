"""What the gatherer knew along a recording: streams, carriers, lost and old numbers."""

from __future__ import annotations

from exchange.recording import (
    HOLES_MAX,
    RECENT_MAX,
    ControlItem,
    Following,
    FrameItem,
    Renumbering,
    Seen,
)
from marketdata.continuity import Continuity
from marketdata.hot import absorb_frames
from marketdata.wire import Decoder
from tests import wire_frames as wire
from tests.frame_streams import FrameStream
from tests.recording_worlds import START_US, Script, opening


def follow(following: Following, script: Script) -> list[Seen]:
    seen = []
    for n, (conn, record) in enumerate(script):
        if isinstance(record, dict):
            following.continuity.control({**record, "conn": conn, "received_ns": n})
        else:
            seen.append(following.see(FrameItem(START_US, conn, n, n, record)))
    return seen


def test_each_frame_has_its_stream_and_what_was_lost_before_it() -> None:
    following = Following(Continuity(0))
    seen = follow(following, [*opening(1, "A"), (1, wire.delta(4, "A")), (1, wire.delta(3, "A")),
                              (1, wire.delta(5, "A")), (1, wire.ticker(3, "A"))])  # fmt: skip
    assert [(s.stream, s.channel, s.missing, s.is_old) for s in seen] == [
        ((1, 1), "orderbook_delta", 0, False),
        ((1, 1), "orderbook_delta", 0, False),
        ((1, 1), "orderbook_delta", 2, False),
        ((1, 1), "orderbook_delta", 0, True),
        ((1, 1), "orderbook_delta", 0, False),
        ((1, 3), "ticker", 0, False),
    ]
    assert following.of_connection(1) == [(1, 1), (1, 3)]
    assert following.has_channel("ticker")
    assert not following.has_channel("trade")


def test_a_ticker_with_a_number_shows_no_gap() -> None:
    """The channel has no numbers: nobody counts them."""
    numbered = wire.ticker(3, "A").replace(b'"sid":3', b'"sid":3,"seq":77')
    (seen,) = follow(Following(Continuity(0)), [(1, numbered)])
    assert (seen.missing, seen.seq) == (0, 77)


def test_a_frame_without_a_sid_belongs_to_its_connection() -> None:
    bare = wire.ticker(3, "A").replace(b',"sid":3', b"")
    (seen,) = follow(Following(Continuity(0)), [(1, bare)])
    assert (seen.stream, seen.channel) == ((1, 0), "ticker")


def test_the_book_is_known_from_a_snapshot_to_the_next_gap() -> None:
    following = Following(Continuity(0))
    known = []
    for record in [*opening(1, "A"), (1, wire.delta(2, "A")), (1, wire.delta(9, "A")),
                   (1, wire.snapshot(10, "A"))]:  # fmt: skip
        for seen in follow(following, [record]):
            if seen.market is not None and seen.stream is not None:
                following.carries(seen.market, seen.stream)
        chain = following.chain("A")
        known.append(None if chain is None else chain.yes[400_000])
    assert known == [None, None, 500, 600, None, 500]


def test_a_book_has_one_carrier_until_it_ends_and_then_another() -> None:
    """EXCH-17; who knows the book is preferred."""
    following = Following(Continuity(0))
    follow(
        following, [*opening(1, "A"), *opening(2, "A"), *opening(3, "A"), (2, wire.delta(7, "A"))]
    )
    assert following.carries("A", (1, 1))
    assert not following.carries("A", (2, 1))
    assert following.ended((1, 1)) == ["A"]
    assert following.carriers == {"A": (3, 1)}
    assert following.ended((3, 1)) == ["A"]
    assert following.carriers == {"A": (2, 1)}
    assert following.ended((2, 1)) == ["A"]
    assert following.carriers == {}
    assert following.chain("A") is None


def test_a_state_in_the_middle_gives_the_same_streams_and_carriers() -> None:
    whole, script = Following(Continuity(0)), [*opening(1, "AB"), *opening(2, "C")]
    for seen in follow(
        whole, [*script, (2, wire.subscribed(2, "trade")), (2, wire.ticker(3, "C"))]
    ):
        if seen.channel == "orderbook_delta" and seen.market and seen.stream:
            whole.carries(seen.market, seen.stream)
    again = Following(Continuity.restore(whole.continuity.export()))
    assert again.streams == whole.streams
    assert again.carriers == whole.carriers
    assert again.carried == whole.carried


def test_following_makes_the_rows_that_the_gatherer_made() -> None:
    """On usual and odd frames: books and verdicts are the gatherer's own."""
    stream = FrameStream(5, odd=4)
    frames = [*stream.opening(), *stream.frames(1_500)]
    following, true = Following(Continuity(0)), Continuity(0)
    follow(following, [(1, frame) for frame in frames])
    decoder = Decoder()
    for n, frame in enumerate(frames):
        absorb_frames(true, decoder, 1, n, [frame], n)
    ours, theirs = following.take(), true.take()
    assert bytes(ours.deltas) == bytes(theirs.deltas)
    assert bytes(ours.trades) == bytes(theirs.trades)
    assert bytes(ours.tickers) == bytes(theirs.tickers)
    assert ours.n_deltas() > 800
    assert following.take().n_rows() == 0


def test_numbers_are_remembered_up_to_their_limits() -> None:
    held, stream = Renumbering(), (1, 1)
    held.jumped(stream, 5, 50, 3)
    held.given(stream, 8, 53)
    assert [held.number_of(stream, seq) for seq in (4, 5, 7, 8, 9)] == [None, 50, 52, 53, None]
    assert held.number_of((2, 1), 8) is None
    for n in range(max(HOLES_MAX, RECENT_MAX)):
        held.jumped(stream, 1_000 + n, 1, 1)
        held.given(stream, 100_000 + n, 1)
    assert held.number_of(stream, 5) is None
    assert held.number_of(stream, 8) is None


def test_items_carry_their_time() -> None:
    assert ControlItem(7, {"k": "note"}).at_us == 7
