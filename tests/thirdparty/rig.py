"""A started exchange behind its own names, and clients in processes of their own environment."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from tests.exchange_client import Running, exchange, private_pem
from tests.thirdparty.stage import Authority, Proxy, make_authority, proxy

CLIENTS = Path(__file__).resolve().parent / "clients"
KEY_ID = "7f9b0c4e-0000-4000-8000-000000000001"
CLIENT_WAIT_S = 120


@dataclass
class Client:
    """A running client program: answers one JSON line on stdout when told to end."""

    process: asyncio.subprocess.Process

    async def answer(self, told: str = "") -> tuple[dict[str, Any], str]:
        """(what it printed, its log); fails with the log if it ended badly."""
        async with asyncio.timeout(CLIENT_WAIT_S):
            out, log = await self.process.communicate(told.encode())
        text = log.decode()
        if self.process.returncode != 0:
            raise AssertionError(f"the client ended with {self.process.returncode}:\n{text}")
        answered: dict[str, Any] = json.loads(out)
        return answered, text


@dataclass
class Stage:
    """The exchange, the proxy before it, and what a client needs to come through."""

    running: Running
    authority: Authority
    proxy: Proxy
    folder: Path
    python: str

    def environment(self) -> dict[str, str]:
        """Nothing of this process but where programs are; no address of the exchange."""
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.folder),
            "HTTPS_PROXY": f"http://127.0.0.1:{self.proxy.port}",
            "SSL_CERT_FILE": str(self.authority.root),
            "KALSHI_API_KEY_ID": KEY_ID,
            "KALSHI_PRIVATE_KEY_PATH": str(self.folder / "private.pem"),
        }

    async def start(self, program: str, *arguments: str) -> Client:
        """Starts a program of `clients/` in the environment of the clients."""
        process = await asyncio.create_subprocess_exec(
            self.python,
            str(CLIENTS / program),
            *arguments,
            env=self.environment(),
            cwd=self.folder,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=1 << 26,
        )
        return Client(process)

    async def done(self) -> dict[str, Any]:
        """The exchange's status once the play is over and read."""
        context = ssl.create_default_context(cafile=str(self.authority.root))
        url = self.running.ready["status_url"]
        async with aiohttp.ClientSession() as session:
            while True:
                async with session.get(url, ssl=context) as answer:
                    status: dict[str, Any] = await answer.json()
                if status["done"]:
                    return status
                await asyncio.sleep(0.05)


@asynccontextmanager
async def stage(folder: Path, *flags: str) -> AsyncIterator[Stage]:
    """An exchange with TLS under its own names; only as fast as its clients read."""
    python = os.environ.get("KT_THIRDPARTY_PYTHON")
    if not python:
        raise AssertionError("KT_THIRDPARTY_PYTHON is not set\nhint: run make thirdparty")
    authority = make_authority(folder)
    tls = ("--tls-cert", str(authority.certificate), "--tls-key", str(authority.key))
    async with exchange(folder, *flags, "--rate", "max", *tls) as running:
        private_pem(running.keys, folder / "private.pem")
        async with proxy(running.ready["port"]) as between:
            yield Stage(running, authority, between, folder, python)
