"""The hosts of the specification with what docs/units.md puts on them.

Closures lie in /nix/store and are named by profiles; unit files, accounts and directories are
linked from the closures; credentials are made inside, for the one host. The lines that an owner
types are taken from docs/units.md. What is not the release's: PostgreSQL 17 and TimescaleDB (the
Apache edition) of Debian stand where the kalshi-postgres closure has version 16, and production is
the same server with neither.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from deploy import secrets
from tests.onhost.closures import Closures
from tests.onhost.lab import Lab
from tests.onhost.machine import Machine
from tests.onhost.network import PRODUCTION, Network
from tests.onhost.outside import STORE_ACCESS, Outside
from tests.rules.tree import ROOT

GATHERERS = ("gatherer-1", "gatherer-2", "gatherer-3")
DEDUPLICATOR = "deduplicator"
PASSWORD = "correct-horse-battery"
PROFILES = "/nix/var/nix/profiles"
SERVER = "/usr/lib/postgresql/17/bin"
PRODUCTION_NAME = "kalshi-production.example"
AUTHORITY = "/etc/kalshi/production.pem"
UNITS_PAGE = ROOT / "docs" / "units.md"


class Cluster:
    """Machines by name, made and switched on one by one."""

    def __init__(
        self, lab: Lab, tree: Path, closures: Closures, network: Network, outside: Outside
    ) -> None:
        self.lab, self.tree, self.closures = lab, tree, closures
        self.network, self.outside = network, outside
        self.machines: dict[str, Machine] = {}

    def machine(self, name: str, disk_mib: int = 4096) -> Machine:
        """A host at its place in the network that knows the others' names."""
        machine = Machine(
            self.lab, name, self.tree, layers=[self.closures.layer],
            namespace=self.network.namespace(name), disk_mib=disk_mib,
        )  # fmt: skip
        hosts = f"127.0.0.1 localhost\n127.0.1.1 {name}\n{self.outside.hosts()}"
        hosts += f"{self.network.address(PRODUCTION)} {PRODUCTION_NAME}\n"
        machine.write("/etc/hosts", hosts)
        machine.write("/usr/local/share/ca-certificates/onhost.crt", self.outside.authority.pem)
        self.machines[name] = machine
        return machine

    def gatherer(self, name: str, disk_mib: int = 4096) -> Machine:
        """A gatherer host, switched on, its units linked and enabled, nothing started."""
        machine = self.bare_gatherer(name, disk_mib)
        self.give_credential(machine, "kalshi-key", self.outside.private_key.read_text())
        self.give_credential(machine, "kalshi-reader", reader_verifier(PASSWORD))
        self._tls(machine)
        return machine

    def bare_gatherer(self, name: str, disk_mib: int = 4096) -> Machine:
        """As `gatherer`, without a credential."""
        machine = self.machine(name, disk_mib)
        self._profile(machine, "gatherer")
        self._server_profile(machine)
        for kind in ("timescaledb", "postgres"):  # this machine is smaller than the specification's
            text = (ROOT / "systemd" / f"kalshi-{kind}-small.conf").read_text()
            machine.write(f"/etc/kalshi/kalshi-{kind}.conf", text)
        machine.write(
            "/etc/kalshi/gatherer.env",
            (ROOT / "systemd" / "gatherer.env.example").read_text(),
        )
        self._install(machine, ("gatherer", "postgres"))
        return machine

    def deduplicator(self, *settings: str) -> Machine:
        """The deduplicator host for the gatherer hosts that there are, three or the first one."""
        gatherers = [name for name in GATHERERS if name in self.machines]
        machine = self.machine(DEDUPLICATOR)
        self._profile(machine, "deduplicator")
        self._server_profile(machine)  # for pg_dump
        example = (ROOT / "systemd" / "deduplicator.env.example").read_text()
        if gatherers == list(GATHERERS[:1]):  # the lines for profile "small"
            assert "\n# KT_GATHERER" in example
            example = example.replace("\n# KT_GATHERER", "\nKT_GATHERER")
        assert "@HOST:" in example
        access = [f"{name}={value}" for name, value in STORE_ACCESS.items()]
        trust = f"AWS_CA_BUNDLE={AUTHORITY}"  # boto3 brings authorities of its own
        machine.write(
            "/etc/kalshi/deduplicator.env",
            example.replace("@HOST:", f"@{PRODUCTION_NAME}:")
            + "\n".join((*access, trust, *settings, "")),
        )
        machine.write(AUTHORITY, self.outside.authority.pem)
        trusted = [self.machines[g].path("/etc/kalshi/tls.pem").read_text() for g in gatherers]
        machine.write("/etc/kalshi/gatherers.pem", "".join(trusted))
        self._install(machine, ("deduplicator",))
        places = [f"{self.network.address(g)}:{port}" for g in gatherers for port in (5432, 5433)]
        places.append(f"{PRODUCTION_NAME}:5432")
        lines = (f"{place}:kalshi:kalshi_deduplicator:{PASSWORD}\n" for place in places)
        self.give_credential(machine, "kalshi-pgpass", "".join(lines))
        return machine

    def production(self) -> Machine:
        """The database server in the private subnet: plain PostgreSQL with the one role."""
        machine = self.machine(PRODUCTION)
        address = self.network.address(PRODUCTION)
        folder = self.outside.folder / PRODUCTION
        certificate, key = self.outside.authority.certificate(folder, PRODUCTION_NAME, address)
        machine.write("/etc/kalshi/tls.pem", certificate.read_text())
        machine.boot()
        # RDS has none, and the services take an installed extension for one that works.
        machine.run("sh", "-c", "rm /usr/share/postgresql/17/extension/timescaledb*")
        machine.run(
            "pg_createcluster", "17", "main", "--", "--encoding=UTF8", "--locale=C", timeout_s=300
        )
        machine.write("/etc/postgresql/tls.key", key.read_text(), 0o640)
        machine.run("chgrp", "postgres", "/etc/postgresql/tls.key")
        with machine.path("/etc/postgresql/17/main/postgresql.conf").open("a") as settings:
            settings.write(
                f"listen_addresses = '{address}'\nmax_connections = 50\nssl = on\n"
                "ssl_cert_file = '/etc/kalshi/tls.pem'\nssl_key_file = '/etc/postgresql/tls.key'\n"
            )
        with machine.path("/etc/postgresql/17/main/pg_hba.conf").open("a") as rules:
            rules.write("hostssl kalshi kalshi_deduplicator 10.0.0.0/16 scram-sha-256\n")
        machine.run("systemctl", "start", "postgresql@17-main", timeout_s=300)
        self.empty_production(machine)
        return machine

    def empty_production(self, machine: Machine) -> None:
        """The database and its role, as the owner makes them."""
        role = documented("sql", "CREATE ROLE kalshi_deduplicator")
        role = role.replace("'PASSWORD'", f"'{PASSWORD}'")
        for text in ("CREATE DATABASE kalshi", f"\\connect kalshi\n{role}"):
            self.sql(machine, text)

    def lose_production(self, machine: Machine) -> None:
        """As if the instance had gone: neither database nor role, and nobody connected."""
        for text in ("DROP DATABASE kalshi WITH (FORCE)", "DROP ROLE kalshi_deduplicator"):
            self.sql(machine, text)

    @staticmethod
    def sql(machine: Machine, text: str) -> str:
        """What production's master user does; the answer."""
        words = ("sudo", "-u", "postgres", "psql", "-X", "-At", "-v", "ON_ERROR_STOP=1")
        return machine.run(*words, input=text).stdout

    @staticmethod
    def give_credential(machine: Machine, name: str, secret: str) -> None:
        """Encrypt a secret for this host, inside it."""
        place = f"/etc/credstore.encrypted/{name}"
        machine.run("systemd-creds", "encrypt", f"--name={name}", "-", place, input=secret)

    def _profile(self, machine: Machine, name: str) -> None:
        profile = machine.seed / PROFILES.lstrip("/") / f"kalshi-{name}"
        profile.parent.mkdir(parents=True, exist_ok=True)
        profile.symlink_to(self.closures.paths[name])

    def _server_profile(self, machine: Machine) -> None:
        """Settings, roles and units of the closure; the programs of Debian."""
        profile = machine.seed / PROFILES.lstrip("/") / "kalshi-postgres"
        profile.mkdir(parents=True)
        (profile / "bin").symlink_to(SERVER)
        for part in ("lib", "share"):
            (profile / part).symlink_to(f"{self.closures.paths['postgres']}/{part}")

    def _install(self, machine: Machine, names: Iterable[str]) -> None:
        """Link, boot, make accounts and directories, trust the authority, enable."""
        for name in names:
            lib = self.closures.layer / self.closures.paths[name].lstrip("/") / "lib"
            links = {f"systemd/system/{p.name}" for p in (lib / "systemd" / "system").iterdir()}
            links |= {"sysusers.d/kalshi.conf", "tmpfiles.d/kalshi.conf"}
            for link in sorted(links):
                place = machine.seed / "etc" / link
                place.parent.mkdir(parents=True, exist_ok=True)
                if not place.is_symlink():  # what belongs to no closure is in each of them
                    place.symlink_to(f"{PROFILES}/kalshi-{name}/lib/{link}")
        machine.boot()
        machine.run("systemd-sysusers")
        machine.run("systemd-tmpfiles", "--create")
        machine.run("update-ca-certificates")
        machine.run("systemd-creds", "setup")
        machine.run("systemctl", "daemon-reload")
        units = [p.name for p in (machine.seed / "etc/systemd/system").glob("kalshi*")]
        wanted = [u for u in units if "WantedBy" in machine.run("systemctl", "cat", u).stdout]
        if wanted:
            machine.run("systemctl", "enable", *sorted(wanted))

    def _tls(self, machine: Machine) -> None:
        """The certificate command of the page, with this host's address."""
        (command,) = re.findall(r"(?m)^openssl (?:.*\\\n)*.*$", UNITS_PAGE.read_text())
        assert "10.0.1.10" in command
        command = command.replace("10.0.1.10", self.network.address(machine.name))
        machine.run("bash", "-euo", "pipefail", "-c", command)

    def start(self, machine: Machine, timeout_s: float = 300.0) -> None:
        """`systemctl start kalshi.target`, and wait until every enabled unit of it is active."""
        machine.run("systemctl", "start", "--no-block", "kalshi.target")
        units = machine.show("kalshi.target", "Wants")["Wants"].split()
        assert units
        for unit in units:
            self.wait_active(machine, unit, timeout_s)

    @staticmethod
    def wait_active(machine: Machine, unit: str, timeout_s: float = 120.0) -> None:
        """Until systemd calls a unit active: for our services that is their own word READY."""

        def is_active() -> bool:
            return machine.show(unit, "ActiveState")["ActiveState"] == "active"

        machine.wait(is_active, timeout_s, f"{unit} to be active")

    def close(self) -> None:
        """Switch every host off at once."""
        for machine in self.machines.values():
            machine.kill()


def documented(language: str, begin: str) -> str:
    """The block of docs/units.md that begins so."""
    blocks = re.findall(rf"(?ms)^```{language}\n(.*?)^```$", UNITS_PAGE.read_text())
    (block,) = [text for text in blocks if text.startswith(begin)]
    return str(block)


def reader_verifier(password: str) -> str:
    """What `tape secrets` gives a gatherer host in the password's place."""
    secret = secrets.Secret(password.encode(), "the password")
    return secrets.verifier(secret).reveal().decode().strip()
