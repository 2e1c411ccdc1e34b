"""What of the machine that built it a store path still needs or names.

Purpose: judge a closure's own files. Bytes inside a wheel's compiled files are their makers' and
stay as they are; what the loader and the kernel read (interpreter, library path, needed libraries,
the first line of a script) and what the project wrote must lie in the store.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

STORE = "/nix/store/"
ELF_KINDS = {2, 3}  # programs and libraries; objects for a linker (1) are never loaded
SHELLS = ("#!/bin/sh", "#! /bin/sh")  # the one thing that every host has


def patchelf(question: str, file: Path) -> list[str]:
    """One answer of patchelf; none for what a file of this kind does not have."""
    done = subprocess.run(
        ["patchelf", f"--print-{question}", file], capture_output=True, text=True, check=False
    )
    return done.stdout.split() if done.returncode == 0 else []


def elf_traces(file: Path, provided: set[str]) -> Iterator[str]:
    """Where a program or library would look outside the store."""
    for interpreter in patchelf("interpreter", file):
        if not interpreter.startswith(STORE):
            yield f"interpreter {interpreter}"
    paths = [path for answer in patchelf("rpath", file) for path in answer.split(":")]
    for path in paths:
        if path and not path.startswith((STORE, "$ORIGIN")):
            yield f"library path {path}"
    for needed in patchelf("needed", file):
        if needed not in provided:
            yield f"needs {needed}, which nothing in the closure is"


def file_traces(file: Path, provided: set[str]) -> Iterator[str]:
    """What one file needs of the machine it lies on."""
    with file.open("rb") as opened:
        head = opened.read(256)
    if head[:4] == b"\x7fELF":
        if head[16] in ELF_KINDS:
            yield from elf_traces(file, provided)
    elif head[:2] == b"#!" and os.access(file, os.X_OK):
        line = head.split(b"\n")[0].decode(errors="replace")
        if not line.startswith((f"#!{STORE}", *SHELLS)):
            yield f"starts with {line}"


def files_of(folders: Sequence[Path]) -> Iterator[Path]:
    """Every regular file."""
    for folder in folders:
        yield from (path for path in sorted(folder.rglob("*")) if path.is_file())


def traces(
    own: Path, closure: Sequence[Path], written: Sequence[str], words: set[str]
) -> list[str]:
    """What is wrong with the path `own`, whose closure lies in the given folders.

    `written` are its parts that the project wrote: they may name no place outside the store.
    `words` are names of the building machine, which no file may hold.
    """
    provided = {path.name for path in files_of(closure)}
    foreign = re.compile(rb"(?<![\w.])/(?:usr|home|build|opt)/")
    found: list[str] = []
    for file in files_of([own]):
        if file.is_symlink():
            continue
        name = file.relative_to(own).as_posix()
        found += [f"{name}: {trace}" for trace in file_traces(file, provided)]
        body = file.read_bytes()
        found += [f"{name}: names {word}" for word in words if word.encode() in body]
        if name.startswith(tuple(written)) and (met := foreign.search(body)):
            found.append(f"{name}: names {body[met.start() : met.start() + 40]!r}")
    for link in own.rglob("*"):
        if link.is_symlink() and not str(link.readlink()).startswith((STORE, ".")):
            target = link.readlink()
            if target.is_absolute():
                found.append(f"{link.relative_to(own)}: leads to {target}")
    return found
