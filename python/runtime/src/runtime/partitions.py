"""Native RANGE partitions by exchange time, made when rows need them.

Purpose: before a COPY, make sure that the hours or days of its rows have their partition.

What holds:
- A partition is named by its start, `<table>_pYYYYMMDD` or `<table>_pYYYYMMDDHH`, so two processes
  that need the same one make the same one.
- Times outside the sane range, and everything past the limit of partitions for one call, stay in
  the DEFAULT partition: a frame with a wild time costs a row there and never a thousand tables.
- A partition is never made over rows that the DEFAULT partition already holds (PostgreSQL refuses);
  that span then stays with DEFAULT, is remembered, and is counted in `left_to_default`.

Where TimescaleDB is, the same migrations are turned into hypertables (`as_hypertables`); it makes
its own chunks, and `ensure` finds nothing to do.

Does not do: dropping (retention).
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

import asyncpg

Step = Literal["hour", "day"]

STEP_US: Final[dict[str, int]] = {"hour": 3_600_000_000, "day": 86_400_000_000}
SANE_FROM_US: Final = 1_577_836_800_000_000  # 2020-01-01; the exchange opened in 2021
SANE_TO_US: Final = 4_102_444_800_000_000  # 2100-01-01
PARTITIONS_PER_CALL_MAX: Final = 48
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def partition_name(table: str, start_us: int, step: Step) -> str:
    """Name of the partition that begins at `start_us` (UTC)."""
    start = _EPOCH + timedelta(microseconds=start_us)
    return f"{table}_p{start:%Y%m%d%H}" if step == "hour" else f"{table}_p{start:%Y%m%d}"


def starts(min_us: int, max_us: int, step: Step) -> list[int]:
    """Starts of the partitions that a range of times touches, both ends included, up to the limit.

    Times out of the sane range are cut away; an empty list means DEFAULT takes all.
    """
    width = STEP_US[step]
    first = max(min_us, SANE_FROM_US) // width * width
    last = min(max_us, SANE_TO_US - 1) // width * width
    count = (last - first) // width + 1
    return [first + i * width for i in range(min(count, PARTITIONS_PER_CALL_MAX))]


_PARTITIONED: Final = re.compile(
    r"CREATE TABLE (\w+) \((?P<columns>[^;]*?)\) PARTITION BY RANGE \((?P<key>\w+)\);"
)
_DEFAULT: Final = re.compile(r"CREATE TABLE \w+ PARTITION OF \w+ DEFAULT;")


def as_hypertables(sql: str, interval: str, home: str = "public") -> str:
    """A migration for native partitions -> the same tables as hypertables of TimescaleDB.

    Without TimescaleDB's default indexes: the btree on time would cost more than the row. Only
    features of its Apache-licensed part are used. `home`: the schema of the extension, which need
    not be on the search path (each feed process has a schema of its own).
    """

    def change(found: re.Match[str]) -> str:
        made = f"CREATE TABLE {found[1]} ({found['columns']});"
        span = f"{home}.by_range('{found['key']}', INTERVAL '{interval}')"
        options = "create_default_indexes => false"
        return f"{made}\nSELECT {home}.create_hypertable('{found[1]}', {span}, {options});"

    changed, count = _PARTITIONED.subn(change, sql)
    changed = _DEFAULT.sub("", changed)
    assert "PARTITION" not in changed, "a partitioned table is written in a form not known here"
    made = f"CREATE EXTENSION IF NOT EXISTS timescaledb SCHEMA {home};"
    return f"{made}\n{changed}" if count else sql


TIMESCALE_HOME: Final = """
SELECT coalesce((SELECT extnamespace::regnamespace::text FROM pg_extension
                 WHERE extname = 'timescaledb'), 'public')
"""
"""The schema of TimescaleDB's functions, or where the migrations would make them."""


class Partitions:
    """The partitions of one database, with a cache of what is there. One per connection owner."""

    __slots__ = ("_known", "_native", "left_to_default")

    def __init__(self) -> None:
        self._known: set[str] = set()
        self._native: dict[str, bool] = {}  # whether a table has native partitions
        self.left_to_default = 0

    def forget(self) -> None:
        """After a reconnect to what may be another server."""
        self._known.clear()
        self._native.clear()

    def missing(self, table: str, min_us: int, max_us: int, step: Step) -> list[int]:
        """Starts that `ensure` would ask the database for; empty in the usual case."""
        return [
            start
            for start in starts(min_us, max_us, step)
            if partition_name(table, start, step) not in self._known
        ]

    async def ensure(
        self,
        connection: asyncpg.Connection,
        table: str,
        min_us: int,
        max_us: int,
        step: Step = "hour",
    ) -> list[str]:
        """Make the partitions for rows with exchange times `min_us` to `max_us`; the new names.

        Runs outside of a transaction or inside one (then as savepoints).
        """
        made: list[str] = []
        if table not in self._native:
            self._native[table] = await connection.fetchval(
                "SELECT relkind = 'p' FROM pg_class WHERE oid = $1::text::regclass", table
            )
        if not self._native[table]:
            return made
        for start in self.missing(table, min_us, max_us, step):
            name = partition_name(table, start, step)
            begin = _EPOCH + timedelta(microseconds=start)
            end = _EPOCH + timedelta(microseconds=start + STEP_US[step])
            if await connection.fetchval("SELECT to_regclass($1) IS NULL", name):
                try:
                    async with connection.transaction():
                        await connection.execute(
                            f'CREATE TABLE IF NOT EXISTS "{name}" PARTITION OF "{table}"'
                            f" FOR VALUES FROM ('{begin.isoformat()}') TO ('{end.isoformat()}')"
                        )
                    made.append(name)
                except asyncpg.CheckViolationError:
                    self.left_to_default += 1  # DEFAULT holds rows of this span: it keeps the rest
                except (asyncpg.DuplicateTableError, asyncpg.UniqueViolationError):
                    pass  # somebody else made it at the same moment
            self._known.add(name)
        return made
