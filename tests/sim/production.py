"""Production as one transactional database: rows, tails, named states, positions, the fence.

Purpose: answer the statements of `dedup.publish`; keep what PostgreSQL keeps, with its unique keys
and the row lock on `merge_state`; be copied and set back to an earlier copy.

Invariants: SIM-8 a table with a primary key never holds two rows of one key: the second is refused,
which the checkers count.

Does not do: the lake's tables beyond accepting them, partitions, more than one merger of a tape:
what belongs to a shard is that of shard 1 (SHARDED), another one is an error.
"""

from __future__ import annotations

import copy
import json
import random
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dedup import tape_rows
from marketdata.rows import MERGED_ROW
from runtime.pgcopy import HEADER, TRAILER, unpack_rows
from tests.sim.sql import Record, Server, SimConnection, Tx, copied_rows, unique
from tests.sim.virtual import Story

# Columns and the primary key of every table that is written by rows.
TABLES: dict[str, tuple[tuple[str, ...], int]] = {
    "market": (("market_id", "ticker", "first_us"), 1),
    "market_epoch": (("market_id", "epoch", "from_us", "start_hash", "reason"), 2),
    "gap": (
        ("market_id", "epoch", "from_us", "to_us", "hash_before", "hash_after", "kind"), 2,
    ),
    "quarantine": (
        ("window_index", "ord", "market_id", "gatherer", "run_id", "reason", "from_us", "to_us",
         "n_rows", "rows"), 2,
    ),
    "mark": (("window_index", "ord", "market_id", "kind", "from_us", "to_us", "reason"), 2),
    "audit_point": (
        ("window_index", "ord", "market_id", "gatherer", "exchange_us", "agrees"), 2,
    ),
    "run_progress": (
        ("gatherer", "run_id", "channel", "from_us", "to_us", "ended", "reason"), 2,
    ),
    "market_claim": (
        ("market_id", "gatherer", "run_id", "from_us", "to_us", "valid", "reason"), 4,
    ),
    "market_tail": (("market_id", "state"), 1),
    "arbiter_state": (("name", "state"), 1),
    "gatherer_cursor": (
        ("gatherer", "system_identifier", "reread_from_batch", "seen_batch"), 1,
    ),
    "lake_hour": (("hour_us", "rows_dirty", "proof_dirty"), 1),
    "window_closing": (("reason", "windows"), 1),
    "window_unwaited": (("shard", "window_index", "to_us", "reason", "detail"), 2),
}  # fmt: skip
# Tables of which each merger has its own rows: the last argument of a statement is the shard.
SHARDED = ("merge_state", "arbiter_state", "gatherer_cursor", "window_closing")
LAYOUTS = {
    "orderbook_delta": (tape_rows.DELTA_COPY, MERGED_ROW),
    "trade": (tape_rows.TRADE_COPY, tape_rows.TRADE_ROW),
    "ticker": (tape_rows.TICKER_COPY, tape_rows.TICKER_ROW),
}
ROW_KEYS = {
    "orderbook_delta": ("market_id", "epoch", "market_seq", "exchange_us"),
    "trade": ("trade_id", "exchange_us"),
    "ticker": ("market_id", "exchange_us", "payload_key"),
}


@dataclass
class Content:
    """All that a backup holds."""

    state: dict[str, Any] | None = None
    tables: dict[str, dict[Any, tuple[Any, ...]]] = field(
        default_factory=lambda: {name: {} for name in TABLES}
    )
    bodies: dict[str, list[bytes]] = field(default_factory=lambda: {name: [] for name in LAYOUTS})
    keys: dict[str, set[Any]] = field(default_factory=lambda: {name: set() for name in LAYOUTS})
    snapshots: dict[Any, tuple[Any, ...]] = field(default_factory=dict)

    def rows(self, name: str) -> np.ndarray:
        """The rows of a table of fixed width, in the order of writing."""
        layout, dtype = LAYOUTS[name]
        body = HEADER + b"".join(self.bodies[name]) + TRAILER
        return unpack_rows(layout, body, dtype)


