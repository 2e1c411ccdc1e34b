"""The lines of all markets beside the real merge: what was given out early is what the tape has."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from dedup.arbitrate import Arbiter
from dedup.live import HELD_NS, LIVE_COPY, LIVE_ROW, OVERDUE_US, Keeper
from dedup.output import ArbiterSettings, WindowOutput
from dedup.publication import Publication, publication_of
from marketdata.rows import GathererBatch
from tests.gatherer_rows import Stream, make_stream, record
from tests.hand import QUICK, Hand, us

CHOSEN = ArbiterSettings(window_us=200_000, grace_ns=50_000_000, idle_hold_ns=10**9)
BOOK = {100_000: 500, 200_000: 700}
EVENT = ("market_id", "epoch", "market_seq", "side", "price", "delta", "book_hash")


def in_turn(
    batches: Sequence[Sequence[GathererBatch]], rng: random.Random
) -> Iterator[GathererBatch]:
    """Batches of all gatherers about as they are committed, each gatherer's in order."""
    left = [list(mine) for mine in batches]
    while any(left):
        ready = [g for g, mine in enumerate(left) if mine]
        first = min(ready, key=lambda g: left[g][0].max_received_ns)
        yield left[first if rng.random() < 0.7 else rng.choice(ready)].pop(0)


@dataclass
class Scene:
    """A merge with its lines, and all that both gave out."""

    gatherers: int = 3
    chosen: ArbiterSettings = CHOSEN
    given: list[np.ndarray] = field(default_factory=list)
    tape: list[np.ndarray] = field(default_factory=list)
    ids: dict[str, int] = field(default_factory=dict)
    settled: dict[int, int] = field(default_factory=dict)
    tails: dict[str, bytes] = field(default_factory=dict)
    ends: dict[tuple[int, int], int] = field(default_factory=dict)  # what a reader would see
    seen: int = 0
    early: int = 0

    def __post_init__(self) -> None:
        self.arbiter = Arbiter(self.gatherers, self.chosen)
        self.keeper = Keeper(self.gatherers, {}, {})

    def hear(self, batch: GathererBatch) -> None:
        self.keeper.heard(batch)
        self.take()
        self.arbiter.absorb(batch)

    def take(self) -> None:
        rows = self.keeper.taken()
        if len(rows):
            self.given.append(rows)
            self.early += len(rows)

    def close(self, *, final: bool = False) -> None:
        """Every window that may close."""
        while (output := self.arbiter.step(final=final)) is not None:
            self.tails.update(output.market_states)
            self.publish(publication_of([output], self.ids, {}))

    def publish(self, made: Publication) -> None:
        self.settled.update(self.keeper.closed(made).upto)
        self.take()
        for part in self.given[self.seen :]:
            for market, epoch, number in part[["market_id", "epoch", "market_seq"]].tolist():
                before = self.ends.get((market, epoch), 0)
                assert number <= before + 1, "a hole that the tape has not filled yet"
                self.ends[market, epoch] = max(before, number)
        self.seen = len(self.given)
        self.keeper.committed()
        for row in made.deltas.tolist() if len(made.deltas) else ():
            market, epoch, number = (row[made.deltas.dtype.names.index(n)] for n in EVENT[:3])
            self.ends[market, epoch] = max(self.ends.get((market, epoch), 0), number)
        self.ids.update((ticker, market) for market, ticker, _ in made.new_markets)
        self.tape.append(made.deltas)
        self.take()

    def play(self, batches: Sequence[Sequence[GathererBatch]], seed: int = 1) -> None:
        for batch in in_turn(batches, random.Random(seed)):
            self.hear(batch)
            self.close()
        self.close(final=True)

    def events(self, parts: list[np.ndarray]) -> dict[tuple[int, int, int], tuple[int, ...]]:
        """(market, epoch, number) -> content and hash."""
        found: dict[tuple[int, int, int], tuple[int, ...]] = {}
        for part in parts:
            for row in part[list(EVENT)].tolist():
                assert row[:3] not in found, f"twice: {row}"
                found[row[:3]] = row[3:]
        return found


