"""Imports go one way, and heavy packages stay out of the recorder (docs: ARCHITECTURE.md)."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from tests.rules.tree import ROOT, imported, modules, plant

MAY_IMPORT = {
    "marketdata": set(),
    "runtime": {"marketdata"},
    "gatherer": {"marketdata", "runtime"},
    "exchange": {"marketdata", "runtime"},
    "kalshilake": {"marketdata"},
    "dedup": {"marketdata", "runtime", "kalshilake"},
    "deploy": {"marketdata"},
    "tape": {"marketdata", "runtime", "gatherer", "exchange", "kalshilake", "dedup", "deploy"},
}
# The pure core may lean on these and nothing else.
CORE_PACKAGES = {"numpy", "orjson", "msgspec", "google_crc32c"}
# 165 MB and more: they belong to readers and exporters, never to the recorder.
HEAVY = {"pyarrow", "boto3", "botocore", "duckdb", "polars", "pandas"}
# Programs with a closure of their own, behind an extra: no other module imports them.
APART = {("runtime", "cloudwatch")}
# The verifier judges what the rest wrote, and can be handed out alone.
VERIFIER_PACKAGES = {"pyarrow"}
LIGHT = {"marketdata", "runtime", "gatherer"}


def breaches(root: Path) -> list[str]:
    found: list[str] = []
    for module in modules(root):
        allowed = MAY_IMPORT.get(module.package)
        if allowed is None:
            found.append(f"{module.package}: this rule knows no such package")
            continue
        for node, name in imported(module.tree, module.container):
            top = name.split(".")[0]
            if top in MAY_IMPORT and top != module.package and top not in allowed:
                found.append(f"{module.where(node)} imports {top}")
            own_closure = (module.package, module.name) in APART
            if module.package in LIGHT and top in HEAVY and not own_closure:
                found.append(f"{module.where(node)} imports {top}, which is too heavy here")
            apart = tuple(name.split(".")[:2]) in APART
            if apart and module.package in LIGHT and not own_closure:
                found.append(f"{module.where(node)} imports {name}, which has a closure of its own")
            if module.package == "kalshilake" and module.name.split(".")[0] == "verify":
                own = name.startswith("kalshilake.verify") or top in VERIFIER_PACKAGES
                if not own and top not in sys.stdlib_module_names:
                    found.append(f"{module.where(node)} imports {name} into the verifier")
            foreign = top not in MAY_IMPORT and top not in sys.stdlib_module_names
            if module.package == "marketdata" and foreign and top not in CORE_PACKAGES:
                found.append(f"{module.where(node)} imports {top} into the pure core")
    return found


def test_imports_go_one_way() -> None:
    assert breaches(ROOT) == []


@pytest.mark.parametrize(
    ("package", "text", "says"),
    [
        ("marketdata", "import runtime.clock", "imports runtime"),
        ("runtime", "def f():\n    from gatherer import sink", "imports gatherer"),
        ("gatherer", "from exchange.venue import Venue", "imports exchange"),
        ("gatherer", "import pyarrow.parquet as pq", "too heavy"),
        ("runtime", "def f():\n    import boto3", "too heavy"),
        ("runtime", "from runtime.cloudwatch import measured", "has a closure of its own"),
        ("kalshilake", "import runtime", "imports runtime"),
        ("dedup", "import gatherer.feed", "imports gatherer"),
        ("marketdata", "import requests", "into the pure core"),
        ("kalshilake.verify", "from kalshilake.schema import TABLES", "into the verifier"),
        ("kalshilake.verify", "import numpy", "into the verifier"),
        ("newcomer", "import os", "knows no such package"),
    ],
)
def test_a_planted_import_is_found(tmp_path: Path, package: str, text: str, says: str) -> None:
    """Negative control: the rule is only worth what it catches."""
    package, _, name = package.partition(".")
    plant(tmp_path, package, name or "planted", text)
    assert any(says in breach for breach in breaches(tmp_path))


def test_relative_imports_are_seen_as_the_own_package(tmp_path: Path) -> None:
    plant(tmp_path, "gatherer", "planted", "from . import sink\nfrom .sink import Sink")
    assert breaches(tmp_path) == []
    tree = ast.parse("from .sink import Sink\nfrom ..schema import TABLES\nfrom . import x")
    names = [name for _, name in imported(tree, "kalshilake.verify")]
    assert names == ["kalshilake.verify.sink", "kalshilake.schema", "kalshilake.verify"]
