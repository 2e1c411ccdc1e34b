"""The list of deviations is complete, numbered and prints."""

from __future__ import annotations

import pytest
from kalshi_infra import deviations
from spec_tables import specification


def test_deviations_are_numbered_without_gaps_and_say_all_four_things() -> None:
    """Documents and comments refer to them by number."""
    keys = [entry.key for entry in deviations.DEVIATIONS]
    assert keys == [f"D{number:02d}" for number in range(1, len(keys) + 1)]
    for entry in deviations.DEVIATIONS:
        for text in (entry.specified, entry.ours, entry.why, entry.option, entry.section):
            assert text


def test_sections_of_deviations_exist_in_the_specification() -> None:
    """A section that was renamed would leave the entry pointing nowhere."""
    tables, documents = specification()
    paths = {part.path for part in (*tables, *documents)} | {"Overview", "Compute / Storage"}
    for entry in deviations.DEVIATIONS:
        assert any(path.startswith(entry.section) for path in paths), entry.section


def test_the_list_prints_every_entry_and_addition(capsys: pytest.CaptureFixture[str]) -> None:
    """`make aws-deviations`."""
    assert deviations.main() == 0
    printed = capsys.readouterr().out
    for entry in deviations.DEVIATIONS:
        assert f"\n{entry.key}  " in printed
    for what, _ in deviations.ADDITIONS:
        assert what in printed
