"""The rendered access rules and roles on a real PostgreSQL 16: who enters, who may what.

The embedded server has no OpenSSL. What is shown of TLS: with the rendered file the deduplicator is
refused without it. All else is tried with `host` in its place; test_units_tls.py has the rest.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections.abc import Iterator

import asyncpg
import pytest

from dedup.metadata import read_markets
from dedup.pull import Position, pull, tell
from deploy import secrets
from runtime.partitions import Partitions
from runtime.postgres import connect, migrate
from tests.nix import units_files as units
from tests.nix.units_cluster import OTHERS, UnitCluster, account, need_root

# Only the sockets of refused connections (conftest.py): nothing else here may warn.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*unclosed:pytest.PytestUnraisableExceptionWarning",
    "ignore:.*_SelectorTransport:pytest.PytestUnraisableExceptionWarning",
    "ignore:.*socket.socket:pytest.PytestUnraisableExceptionWarning",
)

PASSWORD = "correct horse battery staple"
READER, WRITER = "kalshi_deduplicator", "kalshi_gatherer"
FOLDERS = {"kalshi-timescaledb": "gatherer_hot", "kalshi-postgres": "gatherer_meta"}
HOUR_US = 1_790_000_000_000_000  # some exchange time


def verifier(password: str) -> str:
    """As `tape secrets` gives it to a gatherer host."""
    return secrets.verifier(secrets.Secret(password.encode(), "the password")).reveal().decode()


async def fill(cluster: UnitCluster) -> None:
    """Migrations and rows by the gatherer's own way: its account, the unit's socket."""
    dsn = f"postgresql://{WRITER}@/kalshi?host={cluster.sockets}&port={cluster.port}"
    conn = await connect(dsn, tries_max=1)
    try:
        await migrate(conn, FOLDERS[cluster.name])
        if cluster.name == "kalshi-timescaledb":
            made = await Partitions().ensure(conn, "orderbook_delta", HOUR_US, HOUR_US)
            assert len(made) == 1
            await conn.execute(
                "INSERT INTO market VALUES (1, 1, 'KXTEST-A');"
                " INSERT INTO orderbook_delta VALUES"
                f" (to_timestamp({HOUR_US} / 1000000), 7, 100, 3, 1, 1, 1, 1, 500000, 0, 0);"
                " INSERT INTO ingest_batch VALUES"
                " (1, gen_random_uuid(), pg_current_xact_id(), 1, 2, 7, 7)"
            )
        else:
            await conn.execute(
                "INSERT INTO market_history VALUES ('KXTEST-A', 1, '\\x00', 'open', '{}')"
            )
    finally:
        await conn.close()


@pytest.fixture(scope="module", params=sorted(FOLDERS))
def cluster(request: pytest.FixtureRequest) -> Iterator[UnitCluster]:
    """A database of a gatherer host after its first start: initialised, in use, password set."""
    with UnitCluster(request.param) as made:
        made.init()
        made.start()
        made.credential("kalshi-reader", verifier(PASSWORD))
        done = made.set_roles()
        assert done.code == 0, done.err
        asyncio.run(fill(made))
        again = made.set_roles()  # a second start: now there are tables to give rights on
        assert again.code == 0, again.err
        yield made


@pytest.fixture
def timescaledb(cluster: UnitCluster) -> UnitCluster:
    """The cluster of port 5432 only."""
    if cluster.name != "kalshi-timescaledb":
        pytest.skip("shown with the other cluster")
    return cluster


async def reader(cluster: UnitCluster) -> asyncpg.Connection:
    """The deduplicator's connection."""
    return await asyncpg.connect(
        host="127.0.0.1", port=cluster.port, user=READER, password=PASSWORD, database="kalshi"
    )


# --- the server


