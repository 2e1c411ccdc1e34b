"""Flags, exit codes and the ready file of the exchange process."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from exchange.faults import FaultLevel
from exchange.main import Exchange, build_venue, main, read_flags
from exchange.truth import Ledger, read_truth
from marketdata.errors import ConfigError
from tests.exchange_client import Keys, exchange


def flags_of(tmp_path: Path, *more: str) -> list[str]:
    return ["--truth", str(tmp_path / "truth"), "--public-key", str(tmp_path / "public.pem"), *more]


def test_flags_are_read_with_units(tmp_path: Path) -> None:
    """`max` is no rate; everything else is a number of times engine time."""
    flags = read_flags(flags_of(tmp_path, "--synthetic", "5", "--rate", "max", "--faults", "harsh"))
    assert (flags.rate, flags.synthetic, flags.faults) == (None, 5, FaultLevel.HARSH)
    assert read_flags(flags_of(tmp_path, "--synthetic", "5", "--rate", "2.5")).rate == 2.5


def test_all_wrong_flags_are_told_together(tmp_path: Path) -> None:
    """One message, not one fault a start."""
    wrong = ("--synthetic", "0", "--rate", "fast", "--seconds", "-1", "--tls-cert", "x")
    wrong += ("--start", "-1")
    with pytest.raises(ConfigError) as caught:
        read_flags(flags_of(tmp_path, *wrong))
    for part in ("--rate fast", "--synthetic 0", "--seconds -1.0", "--tls-key", "--start -1"):
        assert part in str(caught.value)


def test_seconds_cap_the_play_and_the_plan(tmp_path: Path) -> None:
    """Faults are spread over what is played, not over what was cut off."""
    base = flags_of(tmp_path, "--synthetic", "10", "--faults", "standard")
    half = build_venue(read_flags([*base, "--seconds", "30"]), Ledger())
    assert half.plan.span_us == 30_000_000
    assert half.plan.events_expected == 300


def test_the_exchanges_clock_begins_where_it_is_told(tmp_path: Path) -> None:
    """Who compares the tape's end with a clock needs a play in the present."""
    base = flags_of(tmp_path, "--synthetic", "2", "--seconds", "30", "--start", "1800000000")
    venue = build_venue(read_flags(base), Ledger())
    assert (venue.plan.start_us, venue.now_us) == (1_800_000_000_000_000,) * 2


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "no such file"), (b"{}\n", "is an object with the keys")],
)
def test_an_unusable_capture_is_exit_code_2_and_a_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, said: str
) -> None:
    """No traceback for a file the user gave."""
    Keys.make(tmp_path)
    capture = tmp_path / "a.jsonl"
    if content is not None:
        capture.write_bytes(content)
    assert main(flags_of(tmp_path, "--frames", str(capture))) == 2
    told = capsys.readouterr().err
    assert told.startswith("exchange: ")
    assert said in told.splitlines()[0]


def test_a_busy_port_is_a_plain_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The demo shows this line to its user."""
    import socket

    Keys.make(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(flags_of(tmp_path, "--synthetic", "1", "--port", port)) == 2
    assert "in use" in capsys.readouterr().err


async def test_sigterm_before_the_end_leaves_a_whole_truth_log(tmp_path: Path) -> None:
    """What was played is written; the exit code is 0."""
    flags = ("--synthetic", "20", "--rate", "20", "--expect-clients", "0")
    async with exchange(tmp_path, *flags) as running:
        status = await running.status()
        while status["events"] < 50:
            await asyncio.sleep(0.05)
            status = await running.status()
        assert running.ready["port"] > 0
        assert running.stop() == 0
    truth = read_truth(tmp_path / "truth")
    assert len(truth.events) >= 50
    assert json.loads((tmp_path / "truth" / "markets.json").read_text()) == truth.markets


async def test_the_exchange_stays_up_after_the_play(tmp_path: Path) -> None:
    """Gatherers are to end by themselves, not by losing the exchange."""
    async with exchange(tmp_path, "--synthetic", "2", "--seconds", "1", "--rate", "max") as running:
        status = await running.done()
        assert status["events"] > 0
        assert running.process.poll() is None
        assert (await running.status())["done"] is True


def test_help_needs_no_files() -> None:
    """`python -m exchange.main --help` is the documentation of the flags."""
    answer = subprocess.run(
        [sys.executable, "-m", "exchange.main", "--help"], capture_output=True, check=True
    )
    assert b"--expect-clients" in answer.stdout
    assert Exchange.__doc__
