"""The root tree of the test hosts: Debian 13, made once and kept outside the repository.

Kept by the hash of everything that goes into it, in $KT_ONHOST_CACHE (`cache()`); a host lays its
own files over it and never changes it. Where packages come from is this machine's own apt
configuration, read when the tree is made; their signatures are checked with the keyring that
Debian installs. Nothing is installed on this machine: mmdebstrap, where it is missing, is unpacked
beside the tree.

`python -m tests.onhost.image` makes the tree and prints its place.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SUITE = "trixie"
RECIPE = 2  # counted up when the way the tree is made changes
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
PACKAGES = (
    *("systemd", "systemd-sysv", "libnss-systemd", "dbus", "udev", "iproute2", "nftables"),
    *("procps", "python3", "iputils-ping", "openssl", "ca-certificates", "sudo", "curl", "zstd"),
    *("postgresql-17", "postgresql-17-timescaledb", "nix-bin", "openssh-server", "chrony"),
    *("strace", "libfaketime", "nix-setup-systemd", "unattended-upgrades"),
)
# What would fail in a namespace, or steer the real machine (chrony its clock).
MASKED = (
    *("console-getty.service", "getty.target", "systemd-udevd.service"),
    *("systemd-udev-trigger.service", "modprobe@.service", "systemd-modules-load.service"),
    *("sys-kernel-debug.mount", "sys-kernel-tracing.mount", "sys-fs-fuse-connections.mount"),
    *("chrony.service", "systemd-networkd-wait-online.service"),
)
DISABLED = (
    *("postgresql.service", "systemd-timesyncd.service", "apt-daily.timer"),
    *("apt-daily-upgrade.timer", "fstrim.timer", "e2scrub_all.timer", "dpkg-db-backup.timer"),
    *("ssh.service", "nix-daemon.service", "nix-daemon.socket", "systemd-networkd.service"),
    "unattended-upgrades.service",
)
# Hooks run outside the tree, with its path as the first argument: never without it.
NO_CLUSTER = (
    'mkdir -p "${1:?}/etc/postgresql-common" && echo "create_main_cluster = false"'
    ' > "${1:?}/etc/postgresql-common/createcluster.conf"'
)
LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")


class ImageError(Exception):
    """The tree cannot be made here; says why and what to do."""


def cache() -> Path:
    """Where trees, closures and other costly things are kept between runs."""
    chosen = os.environ.get("KT_ONHOST_CACHE")
    folder = Path(chosen) if chosen else Path("/var/tmp/kalshi-tape-onhost")
    folder.mkdir(parents=True, exist_ok=True, mode=0o755)
    return folder


def key() -> str:
    """What the tree is made of, as a short hash: another list makes another tree."""
    parts = (SUITE, str(RECIPE), *PACKAGES, "", *MASKED, "", *DISABLED, NO_CLUSTER, *LEFT_OUT)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def run(*command: str | Path, **options: Any) -> str:
    """A command's output. Raises ImageError with its last words."""
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        check=False,
        **options,
    )
    if done.returncode != 0:
        said = (done.stderr or done.stdout)[-3000:]
        raise ImageError(f"{command[0]} ended with {done.returncode}: {said}")
    return str(done.stdout)


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """One maker at a time; the lock goes with its process, however that ends."""
    with (cache() / f"{name}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def archives(suite: str = SUITE) -> list[str]:
    """Lines of sources.list for a suite, at the addresses that this machine's apt uses."""
    listed = run("apt-get", "indextargets", "--format", "$(ORIGIN) $(CODENAME) $(SITE)")
    found: dict[str, str] = {}
    for line in listed.splitlines():
        origin, codename, site = (*line.split(), "", "", "")[:3]
        if origin != "Debian" or not site:
            continue
        _, _, pocket = codename.partition("-")
        found.setdefault(pocket, site)
    if "" not in found:
        raise ImageError(
            "no Debian archive is set up for apt\nhint: run this on Debian, after apt-get update"
        )
    found.setdefault("updates", found[""])
    return [
        f"deb {site} {suite}{'-' if pocket else ''}{pocket} main"
        for pocket, site in sorted(found.items())
        if pocket in ("", "updates", "security")
    ]


def mmdebstrap(folder: Path) -> tuple[list[str], dict[str, str]]:
    """How to call mmdebstrap, and in which environment: the machine's own, or an unpacked one."""
    environment = dict(os.environ, LC_ALL="C.UTF-8")
    if shutil.which("mmdebstrap"):
        return ["mmdebstrap"], environment
    tools = folder / "tools"
    (tools / "archives" / "partial").mkdir(parents=True)
    run(
        *("apt-get", "install", "--yes", "--download-only", "--no-install-recommends"),
        *("-o", f"Dir::Cache::archives={tools / 'archives'}", "-o", "APT::Sandbox::User=root"),
        "mmdebstrap",
    )
    for deb in sorted((tools / "archives").glob("*.deb")):
        run("dpkg-deb", "-x", deb, tools)
    usr = tools / "usr"
    modules = [usr / "share" / "perl5", *usr.glob("share/perl/*"), *usr.glob("lib/*/perl/*")]
    libraries = [path for path in usr.glob("lib/*-linux-gnu") if path.is_dir()]
    environment["PATH"] = f"{usr / 'bin'}:{usr / 'sbin'}:{environment['PATH']}"
    environment["PERL5LIB"] = ":".join(map(str, modules))
    environment["LD_LIBRARY_PATH"] = ":".join(map(str, libraries))
    return ["perl", str(usr / "bin" / "mmdebstrap")], environment


def _make(tree: Path, beside: Path) -> None:
    """Debian into `tree`, prepared to boot in namespaces."""
    if not KEYRING.exists():
        raise ImageError(f"{KEYRING} is missing\nhint: apt-get install debian-archive-keyring")
    command, environment = mmdebstrap(beside)
    leave_out = [f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT]
    run(
        *command,
        *("--mode=root", "--variant=minbase", f"--keyring={KEYRING}", *leave_out),
        *(f"--include={','.join(PACKAGES)}", f"--essential-hook={NO_CLUSTER}"),
        *(SUITE, str(tree), *archives()),
        env=environment,
    )
    # The tree's own systemctl: this machine need not have one. It works on files in a chroot.
    chroot = shutil.which("chroot") or "/usr/sbin/chroot"
    inside = (chroot, str(tree), "systemctl", "--quiet")
    run(*inside, "mask", *MASKED)
    for unit in DISABLED:  # one at a time: a unit that a release dropped is no fault
        subprocess.run([*inside, "disable", unit], capture_output=True, check=False)
    run(*inside, "set-default", "multi-user.target")
    for name in (tree / "etc" / "ssh").glob("ssh_host_*"):  # each host makes its own
        name.unlink()
    # Empty: systemd gives each host an identity of its own, and calls no boot the first.
    (tree / "etc" / "machine-id").write_text("")
    # mmdebstrap copies these two from this machine.
    (tree / "etc" / "hostname").unlink(missing_ok=True)
    (tree / "etc" / "resolv.conf").unlink(missing_ok=True)
    (tree / "etc" / "resolv.conf").write_text("")
    (tree / "etc" / "apt" / "sources.list").unlink(missing_ok=True)


def image() -> Path:
    """The tree, made if this is the first time (about two minutes). Raises ImageError."""
    if os.geteuid() != 0:
        raise ImageError("making a root tree needs root")
    wanted = cache() / f"{SUITE}-{key()}"
    with locked("image"):
        if wanted.is_dir():
            return wanted
        beside = wanted.with_name(f"{wanted.name}.new")
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        try:
            _make(beside / "tree", beside)
            (beside / "tree").rename(wanted)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return wanted


if __name__ == "__main__":
    try:
        print(image())
    except ImageError as error:
        sys.exit(f"error: {error}")
