"""The units in systemd/: rendered, silent in verify, hardened, and in agreement with the rest.

What of them is tried against a real PostgreSQL is in test_units_roles.py. What no test here can
show (the kernel really enforcing a sandbox) needs a booted host.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from runtime.config import (
    PREFIX,
    BackupSettings,
    CloudwatchSettings,
    DedupSettings,
    GathererSettings,
    ServiceSettings,
    load,
)
from tests.nix import units_files as units
from tests.rules.tree import ROOT

SERVICES = ("kalshi-gatherer.service", "kalshi-deduplicator.service")
DATABASES = ("kalshi-timescaledb", "kalshi-postgres")
BACKUP, CLOUDWATCH = "kalshi-backup.service", "kalshi-cloudwatch.service"
LASTING = (*SERVICES, CLOUDWATCH, *(f"{name}.service" for name in DATABASES))
SETTINGS: dict[str, type[ServiceSettings]] = {
    **dict(zip(SERVICES, (GathererSettings, DedupSettings), strict=True)),
    BACKUP: BackupSettings,
    CLOUDWATCH: CloudwatchSettings,
}
LIMIT = {name: 1.5 if name in SETTINGS else 2.0 for name in units.names()}
# Variables of others that a unit may set.
FOREIGN = {
    "PYTHONFAULTHANDLER", "SSL_CERT_FILE", "AWS_CA_BUNDLE", "PGPASSFILE", "AWS_DEFAULT_REGION",
}  # fmt: skip
# Every unit has these. Beside each the check of systemd-analyze that names its absence, if any.
HARDENING = {
    "NoNewPrivileges=yes": "NoNewPrivileges",
    "ProtectSystem=strict": "ProtectSystem",
    "ProtectHome=yes": "ProtectHome",
    "PrivateTmp=yes": "PrivateTmp",
    "PrivateDevices=yes": "PrivateDevices",
    "PrivateMounts=yes": "PrivateMounts",
    "ProtectKernelTunables=yes": "ProtectKernelTunables",
    "ProtectKernelModules=yes": "ProtectKernelModules",
    "ProtectKernelLogs=yes": "ProtectKernelLogs",
    "ProtectControlGroups=yes": "ProtectControlGroups",
    "ProtectClock=yes": "ProtectClock",
    "ProtectHostname=yes": "ProtectHostname",
    "ProtectProc=invisible": "ProtectProc",
    "ProcSubset=pid": "ProcSubset",
    "RestrictAddressFamilies=AF_INET AF_UNIX": "RestrictAddressFamilies_AF_PACKET",
    "RestrictNamespaces=yes": "RestrictNamespaces_user",
    "RestrictRealtime=yes": "RestrictRealtime",
    "RestrictSUIDSGID=yes": "RestrictSUIDSGID",
    "LockPersonality=yes": "LockPersonality",
    "MemoryDenyWriteExecute=yes": "MemoryDenyWriteExecute",
    "SystemCallArchitectures=native": "SystemCallArchitectures",
    "SystemCallFilter=@system-service": "SystemCallFilter_mount",
    "SystemCallFilter=~@privileged @resources": "SystemCallFilter_privileged",
    "CapabilityBoundingSet=": "CapabilityBoundingSet_CAP_SYS_PACCT",
    "UMask=0077": "UMask",
    "SystemCallErrorNumber=EPERM": "",
    "DevicePolicy=closed": "",
    "AmbientCapabilities=": "",
    "KeyringMode=private": "",
    "LimitCORE=0": "",
}


# --- rendered


def check(directory: Path, rendered: dict[str, str]) -> list[str]:
    """What `make units-check` says of a directory."""
    done = subprocess.run(
        [sys.executable, str(units.SYSTEMD / "write_units.py"), "--check", str(directory)],
        input=json.dumps(rendered),
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line.rpartition("/")[2] for line in done.stderr.splitlines() if "hint" not in line]
    assert done.returncode == (1 if lines else 0), done.stderr
    return lines


def test_files_are_what_nix_renders(tmp_path: Path) -> None:
    """And an edited, a missing and a foreign file are each named."""
    rendered = units.render()
    assert check(units.SYSTEMD, rendered) == []
    copy = Path(shutil.copytree(units.SYSTEMD, tmp_path / "copy"))
    body = (copy / "kalshi-gatherer.service").read_text()
    (copy / "kalshi-gatherer.service").write_text(body.replace("WatchdogSec=30", "WatchdogSec=31"))
    (copy / "kalshi-sysusers.conf").unlink()
    (copy / "kalshi-spare.service").write_text("[Unit]\n")
    assert check(copy, rendered) == [
        "kalshi-sysusers.conf: missing",
        "kalshi-spare.service: not rendered",
        "kalshi-gatherer.service: differs",
    ]


def test_topology_reaches_the_units(tmp_path: Path) -> None:
    """The facts are read, not repeated: another topology gives other units."""
    (tmp_path / "nix").mkdir()
    shutil.copy2(ROOT / "nix" / "units.nix", tmp_path / "nix")
    facts = (ROOT / "topology.toml").read_text()
    for old, new in (("health = 8080", "health = 8181"), ("10.0.2.10", "10.0.2.99")):
        assert old in facts
        facts = facts.replace(old, new)
    (tmp_path / "topology.toml").write_text(facts)
    rendered = units.render(tmp_path / "nix" / "units.nix")
    assert "KT_HEALTH_PORT=8181" in rendered["kalshi-gatherer.service"]
    assert "@10.0.2.99:5432/" in rendered["kalshi-deduplicator.service"]


# --- systemd's own word


def bodies() -> dict[str, str]:
    """Every unit."""
    return {name: units.text(name) for name in (*units.names(), "kalshi.target")}


def test_verify_is_silent(tmp_path: Path) -> None:
    ours = units.root_tree(tmp_path, bodies())
    assert units.verify(tmp_path, ours) == ""


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("MemoryMax=20%", "MemoryMaximum=20%", "MemoryMaximum"),
        ("WatchdogSec=30", "WatchdogSec=soon", "Failed to parse"),
        ("/bin/kalshi-gatherer\n", "/bin/kalshi-gatherer-2\n", "kalshi-gatherer-2"),
        ("After=network-online.target", "After=kalshi target.", "Failed to add dependency"),
    ],
)
def test_verify_names_a_planted_fault(tmp_path: Path, old: str, new: str, says: str) -> None:
    ours = units.root_tree(tmp_path, bodies())
    body = units.text("kalshi-gatherer.service")
    assert old in body
    (ours / "kalshi-gatherer.service").write_text(body.replace(old, new))
    assert says in units.verify(tmp_path, ours)


@pytest.mark.parametrize("name", units.names())
def test_exposure_is_within_its_limit(tmp_path: Path, name: str) -> None:
    overall, _ = units.exposure(tmp_path, name, units.text(name))
    assert overall <= LIMIT[name]
    missing = [line for line in HARDENING if f"\n{line}\n" not in units.text(name)]
    assert missing == []


@pytest.mark.parametrize("name", [*SERVICES, "kalshi-timescaledb.service"])
def test_a_removed_line_is_named_and_a_removed_sandbox_is_over_the_limit(
    tmp_path: Path, name: str
) -> None:
    """Negative control of the limit."""
    body = units.text(name)
    _, whole = units.exposure(tmp_path, name, body)
    for line, field in HARDENING.items():
        if field:
            weakened = body.replace(f"\n{line}\n", "\n")
            assert field in units.exposure(tmp_path, name, weakened)[1] - whole, line
    for line in HARDENING:
        body = body.replace(f"\n{line}\n", "\n")
    assert units.exposure(tmp_path, name, body)[0] > LIMIT[name] + 2


# --- settings and programs


def unknown_settings(body: str, name: str) -> list[str]:
    """Variables that nobody would read."""
    known = {PREFIX + field.upper() for field in SETTINGS[name].model_fields} | FOREIGN
    return sorted(units.environment(body, name).keys() - known)


@pytest.mark.parametrize("name", SETTINGS)
def test_every_variable_is_a_setting(name: str) -> None:
    body = units.text(name)
    assert unknown_settings(body, name) == []
    planted = body.replace("Environment=KT_", "Environment=KT_X", 1)
    assert len(unknown_settings(planted, name)) == 1


def test_the_backup_and_cloudwatch_accept_their_units() -> None:
    """With the owner's production for the first, and on hosts of either role for the second."""
    owners = units.example("deduplicator.env.example")
    backup = load(BackupSettings, {**units.environment(units.text(BACKUP), BACKUP), **owners})
    assert backup.backup_prefix == units.topology()["bucket"]["rds_backup_prefix"]
    given = units.environment(units.text(CLOUDWATCH), CLOUDWATCH)
    for host in units.topology()["host"]:
        settings = load(CloudwatchSettings, {**given, "KT_HOST_NAME": host["name"]})
        assert settings.role == host["role"]
        assert settings.log_prefix + settings.role in units.topology()["logs"]["groups"]
        assert settings.namespace == units.topology()["logs"]["metric_namespace"]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_accepts_its_unit_and_its_environment_file(tmp_path: Path, name: str) -> None:
    """With the owner's file the settings are complete, without it the service says what is not."""
    key = tmp_path / "kalshi-key"
    key.write_text("a key")
    given = units.environment(units.text(name), name)
    if "KT_PRIVATE_KEY_FILE" in given:
        given["KT_PRIVATE_KEY_FILE"] = str(key)
    owners = units.example(name.replace("kalshi-", "").replace(".service", ".env.example"))
    settings = load(SETTINGS[name], {**given, **owners})
    assert settings.bind == "0.0.0.0"
    with pytest.raises(Exception, match=f"^1 setting is wrong:\n  {'|'.join(owners)}: is not set"):
        load(SETTINGS[name], given)


