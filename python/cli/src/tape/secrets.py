"""`tape secrets`: what hosts need to know and nobody else may, over SSH (docs/deploy.md).

The work is deploy.secrets', deploy.rotation's and deploy.certificates'. A secret comes from a file
or from standard input, never from the command line.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from deploy import addresses as addresses_of
from deploy import certificates, rotation, secrets
from deploy.errors import PlanError
from deploy.fleet import Fleet, Host, known
from deploy.secrets import Secret
from deploy.shell import Shell, Ssh
from gatherer.auth import parse_private_key
from tape.deploy import HOME, Addresses, Checkout, Identity, KnownHosts, Outputs, Private
from tape.output import guarded, print_rows

KINDS: Final = ("key", "reader", "production", "tls")

app = typer.Typer(
    name="secrets",
    help="The hosts' keys, passwords and certificates: set, change, list; never show.",
    no_args_is_help=True,
)


@dataclass(slots=True)
class Way:
    """How hosts are reached; the same options for every command."""

    outputs: Path = Path("cdk/outputs.json")
    addresses: Path | None = None
    private: bool = False
    identity: Path = HOME / "admin"
    known_hosts: Path = HOME / "known_hosts"
    checkout: Path = Path()

    def fleet(self) -> Fleet:
        """The hosts with their addresses, asked of EC2 where nobody gave them."""
        fleet = known(self.checkout, self.outputs, self.addresses, private=self.private)
        return addresses_of.placed(fleet, self.outputs)

    @contextlib.asynccontextmanager
    async def shell(self, fleet: Fleet) -> AsyncIterator[Shell]:
        """SSH to these hosts; its connections end with the context."""
        with tempfile.TemporaryDirectory(prefix="kt-", dir="/tmp") as control:
            yield Ssh(
                fleet.addresses, self.known_hosts, self.identity, self.identity, Path(control)
            )


way = Way()


@app.callback()
def reach(
    *,
    outputs: Outputs = Path("cdk/outputs.json"),
    addresses: Addresses = None,
    private: Private = False,
    identity: Identity = HOME / "admin",
    known_hosts: KnownHosts = HOME / "known_hosts",
    checkout: Checkout = Path(),
) -> None:
    """The hosts' keys, passwords and certificates: set, change, list; never show."""
    for name, value in locals().copy().items():
        setattr(way, name, value)


Kind = Annotated[str, typer.Argument(help=", ".join(KINDS))]
HostNames = Annotated[list[str] | None, typer.Option("--host", help="only this; again for more")]
KeyId = Annotated[str, typer.Option(help="the exchange's id of the key")]
File = Annotated[Path | None, typer.Option(help="holds the secret; standard input without it")]
Endpoint = Annotated[str, typer.Option(help="host name of production (stack output Endpoint)")]
Generate = Annotated[bool, typer.Option("--generate", help="make a password instead of reading")]
Act = Callable[[Shell, Fleet], Coroutine[Any, Any, None]]


def say(line: str) -> None:
    """One line of progress."""
    sys.stdout.write(f"{line}\n")


def _carry_out(act: Act) -> None:
    async def over_ssh() -> None:
        fleet = way.fleet()
        async with way.shell(fleet) as shell:
            await act(shell, fleet)

    raise typer.Exit(guarded(lambda: asyncio.run(over_ssh())))


def _gatherers(fleet: Fleet, names: list[str] | None) -> list[Host]:
    chosen = [fleet.host(name) for name in names or ()] or list(fleet.of("gatherer"))
    if strange := [host.name for host in chosen if host.role != "gatherer"]:
        raise PlanError(f"{', '.join(strange)} is no gatherer")
    return chosen


def _read(file: Path | None, what: str) -> bytes:
    try:
        if file is not None:
            return file.read_bytes()
        if sys.stdin.isatty():
            return getpass.getpass(f"{what}: ").encode()
        return sys.stdin.buffer.read(secrets.SECRET_BYTES_MAX + 1)
    except OSError as error:
        raise PlanError(f"{what} cannot be read: {error.strerror}") from None


def _key(file: Path | None, key_id: str) -> Secret:
    """The exchange's key, checked as the gatherer will. Raises PlanError, ConfigError."""
    if not key_id:
        raise PlanError("a key has an id", hint="--key-id, as the exchange shows it")
    pem = _read(file, "the key")
    parse_private_key(pem, name="the key")
    return secrets.key_with_id(pem, key_id)


