"""The truth log: the ground on which every proof stands."""

from __future__ import annotations

from pathlib import Path

import pytest

from exchange.truth import (
    FAULT_SENT,
    KIND_DELTA,
    SEND_DELTA,
    TRUTH_EVENT,
    TRUTH_SEND,
    Ledger,
    TruthWriter,
    pack_event,
    pack_send,
    read_truth,
)


def filled() -> Ledger:
    ledger = Ledger(markets=["A", "B"])
    ledger.events += pack_event(1, KIND_DELTA, 1, 350_000, -7, 1_700_000_000_000_001)
    ledger.sends += pack_send(3, 2, 9, 1, 0, SEND_DELTA, FAULT_SENT)
    ledger.line("conns", {"conn": 3, "handshake": "ab" * 8, "opened_ns": 5})
    return ledger


def test_packed_records_have_the_size_of_their_dtype() -> None:
    """A writer and a reader that disagree on the layout would give a plausible, false proof."""
    assert len(pack_event(0, 0, 0, 0, 0, 0)) == TRUTH_EVENT.itemsize
    assert len(pack_send(0, 0, 0, 0, 0, 0, 0)) == TRUTH_SEND.itemsize


def test_what_was_written_is_read_back_equal(tmp_path: Path) -> None:
    """Every field, through the files."""
    writer = TruthWriter(tmp_path)
    writer.close(filled())
    truth = read_truth(tmp_path)
    assert truth.markets == ["A", "B"]
    assert truth.events[0].tolist() == (1, KIND_DELTA, 1, 350_000, -7, 1_700_000_000_000_001)
    assert truth.sends[0].tolist() == (3, 2, 9, 1, 0, SEND_DELTA, FAULT_SENT)
    assert truth.conn_of("ab" * 8) == 3
    assert truth.conn_of("cd" * 8) is None


def test_drain_empties_the_ledger_and_appends(tmp_path: Path) -> None:
    """The venue goes on filling the same ledger; nothing may be written twice."""
    writer, ledger = TruthWriter(tmp_path), filled()
    assert ledger.size_bytes() > 0
    writer.drain(ledger)
    assert ledger.size_bytes() == 0
    ledger.events += pack_event(0, KIND_DELTA, 0, 1, 1, 2)
    ledger.markets.append("C")
    writer.close(ledger)
    truth = read_truth(tmp_path)
    assert len(truth.events) == 2
    assert truth.markets == ["A", "B", "C"]


@pytest.mark.parametrize("cut", [1, 13, 25])
def test_a_record_cut_short_is_left_out(tmp_path: Path, cut: int) -> None:
    """The exchange itself may be killed: its log is then a prefix, not an error."""
    writer, ledger = TruthWriter(tmp_path), filled()
    ledger.events += pack_event(0, KIND_DELTA, 0, 1, 1, 2)
    writer.close(ledger)
    events, conns = tmp_path / "events.bin", tmp_path / "conns.jsonl"
    events.write_bytes(events.read_bytes()[:-cut])
    conns.write_bytes(conns.read_bytes() + b'{"conn": 4, "hand')
    truth = read_truth(tmp_path)
    assert len(truth.events) == 1
    assert [row["conn"] for row in truth.conns] == [3]
