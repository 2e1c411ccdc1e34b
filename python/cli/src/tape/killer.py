"""Which process dies when: the kill plan of `tape demo --kill N`.

Pure: the plan is drawn from the seed; the demo carries it out. Kills are placed by the progress of
the exchange's play, so that a fast replay has as many as a slow one.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

# After the play the deduplicator still merges and exports: this share of the kills falls there.
AFTER_PLAY_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class Kill:
    """One kill -9. `at` is the progress of the play (0 to 1); above 1 it falls after the play."""

    at: float
    target: str


def plan_kills(count: int, targets: list[str], seed: int) -> list[Kill]:
    """`count` kills in order of time. Every target is taken before one is taken twice."""
    rng = random.Random(seed)  # noqa: S311 - reproducible on purpose
    order: list[str] = []
    while len(order) < count:
        batch = list(targets)
        rng.shuffle(batch)
        order.extend(batch)
    kills = []
    for target in order[:count]:
        late = target == "dedup" and rng.random() < AFTER_PLAY_SHARE
        kills.append(Kill(1.0 + rng.random() if late else rng.uniform(0.05, 0.95), target))
    return sorted(kills, key=lambda k: (k.at, k.target))
