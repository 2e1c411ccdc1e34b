"""The directory form of a store."""

from __future__ import annotations

import os
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kalshilake.store import LocalStore, StoredObject, open_store
from marketdata.errors import LakeError, StorageError


def test_put_get_range_size_list_and_open_agree(tmp_path: Path) -> None:
    """Every reader path sees the same bytes."""
    store = LocalStore(tmp_path / "lake")
    assert list(store.list("")) == []
    store.put("a/b/c.bin", b"0123456789")
    store.put("a/x", b"")
    assert store.get("a/b/c.bin") == b"0123456789"
    assert store.get_range("a/b/c.bin", 3, 4) == b"3456"
    assert store.get_range("a/b/c.bin", 8, 40) == b"89"
    assert (store.size("a/b/c.bin"), store.size("nope")) == (10, None)
    assert list(store.list("a/")) == [StoredObject("a/b/c.bin", 10), StoredObject("a/x", 0)]
    assert list(store.list("a/b/c")) == [StoredObject("a/b/c.bin", 10)]
    with store.open("a/b/c.bin") as f:
        assert f.read() == b"0123456789"
    assert store.open("a/x").read() == b""


def test_put_replaces_whole_and_a_reader_that_has_it_open_keeps_the_old(tmp_path: Path) -> None:
    """A re-export under a running read must not mix two objects."""
    store = LocalStore(tmp_path)
    store.put("k", b"old" * 1000)
    with store.open("k") as before:
        store.put("k", b"new")
        assert before.read() == b"old" * 1000
    assert store.get("k") == b"new"


def test_put_if_absent_lets_exactly_one_of_many_writers_win(tmp_path: Path) -> None:
    """Two deduplicators must never both believe that they made version 5."""
    stores = [LocalStore(tmp_path) for _ in range(16)]
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda i: stores[i].put_if_absent("manifest/v", b"%d" % i), range(16)))
    assert won.count(True) == 1
    assert stores[0].get("manifest/v") == b"%d" % won.index(True)


def test_unfinished_writes_are_no_part_of_the_store(tmp_path: Path) -> None:
    """A writer killed in mid-write leaves its bytes where no reader looks."""
    store = LocalStore(tmp_path)
    store.put("a", b"1")
    (tmp_path / ".tmp" / "999-1-1").write_bytes(b"half")
    assert [o.key for o in store.list("")] == ["a"]


def test_what_a_killed_writer_left_is_taken_away_and_nothing_of_the_living(tmp_path: Path) -> None:
    """A process killed in a write leaves up to an hour of a table behind, again at each death."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    folder = tmp_path / ".tmp"
    folder.mkdir()
    host = socket.gethostname()
    for name in (f"{host}.{gone.pid}-1-1", f"{host}.{os.getppid()}-1-1", f"other.{gone.pid}-1-1"):
        (folder / name).write_bytes(b"half")
    store = LocalStore(tmp_path)
    store.put("a", b"1")
    left = {f"{host}.{os.getppid()}-1-1", f"other.{gone.pid}-1-1"}
    assert {p.name for p in folder.iterdir()} == left
    store.put("b", b"2")
    assert [o.key for o in store.list("")] == ["a", "b"]


@pytest.mark.parametrize("key", ["", "/etc/x", "../x", "a/../b", "a//b", "a/./b", "a\\b", "a/"])
def test_keys_that_leave_the_lake_are_refused(tmp_path: Path, key: str) -> None:
    """Keys come from manifests, which are data from outside."""
    with pytest.raises(LakeError, match="not a key"):
        LocalStore(tmp_path).put(key, b"")


def test_absent_objects_are_named_with_the_place(tmp_path: Path) -> None:
    """Which file of which lake: both belong in the message."""
    store = LocalStore(tmp_path)
    store.put("folder/x", b"")
    for read in (store.get, store.open, lambda k: store.get_range(k, 0, 1)):
        for key in ("nope", "folder", "folder/x/y"):
            with pytest.raises((LakeError, StorageError), match=f"{key}.*{tmp_path.name}"):
                read(key)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_refusing_disk_is_a_storage_error(tmp_path: Path) -> None:
    """The caller retries storage errors and nothing else."""
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError):
        LocalStore(tmp_path / "lake").put("a", b"1")
    tmp_path.chmod(0o700)


def test_a_file_in_the_way_of_a_folder_is_a_storage_error(tmp_path: Path) -> None:
    """Works for root too: the place is taken by something that is not ours."""
    (tmp_path / "lake").write_text("not a directory")
    with pytest.raises(StorageError):
        LocalStore(tmp_path / "lake").put("a", b"1")


def test_open_store_takes_directories_and_refuses_other_schemes(tmp_path: Path) -> None:
    """A typing error in a scheme must not become a directory named `s4:`."""
    assert open_store(tmp_path).location == str(tmp_path)
    with pytest.raises(LakeError, match="no place"):
        open_store("s4://bucket/x")


def test_delete_takes_away_what_is_there_and_minds_nothing_that_is_not(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    for key in ("a/b", "a/c", "d"):
        store.put(key, b"x")
    store.delete(["a/b", "d", "never/there"])
    assert [o.key for o in store.list("")] == ["a/c"]
    with pytest.raises(LakeError, match="not a key inside"):
        store.delete(["../a/c"])
