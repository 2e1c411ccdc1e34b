"""N5: the frozen first-boot script on a booted Debian 13, twice, and what it promises, by trying.

Each check has its control: a second SSH server with open settings, an unmodified path, a planted
listener, a setting taken back. What is replaced is said in firstboot_world.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.onhost import firstboot_state, firstboot_upgrades
from tests.onhost.firstboot_world import OPEN_SSHD, PASSWORD, TIME_ADDRESS, World, world

pytestmark = [pytest.mark.onhost, pytest.mark.timeout(1200)]

HOSTS = {"gatherer": "gatherer-1", "deduplicator": "deduplicator"}
OPEN = 2222  # port of the control


@pytest.fixture(scope="module", params=HOSTS)
def booted(request: pytest.FixtureRequest, tree: Path) -> Iterator[World]:
    """A host after two runs of its user data; `states` before, between and after."""
    with world(tree, HOSTS[request.param], request.param) as made:
        made.states.append(firstboot_state.read(made.host))
        for _ in range(2):
            made.first_boot()
            made.states.append(firstboot_state.read(made.host))
        yield made


def build(made: World, name: str, needs: str = "", *, sign_with: str = "") -> str:
    """A path on the owner's machine, which refers to the path `needs`; signed or not."""
    text = f'text = "{name}"; needs = builtins.storePath "{needs}";' if needs else 'text = "";'
    expression = (
        f'derivation {{ name = "{name}"; system = builtins.currentSystem; builder = "/bin/sh"; '
        f'args = ["-c" "echo $name $needs > $out"]; {text} }}'
    )
    path = made.nix(
        "build", "--impure", "--expr", expression, "--no-link", "--print-out-paths"
    ).stdout.strip()
    if sign_with:
        made.nix("store", "sign", "--key-file", f"/root/{sign_with}", path)
    return path


