"""Upgrades that wait for a host: small packages in archives that call themselves as Debian's do.

Two packages are installed in version 1 and have a version 2, one in an archive with the labels of
Debian's security updates, one in an archive with those of a point release. The first holds a
library that a stand-in for the capture service has mapped, which is what makes restarting tools
want to restart it.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from tests.onhost.firstboot_mirror import NAME, Mirror
from tests.onhost.image import run
from tests.onhost.machine import Machine

LIBRARY = "/usr/lib/kalshi-probe/libprobe.so"
CAPTURE = "kalshi-gatherer.service"
SECURITY, POINT = "kalshi-probe-security", "kalshi-probe-point"
ARCHIVES = {
    SECURITY: ("Debian-Security", "stable-security", "trixie-security"),
    POINT: ("Debian", "stable", "trixie"),
}
UNIT = f"""[Service]
ExecStart=/usr/bin/python3 -c "import ctypes, time; ctypes.CDLL('{LIBRARY}'); time.sleep(1000000)"
[Install]
WantedBy=multi-user.target
"""


def package(folder: Path, name: str, version: str, files: dict[str, bytes]) -> Path:
    """A Debian package with these files."""
    root = folder / f"{name}_{version}"
    for path, content in files.items():
        target = root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN" / "control").write_text(
        f"Package: {name}\nVersion: {version}\nArchitecture: all\n"
        "Maintainer: nobody <nobody@example.org>\nDescription: something to upgrade\n"
    )
    made = folder / f"{name}_{version}_all.deb"
    run("dpkg-deb", "--root-owner-group", "--build", root, made)
    shutil.rmtree(root)
    return made


def archive(folder: Path, name: str, deb: Path) -> None:
    """A flat archive with one package, labelled as the package's name says in ARCHIVES."""
    folder.mkdir(parents=True)
    shutil.move(deb, folder / deb.name)
    content = (folder / deb.name).read_bytes()
    listed = (
        run("dpkg-deb", "--field", folder / deb.name).rstrip("\n")
        + f"\nFilename: ./{deb.name}\nSize: {len(content)}\n"
        f"SHA256: {hashlib.sha256(content).hexdigest()}\n\n"
    ).encode()
    (folder / "Packages").write_bytes(listed)
    label, suite, codename = ARCHIVES[name]
    (folder / "Release").write_text(
        f"Origin: Debian\nLabel: {label}\nSuite: {suite}\nCodename: {codename}\n"
        "Date: Sat, 01 Jan 2022 00:00:00 UTC\nArchitectures: all\nComponents: main\nSHA256:\n"
        f" {hashlib.sha256(listed).hexdigest()} {len(listed)} Packages\n"
    )


def offer(host: Machine, mirror: Mirror, work: Path) -> None:
    """Version 1 on the host, version 2 in the archives, capture running with the library."""
    work.mkdir()
    (library,) = host.path("/usr/lib").glob("*-linux-gnu/libutil.so.1")
    content = library.read_bytes()
    for name in ARCHIVES:
        old = package(work, name, "1", {f"/usr/share/{name}/one": b"1"})
        if name == SECURITY:
            old = package(work, name, "1", {LIBRARY: content})
        host.write(f"/root/{old.name}", old.read_bytes())
        host.run("dpkg", "--install", f"/root/{old.name}")
        new_files = {LIBRARY: content + b"\0"} if name == SECURITY else {"/usr/share/two": b"2"}
        archive(mirror.local / name, name, package(work, name, "2", new_files))
        host.write(
            f"/etc/apt/sources.list.d/{name}.list",
            f"deb [trusted=yes] https://{NAME}/local/{name} ./\n",
        )
    host.write(f"/etc/systemd/system/{CAPTURE}", UNIT)
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "start", CAPTURE)


def version(host: Machine, name: str) -> str:
    """The installed version of a package."""
    return host.run("dpkg-query", "-W", "-f", "${Version}", name).stdout


def main_process(host: Machine) -> str:
    """Which process the stand-in for capture is."""
    return host.show(CAPTURE, "MainPID")["MainPID"]
