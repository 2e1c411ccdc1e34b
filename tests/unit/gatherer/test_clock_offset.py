"""gatherer.clock_offset: rows of a clock that is right, stepped, or without anybody to ask."""

from __future__ import annotations

import asyncio
from email.utils import formatdate
from typing import Any, cast

import asyncpg
import pytest

from gatherer import clock_offset as module
from gatherer.clock_offset import ClockOffset, kernel_clock
from gatherer.side_rows import SideRows
from marketdata.clock_bounds import KernelClock
from runtime.clock import Clock

S = 1_000_000_000
NOW = 1_786_085_188 * S


class Hands:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.wall, self.monotonic = NOW, 50 * S

    def wall_ns(self) -> int:
        return self.wall

    def monotonic_ns(self) -> int:
        return self.monotonic

    def on(self, ns: int) -> None:
        self.wall += ns
        self.monotonic += ns


class Kept:
    """Rows that are put."""

    def __init__(self) -> None:
        self.rows: list[tuple[Any, ...]] = []
        self.is_full = False

    def put(self, insert: str, *values: Any) -> None:
        assert "clock_offsets" in insert
        self.rows.append(values)


def made(
    kernel: KernelClock | None = None, limit_ms: int = 1_000
) -> tuple[ClockOffset, Hands, Kept]:
    hands, kept = Hands(), Kept()
    clock = ClockOffset(
        cast(SideRows, kept), cast(Clock, hands), limit_ms, kernel=lambda: kernel
    )  # fmt: skip
    return clock, hands, kept


def answers(clock: ClockOffset, hands: Hands, off_ns: int, count: int = 40) -> None:
    """Answers of an exchange whose clock is `off_ns` behind what ours was at the start."""
    base = hands.wall - hands.monotonic
    for _ in range(count):
        hands.on(970_000_000)
        exchange_ns = base + hands.monotonic - off_ns
        clock.answered(
            formatdate(exchange_ns // S, usegmt=True), hands.monotonic - 1_000_000, hands.monotonic
        )


def test_a_right_clock_is_a_row_and_no_trouble() -> None:
    clock, hands, kept = made(KernelClock(True, -250, 5_000))
    answers(clock, hands, 0)
    clock.once()
    (row,) = kept.rows
    at, low, high, count, contradictions, stepped, synchronised, offset, error = row
    assert (at, count, contradictions, stepped) == (hands.wall, 40, 0, 0)
    assert low <= 0 <= high
    assert high - low < 400_000_000
    assert (synchronised, offset, error) == (True, -250, 5_000)
    assert clock.reason == ""


def test_a_clock_set_by_an_hour_shows_in_the_rows_and_spoils_no_bound() -> None:
    clock, hands, kept = made()
    answers(clock, hands, 0)
    clock.once()
    hands.wall += 3600 * S
    hands.on(60 * S)
    clock.once()
    hands.wall -= 3600 * S
    hands.on(60 * S)
    clock.once()
    assert [row[5] for row in kept.rows] == [0, 3600 * S, -3600 * S]
    assert kept.rows[1][1] <= 3600 * S <= kept.rows[1][2]
    assert kept.rows[2][1] <= 0 <= kept.rows[2][2]
    assert [row[4] for row in kept.rows] == [0, 0, 0]
    assert clock.stepped_ns == 7200 * S
    assert clock.reason == ""


def test_what_lies_between_two_readings_is_no_step() -> None:
    """On a real machine the readings are some microseconds apart, differently at each look; a step
    of a second is one."""
    clock, hands, kept = made()
    clock.once()
    for late_ns in (40_000, -25_000, 99_000_000, -99_000_000):
        hands.wall += late_ns
        hands.on(60 * S)
        clock.once()
    assert clock.stepped_ns == 0
    assert [row[5] for row in kept.rows] == [0, 40_000, -25_000, 99_000_000, -99_000_000]
    hands.wall -= S
    hands.on(60 * S)
    clock.once()
    assert clock.stepped_ns == S


def test_a_clock_beyond_its_limit_is_told() -> None:
    clock, hands, _ = made()
    answers(clock, hands, 5 * S)
    clock.once()
    assert clock.reason.startswith("our clock minus the exchange's is 4")
    lenient, hands, _ = made(limit_ms=0)
    answers(lenient, hands, 5 * S)
    lenient.once()
    assert lenient.reason == ""


def test_without_any_answer_and_kernel_the_row_says_so() -> None:
    clock, _, kept = made()
    clock.once()
    assert kept.rows[0][1:4] == (None, None, 0)
    assert kept.rows[0][6:] == (None, None, None)
    assert (clock.date_us(), clock.wall_bounds()) == (0, None)


@pytest.mark.parametrize("date", ["", "yesterday", "Fri, 99 Aug 2026 06:46:28 GMT"])
def test_a_date_that_cannot_be_read_is_no_answer(date: str) -> None:
    clock, _, _ = made()
    clock.answered(date, 1, 2)
    assert clock.date_us() == 0


def test_the_exchanges_time_goes_on_with_our_monotonic_clock() -> None:
    clock, hands, _ = made()
    clock.answered(formatdate(NOW // S, usegmt=True), 49 * S, 50 * S)
    hands.on(1_500_000_000)
    hands.wall -= 7 * S
    assert clock.date_us() == NOW // 1_000 + 1_500_000


def test_while_rows_find_no_room_the_clock_is_judged_all_the_same() -> None:
    clock, _, kept = made(KernelClock(False, 0, 0))
    kept.is_full = True
    clock.once()
    assert kept.rows == []
    assert "not synchronised" in clock.reason


def test_the_kernel_is_asked_without_setting_anything() -> None:
    """Here or in a sandbox that forbids it: an answer or None, never an exception."""
    found = kernel_clock()
    assert found is None or found.error_ns >= 0


def test_a_kernel_that_refuses_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refuses:
        def adjtimex(self, _: object) -> int:
            return -1

    monkeypatch.setattr(module.ctypes, "CDLL", lambda *_, **__: Refuses())
    assert kernel_clock() is None


async def test_rows_reach_the_database(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = SideRows(dsn, Clock(0))
    clock = ClockOffset(rows, Clock(0), 1_000)
    monkeypatch.setattr(module, "ROW_S", 0.05)
    tasks = [asyncio.create_task(rows.run()), asyncio.create_task(clock.run())]
    clock.answered(formatdate(usegmt=True), Clock(0).monotonic_ns(), Clock(0).monotonic_ns())
    async with asyncio.timeout(30):
        while rows.written < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    for task in tasks:
        task.cancel()
    connection = await asyncpg.connect(dsn)
    found = await connection.fetch("SELECT * FROM clock_offsets ORDER BY at_ns")
    await connection.close()
    assert len(found) >= 2
    assert found[-1]["low_ns"] < found[-1]["high_ns"]
    assert found[-1]["answers"] == 1
