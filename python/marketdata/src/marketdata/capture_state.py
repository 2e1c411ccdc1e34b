"""Whether the capture is complete at this moment: facts of the feeds in, a verdict by channel out.

Purpose: the answer of /health. `complete` means: every market that is known is recorded without a
hole now, on every channel, and each connection showed so lately.
Invariants:
- A channel is complete only if every one of its feeds is open and has had a frame within
  PROOF_NS: an open socket alone proves nothing (a feed was seen to stay dark for 16 minutes while
  pings went on).
- A market that just appeared is `joining` for a grace, not missing; nothing else is excused.
Does not do: coverage of the past (continuity, the deduplicator), reading clocks, sockets.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

NS_PER_S: Final = 1_000_000_000
JOIN_GRACE_NS: Final = 10 * NS_PER_S
"""From asking for a new market to its first snapshot."""
PROOF_NS: Final = 60 * NS_PER_S
"""Silence of a feed after which it proves nothing: a session probes after 30 s and gives up 10 s
later, so an open feed that is older than this is broken."""
FEEDS_TOLD_MAX: Final = 3
BOOK_CHANNEL: Final = "orderbook_delta"


@dataclass(frozen=True, slots=True)
class FeedState:
    """One connection as it stands. `channels`: those without market filter that it carries;
    `subscribed`: those of them that have a sid. Books: counts of markets. Times: wall clock, ns."""

    name: str
    is_open: bool
    reason: str = ""
    channels: tuple[str, ...] = ()
    subscribed: frozenset[str] = frozenset()
    wanted: int = 0
    covered: int = 0
    missing: int = 0
    last_frame_ns: int = 0


@dataclass(slots=True)
class ChannelState:
    """What may be said of one channel. Units: markets, or 1 where the exchange takes no filter."""

    to_cover: int = 0
    covered: int = 0
    joining: int = 0
    missing: int = 0
    oldest_proof_ms: int | None = None  # silence of its quietest feed
    oldest_feed: str = ""
    reasons: list[str] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """Whether nothing is missing. A channel that nobody has asked for is not complete."""
        return self.to_cover > 0 and not self.missing and not self.reasons

    def described(self) -> dict[str, Any]:
        """For /health."""
        return {
            "complete": self.is_complete,
            "to_cover": self.to_cover,
            "covered": self.covered,
            "joining": self.joining,
            "missing": self.missing,
            "oldest_proof_ms": self.oldest_proof_ms,
            "oldest_feed": self.oldest_feed,
            "reasons": self.reasons[:FEEDS_TOLD_MAX],
        }


def channel_states(
    feeds: Iterable[FeedState], channels: Sequence[str], unplaced: int, now_ns: int
) -> dict[str, ChannelState]:
    """The state of the order books and of every channel of `channels`.

    `unplaced`: markets that no connection has room for.
    """
    states = {name: ChannelState(to_cover=1, missing=1) for name in channels}
    books = states[BOOK_CHANNEL] = ChannelState(to_cover=unplaced, missing=unplaced)
    if unplaced:
        books.reasons.append(f"{unplaced} markets beyond the limit of all connections")
    for feed in feeds:
        if feed.wanted:
            _add_books(books, feed, now_ns)
        for name in feed.channels:
            if name in states:
                _add_channel(states[name], name, feed, now_ns)
    for name in channels:
        state = states[name]
        if state.missing and not state.reasons:
            state.reasons.append(f"{name}: no connection carries it yet")
    return states


def _add_books(books: ChannelState, feed: FeedState, now_ns: int) -> None:
    trouble = _trouble(feed, now_ns)
    missing = feed.wanted if trouble else min(feed.missing, feed.wanted)
    covered = 0 if trouble else min(feed.covered, feed.wanted - missing)
    books.to_cover += feed.wanted
    books.missing += missing
    books.covered += covered
    books.joining += feed.wanted - missing - covered
    if trouble:
        books.reasons.append(f"{feed.name}: {trouble}")
    elif missing:
        books.reasons.append(f"{feed.name}: {missing} of {feed.wanted} books wait for a snapshot")
    _note_proof(books, feed, now_ns)


def _add_channel(state: ChannelState, name: str, feed: FeedState, now_ns: int) -> None:
    trouble = _trouble(feed, now_ns)
    if not trouble and name not in feed.subscribed:
        trouble = f"{name} is not subscribed yet"
    if trouble and not state.covered:
        state.reasons.append(f"{feed.name}: {trouble}")
    elif not trouble:
        state.covered, state.missing, state.reasons = 1, 0, []
    _note_proof(state, feed, now_ns)


def _trouble(feed: FeedState, now_ns: int) -> str:
    if not feed.is_open:
        return feed.reason or "is not connected"
    if now_ns - feed.last_frame_ns > PROOF_NS and feed.last_frame_ns:
        return f"is open and silent for {(now_ns - feed.last_frame_ns) // NS_PER_S} s"
    return ""


def _note_proof(state: ChannelState, feed: FeedState, now_ns: int) -> None:
    if not feed.last_frame_ns:
        return
    age_ms = max(0, now_ns - feed.last_frame_ns) // 1_000_000
    if state.oldest_proof_ms is None or age_ms > state.oldest_proof_ms:
        state.oldest_proof_ms, state.oldest_feed = age_ms, feed.name


def verdict(states: Mapping[str, ChannelState], spool_problem: str | None) -> list[str]:
    """Why the capture is not complete now; empty where it is."""
    reasons = [f"the spool cannot be written: {spool_problem}"] if spool_problem else []
    for name, state in states.items():
        if state.is_complete:
            continue
        if not state.to_cover:
            reasons.append(f"{name}: no market is known yet")
            continue
        what = f"{state.covered} of {state.to_cover} covered"
        reasons.append(f"{name}: {what}; {'; '.join(state.reasons[:FEEDS_TOLD_MAX])}")
    return reasons