def test_the_server_took_the_rendered_settings(cluster: UnitCluster) -> None:
    """Every setting is known to the server; the sizes are those of the file that wins."""
    conf = units.text(f"{cluster.name}.conf")
    names = re.findall(r"(?m)^([a-z_]+) = ", conf)
    known = {*cluster.psql("SELECT lower(name) FROM pg_settings").out.split(), "include_if_exists"}
    assert [name for name in names if name not in known] == []
    small = units.text(f"{cluster.name}-small.conf")
    (wanted,) = re.findall(r"(?m)^shared_buffers = (\d+)MB$", small)
    assert cluster.psql("SHOW shared_buffers").out.strip() in (
        f"{wanted}MB",
        f"{int(wanted) // 1024}GB",
    )
    assert cluster.psql("SHOW jit").out.strip() == "off"
    assert cluster.psql("SHOW data_checksums").out.strip() == "on"
    pending = cluster.psql("SELECT count(*) FROM pg_file_settings WHERE error IS NOT NULL")
    assert pending.out.strip() == "0"


def test_the_access_file_has_no_error(cluster: UnitCluster) -> None:
    for table in ("pg_hba_file_rules", "pg_ident_file_mappings"):
        assert cluster.psql(f"SELECT error FROM {table} WHERE error IS NOT NULL").out == ""


def test_roles_again_change_nothing(cluster: UnitCluster) -> None:
    """Run at every start: rights and password stay, and a later table is readable."""
    query = (
        "SELECT a::text FROM pg_authid AS a"
        " UNION ALL SELECT s::text FROM pg_db_role_setting AS s"
        " UNION ALL SELECT datname || datacl::text FROM pg_database ORDER BY 1"
    )
    before = cluster.psql(query).out
    assert "SCRAM-SHA-256$4096:" in before
    again = cluster.set_roles()
    assert again.code == 0, again.err
    assert re.sub(r"SCRAM\S+", "", cluster.psql(query).out) == re.sub(r"SCRAM\S+", "", before)


def test_a_clear_password_is_refused_as_credential(cluster: UnitCluster) -> None:
    """It would work, and would then lie on three hosts."""
    before = cluster.psql("SELECT rolpassword FROM pg_authid ORDER BY 1").out
    cluster.credential("kalshi-reader", f"{PASSWORD}\n")
    try:
        refused = cluster.set_roles()
        assert refused.code != 0
        assert "no SCRAM-SHA-256 verifier" in refused.err
        assert PASSWORD not in cluster.said()
    finally:
        cluster.credential("kalshi-reader", verifier(PASSWORD))
    assert cluster.psql("SELECT rolpassword FROM pg_authid ORDER BY 1").out == before


# --- the deduplicator


async def test_the_deduplicator_reads_with_its_own_code(timescaledb: UnitCluster) -> None:
    conn = await reader(timescaledb)
    try:
        got = await pull(conn, 0, Position())
        assert got.batch is not None
        assert got.rows == 1
        assert got.position.system_identifier != 0
    finally:
        await conn.close()


async def test_the_deduplicator_tells_how_far_it_is_and_no_more(timescaledb: UnitCluster) -> None:
    """The one function it may call writes its own row; the table stays shut."""
    conn = await reader(timescaledb)
    try:
        await tell(conn, 17)
        row = await conn.fetchrow("SELECT reader, batch_id FROM reader_cursor")
        assert tuple(row) == (READER, 17)
        await conn.execute("SET default_transaction_read_only = off")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await conn.execute("UPDATE reader_cursor SET batch_id = 18")
    finally:
        await conn.close()


async def test_the_deduplicator_reads_metadata(cluster: UnitCluster) -> None:
    if cluster.name != "kalshi-postgres":
        pytest.skip("shown with the other cluster")
    conn = await reader(cluster)
    try:
        (found,) = await read_markets(conn, ["KXTEST-A"])
        assert found.name == "KXTEST-A"
    finally:
        await conn.close()


