"""How commands speak and which codes they leave."""

from __future__ import annotations

import json

import pytest

from kalshilake.coverage import CoverageInterval
from marketdata.errors import IncompleteTape, LakeError
from tape.output import fitted, guarded, interval_row, letters, print_rows, witnesses


def raiser(error: Exception):
    def action() -> None:
        raise error

    return action


def test_exit_codes_tell_refused_from_incomplete(capsys: pytest.CaptureFixture[str]) -> None:
    """A script must be able to tell a typing error from a gap in the tape."""
    assert guarded(lambda: None) == 0
    assert guarded(lambda: 1) == 1
    assert guarded(raiser(LakeError("no lake", hint="look elsewhere"))) == 2
    assert capsys.readouterr().err == "tape: no lake - hint: look elsewhere\n"
    error = IncompleteTape("x", (("MKT", 0, 1_500_000, "gap", "lost"),))
    assert guarded(raiser(error)) == 3
    said = capsys.readouterr().err
    assert "MKT  1970-01-01T00:00:00Z to 1970-01-01T00:00:01.5Z  gap (lost)" in said
    assert "--on-gap" in said


def test_an_incomplete_read_names_twenty_intervals_and_counts_the_rest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two thousand lines of gaps would hide the hint."""
    many = tuple(("MKT", i, i + 1, "gap", "") for i in range(45))
    guarded(raiser(IncompleteTape("x", many)))
    said = capsys.readouterr().err
    assert said.count("MKT") == 20
    assert "and 25 more" in said


def test_our_own_bugs_are_not_dressed_up_as_messages() -> None:
    """A traceback is what a bug report needs."""
    with pytest.raises(ZeroDivisionError):
        guarded(raiser(ZeroDivisionError()))


def test_rows_are_json_lines_csv_or_a_table_that_cuts_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Pipes have no width; brackets in a title are text, not colour."""
    rows = [{"a": 1, "b": "x" * 150, "c": None}, {"a": 2, "b": "[red]", "c": "y"}]
    print_rows(rows, as_json=True, as_csv=False)
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == rows
    print_rows(rows, as_json=False, as_csv=True)
    assert capsys.readouterr().out.splitlines()[2] == "2,[red],y"
    print_rows(rows, as_json=False, as_csv=False, hidden=("c",))
    shown = capsys.readouterr().out
    assert "x" * 150 in shown
    assert "[red]" in shown
    assert "y" not in shown
    for how in ({"as_json": True, "as_csv": False}, {"as_json": False, "as_csv": True}):
        print_rows([], **how)
        assert capsys.readouterr().out == ""


ROWS = [
    {"market": "KX-LONG-NAME", "at": "21:52:00", "price": "0.5100", "size": n, "coverage": None}
    for n in (7, 100)
]


def test_a_table_that_fits_is_left_alone() -> None:
    assert fitted(ROWS, 46) == (ROWS, [])
    assert fitted([], 10) == ([], [])


def test_on_a_narrow_terminal_no_value_is_cut() -> None:
    """What is the same in all rows is told once, the rest is left out by name."""
    rows, notes = fitted([*ROWS, {**ROWS[0], "at": "21:53:00"}], 45)
    assert [list(row) for row in rows] == [["at", "size"]] * 3
    assert notes == ["in all rows: market KX-LONG-NAME, price 0.5100, coverage (none)"]
    rows, notes = fitted([ROWS[0]], 30)
    assert [list(row) for row in rows] == [["market", "at", "price"]]
    assert notes == ["too wide: size, coverage (--json, --csv or a wider terminal)"]


def test_rows_that_are_all_the_same_are_shown_all_the_same() -> None:
    rows, notes = fitted([ROWS[0]] * 3, 30)
    assert [list(row) for row in rows] == [["market", "at", "price"]] * 3
    assert len(notes) == 1


def test_witnesses_count_gatherers_from_one() -> None:
    """Bit 0 is g1."""
    assert (witnesses(0), witnesses(5), witnesses(7)) == ("", "1 3", "1 2 3")


def test_interval_row_is_exact_text() -> None:
    """Times go out as the exchange writes them."""
    row = interval_row(CoverageInterval("M", "trade", 0, 1, "gap", "lost", 3, 2, None))
    assert (row["from"], row["to"], row["gatherers"]) == (
        "1970-01-01T00:00:00Z", "1970-01-01T00:00:00.000001Z", "1 2",
    )  # fmt: skip


def test_letters_are_the_same_with_and_without_colour() -> None:
    """Colour only helps; the letters carry the meaning."""
    colours = {"#": "green", "G": "red"}
    assert letters("##G.", colours, coloured=False) == "##G."
    assert letters("##G.", colours, coloured=True) == "[green]##[/green][red]G[/red]."
    assert letters("", colours, coloured=True) == ""
