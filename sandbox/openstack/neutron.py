"""Neutron: networks, subnets and routers to read; ports, security groups, rules and floating IPs to work with.

Behaviour and messages follow Neutron's reference implementation (Network API v2.0). Networks, subnets and routers
are seeded; every internal network counts as connected to every external one.
"""

import ipaddress
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from sandbox.openstack.attributes import (
    FLOATING_IP,
    NETWORK,
    PORT,
    PROTOCOLS,
    RESOURCES,
    SECURITY_GROUP,
    SECURITY_GROUP_RULE,
    SUBNET,
    Resource,
    bad_request,
    tags,
)
from sandbox.openstack.common import (
    ApiError,
    Authenticator,
    Caller,
    Document,
    caller_of,
    json_body,
    new_id,
    now,
    page,
    service,
    sort,
    tags_match,
    text_of,
)
from sandbox.store import Store

QUOTAS = {
    "network": 100, "subnet": 100, "subnetpool": -1, "port": 500, "router": 10, "floatingip": 50,
    "security_group": 10, "security_group_rule": 100, "rbac_policy": 10,
}  # fmt: skip

_EXTENSIONS = (
    "address-scope", "allowed-address-pairs", "availability_zone", "binding", "dns-integration", "external-net",
    "extra_dhcp_opt", "filter-validation", "fip-port-details", "net-mtu", "network_availability_zone", "pagination",
    "port-security", "project-id", "provider", "quota_details", "quotas", "router", "security-group",
    "security-groups-normalized-cidr", "sorting", "standard-attr-description", "standard-attr-revisions",
    "standard-attr-tag", "standard-attr-timestamp", "stateful-security-group",
)  # fmt: skip

# Query parameters of a list that are no filter on an attribute.
_NOT_FILTERS = {
    "limit", "marker", "page_reverse", "sort_key", "sort_dir", "fields", "tags", "tags-any", "not-tags", "not-tags-any",
}  # fmt: skip

_TITLES = {404: "HTTPNotFound", 405: "HTTPMethodNotAllowed", 500: "HTTPInternalServerError"}

# Protocols whose rules take port numbers, and those that exist only in IPv6.
_WITH_PORTS = {PROTOCOLS[name] for name in ("dccp", "sctp", "tcp", "udp", "udplite")}
_ICMP = {PROTOCOLS["icmp"], PROTOCOLS["ipv6-icmp"]}
_ONLY_IPV6 = {number for name, number in PROTOCOLS.items() if "v6" in name}

_ALL_PORTS = (1, 65535)
_ICMP_MAX = 255

# Told which server's addresses have changed.
AddressesChanged = Callable[[str], Awaitable[None]]


