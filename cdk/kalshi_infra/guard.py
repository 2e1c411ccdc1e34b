"""Change guard: what a deploy would stop or replace, and whether that is allowed.

Two readings of one change:
- templates: what is deployed against what was synthesized, before anything is asked of AWS. Knows
  chains: a changed launch template replaces the instance that refers to its version, a replaced
  subnet the hosts in it, across stacks.
- change sets: what CloudFormation itself says it would do.

Rules:
- A host that would be stopped, replaced or deleted must be named (`--host gatherer-2`).
- Never more than one gatherer, whatever is named: two must always capture.
- The database and the bucket are never replaced or deleted by a deploy.

A property whose effect is not known here counts as replacement.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kalshi_infra.assembly import Template, export, read
from kalshi_infra.errors import DisruptionError, TemplateError

STOP, REPLACE, DELETE = "stop and start", "replace", "delete"
INSTANCE, DATABASE, BUCKET = "AWS::EC2::Instance", "AWS::RDS::DBInstance", "AWS::S3::Bucket"
GUARDED = (INSTANCE, DATABASE, BUCKET)

# What a changed property does. From CloudFormation's "Update requires" of each property; a test
# compares the replacing ones with the resource schemas that cfn-lint carries.
QUIET = {
    INSTANCE: {
        "CreditSpecification",
        "DisableApiTermination",
        "IamInstanceProfile",
        "InstanceInitiatedShutdownBehavior",
        "MetadataOptions",
        "Monitoring",
        "SecurityGroupIds",
        "SourceDestCheck",
        "Tags",
    },
    DATABASE: {
        "AllowMajorVersionUpgrade",
        "AutoMinorVersionUpgrade",
        "BackupRetentionPeriod",
        "CopyTagsToSnapshot",
        "DeletionProtection",
        "MaxAllocatedStorage",
        "PreferredBackupWindow",
        "PreferredMaintenanceWindow",
        "Tags",
        "VPCSecurityGroups",
    },
    BUCKET: {
        "BucketEncryption",
        "LifecycleConfiguration",
        "PublicAccessBlockConfiguration",
        "Tags",
        "VersioningConfiguration",
    },
}
STOPPING = {
    INSTANCE: {"EbsOptimized", "InstanceType", "KernelId", "RamdiskId", "UserData"},
    DATABASE: {
        "AllocatedStorage",
        "DBInstanceClass",
        "EngineVersion",
        "ManageMasterUserPassword",
        "MultiAZ",
        "Port",
        "PubliclyAccessible",
        "StorageType",
    },
    BUCKET: set[str](),
}
# Of other types: properties that change in place, so that what refers to the resource stays.
IN_PLACE = {
    "AWS::EC2::Subnet": {"MapPublicIpOnLaunch", "Tags"},
    "AWS::EC2::SecurityGroup": {"SecurityGroupEgress", "SecurityGroupIngress", "Tags"},
    "AWS::EC2::VPC": {"EnableDnsHostnames", "EnableDnsSupport", "Tags"},
    "AWS::IAM::InstanceProfile": {"Roles"},
    "AWS::IAM::Role": {"AssumeRolePolicyDocument", "Policies", "Tags"},
    "AWS::RDS::DBSubnetGroup": {"DBSubnetGroupDescription", "SubnetIds", "Tags"},
}

Name = tuple[str, str]


@dataclass(frozen=True, slots=True, order=True)
class Disruption:
    """`host` is a host's name, `production` or the bucket's; `cause` names what changed."""

    host: str
    kind: str
    effect: str
    cause: str

    def __str__(self) -> str:
        return f"{self.host}: {self.effect}, because {self.cause}"


def from_templates(old: Mapping[str, Template], new: Mapping[str, Template]) -> list[Disruption]:
    """Every guarded resource that the change from `old` to `new` disrupts."""
    moved = _moved(old, new)
    found = []
    for stack, template in old.items():
        if stack not in new:
            continue  # cdk deploy deletes no stack
        for logical_id, entry in template["Resources"].items():
            if entry["Type"] not in GUARDED:
                continue
            host = _host(entry)
            after = new[stack]["Resources"].get(logical_id)
            if after is None or after["Type"] != entry["Type"]:
                found.append(Disruption(host, entry["Type"], DELETE, "it left the template"))
                continue
            for effect, cause in _effects(entry, after, stack, new, moved):
                found.append(Disruption(host, entry["Type"], effect, cause))
    return sorted(found)


def _host(entry: Mapping[str, Any]) -> str:
    properties = entry.get("Properties", {})
    for tag in properties.get("Tags", ()):
        if tag["Key"] == "Name":
            name = str(tag["Value"])
            return "production" if entry["Type"] == DATABASE else name
    raise TemplateError(f"a {entry['Type']} has no Name tag")


def _effects(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    stack: str,
    new: Mapping[str, Template],
    moved: Mapping[Name, str],
) -> Iterable[tuple[str, str]]:
    kind = before["Type"]
    left, right = before.get("Properties", {}), after.get("Properties", {})
    for key in sorted(set(left) | set(right)):
        if key in QUIET[kind]:
            continue
        effect = STOP if key in STOPPING[kind] else REPLACE
        if left.get(key) != right.get(key):
            yield effect, f"{key} changed"
        for name in sorted(_references(right.get(key), stack, new)):
            if name in moved:
                yield effect, f"{key} refers to {name[0]}.{name[1]}, which {moved[name]}"


def _moved(old: Mapping[str, Template], new: Mapping[str, Template]) -> dict[Name, str]:
    """Resources whose identity or attributes change, through references too."""
    moved: dict[Name, str] = {}
    while True:
        added = {}
        for stack, template in new.items():
            for logical_id, entry in template["Resources"].items():
                name = (stack, logical_id)
                if name in moved:
                    continue
                before = old.get(stack, {}).get("Resources", {}).get(logical_id)
                if before is not None and (why := _why_moved(before, entry, stack, new, moved)):
                    added[name] = why
        if not added:
            return moved
        moved |= added


def _why_moved(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    stack: str,
    new: Mapping[str, Template],
    moved: Mapping[Name, str],
) -> str:
    kind = after["Type"]
    if before["Type"] != kind:
        return "is of another type now"
    quiet = IN_PLACE.get(kind, QUIET.get(kind, set())) | STOPPING.get(kind, set())
    left, right = before.get("Properties", {}), after.get("Properties", {})
    for key in sorted(set(left) | set(right)):
        if key in quiet:
            continue
        if left.get(key) != right.get(key):
            return f"changes in {key}"
        for name in _references(right.get(key), stack, new):
            if name in moved:
                return f"follows {name[0]}.{name[1]}"
    return ""


def _references(value: Any, stack: str, templates: Mapping[str, Template]) -> set[Name]:
    """Resources that an expression refers to, through exports too."""
    if isinstance(value, list):
        return {name for item in value for name in _references(item, stack, templates)}
    if not isinstance(value, dict):
        return set()
    if "Ref" in value and not str(value["Ref"]).startswith("AWS::"):
        return {(stack, str(value["Ref"]))}
    if "Fn::GetAtt" in value:
        return {(stack, str(value["Fn::GetAtt"][0]))}
    if "Fn::ImportValue" in value:
        owner, expression = export(value["Fn::ImportValue"], templates)
        return _references(expression, owner, templates)
    return {n for item in value.values() for n in _references(item, stack, templates)}


def from_change_set(described: Mapping[str, Any], template: Template) -> list[Disruption]:
    """The same from DescribeChangeSet's answer; `template` is the stack as deployed."""
    found = []
    for change in described.get("Changes", ()):
        row = change.get("ResourceChange", {})
        if row.get("ResourceType") not in GUARDED or row["Action"] == "Add":
            continue
        kind = row["ResourceType"]
        host = _host(template["Resources"][row["LogicalResourceId"]])
        if row["Action"] == "Remove":
            found.append(Disruption(host, kind, DELETE, "the change set removes it"))
            continue
        if row.get("Replacement") in ("True", "Conditional"):
            cause = f"the change set says replacement: {row['Replacement']}"
            found.append(Disruption(host, kind, REPLACE, cause))
            continue
        for detail in row.get("Details", ()):
            name = detail.get("Target", {}).get("Name", "")
            if name and name in STOPPING[kind]:
                found.append(Disruption(host, kind, STOP, f"{name} changed"))
    return sorted(found)


