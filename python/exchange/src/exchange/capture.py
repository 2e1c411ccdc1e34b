"""Recorded captures: reading the files and checking them before a single frame is played.

Purpose: turn a capture file into `Capture`: its markets, its connections with the book each one
started from, and an iterator over its frames. Two formats are known (docs of the data folder):
`*.jsonl` / `*.jsonl.gz` with lines {recv_ns, conn, frame}, and `*.json` with one object whose
`frames` is a list of {received_ms, frame}.

Invariants: EXCH-3 a capture that contradicts itself (a jump of seq, a negative level, a snapshot
that differs from the book before it) is refused with file, line and what was seen: a truth log made
from it would be false.

Does not do: time shifts, playing (replay).
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import orjson

from exchange.frames import PRICE_SCALE, SIZE_SCALE, scaled, time_us
from exchange.timeline import NO, TIME_BOTH, TIME_MS_ONLY, TIME_TS_ONLY, YES, Levels
from marketdata.errors import CaptureFormatError, OffScale

SUFFIXES: Final = (".jsonl.gz", ".jsonl", ".json")
SIDES: Final = {"yes": YES, "no": NO}
KNOWN_FORMS: Final = (
    "known are lines of {recv_ns, conn, frame} (.jsonl, .jsonl.gz) and one object with frames of "
    "{received_ms, frame} (.json)"
)

Book = tuple[dict[int, int], dict[int, int]]


class RecordedFrame(NamedTuple):
    """A frame as recorded: receive time (us, recorder's clock), connection, message, place."""

    received_us: int
    conn: int
    frame: dict[str, Any]
    place: int


@dataclass(slots=True)
class Stretch:
    """One recorded connection. Times in us; `anchors`: ticker -> book at the start."""

    conn: int
    first_received_us: int
    last_received_us: int
    first_delta: tuple[int, int] | None = None  # (received_us, exchange_us)
    last_exchange_us: int = 0
    anchors: dict[str, tuple[Levels, Levels]] = field(default_factory=dict)


@dataclass(slots=True)
class Capture:
    """A checked capture. `market_ids`: ticker -> UUID in order of appearance."""

    path: Path
    stretches: list[Stretch] = field(default_factory=list)
    market_ids: dict[str, str] = field(default_factory=dict)
    events: int = 0

    def frames(self) -> Iterator[RecordedFrame]:
        """The frames again, in recorded order."""
        return read_frames(self.path)


def refuse(path: Path, seen: str, place: int | None = None) -> CaptureFormatError:
    """The one clear line about a file that is not a capture we know."""
    where = path.name if place is None else f"{path.name} frame {place}"
    return CaptureFormatError(f"{where}: {seen}", hint=KNOWN_FORMS)


def capture_files(path: Path) -> list[Path]:
    """The capture files behind a path given by the user: a file, or all captures of a directory."""
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.name.endswith(SUFFIXES) and p.is_file())
        if not found:
            raise CaptureFormatError(f"{path}: no capture in this directory", hint=KNOWN_FORMS)
        return found
    if not path.is_file():
        raise CaptureFormatError(f"{path}: no such file or directory")
    return [path]


def read_frames(path: Path) -> Iterator[RecordedFrame]:
    """Every frame of a capture file in recorded order; CaptureFormatError if it is none."""
    try:
        if path.name.endswith(".json"):
            yield from _one_object(path)
        else:
            yield from _lines(path)
    except (gzip.BadGzipFile, EOFError, UnicodeDecodeError) as fault:
        raise refuse(path, f"cannot be read as gzip text ({fault})") from None


def _one_object(path: Path) -> Iterator[RecordedFrame]:
    try:
        whole = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as fault:
        raise refuse(path, f"is not JSON ({fault})") from None
    rows = whole.get("frames") if isinstance(whole, dict) else None
    if not isinstance(rows, list):
        seen = f"keys {sorted(whole)[:8]}" if isinstance(whole, dict) else type(whole).__name__
        raise refuse(path, f"no list of frames was found, but {seen}")
    for place, row in enumerate(rows, 1):
        match row:
            case {"received_ms": int(ms), "frame": dict(frame)}:
                yield RecordedFrame(ms * 1000, 1, frame, place)
            case _:
                raise refuse(path, f"is {_shape(row)}", place)