class Neutron:
    """The network service; Nova works with ports through its public methods."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._addresses_changed: AddressesChanged | None = None

    def watch(self, addresses_changed: AddressesChanged) -> None:
        """Have `addresses_changed` called with a device id when a floating IP comes to or goes from its ports."""
        self._addresses_changed = addresses_changed

    def app(self, authenticate: Authenticator) -> web.Application:
        """The application to be mounted at /network."""
        routes = [
            web.get("", self._versions),
            web.get("/", self._versions),
            web.get("/v2.0", self._resources),
            web.get("/v2.0/", self._resources),
            web.get("/v2.0/extensions", self._list_extensions),
            web.get("/v2.0/extensions/{alias}", self._show_extension),
            web.get("/v2.0/availability_zones", self._list_zones),
            web.get("/v2.0/quotas", self._list_quotas),
            web.get("/v2.0/quotas/{project}", self._show_quota),
            web.get("/v2.0/quotas/{project}/default", self._show_default_quota),
            web.get("/v2.0/quotas/{project}/details", self._show_quota_details),
            web.get("/v2.0/quotas/{project}/details.json", self._show_quota_details),
            web.put("/v2.0/quotas/{project}", self._set_quota),
            web.delete("/v2.0/quotas/{project}", self._reset_quota),
        ]
        for resource in RESOURCES:
            routes += self._routes_of(resource)
        return service(routes, _render, authenticate, public=["/network"])

    def _routes_of(self, resource: Resource) -> list[web.RouteDef]:
        def bound(handle: Callable[[Resource, web.Request], Awaitable[web.Response]]) -> Handler:
            async def handler(request: web.Request) -> web.StreamResponse:
                return await handle(resource, request)

            return handler

        path = f"/v2.0/{resource.path}"
        routes = [
            web.get(path, bound(self._list)),
            web.get(path + "/{id}", bound(self._show)),
            web.get(path + "/{id}/tags", bound(self._list_tags)),
            web.put(path + "/{id}/tags", bound(self._replace_tags)),
            web.delete(path + "/{id}/tags", bound(self._clear_tags)),
            web.get(path + "/{id}/tags/{tag}", bound(self._has_tag)),
            web.put(path + "/{id}/tags/{tag}", bound(self._add_tag)),
            web.delete(path + "/{id}/tags/{tag}", bound(self._remove_tag)),
        ]
        if resource.writable:
            routes += [
                web.post(path, bound(self._create)),
                web.put(path + "/{id}", bound(self._update)),
                web.delete(path + "/{id}", bound(self._delete)),
            ]
        return routes

    # What Nova needs

    def ports_of(self, device_id: str) -> list[Document]:
        """The ports of a server."""
        return [port for port in self._all(PORT) if port["device_id"] == device_id]

    def port(self, caller: Caller, id: str) -> Document | None:
        """The port, if the caller may see it."""
        return self._find(PORT, caller, id)

    def network(self, caller: Caller, id: str) -> Document | None:
        """The network, if the caller may see it."""
        return self._find(NETWORK, caller, id)

    def networks_for_servers(self, caller: Caller) -> list[Document]:
        """The networks that a server without a choice of network could be attached to."""
        visible = [network for network in self._all(NETWORK) if _visible(network, caller)]
        return [network for network in visible if not network["router:external"]]

    def security_group(self, caller: Caller, name_or_id: str) -> Document | None:
        """The security group of that id or name."""
        for group in self._all(SECURITY_GROUP):
            if _visible(group, caller) and name_or_id in (group["id"], group["name"]):
                return group
        return None

    def group_names(self, port: Document) -> list[str]:
        """The names of a port's security groups."""
        groups = [self._store.get(_kind(SECURITY_GROUP), id) for id in port["security_groups"]]
        return [group["name"] for group in groups if group is not None]

    def create_port(self, caller: Caller, attributes: Document) -> Document:
        """Create a port as `POST /ports` does."""
        return self._create_port(caller, PORT.parse(attributes, creating=True))

    def bind(self, port: Document, device_id: str, zone: str) -> None:
        """Plug a port into a server."""
        port |= {"device_id": device_id, "device_owner": f"compute:{zone}", "status": "ACTIVE"}
        port |= {"binding:host_id": "sandbox", "binding:vif_type": "ovs"}
        self._save(PORT, port)

    def unbind(self, port: Document) -> None:
        """Unplug a port; it stays, as a port does that Nova did not make itself."""
        port |= {"device_id": "", "device_owner": "", "status": "DOWN"}
        port |= {"binding:host_id": "", "binding:vif_type": "unbound"}
        self._save(PORT, port)

    def remove_port(self, port: Document) -> None:
        """Delete a port; floating IPs lose it."""
        for floating in self.floating_ips(port):
            self._save(FLOATING_IP, floating | _UNASSOCIATED)
        self._store.delete(_kind(PORT), port["id"])

    def set_groups(self, port: Document, groups: list[str]) -> None:
        """Give a port these security groups."""
        self._save(PORT, port | {"security_groups": groups})

    def floating_ips(self, port: Document) -> list[Document]:
        """The floating IPs associated with a port."""
        return [floating for floating in self._all(FLOATING_IP) if floating["port_id"] == port["id"]]

    # Versions, extensions, zones

    async def _versions(self, request: web.Request) -> web.Response:
        link = {"rel": "self", "href": f"{request.url.origin()}/network/v2.0/"}
        return web.json_response({"versions": [{"id": "v2.0", "status": "CURRENT", "links": [link]}]})

    async def _resources(self, request: web.Request) -> web.Response:
        root = f"{request.url.origin()}/network/v2.0"
        resources = [
            {
                "name": resource.name,
                "collection": resource.plural,
                "links": [{"rel": "self", "href": f"{root}/{resource.path}"}],
            }
            for resource in RESOURCES
        ]
        return web.json_response({"resources": resources})

    async def _list_extensions(self, _: web.Request) -> web.Response:
        return web.json_response({"extensions": [_extension(alias) for alias in _EXTENSIONS]})

    async def _show_extension(self, request: web.Request) -> web.Response:
        alias = request.match_info["alias"]
        if alias not in _EXTENSIONS:
            raise ApiError(404, f"Extension with alias {alias} does not exist", "HTTPNotFound")
        return web.json_response({"extension": _extension(alias)})

    async def _list_zones(self, _: web.Request) -> web.Response:
        zones = [{"name": "nova", "resource": kind, "state": "available"} for kind in ("network", "router")]
        return web.json_response({"availability_zones": zones})

    # Quotas

    def _quota(self, project: str) -> dict[str, int]:
        return QUOTAS | (self._store.get("neutron.quota", project) or {})

    def _used(self, project: str, name: str) -> int:
        return sum(1 for item in self._store.list(f"neutron.{name}") if item["project_id"] == project)

    async def _list_quotas(self, _: web.Request) -> web.Response:
        return web.json_response({"quotas": self._store.list("neutron.quota")})

    async def _show_quota(self, request: web.Request) -> web.Response:
        return web.json_response({"quota": self._quota(request.match_info["project"])})

    async def _show_default_quota(self, _: web.Request) -> web.Response:
        return web.json_response({"quota": QUOTAS})

    async def _show_quota_details(self, request: web.Request) -> web.Response:
        project = request.match_info["project"]
        details = {
            name: {"limit": limit, "used": self._used(project, name), "reserved": 0}
            for name, limit in self._quota(project).items()
        }
        return web.json_response({"quota": details})

    async def _set_quota(self, request: web.Request) -> web.Response:
        given = await json_body(request, "quota")
        for name, limit in given.items():
            if name not in QUOTAS:
                raise bad_request(f"Unrecognized attribute(s) '{name}'")
            if not isinstance(limit, int):
                raise bad_request(f"Invalid input for {name}. Reason: '{limit}' is not an integer.")
        quota = self._quota(request.match_info["project"]) | given
        self._store.put("neutron.quota", request.match_info["project"], quota)
        return web.json_response({"quota": quota})

    async def _reset_quota(self, request: web.Request) -> web.Response:
        self._store.delete("neutron.quota", request.match_info["project"])
        return web.Response(status=204)

    def _within_quota(self, project: str, resource: Resource) -> None:
        limit = self._quota(project)[resource.name]
        if 0 <= limit <= self._used(project, resource.name):
            raise ApiError(409, f"Quota exceeded for resources: ['{resource.name}'].", "OverQuota")

    # Every resource

    async def _list(self, resource: Resource, request: web.Request) -> web.Response:
        query = request.query
        known = {*resource.attributes, *resource.read_only, *_NOT_FILTERS}
        unknown = [name for name in query if name not in known]
        if unknown:
            raise bad_request(f"{unknown} is invalid attribute for filtering")
        caller = caller_of(request)
        self._default_group(caller.project_id)
        items = [self._view(resource, item) for item in self._all(resource) if _visible(item, caller)]
        items = [item for item in items if tags_match(item["tags"], query) and _matches(item, request)]
        items = sort(items, query.getall("sort_key", []), query.getall("sort_dir", []))
        shown, following = page(request, items, default=None)
        fields = query.getall("fields", [])
        body: Document = {resource.plural: [_only(item, fields) for item in shown]}
        if following is not None:
            body[f"{resource.plural}_links"] = [{"rel": "next", "href": following}]
        return web.json_response(body)

    async def _show(self, resource: Resource, request: web.Request) -> web.Response:
        item = self._view(resource, self._get(resource, request))
        return web.json_response({resource.name: _only(item, request.query.getall("fields", []))})

    async def _create(self, resource: Resource, request: web.Request) -> web.Response:
        caller = caller_of(request)
        attributes = resource.parse(await self._body(resource, request), creating=True)
        if resource is PORT:
            item = self._create_port(caller, attributes)
        elif resource is SECURITY_GROUP:
            item = self._create_group(caller, attributes)
        elif resource is SECURITY_GROUP_RULE:
            item = self._create_rule(caller, attributes)
        else:
            item = await self._create_floating_ip(caller, attributes)
        return web.json_response({resource.name: self._view(resource, item)}, status=201)

    async def _update(self, resource: Resource, request: web.Request) -> web.Response:
        item = self._get(resource, request)
        changes = resource.parse(await self._body(resource, request), creating=False)
        if resource is PORT:
            self._check_port_changes(caller_of(request), item, changes)
        elif resource is SECURITY_GROUP and item["name"] == "default" and "name" in changes:
            raise ApiError(409, "Updating default security group not allowed.", "SecurityGroupCannotUpdateDefault")
        elif resource is FLOATING_IP:
            changes = self._association(caller_of(request), item, changes)
        before = item.get("port_id")
        item |= changes
        self._save(resource, item)
        if resource is FLOATING_IP:
            await self._tell(before, item["port_id"])
        return web.json_response({resource.name: self._view(resource, item)})

    async def _delete(self, resource: Resource, request: web.Request) -> web.Response:
        item = self._get(resource, request)
        if resource is PORT:
            if item["device_owner"].startswith("network:"):
                reason = f"has device owner {item['device_owner']}"
                message = f"Port {item['id']} cannot be deleted directly via the port API: {reason}."
                raise ApiError(409, message, "ServicePortInUse")
            self.remove_port(item)
            if item["device_id"] and self._addresses_changed is not None:
                await self._addresses_changed(item["device_id"])
            return web.Response(status=204)
        if resource is SECURITY_GROUP:
            self._remove_group_rules(item)
        self._store.delete(_kind(resource), item["id"])
        if resource is FLOATING_IP:
            await self._tell(item["port_id"])
        return web.Response(status=204)

    async def _body(self, resource: Resource, request: web.Request) -> Document:
        body = await json_body(request)
        if resource.plural in body:
            raise bad_request("Bulk operation not supported")
        if not isinstance(body.get(resource.name), dict):
            raise bad_request(f"Unable to find '{resource.name}' in request body")
        given: Document = body[resource.name]
        return given

    def _all(self, resource: Resource) -> list[Document]:
        return self._store.list(_kind(resource))

    def _find(self, resource: Resource, caller: Caller, id: str) -> Document | None:
        found = self._store.get(_kind(resource), id)
        return found if found is not None and _visible(found, caller) else None

    def _get(self, resource: Resource, request: web.Request) -> Document:
        return self._need(resource, caller_of(request), request.match_info["id"])

    def _need(self, resource: Resource, caller: Caller, id: str) -> Document:
        found = self._find(resource, caller, id)
        if found is None:
            verb = "does not exist" if resource in (SECURITY_GROUP, SECURITY_GROUP_RULE) else "could not be found"
            # Not all of Neutron's messages are sentences.
            end = "" if resource in (SECURITY_GROUP, SECURITY_GROUP_RULE, FLOATING_IP) else "."
            raise ApiError(404, f"{resource.label} {id} {verb}{end}", resource.not_found)
        return found

    def _new(self, resource: Resource, caller: Caller, attributes: Document) -> Document:
        project = attributes.pop("tenant_id", None) or attributes.get("project_id") or caller.project_id
        stamps = {"created_at": now(), "updated_at": now(), "revision_number": 0}
        item = {"id": new_id(), **attributes, "project_id": project, "tags": [], **stamps}
        self._within_quota(project, resource)
        return item

    def _save(self, resource: Resource, item: Document) -> None:
        item |= {"updated_at": now(), "revision_number": item["revision_number"] + 1}
        self._store.put(_kind(resource), item["id"], item)

    def _view(self, resource: Resource, item: Document) -> Document:
        view = item | {"tenant_id": item["project_id"]}
        if resource is SECURITY_GROUP:
            rules = [rule for rule in self._all(SECURITY_GROUP_RULE) if rule["security_group_id"] == item["id"]]
            view["security_group_rules"] = [self._view(SECURITY_GROUP_RULE, rule) for rule in rules]
            view["shared"] = False
        elif resource is SECURITY_GROUP_RULE:
            prefix = item["remote_ip_prefix"]
            view["normalized_cidr"] = str(ipaddress.ip_interface(prefix).network) if prefix else None
        elif resource is FLOATING_IP:
            port = self._store.get(_kind(PORT), item["port_id"]) if item["port_id"] else None
            names = ("name", "network_id", "mac_address", "admin_state_up", "status", "device_id", "device_owner")
            view["port_details"] = {name: port[name] for name in names} if port else None
            view["port_forwardings"] = []
        return view

    # Tags

    async def _list_tags(self, resource: Resource, request: web.Request) -> web.Response:
        return web.json_response({"tags": self._get(resource, request)["tags"]})

    async def _replace_tags(self, resource: Resource, request: web.Request) -> web.Response:
        item = self._get(resource, request)
        body = await json_body(request)
        try:
            item["tags"] = tags(body.get("tags"))
        except ValueError as error:
            raise ApiError(400, f"Invalid input for operation: {error}.", "InvalidInput") from error
        self._save(resource, item)
        return web.json_response({"tags": item["tags"]})

    async def _clear_tags(self, resource: Resource, request: web.Request) -> web.Response:
        self._save(resource, self._get(resource, request) | {"tags": []})
        return web.Response(status=204)

    async def _has_tag(self, resource: Resource, request: web.Request) -> web.Response:
        self._tag(self._get(resource, request), request)
        return web.Response(status=204)

    async def _add_tag(self, resource: Resource, request: web.Request) -> web.Response:
        item = self._get(resource, request)
        if request.match_info["tag"] not in item["tags"]:
            item["tags"].append(request.match_info["tag"])
            self._save(resource, item)
        return web.Response(status=201)

    async def _remove_tag(self, resource: Resource, request: web.Request) -> web.Response:
        item = self._get(resource, request)
        item["tags"].remove(self._tag(item, request))
        self._save(resource, item)
        return web.Response(status=204)

    def _tag(self, item: Document, request: web.Request) -> str:
        tag = request.match_info["tag"]
        if tag not in item["tags"]:
            raise ApiError(404, f"Tag {tag} could not be found.", "TagNotFound")
        return tag

    # Ports

    def _create_port(self, caller: Caller, attributes: Document) -> Document:
        network = self._need(NETWORK, caller, attributes["network_id"])
        port = self._new(PORT, caller, attributes)
        if not port["port_security_enabled"]:
            port.setdefault("security_groups", [])
        if "security_groups" not in port:
            port["security_groups"] = [self._default_group(port["project_id"])["id"]]
        self._check_groups(caller, port["security_groups"])
        port.setdefault("mac_address", self._new_mac_address())
        self._check_mac_address(port)
        port["fixed_ips"] = self._allocate(network, port.get("fixed_ips"), keep=[])
        port |= {"status": "DOWN", "binding:vif_type": "unbound", "binding:vif_details": {}, "dns_assignment": []}
        self._store.put(_kind(PORT), port["id"], port)
        return port

    def _check_port_changes(self, caller: Caller, port: Document, changes: Document) -> None:
        if "security_groups" in changes:
            self._check_groups(caller, changes["security_groups"])
        if "mac_address" in changes:
            self._check_mac_address(port | changes)
        if "fixed_ips" in changes:
            network = self._need(NETWORK, caller, port["network_id"])
            changes["fixed_ips"] = self._allocate(network, changes["fixed_ips"], keep=port["fixed_ips"])

    def _check_groups(self, caller: Caller, groups: list[str]) -> None:
        missing = [id for id in groups if self._find(SECURITY_GROUP, caller, id) is None]
        if missing:
            raise ApiError(404, f"Security group {', '.join(missing)} does not exist", "SecurityGroupNotFound")

    def _check_mac_address(self, port: Document) -> None:
        for other in self._all(PORT):
            same = (other["network_id"], other["mac_address"]) == (port["network_id"], port["mac_address"])
            if same and other["id"] != port["id"]:
                message = f"Unable to complete operation for network {port['network_id']}. "
                message += f"The mac address {port['mac_address']} is in use."
                raise ApiError(409, message, "MacAddressInUse")

    def _new_mac_address(self) -> str:
        used = {port["mac_address"] for port in self._all(PORT)}
        while True:
            # The prefix that Neutron has by default (`base_mac`).
            mac = "fa:16:3e:" + secrets.token_bytes(3).hex(":")
            if mac not in used:
                return mac

    # Addresses

    def _subnets(self, network: Document) -> list[Document]:
        return [subnet for subnet in self._all(SUBNET) if subnet["network_id"] == network["id"]]

    def _allocate(self, network: Document, wanted: list[Document] | None, keep: list[Document]) -> list[Document]:
        """Addresses for a port: those wanted, or any one; `keep` are the ones it has already."""
        kept = {fixed["ip_address"] for fixed in keep}
        subnets = self._subnets(network)
        result: list[Document] = []
        for want in [{}] if wanted is None else wanted:
            candidates = [subnet for subnet in subnets if want.get("subnet_id", subnet["id"]) == subnet["id"]]
            if "subnet_id" in want and not candidates:
                message = f"Failed to create port on network {network['id']}, because fixed_ips included invalid "
                raise ApiError(400, message + f"subnet {want['subnet_id']}.", "InvalidInput")
            address = want.get("ip_address")
            if address is None:
                result.append(self._any_address(network, candidates))
                continue
            subnet = next((each for each in candidates if _inside(address, each)), None)
            if subnet is None:
                message = f"IP address {address} is not a valid IP for the specified subnet."
                if "subnet_id" not in want:
                    message = f"IP address {address} is not a valid IP for any of the subnets on the specified network."
                raise ApiError(400, message, "InvalidIpForSubnet" if "subnet_id" in want else "InvalidIpForNetwork")
            if address in self._used_addresses(subnet) - kept:
                message = f"IP address {address} already allocated in subnet {subnet['id']}"
                raise ApiError(409, message, "IpAddressAlreadyAllocated")
            result.append({"subnet_id": subnet["id"], "ip_address": address})
        return result

    def _used_addresses(self, subnet: Document) -> set[str]:
        used = {fixed["ip_address"] for port in self._all(PORT) for fixed in port["fixed_ips"]}
        used |= {floating["floating_ip_address"] for floating in self._all(FLOATING_IP)}
        return used | {subnet["gateway_ip"]}

    def _any_address(self, network: Document, subnets: list[Document]) -> Document:
        for subnet in subnets:
            used = self._used_addresses(subnet)
            for pool in subnet["allocation_pools"]:
                first, last = (ipaddress.ip_address(pool[end]) for end in ("start", "end"))
                size = int(last) - int(first) + 1
                for _ in range(size):
                    # Round and round: an address that was given back is not given out again at once, or a client
                    # would meet a new machine under the address (and SSH host key) of the old one.
                    turn = self._store.next_number(f"neutron.address.{subnet['id']}") - 1
                    address = str(first + turn % size)
                    if address not in used:
                        return {"subnet_id": subnet["id"], "ip_address": address}
        message = f"No more IP addresses available on network {network['id']}."
        raise ApiError(409, message, "IpAddressGenerationFailure")

    # Security groups

    def _default_group(self, project: str) -> Document:
        """The project's default group, made when the project is first seen."""
        for group in self._all(SECURITY_GROUP):
            if group["project_id"] == project and group["name"] == "default":
                return group
        attributes = {"name": "default", "description": "Default security group", "stateful": True}
        group = self._create_group(Caller("", project, ()), attributes)
        for ethertype in ("IPv4", "IPv6"):
            self._put_rule(group, direction="ingress", ethertype=ethertype, remote_group_id=group["id"])
        return group

    def _create_group(self, caller: Caller, attributes: Document) -> Document:
        group = self._new(SECURITY_GROUP, caller, attributes)
        self._store.put(_kind(SECURITY_GROUP), group["id"], group)
        for ethertype in ("IPv4", "IPv6"):
            self._put_rule(group, direction="egress", ethertype=ethertype)
        return group

    def _put_rule(self, group: Document, **attributes: Any) -> None:
        values = SECURITY_GROUP_RULE.parse({"security_group_id": group["id"], **attributes}, creating=True)
        stamps = {"created_at": now(), "updated_at": now(), "revision_number": 0}
        rule = {"id": new_id(), **values, "description": None, "project_id": group["project_id"], "tags": [], **stamps}
        self._store.put(_kind(SECURITY_GROUP_RULE), rule["id"], rule)

    def _remove_group_rules(self, group: Document) -> None:
        """Check that a group may be deleted, and delete its rules and those that refer to it."""
        if any(group["id"] in port["security_groups"] for port in self._all(PORT)):
            raise ApiError(409, f"Security Group {group['id']} in use.", "SecurityGroupInUse")
        if group["name"] == "default":
            message = "Insufficient rights for removing default security group."
            raise ApiError(409, message, "SecurityGroupCannotRemoveDefault")
        for rule in self._all(SECURITY_GROUP_RULE):
            if group["id"] in (rule["security_group_id"], rule["remote_group_id"]):
                self._store.delete(_kind(SECURITY_GROUP_RULE), rule["id"])

    def _create_rule(self, caller: Caller, attributes: Document) -> Document:
        rule = self._new(SECURITY_GROUP_RULE, caller, attributes)
        _check_rule(rule)
        self._need(SECURITY_GROUP, caller, rule["security_group_id"])
        if rule["remote_group_id"] is not None:
            self._need(SECURITY_GROUP, caller, rule["remote_group_id"])
        for other in self._all(SECURITY_GROUP_RULE):
            if _rule_key(other) == _rule_key(rule):
                message = f"Security group rule already exists. Rule id is {other['id']}."
                raise ApiError(409, message, "SecurityGroupRuleExists")
        self._store.put(_kind(SECURITY_GROUP_RULE), rule["id"], rule)
        return rule

    # Floating IPs

    async def _create_floating_ip(self, caller: Caller, attributes: Document) -> Document:
        network = self._need(NETWORK, caller, attributes["floating_network_id"])
        if not network["router:external"]:
            message = f"Bad floatingip request: Network {network['id']} is not a valid external network."
            raise ApiError(400, message, "BadRequest")
        floating = self._new(FLOATING_IP, caller, attributes)
        wanted = {"ip_address": floating["floating_ip_address"], "subnet_id": floating.pop("subnet_id")}
        wanted = {name: value for name, value in wanted.items() if value is not None}
        floating["floating_ip_address"] = self._allocate(network, [wanted], keep=[])[0]["ip_address"]
        association = {name: floating[name] for name in ("port_id", "fixed_ip_address")}
        floating |= self._association(caller, floating | _UNASSOCIATED, association)
        self._store.put(_kind(FLOATING_IP), floating["id"], floating)
        await self._tell(floating["port_id"])
        return floating

    def _association(self, caller: Caller, floating: Document, changes: Document) -> Document:
        """Complete changes to a floating IP by what follows from its port."""
        if changes.get("fixed_ip_address") and not changes.get("port_id"):
            raise _bad_floating_ip("fixed_ip_address cannot be specified without a port_id")
        if "port_id" not in changes:
            return changes
        if changes["port_id"] is None:
            return changes | _UNASSOCIATED
        port = self._need(PORT, caller, changes["port_id"])
        addresses = [fixed["ip_address"] for fixed in port["fixed_ips"] if ":" not in fixed["ip_address"]]
        fixed_address = changes.get("fixed_ip_address")
        if fixed_address is not None and fixed_address not in addresses:
            raise _bad_floating_ip(f"Port {port['id']} does not have fixed ip {fixed_address}")
        if fixed_address is None:
            if not addresses:
                raise _bad_floating_ip(f"Cannot add floating IP to port {port['id']} that has no fixed IPv4 addresses")
            if len(addresses) > 1:
                message = f"Port {port['id']} has multiple fixed IPv4 addresses.  Must provide a specific IPv4 address"
                raise _bad_floating_ip(f"{message} when assigning a floating IP")
            fixed_address = addresses[0]
        for other in self.floating_ips(port):
            if other["id"] != floating["id"] and other["fixed_ip_address"] == fixed_address:
                message = f"Cannot associate floating IP {floating['floating_ip_address']} ({floating['id']}) with port"
                message += f" {port['id']} using fixed IP {fixed_address}, as that fixed IP already has a floating IP"
                message += f" on external network {floating['floating_network_id']}."
                raise ApiError(409, message, "FloatingIPPortAlreadyAssociated")
        router = self._store.list("neutron.router")[0]["id"]
        return changes | {"fixed_ip_address": fixed_address, "status": "ACTIVE", "router_id": router}

    async def _tell(self, *port_ids: str | None) -> None:
        """Tell whose addresses have changed: who lost one goes first, or there would be two."""
        if self._addresses_changed is None:
            return
        for id in dict.fromkeys(port_ids):
            port = self._store.get(_kind(PORT), id) if id else None
            if port is not None and port["device_id"]:
                await self._addresses_changed(port["device_id"])


