"""An OpenStack virtual machine with Docker, ready to be reached over SSH."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import pulumi
import pulumi_openstack as openstack

from clients.lookups import Machine
from components.host_group import HostGroup
from components.host_key import HostKey
from components.leftovers import BROKEN_OFF, HOST_KEY_METADATA, Leftovers
from components.machine_data import host_data, is_compressed
from renderers.user_data import packed
from settings import OpenStackHost


@dataclass(frozen=True)
class VirtualMachineArgs:
    """The machine with this number in the stack. `host` is what that one has, as `settings.hosts_of` tells.
    `description` marks what is made, as in HostGroupArgs; `metadata` is Nova's.

    `unfinished` says that no job can be running there: Nova has no such server, or did not finish one. `volume_broken`
    says that Cinder could not make a volume for it.
    """

    host: OpenStackHost
    number: int
    group: HostGroup
    found: Machine
    metadata: dict[str, str]
    description: str
    leftovers: Leftovers
    unfinished: bool
    volume_broken: bool = False


class VirtualMachine(pulumi.ComponentResource):
    """Host key, ports, volume, server and floating IP.

    Whatever would wipe the machine or restart it under its jobs (flavor, image, user_data, …) replaces it instead: the
    new machine, with ports and a volume of its own, is there before the old one goes. So is a floating IP by which SSH
    reaches it; one that SSH does not use is the same for all machines of this name, see `move_floating_ip`.
    """

    instance: openstack.compute.Instance
    address: pulumi.Output[str]
    """Where SSH reaches the machine, once it exists."""
    addresses: pulumi.Output[list[str]]
    host_key: pulumi.Output[str]
    """Public SSH host key."""
    ssh_dependencies: list[pulumi.Resource]
    """What must exist before SSH can reach the machine."""
    floating_ip: openstack.networking.FloatingIp | None = None

    def __init__(self, name: str, args: VirtualMachineArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        host, group = args.host, args.group
        self._leftovers = args.leftovers
        # For policies: the server has only the ids that these were looked up to.
        seen = {"flavor": host.flavor, "image": host.image}
        super().__init__("gitlab-runners:openstack:VirtualMachine", name, seen, opts)
        key = HostKey(name, opts=pulumi.ResourceOptions(parent=self))
        self.host_key = key.public_key
        # An update that breaks off on a machine that works must not replace it: its port would first be taken from it.
        mended = BROKEN_OFF if args.unfinished else []
        volume = None
        if host.docker_volume is not None:
            volume = openstack.blockstorage.Volume(
                name,
                name=name,
                description=args.description,
                size=host.docker_volume.size,
                volume_type=host.docker_volume.type,
                availability_zone=host.docker_volume.availability_zone,
                enable_online_resize=True,
                metadata={**args.metadata, HOST_KEY_METADATA: key.id},
                opts=args.leftovers.of_volume(
                    self,
                    # The type may be changed by hand, under running jobs; the marks are those of its creation.
                    ignore_changes=["availabilityZone", "metadata", "volumeType"],
                    # All that makes it another machine, but for the volume's own id.
                    replacement_trigger=self._trigger(args, self._user_data(args, key, "")),
                    replace_on_changes=BROKEN_OFF if args.unfinished or args.volume_broken else [],
                ),
            )
        data = self._user_data(args, key, volume.id if volume is not None else None)
        compressed = is_compressed(host, args.found.mtu)
        trigger = self._trigger(args, data)
        ports = [
            openstack.networking.Port(
                name if index == 0 else f"{name}-{index + 1}",
                name=name if index == 0 else f"{name}-{index + 1}",
                description=args.description,
                network_id=network,
                security_group_ids=[group.security_group_id],
                tags=list(host.tags) or None,
                opts=args.leftovers.before_create(self, replacement_trigger=trigger, replace_on_changes=mended),
            )
            for index, network in enumerate(args.found.network_ids)
        ]
        self.instance = openstack.compute.Instance(
            name,
            name=name,
            flavor_id=args.found.flavor_id,
            key_pair=group.key_pair,
            availability_zone=host.availability_zone,
            networks=[openstack.compute.InstanceNetworkArgs(port=port.id) for port in ports],
            user_data=data.apply(packed) if compressed else data,
            metadata=host.metadata | args.metadata,
            tags=list(host.tags) or None,
            scheduler_hints=(
                [openstack.compute.InstanceSchedulerHintArgs(group=group.server_group_id)]
                if group.server_group_id is not None
                else None
            ),
            **self._disks(args, volume),
            opts=args.leftovers.before_create(
                self,
                depends_on=group.members,
                replacement_trigger=trigger,
                replace_on_changes=mended,
                # Two cannot have one port, and this one has no jobs.
                delete_before_replace=args.unfinished,
                # The trigger has what the stack file says of these. What somebody changed by hand stays: to undo it
                # would restart the machine under its jobs. A hint only counts when the machine is placed: a second
                # machine does not move the first.
                ignore_changes=[
                    *("availabilityZone", "flavorId", "imageId", "schedulerHints"),
                    # Another computer may compress the same text to other bytes: the trigger has the text.
                    *(["userData"] if compressed else []),
                ],
            ),
        )
        self.ssh_dependencies = [self.instance]
        fixed = ports[0].all_fixed_ips.apply(_preferred)
        self.address = fixed
        self.addresses = pulumi.Output.all(*(port.all_fixed_ips for port in ports)).apply(
            lambda lists: [address for addresses in lists for address in addresses]
        )
        self._port = ports[0]
        if host.floating_ip_pool is not None:
            floating = self.floating_ip = openstack.networking.FloatingIp(
                name,
                pool=host.floating_ip_pool,
                description=args.description,
                tags=list(host.tags) or None,
                # Where SSH uses it, the old machine must stay reachable by its own while it drains. That is another
                # address, and no job that notices: managers reach GitLab from their machine.
                opts=args.leftovers.before_create(
                    self,
                    replacement_trigger=None if host.keeps_floating_ip else trigger,
                    replace_on_changes=BROKEN_OFF,
                ),
            )
            self.addresses = pulumi.Output.all(self.addresses, floating.address).apply(lambda all_: [*all_[0], all_[1]])
            if not host.keeps_floating_ip:
                self.address = floating.address
                association = self._associate(depends_on=[self.instance], replacement_trigger=trigger)
                self.ssh_dependencies.append(association)
        self.register_outputs({"addresses": self.addresses})

    def move_floating_ip(self, drained: pulumi.Resource) -> None:
        """Gives this machine the floating IP that SSH does not use, from the one before it.

        `drained` is what exists once no job runs on that one: its connections go through the address.
        """
        # On its own it would be taken from the last machine before that has drained.
        self._associate(depends_on=[drained], delete_before_replace=True)

    def _associate(self, **options: Any) -> openstack.networking.FloatingIpAssociate:
        assert self.floating_ip is not None
        return openstack.networking.FloatingIpAssociate(
            self.pulumi_resource_name,
            floating_ip=self.floating_ip.address,
            port_id=self._port.id,
            # It ends with the address: where somebody deleted that, the provider would fail to take it off the port.
            opts=self._leftovers.before_create(self, deleted_with=self.floating_ip, **options),
        )

    @staticmethod
    def _user_data(args: VirtualMachineArgs, key: HostKey, volume_id: pulumi.Input[str] | None) -> pulumi.Output[str]:
        host = args.host

        def render(private_key: str, public_key: str, volume_id: str | None) -> str:
            return host_data(host, args.number, args.found.mtu, (private_key, public_key), volume_id)

        return pulumi.Output.all(key.private_key, key.public_key, volume_id).apply(lambda known: render(*known))

    @staticmethod
    def _disks(args: VirtualMachineArgs, volume: openstack.blockstorage.Volume | None) -> dict[str, Any]:
        boot, image = args.host.boot_volume, args.found.image_id
        device = openstack.compute.InstanceBlockDeviceArgs
        root = device(
            uuid=image, source_type="image", destination_type="local", boot_index=0, delete_on_termination=True
        )
        if boot is not None:
            root = device(
                uuid=image,
                source_type="image",
                destination_type="volume",
                boot_index=0,
                volume_size=boot.size,
                volume_type=boot.type,
                delete_on_termination=True,
            )
        elif volume is None:
            return {"image_id": image}
        disks: dict[str, Any] = {"block_devices": [root], "image_id": image if boot is None else None}
        if volume is not None:
            # There before the first boot. It is the stack's, which deletes it after the machine.
            disks["block_devices"].append(
                device(uuid=volume.id, source_type="volume", destination_type="volume", boot_index=-1)
            )
        return disks

    @staticmethod
    def _trigger(args: VirtualMachineArgs, data: pulumi.Output[str]) -> pulumi.Output[str]:
        """Digest of all that makes it another machine. (A digest of a secret of high entropy is not one.)"""
        host = args.host
        boot, volume = host.boot_volume, host.docker_volume
        parts: list[Any] = [
            args.found.flavor_id,
            args.found.image_id,
            args.found.network_ids,
            [boot.size, boot.type] if boot is not None else None,
            host.availability_zone,
        ]
        if volume is not None:
            parts.append([volume.type, volume.availability_zone])
        text = pulumi.Output.all(data, args.group.key_pair).apply(
            lambda inputs: sha256(json.dumps([*parts, *inputs]).encode()).hexdigest()
        )
        return pulumi.Output.unsecret(text)


def _preferred(addresses: Sequence[str]) -> str:
    """The first IPv4 address, else the first."""
    return next((address for address in addresses if ":" not in address), addresses[0])
