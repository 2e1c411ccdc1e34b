"""Many frames of one connection at once, as columns.

Purpose: when frames come faster than they are read (a burst, or a spool being read again), one
wake-up brings hundreds. What `continuity` does for each change, trade and ticker is done here for
all of them: numbers, times, constants and rows as arrays, and one short loop for the books.

Invariants:
- INV-59 of each kind (changes, trades, tickers) `absorb_burst` takes all frames, and does to state
  and rows exactly what they would do one by one, or none: everything that can fail is looked at
  first. What is taken gives no control row, no effect and no new id, so it does not matter that
  frames of another kind stood between.

Measured (one core, CPython 3.11, 500 frames): a change 3.6 us, against 5.0 us in `hot`; a ticker
8 us against 16 us by way of an event.

Does not do: gaps, floating books, odd times, new markets, other forms (all `continuity`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from marketdata import fields, units
from marketdata.book import MASK, level_constants
from marketdata.chain import Chain, Life, NextSeq, Scope
from marketdata.continuity import Continuity
from marketdata.errors import WireError
from marketdata.rows import DELTA_ROW, TICKER_ROW, TRADE_ROW, DeltaFlag
from marketdata.typed import (
    SECOND_CHARS,
    STATE,
    DeltaFrame,
    TickerFrame,
    TradeFrame,
    Typed,
    payload_key,
    price_or_unset,
)
from marketdata.units import PRICES

BURST_FRAMES: Final = 48
"""Fewer frames than this are cheaper one by one."""

_NEGATIVE: Final = int(DeltaFlag.NEGATIVE)
_LOW32: Final = 0xFFFF_FFFF

# A time as the exchange prints it, with all six digits: 2026-11-22T12:34:56.123456Z
_TS_CHARS: Final = 27
_FRACTION: Final = slice(SECOND_CHARS, _TS_CHARS - 1)
_FRACTION_US: Final = np.array([100_000, 10_000, 1_000, 100, 10, 1])
_Z: Final = ord("Z")

Ints: TypeAlias = npt.NDArray[np.int64]
Together: TypeAlias = DeltaFrame | TradeFrame | TickerFrame
KINDS: Final[frozenset[type]] = frozenset({DeltaFrame, TradeFrame, TickerFrame})
Apply: TypeAlias = Callable[[], None]


class NotTogether(Exception):  # noqa: N818 - no error: the frames go the long way
    """The frames cannot be taken together."""


class Burst:
    """Frames of market data of one connection that came together, by kind."""

    __slots__ = ("deltas", "tickers", "trades")

    def __init__(self, frames: Sequence[Together]) -> None:
        self.deltas = [frame for frame in frames if type(frame) is DeltaFrame]
        self.trades = [frame for frame in frames if type(frame) is TradeFrame]
        self.tickers = [frame for frame in frames if type(frame) is TickerFrame]


def absorb_burst(
    continuity: Continuity, life: Life, typed: Typed, received_ns: int, burst: Burst
) -> frozenset[type]:
    """Take in what can be taken together; returns the kinds of which no frame is left. Those of
    any other kind are to be taken one by one."""
    given = continuity, life, typed, received_ns
    plans: list[tuple[type, Callable[[], Apply]]] = []
    if burst.deltas:
        plans.append((DeltaFrame, partial(_deltas, *given, burst.deltas)))
    if burst.trades:
        plans.append((TradeFrame, partial(_trades, *given, burst.trades)))
    if burst.tickers:
        plans.append((TickerFrame, partial(_tickers, *given, burst.tickers)))
    left = {kind for kind, _ in plans}
    for kind, plan in plans:
        try:
            apply = plan()
        except (NotTogether, KeyError, WireError):
            if not all(frame.msg.ts for frame in burst.deltas):
                break  # one without a time takes the latest of any channel: not that of a later one
            continue
        apply()
        left.remove(kind)
    return KINDS - left


def _one_scope(life: Life, frames: Sequence[Together]) -> Scope:
    """The subscription that all frames belong to. Its channel is known: one that only a reply
    named so far takes it from its first frame."""
    sid = frames[0].sid
    if sid is None or any(frame.sid != sid for frame in frames):
        raise NotTogether
    scope = life.scopes[sid]
    if not scope.channel:
        raise NotTogether
    return scope


def _next_seqs(scope: Scope, frames: Sequence[DeltaFrame | TradeFrame]) -> NextSeq:
    """The count of a subscription whose next numbers are exactly those of the frames."""
    counter = scope.counter
    if counter is None or not scope.run_id:
        raise NotTogether
    first = counter.next
    if [frame.seq for frame in frames] != list(range(first, first + len(frames))):
        raise NotTogether
    return counter


def _deltas(
    continuity: Continuity,
    life: Life,
    typed: Typed,
    received_ns: int,
    frames: Sequence[DeltaFrame],
) -> Apply:
    return _Deltas(continuity, life, typed, received_ns, frames).apply


class _Deltas:
    """Changes of one subscription: everything that can fail is done when it is made."""

    def __init__(
        self,
        continuity: Continuity,
        life: Life,
        typed: Typed,
        received_ns: int,
        frames: Sequence[DeltaFrame],
    ) -> None:
        self._continuity = continuity
        self._scope = scope = _one_scope(life, frames)
        self._counter = _next_seqs(scope, frames)
        msgs, of_market, run_id = [frame.msg for frame in frames], scope.chains, scope.run_id
        self._chains = chains = [of_market[msg.market_ticker] for msg in msgs]
        if not all(chain.anchored and chain.run_id == run_id for chain in dict.fromkeys(chains)):
            raise NotTogether
        self._prices = prices = _prices([msg.price_dollars for msg in msgs])
        self._deltas = deltas = _sizes([msg.delta_fp for msg in msgs], typed)
        self._times = times = times_us([msg.ts for msg in msgs], typed.ts_us)
        if not _in_order(times, chains, scope):
            raise NotTogether
        self._is_no = [msg.side == "no" for msg in msgs]
        self._made = made = np.zeros(len(frames), DELTA_ROW)
        first = self._counter.next
        made["exchange_us"], made["received_ns"] = times, received_ns
        made["delta"], made["price"], made["side"] = deltas, prices, self._is_no
        made["market_id"] = [chain.market_id for chain in chains]
        made["run_id"] = run_id
        made["seq"] = np.arange(first, first + len(frames), dtype=np.int64) & _LOW32

    def apply(self) -> None:
        """Change books, hashes and counts; give the rows."""
        made, scope, times = self._made, self._scope, self._times
        hashes, below = _apply(self._chains, self._is_no, self._prices, self._deltas, _terms(made))
        made["book_hash"] = hashes
        if below:
            made["flags"][below] = _NEGATIVE
            self._continuity.counts["negative"] += len(below)
        self._counter.next += len(made)
        scope.last_seq, scope.duplicates_in_a_row = self._counter.next - 1, 0
        scope.last_us = max(scope.last_us, int(times.max()))
        for chain, last_us in dict(zip(self._chains, times.tolist(), strict=True)).items():
            chain.last_us = last_us
        self._continuity.rows.deltas += made.tobytes()


def _trades(
    continuity: Continuity,
    life: Life,
    typed: Typed,
    received_ns: int,
    frames: Sequence[TradeFrame],
) -> Apply:
    scope = _one_scope(life, frames)
    counter = _next_seqs(scope, frames)
    msgs, ids = [frame.msg for frame in frames], continuity.market_ids
    counts = _sizes([msg.count_fp for msg in msgs], typed)
    for count in counts:
        fields.not_negative(count)
    made = np.zeros(len(frames), TRADE_ROW)
    made["exchange_us"] = [units.ms_to_us(msg.ts_ms) for msg in msgs]
    made["received_ns"], made["run_id"] = received_ns, scope.run_id
    made["trade_id"] = np.frombuffer(b"".join(fields.trade_id(msg.trade_id) for msg in msgs), "V16")
    made["count"] = counts
    made["seq"] = np.arange(counter.next, counter.next + len(frames))
    made["market_id"] = [ids[msg.market_ticker] for msg in msgs]
    made["yes_price"] = _prices([msg.yes_price_dollars for msg in msgs])
    made["no_price"] = _prices([msg.no_price_dollars for msg in msgs])
    made["taker_side"] = [msg.taker_outcome_side == "no" for msg in msgs]
    made["flags"] = [msg.is_block_trade for msg in msgs]

    def apply() -> None:
        counter.next += len(made)
        scope.last_seq, scope.duplicates_in_a_row = counter.next - 1, 0
        scope.last_us = max(scope.last_us, int(made["exchange_us"].max()))
        continuity.rows.trades += made.tobytes()

    return apply


def _tickers(
    continuity: Continuity,
    life: Life,
    typed: Typed,
    received_ns: int,
    frames: Sequence[TickerFrame],
) -> Apply:
    scope = _one_scope(life, frames)
    msgs, ids = [frame.msg for frame in frames], continuity.market_ids
    columns: dict[str, Sequence[int] | Ints] = {
        "exchange_us": times_us([msg.time for msg in msgs], typed.ts_us),
        "volume": _sizes([msg.volume_fp for msg in msgs], typed),
        "open_interest": _sizes([msg.open_interest_fp for msg in msgs], typed),
        "dollar_volume": [msg.dollar_volume for msg in msgs],
        "dollar_open_interest": [msg.dollar_open_interest for msg in msgs],
        "yes_bid_size": _sizes([msg.yes_bid_size_fp for msg in msgs], typed),
        "yes_ask_size": _sizes([msg.yes_ask_size_fp for msg in msgs], typed),
        "last_trade_size": _sizes([msg.last_trade_size_fp for msg in msgs], typed),
        "price": [price_or_unset(msg.price_dollars) for msg in msgs],
        "yes_bid": [price_or_unset(msg.yes_bid_dollars) for msg in msgs],
        "yes_ask": [price_or_unset(msg.yes_ask_dollars) for msg in msgs],
    }
    states = np.empty(len(frames), _STATE_ROW)
    made = np.zeros(len(frames), TICKER_ROW)
    for name, values in columns.items():
        states[name] = made[name] = np.asarray(values)
    packed = states.tobytes()
    made["payload_key"] = [
        payload_key(packed[at : at + STATE.size]) for at in range(0, len(packed), STATE.size)
    ]
    made["received_ns"] = received_ns
    made["market_id"] = [ids[msg.market_ticker] for msg in msgs]

    def apply() -> None:
        scope.last_us = max(scope.last_us, int(made["exchange_us"].max()))
        continuity.rows.tickers += made.tobytes()

    return apply


_STATE_ROW: Final = np.dtype(
    [
        (name, "<i8")
        for name in (
            "exchange_us", "volume", "open_interest", "dollar_volume", "dollar_open_interest",
            "yes_bid_size", "yes_ask_size", "last_trade_size",
        )
    ]
    + [(name, "<i4") for name in ("price", "yes_bid", "yes_ask")]
)  # fmt: skip
assert STATE.size == _STATE_ROW.itemsize, "a state is not packed as one by one"


def _prices(texts: Sequence[str]) -> list[int]:
    """Micro-dollars of each text. Raises OffScale."""
    try:
        return [PRICES[text] for text in texts]
    except KeyError:
        return list(map(units.parse_price_micros, texts))


def _sizes(texts: Sequence[str], typed: Typed) -> list[int]:
    """1/100 contracts of each text, from the memo where all are known. Raises OffScale."""
    known = typed.sizes
    try:
        return [known[text] for text in texts]
    except KeyError:
        return list(map(typed.size, texts))


def _terms(made: npt.NDArray[np.void]) -> list[int]:
    """What each change adds to its book's hash."""
    constants = level_constants(made["side"], made["price"])
    terms: list[int] = (constants * made["delta"].view(np.uint64)).tolist()
    return terms


