"""`tape secrets`: from files and standard input to hosts, and nothing secret on the way."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from typer.testing import CliRunner

from deploy import rotation
from deploy.fleet import Fleet
from deploy.secrets import KEY, PGPASS, READER
from gatherer.auth import key_id_in, parse_private_key
from tape import secrets as module
from tape.main import app
from tests.deploy_hosts import SimShell, everything, fleet_of
from tests.rules.tree import ROOT

ID = "7f9b0c4e-0000-4000-8000-000000000002"
CANARY = "canary-of-yellow-feathers-7193"


def pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


@pytest.fixture(scope="module")
def key() -> bytes:
    return pem(rsa.generate_private_key(65537, 2048))


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimShell:
    """The command line's hosts are these."""
    made, fleet = fleet_of(tmp_path / "hosts", 2, installed=False)

    @contextlib.asynccontextmanager
    async def over(self: module.Way, fleet: Fleet) -> AsyncIterator[SimShell]:
        yield made

    monkeypatch.setattr(module.Way, "fleet", lambda self: fleet)
    monkeypatch.setattr(module.Way, "shell", over)
    return made


def given(monkeypatch: pytest.MonkeyPatch, text: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))


def test_a_key_goes_from_a_file_to_the_gatherers_with_its_id(
    run: Callable[..., tuple[int, str, str]], shell: SimShell, key: bytes, tmp_path: Path
) -> None:
    file = tmp_path / "key.pem"
    file.write_bytes(key)
    code, out, err = run("secrets", "set", "key", "--file", file, "--key-id", ID)
    assert (code, out, err) == (0, "the key is stored on gatherer-1, gatherer-2\n", "")
    kept = shell.hosts["gatherer-2"].credential(KEY)
    assert kept is not None
    assert key_id_in(kept) == ID
    assert parse_private_key(kept, name="it").key_size == 2048
    secret = key.decode().splitlines()[5]
    assert secret not in everything(shell)
    assert run("secrets", "set", "key", "--file", file)[::2] == (
        2, "tape: a key has an id - hint: --key-id, as the exchange shows it\n"
    )  # fmt: skip


def test_what_the_exchange_would_not_take_goes_nowhere(
    run: Callable[..., tuple[int, str, str]], shell: SimShell, monkeypatch: pytest.MonkeyPatch
) -> None:
    for text, says in (
        (pem(ec.generate_private_key(ec.SECP256R1())), "is not an RSA key"),
        (CANARY.encode(), "is not a PEM private key"),
        (pem(rsa.generate_private_key(65537, 1024)), "has 1024 bits"),
    ):
        given(monkeypatch, text)
        code, out, err = run("secrets", "set", "key", "--key-id", ID)
        assert (code, out) == (2, "")
        assert says in err
        assert CANARY not in err
    assert shell.seen == []


