"""Small recordings, made from a known stream and written into databases as a gatherer would.

`make_stream` invents what the exchange does; `record` is one gatherer's view of it (its own ids,
sequence numbers, batches, cuts), as batches; `write_batches` commits them to a database, one
transaction each. Everything is a function of the seeds.
"""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import numpy as np

from marketdata.book import Book, level_constant
from marketdata.rows import (
    BATCH_TICKER,
    BATCH_TRADE,
    DELTA_ROW,
    ControlKind,
    ControlRow,
    DeltaFlag,
    GathererBatch,
    SnapshotRow,
    SnapshotVerdict,
    TickerRow,
    TradeRow,
)
from tests.hand import columns

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
U64 = (1 << 64) - 1
START_US = 1_771_945_200_000_000  # 2026-02-24T15:00:00Z
RECEIVED_AFTER_NS = 20_000_000


@dataclass(frozen=True, slots=True)
class Happening:
    """One thing the exchange did: a change of a level, a trade or a ticker state."""

    us: int
    kind: str  # delta | trade | ticker
    market: int
    side: int = 0
    price: int = 0
    delta: int = 0
    key: int = 0


@dataclass(slots=True)
class Stream:
    """What the exchange did, in its order, and the books before it began."""

    tickers: list[str]
    opening: list[dict[tuple[int, int], int]]
    happenings: list[Happening]

    @property
    def deltas(self) -> list[Happening]:
        return [h for h in self.happenings if h.kind == "delta"]


def make_stream(
    seed: int, *, markets: int = 5, events: int = 2_000, mean_gap_us: int = 20_000
) -> Stream:
    """A stream with bursts: a third of the events share the microsecond of the one before."""
    rng = random.Random(seed)
    tickers = [f"KXTEST-{seed:02d}-T{n:03d}" for n in range(markets)]
    books: list[dict[tuple[int, int], int]] = []
    for _ in range(markets):
        books.append(
            {
                (side, 10_000 * rng.randint(5, 45)): 100 * rng.randint(1, 50)
                for side in (0, 1)
                for _ in range(6)
            }
        )
    opening = [dict(b) for b in books]
    us = START_US
    out: list[Happening] = []
    for n in range(events):
        if rng.random() > 1 / 3:
            us += 1 + int(rng.expovariate(1 / mean_gap_us))
        market = min(int(rng.paretovariate(1.0)) - 1, markets - 1)
        roll = rng.random()
        if roll < 0.05:
            out.append(Happening(us, "trade", market, price=10_000 * rng.randint(1, 99), key=n))
            continue
        if roll < 0.1:
            out.append(Happening(us, "ticker", market, price=10_000 * rng.randint(1, 99), key=n))
            continue
        book = books[market]
        if book and rng.random() < 0.5:
            level = rng.choice(sorted(book))
            size = book[level]
            delta = -size if rng.random() < 0.5 else -rng.randint(1, size)
        else:
            level = (rng.randint(0, 1), 10_000 * rng.randint(1, 49))
            delta = 100 * rng.randint(1, 40)
        book[level] = book.get(level, 0) + delta
        if book[level] == 0:
            del book[level]
        out.append(Happening(us, "delta", market, level[0], level[1], delta))
    return Stream(tickers, opening, out)


@dataclass(slots=True)
class _Chain:
    book: Book
    hash: int = 0
    floating: bool = True


@dataclass(slots=True)
class _Rows:
    deltas: list[tuple[int, ...]] = field(default_factory=list)
    snapshots: list[SnapshotRow] = field(default_factory=list)
    trades: list[TradeRow] = field(default_factory=list)
    tickers: list[TickerRow] = field(default_factory=list)
    controls: list[ControlRow] = field(default_factory=list)
    markets: dict[int, str] = field(default_factory=dict)


