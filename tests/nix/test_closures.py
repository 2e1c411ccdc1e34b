"""The closures of this machine's system, built for real and run where there is nothing else.

Slow (a quarter of an hour): `make nix-build`. Needs root, Debian and a package index; what is not
there makes the tests fail, not skip.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.nix.bare_root import BareRoot
from tests.nix.host import MACHINE, Nix, full_standin, locked_wheels, run, snapshot
from tests.nix.traces import traces
from tests.rules.tree import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

CLOSURES = ("gatherer", "cloudwatch", "deduplicator", "tape")
# What the project wrote in a closure; the rest is from wheels. Unit files are not in it: what they
# name outside the store is the host's by intent.
WRITTEN = ("bin/", "pyvenv.cfg")
PACKAGES = ("marketdata", "runtime", "gatherer", "dedup", "kalshilake", "exchange", "tape")


@dataclass(frozen=True)
class Built:
    """The closures in one store."""

    nix: Nix
    paths: dict[str, str]

    def closure(self, name: str) -> list[str]:
        return sorted(self.nix.query("--requisites", self.paths[name]))

    def hashes(self, name: str) -> dict[str, str]:
        """NAR hash of every path in a closure."""
        asked = self.nix("path-info", "--json", *self.closure(name))
        return {entry["path"]: entry["narHash"] for entry in json.loads(asked.stdout)}

    def size(self, name: str) -> int:
        """What `nix path-info -S` says."""
        return int(self.nix("path-info", "-S", self.paths[name]).stdout.split()[1])


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if os.geteuid() != 0:
        pytest.fail("building and the bare root need root\nhint: run make nix-build as root")
    return tmp_path_factory.mktemp("nix")


@pytest.fixture(scope="module")
def supplies(workshop: Path) -> tuple[Path, list[Path]]:
    """The package set that can build, and every file that its store must hold."""
    packages, debs = full_standin(workshop)
    return packages, [*debs, *locked_wheels(workshop / "wheels")]


def build(folder: Path, source: Path, supplies: tuple[Path, list[Path]]) -> Built:
    packages, files = supplies
    nix = Nix(folder / "store", source, packages)
    nix.add(files)
    paths = nix.build(*(f"packages.{MACHINE}.{name}" for name in CLOSURES))
    return Built(nix, dict(zip(CLOSURES, paths, strict=True)))


@pytest.fixture(scope="module")
def source(workshop: Path) -> Path:
    return snapshot(workshop / "source")


@pytest.fixture(scope="module")
def built(workshop: Path, source: Path, supplies: tuple[Path, list[Path]]) -> Built:
    return build(workshop / "first", source, supplies)


@pytest.fixture(scope="module")
def root(workshop: Path, built: Built) -> BareRoot:
    (shell,) = (workshop / "apt" / "archives").glob("busybox-static_*.deb")
    return BareRoot(workshop, built.nix.store, shell)


def test_sizes(built: Built) -> None:
    sizes = {name: built.size(name) for name in CLOSURES}
    parts = {
        path: int(built.nix("path-info", "-s", path).stdout.split()[1])
        for path in built.closure("tape")
    }
    print()
    for name, size in sizes.items():
        own = int(built.nix("path-info", "-s", built.paths[name]).stdout.split()[1])
        print(f"{name}: closure {size / 2**20:.1f} MiB, of these its own {own / 2**20:.1f} MiB")
    for path, size in parts.items():
        print(f"  {path.split('-', 1)[1]}: {size / 2**20:.1f} MiB")
    assert sizes["gatherer"] < sizes["deduplicator"] < sizes["tape"]


def test_the_recorder_has_no_reader_in_it(built: Built) -> None:
    heavy = ("pyarrow", "boto3", "botocore", "duckdb")
    held: dict[str, list[str]] = {}
    for name in CLOSURES:
        site = built.nix.real(built.paths[name]) / "lib" / "python3.13" / "site-packages"
        held[name] = [word for word in heavy if list(site.glob(f"*{word}*"))]
        assert list(site.glob("orjson*"))
    assert held["gatherer"] == []
    assert held["cloudwatch"] == ["boto3", "botocore"]
    assert held["deduplicator"] == ["pyarrow", "boto3", "botocore"]


def test_nothing_of_the_building_machine_is_in_it(built: Built, workshop: Path) -> None:
    """The closure's own files; it refers to the Python, the C library and two more paths."""
    words = {str(ROOT), str(workshop), sys.prefix}
    if len(platform.node()) > 5:
        words.add(platform.node())
    for name in CLOSURES:
        closure = built.closure(name)
        others = {path.split("-", 1)[1] for path in closure if path != built.paths[name]}
        assert others <= {"python313", "glibc", "gcc-lib", "zlib"}
        site = "lib/python3.13/site-packages"
        written = [*WRITTEN, *(f"{site}/{package}/" for package in PACKAGES)]
        own = built.nix.real(built.paths[name])
        real = [built.nix.real(path) for path in closure]
        assert traces(own, real, written, words) == []


