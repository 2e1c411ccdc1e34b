"""What a session is told at its start and what it gives back: settings, states, effects.

Purpose: the vocabulary between `marketdata.session` (decides) and a shell (carries out).
Invariants: every value is frozen; every timer and limit has its name and default here.
Does not do: decisions (session), the carrying out (the gatherer's feed).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeAlias

NS_PER_S: Final = 1_000_000_000
MINUTE_NS: Final = 60 * NS_PER_S


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """Channels without market filter, timers and limits of one connection."""

    channels: tuple[str, ...] = ()
    ack_timeout_ns: int = 10 * NS_PER_S
    snapshot_timeout_ns: int = 10 * NS_PER_S
    snapshot_tries: int = 3  # requests before a market without snapshot is reported
    data_timeout_ns: int = 30 * NS_PER_S  # silence before a probe is sent
    probe_timeout_ns: int = 10 * NS_PER_S  # silence after it before the connection is given up
    audit_interval_ns: int = 300 * NS_PER_S  # one round over all books; 0: no audits
    audit_phase_permille: int = 1_000  # of the interval, from the connect to the first round
    retry_delay_ns: int = NS_PER_S
    refusal_ns: int = 300 * NS_PER_S  # then what the exchange refused is asked for again
    command_tries: int = 3  # of a command refused for a reason that is not known
    tickers_per_command: int = 1_000
    command_bytes_max: int = 64 * 1024  # nobody documents what the exchange takes
    tickers_per_snapshot_command: int = 200
    snapshots_at_once: int = 1_000  # more would fill the exchange's buffer for us: error 25
    commands_per_s: int = 200  # the exchange's limit is 10,000
    gaps_per_minute: int = 30  # more: the path is bad, a new connection may be better
    resubscribes_per_minute: int = 6


class SessionState(StrEnum):
    """Life of one connection."""

    CONNECTING = "connecting"
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


class ReportKind(StrEnum):
    """What a Report tells."""

    SUBSCRIBED = "subscribed"  # a channel has a sid now
    MARKETS_ADDED = "markets_added"
    MARKETS_REMOVED = "markets_removed"
    MARKETS_REFUSED = "markets_refused"  # asked for again after `refusal_ns`
    CHANNEL_REFUSED = "channel_refused"  # as above
    SNAPSHOTS_MISSING = "snapshots_missing"  # asked for in vain; the next audit round asks again
    SUBSCRIPTION_LOST = "subscription_lost"  # terminal error: subscribing anew
    GAP = "gap"
    COMMAND_FAILED = "command_failed"
    STALL = "stall"  # no data: a probe is under way


@dataclass(frozen=True, slots=True)
class SendCommand:
    """Send `payload` as one text frame."""

    payload: bytes
    id: int
    kind: str


@dataclass(frozen=True, slots=True)
class Reconnect:
    """Close the socket and connect anew. `reason` is a short stable name."""

    reason: str


@dataclass(frozen=True, slots=True)
class Report:
    """Something an operator may want to know."""

    kind: ReportKind
    channel: str = ""
    sid: int | None = None
    tickers: tuple[str, ...] = ()
    code: int | None = None
    message: str = ""


Effect: TypeAlias = SendCommand | Reconnect | Report
Effects: TypeAlias = list[Effect]
