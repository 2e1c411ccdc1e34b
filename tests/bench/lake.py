"""`make bench-lake`: what reading and writing a lake costs, on recorded captures.

Books at random instants against a replay of the truth, by our reader and by DuckDB; a first book of
an opened lake and the next ones; all books of a market by the second against one at a time; an
export against a plain snappy write; bytes; what three tickers read; scans by DuckDB and Polars
against pyarrow; a market played step by step. Machine and spread as everywhere in this folder.

    python -m tests.bench.lake [--json] [--instants 1000]
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from kalshilake import Lake, open_lake, query, write
from kalshilake.clocks import CLOCKS_APART_US
from kalshilake.store import LocalStore
from kalshilake.verify import verify
from marketdata.book import hash_levels
from tests.bench.live import machine
from tests.bench.ratios import Line, Target, line, table
from tests.bench.tape import Tape, recorded_tape, write_tape
from tests.recorded import captures

ROUNDS = 5
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TICKERS, CHOICES = 3, 50
DUCKDB_BOOK = """
WITH frame AS (
    SELECT epoch, market_seq, yes, no FROM orderbook_snapshots
    WHERE market_ticker = $market AND exchange_ts <= make_timestamptz($us::BIGINT)
    ORDER BY epoch DESC, market_seq DESC LIMIT 1),
later AS (
    SELECT d.* FROM orderbook_deltas d, frame f
    WHERE d.market_ticker = $market AND d.epoch = f.epoch AND d.market_seq > f.market_seq
    AND d.exchange_ts <= make_timestamptz($us::BIGINT)),
emptied AS (SELECT coalesce(max(market_seq), -1) AS seq FROM later WHERE kind = 'reset'),
parts AS (
    SELECT 'yes' AS side, unnest(yes, recursive := true) FROM frame, emptied WHERE seq < 0
    UNION ALL SELECT 'no', unnest(no, recursive := true) FROM frame, emptied WHERE seq < 0
    UNION ALL SELECT side, price, delta FROM later, emptied WHERE market_seq > seq)
