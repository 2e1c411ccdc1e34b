"""Writing hours and committing versions."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kalshilake import encode, joined, paths, write
from kalshilake.schema import TABLES
from kalshilake.store import Body, LocalStore, pieces
from marketdata.errors import LakeError, StorageError
from tests.lake_deaths import Dying, tree
from tests.lake_rows import HOUR
from tests.lake_rows import delta_rows as rows

SPEC = TABLES["orderbook_deltas"]


def test_write_hour_stores_the_object_its_record_and_the_facts_of_the_merge(tmp_path: Path) -> None:
    """The record beside the object is how an exporter knows what it already did."""
    store = LocalStore(tmp_path)
    record = write.write_hour(store, SPEC.name, HOUR, rows(300), watermark_us=5, extra={"w": 1})
    body = store.get(record.key)
    assert (record.rows, record.bytes) == (300, len(body))
    assert record.sha256 == hashlib.sha256(body).hexdigest()
    assert record.footer_sha256 == hashlib.sha256(body[-record.footer_bytes :]).hexdigest()
    assert (record.first_market, record.last_market) == ("KX-A", "KX-C")
    assert (record.min_us, record.max_us) == (HOUR, HOUR + 299 * 3)
    assert write.read_hour_record(store, SPEC.name, HOUR) == record
    beside = json.loads(store.get(paths.hour_manifest_key(SPEC.name, HOUR)))
    assert (beside["watermark_us"], beside["extra"]) == (5, {"w": 1})
    assert write.read_hour_record(store, SPEC.name, HOUR + paths.US_PER_HOUR) is None


def test_an_empty_hour_is_an_object_too(tmp_path: Path) -> None:
    """Nothing happened, and the lake says so: absent would mean not exported."""
    store = LocalStore(tmp_path)
    record = write.write_hour(store, SPEC.name, HOUR, SPEC.schema.empty_table(), watermark_us=0)
    assert (record.rows, record.min_us, record.first_market) == (0, HOUR, "")
    assert pq.read_table(pa.BufferReader(store.get(record.key))).num_rows == 0


def test_an_unchanged_hour_is_not_written_again(tmp_path: Path) -> None:
    """A restarted exporter repeats its last hours; no object may change its identity."""
    store = LocalStore(tmp_path)
    record = write.write_hour(store, SPEC.name, HOUR, rows(300), watermark_us=5)
    inode = (tmp_path / record.key).stat().st_ino
    assert write.write_hour(store, SPEC.name, HOUR, rows(300), watermark_us=6) == record
    assert (tmp_path / record.key).stat().st_ino == inode
    assert not (tmp_path / "superseded").exists()


def test_a_changed_hour_keeps_the_bytes_it_replaces(tmp_path: Path) -> None:
    """A reader that pinned the older version, or a crash before the commit, still needs them."""
    store = LocalStore(tmp_path)
    first = write.write_hour(store, SPEC.name, HOUR, rows(300), watermark_us=5)
    old = store.get(first.key)
    second = write.write_hour(store, SPEC.name, HOUR, rows(330), watermark_us=6)
    assert second.sha256 != first.sha256
    assert store.get(paths.superseded_key(first.sha256)) == old


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.drop_columns(["flags"]), "has columns"),
        (lambda t: pa.concat_tables([t, t.slice(0, 1)]), "repeat a key"),
        (lambda t: pa.concat_tables([t, rows(3, hour_us=HOUR + paths.US_PER_HOUR)]), "outside"),
        (lambda t: pa.concat_tables([t, rows(3, hour_us=HOUR - 9)]), "outside"),
    ],
)
def test_rows_that_do_not_fit_the_hour_are_refused(tmp_path: Path, change, words: str) -> None:
    """Better no object than one whose name or key lies."""
    with pytest.raises(LakeError, match=words):
        write.write_hour(LocalStore(tmp_path), SPEC.name, HOUR, change(rows(30)), watermark_us=0)
    assert not list(tmp_path.iterdir())


def test_an_hour_that_is_written_by_way_of_a_file_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How much memory there was is not to be seen in a lake; the file goes with the call."""
    table = rows(3_000)
    small = LocalStore(tmp_path / "memory")
    one = write.write_hour(small, SPEC.name, HOUR, table, watermark_us=0)
    monkeypatch.setattr(encode, "SPOOLED_BYTES", 1_000)
    monkeypatch.setattr(joined, "CHECK_BYTES", 1_000)
    large = LocalStore(tmp_path / "file")
    again = [write.write_hour(large, SPEC.name, HOUR, table, watermark_us=0) for _ in range(2)]
    assert again == [one, one]
    assert one.bytes > 10_000
    assert tree(tmp_path / "memory") == tree(tmp_path / "file")


