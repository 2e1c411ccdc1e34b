"""The lake's lists: versions in their chain, objects that no list names, commit records.

Does not do: opening objects (layout).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Callable
from typing import Any, Final

import pyarrow as pa
import pyarrow.fs as pafs

from .report import Report

HOUR_US: Final = 3_600_000_000
_TEXTS = ("key", "table", "sha256", "footer_sha256", "first_market", "last_market")
_NUMBERS = ("hour_us", "rows", "bytes", "footer_bytes", "row_groups", "min_us", "max_us", "schema")
ENTRY: Final = dict.fromkeys(_TEXTS, str) | dict.fromkeys(_NUMBERS, int)  # of an object in a list
_NAME = re.compile(
    r"parquet/([a-z_]+)/year=(\d{4})/month=(\d\d)/day=(\d\d)/"
    r"\1-\2\3\4T(\d\d)-(?:00|(\d\d)h)\.parquet"
)
_RECORD = re.compile(r"parquet/[a-z_]+/year=.*/_manifest-\d\d(-\d\dh)?\.json")


class Place:
    """The lake's objects: a directory or s3://bucket/prefix."""

    def __init__(self, location: str, filesystem: Any = None) -> None:
        self.location = location
        if location.startswith("s3://"):
            found, path = pafs.FileSystem.from_uri(location) if filesystem is None else (
                filesystem, location.removeprefix("s3://"))  # fmt: skip
            self._fs, self._root = found, path.rstrip("/")
        else:
            self._fs, self._root = pafs.LocalFileSystem(), location.rstrip("/") or "/"
        self.sizes: dict[str, int] = {}
        for prefix in ("manifest", "parquet", "superseded"):
            where = pafs.FileSelector(
                f"{self._root}/{prefix}", allow_not_found=True, recursive=True
            )
            for info in self._fs.get_file_info(where):
                if info.type == pafs.FileType.File:
                    self.sizes[info.path[len(self._root) + 1 :]] = info.size

    def read(self, key: str) -> bytes:
        """The whole object."""
        with self._fs.open_input_file(f"{self._root}/{key}") as f:
            return bytes(f.read())


def check_versions(
    place: Place, report: Report, see: Callable[[dict[str, Any]], None]
) -> tuple[dict[str, Any], set[str]]:
    """(the newest version that can be read, the SHA-256 of every version); `see` gets each."""
    numbers = sorted(
        int(m[1]) for k in place.sizes if (m := re.fullmatch(r"manifest/v(\d{10})\.json", k))
    )
    for key in place.sizes:
        if key.startswith("manifest/") and not re.fullmatch(r"manifest/v\d{10}\.json", key):
            report.found(key, "not a name of a version")
    before: dict[str, Any] | None = None
    sha_before, known = "0" * 64, set()
    for number in range(1, max(numbers, default=0) + 1):
        key = f"manifest/v{number:010d}.json"
        if key not in place.sizes:
            report.found(key, "this version is absent, later ones exist")
            before, sha_before = None, ""
            continue
        raw = place.read(key)
        body = _version(report, key, raw)
        if body is not None:
            if body.get("version") != number:
                report.found(key, f"calls itself version {body.get('version')!r}")
            if sha_before and body.get("previous_sha256") != sha_before:
                report.found(
                    key, "does not carry the SHA-256 of the version before: one was edited"
                )
            if before is not None:
                _succession(place, report, key, before, body)
            see(body)
            before = body
            report.version, report.watermark_us = number, int(body["watermark_us"])
        sha_before = hashlib.sha256(raw).hexdigest()
        known.add(sha_before)
        report.sha256 = sha_before
        report.versions += 1
    return before or {}, known


def _version(report: Report, key: str, raw: bytes) -> dict[str, Any] | None:
    """A version's body if its form is right; findings otherwise."""
    try:
        body = json.loads(raw)
        seal = body.pop("seal")
        plain = json.dumps(body, sort_keys=True, separators=(",", ":")).encode() + b"\n"
        odd = [e for e in body["objects"] if {n: type(v) for n, v in e.items()} != ENTRY]
        listed = [
            (e["key"], _name_of(e["table"], e["hour_us"], hours_in(e))) for e in body["objects"]
        ]
        int(body["watermark_us"])
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        report.found(key, f"is not a version of a lake ({type(e).__name__}: {e})")
        return None
    if odd:
        report.found(key, f"has {len(odd)} entries without the fields of an object")
        return None
    if seal != hashlib.sha256(plain).hexdigest():
        report.found(key, "was edited: its seal is not that of its content")
    if [k for k, _ in listed] != sorted({k for k, _ in listed}):
        report.found(key, "lists objects twice or out of order")
    for name, wanted in listed:
        if name != wanted:
            report.found(key, f"lists {name} as {wanted}")
    for one, two in itertools.pairwise(body["objects"]):
        if one["table"] == two["table"] and two["hour_us"] < end_of(one):
            report.found(key, f"lists {one['key']} and {two['key']}, which hold the same hours")
    return dict(body)


