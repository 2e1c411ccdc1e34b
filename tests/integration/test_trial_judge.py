"""The judge of the trials sees each kind of error, and excuses only what evidence shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from marketdata.coverage import OPEN_US, MarketClaim, RunProgress
from tests.trial import HARSH, Plan, Played, Recorder, Stream, made_stream, play
from tests.trial_judge import judge

WHOLE = Plan(loss=0, disconnect_us=10**12, late_start_us=1)


def played(stream: Stream, plan: Plan = WHOLE, **more: Any) -> tuple[list[Recorder], Played]:
    recorders = [Recorder(stream, g, 4, plan, **more) for g in range(2)]
    return recorders, play(recorders, size=200)


def change(made: Played, how: Callable[[np.ndarray], np.ndarray]) -> Played:
    """The same with another tape of the first market."""
    ticker = min(made.rows)
    return replace(made, rows={**made.rows, ticker: how(made.rows[ticker])})


def apart(rows: np.ndarray) -> int:
    """A place where two neighbours differ in time and content."""
    later = np.diff(rows["exchange_us"]) > 0
    return int(np.flatnonzero(later & (np.diff(rows["delta"]) != 0))[20])


@pytest.mark.parametrize("shift_us", [0, 5])
def test_each_kind_of_error_is_seen(shift_us: int) -> None:
    stream = made_stream(4, 600)
    more: dict[str, Any] = {}
    if shift_us:
        more["time_shift"] = lambda rng: rng.randrange(-shift_us, shift_us + 1)
    recorders, made = played(stream, **more)

    def wrong(tape: Played) -> tuple[int, ...]:
        return judge(stream, recorders, tape, apart_us=shift_us).wrong()

    assert wrong(made) == (0, 0, 0, 0)
    ticker = min(made.rows)
    at = apart(made.rows[ticker])
    missing = wrong(change(made, lambda r: np.delete(r, at)))
    assert missing[0] == 1
    assert missing[3] >= 1, "and that is called complete"
    assert wrong(change(made, lambda r: np.insert(r, at, r[at])))[1] == 1
    order = np.arange(made.rows[ticker].size)
    order[[at, at + 1]] = order[[at + 1, at]]
    assert wrong(change(made, lambda r: r[order]))[2] >= 1


def test_a_loss_of_all_that_is_called_complete_is_false() -> None:
    """What nobody received is no loss of the merge; to call it complete is."""
    stream = made_stream(6, 2_000)
    plan = replace(HARSH, loss=0.05)
    recorders, made = played(stream, plan)
    assert judge(stream, recorders, made).wrong() == (0, 0, 0, 0)
    first, last = int(stream.us[0]), int(stream.us[-1])
    tickers = made.tickers
    whole = replace(
        made,
        claims=[MarketClaim(t, 0, 999, first, OPEN_US, valid=True, reason="") for t in tickers],
        progress=[RunProgress(0, 999, "orderbook", first, last, ended=False, reason="")],
        marks=[], epochs=made.epochs[:1],
    )  # fmt: skip
    assert judge(stream, recorders, whole).false_complete > 0


def cut_stream() -> tuple[Stream, int]:
    """Changes one second apart, and one microsecond with a cycle of six; its first place."""
    n = 60
    us = 1_700_000_000_000_000 + 1_000_000 * np.arange(n, dtype=np.int64)
    us[30:36] = us[30]
    delta = 100 + np.arange(n, dtype=np.int64)
    price = (10_000 * (1 + np.arange(n) % 40)).astype(np.int32)
    price[30:36], delta[30:36] = 500_000, [7, -7, 7, -7, 7, -7]
    zeros = np.zeros(n, np.int64)
    return (
        Stream(["A"], zeros, us, zeros.astype(np.int16), price, delta, zeros.copy(), [12345]), 30,
    )  # fmt: skip


def without_two(made: Played, us: int) -> Played:
    """The tape without the third and fourth event of a microsecond."""
    return change(made, lambda r: np.delete(r, np.flatnonzero(r["exchange_us"] == us)[2:4]))


def test_a_cut_is_excused_only_if_no_run_has_the_microsecond_whole_and_it_is_flagged() -> None:
    stream, at = cut_stream()
    us = int(stream.us[at])
    recorders, made = played(stream)
    short = without_two(made, us)
    flagged = replace(short, claims=[])
    assert judge(stream, recorders, flagged).missing == 2, "a run has it whole"
    for r in recorders:
        r.stretches = [(1, 0, at + 3), (1, at + 3, stream.us.size)]
    excused = judge(stream, recorders, flagged)
    assert (excused.missing, excused.undecidable, excused.cuts) == (0, 2, 1)
    assert judge(stream, recorders, short).missing == 2, "it is called complete"


def test_a_cut_without_a_cycle_is_not_excused() -> None:
    """The book never returns to a former state there: the data say where everything belongs."""
    stream, at = cut_stream()
    stream.delta[at : at + 6] = [1, 2, 3, 4, 5, 6]
    stream.__post_init__()
    recorders, made = played(stream)
    flagged = replace(without_two(made, int(stream.us[at])), claims=[])
    for r in recorders:
        r.stretches = [(1, 0, at + 3), (1, at + 3, stream.us.size)]
    assert judge(stream, recorders, flagged).missing == 2
    assert judge(stream, recorders, flagged, own_order=True).undecidable == 2
