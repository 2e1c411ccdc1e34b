"""`pytest -p tests.lake_on_s3`: the lake's tests again, with an S3 where they name a directory.

Every `LocalStore(path)` is an S3Store then, on a bucket of a server in this process; the directory
beside it holds the same objects, so that tests that look at files or change them go on working
(what they changed is brought to the bucket before the next call). The verifier reads the bucket
through pyarrow. Every request is recorded as the IAM action that it needs: one that the
deduplicator's role does not have fails the run, and so does a run that made no request. What only
`tape compact` does, deleting, goes out under another key and must be that action and no other.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final
from urllib.parse import parse_qs

import boto3
import pyarrow as pa
import pyarrow.fs as pafs
import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from kalshilake import store as stores
from kalshilake import verify as verifier
from kalshilake.s3 import S3Store
from kalshilake.store import Body, StoredObject

BUCKET: Final = "kalshi-data-test"
GRANTED: Final = frozenset({"s3:PutObject", "s3:GetObject", "s3:ListBucket"})
DELETES: Final = frozenset({"s3:DeleteObject"})
# Access keys: of the tests themselves, of the services, and of whoever may delete.
OWNER, ROLE, COMPACTS = "owner", "role", "compacts"
NATIVE: Final = stores.LocalStore
HELPERS: Final = ("kalshilake.store", "tests.lake_world", "tests.lake_tamper", "tests.lake_rows")
# Tests of a directory as a directory, those that have an S3 of their own in this process, one that
# counts the memory of this process, in which the server is, and those that play a compaction many
# times over, thousands of requests each: what it does on S3 is shown by the others of that file.
LEFT_OUT: Final = (
    "test_store", "test_s3", "test_query", "test_the_folder_alone", "test_rot_in_the_body",
    "test_memory_is_that_of_a_slice", "test_wherever_it_dies", "test_books_come_from_joined_hours",
    "test_a_day_is_divided", "test_a_row_less", "test_a_joined_object", "test_a_list_with_an_hour",
    "test_young_days", "test_an_export_that_a_compaction",
)  # fmt: skip


def action_of(method: str, path: str, query: str) -> str:
    """The IAM action that a request to S3 needs; "METHOD /path?query" if it is no plain one."""
    asked = parse_qs(query, keep_blank_values=True).keys()
    is_object = bool(re.fullmatch(r"/[^/]+/.+", path))
    plain = not asked - {"x-id"}
    if is_object and plain and method in ("GET", "HEAD"):
        return "s3:GetObject"
    if is_object and plain and method == "PUT":
        return "s3:PutObject"
    if not is_object and method == "POST" and asked == {"delete"}:
        return "s3:DeleteObject"
    if not is_object and (method == "HEAD" or (method == "GET" and "list-type" in asked)):
        return "s3:ListBucket"
    return f"{method} {path}?{query}"


class Recording:
    """The server's application with every request of the role written down."""

    def __init__(self) -> None:
        self.actions: dict[str, Counter[str]] = {ROLE: Counter(), COMPACTS: Counter()}
        self._app = DomainDispatcherApplication(create_backend_app)

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        for key, actions in self.actions.items():
            if f"Credential={key}/" in environ.get("HTTP_AUTHORIZATION", ""):
                told = (environ["REQUEST_METHOD"], environ["PATH_INFO"], environ["QUERY_STRING"])
                actions[action_of(*told)] += 1
        made: Iterable[bytes] = self._app(environ, start)
        return made


class Server:
    """S3 on the loopback interface, with a bucket."""

    def __init__(self) -> None:
        self.recording = Recording()
        self._server = make_server("127.0.0.1", 0, self.recording, threaded=True)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.address = f"127.0.0.1:{self._server.server_port}"
        self.owner, self.role = self.client(OWNER), self.client(ROLE)
        self.compacts = self.client(COMPACTS)
        self.owner.create_bucket(Bucket=BUCKET)

    def client(self, key: str) -> Any:
        return boto3.client(
            "s3", endpoint_url=f"http://{self.address}", region_name="us-east-1",
            aws_access_key_id=key, aws_secret_access_key="x",
        )  # fmt: skip

    def filesystem(self) -> pafs.S3FileSystem:
        return pafs.S3FileSystem(
            access_key=ROLE, secret_key="x", region="us-east-1",
            endpoint_override=self.address, scheme="http",
        )  # fmt: skip

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()


