"""The socket shell: upgrades, refusals, pings, big frames, TLS, slow readers."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import websockets
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID
from websockets.frames import Frame, Opcode

from exchange.server import text_header
from tests.exchange_client import WS_PATH, Keys, Running, exchange


@pytest.mark.parametrize("length", [0, 125, 126, 65_535, 65_536, 1 << 24])
def test_the_frame_header_is_the_library_s_own(length: int) -> None:
    """Frames are written without the library for speed; the bytes must be the same."""
    payload = b"x" * length
    whole = Frame(Opcode.TEXT, payload).serialize(mask=False)
    assert text_header(length) + payload == whole


async def connect(running: Running, **more: Any) -> websockets.ClientConnection:
    headers = more.pop("headers", None) or running.keys.headers("GET", WS_PATH)
    return await websockets.connect(
        running.ready["ws_url"],
        additional_headers=headers,
        max_size=64 << 20,
        **{"compression": None, **more},
    )


async def subscribe(client: websockets.ClientConnection, tickers: list[str]) -> None:
    params = {"channels": ["orderbook_delta"], "market_tickers": tickers}
    await client.send(json.dumps({"id": 1, "cmd": "subscribe", "params": params}))


async def test_upgrades_are_refused_with_the_reason(tmp_path: Path) -> None:
    """401 with the exchange's code for signatures, 404 for a wrong path."""
    other = tmp_path / "other"
    other.mkdir()
    stranger = Keys.make(other)
    async with exchange(tmp_path, "--synthetic", "1") as running:
        refusals = {}
        for name, headers in (
            ("stranger", stranger.headers("GET", WS_PATH)),
            ("stale", running.keys.headers("GET", WS_PATH, off_ms=-60_000)),
            ("unsigned", {"X-Nothing": "1"}),
        ):
            with pytest.raises(websockets.exceptions.InvalidStatus) as caught:
                await connect(running, headers=headers)
            response = caught.value.response
            refusals[name] = (response.status_code, json.loads(response.body)["error"]["code"])
        assert refusals == {
            "stranger": (401, "INCORRECT_API_KEY_SIGNATURE"),
            "stale": (401, "header_timestamp_expired"),
            "unsigned": (401, "authentication_error"),
        }
        running.ready["ws_url"] += "/elsewhere"
        with pytest.raises(websockets.exceptions.InvalidStatus) as caught:
            await connect(running)
        assert caught.value.response.status_code == 404


async def test_a_client_with_compression_and_fragments_is_understood(tmp_path: Path) -> None:
    """What a client offers or splits is its own choice; answers are plain text frames."""
    async with exchange(tmp_path, "--synthetic", "1") as running:
        client = await connect(running, compression="deflate")
        command = json.dumps({"id": 3, "cmd": "list_subscriptions"})
        await client.send([command[:5], command[5:20], command[20:]])
        assert json.loads(await client.recv()) == {"id": 3, "type": "ok", "msg": []}
        pong = await client.ping()
        await pong
        await client.close()


async def test_bytes_that_are_no_request_harm_nobody(tmp_path: Path) -> None:
    """A port scanner, an endless head, a half-open connection: the exchange goes on."""
    async with exchange(tmp_path, "--synthetic", "1") as running:
        for data in (b"\x00" * 100_000, b"GET", b"NONSENSE\r\n\r\n"):
            with socket.create_connection(("127.0.0.1", running.ready["port"])) as raw:
                raw.sendall(data)
        assert (await running.status())["conns"] == 0
        client = await connect(running)
        await client.close()


async def test_a_slow_reader_slows_the_exchange_and_loses_nothing(tmp_path: Path) -> None:
    """Full speed means as fast as the slowest connected client reads; nothing is dropped."""
    flags = ("--synthetic", "50", "--seconds", "40", "--rate", "max", "--expect-clients", "1")
    async with exchange(tmp_path, *flags) as running:
        client = await connect(running, max_queue=4)
        await subscribe(client, json.loads((running.truth / "markets.json").read_bytes()))
        status = await running.status()
        while status["waiting_for"] != "slow client":
            await asyncio.sleep(0.02)
            status = await running.status()
        await asyncio.sleep(0.3)
        held = (await running.status())["events"]
        assert held < status["events_expected"] / 2
        seqs: list[int] = []
        async with asyncio.timeout(60):
            while not (await running.status())["done"]:
                for _ in range(200):
                    try:
                        text = await asyncio.wait_for(client.recv(), 0.2)
                    except TimeoutError:
                        break
                    frame = json.loads(text)
                    if "seq" in frame:
                        seqs.append(frame["seq"])
        assert seqs == list(range(1, len(seqs) + 1))
        assert (await running.status())["conns"] == 1
        await client.close()


def self_signed(folder: Path) -> tuple[Path, Path]:
    keys = Keys.make(folder)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(keys.private.public_key())
        .serial_number(1)
        .not_valid_before(datetime.now(UTC) - timedelta(days=1))
        .not_valid_after(datetime.now(UTC) + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(keys.private, hashes.SHA256())
    )
    cert_file, key_file = folder / "cert.pem", folder / "key.pem"
    cert_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        keys.private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return cert_file, key_file


async def test_tls_works_for_upgrades(tmp_path: Path) -> None:
    """The benchmark measures over TLS too."""
    folder = tmp_path / "tls"
    folder.mkdir()
    cert_file, key_file = self_signed(folder)
    tls = ("--tls-cert", str(cert_file), "--tls-key", str(key_file))
    async with exchange(tmp_path, "--synthetic", "1", *tls) as running:
        context = ssl.create_default_context(cafile=str(cert_file))
        client = await connect(running, ssl=context, server_hostname="localhost")
        await client.send(json.dumps({"id": 1, "cmd": "list_subscriptions"}))
        assert json.loads(await client.recv())["type"] == "ok"
        await client.close()
