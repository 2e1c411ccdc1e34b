"""Sequence numbers of one subscription: in sequence, gap, repeat; and what the numbers count.

Purpose: one `Tracker` per (connection, sid) looks at the `seq` of every frame of that sid, replies
(`ok`, `unsubscribed`, scoped `error`) included, and gives a verdict. Measured on all recorded
captures: one counter per sid over all its markets, from 1, `ok` consumes a number. The exchange
does not document the scope, so the tracker also finds out if it should count per market instead.

Evidence:
- for SID: a number continues the sid's count where the market's own would not (or on a reply, which
  has no market). Under per-market counting that takes a lost frame each time.
- for MARKET: a number already used on this sid stands on a frame of a market that has not reached
  it ("reuse"). Under per-sid counting no loss, repeat or late frame can do that.

Invariants:
- INV-30 frames lost, repeated or late in a per-sid stream never turn the scope to MARKET.
- INV-31 while the scope is UNDECIDED, a stretch of IN_SEQUENCE verdicts has no hole for any market
  after its first frame in the stream, whichever scope is the true one.
- INV-32 DUPLICATE is said only of a number that was seen, on a market that had reached it: in a
  per-sid stream no frame that is new is called a duplicate. What cannot be told is BACKWARD.
- INV-33 `restore(export())` gives the same verdicts for ever after.

Does not do: runs, books (continuity), asking for snapshots (session), numbers across connections.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Any, Final, Self

DECIDE_SID: Final = 2
"""Pieces of evidence that decide for SID, while no number was reused."""
FIRM_SID: Final = 64
"""Pieces of evidence after which single markets are not followed any more."""
RECOVER_SID: Final = 32
"""More pieces of evidence needed for each number that was reused (a corrupt frame, say)."""
DECIDE_MARKET: Final = 4
"""Reused numbers that decide for MARKET."""
MAX_HOLES: Final = 256
"""Holes remembered per counter, newest first; numbers below the forgotten ones are BACKWARD."""


class Verdict(IntEnum):
    """What a sequence number says. A caller cuts its run on GAP and on BACKWARD."""

    IN_SEQUENCE = 0
    GAP = 1  # `Tracker.missing` numbers are missing before this frame
    DUPLICATE = 2  # seen already: the frame brings nothing
    UNSEQUENCED = 3  # the frame has no number that means anything
    BACKWARD = 4  # an old number that was not seen here: a late frame, or another scope


class Scope(StrEnum):
    """What one counter counts."""

    UNDECIDED = "undecided"  # presumed SID; IN_SEQUENCE only where nothing contradicts either scope
    SID = "sid"
    MARKET = "market"


# Names of their own: looking a member up in its class costs as much as the rest of the hot path.
_IN_SEQUENCE: Final = Verdict.IN_SEQUENCE
_UNSEQUENCED: Final = Verdict.UNSEQUENCED
_MARKET: Final = Scope.MARKET


class _Counter:
    """One count: the next number, and the holes below it."""

    __slots__ = ("floor", "holes", "missing", "next")

    def __init__(self, next_: int = 1) -> None:
        self.next = next_
        self.floor = 0  # numbers below it: holes are forgotten
        self.holes: list[list[int]] = []  # [first, last], ascending
        self.missing = 0  # of the last GAP

    def step(self, seq: int) -> Verdict:
        """The verdict if only this counter mattered."""
        if seq == self.next:
            self.next = seq + 1
            return Verdict.IN_SEQUENCE
        if seq > self.next:
            self.missing = seq - self.next
            self.holes.append([self.next, seq - 1])
            if len(self.holes) > MAX_HOLES:
                self.floor = self.holes.pop(0)[1] + 1
            self.next = seq + 1
            return Verdict.GAP
        return Verdict.BACKWARD if seq < self.floor or self._fill(seq) else Verdict.DUPLICATE

    def _fill(self, seq: int) -> bool:
        """Whether `seq` was missing; it is not any more."""
        for at, (first, last) in enumerate(self.holes):
            if first <= seq <= last:
                rest = [part for part in ([first, seq - 1], [seq + 1, last]) if part[0] <= part[1]]
                self.holes[at : at + 1] = rest
                return True
        return False

    def export(self) -> list[Any]:
        """The whole state, as JSON values."""
        return [self.next, self.floor, [list(hole) for hole in self.holes], self.missing]

    @classmethod
    def restore(cls, form: list[Any]) -> Self:
        """The counter of an `export`."""
        counter = cls(form[0])
        counter.floor, counter.missing = form[1], form[3]
        counter.holes = [list(hole) for hole in form[2]]
        return counter


class Tracker:
    """Follows the numbers of one sid of one connection from its first frame on.

    `missing`: how many numbers the last GAP lacks. `scope`: what is counted, as far as is known; a
    GAP touches every market of the sid unless it is MARKET. `evidence_market`: reused numbers;
    `evidence_sid`: pieces of evidence for SID since the last reused number.
    """

    __slots__ = (
        "_is_firm",
        "_last",
        "_markets",
        "_sid",
        "evidence_market",
        "evidence_sid",
        "missing",
        "scope",
    )

    def __init__(self) -> None:
        self.scope = Scope.UNDECIDED
        self.missing = 0
        self.evidence_sid = 0
        self.evidence_market = 0
        self._is_firm = False
        self._sid = _Counter()
        self._last: dict[str, int] = {}  # highest number of each market; unused once SID is firm
        self._markets: dict[str, _Counter] = {}  # used only in scope MARKET

    @property
    def next_seq(self) -> int:
        """The number the sid's next frame should have (meaningless in scope MARKET)."""
        return self._sid.next

    @property
    def is_firm(self) -> bool:
        """Whether SID is so sure that markets are not followed any more."""
        return self._is_firm

    @property
    def firm_counter(self) -> _Counter | None:
        """The sid's count while nothing else matters, else None. A hot path may compare its `next`
        with a number and step it, instead of calling `observe`."""
        return self._sid if self._is_firm else None

    def observe(self, seq: int | None, market: str | None) -> Verdict:
        """The verdict on the next frame of this sid.

        Args:
            seq: the frame's number, None where it has none.
            market: the market the frame is about; None for replies and where it cannot be told.
        """
        if seq is None:
            return _UNSEQUENCED
        sid = self._sid
        if seq != sid.next or self.scope is _MARKET:
            return self._observe_rare(seq, market)
        sid.next = seq + 1
        if self._is_firm:
            return _IN_SEQUENCE
        if market is None:
            if seq > 1:
                self._count_for_sid()
            return _IN_SEQUENCE
        reached = self._last.get(market)
        self._last[market] = seq
        if seq == (reached or 0) + 1:
            return _IN_SEQUENCE
        self._count_for_sid()
        if self.scope is Scope.UNDECIDED and (reached is not None or self.evidence_market):
            self.missing = seq - (reached or 0) - 1
            return Verdict.GAP
        return _IN_SEQUENCE

    def _observe_rare(self, seq: int, market: str | None) -> Verdict:
        """Any number but the sid's next, and everything under per-market counting."""
        if self.scope is _MARKET:
            return self._observe_market(seq, market)
        verdict = self._sid.step(seq)
        if verdict is Verdict.GAP:
            self.missing = self._sid.missing
        if self._is_firm or market is None:
            return verdict
        reached = self._last.get(market, 0)
        self._last[market] = max(reached, seq)
        if verdict is Verdict.DUPLICATE and reached < seq:
            self._count_for_market()
            return Verdict.BACKWARD
        return verdict

    def _count_for_sid(self) -> None:
        self.evidence_sid += 1
        if self.evidence_sid >= DECIDE_SID + RECOVER_SID * self.evidence_market:
            self.scope = Scope.SID
            if self.evidence_sid >= FIRM_SID:
                self._is_firm = True
                self._last.clear()

    def _count_for_market(self) -> None:
        self.evidence_market += 1
        self.evidence_sid = 0
        self.scope = Scope.UNDECIDED
        if self.evidence_market >= DECIDE_MARKET:
            self.scope = Scope.MARKET
            self._markets = {name: _Counter(last + 1) for name, last in self._last.items()}
            self._last.clear()

    def _observe_market(self, seq: int, market: str | None) -> Verdict:
        if market is None:
            return _UNSEQUENCED
        counter = self._markets.get(market)
        if counter is None:
            counter = self._markets[market] = _Counter()
        verdict = counter.step(seq)
        if verdict is Verdict.GAP:
            self.missing = counter.missing
        return verdict

    def export(self) -> dict[str, Any]:
        """The whole state, as JSON values."""
        return {
            "scope": self.scope.value,
            "missing": self.missing,
            "evidence": [self.evidence_sid, self.evidence_market],
            "sid": self._sid.export(),
            "last": dict(self._last),
            "markets": {name: counter.export() for name, counter in self._markets.items()},
        }

    @classmethod
    def restore(cls, form: dict[str, Any]) -> Self:
        """The tracker of an `export`."""
        tracker = cls()
        tracker.scope = Scope(form["scope"])
        tracker.missing = form["missing"]
        tracker.evidence_sid, tracker.evidence_market = form["evidence"]
        tracker._is_firm = tracker.scope is Scope.SID and tracker.evidence_sid >= FIRM_SID
        tracker._sid = _Counter.restore(form["sid"])
        tracker._last = dict(form["last"])
        tracker._markets = {m: _Counter.restore(counter) for m, counter in form["markets"].items()}
        return tracker
