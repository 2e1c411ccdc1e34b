"""`tape exchange`: what it prints is what works."""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.embedded import free_port
from tape.exchange import settings, words


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that the servers' account can reach its own folders in."""
    made = Path(tempfile.mkdtemp(prefix="kalshi-tape-exchange-"))
    made.chmod(0o711)
    yield made
    shutil.rmtree(made, ignore_errors=True)


TAPE = (sys.executable, "-m", "tape.main")


@pytest.mark.timeout(180)
async def test_what_it_says_to_type_records_it(open_folder: Path) -> None:
    """As a new user would: two terminals, the words of the first typed into the second."""
    port = free_port()
    sim, tape = open_folder / "sim", open_folder / "tape"
    played = await asyncio.create_subprocess_exec(
        *TAPE, "exchange", "--out", str(sim), "--port", str(port), "--markets", "10",
        stdout=subprocess.PIPE, env=os.environ,
    )  # fmt: skip
    assert played.stdout is not None
    try:
        said = [(await played.stdout.readline()).decode().strip() for _ in range(4)]
        typed = shlex.split(next(line for line in said if line.startswith("tape capture")))
        typed[-1] = str(tape)
        examined = shlex.split(next(line for line in said if line.startswith("tape doctor")))
        asked = await asyncio.create_subprocess_exec(*TAPE, *examined[1:], "--out", str(tape))
        assert await asked.wait() == 0
        recorded = await asyncio.create_subprocess_exec(*TAPE, *typed[1:], "--seconds", "8")
        assert await recorded.wait() == 0
        verified = await asyncio.create_subprocess_exec(
            *TAPE, "verify", str(tape / "lake"), stdout=subprocess.DEVNULL
        )
        assert await verified.wait() == 0
        assert list((tape / "lake").rglob("orderbook_deltas*/**/*.parquet"))
    finally:
        played.send_signal(signal.SIGINT)
        assert await played.wait() == 0
    assert list((sim / "truth").iterdir())


def test_the_key_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    asked = (tmp_path, 8765, 3, None, 60, "1", "none", 1)
    settings(*asked)
    private = tmp_path / "private.pem"
    held = private.read_bytes()
    settings(*asked)
    assert private.read_bytes() == held
    assert private.stat().st_mode & 0o077 == 0
    assert str(private) in words(tmp_path, 8765)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--faults", "some"), "--faults some is none of"),
        (("--rate", "fast"), "--rate fast is neither"),
        (("--out", "/proc/nowhere"), "/proc/nowhere cannot be used"),
    ],
)
def test_what_cannot_be_played_is_one_line(run, tmp_path: Path, arguments, told: str) -> None:
    code, out, said = run("exchange", "--out", tmp_path, *arguments)
    assert (code, out, said.count("\n")) == (2, "", 1)
    assert told in said