class S3Root(S3Store):
    """A store in the bucket that a directory mirrors. One call at a time, of all: a writer beside
    this one must not see the directory between a put and its mirror."""

    server: ClassVar[Server]
    lock: ClassVar = threading.RLock()
    pushed: ClassVar[dict[str, dict[str, tuple[int, int, int]]]] = {}  # by prefix and key

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self.prefix = "lakes" + str(self.root.absolute())
        super().__init__(BUCKET, self.prefix, self.server.role)

    @property
    def location(self) -> str:
        return str(self.root)

    def push(self) -> None:
        """Bring to the bucket what was changed in the directory."""
        owner, known = self.server.owner, self.pushed.setdefault(self.prefix, {})
        found = dict(_files(str(self.root), ""))
        for key, now in found.items():
            if now != known.get(key):
                body = (self.root / key).read_bytes()
                owner.put_object(Bucket=BUCKET, Key=f"{self.prefix}/{key}", Body=body)
        for key in known.keys() - found.keys():
            owner.delete_object(Bucket=BUCKET, Key=f"{self.prefix}/{key}")
        self.pushed[self.prefix] = found

    def get(self, key: str) -> bytes:
        with self.lock:
            self.push()
            return super().get(key)

    def _range(self, key: str, offset: int, length: int, condition: dict[str, str]) -> bytes:
        with self.lock:
            self.push()
            return super()._range(key, offset, length, condition)

    def size(self, key: str) -> int | None:
        with self.lock:
            self.push()
            return super().size(key)

    def put(self, key: str, body: Body) -> None:
        with self.lock:
            super().put(key, body)
            self._mirror(key)

    def put_if_absent(self, key: str, body: bytes) -> bool:
        with self.lock:
            self.push()
            won = super().put_if_absent(key, body)
            if won:
                self._mirror(key)
            return won

    def delete(self, keys: Sequence[str]) -> None:
        with self.lock:
            self.push()
            S3Store(BUCKET, self.prefix, self.server.compacts).delete(keys)
            for key in keys:
                (self.root / key).unlink(missing_ok=True)
                self.pushed[self.prefix].pop(key, None)

    def _mirror(self, key: str) -> None:
        reply = self.server.owner.get_object(Bucket=BUCKET, Key=f"{self.prefix}/{key}")
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(reply["Body"].read())
        self.pushed.setdefault(self.prefix, {})[key] = _stat(path)

    def list(self, prefix: str) -> Iterator[StoredObject]:
        with self.lock:
            self.push()
            return iter(list(super().list(prefix)))

    def open(self, key: str) -> pa.NativeFile:
        with self.lock:
            self.push()
            return super().open(key)


def _files(folder: str, prefix: str) -> Iterator[tuple[str, tuple[int, int, int]]]:
    """(key, what tells a change) of every file; asked before each call, so it has to be quick."""
    try:
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        if entry.is_dir():
            if entry.name != ".tmp":
                yield from _files(entry.path, f"{prefix}{entry.name}/")
        elif entry.is_file():
            stat = entry.stat()
            yield prefix + entry.name, (stat.st_mtime_ns, stat.st_size, stat.st_ino)


def _stat(path: Path) -> tuple[int, int, int]:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _verify(location: str, **more: Any) -> Any:
    """The verifier, from the bucket."""
    if location.startswith("s3://") or "filesystem" in more:
        return verifier.verify(location, **more)  # the test has an S3 of its own
    root = S3Root(Path(location))
    root.push()
    report = verifier.verify(
        f"s3://{BUCKET}/{root.prefix}", filesystem=S3Root.server.filesystem(), **more
    )
    report.location = location
    return report


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Server]:
    server = S3Root.server = Server()
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def _in_s3(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, s3_server: Server
) -> None:
    for name in (*HELPERS, request.module.__name__):
        module = sys.modules.get(name)
        if getattr(module, "LocalStore", None) is NATIVE:
            monkeypatch.setattr(module, "LocalStore", S3Root)
        if getattr(module, "verify", None) is verifier.verify:
            monkeypatch.setattr(module, "verify", _verify)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left = [i for i in items if any(name in i.nodeid for name in LEFT_OUT)]
    config.hook.pytest_deselected(items=left)
    items[:] = [i for i in items if i not in left]


def _actions(key: str) -> Counter[str]:
    return S3Root.server.recording.actions[key] if hasattr(S3Root, "server") else Counter()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    actions, deletes = _actions(ROLE), _actions(COMPACTS)
    refused = actions.keys() - GRANTED | deletes.keys() - DELETES
    if session.exitstatus == 0 and (not actions or refused):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any) -> None:
    terminalreporter.section("requests to S3, by IAM action")
    for key, granted in ((ROLE, GRANTED), (COMPACTS, DELETES)):
        for action, n in sorted(_actions(key).items()):
            told = "" if action in granted else "   NOT GRANTED"
            whom = "" if key == ROLE else "   (tape compact alone)"
            terminalreporter.write_line(f"{n:8,} {action}{whom}{told}")
    if not _actions(ROLE):
        terminalreporter.write_line("none at all: nothing was tested")
