"""Several mergers as one service: what each is given, and what they say together."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from dedup.main import serve_all
from dedup.processes import Merger, environment_of, together
from marketdata.errors import ConfigError
from runtime import children
from runtime.children import state_of
from runtime.config import DedupSettings, load
from tests.dedup_rig import Recordings, settings
from tests.gatherer_rows import make_stream


def test_each_is_told_its_number_and_ports_and_never_the_services_own_words() -> None:
    given = environment_of(
        {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_PID": "1", "KT_MERGE_SHARDS": "3"}, 2, 77, (81, 91)
    )
    assert given == {
        "KT_MERGE_SHARDS": "3", "KT_MERGE_SHARD": "2", "KT_MERGE_PARENT": "77",
        "KT_BIND": "127.0.0.1", "KT_HEALTH_PORT": "81", "KT_METRICS_PORT": "91",
    }  # fmt: skip
    needed = {
        "KT_GATHERER_DSNS": '["postgresql://h"]', "KT_PRODUCTION_DSN": "postgresql://p",
        "KT_LAKE_URI": "/lake",
    }  # fmt: skip
    chosen = load(DedupSettings, {**given, **needed})
    assert (chosen.merge_shard, chosen.merge_shards, chosen.merge_parent) == (2, 3, 77)
    with pytest.raises(ConfigError, match="merge_shard 4 of 3"):
        load(DedupSettings, {**given, **needed, "KT_MERGE_SHARD": "4"})


def test_counts_are_added_up_and_the_first_speaks_for_the_lake() -> None:
    first = {"rows_in": 3, "markets": 2, "lake": {"version": 4}, "finished": True, "windows": 9}
    other = {"rows_in": 5, "markets": 1, "lake": {"version": 0}, "finished": True, "windows": 8}
    body = together([first, other])
    assert (body["rows_in"], body["markets"], body["lake"]) == (8, 3, {"version": 4})
    assert [m["windows"] for m in body["mergers"]] == [9, 8]
    assert body["finished"] is True
    silent = together([first, None])
    assert silent["mergers"][1] is None
    assert silent["finished"] is False


def test_who_does_not_answer_fails() -> None:
    assert state_of(None) == ("failing", "does not answer")
    assert state_of({"state": "ok", "reasons": []}) == ("ok", "")
    assert state_of({"state": "odd"})[0] == "failing"


@pytest.mark.parametrize(("code", "restarts"), [(0, 0), (1, 2)])
async def test_who_dies_is_started_again_and_who_has_finished_is_not(
    code: int, restarts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child here ends with `code` twice and then with 0."""
    monkeypatch.setattr(children, "RESTART_S", 0)
    script = tmp_path / "python"
    script.write_text(
        f"#!/bin/sh\necho x >> {tmp_path}/runs\n"
        f'[ "$(wc -l < {tmp_path}/runs)" -gt 2 ] && exit 0\nexit {code}\n'
    )
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    merger = Merger(1)
    await merger.run()
    assert merger.finished
    assert merger.restarts == restarts


async def test_wrong_settings_end_the_service_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nexit 2\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    nowhere = Recordings(make_stream(1, events=10), ["postgresql://a"], [], [])
    chosen = settings(nowhere, "postgresql://p", tmp_path, merge_shards=2)
    async with asyncio.timeout(20):
        assert await serve_all(chosen) == 2


async def test_a_merger_stops_when_whoever_started_it_is_gone() -> None:
    asked: list[str] = []

    class Asked:
        def request_stop(self, reason: str) -> None:
            asked.append(reason)

    await children.watch_parent(Asked(), os.getppid() + 1)  # type: ignore[arg-type]
    assert asked == ["the process that started this one is gone"]
