"""Try TCP connections, all at once, from where this runs. Runs in a network namespace.

    python flow_probe.py listen PORT...             accept on every address until killed
    python flow_probe.py try SECONDS ADDRESS:PORT... print a JSON object: true where it was accepted

"Accepted" needs the listener's word, not only the handshake: nobody else may answer for it.
"""

from __future__ import annotations

import asyncio
import json
import sys

HELLO = b"here\n"


async def listen(ports: list[int]) -> None:
    """Say HELLO to everybody, for ever."""

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HELLO)
        await writer.drain()
        writer.close()

    for port in ports:
        await asyncio.start_server(greet, "0.0.0.0", port, reuse_address=True)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


async def attempt(place: str, timeout_s: float) -> bool:
    """Does somebody listen at ADDRESS:PORT, and may we?"""
    address, _, port = place.rpartition(":")
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(address, int(port))
            heard = await reader.read(len(HELLO))
            writer.close()
            return heard == HELLO
    except (OSError, TimeoutError):
        return False


async def attempts(timeout_s: float, places: list[str]) -> dict[str, bool]:
    """Every place, at once."""
    answers = await asyncio.gather(*(attempt(place, timeout_s) for place in places))
    return dict(zip(places, answers, strict=True))


if __name__ == "__main__":
    if sys.argv[1] == "listen":
        asyncio.run(listen([int(word) for word in sys.argv[2:]]))
    else:
        print(json.dumps(asyncio.run(attempts(float(sys.argv[2]), sys.argv[3:]))))