async def test_the_deduplicator_cannot_write(cluster: UnitCluster) -> None:
    """Not by any statement, also after it has taken the read-only mode off itself."""
    conn = await reader(cluster)
    try:
        tables = [
            row[0]
            for row in await conn.fetch(
                "SELECT relname::text FROM pg_class WHERE relkind IN ('r', 'p')"
                " AND relnamespace = 'public'::regnamespace"
            )
        ]
        assert len(tables) > 3
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            await conn.execute("CREATE TABLE mine (x integer)")
        await conn.execute("SET default_transaction_read_only = off")
        column = {
            name: await conn.fetchval(
                "SELECT attname::text FROM pg_attribute"
                " WHERE attrelid = $1::text::regclass AND attnum = 1",
                name,
            )
            for name in tables
        }
        statements = [
            statement
            for name in tables
            for statement in (
                f"INSERT INTO {name} DEFAULT VALUES",
                f"UPDATE {name} SET {column[name]} = {column[name]}",
                f"DELETE FROM {name}",
                f"SELECT * FROM {name} FOR UPDATE",
                f"DO $$ BEGIN LOCK TABLE {name} IN EXCLUSIVE MODE; END $$",
                f"ALTER TABLE {name} OWNER TO {READER}",
                f"DROP TABLE {name}",
            )
        ]
        statements += [f"TRUNCATE {name}" for name in tables]
        statements += [
            "CREATE TABLE mine (x integer)",
            "CREATE TEMPORARY TABLE mine (x integer)",
            "CREATE SCHEMA mine",
            "CREATE FUNCTION mine() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
            "CREATE DATABASE mine",
            "CREATE ROLE mine",
            f"ALTER ROLE {READER} SUPERUSER",
            f"ALTER ROLE {WRITER} PASSWORD 'x'",
            f"SET ROLE {WRITER}",
            "SET SESSION AUTHORIZATION postgres",
            "SELECT lo_create(0)",
            "SELECT lo_creat(-1)",
            "SELECT lo_from_bytea(0, '\\x00')",
            "SELECT rolpassword FROM pg_authid",
            "SELECT pg_read_file('postgresql.conf')",
            "COPY (SELECT 1) TO '/tmp/mine'",
            "COPY (SELECT 1) TO PROGRAM 'true'",
            "ALTER SYSTEM SET jit = on",
            "SELECT pg_reload_conf()",
            "SELECT pg_rotate_logfile()",
            "CHECKPOINT",
        ]
        done = []
        for statement in statements:
            try:
                await conn.execute(statement)
                done.append(statement)
            except asyncpg.InsufficientPrivilegeError:
                pass
        assert done == []
    finally:
        await conn.close()


async def test_the_same_statements_work_for_one_who_may(timescaledb: UnitCluster) -> None:
    """Positive control: the refusals above are about the role, not about the statements."""
    dsn = f"postgresql://{WRITER}@/kalshi?host={timescaledb.sockets}&port={timescaledb.port}"
    conn = await asyncpg.connect(dsn)
    try:
        async with conn.transaction():
            await conn.execute("CREATE TABLE mine (x integer)")
            await conn.execute("INSERT INTO mine VALUES (1)")
            await conn.execute("UPDATE market SET ticker = ticker")
            await conn.execute("DROP TABLE mine")
    finally:
        await conn.close()


async def test_a_partition_made_later_is_readable(timescaledb: UnitCluster) -> None:
    """By default privileges: nobody grants again while the host runs."""
    dsn = f"postgresql://{WRITER}@/kalshi?host={timescaledb.sockets}&port={timescaledb.port}"
    writing, reading = await asyncpg.connect(dsn), await reader(timescaledb)
    try:
        later = HOUR_US + 7_200_000_000
        (name,) = await Partitions().ensure(writing, "orderbook_delta", later, later)
        assert await reading.fetchval(f"SELECT count(*) FROM {name}") == 0
    finally:
        await writing.close()
        await reading.close()


# --- the gatherer


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE ROLE mine",
        "CREATE DATABASE mine",
        "CREATE SCHEMA mine",
        "DROP DATABASE kalshi",
        "SELECT rolpassword FROM pg_authid",
        "COPY (SELECT 1) TO PROGRAM 'true'",
        "ALTER SYSTEM SET fsync = off",
        f"ALTER ROLE {READER} PASSWORD 'x'",
        f"GRANT postgres TO {WRITER}",
    ],
)
def test_the_gatherer_is_no_master(cluster: UnitCluster, statement: str) -> None:
    need_root()
    answer = cluster.psql(statement, account=account(OTHERS[0]), role=WRITER, database="kalshi")
    assert answer.code != 0
    assert re.search(r"permission denied|must be|cannot drop the currently open", answer.err)


# --- the door


