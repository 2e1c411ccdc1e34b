"""The verdict on a run of faults: which alert stayed silent, which one cried without a cause.

Pure. Two rules of the run are the judge's own control: one that never fires has to be found silent,
one that always fires has to be found in the quiet hour. A judge that misses either does not hold.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

DEAF: Final = "ControlDeaf"
ALWAYS: Final = "ControlAlways"


@dataclass(frozen=True, slots=True)
class Fired:
    """`after_s`: seconds from the fault's beginning until the alert fired; None: it did not."""

    alert: str
    fault: str
    after_s: float | None


def judge(
    names: Collection[str],
    asked: Collection[str],
    clean: Collection[str],
    fired: Collection[Fired],
    left: Mapping[str, str],
) -> dict[str, Any]:
    """`names`: all alerts with the two controls; `asked`: those that the faults of this run are to
    raise; `clean`: fired in the quiet hour; `left`: alert -> why its fault could not be inflicted.

    Holds: every alert that was asked for fired for each of its faults, none fired in the quiet
    hour, and both controls were caught.
    """
    heard = {f.alert for f in fired if f.after_s is not None}
    silent = sorted({f.alert for f in fired if f.after_s is None})
    never_asked = sorted(set(names) - set(asked) - {DEAF, ALWAYS})
    # The controls go through the same comparisons as every alert.
    unheard = sorted((set(asked) | {DEAF}) - heard - set(left))
    cried = sorted(clean)
    caught = {"deaf": DEAF in unheard, "always": ALWAYS in cried}
    unheard, cried = [n for n in unheard if n != DEAF], [n for n in cried if n != ALWAYS]
    return {
        "fired": [asdict(f) for f in fired],
        "silent": silent,
        "unheard": unheard,
        "cried_in_the_quiet_hour": cried,
        "left": dict(left),
        "never_asked": never_asked,
        "controls_caught": caught,
        "holds": not silent and not unheard and not cried and all(caught.values()),
    }
