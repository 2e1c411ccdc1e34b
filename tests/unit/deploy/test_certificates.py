"""Certificates over hosts whose scripts really run, with the real openssl."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from deploy import certificates
from deploy.errors import HostRefusedError, PlanError, UnreachableError
from deploy.fleet import Fleet
from deploy.secrets import TLS_KEY
from tests.deploy_hosts import SimHost, SimShell, everything, fleet_of


@pytest.fixture
def made(tmp_path: Path) -> tuple[SimShell, Fleet]:
    return fleet_of(tmp_path, 2)


def openssl(*arguments: str, given: bytes = b"") -> str:
    ran = subprocess.run(["openssl", *arguments], input=given, capture_output=True, check=True)
    return ran.stdout.decode()


def shown(host: SimHost) -> str:
    return (host.root / "etc/kalshi/tls.pem").read_text()


def trusted(shell: SimShell) -> str:
    return (shell.hosts["deduplicator"].root / "etc/kalshi/gatherers.pem").read_text()


def fits(host: SimHost) -> bool:
    """Whether a database that starts now would: key and certificate belong to each other."""
    key = host.credential(TLS_KEY)
    assert key is not None
    certificate = str(host.root / "etc/kalshi/tls.pem")
    return openssl("pkey", "-pubout", given=key) == openssl(
        "x509", "-in", certificate, "-noout", "-pubkey"
    )


async def test_each_gatherer_gets_its_own_and_the_deduplicator_trusts_exactly_these(
    made: tuple[SimShell, Fleet],
) -> None:
    shell, fleet = made
    gatherers = [shell.hosts[host.name] for host in fleet.of("gatherer")]
    await certificates.renew(shell, fleet, fleet.of("gatherer"), lambda _: None)
    assert trusted(shell) == "".join(map(shown, gatherers))
    assert all(map(fits, gatherers))
    told = openssl("x509", "-in", str(gatherers[1].root / "etc/kalshi/tls.pem"), "-noout", "-text")
    assert "IP Address:10.0.1.11" in told
    assert "P-256" in told
    assert (gatherers[0].root / "etc/kalshi/tls.pem").stat().st_mode & 0o777 == 0o644
    key = gatherers[0].credential(TLS_KEY)
    assert key is not None
    for line in key.decode().splitlines()[1:-1]:
        assert line not in everything(shell), "the key is nowhere in clear"


async def test_a_new_certificate_is_trusted_before_a_database_shows_it(
    made: tuple[SimShell, Fleet],
) -> None:
    shell, fleet = made
    await certificates.renew(shell, fleet, fleet.of("gatherer"), lambda _: None)
    former = {host: shown(shell.hosts[host]) for host in ("gatherer-1", "gatherer-2")}
    looks = []

    def watch(host: str, script: str) -> None:
        looks.append(all(shown(shell.hosts[h]) in trusted(shell) for h in former))

    shell.before = watch
    await certificates.renew(shell, fleet, fleet.of("gatherer"), lambda _: None)
    assert len(looks) > 8
    assert all(looks)
    for host, before in former.items():
        assert shown(shell.hosts[host]) != before
        assert before not in trusted(shell)
        assert shell.hosts[host].restarts()[-2:] == [f"restart {u}" for u in certificates.DATABASES]


@pytest.mark.slow  # 30 renewals, each cut off
async def test_cut_off_between_any_two_steps_of_a_host_it_goes_on_when_said_again(
    tmp_path: Path,
) -> None:
    """Each program of the switch; what would not start then starts after it is said again, and only
    the two renames lie between."""
    shell, fleet = fleet_of(tmp_path, 1)
    host, gatherers = shell.hosts["gatherer-1"], fleet.of("gatherer")
    await certificates.renew(shell, fleet, gatherers, lambda _: None)
    host.die("")
    await certificates.renew(shell, fleet, gatherers, lambda _: None)
    count, unfit = host.count, 0
    assert count > 20
    for n in range(1, count + 1, 2):
        host.die(f"{n}-before")
        with pytest.raises(UnreachableError):
            await certificates.renew(shell, fleet, gatherers, lambda _: None)
        assert shown(host) in trusted(shell), n
        unfit += not fits(host)
        host.die("")
        await certificates.renew(shell, fleet, gatherers, lambda _: None)
        assert fits(host), n
        assert trusted(shell) == shown(host), n
    assert unfit <= count // 4


async def test_what_does_not_fit_together_is_never_switched_to(
    made: tuple[SimShell, Fleet],
) -> None:
    shell, fleet = made
    await certificates.renew(shell, fleet, fleet.of("gatherer"), lambda _: None)
    one, two = shell.hosts["gatherer-1"], shell.hosts["gatherer-2"]
    (one.root / "etc/kalshi/tls.pem.next").write_text(shown(two))
    before = shown(one)
    with pytest.raises(HostRefusedError, match="do not fit each other"):
        await certificates._say(shell, "gatherer-1", certificates._PLACES + certificates._SWITCH)
    assert shown(one) == before
    assert fits(one)


async def test_without_somebody_who_trusts_nothing_is_made(made: tuple[SimShell, Fleet]) -> None:
    shell, fleet = made
    alone = Fleet(fleet.of("gatherer"), "", "us-east-1")
    with pytest.raises(PlanError, match="need the deduplicator"):
        await certificates.renew(shell, alone, alone.hosts, lambda _: None)
    with pytest.raises(HostRefusedError, match="gatherer-1 has no certificate"):
        await certificates.trust(shell, fleet)
