"""Runs: which stretches of a subscription hold together, and the ids and rows that tell of them.

Purpose: the half of `continuity` that knows sequence numbers and not what a frame says: it gives
market, run and connection ids, begins and ends runs by the tracker's verdicts, and writes control
rows.
A run begins with `subscribed` (or the first numbered frame) or right behind a gap; it ends at a
gap, a terminal error, an unsubscription or the connection's close.
Invariants:
- INV-55 a frame is in sequence within the one live run of its scope, or it is not used.
- INV-56 exactly one effect follows a gap: fresh snapshots for the whole subscription.
Does not do: books, snapshots, trades, tickers (continuity), the verdict on a number (sequence).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

from marketdata.chain import Life, Rows, Scope
from marketdata.rows import ControlKind, ControlRow
from marketdata.sequence import Tracker, Verdict

BOOK_CHANNEL: Final = "orderbook_delta"
SEQUENCED_CHANNELS: Final = frozenset({BOOK_CHANNEL, "trade"})
"""Channels whose run begins with `subscribed`, so that a quiet one is covered from there."""

DUPLICATES_IN_A_ROW_MAX: Final = 64
"""More numbers seen already in a row than this mean that the exchange began to count anew."""

PROBLEM_ROWS_MAX: Final = 100
"""PROBLEM rows for each connection and reason; past it one row in each thousand, with the count."""

PROBLEM_ROW_EVERY: Final = 1000


@dataclass(frozen=True, slots=True)
class Gap:
    """Effect: frames of a subscription were lost; its markets need fresh snapshots."""

    conn_id: int
    sid: int
    channel: str
    missing: int  # numbers skipped, 0 where that cannot be told
    tickers: tuple[str, ...] = ()  # the markets touched; none named: all of the subscription
    seq: int = 0  # the first frame after the gap: older snapshots do not repair it


class Runs:
    """Ids, rows, effects and counts of one gatherer. `Continuity` adds what frames say."""

    def __init__(self, id_base: int) -> None:
        self.rows = Rows()
        self.effects: list[Gap] = []
        self.counts: Counter[str] = Counter()
        self.last_received_ns = 0
        self._next_market_id = id_base
        self._next_run_id = id_base
        self._next_conn_id = id_base
        self.market_ids: dict[str, int] = {}
        self._fresh: dict[str, int] = {}
        self._lives: dict[int, Life] = {}
        self._latest_us = 0  # of connections that are over

    # --- what the shells ask

    def take(self) -> Rows:
        """The rows since the last call; the caller owns them."""
        rows, self.rows = self.rows, Rows()
        return rows

    def take_effects(self) -> list[Gap]:
        """The effects since the last call."""
        found, self.effects = self.effects, []
        return found

    @property
    def next_conn_id(self) -> int:
        """The id for the next connect record."""
        return self._next_conn_id

    @property
    def n_markets(self) -> int:
        """Markets with an id."""
        return len(self.market_ids)

    def market_id(self, ticker: str) -> int:
        """This gatherer's id of a market, given when first asked; a market row tells it."""
        known = self.market_ids.get(ticker)
        if known is not None:
            return known
        given = self._next_market_id
        self._next_market_id += 1
        self.market_ids[ticker] = given
        self._fresh[ticker] = given
        self.rows.markets.append((given, ticker))
        return given

    def take_fresh_markets(self) -> dict[str, int]:
        """Ids given since the last call, for the spool's MARKET record."""
        if not self._fresh:
            return {}
        fresh, self._fresh = self._fresh, {}
        return fresh

    def open_connections(self) -> list[int]:
        """Connections without a close record: those that died with the process before this one."""
        return list(self._lives)

    def latest_us(self) -> int:
        """The latest exchange time on any channel; 0 before the first."""
        latest = self._latest_us
        for life in self._lives.values():
            for scope in life.scopes.values():
                latest = max(latest, scope.last_us)
        return latest

    def latest_us_of(self, conn_id: int) -> int:
        """The latest exchange time on one connection; 0 before the first."""
        life = self._lives.get(conn_id)
        return max((s.last_us for s in life.scopes.values()), default=0) if life else 0

    # --- sequence and runs

    def _consume(
        self,
        conn_id: int,
        life: Life,
        sid: int | None,
        seq: int | None,
        received_ns: int,
        channel: str = "",
    ) -> Scope | None:
        """Let a frame without rows use its number. Returns its scope if it names one."""
        if sid is None:
            return None
        scope = life.scopes.get(sid)
        if scope is None:
            scope = self._scope(life, sid, channel)
        if seq is not None:
            self._sequenced(conn_id, scope, seq, None, received_ns)
        return scope

    def _sequenced(
        self, conn_id: int, scope: Scope, seq: int | None, market: str | None, received_ns: int
    ) -> bool:
        """Whether a frame with rows is to be used. It is in the scope's live run then."""
        tracker = scope.tracker
        verdict = tracker.observe(seq, market)
        if verdict is Verdict.IN_SEQUENCE and scope.run_id:
            scope.last_seq = seq or 0
            scope.duplicates_in_a_row = 0
            scope.counter = tracker.firm_counter
            return True
        return self._rare(conn_id, scope, verdict, seq, received_ns)

    def _rare(
        self, conn_id: int, scope: Scope, verdict: Verdict, seq: int | None, received_ns: int
    ) -> bool:
        """Every case but the next number of a live run. Whether the frame is to be used."""
        number = seq or 0
        if verdict is Verdict.UNSEQUENCED:
            if seq is None and scope.channel in SEQUENCED_CHANNELS:
                self.counts["unsequenced"] += 1
                self._end_run(conn_id, scope, "unsequenced", received_ns)
            return False
        if scope.channel not in SEQUENCED_CHANNELS:
            self.counts[f"other_{verdict.name.lower()}"] += 1
            return True
        if verdict is Verdict.DUPLICATE:
            self.counts["duplicate"] += 1
            scope.duplicates_in_a_row += 1
            if scope.duplicates_in_a_row > DUPLICATES_IN_A_ROW_MAX:
                self._end_run(conn_id, scope, "gap", received_ns)
                scope.tracker = Tracker()
            return False
        if verdict is Verdict.BACKWARD:
            self.counts["backward"] += 1
            self._end_run(conn_id, scope, "gap", received_ns)
            return False
        missing = scope.tracker.missing if verdict is Verdict.GAP else 0
        self._end_run(conn_id, scope, "gap", received_ns)
        is_first = number == 1 and not scope.started
        self._start_run(conn_id, scope, number, "subscribed" if is_first else "gap", received_ns)
        scope.last_seq = number
        scope.duplicates_in_a_row = 0
        if not is_first:
            self.counts["gap"] += 1
            self.counts["missing"] += missing
            gap = Gap(conn_id, scope.sid, scope.channel, missing, seq=number)
            self.effects.append(gap)
        return True

    def _start_run(
        self, conn_id: int, scope: Scope, seq: int, start: str, received_ns: int
    ) -> None:
        scope.run_id = self._next_run_id
        self._next_run_id += 1
        scope.started = True
        self._control_row(
            ControlKind.RUN_START,
            received_ns,
            conn_id,
            run_id=scope.run_id,
            sid=scope.sid,
            seq=seq,
            exchange_us=scope.last_us,
            detail={"channel": scope.channel, "start": start},
        )

    def _end_run(self, conn_id: int, scope: Scope, reason: str, received_ns: int) -> None:
        if not scope.run_id:
            return
        self._control_row(
            ControlKind.RUN_END,
            received_ns,
            conn_id,
            run_id=scope.run_id,
            sid=scope.sid,
            seq=scope.last_seq,
            exchange_us=scope.last_us,
            reason=reason,
        )
        scope.run_id = 0
        scope.counter = None

    # --- small parts

    def life(self, conn_id: int) -> Life:
        """The connection; one without a connect record (its record was lost) begins here."""
        life = self._lives.get(conn_id)
        if life is None:
            life = self._lives[conn_id] = Life()
            self._next_conn_id = max(self._next_conn_id, conn_id + 1)
        return life

    def _scope(self, life: Life, sid: int | None, channel: str) -> Scope:
        """The subscription of a frame. A frame without sid belongs to sid 0 of its connection."""
        number = sid or 0
        scope = life.scopes.get(number)
        if scope is None:
            scope = life.scopes[number] = Scope(number, channel)
        elif not scope.channel:
            scope.channel = channel  # a reply came before the first frame of its kind
        return scope

    def _control_row(
        self,
        kind: str,
        received_ns: int,
        conn_id: int,
        *,
        run_id: int = 0,
        sid: int = 0,
        seq: int = 0,
        market_id: int = 0,
        exchange_us: int = 0,
        reason: str = "",
        detail: dict[str, Any] | None = None,
    ) -> None:
        self.counts[kind] += 1
        self.rows.controls.append(
            ControlRow(
                batch_id=0,
                ord=0,
                received_ns=received_ns,
                kind=kind,
                conn_id=conn_id,
                run_id=run_id,
                sid=sid,
                seq=seq,
                market_id=market_id,
                exchange_us=exchange_us,
                reason=reason,
                detail=detail or {},
            )
        )

    def _problem(
        self,
        conn_id: int,
        life: Life,
        reason: str,
        detail: dict[str, Any],
        received_ns: int,
        sid: int = 0,
    ) -> None:
        self.counts[f"problem_{reason}"] += 1
        count = life.problems.get(reason, 0) + 1
        life.problems[reason] = count
        if count <= PROBLEM_ROWS_MAX or count % PROBLEM_ROW_EVERY == 0:
            self._control_row(
                ControlKind.PROBLEM,
                received_ns,
                conn_id,
                sid=sid,
                reason=reason,
                detail={**detail, "count": count},
            )