_UNASSOCIATED: Document = {"port_id": None, "fixed_ip_address": None, "status": "DOWN", "router_id": None}


def _kind(resource: Resource) -> str:
    return f"neutron.{resource.name}"


def _visible(item: Document, caller: Caller) -> bool:
    return bool(item["project_id"] == caller.project_id or item.get("shared") or item.get("router:external"))


def _matches(item: Document, request: web.Request) -> bool:
    """Whether the item passes the filters on its attributes: any of the values given for each one."""
    for name in set(request.query) - _NOT_FILTERS:
        wanted = request.query.getall(name)
        have = item.get(name)
        if name == "fixed_ips":
            parts = [part.partition("=") for part in wanted]
            if not any(all(str(fixed.get(key)) == value for key, _, value in parts) for fixed in item["fixed_ips"]):
                return False
        elif isinstance(have, list):
            if not set(wanted) & {text_of(value) for value in have}:
                return False
        elif text_of(have) not in [value.lower() if isinstance(have, bool) else value for value in wanted]:
            return False
    return True


def _only(item: Document, fields: list[str]) -> Document:
    return {name: value for name, value in item.items() if name in fields} if fields else item


def _inside(address: str, subnet: Document) -> bool:
    network = ipaddress.ip_network(subnet["cidr"])
    return ipaddress.ip_address(address) in network and address != str(network.network_address)


