"""Rounds over all subscribed order books by REST: a witness that shares nothing with the frames.

Purpose: ask for the books, 100 at a time, look at ours around each request, and tell what differs:
a row, a counter, a line of /health, and the feed asks for a snapshot.
What holds:
- At most `share` of the request budget is used: a request is begun each 1 / (share * rate) seconds,
  tried once, and AT_ONCE_MAX are on their way.
- Our books are looked at only around a request, never for each frame.
- A difference makes one request for a snapshot, until the book agrees again: what REST has wrong
  must not make the exchange send the same book for ever.
Does not do: verdicts (marketdata.rest_books), writing rows (side_rows), repair (session).
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from gatherer.feed import FeedConnection
from gatherer.intake import LiveIntake
from gatherer.rest import RestClient, RestError
from gatherer.side_rows import SideRows
from marketdata.errors import WireError
from marketdata.rest_books import (
    AuditVerdict,
    Doubts,
    Look,
    books_page,
    entries_of,
    requests_of,
)
from runtime import logs
from runtime.clock import Clock

LOOKS_AFTER_MS: Final = (0, 100, 400, 1_500)
"""After the answer, each from the one before: frames may bring later what REST had already."""
AGAIN_AFTER_NS: Final = 5_000_000_000
"""Between the two audits that make a difference."""
AT_ONCE_MAX: Final = 4
SLICE_BOOKS: Final = 5
"""Hashed between two turns of the event loop: 2 ms at 99 levels a side."""
POLL_S: Final = 0.25
TOLD_MAX: Final = 5

_AUDIT: Final = "INSERT INTO rest_audit VALUES ($1, $2, $3, $4, $5)"
_DIFFERENCE: Final = (
    "INSERT INTO rest_difference VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING"
)
_SIGN: Final = 1 << 63
_WRAP: Final = 1 << 64

log = logs.get("audit")


@dataclass(frozen=True, slots=True)
class AuditSettings:
    """`interval_s`: a round begins at most so often. `share` 0: no audits."""

    share: float
    rate_per_s: float
    interval_s: int

    @property
    def request_s(self) -> float:
        """Between the beginnings of two requests."""
        return 1 / (self.share * self.rate_per_s)


@dataclass(slots=True)
class AuditStatus:
    """What it says about itself, of this process."""

    rounds: int = 0
    requests: int = 0
    failed: int = 0
    problems: int = 0  # books of answers that could not be read
    verdicts: Counter[AuditVerdict] = field(default_factory=Counter)
    differences: int = 0
    snapshots_asked: int = 0
    reason: str = ""


@dataclass(slots=True)
class _Asked:
    """One request: its books, by feed, and what ours were at each look."""

    tickers: tuple[str, ...]
    looks: dict[str, list[Look | None]]
    sent_ns: int = 0
    received_ns: int = 0


class RestAudit:
    """See the module's text."""

    def __init__(
        self,
        settings: AuditSettings,
        rest: RestClient,
        intake: LiveIntake,
        feeds: Mapping[str, FeedConnection],
        rows: SideRows,
        clock: Clock,
    ) -> None:
        self.status = AuditStatus()
        self.doubts = Doubts()
        self._settings = settings
        self._rest = rest
        self._intake = intake
        self._feeds = feeds
        self._rows = rows
        self._clock = clock
        self._queue: deque[tuple[str, ...]] = deque()
        self._round_due_ns = 0
        self._feed_of: dict[str, str] = {}  # of this round
        self._under_way: set[str] = set()

    async def run(self) -> None:
        """Audit until cancelled."""
        if not self._settings.share:
            await asyncio.Event().wait()
        slots = asyncio.Semaphore(AT_ONCE_MAX)
        async with asyncio.TaskGroup() as group:
            while True:
                await self._rows.room()
                tickers = self._next()
                if not tickers:
                    await asyncio.sleep(POLL_S)
                    continue
                await slots.acquire()
                self._under_way |= set(tickers)
                group.create_task(self._one(tickers, slots))
                await asyncio.sleep(self._settings.request_s)

    async def _one(self, tickers: tuple[str, ...], slots: asyncio.Semaphore) -> None:
        try:
            await self.audit(tickers)
        finally:
            self._under_way -= set(tickers)
            slots.release()

    def told(self) -> str:
        """The line of /health; empty where nothing differs."""
        differing = sorted(self.doubts.differing)
        if not differing:
            return ""
        more = ", ..." if len(differing) > TOLD_MAX else ""
        names = ", ".join(differing[:TOLD_MAX])
        return f"{len(differing)} books differ from REST's: {names}{more}"

    # --- what to ask for

    def _next(self) -> tuple[str, ...]:
        """The books of the next request: suspects whose time has come, else on with the round."""
        now_ns = self._clock.monotonic_ns()
        due = self.doubts.due(now_ns, AGAIN_AFTER_NS)
        again = [t for t in due if t not in self._under_way and t in self._feed_of]
        if again:
            return requests_of(again)[0]
        if not self._queue and now_ns >= self._round_due_ns:
            self._begin_round(now_ns)
        return self._queue.popleft() if self._queue else ()

    def _begin_round(self, now_ns: int) -> None:
        self._feed_of = {
            ticker: feed.name
            for feed in self._feeds.values()
            if feed.status.state == "open"
            for ticker in sorted(feed.session.subscribed)
        }
        self.doubts.keep(self._feed_of)
        self._queue.extend(requests_of(list(self._feed_of)))
        if self._queue:
            self.status.rounds += 1
            self._round_due_ns = now_ns + self._settings.interval_s * 1_000_000_000

    # --- one request

    async def audit(self, tickers: tuple[str, ...]) -> None:
        """Ask for these books once, and judge them."""
        asked = _Asked(tickers, {ticker: [] for ticker in tickers})

        def sent() -> None:
            asked.sent_ns = self._clock.wall_ns()
            self._look(asked, tickers)

        self.status.requests += 1
        try:
            query = {"tickers": list(tickers)}
            body = await self._rest.get("/markets/orderbooks", query, tries=1, on_send=sent)
            asked.received_ns = self._clock.wall_ns()
            self._look(asked, tickers)
            entries = entries_of(body)
        except (RestError, WireError) as error:
            self.status.failed += 1
            self.status.reason = str(error)
            return
        self.status.reason = ""
        hashes: dict[str, int] = {}
        for at in range(0, len(entries), SLICE_BOOKS):
            problems = books_page(entries[at : at + SLICE_BOOKS], hashes)
            self.status.problems += len(problems)
            await asyncio.sleep(0)
        await self._look_later(asked, hashes)
        self._judge(asked, hashes)

    async def _look_later(self, asked: _Asked, hashes: Mapping[str, int]) -> None:
        """Look again at the books that have not agreed yet, a bounded number of times."""
        for wait_ms in LOOKS_AFTER_MS:
            open_now = [
                ticker
                for ticker, looks in asked.looks.items()
                if ticker in hashes
                and all(look is None or look.book_hash != hashes[ticker] for look in looks)
            ]
            if not open_now:
                return
            await asyncio.sleep(wait_ms / 1000)
            self._look(asked, open_now)

    def _look(self, asked: _Asked, tickers: Sequence[str]) -> None:
        by_feed: dict[str, list[str]] = {}
        for ticker in tickers:
            by_feed.setdefault(self._feed_of.get(ticker, ""), []).append(ticker)
        for name, mine in by_feed.items():
            feed = self._feeds.get(name)
            conn_id = feed.status.conn_id if feed is not None else 0
            for ticker, look in zip(mine, self._intake.looks(conn_id, mine), strict=True):
                asked.looks[ticker].append(look)

    def _judge(self, asked: _Asked, hashes: Mapping[str, int]) -> None:
        now_ns = self._clock.monotonic_ns()
        verdicts = []
        fresh: dict[str, list[str]] = {}
        for ticker in asked.tickers:
            looks, known = asked.looks[ticker], ticker in self.doubts.differing
            verdict = self.doubts.note(ticker, hashes.get(ticker), looks, now_ns)
            verdicts.append(verdict)
            look = looks[-1]
            if verdict is AuditVerdict.DIFFERS and not known and look is not None:
                fresh.setdefault(self._feed_of.get(ticker, ""), []).append(ticker)
                self._differs(asked, ticker, hashes[ticker], look)
        self.status.verdicts.update(verdicts)
        self._rows.put(
            _AUDIT,
            asked.sent_ns,
            asked.received_ns,
            list(asked.tickers),
            [_signed(hashes.get(ticker, 0)) for ticker in asked.tickers],
            [int(verdict) for verdict in verdicts],
        )
        for name, tickers in fresh.items():
            feed = self._feeds.get(name)
            if feed is not None:
                self.status.snapshots_asked += len(tickers)
                feed.ask_snapshots(tickers)

    def _differs(self, asked: _Asked, ticker: str, rest_hash: int, look: Look) -> None:
        self.status.differences += 1
        log.error("a book differs from REST's", market=ticker, run_id=look.run_id)
        self._rows.put(
            _DIFFERENCE,
            ticker,
            asked.sent_ns,
            asked.received_ns,
            _signed(rest_hash),
            _signed(look.book_hash),
            look.run_id,
            look.last_us,
        )


def _signed(bits: int) -> int:
    """An unsigned 64-bit value as the int64 with the same bits."""
    return bits - _WRAP if bits >= _SIGN else bits
