"""A host in its first minutes and the world around it, for the tests of the first boot.

What cannot exist here is replaced, and only this:

- Debian's arm64 machine image by the Debian 13 tree of `image.py`, for this machine's processor,
  without the packages that the script installs; what cloud-init does on AWS (host keys of SSH, the
  user `admin` with the owner's key and sudo, running the user data as root) by `prepare`.
- The package mirrors by `firstboot_mirror`, which forwards to those of this machine; the lists
  begin with http, as an image's may. DNS by /etc/hosts.
- The time server of the hypervisor by a chronyd on the same address. Both chronyds run without
  control of the clock (-x), because there is one clock and it is this machine's.

The instance metadata service is replaced by nothing: the script does not ask it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.onhost.firstboot_mirror import NAME, Mirror, mirror
from tests.onhost.image import run
from tests.onhost.lab import NETNS, Lab
from tests.onhost.machine import Machine
from tests.rules.tree import ROOT

MIRROR_ADDRESS = "203.0.113.80"
TIME_ADDRESS = "169.254.169.123"
# In the tree, and not in Debian's image.
INSTALLED = ("chrony", "nix-bin", "nix-setup-systemd", "unattended-upgrades")
PASSWORD = "correct horse"
OWNERS_NIX = """experimental-features = nix-command flakes
substituters =
build-users-group =
sandbox = false
"""
RENDER = """
import dataclasses, sys
from pathlib import Path
from kalshi_infra import firstboot, site
example = site.load({"site": sys.argv[1]})
keys = dataclasses.replace(example, deploy_ssh_key=sys.argv[4], nix_public_key=sys.argv[5])
sys.stdout.write(firstboot.user_data(sys.argv[2], sys.argv[3], keys))
"""
SOURCES = "".join(
    f"""Types: deb
URIs: mirror+file:///etc/apt/mirrors/{archive}.list
Suites: {suites}
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

