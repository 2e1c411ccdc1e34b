"""What was seen of the exchange lies beside each hour's coverage, and can be made again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from dedup.exchange_note import extra_of
from dedup.output import WindowOutput
from kalshilake.paths import hour_manifest_key, object_key
from marketdata.evidence import EXACT_PROOF_EVENTS, Evidence, Seen
from runtime.embedded import EmbeddedPostgres
from tests.databases import fresh_database
from tests.unit.dedup.test_export import Line, lake_bytes
from tests.window_outputs import T0, WINDOW_US, window_output

HOUR = T0 - T0 % 3_600_000_000
NAME = hour_manifest_key("coverage", HOUR)


def seen(output: WindowOutput, events: int) -> WindowOutput:
    """The window after which so many equal events had been compared."""
    evidence, found = Evidence(), Seen()
    found.equal([(0, 1), (1, 1)], events)
    evidence.close(output.window, found)
    output.named_states = {"evidence": msgspec.msgpack.encode(evidence)}
    return output


def noted(lake: Path) -> Any:
    return json.loads((lake / NAME).read_bytes())["extra"]["exchange"]["1"]["pairs"]["0-1"]


async def test_an_hour_tells_what_had_been_seen_and_a_lost_record_is_made_again(
    postgres_server: EmbeddedPostgres, tmp_path: Path
) -> None:
    """Made again as it was, though more has been seen since."""
    dsn = await fresh_database(postgres_server, "production")
    line = await Line(dsn, tmp_path).open()
    await line.publish(seen(window_output(0, ["A"]), 7))
    await line.export()
    assert (noted(tmp_path)["compared"], noted(tmp_path)["mode"]) == (7, "unproven")
    before = lake_bytes(tmp_path)
    later = WindowOutput(800, T0 + 800 * WINDOW_US, T0 + 801 * WINDOW_US)  # touches no hour
    later = seen(later, EXACT_PROOF_EVENTS)
    await line.publish(later)
    await line.publisher.close()
    for key in (NAME, object_key("coverage", HOUR)):
        (tmp_path / key).unlink()
    line = await Line(dsn, tmp_path).open()
    conn = await line.publisher.connection()
    await line.exporter._heal(conn, {1: "A"})
    after = lake_bytes(tmp_path)
    assert {key: after[key] for key in before} == before
    await line.publish(seen(window_output(3, ["B"]), EXACT_PROOF_EVENTS))
    await line.export()
    assert noted(tmp_path)["mode"] == "exact"
    await line.publisher.close()


def test_only_coverage_has_the_note_and_versions_stay() -> None:
    assert extra_of("trades", [], "{}") is None
    assert extra_of("trades", [1], '{"1":2}') == {"versions": [1]}
    assert extra_of("coverage", [1], '{"1":2}') == {"versions": [1], "exchange": {"1": 2}}
    assert extra_of("coverage", [], "") is None
