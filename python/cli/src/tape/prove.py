"""Carry out the proof on the folder of a finished demo: read everything, compare, count.

The tape is read as any reader gets it, through `kalshilake.open_lake`; spools and truth log are
read by truth_view. docs/acceptance.md says what each number counts.
"""

from __future__ import annotations

import datetime as dt
import random
from pathlib import Path
from typing import Any

import asyncpg
import numpy as np
import pyarrow as pa

from kalshilake import open_lake
from marketdata.errors import TapeError
from tape import truth_view
from tape.fleet import Fleet
from tape.proof import (
    Interval,
    MergedMarket,
    Verdict,
    check_holes,
    check_trades,
    compare_market,
    next_is_reset,
    spool_folders,
    truth_book,
)
from tape.truth_view import Truth

BOOKS_CHECKED_MAX = 100  # books rebuilt by the reader and compared, over all markets
MOMENTS_PER_INTERVAL_MAX = 20
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
FLAG_AMBIGUOUS, FLAG_DISPUTED = 64, 128  # docs/formats.md; written again on purpose

# Columns of a ticker state and the unit that makes each an integer.
TICKER_UNITS = (
    ("price", 1_000_000), ("yes_bid", 1_000_000), ("yes_ask", 1_000_000),
    ("volume", 100), ("open_interest", 100),
)  # fmt: skip


def _units(column: pa.ChunkedArray, scale: int) -> truth_view.IntArray:
    """A decimal column as integers of 10^-scale; null becomes 0."""
    whole = column.combine_chunks().cast(pa.decimal128(38, scale)).fill_null(0)
    words = np.frombuffer(whole.buffers()[1], dtype=np.int64).reshape(-1, 2)[:, 0]
    return words[whole.offset : whole.offset + len(whole)].copy()


def _microseconds(column: pa.ChunkedArray) -> truth_view.IntArray:
    return np.asarray(column.combine_chunks().cast(pa.int64()).to_numpy(zero_copy_only=False))


def read_merged(lake: Any) -> dict[str, MergedMarket]:
    """Every market of the tape, in tape order (epoch, market_seq)."""
    table: pa.Table = lake.deltas(on_gap="ignore")
    if table.num_rows == 0:
        return {}
    tickers = table["market_ticker"].combine_chunks()
    if pa.types.is_dictionary(tickers.type):
        names, codes = tickers.dictionary.to_pylist(), tickers.indices.to_numpy()
    else:
        encoded = tickers.dictionary_encode()
        names, codes = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
    reset = np.array([k == "reset" for k in table["kind"].to_pylist()], dtype=np.bool_)
    no_side = np.array([s == "no" for s in table["side"].to_pylist()], dtype=np.int64)
    side = np.where(reset, -1, no_side)
    us = _microseconds(table["exchange_ts"])
    price, delta = _units(table["price"], 6), _units(table["delta"], 2)
    price, delta = np.where(reset, 0, price), np.where(reset, 0, delta)
    flags = np.asarray(table["flags"].to_numpy())
    epoch, number = (
        np.asarray(table["epoch"].to_numpy()),
        np.asarray(table["market_seq"].to_numpy()),
    )
    order = np.lexsort((number, epoch, codes))
    flagged = (flags & (FLAG_AMBIGUOUS | FLAG_DISPUTED)) != 0
    starts = np.flatnonzero(np.concatenate(([True], np.diff(codes[order]) != 0)))
    merged = {}
    for part in np.split(order, starts[1:]):
        merged[names[codes[part[0]]]] = MergedMarket(
            us[part], side[part], price[part], delta[part], flagged[part]
        )
    return merged


def read_coverage(lake: Any) -> tuple[dict[str, list[Interval]], int]:
    """Order-book coverage by market, and how many intervals are not complete."""
    intervals: dict[str, list[Interval]] = {}
    incomplete = 0
    for row in lake.coverage().to_pylist():
        if row["channel"] != "orderbook":
            continue
        interval = Interval(
            _us(row["from_ts"]), _us(row["to_ts"]), row["status"], row["reason"] or ""
        )
        intervals.setdefault(row["market_ticker"], []).append(interval)
        incomplete += interval.status != "complete"
    return intervals, incomplete


def _us(moment: Any) -> int:
    """A datetime (or pandas timestamp) with zone as microseconds, without a float on the way."""
    since = moment - EPOCH
    return int(since.days * 86_400_000_000 + since.seconds * 1_000_000 + since.microseconds)


def _received(out: Path, truth: Truth) -> tuple[truth_view.BoolArray, set[str], set[Any], int]:
    """What any gatherer received: events in runs, trade ids, ticker states, frames in all."""
    any_received = np.zeros(truth.events.size, dtype=np.bool_)
    trades: set[str] = set()
    tickers: set[Any] = set()
    frames = 0
    spools = spool_folders(out)
    if not spools:
        raise TapeError(f"{out} has no spool of a gatherer: nothing could be found missing")
    for spool in spools:
        got = truth_view.read_spool(spool, truth)
        any_received |= truth_view.received_in_runs(truth, got)
        trades |= got.trade_ids
        tickers |= got.ticker_states
        frames += got.frames
    return any_received, trades, tickers, frames


