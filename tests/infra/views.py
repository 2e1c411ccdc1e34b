"""Views: the same facts read from three places that do not know of each other.

- configuration: topology.toml as the app loads it;
- template: the cloud assembly, references followed;
- account: boto3 against the account into which the assembly was applied.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from facts import (
    BucketFact,
    DatabaseFact,
    Facts,
    HostFact,
    LifecycleFact,
    LocalDatabaseFact,
    RuleFact,
    SubnetFact,
    TypeFact,
)
from kalshi_infra.assembly import Resource, Template, resources, target
from kalshi_infra.flows import NOTHING_PEER, GroupRule, group_rules
from kalshi_infra.identity import deduplicator_policy, gatherer_policy
from kalshi_infra.topology import Topology
from moto_account import client

CATALOGUE = json.loads(Path(__file__).with_name("instance_types.json").read_text(encoding="utf-8"))
DATABASE_GROUP = {"TimescaleDB access": "TimescaleDB", "PostgreSQL access": "PostgreSQL"}


def type_fact(name: str) -> TypeFact:
    """What the catalogue says about a type; an RDS class has its EC2 type's processor."""
    entry = CATALOGUE["types"].get(name.removeprefix("db."))
    return TypeFact(**entry) if entry else TypeFact(0, 0, f"unknown type {name}", 0)


# ---- configuration ----
def of_configuration(topology: Topology, admin_cidr: str) -> Facts:
    """The facts of topology.toml."""
    words = {"admin": admin_cidr, "vpc": topology.vpc.cidr}
    routes: dict[str, list[tuple[str, str]]] = {
        name: [(topology.vpc.cidr, "local")] for name in ("public", "private")
    }
    for route in topology.route:
        routes[route.table].append((route.destination, "Internet Gateway"))
    bucket = topology.bucket
    day = bucket.partition.format(year=2024, month=1, day=15)
    prefixes = [bucket.parquet_prefix]
    for index, table in enumerate(bucket.tables):
        prefixes.append(f"{bucket.parquet_prefix}{table}/")
        if index == 0:  # the specification writes the partition out for the first table only
            prefixes.append(f"{bucket.parquet_prefix}{table}/{day}/")
    prefixes += [bucket.backup_prefix, bucket.rds_backup_prefix]
    return Facts(
        admin_cidr=admin_cidr,
        vpc_cidr=topology.vpc.cidr,
        dns_hostnames=topology.vpc.dns_hostnames,
        dns_resolution=topology.vpc.dns_resolution,
        subnets=tuple(SubnetFact(s.name, s.cidr, s.zone, s.public) for s in topology.subnet),
        routes=routes,
        rules=tuple(
            RuleFact(
                group=rule.group,
                inbound=rule.direction == "inbound",
                protocol="tcp",
                port=str(topology.ports.number(rule.port)),
                peer=words.get(rule.peer, rule.peer),
                purpose=rule.purpose,
            )
            for rule in topology.rule
        ),
        hosts=tuple(_configured_hosts(topology)),
        database=_configured_database(topology),
        local_databases=tuple(
            LocalDatabaseFact(local.name, topology.ports.number(local.port), local.purpose)
            for local in topology.local_database
        ),
        bucket=BucketFact(
            name=bucket.name,
            region=topology.region,
            versioning=bucket.versioning,
            encryption=bucket.encryption,
            lifecycle=tuple(
                LifecycleFact(row.prefix, row.storage_class, row.days) for row in topology.lifecycle
            ),
            prefixes=tuple(prefixes),
        ),
        policies={
            "gatherer": gatherer_policy(topology),
            "deduplicator": deduplicator_policy(topology),
        },
        monthly=None,
    )


def _configured_database(topology: Topology) -> DatabaseFact:
    wanted = topology.production
    private = tuple(subnet.name for subnet in topology.subnet if not subnet.public)
    return DatabaseFact(
        engine=wanted.engine,
        version=wanted.engine_version,
        instance_class=wanted.instance_class,
        facts=type_fact(wanted.instance_class),
        multi_az=wanted.multi_az,
        storage_type=wanted.storage.type,
        storage_gib=wanted.storage.size_gib,
        iops=None,
        throughput=None,
        subnets=private,
        zone=wanted.zone,
        public=wanted.publicly_accessible,
        port=topology.ports.number(wanted.port),
        groups=(wanted.security_group,),
        backup_days=wanted.backup_days,
        backup_window=wanted.backup_window,
        maintenance_window=wanted.maintenance_window,
    )


