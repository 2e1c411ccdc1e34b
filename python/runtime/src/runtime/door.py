"""Who may come in to a service's HTTP ports: how many, how fast, how long, how much.

Purpose: /health, /status, /metrics and the page must answer whatever somebody does to the ports,
and the service behind them must not notice. So before aiohttp sees a byte: a connection too many
or too soon is answered with 503 and a reason, one that does not say what it wants in time with 408.

What holds:
- One request a connection (`Connection: close`): what a client may cost is decided when it comes.
- At most CONNECTIONS_MAX at once. When they are all taken, whoever has waited longest without a
  whole request gives way to the next: silence cannot keep the port shut.
- At most REQUESTS_PER_S in the long run, BURST at once; a refusal costs one write.
- A request's head is whole within HEAD_S and at most HEAD_BYTES, its answer taken within ANSWER_S
  unless it says that it is a stream (`stay`).

Does not do: routes and headers (health), who asks: the ports are for the network of the fleet.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, cast

from aiohttp import web

CONNECTIONS_MAX: Final = 100
REQUESTS_PER_S: Final = 50
BURST: Final = 500
HEAD_S: Final = 5.0
HEAD_BYTES: Final = 8 * 1024
ANSWER_S: Final = 30.0
BACKLOG: Final = 128

Factory = Callable[[], asyncio.Protocol]


def refusal(status: str, why: str) -> bytes:
    """A whole HTTP answer that refuses, with its reason."""
    body = json.dumps({"error": why}).encode() + b"\n"
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        "Retry-After: 1\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n"
        "Server: kalshi-tape\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


FULL: Final = refusal("503 Service Unavailable", f"{CONNECTIONS_MAX} connections are open already")
TOO_MANY: Final = refusal(
    "503 Service Unavailable", f"more than {REQUESTS_PER_S} requests a second"
)
TOO_SLOW: Final = refusal("408 Request Timeout", f"no whole request within {HEAD_S:.0f} s")
TOO_LARGE: Final = refusal("431 Request Header Fields Too Large", f"over {HEAD_BYTES} bytes")


class Door:
    """The door of one port; it makes the protocol of each connection."""

    def __init__(self, inside: Factory, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._inside = inside
        self._monotonic = monotonic
        self._tokens, self._filled_s = float(BURST), monotonic()
        self._open: set[Guest] = set()
        self._silent: OrderedDict[Guest, None] = OrderedDict()
        self.refused = 0

    def __call__(self) -> asyncio.Protocol:
        return Guest(self, self._inside)

    @property
    def open(self) -> int:
        """Connections that are in."""
        return len(self._open)

    def admit(self, guest: Guest) -> bytes | None:
        """None: come in; else what to answer."""
        now_s = self._monotonic()
        filled = self._tokens + (now_s - self._filled_s) * REQUESTS_PER_S
        self._tokens, self._filled_s = min(float(BURST), filled), now_s
        if self._tokens < 1:
            self.refused += 1
            return TOO_MANY
        if len(self._open) >= CONNECTIONS_MAX:
            if not self._silent:
                self.refused += 1
                return FULL
            next(iter(self._silent)).turn_out(TOO_SLOW)
        self._tokens -= 1
        self._open.add(guest)
        self._silent[guest] = None
        return None

    def asked(self, guest: Guest) -> None:
        """The guest has said what it wants."""
        self._silent.pop(guest, None)

    def left(self, guest: Guest, *, refused: bool) -> None:
        """It is gone, or as good as gone."""
        self.refused += refused
        self._open.discard(guest)
        self._silent.pop(guest, None)


class Guest(asyncio.Protocol):
    """One connection: passes everything on to aiohttp's own protocol, within the limits."""

    def __init__(self, door: Door, inside: Factory) -> None:
        self._door = door
        self._make = inside
        self._inside: asyncio.Protocol | None = None
        self._transport: asyncio.Transport | None = None
        self._head = bytearray()
        self._asked = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        why = self._door.admit(self)
        if why is not None:
            self._transport.write(why)
            self._transport.close()
            return
        self._inside = self._make()
        self._inside.connection_made(transport)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(HEAD_S, self.turn_out, TOO_SLOW)

    def data_received(self, data: bytes) -> None:
        if self._inside is None:
            return
        if self._asked:  # there is no second request, and no body that anybody reads
            return
        self._head += data
        end = self._head.find(b"\r\n\r\n")
        if (end if end >= 0 else len(self._head)) > HEAD_BYTES:
            self.turn_out(TOO_LARGE)
        elif end >= 0:
            self._asked = True
            self._door.asked(self)
            self._again(ANSWER_S)
            head, self._head = bytes(self._head), bytearray()
            self._inside.data_received(head)

    def eof_received(self) -> bool | None:
        return self._inside.eof_received() if self._inside is not None else None

    def pause_writing(self) -> None:
        if self._inside is not None:
            self._inside.pause_writing()

    def resume_writing(self) -> None:
        if self._inside is not None:
            self._inside.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._over()
        self._door.left(self, refused=False)
        if self._inside is not None:
            self._inside.connection_lost(exc)

    def stay(self) -> None:
        """The answer is a stream: its sender sees to its end."""
        self._over()

    def turn_out(self, why: bytes = b"") -> None:
        """End it, with a word where nothing was answered yet."""
        self._over()
        self._door.left(self, refused=True)
        if self._transport is None or self._transport.is_closing():
            return
        if self._asked:
            self._transport.abort()
        else:
            self._transport.write(why)
            self._transport.close()

    def _again(self, seconds: float) -> None:
        self._over()
        self._timer = asyncio.get_running_loop().call_later(seconds, self.turn_out)

    def _over(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()


def stay(request: web.Request) -> None:
    """Say that the answer to this request is a stream, which may take longer than ANSWER_S."""
    guest = request.transport.get_protocol() if request.transport is not None else None
    if isinstance(guest, Guest):
        guest.stay()