"""
    for archive, suites in (
        ("debian", "trixie trixie-updates"),
        ("debian-security", "trixie-security"),
    )
)
NO_CLOCK = """[Unit]
ConditionCapability=
[Service]
ExecStart=
ExecStart=!/usr/sbin/chronyd -F 1 -x
"""
# Only a control: a server whose settings allow what the first boot forbids.
OPEN_SSHD = """Port 2222
PidFile none
PermitRootLogin yes
PasswordAuthentication yes
UsePAM yes
AuthorizedKeysFile .ssh/authorized_keys /etc/ssh/open_keys.d/%u
Subsystem sftp internal-sftp
"""


@dataclass
class World:
    """A host under test, the owner's machine outside, the mirror between them and the archives."""

    lab: Lab
    role: str
    name: str
    host: Machine
    outside: Machine
    mirror: Mirror
    deploy_key: Path
    user_data: str
    states: list[dict[str, str]] = field(default_factory=list)

    def first_boot(self) -> str:
        """Run the user data as cloud-init would; what it said."""
        done = self.host.run("bash", "-s", input=self.user_data, timeout_s=900, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout + done.stderr

    def ssh(
        self, user: str, *command: str, secret: str = "admin", port: int = 22, options: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Try to enter from outside with a key (`admin`, `deploy`) or the password."""
        common = [*("-p", str(port), "-o", "StrictHostKeyChecking=no", "-o", "LogLevel=ERROR")]
        common += ["-o", "ConnectTimeout=10", "-o", "UserKnownHostsFile=/dev/null"]
        if secret == "password":
            how = [*("-o", "PubkeyAuthentication=no", "-o", "NumberOfPasswordPrompts=1")]
            how += ["-o", "PreferredAuthentications=password,keyboard-interactive"]
        else:
            how = ["-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-i", f"/root/{secret}"]
        return self.outside.run(
            *("env", "SSH_ASKPASS=/root/askpass", "SSH_ASKPASS_REQUIRE=force"),
            *("ssh", *common, *how, *options.split(), f"{user}@{self.address}", *command),
            check=False,
            timeout_s=60,
        )

    def enters(self, user: str, secret: str, port: int = 22) -> bool:
        """Whether a command of the caller's choice runs on the host."""
        return "entered" in self.ssh(user, "echo", "entered", secret=secret, port=port).stdout

    @property
    def address(self) -> str:
        """The host's own."""
        return address_of(self.name)

    def nix(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Nix on the owner's machine, which builds without a sandbox and asks no cache."""
        return self.outside.run(
            "env", f"NIX_CONFIG={OWNERS_NIX}", "nix", *words, check=check, timeout_s=180
        )

    def copy(self, path: str, *options: str) -> subprocess.CompletedProcess[str]:
        """`nix copy` to the host as the deploy user."""
        return self.nix("copy", *options, "--to", "ssh-ng://target", path, check=False)

    def has(self, path: str) -> bool:
        """Whether the host's own database calls a path valid."""
        return self.host.run("nix-store", "--check-validity", path, check=False).returncode == 0


def address_of(name: str) -> str:
    """A host's address, from topology.toml."""
    topology = tomllib.loads((ROOT / "topology.toml").read_text(encoding="utf-8"))
    (found,) = [host["address"] for host in topology["host"] if host["name"] == name]
    return str(found)


def render(name: str, role: str, deploy_key: str, nix_key: str) -> str:
    """The user data as the CDK application puts it into the template."""
    return run(
        *(sys.executable, "-c", RENDER, ROOT / "cdk" / "site.example.toml"),
        *(name, role, deploy_key, nix_key),
        env={**os.environ, "PYTHONPATH": str(ROOT / "cdk")},
    )


def lay_network(lab: Lab, address: str) -> tuple[str, str]:
    """Two namespaces with a line between them: the host's, and everything outside."""
    inner, outer = f"{lab.name}-host", f"{lab.name}-out"
    for space in (inner, outer):
        run("ip", "netns", "add", space)
        run("ip", "-n", space, "link", "set", "lo", "up")
    run(
        *("ip", "link", "add", "eth0", "netns", inner, "type", "veth"),
        *("peer", "name", "eth0", "netns", outer),
    )
    gateway = address.rsplit(".", 1)[0] + ".1"
    for space, own in ((inner, address), (outer, gateway)):
        run("ip", "-n", space, "address", "add", f"{own}/24", "dev", "eth0")
        run("ip", "-n", space, "link", "set", "eth0", "up")
    for other in (MIRROR_ADDRESS, TIME_ADDRESS):
        run("ip", "-n", outer, "address", "add", f"{other}/32", "dev", "lo")
    run("ip", "-n", inner, "route", "add", "default", "via", gateway)
    return inner, outer


def prepare(host: Machine, authority: bytes, admin_key: str) -> None:
    """What Debian's image and cloud-init have done before the user data runs."""
    host.write("/usr/local/share/ca-certificates/test.crt", authority)
    host.write("/etc/hosts", f"127.0.0.1 localhost\n{MIRROR_ADDRESS} {NAME}\n")
    host.write("/etc/apt/sources.list.d/debian.sources", SOURCES)
    for archive in ("debian", "debian-security"):
        host.write(f"/etc/apt/mirrors/{archive}.list", f"http://{NAME}/{archive}\n")
    host.write("/etc/systemd/system/chrony.service.d/stand-in.conf", NO_CLOCK)
    host.write("/etc/sudoers.d/90-cloud-init-users", "admin ALL=(ALL) NOPASSWD:ALL\n", 0o440)
    host.boot()
    host.run("update-ca-certificates")
    host.run("systemctl", "unmask", "chrony.service")
    host.run("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "purge", "-qq", "-y", *INSTALLED)
    host.run("rm", "-rf", "/nix", "/etc/nix", "/etc/chrony")
    host.run("ssh-keygen", "-A")
    host.run("systemctl", "enable", "--now", "ssh.service")
    host.run("useradd", "--create-home", "--shell", "/bin/bash", "admin")
    for home, owner in (("/home/admin", "admin"), ("/root", "root")):
        host.run("install", "-d", "-m", "700", "-o", owner, f"{home}/.ssh")
    host.write("/home/admin/.ssh/authorized_keys", admin_key)
    host.run("sync")


def prepare_outside(outside: Machine, keys: Path, address: str) -> None:
    """The owner's machine: keys, Nix; and on it the time server of the hypervisor."""
    for name in ("admin", "deploy"):
        outside.write(f"/root/{name}", (keys / name).read_bytes(), 0o600)
    outside.write("/root/askpass", f"#!/bin/sh\necho '{PASSWORD}'\n", 0o755)
    outside.write(
        "/root/.ssh/config",
        f"Host target\n HostName {address}\n User deploy\n IdentityFile /root/deploy\n"
        " IdentitiesOnly yes\n BatchMode yes\n StrictHostKeyChecking no\n LogLevel ERROR\n"
        " UserKnownHostsFile /dev/null\n",
        0o600,
    )
    outside.write("/etc/systemd/system/chrony.service.d/stand-in.conf", NO_CLOCK)
    outside.write(
        "/etc/chrony/chrony.conf", f"bindaddress {TIME_ADDRESS}\nallow\nlocal stratum 1\n"
    )
    outside.boot()
    outside.run("systemctl", "unmask", "chrony.service")
    outside.run("systemctl", "start", "chrony.service")


def make_keys(folder: Path) -> None:
    """SSH keys of the owner and of the deployment."""
    folder.mkdir()
    for name in ("admin", "deploy"):
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", folder / name)


def make_signing_keys(outside: Machine) -> str:
    """The key that signs closures, and one that only has its name; returns the public key."""
    nix = "nix --extra-experimental-features nix-command key"
    for name in ("signing", "impostor"):
        command = f"umask 077; {nix} generate-secret --key-name kalshi-tape > /root/{name}"
        outside.run("sh", "-c", command)
    return outside.run("sh", "-c", f"{nix} convert-secret-to-public < /root/signing").stdout.strip()


@contextmanager
def world(tree: Path, name: str, role: str) -> Iterator[World]:
    """A prepared host, on which the first boot has not run yet."""
    with Lab() as lab:
        keys = lab.folder / "keys"
        make_keys(keys)
        address = address_of(name)
        inner, outer = lay_network(lab, address)
        with mirror(lab.folder / "mirror", NETNS / outer, MIRROR_ADDRESS) as served:
            # Not the name it shall have; a disk on which the journal's own limit is the smallest.
            host = Machine(lab, "ip-10", tree, namespace=inner, disk_mib=16384)
            outside = Machine(lab, "owner", tree, namespace=outer)
            prepare_outside(outside, keys, address)
            authority = (lab.folder / "mirror" / "ca.pem").read_bytes()
            prepare(host, authority, (keys / "admin.pub").read_text())
            public = make_signing_keys(outside)
            user_data = render(name, role, (keys / "deploy.pub").read_text().strip(), public)
            yield World(lab, role, name, host, outside, served, keys / "deploy", user_data)
