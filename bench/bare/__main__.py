"""What the program declares for a stack like the sandbox's, written out by hand: the program is measured against it.

The same resources with the same inputs, the same look-ups and outputs, and the wait for a machine, without which no
`up` gets through. Not here: the settings model, components, the checks before the first resource, what finds the
remnants of an interrupted update, and what a dynamic provider does when something is changed or removed. The texts in
the resources (user_data, config.toml, the options for ssh) come from the program's pure functions.
"""

import asyncio
import os
from collections.abc import Mapping, Sequence
from functools import partial
from hashlib import sha256
from typing import Any

import gitlab as gitlab_client
import openstack as openstack_client
import pulumi
import pulumi_docker as docker
import pulumi_gitlab as gitlab
import pulumi_openstack as openstack

from bench.bare.dynamic_resources import DeclaredRules, Drain, Handover, HostKey, JobsEnded, KeyProvider, NotedProvider
from clients.ssh import ssh_options
from renderers.cloud_init import CloudInit, user_data
from renderers.config_toml import ConfigToml, config_toml

stack = pulumi.get_stack()
config = pulumi.Config("gitlab-runners")
host: Mapping[str, Any] = config.require_object("host")
runners: Mapping[str, Any] = config.require_object("runners")
manager: Mapping[str, Any] = config.require_object("manager")
port = host["ssh"]["port"]
description = f"gitlab-runners, stack {stack}"

cloud = openstack_client.connect(cloud=pulumi.Config("openstack").require("cloud"))
flavor = cloud.compute.find_flavor(host["flavor"], ignore_missing=False)
image = cloud.image.find_image(host["image"], ignore_missing=False)
network = cloud.network.find_network(host["network"], ignore_missing=False)
instance_of_gitlab = gitlab_client.Gitlab(
    os.environ["GITLAB_BASE_URL"].removesuffix("/api/v4"), private_token=os.environ["GITLAB_TOKEN"]
)
projects = {project: instance_of_gitlab.projects.get(project) for project in {r["project"] for r in runners.values()}}

gitlab_provider = gitlab.Provider(stack, early_auth_check=False)
group = openstack.networking.SecGroup(stack, name=stack, description=description, delete_default_rules=True)
rules = [
    openstack.networking.SecGroupRule(
        f"{stack}-out-{kind.lower()}", security_group_id=group.id, direction="egress", ethertype=kind
    )
    for kind in ("IPv4", "IPv6")
] + [
    openstack.networking.SecGroupRule(
        f"{stack}-ssh-{cidr}",
        security_group_id=group.id,
        direction="ingress",
        ethertype="IPv4",
        protocol="tcp",
        port_range_min=port,
        port_range_max=port,
        remote_ip_prefix=cidr,
    )
    for cidr in host["sshFrom"]
]
DeclaredRules(NotedProvider(), stack, {"group": group.id, "rules": [rule.id for rule in rules]})
public_key = host["keyPair"]["publicKey"]
key_pair = openstack.compute.Keypair(
    stack, name=f"{stack}-{sha256(public_key.encode()).hexdigest()[:8]}", public_key=public_key
)
server_group = None
if host["count"] > 1:
    server_group = openstack.compute.ServerGroup(stack, name=stack, policies="soft-anti-affinity")

registrations: dict[str, gitlab.UserRunner] = {}
for name, runner in runners.items():
    registrations[name] = gitlab.UserRunner(
        f"{stack}-{name}",
        runner_type="project_type",
        project_id=runner["project"],
        description=f"{stack} {name}",
        tag_lists=runner["tags"],
        untagged=runner["runUntagged"],
        locked=True,
        access_level="not_protected",
        paused=False,
        maximum_timeout=3600,
        maintenance_note="",
        opts=pulumi.ResourceOptions(provider=gitlab_provider),
    )
    properties = {"runner": registrations[name].id, "grace": 3600, "stack": stack}
    JobsEnded(NotedProvider(), f"{stack}-{name}", properties)


