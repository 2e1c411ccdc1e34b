"""Everything the demo runs: clusters, exchange, gatherers, deduplicator, in one folder.

Layout of the folder: `truth/`, `g1/ g2/ g3/` (each `spool/ hot/ meta/`), `production/`, `lake/`,
`logs/`, `keys/`. All ports are picked by the system; nothing listens outside the loopback
interface.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from marketdata.errors import StorageError
from runtime.embedded import EmbeddedPostgres
from tape.children import Child

EXCHANGE_READY_S = 60.0
KEY_ID = "00000000-0000-4000-8000-000000000001"


@dataclass(frozen=True, slots=True)
class DemoPlan:
    """What to run. `frames` or `synthetic` names the exchange; `rate` is a multiple or "max"."""

    out: Path
    frames: Path | None
    synthetic: int
    rate: str
    seconds: float
    faults: str
    seed: int
    gatherers: int
    merge: str
    transport: str
    window_ms: int
    markets_per_connection: int = 250  # a gap costs a snapshot of every market of its connection
    events_per_s: float = 0.0  # of a made-up exchange; 0: one a market
    turnover_per_s: int = 0  # markets that open, and as many that close
    start_timeout_s: float = 60.0  # the play waits so long for full subscriptions
    audit_interval_s: int = 20
    rest_rate_per_s: float = 200.0  # the simulated exchange asks for nothing gentler


class Place(Protocol):
    """What every plan says: the folder and how many gatherers."""

    @property
    def out(self) -> Path: ...

    @property
    def gatherers(self) -> int: ...


P = TypeVar("P", bound=Place)


@dataclass(slots=True)
class Fleet(Generic[P]):
    """The running parts. Databases are named g1.hot, g1.meta, ..., production."""

    plan: P
    databases: dict[str, EmbeddedPostgres] = field(default_factory=dict)
    children: dict[str, Child] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)

    @property
    def gatherer_names(self) -> list[str]:
        return [f"g{i + 1}" for i in range(self.plan.gatherers)]

    def url(self, name: str, path: str) -> str:
        """An HTTP address of a child on the loopback interface."""
        return f"http://127.0.0.1:{self.ports[name]}{path}"


def free_port() -> int:
    """A TCP port of the loopback interface that is free now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def write_test_key(folder: Path) -> tuple[Path, Path]:
    """An RSA pair for this run only. Returns (private PEM, public PEM)."""
    folder.mkdir(parents=True, exist_ok=True)
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    private, public = folder / "private.pem", folder / "public.pem"
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    private.chmod(0o600)
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return private, public


async def start_databases(fleet: Fleet[Any]) -> None:
    """Two clusters a gatherer and one for production, started side by side."""
    names = [f"{g}.{kind}" for g in fleet.gatherer_names for kind in ("hot", "meta")]
    for name in [*names, "production"]:
        fleet.databases[name] = EmbeddedPostgres(fleet.plan.out.joinpath(*name.split(".")))
    # The first one makes the template that the others copy.
    first, *rest = fleet.databases.values()
    await first.start()
    await asyncio.gather(*(db.start() for db in rest))


async def start_exchange(fleet: Fleet[DemoPlan], public_key: Path) -> None:
    """Start the exchange and wait until it listens."""
    plan, ready = fleet.plan, fleet.plan.out / "exchange.ready"
    source = ["--frames", str(plan.frames)] if plan.frames else ["--synthetic", str(plan.synthetic)]
    child = Child(
        name="exchange",
        module="exchange.main",
        environment={},
        log=plan.out / "logs" / "exchange.log",
        arguments=[
            *source, "--rate", plan.rate, "--faults", plan.faults, "--seed", str(plan.seed),
            "--seconds", str(plan.seconds), "--truth", str(plan.out / "truth"),
            "--public-key", str(public_key), "--port", "0", "--ready-file", str(ready),
            "--expect-clients", str(plan.gatherers), "--start-timeout", str(plan.start_timeout_s),
            "--turnover-per-s", str(plan.turnover_per_s),
            *(["--events-per-s", str(plan.events_per_s)] if plan.events_per_s else []),
        ],
        restart=False,
    )  # fmt: skip
    fleet.children["exchange"] = child
    await child.start()
    for _ in range(int(EXCHANGE_READY_S * 20)):
        if child.finished or ready.exists():
            break
        await asyncio.sleep(0.05)
    if not ready.exists():
        raise StorageError(f"the exchange did not start: {child.log_tail()}")
    fleet.ports["exchange"] = int(json.loads(ready.read_text())["port"])


