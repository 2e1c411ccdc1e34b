"""Reading a lake."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from kalshilake import open_lake, paths
from kalshilake.moments import moment_us
from kalshilake.store import LocalStore
from kalshilake.tables import times_us
from kalshilake.write import write_hour
from marketdata.errors import IncompleteTape, LakeError
from tests import lake_tamper as tamper
from tests.lake_world import START, World, as_levels, make_world, world_tables, write_world


def test_moments_are_exact_and_refuse_what_is_ambiguous() -> None:
    """A naive datetime means something else on every machine; a float loses microseconds."""
    us = 1_747_000_000_123_457
    assert moment_us(us) == us
    assert moment_us(paths.at(us)) == us
    assert moment_us(paths.at(us).astimezone(timezone(timedelta(hours=5)))) == us
    assert moment_us("2025-05-11T21:46:40.123457Z") == us
    assert moment_us("2025-05-11 21:46:40.123457") == us
    assert moment_us("2025-05-11T23:46:40.123457+02:00") == us
    assert moment_us("2025-05-11") == paths.to_us(datetime(2025, 5, 11, tzinfo=UTC))
    for wrong in (1.5, True, None, "soon", "", datetime(2025, 5, 11)):  # noqa: DTZ001
        with pytest.raises(LakeError):
            moment_us(wrong)


def test_a_place_without_a_lake_or_version_is_refused(pristine: Path, tmp_path: Path) -> None:
    """An empty directory must not read as an empty tape."""
    with pytest.raises(LakeError, match="holds no lake"):
        open_lake(tmp_path)
    with pytest.raises(LakeError, match="v0000000009"):
        open_lake(pristine, version=9)


def test_an_edited_version_is_refused(lake_copy: Path) -> None:
    """The list decides what exists."""
    tamper.edit_version(tamper.newest(lake_copy), lambda b: b["objects"].pop(), sealed=False)
    with pytest.raises(LakeError, match="altered"):
        open_lake(lake_copy)
    assert open_lake(lake_copy, version=1).version == 1


def test_a_pinned_version_sees_only_its_own_hours(pristine: Path) -> None:
    """A reader's result must be repeatable while the exporter goes on."""
    first, second = open_lake(pristine, version=1), open_lake(pristine)
    assert first.watermark_us < second.watermark_us
    assert first.deltas(on_gap="ignore").num_rows < second.deltas(on_gap="ignore").num_rows
    hour = paths.US_PER_HOUR
    assert times_us(first.deltas(on_gap="ignore")["exchange_ts"]).max() < START + hour


def test_an_object_that_no_version_lists_is_not_read(lake_copy: Path, world: World) -> None:
    """Written and not committed is not there."""
    before = open_lake(lake_copy).trades(on_gap="ignore").num_rows
    late = START + 9 * paths.US_PER_HOUR
    rows = world_tables(world)["trades"].slice(0, 1)
    moved = rows.set_column(1, rows.schema.field(1), [[paths.at(late)]])
    write_hour(LocalStore(lake_copy), "trades", late, moved, watermark_us=late)
    assert open_lake(lake_copy).trades(on_gap="ignore").num_rows == before


def test_without_bounds_a_read_goes_from_the_first_to_the_last_proven_moment(
    tmp_path: Path,
) -> None:
    """Every market begins and ends in the dark: that must not make every read fail."""
    world = make_world(7, markets=1, hours=1)
    market = world.markets[0]
    del market.epochs[1:]
    epoch = market.epochs[0]
    write_world(tmp_path, world)
    lake = open_lake(tmp_path)
    got = times_us(lake.deltas(market.ticker)["exchange_ts"]).tolist()
    assert got == sorted(e.us for e in epoch.events if epoch.from_us <= e.us < epoch.to_us)
    assert lake.deltas().equals(lake.deltas(market.ticker))
    with pytest.raises(IncompleteTape) as refused:
        lake.deltas(market.ticker, START, epoch.to_us)
    assert refused.value.intervals == (
        (market.ticker, START, epoch.from_us, "dark", "not subscribed"),
    )
    assert 'on_gap="column"' in str(refused.value)
    assert lake.deltas(market.ticker, epoch.from_us, epoch.to_us).num_rows == len(got)


def test_each_market_has_its_own_proven_span(tmp_path: Path) -> None:
    """A read of all markets must not take rows of one that lie outside its own proof."""
    world = make_world(8, markets=3, hours=1)
    for market in world.markets:
        del market.epochs[1:]
    write_world(tmp_path, world)
    lake = open_lake(tmp_path)
    rows = lake.deltas()
    for market in world.markets:
        mine = rows.filter(tamper.pa.compute.equal(rows["market_ticker"], market.ticker))
        assert mine.equals(lake.deltas(market.ticker))
    assert rows["market_ticker"].to_pylist() == sorted(rows["market_ticker"].to_pylist())


def test_channels_are_judged_by_their_own_coverage(pristine: Path, world: World) -> None:
    """Trades over an order-book gap may be complete; here both have the same gaps."""
    lake = open_lake(pristine)
    market = world.markets[0]
    epoch = market.epochs[1]
    assert lake.trades(market.ticker, epoch.from_us, epoch.to_us).num_rows >= 0
    assert lake.tickers(market.ticker, epoch.from_us, epoch.to_us).num_rows == 0
    for read in (lake.trades, lake.tickers, lake.snapshots, lake.deltas):
        with pytest.raises(IncompleteTape):
            read(market.ticker, epoch.from_us - 1, epoch.to_us)


