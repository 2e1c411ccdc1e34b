"""The deduplicator at work: read, merge, publish, export, in one loop.

What holds:
- Publications and exports follow one after the other, in the order of windows; reading and deciding
  run beside them (flow).
- Windows that may close are published together up to PUBLISH_ROWS, never across a moment of
  export, so what an export sees does not depend on how far reading got.
- An export has production to itself: a crash in it begins again from the same rows. Reading and the
  live path go on beside it (flow.reading_on).
- A lake that refuses does not stop the merge: exports are tried again and /health says so.
- Whoever finds that production moved on without us starts again from what is there.
- Of several mergers of a tape only the first exports (shards); the others wait for it.

Does not do: decisions of the merge (arbitrate), what runs beside what (flow), SQL (publish, pull),
objects (export).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final, TypeVar

import asyncpg

from dedup.arbitrate import Arbiter
from dedup.archive import Archive
from dedup.closings import by_reason
from dedup.exchange_seen import ExchangeWatch
from dedup.export import Exporter, export_hour_of
from dedup.flow import Publishing, Reads, close_windows, reading_on, take
from dedup.invariants import Invariants
from dedup.live_path import LivePath
from dedup.measured import Measured
from dedup.output import ArbiterSettings, WindowOutput
from dedup.publication import Publication
from dedup.publish import Publisher, Standing, broken_once_failed
from dedup.readers import GathererReader
from dedup.seen import Seen
from dedup.shards import Level, StopAsked, Together
from dedup.state import known_runs, life_of
from dedup.status import Tally
from dedup.suspects import ASIDE, SUSPECT, read_counts
from marketdata.errors import LakeError, StorageError
from marketdata.rows import GathererBatch
from marketdata.share import Share
from runtime.config import DedupSettings
from runtime.health import Health
from runtime.logs import get
from runtime.metrics import Metrics
from runtime.postgres import TRANSIENT

EXPORT_RETRY_S: Final = 5.0
RESTART_WAIT_S: Final = 1.0
BEGIN_POLL_S: Final = 5.0  # while production holds no tape and the lake does

# A database went away under us: begin again from what production holds.
_BROKEN: Final[tuple[type[BaseException], ...]] = (*TRANSIENT, StorageError)
_NO_EXPORT: Final[tuple[type[BaseException], ...]] = (*_BROKEN, LakeError)

_MARKETS: Final = "SELECT market_id, ticker FROM market"

log = get("pipeline")

T = TypeVar("T")


def arbiter_settings(settings: DedupSettings) -> ArbiterSettings:
    """The arbiter's settings from the service's."""
    return ArbiterSettings(
        window_us=settings.window_ms * 1_000,
        grace_ns=settings.grace_ms * 1_000_000,
        idle_hold_ns=settings.idle_hold_ms * 1_000_000,
        patience_ns=settings.patience_s * 1_000_000_000,
        merge=settings.merge,
        share=share_of(settings),
    )


def share_of(settings: DedupSettings) -> Share:
    """Which of the tape's mergers this process is."""
    return Share(max(1, settings.merge_shard), settings.merge_shards)


def deciding(settings: DedupSettings) -> dict[str, Any]:
    """The settings that decide the result: a tape keeps those it began with."""
    chosen = arbiter_settings(settings)
    return {
        "gatherers": len(settings.gatherer_dsns),
        "window_us": chosen.window_us,
        "engine_skew_us": chosen.engine_skew_us,
        "match_window_us": chosen.match_window_us,
        "float_hold_ns": chosen.float_hold_ns,
        "merge": chosen.merge,
        **({} if chosen.share.alone else {"merge_shards": chosen.share.of}),
    }


