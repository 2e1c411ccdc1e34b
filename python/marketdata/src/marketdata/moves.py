"""A market on its way from one connection to another, so that no frame of it is lost.

Purpose: when a move may end. A market that moves is carried by both connections; each records its
own run, with its own numbers, and the merge aligns the two as it aligns two gatherers.
Invariants:
- INV-80 the old connection drops a market only after the new one has covered it (subscribed, a
  snapshot, no gap since) for OVERLAP_NS without a break.
- INV-81 a move that takes longer than PATIENCE_NS is given up: the market stays where it was.
Does not do: choosing what moves (plan), subscriptions (session), reading a clock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from marketdata.plan import NS_PER_S, Changes, Plan

OVERLAP_NS: Final = 5 * NS_PER_S
"""Long enough that a hot market has many changes that both connections recorded."""
PATIENCE_NS: Final = 60 * NS_PER_S

Covers = Callable[[int, str], bool]
"""Whether a connection, by number, covers a market now."""


@dataclass(slots=True)
class _Move:
    begun_ns: int
    covered_ns: int | None = None  # since when


class Moves:
    """The moves of a plan. Ask `step` about once a second."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._moves: dict[str, _Move] = {}
        self.begun = 0
        self.ended = 0
        self.given_up = 0

    def step(self, covers: Covers, now_ns: int) -> list[Changes]:
        """Look at every move under way; what is to be carried out now."""
        moving = self._plan.moving
        self._moves = {t: self._moves[t] for t in moving if t in self._moves}  # others have ended
        found: list[Changes] = []
        for ticker in moving:
            move = self._moves.get(ticker)
            if move is None:
                move = self._moves[ticker] = _Move(now_ns)
                self.begun += 1
            place = self._plan.place_of(ticker)
            assert place is not None, "what moves is placed"
            if not covers(place.moving_to, ticker):
                move.covered_ns = None
            elif move.covered_ns is None:
                move.covered_ns = now_ns
            if move.covered_ns is not None and now_ns - move.covered_ns >= OVERLAP_NS:
                self.ended += 1
                found.append(self._plan.arrived(ticker, now_ns))
            elif now_ns - move.begun_ns >= PATIENCE_NS:
                self.given_up += 1
                found.append(self._plan.give_up(ticker, now_ns))
        return found
