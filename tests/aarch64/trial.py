"""One run: the tree, the closures, the folder that both sides see, and what is made on the way."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from runtime.embedded import EmbeddedPostgres
from tests.aarch64 import closures
from tests.aarch64.emulator import TRIAL, Emulator
from tests.aarch64.place import ROOT, Place, cache, locked, require

# What the emulated side runs of tests/, beside the closure's own code.
COPIED = (
    *("__init__.py", "aarch64/__init__.py", "aarch64/answering.py", "aarch64/side_machine.py"),
    *("aarch64/side_capture.py", "aarch64/side_lake.py", "aarch64/side_merge.py"),
    *("bench/__init__.py", "bench/merge.py"),
    *("bench/clients.py", "bench/generator.py", "bench/recorder.py"),
)


class FailedError(Exception):
    """A check did not hold; says what was seen."""


def expect(condition: object, message: str) -> None:
    """Raise FailedError with `message` unless `condition` holds."""
    if not condition:
        raise FailedError(message)


class Trial:
    """Everything that the checks share. A context: afterwards only the cache is left."""

    def __init__(self) -> None:
        self.stack = contextlib.ExitStack()
        self.seconds: dict[str, float] = {}
        self.wheels: dict[str, dict[str, Path]] = {}
        self.server: EmbeddedPostgres | None = None
        self.captures: list[Any] | None = None  # made by the first check that needs them
        self.service: tuple[int, str, Any] | None = None
        self.merged: tuple[dict[str, Any], dict[str, Any]] | None = None
        self.lakes: tuple[dict[str, Any], dict[str, Any]] | None = None
        self.s3_control: tuple[str, str] | None = None

    def __enter__(self) -> Self:
        require()
        self.folder = cache() / "run"
        try:
            self.stack.enter_context(locked())
            self._fresh()
            self.stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
            with self.timed("place"):
                self.place = Place()
            self.emulator = Emulator(self.place.tree, self.place.qemu, self.folder)
            with self.timed("fetch"):
                self.wheels = {s: closures.fetch(closures.entries(s)) for s in closures.SERVICES}
            with self.timed("assemble"):
                for service, files in self.wheels.items():
                    prefix = self.folder / "closures" / service
                    closures.assembled(service, list(files.values()), prefix)
            for name in COPIED:
                target = self.folder / "checks" / "tests" / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / "tests" / name, target)
        except BaseException:
            self.stack.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stack.close()

    def _fresh(self) -> None:
        """An empty folder; what a run that was killed left goes, halves of the cache too."""
        for name in ("run", "tree-new", "qemu-new", "wheels-new", "flask-new"):
            shutil.rmtree(cache() / name, ignore_errors=True)
        self.folder.mkdir()

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Note how long something took."""
        begun = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - begun

    def postgres(self) -> EmbeddedPostgres:
        """A native server on the loopback interface, started when it is first asked for."""
        if self.server is None:
            self.server = EmbeddedPostgres()
            self.stack.callback(self.server.close_blocking)
            self.server.start_blocking()
        return self.server

    def prefix(self, service: str) -> Path:
        """A closure's directory on this side."""
        return self.folder / "closures" / service

    def inside(self, path: Path) -> str:
        """A path below `folder` as the emulated side knows it."""
        return str(TRIAL / path.relative_to(self.folder))
