"""Deciding beside publishing: in order, one at a time, and nothing after a failure."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from dedup import flow
from dedup.arbitrate import Arbiter
from dedup.flow import Publishing, close_windows, reading_on, take
from dedup.output import WindowOutput
from dedup.readers import GathererReader
from marketdata.rows import GathererBatch
from tests.hand import QUICK, Hand


def arbiter(windows: int) -> Arbiter:
    """Everything of three equal recordings over so many windows."""
    made = Arbiter(3, QUICK)
    for g in range(3):
        hand = Hand(g)
        hand.start(0)
        hand.snap("A", {100_000: 5})
        for n in range(windows * 4):
            hand.delta(100 + n * 250, "A", 10_000 * (n % 90 + 1), 100)
        hand.stop()
        made.absorb(hand.commit())
    return made


class Written:
    """Production that takes its time; remembers what came, and never takes two at once."""

    def __init__(self, fails_at: int = -1, takes_s: float = 0.01) -> None:
        self.takes_s = takes_s
        self.windows: list[int] = []
        self.sizes: list[int] = []
        self.fails_at = fails_at
        self.inside = 0
        self.beside = 0

    async def publish(self, outputs: list[WindowOutput]) -> None:
        assert self.inside == 0
        self.inside += 1
        await asyncio.sleep(self.takes_s)
        self.inside -= 1
        if len(self.sizes) == self.fails_at:
            raise ConnectionResetError("cut")
        self.windows += [o.window for o in outputs]
        self.sizes.append(len(outputs))


async def test_windows_come_in_order_in_publications_of_a_bounded_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(flow, "PUBLISH_WINDOWS", 3)
    written = Written()
    await close_all(arbiter(10), written)
    assert len(written.windows) == 10
    assert written.windows == sorted(written.windows)
    assert written.sizes[:3] == [3, 3, 3]


async def test_the_arbiter_decides_while_a_publication_is_on_its_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The negative control of the next tests: there is something beside the publication."""
    monkeypatch.setattr(flow, "PUBLISH_WINDOWS", 1)
    written, made = Written(takes_s=0.1), arbiter(10)
    step, beside = made.step, 0

    def watched(*, final: bool = False) -> WindowOutput | None:
        nonlocal beside
        beside += written.inside
        return step(final=final)

    monkeypatch.setattr(made, "step", watched)
    await close_all(made, written)
    assert beside > 0


async def test_a_publication_is_planned_while_the_one_before_it_is_on_its_way() -> None:
    """And published when that one is in production, in its order."""
    written, planned = Written(takes_s=0.05), []

    def plan(outputs: list[WindowOutput]) -> list[WindowOutput]:
        planned.append((outputs[0].window, written.inside, len(written.sizes)))
        return outputs

    publishing = Publishing(written.publish, 0, plan)
    made = arbiter(3)
    for _ in range(3):
        output = made.step(final=True)
        assert output is not None
        await publishing.begin([output])
        await asyncio.sleep(0)
    await publishing.settled()
    assert [(inside, done) for _, inside, done in planned] == [(0, 0), (1, 0), (1, 1)]
    assert written.windows == [window for window, _, _ in planned]


async def test_nothing_is_published_after_a_publication_that_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(flow, "PUBLISH_WINDOWS", 2)
    written = Written(fails_at=1)
    with pytest.raises(ConnectionResetError):
        await close_all(arbiter(10), written)
    await asyncio.sleep(0.05)
    assert written.sizes == [2]
    assert written.inside == 0


async def test_an_arbiter_that_fails_ends_the_publication_on_its_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(flow, "PUBLISH_WINDOWS", 1)
    written, made = Written(takes_s=3600), arbiter(4)  # it cannot end by itself
    step, steps = made.step, 0

    def failing(*, final: bool = False) -> WindowOutput | None:
        nonlocal steps
        steps += 1
        if steps == 2:
            raise ValueError("planted")
        return step(final=final)

    monkeypatch.setattr(made, "step", failing)
    with pytest.raises(ValueError, match="planted"):
        await close_all(made, written)
    await asyncio.sleep(0.05)
    assert written.sizes == []


async def test_an_export_sees_all_windows_before_its_moment_and_none_after() -> None:
    written, seen = Written(), []

    async def export() -> None:
        assert written.inside == 0
        seen.append(list(written.windows))

    made = arbiter(10)
    second = 1_000_000
    await close_all(
        made,
        written,
        due=lambda before, after: before > 0 and after // (4 * second) > before // (4 * second),
        export=export,
    )
    assert len(seen) >= 2
    for windows in seen:
        assert windows == written.windows[: len(windows)]
        assert (windows[-1] + 1) % 4 == 0


async def test_publishing_hears_of_a_failure_before_the_next_begins() -> None:
    written = Written(fails_at=0)
    publishing = Publishing(written.publish, 0)
    some = [WindowOutput(1, 1, 2)]
    await publishing.begin(some)
    await publishing.heard()  # nothing yet
    with pytest.raises(ConnectionResetError):
        await publishing.begin(some)
    await publishing.settled()
    await publishing.begin(some)
    assert publishing.closed_to_us == 2
    while not publishing.idle:  # noqa: ASYNC110 - it tells no event
        await asyncio.sleep(0.001)
    with pytest.raises(ConnectionResetError):
        await publishing.heard()
    await publishing.abandon()
    assert written.sizes == []


async def close_all(made: Arbiter, written: Written, **more: Any) -> None:
    publishing = Publishing(written.publish, 0)
    try:
        await close_windows(made, publishing, final=True, **more)
        await publishing.settled()
    finally:
        await publishing.abandon()


