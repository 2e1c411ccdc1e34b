"""What a stretch adds to a market: everything the tape lacks, nothing it has, nothing unproven."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from dedup.repair import REPAIRED, Outcome, Piece, Stretch, numbered_rows, repair_market, subtracted
from marketdata.book import Book
from marketdata.rows import DELTA_ROW, DeltaFlag

SPAN = (0, 10_000)


def events(n: int, *, start_us: int = 100, step: int = 10) -> np.ndarray[Any, Any]:
    """`n` changes of one market with the book's hash after each."""
    book, rows = Book(), np.zeros(n, DELTA_ROW)
    for i in range(n):
        side, price, delta = i % 2, 10_000 * (1 + i % 5), 100 * (1 + i % 3)
        book.apply(side, price, delta)
        rows[i] = (start_us + i * step, 1_000 * i, delta, book.hash, 1, 5, i + 1, 0, price, side, 0)
    return rows


def stretch(rows: np.ndarray[Any, Any], gatherer: int = 2, **bounds: int) -> Stretch:
    low = int(rows["exchange_us"].min()) if rows.size else 0
    high = int(rows["exchange_us"].max()) + 1 if rows.size else 0
    return Stretch(
        gatherer, 5, bounds.get("from_us", low), bounds.get("to_us", high), 0, Book().to_bytes(),
        0, 0, rows,
    )  # fmt: skip


def piece(epoch: int, rows: np.ndarray[Any, Any]) -> Piece:
    low = int(rows["exchange_us"][0]) if rows.size else 0
    return Piece(epoch, low, rows.size, numbered_rows(rows, epoch))


def added(found: Outcome) -> list[list[int]]:
    return [fill.rows["exchange_us"].tolist() for fill in found.fills]


def test_a_gap_between_two_epochs_is_filled() -> None:
    """One new piece with a number of its own, proof over all of the stretch."""
    rows = events(10)
    pieces = [piece(1, rows[:4]), piece(2, rows[7:])]
    found = repair_market(pieces, [stretch(rows)], SPAN, REPAIRED)
    assert added(found) == [rows["exchange_us"][4:7].tolist()]
    (fill,) = found.fills
    assert (fill.epoch, fill.behind, fill.from_us) == (REPAIRED, 1, 131)
    assert fill.until_us == 170
    assert [span for _, span in found.proofs] == [(100, 191)]
    assert len(pieces) == 2, "the tape is left as it was"


def test_again_nothing_is_left_to_add() -> None:
    """INV-P4: with the outcome on the tape."""
    rows = events(10)
    pieces = [piece(1, rows[:4]), piece(REPAIRED, rows[4:7]), piece(2, rows[7:])]
    found = repair_market(pieces, [stretch(rows)], SPAN, REPAIRED + 1)
    assert found.fills == []
    assert found.refused == []


def test_a_gap_without_events_becomes_a_piece_without_events() -> None:
    """Once: coverage may then go from one epoch to the next."""
    rows = events(8)
    pieces = [piece(1, rows[:4]), piece(2, rows[4:])]
    found = repair_market(pieces, [stretch(rows)], SPAN, REPAIRED)
    assert added(found) == [[]]
    empty = Piece(REPAIRED, 131, 0, numbered_rows(rows[:0], REPAIRED))
    again = repair_market([pieces[0], empty, pieces[1]], [stretch(rows)], SPAN, REPAIRED + 1)
    assert again.fills == []


def test_a_joint_outside_of_the_time_is_left_alone() -> None:
    """Before it, behind it; one that reaches in begins with the time that is repaired."""
    rows = events(8)
    pieces = [piece(1, rows[:4]), piece(2, rows[4:])]
    assert repair_market(pieces, [stretch(rows)], (145, 200), REPAIRED).fills == []
    assert repair_market(pieces, [stretch(rows)], (0, 120), REPAIRED).fills == []
    (fill,) = repair_market(pieces, [stretch(rows)], (135, 200), REPAIRED).fills
    assert fill.from_us == 135


def test_an_epoch_without_events_inside_a_gap_stays_where_it_begins() -> None:
    """What came before it and after it become two pieces around it."""
    rows = events(10)
    nothing = Piece(2, 155, 0, numbered_rows(rows[:0], 2))
    pieces = [piece(1, rows[:4]), nothing, piece(3, rows[8:])]
    found = repair_market(pieces, [stretch(rows)], SPAN, REPAIRED)
    assert added(found) == [[140, 150], [160, 170]]
    assert [(f.behind, f.from_us, f.until_us) for f in found.fills] == [
        (1, 131, 155),
        (2, 156, 180),
    ]


