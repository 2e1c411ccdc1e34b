"""The one file that an export makes: new, and there only when it is whole.

Invariants:
    L-30 an export overwrites nothing, and a failed one leaves nothing behind.

Does not do: folders, stores other than a file system, writing the content.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kalshilake.read import Lake
from marketdata.errors import LakeError, TapeError


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A path to write to, which becomes `path` when the block ends well.

    Raises TapeError where `path` is there already or cannot be made.
    """
    refuse_existing(path)
    part = path.with_name(path.name + ".part")
    try:
        yield part
        refuse_existing(path)
        part.rename(path)
    except OSError as e:
        raise TapeError(f"{path} cannot be written: {e.strerror}") from None
    finally:
        part.unlink(missing_ok=True)


def refuse_existing(path: Path) -> None:
    """Raises TapeError where something of that name is there, or its folder is not."""
    if path.exists():
        raise TapeError(f"{path} exists", hint="an export overwrites nothing: name another file")
    if not path.parent.is_dir():
        raise TapeError(f"{path.parent} is no directory", hint="make it first")


def known(lake: Lake, market: str) -> None:
    """Raises LakeError, with names that are near, for a market of which the lake knows nothing.

    Without it a read that ignores gaps would give an empty file for a mistyped ticker.
    """
    if not lake.coverage(market).num_rows:
        found = lake.nothing(market, "orderbook")
        raise LakeError(f"{market}: {found.reason}")
