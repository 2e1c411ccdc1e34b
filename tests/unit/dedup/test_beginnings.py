"""INV-F2: markets that begin and end together, taken in bulk, come out as markets.py gives them."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from dedup import arbitrate, fast
from dedup.arbitrate import Arbiter
from dedup.fast import Bunch
from tests.hand import QUICK, Hand, merge

MARKETS = tuple(f"M{n:02d}" for n in range(12))
SPOILS = (
    "nothing", "late", "alone", "hash", "content", "time", "missing", "order", "twice", "gap",
    "inferred", "no snapshot", "empty", "one ends", "removed",
)  # fmt: skip


def recordings(seed: int, spoil: str, at: str = "M03") -> list[Hand]:
    """Three gatherers subscribe at once to all markets, each market's rows begin some time later.

    `spoil`: what one gatherer has otherwise, or does otherwise, in market `at`.
    """
    rng = random.Random(seed)
    quiet = {m: rng.choice([0, 20, 150, 900, 1_500, 6_000]) for m in MARKETS}
    plan = []
    for ms in range(5, 9_000, 11):
        market = rng.choice(MARKETS)
        if ms >= quiet[market]:
            plan.append((ms, market, 10_000 * rng.randrange(1, 90), rng.choice([-300, 100, 100])))
    return [_recorded(Hand(g, MARKETS), plan, spoil if g == 1 else "nothing", at) for g in range(3)]


def _recorded(hand: Hand, plan: list[tuple[int, str, int, int]], odd: str, at: str) -> Hand:
    hand.start(0)
    for market in MARKETS:
        book = {} if odd == "empty" and market == at else {10_000 * n: 500 for n in (3, 5)}
        if odd != "no snapshot" or market != at:
            hand.snap(market, book)
    mine = 0
    for ms, market, price, size in plan:
        mine += market == at
        here = market == at and mine == 2
        skipped = {"alone": market == at, "late": ms < 2_500, "missing": here}
        if skipped.get(odd, False):
            continue
        flags = 4 if odd == "inferred" and here else 0
        hand.delta(ms + (odd == "time" and here), market, price, size, flags)
        if here:
            _spoil(hand, odd, ms, market)
        if odd == "one ends" and ms > 4_000:
            break
    hand.stop()
    return hand


def _spoil(hand: Hand, odd: str, ms: int, market: str) -> None:
    """Do what is odd with the row that came last."""
    row = hand.rows[-1]
    if odd == "hash":
        row["book_hash"] += 1
    elif odd == "content":
        row["price"] += 10_000
    elif odd == "order":
        row["seq"] -= 40
    elif odd == "twice":
        hand.rows.append(row.copy())
    elif odd == "gap":
        hand.gap(ms, 3)
    elif odd == "removed":
        hand.control(
            "market_removed", run_id=hand.run_id, sid=2, seq=hand.seq,
            market_id=MARKETS.index(market) + 1,
        )  # fmt: skip


def outcome(hands: list[Hand], **more: Any) -> list[Any]:
    """All that is published, without the marks of which way was taken."""
    made = []
    for o in merge(*hands, settings=replace(QUICK, **more)):
        named = dict(o.named_states)
        core = named.pop("core", None)
        if core is not None:
            found = msgspec.msgpack.decode(core)
            assert isinstance(found, dict)
            named["core"] = repr(sorted((k, v) for k, v in found.items() if k != "exact")).encode()
        made.append(
            (o.window, o.tickers, o.deltas.tobytes(), o.snapshots, o.trades.tobytes(),
             o.ticker_rows.tobytes(), o.epochs, o.gaps,
             [(q.ticker, q.reason, q.rows.tobytes()) for q in o.quarantine],
             o.progress, o.claims, o.marks, o.audits, o.market_states, sorted(named.items()),
             o.positions, {k: v for k, v in o.counts.items() if not k.startswith("mode_")})
        )  # fmt: skip
    return made


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[bool]]:
    """How often each bulk way was asked, and its answers."""
    told: dict[str, list[bool]] = {"first_snapshots": [], "first_rows": []}
    for name, answers in told.items():
        real = getattr(arbitrate, name)

        def counted(*args: Any, _real: Any = real, _answers: list[bool] = answers) -> bool:
            _answers.append(_real(*args))
            return _answers[-1]

        monkeypatch.setattr(arbitrate, name, counted)
    return told


def slowly(hands: list[Hand]) -> list[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Arbiter, "_taken_in_bulk", lambda *_: False)
        return outcome(hands)


@pytest.mark.parametrize(("seed", "spoil"), list(itertools.product(range(2), SPOILS)))
def test_bulk_and_single_handling_agree(seed: int, spoil: str, ways: dict[str, list[bool]]) -> None:
    """Streams that take the bulk way, and streams of which one market just falls off it."""
    quick = outcome(recordings(seed, spoil))
    assert any(ways["first_snapshots"])
    assert any(ways["first_rows"]) or spoil == "gap"  # at which a run of all markets ends
    assert quick == slowly(recordings(seed, spoil))


@pytest.mark.parametrize("spoil", ["hash", "content", "time", "missing", "inferred"])
def test_a_market_that_falls_off_the_bulk_way_is_not_taken_by_it(
    spoil: str, ways: dict[str, list[bool]]
) -> None:
    outcome(recordings(1, spoil))
    assert not all(ways["first_rows"])


def test_no_comparison_at_all_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: a bulk way that believes every row differs from markets.py."""
    believed = slowly(recordings(1, "content"))
    real = fast.FastPath.prepare

    def trusting(self: fast.FastPath) -> None:
        real(self)
        for found in self.bunches.values():
            for b in found:
                b.even = b.like_first = True

    monkeypatch.setattr(fast.FastPath, "prepare", trusting)
    assert outcome(recordings(1, "content")) != believed


def test_the_ends_of_runs_are_taken_behind_rows_taken_in_bulk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rows in the window in which all runs end: in bulk, and the same result."""
    asked: list[tuple[bool, bool]] = []
    real = fast.FastPath.take

    def counted(self: fast.FastPath, market: Any, index: int) -> bool:
        taken = real(self, market, index)
        asked.append((bool(self.cuts[0].ends), taken))
        return taken

    monkeypatch.setattr(fast.FastPath, "take", counted)
    quick = outcome(recordings(2, "nothing"))
    assert (True, True) in asked
    assert quick == slowly(recordings(2, "nothing"))


def test_a_bunch_is_like_the_first_only_if_all_its_rows_are() -> None:
    """Two times differ, the others are equal: only their bunch is not like the first."""
    hands = recordings(1, "time")
    arbiter = Arbiter(3, QUICK)
    for hand in hands:
        arbiter.absorb(hand.commit())
    unlike: list[Bunch] = []
    real = fast.FastPath.prepare

    def seen(self: fast.FastPath) -> None:
        real(self)
        unlike.extend(b for f in self.bunches.values() for b in f if not b.like_first)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast.FastPath, "prepare", seen)
        while arbiter.step(final=True) is not None:
            pass
    assert {b.gatherer for b in unlike} == {1}
    assert len(unlike) == 1
    assert unlike[0].even
