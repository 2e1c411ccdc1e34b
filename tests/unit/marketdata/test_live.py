"""The line of one market: what is given out is the tape's next event, or it is not given out."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marketdata.book import MASK, level_constant
from marketdata.live import PAUSED_CLOSINGS, Event, Line, Place, Row, last_id
from marketdata.rows import DeltaFlag

A, B = (0, 1), (1, 7)
X = (0, 100_000, 500)
MINUS_X = (0, 100_000, -500)
Y = (1, 200_000, 300)


def chain(*changes: tuple[int, int, int], h: int = 0, seq: int = 1, flags: int = 0) -> list[Row]:
    """Rows with these changes, one after the other."""
    rows = []
    for side, price, delta in changes:
        after = (h + level_constant(side, price) * delta) & MASK
        rows.append(Row(seq, side, price, delta, h, after, flags, seq * 10, seq * 10_000))
        h, seq = after, seq + 1
    return rows


def placed(*keys: tuple[int, int], position: int = 0, h: int = 0, last_seq: int = 0) -> list[Place]:
    return [Place(g, run, position, h, last_seq) for g, run in keys]


@dataclass
class Hearing:
    """A line and everything it gave out."""

    line: Line = field(default_factory=Line)
    given: list[Event] = field(default_factory=list)

    def closed(
        self, places: list[Place], count: int = 0, h: int = 0, epoch: int = 1
    ) -> list[Event]:
        made, gone = self.line.closed(epoch, count, h, places, len(self.given) + 1)
        self.given += made
        return gone

    def hear(self, key: tuple[int, int], *rows: Row) -> list[int]:
        """The numbers given out for these rows."""
        numbers = []
        for row in rows:
            event = self.line.heard(key, row, len(self.given) + 1)
            if event is not None:
                self.given.append(event)
                numbers.append(event.number)
        return numbers

    def found(self, row: Row, number: int, epoch: int = 1) -> str:
        return self.line.found(epoch, number, row.side, row.price, row.delta, row.h_after)


def test_the_first_to_bring_an_event_is_published_and_the_others_are_not() -> None:
    hearing = Hearing()
    hearing.closed(placed(A, B))
    rows = chain(X, Y, X)
    assert hearing.hear(A, *rows[:2]) == [1, 2]
    assert hearing.hear(B, *rows) == [3]
    assert hearing.hear(A, rows[2]) == []
    assert [e.key for e in hearing.given] == [A, A, B]
    assert last_id(hearing.given) == 3


def test_nothing_is_given_out_before_a_window_has_closed_and_everything_beyond_it_then() -> None:
    hearing = Hearing()
    rows = chain(X, Y, X)
    assert hearing.hear(A, *rows) == []
    hearing.closed(placed(A, position=1, h=rows[0].h_after, last_seq=1), 1, rows[0].h_after)
    assert [e.number for e in hearing.given] == [2, 3]


def test_a_closed_cycle_gives_no_place() -> None:
    """A run that is not placed is not used, though its H is the line's after every cycle."""
    hearing = Hearing()
    hearing.closed(placed(A))
    cycle = chain(X, MINUS_X, X, MINUS_X)
    assert hearing.hear(A, *cycle[:2]) == [1, 2]
    assert hearing.line.h_live == 0
    assert hearing.hear(B, *cycle[2:]) == []
    assert hearing.hear(A, *cycle[2:]) == [3, 4]


def test_take_over_counts_from_the_place_through_cycles() -> None:
    """A stops in the middle of cycles; B, placed, goes on with exactly the next number."""
    hearing = Hearing()
    hearing.closed(placed(A, B))
    cycles = chain(*([X, MINUS_X] * 3))
    assert hearing.hear(A, *cycles[:3]) == [1, 2, 3]
    assert hearing.hear(B, *cycles) == [4, 5, 6]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (chain(Y, flags=int(DeltaFlag.FLOATING))[0], "no snapshot yet"),
        (chain(Y, flags=int(DeltaFlag.NEGATIVE))[0], "below zero"),
        (chain(Y, flags=int(DeltaFlag.RESET))[0], "reset"),
        (chain(Y, h=77)[0], "broken chain"),
    ],
)
def test_the_first_doubt_ends_the_line_until_the_next_closed_window(row: Row, why: str) -> None:
    hearing = Hearing()
    hearing.closed(placed(A))
    assert hearing.hear(A, row) == []
    assert hearing.line.why == why
    assert hearing.hear(A, *chain(X, seq=2)) == []
    hearing.closed(placed(A, last_seq=1))
    assert [e.number for e in hearing.given] == [1]