def _protocol_number(protocol: str | None) -> int | None:
    if protocol is None:
        return None
    return int(protocol) if protocol.isdecimal() else PROTOCOLS[protocol]


def _check_rule(rule: Document) -> None:
    """What Neutron checks of a rule beyond its single attributes; a range of all ports becomes none."""
    low, high = rule["port_range_min"], rule["port_range_max"]
    number = _protocol_number(rule["protocol"])
    if number in _WITH_PORTS and (low, high) == _ALL_PORTS:
        low = high = rule["port_range_min"] = rule["port_range_max"] = None
    if (low, high) != (None, None):
        _check_range(rule["protocol"], number, low, high)
    if number in _ONLY_IPV6 and rule["ethertype"] == "IPv4":
        message = f"Invalid ethertype {rule['ethertype']} for protocol {rule['protocol']}."
        raise ApiError(400, message, "SecurityGroupEthertypeConflictWithProtocol")
    remotes = [rule[name] for name in ("remote_ip_prefix", "remote_group_id", "remote_address_group_id")]
    if sum(remote is not None for remote in remotes) > 1:
        message = "Only one of remote_ip_prefix or remote_group_id or remote_address_group_id may be provided."
        raise ApiError(400, message, "SecurityGroupMultipleRemoteEntites")
    prefix = rule["remote_ip_prefix"]
    if prefix and rule["ethertype"] != f"IPv{ipaddress.ip_interface(prefix).version}":
        message = f"Conflicting value ethertype {rule['ethertype']} for CIDR {prefix}"
        raise ApiError(400, message, "SecurityGroupRuleParameterConflict")