def _password(file: Path | None, *, generate: bool) -> Secret:
    if generate:
        return secrets.new_password()
    raw = _read(file, "the password")
    return secrets.password(raw.decode("utf-8", "replace").rstrip("\r\n"))


@app.command("set")
def set_secret(
    kind: Kind,
    host: HostNames = None,
    *,
    file: File = None,
    key_id: KeyId = "",
    endpoint: Endpoint = "",
    generate: Generate = False,
) -> None:
    """Give hosts a secret. Only `reader` and `tls` restart what must take it up."""

    async def act(shell: Shell, fleet: Fleet) -> None:
        if kind == "key":
            secret = _key(file, key_id)
            gatherers = _gatherers(fleet, host)
            await rotation.set_key(shell, gatherers, secret, key_id)
            say(f"the key is stored on {', '.join(h.name for h in gatherers)}")
        elif kind == "reader":
            password = _password(file, generate=generate)
            await rotation.set_reader(shell, fleet, password, say)
        elif kind == "production":
            await _production(shell, fleet, endpoint, _password(file, generate=generate))
        elif kind == "tls":
            await certificates.renew(shell, fleet, _gatherers(fleet, host), say)
        else:
            raise PlanError(f"no secret is called {kind}", hint=", ".join(KINDS))

    _carry_out(act)


async def _production(shell: Shell, fleet: Fleet, endpoint: str, password: Secret) -> None:
    """The password file's line, and the statement for whoever may change the role."""
    line = secrets.production_line(endpoint, password)
    (deduplicator,) = fleet.of("deduplicator")
    await secrets.put(shell, deduplicator.name, secrets.PGPASS, line, merge=True)
    # A verifier: who reads it cannot log in with it.
    verifier = secrets.verifier(password).reveal().decode().strip()
    say(f"ALTER ROLE {secrets.ROLE} PASSWORD '{verifier}';")


@app.command()
def rotate_key(key_id: KeyId = "", file: File = None, host: HostNames = None) -> None:
    """A new key of the exchange: one gatherer after the other, back where it does not record."""

    async def act(shell: Shell, fleet: Fleet) -> None:
        secret = _key(file, key_id)
        await rotation.rotate_key(shell, fleet, _gatherers(fleet, host), secret, key_id, say)

    _carry_out(act)


@app.command()
def rotate_passwords() -> None:
    """A new password of the reader, made here and shown to nobody, on every host."""

    async def act(shell: Shell, fleet: Fleet) -> None:
        await rotation.set_reader(shell, fleet, secrets.new_password(), say)

    _carry_out(act)


@app.command("list")
def list_secrets(
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object a line")] = False,  # noqa: FBT002
) -> None:
    """What each host has and what it lacks, with times; never what it contains."""

    async def act(shell: Shell, fleet: Fleet) -> None:
        rows = [
            {
                "host": kept.host,
                "name": kept.name,
                "state": kept.state,
                "changed": _moment(kept.changed_s),
                "mode": kept.mode,
            }
            for kept in await secrets.listed(shell, fleet)
        ]
        print_rows(rows, as_json=as_json, as_csv=False)

    _carry_out(act)


def _moment(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat() if seconds else ""


Name = Annotated[str, typer.Argument(help="as `tape secrets list` says it")]
HostName = Annotated[str, typer.Argument()]


@app.command()
def confirm(host: HostName, name: Name) -> None:
    """Forget the former credential: the new one was seen to work."""
    _one(host, name, secrets.confirm, "has forgotten its former")


@app.command()
def restore(host: HostName, name: Name) -> None:
    """Put the former credential in place again; whoever uses it takes it up when it starts."""
    _one(host, name, secrets.restore, "has its former")


def _one(
    host: str, name: str, work: Callable[[Shell, str, str], Coroutine[Any, Any, None]], told: str
) -> None:
    async def act(shell: Shell, fleet: Fleet) -> None:
        names = (secrets.KEY, secrets.READER, secrets.PGPASS)
        if name not in names:
            raise PlanError(f"{name} is none of {', '.join(names)}")
        await work(shell, fleet.host(host).name, name)
        say(f"{host} {told} {name}")

    _carry_out(act)
