"""A gatherer was hidden from the deduplicator while the others were away; its spool heals the tape.

Three gatherers record one stream into real spools; two are away at the same time, and the third's
database is not there while the tape is made. The tape has a gap, and what the third brings later is
late. Then `tape repair` reads its spool. The truth is the stream.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from dedup.proof import load_evidence
from dedup.readers import GathererReader
from exchange.truth import read_truth
from kalshilake import open_lake
from kalshilake.verify import verify
from marketdata.coverage import intervals
from marketdata.errors import StorageError
from marketdata.rows import SOURCE_REST
from marketdata.units import format_ts_us
from runtime.clock import Clock
from runtime.embedded import EmbeddedPostgres
from runtime.postgres import connect
from tape.repair import Asked, Told, ask_rest, run_repair
from tests.databases import fresh_database, table_contents
from tests.dedup_rig import Recordings, compare_with_stream, lake_files, pipeline, settings
from tests.exchange_client import exchange, private_pem
from tests.gatherer_rows import Stream, make_stream
from tests.repair_world import (
    BATCH_ROWS,
    Away,
    database_of,
    describe_markets,
    trade_body,
    write_spool,
)

SEED, EVENTS = 21, 900
GAP = (300, 420)  # places in the stream: two gatherers are away
SECOND = 1_000_000
ROWS = ("market", "orderbook_delta", "orderbook_snapshot", "trade", "ticker", "market_epoch", "gap",
        "quarantine", "run_progress", "market_claim", "mark", "audit_point")  # fmt: skip


class FixedClock(Clock):
    """Always the same moment: two repairs of one tape have the same bytes."""

    def __init__(self) -> None:
        super().__init__(0)

    def wall_ns(self) -> int:
        return 1_800_000_000_000_000_000


@dataclass
class World:
    """A finished tape with a gap, the spools that it came of, and what is true."""

    stream: Stream
    made: Recordings
    production: str
    lake: Path
    spools: list[Path]
    unheard: list[int]

    @property
    def span(self) -> tuple[int, int]:
        """The time of the gap, a little more on both sides."""
        events = self.stream.happenings
        return events[GAP[0]].us - 5 * SECOND, events[GAP[1]].us + 5 * SECOND

    def asked(self, **more: Any) -> Asked:
        low, high = self.span
        return Asked(
            self.production, low, high, {2: self.spools[2]}, lake=str(self.lake),
            metas=self.made.meta, reason="hidden for a while", **more,
        )  # fmt: skip


async def make_world(
    server: EmbeddedPostgres,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    seed: int = SEED,
    aways: Sequence[Sequence[Away]] = ([GAP], [GAP], []),
) -> World:
    """Spools, databases, and a deduplicator that does not find the third gatherer in time."""
    stream = make_stream(seed, markets=4, events=EVENTS, mean_gap_us=400_000)
    trades = [n for n, h in enumerate(stream.happenings) if h.kind == "trade"]
    unheard = [n for n in trades if GAP[0] - 8 <= n < GAP[1] + 8][:2]
    made = Recordings(stream, [], [], [])
    spools = []
    for g in range(3):
        spool = folder / f"spool-{g + 1}"
        await write_spool(spool, stream, id_base=1_000 * (g + 1), away=aways[g], unheard=unheard)
        hot = await fresh_database(server, "gatherer_hot")
        meta = await fresh_database(server, "gatherer_meta")
        await database_of(spool, hot, monkeypatch)
        await describe_markets(meta, stream)
        made.hot.append(hot)
        made.meta.append(meta)
        spools.append(spool)
    production = await fresh_database(server, "production")
    world = World(stream, made, production, folder / "lake", spools, unheard)
    with monkeypatch.context() as patch:  # as if the rows came one after the other
        patch.setitem(GathererReader.__init__.__kwdefaults__, "max_rows", BATCH_ROWS)
        await _deduplicate(server, world)
    return world


async def _deduplicate(server: EmbeddedPostgres, world: World) -> None:
    """The third database has another name until the tape is as far as it gets without it."""
    name = world.made.hot[2].rsplit("/", 1)[1]
    await _rename(server, name, f"{name}_away")
    chosen = settings(world.made, world.production, world.lake, patience_s=1, idle_hold_ms=100)
    running = pipeline(chosen)
    task = asyncio.create_task(running.run())
    last = world.stream.happenings[-1].us - 20 * SECOND
    async with asyncio.timeout(60):
        while running.publisher.standing.closed_to_us < last:
            assert not task.done(), task.exception()
            await asyncio.sleep(0.05)
        await _rename(server, f"{name}_away", name)
        await task
    assert running.finished


async def _rename(server: EmbeddedPostgres, old: str, new: str) -> None:
    conn = await asyncpg.connect(server.dsn())
    await conn.execute(f"ALTER DATABASE {old} RENAME TO {new}")
    await conn.close()


@pytest.fixture(scope="module")
def first(postgres_server: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> World:
    """The tape before any repair; tests work on copies."""
    with pytest.MonkeyPatch.context() as patch:
        return asyncio.run(make_world(postgres_server, tmp_path_factory.mktemp("repair"), patch))


@pytest.fixture
async def world(postgres_server: EmbeddedPostgres, first: World, tmp_path: Path) -> World:
    """A copy of production and of the lake."""
    return await copied(postgres_server, first, tmp_path)


async def copied(server: EmbeddedPostgres, first: World, folder: Path) -> World:
    name = f"repair_{folder.name.replace('-', '_')}_{os.urandom(4).hex()}"[:60].lower()
    conn = await asyncpg.connect(server.dsn())
    await conn.execute(f"CREATE DATABASE {name} TEMPLATE {first.production.rsplit('/', 1)[1]}")
    await conn.close()
    lake = folder / "lake"
    shutil.copytree(first.lake, lake)
    return replace(first, production=server.dsn(name), lake=lake)


async def missing(world: World) -> Counter[tuple[Any, ...]]:
    """Changes that happened and are not on the tape."""
    conn = await connect(world.production)
    rows = await conn.fetch(
        "SELECT ticker, (extract(epoch FROM exchange_ts) * 1000000)::bigint AS us, side, price,"
        " delta FROM orderbook_delta JOIN market USING (market_id)"
    )
    await conn.close()
    happened = Counter(
        (world.stream.tickers[h.market], h.us, h.side, h.price, h.delta)
        for h in world.stream.deltas
    )
    return happened - Counter(tuple(r) for r in rows)


async def incomplete(world: World, span: tuple[int, int]) -> list[Any]:
    """Intervals of order books and trades in a time that coverage does not call complete."""
    conn = await connect(world.production)
    evidence = await load_evidence(conn, *span)
    await conn.close()
    return [
        i for i in intervals(evidence, *span) if i.channel != "ticker" and i.status != "complete"
    ]


async def outside(world: World) -> dict[str, list[str]]:
    """What production and the lake hold outside of the time that is repaired."""
    low, high = world.span
    conn = await connect(world.production)
    found: dict[str, list[str]] = {}
    for table in ("orderbook_delta", "orderbook_snapshot", "trade", "ticker"):
        rows = await conn.fetch(
            f"SELECT t::text FROM {table} t WHERE NOT exchange_ts <@ tstzrange("
            "'epoch'::timestamptz + $1 * interval '1 microsecond',"
            " 'epoch'::timestamptz + $2 * interval '1 microsecond')",
            low,
            high,
        )
        found[table] = sorted(r[0] for r in rows)
    await conn.close()
    lake = open_lake(str(world.lake))
    for table in ("orderbook_deltas", "trades"):
        rows = getattr(lake, {"orderbook_deltas": "deltas", "trades": "trades"}[table])(
            on_gap="ignore"
        )
        found[f"lake {table}"] = sorted(
            str(r) for r in rows.to_pylist()
            if not low <= int(r["exchange_ts"].timestamp() * 1_000_000) < high
        )  # fmt: skip
    return found


async def everything(world: World) -> tuple[dict[str, list[str]], dict[str, str]]:
    tables = await table_contents(
        world.production, *ROWS, "repair", "repair_epoch", "repair_proof", "hour_version",
        "lake_hour", "export_object", "lake_version",
    )  # fmt: skip
    return tables, lake_files(world.lake)


async def test_a_hidden_gatherer_heals_the_tape_from_its_spool(world: World) -> None:
    """Before: a gap. After: the truth, complete, proven by gatherer 3, and nothing else changed."""
    before = await missing(world)
    assert len(before) > 20
    assert await incomplete(world, world.span)
    was_outside = await outside(world)
    rows_before = await table_contents(world.production, *ROWS)
    told = await run_repair(world.asked(apply=True), FixedClock())
    assert told.added.counts["events"] == sum(before.values())
    assert await missing(world) == Counter()
    wrong = await compare_with_stream(world.production, world.stream)
    wrong.pop("trades_missing")  # two were never sent to anybody; and order is asked for below
    wrong.pop("misordered")
    assert set(wrong.values()) == {0}, wrong
    assert await outside(world) == was_outside
    after = await table_contents(world.production, *ROWS)
    assert all(set(rows_before[t]) <= set(after[t]) for t in ROWS), "nothing numbered was changed"
    left = await incomplete(world, world.span)
    assert all(i.to_us - i.from_us == 1 for i in left), left  # where two epochs share a microsecond
    conn = await connect(world.production)
    evidence = await load_evidence(conn, *world.span)
    await conn.close()
    healed = [i for i in intervals(evidence, *world.span) if "repaired from spool" in i.reason]
    assert healed
    assert all(i.sources == 4 for i in healed if i.status == "complete")


async def test_order_and_books_of_the_healed_lake(world: World) -> None:
    """Reading the lake in order gives the stream in order; an independent check finds nothing."""
    versions = len(list((world.lake / "manifest").iterdir()))
    await run_repair(world.asked(apply=True), FixedClock())
    assert len(list((world.lake / "manifest").iterdir())) == versions + 1
    report = verify(str(world.lake))
    assert list(report.findings) == []
    lake = open_lake(str(world.lake))
    for market, ticker in enumerate(world.stream.tickers):
        rows = lake.deltas(ticker, on_gap="ignore").to_pylist()
        tape = [(r["exchange_ts"], r["side"], r["price"], r["delta"]) for r in rows]
        true = [h for h in world.stream.deltas if h.market == market]
        assert [(r[1], int(r[2] * 1_000_000), int(r[3] * 100)) for r in tape] == [
            (("yes", "no")[h.side], h.price, h.delta) for h in true
        ], ticker
    records = [
        json.loads(p.read_bytes()) for p in (world.lake / "parquet").rglob("_manifest-*.json")
    ]
    told = [r["extra"]["versions"] for r in records if "versions" in r["extra"]]
    assert told
    assert told[0][0]["reason"] == "hidden for a while"
    assert "of gatherer 3" in told[0][0]["sources"][0]
    for key, sha256 in told[0][0]["previous"].items():
        now = lake_files(world.lake)
        assert now[key] == sha256 or f"superseded/{sha256}.parquet" in now


async def test_a_second_run_changes_nothing_and_says_so(world: World) -> None:
    """Idempotent, the dry run too."""
    dry = await run_repair(world.asked(), FixedClock())
    assert not dry.added.empty
    untouched = await everything(world)
    told = await run_repair(world.asked(), FixedClock())
    assert told.facts() == dry.facts()
    assert await everything(world) == untouched, "a dry run changes nothing"
    await run_repair(world.asked(apply=True), FixedClock())
    done = await everything(world)
    assert done != untouched
    again = await run_repair(world.asked(apply=True), FixedClock())
    assert again.added.empty
    assert await everything(world) == done


async def test_the_deduplicator_goes_on_after_a_repair(world: World) -> None:
    """Its numbers, its lake and the repair stand beside each other."""
    await run_repair(replace(world.asked(apply=True), lake=""), FixedClock())
    tables, _ = await everything(world)
    chosen = settings(world.made, world.production, world.lake, patience_s=1, idle_hold_ms=100)
    running = pipeline(chosen)
    async with asyncio.timeout(60):
        await running.run()
    after, files = await everything(world)
    for table in (*ROWS, "repair", "repair_epoch", "repair_proof"):
        assert after[table] == tables[table], table
    assert all(row.endswith(",t)") for row in after["hour_version"])
    assert verify(str(world.lake)).ok
    assert any(k.startswith("superseded/") for k in files), "it wrote the new versions of the hours"
    assert await missing(world) == Counter()


async def test_a_repair_that_drops_a_row_is_noticed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the comparison, and of the tape's own check."""
    from dedup import repair_store

    numbered = repair_store.numbered_rows

    def short(rows: Any, epoch: int) -> Any:
        made = numbered(rows, epoch)
        return made[:-1] if len(made) > 1 else made

    monkeypatch.setattr(repair_store, "numbered_rows", short)
    await run_repair(world.asked(apply=True), FixedClock())
    assert sum((await missing(world)).values()) > 0


