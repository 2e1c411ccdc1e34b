"""Trades and tickers: each once, with every witness, also when a copy comes windows later."""

from __future__ import annotations

from dedup.union import (
    MEMORY_WINDOWS,
    Memory,
    Once,
    decode_keys,
    encode_keys,
    ticker_key,
    union_tickers,
    union_trades,
)
from marketdata.rows import TickerRow, TradeRow


def trade(number: int, received_ns: int) -> TradeRow:
    return TradeRow(5, received_ns, number.to_bytes(16, "big"), 1, 1, 1, 1, 1, 2, 3, 0, 0)


def state(us: int, key: int, received_ns: int = 1) -> TickerRow:
    return TickerRow(us, received_ns, key, 1, 2, 3, 4, 5, 6, 7, 1, 1, 8, 9, 10)


def test_copies_of_a_trade_are_one_with_all_witnesses_and_the_first_receipt() -> None:
    found = [("A", 0, trade(1, 90)), ("A", 2, trade(1, 70)), ("A", 1, trade(2, 80))]
    made = union_trades(found, Memory())
    assert [(o.sources, o.received_ns) for o in made.values()] == [(5, 70), (2, 80)]


def test_what_was_published_before_is_left_out() -> None:
    memory = Memory()
    memory.add(1, union_trades([("A", 0, trade(1, 1))], memory))
    assert union_trades([("A", 1, trade(1, 2))], memory) == {}


def test_keys_are_forgotten_after_so_many_windows_and_named_for_deletion() -> None:
    """The memory is bounded, and so is the state."""
    memory = Memory()
    for window in range(MEMORY_WINDOWS):
        assert memory.add(10 * window, [bytes([window]) * 16]) == []
    assert memory.add(1_000_000, []) == []
    assert (bytes(16) in memory, memory.floor) == (True, -1)
    assert memory.add(1_000_001, [b"x" * 16]) == [0]
    assert (bytes(16) in memory, memory.floor) == (False, 0)


def test_ticker_states_differ_by_market_time_or_payload() -> None:
    keys = {ticker_key(name, state(us, key)) for name in "AB" for us in (1, 2) for key in (1, -1)}
    assert len(keys) == 8
    assert ticker_key("A", state(1, -1)) == ticker_key("A", state(1, 2**64 - 1))


def test_equal_ticker_states_are_one() -> None:
    found = [("A", 0, state(1, 5, 9)), ("A", 1, state(1, 5, 3)), ("B", 1, state(1, 5))]
    memory = Memory()
    made = union_tickers(found, memory)
    assert [(o.ticker, o.sources, o.received_ns) for o in made.values()] == [
        ("A", 3, 3),
        ("B", 2, 1),
    ]
    memory.add(4, made)
    assert union_tickers(found, memory) == {}


def test_keys_survive_their_bytes() -> None:
    keys = {bytes([n]) * 16 for n in range(5)}
    assert decode_keys(encode_keys(keys)) == keys
    assert decode_keys(b"") == set()


def test_sort_keys_of_what_is_absent_are_zero() -> None:
    nothing = Once("A", 1, 1)
    assert (nothing.trade_us(), nothing.state_key()) == (0, (0, 0))
