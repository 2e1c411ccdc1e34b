"""One connection to the exchange, for ever: a socket around `marketdata.session`.

Purpose: connect with a fresh signature, hand every frame to the intake (spool first), carry out
what the session says, reconnect with capped full jitter when it ends, whatever ended it.
Invariants:
- No frame is interpreted before it is in the spool's buffer; reading pauses only while the spool
  cannot be written, because what we do not read the exchange drops (error 25).
- The session is told about gaps by continuity, so that both count by the same numbers.
- A fault of our own code while a frame is handled ends the process, not just the connection: the
  spool has the frame.
Does not do: deciding (session), choosing markets (plan, discovery), rows (intake).
"""

from __future__ import annotations

import asyncio
import random
import ssl
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

import orjson
from structlog.typing import FilteringBoundLogger

from gatherer.auth import Signer, handshake_of, refusal_hint
from gatherer.intake import Absorbed, LiveIntake
from gatherer.transport import Closed, Connection, UpgradeRefusedError, connect
from marketdata import events, stagger
from marketdata.session import (
    BOOK_CHANNEL,
    Effect,
    Reconnect,
    Report,
    ReportKind,
    SendCommand,
    Session,
    SessionSettings,
)
from runtime import logs
from runtime.clock import Clock
from runtime.spool import SpoolWriter

STEADY_NS: Final = 30_000_000_000
"""A connection that lived this long makes the back-off begin anew."""
TICKERS_TOLD_MAX: Final = 50
NS_PER_MS: Final = 1_000_000
DOUBLINGS_MAX: Final = 30
KEY_REFUSED: Final = frozenset({401, 403})

log = logs.get("feed")


@dataclass(frozen=True, slots=True)
class FeedSettings:
    """Where and how to connect."""

    url: str
    transport: str = "websockets"
    reconnect_base_ms: int = 250
    reconnect_cap_ms: int = 30_000
    ssl_context: ssl.SSLContext | None = None
    gatherer: str = ""  # its name, for its part of a wait (marketdata.stagger)


@dataclass(slots=True)
class FeedStatus:
    """What a connection says about itself."""

    state: str = "connecting"  # connecting | open | refused | closed
    reason: str = ""
    conn_id: int = 0
    connects: int = 0
    wanted: int = 0
    frames: int = 0
    frame_bytes: int = 0
    last_frame_ns: int = 0  # wall clock
    refusals: dict[int, int] = field(default_factory=dict)  # HTTP status, 0: no answer
    snapshot_requests: int = 0
    closes: dict[str, int] = field(default_factory=dict)


