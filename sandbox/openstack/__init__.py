"""A double of an OpenStack cloud: Keystone, Glance, Neutron, Cinder, Swift and Nova on one port, like DevStack's.

It has as much of each API as the official OpenStack provider (gophercloud) and openstacksdk need for key pairs, server
groups, servers, volumes, ports, security groups, rules, floating IPs, containers and EC2 credentials, and answers as
the real services do.
"""

from aiohttp import web

from sandbox.openstack.cinder import Cinder
from sandbox.openstack.glance import Glance
from sandbox.openstack.keystone import Keystone
from sandbox.openstack.lifecycle import Machines
from sandbox.openstack.neutron import Neutron
from sandbox.openstack.nova import Nova
from sandbox.openstack.seed import Credentials, seed
from sandbox.openstack.servers import Servers
from sandbox.openstack.swift import Swift
from sandbox.store import Store

__all__ = ["Credentials", "Machines", "openstack_app", "seed"]


def openstack_app(store: Store, machines: Machines) -> web.Application:
    """The cloud over `store`, to be served at the root of its own port.

    Args:
        store: where all state is kept; call `seed` on it first.
        machines: what servers boot into.

    Identity is at /identity, the image service at /image, the network service at /network, the block storage at
    /volume, the object store at /object-store, and the compute service at /compute; the catalog has their addresses,
    as the client sees the port.
    """
    keystone = Keystone(store)
    glance = Glance(store)
    neutron = Neutron(store)
    cinder = Cinder(store)
    servers = Servers(store, neutron, glance, cinder, machines)
    app = web.Application()
    app.add_subapp("/identity", keystone.app())
    app.add_subapp("/image", glance.app(keystone.caller))
    app.add_subapp("/network", neutron.app(keystone.caller))
    app.add_subapp("/volume", cinder.app(keystone.caller))
    app.add_subapp("/object-store", Swift(store).app(keystone.caller))
    app.add_subapp("/compute", Nova(store, servers).app(keystone.caller))
    return app
