"""What the exchange really did, and what each gatherer really received: the two sides of the proof.

Purpose: turn the truth log of the simulated exchange and the raw spools of the gatherers into
"which events did at least one gatherer receive inside a run". Written apart from the services: it
shares with them only the spool codec and the format document, and looks at `sid` and `seq` of raw
frames, so that an error in decode, continuity or merge cannot hide itself here.

Counting rule (docs/acceptance.md): a run is a stretch of one subscription without a hole in `seq`;
an event counts as received if its market has a snapshot in that run. A first snapshot that is empty
anchors only what follows it: it may itself be the reset, and nobody could tell.

Does not do: any comparison with the merged tape (proof.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import zstandard

from exchange.truth import TRUTH_EVENT, TRUTH_SEND
from marketdata import segment
from marketdata.errors import TapeError

# Kinds of docs/formats.md section 3, written here again on purpose: the proof reads the document.
EVENT_DELTA, EVENT_RESET, EVENT_HOLE = 0, 1, 2
SEND_DELTA, SEND_SNAPSHOT = 0, 1

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(slots=True)
class Truth:
    """The truth log, loaded.

    `events` has dtype TRUTH_EVENT, `sends` TRUTH_SEND and is sorted by (conn, sid, seq).
    """

    tickers: list[str]
    events: npt.NDArray[np.void]
    sends: npt.NDArray[np.void]
    conn_of_handshake: dict[str, int]
    books: list[dict[str, Any]]
    trades: list[dict[str, Any]] = field(default_factory=list)
    ticker_states: list[dict[str, Any]] = field(default_factory=list)


def _jsonl(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [orjson.loads(line) for line in path.read_bytes().splitlines() if line]


def load_truth(folder: Path) -> Truth:
    """Read a truth log (docs/formats.md section 3). Raises TapeError where a file is missing."""
    for name in ("markets.json", "events.bin", "sends.bin", "conns.jsonl", "books.jsonl"):
        if not (folder / name).exists():
            raise TapeError(f"the truth log {folder} has no {name}")
    sends = np.fromfile(folder / "sends.bin", dtype=TRUTH_SEND)
    sends = sends[np.lexsort((sends["seq"], sends["sid"], sends["conn"]))]
    return Truth(
        tickers=orjson.loads((folder / "markets.json").read_bytes()),
        events=np.fromfile(folder / "events.bin", dtype=TRUTH_EVENT),
        sends=sends,
        conn_of_handshake={c["handshake"]: int(c["conn"]) for c in _jsonl(folder / "conns.jsonl")},
        books=_jsonl(folder / "books.jsonl"),
        trades=_jsonl(folder / "trades.jsonl"),
        ticker_states=_jsonl(folder / "tickers.jsonl"),
    )


@dataclass(slots=True)
class Received:
    """What one gatherer's spool holds, by connection of the exchange."""

    # (truth connection, sid) -> seq numbers in the order received
    seqs: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    # (truth connection, sid) -> seqs of snapshots that showed an empty book
    empty_snapshots: dict[tuple[int, int], set[int]] = field(default_factory=dict)
    trade_ids: set[str] = field(default_factory=set)  # by frames and by REST
    rest_trade_ids: set[str] = field(default_factory=set)  # those that REST told of
    ticker_states: set[tuple[Any, ...]] = field(default_factory=set)
    frames: int = 0


def _segments(spool: Path) -> Iterator[bytes]:
    """Uncompressed bytes of every segment, in order."""
    names = {p.name.split(".")[0]: p for p in sorted(spool.glob("[0-9]*.seg*"))}
    for _, path in sorted(names.items()):
        raw = path.read_bytes()
        if path.name.endswith(".zst"):
            raw = zstandard.ZstdDecompressor().decompress(raw, max_output_size=1 << 31)
        yield raw


def ticker_key(msg: dict[str, Any]) -> tuple[Any, ...]:
    """Identity of a ticker state as the tape must keep it: market, time, quotes, totals as sent."""
    return (
        msg["market_ticker"],
        int(msg["ts_ms"]) if "ts_ms" in msg else int(msg["ts"]) * 1000,
        msg.get("price_dollars"),
        msg.get("yes_bid_dollars"),
        msg.get("yes_ask_dollars"),
        msg.get("volume_fp"),
        msg.get("open_interest_fp"),
    )


