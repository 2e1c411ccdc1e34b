"""What continuity remembers: the rows it made, one market's chain, one subscription's scope.

Purpose: the state behind `continuity`, with its JSON form for the spool's STATE record.
Words: a *chain* is one market within a run. It is *floating* until its first snapshot in the run:
its hash then counts from 0 at the run's start, and its levels are not known.
Invariants:
- INV-57 `Scope.restore(scope.export())` is the same scope; the form is JSON and without float.
Does not do: decisions (continuity), sequence verdicts (sequence), bytes of the spool (segment).
"""

from __future__ import annotations

import base64
import struct
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from marketdata import events
from marketdata.book import MASK, hash_levels, pack_levels, unpack_levels
from marketdata.rows import DELTA_ROW, TICKER_ROW, TRADE_ROW, ControlRow, SnapshotRow
from marketdata.sequence import Tracker

DELTA_PACK: Final = struct.Struct("=qqqQiiIiihh")
TRADE_PACK: Final = struct.Struct("=qq16sqqiiiihh")
TICKER_PACK: Final = struct.Struct("=qqQqqqqqqqiiii")
assert DELTA_PACK.size == DELTA_ROW.itemsize, "a packed delta is not a DELTA_ROW"
assert TRADE_PACK.size == TRADE_ROW.itemsize, "a packed trade is not a TRADE_ROW"
assert TICKER_PACK.size == TICKER_ROW.itemsize, "a packed ticker is not a TICKER_ROW"


@dataclass(slots=True)
class Rows:
    """What the events since the last `take` gave.

    `deltas`, `trades` and `tickers` hold packed DELTA_ROW, TRADE_ROW and TICKER_ROW records: a
    struct packed when the frame arrives costs less than an object turned into bytes later.
    `batch_id` is 0 everywhere and `ControlRow.ord` too: the one writer gives them at the commit.
    """

    deltas: bytearray = field(default_factory=bytearray)
    trades: bytearray = field(default_factory=bytearray)
    tickers: bytearray = field(default_factory=bytearray)
    snapshots: list[SnapshotRow] = field(default_factory=list)
    controls: list[ControlRow] = field(default_factory=list)
    markets: list[tuple[int, str]] = field(default_factory=list)

    def n_deltas(self) -> int:
        """Delta rows held."""
        return len(self.deltas) // DELTA_PACK.size

    def n_trades(self) -> int:
        """Trade rows held."""
        return len(self.trades) // TRADE_PACK.size

    def n_tickers(self) -> int:
        """Ticker rows held."""
        return len(self.tickers) // TICKER_PACK.size

    def n_rows(self) -> int:
        """Rows of all tables held."""
        return (
            self.n_deltas()
            + self.n_trades()
            + self.n_tickers()
            + len(self.snapshots)
            + len(self.controls)
            + len(self.markets)
        )

    def counts(self) -> dict[str, int]:
        """Rows held, by table; only tables that have some."""
        each = {
            "market": len(self.markets),
            "orderbook_delta": self.n_deltas(),
            "orderbook_snapshot": len(self.snapshots),
            "trade": self.n_trades(),
            "ticker": self.n_tickers(),
            "control": len(self.controls),
        }
        return {table: count for table, count in each.items() if count}


def pack_trade(
    event: events.Trade,
    trade_id: bytes,
    exchange_us: int,
    received_ns: int,
    market_id: int,
    run_id: int,
) -> bytes:
    """The TRADE_ROW of a trade."""
    return TRADE_PACK.pack(
        exchange_us, received_ns, trade_id, event.count, event.seq or 0, market_id, run_id,
        event.yes_price, event.no_price, event.taker_side, event.is_block_trade,
    )  # fmt: skip


def pack_ticker(event: events.Ticker, exchange_us: int, received_ns: int, market_id: int) -> bytes:
    """The TICKER_ROW of a ticker state."""
    return TICKER_PACK.pack(
        exchange_us, received_ns, event.payload_key, event.volume, event.open_interest,
        event.dollar_volume, event.dollar_open_interest, event.yes_bid_size, event.yes_ask_size,
        event.last_trade_size, market_id, event.price, event.yes_bid, event.yes_ask,
    )  # fmt: skip


LOSS_BASE: Final = 0x9E37_79B9_7F4A_7C15  # odd: different for every number


