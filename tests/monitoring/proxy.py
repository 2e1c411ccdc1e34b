"""A WebSocket proxy before one gatherer that can make it silently wrong, without it seeing a gap.

Modes, turned on and off while it runs; `plain` passes every frame on as it is:
- `swallow`: one change in SWALLOW_EACH is lost and all later numbers of its subscription are one
  lower, replies included: what a recorder sees whose exchange forgets to send something.
- `negative`: one change in SWALLOW_EACH takes away more than any level holds.
- `shift`: every change is told three microseconds later than to the others.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import orjson
from websockets.asyncio.client import connect
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from tests.acceptance.dropping_proxy import MAX_FRAME_BYTES, PASSED_ON

Mode = Literal["plain", "swallow", "negative", "shift"]
SWALLOW_EACH: Final = 10
SHIFT_US: Final = 3
_FRACTION: Final = re.compile(r"\.(\d{1,6})Z$|Z$")


def later(text: str, by_us: int) -> str:
    """A time as the exchange writes it, some microseconds later within its second."""
    found = _FRACTION.search(text)
    assert found is not None, text
    us = int((found[1] or "").ljust(6, "0"))
    return f"{text[: found.start()]}.{min(us + by_us, 999_999):06d}Z"


@dataclass(slots=True)
class WrongProxy:
    """See the module's text."""

    upstream: str
    mode: Mode = "plain"
    altered: int = 0
    _server: Server | None = None
    _changes: int = 0

    async def start(self) -> int:
        """Listen on the loopback interface. Returns the port."""
        self._server = await serve(
            self._client, "127.0.0.1", 0, max_size=MAX_FRAME_BYTES, compression=None,
            ping_interval=None,
        )  # fmt: skip
        return int(next(iter(self._server.sockets)).getsockname()[1])

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _client(self, client: ServerConnection) -> None:
        assert client.request is not None
        headers = {name: client.request.headers[name] for name in PASSED_ON}
        try:
            async with connect(
                self.upstream + client.request.path, additional_headers=headers,
                max_size=MAX_FRAME_BYTES, compression=None, ping_interval=None,
            ) as exchange:  # fmt: skip
                up = asyncio.create_task(_pass_up(client, exchange))
                try:
                    await self._pass_down(client, exchange)
                finally:
                    up.cancel()
                    await asyncio.gather(up, return_exceptions=True)
        except (ConnectionClosed, OSError, TimeoutError):
            pass  # either side may go first, or the exchange may be away
        except Exception as refused:  # noqa: BLE001 - an upgrade that is refused closes ours too
            await client.close(1011, str(refused)[:100])

    async def _pass_down(self, client: ServerConnection, exchange: Any) -> None:
        lost = _Lost()
        async for frame in exchange:
            if self.mode == "plain" and not lost.by_sid:
                await client.send(frame)
                continue
            changed = self._changed(frame, lost)
            if changed is not None:
                await client.send(changed)

    def _changed(self, frame: Any, lost: _Lost) -> Any:
        """The frame as it is passed on; None: it is swallowed."""
        try:
            told = orjson.loads(frame)
        except orjson.JSONDecodeError:
            return frame
        if not isinstance(told, dict):
            return frame
        if told.get("type") == "orderbook_delta":
            self._changes += 1
            if self.mode == "shift":
                told["msg"]["ts"] = later(told["msg"]["ts"], SHIFT_US)
                self.altered += 1
            elif self._changes % SWALLOW_EACH == 0 and self.mode == "swallow":
                lost.by_sid[told["sid"]] = lost.by_sid.get(told["sid"], 0) + 1
                self.altered += 1
                return None
            elif self._changes % SWALLOW_EACH == 0 and self.mode == "negative":
                told["msg"]["delta_fp"] = "-9999999.00"
                self.altered += 1
        if "seq" in told and told.get("sid") in lost.by_sid:
            told["seq"] -= lost.by_sid[told["sid"]]
        return orjson.dumps(told).decode()


@dataclass(slots=True)
class _Lost:
    """Of one connection: how many numbers of each subscription were swallowed."""

    by_sid: dict[int, int] = field(default_factory=dict)


async def _pass_up(client: ServerConnection, exchange: Any) -> None:
    async for frame in client:
        await exchange.send(frame)