def flip_first_byte(made: World, path: str) -> None:
    """One bit of a file on the owner's machine."""
    target = made.outside.path(path)
    mode = target.stat().st_mode
    target.chmod(mode | 0o200)
    content = bytearray(target.read_bytes())
    content[len(content) // 2] ^= 1
    target.write_bytes(content)
    target.chmod(mode)


def until(true: Callable[[], bool], seconds: float) -> bool:
    """Whether something became true in time."""
    deadline = time.monotonic() + seconds
    while not (seen := true()) and time.monotonic() < deadline:
        time.sleep(0.5)
    return seen


# ---- the same state


def test_a_second_run_changes_nothing(booted: World) -> None:
    """Files below /etc with inode and time, all others by content, users, units, packages, Nix."""
    before, first, second = booted.states
    assert firstboot_state.differences(first, second) == []
    seen = "\n".join(firstboot_state.differences(before, first))
    for part in ("file /etc/nix/nix.conf", "passwd deploy", "unit chrony", "package nix-bin"):
        assert part in seen
    assert second["host name"] == booted.name
    assert booted.host.path("/etc/kalshi/role").read_text() == f"{booted.role}\n"
    assert booted.host.run("systemctl", "is-system-running", check=False).stdout == "running\n"


def test_a_planted_difference_is_named_and_the_script_heals_its_own(booted: World) -> None:
    """The control of the comparison, one of each kind."""
    host, last = booted.host, booted.states[-1]
    host.run("touch", "/etc/chrony/chrony.conf")
    host.run("chmod", "600", "/etc/systemd/journald.conf.d/kalshi.conf")
    host.run("sed", "-i", "s/^max-jobs.*/max-jobs = 4/", "/etc/nix/nix.conf")
    host.run("sed", "-i", "s/^PermitRootLogin.*//", "/etc/ssh/sshd_config.d/10-kalshi.conf")
    host.run("useradd", "planted")
    host.run("systemctl", "disable", "--now", "apt-daily-upgrade.timer")
    host.run("dpkg", "--remove", "--force-depends", "unattended-upgrades")
    seen = "\n".join(firstboot_state.differences(last, firstboot_state.read(host)))
    for part in (
        *("file /etc/chrony/chrony.conf", "file /etc/systemd/journald.conf.d/kalshi.conf"),
        *("nix max-jobs: 'max-jobs = 0' became 'max-jobs = 4'", "passwd planted"),
        *("sshd root permitrootlogin no: 'yes' became None", "package unattended-upgrades"),
        *("unit apt-daily-upgrade.timer", "unit file apt-daily-upgrade.timer"),
    ):
        assert part in seen, part
    booted.first_boot()
    host.run("userdel", "--remove", "planted", check=False)
    left = firstboot_state.differences(last, firstboot_state.read(host), touched=False)
    # Copies that the tools for accounts keep, and what installing a package again leaves.
    backups = tuple(f"file /etc/{base}-:" for base in ("passwd", "shadow", "group", "gshadow"))
    known = (*backups, "file /etc/subuid", "file /etc/subgid", "file /var/lib/dpkg/")
    assert [line for line in left if not line.startswith(known)] == []


def test_packages_came_over_https_and_nothing_knocked_at_port_80(booted: World) -> None:
    """The image's lists said http; the security groups let only 443 out."""
    assert any("/pool/main/n/nix/" in path for path in booted.mirror.asked)
    assert booted.mirror.refused == []
    assert booted.mirror.knocks == 0
    booted.host.run("curl", "--silent", "--max-time", "5", "http://mirror.example/", check=False)
    assert booted.mirror.knocks == 1
    booted.mirror.knocks = 0


# ---- closures


def test_a_signed_closure_is_accepted_with_what_it_needs(booted: World) -> None:
    """As the deploy user, through the real SSH server and the real daemon."""
    needed = build(booted, "needed", sign_with="signing")
    top = build(booted, "top", needed, sign_with="signing")
    assert not booted.has(top)
    done = booted.copy(top)
    assert done.returncode == 0, done.stderr
    assert booted.has(top)
    assert booted.has(needed)
    assert booted.host.path(top).read_text() == f"top {needed}\n"
    booted.host.run("nix-store", "--verify-path", top, needed)


@pytest.mark.parametrize("options", [(), ("--no-check-sigs",)])
@pytest.mark.parametrize("sign_with", ["", "impostor"])
def test_an_unsigned_one_and_another_key_of_that_name_are_refused(
    booted: World, sign_with: str, options: tuple[str, ...]
) -> None:
    """Whatever the client asks for."""
    path = build(booted, f"refused{sign_with}{len(options)}", sign_with=sign_with)
    done = booted.copy(path, *options)
    assert done.returncode != 0
    assert "lacks a signature by a trusted key" in done.stderr
    assert not booted.has(path)
    assert not booted.host.path(path).exists()


def test_a_signed_path_with_an_unsigned_need_is_refused(booted: World) -> None:
    """The whole closure counts."""
    needed = build(booted, "unsigned-need")
    top = build(booted, "signed-top", needed, sign_with="signing")
    assert booted.copy(top).returncode != 0
    assert not booted.has(top)
    booted.nix("store", "sign", "--key-file", "/root/signing", needed)
    assert booted.copy(top).returncode == 0


def test_a_flipped_bit_is_refused_by_the_host(booted: World) -> None:
    """Signed, then changed on the sender's disk; flipped back it is accepted."""
    path = build(booted, "flipped", sign_with="signing")
    flip_first_byte(booted, path)
    done = booted.copy(path)
    assert done.returncode != 0
    assert "hash mismatch" in done.stderr
    assert not booted.has(path)
    flip_first_byte(booted, path)
    assert booted.copy(path).returncode == 0


@pytest.mark.parametrize("where", ["nothing", "nar", "signature"])
def test_a_corrupted_cache_is_refused(booted: World, where: str) -> None:
    """The same from an archive of closures: one bit of the content, one letter of the signature."""
    path = build(booted, f"cached-{where}", sign_with="signing")
    cache = f"/root/cache-{where}"
    booted.nix("copy", "--to", f"file://{cache}?compression=none", path)
    if where == "nar":
        (nar,) = booted.outside.path(f"{cache}/nar").iterdir()
        content = nar.read_bytes()
        assert content.count(b"cached-nar\n") == 1
        nar.write_bytes(content.replace(b"cached-nar\n", b"cached-nas\n"))
    if where == "signature":
        (info,) = booted.outside.path(cache).glob("*.narinfo")
        text = info.read_text()
        at = text.index("Sig: kalshi-tape:") + 30
        info.write_text(text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :])
    done = booted.copy(path, "--from", f"file://{cache}")
    assert (done.returncode == 0) is (where == "nothing"), done.stderr
    assert booted.has(path) is (where == "nothing")


def test_a_path_named_by_its_content_needs_no_signature(booted: World) -> None:
    """As everywhere in Nix, and docs/aws.md says what follows: presence proves nothing."""
    booted.outside.write("/root/plain", f"of {booted.name}")
    path = booted.nix("store", "add-file", "/root/plain").stdout.strip()
    assert booted.copy(path).returncode == 0
    assert booted.has(path)


