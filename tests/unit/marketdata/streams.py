"""Small streams for the tests of the merge: events from a few numbers, pieces cut out of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from marketdata.alignment import Events, events_of
from marketdata.book import level_constant
from marketdata.merge import Piece
from marketdata.rows import DELTA_ROW, DeltaFlag

MASK = 0xFFFFFFFFFFFFFFFF
H0 = 1_000_003
RESET = int(DeltaFlag.RESET)


def stream(changes: Sequence[tuple[int, int, int]], h0: int = H0) -> Events:
    """Events of (us, price, delta) on the yes side; price 0 is a reset."""
    rows = np.zeros(len(changes), DELTA_ROW)
    h = h0
    for i, (us, price, delta) in enumerate(changes):
        h = 0 if price == 0 else (h + level_constant(0, price) * delta) & MASK
        rows[i]["exchange_us"], rows[i]["received_ns"] = us, us * 1000
        rows[i]["price"], rows[i]["delta"], rows[i]["book_hash"] = price, delta, h
        rows[i]["flags"] = RESET if price == 0 else 0
    return events_of(rows, h0)


def plain(n: int, step_us: int = 100_000, h0: int = H0) -> Events:
    """n different events, one each `step_us`."""
    return stream([(step_us * (i + 1), 10_000 * (i % 90 + 1), 100 + i) for i in range(n)], h0)


def piece(events: Events, start: int, stop: int, gatherer: int = 0, **more: Any) -> Piece:
    """Events start..stop of a stream as gatherer `gatherer` saw them."""
    more.setdefault("connection", gatherer + 1)
    more.setdefault("run_id", 1)
    more.setdefault("seq_from", start + 1)
    more.setdefault("seq_to", stop)
    part = events.part(start, stop)
    if not more.get("anchored", True) and len(part):
        part = part.shifted(-int(part.h_before[0]))
    return Piece(gatherer=gatherer, events=part, **more)


def prices(events: Events) -> list[tuple[int, int, int]]:
    """(us, price, delta) of events, for comparisons."""
    return list(zip(events.us.tolist(), events.price.tolist(), events.delta.tolist(), strict=True))
