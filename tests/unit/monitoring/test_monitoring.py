"""Alert rules and the dashboard: every expression, every alert, every entry of the runbook."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from runtime.metrics import PREFIX, TABLE
from tests import promtool

ROOT = Path(__file__).resolve().parents[3]
MONITORING = ROOT / "monitoring"
BUCKETS = ("_bucket", "_count", "_sum")  # what a histogram is stored as
ADDED = {"instance", "job", "process", "le"}  # labels that Prometheus or several processes add

needs_promtool = pytest.mark.skipif(
    promtool.promtool() is None, reason="promtool is not here and could not be unpacked"
)


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
    return list(group["rules"])


def panels() -> list[dict[str, Any]]:
    made = json.loads((MONITORING / "grafana" / "kalshi-tape.json").read_text())["panels"]
    return [panel for panel in made if panel["type"] != "row"]


def expressions() -> list[str]:
    shown = [target["expr"] for panel in panels() for target in panel["targets"]]
    return [rule["expr"] for rule in rules()] + shown


def unknown(expression: str) -> set[str]:
    """Names and labels in an expression that no service writes."""
    wrong: set[str] = set()
    by_name = {PREFIX + metric.name: metric for metric in TABLE}
    labels: set[str] = set()
    for name in re.findall(rf"{PREFIX}[a-z_]+", expression):
        plain = next((name.removesuffix(b) for b in BUCKETS if name.endswith(b)), name)
        metric = by_name.get(name) or by_name.get(plain)
        if metric is None or (name != plain and metric.kind != "histogram"):
            wrong.add(name)
        else:
            labels |= set(metric.labels)
    asked = set(re.findall(r"([a-z_]+)=~?\"", expression))
    for grouped in re.findall(r"\bby \(([^)]*)\)", expression):
        asked |= {part.strip() for part in grouped.split(",")}
    return wrong | (asked - labels - ADDED)


def test_every_expression_speaks_of_what_services_write() -> None:
    """A misspelt metric is an alert that never fires and a panel that is always empty."""
    assert {e: unknown(e) for e in expressions() if unknown(e)} == {}
    assert unknown(f"sum by (colour) ({PREFIX}gaps_totals)") == {PREFIX + "gaps_totals", "colour"}
    assert unknown(f"{PREFIX}gaps_total_bucket") == {PREFIX + "gaps_total_bucket"}


def test_every_alert_has_its_entry_in_the_runbook_and_a_test() -> None:
    """Whoever is woken finds what it means for the tape, where to look and what to do."""
    book = (ROOT / "docs" / "runbook.md").read_text()
    alerts = book.split("\n## Alerts\n")[1].split("\n## ")[0]
    entries = {part.partition("\n")[0]: part for part in alerts.split("\n### ")[1:]}
    names = [rule["alert"] for rule in rules()]
    assert sorted(entries) == sorted(names)
    assert len(set(names)) == len(names) > 20
    tested = yaml.safe_load((MONITORING / "alerts_test.yml").read_text())["tests"]
    for rule in rules():
        name = rule["alert"]
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{name.lower()}"
        for part in ("**Means for the tape**", "**Look at**", "**Do**"):
            assert part in entries[name], name
        assert f"({rule['labels']['severity']})" in entries[name]
        assert [t["name"] for t in tested].count(f"{name} fires") == 1
    quiet = {t["alertname"] for t in tested[0]["alert_rule_test"]}
    assert quiet == set(names), "an ordinary hour is asked about every alert"


def test_the_example_names_the_hosts_of_the_topology() -> None:
    hosts = tomllib.loads((ROOT / "topology.toml").read_text())
    port = hosts["ports"]["metrics"]
    wanted: dict[str, set[str]] = {}
    for host in hosts["host"]:
        wanted.setdefault(f"kalshi-{host['role']}", set()).add(f"{host['address']}:{port}")
    said = yaml.safe_load((MONITORING / "prometheus.example.yml").read_text())
    assert {
        job["job_name"]: set(job["static_configs"][0]["targets"]) for job in said["scrape_configs"]
    } == wanted


@needs_promtool
def test_every_alert_fires_for_what_it_is_made_for_and_none_in_an_ordinary_hour() -> None:
    for arguments in (
        ("check", "rules", "alerts.yml"), ("test", "rules", "alerts_test.yml"),
        ("check", "config", "prometheus.example.yml"),
    ):  # fmt: skip
        code, said = promtool.run(*arguments, cwd=MONITORING)
        assert code == 0, said


@needs_promtool
def test_every_expression_of_the_dashboard_is_one(tmp_path: Path) -> None:
    """Checked as rules, which promtool can; a broken one is seen."""
    made = [
        {"record": f"panel:{n}", "expr": target["expr"]}
        for n, target in enumerate(t for panel in panels() for t in panel["targets"])
    ]
    place = tmp_path / "panels.yml"
    place.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": made}]}))
    code, said = promtool.run("check", "rules", "panels.yml", cwd=tmp_path)
    assert code == 0, said
    made[0]["expr"] += ")"
    place.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": made}]}))
    assert promtool.run("check", "rules", "panels.yml", cwd=tmp_path)[0] != 0


@needs_promtool
def test_an_alert_that_never_fires_would_be_seen(tmp_path: Path) -> None:
    """The control: each rule made deaf for itself fails its own test, and one that always fires
    fails the ordinary hour."""
    shutil.copytree(MONITORING, tmp_path / "m")
    text = (MONITORING / "alerts.yml").read_text()
    for rule in rules():
        body = yaml.safe_load(text)
        (mine,) = [r for r in body["groups"][0]["rules"] if r["alert"] == rule["alert"]]
        mine["expr"] = f"({rule['expr']}) and vector(1) > 2"
        (tmp_path / "m" / "alerts.yml").write_text(yaml.safe_dump(body))
        code, said = promtool.run("test", "rules", "alerts_test.yml", cwd=tmp_path / "m")
        assert code != 0, rule["alert"]
        assert rule["alert"] in said
    body = yaml.safe_load(text)
    body["groups"][0]["rules"][0]["expr"] = "vector(1)"
    (tmp_path / "m" / "alerts.yml").write_text(yaml.safe_dump(body))
    assert promtool.run("test", "rules", "alerts_test.yml", cwd=tmp_path / "m")[0] != 0
