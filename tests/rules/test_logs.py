"""Every line that a service can log: what happened, what was seen, and what to do.

The calls are read from the source: the event is a constant in lower case without a full stop, what
was seen stands in named fields, and a warning or an error has its advice in runtime.advice or
brings `do`. A line about a connection is said by a logger that knows it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from runtime.advice import ADVICE
from tests.rules.tree import ROOT, Module, modules, plant

METHODS = ("debug", "info", "warning", "error", "exception", "critical")
ADVISED = ("warning", "error", "exception", "critical")
EVENT = re.compile(r"[a-z0-9][^\n]{2,79}")
FIELD = re.compile(r"[a-z][a-z0-9_]*")
BOOK = re.compile(r"docs/runbook\.md, ([^;]+)")


class Call(NamedTuple):
    """One call of a logger. `event` is None where it is no constant."""

    where: str
    method: str
    event: str | None
    fields: tuple[str, ...]
    spread: bool
    positional: int


def calls(module: Module) -> Iterator[Call]:
    for node in ast.walk(module.tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        if node.func.attr not in METHODS or not _is_logger(node.func.value):
            continue
        first = node.args[0] if node.args else None
        event = first.value if isinstance(first, ast.Constant) else None
        yield Call(
            module.where(node), node.func.attr, event if isinstance(event, str) else None,
            tuple(k.arg for k in node.keywords if k.arg is not None),
            any(k.arg is None for k in node.keywords), len(node.args),
        )  # fmt: skip


def _is_logger(node: ast.expr) -> bool:
    """`log`, `self._log`, `logs.get("...")` or `get("...")`."""
    if isinstance(node, ast.Name):
        return node.id == "log"
    if isinstance(node, ast.Attribute):
        return node.attr in ("_log", "log")
    if isinstance(node, ast.Call):
        called = node.func
        name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
        return name == "get" and len(node.args) == 1 and isinstance(node.args[0], ast.Constant)
    return False


def breaches(root: Path) -> list[str]:
    found: list[str] = []
    for module in modules(root):
        for call in calls(module):
            found += [f"{call.where}: {told}" for told in _faults(call)]
    return found


def _faults(call: Call) -> Iterator[str]:
    if call.event is None:
        if call.method != "info":
            yield "a warning's event is a constant: its advice is found by it"
        return
    if not EVENT.fullmatch(call.event) or call.event != _lower(call.event):
        yield f"{call.event!r} is not short lower-case text"
    if call.event.endswith((".", "!", ":")):
        yield f"{call.event!r} ends in a mark"
    if "%" in call.event or "{" in call.event:
        yield f"{call.event!r} holds a value: values stand in fields"
    if call.positional > 1:
        yield f"{call.event!r}: what was seen has a name"
    if not all(FIELD.fullmatch(name) for name in call.fields):
        yield f"{call.event!r}: fields are lower-case names"
    if call.method in ADVISED:
        if "do" not in call.fields and call.event not in ADVICE:
            yield f"{call.event!r} does not say what to do: add it to runtime/advice.py"
        if not (call.fields or call.spread or call.method == "exception"):
            yield f"{call.event!r} does not say what was seen"


def _lower(text: str) -> str:
    """Lower case but for names that are written in capitals."""
    return re.sub(r"\b(?!REST\b|S3\b|DEFAULT\b)\w+", lambda m: m[0].lower(), text)


def test_every_line_says_what_was_seen_and_what_to_do() -> None:
    assert breaches(ROOT) == []
    assert sum(1 for module in modules(ROOT) for _ in calls(module)) > 60, "the reader reads"


def test_no_advice_is_of_a_line_that_nobody_writes() -> None:
    written = {call.event for module in modules(ROOT) for call in calls(module)}
    assert sorted(set(ADVICE) - written) == []


def test_advice_that_points_to_the_runbook_points_to_an_entry() -> None:
    book = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
    entries = set(re.findall(r"^##+ (.+)$", book, re.MULTILINE))
    told = [*ADVICE.values(), *_said_in_calls()]
    named = {name.strip() for text in told for name in BOOK.findall(text)}
    assert len(named) > 10
    assert sorted(named - entries) == []


def _said_in_calls() -> Iterator[str]:
    """Constants of modules that point to the runbook: what calls bring as `do`."""
    for module in modules(ROOT):
        for node in ast.walk(module.tree):
            is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
            if is_text and module.name != "advice" and node.value.startswith("docs/runbook.md, "):
                yield node.value


def test_lines_about_a_connection_are_said_by_a_logger_that_knows_it() -> None:
    """In the feed every call goes through `_log`, which binds feed and conn_id."""
    (feed,) = [m for m in modules(ROOT) if (m.package, m.name) == ("gatherer", "feed")]
    bare = [
        node for node in ast.walk(feed.tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        and node.value.id == "log" and node.attr in METHODS
    ]  # fmt: skip
    assert bare == []


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('log.warning("Disk full", free=1, do="x")', "lower-case"),
        ('log.warning("disk full.", free=1, do="x")', "mark"),
        ('log.warning("disk %s full", free=1, do="x")', "values stand in fields"),
        ('log.info("disk full", 3)', "has a name"),
        ('log.info("disk full", freeBytes=3)', "lower-case names"),
        ('log.error("a plate is full of soup", free=3)', "what to do"),
        ('log.warning("database")', "what was seen"),
        ("log.error(told, free=3)", "a constant"),
        ('self._log.warning("nobody has heard of this", free=3)', "what to do"),
        ('logs.get("x").warning("nobody has heard of this", free=3)', "what to do"),
    ],
)
def test_a_line_that_does_not_is_found(tmp_path: Path, line: str, told: str) -> None:
    """The control: each way to say too little, planted in a small tree."""
    plant(tmp_path, "runtime", "planted", f"def f(self):\n    {line}\n")
    (found,) = breaches(tmp_path)
    assert told in found
    good = 'def f():\n    log.warning("disk full", free_bytes=3, do="free it")\n'
    plant(tmp_path, "runtime", "planted", good)
    assert breaches(tmp_path) == []
