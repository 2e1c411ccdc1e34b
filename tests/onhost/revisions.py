"""Releases to roll out: two good revisions of this checkout, and cheap broken ones.

The two differ in one constant of the member `runtime`, which is in every Python closure. A broken
one is the first with another `bin/kalshi-gatherer`: everything else of it is the good closure's.
All are signed with one key of the cache, except the one that shall be refused. The databases'
closure has Debian's programs, because the stand-in package set has no PostgreSQL.

A release is a folder with `manifest.json` as nix/release.nix makes it; written here, because that
derivation also wants the closure of the command `tape`, which no host gets.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.nix.host import FEATURES, MACHINE, run
from tests.onhost import closures
from tests.onhost.image import cache, locked
from tests.rules.tree import ROOT

FORMAT: Final = 2
KEY_NAME: Final = "kalshi-tape"
GOOD: Final = ("a", "b")
CRASH_AFTER_S: Final = 20
SERVER: Final = "/usr/lib/postgresql/17/bin"

# What stands in bin/kalshi-gatherer of the broken ones, run by the closure's own Python.
# `idle` is the mean one: it says READY, feeds the watchdog, answers nothing and records nothing.
# `deaf` answers and is up, and its exchange is at an address that nobody has (RFC 5737).
GATHER: Final = "from gatherer.main import main\nsys.exit(main())\n"
BROKEN: Final[Mapping[str, str]] = {
    "no-start": "import sys\nsys.exit('this release does not start')\n",
    "idle": (
        "import os, socket, time\n"
        "notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
        "notify.connect(os.environ['NOTIFY_SOCKET'])\n"
        "notify.send(b'READY=1')\n"
        "while True:\n"
        "    time.sleep(1)\n"
        "    notify.send(b'WATCHDOG=1')\n"
    ),
    "deaf": f"import os, sys\nos.environ['KT_WS_URL'] = 'wss://192.0.2.1/'\n{GATHER}",
    "crash": (
        "import os, signal, sys, threading\n"
        f"end = threading.Timer({CRASH_AFTER_S}, os.kill, (os.getpid(), signal.SIGSEGV))\n"
        f"end.start()\n{GATHER}"
    ),
    "forged": f"import sys\n{GATHER}",  # good, and signed by nobody we trust
}
# Good ones with much in them: no host has it, and copying takes a moment.
BIG: Final = ("big-1", "big-2")
BIG_BYTES: Final = 256 << 20
# Small directories are copied, because systemd's links lead into them; the rest is linked, from
# beside, because a deploy reads it in a store that is not at /nix.
BREAK: Final = r"""
mkdir -p "$out/bin" "$out/lib"
for part in systemd sysusers.d tmpfiles.d; do cp -R "$good/lib/$part" "$out/lib/"; done
beside=../../$(basename "$good")
ln -s "$beside/lib/python3.13" "$out/lib/python3.13"
cp "$good/pyvenv.cfg" "$out/"
for program in "$good"/bin/*; do ln -s "$beside/bin/$(basename "$program")" "$out/bin/"; done
rm "$out/bin/kalshi-gatherer"
{ printf '#!%s/bin/python3.13 -sP\n' "$out"; cat "$text"; } > "$out/bin/kalshi-gatherer"
chmod 555 "$out/bin/kalshi-gatherer"
"""
FILL: Final = f'head -c {BIG_BYTES} /dev/urandom > "$out/ballast"\n'
# The stand-in has no PostgreSQL: the closure's settings and units, and the programs of Debian.
WITH_SERVER: Final = r"""
mkdir "$out"
cp -R "$good/lib" "$good/share" "$out/"
ln -s "$(cat "$text")" "$out/bin"
"""
EXPRESSION: Final = r"""
derivation {
  name = "@NAME@";
  system = "@SYSTEM@";
  builder = "/bin/sh";
  PATH = "/usr/bin:/bin";
  good = builtins.storePath "@GOOD@";
  text = builtins.toFile "text" ''@TEXT@'';
  args = [ "-eu" (builtins.toFile "script" ''@SCRIPT@'') ];
}
"""


@dataclass(frozen=True)
class Releases:
    """`folders`: a release by name (a, b and the broken ones); `public_key` as nix.conf has it."""

    store: Path
    public_key: str
    folders: Mapping[str, Path]
    paths: Mapping[str, Mapping[str, str]]


def _nix(*words: str | Path) -> str:
    options = ("--offline", "--option", "build-users-group", "")
    sandbox = ("--option", "sandbox", "true")
    shown = ("--option", "sandbox-paths", "/bin /usr /lib /lib64")
    done = run("nix", *FEATURES, *words, "--store", closures.store(), *options, *sandbox, *shown)
    return done.stdout.strip()


def _key(folder: Path, name: str) -> Path:
    """A secret key of the cache, made the first time."""
    key = folder / f"{name}.key"
    if not key.exists():
        made = run("nix", *FEATURES, "key", "generate-secret", "--key-name", KEY_NAME).stdout
        key.touch(mode=0o600)
        key.write_text(made)
    return key


def _revised(name: str) -> dict[str, str]:
    """Store paths of this checkout with one more line in `runtime`."""

    def change(source: Path) -> None:
        module = source / "python" / "runtime" / "src" / "runtime" / "__init__.py"
        module.write_text(module.read_text() + f'REVISION = "{name}"\n')

    return closures.changed(change)


def _derived(name: str, good: str, script: str, text: str) -> str:
    """A closure made of a good one by a script that has a text; its store path."""
    expression = EXPRESSION
    words = {"GOOD": good, "NAME": name, "SYSTEM": MACHINE, "SCRIPT": script, "TEXT": text}
    for word, said in words.items():
        expression = expression.replace(
            f"@{word}@", said.replace("''", "'''").replace("${", "''${")
        )
    built = _nix("build", "--no-link", "--json", "--impure", "--expr", expression)
    return str(json.loads(built)[0]["outputs"]["out"])


def _write(folder: Path, name: str, paths: Mapping[str, str]) -> Path:
    """A release as a folder with its manifest."""
    release = folder / name
    release.mkdir(parents=True, exist_ok=True)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    topology = hashlib.sha256((ROOT / "topology.toml").read_bytes()).hexdigest()
    manifest = {
        "format": FORMAT, "version": version, "system": MACHINE, "revision": name,
        "topology": topology, "closures": dict(paths),
    }  # fmt: skip
    (release / "manifest.json").write_text(json.dumps(manifest, indent=1))
    return release


def releases(folder: Path) -> Releases:
    """Build and sign everything, and write the releases below `folder`. Later times: seconds."""
    work = cache() / "closures"
    paths: dict[str, dict[str, str]] = {name: _revised(name) for name in GOOD}
    with locked("closures"):
        signing, impostor = _key(work, "signing"), _key(work, "impostor")
        for name in GOOD:
            closure = paths[name]["postgres"]
            paths[name]["postgres"] = _derived("kalshi-postgres", closure, WITH_SERVER, SERVER)
        for name, text in BROKEN.items():
            made = _derived(f"kalshi-gatherer-{name}", paths["a"]["gatherer"], BREAK, text)
            paths[name] = {**paths["a"], "gatherer": made}
        for name in BIG:
            text = f"import sys  # {name}\n{GATHER}"
            made = _derived(f"kalshi-gatherer-{name}", paths["a"]["gatherer"], BREAK + FILL, text)
            paths[name] = {**paths["a"], "gatherer": made}
        signed = {p for name, found in paths.items() if name != "forged" for p in found.values()}
        _nix("store", "sign", "--recursive", "--key-file", signing, *sorted(signed))
        _nix("store", "sign", "--key-file", impostor, paths["forged"]["gatherer"])
        public = run(
            "nix", *FEATURES, "key", "convert-secret-to-public", input=signing.read_text()
        ).stdout.strip()
    folders = {name: _write(folder, name, found) for name, found in paths.items()}
    return Releases(closures.store(), public, folders, paths)


if __name__ == "__main__":
    print(releases(cache() / "closures" / "releases"))
