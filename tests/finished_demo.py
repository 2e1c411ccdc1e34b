"""The folder of a finished demo, made by hand: truth log, two spools, lake.

Two markets, ten events, two gatherers. Both lost the frame of event 6 (the tape has a gap there);
the first also lost the frame of event 2, which the second has. The lake is written by the product's
writer; the truth log and the spools are written event by event from `PLAYED`, apart from it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import orjson
import pyarrow as pa
import zstandard

from exchange.truth import Ledger, TruthWriter, pack_event, pack_send
from kalshilake import paths, tables
from kalshilake.schema import TABLES
from kalshilake.store import LocalStore
from kalshilake.write import commit_version, write_hour
from marketdata import segment
from tests.lake_world import (
    START,
    Epoch,
    Event,
    Levels,
    Market,
    World,
    coverage_rows,
    keyframe_table,
    merged_rows,
)

SECOND = 1_000_000
A, B = 0, 1
TICKERS = ("KX-A", "KX-B")
YES, NO = 0, 1
# The exchange's events: market, second, side, price (micro-dollars), delta (1/100); None: a reset.
PLAYED: tuple[tuple[int, int, int, int, int | None], ...] = (
    (A, 2, YES, 400_000, 100),
    (A, 2, YES, 400_000, 100),  # the same change in the same microsecond: two events
    (B, 3, NO, 600_000, -50),
    (A, 4, NO, 500_000, -300),
    (B, 5, YES, 0, None),
    (B, 6, YES, 300_000, 700),
    (B, 15, YES, 310_000, 900),  # nobody received it
    (A, 16, YES, 410_000, 40),
    (B, 25, YES, 300_000, -200),
    (A, 30, NO, 450_000, 250),
)
RESET, LOST = 4, 6
RESET_SHOWN_S = 4  # a reset has no wire time: the latest its subscription had shown
FIRST_BOOKS: tuple[Levels, Levels] = (
    {(YES, 400_000): 500, (NO, 500_000): 300},
    {(YES, 200_000): 10, (NO, 600_000): 80},
)
# What went over the subscription, in seq order from 1: an event's number, "A" or "B" a snapshot.
SENT: tuple[int | str, ...] = ("A", "B", 0, 1, 2, 3, 4, 5, 6, 7, "A", "B", 8, 9)
LOST_SEQS = ({5, 9}, {9})  # of the first and of the second gatherer
TRADE_ID = bytes(range(16))
REST_TRADE_ID = bytes(range(1, 17))  # no frame brought it; the first gatherer found it by REST
SOURCE_REST = 1 << 14
TICKER_MSG = {
    "market_ticker": TICKERS[A],
    "ts_ms": START // 1000 + 7_000,
    "price_dollars": "0.4000",
    "yes_bid_dollars": "0.4000",
    "yes_ask_dollars": "0.55",
    "volume_fp": "12.00",
    "open_interest_fp": "3.5",
}


@dataclass
class Flaws:
    """What is wrong with the lake; nothing by default."""

    without: Collection[int] = ()  # events left out
    twice: int | None = None  # event written two times
    swapped: tuple[int, int] | None = None  # two events of one market that changed places
    keyframe_delta: int = 0  # error in the first level of KX-A's keyframes
    gap_called_complete: bool = False
    without_trade: bool = False
    without_rest_trade: bool = False
    trade_twice: bool = False
    foreign_trade: bool = False  # one that never happened
    without_ticker: bool = False
    stranger: bool = False  # a market that the exchange never had


@dataclass
class _Book:
    levels: Levels = field(default_factory=dict)

    def apply(self, number: int) -> None:
        _, _, side, price, delta = PLAYED[number]
        if delta is None:
            self.levels.clear()
            return
        left = self.levels.get((side, price), 0) + delta
        self.levels[side, price] = left
        if not left:
            del self.levels[side, price]


def _book_before(market: int, number: int) -> Levels:
    book = _Book(dict(FIRST_BOOKS[market]))
    for n in range(number):
        if PLAYED[n][0] == market:
            book.apply(n)
    return book.levels


def write_truth(folder: Path) -> None:
    """The exchange's log, by the exchange's own writer."""
    ledger = Ledger(markets=list(TICKERS))
    for market, second, side, price, delta in PLAYED:
        us = START + second * SECOND
        ledger.events += pack_event(market, int(delta is None), side, price, delta or 0, us)
    for conn in (0, 1):
        ledger.line("conns", {"conn": conn, "handshake": f"{conn:016x}", "opened_ns": 1})
        for seq, what in enumerate(SENT, 1):
            if isinstance(what, str):
                ledger.sends += pack_send(conn, 1, seq, TICKERS.index(f"KX-{what}"), -1, 1, 0)
            else:
                snapshot = int(what == RESET)
                ledger.sends += pack_send(conn, 1, seq, PLAYED[what][0], what, snapshot, 0)
    for market, book in enumerate(FIRST_BOOKS):
        yes, no = ([[p, q] for (s, p), q in book.items() if s == side] for side in (YES, NO))
        ledger.line("books", {"at": 0, "market": market, "yes": yes, "no": no})
    for trade_id in (TRADE_ID, REST_TRADE_ID):
        ledger.line("trades", {"trade_id": str(UUID(bytes=trade_id)), "market_ticker": TICKERS[A]})
    TruthWriter(folder).close(ledger)


def _frame(seq: int, what: int | str, before: int) -> bytes:
    """A frame as the exchange sends it, as far as the proof looks at it."""
    if isinstance(what, str) or what == RESET:
        market = TICKERS.index(f"KX-{what}") if isinstance(what, str) else B
        levels = _book_before(market, before) if isinstance(what, str) else {}
        msg: dict[str, Any] = {"market_ticker": TICKERS[market]}
        for side, name in ((YES, "yes_dollars_fp"), (NO, "no_dollars_fp")):
            shown = {p: q for (s, p), q in levels.items() if s == side}
            if shown:
                msg[name] = [[f"0.{p:06}", f"{q // 100}.{q % 100:02}"] for p, q in shown.items()]
        return orjson.dumps({"type": "orderbook_snapshot", "sid": 1, "seq": seq, "msg": msg})
    msg = {"market_ticker": TICKERS[PLAYED[what][0]]}
    return orjson.dumps({"type": "orderbook_delta", "sid": 1, "seq": seq, "msg": msg})


def write_spool(folder: Path, gatherer: int) -> int:
    """One gatherer's raw bytes; the second one's segment is compressed. Returns its frames."""
    folder.mkdir(parents=True)
    handshake = {"k": "connect", "conn": 7 + gatherer, "handshake": f"{gatherer:016x}"}
    frames, before = [], 0
    for seq, what in enumerate(SENT, 1):
        if seq not in LOST_SEQS[gatherer]:
            frames.append(_frame(seq, what, before))
        before = what + 1 if isinstance(what, int) else before
    frames.append(orjson.dumps({"type": "ticker", "sid": 2, "msg": TICKER_MSG}))
    trade = {"trade_id": TRADE_ID.hex(), "market_ticker": TICKERS[A]}
    frames.append(orjson.dumps({"type": "trade", "sid": 3, "seq": 1, "msg": trade}))
    body = segment.encode_frames(7 + gatherer, 0, 100, list(range(len(frames))), frames)
    whole = segment.encode_header(1)
    whole += segment.encode_record(segment.KIND_CONTROL, orjson.dumps(handshake))
    whole += segment.encode_record(segment.KIND_FRAMES, body)
    if gatherer == 0:
        told = {"k": "rest_trades", "trades": [{"trade_id": str(UUID(bytes=REST_TRADE_ID))}]}
        whole += segment.encode_record(segment.KIND_CONTROL, orjson.dumps(told))
    if gatherer:
        (folder / "00000001.seg.zst").write_bytes(zstandard.compress(whole))
    else:
        (folder / "00000001.seg").write_bytes(whole)
    return len(frames)


def _world(flaws: Flaws) -> World:
    def at(second: int) -> int:
        return START + second * SECOND

    epochs = {
        (A, 1): Epoch(1, at(1), at(40), dict(FIRST_BOOKS[A]), keyframes=[0]),
        (B, 1): Epoch(1, at(1), at(10), dict(FIRST_BOOKS[B]), keyframes=[0]),
        (B, 2): Epoch(2, at(20), at(40), _book_before(B, LOST + 1), keyframes=[0]),
    }
    order = [n for n in range(len(PLAYED)) if n != LOST and n not in flaws.without]
    if flaws.twice is not None:
        order.insert(order.index(flaws.twice), flaws.twice)
    if flaws.swapped is not None:
        i, j = (order.index(n) for n in flaws.swapped)
        order[i], order[j] = order[j], order[i]
    for n in order:
        market, second, side, price, delta = PLAYED[n]
        place = epochs[market, 2 if market == B and second > 15 else 1]
        if delta is None:
            place.events.append(Event(at(RESET_SHOWN_S), reset=True, flags=1))
        else:
            place.events.append(Event(at(second), side=side, price=price, delta=delta))
    markets = [Market(TICKERS[A], [epochs[A, 1]])]
    markets.append(Market(TICKERS[B], [epochs[B, 1], epochs[B, 2]]))
    if flaws.stranger:
        one = Epoch(1, at(1), at(40), {}, [Event(at(3), price=10_000, delta=1)], [0])
        markets.append(Market("KX-C", [one]))
    return World(0, 1, markets)


def _keyframes(flaws: Flaws) -> pa.Table:
    world = _world(flaws)
    if flaws.keyframe_delta:
        world.markets[A].epochs[0].before[YES, 400_000] += flaws.keyframe_delta
    return keyframe_table(world)


def _coverage(world: World, flaws: Flaws) -> pa.Table:
    rows = coverage_rows(world)
    for row in rows:
        if flaws.gap_called_complete and row["status"] == "gap":
            row.update(status="complete", reason="", sources=3, epoch=1)
    return tables.records_table("coverage", rows)


def _ticker_values() -> dict[str, np.ndarray]:
    absent = {f.name: np.array([-1]) for f in TABLES["tickers"].schema if f.nullable}
    seen = {"price": 400_000, "yes_bid": 400_000, "yes_ask": 550_000, "volume": 1_200,
            "open_interest": 350}  # fmt: skip
    return absent | {name: np.array([units]) for name, units in seen.items()}


def _trades(flaws: Flaws) -> list[tuple[bytes, int]]:
    """(id, sources) of the tape's trades."""
    trades = []
    if not flaws.without_trade:
        trades.append((TRADE_ID, 1))
    if not flaws.without_rest_trade:
        trades.append((REST_TRADE_ID, SOURCE_REST | 1))
    if flaws.trade_twice:
        trades.append((TRADE_ID, 2))
    if flaws.foreign_trade:
        trades.append((bytes(16), 1))
    return trades


