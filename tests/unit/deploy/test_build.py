"""Building, signing and the infrastructure: what is called, with programs that write it down."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from deploy import build
from deploy.errors import DeployError, PlanError
from deploy.release import CLOSURES, load
from tests.unit.deploy.test_release import manifest

NIX = """#!/bin/sh
echo "$*" >> "$CALLS"
while [ $# -gt 0 ]; do [ "$1" != --out-link ] || ln -sfn "$RELEASE" "$2"; shift; done
"""


@pytest.fixture
def nix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A nix that builds one release; the file of its calls."""
    made = tmp_path / "store" / "release"
    made.mkdir(parents=True)
    (made / "manifest.json").write_text(json.dumps(manifest()))
    (tmp_path / "nix").write_text(NIX)
    (tmp_path / "nix").chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("RELEASE", str(made))
    return tmp_path / "calls"


def key(tmp_path: Path) -> Path:
    (tmp_path / "key").write_text("kalshi-tape:secret")
    return tmp_path / "key"


def test_a_release_is_built_signed_and_kept_by_its_revision(nix: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    made = build.build(tmp_path, state, "aarch64-linux", key(tmp_path))
    assert made == load(state / "releases" / "latest")
    assert load(state / "releases" / made.revision / "manifest.json") == made
    calls = nix.read_text()
    assert f"build {tmp_path}#packages.aarch64-linux.release --out-link" in calls
    signed = next(line for line in calls.splitlines() if "store sign --recursive" in line)
    assert all(made.closures[name] in signed for name in CLOSURES)
    assert "secret" not in calls
    assert build.build(tmp_path, state, "aarch64-linux", key(tmp_path)) == made  # once more


def test_what_is_not_committed_has_no_name(nix: Path, tmp_path: Path) -> None:
    told = manifest(revision=build.UNCOMMITTED)
    (tmp_path / "store/release/manifest.json").write_text(json.dumps(told))
    with pytest.raises(PlanError, match="not committed"):
        build.build(tmp_path, tmp_path / "state", "aarch64-linux", key(tmp_path))
    assert "sign" not in nix.read_text()


def test_no_key_no_program_and_a_failure_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PlanError, match="signing key"):
        build.build(tmp_path, tmp_path, "aarch64-linux", tmp_path / "nokey")
    with pytest.raises(PlanError, match="no-such-program is not installed here"):
        build.call(["no-such-program"], tmp_path)
    with pytest.raises(DeployError, match=r"false \.\.\. ended with 1"):
        build.call(["false"], tmp_path)
    build.call(["true"], tmp_path)


def test_the_infrastructure_is_deployed_behind_the_guard() -> None:
    assert build.infra_command([]) == ["make", "aws-deploy"]
    assert build.infra_command(["gatherer-2"]) == ["make", "aws-deploy", "HOST=gatherer-2"]
    with pytest.raises(PlanError, match="several hosts"):
        build.infra_command(["gatherer-1", "gatherer-2"])
