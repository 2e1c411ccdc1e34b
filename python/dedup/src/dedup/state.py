"""What the arbiter remembers from window to window, how it is stored and loaded again.

Purpose: all state of the arbiter in one place. A market's state is written only when something
happened to it; everything else goes by name, and only if it changed.

Invariants: INV-R2 (arbitrate.py): what is loaded, with the batches from `reread_from_batch` on,
gives the same further outputs.

Does not do: merging.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Self

import msgspec

from dedup.inflow import Inflow
from dedup.output import ArbiterSettings, GathererPosition, WindowOutput
from dedup.owned import Owned
from dedup.runs import Market, Run, RunMarkets
from dedup.union import Memory, decode_keys
from marketdata.evidence import Evidence

RunKey = tuple[int, int]  # (gatherer, run_id)
EVIDENCE: Final = "evidence"  # name of the state that holds marketdata.evidence
TAKEN_TO: Final = "taken-to"  # window that had closed when a gatherer's batches were read last
_IN_ORDER: Final = msgspec.msgpack.Encoder(order="deterministic")


class _Core(msgspec.Struct):
    """Everything that belongs to no market."""

    closed: int
    ended: list[bool]
    runs: list[Run]
    unsettled: list[str]
    naive: dict[str, int]
    floors: tuple[int, int]  # of the memories of trades and of tickers


def _at_rest(run: Run) -> Run:
    """A run without what was only read ahead: the bytes must not tell how far that was."""
    return msgspec.structs.replace(run, shown_us=run.z_us, ended=False, max_window=0)


def known_runs(named_states: Mapping[str, bytes], gatherer: int) -> list[int]:
    """Runs of a gatherer that a stored state knows."""
    if "core" not in named_states:
        return []
    core = msgspec.msgpack.decode(named_states["core"], type=_Core)
    return [run.run_id for run in core.runs if run.gatherer == gatherer]


def evidence_of(named_states: Mapping[str, bytes]) -> Evidence:
    """What had been seen of the exchange; of a state without it: nothing."""
    packed = named_states.get(EVIDENCE)
    return Evidence() if packed is None else msgspec.msgpack.decode(packed, type=Evidence)


def life_of(named_states: Mapping[str, bytes], gatherer: int) -> bytes:
    """What the reader of a gatherer gave to be kept with the batches."""
    return named_states.get(f"life-{gatherer}", b"")


class ArbiterState:
    """The memory of one arbiter."""

    def __init__(self, n_gatherers: int, settings: ArbiterSettings) -> None:
        self.settings = settings
        self.inflows = [
            Inflow(g, settings.window_us, settings.engine_skew_us) for g in range(n_gatherers)
        ]
        self.tickers: list[str] = []
        self.owned = Owned(settings.share)
        self.index: dict[str, int] = {}
        self.markets: dict[str, Market] = {}
        self.carried: dict[RunKey, dict[str, None]] = {}  # run -> its markets
        self.heritage: dict[RunKey, frozenset[str]] = {}  # run after a gap -> markets before it
        self.heirless: dict[RunKey, frozenset[str]] = {}  # (gatherer, connection) -> no run yet
        self.unclaimed: dict[RunKey, dict[str, int]] = {}
        self.unsettled: set[str] = set()
        self.evidence = Evidence()
        self.naive: dict[str, int] = {}
        self.trade_keys, self.ticker_keys = Memory(), Memory()
        self._stored: dict[str, bytes] = {}  # named states as published last
        self._new_ids = [False] * n_gatherers

    def _index(self, ticker: str) -> int:
        found = self.index.get(ticker)
        if found is None:
            found = self.index[ticker] = len(self.tickers)
            self.tickers.append(ticker)
            self.owned.add(ticker)
        return found

    # -- which markets a run carries ---

    def _inherited(self, run: Run) -> frozenset[str]:
        """Markets that were subscribed before the gap at which the run began."""
        mine = [r for r in self.inflows[run.gatherer].runs.values() if r.run_id <= run.run_id]
        return self._inheritances(mine)[(run.gatherer, run.run_id)]

    def _inheritances(self, runs: Iterable[Run]) -> dict[RunKey, frozenset[str]]:
        """The same of many runs; with each of them all earlier ones of its connection that are
        still known. One pass: a backlog full of gaps has thousands of runs at once."""
        found: dict[RunKey, frozenset[str]] = {}
        last: dict[RunKey, RunKey] = {}  # (gatherer, connection) -> its run before this one
        for run in sorted(runs, key=lambda r: (r.gatherer, r.run_id)):
            key, connection = (run.gatherer, run.run_id), (run.gatherer, run.connection)
            before = last.get(connection)
            known = frozenset[str]() if run.fresh else self.heritage.get(key)
            if not run.fresh and before is not None:
                # What runs between them that are gone had, and what the one before has by now.
                passed, carried = found[before], self.carried.get(before, {}).keys()
                passed = passed if carried <= passed else passed | carried
                known = passed if known is None or known <= passed else known | passed
            elif known is None:
                known = self.heirless.get(connection, frozenset())
            found[key], last[connection] = known, key
        return found

    def _find_heirs(self, runs: dict[RunKey, Run]) -> None:
        """Runs whose predecessor was over before they were known take its markets over."""
        for key, run in sorted(runs.items()):
            markets = self.heirless.pop((run.gatherer, run.connection), None)
            if markets is not None and not run.fresh:
                self.heritage[key] = markets

    def _bequeath(self, run: Run) -> None:
        """The run ends at a gap: the run after it must know which markets were subscribed."""
        key, place = (run.gatherer, run.run_id), (run.gatherer, run.connection)
        if run.connection < 0:
            return  # its start was never seen, or before a restart: no later run is of its line
        line = [
            r.run_id
            for r in self.inflows[run.gatherer].runs.values()
            if r.connection == run.connection
        ]
        later = [r for r in line if r > run.run_id]
        carried = self.carried.get(key, {}).keys()
        if min(line, default=run.run_id) < run.run_id:
            # A run without rows is over before the one before it: that one's markets are not all
            # known yet, and what comes after takes them from it.
            markets = self.heritage.get(key, frozenset()) | carried
            if not markets:
                return
        else:
            markets = self._inherited(run) | carried
        self.heirless.pop(place, None)
        if later:
            self.heritage[(run.gatherer, min(later))] = frozenset(markets)
        else:
            self.heirless[place] = frozenset(markets)

    # -- to bytes and back ---

    def _states(self, output: WindowOutput, touched: set[str], window: int) -> None:
        encode = msgspec.msgpack.encode
        output.market_states = {t: encode(self.markets[t]) for t in sorted(touched)}
        named: dict[str, bytes] = {}
        runs = [_at_rest(run) for i in self.inflows for _, run in sorted(i.runs.items())]
        named["core"] = encode(
            _Core(
                window, [i.ended for i in self.inflows], runs, sorted(self.unsettled),
                dict(sorted(self.naive.items())), (self.trade_keys.floor, self.ticker_keys.floor),
            )
        )  # fmt: skip
        for run in runs:
            key = (run.gatherer, run.run_id)
            tickers, waiting = sorted(self.carried.get(key, {})), self.unclaimed.get(key, {})
            before = sorted(self.heritage.get(key, ()))
            named[f"run-{key[0]}-{key[1]}"] = encode(
                RunMarkets(tickers, sorted(waiting.items()), before)
            )
        named[EVIDENCE] = _IN_ORDER.encode(self.evidence)
        if self.heirless:
            left = sorted((g, c, sorted(markets)) for (g, c), markets in self.heirless.items())
            named["heirless"] = encode(left)
        for inflow in self.inflows:
            name = f"ids-{inflow.gatherer}"
            if self._new_ids[inflow.gatherer]:
                ids = sorted((i, self.tickers[n]) for i, n in inflow.ids.items())
                named[name] = encode(ids)
                self._new_ids[inflow.gatherer] = False
            elif name in self._stored:
                named[name] = self._stored[name]
            if inflow.behind:
                named[f"{TAKEN_TO}-{inflow.gatherer}"] = b"%d" % inflow.reread[0]
            if inflow.life:
                named[f"life-{inflow.gatherer}"] = inflow.life
        for name in sorted(self._stored.keys() - named.keys()):
            output.named_states[name] = None
        for name, packed in named.items():
            if self._stored.get(name) != packed:
                output.named_states[name] = packed
        self._stored = named
        output.positions = [
            GathererPosition(i.gatherer, i.reread_from(), i.seen_batch) for i in self.inflows
        ]

    @classmethod
    def load(
        cls,
        n_gatherers: int,
        settings: ArbiterSettings,
        market_states: Mapping[str, bytes],
        named_states: Mapping[str, bytes],
        positions: Sequence[GathererPosition],
    ) -> Self:
        """The arbiter as it stood after the last published window."""
        self = cls(n_gatherers, settings)
        if "core" not in named_states:
            return self
        core = msgspec.msgpack.decode(named_states["core"], type=_Core)
        for ticker, packed in sorted(market_states.items()):
            self._index(ticker)
            self.markets[ticker] = msgspec.msgpack.decode(packed, type=Market)
        at = {p.gatherer: p for p in positions}
        for inflow, ended in zip(self.inflows, core.ended, strict=True):
            g = inflow.gatherer
            place = at.get(g, GathererPosition(g, 1, 0))
            taken_to = int(named_states.get(f"{TAKEN_TO}-{g}", core.closed))
            inflow.resume(core.closed, taken_to, place.reread_from_batch, place.seen_batch)
            inflow.ended = ended
            inflow.life = life_of(named_states, inflow.gatherer)
            ids = named_states.get(f"ids-{inflow.gatherer}")
            if ids is not None:
                for market_id, ticker in msgspec.msgpack.decode(ids, type=list[tuple[int, str]]):
                    inflow.ids[market_id] = self._index(ticker)
        self._restore_runs(core.runs, named_states)
        self.unsettled = set(core.unsettled)
        self.trade_keys.floor, self.ticker_keys.floor = core.floors
        self.naive = core.naive
        self.evidence = evidence_of(named_states)
        if "heirless" in named_states:
            left = msgspec.msgpack.decode(
                named_states["heirless"], type=list[tuple[int, int, list[str]]]
            )
            self.heirless = {(g, c): frozenset(markets) for g, c, markets in left}
        for name, packed in named_states.items():
            kind, _, number = name.partition("-")
            if kind == "trades":
                self.trade_keys.windows[int(number)] = decode_keys(packed)
            elif kind == "tickers":
                self.ticker_keys.windows[int(number)] = decode_keys(packed)
            else:
                self._stored[name] = packed
        return self

    def _restore_runs(self, runs: Sequence[Run], named_states: Mapping[str, bytes]) -> None:
        for run in map(_at_rest, runs):
            self.inflows[run.gatherer].runs[run.run_id] = run
            key = (run.gatherer, run.run_id)
            packed = named_states[f"run-{key[0]}-{key[1]}"]
            kept = msgspec.msgpack.decode(packed, type=RunMarkets)
            for ticker in (*kept.tickers, *(t for t, _ in kept.unclaimed)):
                self._index(ticker)
            if kept.tickers:
                self.carried[key] = dict.fromkeys(kept.tickers)
            if kept.unclaimed:
                self.unclaimed[key] = dict(kept.unclaimed)
            if kept.inherited:
                self.heritage[key] = frozenset(kept.inherited)
