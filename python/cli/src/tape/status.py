"""`tape status`: how the fleet stands now, in one look.

Purpose: what an operator asks first: does the merge go on, who is behind and in which channel, how
many gatherers saw each event, what was kept aside and why, where the last day has gaps. From the
deduplicator's /status and /health, from the /health of gatherers, and from production.
Does not do: coverage of an interval (`tape coverage`), changing anything.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

import aiohttp
import asyncpg
import typer

from marketdata.errors import ConfigError, StorageError
from marketdata.units import format_ts_us
from runtime.postgres import TRANSIENT, Connection, connect
from tape.output import EXIT_FOUND, guarded, print_rows, terminal, witnesses

URL: Final = "http://127.0.0.1:8080"
ANSWER_WITHIN_S: Final = 10.0
DAY_US: Final = 86_400_000_000
MARKETS_SHOWN: Final = 20
"""Markets named in a list of gaps, those with the longest first."""

Row = dict[str, Any]
Rows = list[Row]


def status(
    url: Annotated[str, typer.Option(help="health address of the deduplicator")] = URL,
    gatherer: Annotated[
        list[str] | None, typer.Option(help="health address of a gatherer; may be repeated")
    ] = None,
    production: Annotated[
        str | None,
        typer.Option(
            help="connection string: what was kept aside, gaps", envvar="KT_PRODUCTION_DSN"
        ),
    ] = None,
    market: Annotated[
        str | None, typer.Option(help="who saw this market's events (needs --production)")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object")] = False,  # noqa: FBT002
) -> None:
    """Lag, witnesses, what was kept aside, gaps of the last day. Exit code 1: something fails."""

    def run() -> int:
        if market is not None and production is None:
            raise ConfigError(
                "--market needs --production", hint="its rows are there, not in /status"
            )
        found = asyncio.run(_look(url, gatherer or [], production, market))
        if as_json:
            sys.stdout.write(json.dumps(found) + "\n")
        else:
            _tell(found)
        return EXIT_FOUND if found["failing"] else 0

    raise typer.Exit(guarded(run))


async def _look(
    url: str, gatherers: Sequence[str], production: str | None, market: str | None
) -> Row:
    """Everything that was asked for. A gatherer that does not answer is a line, not an end."""
    timeout = aiohttp.ClientTimeout(total=ANSWER_WITHIN_S)
    async with aiohttp.ClientSession(timeout=timeout) as http:
        merge = await _ask(http, url, "status")
        if isinstance(merge, str):
            raise ConfigError(
                f"{url} does not tell a status: {merge}", hint="give --url of the deduplicator"
            )
        health = await _ask(http, url, "health")
        told = [(each, await _ask(http, each, "health")) for each in gatherers]
    found: Row = {
        "merge": merge,
        "reasons": reasons("deduplicator", health),
        "channels": [row for each, health in told for row in channels(each, health)],
    }
    for each, of_it in told:
        found["reasons"] += reasons(each, of_it)
    found["failing"] = any(row["state"] == "failing" for row in found["reasons"])
    if production is not None:
        found.update(await _production(production, int(merge["closed_to_us"]), market))
    return found


async def _ask(http: aiohttp.ClientSession, url: str, what: str) -> Row | str:
    """The answer's body, or why there is none."""
    try:
        async with http.get(f"{url.rstrip('/')}/{what}") as answer:
            body = json.loads(await answer.text())
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
        return str(error) or type(error).__name__
    return body if isinstance(body, dict) else f"{what} is no object"


def reasons(who: str, health: Row | str) -> Rows:
    """Every component that is not well, in its own words."""
    if isinstance(health, str):
        return [{"who": who, "part": "health", "state": "failing", "reason": health}]
    parts: Mapping[str, Mapping[str, str]] = health.get("components", {})
    return [
        {"who": who, "part": name, "state": part["state"], "reason": part.get("reason", "")}
        for name, part in sorted(parts.items())
        if part["state"] != "ok"
    ]


