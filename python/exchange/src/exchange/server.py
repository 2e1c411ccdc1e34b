"""One port, two protocols: WebSocket upgrades and REST calls of the simulated exchange.

Purpose: the socket shell around the venue. The first bytes of a connection decide: an upgrade is
driven by the `websockets` library's sans-I/O protocol, anything else is handed to aiohttp.

Limits: a client's unread bytes are bounded by WINDOW_BYTES (the conductor waits, nothing is
dropped); a client's message by COMMAND_BYTES_MAX; the request head by HEAD_BYTES_MAX.

How far a client has read is known from the pongs to pings sent between frames: kernel buffers
hold megabytes, and at full speed a short capture would be over before anybody had read it.

Does not do: pace (conductor), REST answers (rest), the protocol's meaning (venue, commands).
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Final, cast

import orjson
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.server import ServerProtocol

from exchange.auth import SIGNATURE_HEADER, Verifier, handshake_digest
from exchange.connection import Connection
from exchange.venue import Venue

WS_PATH: Final = "/trade-api/ws/v2"
HEAD_BYTES_MAX: Final = 64 << 10
COMMAND_BYTES_MAX: Final = 64 << 20
WINDOW_BYTES: Final = 64 << 10  # sent and not known to be read; then the venue waits
SYNC_BYTES: Final = 16 << 10  # a ping after so many bytes
CLOSE_TIMEOUT_S: Final = 2.0
DROP_WAIT_S: Final = 10.0  # for a client to read what was sent before it is reset
HEARTBEAT: Final = b"heartbeat"
SHORT_FRAME: Final = 126
MEDIUM_FRAME: Final = 1 << 16
TEXT_OPCODE: Final = 0x81
PING_OPCODE: Final = 0x89
LINGER_ZERO: Final = struct.pack("ii", 1, 0)  # close() sends RST


def text_header(length: int) -> bytes:
    """Header of an unmasked, unfragmented text frame."""
    if length < SHORT_FRAME:
        return bytes((TEXT_OPCODE, length))
    if length < MEDIUM_FRAME:
        return struct.pack("!BBH", TEXT_OPCODE, SHORT_FRAME, length)
    return struct.pack("!BBQ", TEXT_OPCODE, SHORT_FRAME + 1, length)


_HEADERS: Final = [text_header(length) for length in range(4096)]


class Gate:
    """What all sockets share. `wake` is set whenever the conductor has something to look at."""

    def __init__(
        self, venue: Venue, verifier: Verifier, rest: Callable[[], asyncio.Protocol]
    ) -> None:
        self.venue = venue
        self.verifier = verifier
        self.rest = rest
        self.wake = asyncio.Event()
        self.clients: dict[int, Client] = {}
        self.stopping = False
        self.bytes_sent = 0
        self.frames_sent = 0


class Client(asyncio.Protocol):
    """One accepted TCP connection until it turns out to be REST, then no more."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._head = b""
        self._wire: ServerProtocol | None = None
        self._fragments: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._close_timer: asyncio.TimerHandle | None = None
        self._since_sync = 0
        self._syncs = 0
        self._synced = 0
        self._drop_by_s: float | None = None
        self.connection: Connection | None = None
        self.pongs = 0
        self.in_flight: dict[int, int] = {}  # number of a sync ping -> bytes before it
        self.in_flight_bytes = 0

    # -- asyncio -------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not inherit asyncio.Transport, though they have all of it.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._wire is None:
            self._head += data
            if b"\r\n\r\n" in self._head:
                self._choose()
            elif len(self._head) > HEAD_BYTES_MAX and self._transport is not None:
                self._transport.abort()
            return
        self._wire.receive_data(data)
        self._handle()

    def eof_received(self) -> bool:
        if self._wire is not None:
            self._wire.receive_eof()
            self._handle()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        if self._close_timer is not None:
            self._close_timer.cancel()
        if self.connection is not None:
            self._gate.clients.pop(self.connection.number, None)
            self._gate.venue.closed(self.connection)
            self._gate.wake.set()

    def pause_writing(self) -> None:
        """The conductor reads `congested`; nothing to do here."""

    def resume_writing(self) -> None:
        self._gate.wake.set()

    # -- opening -------------------------------------------------------------------------------

    def _choose(self) -> None:
        transport = self._transport
        assert transport is not None
        head, self._head = self._head, b""
        if b"upgrade: websocket" not in head.split(b"\r\n\r\n", 1)[0].lower():
            handler = self._gate.rest()
            transport.set_protocol(handler)
            handler.connection_made(transport)
            handler.data_received(head)
            return
        transport.set_write_buffer_limits(high=WINDOW_BYTES)
        self._wire = ServerProtocol(max_size=COMMAND_BYTES_MAX)
        self._wire.receive_data(head)
        self._handle()

    def _upgrade(self, wire: ServerProtocol, request: Request) -> None:
        response = self._judge(wire, request)
        wire.send_response(response)
        if wire.state is State.OPEN:
            signature = request.headers[SIGNATURE_HEADER]
            digest = handshake_digest(signature)
            self.connection = self._gate.venue.open(digest, time.time_ns())
            self._gate.clients[self.connection.number] = self

    def _judge(self, wire: ServerProtocol, request: Request) -> Response:
        if request.path.split("?", 1)[0] != WS_PATH:
            return _refusal(wire, HTTPStatus.NOT_FOUND, "not_found", "no such path")
        now_ms = time.time_ns() // 1_000_000
        fault = self._gate.verifier.fault(request.headers, "GET", WS_PATH, now_ms)
        if fault is not None:
            return _refusal(wire, HTTPStatus.UNAUTHORIZED, *fault)
        reason = self._gate.venue.refusal()
        if reason is not None or self._gate.stopping:
            text = "exchange is not available"
            return _refusal(wire, HTTPStatus.SERVICE_UNAVAILABLE, "service_unavailable", text)
        return wire.accept(request)

    # -- frames in -----------------------------------------------------------------------------

    def _handle(self) -> None:
        wire = self._wire
        assert wire is not None
        for event in wire.events_received():
            if isinstance(event, Request):
                self._upgrade(wire, event)
            elif isinstance(event, Frame):
                self._frame(event)
        self._send_protocol_bytes()
        self._gate.wake.set()

    def _frame(self, frame: Frame) -> None:
        if frame.opcode is Opcode.PONG:
            self._pong(bytes(frame.data))
        elif frame.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            self._fragments.append(bytes(frame.data))
            if frame.fin and self.connection is not None:
                self.connection.commands.append(b"".join(self._fragments))
                self._fragments.clear()

    def _pong(self, payload: bytes) -> None:
        self.pongs += 1
        number = payload.removeprefix(HEARTBEAT + b"/")
        if number.isdigit():
            while self.in_flight and self._synced < int(number):
                self._synced += 1
                self.in_flight_bytes -= self.in_flight.pop(self._synced, 0)

    # -- frames out ----------------------------------------------------------------------------

    @property
    def congested(self) -> bool:
        """Whether the venue has to wait for this client."""
        transport = self._transport
        if self.connection is None or transport is None or self.connection.closing:
            return False
        return self.unread_bytes > WINDOW_BYTES or transport.get_write_buffer_size() > WINDOW_BYTES

    def flush(self) -> None:
        """Writes what the venue has put out; carries out a cut."""
        connection, transport, wire = self.connection, self._transport, self._wire
        if connection is None or transport is None or wire is None:
            return
        frames = connection.out
        if frames and wire.state is State.OPEN and not transport.is_closing():
            connection.out = []
            self._write(transport, frames)
        if connection.closing is not None and not transport.is_closing():
            self._end(connection.closing, transport, wire)

    def _write(self, transport: asyncio.Transport, frames: list[bytes]) -> None:
        parts: list[bytes] = []
        since = self._since_sync
        total = 0
        for frame in frames:
            length = len(frame)
            parts.append(_HEADERS[length] if length < len(_HEADERS) else text_header(length))
            parts.append(frame)
            since += length
            total += length
            if since >= SYNC_BYTES:
                parts.append(self._sync_ping(since))
                since = 0
        self._since_sync = since
        self._gate.bytes_sent += total
        self._gate.frames_sent += len(frames)
        transport.write(b"".join(parts))

    def _sync_ping(self, since: int) -> bytes:
        """A ping whose pong says that the `since` bytes before it were read."""
        self._syncs += 1
        self.in_flight[self._syncs] = since
        self.in_flight_bytes += since
        payload = b"%b/%d" % (HEARTBEAT, self._syncs)
        return bytes((PING_OPCODE, len(payload))) + payload

    def sync(self) -> None:
        """Asks for a pong to everything sent so far; `unread_bytes` then falls to 0."""
        transport, wire = self._transport, self._wire
        if self._since_sync and transport is not None and wire is not None:
            if wire.state is State.OPEN and not transport.is_closing():
                transport.write(self._sync_ping(self._since_sync))
            self._since_sync = 0

    @property
    def unread_bytes(self) -> int:
        """Bytes sent of which no pong has said that they were read."""
        return self.in_flight_bytes + self._since_sync

    def ping(self) -> None:
        """The exchange's heartbeat, also while data are stalled."""
        if self._wire is not None and self._wire.state is State.OPEN:
            self._wire.send_ping(HEARTBEAT)
            self._send_protocol_bytes()

    def close(self) -> None:
        """A clean close from the exchange's side (shutdown)."""
        if self._transport is not None and self._wire is not None:
            self._end("close", self._transport, self._wire)

    def _end(self, how: str, transport: asyncio.Transport, wire: ServerProtocol) -> None:
        if how == "drop" and not self._is_read():
            return
        if how in ("reset", "drop"):
            held = transport.get_extra_info("socket")
            if held is not None and isinstance(held.fileno(), int) and held.fileno() >= 0:
                held.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
            transport.abort()
        elif wire.state is State.OPEN:
            assert self.connection is not None, "only an accepted client is ended"
            wire.send_close(*self.connection.close_frame)
            self._send_protocol_bytes()
            loop = asyncio.get_running_loop()
            self._close_timer = loop.call_later(CLOSE_TIMEOUT_S, transport.abort)

    def _is_read(self) -> bool:
        """Before a drop: whether all that was sent was read, or has been waited for long enough. A
        reset takes with it what lies in the kernel's buffers."""
        now_s = time.monotonic()
        if self._drop_by_s is None:
            self._drop_by_s = now_s + DROP_WAIT_S
        self.sync()
        return not self.unread_bytes or now_s >= self._drop_by_s

    def _send_protocol_bytes(self) -> None:
        wire, transport = self._wire, self._transport
        if wire is None or transport is None or transport.is_closing():
            return
        for data in wire.data_to_send():
            if data:
                transport.write(data)
            else:
                transport.close()
                return
        if wire.close_expected() and wire.state is State.CLOSED:
            transport.close()


def _refusal(wire: ServerProtocol, status: HTTPStatus, code: str, message: str) -> Response:
    body = orjson.dumps({"error": {"code": code, "message": message}})
    response = wire.reject(status, body.decode())
    del response.headers["Content-Type"]
    response.headers["Content-Type"] = "application/json"
    return response