async def test_another_tapes_spool_is_refused(world: World, tmp_path: Path) -> None:
    """Same markets and times, another exchange; or the right one under a wrong number."""
    other = make_stream(SEED + 1, markets=4, events=EVENTS, mean_gap_us=400_000)
    other.tickers = world.stream.tickers
    await write_spool(tmp_path / "strange", other, id_base=3_000)
    before = await everything(world)
    asked = replace(world.asked(apply=True), spools={2: tmp_path / "strange"})
    with pytest.raises(StorageError, match="does not fit this tape"):
        await run_repair(asked, FixedClock())
    asked = replace(world.asked(apply=True), spools={2: world.spools[1]})
    with pytest.raises(StorageError, match="is that of gatherer 2"):
        await run_repair(asked, FixedClock())
    with pytest.raises(StorageError, match="is no spool"):
        await run_repair(replace(asked, spools={2: tmp_path / "none"}), FixedClock())
    assert await everything(world) == before


async def test_intervals_that_cannot_be_repaired_are_refused(world: World) -> None:
    """Still open, empty, before the tape; another repair or the deduplicator at work."""
    low, high = world.span
    for changed, words in (
        ({"to_us": high + 10**12}, "still open"),
        ({"to_us": low}, "empty"),
        ({"from_us": 0, "to_us": 10**9}, "nothing before"),
    ):
        with pytest.raises(StorageError, match=words):
            await run_repair(replace(world.asked(), **changed), FixedClock())
    conn = await connect(world.production)
    for key, words in ((0x4B54_5250, "another repair"), (0x4B54_4D52, "a deduplicator writes")):
        await conn.execute("SELECT pg_advisory_lock($1)", key)
        with pytest.raises(StorageError, match=words):
            await run_repair(world.asked(apply=True), FixedClock())
        await conn.execute("SELECT pg_advisory_unlock($1)", key)
    await conn.close()


