"""What `make lake-s3` would not let pass: a request that the role has no right to make, or none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lake_on_s3 import DELETES, GRANTED, action_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("method", "path", "query", "action"),
    [
        ("GET", "/b/lake/a.parquet", "", "s3:GetObject"),
        ("HEAD", "/b/lake/a.parquet", "", "s3:GetObject"),
        ("PUT", "/b/lake/a.parquet", "x-id=PutObject", "s3:PutObject"),
        ("GET", "/b", "list-type=2&prefix=lake/", "s3:ListBucket"),
        ("DELETE", "/b/lake/a.parquet", "", "DELETE /b/lake/a.parquet?"),
        ("POST", "/b/lake/a.parquet", "uploads", "POST /b/lake/a.parquet?uploads"),
        ("PUT", "/b/lake/a.parquet", "partNumber=1", "PUT /b/lake/a.parquet?partNumber=1"),
        ("GET", "/b", "versions", "GET /b?versions"),
        ("PUT", "/b", "", "PUT /b?"),
        ("POST", "/b", "delete", "s3:DeleteObject"),
    ],
)
def test_each_request_is_told_by_the_action_it_needs(
    method: str, path: str, query: str, action: str
) -> None:
    assert action_of(method, path, query) == action
    assert (action in GRANTED | DELETES) == action.startswith("s3:")
    assert not GRANTED & DELETES


@pytest.mark.parametrize(
    ("body", "code", "says"),
    [
        ("LocalStore(tmp_path).put('a', b'x')", 0, "1 s3:PutObject"),
        ("s3_server.role.delete_object(Bucket='kalshi-data-test', Key='a')", 1, "NOT GRANTED"),
        (
            "LocalStore(tmp_path).put('a', b'x'); LocalStore(tmp_path).delete(['a'])",
            0,
            "1 s3:DeleteObject   (tape compact alone)",
        ),
        (
            "LocalStore(tmp_path).put('a', b'x'); s3_server.compacts.list_buckets()",
            1,
            "NOT GRANTED",
        ),
        ("pass", 1, "nothing was tested"),
    ],
)
def test_a_run_fails_by_a_request_without_a_right_and_without_any(
    body: str, code: int, says: str, tmp_path: Path
) -> None:
    """The control: the tests of these runs pass, the runs do not."""
    (tmp_path / "test_one.py").write_text(
        f"from kalshilake.store import LocalStore\ndef test_it(tmp_path, s3_server):\n    {body}\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.lake_on_s3",
         "test_one.py"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert "1 passed" in done.stdout, done.stdout
    assert (done.returncode, says in done.stdout) == (code, True), done.stdout
