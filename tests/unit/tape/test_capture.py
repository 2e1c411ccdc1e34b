"""`tape capture` as a user runs it, against the simulated exchange, and proven against its log."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from marketdata.errors import StorageError
from tape.capture import MARKER, own_folder
from tape.demo import ZEROS
from tape.fleet import KEY_ID, write_test_key
from tape.prove import prove
from tests.exchange_client import Running, exchange, private_pem

PLAY = ("--synthetic", "40", "--seconds", "400", "--rate", "3", "--faults", "standard")


@contextlib.asynccontextmanager
async def playing(folder: Path) -> AsyncIterator[tuple[Running, list[str]]]:
    """An exchange, and the flags with which a user would record it."""
    async with exchange(folder, *PLAY, "--seed", "5", "--expect-clients", "1") as running:
        key = private_pem(running.keys, folder / "private.pem")
        flags = {
            "--key-id": KEY_ID,
            "--key-file": key,
            "--ws-url": running.ready["ws_url"],
            "--rest-url": running.ready["rest_url"],
            "--out": folder / "tape",
        }
        yield running, [str(word) for pair in flags.items() for word in pair]


async def capture(*arguments: str, **settings: str) -> asyncio.subprocess.Process:
    environ = {name: text for name, text in os.environ.items() if not name.startswith("KT_")}
    environ |= {f"KT_CAPTURE_{name.upper()}": text for name, text in settings.items()}
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tape.main", "capture", *arguments,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ,
    )  # fmt: skip


async def ended(process: asyncio.subprocess.Process) -> tuple[int, str, str]:
    async with asyncio.timeout(180):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that the servers' account can reach: pytest's own are closed to others."""
    with tempfile.TemporaryDirectory(prefix="kalshi-tape-") as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


async def test_a_capture_stopped_and_gone_on_with_is_the_truth(place: Path) -> None:
    """Twelve seconds, a pause, and until Ctrl-C: what was heard is on the tape, what lies between
    is called complete by nobody."""
    out = place / "tape"
    async with playing(place) as (running, flags):
        code, told, err = await ended(await capture(*flags, "--seconds", "12"))
        assert (code, err) == (0, ""), told + err
        assert f"tape verify {out / 'lake'}" in told
        assert "private.pem  (--key-file)" in told
        assert "BEGIN" not in told
        process = await capture(*flags, rest_rate_per_s="20")
        await asyncio.sleep(15)
        process.send_signal(signal.SIGINT)
        code, told, err = await ended(process)
        assert (code, err) == (0, ""), told + err
        running.stop()
    shutil.copytree(running.truth, out / "truth")
    verdict, frames = await asyncio.to_thread(prove, out)
    found = asdict(verdict)
    assert frames > 300
    assert found["events_truth"] > 150
    assert {name: found[name] for name in ZEROS if found.get(name)} == {}
    assert found["gap_intervals"] > 0, "the pause"


async def test_each_trouble_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    """A wrong key, a folder of somebody else, no network, settings that are none."""
    stranger = write_test_key(tmp_path / "stranger")[0]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "holiday.jpg").write_bytes(b"x")
    async with playing(tmp_path) as (running, flags):
        troubles = {
            "check --key-id": [*flags, "--key-file", str(stranger)],
            "name a new folder with --out": [*flags, "--out", str(tmp_path / "mine")],
            "download the private key": [*flags, "--key-file", str(tmp_path / "none.pem")],
            "tape capture --help": [*flags, "--gatherers", "7"],
            "give one of them": [*flags, "--all", "--series", "A"],
        }
        for do, arguments in troubles.items():
            code, _, err = await ended(await capture(*arguments, "--seconds", "1"))
            assert (code, do in err, err.count("\n")) == (2, True, 1), err
        running.stop()
        code, _, err = await ended(await capture(*flags))
        assert (code, "check the network" in err, err.count("\n")) == (2, True, 1), err
    assert (tmp_path / "mine" / "holiday.jpg").exists()


async def test_show_config_prints_and_starts_nothing(tmp_path: Path) -> None:
    arguments = ("--key-id", "k", "--key-file", "k.pem", "--series", "A", "--show-config",
                 "--out", str(tmp_path / "tape"))  # fmt: skip
    code, out, err = await ended(await capture(*arguments))
    assert (code, err) == (0, "")
    assert "series           A  (--series)" in out
    assert not (tmp_path / "tape").exists()


def test_a_folder_is_used_by_one_at_a_time_and_known_again(tmp_path: Path) -> None:
    out = tmp_path / "tape"
    with own_folder(out), pytest.raises(StorageError, match="another capture"), own_folder(out):
        pass
    with own_folder(out):
        assert json.loads((out / MARKER).read_text()) == {"format": 1}
    (out / MARKER).write_text('{"format": 99}')
    with pytest.raises(StorageError, match="another version"), own_folder(out):
        pass
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="cannot be made"), own_folder(tmp_path / "file" / "x"):
        pass
