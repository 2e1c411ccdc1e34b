"""The change guard: nothing that records is disturbed by accident, and never two of them."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import conform
import pytest
from infra_fixtures import Synthesized
from kalshi_infra import guard, topology
from kalshi_infra.assembly import Template
from kalshi_infra.errors import DisruptionError, TemplateError
from kalshi_infra.guard import DELETE, REPLACE, STOP
from kalshi_infra.site import Site
from kalshi_infra.topology import Topology

ALL_HOSTS = {"gatherer-1", "gatherer-2", "gatherer-3", "deduplicator"}


def one(
    templates: Mapping[str, Template], stack: str, logical_id: str, path: str, value: Any
) -> Any:
    """The templates with one property of one resource replaced."""
    made = copy.deepcopy(dict(templates))
    node: Any = made[stack]["Resources"][logical_id]["Properties"]
    *parents, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    for part in parents:
        node = node[part]
    node[last] = value
    return made


def effects(old: Mapping[str, Template], new: Mapping[str, Template]) -> dict[str, set[str]]:
    """Effects by host."""
    found: dict[str, set[str]] = {}
    for entry in guard.from_templates(old, new):
        found.setdefault(entry.host, set()).add(entry.effect)
    return found


def test_no_change_disrupts_nothing(templates: Mapping[str, Template]) -> None:
    """The second deploy must pass."""
    guard.judge(guard.from_templates(templates, templates))
    assert guard.from_templates({}, templates) == []


def test_another_image_replaces_every_host_and_is_refused(
    templates: Mapping[str, Template], wanted: Topology, chosen: Site
) -> None:
    """W4, image: one line in site.toml would lose three databases."""
    new, _ = conform.synthesize(wanted, dataclasses.replace(chosen, ami_id="ami-0fedcba9876543210"))
    found = guard.from_templates(templates, new)
    assert {(e.host, e.effect) for e in found} == {(host, REPLACE) for host in ALL_HOSTS}
    with pytest.raises(DisruptionError, match="name it with --host gatherer-1"):
        guard.judge(found)
    with pytest.raises(DisruptionError, match="3 gatherers at once"):
        guard.judge(found, "gatherer-1")


def test_other_user_data_stops_every_host_and_is_refused(
    templates: Mapping[str, Template], wanted: Topology, chosen: Site
) -> None:
    """W4, user data: another signing key is enough."""
    other = dataclasses.replace(chosen, nix_public_key="other:" + "B" * 43 + "=")
    new, _ = conform.synthesize(wanted, other)
    assert effects(templates, new) == {host: {STOP} for host in ALL_HOSTS}
    with pytest.raises(DisruptionError):
        guard.judge(guard.from_templates(templates, new))


@pytest.mark.parametrize(
    ("logical_id", "path", "value", "effect"),
    [
        ("Instance", "InstanceType", "t4g.xlarge", STOP),
        ("Instance", "UserData", {"Fn::Base64": "#!/bin/bash\n"}, STOP),
        ("Instance", "ImageId", "ami-0fedcba9876543210", REPLACE),
        ("Instance", "PrivateIpAddress", "10.0.2.11", REPLACE),
        ("Instance", "KeyName", "other", REPLACE),
        ("Instance", "NeverHeardOf", 1, REPLACE),
        ("Disk", "LaunchTemplateData/BlockDeviceMappings/0/Ebs/Iops", 4000, REPLACE),
        ("Disk", "LaunchTemplateName", "kalshi-other", REPLACE),
    ],
)
def test_a_change_of_one_host_is_refused_unless_that_host_is_named(
    logical_id: str, path: str, value: Any, effect: str, templates: Mapping[str, Template]
) -> None:
    """W4: the launch template too, whose version the instance refers to."""
    new = one(templates, "KalshiGatherer2", logical_id, path, value)
    found = guard.from_templates(templates, new)
    assert effects(templates, new) == {"gatherer-2": {effect}}
    for named in ("", "gatherer-1", "deduplicator"):
        with pytest.raises(DisruptionError, match="gatherer-2"):
            guard.judge(found, named)
    guard.judge(found, "gatherer-2")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("IamInstanceProfile", "kalshi-deduplicator"),
        ("DisableApiTermination", False),
        ("Tags/0/Value", "gatherer-2"),
    ],
)
def test_a_change_in_place_is_allowed(
    path: str, value: Any, templates: Mapping[str, Template]
) -> None:
    """A guard that always says no is switched off."""
    new = one(templates, "KalshiGatherer2", "Instance", path, value)
    guard.judge(guard.from_templates(templates, new))


def test_a_replaced_subnet_replaces_the_hosts_in_it_across_stacks(
    templates: Mapping[str, Template],
) -> None:
    """The change is in another stack than the damage; CloudFormation shows it only there."""
    new = one(templates, "KalshiNetwork", "SubnetPublicC", "CidrBlock", "10.0.4.0/24")
    assert effects(templates, new) == {"gatherer-3": {REPLACE}, "deduplicator": {REPLACE}}
    new = one(templates, "KalshiNetwork", "Vpc", "CidrBlock", "10.0.0.0/15")
    assert set(effects(templates, new)) == ALL_HOSTS  # a new VPC takes subnets and hosts with it


def test_a_changed_rule_or_flag_of_the_network_disrupts_nothing(
    templates: Mapping[str, Template], synthesized: Synthesized
) -> None:
    """Opening the health check must not cost a host."""
    assert guard.from_templates(templates, synthesized(dedup_health_egress=True)) == []
    assert guard.from_templates(templates, synthesized(secrets_manager=True)) == []
    assert guard.from_templates(templates, synthesized(noncurrent_days=30, glacier_ir=True)) == []
    assert guard.from_templates(templates, synthesized(lake_catalog=True, alarms=True)) == []


def test_two_gatherers_are_refused_whoever_is_named(templates: Mapping[str, Template]) -> None:
    """Two witnesses must always be capturing."""
    new = one(templates, "KalshiGatherer1", "Instance", "InstanceType", "t4g.xlarge")
    new = one(new, "KalshiGatherer3", "Instance", "InstanceType", "t4g.xlarge")
    for named in ("", "gatherer-1", "gatherer-3"):
        with pytest.raises(DisruptionError, match="2 gatherers at once"):
            guard.judge(guard.from_templates(templates, new), named)


@pytest.mark.parametrize(
    ("stack", "logical_id", "path", "value"),
    [
        ("KalshiDatabase", "Production", "StorageEncrypted", False),
        ("KalshiDatabase", "Production", "AvailabilityZone", "us-east-1c"),
        ("KalshiDatabase", "Production", "DBInstanceIdentifier", "other"),
        ("KalshiDatabase", "SubnetGroup", "DBSubnetGroupName", "other"),
        ("KalshiStorage", "Lake", "BucketName", "other"),
    ],
)
def test_the_database_and_the_bucket_are_never_replaced_by_a_deploy(
    stack: str, logical_id: str, path: str, value: Any, templates: Mapping[str, Template]
) -> None:
    """Not even when named: that is a migration, with a plan."""
    new = one(templates, stack, logical_id, path, value)
    for named in ("", "production", "kalshi-data-prod"):
        with pytest.raises(DisruptionError, match="never by a deploy"):
            guard.judge(guard.from_templates(templates, new), named)


def test_a_larger_database_is_allowed_when_production_is_named(
    templates: Mapping[str, Template],
) -> None:
    """Merging waits a few minutes; capture does not notice."""
    new = one(templates, "KalshiDatabase", "Production", "DBInstanceClass", "db.t4g.xlarge")
    found = guard.from_templates(templates, new)
    with pytest.raises(DisruptionError, match="--host production"):
        guard.judge(found)
    guard.judge(found, "production")


def test_a_host_that_leaves_its_template_counts_as_deleted(
    templates: Mapping[str, Template],
) -> None:
    """And a stack that leaves the app is not deleted by `cdk deploy`."""
    new = copy.deepcopy(dict(templates))
    del new["KalshiGatherer1"]["Resources"]["Instance"]
    assert effects(templates, new) == {"gatherer-1": {DELETE}}
    del new["KalshiGatherer1"]
    assert effects(templates, new) == {}


def change(action: str, replacement: str = "False", details: Any = ()) -> dict[str, Any]:
    """An answer of DescribeChangeSet with one change of an instance."""
    row = {
        "Action": action,
        "LogicalResourceId": "Instance",
        "ResourceType": "AWS::EC2::Instance",
        "Replacement": replacement,
        "Details": list(details),
    }
    return {"Changes": [{"Type": "Resource", "ResourceChange": row}]}


@pytest.mark.parametrize(
    ("described", "effect"),
    [
        (change("Modify", "True"), REPLACE),
        (change("Modify", "Conditional"), REPLACE),
        (
            change(
                "Modify", "False", [{"Target": {"Attribute": "Properties", "Name": "UserData"}}]
            ),
            STOP,
        ),
        (change("Remove"), DELETE),
        (
            change("Modify", "False", [{"Target": {"Attribute": "Properties", "Name": "Tags"}}]),
            None,
        ),
        (change("Add"), None),
    ],
)
def test_a_change_set_is_judged_by_what_cloudformation_says(
    described: dict[str, Any], effect: str | None, templates: Mapping[str, Template]
) -> None:
    """The second reading of one change, from the service itself."""
    found = guard.from_change_set(described, templates["KalshiGatherer2"])
    assert [e.effect for e in found] == ([effect] if effect else [])
    if effect:
        with pytest.raises(DisruptionError):
            guard.judge(found)
        guard.judge(found, "gatherer-2")


def test_the_tables_of_effects_agree_with_cloudformations_schemas() -> None:
    """A property that replaces by schema must not stand in a list that says it does not."""
    from cfnlint.schema.manager import PROVIDER_SCHEMA_MANAGER

    for kind in guard.GUARDED:
        schema = PROVIDER_SCHEMA_MANAGER.get_resource_schema("us-east-1", kind).schema
        replacing = {p.split("/")[2] for p in schema.get("createOnlyProperties", ())}
        assert not replacing & (guard.QUIET[kind] | guard.STOPPING[kind]), kind
        unknown = (guard.QUIET[kind] | guard.STOPPING[kind]) - set(schema["properties"])
        assert not unknown, unknown
    for kind, names in guard.IN_PLACE.items():
        schema = PROVIDER_SCHEMA_MANAGER.get_resource_schema("us-east-1", kind).schema
        replacing = {p.split("/")[2] for p in schema.get("createOnlyProperties", ())}
        assert not replacing & names, kind
        assert names <= set(schema["properties"]), kind


def test_the_command_refuses_with_exit_code_1_and_says_why(
    tmp_path: Path, templates: Mapping[str, Template], capsys: pytest.CaptureFixture[str]
) -> None:
    """`make aws-deploy` stops on it."""

    def write(name: str, made: Mapping[str, Template]) -> str:
        directory = tmp_path / name
        directory.mkdir()
        artifacts = {}
        for stack, template in made.items():
            (directory / f"{stack}.json").write_text(json.dumps(template), encoding="utf-8")
            artifacts[stack] = {
                "type": "aws:cloudformation:stack",
                "properties": {"templateFile": f"{stack}.json"},
            }
        manifest = json.dumps({"artifacts": artifacts})
        (directory / "manifest.json").write_text(manifest, encoding="utf-8")
        return str(directory)

    old = write("old", templates)
    new = write("new", one(templates, "KalshiGatherer2", "Instance", "ImageId", "ami-12345678"))
    assert guard.main([new, "--deployed", old]) == 1
    assert "gatherer-2: replace, because ImageId changed" in capsys.readouterr().err
    assert guard.main([new, "--deployed", old, "--host", "gatherer-2"]) == 0
    assert guard.main([old, "--deployed", old]) == 0


def test_a_guarded_resource_without_a_name_is_an_error() -> None:
    """The guard must be able to name what it protects."""
    template = {"Resources": {"Instance": {"Type": "AWS::EC2::Instance", "Properties": {}}}}
    with pytest.raises(TemplateError, match="no Name tag"):
        guard.from_templates({"S": template}, {"S": template})


def test_the_profile_small_does_not_touch_the_stacks_it_leaves_out(
    templates: Mapping[str, Template], synthesized: Synthesized
) -> None:
    """Going small stops the hosts it changes; the others are left for their owner to destroy."""
    found = effects(templates, synthesized(profile="small"))
    assert set(found) == {"gatherer-1", "deduplicator", "production"}
    assert topology.load(profile="small").host[0].name == "gatherer-1"
