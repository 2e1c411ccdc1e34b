"""The templates: nothing but the specification by default, and each option in both positions."""

from __future__ import annotations

import base64
import hashlib
import itertools
import re
import subprocess
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import conform
import golden
import pytest
from infra_fixtures import Synthesized
from kalshi_infra import assembly, firstboot, topology
from kalshi_infra.assembly import Resource, Template
from kalshi_infra.errors import SettingsError
from kalshi_infra.identity import deduplicator_policy, gatherer_policy
from kalshi_infra.site import Options, Site
from kalshi_infra.topology import Topology
from spec_tables import policy_documents, specification

# The whole deployment, by type: rows of the specification, and the listed additions.
CENSUS = {
    "AWS::EC2::VPC": 1,
    "AWS::EC2::Subnet": 6,
    "AWS::EC2::InternetGateway": 1,
    "AWS::EC2::VPCGatewayAttachment": 1,
    "AWS::EC2::RouteTable": 2,
    "AWS::EC2::Route": 1,
    "AWS::EC2::SubnetRouteTableAssociation": 6,
    "AWS::EC2::VPCEndpoint": 1,
    "AWS::EC2::SecurityGroup": 3,
    "AWS::EC2::SecurityGroupIngress": 4,
    "AWS::EC2::SecurityGroupEgress": 3,
    "AWS::EC2::LaunchTemplate": 4,
    "AWS::EC2::Instance": 4,
    "AWS::IAM::Role": 2,
    "AWS::IAM::InstanceProfile": 2,
    "AWS::RDS::DBSubnetGroup": 1,
    "AWS::RDS::DBInstance": 1,
    "AWS::S3::Bucket": 1,
    "AWS::Logs::LogGroup": 2,
}


def of_type(templates: Mapping[str, Template], kind: str) -> list[Resource]:
    """Resources of a type."""
    return [r for r in assembly.resources(templates) if r.type == kind]


def named(templates: Mapping[str, Template], kind: str, name: str) -> Resource:
    """The resource with a Name tag."""
    (found,) = [r for r in of_type(templates, kind) if r.tag() == name]
    return found


def counts(templates: Mapping[str, Template]) -> Counter[str]:
    """How many resources of each type."""
    return Counter(resource.type for resource in assembly.resources(templates))


def test_the_default_deploys_exactly_the_counted_resources(
    templates: Mapping[str, Template],
) -> None:
    """`Nothing more by default` is a number per type."""
    assert counts(templates) == CENSUS


def test_the_templates_are_the_golden_ones(templates: Mapping[str, Template]) -> None:
    """A changed line must be seen by a person: `make aws-golden`, then read the diff."""
    assert golden.differing(templates) == []


def test_two_syntheses_give_the_same_templates(wanted: Topology, chosen: Site) -> None:
    """A template that differs without a reason makes every change set a lie."""
    first, _ = conform.synthesize(wanted, chosen)
    second, _ = conform.synthesize(wanted, chosen)
    assert first == second


def test_templates_take_no_parameters_and_hold_no_secret(
    templates: Mapping[str, Template],
) -> None:
    """Everything is decided before a template exists; the password is never known to us."""
    for template in templates.values():
        assert "Parameters" not in template
    (database,) = of_type(templates, "AWS::RDS::DBInstance")
    assert "MasterUserPassword" not in database.properties
    assert database.properties["ManageMasterUserPassword"] is True


def test_policies_equal_the_specifications_json_literally(
    wanted: Topology, templates: Mapping[str, Template]
) -> None:
    """Key for key and in its order: the text, not only the meaning."""
    _, documents = specification()
    written = policy_documents(documents)
    roles = {r.tag().removeprefix("kalshi-"): r for r in of_type(templates, "AWS::IAM::Role")}
    for role, made in (
        ("gatherer", gatherer_policy(wanted)),
        ("deduplicator", deduplicator_policy(wanted)),
    ):
        specified = written[f"{role.capitalize()} Role"]
        (policy,) = roles[role].raw["Properties"]["Policies"]
        assert list(roles[role].properties) == [
            "AssumeRolePolicyDocument",
            "Policies",
            "RoleName",
            "Tags",
        ]
        assert repr(made) == repr(specified)
        assert policy["PolicyDocument"] == specified


def test_every_host_has_a_stack_of_its_own_in_a_chain(wanted: Topology, chosen: Site) -> None:
    """CloudFormation works on one stack at a time; two gatherers in one could stop together."""
    import tempfile

    from kalshi_infra.build import build, new_app

    with tempfile.TemporaryDirectory() as directory:
        stacks = build(new_app(Path(directory)), wanted, chosen)
        hosts = ["KalshiGatherer1", "KalshiGatherer2", "KalshiGatherer3", "KalshiDeduplicator"]
        for earlier, later in itertools.pairwise(hosts):
            assert stacks[earlier].node.id in {s.node.id for s in stacks[later].dependencies}
        assert all(stack.termination_protection for stack in stacks.values())


