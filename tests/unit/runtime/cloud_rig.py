"""The shipper as a process, a service that answers /status, and moto's server that may be away.

Time is compressed by the interval: rounds that are a minute apart on a host are a second apart in
the process, and as far apart as the injected clock says in one of the tests.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

FAKE_JOURNALCTL = """#!{python}
import json, sys, time
after = [a.split("=", 1)[1] for a in sys.argv if a.startswith("--after-cursor=")]
seen = int(after[0].rpartition("=")[2]) + 1 if after else 0
while True:
    lines = open({lines!r}).read().splitlines()
    for n in range(seen, len(lines)):
        at_us, text = lines[n].split(" ", 1)
        print(json.dumps({{"__CURSOR": f"s=1;i={{n}}", "__REALTIME_TIMESTAMP": at_us,
                          "MESSAGE": text}}), flush=True)
    seen = max(seen, len(lines))
    time.sleep(0.05)
"""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@dataclass
class Host:
    """One host's folder, its service and its shipper."""

    folder: Path
    cloud_port: int
    service_port: int = 0
    frames: int = 0
    asked: int = 0
    process: asyncio.subprocess.Process | None = None
    said: list[dict[str, Any]] = field(default_factory=list)

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def prepare(self) -> None:
        self.state.mkdir()
        (self.folder / "bin").mkdir()
        (self.folder / "journal").touch()
        script = self.folder / "bin" / "journalctl"
        script.write_text(
            FAKE_JOURNALCTL.format(python=sys.executable, lines=str(self.folder / "journal"))
        )
        script.chmod(script.stat().st_mode | stat.S_IXUSR)

    def logged(self, at_us: int, text: str) -> None:
        """A line of the journal."""
        with (self.folder / "journal").open("a") as out:
            out.write(f"{at_us} {text}\n")

    async def start(self) -> None:
        env = {
            **{n: v for n, v in os.environ.items() if not n.startswith(("KT_", "AWS_"))},
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.cloud_port}",
            "KT_HOST_NAME": "gatherer-1",
            "KT_SERVICE_URL": f"http://127.0.0.1:{self.service_port}",
            "KT_STATE_DIR": str(self.state),
            "KT_LOG_PREFIX": "/kalshi/",
            "KT_LOG_UNITS": json.dumps(["kalshi-*"]),
            "KT_INTERVAL_S": "1",
        }
        log = (self.folder / "log").open("ab")
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "runtime.cloudwatch", env=env, stdout=log, stderr=log
        )
        log.close()

    async def kill(self) -> None:
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGKILL)
        await self.process.wait()

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def log_lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]


@asynccontextmanager
async def host(folder: Path) -> AsyncIterator[Host]:
    """A host whose service counts one frame more at each asking, and says so."""
    made = Host(folder, free_port())
    made.prepare()

    async def status(_request: web.Request) -> web.Response:
        made.asked += 1
        made.frames += 1
        return web.json_response({"frames": made.frames, "lag_ms": 250})

    application = web.Application()
    application.router.add_get("/status", status)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.service_port = int(runner.addresses[0][1])
    try:
        yield made
    finally:
        if made.process is not None:
            await made.kill()
        await runner.cleanup()
