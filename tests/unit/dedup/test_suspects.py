"""Who was contradicted: by gatherer and reason, in the output, in the counts, in /status."""

from __future__ import annotations

import numpy as np

from dedup.output import QuarantineRow
from dedup.publication import publication_of
from dedup.readers import GathererReader
from dedup.status import Tally, status
from dedup.suspects import ASIDE, SUSPECT, by_gatherer, named_counts, read_counts, suspects
from marketdata.coverage import MarketClaim
from marketdata.rows import DELTA_ROW
from tests.hand import Hand, merge
from tests.window_outputs import T0, window_output, with_trouble

BOOK = {100_000: 500}


def recording(gatherer: int, *, lacks: int = 0) -> Hand:
    """Forty changes; `lacks`: the one at that time is missing, and no number with it."""
    hand = Hand(gatherer)
    hand.start(0)
    hand.snap("A", BOOK)
    for n in range(1, 41):
        if 100 * n != lacks:
            hand.delta(100 * n, "A", 10_000 * n, n)
    hand.stop()
    return hand


def test_the_gatherer_that_silently_missed_an_event_is_the_one_that_is_named() -> None:
    """Two healthy ones against it; where nothing is wrong nobody is named."""
    outputs = merge(recording(0), recording(1, lacks=1_500), recording(2))
    named = {key: n for out in outputs for key, n in suspects(out).items()}
    assert named == {(1, "contradicted"): 1}
    outputs = merge(recording(0), recording(1), recording(2))
    assert [suspects(out) for out in outputs if suspects(out)] == []


def test_a_run_that_claimed_nothing_yet_is_named_by_its_rows() -> None:
    """Contradicted in its first window, before any time was shown that a claim could begin with."""
    outputs = merge(recording(0, lacks=100), recording(1), recording(2))
    named = {key: n for out in outputs for key, n in suspects(out).items()}
    assert named == {(0, "contradicted"): 1}
    output = window_output(0, ["A"])
    rows = np.zeros(2, DELTA_ROW)
    output.quarantine = [
        QuarantineRow("A", 1, 4, reason, T0, T0 + 1, 2, rows) for reason in ("contradicted", "late")
    ]
    assert suspects(output) == {(1, "contradicted"): 1}


def test_a_run_that_ended_for_a_reason_of_its_own_is_no_suspect() -> None:
    output = window_output(0, ["A"])
    for n, reason in enumerate(("gap", "close", "disputed", "missed an event", "")):
        output.claims.append(MarketClaim("A", n, 1, T0, T0 + 1, valid=True, reason=reason))
    assert suspects(output) == {(3, "missed_event"): 1}


def test_counts_of_the_tape_name_the_gatherer_and_are_read_again() -> None:
    output = with_trouble(window_output(0, ["A"]))
    kept = output.quarantine[0]
    output.claims.append(
        MarketClaim("A", 2, 1, T0, T0 + 1, valid=True, reason="contradicted")
    )  # fmt: skip
    counts = publication_of([output, output], {}, {}).counts
    assert counts["suspect:2:contradicted"] == 2
    assert list(read_counts(counts, SUSPECT)) == [(2, "contradicted", 2)]
    assert by_gatherer(counts, ASIDE, kept.gatherer) == {kept.reason: 2 * kept.n_rows}
    assert by_gatherer(counts, SUSPECT, 0) == {}
    assert set(named_counts(output)) < set(counts)


def test_status_tells_it_for_every_gatherer() -> None:
    tally = Tally()
    tally.began({"suspect:1:missed_event": 3, "aside:1:late": 7})
    readers = [GathererReader(g, "postgresql://nowhere", poll_s=1) for g in range(2)]
    told = status(tally, readers, 0)["gatherers"]
    assert [g["suspect"] for g in told] == [{}, {"missed_event": 3}]
    assert [g["quarantined"] for g in told] == [{}, {"late": 7}]
