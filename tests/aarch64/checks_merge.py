"""Checks of the merge: what the emulated deduplicator publishes from three recordings."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg

from dedup import tape_rows
from tests.aarch64.checks_capture import FRAMES, STREAMS, captures, make_databases, stored
from tests.aarch64.emulator import native
from tests.aarch64.trial import Trial, expect
from tests.bench.generator import MARKETS_EACH

GATHERERS = 3
LAYOUTS = (
    *(tape_rows.DELTA_COPY, tape_rows.SNAPSHOT_COPY, tape_rows.TRADE_COPY, tape_rows.TICKER_COPY),
)


def _hot(trial: Trial) -> list[str]:
    """Three recordings of the same frames; not the first, which the capture's control changes."""
    return [one.dsn for one in captures(trial)[-GATHERERS:]]


def _merged(trial: Trial) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both sides' counts, the merges made once."""
    if trial.merged is None:
        server = trial.postgres()
        asyncio.run(make_databases(server.dsn(), ["tape_emulated", "tape_native"]))
        asked = {"hot": _hot(trial), "production": server.dsn("tape_emulated")}
        (emulated,) = trial.emulator.ask("deduplicator", "side_merge", [asked])
        (here,) = native("side_merge", [{**asked, "production": server.dsn("tape_native")}])
        trial.merged = (emulated, here)
    return trial.merged


def _tables(trial: Trial, name: str) -> dict[str, str]:
    return asyncio.run(stored(trial.postgres().dsn(name), LAYOUTS))


def merge(trial: Trial) -> str:
    """The emulated merge publishes the rows that a native one does from the same recordings."""
    emulated, here = _merged(trial)
    ours, others = _tables(trial, "tape_emulated"), _tables(trial, "tape_native")
    differ = sorted(table for table in ours if ours[table] != others[table])
    expect(not differ, f"{differ} differ: {emulated} and {here}")
    expect(emulated["rows_in"] == here["rows_in"], f"{emulated} and {here}")
    expect(emulated["counts"] == here["counts"], f"{emulated} and {here}")
    rows = asyncio.run(_rows(trial.postgres().dsn("tape_emulated")))
    data = FRAMES - STREAMS * MARKETS_EACH
    expect(sum(rows.values()) - rows["orderbook_snapshot"] == data, f"{rows}: not {data} rows")
    return (
        f"{GATHERERS} recordings, {emulated['rows_in']} rows in, one tape of {data} changes,"
        f" trades and tickers, {emulated['seconds']:.1f} s; {len(LAYOUTS)} tables equal those of a"
        " native merge, book hashes included"
    )


async def _rows(dsn: str) -> dict[str, int]:
    connection = await asyncpg.connect(dsn)
    found = {
        layout.table: int(await connection.fetchval(f"SELECT count(*) FROM {layout.table}"))
        for layout in LAYOUTS
    }
    await connection.close()
    return found


async def _spoil(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    await connection.execute(
        "UPDATE orderbook_delta SET book_hash = book_hash + 1"
        " WHERE ctid = (SELECT ctid FROM orderbook_delta LIMIT 1)"
    )
    await connection.close()


def merge_control(trial: Trial) -> str:
    """One book hash changed on the native tape is noticed."""
    _merged(trial)
    asyncio.run(_spoil(trial.postgres().dsn("tape_native")))
    ours, others = _tables(trial, "tape_emulated"), _tables(trial, "tape_native")
    differ = sorted(table for table in ours if ours[table] != others[table])
    expect(differ == ["orderbook_delta"], f"one changed book hash was noticed in {differ}")
    return "one changed book hash is noticed"
