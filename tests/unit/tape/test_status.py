"""`tape status`: words and numbers of the deduplicator, gatherers and production, in one look."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import asyncpg
import pytest

from dedup.exchange_seen import told as exchange_told
from dedup.status import Tally
from dedup.status import status as merge_status
from marketdata.evidence import Evidence, Seen
from runtime.embedded import EmbeddedPostgres
from runtime.health import Health, HealthServer
from runtime.metrics import Metrics
from tape.status import MERGER, channels, exchange, merged, mergers, reasons, seen_by, suspected
from tests.databases import fresh_database

CLOSED_US = 1_700_000_000_000_000
HOUR_US = 3_600_000_000
DETAIL = {
    "lag_ms": 1_250,
    "channels": {
        "orderbook": {"covered": 9, "to_cover": 10, "missing": 1, "oldest_proof_ms": 4_000}
    },
}


def body() -> dict[str, Any]:
    """What a deduplicator with three witnesses of most events says."""
    tally = Tally()
    tally.began({"merged_events": 1_000, "witnesses_3": 990, "witnesses_1": 10, "audits": 5})
    lake = {"version": 4}
    told = merge_status(
        tally, [], 0, state="ok", closed_to_us=CLOSED_US, closed_to="2023-11-14T22:13:20Z",
        markets=2, waiting_for="", lake=lake,
    )  # fmt: skip
    told["gatherers"] = [
        {"gatherer": 1, "state": "reading", "lag_ms": 450, "batches_behind": 3, "rows": 7,
         "errors": 0, "reason": ""}
    ]  # fmt: skip
    return told


def server(
    health: Health, told: Mapping[str, Any] | None, detail: Mapping[str, Any] | None = None
) -> HealthServer:
    metrics = Metrics()
    status = (lambda: told) if told is not None else None
    return HealthServer(
        health, metrics, status=status, detail=(lambda: detail) if detail is not None else None
    )


def well(service: str) -> Health:
    made = Health(service)
    made.set("merge", "ok")
    return made


async def filled(postgres_server: EmbeddedPostgres) -> str:
    """A production with gaps and rows kept aside, some of them older than a day."""
    dsn = await fresh_database(postgres_server, "production")
    conn = await asyncpg.connect(dsn)
    await conn.execute("INSERT INTO market VALUES (1, 'A', 0), (2, 'B', 0)")
    for market, epoch, hours_ago, seconds in ((1, 2, 30, 900), (1, 3, 2, 60), (2, 2, 1, 7)):
        to_us = CLOSED_US - hours_ago * HOUR_US
        await conn.execute(
            "INSERT INTO gap VALUES ($1, $2, $3, $4, 0, 0, 'gap')",
            market, epoch, to_us - seconds * 1_000_000, to_us,
        )  # fmt: skip
    for n, (gatherer, reason, hours_ago) in enumerate(
        ((0, "late", 1), (2, "late", 1), (0, "old", 50))
    ):
        us = CLOSED_US - hours_ago * HOUR_US
        await conn.execute(
            "INSERT INTO quarantine VALUES ($1, 0, 1, $2, 1, $3, $4, $5, $6, '')",
            n, gatherer, reason, us, us + 1, 10 + n,
        )  # fmt: skip
    for seq, sources in enumerate((7, 7, 1), 1):
        await conn.execute(
            "INSERT INTO orderbook_delta VALUES (to_timestamp($1), 0, 1, 0, 1, 1, $2, 1, 0, 0, $3)",
            CLOSED_US // 1_000_000 - 60, seq, sources,
        )  # fmt: skip
    await conn.close()
    return dsn


def test_what_is_not_well_is_told_in_its_own_words() -> None:
    health = well("deduplicator")
    health.set("gatherer1", "degraded", "connecting")
    assert reasons("dedup", health.report()) == [
        {"who": "dedup", "part": "gatherer1", "state": "degraded", "reason": "connecting"}
    ]
    assert reasons("g1", "refused")[0]["state"] == "failing"


def test_channels_and_gatherers_have_their_lag_in_seconds() -> None:
    row = channels("g1", {"detail": DETAIL})[0]
    assert (row["covered"], row["to cover"], row["missing"]) == (9, 10, 1)
    assert (row["oldest proof s"], row["lag s"]) == ("4.0", "1.2")
    assert channels("g1", "no answer") == []
    assert merged(body())[0]["gatherer"] == 2
    assert merged(body())[0]["lag s"] == "0.4"


def test_a_gatherer_that_the_others_contradicted_is_named() -> None:
    told = body()
    assert suspected(told) == []
    told["gatherers"][0]["suspect"] = {"missed_event": 3}
    assert suspected(told) == [{"gatherer": 2, "reason": "missed_event", "runs": 3}]


def test_what_was_seen_of_the_exchange_is_told_by_pair_and_of_replies() -> None:
    told = body()
    assert exchange(told) == []
    evidence, seen = Evidence(), Seen()
    seen.equal([(0, 1), (2, 1)], 1_000)
    evidence.close(1, seen)
    told["exchange"] = exchange_told(evidence)
    assert exchange(told) == [
        {"gatherers": "1-3", "mode": "exact", "compared": 1_000, "equal times": 1_000,
         "apart us at most": 0, "other order": 0}
    ]  # fmt: skip
    seen = Seen()
    seen.replies.differed = 1
    evidence.close(2, seen)
    told["exchange"] = exchange_told(evidence)
    assert (exchange(told)[1]["gatherers"], exchange(told)[1]["mode"]) == (
        "get_snapshot", "unproven",
    )  # fmt: skip


def test_mergers_that_share_the_markets_have_a_line_each() -> None:
    first, second = mergers({"mergers": [{"windows": 3, "waiting_for": ""}, None]})
    assert (first["merger"], first["windows"], first["waiting_for"]) == (1, 3, "")
    assert (second["merger"], second["waiting_for"]) == (2, "does not answer")
    assert set(first) == set(second) == {"merger", *MERGER}
    assert mergers({}) == []


def test_witnesses_are_shares_of_all_events() -> None:
    assert [(r["seen by"], r["per mille"]) for r in seen_by(body())] == [(1, 10), (3, 990)]
    assert seen_by({**body(), "witnesses": {}}) == []


async def test_one_look_at_all_of_it(run, postgres_server: EmbeddedPostgres) -> None:
    dsn = await filled(postgres_server)
    async with (
        server(well("deduplicator"), body()) as dedup,
        server(well("gatherer"), None, DETAIL) as gatherer,
    ):
        urls = [f"http://127.0.0.1:{each.health_port}" for each in (dedup, gatherer)]
        asked = ("status", "--url", urls[0], "--gatherer", urls[1], "--production", dsn)
        code, out, _ = await asyncio.to_thread(run, *asked, "--market", "A", "--json")
        told = json.loads(out)
        assert code == 0
        assert [(r["gatherer"], r["reason"], r["rows"]) for r in told["kept_aside"]] == [
            (3, "late", 11),
            (1, "late", 10),
        ]
        assert [(r["gaps"], r["markets"], r["seconds"]) for r in told["gaps"]] == [(2, 2, 67)]
        assert [r["market"] for r in told["worst"]] == ["A", "B"]
        assert [(r["seen by"], r["events"]) for r in told["market"]] == [("1 2 3", 2), ("1", 1)]
        code, out, _ = await asyncio.to_thread(run, *asked)
        assert code == 0
        assert "1,000 events of 2 markets" in out
        assert "gaps of the last day" in out
        code, _, said = await asyncio.to_thread(run, *asked, "--market", "NONE")
        assert (code, "NONE is not on the tape" in said) == (2, True)


async def test_a_gatherer_that_does_not_answer_is_a_line_and_the_exit_code(run) -> None:
    async with server(well("deduplicator"), body()) as dedup:
        url = f"http://127.0.0.1:{dedup.health_port}"
        asked = ("status", "--url", url, "--gatherer", "http://127.0.0.1:1")
        code, out, _ = await asyncio.to_thread(run, *asked)
    assert code == 1
    assert "http://127.0.0.1:1" in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--url", "http://127.0.0.1:1"), "does not tell a status"),
        (("--market", "A"), "--market needs --production"),
    ],
)
def test_what_cannot_be_asked_is_one_line(run, arguments: tuple[str, ...], told: str) -> None:
    code, out, said = run("status", *arguments)
    assert (code, out, said.count("\n")) == (2, "", 1)
    assert told in said


async def test_a_database_that_is_another_is_told(run, postgres_server: EmbeddedPostgres) -> None:
    dsn = await fresh_database(postgres_server, "gatherer_hot")
    async with server(well("deduplicator"), body()) as dedup:
        url = f"http://127.0.0.1:{dedup.health_port}"
        code, _, said = await asyncio.to_thread(run, "status", "--url", url, "--production", dsn)
    assert (code, "is it the deduplicator's database" in said) == (2, True)
