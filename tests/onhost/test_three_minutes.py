"""Three minutes at 2,000 frames a second, with everything failing, and the proof afterwards.

Five hosts run the closures' own units. Each fault must leave a mark of its own (a fault that did
not bite proves nothing); the tape is compared with the exchange's truth by the code of `tape
demo`; and the same comparison must fail when one row is taken out of the lake.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tape import proof, prove
from tests import lake_tamper
from tests.onhost.closures import closures
from tests.onhost.hosts import DEDUPLICATOR, GATHERERS, Cluster
from tests.onhost.lab import Lab
from tests.onhost.machine import Machine
from tests.onhost.network import EXCHANGE, PRODUCTION, Network
from tests.onhost.outside import Outside
from tests.onhost.tape_checks import audits_failed, collected

pytestmark = [pytest.mark.onhost, pytest.mark.timeout(3000)]

MARKETS = 200
SECONDS = int(os.environ.get("KT_ONHOST_SECONDS", "180"))
EVENTS_PER_S = 1850  # with trades and tickers about 2,000 frames a second for each gatherer
FRAMES_PER_S_MIN = 1900
FINISH_S = 900.0
G1, G2, G3 = GATHERERS


@dataclass
class Run:
    """A running cluster, and what was seen on the way."""

    cluster: Cluster
    seen: dict[str, Any] = field(default_factory=dict)

    def host(self, name: str) -> Machine:
        return self.cluster.machines[name]

    def answer(self, name: str, path: str) -> dict[str, Any]:
        """A service's own health port, asked on its host; empty while it does not answer."""
        asked = self.host(name).run(
            "curl", "--silent", "--max-time", "5", f"http://127.0.0.1:8080{path}", check=False
        )
        return dict(json.loads(asked.stdout)) if asked.stdout else {}

    # ---- the faults, each with the mark that it left

    def partition(self) -> None:
        self.cluster.network.cut([(G1, DEDUPLICATOR)])

    def partition_ends(self) -> None:
        (first,) = [
            g for g in self.answer(DEDUPLICATOR, "/status")["gatherers"] if g["gatherer"] == 0
        ]
        self.seen["lag of the partitioned gatherer, ms"] = first["lag_ms"]
        self.cluster.network.heal()

    def kill_timescaledb(self) -> None:
        """Its server's main process, by SIGKILL; systemd starts it again."""
        self.host(G2).run(
            *("systemctl", "kill", "--signal=KILL", "--kill-whom=main", "kalshi-timescaledb")
        )

    def stall_exchange(self) -> None:
        self.seen["restarts of TimescaleDB"] = int(
            self.host(G2).show("kalshi-timescaledb", "NRestarts")["NRestarts"]
        )
        self.cluster.network.silence(G3, EXCHANGE)

    def stall_ends(self) -> None:
        self.seen["gatherer 3 says stall"] = '"stall"' in self.host(G3).journal("kalshi-gatherer")
        self.cluster.network.heal()

    def fill_disk(self) -> None:
        self.host(G1).run(
            "sh", "-c",
            "fallocate -l $(df --output=avail -B1 /var | tail -1) /var/filler; "
            "cat /dev/zero > /var/filler2 2>/dev/null; sync; df --output=avail -B1 /var | tail -1",
        )  # fmt: skip

    def free_disk(self) -> None:
        left = self.host(G1).run("df", "--output=avail", "-B1", "/var").stdout.split()[-1]
        self.seen["bytes free on the full disk"] = int(left)
        self.seen["gatherer 1 on its full disk"] = self.answer(G1, "/health").get("reasons")
        self.host(G1).run("rm", "/var/filler", "/var/filler2")

    def stop_production(self) -> None:
        self.host(PRODUCTION).run("systemctl", "stop", "postgresql@17-main")

    def start_production(self) -> None:
        said = self.answer(DEDUPLICATOR, "/health").get("components", {})
        self.seen["deduplicator on production"] = said.get("production", {}).get("state")
        self.host(PRODUCTION).run("systemctl", "start", "postgresql@17-main")

    def cut_power(self) -> None:
        host = self.host(G2)
        before = host.run("cat", "/proc/sys/kernel/random/boot_id", "/etc/machine-id").stdout
        host.power_cut()
        host.power_on()
        self.seen["host of gatherer 2 kept its disk"] = before.split()[1] == (
            host.path("/etc/machine-id").read_text().strip()
        )

    def faults(self) -> list[tuple[float, Callable[[], None]]]:
        """What happens when, in shares of the run."""
        return [
            (0.10, self.partition),
            (0.20, self.kill_timescaledb),
            (0.33, self.partition_ends),
            (0.36, self.stall_exchange),
            (0.53, self.fill_disk),
            (0.64, self.stall_ends),
            (0.65, self.free_disk),
            (0.70, self.stop_production),
            (0.80, self.start_production),
            (0.85, self.cut_power),
        ]