def _configured_hosts(topology: Topology) -> list[HostFact]:
    hosts = []
    for host in topology.host:
        role = topology.role[host.role]
        hosts.append(
            HostFact(
                name=host.name,
                instance_type=role.instance_type,
                architecture=role.architecture,
                zone=topology.subnet_named(host.subnet).zone,
                subnet=host.subnet,
                address=host.address,
                groups=(role.security_group,),
                disk_type=role.disk.type,
                disk_gib=role.disk.size_gib,
                disk_iops=role.disk.iops,
                disk_throughput=role.disk.throughput_mbps,
                facts=type_fact(role.instance_type),
            )
        )
    return hosts


# ---- template ----
def of_template(
    templates: Mapping[str, Template],
    admin_cidr: str,
    region: str,
    monthly: Mapping[str, str] | None = None,
) -> Facts:
    """The facts of a cloud assembly; `region` is what its manifest says."""
    found = resources(templates)
    by_name = {resource.name: resource for resource in found}
    (vpc,) = _of_type(found, "AWS::EC2::VPC")
    (bucket,) = [r for r in _of_type(found, "AWS::S3::Bucket") if r.stack == "KalshiStorage"]
    rules = group_rules(found)
    groups = {r.name: r.tag() for r in _of_type(found, "AWS::EC2::SecurityGroup")}
    tables = {r.name: r.tag() for r in _of_type(found, "AWS::EC2::RouteTable")}
    roles = _of_type(found, "AWS::IAM::Role")
    return Facts(
        admin_cidr=admin_cidr,
        vpc_cidr=vpc.properties["CidrBlock"],
        dns_hostnames=vpc.properties["EnableDnsHostnames"],
        dns_resolution=vpc.properties["EnableDnsSupport"],
        subnets=tuple(_template_subnets(found, tables)),
        routes=_template_routes(found, tables, vpc.properties["CidrBlock"]),
        rules=_rule_facts(rules, groups),
        hosts=tuple(_template_hosts(found, by_name, groups)),
        database=_template_database(found, by_name, groups),
        local_databases=_local_databases(rules, groups),
        bucket=_template_bucket(bucket, region),
        policies={
            role.properties["RoleName"].removeprefix("kalshi-"): policy["PolicyDocument"]
            for role in roles
            for policy in role.properties["Policies"]
            if role.properties["RoleName"] != "kalshi-analyst"
        },
        monthly=monthly,
    )


def _of_type(found: Sequence[Resource], kind: str) -> list[Resource]:
    return [resource for resource in found if resource.type == kind]


def _template_subnets(found: Sequence[Resource], tables: Mapping[str, str]) -> list[SubnetFact]:
    table_of = {
        target(r.properties["SubnetId"]): tables[target(r.properties["RouteTableId"])]
        for r in _of_type(found, "AWS::EC2::SubnetRouteTableAssociation")
    }
    return [
        SubnetFact(
            name=subnet.tag(),
            cidr=subnet.properties["CidrBlock"],
            zone=subnet.properties["AvailabilityZone"],
            # Public is a subnet that gives public addresses and whose table leads to the gateway.
            public=subnet.properties["MapPublicIpOnLaunch"] and table_of[subnet.name] == "public",
        )
        for subnet in _of_type(found, "AWS::EC2::Subnet")
    ]


def _template_routes(
    found: Sequence[Resource], tables: Mapping[str, str], vpc_cidr: str
) -> dict[str, list[tuple[str, str]]]:
    routes = {name: [(vpc_cidr, "local")] for name in tables.values()}
    gateways = {r.name for r in _of_type(found, "AWS::EC2::InternetGateway")}
    attached = {
        target(r.properties["InternetGatewayId"])
        for r in _of_type(found, "AWS::EC2::VPCGatewayAttachment")
    }
    for route in _of_type(found, "AWS::EC2::Route"):
        gateway = target(route.properties["GatewayId"])
        kind = "Internet Gateway" if gateway in gateways & attached else gateway
        table = tables[target(route.properties["RouteTableId"])]
        routes[table].append((route.properties["DestinationCidrBlock"], kind))
    return routes


