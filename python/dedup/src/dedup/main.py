"""`python -m dedup.main`: the deduplicator as a service. Settings: KT_... (runtime.config).

Exit codes: 0 clean stop, or the tape is finished (KT_FINAL); 1 a part failed; 2 wrong settings.

Does not do: anything but wiring.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
from typing import Any, Final

import pyarrow as pa
import uvloop

from dedup.archive import Archive
from dedup.exchange_seen import told
from dedup.export import Exporter
from dedup.page.serving import Page
from dedup.pipeline import Pipeline
from dedup.processes import Processes
from dedup.retain import Retention
from dedup.status import complete_share, status
from kalshilake.store import open_store
from marketdata.errors import ConfigError, LakeError, StorageError
from marketdata.units import format_ts_us
from runtime import logs
from runtime.children import watch_parent
from runtime.clock import Clock
from runtime.config import DedupSettings, load
from runtime.health import Health, HealthServer
from runtime.memory import steady_heap
from runtime.metrics import Metrics
from runtime.supervise import Supervisor

NO_PROGRESS_S: Final = 120.0
STOP_DEADLINE_S: Final = 60.0
SWITCH_S: Final = 0.001
GC_OBJECTS: Final = 50_000


def tune() -> None:
    """Set the interpreter up for the merge.

    Rows on their way are hundreds of thousands of objects without a cycle among them: a collection
    looks at them all and finds nothing, so it comes seldom. The thread that decides hands over to
    the event loop soon, which only moves bytes between databases that would otherwise wait.

    Memory: an hour's export needs hundreds of megabytes once an hour. Measured over 25 million
    events: 407 MiB resident after the second export with Arrow's pool and malloc as they come.
    """
    steady_heap()
    pa.set_memory_pool(pa.system_memory_pool())
    gc.set_threshold(GC_OBJECTS, 20, 100)
    sys.setswitchinterval(SWITCH_S)


def report(pipeline: Pipeline, health: Health, clock: Clock, **more: Any) -> dict[str, Any]:
    """The body of /status."""
    standing, exporter = pipeline.publisher.standing, pipeline.exporter
    return status(
        pipeline.tally,
        pipeline.readers,
        clock.wall_ns(),
        state=health.state,
        windows=standing.windows,
        closed_to_us=standing.closed_to_us,
        closed_to=format_ts_us(standing.closed_to_us) if standing.closed_to_us else None,
        markets=len(standing.ids),
        waiting_for="; ".join(pipeline.waiting_for),
        complete_share=complete_share(exporter.coverage_us),
        invariants=pipeline.invariants.violations,
        exchange=told(pipeline.exchange.evidence),
        lake={
            "version": exporter.version,
            "sha256": exporter.version_sha256,
            "objects_written": exporter.objects_written,
            "hours_waiting": exporter.hours_waiting,
        },
        windows_closed_by=dict(sorted(standing.closings.items())),
        live=pipeline.live.told(),
        seen=pipeline.seen.told(),
        finished=pipeline.finished,
        shard=pipeline.together.told(),
        **more,
    )


async def serve_all(settings: DedupSettings) -> int:
    """Run all mergers of the tape on this host; the exit code."""
    supervisor = Supervisor("deduplicator")
    async with contextlib.AsyncExitStack() as stack:
        await Processes(settings, supervisor).open(stack)
        code = await supervisor.run()
    verdict = supervisor.verdict
    if isinstance(verdict, BaseExceptionGroup) and verdict.split(ConfigError)[0] is not None:
        return 2
    return code


async def serve(settings: DedupSettings) -> int:
    """Run the service until it is told to stop, or is finished; the exit code."""
    if settings.merge_shards > 1 and not settings.merge_shard:
        return await serve_all(settings)
    clock = Clock(settings.clock_offset_ms)
    metrics = Metrics()
    metrics.gauge("up").set(1)
    health = Health("deduplicator", "production", "merge")
    supervisor = Supervisor("deduplicator")
    supervisor.watch("pipeline", NO_PROGRESS_S)
    store = open_store(settings.lake_uri)
    exporter = Exporter(store, settings.gatherer_meta_dsns, settings.backup_prefix)
    archive = Archive(settings.production_dsn, store, health)
    retention = Retention(
        settings.production_dsn,
        archive,
        settings.production_retain_days,
        settings.production_retain,
        exporter.dropped_days.add,
    )
    told_ready = False

    def progressed() -> None:
        """Work was done, or what holds it up is known. Ready with the first that was done."""
        nonlocal told_ready
        supervisor.progress("pipeline")
        production = health.get("production")
        if not told_ready and production is not None and production.state == "ok":
            told_ready = True
            supervisor.ready("merging")

    pipeline = Pipeline(settings, exporter, health, metrics, progressed, archive)

    def told() -> dict[str, Any]:
        return report(
            pipeline,
            health,
            clock,
            verified_to_us=archive.verified_to_us,
            retention=retention.told(),
        )

    page = None if settings.merge_parent else Page.of(settings, health, told)
    server = HealthServer(
        health,
        metrics,
        bind=settings.bind,
        health_port=settings.health_port,
        metrics_port=settings.metrics_port,
        status=told,
        routes=page.routes() if page is not None else (),
    )
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(server)
        if page is not None:
            stack.push_async_callback(page.close)
        supervisor.add("pipeline", pipeline.run, stop=pipeline.stop, deadline_s=STOP_DEADLINE_S)
        if pipeline.together.share.first:
            supervisor.add("archive", archive.run)
            supervisor.add("retention", retention.run)
        if settings.merge_parent:
            supervisor.add("parent", lambda: watch_parent(supervisor, settings.merge_parent))
        supervisor.status(f"waiting for production; health on port {server.health_port}")
        code = await supervisor.run()
    if isinstance(supervisor.verdict, ConfigError):
        print(supervisor.verdict, file=sys.stderr)
        return 2
    return code


def main() -> int:
    """Entry point; the exit code."""
    try:
        settings = load(DedupSettings)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    logs.setup("deduplicator", settings.log_level, fields={"merger": settings.merge_shard})
    logs.get("main").info("starting", settings=settings.described())
    tune()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(serve(settings))
    except (StorageError, LakeError) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
