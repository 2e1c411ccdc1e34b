"""Reading single objects."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kalshilake import objects, open_lake, write
from kalshilake.objects import Kept, ObjectReader
from kalshilake.store import LocalStore
from kalshilake.tables import times_us
from marketdata.errors import LakeError
from tests import lake_tamper as tamper
from tests.lake_receipts import heard
from tests.lake_world import START, World, make_world


class Counting(LocalStore):
    """Counts what is opened."""

    opened = 0

    def open(self, key: str):
        self.opened += 1
        return super().open(key)


def test_only_row_groups_that_can_hold_the_answer_are_read(
    pristine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A day of one market must not cost a day of all markets."""
    lake = open_lake(pristine)
    record = max(lake.records("orderbook_deltas"), key=lambda o: o.row_groups)
    assert record.row_groups >= 4
    read: list[int] = []
    real = objects.pq.ParquetFile.read_row_groups

    def spy(self, groups, **kwargs):
        read.extend(groups)
        return real(self, groups, **kwargs)

    monkeypatch.setattr(objects.pq.ParquetFile, "read_row_groups", spy)
    reader = ObjectReader(LocalStore(pristine))
    whole = reader.read(record)
    assert len(read) == record.row_groups
    for market in sorted(set(whole["market_ticker"].to_pylist())):
        read.clear()
        mine = reader.read(record, markets=[market], columns=["market_seq"])
        want = whole.filter(objects.pc.equal(whole["market_ticker"], market))
        assert mine["market_seq"].to_pylist() == want["market_seq"].to_pylist()
        assert len(read) < record.row_groups
    store = Counting(pristine)
    assert ObjectReader(store).read(record, markets=["A"]).num_rows == 0
    assert ObjectReader(store).read(record, to_us=START).num_rows == 0
    assert store.opened == 0


def test_rot_in_the_body_is_refused_or_changes_no_value(pristine: Path, tmp_path: Path) -> None:
    """The footer is right: the pages' own checksums must tell, no wrong row may come out."""
    key = tamper.keys_of(pristine, "orderbook_deltas")[0]
    root = Path(shutil.copytree(pristine, tmp_path / "lake"))
    record = next(o for o in open_lake(root).objects if o.key == key)
    want = ObjectReader(LocalStore(root)).read(record)
    good = (root / key).read_bytes()
    refused = 0
    for at in range(4, record.bytes - record.footer_bytes, 23):
        tamper.flip(root / key, at)
        try:
            assert ObjectReader(LocalStore(root)).read(record).equals(want)
        except LakeError as e:
            refused += key in str(e)
        (root / key).write_bytes(good)
    assert refused > 50


@pytest.mark.parametrize("at", [-3, -30])
def test_a_damaged_footer_and_an_absent_object_are_refused_by_name(
    lake_copy: Path, at: int
) -> None:
    """Statistics decide what is read, so they are checked before they are believed."""
    key = tamper.keys_of(lake_copy, "trades")[0]
    tamper.flip(lake_copy / key, at)
    with pytest.raises(LakeError, match=key):
        open_lake(lake_copy).trades(on_gap="ignore")
    (lake_copy / key).unlink()
    with pytest.raises(LakeError, match=key):
        open_lake(lake_copy).trades(on_gap="ignore")


def test_a_pinned_version_still_reads_what_a_later_export_replaced(
    lake_copy: Path, world: World
) -> None:
    """INV L-14: the very bytes of the version, before and after the commit of the next."""
    before = open_lake(lake_copy)
    rows = before.trades(on_gap="ignore")
    store = LocalStore(lake_copy)
    hour = before.records("trades")[0].hour_us
    kept = rows.filter(objects.pc.less(rows["exchange_ts"].cast("int64"), hour + 3_600_000_000))
    record = write.write_hour(store, "trades", hour, kept.slice(2), watermark_us=world.end_us)
    assert open_lake(lake_copy).trades(on_gap="ignore").equals(rows)  # written, not committed
    write.commit_version(store, [record], watermark_us=world.end_us)
    assert open_lake(lake_copy).trades(on_gap="ignore").num_rows == rows.num_rows - 2
    assert open_lake(lake_copy, version=before.version).trades(on_gap="ignore").equals(rows)
    assert before.trades(on_gap="ignore").equals(rows)


