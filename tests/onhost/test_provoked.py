"""The units' sandbox, limits, watchdog, restarts and credentials, by provoking each of them.

Reading that a setting is there would pass where the kernel does not enforce it. So each thing is
tried from inside, on a booted host, and each has a control: the same attempt succeeds where the
unit's setting is not.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.onhost import sandbox_probe
from tests.onhost.closures import closures
from tests.onhost.hosts import GATHERERS, Cluster, reader_verifier
from tests.onhost.lab import Lab
from tests.onhost.machine import Machine
from tests.onhost.network import EXCHANGE, PRODUCTION, Network
from tests.onhost.outside import Outside

pytestmark = [pytest.mark.onhost, pytest.mark.timeout(900)]

OURS = ("kalshi-gatherer", "kalshi-deduplicator", "kalshi-backup", "kalshi-cloudwatch")
DATABASES = tuple(
    f"kalshi-{kind}{part}"
    for kind in ("timescaledb", "postgres")
    for part in ("", "-init", "-roles")
)
# What a copy of a unit for the probe does not take over: what runs, when, and how its end is taken.
# Everything else, the sandbox and the limits, is the unit's own text.
NOT_COPIED = re.compile(
    r"(?m)^(Exec\w+|Type|NotifyAccess|Restart\w*|Watchdog\w+|Wants|After|PartOf|Condition\w+"
    r"|EnvironmentFile|Timeout\w+|RemainAfterExit|WantedBy|Runtime\w+)=.*\n"
)
REFUSED = {"EPERM", "EACCES", "EROFS", "EAFNOSUPPORT", "ENOENT", "ENOSYS"}
WATCHDOG_S = 30
EAT = "b = bytearray(({} << 20) - (8 << 20)); print(len(b))"


@pytest.fixture(scope="module")
def cluster(lab: Lab, tree: Path) -> Iterator[Cluster]:
    network = Network(lab, tree)
    network.protect()
    outside = Outside(network, lab.folder / "outside")
    made = Cluster(lab, tree, closures(), network, outside)
    try:
        outside.start_exchange("--synthetic", "20", "--seconds", "7200", "--expect-clients", "1")
        yield made
    finally:
        outside.close()
        made.close()


@pytest.fixture(scope="module")
def host(cluster: Cluster) -> Machine:
    """A gatherer host that records. The deduplicator's account and unit are on it for the probe."""
    machine = cluster.gatherer(GATHERERS[0])
    cluster.give_credential(machine, "kalshi-pgpass", "a password file\n")
    machine.write("/opt/sandbox_probe.py", Path(sandbox_probe.__file__).read_text())
    cluster.start(machine)
    return machine


@pytest.fixture(scope="module")
def deduplicator(cluster: Cluster, host: Machine) -> Machine:
    """The deduplicator host, merging what the one gatherer records."""
    cluster.outside.start_store()
    cluster.production()
    machine = cluster.deduplicator()
    cluster.start(machine)
    return machine


def unit_text(cluster: Cluster, unit: str) -> str:
    """A unit file out of its closure."""
    owners = {"kalshi-backup": "deduplicator", **{f"kalshi-{n}": n for n in cluster.closures.paths}}
    closure = cluster.closures.paths[owners.get(unit, "postgres")]
    path = cluster.closures.layer / closure.lstrip("/") / "lib/systemd/system" / f"{unit}.service"
    return path.read_text()


def run_as(host: Machine, name: str, unit: str, command: str) -> tuple[str, dict[str, str]]:
    """A command in a unit of the given text; what it printed, and how systemd saw it end."""
    name = f"probe-{name}.service"
    text = NOT_COPIED.sub("", unit)
    text = text.replace(
        "[Service]\n",
        f"[Service]\nType=oneshot\nStandardOutput=truncate:/run/{name}.out\nStandardError=journal\nExecStart={command}\n",
    )
    host.write(f"/run/systemd/system/{name}", text)
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "start", name, check=False, timeout_s=180)
    ended = host.show(name, "Result", "ExecMainStatus", "ExecMainCode")
    host.run("systemctl", "reset-failed", name, check=False)
    return host.path(f"/run/{name}.out").read_text(), ended


