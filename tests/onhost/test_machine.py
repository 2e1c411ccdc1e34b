"""The test hosts themselves: they boot, keep and lose what they should, and leave nothing."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.onhost.lab import Lab, leftovers
from tests.onhost.machine import Machine, MachineError
from tests.rules.tree import ROOT

pytestmark = [pytest.mark.onhost, pytest.mark.timeout(600)]

# A process that opens a lab, boots a host in it, says so, and waits to be killed.
VICTIM = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits it ignored
from tests.onhost.image import image
from tests.onhost.lab import Lab
from tests.onhost.machine import Machine
with Lab() as lab:
    host = Machine(lab, "victim", image())
    host.boot()
    print(lab.name, lab.folder, host.pid, flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def host(lab: Lab, tree: Path) -> Machine:
    made = Machine(lab, "one", tree)
    made.boot()
    return made


def test_it_is_a_debian_13_that_runs_its_own_systemd(host: Machine) -> None:
    assert 'VERSION_ID="13"' in host.run("cat", "/etc/os-release").stdout
    assert host.run("cat", "/proc/1/comm").stdout == "systemd\n"
    assert host.run("systemctl", "is-system-running").stdout == "running\n"
    assert host.run("hostname").stdout == "one\n"


def test_a_command_that_fails_says_so(host: Machine) -> None:
    with pytest.raises(MachineError, match=r"false ended with 1"):
        host.run("false")


def test_a_host_cannot_set_the_clock(host: Machine) -> None:
    now = host.run("date", "+@%s").stdout.strip()
    assert "not permitted" in host.run("date", "--set", now, check=False).stderr
    unit = host.run("systemd-run", "--wait", "--pipe", "date", "--set", now, check=False)
    assert "not permitted" in unit.stderr


def test_a_power_cut_loses_what_was_not_synced_and_an_orderly_end_keeps_it(host: Machine) -> None:
    host.write("/var/lib/synced", "kept")
    host.run("sync")
    host.write("/var/lib/unsynced", "lost")
    host.power_cut()
    host.boot()
    assert host.run("cat", "/var/lib/synced").stdout == "kept"
    assert not host.path("/var/lib/unsynced").exists()
    host.write("/var/lib/unsynced", "kept this time")
    host.power_off()
    host.boot()
    assert host.run("cat", "/var/lib/unsynced").stdout == "kept this time"


def test_a_memory_limit_is_enforced_and_without_one_the_same_command_lives(host: Machine) -> None:
    """A limit that is only written down would pass a test that reads it."""
    eat = ("python3", "-c", "bytearray(200 << 20); print('ate')")
    free = host.run("systemd-run", "--wait", "--pipe", *eat, check=False)
    assert (free.returncode, free.stdout) == (0, "ate\n")
    limited = host.run(
        "systemd-run", "--wait", "--pipe", "--property=MemoryMax=64M", *eat, check=False
    )
    assert limited.returncode != 0
    assert "ate" not in limited.stdout


def test_a_unit_that_fails_at_boot_is_named(lab: Lab, tree: Path) -> None:
    broken = Machine(lab, "broken", tree)
    broken.write(
        "/etc/systemd/system/wrong.service", "[Service]\nType=oneshot\nExecStart=/bin/false\n"
    )
    wants = broken.seed / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(parents=True)
    (wants / "wrong.service").symlink_to("../wrong.service")
    with pytest.raises(MachineError, match=r"wrong\.service"):
        broken.boot()
    broken.kill()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_however_the_tests_end(how: signal.Signals, tree: Path) -> None:
    victim = subprocess.Popen(
        [sys.executable, "-c", VICTIM], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True,
    )  # fmt: skip
    assert victim.stdout is not None
    name, folder, pid = victim.stdout.readline().split()
    # The control: while it runs there is something to find.
    found = "\n".join(leftovers(name, Path(folder)))
    assert all(word in found for word in ("process", "control group", "loop device", "folder"))
    victim.send_signal(how)
    victim.wait(60)
    victim.stdout.close()
    deadline = time.monotonic() + 60
    while _left(name, folder, pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _left(name, folder, pid)


def _left(name: str, folder: str, pid: str) -> list[str]:
    alive = [f"process 1 of the host, {pid}"] if Path("/proc", pid, "root", "etc").exists() else []
    return alive + leftovers(name, Path(folder))
