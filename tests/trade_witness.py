"""A gatherer's spool, intake and sink with a REST list of trades beside them, for tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import orjson
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import rsa

from gatherer.auth import Signer
from gatherer.intake import Decoding, LiveIntake, recover
from gatherer.reconcile import Reconciler, ReconcileSettings
from gatherer.rest import RestClient
from gatherer.sink import Sink, SinkSettings
from marketdata.units import format_ts_us
from runtime.clock import Clock
from runtime.spool import SpoolWriter

S = 1_000_000
T0_S = 1_786_085_160
SIGNER = Signer("id", rsa.generate_private_key(public_exponent=65537, key_size=2048))


def trade_id(number: int) -> str:
    return f"{number:032x}"


def body(number: int, at_s: float, ticker: str = "M", **more: Any) -> dict[str, Any]:
    """A trade as REST lists it."""
    return {
        "trade_id": trade_id(number), "ticker": ticker, "yes_price_dollars": "0.6000",
        "no_price_dollars": "0.4000", "count_fp": "2.00", "taker_outcome_side": "yes",
        "created_time": format_ts_us(round(at_s * S)), "is_block_trade": False, **more,
    }  # fmt: skip


def frame(number: int, at_s: float, seq: int, ticker: str = "M") -> bytes:
    """The same trade as a frame: its time has milliseconds only."""
    msg = {
        "trade_id": trade_id(number), "market_ticker": ticker, "yes_price_dollars": "0.6000",
        "no_price_dollars": "0.4000", "count_fp": "2.00", "taker_outcome_side": "yes",
        "ts_ms": int(at_s * 1000), "is_block_trade": False,
    }  # fmt: skip
    return orjson.dumps({"type": "trade", "sid": 1, "seq": seq, "msg": msg})


@dataclass
class Listing:
    """The REST side: what it lists, newest first, how it answers, and what it was asked."""

    trades: list[dict[str, Any]] = field(default_factory=list)
    page: int = 1000
    status: int = 200
    historical_status: int = 200
    cutoff: str = "2020-01-01T00:00:00Z"
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.Response:
        path = request.path.removeprefix("/trade-api/v2")
        self.asked.append((path, dict(request.query)))
        if path == "/historical/cutoff":
            return web.json_response({"trades_created_ts": self.cutoff})
        status = self.historical_status if path.startswith("/historical") else self.status
        if status != 200:
            return web.json_response({"code": "x", "message": "no"}, status=status)
        low, high = (format_ts_us(int(request.query[k]) * S) for k in ("min_ts", "max_ts"))
        rows = [t for t in self.trades if low <= t.get("created_time", low) <= high]
        rows.sort(key=lambda t: t.get("created_time", ""), reverse=True)
        at = int(request.query.get("cursor") or 0)
        more = str(at + self.page) if at + self.page < len(rows) else ""
        return web.json_response({"trades": rows[at : at + self.page], "cursor": more})


@asynccontextmanager
async def rest(listing: Listing) -> AsyncIterator[RestClient]:
    app = web.Application()
    app.router.add_get("/trade-api/v2/{rest:.*}", listing.answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    clock = Clock(0)
    try:
        async with RestClient(
            f"http://127.0.0.1:{runner.addresses[0][1]}/trade-api/v2",
            SIGNER,
            rate_per_s=1000,
            wall_ns=clock.wall_ns,
            monotonic_ns=clock.monotonic_ns,
        ) as client:
            yield client
    finally:
        await runner.cleanup()


@dataclass
class Rig:
    """The running parts. `frames`: trades as a connection's frames, in sequence."""

    spool: SpoolWriter
    intake: LiveIntake
    sink: Sink
    reconciler: Reconciler
    conn_id: int
    seq: int = 0

    def frames(self, trades: Iterable[tuple[int, float]]) -> None:
        for number, at_s in trades:
            self.seq += 1
            self.intake.absorb(
                self.conn_id, [frame(number, at_s, self.seq)], Clock(0).wall_ns()
            )  # fmt: skip

    def time_is(self, at_s: float) -> None:
        """The exchange's time goes on: a ticker shows it."""
        msg = {
            "market_ticker": "M", "price_dollars": "0.6000", "yes_bid_dollars": "0.5900",
            "yes_ask_dollars": "0.6100", "volume_fp": "1.00", "open_interest_fp": "1.00",
            "dollar_volume": 1, "dollar_open_interest": 1, "ts_ms": int(at_s * 1000),
        }  # fmt: skip
        shown = orjson.dumps({"type": "ticker", "sid": 2, "msg": msg})
        self.intake.absorb(self.conn_id, [shown], Clock(0).wall_ns())

    async def done(self, to_s: int) -> None:
        """Wait until every window before `to_s` was compared."""
        async with asyncio.timeout(60):
            while self.reconciler.status.done_s < to_s:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            at = self.spool.end
            while self.sink.status.cursor < at:  # noqa: ASYNC110
                await asyncio.sleep(0.02)


