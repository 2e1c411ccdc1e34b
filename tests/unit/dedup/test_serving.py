"""The page's HTTP: every answer as described, the same numbers as the lake, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections import defaultdict
from pathlib import Path

import aiohttp
import pytest

from dedup.main import serve
from dedup.page.serving import FILES, POLICY, STREAMS_MAX, NoSuchTimeError, moment_us
from dedup.processes import together
from dedup.publication import HOUR_US
from kalshilake import open_lake
from kalshilake.schema import STATUSES
from kalshilake.tables import times_us
from marketdata.units import format_ts_us
from runtime.embedded import EmbeddedPostgres
from tests.databases import fresh_database
from tests.dedup_rig import make_recordings, settings
from tests.described_by import faults
from tests.gatherer_rows import make_stream
from tests.page_world import OPENAPI, Served, Tape, merged_tape, serving


@pytest.fixture(scope="module")
def tape(postgres_server: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Tape:
    """One merged tape for all tests here: they only read."""
    return asyncio.run(merged_tape(postgres_server, tmp_path_factory.mktemp("tape")))


async def lake_sums(tape: Tape, channel: str) -> dict[int, list[int]]:
    """Hour -> time by status, from the lake as any reader gets it."""
    rows = open_lake(str(tape.lake)).coverage()
    sums: dict[int, list[int]] = defaultdict(lambda: [0] * len(STATUSES))
    for name, status, a, b in zip(
        rows["channel"].to_pylist(),
        rows["status"].to_pylist(),
        times_us(rows["from_ts"]).tolist(),
        times_us(rows["to_ts"]).tolist(),
        strict=True,
    ):
        if name == channel:
            sums[a - a % HOUR_US][STATUSES.index(status)] += b - a
    return sums


async def every_answer(page: Served, tape: Tape) -> None:
    days = await page.get("/api/coverage/days")
    hour_us = max(
        d["day_us"] + n * HOUR_US for d in days["days"] for n, h in enumerate(d["hours"]) if h
    )
    day, hour = format_ts_us(hour_us)[:10], format_ts_us(hour_us)[:13]
    market = tape.stream.tickers[0]
    for path in (
        "/api/overview",
        f"/api/coverage/hours?day={day}",
        f"/api/coverage/hours?day={day}&channel=trade&part=KX",
        f"/api/coverage/markets?series=KXTEST&hour={hour}",
        f"/api/coverage/intervals?market={market}&hour={hour}",
        "/api/markets",
        f"/api/markets?part={market[-4:]}",
        f"/api/book?market={market}",
        f"/api/depth?market={market}&minutes=60",
        "/api/gaps",
        "/api/interruptions",
        "/api/quarantine",
        "/api/audits",
        "/api/host",
    ):
        await page.get(path)


async def test_answers_are_as_described_and_equal_to_the_lake(tape: Tape) -> None:
    """From the calendar to one market's intervals: the same microseconds as the lake has."""
    async with serving(tape) as page:
        await every_answer(page, tape)
        for channel in ("orderbook", "trade"):
            days = await page.get(f"/api/coverage/days?channel={channel}")
            told = {
                d["day_us"] + n * HOUR_US: h["us"]
                for d in days["days"]
                for n, h in enumerate(d["hours"])
                if h is not None and any(h["us"])
            }
            assert told == dict(await lake_sums(tape, channel))
        hour = format_ts_us(next(iter(told)))[:13]
        markets = await page.get(f"/api/coverage/markets?series=KXTEST&hour={hour}")
        assert {m["name"] for m in markets["markets"]} == set(tape.stream.tickers)
        lacking = [m for m in markets["markets"] if m["lack_us"]]
        assert lacking, "the recordings lose frames: some market lacks something"
        assert all(m["reasons"][0]["reason"] for m in lacking)
        one = lacking[0]["name"]
        intervals = await page.get(f"/api/coverage/intervals?market={one}&hour={hour}")
        spans = [i for i in intervals["intervals"] if i["channel"] == "orderbook"]
        lack = sum(
            i["to_us"] - i["from_us"] for i in spans if i["status"] not in ("complete", "dark")
        )
        assert lack == lacking[0]["lack_us"]
        overview = await page.get("/api/overview")
        assert overview["verdict"]["word"] == "incomplete"
        assert overview["merge"]["rows_merged"] == tape.status()["rows_merged"]
        assert overview["witnesses"] == tape.status()["witnesses"]
        assert (await page.get("/api/host"))["revision"] == "r-1"


async def test_what_is_not_a_request_of_ours_is_refused(tape: Tape) -> None:
    """400, 404, 405, and no database is asked for any of it."""
    async with serving(tape, "postgresql://127.0.0.1:1/none") as page:
        for path in (
            "/api/book",
            "/api/book?market=",
            "/api/book?market=a%00b",
            "/api/book?market=A&market=B",
            "/api/book?market=A&more=1",
            "/api/book?market=" + "A" * 101,
            "/api/depth?market=A&minutes=61",
            "/api/depth?market=A&minutes=0",
            "/api/coverage/days?channel=ticker",
            "/api/overview?x=1",
        ):
            assert (await page.get(path, 400))["error"]
        for path in (
            "/api/coverage/hours?day=2026-02-30",
            "/api/coverage/hours?day=0000-01-01",
            "/api/coverage/markets?series=A&hour=2026-01-01T24",
        ):
            assert "no such time" in (await page.get(path, 404))["error"]
        async with page.http.get(page.url("/page.js?x=1")) as answer:
            assert answer.status == 400
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
            async with page.http.request(method, page.url("/api/overview"), data=b"x") as answer:
                assert answer.status == 405
        for path in ("/api/", "/api/none", "/..%2f..%2fetc/passwd", "/assets/page.js", "/.git"):
            async with page.http.get(page.url(path)) as answer:
                assert answer.status == 404
        assert page.page.production.trouble == ""


