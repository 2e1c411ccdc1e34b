"""gatherer.rest_audit: looks around real requests; verdicts, pace, and what a difference causes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import web

from gatherer import rest_audit as module
from gatherer.rest import RestClient
from gatherer.rest_audit import AuditSettings, RestAudit
from gatherer.side_rows import SideRows
from marketdata.book import hash_levels
from marketdata.rest_books import AuditVerdict, Look
from runtime.clock import Clock
from tests.trade_witness import SIGNER

Levels = list[tuple[int, int]]
ONE: Levels = [(500_000, 100)]
TWO: Levels = [(500_000, 200)]


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOKS_AFTER_MS", (0, 5, 20))
    monkeypatch.setattr(module, "AGAIN_AFTER_NS", 30_000_000)
    monkeypatch.setattr(module, "POLL_S", 0.005)


@dataclass
class World:
    """Our books, REST's books, and what happens while a request is on its way."""

    ours: dict[str, Levels | None] = field(default_factory=dict)
    theirs: dict[str, Levels] = field(default_factory=dict)
    during: list[tuple[str, Levels]] = field(default_factory=list)  # of ours, before the answer
    after: list[tuple[str, Levels]] = field(default_factory=list)  # of ours, 5 ms after it
    status: int = 200
    asked: list[list[str]] = field(default_factory=list)
    snapshots: list[str] = field(default_factory=list)
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    changes: int = 0

    def change(self, ticker: str, levels: Levels | None) -> None:
        self.ours[ticker] = levels
        self.changes += 1

    # the intake
    def looks(self, conn_id: int, tickers: Iterable[str]) -> list[Look | None]:
        assert conn_id == 7
        found: list[Look | None] = []
        for ticker in tickers:
            levels = self.ours.get(ticker)
            found.append(None if levels is None else Look(1, hash_levels(levels, []), self.changes))
        return found

    # the feed
    def ask_snapshots(self, tickers: Iterable[str]) -> None:
        self.snapshots += tickers

    # the rows
    def put(self, insert: str, *values: Any) -> None:
        self.rows.append((insert.split()[2], *values))

    async def room(self) -> None:
        return

    async def answer(self, request: web.Request) -> web.Response:
        tickers = request.query.getall("tickers")
        self.asked.append(tickers)
        for ticker, levels in self.during:
            self.change(ticker, levels)
        if self.after:
            loop = asyncio.get_running_loop()
            loop.call_later(0.01, lambda: [self.change(*one) for one in self.after])
        books = [
            {"ticker": t, "orderbook_fp": {"yes_dollars": [
                [f"{p / 1e6:.4f}", f"{q / 100:.2f}"] for p, q in self.theirs[t]]}}
            for t in tickers if t in self.theirs
        ]  # fmt: skip
        return web.json_response({"orderbooks": books}, status=self.status)

    def differences(self) -> list[str]:
        return [row[1] for row in self.rows if row[0] == "rest_difference"]