def test_the_host_builds_nothing_whoever_asks(booted: World) -> None:
    """What a host built itself needs no signature. A client may ask for jobs, so that is no proof;
    with the group of build users taken back the same request builds, which is the control."""
    host = booted.host

    def ask(name: str, *jobs: str) -> subprocess.CompletedProcess[str]:
        expression = (
            f'derivation {{ name = "{name}"; system = builtins.currentSystem; '
            'builder = "/bin/sh"; args = ["-c" "echo built > $out"]; }'
        )
        return host.run(
            *("runuser", "-u", "deploy", "--", "env", "HOME=/var/lib/deploy", "nix", "build"),
            *("--store", "unix:///nix/var/nix/daemon-socket/socket", "--option", "substitute"),
            *("false", "--impure", "--no-link", *jobs, "--expr", expression),
            check=False,
        )

    assert "Unable to start any build" in ask("own").stderr
    # The sandbox needs more than a namespace inside a namespace; without it the refusal is plain.
    host.run("sed", "-i", "s/^sandbox-fallback.*/sandbox = false/", "/etc/nix/nix.conf")
    host.run("systemctl", "restart", "nix-daemon.service")
    refused = ask("raised", "--max-jobs", "1")
    assert refused.returncode != 0
    assert "has no members" in refused.stderr
    host.run("sed", "-i", "s/^build-users.*/build-users-group = nixbld/", "/etc/nix/nix.conf")
    host.run("systemctl", "restart", "nix-daemon.service")
    assert ask("raised", "--max-jobs", "1").returncode == 0
    booted.first_boot()
    assert ask("again", "--max-jobs", "1").returncode != 0


def test_without_the_demand_for_signatures_an_unsigned_path_would_be_there(booted: World) -> None:
    """The control of all refusals: the setting decides, and the script puts it back."""
    path = build(booted, "unsigned-control")
    assert booted.copy(path).returncode != 0
    booted.host.run("sed", "-i", "s/^require-sigs.*/require-sigs = false/", "/etc/nix/nix.conf")
    booted.host.run("systemctl", "restart", "nix-daemon.service")
    assert booted.copy(path).returncode == 0
    booted.first_boot()
    assert booted.copy(build(booted, "unsigned-again")).returncode != 0


def test_a_daemon_that_was_restarted_too_often_comes_back(booted: World) -> None:
    """Systemd refuses the sixth start within ten seconds; `enable --quiet --now` kept it quiet."""
    for _ in range(6):
        last = booted.host.run("systemctl", "restart", "nix-daemon.service", check=False)
    assert last.returncode != 0, "the limit was not reached: the test shows nothing"
    booted.first_boot()
    assert booted.host.run("systemctl", "is-active", "nix-daemon.socket").stdout.strip() == "active"
    assert booted.copy(build(booted, "after-limit", sign_with="signing")).returncode == 0


# ---- who may enter


def test_only_the_owner_enters_and_only_with_the_key(booted: World) -> None:
    """Root and deploy have a password here and keys lie where keys are looked for; the server with
    open settings lets all of them in."""
    host = booted.host
    host.write("/etc/ssh/open_config", OPEN_SSHD)
    open_sshd = ("/usr/sbin/sshd", "-D", "-f", "/etc/ssh/open_config")
    host.run("systemd-run", "--quiet", "--unit=open-sshd", *open_sshd)
    assert until(lambda: booted.enters("admin", "admin", OPEN), 15)
    deploy_key = booted.deploy_key.with_suffix(".pub").read_text()
    for user in ("root", "admin", "deploy"):
        host.run("chpasswd", input=f"{user}:{PASSWORD}\n")
    host.write("/root/.ssh/authorized_keys", deploy_key, 0o600)
    host.run("install", "-d", "-m", "700", "-o", "deploy", "/var/lib/deploy/.ssh")
    admin_key = host.path("/home/admin/.ssh/authorized_keys").read_text()
    host.write("/var/lib/deploy/.ssh/authorized_keys", admin_key)
    for user, secret in (
        *(("root", "password"), ("root", "deploy"), ("admin", "password")),
        *(("deploy", "password"), ("deploy", "admin")),
    ):
        assert booted.enters(user, secret, OPEN), f"control: {user} by {secret}"
        refused = booted.ssh(user, "echo", "entered", secret=secret)
        assert "entered" not in refused.stdout, f"{user} by {secret}"
        assert "Permission denied" in refused.stderr
    assert booted.enters("admin", "admin")
    booted.first_boot()
    assert host.run("passwd", "-S", "deploy").stdout.split()[1] == "L"


