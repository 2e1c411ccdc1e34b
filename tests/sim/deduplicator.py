"""The deduplicator's process: the real Pipeline on simulated databases.

Purpose: run `dedup.pipeline.Pipeline` whole: readers, arbiter, waiting rules, publications, fence,
restart from production. It is started again after each death.

What is imitated: the export to the lake (nothing is exported), health and metrics pages.

Does not do: deciding anything that the product decides. `Watch` only looks on: whether a window was
closed before everything of it was there, which is what I6 may depend on.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from dedup.arbitrate import Arbiter
from dedup.inflow import Inflow
from dedup.lives import Life
from dedup.output import WindowOutput
from dedup.pipeline import Pipeline
from marketdata.rows import GathererBatch
from runtime.health import Health
from runtime.metrics import Metrics
from tests.sim.gatherer import fates
from tests.sim.hot import HotServer
from tests.sim.plan import FaultPlan
from tests.sim.virtual import Process, Story, VirtualLoop

IDLE_HOLD_MS = 12_000
GRACE_MS = 2_000
PATIENCE_S = 15


class NoLake:
    """Stands for dedup.export.Exporter."""

    hours_waiting = 0

    def __init__(self) -> None:
        self.written: dict[str, int] = {}

    async def another_tape(self, conn: Any) -> str:
        """There is none."""
        return ""

    async def open(self, conn: Any, *, patient: bool) -> None:
        """Nothing."""

    def due(self, closed_to_us: int) -> bool:
        return False

    def hours_due(self, closed_to_us: int) -> int:
        return 0

    def published(self, made: Any) -> None:
        """Nothing."""


def settings_of(plan: FaultPlan, process: str) -> Any:
    """As runtime.config.DedupSettings; names of databases carry who asks."""
    return SimpleNamespace(
        gatherer_dsns=[f"hot{n}|{process}" for n in range(len(plan.gatherers))],
        production_dsn=f"production|{process}",
        window_ms=plan.window_ms,
        grace_ms=GRACE_MS,
        idle_hold_ms=IDLE_HOLD_MS,
        patience_s=PATIENCE_S,
        merge="runs",
        merge_shards=1,
        merge_shard=0,
        poll_ms=plan.poll_ms,
        final=True,
        live=False,
    )


class Watch:
    """Whether windows were closed too early for something that came later, and why."""

    def __init__(self, story: Story, loop: VirtualLoop) -> None:
        self.story = story
        self.loop = loop
        self.hot: Callable[[int], HotServer]  # a gatherer's database; the world sets it
        self.shown: dict[int, list[tuple[int, float]]] = {}  # id(arbiter) -> (receive time, when)
        self.overtaken: dict[str, int] = {}
        self.impatient: list[str] = []
        self.closed_windows = 0

    def note(self, why: str) -> None:
        if why not in self.overtaken:
            self.story.tell("watch", f"windows close without something: {why}")
        self.overtaken[why] = self.overtaken.get(why, 0) + 1

    def absorbing(self, arbiter: Arbiter, batch: GathererBatch) -> None:
        """Something of a window that is closed already?"""
        inflow = arbiter.inflows[batch.gatherer]
        new = batch.last_batch_id > inflow.reread[1]
        if inflow.closed < 0 or not new:
            return
        for name, rows in (
            ("rows", batch.deltas),
            ("trades", batch.trades),
            ("tickers", batch.tickers),
        ):
            fresh = rows[rows["batch_id"] > inflow.reread[1]] if len(rows) else rows
            if len(fresh) and int(fresh["exchange_us"].min()) // inflow.window_us <= inflow.closed:
                self.note(f"late {name} of gatherer {batch.gatherer}")

    def absorbed(self, arbiter: Arbiter) -> None:
        """How far does anybody's receive time go now?"""
        shown = self.shown.setdefault(id(arbiter), [])
        if not shown or arbiter.shown_ns > shown[-1][0]:
            shown.append((arbiter.shown_ns, self.loop.time()))

    def _ended(self, arbiter: Arbiter, inflow: Inflow, output: WindowOutput, due_ns: int) -> None:
        """A gatherer that said it ended: was anything there when others were so far?"""
        due_ns = min(due_ns, arbiter.shown_ns)
        due_s = next(at for ns, at in self.shown[id(arbiter)] if ns >= due_ns)
        hot = self.hot(inflow.gatherer)
        seen = Life.decode(inflow.life).local(inflow.seen_batch)
        for batch in hot.log:
            unread = batch.batch_id > seen and batch.xid < hot.xmin() and batch.n_rows
            if unread and batch.committed_s < due_s:
                self.impatient.append(
                    f"window {output.window} closed on the word of gatherer {inflow.gatherer} that"
                    f" it ended; batch {batch.batch_id} of it was there since {batch.committed_s}"
                )
                return

    def closing(self, arbiter: Arbiter, output: WindowOutput, *, final: bool) -> None:
        """Was anybody not waited for?"""
        self.closed_windows += 1
        if final:
            return
        if arbiter.patience.left_out:
            self.note(f"left out {sorted(arbiter.patience.left_out)}")
        seen = [ns for i in arbiter.inflows for w, ns in i.first_seen.items() if w > output.window]
        due_ns = min(seen, default=0) + GRACE_MS * 1_000_000
        for inflow in arbiter.inflows:
            is_out = inflow.gatherer in arbiter.patience.left_out
            if not inflow.ended and not is_out and inflow.max_received_ns < due_ns:
                self.impatient.append(
                    f"window {output.window} closed before gatherer {inflow.gatherer} had committed"
                )
            if inflow.ended and not is_out:
                self._ended(arbiter, inflow, output, due_ns if seen else arbiter.shown_ns)
            skew = arbiter.settings.engine_skew_us
            for run in inflow.runs.values():
                if (
                    not run.ended
                    and not inflow.ended
                    and run.channel == "orderbook"
                    and run.shown_us - skew < output.to_us
                ):
                    self.note(f"an idle run of gatherer {inflow.gatherer}")
                    silent_ns = inflow.max_received_ns - run.last_received_ns
                    if silent_ns < IDLE_HOLD_MS * 1_000_000 and not is_out:
                        self.impatient.append(
                            f"window {output.window} closed while run {run.run_id} of gatherer"
                            f" {inflow.gatherer} had been silent for {silent_ns // 10**6} ms only"
                        )