async def test_trades_that_only_rest_knows(world: World) -> None:
    """They come once, named for what they are, and prove nothing."""
    bodies = [trade_body(world.stream, h) for h in world.stream.happenings if h.kind == "trade"]
    asked = replace(world.asked(apply=True), trades=bodies, rest_url="the exchange")
    told = await run_repair(asked, FixedClock())
    low, high = world.span
    expected = [n for n in world.unheard if low <= world.stream.happenings[n].us < high]
    assert expected
    conn = await connect(world.production)
    found = await conn.fetch("SELECT trade_id, sources FROM trade WHERE sources = $1", SOURCE_REST)
    assert {r["trade_id"].int for r in found} == {
        world.stream.happenings[n].key + 1 for n in expected
    }
    await conn.close()
    assert told.added.counts["trades"] >= len(expected)
    again = await run_repair(asked, FixedClock())
    assert again.added.empty


async def test_a_list_of_another_exchange_is_refused(world: World) -> None:
    """None of its many trades is on the tape, which has many of the same time."""
    low, high = world.stream.happenings[0].us, world.stream.happenings[-1].us - 30 * SECOND
    bodies = [
        {**trade_body(world.stream, h), "trade_id": f"{h.key + 10**9:032x}"}
        for h in world.stream.happenings
        if h.kind == "trade"
    ]
    asked = replace(world.asked(apply=True), from_us=low, to_us=high, spools={}, trades=bodies)
    with pytest.raises(StorageError, match="none of them is on the tape"):
        await run_repair(asked, FixedClock())


