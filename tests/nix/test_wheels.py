"""nix/wheels.json is what the lock and the members say, and every wheel has an aarch64 form."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.utils import canonicalize_name

from nix import wheels
from nix.wheels import Pin, Wheel, WheelError
from tests.rules.tree import ROOT

LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
WHEELS: dict[str, Any] = json.loads((ROOT / "nix" / "wheels.json").read_text(encoding="utf-8"))


def file_of(entry: Mapping[str, str]) -> str:
    return "-".join(entry[k] for k in ("name", "version", "python", "abi", "platform")) + ".whl"


def disagreements(lock: str, content: Mapping[str, Any]) -> list[str]:
    """Where wheels.json is not what the lock says; nothing is asked of an index."""
    found: list[str] = []
    pins = wheels.read_lock(lock)
    for service, parts in content["services"].items():
        by_system = {}
        for system in wheels.SYSTEMS:
            answers = wheels.pins_for(pins, system)
            entries = parts["wheels"].get(system, [])
            by_system[system] = {canonicalize_name(entry["name"]) for entry in entries}
            for entry in entries:
                where = f"{service} {system} {entry['name']}"
                pin = answers.get(canonicalize_name(entry["name"]))
                if pin is None:
                    found.append(f"{where}: not in the lock")
                elif pin.version != entry["version"]:
                    found.append(f"{where}: {entry['version']}, the lock says {pin.version}")
                elif entry["sha256"] not in pin.hashes:
                    found.append(f"{where}: a hash that is not in the lock")
                if not wheels.fits(file_of(entry), system):
                    found.append(f"{where}: does not run there")
        for name in set.union(*by_system.values()):
            lacking = [system for system in wheels.SYSTEMS if name not in by_system[system]]
            found += [f"{service} {system} {name}: no wheel" for system in lacking]
    return sorted(found)


def test_lock_and_wheels_agree_and_every_wheel_has_an_aarch64_form() -> None:
    assert WHEELS["python"] == ".".join(map(str, wheels.PYTHON))
    assert set(WHEELS["services"]) == set(wheels.SERVICES)
    assert disagreements(LOCK, WHEELS) == []


def first(content: dict[str, Any], system: str) -> dict[str, str]:
    entry: dict[str, str] = content["services"]["gatherer"]["wheels"][system][0]
    return entry


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: first(c, "x86_64-linux").update(version="0.0.1"), "0.0.1, the lock says"),
        (lambda c: first(c, "aarch64-linux").update(sha256="0" * 64), "not in the lock"),
        (lambda c: first(c, "aarch64-linux").update(name="newcomer"), "not in the lock"),
        (lambda c: c["services"]["gatherer"]["wheels"]["aarch64-linux"].pop(0), "no wheel"),
        (lambda c: c["services"]["tape"]["wheels"].pop("aarch64-linux"), "no wheel"),
        (
            lambda c: first(c, "aarch64-linux").update(platform="manylinux_2_17_x86_64"),
            "does not run there",
        ),
        (
            lambda c: first(c, "aarch64-linux").update(platform="manylinux_2_39_aarch64"),
            "does not run there",
        ),
    ],
)
def test_a_planted_disagreement_is_found(change: Callable[[Any], object], says: str) -> None:
    content = copy.deepcopy(WHEELS)
    change(content)
    assert any(says in line for line in disagreements(LOCK, content))


def test_a_version_changed_in_the_lock_is_found() -> None:
    changed = re.sub(r"^orjson==\S+", "orjson==0.0.1", LOCK, flags=re.MULTILINE)
    assert changed != LOCK
    found = disagreements(changed, WHEELS)
    assert len(found) == len(wheels.SERVICES) * len(wheels.SYSTEMS)
    assert all("the lock says 0.0.1" in line for line in found)


def installed(name: str) -> Wheel:
    """What the tests' own environment says about a distribution: a second source for the graph."""
    return Wheel("", "", tuple(metadata.distribution(name).requires or ()))


@pytest.mark.parametrize("system", wheels.SYSTEMS)
@pytest.mark.parametrize("service", sorted(wheels.SERVICES))
def test_each_service_has_what_its_members_ask_for_and_no_more(service: str, system: str) -> None:
    members = wheels.read_members(ROOT)
    known: dict[str, Wheel] = {}
    while True:
        used, met, missing = wheels.walk(wheels.SERVICES[service], members, known, system)
        if not missing:
            break
        known |= {name: installed(name) for name in missing}
    parts = WHEELS["services"][service]
    assert {canonicalize_name(entry["name"]) for entry in parts["wheels"][system]} == met
    assert parts["members"] == sorted(members[name].folder for name in used)


