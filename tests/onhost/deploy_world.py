"""Hosts as AWS and the first boot leave them, and the machine that deploys to them.

A host here has what docs/aws.md sections 6 and 7 bring: the frozen first boot's result (that very
script is run, with its packages in the tree and so without a mirror), the owner's user `admin`, the
files and credentials of docs/units.md. It has no closure of ours, not even the databases': the
first rollout brings them over SSH.

The machine that deploys is this one, in the admin's network: its ssh, its Nix, this checkout's
`tape`. What it knows of the hosts are their host keys and two private keys.

What is not as on AWS: the databases' closure has Debian's programs (see revisions.py). CloudWatch
does not exist; kalshi-cloudwatch starts, keeps what it cannot send and tries again, with
credentials from its environment file, because there is no instance role.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.nix.host import MACHINE
from tests.onhost.closures import Closures
from tests.onhost.firstboot_world import NO_CLOCK, make_keys, render
from tests.onhost.hosts import DEDUPLICATOR, GATHERERS, PROFILES, Cluster
from tests.onhost.lab import Lab
from tests.onhost.machine import Machine
from tests.onhost.network import ADMIN, Network
from tests.onhost.outside import STORE_ACCESS, Outside
from tests.onhost.revisions import Releases
from tests.rules.tree import ROOT

HOSTS = (*GATHERERS, DEDUPLICATOR)
DISK_MIB = 24_576
SERVICE = {DEDUPLICATOR: "deduplicator", **dict.fromkeys(GATHERERS, "gatherer")}


class PreparedHosts(Cluster):
    """Machines by name; like Cluster's, with SSH and Nix, and without our services."""

    def __init__(
        self,
        lab: Lab,
        tree: Path,
        releases: Releases,
        network: Network,
        outside: Outside,
    ) -> None:
        empty = lab.folder / "empty"  # a host's Nix store is what somebody copied to it
        empty.mkdir()
        super().__init__(lab, tree, Closures(empty, {}), network, outside)
        self.releases = releases
        self.keys = lab.folder / "keys"
        make_keys(self.keys)

    def machine(self, name: str, disk_mib: int = DISK_MIB) -> Machine:
        """As Cluster's, with a disk for two revisions and an hour of spool."""
        return super().machine(name, max(disk_mib, DISK_MIB))

    def gatherer_anew(self, name: str) -> Machine:
        """What destroying a gatherer's stack and deploying it again leaves: an empty disk, another
        host key, a first boot, the files that the owner writes, and no credential."""
        dead = self.machines[name]
        dead.kill()
        dead.folder.rename(dead.folder.with_name(f"{name}-before"))
        return self.bare_gatherer(name)

    def _profile(self, machine: Machine, name: str) -> None:
        """Nothing: the first rollout makes it."""

    def _server_profile(self, machine: Machine) -> None:
        """Nothing: the first rollout makes it."""

    def _install(self, machine: Machine, names: Iterable[str]) -> None:
        """Boot; nothing of ours is linked, however many names there are."""
        self._before_first_boot(machine)
        super()._install(machine, ())
        self._first_boot(machine)

    def _before_first_boot(self, machine: Machine) -> None:
        """What Debian's image and cloud-init have done, as far as files go."""
        machine.write("/etc/systemd/system/chrony.service.d/stand-in.conf", NO_CLOCK)
        machine.write("/etc/sudoers.d/90-cloud-init-users", "admin ALL=(ALL) NOPASSWD:ALL\n", 0o440)
        access = "".join(f"{name}={value}\n" for name, value in STORE_ACCESS.items())
        machine.write("/etc/kalshi/cloudwatch.env", access)

    def _first_boot(self, machine: Machine) -> None:
        """Cloud-init's part that runs, then the user data as the CDK application renders it."""
        machine.run("systemctl", "unmask", "chrony.service")
        machine.run("ssh-keygen", "-A")
        machine.run("useradd", "--create-home", "--shell", "/bin/bash", "admin")
        machine.run("install", "-d", "-m", "700", "-o", "admin", "/home/admin/.ssh")
        machine.write("/home/admin/.ssh/authorized_keys", (self.keys / "admin.pub").read_text())
        # As the packages' own scripts do when they are installed on a running host.
        machine.run("systemctl", "enable", "--now", "ssh.service", "nix-daemon.socket")
        user_data = render(
            machine.name,
            SERVICE[machine.name],
            (self.keys / "deploy.pub").read_text().strip(),
            self.releases.public_key,
        )
        machine.run("bash", "-s", input=user_data, timeout_s=300)
        assert machine.path("/etc/kalshi/role").read_text().strip() == SERVICE[machine.name]


@dataclass(frozen=True)
class Ended:
    """A command's exit code, what it said on both outputs, and how long it took."""

    code: int
    said: str
    seconds: float