def test_what_holds_recordings_outlives_its_stack(templates: Mapping[str, Template]) -> None:
    """Deleting a stack by mistake must not delete a tape."""
    for instance in of_type(templates, "AWS::EC2::Instance"):
        assert instance.properties["DisableApiTermination"] is True
    for template in of_type(templates, "AWS::EC2::LaunchTemplate"):
        (mapping,) = template.properties["LaunchTemplateData"]["BlockDeviceMappings"]
        assert mapping["DeviceName"] == "/dev/xvda"
        assert mapping["Ebs"]["DeleteOnTermination"] is False
        assert mapping["Ebs"]["Encrypted"] is True
    (bucket,) = of_type(templates, "AWS::S3::Bucket")
    (database,) = of_type(templates, "AWS::RDS::DBInstance")
    assert bucket.raw["DeletionPolicy"] == bucket.raw["UpdateReplacePolicy"] == "Retain"
    assert database.raw["DeletionPolicy"] == database.raw["UpdateReplacePolicy"] == "Snapshot"
    assert database.properties["DeletionProtection"] is True


def test_user_data_is_the_frozen_script_with_four_quoted_values(
    templates: Mapping[str, Template], chosen: Site
) -> None:
    """A byte of user data stops and starts a host, so all of it is accounted for."""
    script = firstboot.SCRIPT_PATH.read_text(encoding="utf-8").split("\n", 1)[1]
    for instance in of_type(templates, "AWS::EC2::Instance"):
        text = base64.b64decode(instance.properties["UserData"]).decode()
        head, body = text[: -len(script)], text[-len(script) :]
        assert body == script
        lines = head.splitlines()
        assert lines[0] == "#!/bin/bash"
        assert [line.split("=")[0] for line in lines[1:]] == [
            "export HOST_NAME",
            "export HOST_ROLE",
            "export DEPLOY_SSH_KEY",
            "export NIX_PUBLIC_KEY",
        ]
        assert instance.tag() in lines[1]
        assert len(text.encode()) < firstboot.USER_DATA_BYTES_MAX
        assert "/nix/store" not in text
        assert not re.search(
            r"http://(?!['|])", body.replace("'http://'", "").replace("|http://|", "")
        )


def test_a_changed_first_boot_script_is_refused_at_synth(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, chosen: Site
) -> None:
    """Frozen means that an edit has to be meant."""
    edited = tmp_path / "firstboot.sh"
    edited.write_bytes(firstboot.SCRIPT_PATH.read_bytes() + b"# one more line\n")
    monkeypatch.setattr(firstboot, "SCRIPT_PATH", edited)
    with pytest.raises(SettingsError, match=hashlib.sha256(edited.read_bytes()).hexdigest()):
        firstboot.user_data("gatherer-1", "gatherer", chosen)


def test_the_first_boot_script_is_valid_shell_and_quotes_its_values(chosen: Site) -> None:
    """It runs once, as root, where nobody watches."""
    import dataclasses

    hostile = dataclasses.replace(chosen, deploy_ssh_key="ssh-ed25519 AAAA $(touch /tmp/x)'\"")
    text = firstboot.user_data("gatherer-1", "gatherer", hostile)
    done = subprocess.run(["bash", "-n"], input=text, text=True, check=False, capture_output=True)
    assert done.returncode == 0, done.stderr
    shown = text.split("\n: ", 1)[0].split("\n", 1)[1]
    settings = "\n".join(line for line in shown.splitlines() if line.startswith("export"))
    echoed = subprocess.run(
        ["bash", "-c", settings + '\nprintf %s "$DEPLOY_SSH_KEY"'],
        text=True,
        check=True,
        capture_output=True,
    )
    assert echoed.stdout == hostile.deploy_ssh_key


# ---- options, both positions ----
def lifecycle(templates: Mapping[str, Template]) -> list[dict[str, Any]]:
    """Lifecycle rules of the lake's bucket."""
    bucket = named(templates, "AWS::S3::Bucket", "kalshi-data-prod")
    rules: list[dict[str, Any]] = bucket.properties["LifecycleConfiguration"]["Rules"]
    return rules


def test_noncurrent_days_adds_one_rule_and_is_absent_by_default(
    templates: Mapping[str, Template], synthesized: Synthesized
) -> None:
    """D12."""
    assert not any("NoncurrentVersionExpiration" in rule for rule in lifecycle(templates))
    added = [r for r in lifecycle(synthesized(noncurrent_days=30)) if r not in lifecycle(templates)]
    assert [r["NoncurrentVersionExpiration"] for r in added] == [{"NoncurrentDays": 30}]


