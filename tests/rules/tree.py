"""What the rule tests look at: the project's Python modules and its tracked files.

Each rule is a function of a root directory that returns its breaches as text, so that the same
function judges the project and the small trees in which a test plants a breach.
"""

from __future__ import annotations

import ast
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Module:
    """One source file of a member. `name` is its dotted name below the package, "" for __init__."""

    path: Path
    package: str
    name: str
    text: str

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, str(self.path))

    @property
    def container(self) -> str:
        """The package that a relative import of one dot means."""
        above = self.name if self.path.stem == "__init__" else self.name.rpartition(".")[0]
        return ".".join(part for part in (self.package, above) if part)

    def where(self, node: ast.AST | None = None) -> str:
        """File and line, for a message."""
        line = f":{node.lineno}" if node is not None and hasattr(node, "lineno") else ""
        return f"{self.package}/{self.path.name}{line}"


def modules(root: Path) -> Iterator[Module]:
    """Every module of python/<member>/src/<package>/."""
    for package in sorted(root.glob("python/*/src/*")):
        if not (package / "__init__.py").exists():
            continue
        for path in sorted(package.rglob("*.py")):
            parts = path.relative_to(package).with_suffix("").parts
            name = ".".join(part for part in parts if part != "__init__")
            yield Module(path, package.name, name, path.read_text(encoding="utf-8"))


def plant(root: Path, package: str, name: str, text: str) -> Path:
    """A module in a small tree of the project's form."""
    member = {"kalshilake": "lake", "tape": "cli"}.get(package, package)
    folder = root / "python" / member / "src" / package
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "__init__.py").touch()
    path = folder / f"{name}.py"
    path.write_text(text, encoding="utf-8")
    return path


def imported(tree: ast.AST, container: str) -> Iterator[tuple[ast.AST, str]]:
    """Every dotted name that a file imports, wherever in it; relative ones made absolute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name
        elif isinstance(node, ast.ImportFrom):
            parts = container.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            yield node, ".".join(part for part in (base, node.module or "") if part)


def tracked(root: Path) -> list[Path]:
    """The files that the repository holds or would hold; without git, all but caches."""
    git = shutil.which("git")
    if git is not None and (root / ".git").exists():
        listed = subprocess.run(
            [git, "-C", root, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            capture_output=True,
            check=True,
        ).stdout
        paths = [root / name for name in listed.decode().split("\0") if name]
        return sorted(path for path in paths if path.is_file())
    return sorted(path for path in root.rglob("*") if path.is_file())


def text_of(path: Path) -> str | None:
    """A text file's text; None for a binary one."""
    body = path.read_bytes()
    if b"\0" in body[:8192]:
        return None
    return body.decode("utf-8", "replace")
