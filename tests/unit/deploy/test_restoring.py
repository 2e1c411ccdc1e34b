"""Production from a backup: what the host is told, and what is left when it fails."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from deploy import restoring
from deploy.errors import HostRefusedError, PlanError
from deploy.fleet import from_topology
from deploy.hosts import script
from deploy.restoring import restore_production
from tests.rooted_shell import QUIET, RootedShell
from tests.rules.tree import ROOT
from tests.unit.deploy.test_rollout import FLEET

STATES = """#!/bin/sh
echo "systemctl $*" >> "$ROOT/calls"
case "$*" in
    *ActiveState,Result*)
        n=$(cat "$ROOT/asked" 2>/dev/null || echo 0); echo $((n + 1)) > "$ROOT/asked"
        [ "$n" -gt 1 ] && printf 'Result=%s\\nActiveState=%s\\n' $(cat "$ROOT/ends") ||
            printf 'Result=success\\nActiveState=activating\\n' ;;
    *ActiveState*) cat "$ROOT/dumps" 2>/dev/null || echo inactive ;;
esac
"""


@pytest.fixture
def shell(tmp_path: Path) -> RootedShell:
    made = RootedShell(tmp_path)
    (tmp_path / "bin" / "systemctl").write_text(STATES)
    (tmp_path / "bin" / "journalctl").write_text(QUIET + "echo backup restored\n")
    (tmp_path / "ends").write_text("success inactive")
    return made


class Quick:
    """No waiting."""

    def monotonic(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None: ...


async def test_the_merge_stops_the_dumps_unit_restores_and_the_merge_goes_on(
    shell: RootedShell,
) -> None:
    said: list[str] = []
    await restore_production(
        shell, FLEET, "20260301T010000Z", clock=Quick(), say=lambda _, text: said.append(text)
    )
    calls = [call.removeprefix("systemctl ") for call in shell.calls]
    stop, start = (
        calls.index(f"{word} kalshi-deduplicator.service") for word in ("stop", "start --no-block")
    )
    begun = calls.index("start --no-block kalshi-backup.service")
    assert stop < begun < start
    assert not (shell.root / "run/systemd/system/kalshi-backup.service.d").exists()
    assert "restored" in said[-1]


async def test_the_units_command_is_the_restore_and_nothing_else_is_changed(
    shell: RootedShell,
) -> None:
    answer = await shell.run("deduplicator", script(restoring.BEGIN, NAME="n1"))
    assert answer.code == 0
    text = (shell.root / "run/systemd/system/kalshi-backup.service.d/restore.conf").read_text()
    command = shell.path("/nix/var/nix/profiles/kalshi-deduplicator/bin/kalshi-backup")
    assert text == f"[Service]\nExecStart=\nExecStart={command} --restore n1\n"
    before = len(shell.calls)
    await shell.run("deduplicator", script(restoring.BEGIN, NAME="n1"))  # the line broke: again
    assert len(shell.calls) == before
    unit = (ROOT / "systemd" / "kalshi-backup.service").read_text()
    assert "ExecStart=/nix/var/nix/profiles/kalshi-deduplicator/bin/kalshi-backup\n" in unit


async def test_after_a_failure_the_merge_stays_stopped(shell: RootedShell) -> None:
    (shell.root / "ends").write_text("exit-code failed")
    with pytest.raises(HostRefusedError, match="the merge is stopped"):
        await restore_production(shell, FLEET, "", clock=Quick(), say=lambda *_: None)
    assert "systemctl start --no-block kalshi-deduplicator.service" not in shell.calls


async def test_what_cannot_be_restored_is_refused_before_anything_stops(
    shell: RootedShell,
) -> None:
    (shell.root / "dumps").write_text("activating\n")
    with pytest.raises(HostRefusedError, match="dumps right now"):
        await restore_production(shell, FLEET, "", clock=Quick(), say=lambda *_: None)
    with pytest.raises(PlanError, match="no backup can be called"):
        await restore_production(shell, FLEET, "a b;", clock=Quick(), say=lambda *_: None)
    without = from_topology(ROOT / "topology.toml", ["gatherer-1"])
    with pytest.raises(PlanError, match="no deduplicator"):
        await restore_production(shell, without, "", clock=Quick(), say=lambda *_: None)
    assert not any("stop" in call for call in shell.calls)


@pytest.mark.parametrize("name", ["BEGIN", "ASK", "END"])
def test_scripts_are_of_the_shell_that_every_host_has(name: str) -> None:
    program = shutil.which("dash") or "/bin/sh"
    text = script(getattr(restoring, name), NAME="x", WELL="1")
    done = subprocess.run([program, "-n"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
