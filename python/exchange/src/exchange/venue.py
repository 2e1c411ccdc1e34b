"""The simulated exchange: one engine, many connections, faults by plan. Pure.

Purpose: play a source's items: apply them to the books, write the truth, and hand every event to
the connections subscribed to its market. Time comes from the items (engine time), randomness from
the seed, bytes from the caller: the same source, plan and commands give the same bytes.

Invariants: EXCH-10 an event is in the truth log whether or not anybody is connected; EXCH-11 a
snapshot states the book at its seq: everything with a lower seq is in it, nothing with a higher;
EXCH-12 between the start and the end of a hole nobody is connected.

Does not do: commands (commands), sockets and wall time (server, conductor), files (truth).
"""

from __future__ import annotations

import heapq
import random
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

import orjson

from exchange.capture import held_levels
from exchange.connection import Connection, Outgoing, Subscription
from exchange.faults import FaultPlan, TimeKind
from exchange.frames import delta_head, delta_tail, frame_head, levels_json, snapshot_tail
from exchange.market_text import creation_details, ending_details
from exchange.timeline import (
    NO,
    YES,
    BookItem,
    DeltaItem,
    EmptySnapshotItem,
    HoleEndItem,
    HoleStartItem,
    Item,
    Levels,
    ListingItem,
    MarketSpec,
    Source,
    StatusItem,
    TickerItem,
    TradeItem,
)
from exchange.truth import (
    KIND_DELTA,
    KIND_HOLE,
    KIND_RESET,
    SEND_DELTA,
    SEND_LIFECYCLE,
    SEND_REPLY,
    SEND_SNAPSHOT,
    SEND_TICKER,
    SEND_TRADE,
    Ledger,
    pack_event,
)

TRADES_KEPT: Final = 200_000  # REST answers from the newest so many
PRICE_WHOLE: Final = 1_000_000
LIFECYCLE: Final = "market_lifecycle_v2"
CHANNELS: Final = ("orderbook_delta", "ticker", "trade", LIFECYCLE)
OVERFLOW_CODE: Final = 25
LIFECYCLE_EVENT: Final = {"determined": "determined", "finalized": "settled"}
OPEN_STATUSES: Final = ("active", "inactive")


class Pause(StrEnum):
    """Why `play` came back."""

    LIMIT = "limit"  # as many items as asked for, or the time asked for
    HOLE = "hole"  # a hole began: everybody is being disconnected
    RETURN = "return"  # wait for clients to (re)subscribe, if the pace is free
    END = "end"


@dataclass(slots=True, eq=False)
class Market:
    """A listed market. `book`: side -> price -> size, no zero sizes."""

    number: int
    spec: MarketSpec
    listed_us: int
    status: str = "active"
    book: tuple[dict[int, int], dict[int, int]] = field(default_factory=lambda: ({}, {}))
    books: dict[Subscription, None] = field(default_factory=dict)  # subscribers, by channel
    trades: dict[Subscription, None] = field(default_factory=dict)
    tickers: dict[Subscription, None] = field(default_factory=dict)
    yes_priced: int = 0  # subscribers that want no-side prices on the yes scale
    head: bytes = b""
    told: bytes = b""  # the newest ticker message, for REST
    snapshot: bytes | None = None  # tail of the present book, made when asked for

    def levels(self) -> tuple[Levels, Levels]:
        """(yes, no), ascending by price."""
        return held_levels(self.book[YES]), held_levels(self.book[NO])

    def snapshot_text(self, *, yes_price: bool) -> bytes:
        """Tail of a snapshot frame of the present book."""
        if yes_price:
            yes, no = self.levels()
            turned = sorted((PRICE_WHOLE - price, size) for price, size in no)
            return snapshot_tail(self.spec.ticker, self.spec.market_id, yes, turned)
        if self.snapshot is None:
            self.snapshot = snapshot_tail(self.spec.ticker, self.spec.market_id, *self.levels())
        return self.snapshot


@dataclass(frozen=True, slots=True, order=True)
class _Timer:
    """Something due at an engine time. `order` breaks ties by the order of setting."""

    at_us: int
    order: int
    kind: str = field(compare=False)
    connection: Connection = field(compare=False)
    subscription: Subscription | None = field(compare=False, default=None)
    market: int = field(compare=False, default=-1)


