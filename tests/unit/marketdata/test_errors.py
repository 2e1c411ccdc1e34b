"""Errors: each has a stable name that metrics and coverage count by."""

from __future__ import annotations

import inspect

from marketdata import errors


def tree() -> list[type[errors.TapeError]]:
    return [
        kind
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, errors.TapeError)
    ]


def test_every_error_has_a_reason_of_its_own() -> None:
    """Two errors under one label could not be told apart in a metric."""
    reasons = [kind.reason for kind in tree()]
    assert len(set(reasons)) == len(reasons) == 11
    assert all(reason.islower() for reason in reasons)


def test_the_tree_drawn_in_the_module_names_every_error() -> None:
    """A drawing that lags behind the code misleads."""
    drawing = inspect.getdoc(errors) or ""
    for kind in tree():
        assert kind.__name__ in drawing


def test_hint_stands_on_a_line_of_its_own() -> None:
    """What happened first, what to do second."""
    assert str(errors.OffScale("price is 2")) == "price is 2"
    error = errors.StorageError("disk is full", hint="free some space")
    assert str(error) == "disk is full\nhint: free some space"
    assert error.hint == "free some space"


def test_incomplete_tape_names_the_intervals() -> None:
    """A caller may want to read around the gap."""
    interval = ("M", 1, 2, "gap", "sequence")
    error = errors.IncompleteTape("gap in M", (interval,), hint="ask for the coverage column")
    assert error.intervals == (interval,)
    assert "hint: ask" in str(error)
    assert errors.IncompleteTape("gap").intervals == ()
