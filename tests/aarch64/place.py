"""What the emulation stands on: an aarch64 Debian 13 tree with Python, and qemu, kept between runs.

Kept in $KT_AARCH64_CACHE (`cache()`), a tree by the hash of its package list; nothing is installed
on this machine. Where packages come from is this machine's own apt configuration, read at run time;
apt checks the signatures with the keyring that Debian installs, in a state directory of its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SUITE = "trixie"  # Debian 13, what the hosts run; its Python is the closures' minor version
RECIPE = 1  # counted up when the way the tree is made changes
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
QEMU = "qemu-aarch64-static"
TOOLS = {"apt-get": "apt", "dpkg-deb": "dpkg", "unshare": "util-linux", "setpriv": "util-linux"}
FOLDERS = ("proc", "dev", "tmp", "trial")  # where the emulator mounts things
FILES = ("qemu", "dev/null", "dev/urandom", "dev/random")


class CannotRunError(Exception):
    """This machine cannot run the emulation; says why and what to do."""


def pinned() -> dict[str, Any]:
    """nix/wheels.json."""
    text = (ROOT / "nix" / "wheels.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def packages() -> tuple[str, ...]:
    """What the tree holds, beside what these depend on."""
    return ("libc6", "libstdc++6", "zlib1g", "tzdata", f"python{pinned()['python']}")


def cache() -> Path:
    """Where trees, qemu and wheels are kept between runs."""
    folder = Path(os.environ.get("KT_AARCH64_CACHE", "/var/tmp/kalshi-tape-aarch64"))
    folder.mkdir(parents=True, exist_ok=True, mode=0o755)
    status = folder.stat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        # What lies there is run as root: nobody else may have put it there.
        raise CannotRunError(f"{folder} can be written by others\nhint: remove it")
    return folder


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """One run at a time; the lock goes with its process, however that ends."""
    with (cache() / "lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CannotRunError(f"another run uses {cache()}\nhint: wait for its end") from None
        yield


def require() -> None:
    """Raise CannotRunError unless this is root on a Debian with what the emulation needs."""
    if os.geteuid() != 0:
        raise CannotRunError("namespaces and chroot need root\nhint: run make aarch64 as root")
    if os.uname().machine == "aarch64":
        raise CannotRunError("this machine is an aarch64: nothing to emulate")
    missing = sorted({p for tool, p in TOOLS.items() if shutil.which(tool) is None})
    if missing:
        raise CannotRunError(f"programs of {', '.join(missing)} are missing\nhint: run on Debian")
    if not KEYRING.exists():
        raise CannotRunError(f"{KEYRING} is missing\nhint: apt-get install debian-archive-keyring")


def run(*command: str | Path, **options: Any) -> str:
    """A command's output. Raises CannotRunError with its last words."""
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,
        **options,
    )
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()[-2000:]
        raise CannotRunError(f"{command[0]} ended with {done.returncode}: {said}")
    return str(done.stdout)


