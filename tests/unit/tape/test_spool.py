"""`tape spool`: what the commands print; the work is tested with gatherer.spool_check."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import asyncpg
import pytest

from runtime.embedded import EmbeddedPostgres
from runtime.spool_files import look
from runtime.spool_index import write_index
from tests.spool_world import FRAMES, write_spool


@pytest.fixture(scope="module")
def spool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spool")
    asyncio.run(write_spool(folder))
    return folder


def test_ls_tells_a_line_a_segment(run, spool: Path) -> None:
    code, out, _ = run("spool", "ls", spool, "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert rows[0]["file"] == "00000001.seg"
    assert sum(row["frames"] for row in rows) >= 2 * FRAMES
    assert {row["faults"] for row in rows} == {""}
    assert "00000002.seg" in run("spool", "ls", spool)[1]


def test_cat_gives_frames_as_they_came(run, spool: Path) -> None:
    code, out, err = run("spool", "cat", spool)
    lines = [json.loads(line) for line in out.splitlines()]
    frames = [line for line in lines if "ordinal" in line]
    assert (code, err) == (0, "")
    assert len(frames) >= 2 * FRAMES
    assert [line["control"]["k"] for line in lines if "control" in line].count("connect") == 2
    assert any(line.get("frame", {}).get("type") == "orderbook_delta" for line in frames)
    conns = sorted({line["conn"] for line in frames})
    one = [json.loads(x) for x in run("spool", "cat", spool, "--conn", conns[0])[1].splitlines()]
    assert {line["conn"] for line in one if "conn" in line} == {conns[0]}
    assert len(run("spool", "cat", spool, "--limit", 7)[1].splitlines()) == 7
    assert run("spool", "cat", spool, "--to", "2020-01-01T00:00:00Z")[1] == ""


def test_cat_of_one_market_is_the_same_with_and_without_indexes(run, tmp_path: Path) -> None:
    asyncio.run(write_spool(tmp_path / "spool"))
    spool = tmp_path / "spool"
    frames = [json.loads(x) for x in run("spool", "cat", spool)[1].splitlines()]
    named = [(x["frame"].get("msg") or {}).get("market_ticker") for x in frames if "frame" in x]
    market = next(ticker for ticker in reversed(named) if ticker)
    without = run("spool", "cat", spool, "--market", market)
    assert len(without[1].splitlines()) == named.count(market) > 0
    for number, path in look(spool).segments.items():
        write_index(spool, number, path.read_bytes())
    assert run("spool", "cat", spool, "--market", market) == without
    assert run("spool", "cat", spool, "--market", "KXNONE") == (0, "", "")


def test_verify_ends_with_its_code(run, spool: Path, tmp_path: Path) -> None:
    code, out, _ = run("spool", "verify", spool)
    assert (code, "nothing found" in out) == (0, True)
    asyncio.run(write_spool(tmp_path / "bad"))
    bad = tmp_path / "bad" / "00000002.seg"
    body = bytearray(bad.read_bytes())
    body[5_000] ^= 1
    bad.write_bytes(body)
    code, out, _ = run("spool", "verify", tmp_path / "bad")
    assert code == 1
    assert "00000002.seg: " in out
    told = [json.loads(x) for x in run("spool", "verify", bad.parent, "--json")[1].splitlines()]
    assert told[1]["faults"]
    code, _, err = run("spool", "verify", tmp_path)
    assert (code, "is no spool" in err) == (2, True)


def test_rebuild_tells_what_it_did(run, spool: Path, postgres_server: EmbeddedPostgres) -> None:
    async def made() -> str:
        conn = await asyncpg.connect(postgres_server.dsn())
        await conn.execute("CREATE DATABASE tape_spool")
        await conn.close()
        return postgres_server.dsn("tape_spool")

    code, out, err = run("spool", "rebuild", spool, "--to", asyncio.run(made()))
    assert (code, err) == (0, "")
    assert json.loads(out)["rows"] > 1_000