def check_books(
    lake: Any, truth: Truth, coverage: dict[str, list[Interval]], verdict: Verdict, seed: int
) -> None:
    """Rebuild books at random moments of complete intervals; compare them with the exchange's."""
    rng = random.Random(seed)  # noqa: S311 - which moments to look at
    places = [
        (name, i)
        for name, found in coverage.items()
        for i in found
        if i.status == "complete" and i.to_us - i.from_us > 1
    ]
    rng.shuffle(places)
    rounds = min(MOMENTS_PER_INTERVAL_MAX, -(-BOOKS_CHECKED_MAX // max(1, len(places))))
    numbers = {name: n for n, name in enumerate(truth.tickers)}
    for name, interval in (places * rounds)[:BOOKS_CHECKED_MAX]:
        at = rng.randrange(interval.from_us, interval.to_us)
        expected = truth_book(truth, numbers[name], at)
        if expected is None:
            continue
        try:
            view = lake.book(name, at)
        except TapeError as error:
            verdict.books_wrong += 1
            verdict.note(f"{name}: no book at {at} us, which is called complete: {error}")
            continue
        verdict.books_checked += 1
        rebuilt = (dict(view.yes_bids), dict(view.no_bids))
        early_reset = rebuilt == ({}, {}) and next_is_reset(truth, numbers[name], at)
        if rebuilt != expected and not early_reset:
            verdict.books_wrong += 1
            verdict.note(f"{name}: the book at {at} us differs from the exchange's")


def _lake_ticker_states(lake: Any) -> set[tuple[Any, ...]]:
    states = set()
    for row in lake.tickers(on_gap="ignore").to_pylist():
        values = (None if row[c] is None else round(row[c] * u) for c, u in TICKER_UNITS)
        states.add((row["market_ticker"], _us(row["exchange_ts"]) // 1000, *values))
    return states


def _wire_units(text: str | None, places: int) -> int | None:
    """A wire decimal as an integer of 10^-places, by moving the point in the text."""
    if text is None or text == "":
        return None
    whole, _, fraction = text.partition(".")
    return int(whole + fraction.ljust(places, "0")[:places])


def prove(out: Path) -> tuple[Verdict, int]:
    """Compare the tape in `out/lake` with `out/truth`. Returns (verdict, frames received)."""
    truth = truth_view.load_truth(out / "truth")
    received, trade_ids, ticker_states, frames = _received(out, truth)
    lake = open_lake(str(out / "lake"))
    merged, (coverage, incomplete) = read_merged(lake), read_coverage(lake)
    verdict = Verdict(gap_intervals=incomplete)
    unknown = set(merged) - set(truth.tickers)
    if unknown:
        raise TapeError(f"the tape has markets the exchange never had: {sorted(unknown)[:3]}")
    none = np.empty(0, dtype=np.int64)
    nothing = MergedMarket(none, none, none, none, np.empty(0, dtype=np.bool_))
    book_event = truth.events["kind"] != truth_view.EVENT_HOLE
    order = np.argsort(truth.events["market"], kind="stable")
    order = order[book_event[order]]
    bounds = np.searchsorted(truth.events["market"][order], np.arange(len(truth.tickers) + 1))
    for number, name in enumerate(truth.tickers):
        mine = order[bounds[number] : bounds[number + 1]]
        compare_market(
            name, truth.events[mine], received[mine], merged.get(name, nothing),
            coverage.get(name, []), verdict,
        )  # fmt: skip
    check_holes(truth, coverage, verdict)
    check_books(lake, truth, coverage, verdict, seed=7)
    trades = lake.trades(on_gap="ignore")
    ids = [row.replace("-", "") for row in trades["trade_id"].to_pylist()]
    on_tape = list(zip(ids, trades["sources"].to_pylist(), strict=True))
    check_trades(on_tape, trade_ids, truth, verdict)
    wanted = {
        (s[0], s[1], *(_wire_units(v, 6) for v in s[2:5]), *(_wire_units(v, 2) for v in s[5:7]))
        for s in ticker_states
    }
    verdict.tickers_missing = len(wanted - _lake_ticker_states(lake))
    return verdict, frames


async def read_counters(fleet: Fleet[Any]) -> dict[str, int]:
    """What only the databases know: rows quarantined, audits passed and failed by the gatherers."""
    audits = failed = 0
    for name in fleet.gatherer_names:
        connection = await asyncpg.connect(fleet.databases[f"{name}.hot"].dsn())
        try:
            audits += await connection.fetchval(
                "SELECT count(*) FROM orderbook_snapshot WHERE verdict = 1"
            )
            failed += await connection.fetchval(
                "SELECT count(*) FROM orderbook_snapshot WHERE verdict = 2"
            )
        finally:
            await connection.close()
    connection = await asyncpg.connect(fleet.databases["production"].dsn())
    try:
        quarantined = await connection.fetchval("SELECT coalesce(sum(n_rows), 0) FROM quarantine")
    finally:
        await connection.close()
    return {"audits": audits, "audits_failed": failed, "quarantined": int(quarantined)}
