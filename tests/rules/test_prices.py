"""No float in a price path: a price that was once a float has been rounded by somebody.

Three rules, by module:
- **strict**, for every module of marketdata, gatherer, dedup, kalshilake and for runtime.pgcopy: no
  float literal, no float() or round(), no true division, no float type of numpy or Arrow, no
  annotation `float` but of a name in seconds (`timeout_s: float`).
- **durations**, for the modules in DURATIONS (each with its reason) and for the rest of runtime and
  tape: those constructs may stand there, but not in a statement that also names a price, a size or
  another quantity of the tape.
- **foreign formats**, for the modules in FOREIGN: they write what another program reads, and its
  format holds floats.
The exchange simulator draws its prices from whole numbers too, but a made-up price loses nothing.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import TypeGuard

import pytest

from tests.rules.test_names import words
from tests.rules.tree import ROOT, Module, modules, plant

STRICT_PACKAGES = {"marketdata", "gatherer", "dedup", "kalshilake"}
STRICT_MODULES = {"runtime.pgcopy"}
LOOSE_PACKAGES = {"runtime", "tape"}

DURATIONS = {
    "dedup.live_path": "seconds for the metrics",
    "gatherer.discovery": "seconds between rounds",
    "gatherer.feed": "seconds of timers and of the reconnect's backoff",
    "gatherer.lifecycle": "seconds between questions",
    "gatherer.main": "the interpreter's switch interval in seconds",
    "gatherer.observe": "seconds for the metrics",
    "gatherer.reconcile": "seconds between looks",
    "gatherer.processes": "deadlines in seconds, requests a second",
    "gatherer.rest_audit": "seconds between requests and looks",
    "gatherer.rest": "seconds of the token bucket and of retries",
    "gatherer.service": "deadlines in seconds, lag in seconds for the metrics",
    "gatherer.side_rows": "seconds between looks",
    "gatherer.sink": "flush interval and commit duration in seconds",
    "gatherer.transport": "time-outs in seconds",
    "gatherer.witness": "seconds between looks",
    "dedup.main": "deadlines in seconds",
    "dedup.measured": "ages in seconds and hours for the metrics",
    "dedup.page.asked": "seconds that an answer stands, share of the time it may cost",
    "dedup.page.serving": "seconds that an answer stands, of the stream",
    "dedup.pipeline": "patience and poll interval in seconds",
    "dedup.publish": "seconds between tries",
    "dedup.processes": "deadlines in seconds",
    "dedup.readers": "seconds between tries",
    "dedup.shards": "patience and looks in seconds",
    "dedup.status": "rates and shares for the status screen",
}

FOREIGN = {
    "kalshilake.exports.hftbacktest": "hftbacktest's events hold price and size as 64-bit floats",
}

QUANTITIES = {
    "price", "prices", "size", "sizes", "delta", "deltas", "level", "levels", "quantity", "volume",
    "interest", "bid", "bids", "ask", "asks", "micros", "centi", "contracts", "cents", "dollars",
}  # fmt: skip
FLOAT_TYPES = {
    "float16", "float32", "float64", "float128", "longdouble", "half", "double", "single",
    "floating", "complex64", "complex128",
}  # fmt: skip
FLOAT_DTYPES = {"f2", "f4", "f8", "<f4", "<f8", ">f4", ">f8", "float32", "float64", "double"}
TYPE_OWNERS = {"np", "numpy", "pa", "pyarrow"}
PATH_WORDS = {"path", "folder", "directory", "root", "home", "temporary"}


def last_name(node: ast.AST) -> str:
    """The last part of a dotted name, of what is called, or ""."""
    if isinstance(node, ast.Call):
        return last_name(node.func)
    return node.id if isinstance(node, ast.Name) else getattr(node, "attr", "")


def joins_paths(node: ast.BinOp) -> bool:
    """Whether a `/` joins a path: one side is text, or the left side is called a path."""
    for side in (node.left, node.right):
        if isinstance(side, ast.JoinedStr):
            return True
        if isinstance(side, ast.Constant) and isinstance(side.value, str):
            return True
    if isinstance(node.left, ast.BinOp) and isinstance(node.left.op, ast.Div):
        return joins_paths(node.left)
    return bool(words(last_name(node.left)) & PATH_WORDS)


def float_in(node: ast.AST) -> str | None:
    """What makes this one node a float, or None."""
    if isinstance(node, ast.Constant):
        if isinstance(node.value, float | complex):
            return f"the literal {node.value}"
        return f"the type {node.value!r}" if node.value in FLOAT_DTYPES else None
    if isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Div):
        is_path = isinstance(node, ast.BinOp) and joins_paths(node)
        return None if is_path else "a true division"
    if isinstance(node, ast.Name) and node.id in {"float", "round"}:
        return f"the name {node.id}"
    if isinstance(node, ast.Attribute) and node.attr in FLOAT_TYPES:
        return f"the type {node.attr}" if last_name(node.value) in TYPE_OWNERS else None
    return None


def in_seconds(node: ast.AST) -> TypeGuard[ast.arg | ast.AnnAssign]:
    """An annotated argument or attribute whose name ends in `_s`."""
    if isinstance(node, ast.arg):
        return node.arg.endswith("_s")
    return isinstance(node, ast.AnnAssign) and last_name(node.target).endswith("_s")


def floats(tree: ast.AST) -> Iterator[tuple[ast.AST, str, set[str]]]:
    """Every float in a file: the node, what it is, and the words of its innermost statement."""

    seconds = {id(node.annotation) for node in ast.walk(tree) if in_seconds(node)}

    def visit(node: ast.AST, statement: ast.AST) -> Iterator[tuple[ast.AST, str, set[str]]]:
        for child in ast.iter_child_nodes(node):
            inner = child if isinstance(child, ast.stmt) else statement
            what = None if id(child) in seconds else float_in(child)
            if what is not None:
                yield child, what, words_of(inner)
            yield from visit(child, inner)

    yield from visit(tree, tree)


def words_of(statement: ast.AST) -> set[str]:
    """Words of the names in a statement, without the statements inside it."""
    found: set[str] = set()
    open_nodes = [statement]
    while open_nodes:
        node = open_nodes.pop()
        for name in (getattr(node, part, None) for part in ("id", "attr", "arg", "name")):
            if isinstance(name, str):
                found |= words(name)
        open_nodes += [c for c in ast.iter_child_nodes(node) if not isinstance(c, ast.stmt)]
    return found


def judge(module: Module) -> list[str]:
    full = f"{module.package}.{module.name}"
    strict = full in STRICT_MODULES or module.package in STRICT_PACKAGES
    if not strict and module.package not in LOOSE_PACKAGES:
        return []
    if full in FOREIGN:
        return []
    if full in DURATIONS:
        strict = False
    return [
        f"{module.where(node)} has {what}"
        for node, what, said in floats(module.tree)
        if strict or said & QUANTITIES
    ]


def breaches(root: Path) -> list[str]:
    return [breach for module in modules(root) for breach in judge(module)]


def test_no_float_is_in_a_price_path() -> None:
    assert breaches(ROOT) == []


def test_every_exemption_is_still_needed() -> None:
    """A module that no longer needs its exemption must lose it."""
    needed = {f"{m.package}.{m.name}" for m in modules(ROOT) if any(True for _ in floats(m.tree))}
    assert (set(DURATIONS) | set(FOREIGN)) - needed == set()


@pytest.mark.parametrize(
    "text",
    [
        "PRICE = 0.96",
        "def f(a):\n    return float(a)",
        "def f(a: float) -> None: ...",
        "def f(a):\n    return round(a)",
        "def f(cents):\n    return cents / 100",
        "def f(a):\n    a /= 2",
        "import numpy as np\nD = np.dtype([('price', 'f8')])",
        "import numpy as np\nD = np.float64",
        "list(map(float, []))",
    ],
)
def test_a_planted_float_is_found_where_the_strict_rule_holds(tmp_path: Path, text: str) -> None:
    for package, name in (("marketdata", "planted"), ("dedup", "merge"), ("runtime", "pgcopy")):
        plant(tmp_path, package, name, text)
    assert len(breaches(tmp_path)) == 3


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("WAIT_S = 0.5", 0),
        ("def f(delay_ms):\n    return delay_ms / 1000", 0),
        ("def f(x):\n    price = float(x)", 1),
        ("def f(row):\n    return row.yes_bid / 100", 1),
        ("def f(row, size_s):\n    if row.price:\n        return 1.5", 0),  # another statement
        ("publish(delta=0.5)", 1),
        ("def f(price: float, size_s: float):\n    pass", 1),
    ],
)
def test_durations_may_be_floats_and_quantities_may_not(
    tmp_path: Path, text: str, count: int
) -> None:
    plant(tmp_path, "gatherer", "feed", text)
    plant(tmp_path, "runtime", "clock", text)
    assert len(breaches(tmp_path)) == 2 * count


def test_a_name_in_seconds_may_be_annotated_as_float_anywhere(tmp_path: Path) -> None:
    plant(tmp_path, "dedup", "planted", "def f(wait_s: float): ...\nclass A:\n    age_s: float")
    assert breaches(tmp_path) == []
    plant(tmp_path, "dedup", "planted", "class A:\n    price: float")
    assert len(breaches(tmp_path)) == 1


def test_a_foreign_format_exempts_its_one_module_only(tmp_path: Path) -> None:
    for name in ("hftbacktest", "csv_text"):
        (tmp_path / "python" / "lake" / "src" / "kalshilake" / "exports").mkdir(
            parents=True, exist_ok=True
        )
        plant(tmp_path, "kalshilake", f"exports/{name}", "def f(price):\n    return price / 2")
    assert [breach.split(":")[0] for breach in breaches(tmp_path)] == ["kalshilake/csv_text.py"]


def test_joining_paths_is_no_division(tmp_path: Path) -> None:
    plant(tmp_path, "dedup", "planted", "def f(folder, name):\n    return folder / 'a' / name")
    plant(tmp_path, "dedup", "other", "def f(self, key):\n    return self._root / key")
    assert breaches(tmp_path) == []
    plant(tmp_path, "dedup", "third", "def f(total, n):\n    return total / n")
    assert len(breaches(tmp_path)) == 1