@asynccontextmanager
async def audit(world: World, **settings: Any) -> AsyncIterator[RestAudit]:
    app = web.Application()
    app.router.add_get("/trade-api/v2/{rest:.*}", world.answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    clock = Clock(0)
    feed = SimpleNamespace(
        name="books-0",
        status=SimpleNamespace(state="open", conn_id=7),
        session=SimpleNamespace(subscribed=frozenset(world.ours)),
        ask_snapshots=world.ask_snapshots,
    )
    chosen = {"share": 0.5, "rate_per_s": 400, "interval_s": 3600, **settings}
    try:
        async with RestClient(
            f"http://127.0.0.1:{runner.addresses[0][1]}/trade-api/v2",
            SIGNER,
            rate_per_s=1000,
            wall_ns=clock.wall_ns,
            monotonic_ns=clock.monotonic_ns,
        ) as client:
            yield RestAudit(
                AuditSettings(**chosen), client, cast(Any, world), {"books-0": cast(Any, feed)},
                cast(SideRows, world), clock,
            )  # fmt: skip
    finally:
        await runner.cleanup()


async def judged(world: World) -> AuditVerdict:
    """The verdict of the first audit of market M."""
    async with audit(world) as made:
        made._begin_round(0)
        await made.audit(("M",))
    (row,) = [r for r in world.rows if r[0] == "rest_audit"]
    assert 0 < row[1] <= row[2]
    return AuditVerdict(row[5][0])


@pytest.mark.parametrize(
    ("world", "verdict"),
    [
        (World({"M": ONE}, {"M": ONE}), AuditVerdict.AGREES),
        (World({"M": ONE}, {"M": ONE}, during=[("M", TWO)]), AuditVerdict.AGREES),
        (World({"M": ONE}, {"M": TWO}, during=[("M", TWO)]), AuditVerdict.AGREES),
        (World({"M": ONE}, {"M": TWO}, after=[("M", TWO)]), AuditVerdict.AGREES),
        (World({"M": ONE}, {"M": TWO}, during=[("M", [])]), AuditVerdict.BUSY),
        (World({"M": ONE}, {"M": TWO}, after=[("M", [])]), AuditVerdict.BUSY),
        (World({"M": ONE}, {"M": TWO}), AuditVerdict.SUSPECT),
        (World({"M": None}, {"M": TWO}), AuditVerdict.NO_BOOK),
        (World({"M": ONE}, {}), AuditVerdict.ABSENT),
    ],
    ids=["equal", "before", "at the answer", "later", "busy", "busy later", "differs", "no ours",
         "no theirs"],
)  # fmt: skip
async def test_verdicts_come_from_the_looks_around_the_request(
    world: World, verdict: AuditVerdict
) -> None:
    assert await judged(world) is verdict


async def test_a_book_that_differs_twice_is_told_and_asked_for_once_until_it_agrees() -> None:
    """Nobody else is asked for; REST being wrong for long makes no second request."""
    world = World({"M": ONE, "N": ONE, "O": None}, {"M": TWO, "N": ONE, "O": ONE})
    async with audit(world) as made:
        task = asyncio.create_task(made.run())
        async with asyncio.timeout(20):
            while made.status.verdicts[AuditVerdict.DIFFERS] < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert (world.differences(), world.snapshots) == (["M"], ["M"])
        assert made.told() == "1 books differ from REST's: M"
        world.change("M", TWO)
        async with asyncio.timeout(20):
            while made.told():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        task.cancel()
    assert (made.status.differences, made.status.snapshots_asked) == (1, 1)
    (row,) = [r for r in world.rows if r[0] == "rest_difference"]
    assert row[5] == module._signed(hash_levels(ONE, []))
    assert [tickers for tickers in world.asked if "N" in tickers] == [["M", "N", "O"]]


async def test_a_round_asks_for_every_book_once_and_the_next_waits_for_its_time() -> None:
    names = [f"M{n:03d}" for n in range(250)]
    world = World(dict.fromkeys(names, ONE), dict.fromkeys(names, ONE))
    async with audit(world) as made:
        task = asyncio.create_task(made.run())
        async with asyncio.timeout(20):
            while made.status.verdicts[AuditVerdict.AGREES] < 250:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        task.cancel()
    # Requests are on their way side by side: they may arrive in another order.
    assert sorted(len(tickers) for tickers in world.asked) == [50, 100, 100]
    assert sorted(t for part in world.asked for t in part) == names
    assert made.status.rounds == 1


async def test_requests_keep_to_their_share() -> None:
    """Begun no faster than share times rate, whatever the answers take."""
    assert AuditSettings(0.3, 5.0, 300).request_s == pytest.approx(1 / 1.5)
    names = [f"M{n:04d}" for n in range(2000)]
    world = World(dict.fromkeys(names, ONE), dict.fromkeys(names, ONE))
    slept: list[float] = []
    async with audit(world, share=0.25, rate_per_s=100) as made:
        real = asyncio.sleep

        async def sleep(delay_s: float) -> None:
            slept.append(delay_s)
            await real(0)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module.asyncio, "sleep", sleep)
            task = asyncio.create_task(made.run())
            while made.status.requests < 20:
                await real(0.01)
            task.cancel()
    assert slept.count(1 / 25) >= 19


async def test_without_a_share_nothing_is_asked() -> None:
    world = World({"M": ONE}, {"M": ONE})
    async with audit(world, share=0) as made:
        task = asyncio.create_task(made.run())
        await asyncio.sleep(0.1)
        task.cancel()
    assert world.asked == []


async def test_an_answer_that_fails_is_counted_and_judges_nobody() -> None:
    world = World({"M": ONE}, {"M": TWO}, status=503)
    async with audit(world) as made:
        made._begin_round(0)
        await made.audit(("M",))
        assert (made.status.failed, world.rows) == (1, [])
        assert "503" in made.status.reason
        world.status = 200
        await made.audit(("M",))
        assert made.status.reason == ""
    assert world.asked == [["M"], ["M"]], "tried once each"
