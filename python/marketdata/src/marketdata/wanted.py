"""The order books of one connection: which are wanted, which are subscribed, what to ask for next.

Purpose: the sets behind the session. What differs between wanted and subscribed is found by looking
at the markets that something happened to, never at all of them: 50 markets opening and 50 closing
in a second must not cost a walk over thousands.
Invariants:
- INV-45 a market is due exactly if wanted and not subscribed, or subscribed and not wanted, and
  nothing about it is under way or refused: `due` gives all of those and no other.
- A market is in at most one of `adding`, `deleting`.
Does not do: commands, limits, time (session, commands).
"""

from __future__ import annotations

from collections.abc import Iterable


class Books:
    """See the module's text. Its sets are written by its methods only."""

    def __init__(self) -> None:
        self.wanted: dict[str, None] = {}
        self.subscribed: dict[str, None] = {}  # acknowledged; always the same dict
        self.refused: set[str] = set()  # wanted, and the exchange will not carry them for now
        self._adding: set[str] = set()  # asked for, or about to be asked for again
        self._deleting: set[str] = set()
        self._kept: dict[str, None] = {}  # the exchange would not take them back
        self._touched: dict[str, None] = {}  # where wanted and subscribed may differ

    @property
    def may_differ(self) -> bool:
        """Whether `due` should be looked at."""
        return bool(self._touched)

    def reset(self) -> None:
        """A new subscription: nothing is subscribed, nothing is under way."""
        self.subscribed.clear()
        self._adding.clear()
        self._deleting.clear()
        self._kept.clear()
        self._touched = dict.fromkeys(self.wanted)

    def want(self, tickers: Iterable[str]) -> None:
        """The whole set."""
        wanted = dict.fromkeys(tickers)
        gone = [ticker for ticker in self.wanted if ticker not in wanted]
        self._touched |= dict.fromkeys(gone) | self._kept
        self._touched |= {t: None for t in wanted if t not in self.wanted}
        self._kept.clear()
        self.refused.difference_update(gone)
        self.wanted = wanted

    def change(self, add: Iterable[str], drop: Iterable[str]) -> None:
        """What joins and what leaves the set."""
        for ticker in drop:
            if ticker in self.wanted:
                del self.wanted[ticker]
                self.refused.discard(ticker)
                self._touched[ticker] = None
        for ticker in add:
            if ticker not in self.wanted:
                self.wanted[ticker] = None
                self._touched[ticker] = None
        self._touched |= self._kept
        self._kept.clear()

    def forgive(self) -> None:
        """What was refused may be asked for again."""
        self._touched |= dict.fromkeys(self.refused) | self._kept
        self.refused.clear()
        self._kept.clear()

    def due(self) -> tuple[list[str], list[str]]:
        """What to ask for and what to give back, in order; what stays is due again next time."""
        to_add: list[str] = []
        to_delete: list[str] = []
        for ticker in self._touched:
            if ticker in self._adding or ticker in self._deleting:
                continue  # looked at again when that is over
            is_wanted, is_subscribed = ticker in self.wanted, ticker in self.subscribed
            if is_wanted and not is_subscribed and ticker not in self.refused:
                to_add.append(ticker)
            elif is_subscribed and not is_wanted:
                to_delete.append(ticker)
        self._touched = dict.fromkeys(to_add) | dict.fromkeys(to_delete)
        return to_add, to_delete

    def asked(self, tickers: Iterable[str], *, delete: bool = False) -> None:
        """A command with these goes out."""
        for ticker in tickers:
            (self._deleting if delete else self._adding).add(ticker)
            self._touched.pop(ticker, None)

    def acknowledged(self, tickers: Iterable[str], *, delete: bool = False) -> None:
        """The exchange did it."""
        for ticker in tickers:
            if delete:
                self.subscribed.pop(ticker, None)
                self._deleting.discard(ticker)
            else:
                self.subscribed[ticker] = None
                self._adding.discard(ticker)
            self._touched[ticker] = None

    def refuse(self, tickers: Iterable[str]) -> None:
        """The exchange will not carry these for now."""
        self._adding.difference_update(tickers)
        self.refused.update(t for t in tickers if t in self.wanted)

    def keep(self, tickers: Iterable[str]) -> None:
        """The exchange will not take these back: tried again with the next change."""
        self._deleting.difference_update(tickers)
        self._kept |= dict.fromkeys(tickers)

    def open_again(self, tickers: Iterable[str]) -> None:
        """A command with these came to nothing."""
        for ticker in tickers:
            self._adding.discard(ticker)
            self._deleting.discard(ticker)
            self._touched[ticker] = None
