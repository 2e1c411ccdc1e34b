"""How fast a replay is: events a second with --rate max, and as a multiple of recorded time.

Purpose: recorded captures, played side by side, as a lake (Parquet, zstd) or as a gatherer's spool
(each capture one connection; compressed segments); `tape replay --rate max` from it to one client
that reads and counts. Printed, not judged; docs/replay.md has the figures.

    python -m tests.bench.replay [copies] [--spool]     # each capture so many times side by side
"""

from __future__ import annotations

import asyncio
import heapq
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import orjson
import websockets

from exchange.capture import Capture, scan_capture
from exchange.replay import ReplaySource
from exchange.timeline import DeltaItem, EmptySnapshotItem, Levels
from kalshilake import paths, tables
from kalshilake.schema import TABLES
from kalshilake.store import LocalStore
from kalshilake.write import commit_version, write_hour
from marketdata.book import Book
from marketdata.rows import MERGED_ROW, DeltaFlag
from tests.exchange_client import WS_PATH, Keys
from tests.recorded import captures
from tests.recorded_spool import Row, pack, record_at

SEGMENT_BYTES = 64 << 20
TAPE = (sys.executable, "-m", "tape.main")


def packed(yes: Levels, no: Levels) -> bytes:
    """A book as a keyframe keeps it."""
    levels = b"".join(struct.pack("<iq", *level) for level in (*yes, *no))
    return struct.pack("<II", len(yes), len(no)) + levels


def write_lake(root: Path, source: ReplaySource) -> int:
    """The captures as a lake of proven books; the number of their changes."""
    books = [Book(spec.yes, spec.no) for spec in source.markets]
    names = {n: spec.ticker for n, spec in enumerate(source.markets, 1)}
    keys = [packed(spec.yes, spec.no) for spec in source.markets]
    hashes = np.array([book.hash for book in books], np.uint64)
    seqs, made = [0] * len(books), []
    for item in source.items():
        if not isinstance(item, (DeltaItem, EmptySnapshotItem)):
            continue
        n, us = item.market, item.at_us
        if isinstance(item, EmptySnapshotItem):
            if not books[n].levels(0) and not books[n].levels(1):
                continue
            books[n].clear()
            row, flags = (0, 0, 0), int(DeltaFlag.RESET)
        else:
            books[n].apply(item.side, item.price, item.delta)
            row, flags = (item.delta, item.price, item.side), 0
        seqs[n] += 1
        made.append((us, us * 1000, row[0], books[n].hash, seqs[n], n + 1, 1,
                     row[1], row[2], flags, 7))  # fmt: skip
    zeros = np.zeros(len(keys), np.int64)
    start = zeros + source.start_us
    whole = {
        "orderbook_deltas": tables.deltas_table(np.array(made, MERGED_ROW), names),
        "orderbook_snapshots": tables.snapshots_table(
            list(names.values()), start, start * 1000, zeros + 1, zeros, hashes, keys, zeros + 7
        ),
        "coverage": tables.records_table("coverage", _claims(source)),
    }
    store, records, hours = LocalStore(root), [], paths.US_PER_HOUR
    for hour in range(paths.hour_of(source.start_us), source.end_us + 1, hours):
        for name, rows in whole.items():
            times = tables.times_us(rows.column(TABLES[name].time))
            mine = rows.filter(np.logical_and(times >= hour, times < hour + hours))
            records.append(write_hour(store, name, hour, mine, watermark_us=hour + hours))
    commit_version(store, records, watermark_us=hour + hours)
    return len(made)


def _claims(source: ReplaySource) -> list[dict[str, object]]:
    made: list[dict[str, object]] = []
    for spec in source.markets:
        at, end = source.start_us, source.end_us + 1
        while at < end:
            upto = min(end, paths.hour_of(at) + paths.US_PER_HOUR)
            made.append({"market_ticker": spec.ticker, "channel": "orderbook", "from_ts": at,
                         "to_ts": upto, "status": "complete", "reason": "", "sources": 7,
                         "audits": 0, "epoch": 1})  # fmt: skip
            at = upto
    return made


def spool_rows(captures: list[Capture], start_us: int) -> Iterator[Row]:
    """The captures as connections of one gatherer, shifted to one start, by time of receipt."""
    taken: set[str] = set()
    tracks = []
    for conn, capture in enumerate(captures, 1):
        names = {}
        for ticker in capture.market_ids:
            copies = (f"{ticker}.{n}" if n > 1 else ticker for n in range(1, len(captures) + 1))
            names[ticker] = next(name for name in copies if name not in taken)
            taken.add(names[ticker])
        tracks.append(_track(capture, conn, names, start_us))
    return heapq.merge(*tracks, key=lambda row: row[0])