def test_the_readers_password_from_standard_input_and_a_new_one(
    run: Callable[..., tuple[int, str, str]], shell: SimShell, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(monkeypatch, f"{CANARY}\n".encode())
    code, out, _ = run("secrets", "set", "reader")
    assert code == 0
    assert CANARY not in out
    first = shell.hosts["deduplicator"].credential(PGPASS)
    assert first is not None
    assert first.decode().splitlines()[0].endswith(f":kalshi_deduplicator:{CANARY}")
    assert shell.hosts["gatherer-1"].credential(READER) is not None
    assert run("secrets", "rotate-passwords")[0] == 0
    second = shell.hosts["deduplicator"].credential(PGPASS)
    assert second is not None
    assert CANARY not in second.decode()
    assert CANARY not in everything(shell)
    given(monkeypatch, b"short\n")
    assert run("secrets", "set", "reader")[0] == 2


def test_productions_password_is_stored_and_its_statement_printed(
    run: Callable[..., tuple[int, str, str]], shell: SimShell, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(monkeypatch, CANARY.encode())
    code, out, _ = run("secrets", "set", "production", "--endpoint", "db.example")
    assert code == 0
    assert out.startswith("ALTER ROLE kalshi_deduplicator PASSWORD 'SCRAM-SHA-256$4096:")
    assert CANARY not in out
    kept = shell.hosts["deduplicator"].credential(PGPASS)
    assert kept == f"db.example:5432:kalshi:kalshi_deduplicator:{CANARY}\n".encode()


def test_list_says_what_is_there_and_what_is_missing(
    run: Callable[..., tuple[int, str, str]], shell: SimShell
) -> None:
    assert run("secrets", "set", "reader", "--generate")[0] == 0
    code, out, _ = run("secrets", "list", "--json")
    assert code == 0
    rows = [json.loads(line) for line in out.splitlines()]
    states = {(row["host"], row["name"]): row["state"] for row in rows}
    assert states["gatherer-1", READER] == "current"
    assert states["gatherer-1", KEY] == "missing"
    assert states["deduplicator", PGPASS] == "current"
    assert "gatherer-1" in run("secrets", "list")[1]


def test_the_former_one_is_put_back_or_forgotten(
    run: Callable[..., tuple[int, str, str]], shell: SimShell, key: bytes, tmp_path: Path
) -> None:
    file = tmp_path / "key.pem"
    file.write_bytes(key)
    for key_id in ("one", "two"):
        assert run("secrets", "set", "key", "--file", file, "--key-id", key_id)[0] == 0
    assert run("secrets", "restore", "gatherer-1", KEY)[0] == 0
    kept = shell.hosts["gatherer-1"].credential(KEY)
    assert kept is not None
    assert key_id_in(kept) == "one"
    assert run("secrets", "confirm", "gatherer-2", KEY)[0] == 0
    assert shell.hosts["gatherer-2"].credential(f"{KEY}.previous") is None
    assert run("secrets", "confirm", "gatherer-2", "shadow")[0] == 2
    assert run("secrets", "set", "everything")[0] == 2


def test_rotate_key_refuses_where_nobody_else_records(
    run: Callable[..., tuple[int, str, str]], shell: SimShell, key: bytes, tmp_path: Path
) -> None:
    file = tmp_path / "key.pem"
    file.write_bytes(key)
    code, _, err = run("secrets", "rotate-key", "--file", file, "--key-id", ID)
    assert code == 2
    assert "a restart of gatherer-1 would be a gap" in err
    assert rotation.GATHERER == "kalshi-gatherer"


def test_hosts_are_reached_by_the_options_before_the_command(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any address: refused before anything is said to anybody."""
    monkeypatch.setattr(module, "way", module.Way())
    code, _, err = run("secrets", "--checkout", ROOT, "--outputs", tmp_path / "none", "list")
    assert code == 2
    assert "no address of deduplicator" in err


def test_deployed_hosts_are_looked_for_in_ec2_unless_their_addresses_were_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Fleet] = []

    def look(fleet: Fleet) -> Fleet:
        asked.append(fleet)
        return fleet

    monkeypatch.setattr(module.addresses_of, "look", look)
    outputs, given_ = tmp_path / "outputs.json", tmp_path / "addresses.json"
    outputs.write_text(
        json.dumps({"KalshiGatherer1": {"PrivateIp": "10.0.1.10", "InstanceId": "i-1"}})
    )
    given_.write_text(json.dumps({"gatherer-1": "203.0.113.7"}))
    way = module.Way(outputs=outputs, checkout=ROOT)
    assert [host.instance for host in way.fleet().hosts] == ["i-1"]
    assert len(asked) == 1
    way.addresses = given_
    assert way.fleet().addresses == {"gatherer-1": "203.0.113.7"}
    way.addresses, way.private = None, True
    assert way.fleet().addresses == {"gatherer-1": "10.0.1.10"}
    assert len(asked) == 1


TOLD = re.compile(r"(?:^|`)tape (secrets\b[^`#\n]*)", re.MULTILINE)
PAGES = ("docs/deploy.md", "docs/units.md", "docs/aws.md")


def taken(words: str) -> str:
    """What the command line refuses in it; "" where it takes it. Nothing is carried out."""
    done = CliRunner().invoke(app, shlex.split(words))
    return "" if done.exit_code == 0 else done.output


def test_what_documents_say_can_be_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "guarded", lambda action: 0)
    found = {
        words.strip() for page in PAGES for words in TOLD.findall((ROOT / page).read_text())
    } - {"secrets", "secrets set"}
    assert len(found) >= 12
    for words in sorted(found):
        assert taken(words) == "", f"tape {words}"
    assert "No such option" in taken("secrets set key --everywhere")  # the control
    assert "No such command" in taken("secrets show")


def test_the_commands_of_the_page_bring_everything_that_a_host_needs(
    run: Callable[..., tuple[int, str, str]], shell: SimShell, key: bytes, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The block of docs/aws.md, section 7, as it is, on hosts that have nothing."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "key.pem").write_bytes(key)
    page = (ROOT / "docs/aws.md").read_text()
    lines = re.findall(r"(?m)^tape (secrets .*)$", page)
    assert len(lines) == 5
    for line in lines:
        code, out, err = run(*shlex.split(line), *(["--json"] if "list" in line else []))
        assert (code, err) == (0, ""), line
    missing = [row for row in map(json.loads, out.splitlines()) if row["state"] == "missing"]
    assert sorted((row["host"], row["name"]) for row in missing) == [
        ("deduplicator", "deduplicator.env"), ("deduplicator", "production.pem")
    ], "by hand"  # fmt: skip
