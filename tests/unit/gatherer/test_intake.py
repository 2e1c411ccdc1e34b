"""Intake: the spool first, then rows; the same rows from the socket and from the disk."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import numpy as np
import pytest

from gatherer import intake as module
from gatherer.intake import Decoding, LiveIntake, RecordStream, apply_ready, begin, recover, restore
from marketdata import segment
from marketdata.chain import Rows
from marketdata.continuity import Continuity
from marketdata.errors import StorageError
from marketdata.rows import DELTA_ROW, ControlKind
from runtime.spool import START, SpoolReader, SpoolWriter
from tests import wire_frames as wire

BASE = 500


def _open(folder: Path, segment_bytes: int = 64 * 1024) -> tuple[SpoolWriter, Decoding]:
    holder: list[Decoding] = []

    def state() -> bytes:
        return holder[0].state()

    spool = SpoolWriter.open(
        folder,
        state=state,
        created_ns=1,
        id_base=BASE,
        segment_bytes=segment_bytes,
    )
    holder.append(recover(spool))
    return spool, holder[0]


def _connect(live: LiveIntake) -> int:
    conn_id = live.next_conn_id()
    body = {"k": "connect", "conn": conn_id, "conn_uid": "u", "handshake": "h", "local": "l"}
    live.control({**body, "url": "w"}, 1_000)
    return conn_id


def _play(live: LiveIntake, conn_id: int, seed: int, n: int) -> None:
    """Frames of every kind in random batches, with a gap, a torn frame and an unknown type."""
    rng = random.Random(seed)
    frames = [
        wire.subscribed(1),
        wire.subscribed(2, "trade"),
        wire.snapshot(1),
        wire.snapshot(2, "N"),
    ]
    frames += [wire.delta(k, "MN"[k % 2]) for k in range(3, n)]
    frames += [wire.trade(1), wire.ticker(), b"{torn", b'{"type":"novelty","sid":1,"seq":%d}' % n]
    frames += [wire.delta(n + 5), wire.snapshot(n + 6), wire.delta(n + 7)]
    stamp = 2_000
    while frames:
        size = rng.randrange(1, 20)
        stamp += rng.randrange(0, 3)
        live.absorb(conn_id, frames[:size], stamp)
        del frames[:size]


def _from_disk(folder: Path) -> Rows:
    """Every row of a spool, read from its beginning."""
    reader = SpoolReader(folder, START)
    stream = RecordStream(reader)
    decoding = begin(stream, BASE)
    while stream.fill():
        while stream.n_ready:
            decoding.apply(stream.pop())
    reader.close()
    return decoding.continuity.rows


async def test_rows_from_the_disk_are_the_rows_of_the_moment(tmp_path: Path) -> None:
    """One code for both: a database that was away gets exactly what it would have got."""
    spool, decoding = _open(tmp_path)
    live = LiveIntake(spool, decoding)
    live.hold()
    conn_id = _connect(live)
    _play(live, conn_id, 1, 900)
    live.control({"k": "close", "conn": conn_id, "reason": "reset"}, 9_000)
    live.end()
    await spool.sync()
    batch = live.take(10_000)
    await spool.close(clean=False)
    assert batch is not None
    assert batch.rows.n_deltas() > 890
    assert spool.end.segment > 2, "the test wants several segments, each with a STATE record"
    assert _from_disk(tmp_path) == batch.rows
    assert batch.rows.controls[-1].kind == ControlKind.GATHERER_END


async def test_a_process_that_died_goes_on_with_the_same_ids(tmp_path: Path) -> None:
    """State comes back from the last segment alone; the dead connection is closed in the record."""
    spool, decoding = _open(tmp_path)
    live = LiveIntake(spool, decoding)
    conn_id = _connect(live)
    _play(live, conn_id, 2, 700)
    await spool.sync()
    await spool.close(clean=False)
    spool, again = _open(tmp_path)
    assert again.continuity.export() == decoding.continuity.export()
    live = LiveIntake(spool, again)
    live.hold()
    assert live.bury(50) == 1
    batch = live.take(60)
    assert batch is not None
    kinds = [(row.kind, row.reason) for row in batch.rows.controls]
    assert kinds == [
        (ControlKind.RUN_END, "close"),
        (ControlKind.RUN_END, "close"),
        (ControlKind.CONN_CLOSE, "died"),
    ]
    assert live.next_conn_id() == conn_id + 1
    assert batch.rows.controls[0].received_ns > 2_000, "stamps do not go back with the clock"
    await spool.close(clean=False)


async def test_too_many_rows_are_let_go_and_found_again_in_the_spool(tmp_path: Path) -> None:
    """Memory is bounded whatever the database does."""
    spool, decoding = _open(tmp_path)
    live = LiveIntake(spool, decoding, queue_rows_max=50)
    live.hold()
    conn_id = _connect(live)
    _play(live, conn_id, 3, 200)
    assert live.holds_from is None
    assert live.take(5_000) is None
    assert live.spills == 1
    assert live.held_rows == 0
    await spool.sync()
    assert _from_disk(tmp_path).n_deltas() >= 197
    await spool.close(clean=False)


async def test_stamps_never_fall_behind_what_a_reader_was_told(tmp_path: Path) -> None:
    """`max_received_ns` is a promise: everything received up to then is there."""
    spool, decoding = _open(tmp_path)
    live = LiveIntake(spool, decoding)
    live.hold()
    conn_id = _connect(live)
    live.absorb(conn_id, [wire.subscribed(1)], 5_000)
    first = live.take(8_000)
    live.absorb(conn_id, [wire.snapshot(1)], 6_000)  # the wall clock stepped back
    second = live.take(6_500)
    assert first is not None
    assert second is not None
    assert first.max_received_ns == 8_000
    assert second.min_received_ns == 8_001
    assert second.max_received_ns >= 8_001
    assert (first.end, second.end) == (second.start, spool.end)
    live.claim(20_000)
    assert live.stamp(1) == 20_001
    await spool.close(clean=False)


async def test_the_session_hears_replies_and_gaps_but_not_every_change(tmp_path: Path) -> None:
    """Changes are the hot path: nothing is called for them."""
    spool, decoding = _open(tmp_path)
    live = LiveIntake(spool, decoding)
    conn_id = _connect(live)
    frames = [wire.subscribed(1), wire.snapshot(1), wire.delta(2), wire.delta(9), wire.ticker()]
    absorbed = live.absorb(conn_id, frames, 3_000)
    assert [type(e).__name__ for e in absorbed.notable] == ["Subscribed", "Snapshot"]
    assert [(g.sid, g.missing) for g in absorbed.gaps] == [(1, 6)]
    assert live.frames == 5
    assert live.counts["gap"] == 1
    assert live.n_markets == 1
    assert live.latest_exchange_us() > 0
    assert live.last_received_ns == 3_000
    await spool.close(clean=False)


async def test_a_frame_not_understood_is_a_row_that_tells_where_it_lies(tmp_path: Path) -> None:
    """The whole frame is in the spool: the row names connection and ordinal."""
    spool, decoding = _open(tmp_path)
    live = LiveIntake(spool, decoding)
    live.hold()
    conn_id = _connect(live)
    live.absorb(conn_id, [wire.subscribed(1), b"\x00not json\xff"], 3_000)
    batch = live.take(4_000)
    assert batch is not None
    problem = next(row for row in batch.rows.controls if row.kind == ControlKind.PROBLEM)
    assert (problem.reason, problem.detail["ordinal"], problem.detail["bytes"]) == (
        "malformed",
        1,
        10,
    )
    assert "\x00" not in problem.detail["head"]
    await spool.close(clean=False)


async def test_a_huge_wake_up_is_split_into_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record has a limit; frames keep their order and ordinals over it."""
    monkeypatch.setattr(module, "RECORD_BYTES_MAX", 1_000)
    spool, decoding = _open(tmp_path)
    live = LiveIntake(spool, decoding)
    conn_id = _connect(live)
    frames = [wire.delta(k) for k in range(1, 30)]
    live.absorb(conn_id, frames, 3_000)
    await spool.sync()
    records = [r for r in spool.reader(START).read() if r.kind == segment.KIND_FRAMES]
    decoded = [segment.decode_frames(r.payload) for r in records]
    assert len(decoded) > 3
    assert [bytes(f) for d in decoded for f in d.frames] == frames
    assert [d.ordinal for d in decoded] == [
        sum(len(x.frames) for x in decoded[:n]) for n in range(len(decoded))
    ]
    await spool.close(clean=False)


