"""What one gatherer received, frame by frame, and what it knew at each moment.

Purpose: the items of a recording (see `timeline`) and `Following`: the gatherer's own logic
(marketdata.continuity) run along with the play, which says of each frame what it belongs to and
which numbers were lost before it, and what each book was.

Words: a *stream* is one recorded subscription, (connection, sid). A market's *carrier* is the
stream whose frames of its book are played: a market that moves between two connections of the
gatherer is on both for a while.

Invariants: EXCH-17 a book has one carrier at a time; it stays until it closes, drops the market or
fails, and then another stream that has the market, if there is one, takes over.

Does not do: reading spools (the source comes in), sending (recorded_venue).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

from exchange.timeline import Item, MarketSpec, Source
from marketdata import events, wire
from marketdata.chain import Chain, Rows, Scope
from marketdata.continuity import TERMINAL_CODES, Continuity, Refused
from marketdata.errors import WireError
from marketdata.hot import refused_of
from marketdata.runs import BOOK_CHANNEL, SEQUENCED_CHANNELS
from marketdata.sequence import Scope as Counting

RECENT_MAX: Final = 512  # numbers of a client's subscription that are remembered
HOLES_MAX: Final = 64  # jumps of them

Stream: TypeAlias = tuple[int, int]
"""(connection id of the gatherer, sid)."""


_REPLIES: Final = (events.Subscribed, events.Ok, events.Unsubscribed, events.Error)


class FrameItem(Item, frozen=True):
    """A frame as it was received. `ordinal` counts the frames of its connection from 0."""

    conn: int
    ordinal: int
    received_ns: int
    frame: bytes


class ControlItem(Item, frozen=True):
    """A CONTROL record of the spool (docs/formats.md section 1)."""

    body: dict[str, Any]


class StateItem(Item, frozen=True):
    """The gatherer's state at this moment, from which the items after it go on.

    `market_ids`: ticker -> UUID as frames of before said. `is_fresh`: nothing was received yet.
    `damage`: what of the recording before it cannot be read; empty where nothing is missing.
    """

    continuity: Continuity
    market_ids: dict[str, str]
    is_fresh: bool = False
    damage: str = ""


class DamageItem(Item, frozen=True):
    """From here on the recording cannot be read."""

    damage: str


class RecordingSource(Source, Protocol):
    """A source of the items above; the first of each iterator is a StateItem."""

    def spec_of(self, ticker: str) -> MarketSpec | None:
        """How a market that was not listed from the start is listed; None: it is not played."""
        ...


class Seen(NamedTuple):
    """A frame and its place. `missing`: numbers of its stream that were lost right before it;
    `is_old`: its own number came before."""

    event: events.Decoded | Refused
    stream: Stream | None  # None: it names no subscription
    channel: str  # "": not known
    market: str | None
    seq: int | None
    missing: int = 0
    is_old: bool = False


class Following:
    """What the gatherer knew: put a frame or a control record in when it is played."""

    def __init__(self, continuity: Continuity) -> None:
        self.continuity = continuity
        self._decoder = wire.Decoder()
        self.streams: dict[Stream, str] = {}  # that live -> channel
        self.carriers: dict[str, Stream] = {}
        self.carried: dict[Stream, set[str]] = {}
        for conn in continuity.open_connections():
            for sid, scope in continuity.life(conn).scopes.items():
                if scope.channel and (scope.run_id or scope.channel not in SEQUENCED_CHANNELS):
                    self.streams[conn, sid] = scope.channel
        for is_proven in (True, False):  # who knows the book is preferred
            for stream in self._books():
                for ticker in self._scope(stream).chains:
                    if (self._proven(stream, ticker) is not None) == is_proven:
                        self._carry(ticker, stream)

    def see(self, item: FrameItem) -> Seen:
        """Takes a frame in."""
        continuity, conn = self.continuity, item.conn
        continuity.last_received_ns = item.received_ns
        life = continuity.life(conn)
        event: events.Decoded | Refused
        try:
            event = self._decoder.decode(item.frame)
        except WireError as error:
            event = refused_of(item.ordinal, item.frame, error)
        sid, seq = event.sid, getattr(event, "seq", None)
        if sid is None and not isinstance(event, _REPLIES):
            sid = 0  # as continuity has it
        scope = None if sid is None else life.scopes.get(sid)
        expected = 1 if scope is None else scope.tracker.next_seq
        continuity.absorb_one(conn, life, event, item.received_ns)
        effects = continuity.take_effects() if continuity.effects else ()
        scope = None if sid is None else life.scopes.get(sid)
        market = getattr(event, "market", None)
        if sid is None or scope is None:
            return Seen(event, None, "", market, seq)
        stream = (conn, sid)
        if stream not in self.streams and scope.channel and _begins(event):
            self.streams[stream] = scope.channel
        if seq is None or seq == expected:
            return Seen(event, stream, scope.channel, market, seq)
        if scope.tracker.scope is Counting.MARKET:
            missing = sum(gap.missing for gap in effects)
            return Seen(event, stream, scope.channel, market, seq, missing)
        is_followed = scope.tracker.next_seq > expected
        missing = seq - expected if is_followed else 0
        return Seen(event, stream, scope.channel, market, seq, missing, seq < expected)

    def carries(self, ticker: str, stream: Stream) -> bool:
        """Whether frames of the market's book on this stream are played. The first is taken."""
        carrier = self.carriers.get(ticker)
        if carrier is None and stream in self.streams:
            self._carry(ticker, stream)
            return True
        return carrier == stream

    def chain(self, ticker: str) -> Chain | None:
        """The market's book where the gatherer knew it: from a snapshot on, without a gap."""
        stream = self.carriers.get(ticker)
        return None if stream is None else self._proven(stream, ticker)

    def ended(self, stream: Stream) -> list[str]:
        """A stream is over; the markets that it carried, each with its next carrier if any."""
        self.streams.pop(stream, None)
        return self._released(self.carried.pop(stream, set()))

    def dropped(self, stream: Stream, tickers: Iterable[str]) -> list[str]:
        """Those of the markets that have left a stream which carried them."""
        mine = self.carried.get(stream, set())
        left = {t for t in tickers if t in mine and t not in self._scope(stream).chains}
        mine -= left
        return self._released(left)

    def of_connection(self, conn: int) -> list[Stream]:
        """The streams of a recorded connection."""
        return [stream for stream in self.streams if stream[0] == conn]

    def has_channel(self, channel: str) -> bool:
        """Whether any stream of the channel lives."""
        return channel in self.streams.values()

    def take(self) -> Rows:
        """The rows that the gatherer made of what was put in since the last call."""
        self.continuity.take_fresh_markets()
        return self.continuity.take()

    def _books(self) -> list[Stream]:
        return [stream for stream, channel in self.streams.items() if channel == BOOK_CHANNEL]

    def _scope(self, stream: Stream) -> Scope:
        return self.continuity.life(stream[0]).scopes[stream[1]]

    def _proven(self, stream: Stream, ticker: str) -> Chain | None:
        scope = self._scope(stream)
        chain = scope.chains.get(ticker)
        is_proven = chain is not None and chain.anchored and chain.run_id == scope.run_id
        return chain if is_proven else None

    def _carry(self, ticker: str, stream: Stream) -> None:
        if ticker not in self.carriers:
            self.carriers[ticker] = stream
            self.carried.setdefault(stream, set()).add(ticker)

    def _released(self, tickers: set[str]) -> list[str]:
        ordered = sorted(tickers)
        for ticker in ordered:
            del self.carriers[ticker]
            heirs = [s for s in self._books() if ticker in self._scope(s).chains]
            known = [stream for stream in heirs if self._proven(stream, ticker) is not None]
            for stream in (known or heirs)[:1]:
                self._carry(ticker, stream)
        return ordered


