"""What `tape capture` was asked for: one resolved form out of file, environment and flags.

Later wins: the file (`--config`, TOML), then `KT_CAPTURE_...`, then the command line. Every fault
is in the one ConfigError, with where the value came from. The key is a file and is never shown.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from marketdata.errors import ConfigError

PREFIX: Final = "KT_CAPTURE_"
ADDRESSES: Final[Mapping[str, tuple[str, str]]] = {
    "prod": (
        "wss://external-api-ws.kalshi.com/trade-api/ws/v2",
        "https://external-api.kalshi.com/trade-api/v2",
    ),
    "demo": (
        "wss://external-api-ws.demo.kalshi.co/trade-api/ws/v2",
        "https://external-api.demo.kalshi.co/trade-api/v2",
    ),
}
"""Environment -> (WebSocket, REST)."""
LISTS: Final = frozenset({"series"})


class CaptureConfig(BaseModel):
    """Every setting of a capture. Empty addresses are those of `env`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key_id: str = Field(min_length=1)
    key_file: Path
    env: str = Field(default="prod", pattern="^(prod|demo)$")
    series: list[str] = Field(default_factory=list)  # empty: every market
    out: Path = Path("kalshi-tape")
    gatherers: int = Field(default=1, ge=1, le=3)
    transport: str = Field(default="picows", pattern="^(picows|websockets)$")
    rest_rate_per_s: float = Field(default=5.0, gt=0)
    window_ms: int = Field(default=5_000, ge=1)
    ws_url: str = Field(default="", pattern="^(wss?://.*)?$")
    rest_url: str = Field(default="", pattern="^(https?://.*)?$")
    ca_file: Path | None = None

    @property
    def websocket(self) -> str:
        """Where frames come from."""
        return self.ws_url or ADDRESSES[self.env][0]

    @property
    def rest(self) -> str:
        """Where lists come from."""
        return self.rest_url or ADDRESSES[self.env][1]


@dataclass(frozen=True, slots=True)
class Resolved:
    """The settings and where each came from: a file's path, a variable's name, a flag or
    "default"."""

    config: CaptureConfig
    origin: Mapping[str, str]

    def lines(self) -> list[str]:
        """The one printed form."""
        shown = {
            **self.config.model_dump(mode="json"),
            "ws_url": self.config.websocket,
            "rest_url": self.config.rest,
            "series": ", ".join(self.config.series) or "all",
        }
        width = max(map(len, shown))
        return [
            f"{name:<{width}}  {value if value is not None else '-'}  ({self.origin[name]})"
            for name, value in shown.items()
        ]


def resolve(file: Path | None, environ: Mapping[str, str], flags: Mapping[str, Any]) -> Resolved:
    """The settings. `flags`: those given, by setting's name; None counts as not given.

    Raises:
        ConfigError: with every fault, one a line.
    """
    fields = CaptureConfig.model_fields
    values: dict[str, Any] = {}
    origin = dict.fromkeys(fields, "default")
    faults: list[str] = []
    for name, value in _of_file(file).items():
        values[name], origin[name] = value, str(file)
    for variable, text in environ.items():
        name = variable.removeprefix(PREFIX).lower()
        if not variable.startswith(PREFIX) or not text:
            continue
        if name not in fields:
            faults.append(f"{variable}: there is no such setting")
            continue
        values[name], origin[name] = _parsed(name, text, variable, faults), variable
    for name, value in flags.items():
        if value is not None and value != []:
            values[name], origin[name] = value, f"--{name.replace('_', '-')}"
    try:
        config = CaptureConfig.model_validate(values)
    except ValidationError as error:
        faults += [_said(fault, origin) for fault in error.errors()]
    else:
        if not faults:
            return Resolved(config, origin)
    raise ConfigError("; ".join(faults), hint="tape capture --help lists every setting")


def _of_file(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{file} is not TOML: {error}") from error


def _parsed(name: str, text: str, variable: str, faults: list[str]) -> Any:
    if name not in LISTS:
        return text
    try:
        return json.loads(text) if text.startswith("[") else text.split(",")
    except ValueError as error:
        faults.append(f"{variable}: is not a list: {error}")
        return []


def _said(fault: Any, origin: Mapping[str, str]) -> str:
    name = str(fault["loc"][0])
    flag = f"--{name.replace('_', '-')}"
    if fault["type"] == "missing":
        return f"{flag} is not given"
    if fault["type"] == "extra_forbidden":
        return f"{name}: there is no such setting"
    return f"{name} = {fault['input']!r} ({origin.get(name, 'default')}): {fault['msg']}"
