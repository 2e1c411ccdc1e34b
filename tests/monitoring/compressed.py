"""Alert rules whose time runs faster, so that an hour of them passes in minutes.

Pure. `compressed` divides by one factor: how often rules are evaluated, `for:`, every range and
every offset of an expression, the horizon of predict_linear, and the thresholds of metrics that are
ages (AGES). Nothing else changes: counts, bytes, states, and the offset of a clock, which is no
length of time that passes. `skeleton` is what of a file no factor may change.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any, Final

PREFIX: Final = "kalshi_tape_"
AGES: Final = (
    "oldest_proof_seconds",
    "gatherer_lag_seconds",
    "watermark_age_seconds",
    "rest_trades_behind_seconds",
)
"""Metrics that grow by a second a second while something is wrong."""
UNIT_MS: Final = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_DURATION: Final = r"\d+(?:ms|[smhd])"
_RANGE: Final = re.compile(rf"\[({_DURATION})\]")
_OFFSET: Final = re.compile(rf"(?<=\boffset )({_DURATION})\b")
_HORIZON: Final = re.compile(r"(?<=\], )([\d.]+)(?: \* (\d+))?(?=\))")
_AGE: Final = re.compile(rf"(?<=\b)({PREFIX}(?:{'|'.join(AGES)})) > ([\d.]+)\b")


def milliseconds(duration: str) -> int:
    """A duration as Prometheus writes it, of one unit."""
    unit = duration.lstrip("0123456789")
    return int(duration.removesuffix(unit)) * UNIT_MS[unit]


def _each(expression: str, length: Callable[[int], str], number: Callable[[float], str]) -> str:
    """The expression with every length (in ms) and every number of seconds replaced."""
    found = _RANGE.sub(lambda m: f"[{length(milliseconds(m[1]))}]", expression)
    found = _OFFSET.sub(lambda m: length(milliseconds(m[1])), found)
    found = _HORIZON.sub(lambda m: number(float(m[1]) * int(m[2] or 1)), found)
    return _AGE.sub(lambda m: f"{m[1]} > {number(float(m[2]))}", found)


def _changed(
    rules: dict[str, Any], length: Callable[[int], str], number: Callable[[float], str]
) -> dict[str, Any]:
    made = copy.deepcopy(rules)
    for group in made["groups"]:
        group["interval"] = length(milliseconds(group["interval"]))
        for rule in group["rules"]:
            rule["expr"] = _each(rule["expr"], length, number)
            if "for" in rule:
                rule["for"] = length(milliseconds(rule["for"]))
    return made


def compressed(rules: dict[str, Any], factor: int) -> dict[str, Any]:
    """The same rules, `factor` times as fast. Lengths are rounded to a millisecond."""
    assert factor >= 1, factor

    def number(seconds: float) -> str:
        return f"{seconds / factor:.9g}"

    return _changed(rules, lambda ms: f"{max(1, round(ms / factor))}ms", number)


def skeleton(rules: dict[str, Any]) -> dict[str, Any]:
    """The rules without any length of time: what compression may not change."""
    return _changed(rules, lambda _ms: "T", lambda _s: "N")
