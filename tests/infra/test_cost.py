"""The bill from the templates, with a price and a source for everything that costs."""

from __future__ import annotations

import copy
import datetime as dt
import json
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import pytest
from infra_fixtures import Synthesized
from kalshi_infra import cost, cost_table, site
from kalshi_infra.assembly import Template
from kalshi_infra.cost import Prices
from kalshi_infra.errors import PriceError
from spec_tables import specification

TABLE = json.loads(cost.PRICES_PATH.read_text(encoding="utf-8"))
FULL, SMALL = cost.load_usage("full"), cost.load_usage("small")
PRICES = cost.load_prices()


def dollars(templates: Mapping[str, Template], usage: Mapping[str, Decimal] = FULL) -> Decimal:
    """The total."""
    return cost.total(cost.bill(templates, PRICES, usage))


def test_the_specifications_lines_are_those_of_its_own_table() -> None:
    """The comparison must compare with the specification, not with a copy that has drifted."""
    tables, _ = specification()
    (table,) = [t for t in tables if t.path == "Cost Estimate"]
    rows = {row["Service"]: row["Monthly"] for row in table.rows}
    for text, usd in cost.SPECIFIED.values():
        assert rows[text] == f"${usd}"
    assert int(re.sub(r"\D", "", rows["Total"])) == sum(u for _, u in cost.SPECIFIED.values())


def test_the_full_profile_line_by_line(templates: Mapping[str, Template]) -> None:
    """Worked by hand: 730 hours, list prices."""
    lines = {line.key: line.monthly for line in cost.bill(templates, PRICES, FULL)}
    assert lines == {
        "gatherers": Decimal("588.67"),  # 3 x 0.2688 x 730 = 588.672
        "deduplicator": Decimal("98.11"),  # 0.1344 x 730 = 98.112
        "gatherer disks": Decimal("48.00"),  # 600 GB x 0.08
        "deduplicator disk": Decimal("4.00"),
        "database": Decimal("94.17"),  # 0.129 x 730
        "database storage": Decimal("57.50"),  # 500 GB x 0.115
        "objects": Decimal("23.55"),  # 1024 GB x 0.023 = 23.552
        "telemetry": Decimal("20.00"),
        "public addresses": Decimal("14.60"),  # 4 x 0.005 x 730
        "managed secrets": Decimal("0.40"),
    }
    assert dollars(templates) == Decimal("949.00")


def test_the_small_profile_line_by_line(synthesized: Synthesized) -> None:
    """One gatherer, for one person."""
    lines = {
        line.key: line.monthly for line in cost.bill(synthesized(profile="small"), PRICES, SMALL)
    }
    assert lines == {
        "gatherers": Decimal("49.06"),  # 0.0672 x 730
        "deduplicator": Decimal("24.53"),  # 0.0336 x 730
        "gatherer disks": Decimal("8.00"),
        "deduplicator disk": Decimal("2.40"),
        "database": Decimal("23.36"),  # 0.032 x 730
        "database storage": Decimal("5.75"),
        "objects": Decimal("2.30"),
        "telemetry": Decimal("5.00"),
        "public addresses": Decimal("7.30"),
        "managed secrets": Decimal("0.40"),
    }
    assert sum(lines.values()) == Decimal("128.10")


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"dedup_health_egress": True}, "0"),
        ({"noncurrent_days": 30, "abort_multipart_days": 7, "glacier_ir": True}, "0"),
        ({"rds_zone": "c"}, "0"),
        ({"secrets_manager": True}, "0.40"),
        ({"lake_catalog": True}, "0"),
        ({"alarms": True}, "2.20"),  # 22 alarms
        # host 49.06 + disk 40.00 instead of 94.17 + 57.50 + secret 0.40
        ({"production": "timescale_ec2"}, "-63.01"),
    ],
)
def test_an_option_moves_the_total_by_what_it_adds(
    options: dict[str, Any],
    difference: str,
    templates: Mapping[str, Template],
    synthesized: Synthesized,
) -> None:
    """Each option's price, beside the specification."""
    assert dollars(synthesized(**options)) - dollars(templates) == Decimal(difference)


def test_a_database_in_the_deduplicators_zone_saves_crossing_traffic(
    templates: Mapping[str, Template], synthesized: Synthesized
) -> None:
    """D18, in dollars: 30 days x 5 GB x 0.01 on each side."""

    def merged(made: Mapping[str, Template]) -> Decimal:
        lines = {line.key: line.monthly for line in cost.by_use(made, PRICES, FULL)}
        return lines["between zones: merged"]

    assert merged(templates) == Decimal("3.00")
    assert merged(synthesized(rds_zone="c")) == 0


