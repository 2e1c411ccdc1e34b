"""Secrets into credentials: whole or not at all, at whatever step it ends, and seen by nobody."""

from __future__ import annotations

import tomllib
import traceback
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from deploy import secrets
from deploy.errors import DeployError, HostRefusedError, PlanError, UnreachableError
from deploy.secrets import KEY, PGPASS, READER, Kept, Secret
from runtime.embedded import EmbeddedPostgres
from tests.deploy_hosts import SimShell, everything, fleet_of
from tests.rules.tree import ROOT

CANARY = "canary-of-yellow-feathers-7193"
OLD, NEW = Secret(b"the former\nsecret\n", "it"), Secret(f"the {CANARY}\nof it\n".encode(), "it")
HOST = "gatherer-1"
Found = tuple[bytes | None, bytes | None]


@pytest.fixture
def shell(tmp_path: Path) -> SimShell:
    return fleet_of(tmp_path, 1)[0]


async def test_a_secret_becomes_a_credential_and_the_former_one_stays_until_it_is_confirmed(
    shell: SimShell,
) -> None:
    host = shell.hosts[HOST]
    assert await secrets.put(shell, HOST, KEY, OLD)
    assert host.credential(KEY) == OLD.reveal()
    assert host.credential(f"{KEY}.previous") is None
    assert await secrets.put(shell, HOST, KEY, NEW)
    assert not await secrets.put(shell, HOST, KEY, NEW)  # said again: nothing changes
    assert host.credential(KEY) == NEW.reveal()
    assert host.credential(f"{KEY}.previous") == OLD.reveal()
    await secrets.restore(shell, HOST, KEY)
    assert host.credential(KEY) == OLD.reveal()
    await secrets.put(shell, HOST, KEY, NEW)
    await secrets.confirm(shell, HOST, KEY)
    assert host.credential(KEY) == NEW.reveal()
    assert {p.name for p in (host.root / "etc/credstore.encrypted").iterdir()} == {KEY}
    with pytest.raises(HostRefusedError, match="no former credential to go back to"):
        await secrets.restore(shell, HOST, KEY)
    with pytest.raises(HostRefusedError, match="no such credential"):
        await secrets.confirm(shell, HOST, READER)


async def test_the_first_of_two_unconfirmed_secrets_is_the_one_to_go_back_to(
    shell: SimShell,
) -> None:
    """The second try of a rotation does not bury the last credential that worked."""
    for secret in (OLD, Secret(b"a slip", "it"), NEW):
        await secrets.put(shell, HOST, KEY, secret)
    assert shell.hosts[HOST].credential(f"{KEY}.previous") == OLD.reveal()


async def replaced_and_killed(shell: SimShell) -> AsyncIterator[tuple[Found, Found]]:
    """Replace a credential and die before each program that the script calls, and after the last.
    What is there then, now and former, and what when it was said again."""
    host = shell.hosts[HOST]
    store = host.root / "etc/credstore.encrypted"
    await secrets.put(shell, HOST, KEY, OLD)
    former = (store / KEY).read_bytes()
    host.die("")
    await secrets.put(shell, HOST, KEY, NEW)
    count = host.count
    assert count > 12
    for where in (*(f"{n}-before" for n in range(1, count + 1)), f"{count}-after"):
        for file in store.iterdir():
            file.unlink()
        (store / KEY).write_bytes(former)
        host.die(where)
        with pytest.raises(UnreachableError, match="no answer while kalshi-key was set"):
            await secrets.put(shell, HOST, KEY, NEW)
        died = host.credential(KEY), host.credential(f"{KEY}.previous")
        host.die("")
        await secrets.put(shell, HOST, KEY, NEW)
        yield died, (host.credential(KEY), host.credential(f"{KEY}.previous"))
        await secrets.confirm(shell, HOST, KEY)
        assert [p.name for p in store.iterdir()] == [KEY]


@pytest.mark.slow  # 20 credentials, each cut off
async def test_killed_between_any_two_steps_it_is_the_former_or_the_new_one(
    shell: SimShell,
) -> None:
    found = [each async for each in replaced_and_killed(shell)]
    old, new = OLD.reveal(), NEW.reveal()
    assert {died for died, _ in found} == {(old, None), (old, old), (new, old)}, "each is met"
    assert {again for _, again in found} == {(new, old)}
    assert CANARY not in everything(shell)


