"""Which wheel files the closures are made of: requirements.lock -> nix/wheels.json.

Purpose: for each service and each system, the distributions that its pyproject.toml files ask for
(over the workspace members and on through the wheels' own metadata), each at the version and with a
hash of the lock, as the one wheel file that fits the closure's Python and C library.
The result holds names, versions, file name tags and hashes: where to fetch is Nix's own business.

Fails, and writes nothing, when a distribution has no such wheel on one of the systems.
Does not do: source distributions; wheels with a build tag (`fetchPypi` cannot name them).

Run as `python -m nix.wheels` in the project's environment (`make wheels`).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import tomllib
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.tags import Tag, compatible_tags, cpython_tags, parse_tag
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PYTHON = (3, 13)  # what Debian 13 ships too, so a host can check the same wheels without Nix
GLIBC = (2, 28)  # the newest C library that a wheel may ask for; hosts have 2.41
GLIBC_OLDEST = {"aarch64": 17, "x86_64": 5}  # minor versions; older tags do not exist
LEGACY = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
SYSTEMS = ("aarch64-linux", "x86_64-linux")
# Service (a flake output) -> the member whose dependencies it is made of, with its extras.
SERVICES = {
    "gatherer": "kalshi-tape-gatherer",
    "deduplicator": "kalshi-tape-dedup",
    "cloudwatch": "kalshi-tape-runtime[cloudwatch]",  # apart: boto3 is not for the gatherer
    "tape": "kalshi-tape-cli",
}


class WheelError(Exception):
    """The lock, the members and the wheels on offer do not fit together."""


@dataclass(frozen=True)
class Pin:
    """One entry of the lock."""

    name: str
    version: str
    marker: Marker | None
    hashes: frozenset[str]


@dataclass(frozen=True)
class Member:
    """One workspace member: its folder in python/ and what it asks for."""

    folder: str
    requires: tuple[str, ...]
    extras: Mapping[str, tuple[str, ...]]
    requires_python: str


@dataclass(frozen=True)
class Wheel:
    """One wheel file on offer, and what it asks for."""

    file: str
    sha256: str
    requires: tuple[str, ...]
    requires_python: str = ""


Offers = Callable[[str, Sequence[Pin]], Mapping[str, Wheel]]


def read_lock(text: str) -> list[Pin]:
    """The entries of a hash-locked requirements file."""
    pins = []
    for block in re.split(r"\n(?=\S)", text.strip()):
        head, *options = block.replace("\\\n", "\n").splitlines()
        requirement = Requirement(head)
        (version,) = [s.version for s in requirement.specifier if s.operator == "=="]
        hashes = frozenset(o.strip().removeprefix("--hash=sha256:") for o in options if o.strip())
        name = canonicalize_name(requirement.name)
        pins.append(Pin(name, version, requirement.marker, hashes))
    return pins


def read_members(root: Path) -> dict[str, Member]:
    """The workspace members by distribution name."""
    members: dict[str, Member] = {}
    for path in sorted(root.glob("python/*/pyproject.toml")):
        project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
        extras = {k: tuple(v) for k, v in project.get("optional-dependencies", {}).items()}
        members[canonicalize_name(project["name"])] = Member(
            path.parent.name,
            tuple(project.get("dependencies", ())),
            extras,
            project["requires-python"],
        )
    return members


def environment(system: str) -> dict[str, str]:
    """What environment markers see inside a closure."""
    full = ".".join(map(str, PYTHON)) + ".0"
    return {
        "implementation_name": "cpython",
        "implementation_version": full,
        "os_name": "posix",
        "platform_machine": system.removesuffix("-linux"),
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": "Linux",
        "platform_version": "",
        "python_full_version": full,
        "python_version": ".".join(map(str, PYTHON)),
        "sys_platform": "linux",
        "extra": "",
    }


def applies(marker: Marker | None, system: str, extra: str = "") -> bool:
    """Whether a requirement counts on this system (and with this extra)."""
    return marker is None or marker.evaluate({**environment(system), "extra": extra})


def pins_for(pins: Sequence[Pin], system: str) -> dict[str, Pin]:
    """The lock's answer for one system: at most one entry per name."""
    found: dict[str, Pin] = {}
    for pin in pins:
        if applies(pin.marker, system):
            if pin.name in found:
                raise WheelError(f"the lock has two {pin.name} for {system}")
            found[pin.name] = pin
    return found