@dataclass
class Deployer:
    """The machine that deploys: runs commands of this machine in the admin's network."""

    network: Network
    folder: Path
    releases: Releases
    keys: Path
    environment: dict[str, str] = field(default_factory=dict)

    @classmethod
    def prepare(cls, hosts: PreparedHosts, folder: Path) -> Deployer:
        """Read the hosts' keys (on AWS from the console's output) and make a home."""
        folder.mkdir(parents=True)
        (folder / "home").mkdir(mode=0o700)
        made = cls(hosts.network, folder, hosts.releases, hosts.keys)
        made.learn_keys(hosts)
        return made

    def learn_keys(self, hosts: PreparedHosts) -> None:
        """The keys that the hosts have now."""
        lines = []
        for name in HOSTS:
            kind, key, *_ = (
                hosts.machines[name].path("/etc/ssh/ssh_host_ed25519_key.pub").read_text().split()
            )
            lines.append(f"{hosts.network.address(name)} {kind} {key}\n")
        self.known_hosts.write_text("".join(lines))

    @property
    def known_hosts(self) -> Path:
        """Host keys of every host, by address."""
        return self.folder / "known_hosts"

    def popen(self, *words: str | Path) -> subprocess.Popen[str]:
        """Start a command in the admin's network, in a process group of its own."""
        return subprocess.Popen(
            self.network.execute(ADMIN, *words),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=self._settings(), cwd=ROOT, start_new_session=True,
        )  # fmt: skip

    def run(self, *words: str | Path, timeout_s: float = 600) -> subprocess.CompletedProcess[str]:
        """Run a command there; both outputs in one."""
        process = self.popen(*words)
        try:
            said, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return subprocess.CompletedProcess(list(map(str, words)), process.returncode, said, "")

    def ssh(
        self, host: str, *command: str, user: str = "admin"
    ) -> subprocess.CompletedProcess[str]:
        """By hand, as docs/aws.md types it."""
        return self.run(
            "ssh", *self.ssh_options(user), f"{user}@{self.network.address(host)}", *command
        )

    def ssh_options(self, user: str) -> Sequence[str]:
        """How ssh is called for `admin` or `deploy`."""
        return (
            *("-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", "LogLevel=ERROR"),
            *("-o", f"UserKnownHostsFile={self.known_hosts}", "-o", "IdentitiesOnly=yes"),
            *("-i", str(self.keys / user)),
        )

    def copy(self, host: str, path: str) -> subprocess.CompletedProcess[str]:
        """`nix copy` of a store path to a host, by hand."""
        self.environment["NIX_SSHOPTS"] = " ".join(self.ssh_options("deploy"))
        return self.run(
            *("nix", "--extra-experimental-features", "nix-command", "copy"),
            *("--from", self.releases.store, "--to"),
            *(f"ssh-ng://deploy@{self.network.address(host)}", path),
        )

    def command(self, *act: str | Path) -> list[str | Path]:
        """`tape deploy` with all that an owner's command line says here."""
        return [
            *(sys.executable, "-m", "tape.main", "deploy", *act, "--checkout", ROOT),
            *("--identity", self.keys / "admin", "--deploy-identity", self.keys / "deploy"),
            *("--known-hosts", self.known_hosts, "--store", self.releases.store),
            *("--no-substitute", "--private", "--system", MACHINE),
            *("--state", self.folder / "state"),
        ]

    def rollout_command(self, *flags: str | Path) -> list[str | Path]:
        """`tape deploy rollout` with these flags."""
        return self.command("rollout", *flags)

    def act(self, *words: str | Path, timeout_s: float = 900) -> Ended:
        """`tape deploy` with these words, to its end."""
        return self._timed(self.command(*words), timeout_s)

    def secrets(self, *words: str | Path, timeout_s: float = 900) -> Ended:
        """`tape secrets` with these words, to its end."""
        reach = ("--private", "--identity", self.keys / "admin", "--checkout", ROOT)
        begin = (sys.executable, "-m", "tape.main", "secrets", *reach)
        return self._timed([*begin, "--known-hosts", self.known_hosts, *words], timeout_s)

    def _timed(self, words: Sequence[str | Path], timeout_s: float) -> Ended:
        began = time.monotonic()
        done = self.run(*words, timeout_s=timeout_s)
        return Ended(done.returncode, done.stdout, time.monotonic() - began)

    def rollout(self, release: str, *flags: str | Path, timeout_s: float = 900) -> Ended:
        """Roll a release out and wait for the end."""
        words = self.rollout_command("--release", self.releases.folders[release], *flags)
        return self._timed(words, timeout_s)

    def _settings(self) -> Mapping[str, str]:
        members = [str(path) for path in sorted((ROOT / "python").glob("*/src"))]
        return {
            "PATH": f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self.folder / "home"), "LC_ALL": "C.UTF-8",
            "PYTHONPATH": ":".join((str(ROOT), *members)),
            "PYTHONDONTWRITEBYTECODE": "1", **self.environment,
        }  # fmt: skip


def nix_store_paths(machine: Machine) -> set[str]:
    """Names of our closures in a host's store, valid or half copied."""
    store = machine.path("/nix/store")
    return {p.name for p in store.iterdir() if "kalshi-" in p.name} if store.is_dir() else set()


def profile(machine: Machine, name: str) -> str:
    """The store path that a host's profile leads to; "" where there is none."""
    said = machine.run("readlink", "-f", f"{PROFILES}/kalshi-{name}", check=False).stdout.strip()
    return said if said.startswith("/nix/store/") else ""
