"""The services' closures for aarch64: wheels of nix/wheels.json by hash, unpacked as Nix does it.

Each wheel is fetched by pip from whatever index it is configured for, checked against its hash and
its tags, and kept. `nix/assemble.py` makes the directory. What is not as in Nix: no bytecode is
written (the first import does, on the emulated Python) and nothing is patched (the tree has a
loader and libraries where Debian has them).
"""

from __future__ import annotations

import compileall
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from unittest import mock

from nix import assemble, wheels
from tests.aarch64.place import ROOT, CannotRunError, cache, pinned, run

SYSTEM = "aarch64-linux"
SERVICES = ("gatherer", "deduplicator")
MACHINES = {0xB7: "aarch64", 0x3E: "x86_64"}  # e_machine of an ELF file

Entry = Mapping[str, str]


class RefusedWheelError(Exception):
    """A wheel that is not the pinned one, or not one for the system."""


def entries(service: str, system: str = SYSTEM) -> list[Entry]:
    """The wheels of one closure."""
    return list(pinned()["services"][service]["wheels"][system])


def members(service: str) -> list[str]:
    """The project's own parts of one closure, as folders of python/."""
    return list(pinned()["services"][service]["members"])


def file_name(entry: Entry) -> str:
    """The wheel file of an entry."""
    return "-".join(entry[k] for k in ("name", "version", "python", "abi", "platform")) + ".whl"


def judge(file: Path, entry: Entry, system: str = SYSTEM) -> None:
    """Raise RefusedWheelError unless this is the pinned file and one for the system."""
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != entry["sha256"]:
        raise RefusedWheelError(
            f"{entry['name']}: {file.name} has sha256 {found[:16]}..., pinned is"
            f" {entry['sha256'][:16]}..."
        )
    if not wheels.fits(file.name, system):
        raise RefusedWheelError(f"{entry['name']}: {file.name} does not run on {system}")


def pip_fetch(requirements: str, options: Sequence[str], command: str, target: Path) -> None:
    """Fetch by hash, binary files only."""
    listed = cache() / "requirements.txt"
    listed.write_text(requirements)
    try:
        run(
            *(sys.executable, "-m", "pip", command, "--quiet", "--disable-pip-version-check"),
            *("--no-deps", "--require-hashes", "--only-binary", ":all:", *options),
            *("--requirement", listed, "--dest" if command == "download" else "--target", target),
        )
    except CannotRunError as error:
        last = str(error).splitlines()[-1]
        raise CannotRunError(f"wheels cannot be fetched: {last}") from None
    finally:
        listed.unlink()


def fetch(wanted: Sequence[Entry], system: str = SYSTEM) -> dict[str, Path]:
    """The wheel files by distribution, fetched where they are not kept yet, and judged."""
    kept = cache() / "wheels"
    kept.mkdir(exist_ok=True)
    missing = [entry for entry in wanted if not (kept / file_name(entry)).exists()]
    if missing:
        lines = [f"{e['name']}=={e['version']} --hash=sha256:{e['sha256']}\n" for e in missing]
        python = pinned()["python"]
        abis = ("cp" + python.replace(".", ""), "abi3", "none")
        options = [
            *("--implementation", "cp", "--python-version", python),
            *(part for abi in abis for part in ("--abi", abi)),
            *(part for name in wheels.platforms(system) for part in ("--platform", name)),
        ]
        arriving = cache() / "wheels-new"
        shutil.rmtree(arriving, ignore_errors=True)
        arriving.mkdir()
        pip_fetch("".join(lines), options, "download", arriving)
        for file in arriving.glob("*.whl"):
            file.replace(kept / file.name)
        arriving.rmdir()
    found = {entry["name"]: kept / file_name(entry) for entry in wanted}
    for entry in wanted:
        judge(found[entry["name"]], entry, system)
    return found


def assembled(service: str, files: Sequence[Path], prefix: Path) -> Path:
    """A closure's directory by `nix/assemble.py`; its Python is the one of the root tree."""
    plan = {
        "python": f"/usr/bin/python{pinned()['python']}",
        "wheels": [str(file) for file in files],
        "omit": [],
        "sources": [str(ROOT / "python" / member / "src") for member in members(service)],
        "commands": {},
    }
    with (
        mock.patch.dict(os.environ, PLAN=json.dumps(plan)),
        mock.patch.object(sys, "argv", ["assemble", str(prefix)]),
        # This Python's bytecode is of no use to that one, and its grammar may be older.
        mock.patch.object(compileall, "compile_dir", return_value=True),
    ):
        assemble.main()
    return prefix


def machine_of(file: Path) -> str | None:
    """The processor that a program or library is for; None for any other file."""
    with file.open("rb") as handle:
        head = handle.read(20)
    if len(head) < 20 or head[:4] != b"\x7fELF":
        return None
    number = int.from_bytes(head[18:20], "little")
    return MACHINES.get(number, f"machine {number}")


def native_files(folder: Path) -> dict[str, list[str]]:
    """Programs and libraries under a folder, by processor."""
    found: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            machine = machine_of(path)
            if machine is not None:
                found.setdefault(machine, []).append(path.relative_to(folder).as_posix())
    return found


def size_bytes(folder: Path) -> int:
    """Bytes of all files under a folder."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