SELECT side, (price * 1000000)::BIGINT, (sum(size) * 100)::BIGINT AS size
FROM parts GROUP BY ALL HAVING sum(size) > 0
"""  # fmt: skip

Asked = list[tuple[str, int, int]]  # market, time, hash of its book then


def instants(tape: Tape, n: int) -> Asked:
    """Moments at random within what is proven, the same each time; busy markets come more often."""
    rng, made = random.Random(7), []
    epochs = [e for found in tape.epochs.values() for e in found]
    weights = [len(e.rows) for e in epochs]
    while len(made) < n:
        epoch = rng.choices(epochs, weights)[0]
        us = rng.randint(*epoch.span)
        h = tape.hash_at(epoch.ticker, us)
        assert h is not None
        made.append((epoch.ticker, us, h))
    return made


def moment(us: int) -> datetime:
    """An aware time."""
    return EPOCH + timedelta(microseconds=us)


def took(call: Callable[[], Any]) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def book_lines(root: Path, asked: Asked) -> list[Line]:
    lake, cold, warm, wrong = open_lake(root), [], [], 0
    for market, us, _ in asked[:50]:
        cold.append(1000 * took(lambda m=market, t=us: open_lake(root).book(m, t)))
    for market, us, h in asked:
        began = time.perf_counter()
        view = lake.book(market, us)
        warm.append(1000 * (time.perf_counter() - began))
        wrong += view.book_hash != h
    wrong_there, duckdb_ms = duckdb_books(lake, asked)
    none = Target("at most", 0)
    return [
        Line("books", f"{len(asked)} instants, other than the truth", wrong, "", none),
        Line("books", "the same by DuckDB", wrong_there, "", none),
        line("books", "first book of an opened lake", cold, "ms", Target("at most", 150)),
        line("books", "next books", warm, "ms", Target("at most", 50)),
        line("books", "by DuckDB", duckdb_ms, "ms"),
    ]  # fmt: skip


def duckdb_books(lake: Lake, asked: Asked) -> tuple[int, list[float]]:
    """(instants at which SQL finds another book, milliseconds of each)."""
    connection, wrong, spent = query.connect(lake), 0, []
    for market, us, h in asked:
        began = time.perf_counter()
        rows = connection.execute(DUCKDB_BOOK, {"market": market, "us": us}).fetchall()
        spent.append(1000 * (time.perf_counter() - began))
        yes, no = (
            [(p, q) for side, p, q in rows if side == which] for which in ("yes", "no")
        )  # fmt: skip
        wrong += hash_levels(yes, no) != h
    return wrong, spent


def ladder_line(root: Path, tape: Tape, asked: Asked) -> Line:
    """All books of the busiest market by the second, against one at a time."""
    lake = open_lake(root)
    epoch = max((e for found in tape.epochs.values() for e in found), key=lambda e: len(e.rows))
    (a, b), market = epoch.span, epoch.ticker
    spent, alone = [], []
    mine = [us for found, us, _ in asked if found == market and a <= us <= b]
    for _ in range(ROUNDS):
        began = time.perf_counter()
        rows = lake.books(market, moment(a), moment(b), every="1s").num_rows
        spent.append((time.perf_counter() - began) / rows)
        alone.append(
            statistics.mean(took(lambda t=us: lake.book(market, t)) for us in mine[:40])
        )  # fmt: skip
    found = [a / b for a, b in zip(alone, spent, strict=True)]
    text = f"books by the second, {rows:,} of one market, against book() each"
    return line("books", text, found, "times", Target("at least", 50))


def export_lines(root: Path, folder: Path) -> list[Line]:
    """The hour with the most changes written by us and plainly."""
    lake = open_lake(root)
    record = max((o for o in lake.objects if o.table == "orderbook_deltas"), key=lambda o: o.rows)
    rows = pq.read_table(root / record.key, partitioning=None)
    shuffled = rows.take(pa.array(np.random.default_rng(3).permutation(rows.num_rows)))
    plain, ours = [], []
    # The truth that the harness holds is millions of Python objects: the collector would walk over
    # them in the middle of what is measured, and only of what makes objects itself.
    gc.collect()
    gc.freeze()
    for n in range(ROUNDS):
        plain.append(
            took(lambda: pq.write_table(rows, folder / "plain.parquet", compression="snappy"))
        )
        store = LocalStore(folder / f"export{n}")
        ours.append(
            took(
                lambda s=store: write.write_hour(
                    s, "orderbook_deltas", record.hour_us, rows, watermark_us=record.hour_us
                )
            )
        )
    found = [a / b for a, b in zip(plain, ours, strict=True)]
    unsorted = took(
        lambda: write.write_hour(
            LocalStore(folder / "shuffled"), "orderbook_deltas", record.hour_us, shuffled,
            watermark_us=record.hour_us,
        )
    )  # fmt: skip
    size = (folder / "plain.parquet").stat().st_size / rows.num_rows
    return [
        line("export", f"{rows.num_rows:,} changes, speed of a plain snappy write", found, "of it",
             Target("at least", 0.75)),
        Line("export", "the same rows in no order, against in order",
             unsorted / statistics.median(ours), "times"),
        Line("export", "bytes of a change, times and keys with it",
             record.bytes / rows.num_rows, "bytes", Target("at most", 8.5)),
        Line("export", "the same in the plain snappy file", size, "bytes"),
    ]  # fmt: skip


class Counting(LocalStore):
    """A directory that counts the bytes that are read from it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.bytes = 0

    def open(self, key: str) -> pa.NativeFile:
        return pa.PythonFile(_CountingFile(self, super().open(key)), mode="r")


class _CountingFile:
    """What pyarrow needs of a file."""

    closed = False

    def __init__(self, store: Counting, inner: pa.NativeFile) -> None:
        self._store, self._inner = store, inner
        self.seek, self.tell, self.close = inner.seek, inner.tell, inner.close
        self.readable, self.seekable = (lambda: True), (lambda: True)

    def read(self, n: int = -1) -> bytes:
        got = bytes(self._inner.read(n if n >= 0 else None))
        self._store.bytes += len(got)
        return got


