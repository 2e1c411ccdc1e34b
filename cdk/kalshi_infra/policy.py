"""Policy: which findings of the checkers are accepted, each with its reason.

Three checkers read our templates: CloudFormation's validator inside aws-cdk-lib (every synth),
cfn-lint and cdk-nag (tests). A finding that is not listed here is an error; a listed one that no
longer occurs is an error too."""

from __future__ import annotations

import aws_cdk as cdk

# Of the validator in aws-cdk-lib, on every synth.
VALIDATOR = {
    "W3010": "the specification names the zones us-east-1a, b and c; addresses and hosts depend on them",
    "W9010": "the image is pinned by id on purpose: a changing one would replace a host and lose its databases",
}

# Of cfn-lint.
CFN_LINT = {
    "W3010": VALIDATOR["W3010"],
    "W3691": "the specification says PostgreSQL 16; RDS takes the newest minor version and upgrades minors by itself, "
    "while a pinned minor version would go out of date",
}

# Of cdk-nag's AwsSolutions pack. Where the specification decides, the reason names its section.
NAG = {
    "AwsSolutions-EC26": "the disk is encrypted, in the launch template, where the rule does not look",
    "AwsSolutions-EC28": "detailed monitoring is not in the specification and costs extra; the option alarms uses 5-minute values",
    "AwsSolutions-IAM5": "the wildcards are the specification's own JSON (IAM); they name one log prefix, one namespace, one bucket",
    "AwsSolutions-RDS3": "Single-AZ (Database, Production RDS); capture does not depend on this database",
    "AwsSolutions-RDS11": "port 5432 (Database, Networking); only the deduplicator's group reaches it",
    "AwsSolutions-S1": "no access log in the specification; the only writer is the deduplicator's role",
    "AwsSolutions-S10": "no bucket policy in the specification; every client of ours speaks TLS",
    "AwsSolutions-VPC7": "no flow logs in the specification; they cost per gigabyte of captured traffic",
    "AwsSolutions-SMG4": "the API key is the exchange's: it is rotated there, and no Lambda could do it",
    "AwsSolutions-SNS3": "topic of the option alarms: its only publishers are CloudWatch alarms inside AWS",
}


def acknowledge(app: cdk.App) -> None:
    """Accepts the validator's listed findings for the whole app."""
    cdk.Validations.of(app).acknowledge(
        *(
            cdk.Acknowledgment(id=f"CloudFormation-Validate::{rule}", reason=reason)
            for rule, reason in VALIDATOR.items()
        )
    )