@pytest.mark.slow  # the same walk
async def test_a_credential_that_is_replaced_in_two_steps_is_noticed(
    shell: SimShell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: removed first and made then, there is a moment without one."""
    naive = secrets._STORE.replace('rm -f "$place.new"', 'rm -f "$place"')
    monkeypatch.setattr(secrets, "_STORE", naive)
    found = [each async for each in replaced_and_killed(shell)]
    assert (None, None) in {died for died, _ in found}


async def test_a_line_that_breaks_in_the_secret_changes_nothing(shell: SimShell) -> None:
    await secrets.put(shell, HOST, KEY, OLD)
    for cut in range(0, len(NEW.sent()), 7):
        shell.cut_bytes = cut
        with pytest.raises(HostRefusedError, match="what arrived is not what was sent"):
            await secrets.put(shell, HOST, KEY, NEW)
        assert shell.hosts[HOST].credential(KEY) == OLD.reveal()
    shell.cut_bytes = None
    assert await secrets.put(shell, HOST, KEY, NEW)


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("way", ["encrypt", "decrypt", "line", "gone"])
async def test_no_failure_shows_a_secret(shell: SimShell, way: str, merge: bool) -> None:
    """The program on the host repeats what it read, the line's error repeats what it carried: the
    error of ours and the errors behind it say neither."""
    host = shell.hosts[HOST]
    lines = Secret(f"10.0.1.10:5432:kalshi:kalshi_deduplicator:{CANARY}\n".encode(), "it")
    await secrets.put(shell, HOST, PGPASS, OLD)
    if way in ("encrypt", "decrypt"):
        host.fail(way)
    elif way == "line":
        shell.lost.add(HOST)
    else:
        shell.cut_bytes = 70
    with pytest.raises(DeployError) as caught:
        await secrets.put(shell, HOST, PGPASS, lines, merge=merge)
    assert CANARY not in "".join(traceback.format_exception(caught.value))
    assert CANARY not in everything(shell, caught.value)
    assert host.credential(PGPASS) == OLD.reveal()


async def test_the_search_for_the_canary_finds_one(shell: SimShell) -> None:
    """Negative control: on a command line, in a file, in an error behind an error."""
    assert CANARY not in everything(shell)
    await shell.run(HOST, f"cat /dev/null; rm -f /etc/{CANARY}")
    assert CANARY in everything(shell)
    other = UnreachableError("broke")
    other.__context__ = UnreachableError(CANARY)
    assert CANARY in everything(SimShell({}), other)
    (shell.hosts[HOST].root / "etc/kalshi/x").write_text(CANARY)
    assert CANARY in everything(SimShell(shell.hosts))


def test_a_secret_shows_itself_to_nobody() -> None:
    assert CANARY not in f"{NEW} {NEW!r} {[NEW]}"
    assert NEW.sent().partition(b"\n")[2] == NEW.reveal()
    for value in (b"", b"a\0b", bytes(70_000).replace(b"\0", b"x")):
        with pytest.raises(PlanError, match="the key is empty, holds a zero byte"):
            Secret(value, "the key")


async def test_lines_of_the_password_file_replace_their_own_and_no_others(
    shell: SimShell,
) -> None:
    production = secrets.production_line("db.example", secrets.password("production-1234"))
    gatherers = fleet_of(shell.hosts[HOST].root / "more", 2)[1].of("gatherer")
    await secrets.put(shell, HOST, PGPASS, production, merge=True)
    one, two = secrets.password("reader-password-1"), secrets.password("reader-password-2")
    await secrets.put(shell, HOST, PGPASS, secrets.reader_lines(gatherers, one), merge=True)
    assert await secrets.put(shell, HOST, PGPASS, secrets.reader_lines(gatherers, two), merge=True)
    assert not await secrets.put(
        shell, HOST, PGPASS, secrets.reader_lines(gatherers, two), merge=True
    )
    now = shell.hosts[HOST].credential(PGPASS)
    assert now is not None
    assert sorted(now.decode().splitlines()) == [
        "10.0.1.10:5432:kalshi:kalshi_deduplicator:reader-password-2",
        "10.0.1.10:5433:kalshi:kalshi_deduplicator:reader-password-2",
        "10.0.1.11:5432:kalshi:kalshi_deduplicator:reader-password-2",
        "10.0.1.11:5433:kalshi:kalshi_deduplicator:reader-password-2",
        "db.example:5432:kalshi:kalshi_deduplicator:production-1234",
    ]
    assert b"production" not in b"".join(s.encode() for s in shell.seen)


async def test_a_password_file_that_the_host_cannot_read_is_not_written_over(
    shell: SimShell,
) -> None:
    """A disk that came from another host: its lines would be lost."""
    place = shell.hosts[HOST].root / "etc/credstore.encrypted" / PGPASS
    place.write_bytes(b"kalshi-other\nAAAA")
    with pytest.raises(HostRefusedError, match="cannot be decrypted by this host"):
        await secrets.put(shell, HOST, PGPASS, NEW, merge=True)
    assert place.read_bytes() == b"kalshi-other\nAAAA"


async def test_what_is_there_is_listed_with_times_and_never_with_contents(tmp_path: Path) -> None:
    shell, fleet = fleet_of(tmp_path, 1)
    await secrets.put(shell, HOST, KEY, OLD)
    await secrets.put(shell, HOST, KEY, NEW)
    await secrets.set_key_id(shell, HOST, "7f9b0c4e-0000-4000-8000-000000000001")
    (shell.hosts[HOST].root / "etc/credstore.encrypted/kalshi-reader.new").write_text("x")
    found = await secrets.listed(shell, fleet)
    shown = {(kept.host, kept.name, kept.state) for kept in found}
    assert {
        (HOST, KEY, "current"), (HOST, KEY, "previous"), (HOST, READER, "unfinished"),
        (HOST, READER, "missing"), (HOST, "tls.pem", "missing"), (HOST, "gatherer.env", "current"),
        ("deduplicator", PGPASS, "missing"),
    } <= shown  # fmt: skip
    key = next(kept for kept in found if (kept.name, kept.state) == (KEY, "current"))
    assert key.changed_s > 1_600_000_000
    assert key.mode == "600"
    assert CANARY not in repr(found)
    assert Kept(HOST, "tls.pem", "missing") in found


async def test_the_key_id_is_set_and_other_settings_stay(shell: SimShell) -> None:
    place = shell.hosts[HOST].root / "etc/kalshi/gatherer.env"
    await secrets.set_key_id(shell, HOST, "one")
    assert place.read_text() == "KT_KEY_ID=one\n"
    place.write_text("KT_WS_URL=wss://x\nKT_KEY_ID=one\n")
    await secrets.set_key_id(shell, HOST, "two")
    assert place.read_text() == "KT_WS_URL=wss://x\nKT_KEY_ID=two\n"
    with pytest.raises(PlanError, match="the key id has other characters"):
        await secrets.set_key_id(shell, HOST, "x'; rm -rf /; '")


def test_the_key_carries_its_id_as_the_gatherer_reads_it() -> None:
    from gatherer.auth import key_id_in

    pem = b"key-id: former\n-----BEGIN PRIVATE KEY-----\nx\n-----END PRIVATE KEY-----\n\n"
    made = secrets.key_with_id(pem, "new-id").reveal()
    assert key_id_in(made) == "new-id"
    assert made.endswith(b"-----END PRIVATE KEY-----\n")
    assert b"former" not in made
    with pytest.raises(PlanError, match="no PEM"):
        secrets.key_with_id(b"x", "id")


@pytest.mark.parametrize(
    "text",
    ["of-seven", "a space in it", "has:colon-in-it", "back\\slash-in", "äöü-in-it-äöü", "", "a\nb"],
)
def test_a_password_that_a_password_file_would_misread_is_refused(text: str) -> None:
    with pytest.raises(PlanError, match="the password is shorter than 12") as caught:
        secrets.password(text)
    assert not text or text not in str(caught.value)


def test_a_password_that_is_made_is_taken_and_never_the_same() -> None:
    assert len({secrets.new_password().reveal() for _ in range(50)}) == 50
    assert secrets.password("~!azAZ09[]^_#$%").reveal() == b"~!azAZ09[]^_#$%"


async def test_a_server_takes_the_password_of_its_verifier_and_no_other() -> None:
    """With the real server: it keeps the verifier as it is, and the password enters."""
    right = secrets.password("right-password")
    async with EmbeddedPostgres() as server:
        connection = await asyncpg.connect(server.dsn())
        (server.data_dir / "pg_hba.conf").write_text(
            "local all all trust\nhost all postgres 127.0.0.1/32 trust\n"
            "host all all 127.0.0.1/32 scram-sha-256\n"
        )
        await connection.execute("SELECT pg_reload_conf()")
        line = secrets.verifier(right).reveal().decode().strip()
        await connection.execute(f"CREATE ROLE reader LOGIN PASSWORD '{line}'")
        kept = await connection.fetchval(
            "SELECT rolpassword FROM pg_authid WHERE rolname = 'reader'"
        )
        assert kept == line
        at = {"host": "127.0.0.1", "port": server.port, "database": "postgres", "user": "reader"}
        entered = await asyncpg.connect(**at, password="right-password")
        assert await entered.fetchval("SELECT current_user") == "reader"
        await entered.close()
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(**at, password="wrong-password")
        await connection.close()


def test_what_is_said_of_databases_is_what_topology_and_units_say() -> None:
    ports = tomllib.loads((ROOT / "topology.toml").read_text())["ports"]
    assert (ports["timescale"], ports["postgres"]) == secrets.PORTS
    units = (ROOT / "nix/units.nix").read_text()
    assert f'database = "{secrets.DATABASE}"' in units
    assert f'reader = "{secrets.ROLE}"' in units
    for name in (KEY, READER, secrets.TLS_KEY, PGPASS):
        assert f"LoadCredentialEncrypted={name}" in units
