"""The numbers of /status."""

from __future__ import annotations

from dedup.publication import publication_of
from dedup.readers import GathererReader
from dedup.status import RATE_OVER_S, Rate, Tally, complete_share, status
from tests.window_outputs import window_output


def test_rate_is_that_of_the_last_whole_period() -> None:
    """A burst must not show as a rate for ever, nor a single second."""
    now = 0.0
    rate = Rate(lambda: now)
    rate.add(1_000)
    assert rate.per_s == 0
    now = RATE_OVER_S
    assert rate.per_s == 200
    now = 2 * RATE_OVER_S
    assert rate.per_s == 0


def test_totals_go_on_from_what_production_has() -> None:
    """A restarted deduplicator does not count from zero."""
    tally = Tally()
    tally.began({"rows_in": 100, "merged_events": 40, "witnesses_3": 7, "mode_exact": 2})
    tally.published(publication_of([window_output(0, ["A"])], {}, {}))
    reader = GathererReader(1, "postgresql://nowhere", poll_s=1)
    body = status(tally, [reader], 5_000_000, extra=1)
    assert body["rows_in"] == 103
    assert body["rows_merged"] == 43
    assert body["witnesses"] == {"2": 3, "3": 7}
    assert body["modes"] == {"exact": 2}
    assert body["extra"] == 1
    assert body["gatherers"][0]["state"] == "starting"
    assert body["gatherers"][0]["lag_ms"] is None
    reader.max_received_ns = 2_000_000
    assert status(tally, [reader], 5_000_000)["gatherers"][0]["lag_ms"] == 3


def test_share_of_complete_time() -> None:
    """Nothing exported yet is not the same as nothing complete."""
    assert complete_share({}) is None
    assert complete_share({"dark": 9}) is None
    assert complete_share({"complete": 3, "gap": 1, "dark": 9}) == 0.75
