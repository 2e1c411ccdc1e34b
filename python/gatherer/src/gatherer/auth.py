"""Request signing for the exchange: RSA-PSS over `timestamp + METHOD + path`.

Purpose: the three KALSHI-ACCESS headers of a REST call or of a WebSocket upgrade, and the loading
of the private key with a message a person can act on.
Source: the exchange's documentation of API keys (RSA-PSS, SHA-256, salt length = digest length).
A key that runs out is replaced while the service runs: the file is read again whenever it changed,
before the next attempt. A line `key-id: ...` before the PEM text names the new key's id, so that
both change in one rename; without it the id of the settings stays.
Does not do: reading the clock (the time comes in) or sending anything. A signature is good for one
attempt only; callers sign anew each time because the exchange refuses stale time stamps.
"""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from marketdata.errors import ConfigError
from runtime import logs

KEY_FILE_BYTES_MAX: Final = 64 * 1024
KEY_BITS_MIN: Final = 2048

HEADER_KEY: Final = "KALSHI-ACCESS-KEY"
HEADER_TIMESTAMP: Final = "KALSHI-ACCESS-TIMESTAMP"
HEADER_SIGNATURE: Final = "KALSHI-ACCESS-SIGNATURE"

_KEY_ID: Final = re.compile(
    rb"^[ \t#]*key-id:[ \t]*(\S{1,200})[ \t\r]*$", re.IGNORECASE | re.MULTILINE
)
_PEM_BEGIN: Final = b"-----BEGIN"

log = logs.get("auth")

_PSS: Final = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=padding.PSS.DIGEST_LENGTH)


def load_private_key(path: Path) -> rsa.RSAPrivateKey:
    """The RSA key of a PEM file, PKCS#1 or PKCS#8; ConfigError with the file's name otherwise."""
    return parse_private_key(_read(path), name=str(path))


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > KEY_FILE_BYTES_MAX:
            raise ConfigError(
                f"{path} is larger than {KEY_FILE_BYTES_MAX} bytes: that is not a private key"
            )
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"private key file {path} cannot be read: {error.strerror}",
            hint="KT_PRIVATE_KEY_FILE names the PEM file of the exchange's API key",
        ) from error


def key_id_in(text: bytes) -> str | None:
    """The id that a key file names before its PEM text; None if it names none."""
    found = _KEY_ID.search(text.partition(_PEM_BEGIN)[0])
    return found[1].decode("ascii", "replace") if found else None


def parse_private_key(pem: bytes, *, name: str) -> rsa.RSAPrivateKey:
    """The RSA key in `pem`; ConfigError naming `name` if it is anything else."""
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except TypeError as error:
        raise ConfigError(
            f"private key {name} is protected by a passphrase",
            hint="store the key without a passphrase, readable by this service only",
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"{name} is not a PEM private key",
            hint="its first line should say BEGIN RSA PRIVATE KEY or BEGIN PRIVATE KEY",
        ) from error
    if not isinstance(key, rsa.RSAPrivateKey):
        raise ConfigError(f"private key {name} is not an RSA key: the exchange signs with RSA-PSS")
    if key.key_size < KEY_BITS_MIN:
        raise ConfigError(
            f"private key {name} has {key.key_size} bits, at least {KEY_BITS_MIN} needed"
        )
    return key


class Signer:
    """Makes signed headers. Holds the key, shows it to nobody (`repr` tells the key id only)."""

    __slots__ = ("_key", "key_id")

    def __init__(self, key_id: str, key: rsa.RSAPrivateKey) -> None:
        self.key_id = key_id
        self._key = key

    def __repr__(self) -> str:
        return f"Signer(key_id={self.key_id!r})"

    def headers(self, method: str, url: str, wall_ns: int) -> dict[str, str]:
        """The three headers for one attempt at `wall_ns` (UTC). The query is not signed."""
        timestamp_ms = str(wall_ns // 1_000_000)
        signed = f"{timestamp_ms}{method.upper()}{urlsplit(url).path}".encode()
        signature = self._key.sign(signed, _PSS, hashes.SHA256())
        return {
            HEADER_KEY: self.key_id,
            HEADER_TIMESTAMP: timestamp_ms,
            HEADER_SIGNATURE: base64.b64encode(signature).decode("ascii"),
        }


class FileSigner(Signer):
    """Signs with the key that its file holds now. A file that cannot be used (half written, away)
    leaves the former key in use and is tried again at the next attempt."""

    __slots__ = ("_path", "_seen", "_settled_id", "problem")

    def __init__(self, key_id: str, path: Path) -> None:
        """ConfigError if the file is no key: a service does not start without one."""
        self._path = path
        self._settled_id = key_id
        self._seen = _version(path)
        text = _read(path)
        super().__init__(key_id_in(text) or key_id, parse_private_key(text, name=str(path)))
        self.problem = ""

    def headers(self, method: str, url: str, wall_ns: int) -> dict[str, str]:
        """As `Signer`, with the file's newest key."""
        seen = _version(self._path)
        if seen != self._seen or self.problem:
            self._take_up(seen)
        return super().headers(method, url, wall_ns)

    def _take_up(self, seen: tuple[int, int, int] | None) -> None:
        try:
            text = _read(self._path)
            key = parse_private_key(text, name=str(self._path))
        except ConfigError as error:
            told = str(error).partition("\n")[0]
            if told != self.problem:
                log.warning("key file not taken up", error=told)
            self.problem = told
            return
        self._key, self.key_id = key, key_id_in(text) or self._settled_id
        self._seen, self.problem = seen, ""
        log.info("key file taken up", key_id=self.key_id)


def _version(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file is written or replaced; None while it is away."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


def refusal_hint(signer: Signer, told: str) -> str:
    """What a person has to do about a refused signature. `told`: the exchange's answer."""
    if "timestamp" in told:
        return "set this host's clock: the exchange refuses the time in the signature"
    renewed = "put a valid key into the key file, it is taken up without a restart"
    problem = signer.problem if isinstance(signer, FileSigner) else ""
    return f"{renewed} ({problem})" if problem else renewed


def handshake_of(headers: dict[str, str]) -> str:
    """First 16 hex digits of the SHA-256 of the signature header: names one upgrade attempt.

    Kept in the connect record of the spool; a test exchange keeps the same, so that a recording and
    the exchange's own log can be joined without either storing the signature.
    """
    return hashlib.sha256(headers[HEADER_SIGNATURE].encode("ascii")).hexdigest()[:16]
