"""The verdict on a world whose recording was stopped: its rows and its claims against the truth.

Two comparisons that share no code. `rows`: every row of the gatherer's own database by its name on
the wire (connection, sid, seq) against what the exchange sent under that name. `tape`: the
deduplicator over this one gatherer, then the lake as a reader gets it, with its coverage, against
the exchange's log and the raw spool.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, replace
from typing import Any

import asyncpg
import numpy as np
import pytest

from exchange.truth import read_truth
from marketdata.rows import DeltaFlag, DeltaRows
from runtime.embedded import EmbeddedPostgres
from tape import prove as prove_module
from tape.children import Child
from tape.fleet import free_port
from tape.proof import Interval, MergedMarket, Verdict
from tests.faults.world import World
from tests.gatherer_rig import Findings, Recording, compare, read_recording

MERGE_S = 480.0


@dataclass
class Judgement:
    """Both comparisons."""

    rows: Findings
    tape: Verdict
    recording: Recording
    quarantined: dict[str, int]  # rows by reason

    def told(self) -> str:
        return f"{self.rows}\n{self.tape}\nquarantined: {self.quarantined}"

    def holds(self, *, lost: int = 0, set_aside: bool = False) -> None:
        """Assert what every fault has to leave behind. `lost`: rows that the fault itself kept out
        of the table. `set_aside`: rows between them and the next snapshot may stand in quarantine.
        """
        rows, tape = self.rows, self.tape
        assert rows.compared > 0, self.told()
        assert tape.events_truth > 0, self.told()
        assert tape.books_checked > 0, self.told()
        wrong = (rows.unnamed, rows.doubled, rows.altered, rows.wrong_hash)
        assert wrong == (0, 0, 0, 0), self.told()
        assert rows.lost <= lost, self.told()
        assert tape.false_complete == 0, self.told()
        false = (tape.extra, tape.misordered, tape.books_wrong)
        assert false == (0, 0, 0), self.told()
        aside = sum(self.quarantined.values()) if set_aside else 0
        assert tape.missing <= lost + aside, self.told()
        assert (tape.trades_missing, tape.tickers_missing) == (0, 0), self.told()


@dataclass
class Controls:
    """What the comparisons say about the same world with a flaw made on purpose."""

    row_removed: int  # lost
    row_doubled: int  # doubled
    tape_row_removed: int  # missing
    complete_forged: int  # false_complete


def controls(world: World, found: Judgement) -> Controls:
    """Negative controls: a row taken out, a row doubled, and everything called complete."""
    truth = read_truth(world.out / "truth")
    deltas = found.recording.deltas
    middle = _missed_if_removed(deltas)
    removed = replace(found.recording, deltas=np.delete(deltas, middle))
    doubled = replace(found.recording, deltas=np.insert(deltas, middle, deltas[middle]))
    read_merged, read_coverage = prove_module.read_merged, prove_module.read_coverage

    def one_less(lake: Any) -> dict[str, MergedMarket]:
        merged = read_merged(lake)
        name = max(merged, key=lambda n: merged[n].size)
        columns = vars_of(merged[name])
        merged[name] = MergedMarket(**{k: np.delete(v, 3) for k, v in columns.items()})
        return merged

    def all_complete(lake: Any) -> tuple[dict[str, list[Interval]], int]:
        intervals, _ = read_coverage(lake)
        for mine in intervals.values():
            for interval in mine:
                interval.status = "complete"
        return intervals, 0

    def judged(merged: Any, coverage: Any) -> Verdict:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(prove_module, "read_merged", merged)
            patch.setattr(prove_module, "read_coverage", coverage)
            return prove_module.prove(world.out)[0]

    return Controls(
        row_removed=compare(removed, truth).lost - found.rows.lost,
        row_doubled=compare(doubled, truth).doubled,
        tape_row_removed=judged(one_less, read_coverage).missing - found.tape.missing,
        complete_forged=judged(read_merged, all_complete).false_complete,
    )


def _missed_if_removed(deltas: DeltaRows) -> int:
    """A row from the middle on that changes a book and is not the last of its run: behind the last
    one nothing tells that another was sent."""
    for at in range(len(deltas) // 2, len(deltas)):
        mine = deltas["run_id"] == deltas["run_id"][at]
        is_last = deltas["seq"][at] == deltas["seq"][mine].max()
        if not (is_last or deltas["flags"][at] & int(DeltaFlag.RESET)):
            return at
    raise AssertionError(f"none of {len(deltas)} rows would be missed")


def vars_of(market: MergedMarket) -> dict[str, Any]:
    """The columns of a market by name."""
    return {name: getattr(market, name) for name in ("us", "side", "price", "delta", "flagged")}


async def merge(world: World) -> dict[str, int]:
    """The deduplicator over the stopped gatherer, to its end, into `out/lake`. Returns the rows
    that it put into quarantine, by reason."""
    production = EmbeddedPostgres(world.out / "db" / "production")
    await production.start()
    child = Child(
        name="dedup", module="dedup.main", log=world.out / "logs" / "dedup.log",
        environment={
            "KT_GATHERER_DSNS": json.dumps([world.hot.dsn()]),
            "KT_GATHERER_META_DSNS": json.dumps([world.meta.dsn()]),
            "KT_PRODUCTION_DSN": production.dsn(), "KT_LAKE_URI": str(world.out / "lake"),
            "KT_HEALTH_PORT": str(free_port()), "KT_METRICS_PORT": str(free_port()),
            "KT_WINDOW_MS": "1000", "KT_FINAL": "true",
        },
    )  # fmt: skip
    try:
        await child.start()
        code = await child.wait(MERGE_S)
        assert code == 0, child.log_tail(20)
        assert child.restarts == 0, child.log_tail(20)
        connection = await asyncpg.connect(production.dsn())
        try:
            query = "SELECT reason, sum(n_rows)::int AS n FROM quarantine GROUP BY 1 ORDER BY 1"
            return {row["reason"]: row["n"] for row in await connection.fetch(query)}
        finally:
            await connection.close()
    finally:
        await child.stop(5.0)
        await production.stop()


async def judge(world: World) -> Judgement:
    """Stop the recording, merge it, compare."""
    await world.stop_recording()
    quarantined = await merge(world)
    recording = await read_recording(world.hot.dsn())
    rows = compare(recording, read_truth(world.out / "truth"))
    verdict, _ = await asyncio.to_thread(prove_module.prove, world.out)
    return Judgement(rows, verdict, recording, quarantined)
