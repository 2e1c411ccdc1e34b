"""nix/assemble.py: how a wheel's files come to lie in a closure."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path

import pytest

from nix import assemble


def wheel(path: Path, files: dict[str, tuple[bytes, int]]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, (body, mode) in files.items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = (stat.S_IFREG | mode) << 16
            archive.writestr(entry, body)
    return path


def unpacked(tmp_path: Path, *wheels: Path, omit: tuple[str, ...] = ()) -> dict[str, int]:
    """Names below the prefix and their modes."""
    site, prefix = tmp_path / "out" / "site", tmp_path / "out"
    for path in wheels:
        assemble.unpack(path, site, prefix, omit)
    files = [path for path in prefix.rglob("*") if path.is_file()]
    return {str(path.relative_to(prefix)): path.stat().st_mode & 0o777 for path in files}


def test_files_land_with_their_execute_bit_and_no_other_mode(tmp_path: Path) -> None:
    files = {
        "one/__init__.py": (b"", 0o600),
        "one/bin/server": (b"\x7fELF", 0o700),
        "one-1.data/purelib/two.py": (b"", 0o644),
        "one-1.data/data/share/three": (b"", 0o644),
        "one-1.data/scripts/four": (b"#!python", 0o755),
        "one-1.data/headers/five.h": (b"", 0o644),
        "six/seven.py": (b"", 0o644),
        "eight.py": (b"#!/usr/bin/env python3", 0o755),
    }
    made = unpacked(tmp_path, wheel(tmp_path / "one.whl", files), omit=("six/",))
    assert made == {
        "site/one/__init__.py": 0o644,
        "site/one/bin/server": 0o755,
        "site/two.py": 0o644,
        "share/three": 0o644,
        "site/eight.py": 0o644,
    }


def test_two_wheels_may_hold_the_same_file_but_not_different_ones(tmp_path: Path) -> None:
    first = wheel(tmp_path / "a.whl", {"x/__init__.py": (b"", 0o644)})
    same = wheel(tmp_path / "b.whl", {"x/__init__.py": (b"", 0o644), "x/b.py": (b"", 0o644)})
    other = wheel(tmp_path / "c.whl", {"x/__init__.py": (b"1", 0o644)})
    assert set(unpacked(tmp_path, first, same)) == {"site/x/__init__.py", "site/x/b.py"}
    with pytest.raises(ValueError, match="two wheels hold different x/__init__"):
        unpacked(tmp_path, other)


@pytest.mark.parametrize("name", ["../outside", "/etc/outside", "x/../../outside"])
def test_a_path_out_of_the_wheel_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="a wheel holds the path"):
        assemble.destination(name, tmp_path, tmp_path)
