"""Functions of at most 70 lines, files of at most 600: what fits on a screen can be judged."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.rules.tree import ROOT, modules, plant

FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 600


def breaches(root: Path) -> list[str]:
    found: list[str] = []
    for module in modules(root):
        lines = module.text.count("\n")
        if lines > FILE_LINES_MAX:
            found.append(f"{module.where()} has {lines} lines")
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > FUNCTION_LINES_MAX:
                    found.append(f"{module.where(node)} {node.name} has {length} lines")
    return found


def test_functions_and_files_are_of_a_size_to_be_judged() -> None:
    assert breaches(ROOT) == []


def test_planted_giants_are_found(tmp_path: Path) -> None:
    body = "    x = 1\n"
    plant(tmp_path, "gatherer", "right", "def f():\n" + body * (FUNCTION_LINES_MAX - 1))
    assert breaches(tmp_path) == []
    plant(tmp_path, "gatherer", "long", "async def f():\n" + body * FUNCTION_LINES_MAX)
    plant(tmp_path, "gatherer", "huge", "x = 1\n" * (FILE_LINES_MAX + 1))
    assert breaches(tmp_path) == [
        "gatherer/huge.py has 601 lines",
        "gatherer/long.py:1 f has 71 lines",
    ]
