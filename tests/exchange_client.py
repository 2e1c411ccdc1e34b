"""A plain client of the simulated exchange, for tests: signs, connects, subscribes, keeps frames.

Written with the `websockets` client and nothing of ours but the exchange itself, so that a fault of
the gatherer cannot hide one of the exchange.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import websockets
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

WS_PATH = "/trade-api/ws/v2"


@dataclass
class Keys:
    """A test key pair; the public half lies in `public_file`."""

    private: rsa.RSAPrivateKey
    public_file: Path

    @classmethod
    def make(cls, folder: Path) -> Keys:
        private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        public_file = folder / "public.pem"
        public_file.write_bytes(
            private.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )
        return cls(private, public_file)

    def headers(
        self, method: str, path: str, *, off_ms: int = 0, salt: int | None = None
    ) -> dict[str, str]:
        stamp = str(time.time_ns() // 1_000_000 + off_ms)
        signature = self.private.sign(
            f"{stamp}{method}{path}".encode(),
            padding.PSS(padding.MGF1(hashes.SHA256()), salt or padding.PSS.DIGEST_LENGTH),
            hashes.SHA256(),
        )
        return {
            "KALSHI-ACCESS-KEY": "7f9b0c4e-0000-4000-8000-000000000001",
            "KALSHI-ACCESS-TIMESTAMP": stamp,
            "KALSHI-ACCESS-SIGNATURE": base64.b64encode(signature).decode(),
        }


def private_pem(keys: Keys, file: Path) -> Path:
    """The private half as a file."""
    file.write_bytes(
        keys.private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    file.chmod(0o600)
    return file


@dataclass
class Session:
    """One connection's frames, in order of arrival."""

    handshake: str
    frames: list[dict[str, Any]] = field(default_factory=list)
    ended: str = ""


@dataclass
class Recorder:
    """Subscribes to books, trades and tickers of all markets; comes back when thrown out."""

    keys: Keys
    ws_url: str
    tickers: list[str]
    sessions: list[Session] = field(default_factory=list)
    refused: int = 0

    async def run(self) -> None:
        while True:
            await self._once()
            await asyncio.sleep(0.05)

    async def _once(self) -> None:
        headers = self.keys.headers("GET", WS_PATH)
        digest = hashlib.sha256(headers["KALSHI-ACCESS-SIGNATURE"].encode()).hexdigest()[:16]
        try:
            # Without a queue limit: else a send from the reading loop can wait for a close that
            # cannot be read.
            socket = await websockets.connect(
                self.ws_url,
                additional_headers=headers,
                compression=None,
                max_size=64 << 20,
                max_queue=None,
            )
        except (websockets.exceptions.WebSocketException, OSError):
            self.refused += 1
            return
        session = Session(digest)
        self.sessions.append(session)
        params = {"channels": ["orderbook_delta"], "market_tickers": self.tickers}
        others = {"channels": ["ticker", "trade"]}
        await socket.send(json.dumps({"id": 1, "cmd": "subscribe", "params": params}))
        await socket.send(json.dumps({"id": 2, "cmd": "subscribe", "params": others}))
        try:
            async for text in socket:
                frame = json.loads(text)
                session.frames.append(frame)
                if frame["type"] == "error" and frame["msg"]["code"] == 25:
                    again = {"id": 9, "cmd": "subscribe", "params": params}
                    await socket.send(json.dumps(again))
        except websockets.exceptions.ConnectionClosed as fault:
            session.ended = str(fault)


@dataclass
class Running:
    """A started exchange process."""

    process: subprocess.Popen[bytes]
    ready: dict[str, Any]
    truth: Path
    keys: Keys

    async def status(self) -> dict[str, Any]:
        url = self.ready["status_url"]
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            return await answer.json()

    async def done(self) -> dict[str, Any]:
        """The status once the play is over and every client has had time to read."""
        while True:
            status = await self.status()
            if status["done"]:
                await asyncio.sleep(0.3)
                return status
            await asyncio.sleep(0.05)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=20)


@asynccontextmanager
async def exchange(folder: Path, *flags: str) -> AsyncIterator[Running]:
    """Starts `python -m exchange.main` with a fresh key and truth directory."""
    keys = Keys.make(folder)
    ready_file, truth = folder / "ready.json", folder / "truth"
    process = subprocess.Popen(  # noqa: ASYNC220 (starting it takes no time)
        [
            *(sys.executable, "-m", "exchange.main", "--truth", str(truth)),
            *("--public-key", str(keys.public_file), "--ready-file", str(ready_file)),
            *flags,
        ],
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    try:
        while not ready_file.exists():
            if process.poll() is not None:
                raise RuntimeError(f"exchange ended with {process.returncode}")
            await asyncio.sleep(0.05)
        yield Running(process, json.loads(ready_file.read_bytes()), truth, keys)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(timeout=20)
