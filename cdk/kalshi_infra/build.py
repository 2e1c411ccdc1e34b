"""Build: topology and site in, a synthesized cloud assembly out.

Invariant: nothing is read from the environment or the network; the same two values give the same
bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aws_cdk as cdk

from kalshi_infra.alarms import AlarmsStack
from kalshi_infra.database import DatabaseStack
from kalshi_infra.effective import effective
from kalshi_infra.host import HostPlan, HostStack
from kalshi_infra.identity import IdentityStack
from kalshi_infra.lake import LakeStack
from kalshi_infra.names import stack_name
from kalshi_infra.network import NetworkStack
from kalshi_infra.policy import acknowledge
from kalshi_infra.site import Site
from kalshi_infra.storage import StorageStack
from kalshi_infra.topology import Topology

CDK_JSON = Path(__file__).resolve().parents[1] / "cdk.json"


def feature_flags() -> dict[str, Any]:
    """The context of cdk.json, so that a build without the CLI gives the same templates."""
    context = json.loads(CDK_JSON.read_text(encoding="utf-8"))["context"]
    assert isinstance(context, dict)
    return context


def new_app(outdir: Path | None = None, context: Mapping[str, Any] | None = None) -> cdk.App:
    """An app without analytics and with the flags of cdk.json."""
    return cdk.App(
        outdir=str(outdir) if outdir else None,
        analytics_reporting=False,
        context={
            **feature_flags(),
            "aws:cdk:enable-path-metadata": False,
            "aws:cdk:version-reporting": False,
            **(context or {}),
        },
    )


def build(app: cdk.App, topology: Topology, site: Site) -> dict[str, cdk.Stack]:
    """Adds all stacks to `app` and returns them by name, in the order of deployment."""
    wanted = effective(topology, site)
    environment = cdk.Environment(region=wanted.region, account=site.account or None)
    common: dict[str, Any] = {
        "env": environment,
        "termination_protection": True,
        "synthesizer": cdk.DefaultStackSynthesizer(generate_bootstrap_version_rule=False),
    }
    acknowledge(app)
    network = NetworkStack(app, "KalshiNetwork", wanted, site, **common)
    identity = IdentityStack(app, "KalshiIdentity", wanted, site, **common)
    storage = StorageStack(app, "KalshiStorage", wanted, site, **common)
    stacks: list[cdk.Stack] = [network, identity, storage]
    if site.options.production == "rds":
        stacks.append(
            DatabaseStack(app, "KalshiDatabase", wanted, site, network, identity, **common)
        )
    previous: HostStack | None = None
    hosts: list[HostStack] = []
    for plan in host_plans(wanted, site):
        stack = HostStack(app, stack_name(plan.name), plan, site, network, **common)
        stack.add_stack_dependency(identity)
        if previous is not None:
            # A chain: CloudFormation never has two of them in work at once.
            stack.add_stack_dependency(previous)
        previous = stack
        hosts.append(stack)
    stacks += hosts
    if site.options.lake_catalog:
        stacks.append(LakeStack(app, "KalshiLake", wanted, **common))
    if site.options.alarms:
        names = {
            plan.name: host.instance.ref
            for plan, host in zip(host_plans(wanted, site), hosts, strict=True)
        }
        stacks.append(AlarmsStack(app, "KalshiAlarms", wanted, site, names, **common))
    return {stack.stack_name: stack for stack in stacks}


def host_plans(topology: Topology, site: Site) -> list[HostPlan]:
    """The hosts in the order in which they are deployed: production, gatherers, deduplicator."""
    plans = []
    if site.options.production == "timescale_ec2":
        wanted = topology.production_host
        plans.append(
            HostPlan(
                name="production",
                role="production",
                instance_type=wanted.instance_type,
                disk=wanted.disk,
                subnet=wanted.subnet,
                address=wanted.address,
                security_group=topology.production.security_group,
                profile="",
            )
        )
    for host in topology.host:
        role = topology.role[host.role]
        plans.append(
            HostPlan(
                name=host.name,
                role=host.role,
                instance_type=role.instance_type,
                disk=role.disk,
                subnet=host.subnet,
                address=host.address,
                security_group=role.security_group,
                profile=f"kalshi-{host.role}",
            )
        )
    return plans
