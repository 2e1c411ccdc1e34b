"""marketdata is pure: time, randomness and bytes come in as arguments, effects go out as values."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.rules.tree import ROOT, Module, imported, modules, plant

FORBIDDEN_MODULES = {
    "asyncio", "concurrent", "threading", "multiprocessing", "subprocess", "signal", "queue",
    "socket", "socketserver", "ssl", "select", "selectors", "http", "urllib", "smtplib", "ftplib",
    "os", "io", "pathlib", "shutil", "tempfile", "glob", "fileinput", "mmap", "fcntl", "stat",
    "time", "sched", "random", "secrets", "uuid", "logging", "warnings", "sqlite3", "dbm", "shelve",
    "platform", "getpass", "pwd", "locale", "ctypes", "importlib", "sys",
}  # fmt: skip
FORBIDDEN_CALLS = {"open", "print", "input", "eval", "exec", "compile", "__import__", "breakpoint"}
# (last two parts of a dotted name): readers of a clock, of chance, of files.
FORBIDDEN_ATTRIBUTES = {
    "datetime.now", "datetime.utcnow", "datetime.today", "date.today", "np.random", "numpy.random",
    "np.load", "np.save", "np.savez", "np.fromfile", "np.memmap", "np.loadtxt", "np.savetxt",
}  # fmt: skip
FORBIDDEN_METHODS = {"tofile", "read_bytes", "read_text", "write_bytes", "write_text"}


def judge(module: Module) -> list[str]:
    found = [
        f"{module.where(node)} imports {name}"
        for node, name in imported(module.tree, module.container)
        if name.split(".")[0] in FORBIDDEN_MODULES
    ]
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in FORBIDDEN_CALLS:
                found.append(f"{module.where(node)} calls {node.func.id}")
        elif isinstance(node, ast.Attribute):
            owner = node.value
            last = owner.id if isinstance(owner, ast.Name) else getattr(owner, "attr", "")
            if f"{last}.{node.attr}" in FORBIDDEN_ATTRIBUTES or node.attr in FORBIDDEN_METHODS:
                found.append(f"{module.where(node)} uses {last}.{node.attr}")
        elif isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.Global):
            found.append(f"{module.where(node)} has {type(node).__name__}")
    return found


def breaches(root: Path) -> list[str]:
    return [b for m in modules(root) if m.package == "marketdata" for b in judge(m)]


def test_marketdata_is_pure() -> None:
    assert breaches(ROOT) == []


@pytest.mark.parametrize(
    "text",
    [
        "import asyncio",
        "from time import time_ns",
        "def f():\n    import random",
        "from os import path",
        "import logging.handlers",
        "from datetime import datetime\nx = datetime.now()",
        "import datetime as d\nx = d.datetime.now(d.UTC)",
        "import numpy as np\nx = np.random.default_rng()",
        "def f(p):\n    return open(p)",
        "def f(p):\n    return p.read_bytes()",
        "def f(rows, p):\n    rows.tofile(p)",
        "async def f():\n    pass",
        "N = 0\ndef f():\n    global N\n    N += 1",
        "print('x')",
    ],
)
def test_a_planted_effect_is_found(tmp_path: Path, text: str) -> None:
    """Negative control, one for each way to reach the world."""
    plant(tmp_path, "marketdata", "planted", text)
    assert breaches(tmp_path)
    plant(tmp_path, "marketdata", "planted", "X = 1")
    plant(tmp_path, "runtime", "planted", text)  # shells may
    assert breaches(tmp_path) == []
