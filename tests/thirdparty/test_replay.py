"""pykalshi follows a replay of a lake, unmodified and with its own key, addresses and books.

The acceptance line L6 of the lake. The client is the one of test_feed; what it prints is compared
with the lake's tables, and the same answer with one thing wrong has to be found.
"""

from __future__ import annotations

import asyncio
import copy
import json
import os
import ssl
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kalshilake.read import Lake, open_lake
from tests.exchange_client import Keys, private_pem
from tests.replay_world import BEGINS, SECOND_US, contents, replay_world, write_replay_lake
from tests.thirdparty.compare import centi, micros
from tests.thirdparty.rig import CLIENTS, KEY_ID, Client
from tests.thirdparty.stage import Authority, make_authority, proxy

MARKETS, EVENTS, SECONDS = 8, 300, 120


def faults_of(answer: dict[str, Any], lake: Lake) -> list[str]:
    """What the client has that the lake has not, or the reverse."""
    held = contents(lake)
    by_market: dict[str, list[tuple[str, int, int]]] = {}
    for name, side, price, delta, *_ in answer["deltas"]:
        by_market.setdefault(name, []).append((side, micros(price), centi(delta)))
    true: dict[str, list[tuple[str, int, int]]] = {}
    for name, _, _, side, price, delta in held["orderbook_deltas"]:
        true.setdefault(str(name), []).append((str(side), micros(str(price)), centi(str(delta))))
    found = [f"{name}: other changes" for name in true if by_market.get(name) != true[name]]
    ids = Counter(str(trade["trade_id"]).replace("-", "") for trade in answer["trades"])
    if ids != Counter(str(row[2]) for row in held["trades"]):
        found.append("other trades")
    states = Counter((s["market_ticker"], s["ts_ms"] * 1000) for s in answer["states"])
    if states != Counter((str(row[0]), row[1]) for row in held["tickers"]):
        found.append("other ticker states")
    end_us = BEGINS + SECONDS * SECOND_US - 1
    for name in true:
        view = lake.book(name, end_us)
        for side, levels in (("yes", view.yes_bids), ("no", view.no_bids)):
            seen = {micros(p): centi(q) for p, q in answer["books"][name][side].items()}
            if {p: q for p, q in seen.items() if q} != dict(levels):
                found.append(f"{name}: another book")
    return found


def wrong_ones(answer: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Answers with one thing wrong each."""
    made = {what: copy.deepcopy(answer) for what in ("change", "trade", "state", "level")}
    del made["change"]["deltas"][9]
    del made["trade"]["trades"][3]
    del made["state"]["states"][5]
    next(book for book in made["level"]["books"].values() if book["yes"])["yes"].popitem()
    return made


async def status(url: str, authority: Authority, method: str = "GET") -> dict[str, Any]:
    context = ssl.create_default_context(cafile=str(authority.root))
    request = urllib.request.Request(url, method=method)

    def ask() -> bytes:
        with urllib.request.urlopen(request, context=context) as answer:
            return bytes(answer.read())

    told: dict[str, Any] = json.loads(await asyncio.to_thread(ask))
    return told


async def start_client(folder: Path, python: str, authority: Authority, port: int) -> Client:
    """pykalshi with its default addresses, which the proxy leads here."""
    private_pem(Keys.make(folder), folder / "private.pem")
    process = await asyncio.create_subprocess_exec(
        python, str(CLIENTS / "feed_pykalshi.py"), cwd=folder, limit=1 << 26,
        env={
            "HOME": str(folder), "HTTPS_PROXY": f"http://127.0.0.1:{port}",
            "SSL_CERT_FILE": str(authority.root), "KALSHI_API_KEY_ID": KEY_ID,
            "KALSHI_PRIVATE_KEY_PATH": str(folder / "private.pem"),
        },
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    return Client(process)


async def test_pykalshi_follows_a_replay(tmp_path: Path, say: Callable[[str], None]) -> None:
    python = os.environ["KT_THIRDPARTY_PYTHON"]
    write_replay_lake(tmp_path / "lake", replay_world(11, MARKETS, EVENTS, SECONDS))
    authority = make_authority(tmp_path)
    played = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tape.main", "replay", str(tmp_path / "lake"), "--rate", "max",
        "--port", "0", "--paused", "--out", str(tmp_path / "key"), "--tls-cert",
        str(authority.certificate), "--tls-key", str(authority.key), stdout=subprocess.PIPE,
    )  # fmt: skip
    assert played.stdout is not None
    try:
        line = ""
        while "replay/status" not in line:
            line = (await played.stdout.readline()).decode().strip()
        url = line.split()[-1]
        port = int(url.split(":")[2].split("/")[0])
        async with proxy(port) as between:
            client = await start_client(tmp_path, python, authority, between.port)
            while not (await status(url, authority))["subscribers"]:
                assert client.process.returncode is None
                await asyncio.sleep(0.2)
            await status(url.replace("status", "resume"), authority, "POST")
            while not (told := await status(url, authority))["done"]:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
            answer, log = await client.answer(f"{told['frames_sent']}\n")
    finally:
        played.terminate()
        await played.communicate()
    lake = open_lake(tmp_path / "lake")
    assert answer["reconnects"] == 0
    assert "Failed to validate" not in log, log
    assert faults_of(answer, lake) == []
    for what, wrong in wrong_ones(answer).items():
        assert faults_of(wrong, lake) != [], what
    say(f"pykalshi on a replay: {len(answer['deltas'])} changes, {len(answer['books'])} books")
