"""Identity: the two roles, with the specification's policy documents literally.

Invariant: a document is the specification's JSON, key for key and in its order; only the bucket's
name, the log prefix and the metric namespace come from the topology. Options add policies beside
it, never inside."""

from __future__ import annotations

from typing import Any

from aws_cdk import CfnOutput, Stack
from aws_cdk import aws_iam as iam
from aws_cdk import aws_secretsmanager as secretsmanager
from constructs import Construct

from kalshi_infra.names import pascal, tags
from kalshi_infra.site import Site
from kalshi_infra.topology import Topology

API_KEY_SECRET = "kalshi/api-key"  # noqa: S105 - the secret's name


def _statements_for_telemetry(topology: Topology) -> list[dict[str, Any]]:
    return [
        {
            "Effect": "Allow",
            "Action": ["logs:CreateLogStream", "logs:PutLogEvents"],
            "Resource": f"arn:aws:logs:*:*:log-group:{topology.logs.prefix}*",
        },
        {
            "Effect": "Allow",
            "Action": ["cloudwatch:PutMetricData"],
            "Resource": "*",
            "Condition": {"StringEquals": {"cloudwatch:namespace": topology.logs.metric_namespace}},
        },
    ]


def gatherer_policy(topology: Topology) -> dict[str, Any]:
    """The gatherer role's document."""
    return {"Version": "2012-10-17", "Statement": _statements_for_telemetry(topology)}


def deduplicator_policy(topology: Topology) -> dict[str, Any]:
    """The deduplicator role's document."""
    bucket = f"arn:aws:s3:::{topology.bucket.name}"
    storage = {
        "Effect": "Allow",
        "Action": ["s3:PutObject", "s3:GetObject", "s3:ListBucket"],
        "Resource": [bucket, f"{bucket}/*"],
    }
    return {"Version": "2012-10-17", "Statement": [storage, *_statements_for_telemetry(topology)]}


def trust() -> dict[str, Any]:
    """Only EC2 may take these roles."""
    return {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Principal": {"Service": "ec2.amazonaws.com"},
                "Action": "sts:AssumeRole",
            }
        ],
    }


class IdentityStack(Stack):
    """Rows of the section IAM."""

    def __init__(
        self, scope: Construct, name: str, topology: Topology, site: Site, **kwargs: object
    ) -> None:
        super().__init__(scope, name, **kwargs)  # type: ignore[arg-type]
        documents = {
            "gatherer": gatherer_policy(topology),
            "deduplicator": deduplicator_policy(topology),
        }
        self.roles: dict[str, iam.CfnRole] = {}
        self.profiles: dict[str, iam.CfnInstanceProfile] = {}
        for role, document in documents.items():
            self.roles[role] = iam.CfnRole(
                self,
                f"{pascal(role)}Role",
                role_name=f"kalshi-{role}",
                assume_role_policy_document=trust(),
                policies=[
                    iam.CfnRole.PolicyProperty(policy_name="kalshi", policy_document=document)
                ],
                tags=tags(f"kalshi-{role}"),
            )
            self.profiles[role] = iam.CfnInstanceProfile(
                self,
                f"{pascal(role)}Profile",
                instance_profile_name=f"kalshi-{role}",
                roles=[self.roles[role].ref],
            )
        if site.options.secrets_manager:
            self._api_key_secret()

    def _api_key_secret(self) -> None:
        """Made empty: the key is put in by its owner and is in no template."""
        secret = secretsmanager.CfnSecret(
            self, "ApiKey", name=API_KEY_SECRET, description="Kalshi API key of the gatherers"
        )
        iam.CfnRolePolicy(
            self,
            "GathererReadsApiKey",
            role_name=self.roles["gatherer"].ref,
            policy_name="kalshi-api-key",
            policy_document=read_secret(secret.ref),
        )
        CfnOutput(self, "ApiKeySecret", value=secret.ref)


def read_secret(arn: str) -> dict[str, Any]:
    """A document that allows reading one secret."""
    return {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Action": ["secretsmanager:GetSecretValue"], "Resource": arn}
        ],
    }
