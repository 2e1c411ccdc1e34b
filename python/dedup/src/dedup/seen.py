"""What comes from the gatherers as it comes: how late, how fast, what broke off and why.

Purpose: the page's word on a gatherer within a second of reading it, long before a window closes.
Every batch passes here on its way to the merge; nothing is asked of any database for it.

What holds:
- It costs a few numbers a batch, decides nothing, and a fault of it never reaches the merge.
- `late_ms` is how old the newest row of a channel was when it was read; `quiet_ms` how long ago
  that row was received: silence is not lateness.
- An interruption is one gatherer's: whether the tape has a gap there, the merge decides.

Does not do: coverage (proof), verdicts (page.verdict).
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from dedup.status import Rate
from marketdata.rows import ControlKind, ControlRow, GathererBatch
from marketdata.runs import BOOK_CHANNEL
from runtime import logs

INTERRUPTIONS_KEPT: Final = 100
RUNS_KEPT: Final = 20_000
"""Runs of a gatherer that are open, at most; older ones are forgotten."""
PEAK_OVER_NS: Final = 60_000_000_000
REASON_CHARS_MAX: Final = 200
CHANNELS: Final = ("orderbook", "trade", "ticker")
NAMES: Final = {BOOK_CHANNEL: "orderbook"}
"""The exchange's name of a channel that has sequence numbers -> ours."""
BROKEN_OFF: Final = (ControlKind.RUN_END, ControlKind.CONN_CLOSE, ControlKind.PROBLEM)
WANTED: Final = ("unsubscribed", "closed_by_us")
"""Ends that the gatherer itself asked for: no interruption."""

log = logs.get("seen")


@dataclass(slots=True)
class _Channel:
    """One channel of one gatherer."""

    rate: Rate
    rows: int = 0
    received_ns: int = 0  # of its newest row
    late_ms: int | None = None


@dataclass(slots=True)
class _Peak:
    """The most that was open at once in the last one to two minutes."""

    last: int = 0
    now: int = 0
    began_ns: int = 0

    def see(self, count: int, at_ns: int) -> int:
        """`count` is open at this time; the most of late."""
        if at_ns - self.began_ns >= PEAK_OVER_NS:
            self.last, self.now, self.began_ns = self.now, count, at_ns
        self.now = max(self.now, count)
        return max(self.last, self.now)


@dataclass(slots=True)
class _Gatherer:
    channels: dict[str, _Channel]
    connections: set[int] = field(default_factory=set)
    runs: OrderedDict[int, tuple[str, int]] = field(default_factory=OrderedDict)
    peaks: dict[str, _Peak] = field(default_factory=dict)
    ended: bool = False

    def open_runs(self, channel: str) -> int:
        """Subscriptions of a channel that are in sequence, as far as they were seen to begin."""
        return sum(1 for of, _ in self.runs.values() if of == channel)


class Seen:
    """See the module's text. One for the life of a process; `began` when reading begins anew."""

    def __init__(self, gatherers: int, wall_ns: Callable[[], int] = time.time_ns) -> None:
        self._wall_ns = wall_ns
        self._count = gatherers
        self._of: list[_Gatherer] = []
        self._interruptions: deque[dict[str, Any]] = deque(maxlen=INTERRUPTIONS_KEPT)
        self.interrupted = 0  # since the process began
        self.began()

    def began(self) -> None:
        """Reading begins, perhaps again from an earlier place: what is open is learned anew."""
        self._of = [
            _Gatherer({name: _Channel(Rate()) for name in CHANNELS}) for _ in range(self._count)
        ]

    def heard(self, batch: GathererBatch) -> None:
        """A reader has a batch."""
        try:
            self._heard(batch)
        except Exception:  # boundary: the merge goes on without us
            log.exception("a batch was not looked at")

    def _heard(self, batch: GathererBatch) -> None:
        now_ns, of = self._wall_ns(), self._of[batch.gatherer]
        rows = {"orderbook": batch.deltas, "trade": batch.trades, "ticker": batch.tickers}
        for name, found in rows.items():
            if len(found):
                channel = of.channels[name]
                channel.rate.add(len(found))
                channel.rows += len(found)
                newest_ns = int(found["received_ns"].max())
                channel.received_ns = max(channel.received_ns, newest_ns)
                channel.late_ms = max(0, now_ns - newest_ns) // 1_000_000
        for control in batch.controls:
            self._control(batch.gatherer, of, control, now_ns)

    def _control(self, index: int, of: _Gatherer, control: ControlRow, now_ns: int) -> None:
        kind = control.kind
        channel = of.runs.get(control.run_id, ("", 0))[0]
        if kind == ControlKind.CONN_OPEN:
            of.ended = False
            of.connections.add(control.conn_id)
        elif kind == ControlKind.RUN_START:
            channel = NAMES.get(str(control.detail.get("channel", "")), "trade")
            of.connections.add(control.conn_id)
            of.runs[control.run_id] = channel, control.conn_id
            while len(of.runs) > RUNS_KEPT:
                of.runs.popitem(last=False)
        elif kind == ControlKind.RUN_END:
            of.runs.pop(control.run_id, None)
        elif kind == ControlKind.CONN_CLOSE:
            of.connections.discard(control.conn_id)
            for run_id in [r for r, (_, conn) in of.runs.items() if conn == control.conn_id]:
                del of.runs[run_id]
        elif kind == ControlKind.GATHERER_END:
            of.ended = True
            of.connections.clear()
            of.runs.clear()
        if kind in BROKEN_OFF and control.reason not in WANTED:
            self.interrupted += 1
            self._interruptions.appendleft(
                {
                    "gatherer": index,
                    "kind": kind,
                    "channel": channel,
                    "reason": control.reason[:REASON_CHARS_MAX],
                    "exchange_us": control.exchange_us,
                    "received_ms": control.received_ns // 1_000_000,
                    "read_ms": now_ns // 1_000_000,
                }
            )

    def told(self) -> dict[str, Any]:
        """For /status: plain values; times as Unix milliseconds."""
        now_ns = self._wall_ns()
        return {
            "gatherers": [self._told(index, of, now_ns) for index, of in enumerate(self._of)],
            "interrupted": self.interrupted,
            "interruptions": list(self._interruptions),
        }

    @staticmethod
    def _told(index: int, of: _Gatherer, now_ns: int) -> dict[str, Any]:
        channels: dict[str, Any] = {}
        for name, channel in of.channels.items():
            in_sequence = of.open_runs(name)
            peak = of.peaks.setdefault(name, _Peak()).see(in_sequence, now_ns)
            quiet_ms = (now_ns - channel.received_ns) // 1_000_000 if channel.received_ns else None
            channels[name] = {
                "rows": channel.rows,
                "rows_per_s": channel.rate.per_s,
                "late_ms": channel.late_ms,
                "quiet_ms": quiet_ms,
                "in_sequence": in_sequence,
                "in_sequence_of_late": peak,
            }
        return {
            "gatherer": index,
            "connections": len(of.connections),
            "ended": of.ended,
            "channels": channels,
        }