def test_the_commented_examples_are_settings_too() -> None:
    for name, kind in (("gatherer", GathererSettings), ("deduplicator", DedupSettings)):
        told = re.findall(r"^#? ?(KT_\w+)=", units.text(f"{name}.env.example"), flags=re.MULTILINE)
        assert told
        assert {word.removeprefix(PREFIX).lower() for word in told} <= kind.model_fields.keys()


def test_only_programs_that_exist_have_a_unit() -> None:
    """A unit is shipped when its program is in the tree; what is planned stands in the document."""
    scripts: set[str] = set()
    for member in (ROOT / "python").glob("*/pyproject.toml"):
        scripts |= set(tomllib.loads(member.read_text())["project"].get("scripts", {}))
    shipped = {name.removesuffix(".service") for name in SETTINGS}
    assert shipped <= scripts
    document = (ROOT / "docs" / "units.md").read_text()
    for name in ("kalshi-backup", "kalshi-cloudwatch"):
        assert (name in scripts) == (f"{name}.service" in units.names())
        assert (name in scripts) != bool(
            re.search(rf"(?m)^\| `{name}\.service`.*planned", document)
        )


def test_programs_come_from_stable_profiles() -> None:
    """No store path: a release changes the profile, not the unit."""
    profiles: set[str] = set()
    for name in units.names("*"):
        if name.startswith("kalshi") or "env" in name:
            assert "/nix/store" not in units.text(name), name
    for name in units.names():
        for program in units.programs(units.text(name)):
            if not program.startswith(("/bin/", "/usr/bin/")):
                found = re.fullmatch(r"/nix/var/nix/profiles/(kalshi-[a-z]+)/bin/[a-z_-]+", program)
                assert found is not None, program
                profiles.add(found[1])
    # The profiles of the roles are those that the AWS side tells the roll-out.
    roles = {f"kalshi-{role}" for role in units.topology()["role"]}
    assert profiles == roles | {"kalshi-postgres", "kalshi-cloudwatch"}


