"""A host's metrics to CloudWatch: the figures, the right calls, and an outage that nobody notices.

The service's /status is a real HTTP server; CloudWatch is moto's.
"""

from __future__ import annotations

import asyncio
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import boto3
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError
from moto import mock_aws

from runtime.clock import Clock
from runtime.cloudwatch import METRICS, UNITS, MetricPublisher, Reading, main, measured
from runtime.config import CloudwatchSettings, load
from runtime.health import Health, HealthServer
from runtime.metrics import Metrics

ROOT = Path(__file__).parents[3]
S = 1_000_000_000


@pytest.fixture(autouse=True)
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with mock_aws():
        yield


def settings(folder: Path, port: int = 1, role: str = "gatherer") -> CloudwatchSettings:
    return load(
        CloudwatchSettings,
        {
            "KT_HOST_NAME": f"{role}-1" if role == "gatherer" else role,
            "KT_SERVICE_URL": f"http://127.0.0.1:{port}",
            "KT_STATE_DIR": str(folder),
        },
    )


def test_metrics_are_those_that_the_alarms_watch() -> None:
    """Names, roles and units stand in topology.toml, from which the alarms are made."""
    with (ROOT / "topology.toml").open("rb") as file:
        topology = tomllib.load(file)
    assert {(m["role"], m["name"], m["unit"]) for m in topology["metric"]} == {
        (role, name, UNITS[name]) for role, names in METRICS.items() for name in names
    }
    assert (
        topology["logs"]["metric_namespace"] == CloudwatchSettings.model_fields["namespace"].default
    )


def test_counts_are_since_the_reading_before_and_a_restart_begins_from_zero() -> None:
    first = Reading(S, {"frames": 100, "lag_ms": 1_500}, 25, 100)
    assert measured("gatherer", first, None) == {"SinkLagSeconds": 1.5, "DiskFreePercent": 25.0}
    later = Reading(2 * S, {"frames": 160, "lag_ms": 0}, 25, 100)
    assert measured("gatherer", later, first)["FramesReceived"] == 60
    restarted = Reading(3 * S, {"frames": 7, "lag_ms": 0}, 25, 100)
    assert measured("gatherer", restarted, later)["FramesReceived"] == 7


def test_what_cannot_be_known_is_not_sent() -> None:
    """The alarms count a missing value as bad; a made-up 0 would be a lie."""
    before = Reading(S, {"frames": 100, "lag_ms": 0}, 25, 100)
    assert measured("gatherer", Reading(2 * S, None, 25, 100), before) == {"DiskFreePercent": 25.0}
    assert measured("deduplicator", Reading(2 * S, None, 25, 100), None) == {}
    assert measured("deduplicator", Reading(2 * S, {"closed_to_us": 0}, 1, 1), None) == {}


def test_age_of_the_watermark_and_new_quarantine() -> None:
    before = Reading(S, {"quarantined": 4, "closed_to_us": 1}, 1, 1)
    now = Reading(100 * S, {"quarantined": 6, "closed_to_us": 90_500_000}, 1, 1)
    assert measured("deduplicator", now, before) == {
        "RowsQuarantined": 2,
        "WatermarkAgeSeconds": 9.5,
    }


class Away:
    """CloudWatch behind a switch."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.fault: Exception | None = None

    def put_metric_data(self, **what: Any) -> None:
        if self.fault is not None:
            raise self.fault
        self.client.put_metric_data(**what)


def stored(client: Any, name: str) -> list[float]:
    found = client.get_metric_data(
        MetricDataQueries=[
            {
                "Id": "m",
                "MetricStat": {
                    "Metric": {
                        "Namespace": "Kalshi",
                        "MetricName": name,
                        "Dimensions": [{"Name": "Host", "Value": "gatherer-1"}],
                    },
                    "Period": 60,
                    "Stat": "Sum",
                },
            }
        ],
        StartTime=datetime.now(UTC) - timedelta(hours=1),
        EndTime=datetime.now(UTC) + timedelta(hours=1),
    )
    return [float(v) for v in found["MetricDataResults"][0]["Values"]]


async def test_an_outage_is_waited_out_and_the_backlog_arrives(tmp_path: Path) -> None:
    """Every data point has the time of its measurement, and none is sent twice."""
    frames = 0
    cloud = Away(boto3.client("cloudwatch"))
    server = HealthServer(
        Health("gatherer"), Metrics(), status=lambda: {"frames": frames, "lag_ms": 0}
    )
    async with server, aiohttp.ClientSession() as session:
        made = settings(tmp_path, server.health_port)
        publisher = MetricPublisher(made, cloud, Clock(0), lambda: None)
        await publisher.round(session)
        cloud.fault = EndpointConnectionError(endpoint_url="https://cloudwatch")
        for _ in range(3):
            frames += 10
            await publisher.round(session)
        assert publisher.waiting == 9
        assert "cloudwatch" in publisher.problem
        cloud.fault = None
        frames += 10
        await publisher.round(session)
    assert (publisher.waiting, publisher.problem) == (0, "")
    assert sum(stored(cloud.client, "FramesReceived")) == 40
    assert publisher.sent == 2 + 4 * 3


async def test_data_that_can_never_be_taken_hold_nothing_up(tmp_path: Path) -> None:
    cloud = Away(boto3.client("cloudwatch"))
    body: Any = {"Error": {"Code": "InvalidParameterValue", "Message": "no"}}
    cloud.fault = ClientError(body, "PutMetricData")
    async with aiohttp.ClientSession() as session:
        publisher = MetricPublisher(settings(tmp_path), cloud, Clock(0), lambda: None)
        await publisher.round(session)
    assert (publisher.refused, publisher.waiting) == (1, 0)


async def test_it_measures_again_and_again_and_says_that_it_lives(tmp_path: Path) -> None:
    alive: list[int] = []
    cloud = Away(boto3.client("cloudwatch"))
    made = settings(tmp_path).model_copy(update={"interval_s": 1})
    publisher = MetricPublisher(made, cloud, Clock(0), lambda: alive.append(1))
    running = asyncio.create_task(publisher.run())
    async with asyncio.timeout(20):
        while len(alive) < 2:  # noqa: ASYNC110 - that is what is waited for
            await asyncio.sleep(0.05)
    running.cancel()
    await asyncio.wait([running])
    assert publisher.sent >= 2


def test_wrong_settings_end_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KT_HOST_NAME", "mail-1")
    assert main() == 2
    told = capsys.readouterr().err
    assert "KT_ROLE" in told
    assert "KT_STATE_DIR: is not set" in told


def test_role_is_the_hosts_name_without_its_number(tmp_path: Path) -> None:
    assert settings(tmp_path, role="gatherer").role == "gatherer"
    assert settings(tmp_path, role="deduplicator").role == "deduplicator"
