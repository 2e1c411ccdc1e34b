"""A spool as a source: every record in order from any moment, and what cannot be read is told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from exchange.recording import ControlItem, DamageItem, FrameItem, StateItem
from exchange.timeline import Item
from marketdata.continuity import Continuity
from marketdata.errors import StorageError
from marketdata.hot import absorb_frames
from marketdata.wire import Decoder
from runtime.spool_files import index_name, look
from tape.spool_source import SpoolSource, overview
from tests import wire_frames as wire
from tests.recorded_spool import pack, record
from tests.recording_worlds import CONNECT, START_US, Script, closed, opening

LENGTH = 160


def script() -> Script:
    """Two connections with books, one with trades and tickers, a gap, a disconnect, a return."""
    made: Script = [
        *opening(1, "AB"),
        *opening(2, "C"),
        (3, CONNECT),
        (3, wire.subscribed(2, "trade")),
    ]
    made += [(3, wire.subscribed(3, "ticker"))]
    seqs = {1: 2, 2: 1, 3: 0}
    for n in range(LENGTH):
        conn = (1, 2, 1, 3)[n % 4]
        seqs[conn] += 1 + (n == 40)  # a number is lost
        if conn == 3:
            frame = wire.trade(seqs[3], 2, "A") if n % 8 < 4 else wire.ticker(3, "C")
            seqs[3] -= n % 8 >= 4
        else:
            frame = wire.delta(seqs[conn], "AB"[n % 3 % 2] if conn == 1 else "C")
        made.append((conn, frame))
        if n == 50:
            made.append((1, wire.snapshot(seqs[1] + 1, "A")))
            seqs[1] += 1
        if n == 90:
            made += [(2, closed("closed_by_peer", 1001, "bye")), (4, CONNECT),
                     (4, wire.subscribed(1)), (4, wire.snapshot(1, "C"))]  # fmt: skip
            seqs[2] = 1
        if n > 90 and conn == 2:
            made[-1] = (4, frame)
    return made


def entries(items: Iterator[Item]) -> list[tuple[int, int, object]]:
    """(moment, connection, frame or control body) of what a source gives, without the state."""
    rows: list[tuple[int, int, object]] = []
    for item in items:
        if isinstance(item, FrameItem):
            assert item.received_ns // 1_000 == item.at_us
            rows.append((item.at_us, item.conn, item.frame))
        elif isinstance(item, ControlItem):
            body = {k: v for k, v in item.body.items() if k not in ("conn", "received_ns")}
            rows.append((item.at_us, item.body["conn"], body))
        elif isinstance(item, StateItem):
            assert not rows, "the state comes first, and once"
    return rows


def expected(made: Script, begin: int = 0) -> list[tuple[int, int, object]]:
    return [(START_US + n * 1_000, *entry) for n, entry in enumerate(made) if n >= begin]


@pytest.mark.parametrize("form", ["plain", "packed", "without an index"])
async def test_every_record_is_given_once_in_order_from_any_moment(
    tmp_path: Path, form: str
) -> None:
    """FAITHFUL-1, with the state that the gatherer had there."""
    made = script()
    await record(tmp_path, made)
    assert len(look(tmp_path).segments) > 5
    if form != "plain":
        pack(tmp_path, index=form == "packed")
    source = SpoolSource(tmp_path, None, None, None)
    assert [spec.ticker for spec in source.markets] == ["A", "B", "C"]
    assert source.overview.faults == []
    assert entries(source.items()) == expected(made)
    for begin in range(0, len(made), 7):
        items = source.items_from(START_US + begin * 1_000)
        state = next(items)
        assert isinstance(state, StateItem)
        assert state.is_fresh == (begin == 0)
        assert entries(items) == expected(made, begin)
        assert _known(state.continuity) == _known(_followed(made[:begin])), begin


def _followed(made: Script) -> Continuity:
    true, decoder = Continuity(0), Decoder()
    for n, (conn, entry) in enumerate(made):
        ns = (START_US + n * 1_000) * 1_000
        if isinstance(entry, dict):
            true.control({**entry, "conn": conn, "received_ns": ns})
        else:
            absorb_frames(true, decoder, conn, n, [entry], ns)
    return true


def _known(continuity: Continuity) -> object:
    form = continuity.export()
    return {key: form[key] for key in ("markets", "lives", "next_run_id")}


async def test_an_interval_begins_and_ends_where_it_was_asked_to(tmp_path: Path) -> None:
    made = script()
    await record(tmp_path, made)
    low, high = START_US + 60_000, START_US + 100_000
    source = SpoolSource(tmp_path, low, high, ["A"])
    assert (source.start_us, source.end_us) == (low, high)
    assert entries(source.items()) == expected(made)[60:100]
    assert [spec.ticker for spec in source.markets] == ["A"]
    assert source.spec_of("B") is None
    assert entries(source.items()) == expected(made)[60:100], "and a second time"
    whole = SpoolSource(tmp_path, 0, 1 << 60, None)
    assert (whole.start_us, whole.end_us) == (START_US, START_US + (len(made) - 1) * 1_000 + 1)


async def test_ids_of_markets_are_learned_before_the_beginning(tmp_path: Path) -> None:
    await record(tmp_path, script(), segment_bytes=1 << 20)
    state = next(SpoolSource(tmp_path, START_US + 50_000, None, None).items())
    assert isinstance(state, StateItem)
    assert state.market_ids == {"A": "x", "B": "x", "C": "x"}


async def test_a_torn_tail_is_told_before_and_where_it_stands(tmp_path: Path) -> None:
    """FAITHFUL-2: also bytes that nobody can know to be unfinished."""
    made = script()
    await record(tmp_path, made, clean=False)
    last = max(look(tmp_path).segments.values())
    body = last.read_bytes()
    for tail in (body[:-3], body[:-3] + b"\xff" * 400):
        last.write_bytes(tail)
        source = SpoolSource(tmp_path, None, START_US + 10**9, None)
        assert len(source.overview.faults) == 1
        items = list(source.items())
        assert isinstance(items[-1], DamageItem)
        assert "no whole record" in items[-1].damage
        assert entries(iter(items)) == expected(made)[: len(made) - 1]


async def test_damage_in_the_middle_ends_what_was_and_goes_on_from_the_next_state(
    tmp_path: Path,
) -> None:
    made = script()
    await record(tmp_path, made)
    hurt = sorted(look(tmp_path).segments.values())[2]
    body = bytearray(hurt.read_bytes())
    body[len(body) // 2] ^= 1
    hurt.write_bytes(body)
    source = SpoolSource(tmp_path, None, None, None)
    assert hurt.name in source.overview.faults[0]
    items = list(source.items())
    states = [n for n, item in enumerate(items) if isinstance(item, StateItem)]
    assert len(states) == 2
    state = items[states[1]]
    assert isinstance(state, StateItem)
    assert hurt.name in state.damage
    behind = entries(iter(items[states[1] :]))
    before = entries(iter(items[: states[1]]))
    assert before == expected(made)[: len(before)]
    assert behind == expected(made)[-len(behind) :]
    assert 0 < len(before) + len(behind) < len(made)
    assert _known(state.continuity) == _known(_followed(made[: len(made) - len(behind)]))


async def test_a_missing_segment_is_told_and_what_is_there_is_played(tmp_path: Path) -> None:
    made = script()
    await record(tmp_path, made)
    for path in sorted(look(tmp_path).segments.values())[:4:3]:  # the first, and one inside
        path.unlink()
    (tmp_path / "notes.txt").write_text("not ours")
    (tmp_path / "00009999.seg").write_text("not ours either")
    source = SpoolSource(tmp_path, None, None, None)
    assert len(source.overview.faults) == 1
    items = list(source.items())
    states = [item for item in items if isinstance(item, StateItem)]
    assert [state.is_fresh for state in states] == [False, False]
    assert [bool(state.damage) for state in states] == [False, True]
    assert entries(iter(items[-5:])) == expected(made)[-5:]


async def test_a_compressed_segment_that_is_damaged_stops_the_play(tmp_path: Path) -> None:
    """It is never a shorter answer that looks whole."""
    await record(tmp_path, script())
    pack(tmp_path)
    packed = sorted(p for p in look(tmp_path).segments.values() if p.suffix == ".zst")[2]
    packed.write_bytes(packed.read_bytes()[:-20])
    source = SpoolSource(tmp_path, None, None, None)
    with pytest.raises(StorageError, match=packed.name):
        list(source.items())


async def test_a_connection_that_died_is_closed_when_it_was_last_heard(tmp_path: Path) -> None:
    """The next process writes the close; what lies between is no silence of the exchange."""
    await record(tmp_path, opening(1, "A"), clean=False)
    rest = [(1, closed("died")), *opening(2, "A")]
    await record(tmp_path, rest, first=9_000)
    rows = entries(SpoolSource(tmp_path, None, None, None).items())
    assert rows[2][0] == START_US + 2_000
    assert rows[3][:2] == (START_US + 2_000, 1)
    assert rows[4][:2] == (START_US + 9_001_000, 2)


async def test_what_is_no_spool_or_holds_nothing_of_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no spool"):
        SpoolSource(tmp_path / "none", None, None, None)
    await record(tmp_path / "empty", [(1, CONNECT)])
    with pytest.raises(StorageError, match="no frame"):
        SpoolSource(tmp_path / "empty", None, None, None)
    await record(tmp_path / "spool", script())
    with pytest.raises(StorageError, match="received from"):
        SpoolSource(tmp_path / "spool", START_US + 10**10, None, None)
    with pytest.raises(StorageError, match="no market KX-Z"):
        SpoolSource(tmp_path / "spool", None, None, ["A", "KX-Z"])


async def test_an_index_that_is_damaged_is_told_and_not_believed(tmp_path: Path) -> None:
    await record(tmp_path, script())
    pack(tmp_path)
    index = tmp_path / index_name(1)
    index.write_bytes(b"no index")
    found = overview(tmp_path)
    assert [index.name in fault for fault in found.faults] == [True]
    assert found.segments[1].frames > 0
