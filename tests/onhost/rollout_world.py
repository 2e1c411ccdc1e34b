"""A recording fleet that is rolled over: hosts, exchange, deploy machine, sampler, and the end.

The exchange plays by the clock of this machine, for whoever is there: a deploy compares the tape's
end with the present. Windows of its time are noted while something is done to the fleet, and asked
of the finished tape afterwards.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from tape import proof, prove
from tests.onhost import tape_checks
from tests.onhost.deploy_world import HOSTS, SERVICE, Deployer, Ended, PreparedHosts, profile
from tests.onhost.hosts import DEDUPLICATOR, GATHERERS
from tests.onhost.lab import Lab
from tests.onhost.machine import Machine
from tests.onhost.network import ADMIN, Network
from tests.onhost.outside import Outside
from tests.onhost.revisions import releases
from tests.onhost.sampler import WINDOW_S, Sampler

MARKETS: Final = 200
EVENTS_PER_S: Final = os.environ.get("KT_ONHOST_EVENTS_PER_S", "1850")  # about 2,000 frames/s
# Longer than anybody waits; the exchange is stopped. Markets are listed and closed from a tenth on.
PLAY_S: Final = int(os.environ.get("KT_ONHOST_PLAY_S", str(3 * 3600)))
FIRST: Final = "a"
STEADY_S: Final = 120.0
FINISH_S: Final = 1800.0
# How long hosts are watched in a rollout; "" takes the command's own (10 s, the canary 30 s).
SOAK: Final = os.environ.get("KT_ONHOST_SOAK_S", "")


@dataclass(frozen=True)
class Window:
    """A part of the play, in the exchange's microseconds and the sampler's seconds."""

    from_us: int
    to_us: int
    few: int  # samples with fewer than two gatherers
    samples: dict[int, int]


@dataclass
class Fleet:
    """Everything; `stands`: the release that every host runs."""

    hosts: PreparedHosts
    deploy: Deployer
    sampler: Sampler
    stands: str = FIRST
    windows: dict[str, Window] = field(default_factory=dict)

    @property
    def outside(self) -> Outside:
        """The exchange and the store."""
        return self.hosts.outside

    def host(self, name: str) -> Machine:
        """A host by name."""
        return self.hosts.machines[name]

    @property
    def gatherers(self) -> dict[str, Machine]:
        """The gatherer hosts."""
        return {name: self.host(name) for name in GATHERERS}

    def exchange_us(self) -> int:
        """The exchange's clock."""
        return int(self.outside.exchange_status()["virtual_us"])

    @contextmanager
    def window(self, name: str) -> Iterator[None]:
        """Note what the sampler sees while something is done."""
        from_us, since_s = self.exchange_us(), self.sampler.now_s
        try:
            yield
        finally:
            time.sleep(2 * WINDOW_S)
            few, counts = self.sampler.few(since_s=since_s), self.sampler.summary(since_s)
            self.windows[name] = Window(from_us, self.exchange_us(), len(few), counts)
            print(f"{name}: samples by gatherers that record {counts}", flush=True)
            for sample in few[:20]:
                print(f"  {sample.at_s:.1f} s: {', '.join(sample.recording) or 'none'}", flush=True)

    def roll(self, release: str, *flags: str | Path, soak: str = SOAK) -> Ended:
        """A rollout, told of on standard output."""
        ended = self.deploy.rollout(release, *flags, *_watched(soak))
        print(f"rollout of {release}: exit {ended.code}, {ended.seconds:.1f} s", flush=True)
        return ended

    def seconds_by_host(self) -> dict[str, float]:
        """How long each host took in the newest rollout, by its journal."""
        seconds: dict[str, float] = {}
        for told in self.journal():
            if told.get("event") == "end" and told.get("host"):
                name = told["host"]
                seconds[name] = round(seconds.get(name, 0.0) + told["seconds"], 1)
        return seconds

    def journals(self) -> list[Path]:
        """The journals of all rollouts, the newest last."""
        return sorted((self.deploy.folder / "state" / "journals").glob("*.jsonl"))

    def journal(self) -> list[dict[str, Any]]:
        """The newest journal, line by line; one that is being written may end anywhere."""
        found = self.journals()
        told = []
        for line in found[-1].read_text().splitlines() if found else ():
            try:
                told.append(json.loads(line))
            except ValueError:
                continue
        return told

    def running(self, name: str) -> str:
        """The store path that a host's service runs from, by its process."""
        host, service = self.host(name), SERVICE[name]
        pid = host.show(f"kalshi-{service}", "MainPID")["MainPID"]
        said = host.run("cat", f"/proc/{pid}/cmdline", check=False).stdout
        return "/".join(said.split("/")[:4]) if said.startswith("/nix/store/") else ""

    def where(self) -> dict[str, tuple[str, str]]:
        """(profile, running) of each host's service."""
        return {n: (profile(self.host(n), SERVICE[n]), self.running(n)) for n in HOSTS}

    def check_stands(self, release: str) -> None:
        """Every host has the release and runs it, and all three gatherers record."""
        paths = self.hosts.releases.paths[release]
        wanted = {n: (paths[SERVICE[n]],) * 2 for n in HOSTS}
        assert self.where() == wanted
        self.wait_for_all()
        self.stands = release

    def wait_for_all(self) -> None:
        """Until three gatherers record."""

        def is_so() -> bool:
            samples = self.sampler.samples
            return bool(samples) and len(samples[-1].recording) == len(GATHERERS)

        self.host(GATHERERS[0]).wait(is_so, STEADY_S, "three gatherers to record")

    def merge_says(self, page: str) -> str:
        """What the deduplicator answers, as text; empty where nobody does."""
        asked = ("curl", "--silent", "--max-time", "5", f"http://127.0.0.1:8080/{page}")
        return self.host(DEDUPLICATOR).run(*asked, check=False).stdout

    def wait_for_merge(self, word: str, within_s: float = STEADY_S) -> None:
        """Until the deduplicator's health says a word."""
        self.host(DEDUPLICATOR).wait(
            lambda: word in self.merge_says("health"), within_s, f"the deduplicator to say {word!r}"
        )

    def wait_for_tape(self, us: int) -> None:
        """Until the tape is closed up to a moment of the exchange."""

        def is_so() -> bool:
            said = self.merge_says("status")
            return bool(said) and json.loads(said).get("closed_to_us", 0) >= us

        self.host(DEDUPLICATOR).wait(is_so, FINISH_S, f"the tape to reach {us}")

    def kill_deploy_machine(self) -> None:
        """Every process in the admin's network, at once: what was said is said, no more is."""
        space = self.hosts.network.namespace(ADMIN)
        asked = subprocess.run(
            ["ip", "netns", "pids", space], capture_output=True, text=True, check=False
        )
        for pid in asked.stdout.split():
            subprocess.run(["kill", "-KILL", pid], capture_output=True, check=False)

    # ---- the end

    def finish(self) -> Path:
        """Stop the gatherers, let the deduplicator finish the tape; the folder of everything."""
        self.sampler.stop()
        for name in GATHERERS:
            self.host(name).run("systemctl", "stop", "kalshi-gatherer", timeout_s=300)
        deduplicator = self.host(DEDUPLICATOR)
        with deduplicator.path("/etc/kalshi/deduplicator.env").open("a") as settings:
            settings.write("KT_FINAL=true\n")
        deduplicator.write(
            "/etc/systemd/system/kalshi-deduplicator.service.d/onhost.conf",
            "[Service]\nRestart=on-failure\n",
        )
        deduplicator.run("systemctl", "daemon-reload")
        deduplicator.run("systemctl", "restart", "kalshi-deduplicator", timeout_s=300)

        def has_ended() -> bool:
            shown = deduplicator.show("kalshi-deduplicator", "ActiveState", "Result")
            return (shown["ActiveState"], shown["Result"]) == ("inactive", "success")

        deduplicator.wait(has_ended, FINISH_S, "the deduplicator to finish the tape")
        self.outside.stop_exchange()
        return tape_checks.collected(self.gatherers, self.outside)

    def prove(self, folder: Path) -> None:
        """The proof of `tape demo`, whatever was done to the fleet."""
        verdict, frames = prove.prove(folder)
        failed = sum(tape_checks.audits_failed(host) for host in self.gatherers.values())
        print(json.dumps({**asdict(verdict), "frames": frames, "audits_failed": failed}, indent=1))
        assert proof.exit_ok(verdict, audits_failed=failed), verdict.examples
        assert verdict.books_checked > 0

    def proven_windows(self) -> dict[str, tape_checks.Looked]:
        """Finish the tape, prove it, and look at each window of it; all of them are told."""
        folder = self.finish()
        self.prove(folder)
        windows = {name: (window.from_us, window.to_us) for name, window in self.windows.items()}
        looked = tape_checks.look(folder, windows)
        for name, window in self.windows.items():
            seen = {"few": window.few, "samples": window.samples}
            print(json.dumps({name: looked[name].told() | seen}))
        return looked


