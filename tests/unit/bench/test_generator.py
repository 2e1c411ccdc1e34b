"""The load of the benchmark is what the exchange sends: a wrong load measures something else."""

from __future__ import annotations

from collections import Counter

import numpy as np

from gatherer.intake import Decoding
from marketdata.continuity import Continuity
from marketdata.rows import DELTA_ROW
from marketdata.wire import Decoder
from tests.bench.generator import MARKETS_EACH, client_texts, data_rows, make_frames, markets_of


def test_every_frame_decodes_and_the_mix_is_the_one_stated() -> None:
    """85 % changes, 10 % tickers, 5 % trades after one snapshot of each market; the same again."""
    frames = make_frames(4_000, 2)
    assert frames == make_frames(4_000, 2)
    events = [Decoder().decode(frame) for frame in frames]
    kinds = Counter(type(event).__name__ for event in events)
    assert len(events) == 4_000
    assert kinds["Snapshot"] == MARKETS_EACH
    assert data_rows(frames) == 4_000 - MARKETS_EACH
    rest = 4_000 - MARKETS_EACH
    for kind, share in (("Delta", 0.85), ("Ticker", 0.10), ("Trade", 0.05)):
        assert abs(kinds[kind] / rest - share) < 0.02
    assert {event.market for event in events} == set(markets_of(2))
    assert not set(markets_of(2)) & set(markets_of(3))


def test_the_load_is_one_whole_run_in_the_order_of_time() -> None:
    """No gap, no time that goes back, no level below zero: only the usual path is measured."""
    decoding = Decoding(Continuity(1))
    decoding.continuity.control({"k": "connect", "conn": 1, "received_ns": 1})
    replies = [
        b'{"id":1,"type":"subscribed","msg":{"channel":"%s","sid":%d}}' % (name, sid)
        for name, sid in ((b"orderbook_delta", 1), (b"trade", 2), (b"ticker", 3))
    ]
    decoding.absorb(1, 0, [*replies, *make_frames(3_000, 0)], 5)
    continuity = decoding.continuity
    assert set(continuity.counts) == {"conn_open", "run_start", "snapshot_anchor"}
    deltas = np.frombuffer(bytes(continuity.rows.deltas), DELTA_ROW)
    assert len(deltas) > 2_000
    assert not deltas["flags"].any()
    assert not continuity.take_effects()


def test_masked_client_frames_are_read_whole_across_splits() -> None:
    """A subscribe with all its markets is longer than 125 bytes and may come in pieces."""

    def masked(kind: int, body: bytes) -> bytes:
        mask = b"\x01\x02\x03\x04"
        size = (
            bytes([0x80 | len(body)]) if len(body) < 126 else b"\xfe" + len(body).to_bytes(2, "big")
        )
        return (
            bytes([0x80 | kind]) + size + mask + bytes(b ^ mask[n & 3] for n, b in enumerate(body))
        )

    short, long = b'{"cmd":"x"}', b"y" * 300
    stream = masked(1, short) + masked(9, b"ping") + masked(1, long)
    got: list[bytes] = []
    rest = b""
    for at in range(0, len(stream), 7):
        texts, rest, is_over = client_texts(rest + stream[at : at + 7])
        got += texts
        assert not is_over
    assert got == [short, long]
    assert rest == b""
    assert client_texts(masked(8, b""))[2]