def _begins(event: events.Decoded | Refused) -> bool:
    """Whether a frame shows that its subscription lives."""
    if isinstance(event, events.Error):
        return event.code not in TERMINAL_CODES
    return not isinstance(event, events.Unsubscribed | Refused | events.Unknown)


class Renumbering:
    """Which number of a client's subscription a recorded one became: for frames that came twice,
    or late into a hole."""

    __slots__ = ("_holes", "_recent")

    def __init__(self) -> None:
        self._recent: deque[tuple[Stream, int, int]] = deque(maxlen=RECENT_MAX)
        self._holes: deque[tuple[Stream, int, int, int]] = deque(maxlen=HOLES_MAX)

    def given(self, stream: Stream, seq: int, number: int) -> None:
        """A frame was sent under a number."""
        self._recent.append((stream, seq, number))

    def jumped(self, stream: Stream, seq: int, number: int, count: int) -> None:
        """`count` numbers from `number` on stand for the lost ones from `seq` on."""
        self._holes.append((stream, seq, number, count))

    def number_of(self, stream: Stream, seq: int) -> int | None:
        """The number for a recorded one that is old; None where it is not remembered."""
        for held, first, number, count in reversed(self._holes):
            if held == stream and first <= seq < first + count:
                return number + seq - first
        for held, before, number in reversed(self._recent):
            if held == stream and before == seq:
                return number
        return None