def test_referenced_files_are_rendered() -> None:
    wanted: set[str] = set()
    for name in units.names("kalshi*"):
        wanted |= set(re.findall(re.escape(units.SHARE) + r"([\w.-]+)", units.text(name)))
    assert wanted
    assert wanted <= set(units.names("kalshi*"))


# --- agreement with topology.toml and the specification


def test_ports_and_addresses_are_those_of_the_topology() -> None:
    facts = units.topology()
    ports = facts["ports"]
    hosts = {host["name"]: host for host in facts["host"]}
    gatherers = [host["address"] for host in facts["host"] if host["role"] == "gatherer"]
    merger = hosts["deduplicator"]["address"]
    for name in SERVICES:
        given = units.environment(units.text(name), name)
        assert given["KT_HEALTH_PORT"] == str(ports["health"])
        assert given["KT_METRICS_PORT"] == str(ports["metrics"])
    merging = units.environment(units.text(SERVICES[1]), SERVICES[1])
    for variable, port in (("GATHERER_DSNS", "timescale"), ("GATHERER_META_DSNS", "postgres")):
        found = [
            re.match(r"postgresql://kalshi_deduplicator@([\d.]+):(\d+)/kalshi\?(.*)$", dsn)
            for dsn in json.loads(merging[f"KT_{variable}"])
        ]
        assert [(m[1], m[2]) for m in found if m] == [(a, str(ports[port])) for a in gatherers]
        assert all(m and m[3].startswith("sslmode=verify-full&sslrootcert=/") for m in found)
    assert merging["KT_LAKE_URI"] == f"s3://{facts['bucket']['name']}"
    assert merging["AWS_DEFAULT_REGION"] == facts["region"]
    for name, port in zip(DATABASES, ("timescale", "postgres"), strict=True):
        settings = units.text(f"{name}.conf")
        assert f"\nport = {ports[port]}\n" in settings
        assert f"\nunix_socket_directories = '/run/{name}'\n" in settings
        assert re.findall(r"hostssl.* ([\d./]+) ", units.text(f"{name}-hba.conf")) == [
            f"{merger}/32"
        ]
        for unit in (f"{name}.service", f"{name}-init.service", f"{name}-roles.service"):
            parsed = units.parse(units.text(unit))
            assert units.value(parsed, "Service", "IPAddressDeny") == "any"
            assert units.value(parsed, "Service", "IPAddressAllow") == f"localhost {merger}"
    given = units.environment(units.text(SERVICES[0]), SERVICES[0])
    for variable, name in zip(("TIMESCALE", "POSTGRES"), DATABASES, strict=True):
        port = ports[variable.lower()]
        expected = f"postgresql://kalshi_gatherer@/kalshi?host=/run/{name}&port={port}"
        assert given[f"KT_{variable}_DSN"] == expected
    assert given["KT_GATHERER_NAME"] in hosts


