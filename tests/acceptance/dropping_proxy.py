"""A WebSocket proxy in front of the simulated exchange that loses exactly one frame.

It passes everything else on unchanged, in both directions, and tells what it lost and which markets
stood on that connection, so that a test knows the one right answer.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import orjson
from websockets.asyncio.client import connect
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

MAX_FRAME_BYTES = 64 << 20
PASSED_ON = ("KALSHI-ACCESS-KEY", "KALSHI-ACCESS-SIGNATURE", "KALSHI-ACCESS-TIMESTAMP")


@dataclass(slots=True)
class DroppingProxy:
    """Loses the delta number `drop_at` (from 1) of the first connection that gets so far."""

    upstream: str
    drop_at: int
    lost: dict[str, Any] | None = None
    lost_markets: set[str] = field(default_factory=set)  # markets of that connection
    all_markets: set[str] = field(default_factory=set)
    _server: Server | None = None

    async def start(self) -> int:
        """Listen on the loopback interface. Returns the port."""
        self._server = await serve(
            self._client,
            "127.0.0.1",
            0,
            max_size=MAX_FRAME_BYTES,
            compression=None,
            ping_interval=None,
        )
        return int(next(iter(self._server.sockets)).getsockname()[1])

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _client(self, client: ServerConnection) -> None:
        assert client.request is not None
        headers = {name: client.request.headers[name] for name in PASSED_ON}
        url = self.upstream + client.request.path
        async with connect(
            url,
            additional_headers=headers,
            max_size=MAX_FRAME_BYTES,
            compression=None,
            ping_interval=None,
        ) as exchange:
            up = asyncio.create_task(self._pass_up(client, exchange))
            try:
                await self._pass_down(client, exchange)
            except ConnectionClosed:
                pass  # either side may go first
            finally:
                up.cancel()
                await asyncio.gather(up, return_exceptions=True)

    @staticmethod
    async def _pass_up(client: ServerConnection, exchange: Any) -> None:
        async for frame in client:
            await exchange.send(frame)

    async def _pass_down(self, client: ServerConnection, exchange: Any) -> None:
        markets: set[str] = set()
        deltas = 0
        async for frame in exchange:
            told = orjson.loads(frame)
            if told["type"] == "orderbook_snapshot":
                markets.add(told["msg"]["market_ticker"])
                self.all_markets.add(told["msg"]["market_ticker"])
            elif told["type"] == "orderbook_delta":
                deltas += 1
                if deltas == self.drop_at and self.lost is None and len(markets) > 1:
                    self.lost, self.lost_markets = told, markets
                    continue
            await client.send(frame)
