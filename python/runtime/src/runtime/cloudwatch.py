"""`python -m runtime.cloudwatch`: a host's chosen metrics and its journal to CloudWatch.

Purpose: once a minute ask the host's service for its /status, work out the few metrics that
topology.toml names, and put them under the namespace that the host's role may write to. A metric
that cannot be known is not sent: the alarms count a missing value as bad.
What holds:
- Nothing else of the host notices when CloudWatch is away: data points wait on disk with their own
  times (BUFFER_DAYS, as long as CloudWatch takes old ones), log lines in the journal.
- A kill at any instant loses no minute that was measured (backlog); the chunk that was on its way
  may be there twice.
- The series are bounded: METRICS by host, no other dimension. So are the requests: one a round, and
  one for each DATA_EACH_PUT points of a backlog.
- Action used: PutMetricData.
Does not do: alarms (infrastructure), Prometheus (runtime.metrics), logs (runtime.journal).
"""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import aiohttp
import uvloop

from marketdata.errors import ConfigError
from runtime import logs
from runtime.backlog import Backlog
from runtime.clock import Clock
from runtime.config import CloudwatchSettings, load
from runtime.journal import JournalShipper
from runtime.supervise import Supervisor

try:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError
except ImportError:  # the extra `cloudwatch` is not in every closure
    boto3 = None

UNITS: Final[Mapping[str, str]] = {
    "FramesReceived": "Count",
    "SinkLagSeconds": "Seconds",
    "DiskFreePercent": "Percent",
    "WatermarkAgeSeconds": "Seconds",
    "RowsQuarantined": "Count",
}
"""Metric -> its unit, as topology.toml has them (a test compares)."""
METRICS: Final[Mapping[str, tuple[str, ...]]] = {
    "gatherer": ("FramesReceived", "SinkLagSeconds", "DiskFreePercent"),
    "deduplicator": ("WatermarkAgeSeconds", "RowsQuarantined"),
}
STATUS_TIMEOUT_S: Final = 5.0
BUFFER_DAYS: Final = 14
AGE_MAX_S: Final = BUFFER_DAYS * 86_400 - 3_600
"""CloudWatch takes two weeks; an hour of them is left for our clock and for the way."""
DATA_EACH_PUT: Final = 500  # CloudWatch takes 1,000
NO_PROGRESS_S: Final = 150.0
NS_PER_S: Final = 1_000_000_000
STATE_DIR: Final = "the disk of KT_STATE_DIR"
RUNBOOK: Final = "docs/runbook.md, CloudWatch is away"
CONTENT_FAULTS: Final = frozenset(
    {"InvalidParameterValue", "InvalidParameterCombination", "ValidationError"}
)

log = logs.get("cloudwatch")


@dataclass(frozen=True, slots=True)
class Reading:
    """What a host said at one moment. `status` is None when its service did not answer."""

    at_ns: int
    status: Mapping[str, Any] | None
    disk_free: int
    disk_total: int


def measured(role: str, now: Reading, before: Reading | None) -> dict[str, float]:
    """Metric -> value; what cannot be known is absent.

    Counts are those since `before`. A service that began again counts from 0, so then its whole
    count is new.
    """
    values: dict[str, float] = {}
    status = now.status or {}
    last = (before.status if before is not None else None) or {}
    if role == "gatherer":
        _since(values, "FramesReceived", status.get("frames"), last.get("frames"))
        if "lag_ms" in status:
            values["SinkLagSeconds"] = status["lag_ms"] / 1_000
        values["DiskFreePercent"] = round(100 * now.disk_free / now.disk_total, 3)
    else:
        _since(values, "RowsQuarantined", status.get("quarantined"), last.get("quarantined"))
        if status.get("closed_to_us"):
            age_us = now.at_ns // 1_000 - status["closed_to_us"]
            values["WatermarkAgeSeconds"] = max(0, age_us) / 1_000_000
    return values


def _since(values: dict[str, float], name: str, now: int | None, before: int | None) -> None:
    if now is not None and before is not None:
        values[name] = now - before if now >= before else now


