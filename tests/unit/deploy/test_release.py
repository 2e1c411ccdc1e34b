"""A release is read whole or refused with every fault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deploy.errors import PlanError
from deploy.release import CLOSURES, FORMAT, UNITS, load, parse, profile
from tests.rules.tree import ROOT


def manifest(**more: Any) -> dict[str, Any]:
    paths = {name: f"/nix/store/{'0' * 31}{n}-kalshi-{name}-1" for n, name in enumerate(CLOSURES)}
    made = {"format": FORMAT, "version": "0.1.0", "system": "aarch64-linux", "revision": "abc"}
    return made | {"topology": "f" * 64, "closures": paths} | more


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "manifest.json"
    file.write_text(json.dumps(manifest()))
    release = load(file)
    assert release == load(tmp_path)  # a store path is a directory
    assert release.as_json() == manifest()
    assert parse(json.dumps(release.as_json()), "again") == release


def test_a_role_takes_its_own_service_first_and_databases_only_when_asked() -> None:
    release = parse(json.dumps(manifest()), "m")
    assert list(release.paths("gatherer", databases=False)) == ["gatherer", "cloudwatch"]
    with_databases = release.paths("deduplicator", databases=True)
    assert list(with_databases) == ["deduplicator", "cloudwatch", "postgres"]
    assert with_databases["postgres"] == manifest()["closures"]["postgres"]


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (manifest(format=1), "format 1"),
        (manifest(revision=""), "revision is ''"),
        (manifest(topology=None), "topology is None"),
        (manifest(closures={}), "closure gatherer is None"),
        (manifest(closures=manifest()["closures"] | {"postgres": "/etc/passwd"}), "not a store"),
        ([], "format list"),
    ],
)
def test_what_is_no_release_is_refused(broken: object, said: str) -> None:
    with pytest.raises(PlanError, match=said):
        parse(json.dumps(broken), "m")


def test_text_that_is_no_json_and_a_file_that_is_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="not JSON"):
        parse("{", "m")
    with pytest.raises(PlanError, match="no release at"):
        load(tmp_path / "nowhere.json")


def test_every_unit_named_here_is_one_that_the_closures_bring_and_runs_from_that_profile() -> None:
    for (_, closure), units in UNITS.items():
        for unit in units:
            text = (ROOT / "systemd" / unit).read_text()
            assert f"ExecStart={profile(closure)}/" in text, unit


def test_nix_writes_the_manifest_that_is_read_here() -> None:
    text = (ROOT / "nix" / "release.nix").read_text()
    assert f"format = {FORMAT};" in text
    assert all(word in text for word in ("version", "system", "revision", "topology", "closures"))
