"""Compares the trades that frames brought with those that REST lists, and fetches what is missing.

Purpose: window after window of closed seconds, the whole exchange, in the order of time; what is
missing goes into the spool (`rest_trades`), the rows are made from there. Each window that was
compared to its end leaves a `rest_window` record: the newest one is the cursor after a restart.
What holds:
- Nothing is judged before everything received so far is committed; while the database or the
  exchange is away windows wait, however many, and none is left out.
- The exchange's own time decides what is closed: that of its frames, and never beyond its REST
  Date. Our clock may be anything.
- Trades are known by the ids of committed batches, in memory (marketdata.rest_trades.KnownTrades),
  and after a start once by the newest batches of the database. Measured: 20 us a commit and
  0.4 us a trade, against a query for each window, which would need an index on time in the hot
  table. An id that is not known any more makes a second row, which the merge takes for one.
- What REST cannot give is counted and told in the record of its window: longer ago than the
  look-back, or refused.
Does not do: rows (continuity), coverage, order books (rest_audit), retries of one request (rest).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gatherer.intake import LiveIntake
from gatherer.packing import PackedBatch
from gatherer.rest import RestClient, RestError
from gatherer.side_rows import TROUBLE
from gatherer.sink import SinkStatus
from marketdata.errors import StorageError, WireError
from marketdata.rest_trades import (
    WIDEN_S,
    KnownTrades,
    TradeWindow,
    are_strangers,
    begin_at,
    compare,
    next_window,
    trades_cutoff_us,
)
from marketdata.rows import ControlKind
from marketdata.units import US_PER_S
from runtime import logs
from runtime.clock import Clock
from runtime.pgcopy import PG_EPOCH_US, TRADE_COPY, view_rows
from runtime.postgres import backoff_s, connect
from runtime.spool import SpoolWriter

POLL_S: Final = 0.25
"""Between two looks whether a window has closed or a batch was committed."""
HISTORY_AGE_S: Final = 24 * 3600
"""A window older than this may have become history: the exchange is asked for its cut-off."""
CUTOFF_KEPT_S: Final = 3600
SEED_BATCHES: Final = 20_000
"""Newest batches whose trades are known again after a start: half an hour and more."""
SEED_ROWS_MAX: Final = 200_000
RECORD_TRADES_MAX: Final = 200
"""Trades of one record: its rows take 5 ms, and the frames wait no longer."""
REFUSED_FOR_GOOD: Final = frozenset({400, 404, 410})
"""Answers about an old window after which it is not asked for again."""

_TROUBLE: Final[tuple[type[BaseException], ...]] = (RestError, WireError, *TROUBLE)
_CURSOR: Final = (
    "SELECT detail FROM control WHERE kind = $1 ORDER BY batch_id DESC, ord DESC LIMIT 1"
)
_NEWEST_TRADES: Final = (
    "SELECT trade_id, extract(epoch FROM exchange_ts)::bigint AS second FROM trade"
    " WHERE batch_id > (SELECT coalesce(max(batch_id), 0) FROM ingest_batch) - $1"
    " ORDER BY batch_id DESC LIMIT $2"
)
log = logs.get("reconcile")


@dataclass(frozen=True, slots=True)
class ReconcileSettings:
    """Seconds of a window, seconds that it must have been closed for, and how far back after a
    start."""

    dsn: str
    window_s: int = 30
    settle_s: int = 10
    lookback_s: int = 24 * 3600


@dataclass(slots=True)
class ReconcileStatus:
    """What it says about itself. Counts are of this process."""

    reason: str = "no window yet"
    done_s: int = 0  # every window before this second of the exchange's time was compared
    windows: int = 0
    listed: int = 0
    missing: int = 0  # listed and not brought by a frame
    skipped_s: int = 0  # seconds left out: longer ago than the look-back
    refused: int = 0  # windows that the exchange does not list


class Reconciler:
    """See the module's text. `date_us`: the exchange's Date by REST, 0 before the first.

    `carries`: whether the trade channel is carried here. Another process of the host may do so:
    everything would be missing here.
    """

    def __init__(
        self,
        settings: ReconcileSettings,
        rest: RestClient,
        spool: SpoolWriter,
        intake: LiveIntake,
        sink: SinkStatus,
        clock: Clock,
        *,
        date_us: Callable[[], int] = lambda: 0,
        carries: Callable[[], bool] = lambda: True,
    ) -> None:
        self.status = ReconcileStatus()
        self._settings = settings
        self._rest = rest
        self._spool = spool
        self._intake = intake
        self._sink = sink
        self._clock = clock
        self._date_us = date_us
        self._carries = carries
        self._known = KnownTrades()
        self._cutoff_us: int | None = None
        self._cutoff_due_ns = 0

    def committed(self, packed: PackedBatch) -> None:
        """A batch is in the database: its trades are known from now on."""
        for layout, body in packed.tables:
            if layout is TRADE_COPY:
                rows = view_rows(layout, body)
                seconds = (rows["exchange_ts"].astype("i8") + PG_EPOCH_US) // US_PER_S
                self._known.add(rows["trade_id"].tolist(), seconds.tolist())

    async def run(self) -> None:
        """Window after window until cancelled."""
        attempt, begun = 0, False
        while True:
            try:
                if not begun:
                    await self._begin()
                    begun = True
                await self._one()
            except _TROUBLE as error:
                self.status.reason = f"{type(error).__name__}: {error}"
                log.warning("trades are not compared", error=self.status.reason)
                await asyncio.sleep(backoff_s(attempt))
                attempt += 1
            else:
                attempt, self.status.reason = 0, ""

    def now_us(self) -> int:
        """The exchange's time: what its frames have shown, but never beyond its Date."""
        shown_us, date_us = self._intake.latest_exchange_us(), self._date_us()
        return min(shown_us, date_us) if date_us else shown_us

    # --- where to begin

    async def _begin(self) -> None:
        """Read the cursor and the newest trades, once all rows of the spool are committed."""
        while not (self._carries() and self._sink.state == "live" and self.now_us()):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(POLL_S)
        connection = await connect(self._settings.dsn, tries_max=1)
        try:
            told = await connection.fetchval(_CURSOR, ControlKind.REST_WINDOW)
            newest = await connection.fetch(_NEWEST_TRADES, SEED_BATCHES, SEED_ROWS_MAX)
        finally:
            connection.terminate()
        self._known.add(
            [row["trade_id"].bytes for row in reversed(newest)],
            [row["second"] for row in reversed(newest)],
        )
        cursor_s = None if told is None else int(json.loads(told)["to_s"])
        first_s, skipped_s = begin_at(cursor_s, self.now_us(), self._settings.lookback_s)
        self.status.done_s = first_s
        if skipped_s:
            self.status.skipped_s += skipped_s
            log.error("trades before the look-back are not asked for", seconds=skipped_s)
            self._window_done(TradeWindow(first_s - skipped_s, first_s), "lookback")
        log.info("trades are compared", from_s=first_s, known=len(self._known))

    # --- one window

    async def _one(self) -> None:
        """The next window, as soon as it is closed."""
        settings, status = self._settings, self.status
        while True:
            window = next_window(status.done_s, self.now_us(), settings.window_s, settings.settle_s)
            if window is not None:
                break
            await asyncio.sleep(POLL_S)
        try:
            path, told = await self._compared(window)
        except RestError as error:
            if error.status not in REFUSED_FOR_GOOD or not self._is_old(window):
                raise  # asked for again: a young window is there, whatever is wrong with the asking
            status.refused += 1
            log.warning("a window of trades is refused", from_s=window.from_s, error=str(error))
            self._window_done(window, str(error.status))
            return
        status.windows += 1
        status.listed += told["listed"]
        status.missing += told["missing"]
        if told["missing"]:
            log.warning("trades came by REST only", from_s=window.from_s, **told)
        self._window_done(window, "", path=path, **told)
        self._known.forget(window.to_s - WIDEN_S - settings.window_s)

    async def _compared(self, window: TradeWindow) -> tuple[str, dict[str, int]]:
        """Read every page; what is missing of each goes into the spool at once."""
        told = {"listed": 0, "missing": 0, "pages": 0}
        paths = window.paths(await self._cutoff(window))
        settled = False
        for path in paths:
            asked_ns = self._clock.wall_ns()
            async for page in self._rest.pages(path, "trades", window.query()):
                answered_ns = self._clock.wall_ns()
                if not settled:
                    await self._all_committed()
                    settled = True
                found = compare(page, self._known)
                told["listed"] += found.listed
                if not told["pages"] and are_strangers(found, self._known, window):
                    raise StorageError(f"none of {found.listed} ids by REST is one of the frames'")
                if found.missing:
                    times_ns = asked_ns, answered_ns
                    await self._keep(window, path, told["pages"], times_ns, found.missing)
                    told["missing"] += len(found.missing)
                told["pages"] += 1
                asked_ns = self._clock.wall_ns()
        return " ".join(paths), told

    async def _keep(
        self,
        window: TradeWindow,
        path: str,
        page: int,
        times_ns: tuple[int, int],
        missing: Sequence[dict[str, Any]],
    ) -> None:
        asked_ns, answered_ns = times_ns
        for at in range(0, len(missing), RECORD_TRADES_MAX):
            record = {
                "k": ControlKind.REST_TRADES,
                "path": path,
                "from_s": window.from_s,
                "to_s": window.to_s,
                "page": page,
                "sent_ns": asked_ns,
                "answered_ns": answered_ns,
                "trades": missing[at : at + RECORD_TRADES_MAX],
            }
            self._intake.control(record, answered_ns)
            await asyncio.sleep(0)

    def _window_done(self, window: TradeWindow, reason: str, **told: Any) -> None:
        record = {
            "k": ControlKind.REST_WINDOW,
            "from_s": window.from_s,
            "to_s": window.to_s,
            "reason": reason,
            **told,
        }
        self._intake.control(record, self._clock.wall_ns())
        self.status.done_s = window.to_s

    async def _all_committed(self) -> None:
        """Return when everything that was received before this call is in the database."""
        at = self._spool.end
        while self._sink.cursor < at:
            if self._sink.state == "database_down":
                self.status.reason = "waits for the database"
            await asyncio.sleep(POLL_S)

    async def _cutoff(self, window: TradeWindow) -> int | None:
        """Before which moment trades are history; None where the window is too young for it."""
        if not self._is_old(window):
            return None
        if self._clock.monotonic_ns() >= self._cutoff_due_ns:
            body = await self._rest.get("/historical/cutoff")
            self._cutoff_us = trades_cutoff_us(body)
            self._cutoff_due_ns = self._clock.monotonic_ns() + CUTOFF_KEPT_S * 1_000_000_000
        return self._cutoff_us

    def _is_old(self, window: TradeWindow) -> bool:
        return self.now_us() >= (window.from_s + HISTORY_AGE_S) * US_PER_S
