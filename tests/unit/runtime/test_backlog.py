"""What waits for CloudWatch survives the process, is bounded, and comes back in order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.backlog import FILE, FILE_SHARE_MAX, POINT_BYTES_MAX, TAKEN, Backlog


def point(n: int) -> dict[str, Any]:
    return {
        "MetricName": "SinkLagSeconds",
        "Dimensions": [{"Name": "Host", "Value": "gatherer-1"}],
        "Timestamp": 1_795_000_000 + 60 * n,
        "Value": n / 4,
        "Unit": "Seconds",
    }


def test_another_process_finds_what_the_first_one_kept(tmp_path: Path) -> None:
    first = Backlog(tmp_path, 100)
    first.add([point(0), point(1)])
    first.add([point(2)])
    first.taken(1)
    again = Backlog(tmp_path, 100)
    assert again.first(10) == [point(1), point(2)]
    again.taken(2)
    assert (tmp_path / FILE).stat().st_size == 0
    assert len(Backlog(tmp_path, 100)) == 0


def test_too_many_push_the_oldest_out_and_the_file_stays_bounded(tmp_path: Path) -> None:
    kept = Backlog(tmp_path, 10)
    for n in range(200):
        kept.add([point(n)])
        assert (tmp_path / FILE).stat().st_size <= (FILE_SHARE_MAX * 10 + 1) * POINT_BYTES_MAX
        assert len(kept) <= 10
    assert (kept.lost, kept.first(1)) == (190, [point(190)])
    assert Backlog(tmp_path, 10).first(10) == [point(n) for n in range(190, 200)]


@pytest.mark.parametrize("torn", [b'{"MetricName":"Sink', b"\xff\xfe\n", b"[]\n", b'{"a":1}\n'])
def test_a_torn_line_hides_no_other(tmp_path: Path, torn: bytes) -> None:
    Backlog(tmp_path, 10).add([point(0), point(1)])
    with (tmp_path / FILE).open("ab") as out:
        out.write(torn)
    again = Backlog(tmp_path, 10)
    assert (again.unread, again.first(10)) == (1, [point(0), point(1)])
    again.add([point(2)])
    assert Backlog(tmp_path, 10).first(10) == [point(0), point(1), point(2)]


def test_a_note_that_is_no_number_sends_again_rather_than_not_at_all(tmp_path: Path) -> None:
    kept = Backlog(tmp_path, 10)
    kept.add([point(0), point(1)])
    kept.taken(1)
    (tmp_path / TAKEN).write_text("")
    assert Backlog(tmp_path, 10).first(10) == [point(0), point(1)]


def test_a_disk_that_refuses_is_told_and_made_good(tmp_path: Path) -> None:
    """What could not be written is in memory, is sent, and is in the file with the next one."""
    folder = tmp_path / "state"
    folder.mkdir()
    kept = Backlog(folder, 10)
    folder.rename(tmp_path / "gone")
    for n in range(2):
        with pytest.raises(OSError, match="metrics"):
            kept.add([point(n)])
    (tmp_path / "gone").rename(folder)
    assert kept.first(10) == [point(0), point(1)]
    kept.taken(1)
    kept.add([point(2)])
    assert Backlog(folder, 10).first(10) == [point(1), point(2)]


@given(st.lists(st.one_of(st.integers(1, 7).map(lambda n: ("add", n)),
                          st.integers(1, 7).map(lambda n: ("taken", n)),
                          st.just(("die", 0))), max_size=40))  # fmt: skip
def test_whatever_happens_it_is_a_queue(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    folder = tmp_path_factory.mktemp("backlog")
    kept, wanted, made = Backlog(folder, 1_000), [], 0
    for what, n in steps:
        if what == "add":
            new = [point(made + i) for i in range(n)]
            made += n
            kept.add(new)
            wanted += new
        elif what == "taken":
            n = min(n, len(wanted))
            kept.taken(n)
            del wanted[:n]
        else:
            kept = Backlog(folder, 1_000)
        assert kept.first(len(wanted) + 1) == wanted
