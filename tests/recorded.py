"""Where the recorded exchange data lie, and how a test says that it does not have them.

The data are never part of the project. `KALSHI_TAPE_DATA` names their folder; without it the folder
`shared/data` beside the checkout is used.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

DATA = Path(
    os.environ.get("KALSHI_TAPE_DATA")
    or Path(__file__).resolve().parent.parent.parent / "shared" / "data"
)


def recorded(*parts: str) -> Path:
    """The path of a recorded file or folder; skips the test, saying so, where it is not there."""
    path = DATA.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"recorded data are not on this machine: {'/'.join(parts)}")
    return path


def captures(limit: int | None = None) -> list[Path]:
    """Every recorded WebSocket capture, smallest first; empty where the data are not there."""
    found = [*DATA.glob("ws_btc15m/*.jsonl.gz"), *DATA.glob("ws_multi/*.json")]
    found.sort(key=lambda p: p.stat().st_size)
    return found if limit is None else found[:limit]


def frames(limit: int | None = None) -> Iterator[bytes]:
    """The frames of the smallest captures and of ws_trade_ticker, as compact JSON."""
    recorded("ws_btc15m")
    for path in [*captures(limit), *DATA.glob("ws_multi/*.json")]:
        if path.suffix == ".json":
            entries = json.loads(path.read_text())["frames"]
        else:
            with gzip.open(path, "rt") as lines:
                entries = [json.loads(line) for line in lines]
        for entry in entries:
            yield json.dumps(entry["frame"], separators=(",", ":")).encode()
    for path in DATA.glob("ws_trade_ticker/*.jsonl"):
        yield from path.read_bytes().splitlines()
