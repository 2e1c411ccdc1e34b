"""Recorded captures as a source of the simulated exchange.

Purpose: play one capture as it was recorded, or several side by side: times shifted to one start
(by whole seconds, so that the fractions of `ts` stay as recorded), tickers made distinct.

Engine time: a delta happens at its `exchange_us`. Frames without engine time (tickers, the empty
snapshot of a close) are placed by the recorder's clock after the delta before them, and never after
the next delta. So captures whose recorders had different clocks still agree on one time axis.

A hole between two recorded connections is played as a hole: everybody is disconnected, and nobody
can come back before the time at which the recorder was back.

Does not do: fault injection, protocol (venue). Invariant: EXCH-4 items never go back in `at_us`.
"""

from __future__ import annotations

import heapq
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import orjson

from exchange.capture import (
    Capture,
    RecordedFrame,
    Stretch,
    capture_files,
    delta_change,
    delta_time,
    scan_capture,
    snapshot_levels,
)
from exchange.frames import time_text, time_us
from exchange.timeline import (
    DeltaItem,
    EmptySnapshotItem,
    HoleEndItem,
    HoleStartItem,
    Item,
    MarketSpec,
    StatusItem,
    TickerItem,
)

SECOND_US: Final = 1_000_000
PRELOAD_EVENTS: Final = 250_000
LISTED_BEFORE_US: Final = 900 * SECOND_US  # open_time in REST: a capture does not tell it
UUID_SPACE: Final = uuid.UUID("5f1f6c52-4c1c-4f6e-9c5e-0a4f5d3c2b1a")


class ReplaySource:
    """Captures as one exchange (see `timeline.Source`)."""

    def __init__(self, captures: list[Capture]) -> None:
        self._tracks = [_Track(capture) for capture in captures]
        start_us = min(track.start_us for track in self._tracks)
        self.markets: list[MarketSpec] = []
        taken: set[str] = set()
        for track in self._tracks:
            track.shift(start_us)
            track.list_markets(self.markets, taken)
        self.start_us = min(track.start_us for track in self._tracks)
        self.end_us = max(track.end_us for track in self._tracks)
        self.events_expected = sum(capture.events for capture in captures)

    def items(self) -> Iterator[Item]:
        """All captures merged by engine time; the order within a capture is kept.

        A play of up to PRELOAD_EVENTS is read at once, so that reading does not slow it.
        """
        merged = heapq.merge(*(t.items() for t in self._tracks), key=lambda item: item.at_us)
        return iter(list(merged)) if self.events_expected <= PRELOAD_EVENTS else merged


def replay_source(path: Path) -> ReplaySource:
    """The source behind a capture file or a directory of captures."""
    return ReplaySource([scan_capture(file) for file in capture_files(path)])


