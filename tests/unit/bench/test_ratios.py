"""The arithmetic of the benchmark: a wrong ratio would be believed by everybody."""

from __future__ import annotations

import pytest

from tests.bench.ratios import Line, Target, line, of_rounds, ratios, shown, table

ROUNDS = [
    {"ours": {"us": 4.0}, "peer": {"us": 8.0}},
    {"ours": {"us": 30.0}, "peer": {"us": 40.0}},  # a busy minute hits both
    {"ours": {"us": 5.0}, "peer": {"us": 20.0}},
]


def test_a_ratio_is_taken_inside_each_round() -> None:
    """The median of ratios, not the ratio of medians: 0.5 here, the other would be 0.25."""
    assert ratios(ROUNDS, "ours", "peer", "us") == [0.5, 0.75, 0.25]
    made = line("s", "n", ratios(ROUNDS, "ours", "peer", "us"), "x")
    assert (made.value, made.spread) == (0.5, (0.25, 0.75))
    assert of_rounds(ROUNDS, "peer", "us") == [8.0, 40.0, 20.0]


@pytest.mark.parametrize(
    ("kind", "limit", "seen", "verdict"),
    [
        ("at least", 5, 5.0, "met"),
        ("at least", 5, 4.99, "NOT MET"),
        ("at most", 0.6, 0.6, "met"),
        ("at most", 0.6, 0.61, "NOT MET"),
    ],
)
def test_a_target_is_met_up_to_its_limit_and_not_beyond(
    kind: str, limit: float, seen: float, verdict: str
) -> None:
    """A benchmark that cannot say NOT MET says nothing."""
    target = Target(kind, limit)  # type: ignore[arg-type]
    assert Line("s", "n", seen, "x", target).verdict == verdict


def test_the_table_shows_value_target_and_verdict_of_every_line() -> None:
    """What people read is what was measured."""
    lines = [
        Line("one", "slow", 0.123456, "x", Target("at least", 0.5), (0.1, 0.2)),
        Line("one", "plain", 12345.6, "rows/s"),
        Line("two", "size", 8.4, "bytes", Target("at most", 8.5)),
    ]
    text = table(lines)
    assert "0.123 x" in text
    assert "[0.1 .. 0.2]" in text
    assert "at least 0.5: NOT MET" in text
    assert "at most 8.5: met" in text
    assert "12,346 rows/s" in text
    assert text.count("one") == text.count("two") == 1
    assert Line("s", "n", 1.0, "x").record()["verdict"] == ""


def test_shown_keeps_three_digits() -> None:
    """Digits beyond the noise would be a claim."""
    assert [shown(v) for v in (0.0646, 8.449, 123.44, 98765.4)] == [
        "0.0646",
        "8.45",
        "123.4",
        "98,765",
    ]
