"""A made-up exchange: many markets with the habits of recorded ones.

Purpose: a source of any number of markets, drawn from a seed: Zipf activity, bursts, equal changes
in one microsecond, amends (two deltas of one `ts`), trades with several fills in one microsecond,
block trades without deltas, tickers at most about once a second per market, closes with a burst of
removals (kind a) and without (kind b, sometimes told twice), markets that appear during the play.
Under a fault level a share of the markets lives on a shard whose clock is ahead.

The figures come from the recorded data (recorded-data reference, section 6): mix of actions, sizes,
distance from the best price, ticker spacing. Quiet markets have few levels.

Invariants: EXCH-16 no level ever becomes negative; EXCH-17 within a market `exchange_us` never goes
back; EXCH-18 the same arguments give the same items.

Does not do: the protocol (venue), the books' effect on prices (mid prices wander by themselves).
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
import uuid
from bisect import bisect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Final

from exchange.faults import RATES, SECOND_US, SHARD_OFFSET_US_MAX, FaultLevel
from exchange.market_text import ticker_text, trade_texts
from exchange.timeline import (
    NO,
    TIME_BOTH,
    TIME_MS_ONLY,
    TIME_TS_ONLY,
    YES,
    DeltaItem,
    EmptySnapshotItem,
    Item,
    Levels,
    ListingItem,
    MarketSpec,
    StatusItem,
    TickerItem,
    TradeItem,
)

DEFAULT_SECONDS: Final = 60.0
EVENTS_PER_MARKET_S: Final = 1.0  # mean over all markets: 2,000 markets, 60 s: 120,000 events
ZIPF_EXPONENT: Final = 1.1
START_US: Final = 1_788_274_770 * SECOND_US  # half a minute before a full hour
CLOSES_SHARE: Final = 0.03
LISTINGS_SHARE: Final = 0.01
AGENDA_SHARE: Final = 0.75  # of the play, from its first tenth on: when markets close
BLOCK_SHARE: Final = 0.02
FORM_SHARE: Final = 0.02  # markets without ts_ms, and as many without ts
MARKETS_PER_EVENT: Final = 5
EVENTS_PER_SERIES: Final = 20
TICK: Final = 10_000  # one cent
FINE_TICK: Final = 1_000
FINE_SHARE: Final = 0.1
PRICE_WHOLE: Final = 1_000_000
SIZES: Final = (100, 200, 1_000, 5_000, 5_000, 10_000, 40_000, 40_000, 100_000)
# Share of each action and the events it makes on average; the latter calibrates the rate.
ACTION_SHARES: Final = (0.40, 0.22, 0.20, 0.10, 0.02, 0.06)
ACTION_STEPS: Final = tuple(itertools.accumulate(ACTION_SHARES))[:-1]
ACTION_EVENTS: Final = (2.0, 1.0, 1.0, 1.9, 18.0, 8.0)


@dataclass(slots=True, eq=False)
class _Life:
    """A market's state in the making."""

    number: int
    spec: MarketSpec
    tick: int
    mid: int
    offset_us: int  # of its shard's clock
    form: int
    book: tuple[dict[int, int], dict[int, int]] = field(default_factory=lambda: ({}, {}))
    next_ticker_us: int = 0
    last_price: int = 0
    last_size: int = 0
    volume: int = 0
    open_interest: int = 0
    closed: bool = False


class SyntheticSource:
    """A made-up exchange (see `timeline.Source`)."""

    def __init__(
        self,
        *,
        markets: int,
        seconds: float = DEFAULT_SECONDS,
        seed: int = 1,
        events_per_s: float | None = None,
        level: FaultLevel = FaultLevel.NONE,
        turnover_per_s: int = 0,
        start_us: int = START_US,
    ) -> None:
        """`turnover_per_s`: markets that open, and as many that close, in every second; 0: the
        recorded shares. `start_us`: the exchange's clock at the beginning of the play."""
        self.turnover_per_s = turnover_per_s
        self._seed = seed
        self._level = level
        self.start_us = start_us
        self.end_us = start_us + int(seconds * SECOND_US)
        self._rate = markets * EVENTS_PER_MARKET_S if events_per_s is None else events_per_s
        self.events_expected = int(self._rate * seconds)
        self._markets = markets
        self.markets = [life.spec for life in _World(self).lives]

    @property
    def plan(self) -> tuple[int, int, float, FaultLevel]:
        """(seed, markets, events per second, fault level)."""
        return self._seed, self._markets, self._rate, self._level

    def items(self) -> Iterator[Item]:
        """The whole play; every call draws the same one."""
        return _World(self).items()


