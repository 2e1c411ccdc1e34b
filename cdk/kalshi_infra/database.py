"""Database: the production PostgreSQL on RDS.

Invariants:
- The master password is made and kept by RDS in Secrets Manager; no template holds it.
- Deleting or replacing the instance leaves a snapshot, and deletion protection stands before that.
- No IOPS and no throughput are stated: at 400 GiB and more RDS for PostgreSQL refuses values below
  its own baseline, under 400 GiB it refuses any (deviation D02)."""

from __future__ import annotations

from aws_cdk import CfnOutput, RemovalPolicy, Stack
from aws_cdk import aws_iam as iam
from aws_cdk import aws_rds as rds
from constructs import Construct

from kalshi_infra.identity import IdentityStack, read_secret
from kalshi_infra.names import tags
from kalshi_infra.network import NetworkStack
from kalshi_infra.site import Site
from kalshi_infra.topology import Topology


class DatabaseStack(Stack):
    """Rows of the section Database, Production RDS."""

    def __init__(
        self,
        scope: Construct,
        name: str,
        topology: Topology,
        site: Site,
        network: NetworkStack,
        identity: IdentityStack,
        **kwargs: object,
    ) -> None:
        super().__init__(scope, name, **kwargs)  # type: ignore[arg-type]
        wanted = topology.production
        private = [subnet for subnet in topology.subnet if not subnet.public]
        group = rds.CfnDBSubnetGroup(
            self,
            "SubnetGroup",
            db_subnet_group_name=wanted.identifier,
            db_subnet_group_description="Private subnets only",
            subnet_ids=[network.subnets[subnet.name].ref for subnet in private],
            tags=tags(wanted.identifier),
        )
        self.instance = rds.CfnDBInstance(
            self,
            "Production",
            db_instance_identifier=wanted.identifier,
            db_instance_class=wanted.instance_class,
            engine=wanted.engine,
            engine_version=wanted.engine_version,
            db_name=wanted.database,
            master_username=wanted.owner,
            manage_master_user_password=True,
            allocated_storage=str(wanted.storage.size_gib),
            storage_type=wanted.storage.type,
            storage_encrypted=True,
            multi_az=wanted.multi_az,
            availability_zone=wanted.zone,
            publicly_accessible=wanted.publicly_accessible,
            port=str(topology.ports.number(wanted.port)),
            db_subnet_group_name=group.ref,
            vpc_security_groups=[network.groups[wanted.security_group].attr_group_id],
            backup_retention_period=wanted.backup_days,
            preferred_backup_window=wanted.backup_window,
            preferred_maintenance_window=wanted.maintenance_window,
            copy_tags_to_snapshot=True,
            deletion_protection=True,
            tags=tags(wanted.identifier),
        )
        self.instance.apply_removal_policy(RemovalPolicy.SNAPSHOT)
        if site.options.secrets_manager:
            iam.CfnRolePolicy(
                self,
                "DeduplicatorReadsPassword",
                role_name=identity.roles["deduplicator"].ref,
                policy_name="kalshi-production-password",
                policy_document=read_secret(self.instance.attr_master_user_secret_secret_arn),
            )
        CfnOutput(self, "Endpoint", value=self.instance.attr_endpoint_address)
