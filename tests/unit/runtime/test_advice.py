"""What to do about a line: short, and it says something (tests/rules/test_logs.py holds it against
the calls)."""

from __future__ import annotations

from runtime.advice import ADVICE, FORWARDED

CHARS_MAX = 100


def test_advice_is_short_and_begins_in_lower_case() -> None:
    for event, told in [*ADVICE.items(), ("", FORWARDED)]:
        assert 6 < len(told) <= CHARS_MAX, event
        assert told[0].islower() or told.startswith("KT_"), event
        assert not told.endswith("."), event
