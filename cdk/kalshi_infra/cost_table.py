"""Cost table: the bill of every profile, and what every option adds to the specification's.

Synthesizes each variant in a temporary directory with the site's values (the example's, if there is
no site.toml)."""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from kalshi_infra import cost, site, topology
from kalshi_infra.assembly import Template, read
from kalshi_infra.build import build, new_app
from kalshi_infra.errors import PriceError
from kalshi_infra.site import Options, Site

EXAMPLE_PATH = site.SITE_PATH.with_name("site.example.toml")
OPTIONS: tuple[dict[str, Any], ...] = (
    {"dedup_health_egress": True},
    {"secrets_manager": True},
    {"noncurrent_days": 30},
    {"abort_multipart_days": 7},
    {"glacier_ir": True},
    {"rds_zone": "c"},
    {"production": "timescale_ec2"},
    {"cpu_credits": "standard"},
    {"lake_catalog": True},
    {"alarms": True},
    {"profile": "small", "production": "timescale_ec2"},
)


def synthesize(chosen: Site, options: Mapping[str, Any]) -> dict[str, Template]:
    """Templates for some options, everything else at its default."""
    wanted = dataclasses.replace(
        chosen,
        options=Options(**options),
        alarm_email=chosen.alarm_email or "nobody@example.com",
    )
    with tempfile.TemporaryDirectory() as directory:
        app = new_app(Path(directory))
        build(app, topology.load(profile=wanted.options.profile), wanted)
        app.synth()
        return read(Path(directory))


def _use(templates: Mapping[str, Template], profile: str, prices: cost.Prices) -> Decimal:
    return cost.total(cost.by_use(templates, prices, cost.load_usage(profile)))


def main() -> int:
    """Prints everything. Exit code 1 if something has no price."""
    path = site.SITE_PATH if site.SITE_PATH.exists() else EXAMPLE_PATH
    chosen = site.load({"site": str(path)})
    prices = cost.load_prices()
    totals: dict[str, Decimal] = {}
    uses: dict[str, Decimal] = {}
    try:
        for profile in topology.PROFILES:
            usage = cost.load_usage(profile)
            templates = synthesize(chosen, {"profile": profile})
            lines = cost.bill(templates, prices, usage)
            totals[profile] = cost.total(lines)
            use = cost.by_use(templates, prices, usage)
            uses[profile] = _use(templates, profile, prices)
            print(cost.report(f"profile {profile}", lines, use, prices.dated), end="\n\n")
        print(
            "options: total, difference to the profile, difference by use (burst credits included):"
        )
        for options in OPTIONS:
            profile = options.get("profile", "full")
            templates = synthesize(chosen, options)
            total = cost.total(cost.bill(templates, prices, cost.load_usage(profile)))
            named = ", ".join(f"{name} = {value}" for name, value in options.items())
            used = _use(templates, profile, prices)
            change = f"{total - totals[profile]:>+8}  {used - uses[profile]:>+8}"
            print(f"  {named:<48} {total:>8}  {change}")
    except PriceError as error:
        print(f"cannot reckon: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
