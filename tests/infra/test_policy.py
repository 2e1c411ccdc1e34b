"""Two checkers that others wrote: cfn-lint and cdk-nag. Each accepted finding has its reason."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from infra_fixtures import Synthesized
from kalshi_infra import policy
from kalshi_infra.assembly import Template

REGION = "us-east-1"


def lint(templates: Iterable[Template]) -> list[Any]:
    """cfn-lint's findings of some templates."""
    from cfnlint.api import lint as run
    from cfnlint.config import ManualArgs

    return [
        match
        for template in templates
        for match in run(
            json.dumps(template), regions=[REGION], config=ManualArgs(regions=[REGION])
        )
    ]


@pytest.fixture(scope="module")
def findings(templates: Mapping[str, Template]) -> list[Any]:
    """cfn-lint on the specification as written."""
    # One host stands for the four: they differ in values only.
    twins = {"KalshiGatherer2", "KalshiGatherer3", "KalshiDeduplicator"}
    return lint(template for name, template in templates.items() if name not in twins)


@pytest.mark.slow
def test_cfn_lint_finds_only_the_two_explained_rules(findings: list[Any]) -> None:
    """Zones by name, and PostgreSQL by its major version: both are the specification's."""
    assert {match.rule.id for match in findings} == set(policy.CFN_LINT)


@pytest.mark.slow
def test_cfn_lint_finds_only_explained_rules_with_every_option(synthesized: Synthesized) -> None:
    """Options are deployed too."""
    made = synthesized(
        secrets_manager=True,
        noncurrent_days=30,
        abort_multipart_days=7,
        glacier_ir=True,
        cpu_credits="standard",
        lake_catalog=True,
        alarms=True,
    )
    stacks = ("KalshiIdentity", "KalshiStorage", "KalshiLake", "KalshiAlarms", "KalshiGatherer1")
    found = lint(made[name] for name in stacks)
    assert {match.rule.id for match in found} <= set(policy.CFN_LINT), found


def test_cfn_lint_would_find_a_mistake(templates: Mapping[str, Template]) -> None:
    """The control, with the mistake that a throughput on an instance's own disk is."""
    broken = json.loads(json.dumps(templates["KalshiGatherer1"]))
    broken["Resources"]["Instance"]["Properties"]["BlockDeviceMappings"] = [
        {"DeviceName": "/dev/xvda", "Ebs": {"VolumeSize": 200, "Throughput": 125}}
    ]
    assert any(
        match.rule.id.startswith("E") or match.rule.id.startswith("F") for match in lint([broken])
    )


def test_every_acknowledgement_has_a_reason_that_says_something() -> None:
    """`Accepted` is no reason."""
    for rules in (policy.VALIDATOR, policy.CFN_LINT, policy.NAG):
        for rule, reason in rules.items():
            assert len(reason) > 40, rule


NAG_PROGRAM = """
import sys, json
from pathlib import Path
import aws_cdk as cdk
from cdk_nag import AwsSolutionsChecks
import conform
from kalshi_infra import site, topology
from kalshi_infra.build import build, new_app
options, out = json.loads(sys.argv[1])
chosen = conform.example_site()
raw = {n: getattr(chosen, n) for n in chosen.__dataclass_fields__}
chosen = site.from_mapping({**raw, "alarm_email": "tape@example.com", "options": options})
app = new_app(Path(out))
cdk.Validations.of(app).add_plugins(AwsSolutionsChecks(app))
build(app, topology.load(), chosen)
app.synth()
"""


def nag(options: Mapping[str, Any]) -> set[str]:
    """Rules that cdk-nag finds, in a process of its own because it ends the process."""
    with tempfile.TemporaryDirectory() as directory:
        done = subprocess.run(
            [sys.executable, "-c", NAG_PROGRAM, json.dumps([options, directory])],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=False,
            timeout=500,
        )
        path = Path(directory) / "validation-report.json"
        assert path.exists(), done.stderr[-3000:]
        report = json.loads(path.read_text(encoding="utf-8"))
    (plugin,) = [
        r
        for r in report["pluginReports"]
        if "nag" in r["pluginName"].lower() or "Solutions" in r["pluginName"]
    ]
    return {re.sub(r"\[.*", "", violation["ruleName"]) for violation in plugin["violations"]}


@pytest.mark.slow
def test_cdk_nag_finds_exactly_the_explained_rules() -> None:
    """With every option on, so that an option cannot hide a finding."""
    options = {"secrets_manager": True, "lake_catalog": True, "alarms": True}
    assert nag(options) == set(policy.NAG)
