"""Our own gatherer's feeds record a faithful replay of a spool: the two spools make the same rows.

Every change of every market in order with its time, every trade, every ticker state with its key
over all fields. Over gaps, repeats, snapshots that differ, resets, and a disconnect of one of two
recorded connections. Negative control: of a spool short of any one frame the comparison says so.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from exchange.auth import Verifier
from exchange.player import Playback
from exchange.recorded_venue import RecordedVenue
from exchange.serving import Place
from gatherer.auth import Signer
from gatherer.feed import FeedConnection, FeedSettings
from gatherer.intake import Decoding, LiveIntake, RecordStream, begin, recover
from kalshilake.moments import moment_us
from marketdata.book import Book
from marketdata.chain import Rows
from marketdata.rows import DELTA_ROW, TICKER_ROW, TRADE_ROW
from marketdata.session import SessionSettings
from runtime.clock import Clock
from runtime.spool import START, SpoolReader, SpoolWriter
from runtime.spool_files import read_meta
from tape.spool_source import SpoolSource
from tests.exchange_client import Keys
from tests.frame_streams import FrameStream
from tests.recorded import captures, recorded
from tests.recorded_spool import Row, capture_rows, record_at
from tests.recording_worlds import START_US

pytestmark = pytest.mark.timeout(120)
MARKETS, FRAMES = 2, 900
SEGMENT_BYTES = 1 << 16
Tape = dict[str, list[tuple[object, ...]]]


def rows_of(folder: Path) -> tuple[Rows, dict[int, str]]:
    """What a gatherer makes of a spool, and its markets' names by id."""
    meta = read_meta(folder)
    assert meta is not None
    reader = SpoolReader(folder, START)
    stream = RecordStream(reader)
    decoding = begin(stream, meta.id_base)
    while stream.fill():
        while stream.n_ready:
            decoding.apply(stream.pop())
    reader.close()
    return decoding.continuity.take(), {
        given: ticker for ticker, given in decoding.continuity.market_ids.items()
    }


def tape_of(folder: Path) -> Tape:
    """By market: its changes, trades and ticker states in order."""
    rows, names = rows_of(folder)
    tape: Tape = {}
    for kind, body, layout, columns in (
        ("change", rows.deltas, DELTA_ROW, ("exchange_us", "side", "price", "delta")),
        ("trade", rows.trades, TRADE_ROW, ("exchange_us", "trade_id", "yes_price", "count")),
        ("ticker", rows.tickers, TICKER_ROW, ("exchange_us", "payload_key")),
    ):
        for row in np.frombuffer(bytes(body), layout):
            key = f"{kind} {names[int(row['market_id'])]}"
            tape.setdefault(key, []).append(tuple(row[c].item() for c in columns))
    return tape


def differences(one: Tape, two: Tape) -> list[str]:
    """The kinds and markets whose rows two tapes do not have in common."""
    return sorted(key for key in one.keys() | two.keys() if one.get(key) != two.get(key))


def oddities(stream: FrameStream, rng: random.Random) -> list[bytes]:
    """What a real line brings now and then."""
    draw = rng.randrange(7)
    name = stream.market()
    if draw == 0:  # a gap, and what the gatherer then asked for
        lost = [stream.delta() for _ in range(3)]
        assert lost
        return [stream.delta(), *(stream.snapshot(each) for each in stream.names)]
    if draw == 1:
        return [stream.delta()] * 2
    if draw == 2:
        return [stream.snapshot(name), stream.snapshot(name, shift=100), stream.snapshot(name)]
    if draw == 3:
        return [stream.trade(skip=2)]
    if draw == 4:
        return [stream.ticker(novelty={"x": [1]}), stream.delta(queue=7)]
    if draw == 5:
        return [stream.delta(price_dollars="0.123456"), stream.delta(ts=None)]
    return [stream.delta(ts="2026-08-07T06:46:28.1Z"), stream.delta(side="maybe")]


def made_up(seed: int) -> list[Row]:
    """Two connections at a time; the first ends and comes back while the second goes on."""
    rng, rows, clock = random.Random(seed), [], [START_US * 1_000]

    def say(conn: int, *entries: object) -> None:
        for entry in entries:
            clock[0] += rng.randrange(1_000, 3_000_000)
            rows.append((clock[0], conn, entry))

    streams = {}
    for conn in (1, 2):
        streams[conn] = FrameStream(seed * 10 + conn, markets=MARKETS)
        streams[conn].names = [f"KXTEST-{conn}{n}" for n in range(MARKETS)]
        streams[conn].books = {name: Book() for name in streams[conn].names}
        say(conn, {"k": "connect"}, *streams[conn].opening())
    for n in range(FRAMES):
        if n == FRAMES // 2:
            say(1, {"k": "close", "reason": "reset"})
            away = streams.pop(1)
            away.frames(40)  # what nobody received
        if n == FRAMES // 2 + 40:
            away.seq = away.trade_seq = 0
            streams[3] = away
            say(3, {"k": "connect"}, *away.opening())
        conn = rng.choice(list(streams))
        odd = rng.randrange(60) == 0
        say(conn, *(oddities(streams[conn], rng) if odd else streams[conn].frames(1)))
    for conn in streams:
        say(conn, {"k": "close", "reason": "closed_by_us", "code": 1000})
    return rows  # type: ignore[return-value]


