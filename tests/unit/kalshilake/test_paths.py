"""Names of a lake's objects."""

from __future__ import annotations

import pytest

from kalshilake import paths
from marketdata.errors import LakeError

HOUR = paths.hour_of(1_747_000_000_000_000)


def test_object_key_is_hive_partitioned_by_utc_day_and_named_by_the_hour() -> None:
    """Athena, Spark and DuckDB find partitions by these names alone."""
    assert paths.object_key("trades", HOUR) == (
        "parquet/trades/year=2025/month=05/day=11/trades-20250511T21-00.parquet"
    )
    assert paths.hour_manifest_key("trades", HOUR) == (
        "parquet/trades/year=2025/month=05/day=11/_manifest-21.json"
    )


def test_parse_object_key_is_the_inverse_and_refuses_every_other_name() -> None:
    """A key that is read as another hour would make a row vanish from the reads of its own."""
    key = paths.object_key("orderbook_deltas", HOUR)
    assert paths.parse_object_key(key) == ("orderbook_deltas", HOUR, 1)
    for wrong in (
        key.replace("-00.", "-24h."),  # 21 is no multiple of 24
        key.replace("-00.", "-01h."),
        key.replace("-00.", "-3h."),
        key.replace("-00.", "-05h."),
        key.replace("T21", "T24"),
        key.replace("day=11", "day=12"),
        key.replace("orderbook_deltas", "orders"),
        key + ".tmp",
        key.replace("-00.", "-01."),
        "parquet/trades/year=2025/month=02/day=30/trades-20250230T00-00.parquet",
        "",
    ):
        with pytest.raises(LakeError):
            paths.parse_object_key(wrong)


def test_objects_of_several_hours_are_told_by_their_names() -> None:
    """A name says which hours of a day it holds; a day is divided into equal parts."""
    day = HOUR // (24 * paths.US_PER_HOUR) * (24 * paths.US_PER_HOUR)
    for hours in paths.SPANS:
        at = HOUR // (hours * paths.US_PER_HOUR) * (hours * paths.US_PER_HOUR)
        key = paths.object_key("trades", at, hours)
        assert paths.parse_object_key(key) == ("trades", at, hours)
        assert key.endswith(f"-{hours:02d}h.parquet")
    assert paths.hour_manifest_key("trades", day, 24).endswith("/day=11/_manifest-00-24h.json")
    assert paths.object_key("trades", day) < paths.object_key("trades", day, 24)
    for at, hours in ((HOUR, 24), (day, 48), (day, 5), (day, 0)):
        with pytest.raises(LakeError, match="no part of a day"):
            paths.object_key("trades", at, hours)


def test_version_keys_sort_as_numbers_and_foreign_names_are_no_version() -> None:
    """Ten digits: text order is number order, so a listing ends with the newest."""
    assert paths.version_key(7) == "manifest/v0000000007.json"
    assert paths.parse_version_key(paths.version_key(7)) == 7
    assert paths.version_key(9) < paths.version_key(10)
    for wrong in ("manifest/v7.json", "manifest/v0000000000.json", "manifest/x.json"):
        assert paths.parse_version_key(wrong) is None
    with pytest.raises(LakeError):
        paths.version_key(0)


def test_times_convert_exactly_to_the_microsecond() -> None:
    """A float would lose the last digit of a present-day microsecond now and then."""
    for us in (0, 1, 1_747_000_000_123_457, 253_402_300_799_999_999):
        assert paths.to_us(paths.at(us)) == us


def test_a_time_inside_an_hour_is_refused_as_the_hours_name() -> None:
    """Two names for one hour would be two objects."""
    with pytest.raises(LakeError, match="not the start"):
        paths.object_key("trades", HOUR + 1)