class Pipeline:
    """One deduplicator. `progress` is called whenever real work was done or none was due."""

    def __init__(
        self,
        settings: DedupSettings,
        exporter: Exporter,
        health: Health,
        metrics: Metrics,
        progress: Callable[[], None],
        archive: Archive | None = None,
    ) -> None:
        self._settings = settings
        self._archive = archive
        self._health = health
        self._metrics = metrics
        self._progress = progress
        self._stopping = asyncio.Event()
        self._export_tried_s = 0.0
        self.exporter = exporter
        share = share_of(settings)
        self.publisher = Publisher(
            settings.production_dsn, deciding(settings), self._held_up, share
        )
        self.together = Together(share, settings.patience_s, self._stopping, self._waits)
        self.live = LivePath(
            settings.production_dsn, len(settings.gatherer_dsns), health, metrics,
            on=settings.live and settings.merge == "runs", shard=share.number, owns=share.owns,
        )  # fmt: skip
        self.seen = Seen(len(settings.gatherer_dsns))
        self.readers: list[GathererReader] = []
        self._reads: Reads = {}
        self.publishing = Publishing(self._publish, 0, self._plan)
        exporter.progress = progress
        self.invariants = Invariants()
        self.tally = Tally()
        self.exchange = ExchangeWatch(metrics)
        self.measured = Measured(metrics)
        self.measured.watch(
            lambda: self.readers,
            len(settings.gatherer_dsns),
            lambda: self.publisher.standing.closed_to_us,
            lambda: len(self.waiting_for),
            exporter.hours_due if share.first else None,
        )
        self.waiting_for: list[str] = []
        self.gone: dict[int, list[str]] = {}  # gatherer -> what it no longer had
        self.finished = False

    def _held_up(self, why: str) -> None:
        """What holds the merge up; "" when nothing does. Known trouble that is tried again is no
        standstill: the watchdog must not kill us for a database that is away."""
        before = self._health.get("production")
        if why and (before is None or before.reason != why):
            log.warning("held up", reason=why)
        self._health.set("production", "failing" if why else "ok", why)
        if why:
            self._progress()

    def _waits(self, why: str) -> None:
        """Other mergers of the tape are waited for."""
        self.waiting_for = [why] if why else []
        if not self.together.share.alone:
            self._health.set("mergers", "degraded" if why else "ok", why)
        self._progress()

    async def stop(self) -> None:
        """Ask the loop to end after the step it is in."""
        self._stopping.set()

    async def run(self) -> None:
        """Work until stopped, or until the tape is finished in final mode."""
        try:
            while not self._stopping.is_set() and not self.finished:
                try:
                    await self._live()
                except StopAsked:
                    break
                except _BROKEN as error:
                    log.warning("starting again from production", reason=str(error))
                    self._held_up(str(error))
                    await self.publisher.close()
                    await asyncio.sleep(RESTART_WAIT_S)
        finally:
            await self._close_readers()
            await self.live.close()
            await self.publisher.close()

    async def _unless_stopped(self, work: Coroutine[Any, Any, T]) -> T | None:
        """The outcome of something that may wait for ever; None if we are to stop before it is
        there."""
        waiting = asyncio.ensure_future(work)
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({waiting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            return waiting.result() if waiting.done() else None
        finally:
            for each in (waiting, stopping):
                each.cancel()
            await asyncio.gather(waiting, stopping, return_exceptions=True)

    async def _close_readers(self) -> None:
        readers, self.readers = self.readers, []
        for reader in readers:
            await reader.close()

    async def _live(self) -> None:
        """From what production holds to the end, or to the first sign that it moved without us."""
        opened = await self._unless_stopped(self._open())
        if opened is None:
            return
        standing = opened
        conn = await self.publisher.connection()
        await self.together.begin(conn)
        if self.together.share.first:
            await self.exporter.open(conn, patient=True)
        self.invariants = Invariants()
        self.tally.began(standing.counts)
        self.exchange.began(standing.named_states)
        arbiter = self._arbiter(standing)
        self.publishing = Publishing(self._publish, standing.closed_to_us, self._plan)
        await self._close_readers()
        await self.live.begin(standing)
        self.seen.began()
        self.readers = [self._reader(g, standing) for g in range(len(self._settings.gatherer_dsns))]
        self._reads = {}
        self.measured.began()
        try:
            await self._export(arbiter, final=False)
            while not self._stopping.is_set() and not self.finished:
                await self._take(arbiter)
                over = self._settings.final and all(r.state == "ended" for r in self.readers)
                self._leave_out_silent(arbiter)
                await self._close_windows(arbiter, final=over)
                await (self.publishing.settled() if over else self.publishing.heard())
                await self._export(arbiter, final=over)
                self._report()
                self.finished = over and self.together.done and not self._hours_waiting()
                self._progress()
        finally:
            await self.publishing.abandon()
            for task in self._reads:
                task.cancel()
            await asyncio.gather(*self._reads, return_exceptions=True)

    async def _open(self) -> Standing:
        """Where the tape stands. None is begun beside the one that the lake has."""
        while why := await self.exporter.another_tape(await self.publisher.connection()):
            self._held_up(why)
            await asyncio.sleep(BEGIN_POLL_S)
        self._held_up("")
        return await self.publisher.open()

    def _arbiter(self, standing: Standing) -> Arbiter:
        chosen = arbiter_settings(self._settings)
        count = len(self._settings.gatherer_dsns)
        if standing.fresh:
            return Arbiter(count, chosen)
        return Arbiter.load(
            count, chosen, standing.tails, standing.named_states, standing.positions
        )

    def _reader(self, gatherer: int, standing: Standing) -> GathererReader:
        resume_at = None
        for position in standing.positions:
            identifier = standing.identifiers.get(gatherer, 0)
            if position.gatherer == gatherer and identifier:
                resume_at = (identifier, position.reread_from_batch)
        return GathererReader(
            gatherer,
            self._settings.gatherer_dsns[gatherer],
            poll_s=self._settings.poll_ms / 1000,
            resume_at=resume_at,
            runs=known_runs(standing.named_states, gatherer),
            life=life_of(standing.named_states, gatherer),
            heard=self._heard,
        )

    def _heard(self, batch: GathererBatch) -> None:
        """A reader has a batch, the merge not yet."""
        self.live.heard(batch)
        self.seen.heard(batch)

    def _leave_out_silent(self, arbiter: Arbiter) -> None:
        """Wait no longer for what was read before a restart where it does not come."""
        patience_s = float(self._settings.patience_s)
        for g in arbiter.reading_again:
            if self.readers[g].exhausted:
                arbiter.inflows[g].all_here()  # a replaced database may hold fewer
            elif self.readers[g].silent_s() >= patience_s:
                arbiter.leave_out(g)

    async def _take(self, arbiter: Arbiter) -> None:
        """Wait for at least one reader, give the arbiter everything that has arrived."""
        patience_s = float(self._settings.patience_s)
        await take(arbiter, self.readers, self._reads, patience_s, self.tally.read, self._stopping)

    async def _close_windows(self, arbiter: Arbiter, *, final: bool) -> None:
        """Publish every window that may close; export whenever that passes a moment of export."""
        await close_windows(
            arbiter,
            self.publishing,
            final=final,
            due=lambda before, after: export_hour_of(after) > export_hour_of(before),
            export=lambda: self._export(arbiter, final=False),
        )
        self.waiting_for = list(arbiter.waiting_for)

    def _plan(self, outputs: list[WindowOutput]) -> Publication:
        """What comes next, while what comes before it is on its way."""
        made = self.publisher.plan(outputs)
        self._check(made)
        return made

    async def _publish(self, made: Publication) -> None:
        began_s = time.monotonic()
        standing = self.publisher.standing
        identifiers = {
            r.index: r.position.system_identifier or standing.identifiers.get(r.index, 0)
            for r in self.readers
        }
        await self.publisher.commit(made, identifiers, self.live.closed(made))
        self.live.committed()
        if self.together.share.first:
            self.exporter.published(made)
        self.tally.published(made)
        self.exchange.published(made.named_states, made.counts)
        self.measured.published(made)
        await self._tell_stored(made)
        self._metrics.counter("windows_total").inc(made.windows)
        for reason, n in by_reason(made.closings).items():
            self._metrics.counter("windows_closed_total", reason=reason).inc(n)
        self._metrics.counter("merged_rows_total", table="orderbook_delta").inc(len(made.deltas))
        self._metrics.counter("merged_rows_total", table="trade").inc(len(made.trades))
        self._metrics.counter("merged_rows_total", table="ticker").inc(len(made.tickers))
        for gatherer, reason, n in read_counts(made.counts, SUSPECT):
            self._metrics.counter("suspect_runs_total", gatherer=str(gatherer), reason=reason).inc(
                n
            )
            log.error("the others contradict a gatherer", gatherer=gatherer, reason=reason, runs=n)
        for gatherer, reason, n in read_counts(made.counts, ASIDE):
            self._metrics.counter(
                "quarantined_rows_total", gatherer=str(gatherer), reason=reason
            ).inc(n)
        self._metrics.histogram("window_seconds").observe(time.monotonic() - began_s)
        self._progress()

    async def _tell_stored(self, made: Publication) -> None:
        """What every merger of the tape has stored, a gatherer may forget."""
        stored = {g: at[0] - 1 for g, at in made.positions.items()}
        if not self.together.share.alone:
            if not self.together.share.first:
                return
            stored = await self.together.stored(await self.publisher.connection())
        for reader in self.readers:
            if reader.index in stored:
                batch_id = stored[reader.index]
                reader.stored(batch_id)
                if self._archive is not None:
                    self._archive.note(reader.index, made.closed_to_us, batch_id)
                    reader.archived(self._archive.batch_of(reader.index))

    def _hours_waiting(self) -> int:
        return self.exporter.hours_waiting if self.together.share.first else 0

    async def _level(self, standing: Standing, *, final: bool) -> Level | None:
        """Where the tape as a whole stands, for an export; None: there is none to make now."""
        if self.together.share.alone:
            return Level(standing.closed_to_us, standing.received_ns_max)
        await self.publishing.settled()
        conn = await self.publisher.connection()
        if final:
            await self.together.finish(conn)
        if not self.together.share.first:
            if not final:
                await self.together.wait_for_export(conn, standing.closed_to_us)
            return None
        if not final and not self.exporter.due(standing.closed_to_us):
            return None
        level = await self.together.wait_for_all(conn, standing.closed_to_us, final=final)
        if level is None:
            self._export_tried_s = time.monotonic()
        else:
            await self.exporter.look_again(conn)
        return level

    def _check(self, made: Publication) -> None:
        """The second opinion on what is about to be published."""
        before = dict(self.invariants.violations)
        self.invariants.observe(made)
        for name, seen in self.invariants.violations.items():
            if seen > before[name]:
                self._metrics.counter("invariant_breaks_total", invariant=name).inc(
                    seen - before[name]
                )
                log.error("invariant broken", invariant=name, events=seen - before[name])

    async def _export(self, arbiter: Arbiter, *, final: bool) -> None:
        """Export if a moment of export has passed; a lake that refuses is tried again later."""
        if time.monotonic() - self._export_tried_s < EXPORT_RETRY_S:
            return
        standing = self.publisher.standing
        asked = self._level(standing, final=final)
        if not self.together.share.alone:  # others may have to be waited for
            asked = self._reading_on(arbiter, asked)
        level = await asked
        if level is None or (not final and not self.exporter.due(level.closed_to_us)):
            return
        if not self.exporter.hours_waiting and final:
            return
        await self.publishing.settled()  # an export has the connection and the tape to itself
        began_s = time.monotonic()
        conn = await self.publisher.connection()
        try:
            with broken_once_failed(conn):
                names = await self._names(conn)
                async with self.together.by_itself(conn):
                    if not self.together.share.alone:  # what is dirty now stays so until noted
                        await self.exporter.look_again(conn)
                    work = self.exporter.export(
                        conn, level.closed_to_us, level.received_ns_max, names, final=final
                    )
                    await self._reading_on(arbiter, work)
        except _NO_EXPORT as error:
            if conn.is_closed():
                raise  # production went, not the lake: begun again from it, this export comes first
            self._export_tried_s = time.monotonic()
            await self.together.let_on(conn, level.closed_to_us)
            self._health.set("lake", "degraded", f"export is tried again: {error}")
            log.warning("export failed", reason=str(error))
            return
        self._export_tried_s = 0.0
        told = self.exporter.told()
        self._health.set("lake", "degraded" if told else "ok", told)
        self._metrics.histogram("export_seconds").observe(time.monotonic() - began_s)

    async def _reading_on(self, arbiter: Arbiter, work: Coroutine[Any, Any, T]) -> T:
        """The outcome of something that nothing is decided beside; readers and live path go on."""
        patience_s = float(self._settings.patience_s)
        return await reading_on(
            work, arbiter, self.readers, self._reads, patience_s, self.tally.read
        )

    async def _names(self, conn: asyncpg.Connection) -> Mapping[int, str]:
        """The tickers of all markets of the tape."""
        if self.together.share.alone:
            return {market: ticker for ticker, market in self.publisher.standing.ids.items()}
        return {r["market_id"]: r["ticker"] for r in await conn.fetch(_MARKETS)}

    def _report(self) -> None:
        """Say in /health and /metrics how every part stands."""
        self.measured.read(self.readers)
        self.measured.exported(self.exporter.written)
        patience_s = float(self._settings.patience_s)
        for reader in self.readers:
            name = f"gatherer{reader.index}"
            if reader.gone:
                self.gone[reader.index] = reader.gone
            if reader.answering and reader.index in self.gone:
                self._health.set(name, "degraded", "; ".join(self.gone[reader.index]))
            elif reader.answering:
                self._health.set(name, "ok")
            elif reader.silent_s() < patience_s:
                self._health.set(name, "degraded", reader.reason or "connecting")
            else:
                self._health.set(name, "failing", f"left out: {reader.reason}")
        broken = self.invariants.broken
        self._health.set(
            "merge",
            "failing" if broken else "ok",
            f"invariants broken: {', '.join(broken)}" if broken else "",
        )
        if self._health.get("lake") is None:
            self._health.set("lake", "ok")
        if self.publishing.idle:  # else it says itself what holds it up
            self._held_up("")