def platforms(system: str) -> list[str]:
    """Platform tags that the closure's C library satisfies, newest first."""
    machine = system.removesuffix("-linux")
    found = []
    for minor in range(GLIBC[1], GLIBC_OLDEST[machine] - 1, -1):
        found.append(f"manylinux_{GLIBC[0]}_{minor}_{machine}")
        if minor in LEGACY:
            found.append(f"{LEGACY[minor]}_{machine}")
    return found


def supported(system: str) -> list[Tag]:
    """Tags of wheels that run in the closure, best first."""
    names = platforms(system)
    interpreter = "cp" + "".join(map(str, PYTHON))
    return [
        *cpython_tags(PYTHON, [interpreter], names),
        *compatible_tags(PYTHON, interpreter, names),
    ]


def split_name(file: str) -> tuple[str, str, str]:
    """Distribution, version and tags of a wheel file name, as they stand in it."""
    distribution, version, *rest = file.removesuffix(".whl").split("-")
    if len(rest) != 3 or not file.endswith(".whl"):
        raise WheelError(f"{file} is no wheel without a build tag")
    return distribution, version, "-".join(rest)


def fits(file: str, system: str) -> bool:
    """Whether this wheel runs in the closure of this system."""
    return not parse_tag(split_name(file)[2]).isdisjoint(supported(system))


def walk(
    root: str, members: Mapping[str, Member], known: Mapping[str, Wheel], system: str
) -> tuple[set[str], set[str], set[str]]:
    """From one member: the members met, the distributions met, those of them not yet known."""
    seen: set[tuple[str, str]] = set()
    used: set[str] = set()
    met: set[str] = set()
    top = Requirement(root)
    waiting = [(canonicalize_name(top.name), extra) for extra in ("", *sorted(top.extras))]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        if name in members:
            used.add(name)
            member = members[name]
            wanted = member.extras[extra] if extra else member.requires
        else:
            met.add(name)
            wanted = known[name].requires if name in known else ()
        for line in wanted:
            need = Requirement(line)
            if applies(need.marker, system, extra):
                target = canonicalize_name(need.name)
                waiting += [(target, more) for more in ("", *sorted(need.extras))]
    return used, met, met - set(known)


def asked(lines: Sequence[Pin]) -> str:
    """A hash-locked requirements file of some entries."""
    return "".join(
        f"{pin.name}=={pin.version}"
        + "".join(f" --hash=sha256:{h}" for h in sorted(pin.hashes))
        + "\n"
        for pin in lines
    )


def pip_command(system: str, requirements: Path, target: Path) -> list[str]:
    """Ask pip which files it would take for a machine that is not this one.

    `install` judges Requires-Python by the Python that runs it, so `judge` does that instead.
    """
    version = ".".join(map(str, PYTHON))
    choice = [option for name in platforms(system) for option in ("--platform", name)]
    abis = ["--abi", "cp" + version.replace(".", ""), "--abi", "abi3", "--abi", "none"]
    return [
        *(sys.executable, "-m", "pip", "--quiet", "install", "--dry-run", "--ignore-installed"),
        *(
            "--ignore-requires-python",
            "--no-deps",
            "--require-hashes",
            "--only-binary",
            ":all:",
            "--target",
            str(target),
        ),
        *("--implementation", "cp", "--python-version", version, *abis, *choice),
        *("--report", "-", "--requirement", str(requirements)),
    ]


def offers_of_pip(system: str, pins: Sequence[Pin]) -> dict[str, Wheel]:
    """The files that pip takes for these entries, one by one only to name the one without any."""
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder) / "requirements.txt"
        requirements.write_text(asked(pins), encoding="utf-8")
        command = pip_command(system, requirements, Path(folder) / "target")
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        if len(pins) > 1:
            for pin in pins:
                offers_of_pip(system, [pin])
        raise WheelError(
            f"no wheel for {system}: {', '.join(f'{pin.name} {pin.version}' for pin in pins)}\n"
            f"{answer.stderr.strip()}"
        )
    found: dict[str, Wheel] = {}
    for entry in json.loads(answer.stdout)["install"]:
        info = entry["download_info"]
        file = urllib.parse.unquote(urllib.parse.urlsplit(info["url"]).path.rpartition("/")[2])
        requires = tuple(entry["metadata"].get("requires_dist", ()))
        name = canonicalize_name(entry["metadata"]["name"])
        sha256 = info["archive_info"]["hashes"]["sha256"]
        found[name] = Wheel(file, sha256, requires, entry["metadata"].get("requires_python", ""))
    return found


