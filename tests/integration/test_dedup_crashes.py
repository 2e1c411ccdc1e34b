"""The deduplicator dies at every boundary between two effects; the end has the same bytes.

Boundaries are counted in an undisturbed run, not listed: a statement that is added later is tried
as well. An effect is a statement on production's connection or a write into the lake. What is
compared: every table of the result, row by row, and every file of the lake, byte by byte.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from dedup import publish, repair_lake
from dedup.backup import back_up, restore
from dedup.proof import load_evidence
from kalshilake.store import LocalStore
from kalshilake.verify import verify
from marketdata.coverage import intervals
from runtime.clock import Clock
from runtime.cluster_template import install_root
from runtime.config import BackupSettings, DedupSettings
from runtime.embedded import EmbeddedPostgres
from runtime.postgres import connect
from tests.databases import fresh_database, table_contents
from tests.dedup_crashes import Boundaries, Crasher, WatchedConnection, cut_off, killed, run_watched
from tests.dedup_rig import RESULT, Recordings, lake_files, make_recordings, run_through, settings
from tests.gatherer_rows import make_stream

AT_ONCE = 3  # deduplicators side by side
SHORT_STEP = 40  # the short form tries one boundary in so many; the slow one all
HOUR_AND_A_BIT_GAP_US = 45_000_000  # the recording crosses one moment of export


def slow(value: object) -> Any:
    """A case that only the long form tries."""
    return pytest.param(value, marks=pytest.mark.slow)


@dataclass
class Undisturbed:
    """A recording, what becomes of it, and how many effects that takes."""

    made: Recordings
    result: dict[str, list[str]]
    files: dict[str, str]
    labels: list[str]
    empty: str  # a production database without a tape: the template of all others


@pytest.fixture(scope="module")
def crashers() -> Iterator[list[Crasher]]:
    """Processes that fork deduplicators; much of a run is waiting, so several go side by side."""
    with ExitStack() as stack:
        yield [stack.enter_context(Crasher()) for _ in range(AT_ONCE)]


async def another_production(server: EmbeddedPostgres, like: str) -> str:
    """A new production database, copied from an empty one: quicker than migrating."""
    name = f"production_{uuid.uuid4().hex[:10]}"
    conn = await asyncpg.connect(server.dsn())
    try:
        await conn.execute(f"CREATE DATABASE {name} TEMPLATE {like.rsplit('/', 1)[1]}")
    finally:
        await conn.close()
    return server.dsn(name)


async def undisturbed(
    server: EmbeddedPostgres, tmp_path: Path, made: Recordings | None = None
) -> Undisturbed:
    """Record a little, run through without a fault, count the effects."""
    if made is None:
        stream = make_stream(11, markets=3, events=160, mean_gap_us=HOUR_AND_A_BIT_GAP_US)
        made = await make_recordings(server, stream, gaps=1, disconnects=1)
    empty = await fresh_database(server, "production")
    production = await another_production(server, empty)
    boundaries = Boundaries()
    await run_watched(chosen(made, production, tmp_path / "undisturbed"), boundaries)
    return Undisturbed(
        made,
        await table_contents(production, *RESULT),
        lake_files(tmp_path / "undisturbed"),
        boundaries.labels,
        empty,
    )


@pytest.fixture(scope="module")
def whole(
    postgres_server: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory
) -> Undisturbed:
    """What all tests compare with that change nothing at the gatherers."""
    return asyncio.run(undisturbed(postgres_server, tmp_path_factory.mktemp("whole")))


def chosen(made: Recordings, production: str, lake: Path) -> DedupSettings:
    """Settings under which a run takes the same effects each time."""
    return settings(made, production, lake, patience_s=1_000_000, poll_ms=1)


async def differences(whole: Undisturbed, production: str, lake: Path) -> list[str]:
    """Names of tables and files that are not as they are without a fault."""
    tables = await table_contents(production, *RESULT)
    files = lake_files(lake)
    return [t for t in RESULT if tables[t] != whole.result[t]] + sorted(
        k for k in files.keys() | whole.files.keys() if files.get(k) != whole.files.get(k)
    )


Try = Callable[[Crasher, int, DedupSettings], Awaitable[str | None]]


async def each_boundary(
    server: EmbeddedPostgres,
    whole: Undisturbed,
    tmp_path: Path,
    step: int,
    crashers: Sequence[Crasher],
    attempt: Try,
) -> list[str]:
    """Try boundaries 1, 1 + step, ...; returns the labels at which it was cut."""
    cut: list[str] = []
    left = iter(range(1, len(whole.labels) + 1, step))

    async def try_those_left(crasher: Crasher) -> None:
        for at in left:  # the workers share it
            production = await another_production(server, whole.empty)
            lake = tmp_path / f"lake-{at}"
            label = await attempt(crasher, at, chosen(whole.made, production, lake))
            assert await differences(whole, production, lake) == [], (at, label)
            if label is not None:
                cut.append(label)

    async with asyncio.TaskGroup() as group:
        for crasher in crashers:
            group.create_task(try_those_left(crasher))
    return cut


def covers(labels: list[str]) -> None:
    """The boundaries are those of a whole cycle: a publication, an export, the notes of both."""
    for part in (
        "BEGIN", "UPDATE merge_state", "COPY orderbook_delta", "INSERT INTO run_progress",
        "INSERT INTO arbiter_state", "INSERT INTO lake_hour", "COMMIT", "put parquet/coverage",
        "put if absent manifest/", "INSERT INTO export_object", "INSERT INTO lake_version",
    ):  # fmt: skip
        assert any(label.startswith(part) for label in labels), part


async def die_and_compare(
    server: EmbeddedPostgres,
    whole: Undisturbed,
    tmp_path: Path,
    crashers: Sequence[Crasher],
    step: int,
) -> None:
    """Both ways to stop at every `step`-th boundary."""
    covers(whole.labels)
    assert len(whole.result["orderbook_delta"]) > 50
    kills = await each_boundary(server, whole, tmp_path / "killed", step, crashers, killed)
    cuts = await each_boundary(server, whole, tmp_path / "cut", step, crashers, cut_off)
    tried = len(range(1, len(whole.labels) + 1, step))
    assert len(kills) >= tried - 1, f"{len(kills)} of {tried} were reached"
    assert len(cuts) >= tried - 1, f"{len(cuts)} of {tried} were reached"
    print(
        f"{len(whole.labels)} effects; {len(kills)} kills and {len(cuts)} cuts, none left a trace"
    )


async def test_dying_between_effects_leaves_no_trace(
    postgres_server: EmbeddedPostgres, whole: Undisturbed, tmp_path: Path, crashers: list[Crasher]
) -> None:
    """A sample of the boundaries, by kill -9 and by a cut line."""
    await die_and_compare(postgres_server, whole, tmp_path, crashers, SHORT_STEP)


@pytest.mark.slow
@pytest.mark.timeout(1_800)
async def test_dying_at_every_boundary_leaves_no_trace(
    postgres_server: EmbeddedPostgres, whole: Undisturbed, tmp_path: Path, crashers: list[Crasher]
) -> None:
    """All of them."""
    await die_and_compare(postgres_server, whole, tmp_path, crashers, 1)


async def test_a_commit_in_two_halves_is_noticed(
    postgres_server: EmbeddedPostgres,
    whole: Undisturbed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The control: rows committed apart from the position that names them are found by the kill."""
    write_rows = publish._write_rows

    async def torn(conn: Any, made: Any) -> None:
        await write_rows(conn, made)
        await conn.execute("COMMIT")
        await conn.execute("BEGIN")

    monkeypatch.setattr(publish, "_write_rows", torn)
    production = await another_production(postgres_server, whole.empty)
    given = chosen(whole.made, production, tmp_path / "torn")
    counted = Boundaries()
    await run_watched(given, counted)
    at = next(n for n, label in enumerate(counted.labels, 1) if label == "COMMIT")
    production = await another_production(postgres_server, whole.empty)
    lake = tmp_path / "torn-and-cut"
    given = chosen(whole.made, production, lake)

    async def cut_and_compare() -> None:
        await asyncio.wait_for(run_watched(given, Boundaries(at)), 20)
        assert await differences(whole, production, lake) == []

    with pytest.raises((AssertionError, TimeoutError, asyncpg.PostgresError, OSError)):
        await cut_and_compare()


