"""Joining the hours of days that are over."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from kalshilake import Lake, compact, open_lake, paths, tables, write
from kalshilake.encode import encode_into
from kalshilake.joined import hours_of
from kalshilake.objects import ObjectReader
from kalshilake.schema import TABLES
from kalshilake.store import LocalStore
from kalshilake.verify import verify
from marketdata.errors import LakeError, StorageError
from tests import lake_tamper as tamper
from tests.lake_deaths import Dying, tree
from tests.lake_world import START, World, as_levels, make_world, world_tables, write_world

DAY = compact.US_PER_DAY
SECOND = (START // DAY + 1) * DAY  # the first midnight in the world


@pytest.fixture(scope="module")
def long_world() -> World:
    return make_world(5, markets=3, hours=20, events=80)


@pytest.fixture
def lake(long_world: World, tmp_path: Path) -> LocalStore:
    """Twenty hours over a midnight, and a watermark ten days later."""
    write_world(tmp_path / "lake", long_world)
    store = LocalStore(tmp_path / "lake")
    write.commit_version(store, [], watermark_us=SECOND + 10 * DAY)
    return store


def answers(lake: Lake) -> dict[str, list[dict[str, Any]]]:
    return {name: lake.rows(name, None, -(2**62), 2**62, None).to_pylist() for name in TABLES}


def test_every_answer_stays_and_there_are_fewer_objects(
    lake: LocalStore, long_world: World
) -> None:
    """Of the new version and of every one before it, and the verifier finds nothing."""
    root = lake.location
    pinned = {n: answers(open_lake(root, n)) for n in (9, 21)}
    before = open_lake(root)
    told: list[tuple[int, int]] = []
    made = compact.compact(lake, SECOND, progress=lambda done, of: told.append((done, of)))
    assert told == [(1, 1)]
    after = open_lake(root)
    assert answers(after) == answers(before)
    assert {n: answers(open_lake(root, n)) for n in pinned} == pinned
    of_first_day = [o for o in after.objects if o.hour_us < SECOND]
    assert [(o.table, o.hours) for o in of_first_day] == [
        (name, 24) for name in sorted(world_tables(long_world))
    ]
    assert [o for o in after.objects if o.hour_us >= SECOND] == [
        o for o in before.objects if o.hour_us >= SECOND
    ]
    assert (made.joined, made.removed) == (6, 6 * 16)
    report = verify(str(root))
    assert report.findings == []
    assert report.events == verify(str(root)).events > 0


def test_books_come_from_joined_hours(lake: LocalStore, long_world: World) -> None:
    moments = range(START, long_world.end_us, 977_000_000)
    told = [(m.ticker, at) for m in long_world.markets for at in moments]
    compact.compact(lake, SECOND, most_bytes=8_000)
    after = open_lake(lake.location)
    shown = 0
    for ticker, at in told:
        truth = long_world.book_at(ticker, at)
        if truth is None:
            continue
        shown += 1
        seen = after.book(ticker, at)
        assert seen.market_seq == truth[1]
        assert (seen.yes_bids, seen.no_bids) == tuple(as_levels(truth[2], s) for s in (0, 1))
    assert shown > 50


def test_run_again_it_changes_nothing(lake: LocalStore) -> None:
    root = Path(lake.location)
    compact.compact(lake, SECOND)
    before = tree(root)
    again = compact.compact(lake, SECOND)
    assert (again.joined, again.removed, again.commit.changed) == (0, 0, False)
    assert tree(root) == before
    assert compact.plan(again.commit.version, SECOND) == []


@pytest.mark.parametrize("lives", [0, 5, 40, 79, 83, 88, 91, 92, 120])
def test_wherever_it_dies_the_next_run_ends_in_the_same_lake(
    long_world: World, tmp_path: Path, lives: int
) -> None:
    """And between death and the next run every version gives its rows."""
    whole, dying = tmp_path / "whole", tmp_path / "dying"
    for root in (whole, dying):
        write_world(root, long_world)
        write.commit_version(LocalStore(root), [], watermark_us=SECOND + 10 * DAY)
    compact.compact(LocalStore(whole), SECOND)
    expected = answers(open_lake(dying))
    with contextlib.suppress(StorageError):  # the last ones live to the end
        compact.compact(Dying(dying, lives), SECOND)
    for version in (20, None):
        assert answers(open_lake(dying, version)) == expected
    compact.compact(LocalStore(dying), SECOND)
    assert tree(dying) == tree(whole)


def test_a_day_is_divided_where_its_hours_are_large(lake: LocalStore) -> None:
    """Every table alike, so that a stretch of time is one object of each."""
    head = write.load_head(lake)
    assert head is not None
    hours = {
        most: {s.hours for s in compact.plan(head.version, SECOND, most)}
        for most in (1 << 30, 8_000, 1)
    }
    assert hours[1 << 30] == {24}
    assert hours[8_000] < {12, 8, 6, 4, 3, 2}
    assert len(hours[8_000]) == 1
    assert hours[1] == set(), "not even two hours fit"
    compact.compact(lake, SECOND, most_bytes=8_000)
    lengths = {o.hours for o in open_lake(lake.location).objects if o.hour_us < SECOND}
    assert lengths == hours[8_000]
    assert verify(str(lake.location)).findings == []


def test_young_days_are_refused_and_a_week_is_left_by_itself(lake: LocalStore) -> None:
    """The deduplicator still looks at the newest objects, and late rows come mostly then."""
    head = write.load_head(lake)
    assert head is not None
    with pytest.raises(LakeError, match=r"only what is before .* can be joined"):
        compact.plan(head.version, SECOND + 8 * DAY)
    assert {s.hour_us // DAY for s in compact.plan(head.version)} == {START // DAY, SECOND // DAY}


class Undeleting(LocalStore):
    """Deleting is not granted, as to the services."""

    def delete(self, keys: object) -> None:
        raise StorageError(f"{keys}: AccessDenied")


def test_who_may_not_delete_is_told_before_anything_changes(lake: LocalStore) -> None:
    before = tree(Path(lake.location))
    with pytest.raises(StorageError, match=r"s3:DeleteObject|nothing was changed"):
        compact.compact(Undeleting(Path(lake.location)), SECOND)
    assert tree(Path(lake.location)) == before


def test_an_hour_that_a_late_writer_put_back_is_taken_away_again(lake: LocalStore) -> None:
    """It had not seen the version that joined it. Its bytes are kept all the same."""
    compact.compact(lake, SECOND)
    key = paths.object_key("trades", START)
    lake.put(key, b"bytes of somebody who came late")
    assert verify(lake.location).findings, "the control: it is told"
    made = compact.compact(lake, SECOND)
    assert (made.joined, made.removed) == (0, 1)
    assert lake.size(key) is None
    assert verify(lake.location).findings == []
    kept = [o for o in lake.list("superseded/") if lake.get(o.key).startswith(b"bytes of")]
    assert len(kept) == 1


def test_an_export_that_a_compaction_overtakes_is_not_lost(lake: LocalStore) -> None:
    """The hour's object was written, the compaction came, then its version: its rows are there."""
    before = open_lake(lake.location)
    rows = before.rows("trades", None, START, START + 6 * paths.US_PER_HOUR, None)
    hour_us = paths.hour_of(tables.times_us(rows["exchange_ts"])[0].item())
    mine = before.rows("trades", None, hour_us, hour_us + paths.US_PER_HOUR, None)
    fewer = write.write_hour(
        lake, "trades", hour_us, mine.slice(1), watermark_us=before.watermark_us
    )
    compact.compact(lake, SECOND)
    assert (
        open_lake(lake.location).trades(on_gap="ignore").num_rows
        == before.trades(on_gap="ignore").num_rows
    )
    commit = write.commit_version(lake, [fewer], watermark_us=before.watermark_us)
    assert commit.changed
    after = open_lake(lake.location)
    assert after.rows("trades", None, hour_us, hour_us + paths.US_PER_HOUR, None).equals(
        mine.slice(1)
    )
    assert after.trades(on_gap="ignore").num_rows == before.trades(on_gap="ignore").num_rows - 1
    assert verify(lake.location).findings == []
    assert answers(open_lake(lake.location, before.version)) == answers(before)


