"""The processes of a benchmark: load generators, peers, our recorder; one case measured."""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import asyncpg
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from runtime.embedded import EmbeddedPostgres
from tests.bench.generator import CONNECTIONS, MARKETS_EACH

READY_WITHIN_S = 60
ADDRESS = ipaddress.ip_address("127.0.0.1")
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Case:
    """What is measured in a round. `peer`: a mode of clients; else our recorder."""

    name: str
    wire: str  # plain | tls
    transport: str = ""
    peer: str = ""
    uvloop: bool = False
    frames: int = 0  # on each connection, where it is not the number of all: peers that are slow

    @property
    def stores(self) -> bool:
        """Whether it commits rows."""
        return not self.peer.startswith(("bare", "receive"))


class Answering:
    """A child process that answers a line of JSON with a line of JSON."""

    def __init__(self, module: str) -> None:
        self.module = module
        self.child = subprocess.Popen(
            [sys.executable, "-m", module], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """Its answer; RuntimeError if it ended instead."""
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        self.child.stdin.write(json.dumps(question) + "\n")
        self.child.stdin.flush()
        line = self.child.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.module} ended with {self.child.wait()} instead of answering")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        _end(self.child)


def _end(child: subprocess.Popen[Any]) -> None:
    child.terminate()
    try:
        child.wait(10)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            pipe.close()


def certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1 and its key, as files."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ADDRESS)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "bench.crt", folder / "bench.key"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    pkcs8, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    paths[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, pkcs8, plain))
    return paths


@contextmanager
def generators(folder: Path, frames: int) -> Iterator[dict[str, str]]:
    """Both load generators; wire -> URL."""
    cert, key = certificate(folder)
    tls = ["--tls-cert", str(cert), "--tls-key", str(key)]
    children: dict[str, tuple[subprocess.Popen[bytes], Path]] = {}
    with ExitStack() as stack:
        for wire, more in (("plain", []), ("tls", tls)):
            ready = folder / f"{wire}.ready"
            command = [sys.executable, "-m", "tests.bench.generator", "--frames", str(frames)]
            child = subprocess.Popen([*command, "--ready", str(ready), *more], cwd=ROOT)
            stack.callback(_end, child)
            children[wire] = child, ready
        urls = {}
        deadline = time.monotonic() + READY_WITHIN_S
        for wire, (child, ready) in children.items():
            while not ready.exists():
                if child.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the {wire} load generator did not start")
                time.sleep(0.05)
            scheme = "wss" if wire == "tls" else "ws"
            port = json.loads(ready.read_text())["port"]
            urls[wire] = f"{scheme}://127.0.0.1:{port}/trade-api/ws/v2"
        yield urls


class Bench:
    """One database server, the two kinds of clients, the generators' addresses."""

    def __init__(self, server: EmbeddedPostgres, urls: dict[str, str], folder: Path) -> None:
        self.server = server
        self.urls = urls
        self.folder = folder
        self.databases: list[str] = []
        self.kept: list[str] = []  # databases of whole recordings, for the merge
        self.numbers = iter(range(1 << 30))

    def sql(self, *statements: str) -> None:
        """Statements outside of any transaction, on the server's own database."""

        async def run() -> None:
            connection = await asyncpg.connect(self.server.dsn())
            for statement in statements:
                await connection.execute(statement)
            await connection.close()

        asyncio.run(run())

    def database(self) -> str:
        """A new database, with the server's dirty pages written: nobody pays for another's."""
        name = f"bench{next(self.numbers)}"
        self.sql(f"CREATE DATABASE {name}", "CHECKPOINT")
        return name

    def measure(self, case: Case, frames: int, ours: Answering, peers: Answering) -> dict[str, Any]:
        """One case: seconds, cpu_s (client), server_cpu_s, frames and rows."""
        name = self.database() if case.stores else ""
        dsn = self.server.dsn(name) if name else ""
        each = case.frames or frames
        pid = (self.server.pid or 0) if name else 0
        if case.peer:
            question = {"mode": case.peer, "url": self.urls[case.wire], "dsn": dsn,
                        "frames": [each] * CONNECTIONS, "uvloop": case.uvloop,
                        "server_pid": pid}  # fmt: skip
            answer = peers.ask(question)
        else:
            spool = self.folder / f"spool-{name}"
            question = {"transport": case.transport, "url": self.urls[case.wire], "dsn": dsn,
                        "streams": CONNECTIONS, "frames": each, "spool": str(spool),
                "server_pid": pid}  # fmt: skip
            answer = ours.ask(question)
            shutil.rmtree(spool)
            self._check(case, answer)
        if name and not case.peer and len(self.kept) < 3:
            self.kept.append(name)
        elif name:
            self.sql(f"DROP DATABASE {name} WITH (FORCE)")
        return derived(answer)

    def _check(self, case: Case, answer: dict[str, Any]) -> None:
        """A recording that was not whole is no measurement."""
        whole = answer["rows"] == answer["frames"] - CONNECTIONS * MARKETS_EACH
        if not whole or answer["counts"] or answer["connects"] != CONNECTIONS:
            raise RuntimeError(f"{case.name}: the recording is not whole: {answer}")


def derived(answer: dict[str, Any]) -> dict[str, Any]:
    """What is compared: rates and CPU by frame and by committed row."""
    frames, rows, seconds = answer["frames"], answer["rows"], answer["seconds"]
    both = answer["cpu_s"] + answer["server_cpu_s"]
    return {
        **answer,
        "frames_per_s": frames / seconds,
        "us_per_frame": 1e6 * answer["cpu_s"] / frames,
        "rows_per_s": rows / seconds,
        "us_per_row": 1e6 * both / rows if rows else 0.0,
    }
