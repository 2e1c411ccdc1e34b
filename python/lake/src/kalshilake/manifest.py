"""Commit records: one object, one hour, one version of the lake (docs/formats.md section 4).

Purpose: the values and their canonical JSON bytes. A version lists every object and carries the
SHA-256 of the version before it, so a version's own SHA-256 fixes the whole history.

Invariants:
    L-4  `LakeVersion.decode(v.encode()) == v`, and equal versions have equal bytes.
    L-5  a version lists an object key at most once, in order.
    L-37 objects of one table do not overlap: what a version lists holds each hour once.
    L-6  `seal` is the SHA-256 of the version's canonical JSON without it: a version that was
         edited by hand is found without its successor.

Does not do: reading or writing a store, the meaning of rows. A seal is no signature: whoever
rewrites every later version consistently is found only by a SHA-256 kept elsewhere.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from kalshilake.paths import US_PER_HOUR, parse_object_key
from marketdata.errors import LakeError

FORMAT: Final = 1
GENESIS: Final = "0" * 64  # `previous_sha256` of version 1


@dataclass(frozen=True, slots=True)
class ObjectRecord:
    """One Parquet object. Times in us; `min_us`/`max_us` of the table's time column, inclusive
    (both are the hour's start in an object without rows). `footer_sha256` is that of the Parquet
    footer with its length and magic: a reader checks it before it trusts statistics. How many hours
    it holds is told by its name."""

    key: str
    table: str
    hour_us: int
    rows: int
    bytes: int
    sha256: str
    footer_bytes: int
    footer_sha256: str
    row_groups: int
    min_us: int
    max_us: int
    first_market: str
    last_market: str
    schema: int

    @property
    def hours(self) -> int:
        """How many hours it holds: 1, or one of paths.SPANS."""
        return int(self.key[-11:-9]) if self.key.endswith("h.parquet") else 1

    @property
    def end_us(self) -> int:
        """First microsecond after its hours."""
        return self.hour_us + self.hours * US_PER_HOUR

    def covers(self, other: ObjectRecord) -> bool:
        """Whether all hours of another object of the table are among the hours of this one."""
        return (
            self.table == other.table
            and self.hour_us <= other.hour_us
            and other.end_us <= self.end_us
        )


@dataclass(frozen=True, slots=True)
class LakeVersion:
    """One version: what exists, up to which exchange time it is final, and what came before."""

    version: int
    previous_sha256: str
    watermark_us: int
    objects: tuple[ObjectRecord, ...]

    def encode(self) -> bytes:
        """Canonical JSON with its seal; ends in a newline."""
        body = {
            "format": FORMAT,
            "version": self.version,
            "previous_sha256": self.previous_sha256,
            "watermark_us": self.watermark_us,
            "objects": [asdict(o) for o in self.objects],
        }
        body["seal"] = hashlib.sha256(canonical(body)).hexdigest()
        return canonical(body)

    @classmethod
    def decode(cls, raw: bytes, name: str) -> LakeVersion:
        """The version in `raw`; `name` is used in messages. Raises LakeError if altered."""
        body = _parse(raw, name)
        seal = body.pop("seal", None)
        if body.get("format") != FORMAT:
            raise LakeError(f"{name}: format {body.get('format')!r} is not {FORMAT}")
        if seal != hashlib.sha256(canonical(body)).hexdigest():
            raise LakeError(f"{name}: altered after it was written (its seal does not match)")
        try:
            objects = tuple(decode_record(o, name) for o in body["objects"])
            made = cls(
                version=int(body["version"]),
                previous_sha256=str(body["previous_sha256"]),
                watermark_us=int(body["watermark_us"]),
                objects=objects,
            )
        except (KeyError, TypeError, ValueError) as e:
            raise LakeError(f"{name}: not a version of a lake ({e})") from None
        made._check(name)
        return made

    def _check(self, name: str) -> None:
        keys = [o.key for o in self.objects]
        if keys != sorted(set(keys)):
            raise LakeError(f"{name}: objects out of order or listed twice")
        for record in self.objects:
            if parse_object_key(record.key)[:2] != (record.table, record.hour_us):
                raise LakeError(f"{name}: {record.key} is listed as another table or hour")
        _check_hours(self.objects, name)


def _check_hours(objects: Iterable[ObjectRecord], name: str) -> None:
    """No hour of a table twice; `objects` ascend by key."""
    for one, two in itertools.pairwise(objects):
        if one.table == two.table and two.hour_us < one.end_us:
            raise LakeError(f"{name}: {one.key} and {two.key} hold the same hours")


def decode_record(body: Mapping[str, Any], name: str) -> ObjectRecord:
    """An ObjectRecord from its JSON object. Raises LakeError if a field is absent or mistyped."""
    if not isinstance(body, Mapping):
        raise LakeError(f"{name}: an object record is a {type(body).__name__}")
    values: dict[str, Any] = {}
    for field in fields(ObjectRecord):
        value = body.get(field.name)
        wanted = int if field.type == "int" else str
        if type(value) is not wanted:
            raise LakeError(f"{name}: field {field.name!r} of an object is {value!r}")
        values[field.name] = value
    return ObjectRecord(**values)


def next_version(
    head: tuple[LakeVersion, str] | None, records: Iterable[ObjectRecord], watermark_us: int
) -> LakeVersion | None:
    """The version after `head` (version, its SHA-256), with `records` in place of equal keys, and
    one that joins hours in place of the objects of these hours.

    The watermark never goes back. None if nothing would change. Raises LakeError where an hour
    would be there twice.
    """
    before, sha256 = head if head is not None else (LakeVersion(0, "", watermark_us, ()), GENESIS)
    new = tuple(records)
    joined = [r for r in new if r.hours > 1]
    kept = [o for o in before.objects if not any(r.covers(o) for r in joined)]
    merged = {o.key: o for o in kept} | {o.key: o for o in new}
    watermark = max(watermark_us, before.watermark_us)
    objects = tuple(merged[k] for k in sorted(merged))
    _check_hours(objects, f"version {before.version + 1}")
    if head is not None and objects == before.objects and watermark == before.watermark_us:
        return None
    return LakeVersion(before.version + 1, sha256, watermark, objects)


def encode_hour(record: ObjectRecord, watermark_us: int, extra: Mapping[str, Any]) -> bytes:
    """The commit record beside an object: the record, the merge's watermark, free facts."""
    return canonical(
        {"format": FORMAT, "object": asdict(record), "watermark_us": watermark_us, "extra": extra}
    )


def decode_hour(raw: bytes, name: str) -> tuple[ObjectRecord, int, dict[str, Any]]:
    """(record, watermark_us, extra) of an object's commit record. Raises LakeError."""
    body = _parse(raw, name)
    if body.get("format") != FORMAT:
        raise LakeError(f"{name}: format {body.get('format')!r} is not {FORMAT}")
    record = decode_record(body.get("object", {}), name)
    if parse_object_key(record.key) != (record.table, record.hour_us, record.hours):
        raise LakeError(f"{name}: names {record.key}, which is another object's name")
    return record, int(body.get("watermark_us", 0)), dict(body.get("extra") or {})


def canonical(body: Mapping[str, Any]) -> bytes:
    """The one JSON form of a value: sorted keys, no spaces, ASCII, newline at the end."""
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def _parse(raw: bytes, name: str) -> dict[str, Any]:
    try:
        body = json.loads(raw)
    except ValueError as e:
        raise LakeError(f"{name}: not JSON ({e})") from None
    if not isinstance(body, dict):
        raise LakeError(f"{name}: a {type(body).__name__} where an object is expected")
    return body
