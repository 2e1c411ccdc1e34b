"""The one word: complete only where everything says so, and the reason first where not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dedup.page.calendar import Cell
from dedup.page.verdict import LATE_MS, LINES_MAX, STALE_MS, judge, seconds
from kalshilake.schema import STATUSES

HOUR = 3_600_000_000
WELL: dict[str, Any] = {"components": {"merge": {"state": "ok", "reason": ""}}}
BROKEN = {"components": {"s": {"state": "failing", "reason": "disk"}}}
FRESH = {"market": "M", "to_us": HOUR, "kind": "gap", "reason": "error"}
KNOWN = {"at_ms": 1, "age_ms": 0, "trouble": ""}


def cell(**us: int) -> Cell:
    made = Cell(np.zeros(len(STATUSES), np.int64), markets=3)
    for status, span in us.items():
        made.us[STATUSES.index(status)] = span
    made.lacking = int(any(s not in ("complete", "dark") for s in us))
    return made


def hours(**cells: Cell) -> list[tuple[int, int, dict[str, Cell]]]:
    return [(HOUR, 2 * HOUR, cells)]


GOOD = hours(KXA=cell(complete=HOUR, dark=5))


def test_complete_is_said_where_nothing_is_wrong() -> None:
    found = judge(WELL, {}, GOOD, KNOWN, 10)
    assert (found["word"], found["lines"]) == ("complete", [])
    assert "complete since 1970-01-01T01:00" in found["sentence"]


@pytest.mark.parametrize(
    ("word", "says", "changed"),
    [
        ("unknown", "never read", {"known": None}),
        ("unknown", "does not answer: refused", {"known": {**KNOWN, "trouble": "refused"}}),
        ("unknown", "coverage is", {"known": {**KNOWN, "age_ms": STALE_MS + 1}}),
        ("unknown", "no window", {"hours": []}),
        ("late", "merge is late", {"lag": LATE_MS + 1}),
        ("incomplete", "1 of 3 order books", {"hours": hours(KXB=cell(complete=1, gap=2_500_000))}),
        ("incomplete", "disk", {"health": BROKEN}),
        ("incomplete", "gap, error", {"recent": [FRESH]}),
    ],
)  # fmt: skip
def test_every_single_lack_takes_the_word_away(
    word: str, says: str, changed: dict[str, Any]
) -> None:
    """Negative control of `complete`: each of these alone."""
    found = judge(
        changed.get("health", WELL), {}, changed.get("hours", GOOD), changed.get("known", KNOWN),
        changed.get("lag", 10), changed.get("recent", ()),
    )  # fmt: skip
    assert found["word"] == word
    assert says in found["sentence"]


def test_the_worst_series_comes_first_and_the_rest_is_counted() -> None:
    cells = {f"KX{n}": cell(complete=HOUR, gap=n) for n in range(1, LINES_MAX + 6)}
    found = judge(WELL, {}, hours(**cells), KNOWN, 10)
    assert found["lines"][0]["series"] == f"KX{LINES_MAX + 5}"
    assert found["lines"][0]["hour_us"] == HOUR
    assert (len(found["lines"]), found["lines_left_out"]) == (LINES_MAX, 5)


def test_a_finished_tape_is_not_late_and_a_lost_subscription_is_told() -> None:
    for merge in ({"finished": True}, {"gatherers": [{"state": "ended"}]}):
        assert judge(WELL, merge, GOOD, KNOWN, 10 * LATE_MS)["word"] == "complete"
    channels = {"trade": {"in_sequence": 1, "in_sequence_of_late": 2}}
    seen = {"gatherers": [{"gatherer": 0, "ended": False, "channels": channels}]}
    found = judge(WELL, {"seen": seen}, GOOD, KNOWN, 10)
    assert found["word"] == "complete"
    assert found["lines"][0]["where"] == "gatherer 1 trade"


def test_spans_in_words() -> None:
    assert [seconds(us) for us in (1_250_000, 61_000_000, 7_260_000_000)] == [
        "1.2 s", "1 min", "2 h 1 min",
    ]  # fmt: skip
