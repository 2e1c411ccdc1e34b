"""What a rollout does to a host: look, lock, copy, switch, write down.

Purpose: `Hosts`, the few acts that a rollout is made of, each safe to repeat, and `OverShell`,
which says them to real hosts as scripts of /bin/sh. The scripts are here whole, so that what is
done as root can be read in one place.

What holds:
- A path is switched to only when it is in the host's store and everything it needs is signed by a
  key that the host trusts: what is addressed by its content enters a store unsigned.
- Units are linked, never copied; a unit is restarted when its process runs from another path than
  the profile, or not at all, and left alone else.
- The lock is a file that is made or is not; whoever holds it is named in it.

Does not do: order, waiting, deciding (rollout).
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from typing import Any, Final, Protocol

from deploy.errors import HostRefusedError
from deploy.fleet import Fleet
from deploy.release import PROFILES, UNITS
from deploy.seen import Seen, parse
from deploy.shell import DEPLOY_USER, Answer, Shell

HOME: Final = "/var/lib/kalshi-deploy"
HEALTH_PORT: Final = 8080
GENERATIONS_KEPT: Final = 3
SAID_CHARS: Final = 600
LOCKED: Final = 11
LOOK_TIMEOUT_S: Final = 20.0
TIDY_TIMEOUT_S: Final = 600.0

# What a host's units cannot start without (docs/units.md, "What the owner brings").
BROUGHT: Final[Mapping[str, tuple[str, ...]]] = {
    "gatherer": (
        *("/etc/credstore.encrypted/kalshi-key", "/etc/credstore.encrypted/kalshi-tls-key"),
        *("/etc/credstore.encrypted/kalshi-reader", "/etc/kalshi/gatherer.env"),
        "/etc/kalshi/tls.pem",
    ),
    "deduplicator": (
        *("/etc/credstore.encrypted/kalshi-pgpass", "/etc/kalshi/deduplicator.env"),
        "/etc/kalshi/gatherers.pem",
    ),
}

# Every line is "key value"; what is not there says nothing. A service's process tells by its
# command line which closure it is of; PostgreSQL's does not, so its restarts leave a mark.
LOOK: Final = r"""
say() { printf '%s %s\n' "$1" "$2"; }
say name "$(hostname)"
say role "$(cat /etc/kalshi/role 2>/dev/null || true)"
say machine "$(uname -m)"
say time_ns "$(date +%s%N)"
say nix_free "$(df --output=avail -B1 /nix 2>/dev/null | tail -1)"
say var_free "$(df --output=avail -B1 /var/lib 2>/dev/null | tail -1)"
say lock "$(cat "$HOME_OF_DEPLOY/lock" 2>/dev/null || true)"
for closure in $CLOSURES; do
    place=$PROFILES/kalshi-$closure
    [ ! -e "$place" ] || say profile "$closure $(readlink -f "$place")"
done
for unit in $UNITS; do
    systemctl show --property=ActiveState,MainPID,NRestarts,InvocationID "$unit" 2>/dev/null |
        while IFS= read -r line; do say unit "$unit $line"; done
    pid=$(systemctl show --property=MainPID --value "$unit" 2>/dev/null || echo 0)
    if [ "${pid:-0}" != 0 ]; then
        say unit "$unit Command=$(tr '\0' ' ' < "/proc/$pid/cmdline" 2>/dev/null | cut -c -400)"
    fi
    mark=$HOME_OF_DEPLOY/runs-$unit
    [ ! -e "$mark" ] || say unit "$unit Marked=$(cat "$mark")"
done
for file in $BROUGHT; do [ -e "$file" ] || say missing "$file"; done
at=http://127.0.0.1:$HEALTH_PORT
say health "$(curl --silent --max-time 5 "$at/health" 2>/dev/null | tr -d '\n' || true)"
if [ "$ROLE" = deduplicator ]; then
    say status "$(curl --silent --max-time 5 "$at/status" 2>/dev/null | tr -d '\n' || true)"
fi
"""

LOCK: Final = r"""
mkdir -p -m 0755 "$HOME_OF_DEPLOY"
if (set -C; printf '%s\n' "$RUN" > "$HOME_OF_DEPLOY/lock") 2>/dev/null; then exit 0; fi
held=$(cat "$HOME_OF_DEPLOY/lock" 2>/dev/null || true)
if [ "$held" = "$RUN" ]; then exit 0; fi
if [ -n "$BREAK" ] || [ -z "$held" ]; then
    printf '%s\n' "$RUN" > "$HOME_OF_DEPLOY/lock.new"
    mv -f "$HOME_OF_DEPLOY/lock.new" "$HOME_OF_DEPLOY/lock"
    exit 0
fi
printf '%s\n' "$held"
exit 11
"""

UNLOCK: Final = r"""
[ "$(cat "$HOME_OF_DEPLOY/lock" 2>/dev/null || true)" != "$RUN" ] || rm -f "$HOME_OF_DEPLOY/lock"
"""

# Services only: a database's process is PostgreSQL's, whatever closure its settings are of.
SWITCH: Final = r"""
nix="nix --extra-experimental-features nix-command"
if [ ! -e "$CLOSURE_PATH" ]; then echo "$CLOSURE_PATH is not in the store"; exit 12; fi
if ! said=$($nix store verify --recursive --no-contents "$CLOSURE_PATH" 2>&1); then
    printf 'not signed by a key that this host trusts: %s\n' "$said" | tail -3
    exit 12
