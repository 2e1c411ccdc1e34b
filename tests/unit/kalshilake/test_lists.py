"""The lake's lists, as the verifier sees them."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from kalshilake.store import LocalStore
from kalshilake.verify import verify
from kalshilake.verify.lists import ENTRY, Place
from tests import lake_tamper as tamper

V1, V2 = "manifest/v0000000001.json", "manifest/v0000000002.json"


def found(root: Path) -> dict[str, str]:
    report = verify(str(root))
    return {f.key: f.problem for f in report.findings}


def test_the_fields_of_an_entry_are_those_the_writer_writes(pristine: Path) -> None:
    """Two pieces of code, one format."""
    entry = json.loads((pristine / V2).read_bytes())["objects"][0]
    assert {n: type(v) for n, v in entry.items()} == ENTRY


@pytest.mark.parametrize(
    "edit",
    [
        lambda b: b.update(watermark_us=b["watermark_us"] + 1),
        lambda b: b["objects"][3].update(rows=b["objects"][3]["rows"] + 1),
        lambda b: b["objects"].reverse(),
        lambda b: b.update(previous_sha256="ab" * 32),
    ],
)
def test_an_edited_version_is_named_by_its_seal_or_by_its_successor(lake_copy: Path, edit) -> None:
    """The newest has only its seal; older ones also the chain, even when resealed."""
    tamper.edit_version(lake_copy / V2, edit, sealed=False)
    assert V2 in found(lake_copy)
    tamper.edit_version(lake_copy / V1, edit, sealed=True)
    assert "before" in found(lake_copy)[V2] or V1 in found(lake_copy)


def test_a_missing_version_and_a_foreign_one_are_named(lake_copy: Path) -> None:
    """A hole in the chain hides what was listed there."""
    (lake_copy / V1).unlink()
    (lake_copy / "manifest" / "latest.json").write_text("{}")
    assert {V1, "manifest/latest.json"} <= set(found(lake_copy))


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"seal": 1, "objects": [{}]}', b"\xff"])
def test_a_version_that_is_none_is_named(lake_copy: Path, body: bytes) -> None:
    """Torn or replaced: the check goes on with what can be read."""
    (lake_copy / V2).write_bytes(body)
    assert V2 in found(lake_copy)


def test_an_entry_with_other_fields_is_refused_as_a_version(lake_copy: Path) -> None:
    """A missing hash must not be a hash that is not checked."""
    tamper.edit_version(lake_copy / V2, lambda b: b["objects"][0].pop("sha256"), sealed=True)
    assert "entries without the fields" in found(lake_copy)[V2]


def test_a_version_that_calls_itself_another_is_named(lake_copy: Path) -> None:
    """Copying an old version forward would take the newest hours away."""
    (lake_copy / "manifest" / "v0000000003.json").write_bytes((lake_copy / V2).read_bytes())
    assert "manifest/v0000000003.json" in found(lake_copy)


def test_objects_vanishing_between_versions_are_named(lake_copy: Path) -> None:
    """Every object of a version is in all later ones."""
    key = tamper.keys_of(lake_copy, "trades")[0]
    tamper.edit_version(
        lake_copy / V2,
        lambda b: b.update(objects=[o for o in b["objects"] if o["key"] != key]),
        sealed=True,
    )
    told = [f.problem for f in verify(str(lake_copy)).findings if f.key == key]
    assert any("removed from the list" in problem for problem in told)


def test_a_watermark_that_goes_back_is_named(lake_copy: Path) -> None:
    """Time that was final cannot be open again."""
    tamper.edit_version(lake_copy / V2, lambda b: b.update(watermark_us=5), sealed=True)
    assert "goes back" in found(lake_copy)[V2]


def test_strays_are_named_and_hours_in_flight_are_noted(lake_copy: Path) -> None:
    """A file somebody laid into the lake would be read by every engine that lists folders."""
    key = tamper.keys_of(lake_copy, "trades")[0]
    stray = lake_copy / key.replace("T08-", "T07-")
    stray.write_bytes((lake_copy / key).read_bytes())
    (lake_copy / "parquet" / "notes.txt").write_text("x")
    late = lake_copy / key.replace("T08-", "T23-")
    late.write_bytes(b"")
    report = verify(str(lake_copy))
    names = {f.key for f in report.findings}
    assert names == {key.replace("T08-", "T07-"), "parquet/notes.txt"}
    assert any("T23-" in note for note in report.notes)


def test_a_commit_record_that_is_absent_edited_or_elsewhere_is_named(lake_copy: Path) -> None:
    """It is a second list of the hour, beside the object."""
    key = tamper.keys_of(lake_copy, "trades")[0]
    beside = lake_copy / key.replace(key.rpartition("/")[2], "_manifest-08.json")
    good = beside.read_bytes()
    beside.unlink()
    assert "absent" in found(lake_copy)[key.replace(key.rpartition("/")[2], "_manifest-08.json")]
    body = json.loads(good)
    body["object"]["rows"] += 1
    beside.write_bytes(json.dumps(body).encode())
    assert "differ in rows" in found(lake_copy)[key]
    for broken in (b"", b"{}", b"[]"):
        beside.write_bytes(broken)
        assert "is not the commit record" in next(iter(found(lake_copy).values()))
    beside.write_bytes(good)
    beside.with_name("_manifest-03.json").write_bytes(good)
    assert "does not lie beside" in next(iter(found(lake_copy).values()))


def test_a_lake_in_s3_is_checked_over_the_same_path(lake_copy: Path) -> None:
    """A file system of pyarrow with a bucket and a prefix; S3's own client is not run here."""
    bucket = pafs.SubTreeFileSystem(str(lake_copy.parent.parent), pafs.LocalFileSystem())
    uri = f"s3://{lake_copy.parent.name}/{lake_copy.name}"
    assert len(Place(uri, bucket).sizes) == len(list(LocalStore(lake_copy).list("")))
    assert verify(uri, filesystem=bucket).findings == []
    key = tamper.keys_of(lake_copy, "trades")[0]
    (lake_copy / key).unlink()
    assert [f.key for f in verify(uri, filesystem=bucket).findings] == [key]
