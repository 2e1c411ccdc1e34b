"""Asking a real server whether the exchange is open; what changed is in the spool."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web

from gatherer.exchange_watch import ExchangeWatch
from gatherer.intake import Decoding, LiveIntake, recover
from gatherer.rest import RestError
from marketdata import segment
from marketdata.errors import WireError
from runtime.clock import Clock
from runtime.spool import START, SpoolReader, SpoolWriter
from tests.unit.gatherer.test_rest import client

OPEN = {"exchange_active": True, "trading_active": True, "exchange_estimated_resume_time": None}
SHUT = {"exchange_active": False, "trading_active": False, "exchange_estimated_resume_time": "soon"}


class Exchange:
    """Answers as it is told to."""

    def __init__(self) -> None:
        self.status, self.body = 200, orjson.dumps(OPEN)
        self.windows: list[dict[str, str]] = []
        self.asked: list[str] = []

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(request.path.rpartition("/")[2])
        if request.path.endswith("/schedule"):
            return web.json_response({"schedule": {"maintenance_windows": self.windows}})
        return web.Response(status=self.status, body=self.body, content_type="application/json")


@pytest.fixture
async def intake(tmp_path: Path) -> AsyncIterator[LiveIntake]:
    decodings: list[Decoding] = []
    spool = SpoolWriter.open(
        tmp_path,
        state=lambda: decodings[0].state(),  # noqa: PLW0108 - made below
        created_ns=1,
        id_base=1,
        group_commit_ms=5,
    )
    decodings.append(recover(spool))
    yield LiveIntake(spool, decodings[0])
    await spool.close(clean=False)


async def notes(intake: LiveIntake, folder: Path) -> list[dict[str, Any]]:
    await intake._spool.sync()
    reader = SpoolReader(folder, START)
    records = [r for r in reader.read() if r.kind == segment.KIND_CONTROL]
    reader.close()
    return [body for r in records if (body := orjson.loads(r.payload))["k"] == "note"]


async def test_changes_are_told_once_and_kept_in_the_spool(
    intake: LiveIntake, tmp_path: Path
) -> None:
    exchange = Exchange()
    async with client(exchange.answer) as rest:
        watch = ExchangeWatch(rest, intake, Clock())
        assert watch.reason == ""
        await watch.once()
        await watch.once()
        assert watch.reason == ""
        exchange.status, exchange.body = 503, orjson.dumps(SHUT)
        await watch.once()
        assert watch.reason == "the exchange says that it is down, back expected soon"
    assert exchange.asked == ["status", "schedule", "status", "status"]
    told = await notes(intake, tmp_path)
    assert [note["detail"]["exchange_active"] for note in told] == [True, False]
    assert intake.held_rows == 0, "a note says nothing to the tape"


@pytest.mark.parametrize(
    ("status", "body"), [(503, b"<html>"), (503, b"{}"), (404, orjson.dumps(SHUT)), (503, b"[]")]
)
async def test_an_answer_that_is_no_status_changes_nothing(
    intake: LiveIntake, status: int, body: bytes
) -> None:
    exchange = Exchange()
    async with client(exchange.answer) as rest:
        watch = ExchangeWatch(rest, intake, Clock())
        await watch.once()
        exchange.status, exchange.body = status, body
        with pytest.raises(RestError):
            await watch.once()
        assert watch.status is not None
        assert watch.status.exchange_active
        exchange.status, exchange.body = 200, b'{"exchange_active": true}'
        with pytest.raises(WireError):
            await watch.once()


async def test_a_schedule_that_is_not_there_hides_no_status(intake: LiveIntake) -> None:
    exchange = Exchange()
    exchange.windows = [{"start_datetime": "some day"}]
    exchange.body = orjson.dumps(OPEN | {"trading_active": False})
    async with client(exchange.answer) as rest:
        watch = ExchangeWatch(rest, intake, Clock())
        await watch.once()
    assert watch.reason == "the exchange says that trading is paused"


async def test_an_announced_window_is_told_while_it_lasts(intake: LiveIntake) -> None:
    exchange = Exchange()
    exchange.windows = [
        {"start_datetime": "2020-01-01T00:00:00Z", "end_datetime": "2099-01-01T00:00:00Z"}
    ]
    async with client(exchange.answer) as rest:
        watch = ExchangeWatch(rest, intake, Clock())
        await watch.once()
    assert "announced maintenance" in watch.reason