fi
mkdir -p -m 0755 "$HOME_OF_DEPLOY" /etc/systemd/system /etc/sysusers.d /etc/tmpfiles.d
profile=$PROFILES/kalshi-$CLOSURE
[ -e "$profile" ] && [ "$(readlink -f "$profile")" = "$CLOSURE_PATH" ] ||
    nix-env --profile "$profile" --set "$CLOSURE_PATH"
sync -f "$PROFILES"
link() { # link FROM TO: only where it is another
    [ "$(readlink "$2" 2>/dev/null || true)" = "$1" ] && return 0
    ln -sfn "$1" "$2.new"
    mv -fT "$2.new" "$2"
    linked=1
}
linked=
if [ -z "$RUNS_NOTHING" ]; then
    for file in "$CLOSURE_PATH"/lib/systemd/system/*; do
        [ -e "$file" ] || continue
        name=${file##*/}
        # What is in every closure is one link, to the closure that came first.
        case $name in kalshi.target) [ ! -e "/etc/systemd/system/$name" ] || continue ;; esac
        link "$profile/lib/systemd/system/$name" "/etc/systemd/system/$name"
    done
fi
for kind in sysusers tmpfiles; do
    place=/etc/$kind.d/kalshi.conf
    [ -e "$place" ] || [ ! -e "$profile/lib/$kind.d/kalshi.conf" ] ||
        link "$profile/lib/$kind.d/kalshi.conf" "$place"
done
# Not by systemctl enable: it follows links to their end and would want a path of this generation,
# which is collected some day. A link to the name beside it holds whatever the profile is.
for file in "$CLOSURE_PATH"/lib/systemd/system/*; do
    name=${file##*/}
    [ -z "$RUNS_NOTHING" ] && [ -e "$file" ] && grep -q '^WantedBy=' "$file" || continue
    wants=/etc/systemd/system/$(sed -n 's/^WantedBy=//p' "$file" | head -1).wants
    mkdir -p "$wants"
    link "../$name" "$wants/$name"
done
for place in /etc/systemd/system/kalshi-*; do # a unit that this closure does not bring any more
    case $(readlink "$place" 2>/dev/null || true) in
        "$profile"/*)
            [ -e "$place" ] && continue
            systemctl stop "${place##*/}" 2>/dev/null || true
            rm -f "$place" /etc/systemd/system/*.wants/"${place##*/}"
            linked=1
            ;;
    esac
done
if [ -n "$linked" ]; then
    systemd-sysusers
    systemd-tmpfiles --create
fi
systemctl daemon-reload
for unit in $UNITS; do
    pid=$(systemctl show --property=MainPID --value "$unit")
    mark=$HOME_OF_DEPLOY/runs-$unit
    runs=
    if [ "${pid:-0}" != 0 ]; then
        if [ "$MARKED" = 1 ]; then
            [ "$(cat "$mark" 2>/dev/null || true)" != "$CLOSURE_PATH" ] || runs=1
        elif tr '\0' '\n' < "/proc/$pid/cmdline" | grep -qF "$CLOSURE_PATH/"; then
            runs=1
        fi
    fi
    if [ -z "$runs" ]; then
        systemctl reset-failed "$unit" 2>/dev/null || true
        systemctl restart --no-block "$unit"
        echo "restarted $unit"
    fi
    if [ "$MARKED" = 1 ]; then
        printf '%s\n' "$CLOSURE_PATH" > "$mark.new"
        mv -f "$mark.new" "$mark"
    fi
done
systemctl start --no-block kalshi.target
"""

WRITE_DOWN: Final = r"""
mkdir -p -m 0755 "$HOME_OF_DEPLOY"
cat >> "$HOME_OF_DEPLOY/history.jsonl"
sync "$HOME_OF_DEPLOY/history.jsonl"
"""

TIDY: Final = r"""
for closure in $CLOSURES; do
    profile=$PROFILES/kalshi-$closure
    [ ! -e "$profile" ] || nix-env --profile "$profile" --delete-generations "+$KEPT" 2>&1
