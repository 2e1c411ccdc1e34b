"""Properties that have to be taken: whoever leaves one over hears about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class UnmappedError(Exception):
    """A type or property of a template that the applier does not play."""


class Taken:
    """A table of properties; `finish` raises UnmappedError if any, at any depth, was not taken."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self._left = dict(values)
        self._where = where
        self._inner: list[Taken] = []

    def __contains__(self, key: str) -> bool:
        return key in self._left

    def plain(self, key: str) -> Any:
        """Takes a value whole: what is inside is passed on as it stands."""
        if key not in self._left:
            raise UnmappedError(f"{self._where} has no {key}")
        return self._left.pop(key)

    def one(self, key: str) -> Taken:
        """Takes a table whose own properties have to be taken."""
        inner = Taken(self.plain(key), f"{self._where}.{key}")
        self._inner.append(inner)
        return inner

    def rows(self, key: str) -> list[Taken]:
        """Takes a list of tables; absent is empty."""
        if key not in self._left:
            return []
        found = [Taken(v, f"{self._where}.{key}[{i}]") for i, v in enumerate(self.plain(key))]
        self._inner.extend(found)
        return found

    def finish(self) -> None:
        """Raises UnmappedError if anything is left."""
        if self._left:
            raise UnmappedError(f"{self._where}: nobody took {sorted(self._left)}")
        for inner in self._inner:
            inner.finish()
