"""What the checkers look at: the exchange's log, the raw spools, the databases as they are left.

Purpose: one reading of a world at rest for all checkers. Frames are read as in `tape.truth_view`:
only type, sid and seq, so that an error in decode, continuity or merge cannot hide itself here.

Does not do: any comparison.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import orjson

from exchange.truth import TRUTH_EVENT, TRUTH_SEND
from marketdata import segment
from marketdata.rows import ControlKind
from tape import truth_view
from tape.truth_view import Received, Truth
from tests.sim.disk import SimDisk
from tests.sim.production import Content
from tests.sim.world import World

RESET = 1  # flag of a reset row (docs/formats.md; written again on purpose)
AMBIGUOUS, DISPUTED = 64, 128
SKEW_US = 100_000
MASK = 2**64 - 1


@dataclass
class Violation:
    """One thing that should not be: what, what was seen, what was expected."""

    what: str
    checker: str = ""
    seen: str = ""
    expected: str = ""

    def told(self) -> str:
        """In one line."""
        parts = [f"{self.checker}: {self.what}"]
        if self.seen:
            parts.append(f"seen {self.seen}")
        if self.expected:
            parts.append(f"expected {self.expected}")
        return "; ".join(parts)


@dataclass
class Spool:
    """What one disk of a gatherer holds."""

    gatherer: int
    lost: bool  # the disk was thrown away
    got: Received = field(default_factory=Received)
    in_runs: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    anyhow: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))


class View:
    """Everything, read once."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.content: Content = world.production.content
        ledger = world.exchange.ledger
        sends = np.frombuffer(bytes(ledger.sends), TRUTH_SEND)
        sends = sends[np.lexsort((sends["seq"], sends["sid"], sends["conn"]))]
        lines = {
            name: [orjson.loads(line) for line in bytes(text).splitlines()]
            for name, text in ledger.lines.items()
        }
        self.truth = Truth(
            tickers=list(ledger.markets),
            events=np.frombuffer(bytes(ledger.events), TRUTH_EVENT),
            sends=sends,
            conn_of_handshake={row["handshake"]: int(row["conn"]) for row in lines["conns"]},
            books=lines["books"],
            trades=lines["trades"],
            ticker_states=lines["tickers"],
        )
        self.spools = [
            self._spool(host.number, disk, lost=disk is not host.disks[-1])
            for host in world.hosts
            for disk in host.disks
        ]

    def _spool(self, gatherer: int, disk: SimDisk, *, lost: bool) -> Spool:
        spool = Spool(gatherer, lost, _received(disk, self.truth))
        spool.in_runs = truth_view.received_in_runs(self.truth, spool.got)
        spool.anyhow = self._anyhow(spool.got)
        return spool

    def _anyhow(self, got: Received) -> np.ndarray:
        """Per event: did a frame with it reach the spool, in a run with a snapshot or not?"""
        found = np.zeros(self.truth.events.size, bool)
        sends = self.truth.sends
        keys = sends["conn"].astype(np.int64) << 32 | sends["sid"].astype(np.int64)
        for (conn, sid), seqs in got.seqs.items():
            low, high = np.searchsorted(keys, [conn << 32 | sid, (conn << 32 | sid) + 1])
            mine = sends[low:high]
            mine = mine[np.isin(mine["seq"], np.array(seqs, np.int64))]
            mine = mine[(mine["event"] >= 0) & (mine["kind"] <= truth_view.SEND_SNAPSHOT)]
            found[mine["event"]] = True
        return found

    # -- who received what

    def by_gatherer(self, name: str, *, lost_too: bool) -> list[np.ndarray]:
        """Per gatherer and event: `in_runs` or `anyhow`."""
        made = [np.zeros(self.truth.events.size, bool) for _ in self.world.hosts]
        for spool in self.spools:
            if lost_too or not spool.lost:
                made[spool.gatherer] |= getattr(spool, name)
        return made

    @cached_property
    def due(self) -> np.ndarray:
        """Events that must be on the tape: some gatherer has them in an anchored run."""
        return np.logical_or.reduce(self.by_gatherer("in_runs", lost_too=False))

    # -- the tape

    @cached_property
    def tickers(self) -> dict[int, str]:
        return {row[0]: row[1] for row in self.content.tables["market"].values()}

    @cached_property
    def rows(self) -> dict[str, np.ndarray]:
        """Delta rows by ticker, in tape order."""
        rows = self.content.rows("orderbook_delta")
        order = np.lexsort((rows["market_seq"], rows["epoch"], rows["market_id"]))
        rows = rows[order]
        return {
            self.tickers[int(m)]: rows[rows["market_id"] == m] for m in np.unique(rows["market_id"])
        }

    @cached_property
    def epochs(self) -> dict[str, dict[int, tuple[int, int]]]:
        """Ticker -> epoch -> (from_us, start hash)."""
        made: dict[str, dict[int, tuple[int, int]]] = {}
        for market, epoch, from_us, start_hash, _ in self.content.tables["market_epoch"].values():
            made.setdefault(self.tickers[market], {})[epoch] = (from_us, start_hash % 2**64)
        return made

    def market_events(self, ticker: str) -> np.ndarray:
        """Indexes of a market's events, in the exchange's order."""
        number = self.truth.tickers.index(ticker)
        mine = (self.truth.events["market"] == number) & (
            self.truth.events["kind"] != truth_view.EVENT_HOLE
        )
        return np.flatnonzero(mine)

    @cached_property
    def places(self) -> dict[str, np.ndarray]:
        """Ticker -> index of the truth's event for each row of the tape; -1 where there is none."""
        return {ticker: self._match(ticker, rows) for ticker, rows in self.rows.items()}

    def hashes(self, ticker: str) -> list[int]:
        """The exchange's book hash behind each event of a market, computed apart."""
        number = self.truth.tickers.index(ticker)
        start = next(b for b in self.truth.books if b["market"] == number)
        state = sum(constant(0, int(p)) * int(q) for p, q in start["yes"])
        state += sum(constant(1, int(p)) * int(q) for p, q in start["no"])
        made = []
        for _, kind, side, price, delta, _ in self.truth.events[
            self.market_events(ticker)
        ].tolist():
            is_reset = kind == truth_view.EVENT_RESET
            state = 0 if is_reset else state + constant(side, price) * delta
            made.append(state & MASK)
        return made

    def _match(self, ticker: str, rows: np.ndarray) -> np.ndarray:
        """By content and hash behind it, in order: a repeat has another hash each time."""
        index = self.market_events(ticker)
        events = self.truth.events[index]
        tape = [_key(*r) for r in zip(
            rows["exchange_us"].tolist(), rows["side"].tolist(), rows["price"].tolist(),
            rows["delta"].tolist(), ((rows["flags"] & RESET) != 0).tolist(),
            rows["book_hash"].tolist(), strict=True,
        )]  # fmt: skip
        told = [_key(*r) for r in zip(
            events["exchange_us"].tolist(), events["side"].tolist(), events["price"].tolist(),
            events["delta"].tolist(), (events["kind"] == truth_view.EVENT_RESET).tolist(),
            self.hashes(ticker), strict=True,
        )]  # fmt: skip
        found = np.array(_in_order(tape, told, self.due[index].tolist()), np.int64)
        return np.where(found >= 0, index[found], -1) if index.size else found

    @cached_property
    def cautious(self) -> dict[int, int]:
        """Gatherer -> rows kept aside of runs beside a gap which was none: until a gatherer
        knows whether numbers count per subscription or per market it takes either for a gap, and
        a market whose acknowledgement was lost is not asked for then (docs/simulation.md)."""
        doubted: set[tuple[int, int]] = set()
        for host in self.world.hosts:
            for server in host.databases:
                ended: dict[tuple[int, int], tuple[int, int]] = {}  # line -> (seq, run)
                controls = [c for b in server.log for c in b.controls]
                for c in sorted(controls, key=lambda c: c[:2]):
                    seq, run = ended.get((c[5], c[7]), (-1, -1))
                    if c[9] == ControlKind.RUN_END:
                        ended[c[5], c[7]] = c[3], c[6]
                    elif c[9] == ControlKind.RUN_START and seq == c[3] - 1:
                        doubted |= {(host.number, run), (host.number, c[6])}
        found: dict[int, int] = {}
        for row in self.content.tables["quarantine"].values():
            if row[5] == "unanchored" and (row[3], row[4]) in doubted:
                found[row[3]] = found.get(row[3], 0) + row[8]
        return found

    @cached_property
    def overtaken(self) -> bool:
        """Whether windows closed before everything of them was there, and so may have less."""
        return bool(self.world.dedup.watch.overtaken)

    @cached_property
    def replaced(self) -> bool:
        """Whether a gatherer's database was thrown away in mid-play."""
        return any(len(host.databases) > 1 for host in self.world.hosts)


