"""What a gatherer says about itself: health, metrics, the figures of /health, the watchdog's food.

Purpose: look at the parts twice a second and turn their states into words and numbers.
Invariants: only looks; no part waits for it. READY to systemd once frames reach the disk.
Does not do: verdicts on completeness (marketdata.capture_state), the parts (service).
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final

from gatherer.discovery import Discovery
from gatherer.exchange_watch import ExchangeWatch
from gatherer.feed import FeedConnection
from gatherer.hot_retention import HotKeeper
from gatherer.intake import LiveIntake
from gatherer.keeping import Keeper
from gatherer.progress import RecordingProgress
from gatherer.sink import Sink
from marketdata.capture_state import (
    JOIN_GRACE_NS,
    ChannelState,
    FeedState,
    channel_states,
    verdict,
)
from marketdata.message_age import AgeTrack
from runtime.clock import Clock
from runtime.config import GathererSettings
from runtime.health import Health
from runtime.metrics import Followed, Metrics
from runtime.spool import SpoolWriter
from runtime.supervise import Supervisor

OBSERVE_S: Final = 0.5  # state of the parts -> health and metrics
DISK_FREE_MIN: Final = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Parts:
    """What is looked at. `feeds` grows; `unplaced`: markets that no connection has room for."""

    settings: GathererSettings
    spool: SpoolWriter
    intake: LiveIntake
    sink: Sink
    discovery: Discovery
    feeds: Mapping[str, FeedConnection]
    keeper: Keeper
    hot_keeper: HotKeeper
    watch: ExchangeWatch
    unplaced: Callable[[], int]


class Observer:
    """See the module's text."""

    def __init__(
        self,
        parts: Parts,
        health: Health,
        metrics: Metrics,
        clock: Clock,
        supervisor: Supervisor,
    ) -> None:
        self._parts = parts
        self.health = health
        self.metrics = metrics
        self._clock = clock
        self._supervisor = supervisor
        self._followed = Followed(metrics)
        self._recording = RecordingProgress()
        self._was_complete = False
        self._ages: dict[str, AgeTrack] = {}

    def channels(self) -> dict[str, ChannelState]:
        """What may be said of each channel now."""
        now_ns = self._clock.monotonic_ns()
        feeds = [_feed_state(feed, now_ns) for feed in self._parts.feeds.values()]
        asked = dict.fromkeys(name for feed in feeds for name in feed.channels)
        unplaced = self._parts.unplaced()
        return channel_states(feeds, tuple(asked), unplaced, self._clock.wall_ns())

    def _observe_capture(self) -> None:
        """Whether the capture is complete now, and for each channel why not."""
        states = self.channels()
        for name, channel in states.items():
            self.metrics.gauge("markets_to_cover", channel=name).set(channel.to_cover)
            self.metrics.gauge("markets_covered", channel=name).set(channel.covered)
            if channel.oldest_proof_ms is not None:
                proof = self.metrics.gauge("oldest_proof_seconds", channel=name)
                proof.set(channel.oldest_proof_ms / 1000)
        reasons = self._missing(states)
        self.metrics.gauge("capture_complete").set(not reasons)
        if not reasons:
            self._was_complete = True
            self.health.set("capture", "ok")
        elif self._was_complete:
            self.health.set("capture", "failing", "not complete now: " + " | ".join(reasons))
        else:
            self.health.set("capture", "starting", "not complete yet: " + " | ".join(reasons))

    def _missing(self, states: Mapping[str, ChannelState]) -> list[str]:
        """Why the capture is not complete; before the first round nobody knows what there is."""
        reasons = verdict(states, self._parts.spool.problem)
        if self._parts.discovery.rounds == 0:
            reasons.append("markets: the first round over the exchange's lists is under way")
        return reasons

    def numbers(self) -> dict[str, Any]:
        """Figures for /health and the screens that read it."""
        now_ns = self._clock.wall_ns()
        sink, intake, counts = (
            self._parts.sink.status,
            self._parts.intake,
            self._parts.intake.counts,
        )
        open_now = [f for f in self._parts.feeds.values() if f.status.state == "open"]
        channels = self.channels()
        lag_ns = now_ns - sink.watermark_ns if sink.watermark_ns else 0
        return {
            "gatherer": self._parts.settings.gatherer_name,
            "frames": intake.frames,
            "tasks": len(asyncio.all_tasks()),
            "rows_committed": sink.rows,
            "batches": sink.batches,
            "gaps": counts["gap"],
            "duplicates": counts["duplicate"],
            "problems": sum(n for name, n in counts.items() if name.startswith("problem_")),
            "audits": counts["snapshot_agrees"],
            "audits_failed": counts["snapshot_differs"],
            "resets": counts["snapshot_reset"],
            "connections": len(open_now),
            "markets": self._parts.discovery.markets,
            "books_subscribed": sum(len(f.session.subscribed) for f in open_now),
            "snapshots_waited_for": sum(f.session.n_waiting for f in open_now),
            "queue_rows": intake.held_rows,
            "spills": intake.spills,
            "spool_end": list(self._parts.spool.end),
            "cursor": list(sink.cursor),
            "retention_waits": self._parts.keeper.reason,
            "hot_retention": asdict(self._parts.hot_keeper.last),
            "lag_ms": max(0, lag_ns) // 1_000_000,
            "sink": sink.state,
            "complete": not self._missing(channels),
            "channels": {name: state.described() for name, state in channels.items()},
        }

    async def run(self) -> None:
        """Turn the parts' states into health, metrics and the watchdog's food."""
        self.metrics.gauge("up").set(1)
        ready = False
        while True:
            self._observe_exchange()
            self._observe_capture()
            self._observe_spool()
            self._observe_sink()
            self._observe_counts()
            self._observe_progress()
            if not ready and self._is_recording():
                ready = True
                self._supervisor.ready("recording")
            await asyncio.sleep(OBSERVE_S)

    def _is_recording(self) -> bool:
        """Whether frames reach the disk. The databases may be away: rows wait in the spool."""
        parts = [self.health.get("exchange"), self.health.get("spool")]
        return all(part is not None and part.state in ("ok", "degraded") for part in parts)

    def _observe_progress(self) -> None:
        """Feed the watchdog with what was really done."""
        supervisor, recording, spool = self._supervisor, self._recording, self._parts.spool
        supervisor.progress("event loop")
        if recording.spool(spool.durable, spool.end, spool.problem):
            supervisor.progress("spool")
        n_open = sum(feed.status.state == "open" for feed in self._parts.feeds.values())
        if recording.frames(self._parts.intake.frames, n_open):
            supervisor.progress("frames")

    def _observe_exchange(self) -> None:
        feeds = list(self._parts.feeds.values())
        refused = [f for f in feeds if f.status.state == "refused"]
        shut = [f for f in feeds if f.status.state != "open"]
        self.metrics.gauge("connections_open").set(len(feeds) - len(shut))
        slow = self._look_at_ages()
        if refused:
            reason = f"the exchange refuses the key: {refused[0].status.reason}"
            self.health.set("exchange", "failing", reason)
        elif shut:
            told = ", ".join(f"{f.name} {f.status.reason or 'is connecting'}" for f in shut[:3])
            started = any(f.status.connects for f in feeds)
            told = "; ".join(text for text in (self._parts.watch.reason, told) if text)
            self.health.set("exchange", "degraded" if started else "starting", told)
        elif not self._parts.discovery.rounds:
            self.health.set("exchange", "starting", f"markets: {self._parts.discovery.reason}")
        else:
            told = self._parts.discovery.reason
            reasons = [self._parts.watch.reason, f"markets: {told}" if told else "", *slow]
            reason = "; ".join(text for text in reasons if text)
            self.health.set("exchange", "degraded" if reason else "ok", reason)

    def _look_at_ages(self) -> list[str]:
        """Connections whose messages grow older: what error 25 announces itself with."""
        slow, oldest_ms = [], 0
        for feed in self._parts.feeds.values():
            status = feed.status
            track = self._ages.setdefault(feed.name, AgeTrack())
            track.look(
                status.conn_id,
                status.last_frame_ns,
                self._parts.intake.latest_us_of(status.conn_id),
            )
            age = track.age()
            if age is None:
                continue
            oldest_ms = max(oldest_ms, age.age_ms)
            if age.is_slow:
                grows = f"and grow {age.permille} ms older every second"
                slow.append(f"{feed.name}: messages are {age.age_ms} ms old {grows}")
        self.metrics.gauge("message_age_seconds").set(oldest_ms / 1000)
        return slow

    def _observe_spool(self) -> None:
        spool = self._parts.spool
        free = shutil.disk_usage(spool.directory).free
        self.metrics.gauge("spool_disk_free_bytes").set(free)
        self.metrics.gauge("spool_buffered_bytes").set(spool.buffered_bytes)
        if spool.problem is not None:
            state = "reading is paused" if spool.full else "frames wait in memory"
            self.health.set("spool", "failing", f"disk: {spool.problem}; {state}")
        elif free < DISK_FREE_MIN:
            held = self._parts.keeper.reason
            told = f"; nothing is removed: {held}" if held else ""
            self.health.set("spool", "degraded", f"{free // 2**20} MiB free on its disk{told}")
        elif spool.recovery.foreign:
            names = ", ".join(spool.recovery.foreign[:3])
            self.health.set("spool", "degraded", f"foreign files kept in the spool: {names}")
        else:
            self.health.set("spool", "ok")

    def _observe_sink(self) -> None:
        status = self._parts.sink.status
        self.metrics.gauge("sink_queue_rows").set(self._parts.intake.held_rows)
        if status.state == "live":
            self.health.set("database", "degraded" if status.refusal else "ok", status.refusal)
        elif status.state == "catching_up":
            behind = f"catching up from {status.cursor} to {self._parts.spool.end}"
            self.health.set("database", "degraded", behind)
        elif status.state == "database_down":
            told = f"rows wait in the spool: {status.reason}"
            self.health.set("database", "failing", told)

    def _observe_counts(self) -> None:
        """Counters that others keep as plain numbers."""
        counts, follow = self._parts.intake.counts, self._followed.follow
        spool = self._parts.spool
        follow("duplicates_total", counts["duplicate"])
        follow("negative_levels_total", counts["negative"])
        follow("gap_frames_total", counts["missing"], channel="orderbook_delta")
        follow("spool_bytes_total", spool.bytes_appended)
        follow("spool_commits_total", spool.commits)
        follow("spool_errors_total", spool.commit_errors)
        follow("spool_torn_total", len(spool.recovery.torn))
        self.metrics.gauge("spool_lag_bytes").set(self._parts.sink.lag_bytes())
        follow("partitions_default_total", self._parts.sink.status.left_to_default)
        for name, count in list(counts.items()):
            if name.startswith("problem_"):
                follow("problems_total", count, reason=name.removeprefix("problem_"))
            elif name.startswith("snapshot_"):
                follow("snapshots_total", count, verdict=name.removeprefix("snapshot_"))
        for feed in self._parts.feeds.values():
            of_feed = partial(self._followed.follow, of=feed.name)
            channel = (*feed.session.settings.channels, "orderbook_delta")[0]
            of_feed("frames_total", feed.status.frames, channel=channel)
            of_feed("connects_total", feed.status.connects)
            of_feed("frame_bytes_total", feed.status.frame_bytes)
            of_feed("snapshot_requests_total", feed.status.snapshot_requests, reason="any")
            for status, count in feed.status.refusals.items():
                of_feed("reconnect_tries_total", count, reason=str(status or "no_answer"))
            for reason, count in feed.status.closes.items():
                of_feed("closes_total", count, reason=reason)


def _feed_state(feed: FeedConnection, now_ns: int) -> FeedState:
    session, status = feed.session, feed.status
    channels = session.settings.channels
    return FeedState(
        feed.name,
        status.state == "open",
        status.reason,
        channels,
        frozenset(name for name in channels if session.sid_of(name) is not None),
        wanted=status.wanted,
        covered=session.n_covered,
        missing=session.n_missing(now_ns, JOIN_GRACE_NS),
        last_frame_ns=status.last_frame_ns,
    )
