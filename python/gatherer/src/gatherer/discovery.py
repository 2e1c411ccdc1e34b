"""Which markets exist: REST rounds and lifecycle frames in, subscriptions and history rows out.

Purpose: find every market that belongs here, give it to the plan, and keep what the exchange says
about markets, events and series in the second database.
Three ways to a market, each covering for the others: a lifecycle frame (at once), a look at what
was created or updated since (every `interval_s`), a full round over all lists of markets and events
(every `full_round_s`). No message announces openings and closings: the clock does.
Invariants:
- What a market is told to be is decided in one place (marketdata.roll), whoever told.
- A look begins where the newest time ever told ends, by the exchange's own clock, less OVERLAP_S.
- The exchange or the database being away delays metadata; it never stops recording.
- Other tasks of the process wait for no more than CHUNK markets.
Does not do: sockets, books, deciding who carries what (plan).
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from gatherer.history import History, history_row
from gatherer.lifecycle import SingleMarkets
from gatherer.rest import RestClient, RestError
from marketdata import events, fields, rest_bodies
from marketdata.errors import WireError
from marketdata.plan import Changes, Plan
from marketdata.rest_bodies import Market
from marketdata.roll import Now, Roll
from marketdata.selection import NO_COMBOS, ONLY_COMBOS, Selection
from marketdata.units import US_PER_S
from runtime import logs
from runtime.clock import Clock

MARKETS_PAGE: Final = 1000
EVENTS_PAGE: Final = 200
STATUSES: Final = ("open", "unopened", "paused")
"""The exchange's words for active, initialized, inactive; each list is asked for alone."""
FIRST_ROUND_RETRY_S: Final = 0.25
TICK_S: Final = 1.0
OVERLAP_S: Final = 120
"""How late a list may show a market that was created or updated at a moment."""
CHUNK: Final = 50
REFUSED_FILTER: Final = 400

Query = dict[str, str | int]

log = logs.get("discovery")


@dataclass(slots=True)
class Newest:
    """The newest times that the exchange told, of its own clock; 0 before the first."""

    created_us: int = 0
    updated_us: int = 0
    event_us: int = 0


@dataclass(slots=True)
class Found:
    """Counts since the start."""

    full_rounds: int = 0
    looks: int = 0
    by_events: int = 0  # markets that no list of markets showed, only their event
    not_listed: int = 0  # recorded markets that a full round did not list
    refused_lists: int = 0  # lists that the exchange does not give
    ignored_filters: int = 0  # looks whose filter changed nothing


