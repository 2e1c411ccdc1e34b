"""Kill only the deduplicator, over the same gatherer databases: not one byte may differ.

Records once (`tape demo --out`), then runs the deduplicator twice over the recorded gatherer
databases, into an empty production database and an empty lake each time: once undisturbed, once
killed with -9 again and again. Compares every production table row by row and every lake file byte
by byte.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import asyncpg

from runtime.embedded import EmbeddedPostgres
from tape.children import Child
from tape.fleet import free_port

FINISH_S = 900.0
# Where the state of the merge and the log of exports live: equal by content, not by row.
TABLES = (
    "market",
    "orderbook_delta",
    "orderbook_snapshot",
    "trade",
    "ticker",
    "market_epoch",
    "gap",
    "quarantine",
)


async def digest_database(dsn: str) -> dict[str, str]:
    """SHA-256 of every production table, rows as text in a total order."""
    connection = await asyncpg.connect(dsn)
    found = {}
    try:
        for table in TABLES:
            rows = await connection.fetch(f"SELECT t::text AS row FROM {table} t ORDER BY 1")
            text = "\n".join(r["row"] for r in rows)
            found[table] = f"{len(rows)} rows {hashlib.sha256(text.encode()).hexdigest()}"
    finally:
        await connection.close()
    return found


def digest_lake(lake: Path) -> dict[str, str]:
    """SHA-256 of every file of the lake."""
    return {
        str(p.relative_to(lake)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(lake.rglob("*"))
        if p.is_file()
    }


async def run_dedup(
    out: Path, name: str, hot: list[str], meta: list[str], kills: int, seed: int, window_ms: int
) -> tuple[dict[str, str], dict[str, str], int]:
    """One run into fresh output. Returns (tables, files, kills carried out)."""
    production = EmbeddedPostgres(out / f"production-{name}")
    await production.start()
    lake = out / f"lake-{name}"
    child = Child(
        name="dedup", module="dedup.main", log=out / "logs" / f"dedup-{name}.log",
        environment={
            "KT_GATHERER_DSNS": json.dumps(hot), "KT_GATHERER_META_DSNS": json.dumps(meta),
            "KT_PRODUCTION_DSN": production.dsn(), "KT_LAKE_URI": str(lake),
            "KT_HEALTH_PORT": str(free_port()), "KT_METRICS_PORT": str(free_port()),
            "KT_WINDOW_MS": str(window_ms), "KT_FINAL": "true",
        },
    )  # fmt: skip
    rng, done = random.Random(seed), 0
    try:
        await child.start()
        for _ in range(kills):
            await asyncio.sleep(rng.uniform(0.6, 2.5))
            if child.finished:
                break
            done += child.kill()
        code = await child.wait(FINISH_S)
        if code:
            raise SystemExit(f"the deduplicator ended with code {code}:\n{child.log_tail(20)}")
        return await digest_database(production.dsn()), digest_lake(lake), done
    finally:
        await child.stop(5)
        await production.stop()


async def compare(out: Path, gatherers: int, kills: int, seed: int, window_ms: int) -> int:
    """Returns the number of differences."""
    databases = {
        f"g{n + 1}.{kind}": EmbeddedPostgres(out / f"g{n + 1}" / kind)
        for n in range(gatherers)
        for kind in ("hot", "meta")
    }
    (out / "logs").mkdir(exist_ok=True)
    try:
        for database in databases.values():
            await database.start()
        hot = [databases[f"g{n + 1}.hot"].dsn() for n in range(gatherers)]
        meta = [databases[f"g{n + 1}.meta"].dsn() for n in range(gatherers)]
        plain = await run_dedup(out, "plain", hot, meta, 0, seed, window_ms)
        killed = await run_dedup(out, "killed", hot, meta, kills, seed, window_ms)
    finally:
        for database in databases.values():
            await database.stop()
    differences = 0
    for kind, one, two in (("table", plain[0], killed[0]), ("file", plain[1], killed[1])):
        for key in sorted(set(one) | set(two)):
            if one.get(key) != two.get(key):
                differences += 1
                sys.stdout.write(f"{kind} {key} differs: {one.get(key)} / {two.get(key)}\n")
    sys.stdout.write(
        f"{len(plain[0])} tables and {len(plain[1])} lake files compared after {killed[2]} kills "
        f"of the deduplicator: {differences} differ\n"
    )
    for table, text in plain[0].items():
        sys.stdout.write(f"  {table}: {text[:40]}\n")
    return differences if killed[2] else differences + 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=Path)
    parser.add_argument("--synthetic", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--window-ms", type=int, default=1000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kalshi-tape-kills-") as folder:
        Path(folder).chmod(0o755)
        out = Path(folder) / "out"
        source = ["--frames", str(asked.frames)] if asked.frames else [
            "--synthetic", str(asked.synthetic), "--seconds", str(asked.seconds)]  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "tape.main", "demo", *source, "--faults", "standard",
             "--seed", str(asked.seed), "--out", str(out)], check=False)  # fmt: skip
        if done.returncode:
            return done.returncode
        return asyncio.run(compare(out, 3, asked.kills, asked.seed, asked.window_ms))


if __name__ == "__main__":
    sys.exit(main())
