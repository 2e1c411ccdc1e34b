"""Trades and tickers: each once, with every witness, also when a copy comes windows later."""

from __future__ import annotations

import random
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import pytest

from dedup.output import MERGED_TICKER, MERGED_TRADE, MergedTicker, MergedTrade
from dedup.union import (
    MEMORY_WINDOWS,
    Memory,
    decode_keys,
    encode_keys,
    gathered,
    ticker_keys,
    union_tickers,
    union_trades,
)
from marketdata.rows import BATCH_TICKER, BATCH_TRADE, TickerRow, TradeRow
from tests.hand import columns

NAMES = ["A", "B", "KXLONG-26"]
U64 = (1 << 64) - 1


def trade(number: int, received_ns: int, market: int = 0) -> TradeRow:
    return TradeRow(5, received_ns, number.to_bytes(16, "big"), 1, market, 1, 1, 1, 2, 3, 0, 0)


def state(us: int, key: int, received_ns: int = 1, market: int = 0) -> TickerRow:
    return TickerRow(us, received_ns, key, 1, 2, 3, 4, 5, 6, 7, market, 1, 8, 9, 10)


def trades(
    parts: Sequence[Sequence[TradeRow]], memory: Memory
) -> tuple[list[MergedTrade], list[bytes]]:
    """The union of what gatherers 0.. brought."""
    made, keys = union_trades(*gathered([columns(p, BATCH_TRADE) for p in parts]), memory)
    assert made.dtype == MERGED_TRADE
    return [MergedTrade(*row) for row in made.tolist()], keys


def tickers(
    parts: Sequence[Sequence[TickerRow]], memory: Memory
) -> tuple[list[MergedTicker], list[bytes]]:
    made, keys = union_tickers(*gathered([columns(p, BATCH_TICKER) for p in parts]), memory, NAMES)
    assert made.dtype == MERGED_TICKER
    return [MergedTicker(*row) for row in made.tolist()], keys


def plain(parts: Sequence[Sequence[Any]], kind: Any, known: set[bytes]) -> dict[bytes, Any]:
    """The union row by row over a dict: what the columns must give."""
    made: dict[bytes, Any] = {}
    for gatherer, part in enumerate(parts):
        for row in part:
            if kind is MergedTrade:
                key = row.trade_id
            else:
                text = f"{NAMES[row.market_id]}|{row.exchange_us}|{row.payload_key}"
                key = blake2b(text.encode(), digest_size=16).digest()
            if key in known:
                continue
            old = made.get(key)
            if old is None:
                values = [getattr(row, name) for name in kind._fields[1:-1]]
                made[key] = kind(row.market_id, *values, 1 << gatherer)
            else:
                made[key] = old._replace(
                    received_ns=min(old.received_ns, row.received_ns),
                    sources=old.sources | 1 << gatherer,
                )
    return made


def test_copies_of_a_trade_are_one_with_all_witnesses_and_the_first_receipt() -> None:
    made, keys = trades([[trade(1, 90)], [trade(2, 80)], [trade(1, 70)]], Memory())
    assert [(o.sources, o.received_ns) for o in made] == [(5, 70), (2, 80)]
    assert keys == [bytes([*bytes(15), n]) for n in (1, 2)]


def test_what_was_published_before_is_left_out() -> None:
    memory = Memory()
    memory.add(1, trades([[trade(1, 1)]], memory)[1])
    assert trades([[], [trade(1, 2)]], memory) == ([], [])
    made, _ = trades([[trade(3, 1)], [trade(1, 2), trade(2, 2)]], memory)
    assert [(o.trade_id[-1], o.sources) for o in made] == [(2, 2), (3, 1)]


def test_keys_are_forgotten_after_so_many_windows_and_named_for_deletion() -> None:
    """The memory is bounded, and so is the state."""
    memory = Memory()
    asked = [bytes(16), b"y" * 16]
    for window in range(MEMORY_WINDOWS):
        assert memory.add(10 * window, [bytes([window]) * 16]) == []
    assert memory.add(1_000_000, []) == []
    assert (memory.known(asked), memory.floor) == ({bytes(16)}, -1)
    assert memory.add(1_000_001, [b"x" * 16]) == [0]
    assert (memory.known(asked), memory.floor) == (set(), 0)


