"""Sans-I/O protocol of one connection to the exchange: events in, effects out, time an argument.

Purpose: bring a connection to the subscriptions that are wanted and keep it there: commands and
their acknowledgements in any order, fresh snapshots after a gap, audits, the silence of a dead one.

API (every `now_ns` is of one monotonic clock; methods return the effects to carry out, in order):
    session = Session(SessionSettings(channels=("trade", "ticker")))  # channels without markets
    session.want(tickers, now_ns)     # the whole set of wanted order books; at any time and state
    session.change(add, drop, now_ns)  # what joins and leaves it: costs what it names, no more
    session.on_open(now_ns)           # the socket is up; forgets all of the connection before
    session.on_frames(now_ns)         # frames arrived: once a batch is enough; no effects
    session.on_event(event, now_ns)   # a decoded event that is no Delta, Trade or Ticker
    session.on_gap(sid, now_ns, tickers=None, seq=None)  # continuity saw a gap before frame `seq`;
                                      # tickers: only these were touched
    session.on_timer(now_ns)          # at or after `next_due()`
    session.next_due() -> int | None  # when `on_timer` is wanted; may change with any call
    session.close(), session.on_closed()
Effects: SendCommand (send `payload` as one text frame), Reconnect (close the socket and connect
anew, with the caller's back-off; everything is ignored until `on_open`), Report (for health,
metrics and the spool's control records).

Invariants:
- INV-41 every market that was asked for ends as subscribed with a snapshot, or in a Report, or the
  connection is given up: nothing is waited for without a deadline.
- INV-42 after a gap every touched market is asked for a snapshot until one comes.
- INV-43 commands in a second, tickers in a command and snapshots asked for at once have limits;
  what does not fit waits.
- INV-44 `next_due` is never in the past once `on_timer` was called: no busy loop.

Does not do: sockets, clocks, sequence numbers (sequence, continuity), decoding (wire), back-off.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import islice
from typing import Final

from marketdata import events
from marketdata.commands import (
    CODE_ALREADY_SUBSCRIBED,
    CODE_AUTHENTICATION,
    CODE_MARKET_LIMIT,
    CODE_UNSUPPORTED_ACTION,
    RETRY_CODES,
    TERMINAL_CODES,
    TICKER_CODES,
    AuditRounds,
    Bare,
    Batch,
    Command,
    Kind,
    Ledger,
    Refusals,
    chunks,
    more_than,
)
from marketdata.effects import (
    Effect,
    Effects,
    Reconnect,
    Report,
    ReportKind,
    SendCommand,
    SessionSettings,
    SessionState,
)
from marketdata.wanted import Books

__all__ = ["Effect", "Effects", "Reconnect", "Report", "ReportKind", "SendCommand"]
__all__ += ["Session", "SessionSettings", "SessionState"]

BOOK_CHANNEL: Final = "orderbook_delta"


class Session:
    """See the module's text."""

    def __init__(self, settings: SessionSettings | None = None) -> None:
        self.settings = settings or SessionSettings()
        self.state = SessionState.CONNECTING
        self._books = Books()
        self._subscribed = self._books.subscribed
        self._can_ask_snapshots = True  # of the exchange, not of a connection
        self._bare = Bare()
        self._audits = AuditRounds(self.settings)
        self._ledger = Ledger(self.settings)
        self._now_ns = 0
        self._reset(0)

    def _reset(self, now_ns: int) -> None:
        """Forget everything that belongs to one connection."""
        self._sids: dict[str, int] = {}  # channel -> sid
        self._ledger.reset()
        self._refusals = Refusals(self.settings.refusal_ns)
        self._books.reset()
        self._books.forgive()
        self._bare.lost()
        self._stale: dict[str, None] = {}  # books that need a snapshot and were not asked for yet
        self._batches: list[Batch] = []
        self._retry_at: dict[str, int] = {}  # channel -> not subscribed before
        self._last_data_ns = now_ns
        self._probed_ns: int | None = None
        self._last_snapshot_ns = now_ns
        self._audits.restart(now_ns)
        self._gaps: deque[int] = deque()
        self._losses: deque[int] = deque()
        self._gap_seq = 0  # of the book sid: the first number after its last gap

    # --- what a shell asks

    @property
    def subscribed(self) -> frozenset[str]:
        """Books whose subscription was acknowledged on this connection."""
        return frozenset(self._subscribed)

    @property
    def n_wanted(self) -> int:
        """Books this connection shall carry."""
        return len(self._books.wanted)

    def covers(self, ticker: str) -> bool:
        """Whether this book is subscribed, and had a snapshot and no gap since."""
        return ticker in self._subscribed and not self._bare.is_bare(ticker)

    @property
    def n_waiting(self) -> int:
        """Books that have been asked for a snapshot, or shall be."""
        return len(self._ledger.waiting.keys() | self._stale.keys())

    @property
    def n_covered(self) -> int:
        """Subscribed books that had a snapshot and no gap since: recorded without a hole now."""
        return len(self._subscribed) - self._bare.count(self._subscribed)

    def n_missing(self, now_ns: int, grace_ns: int) -> int:
        """Wanted books that should be covered and are not: refused, cut off, touched by a gap, or
        new ones still without a snapshot `grace_ns` after they were asked for."""
        if self.state is not SessionState.OPEN:
            return len(self._books.wanted)
        return self._bare.late(now_ns, grace_ns) + len(self._books.refused)

    def sid_of(self, channel: str) -> int | None:
        """The sid of a channel on this connection."""
        return self._sids.get(channel)

    def next_due(self) -> int | None:
        """When `on_timer` should be called; None: not before something else happens."""
        if self.state is not SessionState.OPEN:
            return None
        due = [command.deadline_ns for command in self._ledger]
        due.append(self._watchdog_due())
        if self._audits_run():
            due.append(self._audits.due_ns)
        if self._refusals.due_ns is not None:
            due.append(self._refusals.due_ns)
        # What is due already waits for a reply, not for the clock.
        later = [batch.due_ns for batch in self._batches]
        later += self._retry_at.values()
        later.append(self._ledger.room_at() or 0)
        return min(due + [at for at in later if at > self._now_ns])

    # --- inputs

    def want(self, tickers: Iterable[str], now_ns: int) -> Effects:
        """The whole set of order books this connection shall carry."""
        self._books.want(tickers)
        return self._pump(now_ns, [])

    def change(self, add: Iterable[str], drop: Iterable[str], now_ns: int) -> Effects:
        """Order books that join and that leave what this connection shall carry."""
        self._books.change(add, drop)
        return self._pump(now_ns, [])

    def on_open(self, now_ns: int) -> Effects:
        """The connection is up."""
        self._reset(now_ns)
        self.state = SessionState.OPEN
        return self._pump(now_ns, [])

    def on_frames(self, now_ns: int) -> None:
        """Frames have arrived, whatever they say."""
        self._last_data_ns = now_ns
        self._probed_ns = None

    def on_event(self, event: events.Decoded, now_ns: int) -> Effects:
        """A decoded event. Deltas, trades and tickers need not be shown."""
        effects: Effects = []
        if self.state is not SessionState.OPEN:
            return effects
        self.on_frames(now_ns)
        match event:
            case events.Snapshot():
                self._got_snapshot(event, now_ns)
            case events.Subscribed():
                self._got_subscribed(event, now_ns, effects)
            case events.Ok():
                self._got_ok(event, now_ns, effects)
            case events.Error():
                self._got_error(event, now_ns, effects)
            case events.Unsubscribed():
                self._lose(event.sid, None, "unsubscribed", now_ns, effects)
        return self._pump(now_ns, effects)

    def on_gap(
        self,
        sid: int,
        now_ns: int,
        tickers: Iterable[str] | None = None,
        seq: int | None = None,
    ) -> Effects:
        """Continuity lost count of a sid: its books (or only `tickers`) need fresh snapshots.

        `seq`: number of the first frame after the gap. A shell that tells gaps and events of one
        batch apart from their order should give it: an older snapshot then settles nothing.
        """
        channel = self._channel_of(sid)
        if self.state is not SessionState.OPEN or channel is None:
            return []
        effects: Effects = [Report(ReportKind.GAP, channel, sid)]
        if channel != BOOK_CHANNEL:
            return effects
        self._gap_seq = max(self._gap_seq, seq or 0)
        if more_than(self._gaps, self.settings.gaps_per_minute, now_ns):
            return self._give_up("gaps", effects)
        if not self._can_ask_snapshots:
            return self._give_up("gap_without_snapshots", effects)
        # Also those that wait for a snapshot already: it may have been lost in this very gap.
        touched = self._subscribed if tickers is None else tickers
        fresh = dict.fromkeys(t for t in touched if t in self._subscribed)
        self._stale |= fresh
        self._bare.asked(fresh, now_ns)
        return self._pump(now_ns, effects)

    def ask(self, tickers: Iterable[str], now_ns: int) -> Effects:
        """Have these books sent again: something else than a gap casts doubt on them."""
        known = self._subscribed if self._can_ask_snapshots else {}
        self._stale |= dict.fromkeys(t for t in tickers if t in known)
        return self._pump(now_ns, [])

    def on_timer(self, now_ns: int) -> Effects:
        """Whatever is due."""
        effects: Effects = []
        if self.state is not SessionState.OPEN:
            return effects
        if self._watchdog_due() <= now_ns:
            if self._probed_ns is not None:
                return self._give_up("stall", effects)
            self._probe(now_ns, effects)
        for command in self._ledger:
            if command.deadline_ns > now_ns:
                continue
            if not command.is_acked and command.kind != "snapshot":
                return self._give_up("ack_timeout", effects)
            self._snapshots_overdue(command, now_ns, effects)
        if self._refusals.forgive(now_ns):
            self._books.forgive()
        if self._audits_run() and self._audits.due_ns <= now_ns:
            waiting = self._ledger.waiting
            books = self._audits.take(self._subscribed, now_ns)
            self._stale |= dict.fromkeys(t for t in books if t not in waiting)
        return self._pump(now_ns, effects)

    def close(self) -> None:
        """We are closing: no more effects."""
        self.state = SessionState.CLOSING

    def on_closed(self) -> None:
        """The connection is gone, whoever ended it."""
        self.state = SessionState.CLOSED

    # --- replies

    def _got_snapshot(self, event: events.Snapshot, now_ns: int) -> None:
        self._last_snapshot_ns = now_ns
        is_book_sid = event.sid is not None and event.sid == self._sids.get(BOOK_CHANNEL)
        if is_book_sid and event.seq is not None and event.seq < self._gap_seq:
            return  # from before the last gap
        self._stale.pop(event.market, None)
        self._bare.anchored(event.market)
        self._ledger.got_snapshot(event.market)

    def _got_subscribed(self, event: events.Subscribed, now_ns: int, effects: Effects) -> None:
        command = self._ledger.get(event.id)
        channel = event.channel or (command.channel if command else None)
        if channel is None or (command is None and channel in self._sids):
            return  # about nothing of ours, or a repeat
        if event.sid is None:  # the oldest form does not tell it: ask
            self._send("list", (), now_ns, effects, "")
            return
        self._sids[channel] = event.sid
        effects.append(Report(ReportKind.SUBSCRIBED, channel, event.sid))
        if command is not None:
            self._ack(command, now_ns, effects)

    def _got_ok(self, event: events.Ok, now_ns: int, effects: Effects) -> None:
        command = self._ledger.get(event.id)
        if command is None or command.is_acked:
            return
        if command.kind == "list":
            self._got_list(command, dict(event.subscriptions or ()), now_ns, effects)
            return
        if command.kind == "subscribe" and command.channel not in self._sids:
            if event.sid is None:
                self._send("list", (), now_ns, effects, "")
            else:  # merged into a subscription whose `subscribed` comes later
                self._sids[command.channel] = event.sid
        if event.markets is not None and command.kind in ("subscribe", "add"):
            listed = set(event.markets)
            unlisted = tuple(t for t in command.asked if t not in listed)
            if unlisted:
                command.asked = tuple(t for t in command.asked if t in listed)
                self._ledger.miss_no_more(command, unlisted)
                self._refuse(unlisted, None, "not in the list of the reply", effects)
        self._ack(command, now_ns, effects)

    def _ack(self, command: Command, now_ns: int, effects: Effects) -> None:
        if command.is_acked:
            return
        self._ledger.acknowledge(command, now_ns)
        if command.kind in ("subscribe", "add"):
            self._books.acknowledged(command.asked)
            report = ReportKind.MARKETS_ADDED
        elif command.kind == "delete":
            self._books.acknowledged(command.asked, delete=True)
            for ticker in command.asked:
                self._stale.pop(ticker, None)
                self._bare.gone(ticker)
                self._ledger.got_snapshot(ticker)
            report = ReportKind.MARKETS_REMOVED
        else:
            return
        if command.asked:
            sid = self._sids.get(command.channel)
            effects.append(Report(report, command.channel, sid, command.asked))

    def _got_list(
        self, command: Command, listed: dict[str, int], now_ns: int, effects: Effects
    ) -> None:
        self._ledger.forget(command)
        for channel, sid in list(self._sids.items()):
            if listed.get(channel) != sid:
                self._lose(sid, None, "not in the list of subscriptions", now_ns, effects)
        ours = {BOOK_CHANNEL, *self.settings.channels}
        for channel, sid in listed.items():
            if channel in ours and channel not in self._sids:
                self._sids[channel] = sid
                effects.append(Report(ReportKind.SUBSCRIBED, channel, sid))
        for pending in self._ledger:
            if pending.kind == "subscribe" and pending.channel in listed:
                self._ack(pending, now_ns, effects)

    # --- errors

    def _got_error(self, event: events.Error, now_ns: int, effects: Effects) -> None:
        command = self._ledger.get(event.id)
        if command is not None:
            self._ledger.forget(command)
        if event.code == CODE_AUTHENTICATION:
            self._give_up("authentication", effects)
            return
        sid = event.sid if event.sid is not None or command is None else command.sid
        if event.code in TERMINAL_CODES and sid is not None:
            if command is not None:  # it died with its subscription
                self._books.open_again(command.asked)
            self._lose(sid, event.code, event.message, now_ns, effects)
            return
        channel, named = command.channel if command else "", tuple(event.markets)
        effects.append(
            Report(ReportKind.COMMAND_FAILED, channel, sid, named, event.code, event.message)
        )
        if command is None:
            return
        if event.code == CODE_UNSUPPORTED_ACTION and command.kind == "snapshot":
            self._can_ask_snapshots = False
            self._give_up("snapshots_unsupported", effects)
        elif not command.asked:
            self._channel_failed(command, event, now_ns, effects)
        else:
            self._tickers_failed(command, event, now_ns, effects)

    def _channel_failed(
        self, command: Command, event: events.Error, now_ns: int, effects: Effects
    ) -> None:
        """A subscribe without tickers, or a list, was refused."""
        self._retry_at[command.channel] = now_ns + self.settings.retry_delay_ns
        if event.code == CODE_ALREADY_SUBSCRIBED:
            self._send("list", (), now_ns, effects, "")
        elif event.code not in RETRY_CODES | TERMINAL_CODES and command.channel:
            self._refusals.channels.add(command.channel)
            self._refusals.renew(now_ns)
            report = ReportKind.CHANNEL_REFUSED
            effects.append(Report(report, command.channel, None, (), event.code, event.message))

    def _tickers_failed(
        self, command: Command, event: events.Error, now_ns: int, effects: Effects
    ) -> None:
        """A command with tickers was refused: again later, without the named ones, or in halves."""
        asked, later = command.asked, now_ns + self.settings.retry_delay_ns
        named = tuple(t for t in asked if t in set(event.markets))
        if event.code == CODE_ALREADY_SUBSCRIBED and command.kind in ("subscribe", "add"):
            self._books.open_again(asked)
            self._retry_at[command.channel] = later
            self._send("list", (), now_ns, effects, "")
        elif event.code in RETRY_CODES:
            self._again(command, asked, command.tries, later)
        elif named:
            self._refuse_of(command.kind, named, event, effects)
            rest = tuple(t for t in asked if t not in named)
            if rest:
                self._again(command, rest, command.tries, now_ns)
        elif event.code == CODE_MARKET_LIMIT or len(asked) == 1:
            self._refuse_of(command.kind, asked, event, effects)
        elif event.code in TICKER_CODES or command.tries >= self.settings.command_tries:
            half = len(asked) // 2
            self._again(command, asked[:half], command.tries, now_ns)
            self._again(command, asked[half:], command.tries, now_ns)
        else:
            self._again(command, asked, command.tries + 1, later)

    def _again(self, command: Command, tickers: tuple[str, ...], tries: int, due_ns: int) -> None:
        self._batches.append(Batch(command.kind, tickers, tries, due_ns, command.first_sent_ns))

    def _refuse_of(
        self, kind: Kind, tickers: tuple[str, ...], event: events.Error, effects: Effects
    ) -> None:
        """What becomes of tickers whose command is refused for good."""
        if kind in ("subscribe", "add"):
            self._refuse(tickers, event.code, event.message, effects)
            return
        if kind == "delete":
            self._books.keep(tickers)
            self._refusals.renew(self._now_ns)
        report = ReportKind.SNAPSHOTS_MISSING if kind == "snapshot" else ReportKind.COMMAND_FAILED
        effects.append(Report(report, BOOK_CHANNEL, None, tickers, event.code, event.message))

    def _refuse(
        self, tickers: tuple[str, ...], code: int | None, message: str, effects: Effects
    ) -> None:
        for ticker in tickers:
            self._bare.gone(ticker)
        self._books.refuse(tickers)
        self._refusals.renew(self._now_ns)
        effects.append(
            Report(ReportKind.MARKETS_REFUSED, BOOK_CHANNEL, None, tickers, code, message)
        )

    def _lose(
        self, sid: int | None, code: int | None, message: str, now_ns: int, effects: Effects
    ) -> None:
        """A subscription is dead: everything that hung on it is wanted anew."""
        channel = self._channel_of(sid)
        if channel is None:
            return
        del self._sids[channel]
        effects.append(Report(ReportKind.SUBSCRIPTION_LOST, channel, sid, (), code, message))
        if channel == BOOK_CHANNEL:
            for command in self._ledger:
                if command.channel == BOOK_CHANNEL:
                    self._ledger.forget(command)
            self._batches.clear()
            self._gap_seq = 0
            self._books.reset()
            self._bare.lost()
            self._stale.clear()
        if more_than(self._losses, self.settings.resubscribes_per_minute, now_ns):
            self._give_up("subscription_lost", effects)

    # --- timers

    def _watchdog_due(self) -> int:
        if self._probed_ns is not None:
            return self._probed_ns + self.settings.probe_timeout_ns
        return self._last_data_ns + self.settings.data_timeout_ns

    def _probe(self, now_ns: int, effects: Effects) -> None:
        """Silence: ask for something that must be answered."""
        self._probed_ns = now_ns
        effects.append(Report(ReportKind.STALL))
        if BOOK_CHANNEL in self._sids and self._subscribed and self._can_ask_snapshots:
            first = next(iter(self._subscribed))
            self._send("snapshot", (first,), now_ns, effects)
        else:
            self._send("list", (), now_ns, effects, "")

    def _snapshots_overdue(self, command: Command, now_ns: int, effects: Effects) -> None:
        missing = tuple(t for t in command.asked if t in command.missing)
        self._ledger.forget(command)
        waiting = self._ledger.waiting
        alone = tuple(t for t in missing if t in self._subscribed and t not in waiting)
        if not alone or not self._can_ask_snapshots:
            return
        if command.tries < self.settings.snapshot_tries:
            self._batches.append(
                Batch("snapshot", alone, command.tries + 1, now_ns, command.first_sent_ns)
            )
        elif self._last_snapshot_ns < command.first_sent_ns:
            self._give_up("no_snapshots", effects)
        else:
            effects.append(Report(ReportKind.SNAPSHOTS_MISSING, BOOK_CHANNEL, command.sid, alone))

    def _audits_run(self) -> bool:
        wanted = self.settings.audit_interval_ns > 0 and self._can_ask_snapshots
        return wanted and bool(self._subscribed)

    # --- sending

    def _pump(self, now_ns: int, effects: Effects) -> Effects:
        """Send what is wanted and allowed now."""
        if self.state is not SessionState.OPEN:
            return effects
        self._now_ns = now_ns
        self._ledger.has_room(now_ns)  # lets go of the commands of the second before
        self._retry_at = {c: at for c, at in self._retry_at.items() if at > now_ns}
        for channel in self.settings.channels:
            if self._may_subscribe(channel):
                self._send("subscribe", (), now_ns, effects, channel)
        if self._batches:
            self._pump_batches(now_ns, effects)
        if self._books.may_differ:
            self._pump_books(now_ns, effects)
        if self._stale and BOOK_CHANNEL in self._sids:
            self._pump_snapshots(now_ns, effects)
        return effects

    def _pump_batches(self, now_ns: int, effects: Effects) -> None:
        left: list[Batch] = []
        for batch in self._batches:
            sid = self._sids.get(BOOK_CHANNEL)
            kind: Kind = batch.kind
            if kind in ("subscribe", "add"):
                kind = "subscribe" if sid is None else "add"
            may = sid is not None or (kind == "subscribe" and self._may_subscribe(BOOK_CHANNEL))
            if batch.due_ns > now_ns or not may or not self._ledger.has_room(now_ns):
                left.append(batch)
                continue
            effects.append(self._ledger.reissue(batch, kind, BOOK_CHANNEL, sid, now_ns))
        self._batches = left

    def _pump_books(self, now_ns: int, effects: Effects) -> None:
        """Bring the subscribed books to the wanted ones."""
        to_add, to_delete = self._books.due()
        for chunk in chunks(to_add, self.settings):
            has_sid = BOOK_CHANNEL in self._sids
            may = has_sid or self._may_subscribe(BOOK_CHANNEL)
            if not may or not self._ledger.has_room(now_ns):
                break
            self._books.asked(chunk)
            self._bare.asked(chunk, now_ns)
            self._send("add" if has_sid else "subscribe", chunk, now_ns, effects)
        for chunk in chunks(to_delete, self.settings):
            if BOOK_CHANNEL not in self._sids or not self._ledger.has_room(now_ns):
                break
            self._books.asked(chunk, delete=True)
            self._send("delete", chunk, now_ns, effects)

    def _pump_snapshots(self, now_ns: int, effects: Effects) -> None:
        asked = self._ledger.n_snapshots_asked()
        while self._stale and self._ledger.has_room(now_ns):
            room = self.settings.snapshots_at_once - asked
            room = min(room, self.settings.tickers_per_snapshot_command)
            if room <= 0:
                return
            chunk = tuple(islice(self._stale, room))
            for ticker in chunk:
                del self._stale[ticker]
            asked += len(chunk)
            self._send("snapshot", chunk, now_ns, effects)

    def _send(
        self,
        kind: Kind,
        tickers: tuple[str, ...],
        now_ns: int,
        effects: Effects,
        channel: str = BOOK_CHANNEL,
    ) -> None:
        sid = self._sids.get(channel)
        effects.append(self._ledger.issue(kind, channel, sid, tickers, now_ns))

    def _may_subscribe(self, channel: str) -> bool:
        """Whether a first subscribe of this channel may be sent: none is under way or refused."""
        if channel in self._sids or channel in self._refusals.channels or channel in self._retry_at:
            return False
        return all(
            c.kind != "list" and (c.kind != "subscribe" or c.channel != channel)
            for c in self._ledger
            if not c.is_acked
        )

    def _channel_of(self, sid: int | None) -> str | None:
        return next((name for name, held in self._sids.items() if held == sid), None)

    def _give_up(self, reason: str, effects: Effects) -> Effects:
        if self.state is SessionState.OPEN:
            self.state = SessionState.CLOSING
            effects.append(Reconnect(reason))
        return effects
