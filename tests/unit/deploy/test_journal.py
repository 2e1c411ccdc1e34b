"""The journal tells the same story to whoever reads it, cut anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.errors import PlanError
from deploy.journal import SUFFIX, Journal, unfinished
from deploy.plan import Step


def written(path: Path) -> Journal:
    journal = Journal(path)
    steps = [Step(1, "switch", "gatherer-1", {"gatherer": "/nix/store/x"})]
    journal.note("run", run="r", facts={"who": "me"}, steps=[s.as_json() for s in steps])
    journal.note("before", paths={"gatherer-1": {"gatherer": "/nix/store/w"}}, gaps=3)
    journal.note("begin", step=1, do="switch", host="gatherer-1")
    journal.note("moving", host="gatherer-1")
    journal.note("moving", host="gatherer-1")  # once more after a crash
    journal.note("end", step=1, do="switch", host="gatherer-1", seconds=1.5)
    journal.note("back", why="crashed")
    journal.note("returned", host="gatherer-1")
    return journal


def test_what_was_noted_is_read_by_another_process(tmp_path: Path) -> None:
    journal = written(tmp_path / f"a{SUFFIX}")
    again = Journal(journal.path)
    assert again.story == journal.story
    story = again.story
    assert (story.run, story.facts, story.gaps) == ("r", {"who": "me"}, 3)
    assert story.moved == ["gatherer-1"]
    assert story.returned == ["gatherer-1"]
    assert story.seconds == {"gatherer-1": 1.5}
    assert story.back == "crashed"


def test_a_line_that_was_cut_is_left_out_and_the_next_one_is_whole(tmp_path: Path) -> None:
    """At every length: what is read is what whole lines say, and writing goes on behind it."""
    whole = written(tmp_path / f"a{SUFFIX}").path.read_bytes()
    for length in range(len(whole)):
        path = tmp_path / f"cut{SUFFIX}"
        path.write_bytes(whole[:length])
        journal = Journal(path)
        journal.note("outcome", outcome="done")
        again = Journal(path)
        assert again.story.outcome == "done"
        assert again.story == journal.story
        lines = whole[:length].count(b"\n") + (whole[length : length + 1] == b"\n")
        assert bool(again.story.run) == (lines >= 1)


def test_the_newest_run_without_an_end_is_gone_on_with(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="waits to be gone on with"):
        unfinished(tmp_path)
    written(tmp_path / f"2{SUFFIX}")
    done = written(tmp_path / f"3{SUFFIX}")
    done.note("outcome", outcome="done")
    assert unfinished(tmp_path).path.name == f"2{SUFFIX}"
    stuck = written(tmp_path / f"4{SUFFIX}")
    stuck.note("outcome", outcome="in between")
    assert unfinished(tmp_path).path == stuck.path