def test_paths_are_where_the_units_may_write() -> None:
    for name in units.names():
        service = units.parse(units.text(name))
        own = {
            f"/var/lib/{folder}" for folder in units.values(service, "Service", "StateDirectory")
        }
        own |= {f"/run/{folder}" for folder in units.values(service, "Service", "RuntimeDirectory")}
        given = units.environment(units.text(name), name)
        for variable in ("KT_SPOOL_DIR", "PGPASSFILE"):
            if variable in given:
                assert any(given[variable].startswith(f"{folder}/") for folder in own), variable
        for key, line in service["Service"]:
            if key.startswith("Exec"):
                for folder in re.findall(r"%S/[\w-]+|%t/[\w-]+", line):
                    path = units.specified(folder, name)
                    socket_of_server = name.endswith("-roles.service") and path.startswith("/run/")
                    assert path in own or socket_of_server, line


def gib(instance_type: str) -> float:
    """Memory of an instance type."""
    table = json.loads((ROOT / "tests" / "infra" / "instance_types.json").read_text())
    return float(table["types"][instance_type]["memory_mib"]) / 1024


def megabytes(body: str, name: str) -> int:
    """A size in a PostgreSQL configuration."""
    found = re.search(rf"(?m)^{name} = (\d+)MB$", body)
    assert found is not None, name
    return int(found[1])


