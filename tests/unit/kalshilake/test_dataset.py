"""A table of a pinned version as a pyarrow Dataset."""

from __future__ import annotations

from pathlib import Path

import pyarrow.compute as pc
import pytest

from kalshilake import open_lake
from kalshilake.dataset import dataset
from kalshilake.schema import TABLES
from kalshilake.store import LocalStore
from kalshilake.write import write_hour
from marketdata.errors import LakeError
from tests import lake_tamper as tamper
from tests.lake_world import World


@pytest.mark.parametrize("table", sorted(TABLES))
def test_its_rows_and_types_are_those_of_the_lake(pristine: Path, table: str) -> None:
    """Decimals too, which Parquet holds as integers."""
    lake = open_lake(pristine)
    rows = dataset(lake, table).to_table()
    assert rows.schema.equals(TABLES[table].schema)
    want = lake.rows(table, None, 0, 1 << 60, None)
    keys = [(c, "ascending") for c in TABLES[table].key]
    assert rows.sort_by(keys).to_pylist() == want.to_pylist()


def test_a_filter_leaves_out_row_groups(pristine: Path, world: World) -> None:
    """Counted by what is fetched of the objects."""
    lake = open_lake(pristine)
    read = {"bytes": 0}

    class Counting(LocalStore):
        def open(self, key: str):
            inner = super().open(key)
            body = memoryview(inner.read())

            class File:
                closed, at = False, 0

                def read(self, n=-1):
                    n = len(body) - self.at if n < 0 else n
                    out = bytes(body[self.at : self.at + n])
                    self.at += len(out)
                    read["bytes"] += len(out)
                    return out

                def seek(self, to, whence=0):
                    self.at = to + (0, self.at, len(body))[whence]
                    return self.at

                def tell(self):
                    return self.at

                def close(self):
                    self.closed = True

                def readable(self):
                    return True

                def seekable(self):
                    return True

                def writable(self):
                    return False

            return tamper.pa.PythonFile(File(), mode="r")

    lake.reader = type(lake.reader)(Counting(pristine))
    found = dataset(lake, "orderbook_deltas")
    everything = found.to_table()
    whole, read["bytes"] = read["bytes"], 0
    ticker = world.markets[0].ticker
    mine = found.to_table(columns=["price"], filter=pc.field("market_ticker") == ticker)
    want = everything.filter(pc.equal(everything["market_ticker"], ticker))
    assert mine["price"].to_pylist() == want["price"].to_pylist()
    assert 0 < read["bytes"] < whole


def test_an_object_that_was_replaced_is_read_as_it_was_and_one_that_rotted_is_refused(
    lake_copy: Path, world: World
) -> None:
    """L-44."""
    before = open_lake(lake_copy)
    found, rows = dataset(before, "trades"), before.rows("trades", None, 0, 1 << 60, None)
    hour = before.records("trades")[0].hour_us
    kept = rows.filter(pc.less(rows["exchange_ts"].cast("int64"), hour + 3_600_000_000))
    write_hour(LocalStore(lake_copy), "trades", hour, kept.slice(2), watermark_us=world.end_us)
    assert found.to_table().num_rows == rows.num_rows
    (lake_copy / before.records("trades")[1].key).unlink()
    with pytest.raises(LakeError, match="absent or altered"):
        found.to_table()
    with pytest.raises(LakeError, match="no table"):
        dataset(before, "nope")


def test_a_version_is_only_read(pristine: Path) -> None:
    """Whatever pyarrow is asked for."""
    system = dataset(open_lake(pristine), "trades").filesystem
    for wrong in (
        lambda: system.delete_file("a"),
        lambda: system.open_output_stream("a"),
        lambda: system.create_dir("a"),
        lambda: system.move("a", "b"),
    ):
        with pytest.raises(NotImplementedError, match="only read"):
            wrong()