def recorded(stream: Stream, gatherers: int = 3, **how: int) -> list[list[GathererBatch]]:
    return [record(stream, g, batch_rows=20, **how) for g in range(gatherers)]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_everything_given_out_early_is_on_the_tape_under_its_number(seed: int) -> None:
    """Gaps, disconnects, bursts within one microsecond, gatherers that run ahead of each other."""
    scene = Scene()
    scene.play(recorded(make_stream(seed, events=700), gaps=2, disconnects=1, seed=seed), seed)
    given, tape = scene.events(scene.given), scene.events(scene.tape)
    assert {key: tape.get(key) for key in given} == given
    assert scene.keeper.counts["contradicted"] == 0
    assert scene.keeper.counts["confirmed"] == len(given)
    assert len(given) > len(tape) // 3
    assert len(given) + sum(scene.keeper.missed.values()) == len(tape)
    last = {int(m): 0 for m in scene.settled}
    for part in scene.given:
        last.update(zip(part["market_id"].tolist(), part["live_id"].tolist(), strict=True))
    assert scene.settled == last  # all of it is said to be on the tape


def test_a_sound_recording_is_given_out_nearly_whole() -> None:
    scene = Scene()
    scene.play(recorded(make_stream(5, events=1_000)))
    assert len(scene.events(scene.given)) > 0.8 * len(scene.events(scene.tape))


def test_one_gatherer_alone_is_enough() -> None:
    scene = Scene(gatherers=1)
    scene.play(recorded(make_stream(6, events=700), gatherers=1))
    assert len(scene.events(scene.given)) > 0.8 * len(scene.events(scene.tape))
    assert scene.keeper.counts["contradicted"] == 0


def hands(n: int = 3) -> list[Hand]:
    """Gatherers that have just subscribed to market A."""
    made = [Hand(g) for g in range(n)]
    for hand in made:
        hand.start(0)
        hand.snap("A", BOOK)
    return made


def steps(scene: Scene, made: Sequence[Hand], ms: float) -> None:
    """All commit, then every window closes that may."""
    for hand in made:
        scene.hear(hand.commit(ms))
    scene.close()


def by_hand(n: int) -> tuple[Scene, list[Hand]]:
    return Scene(n, QUICK), hands(n)


def test_a_gatherer_that_silently_lost_a_cycle_is_contradicted() -> None:
    """The negative control: a loss that neither sequence nor hash shows makes wrong numbers, which
    the tape of the two others does not bear out. They are taken back and counted."""
    scene, made = by_hand(3)
    for at in range(100, 9_000, 100):
        for hand in made:
            cycle = at == 5_000
            if cycle and hand.gatherer:
                hand.delta(at, "A", 500_000, 100)
                hand.delta(at, "A", 500_000, -100)
            hand.delta(at, "A", 100_000 + at * 10, 100)
        steps(scene, made, at)
    assert scene.keeper.counts["contradicted"] > 0
    last = int(scene.given[-1]["live_id"][-1])
    assert scene.settled == {1: last}
    assert scene.keeper.missed["contradicted before"] > 0


def test_what_the_tape_never_takes_is_overdue() -> None:
    """Given out, and the windows pass without it."""
    scene, made = by_hand(1)
    for at in range(100, 4_000, 100):
        made[0].delta(at, "A", 100_000 + at * 10, 100)
        steps(scene, made, at)
    given = scene.early
    made[0].delta(4_000, "A", 900_000, 100)
    scene.keeper.heard(made[0].commit(4_000))  # the merge does not get it
    scene.take()
    assert scene.early == given + 1
    nothing = publication_of([WindowOutput(5, 5, 6)], scene.ids, {})
    nothing.closed_to_us = int(scene.tape[-1]["exchange_us"][-1]) + OVERDUE_US
    assert scene.keeper.closed(nothing).upto == {}
    nothing.closed_to_us += 1_000_000
    assert scene.keeper.closed(nothing).upto == {1: int(scene.given[-1]["live_id"][-1])}
    assert scene.keeper.counts["contradicted"] > 0