class MetricPublisher:
    """Measures and puts; `client` is boto3's of CloudWatch."""

    def __init__(
        self,
        settings: CloudwatchSettings,
        client: Any,
        clock: Clock,
        progress: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._client = client
        self._clock = clock
        self._progress = progress
        self._before: Reading | None = None
        rounds = BUFFER_DAYS * 86_400 // settings.interval_s
        self._waiting = Backlog(settings.state_dir, rounds * len(METRICS[settings.role]))
        self.sent = 0
        self.refused = 0
        self.expired = 0
        self.problem = ""

    @property
    def waiting(self) -> int:
        """Data points not yet taken."""
        return len(self._waiting)

    async def run(self) -> None:
        """One round each interval, for ever."""
        async with aiohttp.ClientSession() as session:
            while True:
                began_s = asyncio.get_running_loop().time()
                await self.round(session)
                self._progress()
                took_s = asyncio.get_running_loop().time() - began_s
                await asyncio.sleep(max(1.0, self._settings.interval_s - took_s))

    async def round(self, session: aiohttp.ClientSession) -> None:
        """Measure once, then put everything that waits."""
        now = await self._read(session)
        points = [
            {
                "MetricName": name,
                "Dimensions": [{"Name": "Host", "Value": self._settings.host_name}],
                "Timestamp": now.at_ns // NS_PER_S,
                "Value": value,
                "Unit": UNITS[name],
            }
            for name, value in measured(self._settings.role, now, self._before).items()
        ]
        self._keep(lambda: self._waiting.add(points))
        if now.status is not None:
            self._before = now
        await asyncio.to_thread(self._put_all, now.at_ns // NS_PER_S)

    def _keep(self, change: Callable[[], None]) -> None:
        """A disk that refuses costs what a kill would lose then, and nothing else."""
        try:
            change()
        except OSError as error:
            log.warning("metrics are in memory only", error=str(error), do=f"free {STATE_DIR}")

    async def _read(self, session: aiohttp.ClientSession) -> Reading:
        status: Mapping[str, Any] | None = None
        limit = aiohttp.ClientTimeout(total=STATUS_TIMEOUT_S)
        try:
            async with session.get(f"{self._settings.service_url}/status", timeout=limit) as answer:
                status = await answer.json() if answer.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            log.warning("no status", url=self._settings.service_url, error=str(error))
        disk = shutil.disk_usage(self._settings.disk)
        return Reading(self._clock.wall_ns(), status, disk.free, disk.total)

    def _put_all(self, now_s: int) -> None:
        """Oldest first; what was not taken stays."""
        while chunk := self._waiting.first(DATA_EACH_PUT):
            old = sum(now_s - point["Timestamp"] > AGE_MAX_S for point in chunk)
            if old:
                self.expired += old
                log.error("metrics expired", data=old, waited_s=AGE_MAX_S, do=RUNBOOK)
                self._done(old)
                continue
            try:
                self._client.put_metric_data(
                    Namespace=self._settings.namespace, MetricData=[_sent(p) for p in chunk]
                )
            except (ClientError, BotoCoreError) as error:
                is_content = (
                    isinstance(error, ClientError)
                    and error.response["Error"]["Code"] in CONTENT_FAULTS
                )
                if not is_content:
                    if not self.problem:
                        log.warning(
                            "metrics wait", waiting=self.waiting, error=str(error), do=RUNBOOK
                        )
                    self.problem = str(error)
                    return
                self.refused += len(chunk)
                log.exception("metrics refused", data=len(chunk), do=RUNBOOK)
            else:
                self.sent += len(chunk)
                self.problem = ""
            self._done(len(chunk))

    def _done(self, n: int) -> None:
        self._keep(lambda: self._waiting.taken(n))


def _sent(point: Mapping[str, Any]) -> dict[str, Any]:
    """As boto3 wants it."""
    return {**point, "Timestamp": datetime.fromtimestamp(point["Timestamp"], UTC)}


async def serve(settings: CloudwatchSettings) -> int:
    """Run until asked to stop; the exit code."""
    supervisor = Supervisor("cloudwatch")
    retries = Config(retries={"mode": "standard", "total_max_attempts": 2}, connect_timeout=5)
    publisher = MetricPublisher(
        settings,
        boto3.client("cloudwatch", config=retries),
        Clock(settings.clock_offset_ms),
        lambda: supervisor.progress("metrics"),
    )
    supervisor.watch("metrics", NO_PROGRESS_S + settings.interval_s)
    supervisor.add("metrics", publisher.run)
    if settings.log_prefix:
        shipper = JournalShipper(
            boto3.client("logs", config=retries),
            settings.log_prefix + settings.role,
            settings.host_name,
            settings.log_units,
            settings.state_dir,
            lambda: supervisor.progress("logs"),
            errors=(ClientError, BotoCoreError),
        )
        supervisor.watch("logs", NO_PROGRESS_S)
        supervisor.add("logs", shipper.run)
    supervisor.ready("publishing")
    return await supervisor.run()


def main() -> int:
    """Entry point; the exit code."""
    if boto3 is None:
        print("boto3 is missing: install kalshi-tape-runtime[cloudwatch]", file=sys.stderr)
        return 2
    try:
        settings = load(CloudwatchSettings)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    logs.setup("cloudwatch", settings.log_level)
    log.info("starting", **settings.described())
    return uvloop.run(serve(settings))


if __name__ == "__main__":
    sys.exit(main())
