"""What a host says of itself, and what may be concluded from it.

Purpose: the answer of one look at a host (hosts.LOOK) as a value, and the questions that a rollout
asks of it: does it record, has it caught up, does it merge, may it be moved at all. Pure.

Every question answers with a reason in plain words, "" where all is well: what is wrong goes into
messages, journal and record as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

CAUGHT_UP_MS: Final = 15_000  # rows that wait in a spool for their database
WATERMARK_S: Final = 60  # a window of five seconds, its grace, and a slow commit
HEARD_MS: Final = 20_000  # how old a gatherer's newest row may be for the deduplicator
NIX_FREE_BYTES_MIN: Final = 2 << 30
VAR_FREE_BYTES_MIN: Final = 1 << 30
SKEW_MS_MAX: Final = 2_000  # between a host's clock and ours; the question takes a part of it
STORE: Final = re.compile(r"/nix/store/[0-9a-z]{32}-[0-9A-Za-z+._?=-]+")


@dataclass(frozen=True, slots=True)
class Unit:
    """One unit: systemd's words, and the store path that its main process runs from."""

    state: str = "inactive"
    pid: int = 0
    restarts: int = 0
    invocation: str = ""
    running: str = ""

    @property
    def is_up(self) -> bool:
        """Whether there is a process; a service that is not ready yet counts."""
        return self.pid > 0


@dataclass(frozen=True, slots=True)
class Seen:
    """One look at a host. `profiles`: store path by closure, of those that there are; `health` and
    `status`: the service's own words, None where it does not answer; `skew_ms`: its clock less
    ours, as well as one question can tell."""

    name: str
    role: str
    machine: str = ""
    nix_free_bytes: int = 0
    var_free_bytes: int = 0
    time_ns: int = 0
    skew_ms: int = 0
    lock: str = ""
    profiles: Mapping[str, str] = field(default_factory=dict)
    units: Mapping[str, Unit] = field(default_factory=dict)
    health: Mapping[str, Any] | None = None
    status: Mapping[str, Any] | None = None
    missing: tuple[str, ...] = ()

    def component(self, name: str) -> str:
        """A component's state by /health, "" where it has none."""
        found = (self.health or {}).get("components", {}).get(name, {})
        return str(found.get("state", "")) if isinstance(found, dict) else ""


def _json(text: str) -> Mapping[str, Any] | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _number(text: str) -> int:
    return int(text) if re.fullmatch(r"-?\d{1,20}", text) else 0


def parse(text: str, our_ns: int) -> Seen:
    """The lines of a look; `our_ns`: our clock in the middle of it. What is absent stays empty."""
    plain: dict[str, str] = {}
    profiles: dict[str, str] = {}
    units: dict[str, dict[str, str]] = {}
    missing = []
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        name, _, rest = value.partition(" ")
        if key == "profile" and STORE.fullmatch(rest):
            profiles[name] = rest
        elif key == "unit":
            word, _, told = rest.partition("=")
            units.setdefault(name, {})[word] = told
        elif key == "missing":
            missing.append(value)
        else:
            plain[key] = value
    time_ns = _number(plain.get("time_ns", ""))
    return Seen(
        name=plain.get("name", ""),
        role=plain.get("role", ""),
        machine=plain.get("machine", ""),
        nix_free_bytes=_number(plain.get("nix_free", "").strip()),
        var_free_bytes=_number(plain.get("var_free", "").strip()),
        time_ns=time_ns,
        skew_ms=(time_ns - our_ns) // 1_000_000 if time_ns else 0,
        lock=plain.get("lock", ""),
        profiles=profiles,
        units={name: _unit(words) for name, words in units.items()},
        health=_json(plain.get("health", "")),
        status=_json(plain.get("status", "")),
        missing=tuple(missing),
    )


def _unit(words: Mapping[str, str]) -> Unit:
    runs = STORE.search(words.get("Command", ""))
    return Unit(
        words.get("ActiveState", "inactive"),
        _number(words.get("MainPID", "")),
        _number(words.get("NRestarts", "")),
        words.get("InvocationID", ""),
        words.get("Marked", "") or (runs.group() if runs else ""),
    )


