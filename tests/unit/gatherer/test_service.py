"""The parts of one gatherer together: what it says while everything around it is broken."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from gatherer.service import IDS_PER_MINUTE, Gatherer, id_base
from runtime import config
from runtime.clock import Clock
from runtime.supervise import Supervisor

MINUTE_NS = 60_000_000_000
NEW_YEAR_NS = 1_767_225_600_000_000_000


def settings(folder: Path, **more: str) -> config.GathererSettings:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    environ = {
        "KT_WS_URL": "ws://127.0.0.1:1/trade-api/ws/v2",
        "KT_REST_URL": "http://127.0.0.1:1/trade-api/v2",
        "KT_KEY_ID": "id",
        "KT_PRIVATE_KEY_FILE": str(folder / "key.pem"),
        "KT_SPOOL_DIR": str(folder / "spool"),
        "KT_TIMESCALE_DSN": "postgresql://127.0.0.1:1/none",
        "KT_POSTGRES_DSN": "postgresql://127.0.0.1:1/none",
        "KT_HEALTH_PORT": "0",
        "KT_METRICS_PORT": "0",
        "KT_RECONNECT_CAP_MS": "50",
        "KT_DRAIN_DEADLINE_S": "1",
        **more,
    }
    return config.load(config.GathererSettings, environ)


def test_ids_of_a_later_spool_lie_beyond_those_of_an_older_one() -> None:
    """A spool that was lost must not share ids with its successor in the same database."""
    one, two = id_base(NEW_YEAR_NS + 5 * MINUTE_NS), id_base(NEW_YEAR_NS + 6 * MINUTE_NS)
    assert two - one == IDS_PER_MINUTE
    assert id_base(0) == 1
    assert id_base(NEW_YEAR_NS + 2_000_000 * MINUTE_NS) < 2**31


async def _get(port: int, path: str) -> tuple[int, str]:
    url = f"http://127.0.0.1:{port}{path}"
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return answer.status, await answer.text()


async def test_with_exchange_and_databases_down_it_says_so_and_stops_cleanly(
    tmp_path: Path,
) -> None:
    """No trouble around it ends the process; each has its plain reason in /health."""
    supervisor = Supervisor("gatherer")
    gatherer = Gatherer(settings(tmp_path), Clock(), supervisor)
    async with AsyncExitStack() as stack:
        await gatherer.open(stack)
        running = asyncio.create_task(supervisor.run())
        report: dict[str, Any] = {}
        async with asyncio.timeout(20):
            while report.get("components", {}).get("database", {}).get("state") != "failing":
                await asyncio.sleep(0.05)
                status, text = await _get(gatherer.health_port, "/health")
                report = json.loads(text)
        assert status == 503
        assert "rows wait in the spool" in report["components"]["database"]["reason"]
        assert report["components"]["exchange"]["state"] == "starting"
        assert report["components"]["spool"]["state"] == "ok"
        assert report["detail"]["sink"] == "database_down"
        _, metrics = await _get(gatherer.metrics_port, "/metrics")
        assert "kalshi_tape_up 1.0" in metrics
        supervisor.request_stop("test")
        assert await asyncio.wait_for(running, 20) == 0


async def test_a_foreign_file_in_the_spool_is_kept_and_named(tmp_path: Path) -> None:
    """Somebody's file is never deleted, and never silent."""
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool" / "holiday.jpg").write_bytes(b"x")
    supervisor = Supervisor("gatherer")
    gatherer = Gatherer(settings(tmp_path), Clock(), supervisor)
    async with AsyncExitStack() as stack:
        await gatherer.open(stack)
        running = asyncio.create_task(supervisor.run())
        async with asyncio.timeout(20):
            while (told := gatherer.health.get("spool")) is None or told.state == "starting":  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert "holiday.jpg" in told.reason
        supervisor.request_stop("test")
        await asyncio.wait_for(running, 20)
    assert (tmp_path / "spool" / "holiday.jpg").exists()


async def test_a_second_process_on_one_spool_is_refused(tmp_path: Path) -> None:
    """Two writers in one spool would destroy it."""
    made = settings(tmp_path)
    async with AsyncExitStack() as stack:
        await Gatherer(made, Clock(), Supervisor("one")).open(stack)
        with pytest.raises(Exception, match="in use by another process"):
            await Gatherer(made, Clock(), Supervisor("two")).open(stack)
