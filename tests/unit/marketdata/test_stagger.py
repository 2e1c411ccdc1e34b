"""Three gatherers never do the same thing at the same time after an outage."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from marketdata.stagger import SLOTS, audit_phase_permille, in_slot, slot_of

TRIOS = (("g1", "g2", "g3"), ("kalshi-gatherer-1", "kalshi-gatherer-2", "kalshi-gatherer-3"))


def test_names_with_numbers_take_the_slots_in_turn() -> None:
    for names in TRIOS:
        assert {slot_of(name) for name in names} == set(range(SLOTS))
        assert len({audit_phase_permille(name) for name in names}) == SLOTS
        assert max(audit_phase_permille(name) for name in names) == 1_000
    assert slot_of("nameless") == slot_of("nameless")
    assert 0 <= slot_of("") < SLOTS


@given(st.integers(1, 10**12), st.data())
def test_waits_of_different_slots_do_not_meet(span_ns: int, data: st.DataObject) -> None:
    """Each draws from its own third of the same span."""
    waits = [
        (in_slot(data.draw(st.integers(0, span_ns - 1)), span_ns, name), slot_of(name))
        for name in TRIOS[0]
        for _ in range(3)
    ]
    for one, slot in waits:
        assert 0 <= one <= span_ns
        for other, other_slot in waits:
            if slot < other_slot:
                assert one <= other
