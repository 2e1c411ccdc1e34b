"""What was seen of the exchange is told in the same words everywhere."""

from __future__ import annotations

import json

from dedup.exchange_seen import change_counts, read_changes, told
from dedup.publication import publication_of
from marketdata.evidence import Change, Evidence, Seen
from tests.window_outputs import window_output

FELL = Change("0-1", "exact", "window")
WITHDRAWN = Change("replies", "proven", "unproven")


def test_changes_come_back_from_the_counts_of_the_tape() -> None:
    counts = {"merged_rows": 4, **change_counts([FELL, WITHDRAWN, FELL])}
    assert list(read_changes(counts)) == [(FELL, 2), (WITHDRAWN, 1)]


def test_a_publication_counts_the_changes_of_its_windows() -> None:
    first, second = window_output(0, ["A"]), window_output(1, ["A"])
    assert list(read_changes(publication_of([first, second], {}, {}).counts)) == []
    first.changes, second.changes = [FELL], [FELL]
    assert list(read_changes(publication_of([first, second], {}, {}).counts)) == [(FELL, 2)]


def test_everything_is_told_in_plain_values() -> None:
    evidence, seen = Evidence(), Seen()
    seen.equal([(0, 7), (1, 9)], 3)
    seen.replies.agreed = 2
    evidence.close(5, seen)
    plain = json.loads(json.dumps(told(evidence)))
    of_both = {
        "compared": 3, "equal_us": 3, "other_order": 0, "apart_us_max": 0, "apart": {},
    }  # fmt: skip
    assert plain["pairs"] == {
        "0-1": {
            "mode": "unproven", "equal_since": 3, **of_both,
            "connections": {"7-9": of_both}, "connections_forgotten": 0,
        }
    }  # fmt: skip
    assert plain["replies"]["agreed"] == 2
    assert plain["replies"]["proven"] is False