def test_abort_multipart_days_adds_one_rule_and_is_absent_by_default(
    templates: Mapping[str, Template], synthesized: Synthesized
) -> None:
    """D11."""
    key = "AbortIncompleteMultipartUpload"
    assert not any(key in rule for rule in lifecycle(templates))
    added = [
        r for r in lifecycle(synthesized(abort_multipart_days=7)) if r not in lifecycle(templates)
    ]
    assert [r[key] for r in added] == [{"DaysAfterInitiation": 7}]


def test_glacier_ir_changes_the_archive_of_the_lake_only(
    templates: Mapping[str, Template], synthesized: Synthesized
) -> None:
    """D14: backups are not queried and stay in the cheaper class."""

    def classes(made: Mapping[str, Template]) -> dict[str, list[str]]:
        return {r["Prefix"]: [t["StorageClass"] for t in r["Transitions"]] for r in lifecycle(made)}

    assert classes(templates) == {
        "parquet/": ["INTELLIGENT_TIERING", "GLACIER"],
        "backups/": ["GLACIER"],
    }
    assert classes(synthesized(glacier_ir=True)) == {
        "parquet/": ["INTELLIGENT_TIERING", "GLACIER_IR"],
        "backups/": ["GLACIER"],
    }


@pytest.mark.parametrize("zone", ["a", "b", "c"])
def test_rds_zone_moves_the_database_and_nothing_else(
    zone: str, templates: Mapping[str, Template], synthesized: Synthesized
) -> None:
    """D18."""
    moved = synthesized(rds_zone=zone)
    (database,) = of_type(moved, "AWS::RDS::DBInstance")
    assert database.properties["AvailabilityZone"] == f"us-east-1{zone}"
    assert {k: v for k, v in moved.items() if k != "KalshiDatabase"} == {
        k: v for k, v in templates.items() if k != "KalshiDatabase"
    }


def test_secrets_manager_adds_two_rights_on_two_named_secrets(
    templates: Mapping[str, Template], synthesized: Synthesized
) -> None:
    """D08: beside the specification's documents, which stay as they are."""
    assert counts(templates)["AWS::IAM::RolePolicy"] == 0
    made = synthesized(secrets_manager=True)
    statements = {
        r.properties["RoleName"]: r.properties["PolicyDocument"]["Statement"]
        for r in of_type(made, "AWS::IAM::RolePolicy")
    }
    assert statements == {
        "KalshiIdentity.GathererRole": [
            {
                "Effect": "Allow",
                "Action": ["secretsmanager:GetSecretValue"],
                "Resource": "KalshiIdentity.ApiKey",
            }
        ],
        "KalshiIdentity.DeduplicatorRole": [
            {
                "Effect": "Allow",
                "Action": ["secretsmanager:GetSecretValue"],
                "Resource": "KalshiDatabase.Production!MasterUserSecret.SecretArn",
            }
        ],
    }
    for role in of_type(made, "AWS::IAM::Role"):
        assert role.raw == templates["KalshiIdentity"]["Resources"][role.logical_id]


def test_timescale_ec2_puts_production_on_a_host_in_private_subnet_a(
    synthesized: Synthesized,
) -> None:
    """D01: the extension that RDS lacks, on a host of our own."""
    made = synthesized(production="timescale_ec2")
    assert not of_type(made, "AWS::RDS::DBInstance")
    host = named(made, "AWS::EC2::Instance", "production")
    assert host.properties["SubnetId"] == "KalshiNetwork.SubnetPrivateA"
    assert host.properties["PrivateIpAddress"] == "10.0.101.30"
    assert "IamInstanceProfile" not in host.properties
    order = list(made)
    assert order.index("KalshiProduction") < order.index("KalshiGatherer1")


def test_small_has_one_gatherer_a_deduplicator_and_a_small_database(
    synthesized: Synthesized,
) -> None:
    """For one person's budget."""
    made = synthesized(profile="small")
    names = sorted(r.tag() for r in of_type(made, "AWS::EC2::Instance"))
    assert names == ["deduplicator", "gatherer-1"]
    (database,) = of_type(made, "AWS::RDS::DBInstance")
    assert database.properties["DBInstanceClass"] == "db.t4g.small"
    assert counts(made)["AWS::EC2::Subnet"] == 6


@pytest.mark.parametrize(
    ("mode", "stated"),
    [
        ("default", None),
        ("standard", {"CPUCredits": "standard"}),
        ("unlimited", {"CPUCredits": "unlimited"}),
    ],
)
def test_cpu_credits_are_stated_only_when_chosen(
    mode: str, stated: Any, synthesized: Synthesized
) -> None:
    """D20."""
    for host in of_type(synthesized(cpu_credits=mode), "AWS::EC2::Instance"):
        assert host.properties.get("CreditSpecification") == stated