class Answers(GathererReader):
    """A reader whose database is a list."""

    def __init__(self, index: int, batches: list[GathererBatch]) -> None:
        super().__init__(index, "postgresql://nowhere", poll_s=0)
        self.batches = batches
        self.reading = 0

    async def read(self) -> GathererBatch | None:
        assert self.reading == 0, "one read at a time"
        self.reading += 1
        await asyncio.sleep(0)
        self.reading -= 1
        self.state = "reading" if self.batches else "idle"
        return self.batches.pop(0) if self.batches else None


async def test_batches_of_a_gatherer_are_absorbed_in_order_and_each_once() -> None:
    class Hears:
        def __init__(self) -> None:
            self.inside = False
            self.heard: list[tuple[int, int]] = []
            self.asked: set[int] = set()
            self.shown_ns = 0
            self.had_nothing = lambda _gatherer, _shown_ns: None

        def absorb(self, batch: GathererBatch) -> None:
            assert not self.inside
            self.inside = True
            self.heard.append((batch.gatherer, batch.last_batch_id))
            self.inside = False

        def nothing_new(self, gatherer: int) -> None:
            assert not self.inside
            self.asked.add(gatherer)

    def batch(g: int, n: int) -> GathererBatch:
        made = Hand(g).commit()
        made.last_batch_id = n
        return made

    hears: Any = Hears()
    readers = [Answers(g, [batch(g, n) for n in range(1, 6)]) for g in range(3)]
    tasks: flow.Reads = {}
    told: list[tuple[int, int]] = []
    while not all(r.exhausted for r in readers):
        await take(hears, readers, tasks, 60, lambda b: told.append((b.gatherer, b.last_batch_id)))
    for g in range(3):
        assert [n for of, n in hears.heard if of == g] == [1, 2, 3, 4, 5]
    assert told == hears.heard
    assert hears.asked == {0, 1, 2}
    for task in tasks:
        task.cancel()


async def test_an_answer_without_rows_is_good_for_what_was_shown_when_it_was_asked_for() -> None:
    """What others show while the database answers may have been committed after it looked."""
    hears = Hears()
    hears.shown_ns = 5
    told: list[tuple[int, int]] = []
    hears.had_nothing = lambda *word: told.append(word)  # type: ignore[method-assign]

    class Slow(Answers):
        async def read(self) -> GathererBatch | None:
            hears.shown_ns = 9
            self.state = "down" if self.batches else "ended"
            return None

    tasks: flow.Reads = {}
    some: Any = hears
    await take(some, [Slow(0, [])], tasks, 60, lambda _: None)
    await take(some, [Slow(1, [Hand(1).commit()])], tasks, 60, lambda _: None)
    assert told == [(0, 5)], "who does not answer has not said that there is nothing"
    assert tasks == {}


class Endless(Answers):
    """A reader whose database always has another batch of four changes."""

    async def read(self) -> GathererBatch | None:
        await asyncio.sleep(0.001)
        self.state = "reading"
        hand = Hand(self.index)
        hand.start(0)
        hand.snap("A", {100_000: 5})
        for n in range(4):
            hand.delta(100 + n, "A", 10_000, 100)
        return hand.commit()


class Hears:
    """An arbiter that only takes."""

    def __init__(self) -> None:
        self.rows = 0
        self.shown_ns = 0

    def had_nothing(self, gatherer: int, shown_ns: int) -> None:
        """Nobody asks."""

    def absorb(self, batch: GathererBatch) -> None:
        self.rows += len(batch.deltas)

    def nothing_new(self, gatherer: int) -> None:
        """Nobody asks."""


async def beside(
    work: Coroutine[Any, Any, str], hears: Any, readers: list[GathererReader]
) -> tuple[str, int]:
    """(outcome, rows that were told of) of a work beside these readers."""
    tasks: flow.Reads = {}
    told = [0]

    def absorbed(batch: GathererBatch) -> None:
        told[0] += len(batch.deltas)

    try:
        async with asyncio.timeout(10):
            return await reading_on(work, hears, readers, tasks, 60, absorbed), told[0]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_reading_goes_on_beside_an_export_and_ends_with_it() -> None:
    hears = Hears()

    async def work() -> str:
        while hears.rows < 40:  # noqa: ASYNC110 (would wait for ever if nothing was read)
            await asyncio.sleep(0.001)
        return "done"

    outcome, told = await beside(work(), hears, [Endless(0, []), Endless(1, [])])
    assert outcome == "done"
    assert told == hears.rows


async def test_reading_beside_an_export_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow, "READ_ON_ROWS", 24)
    hears = Hears()

    async def work() -> str:
        await asyncio.sleep(0.2)
        return "done"

    outcome, _ = await beside(work(), hears, [Endless(0, [])])
    assert (outcome, hears.rows) == ("done", 24)


async def test_an_export_that_fails_is_heard_of_and_a_reader_that_fails_ends_it() -> None:
    async def failing() -> str:
        raise ConnectionResetError("cut")

    with pytest.raises(ConnectionResetError):
        await beside(failing(), Hears(), [Answers(0, [])])
    ended = asyncio.Event()

    async def endless() -> str:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return ""

    class Broken(Hears):
        def absorb(self, batch: GathererBatch) -> None:
            raise ValueError("planted")

    with pytest.raises(ValueError, match="planted"):
        await beside(endless(), Broken(), [Endless(0, [])])
    assert ended.is_set()


async def test_a_stop_ends_the_waiting() -> None:
    class Silent(Answers):
        async def read(self) -> GathererBatch | None:
            await asyncio.Event().wait()
            return None

    stopping = asyncio.Event()
    tasks: flow.Reads = {}
    asyncio.get_running_loop().call_later(0.01, stopping.set)
    async with asyncio.timeout(0.5):
        await take(Arbiter(1, QUICK), [Silent(0, [])], tasks, 60, lambda _b: None, stopping)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
