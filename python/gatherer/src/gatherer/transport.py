"""WebSocket transports behind one interface: frames out in the order and bytes of the wire.

Purpose: two implementations that must not be told apart by what they deliver (a differential test
holds them equal under random splits, fragments, pings, closes and 64-bit lengths): `websockets`,
the reference, and `picows`, about a third of its CPU.
What they deliver: whole data messages as bytes, undecoded, in batches of what one wake-up brought,
with one receive stamp for each batch; then one `Closed`.
Where they differ: picows refuses a length written longer than needed, as RFC 6455 demands of a
sender; `websockets` reads it. Of a message over CONTROL_BYTES_MAX, picows' type and reserved bits
are not looked at: what `websockets` ends the connection for (a continuation of nothing, a bit that
nobody agreed on) is handed over like any other message and judged by what is in it.
Limits: a message of more than MESSAGE_BYTES_MAX closes the connection (1009). Compression is not
offered: it costs 1.3 to 1.6 times the CPU and saves bytes nobody needs. Pings are answered.
Does not do: reconnecting, reading what is in a frame, clocks (the reader of time comes in).
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol
from weakref import WeakKeyDictionary

import picows
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as websockets_connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from marketdata.errors import TapeError

MESSAGE_BYTES_MAX: Final = 64 * 1024 * 1024
OPEN_TIMEOUT_S: Final = 10.0
CLOSE_TIMEOUT_S: Final = 2.0
QUEUED_MESSAGES_MAX: Final = 1024
"""Messages the reference transport may hold before it stops reading the socket."""
SLICE_FRAMES: Final = 1_024
"""Frames of one read handed over at a time. One read can bring megabytes on every connection at
once; the loop's other work (commits above all) must not wait for all of them."""
REFUSAL_TEXT_MAX: Final = 300
CONTROL_BYTES_MAX: Final = 125
"""A longer frame is no ping, pong or close (RFC 6455; picows refuses one)."""

NORMAL_CLOSE: Final = 1000
TOO_BIG: Final = 1009
PROTOCOL_ERROR: Final = 1002

OnFrames = Callable[[list[bytes], int], None]
"""Called with the messages of one wake-up and their receive stamp (ns UTC)."""


