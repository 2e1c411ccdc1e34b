"""`tape book`: the ladder of one market at one moment."""

from __future__ import annotations

import json
import sys
from itertools import accumulate
from typing import Annotated, Any, Final

import typer
from rich.table import Table

from kalshilake import BookView, open_lake
from marketdata.book import Level
from marketdata.units import format_price, format_size, format_ts_us
from tape.output import guarded, terminal, witnesses
from tape.trades import gap_choice

ALL_LEVELS: Final = 0


def book(
    lake: Annotated[str, typer.Argument(help="directory or s3://bucket/prefix")],
    market: Annotated[str, typer.Argument(help="ticker of the market")],
    at: Annotated[str | None, typer.Option(help="moment (UTC); without it the last proven")] = None,
    depth: Annotated[int, typer.Option(min=0, help="levels of each side; 0: all")] = 10,
    on_gap: Annotated[str, typer.Option(help="raise, column or ignore")] = "raise",
    version: Annotated[int | None, typer.Option(help="of the lake; without it the newest")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object")] = False,  # noqa: FBT002
) -> None:
    """Print the order book: offers of YES (from NO bids) above bids for YES."""

    def run() -> None:
        view = open_lake(lake, version).book(market, at, on_gap=gap_choice(on_gap))
        if as_json:
            sys.stdout.write(json.dumps(book_row(view)) + "\n")
        else:
            _print_ladder(view, depth)

    raise typer.Exit(guarded(run))


def book_row(view: BookView) -> dict[str, Any]:
    """The whole view as a plain row; prices and sizes exact, as text."""

    def plain(levels: tuple[Level, ...]) -> list[list[str]]:
        return [[format_price(price), format_size(size)] for price, size in levels]

    return {
        "market": view.market,
        "at": format_ts_us(view.at_us),
        "status": view.status,
        "complete": view.complete,
        "gatherers": witnesses(view.sources),
        "epoch": view.epoch,
        "market_seq": view.market_seq,
        "book_hash": f"{view.book_hash:016x}",
        "yes_bids": plain(view.yes_bids),
        "yes_asks": plain(view.yes_asks),
        "no_bids": plain(view.no_bids),
    }


def ladder(view: BookView, depth: int) -> list[tuple[str, str, str, str]]:
    """(side, price, size, cumulated size) from the highest offer down to the lowest bid shown."""
    asks, bids = (_cumulated(levels, depth) for levels in (view.yes_asks, view.yes_bids))
    return [("ask", *row) for row in reversed(asks)] + [("bid", *row) for row in bids]


def _cumulated(levels: tuple[Level, ...], depth: int) -> list[tuple[str, str, str]]:
    shown = levels[:depth] if depth != ALL_LEVELS else levels
    totals = accumulate(size for _, size in shown)
    return [
        (format_price(price), format_size(size), format_size(total))
        for (price, size), total in zip(shown, totals, strict=True)
    ]


def _print_ladder(view: BookView, depth: int) -> None:
    console = terminal()
    proof = view.status
    if view.complete:
        proof += f", proven by gatherers {witnesses(view.sources)}"
    console.print(f"{view.market}  {format_ts_us(view.at_us)}  {proof}")
    table = Table(box=None, pad_edge=False)
    table.add_column("YES")
    for name in ("price", "size", "cumulated"):
        table.add_column(name, justify="right")
    rows = ladder(view, depth)
    asks = sum(side == "ask" for side, *_ in rows)
    for i, row in enumerate(rows):
        style = "red" if row[0] == "ask" else "green"
        table.add_row(*row, style=style, end_section=i == asks - 1)
    console.print(table)
    bid, ask = view.best_yes_bid, view.best_yes_ask
    spread = f"spread {format_price(ask[0] - bid[0])}" if bid and ask else "no spread"
    hidden = max(0, len(view.yes_bids) - depth) + max(0, len(view.no_bids) - depth) if depth else 0
    more = f", {hidden} more levels (--depth 0)" if hidden else ""
    console.print(
        f"{spread}{more}; epoch {view.epoch}, event {view.market_seq}, hash {view.book_hash:016x}"
    )
