"""A strict applier: plays a cloud assembly into the service APIs, as CloudFormation would.

moto's own CloudFormation drops many properties without a word, so it cannot carry a proof. Here
every property of every resource must be taken by the code below; one that nobody took raises
UnmappedError. So nothing can be lost on the way, and a new property forces a line here.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from typing import Any

from applier_options import OptionServices
from kalshi_infra.assembly import Template, resolve
from moto_account import ACCOUNT, client
from taken import Taken, UnmappedError

SERVICES = (
    "athena",
    "budgets",
    "cloudwatch",
    "ec2",
    "glue",
    "iam",
    "logs",
    "rds",
    "s3",
    "secretsmanager",
    "sns",
)


def apply(templates: Mapping[str, Template]) -> dict[tuple[str, str, str], str]:
    """Creates everything; returns physical values by (stack, logical id, attribute or empty)."""
    applier = Applier(templates)
    for stack, template in templates.items():
        for logical_id in _in_order(template):
            applier.create(stack, logical_id)
    return applier.physical


def _in_order(template: Template) -> list[str]:
    """Logical ids so that each follows what it refers to or depends on."""
    entries = template["Resources"]
    ordered: list[str] = []

    def mentioned(value: Any) -> set[str]:
        if isinstance(value, list):
            return set().union(*map(mentioned, value)) if value else set()
        if isinstance(value, dict):
            found = set().union(*map(mentioned, value.values())) if value else set()
            if "Ref" in value:
                found.add(value["Ref"])
            if "Fn::GetAtt" in value:
                found.add(value["Fn::GetAtt"][0])
            return found
        return set()

    def visit(name: str) -> None:
        if name in ordered:
            return
        entry = entries[name]
        depends = entry.get("DependsOn", [])
        wanted = mentioned(entry.get("Properties", {})) & set(entries)
        for other in sorted(wanted | set([depends] if isinstance(depends, str) else depends)):
            visit(other)
        ordered.append(name)

    for name in entries:
        visit(name)
    return ordered


class Applier(OptionServices):
    """One method per resource type; each takes all properties and records physical values."""

    def __init__(self, templates: Mapping[str, Template]) -> None:
        self.templates = templates
        self.physical: dict[tuple[str, str, str], str] = {}
        self._launch_templates: dict[str, dict[str, Any]] = {}

    def __getattr__(self, service: str) -> Any:
        """`self.ec2` is the client of that service."""
        if service not in SERVICES:
            raise AttributeError(service)
        return client(service)

    def create(self, stack: str, logical_id: str) -> None:
        """Creates one resource. Raises UnmappedError for a type or property without a mapping."""
        entry = self.templates[stack]["Resources"][logical_id]
        kind = entry["Type"]
        known = {"Type", "Properties", "DeletionPolicy", "UpdateReplacePolicy", "DependsOn"}
        if extra := set(entry) - known:
            raise UnmappedError(f"{stack}.{logical_id}: {sorted(extra)}")
        method: Callable[[Taken], dict[str, str]] | None = getattr(
            self, "_" + kind.removeprefix("AWS::").replace("::", "_").lower(), None
        )
        if method is None:
            raise UnmappedError(f"{stack}.{logical_id}: type {kind}")
        values = resolve(entry.get("Properties", {}), stack, self.templates, self._lookup)
        taken = Taken(values, f"{stack}.{logical_id}")
        for attribute, value in method(taken).items():
            self.physical[stack, logical_id, attribute] = value
        taken.finish()

    def _lookup(self, stack: str, name: str, attribute: str) -> str:
        if name == "AWS::AccountId":
            return ACCOUNT
        return self.physical[stack, name, attribute]

    @staticmethod
    def _tags(taken: Taken) -> list[dict[str, str]]:
        return [dict(tag) for tag in taken.plain("Tags")]

    def _specification(self, taken: Taken, kind: str) -> list[dict[str, Any]]:
        return [{"ResourceType": kind, "Tags": self._tags(taken)}]

    # ---- network ----
    def _ec2_vpc(self, taken: Taken) -> dict[str, str]:
        vpc = self.ec2.create_vpc(
            CidrBlock=taken.plain("CidrBlock"), TagSpecifications=self._specification(taken, "vpc")
        )["Vpc"]["VpcId"]
        for ours, theirs in (
            ("EnableDnsSupport", "EnableDnsSupport"),
            ("EnableDnsHostnames", "EnableDnsHostnames"),
        ):
            self.ec2.modify_vpc_attribute(VpcId=vpc, **{theirs: {"Value": taken.plain(ours)}})
        return {"": vpc}

    def _ec2_subnet(self, taken: Taken) -> dict[str, str]:
        subnet = self.ec2.create_subnet(
            VpcId=taken.plain("VpcId"),
            CidrBlock=taken.plain("CidrBlock"),
            AvailabilityZone=taken.plain("AvailabilityZone"),
            TagSpecifications=self._specification(taken, "subnet"),
        )["Subnet"]["SubnetId"]
        self.ec2.modify_subnet_attribute(
            SubnetId=subnet, MapPublicIpOnLaunch={"Value": taken.plain("MapPublicIpOnLaunch")}
        )
        return {"": subnet}

    def _ec2_internetgateway(self, taken: Taken) -> dict[str, str]:
        made = self.ec2.create_internet_gateway(
            TagSpecifications=self._specification(taken, "internet-gateway")
        )
        return {"": made["InternetGateway"]["InternetGatewayId"]}

    def _ec2_vpcgatewayattachment(self, taken: Taken) -> dict[str, str]:
        self.ec2.attach_internet_gateway(
            VpcId=taken.plain("VpcId"), InternetGatewayId=taken.plain("InternetGatewayId")
        )
        return {}

    def _ec2_routetable(self, taken: Taken) -> dict[str, str]:
        made = self.ec2.create_route_table(
            VpcId=taken.plain("VpcId"), TagSpecifications=self._specification(taken, "route-table")
        )
        return {"": made["RouteTable"]["RouteTableId"]}

    def _ec2_route(self, taken: Taken) -> dict[str, str]:
        self.ec2.create_route(
            RouteTableId=taken.plain("RouteTableId"),
            DestinationCidrBlock=taken.plain("DestinationCidrBlock"),
            GatewayId=taken.plain("GatewayId"),
        )
        return {}

    def _ec2_subnetroutetableassociation(self, taken: Taken) -> dict[str, str]:
        self.ec2.associate_route_table(
            SubnetId=taken.plain("SubnetId"), RouteTableId=taken.plain("RouteTableId")
        )
        return {}

    def _ec2_vpcendpoint(self, taken: Taken) -> dict[str, str]:
        made = self.ec2.create_vpc_endpoint(
            VpcId=taken.plain("VpcId"),
            ServiceName=taken.plain("ServiceName"),
            VpcEndpointType=taken.plain("VpcEndpointType"),
            RouteTableIds=taken.plain("RouteTableIds"),
        )
        return {"": made["VpcEndpoint"]["VpcEndpointId"]}

    def _ec2_securitygroup(self, taken: Taken) -> dict[str, str]:
        group = self.ec2.create_security_group(
            GroupName=taken.plain("GroupName"),
            Description=taken.plain("GroupDescription"),
            VpcId=taken.plain("VpcId"),
            TagSpecifications=self._specification(taken, "security-group"),
        )["GroupId"]
        for row in taken.rows("SecurityGroupIngress"):
            self.ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[_rule(row)])
        if "SecurityGroupEgress" in taken:
            # A group that states its egress loses the default rule; one that does not keeps it.
            everything = {"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
            self.ec2.revoke_security_group_egress(GroupId=group, IpPermissions=[everything])
        for row in taken.rows("SecurityGroupEgress"):
            self.ec2.authorize_security_group_egress(GroupId=group, IpPermissions=[_rule(row)])
        return {"": group, "GroupId": group}

    def _ec2_securitygroupingress(self, taken: Taken) -> dict[str, str]:
        self.ec2.authorize_security_group_ingress(
            GroupId=taken.plain("GroupId"), IpPermissions=[_rule(taken)]
        )
        return {}

    def _ec2_securitygroupegress(self, taken: Taken) -> dict[str, str]:
        self.ec2.authorize_security_group_egress(
            GroupId=taken.plain("GroupId"), IpPermissions=[_rule(taken)]
        )
        return {}

    # ---- hosts ----
    def _ec2_launchtemplate(self, taken: Taken) -> dict[str, str]:
        contents = taken.plain("LaunchTemplateData")
        made = self.ec2.create_launch_template(
            LaunchTemplateName=taken.plain("LaunchTemplateName"), LaunchTemplateData=contents
        )["LaunchTemplate"]
        self._launch_templates[made["LaunchTemplateId"]] = contents
        return {
            "": made["LaunchTemplateId"],
            "LatestVersionNumber": str(made["LatestVersionNumber"]),
        }

    def _ec2_instance(self, taken: Taken) -> dict[str, str]:
        # moto merges launch templates imperfectly (an extra default disk appears), so the template
        # is expanded here as EC2 does. That it was created as written is read back from itself.
        reference = taken.plain("LaunchTemplate")
        contents = dict(self._launch_templates[reference["LaunchTemplateId"]])
        request: dict[str, Any] = {
            "BlockDeviceMappings": contents.pop("BlockDeviceMappings"),
            "MetadataOptions": contents.pop("MetadataOptions"),
        }
        if contents or set(reference) != {"LaunchTemplateId", "Version"}:
            raise UnmappedError(f"launch template: {sorted(contents)}, {sorted(reference)}")
        if taken.plain("PropagateTagsToVolumeOnCreation") is not True:
            raise UnmappedError("volumes without tags")
        if "IamInstanceProfile" in taken:
            request["IamInstanceProfile"] = {"Name": taken.plain("IamInstanceProfile")}
        if "CreditSpecification" in taken:
            wanted = taken.plain("CreditSpecification")
            request["CreditSpecification"] = {"CpuCredits": wanted["CPUCredits"]}
        tags = self._tags(taken)
        made = self.ec2.run_instances(
            MinCount=1,
            MaxCount=1,
            ImageId=taken.plain("ImageId"),
            InstanceType=taken.plain("InstanceType"),
            KeyName=taken.plain("KeyName"),
            SubnetId=taken.plain("SubnetId"),
            PrivateIpAddress=taken.plain("PrivateIpAddress"),
            SecurityGroupIds=taken.plain("SecurityGroupIds"),
            DisableApiTermination=taken.plain("DisableApiTermination"),
            UserData=base64.b64decode(taken.plain("UserData")).decode(),
            TagSpecifications=[
                {"ResourceType": kind, "Tags": tags} for kind in ("instance", "volume")
            ],
            **request,
        )["Instances"][0]
        return {"": made["InstanceId"], "PrivateIp": made["PrivateIpAddress"]}

    # ---- identity ----
    def _iam_role(self, taken: Taken) -> dict[str, str]:
        name = taken.plain("RoleName")
        role = self.iam.create_role(
            RoleName=name,
            AssumeRolePolicyDocument=json.dumps(taken.plain("AssumeRolePolicyDocument")),
            Tags=self._tags(taken),
        )["Role"]
        for policy in taken.rows("Policies"):
            self.iam.put_role_policy(
                RoleName=name,
                PolicyName=policy.plain("PolicyName"),
                PolicyDocument=json.dumps(policy.plain("PolicyDocument")),
            )
        return {"": name, "Arn": role["Arn"]}

    def _iam_rolepolicy(self, taken: Taken) -> dict[str, str]:
        self.iam.put_role_policy(
            RoleName=taken.plain("RoleName"),
            PolicyName=taken.plain("PolicyName"),
            PolicyDocument=json.dumps(taken.plain("PolicyDocument")),
        )
        return {}

    def _iam_instanceprofile(self, taken: Taken) -> dict[str, str]:
        name = taken.plain("InstanceProfileName")
        self.iam.create_instance_profile(InstanceProfileName=name)
        for role in taken.plain("Roles"):
            self.iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=role)
        return {"": name}

    # ---- storage ----
    def _s3_bucket(self, taken: Taken) -> dict[str, str]:
        name = taken.plain("BucketName")
        self.s3.create_bucket(Bucket=name)
        if "VersioningConfiguration" in taken:
            self.s3.put_bucket_versioning(
                Bucket=name, VersioningConfiguration=taken.plain("VersioningConfiguration")
            )
        rules = [
            {"ApplyServerSideEncryptionByDefault": rule.plain("ServerSideEncryptionByDefault")}
            for rule in taken.one("BucketEncryption").rows("ServerSideEncryptionConfiguration")
        ]
        self.s3.put_bucket_encryption(
            Bucket=name, ServerSideEncryptionConfiguration={"Rules": rules}
        )
        self.s3.put_public_access_block(
            Bucket=name,
            PublicAccessBlockConfiguration=taken.plain("PublicAccessBlockConfiguration"),
        )
        lifecycle = [_lifecycle(r) for r in taken.one("LifecycleConfiguration").rows("Rules")]
        self.s3.put_bucket_lifecycle_configuration(
            Bucket=name, LifecycleConfiguration={"Rules": lifecycle}
        )
        self.s3.put_bucket_tagging(Bucket=name, Tagging={"TagSet": self._tags(taken)})
        return {"": name, "Arn": f"arn:aws:s3:::{name}"}

    def _logs_loggroup(self, taken: Taken) -> dict[str, str]:
        name = taken.plain("LogGroupName")
        self.logs.create_log_group(logGroupName=name)
        self.logs.put_retention_policy(
            logGroupName=name, retentionInDays=taken.plain("RetentionInDays")
        )
        return {"": name}

    # ---- database ----
    def _rds_dbsubnetgroup(self, taken: Taken) -> dict[str, str]:
        name = taken.plain("DBSubnetGroupName")
        self.rds.create_db_subnet_group(
            DBSubnetGroupName=name,
            DBSubnetGroupDescription=taken.plain("DBSubnetGroupDescription"),
            SubnetIds=taken.plain("SubnetIds"),
            Tags=self._tags(taken),
        )
        return {"": name}

    def _rds_dbinstance(self, taken: Taken) -> dict[str, str]:
        request = {
            "DBInstanceIdentifier": taken.plain("DBInstanceIdentifier"),
            "DBInstanceClass": taken.plain("DBInstanceClass"),
            "Engine": taken.plain("Engine"),
            "EngineVersion": taken.plain("EngineVersion"),
            "DBName": taken.plain("DBName"),
            "MasterUsername": taken.plain("MasterUsername"),
            "ManageMasterUserPassword": taken.plain("ManageMasterUserPassword"),
            "AllocatedStorage": int(taken.plain("AllocatedStorage")),
            "StorageType": taken.plain("StorageType"),
            "StorageEncrypted": taken.plain("StorageEncrypted"),
            "MultiAZ": taken.plain("MultiAZ"),
            "AvailabilityZone": taken.plain("AvailabilityZone"),
            "PubliclyAccessible": taken.plain("PubliclyAccessible"),
            "Port": int(taken.plain("Port")),
            "DBSubnetGroupName": taken.plain("DBSubnetGroupName"),
            "VpcSecurityGroupIds": taken.plain("VPCSecurityGroups"),
            "BackupRetentionPeriod": taken.plain("BackupRetentionPeriod"),
            "PreferredBackupWindow": taken.plain("PreferredBackupWindow"),
            "PreferredMaintenanceWindow": taken.plain("PreferredMaintenanceWindow"),
            "CopyTagsToSnapshot": taken.plain("CopyTagsToSnapshot"),
            "DeletionProtection": taken.plain("DeletionProtection"),
            "Tags": self._tags(taken),
        }
        if "Iops" in taken:
            request["Iops"] = taken.plain("Iops")
        if "StorageThroughput" in taken:
            request["StorageThroughput"] = taken.plain("StorageThroughput")
        made = self.rds.create_db_instance(**request)["DBInstance"]
        return {
            "": made["DBInstanceIdentifier"],
            "Endpoint.Address": made["Endpoint"]["Address"],
            "MasterUserSecret.SecretArn": made["MasterUserSecret"]["SecretArn"],
        }


def _rule(row: Taken) -> dict[str, Any]:
    permission: dict[str, Any] = {
        "IpProtocol": row.plain("IpProtocol"),
        "FromPort": row.plain("FromPort"),
        "ToPort": row.plain("ToPort"),
    }
    description = row.plain("Description")
    for key in ("SourceSecurityGroupId", "DestinationSecurityGroupId"):
        if key in row:
            pair = {"GroupId": row.plain(key), "Description": description}
            return {**permission, "UserIdGroupPairs": [pair]}
    return {
        **permission,
        "IpRanges": [{"CidrIp": row.plain("CidrIp"), "Description": description}],
    }


def _lifecycle(rule: Taken) -> dict[str, Any]:
    request: dict[str, Any] = {
        "ID": rule.plain("Id"),
        "Status": rule.plain("Status"),
        "Filter": {"Prefix": rule.plain("Prefix")},
    }
    if "Transitions" in rule:
        request["Transitions"] = [
            {"StorageClass": row.plain("StorageClass"), "Days": row.plain("TransitionInDays")}
            for row in rule.rows("Transitions")
        ]
    if "NoncurrentVersionExpiration" in rule:
        days = rule.one("NoncurrentVersionExpiration").plain("NoncurrentDays")
        request["NoncurrentVersionExpiration"] = {"NoncurrentDays": days}
    if "AbortIncompleteMultipartUpload" in rule:
        days = rule.one("AbortIncompleteMultipartUpload").plain("DaysAfterInitiation")
        request["AbortIncompleteMultipartUpload"] = {"DaysAfterInitiation": days}
    if "ExpirationInDays" in rule:
        request["Expiration"] = {"Days": rule.plain("ExpirationInDays")}
    return request