def probe(cluster: Cluster, host: Machine, name: str, unit: str) -> dict[str, str]:
    """The attempts of sandbox_probe in a unit."""
    place = f"{cluster.network.address(EXCHANGE)}:443"
    command = f"/usr/bin/python3 /opt/sandbox_probe.py {place}"
    said, ended = run_as(host, name, unit, command)
    assert said, f"the probe did not run: {ended} {host.journal(f'probe-{name}.service')}"
    return dict(json.loads(said))


def test_the_control_may_do_everything(cluster: Cluster, host: Machine) -> None:
    """Without a sandbox every attempt succeeds: what a unit refuses is the unit's doing."""
    said = probe(cluster, host, "free", "[Unit]\nDescription=control\n[Service]\n")
    assert {name: word for name, word in said.items() if word != "ok"} == {}


@pytest.mark.parametrize("unit", [*OURS, *DATABASES])
def test_the_sandbox_refuses_everything(cluster: Cluster, host: Machine, unit: str) -> None:
    said = probe(cluster, host, unit, unit_text(cluster, unit))
    reaches_out = said.pop("connect out")
    assert {name: word for name, word in said.items() if word not in REFUSED} == {}
    # The exchange and AWS are anywhere; a database's unit talks to the deduplicator's address only.
    assert (reaches_out == "ok") == (unit in OURS), reaches_out


def test_a_line_less_is_noticed(cluster: Cluster, host: Machine) -> None:
    """The control of the test above: without its line an attempt succeeds, and only that one."""
    text = unit_text(cluster, "kalshi-gatherer")
    for line, attempt in (
        ("MemoryDenyWriteExecute=yes", "rwx memory"),
        ("LimitCORE=0", "core file"),
        ("ProtectHostname=yes", None),  # the filter and the missing capability still refuse
    ):
        assert f"{line}\n" in text
        said = probe(cluster, host, "less", text.replace(f"{line}\n", ""))
        del said["connect out"]
        allowed = [name for name, word in said.items() if word not in REFUSED]
        assert allowed == ([attempt] if attempt else [])


@pytest.mark.parametrize(
    "unit", ["kalshi-gatherer", "kalshi-timescaledb-roles", "kalshi-postgres-roles"]
)
def test_memory_past_the_limit_is_death(cluster: Cluster, host: Machine, unit: str) -> None:
    """At the unit's own limit; 4.7 GiB for the gatherer on a machine of 24."""
    text = unit_text(cluster, unit)
    limit = int(host.show(unit, "MemoryMax")["MemoryMax"]) >> 20
    command = f'/usr/bin/python3 -c "{EAT.format(limit + 64)}"'
    said, ended = run_as(host, f"eats-{unit}", text, command)
    assert said == ""
    assert ended["Result"] in ("oom-kill", "signal")
    free = re.sub(r"(?m)^MemoryMax=.*\n", "", text)
    said, ended = run_as(host, f"eats-freely-{unit}", free, command)
    assert (int(said) >> 20, ended["Result"]) == (limit + 56, "success")


def test_tasks_past_the_limit_are_refused(cluster: Cluster, host: Machine) -> None:
    text = unit_text(cluster, "kalshi-gatherer")
    script = (
        "import threading,time;"
        "[threading.Thread(target=time.sleep,args=(5,),daemon=True).start() for _ in range(100)];"
        "print(100)"
    )
    command = f'/usr/bin/python3 -c "{script}"'
    said, ended = run_as(host, "tasks", text, command)
    assert (said, ended["ExecMainStatus"]) == ("", "1")
    said, _ = run_as(host, "tasks-free", text.replace("TasksMax=64\n", ""), command)
    assert said == "100\n"