def _rule_facts(rules: Sequence[GroupRule], groups: Mapping[str, str]) -> tuple[RuleFact, ...]:
    return tuple(
        RuleFact(
            group=groups[rule.group],
            inbound=rule.inbound,
            protocol=rule.protocol,
            port=str(rule.from_port)
            if rule.from_port == rule.to_port
            else f"{rule.from_port}-{rule.to_port}",
            peer=groups.get(rule.peer, rule.peer),
            purpose=rule.description,
        )
        for rule in rules
        if rule.peer != NOTHING_PEER
    )


def _local_databases(
    rules: Sequence[GroupRule], groups: Mapping[str, str]
) -> tuple[LocalDatabaseFact, ...]:
    return tuple(
        LocalDatabaseFact(DATABASE_GROUP[rule.description], rule.from_port, None)
        for rule in rules
        if groups[rule.group] == "sg-gatherer" and rule.description in DATABASE_GROUP
    )


def _template_hosts(
    found: Sequence[Resource], by_name: Mapping[str, Resource], groups: Mapping[str, str]
) -> list[HostFact]:
    hosts = []
    for instance in _of_type(found, "AWS::EC2::Instance"):
        values = instance.properties
        launch = by_name[target(values["LaunchTemplate"]["LaunchTemplateId"])].properties
        (mapping,) = launch["LaunchTemplateData"]["BlockDeviceMappings"]
        disk = mapping["Ebs"]
        subnet = by_name[target(values["SubnetId"])]
        hosts.append(
            HostFact(
                name=instance.tag(),
                instance_type=values["InstanceType"],
                architecture=CATALOGUE["architecture"][values["InstanceType"].split(".")[0]],
                zone=subnet.properties["AvailabilityZone"],
                subnet=subnet.tag(),
                address=values["PrivateIpAddress"],
                groups=tuple(groups[target(group)] for group in values["SecurityGroupIds"]),
                disk_type=disk["VolumeType"],
                disk_gib=disk["VolumeSize"],
                disk_iops=disk["Iops"],
                disk_throughput=disk["Throughput"],
                facts=type_fact(values["InstanceType"]),
            )
        )
    return hosts


def _template_database(
    found: Sequence[Resource], by_name: Mapping[str, Resource], groups: Mapping[str, str]
) -> DatabaseFact:
    (database,) = _of_type(found, "AWS::RDS::DBInstance")
    values = database.properties
    group = by_name[target(values["DBSubnetGroupName"])].properties
    return DatabaseFact(
        engine=values["Engine"],
        version=values["EngineVersion"],
        instance_class=values["DBInstanceClass"],
        facts=type_fact(values["DBInstanceClass"]),
        multi_az=values["MultiAZ"],
        storage_type=values["StorageType"],
        storage_gib=int(values["AllocatedStorage"]),
        iops=values.get("Iops"),
        throughput=values.get("StorageThroughput"),
        subnets=tuple(by_name[target(subnet)].tag() for subnet in group["SubnetIds"]),
        zone=values["AvailabilityZone"],
        public=values["PubliclyAccessible"],
        port=int(values["Port"]),
        groups=tuple(groups[target(g)] for g in values["VPCSecurityGroups"]),
        backup_days=values["BackupRetentionPeriod"],
        backup_window=values["PreferredBackupWindow"],
        maintenance_window=values["PreferredMaintenanceWindow"],
    )


def _template_bucket(bucket: Resource, region: str) -> BucketFact:
    values = bucket.properties
    (rule,) = values["BucketEncryption"]["ServerSideEncryptionConfiguration"]
    return BucketFact(
        name=values["BucketName"],
        region=region,
        versioning=values["VersioningConfiguration"]["Status"] == "Enabled",
        encryption=rule["ServerSideEncryptionByDefault"]["SSEAlgorithm"],
        lifecycle=tuple(
            LifecycleFact(
                rule["Prefix"], transition["StorageClass"], transition["TransitionInDays"]
            )
            for rule in values["LifecycleConfiguration"]["Rules"]
            if rule["Status"] == "Enabled"
            for transition in rule.get("Transitions", ())
        ),
        prefixes=None,
    )


