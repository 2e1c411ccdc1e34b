"""A spool read for repair gives what its gatherer stored, and claims no more than it proves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from marketdata.book import Book
from marketdata.errors import StorageError
from runtime.spool_index import write_index
from tape.repair_spool import SKEW_US, read_spool
from tests.gatherer_rows import make_stream
from tests.repair_world import write_spool

AWAY = [(100, 140)]


async def test_stretches_are_the_stream_without_the_time_away(tmp_path: Path) -> None:
    """Two connections, two stretches a market; books and times are those of the stream."""
    stream = make_stream(5, markets=2, events=300, mean_gap_us=300_000)
    await write_spool(tmp_path / "spool", stream, id_base=50, away=AWAY)
    low, high = stream.happenings[0].us, stream.happenings[-1].us + 1
    found = read_spool(tmp_path / "spool", 1, low, high)
    assert found.floating == 0
    for market, ticker in enumerate(stream.tickers):
        seen = [
            h
            for n, h in enumerate(stream.happenings)
            if h.kind == "delta" and h.market == market and not AWAY[0][0] <= n < AWAY[0][1]
        ]
        mine = found.stretches[ticker]
        rows = np.concatenate([s.rows for s in mine])
        assert rows["exchange_us"].tolist() == [h.us for h in seen]
        assert rows["delta"].tolist() == [h.delta for h in seen]
        assert len(mine) == 2
        for part in mine:
            book = Book.from_bytes(part.levels)
            assert book.hash == part.start_hash
            for row in part.rows.tolist():
                book.apply(row[9], row[8], row[2])
            assert book.hash == part.rows["book_hash"][-1]
    trades = [h for n, h in enumerate(stream.happenings) if h.kind == "trade"]
    assert len(found.trades) < len(trades)
    assert len(found.trade_proofs) == 2


async def test_proof_ends_before_what_was_not_seen(tmp_path: Path) -> None:
    """No bound lies in the time away, margins included."""
    stream = make_stream(6, markets=2, events=300, mean_gap_us=300_000)
    await write_spool(tmp_path / "spool", stream, id_base=50, away=AWAY)
    low, high = stream.happenings[0].us, stream.happenings[-1].us + 1
    found = read_spool(tmp_path / "spool", 1, low, high)
    left, back = stream.happenings[AWAY[0][0]].us, stream.happenings[AWAY[0][1]].us
    for stretches in found.stretches.values():
        first, second = sorted(stretches, key=lambda s: s.from_us)
        assert first.to_us <= left + 1
        assert second.from_us > back
        assert first.from_us >= low
    for proof in found.trade_proofs:
        assert proof.to_us <= left - SKEW_US or proof.from_us > back + SKEW_US


async def test_a_time_in_the_middle_begins_with_the_book_there(tmp_path: Path) -> None:
    """What lies before it is in the book, what lies after it is not looked at."""
    stream = make_stream(7, markets=1, events=200, mean_gap_us=300_000)
    await write_spool(tmp_path / "spool", stream, id_base=50)
    deltas = stream.deltas
    low, high = deltas[50].us, deltas[90].us
    (part,) = read_spool(tmp_path / "spool", 0, low, high).stretches[stream.tickers[0]]
    inside = [h for h in deltas if low <= h.us < high]
    assert part.rows["delta"].tolist() == [h.delta for h in inside]
    book = Book()
    for (side, price), size in stream.opening[0].items():
        book.apply(side, price, size)
    for h in deltas:
        if h.us < low:
            book.apply(h.side, h.price, h.delta)
    assert part.start_hash == book.hash
    assert part.to_us >= high


async def test_of_a_long_spool_only_what_lies_around_is_read(tmp_path: Path) -> None:
    """By its indexes: the same rows from the same books, and no more claimed."""
    stream = make_stream(9, markets=3, events=1_500, mean_gap_us=6_000_000)
    spool = tmp_path / "spool"
    await write_spool(spool, stream, id_base=50, away=[(200, 230)])
    at = stream.happenings[900].us
    low, high = at, stream.happenings[960].us
    whole = read_spool(spool, 0, low, high)
    for path in sorted(spool.glob("*.seg"))[:-1]:
        write_index(spool, int(path.stem), path.read_bytes())
    part = read_spool(spool, 0, low, high)
    assert 0 < part.frames < whole.frames * 2 / 3
    assert part.runs < whole.runs, "of the first connection nothing is read"
    for ticker in stream.tickers:
        (one,), (two,) = whole.stretches[ticker], part.stretches[ticker]
        assert (one.rows == two.rows).all()
        assert (one.start_hash, one.levels, one.run_id) == (two.start_hash, two.levels, two.run_id)
        assert one.from_us <= two.from_us < low
        assert high <= two.to_us <= one.to_us
    assert (part.trades == whole.trades).all()
    assert [p.from_us < low and p.to_us >= high for p in part.trade_proofs] == [True]


async def test_a_spool_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """What is missing or damaged in it is not known; nothing is made of the rest."""
    with pytest.raises(StorageError, match="is no spool"):
        read_spool(tmp_path / "none", 0, 0, 1)
    stream = make_stream(8, markets=2, events=600, mean_gap_us=3_000)
    await write_spool(tmp_path / "spool", stream, id_base=50)
    segments = sorted((tmp_path / "spool").glob("*.seg"))
    assert len(segments) > 2
    body = segments[1].read_bytes()
    segments[1].write_bytes(body[:200] + b"X" + body[201:])
    with pytest.raises(StorageError, match=segments[1].name):
        read_spool(tmp_path / "spool", 0, 0, 2**62)
    segments[1].unlink()
    with pytest.raises(StorageError, match="is missing"):
        read_spool(tmp_path / "spool", 0, 0, 2**62)
