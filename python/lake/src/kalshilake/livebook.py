"""A market's order book while a tape is played: one object, changed by each event.

Purpose: what a step of `Lake.replay` shows. Reading the best levels costs nothing: they are kept,
and looked for only when the best level of a side goes.

Invariants:
    L-41 after every change the best levels are the highest of each side, and no level is below
         zero: LakeError instead.

Does not do: the book hash with every change (`view` computes it), finding events (steps).
"""

from __future__ import annotations

from typing import Final

from kalshilake.bookview import BookView, best_first
from marketdata.book import Book, Level, hash_levels
from marketdata.errors import LakeError
from marketdata.units import PRICE_SCALE

NO_PRICE: Final = -1
_HINT: Final = "tape verify tells where"


class LiveBook:
    """The book as it stands after the step that shows it; the next step changes it.

    `yes` and `no` map the price of a bid (micro-dollars) to its size (1/100 contract): read them,
    and copy what is to be kept, or take `view()`. `status` is what coverage says of the moment:
    anything but "complete" means that the book is the last one known, or empty where none is.
    """

    __slots__ = (
        "_best_no", "_best_yes", "at_us", "clock", "epoch", "events", "market", "market_seq",
        "no", "opened_us", "sources", "status", "yes",
    )  # fmt: skip

    def __init__(self, market: str, clock: str = "exchange") -> None:
        self.market = market
        self.clock = clock
        self.at_us = 0
        self.epoch = 0
        self.market_seq = 0
        self.status = "dark"
        self.sources = 0
        self.opened_us = 0
        self.events = 0
        self.yes: dict[int, int] = {}
        self.no: dict[int, int] = {}
        self._best_yes = self._best_no = NO_PRICE

    def __repr__(self) -> str:
        return (
            f"LiveBook({self.market}, at_us={self.at_us}, market_seq={self.market_seq}, "
            f"bid={self.best_yes_bid}, ask={self.best_yes_ask}, {self.status})"
        )

    @property
    def complete(self) -> bool:
        """Whether coverage proves this moment."""
        return self.status == "complete"

    @property
    def best_yes_bid(self) -> Level | None:
        """(price, size) of the highest bid for YES."""
        price = self._best_yes
        return None if price < 0 else (price, self.yes[price])

    @property
    def best_yes_ask(self) -> Level | None:
        """The lowest offer of YES: one dollar less the best bid for NO."""
        price = self._best_no
        return None if price < 0 else (PRICE_SCALE - price, self.no[price])

    @property
    def best_no_bid(self) -> Level | None:
        """(price, size) of the highest bid for NO."""
        price = self._best_no
        return None if price < 0 else (price, self.no[price])

    @property
    def best_no_ask(self) -> Level | None:
        """The lowest offer of NO: one dollar less the best bid for YES."""
        price = self._best_yes
        return None if price < 0 else (PRICE_SCALE - price, self.yes[price])

    @property
    def yes_bids(self) -> tuple[Level, ...]:
        """Bids for YES, best first; sorted when asked."""
        return best_first(sorted(self.yes.items()))

    @property
    def no_bids(self) -> tuple[Level, ...]:
        """Bids for NO, best first; sorted when asked."""
        return best_first(sorted(self.no.items()))

    def view(self) -> BookView:
        """The book as a value that stays; equal to `Lake.book` at this place of the tape but for
        where it was rebuilt from (`keyframe_us`, `events`: the opening, and events since)."""
        return BookView(
            market=self.market,
            at_us=self.at_us,
            epoch=self.epoch,
            market_seq=self.market_seq,
            yes_bids=self.yes_bids,
            no_bids=self.no_bids,
            book_hash=hash_levels(self.yes.items(), self.no.items()),
            status=self.status,
            sources=self.sources,
            keyframe_us=self.opened_us,
            events=self.events,
            clock=self.clock,
        )

    def open(self, book: Book, epoch: int, market_seq: int, sources: int) -> None:
        """Become this book, at the beginning of a proven stretch. Raises LakeError if a level of it
        is below zero."""
        self.epoch, self.market_seq, self.events = epoch, market_seq, 0
        self.opened_us, self.status, self.sources = self.at_us, "complete", sources
        if book.is_negative():
            raise LakeError(f"{self.market}: the book has a level below zero", hint=_HINT)
        self.yes, self.no = dict(book.yes), dict(book.no)
        self._best_yes = max(self.yes, default=NO_PRICE)
        self._best_no = max(self.no, default=NO_PRICE)

    def empty(self) -> None:
        """A reset: no levels."""
        self.yes.clear()
        self.no.clear()
        self._best_yes = self._best_no = NO_PRICE

    def change_yes(self, price: int, delta: int) -> None:
        """Add `delta` to a bid for YES. Raises LakeError where that leaves it below zero."""
        size = self.yes.get(price, 0) + delta
        if size > 0:
            self.yes[price] = size
            if price > self._best_yes:
                self._best_yes = price
        elif size == 0:
            self.yes.pop(price, None)
            if price == self._best_yes:
                self._best_yes = max(self.yes, default=NO_PRICE)
        else:
            raise self._below(price, size)

    def change_no(self, price: int, delta: int) -> None:
        """Add `delta` to a bid for NO. Raises LakeError where that leaves it below zero."""
        size = self.no.get(price, 0) + delta
        if size > 0:
            self.no[price] = size
            if price > self._best_no:
                self._best_no = price
        elif size == 0:
            self.no.pop(price, None)
            if price == self._best_no:
                self._best_no = max(self.no, default=NO_PRICE)
        else:
            raise self._below(price, size)

    def _below(self, price: int, size: int) -> LakeError:
        return LakeError(
            f"{self.market}: event {self.market_seq} of epoch {self.epoch} leaves {size} at "
            f"{price}",
            hint=_HINT,
        )
