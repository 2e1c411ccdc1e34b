"""A repair is in production whole or not at all, and never twice."""

from __future__ import annotations

from pathlib import Path

import asyncpg
import pytest

from dedup import repair_store as store
from dedup.publication import publication_of
from dedup.publish import Publisher
from dedup.repair import REPAIRED, Fill
from dedup.repair_store import Addition, Proof
from marketdata.errors import StorageError
from marketdata.share import Share, share_of
from runtime.postgres import connect
from tests.unit.dedup.test_repair import events, stretch
from tests.window_outputs import T0, WINDOW_US, window_output


async def tape(dsn: str) -> None:
    """Two windows of two markets."""
    publisher = Publisher(dsn, {"window_us": WINDOW_US})
    await publisher.open()
    made = publication_of([window_output(0, ["A", "B"]), window_output(1, ["A"], 4)], {}, {})
    await publisher.commit(made, {0: 1})
    await publisher.close()


def addition(epoch: int = REPAIRED) -> Addition:
    rows = events(4, start_us=T0 + 5)
    fill = Fill(stretch(rows), 0, T0 + 2, T0 + 90, 1, 4, epoch, 1)
    proof = Proof(1, "orderbook", 2, 5, T0, T0 + 100, "repaired")
    return Addition(T0, T0 + 1_000, 7, "late", ["spool x"], fills=[(1, 1, fill)], proofs=[proof])


async def test_rows_epoch_keyframe_and_proof_come_together(production: str) -> None:
    """And the hour is to be exported again."""
    await tape(production)
    conn = await connect(production)
    assert await store.next_epoch(conn, 1) == REPAIRED
    assert await store.commit(conn, addition()) == 1
    pieces, follows = await store.load_pieces(conn, 1, T0 - 10, T0 + 10**9)
    assert [p.epoch for p in pieces] == [1, REPAIRED]
    assert pieces[1].rows["exchange_us"].tolist() == [T0 + 15, T0 + 25, T0 + 35]
    assert pieces[1].begins
    assert pieces[1].ends
    assert follows == {1: 1, REPAIRED: 1}
    assert await store.next_epoch(conn, 1) == REPAIRED + 1
    hash_, levels = await conn.fetchrow(
        "SELECT book_hash, levels FROM orderbook_snapshot WHERE epoch = $1", REPAIRED
    )
    from marketdata.book import Book

    first = events(1)
    book = Book()
    book.apply(int(first["side"][0]), int(first["price"][0]), int(first["delta"][0]))
    assert (hash_ & (1 << 64) - 1, levels) == (book.hash, book.to_bytes())
    assert await conn.fetchval("SELECT bool_and(rows_dirty AND proof_dirty) FROM lake_hour")
    assert await conn.fetchval("SELECT count(*) FROM hour_version") == 0, "it was never exported"
    await conn.close()


async def test_nothing_stays_of_a_repair_that_fails(production: str) -> None:
    """A proof that production refuses takes the rows with it."""
    await tape(production)
    conn = await connect(production)
    wrong = addition()
    wrong.proofs.append(Proof(1, "orderbook", 2, 2**40, 0, 1, "no such run"))
    with pytest.raises((asyncpg.PostgresError, asyncpg.DataError, OverflowError)):
        await store.commit(conn, wrong)
    for table in ("repair", "repair_epoch", "repair_proof"):
        assert await conn.fetchval(f"SELECT count(*) FROM {table}") == 0
    assert await conn.fetchval("SELECT max(epoch) FROM orderbook_delta") == 1
    await conn.close()


async def test_an_exported_hour_gets_a_version_with_what_was_before(
    production: str, tmp_path: Path
) -> None:
    """Counted from 2."""
    await tape(production)
    conn = await connect(production)
    hour = T0 - T0 % 3_600_000_000
    await conn.execute("INSERT INTO export_object VALUES ('k', 'trades', $1, 1, 1, 'abc', 1)", hour)
    await store.commit(conn, addition())
    await store.commit(conn, addition(REPAIRED + 1))
    assert await store.unexported(conn) == [hour]
    told = await store.versions_of(conn, hour)
    assert [(v["version"], v["repair"], v["reason"]) for v in told] == [
        (2, 1, "late"),
        (3, 2, "late"),
    ]
    assert told[0]["previous"] == {"k": "abc"}
    assert told[0]["at"].startswith("1970-01-01T00:00:00.000007")
    await conn.close()


async def test_one_writer_and_a_closed_time(production: str) -> None:
    """What forbids a repair."""
    conn = await connect(production)
    with pytest.raises(StorageError, match="nothing before"):
        await store.check_interval(conn, 1, 2)
    await tape(production)
    await store.check_interval(conn, T0, T0 + WINDOW_US)
    with pytest.raises(StorageError, match="still open"):
        await store.check_interval(conn, T0, T0 + 3 * WINDOW_US)
    other = await connect(production)
    await store.lock(other)
    with pytest.raises(StorageError, match="another repair"):
        await store.lock(conn)
    await other.close()
    await conn.close()


def test_counts_and_emptiness() -> None:
    """What is told before anything is done."""
    assert addition().counts["events"] == 3
    assert not addition().empty
    assert Addition(0, 1, 0, "", []).empty


@pytest.mark.parametrize("of", [1, 3])
def test_a_new_market_gets_the_id_that_its_merger_would_give(of: int) -> None:
    """Else the deduplicator would give the same number again."""
    ids = store.MarketIds()
    ids.mergers = of
    by_merger: dict[int, int] = {}
    for n in range(60):
        ticker = f"KXNEW-{n}"
        share = Share(share_of(ticker, of), of)
        owned = by_merger.get(share.number, 0)
        assert ids.new(ticker) == share.market_id(owned)
        ids[ticker], by_merger[share.number] = ids.new(ticker), owned + 1
    assert len(set(ids.values())) == 60
