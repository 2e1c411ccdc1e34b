"""The proof end to end on a small finished demo: zeros when it is right, else the right number."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import asyncpg
import pytest

from marketdata.errors import TapeError
from runtime.embedded import EmbeddedPostgres
from tape.demo import ZEROS
from tape.fleet import DemoPlan, Fleet
from tape.proof import Verdict
from tape.prove import prove, read_counters
from tests.databases import fresh_database
from tests.finished_demo import RESET, Flaws, write_demo, write_spool


def judged(out: Path, flaws: Flaws | None = None) -> tuple[Verdict, int, int]:
    """(verdict, frames the proof read, frames written)."""
    written = write_demo(out, flaws)
    verdict, frames = prove(out)
    return verdict, frames, written


def wrong(verdict: Verdict) -> dict[str, int]:
    """The numbers that must be 0 and are not, without the books (they follow from the rest)."""
    found = asdict(verdict)
    return {k: found[k] for k in ZEROS if k in found and found[k] and k != "books_wrong"}


def test_a_right_tape_gives_zeros_over_everything_that_was_received(tmp_path: Path) -> None:
    """Nine of ten events were received by one gatherer or the other; books were really compared."""
    verdict, frames, written = judged(tmp_path)
    assert (wrong(verdict), verdict.books_wrong, verdict.examples) == ({}, 0, [])
    assert (verdict.events_truth, verdict.events_merged) == (9, 9)
    assert (verdict.ambiguous, verdict.gap_intervals) == (0, 5)  # dark at both ends, one gap
    assert (verdict.books_checked, frames) == (60, written)
    assert verdict.trades_by_rest == 1


def test_what_one_gatherer_lost_and_the_other_has_must_be_on_the_tape(tmp_path: Path) -> None:
    """The union of the recordings is what counts: this is why there are several."""
    alone = tmp_path / "alone"
    write_demo(alone, Flaws(without=[2]))
    shutil.rmtree(alone / "g2")
    assert wrong(prove(alone)[0]) == {"false_complete": 1}  # nobody has it, yet it is claimed
    write_spool(alone / "g2" / "spool", 1)
    assert wrong(prove(alone)[0]) == {"missing": 1}


@pytest.mark.parametrize("event", [1, 3, RESET, 9], ids=["equal", "plain", "reset", "last"])
def test_an_event_taken_out_of_the_lake_is_missing(tmp_path: Path, event: int) -> None:
    """One of two equal events, a reset, the last one: each is one loss, and told as one."""
    verdict, _, _ = judged(tmp_path, Flaws(without=[event]))
    assert wrong(verdict) == {"missing": 1}
    assert (verdict.events_truth, verdict.events_merged) == (9, 8)
    assert "missing" in " ".join(verdict.examples)


def test_a_gap_called_complete_over_an_event_nobody_received_is_found(tmp_path: Path) -> None:
    """The worst bug there can be: the tape says it is whole where it is not."""
    verdict, _, _ = judged(tmp_path, Flaws(gap_called_complete=True))
    assert wrong(verdict) == {"false_complete": 1}
    assert verdict.books_wrong > 0  # the book after the lost event cannot be right either


@pytest.mark.parametrize("error", [1, -1])
def test_a_wrong_level_in_a_keyframe_gives_wrong_books_and_nothing_else(
    tmp_path: Path, error: int
) -> None:
    """Every event may be there and the book still be wrong by a hundredth of a contract."""
    verdict, _, _ = judged(tmp_path, Flaws(keyframe_delta=error))
    assert wrong(verdict) == {}
    assert verdict.books_wrong > 0
    assert "KX-A" in " ".join(verdict.examples)


def test_an_event_written_twice_is_extra(tmp_path: Path) -> None:
    """A false duplicate."""
    assert wrong(judged(tmp_path, Flaws(twice=7))[0]) == {"extra": 1}


def test_two_events_of_a_market_that_changed_places_are_misordered(tmp_path: Path) -> None:
    """The same events in another order are another tape."""
    assert wrong(judged(tmp_path, Flaws(swapped=(3, 7)))[0]) == {"misordered": 1}


@pytest.mark.parametrize(("flaws", "found"), [
    (Flaws(without_trade=True), {"trades_missing": 1}),
    (Flaws(without_rest_trade=True), {"trades_missing": 1}),
    (Flaws(trade_twice=True), {"trades_extra": 1}),
    (Flaws(foreign_trade=True), {"trades_extra": 1}),
    (Flaws(without_ticker=True), {"tickers_missing": 1}),
])  # fmt: skip
def test_a_trade_or_ticker_state_too_few_or_too_many_is_found(
    tmp_path: Path, flaws: Flaws, found: dict[str, int]
) -> None:
    """The tape is more than the order book."""
    assert wrong(judged(tmp_path, flaws)[0]) == found


def test_a_market_the_exchange_never_had_is_refused(tmp_path: Path) -> None:
    """Tape and truth log do not belong together: no number would mean anything."""
    with pytest.raises(TapeError, match="never had"):
        judged(tmp_path, Flaws(stranger=True))


def test_a_folder_without_a_spool_proves_nothing(tmp_path: Path) -> None:
    """Nothing received means nothing missing: zeros over nothing must not pass for a proof."""
    write_demo(tmp_path)
    for name in ("g1", "g2"):
        shutil.rmtree(tmp_path / name)
    with pytest.raises(TapeError, match="no spool"):
        prove(tmp_path)


@dataclass(frozen=True)
class OneDatabase:
    """A database of the tests' server, in the place of a server of its own."""

    address: str

    def dsn(self) -> str:
        return self.address


async def execute(dsn: str, statement: str, rows: list[tuple[int, ...]]) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.executemany(statement, rows)
    finally:
        await connection.close()


async def test_audits_of_every_gatherer_and_quarantined_rows_are_counted(
    postgres_server: EmbeddedPostgres, tmp_path: Path
) -> None:
    """Anchors and resets are no audits; a quarantine entry counts its rows; failures add up."""
    plan = DemoPlan(tmp_path, None, 2, "1", 1.0, "none", 1, 2, "runs", "picows", 5000)
    fleet = Fleet(plan)
    for name, verdicts in (("g1.hot", [0, 1, 1, 3]), ("g2.hot", [0, 1, 2, 3])):
        dsn = await fresh_database(postgres_server, "gatherer_hot")
        fleet.databases[name] = OneDatabase(dsn)  # type: ignore[assignment]
        snapshot = "INSERT INTO orderbook_snapshot VALUES (now(), 0, 0, 0, 0, 1, 1, 1, $1, 0, '')"
        await execute(dsn, snapshot, [(v,) for v in verdicts])
    production = await fresh_database(postgres_server, "production")
    fleet.databases["production"] = OneDatabase(production)  # type: ignore[assignment]
    assert await read_counters(fleet) == {"audits": 3, "audits_failed": 1, "quarantined": 0}
    entry = "INSERT INTO quarantine VALUES (1, $1, 1, 0, 1, 'unplaced', 0, 0, $2, '')"
    await execute(production, entry, [(0, 4), (1, 7)])
    assert (await read_counters(fleet))["quarantined"] == 11
