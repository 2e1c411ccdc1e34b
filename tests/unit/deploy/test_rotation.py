"""Orders of rotation over hosts whose scripts really run: to the end, back, or said again."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy import rotation, secrets
from deploy.errors import DeployError, HostRefusedError, PlanError, UnreachableError
from deploy.fleet import Fleet
from deploy.secrets import KEY, PGPASS, READER, Secret
from tests.deploy_hosts import SimShell, everything, fleet_of

CANARY = "canary-of-yellow-feathers-7193"
OLD_KEY = Secret(b"key-id: old\n-----BEGIN\nold\n", "the key")
NEW_KEY = Secret(f"key-id: new\n-----BEGIN\n{CANARY}\n".encode(), "the key")
ID = "7f9b0c4e-0000-4000-8000-000000000002"
PASSWORD = secrets.password(CANARY)


@pytest.fixture
def made(tmp_path: Path) -> tuple[SimShell, Fleet]:
    return fleet_of(tmp_path)


def keys(shell: SimShell) -> list[str]:
    """old | new | both (not confirmed) by gatherer."""
    found = []
    for name in ("gatherer-1", "gatherer-2", "gatherer-3"):
        host = shell.hosts[name]
        now, former = host.credential(KEY), host.credential(f"{KEY}.previous")
        assert now in (OLD_KEY.reveal(), NEW_KEY.reveal())
        found.append("old" if now == OLD_KEY.reveal() else "both" if former else "new")
    return found


async def give_old_keys(shell: SimShell, fleet: Fleet) -> None:
    await rotation.set_key(shell, fleet.of("gatherer"), OLD_KEY, "old")
    assert not any(host.restarts() for host in shell.hosts.values())


async def test_a_new_key_goes_from_gatherer_to_gatherer_each_restarted_while_others_record(
    made: tuple[SimShell, Fleet],
) -> None:
    shell, fleet = made
    await give_old_keys(shell, fleet)
    recording = []

    def watch(host: str, script: str) -> None:
        if "systemctl restart kalshi-gatherer" in script:
            units = [h.root / "sim/units/kalshi-gatherer" for n, h in shell.hosts.items()
                     if n not in (host, "deduplicator")]  # fmt: skip
            recording.append((host, [u.read_text().strip() for u in units]))

    shell.before = watch
    said: list[str] = []
    await rotation.rotate_key(shell, fleet, fleet.of("gatherer"), NEW_KEY, ID, said.append)
    assert recording == [(f"gatherer-{n}", ["active"] * 2) for n in (1, 2, 3)]
    assert keys(shell) == ["new"] * 3
    for n in (1, 2, 3):
        env = shell.hosts[f"gatherer-{n}"].root / "etc/kalshi/gatherer.env"
        assert env.read_text() == f"KT_KEY_ID={ID}\n"
    assert CANARY not in everything(shell) + "".join(said)


async def test_a_gatherer_that_does_not_record_with_the_new_key_gets_its_former_one_again(
    made: tuple[SimShell, Fleet],
) -> None:
    """And those after it are left alone."""
    shell, fleet = made
    await give_old_keys(shell, fleet)
    second = shell.hosts["gatherer-2"]
    second.starts('! systemd-creds decrypt --name=kalshi-key "$SIM/../etc/credstore.encrypted/'
                  'kalshi-key" - | grep -q "key-id: new"')  # fmt: skip
    with pytest.raises(HostRefusedError, match="gatherer-2 did not record with the new") as caught:
        await rotation.rotate_key(shell, fleet, fleet.of("gatherer"), NEW_KEY, ID, lambda _: None)
    assert keys(shell) == ["new", "old", "old"]
    assert second.restarts() == ["restart kalshi-gatherer"] * 2
    assert (second.root / "sim/units/kalshi-gatherer").read_text() == "active\n"
    assert shell.hosts["gatherer-3"].restarts() == []
    assert CANARY not in everything(shell, caught.value)


async def test_where_nobody_else_records_nothing_is_touched(made: tuple[SimShell, Fleet]) -> None:
    shell, fleet = made
    await give_old_keys(shell, fleet)
    for n in (2, 3):
        (shell.hosts[f"gatherer-{n}"].root / "sim/units/kalshi-gatherer").write_text("failed\n")
    with pytest.raises(PlanError, match="a restart of gatherer-1 would be a gap"):
        await rotation.rotate_key(shell, fleet, fleet.of("gatherer"), NEW_KEY, ID, lambda _: None)
    assert keys(shell) == ["old"] * 3


@pytest.mark.parametrize("when", [1, 2, 3, 4, 6, 9])
async def test_a_rotation_of_the_key_that_was_cut_off_goes_on_when_said_again(
    made: tuple[SimShell, Fleet], when: int
) -> None:
    """The n-th word to a host is the last one that this process says."""
    shell, fleet = made
    await give_old_keys(shell, fleet)
    said = 0

    def die(host: str, script: str) -> None:
        nonlocal said
        said += 1
        if said == when + 1:
            raise KeyboardInterrupt

    shell.before = die
    with pytest.raises(KeyboardInterrupt):
        await rotation.rotate_key(shell, fleet, fleet.of("gatherer"), NEW_KEY, ID, lambda _: None)
    shell.before = lambda host, script: None
    await rotation.rotate_key(shell, fleet, fleet.of("gatherer"), NEW_KEY, ID, lambda _: None)
    assert keys(shell) == ["new"] * 3


def servers(shell: SimShell, secret: Secret, fleet: Fleet) -> None:
    """Have every database take this password, as their verifiers would."""
    lines = secrets.reader_lines(fleet.of("gatherer"), secret).reveal()
    (shell.hosts["deduplicator"].root / "sim/servers").write_bytes(lines)


def deduplicator_copies(shell: SimShell) -> None:
    """What its unit does when it starts: the credential becomes the password file."""
    host = shell.hosts["deduplicator"]
    (host.root / "run/kalshi-deduplicator").mkdir(exist_ok=True)
    host.starts(
        'systemd-creds decrypt --name=kalshi-pgpass "$SIM/../etc/credstore.encrypted/kalshi-pgpass"'
        ' - > "$SIM/../run/kalshi-deduplicator/pgpass"'
    )


async def test_the_readers_password_reaches_everybody_and_is_seen_to_work(
    made: tuple[SimShell, Fleet],
) -> None:
    """First the password file, then each gatherer's verifier, then the deduplicator begins again;
    the former ones go when it was seen to read."""
    shell, fleet = made
    deduplicator_copies(shell)
    order: list[str] = []

    def watch(host: str, script: str) -> None:
        for word in ("encrypt", "restart"):
            if f"systemctl {word}" in script or f"systemd-creds {word}" in script:
                order.append(f"{host} {word}")

    shell.before = watch
    for secret in (secrets.password("first-password"), PASSWORD):
        order.clear()
        servers(shell, secret, fleet)
        await rotation.set_reader(shell, fleet, secret, lambda _: None)
    assert order == [
        "deduplicator encrypt",
        *(f"gatherer-{n} {word}" for n in (1, 2, 3) for word in ("encrypt", "restart")),
        "deduplicator restart",
    ]
    for n in (1, 2, 3):
        host = shell.hosts[f"gatherer-{n}"]
        kept = host.credential(READER)
        assert kept is not None
        assert kept.startswith(b"SCRAM-SHA-256$4096:")
        assert host.credential(f"{READER}.previous") is None
        assert set(host.restarts()) == {f"restart {unit}" for unit in rotation.ROLES}
        assert CANARY not in everything(SimShell({"": host}))
    assert shell.hosts["deduplicator"].credential(f"{PGPASS}.previous") is None
    assert len({shell.hosts[f"gatherer-{n}"].credential(READER) for n in (1, 2, 3)}) == 3
    assert CANARY not in "\n".join((*shell.seen, *shell.hosts["deduplicator"].calls()))


async def test_a_database_that_does_not_take_the_new_password_is_told_and_the_former_one_kept(
    made: tuple[SimShell, Fleet],
) -> None:
    shell, fleet = made
    deduplicator_copies(shell)
    first = secrets.password("first-password")
    servers(shell, first, fleet)
    await rotation.set_reader(shell, fleet, first, lambda _: None)
    with pytest.raises(HostRefusedError, match=r"does not answer to the new .*10\.0\.1\.10:5432"):
        await rotation.set_reader(shell, fleet, PASSWORD, lambda _: None)
    former = shell.hosts["deduplicator"].credential(f"{PGPASS}.previous")
    assert former is not None
    assert b"first-password" in former
    servers(shell, PASSWORD, fleet)
    await rotation.set_reader(shell, fleet, PASSWORD, lambda _: None)
    assert shell.hosts["deduplicator"].credential(f"{PGPASS}.previous") is None


@pytest.mark.parametrize("when", [5, 7, 11])
async def test_a_rotation_of_the_password_that_was_cut_off_goes_on_with_another_password(
    made: tuple[SimShell, Fleet], when: int
) -> None:
    """The one that was made is lost with the process; a new one comes to the same end."""
    shell, fleet = made
    deduplicator_copies(shell)
    first = secrets.password("first-password")
    servers(shell, first, fleet)
    await rotation.set_reader(shell, fleet, first, lambda _: None)
    said = 0

    def die(host: str, script: str) -> None:
        nonlocal said
        said += 1
        if said == when:
            raise KeyboardInterrupt

    shell.before = die
    with pytest.raises(KeyboardInterrupt):
        await rotation.set_reader(shell, fleet, secrets.new_password(), lambda _: None)
    shell.before = lambda host, script: None
    servers(shell, PASSWORD, fleet)
    await rotation.set_reader(shell, fleet, PASSWORD, lambda _: None)
    now = shell.hosts["deduplicator"].credential(PGPASS)
    assert now == secrets.reader_lines(fleet.of("gatherer"), PASSWORD).reveal()
    assert shell.hosts["gatherer-3"].credential(f"{READER}.previous") is None


async def test_hosts_without_software_get_their_first_secrets(tmp_path: Path) -> None:
    shell, fleet = fleet_of(tmp_path, installed=False)
    said: list[str] = []
    await rotation.set_reader(shell, fleet, PASSWORD, said.append)
    assert said[-1] == "deduplicator: no deduplicator is there yet; it begins with the new password"
    assert shell.hosts["gatherer-1"].credential(READER) is not None


async def test_a_host_that_was_made_anew_is_not_asked_for_what_it_has_not_yet(
    made: tuple[SimShell, Fleet],
) -> None:
    """It has its secrets before its databases; the others are asked as ever."""
    shell, fleet = made
    deduplicator_copies(shell)
    for unit in (shell.hosts["gatherer-3"].root / "sim/units").iterdir():
        unit.unlink()
    servers(shell, PASSWORD, Fleet(fleet.hosts[:3], "", "us-east-1"))
    await rotation.set_reader(shell, fleet, PASSWORD, lambda _: None)
    assert shell.hosts["gatherer-3"].credential(READER) is not None
    kept = shell.hosts["deduplicator"].credential(PGPASS)
    assert kept == secrets.reader_lines(fleet.of("gatherer"), PASSWORD).reveal()


async def test_a_host_that_does_not_answer_is_found_before_anything_begins(
    made: tuple[SimShell, Fleet],
) -> None:
    shell, fleet = made
    shell.lost.add("gatherer-3")
    with pytest.raises(UnreachableError):
        await rotation.set_reader(shell, fleet, PASSWORD, lambda _: None)
    assert shell.hosts["deduplicator"].credential(PGPASS) is None
    alone = Fleet(fleet.of("gatherer"), "", "us-east-1")
    with pytest.raises(PlanError, match="needs the deduplicator and its gatherers"):
        await rotation.set_reader(shell, alone, PASSWORD, lambda _: None)
    assert issubclass(UnreachableError, DeployError)
