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
    for name, seen in world.dedup.violations.items():
        # I2 counts audits that failed: a gatherer may say so truthfully of a wrong book.
        if seen and name not in ("I2",):
            yield Violation(f"the running deduplicator counted {name} broken", seen=str(seen))
