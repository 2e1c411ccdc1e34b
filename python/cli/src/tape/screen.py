"""The live screen of the demo and of a capture: rates, lag, gaps, witnesses, completeness.

On a terminal a rich live table, in a log one plain line every few seconds. It only shows what the
services say of themselves on their health ports; the proof at the end does not rest on it. A
capture has no simulated exchange to ask: its first line tells what is subscribed instead.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tape.fleet import Fleet

REFRESH_S = 0.5
PLAIN_EVERY_S = 5.0
POLL_TIMEOUT_S = 2.0


@dataclass(slots=True)
class Readings:
    """The newest answers of the services. An unreachable one keeps {"state": "down"}."""

    exchange: dict[str, Any] = field(default_factory=dict)
    gatherers: dict[str, dict[str, Any]] = field(default_factory=dict)
    dedup: dict[str, Any] = field(default_factory=dict)
    kills: int = 0
    phase: str = "starting"

    @property
    def progress(self) -> float:
        """Share of the exchange's play that is over, 0 to 1."""
        done = int(self.exchange.get("virtual_us", 0)) - int(self.exchange.get("start_us", 0))
        whole = int(self.exchange.get("end_us", 0)) - int(self.exchange.get("start_us", 0))
        return min(1.0, max(0.0, done / whole)) if whole > 0 else 0.0


async def _json(http: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    try:
        async with http.get(url) as answer:
            body = await answer.json(content_type=None)
            return body if isinstance(body, dict) else {"state": "odd answer"}
    except (aiohttp.ClientError, TimeoutError, ValueError, OSError):
        return {"state": "down"}


async def answers(http: aiohttp.ClientSession, url: str) -> bool:
    """True if a service answers at all, healthy or not."""
    return (await _json(http, url)).get("state") != "down"


async def poll(fleet: Fleet[Any], http: aiohttp.ClientSession, readings: Readings) -> None:
    """Ask every service once."""
    paths = {"exchange": "/sim/status", "dedup": "/status"}
    paths |= dict.fromkeys(fleet.gatherer_names, "/health")
    there = [name for name in paths if name in fleet.ports]
    told = await asyncio.gather(*(_json(http, fleet.url(n, paths[n])) for n in there))
    answers = dict(zip(there, told, strict=True))
    if answers.get("exchange", {"state": "down"}).get("state") != "down":
        readings.exchange = answers["exchange"]
    readings.gatherers = {n: answers[n] for n in fleet.gatherer_names if n in answers}
    readings.dedup = answers.get("dedup", readings.dedup)


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value if value is not None else "-")


def _row(name: str, says: dict[str, Any]) -> list[str]:
    numbers = says.get("detail", says)
    return [
        name,
        str(says.get("state", says.get("status", "-"))),
        _number(numbers.get("frames")),
        _number(numbers.get("rows_committed")),
        _number(numbers.get("gaps")),
        _number(numbers.get("connections")),
        _number(numbers.get("lag_ms")),
    ]


def render(readings: Readings, seconds: float) -> Group:
    """The screen as rich parts."""
    table = Table(expand=True, title_justify="left")
    for column in ("part", "state", "frames", "rows", "gaps", "connections", "lag ms"):
        table.add_column(column, justify="left" if column in ("part", "state") else "right")
    for name, says in readings.gatherers.items():
        table.add_row(*_row(name, says))
    merged = Table(expand=True)
    for column in (
        "merged",
        "duplicates",
        "quarantined",
        "gaps",
        "witnesses",
        "complete",
        "waiting for",
    ):
        merged.add_column(column, justify="right")
    d = readings.dedup
    merged.add_row(
        _number(d.get("rows_merged")), _number(d.get("duplicates")), _number(d.get("quarantined")),
        _number(d.get("gaps")), _number(d.get("witnesses")), _number(d.get("complete_share")),
        str(d.get("waiting_for", "-"))[:40],
    )  # fmt: skip
    e = readings.exchange
    if e:
        head = Group(
            Text(
                f"{readings.phase} · {seconds:.0f} s · exchange {_number(e.get('events'))} of "
                f"{_number(e.get('events_expected'))} events, {_number(e.get('conns'))}"
                f" connections, faults {e.get('faults', '-')}, kills {readings.kills}"
            ),
            ProgressBar(total=1.0, completed=readings.progress),
        )
    else:
        head = Group(Text(f"{readings.phase} · {seconds:.0f} s · {_subscribed(readings)}"))
    return Group(Panel(head, title="Kalshi Tape"), table, merged)


def _subscribed(readings: Readings) -> str:
    """What the gatherers hear, and what is wrong, in words."""
    details = [g["detail"] for g in readings.gatherers.values() if "detail" in g]
    if not details:
        return "no gatherer answers"
    books = max(int(d.get("books_subscribed") or 0) for d in details)
    open_now = max(int(d.get("markets") or 0) for d in details)
    reasons = [reason for g in readings.gatherers.values() for reason in g.get("reasons", [])]
    told = f"{books:,} of {open_now:,} open markets' books subscribed"
    return told + (f"; {reasons[0]}" if reasons else "")


def plain_line(readings: Readings, seconds: float) -> str:
    """The same as one line for a log."""
    rows = sum(
        int(g.get("detail", g).get("rows_committed") or 0) for g in readings.gatherers.values()
    )
    if not readings.exchange:
        return (
            f"{seconds:6.1f} s  {readings.phase}: {_subscribed(readings)}; committed {rows:,} rows;"
            f" merged {_number(readings.dedup.get('rows_merged'))}"
        )
    return (
        f"{seconds:6.1f} s  {readings.phase}: exchange {readings.progress:.0%}, "
        f"{_number(readings.exchange.get('events'))} events; gatherers committed {rows:,} rows; "
        f"merged {_number(readings.dedup.get('rows_merged'))}; kills {readings.kills}"
    )


async def show(
    fleet: Fleet[Any], readings: Readings, console: Console, stop: asyncio.Event
) -> None:
    """Poll and draw until `stop` is set."""
    begun, said = time.monotonic(), 0.0
    timeout = aiohttp.ClientTimeout(total=POLL_TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout) as http:
        live = Live(console=console, refresh_per_second=4) if console.is_terminal else None
        if live is not None:
            live.start()
        try:
            while not stop.is_set():
                await poll(fleet, http, readings)
                seconds = time.monotonic() - begun
                if live is not None:
                    live.update(render(readings, seconds))
                elif seconds - said >= PLAIN_EVERY_S:
                    said = seconds
                    console.print(plain_line(readings, seconds), highlight=False, soft_wrap=True)
                try:
                    await asyncio.wait_for(stop.wait(), REFRESH_S)
                except TimeoutError:
                    continue
        finally:
            if live is not None:
                live.stop()
