"""A session against an exchange that answers late, wrongly or not at all, and then well again.

Whatever happened, once the exchange behaves the session must come to rest with every wanted book
subscribed and shown, on one connection.
"""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from marketdata import events
from marketdata.effects import NS_PER_S
from marketdata.session import (
    Effects,
    Reconnect,
    SendCommand,
    Session,
    SessionSettings,
    SessionState,
)

BOOKS = "orderbook_delta"
UNIVERSE = tuple(f"M{n}" for n in range(12))
UNKNOWN = "M3"
"""A ticker the exchange refuses in every command (error 11, unnamed)."""
CODES = (1, 6, 7, 10, 18, 25, 26, 27)


class Exchange:
    """One connection as the exchange sees it. `queue` holds replies that are under way."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.sids: dict[str, int] = {}
        self.books: dict[str, None] = {}
        self.next_sid = 1
        self.queue: list[events.Decoded] = []

    def take(self, payload: bytes, *, faulty: bool) -> None:
        """Carry out one command, or a fault instead of it."""
        command = msgspec.json.decode(payload)
        id_, params = command["id"], command.get("params", {})
        tickers = params.get("market_tickers", [])
        if faulty and self.rng.random() < 0.1:
            return  # the reply is lost
        if faulty and self.rng.random() < 0.15:
            code = self.rng.choice(CODES)
            self.queue.append(events.Error(code, "fault", [], id_, None, None))
            return
        if UNKNOWN in tickers and command["cmd"] != "subscribe":
            self.queue.append(events.Error(11, "unnamed", [], id_, None, None))
            return
        if UNKNOWN in tickers:
            self.queue.append(events.Error(16, "named", [UNKNOWN], id_, None, None))
            return
        getattr(self, command["cmd"])(id_, params, tickers)

    def subscribe(self, id_: int, params: dict[str, Any], tickers: list[str]) -> None:
        (channel,) = params["channels"]
        if channel in self.sids:
            self.queue.append(events.Ok(id_, self.sids[channel], 1, None, None))
        else:
            self.sids[channel] = self.next_sid
            self.next_sid += 1
            self.queue.append(events.Subscribed(id_, channel, self.sids[channel]))
        self.add(tickers)

    def update_subscription(self, id_: int, params: dict[str, Any], tickers: list[str]) -> None:
        (sid,) = params["sids"]
        if self.sids.get(BOOKS) != sid:
            self.queue.append(events.Error(7, "unknown", [], id_, None, None))
            return
        if params["action"] == "get_snapshot":
            self.snapshots([t for t in tickers if t in self.books])
            return
        self.queue.append(events.Ok(id_, sid, 1, None, None))
        if params["action"] == "add_markets":
            self.add(tickers)
        else:
            for ticker in tickers:
                self.books.pop(ticker, None)

    def list_subscriptions(self, id_: int, params: dict[str, Any], tickers: list[str]) -> None:
        self.queue.append(events.Ok(id_, None, None, None, list(self.sids.items())))

    def add(self, tickers: list[str]) -> None:
        self.books |= dict.fromkeys(tickers)
        self.snapshots(tickers)

    def snapshots(self, tickers: list[str]) -> None:
        sid = self.sids[BOOKS] if tickers else 0
        self.queue += [events.Snapshot(ticker, [], [], sid, None, None) for ticker in tickers]

    def overflow(self) -> None:
        """Error 25: the subscription is dead."""
        sid = self.sids.pop(BOOKS, None)
        if sid is not None:
            self.books.clear()
            self.queue.append(events.Error(25, "overflow", [], None, sid, 1))


class World:
    """A session, its exchange and the time."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.now = 0
        self.faulty = True
        self.wanted: tuple[str, ...] = UNIVERSE[:6]
        self.ids: set[int] = set()
        self.reconnects = 0
        self.session = Session(
            SessionSettings(
                channels=("trade",),
                tickers_per_command=3,
                tickers_per_snapshot_command=2,
                snapshots_at_once=4,
                commands_per_s=5,
                audit_interval_ns=60 * NS_PER_S,
                refusal_ns=90 * NS_PER_S,
            )
        )
        self.session.want(self.wanted, 0)
        self.connect()

    def connect(self) -> None:
        self.exchange = Exchange(self.rng)
        self.carry_out(self.session.on_open(self.now))

    def carry_out(self, effects: Effects) -> None:
        for effect in effects:
            if isinstance(effect, SendCommand):
                assert effect.id not in self.ids
                self.ids.add(effect.id)
                self.exchange.take(effect.payload, faulty=self.faulty)
            elif isinstance(effect, Reconnect):
                assert effect is effects[-1] or not any(
                    isinstance(e, SendCommand) for e in effects[effects.index(effect) :]
                )
                self.reconnects += 1
        if self.session.state is SessionState.CLOSING:
            self.session.on_closed()
            self.connect()

    def deliver(self) -> None:
        """One reply that is under way, any of them; it may be lost or doubled by a fault."""
        queue = self.exchange.queue
        if not queue:
            return
        event = queue.pop(self.rng.randrange(len(queue)))
        fate = self.rng.random() if self.faulty else 1
        if fate < 0.05:
            return
        if fate < 0.1:
            queue.append(event)
        self.carry_out(self.session.on_event(event, self.now))

    def wait(self, span_ns: int) -> None:
        """Time passes; the timer is called when it is due and never in a circle."""
        end = self.now + span_ns
        while True:
            due = self.session.next_due()
            if due is None or due > end:
                break
            self.now = max(self.now, due)
            self.carry_out(self.session.on_timer(self.now))
            after = self.session.next_due()
            assert after is None or after > self.now
        self.now = end

    def step(self) -> None:
        """Something of the faulty time."""
        match self.rng.randrange(12):
            case 0:
                self.exchange.overflow()
            case 1 | 2:
                sid = self.session.sid_of(BOOKS)
                if sid is not None:
                    self.carry_out(self.session.on_gap(sid, self.now))
            case 3:
                k = self.rng.randrange(len(UNIVERSE))
                before, self.wanted = self.wanted, tuple(self.rng.sample(UNIVERSE, k))
                if self.rng.random() < 0.5:
                    self.carry_out(self.session.want(self.wanted, self.now))
                else:
                    drop = [t for t in before if t not in self.wanted]
                    self.carry_out(self.session.change(self.wanted, drop, self.now))
            case 4 | 5:
                self.wait(self.rng.randrange(12 * NS_PER_S))
            case _:
                self.deliver()

    def settle(self) -> None:
        """The exchange answers at once and rightly, for five minutes."""
        self.faulty = False
        for _ in range(300):
            while self.exchange.queue:
                self.deliver()
            self.wait(NS_PER_S)
            self.session.on_frames(self.now)
        while self.exchange.queue:
            self.deliver()


@settings(max_examples=150)
@given(st.integers(0, 2**32), st.integers(0, 80))
def test_session_comes_to_rest_with_every_book_once_the_exchange_behaves(
    seed: int, steps: int
) -> None:
    """INV-41 to INV-44 over thousands of histories."""
    world = World(Random(seed))
    for _ in range(steps):
        world.step()
    world.settle()
    reconnects = world.reconnects
    session = world.session
    expected = set(world.wanted) - {UNKNOWN}
    assert session.subscribed == expected
    assert set(world.exchange.books) >= session.subscribed
    assert session.n_waiting == 0
    assert session.n_covered == len(expected)
    assert session.sid_of("trade") is not None
    world.settle()
    assert world.reconnects == reconnects
