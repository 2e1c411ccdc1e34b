"""Storage: the bucket with its lifecycle, and the log groups that the roles may write to but not
create.

Invariant: the bucket and the logs outlive the stack (RETAIN).
"""

from __future__ import annotations

from aws_cdk import CfnOutput, CfnTag, RemovalPolicy, Stack
from aws_cdk import aws_logs as logs
from aws_cdk import aws_s3 as s3
from constructs import Construct

from kalshi_infra.names import pascal
from kalshi_infra.site import Options, Site
from kalshi_infra.topology import Lifecycle, Topology


class StorageStack(Stack):
    """Rows of the section Storage."""

    def __init__(
        self, scope: Construct, name: str, topology: Topology, site: Site, **kwargs: object
    ) -> None:
        super().__init__(scope, name, **kwargs)  # type: ignore[arg-type]
        bucket = topology.bucket
        self.bucket = s3.CfnBucket(
            self,
            "Lake",
            bucket_name=bucket.name,
            versioning_configuration=s3.CfnBucket.VersioningConfigurationProperty(
                status="Enabled" if bucket.versioning else "Suspended"
            ),
            bucket_encryption=s3.CfnBucket.BucketEncryptionProperty(
                server_side_encryption_configuration=[
                    s3.CfnBucket.ServerSideEncryptionRuleProperty(
                        server_side_encryption_by_default=s3.CfnBucket.ServerSideEncryptionByDefaultProperty(
                            sse_algorithm=bucket.encryption
                        )
                    )
                ]
            ),
            public_access_block_configuration=s3.CfnBucket.PublicAccessBlockConfigurationProperty(
                block_public_acls=True,
                block_public_policy=True,
                ignore_public_acls=True,
                restrict_public_buckets=True,
            ),
            lifecycle_configuration=s3.CfnBucket.LifecycleConfigurationProperty(
                rules=lifecycle_rules(topology.lifecycle, site.options)
            ),
            tags=[CfnTag(key="Name", value=bucket.name)],
        )
        self.bucket.apply_removal_policy(RemovalPolicy.RETAIN)
        for group in topology.logs.groups:
            log_group = logs.CfnLogGroup(
                self,
                f"Logs{pascal(group.rsplit('/', 1)[1])}",
                log_group_name=group,
                retention_in_days=topology.logs.retention_days,
            )
            log_group.apply_removal_policy(RemovalPolicy.RETAIN)
        CfnOutput(self, "Bucket", value=self.bucket.ref)


def lifecycle_rules(
    rows: tuple[Lifecycle, ...], options: Options
) -> list[s3.CfnBucket.RuleProperty]:
    """One rule per prefix with all its transitions; options add rules for the whole bucket."""
    rules = [_transitions(prefix, rows) for prefix in dict.fromkeys(row.prefix for row in rows)]
    if options.noncurrent_days:
        rules.append(
            s3.CfnBucket.RuleProperty(
                id="noncurrent-versions-expire",
                status="Enabled",
                prefix="",
                noncurrent_version_expiration=s3.CfnBucket.NoncurrentVersionExpirationProperty(
                    noncurrent_days=options.noncurrent_days
                ),
            )
        )
    if options.abort_multipart_days:
        rules.append(
            s3.CfnBucket.RuleProperty(
                id="unfinished-uploads-end",
                status="Enabled",
                prefix="",
                abort_incomplete_multipart_upload=s3.CfnBucket.AbortIncompleteMultipartUploadProperty(
                    days_after_initiation=options.abort_multipart_days
                ),
            )
        )
    return rules


def _transitions(prefix: str, rows: tuple[Lifecycle, ...]) -> s3.CfnBucket.RuleProperty:
    return s3.CfnBucket.RuleProperty(
        id=f"{prefix.strip('/')}-transitions",
        status="Enabled",
        prefix=prefix,
        transitions=[
            s3.CfnBucket.TransitionProperty(
                storage_class=row.storage_class, transition_in_days=row.days
            )
            for row in rows
            if row.prefix == prefix
        ],
    )