def test_columns_are_chosen_and_unknown_words_refused(pristine: Path, world: World) -> None:
    """A misspelt column or mode must not become a guess."""
    lake = open_lake(pristine)
    rows = lake.deltas(on_gap="column", columns=["price"])
    assert rows.schema.names == ["price", "coverage", "complete"]
    ticker = world.markets[0].ticker
    for wrong in (
        lambda: lake.deltas(on_gap="skip"),
        lambda: lake.deltas(on_gap="ignore", columns=["prise"]),
        lambda: lake.deltas(ticker, 5, 5),
        lambda: lake.deltas(ticker, 6, 5),
        lambda: lake.book("nope"),
        lambda: lake.deltas("nope"),
        lambda: lake.records("nope"),
    ):
        with pytest.raises(LakeError):
            wrong()


def test_coverage_rows_that_only_touch_the_question_are_left_out(
    pristine: Path, world: World
) -> None:
    """Half open at both ends."""
    lake = open_lake(pristine)
    market = world.markets[0]
    epoch = market.epochs[0]
    rows = lake.coverage(market.ticker, epoch.from_us, epoch.from_us + 1)
    assert rows.num_rows == 3  # one a channel
    assert set(rows["status"].to_pylist()) == {"complete", "unproven"}


def test_markets_gives_the_newest_row_of_each(tmp_path: Path, world: World) -> None:
    """A market's row is a state; the newest counts."""
    from kalshilake.tables import records_table
    from kalshilake.write import commit_version

    store = LocalStore(tmp_path)
    hours = (START, START + paths.US_PER_HOUR)
    records = [
        write_hour(
            store, "markets", hour,
            records_table("markets", [
                {"market_ticker": t, "first_seen": hour + i, "title": f"{t}{hour + i}"}
                for t in names for i in range(2)
            ]), watermark_us=hour,
        )
        for hour, names in zip(hours, (("A", "B"), ("B",)), strict=True)
    ]  # fmt: skip
    commit_version(store, records, watermark_us=hours[1])
    titles = open_lake(tmp_path).markets()["title"].to_pylist()
    assert titles == [f"A{hours[0] + 1}", f"B{hours[1] + 1}"]


def test_a_book_over_a_gap_is_refused_or_marked(pristine: Path, world: World) -> None:
    """on_gap="ignore" gives the last known book, and says that nothing proves it."""
    lake = open_lake(pristine)
    market = world.markets[0]
    one, two = market.epochs[:2]
    at = (one.to_us + two.from_us) // 2
    with pytest.raises(IncompleteTape):
        lake.book(market.ticker, at)
    view = lake.book(market.ticker, at, on_gap="ignore")
    known = next(e for e in reversed(market.epochs[:2]) if e.events and e.events[0].us <= at)
    assert (view.complete, view.status, view.epoch) == (False, "gap", known.number)
    last = lake.book(market.ticker)
    truth = market.epochs[-1].book_after(len(market.epochs[-1].events))
    assert (last.yes_bids, last.no_bids) == (as_levels(truth, 0), as_levels(truth, 1))
    with pytest.raises(LakeError, match="nothing is known"):
        lake.book(market.ticker, START - 1, on_gap="ignore")


def test_a_book_from_a_tape_with_a_hole_is_refused(tmp_path: Path) -> None:
    """A removed event in front of the moment must not give a plausible book."""
    world = make_world(7, markets=1, hours=1, events=60)
    epoch = max(world.markets[0].epochs, key=lambda e: len(e.events))
    epoch.keyframes = [0]
    write_world(tmp_path, world)
    key = tamper.keys_of(tmp_path, "orderbook_deltas")[0]

    def without_one(rows):
        at = [i for i, e in enumerate(rows["epoch"].to_pylist()) if e == epoch.number]
        return rows.take([i for i in range(rows.num_rows) if i != at[len(at) // 2]])

    tamper.rewrite(tmp_path, key, without_one, 4)
    with pytest.raises(LakeError, match="is missing"):
        open_lake(tmp_path).book(world.markets[0].ticker, epoch.to_us - 1)


def test_a_keyframe_whose_hash_is_not_that_of_its_levels_is_refused(tmp_path: Path) -> None:
    """It would poison every book that starts from it."""
    world = make_world(7, markets=1, hours=1)
    write_world(tmp_path, world)
    key = tamper.keys_of(tmp_path, "orderbook_snapshots")[0]

    def other_hash(rows):
        hashes = [(h + 1) % 2**64 for h in rows["book_hash"].to_pylist()]
        at = rows.schema.names.index("book_hash")
        return rows.set_column(at, rows.schema.field(at), tamper.pa.array(hashes, "uint64"))

    tamper.rewrite(tmp_path, key, other_hash, 4)
    with pytest.raises(LakeError, match="its levels give"):
        open_lake(tmp_path).book(world.markets[0].ticker)


def test_an_event_that_stepped_back_behind_all_that_was_read_is_in_the_book(
    tmp_path: Path,
) -> None:
    """World 51 ends an epoch with a step of 1.02 s back, past a keyframe at the moment asked for:
    no later number shows that one is missing."""
    world = make_world(51, hours=1, events=12)
    write_world(tmp_path, world)
    ticker = "KX-A-249"
    (market,) = [m for m in world.markets if m.ticker == ticker]
    before, last = market.epochs[-1].events[-2:]
    assert before.us - last.us > 1_000_000
    assert len(market.epochs[-1].events) - 1 in market.epochs[-1].keyframes
    truth = world.book_at(ticker, before.us)
    assert truth is not None
    epoch, n, book = truth
    view = open_lake(tmp_path).book(ticker, before.us)
    assert (view.epoch, view.market_seq) == (epoch.number, n)
    assert view.yes_bids == as_levels(book, 0)
    assert view.no_bids == as_levels(book, 1)
