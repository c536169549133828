"""Neutron without agents: every port is bound at once, and floating IPs are rules of this network namespace.

Runs inside neutron-server. The machines' interfaces are plugged into bridges that are there already. Security groups
are kept, and not enforced; a floating IP leads to its machine for what runs beside the cloud, not between machines.
"""

from neutron.services.l3_router import l3_router_plugin
from neutron_lib import constants
from neutron_lib.api.definitions import portbindings
from neutron_lib.plugins.ml2 import api
from oslo_concurrency import processutils

CHAIN = "floating-ips"


class Driver(api.MechanismDriver):
    connectivity = portbindings.CONNECTIVITY_L2

    def initialize(self):
        pass

    def bind_port(self, context):
        context.set_binding(
            context.segments_to_bind[0][api.ID],
            portbindings.VIF_TYPE_BRIDGE,
            {portbindings.CAP_PORT_FILTER: True},
            status=constants.PORT_STATUS_ACTIVE,
        )


class Router(l3_router_plugin.L3RouterPlugin):
    def __init__(self):
        super().__init__()
        processutils.execute("iptables", "--table", "nat", "--new-chain", CHAIN)
        processutils.execute("iptables", "--table", "nat", "--append", "OUTPUT", "--jump", CHAIN)

    def create_floatingip(self, context, floatingip, *arguments, **options):
        return self._applied(context, super().create_floatingip(context, floatingip, *arguments, **options))

    def update_floatingip(self, context, id, floatingip):
        return self._applied(context, super().update_floatingip(context, id, floatingip))

    def delete_floatingip(self, context, id):
        super().delete_floatingip(context, id)
        self._forward(context)

    def _applied(self, context, floating_ip):
        """Sets the status that an agent would report."""
        in_use = floating_ip["port_id"] is not None
        status = constants.FLOATINGIP_STATUS_ACTIVE if in_use else constants.FLOATINGIP_STATUS_DOWN
        if floating_ip["status"] != status:
            self.update_floatingip_status(context.elevated(), floating_ip["id"], status)
            floating_ip["status"] = status
        self._forward(context)
        return floating_ip

    def _forward(self, context):
        """Writes the rules of all floating IPs anew."""
        rules = [
            f"-A {CHAIN} -d {each['floating_ip_address']} -j DNAT --to-destination {each['fixed_ip_address']}"
            for each in self.get_floatingips(context.elevated())
            if each["fixed_ip_address"]
        ]
        lines = ["*nat", f":{CHAIN} -", *rules, "COMMIT", ""]
        processutils.execute("iptables-restore", "--noflush", process_input="\n".join(lines))