def test_a_quiet_stretch_joins_what_it_saw_the_end_and_the_beginning_of() -> None:
    """One that begins with the book in which the epoch before ended, and the other way round."""
    rows = events(8)
    pieces = [piece(1, rows[:4]), piece(2, rows[4:])]
    pieces[1].from_us = 136
    late = stretch(rows[4:], from_us=133)
    late.start_hash = int(rows["book_hash"][3])
    found = repair_market(pieces, [late], SPAN, REPAIRED)
    assert added(found) == [[]]
    assert [span for _, span in found.proofs] == [(133, 171)]
    found = repair_market(pieces, [stretch(rows[:4], to_us=138)], SPAN, REPAIRED)
    assert added(found) == [[]]
    late.start_hash += 1
    found = repair_market(pieces, [late], SPAN, REPAIRED)
    assert added(found) == []
    assert [span for _, span in found.proofs] == [(133, 135), (137, 171)]


def test_before_the_first_and_after_the_last() -> None:
    """A stretch that reaches over both ends of the tape."""
    rows = events(9)
    found = repair_market([piece(1, rows[3:6])], [stretch(rows)], SPAN, REPAIRED)
    assert added(found) == [rows["exchange_us"][:3].tolist(), rows["exchange_us"][6:].tolist()]
    assert [f.behind for f in found.fills] == [0, 1]


def test_a_market_that_the_tape_never_had() -> None:
    """Everything is new."""
    rows = events(5)
    assert added(repair_market([], [stretch(rows)], SPAN, REPAIRED)) == [
        rows["exchange_us"].tolist()
    ]


def test_two_gatherers_fill_a_gap_in_turn() -> None:
    """The second begins where the first ends, and is compared with it."""
    rows = events(12)
    pieces = [piece(1, rows[:3]), piece(2, rows[10:])]
    found = repair_market(pieces, [stretch(rows[:7], 0), stretch(rows[5:], 1)], SPAN, REPAIRED)
    assert added(found) == [rows["exchange_us"][3:7].tolist(), rows["exchange_us"][7:10].tolist()]
    assert found.refused == []
    assert [f.behind for f in found.fills] == [1, REPAIRED]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda r: r["delta"].__setitem__(2, 7), "other events"),
        (lambda r: r["book_hash"].__setitem__(2, 7), "other events"),
        (lambda r: r["exchange_us"].__setitem__(2, 122), "other events"),
        (lambda r: r["side"].__setitem__(2, 1), "other events"),
    ],
)
def test_a_stretch_that_differs_adds_and_proves_nothing(change: Any, why: str) -> None:
    """INV-P2, whatever differs."""
    rows = events(10)
    pieces = [piece(1, rows[:4]), piece(2, rows[7:])]
    wrong = rows.copy()
    change(wrong)
    found = repair_market(pieces, [stretch(wrong)], SPAN, REPAIRED)
    assert found.fills == []
    assert found.proofs == []
    assert why in found.refused[0][1]


def test_an_event_that_the_tape_lacks_inside_an_epoch_is_no_fill() -> None:
    """Nothing is put between two numbers."""
    rows = events(10)
    short = np.delete(rows, 2)
    found = repair_market([piece(1, short)], [stretch(rows)], SPAN, REPAIRED)
    assert found.fills == []
    assert "2 places" in found.refused[0][1]


def test_an_event_that_only_the_tape_has_refuses_the_stretch() -> None:
    """A gatherer that lost one without noticing proves nothing."""
    rows = events(10)
    pieces = [piece(1, rows[:4]), piece(2, rows[7:])]
    found = repair_market(pieces, [stretch(rows[[0, 1, 2, 3, 4, 5, 6]], to_us=191)], SPAN, REPAIRED)
    assert found.fills == []
    assert "lacks 3 events" in found.refused[0][1]


def test_another_exchanges_stretch_over_the_tape_is_refused() -> None:
    """It lies over an epoch and has no event of it."""
    rows, other = events(6), events(6, start_us=105)
    other["book_hash"] += 1
    found = repair_market([piece(1, rows)], [stretch(other, from_us=100)], SPAN, REPAIRED)
    assert found.refused
    assert found.fitted == {}


def test_a_piece_over_the_edge_is_told_and_left() -> None:
    """It is whole or not at all; the proof has a hole where it is missing."""
    rows = events(10)
    pieces = [piece(1, rows[:4]), piece(2, rows[7:])]
    found = repair_market(pieces, [stretch(rows)], (0, 155), REPAIRED)
    assert found.fills == []
    assert [span for _, span in found.left] == [(140, 161)]
    assert [span for _, span in found.proofs] == [(100, 140)]


def test_a_microsecond_shared_by_two_pieces_stays_unproven() -> None:
    """Which of its events came first is not told by the tape."""
    rows = events(10)
    rows["exchange_us"][4] = rows["exchange_us"][3]
    pieces = [piece(1, rows[:4]), piece(2, rows[7:])]
    found = repair_market(pieces, [stretch(rows)], SPAN, REPAIRED)
    assert [span for _, span in found.proofs] == [(100, 130), (131, 191)]


