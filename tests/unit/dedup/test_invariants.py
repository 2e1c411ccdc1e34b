"""The second opinion: right rows pass, each broken invariant is counted under its name."""

from __future__ import annotations

import numpy as np
import pytest

from dedup.invariants import Invariants
from marketdata.rows import DeltaFlag
from tests.window_outputs import T0, chain, delta_rows

TIMES = [T0, T0, T0 + 5, T0 + 9]


def observed(*publications: list[tuple[int, ...]], start: int = 77) -> Invariants:
    """An Invariants that has seen these rows of market 1 (and others), epoch 1 from `start`."""
    made = Invariants()
    made.observe_epochs([(1, 1, start)], [])
    for rows in publications:
        made.observe_rows(delta_rows(rows))
    return made


def test_a_right_chain_over_two_publications_breaks_nothing() -> None:
    """The chain goes on over the border of transactions."""
    first, after = chain(1, 1, 1, 77, TIMES)
    second, _ = chain(1, 1, 5, after, TIMES)
    other, _ = chain(2, 1, 900, 5, TIMES)  # seen first in mid-epoch, as after a restart
    assert observed(first + other, second).broken == []


def test_no_rows_are_fine() -> None:
    """Most windows of most markets are empty."""
    assert observed([]).broken == []


@pytest.mark.parametrize("at", [0, 1, 3])
def test_a_changed_hash_is_found_wherever_it_is(at: int) -> None:
    """I1 with its start: also the first row of an epoch is compared with the epoch's hash."""
    rows, _ = chain(1, 1, 1, 77, TIMES)
    us, market, epoch, seq, price, delta, book_hash = rows[at]
    rows[at] = (us, market, epoch, seq, price, delta, book_hash ^ 1)
    found = observed(rows)
    assert found.broken == ["I1"]
    assert found.violations["I1"] == (1 if at == 3 else 2)


def test_a_hash_that_does_not_follow_the_last_publication_is_found() -> None:
    """The tail of what was published is part of the chain."""
    first, after = chain(1, 1, 1, 77, TIMES)
    second, _ = chain(1, 1, 5, after + 1, TIMES)
    assert observed(first, second).violations["I1"] == 1


def test_a_reset_leaves_an_empty_book() -> None:
    """A reset's hash is 0 whatever was before; anything else is a violation."""
    rows, after = chain(1, 1, 1, 77, TIMES)
    made = delta_rows([*rows, (T0 + 10, 1, 1, 5, 0, 0, 0)])
    made["flags"][-1] = int(DeltaFlag.RESET)
    right = observed()
    right.observe_rows(made)
    assert right.broken == []
    made["book_hash"][-1] = after
    wrong = observed()
    wrong.observe_rows(made)
    assert wrong.broken == ["I1"]


@pytest.mark.parametrize(
    ("seqs", "broken"), [([1, 2, 4, 5], 1), ([1, 2, 2, 3], 1), ([2, 3, 4, 5], 1)]
)
def test_holes_and_repeats_in_the_numbering_are_found(seqs: list[int], broken: int) -> None:
    """I4; an epoch counts from 1."""
    rows, _ = chain(1, 1, 1, 77, TIMES)
    made = delta_rows(rows)
    made["market_seq"] = seqs
    found = observed()
    found.observe_rows(made)
    assert found.violations["I4"] == broken


def test_numbering_must_follow_the_last_publication() -> None:
    """The hole between two transactions is a hole."""
    first, after = chain(1, 1, 1, 77, TIMES)
    second, _ = chain(1, 1, 6, after, TIMES)
    assert observed(first, second).broken == ["I4"]


def test_a_new_epoch_starts_from_its_own_hash() -> None:
    """Epochs are not chained to each other."""
    first, _ = chain(1, 1, 1, 77, TIMES)
    second, _ = chain(1, 2, 1, 1_000, TIMES)
    made = Invariants()
    made.observe_epochs([(1, 1, 77), (1, 2, 1_000)], [(1, 2)])
    made.observe_rows(delta_rows(first + second))
    assert made.broken == []
    made.observe_epochs([(1, 3, 5)], [(1, 3)])
    third, _ = chain(1, 3, 1, 6, TIMES)
    made.observe_rows(delta_rows(third))
    assert made.violations["I1"] == 1


def test_an_epoch_without_a_gap_row_is_found() -> None:
    """I8; the first epoch of a market needs none."""
    made = Invariants()
    made.observe_epochs([(1, 1, 0), (1, 2, 0)], [(2, 2)])
    assert made.violations["I8"] == 1


def test_rows_that_are_not_accounted_for_are_found() -> None:
    """I3: read = merged + duplicate + quarantined + skipped; I2: audits that failed."""
    made = Invariants()
    made.observe_counts(
        {
            "rows_in": 10,
            "merged_rows": 4,
            "duplicate_rows": 3,
            "quarantined_rows": 2,
            "skipped_rows": 1,
        }
    )
    assert made.broken == []
    made.observe_counts({"rows_in": 10, "merged_rows": 9, "audits_failed": 2})
    assert made.violations["I3"] == 1
    assert made.violations["I2"] == 2


def test_levels_below_zero_are_counted() -> None:
    """I5, as the gatherers flagged it."""
    rows = delta_rows(chain(1, 1, 1, 77, TIMES)[0])
    rows["flags"] = np.array([0, int(DeltaFlag.NEGATIVE), 0, 0])
    found = observed()
    found.observe_rows(rows)
    assert found.broken == ["I5"]
