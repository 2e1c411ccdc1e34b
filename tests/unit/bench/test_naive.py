"""The naive peer does what it is said to do: it keeps each content once and reads everything."""

from __future__ import annotations

import pytest

from runtime.embedded import EmbeddedPostgres
from tests.bench import naive
from tests.bench.hot_stream import HotStream, HotWriter
from tests.databases import fresh_database


@pytest.mark.parametrize("at_once", [False, True])
async def test_what_it_loses_is_what_repeats(
    postgres_server: EmbeddedPostgres, at_once: bool
) -> None:
    """Not more: a peer that lost rows by a fault of ours would be no peer."""
    sources = [await fresh_database(postgres_server, "gatherer_hot") for _ in range(2)]
    target = await fresh_database(postgres_server, "production")
    stream = HotStream(20, 5_000)
    writer = HotWriter(stream, sources)
    await writer.open()
    seen: set[tuple[int, ...]] = set()
    for _ in range(4):
        rows = stream.next(3_000)
        fields = ("market_id", "exchange_us", "side", "price", "delta")
        seen.update(zip(*(rows[name].tolist() for name in fields), strict=True))
        await writer.write(rows)
    await writer.finish()
    await writer.close()
    await naive.index(sources)
    done = await naive.run(sources, target, at_once=at_once)
    assert (done.rows_in, done.truth, done.kept) == (24_000, 12_000, len(seen))
    assert done.lost == 12_000 - len(seen) > 0
