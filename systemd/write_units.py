"""Write, or compare, the files that nix/units.nix renders: JSON of name -> text on standard input.

With --check nothing is written and every difference is named; the exit code is then 1. Files of the
directory that nix/units.nix does not know are differences too, except this program and the make
rules.
"""  # noqa: INP001 - a program, not a package

from __future__ import annotations

import json
import sys
from pathlib import Path

OWN = {"write_units.py", "systemd.mk"}


def differences(wanted: dict[str, str], directory: Path) -> list[str]:
    """What is missing, different or too much."""
    there = {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}
    found = [f"{name}: missing" for name in sorted(wanted.keys() - there.keys())]
    found += [f"{name}: not rendered" for name in sorted(there.keys() - wanted.keys() - OWN)]
    found += [
        f"{name}: differs"
        for name in sorted(wanted.keys() & there.keys())
        if there[name] != wanted[name].encode()
    ]
    return found


def main(arguments: list[str]) -> int:
    """`write_units.py [--check] DIRECTORY`; the exit code."""
    check, directory = "--check" in arguments, Path(arguments[-1])
    wanted = json.load(sys.stdin)
    faults = differences(wanted, directory)
    if check:
        for fault in faults:
            print(f"{directory / fault}", file=sys.stderr)
        if faults:
            print("hint: edit nix/units.nix, then run `make units`", file=sys.stderr)
        return 1 if faults else 0
    for name, text in wanted.items():
        (directory / name).write_bytes(text.encode())
    for fault in faults:
        if fault.endswith("not rendered"):
            (directory / fault.split(":")[0]).unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