@pytest.mark.parametrize(
    "key", ["ec2.t4g.2xlarge", "rds.gp3", "ebs.gp3", "ipv4", "secret", "s3.standard"]
)
def test_a_missing_price_is_an_error_that_names_it(
    key: str, templates: Mapping[str, Template]
) -> None:
    """An estimate that leaves a line out quietly is worse than none."""
    table = copy.deepcopy(TABLE)
    del table["prices"][key]
    with pytest.raises(PriceError, match=key):
        cost.bill(templates, Prices(table), FULL)


def test_an_unknown_resource_type_is_an_error(templates: Mapping[str, Template]) -> None:
    """A NAT gateway costs more than the small profile's gatherer."""
    made = copy.deepcopy(dict(templates))
    made["KalshiNetwork"]["Resources"]["Nat"] = {"Type": "AWS::EC2::NatGateway", "Properties": {}}
    with pytest.raises(PriceError, match="NatGateway"):
        cost.bill(made, PRICES, FULL)
    made = copy.deepcopy(dict(templates))
    endpoint = made["KalshiNetwork"]["Resources"]["S3Endpoint"]["Properties"]
    endpoint["VpcEndpointType"] = "Interface"
    with pytest.raises(PriceError, match="gateway endpoints"):
        cost.bill(made, PRICES, FULL)


@pytest.mark.parametrize(
    ("stack", "logical_id", "path", "value", "more"),
    [
        ("KalshiGatherer1", "Instance", "InstanceType", "t4g.xlarge", "-98.11"),
        (
            "KalshiGatherer1",
            "Disk",
            "LaunchTemplateData/BlockDeviceMappings/0/Ebs/Iops",
            4000,
            "5.00",
        ),
        (
            "KalshiGatherer1",
            "Disk",
            "LaunchTemplateData/BlockDeviceMappings/0/Ebs/Throughput",
            225,
            "4.00",
        ),
        ("KalshiDatabase", "Production", "MultiAZ", True, "151.67"),
    ],
)
def test_a_changed_size_moves_the_total(
    stack: str, logical_id: str, path: str, value: Any, more: str, templates: Mapping[str, Template]
) -> None:
    """The bill is read from the template, not from the topology."""
    made = copy.deepcopy(dict(templates))
    node: Any = made[stack]["Resources"][logical_id]["Properties"]
    *parents, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    for part in parents:
        node = node[part]
    node[last] = value
    assert abs(dollars(made) - dollars(templates) - Decimal(more)) <= Decimal("0.01")


def test_every_price_has_a_source_a_unit_and_a_date() -> None:
    """Whoever doubts a figure must find where it came from."""
    assert dt.date.fromisoformat(TABLE["dated"])
    for key, entry in TABLE["prices"].items():
        assert set(entry) == {"usd", "per", "source"}, key
        assert Decimal(entry["usd"]) > 0
        assert len(entry["source"]) > 10


def test_the_report_shows_every_line_its_difference_and_the_plan(
    templates: Mapping[str, Template],
) -> None:
    """What `make cost` prints."""
    lines = cost.bill(templates, PRICES, FULL)
    text = cost.report("full", lines, cost.by_use(templates, PRICES, FULL), PRICES.dated)
    assert re.search(r"^gatherers +3x EC2 t4g.2xlarge +510 +588.67 +\+78.67", text, re.MULTILINE)
    assert re.search(r"^total +835 +949.00 +\+114.00$", text, re.MULTILINE)
    assert "computed 742.97" in text
    assert "burst credits, worst case" in text


def test_burst_credits_cost_by_size_and_nothing_in_standard_mode(
    templates: Mapping[str, Template], synthesized: Synthesized
) -> None:
    """D20: by far the largest line that no total shows."""

    def burst(made: Mapping[str, Template]) -> Decimal:
        lines = {line.key: line.monthly for line in cost.by_use(made, PRICES, FULL)}
        return lines["burst credits, worst case"]

    assert burst(templates) == Decimal("490.56")  # (3 x 8 + 4) vCPU x 60 % x 0.04 x 730
    assert burst(synthesized(cpu_credits="unlimited")) == Decimal("490.56")
    assert burst(synthesized(cpu_credits="standard")) == 0
    assert burst(synthesized(profile="small")) == Decimal("87.60")  # 2 x 70 % and 2 x 80 %


def test_the_table_of_profiles_and_options_prints_a_line_for_each(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`make cost`, with two of its options."""
    monkeypatch.setattr(cost_table, "OPTIONS", ({"alarms": True}, {"rds_zone": "c"}))
    monkeypatch.setattr(site, "SITE_PATH", cost_table.EXAMPLE_PATH.with_name("absent.toml"))
    assert cost_table.main() == 0
    printed = capsys.readouterr().out
    assert "profile full" in printed
    assert "profile small" in printed
    assert re.search(r"alarms = True +951.20 +\+2.20", printed)
    assert re.search(r"rds_zone = c +949.00 +\+0.00 +-3.00", printed)
