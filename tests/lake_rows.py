"""Rows for tests of the lake: recorded captures as merged rows."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa

from kalshilake import paths, tables
from marketdata.rows import MERGED_ROW
from marketdata.units import parse_price_micros, parse_size_centi, parse_ts_us

ALL_WITNESSES = 7
HOUR = 485_000 * paths.US_PER_HOUR


def capture_deltas(path: Path) -> tuple[np.ndarray, dict[int, str]]:
    """(MERGED_ROW rows, ticker of each market_id) of a `*.jsonl.gz` capture.

    A connection is an epoch of its markets; `book_hash` is left 0.
    """
    ids: dict[str, int] = {}
    seqs: dict[tuple[int, int], int] = {}
    rows = []
    with gzip.open(path, "rt") as lines:
        for line in lines:
            entry = json.loads(line)
            if entry["frame"]["type"] != "orderbook_delta":
                continue
            msg = entry["frame"]["msg"]
            market = ids.setdefault(msg["market_ticker"], len(ids) + 1)
            run = (market, entry["conn"])
            seqs[run] = seqs.get(run, 0) + 1
            rows.append(
                (
                    parse_ts_us(msg["ts"]),
                    entry["recv_ns"],
                    parse_size_centi(msg["delta_fp"]),
                    0,
                    seqs[run],
                    market,
                    entry["conn"],
                    parse_price_micros(msg["price_dollars"]),
                    0 if msg["side"] == "yes" else 1,
                    0,
                    ALL_WITNESSES,
                )
            )
    return np.array(rows, MERGED_ROW), {v: k for k, v in ids.items()}


def delta_rows(n: int, *, hour_us: int = HOUR, shuffled: bool = False) -> pa.Table:
    """n deltas of three markets, in tape order or not."""
    made = np.zeros(n, MERGED_ROW)
    index = np.arange(n)
    made["market_id"] = index % 3 + 1
    made["market_seq"] = index // 3 + 1
    made["exchange_us"] = hour_us + index * 3
    made["received_ns"] = made["exchange_us"] * 1000 + 5_000_000 + index % 977
    made["price"] = (index * 7919) % 99 * 10_000 + 10_000
    made["delta"] = (index * 31) % 1000 - 500
    made["side"] = index % 2
    made["epoch"] = 1
    made["sources"] = 7
    if shuffled:
        made = made[np.random.default_rng(1).permutation(n)]
    return tables.deltas_table(made, {1: "KX-C", 2: "KX-A", 3: "KX-B"})
