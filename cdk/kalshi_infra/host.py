"""Host: one EC2 instance in a stack of its own.

Invariants:
- One stack per host. CloudFormation may stop or replace everything of one stack at once, so two
  gatherers never share one (guard.py refuses the rest).
- The disk is in a launch template: AWS::EC2::Instance cannot carry throughput (deviation D22).
- User data is frozen (firstboot.sh) and holds no version of our software: a release never touches a
  host's stack.
- The image is pinned by id: a "latest image" parameter would replace the host and lose its
  databases.
- The disk outlives the instance.
"""

from __future__ import annotations

from dataclasses import dataclass

from aws_cdk import CfnOutput, Fn, Stack
from aws_cdk import aws_ec2 as ec2
from constructs import Construct

from kalshi_infra.firstboot import user_data
from kalshi_infra.names import tags
from kalshi_infra.network import NetworkStack
from kalshi_infra.site import Site
from kalshi_infra.topology import Disk

# Of Debian's arm64 images; another name would add a second disk and leave the root small.
ROOT_DEVICE = "/dev/xvda"


@dataclass(frozen=True, slots=True)
class HostPlan:
    """What distinguishes one host; `profile` is an instance profile's name or empty."""

    name: str
    role: str
    instance_type: str
    disk: Disk
    subnet: str
    address: str
    security_group: str
    profile: str


class HostStack(Stack):
    """A launch template with the disk, and the instance."""

    def __init__(
        self,
        scope: Construct,
        name: str,
        plan: HostPlan,
        site: Site,
        network: NetworkStack,
        **kwargs: object,
    ) -> None:
        super().__init__(scope, name, **kwargs)  # type: ignore[arg-type]
        template = self._launch_template(plan)
        credit_mode = site.options.cpu_credits
        self.instance = ec2.CfnInstance(
            self,
            "Instance",
            image_id=site.ami_id,
            instance_type=plan.instance_type,
            key_name=site.key_pair,
            iam_instance_profile=plan.profile or None,
            launch_template=ec2.CfnInstance.LaunchTemplateSpecificationProperty(
                launch_template_id=template.ref, version=template.attr_latest_version_number
            ),
            subnet_id=network.subnets[plan.subnet].ref,
            private_ip_address=plan.address,
            security_group_ids=[network.groups[plan.security_group].attr_group_id],
            disable_api_termination=True,
            credit_specification=None
            if credit_mode == "default"
            else ec2.CfnInstance.CreditSpecificationProperty(cpu_credits=credit_mode),
            propagate_tags_to_volume_on_creation=True,
            user_data=Fn.base64(user_data(plan.name, plan.role, site)),
            tags=tags(plan.name),
        )
        CfnOutput(self, "InstanceId", value=self.instance.ref)
        CfnOutput(self, "PrivateIp", value=self.instance.attr_private_ip)

    def _launch_template(self, plan: HostPlan) -> ec2.CfnLaunchTemplate:
        disk = ec2.CfnLaunchTemplate.EbsProperty(
            volume_type=plan.disk.type,
            volume_size=plan.disk.size_gib,
            iops=plan.disk.iops,
            throughput=plan.disk.throughput_mbps,
            encrypted=True,
            delete_on_termination=False,
        )
        return ec2.CfnLaunchTemplate(
            self,
            "Disk",
            launch_template_name=f"kalshi-{plan.name}",
            launch_template_data=ec2.CfnLaunchTemplate.LaunchTemplateDataProperty(
                block_device_mappings=[
                    ec2.CfnLaunchTemplate.BlockDeviceMappingProperty(
                        device_name=ROOT_DEVICE, ebs=disk
                    )
                ],
                metadata_options=ec2.CfnLaunchTemplate.MetadataOptionsProperty(
                    http_endpoint="enabled", http_tokens="required", http_put_response_hop_limit=1
                ),
            ),
        )
