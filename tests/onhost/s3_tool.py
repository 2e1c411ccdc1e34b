"""The bucket of the object store: `python s3_tool.py create|fetch ADDRESS BUCKET FOLDER`.

Runs in the store's network namespace. `fetch` writes every object as a file and prints how many.
The certificate is that of the real names, so a name is asked for, and looked up as ADDRESS.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config


def client(address: str) -> Any:
    """An S3 client whose every name is looked up as `address`."""
    look_up = socket.getaddrinfo
    socket.getaddrinfo = lambda _host, *rest, **more: look_up(address, *rest, **more)
    config = Config(retries={"total_max_attempts": 1}, connect_timeout=5)
    return boto3.client("s3", region_name="us-east-1", config=config)


def main() -> int:
    """One verb; the exit code."""
    verb, address, bucket, folder = sys.argv[1:]
    s3 = client(address)
    if verb == "create":
        s3.create_bucket(Bucket=bucket)
        return 0
    count = 0
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for entry in page.get("Contents", ()):
            target = Path(folder) / entry["Key"]
            target.parent.mkdir(parents=True, exist_ok=True)
            s3.download_file(bucket, entry["Key"], str(target))
            count += 1
    print(count)
    return 0


if __name__ == "__main__":
    sys.exit(main())
