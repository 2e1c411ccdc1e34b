"""`tape restore`: a backup of production into an empty database (dedup.backup)."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from dedup.backup import facts, found_backup, names
from dedup.backup import restore as bring_back
from kalshilake.store import open_store
from marketdata.errors import ConfigError
from tape.output import guarded

BACKUP_PREFIX = "backups/rds/"


def restore(
    bucket: Annotated[str, typer.Argument(help="where backups/ lies: s3://bucket or a directory")],
    to: Annotated[
        str | None,
        typer.Option(help="connection string of an empty database; without it backups are listed"),
    ] = None,
    name: Annotated[str | None, typer.Option(help="which backup; the newest without it")] = None,
    pg_bin: Annotated[
        Path | None, typer.Option(help="folder of pg_restore; else it is looked for in PATH")
    ] = None,
    prefix: Annotated[str, typer.Option(help="of the backups in the bucket")] = BACKUP_PREFIX,
) -> None:
    """Restore a backup and count what came back; JSON lines on standard output."""

    def run() -> int:
        store = open_store(bucket)
        if to is None:
            chosen = [name] if name else names(store, prefix)
            for each in chosen:
                sys.stdout.write(json.dumps(facts(found_backup(store, prefix, each))) + "\n")
            return 0
        backup = found_backup(store, prefix, name)
        rows = asyncio.run(bring_back(backup, store, _programs(pg_bin), to))
        sys.stdout.write(json.dumps({**facts(backup), "rows": rows}) + "\n")
        return 0

    raise typer.Exit(guarded(run))


def _programs(given: Path | None) -> Path:
    if given is not None:
        return given
    found = shutil.which("pg_restore")
    if found is None:
        raise ConfigError("pg_restore is not in PATH", hint="give its folder with --pg-bin")
    return Path(found).parent
