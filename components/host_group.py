"""What the virtual machines of a stack share: security group, key pair, server group."""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256

import pulumi
import pulumi_openstack as openstack

from components.declared_rules import DeclaredRules
from components.leftovers import BROKEN_OFF, Leftovers
from renderers.metrics import METRICS_PORT
from settings import OpenStackHost
from settings.networks import spellings


@dataclass(frozen=True)
class HostGroupArgs:
    """`description` marks what is made, for people and for finding what an interrupted update left behind. `cloud` is
    what the stack's layers say of the openstack provider.
    """

    host: OpenStackHost
    description: str
    leftovers: Leftovers
    cloud: Mapping[str, str] | None = None


class HostGroup(pulumi.ComponentResource):
    """Security group that lets in SSH and Prometheus from the declared networks and nothing else; key pair; server
    group."""

    security_group_id: pulumi.Output[str]
    rules: list[pulumi.Resource]
    key_pair: str
    server_group_id: pulumi.Output[str] | None = None
    members: list[pulumi.Resource]
    """What must exist before a machine, and is no property of it."""

    def __init__(self, name: str, args: HostGroupArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("gitlab-runners:openstack:HostGroup", name, None, opts)
        host = args.host
        self.members = []
        group = openstack.networking.SecGroup(
            name,
            name=name,
            description=args.description,
            delete_default_rules=True,
            tags=list(host.tags) or None,
            opts=args.leftovers.before_create(self, replace_on_changes=BROKEN_OFF),
        )
        self.security_group_id = group.id
        rules = [
            openstack.networking.SecGroupRule(
                f"{name}-out-{ethertype.lower()}",
                security_group_id=group.id,
                direction="egress",
                ethertype=ethertype,
                opts=args.leftovers.of_unique(self),
            )
            for ethertype in ("IPv4", "IPv6")
        ] + [
            openstack.networking.SecGroupRule(
                f"{name}-{service}-{cidr}",
                security_group_id=group.id,
                direction="ingress",
                ethertype="IPv6" if ":" in cidr else "IPv4",
                protocol="tcp",
                port_range_min=port,
                port_range_max=port,
                remote_ip_prefix=cidr,
                # As stack files before may have written it: Neutron has no second rule that means the same.
                opts=args.leftovers.of_unique(
                    self, aliases=[pulumi.Alias(name=f"{name}-{service}-{text}") for text in spellings(cidr)]
                ),
            )
            for service, port, cidrs in (
                ("ssh", host.ssh.port, host.ssh_from),
                ("metrics", METRICS_PORT, host.metrics_from),
            )
            for cidr in cidrs
        ]
        declared = [rule.id for rule in rules]
        checked = DeclaredRules(name, group.id, declared, args.cloud, opts=pulumi.ResourceOptions(parent=self))
        self.rules = [*rules, checked]
        if host.key_pair.name is not None:
            self.key_pair = host.key_pair.name
        else:
            public_key = host.key_pair.public_key or ""
            # A key pair cannot be changed, and its name is unique: another key gets another name.
            self.key_pair = f"{name}-{sha256(public_key.encode()).hexdigest()[:8]}"
            self.members.append(
                openstack.compute.Keypair(
                    name, name=self.key_pair, public_key=public_key, opts=args.leftovers.of_unique(self)
                )
            )
        if host.count > 1 and host.anti_affinity != "none":
            self.server_group_id = openstack.compute.ServerGroup(
                name,
                name=name,
                policies="anti-affinity" if host.anti_affinity == "hard" else "soft-anti-affinity",
                opts=args.leftovers.before_create(self, replace_on_changes=BROKEN_OFF),
            ).id
        self.register_outputs({})
