"""`tape trades`: the public trades of a lake."""

from __future__ import annotations

from itertools import islice
from typing import Annotated, Any, Final, cast

import pyarrow as pa
import typer

from kalshilake import open_lake
from kalshilake.read import OnGap
from kalshilake.tables import times_us, units_of
from marketdata.errors import TapeError
from marketdata.units import format_price, format_size, format_ts_us
from tape.output import guarded, print_rows, terminal, witnesses

ON_GAP: Final = ("raise", "column", "ignore")


def trades(
    lake: Annotated[str, typer.Argument(help="directory or s3://bucket/prefix")],
    market: Annotated[str | None, typer.Argument(help="one market; without it all")] = None,
    start: Annotated[str | None, typer.Option("--from", help="from this moment on (UTC)")] = None,
    end: Annotated[str | None, typer.Option("--to", help="up to this moment (UTC)")] = None,
    on_gap: Annotated[str, typer.Option(help="raise, column or ignore")] = "raise",
    limit: Annotated[int, typer.Option(min=0, help="rows at most; 0: all")] = 50,
    version: Annotated[int | None, typer.Option(help="of the lake; without it the newest")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object a line")] = False,  # noqa: FBT002
    as_csv: Annotated[bool, typer.Option("--csv")] = False,  # noqa: FBT002
) -> None:
    """Print trades; refuses to read over a gap unless told how."""

    def run() -> None:
        found = open_lake(lake, version).trades(market, start, end, on_gap=gap_choice(on_gap))
        rows = list(islice(trade_rows(found), limit or None))
        print_rows(rows, as_json=as_json, as_csv=as_csv, hidden=("trade_id",))
        if not (as_json or as_csv) and len(rows) < found.num_rows:
            terminal().print(f"and {found.num_rows - len(rows)} more trades (--limit)")

    raise typer.Exit(guarded(run))


def gap_choice(text: str) -> OnGap:
    """The value of --on-gap. Raises TapeError for another word."""
    if text not in ON_GAP:
        raise TapeError(f"--on-gap {text!r} is unknown", hint=", ".join(ON_GAP))
    return cast(OnGap, text)


def trade_rows(found: pa.Table) -> Any:
    """Trades as plain rows, one at a time; prices and sizes exact, as text."""
    marked = "coverage" in found.schema.names
    columns = zip(
        times_us(found.column("exchange_ts")).tolist(),
        units_of(found.column("yes_price")).tolist(),
        units_of(found.column("count")).tolist(),
        *(found.column(c).to_pylist() for c in _TEXTS),
        found.column("coverage").to_pylist() if marked else [""] * found.num_rows,
        strict=True,
    )
    for us, price, count, market, taker, block, trade_id, sources, status in columns:
        row = {
            "time": format_ts_us(us),
            "market": market,
            "yes_price": format_price(price),
            "count": format_size(count),
            "taker": taker,
            "block": block,
            "trade_id": trade_id,
            "gatherers": witnesses(sources),
        }
        yield row | {"coverage": status} if marked else row


_TEXTS: Final = ("market_ticker", "taker_side", "is_block_trade", "trade_id", "sources")
