"""Hosts behind Shell whose scripts are really run: by this machine's sh, each in a root of its own.

A path of a host (/etc, /run, /nix) becomes one below its root. Every program that a script calls
is wrapped: the wrapper writes down its arguments, and may kill the whole script before or after the
n-th call, as a power cut would. Three programs are stand-ins, because they need a booted host:

- `systemd-creds` writes the name and the bytes in base64 and refuses another name; it can be told
  to fail while it repeats what it read. The real one is met by tests/onhost.
- `systemctl` keeps a list of units that are there, and can be told which do not start.
- `psql` asks the test whether an end of a line takes what the password file says.
"""

from __future__ import annotations

import asyncio
import base64
import os
import re
import shutil
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deploy.errors import UnreachableError
from deploy.fleet import Fleet, Host
from deploy.shell import COPY_TIMEOUT_S, SHELL_TIMEOUT_S, Answer

PROGRAMS = ("cat", "sha256sum", "cut", "awk", "grep", "cp", "mv", "rm", "mkdir", "chmod", "sync",
            "stat", "openssl", "hostname", "cmp")  # fmt: skip
PLACES = re.compile(r"(?<![\w/.])/(etc|run|nix)/")

WRAPPER = """#!/bin/sh
# NAME: writes down how it was called, and kills the script where it is told to.
echo "NAME $*" >> "$SIM/calls"
n=1
while ! (set -C; : > "$SIM/counts/$n") 2>/dev/null; do n=$((n + 1)); done
read -r die < "$SIM/die"
[ "$n-before" != "$die" ] || kill -9 0
code=0
REAL "$@" || code=$?
[ "$n-after" != "$die" ] || kill -9 0
exit $code
"""
CREDS = """#!/bin/sh
# Stand-in for systemd-creds: what it "encrypts" is bound to a name, and is not for reading.
verb=$1; name=${2#--name=}; from=$3; to=$4
if [ -e "$SIM/creds-$verb-fails" ]; then /bin/cat >&2; /bin/cat "$from" >&2; exit 1; fi
if [ "$verb" = encrypt ]; then
    { echo "$name"; /usr/bin/base64; } > "$to"
else
    [ "$(/usr/bin/head -n 1 "$from")" = "$name" ] || { echo "the name is another" >&2; exit 1; }
    /usr/bin/tail -n +2 "$from" | /usr/bin/base64 -d
fi
"""
SYSTEMCTL = """#!/bin/sh
# Stand-in for systemctl: units are files; one whose name is in `broken` does not start.
verb=$1; shift
for unit; do
    case "$unit" in --*) continue ;; esac
    [ -e "$SIM/units/$unit" ] || exit 4
    case "$verb" in
        is-active) [ "$(/bin/cat "$SIM/units/$unit")" = active ] || exit 3 ;;
        restart | try-restart)
            echo "$verb $unit" >> "$SIM/restarts"
            if "$SIM/starts" "$unit"; then echo active; else echo failed; fi > "$SIM/units/$unit"
            [ "$(/bin/cat "$SIM/units/$unit")" = active ] || exit 1 ;;
    esac
done
"""
PSQL = """#!/bin/sh
# Stand-in for psql: a line of the password file must be the one that the server knows.
for end; do :; done
end=${end#*@}; end=${end%/*}
/bin/grep "^$end:" "$PGPASSFILE" | /bin/grep -qxF -f "$SERVERS"
"""


