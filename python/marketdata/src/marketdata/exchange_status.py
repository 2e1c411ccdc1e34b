"""Whether the exchange says that it is open, and when it means to pause.

Purpose: the bodies of /exchange/status and /exchange/schedule -> what to tell an operator. A quiet
feed in a pause is no fault of ours, and a pause is no reason to stop recording.
Source: OpenAPI 3.31, schemas ExchangeStatus and ExchangeSchedule; a 500, 503 or 504 of
/exchange/status has the body of a 200.
Invariants: an absent required field is an error; unknown ones are ignored.
Does not do: asking (gatherer.exchange_watch), the weekly pause by the clock (nobody announces it:
Thursday 03:00 to 05:00 in New York; the status says it when it is there).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from marketdata.errors import WireError

WINDOWS_MAX: Final = 100
NS_PER_S: Final = 1_000_000_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class ExchangeStatus:
    """One answer. `resume`: when trading goes on, as the exchange wrote it; empty where unsaid."""

    exchange_active: bool
    trading_active: bool
    resume: str = ""
    paused_shards: tuple[int, ...] = ()

    @property
    def reason(self) -> str:
        """What is not as usual, in words; empty where everything is."""
        until = f", back expected {self.resume}" if self.resume else ""
        if not self.exchange_active:
            return f"the exchange says that it is down{until}"
        if not self.trading_active:
            return f"the exchange says that trading is paused{until}"
        if self.paused_shards:
            shards = ", ".join(map(str, self.paused_shards))
            return f"the exchange says that its shards {shards} are paused{until}"
        return ""


def status_of(body: Mapping[str, Any]) -> ExchangeStatus:
    """The status in an answer's body.

    Raises:
        WireError: a required field is absent or of another type.
    """
    shards = body.get("exchange_index_statuses") or []
    if not isinstance(shards, list):
        raise WireError(f"exchange_index_statuses is {type(shards).__name__}, not a list")
    paused = [
        shard.get("exchange_index")
        for shard in shards
        if isinstance(shard, dict)
        and not (shard.get("exchange_active", True) and shard.get("trading_active", True))
    ]
    return ExchangeStatus(
        _flag(body, "exchange_active"),
        _flag(body, "trading_active"),
        str(body.get("exchange_estimated_resume_time") or ""),
        tuple(sorted(n for n in paused if isinstance(n, int))),
    )


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if not isinstance(value, bool):
        raise WireError(f"the exchange's status has {name} = {value!r}, not true or false")
    return value


def maintenance_of(body: Mapping[str, Any]) -> tuple[tuple[int, int], ...]:
    """The announced maintenance windows of a schedule, as (start, end) in Unix ns, ascending.

    Raises:
        WireError: the body is no schedule, or a window has no times.
    """
    schedule = body.get("schedule")
    windows = schedule.get("maintenance_windows") if isinstance(schedule, dict) else None
    if windows is None and isinstance(schedule, dict):
        return ()
    if not isinstance(windows, list):
        raise WireError("the exchange's schedule has no list maintenance_windows")
    found = []
    for window in windows[:WINDOWS_MAX]:
        if not isinstance(window, dict):
            raise WireError(f"a maintenance window is {type(window).__name__}, not an object")
        found.append((_moment_ns(window, "start_datetime"), _moment_ns(window, "end_datetime")))
    return tuple(sorted(found))


def _moment_ns(window: Mapping[str, Any], name: str) -> int:
    """Any zone is taken: the schedule is the one place where the exchange thinks in New York's."""
    text = window.get(name)
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise WireError(f"a maintenance window has {name} = {text!r}, not a time with its zone")
    return (moment - _EPOCH) // timedelta(seconds=1) * NS_PER_S


def maintenance_reason(windows: tuple[tuple[int, int], ...], now_ns: int) -> str:
    """What to say about the window that is on at `now_ns`; empty where none is."""
    for start_ns, end_ns in windows:
        if start_ns <= now_ns < end_ns:
            left_s = (end_ns - now_ns) // NS_PER_S
            return f"announced maintenance, for {left_s // 60} more minutes"
    return ""
