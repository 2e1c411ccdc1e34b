"""Rules whose time runs faster are the same rules in everything else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import promtool
from tests.monitoring.compressed import AGES, PREFIX, compressed, milliseconds, skeleton

RULES = Path(__file__).resolve().parents[2] / "monitoring" / "alerts.yml"
FACTOR = 30


def rules() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(RULES.read_text())
    return found


def by_name(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for group in found["groups"] for rule in group["rules"]}


def in_one_unit(found: dict[str, Any]) -> dict[str, Any]:
    """What a file says when nothing is compressed, in the form that compression writes."""
    return compressed(found, 1)


def without_lengths(text: str) -> str:
    """Every number and unit of a text taken out, by other code than the module's."""
    return re.sub(r"\d+(?:\.\d+)?(?:e\d+)?(?:ms|[smhd]\b)?(?: \* \d+)?", "#", text)


def test_lengths_are_divided_and_nothing_else_changes() -> None:
    before, after = by_name(in_one_unit(rules())), by_name(compressed(rules(), FACTOR))
    assert list(before) == list(after)
    for name, rule in after.items():
        plain = before[name]
        assert without_lengths(rule["expr"]) == without_lengths(plain["expr"]), name
        assert {k: v for k, v in rule.items() if k not in ("expr", "for")} == {
            k: v for k, v in plain.items() if k not in ("expr", "for")
        }
        assert ("for" in rule) == ("for" in plain)
    assert after["TargetDown"]["for"] == "4000ms"
    assert after["Silence"]["expr"] == "kalshi_tape_oldest_proof_seconds > 3"
    assert after["Silence"]["for"] == "6000ms"
    assert after["Reconnecting"]["expr"].endswith("[20000ms]) > 20"), "a count stays"
    assert "< 20e9 or" in after["SpoolDiskLow"]["expr"], "bytes stay"
    assert after["SpoolDiskLow"]["expr"].endswith("[120000ms], 720) < 0")
    assert "offset 120000ms" in after["NotUnderstood"]["expr"]
    assert after["ClockOff"]["expr"] == by_name(rules())["ClockOff"]["expr"], "no time that passes"
    assert after["ExportBehind"]["expr"] == by_name(rules())["ExportBehind"]["expr"], "hours"


def test_every_length_is_found() -> None:
    """A range, an offset or an age that the patterns do not know would stay as long as it is."""
    for name, rule in by_name(rules()).items():
        lengths = re.findall(r"\b\d+[smhd]\b", rule["expr"])
        assert without_lengths(rule["expr"]).count("#") >= len(lengths)
        changed = by_name(skeleton(rules()))[name]["expr"]
        assert not re.search(r"\b\d+[smhd]\b", changed), name
        compared = re.findall(rf"{PREFIX}(\w+_seconds) [<>] -?[\d.]+", changed)
        assert set(compared) <= {"clock_offset_low_seconds", "clock_offset_high_seconds"}, name
    held = RULES.read_text()
    assert all(f"{PREFIX}{age}" in held for age in AGES)
    assert milliseconds("15m") == 900_000


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        ('> 20"\n        labels', '> 21"\n        labels'),
        ("count(min by (instance)", "count(max by (instance)"),
        ("< 20e9", "< 21e9"),
        ("severity: page", "severity: ticket"),
        ("offset_low_seconds > 0.5", "offset_low_seconds > 0.6"),
    ],
)  # fmt: skip
def test_a_change_of_anything_else_is_seen(was: str, becomes: str) -> None:
    """The control of the comparison: the skeleton differs as soon as a rule says something else."""
    text = RULES.read_text()
    assert was in text
    other = yaml.safe_load(text.replace(was, becomes, 1))
    assert skeleton(other) != skeleton(rules())
    assert skeleton(compressed(other, FACTOR)) != skeleton(rules())


def test_a_change_of_a_length_only_is_none_of_the_skeleton() -> None:
    other = yaml.safe_load(RULES.read_text().replace("for: 2m", "for: 5m").replace("[1h]", "[3h]"))
    assert skeleton(other) == skeleton(rules())
    assert skeleton(compressed(rules(), FACTOR)) == skeleton(rules())


@pytest.mark.skipif(promtool.promtool() is None, reason="promtool is not here")
def test_prometheus_reads_them(tmp_path: Path) -> None:
    (tmp_path / "fast.yml").write_text(yaml.safe_dump(compressed(rules(), FACTOR)))
    code, said = promtool.run("check", "rules", "fast.yml", cwd=tmp_path)
    assert code == 0, said
