"""Trades and tickers: what has an identity of its own is merged as a set.

Purpose: a trade is its `trade_id`; a ticker state is (market, exchange time, hash of all fields).
Both times are the exchange's own, so all copies fall into one window; copies that come later are
recognised by the keys of the last `MEMORY_WINDOWS` windows that had some. What is later still
cannot be told from a repeat: it is kept aside as late.

Invariants: INV-U1 a key is published once. INV-U2 the smallest received_ns and every witness of one
window are kept.

Does not do: order-book events.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Final, TypeAlias

from marketdata.rows import TickerRow, TradeRow

MEMORY_WINDOWS: Final = 24
KEY_BYTES: Final = 16

TradeFound: TypeAlias = tuple[str, int, TradeRow]  # ticker, gatherer, row
TickerFound: TypeAlias = tuple[str, int, TickerRow]


@dataclass(slots=True)
class Once:
    """One trade or ticker state with all its witnesses."""

    ticker: str
    sources: int
    received_ns: int
    trade: TradeRow | None = None
    state: TickerRow | None = None

    def trade_us(self) -> int:
        return self.trade.exchange_us if self.trade is not None else 0

    def state_key(self) -> tuple[int, int]:
        return (self.state.exchange_us, self.state.payload_key) if self.state else (0, 0)


@dataclass(slots=True)
class Memory:
    """Keys of the windows that had some and were closed last: window -> keys.

    `floor`: what belongs to a window up to here cannot be told from a repeat any more.
    """

    windows: dict[int, set[bytes]] = field(default_factory=dict)
    floor: int = -1

    def __contains__(self, key: bytes) -> bool:
        for keys in self.windows.values():  # noqa: SIM110 - asked for every row; any() is slower
            if key in keys:
                return True
        return False

    def add(self, window: int, keys: Iterable[bytes]) -> list[int]:
        """Remember; returns the windows that are forgotten for it."""
        found = set(keys)
        if found:
            self.windows[window] = found
        gone = sorted(self.windows)[:-MEMORY_WINDOWS]
        for w in gone:
            del self.windows[w]
            self.floor = w
        return gone


def encode_keys(keys: set[bytes]) -> bytes:
    """Keys of one window, for the state."""
    return b"".join(sorted(keys))


def decode_keys(packed: bytes) -> set[bytes]:
    """The keys of `encode_keys`."""
    return {packed[i : i + KEY_BYTES] for i in range(0, len(packed), KEY_BYTES)}


def ticker_key(index_free_name: str, row: TickerRow) -> bytes:
    """16 bytes that stand for (market, exchange time, payload)."""
    text = f"{index_free_name}|{row.exchange_us}|{row.payload_key & 0xFFFFFFFFFFFFFFFF}"
    return blake2b(text.encode(), digest_size=KEY_BYTES).digest()


def union_trades(found: Iterable[TradeFound], memory: Memory) -> dict[bytes, Once]:
    """Each trade once, by (ticker, time, id); those published before are left out."""
    made: dict[bytes, Once] = {}
    for ticker, gatherer, row in found:
        key = bytes(row.trade_id)
        once = made.get(key)
        if once is not None:
            once.sources |= 1 << gatherer
            once.received_ns = min(once.received_ns, row.received_ns)
        elif key not in memory:
            made[key] = Once(ticker, 1 << gatherer, row.received_ns, trade=row)
    return made


def union_tickers(found: Iterable[TickerFound], memory: Memory) -> dict[bytes, Once]:
    """Each ticker state once."""
    made: dict[bytes, Once] = {}
    seen: dict[tuple[str, int, int], Once | None] = {}  # None: published before
    for ticker, gatherer, row in found:
        state = (ticker, row.exchange_us, row.payload_key)
        once = seen.get(state)
        if once is None and state not in seen:
            key = ticker_key(ticker, row)
            once = made.get(key)
            if once is None and key not in memory:
                once = made[key] = Once(ticker, 0, row.received_ns, state=row)
            seen[state] = once
        if once is not None:
            once.sources |= 1 << gatherer
            if row.received_ns < once.received_ns:
                once.received_ns = row.received_ns
    return made
