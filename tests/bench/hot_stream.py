"""Made-up recordings of any length, straight into gatherers' databases: rows as a sink writes them.

Purpose: a merge of tens of millions of events needs rows faster than a gatherer could decode them.
`HotStream` makes one endless run over all its markets: ids, sequence, times and the hash chain are
those of a sound recording. Three rows in a thousand repeat the change before them in the same
microsecond (as real ones do), which a design that knows content only takes for copies.

What holds: every row is a function of the seed, the sizes of the calls and its number; memory does
not grow with the length; no level goes below zero, because each begins deep.

Does not do: gaps, closes, trades (the trials and the simulation do these).
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from marketdata.book import level_constants, pack_levels
from marketdata.rows import DELTA_ROW, ControlKind, SnapshotVerdict
from runtime.partitions import Partitions
from runtime.pgcopy import (
    CONTROL_COPY,
    DELTA_COPY,
    MARKET_COPY,
    SNAPSHOT_COPY,
    CopyLayout,
    pack_rows,
    pack_values,
)  # fmt: skip
from runtime.postgres import Connection, connect, copy_in, migrate

START_US: Final = 1_771_945_200_000_000  # 2026-02-24T15:00:00Z
RECEIPT_NS: Final = 4_000_000
RECEIPT_SPREAD_NS: Final = 4_000_000
RUN: Final = 1
PRICES: Final = 98  # of each side: cents of a dollar
LEVELS: Final = 2 * PRICES
DEEP: Final = 10**12  # 1/100 contract at each level in the beginning
REPEATS_PER_1000: Final = 3

Rows = npt.NDArray[np.void]


class HotStream:
    """One endless sound recording of `markets` markets at `rate` events a second."""

    def __init__(self, markets: int, rate: int, *, seed: int = 1, start_us: int = START_US) -> None:
        self.markets = markets
        self.rate = rate
        self.start_us = start_us
        self.made = 0
        self._rng = np.random.default_rng(seed)
        side, cent = np.divmod(np.arange(LEVELS), PRICES)
        self._constants = level_constants(side, (cent + 1) * 10_000)
        with np.errstate(over="ignore"):
            self.opening_hash = int((self._constants * np.uint64(DEEP)).sum(dtype=np.uint64))
        self._hash = np.full(markets, self.opening_hash, np.uint64)
        weights = 1 / np.arange(1, markets + 1) ** 0.8
        self._share = np.cumsum(weights / weights.sum())

    @property
    def tickers(self) -> list[str]:
        """Tickers by market id less one."""
        return [f"KXBENCH-26FEB24-T{n:05d}" for n in range(self.markets)]

    def next(self, count: int) -> Rows:
        """The next `count` rows, DELTA_ROW, in the order of the sequence."""
        rng = self._rng
        number = np.arange(self.made, self.made + count, dtype=np.int64)
        market = self._share.searchsorted(rng.random(count)).clip(0, self.markets - 1)
        level = rng.integers(0, LEVELS, count)
        delta = 100 * rng.integers(1, 500, count) * (2 * rng.integers(0, 2, count) - 1)
        times_us = self.start_us + number * 1_000_000 // self.rate
        again = np.flatnonzero(rng.integers(0, 1000, count) < REPEATS_PER_1000)
        again = again[again > 0]
        for column in (market, level, delta, times_us):
            column[again] = column[again - 1]
        rows = np.zeros(count, DELTA_ROW)
        rows["market_id"] = market + 1
        rows["side"], rows["price"] = level // PRICES, (level % PRICES + 1) * 10_000
        rows["delta"], rows["exchange_us"] = delta, times_us
        rows["received_ns"] = times_us * 1_000 + RECEIPT_NS
        rows["run_id"] = RUN
        rows["seq"] = (self.markets + 1 + number).astype(np.uint32)
        rows["book_hash"] = self._chain(market, self._constants[level] * delta.view(np.uint64))
        self.made += count
        return rows

    def _chain(
        self, market: npt.NDArray[np.int64], step: npt.NDArray[np.uint64]
    ) -> npt.NDArray[np.uint64]:
        """The book hash after each row."""
        order = np.argsort(market, kind="stable")
        mine, steps = market[order], step[order]
        total = np.cumsum(steps, dtype=np.uint64)
        starts = np.flatnonzero(np.concatenate(([True], mine[1:] != mine[:-1])))
        lengths = np.diff(np.append(starts, mine.size))
        base = self._hash[mine[starts]] - (total[starts] - steps[starts])
        ordered = total + np.repeat(base, lengths)
        self._hash[mine[starts]] = ordered[starts + lengths - 1]
        hashes = np.empty_like(ordered)
        hashes[order] = ordered
        return hashes


class HotWriter:
    """Commits one stream into several gatherers' databases, a batch a transaction."""

    def __init__(self, stream: HotStream, dsns: Sequence[str]) -> None:
        self.stream = stream
        self.batches = 0
        self._dsns = list(dsns)
        self._conns: list[Connection] = []
        self._made = [Partitions() for _ in dsns]

    async def open(self) -> None:
        """Empty databases become those of gatherers that have just subscribed."""
        for dsn in self._dsns:
            conn = await connect(dsn)
            await migrate(conn, "gatherer_hot")
            self._conns.append(conn)
        stream = self.stream
        tickers = list(enumerate(stream.tickers, 1))
        levels = [(cent * 10_000, DEEP) for cent in range(1, PRICES + 1)]
        book = pack_levels(levels, levels)
        at_ns = stream.start_us * 1_000
        high = stream.opening_hash - (1 << 64 if stream.opening_hash >> 63 else 0)
        first = (stream.start_us, at_ns, high, 0)
        last = (RUN, 1, int(SnapshotVerdict.ANCHOR), 0, book)
        controls = [
            (1, 0, at_ns, 0, 0, 1, 0, 0, 0, ControlKind.CONN_OPEN, "", "{}"),
            (1, 1, at_ns, 1, 0, 1, RUN, 1, 0, ControlKind.RUN_START, "",
             '{"channel": "orderbook", "start": "subscribed"}'),
        ]  # fmt: skip
        tables = [
            (MARKET_COPY, pack_values(MARKET_COPY, [(m, 1, ticker) for m, ticker in tickers])),
            (SNAPSHOT_COPY, pack_values(
                SNAPSHOT_COPY, [(*first, m, m, *last) for m, _ in tickers]
            )),
            (CONTROL_COPY, pack_values(CONTROL_COPY, controls)),
        ]  # fmt: skip
        for gatherer in range(len(self._conns)):
            await self._commit(gatherer, tables, 0, stream.markets + 2, at_ns)
        self.batches = 1

    async def write(self, rows: Rows) -> None:
        """One batch more, with each gatherer's own times of receipt."""
        number = self.batches + 1
        for gatherer, conn in enumerate(self._conns):
            late = np.random.default_rng([number, gatherer]).integers(
                0, RECEIPT_SPREAD_NS, len(rows)
            )
            mine = rows.copy()
            mine["received_ns"] = np.maximum.accumulate(mine["received_ns"] + late)
            times_us = rows["exchange_us"]
            await self._made[gatherer].ensure(
                conn, "orderbook_delta", int(times_us[0]), int(times_us[-1])
            )
            body = pack_rows(DELTA_COPY, mine, batch_id=number)
            last_ns = int(mine["received_ns"][-1])
            await self._commit(gatherer, [(DELTA_COPY, body)], len(rows), len(rows), last_ns)
        self.batches = number

    async def _commit(
        self,
        gatherer: int,
        tables: Sequence[tuple[CopyLayout, bytearray]],
        n_deltas: int,
        n_rows: int,
        received_ns: int,
    ) -> None:
        conn = self._conns[gatherer]
        async with conn.transaction():
            for layout, body in tables:
                await copy_in(conn, layout, body)
            await conn.execute(
                "INSERT INTO ingest_batch (batch_id, batch_uid, n_deltas, n_rows, min_received_ns,"
                " max_received_ns) VALUES ($1, $2, $3, $4, $5, $5)",
                self.batches + 1, uuid.uuid4(), n_deltas, n_rows, received_ns,
            )  # fmt: skip

    async def finish(self) -> None:
        """The gatherers say that nothing more comes."""
        at_ns = (self.stream.start_us + self.stream.made * 1_000_000 // self.stream.rate) * 1_000
        at_ns += 10 * RECEIPT_NS
        last = self.stream.markets + self.stream.made
        batch = self.batches + 1
        controls = [
            (batch, 0, at_ns, last, 0, 1, RUN, 1, 0, ControlKind.RUN_END, "close", "{}"),
            (batch, 1, at_ns, 0, 0, 1, 0, 0, 0, ControlKind.CONN_CLOSE, "closed_by_us", "{}"),
            (batch, 2, at_ns, 0, 0, 0, 0, 0, 0, ControlKind.GATHERER_END, "", "{}"),
        ]
        body = pack_values(CONTROL_COPY, controls)
        for gatherer in range(len(self._conns)):
            await self._commit(gatherer, [(CONTROL_COPY, body)], 0, len(controls), at_ns)
        self.batches = batch

    async def close(self) -> None:
        """Give up the connections."""
        for conn in self._conns:
            await conn.close()
        self._conns = []
