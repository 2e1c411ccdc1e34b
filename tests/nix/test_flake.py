"""Every output of the flake parses and evaluates for both systems, with what docs/nix.md lists."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from nix import wheels
from tests.nix.host import STANDIN, Nix, require, run, snapshot
from tests.rules.tree import ROOT, tracked

PACKAGES = {
    "gatherer", "deduplicator", "cloudwatch", "tape", "postgres", "release", "default",
}  # fmt: skip
CHECKS = {"gatherer", "deduplicator", "cloudwatch", "tape", "units"}
APPS = {"demo", "test", "deploy", "default"}


@pytest.fixture(scope="module")
def nix(tmp_path_factory: pytest.TempPathFactory) -> Nix:
    folder = tmp_path_factory.mktemp("flake")
    return Nix(folder / "store", snapshot(folder / "source"))


@pytest.fixture
def changed(nix: Nix, tmp_path: Path) -> Nix:
    """The same flake once more, to plant errors in."""
    source = shutil.copytree(nix.source, tmp_path / "source")
    return Nix(tmp_path / "store", source)


def plant(nix: Nix, name: str, old: str, new: str) -> None:
    path = nix.source / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_every_nix_file_parses() -> None:
    require("nix-instantiate", "nix-bin")
    files = [path for path in tracked(ROOT) if path.suffix == ".nix"]
    assert len(files) >= 12
    run("nix-instantiate", "--parse", *files)


def test_flake_check_passes(nix: Nix) -> None:
    nix("flake", "check", nix.flake, "--no-build")


def outputs(nix: Nix, system: str) -> dict[str, dict[str, str]]:
    """What every output is, by kind and name. Nix 2.8 checks only the machine's own system."""
    system_of = 'set: builtins.mapAttrs (_: d: assert d.type == "derivation"; d.drvPath) set'
    program = 'set: builtins.mapAttrs (_: app: assert app.type == "app"; app.program) set'
    asked = {"packages": system_of, "checks": system_of, "devShells": system_of, "apps": program}
    found = {
        kind: json.loads(nix("eval", "--json", f"{nix.flake}#{kind}.{system}", "--apply", f).stdout)
        for kind, f in asked.items()
    }
    found["formatter"] = {"default": nix.evaluate(f"formatter.{system}.drvPath")}
    return found


@pytest.mark.parametrize("system", wheels.SYSTEMS)
def test_every_output_evaluates(nix: Nix, system: str) -> None:
    found = outputs(nix, system)
    assert {kind: set(found[kind]) for kind in found} == {
        "packages": PACKAGES,
        "checks": CHECKS,
        "apps": APPS,
        "devShells": {"default"},
        "formatter": {"default"},
    }
    for kind, suffix in (("packages", ".drv"), ("checks", ".drv"), ("apps", "")):
        for path in found[kind].values():
            assert path.startswith("/nix/store/")
            assert path.endswith(suffix)
    for name in sorted(PACKAGES):
        assert nix.evaluate(f"packages.{system}.{name}.system") == system


def test_the_module_holds_the_units(nix: Nix) -> None:
    apply = 'module: builtins.concatStringsSep " " (builtins.attrNames (module { }).systemd.units)'
    listed = nix.evaluate("nixosModules.default", "--apply", apply).split()
    folder = ROOT / "systemd"
    files = {
        path.name for kind in ("service", "target", "timer") for path in folder.glob(f"*.{kind}")
    }
    assert files
    assert set(listed) == files


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("nix/packages.nix", "lock.services", "lock.servcies"),
        ("nix/python-closure.nix", "${python}/bin", "${pyhton}/bin"),
        ("nix/apps.nix", "packages.tape", "packages.tap"),
        ("nix/shell.nix", "pkgs.uv", "pkgs.uvv"),
        ("nix/wheels.json", '"abi": ', '"abj": '),
        ("systemd/kalshi.target", "[Unit]", "[Unit]\n# not as rendered"),
    ],
)
def test_a_planted_error_is_caught(changed: Nix, name: str, old: str, new: str) -> None:
    plant(changed, name, old, new)
    """By the two tests above: the check of the flake, and the evaluation by name."""
    passes = changed("flake", "check", changed.flake, "--no-build", check=False).returncode == 0
    if passes:
        with pytest.raises(pytest.fail.Exception, match="error"):
            outputs(changed, wheels.SYSTEMS[0])