def now() -> str:
    """An option of journalctl: from here on."""
    return f"--since=@{int(time.time())}"


def main_pid(host: Machine, unit: str) -> int:
    return int(host.show(unit, "MainPID")["MainPID"])


def restarts(host: Machine, unit: str) -> int:
    return int(host.show(unit, "NRestarts")["NRestarts"])


@pytest.mark.parametrize("unit", ["kalshi-gatherer", "kalshi-timescaledb", "kalshi-postgres"])
def test_a_killed_service_comes_back(cluster: Cluster, host: Machine, unit: str) -> None:
    before, moment = restarts(host, unit), now()
    host.run("systemctl", "kill", "--signal=KILL", "--kill-whom=main", unit)
    host.wait(lambda: restarts(host, unit) > before, 60, f"{unit} to be started again")
    cluster.wait_active(host, unit)
    assert "status=9/KILL" in host.journal(unit, moment)


def test_a_stopped_gatherer_is_ended_by_the_watchdog(cluster: Cluster, host: Machine) -> None:
    unit = "kalshi-gatherer"
    before, begun, moment = restarts(host, unit), time.monotonic(), now()
    host.run("systemctl", "kill", "--signal=STOP", "--kill-whom=main", unit)
    host.wait(lambda: restarts(host, unit) > before, WATCHDOG_S * 3, "the watchdog")
    assert WATCHDOG_S * 0.4 < time.monotonic() - begun < WATCHDOG_S * 2
    assert "Watchdog timeout" in host.journal(unit, moment)
    cluster.wait_active(host, unit)


def test_a_gatherer_whose_loop_hangs_is_ended_and_says_where(
    cluster: Cluster, host: Machine
) -> None:
    """Not stopped, but stuck: every wait for events takes a minute, by strace's injection."""
    unit = "kalshi-gatherer"
    before, pid, moment = restarts(host, unit), main_pid(host, unit), now()
    host.run(
        "systemd-run", "--unit=hang", "strace", "-qq", "-o", "/dev/null", "-p", str(pid),
        "-e", "trace=epoll_wait,epoll_pwait", "-e",
        "inject=epoll_wait,epoll_pwait:delay_enter=60000000",
    )  # fmt: skip
    host.wait(
        lambda: "Watchdog timeout" in host.journal(unit, moment), WATCHDOG_S * 3, "the watchdog"
    )
    host.run("systemctl", "stop", "hang", check=False)  # it would hold the dying process
    host.wait(lambda: restarts(host, unit) > before, 120, "the restart")
    assert "most recent call first" in host.journal(unit, moment)  # where every thread was
    cluster.wait_active(host, unit)


def put_aside(host: Machine, name: str) -> None:
    place = f"/etc/credstore.encrypted/{name}"
    host.run("mv", place, f"{place}.aside")


def put_back(host: Machine, name: str) -> None:
    place = f"/etc/credstore.encrypted/{name}"
    host.run("mv", f"{place}.aside", place)


@pytest.mark.parametrize(
    ("unit", "name", "says"),
    [
        ("kalshi-gatherer", "kalshi-key", "KT_PRIVATE_KEY_FILE"),
        ("kalshi-timescaledb", "kalshi-tls-key", "kalshi-tls-key"),
    ],
)
def test_a_missing_credential_is_named_and_mended_without_a_hand(
    cluster: Cluster, host: Machine, unit: str, name: str, says: str
) -> None:
    put_aside(host, name)
    moment = now()
    try:
        host.run("systemctl", "restart", "--no-block", unit)
        host.wait(lambda: says in host.journal(unit, moment), 60, f"{unit} to name {says}")
        assert host.show(unit, "ActiveState")["ActiveState"] != "active"
    finally:
        put_back(host, name)
    cluster.wait_active(host, unit)


