"""`python -m tests.repair_killed PLACE JSON`: a repair that kills itself at a named place."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from dedup import repair_store
from kalshilake.store import LocalStore
from runtime.clock import Clock
from tape.repair import Asked, run_repair


class FixedClock(Clock):
    """As in the test that compares."""

    def wall_ns(self) -> int:
        return 1_800_000_000_000_000_000


def die(*_: Any, **__: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    place, fields = sys.argv[1], json.loads(sys.argv[2])
    fields["spools"] = {int(g): Path(p) for g, p in fields["spools"].items()}
    if place == "before the commit":
        repair_store._new_versions = die
    elif place == "after the commit":
        commit = repair_store.commit

        async def committed(*given: Any) -> int:
            await commit(*given)
            return int(die())

        repair_store.commit = committed
    else:
        put, written = LocalStore.put, []

        def put_some(self: LocalStore, key: str, body: bytes) -> None:
            put(self, key, body)
            written.append(key)
            if len(written) == 3:
                die()

        LocalStore.put = put_some  # type: ignore[method-assign]
    asyncio.run(run_repair(Asked(**fields), FixedClock(0)))


if __name__ == "__main__":
    main()
