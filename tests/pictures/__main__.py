"""`make pictures`: what the commands and the guide show of a recorded capture, for docs/pictures.

A demo of one recorded capture under harsh faults is kept; the guide's blocks are run over its lake
(price.png), and each command below is run on a terminal of its own, as a reader would (one SVG a
screen, docs/screens.md). The pictures are looked at before they are committed.
"""

from __future__ import annotations

import argparse
import fcntl
import io
import os
import pty
import re
import shlex
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

from rich.console import Console
from rich.text import Text

from kalshilake import Lake, open_lake
from tests.guide.test_guide import blocks, run
from tests.recorded import recorded

ROOT = Path(__file__).resolve().parents[2]
PICTURES = ROOT / "docs" / "pictures"
COLUMNS, LINES = 112, 60
CAPTURE = "kxbtc15m_20260513T215132Z"  # the one of docs/plots.md
NOT_COLOUR = re.compile(r"\x1b\[[0-9;?]*[A-Za-ln-z]|\x1b\][^\x07]*\x07")
FONT = re.compile(r"@font-face\s*\{[^}]*\}\s*")  # of somebody else's server


def demo(folder: Path) -> Path:
    """The lake of a recorded capture after a demo under harsh faults."""
    frames = next(p for p in sorted(recorded("ws_btc15m").glob("*.jsonl.gz")) if CAPTURE in p.name)
    tape = [sys.executable, "-m", "tape.main", "demo", "--frames", str(frames), "--rate", "max"]
    subprocess.run([*tape, "--faults", "harsh", "--kill", "2", "--out", str(folder)], check=True)
    return folder / "lake"


def busiest(lake: Lake) -> str:
    """The market with the most changes."""
    rows = lake.deltas(on_gap="ignore", columns=["market_ticker"])
    counts = rows.column("market_ticker").value_counts().to_pylist()
    return str(max(counts, key=lambda c: c["counts"])["values"])


def on_a_terminal(command: list[str], folder: Path) -> str:
    """What a command writes to a terminal, with its colours; what it drew over is left out."""
    pid, handle = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.environ.update(TERM="xterm-256color", COLORTERM="truecolor", COLUMNS=str(COLUMNS))
        os.execv(sys.executable, [sys.executable, "-m", "tape.main", *command[1:]])
    fcntl.ioctl(handle, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    seen = b""
    while True:
        try:
            more = os.read(handle, 65_536)
        except OSError:
            break
        if not more:
            break
        seen += more
    os.waitpid(pid, 0)
    os.close(handle)
    lines = NOT_COLOUR.sub("", seen.decode().replace("\r\n", "\n")).split("\n")
    return "\n".join(line.rpartition("\r")[2] for line in lines).rstrip("\n")


def screen(name: str, command: list[str], folder: Path) -> None:
    """One command and its answer as a picture."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text("$ " + shlex.join(command), style="bold"))
    console.print(Text.from_ansi(on_a_terminal(command, folder)))
    made = FONT.sub("", console.export_svg(title=command[1], unique_id=f"tape-{name}"))
    (PICTURES / f"screen-{name}.svg").write_text(made.replace("Fira Code", "monospace"))


def main() -> int:
    """Draws everything."""
    parser = argparse.ArgumentParser(prog="python -m tests.pictures", description=__doc__)
    parser.add_argument("--kept", type=Path, help="a folder of `tape demo --out` that is there")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tape").mkdir()
        made = asked.kept / "lake" if asked.kept else demo(folder / "demo")
        shutil.copytree(made, folder / "tape" / "lake")
        market = busiest(open_lake(made))
        before = Path.cwd()
        os.chdir(folder)
        run([block.replace("market = markets[0]", f"market = {market!r}") for block in blocks()])
        shutil.copy("price.png", PICTURES / "price.png")
        os.chdir(before)
        for screen_name, words in SCREENS.items():
            screen(screen_name, ["tape", *(w.replace("MARKET", market) for w in words)], folder)
    return 0


HERE = "tape/lake"
SCREENS = {
    "coverage": ["coverage", HERE],
    "markets": ["markets", HERE],
    "book": ["book", HERE, "MARKET"],
    "books": [
        "books",
        HERE,
        "MARKET",
        "--from",
        "2026-05-13T22:01Z",
        "--every",
        "30s",
        "--limit",
        "8",
        "--on-gap",
        "column",
    ],
    "bars": ["bars", HERE, "MARKET", "--source", "bid", "--every", "1m", "--on-gap", "ignore"],
    "quotes": [
        "quotes",
        HERE,
        "MARKET",
        "--from",
        "2026-05-13T22:02Z",
        "--limit",
        "6",
        "--on-gap",
        "ignore",
    ],
    "sql": ["sql", HERE, "SELECT coverage, count(*) AS n FROM orderbook_deltas_covered GROUP BY 1"],
    "verify": ["verify", HERE],
}

if __name__ == "__main__":
    sys.exit(main())
