"""A plan told: which connection carries which market and why, as rows for people and programs.

Purpose: one form for a running gatherer's `/plan` and for a plan made of a list (`tape plan`).
Rows in order: one `head` (limits and totals), one for each connection, one for what has no room.
A row of a connection is small enough to be made between two turns of an event loop; the plan may
change between rows.
Invariants: every placed market stands in the row of its connection, and of the one it moves to.
Does not do: layout, HTTP.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Final

from marketdata.plan import NS_PER_S, RATE_S, SUBSCRIPTIONS_PER_SESSION_MAX, Plan, Why

FIELDS: Final = ("market", "event", "why", "frames_per_1000_s", "moved_ns", "moving_to")
"""Of each market in a connection's row, in this order."""


def plan_rows(
    plan: Plan, gatherer: str, own: Mapping[str, tuple[str, ...]]
) -> Iterator[dict[str, Any]]:
    """See the module's text. `own`: connections of channels without a market filter."""
    numbers = plan.connections
    yield {
        "kind": "head",
        "gatherer": gatherer,
        "limits": {**asdict(plan.limits), "exchange_per_connection": SUBSCRIPTIONS_PER_SESSION_MAX},
        "own": {name: list(channels) for name, channels in own.items()},
        "connections": len(numbers),
        "placed": plan.n_placed,
        "moving": len(plan.moving),
        "unplaced": plan.n_unplaced,
    }
    for number in numbers:
        markets = []
        for ticker in plan.carried_by(number):
            place = plan.place_of(ticker)
            if place is not None:
                told = place.event, place.why.value, place.rate, place.moved_ns, place.moving_to
                markets.append([ticker, *told])
        yield {"kind": "connection", "connection": number, "markets": markets}
    yield {"kind": "unplaced", "markets": list(plan.unplaced)}


def why_text(
    number: int, market: Mapping[str, Any], *, wall_minus_monotonic_ns: int | None = None
) -> str:
    """The reason in words. `market`: FIELDS of one market in the row of connection `number`."""
    rate = f"{market['frames_per_1000_s'] // RATE_S} frames/s"
    parts = [str(market["why"])]
    if market["why"] == Why.HOT and market["frames_per_1000_s"]:
        parts[0] += f" at {rate}"
    elif market["frames_per_1000_s"]:
        parts.append(f"hot at {rate}")
    if market["moved_ns"] and wall_minus_monotonic_ns is not None:
        at_s = (market["moved_ns"] + wall_minus_monotonic_ns) // NS_PER_S
        parts.append(f"moved at {datetime.fromtimestamp(at_s, UTC):%Y-%m-%dT%H:%M:%SZ}")
    if market["moving_to"] == number:
        parts.append("arriving here")
    elif market["moving_to"] >= 0:
        parts.append(f"moving to connection {market['moving_to']}")
    return ", ".join(parts)