def test_a_wheel_with_another_hash_is_another_closure(nix: Nix, changed: Nix) -> None:
    entry = json.loads((ROOT / "nix" / "wheels.json").read_text())
    sha256 = entry["services"]["gatherer"]["wheels"]["aarch64-linux"][0]["sha256"]
    plant(changed, "nix/wheels.json", sha256, sha256[::-1])
    output = "packages.aarch64-linux.gatherer.outPath"
    assert changed.evaluate(output) != nix.evaluate(output)


def test_a_change_in_one_member_leaves_the_others_closures(nix: Nix, changed: Nix) -> None:
    """Rolling out a new deduplicator must not touch what a gatherer runs."""
    plant(
        changed, "python/dedup/src/dedup/main.py", "from __future__", "# changed\nfrom __future__"
    )
    for service, same in (("gatherer", True), ("deduplicator", False), ("postgres", True)):
        output = f"packages.aarch64-linux.{service}.outPath"
        assert (changed.evaluate(output) == nix.evaluate(output)) is same


@pytest.mark.parametrize(
    ("edition", "permitted", "answers"),
    [
        ("apache", "timescaledb", True),
        ("community", "timescaledb", True),
        ("community", "another", False),
    ],
)
def test_only_timescaledb_may_be_unfree(
    nix: Nix, tmp_path: Path, edition: str, permitted: str, answers: bool
) -> None:
    """The third lets in another package and must fail: the predicate names the one it is for."""
    folder = snapshot(tmp_path / "source")
    path = folder / "nix" / "postgres.nix"
    path.write_text(path.read_text().replace('== "timescaledb"', f'== "{permitted}"'))
    postgres = (
        f'(import {path} {{ system = "aarch64-linux"; edition = "{edition}"; nixpkgs = '
        f'{{ legacyPackages.aarch64-linux = import {STANDIN} {{ system = "aarch64-linux"; }}; '
        f"outPath = {STANDIN}; }}; }}).drvPath"
    )
    done = run("nix-instantiate", "--store", nix.store, "--eval", "-E", postgres, check=False)
    assert (done.returncode == 0) is answers, done.stderr


def test_flake_lock_pins_the_one_input() -> None:
    lock = json.loads((ROOT / "flake.lock").read_text())
    assert lock["version"] == 7
    assert set(lock["nodes"]) == {"root", "nixpkgs"}
    assert lock["nodes"]["root"]["inputs"] == {"nixpkgs": "nixpkgs"}
    locked = lock["nodes"]["nixpkgs"]["locked"]
    assert re.fullmatch(r"[0-9a-f]{40}", locked["rev"])
    assert re.fullmatch(r"sha256-[A-Za-z0-9+/]{43}=", locked["narHash"])
    inputs = re.findall(r"inputs\.(\w+)", (ROOT / "flake.nix").read_text())
    assert inputs == ["nixpkgs"]


def used_interfaces() -> set[str]:
    """Every attribute of the package set that the Nix files name."""
    text = "\n".join(path.read_text() for path in (ROOT / "nix").glob("*.nix"))
    text += (ROOT / "flake.nix").read_text()
    found = set(re.findall(r"\bpkgs\.([A-Za-z][\w-]*)", text))
    found |= set(re.findall(r"\(pkgs system\)\.([A-Za-z][\w-]*)", text))
    for block in re.findall(r"inherit \(pkgs\)([^;]*);", text):
        found |= set(block.split())
    if "legacyPackages.${system}.postgresql_16" in text:
        found.add("postgresql_16")
    found.add("python" + "".join(map(str, wheels.PYTHON)))
    return found


def test_the_document_lists_the_interfaces_that_are_used() -> None:
    """And the stand-in offers these and no more, so an evaluation shows that the list is whole."""
    text = (ROOT / "docs" / "nix.md").read_text()
    section = text.split("## What is used of nixpkgs")[1].split("\n## ")[0]
    listed = set(re.findall(r"^\| `([A-Za-z][\w-]*)", section, flags=re.MULTILINE))
    assert listed == used_interfaces()
    standin = (STANDIN / "default.nix").read_text()
    offered = standin[standin.rindex("\nin\n{") :]
    names = set(re.findall(r"^  ([A-Za-z][\w-]*)[ .]", offered, flags=re.MULTILINE)) - {"inherit"}
    for block in re.findall(r"^  inherit([^;]*);", offered, flags=re.MULTILINE):
        names |= set(block.split())
    assert names == listed
