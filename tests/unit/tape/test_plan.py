"""`tape plan`: why a market is where it is."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp

from gatherer.service import Gatherer
from marketdata.plan import MarketRef
from runtime.clock import Clock
from runtime.supervise import Supervisor
from tape import plan as module
from tests.unit.gatherer.test_service import settings


def test_a_list_is_planned_as_a_gatherer_of_that_name_would(run, tmp_path: Path) -> None:
    """Every market once with its reason, totals for each connection, the limits."""
    listed = tmp_path / "markets"
    rows = [f"A-{n} A {300 if n == 2 else 0}" for n in range(5)]
    listed.write_text("# a comment\n" + "\n".join([*rows, "", "KXB-1-X", "C-1,C"]))
    code, out, _ = run("plan", "--markets", listed, "--per-connection", 4)
    assert code == 0
    assert "spread because hot at 300 frames/s" in out
    assert "g1: 7 markets on 2 connections of at most 60 with 4 each" in out
    assert "trade (trade)" in out
    code, out, _ = run("plan", "--markets", listed, "--per-connection", 4, "--json")
    told = [json.loads(line) for line in out.splitlines()]
    markets = [row["market"] for row in told if "market" in row]
    assert sorted(markets) == sorted(["KXB-1-X", "C-1", *(f"A-{n}" for n in range(5))])
    assert sum(row["markets"] for row in told if "markets" in row) == 7
    code, out, _ = run("plan", "--markets", listed, "--market", "KXB-1-X")
    assert code == 0
    assert "event KXB-1:" in out


def test_one_market_is_explained_and_one_that_is_not_there_is_told(run) -> None:
    code, out, _ = run("plan", "--synthetic", 10, "--market", "KXSYN-E000001-T1")
    assert (code, out.count("\n")) == (0, 1)
    assert out.startswith("KXSYN-E000001-T1: on books-0, event KXSYN-E000001:")
    assert run("plan", "--synthetic", 10, "--market", "NONE")[0] == 1


def test_markets_without_room_are_told_and_are_the_exit_code(run) -> None:
    small = ("plan", "--synthetic", 10, "--per-connection", 2, "--connections", 2)
    code, out, _ = run(*small)
    assert code == 1
    assert out.count("no room") == 6
    assert "6 without room" in out
    assert "no room" not in run(*small, "--totals")[1]
    unplaced = next(line for line in out.splitlines() if "no room" in line).split()[0]
    code, out, _ = run(*small, "--market", unplaced)
    assert (code, out) == (1, f"{unplaced}: no connection has room for it\n")


def test_what_cannot_be_read_is_refused_with_its_line(run, tmp_path: Path) -> None:
    listed = tmp_path / "markets"
    for line in ("A B many", "A B 1 2"):
        listed.write_text(f"A\n{line}\n")
        code, _, err = run("plan", "--markets", listed)
        assert code == 2
        assert "line 2" in err
    assert run("plan", "--markets", tmp_path / "none")[0] == 2
    assert run("plan", "--synthetic", 5, "--per-connection", 0)[0] == 2
    code, _, err = run("plan", "--url", "http://127.0.0.1:1")
    assert code == 2
    assert "--markets FILE" in err


async def test_a_running_gatherer_tells_its_plan(tmp_path: Path, capsys: Any) -> None:
    """Over its health port, one line a connection; an older one that does not is told."""
    async with AsyncExitStack() as stack:
        gatherer = Gatherer(settings(tmp_path), Clock(), Supervisor("test"))
        await gatherer.open(stack)
        gatherer.plan.place(MarketRef(f"A-{n}", "A") for n in range(3))
        url = f"http://127.0.0.1:{gatherer.health_port}"
        rows = await module._ask(url)
        assert [row["kind"] for row in rows] == ["head", "connection", "unplaced"]
        assert module.told(rows, market="A-1", totals=False, as_json=False) == 0
        assert capsys.readouterr().out.endswith("A-1: on books-0, event A: new connection\n")
        async with aiohttp.ClientSession() as http, http.head(f"{url}/plan") as answer:
            assert answer.status == 200
            assert answer.headers["Cache-Control"] == "no-store"
