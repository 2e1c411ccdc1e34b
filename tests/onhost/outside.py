"""What lies outside the hosts: the exchange at its own names, and the object store.

Both are processes of this machine in network namespaces of their own, behind TLS, under the names
and on the port that the units use: the hosts find them through /etc/hosts, and trust the run's
authority as they trust the world's.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tape.fleet import write_test_key
from tests.onhost import s3_tool
from tests.onhost.authority import Authority
from tests.onhost.image import run
from tests.onhost.network import EXCHANGE, STORE, Network
from tests.rules.tree import ROOT

EXCHANGE_NAMES = ("external-api-ws.kalshi.com", "external-api.kalshi.com")
BUCKET = "kalshi-data-prod"
STORE_NAMES = (
    *(f"{BUCKET}.s3.amazonaws.com", f"{BUCKET}.s3.us-east-1.amazonaws.com"),
    *("s3.amazonaws.com", "s3.us-east-1.amazonaws.com"),
)
# moto takes any; the instance's role stands behind them on AWS.
STORE_ACCESS = {"AWS_ACCESS_KEY_ID": "onhost", "AWS_SECRET_ACCESS_KEY": "onhost"}
MOTO = ROOT / ".venv-cdk" / "bin" / "moto_server"
START_S = 90.0
STOP_S = 60.0


class Outside:
    """The exchange and the store of a run; end them with `close`."""

    def __init__(self, network: Network, folder: Path) -> None:
        self.network, self.folder = network, folder
        folder.mkdir(parents=True, exist_ok=True)
        self.authority = Authority()
        self.private_key, self.public_key = write_test_key(folder / "keys")
        self._exchange: subprocess.Popen[bytes] | None = None
        self._store: subprocess.Popen[bytes] | None = None

    def hosts(self) -> str:
        """Lines of /etc/hosts for everything outside."""
        lines = [f"{self.network.address(EXCHANGE)} {' '.join(EXCHANGE_NAMES)}"]
        lines.append(f"{self.network.address(STORE)} {' '.join(STORE_NAMES)}")
        return "\n".join(lines) + "\n"

    def _start(self, name: str, place: str, words: Sequence[str | Path]) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                self.network.execute(place, *words),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT, start_new_session=True,
            )  # fmt: skip

    def start_exchange(self, *flags: str) -> None:
        """The project's exchange on port 443, with the flags of `python -m exchange.main`."""
        address = self.network.address(EXCHANGE)
        certificate, key = self.authority.certificate(self.folder / "exchange", *EXCHANGE_NAMES)
        ready = self.folder / "exchange.ready"
        ready.unlink(missing_ok=True)
        self._exchange = self._start(
            "exchange", EXCHANGE,
            [
                sys.executable, "-m", "exchange.main", "--host", address, "--port", "443",
                "--tls-cert", certificate, "--tls-key", key, "--public-key", self.public_key,
                "--truth", self.folder / "truth", "--ready-file", ready, *flags,
            ],
        )  # fmt: skip
        self._await(self._exchange, ready.exists, "exchange")

    def stop_exchange(self) -> None:
        """An orderly stop: the truth log is complete afterwards."""
        if self._exchange is not None:
            self._exchange.terminate()
            code = self._exchange.wait(STOP_S)
            self._exchange = None
            assert code == 0, f"the exchange ended with {code}: {self.log('exchange')}"

    def exchange_status(self) -> dict[str, Any]:
        """What /sim/status says; empty while it does not answer."""
        asked = subprocess.run(
            self.network.execute(
                EXCHANGE, "curl", "--silent", "--max-time", "5", "--insecure",
                f"https://{self.network.address(EXCHANGE)}/sim/status",
            ),
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        return dict(json.loads(asked.stdout)) if asked.stdout else {}

    def start_store(self) -> None:
        """moto as S3 on port 443, with the bucket of topology.toml."""
        assert MOTO.exists(), "moto's server is missing\nhint: make setup-cdk"
        certificate, key = self.authority.certificate(self.folder / "store", *STORE_NAMES)
        address = self.network.address(STORE)
        self._store = self._start(
            "store", STORE, [MOTO, "-H", address, "-p", "443", "-s", "-c", certificate, "-k", key]
        )
        self._await(self._store, lambda: self._store_answers("create"), "store")

    def fetch_lake(self, folder: Path) -> int:
        """Every object of the bucket as a file; how many."""
        return int(self._tool("fetch", folder))

    def _store_answers(self, verb: str) -> bool:
        try:
            self._tool(verb, self.folder)
        except Exception:  # noqa: BLE001 - whatever it is, it is tried again until the deadline
            return False
        return True

    def _tool(self, verb: str, folder: Path) -> str:
        authority = self.folder / "authority.pem"
        authority.write_bytes(self.authority.pem)
        words = (sys.executable, s3_tool.__file__, verb, self.network.address(STORE), BUCKET)
        settings = {**STORE_ACCESS, "AWS_CA_BUNDLE": str(authority), "PATH": "/usr/bin:/bin"}
        return run(*self.network.execute(STORE, *words, folder), env=settings)

    def _await(
        self, process: subprocess.Popen[bytes], ready: Callable[[], bool], name: str
    ) -> None:
        deadline = time.monotonic() + START_S
        while not ready():
            assert process.poll() is None, f"{name} did not start: {self.log(name)}"
            assert time.monotonic() < deadline, f"{name} is not ready: {self.log(name)}"
            time.sleep(0.2)

    def log(self, name: str) -> str:
        """The end of what a process outside said."""
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace")[-3000:] if path.exists() else ""

    def close(self) -> None:
        """End both, whatever they are doing."""
        for process in (self._exchange, self._store):
            if process is not None:
                process.kill()
                process.wait(STOP_S)
        self._exchange = self._store = None
