"""Network: VPC, subnets, route tables, S3 endpoint and security groups.

Invariants:
- One resource per row of the specification's tables; its Purpose column is the rule's description.
- Every group states its egress in its own body. A group without would be given "allow all" by AWS.
- Rules between groups are resources of their own, because the two groups refer to each other.
"""

from __future__ import annotations

from aws_cdk import Stack
from aws_cdk import aws_ec2 as ec2
from constructs import Construct

from kalshi_infra.flows import NOTHING_PEER
from kalshi_infra.names import pascal, tags
from kalshi_infra.site import Site
from kalshi_infra.topology import Rule, Topology

# ICMP type 252 to the broadcast address: a rule that nothing can match, so that the list is not
# empty.
NOTHING = ec2.CfnSecurityGroup.EgressProperty(
    ip_protocol="icmp",
    cidr_ip=NOTHING_PEER,
    from_port=252,
    to_port=86,
    description="Nothing may leave",
)


class NetworkStack(Stack):
    """Rows of the sections Network and Security Groups."""

    def __init__(
        self, scope: Construct, name: str, topology: Topology, site: Site, **kwargs: object
    ) -> None:
        super().__init__(scope, name, **kwargs)  # type: ignore[arg-type]
        self._topology = topology
        self._site = site
        self.vpc = ec2.CfnVPC(
            self,
            "Vpc",
            cidr_block=topology.vpc.cidr,
            enable_dns_hostnames=topology.vpc.dns_hostnames,
            enable_dns_support=topology.vpc.dns_resolution,
            tags=tags("kalshi"),
        )
        self.subnets = self._subnets()
        self._routes()
        self.groups = self._security_groups()
        self._rules_between_groups()

    def _subnets(self) -> dict[str, ec2.CfnSubnet]:
        return {
            subnet.name: ec2.CfnSubnet(
                self,
                f"Subnet{pascal(subnet.name)}",
                vpc_id=self.vpc.ref,
                cidr_block=subnet.cidr,
                availability_zone=subnet.zone,
                map_public_ip_on_launch=subnet.public,
                tags=tags(subnet.name),
            )
            for subnet in self._topology.subnet
        }

    def _routes(self) -> None:
        gateway = ec2.CfnInternetGateway(self, "InternetGateway", tags=tags("kalshi"))
        attached = ec2.CfnVPCGatewayAttachment(
            self, "GatewayAttachment", vpc_id=self.vpc.ref, internet_gateway_id=gateway.ref
        )
        tables = {}
        for name in ("public", "private"):
            table = ec2.CfnRouteTable(
                self, f"{pascal(name)}Routes", vpc_id=self.vpc.ref, tags=tags(name)
            )
            tables[name] = table
        for index, row in enumerate(self._topology.route):
            route = ec2.CfnRoute(
                self,
                f"Route{index}",
                route_table_id=tables[row.table].ref,
                destination_cidr_block=row.destination,
                gateway_id=gateway.ref,
            )
            route.add_resource_dependency(attached)
        for subnet in self._topology.subnet:
            ec2.CfnSubnetRouteTableAssociation(
                self,
                f"Routes{pascal(subnet.name)}",
                subnet_id=self.subnets[subnet.name].ref,
                route_table_id=tables["public" if subnet.public else "private"].ref,
            )
        # The specification reaches S3 "via VPC endpoint". A gateway endpoint works through a route,
        # so it adds one prefix-list route to the public table (deviation D07); it costs nothing.
        ec2.CfnVPCEndpoint(
            self,
            "S3Endpoint",
            vpc_id=self.vpc.ref,
            service_name=f"com.amazonaws.{self._topology.region}.s3",
            vpc_endpoint_type="Gateway",
            route_table_ids=[tables["public"].ref],
        )

    def _security_groups(self) -> dict[str, ec2.CfnSecurityGroup]:
        groups = {}
        for group in self._topology.groups():
            outside = [
                r for r in self._topology.rule if r.group == group and not r.peer.startswith("sg-")
            ]
            egress = [self._egress(r) for r in outside if r.direction == "outbound"] or [NOTHING]
            ingress = [self._ingress(r) for r in outside if r.direction == "inbound"]
            groups[group] = ec2.CfnSecurityGroup(
                self,
                pascal(group),
                # AWS refuses group names that begin with "sg-" (deviation D24); the tag carries the
                # row's name.
                group_name=group.replace("sg-", "kalshi-"),
                group_description=f"{group} of the specification",
                vpc_id=self.vpc.ref,
                security_group_ingress=ingress or None,
                security_group_egress=egress,
                tags=tags(group),
            )
        return groups

    def _cidr(self, peer: str) -> str:
        return {"admin": self._site.admin_cidr, "vpc": self._topology.vpc.cidr}.get(peer, peer)

    def _ingress(self, rule: Rule) -> ec2.CfnSecurityGroup.IngressProperty:
        port = self._topology.ports.number(rule.port)
        return ec2.CfnSecurityGroup.IngressProperty(
            ip_protocol="tcp",
            from_port=port,
            to_port=port,
            cidr_ip=self._cidr(rule.peer),
            description=rule.purpose,
        )

    def _egress(self, rule: Rule) -> ec2.CfnSecurityGroup.EgressProperty:
        port = self._topology.ports.number(rule.port)
        return ec2.CfnSecurityGroup.EgressProperty(
            ip_protocol="tcp",
            from_port=port,
            to_port=port,
            cidr_ip=self._cidr(rule.peer),
            description=rule.purpose,
        )

    def _rules_between_groups(self) -> None:
        for rule in self._topology.rule:
            if not rule.peer.startswith("sg-"):
                continue
            port = self._topology.ports.number(rule.port)
            group, peer = (
                self.groups[rule.group].attr_group_id,
                self.groups[rule.peer].attr_group_id,
            )
            name = f"{pascal(rule.group)}{pascal(rule.direction)}{port}{pascal(rule.peer)}"
            if rule.direction == "inbound":
                ec2.CfnSecurityGroupIngress(
                    self,
                    name,
                    group_id=group,
                    source_security_group_id=peer,
                    ip_protocol="tcp",
                    from_port=port,
                    to_port=port,
                    description=rule.purpose,
                )
            else:
                ec2.CfnSecurityGroupEgress(
                    self,
                    name,
                    group_id=group,
                    destination_security_group_id=peer,
                    ip_protocol="tcp",
                    from_port=port,
                    to_port=port,
                    description=rule.purpose,
                )
