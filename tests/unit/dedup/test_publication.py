"""Closed windows in production's form: ids, replaced evidence, touched hours."""

from __future__ import annotations

from dedup.publication import HOUR_US, Touched, publication_of, signed
from marketdata.coverage import OPEN_US, Mark, MarketClaim
from tests.window_outputs import T0, WINDOW_US, window_output, with_trouble


def test_ids_do_not_depend_on_how_windows_are_grouped() -> None:
    """Whether windows are published one by one or together is timing: no id may tell."""
    outputs = [window_output(0, ["B", "C"]), window_output(1, ["A", "C"])]
    together = publication_of(outputs, {}, {}).new_markets
    first = publication_of(outputs[:1], {}, {})
    ids = {ticker: market for market, ticker, _ in first.new_markets}
    second = publication_of(outputs[1:], ids, {})
    assert together == [(1, "B", T0), (2, "C", T0), (3, "A", T0 + WINDOW_US)]
    assert first.new_markets + second.new_markets == together


def test_rows_get_productions_ids_and_the_output_keeps_its_own() -> None:
    """Outputs number markets within themselves; a publication spans several."""
    output = window_output(0, ["A", "B"])
    made = publication_of([output], {"B": 1, "A": 7}, {})
    assert set(made.deltas["market_id"][:3].tolist()) == {7}
    assert set(made.deltas["market_id"][3:].tolist()) == {1}
    assert set(output.deltas["market_id"].tolist()) == {0, 1}
    assert made.trades["market_id"].tolist() == [7]
    assert made.tickers["market_id"].tolist() == [7]
    assert [s[3] for s in made.snapshots] == [7, 1]


def test_a_ticker_named_only_by_evidence_gets_an_id() -> None:
    """A quiet market has claims and no rows; it must be in production all the same."""
    output = window_output(0, ["A"])
    output.claims = [MarketClaim("QUIET", 1, 9, T0, OPEN_US, valid=True, reason="")]
    made = publication_of([output], {}, {})
    assert [t for _, t, _ in made.new_markets] == ["A", "QUIET"]
    assert (2, 1, 9, T0) in made.claims


def test_later_evidence_with_the_same_key_wins() -> None:
    """ON CONFLICT cannot touch one row twice in a statement, and the later word counts."""
    made = publication_of([window_output(0, ["A"]), window_output(1, ["A"], 4)], {}, {})
    assert made.progress[(0, 11)].to_us == T0 + 2 * WINDOW_US
    assert made.named_states["global"] == b"1"
    assert made.tails == {1: b"A@1"}
    assert made.positions == {0: (2, 3)}
    assert made.counts["rows_in"] == 6
    assert made.counts["witnesses_2"] == 6
    assert made.received_ns_max >= T0 * 1_000


def test_a_state_that_goes_away_is_deleted() -> None:
    """None in named_states means that the arbiter does not need it any more."""
    made = publication_of(
        [window_output(0, ["A"]), with_trouble(window_output(1, ["A"], 4))], {}, {}
    )
    assert made.named_states["gone0"] is None
    assert made.gaps[0][4:6] == (-1, -(1 << 63))
    assert made.quarantine[0][8] == 2


def test_progress_touches_only_the_hours_that_it_newly_proves() -> None:
    """A run that lives for days must not make every one of its hours dirty with each window."""
    output = window_output(0, ["A"])
    known = {(0, 11): output.from_us}
    old = output.progress[0]
    output.progress = [
        type(old)(0, 11, "orderbook", T0 - 50 * HOUR_US, output.to_us, ended=False, reason="")
    ]
    output.claims = []
    assert publication_of([output], {}, known).touched.proof == {T0}
    assert len(publication_of([output], {}, {}).touched.proof) == 51


def test_a_claim_that_closes_touches_its_end_and_one_taken_back_touches_everything() -> None:
    """Closing changes nothing about the past; taking back does."""
    output = window_output(0, ["A"])
    output.progress, output.audits, output.epochs = [], [], []
    began = T0 - 30 * HOUR_US
    output.claims = [MarketClaim("A", 0, 11, began, T0 + 5, valid=True, reason="close")]
    assert publication_of([output], {}, {}).touched.proof == {T0}
    output.claims = [MarketClaim("A", 0, 11, began, T0 + 5, valid=False, reason="contradicted")]
    assert len(publication_of([output], {}, {}).touched.proof) == 31
    output.claims = []
    output.marks = [Mark("A", "disputed", T0 - 2 * HOUR_US, T0, "two against one")]
    assert publication_of([output], {}, {}).touched.proof == {T0 - 2 * HOUR_US, T0 - HOUR_US}


def test_touched_hours_have_a_bound() -> None:
    """A wild time in evidence costs a bounded number of hours."""
    touched = Touched()
    touched.proof_over(0, OPEN_US)
    assert len(touched.hours) == 24 * 366
    touched = Touched()
    touched.proof_over(5, 5)
    assert touched.hours == set()


def test_signed_keeps_the_bits() -> None:
    """PostgreSQL has no unsigned 64-bit integer."""
    assert [signed(v) for v in (0, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)] == [
        0, (1 << 63) - 1, -(1 << 63), -1,
    ]  # fmt: skip
