"""Commands under way on one connection: ids, deadlines, missing snapshots, the rate limit.

Purpose: the session's ledger. A command is over when it is acknowledged and every market it asked
about has shown a snapshot; until then it has a deadline.
Invariants:
- INV-40 a command is matched to its reply by id, never by order; an id is used once, and 0 never.
- `waiting` holds a ticker exactly while some command misses its snapshot.
Does not do: deciding what to send (session), encoding (wire).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from marketdata import wire
from marketdata.effects import MINUTE_NS, NS_PER_S, SendCommand, SessionSettings

Kind: TypeAlias = Literal["subscribe", "add", "delete", "snapshot", "list"]

TERMINAL_CODES: Final = frozenset({7, 10, 17, 25})
"""The subscription is dead, the connection is not (7: the exchange knows no such sid)."""
RETRY_CODES: Final = frozenset({18, 27})
"""Command timeout, too many requests: the same command again, later."""
TICKER_CODES: Final = frozenset({11, 14, 16})
"""Something is wrong with a ticker of the command; which one is found by halving."""
CODE_ALREADY_SUBSCRIBED: Final = 6
CODE_AUTHENTICATION: Final = 9
CODE_UNSUPPORTED_ACTION: Final = 13
CODE_MARKET_LIMIT: Final = 26

PERMILLE: Final = 1_000
COMMAND_OVERHEAD_BYTES: Final = 200
"""More than a command takes besides its tickers."""
TICKER_OVERHEAD_BYTES: Final = 3
"""Two quotation marks and a comma; tickers are ASCII and need no escape but the backslash."""

_ACTIONS: Final[dict[str, Literal["add_markets", "delete_markets", "get_snapshot"]]] = {
    "add": "add_markets",
    "delete": "delete_markets",
    "snapshot": "get_snapshot",
}


@dataclass(slots=True)
class Command:
    """A command under way."""

    id: int
    kind: Kind
    channel: str
    sid: int | None
    asked: tuple[str, ...]
    deadline_ns: int
    tries: int
    first_sent_ns: int  # of its first try
    is_acked: bool = False
    missing: set[str] = field(default_factory=set)  # asked, and no snapshot yet

    def is_over(self) -> bool:
        """Nothing more is expected. A get_snapshot needs no acknowledgement of its own."""
        return not self.missing and (self.is_acked or self.kind == "snapshot")

    def encode(self) -> bytes:
        """The frame to send."""
        if self.kind == "list":
            return wire.list_subscriptions(self.id)
        if self.kind == "subscribe":
            return wire.subscribe(self.id, [self.channel], self.asked or None)
        assert self.sid is not None, "an update has a sid"
        return wire.update_subscription(self.id, self.sid, _ACTIONS[self.kind], self.asked)


@dataclass(frozen=True, slots=True)
class Batch:
    """Tickers that shall travel in a command of their own: a retry, or half of a refused one."""

    kind: Kind
    tickers: tuple[str, ...]
    tries: int
    due_ns: int
    first_sent_ns: int


class Refusals:
    """When what the exchange refused is asked for again. For ever would be a quiet hole."""

    def __init__(self, refusal_ns: int) -> None:
        self._refusal_ns = refusal_ns
        self.channels: set[str] = set()
        self.due_ns: int | None = None  # when all of them are forgiven

    def renew(self, now_ns: int) -> None:
        """Something was refused just now."""
        if self.due_ns is None:
            self.due_ns = now_ns + self._refusal_ns

    def forgive(self, now_ns: int) -> bool:
        """Forget all refusals if it is time."""
        if self.due_ns is None or self.due_ns > now_ns:
            return False
        self.due_ns = None
        self.channels.clear()
        return True


class Bare:
    """Books without a snapshot since they were asked for, or since a gap touched them."""

    def __init__(self) -> None:
        self._since: dict[str, int] = {}
        self._ever: set[str] = set()  # were covered once: their absence is a hole

    def asked(self, tickers: Iterable[str], now_ns: int) -> None:
        """A snapshot of each is needed from now on."""
        self._since |= dict.fromkeys(tickers, now_ns)

    def anchored(self, ticker: str) -> None:
        """Its snapshot came."""
        self._since.pop(ticker, None)
        self._ever.add(ticker)

    def gone(self, ticker: str) -> None:
        """Nobody wants it, or the exchange refuses it."""
        self._since.pop(ticker, None)
        self._ever.discard(ticker)

    def lost(self) -> None:
        """The subscription is dead; what was covered is still remembered."""
        self._since.clear()

    def is_bare(self, ticker: str) -> bool:
        """Whether its snapshot is still to come."""
        return ticker in self._since

    def count(self, among: Container[str]) -> int:
        """How many of `among` are bare."""
        return sum(ticker in among for ticker in self._since)

    def late(self, now_ns: int, grace_ns: int) -> int:
        """Bare books that were covered once, or were asked for longer ago than `grace_ns`."""
        return sum(now_ns - at > grace_ns or t in self._ever for t, at in self._since.items())


class AuditRounds:
    """Which books are asked for a snapshot next: all of them once within the interval."""

    def __init__(self, settings: SessionSettings) -> None:
        self._settings = settings
        self._round: deque[str] = deque()
        self.due_ns = 0  # of the next batch

    def restart(self, now_ns: int) -> None:
        """A new connection: its books have just been asked for."""
        self._round.clear()
        settings = self._settings
        wait_ns = settings.audit_interval_ns * settings.audit_phase_permille // PERMILLE
        self.due_ns = now_ns + wait_ns

    def take(self, subscribed: Collection[str], now_ns: int) -> list[str]:
        """The next books of the round; it is spread over the interval."""
        if not self._round:
            self._round.extend(subscribed)
        size = self._settings.tickers_per_snapshot_command
        n_batches = -(-len(subscribed) // size)
        self.due_ns = now_ns + self._settings.audit_interval_ns // n_batches
        batch = [self._round.popleft() for _ in range(min(size, len(self._round)))]
        return [ticker for ticker in batch if ticker in subscribed]


def chunks(tickers: Sequence[str], settings: SessionSettings) -> Iterator[tuple[str, ...]]:
    """The tickers in parts that one command may name: by count and by size, at least one each."""
    begin, n_bytes = 0, COMMAND_OVERHEAD_BYTES
    for end, ticker in enumerate(tickers):
        more = len(ticker) + TICKER_OVERHEAD_BYTES
        is_full = end - begin >= settings.tickers_per_command
        if end > begin and (is_full or n_bytes + more > settings.command_bytes_max):
            yield tuple(tickers[begin:end])
            begin, n_bytes = end, COMMAND_OVERHEAD_BYTES
        n_bytes += more
    if tickers:
        yield tuple(tickers[begin:])


def more_than(times: deque[int], limit: int, now_ns: int) -> bool:
    """Note one more occurrence; whether there were more than `limit` within a minute."""
    times.append(now_ns)
    while times[0] <= now_ns - MINUTE_NS:
        times.popleft()
    return len(times) > limit


class Ledger:
    """Commands under way, by id."""

    def __init__(self, settings: SessionSettings) -> None:
        self._settings = settings
        self._next_id = 1
        self._commands: dict[int, Command] = {}
        self._sent: deque[int] = deque()  # times of the commands of the last second
        self.waiting: dict[str, set[int]] = {}  # ticker -> commands that miss its snapshot

    def __iter__(self) -> Iterator[Command]:
        return iter(list(self._commands.values()))

    def reset(self) -> None:
        """Forget all commands; ids go on."""
        self._commands.clear()
        self.waiting.clear()
        self._sent.clear()

    def get(self, command_id: int | None) -> Command | None:
        """The command under way with this id."""
        return self._commands.get(command_id or 0)

    def issue(
        self,
        kind: Kind,
        channel: str,
        sid: int | None,
        tickers: tuple[str, ...],
        now_ns: int,
        *,
        tries: int = 1,
        first_sent_ns: int | None = None,
    ) -> SendCommand:
        """Enter a command and return the effect that sends it."""
        timeout_ns = self._settings.ack_timeout_ns
        if kind == "snapshot":
            timeout_ns = self._settings.snapshot_timeout_ns
        first_ns = now_ns if first_sent_ns is None else first_sent_ns
        command_id, self._next_id = self._next_id, self._next_id + 1
        command = Command(
            command_id, kind, channel, sid, tickers, now_ns + timeout_ns, tries, first_ns
        )
        if kind in ("subscribe", "add", "snapshot"):
            command.missing = set(tickers)
            for ticker in tickers:
                self.waiting.setdefault(ticker, set()).add(command_id)
        self._commands[command_id] = command
        self._sent.append(now_ns)
        return SendCommand(command.encode(), command_id, kind)

    def reissue(
        self, batch: Batch, kind: Kind, channel: str, sid: int | None, now_ns: int
    ) -> SendCommand:
        """Enter a batch: a command that goes on with the tries of an earlier one."""
        tries, first_ns = batch.tries, batch.first_sent_ns
        return self.issue(
            kind, channel, sid, batch.tickers, now_ns, tries=tries, first_sent_ns=first_ns
        )

    def acknowledge(self, command: Command, now_ns: int) -> None:
        """The exchange did it; snapshots that are missing get their own deadline."""
        command.is_acked = True
        command.deadline_ns = now_ns + self._settings.snapshot_timeout_ns
        self._end_if_over(command)

    def got_snapshot(self, ticker: str) -> None:
        """A snapshot of this market came, or none is wanted any more."""
        for command_id in self.waiting.pop(ticker, ()):
            command = self._commands[command_id]
            command.missing.discard(ticker)
            self._end_if_over(command)

    def forget(self, command: Command) -> None:
        """The command is over, done or not."""
        del self._commands[command.id]
        self.miss_no_more(command, command.asked)

    def miss_no_more(self, command: Command, tickers: Iterable[str]) -> None:
        """This command waits for no snapshot of these any more."""
        for ticker in tickers:
            command.missing.discard(ticker)
            ids = self.waiting.get(ticker, set())
            ids.discard(command.id)
            if not ids:
                self.waiting.pop(ticker, None)

    def n_snapshots_asked(self) -> int:
        """Snapshots asked for by get_snapshot and not seen."""
        return sum(len(c.missing) for c in self._commands.values() if c.kind == "snapshot")

    def has_room(self, now_ns: int) -> bool:
        """Whether one more command fits into this second."""
        while self._sent and self._sent[0] <= now_ns - NS_PER_S:
            self._sent.popleft()
        return len(self._sent) < self._settings.commands_per_s

    def room_at(self) -> int | None:
        """When a full second will have room again; None where it has room."""
        full = len(self._sent) >= self._settings.commands_per_s
        return self._sent[0] + NS_PER_S if full else None

    def _end_if_over(self, command: Command) -> None:
        if command.is_over():
            self._commands.pop(command.id, None)
