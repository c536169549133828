"""Networking: security groups and their rules, ports, floating IPs and their associations."""

import os
from collections.abc import Mapping
from typing import ClassVar

from ..common import Work
from ..difference import Change
from ..facts import Habits
from ..values import Plain
from .cloud import CloudResource, Document, Gone, given, message_of, only, snake, tags_of


class NetworkResource(CloudResource):
    """A Neutron resource: one document at `/COLLECTION/ID`."""

    collection: ClassVar[str]
    member: ClassVar[str]
    renamed: ClassVar[Mapping[str, str]] = {}
    """Neutron's names for properties, where they are not the property's name in snake case."""
    plain_inputs: ClassVar[tuple[str, ...]]
    """The inputs that are passed on as they are."""
    ready: ClassVar[frozenset[str]] = frozenset()
    """The statuses in which it is usable; none for what has no status."""

    def request(self, names: tuple[str, ...], wanted: Plain) -> Document:
        """The members of a request for the given properties."""
        return {self.renamed.get(name, snake(name)): wanted[name] for name in names if name in wanted}

    def post(self, request: Document, wanted: Plain, work: Work) -> Document:
        """Create it, wait until it is usable, and set its tags."""
        body = {self.member: {**request, **wanted.get("valueSpecs", {})}}
        document: Document = self.cloud.network("POST", f"/{self.collection}", body)[self.member]
        work.made(document["id"])
        if self.ready:
            work.wait(
                f"{self.member} {document['id']}", lambda: self.get(document["id"])["status"] in self.ready or None
            )
        if wanted.get("tags"):
            self.put_tags(document["id"], wanted)
        return document

    def get(self, id: str) -> Document:
        """The document; raises `Gone`."""
        document: Document = self.cloud.network("GET", f"/{self.collection}/{id}")[self.member]
        return document

    def put(self, id: str, request: Document) -> None:
        """Change it, where there is anything to change."""
        if request:
            self.cloud.network("PUT", f"/{self.collection}/{id}", {self.member: request})

    def put_tags(self, id: str, wanted: Plain) -> None:
        """Replace its tags by the wanted ones."""
        self.cloud.network("PUT", f"/{self.collection}/{id}/tags", {"tags": wanted.get("tags", [])})

    def update_tags(self, id: str, wanted: Plain, changes: Mapping[str, Change]) -> None:
        """Bring changed tags."""
        if "tags" in changes:
            self.put_tags(id, wanted)

    def read(self, id: str, state: Plain) -> Plain | None:
        try:
            document = self.get(id)
        except Gone:
            return None
        found = {name: document.get(self.renamed.get(name, snake(name))) for name in self.plain_inputs}
        found |= self.answer(document, state)
        found["region"] = self.cloud.region
        if "tags" in self.habits.sets:
            found |= tags_of(state, document.get("tags", []))
        return found

    def answer(self, document: Document, state: Plain) -> Plain:
        """The outputs that need more than a new name."""
        return {}

    def delete(self, id: str, state: Plain, work: Work) -> None:
        """Delete it, waiting while it is in use (409), and until it is gone."""
        from openstack import exceptions  # noqa: PLC0415

        def deleted() -> bool | None:
            try:
                self.get(id)
                self.cloud.network("DELETE", f"/{self.collection}/{id}")
            except Gone:
                return True
            except exceptions.ConflictException as error:
                work.note = message_of(error)
            return None

        work.wait(f"{self.member} {id} to be deleted", deleted)


class SecGroup(NetworkResource):
    """`openstack.networking.SecGroup`: a security group."""

    token = "openstack:networking/secGroup:SecGroup"
    habits = Habits(auto_name=True, sets=frozenset({"tags"}))
    collection = "security-groups"
    member = "security_group"
    plain_inputs = ("name", "description", "tenantId", "stateful")

    def create(self, wanted: Plain, work: Work) -> None:
        body = {self.member: self.request(self.plain_inputs, wanted)}
        group = self.cloud.network("POST", f"/{self.collection}", body)[self.member]
        if wanted.get("deleteDefaultRules"):
            for rule in group["security_group_rules"]:
                self.cloud.network("DELETE", f"/security-group-rules/{rule['id']}")
        # Not before, as in the official provider: a group whose default rules stay is lost to the program.
        work.made(group["id"])
        if wanted.get("tags"):
            self.put_tags(group["id"], wanted)

    def update(self, id: str, state: Plain, wanted: Plain, changes: Mapping[str, Change], work: Work) -> None:
        self.put(id, self.request(tuple(changes.keys() & {"name", "description", "stateful"}), wanted))
        self.update_tags(id, wanted, changes)


