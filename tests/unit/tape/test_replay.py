"""`tape replay`: a client that subscribes ends with the lake's own books, trades and tickers."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import websockets

from kalshilake.read import Lake, open_lake
from kalshilake.tables import times_us
from marketdata.errors import ConfigError, LakeError
from marketdata.units import parse_ts_us
from tape.lake_source import LakeSource
from tape.main import main
from tape.replay import Asked, form_of, interval, play, rate_of, refuse_for_spools
from tests import wire_frames as wire
from tests.exchange_client import WS_PATH, Keys
from tests.finished_demo import write_demo
from tests.lake_world import START
from tests.recorded_spool import pack, record
from tests.recording_worlds import CONNECT, Script, opening
from tests.replay_world import BEGINS, SECOND_US, replay_world, write_replay_lake

TAPE = (sys.executable, "-m", "tape.main")
MARKETS, EVENTS, SECONDS = 3, 150, 60
TICKERS = [f"KXPLAY-25-T{n:03}" for n in range(MARKETS)]
Frames = list[dict[str, Any]]


def short_of(lake: Lake, frames: Frames) -> list[str]:
    """What of the lake the client does not have, or has otherwise."""
    faults: list[str] = []
    books: dict[str, dict[tuple[str, str], Decimal]] = {}
    times: dict[str, int] = {}
    checks = {BEGINS + n * SECONDS * SECOND_US // 7 for n in range(1, 8)}

    def check(name: str, until_us: int) -> None:
        """The book that was in force up to the next change, at the moments between."""
        for at in sorted(at for at in checks if times[name] <= at < until_us):
            view = lake.book(name, min(at, BEGINS + SECONDS * SECOND_US - 1))
            true = {("yes", p): q for p, q in view.yes_bids} | {
                ("no", p): q for p, q in view.no_bids
            }
            seen = {(s, int(Decimal(p) * 1_000_000)): int(q * 100)
                    for (s, p), q in books[name].items() if q}  # fmt: skip
            if seen != true:
                faults.append(f"{name}: the book at {at} is another")
            checked.append(at)

    checked: list[int] = []
    for frame in frames:
        msg = frame.get("msg", {})
        if frame["type"] == "orderbook_snapshot":
            name = msg["market_ticker"]
            books[name] = {(side, p): Decimal(q) for side in ("yes", "no")
                           for p, q in msg.get(f"{side}_dollars_fp", [])}  # fmt: skip
            times[name] = BEGINS
        elif frame["type"] == "orderbook_delta":
            name, us = msg["market_ticker"], parse_ts_us(msg["ts"])
            check(name, us)
            times[name] = us
            key = (msg["side"], msg["price_dollars"])
            books[name][key] = books[name].get(key, Decimal(0)) + Decimal(msg["delta_fp"])
    for name in books:
        check(name, 1 << 62)
    if len(checked) != MARKETS * len(checks):
        faults.append(f"only {len(checked)} books were compared")
    faults += _missing(lake, frames)
    return faults


def _missing(lake: Lake, frames: Frames) -> list[str]:
    ids = [f["msg"]["trade_id"].replace("-", "") for f in frames if f["type"] == "trade"]
    faults = []
    if sorted(ids) != sorted(lake.trades(on_gap="ignore")["trade_id"].to_pylist()):
        faults.append("other trades")
    states = sorted(
        (f["msg"]["market_ticker"], f["msg"]["ts_ms"] * 1000, f["msg"]["volume_fp"])
        for f in frames
        if f["type"] == "ticker"
    )
    rows = lake.tickers(on_gap="ignore")
    volumes = [f"{v:.2f}" for v in rows["volume"].to_pylist()]
    names = rows["market_ticker"].to_pylist()
    if states != sorted(zip(names, times_us(rows["exchange_ts"]).tolist(), volumes, strict=True)):
        faults.append("other ticker states")
    return faults


async def follow(keys: Keys, ws_url: str, tickers: list[str], once: Any) -> Frames:
    """Everything that a client gets until the replay closes the connection."""
    headers = keys.headers("GET", WS_PATH)
    frames: Frames = []
    async with websockets.connect(ws_url, additional_headers=headers, compression=None) as client:
        params = {"channels": ["orderbook_delta"], "market_tickers": tickers}
        await client.send(json.dumps({"id": 1, "cmd": "subscribe", "params": params}))
        params = {"channels": ["ticker", "trade"]}
        await client.send(json.dumps({"id": 2, "cmd": "subscribe", "params": params}))
        while sum(frame["type"] == "subscribed" for frame in frames) < 3:
            frames.append(json.loads(await client.recv()))
        await once()
        try:
            async for text in client:
                frames.append(json.loads(text))
        except websockets.exceptions.ConnectionClosed:
            pass
    return frames


async def run_command(
    lake: Path, folder: Path, *flags: str, tickers: Sequence[str] = TICKERS, code: int = 0
) -> tuple[Frames, str]:
    """The command as it is typed; its own words say where to connect and how to resume."""
    child = await asyncio.create_subprocess_exec(
        *TAPE, "replay", str(lake), "--port", "0", "--paused", "--once", "--rate", "max",
        "--out", str(folder / "key"), *flags, stdout=subprocess.PIPE, env=os.environ,
    )  # fmt: skip
    assert child.stdout is not None
    said: list[str] = []
    while not any("replay/status" in line for line in said):
        said.append((await child.stdout.readline()).decode().strip())
        assert child.returncode is None
    ws_url = next(line for line in said if line.startswith("ws://"))
    resume = shlex.split(next(line for line in said if line.endswith("replay/resume")))[-1]

    async def once() -> None:
        async with aiohttp.ClientSession() as session, session.post(resume) as answer:
            assert answer.status == 200

    frames = await follow(Keys.make(folder), ws_url, list(tickers), once)
    rest = (await child.stdout.read()).decode()
    assert await child.wait() == code
    return frames, "\n".join(said) + rest


async def test_a_client_of_the_command_has_the_lakes_books_trades_and_tickers(
    tmp_path: Path,
) -> None:
    """At seven instants, among them the end; and with any one frame left out it would be seen."""
    lake_at = tmp_path / "lake"
    write_replay_lake(lake_at, replay_world(5, MARKETS, EVENTS, SECONDS))
    frames, said = await run_command(lake_at, tmp_path)
    lake = open_lake(lake_at)
    assert short_of(lake, frames) == []
    assert f"over: {MARKETS * EVENTS:,} changes" in said
    for kind in ("orderbook_delta", "trade", "ticker"):
        left = next(place for place, frame in enumerate(frames) if frame["type"] == kind)
        assert short_of(lake, frames[:left] + frames[left + 1 :]) != [], kind


def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    write_demo(tmp_path)
    source = LakeSource(open_lake(tmp_path / "lake"), START, START + 9, None, closes=False)
    with socket.create_server(("127.0.0.1", 0)) as held:
        asked = Asked(tmp_path / "key", held.getsockname()[1], None, paused=False, once=True)
        with pytest.raises(ConfigError, match="cannot be used"):
            play(source, asked, lambda text: None)


def test_the_interval_is_that_of_the_proven_books_where_it_is_not_given(tmp_path: Path) -> None:
    write_demo(tmp_path)
    lake = open_lake(tmp_path / "lake")
    assert interval(lake, None, None, None) == (START + SECOND_US, START + 40 * SECOND_US)
    assert interval(lake, ["KX-B"], str(_iso(5)), None) == (
        START + 5 * SECOND_US,
        START + 40 * SECOND_US,
    )
    with pytest.raises(LakeError, match="is no moment"):
        interval(lake, None, "yesterday", None)


def _iso(second: int) -> str:
    return f"2025-04-30T08:00:{second:02}Z"


@pytest.mark.parametrize("text", ["0", "-1", "fast", "inf", "nan"])
def test_a_rate_that_is_none_is_refused(text: str) -> None:
    assert rate_of("max") is None
    assert rate_of("2.5") == 2.5
    with pytest.raises(ConfigError, match="neither a positive number nor max"):
        rate_of(text)


@pytest.mark.parametrize(
    ("flags", "told"), [(("--gaps", "leap"), "--gaps leap"), (("--ticker", "KX-Z"), "KX-Z")]
)
def test_wrong_flags_are_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, str], told: str
) -> None:
    write_demo(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["replay", str(tmp_path / "lake"), *flags])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert told in said
    assert said.count("\n") == 1


def spool_script() -> Script:
    """One connection with two books, a lost number, a frame that is none; trades beside it."""
    made: Script = [*opening(1, "AB"), (2, CONNECT), (2, wire.subscribed(2, "trade"))]
    for n in range(3, 400):
        made.append((1, wire.delta(n + (n > 200), "AB"[n % 2])))
        if n % 10 == 0:
            made.append((2, wire.trade(n // 10, 2, "A")))
    return [*made, (1, b"{torn"), (2, wire.trade(40, 2, "B"))]


async def test_a_client_of_the_command_has_what_the_gatherer_received(tmp_path: Path) -> None:
    """From compressed segments and an open one; every body as it was, the gap where it was."""
    made = spool_script()
    await record(tmp_path / "spool", made, segment_bytes=16_384)
    pack(tmp_path / "spool")
    frames, said = await run_command(tmp_path / "spool", tmp_path, tickers=["A", "B"])
    for kind in ("orderbook_delta", "orderbook_snapshot", "trade"):
        sent = [json.loads(f) for _, f in made if isinstance(f, bytes) and f != b"{torn"]
        assert [f["msg"] for f in frames if f["type"] == kind] == [
            f["msg"] for f in sent if f["type"] == kind
        ]
    books = [f["seq"] for f in frames if f["type"].startswith("orderbook")]
    assert books == [*range(1, 201), *range(202, 401)]
    assert [f["seq"] for f in frames if f["type"] == "trade"] == list(range(1, 41))
    assert "2 markets, faithful, from" in said
    assert "over: 397 changes, 40 trades" in said
    assert "1 gap" in said
    assert "no client can be given: no JSON object 1" in said


async def test_a_spool_that_is_not_whole_is_said_and_is_exit_code_1(tmp_path: Path) -> None:
    await record(tmp_path / "spool", spool_script(), segment_bytes=1 << 20, clean=False)
    (only,) = (tmp_path / "spool").glob("*.seg")
    only.write_bytes(only.read_bytes()[:-5])
    frames, said = await run_command(tmp_path / "spool", tmp_path, tickers=["A"], code=1)
    assert len([f for f in frames if f["type"] == "trade"]) == 39
    assert "not whole: 00000001.seg" in said
    assert "not played: 00000001.seg" in said


def test_the_place_tells_how_it_is_played(tmp_path: Path) -> None:
    lake, spool = tmp_path / "lake", tmp_path / "g1" / "spool"
    (lake / "manifest").mkdir(parents=True)
    spool.mkdir(parents=True)
    (spool / "SPOOL.json").write_text("{}")
    assert form_of(str(lake), None) == form_of(str(lake), "repaired") == "repaired"
    assert form_of(str(spool), None) == form_of(str(spool), "faithful") == "faithful"
    assert form_of("s3://bucket/prefix", None) == "repaired"
    for place, asked, told in (
        (lake, "faithful", "is a lake"),
        (spool, "repaired", "is a gatherer's spool"),
        (tmp_path / "g1", None, f"name one of {spool}"),
        (tmp_path / "none", "faithful", "is no spool"),
        (lake, "true", "--as true is none of"),
        ("s3://bucket/prefix", "faithful", "is a lake"),
    ):
        with pytest.raises(ConfigError, match=re.escape(told)):
            form_of(str(place), asked)


def test_flags_of_a_lake_are_refused_for_a_spool() -> None:
    refuse_for_spools(None, None)
    with pytest.raises(ConfigError, match="as the gatherer had them"):
        refuse_for_spools("close", None)
    with pytest.raises(ConfigError, match="no versions"):
        refuse_for_spools(None, 3)


async def test_wrong_flags_for_a_spool_are_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await record(tmp_path / "spool", spool_script())
    for flags, told in (
        (("--gaps", "close"), "--gaps close is for a lake"),
        (("--version", "1"), "--version 1 is for a lake"),
        (("--as", "repaired"), "plays a lake"),
        (("--ticker", "KX-Z"), "no market KX-Z"),
        (("--from", "2020-01-01", "--to", "2020-01-02"), "frames were received from"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["replay", str(tmp_path / "spool"), *flags])
        assert ended.value.code == 2
        said = capsys.readouterr().err
        assert told in said
        assert said.count("\n") == 1
