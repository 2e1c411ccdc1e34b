"""Each check of the doctor, well and ill, against the simulated exchange or a stub with a date."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tape import doctor
from tape.capture_config import CaptureConfig
from tape.doctor import (
    check_clock,
    check_database,
    check_disk,
    check_key,
    check_machine,
    check_signature,
    examine,
)
from tape.fleet import KEY_ID, write_test_key
from tests.exchange_client import exchange, private_pem


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return write_test_key(tmp_path / "keys")[0]


def config(tmp_path: Path, **more: Any) -> CaptureConfig:
    given = {
        "key_id": KEY_ID,
        "key_file": tmp_path / "keys" / "private.pem",
        "out": tmp_path / "tape",
        "ws_url": "ws://127.0.0.1:1/trade-api/ws/v2",
        "rest_url": "http://127.0.0.1:1/trade-api/v2",
        **more,
    }
    return CaptureConfig(**given)


@asynccontextmanager
async def answering(offset_s: float) -> AsyncIterator[str]:
    """A REST address whose clock is off."""

    async def answer(_: web.Request) -> web.Response:
        date = format_datetime(datetime.now(UTC) + timedelta(seconds=offset_s), usegmt=True)
        return web.json_response({}, headers={"Date": date})

    app = web.Application()
    app.router.add_get("/{rest:.*}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/trade-api/v2"
    finally:
        await runner.cleanup()


def test_a_key_is_read_and_must_be_ours_alone(tmp_path: Path, key: Path) -> None:
    assert asyncio.run(check_key(config(tmp_path))).state == "ok"
    key.chmod(0o644)
    told = asyncio.run(check_key(config(tmp_path)))
    assert (told.state, told.do) == ("warning", f"chmod 600 {key}")
    key.write_text("no key")
    told = asyncio.run(check_key(config(tmp_path)))
    assert told.state == "failed"
    assert "\n" not in told.said
    gone = asyncio.run(check_key(config(tmp_path, key_file=tmp_path / "nowhere.pem")))
    assert "nowhere.pem" in gone.said
    assert "--key-file" in gone.do


@pytest.mark.parametrize(("offset_s", "state"), [(0, "ok"), (-3, "warning"), (3600, "failed")])
async def test_a_clock_that_is_off_is_told(
    tmp_path: Path, key: Path, offset_s: float, state: str
) -> None:
    del key
    async with answering(offset_s) as url:
        told = await check_clock(config(tmp_path, rest_url=url))
    assert (told.check, told.state) == ("clock", state)
    assert ("timedatectl" in told.do) == (state != "ok")


async def test_without_a_network_nothing_more_is_tried(tmp_path: Path, key: Path) -> None:
    del key
    found = await examine(config(tmp_path), (check_key, check_clock, check_signature))
    assert [(f.check, f.state) for f in found] == [("key", "ok"), ("network", "failed")]
    assert "check the network" in found[1].do


async def test_the_exchange_says_whether_the_key_is_right(tmp_path: Path, key: Path) -> None:
    """Against the simulated exchange, which verifies signatures as the real one does."""
    del key
    flags = ("--synthetic", "5", "--seconds", "60", "--rate", "1", "--faults", "none")
    async with exchange(tmp_path, *flags, "--expect-clients", "1") as running:
        at = {
            "ws_url": running.ready["ws_url"],
            "rest_url": running.ready["rest_url"],
        }
        told = await check_signature(config(tmp_path, **at))
        assert told.state == "failed", "the key of this test is not the exchange's"
        assert "401" in told.said
        assert "--key-id" in told.do
        private_pem(running.keys, tmp_path / "keys" / "private.pem")
        assert (await check_signature(config(tmp_path, **at))).state == "ok"
        assert (await check_clock(config(tmp_path, **at))).state == "ok"
        running.stop()


async def test_disk_has_room_and_may_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    for free, state in ((1 << 30, "failed"), (5 << 30, "warning"), (500 << 30, "ok")):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, f=free: usage._replace(free=f))
        told = await check_disk(config(tmp_path))
        assert told.state == state
        assert bool(told.do) == (state != "ok")
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "cannot be written" in (await check_disk(config(tmp_path))).said


async def test_machine_and_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await check_database(config(tmp_path))).state == "ok"
    monkeypatch.setattr(doctor, "MEMORY_MIN_BYTES", 1 << 60)
    assert (await check_machine(config(tmp_path))).state == "warning"
    monkeypatch.setattr(doctor, "MEMORY_MIN_BYTES", 1)
    monkeypatch.setattr(doctor, "FILES_MIN", 1 << 60)
    assert "ulimit" in (await check_machine(config(tmp_path))).do
    monkeypatch.setattr(doctor, "FILES_MIN", 1)
    assert (await check_machine(config(tmp_path))).state == "ok"


def test_the_command_shows_a_table_or_json_and_its_code(run, tmp_path: Path, key: Path) -> None:
    """Without a network: code 1. Settings that are none: code 2."""
    file = tmp_path / "c.toml"
    file.write_text(
        'ws_url = "ws://127.0.0.1:1/"\nrest_url = "http://127.0.0.1:1"\n'
        f'key_id = "x"\nkey_file = "{key}"\nout = "{tmp_path / "tape"}"\n'
    )
    code, out, _ = run("doctor", "--config", file)
    assert code == 1
    assert "check the network" in " ".join(out.split())
    code, out, _ = run("doctor", "--config", file, "--json")
    told = {finding["check"]: finding["state"] for finding in json.loads(out)}
    assert (code, told["network"], told["key"], told["database"]) == (1, "failed", "ok", "ok")
    code, _, err = run("doctor", "--env", "moon")
    assert code == 2
    assert "env = 'moon'" in err
