"""The service around the pipeline: what it answers and how it ends."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import pytest

from dedup.main import GC_OBJECTS, SWITCH_S, main, report, serve, tune
from marketdata.coverage import OPEN_US
from runtime.clock import Clock
from runtime.embedded import EmbeddedPostgres
from runtime.health import Health
from tests.databases import fresh_database
from tests.dedup_rig import compare_with_stream, make_recordings, pipeline, run_through, settings
from tests.gatherer_rows import make_stream


async def test_service_ends_with_0_when_the_tape_is_finished(
    postgres_server: EmbeddedPostgres, tmp_path: Path
) -> None:
    """KT_FINAL: all gatherers ended, all windows closed, everything exported."""
    stream = make_stream(12, events=400, mean_gap_us=150_000)
    made = await make_recordings(postgres_server, stream, gaps=1, disconnects=0)
    production = await fresh_database(postgres_server, "production")
    assert await serve(settings(made, production, tmp_path)) == 0
    assert (await compare_with_stream(production, stream))["missing"] == 0


async def test_other_settings_than_the_tape_began_with_end_with_2(
    postgres_server: EmbeddedPostgres, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A supervisor must not start it again and again."""
    stream = make_stream(13, events=200)
    made = await make_recordings(postgres_server, stream, gaps=0, disconnects=0)
    production = await fresh_database(postgres_server, "production")
    await run_through(settings(made, production, tmp_path))
    assert await serve(settings(made, production, tmp_path, window_ms=77)) == 2
    assert "window_us" in capsys.readouterr().err


async def test_status_tells_the_numbers_of_the_tape(
    postgres_server: EmbeddedPostgres, tmp_path: Path
) -> None:
    """What a screen shows: totals, every gatherer, the lake, the invariants."""
    stream = make_stream(14, events=400, mean_gap_us=150_000)
    made = await make_recordings(postgres_server, stream, gaps=1, disconnects=0)
    production = await fresh_database(postgres_server, "production")
    done = await run_through(settings(made, production, tmp_path))
    body = report(done, Health("deduplicator"), Clock())
    assert body["finished"] is True
    assert body["rows_merged"] == len(stream.deltas)
    assert sum(body["witnesses"].values()) == len(stream.deltas)
    assert body["lake"]["version"] >= 1
    assert body["lake"]["hours_waiting"] == 0
    assert set(body["invariants"].values()) == {0}
    assert 0 < body["complete_share"] <= 1
    assert body["closed_to_us"] < OPEN_US
    assert body["markets"] == len(stream.tickers)


def test_status_of_a_service_that_has_just_started(tmp_path: Path) -> None:
    """Nothing known yet is no reason to fail."""
    from tests.dedup_rig import Recordings

    made = Recordings(make_stream(1, events=1), ["postgresql://a"], [], [])
    line = pipeline(settings(made, "postgresql://c", tmp_path))
    body = report(line, Health("deduplicator"), Clock())
    assert body["closed_to"] is None
    assert body["complete_share"] is None


def test_wrong_settings_are_told_on_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All faults in one message, exit code 2."""
    monkeypatch.setenv("KT_GATHERER_DSNS", '["nowhere"]')
    monkeypatch.delenv("KT_PRODUCTION_DSN", raising=False)
    assert main() == 2
    said = capsys.readouterr().err
    assert "KT_GATHERER_DSNS" in said
    assert "KT_PRODUCTION_DSN" in said


def test_the_interpreter_is_set_up_for_many_objects_and_a_quick_change_of_threads() -> None:
    before = gc.get_threshold(), sys.getswitchinterval()
    try:
        tune()
        assert gc.get_threshold()[0] == GC_OBJECTS
        assert sys.getswitchinterval() == pytest.approx(SWITCH_S)
    finally:
        gc.set_threshold(*before[0])
        sys.setswitchinterval(before[1])
