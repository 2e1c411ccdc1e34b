"""What a gatherer says of itself, without sockets: the parts are real, the feeds are set."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from pathlib import Path

from gatherer.service import Gatherer
from marketdata import events
from runtime.clock import Clock
from runtime.supervise import Supervisor
from tests.unit.gatherer.test_service import settings

GIVEN = ("A-1", "A-2")


async def opened(stack: AsyncExitStack, folder: Path) -> Gatherer:
    """A gatherer whose discovery has had a round and whose feeds are open, nothing running."""
    gatherer = Gatherer(settings(folder), Clock(), Supervisor("test"))
    await gatherer.open(stack)
    gatherer._add_feed("shared", ("trade",))
    gatherer._add_feed("books-0", ()).want(GIVEN)
    gatherer.discovery.rounds = 1
    for feed in gatherer.feeds.values():
        feed.status.state = "open"
        feed.session.on_open(gatherer._clock.monotonic_ns())
    return gatherer


def answer(gatherer: Gatherer, *, snapshots: tuple[str, ...]) -> None:
    """The exchange answers every subscription, and gives some snapshots."""
    now_ns = gatherer._clock.monotonic_ns()
    shared, books = gatherer.feeds["shared"].session, gatherer.feeds["books-0"].session
    for session, channel in ((shared, "trade"), (books, "orderbook_delta")):
        command_id = next(iter(session._ledger)).id
        session.on_event(events.Subscribed(command_id, channel, 1), now_ns)
    for ticker in snapshots:
        books.on_event(events.Snapshot(ticker, [], [], 1, 1, None), now_ns)
    for feed in gatherer.feeds.values():
        feed.status.last_frame_ns = gatherer._clock.wall_ns()


async def test_complete_only_once_every_book_has_its_snapshot(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        gatherer = await opened(stack, tmp_path)
        observer, health = gatherer.observer, gatherer.health
        observer._observe_capture()
        told = health.get("capture")
        assert told is not None
        assert told.state == "starting"
        assert "trade is not subscribed yet" in told.reason
        answer(gatherer, snapshots=GIVEN)
        observer._observe_capture()
        told = health.get("capture")
        assert told is not None
        assert told.state == "ok"
        numbers = observer.numbers()
        assert numbers["complete"] is True
        assert numbers["channels"]["orderbook_delta"]["covered"] == 2
        json.dumps(numbers)


async def test_before_the_first_round_nothing_is_complete(tmp_path: Path) -> None:
    """Every market that is known is covered: there may be many that are not known yet."""
    async with AsyncExitStack() as stack:
        gatherer = await opened(stack, tmp_path)
        answer(gatherer, snapshots=GIVEN)
        gatherer.discovery.rounds = 0
        gatherer.observer._observe_capture()
        told = gatherer.health.get("capture")
        assert told is not None
        assert "first round" in told.reason
        assert gatherer.observer.numbers()["complete"] is False


async def test_a_gap_makes_it_failing_until_the_snapshot(tmp_path: Path) -> None:
    """The control of the test above: the same feeds with one hole."""
    async with AsyncExitStack() as stack:
        gatherer = await opened(stack, tmp_path)
        answer(gatherer, snapshots=GIVEN)
        gatherer.observer._observe_capture()
        books, now_ns = gatherer.feeds["books-0"].session, gatherer._clock.monotonic_ns()
        books.on_gap(1, now_ns, ["A-2"])
        gatherer.observer._observe_capture()
        told = gatherer.health.get("capture")
        assert told is not None
        assert told.state == "failing"
        assert "1 of 2 books wait for a snapshot" in told.reason
        assert gatherer.observer.numbers()["complete"] is False
        books.on_event(events.Snapshot("A-2", [], [], 1, 2, None), now_ns)
        gatherer.observer._observe_capture()
        told = gatherer.health.get("capture")
        assert told is not None
        assert told.state == "ok"


async def test_markets_without_room_are_told(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        gatherer = await opened(stack, tmp_path)
        answer(gatherer, snapshots=GIVEN)
        gatherer.plan._unplaced |= dict.fromkeys(map(str, range(7)), "E")
        gatherer.observer._observe_capture()
        told = gatherer.health.get("capture")
        assert told is not None
        assert "7 markets beyond the limit" in told.reason
