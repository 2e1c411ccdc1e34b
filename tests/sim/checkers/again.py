"""I6 and I7: the same databases merged once more, undisturbed; and without one of the gatherers.

I6 holds where every window was closed with all that belongs to it (`Watch`): then batching, the
order of reads and all crashes must not show in a single byte of production. Where a gatherer came
too late for a window the tape legitimately depends on when it came; the other checkers judge it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from dedup.arbitrate import Arbiter
from dedup.output import ArbiterSettings
from dedup.pipeline import arbiter_settings
from dedup.publication import publication_of
from dedup.pull import _TICKER_ORDER, _control, _snapshot, in_order
from marketdata.rows import BATCH_TICKER, BATCH_TRADE, DELTA_ROW, GathererBatch
from runtime.pgcopy import DELTA_COPY, HEADER, TICKER_COPY, TRADE_COPY, TRAILER, unpack_rows
from tests.sim.checkers.view import RESET, View, Violation
from tests.sim.deduplicator import settings_of
from tests.sim.hot import CONTROL_ORDER, SNAPSHOT_ORDER, HotServer
from tests.sim.production import counts_of


def whole(server: HotServer, gatherer: int) -> GathererBatch | None:
    """Everything that was committed, as one read; None where nothing was."""
    log = sorted(server.log, key=lambda b: b.batch_id)
    if not log:
        return None

    def rows(table: str, layout: Any, dtype: Any) -> np.ndarray:
        body = b"".join(b.bodies.get(table, b"") for b in log)
        return unpack_rows(layout, HEADER + body + TRAILER, dtype)

    snapshots = [_snapshot(tuple(s[n] for n in SNAPSHOT_ORDER)) for b in log for s in b.snapshots]
    snapshots.sort(key=lambda s: (s.batch_id, s.run_id, s.seq, s.market_id))
    return GathererBatch(
        gatherer=gatherer,
        first_batch_id=log[0].batch_id,
        last_batch_id=log[-1].batch_id,
        max_received_ns=log[-1].max_ns,
        deltas=in_order(
            rows("orderbook_delta", DELTA_COPY, DELTA_ROW), "batch_id", "run_id", "seq"
        ),
        snapshots=snapshots,
        trades=in_order(rows("trade", TRADE_COPY, BATCH_TRADE), "batch_id", "run_id", "seq"),
        tickers=in_order(rows("ticker", TICKER_COPY, BATCH_TICKER), *_TICKER_ORDER),
        controls=[_control(tuple(c[n] for n in CONTROL_ORDER)) for b in log for c in b.controls],
        markets={m[0]: m[2] for b in log for m in b.markets},
    )


def merged(view: View, without: int = -1) -> dict[str, Any]:
    """An undisturbed merge: everything is read, then every window is closed."""
    world = view.world
    settings: ArbiterSettings = arbiter_settings(settings_of(world.plan, "again"))
    arbiter = Arbiter(len(world.hosts), settings)
    for host in world.hosts:
        if host.number != without:
            batch = whole(host.database, host.number)
            if batch is not None:
                arbiter.absorb(batch)
    ids: dict[str, int] = {}
    made: dict[str, Any] = {
        "deltas": [], "trades": [], "tickers": [], "snapshots": [], "epochs": [], "gaps": [],
        "quarantine": [], "marks": [], "audits": [], "claims": {}, "progress": {}, "tails": {},
        "named": {}, "counts": {}, "windows": 0,
    }  # fmt: skip
    known: set[bytes] = set()
    while (output := arbiter.step(final=True)) is not None:
        part = publication_of([output], ids, {})
        ids.update((ticker, market) for market, ticker, _ in part.new_markets)
        late = [r for r in part.late_trades if bytes(r["trade_id"].tolist()) not in known]
        for rows in (part.trades, np.array(late, part.trades.dtype)):
            made["trades"].append(rows)
            known.update(bytes(i) for i in rows["trade_id"].tolist())
        made["deltas"].append(part.deltas)
        made["tickers"].append(part.tickers)
        for name in ("snapshots", "epochs", "gaps", "quarantine", "marks", "audits"):
            made[name] += [tuple(row) for row in getattr(part, name)]
        made["claims"].update(
            {(*k, c.to_us, c.valid, c.reason)[:4]: (*k, c.to_us, c.valid, c.reason)
             for k, c in part.claims.items()}
        )  # fmt: skip
        made["progress"].update({
            k: (p.gatherer, p.run_id, p.channel, p.from_us, p.to_us, p.ended, p.reason)
            for k, p in part.progress.items()
        })  # fmt: skip
        made["tails"].update(part.tails)
        for name, state in part.named_states.items():
            if state is None:
                made["named"].pop(name, None)
            else:
                made["named"][name] = state
        for name, value in part.counts.items():
            made["counts"][name] = made["counts"].get(name, 0) + value
        made["windows"] += 1
    made["ids"] = ids
    return made


def _bytes(parts: list[np.ndarray]) -> bytes:
    return b"".join(part.tobytes() for part in parts)


def check_again(view: View) -> Iterator[Violation]:
    """I6, byte for byte."""
    if view.overtaken or view.replaced or not view.world.ended or view.content.state is None:
        return
    again, content = merged(view), view.content
    tables = content.tables
    seen = {
        "market ids": ({r[1]: r[0] for r in tables["market"].values()}, again["ids"]),
        "deltas": (content.rows("orderbook_delta").tobytes(), _bytes(again["deltas"])),
        "trades": (content.rows("trade").tobytes(), _bytes(again["trades"])),
        "tickers": (content.rows("ticker").tobytes(), _bytes(again["tickers"])),
        "snapshots": (sorted(content.snapshots.values()), sorted(again["snapshots"])),
        "epochs": (sorted(tables["market_epoch"].values()), sorted(again["epochs"])),
        "gaps": (sorted(tables["gap"].values()), sorted(again["gaps"])),
        "quarantine": (_without_batches(tables["quarantine"].values()),
                       _without_batches(again["quarantine"])),
        "marks": (sorted(tables["mark"].values()), sorted(again["marks"])),
        "audits": (sorted(tables["audit_point"].values()), sorted(again["audits"])),
        "claims": (sorted(tables["market_claim"].values()), sorted(again["claims"].values())),
        "progress": (sorted(tables["run_progress"].values()), sorted(again["progress"].values())),
        "tails": (sorted(tables["market_tail"].values()), sorted(again["tails"].items())),
        "counts": (counts_of(content), again["counts"]),
        "state": (_kept(dict(tables["arbiter_state"].values())), _kept(again["named"])),
    }  # fmt: skip
    for name, (is_now, wanted) in seen.items():
        if is_now != wanted:
            yield Violation(
                f"{name} of an undisturbed merge of the same databases differ",
                seen=_difference(is_now, wanted), expected=_difference(wanted, is_now),
            )  # fmt: skip
            return


def _kept(states: dict[str, bytes]) -> dict[str, bytes]:
    """Without what waits for the next run of a connection that is over: it waits for ever, and
    whether it is there follows from the moment at which the last end was read. Nor is the number
    of windows compared: an end that comes when its window has closed takes one of its own. Nor
    where a reader stands (`life-`): that is how far it had read."""
    return {
        name: state
        for name, state in states.items()
        if name != "heirless" and not name.startswith("life-")
    }


def _without_batches(rows: Any) -> list[Any]:
    return sorted(tuple(row) for row in rows)


def _difference(a: Any, b: Any) -> str:
    if isinstance(a, bytes):
        return f"{len(a)} bytes"
    if isinstance(a, dict):
        return str(sorted((k, v) for k, v in a.items() if b.get(k) != v)[:3])[:400]
    if isinstance(a, list):
        return str([row for row in a if row not in b][:3])[:400]
    return str(a)


def check_one_less(view: View) -> Iterator[Violation]:
    """I7: a gatherer that has no event which another one lacks may be left out."""
    if view.overtaken or view.replaced or not view.world.ended:
        return
    in_runs = view.by_gatherer("in_runs", lost_too=False)
    spools = {g: [s for s in view.spools if s.gatherer == g] for g in range(len(in_runs))}
    uncut = next((g for g in spools if _uncut(view, spools[g], in_runs[g])), None)
    if uncut is None:
        return
    view.world.story.happened["checked: one gatherer less"] += 1
    out = (uncut + 1 + view.world.plan.seed % (len(in_runs) - 1)) % len(in_runs)
    less = merged(view, without=out)
    names = {market: ticker for ticker, market in less["ids"].items()}
    columns = ("epoch", "market_seq", "exchange_us", "side", "price", "delta", "book_hash")

    def told(rows: np.ndarray, tickers: dict[int, str]) -> list[Any]:
        rows = rows.copy()
        rows["exchange_us"][(rows["flags"] & RESET) != 0] = 0  # inferred: each witness' own
        # Epochs by their place among those with events: one may be a book that only the other saw.
        pairs = rows["market_id"].astype(np.int64) << 32 | rows["epoch"]
        shown = np.unique(pairs)
        first = np.searchsorted(shown, rows["market_id"].astype(np.int64) << 32)
        rows["epoch"] = np.searchsorted(shown, pairs) - first
        parts = [rows[n].tolist() for n in columns]
        named = [tickers[m] for m in rows["market_id"].tolist()]
        return sorted(zip(named, *parts, strict=True))

    a = told(np.concatenate(less["deltas"]), names) if less["deltas"] else []
    b = told(view.content.rows("orderbook_delta"), view.tickers)
    if a != b:
        yield Violation(
            f"the tape without gatherer {out} differs, though gatherer {uncut} has everything",
            seen=_difference(b, a), expected=_difference(a, b),
        )  # fmt: skip


def _uncut(view: View, spools: list[Any], in_runs: np.ndarray) -> bool:
    """Whether this gatherer has every event that is due, all of it in one run without a cut."""
    if len(spools) != 1 or not in_runs[view.due].all():
        return False
    books = 0
    for (conn, sid), seqs in spools[0].got.seqs.items():
        sends = view.truth.sends
        mine = sends[(sends["conn"] == conn) & (sends["sid"] == sid)]
        if not np.isin(mine["kind"], (0, 1)).any():
            continue
        books += 1
        order = np.array(seqs, np.int64)
        if order.size and (order[0] != 1 or (np.diff(order) != 1).any()):
            return False
    return books == 1