COMMIT_KILLS = ("before", "during", "after")


async def kill_in_commits(
    whole: Undisturbed, target: EmbeddedPostgres, tmp_path: Path, rounds: int, seed: int
) -> dict[str, int]:
    """kill -9 of production's server around commits; how often each way, and how often it held."""
    rng = random.Random(seed)
    seen = dict.fromkeys((*COMMIT_KILLS, "held", "gone"), 0)
    for turn in range(rounds):
        production = await fresh_database(target, "production")
        commits = 0
        at = rng.sample(range(1, 1 + sum(label == "COMMIT;" for label in whole.labels)), 3)

        async def around(
            what: str, call: Callable[[], Awaitable[Any]], at: Sequence[int] = at
        ) -> Any:
            nonlocal commits
            if what != "COMMIT;":
                return await call()
            commits += 1
            if commits not in at:
                return await call()
            way = COMMIT_KILLS[sum(seen[w] for w in COMMIT_KILLS) % 3]
            seen[way] += 1
            return await _kill_around(target, way, call, rng, seen)

        WatchedConnection.around = around
        try:
            lake = tmp_path / f"lake-{turn}"
            await run_watched(chosen(whole.made, production, lake), Boundaries())
        finally:
            WatchedConnection.around = None
        assert await differences(whole, production, lake) == [], (turn, at)
    return seen


