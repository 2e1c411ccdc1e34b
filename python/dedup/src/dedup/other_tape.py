"""Whether a tape may begin in an empty production: not beside one that the lake's store knows.

Purpose: production is lost, and a new empty one answers under its name before its backup is in it.
A tape that began there would number events anew and put what gatherers still have in the place of
the lake's hours, and would be in the backup's way, which is restored into empty databases only.

What holds: nothing is written to production before this was asked. A store that does not answer may
know of one.

Does not do: waiting (pipeline).
"""

from __future__ import annotations

import asyncio

from kalshilake.store import Store
from kalshilake.write import load_head
from marketdata.errors import LakeError, StorageError
from marketdata.units import format_ts_us
from runtime.postgres import Connection


async def found(conn: Connection, store: Store, backups: str = "") -> str:
    """Why no tape may begin in this production; "": it may, or one has begun.

    `backups`: prefix of production's backups in the store; "" where there are none.
    """
    if await _has_begun(conn):
        return ""
    try:
        kept = await asyncio.to_thread(_kept, store, backups)
    except (StorageError, LakeError) as error:
        return f"production holds no tape, and the lake does not tell whether it has one: {error}"
    if not kept:
        return ""
    return (
        f"production holds no tape, and {kept}: `tape deploy restore` brings a backup; another tape"
        " needs another KT_LAKE_URI"
    )


async def _has_begun(conn: Connection) -> bool:
    """Whether a tape was begun here, even if it was set back to before its first window; the table
    may not be there yet."""
    if not await conn.fetchval("SELECT to_regclass('merge_state') IS NOT NULL"):
        return False
    return bool(await conn.fetchval("SELECT EXISTS (SELECT FROM merge_state)"))


def _kept(store: Store, backups: str) -> str:
    """What the store has of a tape; "": nothing."""
    head = load_head(store)
    if head is not None:
        return f"the lake has one up to {format_ts_us(head.version.watermark_us)}"
    if backups and next(iter(store.list(backups)), None) is not None:
        return f"there are backups of one in {backups}"
    return ""
