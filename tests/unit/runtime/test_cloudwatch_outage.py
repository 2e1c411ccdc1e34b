"""An hour without CloudWatch: the host does not notice, and everything arrives afterwards.

Real HTTP to moto's server, which is started late; the process is the service's own. The hour of the
first test passes on an injected clock.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import boto3
import psutil
import pytest
from botocore.config import Config
from moto.server import ThreadedMotoServer

from runtime.backlog import FILE, FILE_SHARE_MAX, POINT_BYTES_MAX, Backlog
from runtime.clock import Clock
from runtime.cloudwatch import (
    AGE_MAX_S,
    BUFFER_DAYS,
    DATA_EACH_PUT,
    METRICS,
    MetricPublisher,
    Reading,
    measured,
)
from runtime.config import CloudwatchSettings, load
from runtime.journal import (
    BATCH_BYTES_MAX,
    BURST_BYTES,
    BYTES_PER_S,
    EVENT_BYTES,
    EVENTS_MAX,
    SPAN_MS_MAX,
    Allowance,
    n_left_out,
)
from tests.unit.runtime.cloud_rig import Host, free_port, host

ROOT = Path(__file__).parents[3]
SPECIFICATION = ("logs:CreateLogStream", "logs:PutLogEvents", "cloudwatch:PutMetricData")
MINUTE_NS = 60_000_000_000
HOUR_OF_ROUNDS = 60
PATIENCE_S = 60.0


class Hands(Clock):
    """A clock that a test moves."""

    __slots__ = ("now_ns",)

    def __init__(self) -> None:
        super().__init__(0)
        self.now_ns = time.time_ns() // MINUTE_NS * MINUTE_NS - 3 * HOUR_OF_ROUNDS * MINUTE_NS

    def wall_ns(self) -> int:
        return self.now_ns


@pytest.fixture(autouse=True)
def account(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def begin() -> Iterator[Callable[[int], None]]:
    """Starts CloudWatch on a port, from then on."""
    servers: list[ThreadedMotoServer] = []

    def at(port: int) -> None:
        servers.append(ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False))
        servers[-1].start()
        _forget(port)
        client("logs", port).create_log_group(logGroupName="/kalshi/gatherer")

    yield at
    for server in servers:
        server.stop()


def _url(port: int) -> str:
    return f"http://127.0.0.1:{port}"


def _forget(port: int) -> None:
    """moto's servers of one process share what they hold."""
    with urllib.request.urlopen(f"{_url(port)}/moto-api/reset", data=b"") as answer:
        assert answer.status == 200


def client(service: str, port: int) -> Any:
    once = Config(retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=10)
    return boto3.client(service, endpoint_url=_url(port), config=once)


def series(port: int, name: str, stat: str = "Sum") -> dict[datetime, float]:
    """What CloudWatch holds of a metric, by second."""
    found = client("cloudwatch", port).get_metric_data(
        MetricDataQueries=[
            {
                "Id": "m",
                "MetricStat": {
                    "Metric": {
                        "Namespace": "Kalshi",
                        "MetricName": name,
                        "Dimensions": [{"Name": "Host", "Value": "gatherer-1"}],
                    },
                    "Period": 1,
                    "Stat": stat,
                },
            }
        ],
        StartTime=datetime.now(UTC) - timedelta(hours=4),
        EndTime=datetime.now(UTC) + timedelta(hours=1),
    )["MetricDataResults"][0]
    return dict(sorted(zip(found["Timestamps"], found["Values"], strict=True)))


