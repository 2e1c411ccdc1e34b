"""S3 as a store, against an S3 that runs in this process."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import boto3
import numpy as np
import pyarrow as pa
import pytest
from moto import mock_aws

from kalshilake import paths, tables
from kalshilake.objects import ObjectReader
from kalshilake.row_groups import row_groups
from kalshilake.s3 import S3Store
from kalshilake.store import LocalStore, StoredObject, open_store
from kalshilake.write import commit_version, load_head, write_hour
from marketdata.errors import LakeError, StorageError
from marketdata.rows import MERGED_ROW
from tests.lake_rows import HOUR


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Store]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with mock_aws():
        boto3.client("s3").create_bucket(Bucket="kalshi-data-test")
        made = open_store("s3://kalshi-data-test/some/lake/")
        assert isinstance(made, S3Store)
        yield made


def test_put_get_range_size_list_and_open_agree(store: S3Store) -> None:
    """The same contract as the directory."""
    store.put("a/c", b"0123456789")
    store.put("a/b", b"x")
    assert store.location == "s3://kalshi-data-test/some/lake"
    assert store.get("a/c") == b"0123456789"
    assert store.get_range("a/c", 3, 4) == b"3456"
    assert store.get_range("a/c", 50, 4) == b""
    assert store.get_range("a/c", 0, 0) == b""
    assert (store.size("a/c"), store.size("nope")) == (10, None)
    assert list(store.list("a/")) == [StoredObject("a/b", 1), StoredObject("a/c", 10)]
    with store.open("a/c") as f:
        f.seek(2)
        assert f.read(3) == b"234"
        f.seek(-1, 2)
        assert f.read() == b"9"


def test_a_file_is_stored_whole_wherever_it_was_read_to(
    store: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large hour is a file and never in memory; both stores take it, and its size is checked."""
    monkeypatch.setattr("kalshilake.store.PIECE_BYTES", 1_000)
    body = bytes(range(256)) * 40
    for place in (store, LocalStore(tmp_path / "lake")):
        with tempfile.TemporaryFile() as file:
            file.write(body)
            file.seek(77)
            place.put("a/b", file)
            place.put("a/c", file)
            assert place.get("a/b") == place.get("a/c") == body
            monkeypatch.setattr("kalshilake.store.MAX_OBJECT_BYTES", len(body) - 1)
            with pytest.raises(LakeError, match="over the limit"):
                place.put("a/d", file)
            monkeypatch.undo()
            monkeypatch.setattr("kalshilake.store.PIECE_BYTES", 1_000)
            assert place.size("a/d") is None


def test_an_object_that_is_replaced_under_an_open_reader_is_refused(store: S3Store) -> None:
    """Half of one object and half of another would be no object."""
    store.put("k", b"a" * 10)
    reader = store.open("k")
    store.put("k", b"b" * 10)
    with pytest.raises(LakeError, match="replaced while"):
        reader.read(5)


def test_put_if_absent_refuses_the_second_writer(store: S3Store) -> None:
    """The number of a version is given out by this call alone."""
    assert store.put_if_absent("manifest/v", b"1") is True
    assert store.put_if_absent("manifest/v", b"2") is False
    assert store.get("manifest/v") == b"1"


def test_absent_objects_and_refusals_are_told_apart(store: S3Store) -> None:
    """An absent object is final, a refusal is retried."""
    with pytest.raises(LakeError, match="nope is not in"):
        store.get("nope")
    with pytest.raises(LakeError):
        store.open("nope")
    other = S3Store("no-such-bucket", "", boto3.client("s3"))
    with pytest.raises(StorageError):
        other.put("a", b"")
    with pytest.raises(StorageError):
        list(other.list(""))
    with pytest.raises(LakeError, match="no bucket"):
        open_store("s3:///x")


def test_an_hour_and_a_version_are_written_as_to_a_directory(store: S3Store) -> None:
    """The exporter does not know which store it has."""
    hour = 485_000 * paths.US_PER_HOUR
    rows = tables.records_table(
        "markets", [{"market_ticker": "M", "first_seen": hour + 1, "title": "t"}]
    )
    record = write_hour(store, "markets", hour, rows, watermark_us=hour)
    commit = commit_version(store, [record], watermark_us=hour)
    assert commit.changed
    head = load_head(store)
    assert head is not None
    assert head.version.objects == (record,)
    with store.open(record.key) as f:
        assert isinstance(f, pa.NativeFile)


def test_one_of_many_markets_is_read_with_few_bytes_and_few_requests(
    store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies together is one request, and what nobody asked for is none."""
    monkeypatch.setattr("kalshilake.encode.row_groups", partial(row_groups, least=500))
    markets, each = 20, 2_000
    rows = np.zeros(markets * each, MERGED_ROW)
    rows["market_id"] = np.repeat(np.arange(1, markets + 1), each)
    rows["epoch"], rows["sources"] = 1, 7
    rows["market_seq"] = np.tile(np.arange(1, each + 1), markets)
    rows["exchange_us"] = HOUR + rows["market_seq"] * 1_000 + rows["market_id"]
    rows["received_ns"] = rows["exchange_us"] * 1_000
    rng = np.random.default_rng(3)
    rows["price"] = 10_000 * rng.integers(1, 99, len(rows))
    rows["delta"] = rng.integers(1, 10**6, len(rows))
    names = {n: f"KX-{n:03}" for n in range(1, markets + 1)}
    made = tables.deltas_table(rows, names)
    record = write_hour(store, "orderbook_deltas", HOUR, made, watermark_us=HOUR + 1)
    assert record.row_groups == markets
    asked: list[int] = []
    ranged = S3Store._range

    def counted(self: S3Store, key: str, offset: int, length: int, how: dict[str, str]) -> bytes:
        asked.append(length)
        return ranged(self, key, offset, length, how)

    monkeypatch.setattr(S3Store, "_range", counted)
    found = ObjectReader(store).read(record, markets=["KX-007"])
    assert found.num_rows == each
    assert sum(asked) < record.bytes / markets * 1.5 + record.footer_bytes
    assert len(asked) <= 3, "the footer, and the row group"


def test_delete_takes_away_what_is_there_and_minds_nothing_that_is_not(store: S3Store) -> None:
    """More than one request has keys for, too."""
    for n in range(1_003):
        store.put(f"a/{n:04d}", b"x")
    store.delete([*(f"a/{n:04d}" for n in range(1_001)), "a/never"])
    assert [o.key for o in store.list("a/")] == ["a/1001", "a/1002"]


def test_a_refused_delete_is_an_error(store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """S3 refuses single keys in an answer that is otherwise well."""
    store.put("a", b"x")
    refused = {"Errors": [{"Key": "some/lake/a", "Code": "AccessDenied"}]}
    monkeypatch.setattr(store._client, "delete_objects", lambda **_: refused)
    with pytest.raises(StorageError, match=r"a: .* refused: AccessDenied"):
        store.delete(["a"])