class _Recorder:
    """One gatherer: one connection with a book (sid 1) and a trade subscription (sid 2)."""

    def __init__(self, stream: Stream, gatherer: int, seed: int, batch_rows: int) -> None:
        self.stream = stream
        self.gatherer = gatherer
        self.rng = random.Random(seed * 1_000 + gatherer)
        self.batch_rows = batch_rows
        self.base = 1_000 * (gatherer + 1)
        self.ids = list(range(len(stream.tickers)))
        self.rng.shuffle(self.ids)
        self.real = [dict(b) for b in stream.opening]
        self.batches: list[GathererBatch] = []
        self.rows = _Rows()
        self.batch_id = 1
        self.run_id = self.base
        self.trade_run = 0
        self.conn = self.base
        self.seq = 0
        self.trade_seq = 0
        self.got_seq = self.got_trade_seq = 0  # of the last frame that arrived
        self.trade_broken = False
        self.latest_us = START_US - 1
        self.ns = START_US * 1_000
        self.chains: list[_Chain] = []
        self.rows.markets = {self.base + self.ids[m]: t for m, t in enumerate(stream.tickers)}
        self._subscribe("subscribed", connect=True)

    def market_id(self, market: int) -> int:
        return self.base + self.ids[market]

    def _control(self, kind: str, **fields: Any) -> None:
        self.rows.controls.append(
            ControlRow(
                self.batch_id,
                len(self.rows.controls),
                self.ns,
                kind,
                self.conn,
                exchange_us=self.latest_us,
                **fields,
            )
        )

    def _subscribe(self, start: str, *, connect: bool) -> None:
        if connect:
            self.conn += 1
            self.seq = self.trade_seq = 0
            self.got_seq = self.got_trade_seq = 0
            self._control(
                ControlKind.CONN_OPEN,
                detail={
                    "conn_uid": f"{self.conn:032x}",
                    "handshake": f"{self.conn:016x}",
                    "local": "127.0.0.1",
                    "url": "ws://127.0.0.1",
                },
            )
            self.run_id += 1
            self.trade_run = self.run_id
            self.trade_broken = False
            self._control(
                ControlKind.RUN_START,
                run_id=self.trade_run,
                sid=2,
                seq=1,
                detail={"channel": "trade", "start": "subscribed"},
            )
        self.run_id += 1
        self._control(
            ControlKind.RUN_START,
            run_id=self.run_id,
            sid=1,
            seq=self.seq + 1,
            detail={"channel": "orderbook_delta", "start": start},
        )
        self.book_run = self.run_id
        self.chains = [_Chain(Book()) for _ in self.stream.tickers]
        if start == "subscribed":
            for market in range(len(self.stream.tickers)):
                self._snapshot(market)

    def _snapshot(self, market: int) -> None:
        book = Book()
        for (side, price), size in self.real[market].items():
            book.apply(side, price, size)
        chain = self.chains[market]
        self.seq += 1
        self.got_seq = self.seq
        verdict = SnapshotVerdict.ANCHOR if chain.floating else SnapshotVerdict.AGREES
        assert chain.floating or chain.hash == book.hash
        self.rows.snapshots.append(
            SnapshotRow(
                self.latest_us,
                self.ns,
                book.hash,
                chain.hash,
                self.market_id(market),
                self.book_run,
                self.seq,
                self.batch_id,
                int(verdict),
                int(DeltaFlag.FLOATING) if chain.floating else 0,
                book.to_bytes(),
            )
        )
        chain.floating = False
        chain.hash = book.hash

    def step(self, happening: Happening, *, lost: bool) -> None:
        """See one happening, or lose its frame."""
        stamp = happening.us * 1_000 + RECEIVED_AFTER_NS + self.rng.randint(0, 5_000_000)
        self.ns = max(self.ns + 1, stamp)
        market = happening.market
        if happening.kind == "delta":
            level = (happening.side, happening.price)
            self.real[market][level] = self.real[market].get(level, 0) + happening.delta
            if self.real[market][level] == 0:
                del self.real[market][level]
            self.seq += 1
        elif happening.kind == "trade":
            self.trade_seq += 1
        if lost:
            self.trade_broken |= happening.kind == "trade"
            return
        self.latest_us = happening.us
        if happening.kind == "delta":
            self.got_seq = self.seq
        getattr(self, f"_{happening.kind}")(happening)
        if len(self.rows.deltas) >= self.batch_rows:
            self.commit()

    def _delta(self, h: Happening) -> None:
        chain = self.chains[h.market]
        chain.hash = (chain.hash + level_constant(h.side, h.price) * h.delta) & U64
        self.rows.deltas.append(
            (
                h.us,
                self.ns,
                h.delta,
                chain.hash,
                self.market_id(h.market),
                self.book_run,
                self.seq,
                self.batch_id,
                h.price,
                h.side,
                int(DeltaFlag.FLOATING) if chain.floating else 0,
            )
        )

    def _trade(self, h: Happening) -> None:
        if self.trade_broken:
            self._control(
                ControlKind.RUN_END,
                run_id=self.trade_run,
                sid=2,
                seq=self.got_trade_seq,
                reason="gap",
            )
            self.run_id += 1
            self.trade_run = self.run_id
            self._control(
                ControlKind.RUN_START,
                run_id=self.trade_run,
                sid=2,
                seq=self.trade_seq,
                detail={"channel": "trade", "start": "gap"},
            )
            self.trade_broken = False
        self.got_trade_seq = self.trade_seq
        self.rows.trades.append(
            TradeRow(
                h.us,
                self.ns,
                uuid.UUID(int=h.key + 1).bytes,
                100 * (h.key % 7 + 1),
                self.market_id(h.market),
                self.trade_run,
                self.trade_seq,
                self.batch_id,
                h.price,
                1_000_000 - h.price,
                h.key % 2,
                0,
            )
        )

    def _ticker(self, h: Happening) -> None:
        self.rows.tickers.append(
            TickerRow(
                h.us,
                self.ns,
                (h.key * 0x9E3779B97F4A7C15) & U64,
                h.key,
                h.key,
                h.key,
                h.key,
                -1,
                100,
                -1,
                self.market_id(h.market),
                self.batch_id,
                h.price,
                h.price,
                h.price,
            )
        )

    def gap(self) -> None:
        """The sequence broke: the run ends and a new one floats until snapshots come."""
        self._control(
            ControlKind.RUN_END, run_id=self.book_run, sid=1, seq=self.got_seq, reason="gap"
        )
        self._subscribe("gap", connect=False)

    def anchor(self) -> None:
        """The snapshots that were asked for arrive."""
        for market, chain in enumerate(self.chains):
            if chain.floating:
                self._snapshot(market)

    def disconnect(self) -> None:
        """The connection ends."""
        for run, sid in ((self.book_run, 1), (self.trade_run, 2)):
            self._control(
                ControlKind.RUN_END,
                run_id=run,
                sid=sid,
                seq=self.got_seq if sid == 1 else self.got_trade_seq,
                reason="close",
            )
        self._control(ControlKind.CONN_CLOSE, reason="reset")

    def reconnect(self) -> None:
        self._subscribe("subscribed", connect=True)

    def end(self) -> list[GathererBatch]:
        """A clean stop."""
        self.anchor()
        self.disconnect()
        self._control(ControlKind.GATHERER_END)
        self.commit()
        return self.batches

    def commit(self) -> None:
        rows, self.rows = self.rows, _Rows()
        self.batches.append(
            GathererBatch(
                self.gatherer,
                self.batch_id,
                self.batch_id,
                self.ns,
                np.array(rows.deltas, dtype=DELTA_ROW),
                rows.snapshots,
                columns(rows.trades, BATCH_TRADE),
                columns(rows.tickers, BATCH_TICKER),
                rows.controls,
                rows.markets,
            )
        )
        self.batch_id += 1


