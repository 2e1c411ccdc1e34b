"""`tape plan`: which connection carries which market, and why.

Purpose: explain the plan of a running gatherer (its `/plan`), or the plan that a gatherer of some
name would make of a list of markets, before anything is connected.
Does not do: planning (marketdata.plan), changing a running plan.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import aiohttp
import typer

from marketdata.errors import ConfigError
from marketdata.plan import RATE_S, Limits, MarketRef, Plan, own_connections
from marketdata.plan_rows import FIELDS, plan_rows, why_text
from marketdata.selection import event_of
from tape.output import EXIT_FOUND, guarded, print_rows

URL: Final = "http://127.0.0.1:8080"
ANSWER_WITHIN_S: Final = 60.0
MARKETS_PER_EVENT: Final = 5
HOTTEST_PER_S: Final = 500
"""Frames of the first of made-up markets; the n-th has an n-th of it."""

Rows = Iterable[Mapping[str, Any]]


def plan(
    url: Annotated[str, typer.Option(help="health address of a running gatherer")] = URL,
    markets: Annotated[
        Path | None,
        typer.Option(help="instead: a list, `TICKER [EVENT [FRAMES_PER_S]]` a line; -: stdin"),
    ] = None,
    synthetic: Annotated[int, typer.Option(min=0, help="instead: so many made-up markets")] = 0,
    gatherer: Annotated[str, typer.Option(help="whose plan of a list")] = "g1",
    per_connection: Annotated[int, typer.Option(help="markets of one connection")] = 2_000,
    connections: Annotated[int, typer.Option(help="connections for books")] = 60,
    market: Annotated[str | None, typer.Option(help="explain this one")] = None,
    totals: Annotated[bool, typer.Option("--totals", help="connections only")] = False,  # noqa: FBT002
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object a line")] = False,  # noqa: FBT002
) -> None:
    """Which connection carries which market, and why."""

    def run() -> int:
        rows: Rows
        if markets is not None or synthetic:
            found = read_markets(markets) if markets is not None else made_up(synthetic)
            rows = planned(found, gatherer, _limits(per_connection, connections))
        else:
            rows = asyncio.run(_ask(url))
        return told(rows, market=market, totals=totals, as_json=as_json)

    raise typer.Exit(guarded(run))


def _limits(per_connection: int, connections: int) -> Limits:
    try:
        return Limits(per_connection, connections)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def read_markets(path: Path) -> list[tuple[MarketRef, int]]:
    """Markets and their frames per RATE_S seconds. Raises ConfigError naming the line."""
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].replace(",", " ").split()
        if not words:
            continue
        rate = words[2] if len(words) > 2 else "0"
        if len(words) > 3 or not (rate.isascii() and rate.isdigit()):
            raise ConfigError(
                f"{path}, line {number}: {line.strip()[:80]!r} is no market",
                hint="TICKER, then its event, then whole frames a second, if they are known",
            )
        event = words[1] if len(words) > 1 else event_of(words[0])
        found.append((MarketRef(words[0], event), int(rate) * RATE_S))
    return found


def made_up(count: int) -> list[tuple[MarketRef, int]]:
    """Made-up markets, five an event, few of them busy."""
    found = []
    for n in range(count):
        event = f"KXSYN-E{n // MARKETS_PER_EVENT:06d}"
        ticker = f"{event}-T{n % MARKETS_PER_EVENT}"
        found.append((MarketRef(ticker, event), HOTTEST_PER_S * RATE_S // (n + 1)))
    return found


def planned(found: list[tuple[MarketRef, int]], gatherer: str, limits: Limits) -> Rows:
    """The rows of the plan that a gatherer of this name makes of them at its start."""
    made = Plan(gatherer, limits)
    made.place((ref for ref, _ in found), {ref.ticker: rate for ref, rate in found})
    return plan_rows(made, gatherer, own_connections(combos=False))


async def _ask(url: str) -> list[Mapping[str, Any]]:
    """The rows of a running gatherer."""
    address = f"{url.rstrip('/')}/plan"
    timeout = aiohttp.ClientTimeout(total=ANSWER_WITHIN_S)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as http,
            http.get(address) as answer,
        ):
            if answer.status != 200:
                raise ConfigError(
                    f"{address} answers {answer.status}",
                    hint="only one process of a gatherer tells its plan; with several feed"
                    " processes ask each one's own port, or plan a list with --markets",
                )
            return [json.loads(line) for line in (await answer.text()).splitlines()]
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
        raise ConfigError(
            f"{address} does not tell a plan: {error or type(error).__name__}",
            hint="give --url of a running gatherer, or a list with --markets FILE",
        ) from None


def told(rows: Rows, *, market: str | None, totals: bool, as_json: bool) -> int:
    """Print it; the exit code."""
    head: Mapping[str, Any] = {}
    lines: list[dict[str, Any]] = []
    sums: list[dict[str, Any]] = []
    unplaced: list[str] = []
    for row in rows:
        if row["kind"] == "head":
            head = row
        elif row["kind"] == "unplaced":
            unplaced = list(row["markets"])
        else:
            mine = list(_market_lines(row, head))
            sums.append(_sums(row, head["limits"]["markets_per_connection"]))
            lines += mine if market is None else [m for m in mine if m["market"] == market]
    if market is not None:
        return _explain(market, lines, unplaced, as_json=as_json)
    if not totals:
        lines += [{"connection": "", "market": t, "event": "", "why": "no room"} for t in unplaced]
        print_rows(lines, as_json=as_json, as_csv=False)
    print_rows(sums, as_json=as_json, as_csv=False)
    if not as_json:
        sys.stdout.write(_closing(head))
    return EXIT_FOUND if unplaced else 0


def _market_lines(row: Mapping[str, Any], head: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    number, offset_ns = row["connection"], head.get("wall_minus_monotonic_ns")
    for values in row["markets"]:
        held = dict(zip(FIELDS, values, strict=True))
        why = why_text(number, held, wall_minus_monotonic_ns=offset_ns)
        yield {"connection": f"books-{number}", "market": held["market"], "event": held["event"],
               "why": why}  # fmt: skip


def _sums(row: Mapping[str, Any], limit: int) -> dict[str, Any]:
    held = [dict(zip(FIELDS, values, strict=True)) for values in row["markets"]]
    rates = [market["frames_per_1000_s"] for market in held if market["frames_per_1000_s"]]
    return {
        "connection": f"books-{row['connection']}",
        "markets": len(held),
        "room": limit - len(held),
        "events": len({market["event"] for market in held}),
        "hot": len(rates),
        "hot frames/s": sum(rates) // RATE_S,
    }


def _explain(
    market: str, lines: list[dict[str, Any]], unplaced: list[str], *, as_json: bool
) -> int:
    if market in unplaced:
        sys.stdout.write(f"{market}: no connection has room for it\n")
        return EXIT_FOUND
    if not lines:
        sys.stdout.write(f"{market}: not in the plan\n")
        return EXIT_FOUND
    if as_json:
        print_rows(lines, as_json=True, as_csv=False)
        return 0
    for line in lines:
        where, event, why = line["connection"], line["event"], line["why"]
        sys.stdout.write(f"{market}: on {where}, event {event}: {why}\n")
    return 0


def _closing(head: Mapping[str, Any]) -> str:
    limits, own = head["limits"], head["own"]
    beside = ", ".join(f"{name} ({', '.join(channels)})" for name, channels in own.items())
    return (
        f"{head['gatherer']}: {head['placed']:,} markets on {head['connections']} connections of at"
        f" most {limits['connections_max']} with {limits['markets_per_connection']:,} each"
        f" (the exchange takes {limits['exchange_per_connection']:,});"
        f" {head['moving']} on their way, {head['unplaced']:,} without room\n"
        f"connections of their own: {beside}\n"
    )
