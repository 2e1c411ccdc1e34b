"""INV-F1: the short way gives the same rows, states and counts as the long one."""

from __future__ import annotations

from typing import Any

import pytest

from dedup.fast import FastPath
from tests.hand import QUICK, Hand, merge
from tests.trial import Plan, Recorder, made_stream, play


def everything(recorders: list[Recorder]) -> Any:
    return [
        (o.window, o.tickers, o.deltas.tobytes(), o.snapshots, o.claims, o.marks, o.counts,
         {name: o.market_states[name] for name in sorted(o.market_states)},
         o.named_states.get("evidence"), o.changes)
        for o in play(recorders, size=200).outputs
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("markets", "plan"), [(1, Plan(loss=0)), (12, Plan(loss=0.00005)), (3, Plan(loss=0.0005))]
)
def test_short_and_long_way_agree(
    markets: int, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = made_stream(5, 7_000, markets)
    taken = []
    real = FastPath.take

    def counted(self: FastPath, *args: Any) -> bool:
        taken.append(real(self, *args))
        return taken[-1]

    monkeypatch.setattr(FastPath, "take", counted)
    short = everything([Recorder(stream, g, 5, plan) for g in range(3)])
    assert any(taken), "the short way was never taken: the comparison says nothing"
    monkeypatch.setattr(FastPath, "take", lambda *_: False)
    long = everything([Recorder(stream, g, 5, plan) for g in range(3)])
    for mine, other in zip(short, long, strict=True):
        assert mine[:6] == other[:6]
        assert _without_modes(mine[6]) == _without_modes(other[6])
        assert mine[7:] == other[7:]


def _without_modes(counts: dict[str, int]) -> dict[str, int]:
    return {name: n for name, n in counts.items() if not name.startswith("mode_")}


@pytest.mark.parametrize("spoil", ["hash", "order", "content", "time"])
def test_one_odd_row_sends_a_market_the_long_way(spoil: str) -> None:
    """Whatever does not fit must be decided there, never taken over."""
    hands = []
    for g in range(3):
        hand = Hand(g)
        hand.start(0)
        hand.snap("A", {100_000: 5})
        for ms in range(100, 3_000, 100):
            hand.delta(ms, "A", 10_000 * (ms // 100), 100)
        if g == 1:
            row = hand.rows[15]
            if spoil == "hash":
                row["book_hash"] += 1
            elif spoil == "order":
                hand.rows[15], hand.rows[16] = hand.rows[16], hand.rows[15]
            elif spoil == "content":
                row["delta"] += 1
            else:
                row["exchange_us"] += 1
        hand.stop()
        hands.append(hand)
    outputs = merge(*hands, settings=QUICK)
    rows = [r for o in outputs for r in o.deltas]
    assert len(rows) == 29
    assert {int(r["sources"]) & 5 for r in rows} == {5}