def test_the_deploy_key_runs_the_daemon_and_nothing_else(booted: World) -> None:
    """No command, shell, terminal, file transfer, tunnel; the owner's key shows that each works."""
    tries: dict[str, tuple[tuple[str, ...], str, str]] = {
        "command": (("id",), "", "uid="),
        "shell": (("sh", "-c", "'echo uid='"), "-tt", "uid="),
        "tunnel": ((), "-W 127.0.0.1:22", "SSH-2.0"),
    }
    for what, (command, options, sign) in tries.items():
        allowed = booted.ssh("admin", *command, options=options)
        assert sign in allowed.stdout, f"control: {what}: {allowed.stderr}"
        refused = booted.ssh("deploy", *command, secret="deploy", options=options)
        assert sign not in refused.stdout, what
    sftp = (
        "sftp",
        "-q",
        "-b",
        "/dev/null",
        "-o",
        "StrictHostKeyChecking=no",
        "-o",
        "BatchMode=yes",
    )
    for user, code in (("admin", True), ("deploy", False)):
        done = booted.outside.run(
            *sftp, "-i", f"/root/{user}", f"{user}@{booted.address}", check=False
        )
        assert (done.returncode == 0) is code, f"{user}: {done.stderr}"


def test_the_deploy_user_has_no_rights_on_the_host(booted: World) -> None:
    """sudoers lists nothing for it, and it cannot make a path the one that runs."""
    host = booted.host
    top = build(booted, "a-release", sign_with="signing")
    assert booted.copy(top).returncode == 0

    def as_user(user: str, *command: str) -> subprocess.CompletedProcess[str]:
        home = f"HOME={'/var/lib/deploy' if user == 'deploy' else '/root'}"
        return host.run("runuser", "-u", user, "--", "env", home, *command, check=False)

    assert as_user("deploy", "sudo", "-n", "true").returncode != 0
    owner = as_user("admin", "sudo", "-n", "true")
    assert (owner.returncode, owner.stderr) == (0, "")  # nor a word about the host's name
    assert "not allowed" in host.run("sudo", "-l", "-U", "deploy", check=False).stdout
    assert "NOPASSWD" in host.run("sudo", "-l", "-U", "admin").stdout
    profile = "/nix/var/nix/profiles/kalshi-test"
    assert as_user("deploy", "nix-env", "-p", profile, "--set", top).returncode != 0
    assert not host.path(profile).is_symlink()
    assert as_user("root", "nix-env", "-p", profile, "--set", top).returncode == 0
    assert host.path(profile).is_symlink()
    for file in ("/etc/nix/nix.conf", "/etc/ssh/authorized_keys.d/deploy", "/nix/store"):
        assert as_user("deploy", "test", "-w", file).returncode != 0
        assert as_user("root", "test", "-w", file).returncode == 0


# ---- time, journal, port 80, upgrades


def test_time_comes_from_the_hypervisor_alone(booted: World) -> None:
    """Its address is the only source and is followed; with nobody there, nothing is."""

    def sources() -> list[str]:
        return booted.host.run("chronyc", "-n", "-c", "sources").stdout.splitlines()

    def followed() -> bool:
        return any(line.startswith(f"^,*,{TIME_ADDRESS},") for line in sources())

    assert until(followed, 60)
    assert [line.split(",")[2] for line in sources()] == [TIME_ADDRESS]
    booted.outside.run("systemctl", "stop", "chrony.service")
    booted.host.run("systemctl", "restart", "chrony.service")
    assert not until(followed, 6)
    booted.outside.run("systemctl", "start", "chrony.service")
    booted.host.run("systemctl", "restart", "chrony.service")
    assert until(followed, 60)
    shown = booted.host.run("chronyd", "-p").stdout.lower()
    assert "makestep 1.0 3" in shown
    # Of its smeared seconds: chrony.conf(5) forbids it to clients of such servers.
    assert "leapsec" not in shown


def test_the_journal_keeps_to_its_limit_and_loses_no_line(booted: World) -> None:
    """The limit as journald reckons it, before and after; a flood with and without a limit."""
    host = booted.host
    said = [
        line for line in host.run("journalctl", "--no-pager").stdout.splitlines() if "max" in line
    ]
    limits = [line.split(" max ")[1].split(",")[0] for line in said if "System Journal" in line]
    assert limits[0] != "2G"
    assert limits[-1] == "2G"

    def kept(unit: str, *options: str) -> int:
        flood = "for i in $(seq 15000); do echo line; done"
        host.run(
            "systemd-run", "--quiet", "--wait", f"--unit={unit}", *options, "bash", "-c", flood
        )
        host.run("journalctl", "--sync")
        return host.journal(f"{unit}.service").splitlines().count("line")

    limited = ("--property=LogRateLimitIntervalSec=30s", "--property=LogRateLimitBurst=1000")
    assert kept("flood-limited", *limited) < 15000
    assert kept("flood") == 15000


