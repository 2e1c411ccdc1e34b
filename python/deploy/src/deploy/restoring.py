"""Production from a backup, on the deduplicator's host: the one host that reaches the database.

Purpose: stop the merge, bring a backup into the empty production database with the host's own
rights and credentials, start the merge. The nightly dump's unit does it, with another command for
this one time: its account, sandbox and passwords are those that a restore needs.

What holds: the database has to be empty (`kalshi-backup --restore` refuses another); safe to
repeat; a line that breaks stops nothing. After a failure the merge stays stopped: into an empty
database it would begin another tape. The gatherers record meanwhile.

Does not do: making the database and its role (docs/deploy.md); what the tape lost since the backup:
the deduplicator reads it from the gatherers and the lake again.
"""

from __future__ import annotations

from typing import Final

from deploy.errors import HostRefusedError, PlanError
from deploy.fleet import Fleet
from deploy.hosts import SAID_CHARS, script
from deploy.rollout import Say, Time
from deploy.shell import Shell

POLL_S: Final = 2.0
NAME_CHARS: Final = frozenset("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_.-")

BEGIN: Final = r"""
unit=kalshi-backup.service
place=/run/systemd/system/$unit.d
if [ ! -e "$place/restore.conf" ]; then
    case $(systemctl show --property=ActiveState --value "$unit") in
        active | activating) echo "$unit dumps right now: wait until it is done"; exit 13 ;;
    esac
    systemctl stop kalshi-deduplicator.service
    mkdir -p "$place"
    program=$PROFILES/kalshi-deduplicator/bin/kalshi-backup
    printf '[Service]\nExecStart=\nExecStart=%s --restore %s\n' "$program" "$NAME" \
        > "$place/restore.conf"
    systemctl daemon-reload
    systemctl reset-failed "$unit" 2>/dev/null || true
    systemctl start --no-block "$unit"
fi
"""
ASK: Final = r"""systemctl show --property=ActiveState,Result kalshi-backup.service"""
END: Final = r"""
rm -rf /run/systemd/system/kalshi-backup.service.d
systemctl daemon-reload
if [ "$WELL" = 1 ]; then systemctl start --no-block kalshi-deduplicator.service; fi
journalctl --unit kalshi-backup.service --lines 3 --output cat --no-pager 2>/dev/null || true
"""


async def restore_production(
    shell: Shell, fleet: Fleet, name: str, *, clock: Time, say: Say
) -> None:
    """Bring the backup of a name ("" for the newest) into production and start the merge again.

    Raises:
        PlanError: the name cannot be one; the fleet has no deduplicator.
        HostRefusedError: it was not restored; the merge is stopped.
    """
    if not set(name) <= NAME_CHARS:
        raise PlanError(f"no backup can be called {name!r}", hint="tape restore BUCKET lists them")
    hosts = fleet.of("deduplicator")
    if not hosts:
        raise PlanError("the fleet has no deduplicator")
    host = hosts[0].name
    answer = await shell.run(host, script(BEGIN, NAME=name), timeout_s=180.0)
    if answer.code != 0:
        raise HostRefusedError(f"{host}: {(answer.out + answer.err).strip()[-SAID_CHARS:]}")
    say(host, "the merge is stopped, the backup is read")
    while True:
        told = dict(
            line.split("=", 1)
            for line in (await shell.run(host, script(ASK))).out.splitlines()
            if "=" in line
        )
        if told.get("ActiveState") in ("inactive", "failed"):
            break
        await clock.sleep(POLL_S)
    well = told["ActiveState"] == "inactive" and told.get("Result") == "success"
    words = (await shell.run(host, script(END, WELL="1" if well else "0"))).out.strip()
    if not well:
        raise HostRefusedError(
            f"{host}: nothing was restored, and the merge is stopped: {words[-SAID_CHARS:]}",
            hint="if production is as it should be: systemctl start kalshi-deduplicator there",
        )
    say(host, f"restored; the merge goes on from there: {words[-SAID_CHARS:]}")
