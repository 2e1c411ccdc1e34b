"""A recorded capture through real sockets: what two clients receive is what was recorded."""

from __future__ import annotations

import asyncio
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from exchange.truth import KIND_DELTA, read_truth
from tests.exchange_client import Recorder, Running, exchange
from tests.recorded import recorded

SMALL = ("ws_btc15m", "kxbtc15m_20260511T053113Z.jsonl.gz")
WITH_HOLE = ("ws_btc15m", "kxbtc15m_20260513T171256Z.jsonl.gz")
MANY_MARKETS = ("ws_multi", "sports_12markets_20260807.json")


def recorded_frames(path: Path) -> list[dict[str, Any]]:
    """The capture's own frames, read without the exchange's code."""
    if path.suffix == ".json":
        return [row["frame"] for row in json.loads(path.read_bytes())["frames"]]
    with gzip.open(path) as file:
        return [json.loads(line)["frame"] for line in file]


async def play(running: Running, clients: int) -> list[Recorder]:
    tickers = json.loads((running.truth / "markets.json").read_bytes())
    url = running.ready["ws_url"]
    recorders = [Recorder(running.keys, url, tickers) for _ in range(clients)]
    tasks = [asyncio.create_task(recorder.run()) for recorder in recorders]
    try:
        await running.done()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return recorders


def by_market(frames: list[dict[str, Any]], kind: str) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for frame in frames:
        if frame["type"] == kind:
            found.setdefault(frame["msg"]["market_ticker"], []).append(frame["msg"])
    return found


@pytest.mark.parametrize("capture", [SMALL, MANY_MARKETS], ids=["one_market", "twelve_markets"])
async def test_two_clients_receive_every_recorded_frame(
    tmp_path: Path, capture: tuple[str, str]
) -> None:
    """At full speed, without faults: every value of every frame, in the order of its market."""
    path = recorded(*capture)
    truth_frames = recorded_frames(path)
    flags = ("--frames", str(path), "--rate", "max", "--expect-clients", "2")
    async with exchange(tmp_path, *flags) as running:
        recorders = await play(running, 2)
        assert running.stop() == 0
    for recorder in recorders:
        assert len(recorder.sessions) == 1
        frames = recorder.sessions[0].frames
        for kind in ("orderbook_delta", "ticker"):
            assert by_market(frames, kind) == by_market(truth_frames, kind)
        first = {t: m[0] for t, m in by_market(truth_frames, "orderbook_snapshot").items()}
        assert {t: m[0] for t, m in by_market(frames, "orderbook_snapshot").items()} == first
        book_seqs = [f["seq"] for f in frames if f["type"].startswith("orderbook")]
        assert book_seqs == list(range(1, len(book_seqs) + 1))
    assert len(read_truth(tmp_path / "truth").events) == len(
        [f for f in truth_frames if f["type"] == "orderbook_delta"]
    )


async def test_a_hole_of_the_recorder_disconnects_everybody_and_is_in_the_truth(
    tmp_path: Path,
) -> None:
    """Between two recorded connections nobody can have received anything."""
    path = recorded(*WITH_HOLE)
    flags = ("--frames", str(path), "--rate", "max", "--expect-clients", "2")
    async with exchange(tmp_path, *flags) as running:
        recorders = await play(running, 2)
        assert running.stop() == 0
    truth = read_truth(tmp_path / "truth")
    (hole,) = truth.events[truth.events["market"] == -1]
    deltas = truth.events[truth.events["kind"] == KIND_DELTA]
    inside = (deltas["exchange_us"] > hole["exchange_us"]) & (deltas["exchange_us"] < hole["delta"])
    assert not inside.any()
    recorded_deltas = [f["msg"] for f in recorded_frames(path) if f["type"] == "orderbook_delta"]
    for recorder in recorders:
        assert len(recorder.sessions) == 2
        assert recorder.refused > 0
        got = [
            f["msg"] for s in recorder.sessions for f in s.frames if f["type"] == "orderbook_delta"
        ]
        assert got == recorded_deltas
    assert {row["handshake"] for row in truth.conns} == {
        session.handshake for recorder in recorders for session in recorder.sessions
    }


async def test_captures_side_by_side_are_markets_of_one_subscription(tmp_path: Path) -> None:
    """A directory: every capture's deltas arrive on one sid, counted by one seq."""
    folder = tmp_path / "captures"
    folder.mkdir()
    names = [SMALL, ("ws_btc15m", "kxbtc15m_20260511T053341Z.jsonl.gz")]
    for name in names:
        (folder / name[-1]).symlink_to(recorded(*name))
    flags = ("--frames", str(folder), "--rate", "max", "--expect-clients", "1")
    async with exchange(tmp_path, *flags) as running:
        (recorder,) = await play(running, 1)
    frames = recorder.sessions[0].frames
    got = by_market(frames, "orderbook_delta")
    wanted = [
        len([f for f in recorded_frames(recorded(*name)) if f["type"] == "orderbook_delta"])
        for name in names
    ]
    assert [len(got[ticker]) for ticker in recorder.tickers] == wanted
    book_seqs = [f["seq"] for f in frames if f["type"].startswith("orderbook")]
    assert book_seqs == list(range(1, len(book_seqs) + 1))
    assert len({f["sid"] for f in frames if f["type"] == "orderbook_delta"}) == 1


@pytest.mark.parametrize("level", ["standard", "harsh"])
async def test_under_faults_what_arrived_agrees_with_the_truth(tmp_path: Path, level: str) -> None:
    """Every received frame is in the log of sends, on its connection, with its event's values."""
    path = recorded(*SMALL)
    flags = ("--frames", str(path), "--rate", "max", "--expect-clients", "3")
    async with exchange(tmp_path, *flags, "--faults", level, "--seed", "5") as running:
        recorders = await play(running, 3)
        status = await running.status()
        assert running.stop() == 0
    truth = read_truth(tmp_path / "truth")
    sent = {
        (int(s["conn"]), int(s["sid"]), int(s["seq"])): s
        for s in truth.sends
        if s["fault"] == 0 and s["seq"] >= 0
    }
    checked = 0
    for recorder in recorders:
        for session in recorder.sessions:
            conn = truth.conn_of(session.handshake)
            assert conn is not None
            for frame in session.frames:
                if "seq" not in frame:
                    continue
                record = sent[conn, frame["sid"], frame["seq"]]
                if frame["type"] == "orderbook_delta":
                    event = truth.events[record["event"]]
                    assert event["delta"] == round(float(frame["msg"]["delta_fp"]) * 100)
                    checked += 1
    assert checked > 2_000
    assert {"drop", "gap", "duplicate", "overflow", "shuffled"} <= set(status["faults"])
    assert sum(status["faults"].get(cut, 0) for cut in ("reset", "close", "stall_reset")) >= 6
