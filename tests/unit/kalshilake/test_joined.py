"""Objects of several hours: the rows of their hours, no others, and always the same bytes."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from kalshilake import encode, joined, paths, write
from kalshilake.manifest import ObjectRecord
from kalshilake.objects import ObjectReader
from kalshilake.schema import TABLES
from kalshilake.store import Body, LocalStore, pieces
from kalshilake.tables import times_us
from marketdata.errors import LakeError
from tests.lake_deaths import tree
from tests.lake_rows import HOUR, delta_rows

SPEC = TABLES["orderbook_deltas"]
FIRST = HOUR // (12 * paths.US_PER_HOUR) * (12 * paths.US_PER_HOUR)


def hour_objects(store: LocalStore, rows: list[int]) -> list[ObjectRecord]:
    """An object for each hour from FIRST on, kept under superseded/, too."""
    made = []
    for n, count in enumerate(rows):
        hour_us = FIRST + n * paths.US_PER_HOUR
        table = delta_rows(count, hour_us=hour_us)
        made.append(write.write_hour(store, SPEC.name, hour_us, table, watermark_us=0))
        joined.keep(store, made[-1].key, made[-1].sha256)
    return made


def join(store: LocalStore, parts: list[ObjectRecord], hours: int = 4) -> ObjectRecord:
    return joined.write_joined(store, SPEC.name, FIRST, hours, parts, watermark_us=9)


def all_rows(store: LocalStore, records: list[ObjectRecord]) -> pa.Table:
    reader = ObjectReader(store)
    return pa.concat_tables([reader.read(record) for record in records])


@pytest.mark.parametrize("group", [7, 64, 131_072])
def test_the_rows_are_those_of_the_hours_in_the_order_of_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: int
) -> None:
    """However large the row groups are, in which the hours' objects are read."""
    monkeypatch.setattr(encode, "ROW_GROUP_ROWS", group)
    store = LocalStore(tmp_path)
    parts = hour_objects(store, [200, 0, 31, 500])
    record = join(store, parts)
    assert record.key.endswith("-04h.parquet")
    assert (record.rows, record.hours, record.end_us - record.hour_us) == (
        731,
        4,
        4 * 3_600_000_000,
    )
    keys = [(name, "ascending") for name in SPEC.key]
    rows = all_rows(store, [record])
    assert rows.equals(all_rows(store, parts).sort_by(keys).combine_chunks())
    assert joined.hours_of(store, record) == parts
    assert all(
        a < b for a, b in pairwise(zip(*(rows[k].to_pylist() for k in SPEC.key), strict=True))
    )