class Discovery:
    """Tells `on_changes` what the plan has changed."""

    def __init__(
        self,
        rest: RestClient,
        plan: Plan,
        history: History,
        clock: Clock,
        *,
        interval_s: float,
        full_round_s: float,
        on_changes: Callable[[Changes], None],
        selection: Selection | None = None,
    ) -> None:
        self._rest = rest
        self._history = history
        self._clock = clock
        self._interval_s = interval_s
        self._full_round_s = full_round_s
        self._on_changes = on_changes
        self.selection = selection or Selection()
        self.roll = Roll(plan, self.selection)
        self.single = SingleMarkets(rest, self.roll.lookups, clock, self._took)
        self._newest = Newest()
        self.found = Found()
        self.rounds = 0
        self.reason = "no round yet"
        self.markets = 0
        self._problems = 0

    @property
    def problems(self) -> int:
        """Bodies that were not understood."""
        return self._problems + self.single.problems

    def numbers(self) -> dict[str, Any]:
        """Figures for /health."""
        lookups = self.roll.lookups
        return {
            **dataclasses.asdict(self.found),
            "problems": self.problems,
            "wait_for_opening": self.roll.n_waiting,
            "settled_and_held": self.roll.n_settled,
            "lookups_pending": len(lookups),
            "lookups_given_up": lookups.given_up,
            "lookup_requests": self.single.requests,
            "history_rows": self._history.rows_written,
            "history_pending": self._history.pending,
        }

    def on_event(self, event: events.Decoded) -> None:
        """A frame of a lifecycle channel; others are passed over."""
        if isinstance(event, events.MarketLifecycle):
            self._apply(self.roll.announced(event, self._now()))

    async def run(self) -> None:
        """Rounds, single questions and the clock, for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._rounds(), name="rounds")
            group.create_task(self.single.run(), name="single markets")
            group.create_task(self._tick(), name="openings and closings")

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._apply(self.roll.tick(self._now()))
            for ticker in self.roll.take_ended():
                self._history.forget("market", ticker)

    async def _rounds(self) -> None:
        """Full rounds and looks; the first round is repeated quickly until it works."""
        full_due_ns = 0
        while True:
            wait_s = self._interval_s
            began_ns = self._clock.monotonic_ns()
            try:
                if began_ns >= full_due_ns or not self._newest.created_us:
                    await self._full_round()
                    full_due_ns = began_ns + int(self._full_round_s * 1e9)
                else:
                    await self._look()
                self.reason = ""
            except (RestError, WireError) as error:
                self.reason = str(error)
                log.warning("discovery round failed", error=str(error))
                if not self.rounds:
                    wait_s = FIRST_ROUND_RETRY_S
            await asyncio.sleep(wait_s)

    # --- rounds

    async def _full_round(self) -> None:
        """All lists of markets, then all events with their markets, then the series."""
        listed: set[str] = set()
        whole = True
        for status in STATUSES:
            for mve_filter in self.selection.mve_filters:
                query: Query = {"status": status, "mve_filter": mve_filter}
                whole &= await self._list_or_refused(query, listed)
            if status == STATUSES[0]:
                self.markets = len(listed)
        self.rounds += 1
        self.found.full_rounds += 1
        self.reason = ""
        series: set[str] = set()
        for chosen in self._chosen():
            await self._events({"status": "open", **chosen}, listed, series)
        await self._series(series)
        if whole:
            self.found.not_listed += self.roll.listed(listed, self._now())

    async def _list_or_refused(self, query: Query, listed: set[str]) -> bool:
        """One list; False where the exchange does not give it. The first of all must be given."""
        try:
            await self._list(query, listed)
        except RestError as error:
            if error.status != REFUSED_FILTER or query["status"] == STATUSES[0]:
                raise
            self.found.refused_lists += 1
            log.warning("a list of markets is refused", **query, error=str(error))
            return False
        return True

    async def _look(self) -> None:
        """What was created or updated since the newest that is known."""
        self.found.looks += 1
        newest, since_us = self._newest, OVERLAP_S * US_PER_S
        created_s = max(0, newest.created_us - since_us) // US_PER_S
        lists: list[Query] = [{"min_created_ts": created_s, "mve_filter": NO_COMBOS}]
        if self.selection.combos == "all":
            lists.append({"min_created_ts": created_s, "mve_filter": ONLY_COMBOS})
        if newest.updated_us:
            updated_s = max(0, newest.updated_us - since_us) // US_PER_S
            lists.append({"min_updated_ts": updated_s, "mve_filter": NO_COMBOS})
        for query in lists:
            await self._list(query, set())
        if newest.event_us:
            event_s = max(0, newest.event_us - since_us) // US_PER_S
            for chosen in self._chosen():
                await self._events({"min_updated_ts": event_s, **chosen}, set(), set())

    async def _list(self, query: Query, listed: set[str]) -> None:
        """Every market of a list, of the chosen series; their tickers into `listed`."""
        for chosen in self._chosen():
            whole = {"limit": MARKETS_PAGE, **query, **chosen}
            async for body in self._rest.pages("/markets", "markets", whole):
                page = rest_bodies.markets_page({"markets": body})
                self._note_problems(page.problems)
                listed.update(market.ticker for market in page.items)
                await self._took(page.items)
                if _ignores(query, page.items):
                    self.found.ignored_filters += 1
                    break

    async def _events(self, query: Query, listed: set[str], series: set[str]) -> None:
        """Events and the markets in them; what no list of markets showed is taken from here."""
        whole: Query = {"limit": EVENTS_PAGE, "with_nested_markets": "true", **query}
        is_full_round = bool(listed)
        async for body in self._rest.pages("/events", "events", whole):
            page = rest_bodies.events_page({"events": body})
            self._note_problems(page.problems)
            seen_ns = self._clock.wall_ns()
            nested: list[Market] = []
            for event in page.items:
                if not self.selection.takes_event(event.event_ticker):
                    continue
                series.add(event.series_ticker)
                row = history_row("event", event.event_ticker, "", event.body, seen_ns)
                self._history.offer(row)
                self._note_problems(event.problems)
                self._newest.event_us = max(self._newest.event_us, _updated_us(event))
                nested += [market for market in event.markets if market.ticker not in listed]
            if is_full_round:
                unknown = [m for m in nested if not self.roll.plan.knows(m.ticker)]
                await self._took(nested)
                self.found.by_events += sum(self.roll.plan.knows(m.ticker) for m in unknown)
                listed.update(market.ticker for market in nested if _is_listed(market))
            else:
                await self._took(nested)

    async def _series(self, wanted: set[str]) -> None:
        if not wanted:
            return
        page = rest_bodies.series_page(await self._rest.get("/series"))
        self._note_problems(page.problems)
        seen_ns = self._clock.wall_ns()
        for item in page.items:
            if item.ticker in wanted:
                self._history.offer(history_row("series", item.ticker, "", item.body, seen_ns))

    def _chosen(self) -> list[dict[str, str]]:
        """The queries' part about series."""
        return [{"series_ticker": name} for name in sorted(self.selection.series)] or [{}]

    # --- markets

    async def _took(self, markets: list[Market]) -> None:
        """Markets that REST told of, however: their rows, and what they change."""
        for begin in range(0, len(markets), CHUNK):
            now, newest = self._now(), self._newest
            mine = [m for m in markets[begin : begin + CHUNK] if self.selection.takes(m)]
            for market in mine:
                row = history_row("market", market.ticker, market.status, market.body, now.wall_ns)
                self._history.offer(row)
                newest.created_us = max(newest.created_us, market.created_us or 0)
                newest.updated_us = max(newest.updated_us, market.updated_us or 0)
            self._apply(self.roll.told(mine, now))
            await asyncio.sleep(0)

    def _apply(self, changes: Changes) -> None:
        if changes:
            self._on_changes(changes)

    def _now(self) -> Now:
        return Now(self._clock.wall_ns(), self._clock.monotonic_ns())

    def _note_problems(self, problems: list[WireError]) -> None:
        self._problems += len(problems)
        for problem in problems[:3]:
            log.warning("a body was not understood", error=str(problem))


def _updated_us(event: rest_bodies.Event) -> int:
    """When the exchange last changed it; its field is a text despite its name."""
    try:
        return fields.time_or_none(event.body, "last_updated_ts") or 0
    except WireError:
        return 0


def _is_listed(market: Market) -> bool:
    """Whether a list of a full round should show it: it is not over."""
    return market.status in ("active", "initialized", "inactive")


def _ignores(query: Query, page: list[Market]) -> bool:
    """Whether a page shows that the exchange does not know the filter: everything is older."""
    if "min_created_ts" in query:
        times = [market.created_us for market in page]
    elif "min_updated_ts" in query:
        times = [market.updated_us for market in page]
    else:
        return False
    since_us = int(query.get("min_created_ts", query.get("min_updated_ts", 0))) * US_PER_S
    return bool(times) and all(at is not None and at < since_us for at in times)
