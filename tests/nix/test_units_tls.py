"""The way of the deduplicator to a gatherer's database: TLS, certificate, password file.

The embedded server has no OpenSSL, so this is the distribution's, whatever its version: the access
file, the unit's connection string and the commands of docs/units.md are tried as they are.
"""

from __future__ import annotations

import json
import os
import re
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from runtime.postgres import connect
from tests.nix import units_files as units
from tests.nix.test_units_roles import PASSWORD, READER, verifier
from tests.nix.units_cluster import UnitCluster
from tests.rules.tree import ROOT

# Only the sockets of refused connections (conftest.py): nothing else here may warn.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*unclosed:pytest.PytestUnraisableExceptionWarning",
    "ignore:.*_SelectorTransport:pytest.PytestUnraisableExceptionWarning",
    "ignore:.*socket.socket:pytest.PytestUnraisableExceptionWarning",
)

SERVERS = Path("/usr/lib/postgresql")
CLUSTERS_CONFIG = Path("/etc/postgresql-common/createcluster.conf")


def binaries() -> Path:
    """A PostgreSQL with OpenSSL; root installs the distribution's, without a cluster of its own."""
    if not list(SERVERS.glob("*/bin/postgres")) and os.geteuid() == 0:
        if not CLUSTERS_CONFIG.exists():
            CLUSTERS_CONFIG.parent.mkdir(parents=True, exist_ok=True)
            CLUSTERS_CONFIG.write_text("create_main_cluster = false\n")
        units.install("postgresql")
    found = sorted(SERVERS.glob("*/bin/postgres"))
    if not found:
        pytest.fail("no PostgreSQL with OpenSSL is here; as root: apt-get install postgresql")
    return found[-1].parent


def documented_certificate(directory: Path, address: str) -> None:
    """tls.pem and tls.key, by the command of docs/units.md."""
    units.need("openssl", "openssl")
    document = (ROOT / "docs" / "units.md").read_text()
    (command,) = re.findall(r"(?m)^openssl (?:.*\\\n)*.*$", document)
    command, pipe, rest = command.partition("| systemd-creds")
    assert pipe
    assert "--name=kalshi-tls-key" in rest
    for old, new in (("10.0.1.10", address), ("/etc/kalshi/", f"{directory}/")):
        assert old in command
        command = command.replace(old, new)
    made = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    (directory / "tls.key").write_text(made.stdout)


@pytest.fixture(scope="module")
def cluster() -> Iterator[UnitCluster]:
    """The database of port 5432 as its unit starts it, with a certificate for this address."""
    with UnitCluster("kalshi-timescaledb", binaries()) as made:
        documented_certificate(made.etc, "127.0.0.1")
        made.etc.joinpath("tls.pem").chmod(0o644)
        key = made.credentials / "kalshi-tls-key"
        made.credential(key.name, made.etc.joinpath("tls.key").read_text())
        key.chmod(0o400)
        made.init()
        made.start()
        made.credential("kalshi-reader", verifier(PASSWORD))
        done = made.set_roles()
        assert done.code == 0, done.err
        yield made


@pytest.fixture
def dsn(cluster: UnitCluster) -> str:
    """The first connection string of the deduplicator's unit, for this machine."""
    name = "kalshi-deduplicator.service"
    given = units.environment(units.text(name), name)
    first: str = json.loads(given["KT_GATHERER_DSNS"])[0]
    for old, new in (
        ("10.0.1.10:5432", f"127.0.0.1:{cluster.port}"),
        ("/etc/kalshi/gatherers.pem", f"{cluster.etc}/tls.pem"),
    ):
        assert old in first
        first = first.replace(old, new)
    return first


@pytest.fixture
def pgpass(cluster: UnitCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The credential as systemd 257 gives it, copied by the unit's own command."""
    credential = tmp_path / "kalshi-pgpass"
    credential.write_text(f"127.0.0.1:{cluster.port}:kalshi:{READER}:{PASSWORD}\n")
    credential.chmod(0o440)
    unit = units.parse(units.text("kalshi-deduplicator.service"))
    (tmp_path / "kalshi-deduplicator").mkdir()
    command = units.value(unit, "Service", "ExecStartPre")
    command = command.replace("%d", str(tmp_path)).replace("%t", str(tmp_path))
    subprocess.run(command.split(), check=True)
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "kalshi-deduplicator" / "pgpass"))
    return credential


async def test_the_deduplicator_enters(cluster: UnitCluster, dsn: str, pgpass: Path) -> None:
    conn = await connect(dsn, tries_max=1)
    try:
        row = await conn.fetchrow(
            "SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
        )
        assert row is not None
        assert (row["ssl"], row["version"]) == (True, "TLSv1.3")
    finally:
        await conn.close()


async def test_without_tls_nobody_enters(cluster: UnitCluster, dsn: str, pgpass: Path) -> None:
    plain = dsn.replace("sslmode=verify-full", "sslmode=disable")
    assert plain != dsn
    with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError, match="rejects"):
        await asyncpg.connect(plain)


async def test_a_wrong_password_is_refused(cluster: UnitCluster, dsn: str) -> None:
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(dsn, password="wrong")


async def test_an_impostor_is_noticed(
    cluster: UnitCluster, dsn: str, pgpass: Path, tmp_path: Path
) -> None:
    """Another certificate for the same address, and the right one under another address."""
    documented_certificate(tmp_path, "127.0.0.1")
    with pytest.raises(ssl.SSLCertVerificationError):
        await asyncpg.connect(dsn.replace(f"{cluster.etc}/tls.pem", f"{tmp_path}/tls.pem"))
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        await asyncpg.connect(dsn.replace("@127.0.0.1:", "@localhost:"), password=PASSWORD)


async def test_an_older_tls_is_refused(cluster: UnitCluster, dsn: str, pgpass: Path) -> None:
    context = ssl.create_default_context(cafile=str(cluster.etc / "tls.pem"))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    bare = dsn.partition("?")[0]
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncpg.connect(bare, ssl=context)


async def test_a_credential_that_its_group_may_read_needs_the_copy(
    cluster: UnitCluster, dsn: str, pgpass: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why the unit copies it. When this fails, the unit's ExecStartPre can go."""
    monkeypatch.setenv("PGPASSFILE", str(pgpass))
    with (
        pytest.warns(UserWarning, match="group or world access"),
        pytest.raises(asyncpg.InvalidPasswordError),
    ):
        await asyncpg.connect(dsn)


def test_the_server_takes_both_forms_of_a_credential(cluster: UnitCluster) -> None:
    """The key is 0400 and the server's own with systemd 252; root's, 0440 with systemd 257."""
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    key = cluster.credentials / "kalshi-tls-key"
    os.chown(key, 0, cluster.server.gid)
    key.chmod(0o440)
    assert cluster.stop() == 0
    cluster.start()
    assert cluster.psql("SHOW ssl").out.strip() == "on"


def test_tls_was_really_asked_for(cluster: UnitCluster) -> None:
    """The rendered settings and access file reached the server unchanged where it matters."""
    assert "\nssl = on\n" in (cluster.share / "kalshi-timescaledb.conf").read_text()
    assert "hostssl" in (cluster.share / "kalshi-timescaledb-hba.conf").read_text()