def constant(side: int, price: int) -> int:
    """C(side, price) of docs/formats.md, written again on purpose."""
    x = (side << 32) + price + 0x9E3779B97F4A7C15 & MASK
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
    return x ^ x >> 31 | 1


def _key(us: int, side: int, price: int, delta: int, reset: bool, h: int) -> tuple[int, ...]:
    return (-1, -1, 0, 0, 0) if reset else (us, side, price, delta, h)


def _in_order(
    tape: list[tuple[int, ...]], told: list[tuple[int, ...]], due: list[bool]
) -> list[int]:
    """For each row the next equal event; of several in one microsecond one that is due, if enough
    of them are left for the rows that are equal to it."""
    places: dict[tuple[int, ...], list[int]] = {}
    for n, key in enumerate(told):
        places.setdefault(key, []).append(n)
    left = Counter(tape)
    made, at = [], 0
    for key in tape:
        later = [n for n in places.get(key, ()) if n >= at]
        left[key] -= 1
        if not later:
            made.append(-1)
            continue
        spare = later[: max(1, len(later) - left[key])]
        chosen = next((n for n in spare if due[n]), later[0])
        made.append(chosen)
        at = chosen + 1
    return made


def _received(disk: SimDisk, truth: Truth) -> Received:
    """As tape.truth_view.read_spool, of a disk in memory."""
    got = Received()
    conns: dict[int, int] = {}
    for _, body in sorted(disk.segments.items()):
        for record in segment.scan(bytes(body), segment.HEADER_BYTES):
            if record.kind == segment.KIND_CONTROL:
                control = orjson.loads(record.payload)
                if control.get("k") == "connect":
                    conns[int(control["conn"])] = truth.conn_of_handshake[control["handshake"]]
            elif record.kind == segment.KIND_FRAMES:
                frames = segment.decode_frames(record.payload)
                for one in frames.frames:
                    truth_view._read_frame(bytes(one), conns[frames.conn], got)
    return got