async def _kill_around(
    target: EmbeddedPostgres,
    way: str,
    call: Callable[[], Awaitable[Any]],
    rng: random.Random,
    seen: dict[str, int],
) -> Any:
    """One commit and one kill of the server, in this order or that."""
    try:
        if way == "after":
            await call()
            seen["held"] += 1
            target.kill()
            raise ConnectionResetError("killed after the commit, before its answer")
        if way == "before":
            target.kill()
        task = asyncio.ensure_future(call())
        if way == "during":
            await asyncio.sleep(rng.choice((0.0, 0.0002, 0.0005, 0.001)))
            target.kill()
        try:
            answer = await task
        except BaseException:
            seen["gone"] += 1
            raise
        seen["held"] += 1
        return answer
    finally:
        await target.restart()


async def test_postgres_killed_in_commits_leaves_no_trace(
    postgres_server: EmbeddedPostgres, whole: Undisturbed, tmp_path: Path
) -> None:
    """Before, in and after a commit; on a server that waits for its disk."""
    async with EmbeddedPostgres() as target:
        seen = await kill_in_commits(whole, target, tmp_path, rounds=1, seed=1)
    assert all(seen[way] == 1 for way in COMMIT_KILLS), seen


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_postgres_killed_in_many_commits_leaves_no_trace(
    postgres_server: EmbeddedPostgres, whole: Undisturbed, tmp_path: Path
) -> None:
    """The same, sixty times."""
    async with EmbeddedPostgres() as target:
        seen = await kill_in_commits(whole, target, tmp_path, rounds=20, seed=2)
    assert all(seen[way] == 20 for way in COMMIT_KILLS), seen
    print(seen)


# --- the lake loses something


async def run_again(whole: Undisturbed, production: str, lake: Path) -> None:
    """A deduplicator starts on a finished tape and finds nothing to do but what is lost."""
    await run_through(chosen(whole.made, production, lake))


