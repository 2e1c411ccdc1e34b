"""Which markets exist: REST rounds and lifecycle frames in, subscriptions and history rows out.

Purpose: find every open market, give it to the plan and its connection, and keep what the exchange
says about markets, events and series in the second database, one row for each distinct content.
Invariants:
- A market once placed stays subscribed until the exchange has called it settled, and then for
  SETTLED_HOLD_NS more: closing frames come late.
- A history row is written when the content differs from the newest one, prices and volumes
  left out.
- The exchange or the database being away delays metadata; it never stops recording.
Does not do: sockets, books, deciding who carries what (plan).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import asyncpg

from gatherer.rest import RestClient, RestError
from marketdata import events, rest_bodies
from marketdata.errors import StorageError, WireError
from marketdata.plan import Changes, MarketRef, Plan
from runtime import logs
from runtime.clock import Clock
from runtime.postgres import TRANSIENT, Connection, backoff_s, connect, migrate

MARKETS_PAGE: Final = 1000
EVENTS_PAGE: Final = 200
PENDING_ROWS_MAX: Final = 500_000
"""History rows waiting for the second database; past it a round's rows are left to the next one."""
FIRST_ROUND_RETRY_S: Final = 0.25
SETTLED_HOLD_NS: Final = 600_000_000_000
SETTLED: Final = frozenset({"finalized"})

VOLATILE: Final = frozenset(
    {
        "yes_bid", "yes_ask", "no_bid", "no_ask", "last_price", "previous_yes_bid",
        "previous_yes_ask", "previous_price", "volume", "volume_24h", "open_interest", "liquidity",
        "yes_bid_dollars", "yes_ask_dollars", "no_bid_dollars", "no_ask_dollars",
        "last_price_dollars", "previous_yes_bid_dollars", "previous_yes_ask_dollars",
        "previous_price_dollars", "volume_fp", "volume_24h_fp", "open_interest_fp",
        "liquidity_dollars", "yes_bid_size_fp", "yes_ask_size_fp", "markets", "dollar_volume",
        "dollar_open_interest",
    }
)  # fmt: skip
"""Fields that change with every trade: not part of what a market is."""

_INSERT: Final = {
    "market": (
        "INSERT INTO market_history (ticker, valid_from_ns, content_hash, status, body)"
        " VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING"
    ),
    "event": (
        "INSERT INTO event_history (event_ticker, valid_from_ns, content_hash, body)"
        " VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING"
    ),
    "series": (
        "INSERT INTO series_history (series_ticker, valid_from_ns, content_hash, body)"
        " VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING"
    ),
}
_NEWEST: Final = {
    "market": "SELECT DISTINCT ON (ticker) ticker, content_hash FROM market_history"
    " ORDER BY ticker, valid_from_ns DESC",
    "event": "SELECT DISTINCT ON (event_ticker) event_ticker, content_hash FROM event_history"
    " ORDER BY event_ticker, valid_from_ns DESC",
    "series": "SELECT DISTINCT ON (series_ticker) series_ticker, content_hash FROM series_history"
    " ORDER BY series_ticker, valid_from_ns DESC",
}

log = logs.get("discovery")


@dataclass(frozen=True, slots=True)
class HistoryRow:
    """One distinct content of a market, event or series."""

    kind: str
    name: str
    seen_ns: int
    content_hash: bytes
    status: str
    body: str


def history_row(
    kind: str, name: str, status: str, body: dict[str, Any], seen_ns: int
) -> HistoryRow:
    """The row of a REST body without its volatile fields."""
    kept = {key: value for key, value in body.items() if key not in VOLATILE}
    text = rest_bodies.canonical_json(kept)
    return HistoryRow(kind, name, seen_ns, hashlib.sha256(text).digest(), status, text.decode())


