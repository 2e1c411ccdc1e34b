"""Compression of old chunks, where the server's TimescaleDB offers it.

Purpose: after the migrations, and at each start again, ask the server for its edition, and where it
is the one with compression let the row tables' old chunks be compressed by TimescaleDB's own jobs.

What holds:
- The edition is asked of the server (`timescaledb.license`), never set and never taken from
  settings: the Apache edition has the functions in its catalog too, and each of them refuses.
- Without it nothing changes, and the reason is said. A refusal stops nobody: rows that stay
  uncompressed are only larger.
- Rows that come late into a compressed chunk are taken: the order below covers every unique key.

Does not do: removing rows. TimescaleDB's retention policy goes by age alone; here rows go when they
were verified in the lake as well (gatherer.hot_retention, dedup.retain).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import asyncpg

from runtime import logs
from runtime.partitions import TIMESCALE_HOME

COMPLETE: Final = "timescale"
"""What `timescaledb.license` says in the edition that compresses; the other says `apache`."""

log = logs.get("compression")


@dataclass(frozen=True, slots=True)
class Plan:
    """How one table's chunks are compressed: sorted so, when they are that old.

    Without segments: an hour's chunk holds many markets with few rows each, and segments of a few
    rows compress worse than none (5.4x to 6.2x without, 5.1x by market).
    """

    orderby: str
    after: str


# Behind what is read again in daily work: windows of the merger, export of the hours just closed.
PLANS: Final[dict[str, dict[str, Plan]]] = {
    "gatherer_hot": {"orderbook_delta": Plan("batch_id, received_ns", "6 hours")},
    "production": {
        "orderbook_delta": Plan("market_id, epoch, market_seq, exchange_ts", "2 days"),
        "orderbook_snapshot": Plan(
            "market_id, epoch, market_seq, book_hash, exchange_ts", "2 days"
        ),
        "trade": Plan("exchange_ts, trade_id", "2 days"),
        "ticker": Plan("market_id, exchange_ts, payload_key", "2 days"),
    },
}

_EDITION: Final = "SELECT current_setting('timescaledb.license', true)"
_UNPLANNED: Final = """
SELECT hypertable_name::text FROM timescaledb_information.hypertables
WHERE hypertable_schema = current_schema() AND hypertable_name = ANY ($1::text[])
    AND NOT EXISTS (SELECT FROM timescaledb_information.jobs AS j
                    WHERE j.hypertable_schema = hypertables.hypertable_schema
                    AND j.hypertable_name = hypertables.hypertable_name
                    AND j.proc_name = 'policy_compression')
ORDER BY 1
"""


async def compress(connection: asyncpg.Connection, folder: str) -> str:
    """Let the row tables of a database compress; "" where they all do, else why not."""
    plans = PLANS.get(folder)
    if not plans:
        return "there is nothing to compress here"
    edition = await connection.fetchval(_EDITION)
    if edition is None:
        return "this database has no timescaledb"
    if edition != COMPLETE:
        return f"the {edition} edition of timescaledb has no compression"
    home = await connection.fetchval(TIMESCALE_HOME)
    for table in await connection.fetch(_UNPLANNED, list(plans)):
        refused = await _plan(connection, home, table[0], plans[table[0]])
        if refused:
            log.warning("chunks stay uncompressed", table=table[0], reason=refused)
            return refused
    return ""


async def _plan(connection: asyncpg.Connection, home: str, table: str, plan: Plan) -> str:
    """One table's settings and policy, both or nothing; "", or the server's refusal."""
    try:
        async with connection.transaction():
            await connection.execute(
                f"ALTER TABLE {table} SET (timescaledb.compress,"
                f" timescaledb.compress_orderby = '{plan.orderby}')"
            )
            await connection.execute(
                f"SELECT {home}.add_compression_policy($1::text::regclass,"
                f" compress_after => INTERVAL '{plan.after}', if_not_exists => true)",
                table,
            )
    except asyncpg.PostgresError as error:
        return f"{table}: {error}"
    return ""
