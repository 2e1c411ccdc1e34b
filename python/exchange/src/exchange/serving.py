"""A venue behind one port, from the first socket to the last.

Purpose: what every program around a venue does: listen, answer REST and WebSocket, let a conductor
play, and end all of it when told to stop or when the conductor fails.

Does not do: pacing (conductor, player), deciding what is played, files.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aiohttp import web

from exchange.auth import Verifier
from exchange.conductor import Conductor
from exchange.server import Client, Gate
from exchange.venue import Venue
from marketdata.errors import ConfigError

STOP_WAIT_S: Final = 2.0  # for clients to answer the close


@dataclass(frozen=True, slots=True)
class Place:
    """Where to listen. Port 0: any."""

    host: str
    port: int
    tls: ssl.SSLContext | None = None


def tls_context(files: tuple[Path, Path] | None) -> ssl.SSLContext | None:
    """Of (certificate, key); ConfigError where they cannot be used."""
    if files is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(*files)
    except (OSError, ssl.SSLError) as fault:
        raise ConfigError(f"TLS certificate or key cannot be used: {fault}") from None
    return context


async def serve_venue(
    venue: Venue,
    verifier: Verifier,
    application: web.Application,
    place: Place,
    conduct: Callable[[Gate, int], Conductor],
    stop: asyncio.Event,
) -> None:
    """Serves until `stop` is set. `conduct` is given the gate and the port, once it listens."""
    runner = web.AppRunner(application, access_log=None)
    try:
        await runner.setup()
        rest_server = runner.server
        assert rest_server is not None
        gate = Gate(venue, verifier, rest_server)
        server = await asyncio.get_running_loop().create_server(
            lambda: Client(gate), place.host, place.port, ssl=place.tls
        )
        try:
            await _play(gate, conduct(gate, server.sockets[0].getsockname()[1]), stop)
        finally:
            server.close()
            await _clients_gone(gate)
    finally:
        await runner.cleanup()


async def _play(gate: Gate, conductor: Conductor, stop: asyncio.Event) -> None:
    """Conducts until `stop`; a failure of the conductor is raised again."""
    playing = asyncio.create_task(conductor.run())
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait((playing, stopping), return_when=asyncio.FIRST_COMPLETED)
    gate.stopping = True
    for task in (playing, stopping):
        task.cancel()
    ends = await asyncio.gather(playing, stopping, return_exceptions=True)
    for client in list(gate.clients.values()):
        client.close()
    if isinstance(ends[0], Exception):
        raise ends[0]


async def _clients_gone(gate: Gate) -> None:
    waited_s = 0.0
    while gate.clients and waited_s < STOP_WAIT_S:
        await asyncio.sleep(0.02)
        waited_s += 0.02
