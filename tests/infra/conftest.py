"""The AWS side's tests have an environment of their own (`make aws-test`).

Where aws_cdk is missing, only the tests that hold the two sides together are collected: they need
the product's packages, not the CDK."""

from __future__ import annotations

import importlib.util
import os

if importlib.util.find_spec("aws_cdk") is None:
    collect_ignore_glob = ["test_[!s]*.py", "test_s[!h]*.py"]
else:
    collect_ignore = ["test_shared_with_tape.py"]
    os.environ.setdefault("JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION", "20")
    from infra_fixtures import *  # noqa: F403
