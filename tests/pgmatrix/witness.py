"""A pytest plugin: which PostgreSQL and which storage the tests really used, asked of the servers.

`pytest -p tests.pgmatrix.witness --claim 17:hypertable ...` keeps the tests that use a real server,
looks into every database that a test migrates, and at the end prints one line. The run fails where
a database was of another version or storage than claimed, or where none was looked at: a run that
fell back to another server is no proof. TAPE_POSTGRES chooses the server
(runtime.cluster_template).
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import pytest

from runtime import postgres

ROW_TABLES: Final = ("orderbook_delta", "orderbook_snapshot", "trade", "ticker")
FIXTURES: Final = {"cluster", "dsn", "connection", "postgres_server"}
NAMES: Final = ("EmbeddedPostgres", "fresh_database", "run_through", "make_recordings")

Seen = tuple[int, str]
"""Major version, and `hypertable`, `native`, or what was found instead."""

_HYPERTABLES: Final = """
SELECT hypertable_name::text FROM timescaledb_information.hypertables
WHERE hypertable_schema = current_schema()
"""
_NATIVE: Final = """
SELECT relname::text FROM pg_class WHERE relkind = 'p'
AND relnamespace = current_schema()::regnamespace
"""


async def look(connection: postgres.Connection) -> Seen | None:
    """What a migrated database is, from its catalog; None where it has no row tables."""
    version = int(await connection.fetchval("SHOW server_version_num")) // 10_000
    if await connection.fetchval("SELECT to_regclass('orderbook_delta') IS NULL"):
        return None
    hyper: set[str] = set()
    if await connection.fetchval(
        "SELECT to_regclass('timescaledb_information.hypertables') IS NOT NULL"
    ):
        hyper = {r[0] for r in await connection.fetch(_HYPERTABLES)}
    native = {r[0] for r in await connection.fetch(_NATIVE)}
    if "orderbook_delta" in hyper and not native:
        return version, "hypertable"
    if "orderbook_delta" in native and not hyper:
        return version, "native"
    return version, f"hypertables {sorted(hyper)}, partitioned {sorted(native)}"


class Witness:
    """What was seen in one run."""

    def __init__(self, claim: Seen) -> None:
        self.claim = claim
        self.seen: Counter[Seen] = Counter()
        self.outcomes: Counter[str] = Counter()

    def problem(self) -> str:
        """Why the claim does not hold; "" when it does."""
        others = {what: n for what, n in self.seen.items() if what != self.claim}
        if others:
            return f"claimed {self.claim}, but the servers said {others}"
        return "" if self.seen else "no test migrated a database: nothing was shown"

    def line(self) -> str:
        """One line for the version."""
        version, storage = self.claim
        told = ", ".join(f"{n} {what}" for what, n in sorted(self.outcomes.items()))
        seen = sum(self.seen.values())
        verdict = self.problem() or f"{seen} databases looked into, all {storage}"
        return f"pg-matrix PostgreSQL {version} {storage}: {told}; {verdict}"

    def watch(self) -> None:
        """Look into every database that is migrated from now on."""
        real = postgres.migrate

        async def migrate(connection: postgres.Connection, folder: Any) -> list[int]:
            done = await real(connection, folder)
            if folder in ("gatherer_hot", "production"):
                found = await look(connection)
                if found is not None:
                    self.seen[found] += 1
            return done

        postgres.migrate = migrate


def uses_a_server(item: Any) -> bool:
    """Whether a test needs PostgreSQL: by its fixtures, or by what its module works with."""
    if FIXTURES & set(getattr(item, "fixturenames", ())):
        return True
    source = inspect.getsource(item.module)
    return any(name in source for name in NAMES)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--claim", help="VERSION:STORAGE, as 17:hypertable")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    version, _, storage = str(config.getoption("--claim")).partition(":")
    if storage not in ("hypertable", "native"):
        raise pytest.UsageError("--claim VERSION:hypertable or VERSION:native")
    witness = Witness((int(version), storage))
    witness.watch()
    config.pluginmanager.register(_Hooks(witness), "pgmatrix-hooks")


class _Hooks:
    def __init__(self, witness: Witness) -> None:
        self._witness = witness

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        kept = [i for i in items if "/integration/" in str(i.path) or uses_a_server(i)]
        config.hook.pytest_deselected(items=[i for i in items if i not in set(kept)])
        items[:] = kept

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self._witness.outcomes[report.outcome] += 1

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Iterator[None]:
        yield
        if self._witness.problem():
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        terminalreporter.write_line(self._witness.line())