def configuration_file(name: str, runner: Mapping[str, Any], known: Sequence[str]) -> str:
    return config_toml(
        ConfigToml(
            name=name,
            url=config.require("gitlabUrl"),
            token=known[0],
            runner_id=int(known[1]),
            docker_host="unix:///host/run/docker.sock",
            concurrent=manager["concurrent"],
            check_interval=3,
            log_level="info",
            log_format="runner",
            limit=manager["concurrent"],
            image=runner["image"],
            pull_policies=runner["pullPolicies"],
            mtu=network.mtu,
            listen_address="127.0.0.1:9252",
        )
    )


hosts: dict[str, Any] = {}
containers: dict[str, list[pulumi.Output[str]]] = {name: [] for name in runners}
for name in (f"{stack}-{number}" for number in range(1, host["count"] + 1)):
    secret = pulumi.ResourceOptions(additional_secret_outputs=["private_key"])
    key = HostKey(KeyProvider(), name, {"private_key": None, "public_key": None}, secret)
    nic = openstack.networking.Port(
        name,
        name=name,
        description=f"{description}, host {name}",
        network_id=network.id,
        security_group_ids=[group.id],
    )
    instance = openstack.compute.Instance(
        name,
        name=name,
        flavor_id=flavor.id,
        image_id=image.id,
        key_pair=key_pair.name,
        networks=[openstack.compute.InstanceNetworkArgs(port=nic.id)],
        metadata={"pulumi-project": "gitlab-runners", "pulumi-stack": stack},
        scheduler_hints=(
            [openstack.compute.InstanceSchedulerHintArgs(group=server_group.id)] if server_group is not None else None
        ),
        user_data=pulumi.Output.all(key.private_key, key.public_key).apply(
            lambda keys: user_data(
                CloudInit(
                    user="debian",
                    mtu=network.mtu,
                    install_docker=True,
                    host_key_private=keys[0],
                    host_key_public=keys[1],
                )
            )
        ),
    )
    floating_ip = openstack.networking.FloatingIp(
        name, pool=host["floatingIpPool"], description=f"{description}, host {name}"
    )
    association = openstack.networking.FloatingIpAssociate(
        name,
        floating_ip=floating_ip.address,
        port_id=nic.id,
        opts=pulumi.ResourceOptions(depends_on=[instance]),
    )
    options = key.public_key.apply(
        lambda public: ssh_options(public, identity_file=host["ssh"]["identityFile"], options={})
    )
    url = pulumi.Output.all(floating_ip.address, instance.id).apply(lambda known: f"ssh://debian@{known[0]}:{port}")
    provider = docker.Provider(
        name, host=url, ssh_opts=options, opts=pulumi.ResourceOptions(depends_on=[instance, association])
    )
    booting: list[asyncio.Task[None]] = []

    async def boot(
        address: pulumi.Output[str] = floating_ip.address, options: pulumi.Output[list[str]] = options
    ) -> None:
        words = [*(await options.future() or []), "-l", "debian", "-p", str(port), "--", await address.future() or ""]
        check = "cloud-init status --wait >/dev/null && docker version >/dev/null"
        while await (await asyncio.create_subprocess_exec("ssh", *words, check)).wait():
            await asyncio.sleep(3)

    async def wait(_: pulumi.ResourceHookArgs, booting: list[asyncio.Task[None]] = booting, boot: Any = boot) -> None:
        if not booting:
            booting.append(asyncio.create_task(boot()))
        await booting[0]

    hooks = pulumi.ResourceHookBinding(before_create=[pulumi.ResourceHook(f"wait-for-{name}", wait)])
    on_host = pulumi.ResourceOptions(provider=provider, hooks=hooks)
    managers: dict[str, pulumi.Output[str]] = {}
    for runner_name, runner in runners.items():
        registered = registrations[runner_name]
        runner_image = docker.RemoteImage(
            f"{name}-{runner_name}",
            name=f"{manager['image']}:{manager['version']}",
            keep_locally=True,
            opts=on_host,
        )
        labels: dict[str, pulumi.Input[str]] = {
            "gitlab-runners.stack": stack,
            "gitlab-runners.runner": runner_name,
            "gitlab-runners.server": instance.id,
        }
        volume = docker.Volume(
            f"{name}-{runner_name}",
            labels=[docker.VolumeLabelArgs(label=key, value=value) for key, value in labels.items()],
            opts=on_host,
        )
        toml = pulumi.Output.all(registered.token, registered.id).apply(
            partial(configuration_file, f"{name}-{runner_name}", runner)
        )
        digest = pulumi.Output.unsecret(
            pulumi.Output.all(volume.name, toml).apply(lambda texts: sha256("\0".join(texts).encode()).hexdigest())
        )
        mounted = docker.ContainerVolumeArgs(volume_name=volume.name, container_path="/etc/gitlab-runner")
        configuration = docker.Container(
            f"{name}-{runner_name}-config",
            image=runner_image.image_id,
            start=False,
            must_run=False,
            volumes=[mounted],
            uploads=[
                docker.ContainerUploadArgs(
                    file="/etc/gitlab-runner/config.toml", content=pulumi.Output.secret(toml), permissions="0600"
                )
            ],
            labels=[
                docker.ContainerLabelArgs(label=key, value=value)
                for key, value in {**labels, "gitlab-runners.configuration": digest}.items()
            ],
            opts=on_host,
        )
        container = docker.Container(
            f"{name}-{runner_name}",
            image=runner_image.image_id,
            volumes=[mounted, docker.ContainerVolumeArgs(host_path="/run", container_path="/host/run")],
            labels=[
                docker.ContainerLabelArgs(label=key, value=value)
                for key, value in {**labels, "gitlab-runners.volume": volume.name}.items()
            ],
            healthcheck=docker.ContainerHealthcheckArgs(
                tests=["CMD", "gitlab-runner", "verify"],
                interval="30s",
                timeout="30s",
                start_period="1m0s",
                start_interval="1s",
                retries=3,
            ),
            wait=True,
            wait_timeout=120,
            destroy_grace_seconds=3600,
            restart="always",
            stop_signal="SIGQUIT",
            stop_timeout=86400,
            opts=pulumi.ResourceOptions.merge(on_host, pulumi.ResourceOptions(depends_on=[configuration])),
        )
        containers[runner_name].append(container.name)
        managers[runner_name] = container.id
    Handover(
        NotedProvider(),
        name,
        {
            "url": url,
            "options": options,
            "cert_path": None,
            "labels": {"gitlab-runners.stack": stack, "gitlab-runners.server": instance.id},
            "managers": managers,
            "slots": {each: dict.fromkeys(("jobs", "concurrent"), manager["concurrent"]) for each in runners},
            "grace": 3600,
        },
    )
    Drain(
        NotedProvider(),
        name,
        {
            "server": instance.id,
            "address": floating_ip.address,
            "user": "debian",
            "port": port,
            "options": options,
            "grace": 3600,
            "managers": list(managers.values()),
            "stack": stack,
        },
        pulumi.ResourceOptions(depends_on=[association]),
    )
    addresses = pulumi.Output.all(nic.all_fixed_ips, floating_ip.address).apply(lambda known: [*known[0], known[1]])
    hosts[name] = {"addresses": addresses, "mtu": network.mtu, "dockerUrl": url}


def page(project: int, runner: str) -> str:
    return f"{projects[project].web_url}/-/runners/{runner}"


pulumi.export("hosts", hosts)
pulumi.export(
    "runners",
    {
        name: {
            "id": registrations[name].id.apply(int),
            "page": registrations[name].id.apply(partial(page, runner["project"])),
            "tags": runner["tags"],
            "containers": containers[name],
        }
        for name, runner in runners.items()
    },
)
