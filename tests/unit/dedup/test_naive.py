"""The negative control: what a unique key on content does to the same rows."""

from __future__ import annotations

from dedup.output import ArbiterSettings
from tests.hand import Hand, merge

NAIVE = ArbiterSettings(window_us=1_000_000, merge="content")


def repeated(gatherer: int) -> Hand:
    hand = Hand(gatherer)
    hand.start(0)
    hand.snap("A", {10_000: 900, 20_000: 5})
    hand.snap("B", {10_000: 5})
    for _ in range(4):
        hand.delta(100, "A", 10_000, -100)
        hand.delta(100, "B", 30_000, 5)
    hand.delta(2_100, "A", 20_000, -5)
    hand.stop()
    return hand


def test_repeats_of_one_microsecond_collapse() -> None:
    rows = [(o.tickers[r["market_id"]], int(r["market_seq"])) for o in
            merge(repeated(0), repeated(1), settings=NAIVE) for r in o.deltas]  # fmt: skip
    assert rows == [("A", 1), ("B", 1), ("A", 2)]


def test_the_real_merge_keeps_them() -> None:
    assert sum(o.deltas.size for o in merge(repeated(0), repeated(1))) == 9
