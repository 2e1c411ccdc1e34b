"""Secrets on their way into a host's encrypted credentials, and what is there already.

Purpose: the exchange's key, the verifier of the reader's password and the deduplicator's password
file, each encrypted by the host for itself (`systemd-creds`) and put in place in one step.

What holds:
- A secret goes through standard input only. It is in no command line, no file in clear, no log, no
  error: what a host says to a call that carried a secret is not repeated, its exit code is.
- What arrived is compared with its SHA-256 before it is encrypted, and read back after: a line
  that breaks in the middle leaves everything as it was.
- The former credential stays as NAME.previous until the new one is confirmed; said twice, nothing
  changes. Power may go at any step: the credential is then the former or the new one, whole.
- The password file is put together on its host: lines of other databases stay and are sent nowhere.

Does not do: the order of a rotation (rotation), certificates (certificates), making the key.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets as random_secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from deploy.errors import HostRefusedError, PlanError, UnreachableError
from deploy.fleet import Fleet, Host
from deploy.shell import Shell

STORE: Final = "/etc/credstore.encrypted"
SETTINGS: Final = "/etc/kalshi"
KEY, READER, TLS_KEY, PGPASS = "kalshi-key", "kalshi-reader", "kalshi-tls-key", "kalshi-pgpass"
NEEDED: Final[Mapping[str, tuple[str, ...]]] = {
    "gatherer": (KEY, READER, TLS_KEY, "gatherer.env", "tls.pem"),
    "deduplicator": (PGPASS, "deduplicator.env", "gatherers.pem", "production.pem"),
}
"""What a host of a role must have (docs/units.md)."""
SECRET_BYTES_MAX: Final = 64 * 1024
SCRAM_ROUNDS: Final = 4096
PASSWORD_CHARS_MIN: Final = 12
DATABASE, ROLE = "kalshi", "kalshi_deduplicator"
PORTS: Final = (5432, 5433)  # of a gatherer's databases; a test compares topology.toml
PRODUCTION_PORT: Final = 5432


class Secret:
    """Bytes that nothing shows: not `repr`, not a format, not a traceback's locals."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes, what: str) -> None:
        """`what` names it in errors. Raises PlanError where it cannot be sent."""
        if not value or len(value) > SECRET_BYTES_MAX or b"\0" in value:
            raise PlanError(f"{what} is empty, holds a zero byte or exceeds {SECRET_BYTES_MAX}")
        self._value = value

    def __repr__(self) -> str:
        return "Secret(***)"

    def reveal(self) -> bytes:
        """The bytes, for standard input of a host and nothing else."""
        return self._value

    def sent(self) -> bytes:
        """As the scripts take it: a line with its SHA-256, then the bytes."""
        return hashlib.sha256(self._value).hexdigest().encode() + b"\n" + self._value


def password(text: str) -> Secret:
    """A password that a password file and SCRAM take as it is. Raises PlanError."""
    if (
        len(text) < PASSWORD_CHARS_MIN
        or not re.fullmatch(r"[!-~]+", text)
        or set(text) & set(":\\")
    ):
        raise PlanError(
            f"the password is shorter than {PASSWORD_CHARS_MIN}, or has other characters than"
            " those of ASCII without space, colon and backslash",
            hint="leave it out, and one is made",
        )
    return Secret(text.encode("ascii"), "the password")


def new_password() -> Secret:
    """A password of 192 random bits."""
    return password(random_secrets.token_urlsafe(24))


