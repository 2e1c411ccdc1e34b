"""The scripts of `tape secrets` with the real systemd-creds, under a host key of the test's own.

Each call has a mount namespace in which the test's directory lies over /var/lib/systemd: nothing of
this machine is read or changed. That needs root. What a unit makes of such a credential is
tests/onhost's.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from deploy import certificates, rotation, secrets
from deploy.errors import HostRefusedError
from deploy.secrets import KEY, PGPASS, READER, TLS_KEY, Secret
from tests.deploy_hosts import SimHost, SimShell, fleet_of

REAL = """#!/bin/sh
# The real one, with a host key of its own.
exec /usr/bin/unshare --mount --propagation private /bin/sh -c \\
    '/usr/bin/mount --bind "$SIM/systemd" /var/lib/systemd && exec SYSTEMD_CREDS "$@"' creds "$@"
"""

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("systemd-creds") is None or shutil.which("unshare") is None,
    reason="needs root, unshare and systemd-creds",
)


async def with_its_own_key(shell: SimShell, host: SimHost) -> None:
    (host.root / "sim/systemd").mkdir()
    text = REAL.replace("SYSTEMD_CREDS", str(shutil.which("systemd-creds")))
    host._program("systemd-creds.stand-in", text)
    made = await shell.run(host.name, "systemd-creds setup")
    assert made.code == 0, made.err


async def decrypted(shell: SimShell, host: str, name: str, file: str = "") -> bytes:
    place = f"/etc/credstore.encrypted/{file or name}"
    told = await shell.run(host, f"systemd-creds decrypt --name={name} {place} -")
    assert told.code == 0, told.err
    return told.out.encode()


async def test_what_is_set_is_what_the_host_decrypts(tmp_path: Path) -> None:
    shell, fleet = fleet_of(tmp_path, 2, installed=False)
    for host in shell.hosts.values():
        await with_its_own_key(shell, host)
    one, two = Secret(b"key-id: a\nfirst\n", "it"), Secret(b"key-id: b\nsecond\n", "it")
    assert await secrets.put(shell, "gatherer-1", KEY, one)
    assert not await secrets.put(shell, "gatherer-1", KEY, one)
    assert await secrets.put(shell, "gatherer-1", KEY, two)
    assert await decrypted(shell, "gatherer-1", KEY) == two.reveal()
    assert await decrypted(shell, "gatherer-1", KEY, f"{KEY}.previous") == one.reveal()
    password = secrets.new_password()
    await secrets.put(
        shell, "deduplicator", PGPASS, secrets.production_line("db.example", password), merge=True
    )
    await rotation.set_reader(shell, fleet, password, lambda _: None)
    lines = (await decrypted(shell, "deduplicator", PGPASS)).decode().splitlines()
    assert len(lines) == 5
    assert all(line.endswith(password.reveal().decode()) for line in lines)
    assert (await decrypted(shell, "gatherer-2", READER)).startswith(b"SCRAM-SHA-256$4096:")
    await certificates.renew(shell, fleet, fleet.of("gatherer"), lambda _: None)
    assert b"PRIVATE KEY" in await decrypted(shell, "gatherer-1", TLS_KEY)
    for host in shell.hosts.values():
        for file in (host.root / "etc/credstore.encrypted").iterdir():
            body = file.read_bytes()
            assert password.reveal() not in body
            assert file.stat().st_mode & 0o077 == 0


async def test_a_credential_of_another_host_or_name_is_no_password_file_to_add_to(
    tmp_path: Path,
) -> None:
    shell, _ = fleet_of(tmp_path, 1, installed=False)
    for host in shell.hosts.values():
        await with_its_own_key(shell, host)
    lines = secrets.production_line("db.example", secrets.new_password())
    await secrets.put(shell, "gatherer-1", PGPASS, lines)
    names = ("gatherer-1", "deduplicator")
    stores = [shell.hosts[name].root / "etc/credstore.encrypted" for name in names]
    foreign = (stores[0] / PGPASS).read_bytes()
    (stores[1] / PGPASS).write_bytes(foreign)
    with pytest.raises(HostRefusedError, match="cannot be decrypted by this host"):
        await secrets.put(shell, "deduplicator", PGPASS, lines, merge=True)
    assert (stores[1] / PGPASS).read_bytes() == foreign
