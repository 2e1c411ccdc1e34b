"""Short ways to make decoded frames and to look at the rows that continuity makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from marketdata import events
from marketdata.continuity import Continuity
from marketdata.events import TsPrecision
from marketdata.rows import DELTA_ROW, TICKER_ROW, TRADE_ROW, ControlRow

T0 = 1_786_085_188_000_000
BASE = 1000


def delta(
    seq: int | None,
    *,
    market: str = "M",
    side: int = 0,
    price: int = 500_000,
    size: int = 100,
    us: int | None = None,
    precision: TsPrecision = TsPrecision.MICRO,
    sid: int | None = 1,
) -> events.Delta:
    """A change; without `us` its time is its number in microseconds after T0."""
    at = T0 + (seq or 0) if us is None else us
    exchange_us = None if precision is TsPrecision.NONE else at
    return events.Delta(market, side, price, size, exchange_us, precision, sid, seq)


def snapshot(
    seq: int | None,
    *,
    market: str = "M",
    yes: list[tuple[int, int]] | None = None,
    no: list[tuple[int, int]] | None = None,
    sid: int | None = 1,
) -> events.Snapshot:
    """A snapshot; without levels an empty one."""
    return events.Snapshot(market, yes or [], no or [], sid, seq, None)


def trade(seq: int | None, *, sid: int = 2, trade_id: bytes | None = b"t" * 16) -> events.Trade:
    return events.Trade(
        "M", trade_id, 600_000, 400_000, 200, 0, True, T0 + 5, TsPrecision.MILLI, sid, seq
    )


def ticker(us: int | None = T0 + 7, *, sid: int = 3) -> events.Ticker:
    values = (600_000, 590_000, 610_000, 1, 2, 3, 4, 5, 6, 7)
    return events.Ticker("M", *values, 2**63 + 5, us, TsPrecision.MILLI, sid, None)


class Feed:
    """A continuity with one open connection, and what came out of it."""

    def __init__(self, *channels: str) -> None:
        self.continuity = Continuity(BASE)
        self.conn_id = self.continuity.next_conn_id
        self.clock = 1_000
        self.control(k="connect", conn_uid="u", handshake="h", local="l", url="w")
        for sid, channel in enumerate(channels, 1):
            self.send(events.Subscribed(1, channel, sid))

    def control(self, **record: Any) -> None:
        self.clock += 1
        self.continuity.control({"conn": self.conn_id, "received_ns": self.clock, **record})

    def send(self, *batch: Any) -> None:
        """Frames received one after the other."""
        for event in batch:
            self.clock += 1
            self.continuity.absorb(self.conn_id, [event], self.clock)

    @property
    def deltas(self) -> np.ndarray[Any, Any]:
        return np.frombuffer(bytes(self.continuity.rows.deltas), DELTA_ROW)

    @property
    def trades(self) -> np.ndarray[Any, Any]:
        return np.frombuffer(bytes(self.continuity.rows.trades), TRADE_ROW)

    @property
    def tickers(self) -> np.ndarray[Any, Any]:
        return np.frombuffer(bytes(self.continuity.rows.tickers), TICKER_ROW)

    @property
    def verdicts(self) -> list[int]:
        return [row.verdict for row in self.continuity.rows.snapshots]

    def controls(self, kind: str) -> list[ControlRow]:
        return [row for row in self.continuity.rows.controls if row.kind == kind]
