"""Secrets that change while everything records: in which order, and what is waited for.

Purpose: a new key of the exchange, a new password of the reader, each to the end or back.

What holds:
- A gatherer is restarted only while another one records, one after the other, and the next only
  when this one has frames of the exchange in its spool (systemd's word, `Type=notify`). One that
  does not come to it gets its former key back.
- A role has one password. New connections with the former one are refused from the moment at which
  a gatherer's databases have the new verifier until the deduplicator begins again, which follows at
  once. Connections that are open stay open, a gatherer keeps its rows until they are verified in
  the lake, so the tape is late by that time and lacks nothing.
- Cut off anywhere, saying it again comes to the same end. The former credentials stay until the
  deduplicator was seen to read every database with the new password.

Does not do: storing (secrets), the password of production's own role (docs/deploy.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from deploy import secrets
from deploy.errors import DeployError, HostRefusedError, PlanError, UnreachableError
from deploy.fleet import Fleet, Host
from deploy.secrets import KEY, PGPASS, PORTS, READER, SETTINGS, Secret
from deploy.shell import Shell

GATHERER: Final = "kalshi-gatherer"
DEDUPLICATOR: Final = "kalshi-deduplicator"
ROLES: Final = ("kalshi-timescaledb-roles", "kalshi-postgres-roles")
READY_TIMEOUT_S: Final = 180.0
RESTART_TIMEOUT_S: Final = 150.0  # a service may take 90 s to stop
READ_TIMEOUT_S: Final = 60.0

Say = Callable[[str], None]

# A host that has no such unit yet is being set up: there is nothing to restart.
_RESTART: Final = """systemctl cat UNITS >/dev/null 2>&1 || { echo none; exit 0; }
systemctl restart UNITS
"""
_PSQL: Final = "/nix/var/nix/profiles/kalshi-postgres/bin/psql"
_ASK: Final = f"""PGPASSFILE=/run/{DEDUPLICATOR}/pgpass
PGSSLMODE=verify-full
PGSSLROOTCERT={SETTINGS}/gatherers.pem
PGCONNECT_TIMEOUT=10
export PGPASSFILE PGSSLMODE PGSSLROOTCERT PGCONNECT_TIMEOUT
for end in ENDS; do
    {_PSQL} -X -q -w -t -A -c 'SELECT 1' "postgresql://{secrets.ROLE}@$end/{secrets.DATABASE}" \\
        >/dev/null || {{ echo "$end" >&2; exit 1; }}
done
"""


async def set_key(shell: Shell, hosts: Sequence[Host], secret: Secret, key_id: str) -> None:
    """The exchange's key on gatherers that are set up; nothing is restarted. Raises as
    secrets.put."""
    for host in hosts:
        await secrets.put(shell, host.name, KEY, secret)
        await secrets.set_key_id(shell, host.name, key_id)


async def rotate_key(
    shell: Shell, fleet: Fleet, hosts: Sequence[Host], secret: Secret, key_id: str, say: Say
) -> None:
    """A new key on these gatherers, one after the other, each restarted with it.

    Raises:
        PlanError: nobody else records; nothing was done to the host it names.
        HostRefusedError: a gatherer did not record with the new key; it has its former one again,
            those before it keep the new one.
        UnreachableError: as secrets.put; what the host says of itself is not known.
    """
    for host in hosts:
        await _others_record(shell, fleet, host)
        changed = await secrets.put(shell, host.name, KEY, secret)
        say(f"{host.name}: the key is stored{'' if changed else ' already'}, restarting")
        try:
            await _restart(shell, host.name, (GATHERER,), READY_TIMEOUT_S)
        except DeployError as error:
            say(f"{host.name}: does not record with it, going back")
            await secrets.restore(shell, host.name, KEY)
            await _restart(shell, host.name, (GATHERER,), READY_TIMEOUT_S)
            raise HostRefusedError(
                f"{host.name} did not record with the new key and has its former one again",
                hint=f"journalctl -u {GATHERER} on the host says what the exchange answered",
            ) from error
        await secrets.set_key_id(shell, host.name, key_id)
        await secrets.confirm(shell, host.name, KEY)
        say(f"{host.name}: records with the new key")


async def _others_record(shell: Shell, fleet: Fleet, host: Host) -> None:
    for other in fleet.of("gatherer"):
        if other.name == host.name:
            continue
        answer = await shell.run(other.name, f"systemctl is-active --quiet {GATHERER}")
        if answer.code == 0:
            return
    raise PlanError(
        f"no other gatherer records, a restart of {host.name} would be a gap",
        hint="start another one first, or `tape secrets set key` and restart it by hand",
    )


async def _restart(shell: Shell, host: str, units: Sequence[str], timeout_s: float) -> bool:
    """Whether there was something to restart; returns when each unit has said that it is ready."""
    script = _RESTART.replace("UNITS", " ".join(units))
    answer = await shell.run(host, script, timeout_s=timeout_s)
    if answer.code:
        raise HostRefusedError(f"{host}: {' and '.join(units)} did not start again")
    return answer.out.strip() != "none"


async def set_reader(shell: Shell, fleet: Fleet, secret: Secret, say: Say) -> None:
    """The reader's password on every host, from whatever was there: a first one or a new one.

    Raises:
        PlanError: the fleet has no deduplicator or no gatherer; nothing was done.
        HostRefusedError, UnreachableError: saying it again, with any password, comes to the end.
    """
    (deduplicators, gatherers) = fleet.of("deduplicator"), fleet.of("gatherer")
    if len(deduplicators) != 1 or not gatherers:
        raise PlanError("a reader's password needs the deduplicator and its gatherers at once")
    reader = deduplicators[0].name
    await secrets.listed(shell, fleet)  # every host answers, or nothing begins
    # Before the servers: whenever the deduplicator begins again, it has the one that will be right.
    await secrets.put(shell, reader, PGPASS, secrets.reader_lines(gatherers, secret), merge=True)
    say(f"{reader}: the password file is stored")
    serving = []  # a host made anew has its secrets before its databases
    for host in gatherers:
        await secrets.put(shell, host.name, READER, secrets.verifier(secret))
        if await _restart(shell, host.name, ROLES, RESTART_TIMEOUT_S):
            serving.append(host)
        say(f"{host.name}: takes the new password")
    if not await _restart(shell, reader, (DEDUPLICATOR,), RESTART_TIMEOUT_S):
        say(f"{reader}: no deduplicator is there yet; it begins with the new password")
        return
    await _reads(shell, reader, serving)
    say(f"{reader}: reads every database with it")
    for host in gatherers:
        await secrets.confirm(shell, host.name, READER)
    await secrets.confirm(shell, reader, PGPASS)


async def _reads(shell: Shell, reader: str, gatherers: Sequence[Host]) -> None:
    ends = " ".join(f"{host.private_address}:{port}" for host in gatherers for port in PORTS)
    try:
        answer = await shell.run(reader, _ASK.replace("ENDS", ends), timeout_s=READ_TIMEOUT_S)
    except UnreachableError:
        answer = None
    if answer is None or answer.code:
        end = "" if answer is None else answer.err.strip().splitlines()[-1:]
        raise HostRefusedError(
            f"{reader}: a database does not answer to the new password: {' '.join(end)}",
            hint="say it again; the former credentials are kept as .previous",
        )
