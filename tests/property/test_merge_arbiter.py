"""INV-R1, INV-R2, INV-M2: neither reading, nor crashes, nor the grid may show on the tape (I6)."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dedup.arbitrate import Arbiter
from dedup.output import ArbiterSettings, WindowOutput
from marketdata.rows import GathererBatch
from tests.trial import HARSH, Plan, Recorder, gathered, made_stream, score

WILD = Plan(
    loss=0.02, burst=5, disconnect_us=4_000_000, down_us=(100_000, 2_000_000), late_start_us=500_000
)
QUICKLY = settings(
    deadline=None, max_examples=12, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
PLANS = st.sampled_from([HARSH, WILD])


def recordings(seed: int, markets: int, plan: Plan, gatherers: int = 3) -> list[Recorder]:
    stream = made_stream(seed, 400, markets, burst=60, reset=bool(seed % 2))
    return [Recorder(stream, g, seed, plan) for g in range(gatherers)]


def digest(output: WindowOutput) -> Any:
    """Everything of an output that the publisher writes, but the state."""
    kept = []
    for q in output.quarantine:
        rows = q.rows.copy()
        rows["batch_id"] = 0  # how the gatherer cut its commits may differ between two plays
        kept.append((q.ticker, q.gatherer, q.run_id, q.reason, q.n_rows, rows.tobytes()))
    return (
        output.window, output.tickers, output.deltas.tobytes(), output.snapshots, output.epochs,
        output.gaps, kept, output.progress, output.claims, output.marks, output.audits,
        output.trades.tobytes(), output.ticker_rows.tobytes(), output.counts,
    )  # fmt: skip


def merged(batches: list[list[GathererBatch]], order: int, crashes: int = 0) -> list[Any]:
    """All outputs, with batches of different gatherers in a random order and some crashes.

    A crash forgets everything but what was published; reading goes on where the publisher says.
    """
    rng, limits = random.Random(order), ArbiterSettings()
    arbiter, outputs = Arbiter(len(batches), limits), []
    queues = [list(q) for q in batches]
    markets: dict[str, bytes] = {}
    named: dict[str, bytes] = {}
    positions: list[Any] = []

    def publish(*, final: bool = False) -> None:
        nonlocal positions
        while (out := arbiter.step(final=final)) is not None:
            outputs.append(digest(out))
            markets.update(out.market_states)
            for name, packed in out.named_states.items():
                if packed is None:
                    named.pop(name, None)
                else:
                    named[name] = packed
            positions = out.positions

    while any(queues):
        arbiter.absorb(rng.choice([q for q in queues if q]).pop(0))
        publish()
        if crashes and positions and rng.random() < 0.3:
            crashes -= 1
            arbiter = Arbiter.load(len(batches), limits, markets, named, positions)
            first = {p.gatherer: p.reread_from_batch for p in positions}
            queues = [[b for b in q if b.last_batch_id >= first[g]] for g, q in enumerate(batches)]
    publish(final=True)
    return outputs


@QUICKLY
@given(seed=st.integers(0, 999), markets=st.sampled_from([1, 2, 8]), plan=PLANS,
       size=st.sampled_from([15, 80, 500]), order=st.integers(1, 99))  # fmt: skip
def test_the_order_of_reading_does_not_show(
    seed: int, markets: int, plan: Plan, size: int, order: int
) -> None:
    batches = [r.batches(size) for r in recordings(seed, markets, plan)]
    assert merged(batches, order) == merged(batches, 0)


@QUICKLY
@given(seed=st.integers(0, 999), markets=st.sampled_from([1, 2, 8]), plan=PLANS,
       size=st.sampled_from([15, 80, 500]), order=st.integers(1, 99))  # fmt: skip
def test_crashes_at_any_place_do_not_show(
    seed: int, markets: int, plan: Plan, size: int, order: int
) -> None:
    batches = [r.batches(size) for r in recordings(seed, markets, plan)]
    assert merged(batches, order, crashes=5) == merged(batches, 0)


@QUICKLY
@given(seed=st.integers(0, 999), markets=st.sampled_from([1, 2, 8]), plan=PLANS)
def test_the_size_of_batches_does_not_show(seed: int, markets: int, plan: Plan) -> None:
    results = [
        merged([r.batches(size) for r in recordings(seed, markets, plan)], 0)
        for size in (10, 5_000)
    ]
    assert results[0] == results[1]


@QUICKLY
@given(seed=st.integers(0, 999), markets=st.sampled_from([1, 8]), plan=PLANS,
       window_s=st.sampled_from([1, 2, 30]))  # fmt: skip
def test_the_grid_is_only_a_unit_of_work(
    seed: int, markets: int, plan: Plan, window_s: int
) -> None:
    """The same events in the same epochs under the same numbers, whatever the window."""

    def tape(window_us: int) -> Any:
        recorders = recordings(seed, markets, plan)
        arbiter = Arbiter(3, ArbiterSettings(window_us=window_us))
        for recorder in recorders:
            for batch in recorder.batches(100):
                arbiter.absorb(batch)
        outputs = []
        while (out := arbiter.step(final=True)) is not None:
            outputs.append(out)
        return {
            ticker: [rows[n].tolist() for n in ("exchange_us", "price", "delta", "book_hash")]
            for ticker, rows in gathered(outputs, arbiter).rows.items()
        }

    assert tape(window_s * 1_000_000) == tape(5_000_000)


@QUICKLY
@given(seed=st.integers(0, 9_999), markets=st.sampled_from([1, 3, 12]), plan=PLANS,
       gatherers=st.integers(1, 4))  # fmt: skip
def test_nothing_lost_false_misordered_or_falsely_complete(
    seed: int, markets: int, plan: Plan, gatherers: int
) -> None:
    stream = made_stream(seed, 500, markets, burst=100, reset=bool(seed % 3))
    recorders = [Recorder(stream, g, seed, plan) for g in range(gatherers)]
    arbiter = Arbiter(gatherers, ArbiterSettings())
    for recorder in recorders:
        for batch in recorder.batches(120):
            arbiter.absorb(batch)
    outputs = []
    while (out := arbiter.step(final=True)) is not None:
        outputs.append(out)
    played = gathered(outputs, arbiter)
    counts = played.counts
    found = score(stream, recorders, played)
    assert (found.false, found.misordered, found.false_complete) == (0, 0, 0)
    if not counts["ambiguous_events"]:
        assert found.lost == 0
    accounted = ("merged_rows", "duplicate_rows", "quarantined_rows", "skipped_rows")
    assert counts["rows_in"] == sum(counts[name] for name in accounted)
    assert counts["rows_in"] == sum(r.size for x in recorders for r in x.rows)