# ---- account ----
def of_account(admin_cidr: str) -> Facts:
    """The facts that the service APIs give back."""
    ec2 = client("ec2")
    ours = [{"Name": "tag:Name", "Values": ["kalshi"]}]
    (vpc,) = ec2.describe_vpcs(Filters=ours)["Vpcs"]
    inside = [{"Name": "vpc-id", "Values": [vpc["VpcId"]]}]
    flags = {
        name: ec2.describe_vpc_attribute(VpcId=vpc["VpcId"], Attribute=name[0].lower() + name[1:])[
            name
        ]["Value"]
        for name in ("EnableDnsHostnames", "EnableDnsSupport")
    }
    tables = ec2.describe_route_tables(Filters=inside)["RouteTables"]
    groups = {
        group["GroupId"]: _name(group.get("Tags", ()))
        for group in ec2.describe_security_groups(Filters=inside)["SecurityGroups"]
        if group["GroupName"] != "default"
    }
    rules = _account_rules(ec2, groups)
    subnets = ec2.describe_subnets(Filters=inside)["Subnets"]
    names = {subnet["SubnetId"]: _name(subnet["Tags"]) for subnet in subnets}
    return Facts(
        admin_cidr=admin_cidr,
        vpc_cidr=vpc["CidrBlock"],
        dns_hostnames=flags["EnableDnsHostnames"],
        dns_resolution=flags["EnableDnsSupport"],
        subnets=tuple(_account_subnets(subnets, tables)),
        routes=_account_routes(tables),
        rules=_rule_facts(rules, groups),
        hosts=tuple(_account_hosts(ec2, names, groups)),
        database=_account_database(ec2, names, groups),
        local_databases=_local_databases(rules, groups),
        bucket=_account_bucket(),
        policies=_account_policies(),
        monthly=None,
    )


def _name(tags: Sequence[Mapping[str, str]]) -> str:
    return next((tag["Value"] for tag in tags if tag["Key"] == "Name"), "")


def _account_subnets(subnets: Sequence[Any], tables: Sequence[Any]) -> list[SubnetFact]:
    table_of = {
        association["SubnetId"]: _name(table["Tags"])
        for table in tables
        for association in table["Associations"]
        if "SubnetId" in association
    }
    return [
        SubnetFact(
            name=_name(subnet["Tags"]),
            cidr=subnet["CidrBlock"],
            zone=subnet["AvailabilityZone"],
            public=subnet["MapPublicIpOnLaunch"] and table_of[subnet["SubnetId"]] == "public",
        )
        for subnet in subnets
    ]


def _account_routes(tables: Sequence[Any]) -> dict[str, list[tuple[str, str]]]:
    routes: dict[str, list[tuple[str, str]]] = {}
    for table in tables:
        name = _name(table.get("Tags", ()))
        if not name:
            continue  # the VPC's own main table, which no subnet uses
        rows = routes.setdefault(name, [])
        for route in table["Routes"]:
            gateway = route.get("GatewayId", "")
            if gateway.startswith("vpce-"):
                continue  # the S3 endpoint's prefix list: deviation D07
            kind = "Internet Gateway" if gateway.startswith("igw-") else gateway
            rows.append((route["DestinationCidrBlock"], kind))
    return routes


def _account_rules(ec2: Any, groups: Mapping[str, str]) -> list[GroupRule]:
    rules = []
    for group in ec2.describe_security_groups(GroupIds=list(groups))["SecurityGroups"]:
        for inbound, key in ((True, "IpPermissions"), (False, "IpPermissionsEgress")):
            for row in group[key]:
                peers = [(r["CidrIp"], r) for r in row["IpRanges"]]
                peers += [(r["GroupId"], r) for r in row["UserIdGroupPairs"]]
                peers += [(r["CidrIpv6"], r) for r in row["Ipv6Ranges"]]
                rules += [
                    GroupRule(
                        group=group["GroupId"],
                        inbound=inbound,
                        protocol=row["IpProtocol"],
                        from_port=row.get("FromPort", -1),
                        to_port=row.get("ToPort", -1),
                        peer=peer,
                        description=entry.get("Description", ""),
                    )
                    for peer, entry in peers
                ]
    return rules


def _type_in_account(ec2: Any, name: str) -> TypeFact:
    (entry,) = ec2.describe_instance_types(InstanceTypes=[name.removeprefix("db.")])[
        "InstanceTypes"
    ]
    return TypeFact(
        vcpu=entry["VCpuInfo"]["DefaultVCpus"],
        memory_mib=entry["MemoryInfo"]["SizeInMiB"],
        network=entry["NetworkInfo"]["NetworkPerformance"],
        ebs_mbps_max=entry["EbsInfo"]["EbsOptimizedInfo"]["MaximumBandwidthInMbps"],
    )


