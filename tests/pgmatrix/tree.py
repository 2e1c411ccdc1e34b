"""PostgreSQL 15, and 17 with TimescaleDB, out of Debian packages unpacked into trees of their own.

Nothing is installed on this machine. A tree is kept by the hash of its recipe below
$PGMATRIX_CACHE, else below /var/tmp/kalshi-tape-pgmatrix, which `make pg-matrix` removes at its
end. Beside each tree lies an install root (bin, lib, share) as runtime.cluster_template wants it:
its programs are small scripts that start the tree's own with the tree's own loader and libraries,
so they run on another release of Debian, and as an unprivileged account. Where the tree has
TimescaleDB, the root's postgresql.conf.sample loads it: every cluster that initdb makes has it.

`python -m tests.pgmatrix.tree VERSION` makes what is missing and prints the install root.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.onhost.image import KEYRING, LEFT_OUT, ImageError, archives, mmdebstrap, run

RECIPE = 1  # counted up when the way a tree or a root is made changes
WRAPPER = '#!/bin/sh\nexec {loader} --library-path {libraries} --argv0 "$0" {program} "$@"\n'
PRELOAD = "\nshared_preload_libraries = 'timescaledb'\ntimescaledb.telemetry_level = off\n"


@dataclass(frozen=True)
class Release:
    """One PostgreSQL and where it comes from."""

    version: int
    suite: str
    packages: tuple[str, ...]
    timescale: bool = False


RELEASES = (
    Release(15, "bookworm", ("postgresql-15",)),
    Release(17, "trixie", ("postgresql-17", "postgresql-17-timescaledb"), timescale=True),
)


def cache() -> Path:
    """Where trees are kept."""
    folder = Path(os.environ.get("PGMATRIX_CACHE") or "/var/tmp/kalshi-tape-pgmatrix")
    folder.mkdir(parents=True, exist_ok=True, mode=0o755)
    return folder.absolute()


def place(release: Release) -> Path:
    """The folder of a release's tree and root; another recipe is another folder."""
    parts = (str(RECIPE), release.suite, *release.packages, *LEFT_OUT, WRAPPER, PRELOAD)
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
    return cache() / f"{release.version}-{key}"


def install_root(release: Release) -> Path:
    """bin, lib and share; there once the tree was made. At the depth that Debian compiled in."""
    return place(release) / "root" / "usr" / "lib" / "postgresql" / str(release.version)


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    with (cache() / "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def made(release: Release) -> Path:
    """The install root, made if this is the first time (about a minute). Raises ImageError."""
    folder = place(release)
    with _locked():
        if folder.is_dir():
            return install_root(release)
        if os.geteuid() != 0:
            raise ImageError("unpacking a Debian tree needs root")
        if not KEYRING.exists():
            raise ImageError(f"{KEYRING} is missing\nhint: apt-get install debian-archive-keyring")
        beside = folder.with_name(f"{folder.name}.new")
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        try:
            _unpack(release, beside)
            _make_root(release, folder, beside)
            beside.rename(folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return install_root(release)


def _unpack(release: Release, beside: Path) -> None:
    """The packages and all they need, unpacked; none of their scripts runs."""
    command, environment = mmdebstrap(beside / "maker")
    leave_out = [f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT]
    run(
        *command,
        *("--mode=root", "--variant=extract", f"--keyring={KEYRING}", *leave_out),
        f"--include={','.join(release.packages)}",
        *(release.suite, str(beside / "tree"), *archives(release.suite)),
        env=environment,
    )
    shutil.rmtree(beside / "maker", ignore_errors=True)


def _make_root(release: Release, folder: Path, beside: Path) -> None:
    """Scripts for the programs, links for the rest. Paths inside are those of `folder`."""
    version = str(release.version)
    tree = beside / "tree"
    loader = min((*tree.glob("usr/lib*/ld-linux-*"), *tree.glob("lib*/ld-linux-*")))
    folders = (*tree.glob("lib/*-linux-gnu"), *tree.glob("usr/lib/*-linux-gnu"))
    there = {path: folder / path.relative_to(beside) for path in (loader, *folders)}
    programs = tree / "usr" / "lib" / "postgresql" / version
    root = beside / "root" / "usr" / "lib" / "postgresql" / version
    (root / "bin").mkdir(parents=True)
    for program in (programs / "bin").iterdir():
        script = root / "bin" / program.name
        script.write_text(
            WRAPPER.format(
                loader=there[loader],
                libraries=":".join(str(there[path]) for path in folders),
                program=folder / program.relative_to(beside),
            )
        )
        script.chmod(0o755)
    (root / "lib").symlink_to(folder / (programs / "lib").relative_to(beside))
    share = tree / "usr" / "share" / "postgresql" / version
    shared = beside / "root" / "usr" / "share" / "postgresql" / version
    shared.mkdir(parents=True)
    for entry in share.iterdir():
        (shared / entry.name).symlink_to(folder / entry.relative_to(beside))
    if release.timescale:
        sample = shared / "postgresql.conf.sample"
        text = sample.read_text() if not sample.is_symlink() else (share / sample.name).read_text()
        sample.unlink()
        sample.write_text(text + PRELOAD)


def release_of(version: int) -> Release:
    """Raises ImageError for a version that no tree is made of."""
    for release in RELEASES:
        if release.version == version:
            return release
    raise ImageError(f"there is no tree of postgresql {version}")


if __name__ == "__main__":
    try:
        print(made(release_of(int(sys.argv[1]))))
    except ImageError as error:
        sys.exit(f"error: {error}")