@pytest.mark.parametrize("how", ["another name", "another host's", "no credential at all"])
def test_a_wrong_credential_keeps_the_unit_down_until_it_is_right(
    cluster: Cluster, host: Machine, how: str
) -> None:
    unit, place = "kalshi-gatherer", "/etc/credstore.encrypted/kalshi-key"
    put_aside(host, "kalshi-key")
    try:
        if how == "another name":
            secret = cluster.outside.private_key.read_text()
            cluster.give_credential(host, "kalshi-other", secret)
            host.run("mv", "/etc/credstore.encrypted/kalshi-other", place)
        elif how == "another host's":
            key = "/var/lib/systemd/credential.secret"
            host.run("sh", "-c", f"cp -a {key} {key}.own && rm {key} && systemd-creds setup")
            secret = cluster.outside.private_key.read_text()
            cluster.give_credential(host, "kalshi-key", secret)
            host.run("mv", f"{key}.own", key)
        else:
            host.write(place, "not encrypted\n", 0o600)
        moment = now()
        host.run("systemctl", "restart", "--no-block", unit)
        host.wait(
            lambda: "status=243/CREDENTIALS" in host.journal(unit, moment), 60,
            "the credential to be refused",
        )  # fmt: skip
    finally:
        host.run("rm", "-f", place)
        put_back(host, "kalshi-key")
    cluster.wait_active(host, unit)


def test_a_key_that_the_exchange_does_not_know_is_not_ready(
    cluster: Cluster, host: Machine, tmp_path: Path
) -> None:
    """A sound key of somebody else: the unit says what the exchange said, and is not ready."""
    from tape.fleet import write_test_key

    other, _ = write_test_key(tmp_path)
    put_aside(host, "kalshi-key")
    try:
        cluster.give_credential(host, "kalshi-key", other.read_text())
        moment = now()
        host.run("systemctl", "restart", "--no-block", "kalshi-gatherer")
        host.wait(lambda: "401" in host.journal("kalshi-gatherer", moment), 60, "a refusal")
        assert host.show("kalshi-gatherer", "ActiveState")["ActiveState"] == "activating"
    finally:
        host.run("rm", "-f", "/etc/credstore.encrypted/kalshi-key")
        put_back(host, "kalshi-key")
        host.run("systemctl", "restart", "--no-block", "kalshi-gatherer")
    cluster.wait_active(host, "kalshi-gatherer")


def test_a_clear_password_is_refused_as_the_readers(cluster: Cluster, host: Machine) -> None:
    unit = "kalshi-timescaledb-roles"
    cluster.give_credential(host, "kalshi-reader", "a clear password")
    moment, refusal = now(), "holds no SCRAM-SHA-256 verifier"
    host.run("systemctl", "restart", unit, check=False)
    host.wait(lambda: refusal in host.journal(unit, moment), 60, "the refusal")
    assert host.show(unit, "ActiveState")["ActiveState"] != "active"
    cluster.give_credential(host, "kalshi-reader", reader_verifier("another"))
    host.run("systemctl", "restart", unit)
    cluster.wait_active(host, unit)


def test_ready_is_the_recording_and_not_a_database(cluster: Cluster, host: Machine) -> None:
    """With both databases away and unable to come, the gatherer starts, is ready and records."""
    databases = ("kalshi-timescaledb", "kalshi-postgres")
    put_aside(host, "kalshi-tls-key")
    try:
        host.run("systemctl", "stop", *databases)
        host.run("systemctl", "restart", "--no-block", "kalshi-gatherer")
        cluster.wait_active(host, "kalshi-gatherer")
        states = {host.show(unit, "ActiveState")["ActiveState"] for unit in databases}
        assert "active" not in states
        asked = ("curl", "--silent", "--max-time", "5", "http://127.0.0.1:8080/status")
        first = json.loads(host.run(*asked).stdout)["spool_end"]
        host.wait(lambda: json.loads(host.run(*asked).stdout)["spool_end"] > first, 60, "frames")
    finally:
        put_back(host, "kalshi-tls-key")
    for unit in databases:  # the gatherer wants them, and a failed start is tried again
        cluster.wait_active(host, unit)


