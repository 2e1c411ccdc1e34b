"""Trades by REST as a second witness: what to ask for, what is missing, which rows it makes.

Purpose: the exchange lists its public trades by second, long after they happened. Windows of closed
seconds are asked for one after the other; what no frame had brought is kept as a spool record, and
rows are made of that record alone.
Invariants:
- INV-70 windows touch: each begins where the one before it ended, and none is asked for before the
  exchange's own time is `settle_s` past its end (widened by WIDEN_S).
- INV-71 a listed trade is in the record unless its id is known; one that cannot be read is kept.
- INV-72 rows of a record are a function of the record, the ids given before it and nothing else.
Does not do: asking (gatherer.reconcile), clocks, coverage: a list by REST has no sequence numbers
and proves no interval complete.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

from marketdata import fields, rest_bodies
from marketdata.chain import TRADE_PACK
from marketdata.errors import MissingField, WireError
from marketdata.events import Trade
from marketdata.fields import Message
from marketdata.rows import TradeFlag
from marketdata.units import US_PER_S

WIDEN_S: Final = 2
"""Asked for before and after a window: whether the exchange's bounds are inclusive is not told."""
PAGE_TRADES: Final = 1_000
LIVE_PATH: Final = "/markets/trades"
HISTORICAL_PATH: Final = "/historical/trades"
KNOWN_MAX: Final = 200_000
"""Ids remembered, about 150 bytes each. One forgotten too early is stored twice, which the merge
takes for one."""
STRANGERS_MIN: Final = 20
"""So many trades that frames brought, and none of them in a whole list: its ids are others."""
ERROR_TEXT_MAX: Final = 300


@dataclass(frozen=True, slots=True)
class TradeWindow:
    """Whole seconds [from_s, to_s) of the exchange's time."""

    from_s: int
    to_s: int

    def query(self) -> dict[str, str | int]:
        """The parameters of a request."""
        return {
            "min_ts": self.from_s - WIDEN_S,
            "max_ts": self.to_s + WIDEN_S,
            "limit": PAGE_TRADES,
        }

    def paths(self, cutoff_us: int | None) -> tuple[str, ...]:
        """Where these seconds are listed: what is older than the cut-off is history."""
        if cutoff_us is None or cutoff_us <= (self.from_s - WIDEN_S) * US_PER_S:
            return (LIVE_PATH,)
        if cutoff_us > (self.to_s + WIDEN_S) * US_PER_S:
            return (HISTORICAL_PATH,)
        return HISTORICAL_PATH, LIVE_PATH


def begin_at(cursor_s: int | None, now_us: int, lookback_s: int) -> tuple[int, int]:
    """Where to begin after a start, and how many seconds are left out: longer ago than
    `lookback_s` nothing is asked for. Without a cursor nothing was recorded before now."""
    now_s = now_us // US_PER_S
    if cursor_s is None:
        return now_s, 0
    first_s = max(cursor_s, now_s - lookback_s)
    return first_s, first_s - cursor_s


def next_window(done_s: int, now_us: int, width_s: int, settle_s: int) -> TradeWindow | None:
    """The next window, once it is closed; None: not yet."""
    to_s = done_s + width_s
    if now_us < (to_s + WIDEN_S + settle_s) * US_PER_S:
        return None
    return TradeWindow(done_s, to_s)


def trades_cutoff_us(body: Message) -> int | None:
    """Before which moment trades are history, of the body of `/historical/cutoff`."""
    return fields.time_or_none(body, "trades_created_ts")