def test_an_object_that_was_altered_is_not_joined(lake: LocalStore) -> None:
    root = Path(lake.location)
    key = paths.object_key("orderbook_deltas", START)
    body = bytearray((root / key).read_bytes())
    body[50] ^= 1
    (root / key).write_bytes(body)
    with pytest.raises(LakeError, match="altered"):
        compact.compact(lake, SECOND)


def test_no_lake_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LakeError, match="holds no lake"):
        compact.compact(LocalStore(tmp_path))


# -- what the verifier finds in joined objects -----------------------------------------------------


def forged(root: Path, table: str, change: Callable[[pa.Table], pa.Table]) -> str:
    """A joined object written anew by our own writer with other rows, every list made to fit."""
    store = LocalStore(root)
    record = next(o for o in open_lake(root).objects if o.table == table and o.hours > 1)
    rows = change(pa.concat_tables(ObjectReader(store).groups(record)))
    file = io.BytesIO()
    encode_into(file, TABLES[table], record.hour_us, rows, record.hours, hours_of(store, record))
    tamper.replace_bytes(root, record.key, file.getvalue(), 3)
    return record.key


def test_a_row_less_in_a_joined_object_is_found(lake: LocalStore) -> None:
    """Trades have no numbers that would show it; the hour's own object has."""
    compact.compact(lake, SECOND)
    root = Path(lake.location)
    key = forged(root, "trades", lambda rows: rows.slice(1))
    found = verify(str(root)).findings
    assert [f.key for f in found] == [key]
    assert "whose own object had" in found[0].problem


