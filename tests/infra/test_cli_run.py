"""The real CDK CLI on loopback, as `make aws-cli` runs it; its own checks are tested apart."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import cli_run
import pytest


def _can_isolate() -> bool:
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return False
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--net", "true"], check=False, capture_output=True
    )
    return done.returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(
    not cli_run.CLI.exists(), reason="the CDK CLI is not installed: make setup-cdk-cli"
)
@pytest.mark.skipif(not _can_isolate(), reason="needs network namespaces (Linux, unshare, ip)")
def test_bootstrap_deploy_twice_and_diff_leave_loopback_with_no_packet() -> None:
    """Everything that a deploy asks of the CLI, before anybody has an account."""
    done = subprocess.run(
        [sys.executable, cli_run.__file__], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "byte-identical" in done.stdout
    assert "packets to anywhere but loopback: 0; the trap counts: True" in done.stdout


def test_assemblies_that_differ_in_one_byte_or_one_file_are_told_apart(tmp_path: Path) -> None:
    """The control of the byte-identical claim."""
    left, right = tmp_path / "left", tmp_path / "right"
    for directory in (left, right):
        directory.mkdir()
        (directory / "a.json").write_text("{}", encoding="utf-8")
    assert cli_run.identical(left, right) == []
    (right / "a.json").write_text("[]", encoding="utf-8")
    assert cli_run.identical(left, right) == ["a.json"]
    (right / "b.json").write_text("{}", encoding="utf-8")
    assert cli_run.identical(left, right)


def test_the_run_takes_none_of_the_callers_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a developer's real account would be one variable away."""
    monkeypatch.setenv("AWS_PROFILE", "real")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "real")
    environment = cli_run.base_environment(tmp_path)
    assert {k for k in environment if k.startswith("AWS")} == {"AWS_EC2_METADATA_DISABLED"}