def _account_hosts(
    ec2: Any, subnets: Mapping[str, str], groups: Mapping[str, str]
) -> list[HostFact]:
    hosts = []
    for reservation in ec2.describe_instances()["Reservations"]:
        for instance in reservation["Instances"]:
            name = _name(instance["Tags"])
            attached = [{"Name": "attachment.instance-id", "Values": [instance["InstanceId"]]}]
            (volume,) = ec2.describe_volumes(Filters=attached)["Volumes"]
            # moto gives no throughput back for a volume; it does for the launch template.
            (version,) = ec2.describe_launch_template_versions(
                LaunchTemplateName=f"kalshi-{name}", Versions=["$Latest"]
            )["LaunchTemplateVersions"]
            (mapping,) = version["LaunchTemplateData"]["BlockDeviceMappings"]
            hosts.append(
                HostFact(
                    name=name,
                    instance_type=instance["InstanceType"],
                    architecture=instance["Architecture"],
                    zone=instance["Placement"]["AvailabilityZone"],
                    subnet=subnets[instance["SubnetId"]],
                    address=instance["PrivateIpAddress"],
                    groups=tuple(groups[g["GroupId"]] for g in instance["SecurityGroups"]),
                    disk_type=volume["VolumeType"],
                    disk_gib=volume["Size"],
                    disk_iops=volume["Iops"],
                    disk_throughput=mapping["Ebs"]["Throughput"],
                    facts=_type_in_account(ec2, instance["InstanceType"]),
                )
            )
    return hosts


def _account_database(
    ec2: Any, subnets: Mapping[str, str], groups: Mapping[str, str]
) -> DatabaseFact:
    rds = client("rds")
    (values,) = rds.describe_db_instances()["DBInstances"]
    name = values["DBSubnetGroup"]["DBSubnetGroupName"]
    (group,) = rds.describe_db_subnet_groups(DBSubnetGroupName=name)["DBSubnetGroups"]
    return DatabaseFact(
        engine=values["Engine"],
        version=values["EngineVersion"],
        instance_class=values["DBInstanceClass"],
        facts=_type_in_account(ec2, values["DBInstanceClass"]),
        multi_az=values["MultiAZ"],
        storage_type=values["StorageType"],
        storage_gib=values["AllocatedStorage"],
        iops=values.get("Iops"),
        throughput=values.get("StorageThroughput"),
        subnets=tuple(subnets[subnet["SubnetIdentifier"]] for subnet in group["Subnets"]),
        zone=values["AvailabilityZone"],
        public=values["PubliclyAccessible"],
        port=values["Endpoint"]["Port"],
        groups=tuple(groups[g["VpcSecurityGroupId"]] for g in values["VpcSecurityGroups"]),
        backup_days=values["BackupRetentionPeriod"],
        backup_window=values["PreferredBackupWindow"],
        maintenance_window=values["PreferredMaintenanceWindow"],
    )


def _account_bucket() -> BucketFact:
    s3 = client("s3")
    names = [b["Name"] for b in s3.list_buckets()["Buckets"] if not b["Name"].endswith("-athena")]
    (name,) = names
    location = s3.get_bucket_location(Bucket=name)["LocationConstraint"]
    (rule,) = s3.get_bucket_encryption(Bucket=name)["ServerSideEncryptionConfiguration"]["Rules"]
    rules = s3.get_bucket_lifecycle_configuration(Bucket=name)["Rules"]
    return BucketFact(
        name=name,
        region=location or "us-east-1",  # the API names this one region by none
        versioning=s3.get_bucket_versioning(Bucket=name).get("Status") == "Enabled",
        encryption=rule["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"],
        lifecycle=tuple(
            LifecycleFact(rule["Filter"]["Prefix"], t["StorageClass"], t["Days"])
            for rule in rules
            if rule["Status"] == "Enabled"
            for t in rule.get("Transitions", ())
        ),
        prefixes=None,
    )


def _account_policies() -> dict[str, dict[str, Any]]:
    iam = client("iam")
    return {
        role: iam.get_role_policy(RoleName=f"kalshi-{role}", PolicyName="kalshi")["PolicyDocument"]
        for role in ("gatherer", "deduplicator")
    }