class SecGroupRule(NetworkResource):
    """`openstack.networking.SecGroupRule`: one rule of a security group; every change makes a new one."""

    token = "openstack:networking/secGroupRule:SecGroupRule"
    unchangeable = True
    habits = Habits(stored={"remoteIpPrefix": str.lower})
    collection = "security-group-rules"
    member = "security_group_rule"
    plain_inputs = (
        "description",
        "direction",
        "ethertype",
        "portRangeMin",
        "portRangeMax",
        "protocol",
        "remoteGroupId",
        "remoteAddressGroupId",
        "remoteIpPrefix",
        "securityGroupId",
        "tenantId",
    )

    def check(self, wanted: Plain) -> list[tuple[str, str]]:
        faults = [
            (name, f"must be {' or '.join(allowed)}, not {wanted[name]!r}")
            for name, allowed in (("direction", ("ingress", "egress")), ("ethertype", ("IPv4", "IPv6")))
            if isinstance(wanted.get(name), str) and wanted[name] not in allowed
        ]
        ports = {"portRangeMin", "portRangeMax"} & wanted.keys()
        if ports and not {"portRangeMin", "portRangeMax", "protocol"} <= wanted.keys():
            faults.append((min(ports), "needs portRangeMin, portRangeMax and protocol together"))
        return faults

    def create(self, wanted: Plain, work: Work) -> None:
        self.post(self.request(self.plain_inputs, wanted), wanted, work)


class Port(NetworkResource):
    """`openstack.networking.Port`: a network interface with its addresses and security groups."""

    token = "openstack:networking/port:Port"
    habits = Habits(
        auto_name=True,
        sets=frozenset({"securityGroupIds", "tags", "allowedAddressPairs", "extraDhcpOptions", "allSecurityGroupIds"}),
        element_defaults={"extraDhcpOptions": {"ipVersion": 4}},
        refused=frozenset({"binding"}),
    )
    collection = "ports"
    member = "port"
    renamed: ClassVar[Mapping[str, str]] = {"securityGroupIds": "security_groups"}
    plain_inputs = (
        "name",
        "description",
        "adminStateUp",
        "networkId",
        "macAddress",
        "tenantId",
        "deviceOwner",
        "deviceId",
        "portSecurityEnabled",
        "qosPolicyId",
        "dnsName",
    )
    ready = frozenset({"ACTIVE", "DOWN"})

    def check(self, wanted: Plain) -> list[tuple[str, str]]:
        faults = []
        if wanted.get("noSecurityGroups") is True and wanted.get("securityGroupIds"):
            faults.append(("noSecurityGroups", "cannot be set together with securityGroupIds"))
        if "fixedIps" in wanted and "noFixedIp" in wanted:
            faults.append(("noFixedIp", "conflicts with fixedIps"))
        return faults

    def create(self, wanted: Plain, work: Work) -> None:
        request = self.request(self.plain_inputs, wanted) | self._lists(
            {"securityGroupIds", "noSecurityGroups", "fixedIps", "noFixedIp", "allowedAddressPairs", "extraDhcpOptions"}
            & wanted.keys(),
            wanted,
        )
        # An empty list would mean: no security group. Left out, Neutron takes the project's default one.
        if not request.get("security_groups") and not wanted.get("noSecurityGroups"):
            request.pop("security_groups", None)
        self.post(request, wanted, work)

    def update(self, id: str, state: Plain, wanted: Plain, changes: Mapping[str, Change], work: Work) -> None:
        names = changes.keys() & set(self.plain_inputs)
        request = {self.renamed.get(name, snake(name)): wanted.get(name, "") for name in names}
        self.put(id, request | self._lists(set(changes), wanted))
        self.update_tags(id, wanted, changes)

    def answer(self, document: Document, state: Plain) -> Plain:
        return {
            "allFixedIps": [item["ip_address"] for item in document.get("fixed_ips", [])],
            "allSecurityGroupIds": document.get("security_groups", []),
            "dnsAssignments": document.get("dns_assignment", []),
            "allowedAddressPairs": [
                {"ipAddress": pair["ip_address"]}
                # Neutron fills in the port's own MAC address where none was given.
                | ({} if pair["mac_address"] == document["mac_address"] else {"macAddress": pair["mac_address"]})
                for pair in document.get("allowed_address_pairs", [])
            ],
            "extraDhcpOptions": [
                {"name": option["opt_name"], "value": option["opt_value"], "ipVersion": int(option["ip_version"])}
                for option in document.get("extra_dhcp_opts", [])
            ],
        }

    @staticmethod
    def _lists(names: set[str], wanted: Plain) -> Document:
        request: Document = {}
        if names & {"securityGroupIds", "noSecurityGroups"}:
            request["security_groups"] = wanted.get("securityGroupIds", [])
        if names & {"fixedIps", "noFixedIp"}:
            request["fixed_ips"] = [
                given(subnet_id=item.get("subnetId"), ip_address=item.get("ipAddress"))
                for item in wanted.get("fixedIps", [])
            ]
        if "allowedAddressPairs" in names:
            request["allowed_address_pairs"] = [
                given(ip_address=pair["ipAddress"], mac_address=pair.get("macAddress"))
                for pair in wanted.get("allowedAddressPairs", [])
            ]
        if "extraDhcpOptions" in names:
            request["extra_dhcp_opts"] = [
                {"opt_name": option["name"], "opt_value": option["value"], "ip_version": option.get("ipVersion", 4)}
                for option in wanted.get("extraDhcpOptions", [])
            ]
        return request


