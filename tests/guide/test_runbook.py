"""docs/runbook.md: every failure that the tests inflict has its entry, every command is one.

The failures are read from the code that inflicts them, so that a new one without an entry fails
here. Commands: SQL runs on real PostgreSQL with our schema; `tape` runs on a real lake, or, where
it asks running services, its name is checked and a test that runs it is named; what needs a host
(HOSTS) is checked against the units and listed by name.
"""

from __future__ import annotations

import ast
import re
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
from typer.testing import CliRunner

from exchange.faults import FrameKind, TimeKind
from runtime.embedded import EmbeddedPostgres
from runtime.postgres import connect
from tape.main import app
from tests.databases import fresh_database, postgres_server
from tests.lake_world import make_world, write_world
from tests.sim.plan import DedupPlan, FaultPlan, GathererPlan

__all__ = ["postgres_server"]
ROOT = Path(__file__).resolve().parents[2]
BOOK = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
PARTS = ("**Means for the tape**", "**Look at**", "**Do**", "**Inflicted by**")
SIZES = frozenset({"seed", "seconds", "markets", "events_per_s", "window_ms", "poll_ms",
                   "gatherers", "dedup"})  # fmt: skip
"""Of a simulated world's plan: how large it is, not what goes wrong."""
PLAIN = frozenset({"lasting"})  # of tests.faults.inflict: what others are made of
THREE_MINUTES = frozenset({
    "partition", "kill_timescaledb", "stall_exchange", "fill_disk", "stop_production", "cut_power",
})  # fmt: skip
ELSEWHERE = {
    "tape repair": "tests/unit/tape/test_repair.py",
    "tape status": "tests/unit/tape/test_status.py",
    "tape plan": "tests/unit/tape/test_plan.py",
    "tape spool ls": "tests/unit/tape/test_spool.py",
    "tape spool rebuild": "tests/unit/tape/test_spool.py",
    "make alerts": "tests/monitoring/alerts.mk",
}
"""Commands that ask running services or a spool -> where they are run."""
HOSTS = {"systemctl", "journalctl", "chronyc", "df", "dmesg"}
"""Programs of a host; not run here. Their units are checked."""
PROGRAMS = {*HOSTS, "tape", "make"}


def entries(book: str) -> dict[str, str]:
    part = book.split("\n## Failures\n")[1].split("\n## ", maxsplit=1)[0]
    return {text.partition("\n")[0]: text for text in part.split("\n### ")[1:]}


def inflicted() -> set[str]:
    """Every failure by the name under which a test inflicts it."""
    tree = ast.parse((ROOT / "tests" / "faults" / "inflict.py").read_text())
    faults = {
        f"faults.{node.name}" for node in tree.body
        if isinstance(node, ast.AsyncFunctionDef) and node.name not in PLAIN
    }  # fmt: skip
    tree = ast.parse((ROOT / "tests" / "integration" / "test_dedup_crashes.py").read_text())
    crashes = {
        f"crashes.{node.name.removeprefix('test_')}" for node in tree.body
        if isinstance(node, ast.AsyncFunctionDef) and node.name.startswith("test_")
    }  # fmt: skip
    plans = {f"sim.{f.name}" for plan in (GathererPlan, DedupPlan, FaultPlan) for f in fields(plan)}
    kinds = {f"exchange.{kind}" for kind in (*TimeKind, *FrameKind)}
    minutes = {f"three_minutes.{name}" for name in THREE_MINUTES}
    return faults | crashes | (plans - {f"sim.{n}" for n in SIZES}) | kinds | minutes


def named(book: str) -> list[str]:
    lines = re.findall(r"^- \*\*Inflicted by\*\*: (.+)$", book, re.MULTILINE)
    return [name.strip() for line in lines for name in line.split(",")]


def test_every_failure_that_is_inflicted_has_its_entry() -> None:
    found = named(BOOK)
    assert sorted(inflicted() - set(found)) == []
    assert sorted(set(found) - inflicted()) == []
    assert len(found) == len(set(found)) > 60
    for name, text in entries(BOOK).items():
        assert all(part in text for part in PARTS), name