async def test_files_have_the_policy_and_hold_nothing_from_outside(tape: Tape) -> None:
    async with serving(tape) as page:
        for path, (_, kind) in FILES.items():
            for method in ("GET", "HEAD"):
                async with page.http.request(method, page.url(path)) as answer:
                    assert answer.status == 200, path
                    assert answer.content_type == kind
                    assert answer.headers["Content-Security-Policy"] == POLICY
                    assert answer.headers["Referrer-Policy"] == "no-referrer"
                    text = (await answer.read()).decode()
            if path != "/api/openapi.json":
                assert "http://" not in text.replace("http://www.w3.org/", ""), path
                assert "https://" not in text, path
            if kind == "text/html":
                assert "style=" not in text
                assert "<style" not in text
                assert "onclick" not in text
        async with page.http.get(page.url("/api/overview")) as answer:
            assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")


async def test_without_production_the_last_numbers_are_shown_with_their_age(tape: Tape) -> None:
    """What was learned stays, and says how old it is; what never was is 503."""
    market = tape.stream.tickers[0]
    async with serving(tape) as page:
        before = await page.get(f"/api/book?market={market}")
        await page.get("/api/overview")
        page.page.production._dsn = "postgresql://127.0.0.1:1/none"
        pool, page.page.production._pool = page.page.production._pool, None
        assert pool is not None
        pool.terminate()
        after = before
        while not after["known"]["trouble"]:  # a book stands for a moment
            await asyncio.sleep(0.1)
            after = await page.get(f"/api/book?market={market}")
        assert after["yes"] == before["yes"]
        assert after["known"]["at_ms"] == before["known"]["at_ms"]
        assert after["known"]["age_ms"] > before["known"]["age_ms"]
        assert "production" in (await page.get("/api/audits", 503))["error"]
    async with serving(tape, "postgresql://127.0.0.1:1/none") as page:
        overview = await page.get("/api/overview")
        assert overview["verdict"]["word"] == "unknown"
        assert overview["production"] is None
        assert "revision" in await page.get("/api/host")


async def test_the_stream_tells_an_overview_again_and_again_and_has_a_limit(tape: Tape) -> None:
    async with serving(tape) as page:
        async with page.http.get(page.url("/api/events")) as answer:
            assert answer.content_type == "text/event-stream"
            for _ in range(2):
                assert await answer.content.readline() == b"event: overview\n"
                data = (await answer.content.readline()).removeprefix(b"data: ")
                schema = OPENAPI["components"]["schemas"]["Overview"]
                assert list(faults(json.loads(data), schema, OPENAPI)) == []
                assert await answer.content.readline() == b"\n"
            assert page.page.streams == 1
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as http:
            held = [await http.get(page.url("/api/events")) for _ in range(STREAMS_MAX)]
            refused = await page.get("/api/events", 503)
            assert str(STREAMS_MAX) in refused["error"]
            for each in held:
                each.close()


async def test_the_page_of_several_mergers_tells_the_same_way(tape: Tape) -> None:
    """Of one of them nothing is heard; gatherers are told as the first one reads them."""
    async with serving(tape) as page:
        page.page._status = lambda: together([tape.status(), None, tape.status()])
        told = await page.get("/api/overview")
        assert told["merge"]["rows_merged"] == 2 * tape.status()["rows_merged"]
        assert len(told["merge"]["mergers"]) == 3
        assert len(told["gatherers"]) == len(tape.status()["gatherers"])
        page.page._status = lambda: together([None, None])
        told = await page.get("/api/overview")
        assert told["gatherers"] == []
        assert (await page.get("/api/interruptions"))["interruptions"] == []


async def test_readers_of_the_stream_do_not_keep_a_finished_service(
    postgres_server: EmbeddedPostgres, tmp_path: Path
) -> None:
    """KT_FINAL with somebody at the page: it ends with 0 all the same."""
    stream = make_stream(22, events=300)
    made = await make_recordings(postgres_server, stream, gatherers=1, gaps=0, disconnects=0)
    production = await fresh_database(postgres_server, "production")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    service = asyncio.create_task(serve(settings(made, production, tmp_path, health_port=port)))

    async def read_on() -> int:
        heard = 0
        async with aiohttp.ClientSession() as http:
            while not service.done():
                with contextlib.suppress(aiohttp.ClientError):
                    async with http.get(f"http://127.0.0.1:{port}/api/events") as answer:
                        async for _ in answer.content:
                            heard += 1
                await asyncio.sleep(0.05)
        return heard

    reading = asyncio.create_task(read_on())
    assert await service == 0
    assert await reading > 0


def test_moments_are_read_exactly_or_refused() -> None:
    assert moment_us("1970-01-02") == 24 * HOUR_US
    assert moment_us("1970-01-01T02") == 2 * HOUR_US
    for text in ("2026-13-01", "2026-01-01T25", "0000-01-01"):
        with pytest.raises(NoSuchTimeError):
            moment_us(text)


def test_a_value_that_is_not_as_described_is_found() -> None:
    """Negative control of the check that all of the above rests on."""
    schema = OPENAPI["components"]["schemas"]["Cell"]
    good = {"us": [0] * 6, "markets": 1, "lacking": 0}
    assert list(faults(good, schema, OPENAPI)) == []
    for bad in (
        {**good, "markets": 1.5},
        {**good, "us": [0] * 5},
        {**good, "more": 1},
        {"us": [0] * 6, "markets": 1},
        {**good, "lacking": True},
    ):
        assert list(faults(bad, schema, OPENAPI))
