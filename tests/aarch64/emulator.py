"""Programs of the root tree under qemu, in namespaces that take every mount and process with them.

Nothing is registered with the kernel (binfmt_misc stays as it is): qemu is called by name, so a
program inside cannot start another one. The network is the machine's: the servers that the
emulated code talks to run natively on the loopback interface.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.aarch64.answering import ANSWER
from tests.aarch64.place import ROOT

CPU = "neoverse-n1"  # the core of Graviton2
TRIAL = Path("/trial")  # where the run's own folder lies inside
TIMEOUT_S = 1800
STOP_TIMEOUT_S = 10

# Ended by the kernel when this process ends, kill -9 included.
TIED = ("setpriv", "--pdeathsig", "KILL")
INSIDE = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8"}
ENTER = """
set -e
tree=$1 qemu=$2 folder=$3; shift 3
mount --bind "$folder" "$tree/trial"
mount --bind "$qemu" "$tree/qemu"
mount -t proc -o nosuid,nodev,noexec proc "$tree/proc"
mount -t tmpfs -o mode=1777 tmp "$tree/tmp"
for file in null urandom random; do mount --bind "/dev/$file" "$tree/dev/$file"; done
cd "$tree"
exec chroot "$tree" /qemu "$@"
"""


class EmulationError(Exception):
    """An emulated or native process did not do what it was asked."""


def answers_of(output: str, asked: int, said: str) -> list[dict[str, Any]]:
    """The answers among what a process wrote, one for each question."""
    lines = [line for line in output.splitlines() if line.startswith(ANSWER)]
    if len(lines) != asked:
        raise EmulationError(f"{len(lines)} answers to {asked} questions: {said[-3000:]}")
    return [dict(json.loads(line.removeprefix(ANSWER))) for line in lines]


def interpreter(closure: str) -> str:
    """A closure's Python, as the inside knows it."""
    return str(TRIAL / "closures" / closure / "bin" / "python3")


@dataclass(frozen=True)
class Emulator:
    """A root tree, qemu, and the folder that both sides see."""

    tree: Path
    qemu: Path
    folder: Path

    def command(self, *command: str, cpu: str = CPU) -> list[str]:
        """How to start a program of the tree (or of `folder`, as /trial) on the emulated core."""
        spaces = ("--mount", "--propagation", "private", "--pid", "--fork", "--kill-child=KILL")
        return [
            *(*TIED, "unshare", *spaces, "--", "sh", "-c", ENTER, "sh"),
            *(str(self.tree), str(self.qemu), str(self.folder), "-cpu", cpu, *command),
        ]

    def run(
        self,
        *command: str,
        cpu: str = CPU,
        environment: Mapping[str, str] | None = None,
        text: str = "",
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end."""
        return subprocess.run(
            self.command(*command, cpu=cpu),
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
            env={**INSIDE, **(environment or {})},
            # Ctrl-C ends this process only, which ends the others in order.
            start_new_session=True,
        )

    def python(self, closure: str, *arguments: str, **options: Any) -> Any:
        """A closure's Python, as its commands call it, to its end."""
        return self.run(interpreter(closure), "-sP", *arguments, **options)

    def start(
        self, closure: str, *arguments: str, environment: Mapping[str, str], log: Path
    ) -> subprocess.Popen[bytes]:
        """A closure's Python that goes on running; what it says goes to `log`."""
        with log.open("ab") as out:
            return subprocess.Popen(
                self.command(interpreter(closure), "-sP", *arguments),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**INSIDE, **environment},
                start_new_session=True,
            )

    def ask(
        self,
        closure: str,
        module: str,
        questions: Sequence[Mapping[str, Any]],
        environment: Mapping[str, str] | None = None,
    ) -> list[dict[str, Any]]:
        """A module of this package inside: a line of JSON in, a line of JSON out."""
        done = self.python(
            closure,
            *("-m", f"tests.aarch64.{module}"),
            environment={"PYTHONPATH": str(TRIAL / "checks"), **(environment or {})},
            text="".join(json.dumps(question) + "\n" for question in questions),
        )
        return answers_of(done.stdout, len(questions), done.stderr + done.stdout)


def native(
    module: str,
    questions: Sequence[Mapping[str, Any]],
    environment: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """The same module on this machine's own processor and Python."""
    done = subprocess.run(
        [*TIED, sys.executable, "-m", f"tests.aarch64.{module}"],
        input="".join(json.dumps(question) + "\n" for question in questions),
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", **(environment or {})},
        start_new_session=True,
    )
    return answers_of(done.stdout, len(questions), done.stderr + done.stdout)


@contextmanager
def serving(
    *arguments: str, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A native server in Python for as long as the context lasts."""
    child = subprocess.Popen(
        [*TIED, sys.executable, *arguments],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        if child.stdout is not None:
            child.stdout.close()
