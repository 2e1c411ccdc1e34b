"""Rows for tests of the lake: recorded captures as merged rows."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np

from marketdata.rows import MERGED_ROW
from marketdata.units import parse_price_micros, parse_size_centi, parse_ts_us

ALL_WITNESSES = 7


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
