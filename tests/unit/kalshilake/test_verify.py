"""The verifier as a whole: nothing found in a good lake, every edit found and its object named."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import astuple
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from kalshilake import open_lake, write
from kalshilake import verify as package
from kalshilake.store import LocalStore
from kalshilake.verify import NoLakeError, main, verify
from tests import lake_tamper as tamper
from tests.lake_world import START, World, make_world, world_tables, write_world

LAYOUT = [0, 1, 2, 3]  # how far a forger goes without the product's writer
EVERY = [*LAYOUT, 4]


def test_a_good_lake_is_found_good_and_everything_in_it_was_checked(
    pristine: Path, world: World
) -> None:
    """A verifier that looks at nothing finds nothing."""
    told: list[tuple[int, int]] = []
    report = verify(str(pristine), progress=lambda done, of: told.append((done, of)))
    assert (report.findings, report.notes) == ([], [])
    assert told == [(1, 2), (2, 2)]
    epochs = [e for m in world.markets for e in m.epochs]
    assert report.events == sum(len(e.events) for e in epochs)
    assert report.keyframes == sum(len(e.keyframes) for e in epochs)
    assert report.objects == 12
    assert report.versions == 2
    assert report.bytes == sum(p.stat().st_size for p in pristine.rglob("*.parquet"))


@pytest.mark.parametrize("seed", range(6))
def test_worlds_with_resets_gaps_and_times_that_step_back_are_found_good(
    seed: int, tmp_path: Path
) -> None:
    """A false alarm makes people stop looking."""
    write_world(tmp_path, make_world(seed, hours=2, events=50))
    assert verify(str(tmp_path)).findings == []


@pytest.mark.parametrize("seed", range(6))
def test_its_coverage_is_the_readers_interval_by_interval(seed: int, tmp_path: Path) -> None:
    """Two programs that share no line read the same claims, hours joined alike."""
    write_world(tmp_path, make_world(seed, hours=3, events=50))
    found = verify(str(tmp_path), coverage=True).coverage
    known = open_lake(tmp_path).coverage_map()
    read = [
        (i.market, i.channel, i.from_us, i.to_us, i.status, i.reason, i.sources, i.epoch)
        for market in known.markets
        for channel in ("orderbook", "ticker", "trade")
        for i in known.intervals(market, channel)
    ]
    assert [astuple(s) for s in found] == read
    assert len({s.status for s in found}) >= 3
    assert max(s.to_us - s.from_us for s in found) > 3_600_000_000, "an hour's border was joined"
    lines: list[str] = []
    assert main([str(tmp_path), "--coverage"], lines.append) == 0
    assert sum(line.startswith("coverage ") for line in lines) == len(read)
    lines.clear()
    assert main([str(tmp_path), "--coverage", "--json"], lines.append) == 0
    assert len(json.loads(lines[0])["coverage"]) == len(read)
    assert verify(str(tmp_path)).coverage == []


@pytest.mark.parametrize("where", [4, 100, -200, -6])
@pytest.mark.parametrize("table", ["orderbook_deltas", "coverage", "trades", "markets"])
def test_a_flipped_bit_anywhere_is_found_and_the_object_named(
    lake_copy: Path, table: str, where: int
) -> None:
    """Page, footer or length field: rot does not choose."""
    key = tamper.keys_of(lake_copy, table)[0]
    tamper.flip(lake_copy / key, where)
    assert key in {f.key for f in verify(str(lake_copy)).findings}


@pytest.mark.parametrize("fix", LAYOUT)
def test_a_flipped_bit_with_the_lists_fixed_up_is_found_by_the_objects_own_certificate(
    lake_copy: Path, fix: int
) -> None:
    """Somebody recomputed the SHA-256: the body still is not the one that was certified."""
    key = tamper.keys_of(lake_copy, "orderbook_deltas")[0]
    body = bytearray((lake_copy / key).read_bytes())
    body[60] ^= 16
    tamper.replace_bytes(lake_copy, key, bytes(body), fix)
    assert key in {f.key for f in verify(str(lake_copy)).findings}


@pytest.mark.parametrize("fix", EVERY)
@pytest.mark.parametrize("group", [0, 1, -1])
def test_a_removed_row_group_is_found_however_far_the_lists_were_fixed(
    lake_copy: Path, fix: int, group: int
) -> None:
    """Even a perfect forgery of all lists leaves holes in market_seq or in the chain of books."""
    key = tamper.keys_of(lake_copy, "orderbook_deltas")[0]
    count = pq.ParquetFile(lake_copy / key).num_row_groups
    assert count >= 3
    tamper.drop_row_group(lake_copy, key, group % count, fix)
    report = verify(str(lake_copy))
    assert any(key in f.key or key in f.problem for f in report.findings)


def changed_delta(rows: pa.Table) -> pa.Table:
    """One contract more in the middle."""
    sizes = rows.column("delta").to_pylist()
    at = next(i for i in range(len(sizes) // 2, len(sizes)) if sizes[i] is not None)
    sizes[at] += 1
    return rows.set_column(
        rows.schema.names.index("delta"),
        rows.schema.field("delta"),
        pa.array(sizes, rows.schema.field("delta").type),
    )


@pytest.mark.parametrize("fix", EVERY)
def test_a_changed_size_between_two_keyframes_is_found(tmp_path: Path, fix: int) -> None:
    """The chain of books needs no list at all."""
    world = make_world(3, markets=1, hours=1, events=80)
    for epoch in world.markets[0].epochs:
        epoch.keyframes = list(range(len(epoch.events) + 1))
    write_world(tmp_path, world)
    key = tamper.keys_of(tmp_path, "orderbook_deltas")[0]
    tamper.rewrite(tmp_path, key, changed_delta, fix)
    report = verify(str(tmp_path))
    assert any(key in f.key or key in f.problem for f in report.findings)


def gap_to_complete(rows: pa.Table) -> pa.Table:
    """Call the first gap between two epochs complete, as an epoch that is proven."""
    table = rows.to_pydict()
    for i, (status, channel) in enumerate(zip(table["status"], table["channel"], strict=True)):
        if status == "gap" and channel == "orderbook" and table["status"][i - 1] == "complete":
            table["status"][i] = "complete"
            table["sources"][i] = table["sources"][i - 1]
            table["epoch"][i] = table["epoch"][i - 1]
            break
    else:
        pytest.fail("this world has no gap to forge")
    return pa.Table.from_pydict(table, schema=rows.schema)


@pytest.mark.parametrize("fix", EVERY)
def test_a_gap_that_was_edited_to_complete_is_found(lake_copy: Path, fix: int) -> None:
    """The worst edit: a false `complete`."""
    for key in tamper.keys_of(lake_copy, "coverage"):
        rows = pq.read_table(lake_copy / key, partitioning=None)
        status, channel = rows.column("status"), rows.column("channel")
        gaps = pc.and_(pc.equal(status, "gap"), pc.equal(channel, "orderbook"))
        if pc.sum(gaps).as_py():
            break
    tamper.rewrite(lake_copy, key, gap_to_complete, fix)
    assert key in {f.key for f in verify(str(lake_copy)).findings}


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("which", [0, -1])
def test_a_removed_manifest_entry_is_found_and_the_object_named(
    lake_copy: Path, which: int, sealed: bool
) -> None:
    """An object that no version lists does not exist, so this is how one would hide an hour."""
    key = tamper.keys_of(lake_copy, "orderbook_deltas")[which]
    tamper.edit_version(
        tamper.newest(lake_copy),
        lambda b: b.update(objects=[o for o in b["objects"] if o["key"] != key]),
        sealed=sealed,
    )
    report = verify(str(lake_copy))
    assert key in {f.key for f in report.findings}
    if not sealed:
        assert "manifest/v0000000002.json" in {f.key for f in report.findings}


def test_a_hash_kept_elsewhere_finds_what_nothing_in_the_lake_contradicts(lake_copy: Path) -> None:
    """The limit of a lake that proves itself, and the way past it."""
    anchor = verify(str(lake_copy)).sha256
    key = tamper.keys_of(lake_copy, "markets")[0]

    def other_title(rows: pa.Table) -> pa.Table:
        names = pa.array(["somebody else"] * rows.num_rows)
        return rows.set_column(rows.schema.names.index("title"), rows.schema.field("title"), names)

    tamper.rewrite(lake_copy, key, other_title, 4)
    assert verify(str(lake_copy)).findings == []
    assert verify(str(lake_copy), sha256=anchor).findings
    assert verify(str(lake_copy), sha256=verify(str(lake_copy)).sha256.upper()).findings == []


def test_a_re_exported_hour_is_no_finding_while_its_former_bytes_are_kept(
    lake_copy: Path, world: World
) -> None:
    """Late rows change an hour; that is history, not an edit."""
    store = LocalStore(lake_copy)
    trades = world_tables(world)["trades"]
    first = trades.filter(
        pc.less(trades.column("exchange_ts").cast(pa.int64()), START + 3_600_000_000)
    )
    record = write.write_hour(store, "trades", START, first.slice(1), watermark_us=world.end_us)
    # Written and not committed: other engines would read what no version lists.
    assert {f.key for f in verify(str(lake_copy)).findings} == {record.key}
    write.commit_version(store, [record], watermark_us=world.end_us)
    assert verify(str(lake_copy)).findings == []
    shutil.rmtree(lake_copy / "superseded")
    assert record.key in {f.key for f in verify(str(lake_copy)).findings}


def test_the_folder_alone_checks_a_lake_with_nothing_of_ours_to_import(
    pristine: Path, tmp_path: Path
) -> None:
    """It can be handed to somebody who does not trust us."""
    shutil.copytree(Path(package.__file__).parent, tmp_path / "verify")
    code = (
        "import sys; import runpy; sys.path.insert(0, '.');"
        "import importlib.abc\n"
        "class Refuse(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('kalshilake', 'marketdata', 'numpy'):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        f"sys.argv = ['verify', {str(pristine)!r}, '--json']\n"
        "runpy.run_module('verify', run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ok"] is True


def test_the_command_says_what_it_found_by_exit_code_and_by_name(
    lake_copy: Path, tmp_path: Path
) -> None:
    """Scripts read the code, people the line."""
    lines: list[str] = []
    assert main([str(lake_copy)], lines.append) == 0
    assert lines[-1] == "verdict    nothing found"
    key = tamper.keys_of(lake_copy, "trades")[0]
    (lake_copy / key).unlink()
    lines.clear()
    assert main([str(lake_copy)], lines.append) == 1
    assert any(line.startswith("FOUND") and key in line for line in lines)
    lines.clear()
    assert main([str(tmp_path / "nothing")], lines.append) == 2
    assert "holds no lake" in lines[0]
    with pytest.raises(NoLakeError):
        verify(str(tmp_path / "nothing"))
