"""Site: what belongs to one owner's account, and the options chosen there.

Read from `cdk/site.toml` (not in git; `cdk/site.example.toml` shows it) and from `-c name=value`,
which wins.

Invariants:
- The admin network is at most 256 addresses wide. A wider one is refused before any template
  exists.
- Required values have no default: a guessed image, key or network would be deployed.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kalshi_infra.errors import SettingsError

SITE_PATH = Path(__file__).resolve().parents[1] / "site.toml"
ADMIN_PREFIX_MIN = 24

_PATTERNS = {
    "ami_id": (r"ami-[0-9a-f]{8}([0-9a-f]{9})?", "ami- and 8 or 17 hex digits"),
    "key_pair": (r"[\x21-\x7e]([\x20-\x7e]{0,253}[\x21-\x7e])?", "the name of an EC2 key pair"),
    "deploy_ssh_key": (
        r"(ssh-ed25519|ecdsa-sha2-\S+|ssh-rsa) [A-Za-z0-9+/]+={0,2}( [\x21-\x7e]+)?",
        "one public key line",
    ),
    "nix_public_key": (
        r"[A-Za-z0-9._-]+:[A-Za-z0-9+/]{43}=",
        "name:base64 of an Ed25519 public key",
    ),
    "account": (r"[0-9]{12}", "12 digits"),
    "alarm_email": (r"[^@\s]+@[^@\s]+\.[^@\s]+", "an e-mail address"),
    "bucket_name": (r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", "a bucket name"),
}
_REQUIRED = ("admin_cidr", "ami_id", "key_pair", "deploy_ssh_key", "nix_public_key")
_CHOICES = {
    "production": ("rds", "timescale_ec2"),
    "profile": ("full", "small"),
    "rds_zone": ("a", "b", "c"),
    "cpu_credits": ("default", "standard", "unlimited"),
}


@dataclass(frozen=True, slots=True)
class Options:
    """Switches away from the specification. The defaults deploy the specification, nothing more.

    Days of 0 mean "no such rule". `monthly_budget_usd` belongs to `alarms`.
    """

    dedup_health_egress: bool = False
    secrets_manager: bool = False
    noncurrent_days: int = 0
    abort_multipart_days: int = 0
    glacier_ir: bool = False
    rds_zone: str = "a"
    production: str = "rds"
    profile: str = "full"
    cpu_credits: str = "default"
    lake_catalog: bool = False
    alarms: bool = False
    monthly_budget_usd: int = 1200


@dataclass(frozen=True, slots=True)
class Site:
    """One owner's values. `account`, `alarm_email` and `bucket_name` may be empty."""

    admin_cidr: str
    ami_id: str
    key_pair: str
    deploy_ssh_key: str
    nix_public_key: str
    account: str = ""
    alarm_email: str = ""
    bucket_name: str = ""
    options: Options = field(default_factory=Options)


def load(context: Mapping[str, str], path: Path | None = None) -> Site:
    """Reads the file, lays `context` over it and checks. A missing file is an empty one."""
    path = path or Path(context.get("site", "") or SITE_PATH)
    raw: dict[str, Any] = {}
    if path.exists():
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    elif context.get("site"):
        raise SettingsError([f"site: {path} does not exist"])
    options = dict(raw.pop("options", {}))
    for name, text in context.items():
        if name in Options.__dataclass_fields__:
            options[name] = text
        elif name in Site.__dataclass_fields__:
            raw[name] = text
    return from_mapping({**raw, "options": options})


def from_mapping(raw: Mapping[str, Any]) -> Site:
    """Checks values that were read. Raises SettingsError with every fault found."""
    faults: list[str] = []
    values = {key: str(value) for key, value in raw.items() if key != "options"}
    known = set(Site.__dataclass_fields__)
    faults += [f"site: {key!r} is not known" for key in values if key not in known]
    for name in _REQUIRED:
        if not values.get(name):
            faults.append(
                f"{name} is missing: set it in cdk/site.toml (site.example.toml shows it) or by -c"
            )
    for name, (pattern, meaning) in _PATTERNS.items():
        value = values.get(name, "")
        if value and not re.fullmatch(pattern, value):
            faults.append(f"{name}: {meaning} is needed, {value!r} was found")
    if values.get("admin_cidr"):
        faults += admin_cidr_faults(values["admin_cidr"])
    options = _options(raw.get("options", {}), faults)
    if options.alarms and not values.get("alarm_email"):
        faults.append("alarm_email is missing: the option alarms needs somebody to tell")
    if faults:
        raise SettingsError(faults)
    return Site(**{k: v for k, v in values.items() if k in known}, options=options)


def admin_cidr_faults(text: str) -> list[str]:
    """Why `text` cannot be the network that port 22 is opened to; empty if it can."""
    try:
        network = ipaddress.IPv4Network(text)
    except ValueError as error:
        return [f"admin_cidr: {error}; an IPv4 network such as 203.0.113.7/32 is needed"]
    if "/" not in text:
        return [f"admin_cidr: {text} has no prefix length; write {text}/32"]
    if network.prefixlen < ADMIN_PREFIX_MIN:
        return [
            (
                f"admin_cidr: {network} opens port 22 to {network.num_addresses} addresses; "
                f"/{ADMIN_PREFIX_MIN} or narrower is needed"
            )
        ]
    return []


def _options(raw: Mapping[str, Any], faults: list[str]) -> Options:
    hints = typing.get_type_hints(Options)
    chosen: dict[str, Any] = {}
    for name, value in raw.items():
        if name not in hints:
            faults.append(f"option {name!r} is not known")
            continue
        try:
            chosen[name] = _parse(hints[name], value)
        except ValueError:
            faults.append(f"option {name}: {hints[name].__name__} is needed, {value!r} was found")
            continue
        if name in _CHOICES and chosen[name] not in _CHOICES[name]:
            faults.append(
                f"option {name}: one of {', '.join(_CHOICES[name])} is needed, {value!r} was found"
            )
        if hints[name] is int and chosen[name] < 0:
            faults.append(f"option {name}: {value!r} is negative")
    return Options(**chosen)


def _parse(kind: type, value: Any) -> Any:
    if kind is bool:
        if isinstance(value, bool):
            return value
        if value in ("true", "false"):
            return value == "true"
        raise ValueError(value)
    if kind is int:
        if isinstance(value, bool):
            raise ValueError(value)
        return int(value)
    return str(value)


def with_options(site: Site, **changes: Any) -> Site:
    """The same site with other options."""
    return dataclasses.replace(site, options=dataclasses.replace(site.options, **changes))