class History:
    """The second database: writes what is new, remembers what is there. Patient."""

    def __init__(self, dsn: str, *, on_state: Callable[[str], None] | None = None) -> None:
        self._dsn = dsn
        self._on_state = on_state
        self._newest: dict[tuple[str, str], bytes] = {}
        self._pending: dict[tuple[str, str], HistoryRow] = {}
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self.rows_written = 0
        self.rows_left_out = 0

    @property
    def pending(self) -> int:
        """Rows not yet in the database."""
        return len(self._pending)

    def offer(self, row: HistoryRow) -> None:
        """Have a row written if its content is new. The newest of a name counts."""
        key = (row.kind, row.name)
        if self._newest.get(key) == row.content_hash:
            self._pending.pop(key, None)
            return
        if key not in self._pending and len(self._pending) >= PENDING_ROWS_MAX:
            self.rows_left_out += 1  # the next round offers it again
            return
        self._pending[key] = row
        self._wake.set()

    async def run(self) -> None:
        """Write pending rows until `stop`. A database that refuses is told and tried again: it must
        never end the recording."""
        attempt = 0
        while not self._stopping.is_set():
            try:
                await self._write_on()
            except (StorageError, asyncpg.PostgresError, *TRANSIENT) as error:
                self._note(f"{type(error).__name__}: {error}")
            else:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(backoff_s(attempt)):
                    await self._stopping.wait()
            attempt += 1

    async def _write_on(self) -> None:
        """One connection, as long as it lasts or until `stop`."""
        connection = await connect(self._dsn, on_retry=self._note)
        try:
            await migrate(connection, "gatherer_meta")
            await self._remember(connection)
            self._note("")
            while not self._stopping.is_set():
                await self._write(connection)
                await self._wake.wait()
            await self._write(connection)
        finally:
            connection.terminate()

    async def stop(self) -> None:
        """Have `run` write what is pending and return; not if the database is away."""
        self._stopping.set()
        self._wake.set()

    async def _remember(self, connection: Connection) -> None:
        for kind, query in _NEWEST.items():
            for name, content_hash in await connection.fetch(query):
                self._newest[(kind, name)] = content_hash

    async def _write(self, connection: Connection) -> None:
        self._wake.clear()
        rows = [
            row for key, row in self._pending.items() if self._newest.get(key) != row.content_hash
        ]
        async with connection.transaction():
            for kind, insert in _INSERT.items():
                values = [
                    (
                        r.name,
                        r.seen_ns,
                        r.content_hash,
                        *([r.status] if kind == "market" else []),
                        r.body,
                    )
                    for r in rows
                    if r.kind == kind
                ]
                if values:
                    await connection.executemany(insert, values)
        for row in rows:
            self._newest[(row.kind, row.name)] = row.content_hash
        self._pending = {
            key: row
            for key, row in self._pending.items()
            if self._newest.get(key) != row.content_hash
        }
        self.rows_written += len(rows)

    def _note(self, told: str) -> None:
        if self._on_state is not None:
            self._on_state(told)


