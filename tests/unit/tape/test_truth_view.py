"""What counts as received: the ground the proof stands on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import orjson
import pytest

from exchange.truth import TRUTH_EVENT, TRUTH_SEND
from marketdata import segment
from marketdata.errors import TapeError
from tape import truth_view
from tape.truth_view import Received, Truth

DELTA, SNAPSHOT, REPLY = 0, 1, 2


def truth(sends: list[tuple[int, int, int, int]], count: int) -> Truth:
    """`sends`: (seq, market, event, kind) of connection 0, sid 1."""
    rows = np.zeros(len(sends), dtype=TRUTH_SEND)
    for at, (seq, market, event, kind) in enumerate(sends):
        rows[at] = (0, 1, seq, market, event, kind, 0)
    events = np.zeros(count, dtype=TRUTH_EVENT)
    return Truth(["A", "B"], events, rows, {"aa": 0}, [])


def received(seqs: list[int], empty: set[int] | None = None) -> Received:
    return Received(seqs={(0, 1): seqs}, empty_snapshots={(0, 1): empty or set()})


# seq 1 snapshot A, 2 delta A (event 0), 3 ok, 4 delta B (event 1), 5 snapshot B, 6 delta B (2),
# 7 delta A (3)
SENDS = [(1, 0, -1, SNAPSHOT), (2, 0, 0, DELTA), (3, -1, -1, REPLY), (4, 1, 1, DELTA),
         (5, 1, -1, SNAPSHOT), (6, 1, 2, DELTA), (7, 0, 3, DELTA)]  # fmt: skip


def marks(seqs: list[int], empty: set[int] | None = None) -> list[bool]:
    return truth_view.received_in_runs(truth(SENDS, 4), received(seqs, empty)).tolist()


def test_everything_in_sequence_counts_even_before_its_snapshot() -> None:
    """A snapshot gives the book backwards as well."""
    assert marks([1, 2, 3, 4, 5, 6, 7]) == [True] * 4


def test_after_a_gap_only_markets_with_a_new_snapshot_count() -> None:
    """Frame 3 lost: A has no snapshot in the second run, B has."""
    assert marks([1, 2, 4, 5, 6, 7]) == [True, True, True, False]


def test_an_empty_first_snapshot_anchors_only_what_follows() -> None:
    """It may itself be the reset; nobody could tell."""
    assert marks([1, 2, 3, 4, 5, 6, 7], {5}) == [True, False, True, True]


def test_a_repeated_frame_opens_no_new_run() -> None:
    """A duplicate is not a gap and not a second event."""
    assert marks([1, 2, 2, 3, 4, 4, 5, 6, 7]) == [True] * 4


def test_a_seq_the_exchange_never_sent_is_refused() -> None:
    """Truth log and spool do not belong together: no number would mean anything."""
    with pytest.raises(TapeError, match="never sent"):
        marks([1, 2, 9])


def test_a_trade_line_number_is_not_an_event_index() -> None:
    """Sends of trades carry line numbers of another file."""
    sends = [(1, 0, -1, SNAPSHOT), (2, 0, 0, 3)]
    assert truth_view.received_in_runs(truth(sends, 1), received([1, 2])).tolist() == [False]


def test_spool_is_read_by_connection_and_survives_a_torn_tail(tmp_path: Path) -> None:
    """The raw bytes decide, up to the last whole record."""
    connect = orjson.dumps({"k": "connect", "conn": 5, "handshake": "aa", "received_ns": 1})
    frames = [
        b'{"type":"orderbook_snapshot","sid":1,"seq":1,"msg":{"market_ticker":"A"}}',
        b'{"type":"trade","sid":2,"seq":1,"msg":{"trade_id":"aa-bb"}}',
        b"not json",
    ]
    body = segment.encode_frames(5, 0, 100, [1, 2, 3], frames)
    whole = segment.encode_header(1) + segment.encode_record(segment.KIND_CONTROL, connect)
    whole += segment.encode_record(segment.KIND_FRAMES, body)
    by_rest = orjson.dumps({"k": "rest_trades", "trades": [{"trade_id": "cc-dd"}]})
    whole += segment.encode_record(segment.KIND_CONTROL, by_rest)
    (tmp_path / "00000001.seg").write_bytes(whole + segment.encode_record(1, body)[:20])
    got = truth_view.read_spool(tmp_path, truth(SENDS, 4))
    assert got.seqs == {(0, 1): [1], (0, 2): [1]}
    assert got.empty_snapshots == {(0, 1): {1}}
    assert (got.trade_ids, got.rest_trade_ids, got.frames) == ({"aabb", "ccdd"}, {"ccdd"}, 3)


def test_a_truth_log_without_its_files_is_named(tmp_path: Path) -> None:
    """A clear line instead of a traceback."""
    with pytest.raises(TapeError, match=r"markets\.json"):
        truth_view.load_truth(tmp_path)
