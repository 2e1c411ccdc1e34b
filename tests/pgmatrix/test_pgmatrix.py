"""The witness sees another server than the one claimed; and, where the trees are, all versions.

The whole matrix is `make pg-matrix`. Here: one server of each tree that a cache holds already.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from runtime import embedded
from runtime.cluster_template import OWN_POSTGRES, ClusterSource
from runtime.embedded import EmbeddedPostgres
from runtime.postgres import connect, migrate
from tests.databases import fresh_database, postgres_server
from tests.pgmatrix.tree import RELEASES, Release, install_root
from tests.pgmatrix.witness import Seen, Witness, look

__all__ = ["postgres_server"]


def verdict(*seen: Seen, claim: Seen = (17, "hypertable")) -> str:
    witness = Witness(claim)
    witness.seen.update(seen)
    return witness.problem()


def test_a_run_that_used_another_server_or_none_is_no_proof() -> None:
    assert verdict((17, "hypertable"), (17, "hypertable")) == ""
    assert "no test migrated" in verdict()
    assert "(16, 'native')" in verdict((17, "hypertable"), (16, "native"))
    assert "(17, 'native')" in verdict((17, "native"))
    assert "(16, 'hypertable')" in verdict((16, "hypertable"))


async def test_what_a_database_is_comes_from_its_catalog(postgres_server: EmbeddedPostgres) -> None:
    """Also when somebody made a plain table of the partitioned one: neither kind is claimed."""
    connection = await connect(await fresh_database(postgres_server, "gatherer_hot"))
    try:
        version = int(await connection.fetchval("SHOW server_version_num")) // 10_000
        seen = await look(connection)
        assert seen in ((version, "native"), (version, "hypertable"))
        await connection.execute("DROP TABLE orderbook_delta")
        assert await look(connection) is None
        await connection.execute("CREATE TABLE orderbook_delta (exchange_ts timestamptz)")
        assert await look(connection) == (version, "hypertables [], partitioned []")
    finally:
        await connection.close()


def _started(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[Seen | None]:
    monkeypatch.setenv(OWN_POSTGRES, str(root))
    monkeypatch.setattr(embedded, "_SOURCE", ClusterSource())

    async def run() -> list[Seen | None]:
        found = []
        async with EmbeddedPostgres(settings={"fsync": "off"}) as server:
            for folder in ("gatherer_hot", "production"):
                connection = await connect(await fresh_database(server, folder))
                assert await migrate(connection, folder) == []
                found.append(await look(connection))
                await connection.close()
        return found

    return asyncio.run(run())


@pytest.mark.parametrize("release", RELEASES, ids=lambda r: str(r.version))
def test_each_tree_gives_its_version_and_storage(
    release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = install_root(release)
    if not os.access(root / "bin" / "postgres", os.X_OK):
        pytest.skip(f"no tree of postgresql {release.version} here: make pg-matrix makes it")
    storage = "hypertable" if release.timescale else "native"
    assert _started(root, monkeypatch) == [(release.version, storage)] * 2
