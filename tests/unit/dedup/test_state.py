"""The arbiter's memory: written only where it changed, and whole when it is loaded again."""

from __future__ import annotations

import pytest

from dedup.arbitrate import Arbiter
from tests.hand import QUICK, Hand, drain, us

BOOK = {100_000: 500}


def played() -> tuple[Arbiter, dict[str, bytes], dict[str, bytes], list[object]]:
    """Two connections, a gap whose snapshot has not come yet, trades and tickers."""
    hand = Hand(0)
    arbiter = Arbiter(1, QUICK)
    markets: dict[str, bytes] = {}
    named: dict[str, bytes] = {}
    positions: list[object] = []
    hand.start(0)
    hand.snap("A", BOOK)
    hand.snap("B", BOOK)
    for ms in range(100, 9_000, 100):
        hand.delta(ms, "A", 10_000 * (ms // 100 % 50 + 1), 100)
        hand.trade(ms, "C", ms)
        hand.ticker(ms, "C", ms)
        if ms == 4_000:
            hand.gap(ms, 3)
        if ms == 4_500:
            hand.snap("A", {20_000: 1})
        arbiter.absorb(hand.commit())
        for out in drain(arbiter):
            markets.update(out.market_states)
            for name, packed in out.named_states.items():
                if packed is None:
                    named.pop(name)
                else:
                    named[name] = packed
            positions = list(out.positions)
    return arbiter, markets, named, positions


def test_loading_gives_the_same_memory() -> None:
    arbiter, markets, named, positions = played()
    back = Arbiter.load(1, QUICK, markets, named, positions)  # type: ignore[arg-type]
    assert back.markets == arbiter.markets
    assert back.carried == arbiter.carried
    assert back.heritage == arbiter.heritage != {}
    assert back.unclaimed == {k: v for k, v in arbiter.unclaimed.items() if v}
    assert back.unsettled == arbiter.unsettled
    assert back.evidence == arbiter.evidence
    assert back.evidence.replies.unknown == 1
    assert back.trade_keys.windows == arbiter.trade_keys.windows
    assert back.ticker_keys.windows == arbiter.ticker_keys.windows
    assert back.inflows[0].ids == arbiter.inflows[0].ids
    assert back.inflows[0].closed == arbiter.inflows[0].closed


def test_a_quiet_market_is_not_written_again() -> None:
    """2,000 quiet markets must cost nothing in each window."""
    hand, arbiter = Hand(0), Arbiter(1, QUICK)
    hand.start(0)
    hand.snap("A", BOOK)
    hand.snap("B", BOOK)
    for ms in range(100, 9_000, 100):
        hand.delta(ms, "A", 10_000 * (ms // 100 % 50 + 1), 100)
    arbiter.absorb(hand.commit())
    outputs = drain(arbiter)
    assert [sorted(o.market_states) for o in outputs[3:]] == [["A"]] * len(outputs[3:])
    assert [sorted(o.named_states) for o in outputs[3:]] == [["core"]] * len(outputs[3:])


def test_keys_of_trades_are_deleted_when_they_are_forgotten() -> None:
    _, _, named, _ = played()
    kept = [name for name in named if name.startswith("trades-")]
    assert 0 < len(kept) <= 24


def test_a_connection_whose_next_run_is_not_known_yet_keeps_its_markets() -> None:
    hand, arbiter = Hand(0), Arbiter(1, QUICK)
    hand.start(0)
    hand.snap("A", BOOK)
    hand.delta(100, "A", 10_000, 1)
    hand.delta(1_500, "A", 10_000, 1)
    hand.end("gap")
    arbiter.absorb(hand.commit())
    outputs = drain(arbiter, final=True)
    states: dict[str, bytes] = {}
    for out in outputs:
        states.update({k: v for k, v in out.named_states.items() if v is not None})
    assert "heirless" in states
    back = Arbiter.load(1, QUICK, outputs[-1].market_states, states, outputs[-1].positions)
    assert back.heirless == arbiter.heirless != {}
    hand.start(1_600, "gap")
    for ms in range(1_600, 4_000, 100):
        hand.delta(ms, "B", 10_000, 1)
    hand.snap("A", {10_000: 502, **BOOK})
    hand.delta(4_100, "A", 10_000, 1)
    hand.stop()
    back.absorb(hand.commit())
    claims = [c for o in drain(back, final=True) for c in o.claims if c.ticker == "A"]
    assert min(c.from_us for c in claims) == us(1_700) + 1


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("leaves", [False, True])
def test_a_run_that_showed_no_time_hands_its_markets_on_all_the_same(
    together: bool, leaves: bool
) -> None:
    """Seed 346 of the simulation: B was subscribed before the gap, and was claimed from its second
    snapshot only; where it had left before the gap that is right."""
    hand, arbiter = Hand(0), Arbiter(1, QUICK)
    hand.start(0)
    hand.snap("A", BOOK)
    hand.snap("B", BOOK)
    if leaves:
        hand.control("market_removed", run_id=hand.run_id, sid=2, seq=hand.seq, market_id=2)
    if not together:
        arbiter.absorb(hand.commit())
    hand.gap(1_000, 3)
    hand.delta(1_000, "A", 10_000, 1)
    hand.delta(1_200, "A", 10_000, 1)
    hand.snap("A", {10_000: 2, **BOOK})
    hand.snap("B", BOOK)
    hand.delta(2_000, "A", 10_000, 1)
    hand.delta(9_000, "A", 10_000, 1)
    hand.stop()
    arbiter.absorb(hand.commit())
    claims = [c for o in drain(arbiter, final=True) for c in o.claims if c.ticker == "B"]
    first_us = us(2_000 if leaves else 1_000)
    assert min(c.from_us for c in claims) == first_us + 1 + QUICK.engine_skew_us


@pytest.mark.parametrize("together", [True, False])
def test_a_run_without_rows_between_two_gaps_passes_on_what_came_before_it(
    together: bool,
) -> None:
    """Seed 1976 of the simulation: read together it was over before the windows of the run before
    it, of whose markets none was known then; what it passed on was nothing, and that was final."""
    hand, arbiter = Hand(0), Arbiter(1, QUICK)
    hand.start(0)
    hand.snap("A", BOOK)
    hand.snap("B", BOOK)
    hand.delta(300, "A", 10_000, 1)
    hand.delta(1_500, "B", 20_000, 1)
    if not together:
        arbiter.absorb(hand.commit())
        assert drain(arbiter)
    hand.gap(1_500, 3)
    hand.gap(1_500, 3)
    hand.delta(1_700, "A", 10_000, 1)
    hand.snap("A", {10_000: 2, **BOOK})
    hand.snap("B", {20_000: 1, **BOOK})
    hand.delta(1_900, "B", 20_000, 1)
    hand.delta(9_000, "A", 10_000, 1)
    hand.stop()
    arbiter.absorb(hand.commit())
    claims = [c for o in drain(arbiter, final=True) for c in o.claims if c.from_us > us(1_500)]
    begun = {c.ticker: min(x.from_us for x in claims if x.ticker == c.ticker) for c in claims}
    assert begun == {"A": us(1_700) + 1, "B": us(1_700) + 1 + QUICK.engine_skew_us}


def test_the_bytes_do_not_tell_how_far_was_read() -> None:
    """Seed 271: after a restart the bytes of a run of trades stayed other ones (INV-R2)."""
    hand, arbiter = Hand(0), Arbiter(1, QUICK)
    hand.start(0, channel="trade")
    hand.trade(500, "A", 1)
    hand.trade(1_500, "A", 2)
    first = hand.commit()
    hand.ticker(2_500, "A", 3)
    last = hand.commit()
    arbiter.absorb(first)
    outputs = drain(arbiter, final=True)
    named: dict[str, bytes] = {}
    for out in outputs:
        named.update({k: v for k, v in out.named_states.items() if v is not None})
    back = Arbiter.load(1, QUICK, {}, named, outputs[-1].positions)
    cores = []
    for one in (arbiter, back):
        one.absorb(last)
        cores += [o.named_states["core"] for o in drain(one, final=True)]
    assert len(cores) == 2
    assert cores[0] == cores[1]
