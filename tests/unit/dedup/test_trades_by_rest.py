"""Trades that REST listed: once in the tape, told as such, the same however they were read."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import asyncpg
import numpy as np
import pytest

from dedup.arbitrate import Arbiter
from dedup.output import MERGED_TRADE, GathererPosition, MergedTrade, WindowOutput
from dedup.publication import HOUR_US, publication_of
from dedup.publish import Publisher
from dedup.union import MEMORY_WINDOWS, Memory, gathered, union_trades
from marketdata.rows import BATCH_TRADE, SOURCE_REST, TradeFlag, TradeRow
from tests.hand import QUICK, Hand, columns, drain
from tests.window_outputs import T0, WINDOW_US, window_output

BOOK = {100_000: 500}


def trade(number: int, received_ns: int, us: int, flags: int = 0) -> TradeRow:
    return TradeRow(us, received_ns, number.to_bytes(16, "big"), 1, 0, 1, 1, 1, 2, 3, 0, flags)


def union(*parts: list[TradeRow]) -> list[MergedTrade]:
    made, _ = union_trades(*gathered([columns(p, BATCH_TRADE) for p in parts]), Memory())
    return [MergedTrade(*row) for row in made.tolist()]


@pytest.mark.parametrize("block", [0, TradeFlag.BLOCK])
def test_a_trade_that_frames_brought_has_their_time_and_only_them_as_witnesses(block: int) -> None:
    """INV-U3: whoever found it by REST only did not see it."""
    by_rest = int(TradeFlag.REST | block)
    made = union([trade(1, 9, 5123, by_rest)], [trade(1, 7, 5000, block)], [])
    assert [(t.exchange_us, t.sources, t.flags, t.received_ns) for t in made] == [
        (5000, 0b10, block, 7)
    ]


@pytest.mark.parametrize("block", [0, TradeFlag.BLOCK])
def test_a_trade_that_only_rest_listed_says_so_and_who_found_it(block: int) -> None:
    by_rest = int(TradeFlag.REST | block)
    made = union([trade(1, 9, 5123, by_rest)], [trade(2, 1, 5)], [trade(1, 8, 5123, by_rest)])
    assert [(t.trade_id[-1], t.sources, t.flags, t.received_ns) for t in made] == [
        (1, 0b101 | SOURCE_REST, by_rest, 8),
        (2, 0b10, 0, 1),
    ]


def recorded(n_gatherers: int = 2) -> list[Hand]:
    """Each second a change and a trade; nobody's frames brought number 3, only one's number 5."""
    hands = [Hand(g) for g in range(n_gatherers)]
    for hand in hands:
        hand.start(0)
        hand.snap("A", BOOK)
    return hands


def batches(hands: list[Hand]) -> list[list[Any]]:
    """What each gatherer commits, second by second; REST tells of it when its window has closed."""
    made: list[list[Any]] = [[] for _ in hands]
    for second in range(1, 13):
        for hand in hands:
            hand.delta(1_000 * second, "A", 10_000 * second, 100)
            if second != 3 and (second != 5 or hand.gatherer == 1):
                hand.trade(1_000 * second, "B", second)
            lost = {8: (3,), 10: (5,), 11: (4,)}.get(second + hand.gatherer, ())
            if lost:
                hand.by_rest("B", *((1_000 * number, number) for number in lost))
            made[hand.gatherer].append(hand.commit())
    return made


def published(outputs: list[WindowOutput]) -> list[tuple[int, list[tuple[Any, ...]]]]:
    return [(o.window, o.trades.tolist()) for o in outputs if len(o.trades)]


def test_the_outcome_does_not_depend_on_how_batches_were_read() -> None:
    """INV-R1: at once, one by one, or one gatherer far ahead of the other."""
    recordings = batches(recorded())
    outcomes = []
    orders = [
        [b for part in recordings for b in part],
        [b for pair in zip(*recordings, strict=True) for b in pair],
        recordings[1] + recordings[0],
    ]
    for order in orders:
        arbiter, outputs = Arbiter(2, QUICK), []
        for batch in order:
            arbiter.absorb(batch)
            outputs += drain(arbiter)
        outcomes.append(published(outputs + drain(arbiter, final=True)))
    assert all(a == b for a, b in pairwise(outcomes))
    rows = [MergedTrade(*row) for _, part in outcomes[0] for row in part]
    assert sorted(t.trade_id[-1] for t in rows) == list(range(1, 13)), "each once"
    sources = {t.trade_id[-1]: t.sources for t in rows}
    assert sources[3] & SOURCE_REST
    assert sources[5] == 0b10, "one gatherer's frame brought it"
    assert {sources[n] for n in (1, 2, 4, 6, 12)} == {0b11}


@pytest.mark.parametrize("crash_after", range(2, 24, 3))
def test_a_restart_between_two_publications_changes_nothing(crash_after: int) -> None:
    """INV-R2, also while a trade that REST listed waits for its window."""

    def outcome(crash: int) -> list[tuple[int, list[tuple[Any, ...]]]]:
        arbiter, outputs = Arbiter(2, QUICK), []
        states: tuple[dict[str, bytes], dict[str, bytes]] = ({}, {})
        positions: list[GathererPosition] = []
        order = [b for pair in zip(*batches(recorded()), strict=True) for b in pair]
        for count, batch in enumerate(order, 1):
            arbiter.absorb(batch)
            for output in drain(arbiter):
                outputs.append(output)
                states[0].update(output.market_states)
                for name, packed in output.named_states.items():
                    states[1].pop(name, None)
                    states[1].update({} if packed is None else {name: packed})
                positions = output.positions
            if count == crash:
                arbiter = Arbiter.load(2, QUICK, *states, positions)
                first = {p.gatherer: p.reread_from_batch for p in positions}
                for again in order[:count]:
                    if again.last_batch_id >= first.get(again.gatherer, 0):
                        arbiter.absorb(again)
        return published(outputs + drain(arbiter, final=True))

    assert outcome(crash_after) == outcome(0)


def test_what_rest_finds_after_the_memory_goes_to_production_to_decide() -> None:
    """After an outage the windows are long closed; both gatherers bring it, it is one."""
    hands = recorded()
    arbiter, outputs = Arbiter(2, QUICK), []
    for second in range(1, MEMORY_WINDOWS + 20):
        for hand in hands:
            hand.delta(1_000 * second, "A", 10_000 * (second % 50 + 1), 100)
            hand.trade(1_000 * second, "B", second)
            if second == MEMORY_WINDOWS + 15:
                hand.by_rest("B", (2_000, 2), (2_500, 200))
            arbiter.absorb(hand.commit())
        outputs += drain(arbiter)
    outputs += drain(arbiter, final=True)
    late = [o for o in outputs if len(o.late_trades)]
    assert len(late) == 1
    found = [MergedTrade(*row) for row in late[0].late_trades.tolist()]
    assert [(t.trade_id[-1], t.sources) for t in found] == [
        (2, 0b11 | SOURCE_REST),
        (200, 0b11 | SOURCE_REST),
    ]
    assert [late[0].tickers[t.market] for t in found] == ["B", "B"]
    assert not any(o.quarantine for o in outputs)


def merged(number: int, us: int, sources: int = SOURCE_REST | 1) -> MergedTrade:
    return MergedTrade(
        0, us, us * 1000 + 7, number.to_bytes(16, "big"), 300, 420_000, 580_000, -1, 2, sources
    )


def late(output: WindowOutput, *rows: MergedTrade) -> WindowOutput:
    output.late_trades = np.array(list(rows), MERGED_TRADE)
    return output


async def test_production_takes_a_late_trade_once_and_its_hour_is_exported_again(
    production: str,
) -> None:
    """Known ones are left out: by an earlier publication, this one, or the same list."""
    day_before = T0 - 30 * HOUR_US
    publisher = Publisher(production, {})
    await publisher.open()
    first = publication_of([window_output(0, ["A"])], {}, {})
    await publisher.commit(first, {})
    known = MergedTrade(*window_output(0, ["A"]).trades[0])
    in_this = MergedTrade(*window_output(1, ["A"], 4).trades[0])
    outputs = [
        late(window_output(1, ["A"], 4), merged(1, day_before), known, in_this),
        late(window_output(2, ["A"], 7), merged(1, day_before, 4), merged(2, T0 + 1)),
    ]
    made = publication_of(outputs, publisher.standing.ids, {})
    await publisher.commit(made, {})
    assert made.touched.rows == {day_before - day_before % HOUR_US, T0 - T0 % HOUR_US}
    again = publication_of(
        [late(window_output(3, ["A"], 10), merged(1, day_before + 400))], publisher.standing.ids, {}
    )
    await publisher.commit(again, {})
    await publisher.close()
    conn = await asyncpg.connect(production)
    rows = await conn.fetch(
        "SELECT trade_id, sources, tableoid::regclass::text AS part FROM trade"
        " WHERE sources & 16384 <> 0 ORDER BY trade_id"
    )
    assert [(r["trade_id"].int, r["sources"]) for r in rows] == [
        (1, SOURCE_REST | 1),
        (2, SOURCE_REST | 1),
    ]
    assert not any(r["part"] == "trade_default" for r in rows)
    assert await conn.fetchval("SELECT count(*) FROM trade") == 6
    dirty = await conn.fetch("SELECT hour_us FROM lake_hour WHERE rows_dirty ORDER BY hour_us")
    assert day_before - day_before % HOUR_US in [r["hour_us"] for r in dirty]
    await conn.close()
    assert WINDOW_US
