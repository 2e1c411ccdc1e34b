"""Our own keyframes in production: where they are due, only where they are proven, written once."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from dedup import keyframes as module
from dedup.keyframes import begin, by_epoch, place
from dedup.publication import DAY_US, HOUR_US, signed
from dedup.tape_rows import DELTA_COPY
from marketdata.book import Book
from marketdata.coverage import OPEN_US
from marketdata.rows import MERGED_ROW, DeltaFlag
from runtime.partitions import Partitions
from runtime.pgcopy import pack_rows
from runtime.postgres import Connection, connect, copy_in, migrate

DAY = 1_700_006_400_000_000 // DAY_US * DAY_US


@pytest.fixture(autouse=True)
def every(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVERY_EVENTS", 10)


@pytest.fixture
async def conn(dsn: str) -> AsyncIterator[Connection]:
    """An empty production."""
    made = await connect(dsn)
    await migrate(made, "production")
    yield made
    await made.close()


async def market(
    conn: Connection, market_id: int, times: list[int], *, epoch_us: int, to_us: int = OPEN_US
) -> list[Book]:
    """A market with a keyframe at its epoch's start and a change at each time; the true books."""
    book, books = Book([(500_000, 100)], []), []
    rows = np.zeros(len(times), MERGED_ROW)
    await conn.execute(
        "INSERT INTO orderbook_snapshot VALUES (to_timestamp($1), 5, $2, $3, 1, 0, 1, $4)",
        epoch_us // 1_000_000, signed(book.hash), market_id, book.to_bytes(),
    )  # fmt: skip
    for n, us in enumerate(times, 1):
        book.apply(n % 2, 10_000 * (n % 7 + 1), 100)
        rows[n - 1] = (
            us,
            us * 1_000,
            100,
            book.hash,
            n,
            market_id,
            1,
            10_000 * (n % 7 + 1),
            n % 2,
            0,
            1,
        )
        books.append(book.copy())
    await copy_in(conn, DELTA_COPY, pack_rows(DELTA_COPY, rows))
    await conn.execute("INSERT INTO market VALUES ($1, $2, 0)", market_id, f"M{market_id}")
    await conn.execute(
        "INSERT INTO market_epoch VALUES ($1, 1, $2, 0, 'first')", market_id, epoch_us
    )
    await conn.execute(
        "INSERT INTO market_claim VALUES ($1, 0, 1, $2, $3, true, '')", market_id, epoch_us, to_us
    )
    return books


async def computed(conn: Connection) -> list[tuple[int, int, int, bytes]]:
    rows = await conn.fetch(
        "SELECT market_id, market_seq, (extract(epoch FROM exchange_ts) * 1000000)::bigint AS us,"
        " levels FROM orderbook_snapshot WHERE sources = 0 ORDER BY 1, 2, 3"
    )
    return [tuple(r) for r in rows]


async def test_by_number_at_the_hour_and_at_the_day(conn: Connection) -> None:
    hour = DAY + HOUR_US
    moved = [hour - 10 + n for n in range(35)]  # 10 before the hour, 25 in it
    books = await market(conn, 1, moved, epoch_us=DAY - HOUR_US)
    quiet = await market(conn, 2, [DAY - 3 * DAY_US], epoch_us=DAY - 4 * DAY_US)
    await market(conn, 3, [DAY - 9 * DAY_US], epoch_us=DAY - 10 * DAY_US, to_us=DAY - 8 * DAY_US)
    assert await place(conn, Partitions(), hour) == 3
    assert [(m, n, us) for m, n, us, _ in await computed(conn)] == [
        (1, 10, hour),
        (1, 20, moved[19]),
        (1, 30, moved[29]),
    ]
    for _, n, _, levels in await computed(conn):
        assert levels == books[n - 1].to_bytes()
    assert await place(conn, Partitions(), DAY) == 3  # and event 10, by number
    at_day = [row for row in await computed(conn) if row[2] == DAY]
    assert [(m, n) for m, n, _, _ in at_day] == [(1, 0), (2, 1)]
    assert at_day[1][3] == quiet[0].to_bytes()


async def test_an_epoch_that_a_repair_put_into_the_past_is_not_the_present_one(
    conn: Connection,
) -> None:
    hour = DAY + HOUR_US
    books = await market(conn, 1, [hour - 9, hour - 8], epoch_us=DAY)
    repaired = DAY - HOUR_US
    await conn.execute("INSERT INTO market_epoch VALUES (1, 16777217, $1, 0, 'gap')", repaired)
    assert await place(conn, Partitions(), hour) == 1
    assert [(n, levels) for _, n, _, levels in await computed(conn)] == [(2, books[1].to_bytes())]


