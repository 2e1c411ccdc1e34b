"""Facts that the AWS side and the tape share without sharing code.

Runs in the tape's environment.
"""

from __future__ import annotations

import fnmatch
import importlib.util
import json
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws

from kalshilake.paths import OBJECT_PREFIX, object_key
from kalshilake.s3 import S3Store
from kalshilake.schema import TABLES

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TOPOLOGY = tomllib.loads((ROOT / "topology.toml").read_text(encoding="utf-8"))


def _load(name: str, path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


# Which right an S3 operation asks for.
RIGHTS = {
    "PutObject": "s3:PutObject",
    "GetObject": "s3:GetObject",
    "HeadObject": "s3:GetObject",
    "ListObjectsV2": "s3:ListBucket",
}


def _deduplicator_statements() -> list[dict[str, Any]]:
    spec_tables = _load("kalshi_spec_tables", HERE / "spec_tables.py")
    _, documents = spec_tables.specification()
    statements = spec_tables.policy_documents(documents)["Deduplicator Role"]["Statement"]
    assert isinstance(statements, list)
    return statements


def allowed(statements: list[dict[str, Any]], right: str, resource: str) -> bool:
    """Whether some statement allows `right` on `resource`."""
    for statement in statements:
        actions, resources = statement["Action"], statement["Resource"]
        names = [resources] if isinstance(resources, str) else resources
        if right in actions and any(fnmatch.fnmatchcase(resource, name) for name in names):
            return True
    return False


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str]]]:
    """(operation, resource) of every S3 call of the lake's own store, used in all its ways."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", TOPOLOGY["region"])
    seen: list[tuple[str, str]] = []
    bucket = TOPOLOGY["bucket"]["name"]
    with mock_aws():
        client = boto3.client("s3")
        client.create_bucket(Bucket=bucket)

        def record(params: dict[str, Any], model: Any, **_: Any) -> None:
            key = params.get("Key")
            arn = f"arn:aws:s3:::{params['Bucket']}"
            seen.append((model.name, f"{arn}/{key}" if key else arn))

        client.meta.events.register("provide-client-params.s3", record)
        store = S3Store(bucket, "", client)
        key = object_key("trades", 0)
        store.put(key, b"PAR1 and more")
        assert not store.put_if_absent(key, b"other")
        assert store.get(key) == b"PAR1 and more"
        assert store.get_range(key, 0, 4) == b"PAR1"
        assert store.size("parquet/absent") is None
        with store.open(key) as opened:
            assert opened.read(4) == b"PAR1"
        assert [entry.key for entry in store.list(OBJECT_PREFIX)] == [key]
        yield seen


def test_every_call_of_the_lakes_store_is_allowed_by_the_specifications_role(
    calls: list[tuple[str, str]],
) -> None:
    """A right that is missing would show first on AWS, at the first export."""
    statements = _deduplicator_statements()
    assert {operation for operation, _ in calls} == set(RIGHTS)
    for operation, resource in calls:
        assert allowed(statements, RIGHTS[operation], resource), (operation, resource)


def test_the_role_allows_nothing_on_s3_that_the_store_does_not_use(
    calls: list[tuple[str, str]],
) -> None:
    """A right that nobody uses is one to lose."""
    used = {RIGHTS[operation] for operation, _ in calls}
    given = {
        action
        for statement in _deduplicator_statements()
        for action in statement["Action"]
        if action.startswith("s3:")
    }
    assert given == used


@pytest.mark.parametrize(
    ("right", "resource"),
    [
        ("s3:DeleteObject", "arn:aws:s3:::kalshi-data-prod/parquet/x"),
        ("s3:AbortMultipartUpload", "arn:aws:s3:::kalshi-data-prod/parquet/x"),
        ("s3:PutObject", "arn:aws:s3:::somebody-elses-bucket/x"),
        ("s3:ListBucket", "arn:aws:s3:::kalshi-data-production"),
    ],
)
def test_a_call_outside_the_role_is_seen_as_refused(right: str, resource: str) -> None:
    """The control: the evaluator above can say no."""
    assert not allowed(_deduplicator_statements(), right, resource)


def test_the_catalogue_has_the_columns_that_the_exporter_writes() -> None:
    """`make aws-lake-columns` was forgotten if this fails: Athena would read other columns."""
    columns = _load("kalshi_lake_columns", ROOT / "cdk" / "kalshi_infra" / "lake_columns.py")
    written = columns.COLUMNS_PATH.read_text(encoding="utf-8")
    assert json.loads(written) == columns.columns(TABLES)
    assert written == columns.text(TABLES)


def test_the_lakes_paths_are_those_of_the_topology() -> None:
    """Lifecycle rules act on prefixes: a table outside them would never be archived."""
    bucket = TOPOLOGY["bucket"]
    assert bucket["parquet_prefix"] == OBJECT_PREFIX
    assert set(bucket["tables"]) <= set(TABLES)
    day = bucket["partition"].format(year=1970, month=1, day=1)
    for table in bucket["tables"]:
        assert object_key(table, 0).startswith(f"{OBJECT_PREFIX}{table}/{day}/")
