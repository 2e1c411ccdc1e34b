"""Names of a lake's objects, both ways (docs/formats.md section 4).

Purpose: `parquet/<table>/year=YYYY/month=MM/day=DD/<table>-YYYYMMDDTHH-00.parquet`, its hour's
commit record `_manifest-HH.json` beside it, the same of several hours of a day that were joined
(`-06h.parquet`, `_manifest-HH-06h.json`), `manifest/v<10 digits>.json`, and
`superseded/<sha256>.parquet` for bytes that are no longer under the name they were written to.

Invariants:
    L-3  `parse_object_key(object_key(t, h, n)) == (t, h, n)`; every other string is refused.

Does not do: any I/O. Times are int microseconds UTC; an hour is named by its first microsecond.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

from kalshilake.schema import TABLES, spec_of
from marketdata.errors import LakeError

US_PER_HOUR: Final = 3_600_000_000
OBJECT_PREFIX: Final = "parquet/"
MANIFEST_PREFIX: Final = "manifest/"
SUPERSEDED_PREFIX: Final = "superseded/"
SHARD: Final = "00"
SPANS: Final = (24, 12, 8, 6, 4, 3, 2)  # hours that one object may join; it begins at a multiple

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_OBJECT = re.compile(
    r"parquet/(?P<table>[a-z_]+)/year=(?P<y>\d{4})/month=(?P<m>\d{2})/day=(?P<d>\d{2})/"
    r"(?P=table)-(?P=y)(?P=m)(?P=d)T(?P<h>[01]\d|2[0-3])-(?:00|(?P<n>\d\d)h)\.parquet"
)
_VERSION = re.compile(r"manifest/v(\d{10})\.json")


def hour_of(time_us: int) -> int:
    """First microsecond of the UTC hour that holds `time_us`."""
    return time_us - time_us % US_PER_HOUR


def at(time_us: int) -> datetime:
    """`time_us` as an aware UTC datetime, exactly."""
    return _EPOCH + timedelta(microseconds=time_us)


def to_us(moment: datetime) -> int:
    """Microseconds since 1970 of an aware datetime, exactly (no float)."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


def _day_folder(table: str, hour_us: int) -> str:
    if hour_us % US_PER_HOUR:
        raise LakeError(f"{hour_us} us is not the start of an hour")
    return f"{OBJECT_PREFIX}{spec_of(table).name}/{at(hour_us):year=%Y/month=%m/day=%d}/"


def object_key(table: str, hour_us: int, hours: int = 1) -> str:
    """Key of the one object of `table` for the hours that start at `hour_us`."""
    name = f"{table}-{at(hour_us):%Y%m%dT%H}-{_length(hour_us, hours) or SHARD}"
    return f"{_day_folder(table, hour_us)}{name}.parquet"


def hour_manifest_key(table: str, hour_us: int, hours: int = 1) -> str:
    """Key of the commit record beside that object; engines skip names that begin with `_`."""
    length = _length(hour_us, hours)
    name = f"_manifest-{at(hour_us):%H}" + (f"-{length}" if length else "")
    return f"{_day_folder(table, hour_us)}{name}.json"


def _length(hour_us: int, hours: int) -> str:
    """How a name tells that there are several hours; "" for one."""
    if hours == 1:
        return ""
    if hours not in SPANS or hour_us % (hours * US_PER_HOUR):
        raise LakeError(f"{hours} hours from {hour_us} us on are no part of a day that is joined")
    return f"{hours:02d}h"


def superseded_key(sha256: str) -> str:
    """Where bytes go that a changed export of the same hour replaces."""
    return f"{SUPERSEDED_PREFIX}{sha256}.parquet"


def version_key(version: int) -> str:
    """Key of one version of the lake; versions count from 1."""
    if not 1 <= version <= 9_999_999_999:
        raise LakeError(f"{version} is no version of a lake; versions count from 1")
    return f"{MANIFEST_PREFIX}v{version:010d}.json"


def parse_version_key(key: str) -> int | None:
    """The version a key names, or None if it names none."""
    found = _VERSION.fullmatch(key)
    return int(found[1]) if found and int(found[1]) > 0 else None


def parse_object_key(key: str) -> tuple[str, int, int]:
    """(table, hour_us, hours) of an object key. Raises LakeError for anything else."""
    found = _OBJECT.fullmatch(key)
    if found is None or found["table"] not in TABLES:
        raise LakeError(f"{key!r} is not the name of a lake object")
    try:
        moment = datetime(
            int(found["y"]), int(found["m"]), int(found["d"]), int(found["h"]), tzinfo=UTC
        )
    except ValueError:
        raise LakeError(f"{key!r} names a day that does not exist") from None
    hour_us, hours = to_us(moment), int(found["n"] or 1)
    if key != object_key(found["table"], hour_us, hours):
        raise LakeError(f"{key!r} is not the name of a lake object")
    return found["table"], hour_us, hours
