"""The hot path and the burst against the long way: the same rows, effects, counts and state."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from marketdata import hot, wire
from marketdata.continuity import Continuity, Refused
from marketdata.errors import WireError
from tests.frame_streams import FrameStream

BASE = 100


def _long_way(continuity: Continuity, decoder: wire.Decoder, batches: list[list[bytes]]) -> None:
    """Frame by frame: an event or a refusal, then continuity."""
    ordinal = 0
    for at, batch in enumerate(batches):
        events: list[Any] = []
        for n, frame in enumerate(batch):
            try:
                events.append(decoder.decode(frame))
            except WireError as error:
                events.append(hot.refused_of(ordinal + n, frame, error))
        continuity.absorb(BASE, events, 1_000 + at)
        ordinal += len(batch)


def _outcome(continuity: Continuity) -> dict[str, Any]:
    rows = continuity.take()
    return {
        "deltas": bytes(rows.deltas), "trades": bytes(rows.trades), "tickers": bytes(rows.tickers),
        "snapshots": rows.snapshots, "controls": rows.controls, "markets": rows.markets,
        "effects": continuity.take_effects(), "counts": dict(continuity.counts),
        "fresh": continuity.take_fresh_markets(), "state": continuity.export(),
    }  # fmt: skip


@given(
    st.integers(0, 2**32),
    st.sampled_from([0, 300, 60, 15, 4]),
    st.lists(st.sampled_from([1, 3, 40, 47, 48, 49, 120, 400]), min_size=1, max_size=6),
)
@settings(deadline=None, max_examples=150)
def test_hot_path_and_bursts_are_the_long_way(seed: int, odd: int, sizes: list[int]) -> None:
    """INV-58, INV-59: how many frames came at once must not be on the tape, whatever they hold."""
    stream = FrameStream(seed, odd)
    batches = [stream.opening(), stream.frames(300)] + [stream.frames(size) for size in sizes]
    one, other = Continuity(BASE), Continuity(BASE)
    _long_way(one, wire.Decoder(), batches)
    decoder, ordinal = wire.Decoder(), 0
    for at, batch in enumerate(batches):
        hot.absorb_frames(other, decoder, BASE, ordinal, batch, 1_000 + at)
        ordinal += len(batch)
    assert _outcome(other) == _outcome(one)


def test_a_subscription_that_only_a_reply_named_gets_its_channel_from_its_first_frame() -> None:
    """A burst of its frames must not leave it without one."""
    stream = FrameStream(8)
    reply = b'{"type":"ok","id":5,"sid":4,"msg":{"market_tickers":[]}}'
    batches = [stream.opening(), [reply], [stream.ticker(sid=4) for _ in range(100)]]
    one, other, decoder = Continuity(BASE), Continuity(BASE), wire.Decoder()
    _long_way(one, wire.Decoder(), batches)
    ordinal = 0
    for at, batch in enumerate(batches):
        hot.absorb_frames(other, decoder, BASE, ordinal, batch, 1_000 + at)
        ordinal += len(batch)
    assert other.life(BASE).scopes[4].channel == "ticker"
    assert _outcome(other) == _outcome(one)


def test_a_path_that_counts_wrong_is_caught() -> None:
    """The control: one number more in one book, and the comparison above fails."""
    stream = FrameStream(7)
    batches = [stream.opening(), stream.frames(300)]
    one, other = Continuity(BASE), Continuity(BASE)
    _long_way(one, wire.Decoder(), batches)
    decoder = wire.Decoder()
    hot.absorb_frames(other, decoder, BASE, 0, batches[0], 1_000)
    scope = other.life(BASE).scopes[1]
    next(iter(scope.chains.values())).hash += 1
    hot.absorb_frames(other, decoder, BASE, len(batches[0]), batches[1], 1_001)
    assert _outcome(other) != _outcome(one)
    assert isinstance(hot.refused_of(0, b"x", WireError("w")), Refused)
