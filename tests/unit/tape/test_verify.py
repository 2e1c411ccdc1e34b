"""`tape verify`: the checks themselves are tested with kalshilake.verify."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests import lake_tamper as tamper


def test_a_good_lake_ends_with_code_zero_and_its_hash(run, lake: Path) -> None:
    """The SHA-256 is what one keeps elsewhere."""
    code, out, _ = run("verify", lake)
    assert code == 0
    assert "nothing found" in out
    code, out, _ = run("verify", lake, "--json")
    said = json.loads(out)
    assert (code, said["ok"]) == (0, True)
    assert run("verify", lake, "--sha256", said["sha256"])[0] == 0
    assert run("verify", lake, "--sha256", "0" * 64)[0] == 1


def test_an_edit_ends_with_code_one_and_the_objects_name(run, lake: Path, tmp_path: Path) -> None:
    """Scripts read the code, people the name."""
    root = Path(shutil.copytree(lake, tmp_path / "lake"))
    key = tamper.keys_of(root, "coverage")[0]
    tamper.flip(root / key, 50)
    code, out, _ = run("verify", root)
    assert code == 1
    assert key in out
    assert json.loads(run("verify", root, "--json")[1])["findings"][0]["object"] == key