def _read_frame(raw: bytes, conn: int, into: Received) -> None:
    """Book one raw frame: looks only at type, sid, seq and the identities of trades and tickers."""
    into.frames += 1
    try:
        frame = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return
    if not isinstance(frame, dict):
        return
    if frame.get("type") == "trade":
        into.trade_ids.add(str(frame["msg"]["trade_id"]).replace("-", ""))
    elif frame.get("type") == "ticker":
        into.ticker_states.add(ticker_key(frame["msg"]))
    seq, sid = frame.get("seq"), frame.get("sid")
    if isinstance(seq, int) and isinstance(sid, int):
        into.seqs.setdefault((conn, sid), []).append(seq)
        if frame.get("type") == "orderbook_snapshot" and not (
            frame["msg"].get("yes_dollars_fp") or frame["msg"].get("no_dollars_fp")
        ):
            into.empty_snapshots.setdefault((conn, sid), set()).add(seq)


def read_spool(spool: Path, truth: Truth) -> Received:
    """Everything a gatherer received, from the raw bytes it kept."""
    got = Received()
    truth_conn: dict[int, int] = {}
    for raw in _segments(spool):
        for record in segment.scan(raw, segment.HEADER_BYTES):
            if record.kind == segment.KIND_CONTROL:
                control = orjson.loads(record.payload)
                if control.get("k") == "rest_trades":
                    ids = {str(t["trade_id"]).replace("-", "") for t in control["trades"]}
                    got.rest_trade_ids |= ids
                    got.trade_ids |= ids
                if control.get("k") == "connect" and "handshake" in control:
                    known = truth.conn_of_handshake.get(control["handshake"])
                    if known is not None:
                        truth_conn[int(control["conn"])] = known
            elif record.kind == segment.KIND_FRAMES:
                frames = segment.decode_frames(record.payload)
                conn = truth_conn.get(frames.conn)
                if conn is None:
                    raise TapeError(
                        f"frames of connection {frames.conn} precede its connect record"
                    )
                for one in frames.frames:
                    _read_frame(bytes(one), conn, got)
    return got


def _first_snapshots(part: npt.NDArray[np.void], empty: BoolArray) -> dict[int, tuple[int, bool]]:
    """market -> (position in the run, empty?) of its first snapshot in a run."""
    first: dict[int, tuple[int, bool]] = {}
    for at in np.flatnonzero(part["kind"] == SEND_SNAPSHOT):
        market = int(part["market"][at])
        if market not in first:
            first[market] = (int(at), bool(empty[at]))
    return first


def _mark_run(part: npt.NDArray[np.void], empty: BoolArray, received: BoolArray) -> None:
    """Mark the events of one run that stand in a market with a snapshot in that run."""
    first = _first_snapshots(part, empty)
    position = np.arange(part.size)
    # Sends of trades carry line numbers of another file, not events.
    carries = (part["event"] >= 0) & (part["kind"] <= SEND_SNAPSHOT)
    anchor = np.full(part.size, part.size, dtype=np.int64)
    for market, (at, is_empty) in first.items():
        anchor[part["market"] == market] = at + 1 if is_empty else 0
    take = carries & (position >= anchor)
    received[part["event"][take]] = True


def received_in_runs(truth: Truth, got: Received) -> BoolArray:
    """Per event of the truth log: did this gatherer receive it inside a run?"""
    received = np.zeros(truth.events.size, dtype=np.bool_)
    sends = truth.sends
    keys = sends["conn"].astype(np.int64) << 32 | sends["sid"].astype(np.int64)
    for (conn, sid), seqs in got.seqs.items():
        key = conn << 32 | sid
        low, high = np.searchsorted(keys, [key, key + 1])
        mine = sends[low:high]
        if mine.size == 0:
            continue  # a sid that carries no book events
        order = np.array(seqs, dtype=np.int64)
        fresh = np.concatenate(([True], order[1:] > np.maximum.accumulate(order)[:-1]))
        order = order[fresh]  # a repeated frame is not a second event
        at = np.searchsorted(mine["seq"], order)
        if np.any(at >= mine.size) or np.any(mine["seq"][np.minimum(at, mine.size - 1)] != order):
            raise TapeError(f"connection {conn} sid {sid} holds a seq that the exchange never sent")
        cuts = np.flatnonzero(np.diff(order) != 1) + 1
        for run in np.split(at, cuts):
            part = mine[run]
            empty = np.isin(part["seq"], list(got.empty_snapshots.get((conn, sid), ())))
            _mark_run(part, empty, received)
    return received


def book_events(truth: Truth, market: int) -> npt.NDArray[np.void]:
    """Deltas and resets of one market in the exchange's order (holes left out)."""
    mine = truth.events[truth.events["market"] == market]
    events: npt.NDArray[np.void] = mine[mine["kind"] != EVENT_HOLE]
    return events
