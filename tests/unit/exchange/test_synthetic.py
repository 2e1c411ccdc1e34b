"""The made-up exchange: valid, repeatable, and with the habits that hurt recorders."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from exchange.faults import FaultLevel
from exchange.synthetic import SyntheticSource
from exchange.timeline import (
    TIME_MS_ONLY,
    TIME_TS_ONLY,
    DeltaItem,
    EmptySnapshotItem,
    ListingItem,
    StatusItem,
    TickerItem,
    TradeItem,
)

Key = tuple[int, int, int, int, int]


@pytest.fixture(scope="module")
def source() -> SyntheticSource:
    return SyntheticSource(markets=300, seconds=20, seed=7, level=FaultLevel.HARSH)


def test_the_same_arguments_give_the_same_items(source: SyntheticSource) -> None:
    """Also from one source object twice: the plan and the play must not disturb each other."""
    again = SyntheticSource(markets=300, seconds=20, seed=7, level=FaultLevel.HARSH)
    first = list(source.items())
    assert first == list(source.items())
    assert [i for i in first if not isinstance(i, ListingItem)] == [
        i for i in again.items() if not isinstance(i, ListingItem)
    ]
    assert first != list(SyntheticSource(markets=300, seconds=20, seed=8).items())


def test_levels_never_become_negative_and_time_never_goes_back(source: SyntheticSource) -> None:
    """A venue with impossible books would test nothing."""
    books = [{0: dict(m.yes), 1: dict(m.no)} for m in source.markets]
    last_us: dict[int, int] = {}
    at_us = 0
    for item in source.items():
        assert item.at_us >= at_us
        at_us = item.at_us
        if isinstance(item, ListingItem):
            books.append({0: {}, 1: {}})
        elif isinstance(item, EmptySnapshotItem):
            books[item.market] = {0: {}, 1: {}}
        elif isinstance(item, DeltaItem):
            side = books[item.market][item.side]
            side[item.price] = side.get(item.price, 0) + item.delta
            assert side[item.price] >= 0
            assert 0 < item.price < 1_000_000
            assert item.delta != 0
            assert last_us.get(item.market, 0) <= item.exchange_us
            last_us[item.market] = item.exchange_us
    assert at_us <= source.end_us


def test_what_hurts_recorders_occurs(source: SyntheticSource) -> None:
    """Equal tuples in one microsecond, amends, closes of both kinds, shards, missing times."""
    items = list(source.items())
    deltas = [item for item in items if isinstance(item, DeltaItem)]
    groups: Counter[Key] = Counter(
        (d.market, d.side, d.price, d.delta, d.exchange_us) for d in deltas
    )
    assert max(groups.values()) >= 3
    pairs = sum(
        a.market == b.market and a.exchange_us == b.exchange_us and a.delta == -b.delta
        for a, b in pairwise(deltas)
    )
    assert pairs > len(deltas) / 20
    assert {TIME_MS_ONLY, TIME_TS_ONLY} <= {d.form for d in deltas}
    assert any(d.exchange_us > d.at_us for d in deltas)
    assert all(0 <= d.exchange_us - d.at_us <= 50_000 for d in deltas)
    assert any(isinstance(item, ListingItem) for item in items)
    closed = Counter(item.market for item in items if isinstance(item, EmptySnapshotItem))
    assert len(closed) >= 5
    assert max(closed.values()) == 2
    trades = [item for item in items if isinstance(item, TradeItem)]
    assert len({t.exchange_us for t in trades}) < len(trades)
    assert any(b'"is_block_trade":true' in t.msg for t in trades)


def test_tickers_are_throttled_per_market(source: SyntheticSource) -> None:
    """At most one in 0.65 s, as recorded."""
    last: dict[int, int] = {}
    for item in source.items():
        if isinstance(item, TickerItem):
            assert item.at_us - last.get(item.market, 0) >= 650_000
            last[item.market] = item.at_us
    assert len(last) > 50


@pytest.mark.parametrize("asked", [None, 50.0])
def test_the_mean_rate_is_about_what_was_asked(asked: float | None) -> None:
    """2,000 markets in 60 s: 100,000 to 150,000 events; here a tenth of it."""
    source = SyntheticSource(markets=200, seconds=60, seed=3, events_per_s=asked)
    made = sum(isinstance(item, DeltaItem) for item in source.items())
    wanted = 12_000 if asked is None else 3_000
    assert source.events_expected == wanted
    assert 0.7 * wanted < made < 1.4 * wanted


def test_activity_is_unequal(source: SyntheticSource) -> None:
    """A tenth of the markets makes most of the events; some make none."""
    counts = Counter(i.market for i in source.items() if isinstance(i, DeltaItem))
    ranked = sorted((counts[n] for n in range(300)), reverse=True)
    assert sum(ranked[:30]) > 0.55 * sum(ranked)
    assert ranked[-1] <= 3


@pytest.mark.parametrize("markets", [1, 2])
def test_the_smallest_exchanges_work(markets: int) -> None:
    """One market never closes; nothing divides by zero."""
    items = list(SyntheticSource(markets=markets, seconds=3, seed=1).items())
    assert any(isinstance(item, DeltaItem) for item in items)


def test_turnover_opens_and_closes_as_many_a_second() -> None:
    """What a whole exchange does all day: the recorded shares are those of one evening."""
    source = SyntheticSource(markets=400, seconds=20, seed=3, events_per_s=50, turnover_per_s=10)
    items = list(source.items())
    opened = [item for item in items if isinstance(item, ListingItem)]
    closed = {item.market for item in items if isinstance(item, StatusItem)}
    assert 140 <= len(opened) <= 150
    assert 140 <= len(closed) <= 150
    usual = SyntheticSource(markets=400, seconds=20, seed=3, events_per_s=50)
    assert sum(isinstance(item, ListingItem) for item in usual.items()) == 4