class FloatingIp(NetworkResource):
    """`openstack.networking.FloatingIp`: an address of an external network."""

    token = "openstack:networking/floatingIp:FloatingIp"
    habits = Habits(sets=frozenset({"tags"}))
    collection = "floatingips"
    member = "floatingip"
    renamed: ClassVar[Mapping[str, str]] = {"address": "floating_ip_address", "fixedIp": "fixed_ip_address"}
    plain_inputs = ("description", "address", "portId", "tenantId", "fixedIp", "dnsName", "dnsDomain")
    ready = frozenset({"ACTIVE", "DOWN"})

    def check(self, wanted: Plain) -> list[tuple[str, str]]:
        if "pool" not in wanted and not os.environ.get("OS_POOL_NAME"):
            return [("pool", "is required and missing")]
        if "subnetId" in wanted and "subnetIds" in wanted:
            return [("subnetIds", "conflicts with subnetId")]
        return []

    def create(self, wanted: Plain, work: Work) -> None:
        from openstack import exceptions  # noqa: PLC0415

        pool = wanted.get("pool") or os.environ["OS_POOL_NAME"]
        request = self.request((*self.plain_inputs, "subnetId"), wanted)
        request["floating_network_id"] = self.cloud.network_named(pool)["id"]
        subnets: list[str] = wanted.get("subnetIds", [])
        for position, subnet in enumerate(subnets):
            try:
                self.post({**request, "subnet_id": subnet}, wanted, work)
            except exceptions.ConflictException:
                if work.id is not None or position == len(subnets) - 1:
                    raise
            else:
                return
        self.post(request, wanted, work)

    def update(self, id: str, state: Plain, wanted: Plain, changes: Mapping[str, Change], work: Work) -> None:
        request: Document = {}
        if "description" in changes:
            request["description"] = wanted.get("description", "")
        if "portId" in changes or "fixedIp" in changes:
            request |= {"port_id": wanted.get("portId") or None}
            if "fixedIp" in wanted:
                request["fixed_ip_address"] = wanted["fixedIp"]
        self.put(id, request)
        self.update_tags(id, wanted, changes)

    def answer(self, document: Document, state: Plain) -> Plain:
        pool = self.cloud.network("GET", f"/networks/{document['floating_network_id']}")["network"]["name"]
        return {
            "pool": pool,
            "portId": document.get("port_id") or "",
            "fixedIp": document.get("fixed_ip_address") or "",
            "subnetId": state.get("subnetId", ""),
        }


class FloatingIpAssociate(NetworkResource):
    """`openstack.networking.FloatingIpAssociate`: the way from a floating IP to a port. Its id is the floating IP's."""

    token = "openstack:networking/floatingIpAssociate:FloatingIpAssociate"
    collection = "floatingips"
    member = "floatingip"
    plain_inputs = ()

    def create(self, wanted: Plain, work: Work) -> None:
        address = wanted["floatingIp"]
        found = self.cloud.network("GET", "/floatingips", floating_ip_address=address)["floatingips"]
        id = only(found, f"floating IP with the address {address}")["id"]
        self.put(id, self._association(wanted))
        work.made(id)

    def update(self, id: str, state: Plain, wanted: Plain, changes: Mapping[str, Change], work: Work) -> None:
        self.put(id, self._association(wanted))

    def answer(self, document: Document, state: Plain) -> Plain:
        return {
            "floatingIp": document["floating_ip_address"],
            "portId": document.get("port_id") or "",
            "fixedIp": document.get("fixed_ip_address") or "",
        }

    def delete(self, id: str, state: Plain, work: Work) -> None:
        try:
            self.put(id, {"port_id": None})
        except Gone:
            return

    @staticmethod
    def _association(wanted: Plain) -> Document:
        return given(port_id=wanted["portId"], fixed_ip_address=wanted.get("fixedIp"))