def test_nothing_follows_over_a_cut() -> None:
    """The market left the subscription and came back with the same H: events may lie between."""
    hearing = Hearing()
    hearing.closed(placed(A))
    rows = chain(X, MINUS_X, Y)
    hearing.line.cut(A, 3)
    assert hearing.hear(A, *rows) == [1, 2]
    assert hearing.line.why == "cut"
    assert [hearing.found(row, n) for n, row in enumerate(rows[:2], 1)] == ["same", "same"]
    hearing.closed(placed(A, position=2, last_seq=2), 2)  # still before the cut
    assert hearing.line.why == "cut"
    hearing.closed(placed(A, position=2, last_seq=3), 2)  # placed behind it
    assert hearing.line.why == ""


def test_one_cut_behind_another_counts_after_the_first_was_passed() -> None:
    hearing = Hearing()
    hearing.line.cut(A, 2)
    hearing.line.cut(A, 4)
    hearing.closed(placed(A, last_seq=2))
    assert hearing.hear(A, *chain(X, seq=3)) == [1]
    assert hearing.hear(A, *chain(MINUS_X, h=hearing.line.h_live, seq=4)) == []


def test_runs_that_differ_under_one_number_end_the_line() -> None:
    hearing = Hearing()
    hearing.closed(placed(A, B))
    assert hearing.hear(A, *chain(X)) == [1]
    assert hearing.hear(B, *chain(Y)) == []
    assert hearing.line.why == "runs differ"
    assert hearing.hear(A, *chain(X, h=hearing.line.h_live, seq=2)) == []


def test_what_was_not_heard_is_a_hole() -> None:
    hearing = Hearing()
    hearing.closed(placed(A, B))
    hearing.line.unheard(A, 2)
    cycles = chain(X, MINUS_X, Y)
    assert hearing.hear(A, cycles[2]) == []  # its H would fit
    assert hearing.hear(B, *cycles) == [1, 2, 3]
    hearing.line.unheard(B, 4)
    assert hearing.line.why == "behind"
    assert {hearing.found(row, n) for n, row in enumerate(cycles, 1)} == {"same"}
    hearing.closed(placed(B, position=3, h=cycles[2].h_after, last_seq=3), 3, cycles[2].h_after)
    assert hearing.line.why == "behind"


def test_the_tape_confirms_row_by_row() -> None:
    hearing = Hearing()
    hearing.closed(placed(A))
    rows = chain(X, Y, X)
    hearing.hear(A, *rows)
    assert [hearing.found(row, n) for n, row in enumerate(rows[:2], 1)] == ["same", "same"]
    h = rows[1].h_after
    assert hearing.closed(placed(A, position=2, h=h, last_seq=2), 2, h) == []
    assert [e.number for e in hearing.line.pending] == [3]
    assert [e.number for e in hearing.given] == [1, 2, 3]  # not given out again


def test_another_event_on_the_tape_contradicts_and_silences() -> None:
    hearing = Hearing()
    hearing.closed(placed(A))
    hearing.hear(A, *chain(X, Y))
    other = chain(Y)[0]
    assert hearing.found(other, 1) == "differs"
    assert [e.number for e in hearing.line.withdraw()] == [1, 2]
    rows = chain(X, h=other.h_after, seq=9)
    for _ in range(PAUSED_CLOSINGS):
        assert hearing.line.why == "contradicted before"
        hearing.closed(placed(A, position=1, h=other.h_after, last_seq=8), 1, other.h_after)
    assert hearing.hear(A, *rows) == [2]