def _apply(
    chains: Sequence[Chain],
    is_no: Sequence[bool],
    prices: Sequence[int],
    deltas: Sequence[int],
    terms: Sequence[int],
) -> tuple[list[int], list[int]]:
    """Change the books in order: (hash after each, places where a level went below zero)."""
    hashes, below = list[int](), list[int]()
    for chain, no, price, delta, term in zip(chains, is_no, prices, deltas, terms, strict=True):
        levels = chain.no if no else chain.yes
        size = levels.get(price, 0) + delta
        if size > 0:
            levels[price] = size
        elif size:
            levels[price] = size
            below.append(len(hashes))
        else:
            levels.pop(price, None)
        chain.hash = book_hash = (chain.hash + term) & MASK
        hashes.append(book_hash)
    return hashes, below


def _in_order(times: Ints, chains: Sequence[Chain], scope: Scope) -> bool:
    """Whether no market's time goes back."""
    if times[0] >= scope.last_us and (times[1:] >= times[:-1]).all():
        return True
    last: dict[int, int] = {}
    for chain, time_us in zip(chains, times.tolist(), strict=True):
        if time_us < last.get(chain.market_id, chain.last_us):
            return False
        last[chain.market_id] = time_us
    return True


def times_us(texts: Sequence[str], one_us: Callable[[str], int]) -> Ints:
    """`units.parse_ts_us` of each text. Raises NotTogether where one by one is right.

    Texts that follow each other share most of their seconds: `one_us` reads one of each, the
    fractions are read as columns.
    """
    wide = [text if len(text) == _TS_CHARS else _widened(text) for text in texts]
    try:
        joined = "".join(wide).encode("ascii")
    except UnicodeEncodeError as error:
        raise NotTogether from error
    grid = np.frombuffer(joined, np.uint8).reshape(len(texts), _TS_CHARS)
    digits = grid[:, _FRACTION] - np.uint8(48)
    if (digits > 9).any() or (grid[:, -1] != _Z).any():
        raise NotTogether
    times: Ints = digits @ _FRACTION_US
    seconds = np.ascontiguousarray(grid[:, :SECOND_CHARS]).view(f"S{SECOND_CHARS}").ravel()
    firsts = [0, *(np.flatnonzero(seconds[1:] != seconds[:-1]) + 1).tolist()]
    for begin, end in pairwise([*firsts, len(texts)]):
        times[begin:end] += one_us(texts[begin]) - int(times[begin])
    return times


def _widened(text: str) -> str:
    """The same time with all six digits of its fraction: one in ten lacks trailing zeros."""
    if text[-1:] != "Z" or not SECOND_CHARS <= len(text) < _TS_CHARS:
        raise NotTogether
    point = "." if len(text) == SECOND_CHARS else ""
    return text[:-1] + point + "0" * (_TS_CHARS - len(text) - len(point)) + "Z"