def share(name: str) -> float:
    """MemoryMax of a unit as a part of its host."""
    limit = units.value(units.parse(units.text(name)), "Service", "MemoryMax")
    assert limit.endswith("%")
    return int(limit[:-1]) / 100


def test_memory_limits_leave_the_host_room() -> None:
    """The units of a gatherer host together stay below its memory, and every fifth byte is free."""
    facts = units.topology()
    gatherer = gib(facts["role"]["gatherer"]["instance_type"])
    specification = (ROOT / "tests" / "infra" / "infrastructure-spec.md").read_text()
    assert re.findall(r"\| Memory \| (\d+) GB \|", specification)[:2] == ["32", "16"]
    assert gatherer == 32
    on_gatherers = [SERVICES[0], *(f"{name}.service" for name in DATABASES)]
    assert sum(share(name) for name in on_gatherers) <= 0.8
    assert share(SERVICES[1]) <= 0.8
    small = units.value(units.parse(units.text(CLOUDWATCH)), "Service", "MemoryMax")
    assert small == "256M"  # less than a tenth of the smallest host's
    for name in set(LASTING) - {CLOUDWATCH}:  # the comment beside a limit tells the truth
        role = "deduplicator" if name == SERVICES[1] else "gatherer"
        memory = gib(facts["role"][role]["instance_type"])
        assert f"% of {memory:.0f} GiB: {share(name) * memory:.1f} GiB." in units.text(name)


@pytest.mark.parametrize("suffix", ["", "-small"])
@pytest.mark.parametrize("name", DATABASES)
def test_a_server_fits_its_limit(name: str, suffix: str) -> None:
    """Shared buffers, log buffers, every session sorting twice, and every vacuum at once."""
    facts = units.topology()
    role = facts["role"] if not suffix else facts["profile"]["small"]["role"]
    host = gib(role["gatherer"]["instance_type"]) * 1024
    base, sizes = units.text(f"{name}.conf"), units.text(f"{name}{suffix}.conf")
    sessions = int(re.findall(r"(?m)^max_connections = (\d+)$", base)[0])
    vacuums = int(re.findall(r"(?m)^autovacuum_max_workers = (\d+)$", base)[0])
    needed = megabytes(sizes, "shared_buffers") + 64
    needed += sessions * (10 + 2 * megabytes(sizes, "work_mem"))
    needed += (vacuums + 1) * megabytes(sizes, "maintenance_work_mem")
    assert needed <= share(f"{name}.service") * host * 0.9
    disk = role["gatherer"]["disk"]["size_gib"] * 1024
    assert megabytes(sizes, "max_wal_size") <= disk / 20


def test_every_setting_of_postgresql_has_its_reason_nearby() -> None:
    """A setting stands below a comment, or in a group that a comment heads; none is given twice."""
    for name in DATABASES:
        lines = units.text(f"{name}.conf").splitlines()
        found: list[str] = []
        explained = False
        for line in lines:
            if line.startswith("#"):
                explained = True
            elif not line:
                explained = False
            else:
                assert explained, f"{name}.conf: {line}"
                found.append(line.split(" = ")[0])
        assert len(found) == len(set(found))


# --- life and order


def test_nothing_gives_up() -> None:
    for name in units.names():
        unit = units.parse(units.text(name))
        assert units.value(unit, "Unit", "StartLimitIntervalSec") == "0"
        # A required unit that fails once takes the other down for good.
        for binding in ("Requires", "BindsTo", "Requisite"):
            assert units.values(unit, "Unit", binding) == [], name
        if name in LASTING:
            assert units.value(unit, "Service", "Restart") == "always"
            assert units.value(unit, "Service", "Type") == "notify"
            assert units.value(unit, "Unit", "PartOf") == "kalshi.target"
            assert units.value(unit, "Install", "WantedBy") == "kalshi.target"
        if name in (*SERVICES, CLOUDWATCH):
            assert int(units.value(unit, "Service", "WatchdogSec")) > 0


