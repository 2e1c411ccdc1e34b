"""Answers that stand, one making at a time, the last known one when production is away."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest

from dedup.page import asked
from dedup.page.asked import ANSWERS_MAX, Production, UnansweredError
from marketdata.errors import StorageError


class Clock:
    def __init__(self) -> None:
        self.s = 100.0

    def __call__(self) -> float:
        return self.s


async def test_an_answer_stands_and_is_made_once_for_all_who_ask(production: str) -> None:
    clock, made = Clock(), []

    async def make(conn: Any) -> dict[str, Any]:
        made.append(await conn.fetchval("SELECT count(*) FROM market"))
        await asyncio.sleep(0.05)
        return {"n": len(made)}

    page = Production(production, monotonic=clock, wall_ms=lambda: int(clock.s * 1000))
    answers = await asyncio.gather(*(page.known("a", make, stands_s=5) for _ in range(10)))
    assert [a["n"] for a in answers] == [1] * 10
    clock.s += 4.9
    again = await page.known("a", make, stands_s=5)
    assert (again["n"], again["known"]["age_ms"]) == (1, 4_900)
    clock.s += 0.2
    assert (await page.known("a", make, stands_s=5))["n"] == 2
    await page.close()


async def test_a_dear_answer_stands_longer(production: str) -> None:
    """What costs a tenth of a second is made at most every ten; nothing stands for ever."""
    clock, made, cost_s = Clock(), [], [0.1]

    async def make(_: Any) -> dict[str, Any]:
        made.append(1)
        clock.s += cost_s[0]
        return {}

    page = Production(production, monotonic=clock)
    await page.known("a", make, stands_s=5)
    clock.s += 9.8
    await page.known("a", make, stands_s=5)
    assert len(made) == 1
    clock.s += 2
    await page.known("a", make, stands_s=5)
    assert len(made) == 2
    cost_s[0] = 100.0
    clock.s += 11
    await page.known("a", make, stands_s=5)
    clock.s += asked.STANDS_S_MAX + 0.1
    await page.known("a", make, stands_s=5)
    assert len(made) == 4
    await page.close()


async def test_connections_can_only_read_and_statements_end(
    production: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asked, "STATEMENT_MS", 100)
    page = Production(production)
    for statement, error in (
        ("INSERT INTO market VALUES (1, 'A', 0)", "ReadOnlySQLTransactionError"),
        ("SELECT pg_sleep(10)", "QueryCanceledError"),
    ):

        async def make(conn: asyncpg.Connection, sql: str = statement) -> dict[str, Any]:
            return {"is": await conn.fetchval(sql)}

        with pytest.raises(UnansweredError, match=error):
            await page.known(statement, make, stands_s=1)
    await page.close()


async def test_without_production_the_last_answer_is_given_with_the_reason(production: str) -> None:
    clock, broken = Clock(), [False]

    async def make(_: Any) -> dict[str, Any]:
        if broken[0]:
            raise StorageError("gone")
        return {"n": 1}

    page = Production(production, monotonic=clock, wall_ms=lambda: int(clock.s * 1000))
    await page.known("a", make, stands_s=1)
    broken[0] = True
    clock.s += 5
    late = await page.known("a", make, stands_s=1)
    assert (late["n"], late["known"]["age_ms"]) == (1, 5_000)
    assert "gone" in late["known"]["trouble"]
    assert page.trouble
    broken[0] = False
    clock.s += asked.FAILED_STANDS_S + 0.1
    assert (await page.known("a", make, stands_s=1))["known"]["trouble"] == ""
    assert page.trouble == ""
    await page.close()


async def test_a_bug_in_making_is_not_hidden(production: str) -> None:
    async def make(_: Any) -> dict[str, Any]:
        raise KeyError("a")

    page = Production(production)
    with pytest.raises(KeyError):
        await page.known("a", make, stands_s=1)
    await page.close()


async def test_answers_that_nobody_asks_for_go(production: str) -> None:
    async def make(_: Any) -> dict[str, Any]:
        return {}

    page = Production(production)
    for n in range(ANSWERS_MAX + 10):
        await page.known(str(n), make, stands_s=60)
    assert len(page._kept) == ANSWERS_MAX
    await page.close()