async def record_again(source: Path, target: Path, folder: Path) -> dict[str, object]:
    """A replay of one spool at full speed, recorded by feeds of ours into another; its status."""
    keys = Keys.make(folder)
    verifier = Verifier(keys.private.public_key())
    verifier.any_key = True
    play = SpoolSource(source, None, None, None)
    playback = Playback(play, verifier, moment_us, rate=None, paused=True, kind=RecordedVenue)
    stop, ready = asyncio.Event(), asyncio.Event()
    serving = asyncio.create_task(playback.run(Place("127.0.0.1", 0), stop, ready.set))
    await ready.wait()
    holder: list[Decoding] = []
    spool = SpoolWriter.open(
        target,
        state=lambda: holder[0].state(),  # noqa: PLW0108 - it is made below
        created_ns=1,
        id_base=10,  # a feed takes connection 0 for none
        group_commit_ms=1,
    )
    holder.append(recover(spool))
    live, clock = LiveIntake(spool, holder[0]), Clock(0)
    url = f"ws://127.0.0.1:{playback.port}/trade-api/ws/v2"
    made = {
        name: FeedConnection(
            name, FeedSettings(url, reconnect_base_ms=20, reconnect_cap_ms=100),
            SessionSettings(channels=channels), Signer("id", keys.private), spool, live, clock,
        )
        for name, channels in (("books-0", ()), ("trade", ("trade",)), ("ticker", ("ticker",)))
    }  # fmt: skip
    made["books-0"].want([spec.ticker for spec in play.markets])
    tasks = [asyncio.create_task(feed.run()) for feed in made.values()]
    writing = asyncio.create_task(spool.run())
    try:
        while playback.status()["subscribers"] < 1 or playback.status()["conns"] < len(made):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.3)
        await playback.control("resume", None)
        while not playback.status()["done"]:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.2)
        status = playback.status()
    finally:
        for feed in made.values():
            await feed.stop()
        await asyncio.wait_for(asyncio.gather(*tasks), 20)
        stop.set()
        await serving
        writing.cancel()
        live.end()
        await spool.sync()
        await spool.close(clean=False)
    return status


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_a_recorded_replay_of_a_spool_makes_the_same_rows(tmp_path: Path, seed: int) -> None:
    rows = made_up(seed)
    await record_at(tmp_path / "one", rows, segment_bytes=SEGMENT_BYTES)
    status = await record_again(tmp_path / "one", tmp_path / "two", tmp_path)
    one, two = tape_of(tmp_path / "one"), tape_of(tmp_path / "two")
    counts = Counter(key.split()[0] for key, held in one.items() for _ in held)
    assert counts["change"] > FRAMES // 2
    assert min(counts["trade"], counts["ticker"]) > FRAMES // 20
    assert differences(one, two) == []
    assert status["closes"] == 9, "three clients at each of three closes"
    assert int(str(status["gaps"])) > 0


async def test_a_recorded_capture_as_a_spool_makes_the_same_rows(tmp_path: Path) -> None:
    """The smallest with several connections, and the smallest of all."""
    recorded("ws_btc15m")
    for path in captures(2):
        await record_at(tmp_path / f"one {path.name}", capture_rows(path), segment_bytes=1 << 20)
        again = tmp_path / f"two {path.name}"
        await record_again(tmp_path / f"one {path.name}", again, tmp_path)
        one, two = tape_of(tmp_path / f"one {path.name}"), tape_of(again)
        assert sum(map(len, one.values())) > 200
        assert differences(one, two) == []


@pytest.mark.parametrize("kind", [b'"orderbook_delta"', b'"trade"', b'"ticker"'])
async def test_a_replay_short_of_one_frame_is_found_out(tmp_path: Path, kind: bytes) -> None:
    """Negative control of the first."""
    rows = made_up(1)
    await record_at(tmp_path / "whole", rows, segment_bytes=SEGMENT_BYTES)
    frames = [n for n, row in enumerate(rows) if isinstance(row[2], bytes) and kind in row[2][:30]]
    left_out = frames[len(frames) // 3]
    short = rows[:left_out] + rows[left_out + 1 :]
    await record_at(tmp_path / "short", short, segment_bytes=SEGMENT_BYTES)
    await record_again(tmp_path / "short", tmp_path / "again", tmp_path)
    found = differences(tape_of(tmp_path / "whole"), tape_of(tmp_path / "again"))
    what = {b'"orderbook_delta"': "change", b'"trade"': "trade", b'"ticker"': "ticker"}[kind]
    assert [key.split()[0] for key in found] == [what], found
