"""Commit records and the chain of versions."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from kalshilake import paths
from kalshilake.manifest import (
    GENESIS,
    LakeVersion,
    ObjectRecord,
    canonical,
    decode_hour,
    encode_hour,
    next_version,
)
from marketdata.errors import LakeError

HOUR = 485_000 * paths.US_PER_HOUR


def record(hour: int = HOUR, sha: str = "ab" * 32) -> ObjectRecord:
    return ObjectRecord(
        key=paths.object_key("trades", hour), table="trades", hour_us=hour, rows=2, bytes=100,
        sha256=sha, footer_bytes=50, footer_sha256="cd" * 32, row_groups=1, min_us=hour,
        max_us=hour + 5, first_market="A", last_market="B", schema=1,
    )  # fmt: skip


def test_a_version_decodes_to_itself_and_has_one_form_of_bytes() -> None:
    """The chain is over bytes: two encodings of one version would break it."""
    version = LakeVersion(1, GENESIS, HOUR + 7, (record(),))
    raw = version.encode()
    assert LakeVersion.decode(raw, "v1") == version
    assert LakeVersion.decode(raw, "v1").encode() == raw


@pytest.mark.parametrize(
    "edit",
    [
        lambda b: b["objects"].clear(),
        lambda b: b["objects"][0].update(rows=3),
        lambda b: b.update(watermark_us=0),
        lambda b: b.update(previous_sha256="01" * 32),
        lambda b: b.update(format=2),
    ],
)
def test_any_edit_of_a_version_breaks_its_seal(edit) -> None:
    """The newest version has no successor that would hold its hash."""
    body = json.loads(LakeVersion(1, GENESIS, HOUR, (record(),)).encode())
    edit(body)
    with pytest.raises(LakeError):
        LakeVersion.decode(canonical(body), "v1")


def test_torn_or_foreign_bytes_are_refused_by_name() -> None:
    """The message must say which file is meant."""
    for raw in (b"", b"[1]", b"{", b'{"format": 1}', b"\xff\xfe"):
        with pytest.raises(LakeError, match="v9"):
            LakeVersion.decode(raw, "v9")


def test_objects_out_of_order_or_twice_are_refused_even_with_a_right_seal() -> None:
    """A key listed twice would be read twice."""
    for objects in ((record(), record()), (record(HOUR + paths.US_PER_HOUR), record())):
        with pytest.raises(LakeError, match="twice"):
            LakeVersion.decode(LakeVersion(1, GENESIS, HOUR, objects).encode(), "v1")
    moved = replace(record(), hour_us=HOUR + paths.US_PER_HOUR)
    with pytest.raises(LakeError, match="another table or hour"):
        LakeVersion.decode(LakeVersion(1, GENESIS, HOUR, (moved,)).encode(), "v1")


def test_next_version_replaces_equal_keys_keeps_the_rest_and_never_goes_back() -> None:
    """A re-exported hour must not stand twice; a late watermark must not reopen the past."""
    first = next_version(None, [record(), record(HOUR + paths.US_PER_HOUR)], 100)
    assert first is not None
    assert (first.version, first.previous_sha256) == (1, GENESIS)
    again = next_version((first, "aa" * 32), [record(sha="ef" * 32)], 50)
    assert again is not None
    assert (again.version, again.previous_sha256, again.watermark_us) == (2, "aa" * 32, 100)
    assert [o.sha256[:2] for o in again.objects] == ["ef", "ab"]


def test_next_version_is_none_when_nothing_changes() -> None:
    """A repeated export must not make versions without content."""
    first = next_version(None, [record()], 100)
    assert first is not None
    assert next_version((first, "aa" * 32), [record()], 100) is None
    assert next_version((first, "aa" * 32), [], 101) is not None


def test_hour_record_round_trip_and_refusals() -> None:
    """It is the only list of an hour that engines and people see beside the object."""
    raw = encode_hour(record(), 9, {"window": 3})
    assert decode_hour(raw, "h") == (record(), 9, {"window": 3})
    body = json.loads(raw)
    for edit in ({"format": 3}, {"object": None}, {"object": {**body["object"], "rows": "2"}},
                 {"object": {**body["object"], "key": "parquet/x"}}):  # fmt: skip
        with pytest.raises(LakeError):
            decode_hour(canonical({**body, **edit}), "h")