@pytest.mark.parametrize("end", [(2, 0, 0), (1, 5, 0), (1, 0, 9)])
def test_an_end_of_the_tape_that_does_not_fit_takes_everything_back(
    end: tuple[int, int, int],
) -> None:
    """Another epoch, another number or another hash than the line stands on."""
    hearing = Hearing()
    hearing.closed(placed(A))
    hearing.hear(A, *chain(X))
    epoch, count, h = end
    gone = hearing.closed(placed(A), count, h, epoch)
    assert [e.number for e in gone] == [1]


def test_the_tape_may_be_first() -> None:
    hearing = Hearing()
    hearing.closed(placed(A))
    rows = chain(X, Y)
    hearing.hear(A, rows[0])
    assert [hearing.found(row, n) for n, row in enumerate(rows, 1)] == ["same", "missed"]
    assert hearing.hear(A, rows[1]) == []  # it is on the tape: not given out between the two


def test_silence_forgets_and_resuming_gives_everything_again() -> None:
    hearing = Hearing()
    hearing.closed(placed(A))
    rows = chain(X, Y, X)
    hearing.hear(A, *rows[:2])
    hearing.line.forget("not connected")
    assert hearing.hear(A, rows[2]) == []
    again = hearing.line.resume(10)
    assert [(e.live_id, e.number) for e in again] == [(10, 1), (11, 2), (12, 3)]


def test_rows_that_no_window_takes_are_not_kept_for_ever() -> None:
    hearing = Hearing()
    hearing.hear(A, *chain(X, Y))
    hearing.line.forget_before(15_000)
    assert not hearing.line.followers[A].rows
    h = chain(X)[0].h_after
    hearing.closed(placed(A, position=1, h=h, last_seq=1), 1, h)
    assert hearing.line.why == "behind"  # a row behind its place is not here any more


@settings(max_examples=200)
@given(seed=st.integers(0, 2**32), runs=st.integers(1, 4))
def test_whatever_the_order_the_line_is_the_sequence(seed: int, runs: int) -> None:
    """Runs in any interleaving, cycles, windows that close anywhere, runs that end or are cut."""
    rng = random.Random(seed)
    truth = chain(*(rng.choice([X, MINUS_X, Y]) for _ in range(40)))
    hearing = Hearing()
    brought = [0] * runs
    stop = [rng.choice([40, 40, rng.randint(0, 40)]) for _ in range(runs)]
    count = 0

    def h_at(n: int) -> int:
        return truth[n - 1].h_after if n else 0

    def close(upto: int) -> None:
        nonlocal count
        verdicts = [hearing.found(truth[n], n + 1) for n in range(count, upto)]
        assert "differs" not in verdicts
        count = upto
        places = []
        for g in range(runs):
            at = min(upto, stop[g])
            known = at == upto or rng.random() < 0.5
            places.append(Place(g, 1, at if known else -1, h_at(at), at))
        assert hearing.closed(places, count, h_at(count)) == []

    close(0)
    while any(b < s for b, s in zip(brought, stop, strict=True)):
        g = rng.randrange(runs)
        if brought[g] < stop[g]:
            hearing.hear((g, 1), truth[brought[g]])
            brought[g] += 1
        if rng.random() < 0.1:
            close(rng.randint(count, max(count, min(max(brought), 40))))
    for event in hearing.given:
        assert event.row[1:6] == truth[event.number - 1][1:6]
    numbers = [e.number for e in hearing.given]
    assert numbers == sorted(set(numbers))
    assert max(numbers, default=0) >= (max(stop) if count == 0 else 0)


def test_the_property_sees_a_line_that_places_by_hash() -> None:
    """The negative control: a run taken for placed wherever its H fits gives another sequence,
    and the tape contradicts it."""
    hearing = Hearing()
    cycles = chain(X, MINUS_X, X, MINUS_X, Y)
    hearing.closed(placed(A))
    hearing.hear(A, *cycles[:2])
    wrong = Place(*B, 0, 0, 2)  # its next row is the third event, not the first
    hearing.line.follower(B).place = wrong
    hearing.line.follower(B).stand()
    hearing.hear(B, *cycles[2:])
    assert [e.row.price for e in hearing.given] != [r.price for r in cycles]
    verdicts = [hearing.found(row, n) for n, row in enumerate(cycles[:3], 1)]
    assert verdicts == ["same", "same", "differs"]
