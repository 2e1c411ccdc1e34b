"""The exchange as one gatherer saw it: its recorded frames, sent to clients of today.

Purpose: play a recording (see `recording`). A client has subscriptions, sids and seqs of its own;
what it gets under them are the recorded frames themselves, only these numbers changed, and what the
gatherer lost it loses too:

- numbers lost before a frame are skipped in the seq of every subscription that the lost frames may
  have been for;
- a recorded connection that ends ends the clients that have something of it, in the same way;
- while the gatherer had no connection nobody can connect, and a channel that it had lost is
  answered once it was back.

A snapshot that a client asks for is the gatherer's own book of that moment; where the gatherer knew
none, the client waits for the recorded snapshot as the gatherer did.

Invariants: EXCH-18 of a recorded frame everything but sid, seq and id reaches the client byte for
byte (but prices for who asked for use_yes_price); EXCH-19 the seqs of a client's subscription are
1, 2, 3, ... but where the recording has a hole, a repeat or a late frame; EXCH-20 a frame that
cannot be given under a sid is counted by reason.

Does not do: reading spools, pace (player), commands (commands), sockets (server).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Final

from exchange.connection import Connection, Subscription
from exchange.envelope import Cut, cut, cut_any, on_yes_scale
from exchange.faults import FaultPlan
from exchange.frames import frame_head, snapshot_tail
from exchange.market_life import rest_form, rest_trades, told_by_lifecycle
from exchange.recording import (
    ControlItem,
    DamageItem,
    Following,
    FrameItem,
    RecordingSource,
    Renumbering,
    Seen,
    StateItem,
)
from exchange.timeline import Item
from exchange.truth import Ledger
from exchange.venue import CHANNELS, LIFECYCLE, PRICE_WHOLE, Pause, Venue
from marketdata import events
from marketdata.continuity import TERMINAL_CODES
from marketdata.runs import BOOK_CHANNEL

JUMP_MAX: Final = 1_000_000  # numbers that one gap skips at most: a damaged number may be any
ASKED_MAX: Final = 16  # of one market's waiting get_snapshot commands; the oldest go
KEPT_CLOSES: Final = frozenset({"closed_by_peer", "closed_by_us", "protocol"})
MARKET_ID: Final = re.compile(rb'"market_id"\s*:\s*"([^"\\]{1,64})"')
ANSWERS: Final = "answers to the gatherer"  # among the counts; what no client misses
NO_JSON: Final = "no JSON object"
NO_CODE: Final = 1005  # how a close frame without a code is told
SENT_CODES: Final = frozenset({*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)})


class RecordedVenue(Venue):
    """See the module."""

    def __init__(
        self, source: RecordingSource, plan: FaultPlan, *, crew: int, ledger: Ledger
    ) -> None:
        super().__init__(source, plan, crew=crew, ledger=ledger)
        self._source = source
        self.interleaves = False
        self.frames = 0
        self.counts: Counter[str] = Counter()  # frames that no client was given, by reason
        self.damage: list[str] = []
        self._renumbered: dict[Subscription, Renumbering] = {}
        self._asked: dict[tuple[Subscription, int], list[int]] = {}
        self._named: set[int] = set()  # markets whose UUID is known
        self._begun = False
        self._owed = 0  # connections that were cut and may come back
        self._newest_cut = 0
        self._return_due = False
        first = next(self._items)
        assert isinstance(first, StateItem), "a recording begins with what was known before it"
        self._load(first)
        self._begun = False  # whoever comes before the play begins is let in

    # -- what the shells ask -------------------------------------------------------------------

    def refusal(self) -> str | None:
        """Nobody can connect while the gatherer was not connected."""
        if self._begun and not self._following.continuity.open_connections():
            return "gatherer away"
        return None

    def returned(self) -> bool:
        """Whether as many clients as were cut have come back and subscribed."""
        back = (c for c in self.connections.values() if c.number > self._newest_cut)
        return sum(1 for c in back if c.by_sid or c.deferred) >= self._owed

    def forgive(self) -> None:
        """Whoever has not come back is not waited for any more."""
        self._owed = 0

    def told(self) -> dict[str, Any]:
        """What the status says of a recording beside the rest."""
        return {
            "form": "faithful",
            "frames": self.frames,
            "closes": self.faults["cut"],
            "not_given": dict(self.counts),
            "damage": list(self.damage),
        }

    def jump(self, items: Iterator[Item], at_us: int) -> None:
        super().jump(items, at_us)
        self._owed, self._return_due = 0, False

    def seal(self) -> None:
        """The gatherer's rows are counted and let go."""
        self.events += self._following.take().n_deltas()

    def unsubscribe(self, subscription: Subscription) -> None:
        super().unsubscribe(subscription)
        self._renumbered.pop(subscription, None)
        for key in [key for key in self._asked if key[0] is subscription]:
            del self._asked[key]

    def send_snapshot(
        self, subscription: Subscription, number: int, event: int = -1, command_id: int = 0
    ) -> None:
        """The gatherer's book; where it knew none, its next snapshot will be the answer."""
        del event
        market = self.markets[number]
        chain = self._following.chain(market.spec.ticker)
        if chain is None:
            asked = self._asked.setdefault((subscription, number), [])
            asked.append(command_id)
            del asked[:-ASKED_MAX]
            return
        yes, no = ([level for level in sorted(side.items()) if level[1] > 0]
                   for side in (chain.yes, chain.no))  # fmt: skip
        if subscription.yes_price:
            no = [(PRICE_WHOLE - price, size) for price, size in reversed(no)]
        self._made_snapshot(subscription, number, (yes, no), command_id)

    def _made_snapshot(
        self,
        subscription: Subscription,
        number: int,
        levels: tuple[list[tuple[int, int]], list[tuple[int, int]]],
        command_id: int = 0,
    ) -> None:
        spec = self.markets[number].spec
        head = frame_head("orderbook_snapshot", subscription.sid, command_id=command_id)
        tail = snapshot_tail(spec.ticker, spec.market_id, *levels)
        subscription.seq += 1
        subscription.connection.out.append(b"%b%d%b" % (head, subscription.seq, tail))

    # -- the play ------------------------------------------------------------------------------

    def _one(self, item: Item) -> Pause:
        if isinstance(item, FrameItem):
            self._begun = True
            self._frame(item)
        elif isinstance(item, ControlItem):
            self._begun = True
            self._control(item.body)
        elif isinstance(item, StateItem):
            self._load(item)
        elif isinstance(item, DamageItem):
            self.damage.append(item.damage)
        if self._return_due and self.refusal() is None:
            self._return_due = False
            return Pause.RETURN
        return Pause.LIMIT

    def _load(self, item: StateItem) -> None:
        """The gatherer's state of another moment, or of behind a stretch that cannot be read."""
        self._following = Following(item.continuity)
        self._renumbered.clear()
        self._asked.clear()
        self.lost.clear()
        self._begun = not item.is_fresh
        for ticker in self._following.carriers:
            self._number(ticker)
        for ticker, market_id in item.market_ids.items():
            if (number := self.numbers.get(ticker)) is not None:
                self.markets[number].spec.market_id = market_id
                self._named.add(number)
        for market in self.markets:
            self._show_book(market.number)
        if item.damage:
            self.damage.append(item.damage)
            self._cut_all([c for c in self.connections.values() if c.by_sid], {"reason": "damage"})
            return
        for market in self.markets:
            for subscription in market.books:
                if self._following.chain(market.spec.ticker) is None:
                    self._made_snapshot(subscription, market.number, ([], []))
                else:
                    self.send_snapshot(subscription, market.number)

    def _control(self, body: dict[str, Any]) -> None:
        following = self._following
        # A second connect of one connection: the close between them was lost.
        if body.get("k") in ("close", "connect"):
            streams = following.of_connection(int(body.get("conn", 0)))
            touched = {s.connection: None for stream in streams for s in self._touched(stream)}
            channels = {following.streams[stream] for stream in streams}
            freed = [ticker for stream in streams for ticker in following.ended(stream)]
            following.continuity.control(body)
            self._cut_all(list(touched), body)
            self._handed_over(freed)
            self._lose(channels)
            return
        following.continuity.control(body)
        if body.get("k") == "rest_trades":
            for exchange_us, ticker, text in rest_trades(body):
                number = self._number(ticker)
                if number is not None:
                    self.rest_trades.append((exchange_us, number, text))

    def _frame(self, item: FrameItem) -> None:
        seen = self._following.see(item)
        self.frames += 1
        self.lost.discard(seen.channel)
        if seen.missing:
            self._jump(seen)
        event = seen.event
        if isinstance(event, events.Subscribed | events.Ok | events.Unsubscribed | events.Error):
            self._reply(seen, event, item)
            return
        if seen.channel not in CHANNELS:
            self.counts[_why_not(seen, item.frame)] += 1
            return
        made = cut(item.frame)
        if made is None:
            self.counts[NO_JSON] += 1
            return
        number = None if seen.market is None else self._number(seen.market)
        if seen.market is not None and number is None:
            return  # of a market that was not asked for
        if number is not None and number not in self._named:
            self._name(number, item.frame)
        if seen.channel == BOOK_CHANNEL:
            self._book(seen, number, made, item.frame)
            return
        if number is not None:
            self._remember(seen, number, made)
        subscribers: list[Subscription] = list(self._all[seen.channel])
        if number is not None and seen.channel != LIFECYCLE:
            subscribers += self._subscribers(self.markets[number], seen.channel)
        elif number is None:
            subscribers = self._holders(seen.channel)
        for subscription in subscribers:
            self._give(subscription, made, seen)

    def _book(self, seen: Seen, number: int | None, made: Cut, frame: bytes) -> None:
        """A change, a snapshot, or what stands in its place in the book's subscription."""
        stream = seen.stream
        assert stream is not None, "a channel is known by its stream"
        if number is None:  # no market can be told: it may be of any
            for subscription in self._touched(stream):
                self._give(subscription, made, seen)
            return
        market = self.markets[number]
        if not self._following.carries(market.spec.ticker, stream):
            self.counts["carried twice"] += 1
            return
        is_snapshot = isinstance(seen.event, events.Snapshot)
        if is_snapshot:
            self._show_book(number)
        turned = made
        if market.yes_priced and (is_snapshot or getattr(seen.event, "side", 0)):
            turned = cut(on_yes_scale(frame)) or made
        for subscription in market.books:
            form = turned if subscription.yes_price else made
            asked = self._asked.pop((subscription, number), None) if is_snapshot else None
            for command_id in asked or (0,):
                self._give(subscription, form.answering(command_id) if command_id else form, seen)

    def _give(self, subscription: Subscription, made: Cut, seen: Seen) -> None:
        """Sends a frame under the subscription's own numbers."""
        number, stream, seq = 0, seen.stream, seen.seq
        if made.has_seq and stream is not None and seq is not None:
            held = self._renumbering(subscription)
            if seen.is_old:
                number = held.number_of(stream, seq) or subscription.seq
            else:
                number = subscription.seq = subscription.seq + 1
                held.given(stream, seq, number)
        elif made.has_seq:
            number = subscription.seq = subscription.seq + 1
        subscription.connection.out.append(made.frame(subscription.sid, number))

    def _jump(self, seen: Seen) -> None:
        """Numbers were lost; whose they were nobody knows, so everybody misses them."""
        stream, seq = seen.stream, seen.seq
        assert stream is not None, "only a frame with a number shows a gap"
        assert seq is not None, "only a frame with a number shows a gap"
        self.tell("gap", None, missing=seen.missing)
        count = min(seen.missing, JUMP_MAX)
        for subscription in self._touched(stream):
            held = self._renumbering(subscription)
            held.jumped(stream, seq - seen.missing, subscription.seq + 1, count)
            subscription.seq += count

    def _reply(
        self,
        seen: Seen,
        event: events.Subscribed | events.Ok | events.Unsubscribed | events.Error,
        item: FrameItem,
    ) -> None:
        """An answer to the gatherer is not for the client; what it does to a stream is."""
        stream, following = seen.stream, self._following
        self.counts[ANSWERS] += 1
        if stream is None or stream not in following.streams:
            return
        if isinstance(event, events.Ok):
            self._handed_over(following.dropped(stream, list(following.carried.get(stream, ()))))
        elif isinstance(event, events.Unsubscribed):
            self._over(stream)
        elif isinstance(event, events.Error) and event.code in TERMINAL_CODES:
            made = cut(item.frame)
            touched = self._touched(stream)
            for subscription in touched:
                if made is not None:
                    self._give(subscription, made, seen)
            self._over(stream)
            for subscription in touched:
                self.unsubscribe(subscription)

    def _over(self, stream: tuple[int, int]) -> None:
        channel = self._following.streams[stream]
        self._handed_over(self._following.ended(stream))
        self._lose({channel})

    # -- who has what --------------------------------------------------------------------------

    def _touched(self, stream: tuple[int, int]) -> list[Subscription]:
        """The clients' subscriptions that have something of a stream."""
        channel = self._following.streams.get(stream, "")
        holders = self._holders(channel)
        if channel != BOOK_CHANNEL:
            return holders
        tickers = self._following.carried.get(stream, ())
        numbers = {self.numbers[ticker] for ticker in tickers if ticker in self.numbers}
        return [s for s in holders if s.markets is not None and not s.markets.isdisjoint(numbers)]

    def _holders(self, channel: str) -> list[Subscription]:
        held = (connection.by_channel.get(channel) for connection in self.connections.values())
        return [subscription for subscription in held if subscription is not None]

    def _handed_over(self, tickers: Iterable[str]) -> None:
        """Another stream carries these books now: its book may be some changes apart."""
        for ticker in tickers:
            number = self.numbers.get(ticker)
            if number is None:
                continue
            self._show_book(number)
            if self._following.chain(ticker) is not None:
                for subscription in self.markets[number].books:
                    self.send_snapshot(subscription, number)

    def _lose(self, channels: Iterable[str]) -> None:
        books = {BOOK_CHANNEL}  # answered at once: its snapshots come when the gatherer's do
        self.lost |= {c for c in channels if not self._following.has_channel(c)} - books

    def _show_book(self, number: int) -> None:
        """REST answers from the gatherer's book; from an empty one where it knew none."""
        market = self.markets[number]
        chain = self._following.chain(market.spec.ticker)
        market.book = ({}, {}) if chain is None else (chain.yes, chain.no)

    def _renumbering(self, subscription: Subscription) -> Renumbering:
        held = self._renumbered.get(subscription)
        if held is None:
            held = self._renumbered[subscription] = Renumbering()
        return held

    def _cut_all(self, connections: list[Connection], body: dict[str, Any]) -> None:
        """Ends clients as the recorded connection ended: with its close frame if there was one."""
        code, text = int(body.get("code") or 0), str(body.get("text") or "")
        is_kept = body.get("reason") in KEPT_CLOSES and (code in SENT_CODES or code == NO_CODE)
        for connection in connections:
            connection.close_frame = (None if code == NO_CODE else code, text)
            self.cut(connection, "close" if is_kept else "drop", "cut")
            self._newest_cut = max(self._newest_cut, connection.number)
        self._owed += len(connections)
        self._return_due |= bool(connections)

    # -- markets -------------------------------------------------------------------------------

    def _number(self, ticker: str) -> int | None:
        """The market's number; one that the source did not foresee is listed."""
        number = self.numbers.get(ticker)
        if number is None:
            spec = self._source.spec_of(ticker)
            if spec is None:
                return None
            self._list(spec)
            number = self.numbers[ticker]
        return number

    def _name(self, number: int, frame: bytes) -> None:
        found = MARKET_ID.search(frame)
        if found is not None:
            self.markets[number].spec.market_id = found[1].decode("utf-8", "replace")
            self._named.add(number)

    def _remember(self, seen: Seen, number: int, made: Cut) -> None:
        """What REST will tell."""
        market, event = self.markets[number], seen.event
        if isinstance(event, events.Trade):
            self.trades_told += 1
            exchange_us = self.now_us if event.exchange_us is None else event.exchange_us
            self.rest_trades.append((exchange_us, number, rest_form(made.msg(), exchange_us)))
        elif isinstance(event, events.Ticker):
            self.tickers_told += 1
            market.told = made.msg()
        elif isinstance(event, events.MarketLifecycle):
            market.status = told_by_lifecycle(market.spec, market.status, event.body)


def _why_not(seen: Seen, frame: bytes) -> str:
    if seen.channel:
        return f"channel {seen.channel}"
    return NO_JSON if cut_any(frame) is None else "no subscription"
