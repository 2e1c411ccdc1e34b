"""runtime.health over real sockets: states, reasons, read-only."""

from __future__ import annotations

import socket

import aiohttp
import pytest

from marketdata.errors import StorageError
from runtime.health import COMPONENTS_MAX, REASON_CHARS_MAX, Health, HealthServer
from runtime.metrics import Metrics


async def fetch(url: str, method: str = "GET") -> tuple[int, str, dict[str, str]]:
    async with aiohttp.ClientSession() as client, client.request(method, url) as answer:
        return answer.status, await answer.text(), dict(answer.headers)


async def test_a_service_is_as_well_as_its_worst_component() -> None:
    health = Health("g1", "feed", "sink")
    assert health.state == "starting"
    health.set("feed", "ok")
    assert health.state == "starting"
    health.set("sink", "ok")
    assert health.state == "ok"
    health.set("sink", "degraded", "database down since 12 s: connection refused")
    assert health.state == "degraded"
    assert health.report()["reasons"] == ["sink: database down since 12 s: connection refused"]
    health.set("feed", "failing", "the exchange refuses the key")
    assert health.state == "failing"
    assert len(health.report()["reasons"]) == 2
    component = health.get("feed")
    assert component is not None
    assert component.state == "failing"
    assert health.get("nothing") is None


async def test_health_answers_200_or_503_with_the_reasons() -> None:
    """The rollout and the load balancer look at the code, a person at the reasons."""
    health = Health("g1", "feed")
    async with HealthServer(health, Metrics(), detail=lambda: {"books": 3}) as server:
        url = f"http://127.0.0.1:{server.health_port}/health"
        for state, code in (
            ("starting", 503),
            ("ok", 200),
            ("degraded", 200),
            ("failing", 503),
            ("stopping", 503),
        ):
            health.set("feed", state, f"because {state}")  # type: ignore[arg-type]
            status, body, headers = await fetch(url)
            assert status == code
            assert f'"state":"{state}"' in body
            assert '"detail":{"books":3}' in body
            assert headers["Cache-Control"] == "no-store"
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert headers["Server"] == "kalshi-tape"


async def test_status_and_metrics_are_on_their_own_ports() -> None:
    metrics = Metrics()
    metrics.counter("frames_total", channel="trade").inc(3)
    health = Health("g1", "feed")
    async with HealthServer(health, metrics, status=lambda: {"rate": 5}) as server:
        base = f"http://127.0.0.1:{server.health_port}"
        assert (await fetch(f"{base}/status"))[1].strip() == '{"rate":5}'
        assert (await fetch(f"{base}/metrics"))[0] == 404
        status, text, _ = await fetch(f"http://127.0.0.1:{server.metrics_port}/metrics")
        assert status == 200
        assert 'kalshi_tape_frames_total{channel="trade"} 3.0' in text
        assert 'kalshi_tape_healthy{component="feed"} 0.0' in text


async def test_answers_of_many_rows_are_one_object_a_line() -> None:
    rows = [{"n": n} for n in range(3)]
    async with HealthServer(Health("g1"), Metrics(), lines={"/rows": lambda: rows}) as server:
        status, text, headers = await fetch(f"http://127.0.0.1:{server.health_port}/rows")
        assert (status, text) == (200, '{"n":0}\n{"n":1}\n{"n":2}\n')
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert (await fetch(f"http://127.0.0.1:{server.health_port}/none"))[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
async def test_nothing_can_be_changed_through_it(method: str) -> None:
    async with HealthServer(Health("g1"), Metrics()) as server:
        for path in ("health", "status"):
            url = f"http://127.0.0.1:{server.health_port}/{path}"
            assert (await fetch(url, method))[0] == 405


async def test_a_busy_port_is_told_plainly_and_the_other_server_is_closed() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(StorageError, match=rf"cannot listen on 127\.0\.0\.1:{port}"):
            async with HealthServer(Health("g1"), Metrics(), metrics_port=port):
                pass


def test_a_long_reason_is_cut_and_components_have_a_bound() -> None:
    health = Health("g1")
    assert health.state == "starting"
    health.set("a", "failing", "x" * 10_000)
    component = health.get("a")
    assert component is not None
    assert len(component.reason) == REASON_CHARS_MAX
    for number in range(COMPONENTS_MAX - 1):
        health.set(f"c{number}", "ok")
    with pytest.raises(AssertionError):
        health.set("one too many", "ok")