def test_capture_never_waits_for_a_database() -> None:
    unit = units.parse(units.text(SERVICES[0]))
    wanted = units.value(unit, "Unit", "Wants").split()
    assert {f"{name}.service" for name in DATABASES} <= set(wanted)
    after = " ".join(units.values(unit, "Unit", "After"))
    assert not any(name in after for name in DATABASES)
    assert units.value(unit, "Service", "TimeoutStartSec") == "infinity"
    weights = {
        name: int(units.value(units.parse(units.text(name)), "Service", "CPUWeight"))
        for name in (SERVICES[0], *(f"{name}.service" for name in DATABASES))
    }
    assert max(weights, key=lambda name: weights[name]) == SERVICES[0]


@pytest.mark.parametrize("name", DATABASES)
def test_a_database_brings_its_making_and_its_roles(name: str) -> None:
    """Nobody has to enable them; a cluster that was made anew gets the reader's password too."""
    server = units.parse(units.text(f"{name}.service"))
    wanted = units.value(server, "Unit", "Wants").split()
    assert wanted == [f"{name}-init.service", f"{name}-roles.service"]
    assert f"{name}-init.service" in units.value(server, "Unit", "After").split()
    roles = units.parse(units.text(f"{name}-roles.service"))
    assert units.value(roles, "Unit", "After") == f"{name}.service"
    assert units.value(roles, "Unit", "PartOf") == f"{name}.service"
    making = units.parse(units.text(f"{name}-init.service"))
    assert units.value(making, "Unit", "ConditionPathExists") == f"!/var/lib/{name}/data"


def test_accounts_exist_before_units_need_them(tmp_path: Path) -> None:
    """systemd-sysusers makes every account that a unit names, none of which can log in."""
    units.need("systemd-sysusers", "systemd")
    (tmp_path / "etc").mkdir()
    done = subprocess.run(
        ["systemd-sysusers", f"--root={tmp_path}", str(units.SYSTEMD / "kalshi-sysusers.conf")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split(":") for line in (tmp_path / "etc/passwd").read_text().splitlines()]
    shells = {fields[0]: fields[6] for fields in lines}
    wanted = {units.value(units.parse(units.text(n)), "Service", "User") for n in units.names()}
    assert shells.keys() == wanted
    assert all(shell.endswith("nologin") for shell in shells.values())
    groups = [line.split(":") for line in (tmp_path / "etc/group").read_text().splitlines()]
    members = {fields[0]: fields[3] for fields in groups}
    doors = units.value(units.parse(units.text(SERVICES[0])), "Service", "SupplementaryGroups")
    assert all(members[group] == "kalshi-gatherer" for group in doors.split())


def test_directories_of_the_owner_are_made(tmp_path: Path) -> None:
    units.need("systemd-tmpfiles", "systemd")
    (tmp_path / "etc").mkdir()
    config = units.SYSTEMD / "kalshi-tmpfiles.conf"
    for _ in range(2):
        done = subprocess.run(
            ["systemd-tmpfiles", f"--root={tmp_path}", "--create", str(config)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "etc/credstore.encrypted").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "etc/kalshi").stat().st_mode & 0o777 == 0o755


def test_credentials_are_encrypted_and_documented() -> None:
    document = (ROOT / "docs" / "units.md").read_text()
    credentials: set[str] = set()
    for name in units.names():
        unit = units.parse(units.text(name))
        assert units.values(unit, "Service", "LoadCredential") == []
        assert units.values(unit, "Service", "SetCredential") == []
        credentials |= set(units.values(unit, "Service", "LoadCredentialEncrypted"))
    assert credentials == {"kalshi-key", "kalshi-tls-key", "kalshi-reader", "kalshi-pgpass"}
    for credential in credentials:
        assert f"/etc/credstore.encrypted/{credential}" in document
