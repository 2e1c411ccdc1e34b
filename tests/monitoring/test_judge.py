"""The judge of the fault run, on made-up runs: each way not to hold, and its own controls."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tests.monitoring.faults import FAULTS, SHORT
from tests.monitoring.judge import ALWAYS, DEAF, Fired, judge
from tests.monitoring.proxy import later
from tests.monitoring.rig import ROOT, Seen, with_controls

NAMES = {"A", "B", DEAF, ALWAYS}
BOTH = [Fired("A", "fault one", 3.0), Fired("B", "fault two", 0.5)]


def verdict(**changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "names": NAMES, "asked": {"A", "B"}, "clean": {ALWAYS}, "fired": BOTH, "left": {},
    }  # fmt: skip
    return judge(**{**made, **changes})


def test_a_good_run_holds() -> None:
    found = verdict()
    assert found["holds"]
    assert found["controls_caught"] == {"deaf": True, "always": True}
    assert verdict(fired=BOTH[:1], left={"B": "no disk"})["holds"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"fired": [BOTH[0], Fired("B", "fault two", None)]}, ("silent", ["B"])),
        ({"fired": BOTH[:1]}, ("unheard", ["B"])),
        ({"clean": {ALWAYS, "A"}}, ("cried_in_the_quiet_hour", ["A"])),
        ({"clean": set()}, ("controls_caught", {"deaf": True, "always": False})),
        (
            {"fired": [*BOTH, Fired(DEAF, "fault one", 1.0)]},
            ("controls_caught", {"deaf": False, "always": True}),
        ),
    ],
)
def test_each_way_not_to_hold(changes: dict[str, Any], told: tuple[str, Any]) -> None:
    """A deaf rule, a rule that always fires, and a judge that no longer sees either."""
    found = verdict(**changes)
    assert not found["holds"]
    assert found[told[0]] == told[1]


def test_every_alert_has_a_fault_that_raises_it() -> None:
    rules = yaml.safe_load((ROOT / "monitoring" / "alerts.yml").read_text())
    names = [rule["alert"] for group in rules["groups"] for rule in group["rules"]]
    raised = [name for fault in FAULTS for name in fault.raises]
    assert sorted(raised) == sorted(names)
    assert set(SHORT) <= {fault.name for fault in FAULTS}
    made = [r["alert"] for g in with_controls(rules)["groups"] for r in g["rules"]]
    assert made == [*names, DEAF, ALWAYS]


def test_an_alert_that_goes_on_began_once() -> None:
    seen = Seen()
    for at_s, firing in enumerate([set(), {"A"}, {"A", "B"}, set(), {"A"}]):
        seen.look(firing, float(at_s))
    assert seen.began == {"A": [1.0, 4.0], "B": [2.0]}
    assert seen.between(2.0, 4.0) == {"B"}


def test_a_time_is_told_later_in_the_exchanges_form() -> None:
    assert later("2026-08-31T12:00:00.5Z", 3) == "2026-08-31T12:00:00.500003Z"
    assert later("2026-08-31T12:00:00Z", 3) == "2026-08-31T12:00:00.000003Z"
