"""Effective topology: the file with the chosen options laid over it.

Invariant: with the default options the result is the file itself, value for value.

It does not build resources; options that add resources (secrets, catalogue, alarms) are read by
their own module."""

from __future__ import annotations

import dataclasses

from kalshi_infra.site import Site
from kalshi_infra.topology import Lifecycle, Rule, Topology

PRODUCTION_SSH = (
    Rule("sg-deduplicator", "outbound", "ssh", "sg-rds", "SSH jump to production"),
    Rule("sg-rds", "inbound", "ssh", "sg-deduplicator", "SSH jump from deduplicator"),
)
HEALTH_EGRESS = Rule(
    "sg-deduplicator", "outbound", "health", "sg-gatherer", "Gatherer health check"
)


def effective(topology: Topology, site: Site) -> Topology:
    """`topology` as the options of `site` change it."""
    options = site.options
    rules = list(topology.rule)
    if options.dedup_health_egress:
        rules.append(HEALTH_EGRESS)
    if options.production == "timescale_ec2":
        rules.extend(PRODUCTION_SSH)
    lifecycle = topology.lifecycle
    if options.glacier_ir:
        lifecycle = tuple(
            _instant_retrieval(entry, topology.bucket.parquet_prefix) for entry in lifecycle
        )
    zone = (
        topology.region + options.rds_zone if options.rds_zone != "a" else topology.production.zone
    )
    subnet, address = _production_place(topology, options.rds_zone)
    host = dataclasses.replace(topology.production_host, subnet=subnet, address=address)
    return dataclasses.replace(
        topology,
        rule=tuple(rules),
        lifecycle=lifecycle,
        production=dataclasses.replace(topology.production, zone=zone),
        production_host=host,
        bucket=dataclasses.replace(topology.bucket, name=site.bucket_name or topology.bucket.name),
    )


def _instant_retrieval(entry: Lifecycle, prefix: str) -> Lifecycle:
    """Only the archive of the lake changes: backups are not queried."""
    if entry.prefix == prefix and entry.storage_class == "GLACIER":
        return dataclasses.replace(entry, storage_class="GLACIER_IR")
    return entry


def _production_place(topology: Topology, zone: str) -> tuple[str, str]:
    """Subnet and address of a production host in private subnet `zone`; the last byte stays."""
    if zone == "a":
        return topology.production_host.subnet, topology.production_host.address
    subnet = topology.subnet_named(f"private-{zone}")
    last_byte = topology.production_host.address.rsplit(".", 1)[1]
    return subnet.name, f"{subnet.cidr.rsplit('.', 1)[0]}.{last_byte}"
