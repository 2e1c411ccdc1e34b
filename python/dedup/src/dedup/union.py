"""Trades and tickers: what has an identity of its own is merged as a set.

Purpose: a trade is its `trade_id`; a ticker state is (market, exchange time, hash of all fields).
Both times are the exchange's own, so all copies fall into one window; copies that come later are
recognised by the keys of the last `MEMORY_WINDOWS` windows that had some. What is later still
cannot be told from a repeat: it is kept aside as late.

Invariants: INV-U1 a key is published once. INV-U2 the smallest received_ns and every witness of one
window are kept. INV-U3 a trade that a gatherer's frames brought has the frame's values and only
such gatherers as witnesses; one that only REST listed has SOURCE_REST and those who found it.

Does not do: order-book events.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from dedup.columns import Rows, groups, joined, picked
from dedup.output import MERGED_TICKER, MERGED_TRADE
from marketdata.rows import SOURCE_REST, TradeFlag

MEMORY_WINDOWS: Final = 24
KEY_BYTES: Final = 16

Bits: TypeAlias = npt.NDArray[np.int16]


@dataclass(slots=True)
class Memory:
    """Keys of the windows that had some and were closed last: window -> keys.

    `floor`: what belongs to a window up to here cannot be told from a repeat any more.
    """

    windows: dict[int, set[bytes]] = field(default_factory=dict)
    floor: int = -1

    def known(self, keys: Iterable[bytes]) -> set[bytes]:
        """Those of the keys that are remembered."""
        asked = set(keys)
        return {key for keys in self.windows.values() for key in asked & keys}

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


def ticker_keys(names: Sequence[str], states: Rows) -> list[bytes]:
    """16 bytes for each ticker state that stand for (market, exchange time, payload).

    `names`: the tickers, by the index that the rows have as `market`.
    """
    columns = (states[name].tolist() for name in ("market", "exchange_us", "payload_key"))
    return [
        blake2b(f"{names[market]}|{us}|{payload}".encode(), digest_size=KEY_BYTES).digest()
        for market, us, payload in zip(*columns, strict=True)
    ]


def gathered(parts: Sequence[Rows]) -> tuple[Rows, Bits]:
    """The rows of gatherers 0.. end to end, and the bit of each row's gatherer."""
    bits = np.array([1 << gatherer for gatherer in range(len(parts))], np.int16)
    return joined(parts), bits.repeat([len(rows) for rows in parts])


def union_trades(rows: Rows, bits: Bits, memory: Memory) -> tuple[Rows, list[bytes]]:
    """MERGED_TRADE of each trade once, ascending by id, and the keys.

    `rows` and `bits`: what `gathered` gives of BATCH_TRADE with the market's index as `market_id`;
    so is the `market` of the result. Those published before are left out.
    """
    if not rows.size:
        return np.empty(0, MERGED_TRADE), []
    made = trades_once(rows, bits)
    return _unpublished(made, made["trade_id"].tolist(), memory)


def trades_once(rows: Rows, bits: Bits) -> Rows:
    """One MERGED_TRADE of each trade, ascending by id, whether it was published before or not."""
    by_rest = (rows["flags"] & TradeFlag.REST) != 0
    if not by_rest.any():
        return _once(MERGED_TRADE, rows, bits, _trade_identity(rows))
    order = np.argsort(by_rest, kind="stable")  # frames first: their values count
    rows, bits, by_rest = picked(rows, order), bits[order], by_rest[order]
    made = _once(MERGED_TRADE, rows, bits, _trade_identity(rows))
    framed = np.where(by_rest, 0, bits)
    order, starts = groups(_trade_identity(rows))
    witnesses = np.bitwise_or.reduceat(framed[order], starts)
    made["sources"] = np.where(witnesses != 0, witnesses, made["sources"] | SOURCE_REST)
    return made


def _trade_identity(rows: Rows) -> Sequence[npt.NDArray[np.integer[Any]]]:
    halves = np.ascontiguousarray(rows["trade_id"]).view(">u8").astype(np.uint64)
    return halves[::2], halves[1::2]


def union_tickers(
    rows: Rows, bits: Bits, memory: Memory, names: Sequence[str]
) -> tuple[Rows, list[bytes]]:
    """The same for ticker states: MERGED_TICKER, ascending by (market index, time, payload)."""
    if not rows.size:
        return np.empty(0, MERGED_TICKER), []
    identity = (rows["market_id"], rows["exchange_us"], rows["payload_key"])
    made = _once(MERGED_TICKER, rows, bits, identity)
    return _unpublished(made, ticker_keys(names, made), memory)


def _once(
    layout: np.dtype[np.void],
    rows: Rows,
    bits: Bits,
    identity: Sequence[npt.NDArray[np.integer[Any]]],
) -> Rows:
    """One row of each identity, ascending: the first one's values with every witness (INV-U2)."""
    order, starts = groups(identity)
    firsts = picked(rows, order[starts])
    made = np.empty(starts.size, layout)
    for name in (layout.names or ())[1:-1]:
        made[name] = firsts[name]
    made["market"] = firsts["market_id"]
    made["received_ns"] = np.minimum.reduceat(rows["received_ns"][order], starts)
    made["sources"] = np.bitwise_or.reduceat(bits[order], starts)
    return made


def _unpublished(made: Rows, keys: list[bytes], memory: Memory) -> tuple[Rows, list[bytes]]:
    """What was not published in a window that is remembered (INV-U1)."""
    known = memory.known(keys)
    if not known:
        return made, keys
    kept = [n for n, key in enumerate(keys) if key not in known]
    return picked(made, np.array(kept, np.int64)), [keys[n] for n in kept]
