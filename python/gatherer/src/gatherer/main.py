"""The gatherer: `python -m gatherer.main`, settings by environment (runtime.config).

Purpose: start the parts of gatherer.service under one supervisor and give its exit code; or several
processes that do so (gatherer.processes).
Exit codes: 0 clean stop, 1 a part failed, 2 settings are wrong.
Does not do: decisions (they are in the parts), restarting itself (the service manager does).
"""

from __future__ import annotations

import contextlib
import gc
import sys
from typing import Final

import uvloop

from gatherer.processes import Processes, check
from gatherer.service import Gatherer
from marketdata.errors import ConfigError, StorageError
from runtime import config, logs
from runtime.children import watch_parent
from runtime.clock import Clock
from runtime.supervise import Supervisor

EXIT_SETTINGS: Final = 2
SWITCH_S: Final = 0.0005
"""How long a thread waits before it asks the running one for the interpreter. The main thread is
busy for most of a second at a high rate, and a transaction asks some thirty times: with the usual
5 ms that alone is 150 ms (50,000 frames/s: p99 of send to commit 342 to 634 ms, with this and
packing in the main thread 204 to 270)."""


async def serve(settings: config.GathererSettings) -> int:
    """Run until asked to stop; the exit code."""
    supervisor = Supervisor("gatherer")
    if settings.feed_processes > 1 and not settings.feed_number:
        processes = Processes(settings, supervisor)
        async with contextlib.AsyncExitStack() as stack:
            await processes.open(stack)
            return await supervisor.run()
    if settings.feed_number:
        supervisor.add("parent", lambda: watch_parent(supervisor))
    gatherer = Gatherer(settings, Clock(settings.clock_offset_ms), supervisor)
    async with contextlib.AsyncExitStack() as stack:
        await gatherer.open(stack)
        gc.freeze()  # what start-up made lives for ever; the collector need not look at it
        return await supervisor.run()


def main() -> int:
    """Entry point of the service."""
    try:
        settings = config.load(config.GathererSettings)
        check(settings)
        whose: dict[str, str | int] = {
            "gatherer": settings.gatherer_name,
            "feed_process": settings.feed_number,
        }
        logs.setup("gatherer", settings.log_level, fields=whose)
        sys.setswitchinterval(SWITCH_S)
        logs.get("main").info("starting", **settings.described())
        return uvloop.run(serve(settings))
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_SETTINGS
    except StorageError as error:
        sys.stderr.write(f"{error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