class SimPipeline(Pipeline):
    """The real pipeline, watched."""

    watch: Watch

    def _arbiter(self, standing: Any) -> Arbiter:
        arbiter = super()._arbiter(standing)
        watch, absorb, step = self.watch, arbiter.absorb, arbiter.step
        watch.shown.pop(id(arbiter), None)  # of one that is gone

        def watched_absorb(batch: GathererBatch) -> None:
            watch.absorbing(arbiter, batch)
            absorb(batch)
            watch.absorbed(arbiter)

        def watched_step(*, final: bool = False) -> WindowOutput | None:
            output = step(final=final)
            if output is not None:
                watch.closing(arbiter, output, final=final)
            return output

        arbiter.absorb = watched_absorb  # type: ignore[method-assign]
        arbiter.step = watched_step  # type: ignore[method-assign]
        return arbiter


class DedupHost:
    """The deduplicator's machine: one process after the other, and perhaps a second one."""

    def __init__(self, plan: FaultPlan, story: Story, loop: VirtualLoop) -> None:
        self.world = plan
        self.plan = plan.dedup
        self.story = story
        self.loop = loop
        self.rng = random.Random(f"{plan.seed}/dedup-host")
        self.watch = Watch(story, loop)
        self.fates = fates(self.plan.crashes_step, self.plan.line_cuts)
        self.read_fates = fates((), self.plan.read_cuts)
        self.processes: list[Process] = []
        self.pipelines: list[SimPipeline] = []
        self.failures: list[BaseException] = []
        self.violations: dict[str, int] = {}
        self.finished = False
        self.may_finish: Callable[[], bool] = lambda: True

    def start(self, *, again: bool = True) -> None:
        """A new process; `again`: whoever dies is followed by another one."""
        if self.finished:
            return
        process = Process(f"dedup.{len(self.processes) + 1}", self.story)
        self.processes.append(process)
        self.story.tell(process.name, "starts")
        pipeline = SimPipeline(
            settings_of(self.world, process.name),
            NoLake(),  # type: ignore[arg-type]
            Health("production", "merge", "lake"),
            Metrics(),
            lambda: None,
        )
        pipeline.watch = self.watch
        self.pipelines.append(pipeline)

        def ended() -> None:
            if pipeline.finished:
                self.story.tell(process.name, "has finished the tape")
                self.finished = self.may_finish()
            process.kill("ends")

        def died() -> None:
            self.failures += process.failures
            for name, seen in pipeline.invariants.violations.items():
                self.violations[name] = self.violations.get(name, 0) + seen
            if again:
                wait_s = self.plan.down_s * self.rng.uniform(0.5, 1.5)
                self.loop.call_later(wait_s, self.start)

        process.on_death.append(died)
        process.start(pipeline.run(), ended)

    def doom(self, steps: tuple[tuple[int, bool], ...]) -> None:
        """The newest process dies at its n-th effect from now; the others are those after it."""
        process = self.processes[-1] if self.processes else None
        if process is None or process.dead or not steps:
            return
        self.story.fault("doomed_at_rest", process.name)
        for place, (number, after) in enumerate(steps):
            at = number if place else process.steps + number
            for fates_of in (self.fates, self.read_fates):
                fates_of[at] = ("crash", after)

    def kill(self, name: str) -> None:
        """All processes die now."""
        for process in self.processes:
            if not process.dead:
                self.story.fault(name, process.name)
                process.kill(name)

    @property
    def waiting_for(self) -> list[str]:
        """What the newest pipeline waits for."""
        return self.pipelines[-1].waiting_for if self.pipelines else []