def verifier(secret: Secret, salt: bytes | None = None) -> Secret:
    """What a server compares a password with: SCRAM-SHA-256, from which nobody can log in."""
    salt = random_secrets.token_bytes(16) if salt is None else salt
    salted = hashlib.pbkdf2_hmac("sha256", secret.reveal(), salt, SCRAM_ROUNDS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    first, second, third = (base64.b64encode(raw).decode() for raw in (salt, stored, server))
    line = f"SCRAM-SHA-256${SCRAM_ROUNDS}:{first}${second}:{third}\n"
    return Secret(line.encode(), "the verifier")


def key_with_id(pem: bytes, key_id: str) -> Secret:
    """The exchange's key with its id before it, as the gatherer reads it: both change in one step.
    A line of the file that names an id gives way. The caller has checked that it is a key."""
    begin = pem.find(b"-----BEGIN")
    if begin < 0:
        raise PlanError("the key is no PEM text")
    check_key_id(key_id)
    return Secret(f"key-id: {key_id}\n".encode() + pem[begin:].rstrip() + b"\n", "the key")


def check_key_id(key_id: str) -> str:
    """The id as given. Raises PlanError where it cannot be one."""
    if not re.fullmatch(r"[0-9A-Za-z-]{1,100}", key_id):
        raise PlanError("the key id has other characters than letters, digits and -")
    return key_id


def reader_lines(gatherers: Sequence[Host], secret: Secret) -> Secret:
    """The password file's lines for both databases of these gatherers."""
    ends = [f"{host.private_address}:{port}" for host in gatherers for port in PORTS]
    return Secret(b"".join(_line(end, secret) for end in ends), "the password file")


def production_line(endpoint: str, secret: Secret) -> Secret:
    """The password file's line for production, `endpoint` without port."""
    if not re.fullmatch(r"[0-9A-Za-z.-]{1,255}", endpoint):
        raise PlanError(f"{endpoint} is no host name", hint="the stack output Endpoint")
    return Secret(_line(f"{endpoint}:{PRODUCTION_PORT}", secret), "the password file")


def _line(end: str, secret: Secret) -> bytes:
    return f"{end}:{DATABASE}:{ROLE}:".encode() + secret.reveal() + b"\n"


# --- words to a host. `printf` is the shell's own: what it prints is on no command line.

_RECEIVE: Final = f"""umask 077
store={STORE}
place=$store/NAME
mkdir -p -m 0700 "$store"
IFS= read -r digest || exit 91
secret=$(cat; printf x)
secret=${{secret%x}}
sum() {{ sha256sum | cut -c 1-64; }}
[ "$(printf '%s' "$secret" | sum)" = "$digest" ] || exit 91
now() {{ [ ! -e "$place" ] || systemd-creds decrypt --name=NAME "$place" - 2>/dev/null; }}
"""
_MERGE: Final = """old=$(now) || exit 94
secret=$(printf '%s\\n%s\\n' "$secret" "$old" |
    awk -F: 'NF > 4 { key = $1 ":" $2 ":" $3 ":" $4; if (!(key in had)) { had[key] = 1; print } }'
    printf x)
secret=${secret%x}
digest=$(printf '%s' "$secret" | sum)
"""
_STORE: Final = """if [ -e "$place" ] && [ "$(now | sum)" = "$digest" ]; then
    echo same
    exit 0
fi
rm -f "$place.new"
printf '%s' "$secret" | systemd-creds encrypt --name=NAME - "$place.new" 2>/dev/null || exit 92
[ "$(systemd-creds decrypt --name=NAME "$place.new" - 2>/dev/null | sum)" = "$digest" ] || exit 93
if [ -e "$place" ] && [ ! -e "$place.previous" ]; then
    cp -p "$place" "$place.previous.new"
    sync "$place.previous.new"
    mv -f "$place.previous.new" "$place.previous"
fi
sync "$place.new"
mv -f "$place.new" "$place"
sync "$store"
echo stored
"""
_CONFIRM: Final = f"""[ -e {STORE}/NAME ] || exit 95
rm -f {STORE}/NAME.previous {STORE}/NAME.previous.new {STORE}/NAME.new
sync {STORE}
"""
_RESTORE: Final = f"""[ -e {STORE}/NAME.previous ] || exit 96
mv -f {STORE}/NAME.previous {STORE}/NAME
sync {STORE}
"""
_SETTING: Final = f"""file={SETTINGS}/FILE
mkdir -p {SETTINGS}
{{ [ ! -e "$file" ] || grep -v '^KEY=' "$file" || true; echo 'KEY=VALUE'; }} > "$file.new"
chmod 0644 "$file.new"
sync "$file.new"
mv -f "$file.new" "$file"
"""
_LIST: Final = f"""for file in {STORE}/kalshi-* {SETTINGS}/*.pem* {SETTINGS}/*.env; do
    [ ! -f "$file" ] || stat -c '%Y %a %n' "$file"
done
"""
CODES: Final[Mapping[int, str]] = {
    91: "what arrived is not what was sent",
    92: "systemd-creds would not encrypt it",
    93: "what was encrypted does not read back",
    94: "the credential that is there cannot be decrypted by this host",
    95: "there is no such credential",
    96: "there is no former credential to go back to",
}


@dataclass(frozen=True, slots=True)
class Kept:
    """One file that a host holds or should hold. `state`: current, previous, next, unfinished or
    missing; `changed_s`: of its last change, seconds of UTC; `mode`: of its rights, in octal."""

    host: str
    name: str
    state: str
    changed_s: int = 0
    mode: str = ""


async def put(shell: Shell, host: str, name: str, secret: Secret, *, merge: bool = False) -> bool:
    """Make a secret the credential of this name; whether it was another one before.

    `merge`: as lines of a password file; lines for other databases stay as they are.

    Raises:
        HostRefusedError: the host did not store it; the former one is in place.
        UnreachableError: the former or the new one is in place; saying it again is right.
    """
    script = (_RECEIVE + (_MERGE if merge else "") + _STORE).replace("NAME", name)
    return (await _quietly(shell, host, name, script, secret)).strip() == "stored"


async def _quietly(shell: Shell, host: str, name: str, script: str, secret: Secret) -> str:
    """A call whose words are not repeated: they may hold what was sent."""
    try:
        answer = await shell.run(host, script, stdin=secret.sent())
    except UnreachableError:
        answer = None
    if answer is None:  # outside of `except`: the first error is no context of this one
        raise UnreachableError(
            f"{host}: no answer while {name} was set", hint="say it again, it does no harm"
        )
    if answer.code:
        why = CODES.get(answer.code, f"exit code {answer.code}")
        raise HostRefusedError(
            f"{host}: {name} was not set: {why}", hint=f"the former one, if any, is in {STORE}"
        )
    return answer.out


async def confirm(shell: Shell, host: str, name: str) -> None:
    """Forget the former credential. Raises as `put`."""
    await _plainly(shell, host, name, _CONFIRM.replace("NAME", name))


async def restore(shell: Shell, host: str, name: str) -> None:
    """Put the former credential in place again. Raises as `put`."""
    await _plainly(shell, host, name, _RESTORE.replace("NAME", name))


async def set_key_id(shell: Shell, host: str, key_id: str) -> None:
    """KT_KEY_ID of a gatherer's settings; no secret, and other settings stay. Raises as `put`."""
    words = {"FILE": "gatherer.env", "KEY": "KT_KEY_ID", "VALUE": check_key_id(key_id)}
    script = _SETTING
    for word, value in words.items():
        script = script.replace(word, value)
    await _plainly(shell, host, "gatherer.env", script)


async def _plainly(shell: Shell, host: str, name: str, script: str) -> str:
    answer = await shell.run(host, script)
    if answer.code:
        why = CODES.get(answer.code) or answer.err.strip() or f"exit code {answer.code}"
        raise HostRefusedError(f"{host}: {name}: {why}")
    return answer.out


async def listed(shell: Shell, fleet: Fleet) -> list[Kept]:
    """What is there on each host, and what is missing; never what it contains. Raises as `put`."""
    found: list[Kept] = []
    for host in fleet.hosts:
        here = []
        for line in (await _plainly(shell, host.name, "credentials", _LIST)).splitlines():
            changed, mode, path = line.split(" ", 2)
            name, state = _state(path.rpartition("/")[2])
            here.append(Kept(host.name, name, state, int(changed), mode))
        have = {kept.name for kept in here if kept.state == "current"}
        here += [Kept(host.name, n, "missing") for n in NEEDED[host.role] if n not in have]
        found += sorted(here, key=lambda kept: (kept.name, kept.state))
    return found


def _state(file: str) -> tuple[str, str]:
    for ending, state in ((".new", "unfinished"), (".previous", "previous"), (".next", "next")):
        if file.endswith(ending):
            return file.removesuffix(ending), state
    return file, "current"
