"""Where an embedded server may live: the account it runs as, reachable directories, ports.

What holds:
- The account is never root and is never made: root borrows an existing unprivileged one.
- A port lies below the kernel's ephemeral range: a client that retries a server that is down must
  not be able to connect to itself, and the port must still be free at the restart.
- A temporary directory that is marked as in use is swept only after its process is gone.

Does not do: PostgreSQL (runtime.cluster_template, runtime.embedded).
"""

from __future__ import annotations

import fcntl
import os
import pwd
import random
import shutil
import socket
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from marketdata.errors import StorageError

SUPERUSER: Final = "tape"
SERVICE_ACCOUNTS: Final = ("postgres", "nobody")  # looked for in this order when we are root
PORT_FIRST: Final = 15_000
PORT_LAST: Final = 32_000
PORT_TRIES_MAX: Final = 64
CLAIM_NAME: Final = "in-use"


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
    return open_directory("kalshi-tape-home-")


def open_directory(prefix: str) -> Path:
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


def give(path: Path, account: Account) -> None:
    """Make the account the owner, when we are root."""
    if os.geteuid() == 0:
        os.chown(path, account.uid, account.gid)