class Discovery:
    """Rounds over the exchange's lists; tells `on_changes` what the plan has changed."""

    def __init__(
        self,
        rest: RestClient,
        plan: Plan,
        history: History,
        clock: Clock,
        *,
        interval_s: float,
        on_changes: Callable[[Changes], None],
        series: Iterable[str] = (),
    ) -> None:
        """`series`: whose order books are recorded; empty: every market's."""
        self._rest = rest
        self._plan = plan
        self._history = history
        self._clock = clock
        self._interval_s = interval_s
        self._on_changes = on_changes
        self._series = frozenset(series)
        self._nudged = asyncio.Event()
        self._settled_ns: dict[str, int] = {}
        self.rounds = 0
        self.reason = "no round yet"
        self.markets = 0
        self.problems = 0

    def on_event(self, event: events.Decoded) -> None:
        """A lifecycle frame: a created market is subscribed at once, REST may not know it yet."""
        if not isinstance(event, events.MarketLifecycle) or event.is_multivariate:
            return
        if event.event_type in ("created", "activated"):
            metadata = event.body.get("additional_metadata") or {}
            parent = metadata.get("event_ticker") if isinstance(metadata, dict) else None
            market = MarketRef(event.market, str(parent or event.market))
            if not self._series or series_of(market.event) in self._series:
                self._place([market])
            self._nudged.set()
        elif event.event_type == "settled":
            self._settled_ns.setdefault(event.market, self._clock.monotonic_ns())
        else:
            self._nudged.set()

    async def run(self) -> None:
        """Rounds for ever; the first one is repeated quickly until it works."""
        while True:
            wait_s = self._interval_s
            try:
                await self._round()
            except (RestError, WireError) as error:
                self.reason = str(error)
                log.warning("discovery round failed", error=str(error))
                if not self.rounds:
                    wait_s = FIRST_ROUND_RETRY_S
            self._forget_settled()
            self._nudged.clear()
            await self._wait(wait_s)

    async def _wait(self, wait_s: float) -> None:
        """The interval; after a lifecycle frame a tenth of it, so that a burst makes one round."""
        try:
            async with asyncio.timeout(wait_s):
                await self._nudged.wait()
                await asyncio.sleep(wait_s / 10)
        except TimeoutError:
            return

    async def _round(self) -> None:
        """One look at all open markets, then at their events and series."""
        found = 0
        for chosen in sorted(self._series) or [""]:
            query: dict[str, str | int] = {
                "limit": MARKETS_PAGE,
                "status": "open",
                "mve_filter": "exclude",
            }
            found += await self._markets_round({**query, **_one_series(chosen)})
        self.markets = found
        self.rounds += 1
        self.reason = ""
        for chosen in sorted(self._series) or [""]:
            await self._describe_events(_one_series(chosen))

    async def _markets_round(self, query: dict[str, str | int]) -> int:
        """Place and describe every market of a query; how many there were."""
        found = 0
        async for body in self._rest.pages("/markets", "markets", query):
            page = rest_bodies.markets_page({"markets": body})
            self._note_problems(page.problems)
            found += len(page.items)
            seen_ns = self._clock.wall_ns()
            for market in page.items:
                row = history_row("market", market.ticker, market.status, market.body, seen_ns)
                self._history.offer(row)
            self._place(MarketRef(m.ticker, m.event_ticker) for m in page.items)
        return found

    async def _describe_events(self, chosen: dict[str, str | int]) -> None:
        series: set[str] = set()
        query: dict[str, str | int] = {"limit": EVENTS_PAGE, "status": "open", **chosen}
        async for body in self._rest.pages("/events", "events", query):
            page = rest_bodies.events_page({"events": body})
            self._note_problems(page.problems)
            seen_ns = self._clock.wall_ns()
            for event in page.items:
                series.add(event.series_ticker)
                row = history_row("event", event.event_ticker, "", event.body, seen_ns)
                self._history.offer(row)
        if series:
            listed = rest_bodies.series_page(await self._rest.get("/series"))
            seen_ns = self._clock.wall_ns()
            for item in listed.items:
                if item.ticker in series:
                    self._history.offer(history_row("series", item.ticker, "", item.body, seen_ns))

    def _place(self, markets: Iterable[MarketRef]) -> None:
        changes = self._plan.place(markets)
        if changes:
            self._on_changes(changes)

    def _forget_settled(self) -> None:
        """Take markets out that were settled long enough ago."""
        now_ns = self._clock.monotonic_ns()
        over = [t for t, at in self._settled_ns.items() if now_ns - at > SETTLED_HOLD_NS]
        if over:
            for ticker in over:
                del self._settled_ns[ticker]
            self._on_changes(self._plan.remove(over))

    def _note_problems(self, problems: list[WireError]) -> None:
        self.problems += len(problems)
        for problem in problems[:3]:
            log.warning("a body was not understood", error=str(problem))


def series_of(event_ticker: str) -> str:
    """The series that an event belongs to: what stands before its first dash."""
    return event_ticker.partition("-")[0]


def _one_series(ticker: str) -> dict[str, str | int]:
    return {"series_ticker": ticker} if ticker else {}
