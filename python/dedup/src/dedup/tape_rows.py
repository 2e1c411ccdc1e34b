"""Rows of the merged tape: their numpy layouts and their form in production's tables.

Purpose: the columns of production's four row tables in COPY order, and the native layouts that the
publisher packs and the exporter reads back. Units and flag bits: marketdata/rows.py.

What holds: packing and reading back gives the same rows; a value that does not fit its column is a
StorageError, never cut.

Does not do: talking to a server, choosing rows.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from runtime.pgcopy import CopyLayout

Rows: TypeAlias = npt.NDArray[np.void]

DELTA_COPY: Final = CopyLayout(
    "orderbook_delta",
    [
        ("exchange_ts", "timestamptz"),
        ("received_ns", "bigint"),
        ("delta", "bigint"),
        ("book_hash", "bigint"),
        ("market_id", "integer"),
        ("epoch", "integer"),
        ("market_seq", "integer"),
        ("price", "integer"),
        ("side", "smallint"),
        ("flags", "smallint"),
        ("sources", "smallint"),
    ],
)
SNAPSHOT_COPY: Final = CopyLayout(
    "orderbook_snapshot",
    [
        ("exchange_ts", "timestamptz"),
        ("received_ns", "bigint"),
        ("book_hash", "bigint"),
        ("market_id", "integer"),
        ("epoch", "integer"),
        ("market_seq", "integer"),
        ("sources", "smallint"),
        ("levels", "bytea"),
    ],
)
TRADE_COPY: Final = CopyLayout(
    "trade",
    [
        ("exchange_ts", "timestamptz"),
        ("received_ns", "bigint"),
        ("trade_id", "uuid"),
        ("count", "bigint"),
        ("market_id", "integer"),
        ("yes_price", "integer"),
        ("no_price", "integer"),
        ("taker_side", "smallint"),
        ("flags", "smallint"),
        ("sources", "smallint"),
    ],
)
TICKER_COPY: Final = CopyLayout(
    "ticker",
    [
        ("exchange_ts", "timestamptz"),
        ("received_ns", "bigint"),
        ("payload_key", "bigint"),
        ("volume", "bigint"),
        ("open_interest", "bigint"),
        ("dollar_volume", "bigint"),
        ("dollar_open_interest", "bigint"),
        ("yes_bid_size", "bigint"),
        ("yes_ask_size", "bigint"),
        ("last_trade_size", "bigint"),
        ("market_id", "integer"),
        ("price", "integer"),
        ("yes_bid", "integer"),
        ("yes_ask", "integer"),
        ("sources", "smallint"),
    ],
)

_WIDTHS: Final = {
    "timestamptz": "i8",
    "bigint": "i8",
    "integer": "i4",
    "smallint": "i2",
    "uuid": "V16",
}


def native(layout: CopyLayout) -> np.dtype[np.void]:
    """The native layout of a fixed-width table: times as `..._us`, hashes and keys unsigned."""
    fields: list[tuple[str, str]] = []
    for name, kind in layout.columns:
        if kind == "timestamptz":
            fields.append((name[: -len("_ts")] + "_us", "i8"))
        elif name in ("book_hash", "payload_key"):
            fields.append((name, "u8"))
        else:
            fields.append((name, _WIDTHS[kind]))
    made: np.dtype[np.void] = np.dtype(cast("Any", fields))
    return made


TRADE_ROW: Final = native(TRADE_COPY)
TICKER_ROW: Final = native(TICKER_COPY)