class Chain:
    """One market of one subscription: its book and hash while anchored, else a relative hash."""

    __slots__ = ("anchored", "hash", "last_us", "market_id", "no", "run_id", "yes")

    def __init__(self, market_id: int, run_id: int) -> None:
        self.market_id = market_id
        self.run_id = run_id
        self.anchored = False
        self.hash = 0
        self.last_us = 0  # latest exchange time of this market on this connection, 0: none yet
        self.yes: dict[int, int] = {}
        self.no: dict[int, int] = {}

    def float_in(self, run_id: int) -> None:
        """Begin a new run without a known book."""
        self.run_id = run_id
        self.anchored = False
        self.hash = 0
        self.yes.clear()
        self.no.clear()

    def float_after_loss(self, run_id: int, seq: int) -> None:
        """A change with the number `seq` could not be read: the relative hash begins anew, at a
        value that no snapshot of before can explain. Begun at 0 the changes after it would fit onto
        a snapshot before it, as if nothing stood between."""
        self.float_in(run_id)
        self.hash = LOSS_BASE * (seq + 1) & MASK

    def load(self, yes: list[tuple[int, int]], no: list[tuple[int, int]], book_hash: int) -> None:
        """Take a snapshot over: the chain is anchored from here. No level is empty (events)."""
        self.yes, self.no = dict(yes), dict(no)
        self.hash = book_hash
        self.anchored = True

    def apply(self, side: int, price: int, delta: int) -> int:
        """Add `delta` to a level of the known book, not to the hash; returns its new size."""
        levels = self.no if side else self.yes
        size = levels.get(price, 0) + delta
        if size:
            levels[price] = size
        else:
            levels.pop(price, None)
        return size

    def export(self) -> list[Any]:
        """JSON form. An anchored hash is not stored: it follows from the levels."""
        if not self.anchored:
            return [self.market_id, self.run_id, self.last_us, str(self.hash)]
        levels = base64.b64encode(pack_levels(self.yes.items(), self.no.items())).decode("ascii")
        return [self.market_id, self.run_id, self.last_us, str(self.hash), levels]

    @classmethod
    def restore(cls, form: list[Any]) -> Chain:
        """The chain of `export`."""
        chain = cls(form[0], form[1])
        chain.last_us = form[2]
        chain.hash = int(form[3])
        if len(form) > 4:
            yes, no = unpack_levels(base64.b64decode(form[4]))
            assert hash_levels(yes, no) == chain.hash, "a stored book does not have its stored hash"
            chain.load(yes, no, chain.hash)
        return chain


class NextSeq(Protocol):
    """A count that may be stepped: `next` is the number expected."""

    next: int


class Scope:
    """One subscription: (connection, sid)."""

    __slots__ = (
        "chains",
        "channel",
        "counter",
        "duplicates_in_a_row",
        "last_seq",
        "last_us",
        "run_id",
        "sid",
        "started",
        "tracker",
    )

    def __init__(self, sid: int, channel: str) -> None:
        self.sid = sid
        self.channel = channel
        self.tracker = Tracker()
        # The tracker's own count once nothing else matters (Tracker.firm_counter), while a run is
        # live: the hot path compares with it instead of calling `observe`.
        self.counter: NextSeq | None = None
        self.run_id = 0  # 0: no run is live
        self.started = False  # a run was live before: the next one begins at a gap
        self.last_seq = 0  # last in-sequence seq of the live run
        self.last_us = 0  # latest exchange time on this sid, 0: none yet
        self.duplicates_in_a_row = 0
        self.chains: dict[str, Chain] = {}

    def export(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "sid": self.sid,
            "channel": self.channel,
            "tracker": self.tracker.export(),
            "run_id": self.run_id,
            "started": self.started,
            "last_seq": self.last_seq,
            "last_us": self.last_us,
            "duplicates": self.duplicates_in_a_row,
            "chains": {ticker: chain.export() for ticker, chain in self.chains.items()},
        }

    @classmethod
    def restore(cls, form: dict[str, Any]) -> Scope:
        """The scope of `export`."""
        scope = cls(form["sid"], form["channel"])
        scope.tracker = Tracker.restore(form["tracker"])
        scope.run_id = form["run_id"]
        scope.started = form["started"]
        scope.last_seq = form["last_seq"]
        scope.last_us = form["last_us"]
        scope.duplicates_in_a_row = form["duplicates"]
        scope.counter = scope.tracker.firm_counter if scope.run_id else None
        scope.chains = {ticker: Chain.restore(chain) for ticker, chain in form["chains"].items()}
        return scope


class Life:
    """One connection from its connect record to its close: its subscriptions and open commands."""

    __slots__ = ("problems", "removals", "scopes")

    def __init__(self) -> None:
        self.scopes: dict[int, Scope] = {}
        self.removals: dict[int, list[str]] = {}  # command id of delete_markets -> tickers
        self.problems: dict[str, int] = {}  # reason -> PROBLEM events so far

    def export(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "scopes": [scope.export() for scope in self.scopes.values()],
            "removals": [[key, tickers] for key, tickers in self.removals.items()],
            "problems": self.problems,
        }

    @classmethod
    def restore(cls, form: dict[str, Any]) -> Life:
        """The connection of `export`."""
        life = cls()
        for scope in map(Scope.restore, form["scopes"]):
            life.scopes[scope.sid] = scope
        life.removals = {key: list(tickers) for key, tickers in form["removals"]}
        life.problems = dict(form["problems"])
        return life