def judge(pin: Pin, wheel: Wheel | None, system: str) -> Wheel:
    """The wheel, if it is one of the lock and runs on the system."""
    if wheel is None:
        raise WheelError(f"no wheel for {system}: {pin.name} {pin.version}")
    if wheel.sha256 not in pin.hashes:
        raise WheelError(f"{wheel.file} has sha256 {wheel.sha256}, which the lock does not name")
    version = ".".join(map(str, PYTHON))
    if f"{version}.0" not in SpecifierSet(wheel.requires_python):
        raise WheelError(f"{wheel.file} does not run on Python {version}")
    if not fits(wheel.file, system):
        raise WheelError(f"{wheel.file} does not run on {system} with glibc {GLIBC[0]}.{GLIBC[1]}")
    return wheel


def known_wheels(
    pins: Sequence[Pin], members: Mapping[str, Member], system: str, offers: Offers
) -> dict[str, Wheel]:
    """Every wheel that any service needs on this system."""
    answers = pins_for(pins, system)
    known: dict[str, Wheel] = {}
    while True:
        missing = {
            name for root in SERVICES.values() for name in walk(root, members, known, system)[2]
        }
        if not missing:
            return known
        unlocked = sorted(missing - set(answers))
        if unlocked:
            raise WheelError(
                f"not in the lock for {system}: {', '.join(unlocked)}; hint: make lock"
            )
        wanted = [answers[name] for name in sorted(missing)]
        offered = offers(system, wanted)
        known |= {pin.name: judge(pin, offered.get(pin.name), system) for pin in wanted}


def entries(wheels: Mapping[str, Wheel], names: set[str]) -> Iterator[dict[str, str]]:
    """The wheels of these names in the form of wheels.json."""
    for name in sorted(names):
        distribution, version, tags = split_name(wheels[name].file)
        python, abi, platform = tags.split("-")
        yield {
            "name": distribution,
            "version": version,
            "python": python,
            "abi": abi,
            "platform": platform,
            "sha256": wheels[name].sha256,
        }


def generate(root: Path, offers: Offers) -> dict[str, object]:
    """The content of wheels.json."""
    pins = read_lock((root / "requirements.lock").read_text(encoding="utf-8"))
    members = read_members(root)
    version = ".".join(map(str, PYTHON))
    for name, member in members.items():
        if version not in SpecifierSet(member.requires_python):
            raise WheelError(f"{name} does not run on the closure's Python {version}")
    wheels = {system: known_wheels(pins, members, system, offers) for system in SYSTEMS}
    services = {}
    for service, top in SERVICES.items():
        walks = {system: walk(top, members, wheels[system], system) for system in SYSTEMS}
        used = {name for system in SYSTEMS for name in walks[system][0]}
        services[service] = {
            "members": sorted(members[name].folder for name in used),
            "wheels": {s: list(entries(wheels[s], walks[s][1])) for s in SYSTEMS},
        }
    return {
        "format": 1,
        "python": version,
        "glibc": ".".join(map(str, GLIBC)),
        "services": services,
    }


def written(content: Mapping[str, object]) -> str:
    """The text of wheels.json: one wheel a line, so that a diff shows one change a line."""
    text = json.dumps(content, indent=2)
    flat = re.sub(
        r'\{\s+("name"[^{}]*?)\s+\}', lambda m: "{ " + " ".join(m[1].split()) + " }", text
    )
    return flat + "\n"


def main() -> int:
    """Write nix/wheels.json."""
    try:
        content = generate(ROOT, offers_of_pip)
    except WheelError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    (ROOT / "nix" / "wheels.json").write_text(written(content), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