class UpgradeRefusedError(TapeError):
    """The exchange did not open the WebSocket. `status` is the HTTP status, 0 without one."""

    reason = "upgrade_refused"

    def __init__(self, message: str, *, status: int = 0, body: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.body = body


@dataclass(frozen=True, slots=True)
class Closed:
    """How a connection ended. `reason`: closed_by_us | closed_by_peer | reset | protocol."""

    reason: str
    code: int = 0
    text: str = ""


class Connection(Protocol):
    """One open WebSocket."""

    local: str
    """Local address as "host:port"."""

    def send(self, message: bytes) -> None:
        """Queue one text message."""

    def pause(self) -> None:
        """Stop reading the socket (the spool cannot be written)."""

    def resume(self) -> None:
        """Read on."""

    def close(self) -> None:
        """Say goodbye and end; `closed` tells when it is over."""

    def abort(self) -> None:
        """End at once."""

    async def closed(self) -> Closed:
        """Wait for the end and tell how it came. Every frame was delivered before."""


async def connect(
    kind: str,
    url: str,
    headers: Mapping[str, str],
    on_frames: OnFrames,
    wall_ns: Callable[[], int],
    *,
    ssl_context: ssl.SSLContext | None = None,
) -> Connection:
    """Open one WebSocket. Raises UpgradeRefusedError with the exchange's status and text.

    `ssl_context` is used for wss only; None means the system's trust store.
    """
    opener = {"websockets": _open_websockets, "picows": _open_picows}.get(kind)
    if opener is None:
        raise ValueError(f"unknown transport {kind!r}")
    context = None
    if url.startswith("wss:"):
        context = ssl_context or ssl.create_default_context()
    try:
        return await opener(url, headers, on_frames, wall_ns, context)
    except (OSError, TimeoutError) as error:
        raise UpgradeRefusedError(
            f"no connection to {url}: {type(error).__name__}: {error}"
        ) from error


# --- websockets, the reference


class _StampedConnection(ClientConnection):
    """Keeps when its bytes last came in; the reader stamps messages with it."""

    stamp_ns = 0
    read_clock: Callable[[], int]

    def data_received(self, data: bytes) -> None:
        self.stamp_ns = self.read_clock()
        super().data_received(data)


class WebsocketsTransport:
    """`websockets`' asyncio client read in a task of its own."""

    def __init__(self, socket: _StampedConnection, on_frames: OnFrames) -> None:
        self._socket = socket
        self._on_frames = on_frames
        self._ready: list[bytes] = []
        self._gate = asyncio.Event()
        self._gate.set()
        self._outbox: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._closing = False
        self.local = _address(socket.local_address)
        self._reader = self._loop.create_task(self._read())
        self._writer = self._loop.create_task(self._write())

    def send(self, message: bytes) -> None:
        self._outbox.put_nowait(message)

    def pause(self) -> None:
        self._gate.clear()

    def resume(self) -> None:
        self._gate.set()

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._gate.set()
            self._outbox.put_nowait(None)

    def abort(self) -> None:
        self._closing = True
        self._gate.set()
        self._socket.transport.abort()

    async def closed(self) -> Closed:
        try:
            return await asyncio.shield(self._reader)
        finally:
            if self._reader.done():
                self._writer.cancel()

    async def _read(self) -> Closed:
        """Read until the end. Messages that are there already are taken without a loop turn, so a
        burst becomes one batch."""
        socket = self._socket
        try:
            while True:
                message = await socket.recv(decode=False)
                if not self._ready:
                    self._loop.call_soon(self._hand_over)
                self._ready.append(message)
                if not self._gate.is_set():
                    await self._gate.wait()
        except ConnectionClosed as error:
            self._hand_over()
            return _closed_of(error, by_us=self._closing)

    def _hand_over(self) -> None:
        if self._ready:
            frames, self._ready = self._ready, []
            self._on_frames(frames, self._socket.stamp_ns)

    async def _write(self) -> None:
        try:
            while (message := await self._outbox.get()) is not None:
                await self._socket.send(message, text=True)
            await self._socket.close()
        except ConnectionClosed:
            return  # the reader tells how


def _closed_of(error: ConnectionClosed, *, by_us: bool) -> Closed:
    if by_us:
        return Closed("closed_by_us", NORMAL_CLOSE)
    if error.rcvd is not None and (error.sent is None or error.rcvd_then_sent):
        return Closed("closed_by_peer", error.rcvd.code, error.rcvd.reason)
    if error.sent is not None:
        return Closed("protocol", error.sent.code, error.sent.reason)
    return Closed("reset")


async def _open_websockets(
    url: str,
    headers: Mapping[str, str],
    on_frames: OnFrames,
    wall_ns: Callable[[], int],
    context: ssl.SSLContext | None,
) -> Connection:
    class Stamped(_StampedConnection):
        read_clock = staticmethod(wall_ns)

    try:
        socket = await websockets_connect(
            url,
            additional_headers=dict(headers),
            create_connection=Stamped,
            compression=None,
            max_size=MESSAGE_BYTES_MAX,
            max_queue=QUEUED_MESSAGES_MAX,
            open_timeout=OPEN_TIMEOUT_S,
            close_timeout=CLOSE_TIMEOUT_S,
            ping_interval=None,
            proxy=None,
            ssl=context,
            user_agent_header=None,
        )
    except InvalidStatus as error:
        body = (error.response.body or b"")[:REFUSAL_TEXT_MAX].decode("utf-8", "replace")
        status = error.response.status_code
        raise UpgradeRefusedError(
            f"upgrade refused with {status}: {body}", status=status, body=body
        ) from error
    except InvalidHandshake as error:
        raise UpgradeRefusedError(f"upgrade failed: {error}") from error
    assert isinstance(socket, _StampedConnection)
    return WebsocketsTransport(socket, on_frames)


# --- picows


_TEXT: Final = picows.WSMsgType.TEXT
_CLOSE: Final = picows.WSMsgType.CLOSE
_PING: Final = picows.WSMsgType.PING
_CONTINUATION: Final = picows.WSMsgType.CONTINUATION
_DATA: Final = frozenset({_TEXT, picows.WSMsgType.BINARY, _CONTINUATION})


class _Turns:
    """One slice a turn of the loop, whichever connection it is of: the loop's other work comes
    between any two. One for each loop."""

    def __init__(self) -> None:
        self._waiting: deque[_Listener] = deque()

    def wait(self, listener: _Listener) -> None:
        """Have `listener` hand over its next slice when those before it have."""
        self._waiting.append(listener)
        if len(self._waiting) == 1:
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        listener = self._waiting[0]
        try:
            listener.next_slice()
        finally:
            self._waiting.popleft()
            if self._waiting:
                asyncio.get_running_loop().call_soon(self._next)


_TURNS: WeakKeyDictionary[asyncio.AbstractEventLoop, _Turns] = WeakKeyDictionary()


class _Listener(picows.WSListener):
    """Gathers the messages of one read and hands them over with the read's last frame.

    More than SLICE_FRAMES are handed over slice by slice, and the socket is not read meanwhile.
    """

    def __init__(self, on_frames: OnFrames, wall_ns: Callable[[], int]) -> None:
        super().__init__()
        self._on_frames = on_frames
        self._wall_ns = wall_ns
        self._ready: list[bytes] = []
        self._stamp_ns = 0
        self._parts: list[bytes] = []
        self._parts_bytes = 0
        self._backlog: deque[tuple[list[bytes], int]] = deque()
        self._turns = _TURNS.setdefault(asyncio.get_running_loop(), _Turns())
        self._wire: Any = None
        self._is_paused = False
        self._is_over = False  # a goodbye or a fault came
        self._is_plain = True  # no goodbye, no fault, no half of a message came
        self.held = False  # the owner wants nothing read
        self.closing = False
        self.close_frame: Closed | None = None
        self.fault: Closed | None = None
        self.done: asyncio.Event = asyncio.Event()

    def on_ws_frame(self, transport: Any, frame: Any) -> None:
        # Once for each message. What nearly all of them are is told from three attributes: each
        # costs 0.03 to 0.1 us and the library's enum of types 0.2, of 1.0 for all of them.
        ready = self._ready
        if not ready:
            self._stamp_ns = self._wall_ns()
        if frame.payload_size > CONTROL_BYTES_MAX and self._is_plain and frame.fin:
            ready.append(frame.get_payload_as_bytes())
        elif not self._is_over:  # nothing counts after the goodbye
            self._unusual(transport, frame)
        if frame.last_in_buffer:
            self.hand_over()

    def _unusual(self, transport: Any, frame: Any) -> None:
        """A short message, a part of one, or a control frame."""
        kind = frame.msg_type
        if frame.rsv1 or frame.rsv2 or frame.rsv3:
            self._fail(transport, PROTOCOL_ERROR, "reserved bits set")
        elif kind is _TEXT and frame.fin and not self._parts:
            self._ready.append(frame.get_payload_as_bytes())
        elif kind in _DATA:
            self._fragment(transport, frame)
        elif kind is _PING:
            transport.send_pong(frame.get_payload_as_bytes())
        elif kind is _CLOSE:
            code = int(frame.get_close_code())
            self.close_frame = Closed("closed_by_peer", code, frame.get_close_reason() or "")
            self._is_over, self._is_plain = True, False
            transport.send_close(frame.get_close_code())
            transport.disconnect()

    def on_ws_connected(self, transport: Any) -> None:
        self._wire = transport.underlying_transport

    def hand_over(self) -> None:
        """Give what is ready; a fault before the read's last frame must not hold it back."""
        if not self._ready:
            return
        frames, self._ready, stamp_ns = self._ready, [], self._stamp_ns
        if len(frames) <= SLICE_FRAMES and not self._backlog:
            self._on_frames(frames, stamp_ns)
            return
        is_first = not self._backlog
        for begin in range(0, len(frames), SLICE_FRAMES):
            self._backlog.append((frames[begin : begin + SLICE_FRAMES], stamp_ns))
        if is_first:
            self.steer()
            self._turns.wait(self)

    def next_slice(self) -> None:
        """Hand one slice over; come again for the next one."""
        if not self._backlog:
            return  # the connection ended meanwhile, and with it everything was handed over
        self._on_frames(*self._backlog.popleft())
        if self._backlog:
            self._turns.wait(self)
        else:
            self.steer()

    def steer(self) -> None:
        """Read the socket, or not: not while the owner says so or slices wait."""
        pause = self.held or bool(self._backlog)
        if self._wire is not None and pause != self._is_paused:
            self._is_paused = pause
            (self._wire.pause_reading if pause else self._wire.resume_reading)()

    def on_ws_disconnected(self, transport: Any) -> None:  # noqa: ARG002 (the library's signature)
        self._wire = None  # it refuses to be paused any more
        self.hand_over()
        while self._backlog:
            self._on_frames(*self._backlog.popleft())
        self.done.set()

    def _fragment(self, transport: Any, frame: Any) -> None:
        """A part of a message, or a whole binary one."""
        begins = frame.msg_type is not _CONTINUATION
        if begins == bool(self._parts):
            self._fail(transport, PROTOCOL_ERROR, "fragment out of order")
            return
        self._is_plain = False
        self._parts.append(frame.get_payload_as_bytes())
        self._parts_bytes += len(self._parts[-1])
        if self._parts_bytes > MESSAGE_BYTES_MAX:
            self._fail(transport, TOO_BIG, "message too big")
        elif frame.fin:
            self._ready.append(b"".join(self._parts))
            self._parts.clear()
            self._parts_bytes = 0
            self._is_plain = True

    def _fail(self, transport: Any, code: int, text: str) -> None:
        self.fault = Closed("protocol", code, text)
        self._is_over, self._is_plain = True, False
        transport.send_close(picows.WSCloseCode(code))
        transport.disconnect()


class PicowsTransport:
    """`picows`: a callback for each frame, straight from the read."""

    def __init__(self, transport: Any, listener: _Listener) -> None:
        self._transport = transport
        self._listener = listener
        self.local = _address(transport.underlying_transport.get_extra_info("sockname"))
        self._deadline: asyncio.TimerHandle | None = None

    def send(self, message: bytes) -> None:
        self._transport.send(picows.WSMsgType.TEXT, message)

    def pause(self) -> None:
        self._listener.held = True
        self._listener.steer()

    def resume(self) -> None:
        self._listener.held = False
        self._listener.steer()

    def close(self) -> None:
        if not self._listener.closing:
            self._listener.closing = True
            self._transport.send_close(picows.WSCloseCode.OK)
            loop = asyncio.get_running_loop()
            self._deadline = loop.call_later(CLOSE_TIMEOUT_S, self._transport.disconnect, False)  # noqa: FBT003

    def abort(self) -> None:
        self._listener.closing = True
        self._transport.disconnect(graceful=False)

    async def closed(self) -> Closed:
        violation = ""
        try:
            await self._transport.wait_disconnected()
        except picows.WSProtocolError as error:
            violation = str(error) or "protocol violation"
        await self._listener.done.wait()
        if self._deadline is not None:
            self._deadline.cancel()
        listener = self._listener
        if listener.closing:
            return Closed("closed_by_us", NORMAL_CLOSE)
        if listener.fault is not None:
            return listener.fault
        if violation:
            return Closed("protocol", PROTOCOL_ERROR, violation)
        return listener.close_frame or Closed("reset")


async def _open_picows(
    url: str,
    headers: Mapping[str, str],
    on_frames: OnFrames,
    wall_ns: Callable[[], int],
    context: ssl.SSLContext | None,
) -> Connection:
    try:
        listener = _Listener(on_frames, wall_ns)
        transport, _ = await picows.ws_connect(
            lambda: listener,
            url,
            ssl_context=context,
            extra_headers=dict(headers),
            websocket_handshake_timeout=OPEN_TIMEOUT_S,
            max_frame_size=MESSAGE_BYTES_MAX,
            max_redirects=0,
            enable_auto_ping=False,
            # A ping that the library answers is not told to the listener, and it may be the read's
            # last frame: the messages before it would wait for the next read.
            enable_auto_pong=False,
        )
    except picows.WSHandshakeError as error:
        body = (error.raw_body or b"")[:REFUSAL_TEXT_MAX].decode("utf-8", "replace")
        status = 0 if error.response is None else int(error.response.status)
        raise UpgradeRefusedError(
            f"upgrade refused with {status}: {body}", status=status, body=body
        ) from error
    return PicowsTransport(transport, listener)


def _address(sockname: Any) -> str:
    return f"{sockname[0]}:{sockname[1]}" if isinstance(sockname, tuple) else str(sockname)
