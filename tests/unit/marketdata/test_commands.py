"""The ledger of commands under way: what it forgets too early is never asked for again."""

from __future__ import annotations

from collections import deque

import msgspec

from marketdata import wire
from marketdata.commands import AuditRounds, Ledger, Refusals, chunks, more_than
from marketdata.effects import NS_PER_S, SessionSettings

S = NS_PER_S


def ledger(**settings: int) -> Ledger:
    return Ledger(SessionSettings(**settings))


def test_ids_start_at_one_and_are_never_used_again() -> None:
    """Id 0 means "no id" on this exchange; a reply of before must not match a new command."""
    book = ledger()
    first = book.issue("list", "", None, (), 0)
    book.reset()
    second = book.issue("list", "", None, (), 0)
    assert (first.id, second.id) == (1, 2)
    assert book.get(1) is None
    assert book.get(None) is None
    assert book.get(0) is None


def test_every_kind_is_encoded_as_the_exchange_documents() -> None:
    """The frames themselves are checked in the tests of wire; here the mapping."""
    book = ledger()
    sent = [
        book.issue("subscribe", "trade", None, (), 0),
        book.issue("subscribe", "orderbook_delta", None, ("A",), 0),
        book.issue("add", "orderbook_delta", 4, ("A",), 0),
        book.issue("delete", "orderbook_delta", 4, ("A",), 0),
        book.issue("snapshot", "orderbook_delta", 4, ("A",), 0),
        book.issue("list", "", None, (), 0),
    ]
    frames = [msgspec.json.decode(effect.payload) for effect in sent]
    assert [f["cmd"] for f in frames] == [
        "subscribe", "subscribe", "update_subscription", "update_subscription",
        "update_subscription", "list_subscriptions",
    ]  # fmt: skip
    assert "market_tickers" not in frames[0]["params"]
    assert [f["params"].get("action") for f in frames[2:5]] == [
        "add_markets", "delete_markets", "get_snapshot",
    ]  # fmt: skip
    assert [effect.kind for effect in sent][2:5] == ["add", "delete", "snapshot"]


def test_subscribe_is_over_after_its_reply_and_its_snapshots_in_either_order() -> None:
    """Snapshots may overtake the acknowledgement."""
    book = ledger()
    book.issue("subscribe", "orderbook_delta", None, ("A", "B"), 0)
    (command,) = book
    book.got_snapshot("A")
    book.acknowledge(command, 5)
    assert list(book) == [command]
    book.got_snapshot("B")
    assert list(book) == []
    assert book.waiting == {}


def test_acknowledged_command_gets_a_deadline_for_its_snapshots() -> None:
    """The reply took its time; the snapshots get theirs from then on."""
    book = ledger(ack_timeout_ns=3 * S, snapshot_timeout_ns=7 * S)
    book.issue("add", "orderbook_delta", 4, ("A",), 0)
    (command,) = book
    assert command.deadline_ns == 3 * S
    book.acknowledge(command, 2 * S)
    assert command.deadline_ns == 9 * S


def test_forgotten_command_leaves_the_waits_of_others() -> None:
    """Two requests for one market: the second still misses it."""
    book = ledger()
    first = book.issue("snapshot", "orderbook_delta", 4, ("A", "B"), 0)
    second = book.issue("snapshot", "orderbook_delta", 4, ("A",), 0)
    assert book.n_snapshots_asked() == 3
    command = book.get(first.id)
    assert command is not None
    book.forget(command)
    assert book.waiting == {"A": {second.id}}
    book.got_snapshot("A")
    assert list(book) == []


def test_rate_of_commands_is_limited_over_any_second() -> None:
    """A window that starts anew each full second would allow twice the limit."""
    book = ledger(commands_per_s=2)
    book.issue("list", "", None, (), 0)
    assert book.has_room(0)
    assert book.room_at() is None
    book.issue("list", "", None, (), S // 2)
    assert not book.has_room(S // 2)
    assert book.room_at() == S
    assert book.has_room(S)
    assert book.room_at() is None


def test_refusals_are_forgiven_together_after_their_time() -> None:
    """The first refusal starts the clock; later ones do not push it away."""
    refused = Refusals(60 * S)
    refused.renew(0)
    refused.channels.add("trade")
    refused.renew(30 * S)
    assert not refused.forgive(59 * S)
    assert refused.forgive(60 * S)
    assert (refused.channels, refused.due_ns) == (set(), None)
    assert not refused.forgive(600 * S)


def test_a_command_names_no_more_tickers_than_it_may() -> None:
    """By count and by the bytes of the frame, in order, none left out."""
    tickers = [f"{'X' * (n % 7)}M{n}" for n in range(50)]
    settings = SessionSettings(tickers_per_command=6, command_bytes_max=260)
    parts = list(chunks(tickers, settings))
    assert [t for part in parts for t in part] == tickers
    assert max(map(len, parts)) <= 6
    for part in parts:
        assert len(wire.update_subscription(2**53, 2**53, "delete_markets", part)) <= 260
    assert len(parts) > 50 // 6, "the bytes bind as well"
    assert list(chunks(["A" * 500, "B"], settings)) == [("A" * 500,), ("B",)]
    assert list(chunks([], settings)) == []


def test_the_first_audit_round_has_a_phase() -> None:
    """Gatherers that came back together audit apart."""
    for permille in (333, 666, 1_000):
        settings = SessionSettings(audit_interval_ns=300 * S, audit_phase_permille=permille)
        rounds = AuditRounds(settings)
        rounds.restart(7)
        assert rounds.due_ns == 7 + 300 * S * permille // 1_000


def test_occurrences_are_counted_over_any_minute() -> None:
    """Three in a minute are more than two; three in an hour are not."""
    times: deque[int] = deque()
    assert [more_than(times, 2, t * S) for t in (0, 10, 20)] == [False, False, True]
    assert [more_than(times, 2, t * S) for t in (200, 261, 322)] == [False, False, False]
