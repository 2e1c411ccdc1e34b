"""The state of chains and subscriptions, and its JSON form."""

from __future__ import annotations

import json

import pytest

from marketdata import events
from marketdata.book import hash_levels
from marketdata.chain import Chain, Life, Scope
from marketdata.continuity import Continuity
from tests.continuity_feed import Feed, delta, snapshot, trade


def _stream() -> list[object]:
    """Snapshots, changes, a gap, a late frame, replies: every kind of state."""
    frames: list[object] = [snapshot(1, yes=[(400_000, 5)]), snapshot(2, market="N")]
    frames += [delta(k, market="MN"[k % 2], size=k) for k in range(3, 90)]
    frames += [trade(1), delta(95), delta(93), snapshot(96, yes=[(1, 2)]), delta(97), delta(97)]
    frames += [events.Ok(8, 1, 98, None, None), events.Error(25, "x", [], None, 1, 99)]
    return frames


@pytest.mark.parametrize("cut", [0, 1, 2, 5, 60, 80, 89, 91, 93, 95, 97])
def test_a_restored_state_goes_on_exactly_as_the_first_would(cut: int) -> None:
    """A STATE record stands in for the whole spool before it (INV-53)."""
    whole, parted = Feed("orderbook_delta", "trade"), Feed("orderbook_delta", "trade")
    command = {"id": 8, "params": {"action": "delete_markets", "market_ticker": "N"}}
    for feed in (whole, parted):
        feed.control(k="subscribe", command=command)
    frames = _stream()
    whole.send(*frames[:cut])
    parted.send(*frames[:cut])
    form = json.loads(json.dumps(parted.continuity.export()))
    parted.continuity = Continuity.restore(form)
    whole.continuity.take()
    whole.continuity.take_effects()
    whole.send(*frames[cut:])
    parted.send(*frames[cut:])
    assert parted.continuity.rows == whole.continuity.rows
    assert parted.continuity.effects == whole.continuity.effects
    assert parted.continuity.export() == whole.continuity.export()


def test_an_anchored_chain_keeps_its_levels_and_a_floating_one_its_hash() -> None:
    anchored = Chain(1, 2)
    anchored.load([(100, 5), (200, 0)], [(300, -1)], hash_levels([(100, 5)], [(300, -1)]))
    again = Chain.restore(anchored.export())
    assert (again.yes, again.no, again.hash, again.anchored) == (
        {100: 5},
        {300: -1},
        anchored.hash,
        True,
    )
    floating = Chain(1, 2)
    floating.hash, floating.last_us = 77, 9
    again = Chain.restore(floating.export())
    assert (again.hash, again.last_us, again.anchored) == (77, 9, False)


def test_a_stored_book_that_is_not_its_hash_is_refused() -> None:
    """A pair of checks: levels and hash were written apart."""
    chain = Chain(1, 2)
    chain.load([(100, 5)], [], hash_levels([(100, 5)], []))
    form = chain.export()
    form[3] = "1"
    with pytest.raises(AssertionError):
        Chain.restore(form)


def test_floating_forgets_the_book() -> None:
    chain = Chain(1, 2)
    chain.load([(100, 5)], [(5, 5)], 3)
    chain.float_in(9)
    assert (chain.run_id, chain.anchored, chain.hash, chain.yes, chain.no) == (9, False, 0, {}, {})


def test_a_scope_and_a_life_survive_their_json_form() -> None:
    scope = Scope(4, "trade")
    scope.last_seq, scope.started, scope.duplicates_in_a_row = 7, True, 3
    life = Life()
    life.scopes[4] = scope
    life.removals[3] = ["A"]
    life.problems["malformed"] = 2
    again = Life.restore(json.loads(json.dumps(life.export())))
    assert again.export() == life.export()
