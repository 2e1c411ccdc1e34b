"""A store whose process dies, and all bytes of a lake: what is left must be told from the whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kalshilake.store import Body, LocalStore
from marketdata.errors import StorageError


class Dying(LocalStore):
    """Dies before the effect on the disk after the first `lives`."""

    def __init__(self, root: Path, lives: int) -> None:
        super().__init__(root)
        self.lives = lives

    def _live(self) -> None:
        if self.lives == 0:
            raise StorageError("killed")
        self.lives -= 1

    def put(self, key: str, body: Body) -> None:
        self._live()
        super().put(key, body)

    def put_if_absent(self, key: str, body: bytes) -> bool:
        self._live()
        return super().put_if_absent(key, body)

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:  # it may die between any two
            self._live()
            super().delete([key])


def tree(root: Path) -> dict[str, bytes]:
    """Every object by its key, in order; unfinished writes are no part of a lake."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and ".tmp" not in path.parts
    }