def _lines(path: Path) -> Iterator[RecordedFrame]:
    with gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb") as file:
        for place, line in enumerate(file, 1):
            try:
                row = orjson.loads(line)
            except orjson.JSONDecodeError as fault:
                raise refuse(path, f"is not JSON ({fault})", place) from None
            # Not a match statement: this runs once per recorded frame.
            if not isinstance(row, dict):
                raise refuse(path, f"is {_shape(row)}", place)
            ns, conn, frame = row.get("recv_ns"), row.get("conn"), row.get("frame")
            if not (isinstance(ns, int) and isinstance(conn, int) and isinstance(frame, dict)):
                raise refuse(path, f"is {_shape(row)}", place)
            yield RecordedFrame(ns // 1000, conn, frame, place)


def _shape(row: object) -> str:
    if isinstance(row, dict):
        return f"an object with the keys {sorted(row)[:8]}"
    return f"a {type(row).__name__}"


def delta_time(msg: dict[str, Any]) -> tuple[int, int]:
    """(exchange_us, time form) of a delta's msg. KeyError if it carries no time at all."""
    if "ts" not in msg:
        return int(msg["ts_ms"]) * 1000, TIME_MS_ONLY
    return time_us(msg["ts"]), TIME_BOTH if "ts_ms" in msg else TIME_TS_ONLY


def delta_change(msg: dict[str, Any]) -> tuple[int, int, int]:
    """(side, price, delta) of a delta's msg."""
    price = scaled(msg["price_dollars"], PRICE_SCALE)
    return SIDES[msg["side"]], price, scaled(msg["delta_fp"], SIZE_SCALE)


def snapshot_levels(msg: dict[str, Any]) -> tuple[Levels, Levels]:
    """(yes, no) of a snapshot's msg, ascending; a missing side is empty."""
    sides = []
    for key in ("yes_dollars_fp", "no_dollars_fp"):
        rows = msg.get(key) or []
        sides.append(sorted((scaled(p, PRICE_SCALE), scaled(s, SIZE_SCALE)) for p, s in rows))
    return sides[0], sides[1]


class _Checker:
    """Follows a capture's books and sequence numbers while it is scanned."""

    def __init__(self, path: Path) -> None:
        self.capture = Capture(path)
        self._books: dict[str, Book] = {}
        self._seqs: dict[int, int] = {}

    def see(self, row: RecordedFrame) -> None:
        stretches = self.capture.stretches
        if not stretches or stretches[-1].conn != row.conn:
            if any(s.conn == row.conn for s in stretches):
                raise refuse(self.capture.path, f"returns to connection {row.conn}", row.place)
            stretches.append(Stretch(row.conn, row.received_us, row.received_us))
            self._books.clear()
            self._seqs.clear()
        stretch = stretches[-1]
        stretch.last_received_us = row.received_us
        self._check_seq(row)
        kind = row.frame.get("type")
        if kind == "orderbook_delta":
            self._delta(stretch, row)
        elif kind == "orderbook_snapshot":
            self._snapshot(stretch, row)

    def _check_seq(self, row: RecordedFrame) -> None:
        sid, seq = row.frame.get("sid"), row.frame.get("seq")
        if sid is None or seq is None:
            return
        before = self._seqs.get(sid)
        if before is not None and seq != before + 1:
            raise refuse(self.capture.path, f"seq goes from {before} to {seq}", row.place)
        self._seqs[sid] = seq

    def _delta(self, stretch: Stretch, row: RecordedFrame) -> None:
        msg = row.frame["msg"]
        exchange_us, _ = delta_time(msg)
        side, price, delta = delta_change(msg)
        book = self._books.get(msg["market_ticker"])
        if book is None:
            raise refuse(self.capture.path, "is a delta before any snapshot", row.place)
        size = book[side].get(price, 0) + delta
        if size < 0:
            raise refuse(self.capture.path, f"makes a level negative ({size})", row.place)
        book[side][price] = size
        if exchange_us < stretch.last_exchange_us:
            raise refuse(self.capture.path, "goes back in exchange time", row.place)
        stretch.last_exchange_us = exchange_us
        if stretch.first_delta is None:
            stretch.first_delta = (row.received_us, exchange_us)
        self.capture.events += 1

    def _snapshot(self, stretch: Stretch, row: RecordedFrame) -> None:
        msg = row.frame["msg"]
        ticker = msg["market_ticker"]
        yes, no = snapshot_levels(msg)
        self.capture.market_ids.setdefault(ticker, msg["market_id"])
        book = self._books.get(ticker)
        if book is None:
            stretch.anchors[ticker] = (yes, no)
        elif (yes or no) and (held_levels(book[YES]), held_levels(book[NO])) != (yes, no):
            raise refuse(self.capture.path, "is a snapshot that differs from the book", row.place)
        elif not yes and not no and (any(book[YES].values()) or any(book[NO].values())):
            self.capture.events += 1
        self._books[ticker] = (dict(yes), dict(no))


def held_levels(side: dict[int, int]) -> Levels:
    """The levels of one side that hold anything, ascending by price."""
    return sorted((price, size) for price, size in side.items() if size)


def scan_capture(path: Path) -> Capture:
    """Reads a capture once, checks it (EXCH-3) and returns what a replay needs to know first."""
    checker = _Checker(path)
    for row in read_frames(path):
        try:
            checker.see(row)
        except CaptureFormatError:
            raise
        except (KeyError, TypeError, ValueError, OffScale) as fault:
            seen = f"misses {fault}" if isinstance(fault, KeyError) else str(fault)
            raise refuse(path, seen, row.place) from None
    if not checker.capture.market_ids:
        raise refuse(path, "holds no orderbook_snapshot")
    return checker.capture