async def test_an_hour_without_it_costs_a_bounded_file_and_arrives_whole(
    tmp_path: Path, port: int, begin: Callable[[int], None]
) -> None:
    """Sixty rounds, a minute apart, nobody listens; then the backlog has its own minutes."""
    clock = Hands()
    async with host(tmp_path) as made, aiohttp.ClientSession() as http:
        settings = load(
            CloudwatchSettings,
            {
                "KT_HOST_NAME": "gatherer-1",
                "KT_SERVICE_URL": f"http://127.0.0.1:{made.service_port}",
                "KT_STATE_DIR": str(made.state),
            },
        )
        progress: list[int] = []
        publisher = MetricPublisher(
            settings, client("cloudwatch", port), clock, lambda: progress.append(1)
        )
        held = psutil.Process().memory_info().rss
        minutes = []
        for _ in range(HOUR_OF_ROUNDS):
            clock.now_ns += MINUTE_NS
            minutes.append(clock.now_ns // 1_000_000_000)
            await publisher.round(http)
        grown = psutil.Process().memory_info().rss - held
        assert made.asked == HOUR_OF_ROUNDS, "the service is asked once a round and no more"
        assert publisher.waiting == 3 * HOUR_OF_ROUNDS - 1, "the first count has nothing before it"
        size = (made.state / FILE).stat().st_size
        assert size <= publisher.waiting * POINT_BYTES_MAX
        assert grown < 64 << 20, grown
        begin(port)
        clock.now_ns += MINUTE_NS
        await publisher.round(http)
    assert (publisher.waiting, publisher.problem, publisher.expired) == (0, "", 0)
    assert (made.state / FILE).stat().st_size == 0
    lags = series(port, "SinkLagSeconds")
    assert [int(at.timestamp()) for at in lags] == [*minutes, minutes[-1] + 60]
    assert set(lags.values()) == {0.25}
    frames = series(port, "FramesReceived")
    assert list(frames.values()) == [1.0] * HOUR_OF_ROUNDS, "each minute once"


def test_what_waits_is_bounded_for_two_weeks(tmp_path: Path) -> None:
    """The named limits as bytes: under 80 MB of disk and as many points as two weeks have."""
    points = BUFFER_DAYS * 24 * 60 * max(map(len, METRICS.values()))
    assert points == 60_480
    assert (FILE_SHARE_MAX * points + points) * POINT_BYTES_MAX < 80 << 20
    line = json.dumps({
        "MetricName": max((n for names in METRICS.values() for n in names), key=len),
        "Dimensions": [{"Name": "Host", "Value": "h" * 64}],
        "Timestamp": 10**10, "Value": 1.2345678901234567e-300, "Unit": "Seconds",
    })  # fmt: skip
    assert len(line) < POINT_BYTES_MAX


async def test_what_cloudwatch_would_refuse_for_its_age_is_left_out_and_told(
    tmp_path: Path, port: int, begin: Callable[[int], None]
) -> None:
    """One point that is too old would have the other 499 of its request refused."""
    begin(port)
    clock = Hands()
    settings = load(
        CloudwatchSettings, {"KT_HOST_NAME": "gatherer-1", "KT_STATE_DIR": str(tmp_path)}
    )
    reading = Reading(clock.now_ns, {"frames": 1, "lag_ms": 0}, 1, 2)
    assert set(measured("gatherer", reading, None)) == {"SinkLagSeconds", "DiskFreePercent"}
    waiting = Backlog(tmp_path, 100)
    for late_s in (AGE_MAX_S + 600, AGE_MAX_S + 1, 60):
        waiting.add([_point("DiskFreePercent", clock.now_ns // 10**9 - late_s)])
    publisher = MetricPublisher(settings, client("cloudwatch", port), clock, lambda: None)
    async with aiohttp.ClientSession() as http:
        await publisher.round(http)
    assert (publisher.expired, publisher.sent, publisher.waiting) == (2, 2, 0)
    assert len(series(port, "DiskFreePercent")) == 2


def _point(name: str, at_s: int) -> dict[str, Any]:
    return {
        "MetricName": name, "Dimensions": [{"Name": "Host", "Value": "gatherer-1"}],
        "Timestamp": at_s, "Value": 1.0, "Unit": "Percent",
    }  # fmt: skip


async def _until(made: Host, holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, f"{what}\n{made.log()}"
        assert made.process is None or made.process.returncode is None, made.log()
        await asyncio.sleep(0.1)


def _events(port: int) -> list[dict[str, Any]]:
    found = client("logs", port).get_log_events(
        logGroupName="/kalshi/gatherer", logStreamName="gatherer-1", startFromHead=True,
        limit=10_000,
    )  # fmt: skip
    return list(found["events"])


def _waiting(made: Host) -> list[int]:
    """Times of the points that wait, by a reader of its own."""
    file = made.state / FILE
    lines = file.read_text().splitlines() if file.exists() else []
    return [json.loads(line)["Timestamp"] for line in lines]


async def test_kill_9_in_an_outage_loses_no_minute_and_no_line(
    tmp_path: Path, begin: Callable[[int], None]
) -> None:
    """Three lives, two kills while CloudWatch is away; lines are written while nobody reads."""
    base_us = time.time_ns() // 1_000
    async with host(tmp_path) as made:
        measured_at: set[int] = set()
        for life in range(2):
            for n in range(40):
                made.logged(base_us + 1_000 * (100 * life + n), f"life {life} line {n}")
            await made.start()
            had = len(_waiting(made))
            await _until(made, lambda h=had: len(_waiting(made)) >= h + 8, "nothing waits")  # type: ignore[misc]
            await made.kill()
            measured_at |= set(_waiting(made))
        assert (made.state / FILE).stat().st_size > 0
        begin(made.cloud_port)
        await made.start()
        await _until(made, lambda: not _waiting(made) and _is_there(made), "no backlog came")
        await made.kill()
        found = {int(at.timestamp()) for at in series(made.cloud_port, "SinkLagSeconds")}
        assert measured_at <= found, sorted(measured_at - found)
        assert len(measured_at) >= 4
        texts = [event["message"] for event in _events(made.cloud_port)]
        assert texts == [f"life {life} line {n}" for life in range(2) for n in range(40)]
        counts = series(made.cloud_port, "SinkLagSeconds", "SampleCount").values()
        assert set(counts) == {1.0}, "a kill between two requests repeats none"
        # Nothing else noticed: the service was asked once a second, and few lines told of it.
        told = [row for row in made.log_lines() if row["level"] in ("warning", "error")]
        assert len(told) <= 12, told
        assert all("runbook" in row.get("do", "") for row in told if row["event"] == "metrics wait")


def _is_there(made: Host) -> bool:
    try:
        return len(_events(made.cloud_port)) >= 80
    except made_errors():
        return False


def made_errors() -> tuple[type[Exception], ...]:
    from botocore.exceptions import BotoCoreError, ClientError

    return (BotoCoreError, ClientError)


def test_the_actions_are_the_specifications_and_no_others(tmp_path: Path) -> None:
    """Recorded from the calls that botocore makes, not read from the source."""
    called: set[str] = set()

    def note(model: Any, **_more: Any) -> None:
        service = {"monitoring": "cloudwatch"}.get(
            model.service_model.endpoint_prefix, model.service_model.endpoint_prefix
        )
        called.add(f"{service}:{model.name}")

    async def life() -> None:
        from runtime import cloudwatch

        async with host(tmp_path) as made:
            moto = ThreadedMotoServer(ip_address="127.0.0.1", port=made.cloud_port, verbose=False)
            moto.start()
            _forget(made.cloud_port)
            try:
                made.logged(time.time_ns() // 1_000, "a line")
                await asyncio.to_thread(
                    client("logs", made.cloud_port).create_log_group,
                    logGroupName="/kalshi/gatherer",
                )
                clients: list[Any] = []
                real = boto3.client

                def noted(name: str, **more: Any) -> Any:
                    made_client = real(name, endpoint_url=_url(made.cloud_port), **more)
                    made_client.meta.events.register("before-call", note)
                    clients.append(made_client)
                    return made_client

                settings = load(
                    CloudwatchSettings,
                    {
                        "KT_HOST_NAME": "gatherer-1", "KT_LOG_PREFIX": "/kalshi/",
                        "KT_SERVICE_URL": f"http://127.0.0.1:{made.service_port}",
                        "KT_STATE_DIR": str(made.state), "KT_INTERVAL_S": "1",
                    },
                )  # fmt: skip
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(cloudwatch.boto3, "client", noted)
                    patch.setenv("PATH", f"{made.folder / 'bin'}:{os.environ['PATH']}")
                    running = asyncio.create_task(cloudwatch.serve(settings))
                    await _until(made, lambda: len(called) >= len(SPECIFICATION), str(called))
                    running.cancel()
                    await asyncio.gather(running, return_exceptions=True)
            finally:
                moto.stop()

    asyncio.run(life())
    assert called == set(SPECIFICATION)


def test_series_requests_and_bytes_are_counted_and_have_a_price() -> None:
    """Dollars a month at the list prices of US East: 0.30 a metric, 0.01 a thousand requests, 0.50
    a GB of logs. The table of costs assumes 20 for all of it (cdk/kalshi_infra/usage.toml)."""
    hosts = {"gatherer": 3, "deduplicator": 1}
    n_series = sum(n * len(METRICS[role]) for role, n in hosts.items())
    assert n_series == 11
    month_s = 730 * 3_600
    requests = sum(hosts.values()) * month_s // 60
    log_gb = Decimal(sum(hosts.values()) * BYTES_PER_S * month_s) / 10**9
    metrics_usd = n_series * Decimal("0.30") + requests * Decimal("0.00001")
    usage = (ROOT / "cdk" / "kalshi_infra" / "usage.toml").read_text()
    assumed = Decimal(re.findall(r"^cloudwatch_usd = (\d+)$", usage, re.MULTILINE)[0])
    assert metrics_usd < Decimal("5.10")
    assert metrics_usd + log_gb * Decimal("0.50") < assumed * Decimal("1.05")
    assert DATA_EACH_PUT <= 1_000


def test_batches_are_within_what_the_service_takes() -> None:
    """1,048,576 bytes with 26 for each event, 10,000 events, 24 hours."""
    assert BATCH_BYTES_MAX <= 1_048_576
    assert EVENT_BYTES == 26
    assert EVENTS_MAX <= 10_000
    assert SPAN_MS_MAX < 24 * 3_600_000


def test_bytes_beyond_the_allowance_wait() -> None:
    now_ns = 0
    allowed = Allowance(lambda: now_ns, rate=100, burst=1_000)
    assert allowed.wait_ms(1_000) == 0
    allowed.spend(1_000)
    assert allowed.wait_ms(500) == 5_000
    for _ in range(5_000):  # looked at often, nothing is lost in rounding
        now_ns += 1_000_000
        allowed.wait_ms(500)
    assert allowed.wait_ms(500) == 0
    allowed.spend(500)
    now_ns = 10**12
    assert allowed.wait_ms(5_000) == 0, "more than the burst is let through with a full one"
    allowed.spend(5_000)
    assert allowed.wait_ms(1) == 40_010
    assert BURST_BYTES > BATCH_BYTES_MAX


@pytest.mark.parametrize(
    ("told", "count"),
    [
        ({}, 0),
        ({"tooOldLogEventEndIndex": 3}, 3),
        ({"expiredLogEventEndIndex": 2, "tooOldLogEventEndIndex": 4}, 4),
        ({"tooNewLogEventStartIndex": 8}, 2),
        ({"tooOldLogEventEndIndex": 1, "tooNewLogEventStartIndex": 9}, 2),
    ],
)
def test_events_that_are_left_out_are_counted(told: dict[str, int], count: int) -> None:
    assert n_left_out({"rejectedLogEventsInfo": told} if told else {}, 10) == count
