"""Names: how rows of the topology become logical names and tags."""

from __future__ import annotations

from aws_cdk import CfnTag


def pascal(name: str) -> str:
    """`gatherer-1` becomes `Gatherer1`."""
    return "".join(part.capitalize() for part in name.split("-"))


def tags(name: str) -> list[CfnTag]:
    """The Name tag, by which people and the conformance test find a resource."""
    return [CfnTag(key="Name", value=name)]


def stack_name(host: str) -> str:
    """The stack of one host: `gatherer-1` is in `KalshiGatherer1`."""
    return f"Kalshi{pascal(host)}"
