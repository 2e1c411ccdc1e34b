"""Fixtures of the AWS side: one synthesis per set of options and test run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import conform
import pytest
from kalshi_infra import site, topology
from kalshi_infra.assembly import Template
from kalshi_infra.site import Site
from kalshi_infra.topology import Topology

__all__ = ["chosen", "synthesized", "templates", "wanted"]

Synthesized = Callable[..., Mapping[str, Template]]


@pytest.fixture(scope="session")
def chosen() -> Site:
    """The documented example values, with an address to warn."""
    return conform.example_site()


@pytest.fixture(scope="session")
def wanted() -> Topology:
    """topology.toml."""
    return topology.load()


@pytest.fixture(scope="session")
def synthesized(chosen: Site) -> Synthesized:
    """Templates for some options; each set is synthesized once."""
    made: dict[tuple[tuple[str, Any], ...], Mapping[str, Template]] = {}

    def build(**options: Any) -> Mapping[str, Template]:
        key = tuple(sorted(options.items()))
        if key not in made:
            raw = {name: getattr(chosen, name) for name in chosen.__dataclass_fields__}
            given = site.from_mapping(
                {**raw, "alarm_email": "tape@example.com", "options": options}
            )
            profile = given.options.profile
            made[key], _ = conform.synthesize(topology.load(profile=profile), given)
        return made[key]

    return build


@pytest.fixture(scope="session")
def templates(synthesized: Synthesized) -> Mapping[str, Template]:
    """The specification as written."""
    return synthesized()
