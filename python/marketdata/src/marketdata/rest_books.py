"""Order books by REST as independent audits of ours: hash, verdict, who is doubted.

Purpose: a book by REST has no sequence number and no time, so that one answer proves little: it may
be of any moment between the request and the answer, or of one that frames have not brought yet. It
is compared with what our book was at each look around the request.
Invariants:
- INV-73 AGREES only if the answer's book hash is that of our book at one of the looks.
- INV-74 a difference is called one only if our book did not change from before the request to the
  last look, differed, and was in the same state in the audit of that market before it.
- INV-75 `books_page` gives the hashes of `rest_bodies.order_book`, whatever form the levels have.
Does not do: asking (gatherer.rest_audit), repair (the feed asks for a snapshot), claims: an audit
that agrees is worth telling and proves no interval.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final, NamedTuple

from marketdata import fields, rest_bodies
from marketdata.book import CONSTANTS, MASK, hash_levels
from marketdata.errors import MalformedFrame, WireError
from marketdata.fields import Message
from marketdata.units import PRICES

TICKERS_MAX: Final = 100
"""Of one request."""
QUERY_CHARS_MAX: Final = 6_000
"""Of all tickers of one request: servers refuse lines of more than 8,190."""
DIFFERING_TIMES: Final = 6
TICKER_OVERHEAD: Final = len("&tickers=")


class Look(NamedTuple):
    """Our book at one moment. Two equal looks: no change was seen between them."""

    run_id: int
    book_hash: int
    last_us: int


class AuditVerdict(IntEnum):
    """What one answer says about one book; the numbers are stored."""

    AGREES = 0
    BUSY = 1  # ours changed meanwhile and was never equal: undecided
    SUSPECT = 2  # ours stood still and differed: asked again soon
    DIFFERS = 3  # as SUSPECT, twice in a row
    NO_BOOK = 4  # ours is not proven: not subscribed, or waiting for a snapshot
    ABSENT = 5  # the answer does not have it, or not in a form that can be read


def judge(rest_hash: int | None, looks: Sequence[Look | None]) -> AuditVerdict:
    """The verdict on one answer. `looks`: ours before the request, at the answer, and later."""
    if rest_hash is None:
        return AuditVerdict.ABSENT
    if any(look is not None and look.book_hash == rest_hash for look in looks):
        return AuditVerdict.AGREES
    if not looks or any(look is None for look in looks):
        return AuditVerdict.NO_BOOK
    if all(look == looks[0] for look in looks):
        return AuditVerdict.SUSPECT
    return AuditVerdict.BUSY


@dataclass(slots=True)
class Doubts:
    """Markets whose last audit differed. `differing`: twice, and not agreed with since; with the
    time of the last audit."""

    suspects: dict[str, tuple[Look, int]] = field(default_factory=dict)
    differing: dict[str, int] = field(default_factory=dict)

    def note(
        self, ticker: str, rest_hash: int | None, looks: Sequence[Look | None], now_ns: int
    ) -> AuditVerdict:
        """The verdict on an answer in the light of the one before it."""
        verdict = judge(rest_hash, looks)
        before = self.suspects.pop(ticker, None)
        if verdict is AuditVerdict.AGREES:
            self.differing.pop(ticker, None)
        if ticker in self.differing:
            self.differing[ticker] = now_ns
        if verdict is AuditVerdict.SUSPECT:
            look = looks[-1]
            assert look is not None, "judge: a book that is not proven is no suspect"
            if ticker in self.differing or (before is not None and before[0] == look):
                self.differing[ticker] = now_ns
                return AuditVerdict.DIFFERS
            self.suspects[ticker] = look, now_ns
        return verdict

    def due(self, now_ns: int, after_ns: int) -> list[str]:
        """Suspects that have been so for `after_ns`; those that differ, after some times that."""
        found = [ticker for ticker, (_, at) in self.suspects.items() if now_ns - at >= after_ns]
        later_ns = DIFFERING_TIMES * after_ns
        return found + [t for t, at in self.differing.items() if now_ns - at >= later_ns]

    def keep(self, tickers: Collection[str]) -> None:
        """Forget all other markets."""
        for held in (self.suspects, self.differing):
            for ticker in [t for t in held if t not in tickers]:
                del held[ticker]


def requests_of(tickers: Sequence[str]) -> list[tuple[str, ...]]:
    """The tickers of each request, within its limits, in order."""
    made: list[tuple[str, ...]] = []
    part: list[str] = []
    chars = 0
    for ticker in tickers:
        more = len(ticker) + TICKER_OVERHEAD
        if part and (len(part) == TICKERS_MAX or chars + more > QUERY_CHARS_MAX):
            made.append(tuple(part))
            part, chars = [], 0
        part.append(ticker)
        chars += more
    return [*made, tuple(part)] if part else made


def entries_of(body: Message) -> list[Any]:
    """The books of an answer. Raises WireError where there is no list of them."""
    listed = fields.require(body, "orderbooks")
    if not isinstance(listed, list):
        raise MalformedFrame(f"field 'orderbooks' is {listed!r:.80}, not a list")
    return listed


def hash_of(entry: Any) -> tuple[str, int]:
    """(ticker, book hash) of one book of an answer.

    Raises:
        WireError: it cannot be read.
    """
    if not isinstance(entry, dict):
        raise MalformedFrame(f"book {entry!r:.80} is not an object")
    ticker = fields.ticker(entry.get("ticker"), "ticker")
    book = entry.get("orderbook_fp")
    if isinstance(book, dict):
        try:
            return ticker, _quick_hash(book)
        except (KeyError, ValueError, TypeError, AttributeError):
            pass  # another form, or a fault: read exactly
    exact = rest_bodies.order_book(entry, ticker)
    return ticker, hash_levels(exact.yes, exact.no)


def books_page(entries: Sequence[Any], into: dict[str, int]) -> list[WireError]:
    """Add the hash of every book that can be read; returns what is wrong with the others."""
    problems: list[WireError] = []
    for entry in entries:
        try:
            ticker, book_hash = hash_of(entry)
        except WireError as problem:
            problems.append(problem)
            continue
        into[ticker] = book_hash
    return problems


def _quick_hash(book: Message) -> int:
    """The hash of a book in the form in use, in 0.6 of the time of reading it exactly
    (measured). Whatever is not as usual is an exception of the language."""
    total = 0
    if not book.keys() <= {"yes_dollars", "no_dollars"}:
        raise KeyError
    for side, name in enumerate(("yes_dollars", "no_dollars")):
        constants, last = CONSTANTS[side], -1
        for text, size in book.get(name) or ():
            price = PRICES[text]
            whole, _, fraction = size.partition(".")
            digits = whole + fraction
            odd = price <= last or len(fraction) != 2 or not whole
            if odd or not (digits.isdecimal() and digits.isascii()):
                raise ValueError
            last = price
            total += constants[price] * int(digits)
    return total & MASK