def test_resets_have_no_time_of_their_own() -> None:
    """Two connections give a reset the time of what they saw before it."""
    rows = events(8)
    rows["flags"][1] = DeltaFlag.RESET
    tape = rows.copy()
    tape["exchange_us"][1] += 3
    found = repair_market([piece(1, tape[:4]), piece(2, tape[6:])], [stretch(rows)], SPAN, REPAIRED)
    assert added(found) == [rows["exchange_us"][4:6].tolist()]


def test_what_is_left_of_a_span() -> None:
    """Holes in any order, over the rims."""
    assert subtracted((0, 10), []) == [(0, 10)]
    assert subtracted((0, 10), [(8, 12), (-1, 2), (4, 5)]) == [(2, 4), (5, 8)]
    assert subtracted((0, 10), [(0, 10)]) == []
    assert subtracted((5, 10), [(0, 3)]) == [(5, 10)]


def cut(rng: random.Random, us: list[int], first: int, stop: int) -> tuple[int, int]:
    """Bounds of what somebody proves who saw events [first, stop): never a moment of another one,
    nor a microsecond that it saw a part of."""
    low = us[first - 1] + 1 if first else us[0] - 20
    high = us[stop] if stop < len(us) else us[-1] + 20
    inner = sorted(set(us[first:stop]))
    if first and us[first - 1] == us[first]:
        low = us[first] + 1
    if stop < len(us) and us[stop - 1] == us[stop]:
        high = us[stop]
    from_us = rng.randint(low, max(low, inner[0]))
    return from_us, max(from_us, rng.randint(min(inner[-1] + 1, high), high))


def world(seed: int) -> tuple[np.ndarray[Any, Any], list[Piece], list[Stretch]]:
    """What happened, a tape with gaps, and what gatherers saw."""
    rng = random.Random(seed)
    rows = events(rng.randint(5, 40))
    rows["exchange_us"] = np.cumsum([100, *(rng.choice((0, 3, 9)) for _ in range(rows.size - 1))])
    us = rows["exchange_us"].tolist()
    pieces, at = [], rng.randint(0, 3)
    while at < rows.size:
        stop = min(rows.size, at + rng.randint(1, 9))
        made = piece(len(pieces) + 1, rows[at:stop])
        made.from_us = us[at] if not at else min(us[at - 1] + 1, us[at])
        pieces.append(made)
        at = stop + rng.randint(1, 7)
    stretches = []
    for gatherer in range(rng.randint(1, 3)):
        first = rng.randint(0, rows.size - 1)
        stop = rng.randint(first + 1, rows.size)
        low, high = cut(rng, us, first, stop)
        seen = stretch(rows[first:stop], gatherer, from_us=low, to_us=high)
        seen.start_hash = int(rows["book_hash"][first - 1]) if first else 0
        stretches.append(seen)
    return rows, pieces, stretches


def with_fills(pieces: list[Piece], found: Outcome) -> list[Piece]:
    """The tape after the repair, put in order as production's is when it is loaded."""
    follows = {0: 0, **{p.epoch: p.epoch for p in pieces}}
    made = [((p.epoch, 0, p.from_us), p) for p in pieces]
    for fill in found.fills:
        follows[fill.epoch] = follows[fill.behind]
        rows = numbered_rows(fill.rows, fill.epoch)
        new = Piece(fill.epoch, fill.from_us, rows.size, rows)
        made.append(((follows[fill.epoch], 1, fill.from_us), new))
    return [p for _, p in sorted(made, key=lambda m: m[0])]


@pytest.mark.parametrize("seed", range(400))
def test_any_tape_and_any_recordings(seed: int) -> None:
    """Afterwards: what happened and somebody recorded, in its order, once; nothing that is missing
    lies in what was proven; again there is nothing to do."""
    rows, pieces, stretches = world(seed)
    found = repair_market(pieces, stretches, (0, 10**6), REPAIRED)
    assert found.left == []
    tape = with_fills(pieces, found)
    told = [seq for p in tape for seq in _places(rows, p.rows)]
    assert told == sorted(set(told)), "in order, each once"
    used = [s for s in stretches if s not in [r for r, _ in found.refused]]
    for s in used:
        assert set(_places(rows, s.rows)) <= set(told)
    missing = set(range(rows.size)) - set(told)
    for at in missing:
        us = int(rows["exchange_us"][at])
        assert not any(low <= us < high for _, (low, high) in found.proofs), at
    again = repair_market(tape, stretches, (0, 10**6), REPAIRED + len(found.fills))
    assert [f for f in again.fills if f.rows.size] == []
    assert len(again.fills) == 0


def _places(rows: np.ndarray[Any, Any], some: np.ndarray[Any, Any]) -> list[int]:
    """Which of the true events these are: the book after each tells."""
    known = {h: n for n, h in enumerate(rows["book_hash"].tolist())}
    return [known[h] for h in some["book_hash"].tolist()]