async def lose_and_find(
    server: EmbeddedPostgres, whole: Undisturbed, tmp_path: Path, *, every: bool
) -> None:
    """Lose files of a finished lake, start the deduplicator, compare; again and again."""
    production = await another_production(server, whole.empty)
    lake = tmp_path / "lake"
    await run_through(chosen(whole.made, production, lake))
    assert await differences(whole, production, lake) == []
    versions = sorted(p for p in (lake / "manifest").iterdir())
    assert len(versions) >= 2, "an export in the middle and one at the end"
    objects = sorted((lake / "parquet").rglob("*.parquet"), key=lambda p: (p.name[-13:], p))
    assert len({p.name[-13:] for p in objects}) >= 2, "more than one hour"
    losses: list[list[Path]] = [versions[-1:], [versions[-1], objects[-1]]]
    for path in objects if every else objects[:1] + objects[-1:]:
        record = path.parent / f"_manifest-{path.name[-13:-11]}.json"
        losses += [[path], [record], [path, record]]
    for gone in losses:
        for path in gone:
            path.unlink()
        await run_again(whole, production, lake)
        assert await differences(whole, production, lake) == [], gone


async def test_what_the_lake_lost_last_is_written_again(
    postgres_server: EmbeddedPostgres, whole: Undisturbed, tmp_path: Path
) -> None:
    """The last object, its commit record, both; the first ones too; the newest list."""
    await lose_and_find(postgres_server, whole, tmp_path, every=False)


@pytest.mark.slow
async def test_whatever_the_lake_lost_is_written_again(
    postgres_server: EmbeddedPostgres, whole: Undisturbed, tmp_path: Path
) -> None:
    """Each object alone, each commit record alone, both."""
    await lose_and_find(postgres_server, whole, tmp_path, every=True)


@pytest.mark.slow
async def test_a_lake_that_is_gone_whole_has_the_same_objects(
    postgres_server: EmbeddedPostgres, whole: Undisturbed, tmp_path: Path
) -> None:
    """All objects and commit records are the same bytes; one list takes the place of several."""
    production = await another_production(postgres_server, whole.empty)
    await run_through(chosen(whole.made, production, tmp_path / "first"))
    await run_again(whole, production, tmp_path / "second")
    found = lake_files(tmp_path / "second")
    kept = {k: v for k, v in whole.files.items() if k.startswith("parquet/")}
    assert {k: v for k, v in found.items() if k.startswith("parquet/")} == kept
    assert [k for k in found if k.startswith("manifest/")] == ["manifest/v0000000001.json"]
    await run_again(whole, production, tmp_path / "second")
    assert lake_files(tmp_path / "second") == found, "and then nothing is lost any more"


