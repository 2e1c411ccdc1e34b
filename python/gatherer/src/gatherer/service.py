"""The parts of one gatherer, started in order and stopped in reverse.

Purpose: wire feed, spool, intake, sink and discovery, and tell their state on /health, /metrics and
to systemd.
Order of a clean stop: discovery, then every connection (close records, run ends), then the END
record and the sink's drain within its deadline, then the spool. What the sink could not commit by
then is in the spool and is committed by the next process.
Does not do: decisions (they are in the parts), restarting itself (the service manager does).
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import ssl
from email.utils import parsedate_to_datetime
from typing import Any, Final

from gatherer.auth import Signer, load_private_key
from gatherer.discovery import Discovery, History
from gatherer.feed import FeedConnection, FeedSettings
from gatherer.intake import LiveIntake, recover
from gatherer.packing import PackedBatch
from gatherer.plan import SHARED_CHANNELS, Assignment, Plan
from gatherer.progress import RecordingProgress
from gatherer.rest import RestClient
from gatherer.sink import Sink, SinkSettings
from marketdata.errors import StorageError
from marketdata.session import Report, ReportKind, SessionSettings
from runtime import logs
from runtime.clock import Clock
from runtime.config import GathererSettings
from runtime.health import Health, HealthServer
from runtime.metrics import Metrics
from runtime.spool import SpoolWriter
from runtime.spool_files import compress_sealed, retain
from runtime.supervise import Supervisor

NS_PER_S: Final = 1_000_000_000
ID_EPOCH_NS: Final = 1_767_225_600 * NS_PER_S  # 2026-01-01
IDS_PER_MINUTE: Final = 512
OBSERVE_S: Final = 0.5  # state of the parts -> health and metrics
HOUSEKEEPING_S: Final = 30.0  # compression and retention of sealed segments
STALL_S: Final = 30.0
HISTORY_STOP_S: Final = 2.0
DISK_FREE_MIN: Final = 256 * 1024 * 1024

log = logs.get("gatherer")


def id_base(created_ns: int) -> int:
    """Where a new spool's ids begin: minutes since 2026-01-01 times 512.

    So they lie beyond those of an older spool of the same database, unless that one gave out more
    than 512 ids for each minute between the two.
    """
    return max(1, (created_ns - ID_EPOCH_NS) // (60 * NS_PER_S) * IDS_PER_MINUTE)


class Gatherer:
    """Builds the parts from settings and gives them to the supervisor."""

    def __init__(self, settings: GathererSettings, clock: Clock, supervisor: Supervisor) -> None:
        self.settings = settings
        self._clock = clock
        self._supervisor = supervisor
        self._signer = Signer(settings.key_id, load_private_key(settings.private_key_file))
        self._ssl = _ssl_context(settings)
        self.metrics = Metrics()
        self.health = Health("gatherer", "exchange", "spool", "database", "metadata")
        self.feeds: dict[str, FeedConnection] = {}
        self._feed_tasks: asyncio.TaskGroup | None = None
        self._stopping = asyncio.Event()
        self._counted: dict[str, int] = {}
        self._recording = RecordingProgress()

    async def open(self, stack: contextlib.AsyncExitStack) -> None:
        """Recover the spool, make the parts, listen on the health ports."""
        settings, clock = self.settings, self._clock
        created_ns = clock.wall_ns()
        self.spool = SpoolWriter.open(
            settings.spool_dir,
            state=lambda: self._decoding.state(),  # noqa: PLW0108 - it is made below
            created_ns=created_ns,
            id_base=id_base(created_ns),
            segment_bytes=settings.segment_bytes,
            group_commit_ms=settings.group_commit_ms,
        )
        self._decoding = recover(self.spool)
        self.intake = LiveIntake(
            self.spool,
            self._decoding,
            queue_rows_max=settings.sink_queue_rows,
            wake_rows=settings.sink_flush_rows,
        )
        died = self.intake.bury(clock.wall_ns())
        log.info("spool open", end=self.spool.end, died=died, torn=self.spool.recovery.torn)
        self.sink = Sink(
            SinkSettings(
                settings.timescale_dsn,
                settings.sink_flush_ms,
                settings.sink_flush_rows,
                settings.heartbeat_ms,
            ),
            self.spool,
            self.intake,
            clock,
            on_commit=self._committed,
            on_retry=self._sink_retried,
        )
        rest = await stack.enter_async_context(
            RestClient(
                settings.rest_url,
                self._signer,
                rate_per_s=settings.rest_rate_per_s,
                wall_ns=clock.wall_ns,
                monotonic_ns=clock.monotonic_ns,
                on_answer=self._answered,
                ssl_context=self._ssl,
            )
        )
        self.history = History(settings.postgres_dsn, on_state=self._history_state)
        self.discovery = Discovery(
            rest,
            Plan(settings.gatherer_name, settings.markets_per_connection),
            self.history,
            clock,
            interval_s=settings.discovery_interval_s,
            on_assignment=self._assigned,
            series=settings.series,
        )
        server = HealthServer(
            self.health,
            self.metrics,
            bind=settings.bind,
            health_port=settings.health_port,
            metrics_port=settings.metrics_port,
            detail=self.numbers,
            status=self.numbers,
        )
        await stack.enter_async_context(server)
        self.health_port, self.metrics_port = server.health_port, server.metrics_port
        log.info("listening", health=server.health_port, metrics=server.metrics_port)
        self._add_parts()

    def _add_parts(self) -> None:
        deadline_s = float(self.settings.drain_deadline_s)
        add = self._supervisor.add
        add("spool", self._run_spool, stop=self._stop_spool, deadline_s=deadline_s)
        add("observe", self._observe)
        add("sink", self.sink.run, stop=self._drain, deadline_s=deadline_s)
        add("feeds", self._run_feeds, stop=self._stop_feeds)
        add("history", self.history.run, stop=self.history.stop, deadline_s=HISTORY_STOP_S)
        add("discovery", self.discovery.run)
        add("housekeeping", self._keep_house)
        self._supervisor.watch("event loop", STALL_S)
        self._supervisor.watch("spool", STALL_S)
        # Twice the session's patience with a silent feed, for it has given the feed up by then.
        self._supervisor.watch("frames", STALL_S + 2 * self.settings.data_timeout_s)

    # --- spool

    async def _run_spool(self) -> None:
        runner = asyncio.create_task(self.spool.run())
        stopped = asyncio.create_task(self._stopping.wait())
        await asyncio.wait({runner, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if runner.done():
            await runner
        runner.cancel()
        await asyncio.wait({runner})
        await self.spool.sync()
        await self.spool.close(clean=False)

    async def _stop_spool(self) -> None:
        self._stopping.set()

    async def _keep_house(self) -> None:
        """Compress what every consumer has passed; remove the oldest beyond the limit."""
        while True:
            await asyncio.sleep(HOUSEKEEPING_S)
            cursor, directory = self.sink.status.cursor, self.spool.directory
            try:
                await asyncio.to_thread(compress_sealed, directory, cursor)
                await asyncio.to_thread(retain, directory, cursor, self.settings.spool_retain_bytes)
            except (OSError, StorageError) as error:
                log.warning("spool housekeeping failed", error=str(error))

    # --- sink

    async def _drain(self) -> None:
        self.intake.end()
        self.sink.drain()

    def _committed(self, packed: PackedBatch, seconds: float) -> None:
        metrics = self.metrics
        metrics.counter("sink_batches_total").inc()
        metrics.histogram("commit_seconds").observe(seconds)
        for table, count in packed.counts.items():
            metrics.counter("sink_rows_total", table=table).inc(count)
        if packed.n_rows:
            late_ns = self._clock.wall_ns() - packed.min_received_ns
            metrics.histogram("receive_to_commit_seconds").observe(max(0, late_ns) / 1e9)

    def _sink_retried(self, told: str) -> None:
        self.metrics.counter("sink_retries_total", reason=told.split(":", maxsplit=1)[0][:60]).inc()
        log.warning("database", error=told)

    # --- feeds

    async def _run_feeds(self) -> None:
        self._add_feed("shared", SHARED_CHANNELS)
        async with asyncio.TaskGroup() as group:
            self._feed_tasks = group
            for feed in self.feeds.values():
                group.create_task(feed.run(), name=feed.name)
            group.create_task(self._supervisor.stopping.wait())

    async def _stop_feeds(self) -> None:
        for feed in self.feeds.values():
            await feed.stop()

    def _add_feed(self, name: str, channels: tuple[str, ...]) -> FeedConnection:
        settings = self.settings
        feed = FeedConnection(
            name,
            FeedSettings(
                settings.ws_url,
                settings.transport,
                settings.reconnect_base_ms,
                settings.reconnect_cap_ms,
                self._ssl,
            ),
            SessionSettings(
                channels=channels,
                data_timeout_ns=settings.data_timeout_s * NS_PER_S,
                audit_interval_ns=settings.audit_interval_s * NS_PER_S,
            ),
            self._signer,
            self.spool,
            self.intake,
            self._clock,
            on_event=self.discovery.on_event if channels else None,
            on_report=self._reported,
        )
        self.feeds[name] = feed
        if self._feed_tasks is not None:
            self._feed_tasks.create_task(feed.run(), name=name)
        return feed

    def _assigned(self, assignment: Assignment) -> None:
        if self._supervisor.stopping.is_set():
            return
        for number, tickers in assignment.books.items():
            name = f"books-{number}"
            feed = self.feeds.get(name) or self._add_feed(name, ())
            feed.want(tickers)
        for name, feed in self.feeds.items():
            if name != "shared" and int(name.split("-")[1]) not in assignment.books:
                feed.want(())
        self.metrics.gauge("markets_subscribed").set(
            sum(len(tickers) for tickers in assignment.books.values())
        )
        if assignment.unplaced:
            log.error("markets beyond all connections", markets=len(assignment.unplaced))

    def _reported(self, name: str, report: Report) -> None:
        del name
        if report.kind is ReportKind.GAP:
            self.metrics.counter("gaps_total", channel=report.channel).inc()

    def _answered(self, status: int, date: str) -> None:
        """A REST answer: counted, and its Date compared with our clock (whole seconds)."""
        self.metrics.counter("rest_requests_total", status=f"{status // 100}xx").inc()
        with contextlib.suppress(TypeError, ValueError):
            exchange_s = parsedate_to_datetime(date).timestamp()
            offset_s = self._clock.wall_ns() / NS_PER_S - exchange_s
            self.metrics.gauge("clock_offset_seconds").set(offset_s)

    def _history_state(self, told: str) -> None:
        self.health.set("metadata", "degraded" if told else "ok", told)

    # --- what it says about itself

    def numbers(self) -> dict[str, Any]:
        """Figures for /health and the screens that read it."""
        now_ns = self._clock.wall_ns()
        sink, intake, counts = self.sink.status, self.intake, self.intake.counts
        open_now = [f for f in self.feeds.values() if f.status.state == "open"]
        lag_ns = now_ns - sink.watermark_ns if sink.watermark_ns else 0
        return {
            "gatherer": self.settings.gatherer_name,
            "frames": intake.frames,
            "rows_committed": sink.rows,
            "batches": sink.batches,
            "gaps": counts["gap"],
            "duplicates": counts["duplicate"],
            "problems": sum(n for name, n in counts.items() if name.startswith("problem_")),
            "audits": counts["snapshot_agrees"],
            "audits_failed": counts["snapshot_differs"],
            "resets": counts["snapshot_reset"],
            "connections": len(open_now),
            "markets": self.discovery.markets,
            "books_subscribed": sum(len(f.session.subscribed) for f in open_now),
            "snapshots_waited_for": sum(f.session.n_waiting for f in open_now),
            "queue_rows": intake.held_rows,
            "spills": intake.spills,
            "spool_end": list(self.spool.end),
            "cursor": list(sink.cursor),
            "lag_ms": max(0, lag_ns) // 1_000_000,
            "sink": sink.state,
        }

    async def _observe(self) -> None:
        """Turn the parts' states into health, metrics and the watchdog's food."""
        self.metrics.gauge("up").set(1)
        ready = False
        while True:
            self._observe_exchange()
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
        supervisor, recording, spool = self._supervisor, self._recording, self.spool
        supervisor.progress("event loop")
        if recording.spool(spool.durable, spool.end, spool.problem):
            supervisor.progress("spool")
        n_open = sum(feed.status.state == "open" for feed in self.feeds.values())
        if recording.frames(self.intake.frames, n_open):
            supervisor.progress("frames")

    def _observe_exchange(self) -> None:
        feeds = list(self.feeds.values())
        refused = [f for f in feeds if f.status.state == "refused"]
        shut = [f for f in feeds if f.status.state != "open"]
        self.metrics.gauge("connections_open").set(len(feeds) - len(shut))
        if refused:
            reason = f"the exchange refuses the key: {refused[0].status.reason}"
            self.health.set("exchange", "failing", reason)
        elif shut:
            told = ", ".join(f"{f.name} {f.status.reason or 'is connecting'}" for f in shut[:3])
            started = any(f.status.connects for f in feeds)
            self.health.set("exchange", "degraded" if started else "starting", told)
        elif not self.discovery.rounds:
            self.health.set("exchange", "starting", f"markets: {self.discovery.reason}")
        else:
            reason = f"markets: {self.discovery.reason}" if self.discovery.reason else ""
            self.health.set("exchange", "degraded" if reason else "ok", reason)

    def _observe_spool(self) -> None:
        spool = self.spool
        free = shutil.disk_usage(spool.directory).free
        self.metrics.gauge("spool_disk_free_bytes").set(free)
        self.metrics.gauge("spool_buffered_bytes").set(spool.buffered_bytes)
        if spool.problem is not None:
            state = "reading is paused" if spool.full else "frames wait in memory"
            self.health.set("spool", "failing", f"disk: {spool.problem}; {state}")
        elif free < DISK_FREE_MIN:
            self.health.set("spool", "degraded", f"{free // 2**20} MiB free on the spool's disk")
        elif spool.recovery.foreign:
            names = ", ".join(spool.recovery.foreign[:3])
            self.health.set("spool", "degraded", f"foreign files kept in the spool: {names}")
        else:
            self.health.set("spool", "ok")

    def _observe_sink(self) -> None:
        status = self.sink.status
        self.metrics.gauge("sink_queue_rows").set(self.intake.held_rows)
        if status.state == "live":
            self.health.set("database", "ok")
        elif status.state == "catching_up":
            behind = f"catching up from {status.cursor} to {self.spool.end}"
            self.health.set("database", "degraded", behind)
        elif status.state == "database_down":
            told = f"rows wait in the spool: {status.reason}"
            self.health.set("database", "failing", told)

    def _observe_counts(self) -> None:
        """Counters that others keep as plain numbers."""
        counts = self.intake.counts
        spool = self.spool
        self._follow("duplicates_total", counts["duplicate"])
        self._follow("negative_levels_total", counts["negative"])
        self._follow("gap_frames_total", counts["missing"], channel="orderbook_delta")
        self._follow("spool_bytes_total", spool.bytes_appended)
        self._follow("spool_commits_total", spool.commits)
        self._follow("spool_errors_total", spool.commit_errors)
        self._follow("spool_torn_total", len(spool.recovery.torn))
        self.metrics.gauge("spool_lag_bytes").set(self.sink.lag_bytes())
        self._follow("partitions_default_total", self.sink.status.left_to_default)
        for name, count in list(counts.items()):
            if name.startswith("problem_"):
                self._follow("problems_total", count, reason=name.removeprefix("problem_"))
            elif name.startswith("snapshot_"):
                self._follow("snapshots_total", count, verdict=name.removeprefix("snapshot_"))
        for feed in self.feeds.values():
            channel = "shared" if feed.name == "shared" else "orderbook_delta"
            self._follow(f"frames_total/{feed.name}", feed.status.frames, channel=channel)
            self._follow(f"connects_total/{feed.name}", feed.status.connects)
            self._follow(f"frame_bytes_total/{feed.name}", feed.status.frame_bytes)
            requests = feed.status.snapshot_requests
            self._follow(f"snapshot_requests_total/{feed.name}", requests, reason="any")
            for status, count in feed.status.refusals.items():
                name = f"reconnect_tries_total/{feed.name}"
                self._follow(name, count, reason=str(status or "no_answer"))
            for reason, count in feed.status.closes.items():
                self._follow(f"closes_total/{feed.name}", count, reason=reason)

    def _follow(self, name: str, value: int, **labels: str) -> None:
        """Bring a counter up to a number that only grows."""
        key = f"{name} {labels}"
        before = self._counted.get(key, 0)
        if value > before:
            self._counted[key] = value
            self.metrics.counter(name.split("/", maxsplit=1)[0], **labels).inc(value - before)


def _ssl_context(settings: GathererSettings) -> ssl.SSLContext | None:
    """The system's trust store, and the given certificate besides; None where nothing is TLS.

    Made once: reading the trust store takes most of 0.2 s, too long for every reconnect.
    """
    if not any(url.startswith(("wss:", "https:")) for url in _addresses(settings)):
        return None
    context = ssl.create_default_context()
    if settings.ca_file is not None:
        context.load_verify_locations(cafile=str(settings.ca_file))
    return context


def _addresses(settings: GathererSettings) -> tuple[str, str]:
    return str(settings.ws_url), str(settings.rest_url)
