"""What counts as recording, and what as standing still."""

from __future__ import annotations

from gatherer.progress import RecordingProgress
from runtime.spool import Position


def test_spool_stands_still_only_while_something_waits_and_nobody_knows_why() -> None:
    progress = RecordingProgress()
    first, later, end = Position(1, 10), Position(1, 20), Position(1, 30)
    assert progress.spool(first, end, None)
    assert not progress.spool(first, end, None)
    assert progress.spool(first, end, "OSError: no space")
    assert progress.spool(later, end, None)
    assert progress.spool(end, end, None)
    assert progress.spool(end, end, None)


def test_frames_stand_still_only_while_a_connection_is_open() -> None:
    progress = RecordingProgress()
    assert progress.frames(0, 1)
    assert not progress.frames(0, 1)
    assert progress.frames(0, 0)
    assert progress.frames(5, 1)
    assert not progress.frames(5, 2)
