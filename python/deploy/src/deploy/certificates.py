"""Certificates of the gatherers' databases: made on their hosts, trusted before they are used.

Purpose: a key and a certificate of its own for each gatherer, and the file of those that the
deduplicator trusts.

What holds:
- A private key is made on its host, goes from one program into another and is never on a disk in
  clear, nor here.
- The deduplicator trusts the former and the next certificates before any database uses a next one,
  and reads its file with each new connection: there is no moment at which it trusts too few.
- A database takes up its key when it starts. One gatherer after the other; its frames wait in its
  spool meanwhile. Cut off anywhere, saying it again comes to the same end.

Does not do: expiry (3650 days; docs/deploy.md), certificates of production (RDS has its own).
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Callable, Sequence
from typing import Final

from deploy import secrets
from deploy.errors import HostRefusedError, PlanError
from deploy.fleet import Fleet, Host
from deploy.secrets import SETTINGS, STORE, TLS_KEY
from deploy.shell import Shell

DAYS: Final = 3650
MAKE_TIMEOUT_S: Final = 120.0
RESTART_TIMEOUT_S: Final = 400.0  # a database may take 300 s to stop
DATABASES: Final = ("kalshi-timescaledb", "kalshi-postgres")
CERTIFICATE: Final = re.compile(
    r"-----BEGIN CERTIFICATE-----\n[A-Za-z0-9+/=\n]{100,4000}-----END CERTIFICATE-----\n"
)

_PLACES: Final = f"""umask 077
key={STORE}/{TLS_KEY}
cert={SETTINGS}/tls.pem
mkdir -p -m 0700 {STORE}
mkdir -p -m 0755 {SETTINGS}
public() {{ systemd-creds decrypt --name={TLS_KEY} "$1" - 2>/dev/null | openssl pkey -pubout; }}
fits() {{
    [ -e "$1" ] && [ -e "$2" ] &&
        [ "$(public "$1")" = "$(openssl x509 -in "$2" -noout -pubkey)" ]
}}
"""
_MAKE: Final = f"""if ! fits "$key.next" "$cert.next"; then
    rm -f "$key.next" "$cert.next" "$cert.new"
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days {DAYS} \\
        -subj "/CN=$(hostname)" -addext "subjectAltName=IP:ADDRESS" \\
        -keyout /dev/stdout -out "$cert.new" 2>/dev/null |
        systemd-creds encrypt --name={TLS_KEY} - "$key.next" 2>/dev/null
    fits "$key.next" "$cert.new" || exit 97
    chmod 0644 "$cert.new"
    sync "$key.next" "$cert.new"
    mv -f "$cert.new" "$cert.next"
    sync {STORE} {SETTINGS}
fi
"""
_SHOW: Final = """for file in "$cert" "$cert.next"; do [ ! -e "$file" ] || cat "$file"; done
"""
# The certificate first: until the key follows, `fits` is false and the next call goes on from here.
_SWITCH: Final = f"""if [ -e "$cert.next" ]; then
    fits "$key.next" "$cert.next" || exit 97
    if [ -e "$cert" ] && [ ! -e "$cert.previous" ]; then cp -p "$cert" "$cert.previous"; fi
    if [ -e "$key" ] && [ ! -e "$key.previous" ]; then cp -p "$key" "$key.previous"; fi
    sync {STORE} {SETTINGS}
    mv -f "$cert.next" "$cert"
fi
if [ -e "$key.next" ]; then
    fits "$key.next" "$cert" || exit 97
    mv -f "$key.next" "$key"
    sync {STORE} {SETTINGS}
fi
fits "$key" "$cert" || exit 97
for unit in {" ".join(DATABASES)}; do
    if systemctl is-active --quiet $unit; then systemctl restart $unit; fi
done
rm -f "$key.previous" "$cert.previous"
"""
_TRUST: Final = f"""umask 022
place={SETTINGS}/gatherers.pem
mkdir -p {SETTINGS}
IFS= read -r digest || exit 91
cat > "$place.new"
[ "$(sha256sum < "$place.new" | cut -c 1-64)" = "$digest" ] || exit 91
sync "$place.new"
mv -f "$place.new" "$place"
sync {SETTINGS}
"""

Say = Callable[[str], None]


async def renew(shell: Shell, fleet: Fleet, hosts: Sequence[Host], say: Say) -> None:
    """A new key and certificate on each of these gatherers, trusted first and then used.

    Raises:
        PlanError: the fleet has no deduplicator; nothing was done.
        HostRefusedError, UnreachableError: saying it again comes to the end.
    """
    deduplicators = fleet.of("deduplicator")
    if len(deduplicators) != 1:
        raise PlanError("certificates need the deduplicator, which trusts them")
    for host in hosts:
        script = _PLACES + _MAKE.replace("ADDRESS", str(ipaddress.ip_address(host.private_address)))
        await _say(shell, host.name, script, timeout_s=MAKE_TIMEOUT_S)
        say(f"{host.name}: the next key and certificate are made")
    await trust(shell, fleet)
    say(f"{deduplicators[0].name}: trusts them, and the former ones")
    for host in hosts:
        await _say(shell, host.name, _PLACES + _SWITCH, timeout_s=RESTART_TIMEOUT_S)
        say(f"{host.name}: its databases show the new certificate")
    await trust(shell, fleet)
    say(f"{deduplicators[0].name}: trusts the former ones no more")


async def trust(shell: Shell, fleet: Fleet) -> int:
    """Have the deduplicator trust what each gatherer shows now and will show next; how many.
    Raises as renew."""
    found: list[str] = []
    for host in fleet.of("gatherer"):
        shown = CERTIFICATE.findall(await _say(shell, host.name, _PLACES + _SHOW))
        if not shown:
            raise HostRefusedError(
                f"{host.name} has no certificate", hint="`tape secrets set tls` makes one"
            )
        found += shown
    text = "".join(found).encode()
    sent = hashlib.sha256(text).hexdigest().encode() + b"\n" + text
    (deduplicator,) = fleet.of("deduplicator")
    await _say(shell, deduplicator.name, _TRUST, stdin=sent)
    return len(found)


async def _say(
    shell: Shell, host: str, script: str, *, stdin: bytes = b"", timeout_s: float = MAKE_TIMEOUT_S
) -> str:
    answer = await shell.run(host, script, stdin=stdin, timeout_s=timeout_s)
    if answer.code == 97:
        raise HostRefusedError(f"{host}: key and certificate do not fit each other")
    if answer.code:
        why = secrets.CODES.get(answer.code, f"exit code {answer.code}")
        raise HostRefusedError(f"{host}: certificates: {why}")
    return answer.out
