"""What the exchange says of itself, read from its bodies."""

from __future__ import annotations

from typing import Any

import pytest

from marketdata.errors import WireError
from marketdata.exchange_status import maintenance_of, maintenance_reason, status_of

OPEN = {"exchange_active": True, "trading_active": True, "exchange_estimated_resume_time": None}
S = 1_000_000_000


def test_normal_trade_has_no_reason() -> None:
    shard = {"exchange_index": 0, "exchange_active": True, "trading_active": True, "new": 1}
    assert status_of({**OPEN, "exchange_index_statuses": [shard]}).reason == ""
    assert status_of({**OPEN, "something_new": {}}).reason == ""


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"exchange_active": False}, "is down"),
        ({"trading_active": False}, "trading is paused"),
        ({"trading_active": False, "exchange_estimated_resume_time": "T1"}, "expected T1"),
        (
            {
                "exchange_index_statuses": [
                    {"exchange_index": 2, "trading_active": False},
                    {"exchange_index": 1, "exchange_active": False},
                    {"exchange_index": 0},
                ]
            },
            "shards 1, 2 are paused",
        ),
    ],
)
def test_each_pause_is_told(change: dict[str, Any], told: str) -> None:
    assert told in status_of(OPEN | change).reason


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"exchange_active": True},
        OPEN | {"trading_active": 1},
        OPEN | {"exchange_active": "true"},
    ],
)
def test_an_absent_field_is_an_error(body: dict[str, Any]) -> None:
    """Never taken for `open`, nor for `shut`."""
    with pytest.raises(WireError, match="not true or false"):
        status_of(body)


def test_a_list_of_shards_that_is_none_is_an_error() -> None:
    with pytest.raises(WireError, match="not a list"):
        status_of(OPEN | {"exchange_index_statuses": {"a": 1}})


def test_windows_are_read_in_any_zone_and_in_order() -> None:
    windows = maintenance_of(
        {
            "schedule": {
                "maintenance_windows": [
                    {
                        "start_datetime": "2026-12-03T03:00:00-05:00",
                        "end_datetime": "2026-12-03T05:00:00-05:00",
                    },
                    {
                        "start_datetime": "1970-01-01T00:00:10Z",
                        "end_datetime": "1970-01-01T00:02:10Z",
                    },
                ]
            }
        }
    )
    assert windows == ((10 * S, 130 * S), (1_796_284_800 * S, 1_796_292_000 * S))
    assert maintenance_reason(windows, 9 * S) == ""
    assert maintenance_reason(windows, 10 * S) == "announced maintenance, for 2 more minutes"
    assert maintenance_reason(windows, 130 * S) == ""


def test_no_windows_are_none() -> None:
    assert maintenance_of({"schedule": {"maintenance_windows": []}}) == ()
    assert maintenance_of({"schedule": {}}) == ()


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"schedule": {"maintenance_windows": {"a": 1}}},
        {"schedule": {"maintenance_windows": [7]}},
        {"schedule": {"maintenance_windows": [{"start_datetime": "soon"}]}},
        {
            "schedule": {
                "maintenance_windows": [
                    {
                        "start_datetime": "2026-12-03T03:00:00",
                        "end_datetime": "2026-12-03T05:00:00Z",
                    }
                ]
            }
        },
    ],
)
def test_other_schedules_are_errors(body: dict[str, Any]) -> None:
    with pytest.raises(WireError):
        maintenance_of(body)