def test_joined_again_the_bytes_are_the_same_and_nothing_is_written(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    parts = hour_objects(store, [50, 60])
    one = join(store, parts)
    before = tree(tmp_path)
    assert join(store, parts[::-1]) == one
    assert tree(tmp_path) == before


def test_a_part_whose_bytes_are_gone_is_no_part(tmp_path: Path) -> None:
    """Neither under its name nor kept: a joined object without its rows would be a lie."""
    store = LocalStore(tmp_path)
    parts = hour_objects(store, [50, 60])
    (tmp_path / parts[1].key).unlink()
    (tmp_path / paths.superseded_key(parts[1].sha256)).unlink()
    with pytest.raises(LakeError, match="absent or altered"):
        join(store, parts)


def test_rows_that_go_missing_on_the_way_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control of the count: a merge that loses the last part of a market."""
    store = LocalStore(tmp_path)
    parts = hour_objects(store, [50, 60])
    real = joined.in_market_order
    monkeypatch.setattr(joined, "in_market_order", lambda *a: list(real(*a))[:-1])
    with pytest.raises(LakeError, match="are not those of its hours"):
        join(store, parts)
    assert not (tmp_path / paths.object_key(SPEC.name, FIRST, 4)).exists()


def test_hours_that_are_no_part_of_a_day_are_refused(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    parts = hour_objects(store, [5])
    for hours, at in ((5, FIRST), (4, FIRST + paths.US_PER_HOUR)):
        with pytest.raises(LakeError, match="no part of a day"):
            joined.write_joined(store, SPEC.name, at, hours, parts, watermark_us=0)


def test_altered_bytes_are_not_kept_under_the_name_of_others(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    record = write.write_hour(store, SPEC.name, FIRST, delta_rows(9, hour_us=FIRST), watermark_us=0)
    body = (tmp_path / record.key).read_bytes()
    (tmp_path / record.key).write_bytes(body[:-1] + b"X")
    with pytest.raises(LakeError, match="altered since it was listed"):
        joined.keep(store, record.key, record.sha256)


class Forgetful(LocalStore):
    """Loses a bit of what is kept."""

    def put(self, key: str, body: Body) -> None:
        if key.startswith("superseded/"):
            body = b"".join(pieces(body))[:-1] + b"X"
        super().put(key, body)


def test_kept_bytes_are_read_back(tmp_path: Path) -> None:
    """Before anything takes their place."""
    store = Forgetful(tmp_path)
    record = write.write_hour(store, SPEC.name, FIRST, delta_rows(9, hour_us=FIRST), watermark_us=0)
    with pytest.raises(LakeError, match="gave back other bytes"):
        joined.keep(store, record.key, record.sha256)


def test_a_damaged_copy_is_replaced_by_a_whole_one(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    record = write.write_hour(store, SPEC.name, FIRST, delta_rows(9, hour_us=FIRST), watermark_us=0)
    kept = tmp_path / paths.superseded_key(record.sha256)
    kept.parent.mkdir()
    kept.write_bytes(b"torn")
    joined.keep(store, record.key, record.sha256)
    assert kept.read_bytes() == (tmp_path / record.key).read_bytes()


# -- an hour that changes afterwards ---------------------------------------------------------------


@pytest.fixture
def lake(tmp_path: Path) -> tuple[LocalStore, list[ObjectRecord], ObjectRecord]:
    """Four hours, joined and listed; their own objects are gone."""
    store = LocalStore(tmp_path)
    parts = hour_objects(store, [50, 60, 70, 80])
    write.commit_version(store, parts, watermark_us=5)
    record = join(store, parts)
    write.commit_version(store, [record], watermark_us=5, joins=parts)
    store.delete([part.key for part in parts])
    return store, parts, record


def test_a_changed_hour_changes_the_joined_object_and_nothing_beside_it(lake) -> None:
    """Engines that read all objects of a day must not find the hour twice."""
    store, parts, record = lake
    hour_us = parts[2].hour_us
    late = delta_rows(75, hour_us=hour_us)
    made = write.write_hour(store, SPEC.name, hour_us, late, watermark_us=7)
    assert store.size(made.key) is None
    commit = write.commit_version(store, [made], watermark_us=7)
    (listed,) = commit.version.objects
    assert (listed.key, listed.rows) == (record.key, record.rows + 5)
    assert joined.hours_of(store, listed) == [*parts[:2], made, parts[3]]
    rows = all_rows(store, [listed])
    times = times_us(rows["exchange_ts"])
    inside = rows.filter(pa.array((times >= hour_us) & (times < hour_us + paths.US_PER_HOUR)))
    assert inside.equals(ObjectReader(store).read(made))
    assert store.get(paths.superseded_key(record.sha256))  # who pinned the version before


def test_an_hour_that_had_no_object_comes_into_the_joined_one(lake) -> None:
    store, parts, record = lake
    write.commit_version(store, [], watermark_us=6)
    three = joined.write_joined(store, SPEC.name, FIRST, 4, parts[:3], watermark_us=6)
    write.commit_version(store, [three], watermark_us=6)
    table = delta_rows(80, hour_us=parts[3].hour_us)
    late = write.write_hour(store, SPEC.name, parts[3].hour_us, table, watermark_us=7)
    commit = write.commit_version(store, [late], watermark_us=7)
    assert commit.version.objects == (record,)


def test_the_same_hour_again_changes_nothing(lake) -> None:
    store, parts, _ = lake
    head = write.load_head(store)
    table = delta_rows(60, hour_us=parts[1].hour_us)
    again = write.write_hour(store, SPEC.name, parts[1].hour_us, table, watermark_us=0)
    assert again == parts[1]
    commit = write.commit_version(store, [again], watermark_us=5)
    assert not commit.changed
    assert head is not None
    assert commit.sha256 == head.sha256


def test_a_joined_object_that_a_dead_writer_left_behind_is_put_right(lake) -> None:
    """It died between the object and the version; what it wrote is not wanted any more."""
    store, parts, record = lake
    hour_us = parts[2].hour_us
    late = write.write_hour(
        store, SPEC.name, hour_us, delta_rows(75, hour_us=hour_us), watermark_us=7
    )
    joined.absorbed(store, record, [late], 7)  # and no version
    assert joined.stored_sha256(store, record.key) != record.sha256
    was = write.write_hour(
        store, SPEC.name, hour_us, delta_rows(70, hour_us=hour_us), watermark_us=7
    )
    assert not write.commit_version(store, [was], watermark_us=5).changed
    assert joined.stored_sha256(store, record.key) == record.sha256


def test_hours_that_changed_while_they_were_joined_are_not_overwritten(tmp_path: Path) -> None:
    """A deduplicator exported one of them meanwhile: its rows would leave the newest list."""
    store = LocalStore(tmp_path)
    parts = hour_objects(store, [50, 60])
    write.commit_version(store, parts, watermark_us=5)
    record = join(store, parts, hours=2)
    newer = write.write_hour(store, SPEC.name, FIRST, delta_rows(55, hour_us=FIRST), watermark_us=6)
    write.commit_version(store, [newer], watermark_us=6)
    with pytest.raises(LakeError, match="changed while it was joined"):
        write.commit_version(store, [record], watermark_us=6, joins=parts)


def test_parts_come_in_the_order_of_markets_whatever_the_groups_are() -> None:
    """A market that goes on in the next row group must not be overtaken by another."""
    rng = np.random.default_rng(3)
    for _ in range(50):
        streams, wanted = [], []
        for hour in range(3):
            names = sorted(rng.choice(list("abcdef"), rng.integers(0, 12)).tolist())
            rows = pa.table({"market_ticker": names, "hour": [hour] * len(names)})
            wanted += [(name, hour) for name in names]
            cuts = sorted(rng.integers(0, len(names) + 1, 3).tolist())
            bounds = [0, *cuts, len(names)]
            streams.append([rows.slice(a, b - a) for a, b in pairwise(bounds)])
        made, last = [], ""
        for part in joined.in_market_order([iter(s) for s in streams]):
            seen = part["market_ticker"].to_pylist()
            assert min(seen) >= last, "a part begins before the end of the one before it"
            last = max(seen)
            made += list(zip(seen, part["hour"].to_pylist(), strict=True))
        # Sorted by market and stable, because the writer sorts each part by time.
        assert sorted(made) == sorted(wanted)
        of_last = [hour for name, hour in made if name == last]
        assert of_last == sorted(of_last)