def judge(disruptions: Sequence[Disruption], named: str = "") -> None:
    """Raises DisruptionError unless every disruption is that of the one host `named`."""
    refused = []
    for entry in disruptions:
        if entry.kind == BUCKET or (entry.kind == DATABASE and entry.effect != STOP):
            refused.append(f"{entry} (never by a deploy)")
        elif entry.host != named:
            refused.append(f"{entry} (name it with --host {entry.host})")
    gatherers = {e.host for e in disruptions if e.host.startswith("gatherer-")}
    if len(gatherers) > 1:
        refused.append(f"{len(gatherers)} gatherers at once: {', '.join(sorted(gatherers))}")
    if refused:
        raise DisruptionError("\n".join(refused))


def deployed(names: Iterable[str], region: str) -> dict[str, Template]:
    """Templates of the stacks that exist, asked from CloudFormation."""
    import boto3  # noqa: PLC0415 - only here, and only with credentials
    from botocore.exceptions import ClientError  # noqa: PLC0415

    client = boto3.client("cloudformation", region_name=region)
    found = {}
    for name in names:
        try:
            body = client.get_template(StackName=name, TemplateStage="Original")["TemplateBody"]
        except ClientError as error:
            if "does not exist" in str(error):
                continue
            raise
        found[name] = json.loads(body) if isinstance(body, str) else json.loads(json.dumps(body))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Compares what is deployed with an assembly. Exit code 1 if the deploy is refused."""
    parser = argparse.ArgumentParser(description="refuse deploys that would disturb recording")
    parser.add_argument("assembly", type=Path)
    parser.add_argument("--host", default="", help="the one host that may be stopped or replaced")
    parser.add_argument("--region", default="us-east-1")
    parser.add_argument("--deployed", type=Path, help="an earlier assembly instead of the account")
    chosen = parser.parse_args(arguments)
    new = read(chosen.assembly)
    old = read(chosen.deployed) if chosen.deployed else deployed(new, chosen.region)
    disruptions = from_templates(old, new)
    try:
        judge(disruptions, chosen.host)
    except DisruptionError as error:
        print(f"refused:\n{error}", file=sys.stderr)
        return 1
    for entry in disruptions:
        print(f"allowed: {entry}")
    print(f"{len(old)} of {len(new)} stacks are deployed; {len(disruptions)} disruptions")
    return 0


if __name__ == "__main__":
    sys.exit(main())