async def test_a_loss_that_is_not_looked_for_is_noticed_here(
    postgres_server: EmbeddedPostgres,
    whole: Undisturbed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The control: without the look at the start the file stays away and the comparison says so."""
    production = await another_production(postgres_server, whole.empty)
    lake = tmp_path / "lake"
    await run_through(chosen(whole.made, production, lake))
    last = max((lake / "parquet").rglob("*.parquet"))
    last.unlink()
    with monkeypatch.context() as patch:
        patch.setattr("dedup.repair_lake.lost", lambda *_: [])
        await run_again(whole, production, lake)
        assert await differences(whole, production, lake) == [str(last.relative_to(lake))]


async def test_what_production_cannot_give_again_is_told_and_left_out(
    postgres_server: EmbeddedPostgres, whole: Undisturbed, tmp_path: Path
) -> None:
    """Rows that production lost too must not become an hour that looks whole."""
    production = await another_production(postgres_server, whole.empty)
    lake = tmp_path / "lake"
    await run_through(chosen(whole.made, production, lake))
    first = min((lake / "parquet" / "orderbook_deltas").rglob("*.parquet"))
    first.unlink()
    conn = await asyncpg.connect(production)
    await conn.execute(
        "DELETE FROM orderbook_delta WHERE (market_id, epoch, market_seq) ="
        " (SELECT market_id, epoch, market_seq FROM orderbook_delta ORDER BY exchange_ts LIMIT 1)"
    )
    await conn.close()
    done = await run_through(chosen(whole.made, production, lake))
    assert done.exporter.not_made_again == [str(first.relative_to(lake))]
    assert done._health.get("lake").state == "degraded"  # type: ignore[union-attr]
    assert not first.exists()


# --- production is restored from an older state


async def restored(
    server: EmbeddedPostgres, whole: Undisturbed, tmp_path: Path, at_commit: int
) -> tuple[str, Path]:
    """A production database as it was after its `at_commit`-th publication or note, brought back
    by the project's own backup after the tape was finished; and the lake, which went on."""
    store = LocalStore(tmp_path / f"bucket-{at_commit}")
    programs = install_root() / "bin"
    production = await another_production(server, whole.empty)
    lake = tmp_path / f"lake-{at_commit}"
    commits = 0
    backups: list[Any] = []

    async def around(what: str, call: Callable[[], Awaitable[Any]]) -> Any:
        nonlocal commits
        answer = await call()
        commits += what == "COMMIT;"
        if commits == at_commit and not backups:
            asked = BackupSettings.model_validate(
                {"production_dsn": production, "lake_uri": str(tmp_path), "pg_bin": programs}
            )
            backups.append(await back_up(asked, store, Clock(0)))
        return answer

    WatchedConnection.around = around
    try:
        await run_watched(chosen(whole.made, production, lake), Boundaries())
    finally:
        WatchedConnection.around = None
    assert await differences(whole, production, lake) == []
    name = f"restored_{uuid.uuid4().hex[:10]}"
    conn = await asyncpg.connect(server.dsn())
    await conn.execute(f"CREATE DATABASE {name}")
    await conn.close()
    await restore(backups[0], store, programs, server.dsn(name))
    return server.dsn(name), lake


def commits_of(whole: Undisturbed) -> int:
    return sum(label == "COMMIT;" for label in whole.labels)


async def exported_again_since(production: str, lake: Path) -> bool:
    """Whether the lake holds an object of which this state of production knows other bytes."""
    conn = await connect(production)
    noted = await repair_lake.noted_objects(conn)
    await conn.close()
    return bool(repair_lake.lost(LocalStore(lake), noted))


@pytest.mark.parametrize("part", [slow(0.0), slow(0.25), slow(0.5), 0.65, slow(0.9)])
async def test_production_restored_from_an_older_state_ends_in_the_same_bytes(
    postgres_server: EmbeddedPostgres, whole: Undisturbed, tmp_path: Path, part: float
) -> None:
    """The gatherers still hold their rows: nothing differs, and the lake gets no new version. At
    0.65 of the play an hour was exported that the lake had once more afterwards: its later bytes
    were taken for a loss and overwritten with the older ones."""
    at = 1 + int(part * (commits_of(whole) - 1))
    production, lake = await restored(postgres_server, whole, tmp_path, at)
    assert (await table_contents(production, *RESULT)) != whole.result, "it is an older state"
    if part == 0.65:
        assert await exported_again_since(production, lake)
    done = await run_through(chosen(whole.made, production, lake))
    assert await differences(whole, production, lake) == []
    assert done.exporter.differing == []
    assert done.gone == {}


async def without_batches(dsns: list[str], first: int, last: int) -> None:
    """Retention, or a loss: these batches are gone from the gatherers."""
    for dsn in dsns:
        conn = await asyncpg.connect(dsn)
        for table in (
            "orderbook_delta", "orderbook_snapshot", "trade", "ticker", "control", "ingest_batch",
        ):  # fmt: skip
            await conn.execute(f"DELETE FROM {table} WHERE batch_id BETWEEN $1 AND $2", first, last)
        await conn.close()


async def missing_and_false(production: str, whole: Undisturbed) -> tuple[int, int]:
    """Changes and trades that happened and are not on the tape; those of them in whose moment
    coverage calls their market and channel complete."""
    stream = whole.made.stream
    conn = await connect(production)
    rows = await conn.fetch(
        "SELECT (extract(epoch FROM exchange_ts) * 1000000)::bigint AS us, ticker, side, price,"
        " delta FROM orderbook_delta JOIN market USING (market_id)"
    )
    trades = {r["trade_id"].int for r in await conn.fetch("SELECT trade_id FROM trade")}
    closed_to_us = await conn.fetchval("SELECT closed_to_us FROM merge_state")
    evidence = await load_evidence(conn, 0, closed_to_us)
    await conn.close()
    proven = [i for i in intervals(evidence, 0, closed_to_us) if i.status == "complete"]
    tape = Counter((r["ticker"], r["us"], r["side"], r["price"], r["delta"]) for r in rows)
    happened = Counter(
        (stream.tickers[h.market], h.us, h.side, h.price, h.delta) for h in stream.deltas
    )
    assert not tape - happened
    missing = [("orderbook", ticker, us) for ticker, us, *_ in (happened - tape).elements()]
    missing += [
        ("trade", stream.tickers[h.market], h.us)
        for h in stream.happenings
        if h.kind == "trade" and h.key + 1 not in trades
    ]
    false = sum(
        any((i.channel, i.ticker) == (c, t) and i.from_us <= us < i.to_us for i in proven)
        for c, t, us in missing
    )
    return len(missing), false


async def restored_with_holes(
    server: EmbeddedPostgres, tmp_path: Path, gatherers: int
) -> tuple[Undisturbed, str, Path]:
    """Restored to the middle of the play, and of so many gatherers the batches that follow are
    gone."""
    stream = make_stream(12, markets=3, events=900, mean_gap_us=7_000_000)
    made = await make_recordings(server, stream, gaps=0, disconnects=2)
    whole = await undisturbed(server, tmp_path, made)
    production, lake = await restored(server, whole, tmp_path, commits_of(whole) // 2)
    conn = await connect(production)
    cursors = await conn.fetch("SELECT gatherer, reread_from_batch AS first FROM gatherer_cursor")
    await conn.close()
    assert all(1 < row["first"] < len(made.batches[row["gatherer"]]) - 2 for row in cursors)
    for row in cursors[:gatherers]:
        await without_batches([made.hot[row["gatherer"]]], row["first"], row["first"] + 1)
    return whole, production, lake


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many small publications, so that a backup in the middle has an end in the middle."""
    monkeypatch.setattr("dedup.flow.PUBLISH_WINDOWS", 20)


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("gatherers", [slow(1), 3])
async def test_rows_that_are_gone_after_a_restore_are_told(
    postgres_server: EmbeddedPostgres, tmp_path: Path, gatherers: int
) -> None:
    """One gatherer lost them: the others have all. All lost them: coverage says where."""
    whole, production, lake = await restored_with_holes(postgres_server, tmp_path, gatherers)
    done = await run_through(chosen(whole.made, production, lake))
    assert sorted(done.gone) == list(range(gatherers))
    assert all("are gone" in told[0] for told in done.gone.values())
    assert done._health.get("gatherer0").state == "degraded"  # type: ignore[union-attr]
    missing, false = await missing_and_false(production, whole)
    assert false == 0
    assert (missing > 0) == (gatherers == 3), missing
    assert done.exporter.differing, "the lake had more: it is told, and new versions follow"
    assert list(verify(str(lake)).findings) == []
    kept = {k: v for k, v in whole.files.items() if k.startswith("manifest/")}
    assert kept.items() <= lake_files(lake).items(), "what was listed stays listed"


@pytest.mark.slow
@pytest.mark.usefixtures("small_steps")
async def test_reading_on_over_the_hole_would_call_it_complete(
    postgres_server: EmbeddedPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: without the look for the hole the tape claims what it does not have."""
    whole, production, lake = await restored_with_holes(postgres_server, tmp_path, 3)

    async def none(*_: Any) -> tuple[()]:
        return ()

    monkeypatch.setattr("dedup.pull._holes", none)
    done = await run_through(chosen(whole.made, production, lake))
    assert done.gone == {}
    missing, false = await missing_and_false(production, whole)
    assert missing > 0
    assert false > 0