class _World:
    """One drawing of the play."""

    def __init__(self, source: SyntheticSource) -> None:
        self._source = source
        seed, markets, self._rate, self._level = source.plan
        self._rng = random.Random(f"{seed}/synthetic")
        self._span_us = source.end_us - source.start_us
        self._out: list[Item] = []
        self._agenda: list[tuple[int, int, Callable[[int], object]]] = []
        self._agenda_order = itertools.count()
        self._acts = (  # in the order of ACTION_SHARES
            self._amend,
            self._add,
            self._cancel,
            self._sweep,
            self._mass_cancel,
            self._requote,
        )
        self.lives: list[_Life] = []
        for number in range(markets):
            life = self._new_life(number)
            self._fill_book(life, number / markets)
            life.spec.yes, life.spec.no = (
                sorted(life.book[YES].items()),
                sorted(life.book[NO].items()),
            )
            self.lives.append(life)
        self._rank()

    def _rank(self) -> None:
        """Zipf weights over the markets in order of number; market 0 is the busiest."""
        weights = (1 / (rank + 1) ** ZIPF_EXPONENT for rank in range(len(self.lives)))
        self._weights = list(itertools.accumulate(weights))

    # -- markets -------------------------------------------------------------------------------

    def _new_life(self, number: int) -> _Life:
        rng = self._rng
        series = f"KXSYN{number // (MARKETS_PER_EVENT * EVENTS_PER_SERIES):03d}"
        event = f"{series}-26SEP01E{number // MARKETS_PER_EVENT:05d}"
        spec = MarketSpec(
            ticker=f"{event}-T{number % MARKETS_PER_EVENT}.5",
            market_id=str(uuid.UUID(int=rng.getrandbits(128))),
            event_ticker=event,
            series_ticker=series,
            title=f"Synthetic market {number}",
            open_us=self._source.start_us - 3600 * SECOND_US,
            close_us=self._source.end_us + 3600 * SECOND_US,
        )
        on_shard = rng.random() < RATES[self._level].shard_share
        draw = rng.random()
        form = TIME_BOTH
        if draw < 2 * FORM_SHARE:
            form = TIME_MS_ONLY if draw < FORM_SHARE else TIME_TS_ONLY
        return _Life(
            number=number,
            spec=spec,
            tick=FINE_TICK if rng.random() < FINE_SHARE else TICK,
            mid=TICK * rng.randint(15, 85),
            offset_us=rng.randint(1_000, SHARD_OFFSET_US_MAX) if on_shard else 0,
            form=form,
            volume=rng.randint(0, 10_000_000),
            open_interest=rng.randint(0, 5_000_000),
        )

    def _fill_book(self, life: _Life, rank: float) -> None:
        rng = self._rng
        low, high = (25, 60) if rank < 0.02 else (6, 20) if rank < 0.15 else (0, 5)
        for side in (YES, NO):
            levels = life.book[side]
            for step in range(rng.randint(low, high)):
                price = self._price(life, side, step)
                levels[price] = levels.get(price, 0) + self._size()

    def _price(self, life: _Life, side: int, step: int) -> int:
        """A price `step` ticks behind the best of its side, within the scale."""
        best = (life.mid if side == YES else PRICE_WHOLE - life.mid) - life.tick
        return max(life.tick, best - step * life.tick)

    def _size(self) -> int:
        draw = self._rng.random
        return 1 + int(draw() * 100_000) if draw() < 0.13 else SIZES[int(draw() * len(SIZES))]

    def _some_price(self, levels: dict[int, int]) -> int:
        """One of the levels that changed last, where books are busy."""
        newest = tuple(islice(reversed(levels), 12))
        return newest[int(self._rng.random() * len(newest))]

    # -- time ----------------------------------------------------------------------------------

    def items(self) -> Iterator[Item]:
        rng = self._rng
        self._set_agenda()
        mean_events = sum(s * e for s, e in zip(ACTION_SHARES, ACTION_EVENTS, strict=True))
        bursts_per_s = self._rate / mean_events
        mood = 0.0
        second_us = self._source.start_us
        while second_us < self._source.end_us:
            mood = 0.7 * mood + rng.gauss(0.0, 0.35)
            mean = bursts_per_s * math.exp(mood - 0.12)
            count = int(mean + rng.random())
            for at_us in self._instants(second_us, count):
                yield from self._until(at_us)
                if at_us < self._source.end_us:
                    self._burst(at_us)
            second_us += SECOND_US
        yield from self._until(self._source.end_us)

    def _instants(self, second_us: int, count: int) -> list[int]:
        """Instants within a second: a third of them crowd into a tenth of it."""
        rng = self._rng
        crowd = rng.randrange(0, 900_000)
        instants = [
            second_us + (crowd + rng.randrange(100_000))
            if rng.random() < 0.33
            else second_us + rng.randrange(SECOND_US)
            for _ in range(count)
        ]
        instants.sort()
        return instants

    def _until(self, at_us: int) -> Iterator[Item]:
        """What has been made, with the agenda's entries up to `at_us`."""
        yield from self._taken()
        while self._agenda and self._agenda[0][0] <= at_us:
            due_us, _, act = heapq.heappop(self._agenda)
            act(due_us)
            yield from self._taken()

    def _taken(self) -> list[Item]:
        made, self._out = self._out, []
        return made

    def _at(self, at_us: int, act: Callable[[int], object]) -> None:
        if at_us < self._source.end_us:
            heapq.heappush(self._agenda, (at_us, next(self._agenda_order), act))

    def _set_agenda(self) -> None:
        rng, start_us = self._rng, self._source.start_us
        count = len(self.lives)
        turnover = int(self._source.turnover_per_s * self._span_us / SECOND_US * AGENDA_SHARE)
        closes = turnover or max(2, int(count * CLOSES_SHARE))
        closing = rng.sample(self.lives, min(count - 1, closes))
        # In turn: snapshot alone, twice; burst; snapshot alone, once; burst.
        acts = (self._close_twice, self._close_with_burst, self._close_once, self._close_with_burst)
        for place, life in enumerate(closing):
            at_us = start_us + int(self._span_us * rng.uniform(0.1, 0.1 + AGENDA_SHARE))
            self._at(at_us, partial(acts[place % len(acts)], life))
        for _ in range(turnover or max(1, int(count * LISTINGS_SHARE))):
            self._at(start_us + int(self._span_us * rng.uniform(0.1, 0.8)), self._list)

    # -- life and death ------------------------------------------------------------------------

    def _list(self, at_us: int) -> None:
        life = self._new_life(len(self.lives))
        life.spec.open_us = at_us
        self.lives.append(life)
        self._weights.append(self._weights[-1] + 1 / 40**ZIPF_EXPONENT)
        self._out.append(ListingItem(at_us, life.spec))
        for step in range(10):
            self._change(
                life, step % 2, self._price(life, step % 2, step // 2), self._size(), at_us
            )

    def _scaled_us(self, low_s: float, high_s: float) -> int:
        """A delay as recorded, shorter in a short play."""
        drawn = int(self._rng.uniform(low_s, high_s) * SECOND_US)
        return min(drawn, self._span_us // 20 + self._rng.randrange(1000))

    def _close_with_burst(self, life: _Life, at_us: int) -> None:
        """Kind a: everything is removed in one microsecond; an empty snapshot follows."""
        life.closed = True
        self._out.append(StatusItem(at_us, life.number, "closed"))
        removals = [
            (side, price, size) for side in (YES, NO) for price, size in life.book[side].items()
        ]
        self._rng.shuffle(removals)
        for side, price, size in removals:
            for part in self._parts(size):
                self._change(life, side, price, -part, at_us)
        later_us = at_us + self._scaled_us(5.4, 8.2)
        self._at(later_us, partial(self._empty, life))
        self._at(later_us + self._scaled_us(1, 3), partial(self._settle, life))

    def _close_once(self, life: _Life, at_us: int) -> int:
        """Kind b: the empty snapshot is the only thing that empties the book."""
        life.closed = True
        self._out.append(StatusItem(at_us, life.number, "closed"))
        later_us = at_us + self._scaled_us(0.5, 1.0)
        self._at(later_us, partial(self._empty, life))
        return later_us

    def _close_twice(self, life: _Life, at_us: int) -> None:
        """Kind b with a second empty snapshot, up to 6 s later."""
        self._at(self._close_once(life, at_us) + self._scaled_us(0, 6), partial(self._empty, life))

    def _empty(self, life: _Life, at_us: int) -> None:
        life.book[YES].clear()
        life.book[NO].clear()
        self._out.append(EmptySnapshotItem(at_us, life.number))

    def _settle(self, life: _Life, at_us: int) -> None:
        self._out.append(StatusItem(at_us, life.number, "determined"))
        self._out.append(StatusItem(at_us, life.number, "finalized"))

    # -- trading -------------------------------------------------------------------------------

    def _burst(self, at_us: int) -> None:
        rng = self._rng
        life = self.lives[bisect(self._weights, rng.random() * self._weights[-1])]
        if life.closed:
            return
        act = self._acts[bisect(ACTION_STEPS, rng.random())]
        act(life, at_us)
        if life.next_ticker_us <= at_us:
            life.next_ticker_us = at_us + int(rng.uniform(0.65, 1.68) * SECOND_US)
            self._tell_ticker(life, at_us)

    def _change(self, life: _Life, side: int, price: int, delta: int, at_us: int) -> None:
        levels = life.book[side]
        size = levels.get(price, 0) + delta
        assert size >= 0, "a level must not become negative"
        if size:
            levels[price] = size
        else:
            del levels[price]
        exchange_us = at_us + life.offset_us
        item = DeltaItem(at_us, life.number, side, price, delta, exchange_us, life.form)
        self._out.append(item)

    def _parts(self, size: int) -> list[int]:
        """A size as orders: often several equal ones, which makes equal deltas."""
        count = self._rng.choice((1, 1, 1, 2, 3, 4))
        if size < count or size % count:
            return [size]
        return [size // count] * count

    def _add(self, life: _Life, at_us: int) -> None:
        rng = self._rng
        side = int(rng.random() * 2)
        step = min(30, int(rng.expovariate(0.4)))
        self._change(life, side, self._price(life, side, step), self._size(), at_us)

    def _cancel(self, life: _Life, at_us: int) -> None:
        rng = self._rng
        side = int(rng.random() * 2)
        levels = life.book[side]
        if not levels:
            self._add(life, at_us)
            return
        price = self._some_price(levels)
        size = levels[price]
        part = size if rng.random() < 0.4 else rng.randint(1, size)
        self._change(life, side, price, -part, at_us)

    def _amend(self, life: _Life, at_us: int) -> None:
        """An order moves: two deltas of one `ts`, sizes summing to zero."""
        rng = self._rng
        side = int(rng.random() * 2)
        levels = life.book[side]
        if not levels:
            self._add(life, at_us)
            return
        price = self._some_price(levels)
        part = min(levels[price], self._size())
        self._change(life, side, price, -part, at_us)
        target = self._price(life, side, min(20, int(rng.expovariate(0.5))))
        self._change(life, side, target, part, at_us)

    def _requote(self, life: _Life, at_us: int) -> None:
        """A market maker moves several orders at once."""
        for _ in range(4):
            self._amend(life, at_us)

    def _mass_cancel(self, life: _Life, at_us: int) -> None:
        """Many equal orders at few levels, put in and taken out in one microsecond each."""
        rng = self._rng
        side = int(rng.random() * 2)
        size = rng.choice(SIZES)
        prices = [self._price(life, side, step) for step in range(rng.randint(1, 3))]
        count = rng.randint(2, 6)
        for price in prices:
            self._change(life, side, price, size * count, at_us)
        for _ in range(count):
            for price in prices:
                self._change(life, side, price, -size, at_us)
        if rng.random() < 0.3:
            for price in prices * count:
                self._change(life, side, price, size, at_us)

    def _sweep(self, life: _Life, at_us: int) -> None:
        """A taker hits the best bids of one side: fills in one microsecond, the mid moves."""
        rng = self._rng
        if rng.random() < BLOCK_SHARE:
            self._tell_trade(life, YES, life.mid, self._size() * 10, at_us, block=True)
            return
        side = int(rng.random() * 2)
        for _ in range(rng.randint(1, 3)):
            levels = life.book[side]
            if not levels:
                self._add(life, at_us)
                return
            best = max(levels)
            size = levels[best] if rng.random() < 0.5 else rng.randint(1, levels[best])
            for part in self._parts(size):
                self._change(life, side, best, -part, at_us)
                self._tell_trade(life, side, best, part, at_us, block=False)
        move = -life.tick if side == YES else life.tick
        life.mid = min(PRICE_WHOLE - 10 * TICK, max(10 * TICK, life.mid + move))

    def _tell_trade(
        self, life: _Life, side: int, price: int, count: int, at_us: int, *, block: bool
    ) -> None:
        """A fill of a resting bid of `side` at `price`: the taker took the other side."""
        yes_price = price if side == YES else PRICE_WHOLE - price
        exchange_us = at_us + life.offset_us
        msg, rest = trade_texts(
            ticker=life.spec.ticker,
            trade_id=str(uuid.UUID(int=self._rng.getrandbits(128))),
            yes_price=yes_price,
            count=count,
            taker_yes=side == NO,
            is_block=block,
            exchange_us=exchange_us,
        )
        life.last_price, life.last_size = yes_price, count
        life.volume += count
        life.open_interest += count // 2
        self._out.append(TradeItem(at_us, life.number, msg, rest, exchange_us))

    def _tell_ticker(self, life: _Life, at_us: int) -> None:
        yes: Levels = sorted(life.book[YES].items())[-1:]
        no: Levels = sorted(life.book[NO].items())[-1:]
        msg = ticker_text(
            ticker=life.spec.ticker,
            market_id=life.spec.market_id,
            price=life.last_price,
            best_yes=yes[0] if yes else (0, 0),
            best_no=no[0] if no else (0, 0),
            volume=life.volume,
            open_interest=life.open_interest,
            last_size=life.last_size,
            exchange_us=at_us + life.offset_us,
        )
        self._out.append(TickerItem(at_us, life.number, msg))
