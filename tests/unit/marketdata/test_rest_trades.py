"""marketdata.rest_trades: which seconds are asked for, what is kept, which rows it makes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketdata import rest_trades
from marketdata.continuity import Continuity
from marketdata.rest_trades import (
    HISTORICAL_PATH,
    LIVE_PATH,
    WIDEN_S,
    KnownTrades,
    TradeWindow,
    begin_at,
    compare,
    next_window,
    read_trades,
)
from marketdata.rows import TRADE_ROW, ControlKind, TradeFlag

NOW_S = 1_786_085_188
S = 1_000_000


def body(number: int, *, ticker: str = "M", at_us: int = NOW_S * S, **more: Any) -> dict[str, Any]:
    """A trade as REST lists it."""
    return {
        "trade_id": f"{number:032x}",
        "ticker": ticker,
        "yes_price_dollars": "0.6000",
        "no_price_dollars": "0.4000",
        "count_fp": "2.00",
        "taker_outcome_side": "yes",
        "created_time": f"2026-08-07T06:46:28.{at_us % S:06d}Z",
        "is_block_trade": False,
        **more,
    }


def record(*bodies: Any, received_ns: int = 5, **more: Any) -> dict[str, Any]:
    return {
        "k": "rest_trades", "received_ns": received_ns, "path": LIVE_PATH, "from_s": NOW_S,
        "to_s": NOW_S + 30, "page": 0, "sent_ns": 3, "answered_ns": 4, "trades": list(bodies),
        **more,
    }  # fmt: skip


def test_a_window_is_asked_for_only_when_it_has_been_closed_for_a_while() -> None:
    due_us = (NOW_S + 30 + WIDEN_S + 10) * S
    assert next_window(NOW_S, due_us - 1, 30, 10) is None
    assert next_window(NOW_S, due_us, 30, 10) == TradeWindow(NOW_S, NOW_S + 30)
    assert TradeWindow(NOW_S, NOW_S + 30).query() == {
        "min_ts": NOW_S - 2, "max_ts": NOW_S + 32, "limit": 1000,
    }  # fmt: skip


@given(st.integers(1, 100), st.integers(0, 60), st.lists(st.integers(0, 500 * S), max_size=40))
def test_windows_touch_and_never_overtake_the_exchange(
    width_s: int, settle_s: int, steps_us: list[int]
) -> None:
    """INV-70, however time goes on."""
    done_s, now_us = NOW_S, NOW_S * S
    for step_us in steps_us:
        now_us += step_us
        while (window := next_window(done_s, now_us, width_s, settle_s)) is not None:
            assert (window.from_s, window.to_s) == (done_s, done_s + width_s)
            assert (window.to_s + WIDEN_S + settle_s) * S <= now_us
            done_s = window.to_s
    assert now_us < (done_s + width_s + WIDEN_S + settle_s) * S


def test_after_a_start_it_goes_on_at_the_cursor_but_not_further_back_than_allowed() -> None:
    assert begin_at(None, NOW_S * S + 7, 3600) == (NOW_S, 0)
    assert begin_at(NOW_S - 3600, NOW_S * S, 3600) == (NOW_S - 3600, 0)
    assert begin_at(NOW_S - 5000, NOW_S * S, 3600) == (NOW_S - 3600, 1400)
    assert begin_at(NOW_S + 5, NOW_S * S, 3600) == (NOW_S + 5, 0), "the exchange's time stood still"


def test_what_is_older_than_the_cutoff_is_asked_for_as_history() -> None:
    window = TradeWindow(NOW_S, NOW_S + 30)
    assert window.paths(None) == (LIVE_PATH,)
    assert window.paths((NOW_S - 2) * S) == (LIVE_PATH,)
    assert window.paths(NOW_S * S) == (HISTORICAL_PATH, LIVE_PATH)
    assert window.paths((NOW_S + 33) * S) == (HISTORICAL_PATH,)
    told = {"trades_created_ts": "2026-08-07T06:46:28Z"}
    assert rest_trades.trades_cutoff_us(told) == NOW_S * S
    assert rest_trades.trades_cutoff_us({}) is None


def test_known_trades_are_left_out_and_what_cannot_be_read_is_kept() -> None:
    """INV-71."""
    known = KnownTrades()
    known.add([(1).to_bytes(16, "big")], [NOW_S])
    odd: list[dict[str, Any]] = [{"trade_id": "?"}, {}]
    found = compare([body(1), body(2), *odd], known)
    assert found.listed == 4
    assert found.missing == [body(2), *odd]


def test_known_trades_have_a_limit_and_are_let_go_with_their_seconds() -> None:
    known = KnownTrades(ids_max=3)
    ids = [n.to_bytes(16, "big") for n in range(5)]
    known.add(ids, range(NOW_S, NOW_S + 5))
    assert [i in known for i in ids] == [False, False, True, True, True]
    known.forget(NOW_S + 4)
    assert [i in known for i in ids] == [False] * 4 + [True]
    assert len(known) == 1


def test_a_record_makes_rows_that_name_their_request() -> None:
    state = Continuity(1000)
    state.control(record(body(1), body(2, ticker="N", is_block_trade=True), received_ns=9))
    rows = state.take()
    found = np.frombuffer(rows.trades, TRADE_ROW)
    assert found["run_id"].tolist() == [1000, 1000]
    assert found["seq"].tolist() == [0, 1]
    assert found["received_ns"].tolist() == [9, 9]
    assert found["exchange_us"].tolist() == [NOW_S * S] * 2
    assert found["flags"].tolist() == [TradeFlag.REST, TradeFlag.REST | TradeFlag.BLOCK]
    assert found["yes_price"].tolist() == [600_000] * 2
    assert [ticker for _, ticker in rows.markets] == ["M", "N"]
    (control,) = rows.controls
    assert (control.kind, control.run_id, control.conn_id) == (ControlKind.REST_TRADES, 1000, 0)
    assert control.detail == {
        "path": LIVE_PATH, "from_s": NOW_S, "to_s": NOW_S + 30, "page": 0, "sent_ns": 3,
        "answered_ns": 4, "trades": 2, "refused": 0,
    }  # fmt: skip
    assert state.open_connections() == [], "it opens no connection that would have to be closed"
    assert state.latest_us() == 0, "what was learned late does not move the exchange's time"


@pytest.mark.parametrize(
    "bad",
    [
        {},
        "text",
        None,
        body(3, trade_id=None),
        body(3, created_time=""),
        body(3, count_fp="2.001"),
        body(3, ticker="two words"),
        body(3, yes_price_dollars="nan"),
    ],
)
def test_a_body_that_cannot_be_read_is_counted_and_hides_no_other(bad: Any) -> None:
    read = read_trades([body(1), bad, body(2)])
    assert [place for place, _ in read.trades] == [0, 2]
    assert read.refused == 1
    assert read.error
    state = Continuity(1000)
    state.control(record(body(1), bad, body(2)))
    assert state.counts["problem_rest_trade"] == 1
    (control,) = state.take().controls
    assert (control.detail["trades"], control.detail["refused"]) == (2, 1)
    assert control.detail["error"] == read.error


@pytest.mark.parametrize("trades", [None, "x", 5, {"a": 1}])
def test_a_record_without_a_list_makes_no_row_and_no_crash(trades: Any) -> None:
    state = Continuity(1000)
    state.control({**record(), "trades": trades})
    rows = state.take()
    assert rows.n_trades() == 0
    assert rows.controls[0].detail["refused"] == 1


def test_the_same_records_make_the_same_rows_after_a_restart() -> None:
    """INV-72, and INV-53 for these records."""
    one, records = Continuity(1000), [record(body(n), body(n + 50)) for n in range(1, 5)]
    expected = []
    for each in records:
        one.control(each)
        expected.append(one.take())
    other = Continuity(1000)
    for n, each in enumerate(records):
        other.control(each)
        assert other.take() == expected[n]
        other = Continuity.restore(other.export())


def test_a_window_that_was_compared_is_a_row() -> None:
    state = Continuity(1000)
    told = {"path": LIVE_PATH, "from_s": 1, "to_s": 31, "listed": 7, "missing": 2, "pages": 1}
    state.control({"k": "rest_window", "received_ns": 5, "reason": "refused", **told})
    (control,) = state.take().controls
    assert (control.kind, control.reason, control.detail) == ("rest_window", "refused", told)
