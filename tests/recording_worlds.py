"""Small recordings for tests of faithful replays: what a gatherer received, written by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from exchange.commands import carry_out
from exchange.connection import Connection
from exchange.faults import FaultLevel, FaultPlan
from exchange.recorded_venue import RecordedVenue
from exchange.recording import ControlItem, FrameItem, StateItem
from exchange.timeline import Item, MarketSpec
from exchange.truth import Ledger
from exchange.venue import Pause
from marketdata.continuity import Continuity
from marketdata.hot import absorb_frames
from marketdata.wire import Decoder
from tests import wire_frames as wire

START_US = 1_788_000_000_000_000
Script = list[tuple[int, bytes | dict[str, Any]]]
"""(connection, frame) or (connection, control body), a millisecond apart."""

MARKET_UUID = "9c0a4f6e-0000-4000-8000-000000000001"


def spec(ticker: str) -> MarketSpec:
    return MarketSpec(
        ticker=ticker, market_id=f"made-up-{ticker}", event_ticker="KX", series_ticker="KX",
        title=ticker, open_us=START_US, close_us=START_US + 10**9,
    )  # fmt: skip


class ScriptedRecording:
    """See exchange.recording.RecordingSource. Begins anywhere by following its own script."""

    def __init__(self, tickers: str, script: Script, *, chosen: bool = False) -> None:
        self.markets = [spec(ticker) for ticker in tickers]
        self.start_us, self.end_us = START_US, START_US + len(script) * 1_000 + 1_000
        self.events_expected = len(script)
        self.script = script
        self._chosen = chosen

    def spec_of(self, ticker: str) -> MarketSpec | None:
        return None if self._chosen else spec(ticker)

    def items(self) -> Iterator[Item]:
        return self.items_from(self.start_us)

    def items_from(self, at_us: int) -> Iterator[Item]:
        continuity, decoder = Continuity(0), Decoder()
        skipped = 0
        for n, (conn, record) in enumerate(self.script):
            if START_US + n * 1_000 >= at_us:
                break
            skipped += 1
            if isinstance(record, dict):
                continuity.control({**record, "conn": conn, "received_ns": n})
            else:
                absorb_frames(continuity, decoder, conn, n, [record], n)
        yield StateItem(at_us, continuity, {}, is_fresh=not skipped)
        for n, (conn, record) in enumerate(self.script[skipped:], skipped):
            at, ns = START_US + n * 1_000, (START_US + n * 1_000) * 1_000
            if isinstance(record, dict):
                yield ControlItem(at, {**record, "conn": conn, "received_ns": ns})
            else:
                yield FrameItem(at, conn, n, ns, record)


def venue_of(source: ScriptedRecording) -> RecordedVenue:
    plan = FaultPlan(FaultLevel.NONE, 1, source.start_us, source.end_us, source.events_expected)
    return RecordedVenue(source, plan, crew=0, ledger=Ledger())


def played(tickers: str, script: Script, **flags: bool) -> RecordedVenue:
    """A venue before its first item."""
    return venue_of(ScriptedRecording(tickers, script, **flags))


def play_all(venue: RecordedVenue) -> None:
    """To the end, waiting for nobody."""
    while venue.play(100) is not Pause.END:
        venue.forgive()


CONNECT: dict[str, Any] = {"k": "connect"}


def closed(reason: str = "reset", code: int = 0, text: str = "") -> dict[str, Any]:
    return {"k": "close", "reason": reason, "code": code, "text": text}


def opening(conn: int, tickers: str) -> Script:
    """A recorded connection with the books of some markets: numbers 1 to n are their snapshots."""
    snapshots = [(conn, wire.snapshot(n, ticker)) for n, ticker in enumerate(tickers, 1)]
    return [(conn, CONNECT), (conn, wire.subscribed(1)), *snapshots]


def client(venue: RecordedVenue, tickers: str = "", *channels: str, **params: Any) -> Connection:
    """A connection subscribed to books of markets, and to all of other channels."""
    connection = venue.open("00" * 8, 1)
    if tickers:
        ask(venue, connection, "subscribe", channels=["orderbook_delta"],
            market_tickers=list(tickers), **params)  # fmt: skip
    if channels:
        ask(venue, connection, "subscribe", id=2, channels=list(channels))
    return connection


def ask(venue: RecordedVenue, connection: Connection, cmd: str, **params: Any) -> None:
    row = {"id": params.pop("id", 1), "cmd": cmd, "params": params}
    connection.commands.append(json.dumps(row).encode())
    carry_out(venue, connection)


def taken(connection: Connection) -> list[dict[str, Any]]:
    """The frames that wait on a connection; they are gone afterwards."""
    frames, connection.out = connection.out, []
    return [json.loads(frame) for frame in frames]


def brief(connection: Connection) -> list[tuple[Any, ...]]:
    """(first letters of the type, market, seq) of the waiting frames that have a number."""
    rows = taken(connection)
    return [
        (row["type"].removeprefix("orderbook_")[:5], row.get("msg", {}).get("market_ticker"),
         row["seq"])
        for row in rows
        if "seq" in row
    ]  # fmt: skip
