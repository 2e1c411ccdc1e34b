"""Whether a gatherer records: what systemd's watchdog is fed on.

Purpose: tell a process that stands still from one that has nothing to do or is held up by something
that a restart would not mend.
What holds:
- The spool makes progress when its durable end moves, when nothing waits for the disk, or while the
  disk is known to refuse (the writer tries again; a new process would do the same).
- The frames make progress when one came, or while no connection is open (the feeds try again). An
  open connection that is silent is the session's to give up; here its time is longer.
Does not do: telling systemd (runtime.supervise), trouble of databases (rows wait in the spool, and
killing the capture for them would lose what cannot be had again).
"""

from __future__ import annotations

from runtime.spool import Position


class RecordingProgress:
    """Compares what it sees with what it saw the time before."""

    def __init__(self) -> None:
        self._frames = -1
        self._durable: Position | None = None

    def spool(self, durable: Position, end: Position, problem: str | None) -> bool:
        """Whether the spool made progress since the last call."""
        moved = self._durable is None or durable > self._durable
        self._durable = durable
        return moved or durable == end or problem is not None

    def frames(self, count: int, open_connections: int) -> bool:
        """Whether frames came since the last call, or none could. `count`: of this process."""
        moved = count > self._frames
        self._frames = count
        return moved or open_connections == 0
