"""One side: a lake written and read through kalshilake, in a directory or in S3.

`{"op": "write", "lake": PLACE, "frames": N}`: the frames of the load generator, decoded by
marketdata, as one hour of four tables and one version. `{"op": "read", "lake": PLACE}`: hashes of
every row that a reader gets and of every object. `{"op": "store", "lake": PLACE}`: the object
store's own operations one by one. Refusals are answers: `{"refused": "ErrorType: text"}`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa

from kalshilake import paths, tables
from kalshilake.read import Lake, open_lake
from kalshilake.store import open_store
from kalshilake.write import commit_version, write_hour
from marketdata.chain import Rows
from marketdata.continuity import Continuity
from marketdata.errors import TapeError
from marketdata.hot import absorb_frames
from marketdata.rows import DELTA_ROW, MERGED_ROW, TICKER_ROW, TRADE_ROW
from marketdata.wire import Decoder
from tests.aarch64.answering import answer_all
from tests.bench.generator import START_US, make_frames

ALL_WITNESSES = 7
HOUR_US = START_US // paths.US_PER_HOUR * paths.US_PER_HOUR
RECEIVED_NS = START_US * 1000
TICKER_VALUES = (
    *("price", "yes_bid", "yes_ask", "volume", "open_interest", "yes_bid_size", "yes_ask_size"),
    *("last_trade_size", "dollar_volume", "dollar_open_interest"),
)


def decoded(frames: int) -> tuple[Rows, dict[int, str]]:
    """Rows of so many frames, and the market of each id."""
    continuity = Continuity(1)
    continuity.control({"k": "open", "conn": 1, "received_ns": RECEIVED_NS})
    absorb_frames(continuity, Decoder(), 1, 0, make_frames(frames, 0), RECEIVED_NS)
    fresh = continuity.take_fresh_markets()
    return continuity.take(), {number: ticker for ticker, number in fresh.items()}


def merged(deltas: np.ndarray) -> np.ndarray:
    """A gatherer's changes as the deduplicator publishes them: one epoch, numbered per market."""
    made = np.zeros(len(deltas), MERGED_ROW)
    for name in MERGED_ROW.names or ():
        if name in (DELTA_ROW.names or ()) and name != "flags":
            made[name] = deltas[name]
    seen: Counter[int] = Counter()
    for row, market in enumerate(deltas["market_id"].tolist()):
        seen[market] += 1
        made["market_seq"][row] = seen[market]
    made["epoch"], made["sources"] = 1, ALL_WITNESSES
    return made


def hour_tables(frames: int) -> dict[str, pa.Table]:
    """One hour of four tables."""
    rows, names = decoded(frames)
    deltas = np.frombuffer(rows.deltas, DELTA_ROW)
    trades = np.frombuffer(rows.trades, TRADE_ROW)
    ticks = np.frombuffer(rows.tickers, TICKER_ROW)
    books = rows.snapshots

    def ints(values: list[int], kind: str = "i8") -> np.ndarray:
        return np.array(values, kind)

    def tickers(ids: np.ndarray) -> list[str]:
        return [names[number] for number in ids.tolist()]

    return {
        "orderbook_deltas": tables.deltas_table(merged(deltas), names),
        "orderbook_snapshots": tables.snapshots_table(
            [names[book.market_id] for book in books],
            ints([HOUR_US + n for n in range(len(books))]),
            ints([book.received_ns for book in books]),
            ints([1] * len(books), "i4"),
            ints([0] * len(books)),
            ints([book.book_hash for book in books], "u8"),
            [book.levels for book in books],
            ints([ALL_WITNESSES] * len(books), "i2"),
        ),
        "trades": tables.trades_table(
            tickers(trades["market_id"]),
            trades["exchange_us"],
            trades["received_ns"],
            [bytes(one) for one in trades["trade_id"]],
            trades["yes_price"],
            trades["no_price"],
            trades["count"],
            trades["taker_side"],
            np.zeros(len(trades), bool),
            np.full(len(trades), ALL_WITNESSES, "i2"),
        ),
        "tickers": tables.tickers_table(
            tickers(ticks["market_id"]),
            ticks["exchange_us"],
            ticks["received_ns"],
            ticks["payload_key"],
            np.full(len(ticks), ALL_WITNESSES, "i2"),
            {name: ticks[name] for name in TICKER_VALUES},
        ),
    }


def write(place: str, frames: int) -> dict[str, Any]:
    """Write the hour and commit a version."""
    store = open_store(place)
    made = hour_tables(frames)
    records = [
        write_hour(store, name, HOUR_US, table, watermark_us=HOUR_US + paths.US_PER_HOUR)
        for name, table in made.items()
    ]
    commit = commit_version(store, records, watermark_us=HOUR_US + paths.US_PER_HOUR)
    return {
        "version": commit.version.version,
        "sha256": commit.sha256,
        "rows": {record.table: record.rows for record in records},
        "objects": {record.key: record.sha256 for record in records},
        "bytes": sum(record.bytes for record in records),
    }


def content(table: pa.Table) -> str:
    """A hash of every value as Python sees it, whatever lies below."""
    digest = hashlib.sha256(repr(table.schema.names).encode())
    for column in table.columns:
        digest.update(repr(column.to_pylist()).encode())
    return digest.hexdigest()


def read(place: str) -> dict[str, Any]:
    """Everything a reader gets of the newest version."""
    lake: Lake = open_lake(place)
    got = {
        "orderbook_deltas": lake.deltas(on_gap="ignore"),
        "orderbook_snapshots": lake.snapshots(on_gap="ignore"),
        "trades": lake.trades(on_gap="ignore"),
        "tickers": lake.tickers(on_gap="ignore"),
    }
    return {
        "version": lake.version,
        "sha256": lake.sha256,
        "rows": {name: table.num_rows for name, table in got.items()},
        "content": {name: content(table) for name, table in got.items()},
        "objects": {
            record.key: hashlib.sha256(lake.store.get(record.key)).hexdigest()
            for record in lake.objects
        },
    }


def store(place: str) -> dict[str, Any]:
    """Each operation of the store once; the answers are compared with what they must be."""
    one = open_store(place)
    body = bytes(range(256)) * 4096
    one.put("probe/a", body)
    first, second = (one.put_if_absent("probe/b", text) for text in (b"first", b"second"))
    with one.open("probe/a") as handle:
        handle.seek(1000)
        middle = handle.read(24)
    return {
        "sha256": hashlib.sha256(one.get("probe/a")).hexdigest(),
        "first": first,
        "second": second,
        "kept": one.get("probe/b").decode(),
        "range": one.get_range("probe/a", 255, 3).hex(),
        "middle": middle.hex(),
        "sizes": [one.size("probe/a"), one.size("probe/none")],
        "listed": [[found.key, found.bytes] for found in one.list("probe/")],
    }


def answer(asked: dict[str, Any]) -> dict[str, Any]:
    """One question."""
    try:
        if asked["op"] == "write":
            return write(asked["lake"], asked["frames"])
        return read(asked["lake"]) if asked["op"] == "read" else store(asked["lake"])
    except TapeError as error:
        return {"refused": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    answer_all(answer)
