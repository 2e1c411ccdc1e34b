"""runtime.spool: nothing appended is lost, whatever the disk does and whenever we are killed."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from marketdata import segment
from marketdata.errors import StorageError
from runtime import spool as spool_module
from runtime.spool import START, Position, SpoolReader, SpoolRecord, SpoolWriter
from runtime.spool_files import SEGMENT_BYTES_MAX, look

Open = Callable[..., SpoolWriter]


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Open]:
    """Opens the spool of this test; what is left open is given up at the end."""
    writers: list[SpoolWriter] = []

    def open_it(**options: int) -> SpoolWriter:
        options = {"created_ns": 1, "id_base": 512, "segment_bytes": 4096, **options}
        count = len(writers)
        writer = SpoolWriter.open(tmp_path, state=lambda: b"state %d" % count, **options)
        writers.append(writer)
        return writer

    yield open_it
    for writer in writers:
        await writer.close(clean=False)


def records(reader: SpoolReader) -> Iterator[SpoolRecord]:
    while found := reader.read(1000):
        yield from found
    reader.close()


def payloads(directory: Path, kind: int = segment.KIND_CONTROL) -> list[bytes]:
    reader = SpoolReader(directory, START)
    found = [bytes(record.payload) for record in records(reader) if record.kind == kind]
    assert reader.damage == []
    return found


async def test_what_was_synced_is_read_back_in_order(opened: Open, tmp_path: Path) -> None:
    writer = opened()
    for number in range(300):
        end = writer.append(segment.KIND_CONTROL, b"record %d" % number)
    assert writer.durable == START
    await writer.sync()
    assert writer.durable == writer.end == end
    assert payloads(tmp_path) == [b"record %d" % number for number in range(300)]


async def test_nothing_behind_the_durable_position_is_given_to_the_live_reader(
    opened: Open,
) -> None:
    """A row may be committed only if its frame survives a power cut."""
    writer = opened()
    reader = writer.reader(START)
    writer.append(segment.KIND_CONTROL, b"a")
    assert reader.read() == []
    await writer.sync()
    writer.append(segment.KIND_CONTROL, b"b")
    assert [bytes(record.payload) for record in reader.read()] == [b"a"]
    assert reader.read() == []
    await writer.sync()
    assert [bytes(record.payload) for record in reader.read()] == [b"b"]
    assert reader.position == writer.durable
    reader.close()


async def test_group_commit_makes_appends_durable_by_itself(opened: Open) -> None:
    writer = opened(group_commit_ms=1)
    commits = asyncio.create_task(writer.run())
    for number in range(20):
        end = writer.append(segment.KIND_CONTROL, b"%d" % number)
    reached = START
    while reached < end:
        reached = await writer.wait_beyond(reached)
    assert writer.commits < 20  # they were grouped
    assert await writer.wait_beyond(START) == end
    commits.cancel()


async def test_every_segment_but_the_first_begins_with_a_state_of_all_before(
    tmp_path: Path,
) -> None:
    """A reader that starts in the middle needs the state, and exactly the one of that place."""
    taken: list[int] = []
    writer = SpoolWriter.open(
        tmp_path,
        state=lambda: json.dumps({"records": len(taken)}).encode(),
        created_ns=1,
        id_base=0,
        segment_bytes=2048,
    )
    for number in range(200):
        writer.append(segment.KIND_CONTROL, b"x" * 40)
        taken.append(number)
    await writer.close()
    numbers = sorted(look(tmp_path).segments)
    assert len(numbers) > 3
    seen = 0
    for number in numbers:
        inside = [
            record
            for record in records(SpoolReader(tmp_path, Position(number, 0)))
            if record.at.segment == number
        ]
        if number == numbers[0]:
            assert inside[0].kind == segment.KIND_CONTROL
        else:
            assert inside[0].kind == segment.KIND_STATE
            assert json.loads(bytes(inside[0].payload)) == {"records": seen}
        if number != numbers[-1]:
            assert inside[-1].kind == segment.KIND_SEAL
            assert segment.decode_seal(inside[-1].payload) == len(inside) - 1
            assert (look(tmp_path).segments[number]).stat().st_size <= 2048 + 32
        seen += sum(record.kind == segment.KIND_CONTROL for record in inside)
    assert seen == 200


async def test_frames_markets_and_control_records_are_those_of_the_format(
    opened: Open, tmp_path: Path
) -> None:
    writer = opened()
    writer.append_control({"k": "connect", "conn": 7, "received_ns": 5, "note": "é"})
    writer.append_markets({"KXA-1": 513})
    writer.append_frames(7, 3, 1000, [0, 5], [b"one", memoryview(b"three")])
    await writer.close()
    kinds = [record.kind for record in records(SpoolReader(tmp_path, START))]
    assert kinds == [
        segment.KIND_CONTROL,
        segment.KIND_MARKET,
        segment.KIND_FRAMES,
        segment.KIND_END,
    ]
    assert json.loads(payloads(tmp_path)[0])["note"] == "é"
    assert json.loads(payloads(tmp_path, segment.KIND_MARKET)[0]) == {"ids": {"KXA-1": 513}}
    frames = segment.decode_frames(payloads(tmp_path, segment.KIND_FRAMES)[0])
    assert (frames.conn, frames.ordinal, frames.received_ns) == (7, 3, [1000, 1005])
    assert [bytes(frame) for frame in frames.frames] == [b"one", b"three"]


async def test_reopening_goes_on_in_the_same_segment_with_the_same_identity(
    opened: Open, tmp_path: Path
) -> None:
    first = opened()
    first.append(segment.KIND_CONTROL, b"a")
    await first.close()
    second = opened(id_base=99, created_ns=99)
    assert second.meta == first.meta
    assert second.durable == first.end
    second.append(segment.KIND_CONTROL, b"b")
    await second.close()
    assert payloads(tmp_path) == [b"a", b"b"]
    assert sorted(look(tmp_path).segments) == [1]


async def test_a_record_larger_than_a_segment_gets_one_of_its_own(
    opened: Open, tmp_path: Path
) -> None:
    """Snapshots of large books must not be refused because segments are small."""
    writer = opened()
    for number in range(3):
        writer.append(segment.KIND_CONTROL, bytes([number]) * 10_000)
    await writer.close()
    assert [body[0] for body in payloads(tmp_path)] == [0, 1, 2]
    assert all(len(body) == 10_000 for body in payloads(tmp_path))


async def test_second_writer_of_a_directory_is_refused(opened: Open) -> None:
    opened()
    with pytest.raises(StorageError, match="in use by another process"):
        opened()


async def test_segments_without_their_identity_are_not_written_over(
    opened: Open, tmp_path: Path
) -> None:
    """Without SPOOL.json the ids of the rows would begin again and collide."""
    writer = opened()
    writer.append(segment.KIND_CONTROL, b"a")
    await writer.close()
    (tmp_path / "SPOOL.json").unlink()
    with pytest.raises(StorageError, match=r"no SPOOL\.json"):
        opened()
    assert (tmp_path / "00000001.seg").exists()


class FailingDisk:
    """os functions that refuse by plan; the real ones do the work otherwise."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, plan: Iterator[str]) -> None:
        self._plan = plan
        self._pwrite, self._fdatasync = os.pwrite, os.fdatasync
        self.shorts = 0
        monkeypatch.setattr(spool_module.os, "pwritev", self.pwritev)
        monkeypatch.setattr(spool_module.os, "fdatasync", self.fdatasync)

    def pwritev(self, handle: int, chunks: list[memoryview], offset: int) -> int:
        fate, body = next(self._plan, "ok"), b"".join(chunks)
        if fate == "full":
            raise OSError(errno.ENOSPC, "No space left on device")
        if fate == "short":  # a part of the bytes is written, as a full disk does
            self.shorts += 1
            return self._pwrite(handle, body[: max(1, len(body) // 2)], offset)
        if fate == "garbage":  # the pages were lost: what the file holds is not what we wrote
            self._pwrite(handle, bytes(len(body)), offset)
            raise OSError(errno.EIO, "Input/output error")
        return self._pwrite(handle, body, offset)

    def fdatasync(self, handle: int) -> None:
        if next(self._plan, "ok") in ("full", "garbage"):
            raise OSError(errno.EIO, "Input/output error")
        self._fdatasync(handle)


@pytest.mark.parametrize("seed", range(8))
async def test_a_disk_that_fails_at_random_loses_and_repeats_nothing(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Full disk, short writes, failed syncs whose pages are gone, over many segments."""
    monkeypatch.setattr(spool_module, "RETRY_S", 0.0)
    chance = random.Random(seed)
    fates = ["ok", "ok", "full", "short", "garbage"]
    disk = FailingDisk(monkeypatch, iter(chance.choice(fates) for _ in range(200)))
    writer = opened(segment_bytes=1500)
    want: list[bytes] = []
    for number in range(60):
        for _ in range(chance.randrange(1, 5)):
            want.append(b"%d:" % number + chance.randbytes(chance.randrange(200)))
            writer.append(segment.KIND_CONTROL, want[-1])
        if chance.random() < 0.5:
            await writer.sync()
            assert writer.problem is None
    await writer.close()
    assert writer.commit_errors > 0
    assert disk.shorts > 0
    assert payloads(tmp_path) == want


async def test_a_full_disk_is_told_and_stops_the_intake_until_there_is_room(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Full means wait: the sockets are paused, and what was read already is kept."""
    monkeypatch.setattr(spool_module, "RETRY_S", 0.001)
    monkeypatch.setattr(spool_module, "BUFFER_FULL_BYTES", 2_000)
    monkeypatch.setattr(spool_module, "BUFFER_MAX_BYTES", 5_000)
    space = {"left": False}
    real = os.pwritev

    def pwritev(handle: int, chunks: list[memoryview], offset: int) -> int:
        if not space["left"]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle, chunks, offset)

    monkeypatch.setattr(spool_module.os, "pwritev", pwritev)
    writer = opened(group_commit_ms=1)
    commits = asyncio.create_task(writer.run())
    kept = 0
    while writer.buffered_bytes < 5_000:
        writer.append(segment.KIND_CONTROL, b"x" * 100)
        kept += 1
    with pytest.raises(StorageError, match="wait for the spool's disk"):
        writer.append(segment.KIND_CONTROL, b"one too many")
    assert writer.full
    for _ in range(1000):
        await asyncio.sleep(0.001)
        if writer.problem is not None:
            break
    assert writer.problem is not None
    assert "No space left" in writer.problem
    waiting = asyncio.create_task(writer.room())
    await asyncio.sleep(0.01)
    assert not waiting.done()
    space["left"] = True
    await waiting
    await writer.sync()
    assert (writer.problem, writer.full, writer.buffered_bytes) == (None, False, 0)
    assert len(payloads(tmp_path)) == kept
    commits.cancel()


def test_a_real_file_size_limit_is_survived(tmp_path: Path) -> None:
    """The same with the kernel refusing: RLIMIT_FSIZE instead of a patched function."""
    program = """
import asyncio, resource, signal, sys
from pathlib import Path
from runtime import spool
spool.RETRY_S = 0.01
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
async def main():
    writer = spool.SpoolWriter.open(Path(sys.argv[1]), state=lambda: b"", created_ns=1, id_base=0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
    for number in range(100):
        writer.append(2, b"%03d" % number + b"x" * 97)
    task = asyncio.create_task(writer.sync())
    while writer.problem is None:
        await asyncio.sleep(0.005)
    print(writer.problem, flush=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    await task
    await writer.close()
asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "File too large" in done.stdout
    assert [int(body[:3]) for body in payloads(tmp_path)] == list(range(100))


async def test_cancelling_in_the_middle_of_a_commit_loses_nothing(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a clean stop the group commit is cancelled while its thread writes."""
    entered = asyncio.Event()
    loop = asyncio.get_running_loop()
    real = os.fdatasync

    def slow(handle: int) -> None:
        loop.call_soon_threadsafe(entered.set)
        real(handle)

    monkeypatch.setattr(spool_module.os, "fdatasync", slow)
    writer = opened(group_commit_ms=1)
    for round_number in range(10):
        entered.clear()
        commits = asyncio.create_task(writer.run())
        writer.append(segment.KIND_CONTROL, b"%d" % round_number)
        await entered.wait()
        commits.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await commits
        writer.append(segment.KIND_CONTROL, b"after %d" % round_number)
    await writer.close()
    want = [text for n in range(10) for text in (b"%d" % n, b"after %d" % n)]
    assert payloads(tmp_path) == want


WRITER = """
import asyncio, sys
from pathlib import Path
from runtime.spool import SpoolWriter
async def main():
    count = 0
    writer = SpoolWriter.open(
        Path(sys.argv[1]), state=lambda: b"%d" % count, created_ns=1, id_base=0,
        segment_bytes=20_000, group_commit_ms=1)
    commits = asyncio.create_task(writer.run())
    count = int(sys.argv[2])
    while True:
        for _ in range(10):
            writer.append(2, b"%d" % count + b" " * (count % 300))
            count += 1
        end = writer.end
        while writer.durable < end:
            await writer.wait_beyond(writer.durable)
        print(count, flush=True)
asyncio.run(main())
"""


@pytest.mark.parametrize("seed", range(3))
def test_kill_9_at_any_instant_leaves_a_prefix_with_everything_acknowledged(
    tmp_path: Path, seed: int
) -> None:
    """Several lives of one spool, each ended by kill -9; no acknowledged record is gone."""
    chance = random.Random(seed)
    have = 0
    for _ in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(have)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        acknowledged = have
        for _ in range(chance.randrange(1, 60)):
            acknowledged = int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
        rest = child.stdout.read().split()
        child.stdout.close()
        assert child.wait() == -signal.SIGKILL
        acknowledged = max([acknowledged, *map(int, rest)])
        # What the next life sees: open, so that a torn tail is cut, and read from the start.
        asyncio.run(_reopen(tmp_path))
        found = [int(body.split(b" ")[0]) for body in payloads(tmp_path)]
        assert found == list(range(len(found)))
        assert len(found) >= acknowledged
        have = len(found)


async def _reopen(directory: Path) -> None:
    writer = SpoolWriter.open(directory, state=lambda: b"", created_ns=1, id_base=0)
    await writer.close(clean=False)


async def test_limits_are_checked_where_they_are_given(opened: Open) -> None:
    with pytest.raises(AssertionError):
        opened(segment_bytes=SEGMENT_BYTES_MAX + 1)


async def test_a_directory_that_cannot_be_made_is_a_plain_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="cannot use"):
        SpoolWriter.open(tmp_path / "file", state=lambda: b"", created_ns=1, id_base=0)
