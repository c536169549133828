"""What the cloud begins with: databases, service catalog, users, images, flavors, networks."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openstack

from . import configuration
from .configuration import PASSWORD, REGION, database, url
from .machine_image import KERNEL_COMMAND_LINE, MachineImage
from .services import NOVA_FILES, Daemons

# A Connection of openstacksdk. By its types every finder may give None.
Cloud = Any


def make_databases(daemons: Daemons) -> None:
    """Makes the databases and their tables, and the administrator; starts the database daemon."""
    daemons.run(
        "seed-mariadb",
        *("mariadb-install-db", "--no-defaults", "--user=root", "--datadir=/var/lib/ground-mysql"),
        *("--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve"),
    )
    daemons.start("mariadb", "rabbitmq", "libvirt")
    daemons.await_answer("mariadb")
    statements = ";".join(f"create database {name} character set utf8mb3" for name in configuration.DATABASES)
    daemons.run(
        "seed-mariadb",
        *("mariadb", "--no-defaults", "--user=root", "--socket=/run/mysqld.sock", f"--execute={statements}"),
    )
    with ThreadPoolExecutor() as pool:  # Neutron's history takes as long as all others together
        for done in [pool.submit(_make_tables_of_neutron, daemons), pool.submit(_make_other_tables, daemons)]:
            done.result()


def _make_tables_of_neutron(daemons: Daemons) -> None:
    daemons.run("seed-neutron", "neutron-db-manage", "--config-file", "/etc/neutron/neutron.conf", "upgrade", "head")


def _make_other_tables(daemons: Daemons) -> None:
    def keystone(*arguments: str) -> None:
        daemons.run("seed-keystone", "keystone-manage", "--config-file", "/etc/keystone/keystone.conf", *arguments)

    def nova(*arguments: str) -> None:
        _manage_nova(daemons, *arguments)

    for keys in ("fernet_setup", "credential_setup"):
        keystone(keys, "--keystone-user", "root", "--keystone-group", "root")
    keystone("db_sync")
    addresses = [
        word for kind in ("public", "internal", "admin") for word in (f"--bootstrap-{kind}-url", url("identity"))
    ]
    keystone("bootstrap", "--bootstrap-password", PASSWORD, "--bootstrap-region-id", REGION, *addresses)
    daemons.run("seed-glance", "glance-manage", "--config-file", "/etc/glance/glance-api.conf", "db_sync")
    nova("api_db", "sync")
    nova("cell_v2", "map_cell0", "--database_connection", database("nova_cell0"))
    nova("db", "sync")
    nova("cell_v2", "create_cell", "--name", "cell1")


def map_compute_host(daemons: Daemons) -> None:
    """Makes the compute host, which has reported itself, known to the scheduler."""
    _manage_nova(daemons, "cell_v2", "discover_hosts")


def _manage_nova(daemons: Daemons, *arguments: str) -> None:
    files = (word for file in NOVA_FILES for word in ("--config-file", file))
    daemons.run("seed-nova", "nova-manage", *files, *arguments)


def connect(clouds: Path, cloud: str) -> Cloud:
    """A connection to a cloud of this clouds.yaml."""
    known = openstack.config.OpenStackConfig(config_files=[str(clouds)], load_envvars=False)
    return openstack.connection.Connection(config=known.get_one(cloud=cloud))


def make_identities(cloud: Cloud) -> None:
    """Makes the service catalog, the project and the users. As the administrator, who has no project yet but admin."""
    identity = cloud.identity
    domain = identity.find_domain("Default").id
    role = {name: identity.find_role(name) for name in ("admin", "member")}
    for service_type, (name, _) in configuration.CATALOG.items():
        if service_type == "identity":  # bootstrap made it
            continue
        service = identity.create_service(type=service_type, name=name)
        for interface in ("public", "internal", "admin"):
            identity.create_endpoint(
                service_id=service.id, interface=interface, url=url(service_type), region_id=REGION
            )
    services, project = (
        identity.create_project(name=name, domain_id=domain) for name in ("service", configuration.PROJECT)
    )
    for name, where, what in (
        (configuration.SERVICE_USER, services, "admin"),
        (configuration.MEMBER, project, "member"),
    ):
        user = identity.create_user(name=name, password=PASSWORD, domain_id=domain, default_project_id=where.id)
        identity.assign_project_role_to_user(where, user, role[what])
    identity.assign_project_role_to_user(project, identity.find_user("admin"), role["admin"])


def fill(cloud: Cloud, image: MachineImage) -> None:
    """Makes images, flavors and networks. As the administrator, in the project."""
    _make_images(cloud, image)
    for name, (cpus, memory, size) in configuration.FLAVORS.items():
        cloud.compute.create_flavor(name=name, vcpus=cpus, ram=memory, disk=size)
    _make_networks(cloud.network)


def _make_images(cloud: Cloud, image: MachineImage) -> None:
    def upload(name: str, file: str, disk_format: str, container_format: str, **properties: str) -> str:
        made = cloud.create_image(
            name,
            filename=file,
            disk_format=disk_format,
            container_format=container_format,
            visibility="public",
            wait=True,
            **properties,
        )
        return str(made.id)

    boot = {
        "kernel_id": upload("debian-13-kernel", image.kernel, "aki", "aki"),
        "ramdisk_id": upload("debian-13-initrd", image.initrd, "ari", "ari"),
        "os_command_line": KERNEL_COMMAND_LINE,
    }
    for name, disk in zip(configuration.IMAGES, (image.disk, image.plain_disk), strict=True):
        upload(name, disk, "qcow2", "bare", **boot)
    nothing = {"disk_format": "raw", "container_format": "bare", "visibility": "public"}
    cloud.create_image(configuration.EMPTY_IMAGE, data=bytes(1024**2), wait=True, **nothing)


def _make_networks(network: Any) -> None:
    external = network.create_network(
        name=configuration.EXTERNAL_NETWORK,
        is_router_external=True,
        provider_network_type="flat",
        provider_physical_network=configuration.PHYSICAL_NETWORK,
    )
    network.create_subnet(
        name=external.name,
        network_id=external.id,
        ip_version=4,
        cidr=configuration.EXTERNAL_RANGE,
        is_dhcp_enabled=False,
    )
    router = network.create_router(name="router", external_gateway_info={"network_id": external.id})
    for each in configuration.NETWORKS:
        made = network.create_network(name=each.name, mtu=each.mtu)
        subnet = network.create_subnet(
            name=each.name,
            network_id=made.id,
            ip_version=4,
            cidr=str(each.range),
            gateway_ip=each.gateway,
            is_dhcp_enabled=False,
        )
        network.add_interface_to_router(router, subnet_id=subnet.id)