async def test_a_record_with_several_stamps_keeps_each(tmp_path: Path) -> None:
    """Another writer may stamp frame by frame; the format allows it."""
    spool, _ = _open(tmp_path)
    spool.append_frames(BASE, 0, 1_000, [0, 5, 9], [wire.delta(k) for k in (1, 2, 3)])
    await spool.sync()
    rows = np.frombuffer(bytes(_from_disk(tmp_path).deltas), DELTA_ROW)
    assert rows["received_ns"].tolist() == [1_000, 1_005, 1_009]
    await spool.close(clean=False)


async def test_the_sink_is_woken_by_many_rows_or_by_none_held(tmp_path: Path) -> None:
    spool, decoding = _open(tmp_path)
    live = LiveIntake(spool, decoding, wake_rows=10)
    await live.wait_rows(60)  # nothing is held: nothing to wait for
    live.hold()
    conn_id = _connect(live)
    waiting = asyncio.create_task(live.wait_rows(60))
    await asyncio.sleep(0)
    live.absorb(conn_id, [wire.delta(k) for k in range(1, 12)], 3_000)
    await asyncio.wait_for(waiting, 5)
    live.take(4_000)
    await live.wait_rows(0.01)  # nobody came: the interval is over
    await spool.close(clean=False)


def test_apply_ready_stops_at_the_position(tmp_path: Path) -> None:
    """Records read ahead of a cursor stay for the one who stores their rows."""
    continuity = Continuity(BASE)

    async def write() -> list[object]:
        spool, _ = _open(tmp_path)
        ends = [spool.append_frames(BASE, k, 1, [0], [wire.delta(k + 1)]) for k in range(4)]
        await spool.sync()
        await spool.close(clean=False)
        return ends

    ends = asyncio.run(write())
    stream = RecordStream(SpoolReader(tmp_path, START))
    assert stream.fill()
    assert apply_ready(stream, Decoding(continuity), ends[1])  # type: ignore[arg-type]
    assert stream.n_ready == 2
    assert continuity.rows.n_deltas() == 2


def test_a_state_that_cannot_be_read_is_a_storage_error() -> None:
    for payload in (b"", b"x", module.zlib.compress(b"{}")):
        with pytest.raises(StorageError, match="STATE"):
            restore(payload)


async def test_ids_that_do_not_fit_the_spool_are_refused(tmp_path: Path) -> None:
    """The pair of the MARKET record: rows with other ids must never follow the old ones."""
    spool, decoding = _open(tmp_path)
    spool.append_markets({"M": BASE + 77})
    await spool.sync()
    await spool.close(clean=False)
    with pytest.raises(StorageError, match="another version"):
        recover(spool)
    assert decoding.continuity.n_markets == 0
