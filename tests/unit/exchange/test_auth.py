"""The signature check of upgrades and REST calls."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, padding

from exchange.auth import Verifier, handshake_digest, load_public_key
from marketdata.errors import ConfigError
from tests.exchange_client import WS_PATH, Keys


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys.make(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def verifier(keys: Keys) -> Verifier:
    return Verifier(load_public_key(keys.public_file))


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@pytest.mark.parametrize("salt", [padding.PSS.DIGEST_LENGTH, padding.PSS.MAX_LENGTH])
def test_a_good_signature_passes_with_either_salt_length(
    keys: Keys, verifier: Verifier, salt: int
) -> None:
    """Clients with the maximum salt are accepted by the exchange."""
    headers = keys.headers("GET", WS_PATH, salt=salt)
    assert verifier.fault(headers, "GET", WS_PATH, now_ms()) is None


def test_each_wrong_request_gets_its_code(keys: Keys, verifier: Verifier) -> None:
    """A gatherer tells its operator what is wrong by these codes."""
    good = keys.headers("GET", WS_PATH)

    def code(headers: dict[str, str], path: str = WS_PATH) -> str | None:
        fault = verifier.fault(headers, "GET", path, now_ms())
        return fault and fault[0]

    assert code({}) == "authentication_error"
    assert code({**good, "KALSHI-ACCESS-TIMESTAMP": "soon"}) == "INVALID_PARAMETER"
    assert code(keys.headers("GET", WS_PATH, off_ms=-60_000)) == "header_timestamp_expired"
    assert code(good, "/trade-api/v2/markets") == "INCORRECT_API_KEY_SIGNATURE"
    assert code({**good, "KALSHI-ACCESS-SIGNATURE": "????"}) == "INCORRECT_API_KEY_SIGNATURE"


def test_another_key_does_not_verify(tmp_path: Path, keys: Keys) -> None:
    """Negative control of the whole check."""
    stranger = Verifier(load_public_key(Keys.make(tmp_path).public_file))
    headers = keys.headers("GET", WS_PATH)
    fault = stranger.fault(headers, "GET", WS_PATH, now_ms())
    assert fault is not None
    assert fault[0] == "INCORRECT_API_KEY_SIGNATURE"


def test_an_unusable_key_file_is_one_clear_message(tmp_path: Path) -> None:
    """Absent, not PEM, not RSA: each is said."""
    with pytest.raises(ConfigError, match="cannot be read"):
        load_public_key(tmp_path / "absent.pem")
    broken = tmp_path / "broken.pem"
    broken.write_text("no key")
    with pytest.raises(ConfigError, match="not a PEM public key"):
        load_public_key(broken)
    broken.write_bytes(
        ed25519.Ed25519PrivateKey.generate()
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    with pytest.raises(ConfigError, match="not an RSA key"):
        load_public_key(broken)


def test_the_handshake_digest_is_sixteen_hex_digits_of_the_header() -> None:
    """The gatherer writes the same digest into its spool: it links the two logs."""
    digest = handshake_digest("abc")
    assert digest == "ba7816bf8f01cfea"