done
nice -n 19 nix-store --gc 2>&1 | tail -1
"""

# A line that broke in the middle of a copy leaves `nix-daemon --stdio` behind, which waits for the
# host's daemon, which waits for it, with the locks of the paths: the next copy would wait for ever.
# Whoever holds the lock of the host is the only one who copies to it.
LEFT_OVER: Final = r"""pkill -KILL -U "$COPIER" || [ $? = 1 ]"""

LAST_WORDS: Final = (
    r"""journalctl --unit "$UNIT" --lines 5 --output cat --no-pager 2>/dev/null || true"""
)


def script(text: str, **words: str) -> str:
    """A script with its words set before it, quoted."""
    lines = [f"{name}={shlex.quote(value)}" for name, value in words.items()]
    return "\n".join((f"HOME_OF_DEPLOY={HOME}", f"PROFILES={PROFILES}", *lines, text))


class Hosts(Protocol):
    """The acts. All raise UnreachableError; the acts that change something HostRefusedError too."""

    async def look(self, host: str) -> Seen:
        """A look at a host."""

    async def lock(self, host: str, run: str, *, by_force: bool = False) -> None:
        """Take the host's lock; a lock of this run is taken already. Refused to another run."""

    async def unlock(self, host: str, run: str) -> None:
        """Give the lock back; one of another run stays."""

    async def copy(self, host: str, paths: Mapping[str, str]) -> None:
        """Bring store paths, by closure, and all they need to the host's store. Ends whatever
        copies to it: it is locked."""

    async def switch(self, host: str, closure: str, path: str) -> list[str]:
        """Make the profile of a closure this path and restart what runs from another; the units
        that were restarted."""

    async def last_words(self, host: str, unit: str) -> str:
        """What a unit said last."""

    async def write_down(self, host: str, line: bytes) -> None:
        """Add a line to the host's own history of deploys."""

    async def tidy(self, host: str) -> None:
        """Remove generations that nobody goes back to, and what only they need."""


class OverShell:
    """Real hosts."""

    def __init__(self, shell: Shell, fleet: Fleet) -> None:
        self._shell = shell
        self._roles = {host.name: host.role for host in fleet.hosts}

    def _closures(self, host: str) -> list[str]:
        return [closure for role, closure in UNITS if role == self._roles[host]]

    async def _said(self, host: str, text: str, what: str, **options: Any) -> Answer:
        answer = await self._shell.run(host, text, **options)
        if answer.code != 0:
            told = " ".join((answer.out.strip() + " " + answer.err.strip()).split())[-SAID_CHARS:]
            raise HostRefusedError(f"{host}: could not {what} (exit {answer.code}): {told}")
        return answer

    async def look(self, host: str) -> Seen:
        """As Hosts.look."""
        role = self._roles[host]
        units = [unit for (r, _), names in UNITS.items() if r == role for unit in names]
        text = script(
            LOOK, CLOSURES=" ".join(self._closures(host)), UNITS=" ".join(units), ROLE=role,
            BROUGHT=" ".join(BROUGHT[role]), HEALTH_PORT=str(HEALTH_PORT),
        )  # fmt: skip
        began = time.time_ns()
        answer = await self._said(host, text, "be looked at", timeout_s=LOOK_TIMEOUT_S)
        return parse(answer.out, (began + time.time_ns()) // 2)

    async def lock(self, host: str, run: str, *, by_force: bool = False) -> None:
        """As Hosts.lock."""
        answer = await self._shell.run(host, script(LOCK, RUN=run, BREAK="1" if by_force else ""))
        if answer.code == LOCKED:
            raise HostRefusedError(
                f"{host} is locked by another deploy: {answer.out.strip()}",
                hint="--resume goes on with it where it was begun; --break-lock ignores it",
            )
        if answer.code != 0:
            raise HostRefusedError(f"{host}: could not be locked: {answer.err.strip()}")

    async def unlock(self, host: str, run: str) -> None:
        """As Hosts.unlock."""
        await self._said(host, script(UNLOCK, RUN=run), "be unlocked")

    async def copy(self, host: str, paths: Mapping[str, str]) -> None:
        """As Hosts.copy."""
        free = script(LEFT_OVER, COPIER=DEPLOY_USER)
        await self._said(host, free, "be freed of copies that were cut off")
        answer = await self._shell.copy(host, list(paths.values()))
        if answer.code != 0:
            told = " ".join(answer.err.split())[-SAID_CHARS:]
            raise HostRefusedError(f"{host}: closures were not taken (exit {answer.code}): {told}")

    async def switch(self, host: str, closure: str, path: str) -> list[str]:
        """As Hosts.switch."""
        units = UNITS[self._roles[host], closure]
        text = script(
            SWITCH, CLOSURE=closure, CLOSURE_PATH=path, UNITS=" ".join(units),
            RUNS_NOTHING="" if units else "1", MARKED="1" if closure == "postgres" else "0",
        )  # fmt: skip
        answer = await self._said(host, text, f"switch {closure}")
        words = (line.split() for line in answer.out.splitlines())
        return [line[1] for line in words if len(line) == 2 and line[0] == "restarted"]

    async def last_words(self, host: str, unit: str) -> str:
        """As Hosts.last_words."""
        answer = await self._shell.run(host, script(LAST_WORDS, UNIT=unit))
        return " | ".join(answer.out.strip().splitlines())[-SAID_CHARS:]

    async def write_down(self, host: str, line: bytes) -> None:
        """As Hosts.write_down."""
        await self._said(host, script(WRITE_DOWN), "be told of the deploy", stdin=line + b"\n")

    async def tidy(self, host: str) -> None:
        """As Hosts.tidy."""
        text = script(
            TIDY, CLOSURES=" ".join(self._closures(host)), KEPT=str(GENERATIONS_KEPT)
        )  # fmt: skip
        await self._said(host, text, "be tidied", timeout_s=TIDY_TIMEOUT_S)
