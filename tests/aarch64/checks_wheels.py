"""Checks of what the closures are made of: the machine, the wheel files, the imports."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from nix import assemble
from nix.closure_check import PACKAGES
from tests.aarch64 import closures
from tests.aarch64.closures import RefusedWheelError
from tests.aarch64.emulator import CPU
from tests.aarch64.place import pinned
from tests.aarch64.trial import Trial, expect

SWAPPED = "orjson"  # the distribution whose wheel the controls put the wrong one for
FACTS = [{"op": "facts"}]


def machine(trial: Trial) -> str:
    """The emulated machine is an aarch64 with the features of the hosts' core."""
    (facts,) = trial.emulator.ask("gatherer", "side_machine", FACTS)
    expect(facts["machine"] == "aarch64", f"the machine is {facts['machine']}")
    expect(facts["python"].startswith(pinned()["python"] + "."), f"python {facts['python']}")
    expect(facts["atomics"] and not facts["sve"], f"not the features of {CPU}: {facts}")
    version = trial.emulator.run("--version", cpu=CPU).stdout.splitlines()
    place = trial.place
    return (
        f"{facts['machine']} ({CPU}: atomics yes, SVE no), {facts['libc']}, Python"
        f" {facts['python']}, pages of {facts['page_bytes']} bytes, {facts['byte_order']}-endian;"
        f" tree of {len(place.packages)} Debian 13 packages,"
        f" {closures.size_bytes(place.tree) / 2**20:.0f} MiB,"
        f" {'made' if place.tree_is_new else 'kept'}; {version[0] if version else 'qemu'}"
    )


def machine_control(trial: Trial) -> str:
    """Another core shows other features; a program of this machine does not start."""
    done = trial.emulator.python(
        "gatherer",
        *("-m", "tests.aarch64.side_machine"),
        cpu="max",
        environment={"PYTHONPATH": "/trial/checks"},
        text='{"op": "facts"}\n',
    )
    expect('"sve": true' in done.stdout, f"-cpu max has no SVE: {done.stdout}{done.stderr}")
    foreign = trial.folder / "true"
    shutil.copyfile("/bin/true", foreign)
    foreign.chmod(0o755)
    refused = trial.emulator.run(trial.inside(foreign))
    expect(
        refused.returncode != 0 and "Invalid ELF image" in refused.stderr,
        f"a program of this machine is not refused: {refused.returncode} {refused.stderr}",
    )
    return "-cpu max is told apart (SVE yes); an x86_64 program is refused"


def wheels(trial: Trial) -> str:
    """Every wheel has its hash and its tags, and every native file in it is for aarch64."""
    told = []
    for service in closures.SERVICES:
        wanted = closures.entries(service)
        for entry in wanted:
            closures.judge(trial.wheels[service][entry["name"]], entry)
        found = closures.native_files(trial.prefix(service))
        foreign = {k: v for k, v in found.items() if k != "aarch64"}
        expect(not foreign, f"{service} holds programs for other machines: {foreign}")
        expect(found.get("aarch64"), f"{service} holds no native file")
        size = closures.size_bytes(trial.prefix(service)) / 2**20
        told.append(f"{service} {len(wanted)} wheels, {len(found['aarch64'])} native files,"
                    f" {size:.0f} MiB")  # fmt: skip
    return (
        "; ".join(told) + f" (fetched in {trial.seconds['fetch']:.0f} s, unpacked in"
        f" {trial.seconds['assemble']:.0f} s)"
    )


def _swapped(trial: Trial) -> tuple[Path, closures.Entry]:
    """The x86_64 wheel of one distribution, and the aarch64 entry that it is put in place of."""
    (foreign,) = [e for e in closures.entries("gatherer", "x86_64-linux") if e["name"] == SWAPPED]
    (entry,) = [e for e in closures.entries("gatherer") if e["name"] == SWAPPED]
    return closures.fetch([foreign], "x86_64-linux")[SWAPPED], entry


def _refusal(file: Path, entry: closures.Entry) -> str:
    try:
        closures.judge(file, entry)
    except RefusedWheelError as error:
        return str(error)
    return ""


def wheels_control(trial: Trial) -> str:
    """An x86_64 wheel is refused by hash, by tags, and by what is in it, each time by name."""
    file, entry = _swapped(trial)
    disguised = trial.folder / closures.file_name(entry)
    shutil.copyfile(file, disguised)
    by_hash = _refusal(disguised, entry)
    expect(f"{SWAPPED}: " in by_hash and "sha256" in by_hash, f"by hash: {by_hash!r}")
    pinned_wrongly = {**entry, "sha256": _entry_hash("x86_64-linux")}
    by_tags = _refusal(file, pinned_wrongly)
    expect("does not run on aarch64" in by_tags, f"by tags: {by_tags!r}")
    spoiled = trial.folder / "spoiled"
    assemble.unpack(file, spoiled, spoiled, ())
    found = closures.native_files(spoiled)
    expect(SWAPPED in str(found.get("x86_64")), f"by content: {found}")
    return f"an x86_64 wheel of {SWAPPED} is refused by hash, by tags and by its ELF header"


def _entry_hash(system: str) -> str:
    (entry,) = [e for e in closures.entries("gatherer", system) if e["name"] == SWAPPED]
    return entry["sha256"]


def _ask_imports(trial: Trial, service: str, extra: str = "") -> dict[str, Any]:
    packages = [PACKAGES.get(m, m) for m in closures.members(service)]
    path = ":".join(part for part in (extra, "/trial/checks") if part)
    (answer,) = trial.emulator.ask(
        service,
        "side_machine",
        [{"op": "imports", "packages": packages}],
        {"PYTHONPATH": path},
    )
    return answer


def imports(trial: Trial) -> str:
    """Every distribution of both closures imports, with every native file and own module."""
    told = []
    for service in closures.SERVICES:
        with trial.timed(f"imports {service}"):
            answer = _ask_imports(trial, service)
        expect(not answer["failures"], f"{service}: {answer['failures']}")
        versions = answer["versions"]
        wanted = {e["name"].replace("_", "-").lower() for e in closures.entries(service)}
        missing = wanted - {name.replace("_", "-").replace(".", "-").lower() for name in versions}
        expect(not missing, f"{service}: no distribution {missing}")
        left_out = "".join(f", left out {line}" for line in answer["left_out"])
        told.append(
            f"{service} {len(versions)} distributions: {answer['module']} packages,"
            f" {answer['native']} native modules, {answer['library']} libraries,"
            f" {answer['own']} own modules{left_out}, {trial.seconds[f'imports {service}']:.0f} s"
        )
    return "; ".join(told)


def imports_control(trial: Trial) -> str:
    """The x86_64 wheel, its native file called as aarch64's are, does not import; it is named."""
    file, _ = _swapped(trial)
    site = trial.folder / "disguised"
    assemble.unpack(file, site, site, ())
    for native in site.rglob("*x86_64-linux-gnu.so"):
        native.rename(native.with_name(native.name.replace("x86_64", "aarch64")))
    answer = _ask_imports(trial, "gatherer", trial.inside(site))
    failures = str(answer["failures"])
    expect(SWAPPED in failures, f"nothing of {SWAPPED} among the failures: {failures}")
    return f"an x86_64 {SWAPPED} under an aarch64 name is named: {failures[2:150]}..."
