"""Reads the specification's own Markdown: its tables, code blocks and JSON documents as claims.

A claim is one cell: section path, row, column, and what the specification says there. Nothing here
knows what we deploy.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SPEC_PATH = Path(__file__).with_name("infrastructure-spec.md")

# Columns that together name a row; elsewhere the first column does.
_ROW_KEYS = {
    ("Direction", "Purpose"): "Direction",
    ("Prefix", "Transition"): "Prefix",
}


@dataclass(frozen=True, slots=True)
class Table:
    """`path` is the headings above it; `rows` hold text by column, without backticks and bold."""

    path: str
    columns: tuple[str, ...]
    rows: tuple[dict[str, str], ...]

    def row_key(self, row: dict[str, str]) -> str:
        """What names a row among the others of its table."""
        for names in _ROW_KEYS:
            if set(names) <= set(self.columns):
                return " ".join(row[name] for name in names)
        return row[self.columns[0]]


@dataclass(frozen=True, slots=True)
class Document:
    """A fenced block; `language` may be empty."""

    path: str
    language: str
    text: str


def plain(text: str) -> str:
    """Without backticks and bold, and with single spaces."""
    return " ".join(text.replace("`", "").replace("**", "").split())


def parse(text: str) -> tuple[list[Table], list[Document]]:
    """Every table and every fenced block of a Markdown text."""
    tables: list[Table] = []
    documents: list[Document] = []
    heads: list[str] = []
    bold = ""
    lines = iter(text.splitlines())
    pending: list[list[str]] = []

    def flush() -> None:
        if not pending:
            return
        columns = tuple(plain(cell) for cell in pending[0])
        rows = tuple(dict(zip(columns, map(plain, cells), strict=True)) for cells in pending[2:])
        tables.append(Table(_path(heads, bold), columns, rows))
        pending.clear()

    for line in lines:
        if line.startswith("|"):
            pending.append([cell.strip() for cell in line.strip().strip("|").split("|")])
            continue
        flush()
        if line.startswith("```"):
            language = line.removeprefix("```").strip()
            documents.append(Document(_path(heads, bold), language, _until_fence(lines)))
        elif found := re.fullmatch(r"(#+) (.*)", line):
            level = len(found[1])
            heads[level - 1 :] = [found[2]]
            bold = ""
        elif found := re.fullmatch(r"\*\*(.+):\*\*", line):
            bold = found[1]
    flush()
    return tables, documents


def _until_fence(lines: Iterator[str]) -> str:
    block = []
    for line in lines:
        if line.startswith("```"):
            break
        block.append(line)
    return "\n".join(block)


def _path(heads: list[str], bold: str) -> str:
    return " / ".join([*heads[1:], *([bold] if bold else [])])


def specification() -> tuple[list[Table], list[Document]]:
    """The specification in this directory."""
    return parse(SPEC_PATH.read_text(encoding="utf-8"))


def policy_documents(documents: list[Document]) -> dict[str, dict[str, object]]:
    """The JSON blocks by their heading (`Gatherer Role`, ...)."""
    return {
        document.path.rsplit(" / ", 1)[-1]: json.loads(document.text)
        for document in documents
        if document.language == "json"
    }


def bucket_prefixes(documents: list[Document]) -> list[str]:
    """The directory tree of the section S3 Bucket as full prefixes, without the bucket."""
    (tree,) = [d.text for d in documents if d.text.startswith("s3://")]
    prefixes: list[str] = []
    above: list[str] = []
    for line in tree.splitlines()[1:]:
        name = re.sub(r"^[│├└─ ]+", "", line)
        depth = (len(line) - len(name)) // 4
        above[depth - 1 :] = [name]
        prefixes.append("".join(above))
    return prefixes


def diagram_placement(documents: list[Document]) -> dict[str, str]:
    """Node label by subgraph of the overview diagram: `Gatherer 1` is in `Public Subnet a: ...`."""
    (text,) = [d.text for d in documents if d.language == "mermaid"]
    placed: dict[str, str] = {}
    inside: list[str] = []
    for line in map(str.strip, text.splitlines()):
        if found := re.match(r'subgraph "(.+)"', line):
            inside.append(found[1])
        elif line == "end":
            inside.pop()
        elif inside and (found := re.match(r"\w+\[\(?(.+?)\)?\]$", line)):
            placed[found[1]] = inside[-1]
    return placed
