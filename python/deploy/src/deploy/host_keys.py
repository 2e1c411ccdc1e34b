"""Host keys out of the console's output into a known_hosts file: nobody is trusted blindly.

Purpose: cloud-init prints a host's public keys on its console at the first boot. EC2 hands the
console out to whoever may ask the account, over a way that no one between us and the host has.

What holds:
- The keys are compared with the fingerprints that stand beside them in the same output.
- A host that is known with another key is refused, unless it was named as replaced.
- The file is written beside its place and moved there; lines of other hosts stay as they are.

Does not do: asking the host itself for its key (ssh-keyscan), which proves nothing.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from deploy.errors import PlanError
from deploy.fleet import Fleet

KINDS: Final = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ssh-rsa")
CONSOLE_BYTES_MAX: Final = 1 << 20
_KEYS: Final = re.compile(
    r"-----BEGIN SSH HOST KEY KEYS-----\s*(.*?)\s*-----END SSH HOST KEY KEYS-----", re.DOTALL
)
_PRINTS: Final = re.compile(
    r"-----BEGIN SSH HOST KEY FINGERPRINTS-----(.*?)-----END SSH HOST KEY FINGERPRINTS-----",
    re.DOTALL,
)
_PRINT: Final = re.compile(r"SHA256:([A-Za-z0-9+/]{43})")
_KEY: Final = re.compile(
    r"(ssh-ed25519|ecdsa-sha2-nistp256|ssh-rsa) ([A-Za-z0-9+/]{40,1000}={0,2})"
)


@dataclass(frozen=True, slots=True)
class HostKey:
    """One public key: its kind, and its bytes in base64."""

    kind: str
    body: str

    @property
    def fingerprint(self) -> str:
        """As ssh-keygen says it, without `SHA256:`."""
        digest = hashlib.sha256(base64.b64decode(self.body)).digest()
        return base64.b64encode(digest).decode().rstrip("=")


@dataclass(frozen=True, slots=True)
class Trusted:
    """What became of one host's keys: `known` (as before), `added` or `replaced`."""

    host: str
    outcome: str
    fingerprints: tuple[str, ...]


def parse(console: str, host: str) -> tuple[HostKey, ...]:
    """The keys in a console's output; the last that it printed, with their fingerprints checked.

    Raises PlanError where it has none, or keys and fingerprints differ.
    """
    blocks = _KEYS.findall(console)
    if not blocks:
        raise PlanError(
            f"{host}: the console has no host keys",
            hint="it is empty in the first minutes, and long after the first boot; "
            "then compare `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` there by hand",
        )
    keys = tuple(dict.fromkeys(HostKey(*found) for found in _KEY.findall(blocks[-1])))
    if not keys:
        raise PlanError(f"{host}: the console's host keys are of no known kind")
    try:
        ours = {key.fingerprint for key in keys}
    except (binascii.Error, ValueError):
        raise PlanError(f"{host}: a host key on the console is damaged") from None
    told = {f for block in _PRINTS.findall(console)[-1:] for f in _PRINT.findall(block)}
    if told and not ours <= told:
        raise PlanError(
            f"{host}: host keys and fingerprints on the console differ",
            hint="trust neither; the output may be of two boots, read it yourself",
        )
    return keys


def consoles(fleet: Fleet) -> dict[str, str]:
    """The console's output by host; the instances must be known (addresses.look). Raises
    PlanError."""
    found = {}
    try:
        client = boto3.client("ec2", region_name=fleet.region)
        for host in fleet.hosts:
            if not host.instance:
                raise PlanError(f"no instance of {host.name} is known", hint="give --outputs FILE")
            answer = client.get_console_output(InstanceId=host.instance, Latest=True)
            found[host.name] = _text(answer.get("Output", ""))
    except (BotoCoreError, ClientError) as error:
        raise PlanError(f"EC2 in {fleet.region} gave no console: {error}") from None
    return found


def _text(output: str) -> str:
    """boto3 decodes it; a service that answers in base64 all the same is understood too."""
    output = output[-CONSOLE_BYTES_MAX:]
    if "-----BEGIN" in output or not re.fullmatch(r"[A-Za-z0-9+/=\s]*", output):
        return output
    try:
        return base64.b64decode(output).decode("utf-8", "replace")
    except (binascii.Error, ValueError):
        return output


def trust(
    path: Path,
    keys: Mapping[str, Iterable[HostKey]],
    addresses: Mapping[str, str],
    replaced: Collection[str] = (),
) -> list[Trusted]:
    """Write the hosts' keys under their names and addresses into a known_hosts file.

    `replaced`: hosts whose keys may be other ones than before. Nothing is written where another
    host's key changed.

    Raises:
        PlanError: hosts that are known with another key, all of them; or the file is not writable.
    """
    if strange := sorted(set(replaced) - set(keys)):
        raise PlanError(f"no host is called {', '.join(strange)}")
    lines = _read(path)
    outcome: list[Trusted] = []
    changed: list[str] = []
    for host, given in keys.items():
        new = set(given)
        old = {key for names, key in map(_entry, lines) if key is not None and host in names}
        if old and old != new and host not in replaced:
            changed.append(f"{host}: was {_prints(old)}, the console says {_prints(new)}")
        how = "added" if not old else "known" if old == new else "replaced"
        outcome.append(Trusted(host, how, tuple(sorted(key.fingerprint for key in new))))
    if changed:
        raise PlanError(
            "hosts are known with other keys:\n" + "\n".join(changed),
            hint="a host that was made anew is named with --replaced HOST; for any other one find "
            "out first who answers there",
        )
    ours = set(keys) | {addresses[host] for host in keys if host in addresses}
    kept = [line for line in lines if not ours & set(_entry(line)[0])]
    made = [
        f"{host},{addresses[host]} {key.kind} {key.body}"
        if host in addresses
        else f"{host} {key.kind} {key.body}"
        for host, given in keys.items()
        for key in sorted(given, key=lambda key: KINDS.index(key.kind))
    ]
    _write(path, [*kept, *made])
    return outcome


def _prints(keys: Iterable[HostKey]) -> str:
    return ", ".join(sorted(f"SHA256:{key.fingerprint}" for key in keys))


def _entry(line: str) -> tuple[list[str], HostKey | None]:
    """Names and key of a line; ours have no markers and are not hashed."""
    parts = line.split()
    if len(parts) < 3 or line.startswith(("#", "@")):
        return [], None
    return parts[0].split(","), HostKey(parts[1], parts[2])


def _read(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise PlanError(f"{path} cannot be read: {error}") from None


def _write(path: Path, lines: Iterable[str]) -> None:
    beside = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        raise PlanError(f"{path} cannot be written: {error.strerror}") from None