async def test_a_second_time_changes_nothing(conn: Connection) -> None:
    await market(conn, 1, [DAY + n for n in range(25)], epoch_us=DAY - 1)
    await place(conn, Partitions(), DAY)
    first = await conn.fetch("SELECT x::text FROM orderbook_snapshot AS x ORDER BY 1")
    await place(conn, Partitions(), DAY)
    assert await conn.fetch("SELECT x::text FROM orderbook_snapshot AS x ORDER BY 1") == first
    assert len(first) > 3


async def test_a_prefix_ends_before_a_time_that_steps_back(conn: Connection) -> None:
    """Event 4 is older than the hour and stands behind event 3, which is not."""
    hour = DAY + HOUR_US
    books = await market(conn, 1, [hour - 9, hour - 8, hour + 1, hour - 1], epoch_us=DAY)
    assert await place(conn, Partitions(), hour) == 1
    assert [(n, us, levels) for _, n, us, levels in await computed(conn)] == [
        (2, hour, books[1].to_bytes())
    ]


async def test_what_the_chain_does_not_prove_is_left_out(conn: Connection) -> None:
    """The control: one size in production is another than the one that made the chain."""
    hour = DAY + HOUR_US
    await market(conn, 1, [hour - 20 + n for n in range(10)], epoch_us=DAY)
    await market(conn, 2, [hour - 20 + n for n in range(10)], epoch_us=DAY)
    await conn.execute(
        "UPDATE orderbook_delta SET delta = 7 WHERE market_id = 1 AND market_seq = 4"
    )
    assert await place(conn, Partitions(), hour) == 1
    assert [m for m, _, _, _ in await computed(conn)] == [2]


async def test_a_reset_after_what_is_not_proven_proves_the_next(conn: Connection) -> None:
    """Whatever the book was, a reset empties it."""
    await market(conn, 1, [DAY + n for n in range(20)], epoch_us=DAY - 1)
    await conn.execute("UPDATE orderbook_delta SET delta = 7 WHERE market_seq = 4")
    book = Book()
    for r in await conn.fetch("SELECT * FROM orderbook_delta WHERE market_seq > 14 ORDER BY 7"):
        if r["market_seq"] == 15:
            await conn.execute(
                "UPDATE orderbook_delta SET flags = $1, price = 0, delta = 0, book_hash = 0"
                " WHERE market_seq = 15",
                int(DeltaFlag.RESET),
            )
            continue
        book.apply(r["side"], r["price"], r["delta"])
        await conn.execute(
            "UPDATE orderbook_delta SET book_hash = $1 WHERE market_seq = $2",
            signed(book.hash), r["market_seq"],
        )  # fmt: skip
    await place(conn, Partitions(), DAY)
    assert [(n, levels) for _, n, _, levels in await computed(conn) if n] == [(20, book.to_bytes())]


