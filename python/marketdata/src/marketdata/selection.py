"""Which markets are recorded by one process: series, combinations, share of the host's processes.

Purpose: one place that says yes or no to a market, for what REST lists and what frames announce.
Combinations (multivariate markets, tickers KXMVE...) are most of the exchange's list and nearly all
of them have no offer that anybody could take: `none` leaves them out, `priced` takes those with an
offer, a trade or an open contract, `all` takes every one.
Invariants: a body whose numbers cannot be read counts as priced: recorded for nothing is cheap, not
recorded cannot be repaired.
Does not do: statuses and times (market_clock), connections (plan).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from marketdata import fields
from marketdata.errors import MissingField, WireError
from marketdata.fields import Message
from marketdata.rest_bodies import Market
from marketdata.share import share_of
from marketdata.units import MAX_PRICE_MICROS

Combos = Literal["all", "priced", "none"]

RECORDED: Final = frozenset({"active", "inactive"})
"""Statuses of markets whose book may change: open, and paused."""
OPENING: Final = frozenset({"initialized"})
OVER: Final = frozenset({"finalized"})

NO_COMBOS: Final = "exclude"
ONLY_COMBOS: Final = "only"


@dataclass(frozen=True, slots=True)
class Selection:
    """`series`: empty means all. `share` of `shares`: this process and how many there are."""

    combos: Combos = "none"
    series: frozenset[str] = frozenset()
    share: int = 1
    shares: int = 1

    def takes_event(self, event: str) -> bool:
        """Whether markets of this event belong here."""
        if self.series and series_of(event) not in self.series:
            return False
        return self.shares == 1 or share_of(event, self.shares) == self.share

    def takes(self, market: Market) -> bool:
        """Whether a market that REST tells of belongs here, whatever its status."""
        if market.is_multivariate and not self._takes_combo(market.body):
            return False
        return self.takes_event(market.event_ticker)

    def takes_created(self, event: str, *, is_multivariate: bool) -> bool:
        """Whether a market that a frame announces belongs here. A new one has no price yet."""
        if is_multivariate and self.combos != "all":
            return False
        return self.takes_event(event)

    @property
    def mve_filters(self) -> tuple[str, ...]:
        """The lists of markets to be read."""
        return (NO_COMBOS,) if self.combos == "none" else (NO_COMBOS, ONLY_COMBOS)

    def _takes_combo(self, body: Message) -> bool:
        return self.combos == "all" or (self.combos == "priced" and is_priced(body))


def is_priced(body: Message) -> bool:
    """Whether a market has an offer, a trade or an open contract."""
    try:
        sizes = ("volume", "open_interest", "yes_bid_size", "yes_ask_size")
        if any(_size(body, name) > 0 for name in sizes):
            return True
        return any(0 < _price(body, name) < MAX_PRICE_MICROS for name in ("yes_bid", "yes_ask"))
    except WireError:
        return True


def _size(body: Message, name: str) -> int:
    try:
        return fields.size(body, name)
    except MissingField:
        return 0


def _price(body: Message, name: str) -> int:
    try:
        return fields.price(body, name, unset_allowed=True)
    except MissingField:
        return 0


def series_of(event_ticker: str) -> str:
    """The series that an event belongs to: what stands before its first dash."""
    return event_ticker.partition("-")[0]


def event_of(ticker: str) -> str:
    """The event that a market's ticker suggests: what stands before its last dash."""
    return ticker.rpartition("-")[0] or ticker
