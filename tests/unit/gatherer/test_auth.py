"""Signing: exactly the bytes the exchange verifies, and keys that are refused with a reason."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from gatherer import auth
from marketdata.errors import ConfigError

KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
URL = "wss://external-api-ws.kalshi.com/trade-api/ws/v2?x=1"
PKCS1 = serialization.PrivateFormat.TraditionalOpenSSL
PKCS8 = serialization.PrivateFormat.PKCS8


def _pem(
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, form: object, secret: bytes = b""
) -> bytes:
    protection = (
        serialization.BestAvailableEncryption(secret) if secret else serialization.NoEncryption()
    )
    return key.private_bytes(serialization.Encoding.PEM, form, protection)  # type: ignore[arg-type]


def _verify(headers: dict[str, str], signed: str, salt: int) -> None:
    KEY.public_key().verify(
        base64.b64decode(headers[auth.HEADER_SIGNATURE]),
        signed.encode(),
        padding.PSS(padding.MGF1(hashes.SHA256()), salt),
        hashes.SHA256(),
    )


def test_the_signature_covers_time_method_and_path_without_the_query() -> None:
    """Signing the query, or leaving the prefix out, has given 401."""
    headers = auth.Signer("id-1", KEY).headers("get", URL, 1_786_085_188_123_999_999)
    assert headers[auth.HEADER_KEY] == "id-1"
    assert headers[auth.HEADER_TIMESTAMP] == "1786085188123"
    _verify(headers, "1786085188123GET/trade-api/ws/v2", padding.PSS.DIGEST_LENGTH)
    with pytest.raises(InvalidSignature):
        _verify(headers, "1786085188123GET/trade-api/ws/v2?x=1", padding.PSS.DIGEST_LENGTH)


def test_two_attempts_have_two_signatures_and_two_names() -> None:
    """PSS is salted: the handshake name tells attempts apart even in one millisecond."""
    signer = auth.Signer("id-1", KEY)
    one, two = (signer.headers("GET", URL, 1_000_000) for _ in range(2))
    assert auth.handshake_of(one) != auth.handshake_of(two)
    digest = hashlib.sha256(one[auth.HEADER_SIGNATURE].encode()).hexdigest()
    assert auth.handshake_of(one) == digest[:16]


@pytest.mark.parametrize("form", [PKCS1, PKCS8])
def test_both_pem_forms_are_read(form: object, tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(_pem(KEY, form))
    assert auth.load_private_key(path).private_numbers() == KEY.private_numbers()


@pytest.mark.parametrize(
    ("pem", "told"),
    [
        (b"not a key", "not a PEM private key"),
        (_pem(KEY, PKCS8, b"secret"), "passphrase"),
        (_pem(ec.generate_private_key(ec.SECP256R1()), PKCS8), "not an RSA key"),
        (_pem(rsa.generate_private_key(public_exponent=65537, key_size=1024), PKCS8), "1024 bits"),
    ],
)
def test_anything_else_is_refused_with_the_files_name(pem: bytes, told: str) -> None:
    """A wrong key must say so at start, not as a connection that never opens."""
    with pytest.raises(ConfigError, match=told) as refused:
        auth.parse_private_key(pem, name="/keys/a.pem")
    assert "/keys/a.pem" in str(refused.value)


def test_a_missing_or_huge_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        auth.load_private_key(tmp_path / "none.pem")
    (tmp_path / "huge.pem").write_bytes(b"x" * (auth.KEY_FILE_BYTES_MAX + 1))
    with pytest.raises(ConfigError, match="larger than"):
        auth.load_private_key(tmp_path / "huge.pem")


def test_the_key_does_not_show_in_a_repr() -> None:
    """Objects end up in logs."""
    assert repr(auth.Signer("id-1", KEY)) == "Signer(key_id='id-1')"


def _public(signer: auth.Signer) -> object:
    return signer._key.public_key().public_numbers()


def test_a_rotated_file_is_taken_up_at_the_next_attempt_with_its_id(tmp_path: Path) -> None:
    """An exchange's new key has a new id: both come in one file, so never one without the other."""
    path = tmp_path / "key.pem"
    path.write_bytes(_pem(KEY, PKCS8))
    signer = auth.FileSigner("first", path)
    assert signer.headers("GET", URL, 1)[auth.HEADER_KEY] == "first"
    new = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    beside = tmp_path / "new"
    beside.write_bytes(b"# key-id: second\n" + _pem(new, PKCS1))
    beside.replace(path)
    assert signer.headers("GET", URL, 1)[auth.HEADER_KEY] == "second"
    assert _public(signer) == new.public_key().public_numbers()
    assert repr(signer) == "Signer(key_id='second')"
    path.write_bytes(_pem(KEY, PKCS8))
    assert signer.headers("GET", URL, 1)[auth.HEADER_KEY] == "first"


@pytest.mark.parametrize("content", [None, b"", b"-----BEGIN PRIVATE KEY-----\nAAA"])
def test_a_file_that_cannot_be_used_leaves_the_key_in_use_and_is_tried_again(
    tmp_path: Path, content: bytes | None
) -> None:
    """Half a file is seen by whoever reads while it is written: no reason to stop recording."""
    path = tmp_path / "key.pem"
    path.write_bytes(_pem(KEY, PKCS8))
    signer = auth.FileSigner("first", path)
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert signer.headers("GET", URL, 1)[auth.HEADER_KEY] == "first"
    assert str(path) in signer.problem
    assert signer.problem in auth.refusal_hint(signer, "key_expired")
    new = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    path.write_bytes(b"Key-Id: second\r\n" + _pem(new, PKCS8))
    assert signer.headers("GET", URL, 1)[auth.HEADER_KEY] == "second"
    assert signer.problem == ""


def test_an_id_inside_the_pem_text_or_of_absurd_length_is_no_id() -> None:
    """Only what stands before the key names it."""
    assert auth.key_id_in(b"-----BEGIN X-----\nkey-id: no\n") is None
    assert auth.key_id_in(b"key-id: " + b"x" * 201 + b"\n-----BEGIN") is None
    assert auth.key_id_in(b"note\nKEY-ID:  a-1 \n-----BEGIN") == "a-1"


def test_the_hint_tells_a_wrong_clock_from_a_wrong_key() -> None:
    """Who renews a key because the clock is wrong has two problems."""
    signer = auth.Signer("id-1", KEY)
    assert "clock" in auth.refusal_hint(signer, "header_timestamp_expired: too far")
    assert "without a restart" in auth.refusal_hint(signer, "key_expired")