async def test_changes_between_places_are_read_once(
    conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each place from the keyframe before all of them: a busy market's hour cost its square."""
    await market(conn, 1, [DAY + n for n in range(200)], epoch_us=DAY - 1)
    read = 0
    changes = module._changes

    async def counted(*asked: Any) -> Any:
        nonlocal read
        rows = await changes(*asked)
        read += len(rows)
        return rows

    monkeypatch.setattr(module, "_changes", counted)
    assert await place(conn, Partitions(), DAY) == 21
    assert read == 200


@pytest.mark.parametrize("seed", range(8))
async def test_where_a_market_stands_is_the_same_by_time_and_by_number(
    conn: Connection, seed: int
) -> None:
    """The slow way, which goes through a market's numbers, is the reference."""
    hour = DAY + 5 * HOUR_US
    chance = random.Random(seed)
    for number in range(1, 8):
        times = sorted(hour + chance.randrange(-HOUR_US, HOUR_US) for _ in range(30))
        for at in range(1, 30):
            if chance.random() < 0.2:  # a time that steps back, mostly over the hour's start
                times[at] = max(times[at] - chance.randrange(HOUR_US // 2), hour - HOUR_US)
        await market(conn, number, times, epoch_us=hour - chance.randrange(2 * HOUR_US))
        if chance.random() < 0.5:  # an epoch that has nothing in the hour before
            await conn.execute(
                "INSERT INTO market_epoch VALUES ($1, 2, $2, 0, 'gap')", number,
                hour - chance.randrange(HOUR_US),
            )  # fmt: skip
    found = await module._after_hour(conn, hour)
    assert sorted(found) == await module._standing(conn, hour, sorted({p.market_id for p in found}))
    assert len(found) >= 5


async def test_changes_that_are_gone_give_no_keyframe(conn: Connection) -> None:
    """Without them the book of the keyframe before would stand as that of a later place."""
    hour = DAY + HOUR_US
    await market(conn, 1, [hour - 20 + n for n in range(8)], epoch_us=DAY)
    await conn.execute("DELETE FROM orderbook_delta WHERE market_seq < 8")
    assert await place(conn, Partitions(), hour) == 0
    assert await computed(conn) == []


async def test_memory_is_bounded_by_parts(
    conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small parts write the same rows as one."""
    books = await market(conn, 1, [DAY + n for n in range(95)], epoch_us=DAY - 1)
    monkeypatch.setattr(module, "CHUNK_ROWS", 20)
    monkeypatch.setattr(module, "CHUNK_PLACES", 2)
    assert await place(conn, Partitions(), DAY) == 10
    by_number = [row for row in await computed(conn) if row[1]]
    assert [(n, levels) for _, n, _, levels in by_number] == [
        (n, books[n - 1].to_bytes()) for n in range(10, 91, 10)
    ]


def test_rows_are_split_where_market_or_epoch_changes() -> None:
    rows = np.zeros(4, MERGED_ROW)
    rows["market_id"], rows["epoch"] = [1, 1, 1, 2], [1, 2, 2, 2]
    assert {key: len(part) for key, part in by_epoch(rows).items()} == {
        (1, 1): 1,
        (1, 2): 2,
        (2, 2): 1,
    }
    assert by_epoch(rows[:0]) == {}


async def epoch(conn: Connection, number: int, from_us: int, start: Book, reason: str) -> None:
    await conn.execute(
        "INSERT INTO market_epoch VALUES (1, $1, $2, $3, $4)",
        number, from_us, signed(start.hash), reason,
    )  # fmt: skip


async def test_an_epoch_after_a_gap_with_the_same_book_gets_a_start_of_its_own(
    conn: Connection,
) -> None:
    """Its snapshot stands at the end of the epoch before it; two such epochs follow each other."""
    hour = DAY + HOUR_US
    books = await market(conn, 1, [hour + n for n in range(25)], epoch_us=hour - 1)
    await epoch(conn, 2, hour + 100, books[-1], "book_equal")
    await epoch(conn, 3, hour + 200, books[-1], "book_equal")  # nothing happened in the second
    assert await begin(conn, Partitions(), hour) == 2
    rows = await conn.fetch(
        "SELECT epoch, market_seq, (extract(epoch FROM exchange_ts) * 1000000)::bigint AS us,"
        " levels FROM orderbook_snapshot WHERE epoch > 1 ORDER BY 1"
    )
    same = books[-1].to_bytes()
    assert [tuple(r) for r in rows] == [(2, 0, hour + 99, same), (3, 0, hour + 199, same)]
    assert await begin(conn, Partitions(), hour) == 0
    assert await begin(conn, Partitions(), hour + HOUR_US) == 0


async def test_a_start_that_is_not_proven_or_has_a_keyframe_gets_none(conn: Connection) -> None:
    hour = DAY + HOUR_US
    books = await market(conn, 1, [hour + n for n in range(5)], epoch_us=hour - 1)
    await epoch(conn, 2, hour + 100, books[0], "book_equal")  # another book than the end's
    await epoch(conn, 3, hour + 200, books[-1], "gap")  # nothing says that the book is the same
    assert await begin(conn, Partitions(), hour) == 0
    await conn.execute(
        "UPDATE market_epoch SET start_hash = $1 WHERE epoch = 2", signed(books[-1].hash)
    )
    await conn.execute(
        "INSERT INTO orderbook_snapshot VALUES (to_timestamp($1), 5, $2, 1, 2, 0, 1, $3)",
        hour // 1_000_000, signed(books[-1].hash), books[-1].to_bytes(),
    )  # fmt: skip
    assert await begin(conn, Partitions(), hour) == 0  # the merge has placed it


async def test_a_start_at_an_hours_first_moment_belongs_to_the_hour_before(
    conn: Connection,
) -> None:
    hour = DAY + HOUR_US
    books = await market(conn, 1, [hour - 60, hour - 50], epoch_us=hour - HOUR_US)
    await epoch(conn, 2, hour, books[-1], "book_equal")
    assert await begin(conn, Partitions(), hour) == 0
    assert await begin(conn, Partitions(), hour - HOUR_US) == 1
