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
import ssl
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from typing import Any, Final

from gatherer.auth import FileSigner
from gatherer.discovery import Discovery
from gatherer.exchange_watch import ExchangeWatch
from gatherer.feed import FeedConnection, FeedSettings
from gatherer.history import History
from gatherer.hot_database import highest_id
from gatherer.hot_retention import HotKeeper
from gatherer.intake import LiveIntake, recover
from gatherer.keeping import Keeper
from gatherer.observe import Observer, Parts
from gatherer.packing import PackedBatch
from gatherer.rebalance import BOOKS, Rebalancer
from gatherer.refusal import RefusedRow
from gatherer.rest import RestClient
from gatherer.sink import Sink, SinkSettings
from gatherer.witness import Witness
from marketdata import stagger
from marketdata.plan import RATE_S, Changes, Limits, Plan, own_connections
from marketdata.plan_rows import plan_rows
from marketdata.selection import Selection
from marketdata.session import Report, ReportKind, SessionSettings
from runtime import logs
from runtime.clock import Clock
from runtime.config import GathererSettings
from runtime.health import Health, HealthServer
from runtime.metrics import Metrics
from runtime.spool import SpoolWriter
from runtime.spool_files import read_meta
from runtime.supervise import Supervisor

NS_PER_S: Final = 1_000_000_000
ID_EPOCH_NS: Final = 1_767_225_600 * NS_PER_S  # 2026-01-01
IDS_PER_MINUTE: Final = 512
STALL_S: Final = 30.0
HISTORY_STOP_S: Final = 2.0

log = logs.get("gatherer")