class ProductionServer(Server):
    """See the module's text."""

    def __init__(self, name: str, identifier: int, rng: random.Random, story: Story) -> None:
        super().__init__(name, identifier, rng, story)
        self.content = Content()
        self.backup: Content | None = None
        self.advisory: dict[int, SimConnection] = {}
        self.refused: list[str] = []
        self.fenced = 0
        self.published: list[tuple[int, int]] = []  # windows before, windows after

    # -- an operator's acts

    def take_backup(self) -> None:
        """As pg_dump: what is committed now."""
        self.backup = copy.deepcopy(self.content)

    def restore(self) -> None:
        """The backup is put in place of what was there."""
        assert self.backup is not None
        self.cut_all()
        for tx in list(self.active.values()):
            self.end(tx, commit=False)
        self.content = copy.deepcopy(self.backup)

    def forget_lock(self) -> None:
        """The server thinks that the merger's line is gone; the merger does not know."""
        self.advisory.clear()

    # -- statements

    def snapshot(self) -> None:
        """Reads are made at once: nobody here reads in several statements but `_load`, alone."""

    async def run(self, conn: SimConnection, tx: Tx, kind: str, sql: str, args: Any) -> Any:
        if kind == "fetchval" and "pg_try_advisory_lock" in sql:
            return self._advisory_lock(conn, args[0])
        if "shard" in sql and kind != "records" and "ORDER BY shard" not in sql:
            args = _of_shard_1(sql, args)
        act = getattr(self, f"_{kind}")
        return await act(tx, sql, args)

    def _advisory_lock(self, conn: SimConnection, key: int) -> bool:
        holder = self.advisory.get(key)
        if holder is not None and not holder.broken:
            return holder is conn
        self.advisory[key] = conn
        return True

    async def _fetchval(self, tx: Tx, sql: str, args: Any) -> Any:
        state = self.content.state
        if sql == "SELECT windows FROM merge_state WHERE shard = $1":
            return None if state is None else state["windows"]
        raise NotImplementedError(f"the simulated database does not know {sql!r}")

    async def _fetchrow(self, tx: Tx, sql: str, args: Any) -> Record | None:
        found = re.fullmatch(r"SELECT ([a-z_, ]+) FROM merge_state WHERE shard = \$1", sql)
        if found is not None:
            state, names = self.content.state, found[1].split(", ")
            return None if state is None else Record(names, [state[name] for name in names])
        raise NotImplementedError(f"the simulated database does not know {sql!r}")

    async def _fetch(self, tx: Tx, sql: str, args: Any) -> list[Record]:
        tables = self.content.tables
        if sql == "SELECT settings FROM merge_state ORDER BY shard":
            state = self.content.state
            return [] if state is None else [Record(("settings",), (state["settings"],))]
        if sql == "SELECT reason, windows FROM window_closing WHERE shard = $1":
            return [Record(("reason", "windows"), row) for row in tables["window_closing"].values()]
        if "FROM market_tail JOIN market" in sql:
            names = {row[0]: row[1] for row in tables["market"].values()}
            return [
                Record(("ticker", "state"), (names[m], state))
                for m, state in tables["market_tail"].values()
            ]
        if "FROM run_progress WHERE NOT ended" in sql:
            rows = [row for row in tables["run_progress"].values() if not row[5]]
            return [Record(("gatherer", "run_id", "to_us"), (r[0], r[1], r[4])) for r in rows]
        if sql.startswith("SELECT trade_id FROM trade"):
            return self._known_trades(*args)
        found = re.search(r"FROM (\w+)", sql)
        table = found[1] if found else ""
        if table in ("market", "arbiter_state", "gatherer_cursor") and "JOIN" not in sql:
            return [Record(TABLES[table][0], row) for _, row in sorted(tables[table].items())]
        raise NotImplementedError(f"the simulated database does not know {sql!r}")

    def _known_trades(self, ids: Any, low: int, high: int) -> list[Record]:
        asked = {i.bytes for i in ids}
        found = [
            _Uuid(trade_id)
            for trade_id, us in self.content.keys["trade"]
            if trade_id in asked and low <= us <= high
        ]
        return [Record(("trade_id",), (one,)) for one in found]

    async def _execute(self, tx: Tx, sql: str, args: Any) -> str:
        self.write(tx)
        if sql.startswith("INSERT INTO merge_state"):
            if self.content.state is None:
                tx.staged.append(lambda: self._begin(args[0]))
            return "INSERT 0 1"
        if sql.startswith("UPDATE merge_state"):
            return await self._move(tx, sql, args)
        if sql.startswith("DELETE FROM arbiter_state"):
            tx.staged.append(lambda: self._delete(list(args[0])))
            return "DELETE"
        found = re.match(r"INSERT INTO (\w+)", sql)
        if found is None or found[1] not in TABLES:
            raise NotImplementedError(f"the simulated database does not know {sql!r}")
        rows = list(zip(*args, strict=True)) if "unnest" in sql else [tuple(args)]
        self._upsert(tx, found[1], rows, upsert="ON CONFLICT" in sql)
        return f"INSERT 0 {len(rows)}"

    def _begin(self, settings: str) -> None:
        if self.content.state is None:
            self.content.state = {
                "windows": 0, "closed_to_us": 0, "received_ns_max": 0, "settings": settings,
                "counts": "{}",
            }  # fmt: skip

    async def _move(self, tx: Tx, sql: str, args: Any) -> str:
        await self.lock(tx, "merge_state")
        state = self.content.state
        if state is None:  # set back to before the tape began
            return "UPDATE 0"
        before, windows, closed_to_us, received_ns, counts = args
        if "WHERE windows = $1" in sql and state["windows"] != before:
            self.fenced += 1
            self.story.fault("fenced", self.name, f"at {state['windows']}, not {before}")
            return "UPDATE 0"

        def move() -> None:
            now = self.content.state
            assert now is not None
            self.published.append((now["windows"], now["windows"] + windows))
            now["windows"] += windows
            now["closed_to_us"] = closed_to_us
            now["received_ns_max"] = max(now["received_ns_max"], received_ns)
            now["counts"] = counts

        tx.staged.append(move)
        return "UPDATE 1"

    def _delete(self, names: list[str]) -> None:
        for name in names:
            self.content.tables["arbiter_state"].pop((name,), None)

    def _upsert(self, tx: Tx, table: str, rows: list[Any], *, upsert: bool) -> None:
        width = TABLES[table][1]
        held = self.content.tables[table]
        for row in rows:
            if not upsert and row[:width] in held:
                self._refuse(table, row[:width])

        def put() -> None:
            for row in rows:
                if table == "window_closing":  # windows = c.windows + excluded.windows
                    now = self.content.tables[table]
                    row = (row[0], row[1] + now.get(row[:1], (row[0], 0))[1])
                self.content.tables[table][row[:width]] = row

        tx.staged.append(put)

    def _refuse(self, table: str, key: Any) -> None:
        self.refused.append(f"{table} {key}")
        self.story.tell(self.name, f"a second row of {table} {key} is refused")
        raise unique(table, key)

    async def _records(self, tx: Tx, sql: str, args: Any) -> int:
        table, rows, columns = args
        self.write(tx)
        assert columns == TABLES[table][0], f"columns of {table}: {columns}"
        self._upsert(tx, table, rows, upsert=False)
        return len(rows)

    async def _copy_in(self, tx: Tx, sql: str, args: Any) -> int:
        table, body, _ = args
        self.write(tx)
        if table == "orderbook_snapshot":
            rows = copied_rows(tape_rows.SNAPSHOT_COPY, body)
            for row in rows:  # market, epoch, market_seq, hash, time
                key = (row[3], row[4], row[5], row[2], row[0])
                if key in self.content.snapshots:
                    self._refuse(table, key)
                tx.staged.append(lambda k=key, r=row: self.content.snapshots.update({k: r}))
            return len(rows)
        layout, dtype = LAYOUTS[table]
        found = unpack_rows(layout, HEADER + body + TRAILER, dtype)
        keys = list(zip(*(found[name].tolist() for name in ROW_KEYS[table]), strict=True))
        mine: set[Any] = set()
        for key in keys:
            if key in self.content.keys[table] or key in mine:
                self._refuse(table, key)
            mine.add(key)

        def put() -> None:
            self.content.bodies[table].append(body)
            self.content.keys[table].update(mine)

        tx.staged.append(put)
        return len(keys)


def _of_shard_1(sql: str, args: Any) -> Any:
    """The arguments without the shard, which is the last one."""
    assert any(table in sql for table in SHARDED), sql
    assert args[-1] == 1, f"shard {args[-1]} of a world with one merger"
    return args[:-1]


class _Uuid:
    """A uuid of an answer: its bytes are looked at."""

    def __init__(self, value: bytes) -> None:
        self.bytes = value


def counts_of(content: Content) -> dict[str, int]:
    """The merge's own accounts since the tape began."""
    return {} if content.state is None else dict(json.loads(content.state["counts"]))


__all__ = ["Content", "ProductionServer", "counts_of"]
