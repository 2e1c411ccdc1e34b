"""The truth log: what the simulated exchange did, for checking a proof against it.

Purpose: the record layouts of docs/formats.md section 3, a writer that appends and a reader that
maps the files back to numpy arrays. The venue fills a `Ledger` (bytes in memory, no file); the
`TruthWriter` empties it into files.

Invariants: TRUTH-1 the record number in `events.bin` is the event's index; TRUTH-2 `sends.bin`
holds a record for every sequence number that a connection used up, sent or not, in the order of
sending within a connection; TRUTH-3 a record is written whole or not at all by one `write`.

Does not do: decide what happens (venue), judge a recording (the proof does).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt
import orjson

KIND_DELTA: Final = 0
KIND_RESET: Final = 1
KIND_HOLE: Final = 2

SEND_DELTA: Final = 0
SEND_SNAPSHOT: Final = 1
SEND_REPLY: Final = 2  # ok, unsubscribed, error
SEND_TRADE: Final = 3
SEND_LIFECYCLE: Final = 4
SEND_TICKER: Final = 5  # no seq: -1

FAULT_SENT: Final = 0
FAULT_DROPPED: Final = 1
FAULT_DUPLICATE: Final = 2

TRUTH_EVENT: Final = np.dtype(
    [
        ("market", "<i4"),  # -1 for a hole: it concerns every market
        ("kind", "u1"),
        ("side", "u1"),
        ("price", "<i4"),
        ("delta", "<i8"),  # of a hole: the microsecond (engine time) at which it ended
        ("exchange_us", "<i8"),  # as on the wire; of a reset or a hole: the engine's time
    ]
)
TRUTH_SEND: Final = np.dtype(
    [
        ("conn", "<u4"),
        ("sid", "<u4"),
        ("seq", "<i8"),
        ("market", "<i4"),
        ("event", "<i8"),  # line number in trades.jsonl or tickers.jsonl for trades and tickers
        ("kind", "u1"),
        ("fault", "u1"),
    ]
)
pack_event: Final = struct.Struct("<iBBiqq").pack
pack_send: Final = struct.Struct("<IIqiqBB").pack

LINE_FILES: Final = ("books", "conns", "trades", "tickers", "faults")
BUFFER_BYTES: Final = 1 << 20  # a ledger larger than this is written out at the next chance

TruthArray = npt.NDArray[np.void]


@dataclass(slots=True)
class Ledger:
    """Truth not yet in a file: packed records and JSON lines, appended by the venue."""

    events: bytearray = field(default_factory=bytearray)
    sends: bytearray = field(default_factory=bytearray)
    lines: dict[str, bytearray] = field(
        default_factory=lambda: {name: bytearray() for name in LINE_FILES}
    )
    markets: list[str] = field(default_factory=list)

    def line(self, file: str, row: dict[str, Any]) -> None:
        """Appends one JSON line to `books`, `conns`, `trades`, `tickers` or `faults`."""
        self.raw_line(file, orjson.dumps(row))

    def raw_line(self, file: str, text: bytes) -> None:
        """Appends one line that is JSON already."""
        lines = self.lines[file]
        lines += text
        lines += b"\n"

    def size_bytes(self) -> int:
        """Bytes waiting to be written."""
        return len(self.events) + len(self.sends) + sum(map(len, self.lines.values()))


class TruthWriter:
    """Empties a ledger into the files of a directory. One per play; never reopened."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._events = self._create("events.bin")
        self._sends = self._create("sends.bin")
        self._lines = {name: self._create(f"{name}.jsonl") for name in LINE_FILES}
        self._markets_written = -1

    def _create(self, name: str) -> BinaryIO:
        return (self._directory / name).open("wb", buffering=0)

    def drain(self, ledger: Ledger) -> None:
        """Writes everything the ledger holds and empties it; the market list when it grew."""
        files = [(self._events, ledger.events), (self._sends, ledger.sends)]
        files += [(self._lines[name], lines) for name, lines in ledger.lines.items()]
        for file, held in files:
            if held:
                view = memoryview(held)
                written = 0
                while written < len(view):
                    written += file.write(view[written:])
                view.release()
                held.clear()
        if len(ledger.markets) != self._markets_written:
            self._write_markets(ledger.markets)

    def _write_markets(self, markets: list[str]) -> None:
        beside = self._directory / "markets.json.new"
        beside.write_bytes(orjson.dumps(markets))
        beside.replace(self._directory / "markets.json")
        self._markets_written = len(markets)

    def close(self, ledger: Ledger) -> None:
        """Writes the rest and closes the files."""
        self.drain(ledger)
        for file in (self._events, self._sends, *self._lines.values()):
            file.close()


@dataclass(frozen=True, slots=True)
class Truth:
    """A truth directory in memory. `events` and `sends` have the dtypes above."""

    markets: list[str]
    events: TruthArray
    sends: TruthArray
    books: list[dict[str, Any]]
    conns: list[dict[str, Any]]
    trades: list[dict[str, Any]]
    tickers: list[dict[str, Any]]
    faults: list[dict[str, Any]]

    def conn_of(self, handshake: str) -> int | None:
        """The connection number behind a gatherer's handshake digest; None if never accepted."""
        for row in self.conns:
            if row["handshake"] == handshake:
                return int(row["conn"])
        return None


def _read_records(path: Path, dtype: np.dtype[np.void]) -> TruthArray:
    held = path.read_bytes()
    whole = len(held) - len(held) % dtype.itemsize
    return np.frombuffer(held[:whole], dtype=dtype)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    held = path.read_bytes()
    end = held.rfind(b"\n") + 1
    return [orjson.loads(line) for line in held[:end].splitlines()]


def read_truth(directory: Path) -> Truth:
    """Reads a truth directory; a record or line cut short at the end of a file is left out."""
    rows = {name: _read_lines(directory / f"{name}.jsonl") for name in LINE_FILES}
    return Truth(
        markets=orjson.loads((directory / "markets.json").read_bytes()),
        events=_read_records(directory / "events.bin", TRUTH_EVENT),
        sends=_read_records(directory / "sends.bin", TRUTH_SEND),
        books=rows["books"],
        conns=rows["conns"],
        trades=rows["trades"],
        tickers=rows["tickers"],
        faults=rows["faults"],
    )