def test_lake_catalog_adds_six_tables_a_work_group_and_no_right_for_the_writer(
    templates: Mapping[str, Template], synthesized: Synthesized
) -> None:
    """The deduplicator only writes objects; partitions come from their names."""
    made = synthesized(lake_catalog=True)
    assert {k: v for k, v in made.items() if k != "KalshiLake"} == dict(templates)
    tables = {
        r.properties["TableInput"]["Name"]: r.properties["TableInput"]
        for r in of_type(made, "AWS::Glue::Table")
    }
    assert set(topology.load().bucket.tables) < set(tables)
    for name, table in tables.items():
        parameters = table["Parameters"]
        location = f"s3://kalshi-data-prod/parquet/{name}/"
        assert table["StorageDescriptor"]["Location"] == location
        assert parameters["storage.location.template"].startswith(location)
        partition = topology.load().bucket.partition.format(year=2026, month=3, day=9)
        written = (
            parameters["storage.location.template"]
            .removeprefix(location)
            .replace("${year}", "2026")
            .replace("${month}", "3".zfill(int(parameters["projection.month.digits"])))
            .replace("${day}", "9".zfill(int(parameters["projection.day.digits"])))
        )
        assert written == f"{partition}/"
        assert not {"year", "month", "day"} & {
            c["Name"] for c in table["StorageDescriptor"]["Columns"]
        }
    (group,) = of_type(made, "AWS::Athena::WorkGroup")
    limits = group.properties["WorkGroupConfiguration"]
    assert limits["BytesScannedCutoffPerQuery"] > 0
    assert limits["EnforceWorkGroupConfiguration"] is True
    analyst = named(made, "AWS::IAM::Role", "kalshi-analyst")
    text = str(analyst.properties["Policies"])
    assert "s3:DeleteObject" not in text
    assert "backups" not in text


def test_alarms_watch_every_host_the_database_and_the_bill(
    templates: Mapping[str, Template], synthesized: Synthesized, wanted: Topology
) -> None:
    """An alarm that nobody gets, or that a dead host cannot raise, is none."""
    assert counts(templates)["AWS::CloudWatch::Alarm"] == 0
    made = synthesized(alarms=True)
    (topic,) = of_type(made, "AWS::SNS::Topic")
    alarms = {
        r.properties["AlarmName"]: r.properties for r in of_type(made, "AWS::CloudWatch::Alarm")
    }
    for host in wanted.host:
        assert {f"kalshi-{host.name}-status", f"kalshi-{host.name}-burst"} <= set(alarms)
        for metric in wanted.metric:
            assert (f"kalshi-{host.name}-{metric.name}" in alarms) == (metric.role == host.role)
    assert {f"kalshi-production-{x}" for x in ("storage", "cpu", "burst")} <= set(alarms)
    for name, alarm in alarms.items():
        assert alarm["AlarmActions"] == [topic.name]
        quiet_when_missing = alarm["TreatMissingData"] == "notBreaching"
        assert quiet_when_missing == name.endswith("burst"), name
        assert alarm["AlarmDescription"].split(":")[0] in name
    own = [a for a in alarms.values() if a["Namespace"] == wanted.logs.metric_namespace]
    assert own
    assert len(of_type(made, "AWS::Budgets::Budget")) == 1
    (mail,) = of_type(made, "AWS::SNS::Subscription")
    assert mail.properties["Endpoint"] == "tape@example.com"


def test_without_rds_the_alarms_ask_nothing_of_rds(synthesized: Synthesized) -> None:
    """An alarm on a database that is not there would call for ever."""
    made = synthesized(alarms=True, production="timescale_ec2")
    spaces = {r.properties["Namespace"] for r in of_type(made, "AWS::CloudWatch::Alarm")}
    assert spaces == {"Kalshi", "AWS/EC2"}


def test_another_bucket_name_reaches_bucket_policy_and_prefixes(
    wanted: Topology, chosen: Site
) -> None:
    """D21: the right must follow the name, or the export fails on the first hour."""
    import dataclasses

    templates, _ = conform.synthesize(wanted, dataclasses.replace(chosen, bucket_name="my-tape"))
    assert named(templates, "AWS::S3::Bucket", "my-tape")
    text = str([r.properties for r in of_type(templates, "AWS::IAM::Role")])
    assert "arn:aws:s3:::my-tape/*" in text
    assert "kalshi-data-prod" not in text


def test_every_option_is_explained_in_the_deviations() -> None:
    """An option that no list explains will not be found."""
    from kalshi_infra import deviations

    explained = deviations.text(10_000)
    apart = {"lake_catalog", "monthly_budget_usd"}  # additions of their own, in docs/aws.md
    for name in Options.__dataclass_fields__:
        assert name in explained or name in apart, name