def _wait_for_restart(host: Machine, unit: str, before: int) -> None:
    host.wait(lambda: restarts(host, unit) > before, 240, f"{unit} to be started again")


def test_a_deduplicator_that_is_killed_or_stopped_comes_back(
    cluster: Cluster, deduplicator: Machine
) -> None:
    unit = "kalshi-deduplicator"
    for signal, says in (("KILL", "status=9/KILL"), ("STOP", "Watchdog timeout")):
        before, moment = restarts(deduplicator, unit), now()
        deduplicator.run("systemctl", "kill", f"--signal={signal}", "--kill-whom=main", unit)
        _wait_for_restart(deduplicator, unit, before)
        assert says in deduplicator.journal(unit, moment)
        cluster.wait_active(deduplicator, unit)


def test_a_deduplicator_without_its_passwords_says_so_and_mends_itself(
    cluster: Cluster, deduplicator: Machine
) -> None:
    unit = "kalshi-deduplicator"
    put_aside(deduplicator, "kalshi-pgpass")
    moment = now()
    try:
        deduplicator.run("systemctl", "restart", "--no-block", unit)
        deduplicator.wait(
            lambda: "kalshi-pgpass" in deduplicator.journal(unit, moment), 60, "a complaint"
        )
        assert deduplicator.show(unit, "ActiveState")["ActiveState"] != "active"
    finally:
        put_back(deduplicator, "kalshi-pgpass")
    cluster.wait_active(deduplicator, unit)


def test_a_wrong_password_is_no_readiness(cluster: Cluster, deduplicator: Machine) -> None:
    """Production refuses it; the unit is not ready, and its health says why."""
    unit = "kalshi-deduplicator"
    asked = ("curl", "--silent", "--max-time", "5", "http://127.0.0.1:8080/health")
    right = deduplicator.run("cat", "/run/kalshi-deduplicator/pgpass").stdout
    put_aside(deduplicator, "kalshi-pgpass")
    try:
        wrong = re.sub(r"(?m):[^:]*$", ":wrong", right)
        cluster.give_credential(deduplicator, "kalshi-pgpass", wrong)
        deduplicator.run("systemctl", "restart", "--no-block", unit)
        refusal = "password authentication failed"
        deduplicator.wait(
            lambda: refusal in deduplicator.run(*asked, check=False).stdout, 60, "the refusal"
        )
        assert deduplicator.show(unit, "ActiveState")["ActiveState"] == "activating"
    finally:
        deduplicator.run("rm", "-f", "/etc/credstore.encrypted/kalshi-pgpass")
        put_back(deduplicator, "kalshi-pgpass")
        deduplicator.run("systemctl", "restart", "--no-block", unit)
    cluster.wait_active(deduplicator, unit)


def test_the_nightly_dump_reaches_the_bucket(
    cluster: Cluster, deduplicator: Machine, tmp_path: Path
) -> None:
    """By its own unit, and it reads back what it wrote; with production away it fails."""
    deduplicator.run("systemctl", "start", "kalshi-backup", timeout_s=300)
    cluster.outside.fetch_lake(tmp_path)
    dumps = [path for path in (tmp_path / "backups" / "rds").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in dumps) > 1000
    production = cluster.machines[PRODUCTION]
    production.run("systemctl", "stop", "postgresql@17-main")
    try:
        failed = deduplicator.run("systemctl", "start", "kalshi-backup", check=False, timeout_s=300)
        assert failed.returncode != 0
    finally:
        production.run("systemctl", "start", "postgresql@17-main")
        deduplicator.run("systemctl", "stop", "kalshi-backup", check=False)
        deduplicator.run("systemctl", "reset-failed", "kalshi-backup", check=False)