def record(
    stream: Stream,
    gatherer: int,
    *,
    seed: int = 0,
    gaps: int = 0,
    disconnects: int = 0,
    batch_rows: int = 100,
) -> list[GathererBatch]:
    """What one gatherer has: `gaps` bursts of lost frames, `disconnects` times away."""
    recorder = _Recorder(stream, gatherer, seed, batch_rows)
    total = len(stream.happenings)
    rng = random.Random(seed * 77 + gatherer)
    places = sorted(
        rng.sample(range(50, max(51 + gaps + disconnects, total - 50)), gaps + disconnects)
    )
    kinds = ["gap"] * gaps + ["disconnect"] * disconnects
    rng.shuffle(kinds)
    plan = dict(zip(places, kinds, strict=True))
    lost_until = anchor_at = away_until = -1
    for n, happening in enumerate(stream.happenings):
        kind = plan.get(n)
        if kind == "gap" and away_until < n:
            lost_until = n + rng.randint(1, 10)
        elif kind == "disconnect" and away_until < n and lost_until < n:
            recorder.disconnect()
            away_until = n + rng.randint(5, 60)
        if n == away_until:
            recorder.reconnect()
            anchor_at = -1
        if n == lost_until:
            recorder.gap()
            anchor_at = n + rng.randint(3, 30)
            lost_until = -1
        if n == anchor_at:
            if lost_until < 0 and n >= away_until:  # else frames are missing before it
                recorder.anchor()
            anchor_at = -1
        recorder.step(happening, lost=n < away_until or 0 <= n < lost_until)
    if away_until >= total:
        recorder.reconnect()
    return recorder.end()


def at(us: int) -> datetime:
    """`us` microseconds since 1970, exactly."""
    return EPOCH + timedelta(microseconds=us)


def signed(value: int) -> int:
    """The int64 with the bits of an unsigned 64-bit value."""
    return value - (1 << 64) if value >= 1 << 63 else value


def _by_name(kind: type[Any], rows: np.ndarray) -> list[Any]:
    """Columns as rows by name."""
    names = rows.dtype.names or ()
    return [kind(**dict(zip(names, row, strict=True))) for row in rows.tolist()]