def channels(who: str, health: Row | str) -> Rows:
    """A gatherer's channels: what is covered, how far its database is behind."""
    if isinstance(health, str):
        return []
    detail = health.get("detail", {})
    return [
        {
            "gatherer": who,
            "channel": name,
            "covered": of["covered"],
            "to cover": of["to_cover"],
            "missing": of.get("missing", 0),
            "oldest proof s": _seconds(of.get("oldest_proof_ms")),
            "lag s": _seconds(detail.get("lag_ms")),
        }
        for name, of in detail.get("channels", {}).items()
    ]


def merged(merge: Row) -> Rows:
    """The gatherers as the deduplicator reads them."""
    return [
        {
            "gatherer": g["gatherer"] + 1,
            "state": g["state"],
            "lag s": _seconds(g["lag_ms"]),
            "batches behind": g["batches_behind"],
            "rows": g["rows"],
            "errors": g["errors"],
            "reason": g["reason"],
        }
        for g in merge["gatherers"]
    ]


MERGER: Final = ("windows", "closed_to", "rows_merged", "rows_merged_per_s", "waiting_for")


def mergers(merge: Row) -> Rows:
    """The processes that share the markets, where one service has several (docs/mergers.md)."""
    silent: Row = {"waiting_for": "does not answer"}
    return [
        {"merger": number, **{name: (told or silent).get(name) for name in MERGER}}
        for number, told in enumerate(merge.get("mergers", ()), 1)
    ]


def suspected(merge: Row) -> Rows:
    """Gatherers that the others contradicted, since the tape began: any line is an alert."""
    return [
        {"gatherer": g["gatherer"] + 1, "reason": reason, "runs": runs}
        for g in merge["gatherers"]
        for reason, runs in g.get("suspect", {}).items()
    ]


def exchange(merge: Row) -> Rows:
    """What was seen of the exchange: how pairs of gatherers compare, whether replies stand."""
    told: Mapping[str, Any] = merge.get("exchange", {})
    rows = [
        {
            "gatherers": "-".join(str(int(g) + 1) for g in name.split("-")),
            "mode": pair["mode"],
            "compared": pair["compared"],
            "equal times": pair["equal_us"],
            "apart us at most": pair["apart_us_max"],
            "other order": pair["other_order"],
        }
        for name, pair in told.get("pairs", {}).items()
    ]
    replies = told.get("replies", {})
    if any(replies.get(n) for n in ("agreed", "quiet", "differed", "unknown")):
        rows.append(
            {
                "gatherers": "get_snapshot",
                "mode": "proven" if replies["proven"] else "unproven",
                "compared": replies["agreed"] + replies["differed"],
                "equal times": replies["agreed"],
                "apart us at most": None,
                "other order": replies["differed"],
            }
        )
    return rows


