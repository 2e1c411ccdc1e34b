"""The closures of this checkout for the test hosts: built as `make nix-build` builds them.

Debian's Nix, the stand-in package set and a store that is kept between runs, so that only what
changed is built again. A host gets a layer with exactly the closures' paths, kept by their names.
The stand-in has no PostgreSQL: its closure holds settings, roles and units, and the programs are
those of the host's Debian (see hosts.py).

`python -m tests.onhost.closures` builds and prints the layer.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.nix.host import (
    DEBS,
    MACHINE,
    STANDIN,
    SUITE,
    Nix,
    full_standin,
    locked_wheels,
    run,
    snapshot,
)
from tests.onhost.image import cache, locked
from tests.rules.tree import ROOT

NAMES = ("gatherer", "deduplicator", "cloudwatch", "postgres")
LAYERS_KEPT = 4


@dataclass(frozen=True)
class Closures:
    """`layer`: a root with nix/store and nothing else; `paths`: store path by closure."""

    layer: Path
    paths: dict[str, str]


def _supplies(work: Path) -> tuple[Path, list[Path], str]:
    """The package set that can build, the files its store must hold, and their common hash."""
    text = (ROOT / "nix" / "wheels.json").read_bytes() + repr((SUITE, DEBS)).encode()
    for path in sorted(STANDIN.rglob("*")):
        text += path.read_bytes() if path.is_file() else b""
    key = hashlib.sha256(text).hexdigest()[:16]
    folder = work / f"supplies-{key}"
    if not folder.is_dir():
        shutil.rmtree(beside := work / "supplies.new", ignore_errors=True)
        beside.mkdir(parents=True)
        full_standin(beside)
        locked_wheels(beside / "wheels")
        beside.rename(folder)
    files = [*(folder / "apt" / "archives").glob("*.deb"), *(folder / "wheels").glob("*.whl")]
    return folder / "standin", sorted(files), key


def _layer(work: Path, nix: Nix, paths: list[str]) -> Path:
    """The closures' paths as hard links: the store may change while hosts run, a layer does not."""
    wanted = sorted(nix.query("--requisites", *paths))
    key = hashlib.sha256("\n".join(wanted).encode()).hexdigest()[:16]
    layer = work / f"layer-{key}"
    if not layer.is_dir():
        shutil.rmtree(beside := work / "layer.new", ignore_errors=True)
        (beside / "nix" / "store").mkdir(parents=True)
        for path in wanted:
            run("cp", "--archive", "--link", nix.real(path), beside / "nix" / "store")
        for folder in (beside, beside / "nix", beside / "nix" / "store"):
            folder.chmod(0o755)
        beside.rename(layer)
    layer.touch()
    others = sorted(work.glob("layer-*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in others[LAYERS_KEPT:]:
        shutil.rmtree(old)
    return layer


def store() -> Path:
    """The Nix store of the closures, a folder: what `nix copy --from` and `--store` take."""
    return cache() / "closures" / "store"


def _build(work: Path, change: Callable[[Path], None]) -> tuple[Nix, dict[str, str]]:
    """Build this checkout as `change` left the copy of it; store path by closure."""
    packages, files, key = _supplies(work)
    with tempfile.TemporaryDirectory(dir=work, prefix="source-") as folder:
        source = snapshot(Path(folder))
        change(source)
        nix = Nix(store(), source, packages)
        known = store() / f"supplied-{key}"
        if not known.exists():
            nix.add(files)
            known.touch()
        paths = nix.build(*(f"packages.{MACHINE}.{name}" for name in NAMES))
        return nix, dict(zip(NAMES, paths, strict=True))


def closures() -> Closures:
    """Build what this checkout says. The first time takes about ten minutes, later ones seconds."""
    work = cache() / "closures"
    work.mkdir(exist_ok=True)
    with locked("closures"):
        nix, paths = _build(work, lambda source: None)
        return Closures(_layer(work, nix, list(paths.values())), paths)


def changed(change: Callable[[Path], None]) -> dict[str, str]:
    """Build a copy of this checkout in which `change` (given its folder) changed something."""
    work = cache() / "closures"
    work.mkdir(exist_ok=True)
    with locked("closures"):
        return _build(work, change)[1]


if __name__ == "__main__":
    print(closures())
