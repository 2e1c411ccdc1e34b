"""How many gatherers record, looked at from outside ten times a second.

A gatherer **records** in a sample if in the last WINDOW_S seconds its spool grew by at least
SHARE_MIN of what the spool of the busiest gatherer grew by. Growth of the spool, because what is
not there is lost, whatever a socket, a unit or a health port says; a share of the busiest, because
a starting gatherer writes a few records before it has a single frame, and one that hangs none.
Where no spool grew nobody records.

Looking costs the hosts nothing: names and sizes of files, read through /proc of the host's process
1; nothing runs inside them, and nothing is asked of the services or the exchange.

WINDOW_S is longer than this machine's disk stalls: all hosts share it, and with a load of twenty on
two cores no spool at all grew for 1.4 s, which with a window of 1 s looked like nobody recording.

What it cannot see: which frames they are, and an overlap shorter than WINDOW_S. That every single
event was recorded by two gatherers is asked of the tape itself (`tape_checks.witnesses`).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tests.onhost.machine import Machine

SPOOL = "/var/lib/kalshi-gatherer/spool"
EVERY_S = 0.1
WINDOW_S = 2.0
SHARE_MIN = 0.2


@dataclass(frozen=True, slots=True)
class Sample:
    """One look: seconds since the sampler's start, and who records."""

    at_s: float
    recording: tuple[str, ...]


@dataclass(slots=True)
class Spool:
    """What one gatherer has written so far, in bytes, with segments that were compressed since."""

    host: Machine
    sizes: dict[str, int] = field(default_factory=dict)

    def bytes_written(self) -> int:
        """As seen now; what cannot be read (no spool yet, host off) is what it was."""
        if not self.host.is_on or not self.host.pid:
            return sum(self.sizes.values())
        try:
            for path in self.host.path(SPOOL).glob("*.seg"):
                size = path.stat().st_size
                self.sizes[path.name] = max(size, self.sizes.get(path.name, 0))
        except OSError:
            pass
        return sum(self.sizes.values())


def recording(before: Mapping[str, int], now: Mapping[str, int]) -> tuple[str, ...]:
    """Who records, from the bytes written at both ends of a window."""
    grew = {name: now[name] - before.get(name, now[name]) for name in now}
    busiest = max(grew.values(), default=0)
    return tuple(
        name for name, size in sorted(grew.items()) if size > 0 and size >= SHARE_MIN * busiest
    )


class Sampler:
    """Samples in a thread between `start` and `stop`; `samples` are all of them."""

    def __init__(self, hosts: Sequence[Machine]) -> None:
        self._hosts = {host.name: host for host in hosts}
        self._spools: dict[str, Spool] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
        self._begun = 0.0
        self.samples: list[Sample] = []

    def start(self) -> None:
        """Begin; the first WINDOW_S give no sample."""
        self._spools = {name: Spool(host) for name, host in self._hosts.items()}
        self._begun = time.monotonic()
        self._thread.start()

    def follow(self, host: Machine) -> None:
        """Look at this host from now on, which was made anew in the place of one of its name."""
        self._spools = {**self._spools, host.name: Spool(host)}

    def stop(self) -> None:
        """End; what was sampled stays."""
        self._stop.set()
        self._thread.join()

    @property
    def now_s(self) -> float:
        """The present on the samples' clock."""
        return time.monotonic() - self._begun

    def _run(self) -> None:
        seen: deque[dict[str, int]] = deque(maxlen=round(WINDOW_S / EVERY_S) + 1)
        while not self._stop.wait(EVERY_S):
            seen.append({name: spool.bytes_written() for name, spool in self._spools.items()})
            if len(seen) == seen.maxlen:
                self.samples.append(Sample(self.now_s, recording(seen[0], seen[-1])))

    def few(self, least: int = 2, since_s: float = 0.0) -> list[Sample]:
        """Samples with fewer gatherers than `least`."""
        return [s for s in self.samples if s.at_s >= since_s and len(s.recording) < least]

    def summary(self, since_s: float = 0.0) -> dict[int, int]:
        """How many samples had how many gatherers."""
        counts: dict[int, int] = {}
        for sample in self.samples:
            if sample.at_s >= since_s:
                counts[len(sample.recording)] = counts.get(len(sample.recording), 0) + 1
        return dict(sorted(counts.items()))