def _track(capture: Capture, conn: int, names: dict[str, str], start_us: int) -> Iterator[Row]:
    shift_us = start_us - capture.stretches[0].first_received_us
    yield start_us * 1_000, conn, {"k": "connect"}
    for row in capture.frames():
        msg = row.frame.get("msg")
        if isinstance(msg, dict) and msg.get("market_ticker") in names:
            msg["market_ticker"] = names[msg["market_ticker"]]
        yield (row.received_us + shift_us) * 1_000, conn, orjson.dumps(row.frame)


async def write_spool(folder: Path, captures: list[Capture], start_us: int) -> int:
    """The captures as a spool, compressed as a gatherer does; the number of its changes."""
    changes = 0

    def counted() -> Iterator[Row]:
        nonlocal changes
        for row in spool_rows(captures, start_us):
            changes += isinstance(row[2], bytes) and b'"orderbook_delta","sid"' in row[2][:40]
            yield row

    await record_at(folder, counted(), segment_bytes=SEGMENT_BYTES)
    pack(folder)
    return changes


async def follow(place: Path, folder: Path, tickers: list[str], greeting: int) -> tuple[int, float]:
    """(changes that arrived, seconds from the start of the play to the last of them)."""
    child = await asyncio.create_subprocess_exec(
        *TAPE, "replay", str(place), "--port", "0", "--paused", "--once", "--rate",
        "max", "--out", str(folder), stdout=subprocess.PIPE, env=os.environ,
    )  # fmt: skip
    assert child.stdout is not None
    said: list[str] = []
    while not any("replay/status" in line for line in said):
        said.append((await child.stdout.readline()).decode().strip())
    ws_url = next(line for line in said if line.startswith("ws://"))
    resume = next(line for line in said if line.endswith("/resume")).split()[-1]
    headers = Keys.make(folder).headers("GET", WS_PATH)
    count, began_s, last_s = 0, 0.0, 0.0
    async with websockets.connect(
        ws_url, additional_headers=headers, compression=None, max_size=None
    ) as client:
        params = {"channels": ["orderbook_delta"], "market_tickers": tickers}
        await client.send(json.dumps({"id": 1, "cmd": "subscribe", "params": params}))
        for _ in range(greeting):
            await client.recv()
        request = urllib.request.Request(resume, method="POST")
        began_s = time.monotonic()
        await asyncio.to_thread(urllib.request.urlopen, request)
        try:
            async for text in client:
                if '"orderbook_delta"' in str(text)[:40]:
                    count += 1
                    last_s = time.monotonic()
        except websockets.exceptions.ConnectionClosed:
            pass
    await child.communicate()
    return count, last_s - began_s


def main() -> None:
    """Builds, plays, prints."""
    numbers = [int(text) for text in sys.argv[1:] if text.isdigit()]
    is_spool = "--spool" in sys.argv
    copies = numbers[0] if numbers else 1
    scanned = [scan_capture(path) for path in captures()]
    whole = [capture for capture in scanned if len(capture.stretches) == 1]
    source = ReplaySource(whole * copies)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        place = folder / ("spool" if is_spool else "lake")
        if is_spool:
            events = asyncio.run(write_spool(place, whole * copies, source.start_us))
        else:
            events = write_lake(place, source)
        size = sum(p.stat().st_size for p in place.rglob("*") if p.is_file())
        span_s = (source.end_us - source.start_us) / 1_000_000
        tickers = [spec.ticker for spec in source.markets]
        greeting = 1 if is_spool else len(tickers) + 1
        count, took_s = asyncio.run(follow(place, folder, tickers, greeting))
    print(
        f"{len(whole)} captures {copies} times, {len(tickers)} markets, "
        f"{events:,} changes in {span_s:,.0f} s "
        f"({events / span_s:,.0f}/s), {size:,} bytes of {place.name}\n"
        f"--rate max to one client: {count:,} changes in {took_s:.2f} s = {count / took_s:,.0f}/s, "
        f"{span_s / took_s:,.0f} times recorded speed; "
        f"20 times would be {20 * events / span_s:,.0f}/s"
    )
    if count != events:
        sys.exit(f"{events - count} changes did not arrive")


if __name__ == "__main__":
    main()
