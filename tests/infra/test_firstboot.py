"""The first-boot script, run twice on a throw-away layer over this machine's own files.

What it cannot show here: package installation (there is no way out for the role `production`, which
is why that role is used), systemd (a stub records what is asked of it), and Debian's arm64 image.
The first two are shown on a booted Debian 13 by tests/onhost/test_firstboot.py (`make onhost`).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from kalshi_infra import firstboot
from kalshi_infra.site import Site

PROGRAM = r"""
set -eu
mount -t tmpfs tmpfs $WORK/layer
mkdir $WORK/layer/upper $WORK/layer/scratch
mount -t overlay overlay -o lowerdir=/,upperdir=$WORK/layer/upper,workdir=$WORK/layer/scratch \
    $WORK/root
mount --bind /dev $WORK/root/dev
mkdir -p $WORK/root/stub $WORK/root/etc/apt/sources.list.d
echo 'deb http://mirror.example/debian trixie main' > $WORK/root/etc/apt/sources.list.d/old.list
printf '#!/bin/sh\necho "$@" >> /stub/asked\n' > $WORK/root/stub/systemctl
chmod 0755 $WORK/root/stub/systemctl
for time in 1 2; do
    chroot $WORK/root env -i PATH=/stub:/usr/sbin:/usr/bin:/sbin:/bin bash -s < $WORK/script
    (
        cd $WORK/root
        find etc -type f ! -name '*-' | LC_ALL=C sort | xargs -d '\n' stat -c '%n %a %U %Y %i'
    ) > $WORK/seen.$time
done
cp -a $WORK/root/etc $WORK/kept-etc
cp $WORK/root/stub/asked $WORK/asked
"""


@pytest.fixture(scope="module")
def after(tmp_path_factory: pytest.TempPathFactory, chosen: Site) -> Iterator[Path]:
    """The directory with the layer's root after two runs."""
    if os.geteuid() != 0 or shutil.which("unshare") is None or shutil.which("dpkg-query") is None:
        pytest.skip("needs root on a Debian machine, for a layer over its files")
    work = tmp_path_factory.mktemp("firstboot")
    for name in ("layer", "root"):
        (work / name).mkdir()
    (work / "script").write_text(
        firstboot.user_data("production", "production", chosen), encoding="utf-8"
    )
    done = subprocess.run(
        ["unshare", "--mount", "--uts", "bash", "-c", PROGRAM],
        env={"WORK": str(work), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    if "overlay" in done.stderr and "mount" in done.stderr:
        pytest.skip(f"no layers here: {done.stderr.strip()[-200:]}")
    assert done.returncode == 0, done.stderr[-2000:]
    yield work
    shutil.rmtree(work, ignore_errors=True)


def text(after: Path, path: str) -> str:
    """A file below /etc after the runs."""
    return (after / "kept-etc" / path).read_text(encoding="utf-8")


def test_a_second_run_changes_no_file(after: Path) -> None:
    """User data may run again after an edit; it must not undo or double anything."""
    first, second = ((after / f"seen.{n}").read_text(encoding="utf-8") for n in (1, 2))
    assert first == second


def test_nothing_of_ours_uses_port_80(after: Path) -> None:
    """The security group lets only 443 out."""
    for path in (after / "kept-etc" / "apt").rglob("*"):
        if path.is_file() and path.suffix != ".gpg":
            assert "http://" not in path.read_text(encoding="utf-8", errors="replace"), path
    assert "https://mirror.example/debian" in text(after, "apt/sources.list.d/old.list")


def test_nix_takes_signed_paths_only_and_builds_nothing(after: Path, chosen: Site) -> None:
    """A host that cannot build proves that what was sent was complete."""
    lines = text(after, "nix/nix.conf").splitlines()
    for line in ("max-jobs = 0", "require-sigs = true", "trusted-users = root"):
        assert line in lines
    assert "build-users-group = root" in lines  # has no member, so no client can raise max-jobs
    assert any(chosen.nix_public_key in line for line in lines)


def test_the_deploy_user_may_speak_to_the_daemon_and_nothing_else(
    after: Path, chosen: Site
) -> None:
    """No shell of its own choice, no forwarding, no password."""
    (line,) = text(after, "ssh/authorized_keys.d/deploy").splitlines()
    assert line == f'restrict,command="nix-daemon --stdio" {chosen.deploy_ssh_key}'
    (shadow,) = [s for s in text(after, "shadow").splitlines() if s.startswith("deploy:")]
    assert shadow.split(":")[1].startswith("!")
    sshd = text(after, "ssh/sshd_config.d/10-kalshi.conf")
    for setting in ("PermitRootLogin no", "PasswordAuthentication no", "DisableForwarding yes"):
        assert setting in sshd
    assert "ForceCommand nix-daemon --stdio" in sshd


def test_upgrades_never_reboot_and_the_clock_comes_from_the_hypervisor(after: Path) -> None:
    """A reboot at night would be a gap in a recording."""
    upgrades = text(after, "apt/apt.conf.d/52-kalshi-upgrades")
    assert 'Automatic-Reboot "false"' in upgrades
    assert "#clear Unattended-Upgrade::Origins-Pattern;" in upgrades
    assert "label=Debian-Security" in upgrades
    assert 'label=Debian"' not in upgrades  # point releases come when a person takes them
    chrony = text(after, "chrony/chrony.conf")
    assert "server 169.254.169.123" in chrony
    assert "leapsec" not in chrony  # chrony.conf(5): clients of leap smearing servers must not
    assert text(after, "kalshi/role") == "production\n"
    assert "daemon-reload" in (after / "asked").read_text(encoding="utf-8")


def test_the_recorded_hash_is_that_of_the_file() -> None:
    """Else nothing could be synthesized at all."""
    seen = hashlib.sha256(firstboot.SCRIPT_PATH.read_bytes()).hexdigest()
    assert seen == firstboot.SCRIPT_SHA256