class KnownTrades:
    """Ids of trades that are stored, the newest of them, by the second they happened in."""

    __slots__ = ("_ids", "_max")

    def __init__(self, ids_max: int = KNOWN_MAX) -> None:
        self._ids: dict[bytes, int] = {}  # in the order of arrival
        self._max = ids_max

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, trade_id: bytes) -> bool:
        return trade_id in self._ids

    def add(self, ids: Iterable[bytes], seconds: Iterable[int]) -> None:
        """Remember; the oldest arrivals go when there are too many."""
        self._ids.update(zip(ids, seconds, strict=True))
        for trade_id in list(islice(self._ids, max(0, len(self._ids) - self._max))):
            del self._ids[trade_id]

    def count(self, from_s: int, to_s: int) -> int:
        """How many happened in these seconds."""
        return sum(from_s <= second < to_s for second in self._ids.values())

    def forget(self, before_s: int) -> None:
        """Let go of what no later window can list."""
        gone: list[bytes] = []
        for trade_id, second in self._ids.items():
            if second >= before_s:
                break  # roughly in the order of time: what stands behind it goes later
            gone.append(trade_id)
        for trade_id in gone:
            del self._ids[trade_id]


@dataclass(slots=True)
class Compared:
    """One page against what is known. `missing`: bodies as REST gave them, unreadable ones too."""

    missing: list[Message] = field(default_factory=list)
    listed: int = 0


def compare(page: Iterable[Message], known: Collection[bytes] | KnownTrades) -> Compared:
    """What of a page no frame had brought."""
    found = Compared()
    for body in page:
        found.listed += 1
        try:
            trade_id = fields.trade_id_or_none(body)
        except WireError:
            trade_id = None
        if trade_id is None or trade_id not in known:
            found.missing.append(body)
    return found


def are_strangers(found: Compared, known: KnownTrades, window: TradeWindow) -> bool:
    """Whether a whole list of a window shows that its ids are not those of the frames: it has many
    trades, the frames had many of the same seconds, and none is the same. To store them would put
    every trade on the tape twice."""
    if found.listed >= PAGE_TRADES or not STRANGERS_MIN <= found.listed == len(found.missing):
        return False
    return known.count(window.from_s, window.to_s) >= STRANGERS_MIN


@dataclass(slots=True)
class ReadTrades:
    """The trades of a record: (place in the list, trade). `error`: of the first refused body."""

    trades: list[tuple[int, Trade]] = field(default_factory=list)
    refused: int = 0
    error: str = ""


def read_trades(bodies: Any) -> ReadTrades:
    """The trades of a REST_TRADES record's `trades`."""
    found = ReadTrades()
    for place, body in enumerate(bodies if isinstance(bodies, list) else [bodies]):
        try:
            trade = rest_bodies.trade(body if isinstance(body, dict) else {})
            for name in ("trade_id", "exchange_us"):
                if getattr(trade, name) is None:
                    raise MissingField(f"a trade by REST has no {name}")
        except WireError as error:
            found.refused += 1
            found.error = found.error or str(error)[:ERROR_TEXT_MAX]
            continue
        found.trades.append((place, trade))
    return found


def pack_rest_trade(
    trade: Trade, place: int, received_ns: int, market_id: int, run_id: int
) -> bytes:
    """The TRADE_ROW of a trade that came by REST; `run_id`: of its record."""
    assert trade.exchange_us is not None, "read_trades refuses a trade without a time"
    assert trade.trade_id is not None, "read_trades refuses a trade without an id"
    flags = TradeFlag.REST | (TradeFlag.BLOCK if trade.is_block_trade else 0)
    return TRADE_PACK.pack(
        trade.exchange_us, received_ns, trade.trade_id, trade.count, place, market_id, run_id,
        trade.yes_price, trade.no_price, trade.taker_side, flags,
    )  # fmt: skip


_TOLD: Final = ("path", "from_s", "to_s", "page", "sent_ns", "answered_ns")
_WINDOW_TOLD: Final = ("path", "from_s", "to_s", "listed", "missing", "pages")


def trades_detail(record: Mapping[str, Any], read: ReadTrades) -> dict[str, Any]:
    """`detail` of a REST_TRADES control row: the request, and what its record gave."""
    detail = {name: record[name] for name in _TOLD if name in record}
    detail |= {"trades": len(read.trades), "refused": read.refused}
    return detail | ({"error": read.error} if read.error else {})


def window_detail(record: Mapping[str, Any]) -> dict[str, Any]:
    """`detail` of a REST_WINDOW control row."""
    return {name: record[name] for name in _WINDOW_TOLD if name in record}
