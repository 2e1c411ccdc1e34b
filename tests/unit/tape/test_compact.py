"""`tape compact`: told first, done when asked to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from kalshilake import compact, open_lake, paths, write
from kalshilake.store import LocalStore
from tests.lake_deaths import tree


@pytest.fixture
def old(lake: Path, tmp_path: Path) -> Path:
    """The lake, and a month of the exchange's time later."""
    root = Path(shutil.copytree(lake, tmp_path / "old"))
    watermark_us = open_lake(root).watermark_us + 30 * compact.US_PER_DAY
    write.commit_version(LocalStore(root), [], watermark_us=watermark_us)
    return root


def test_without_apply_it_tells_and_changes_nothing(run, old: Path) -> None:
    before = tree(old)
    code, out, said = run("compact", old, "--json")
    (told,) = [json.loads(line) for line in out.splitlines()]
    assert (code, told["hours"]) == (0, 24)
    assert told["objects"] == len(open_lake(old).objects)
    assert "--apply" in said
    assert tree(old) == before


def test_with_apply_it_joins_and_says_what_it_did(run, old: Path) -> None:
    before = open_lake(old)
    code, out, _ = run("compact", old, "--apply", "--json")
    told = json.loads(out)
    after = open_lake(old)
    assert (code, told["version"], told["sha256"]) == (0, after.version, after.sha256)
    assert (told["joined"], told["removed"]) == (len(after.objects), len(before.objects))
    assert after.deltas(on_gap="ignore").equals(before.deltas(on_gap="ignore"))
    assert run("verify", old)[0] == 0
    code, out, said = run("compact", old, "--json")
    assert (code, out) == (0, "")
    assert "nothing to join" in said


def test_young_days_and_no_lake_are_refused(run, lake: Path, tmp_path: Path) -> None:
    end = f"{paths.at(open_lake(lake).watermark_us):%Y-%m-%d}"
    for asked in ([lake, "--before", end], [tmp_path], [tmp_path, "--apply"],
                  [lake, "--before", "soon"]):  # fmt: skip
        code, out, said = run("compact", *asked)
        assert (code, out) == (2, ""), asked
        assert said.startswith("tape: ")
