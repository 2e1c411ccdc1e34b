"""When a window may close: everything that belongs to it is there, or will not come.

Purpose: the waiting rules of the arbiter, each with a sentence for the status screen. They decide
only how long to wait, never the result: a row that comes later than any of them allowed is placed
if it can be, and kept as late if it cannot.

Invariants: INV-G1 exchange times are compared with exchange times, receive times with receive times
of the same gatherer; the one comparison across gatherers has `grace_ns` as margin for their clocks.
INV-G2 a gatherer's word that it ended is good for what it was asked about since: it may have begun
again, and only its database knows.

Does not do: cutting, merging.
"""

from __future__ import annotations

from typing import Final

from dedup.inflow import Inflow
from dedup.items import LOW
from dedup.output import ArbiterSettings

WATERMARK: Final = "watermark"
UNWAITED: Final = ("left out", "final", "run idle", "no snapshot")
"""Why a window closes although something of it might still come."""
SHOWN_MAX: Final = 8


class Patience:
    """Which gatherers are left out because nothing came of them while the others went on, and how
    far it is known that nothing of them is there."""

    def __init__(self, n_gatherers: int, settings: ArbiterSettings) -> None:
        self.settings = settings
        self.asked: list[dict[int, int] | None] = [None] * n_gatherers
        self.had_nothing_ns = [-1] * n_gatherers  # what others had shown by the latest such asking
        self.left_out: set[int] = set()

    def delivered(self, gatherer: int) -> None:
        """A batch came: the gatherer is waited for again."""
        self.asked[gatherer] = None
        self.left_out.discard(gatherer)

    def had_nothing(self, gatherer: int, shown_ns: int) -> None:
        """It was asked when somebody had shown the receive time `shown_ns`, and answered: nothing
        more is committed."""
        self.had_nothing_ns[gatherer] = max(self.had_nothing_ns[gatherer], shown_ns)

    def nothing_new(self, gatherer: int, inflows: list[Inflow]) -> None:
        """Asked and nothing came: left out once another is `patience_ns` past the first asking."""
        now = {i.gatherer: i.max_received_ns for i in inflows}
        first = self.asked[gatherer]
        if first is None:
            self.asked[gatherer] = now
            return
        for other, received_ns in now.items():
            moved = received_ns - first[other] >= self.settings.patience_ns
            ahead = received_ns - now[gatherer] >= self.settings.patience_ns
            if other != gatherer and first[other] and moved and ahead:
                self.left_out.add(gatherer)


def reasons_to_wait(inflows: list[Inflow], window: int, patience: Patience) -> list[str]:
    """Why `window` may not close yet; empty: it may."""
    settings, left_out = patience.settings, patience.left_out
    seen = [ns for i in inflows for w, ns in i.first_seen.items() if w > window]
    everyone_done = all((i.started and i.ended) or i.gatherer in left_out for i in inflows)
    if not seen and not everyone_done:
        return ["no gatherer has shown a later exchange time yet"]
    due_ns = min(seen, default=0) + settings.grace_ns
    end_us = (window + 1) * settings.window_us
    reasons = []
    for inflow in inflows:
        if inflow.gatherer in left_out:
            continue
        name = f"gatherer {inflow.gatherer + 1}"
        if not inflow.started:
            reasons.append(f"{name} has delivered nothing yet")
        elif inflow.ended and not _is_over(inflow, inflows, window, patience):
            reasons.append(f"{name} said it ended: it is asked whether it began again")
        elif not inflow.ended and inflow.max_received_ns < due_ns:
            late_ms = (due_ns - inflow.max_received_ns) // 1_000_000
            reasons.append(f"{name} is {late_ms} ms behind with its commits")
        else:
            reasons += _runs_to_wait_for(inflow, end_us, settings, name)
            reasons += _floats_to_wait_for(inflow, window, settings, name)
    return reasons


def _is_over(inflow: Inflow, inflows: list[Inflow], window: int, patience: Patience) -> bool:
    """Whether a gatherer that said it ended had nothing more when it was asked, and the others were
    past `window` by then, or as far as they are now."""
    seen = [ns for i in inflows for w, ns in i.first_seen.items() if w > window]
    shown_ns = max(i.max_received_ns for i in inflows)
    if seen:
        shown_ns = min(shown_ns, min(seen) + patience.settings.grace_ns)
    return patience.had_nothing_ns[inflow.gatherer] >= shown_ns


def _runs_to_wait_for(
    inflow: Inflow, end_us: int, settings: ArbiterSettings, name: str
) -> list[str]:
    reasons = []
    for run in inflow.runs.values():
        if run.ended or run.channel != "orderbook" or inflow.ended:
            continue
        if run.shown_us - settings.engine_skew_us >= end_us:
            continue
        if inflow.max_received_ns - run.last_received_ns >= settings.idle_hold_ns:
            continue
        reasons.append(f"{name}: run {run.run_id} has not shown a later exchange time")
    return reasons


def _floats_to_wait_for(
    inflow: Inflow, window: int, settings: ArbiterSettings, name: str
) -> list[str]:
    waiting = [
        key
        for key, (w, received_ns) in inflow.floats.items()
        if w <= window
        and not inflow.ended
        and inflow.max_received_ns - received_ns < settings.float_hold_ns
    ]
    runs = sorted({key & LOW for key in waiting})
    return [f"{name}: run {run_id} waits for a snapshot" for run_id in runs]


def closed_by(
    inflows: list[Inflow], window: int, patience: Patience, *, final: bool
) -> tuple[str, str]:
    """(by what a window that closes now does so, in words who was not waited for).

    "watermark": every gatherer has delivered beyond it, or said its end and had nothing more when
    it was asked later, and every run has shown a later exchange time; nothing of it can still come.
    Else the reasons, in a fixed order.
    """
    settings = patience.settings
    end_us = (window + 1) * settings.window_us
    found: dict[str, list[str]] = {}
    for inflow in inflows:
        if inflow.ended and (final or _is_over(inflow, inflows, window, patience)):
            continue
        name = f"gatherer {inflow.gatherer + 1}"
        if inflow.gatherer in patience.left_out:
            found.setdefault("left out", []).append(name)
            continue
        if final:
            found.setdefault("final", []).append(name)
        for run in inflow.runs.values():
            late = run.shown_us - settings.engine_skew_us < end_us
            if late and not run.ended and run.channel == "orderbook":
                found.setdefault("run idle", []).append(f"{name} run {run.run_id}")
        if any(w <= window for w, _ in inflow.floats.values()):
            found.setdefault("no snapshot", []).append(name)
    reasons = [reason for reason in UNWAITED if reason in found]
    detail = "; ".join(f"{reason}: {', '.join(found[reason][:SHOWN_MAX])}" for reason in reasons)
    return ", ".join(reasons) or WATERMARK, detail
