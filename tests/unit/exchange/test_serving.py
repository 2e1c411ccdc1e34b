"""A venue behind one port: it ends when told to, and not quietly when the conductor fails."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from exchange.auth import Verifier
from exchange.conductor import Conductor
from exchange.rest import Rest
from exchange.server import Gate
from exchange.serving import Place, serve_venue
from tests.exchange_worlds import busy_source, make_venue


class Failing:
    """A conductor that breaks."""

    async def run(self) -> None:
        raise RuntimeError("broken")


class Waiting:
    """A conductor that never ends."""

    async def run(self) -> None:
        await asyncio.Event().wait()


async def serve(conductor: Failing | Waiting, stop: asyncio.Event, ports: list[int]) -> None:
    venue = make_venue(busy_source(2, 10))
    verifier = Verifier(rsa.generate_private_key(65537, 2048).public_key())

    def conduct(gate: Gate, port: int) -> Conductor:
        assert not gate.stopping
        ports.append(port)
        return cast(Conductor, conductor)

    application = Rest(venue, verifier, dict).application()
    await serve_venue(venue, verifier, application, Place("127.0.0.1", 0), conduct, stop)


async def test_a_conductors_failure_is_raised_again() -> None:
    with pytest.raises(RuntimeError, match="broken"):
        await serve(Failing(), asyncio.Event(), [])


async def test_it_listens_until_it_is_told_to_stop() -> None:
    stop, ports = asyncio.Event(), []
    serving = asyncio.create_task(serve(Waiting(), stop, ports))
    while not ports:  # noqa: ASYNC110 (another task fills it)
        await asyncio.sleep(0.01)
    _, writer = await asyncio.open_connection("127.0.0.1", ports[0])
    writer.close()
    stop.set()
    await serving
    with pytest.raises(OSError, match="Connect call failed"):
        await asyncio.open_connection("127.0.0.1", ports[0])