@dataclass
class SimHost:
    """One host: its root, and what is done to it."""

    name: str
    root: Path
    units: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for place in ("bin", "sim/units", "etc/kalshi", "etc/credstore.encrypted", "run"):
            (self.root / place).mkdir(parents=True)
        for name in PROGRAMS:
            self._program(name, WRAPPER.replace("REAL", str(shutil.which(name))))
        for name, text in (("systemd-creds", CREDS), ("systemctl", SYSTEMCTL)):
            self._program(f"{name}.stand-in", text)
            self._program(name, WRAPPER.replace("REAL", str(self.root / f"bin/{name}.stand-in")))
        self.starts("true")
        for unit in self.units:
            (self.root / "sim/units" / unit).write_text("active\n")
        self.die("")

    def _program(self, name: str, text: str) -> None:
        place = self.root / "bin" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text.replace("NAME", name))
        place.chmod(0o755)

    def starts(self, condition: str) -> None:
        """A line of sh that says whether a unit ($1) comes up."""
        place = self.root / "sim/starts"
        place.write_text(f"#!/bin/sh\n{condition}\n")
        place.chmod(0o755)

    def die(self, where: str) -> None:
        """ "3-before", "3-after", or "" for nowhere; the count begins anew."""
        (self.root / "sim/die").write_text(f"{where}\n")
        shutil.rmtree(self.root / "sim/counts", ignore_errors=True)
        (self.root / "sim/counts").mkdir()

    @property
    def count(self) -> int:
        """How many programs were called since then."""
        return len(list((self.root / "sim/counts").iterdir()))

    def calls(self) -> list[str]:
        """How programs were called."""
        place = self.root / "sim/calls"
        return place.read_text().splitlines() if place.exists() else []

    def restarts(self) -> list[str]:
        place = self.root / "sim/restarts"
        return place.read_text().splitlines() if place.exists() else []

    def credential(self, name: str) -> bytes | None:
        """What a service would find under a name, decrypted; None where there is nothing."""
        place = self.root / "etc/credstore.encrypted" / name
        if not place.exists():
            return None
        head, _, body = place.read_bytes().partition(b"\n")
        assert name.startswith(head.decode()), (name, head)
        return base64.b64decode(body)

    def fail(self, verb: str, *, on: bool = True) -> None:
        """Have systemd-creds refuse, and repeat what it read on standard error."""
        place = self.root / f"sim/creds-{verb}-fails"
        place.touch() if on else place.unlink(missing_ok=True)


@dataclass
class SimShell:
    """Shell over such hosts. `seen`: everything that came back and every script."""

    hosts: dict[str, SimHost]
    seen: list[str] = field(default_factory=list)
    lost: set[str] = field(default_factory=set)
    cut_bytes: int | None = None  # of standard input, after which the line is gone
    before: Callable[[str, str], None] = lambda host, script: None

    async def run(
        self, host: str, script: str, *, stdin: bytes = b"", timeout_s: float = SHELL_TIMEOUT_S
    ) -> Answer:
        self.before(host, script)
        if host in self.lost:
            raise UnreachableError(f"{host}: the connection broke: {stdin.decode()}")
        sim = self.hosts[host]
        self.seen.append(script)
        script = PLACES.sub(lambda found: f"{sim.root}{found[0]}", script)
        process = await asyncio.create_subprocess_exec(
            "/bin/sh", "-euc", script,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE, start_new_session=True,
            env={"PATH": f"{sim.root}/bin", "SIM": f"{sim.root}/sim", "LC_ALL": "C",
                 "SERVERS": f"{sim.root}/sim/servers", "OPENSSL_CONF": "/etc/ssl/openssl.cnf"},
        )  # fmt: skip
        out, err = await process.communicate(stdin[: self.cut_bytes])
        if process.returncode == -signal.SIGKILL:
            raise UnreachableError(f"{host}: the connection broke: {err.decode()}")
        assert process.returncode is not None
        return Answer(process.returncode, out.decode(), err.decode())

    async def copy(
        self, host: str, paths: Sequence[str], *, timeout_s: float = COPY_TIMEOUT_S
    ) -> Answer:
        raise NotImplementedError


def fleet_of(root: Path, gatherers: int = 3, *, installed: bool = True) -> tuple[SimShell, Fleet]:
    """A deduplicator and gatherers, each with its units unless nothing is installed."""
    names = [f"gatherer-{n + 1}" for n in range(gatherers)]
    fleet = Fleet(
        (
            Host("deduplicator", "deduplicator", "10.0.3.10"),
            *(Host(name, "gatherer", f"10.0.1.1{n}") for n, name in enumerate(names)),
        ),
        "",
        "us-east-1",
    )
    units = ("kalshi-gatherer", "kalshi-timescaledb-roles", "kalshi-postgres-roles",
             "kalshi-timescaledb", "kalshi-postgres")  # fmt: skip
    hosts = {name: SimHost(name, root / name, units if installed else ()) for name in names}
    deduplicator = SimHost(
        "deduplicator", root / "deduplicator", ("kalshi-deduplicator",) if installed else ()
    )
    deduplicator._program("../nix/var/nix/profiles/kalshi-postgres/bin/psql", PSQL)
    return SimShell({"deduplicator": deduplicator, **hosts}), fleet


def everything(shell: SimShell, *errors: BaseException) -> str:
    """All that anybody but a credential's owner could see: scripts, calls, files in clear, errors
    with the errors behind them."""
    found = list(shell.seen)
    for error in errors:
        seen: BaseException | None = error
        while seen is not None:
            found += [str(seen), repr(seen)]
            seen = seen.__cause__ or seen.__context__
    for host in shell.hosts.values():
        for folder, _, files in os.walk(host.root):
            for file in files:
                found.append((Path(folder) / file).read_bytes().decode(errors="replace"))
    return "\n".join(found)
