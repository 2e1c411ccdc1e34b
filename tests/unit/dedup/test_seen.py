"""What is told of the gatherers before any window closes."""

from __future__ import annotations

import numpy as np
import pytest

from dedup.seen import INTERRUPTIONS_KEPT, Seen
from marketdata.rows import DELTA_ROW, ControlKind, ControlRow, GathererBatch

S = 1_000_000_000


def batch(*controls: ControlRow, received_ns: int = 0, gatherer: int = 0) -> GathererBatch:
    rows = np.zeros(3 if received_ns else 0, DELTA_ROW)
    rows["received_ns"] = received_ns
    return GathererBatch(gatherer, 1, 1, received_ns, rows, controls=list(controls))


def control(
    kind: str, *, conn: int = 7, run: int = 0, reason: str = "", channel: str = ""
) -> ControlRow:
    return ControlRow(1, 0, S, kind, conn, run, reason=reason, detail={"channel": channel})


def test_lateness_is_of_the_reading_and_quiet_is_since_then() -> None:
    now = [10 * S]
    seen = Seen(2, lambda: now[0])
    seen.heard(batch(received_ns=9 * S))
    now[0] = 15 * S
    told = seen.told()["gatherers"]
    assert told[0]["channels"]["orderbook"]["late_ms"] == 1_000
    assert told[0]["channels"]["orderbook"]["quiet_ms"] == 6_000
    assert told[0]["channels"]["orderbook"]["rows"] == 3
    assert told[1]["channels"]["orderbook"]["quiet_ms"] is None


def test_an_end_is_told_with_its_channel_and_reason_and_a_wanted_one_is_not() -> None:
    seen = Seen(1, lambda: 20 * S)
    seen.heard(
        batch(
            control(ControlKind.CONN_OPEN),
            control(ControlKind.RUN_START, run=1, channel="orderbook_delta"),
            control(ControlKind.RUN_START, run=2, channel="trade"),
            control(ControlKind.RUN_END, run=1, reason="gap"),
            control(ControlKind.RUN_START, run=3, channel="orderbook_delta"),
            control(ControlKind.RUN_END, run=3, reason="unsubscribed"),
        )
    )
    told = seen.told()
    assert told["interrupted"] == 1
    only = told["interruptions"][0]
    assert (only["kind"], only["channel"], only["reason"]) == ("run_end", "orderbook", "gap")
    assert (only["received_ms"], only["read_ms"]) == (1_000, 20_000)
    of = told["gatherers"][0]
    assert of["connections"] == 1
    assert of["channels"]["orderbook"]["in_sequence"] == 0
    assert of["channels"]["trade"]["in_sequence"] == 1


def test_a_closed_connection_takes_its_subscriptions_with_it() -> None:
    now = [S]
    seen = Seen(1, lambda: now[0])
    for run in (1, 2):
        seen.heard(batch(control(ControlKind.RUN_START, conn=run, run=run, channel="trade")))
    assert seen.told()["gatherers"][0]["channels"]["trade"]["in_sequence"] == 2
    seen.heard(batch(control(ControlKind.CONN_CLOSE, conn=2, reason="reset")))
    channel = seen.told()["gatherers"][0]["channels"]["trade"]
    assert (channel["in_sequence"], channel["in_sequence_of_late"]) == (1, 2)
    for _ in range(2):  # what was open long ago is not missed for ever
        now[0] += 61 * S
        channel = seen.told()["gatherers"][0]["channels"]["trade"]
    assert (channel["in_sequence"], channel["in_sequence_of_late"]) == (1, 1)
    seen.heard(batch(control(ControlKind.GATHERER_END)))
    assert seen.told()["gatherers"][0]["ended"]
    assert seen.told()["gatherers"][0]["connections"] == 0


def test_what_is_kept_has_a_limit_and_a_new_beginning_learns_anew() -> None:
    seen = Seen(1)
    for _ in range(INTERRUPTIONS_KEPT + 5):
        seen.heard(batch(control(ControlKind.PROBLEM, reason="x" * 1_000)))
    assert len(seen.told()["interruptions"]) == INTERRUPTIONS_KEPT
    assert len(seen.told()["interruptions"][0]["reason"]) == 200
    assert seen.interrupted == INTERRUPTIONS_KEPT + 5
    seen.heard(batch(control(ControlKind.CONN_OPEN)))
    seen.began()
    assert seen.told()["gatherers"][0]["connections"] == 0


def test_a_fault_of_its_own_never_reaches_the_merge(capsys: pytest.CaptureFixture[str]) -> None:
    Seen(1).heard(batch(gatherer=9))
    said = capsys.readouterr()
    assert "was not looked at" in said.out + said.err
