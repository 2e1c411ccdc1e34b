"""Steps: their order, what is soaked how long, what is refused; and as data."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from deploy import plan
from deploy.errors import PlanError
from deploy.plan import Step, Wish, step_of
from tests.unit.deploy.test_rollout import FLEET, NAMES, NEW


def test_everything_is_copied_before_anything_moves_and_hosts_move_one_by_one() -> None:
    made = plan.steps(FLEET, plan.targets(FLEET, NEW, Wish(), {}), Wish())
    told = [(step.do, step.host) for step in made]
    assert told[:2] == [("preflight", ""), ("lock", "")]
    assert told[2:6] == [("copy", name) for name in NAMES]
    acts = ("check", "switch", "await", "soak")
    assert told[6:-2] == [(do, name) for name in NAMES for do in acts]
    assert told[-2:] == [("confirm", ""), ("unlock", "")]
    assert [step.number for step in made] == list(range(1, len(made) + 1))
    soaks = {step.host: step.seconds for step in made if step.do == "soak"}
    assert soaks == dict(zip(NAMES, [plan.CANARY_SOAK_S] * 2 + [plan.SOAK_S] * 2, strict=True))


def test_databases_go_where_there_are_none_or_where_they_are_asked_for() -> None:
    have = {name: ["postgres"] for name in NAMES[1:]}
    wanted = plan.targets(FLEET, NEW, Wish(), have)
    assert [name for name, paths in wanted.items() if "postgres" in paths] == ["deduplicator"]
    asked = plan.targets(FLEET, NEW, Wish(databases=True), have)
    assert all(list(paths)[-1] == "postgres" for paths in asked.values())


def test_a_release_of_another_topology_and_a_host_that_is_none_are_refused() -> None:
    with pytest.raises(PlanError, match=r"another topology\.toml"):
        plan.targets(FLEET, replace(NEW, topology="0" * 64), Wish(), {})
    with pytest.raises(PlanError, match="no host is called gatherer-9"):
        plan.targets(FLEET, NEW, Wish(hosts=("gatherer-9",)), {})
    only = plan.targets(FLEET, NEW, Wish(hosts=("gatherer-2",)), {})
    assert list(only) == ["gatherer-2"]


def test_a_step_is_data_and_back() -> None:
    for step in plan.steps(FLEET, plan.targets(FLEET, NEW, Wish(), {}), Wish()):
        assert step_of(json.loads(json.dumps(step.as_json()))) == step
        assert step.told()
    assert Step(1, "lock").as_json() == {"number": 1, "do": "lock"}
