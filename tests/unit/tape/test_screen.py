"""The live screen shows what the services say, and says so when one does not answer."""

from __future__ import annotations

import io

from aiohttp import ClientSession, web
from rich.console import Console

from tape.fleet import Fleet, free_port
from tape.screen import Readings, plain_line, poll, render
from tests.unit.tape.test_fleet import plan


def text_of(readings: Readings) -> str:
    console = Console(record=True, width=160, file=io.StringIO())
    console.print(render(readings, 12.0))
    return console.export_text()


def test_numbers_of_every_part_stand_on_the_screen() -> None:
    """Rates, gaps, quarantine and what the merge waits for are visible at a glance."""
    readings = Readings(
        exchange={"events": 1234567, "start_us": 10, "virtual_us": 20, "end_us": 30, "conns": 4},
        gatherers={"g1": {"state": "ok", "frames": 1000, "gaps": 3}},
        dedup={"rows_merged": 77, "quarantined": 2, "waiting_for": "g2: its commits"},
        phase="recording",
    )
    text = text_of(readings)
    for expected in ("1,234,567", "g1", "1,000", "77", "g2: its commits", "recording"):
        assert expected in text
    assert "50%" in plain_line(readings, 3.0)


async def test_a_part_that_does_not_answer_is_shown_as_down(tmp_path) -> None:
    """A dead gatherer must not freeze or crash the screen."""
    application = web.Application()

    async def status(_: web.Request) -> web.Response:
        return web.json_response({"events": 5})

    application.router.add_get("/sim/status", status)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    fleet = Fleet(plan(tmp_path))
    fleet.ports = {"exchange": runner.addresses[0][1], "g1": free_port()}
    readings = Readings()
    async with ClientSession() as http:
        await poll(fleet, http, readings)
    await runner.cleanup()
    assert readings.exchange == {"events": 5}
    assert readings.gatherers["g1"] == {"state": "down"}
    assert "down" in text_of(readings)
