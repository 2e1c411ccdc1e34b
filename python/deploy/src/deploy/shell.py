"""Words to a host and closures to its store, over SSH.

Purpose: the one interface through which everything here reaches a host (`Shell`), and its real
form (`Ssh`): scripts as the administrator, with sudo; store paths as the user that may do nothing
else. Tests put a simulated fleet behind the same interface.

What holds:
- Host keys are known beforehand (`known_hosts`); an unknown or another one is refused by ssh.
- Scripts stand on the command line and are seen by whoever lists processes; secrets go through
  `stdin` only, and what was sent there is in no error and no log.
- Closures go over ssh-ng and nothing else: the host's daemon then checks their signatures.
- Each call has a deadline. A call that was cut off may have had its effect: scripts are written so
  that saying them twice does no harm.

Does not do: deciding what is said (steps), remembering (journal).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from deploy.errors import UnreachableError

DEPLOY_USER: Final = "deploy"  # of the hosts: sends signed paths and nothing else
SSH_LOST: Final = 255  # ssh's own exit code: no connection, or it broke
OUTPUT_BYTES_MAX: Final = 4 << 20
CONNECT_TIMEOUT_S: Final = 10
ALIVE_S: Final = 5  # a line that says nothing for three times this is lost
SHELL_TIMEOUT_S: Final = 60.0
COPY_TIMEOUT_S: Final = 1800.0
KILL_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: exit code and both outputs."""

    code: int
    out: str
    err: str


class Shell(Protocol):
    """How hosts are reached; by name, as topology.toml names them."""

    async def run(
        self, host: str, script: str, *, stdin: bytes = b"", timeout_s: float = SHELL_TIMEOUT_S
    ) -> Answer:
        """Run a script of /bin/sh as root with `set -eu`.

        Raises:
            UnreachableError: no answer in time; the script may have run.
        """

    async def copy(
        self, host: str, paths: Sequence[str], *, timeout_s: float = COPY_TIMEOUT_S
    ) -> Answer:
        """Copy store paths with all they need; what the host has already is not sent.

        Raises:
            UnreachableError: no answer in time; some of the paths may be there.
        """


@dataclass(frozen=True, slots=True)
class Ssh:
    """Hosts over OpenSSH and Nix.

    `addresses`: where each host is. `store`: the Nix store to copy from ("" for the machine's own).
    `control`: a directory, for this user only, of connections that are kept between calls.
    """

    addresses: Mapping[str, str]
    known_hosts: Path
    identity: Path
    deploy_identity: Path
    control: Path
    store: str = ""
    admin: str = "admin"
    deploy_user: str = DEPLOY_USER
    substitute: bool = True
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    def _options(self, identity: Path) -> list[str]:
        return [
            *("-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", "LogLevel=ERROR"),
            *("-o", f"UserKnownHostsFile={self.known_hosts}"),
            *("-o", "GlobalKnownHostsFile=/dev/null"),
            *("-o", "IdentitiesOnly=yes", "-o", f"ConnectTimeout={CONNECT_TIMEOUT_S}"),
            *("-o", f"ServerAliveInterval={ALIVE_S}", "-o", "ServerAliveCountMax=3"),
            *("-i", str(identity)),
        ]  # fmt: skip

    def command(self, host: str, script: str) -> list[str]:
        """The command line of `run`."""
        kept = ("-o", "ControlMaster=auto", "-o", f"ControlPath={self.control}/%C")
        words = ("sudo", "-n", "/bin/sh", "-euc", script)
        return [
            *("ssh", *self._options(self.identity), *kept, "-o", "ControlPersist=60"),
            *(f"{self.admin}@{self.addresses[host]}", "--", shlex.join(words)),
        ]

    def copy_command(self, host: str, paths: Sequence[str]) -> list[str]:
        """The command line of `copy`."""
        source = ("--from", self.store) if self.store else ()
        public = ("--substitute-on-destination",) if self.substitute else ()
        return [
            *("nix", "--extra-experimental-features", "nix-command", "copy", *source, *public),
            *("--to", f"ssh-ng://{self.deploy_user}@{self.addresses[host]}", *paths),
        ]

    async def run(
        self, host: str, script: str, *, stdin: bytes = b"", timeout_s: float = SHELL_TIMEOUT_S
    ) -> Answer:
        """As Shell.run."""
        answer = await self._call(host, self.command(host, script), stdin, timeout_s, {})
        if answer.code == SSH_LOST:
            raise UnreachableError(f"{host}: {answer.err.strip() or 'the connection broke'}")
        return answer

    async def copy(
        self, host: str, paths: Sequence[str], *, timeout_s: float = COPY_TIMEOUT_S
    ) -> Answer:
        """As Shell.copy."""
        options = {"NIX_SSHOPTS": " ".join(self._options(self.deploy_identity))}
        return await self._call(host, self.copy_command(host, paths), b"", timeout_s, options)

    async def _call(
        self,
        host: str,
        command: Sequence[str],
        stdin: bytes,
        timeout_s: float,
        more: Mapping[str, str],
    ) -> Answer:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**self.environment, **more},
            start_new_session=True,  # Ctrl-C is the deploy's to hear, not its children's
        )
        try:
            async with asyncio.timeout(timeout_s):
                out, err = await process.communicate(stdin)
        except TimeoutError:
            raise UnreachableError(f"{host}: no answer within {timeout_s:.0f} s") from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(process.wait(), KILL_S)
        assert process.returncode is not None
        return Answer(
            process.returncode,
            out[:OUTPUT_BYTES_MAX].decode(errors="replace"),
            err[-OUTPUT_BYTES_MAX:].decode(errors="replace"),
        )
