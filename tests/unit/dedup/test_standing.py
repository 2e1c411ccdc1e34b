"""Lists of what went wrong, newest first, and what is told of the host."""

from __future__ import annotations

from pathlib import Path

from dedup.page.standing import (
    audits_told,
    bytes_told,
    gaps_told,
    host_told,
    overview,
    quarantine_told,
    state_told,
)
from dedup.publication import publication_of
from dedup.publish import Publisher
from marketdata.coverage import OPEN_US, AuditPoint, Mark, MarketClaim, RunProgress
from runtime.health import Health
from tests.window_outputs import T0, window_output


async def test_what_production_holds_is_told_newest_first(production: str) -> None:
    outputs = [window_output(n, ["KXA-1"]) for n in range(2)]
    for n, output in enumerate(outputs):
        output.progress = [RunProgress(0, 1, "orderbook", T0, T0 + 9, ended=False, reason="")]
        output.claims = [MarketClaim("KXA-1", 0, 1, T0, OPEN_US, valid=True, reason="")]
        output.marks = [
            Mark("KXA-1", "gap", T0 + n, T0 + n + 1, f"hole {n}"),
            Mark("KXA-1", "unproven", T0 + n, T0 + n + 1, "no lack by itself"),
        ]
        output.audits = [AuditPoint("KXA-1", 0, T0 + n, agrees=bool(n))]
    outputs[1].epochs = []
    publisher = Publisher(production, {})
    await publisher.open()
    made = publication_of(outputs, {}, {})
    await publisher.commit(made, {})
    conn = await publisher.connection()
    gaps = await gaps_told(conn)
    assert [g["reason"] for g in gaps["gaps"]] == ["hole 1", "hole 0"]
    assert gaps["unwaited"] == []
    assert [a["agrees"] for a in (await audits_told(conn))["audits"]] == [True, False]
    assert await quarantine_told(conn) == {"quarantine": []}
    state = await state_told(conn)
    assert state["closed_us"] == made.closed_to_us
    assert state["subscriptions"] == [
        {"gatherer": 0, "channel": "orderbook", "in_sequence": 1, "proven_to_us": T0 + 9}
    ]
    held = await bytes_told(conn)
    assert held["production_bytes"] > 0
    assert (held["lake_bytes"], held["lake_version"]) == (0, None)
    await publisher.close()


async def test_rows_that_were_kept_aside_are_told_with_their_market(production: str) -> None:
    publisher = Publisher(production, {})
    await publisher.open()
    await publisher.commit(publication_of([window_output(0, ["KXA-1"])], {}, {}), {})
    conn = await publisher.connection()
    await conn.execute("INSERT INTO quarantine VALUES (1, 0, 1, 2, 3, 'late', 4, 5, 6, '')")
    found = await quarantine_told(conn)
    assert found["quarantine"] == [
        {"market": "KXA-1", "gatherer": 2, "reason": "late", "rows": 6, "from_us": 4, "to_us": 5}
    ]
    await publisher.close()


def test_the_host_is_told_without_its_paths_or_addresses(tmp_path: Path) -> None:
    told = host_told(str(tmp_path / "not" / "yet"), "")
    assert told["revision"] == "unknown"
    assert told["disk_bytes"] >= told["disk_free_bytes"] > 0
    assert told["memory_bytes"] > 1 << 20
    assert str(tmp_path) not in str(told)
    assert host_told("s3://secret-bucket/prefix", "r1")["lake"] == "s3"
    assert "secret" not in str(host_told("s3://secret-bucket/prefix", "r1"))


def test_an_overview_of_a_service_that_knows_nothing_yet() -> None:
    told = overview(Health("d").report(), {}, None, [], [], None, 5)
    assert told["verdict"]["word"] == "unknown"
    assert (told["tape_lag_ms"], told["gatherers"], told["witnesses"]) == (None, [], {})


def test_a_gap_counts_as_recent_by_the_tapes_own_time() -> None:
    state = {"closed_us": 10_000_000_000, "received_ms": 1_000}
    gaps = [
        {"market": "M", "from_us": 1, "to_us": to_us, "kind": "gap", "reason": "error"}
        for to_us in (9_999_000_000, 9_000_000_000)
    ]
    told = overview(Health("d").report(), {}, state, gaps, [], None, 1_500)
    assert told["recent_gaps"] == 1
    assert told["tape_lag_ms"] == 500