def _watched(soak: str) -> list[str]:
    return ["--soak-s", soak, "--canary-soak-s", soak] if soak else []


@contextmanager
def fleet(lab: Lab, tree: Path) -> Iterator[Fleet]:
    """Prepared hosts, an exchange that plays, and the first rollout, which installs everything."""
    made = releases(lab.folder / "releases")
    network = Network(lab, tree)
    network.protect()
    outside = Outside(network, lab.folder / "outside")
    hosts = PreparedHosts(lab, tree, made, network, outside)
    try:
        outside.start_store()
        hosts.production()
        for name in GATHERERS:
            hosts.gatherer(name)
        hosts.deduplicator()
        deploy = Deployer.prepare(hosts, lab.folder / "deploy")
        outside.start_exchange(
            *("--synthetic", str(MARKETS), "--seconds", str(PLAY_S), "--expect-clients", "0"),
            *("--events-per-s", EVENTS_PER_S, "--start", str(int(time.time())), "--seed", "11"),
        )
        found = Fleet(hosts, deploy, Sampler([hosts.machines[g] for g in GATHERERS]))
        ended = found.roll(FIRST)
        assert ended.code == 0, ended.said
        print(json.dumps({"seconds by host": found.seconds_by_host()}))
        found.sampler.start()
        found.check_stands(FIRST)
        yield found
    finally:
        outside.close()
        hosts.close()
