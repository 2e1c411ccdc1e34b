"""Steps through an export with hftbacktest and prints what it sees, as one JSON object.

Arguments: the .npz file, tick size, then on standard input a JSON list of moments in nanoseconds.
At each moment the whole book of the local clock: [[side, tick, size in 1/100 contract], ...].
"""

import json
import sys

import numpy as np
from hftbacktest import BacktestAsset, HashMapMarketDepthBacktest
from hftbacktest.data import validate_event_order
from hftbacktest.types import event_dtype
from numba import njit


@njit
def step(hbt, moments, tick_max):
    """(books, traded size, trades by side) at each moment; books as [moment, side, tick]."""
    books = np.zeros((len(moments), 2, tick_max + 1))
    traded = np.zeros((len(moments), 3))
    if hbt.elapse(0) != 0:  # the clock begins with the first event
        return 0, books, traded
    for i in range(len(moments)):
        wait = moments[i] - hbt.current_timestamp
        if wait <= 0 or hbt.elapse(wait) != 0:
            return i, books, traded
        depth = hbt.depth(0)
        for tick in range(tick_max + 1):
            books[i, 0, tick] = depth.bid_qty_at_tick(tick)
            books[i, 1, tick] = depth.ask_qty_at_tick(tick)
        for trade in hbt.last_trades(0):
            place = 0
            if trade.ev & (1 << 29) == 1 << 29:
                place = 1
            elif trade.ev & (1 << 28) == 1 << 28:
                place = 2
            traded[i, place] += trade.qty
        hbt.clear_last_trades(0)
    return len(moments), books, traded


def main() -> None:
    path, tick_size = sys.argv[1], float(sys.argv[2])
    moments = np.array(json.loads(sys.stdin.read()), np.int64)
    data = np.load(path)["data"]
    validate_event_order(data)
    asset = (
        BacktestAsset()
        .data([path])
        .linear_asset(1.0)
        .constant_order_latency(0, 0)
        .risk_adverse_queue_model()
        .no_partial_fill_exchange()
        .trading_value_fee_model(0, 0)
        .tick_size(tick_size)
        .lot_size(0.01)
        .last_trades_capacity(100_000)
    )
    hbt = HashMapMarketDepthBacktest([asset])
    done, books, traded = step(hbt, moments, round(1 / tick_size))
    hbt.close()
    json.dump(
        {
            "same_layout": data.dtype == event_dtype,
            "events": len(data),
            "done": done,
            "books": [
                [[int(s), int(t), round(book[s, t] * 100)] for s, t in np.argwhere(book)]
                for book in books[:done]
            ],
            "traded": np.rint(traded[:done] * 100).astype(int).tolist(),
        },
        sys.stdout,
    )


main()
