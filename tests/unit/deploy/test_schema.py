"""A release whose schema takes something away goes to no host."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deploy import schema
from deploy.errors import PlanError
from deploy.migrations import FOLDERS
from deploy.release import Release, parse
from tests.rooted_shell import RootedShell
from tests.unit.deploy.test_release import manifest
from tests.unit.deploy.test_rollout import FLEET

FIRST = "CREATE TABLE trade (id bigint NOT NULL);"
ADDS = "ALTER TABLE trade ADD COLUMN fee integer;"
TAKES = "ALTER TABLE trade DROP COLUMN id;"


def closure(store: Path, release: Release, *files: str) -> None:
    for role, folders in FOLDERS.items():
        top = schema.local(release.closures[role], str(store))
        place = top / "lib/python3.13/site-packages/runtime/migrations"
        for folder in folders:
            (place / folder).mkdir(parents=True)
            for number, text in enumerate(files, 1):
                (place / folder / f"{number:04d}_m.sql").write_text(text + "\n")


@pytest.fixture
def host(tmp_path: Path) -> RootedShell:
    return RootedShell(tmp_path / "host")


def ready(tmp_path: Path, host: RootedShell, *files: str) -> Release:
    """A coming release with these migrations, beside a running one with the first alone."""
    release = parse(json.dumps(manifest(topology=FLEET.topology)), "m")
    closure(tmp_path / "store", release, *files)
    for role in ("gatherer", "deduplicator"):
        place = Path(host.path(f"/nix/var/nix/profiles/kalshi-{role}"))
        for folder in FOLDERS[role]:
            made = place / "lib/python3.13/site-packages/runtime/migrations" / folder
            made.mkdir(parents=True)
            (made / "0001_m.sql").write_text(FIRST + "\n")
    return release


async def test_what_only_adds_goes_out(tmp_path: Path, host: RootedShell) -> None:
    release = ready(tmp_path, host, FIRST, ADDS)
    names = ("deduplicator", "gatherer-1")
    changes = await schema.beside(host, FLEET, release, names, str(tmp_path / "store"))
    assert [c.folder for c in changes] == ["production", "gatherer_hot", "gatherer_meta"]
    assert all(len(c.new) == 1 for c in changes)


async def test_what_takes_away_does_not(tmp_path: Path, host: RootedShell) -> None:
    release = ready(tmp_path, host, FIRST, TAKES)
    with pytest.raises(PlanError, match="the former release cannot go on beside this schema"):
        await schema.beside(host, FLEET, release, ["gatherer-1"], str(tmp_path / "store"))


async def test_a_host_without_a_release_has_nothing_to_lose(
    tmp_path: Path, host: RootedShell
) -> None:
    release = parse(json.dumps(manifest(topology=FLEET.topology)), "m")
    assert await schema.beside(host, FLEET, release, ["gatherer-1"], str(tmp_path)) == []
    assert schema.local("/nix/store/x", "") == Path("/nix/store/x")