class Venue:
    """The exchange. `crew`: book subscriptions that every market should have (0: do not wait)."""

    def __init__(self, source: Source, plan: FaultPlan, *, crew: int, ledger: Ledger) -> None:
        self.plan = plan
        self.crew = crew
        self.ledger = ledger
        self.markets: list[Market] = []
        self.numbers: dict[str, int] = {}
        self.connections: dict[int, Connection] = {}
        self.now_us = source.start_us
        self.events = 0
        self.trades_told = 0
        self.tickers_told = 0
        self.holes_open = 0
        self.refusals = 0
        self.done = False
        self.interleaves = True  # each connection has an order of its own between markets
        self.lost: set[str] = set()  # channels whose subscriptions are answered later
        self.faults: Counter[str] = Counter()
        self.rest_trades: deque[tuple[int, int, bytes]] = deque(maxlen=TRADES_KEPT)
        self._rng = random.Random(f"{plan.seed}/venue")
        self._end_us = plan.end_us
        self._timers: list[_Timer] = []
        self._timers_set = 0
        self._wait_at: int | None = None  # count of events at which to wait for the crew
        self._all: dict[str, dict[Subscription, None]] = {name: {} for name in CHANNELS}
        self._items: Iterator[Item] = source.items()
        self._ahead: Item | None = None  # read from the source, its time not come yet
        self._connections_made = 0
        for spec in source.markets:
            self._list(spec)
        ledger.line("faults", plan.told())

    # -- connections ---------------------------------------------------------------------------

    def refusal(self) -> str | None:
        """Why an upgrade is refused just now, or None. Counts down planned refusals."""
        if self.holes_open:
            return "hole"
        if self.refusals:
            self.refusals -= 1
            self.tell("refused", None)
            return "refused"
        return None

    def open(self, handshake: str, opened_ns: int) -> Connection:
        """A new connection; `handshake` and `opened_ns` (wall clock) go to conns.jsonl."""
        number = self._connections_made = self._connections_made + 1
        rng = random.Random(f"{self.plan.seed}/connection/{number}")
        connection = Connection(number, self.ledger, rng, self.tell, self.now_us)
        connection.interleaves = self.interleaves
        self.connections[number] = connection
        row = {"conn": number, "handshake": handshake, "opened_ns": opened_ns}
        self.ledger.line("conns", row)
        return connection

    def closed(self, connection: Connection) -> None:
        """The client is gone, or the server has carried out `closing`."""
        if self.connections.pop(connection.number, None) is None:
            return
        if connection.closing is None:
            self.tell("left", connection)
            connection.discard()
            self._detach(connection)

    def cut(self, connection: Connection, how: str, reason: str) -> None:
        """Ends a connection from the exchange's side; `how` is `reset` or `close`."""
        if connection.closing is not None:
            return
        connection.seal()
        connection.discard()
        connection.closing = how
        self.tell(reason, connection, how=how)
        self._detach(connection)
        if self._rng.random() < self.plan.rates.refuse:
            self.refusals = self._rng.randint(1, 2)

    def _detach(self, connection: Connection) -> None:
        for subscription in list(connection.by_sid.values()):
            self.unsubscribe(subscription)
        if connection.slot is not None:
            connection.slot.taken = False

    def tell(self, kind: str, connection: Connection | None, **details: object) -> None:
        """A line of faults.jsonl, and its count."""
        self.faults[str(kind)] += 1
        row: dict[str, Any] = {"at_us": self.now_us, "event": self.events, "kind": kind}
        if connection is not None:
            row["conn"] = connection.number
            row["slot"] = connection.slot.name if connection.slot else None
        self.ledger.line("faults", {**row, **details})

    # -- subscriptions -------------------------------------------------------------------------

    def attach(self, subscription: Subscription, markets: list[int] | None) -> None:
        """Adds markets to a subscription (None: all markets, now and later)."""
        self._settle(subscription)
        if markets is None:
            self._all[subscription.channel][subscription] = None
            return
        for number in markets:
            market = self.markets[number]
            self._subscribers(market, subscription.channel)[subscription] = None
            market.yes_priced += subscription.yes_price

    def detach(self, subscription: Subscription, markets: list[int]) -> None:
        """Takes markets out of a subscription."""
        for number in markets:
            market = self.markets[number]
            subscribers = self._subscribers(market, subscription.channel)
            if subscribers.pop(subscription, subscription) is None:
                market.yes_priced -= subscription.yes_price

    def unsubscribe(self, subscription: Subscription) -> None:
        """The sid is dead: nothing is sent on it any more."""
        self._all[subscription.channel].pop(subscription, None)
        if subscription.markets:
            self.detach(subscription, list(subscription.markets))
        connection = subscription.connection
        connection.by_sid.pop(subscription.sid, None)
        if connection.by_channel.get(subscription.channel) is subscription:
            del connection.by_channel[subscription.channel]
        if subscription.channel == "orderbook_delta":
            self.expect_return()

    def expect_return(self) -> None:
        """Somebody lost a book: at full speed, run on for some events, then wait for the return."""
        if self.crew:
            at = self.events + self.plan.run_on(self._rng)
            self._wait_at = at if self._wait_at is None else min(self._wait_at, at)

    def crew_complete(self) -> bool:
        """Whether every open market that was listed at the start has all its subscribers."""
        return all(
            len(market.books) >= self.crew
            for market in self.markets
            if market.status in OPEN_STATUSES and market.listed_us <= self.plan.start_us
        )

    def _subscribers(self, market: Market, channel: str) -> dict[Subscription, None]:
        if channel == "orderbook_delta":
            return market.books
        return market.trades if channel == "trade" else market.tickers

    def _settle(self, subscription: Subscription) -> None:
        """Gives the connection its slot at its first subscription and sets the slot's timers."""
        connection = subscription.connection
        books = subscription.channel == "orderbook_delta"
        if connection.slot is not None:
            if not books or connection.slot.name.startswith("book"):
                return
            connection.slot.taken = False
        connection.slot = self.plan.take_slot(books=books)
        connection.live_us = self.now_us
        self._next_fault(connection)

    def _next_fault(self, connection: Connection) -> None:
        slot = connection.slot
        if slot is None or not slot.time_faults:
            return
        settled_us = connection.live_us + self.plan.settle_us(slot.rng)
        at_us = max(slot.time_faults[-1].at_us, settled_us)
        self.set_timer(at_us, "fault", connection)

    def set_timer(
        self,
        at_us: int,
        kind: str,
        connection: Connection,
        subscription: Subscription | None = None,
        market: int = -1,
    ) -> None:
        """Something to do for a connection at an engine time."""
        self._timers_set += 1
        timer = _Timer(at_us, self._timers_set, kind, connection, subscription, market)
        heapq.heappush(self._timers, timer)

    def send_snapshot(
        self, subscription: Subscription, number: int, event: int = -1, command_id: int = 0
    ) -> None:
        """Sends the present book of a market on a subscription (EXCH-11)."""
        subscription.seal()
        subscription.late.discard(number)
        tail = self.markets[number].snapshot_text(yes_price=subscription.yes_price)
        head = frame_head("orderbook_snapshot", subscription.sid, command_id=command_id)
        subscription.emit(head, tail, number, event, SEND_SNAPSHOT)

    # -- the play ------------------------------------------------------------------------------

    def play(self, items: int, until_us: int | None = None) -> Pause:
        """Plays at most so many items, none later than `until_us`; seals before it returns."""
        pause = Pause.LIMIT
        for _ in range(items):
            item, self._ahead = self._ahead or next(self._items, None), None
            if item is None or item.at_us > self._end_us:
                self._finish()
                return Pause.END
            if until_us is not None and item.at_us > until_us:
                self._ahead = item
                self._run_timers(until_us)
                self.now_us = max(self.now_us, until_us)
                break
            if self._timers and self._timers[0].at_us <= item.at_us:
                self._run_timers(item.at_us)
            self.now_us = item.at_us
            pause = self._one(item)
            if pause is not Pause.LIMIT:
                break
        self.seal()
        return pause

    def jump(self, items: Iterator[Item], at_us: int) -> None:
        """Goes on with other items at another engine time, earlier or later. The items begin with
        the books of that time; REST forgets trades that have not happened yet."""
        self._items, self._ahead = items, None
        self.now_us, self.done = at_us, False
        held = [trade for trade in self.rest_trades if trade[0] <= at_us]
        self.rest_trades.clear()
        self.rest_trades.extend(held)

    def next_us(self) -> int:
        """Engine time of the next item if it is known to lie ahead, else now."""
        return self.now_us if self._ahead is None else self._ahead.at_us

    def seal(self) -> None:
        """Numbers everything that waits on any connection."""
        for connection in self.connections.values():
            if connection.closing is None:
                connection.seal()

    def _one(self, item: Item) -> Pause:
        if isinstance(item, DeltaItem):
            self._delta(item)
            if self._wait_at is not None and self.events >= self._wait_at:
                self._wait_at = None
                return Pause.RETURN
        elif isinstance(item, TickerItem):
            self._ticker(item)
        elif isinstance(item, TradeItem):
            self._trade(item)
        elif isinstance(item, EmptySnapshotItem):
            self._empty(item)
        elif isinstance(item, BookItem):
            self._reopen(item)
        elif isinstance(item, StatusItem):
            self._status(item)
        elif isinstance(item, ListingItem):
            self._list(item.spec)
            self._announce(self.markets[-1])
        elif isinstance(item, HoleStartItem):
            self._hole_start(item)
            return Pause.HOLE
        elif isinstance(item, HoleEndItem):
            self._hole_end(item)
            if not self.holes_open:
                return Pause.RETURN
        return Pause.LIMIT

    def _delta(self, item: DeltaItem) -> None:
        number, side, price, delta = item.market, item.side, item.price, item.delta
        market = self.markets[number]
        levels = market.book[side]
        size = levels.get(price, 0) + delta
        assert size >= 0, "a source must not make a level negative"
        if size:
            levels[price] = size
        else:
            del levels[price]
        market.snapshot = None
        event = self.events
        self.events = event + 1
        exchange_us = item.exchange_us
        if item.form == 2:  # TIME_MS_ONLY: the truth holds what the wire can tell
            exchange_us -= exchange_us % 1000
        self.ledger.events += pack_event(number, KIND_DELTA, side, price, delta, exchange_us)
        if not market.books:
            return
        tail = delta_tail(market.head, side, price, delta, exchange_us, item.form)
        outgoing = Outgoing(tail, number, event, SEND_DELTA, item.at_us)
        if market.yes_priced and side == NO:
            tail = delta_tail(market.head, side, PRICE_WHOLE - price, delta, exchange_us, item.form)
            turned = outgoing._replace(tail=tail)
            for subscription in market.books:
                subscription.pending.append(turned if subscription.yes_price else outgoing)
            return
        for subscription in market.books:
            subscription.pending.append(outgoing)

    def _empty(self, item: EmptySnapshotItem) -> None:
        """The close of a market: an event if the book still held anything, else an audit."""
        market = self.markets[item.market]
        event = -1
        if market.book[YES] or market.book[NO]:
            event = self.events
            self.events += 1
            self.ledger.events += pack_event(item.market, KIND_RESET, 0, 0, 0, item.at_us)
            market.book[YES].clear()
            market.book[NO].clear()
            market.snapshot = None
        for subscription in list(market.books):
            self.send_snapshot(subscription, item.market, event)

    def _reopen(self, item: BookItem) -> None:
        """A gap of the source is over; what is not known of it is in no frame."""
        market = self.markets[item.market]
        for side, levels in ((YES, item.yes), (NO, item.no)):
            market.book[side].clear()
            market.book[side].update(levels)
        market.snapshot = None
        self._write_book(market)
        self.tell("gap", None, market=item.market)
        for subscription in list(market.books):
            if item.closes:
                self.cut(subscription.connection, "close", "gap_cut")
            else:
                self.send_snapshot(subscription, item.market)

    def _trade(self, item: TradeItem) -> None:
        line = self.trades_told
        self.trades_told += 1
        self.ledger.raw_line("trades", item.msg)
        self.rest_trades.append((item.exchange_us, item.market, item.rest))
        tail = b',"msg":%b}' % item.msg
        self._broadcast("trade", Outgoing(tail, item.market, line, SEND_TRADE, item.at_us))

    def _ticker(self, item: TickerItem) -> None:
        line = self.tickers_told
        self.tickers_told += 1
        self.ledger.raw_line("tickers", item.msg)
        self.markets[item.market].told = item.msg
        tail = b',"msg":%b}' % item.msg
        self._broadcast("ticker", Outgoing(tail, item.market, line, SEND_TICKER, item.at_us))

    def _broadcast(self, channel: str, outgoing: Outgoing) -> None:
        market = self.markets[outgoing.market]
        for subscription in self._all[channel]:
            subscription.pending.append(outgoing)
        if channel != LIFECYCLE:
            for subscription in self._subscribers(market, channel):
                subscription.pending.append(outgoing)

    def _status(self, item: StatusItem) -> None:
        market = self.markets[item.market]
        market.status = item.status
        event_type = LIFECYCLE_EVENT.get(item.status)
        if event_type is not None:
            details = ending_details(market.spec.ticker, event_type, self.now_us)
            self._lifecycle(market, event_type, details)

    # -- listing, lifecycle, holes -------------------------------------------------------------

    def _list(self, spec: MarketSpec) -> None:
        number = len(self.markets)
        market = Market(number, spec, self.now_us)
        market.book[YES].update(spec.yes)
        market.book[NO].update(spec.no)
        market.head = delta_head(spec.ticker, spec.market_id)
        self.markets.append(market)
        self.numbers[spec.ticker] = number
        self.ledger.markets.append(spec.ticker)
        self._write_book(market)

    def _write_book(self, market: Market) -> None:
        yes, no = market.levels()
        row = {"at": self.events, "market": market.number, "yes": yes, "no": no}
        self.ledger.line("books", row)

    def _announce(self, market: Market) -> None:
        self._lifecycle(market, "created", creation_details(market.spec))

    def _lifecycle(self, market: Market, event_type: str, details: dict[str, Any]) -> None:
        msg = {"market_ticker": market.spec.ticker, "event_type": event_type, **details}
        tail = b',"msg":%b}' % orjson.dumps(msg)
        self._broadcast(LIFECYCLE, Outgoing(tail, market.number, -1, SEND_LIFECYCLE, self.now_us))

    def _hole_start(self, item: HoleStartItem) -> None:
        self.events += 1
        self.ledger.events += pack_event(-1, KIND_HOLE, 0, 0, item.until_us, item.at_us)
        self.holes_open += 1
        self.tell("hole", None, until_us=item.until_us)
        for connection in list(self.connections.values()):
            # A clean close: what was played before the hole arrives, as it did at the recorder.
            self.cut(connection, "close", "hole_cut")
        self.refusals = 0
        self._wait_at = None

    def _hole_end(self, item: HoleEndItem) -> None:
        self.holes_open -= 1
        for number, (yes, no) in item.books.items():
            market = self.markets[number]
            market.book[YES].clear()
            market.book[NO].clear()
            market.book[YES].update(yes)
            market.book[NO].update(no)
            market.snapshot = None
            market.status = "active"
        for market in self.markets:
            self._write_book(market)

    def _finish(self) -> None:
        self.done = True
        for connection in list(self.connections.values()):
            connection.release()
            for subscription in connection.by_sid.values():
                for number in sorted(subscription.late):
                    self.send_snapshot(subscription, number)
        self._timers.clear()
        self.seal()

    # -- timers --------------------------------------------------------------------------------

    def _run_timers(self, until_us: int) -> None:
        while self._timers and self._timers[0].at_us <= until_us:
            timer = heapq.heappop(self._timers)
            if timer.connection.closing is None and timer.connection.number in self.connections:
                self.now_us = max(self.now_us, timer.at_us)
                self._due(timer)

    def _due(self, timer: _Timer) -> None:
        connection, subscription = timer.connection, timer.subscription
        if timer.kind == "fault":
            self._time_fault(connection)
        elif timer.kind == "release":
            connection.release()
        elif timer.kind == "reset":
            self.cut(connection, "reset", TimeKind.STALL_RESET)
        elif subscription is not None and self._still_late(subscription, timer.market):
            self.send_snapshot(subscription, timer.market)

    def _still_late(self, subscription: Subscription, market: int) -> bool:
        alive = subscription.connection.by_sid.get(subscription.sid) is subscription
        return alive and market in subscription.late

    def _time_fault(self, connection: Connection) -> None:
        slot = connection.slot
        if slot is None or not slot.time_faults:
            return
        fault = slot.time_faults.pop()
        if fault.kind in (TimeKind.RESET, TimeKind.CLOSE):
            self.cut(connection, fault.kind.value, fault.kind)
            return
        if fault.kind == TimeKind.OVERFLOW:
            self._overflow(connection)
        else:
            connection.stall()
            ends = "release" if fault.kind == TimeKind.STALL else "reset"
            self.tell(f"{fault.kind}_begins", connection, span_us=fault.span_us)
            self.set_timer(self.now_us + fault.span_us, ends, connection)
        self._next_fault(connection)

    def _overflow(self, connection: Connection) -> None:
        """Error 25 on the book's sid, then silence on it."""
        subscription = connection.by_channel.get("orderbook_delta")
        if subscription is None:
            return
        self.tell(TimeKind.OVERFLOW, connection, sid=subscription.sid)
        subscription.seal()
        subscription.dropping = 0
        head = frame_head("error", subscription.sid)
        msg = {"code": OVERFLOW_CODE, "msg": "Subscription buffer overflow"}
        tail = b',"msg":%b}' % orjson.dumps(msg)
        subscription.emit(head, tail, -1, -1, SEND_REPLY)
        self.unsubscribe(subscription)

    def orderbook_json(self, number: int, depth: int = 0) -> str:
        """The `orderbook_fp` object of REST; `depth` best levels a side, 0 for all."""
        yes, no = (levels[-depth:] for levels in self.markets[number].levels())
        return "{" + levels_json(yes, no, ("yes_dollars", "no_dollars")) + "}"
