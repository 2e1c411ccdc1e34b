"""The tape is finished, and nobody died of anything but a fault of the plan."""

from __future__ import annotations

from collections.abc import Iterator

from tests.sim.checkers.view import View, Violation


def check(view: View) -> Iterator[Violation]:
    """Everything came to rest."""
    world = view.world
    if not world.ended:
        waits = "; ".join(world.dedup.waiting_for[:4]) or "unknown"
        unsettled = [host.name for host in world.hosts if not host.settled]
        yield Violation(
            "the tape was not finished", seen=f"waits for: {waits}; not at rest: {unsettled}"
        )
    failures = [*world.dedup.failures, *(e for host in world.hosts for e in host.failures)]
    for error in failures[:3]:
        yield Violation("a process died by itself", seen=f"{type(error).__name__}: {error}")
    yield from _patience(view)
    for name, seen in world.dedup.violations.items():
        # I2 counts audits that failed: a gatherer may say so truthfully of a wrong book.
        if seen and name != "I2":
            yield Violation(f"the running deduplicator counted {name} broken", seen=str(seen))


def _patience(view: View) -> Iterator[Violation]:
    """Windows wait for whom they must: until a run is idle, and for commits within the grace."""
    watch, plan = view.world.dedup.watch, view.world.plan
    for told in watch.impatient[:1]:
        yield Violation("a window did not wait", seen=told)
    if any(g.clock_steps or g.delay_ms[1] > 500 for g in plan.gatherers):
        return  # then the grace for clocks may really be too short
    for number, gatherer in enumerate(plan.gatherers):
        excused = [f"an idle run of gatherer {number}"]
        excused += [w for w in watch.overtaken if w.startswith("left out") and str(number) in w]
        late = f"late rows of gatherer {number}"
        is_calm = not gatherer.clean_stops and not gatherer.partitions
        is_excused = any(reason in watch.overtaken for reason in excused)
        if late in watch.overtaken and is_calm and not is_excused:
            yield Violation("a window did not wait", seen=late)