def test_ticker_states_differ_by_market_time_or_payload() -> None:
    found = [
        state(us, key, market=market) for market in (0, 1) for us in (1, 2) for key in (1, U64)
    ]
    made, keys = tickers([found], Memory())
    assert len(made) == len(set(keys)) == 8


def test_the_keys_of_ticker_states_are_those_of_every_state_that_was_stored() -> None:
    """Other bytes would publish again what a database of an older version remembers."""
    made, keys = tickers([[state(1_700_000_000_000_000, U64, market=2)]], Memory())
    text = b"KXLONG-26|1700000000000000|18446744073709551615"
    assert keys == [blake2b(text, digest_size=16).digest()]
    assert keys[0].hex() == "db59a29ac3f6c472df387588081669f8"
    rows = np.array([tuple(row) for row in made], MERGED_TICKER)
    assert ticker_keys(NAMES, rows) == keys


def test_equal_ticker_states_are_one() -> None:
    found = [[state(1, 5, 9)], [state(1, 5, 3), state(1, 5, market=1)]]
    memory = Memory()
    made, keys = tickers(found, memory)
    assert [(o.market, o.sources, o.received_ns) for o in made] == [(0, 3, 3), (1, 2, 1)]
    memory.add(4, keys)
    assert tickers(found, memory) == ([], [])


def made_up(rng: random.Random, kind: Any) -> list[list[Any]]:
    """What four gatherers brought: copies within one and between them, some that differ."""
    parts: list[list[Any]] = []
    for _ in range(4):
        part: list[Any] = []
        for _ in range(rng.randint(0, 60)):
            ns, market = rng.randint(1, 10**18), rng.randint(0, 2)
            if kind is MergedTrade:
                number = rng.choice([0, 1, 1 << 63, 1 << 64, U64, 1 << 127, rng.randint(0, 40)])
                row = trade(number, ns, market)
                row.exchange_us, row.flags = rng.randint(1, 9), rng.randint(0, 1)
            else:
                key = rng.choice([0, 1 << 63, U64, rng.randint(0, 5)])
                row = state(rng.randint(1, 4), key, ns, market)
                row.price = rng.randint(0, 10**6)
            part.append(row)
        parts.append(part)
    return parts


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("kind", [MergedTrade, MergedTicker])
def test_columns_give_what_a_dict_gives_row_by_row(seed: int, kind: Any) -> None:
    """Over some windows, in which copies of earlier ones come again."""
    rng = random.Random(seed)
    memory, known = Memory(), set[bytes]()
    repeated = 0
    for window in range(4):
        parts = made_up(rng, kind)
        wanted = plain(parts, kind, known)
        made, keys = (trades if kind is MergedTrade else tickers)(parts, memory)
        assert dict(zip(keys, made, strict=True)) == wanted
        identity = ["trade_id"]
        if kind is MergedTicker:
            identity = ["market", "exchange_us", "payload_key"]
        order = [tuple(getattr(o, name) for name in identity) for o in made]
        assert order == sorted(order)
        repeated += len(plain(parts, kind, set())) - len(wanted)
        memory.add(window, keys)
        known |= set(wanted)
    assert repeated > 0, "the control: copies of earlier windows were among them"


def test_a_witness_that_is_left_out_is_noticed() -> None:
    """The negative control of the comparison above."""
    parts = made_up(random.Random(1), MergedTrade)
    parts[3] = parts[0][:1]
    made, keys = trades(parts[:3], Memory())
    assert dict(zip(keys, made, strict=True)) != plain(parts, MergedTrade, set())


def test_keys_survive_their_bytes() -> None:
    keys = {bytes([n]) * 16 for n in range(5)}
    assert decode_keys(encode_keys(keys)) == keys
    assert decode_keys(b"") == set()
