"""marketdata.errors: one tree, countable reasons, hints on their own line."""

from __future__ import annotations

import inspect
import re

import pytest

from marketdata import errors
from marketdata.errors import IncompleteTape, TapeError

CLASSES = [
    found
    for _, found in inspect.getmembers(errors, inspect.isclass)
    if found.__module__ == errors.__name__
]


def test_everything_expected_is_one_tree_so_that_one_except_can_catch_it() -> None:
    assert all(issubclass(found, TapeError) for found in CLASSES)


def test_reasons_are_metric_labels_and_no_two_classes_share_one() -> None:
    """Two kinds of failure counted as one could not be told apart on a dashboard."""
    reasons = [found.reason for found in CLASSES]
    assert len(set(reasons)) == len(reasons)
    assert all(re.fullmatch(r"[a-z][a-z_]*", reason) for reason in reasons)


def test_the_picture_at_the_top_of_the_file_names_every_class() -> None:
    picture = errors.__doc__ or ""
    assert [found.__name__ for found in CLASSES if found.__name__ not in picture] == []


@pytest.mark.parametrize("found", CLASSES)
def test_a_hint_follows_on_its_own_line(found: type[TapeError]) -> None:
    with_hint = found("disk full", hint="free some space")
    assert (str(with_hint), with_hint.hint) == (
        "disk full\nhint: free some space",
        "free some space",
    )
    without = found("disk full")
    assert (str(without), without.hint) == ("disk full", None)


def test_an_incomplete_tape_carries_its_intervals() -> None:
    interval = ("KXA-1", 1, 2, "gap", "sequence gap")
    error = IncompleteTape("not complete", (interval,), hint="ask for the coverage column")
    assert error.intervals == (interval,)
    assert IncompleteTape("not complete").intervals == ()
