"""`tape exchange`: the simulated exchange as a place to try everything on, without a key.

Purpose: make a key, start the exchange on this machine, and say what to type in another terminal.
It speaks the exchange's protocol, so other clients can be tried on it too (docs/assumptions.md says
what it does not do). Its truth log says what really happened.
Does not do: playing (exchange), recording (capture).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from exchange.main import main as play
from exchange.main import read_flags
from marketdata.errors import ConfigError
from tape.fleet import write_test_key
from tape.output import guarded

KEY_ID = "simulated"


def exchange(
    out: Annotated[Path, typer.Option(help="folder of the key and of the truth log")] = Path("sim"),
    port: Annotated[int, typer.Option(min=1, max=65_535, help="on the loopback interface")] = 8765,
    markets: Annotated[int, typer.Option(min=1, help="made-up markets")] = 200,
    frames: Annotated[
        Path | None, typer.Option(help="instead: a recorded capture, or a directory of them")
    ] = None,
    seconds: Annotated[int, typer.Option(min=1, help="how long it plays")] = 3600,
    rate: Annotated[str, typer.Option(help="multiple of its own time, or max")] = "1",
    faults: Annotated[str, typer.Option(help="none, standard or harsh")] = "standard",
    seed: Annotated[int, typer.Option(help="the same play again")] = 1,
) -> None:
    """Run the simulated exchange until stopped; it says how to record it."""

    def run() -> int:
        made = settings(out, port, markets, frames, seconds, rate, faults, seed)
        sys.stdout.write(words(out, port))
        sys.stdout.flush()
        return play(made)

    raise typer.Exit(guarded(run))


def settings(
    out: Path, port: int, markets: int, frames: Path | None, seconds: int, rate: str, faults: str,
    seed: int,
) -> list[str]:  # fmt: skip
    """The exchange's own flags. The key pair is made once. Raises ConfigError."""
    if faults not in ("none", "standard", "harsh"):
        raise ConfigError(f"--faults {faults} is none of none, standard, harsh")
    private, public = out / "private.pem", out / "public.pem"
    try:
        if not private.exists() or not public.exists():
            write_test_key(out)
    except OSError as error:
        raise ConfigError(f"{out} cannot be used: {error.strerror}") from None
    source = ["--frames", str(frames)] if frames is not None else ["--synthetic", str(markets)]
    made = [
        *source, "--seconds", str(seconds), "--rate", rate, "--faults", faults, "--seed", str(seed),
        "--port", str(port), "--public-key", str(public), "--truth", str(out / "truth"),
    ]  # fmt: skip
    read_flags(made)
    return made


def words(out: Path, port: int) -> str:
    """What to type in another terminal."""
    at = f"127.0.0.1:{port}/trade-api"
    flags = (
        f"--key-id {KEY_ID} --key-file {out / 'private.pem'}"
        f" --ws-url ws://{at}/ws/v2 --rest-url http://{at}/v2"
    )
    return (
        f"The simulated exchange plays on port {port} until Ctrl-C. In another terminal:\n\n"
        f"  tape doctor  {flags}\n  tape capture {flags} --out tape\n\n"
    )
