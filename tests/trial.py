"""Trials of the merge: one true stream, several gatherers that each miss something else.

A `Stream` is what the exchange did (recorded or made up). `record` plays it to one gatherer with
disconnects, dropped frames in bursts and late snapshots, and gives the rows that gatherer would
have stored. `play` merges all of them and `score` compares with the truth, counting only what some
gatherer received inside a run with a snapshot. Written without the gatherer's own code.
"""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from dedup.arbitrate import Arbiter
from dedup.output import ArbiterSettings, WindowOutput
from marketdata import coverage
from marketdata.book import level_constants
from marketdata.coverage import AuditPoint, EpochStart, Mark, MarketClaim, RunProgress
from marketdata.rows import DELTA_ROW, ControlRow, DeltaFlag, GathererBatch, SnapshotRow

MASK = 0xFFFFFFFFFFFFFFFF
EMPTY = bytes(8)
FULL = b"\x01" + bytes(7)  # stands for any book with levels; the merge does not look inside


@dataclass
class Stream:
    """Truth: events in the exchange's order. `kind` 1: reset. `h0`: first hash of each market."""

    tickers: list[str]
    market: np.ndarray
    us: np.ndarray
    side: np.ndarray
    price: np.ndarray
    delta: np.ndarray
    kind: np.ndarray
    h0: list[int]
    h_after: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))
    h_before: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))

    def __post_init__(self) -> None:
        n = self.us.size
        self.h_after, self.h_before = np.empty(n, np.uint64), np.empty(n, np.uint64)
        terms = level_constants(self.side, self.price) * self.delta.view(np.uint64)
        state = list(self.h0)
        for i, m in enumerate(self.market.tolist()):
            self.h_before[i] = state[m]
            state[m] = 0 if self.kind[i] else (state[m] + int(terms[i])) & MASK
            self.h_after[i] = state[m]

    def hash_at(self, index: int) -> list[int]:
        """Every market's book hash before event `index`."""
        state = list(self.h0)
        seen = self.market[:index]
        for m in range(len(self.tickers)):
            mine = np.flatnonzero(seen == m)
            if mine.size:
                state[m] = int(self.h_after[mine[-1]])
        return state


@cache
def _constant(side: int, price: int) -> int:
    return int(level_constants(np.array([side]), np.array([price]))[0])


def recorded_stream(path: Path, limit: int | None = None) -> list[Stream]:
    """Every connection of a capture as its own stream of one or more markets."""
    if path.suffix == ".json":
        lines = [(0, 1, f["frame"]) for f in json.loads(path.read_text())["frames"]]
    else:
        with gzip.open(path, "rt") as text:
            lines = [(d["recv_ns"], d["conn"], d["frame"]) for d in map(json.loads, text)]
    return [_stream(conn, lines, limit) for conn in sorted({c for _, c, _ in lines})]


def _stream(conn: int, lines: list[tuple[int, int, Any]], limit: int | None) -> Stream:
    from marketdata.units import parse_price_micros, parse_size_centi, parse_ts_us

    tickers: dict[str, int] = {}
    h0: list[int] = []
    h_now: list[int] = []
    columns: list[tuple[int, int, int, int, int, int]] = []
    for _, c, frame in lines:
        if c != conn or frame["type"] not in ("orderbook_snapshot", "orderbook_delta"):
            continue
        if limit is not None and len(columns) >= limit:
            break
        msg = frame["msg"]
        ticker = msg["market_ticker"]
        if frame["type"] == "orderbook_snapshot":
            h = 0
            for side, name in ((0, "yes_dollars_fp"), (1, "no_dollars_fp")):
                for price, size in msg.get(name, ()):
                    constant = _constant(side, parse_price_micros(price))
                    h = (h + constant * parse_size_centi(size)) & MASK
            if ticker not in tickers:
                tickers[ticker] = len(tickers)
                h0.append(h)
                h_now.append(h)
            elif h == 0 and h_now[tickers[ticker]] != 0:
                columns.append((tickers[ticker], columns[-1][1], 0, 0, 0, 1))
                h_now[tickers[ticker]] = 0
            continue
        side = 0 if msg["side"] == "yes" else 1
        price, delta = parse_price_micros(msg["price_dollars"]), parse_size_centi(msg["delta_fp"])
        m = tickers[ticker]
        h_now[m] = (h_now[m] + _constant(side, price) * delta) & MASK
        columns.append((m, parse_ts_us(msg["ts"]), side, price, delta, 0))
    table = np.array(columns, np.int64).reshape(-1, 6)
    return Stream(
        list(tickers), table[:, 0], table[:, 1], table[:, 2].astype(np.int16),
        table[:, 3].astype(np.int32), table[:, 4], table[:, 5], h0,
    )  # fmt: skip