class Forgetful(LocalStore):
    """A store that loses one bit of every Parquet object on its way to the disk."""

    def put(self, key: str, body: Body) -> None:
        if key.endswith(".parquet"):
            body = b"".join(pieces(body))
            body = body[:100] + bytes([body[100] ^ 1]) + body[101:]
        super().put(key, body)


def test_a_store_that_keeps_other_bytes_than_it_was_given_is_found_out(tmp_path: Path) -> None:
    """Archives die in the copy, not in the encoder: the written object is read back."""
    with pytest.raises(LakeError, match="gave back other bytes"):
        write.write_hour(Forgetful(tmp_path), SPEC.name, HOUR, rows(300), watermark_us=0)
    assert write.load_head(LocalStore(tmp_path)) is None


def test_versions_form_a_chain_and_nothing_new_makes_no_version(tmp_path: Path) -> None:
    """The SHA-256 of the newest version fixes all the history."""
    store = LocalStore(tmp_path)
    assert write.load_head(store) is None
    one = write.write_hour(store, SPEC.name, HOUR, rows(30), watermark_us=5)
    first = write.commit_version(store, [one], watermark_us=5)
    again = write.commit_version(store, [one], watermark_us=5)
    assert (first.changed, again.changed, again.sha256) == (True, False, first.sha256)
    later = HOUR + paths.US_PER_HOUR
    two = write.write_hour(store, SPEC.name, later, rows(30, hour_us=later), watermark_us=9)
    second = write.commit_version(store, [two], watermark_us=9)
    assert second.version.previous_sha256 == first.sha256
    assert second.version.objects == (one, two)
    assert write.load_version(store, 1).version == first.version


def test_committing_an_object_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """A version must never list what a reader cannot open."""
    store = LocalStore(tmp_path)
    record = write.write_hour(store, SPEC.name, HOUR, rows(30), watermark_us=5)
    (tmp_path / record.key).unlink()
    with pytest.raises(LakeError, match="not in"):
        write.commit_version(store, [record], watermark_us=5)


def test_two_writers_that_commit_at_once_both_end_in_the_chain(tmp_path: Path) -> None:
    """A lost commit would be an hour that was written and does not exist."""
    store = LocalStore(tmp_path)
    hours = [HOUR + i * paths.US_PER_HOUR for i in range(6)]
    records = [
        write.write_hour(store, SPEC.name, h, rows(30, hour_us=h), watermark_us=5) for h in hours
    ]
    with ThreadPoolExecutor(6) as pool:
        list(
            pool.map(
                lambda r: write.commit_version(LocalStore(tmp_path), [r], watermark_us=r.hour_us),
                records,
            )
        )
    head = write.load_head(store)
    assert head is not None
    assert head.version.objects == tuple(records)
    assert head.version.watermark_us == hours[-1]
    for number in range(2, head.version.version + 1):
        before = write.load_version(store, number - 1)
        assert write.load_version(store, number).version.previous_sha256 == before.sha256


class Taken(LocalStore):
    """A store in which somebody else always wins."""

    def put_if_absent(self, key: str, body: bytes) -> bool:
        return False


def test_a_writer_that_always_loses_gives_up_with_a_reason(tmp_path: Path) -> None:
    """Bounded, as everything is."""
    record = write.write_hour(LocalStore(tmp_path), SPEC.name, HOUR, rows(3), watermark_us=5)
    with pytest.raises(LakeError, match="other writers"):
        write.commit_version(Taken(tmp_path), [record], watermark_us=5)


def test_dying_at_any_effect_and_repeating_gives_the_lake_of_an_undisturbed_writer(
    tmp_path: Path,
) -> None:
    """Any process may die at any byte; restart gives the same bytes (a re-export included)."""

    def export(store: LocalStore) -> None:
        for n in (30, 60):
            record = write.write_hour(store, SPEC.name, HOUR, rows(n), watermark_us=n)
            write.commit_version(store, [record], watermark_us=n)

    export(LocalStore(tmp_path / "whole"))
    want = list(tree(tmp_path / "whole").items())
    assert len(want) == 5  # object, record, two versions, one superseded object
    for lives in range(7):
        root = tmp_path / f"died{lives}"
        with pytest.raises(StorageError, match="killed"):
            export(Dying(root, lives))
        # What the exporter does after a restart: the step it was in, then what follows.
        head = write.load_head(LocalStore(root))
        if head is None:
            export(LocalStore(root))
        else:
            listed = {o.key: o.sha256 for o in head.version.objects}
            body = tree(root)
            for key, sha in listed.items():  # the newest version is readable before the restart
                kept = body.get(paths.superseded_key(sha), body[key])
                assert hashlib.sha256(kept).hexdigest() == sha
            record = write.write_hour(LocalStore(root), SPEC.name, HOUR, rows(60), watermark_us=60)
            write.commit_version(LocalStore(root), [record], watermark_us=60)
        assert list(tree(root).items()) == want