async def start_gatherers(fleet: Fleet[DemoPlan], private_key: Path) -> None:
    """Start every gatherer against the exchange and its own two databases."""
    port = fleet.ports["exchange"]
    for name in fleet.gatherer_names:
        folder = fleet.plan.out / name
        folder.mkdir(exist_ok=True)
        fleet.ports[name], metrics = free_port(), free_port()
        child = Child(
            name=name,
            module="gatherer.main",
            log=fleet.plan.out / "logs" / f"{name}.log",
            environment={
                "KT_GATHERER_NAME": name,
                "KT_WS_URL": f"ws://127.0.0.1:{fleet.ports.get('proxy', port)}/trade-api/ws/v2",
                "KT_REST_URL": f"http://127.0.0.1:{port}/trade-api/v2",
                "KT_KEY_ID": KEY_ID,
                "KT_PRIVATE_KEY_FILE": str(private_key),
                "KT_SPOOL_DIR": str(folder / "spool"),
                "KT_TIMESCALE_DSN": fleet.databases[f"{name}.hot"].dsn(),
                "KT_POSTGRES_DSN": fleet.databases[f"{name}.meta"].dsn(),
                "KT_HEALTH_PORT": str(fleet.ports[name]),
                "KT_METRICS_PORT": str(metrics),
                "KT_TRANSPORT": fleet.plan.transport,
                # A replay runs many times faster.
                "KT_RECONNECT_BASE_MS": "50",
                "KT_RECONNECT_CAP_MS": "1000",
                "KT_AUDIT_INTERVAL_S": str(fleet.plan.audit_interval_s),
                "KT_DATA_TIMEOUT_S": "10",
                "KT_TRADE_WINDOW_S": "5",
                "KT_TRADE_SETTLE_S": "2",
                "KT_REST_RATE_PER_S": str(fleet.plan.rest_rate_per_s),
                "KT_MARKETS_PER_CONNECTION": str(fleet.plan.markets_per_connection),
            },
        )
        fleet.children[name] = child
        await child.start()


async def start_deduplicator(fleet: Fleet[DemoPlan]) -> None:
    """Start the deduplicator; it ends by itself when all gatherers have ended (KT_FINAL)."""
    plan = fleet.plan
    fleet.ports["dedup"], metrics = free_port(), free_port()
    hot = [fleet.databases[f"{g}.hot"].dsn() for g in fleet.gatherer_names]
    meta = [fleet.databases[f"{g}.meta"].dsn() for g in fleet.gatherer_names]
    child = Child(
        name="dedup",
        module="dedup.main",
        log=plan.out / "logs" / "dedup.log",
        environment={
            "KT_GATHERER_DSNS": json.dumps(hot),
            "KT_GATHERER_META_DSNS": json.dumps(meta),
            "KT_PRODUCTION_DSN": fleet.databases["production"].dsn(),
            "KT_LAKE_URI": str(plan.out / "lake"),
            "KT_MERGE": plan.merge,
            "KT_WINDOW_MS": str(plan.window_ms),
            "KT_HEALTH_PORT": str(fleet.ports["dedup"]),
            "KT_METRICS_PORT": str(metrics),
            "KT_FINAL": "true",
        },
    )
    fleet.children["dedup"] = child
    await child.start()


@contextlib.asynccontextmanager
async def running_fleet(plan: DemoPlan) -> AsyncIterator[Fleet[DemoPlan]]:
    """Start everything; stop everything on the way out, whatever happened."""
    fleet = Fleet(plan)
    (plan.out / "logs").mkdir(parents=True, exist_ok=True)
    try:
        private_key, public_key = write_test_key(plan.out / "keys")
        await asyncio.gather(start_databases(fleet), start_exchange(fleet, public_key))
        await start_gatherers(fleet, private_key)
        await start_deduplicator(fleet)
        yield fleet
    finally:
        await asyncio.shield(stop_everything(fleet))


async def stop_everything(fleet: Fleet[Any]) -> None:
    """Kill what still runs (a clean end has been waited for before) and stop the clusters."""
    for child in fleet.children.values():
        await child.stop(timeout_s=5.0)
    await asyncio.gather(*(db.stop() for db in fleet.databases.values()), return_exceptions=True)