def test_footers_are_kept_up_to_a_limit(pristine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Years of hours must not stay in memory."""
    monkeypatch.setattr(objects, "FOOTERS_KEPT", 3)
    lake = open_lake(pristine)
    for record in lake.objects:
        lake.reader.pinned_key(record)
    assert len(lake.reader._footers) == 3
    assert lake.deltas(on_gap="ignore").num_rows > 0


def test_row_groups_are_read_once_and_kept_up_to_a_limit(
    pristine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ladder every second of an hour must not decode the hour's keyframes every second."""
    records = [o for o in open_lake(pristine).objects if o.rows][:3]
    sizes = [ObjectReader(LocalStore(pristine)).read(o).nbytes for o in records]
    monkeypatch.setattr(objects, "ROWS_KEPT_BYTES", sum(sizes[1:]))
    store = Counting(pristine)
    reader = ObjectReader(store)
    for record in (*records, *records[1:], *records[1:]):
        reader.read(record)
    assert store.opened == 3
    assert reader._rows.weight == sum(sizes[1:])
    reader.read(records[0])
    assert store.opened == 4
    assert reader._rows.weight <= sum(sizes[1:])


def test_what_is_large_is_not_kept(pristine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who reads a day is not one who looks at the same book again."""
    monkeypatch.setattr(objects, "KEPT_BYTES", 10)
    store = Counting(pristine)
    reader = ObjectReader(store)
    record = next(o for o in open_lake(pristine).objects if o.rows)
    assert reader.read(record).equals(reader.read(record))
    assert store.opened == 2
    assert len(reader._rows) == 0


def test_other_columns_and_other_groups_are_other_answers(pristine: Path) -> None:
    """What is kept of one question must not answer another one."""
    record = max(open_lake(pristine).records("orderbook_deltas"), key=lambda o: o.row_groups)
    fresh = ObjectReader(LocalStore(pristine)).read
    reader = ObjectReader(LocalStore(pristine))
    markets = sorted(set(fresh(record)["market_ticker"].to_pylist()))
    questions = [
        {"columns": columns, "markets": chosen, "to_us": to_us}
        for columns in (None, ["price"], ["delta", "price"])
        for chosen in (None, markets[:1], markets[1:2], markets)
        for to_us in (objects.MAX_US, (record.min_us + record.max_us) // 2)
    ]
    for question in questions * 2:
        assert reader.read(record, **question).equals(fresh(record, **question)), question


def test_a_value_that_replaces_another_one_weighs_once() -> None:
    """Or the limit would be reached by one key alone."""
    kept = Kept[int](10, lambda n: n)
    for n in (4, 6, 5):
        kept.put("a", n)
    assert (kept.weight, len(kept), kept.get("a")) == (5, 1, 5)
    kept.put("b", 5)
    assert kept.get("a") == 5  # used now: "b" is the older one
    kept.put("c", 1)
    assert (kept.get("b"), kept.get("a"), kept.get("c"), kept.weight) == (None, 5, 1, 6)


def test_what_is_kept_may_be_used_by_many_threads() -> None:
    """One thread puts a thing away while another one, which had it, makes it the newest."""
    kept = Kept[int](2)

    def use(first: int) -> None:
        for n in range(3_000):
            kept.get(str((first + n) % 7))
            kept.put(str((first + n) % 7), n)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(use, range(4)))
    assert (len(kept), kept.weight) == (2, 2)


def test_receipts_are_searched_in_every_object_and_only_those_that_can_hold_one_are_read(
    tmp_path: Path,
) -> None:
    """An object is named by its other clock; its footer tells."""
    world = make_world(23, hours=3, events=150)
    heard(tmp_path, world)
    store = Counting(tmp_path)
    reader, lake = ObjectReader(store), open_lake(tmp_path)
    records = [o for o in lake.records("trades") if o.rows]
    spans = reader.receipts(records)
    opened = store.opened
    assert opened == len(records)
    reader.learn_receipts(records)
    assert store.opened == opened
    for record, (first, last) in zip(records, spans, strict=True):
        whole = reader.read(record)
        times = times_us(whole["received_at"])
        assert (first, last) == (times.min(), times.max())
        opened = store.opened
        assert reader.read(record, received=(last + 1, 1 << 60)).num_rows == 0
        assert reader.read(record, received=(0, first)).num_rows == 0
        assert store.opened == opened
        a, b = sorted((int(times[0]), int(times[-1])))
        mine = whole.filter(objects.pa.array((times >= a) & (times < b)))
        assert reader.read(record, received=(a, b), columns=["trade_id"]).equals(
            mine.select(["trade_id"])
        )


def test_a_row_group_that_says_nothing_of_receipts_is_read(
    pristine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Statistics may be absent; rows may not."""
    reader = ObjectReader(LocalStore(pristine))
    record = next(o for o in open_lake(pristine).records("orderbook_deltas") if o.rows)
    real = objects._parse_footer

    def silent(record, tail):
        footer = real(record, tail)
        groups = [g._replace(received_low=-objects.MAX_US, received_high=objects.MAX_US)
                  for g in footer.groups]  # fmt: skip
        return objects._Footer(footer.metadata, tuple(groups))

    want = reader.read(record)
    times = times_us(want["received_at"])
    a, b = sorted(times.tolist())[3], sorted(times.tolist())[-3]
    monkeypatch.setattr(objects, "_parse_footer", silent)
    got = ObjectReader(LocalStore(pristine)).read(record, received=(a, b))
    assert got.equals(want.filter(objects.pa.array((times >= a) & (times < b))))
    assert 0 < got.num_rows < want.num_rows