def id_base(created_ns: int) -> int:
    """Where a new spool's ids begin: minutes since 2026-01-01 times 512.

    So they lie beyond those of an older spool of the same database, unless that one gave out more
    than 512 ids for each minute between the two; then the database says where they end
    (`highest_id`), if it answers when the spool is made.
    """
    return max(1, (created_ns - ID_EPOCH_NS) // (60 * NS_PER_S) * IDS_PER_MINUTE)


class Gatherer:
    """Builds the parts from settings and gives them to the supervisor."""

    def __init__(self, settings: GathererSettings, clock: Clock, supervisor: Supervisor) -> None:
        self.settings = settings
        self._clock = clock
        self._supervisor = supervisor
        self._signer = FileSigner(settings.key_id, settings.private_key_file)
        self._ssl = _ssl_context(settings)
        self.metrics = Metrics()
        self.health = Health("gatherer", "exchange", "capture", "spool", "database", "metadata")
        self.feeds: dict[str, FeedConnection] = {}
        self._feed_tasks: asyncio.TaskGroup | None = None
        self._stopping = asyncio.Event()
        limits = Limits(
            settings.markets_per_connection,
            settings.connections_max,
            settings.hot_frames_per_s * RATE_S,
        )
        self.plan = Plan(settings.gatherer_name, limits)
        self.selection = Selection(
            settings.combos,
            frozenset(settings.series),
            max(1, settings.feed_number),
            settings.feed_processes if settings.feed_number else 1,
        )

    async def open(self, stack: contextlib.AsyncExitStack) -> None:
        """Recover the spool, make the parts, listen on the health ports."""
        created_ns = self._clock.wall_ns()
        first_id = id_base(created_ns)
        if read_meta(self.settings.spool_dir) is None:
            first_id = max(first_id, await highest_id(self.settings.timescale_dsn) + 1)
        self._open_spool(created_ns, first_id)
        await self._open_discovery(stack)
        await self._listen(stack)
        self._add_parts()

    def _open_spool(self, created_ns: int, first_id: int) -> None:
        settings, clock = self.settings, self._clock
        self.spool = SpoolWriter.open(
            settings.spool_dir,
            state=lambda: self._decoding.state(),  # noqa: PLW0108 - it is made below
            created_ns=created_ns,
            id_base=first_id,
            segment_bytes=settings.segment_bytes,
            group_commit_ms=settings.group_commit_ms,
        )
        self.spool.on_commit = self.metrics.histogram("spool_sync_seconds").observe
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
            on_refused=self._rows_refused,
        )
        self.keeper = Keeper(settings, self.sink.status, clock)
        self.hot_keeper = HotKeeper(settings, self.spool.meta.created_ns, clock)

    async def _open_discovery(self, stack: contextlib.AsyncExitStack) -> None:
        settings, clock = self.settings, self._clock
        rest = await stack.enter_async_context(
            RestClient(
                settings.rest_url,
                self._signer,
                rate_per_s=settings.rest_rate_per_s,
                wall_ns=clock.wall_ns,
                monotonic_ns=clock.monotonic_ns,
                on_answer=self._answered,
                on_date=lambda *told: self.witness.clock.answered(*told),  # noqa: PLW0108 - made below
                ssl_context=self._ssl,
            )
        )
        self.watch = ExchangeWatch(rest, self.intake, clock)
        self.witness = Witness(
            settings, rest, self.spool, self.intake, self.sink.status, clock, self.health,
            self.metrics, self.feeds,
        )  # fmt: skip
        self.history = History(settings.postgres_dsn, on_state=self._history_state)
        self.discovery = Discovery(
            rest,
            self.plan,
            self.history,
            clock,
            interval_s=settings.discovery_interval_s,
            full_round_s=settings.full_round_s,
            on_changes=self._assigned,
            selection=self.selection,
        )
        self.rebalancer = Rebalancer(
            self.plan,
            self.intake,
            self.feeds,
            clock,
            interval_s=settings.rebalance_s,
            on_changes=self._assigned,
        )

    async def _listen(self, stack: contextlib.AsyncExitStack) -> None:
        settings = self.settings
        self.observer = Observer(
            Parts(
                settings,
                self.spool,
                self.intake,
                self.sink,
                self.discovery,
                self.feeds,
                self.keeper,
                self.hot_keeper,
                self.watch,
                lambda: self.plan.n_unplaced,
            ),
            self.health,
            self.metrics,
            self._clock,
            self._supervisor,
        )
        server = HealthServer(
            self.health,
            self.metrics,
            bind=settings.bind,
            health_port=settings.health_port,
            metrics_port=settings.metrics_port,
            detail=self._numbers,
            status=self._numbers,
            lines={"/plan": self._plan_rows},
        )
        await stack.enter_async_context(server)
        self.health_port, self.metrics_port = server.health_port, server.metrics_port
        log.info("listening", health=server.health_port, metrics=server.metrics_port)

    def _numbers(self) -> dict[str, Any]:
        parts = {"discovery": self.discovery.numbers(), "rebalance": self.rebalancer.numbers()}
        return {**self.observer.numbers(), **self.witness.numbers(), **parts}

    def _plan_rows(self) -> Iterator[dict[str, Any]]:
        offset_ns = self._clock.wall_ns() - self._clock.monotonic_ns()
        for row in plan_rows(self.plan, self.settings.gatherer_name, self._own_connections()):
            yield {**row, "wall_minus_monotonic_ns": offset_ns} if row["kind"] == "head" else row

    def _own_connections(self) -> dict[str, tuple[str, ...]]:
        selection = self.selection
        return own_connections(combos=selection.combos != "none", share=selection.share)

    def _add_parts(self) -> None:
        deadline_s = float(self.settings.drain_deadline_s)
        add = self._supervisor.add
        add("spool", self._run_spool, stop=self._stop_spool, deadline_s=deadline_s)
        add("observe", self.observer.run)
        add("sink", self.sink.run, stop=self._drain, deadline_s=deadline_s)
        add("feeds", self._run_feeds, stop=self._stop_feeds)
        add("history", self.history.run, stop=self.history.stop, deadline_s=HISTORY_STOP_S)
        add("discovery", self.discovery.run)
        add("rebalance", self.rebalancer.run)
        add("housekeeping", self.keeper.run)
        add("hot housekeeping", self.hot_keeper.run)
        add("exchange", self.watch.run)
        self.witness.add(self._supervisor)
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

    # --- sink

    async def _drain(self) -> None:
        self.intake.end()
        self.sink.drain()

    def _committed(self, packed: PackedBatch, seconds: float) -> None:
        self.witness.committed(packed)
        self.rebalancer.committed(packed)
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

    def _rows_refused(self, refused: list[RefusedRow]) -> None:
        log.warning("rows refused", rows=len(refused), table=refused[-1].table)
        tickers = self.intake.tickers_of({row.market_id for row in refused})
        for feed in self.feeds.values():
            feed.renew(tickers)

    # --- feeds

    async def _run_feeds(self) -> None:
        for name, channels in self._own_connections().items():
            self._add_feed(name, channels)
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
                settings.gatherer_name,
            ),
            SessionSettings(
                channels=channels,
                data_timeout_ns=settings.data_timeout_s * NS_PER_S,
                audit_interval_ns=settings.audit_interval_s * NS_PER_S,
                audit_phase_permille=stagger.audit_phase_permille(settings.gatherer_name),
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

    def _assigned(self, changes: Changes) -> None:
        if self._supervisor.stopping.is_set():
            return
        for number in sorted(changes.add.keys() | changes.drop.keys()):
            name = BOOKS.format(number=number)
            feed = self.feeds.get(name) or self._add_feed(name, ())
            feed.change(changes.add.get(number, ()), changes.drop.get(number, ()))
        self.metrics.gauge("markets_subscribed").set(self.plan.n_placed)

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