def test_nothing_listens_on_port_80(booted: World) -> None:
    """Nor answers from outside; a planted listener is seen both ways."""

    def seen() -> tuple[bool, bool]:
        lines = booted.host.run("ss", "-Hltun").stdout.splitlines()
        listens = any(line.split()[4].endswith(":80") for line in lines)
        asked = booted.outside.run(
            *("curl", "--silent", "--max-time", "5", f"http://{booted.address}/"), check=False
        )
        return listens, asked.returncode == 0

    assert seen() == (False, False)
    booted.host.run(
        *("systemd-run", "--quiet", "--unit=planted-web", "--working-directory=/etc/kalshi"),
        *("python3", "-m", "http.server", "80"),
    )
    assert until(lambda: seen() == (True, True), 15)
    booted.host.run("systemctl", "stop", "planted-web.service")
    assert seen() == (False, False)


def test_security_upgrades_come_by_themselves_and_capture_is_not_restarted(booted: World) -> None:
    """Debian's own timers' services, a security update and a point release that wait, needrestart
    installed. Its own default, and Debian's list of origins, are the controls."""
    host, upgrades = booted.host, firstboot_upgrades
    upgrades.offer(host, booted.mirror, booted.lab.folder / "packages")
    apt = ("env", "DEBIAN_FRONTEND=noninteractive", "apt-get")
    host.run(*apt, "update", "-q")
    host.run(*apt, "install", "-q", "-y", "needrestart", timeout_s=300)
    waiting = host.run(*apt, "--simulate", "upgrade").stdout
    for name in upgrades.ARCHIVES:
        assert f"Inst {name} [1]" in waiting
    ours = "/etc/apt/apt.conf.d/52-kalshi-upgrades"
    host.run("mv", ours, "/root/kept")
    default = host.run("unattended-upgrade", "--dry-run", "--verbose", timeout_s=300)
    host.run("mv", "/root/kept", ours)
    assert upgrades.POINT in default.stdout + default.stderr

    capture = upgrades.main_process(host)
    host.run("systemctl", "start", "apt-daily-upgrade.service", timeout_s=600)
    assert upgrades.version(host, upgrades.SECURITY) == "2"
    assert upgrades.version(host, upgrades.POINT) == "1"
    assert upgrades.main_process(host) == capture != "0"
    assert f"NEEDRESTART-SVC: {upgrades.CAPTURE}" in host.run("needrestart", "-b").stdout
    host.run("needrestart", "-r", "a", timeout_s=300)
    assert upgrades.main_process(host) not in (capture, "0")
    assert host.run("systemctl", "is-enabled", "apt-daily.timer", "apt-daily-upgrade.timer")
    assert not host.path("/run/reboot-required").exists()


def test_a_power_cut_in_the_first_run_is_mended_by_the_second(tree: Path) -> None:
    """cloud-init runs user data once; the marker says whether it came to its end. An orderly
    restart at the end: everything comes back by itself."""
    with world(tree, HOSTS["gatherer"], "gatherer") as made:
        running = subprocess.Popen(
            made.host.command("bash", "-s"),
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/root"},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert running.stdin is not None
        assert running.stdout is not None
        running.stdin.write(made.user_data)
        running.stdin.close()
        cut = any(line.startswith("Unpacking nix-bin") for line in running.stdout)
        made.host.power_cut()
        running.wait(60)
        running.stdout.close()
        assert cut
        made.host.boot()
        assert not made.host.path("/etc/kalshi/role").exists()
        assert made.host.run("dpkg", "--audit").stdout != ""
        made.first_boot()
        assert made.host.run("dpkg", "--audit").stdout == ""
        first = firstboot_state.read(made.host)
        made.first_boot()
        assert firstboot_state.differences(first, firstboot_state.read(made.host)) == []
        assert made.copy(build(made, "after-the-cut", sign_with="signing")).returncode == 0
        assert made.copy(build(made, "unsigned-after-the-cut")).returncode != 0
        made.host.power_off()
        made.host.boot()
        assert made.copy(build(made, "after-a-restart", sign_with="signing")).returncode == 0
        assert made.copy(build(made, "unsigned-after-a-restart")).returncode != 0
        for unit in firstboot_state.UNITS:
            assert made.host.show(unit, "ActiveState")["ActiveState"] == "active", unit