class FeedConnection:
    """One connection and its successors. `name` is for people: "books-0", "trade"."""

    def __init__(
        self,
        name: str,
        settings: FeedSettings,
        session: SessionSettings,
        signer: Signer,
        spool: SpoolWriter,
        intake: LiveIntake,
        clock: Clock,
        *,
        on_event: Callable[[events.Decoded], None] | None = None,
        on_report: Callable[[str, Report], None] | None = None,
    ) -> None:
        self.name = name
        self.status = FeedStatus()
        self._settings = settings
        self._session = Session(session)
        self._signer = signer
        self._spool = spool
        self._intake = intake
        self._clock = clock
        self._on_event = on_event
        self._on_report = on_report
        self._rng = random.Random()  # noqa: S311 - jitter is no secret
        self._stopping = asyncio.Event()
        self._connection: Connection | None = None
        self._early: list[tuple[list[bytes], int]] = []
        self._close_reason = ""
        self._fault: BaseException | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due_ns = 0
        self._resuming: asyncio.Task[None] | None = None

    @property
    def _log(self) -> FilteringBoundLogger:
        """Says the feed, and the connection where there is one."""
        of_feed: FilteringBoundLogger = log.bind(feed=self.name)
        return of_feed.bind(conn_id=self.status.conn_id) if self.status.conn_id else of_feed

    @property
    def session(self) -> Session:
        """For status: how many books are subscribed and waited for."""
        return self._session

    def want(self, tickers: Iterable[str]) -> None:
        """The whole set of order books this connection shall carry from now on."""
        self._carry_out(self._session.want(tickers, self._clock.monotonic_ns()))
        self.status.wanted = self._session.n_wanted

    def change(self, add: Iterable[str], drop: Iterable[str]) -> None:
        """Order books that join this connection and that leave it."""
        self._carry_out(self._session.change(add, drop, self._clock.monotonic_ns()))
        self.status.wanted = self._session.n_wanted

    def renew(self, tickers: Iterable[str]) -> None:
        """Ask for fresh snapshots of books whose stored rows have a hole that the wire had not."""
        sid = self._session.sid_of(BOOK_CHANNEL)
        mine = self._session.subscribed.intersection(tickers)
        if sid is not None and mine:
            self._carry_out(self._session.on_gap(sid, self._clock.monotonic_ns(), sorted(mine)))

    def ask_snapshots(self, tickers: Iterable[str]) -> None:
        """Have these books sent again: their audit by REST failed."""
        self._carry_out(self._session.ask(tickers, self._clock.monotonic_ns()))

    async def run(self) -> None:
        """Connect, and again, until `stop`."""
        attempt = 0
        while not self._stopping.is_set():
            await self._spool.room()
            began_ns = self._clock.monotonic_ns()
            try:
                await self._live_once()
            except UpgradeRefusedError as error:
                self._refused(error)
            if self._fault is not None:
                raise self._fault
            if self._clock.monotonic_ns() - began_ns > STEADY_NS:
                attempt = 0
            await self._pause(attempt)
            attempt += 1
        self.status.state = "closed"

    async def stop(self) -> None:
        """Say goodbye; `run` returns after the close record is written."""
        self._stopping.set()
        self._session.close()
        if self._connection is not None:
            self._connection.close()

    async def _pause(self, attempt: int) -> None:
        """Capped full jitter within the gatherer's own part of the span, cut short by `stop`."""
        settings = self._settings
        span_ms = settings.reconnect_base_ms << min(attempt, DOUBLINGS_MAX)
        span_ns = min(settings.reconnect_cap_ms, span_ms) * NS_PER_MS
        wait_ns = stagger.in_slot(self._rng.randrange(span_ns + 1), span_ns, settings.gatherer)
        try:
            async with asyncio.timeout(wait_ns / 1e9):
                await self._stopping.wait()
        except TimeoutError:
            return

    def _refused(self, error: UpgradeRefusedError) -> None:
        is_key = error.status in KEY_REFUSED
        self.status.state = "refused" if is_key else "connecting"
        hint = f"; {refusal_hint(self._signer, error.body)}" if is_key else ""
        self.status.reason = f"{error}{hint}"
        refusals = self.status.refusals
        refusals[error.status] = refusals.get(error.status, 0) + 1
        self._log.warning("connect failed", status=error.status, error=str(error))

    async def _live_once(self) -> None:
        """One connection from the upgrade to its close record."""
        headers = self._signer.headers("GET", self._settings.url, self._clock.wall_ns())
        self._early, self._close_reason = [], ""
        self.status.conn_id = 0
        connection = await connect(
            self._settings.transport,
            self._settings.url,
            headers,
            self._on_frames,
            self._clock.wall_ns,
            ssl_context=self._settings.ssl_context,
        )
        self._connection = connection
        self._opened(connection, handshake_of(headers))
        if self._stopping.is_set():
            connection.close()
        try:
            closed = await connection.closed()
        finally:
            self._connection = None
            self._cancel_timer()
        self._over(closed)

    def _opened(self, connection: Connection, handshake: str) -> None:
        conn_id = self._intake.next_conn_id()
        self._intake.control(
            {
                "k": "connect",
                "conn": conn_id,
                "conn_uid": str(uuid.uuid4()),
                "handshake": handshake,
                "local": connection.local,
                "url": self._settings.url,
                "feed": self.name,
            },
            self._clock.wall_ns(),
        )
        status = self.status
        status.conn_id, status.state, status.reason = conn_id, "open", ""
        status.connects += 1
        self._log.info("connected", handshake=handshake)
        self._carry_out(self._session.on_open(self._clock.monotonic_ns()))
        early, self._early = self._early, []
        for frames, stamp_ns in early:
            self._on_frames(frames, stamp_ns)

    def _over(self, closed: Closed) -> None:
        self._session.on_closed()
        reason = self._close_reason or closed.reason
        self._intake.control(
            {
                "k": "close",
                "conn": self.status.conn_id,
                "reason": reason,
                "code": closed.code,
                "text": closed.text,
            },
            self._clock.wall_ns(),
        )
        self.status.state, self.status.reason = "connecting", f"last connection ended: {reason}"
        self.status.closes[reason] = self.status.closes.get(reason, 0) + 1
        self._log.info("closed", reason=reason, code=closed.code, text=closed.text)

    # --- frames

    def _on_frames(self, frames: list[bytes], stamp_ns: int) -> None:
        """The transport's callback: everything that one wake-up brought."""
        if not self.status.conn_id:
            self._early.append((frames, stamp_ns))
            return
        if self._fault is not None:
            return
        try:
            absorbed = self._intake.absorb(self.status.conn_id, frames, stamp_ns)
            self._react(absorbed)
        except Exception as error:  # noqa: BLE001 - `run` raises it: a callback has no caller
            self._fault = error
            if self._connection is not None:
                self._connection.abort()
            return
        self.status.frames += len(frames)
        self.status.frame_bytes += absorbed.n_bytes
        self.status.last_frame_ns = stamp_ns
        if self._spool.full and self._resuming is None and self._connection is not None:
            self._connection.pause()
            self._resuming = asyncio.create_task(self._resume(self._connection))

    def _react(self, absorbed: Absorbed) -> None:
        now_ns = self._clock.monotonic_ns()
        session = self._session
        session.on_frames(now_ns)
        # A gap may come in the wake-up that brought the `subscribed` of its sid: the session has to
        # know the sid first. Other events after it: they carry their numbers.
        for event in absorbed.notable:
            if isinstance(event, events.Subscribed):
                self._carry_out(session.on_event(event, now_ns))
        for gap in absorbed.gaps:
            self._carry_out(session.on_gap(gap.sid, now_ns, gap.tickers or None, gap.seq))
        for event in absorbed.notable:
            if not isinstance(event, events.Subscribed):
                self._carry_out(session.on_event(event, now_ns))
            if self._on_event is not None:
                self._on_event(event)

    async def _resume(self, connection: Connection) -> None:
        self._log.warning("spool is full: reading pauses", problem=self._spool.problem)
        await self._spool.room()
        connection.resume()
        self._resuming = None
        self._log.info("spool has room: reading resumes")

    # --- what the session wants

    def _carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, SendCommand):
                self._send(effect)
            elif isinstance(effect, Reconnect):
                self._reconnect(effect.reason)
            else:
                self._report(effect)
        self._arm_timer()

    def _send(self, command: SendCommand) -> None:
        """The command is in the spool before it is on the wire: its reply needs it."""
        connection = self._connection
        if connection is None:
            return
        self._intake.control(
            {
                "k": "subscribe",
                "conn": self.status.conn_id,
                "command": orjson.loads(command.payload),
            },
            self._clock.wall_ns(),
        )
        self.status.snapshot_requests += command.kind == "snapshot"
        connection.send(command.payload)

    def _reconnect(self, reason: str) -> None:
        self._close_reason = reason
        self._log.warning("giving the connection up", reason=reason)
        if self._connection is not None:
            self._connection.abort()

    def _report(self, report: Report) -> None:
        if report.kind in (ReportKind.MARKETS_REFUSED, ReportKind.CHANNEL_REFUSED):
            detail = {
                "channel": report.channel,
                "tickers": list(report.tickers[:TICKERS_TOLD_MAX]),
                "code": report.code,
                "message": report.message,
            }
            self._intake.control(
                {
                    "k": "error",
                    "conn": self.status.conn_id,
                    "reason": report.kind.value,
                    "detail": detail,
                },
                self._clock.wall_ns(),
            )
        # A probe of a quiet feed is no news: where no frames come, there is one each half minute.
        say = self._log.debug if report.kind is ReportKind.STALL else self._log.info
        say(
            "session",
            kind=report.kind.value,
            channel=report.channel,
            markets=len(report.tickers),
            code=report.code,
            message=report.message,
        )
        if self._on_report is not None:
            self._on_report(self.name, report)

    # --- the session's clock

    def _arm_timer(self) -> None:
        """Have `on_timer` called when the session is due; a timer set for earlier is kept."""
        due_ns = self._session.next_due()
        if due_ns is None or self._connection is None:
            return
        if self._timer is not None:
            if self._timer_due_ns <= due_ns:
                return
            self._timer.cancel()
        self._timer_due_ns = due_ns
        delay_s = max(0, due_ns - self._clock.monotonic_ns()) / 1e9
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._carry_out(self._session.on_timer(self._clock.monotonic_ns()))

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