# ---- of a gatherer


def not_capturing(seen: Seen) -> str:
    """Why a gatherer does not record everything now."""
    if seen.health is None:
        return "does not answer on its health port"
    if seen.component("capture") == "ok":
        return ""
    told = seen.health.get("components", {}).get("capture", {})
    reason = told.get("reason") if isinstance(told, dict) else ""
    return str(reason or "has not said that its capture is complete")


def recording(names: Iterable[str], seen: Mapping[str, Seen]) -> list[str]:
    """The gatherers of these names that record everything; who was not seen does not."""
    return [name for name in names if name in seen and not not_capturing(seen[name])]


def not_caught_up(seen: Seen) -> str:
    """Why a gatherer's databases do not hold what it recorded."""
    detail = (seen.health or {}).get("detail", {})
    lag_ms = detail.get("lag_ms") if isinstance(detail, dict) else None
    if not isinstance(lag_ms, int):
        return "does not say how far its databases are"
    if detail.get("batches") == 0:
        # Before its first commit a gatherer says 0 ms, also with a minute's rows in its spool.
        return "its databases have taken nothing since it began"
    return "" if lag_ms <= CAUGHT_UP_MS else f"its databases are {lag_ms} ms behind its spool"


# ---- of the deduplicator


def not_merging(seen: Seen) -> str:
    """Why a deduplicator does not do its work, whatever the gatherers do."""
    if seen.health is None or seen.status is None:
        return "does not answer on its health port"
    for name in ("production", "merge"):
        if seen.component(name) != "ok":
            told = seen.health.get("components", {}).get(name, {})
            return (
                f"{name}: {told.get('reason') or told.get('state') or 'has not said that it works'}"
            )
    return ""


def not_fresh(seen: Seen) -> str:
    """Why the tape does not follow the exchange, by the end of its last window."""
    closed_us = (seen.status or {}).get("closed_to_us") or 0
    if not isinstance(closed_us, int) or not closed_us:
        return "has closed no window yet"
    age_s = (seen.time_ns // 1_000 - closed_us) // 1_000_000
    return "" if age_s <= WATERMARK_S else f"its tape ends {age_s} s ago"


def not_heard(seen: Seen, gatherer: int) -> str:
    """Why the deduplicator does not follow a gatherer (its number in the deduplicator's list)."""
    for told in (seen.status or {}).get("gatherers", ()):
        if told.get("gatherer") == gatherer:
            lag_ms = told.get("lag_ms")
            if isinstance(lag_ms, int) and lag_ms <= HEARD_MS:
                return ""
            return f"the deduplicator is {lag_ms} ms behind it: {told.get('reason') or 'reading'}"
    return "the deduplicator does not know it"


def gaps(seen: Iterable[Seen]) -> int | None:
    """Gaps of the tape since it began, as the deduplicator counts them; None without its word."""
    for each in seen:
        told = (each.status or {}).get("gaps")
        if isinstance(told, int):
            return told
    return None


# ---- of any host


def not_fit(seen: Seen, name: str, role: str, system: str) -> list[str]:
    """Why a host cannot take a release at all. All reasons."""
    why = []
    if seen.name != name:
        why.append(f"the host at this address is called {seen.name or 'nothing'}")
    if seen.role != role:
        why.append(
            f"its first boot made it {seen.role}" if seen.role else "its first boot did not end"
        )
    machine = system.partition("-")[0]
    if seen.machine != machine:
        why.append(f"it is {seen.machine or 'of no known machine'}, the release is for {machine}")
    for what, free, least in (
        ("/nix", seen.nix_free_bytes, NIX_FREE_BYTES_MIN),
        ("/var/lib", seen.var_free_bytes, VAR_FREE_BYTES_MIN),
    ):
        if free < least:
            why.append(f"{free >> 20} MiB are free in {what}, {least >> 20} are needed")
    if abs(seen.skew_ms) > SKEW_MS_MAX:
        why.append(f"its clock is {seen.skew_ms} ms off ours")
    if seen.component("clock") == "failing":
        why.append("its service says that the clock is wrong")
    why += [f"{file} is not there (tape secrets set)" for file in seen.missing]
    return why
