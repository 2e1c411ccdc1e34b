"""`tape demo`: record, merge and prove a tape on this machine, with faults on purpose.

Starts embedded PostgreSQL (two clusters a gatherer, one for production), a simulated exchange that
replays a recorded capture or makes up a market, the gatherers, the deduplicator and a lake in a
folder; injects faults and kills; ends with the proof: the merged tape against the exchange's own
log.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import orjson
import typer
from rich.console import Console
from rich.table import Table

from marketdata.errors import StorageError, TapeError
from tape import proof, prove, screen
from tape.fleet import DemoPlan, Fleet, running_fleet
from tape.killer import Kill, plan_kills

PLAY_TIMEOUT_S = 1800.0
FINISH_TIMEOUT_S = 600.0
RETURN_TIMEOUT_S = 60.0
SETTLE_S = 1.0  # after the last frame was sent: time for it to be read
DATABASE_DOWN_S = 0.5  # a killed database stays away this long
DISK_FREE_BYTES_MIN = 2 << 30
FAULTS = ("none", "standard", "harsh")

# What must be 0 for the proof to hold.
ZEROS = (
    "missing", "extra", "misordered", "false_complete", "audits_failed", "books_wrong",
    "tickers_missing", "trades_missing", "trades_extra",
)  # fmt: skip


async def carry_out_kill(fleet: Fleet[DemoPlan], target: str) -> None:
    """kill -9 of a service (its watcher restarts it) or of a database server (restarted here)."""
    if target in fleet.databases:
        database = fleet.databases[target]
        database.kill()
        await asyncio.sleep(DATABASE_DOWN_S)
        await database.start()
    else:
        child = fleet.children[target]
        while not child.kill():  # it may be between death and restart
            if child.finished:
                return
            await asyncio.sleep(0.05)


async def run_kills(
    fleet: Fleet[DemoPlan], kills: list[Kill], readings: screen.Readings, play_over: asyncio.Event
) -> None:
    """Carry out the plan as the play goes on; what the play left over comes at its end."""
    for kill in kills:
        while not play_over.is_set() and readings.progress < kill.at:  # noqa: ASYNC110 - a reading
            await asyncio.sleep(0.05)
        await carry_out_kill(fleet, kill.target)
        readings.kills += 1


async def wait_for_play(fleet: Fleet[DemoPlan], readings: screen.Readings) -> None:
    """Until the exchange has sent everything and it was read."""
    deadline = time.monotonic() + PLAY_TIMEOUT_S
    while not readings.exchange.get("done"):
        if fleet.children["exchange"].finished:
            raise StorageError(f"the exchange ended early: {fleet.children['exchange'].log_tail()}")
        for name in (*fleet.gatherer_names, "dedup"):
            if fleet.children[name].finished and fleet.children[name].exit_code:
                raise StorageError(f"{name} gave up: {fleet.children[name].log_tail()}")
        if time.monotonic() > deadline:
            raise StorageError(f"the play did not end within {PLAY_TIMEOUT_S:.0f} s")
        await asyncio.sleep(0.1)
    await asyncio.sleep(SETTLE_S)


async def wait_until_answering(fleet: Fleet[DemoPlan], names: list[str]) -> None:
    """Until every named service answers on its health port: one that was killed is back by then."""
    deadline = time.monotonic() + RETURN_TIMEOUT_S
    timeout = aiohttp.ClientTimeout(total=screen.POLL_TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout) as http:
        for name in names:
            while not await screen.answers(http, fleet.url(name, "/health")):
                if time.monotonic() > deadline or fleet.children[name].finished:
                    raise StorageError(
                        f"{name} did not come back: {fleet.children[name].log_tail()}"
                    )
                await asyncio.sleep(0.1)


async def run_fleet(plan: DemoPlan, kill_count: int, console: Console) -> dict[str, Any]:
    """Run everything to its end. Returns the counters that only the services know."""
    readings, stop, play_over = screen.Readings(), asyncio.Event(), asyncio.Event()
    async with running_fleet(plan) as fleet:
        readings.phase = "recording"
        console.print(f"status page: {fleet.url('dedup', '/')}", highlight=False, soft_wrap=True)
        drawing = asyncio.create_task(screen.show(fleet, readings, console, stop))
        targets = [*fleet.gatherer_names, "dedup", *fleet.databases]
        kills = plan_kills(kill_count, targets, plan.seed)
        early = [k for k in kills if k.at <= 1.0]
        killing = asyncio.create_task(run_kills(fleet, early, readings, play_over))
        try:
            await wait_for_play(fleet, readings)
            play_over.set()
            await killing
            await wait_until_answering(fleet, fleet.gatherer_names)
            readings.phase = "finishing"
            codes = await asyncio.gather(*(fleet.children[g].stop() for g in fleet.gatherer_names))
            for name, code in zip(fleet.gatherer_names, codes, strict=True):
                if code:
                    raise StorageError(
                        f"{name} ended with code {code}: {fleet.children[name].log_tail()}"
                    )
            await run_kills(fleet, [k for k in kills if k.at > 1.0], readings, play_over)
            code = await fleet.children["dedup"].wait(FINISH_TIMEOUT_S)
            if code:
                raise StorageError(
                    f"the deduplicator ended with code {code}: {fleet.children['dedup'].log_tail()}"
                )
            await fleet.children["exchange"].stop()
            counters = await prove.read_counters(fleet)
        finally:
            stop.set()
            killing.cancel()
            await asyncio.gather(drawing, killing, return_exceptions=True)
    counters["restarts"] = sum(c.restarts for c in fleet.children.values())
    return counters


def check_place(out: Path) -> None:
    """Refuse at once what would fail later: no room, or a folder with something else in it."""
    if out.exists() and any(out.iterdir()):
        raise StorageError(f"the folder {out} is not empty", hint="name a new one with --out")
    out.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(out).free
    if free < DISK_FREE_BYTES_MIN:
        raise StorageError(
            f"{out} has {free >> 20} MiB free, {DISK_FREE_BYTES_MIN >> 20} MiB are needed",
            hint="free some room or name another place with --out",
        )


def check_words(frames: Path | None, faults: str, merge: str) -> None:
    """Refuse options that name nothing. Raises TapeError."""
    if faults not in FAULTS or merge not in ("runs", "content"):
        raise TapeError("--faults is none, standard or harsh; --merge is runs or content")
    if frames is not None and not frames.exists():
        raise TapeError(f"there is no capture at {frames}")


def print_proof(result: dict[str, Any], verdict: proof.Verdict, console: Console) -> None:
    """The proof as a table, and what was found in words."""
    table = Table(title="Proof: the merged tape against the exchange's own log", min_width=60)
    table.add_column("number")
    table.add_column("value", justify="right")
    table.add_column("")
    for key, value in result.items():
        mark = ("ok" if value == 0 else "WRONG") if key in ZEROS else ""
        table.add_row(key, f"{value:,}" if isinstance(value, int) else str(value), mark)
    console.print(table)
    for line in verdict.examples:
        console.print(line, highlight=False)


async def demo_once(
    plan: DemoPlan, kills: int, console: Console
) -> tuple[dict[str, Any], proof.Verdict]:
    """Run and prove. Returns the JSON object of `--json` and the verdict."""
    begun = time.monotonic()
    loop, me = asyncio.get_running_loop(), asyncio.current_task()
    if me is not None:
        loop.add_signal_handler(signal.SIGTERM, me.cancel)
    counters = await run_fleet(plan, kills, console)
    seconds = time.monotonic() - begun
    console.print("proving: reading spools, truth log and lake", highlight=False)
    verdict, frames = await asyncio.to_thread(prove.prove, plan.out)
    found = asdict(verdict)
    order = (
        "events_truth", "events_merged", "missing", "extra", "misordered", "quarantined",
        "ambiguous", "false_complete", "gap_intervals", "audits", "audits_failed",
        "books_checked", "books_wrong", "tickers_missing", "trades_missing",
        "trades_extra", "trades_by_rest",
    )  # fmt: skip
    merged = {**found, **counters}
    result: dict[str, Any] = {key: merged[key] for key in order}
    result["seconds"] = round(seconds, 1)
    result["frames_per_s"] = round(frames / seconds)
    result["kills"] = kills
    result["restarts"] = counters["restarts"]
    return result, verdict


def demo(
    frames: Annotated[
        Path | None, typer.Option(help="recorded capture: a file or a folder")
    ] = None,
    synthetic: Annotated[int, typer.Option(help="markets of a made-up exchange")] = 0,
    rate: Annotated[str, typer.Option(help="multiple of recorded speed, or max")] = "",
    seconds: Annotated[
        float, typer.Option(help="stop after so many seconds of play; 0: all")
    ] = 0.0,
    faults: Annotated[str, typer.Option(help="none, standard or harsh")] = "standard",
    seed: Annotated[int, typer.Option(help="faults, kills and the made-up exchange")] = 1,
    gatherers: Annotated[int, typer.Option(min=1, max=8)] = 3,
    out: Annotated[Path | None, typer.Option(help="keep everything here")] = None,
    merge: Annotated[str, typer.Option(help="runs; content is the negative control")] = "runs",
    kill: Annotated[int, typer.Option(help="kill -9 so many random processes")] = 0,
    transport: Annotated[str, typer.Option(help="picows or websockets")] = "picows",
    window_ms: Annotated[int, typer.Option(help="merge window, exchange time")] = 5000,
    json_line: Annotated[  # noqa: FBT002 - typer makes the flag of it
        bool, typer.Option("--json", help="one JSON object as the last line")
    ] = False,
) -> None:
    """Record, merge and prove a tape on this machine."""
    console = Console(stderr=json_line)
    folder = out if out is not None else Path(tempfile.mkdtemp(prefix="kalshi-tape-"))
    if out is None:
        folder.chmod(0o711)  # the servers' account must be able to reach its own folders in it
    if frames is None and synthetic == 0:
        synthetic, seconds, rate = 200, seconds or 20.0, rate or "1"
    code = 1
    try:
        check_words(frames, faults, merge)
        check_place(folder)
        plan = DemoPlan(
            out=folder.resolve(), frames=frames.resolve() if frames else None, synthetic=synthetic,
            rate=rate or ("max" if frames else "1"), seconds=seconds, faults=faults, seed=seed,
            gatherers=gatherers, merge=merge, transport=transport, window_ms=window_ms,
        )  # fmt: skip
        result, verdict = asyncio.run(demo_once(plan, kill, console))
        print_proof(result, verdict, console)
        code = 0 if all(result[key] == 0 for key in ZEROS) else 1
        if json_line:
            sys.stdout.write(orjson.dumps(result).decode() + "\n")
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print("stopped; everything was shut down", highlight=False)
        code = 130
    except TapeError as error:
        console.print(f"error: {error}", highlight=False, markup=False)
        code = 2
    finally:
        if out is None:
            shutil.rmtree(folder, ignore_errors=True)
    raise typer.Exit(code)
