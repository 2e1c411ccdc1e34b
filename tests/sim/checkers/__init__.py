"""Judges of a world at rest, one truth each, apart from the product and from the faults."""

from __future__ import annotations

from tests.sim.checkers import accounts, again, books, coverage, effects, liveness, numbering, truth
from tests.sim.checkers.view import View, Violation
from tests.sim.world import World

CHECKERS = (
    ("liveness", liveness.check),
    ("effects", effects.check),
    ("I4 numbering, I8 epochs", numbering.check_numbers),
    ("I1 chain", numbering.check_chain),
    ("I5 levels", numbering.check_levels),
    ("I3 accounts", accounts.check),
    ("truth", truth.check_tape),
    ("I2 keyframes", truth.check_keyframes),
    ("epochs without holes", numbering.check_contiguous),
    ("trades and tickers", truth.check_others),
    ("provenance", truth.check_sources),
    ("coverage is true", coverage.check_true),
    ("books can be rebuilt", books.check_rebuildable),
    ("coverage and quarantine", coverage.check_quarantine),
    ("runs are over", coverage.check_ended),
    ("coverage is not empty", coverage.check_claimed),
    ("I6 again", again.check_again),
    ("I7 one less", again.check_one_less),
)


def judge(world: World) -> list[Violation]:
    """Every violation, in the order of the checkers. What cannot be read is one, too."""
    found: list[Violation] = []
    view = View(world)
    for name, check in CHECKERS:
        try:
            for violation in check(view):
                violation.checker = name
                found.append(violation)
        except Exception as error:  # noqa: BLE001 - a tape on which a checker falls is a finding
            found.append(Violation(f"the checker fell: {type(error).__name__}: {error}", name))
    return found


__all__ = ["CHECKERS", "View", "Violation", "judge"]