def test_a_joined_object_without_its_hours_is_found(lake: LocalStore) -> None:
    """Readers of older versions need them, and nothing else proves how many rows there were."""
    compact.compact(lake, SECOND)
    record = next(o for o in open_lake(lake.location).objects if o.hours > 1)
    part = next(p for p in hours_of(lake, record) if p.rows)
    kept = Path(lake.location) / paths.superseded_key(part.sha256)
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "does not hold the bytes" in str(verify(lake.location).findings)
    kept.unlink()
    assert "whose bytes are not in" in str(verify(lake.location).findings)
    kept.write_bytes(whole)
    assert verify(lake.location).findings == []


def test_a_list_with_an_hour_twice_is_found(lake: LocalStore) -> None:
    head = write.load_head(lake)
    assert head is not None
    hour = next(o for o in head.version.objects if o.table == "trades")
    compact.compact(lake, SECOND)
    root = Path(lake.location)
    lake.put(hour.key, lake.get(paths.superseded_key(hour.sha256)))

    def add(body: dict[str, Any]) -> None:
        body["objects"] = sorted([*body["objects"], asdict(hour)], key=lambda e: str(e["key"]))

    tamper.edit_version(tamper.newest(root), add, sealed=True)
    assert "hold the same hours" in str(verify(str(root)).findings)
    with pytest.raises(LakeError, match="hold the same hours"):
        open_lake(root)


def test_a_joined_object_that_is_not_listed_is_found(
    lake: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that died before its version: the next one goes on."""
    assert verify(lake.location).findings == []

    def killed(*_: Any, **__: Any) -> None:
        raise StorageError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(compact, "commit_version", killed)
        with pytest.raises(StorageError, match="killed"):
            compact.compact(lake, SECOND)
    assert any(o.key.endswith("-24h.parquet") for o in lake.list("parquet/"))
    assert "does not list it" in str(verify(lake.location).findings)
    compact.compact(lake, SECOND)
    assert verify(lake.location).findings == []