def write_lake(root: Path, flaws: Flaws) -> None:
    """The tape as the deduplicator would export it, with the flaws asked for."""
    one, ns, world = np.array([1]), np.array([1]), _world(flaws)
    rows = {
        "orderbook_deltas": tables.deltas_table(*merged_rows(world)),
        "orderbook_snapshots": _keyframes(flaws),
        "coverage": _coverage(world, flaws),
    }
    trades = _trades(flaws)
    many = np.array([1] * len(trades))
    rows["trades"] = tables.trades_table(
        [TICKERS[A]] * len(trades), START + 7 * SECOND + np.arange(len(trades)), many,
        [trade_id for trade_id, _ in trades], many * 400_000, many * 600_000, many * 100, many,
        many * 0, np.array([sources for _, sources in trades]),
    )  # fmt: skip
    if not flaws.without_ticker:
        us = one * (START + 7 * SECOND)
        rows["tickers"] = tables.tickers_table([TICKERS[A]], us, ns, one, one, _ticker_values())
    store, watermark = LocalStore(root), START + paths.US_PER_HOUR
    records = [write_hour(store, n, START, t, watermark_us=watermark) for n, t in rows.items()]
    commit_version(store, records, watermark_us=watermark)


def write_demo(out: Path, flaws: Flaws | None = None) -> int:
    """The whole folder. Returns the frames in both spools."""
    write_truth(out / "truth")
    write_lake(out / "lake", flaws or Flaws())
    return sum(write_spool(out / f"g{g + 1}" / "spool", g) for g in (0, 1))