def _records(batch: GathererBatch) -> dict[str, tuple[str, list[tuple[Any, ...]]]]:
    """table -> (columns, rows) of a batch, as asyncpg wants them."""
    return {
        "market": (
            "market_id batch_id ticker",
            [(i, batch.last_batch_id, t) for i, t in batch.markets.items()],
        ),
        "orderbook_delta": (
            (
                "exchange_ts received_ns delta book_hash market_id run_id seq batch_id price side "
                "flags"
            ),
            [(at(us), ns, d, signed(h), *rest) for us, ns, d, h, *rest in batch.deltas.tolist()],
        ),
        "orderbook_snapshot": (
            (
                "exchange_ts received_ns book_hash running_hash market_id run_id seq batch_id "
                "verdict flags levels"
            ),
            [
                (
                    at(s.exchange_us),
                    s.received_ns,
                    signed(s.book_hash),
                    signed(s.running_hash),
                    s.market_id,
                    s.run_id,
                    s.seq,
                    s.batch_id,
                    s.verdict,
                    s.flags,
                    s.levels,
                )
                for s in batch.snapshots
            ],
        ),
        "trade": (
            (
                "exchange_ts received_ns trade_id count market_id run_id seq batch_id yes_price "
                "no_price taker_side flags"
            ),
            [
                (
                    at(t.exchange_us),
                    t.received_ns,
                    uuid.UUID(bytes=t.trade_id),
                    t.count,
                    t.market_id,
                    t.run_id,
                    t.seq,
                    t.batch_id,
                    t.yes_price,
                    t.no_price,
                    t.taker_side,
                    t.flags,
                )
                for t in _by_name(TradeRow, batch.trades)
            ],
        ),
        "ticker": (
            (
                "exchange_ts received_ns payload_key volume open_interest dollar_volume "
                "dollar_open_interest yes_bid_size yes_ask_size last_trade_size market_id batch_id "
                "price yes_bid yes_ask"
            ),
            [
                (
                    at(t.exchange_us),
                    t.received_ns,
                    signed(t.payload_key),
                    t.volume,
                    t.open_interest,
                    t.dollar_volume,
                    t.dollar_open_interest,
                    t.yes_bid_size,
                    t.yes_ask_size,
                    t.last_trade_size,
                    t.market_id,
                    t.batch_id,
                    t.price,
                    t.yes_bid,
                    t.yes_ask,
                )
                for t in _by_name(TickerRow, batch.tickers)
            ],
        ),
        "control": (
            (
                "batch_id ord received_ns seq exchange_us conn_id run_id sid market_id kind reason "
                "detail"
            ),
            [
                (
                    c.batch_id,
                    c.ord,
                    c.received_ns,
                    c.seq,
                    c.exchange_us,
                    c.conn_id,
                    c.run_id,
                    c.sid,
                    c.market_id,
                    c.kind,
                    c.reason,
                    json.dumps(c.detail),
                )
                for c in batch.controls
            ],
        ),
    }


async def write_batches(
    conn: asyncpg.Connection[Any],
    batches: Iterable[GathererBatch],
    *,
    uid_base: int = 0,
    shuffle: random.Random | None = None,
) -> None:
    """Commit batches, one transaction each; `shuffle` puts delta rows in another physical order."""
    for batch in batches:
        n_rows = (
            len(batch.deltas)
            + len(batch.snapshots)
            + len(batch.trades)
            + len(batch.tickers)
            + len(batch.controls)
        )
        async with conn.transaction():
            for table, (columns, rows) in _records(batch).items():
                if shuffle is not None and table != "market":
                    shuffle.shuffle(rows)
                if rows:
                    await conn.copy_records_to_table(table, records=rows, columns=columns.split())
            await conn.execute(
                "INSERT INTO ingest_batch (batch_id, batch_uid, n_deltas, n_rows, min_received_ns,"
                " max_received_ns) VALUES ($1, $2, $3, $4, $5, $5)",
                batch.last_batch_id,
                uuid.UUID(int=uid_base + batch.last_batch_id),
                len(batch.deltas),
                n_rows,
                batch.max_received_ns,
            )


def write_markets_meta(stream: Stream) -> Sequence[tuple[str, int, bytes, str, str]]:
    """Rows of `market_history` for the stream's markets."""
    return [
        (
            t,
            START_US * 1_000,
            bytes(16),
            "active",
            json.dumps(
                {
                    "ticker": t,
                    "event_ticker": t.rsplit("-", 1)[0],
                    "title": f"Will {t}?",
                    "status": "active",
                }
            ),
        )
        for t in stream.tickers
    ]