@pytest.mark.parametrize(
    ("user", "password", "database"),
    [
        (READER, "wrong", "kalshi"),
        (READER, None, "kalshi"),
        (READER, PASSWORD, "postgres"),
        (READER, PASSWORD, "template1"),
        (WRITER, PASSWORD, "kalshi"),
        ("postgres", PASSWORD, "kalshi"),
        ("stranger", PASSWORD, "kalshi"),
    ],
)
async def test_strangers_are_refused_over_the_network(
    cluster: UnitCluster, user: str, password: str | None, database: str
) -> None:
    with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError) as refused:
        await asyncpg.connect(
            host="127.0.0.1",
            port=cluster.port,
            user=user,
            password=password,
            database=database,
            passfile="/nonexistent",
        )
    wrong = password == "wrong" or password is None
    assert ("password" in str(refused.value)) == wrong


def startup(source: str, port: int) -> bytes:
    """The server's first answer to the reader's greeting from an address of this machine."""
    body = struct.pack("!i", 196608) + f"user\0{READER}\0database\0kalshi\0\0".encode()
    with socket.create_connection(("127.0.0.1", port), 10, (source, 0)) as raw:
        raw.sendall(struct.pack("!i", len(body) + 4) + body)
        return raw.recv(4096)


def test_another_address_is_refused(cluster: UnitCluster) -> None:
    """Before any password is asked for."""
    asked = startup("127.0.0.1", cluster.port)
    assert asked[:1] == b"R"
    assert b"SCRAM-SHA-256" in asked
    refused = startup("127.0.0.2", cluster.port)
    assert refused[:1] == b"E"
    assert b"28000" in refused


async def test_without_tls_the_rendered_file_lets_nobody_in(cluster: UnitCluster) -> None:
    """Here `hostssl` stays; only the address is this machine's."""
    name = f"{cluster.name}-hba.conf"
    rendered = units.text(name)
    assert "10.0.3.20/32" in rendered
    cluster.reload(name, rendered.replace("10.0.3.20/32", "127.0.0.1/32"))
    try:
        with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError):
            await reader(cluster)
    finally:
        cluster.reload(name, cluster.stood_in(name))
    await (await reader(cluster)).close()


def test_accounts_of_the_host(cluster: UnitCluster) -> None:
    """The gatherer's account is the gatherer's role and no other; a stranger is nobody."""
    need_root()
    gatherer, stranger = account(OTHERS[0]), account(OTHERS[1])
    tried = {
        (who.name, role, database): cluster.psql(
            "SELECT 1", account=who, role=role, database=database
        ).code
        == 0
        for who in (gatherer, stranger, cluster.server)
        for role in (WRITER, READER, "postgres")
        for database in ("kalshi", "postgres")
    }
    server = cluster.server.name
    assert {key for key, entered in tried.items() if entered} == {
        (gatherer.name, WRITER, "kalshi"),
        (server, "postgres", "kalshi"),
        (server, "postgres", "postgres"),
    }


def test_the_socket_and_its_directory_are_doors_too(cluster: UnitCluster) -> None:
    """An account outside the group cannot even knock, by either of the two."""
    need_root()
    gatherer = account(OTHERS[0])
    unit = units.parse(units.text(f"{cluster.name}.service"))
    rendered = int(units.value(unit, "Service", "RuntimeDirectoryMode"), 8)
    open_to_all = cluster.sockets.stat().st_mode & 0o777
    assert open_to_all & 0o005
    try:
        for mode in (open_to_all, rendered):
            cluster.sockets.chmod(mode)
            for member in (True, False):
                answer = cluster.psql(
                    "SELECT 1", account=gatherer, role=WRITER, database="kalshi", member=member
                )
                assert (answer.code == 0) == member, answer.err
                assert ("Permission denied" in answer.err) != member
    finally:
        cluster.sockets.chmod(open_to_all)


def test_a_clean_stop_needs_no_recovery(cluster: UnitCluster) -> None:
    """The unit's signal is the server's fast shutdown. Last: it stops the server."""
    assert cluster.stop() == 0
    assert "database system is shut down" in cluster.said()
    cluster.start()
    assert "was not properly shut down" not in cluster.said()
