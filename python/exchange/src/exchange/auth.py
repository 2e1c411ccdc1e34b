"""Checks the exchange's request signatures (RSA-PSS over timestamp + method + path).

Purpose: say which error the exchange would answer a signed request with. The clock comes in as an
argument. Salt length is detected, because clients with the maximum salt are accepted too.

Does not do: keys per account (one public key verifies all; any key id is accepted, until a
replacement names one).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from marketdata.errors import ConfigError

KEY_HEADER: Final = "KALSHI-ACCESS-KEY"
TIMESTAMP_HEADER: Final = "KALSHI-ACCESS-TIMESTAMP"
SIGNATURE_HEADER: Final = "KALSHI-ACCESS-SIGNATURE"
CLOCK_TOLERANCE_MS: Final = 5_000  # a choice: the exchange's own figure is not documented


def load_public_key(path: Path) -> RSAPublicKey:
    """The key that verifies every client; ConfigError says what is wrong with the file."""
    try:
        pem = path.read_bytes()
    except OSError as fault:
        raise ConfigError(f"public key {path} cannot be read: {fault.strerror}") from None
    return read_public_key(pem, str(path))


def read_public_key(pem: bytes, name: str) -> RSAPublicKey:
    """The key in `pem`; ConfigError naming `name` if it is anything else."""
    try:
        key = serialization.load_pem_public_key(pem)
    except ValueError:
        raise ConfigError(f"public key {name} is not a PEM public key") from None
    if not isinstance(key, RSAPublicKey):
        raise ConfigError(f"public key {name} is not an RSA key")
    return key


def handshake_digest(signature: str) -> str:
    """First 16 hex digits of the SHA-256 of the signature header: links a connection to truth."""
    return hashlib.sha256(signature.encode()).hexdigest()[:16]


class Verifier:
    """Judges signed requests. While `refusal` is set it is the answer to every one of them."""

    def __init__(self, key: RSAPublicKey, tolerance_ms: int = CLOCK_TOLERANCE_MS) -> None:
        self._key = key
        self._key_id = ""
        self._tolerance_ms = tolerance_ms
        self.refusal: tuple[str, str] | None = None
        self.any_key = False  # whatever is signed is good: clients come with keys of their own

    def replace(self, key: RSAPublicKey, key_id: str) -> None:
        """From now on only this key is accepted, under this id."""
        self._key, self._key_id, self.refusal = key, key_id, None

    def fault(
        self, headers: Mapping[str, str], method: str, path: str, now_ms: int
    ) -> tuple[str, str] | None:
        """(code, message) of the 401 answer, or None if the signature is good.

        `path` is the full path without the query, `now_ms` the server's Unix time.
        """
        if self.refusal is not None:
            return self.refusal
        key_id = headers.get(KEY_HEADER)
        stamp = headers.get(TIMESTAMP_HEADER)
        signature = headers.get(SIGNATURE_HEADER)
        if not key_id or not stamp or not signature:
            return "authentication_error", "authentication headers are missing"
        if self._key_id and key_id != self._key_id:
            return "unknown_key", "there is no such API key"
        if not (stamp.isascii() and stamp.isdigit()):
            return "INVALID_PARAMETER", "timestamp is not a number of milliseconds"
        if abs(now_ms - int(stamp)) > self._tolerance_ms:
            return "header_timestamp_expired", "timestamp is too far from the server's time"
        if self.any_key:
            return None
        try:
            self._key.verify(
                base64.b64decode(signature, validate=True),
                f"{stamp}{method}{path}".encode(),
                padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.AUTO),
                hashes.SHA256(),
            )
        except (InvalidSignature, binascii.Error, ValueError):
            return "INCORRECT_API_KEY_SIGNATURE", "signature does not match"
        return None