@asynccontextmanager
async def rig(
    folder: Path, dsn: str, client: RestClient, *, clean: bool = True, **settings: int
) -> AsyncIterator[Rig]:
    """Open (again) the spool, run sink and reconciler; `clean`: end with the END record."""
    clock = Clock(0)
    holder: list[Decoding] = []
    spool = SpoolWriter.open(
        folder,
        state=lambda: holder[0].state(),  # noqa: PLW0108 - it is made below
        created_ns=1,
        id_base=10,
        group_commit_ms=1,
    )
    holder.append(recover(spool))
    intake = LiveIntake(spool, holder[0])
    intake.bury(clock.wall_ns())
    told: list[Reconciler] = []
    sink = Sink(
        SinkSettings(dsn, flush_ms=10),
        spool,
        intake,
        clock,
        on_commit=lambda packed, _: told[0].committed(packed),
    )
    chosen = {"window_s": 30, "settle_s": 5, **settings}
    reconciler = Reconciler(
        ReconcileSettings(dsn, **chosen), client, spool, intake, sink.status, clock
    )
    told.append(reconciler)
    tasks = [asyncio.create_task(work) for work in (spool.run(), sink.run(), reconciler.run())]
    conn_id = intake.next_conn_id()
    intake.control({"k": "connect", "conn": conn_id, "conn_uid": "u"}, clock.wall_ns())
    subscribed = [
        orjson.dumps({"id": n, "type": "subscribed", "msg": {"channel": channel, "sid": n}})
        for n, channel in enumerate(("trade", "ticker"), 1)
    ]
    intake.absorb(conn_id, subscribed, clock.wall_ns())
    try:
        yield Rig(spool, intake, sink, reconciler, conn_id)
        tasks[2].cancel()
        if clean:
            intake.end()
            sink.drain()
            await tasks[1]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await spool.sync()
        await spool.close(clean=False)


async def stored(dsn: str) -> list[asyncpg.Record]:
    """Trade rows of a hot database: number, flags, run_id, and their request's detail."""
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetch(
            "SELECT trade_id, flags, t.run_id, t.received_ns, detail::text FROM trade AS t"
            " JOIN control AS c ON c.run_id = t.run_id AND kind IN ('rest_trades', 'run_start')"
            " ORDER BY trade_id, flags"
        )
    finally:
        await connection.close()


async def windows(dsn: str) -> list[dict[str, Any]]:
    """What the control rows say of the windows."""
    connection = await asyncpg.connect(dsn)
    try:
        rows = await connection.fetch(
            "SELECT reason, detail FROM control WHERE kind = 'rest_window' ORDER BY batch_id, ord"
        )
        return [{"reason": r["reason"], **orjson.loads(r["detail"])} for r in rows]
    finally:
        await connection.close()