def test_planted_traces_are_found(tmp_path: Path) -> None:
    own = tmp_path / "own"
    (own / "bin").mkdir(parents=True)
    shutil.copy("/bin/true", own / "bin" / "program")
    (own / "bin" / "script").write_text("#!/usr/bin/env python3\n")
    (own / "bin" / "script").chmod(0o755)
    (own / "bin" / "link").symlink_to("/usr/bin/env")
    (own / "notes").write_text(f"built in {tmp_path}")
    found = "\n".join(traces(own, [own], ["bin/"], {str(tmp_path)}))
    for words in (
        "interpreter /lib64",
        "needs libc.so.6",
        "#!/usr/bin",
        "leads to",
        "notes: names",
    ):
        assert words in found


def test_checks_and_release_build(built: Built) -> None:
    attributes = [f"checks.{MACHINE}.{name}" for name in (*CLOSURES, "units")]
    for path in built.nix.build(*attributes)[:-1]:
        assert int(built.nix.real(path).read_text()) > 10
    (release,) = built.nix.build(f"packages.{MACHINE}.release")
    manifest = json.loads((built.nix.real(release) / "manifest.json").read_text())
    assert manifest["system"] == MACHINE
    assert {name: manifest["closures"][name] for name in CLOSURES} == built.paths
    for name in ("gatherer", "deduplicator", "postgres"):
        folder = built.nix.real(manifest["closures"][name])
        assert list((folder / "lib/systemd/system").glob("kalshi*.service"))
        assert (folder / "lib/sysusers.d/kalshi.conf").is_file()


def test_there_is_no_other_python_in_the_root(root: BareRoot) -> None:
    """Negative control: what the root lacks, a program that needs it cannot find."""
    for command in ("python3", "/usr/bin/python3", "/usr/bin/env"):
        assert root.run("/bin/sh", "-c", f"{command} -V").returncode == 127
    shutil.copy("/bin/true", root.root / "tmp" / "true")
    assert root.run("/bin/sh", "-c", "/tmp/true").returncode == 127  # no C library to load


def test_the_demo_runs_from_the_closure(root: BareRoot, built: Built) -> None:
    done = root.run(
        *(f"{built.paths['tape']}/bin/tape", "demo", "--synthetic", "50", "--seconds", "20"),
        timeout_s=900,
    )
    print(done.stdout[-3000:])
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


ANYWHERE = "postgresql://nobody@127.0.0.1:1/kalshi"
SETTINGS = {
    "gatherer": {
        "KT_WS_URL": "wss://127.0.0.1:1/",
        "KT_REST_URL": "https://127.0.0.1:1/",
        "KT_KEY_ID": "none",
        "KT_PRIVATE_KEY_FILE": "/tmp/key.pem",
        "KT_SPOOL_DIR": "/tmp/spool",
        "KT_TIMESCALE_DSN": ANYWHERE,
        "KT_POSTGRES_DSN": ANYWHERE,
    },
    "deduplicator": {
        "KT_GATHERER_DSNS": json.dumps([ANYWHERE]),
        "KT_PRODUCTION_DSN": ANYWHERE,
        "KT_LAKE_URI": "/tmp/lake",
    },
}


@pytest.mark.parametrize("service", sorted(SETTINGS))
def test_a_service_starts_from_its_closure(root: BareRoot, built: Built, service: str) -> None:
    """With no exchange and no database it must be up, answer on its ports and stop when told."""
    run("openssl", "genrsa", "-out", root.root / "tmp" / "key.pem", "2048")
    program = f"{built.paths[service]}/bin/kalshi-{service}"
    script = (
        f"rm -f /tmp/metrics; {program} 2>/tmp/log & service=$!; tries=0; "
        "until wget -q -O /tmp/metrics http://127.0.0.1:9090/metrics || [ $tries = 60 ]; do "
        "sleep 1; tries=$((tries + 1)); done; "
        "wget -q -O - http://127.0.0.1:8080/status; echo; "
        "kill -TERM $service; wait $service; echo ended with $?; cat /tmp/metrics /tmp/log"
    )
    without = root.run(program)
    assert (without.returncode, "KT_" in without.stderr) == (2, True), without.stderr
    done = root.run("/bin/sh", "-c", script, environment=SETTINGS[service])
    print(done.stdout[:600])
    assert "# TYPE" in done.stdout, done.stdout[-3000:]
    assert "ended with 0" in done.stdout, done.stdout[-3000:]


def test_built_twice_is_identical(
    built: Built, workshop: Path, source: Path, supplies: tuple[Path, list[Path]]
) -> None:
    """In another store, from another folder: the same paths with the same bytes."""
    moved = shutil.copytree(source, workshop / "elsewhere")
    again = build(workshop / "second", moved, supplies)
    assert again.paths == built.paths
    for name in CLOSURES:
        hashes = built.hashes(name)
        assert again.hashes(name) == hashes
        print(f"\n{name}: {built.paths[name]}\n  {hashes[built.paths[name]]}", end="")
