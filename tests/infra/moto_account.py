"""An AWS account inside moto, in this process or as a server.

What moto gets wrong and how it is mended here, openly:
- RDS windows: moto calls two windows that touch overlapping (03:00-04:00 and 04:00-05:00), RDS does
  not. The comparison is narrowed to a true overlap.
- Images: moto takes an unknown image for x86_64. It is given one image, arm64 with the root device
  /dev/xvda, as Debian's.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

ACCOUNT = "123456789012"
AMI = "ami-0123456789abcdef0"
REGION = "us-east-1"

IMAGES_PATH = Path(__file__).with_name("amis.json")


def environment() -> dict[str, str]:
    """What moto and boto3 read; the first counts only if set before moto is imported."""
    return {
        "MOTO_AMIS_PATH": str(IMAGES_PATH),
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": REGION,
        "AWS_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def narrow_window_overlap() -> None:
    """Lets windows that only touch pass, as RDS does."""
    from moto.rds import utils

    original = utils.get_overlap_between_two_date_ranges
    if getattr(original, "narrowed", False):
        return

    def overlap(*bounds: object) -> int:
        return original(*bounds) or -1

    overlap.narrowed = True  # type: ignore[attr-defined]
    utils.get_overlap_between_two_date_ranges = overlap


@cache
def client(service: str) -> Any:
    """A boto3 client; one for the whole run, because making one is most of the work."""
    import boto3

    return boto3.client(service, region_name=REGION)


@contextmanager
def account() -> Iterator[None]:
    """An empty account for the time of the block; every boto3 client in it talks to moto."""
    from moto import mock_aws

    narrow_window_overlap()
    with mock_aws():
        yield


os.environ.update(environment())