async def test_the_exchanges_list_is_asked_page_by_page(tmp_path: Path) -> None:
    """The simulated exchange's REST: every trade of the time that it played, once."""
    flags = ("--synthetic", "40", "--rate", "4", "--faults", "none", "--events-per-s", "200")
    async with exchange(tmp_path, *flags) as running:
        await running.done()
        truth = read_truth(running.truth).trades
        times = sorted(t["ts_ms"] for t in truth)
        low, high = times[0] * 1_000, (times[-1] + 1) * 1_000
        port = running.ready["port"]
        asked = Asked("", low, high, rest_url=f"http://127.0.0.1:{port}/trade-api/v2")
        key = private_pem(running.keys, tmp_path / "key.pem")
        await ask_rest(asked, "7f9b0c4e-0000-4000-8000-000000000001", key, Clock(0))
    listed = [body["trade_id"] for body in asked.trades]
    assert len(truth) > 10
    assert {t["trade_id"] for t in truth} <= set(listed)
    assert len(listed) == len(set(listed))


async def test_the_command_says_what_it_would_do_and_does_it(world: World) -> None:
    """As an operator types it: a line of JSON, then a word on what happened."""
    low, high = (format_ts_us(us) for us in world.span)
    command = [
        sys.executable, "-m", "tape.main", "repair", "--production", world.production,
        "--from", low, "--to", high, "--spool", f"3={world.spools[2]}",
    ]  # fmt: skip

    async def said(*more: str) -> tuple[int, str, str]:
        done = await asyncio.to_thread(
            subprocess.run, [*command, *more], capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout, done.stderr

    code, out, error = await said()
    assert (code, error) == (0, "")
    assert json.loads(out.splitlines()[0])["events"] == sum((await missing(world)).values())
    assert "dry run: nothing was changed" in out
    code, out, _ = await said("--apply", "--lake", str(world.lake))
    assert code == 0
    assert json.loads(out.splitlines()[0])["hours_exported"] == 1
    assert await missing(world) == Counter()
    code, out, _ = await said("--apply")
    assert "nothing to repair" in out
    wrong = [str(world.spools[0]) if part.startswith("3=") else part for part in command]
    command[:] = wrong
    code, out, error = await said()
    assert (code, out) == (2, "")
    assert error.startswith("tape: --spool")


@pytest.mark.parametrize("place", ["before the commit", "after the commit", "in the lake"])
async def test_a_repair_that_dies_and_runs_again_ends_the_same(
    postgres_server: EmbeddedPostgres, first: World, tmp_path: Path, place: str
) -> None:
    """kill -9 in a process of its own."""
    whole = await copied(postgres_server, first, tmp_path / "a")
    await run_repair(whole.asked(apply=True), FixedClock())
    world = await copied(postgres_server, first, tmp_path / "b")
    asked = world.asked(apply=True)
    fields = {n: getattr(asked, n) for n in asked.__slots__}
    fields["spools"] = {g: str(p) for g, p in asked.spools.items()}
    code = await asyncio.to_thread(
        subprocess.call,
        [sys.executable, "-m", "tests.repair_killed", place, json.dumps(fields)],
    )
    assert code == -signal.SIGKILL
    await run_repair(asked, FixedClock())
    assert await everything(world) == await everything(whole)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40, 48))