@pytest.fixture(scope="module")
def run(lab: Lab, tree: Path) -> Iterator[Run]:
    network = Network(lab, tree)
    network.protect()
    outside = Outside(network, lab.folder / "outside")
    cluster = Cluster(lab, tree, closures(), network, outside)
    try:
        outside.start_store()
        outside.start_exchange(
            *("--synthetic", str(MARKETS), "--seconds", str(SECONDS), "--expect-clients", "3"),
            *("--events-per-s", str(EVENTS_PER_S), "--start-timeout", "300", "--seed", "11"),
        )
        cluster.production()
        for name in GATHERERS:
            cluster.gatherer(name)
        deduplicator = cluster.deduplicator("KT_FINAL=true")
        # Told to finish, it ends when the gatherers have; a clean end is not to be restarted then.
        deduplicator.write(
            "/etc/systemd/system/kalshi-deduplicator.service.d/onhost.conf",
            "[Service]\nRestart=on-failure\n",
        )
        deduplicator.run("systemctl", "daemon-reload")
        yield Run(cluster)
    finally:
        outside.close()
        cluster.close()


def test_the_tape_is_the_exchanges_truth_after_everything_failed(run: Run) -> None:
    cluster, outside = run.cluster, run.cluster.outside
    databases = ("kalshi-timescaledb", "kalshi-postgres")
    for name in GATHERERS:  # the play begins with the gatherers: the first fault needs its victim
        run.host(name).run("systemctl", "start", *databases, timeout_s=600)
    for name in (*GATHERERS, DEDUPLICATOR):
        run.host(name).run("systemctl", "start", "--no-block", "kalshi.target")
    _play(run)
    print("\n" + json.dumps(run.seen, indent=1))
    _check_that_the_faults_bit(run)
    for name in GATHERERS:
        cluster.wait_active(run.host(name), "kalshi-gatherer", 300)
        cluster.wait_active(run.host(name), "kalshi-timescaledb", 300)
    _finish(run)
    gatherers = {name: run.host(name) for name in GATHERERS}
    verdict, frames = prove.prove(collected(gatherers, outside))
    failed = sum(audits_failed(host) for host in gatherers.values())
    print(json.dumps({**asdict(verdict), "frames": frames, "audits_failed": failed}, indent=1))
    assert proof.exit_ok(verdict, audits_failed=failed), verdict.examples
    assert verdict.events_merged > EVENTS_PER_S * SECONDS * 0.8
    assert verdict.books_checked > 0
    assert run.seen["frames/s"] >= FRAMES_PER_S_MIN or SECONDS < 180
    _check_that_the_proof_can_fail(run)


def _play(run: Run) -> None:
    """Until the exchange has sent everything, with each fault at its time."""
    outside = run.cluster.outside
    run.host(G1).wait(lambda: outside.exchange_status().get("started", False), 300, "the play")
    begun = time.monotonic()
    for share, fault in run.faults():
        while time.monotonic() - begun < share * SECONDS:
            time.sleep(0.1)
        fault()
        print(f"{time.monotonic() - begun:6.1f} s {fault.__name__}", flush=True)
    run.host(G1).wait(
        lambda: outside.exchange_status().get("done", False), SECONDS * 3, "the end of the play"
    )
    seconds = time.monotonic() - begun
    status = outside.exchange_status()
    run.seen["seconds"] = round(seconds, 1)
    # What one gatherer that was always there would have been sent.
    run.seen["frames/s"] = round(
        (status["events"] + status["trades"] + status["tickers"]) / seconds
    )
    run.seen["frames sent"] = status["frames_sent"]


def _check_that_the_faults_bit(run: Run) -> None:
    seen = run.seen
    assert seen["lag of the partitioned gatherer, ms"] > 1000 * SECONDS * 0.2
    assert seen["restarts of TimescaleDB"] >= 1
    assert seen["gatherer 3 says stall"]
    assert seen["bytes free on the full disk"] < 1 << 20
    assert "No space left" in str(seen["gatherer 1 on its full disk"])
    assert seen["deduplicator on production"] == "failing"
    assert seen["host of gatherer 2 kept its disk"]


def _finish(run: Run) -> None:
    """Stop the gatherers, which commit what they have; wait for the deduplicator's last word."""
    for name in GATHERERS:
        run.host(name).run("systemctl", "stop", "kalshi-gatherer", timeout_s=300)
    deduplicator = run.host(DEDUPLICATOR)

    def has_ended() -> bool:
        shown = deduplicator.show("kalshi-deduplicator", "ActiveState", "Result")
        return (shown["ActiveState"], shown["Result"]) == ("inactive", "success")

    deduplicator.wait(has_ended, FINISH_S, "the deduplicator to finish the tape")
    run.cluster.outside.stop_exchange()


def _check_that_the_proof_can_fail(run: Run) -> None:
    """The control: one row less, by somebody who makes every object and version anew for it."""
    folder = run.cluster.outside.folder
    control = folder / "control"
    shutil.copytree(folder / "lake", control / "lake")
    for part in ("truth", "g1", "g2", "g3"):
        (control / part).symlink_to(folder / part)
    key = lake_tamper.keys_of(control / "lake", "orderbook_deltas")[0]
    lake_tamper.rewrite(control / "lake", key, lambda table: table.slice(1), 4)
    verdict, _ = prove.prove(control)
    print(f"with one row less: {verdict.missing} missing")
    assert verdict.missing > 0
    assert not proof.exit_ok(verdict, audits_failed=0)