def _check_range(protocol: str | None, number: int | None, low: int | None, high: int | None) -> None:
    if number is None:
        message = "Must also specify protocol if port range is given."
        raise ApiError(400, message, "SecurityGroupProtocolRequiredWithPorts")
    if number in _WITH_PORTS:
        if 0 in (low, high):
            raise ApiError(400, "Invalid value for port 0", "SecurityGroupInvalidPortValue")
        if low is None or high is None or low > high:
            message = "For TCP/UDP protocols, port_range_min must be <= port_range_max"
            raise ApiError(400, message, "SecurityGroupInvalidPortRange")
    elif number in _ICMP:
        for attribute, field, value in (("port_range_min", "type", low), ("port_range_max", "code", high)):
            if value is not None and value > _ICMP_MAX:
                message = f"Invalid value for ICMP {field} ({attribute}) {value}. It must be 0 to 255."
                raise ApiError(400, message, "SecurityGroupInvalidIcmpValue")
        if low is None:
            message = f"ICMP code (port-range-max) {high} is provided but ICMP type (port-range-min) is missing."
            raise ApiError(400, message, "SecurityGroupMissingIcmpType")
    else:
        message = f"Ports cannot be specified for protocol {protocol}. "
        message += "Ports are only supported for DCCP, SCTP, TCP, UDP, UDPLITE."
        raise ApiError(400, message, "SecurityGroupInvalidProtocolForPort")


def _rule_key(rule: Document) -> tuple[Any, ...]:
    """What makes two rules the same: everything but their description."""
    prefix = rule["remote_ip_prefix"]
    names = ("security_group_id", "direction", "ethertype", "port_range_min", "port_range_max", "remote_group_id")
    protocol = _protocol_number(rule["protocol"])
    return (*(rule[name] for name in names), protocol, None if prefix in ("0.0.0.0/0", "::/0") else prefix)


def _bad_floating_ip(message: str) -> ApiError:
    return ApiError(400, f"Bad floatingip request: {message}.", "BadRequest")


def _extension(alias: str) -> Document:
    return {"alias": alias, "name": alias, "description": "", "updated": "2024-01-01T00:00:00-00:00", "links": []}


def _render(error: ApiError) -> web.Response:
    kind = error.kind or _TITLES.get(error.status, "HTTPBadRequest")
    body = {"NeutronError": {"type": kind, "message": error.message, "detail": ""}}
    return web.json_response(body, status=error.status)