def seen_by(merge: Row) -> Rows:
    """Events by the number of gatherers that saw them."""
    told: Mapping[str, int] = merge["witnesses"]
    total = sum(told.values())
    return [
        {"seen by": int(n), "events": count, "per mille": 1000 * count // total}
        for n, count in sorted(told.items(), key=lambda item: int(item[0]))
        if total
    ]


def _seconds(ms: int | None) -> str | None:
    return None if ms is None else f"{ms // 1000}.{ms % 1000 // 100}"


# --- production


_QUARANTINE: Final = """
SELECT gatherer, reason, count(*) AS stretches, sum(n_rows)::bigint AS rows,
    count(DISTINCT market_id) AS markets, max(to_us) AS last_us
FROM quarantine WHERE to_us > $1 GROUP BY 1, 2 ORDER BY rows DESC
"""
_GAPS: Final = """
SELECT kind, count(*) AS gaps, count(DISTINCT market_id) AS markets,
    sum(to_us - from_us)::bigint AS us, max(to_us) AS last_us
FROM gap WHERE to_us > $1 GROUP BY 1 ORDER BY gaps DESC
"""
_WORST: Final = """
SELECT ticker, count(*) AS gaps, sum(to_us - from_us)::bigint AS us
FROM gap JOIN market USING (market_id) WHERE to_us > $1 GROUP BY 1 ORDER BY us DESC, 1 LIMIT $2
"""
_WITNESSES: Final = """
SELECT sources, count(*) AS events, max(exchange_ts) AS last
FROM orderbook_delta JOIN market USING (market_id)
WHERE ticker = $1 AND exchange_ts > to_timestamp($2) GROUP BY 1 ORDER BY 2 DESC
"""


async def _production(dsn: str, closed_to_us: int, market: str | None) -> Row:
    """What production alone knows, of the last day of the tape."""
    from_us = closed_to_us - DAY_US
    conn = await connect(dsn, tries_max=1, default_transaction_read_only="on")
    try:
        return await _day(conn, from_us, market)
    except (asyncpg.PostgresError, *TRANSIENT) as error:
        raise StorageError(
            f"production cannot be read: {type(error).__name__}: {error}",
            hint="is it the deduplicator's database, and may this user read it?",
        ) from None
    finally:
        conn.terminate()


async def _day(conn: Connection, from_us: int, market: str | None) -> Row:
    aside = await conn.fetch(_QUARANTINE, from_us)
    gaps = await conn.fetch(_GAPS, from_us)
    worst = await conn.fetch(_WORST, from_us, MARKETS_SHOWN)
    found: Row = {
        "kept_aside": [
            {
                "gatherer": r["gatherer"] + 1,
                "reason": r["reason"],
                "rows": r["rows"],
                "stretches": r["stretches"],
                "markets": r["markets"],
                "last": format_ts_us(r["last_us"]),
            }
            for r in aside
        ],
        "gaps": [
            {
                "kind": r["kind"],
                "gaps": r["gaps"],
                "markets": r["markets"],
                "seconds": r["us"] // 1_000_000,
                "last": format_ts_us(r["last_us"]),
            }
            for r in gaps
        ],
        "worst": [
            {"market": r["ticker"], "gaps": r["gaps"], "seconds": r["us"] // 1_000_000}
            for r in worst
        ],
    }
    if market is not None:
        if not await conn.fetchval("SELECT count(*) FROM market WHERE ticker = $1", market):
            raise ConfigError(f"{market} is not on the tape", hint="tape coverage lists markets")
        seen = await conn.fetch(_WITNESSES, market, max(0, from_us // 1_000_000))
        found["market"] = [
            {"market": market, "seen by": witnesses(r["sources"]), "events": r["events"],
             "last": r["last"].isoformat()}
            for r in seen
        ]  # fmt: skip
    return found


# --- telling


def headline(merge: Row) -> str:
    """The merge in one line."""
    waits = f", waiting: {merge['waiting_for']}" if merge["waiting_for"] else ""
    return (
        f"merge {merge['state']}: {merge['rows_merged']:,} events of {merge['markets']:,} markets,"
        f" {merge['rows_merged_per_s']:,}/s now ({merge['rows_read_per_s']:,} rows/s read),"
        f" closed to {merge['closed_to'] or 'nothing yet'}{waits}; audits {merge['audits']:,},"
        f" failed {merge['audits_failed']:,}; kept aside {merge['quarantined']:,} rows;"
        f" lake version {merge['lake']['version']}"
    )


def _tell(found: Row) -> None:
    screen = terminal()
    screen.print(headline(found["merge"]))
    parts: list[tuple[str, Rows]] = [
        ("not well", found["reasons"]),
        ("gatherers", merged(found["merge"])),
        ("mergers", mergers(found["merge"])),
        ("contradicted by the other gatherers", suspected(found["merge"])),
        ("the exchange as seen", exchange(found["merge"])),
        ("channels", found["channels"]),
        ("witnesses", seen_by(found["merge"])),
        ("kept aside in the last day", found.get("kept_aside", [])),
        ("gaps of the last day", found.get("gaps", [])),
        ("markets with the longest gaps", found.get("worst", [])),
        ("who saw it", found.get("market", [])),
    ]
    for title, rows in parts:
        if rows:
            sys.stdout.write(f"\n{title}\n")
            print_rows(rows, as_json=False, as_csv=False)
