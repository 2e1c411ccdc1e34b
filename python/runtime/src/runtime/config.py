"""Settings of the services: environment variables `KT_...`, checked once, at start, all together.

What holds: a service that starts has settings that are complete and plausible; every fault, unknown
`KT_` names included, is in the one ConfigError. Settings are frozen. The signing key is a file.

Does not do: defaults that depend on a machine, reading files (except whether a key file is there).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeVar, get_origin

from pydantic import AfterValidator, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from marketdata.errors import ConfigError
from marketdata.rows import GATHERERS_MAX
from runtime.postgres import plainly
from runtime.spool import GROUP_COMMIT_MS, SEGMENT_BYTES
from runtime.spool_files import RETAIN_BYTES, SEGMENT_BYTES_MAX

PREFIX: Final = "KT_"


def _begins_with(*schemes: str) -> AfterValidator:
    def check(value: str) -> str:
        if not value.startswith(tuple(f"{scheme}://" for scheme in schemes)):
            raise ValueError(f"must begin with {' or '.join(f'{s}://' for s in schemes)}")
        return value

    return AfterValidator(check)


def _is_file(path: Path) -> Path:
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    if not os.access(path, os.R_OK):
        raise ValueError(f"{path} cannot be read by this account")
    return path


Dsn = Annotated[str, _begins_with("postgresql", "postgres")]
WsUrl = Annotated[str, _begins_with("ws", "wss")]
HttpUrl = Annotated[str, _begins_with("http", "https")]
Port = Annotated[int, Field(ge=0, le=65535)]  # 0: the system chooses
ReadableFile = Annotated[Path, AfterValidator(_is_file)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")]
Count = Annotated[int, Field(ge=1)]
Amount = Annotated[int, Field(ge=0)]
KeyPrefix = Annotated[str, Field(pattern=r"^([a-z0-9-]+/)+$")]


class ServiceSettings(BaseSettings):
    """What every service has."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore")

    bind: str = "127.0.0.1"
    health_port: Port = 8080
    metrics_port: Port = 9090
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    clock_offset_ms: int = 0  # tests: added to the wall clock
    # What is deployed, for the status page; empty: unknown.
    revision: Annotated[str, Field(pattern=r"^[A-Za-z0-9._+-]{0,64}$")] = ""

    def described(self) -> dict[str, Any]:
        """All settings for the log at start, passwords blanked."""

        def blank(value: Any) -> Any:
            if isinstance(value, str):
                return plainly(value)
            return [blank(item) for item in value] if isinstance(value, list) else value

        return {name: blank(value) for name, value in self.model_dump(mode="json").items()}


class GathererSettings(ServiceSettings):
    """`python -m gatherer.main`."""

    gatherer_name: Name = "g1"
    feed_processes: Annotated[int, Field(ge=1, le=8)] = 1  # of this host, each with its own spool
    feed_number: Amount = 0  # which of them this is; set by the process that starts them
    ws_url: WsUrl
    rest_url: HttpUrl
    key_id: Annotated[str, Field(min_length=1)]
    private_key_file: ReadableFile
    ca_file: ReadableFile | None = None  # trust this certificate besides the system's (tests)
    spool_dir: Path
    timescale_dsn: Dsn
    postgres_dsn: Dsn
    transport: Literal["websockets", "picows"] = "websockets"
    reconnect_base_ms: Count = 250
    reconnect_cap_ms: Count = 30_000
    group_commit_ms: Count = GROUP_COMMIT_MS
    sink_flush_ms: Count = 250
    sink_flush_rows: Count = 5_000
    sink_queue_rows: Count = 500_000  # held in memory; more are read again from the spool
    heartbeat_ms: Count = 1_000  # a batch without rows moves the watermark
    markets_per_connection: Count = 2_000
    # Of the exchange's 200 a user, shared by the gatherers: 3 times 60 for books and 3 besides.
    connections_max: Annotated[int, Field(ge=1, le=200)] = 60
    rebalance_s: Amount = 0  # between looks at hot markets; 0: none ever moves
    hot_frames_per_s: Count = 50  # from here on a market is hot
    audit_interval_s: Count = 300  # one get_snapshot round over all books
    data_timeout_s: Count = 30  # silence of a feed that should speak
    discovery_interval_s: Count = 60  # between looks at what was created or updated
    full_round_s: Count = 600  # between rounds over all lists of the exchange
    # Combinations: every one, those with an offer, a trade or an open contract, or none.
    combos: Literal["all", "priced", "none"] = "none"
    drain_deadline_s: Count = 20  # at a clean stop
    segment_bytes: Annotated[int, Field(ge=64 * 1024, le=SEGMENT_BYTES_MAX)] = SEGMENT_BYTES
    spool_retain_bytes: Amount = RETAIN_BYTES
    spool_retain_hours: Count = 24 * 14  # older segments go although there is room
    hot_retain_hours: Amount = 24 * 7  # in the hot database, once verified in the lake; 0: for ever
    hot_retain: Literal["auto", "dry", "off"] = (
        "auto"  # auto: the first week only says what would go
    )
    # Segments stay until the deduplicator has told that it stored their rows. False: nobody reads.
    spool_await_reader: bool = True
    rest_rate_per_s: Annotated[float, Field(gt=0)] = 5.0
    trade_window_s: Count = 30  # seconds of trades compared with REST at a time
    trade_settle_s: Amount = 10  # that they have been over
    trade_lookback_s: Count = 24 * 3600  # how far back after a start
    rest_audit_share: Annotated[float, Field(ge=0, lt=1)] = 0.3  # of rest_rate_per_s; 0: no audits
    rest_audit_interval_s: Count = 300  # a round over all books begins at most so often
    clock_limit_ms: Amount = 1_000  # our clock off by more is told of; 0: only measured
    # Series whose order books are recorded, a JSON list; empty: all. Trades and tickers are always
    # those of the whole exchange.
    series: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)


