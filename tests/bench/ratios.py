"""Medians of alternated rounds, ratios, targets and their verdicts. Pure.

A ratio is taken inside each round and then the median over the rounds: what else runs on the
machine changes from minute to minute, but hits both sides of one round about alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Literal

Round = Mapping[str, Mapping[str, float]]
"""Case -> measured quantity -> value, of one round."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a value is held against."""

    kind: Literal["at least", "at most"]
    value: float

    def met(self, seen: float) -> bool:
        """Whether the value keeps the target."""
        return seen >= self.value if self.kind == "at least" else seen <= self.value

    def __str__(self) -> str:
        return f"{self.kind} {self.value:g}"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the answer."""

    section: str
    name: str
    value: float
    unit: str
    target: Target | None = None
    spread: tuple[float, float] | None = None  # smallest and largest of the rounds

    @property
    def verdict(self) -> str:
        """met, NOT MET, or nothing without a target."""
        if self.target is None:
            return ""
        return "met" if self.target.met(self.value) else "NOT MET"

    def record(self) -> dict[str, Any]:
        """JSON form."""
        return {**asdict(self), "verdict": self.verdict}


def of_rounds(rounds: Sequence[Round], case: str, quantity: str) -> list[float]:
    """The quantity of a case in each round."""
    return [r[case][quantity] for r in rounds]


def ratios(rounds: Sequence[Round], case: str, base: str, quantity: str) -> list[float]:
    """case / base of one quantity, round by round."""
    return [r[case][quantity] / r[base][quantity] for r in rounds]


def line(
    section: str, name: str, seen: Sequence[float], unit: str, target: Target | None = None
) -> Line:
    """The median of what the rounds gave."""
    return Line(section, name, median(seen), unit, target, (min(seen), max(seen)))


def shown(value: float) -> str:
    """Three digits that mean something, thousands apart."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3g}"


def table(lines: Iterable[Line]) -> str:
    """The lines as text, by section."""
    printed: list[str] = []
    section = ""
    for each in lines:
        if each.section != section:
            section = each.section
            printed += ["", section]
        spread = ""
        if each.spread is not None and each.spread[0] != each.spread[1]:
            spread = f"[{shown(each.spread[0])} .. {shown(each.spread[1])}]"
        target = f"{each.target}: {each.verdict}" if each.target else ""
        cells = f"  {each.name:<52} {shown(each.value):>10} {each.unit:<14} {spread:<22} {target}"
        printed.append(cells.rstrip())
    return "\n".join(printed)
