"""The REST client against a real server: pace, patience, paging."""

from __future__ import annotations

import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import rsa

from gatherer import rest as module
from gatherer.auth import HEADER_SIGNATURE, Signer
from gatherer.rest import RestClient, RestError, TokenBucket, backoff_s

SIGNER = Signer("id", rsa.generate_private_key(public_exponent=65537, key_size=2048))
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def client(handler: Handler, retried: list[int] | None = None) -> AsyncIterator[RestClient]:
    app = web.Application()
    app.router.add_get("/trade-api/v2/{rest:.*}", handler)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    clock = itertools.count(0, 10**9)
    try:
        async with RestClient(
            f"http://127.0.0.1:{port}/trade-api/v2/",
            SIGNER,
            rate_per_s=1000,
            wall_ns=lambda: 1_000_000_000,
            monotonic_ns=lambda: next(clock),
            rng=random.Random(1),
            on_answer=None if retried is None else lambda status, _: retried.append(status),
        ) as made:
            yield made
    finally:
        await runner.cleanup()


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BACKOFF_BASE_S", 0.001)
    monkeypatch.setattr(module, "BACKOFF_CAP_S", 0.01)


async def test_overload_answers_are_tried_again_with_a_new_signature() -> None:
    """429 and 5xx are normal at the exchange; a signature is good for one attempt."""
    signatures: list[str] = []
    answers = iter([429, 503, 500, 200])

    async def handler(request: web.Request) -> web.Response:
        signatures.append(request.headers[HEADER_SIGNATURE])
        status = next(answers)
        return web.json_response({"ok": 1} if status == 200 else {"error": "x"}, status=status)

    retried: list[int] = []
    async with client(handler, retried) as made:
        assert await made.get("/exchange/status") == {"ok": 1}
    assert retried == [429, 503, 500, 200]
    assert len(set(signatures)) == 4


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ({"error": {"code": "not_found", "message": "no such"}}, "not_found", "no such"),
        ({"code": "not_found", "message": "no such", "details": ""}, "not_found", "no such"),
        ({"error": "plain"}, "", "plain"),
    ],
)
async def test_a_refusal_is_told_in_all_its_forms_and_not_repeated(
    body: dict[str, Any], code: str, message: str
) -> None:
    calls = 0

    async def handler(_: web.Request) -> web.Response:
        nonlocal calls
        calls += 1
        return web.json_response(body, status=404)

    async with client(handler) as made:
        with pytest.raises(RestError, match=message) as refused:
            await made.get("/markets/X")
    assert (refused.value.status, refused.value.code, calls) == (404, code, 1)


@pytest.mark.parametrize("text", ["<html>", "[1]"])
async def test_an_answer_that_is_no_object_is_refused(text: str) -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(text=text)

    async with client(handler) as made:
        with pytest.raises(RestError, match="not"):
            await made.get("/series")


async def test_attempts_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ATTEMPTS_MAX", 3)
    calls = 0

    async def handler(_: web.Request) -> web.Response:
        nonlocal calls
        calls += 1
        raise web.HTTPServiceUnavailable

    async with client(handler) as made:
        with pytest.raises(RestError, match="503"):
            await made.get("/series")
    assert calls == 3


async def test_pages_are_followed_to_the_empty_cursor() -> None:
    async def handler(request: web.Request) -> web.Response:
        at = int(request.query.get("cursor") or 0)
        assert request.query["status"] == "open"
        more = str(at + 1) if at < 3 else ""
        return web.json_response({"markets": [{"n": at}, "noise"], "cursor": more})

    async with client(handler) as made:
        found = [
            row
            async for page in made.pages("/markets", "markets", {"status": "open"})
            for row in page
        ]
    assert found == [{"n": n} for n in range(4)]


async def test_a_cursor_that_comes_twice_ends_the_paging() -> None:
    """Seen at the exchange: following it would never end."""

    async def handler(_: web.Request) -> web.Response:
        return web.json_response({"markets": [], "cursor": "same"})

    async with client(handler) as made:
        with pytest.raises(RestError, match="came twice"):
            _ = [page async for page in made.pages("/markets", "markets")]


async def test_a_page_without_its_list_is_refused() -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.json_response({"other": []})

    async with client(handler) as made:
        with pytest.raises(RestError, match="no list"):
            _ = [page async for page in made.pages("/markets", "markets")]


async def test_a_body_beyond_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BODY_BYTES_MAX", 1000)

    async def handler(_: web.Request) -> web.Response:
        return web.Response(body=b"x" * 2000)

    async with client(handler) as made:
        with pytest.raises(RestError, match="exceeds 1000"):
            await made.get("/series")


def test_the_bucket_lets_a_burst_through_and_then_keeps_the_pace() -> None:
    """Three gatherers share one budget: nobody may take more than its rate."""
    now = 0
    bucket = TokenBucket(5, 5, monotonic_ns=lambda: now)
    waits = [bucket.reserve_ns() for _ in range(8)]
    assert waits[:5] == [0] * 5
    assert waits[5:] == [200_000_000, 400_000_000, 600_000_000]
    now = 60_000_000_000
    assert [bucket.reserve_ns() for _ in range(6)] == [0] * 5 + [200_000_000]
    with pytest.raises(ValueError, match="above 0"):
        TokenBucket(0, 1, monotonic_ns=lambda: 0)


def test_back_off_is_jittered_grows_and_is_capped() -> None:
    """Full jitter: many clients cut at one moment do not come back at one moment."""
    rng = random.Random(7)
    waits = [backoff_s(n, base_s=0.25, cap_s=30, rng=rng) for n in range(60) for _ in range(20)]
    assert all(0 <= wait <= 30 for wait in waits)
    assert max(waits[:20]) <= 0.25
    assert len(set(waits)) == len(waits)
    assert max(waits[-400:]) > 20


async def test_whoever_asks_hears_of_each_request_right_before_it() -> None:
    order: list[str] = []

    async def handler(_: web.Request) -> web.Response:
        order.append("asked")
        return web.json_response({}, status=503 if len(order) < 3 else 200)

    async with client(handler) as made:
        await made.get("/markets/orderbooks", on_send=lambda: order.append("sent"))
    assert order == ["sent", "asked"] * 2
