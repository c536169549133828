"""What the workers of a runner need in OpenStack: a key, a security group, and a login for those who make them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

import pulumi
import pulumi_openstack as openstack

from clients.lookups import Machine
from clients.openstack import CloudAccess
from components.declared_rules import DeclaredRules
from components.host_key import HostKey
from components.leftovers import BROKEN_OFF, Leftovers
from components.machine_data import worker_data
from renderers.autoscaler import Autoscaler, CloudLogin, Policy, Worker, access_rules, autoscaler_table, clouds_yaml
from settings import Autoscaler as AutoscalerSettings
from settings import OpenStackHost


@dataclass(frozen=True)
class WorkerGroupArgs:
    """`host` and its `hosts_group` (a security group's id) are those of the managers, `found` is what a worker is made
    of. `files` are further files on workers, by path. `description` and `metadata` mark what is made, as in
    VirtualMachineArgs; `cloud` is what the stack's layers say of the openstack provider, and `access` is where it is.
    """

    scaler: AutoscalerSettings
    host: OpenStackHost
    hosts_group: pulumi.Input[str]
    found: Machine
    files: Mapping[str, str]
    metadata: dict[str, str]
    description: str
    access: CloudAccess
    leftovers: Leftovers
    cloud: Mapping[str, str] | None = None


class WorkerGroup(pulumi.ComponentResource):
    """SSH key, key pair, security group and application credential."""

    private_key: pulumi.Output[str]
    """The managers' SSH key for workers; a secret."""
    clouds_yaml: pulumi.Output[str]
    """A secret."""
    cloud_ca: str | None
    """The CA of the cloud's API, in PEM."""
    cloud: Mapping[str, str] | None
    members: Sequence[pulumi.Resource]
    """What must outlive all workers."""

    def __init__(self, name: str, args: WorkerGroupArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        scaler = args.scaler
        # For policies: else it stands in config.toml alone, which no preview knows before there is a token.
        seen = {
            "flavor": scaler.flavor or args.host.flavor,
            "image": scaler.image or args.host.image,
            "plugin": scaler.plugin,
            "maxInstances": scaler.max_instances,
            "capacityPerInstance": scaler.capacity_per_instance,
            "metadata": args.host.metadata | args.metadata,
        }
        super().__init__("gitlab-runners:openstack:WorkerGroup", name, seen, opts)
        self._args, self._name, self.cloud, self.cloud_ca = args, name, args.cloud, args.access.ca
        key = HostKey(f"{name}-workers", opts=pulumi.ResourceOptions(parent=self))
        self.private_key = key.private_key
        # As in HostGroup: another key gets another name.
        key_name = key.public_key.apply(lambda public: f"{name}-workers-{_digest(public)}")
        pair = openstack.compute.Keypair(
            f"{name}-workers", name=key_name, public_key=key.public_key, opts=args.leftovers.of_unique(self)
        )
        group = self._security_group()
        rules = access_rules(args.access.compute_path, args.access.image_path) if args.scaler.access_rules else None
        named = _digest(json.dumps([args.scaler.roles, rules, args.description]))
        credential = openstack.identity.ApplicationCredential(
            f"{name}-workers",
            # It cannot be changed, and its name is unique for its user.
            name=f"{name}-workers-{named}",
            # The key's id finds one that an interrupted update left. One that is there keeps what it has.
            description=pulumi.Output.concat(args.description, ", key ", key.id),
            roles=list(args.scaler.roles) or None,
            access_rules=[openstack.identity.ApplicationCredentialAccessRuleArgs(**rule) for rule in rules]
            if rules is not None
            else None,
            opts=args.leftovers.before_create(self, replace_on_changes=BROKEN_OFF, ignore_changes=["description"]),
        )
        self.clouds_yaml = pulumi.Output.secret(
            pulumi.Output.all(credential.id, credential.secret).apply(lambda made: self._clouds_yaml(*made))
        )
        self._made = pulumi.Output.all(key_name, group.id, credential.id)
        self.members = [pair, group, credential]
        self.register_outputs({})

    def table(self, group: pulumi.Input[str]) -> pulumi.Output[dict[str, object]]:
        """[runners.autoscaler] of the manager with this group."""
        return pulumi.Output.all(group, self._made).apply(
            lambda known: autoscaler_table(self._autoscaler(known[0], *known[1][:2]))
        )

    @property
    def generation(self) -> pulumi.Output[str]:
        """Digest of all that a manager reads only when it starts: everything but the policies."""

        def digest(made: list[str]) -> str:
            table = autoscaler_table(self._autoscaler("", *made[:2])) | {"policy": None}
            return sha256(json.dumps([table, made, self.cloud_ca], sort_keys=True).encode()).hexdigest()

        return pulumi.Output.unsecret(self._made.apply(digest))

    def _autoscaler(self, group: str, key_pair: str, security_group: str) -> Autoscaler:
        scaler, host, found = self._args.scaler, self._args.host, self._args.found
        return Autoscaler(
            plugin=scaler.plugin,
            group=group,
            capacity_per_instance=scaler.capacity_per_instance,
            max_instances=scaler.max_instances,
            max_use_count=scaler.max_use_count,
            policies=[Policy(each.periods, each.timezone, each.idle_count, each.idle_time) for each in scaler.policies],
            worker=Worker(
                name=f"{self._name}-worker",
                flavor_id=found.flavor_id,
                image_id=found.image_id,
                network_ids=found.network_ids,
                user=host.ssh.user,
                port=host.ssh.port,
                user_data=worker_data(host, found.mtu, self._args.files),
                boot_seconds=host.ready_timeout,
                metadata=host.metadata | self._args.metadata,
                tags=host.tags,
            ),
            key_pair=key_pair,
            security_group_id=security_group,
        )

    def _clouds_yaml(self, credential_id: str, secret: str) -> str:
        access = self._args.access
        return clouds_yaml(
            CloudLogin(
                auth_url=access.auth_url,
                region=access.region,
                interface=access.interface,
                credential_id=credential_id,
                credential_secret=secret,
                insecure=access.insecure,
                has_ca=access.ca is not None,
            )
        )

    def _security_group(self) -> openstack.networking.SecGroup:
        args, name = self._args, f"{self._name}-workers"
        group = openstack.networking.SecGroup(
            name,
            name=name,
            description=args.description,
            delete_default_rules=True,
            tags=list(args.host.tags) or None,
            opts=args.leftovers.before_create(self, replace_on_changes=BROKEN_OFF),
        )
        rules = [
            openstack.networking.SecGroupRule(
                f"{name}-{direction}-{ethertype.lower()}",
                security_group_id=group.id,
                direction=direction,
                ethertype=ethertype,
                # Only the managers' hosts get in.
                protocol="tcp" if direction == "ingress" else None,
                port_range_min=args.host.ssh.port if direction == "ingress" else None,
                port_range_max=args.host.ssh.port if direction == "ingress" else None,
                remote_group_id=args.hosts_group if direction == "ingress" else None,
                opts=args.leftovers.of_unique(self),
            )
            for direction in ("egress", "ingress")
            for ethertype in ("IPv4", "IPv6")
        ]
        declared = [rule.id for rule in rules]
        DeclaredRules(name, group.id, declared, args.cloud, opts=pulumi.ResourceOptions(parent=self))
        return group


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:8]