class Apt:
    """apt that leaves the machine's own state alone: lists, downloads and status in a folder."""

    def __init__(self, folder: Path, *, sources: str = "", architecture: str = "") -> None:
        self.archives = folder / "archives"
        for part in (folder / "lists" / "partial", self.archives / "partial"):
            part.mkdir(parents=True, exist_ok=True)
        (folder / "status").write_text("")  # nothing is installed: dependencies come too
        settings = {
            "Dir::State": folder,
            "Dir::State::status": folder / "status",
            "Dir::Cache": folder,
            "APT::Sandbox::User": "root",
            "APT::Update::Error-Mode": "any",
        }
        if sources:
            (folder / "sources.list").write_text(sources)
            settings |= {
                "Dir::Etc::sourcelist": folder / "sources.list",
                "Dir::Etc::sourceparts": Path("/dev/null"),
            }
        self.options = [part for k, v in settings.items() for part in ("-o", f"{k}={v}")]
        if architecture:
            for name in ("APT::Architecture", "APT::Architectures"):
                self.options += ["-o", f"{name}={architecture}"]

    def __call__(self, *arguments: str) -> str:
        """`apt-get ...`."""
        return run("apt-get", *self.options, *arguments)

    def update(self) -> None:
        """Fetch the signed indexes that are newer than those here."""
        try:
            self("update", "-qq")
        except CannotRunError as error:
            first = str(error).splitlines()[0]
            raise CannotRunError(f"the package index cannot be reached: {first}") from None

    def install(self, option: str, names: Sequence[str]) -> str:
        """`apt-get install` with an option that keeps it from installing."""
        return self("install", "-y", "-qq", "--no-install-recommends", option, *names)

    def files(self, names: Sequence[str]) -> list[str]:
        """The package files that would be taken: name, version and architecture."""
        lines = self.install("--print-uris", names).splitlines()
        return sorted(line.split()[1] for line in lines if line.startswith("'"))

    def download(self, names: Sequence[str]) -> list[Path]:
        """Fetch these packages and what they depend on."""
        self.install("--download-only", names)
        return sorted(self.archives.glob("*.deb"))

    def forget(self) -> None:
        """Remove the downloads."""
        for file in self.archives.glob("*.deb"):
            file.unlink()

    def sources(self) -> str:
        """A sources.list for SUITE at the addresses that this machine's apt uses for Debian."""
        found: dict[str, str] = {}
        listed = self("indextargets", "--format", "$(ORIGIN) $(CODENAME) $(SITE)")
        for line in listed.splitlines():
            origin, codename, site = (*line.split(), "", "", "")[:3]
            if origin == "Debian" and site:
                found.setdefault(codename.partition("-")[2], site)
        if "" not in found:
            raise CannotRunError("no Debian archive is set up for apt\nhint: run this on Debian")
        found.setdefault("updates", found[""])
        return "".join(
            f"deb [signed-by={KEYRING}] {site} {SUITE}{'-' if pocket else ''}{pocket} main\n"
            for pocket, site in sorted(found.items())
            if pocket in ("", "updates", "security")
        )


def _unpack(debs: Sequence[Path], tree: Path) -> None:
    """Packages as files, without running anything of theirs: a root tree of the merged /usr."""
    for name in ("lib", "bin", "sbin"):
        (tree / "usr" / name).mkdir(parents=True)
        (tree / name).symlink_to(f"usr/{name}")
    for deb in debs:
        run("dpkg-deb", "-x", deb, tree)
    for folder in FOLDERS:
        (tree / folder).mkdir(exist_ok=True)
    for file in FILES:
        (tree / file).touch()


class Place:
    """The tree and the emulator, made where they are not there yet."""

    def __init__(self) -> None:
        self.own = Apt(cache() / "apt-own")
        self.own.update()
        arm = Apt(cache() / "apt-arm64", sources=self.own.sources(), architecture="arm64")
        arm.update()
        self.packages = arm.files(packages())
        text = "\n".join((SUITE, str(RECIPE), *self.packages))
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        self.tree = cache() / f"tree-{key}"
        self.tree_is_new = not self.tree.is_dir()
        if self.tree_is_new:
            for old in cache().glob("tree-*"):
                shutil.rmtree(old)
            made = cache() / "tree-new"
            made.mkdir()
            _unpack(arm.download(packages()), made)
            arm.forget()
            made.rename(self.tree)
        self.qemu = self._qemu()

    def _qemu(self) -> Path:
        """The machine's own qemu, or Debian's unpacked beside the tree."""
        installed = shutil.which(QEMU)
        if installed:
            return Path(installed)
        (file,) = self.own.files(["qemu-user-static"])
        kept = cache() / f"{QEMU}-{hashlib.sha256(file.encode()).hexdigest()[:16]}"
        if not kept.exists():
            for old in cache().glob(f"{QEMU}-*"):
                old.unlink()
            (deb,) = self.own.download(["qemu-user-static"])
            unpacked = cache() / "qemu-new"
            shutil.rmtree(unpacked, ignore_errors=True)
            run("dpkg-deb", "-x", deb, unpacked)
            (unpacked / "usr" / "bin" / QEMU).rename(kept)
            shutil.rmtree(unpacked)
            self.own.forget()
        return kept
