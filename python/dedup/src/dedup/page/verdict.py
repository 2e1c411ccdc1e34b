"""Is the tape complete, and if not, where and why: one word, one sentence, and the lines behind it.

Purpose: what an operator must see in two seconds.

What holds:
- `complete` is said only where production was asked, answered, and has no lack in the hours that
  are looked at, every order book of every series, and nothing of the service fails.
- Each line names its place and its reason. The first line is the worst.
- Pure: everything comes in as values.

Does not do: finding out (standing, calendar).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from dedup.page.calendar import Cell, lack_us
from marketdata.units import format_ts_us

Word = Literal["complete", "incomplete", "late", "unknown"]

LATE_MS: Final = 60_000
"""Rows received so long ago and not on the tape: it is late."""
STALE_MS: Final = 60_000
KINDS: Final = ("gap", "quarantined", "disputed", "ambiguous")
LINES_MAX: Final = 20

Hours = Sequence[tuple[int, int, Mapping[str, Cell]]]


def seconds(us: int) -> str:
    """Microseconds in words: tenths of seconds up to a minute, else minutes and hours."""
    if us < 60_000_000:
        return f"{us // 1_000_000}.{us % 1_000_000 // 100_000} s"
    minutes = us // 60_000_000
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def judge(
    health: Mapping[str, Any],
    merge: Mapping[str, Any],
    hours: Hours,
    known: Mapping[str, Any] | None,
    tape_lag_ms: int | None,
    recent: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The verdict. `hours`: of the order books, newest first; `known`: of what they are; None:
    never asked with success. `recent`: marks of the last minutes that forbid `complete`."""
    failing = _failing(health)
    fresh = _recent(recent)
    lacks = _lacks(hours)
    ended = [g.get("state") == "ended" for g in merge.get("gatherers") or []]
    standing = bool(merge.get("finished")) or (bool(ended) and all(ended))
    late = not standing and tape_lag_ms is not None and tape_lag_ms > LATE_MS
    word: Word
    if known is None or known["trouble"] or not hours or (known["age_ms"] > STALE_MS):
        word = "unknown"
    elif fresh or lacks or any(line["weight"] == "failing" for line in failing):
        word = "incomplete"
    else:
        word = "late" if late else "complete"
    lines = [*_unknown(known, hours), *failing, *fresh, *lacks]
    if late:
        why = merge.get("waiting_for") or "behind"
        lines.append(_line("late", "the merge", f"{seconds((tape_lag_ms or 0) * 1000)}: {why}"))
    lines += _interrupted(merge)
    return {"word": word, "sentence": _sentence(word, hours, lines), "lines": lines[:LINES_MAX],
            "lines_left_out": max(0, len(lines) - LINES_MAX)}  # fmt: skip


def _line(
    weight: str, where: str, why: str, *, series: str = "", hour_us: int = 0
) -> dict[str, Any]:
    return {"weight": weight, "where": where, "why": why, "series": series, "hour_us": hour_us}


def _failing(health: Mapping[str, Any]) -> list[dict[str, Any]]:
    parts: Mapping[str, Mapping[str, str]] = health.get("components", {})
    return [
        _line(part["state"], name, part.get("reason") or part["state"])
        for weight in ("failing", "stopping", "starting", "degraded")
        for name, part in sorted(parts.items())
        if part["state"] == weight
    ]


def _unknown(known: Mapping[str, Any] | None, hours: Hours) -> list[dict[str, Any]]:
    if known is None:
        return [_line("failing", "production", "coverage was never read")]
    if known["trouble"]:
        why = (
            f"does not answer: {known['trouble']}; numbers of {seconds(known['age_ms'] * 1000)} ago"
        )
        return [_line("failing", "production", why)]
    if known["age_ms"] > STALE_MS:
        why = f"coverage is {seconds(known['age_ms'] * 1000)} old"
        return [_line("degraded", "production", why)]
    if not hours:
        return [_line("starting", "the tape", "no window has closed yet")]
    return []


def _lacks(hours: Hours) -> list[dict[str, Any]]:
    found = [
        (lack_us(cell.us), series, hour_us, cell)
        for hour_us, _, cells in hours
        for series, cell in cells.items()
        if cell.lacking
    ]
    found.sort(key=lambda item: (-item[0], -item[2], item[1]))
    return [
        _line(
            "incomplete", f"{series} {format_ts_us(hour_us)[:13]}h",
            f"{cell.lacking} of {cell.markets} order books lack {seconds(lack)} in all",
            series=series, hour_us=hour_us,
        )
        for lack, series, hour_us, cell in found
    ]  # fmt: skip


def _recent(gaps: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """By kind and reason; a gap is worse than a doubt."""
    kinds: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for gap in gaps:
        kinds.setdefault((gap["kind"], gap["reason"]), []).append(gap)
    found = []
    for (kind, reason), of in sorted(kinds.items(), key=lambda item: KINDS.index(item[0][0])):
        markets = {gap["market"] for gap in of}
        last = max(of, key=lambda gap: (gap["to_us"], gap["market"]))
        where = f"{len(markets)} order books" if len(markets) > 1 else last["market"]
        times = f"{len(of)} times, last" if len(of) > 1 else "to"
        at = f"{times} {format_ts_us(last['to_us'])[11:19]}Z"
        more = f" ({last['market']})" if len(markets) > 1 else ""
        found.append(_line("incomplete", where, f"{kind}, {reason}: {at}{more}"))
    return found


def _interrupted(merge: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Channels in which a gatherer has less in sequence than a moment ago."""
    told: Sequence[Mapping[str, Any]] = merge.get("seen", {}).get("gatherers", [])
    found = []
    for of in told:
        for name, channel in of["channels"].items():
            now, peak = channel["in_sequence"], channel["in_sequence_of_late"]
            if now < peak and not of["ended"]:
                where = f"gatherer {of['gatherer'] + 1} {name}"
                found.append(_line("degraded", where, f"{now} of {peak} subscriptions in sequence"))
    return found


def _sentence(word: Word, hours: Hours, lines: Sequence[Mapping[str, Any]]) -> str:
    if word == "unknown":
        return f"Not known: {lines[0]['where']}: {lines[0]['why']}"
    since = format_ts_us(hours[-1][0])[:16]
    if word == "complete":
        return f"Every order book of the tape is complete since {since}Z."
    if word == "late":
        return f"Complete since {since}Z as far as it is merged; the merge is late."
    first = lines[0]
    return f"{first['where']}: {first['why']}" + (
        f" and {len(lines) - 1} more" if lines[1:] else ""
    )
