"""How fast a replay is: events a second with --rate max, and as a multiple of recorded time.

Purpose: recorded captures, played side by side, as a lake (Parquet, zstd); `tape replay --rate max`
from it to one client that reads and counts. Printed, not judged; docs/replay.md has a figure.

    python -m tests.bench.replay [copies]     # each capture so many times side by side
"""

from __future__ import annotations

import asyncio
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import numpy as np
import websockets

from exchange.capture import scan_capture
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


async def follow(folder: Path, tickers: list[str]) -> tuple[int, float]:
    """(changes that arrived, seconds from the start of the play to the last of them)."""
    child = await asyncio.create_subprocess_exec(
        *TAPE, "replay", str(folder / "lake"), "--port", "0", "--paused", "--once", "--rate",
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
        for _ in range(len(tickers) + 1):
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
    copies = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    scanned = [scan_capture(path) for path in captures()]
    whole = [capture for capture in scanned if len(capture.stretches) == 1]
    source = ReplaySource(whole * copies)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        events = write_lake(folder / "lake", source)
        size = sum(p.stat().st_size for p in folder.rglob("*.parquet"))
        span_s = (source.end_us - source.start_us) / 1_000_000
        tickers = [spec.ticker for spec in source.markets]
        count, took_s = asyncio.run(follow(folder, tickers))
    print(
        f"{len(whole)} captures {copies} times, {len(tickers)} markets, "
        f"{events:,} changes in {span_s:,.0f} s "
        f"({events / span_s:,.0f}/s), {size:,} bytes of Parquet\n"
        f"--rate max to one client: {count:,} changes in {took_s:.2f} s = {count / took_s:,.0f}/s, "
        f"{span_s / took_s:,.0f} times recorded speed; "
        f"20 times would be {20 * events / span_s:,.0f}/s"
    )
    if count != events:
        sys.exit(f"{events - count} changes did not arrive")


if __name__ == "__main__":
    main()
