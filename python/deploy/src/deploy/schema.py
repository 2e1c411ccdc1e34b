"""Whether a release's schema lets hosts' present programs go on: asked before anything moves."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from deploy.fleet import Fleet
from deploy.migrations import FOLDERS, Change, compare, insist, of_closure, of_host
from deploy.release import Release, profile
from deploy.shell import Shell


def local(path: str, store: str) -> Path:
    """Where a store path lies on this machine; `store`: a folder is a store of its own there."""
    return Path(store) / path.lstrip("/") if store.startswith("/") else Path(path)


async def beside(
    shell: Shell, fleet: Fleet, release: Release, hosts: Iterable[str], store: str = ""
) -> list[Change]:
    """What the release changes in the databases of these hosts; hosts without one have nothing.

    Raises:
        PlanError: a statement does more than add, or the releases are no continuation.
        HostRefusedError, UnreachableError: a host did not say what it has.
    """
    changes = []
    for name in hosts:
        role = fleet.host(name).role
        running = await of_host(shell, name, profile(role))
        if not running:
            continue
        coming = of_closure(local(release.closures[role], store))
        changes += [
            compare(folder, running.get(folder, ()), coming.get(folder, ()))
            for folder in FOLDERS[role]
        ]
    insist(changes)
    return changes