def test_a_market_that_left_and_came_back_is_silent_until_it_is_placed_again() -> None:
    """Its H is what it was; what happened meanwhile nobody heard."""
    scene, made = by_hand(1)
    hand = made[0]
    for at in range(100, 3_000, 100):
        hand.delta(at, "A", 100_000 + at * 10, 100)
        steps(scene, made, at)
    early = scene.early
    assert early > 0
    hand.control("market_removed", run_id=hand.run_id, sid=2, seq=hand.seq, market_id=1)
    hand.seq += 2
    hand.delta(3_050, "A", 800_000, 100)
    steps(scene, made, 3_050)
    assert scene.early == early
    assert scene.keeper.counts["contradicted"] == 0


def test_a_reset_ends_the_line_until_a_window_has_it() -> None:
    scene, made = by_hand(2)
    for at in range(100, 6_000, 100):
        for hand in made:
            if at == 3_000:
                hand.snap("A", {})
            hand.delta(at, "A", 100_000 + at * 10, 100)
        steps(scene, made, at)
    given = np.concatenate(scene.given)
    assert (given["price"] > 0).all()
    assert (given["exchange_us"] > us(5_000)).any()
    assert scene.keeper.missed["reset"] > 0
    assert scene.keeper.counts["contradicted"] == 0


def test_what_is_not_heard_in_a_backlog_is_left_to_the_tape_and_joined_behind_it() -> None:
    scene, made = by_hand(2)
    for at in range(100, 9_000, 100):
        for hand in made:
            hand.delta(at, "A", 100_000 + at * 10, 100)
            batch = hand.commit(at)
            if 3_000 <= at < 4_000:
                scene.keeper.not_heard(batch)
            else:
                scene.keeper.heard(batch)
            scene.take()
            scene.arbiter.absorb(batch)
        scene.close()
    times = np.concatenate([part["exchange_us"] for part in scene.given])
    assert not ((times >= us(3_000)) & (times < us(4_000))).any()
    assert (times > us(8_000)).any()
    assert scene.keeper.counts["contradicted"] == 0
    given, tape = scene.events(scene.given), scene.events(scene.tape)
    assert all(tape[key] == given[key] for key in given.keys() & tape.keys())


def test_silence_gives_nothing_and_speaking_gives_all_beyond_the_tape_again() -> None:
    scene, made = by_hand(2)
    scene.keeper.silence("not connected")
    for at in range(100, 4_000, 100):
        for hand in made:
            hand.delta(at, "A", 100_000 + at * 10, 100)
        steps(scene, made, at)
    assert scene.early == 0
    scene.keeper.speak(1 << 32)
    scene.take()
    rows = scene.given[0]
    taken = sum(len(part) for part in scene.tape)
    assert rows["live_id"].tolist() == [(1 << 32) + n for n in range(len(rows))]
    assert rows["market_seq"].tolist() == list(range(taken + 1, 40))


def test_a_new_process_begins_with_the_tape_as_production_has_it() -> None:
    """From the stored ends of the tape and what is read again, before any window closes."""
    scene, made = by_hand(1)
    batches = []
    for at in range(100, 4_000, 100):
        made[0].delta(at, "A", 100_000 + at * 10, 100)
        batches.append(made[0].commit(at))
        scene.hear(batches[-1])
        scene.close()
    taken = sum(len(part) for part in scene.tape)
    state = scene.tails["A"]
    again = Keeper(1, scene.ids, {"A": state})
    for batch in batches:
        again.heard(batch)
    assert again.taken()["market_seq"].tolist() == list(range(taken + 1, 40))


def test_only_our_markets() -> None:
    """Of several mergers each gives out its own."""
    scene, made = by_hand(1)
    scene.keeper = Keeper(1, {}, {}, owns=lambda ticker: ticker != "A")
    for at in range(100, 3_000, 100):
        made[0].delta(at, "A", 100_000 + at * 10, 100)
        steps(scene, made, at)
    assert scene.early == 0


def test_rows_of_no_window_do_not_stay() -> None:
    keeper, hand = Keeper(1, {}, {}), hands(1)[0]
    hand.delta(100, "A", 200_000, 100)
    keeper.heard(hand.commit(100))
    hand.delta(200, "B", 200_000, 100)
    keeper.heard(hand.commit(HELD_NS / 1e6 + 1_000))
    assert not keeper.unplaced("A")


def test_the_layouts_agree() -> None:
    columns = [name.replace("exchange_ts", "exchange_us") for name in LIVE_COPY.names]
    assert columns == [*(LIVE_ROW.names or ()), "shard"]