def test_the_recorder_has_none_of_the_readers_packages() -> None:
    names = {entry["name"] for entry in WHEELS["services"]["gatherer"]["wheels"]["aarch64-linux"]}
    assert names.isdisjoint({"pyarrow", "boto3", "botocore", "duckdb"})
    assert {"orjson", "uvloop", "asyncpg"} <= names


def test_wheels_hold_no_address() -> None:
    text = (ROOT / "nix" / "wheels.json").read_text(encoding="utf-8")
    assert "://" not in text
    assert wheels.written(WHEELS) == text


LITTLE_LOCK = """\
one==1.0 ; python_full_version >= '3.12' \\
    --hash=sha256:aa \\
    --hash=sha256:bb
one==0.9 ; python_full_version < '3.12' \\
    --hash=sha256:cc
two==2.0 \\
    --hash=sha256:dd
"""


def little(root: Path) -> Path:
    """A project with one dependency, which has one of its own."""
    (root / "requirements.lock").write_text(LITTLE_LOCK)
    for member in ("gatherer", "dedup", "cli"):
        folder = root / "python" / member
        folder.mkdir(parents=True)
        (folder / "pyproject.toml").write_text(
            f'[project]\nname = "kalshi-tape-{member}"\nrequires-python = ">=3.11"\n'
            'dependencies = ["one>=0.9"]\n'
        )
    runtime = root / "python" / "runtime"
    runtime.mkdir()
    (runtime / "pyproject.toml").write_text(
        '[project]\nname = "kalshi-tape-runtime"\nrequires-python = ">=3.11"\n'
        '[project.optional-dependencies]\ncloudwatch = ["two"]\nother = ["nowhere"]\n'
    )
    return root


def offered(**changes: Wheel | None) -> wheels.Offers:
    """An index with a wheel of `one` for each machine and a pure one of `two`."""

    def offers(system: str, pins: Sequence[Pin]) -> dict[str, Wheel]:
        machine = system.removesuffix("-linux")
        sha256 = {"aarch64": "aa", "x86_64": "bb"}[machine]
        every: dict[str, Wheel | None] = {
            "one": Wheel(f"one-1.0-cp313-cp313-manylinux_2_17_{machine}.whl", sha256, ("two",)),
            "two": Wheel("two-2.0-py3-none-any.whl", "dd", ('three; extra == "more"',)),
        }
        every |= {k: v for k, v in changes.items() if system == "aarch64-linux"}
        return {pin.name: wheel for pin in pins if (wheel := every[pin.name]) is not None}

    return offers


def test_generator_takes_the_locks_version_for_the_closures_python(tmp_path: Path) -> None:
    content: Any = wheels.generate(little(tmp_path), offered())
    entries = content["services"]["gatherer"]["wheels"]["aarch64-linux"]
    assert [(e["name"], e["version"], e["sha256"]) for e in entries] == [
        ("one", "1.0", "aa"),
        ("two", "2.0", "dd"),
    ]
    assert content["services"]["gatherer"]["members"] == ["gatherer"]
    # A service can be a member with one of its extras, and then has nothing of the others.
    extra = content["services"]["cloudwatch"]
    assert extra["members"] == ["runtime"]
    assert [entry["name"] for entry in extra["wheels"]["aarch64-linux"]] == ["two"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"one": None}, "no wheel for aarch64-linux: one 1.0"),
        ({"one": Wheel("one-1.0-cp313-cp313-manylinux_2_17_x86_64.whl", "aa", ())}, "does not run"),
        ({"one": Wheel("one-1.0-cp313-cp313-manylinux_2_39_aarch64.whl", "aa", ())}, "glibc 2.28"),
        ({"one": Wheel("one-1.0-cp312-cp312-manylinux_2_17_aarch64.whl", "aa", ())}, "does not"),
        ({"one": Wheel("one-1.0-7-cp313-cp313-any.whl", "aa", ())}, "build tag"),
        ({"two": Wheel("two-2.0-py3-none-any.whl", "ee", ())}, "the lock does not name"),
        ({"two": Wheel("two-2.0-py3-none-any.whl", "dd", (), ">=3.14")}, "not run on Python 3.13"),
        ({"two": Wheel("two-2.0-py3-none-any.whl", "dd", ("three",))}, "not in the lock"),
    ],
)
def test_generator_refuses(tmp_path: Path, change: dict[str, Wheel | None], says: str) -> None:
    with pytest.raises(WheelError, match=re.escape(says)):
        wheels.generate(little(tmp_path), offered(**change))


def test_generator_refuses_a_python_that_a_member_does_not_run_on(tmp_path: Path) -> None:
    path = little(tmp_path) / "python" / "cli" / "pyproject.toml"
    path.write_text(path.read_text().replace(">=3.11", ">=3.11,<3.13"))
    with pytest.raises(WheelError, match=r"does not run on the closure's Python 3\.13"):
        wheels.generate(tmp_path, offered())
