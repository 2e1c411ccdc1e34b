"""From the decoded events of one gatherer to rows with verdicts: runs, chains, audits.

Purpose: follow `seq` for each subscription (connection, sid), keep each market's book and its hash,
and say what each frame proves: in sequence, gap, snapshot agrees, snapshot differs. Trades
and tickers become rows too, and everything that was not understood becomes a PROBLEM row.

Words: a *run* is a stretch of one subscription without a sequence gap, over all its markets. A
*chain* is one market within a run, *floating* until its first snapshot in the run: its hash then
counts from 0 at the run's start.

Invariants:
- INV-50 rows are a function of the events and their order: no clock, no randomness, no iteration
  over unordered sets. The same spool gives the same ids, hashes and rows.
- INV-51 within a run every anchored chain has H[i] = H[i-1] + C(side, price) * delta; a snapshot
  agrees only if its own hash equals the running one.
- INV-52 after a gap no chain is anchored before its next snapshot, and exactly one effect asks for
  snapshots of the subscription.
- INV-53 `Continuity.restore(c.export())` goes on exactly as `c` would have.
- INV-54 a number of the sequence is used once: a frame seen already is counted and not stored.

Does not do: decoding (wire), telling seq apart per market or per sid (sequence), sending commands
(session), storing anything (the spool before, the sink after).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from marketdata import events, rest_trades
from marketdata.book import CONSTANTS, MASK, hash_levels, pack_levels
from marketdata.chain import DELTA_PACK, Chain, Life, Scope, pack_ticker, pack_trade
from marketdata.events import TsPrecision
from marketdata.rest_books import Look
from marketdata.rows import (
    ControlKind,
    DeltaFlag,
    SnapshotRow,
    SnapshotVerdict,
)
from marketdata.runs import BOOK_CHANNEL, SEQUENCED_CHANNELS, Gap, Runs
from marketdata.units import US_PER_MS

TERMINAL_CODES: Final = frozenset({10, 17, 25})
"""Errors after which a subscription is dead: channel error, internal error (retired), overflow."""

PROBLEM_TEXT_MAX: Final = 300

STATE_FORMAT: Final = 1

_MICRO: Final = TsPrecision.MICRO
_FLOATING: Final = int(DeltaFlag.FLOATING)
_INFERRED: Final = int(DeltaFlag.TS_INFERRED)
_MS_ONLY: Final = int(DeltaFlag.TS_MS_ONLY)
_NEGATIVE: Final = int(DeltaFlag.NEGATIVE)
_BACKWARD: Final = int(DeltaFlag.TS_BACKWARD)
_RESET: Final = int(DeltaFlag.RESET | DeltaFlag.TS_INFERRED)
_LOW32: Final = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True)
class Refused:
    """A frame that `wire` did not understand, with what could be read of it. It stays in the spool;
    `detail` tells where."""

    reason: str  # TapeError.reason
    message: str
    detail: dict[str, Any]
    sid: int | None = None
    seq: int | None = None
    market: str | None = None


class Continuity(Runs):
    """The state of one gatherer's intake. Feed it control records and events in spool order.

    `rows` is what has come out since the last `take`; `effects` what the session should do.
    `counts` counts duplicates, problems by reason, verdicts and gaps since the state was made.
    """

    # --- control records

    def control(self, record: Mapping[str, Any]) -> None:
        """A CONTROL record: connect, close, subscribe (a command as sent), error, rest_trades,
        rest_window. A note says nothing to the tape."""
        received_ns = int(record["received_ns"])
        self.last_received_ns = max(self.last_received_ns, received_ns)
        kind, conn_id = record["k"], int(record.get("conn", 0))
        if kind == "connect":
            self._connect(conn_id, record, received_ns)
        elif kind == "close":
            self._close(conn_id, str(record.get("reason", "")), record, received_ns)
        elif kind == "subscribe":
            self._commanded(conn_id, record)
        elif kind == "error":
            reason, detail = str(record.get("reason", "error")), dict(record.get("detail") or {})
            self._problem(conn_id, self.life(conn_id), reason, detail, received_ns)
        elif kind == "rest_trades":
            self._rest_trades(record, received_ns)
        elif kind == "rest_window":
            self._control_row(
                ControlKind.REST_WINDOW,
                received_ns,
                0,
                exchange_us=self.latest_us(),
                reason=str(record.get("reason", "")),
                detail=rest_trades.window_detail(record),
            )

    def _rest_trades(self, record: Mapping[str, Any], received_ns: int) -> None:
        """Trades that REST listed and no frame had brought. Their run is this one record: it links
        each row to its request, and proves nothing of any time."""
        run_id = self._next_run_id
        self._next_run_id += 1
        read = rest_trades.read_trades(record.get("trades"))
        for place, trade in read.trades:
            market_id = self.market_id(trade.market)
            self.rows.trades += rest_trades.pack_rest_trade(
                trade, place, received_ns, market_id, run_id
            )
        self.counts["rest_trades_stored"] += len(read.trades)
        if read.refused:
            self.counts["problem_rest_trade"] += read.refused
        self._control_row(
            ControlKind.REST_TRADES,
            received_ns,
            0,
            run_id=run_id,
            exchange_us=self.latest_us(),
            detail=rest_trades.trades_detail(record, read),
        )

    def end(self) -> None:
        """The END record: a clean stop; nothing more comes before the next connect."""
        self._control_row(ControlKind.GATHERER_END, self.last_received_ns, 0)

    def _connect(self, conn_id: int, record: Mapping[str, Any], received_ns: int) -> None:
        self._next_conn_id = max(self._next_conn_id, conn_id + 1)
        self._lives[conn_id] = Life()
        detail = {k: record.get(k, "") for k in ("conn_uid", "handshake", "local", "url")}
        self._control_row(ControlKind.CONN_OPEN, received_ns, conn_id, detail=detail)

    def _close(
        self, conn_id: int, reason: str, record: Mapping[str, Any], received_ns: int
    ) -> None:
        life = self._lives.pop(conn_id, None)
        for scope in life.scopes.values() if life is not None else ():
            self._latest_us = max(self._latest_us, scope.last_us)
            self._end_run(conn_id, scope, "close", received_ns)
        detail = {k: record[k] for k in ("code", "text") if record.get(k)}
        self._control_row(
            ControlKind.CONN_CLOSE, received_ns, conn_id, reason=reason, detail=detail
        )

    def _commanded(self, conn_id: int, record: Mapping[str, Any]) -> None:
        """Remember what only the reply will make true: markets leave with the `ok`."""
        command = record.get("command") or {}
        params = command.get("params") or {}
        if params.get("action") == "delete_markets" and command.get("id"):
            tickers = list(params.get("market_tickers") or [params.get("market_ticker")])
            self.life(conn_id).removals[command["id"]] = tickers

    # --- events

    def absorb(
        self, conn_id: int, batch: Sequence[events.Decoded | Refused], received_ns: int
    ) -> None:
        """Decoded frames of one connection, in arrival order, received together."""
        self.last_received_ns = received_ns
        life = self.life(conn_id)
        for event in batch:
            self.absorb_one(conn_id, life, event, received_ns)

    def absorb_one(
        self, conn_id: int, life: Life, event: events.Decoded | Refused, received_ns: int
    ) -> None:
        """One frame of a connection. `hot` takes nearly all changes a shorter way to the same."""
        if type(event) is events.Delta:
            self._delta(conn_id, life, event, received_ns)
        elif type(event) is events.Ticker:
            self._ticker(self._scope(life, event.sid, "ticker"), event, received_ns)
        elif type(event) is events.Trade:
            self._trade(conn_id, life, event, received_ns)
        elif type(event) is events.Snapshot:
            scope = self._scope(life, event.sid, BOOK_CHANNEL)
            self._snapshot(conn_id, scope, event, received_ns)
        else:
            self._other(conn_id, life, event, received_ns)

    def _delta(self, conn_id: int, life: Life, event: events.Delta, received_ns: int) -> None:
        scope, market = self._scope(life, event.sid, BOOK_CHANNEL), event.market
        if not self._sequenced(conn_id, scope, event.seq, market, received_ns):
            return
        run_id = scope.run_id
        chain = scope.chains.get(market)
        if chain is None:
            chain = scope.chains[market] = Chain(self.market_id(market), run_id)
        elif chain.run_id != run_id:
            chain.float_in(run_id)
        exchange_us, flags = event.exchange_us, 0
        if exchange_us is None or exchange_us < chain.last_us:
            exchange_us, flags = self._odd_time(scope, chain, event)
        else:
            chain.last_us = exchange_us
            scope.last_us = max(scope.last_us, exchange_us)
            flags = 0 if event.ts_precision is _MICRO else _MS_ONLY
        side, price, delta = event.side, event.price, event.delta
        if not chain.anchored:
            flags |= _FLOATING
        elif chain.apply(side, price, delta) < 0:
            flags |= _NEGATIVE
            self.counts["negative"] += 1
        book_hash = chain.hash = (chain.hash + CONSTANTS[side][price] * delta) & MASK
        self.rows.deltas += DELTA_PACK.pack(
            exchange_us, received_ns, delta, book_hash, chain.market_id, run_id,
            (event.seq or 0) & _LOW32, 0, price, side, flags,
        )  # fmt: skip

    def _odd_time(self, scope: Scope, chain: Chain, event: events.Delta) -> tuple[int, int]:
        """Time and flags of a change that has none, or one before the market's last."""
        exchange_us = event.exchange_us
        if exchange_us is None:
            return chain.last_us or scope.last_us or self.latest_us(), _INFERRED
        if event.ts_precision is _MICRO:
            return exchange_us, _BACKWARD
        if exchange_us // US_PER_MS == chain.last_us // US_PER_MS:
            return exchange_us, _MS_ONLY  # the same millisecond: only its digits are cut
        return exchange_us, _MS_ONLY | _BACKWARD

    def _other(
        self, conn_id: int, life: Life, event: events.Decoded | Refused, received_ns: int
    ) -> None:
        """Every frame that is no market data."""
        if isinstance(event, Refused):
            self._refused(conn_id, life, event, received_ns)
        elif isinstance(event, events.Subscribed):
            self._subscribed(conn_id, life, event, received_ns)
        elif isinstance(event, events.Ok | events.Unsubscribed | events.Error):
            self._reply(conn_id, life, event, received_ns)
        elif isinstance(event, events.Unknown):
            self._unknown(conn_id, life, event, received_ns)
        else:
            self._consume(conn_id, life, event.sid, event.seq, received_ns, "market_lifecycle_v2")

    def _unknown(self, conn_id: int, life: Life, event: events.Unknown, received_ns: int) -> None:
        """A message of no type we know. If it took a number of a subscription it may have been a
        change under a new name: what cannot be read is never counted as covered."""
        scope = self._consume(conn_id, life, event.sid, event.seq, received_ns)
        detail = {"type": event.type[:PROBLEM_TEXT_MAX]}
        self._problem(conn_id, life, "unknown_type", detail, received_ns, event.sid or 0)
        if scope is not None and event.seq is not None and scope.channel in SEQUENCED_CHANNELS:
            self._end_run(conn_id, scope, "error", received_ns)

    def _refused(self, conn_id: int, life: Life, refused: Refused, received_ns: int) -> None:
        """A frame that was not understood: what cannot be read is never counted as covered.

        It uses its number, but the claim on its market ends there (`market_removed`), or the whole
        run where no market can be told.
        """
        detail = {**refused.detail, "error": refused.message[:PROBLEM_TEXT_MAX]}
        sid, seq, market = refused.sid, refused.seq, refused.market
        self._problem(conn_id, life, refused.reason, detail, received_ns, sid or 0)
        scope = None if sid is None else life.scopes.get(sid)
        if scope is None or scope.channel not in SEQUENCED_CHANNELS:
            return
        if not self._sequenced(conn_id, scope, seq, market, received_ns):
            return
        if scope.channel != BOOK_CHANNEL or market is None:
            self._end_run(conn_id, scope, "error", received_ns)
            return
        self._remove_market(conn_id, scope, market, seq or 0, received_ns, refused.reason)
        self.effects.append(Gap(conn_id, scope.sid, scope.channel, 1, (market,), seq or 0))

    def _snapshot(
        self, conn_id: int, scope: Scope, event: events.Snapshot, received_ns: int
    ) -> None:
        if not self._sequenced(conn_id, scope, event.seq, event.market, received_ns):
            return
        chain = scope.chains.get(event.market)
        known = chain is not None
        if chain is None:
            chain = scope.chains[event.market] = Chain(self.market_id(event.market), scope.run_id)
        elif chain.run_id != scope.run_id:
            chain.float_in(scope.run_id)
        book_hash, running = hash_levels(event.yes, event.no), chain.hash
        flags = 0
        if not chain.anchored:
            verdict = SnapshotVerdict.ANCHOR
            flags = _FLOATING if known else 0
        elif book_hash == running:
            verdict = SnapshotVerdict.AGREES
        elif event.yes or event.no:
            verdict = SnapshotVerdict.DIFFERS
        else:
            verdict = SnapshotVerdict.RESET
            self._reset_row(scope, chain, event.seq or 0, received_ns)
        self.counts[f"snapshot_{verdict.name.lower()}"] += 1
        self.rows.snapshots.append(
            SnapshotRow(
                exchange_us=scope.last_us or self.latest_us(),
                received_ns=received_ns,
                book_hash=book_hash,
                running_hash=running,
                market_id=chain.market_id,
                run_id=scope.run_id,
                seq=event.seq or 0,
                batch_id=0,
                verdict=int(verdict),
                flags=flags,
                levels=pack_levels(event.yes, event.no),
            )
        )
        if verdict is not SnapshotVerdict.AGREES:
            chain.load(event.yes, event.no, book_hash)

    def _reset_row(self, scope: Scope, chain: Chain, seq: int, received_ns: int) -> None:
        """An empty snapshot emptied a book: an event without a time of its own.

        It gets the latest time that its subscription has shown, which lies between the market's
        event before it and the exchange's own moment (a quiet market's event may be hours old).
        """
        exchange_us = max(chain.last_us, scope.last_us) or self.latest_us()
        self.rows.deltas += DELTA_PACK.pack(
            exchange_us, received_ns, 0, 0, chain.market_id, scope.run_id,
            seq & _LOW32, 0, 0, 0, _RESET,
        )  # fmt: skip

    def _trade(self, conn_id: int, life: Life, event: events.Trade, received_ns: int) -> None:
        scope = self._scope(life, event.sid, "trade")
        run_id = 0
        if event.seq is not None:
            if not self._sequenced(conn_id, scope, event.seq, event.market, received_ns):
                return
            run_id = scope.run_id
        elif scope.run_id:  # a form without seq proves nothing: what was claimed ends here
            self._end_run(conn_id, scope, "unsequenced", received_ns)
        if event.trade_id is None:
            detail = {"market": event.market, "what": "trade without an id"}
            self._problem(conn_id, life, "missing_field", detail, received_ns, scope.sid)
            return
        exchange_us = self._time_of(scope, event.exchange_us)
        market_id = self.market_id(event.market)
        self.rows.trades += pack_trade(
            event, event.trade_id, exchange_us, received_ns, market_id, run_id
        )

    def _ticker(self, scope: Scope, event: events.Ticker, received_ns: int) -> None:
        exchange_us = self._time_of(scope, event.exchange_us)
        market_id = self.market_id(event.market)
        self.rows.tickers += pack_ticker(event, exchange_us, received_ns, market_id)

    def _time_of(self, scope: Scope, exchange_us: int | None) -> int:
        """The event's own time, else the sid's latest, else the latest of any channel."""
        if exchange_us is None:
            return scope.last_us or self.latest_us()
        scope.last_us = max(scope.last_us, exchange_us)
        return exchange_us

    def _subscribed(
        self, conn_id: int, life: Life, event: events.Subscribed, received_ns: int
    ) -> None:
        if event.sid is None or event.channel is None:
            return
        old = life.scopes.get(event.sid)
        if old is not None and (old.run_id or not old.started):
            old.channel = event.channel  # its first frames came before the reply
        else:
            if old is not None:
                self._latest_us = max(self._latest_us, old.last_us)
            life.scopes[event.sid] = Scope(event.sid, event.channel)
        scope = life.scopes[event.sid]
        if event.channel in SEQUENCED_CHANNELS and not scope.run_id:
            self._start_run(conn_id, scope, 1, "subscribed", received_ns)

    def _reply(
        self,
        conn_id: int,
        life: Life,
        event: events.Ok | events.Unsubscribed | events.Error,
        received_ns: int,
    ) -> None:
        scope = self._consume(conn_id, life, event.sid, event.seq, received_ns)
        removed = life.removals.pop(event.id or 0, [])
        if isinstance(event, events.Error):
            self.counts[f"error_{event.code}"] += 1
            if scope is not None and event.code in TERMINAL_CODES:
                self._end_run(conn_id, scope, "error", received_ns)
        elif isinstance(event, events.Unsubscribed):
            if scope is not None:
                self._end_run(conn_id, scope, "unsubscribed", received_ns)
        elif scope is not None:
            for ticker in removed:
                self._remove_market(conn_id, scope, ticker, event.seq or 0, received_ns)

    def _remove_market(
        self, conn_id: int, scope: Scope, ticker: str, seq: int, received_ns: int, reason: str = ""
    ) -> None:
        """The claim on a market ends: it left the subscription, or (with `reason`) a frame of it
        was not understood."""
        chain = scope.chains.get(ticker)
        if chain is None:
            return
        if reason:
            chain.float_after_loss(scope.run_id, seq)
        else:
            del scope.chains[ticker]
        self._control_row(
            ControlKind.MARKET_REMOVED,
            received_ns,
            conn_id,
            run_id=scope.run_id,
            sid=scope.sid,
            seq=seq,
            market_id=chain.market_id,
            exchange_us=scope.last_us,
            reason=reason,
        )

    def looks(self, conn_id: int, tickers: Iterable[str]) -> list[Look | None]:
        """Each market's book as it stands on a connection now; None where none is proven."""
        life = self._lives.get(conn_id)
        scopes = () if life is None else tuple(life.scopes.values())
        chains = [(s.run_id, s.chains) for s in scopes if s.channel == BOOK_CHANNEL and s.run_id]
        found: list[Look | None] = []
        for ticker in tickers:
            look = None
            for run_id, held in chains:
                chain = held.get(ticker)
                if chain is not None and chain.anchored and chain.run_id == run_id:
                    look = Look(run_id, chain.hash, chain.last_us)
            found.append(look)
        return found

    # --- state

    def export(self) -> dict[str, Any]:
        """The whole state as a JSON-able value, for the spool's STATE record.

        Rows and effects not yet taken are not part of it: whoever replays from here takes them
        from the records that made them.
        """
        return {
            "format": STATE_FORMAT,
            "next_market_id": self._next_market_id,
            "next_run_id": self._next_run_id,
            "next_conn_id": self._next_conn_id,
            "last_received_ns": self.last_received_ns,
            "latest_us": self._latest_us,
            "markets": self.market_ids,
            "lives": [[conn_id, life.export()] for conn_id, life in self._lives.items()],
        }

    @classmethod
    def restore(cls, form: Mapping[str, Any]) -> Continuity:
        """The continuity of `export`, with no rows and no effects."""
        state = cls(0)
        state._next_market_id = form["next_market_id"]
        state._next_run_id = form["next_run_id"]
        state._next_conn_id = form["next_conn_id"]
        state.last_received_ns = form["last_received_ns"]
        state._latest_us = form["latest_us"]
        state.market_ids = dict(form["markets"])
        state._lives = {conn_id: Life.restore(life) for conn_id, life in form["lives"]}
        return state
