"""The journal to CloudWatch Logs: order, cursor, outage, lines of every kind.

journalctl is a script that prints what the real one prints (its JSON), from the cursor it is given;
the service is moto's.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import BotoCoreError, ClientError, EndpointConnectionError
from moto import mock_aws

from runtime import journal
from runtime.journal import EVENT_BYTES_MAX, JournalShipper, entry_of

GROUP, STREAM = "/kalshi/gatherer", "gatherer-1"
START_US = 1_795_000_000_000_000

SCRIPT = """
import json, sys, time
lines = [line for line in open(sys.argv[1]) if line.strip()]
after = [a.split("=", 1)[1] for a in sys.argv if a.startswith("--after-cursor=")]
begin = 0
if after:
    begin = 1 + next(n for n, line in enumerate(lines) if json.loads(line)["__CURSOR"] == after[0])
sys.stdout.write("".join(lines[begin:]))
sys.stdout.flush()
if "--follow" in sys.argv:
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr(journal, "LINGER_S", 0.2)
    monkeypatch.setattr(journal, "RETRY_CAP_S", 0.05)
    with mock_aws():
        client = boto3.client("logs")
        client.create_log_group(logGroupName=GROUP)
        yield client


class Switched:
    """CloudWatch Logs behind a switch."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.faults: list[Exception] = []
        self.calls: list[str] = []

    def create_log_stream(self, **what: Any) -> None:
        self.calls.append("CreateLogStream")
        self.client.create_log_stream(**what)

    def put_log_events(self, **what: Any) -> None:
        self.calls.append("PutLogEvents")
        if self.faults:
            raise self.faults.pop()
        self.client.put_log_events(**what)


def line(n: int, message: Any = None, at_us: int | None = None) -> str:
    return json.dumps(
        {
            "__CURSOR": f"s=1;i={n}",
            "__REALTIME_TIMESTAMP": str(START_US + n * 1_000 if at_us is None else at_us),
            "MESSAGE": f"line {n}" if message is None else message,
        }
    )


def shipper(tmp_path: Path, client: Any) -> JournalShipper:
    (tmp_path / "journalctl.py").write_text(SCRIPT)
    command = (sys.executable, str(tmp_path / "journalctl.py"), str(tmp_path / "lines"))
    return JournalShipper(
        client,
        GROUP,
        STREAM,
        ["kalshi-gatherer.service"],
        tmp_path,
        lambda: None,
        errors=(ClientError, BotoCoreError),
        command=command,
    )


async def ship(one: JournalShipper, count: int) -> None:
    """Run until `count` more entries were shipped or refused."""
    goal = one.shipped + one.refused + count
    running = asyncio.create_task(one.run())
    try:
        async with asyncio.timeout(20):
            while one.shipped + one.refused < goal:  # noqa: ASYNC110 - it tells no event
                await asyncio.sleep(0.02)
    finally:
        running.cancel()
        await asyncio.wait([running])


def told(client: Any) -> list[str]:
    events = client.get_log_events(
        logGroupName=GROUP, logStreamName=STREAM, startFromHead=True, limit=10_000
    )
    return [event["message"] for event in events["events"]]


async def test_lines_arrive_once_and_in_order_over_a_restart(tmp_path: Path, aws: Any) -> None:
    (tmp_path / "lines").write_text("\n".join(line(n) for n in range(30)) + "\n")
    await ship(shipper(tmp_path, Switched(aws)), 30)
    with (tmp_path / "lines").open("a") as more:
        more.write("\n".join(line(n) for n in range(30, 50)) + "\n")
    await ship(shipper(tmp_path, Switched(aws)), 20)
    assert told(aws) == [f"line {n}" for n in range(50)]


async def test_an_outage_loses_nothing_and_moves_no_cursor(tmp_path: Path, aws: Any) -> None:
    (tmp_path / "lines").write_text("\n".join(line(n) for n in range(10)) + "\n")
    away = Switched(aws)
    away.faults = [EndpointConnectionError(endpoint_url="https://logs")] * 5
    one = shipper(tmp_path, away)
    running = asyncio.create_task(one.run())
    async with asyncio.timeout(20):
        while len(away.faults) > 2:
            assert not (tmp_path / "journal.cursor").exists()
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.wait([running])
    assert one.shipped == 0
    assert "logs" in one.problem
    await ship(shipper(tmp_path, away), 10)
    assert told(aws) == [f"line {n}" for n in range(10)]
    assert set(away.calls) == {"CreateLogStream", "PutLogEvents"}


async def test_a_batch_refused_for_its_content_holds_nothing_up(tmp_path: Path, aws: Any) -> None:
    (tmp_path / "lines").write_text(line(0) + "\n")
    refusing = Switched(aws)
    body: Any = {"Error": {"Code": "InvalidParameterException", "Message": "too old"}}
    refusing.faults = [ClientError(body, "PutLogEvents")]
    one = shipper(tmp_path, refusing)
    await ship(one, 1)
    assert (one.shipped, one.refused) == (0, 1)
    assert (tmp_path / "journal.cursor").read_text() == "s=1;i=0"


async def test_batches_stay_within_the_limits(
    tmp_path: Path, aws: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By count, by bytes and by the span of a day; a clock that was set back is put in order."""
    monkeypatch.setattr(journal, "EVENTS_MAX", 4)
    day_us = 86_400_000_000
    lines = [line(n) for n in range(9)]
    lines += [line(9, at_us=START_US + 2 * day_us), line(10, at_us=START_US + 2 * day_us - 5_000)]
    (tmp_path / "lines").write_text("\n".join(lines) + "\n")
    counted = Switched(aws)
    await ship(shipper(tmp_path, counted), 11)
    assert counted.calls.count("PutLogEvents") == 4
    assert sorted(told(aws)) == sorted(f"line {n}" for n in range(11))


async def test_lines_that_are_none_are_passed_over(tmp_path: Path, aws: Any) -> None:
    (tmp_path / "lines").write_text(
        "{broken\n" + line(1) + "\n" + line(2, "") + "\n" + line(3) + "\n"
    )
    one = shipper(tmp_path, Switched(aws))
    await ship(one, 2)
    assert told(aws) == ["line 1", "line 3"]


def test_a_line_of_the_journal_becomes_text() -> None:
    """Bytes that are no text come as a list of numbers; a very long line is cut and says so."""
    binary = entry_of(line(1, [104, 105, 255]).encode())
    assert binary is not None
    assert binary.text == "hi\ufffd"
    assert binary.at_ms == START_US // 1_000 + 1
    long = entry_of(line(2, "x" * (EVENT_BYTES_MAX + 5)).encode())
    assert long is not None
    assert long.text.endswith(f"[cut from {EVENT_BYTES_MAX + 5} bytes]")
    assert entry_of(b'{"__CURSOR":"a","__REALTIME_TIMESTAMP":"1"}') is None
    with pytest.raises(ValueError, match="Expecting"):
        entry_of(b"{")
