"""A first snapshot that arrives before its run has shown any exchange time."""

from __future__ import annotations

import numpy as np
import pytest

from dedup.arbitrate import Arbiter
from dedup.output import ArbiterSettings, WindowOutput
from marketdata.book import Book
from marketdata.rows import (
    DELTA_ROW,
    ControlKind,
    ControlRow,
    GathererBatch,
    SnapshotRow,
    SnapshotVerdict,
)

START_US = 1_780_000_000_000_000
START_NS = START_US * 1000
PRICE = 400_000


def batches(gatherer: int, *, split: bool) -> list[GathererBatch]:
    """Subscribed, one snapshot, then a change every four seconds: five windows in one batch."""
    book = Book([(PRICE, 1000)])
    first = SnapshotRow(0, START_NS, book.hash, 0, 1, 1, 1, 1, SnapshotVerdict.ANCHOR, 0,
                        book.to_bytes())  # fmt: skip
    rows = np.zeros(6, DELTA_ROW)
    for i in range(len(rows)):
        book.apply(0, PRICE, 7)
        rows[i] = (START_US + i * 4_000_000, START_NS + i + 1, 7, book.hash, 1, 1, i + 2, 1, PRICE,
                   0, 0)  # fmt: skip
    control = ControlRow(1, 0, START_NS - 1, ControlKind.RUN_START, 1, 1, 1, 1,
                         detail={"channel": "orderbook_delta", "start": "subscribed"})  # fmt: skip
    opening = GathererBatch(gatherer, 1, 1, START_NS, np.zeros(0, DELTA_ROW), [first],
                            controls=[control], markets={1: "MKT"})  # fmt: skip
    following = GathererBatch(gatherer, 2, 2, START_NS + 100, rows)
    if split:
        return [opening, following]
    opening.deltas, opening.last_batch_id, opening.max_received_ns = rows, 2, START_NS + 100
    return [opening]


def play(*given: list[GathererBatch]) -> list[WindowOutput]:
    arbiter = Arbiter(len(given), ArbiterSettings())
    for mine in given:
        for batch in mine:
            arbiter.absorb(batch)
    outputs = []
    while (output := arbiter.step(final=True)) is not None:
        outputs.append(output)
    return outputs


@pytest.mark.parametrize("split", [[False, False], [True, False], [False, True], [True, True]])
def test_its_keyframe_stands_before_the_events_however_the_batches_were_cut(
    split: list[bool],
) -> None:
    """Placed after them it would make every book that starts from it wrong."""
    outputs = play(*(batches(g, split=s) for g, s in enumerate(split)))
    assert sum(len(o.deltas) for o in outputs) == 6
    keyframes = [s for o in outputs for s in o.snapshots]
    assert {(s.epoch, s.market_seq) for s in keyframes} == {(1, 0)}
    assert {s.book_hash for s in keyframes} == {Book([(PRICE, 1000)]).hash}