def _succession(
    place: Place, report: Report, key: str, before: dict[str, Any], body: dict[str, Any]
) -> None:
    now = {e["key"]: e for e in body["objects"]}
    joined = [e for e in body["objects"] if hours_in(e) > 1]
    for entry in before["objects"]:
        name, then = str(entry["key"]), str(entry["sha256"])
        if name not in now and not _is_among(entry, joined):
            report.found(name, f"was removed from the list by {key}")
        elif name not in now or now[name]["sha256"] != then:
            kept = f"superseded/{then}.parquet"
            if kept not in place.sizes:
                report.found(name, f"changed in {key}, but its former bytes are not in {kept}")
            elif hashlib.sha256(place.read(kept)).hexdigest() != then:
                report.found(kept, "does not hold the bytes that its name says")
    if int(body["watermark_us"]) < int(before["watermark_us"]):
        report.found(key, "its watermark goes back")


def check_strays(place: Place, report: Report, entries: dict[str, dict[str, Any]]) -> None:
    """Objects that no version lists, and commit records that say something else."""
    for key in sorted(place.sizes):
        if not key.startswith("parquet/"):
            continue
        if key in entries:
            if _beside(key) not in place.sizes:
                report.found(_beside(key), "the commit record of an hour is absent")
        elif _RECORD.fullmatch(key):
            _check_record(place, report, key, entries)
        elif _NAME.fullmatch(key) and _is_in_flight(report, key):
            report.notes.append(f"{key}: written, not yet listed by a version")
        else:
            report.found(key, "lies in the lake and the newest version does not list it")


def _check_record(
    place: Place, report: Report, key: str, entries: dict[str, dict[str, Any]]
) -> None:
    try:
        named = json.loads(place.read(key))["object"]
        name = str(named["key"])
    except (ValueError, KeyError, TypeError) as e:
        report.found(key, f"is not the commit record of an hour ({type(e).__name__}: {e})")
        return
    if _beside(name) != key:
        report.found(key, f"speaks of {name}, which it does not lie beside")
    elif name in entries and named != entries[name]:
        listed = entries[name]
        wrong = ", ".join(sorted(k for k in named | listed if named.get(k) != listed.get(k)))
        report.found(name, f"its commit record and the newest version differ in {wrong}")
    elif name not in entries and not _is_in_flight(report, name):
        joined = [e for e in entries.values() if hours_in(e) > 1]
        if set(named) != set(ENTRY) or not _is_among(named, joined):
            report.found(name, "has a commit record and is not listed by the newest version")


def _is_in_flight(report: Report, key: str) -> bool:
    """An hour that the watermark has not passed may be written and not listed yet."""
    return _hour_of_name(key) >= report.watermark_us // HOUR_US * HOUR_US


def hours_in(entry: dict[str, Any]) -> int:
    """How many hours an object joins, by its name; 1 for any other name."""
    found = _NAME.fullmatch(str(entry["key"]))
    return int(found[6] or 1) if found else 1


def end_of(entry: dict[str, Any]) -> int:
    """First microsecond after the hours of an object."""
    return int(entry["hour_us"]) + hours_in(entry) * HOUR_US


def _is_among(entry: dict[str, Any], joined: list[dict[str, Any]]) -> bool:
    """Whether the hours of an object are among those that another one of its table joins."""
    return any(
        e["table"] == entry["table"]
        and e["hour_us"] <= entry["hour_us"]
        and end_of(entry) <= end_of(e)
        for e in joined
    )


def _beside(key: str) -> str:
    """The commit record that belongs beside an object."""
    folder, _, name = key.rpartition("/")
    hour, _, length = name.removesuffix(".parquet").rpartition("T")[2].partition("-")
    return f"{folder}/_manifest-{hour}.json" if length == "00" else (
        f"{folder}/_manifest-{hour}-{length}.json")  # fmt: skip


def _name_of(table: str, hour_us: int, hours: int) -> str:
    moment = pa.scalar(hour_us, pa.timestamp("us")).as_py()
    length = "00" if hours == 1 else f"{hours:02d}h"
    folder = f"parquet/{table}/{moment:year=%Y/month=%m/day=%d}"
    return f"{folder}/{table}-{moment:%Y%m%dT%H}-{length}.parquet"


def _hour_of_name(key: str) -> int:
    found = _NAME.fullmatch(key)
    if found is None:
        return -1
    text = f"{found[2]}-{found[3]}-{found[4]}T{found[5]}:00:00"
    return int(pa.scalar(text).cast(pa.timestamp("us")).value)
