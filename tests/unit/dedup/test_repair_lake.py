"""What the lake lost is found, and made again only if it has the same bytes."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from dedup.repair_lake import Noted, listed_again, lost, record_of, stored_body
from kalshilake import compact, paths
from kalshilake.store import LocalStore
from kalshilake.tables import records_table
from kalshilake.write import commit_version, read_hour_record, write_hour
from marketdata.errors import LakeError

HOUR = 1_771_945_200_000_000


def market_rows(hour_us: int) -> pa.Table:
    """Rows of one small object."""
    return records_table("markets", [{"market_ticker": "A", "first_seen": hour_us}])


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path)


def written(store: LocalStore, hour_us: int = HOUR) -> Noted:
    """One object of a lake, as production notes it."""
    record = write_hour(store, "markets", hour_us, market_rows(hour_us), watermark_us=5)
    assert record == record_of("markets", hour_us, market_rows(hour_us))
    return Noted(record.key, "markets", hour_us, record.bytes, record.sha256, 5, record.rows)


def test_a_whole_lake_has_lost_nothing(store: LocalStore) -> None:
    """Object and commit record are there."""
    found = written(store)
    assert lost(store, [found]) == []
    assert [r.key for r in listed_again(store, [found]) or []] == [found.key]


def test_object_record_or_length_tell_a_loss(store: LocalStore, tmp_path: Path) -> None:
    """Each alone."""
    one, two, three = (written(store, HOUR + n * paths.US_PER_HOUR) for n in range(3))
    (tmp_path / one.key).unlink()
    (tmp_path / paths.hour_manifest_key("markets", two.hour_us)).unlink()
    (tmp_path / three.key).write_bytes(b"cut")
    four = written(store, HOUR + 3 * paths.US_PER_HOUR)
    assert lost(store, [one, two, three, four]) == [one, two, three]


def test_no_list_of_other_bytes(store: LocalStore, tmp_path: Path) -> None:
    """A record of other bytes than were noted, or none, makes no list."""
    found = written(store)
    other = Noted(found.key, "markets", HOUR, found.n_bytes, "0" * 64, 5, found.n_rows)
    assert listed_again(store, [other]) is None
    (tmp_path / paths.hour_manifest_key("markets", HOUR)).write_bytes(b"{")
    assert listed_again(store, [found]) is None


def test_an_hour_that_was_joined_with_others_is_not_lost(store: LocalStore, tmp_path: Path) -> None:
    """Its bytes lie elsewhere then (kalshilake.compact); where they do not, it is lost indeed."""
    day = HOUR // compact.US_PER_DAY * compact.US_PER_DAY
    items = [written(store, day + n * paths.US_PER_HOUR) for n in range(3)]
    records = [r for n in range(3) if (r := read_hour_record(store, "markets", items[n].hour_us))]
    commit_version(store, records, watermark_us=day + 9 * compact.US_PER_DAY)
    bodies = [store.get(item.key) for item in items]
    assert compact.compact(store, day + compact.US_PER_DAY).removed == 3
    assert lost(store, items) == []
    assert [stored_body(store, item) for item in items] == bodies
    assert [r.key for r in listed_again(store, items) or []] == [item.key for item in items]
    (tmp_path / paths.superseded_key(items[1].sha256)).unlink()
    assert lost(store, items) == [items[1]]
    with pytest.raises(LakeError):
        stored_body(store, items[1])
    (tmp_path / paths.object_key("markets", day, 24)).unlink()
    assert lost(store, items) == items, "a copy of former bytes alone is no object of the lake"
