"""Lake catalogue (option lake_catalog): the Parquet files as tables of Athena.

Invariants:
- Partitions are projected from the Hive path: no crawler, no repair, no write access for the
  deduplicator.
- Columns come from lake_columns.json, which a test holds equal to the exporter's schema.
- The analyst role reads `parquet/` and writes only query results, which are in a bucket of their
  own.

Limits: Spark ignores projection and reads the paths directly; objects past the archive transition
are not visible."""

from __future__ import annotations

import json
from typing import Any

from aws_cdk import Aws, CfnOutput, RemovalPolicy, Stack
from aws_cdk import aws_athena as athena
from aws_cdk import aws_glue as glue
from aws_cdk import aws_iam as iam
from aws_cdk import aws_s3 as s3
from constructs import Construct

from kalshi_infra.lake_columns import COLUMNS_PATH
from kalshi_infra.names import pascal, tags
from kalshi_infra.topology import Topology

DATABASE = "kalshi"
FIRST_YEAR, LAST_YEAR = 2024, 2040
SCAN_BYTES_MAX = 200 * 10**9  # one USD of scanning at five a terabyte
RESULT_DAYS = 30
_PARQUET = "org.apache.hadoop.hive.ql.io.parquet"


class LakeStack(Stack):
    """Glue database and tables, Athena work group, result bucket and analyst role."""

    def __init__(self, scope: Construct, name: str, topology: Topology, **kwargs: object) -> None:
        super().__init__(scope, name, **kwargs)  # type: ignore[arg-type]
        self._location = f"s3://{topology.bucket.name}/{topology.bucket.parquet_prefix}"
        database = glue.CfnDatabase(
            self,
            "Database",
            catalog_id=Aws.ACCOUNT_ID,
            database_input=glue.CfnDatabase.DatabaseInputProperty(
                name=DATABASE, description="The merged tape", location_uri=self._location
            ),
        )
        for table, columns in json.loads(COLUMNS_PATH.read_text(encoding="utf-8")).items():
            self._table(table, columns).add_resource_dependency(database)
        results = f"{topology.bucket.name}-athena"
        self._results_bucket(results)
        work_group = athena.CfnWorkGroup(
            self,
            "WorkGroup",
            name=DATABASE,
            description="Queries on the tape, with a limit on scanned bytes",
            work_group_configuration=athena.CfnWorkGroup.WorkGroupConfigurationProperty(
                enforce_work_group_configuration=True,
                publish_cloud_watch_metrics_enabled=True,
                bytes_scanned_cutoff_per_query=SCAN_BYTES_MAX,
                engine_version=athena.CfnWorkGroup.EngineVersionProperty(
                    selected_engine_version="Athena engine version 3"
                ),
                result_configuration=athena.CfnWorkGroup.ResultConfigurationProperty(
                    output_location=f"s3://{results}/",
                    encryption_configuration=athena.CfnWorkGroup.EncryptionConfigurationProperty(
                        encryption_option="SSE_S3"
                    ),
                ),
            ),
        )
        iam.CfnRole(
            self,
            "Analyst",
            role_name="kalshi-analyst",
            assume_role_policy_document=_trust_of_own_account(),
            policies=[
                iam.CfnRole.PolicyProperty(
                    policy_name="kalshi", policy_document=analyst_policy(topology, results)
                )
            ],
            tags=tags("kalshi-analyst"),
        )
        CfnOutput(self, "AthenaWorkGroup", value=work_group.ref)

    def _results_bucket(self, name: str) -> None:
        bucket = s3.CfnBucket(
            self,
            "Results",
            bucket_name=name,
            bucket_encryption=s3.CfnBucket.BucketEncryptionProperty(
                server_side_encryption_configuration=[
                    s3.CfnBucket.ServerSideEncryptionRuleProperty(
                        server_side_encryption_by_default=s3.CfnBucket.ServerSideEncryptionByDefaultProperty(
                            sse_algorithm="AES256"
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
                rules=[
                    s3.CfnBucket.RuleProperty(
                        id="results-expire",
                        status="Enabled",
                        prefix="",
                        expiration_in_days=RESULT_DAYS,
                    )
                ]
            ),
            tags=tags(name),
        )
        bucket.apply_removal_policy(RemovalPolicy.RETAIN)

    def _table(self, table: str, columns: list[list[str]]) -> glue.CfnTable:
        def column(name: str, kind: str) -> glue.CfnTable.ColumnProperty:
            return glue.CfnTable.ColumnProperty(name=name, type=kind)

        location = f"{self._location}{table}/"
        return glue.CfnTable(
            self,
            f"Table{pascal(table.replace('_', '-'))}",
            catalog_id=Aws.ACCOUNT_ID,
            database_name=DATABASE,
            table_input=glue.CfnTable.TableInputProperty(
                name=table,
                table_type="EXTERNAL_TABLE",
                parameters=projection(location),
                partition_keys=[column(key, "int") for key in ("year", "month", "day")],
                storage_descriptor=glue.CfnTable.StorageDescriptorProperty(
                    columns=[column(name, kind) for name, kind in columns],
                    location=location,
                    input_format=f"{_PARQUET}.MapredParquetInputFormat",
                    output_format=f"{_PARQUET}.MapredParquetOutputFormat",
                    serde_info=glue.CfnTable.SerdeInfoProperty(
                        serialization_library=f"{_PARQUET}.serde.ParquetHiveSerDe"
                    ),
                ),
            ),
        )


def projection(location: str) -> dict[str, str]:
    """Properties from which Athena computes partitions; months and days are zero padded."""
    return {
        "classification": "parquet",
        "projection.enabled": "true",
        "projection.year.type": "integer",
        "projection.year.range": f"{FIRST_YEAR},{LAST_YEAR}",
        "projection.month.type": "integer",
        "projection.month.range": "1,12",
        "projection.month.digits": "2",
        "projection.day.type": "integer",
        "projection.day.range": "1,31",
        "projection.day.digits": "2",
        "storage.location.template": location + "year=${year}/month=${month}/day=${day}/",
    }


def _trust_of_own_account() -> dict[str, Any]:
    return {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Principal": {"AWS": f"arn:aws:iam::{Aws.ACCOUNT_ID}:root"},
                "Action": "sts:AssumeRole",
            }
        ],
    }


def analyst_policy(topology: Topology, results: str) -> dict[str, Any]:
    """Queries in the work group, reading the lake, and the results; nothing else."""
    bucket = f"arn:aws:s3:::{topology.bucket.name}"
    here = f"{topology.region}:{Aws.ACCOUNT_ID}"
    prefix = topology.bucket.parquet_prefix
    return {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Action": [
                    "athena:StartQueryExecution",
                    "athena:StopQueryExecution",
                    "athena:GetQueryExecution",
                    "athena:GetQueryResults",
                    "athena:GetWorkGroup",
                ],
                "Resource": f"arn:aws:athena:{here}:workgroup/{DATABASE}",
            },
            {
                "Effect": "Allow",
                "Action": [
                    "glue:GetDatabase",
                    "glue:GetTable",
                    "glue:GetTables",
                    "glue:GetPartitions",
                ],
                "Resource": [
                    f"arn:aws:glue:{here}:catalog",
                    f"arn:aws:glue:{here}:database/{DATABASE}",
                    f"arn:aws:glue:{here}:table/{DATABASE}/*",
                ],
            },
            {
                "Effect": "Allow",
                "Action": ["s3:ListBucket"],
                "Resource": bucket,
                "Condition": {"StringLike": {"s3:prefix": [f"{prefix}*"]}},
            },
            {"Effect": "Allow", "Action": ["s3:GetObject"], "Resource": f"{bucket}/{prefix}*"},
            {
                "Effect": "Allow",
                "Action": ["s3:GetBucketLocation"],
                "Resource": [bucket, f"arn:aws:s3:::{results}"],
            },
            {
                "Effect": "Allow",
                "Action": ["s3:ListBucket"],
                "Resource": f"arn:aws:s3:::{results}",
            },
            {
                "Effect": "Allow",
                "Action": ["s3:GetObject", "s3:PutObject", "s3:AbortMultipartUpload"],
                "Resource": f"arn:aws:s3:::{results}/*",
            },
        ],
    }