def test_the_three_minutes_inflict_what_is_said() -> None:
    text = (ROOT / "tests" / "onhost" / "test_three_minutes.py").read_text()
    begun = set(re.findall(r"\(\s*[\d.]+,\s*self\.(\w+)\)", text))
    assert begun >= THREE_MINUTES, begun
    ends = {n for n in begun - THREE_MINUTES if not n.endswith(("_ends", "_disk", "_production"))}
    assert ends == set(), "a fault that the runbook does not know"


def test_a_failure_without_an_entry_is_found() -> None:
    """The control: one name taken out of the book, and one that nobody inflicts put in."""
    without = BOOK.replace("faults.killed, ", "")
    assert inflicted() - set(named(without)) == {"faults.killed"}
    more = BOOK.replace("faults.killed, ", "faults.killed, faults.eaten, ")
    assert set(named(more)) - inflicted() == {"faults.eaten"}


def commands(book: str) -> set[str]:
    """What stands in code marks and begins with a program, or is a block or a line of SQL."""
    plain = re.sub(r"^```.*?^```$", "", book, flags=re.MULTILINE | re.DOTALL)
    marked = re.findall(r"`([^`\n]+)`", plain)
    return {text for text in marked if text.split()[0] in PROGRAMS and text != "tape"}


def queries(book: str) -> list[str]:
    blocks = re.findall(r"^```sql\n(.*?)^```$", book, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.strip()]
    return [*lines, *re.findall(r"`(SELECT [^`\n]+)`", book)]


async def test_every_query_of_the_runbook_runs(postgres_server: EmbeddedPostgres) -> None:
    dsn = await fresh_database(postgres_server, "gatherer_hot")
    connection = await connect(dsn)
    try:
        assert len(queries(BOOK)) >= 3
        for query in queries(BOOK):
            await connection.fetch(query)
        with pytest.raises(Exception, match="does not exist"):
            await connection.fetch("SELECT colour FROM reader_cursor")
    finally:
        await connection.close()


def told(command: str, lake: Path) -> tuple[int, str]:
    """Exit code and output of `tape ...`, its words in capitals filled in."""
    words = [str(lake) if word == "LAKE" else word for word in command.split()[1:]]
    done = CliRunner().invoke(app, words)
    return done.exit_code, done.output


def test_every_tape_command_is_one(tmp_path: Path) -> None:
    """Run where it needs a lake only; else its name and options are known to the program."""
    lake = tmp_path / "lake"
    write_world(lake, make_world(11, markets=2, hours=2, events=40))
    asked = {c for c in commands(BOOK) if c.startswith("tape ")}
    assert len(asked) >= 6
    for command in sorted(asked):
        if command == "tape verify":
            code, output = told(f"{command} LAKE", lake)
        elif command in ELSEWHERE:
            code, output = told(f"{command} --help", lake)
        else:
            code, output = told(command, lake)
        assert code == 0, f"{command}: {output}"
    assert told("tape verfiy LAKE", lake)[0] != 0, "the control"


def test_what_is_run_elsewhere_is_run_there() -> None:
    for command, place in ELSEWHERE.items():
        text = (ROOT / place).read_text()
        assert command.split()[-1] in text, command


def test_commands_of_a_host_name_units_that_are_there() -> None:
    """Not run: there is no systemd here. tests/onhost boots hosts that have these units."""
    units = {path.stem for path in (ROOT / "systemd").glob("*.service")}
    asked = {c for c in commands(BOOK) if c.split()[0] in HOSTS}
    assert {c.split()[0] for c in asked} == HOSTS
    for command in asked:
        for word in re.findall(r"kalshi-[a-z]+", command):
            assert word in units, command
    known = {c for c in commands(BOOK) if c.split()[0] not in HOSTS and not c.startswith("tape ")}
    assert known == {"make alerts"}
    assert shutil.which("df") is not None
