"""Names say what a thing is; words that fit everything are not used (docs/glossary.md)."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.rules.tree import ROOT, modules, plant

EMPTY_WORDS = {
    "manager",
    "helper",
    "helpers",
    "util",
    "utils",
    "handler",
    "misc",
    "common",
    "stuff",
}
EMPTY_MODULES = EMPTY_WORDS | {"data", "process", "base", "core"}


def words(name: str) -> set[str]:
    """The words of a snake_case or CamelCase name."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return {word for word in spaced.lower().split("_") if word}


def breaches(root: Path) -> list[str]:
    found: list[str] = []
    for module in modules(root):
        if set(module.name.split(".")) & EMPTY_MODULES or words(module.name) & EMPTY_WORDS:
            found.append(f"{module.where()}: the file's name says nothing")
        for node in ast.walk(module.tree):
            named = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
            if isinstance(node, named) and words(node.name) & EMPTY_WORDS:
                found.append(f"{module.where(node)}: the name {node.name} says nothing")
    return found


def test_names_say_what_things_are() -> None:
    assert breaches(ROOT) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("utils", ""),
        ("feed", "class ConnectionManager: pass"),
        ("feed", "def frame_handler(): pass"),
        ("feed", "class A:\n    async def helper(self): pass"),
    ],
)
def test_a_planted_empty_name_is_found(tmp_path: Path, name: str, text: str) -> None:
    plant(tmp_path, "gatherer", name, text)
    assert len(breaches(tmp_path)) == 1