async def test_whatever_was_missed_by_whom(
    postgres_server: EmbeddedPostgres, tmp_path: Path, seed: int
) -> None:
    """Gatherers away at random, the third hidden: what its spool has is on the tape then, what
    nobody has is not called complete, and again nothing is left to do."""
    rng = random.Random(seed)
    aways: list[list[Away]] = []
    for g in range(3):
        starts = sorted(rng.sample(range(60, EVENTS - 120), 5 if g < 2 else 3))
        aways.append([(at, at + rng.randint(5, 60)) for at in starts])
    aways[0].append(GAP)
    aways[1].append((GAP[0] + rng.randint(-9, 9), GAP[1] + rng.randint(-9, 9)))
    with pytest.MonkeyPatch.context() as patch:
        world = await make_world(postgres_server, tmp_path, patch, seed, aways)
    happenings = world.stream.happenings
    low, high = happenings[40].us, happenings[-1].us - 30 * SECOND
    asked = replace(world.asked(apply=True), from_us=low, to_us=high)
    nobody = Counter(
        (world.stream.tickers[h.market], h.us, h.side, h.price, h.delta)
        for n, h in enumerate(happenings)
        if h.kind == "delta" and all(_is_away(n, away) for away in aways)
    )
    before = await missing(world)
    told = await run_repair(asked, FixedClock())
    after = await missing(world)
    assert not nobody - after, "what nobody saw cannot be there"
    inside = Counter({e: n for e, n in (after - nobody).items() if low <= e[1] < high})
    assert sum(inside.values()) <= told_left(told), (seed, inside, told.notes)
    assert sum(before.values()) - sum(after.values()) == told.added.counts["events"] > 0
    conn = await connect(world.production)
    evidence = await load_evidence(conn, low, high)
    await conn.close()
    proven = [i for i in intervals(evidence, low, high) if i.status == "complete"]
    for ticker, us, *_ in after.elements():
        assert not any(
            (i.channel, i.ticker) == ("orderbook", ticker) and i.from_us <= us < i.to_us
            for i in proven
        ), (seed, ticker, us)
    wrong = await compare_with_stream(world.production, world.stream)
    assert (wrong["extra"], wrong["trades_extra"], wrong["tickers_extra"]) <= (0, 0, 0)
    assert list(verify(str(world.lake)).findings) == []
    done = await everything(world)
    assert (await run_repair(asked, FixedClock())).added.empty
    assert await everything(world) == done


def _is_away(place: int, away: Sequence[Away]) -> bool:
    return any(a <= place < b for a, b in away)


def told_left(told: Told) -> int:
    """Events that the repair itself says it leaves: none where it says nothing."""
    return 10**9 if told.notes else 0
