"""The parts the demo starts: keys that verify, free ports, plain words when a part fails."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from marketdata.errors import StorageError
from tape.fleet import DemoPlan, Fleet, free_port, start_exchange, stop_everything, write_test_key


def plan(tmp_path: Path, **more: object) -> DemoPlan:
    facts: dict[str, object] = {
        "out": tmp_path, "frames": None, "synthetic": 5, "rate": "max", "seconds": 1.0,
        "faults": "none", "seed": 1, "gatherers": 1, "merge": "runs", "transport": "picows",
        "window_ms": 5000,
    }  # fmt: skip
    return DemoPlan(**{**facts, **more})  # type: ignore[arg-type]


def test_the_test_key_pair_signs_and_verifies_and_is_private(tmp_path: Path) -> None:
    """The exchange verifies the signed handshake with it."""
    private, public = write_test_key(tmp_path / "keys")
    key = serialization.load_pem_private_key(private.read_bytes(), None)
    assert isinstance(key, rsa.RSAPrivateKey)
    pss = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH)
    signature = key.sign(b"words", pss, hashes.SHA256())
    other = serialization.load_pem_public_key(public.read_bytes())
    assert isinstance(other, rsa.RSAPublicKey)
    other.verify(signature, b"words", pss, hashes.SHA256())
    assert private.stat().st_mode & 0o077 == 0


def test_a_free_port_can_be_bound() -> None:
    """A port that is handed out is free at that moment."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", free_port()))


async def test_an_exchange_that_cannot_start_says_why(tmp_path: Path) -> None:
    """A capture of an unknown format is one clear line, not a hanging demo."""
    bad = tmp_path / "capture.json"
    bad.write_text('{"neither": "format"}')
    fleet = Fleet(plan(tmp_path, frames=bad, synthetic=0))
    (tmp_path / "logs").mkdir()
    _, public = write_test_key(tmp_path / "keys")
    try:
        with pytest.raises(StorageError, match=r"capture\.json"):
            await start_exchange(fleet, public)
    finally:
        await stop_everything(fleet)


async def test_the_exchange_starts_and_is_gone_after_the_stop(tmp_path: Path) -> None:
    """Nothing is left behind."""
    fleet = Fleet(plan(tmp_path))
    (tmp_path / "logs").mkdir()
    _, public = write_test_key(tmp_path / "keys")
    await start_exchange(fleet, public)
    assert fleet.ports["exchange"] > 0
    await stop_everything(fleet)
    assert not fleet.children["exchange"].alive