def scan_lines(root: Path, tape: Tape) -> list[Line]:
    lake = open_lake(root)
    names, rng, some = list(tape.epochs), random.Random(5), []
    counting = Counting(root)
    for _ in range(CHOICES):
        counting.bytes = 0
        open_lake(root, store=counting).deltas(rng.sample(names, TICKERS), on_gap="ignore")
        some.append(counting.bytes)
    counting.bytes = 0
    open_lake(root, store=counting).deltas(on_gap="ignore")
    files = [root / o.key for o in lake.objects if o.table == "orderbook_deltas" and o.rows]
    sql = "SELECT market_ticker, count(*), sum(delta) FROM orderbook_deltas GROUP BY 1"
    arrow, duck, polars, ours = [], [], [], []
    for _ in range(ROUNDS):
        raw = took(
            lambda: (
                pa.concat_tables([pq.read_table(f, partitioning=None) for f in files])
                .group_by("market_ticker")
                .aggregate([("delta", "sum"), ("delta", "count")])
            )
        )
        arrow.append(1000 * raw)
        duck.append(took(lambda: query.connect(lake).execute(sql).fetchall()) / raw)
        frame = query.scan(lake, "orderbook_deltas").group_by("market_ticker")
        polars.append(took(lambda f=frame: f.agg(pl.len(), pl.col("delta").sum()).collect()) / raw)
        ours.append(took(lambda: lake.deltas(on_gap="ignore")) / raw)
    return [
        line("scan", f"bytes read for {TICKERS} tickers at random, of those of all {len(names)}",
             [n / counting.bytes for n in some], "of it", Target("at most", 0.1)),
        line("scan", "raw pyarrow: every change, summed by market", arrow, "ms"),
        line("scan", "DuckDB", duck, "of pyarrow"),
        line("scan", "Polars", polars, "of pyarrow"),
        line("scan", "Lake.deltas, checked", ours, "of pyarrow"),
    ]  # fmt: skip


def play_lines(root: Path, tape: Tape) -> list[Line]:
    """The busiest market step by step and as one table, by both clocks."""
    epoch = max((e for found in tape.epochs.values() for e in found), key=lambda e: len(e.rows))
    (a, b), market, made, wrong = epoch.span, epoch.ticker, [], 0
    for clock, low, high in (
        ("exchange", a, b + 1), ("received", a + CLOCKS_APART_US, b + 1 - CLOCKS_APART_US),
    ):  # fmt: skip
        steps, rows = [], []
        for _ in range(ROUNDS):
            lake = open_lake(root)
            asked = {"trades": False, "clock": clock}
            began, count = time.perf_counter(), 0
            for step in lake.replay(market, low, high, **asked):  # noqa: B007
                count += 1
            steps.append(count / (time.perf_counter() - began))
            began = time.perf_counter()
            found = lake.events_between(market, low, high, **asked).num_rows
            rows.append(found / (time.perf_counter() - began))
        last = lake.book(market, high - 1, clock=clock)
        wrong += step.book.view().book_hash != last.book_hash
        wrong += clock == "exchange" and last.book_hash != epoch.rows[-1][3]
        made.append(line("play", f"replay, {count:,} steps by the clock {clock}", steps, "a second",
                         Target("at least", 100_000)))  # fmt: skip
        made.append(line("play", "events_between", rows, "a second"))
    none = Target("at most", 0)
    return [Line("play", "last books other than the truth", wrong, "", none), *made]


def main() -> int:
    """Builds, measures, prints; exit code 1 for a target that is not met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--instants", type=int, default=1000)
    asked = parser.parse_args()
    found = captures()
    if not found:
        sys.exit("bench-lake: the recorded captures are not on this machine")
    tape = recorded_tape(found)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        root = folder / "lake"
        write_tape(root, tape)
        if verify(str(root)).findings:
            sys.exit("bench-lake: the lake that is measured is not sound")
        moments = instants(tape, asked.instants)
        lines = [
            *book_lines(root, moments), ladder_line(root, tape, moments),
            *export_lines(root, folder), *scan_lines(root, tape), *play_lines(root, tape),
        ]  # fmt: skip
    if asked.json:
        sys.stdout.write(json.dumps([one.record() for one in lines]) + "\n")
    else:
        sys.stdout.write(json.dumps(machine()) + "\n")
        sys.stdout.write(f"{len(tape.epochs)} markets, {tape.events:,} changes\n")
        sys.stdout.write(table(lines) + "\n")
    return int(any(one.verdict == "NOT MET" for one in lines))


if __name__ == "__main__":
    sys.exit(main())