class DedupSettings(ServiceSettings):
    """`python -m dedup.main`. `gatherer_dsns` and `gatherer_meta_dsns` are JSON lists; the index is
    the gatherer's bit in `sources`."""

    gatherer_dsns: Annotated[list[Dsn], Field(min_length=1, max_length=GATHERERS_MAX)]
    gatherer_meta_dsns: Annotated[list[Dsn], Field(max_length=GATHERERS_MAX)] = Field(
        default_factory=list
    )
    production_dsn: Dsn
    lake_uri: Annotated[str, Field(min_length=1)]
    backup_prefix: KeyPrefix = "backups/rds/"  # of the lake's store: a backup there is of a tape
    window_ms: Count = 5_000
    grace_ms: Amount = 2_000
    idle_hold_ms: Amount = 30_000
    patience_s: Count = 60
    merge: Literal["runs", "content"] = "runs"
    # Processes that share the tape's markets, and which of them this is: 1 to merge_shards, each
    # perhaps on a host of its own. 0: this one starts them all, here.
    merge_shards: Annotated[int, Field(ge=1, le=64)] = 1
    merge_shard: Amount = 0
    merge_parent: Amount = 0  # set by the process that starts them: its id

    @model_validator(mode="after")
    def _shard_of_shards(self) -> Self:
        if self.merge_shard > self.merge_shards:
            raise ValueError(f"merge_shard {self.merge_shard} of {self.merge_shards} processes")
        return self

    poll_ms: Count = 100
    live: bool = True  # proven events are in production before their window closes (live_delta)
    final: bool = False
    production_retain_days: Amount = 0  # rows in production, once verified in the lake; 0: for ever
    production_retain: Literal["auto", "dry", "off"] = (
        "auto"  # auto: a week of only saying what goes
    )


class BackupSettings(ServiceSettings):
    """`python -m dedup.backup`. `verify_dsn`: an empty database; the backup is restored there."""

    production_dsn: Dsn
    lake_uri: Annotated[str, Field(min_length=1)]
    backup_prefix: KeyPrefix = "backups/rds/"
    pg_bin: Path  # where pg_dump and pg_restore are, of the server's version or newer
    verify_dsn: Dsn | None = None


class CloudwatchSettings(ServiceSettings):
    """`python -m runtime.cloudwatch`. Without `role` it is the host's name without its number.

    `log_units` is a JSON list of units or patterns of journalctl; an empty `log_prefix`: no logs.
    """

    host_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.-]{0,63}$")]
    role: Literal["gatherer", "deduplicator"]
    service_url: HttpUrl = "http://127.0.0.1:8080"
    namespace: Annotated[str, Field(min_length=1)] = "Kalshi"  # the roles may write to no other
    log_prefix: str = ""  # the log group is this and the role
    log_units: list[str] = Field(default_factory=list)
    state_dir: Path
    disk: Path = Path("/")  # of which the free share is told
    interval_s: Count = 60

    @model_validator(mode="before")
    @classmethod
    def _role_by_host(cls, values: dict[str, Any]) -> dict[str, Any]:
        host = str(values.get("host_name", ""))
        return {"role": host.rstrip("0123456789").rstrip("-"), **values} if host else values


S = TypeVar("S", bound=ServiceSettings)
_ALL: Final[tuple[type[ServiceSettings], ...]] = (
    GathererSettings, DedupSettings, BackupSettings, CloudwatchSettings,
)  # fmt: skip


def load(kind: type[S], environ: Mapping[str, str] | None = None) -> S:
    """The settings of a service from the environment.

    Raises:
        ConfigError: with every fault, one a line.
    """
    variables = os.environ if environ is None else environ
    faults = _unknown_names(kind, variables)
    values = _taken(kind, variables, faults)
    try:
        settings = kind.model_validate(values)
    except ValidationError as error:
        told = {fault.split(":")[0] for fault in faults}
        for fault in error.errors():
            name = PREFIX + ".".join(str(part) for part in fault["loc"]).upper()
            if name not in told:
                faults.append(f"{name}: {_said(fault)}")
    else:
        if not faults:
            return settings
    count = f"{len(faults)} settings are" if len(faults) > 1 else "1 setting is"
    raise ConfigError(f"{count} wrong:\n  " + "\n  ".join(sorted(faults)))


def _taken(
    kind: type[ServiceSettings], variables: Mapping[str, str], faults: list[str]
) -> dict[str, Any]:
    """The values of this service; lists are parsed as JSON. An empty variable counts as not set."""
    values: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        variable = PREFIX + name.upper()
        text = variables.get(variable, "")
        if not text:
            continue
        values[name] = text
        if get_origin(field.annotation) is list:
            try:
                values[name] = json.loads(text)
            except ValueError as error:
                faults.append(f"{variable}: is not a JSON list: {error} (got {text!r})")
    return values


def _said(fault: Any) -> str:
    if fault["type"] == "missing":
        return "is not set"
    message = str(fault["msg"]).removeprefix("Value error, ")
    given = fault["input"]
    return f"{message} (got {plainly(given) if isinstance(given, str) else given!r})"


def _unknown_names(kind: type[ServiceSettings], variables: Mapping[str, str]) -> list[str]:
    """A mistyped name would otherwise be a setting that silently does nothing."""
    known = {PREFIX + name.upper() for each in (kind, *_ALL) for name in each.model_fields}
    return [
        f"{name}: no service has a setting of this name"
        for name in variables
        if name.startswith(PREFIX) and name not in known
    ]
