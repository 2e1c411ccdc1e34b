"""A real PostgreSQL that is made, started and given roles by the lines of the rendered units.

The binaries are those of the embedded wheel, 16 without OpenSSL, or for TLS those of the
distribution. `stood_in` is the whole difference to a host: what the server lacks, where things lie,
and which accounts and addresses this machine has. Every replacement must apply, so that a changed
unit is noticed here.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shlex
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import pytest

from runtime.cluster_home import Account, free_port, give, open_directory, service_account
from runtime.cluster_template import wheel_root
from tests.nix import units_files as units

START_TIMEOUT_S: Final = 60.0
# Accounts that every Linux has: two that may not be whom the units name.
OTHERS: Final = ("games", "mail")


def account(name: str) -> Account:
    """An account of this machine."""
    entry = pwd.getpwnam(name)
    return Account(name, entry.pw_uid, entry.pw_gid)


def need_root() -> None:
    """Peer authentication is shown with several accounts, which only root can become."""
    if os.geteuid() != 0:
        if os.environ.get("CI"):
            pytest.fail("this test becomes several accounts: run it as root")
        pytest.skip("only root can become several accounts")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a program said."""

    code: int
    out: str
    err: str


class UnitCluster:
    """One of the two databases of a gatherer host, below a directory of its own.

    `binaries`: a server with OpenSSL that every account can run; without it the embedded one.
    """

    def __init__(self, name: str, binaries: Path | None = None) -> None:
        self.name = name
        self.tls = binaries is not None
        self.bin = binaries or Path()
        self.server = service_account()
        self.me = pwd.getpwuid(os.geteuid()).pw_name
        self.port = free_port()
        self.home = open_directory("kalshi-tape-units-")
        self.state = self._directory("state", 0o700)
        self.run = self._directory("run", 0o711)
        self.share = self._directory("share", 0o711)
        self.etc = self._directory("etc", 0o711)
        self.credentials = self._directory("credentials", 0o700)
        self.sockets = self.run / name
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._install()
        except BaseException:
            shutil.rmtree(self.home)
            raise

    def _directory(self, name: str, mode: int) -> Path:
        path = self.home / name
        path.mkdir(mode=mode)
        path.chmod(mode)
        give(path, self.server)
        return path

    def _install(self) -> None:
        """The binaries where the server's account can reach them, and the rendered files."""
        if not self.tls:
            self._copy_binaries()
        for name in units.names("kalshi*"):
            if name.endswith((".conf", ".sql")):
                self.install(name, self.stood_in(name))
        # The sizes of the small profile, by the way that a small host takes them.
        small = units.text(f"{self.name}-small.conf")
        (self.etc / f"{self.name}.conf").write_text(small)
        (self.etc / f"{self.name}.conf").chmod(0o644)

    def _copy_binaries(self) -> None:
        root = wheel_root()
        target = self.home / root.parent.name / root.name
        shutil.copytree(root, target, symlinks=True, ignore=shutil.ignore_patterns("include"))
        libraries = root.parent.with_name(root.parent.name + ".libs")
        if libraries.is_dir():
            shutil.copytree(libraries, self.home / libraries.name, symlinks=True)
        target.parent.chmod(0o755)
        self.bin = target / "bin"

    def install(self, name: str, text: str) -> None:
        """A file of the closure's share directory."""
        path = self.share / name
        path.write_text(text)
        path.chmod(0o644)

    def stood_in(self, name: str) -> str:
        """A rendered file with what this machine has instead."""
        text = units.text(name)
        replaced: list[tuple[str, str]] = []
        if name == f"{self.name}.conf":
            replaced = [
                (units.SHARE, f"{self.share}/"),
                (f"'/run/{self.name}'", f"'{self.sockets}'"),
                ("'/etc/kalshi/", f"'{self.etc}/"),
                (f"port = {5432 if 'timescale' in name else 5433}\n", f"port = {self.port}\n"),
                ("listen_addresses = '0.0.0.0'", "listen_addresses = '127.0.0.1'"),
            ]
            if not self.tls:
                replaced.append(("ssl = on\n", "ssl = off\n"))
            if "timescaledb" in name:
                replaced.append(("shared_preload_libraries = 'timescaledb'\n", ""))
        elif name == f"{self.name}-hba.conf":
            replaced = [("10.0.3.20/32", "127.0.0.1/32")]
            if not self.tls:
                replaced.append(("hostssl ", "host    "))
        elif name == f"{self.name}-ident.conf":
            line = "kalshi   kalshi-gatherer      kalshi_gatherer\n"
            gatherers = dict.fromkeys((self.me, OTHERS[0]))
            replaced = [
                (f"kalshi   {self.name}   ", f"kalshi   {self.server_account}   "),
                (line, "".join(line.replace("kalshi-gatherer", who) for who in gatherers)),
            ]
        for old, new in replaced:
            assert old in text, f"{name} has no {old!r}"
            text = text.replace(old, new)
        return text

    @property
    def server_account(self) -> str:
        """The server's account as the operating system calls it."""
        return pwd.getpwuid(self.server.uid).pw_name

    def commands(self, unit_name: str) -> list[list[str]]:
        """The ExecStart lines of a unit, for this machine."""
        found: list[list[str]] = []
        for line in units.values(units.parse(units.text(unit_name)), "Service", "ExecStart"):
            for old, new in (
                ("/nix/var/nix/profiles/kalshi-postgres/bin/", f"{self.bin}/"),
                (units.SHARE, f"{self.share}/"),
                ("%S", str(self.state)),
                ("%t", str(self.run)),
                ("%d", str(self.credentials)),
            ):
                line = line.replace(old, new)
            found.append([re.sub(r"^543[23]$", str(self.port), word) for word in shlex.split(line)])
        return found

    def identity(self, who: Account, *, member: bool) -> dict[str, int | list[int]]:
        """How a child becomes an account, and whether it is in the server's group."""
        groups = [self.server.gid] if member else []
        return (
            {"user": who.uid, "group": who.gid, "extra_groups": groups} if os.geteuid() == 0 else {}
        )

    def as_account(self, who: Account, words: list[str], *, member: bool = False) -> Answer:
        """Run a program as an account."""
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            cwd="/",
            stdin=subprocess.DEVNULL,
            env={"PATH": os.defpath, "LC_ALL": "C", "CREDENTIALS_DIRECTORY": str(self.credentials)},
            **self.identity(who, member=member),  # type: ignore[call-overload]
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    def init(self) -> None:
        """What the -init unit does, once."""
        own = self._directory(f"run/{self.name}-init", 0o700)
        self._directory(f"state/{self.name}", 0o700)
        for words in self.commands(f"{self.name}-init.service"):
            log = self.home / "init.log"
            if words[-1] == "start":  # the server outlives pg_ctl and must not hold our pipe
                log.touch()
                give(log, self.server)
                words[1:1] = [f"--log={log}"]
            answer = self.as_account(self.server, words)
            told = log.read_text() if log.exists() else ""
            assert answer.code == 0, f"{words}: {answer.out}{answer.err}{told}"
        assert list(own.iterdir()) == []

    def start(self) -> None:
        """What the database's own unit does, without systemd's notice."""
        if not self.sockets.exists():
            self._directory(f"run/{self.name}", 0o755)
        (words,) = self.commands(f"{self.name}.service")
        log = (self.home / "server.log").open("ab")
        self._process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env={"PATH": os.defpath, "LC_ALL": "C"},
            **self.identity(self.server, member=False),  # type: ignore[call-overload]
        )
        log.close()
        deadline = time.monotonic() + START_TIMEOUT_S
        while self.psql("SELECT 1").code != 0:
            assert self._process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.1)

    def said(self) -> str:
        """The server's log."""
        return (self.home / "server.log").read_text()

    def set_roles(self) -> Answer:
        """What the -roles unit does."""
        (words,) = self.commands(f"{self.name}-roles.service")
        return self.as_account(self.server, words)

    def credential(self, name: str, content: str) -> None:
        """What LoadCredentialEncrypted would put there."""
        path = self.credentials / name
        path.write_text(content)
        give(path, self.server)

    def psql(
        self,
        sql: str,
        *,
        account: Account | None = None,
        role: str = "postgres",
        database: str = "postgres",
        member: bool = True,
    ) -> Answer:
        """One statement over the socket, by default as the superuser.

        Every account is a member of the server's group unless told otherwise: the gatherer's unit
        makes it one, and of a stranger it shows that the group alone is not enough.
        """
        words = ["-X", "-A", "-t", "-q", "-h", str(self.sockets), "-p", str(self.port)]
        words += ["-U", role, "-d", database, "-c", sql]
        psql = str(self.bin / "psql")
        return self.as_account(account or self.server, [psql, *words], member=member)

    def reload(self, name: str, text: str) -> None:
        """Another access file, taken up without a restart."""
        self.install(name, text)
        assert self.psql("SELECT pg_reload_conf()").code == 0
        time.sleep(0.5)

    def stop(self) -> int:
        """The unit's own KillSignal; the exit code."""
        assert self._process is not None
        unit = units.parse(units.text(f"{self.name}.service"))
        self._process.send_signal(signal.Signals[units.value(unit, "Service", "KillSignal")])
        return self._process.wait(timeout=60)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=30)
        shutil.rmtree(self.home, ignore_errors=True)
