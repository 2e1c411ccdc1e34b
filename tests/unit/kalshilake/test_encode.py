"""The bytes of an object: order, form, parts, reading back."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kalshilake import encode as module
from kalshilake import paths, tables
from kalshilake.encode import encode
from kalshilake.schema import ROW_GROUP_ROWS, TABLES
from marketdata.errors import LakeError
from tests.lake_rows import HOUR, capture_deltas
from tests.lake_rows import delta_rows as rows
from tests.recorded import recorded

ROOT = Path(__file__).resolve().parents[3]
SPEC = TABLES["orderbook_deltas"]

# Run in another process, with another hash seed: the same rows must give the same bytes.
ELSEWHERE = """
import hashlib, sys
sys.path.insert(0, {root!r})
from kalshilake.encode import encode
from kalshilake.schema import TABLES
from tests.lake_rows import HOUR, delta_rows
spec = TABLES["orderbook_deltas"]
print(hashlib.sha256(encode(spec, HOUR, delta_rows({n}, shuffled=True))[0]).hexdigest())
"""


def test_equal_rows_give_equal_bytes_in_any_order_and_any_process() -> None:
    """An exporter that died and starts again must not change the archive."""
    n = 5_000
    body, record = encode(SPEC, HOUR, rows(n))
    assert encode(SPEC, HOUR, rows(n, shuffled=True))[0] == body
    halves = pa.concat_tables([rows(n).slice(n // 2), rows(n).slice(0, n // 2)])
    assert encode(SPEC, HOUR, halves)[0] == body
    there = subprocess.run(
        [sys.executable, "-c", ELSEWHERE.format(root=str(ROOT), n=n)],
        capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "77"},
    )  # fmt: skip
    assert there.stdout.strip() == hashlib.sha256(body).hexdigest()
    made = pq.read_table(pa.BufferReader(body)).column("market_ticker").to_pylist()
    assert made == sorted(made)
    assert (record.first_market, record.last_market, record.rows) == ("KX-A", "KX-C", n)


def test_the_object_has_the_documented_physical_form() -> None:
    """Other engines meet the bytes, not our reader."""
    body, _ = encode(SPEC, HOUR, rows(ROW_GROUP_ROWS + 1))
    meta = pq.ParquetFile(pa.BufferReader(body)).metadata
    sizes = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
    assert sizes == [ROW_GROUP_ROWS // 3 + 1] * 3  # three markets, each large enough to stand alone
    column = {meta.schema.column(i).name: meta.row_group(0).column(i) for i in range(11)}
    assert column["price"].physical_type == "INT32"
    assert column["delta"].physical_type == "INT64"
    assert {c.compression for c in column.values()} == {"ZSTD"}
    for packed in SPEC.delta_packed:
        assert "DELTA_BINARY_PACKED" in column[packed].encodings
    for coded in SPEC.dictionary:
        assert "RLE_DICTIONARY" in column[coded].encodings
    assert all(c.statistics.has_min_max for c in column.values())
    assert all(c.has_column_index and c.has_offset_index for c in column.values())
    assert column["market_ticker"].statistics.min == "KX-A"
    assert len(meta.row_group(0).sorting_columns) == len(SPEC.key)


def test_recorded_deltas_take_at_most_eight_and_a_half_bytes_a_row() -> None:
    """The size target of the archive, on the exchange's own data (measured: 5.5)."""
    files = sorted(recorded("ws_btc15m").glob("*.jsonl.gz"), key=lambda p: p.stat().st_size)
    path = files[len(files) // 2]
    made, names = capture_deltas(path)
    count = total = 0
    for hour in np.unique(made["exchange_us"] // paths.US_PER_HOUR):
        part = made[made["exchange_us"] // paths.US_PER_HOUR == hour]
        table = tables.deltas_table(part, names)
        total += len(encode(SPEC, int(hour) * paths.US_PER_HOUR, table)[0])
        count += len(part)
    assert count > 10_000
    assert total / count <= 8.5


@pytest.mark.parametrize("size", [7, 1_000, 2_500])
def test_parts_give_the_bytes_of_the_whole(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """A busy hour is written in parts; nobody must be able to tell."""
    monkeypatch.setattr(module, "ROW_GROUP_ROWS", 1_000)
    whole, record = encode(SPEC, HOUR, rows(4_321))
    ordered = pq.read_table(pa.BufferReader(whole)).cast(SPEC.schema)
    parts = (ordered.slice(at, size) for at in range(0, 4_321, size))
    assert encode(SPEC, HOUR, parts) == (whole, record)
    assert record.row_groups == 6  # 1,000 and 441 rows of each of three markets


def test_parts_out_of_order_are_refused() -> None:
    """Sorted inside and wrong outside would be an object whose statistics lie."""
    ordered = pq.read_table(pa.BufferReader(encode(SPEC, HOUR, rows(300))[0])).cast(SPEC.schema)
    with pytest.raises(LakeError, match="not in order"):
        encode(SPEC, HOUR, [ordered.slice(150), ordered.slice(0, 150)])


def _changed(table: pa.Table, name: str) -> pa.Table:
    """One value of one column is another one."""
    values = table.column(name).to_pylist()
    other = next(v for v in values if v != values[5])
    values[5] = other
    at = table.schema.get_field_index(name)
    return table.set_column(at, table.schema.field(name), pa.array(values, table.schema.types[at]))


def _flip(table: pa.Table) -> pa.Table:
    return _changed(table, "price")


@pytest.mark.parametrize("harm", [_flip, lambda t: t.slice(1)])
def test_an_encoder_that_writes_other_rows_is_found_out(
    monkeypatch: pytest.MonkeyPatch, harm: Callable[[pa.Table], pa.Table]
) -> None:
    """L-19: what was encoded is decoded and compared before anybody keeps it."""
    original = module._coded
    monkeypatch.setattr(module, "_coded", lambda spec, t: original(spec, harm(t) if len(t) else t))
    with pytest.raises(LakeError, match="read back"):
        encode(SPEC, HOUR, rows(300))


def test_coverage_in_parts_is_checked_as_one() -> None:
    """Two parts that overlap are no less wrong than one that does."""
    spec = TABLES["coverage"]
    base = {"market_ticker": "KX-A", "channel": "trade", "status": "complete", "reason": "",
            "sources": 1, "audits": 0, "epoch": 1}  # fmt: skip
    one = tables.records_table("coverage", [{**base, "from_ts": HOUR, "to_ts": HOUR + 9}])
    two = tables.records_table("coverage", [{**base, "from_ts": HOUR + 5, "to_ts": HOUR + 20}])
    with pytest.raises(LakeError, match="overlaps"):
        encode(spec, HOUR, [one, two])


@pytest.mark.parametrize("ticker", ["KX", "KX-{}"])
def test_text_in_runs_is_coded_as_text_that_is_looked_up(ticker: str) -> None:
    """Long runs, short ones, one value, none, nulls: the dictionary and its order are the same."""
    rng = np.random.default_rng(1)
    for length, values, run in (
        (0, 1, 1),
        (1, 1, 1),
        (5_000, 1, 1),
        (5_000, 4, 300),
        (5_000, 3, 1),
    ):
        drawn = np.repeat(rng.integers(0, values, -(-length // run)), run)[:length]
        column = pa.array([ticker.format(v) for v in drawn], pa.string())
        for each in (column, pa.array([*column.to_pylist(), None], pa.string())):
            assert module._run_coded(each).equals(each.dictionary_encode())
    late = pa.array(["KX-A"] * 2_000 + [f"KX-{n}" for n in range(2_000)])  # short behind long ones
    assert module._run_coded(late).equals(late.dictionary_encode())