class _Track:
    """One capture on the common time axis."""

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self._shift_us = 0
        self._numbers: dict[str, int] = {}
        self._tickers: dict[str, str] = {}
        self._spans = _spans(capture.stretches)
        self.start_us = self._spans[0][0]
        self.end_us = self._spans[-1][1]

    def shift(self, start_us: int) -> None:
        """Moves the capture to begin in the second of `start_us`."""
        self._shift_us = (start_us - self.start_us) // SECOND_US * SECOND_US
        if self._shift_us < 0 and self.start_us + self._shift_us < start_us:
            self._shift_us += SECOND_US
        self._spans = [(a + self._shift_us, b + self._shift_us) for a, b in self._spans]
        self.start_us, self.end_us = self._spans[0][0], self._spans[-1][1]

    def list_markets(self, markets: list[MarketSpec], taken: set[str]) -> None:
        """Appends this capture's markets; a ticker that another capture has gets a suffix."""
        anchors = self._capture.stretches[0].anchors
        for ticker, market_id in self._capture.market_ids.items():
            name, copy = ticker, 1
            while name in taken:
                copy += 1
                name = f"{ticker}.{copy}"
            if copy > 1:
                market_id = str(uuid.uuid5(UUID_SPACE, name))  # noqa: PLW2901 (two, one name)
            taken.add(name)
            self._numbers[ticker], self._tickers[ticker] = len(markets), name
            yes, no = anchors.get(ticker, ([], []))
            event = ticker.rsplit("-", 1)[0]
            markets.append(
                MarketSpec(
                    ticker=name,
                    market_id=market_id,
                    event_ticker=event,
                    series_ticker=ticker.split("-", 1)[0],
                    title=ticker,
                    open_us=self.start_us - LISTED_BEFORE_US,
                    close_us=self.end_us + SECOND_US,
                    yes=yes,
                    no=no,
                )
            )

    def items(self) -> Iterator[Item]:
        at_us = self.start_us
        spans = iter(self._spans)
        clock: _Clock | None = None
        stretch_conn: int | None = None
        stretches = iter(self._capture.stretches)
        for row in self._capture.frames():
            if row.conn != stretch_conn:
                if clock is not None:
                    yield from clock.rest()
                    at_us = clock.at_us
                stretch, (start_us, _) = next(stretches), next(spans)
                if stretch_conn is not None:
                    yield HoleStartItem(at_us, max(at_us, start_us))
                    at_us = max(at_us, start_us)
                    yield HoleEndItem(at_us, self._anchors(stretch))
                stretch_conn = row.conn
                clock = _Clock(self, at_us, row.received_us)
            assert clock is not None
            yield from clock.see(row)
        if clock is not None:
            yield from clock.rest()

    def _anchors(self, stretch: Stretch) -> dict[int, tuple[list[Any], list[Any]]]:
        return {self._numbers[ticker]: book for ticker, book in stretch.anchors.items()}

    def timed(self, row: RecordedFrame) -> tuple[int, DeltaItem]:
        """The delta of a frame and its time on the common axis (us)."""
        msg = row.frame["msg"]
        exchange_us, form = delta_time(msg)
        exchange_us += self._shift_us
        side, price, delta = delta_change(msg)
        number = self._numbers[msg["market_ticker"]]
        return exchange_us, DeltaItem(exchange_us, number, side, price, delta, exchange_us, form)

    def untimed(self, row: RecordedFrame, at_us: int) -> Iterator[Item]:
        """What a ticker or an empty snapshot becomes at `at_us`; nothing for other frames."""
        kind, msg = row.frame["type"], row.frame["msg"]
        if kind == "ticker":
            number = self._numbers.get(msg["market_ticker"])
            if number is not None:
                yield TickerItem(at_us, number, self._ticker(msg))
        elif kind == "orderbook_snapshot" and snapshot_levels(msg) == ([], []):
            number = self._numbers[msg["market_ticker"]]
            yield EmptySnapshotItem(at_us, number)
            yield StatusItem(at_us, number, "closed")

    def _ticker(self, msg: dict[str, Any]) -> bytes:
        moved = dict(msg)
        name = self._tickers[msg["market_ticker"]]
        if name != msg["market_ticker"]:
            moved["market_ticker"] = name
            moved["market_id"] = str(uuid.uuid5(UUID_SPACE, name))
        if self._shift_us:
            for key, unit_us in (("ts", SECOND_US), ("ts_ms", 1000)):
                if key in moved:
                    moved[key] += self._shift_us // unit_us
            if "time" in moved:
                moved["time"] = time_text(time_us(moved["time"]) + self._shift_us)
        return orjson.dumps(moved)


class _Clock:
    """Places the frames of one recorded connection on the engine's time axis."""

    def __init__(self, track: _Track, at_us: int, received_us: int) -> None:
        self._track = track
        self._timed_us, self._timed_received_us = at_us, received_us
        self._waiting: list[RecordedFrame] = []
        self._first_snapshots: set[str] = set()
        self.at_us = at_us

    def see(self, row: RecordedFrame) -> Iterator[Item]:
        kind = row.frame.get("type")
        if kind == "orderbook_delta":
            exchange_us, item = self._track.timed(row)
            yield from self._place(limit_us=exchange_us)
            self.at_us = max(self.at_us, exchange_us)
            if item.at_us != self.at_us:
                item = msgspec.structs.replace(item, at_us=self.at_us)
            self._timed_us, self._timed_received_us = self.at_us, row.received_us
            yield item
        elif kind == "ticker" or (kind == "orderbook_snapshot" and not self._is_anchor(row)):
            self._waiting.append(row)

    def _is_anchor(self, row: RecordedFrame) -> bool:
        ticker = row.frame["msg"]["market_ticker"]
        first = ticker not in self._first_snapshots
        self._first_snapshots.add(ticker)
        return first

    def _place(self, limit_us: int | None) -> Iterator[Item]:
        for row in self._waiting:
            guess_us = self._timed_us + max(0, row.received_us - self._timed_received_us)
            if limit_us is not None:
                guess_us = min(guess_us, limit_us)
            self.at_us = max(self.at_us, guess_us)
            yield from self._track.untimed(row, self.at_us)
        self._waiting.clear()

    def rest(self) -> Iterator[Item]:
        """The frames after the connection's last delta."""
        yield from self._place(limit_us=None)


def _spans(stretches: list[Stretch]) -> list[tuple[int, int]]:
    """Start and end of each recorded connection on the engine's clock, never overlapping."""
    spans: list[tuple[int, int]] = []
    for stretch in stretches:
        if stretch.first_delta is None:
            start_us, end_us = stretch.first_received_us, stretch.last_received_us
        else:
            received_us, exchange_us = stretch.first_delta
            start_us = exchange_us - max(0, received_us - stretch.first_received_us)
            tail_us = stretch.last_received_us - stretch.first_received_us
            end_us = max(stretch.last_exchange_us, start_us + tail_us)
        if spans:
            start_us = max(start_us, spans[-1][1])
        spans.append((start_us, max(start_us, end_us)))
    return spans