def made_stream(
    seed: int, n: int, n_markets: int = 1, *, burst: int = 0, reset: bool = False
) -> Stream:
    """A made-up stream with repeats and cycles inside one microsecond, amends, bursts, resets."""
    rng = random.Random(seed)
    rows: list[tuple[int, int, int, int, int, int]] = []
    us = 1_700_000_000_000_000
    books: list[dict[tuple[int, int], int]] = [
        {(s, 10_000 * p): 100 * rng.randrange(1, 50) for s in (0, 1) for p in range(20, 40)}
        for _ in range(n_markets)
    ]
    h0 = [_hash(b) for b in books]
    while len(rows) < n:
        if rng.random() > 0.55:
            us += int(rng.expovariate(1 / 15_000)) + 1
        m = min(int(rng.paretovariate(0.9)) - 1, n_markets - 1)
        side, price = rng.randrange(2), 10_000 * rng.randrange(20, 40)
        size = 100 * rng.choice((1, 2, 5, 50, 400))
        shape = rng.random()
        book = books[m]
        changes = [size]
        if shape < 0.05:
            changes = [size, size]  # a repeat
        elif shape < 0.10:
            changes = [size, -size, size, -size]  # a cycle
        elif shape < 0.55 and book.get((side, price), 0) > 0:
            changes = [-min(size, book[(side, price)])]
        for change in changes:
            rows.append((m, us, side, price, change, 0))
            book[(side, price)] = book.get((side, price), 0) + change
            if not book[(side, price)]:
                del book[(side, price)]
    us += 1_000
    for m, book in enumerate(books):
        if burst and m == 0:
            rows += [(m, us, s, p, -100, 0) for (s, p), q in book.items() for _ in range(q // 100)][
                :burst
            ]
        if reset:
            rows.append((m, us, 0, 0, 0, 1))
    for k in range(40):  # life goes on a little in market 0
        us += 9_000
        rows.append((0, us, k % 2, 500_000, 100, 0))
    table = np.array(rows, np.int64)
    return Stream(
        [f"M{m}" for m in range(n_markets)], table[:, 0], table[:, 1],
        table[:, 2].astype(np.int16), table[:, 3].astype(np.int32), table[:, 4], table[:, 5], h0,
    )  # fmt: skip


def _hash(book: dict[tuple[int, int], int]) -> int:
    side, price = np.array([k[0] for k in book]), np.array([k[1] for k in book])
    return int((level_constants(side, price) * np.array(list(book.values()), np.uint64)).sum())


@dataclass(frozen=True)
class Plan:
    """How much a gatherer misses. Times in microseconds of the stream."""

    loss: float = 0.001  # share of frames lost, in bursts
    burst: float = 10.0  # mean frames of a burst
    disconnect_us: int = 300_000_000  # mean time between disconnects
    down_us: tuple[int, int] = (1_000_000, 30_000_000)
    snapshot_us: tuple[int, int] = (50_000, 500_000)
    late_start_us: int = 2_000_000


STANDARD = Plan()
HARSH = Plan(loss=0.01, disconnect_us=60_000_000)
EXTREME = Plan(loss=0.05, burst=4.0, disconnect_us=20_000_000)


class Recorder:
    """One gatherer's recording of a stream, as rows in arrival order."""

    def __init__(self, stream: Stream, gatherer: int, seed: int, plan: Plan, **tweaks: Any) -> None:
        self.stream, self.gatherer, self.plan = stream, gatherer, plan
        self.rng = random.Random(f"{seed}/{gatherer}")
        self.offset_ns = self.rng.randrange(-200_000_000, 200_000_000)
        self.time_shift = tweaks.get("time_shift")  # us added to every time, drawn per event
        self.shuffle = tweaks.get("shuffle", False)  # own order between levels in a microsecond
        self.silent = set(tweaks.get("silent", ()))  # events it silently misses
        self.start_us = tweaks.get("start_us")
        self.stop_us = tweaks.get("stop_us")
        self.rows: list[np.ndarray] = []
        self.snapshots: list[SnapshotRow] = []
        self.controls: list[ControlRow] = []
        self.received = np.zeros(stream.us.size, bool)
        self.stretches: list[tuple[int, int, int]] = []  # (connection, first event, end) of a run
        self.next_run, self.conn, self.latest_us = 1, 0, 0
        self.shown_us = np.zeros(1, np.int64)  # latest time before the n-th event of this run
        if (former := tweaks.get("ids_after")) is not None:
            self.next_run, self.conn, self.offset_ns = (
                former.next_run, former.conn, former.offset_ns,
            )  # fmt: skip
        self.last_ns = self.start_ns = 0
        self._record()

    def _ns(self, us: int) -> int:
        return us * 1000 + self.offset_ns + 10_000_000_000

    def _control(self, kind: str, us: int, **more: Any) -> None:
        self.last_ns = max(self.last_ns, self._ns(us))
        self.controls.append(
            ControlRow(1, len(self.controls), self.last_ns, kind, self.conn, **more)
        )

    def _record(self) -> None:
        us = self.stream.us
        first, last = int(us[0]), int(us[-1])
        late = 0 if self.gatherer == 0 else self.rng.randrange(self.plan.late_start_us) + 1
        at = first - 1 + late
        if self.start_us is not None:
            at = self.start_us
        while at < (self.stop_us or last):
            up = at + int(self.rng.expovariate(1 / self.plan.disconnect_us)) + 1
            if self.stop_us is not None:
                up = min(up, self.stop_us)
            self._connection(at, min(up, last + 1))
            at = up + self.rng.randrange(*self.plan.down_us)
        self._control("gatherer_end", (self.stop_us or last) + 20_000_000)

    def _connection(self, from_us: int, to_us: int) -> None:
        """One connection; both ends may lie inside a microsecond's events."""
        us = self.stream.us
        low = int(np.searchsorted(us, from_us))
        high = int(np.searchsorted(us, to_us))
        low = min(low + self.rng.randrange(3), us.size)
        high = min(max(high - self.rng.randrange(3), low), us.size) if to_us <= us[-1] else us.size
        self.conn += 1
        self._control("conn_open", from_us)
        drops = self._drops(low, high)
        seq, start, kind = 1, low, "subscribed"
        stretches = []
        for a, b in drops:
            stretches.append((start, a))
            start = b
        stretches.append((start, high))
        anchor_from = low
        for i, (a, b) in enumerate(stretches):
            if i:
                seq += drops[i - 1][1] - drops[i - 1][0]
                wait = self.rng.randrange(*self.plan.snapshot_us)
                anchor_from = int(np.searchsorted(us, int(us[min(a, us.size - 1)]) + wait))
                kind = "gap"
            ends = "gap" if i < len(drops) else "close"
            seq = self._run(a, b, anchor_from, seq, kind, ends)

    def _drops(self, low: int, high: int) -> list[tuple[int, int]]:
        drops, at = [], low + 1
        if self.plan.loss <= 0:
            return drops
        while True:
            at += 1 + int(self.rng.expovariate(self.plan.loss / self.plan.burst))
            size = 1 + int(self.rng.expovariate(1 / max(self.plan.burst - 1, 0.01)))
            if at + size >= high:
                return drops
            drops.append((at, at + size))
            at += size

    def _run(self, a: int, b: int, snap_at: int, seq: int, kind: str, ends: str) -> int:
        """Events a..b of one run, snapshots before event `snap_at`. Returns the next seq."""
        s, run_id = self.stream, self.next_run
        self.next_run += 1
        self.stretches.append((self.conn, a, b))
        us_a = int(s.us[max(a - 1, 0)])
        self._control(
            "run_start", us_a, run_id=run_id, sid=2, seq=seq,
            detail={"channel": "orderbook_delta", "start": kind},
        )  # fmt: skip
        index = np.array([i for i in range(a, b) if i not in self.silent], np.int64)
        if self.shuffle:
            index = self._shuffled(index)
        base = s.hash_at(a)
        snap_at = max(snap_at, a) if kind == "gap" else a
        h = self._own_hashes(index, base)
        before = index < snap_at if not self.shuffle else np.arange(index.size) < (snap_at - a)
        n_before = int(before.sum())
        snapped = snap_at < b or kind != "gap"
        seqs = seq + np.arange(index.size, dtype=np.int64)
        first_snap = seq + n_before
        if snapped:
            seqs[n_before:] += len(s.tickers)
        end_seq = seq + index.size + (len(s.tickers) if snapped else 0)
        freed = self._freed(index, before) if kind == "gap" else {}
        self.start_ns = self.last_ns = max(self.last_ns, self._ns(us_a))
        self._rows(index, h, seqs, run_id, n_before, base, snapped, freed)
        if self.rows[-1].size:
            self.last_ns = int(self.rows[-1]["received_ns"][-1])
        for m, at in freed.items():  # an empty first snapshot anchors only what follows it
            running = self._before(index, h, base, m, at) - base[m]
            self.snapshots.append(
                SnapshotRow(
                    int(self.shown_us[at + 1]), self._ns_before(at), 0,
                    running & MASK, m + 1, run_id, int(seqs[at]), 1, 0, 0, EMPTY,
                )
            )  # fmt: skip
        if snapped:
            self._snaps(index, h, base, n_before, first_snap, run_id, freed)
        for m in range(len(s.tickers)):
            mine = index[s.market[index] == m]
            if m in freed:
                after = (s.market[index] == m) & (np.arange(index.size) > freed[m])
                self.received[index[after]] = True
            elif snapped:
                self.received[mine] = True
        self._control(
            "run_end", int(s.us[b - 1]) if b > a else us_a, run_id=run_id, sid=2,
            seq=end_seq - 1, reason=ends, exchange_us=self.latest_us,
        )  # fmt: skip
        return end_seq

    def _freed(self, index: np.ndarray, before: np.ndarray) -> dict[int, int]:
        """Market -> place of its first reset while it floats."""
        found: dict[int, int] = {}
        for at in np.flatnonzero((self.stream.kind[index] == 1) & before).tolist():
            found.setdefault(int(self.stream.market[index[at]]), at)
        return found

    def _before(self, index: np.ndarray, h: np.ndarray, base: list[int], m: int, at: int) -> int:
        mine = np.flatnonzero(self.stream.market[index[:at]] == m)
        return int(h[mine[-1]]) if mine.size else base[m]

    def _ns_before(self, at: int) -> int:
        """When the row before place `at` of the run was received."""
        received = self.rows[-1]["received_ns"]
        return int(received[max(min(at, received.size) - 1, 0)]) if received.size else self.start_ns

    def _shuffled(self, index: np.ndarray) -> np.ndarray:
        out = []
        for group in np.split(index, np.flatnonzero(np.diff(self.stream.us[index])) + 1):
            by_level: dict[tuple[int, int], list[int]] = {}
            for i in group.tolist():
                level = int(self.stream.side[i]), int(self.stream.price[i])
                by_level.setdefault(level, []).append(i)
            levels = list(by_level.values())
            self.rng.shuffle(levels)
            out += [i for level in levels for i in level]
        return np.array(out, np.int64)

    def _own_hashes(self, index: np.ndarray, base: list[int]) -> np.ndarray:
        s = self.stream
        if not self.silent and not self.shuffle:
            return s.h_after[index]
        state, out = list(base), np.empty(index.size, np.uint64)
        terms = level_constants(s.side[index], s.price[index]) * s.delta[index].view(np.uint64)
        for n, i in enumerate(index.tolist()):
            m = int(s.market[i])
            state[m] = 0 if s.kind[i] else (state[m] + int(terms[n])) & MASK
            out[n] = state[m]
        return out

    def _rows(
        self, index: np.ndarray, h: np.ndarray, seqs: np.ndarray, run_id: int, n_before: int,
        base: list[int], snapped: bool, freed: dict[int, int],
    ) -> None:  # fmt: skip
        s = self.stream
        rows = np.zeros(index.size, DELTA_ROW)
        us = s.us[index].copy()
        if self.time_shift is not None:
            us += np.array([self.time_shift(self.rng) for _ in range(index.size)], np.int64)
            # No gatherer's times go back, from one run of a connection to the next neither.
            us = np.maximum.accumulate(np.maximum(us, self.latest_us))
        rows["exchange_us"], rows["delta"], rows["price"] = us, s.delta[index], s.price[index]
        rows["side"], rows["seq"], rows["run_id"] = s.side[index], seqs, run_id
        rows["market_id"], rows["book_hash"] = s.market[index] + 1, h
        rows["flags"] = np.where(s.kind[index] == 1, int(DeltaFlag.RESET), 0)
        jitter = np.array([self.rng.randrange(5_000_000) for _ in range(index.size)], np.int64)
        received = s.us[index] * 1000 + self.offset_ns + 10_000_000_000 + jitter
        steps = np.arange(1, index.size + 1)  # no two at one instant: batches cut between rows
        later = np.maximum(received - steps, self.last_ns)
        rows["received_ns"] = np.maximum.accumulate(later) + steps
        if not snapped:
            n_before = index.size
        place = np.arange(index.size)
        floating = place < n_before
        for m, at in freed.items():
            floating &= ~((s.market[index] == m) & (place > at))
        relative = np.array(base, np.uint64)[s.market[index]] if index.size else rows["book_hash"]
        rows["book_hash"][floating] -= relative[floating]
        rows["flags"][floating] |= int(DeltaFlag.FLOATING)
        self.shown_us = np.maximum.accumulate(np.concatenate(([self.latest_us], us)))
        self.latest_us = int(self.shown_us[-1])
        self.rows.append(rows[~(floating & (s.kind[index] == 1))])

    def _snaps(
        self, index: np.ndarray, h: np.ndarray, base: list[int], n_before: int, seq: int,
        run_id: int, freed: dict[int, int],
    ) -> None:  # fmt: skip
        s = self.stream
        stored = self.rows[-1]["received_ns"]
        ns = self.start_ns
        if stored.size and n_before:
            ns = int(stored[min(n_before, stored.size) - 1])
        for m in range(len(s.tickers)):
            mine = np.flatnonzero(s.market[index[:n_before]] == m)
            now = int(h[mine[-1]]) if mine.size else base[m]
            true_now = now
            if self.silent:
                at = int(index[n_before]) if n_before < index.size else int(index[-1]) + 1
                true_now = s.hash_at(at)[m]
            running = now if m in freed else (now - base[m]) & MASK if n_before else 0
            self.snapshots.append(
                SnapshotRow(
                    int(self.shown_us[n_before]), ns, true_now, running, m + 1, run_id, seq + m, 1,
                    1 if m in freed else 0, 0, FULL if true_now else EMPTY,
                )
            )  # fmt: skip
        for n in np.flatnonzero(s.kind[index[n_before:]] == 1).tolist():
            i = n_before + n
            self.snapshots.append(
                SnapshotRow(
                    int(s.us[index[i]]), self.last_ns, 0,
                    int(s.h_before[index[i]]), int(s.market[index[i]]) + 1, run_id,
                    seq + len(s.tickers) + n, 1, 3, 0, EMPTY,
                )
            )  # fmt: skip

    def batches(self, size: int, number: int = 0) -> list[GathererBatch]:
        """The recording as committed batches of about `size` rows, numbered after `number`."""
        first = number + 1
        rows = np.concatenate(self.rows) if self.rows else np.empty(0, DELTA_ROW)
        items: list[tuple[int, int, str, Any]] = []
        for n, c in enumerate(self.controls):
            rank = {"run_end": 8, "conn_close": 9}.get(c.kind, 0)
            items.append((c.received_ns, rank, "c", (n, c)))
        items += [(x.received_ns, 3, "s", x) for x in self.snapshots]
        cuts = [*range(0, rows.size, size), rows.size]
        made: list[GathererBatch] = []
        pending = sorted(items, key=lambda i: (i[0], i[1]))
        place = 0
        for a, b in zip(cuts, cuts[1:] or [0], strict=False):
            number += 1
            part = rows[a:b].copy()
            part["batch_id"] = number
            end_ns = int(part["received_ns"][-1]) if part.size else 0
            batch = GathererBatch(self.gatherer, number, number, end_ns, part)
            runs_here = {int(r) for r in np.unique(rows[b:]["run_id"])} if b < rows.size else set()
            while place < len(pending) and (pending[place][0] <= end_ns or b >= rows.size):
                self._put(batch, pending[place], number)
                place += 1
            del runs_here
            if number == first:
                batch.markets = {m + 1: t for m, t in enumerate(self.stream.tickers)}
            made.append(batch)
        if made and place < len(pending):
            for item in pending[place:]:
                self._put(made[-1], item, number)
        if made:
            end_ns = self._ns(self.stop_us or int(self.stream.us[-1])) + 30 * 10**9
            made[-1].max_received_ns = max(made[-1].max_received_ns, end_ns)
        return made

    @staticmethod
    def _put(batch: GathererBatch, item: tuple[int, int, str, Any], number: int) -> None:
        if item[2] == "c":
            n, control = item[3]
            control.batch_id, control.ord = number, n
            batch.controls.append(control)
        else:
            item[3].batch_id = number
            batch.snapshots.append(item[3])


@dataclass
class Played:
    """All outputs of one merge, added up."""

    outputs: list[WindowOutput]
    arbiter: Arbiter
    tickers: list[str] = field(default_factory=list)
    progress: list[RunProgress] = field(default_factory=list)
    claims: list[MarketClaim] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    epochs: list[EpochStart] = field(default_factory=list)
    audits: list[AuditPoint] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    rows: dict[str, np.ndarray] = field(default_factory=dict)


def gathered(outputs: list[WindowOutput], arbiter: Arbiter) -> Played:
    """Add outputs up as the publisher would: evidence by key, rows by ticker."""
    made = Played(outputs, arbiter)
    progress: dict[Any, RunProgress] = {}
    claims: dict[Any, MarketClaim] = {}
    rows: dict[str, list[np.ndarray]] = {}
    for out in outputs:
        progress.update({(p.gatherer, p.run_id): p for p in out.progress})
        claims.update({(c.ticker, c.gatherer, c.run_id, c.from_us): c for c in out.claims})
        made.marks += out.marks
        made.epochs += [EpochStart(e.ticker, e.epoch, e.from_us) for e in out.epochs]
        made.audits += out.audits
        made.counts.update(out.counts)
        for m, ticker in enumerate(out.tickers):
            mine = out.deltas[out.deltas["market_id"] == m]
            if mine.size:
                rows.setdefault(ticker, []).append(mine)
    made.progress, made.claims = list(progress.values()), list(claims.values())
    made.rows = {t: np.concatenate(r) for t, r in rows.items()}
    made.tickers = sorted({c.ticker for c in made.claims} | set(made.rows))
    return made


def play(
    recorders: list[Recorder], settings: ArbiterSettings | None = None, size: int = 500,
    seed: int = 0,
) -> Played:  # fmt: skip
    """Merge the recordings, batches of different gatherers in random order."""
    settings = settings or ArbiterSettings()
    arbiter = Arbiter(len(recorders), settings)
    queues = [r.batches(size) for r in recorders]
    rng = random.Random(seed)
    outputs = []
    while any(queues):
        queue = rng.choice([q for q in queues if q])
        arbiter.absorb(queue.pop(0))
        while (out := arbiter.step()) is not None:
            outputs.append(out)
    while (out := arbiter.step(final=True)) is not None:
        outputs.append(out)
    return gathered(outputs, arbiter)


@dataclass
class Score:
    """What the merge got wrong; all zero is right."""

    truth: int = 0
    merged: int = 0
    lost: int = 0
    false: int = 0
    misordered: int = 0
    false_complete: int = 0
    complete_us: int = 0
    whole_us: int = 0

    def wrong(self) -> tuple[int, int, int, int]:
        return self.lost, self.false, self.misordered, self.false_complete


def score(stream: Stream, recorders: list[Recorder], played: Played) -> Score:
    """Compare with the truth, market by market; times of resets are inferred and not compared."""
    made = Score()
    received = np.zeros(stream.us.size, bool)
    no_rows = np.empty(0, [(n, "i8") for n in ("exchange_us", "side", "price", "delta", "flags")])
    for r in recorders:
        received |= r.received
    shifted = any(r.time_shift for r in recorders)
    first, last = int(stream.us[0]) - 1, int(stream.us[-1]) + 1
    intervals: dict[str, list[coverage.Interval]] = {}
    for i in coverage.intervals(played, first, last):
        if i.channel == "orderbook":
            intervals.setdefault(i.ticker, []).append(i)
            made.whole_us += i.to_us - i.from_us
            made.complete_us += (i.to_us - i.from_us) * (i.status == "complete")
    for m, ticker in enumerate(stream.tickers):
        mine = np.flatnonzero(stream.market == m)
        rows = played.rows.get(ticker, no_rows)
        reset = (rows["flags"] & 1) != 0
        tape = list(zip(
            np.where(reset | shifted, 0, rows["exchange_us"]).tolist(), rows["side"].tolist(),
            rows["price"].tolist(), rows["delta"].tolist(), reset.tolist(), strict=True,
        ))  # fmt: skip
        kind = stream.kind[mine] == 1
        truth = list(zip(
            np.where(kind | shifted, 0, stream.us[mine]).tolist(), stream.side[mine].tolist(),
            stream.price[mine].tolist(), stream.delta[mine].tolist(), kind.tolist(), strict=True,
        ))  # fmt: skip
        wanted = [t for t, got in zip(truth, received[mine], strict=True) if got]
        made.truth += len(wanted)
        made.merged += len(tape)
        absent = ~received[mine]
        if tape != wanted:
            absent = _differences(made, truth, wanted, tape, received[mine])
        for us in stream.us[mine][absent & ~received[mine]].tolist():
            made.false_complete += any(
                i.status == "complete" and i.from_us <= us < i.to_us
                for i in intervals.get(ticker, ())
            )
    return made


def _differences(
    made: Score, truth: list[Any], wanted: list[Any], tape: list[Any], received: np.ndarray
) -> np.ndarray:
    have = Counter(tape)
    made.lost += sum((Counter(wanted) - have).values())
    made.false += sum((have - Counter(truth)).values())
    left, absent = Counter(tape), np.zeros(len(truth), bool)
    for pool in (np.flatnonzero(received), np.flatnonzero(~received)):
        for i in pool.tolist():
            if left[truth[i]] > 0:
                left[truth[i]] -= 1
            else:
                absent[i] = True
    it = iter(truth)
    if not all(any(x == y for y in it) for x in tape):
        made.misordered += 1
    return absent
