"""The scripts that run as root on hosts, in a real shell below a folder (tests/rooted_shell.py)."""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from deploy import hosts
from deploy.errors import HostRefusedError
from deploy.hosts import BROUGHT, OverShell, script
from deploy.release import UNITS
from deploy.shell import Answer
from tests.rooted_shell import RootedShell
from tests.rules.tree import ROOT
from tests.unit.deploy.test_rollout import FLEET

SCRIPTS = ("LOOK", "LOCK", "UNLOCK", "SWITCH", "WRITE_DOWN", "TIDY", "LAST_WORDS")


@pytest.fixture
def shell(tmp_path: Path) -> RootedShell:
    return RootedShell(tmp_path / "host")


@pytest.fixture
def over(shell: RootedShell) -> OverShell:
    return OverShell(shell, FLEET)


def closure(shell: RootedShell, letter: str, name: str, *units: str, signed: bool = True) -> str:
    """A store path as the host knows it, with these unit files."""
    path = f"/nix/store/{letter * 32}-kalshi-{name}-1"
    place = Path(shell.path(path))
    (place / "lib/systemd/system").mkdir(parents=True)
    (place / "lib/sysusers.d").mkdir()
    (place / "lib/sysusers.d/kalshi.conf").write_text("u kalshi -\n")
    for unit in ("kalshi.target", *units):
        wanted = "multi-user" if unit == "kalshi.target" else "kalshi"
        (place / "lib/systemd/system" / unit).write_text(f"[Install]\nWantedBy={wanted}.target\n")
    if signed:
        (place / "signed").touch()
    return path


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_of_the_shell_that_every_host_has(name: str) -> None:
    """dash where it is, which is Debian's /bin/sh."""
    program = shutil.which("dash") or "/bin/sh"
    text = script(getattr(hosts, name), WORD="it's a 'word'")
    done = subprocess.run([program, "-n"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    planted = subprocess.run([program, "-n"], input=b"if", capture_output=True, check=False)
    assert planted.returncode != 0


async def test_a_switch_sets_links_enables_and_starts_and_again_changes_nothing(
    shell: RootedShell, over: OverShell
) -> None:
    path = closure(shell, "a", "gatherer", "kalshi-gatherer.service")
    assert await over.switch("gatherer-1", "gatherer", path) == ["kalshi-gatherer.service"]
    units = shell.root / "etc/systemd/system"
    link = str((units / "kalshi-gatherer.service").readlink())
    assert link.endswith(
        "/nix/var/nix/profiles/kalshi-gatherer/lib/systemd/system/kalshi-gatherer.service"
    )
    assert (units / "kalshi.target").is_symlink()
    assert (shell.root / "etc/sysusers.d/kalshi.conf").is_symlink()
    wants = {str(p.relative_to(units)): str(p.readlink()) for p in units.glob("*.wants/*")}
    assert wants == {
        "multi-user.target.wants/kalshi.target": "../kalshi.target",
        "kalshi.target.wants/kalshi-gatherer.service": "../kalshi-gatherer.service",
    }  # by name: no path of a generation, which is collected some day
    assert all((units / name).exists() for name in wants)
    before = len(shell.calls)
    assert await over.switch("gatherer-1", "gatherer", path) == []
    again = "\n".join(shell.calls[before:])
    assert all(word not in again for word in ("restart", "--set", "sysusers"))
    new = closure(shell, "b", "gatherer", "kalshi-gatherer.service")
    assert await over.switch("gatherer-1", "gatherer", new) == ["kalshi-gatherer.service"]
    found = await over.look("gatherer-1")
    assert found.units["kalshi-gatherer.service"].running == new


async def test_a_unit_that_a_release_does_not_bring_any_more_goes(
    shell: RootedShell, over: OverShell
) -> None:
    old = closure(shell, "a", "deduplicator", "kalshi-deduplicator.service", "kalshi-backup.timer")
    new = closure(shell, "b", "deduplicator", "kalshi-deduplicator.service")
    await over.switch("deduplicator", "deduplicator", old)
    units = shell.root / "etc/systemd/system"
    assert (units / "kalshi-backup.timer").is_symlink()
    assert list(units.glob("*.wants/kalshi-backup.timer"))
    await over.switch("deduplicator", "deduplicator", new)
    assert not (units / "kalshi-backup.timer").is_symlink()
    assert not list(units.glob("*.wants/kalshi-backup.timer"))
    assert "systemctl stop kalshi-backup.timer" in shell.calls


async def test_what_is_not_signed_or_not_there_is_not_switched_to(
    shell: RootedShell, over: OverShell
) -> None:
    unsigned = closure(shell, "a", "gatherer", "kalshi-gatherer.service", signed=False)
    with pytest.raises(HostRefusedError, match="not signed by a key that this host trusts"):
        await over.switch("gatherer-1", "gatherer", unsigned)
    nowhere = f"/nix/store/{'z' * 32}-kalshi-gatherer-1"
    with pytest.raises(HostRefusedError, match="is not in the store"):
        await over.switch("gatherer-1", "gatherer", nowhere)
    assert not any(word in call for call in shell.calls for word in ("--set", "restart"))


async def test_databases_are_restarted_by_their_mark_and_not_at_all_on_the_deduplicator(
    shell: RootedShell, over: OverShell
) -> None:
    names = ("kalshi-timescaledb.service", "kalshi-postgres.service")
    path = closure(shell, "a", "postgres", *names)
    assert await over.switch("gatherer-1", "postgres", path) == list(names)
    assert await over.switch("gatherer-1", "postgres", path) == []
    other = RootedShell(shell.root.with_name("other"))
    path = closure(other, "a", "postgres", *names)
    assert await OverShell(other, FLEET).switch("deduplicator", "postgres", path) == []
    assert not (other.root / "etc/systemd/system/kalshi-postgres.service").is_symlink()


async def test_a_lock_is_taken_once_and_only_its_owner_gives_it_back(
    shell: RootedShell, over: OverShell
) -> None:
    await over.lock("gatherer-1", "mine")
    await over.lock("gatherer-1", "mine")
    with pytest.raises(HostRefusedError, match=r"locked by another deploy: mine"):
        await over.lock("gatherer-1", "yours")
    await over.unlock("gatherer-1", "yours")
    assert (await over.look("gatherer-1")).lock == "mine"
    await over.lock("gatherer-1", "yours", by_force=True)
    await over.unlock("gatherer-1", "yours")
    assert (await over.look("gatherer-1")).lock == ""
    (shell.root / "var/lib/kalshi-deploy/lock").touch()  # power was cut while it was written
    await over.lock("gatherer-1", "mine")


async def test_a_look_tells_the_host_and_what_is_missing(
    shell: RootedShell, over: OverShell
) -> None:
    (shell.root / "etc/kalshi/role").write_text("gatherer\n")
    found = await over.look("gatherer-1")
    assert (found.name, found.role) == (socket.gethostname(), "gatherer")
    assert len(found.missing) == len(BROUGHT["gatherer"])
    assert found.health is None
    assert abs(found.skew_ms) < 5_000
    assert "kalshi-gatherer.service" in found.units


async def test_history_is_added_to_and_a_no_is_told_with_the_hosts_words(
    shell: RootedShell, over: OverShell
) -> None:
    await over.write_down("gatherer-1", b'{"run": 1}')
    await over.write_down("gatherer-1", b'{"run": 2}')
    history = shell.root / "var/lib/kalshi-deploy/history.jsonl"
    assert history.read_text() == '{"run": 1}\n{"run": 2}\n'
    await over.tidy("gatherer-1")
    assert await over.last_words("gatherer-1", "kalshi-gatherer.service") == ""
    shutil.rmtree(shell.root / "var")
    (shell.root / "var").write_text("no folder")
    with pytest.raises(HostRefusedError, match=r"could not be told of the deploy \(exit"):
        await over.write_down("gatherer-1", b"{}")


async def test_copies_that_were_cut_off_are_ended_before_the_next(
    shell: RootedShell, over: OverShell
) -> None:
    """Nix's own would hold the locks of its paths for ever; nobody there is the usual case."""
    program = shell.root / "bin" / "pkill"
    for code in (0, 1):
        program.write_text(f'#!/bin/sh\necho "pkill $*" >> "$ROOT/calls"\nexit {code}\n')
        await over.copy("gatherer-1", {"gatherer": "/nix/store/x"})
    assert shell.calls == ["pkill -KILL -U deploy"] * 2
    program.write_text("#!/bin/sh\necho 'invalid user name: deploy' >&2\nexit 2\n")
    with pytest.raises(HostRefusedError, match="invalid user name"):
        await over.copy("gatherer-1", {"gatherer": "/nix/store/x"})


async def test_a_copy_that_fails_says_what_nix_said(shell: RootedShell, over: OverShell) -> None:
    await over.copy("gatherer-1", {"gatherer": "/nix/store/x"})

    async def refused(host: str, paths: object, **more: object) -> Answer:
        return Answer(1, "", "cannot add path: it lacks a\n signature by a trusted key")

    shell.copy = refused  # type: ignore[method-assign]
    with pytest.raises(HostRefusedError, match="it lacks a signature by a trusted key"):
        await over.copy("gatherer-1", {"gatherer": "/nix/store/x"})


def test_what_owners_bring_is_what_the_units_ask_for() -> None:
    for (role, name), units in UNITS.items():
        for unit in units:
            text = (ROOT / "systemd" / unit).read_text()
            for line in text.splitlines():
                key, _, value = line.partition("=")
                if key == "LoadCredentialEncrypted":
                    assert f"/etc/credstore.encrypted/{value}" in BROUGHT[role], (name, unit)
                if key == "EnvironmentFile" and not value.startswith("-"):
                    assert value in BROUGHT[role], (name, unit)
