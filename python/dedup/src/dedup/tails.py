"""Small pure pieces of a market's window: tails, witnesses, first sequence numbers.

Purpose: the events on the tape that a run behind has not shown yet, as columns of the state, and
the few computations that need no state at all.

Does not do: any decision.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from dedup.runs import Run, Tail
from marketdata.alignment import Events, content_keys
from marketdata.merge import Segment
from marketdata.rows import DeltaRows, SnapshotRow

TAIL_EVENTS_MAX: Final = 4096  # events kept for a run behind; past it, it is placed anew


def gatherer_pairs(gatherers: set[int]) -> list[str]:
    """Names of all pairs, ascending: "0-1", "0-2", ..."""
    ordered = sorted(gatherers)
    return [f"{a}-{b}" for i, a in enumerate(ordered) for b in ordered[i + 1 :]]


def first_seq(
    run: Run, rows: DeltaRows, snapshots: list[SnapshotRow], *, carried: bool
) -> tuple[int, int]:
    """(seq from which the run carries the market, seq after which its claim may start).

    `carried`: the market was subscribed before the gap already, so both are the run's own start
    (rule 2). A market that was added later starts with its own first frame.
    """
    if carried:
        return run.first_seq, run.first_seq - 1
    if snapshots and (rows.size == 0 or snapshots[0].seq <= int(rows["seq"][0])):
        return snapshots[0].seq, snapshots[0].seq
    return int(rows["seq"][0]), int(rows["seq"][0]) - 1


def first_known(segment: Segment, starts: dict[int, int]) -> int:
    """Earliest time from which a run that begins the segment proves everything; -1 unknown."""
    known = [
        starts[id(p.piece)]
        for p in segment.parts
        if p.start == 0 and p.first == 0 and starts.get(id(p.piece), -1) >= 0
    ]
    return min(known, default=-1)


def witnesses(segment: Segment, n: int) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int64]]:
    """(source masks, smallest received_ns) of the segment's last n events."""
    masks = np.zeros(n, np.int16)
    received = np.full(n, np.iinfo(np.int64).max, np.int64)
    for part in segment.parts:
        start, first = part.start - segment.emitted, part.first
        if start < 0:
            start, first = 0, part.first - start
        stop = part.end - segment.emitted
        if stop <= start:
            continue
        masks[start:stop] |= 1 << part.piece.gatherer
        got = part.piece.events.received_ns[first : first + stop - start]
        np.minimum(received[start:stop], got, out=received[start:stop])
    return masks, received


def make_tail(events: Events, masks: list[int]) -> Tail:
    """Columns of events as plain numbers, for the state."""
    return Tail(
        events.us.tolist(), events.received_ns.tolist(), events.delta.tolist(),
        events.price.tolist(), events.side.tolist(), events.flags.tolist(),
        events.h_before.tolist(), events.h_after.tolist(), masks,
    )  # fmt: skip


def tail_events(tail: Tail) -> tuple[Events, list[int]]:
    """The events of `make_tail`, and their witnesses."""
    price, side = np.array(tail.price, np.int32), np.array(tail.side, np.int16)
    delta, flags = np.array(tail.delta, np.int64), np.array(tail.flags, np.int16)
    events = Events(
        np.array(tail.us, np.int64), np.array(tail.received_ns, np.int64), delta, price, side,
        flags, np.array(tail.h_before, np.uint64), np.array(tail.h_after, np.uint64),
        content_keys(price, side, delta, flags),
    )  # fmt: skip
    return events, list(tail.witnesses)
