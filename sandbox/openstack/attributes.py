"""Which attributes each of Neutron's resources has, who may set them, and what values they take (Network API v2.0)."""

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sandbox.openstack.common import ApiError, Document, is_uuid

# Names as in the protocol list of Neutron's security group extension; several names may share a number.
PROTOCOLS = {
    "ah": 51, "dccp": 33, "egp": 8, "esp": 50, "gre": 47, "hopopt": 0, "icmp": 1, "igmp": 2, "ip": 0, "ipip": 4,
    "ipv6-encap": 41, "ipv6-frag": 44, "ipv6-icmp": 58, "icmpv6": 58, "ipv6-nonxt": 59, "ipv6-opts": 60,
    "ipv6-route": 43, "ospf": 89, "pgm": 113, "rsvp": 46, "sctp": 132, "tcp": 6, "udp": 17, "udplite": 136,
    "vrrp": 112,
}  # fmt: skip

_MAX_PORT = 65535
_MAX_PROTOCOL = 255

# Converts a value given by a client to the one to be stored; raises ValueError with a reason, or ApiError.
Check = Callable[[Any], Any]

REQUIRED: Any = object()
# No value given means that Neutron chooses one.
UNSET: Any = object()


@dataclass(frozen=True)
class Attribute:
    """One attribute: its value when a request to create gives none, and where it may be given."""

    default: Any = None
    check: Check = lambda value: value
    post: bool = True
    put: bool = True


@dataclass(frozen=True)
class Resource:
    """One kind of resource: what it is called in paths, bodies and errors, and its attributes."""

    name: str
    path: str
    label: str
    not_found: str
    attributes: dict[str, Attribute] = field(default_factory=dict)
    # Attributes that only answers have.
    read_only: tuple[str, ...] = ()
    writable: bool = True

    @property
    def plural(self) -> str:
        """The name of a list of them."""
        return f"{self.name}s"

    def parse(self, body: Document, creating: bool) -> Document:
        """The attributes given for a new resource (with defaults) or for a change; ApiError 400 for a wrong one."""
        known = {**self.attributes, **dict.fromkeys(self.read_only, Attribute(post=False, put=False))}
        unknown = sorted(set(body) - set(known))
        if unknown:
            raise bad_request(f"Unrecognized attribute(s) '{', '.join(unknown)}'")
        for name in body:
            if creating and not known[name].post:
                raise bad_request(f"Attribute '{name}' not allowed in POST")
            if not creating and not known[name].put:
                raise bad_request(f"Cannot update read-only attribute {name}")
        values: Document = {}
        for name, attribute in self.attributes.items():
            if name in body:
                try:
                    values[name] = attribute.check(body[name])
                except ValueError as error:
                    raise bad_request(f"Invalid input for {name}. Reason: {error}.") from error
            elif creating and attribute.default is REQUIRED:
                raise bad_request(f"Failed to parse request. Required attribute '{name}' not specified")
            elif creating and attribute.default is not UNSET:
                values[name] = attribute.default
        return values


def bad_request(message: str) -> ApiError:
    """The error for input that the attribute map refuses."""
    return ApiError(400, message, "HTTPBadRequest")


def _string(length: int = 255) -> Check:
    def check(value: Any) -> str:
        if not isinstance(value, str):
            raise ValueError(f"'{value}' is not a valid string")
        if len(value) > length:
            raise ValueError(f"'{value}' exceeds maximum length of {length}")
        return value

    return check


def _one_of(*values: str) -> Check:
    def check(value: Any) -> Any:
        if value not in values:
            raise ValueError(f"{value} is not in {list(values)}")
        return value

    return check


def _boolean(value: Any) -> bool:
    if str(value).lower() in ("true", "1"):
        return True
    if str(value).lower() in ("false", "0"):
        return False
    raise ValueError(f"'{value}' cannot be converted to boolean")


def _uuid(value: Any) -> str:
    if not is_uuid(value):
        raise ValueError(f"'{value}' is not a valid UUID")
    return str(value)


def _or_none(check: Check) -> Check:
    return lambda value: None if value is None else check(value)


def _address(value: Any) -> str:
    try:
        return str(ipaddress.ip_address(value))
    except ValueError as error:
        raise ValueError(f"'{value}' is not a valid IP address") from error


def _mac_address(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"([0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}", value):
        raise ValueError(f"'{value}' is not a valid MAC address")
    return value.lower()


def _unique_strings(value: Any) -> list[str]:
    if not isinstance(value, list):
        raise ValueError(f"'{value}' is not a list")
    values = [_string(255)(item) for item in value]
    if len(set(values)) < len(values):
        raise ValueError(f"Duplicate items in the list: '{', '.join(values)}'")
    return values


tags = _unique_strings


def _uuids(value: Any) -> list[str]:
    return [_uuid(item) for item in _unique_strings(value or [])]


def _fixed_ips(value: Any) -> list[Document]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ValueError(f"Invalid data format for fixed IP: '{value}'")
    checks: dict[str, Check] = {"ip_address": _address, "subnet_id": _uuid}
    if any(set(item) - set(checks) for item in value):
        raise ValueError(f"Invalid data format for fixed IP: '{value}'")
    return [{name: checks[name](given) for name, given in item.items()} for item in value]


def _address_pairs(value: Any) -> list[Document]:
    if not isinstance(value, list) or not all(isinstance(item, dict) and "ip_address" in item for item in value):
        raise ValueError("AllowedAddressPair must contain ip_address")
    return value


def _group_name(value: Any) -> str:
    if _string()(value).lower() == "default":
        raise ApiError(409, "Default security group already exists.", "SecurityGroupDefaultAlreadyExists")
    return str(value)


def _protocol(value: Any) -> str | None:
    if value is None:
        return None
    text = str(value).lower()
    if text in PROTOCOLS or (text.isdecimal() and int(text) <= _MAX_PROTOCOL):
        return text
    message = f"Security group rule protocol {value} not supported. Only protocol values {[None, *PROTOCOLS]} and "
    message += "integer representations [0 to 255] are supported."
    raise ApiError(400, message, "SecurityGroupRuleInvalidProtocol")


def _ethertype(value: Any) -> str:
    for known in ("IPv4", "IPv6"):
        if str(value).lower() == known.lower():
            return known
    message = f"Security group rule for ethertype '{value}' not supported. Allowed values are ['IPv4', 'IPv6']."
    raise ApiError(400, message, "SecurityGroupRuleInvalidEtherType")


def _port_number(value: Any) -> int | None:
    if value is None:
        return None
    if not str(value).isdecimal() or int(value) > _MAX_PORT:
        raise ApiError(400, f"Invalid value for port {value}", "SecurityGroupInvalidPortValue")
    return int(value)


def _cidr(value: Any) -> str | None:
    if not value:
        return None
    try:
        # Host bits are allowed and kept; only the length is added where it is missing.
        return str(ipaddress.ip_interface(value))
    except ValueError as error:
        raise ApiError(400, f"Invalid CIDR {value} given as IP prefix.", "InvalidCIDR") from error


_PROJECT = {"project_id": Attribute(UNSET, put=False), "tenant_id": Attribute(UNSET, put=False)}
_NAME = {"name": Attribute("", _string())}
_DESCRIPTION = {"description": Attribute("", _string())}
_COMMON = ("id", "created_at", "updated_at", "revision_number")

NETWORK = Resource(
    "network", "networks", "Network", "NetworkNotFound", writable=False,
    read_only=(
        *_COMMON, "name", "description", "project_id", "tenant_id", "tags", "status", "admin_state_up", "mtu", "shared",
        "router:external", "subnets", "availability_zones", "availability_zone_hints", "ipv4_address_scope",
        "ipv6_address_scope", "port_security_enabled", "qos_policy_id", "is_default", "provider:network_type",
        "provider:physical_network", "provider:segmentation_id",
    ),
)  # fmt: skip

SUBNET = Resource(
    "subnet", "subnets", "Subnet", "SubnetNotFound", writable=False,
    read_only=(
        *_COMMON, "name", "description", "project_id", "tenant_id", "tags", "network_id", "ip_version", "cidr",
        "gateway_ip", "allocation_pools", "dns_nameservers", "host_routes", "enable_dhcp", "ipv6_address_mode",
        "ipv6_ra_mode", "subnetpool_id", "segment_id", "service_types",
    ),
)  # fmt: skip

ROUTER = Resource(
    "router", "routers", "Router", "RouterNotFound", writable=False,
    read_only=(
        *_COMMON, "name", "description", "project_id", "tenant_id", "tags", "status", "admin_state_up",
        "external_gateway_info", "routes", "availability_zones", "availability_zone_hints", "distributed", "ha",
        "flavor_id",
    ),
)  # fmt: skip

PORT = Resource(
    "port", "ports", "Port", "PortNotFound",
    {
        **_NAME,
        **_DESCRIPTION,
        **_PROJECT,
        "network_id": Attribute(REQUIRED, _uuid, put=False),
        "admin_state_up": Attribute(True, _boolean),
        "mac_address": Attribute(UNSET, _mac_address),
        "fixed_ips": Attribute(UNSET, _fixed_ips),
        "device_id": Attribute("", _string()),
        "device_owner": Attribute("", _string()),
        "security_groups": Attribute(UNSET, _uuids),
        "port_security_enabled": Attribute(True, _boolean),
        "allowed_address_pairs": Attribute([], _address_pairs),
        "extra_dhcp_opts": Attribute([]),
        "binding:vnic_type": Attribute("normal", _string()),
        "binding:host_id": Attribute("", _string()),
        "binding:profile": Attribute({}),
        "qos_policy_id": Attribute(None, _or_none(_uuid)),
        "dns_name": Attribute("", _string(63)),
    },
    (*_COMMON, "tags", "status", "binding:vif_type", "binding:vif_details", "dns_assignment"),
)  # fmt: skip

SECURITY_GROUP = Resource(
    "security_group", "security-groups", "Security group", "SecurityGroupNotFound",
    {
        **_DESCRIPTION,
        **_PROJECT,
        "name": Attribute("", _group_name),
        "stateful": Attribute(True, _boolean),
    },
    (*_COMMON, "tags", "security_group_rules", "shared"),
)  # fmt: skip

SECURITY_GROUP_RULE = Resource(
    "security_group_rule", "security-group-rules", "Security group rule", "SecurityGroupRuleNotFound",
    {
        **_DESCRIPTION,
        **_PROJECT,
        "security_group_id": Attribute(REQUIRED, _string(36), put=False),
        "direction": Attribute(REQUIRED, _one_of("ingress", "egress"), put=False),
        "ethertype": Attribute("IPv4", _ethertype, put=False),
        "protocol": Attribute(None, _protocol, put=False),
        "port_range_min": Attribute(None, _port_number, put=False),
        "port_range_max": Attribute(None, _port_number, put=False),
        "remote_ip_prefix": Attribute(None, _cidr, put=False),
        "remote_group_id": Attribute(None, put=False),
        "remote_address_group_id": Attribute(None, put=False),
    },
    (*_COMMON, "tags", "normalized_cidr", "belongs_to_default_sg"),
)  # fmt: skip

FLOATING_IP = Resource(
    "floatingip", "floatingips", "Floating IP", "FloatingIPNotFound",
    {
        **_DESCRIPTION,
        **_PROJECT,
        "floating_network_id": Attribute(REQUIRED, _uuid, put=False),
        "floating_ip_address": Attribute(None, _or_none(_address), put=False),
        "subnet_id": Attribute(None, _or_none(_uuid), put=False),
        "port_id": Attribute(None, _or_none(_uuid)),
        "fixed_ip_address": Attribute(None, _or_none(_address)),
        "qos_policy_id": Attribute(None, _or_none(_uuid)),
        "dns_name": Attribute("", _string(63), put=False),
        "dns_domain": Attribute("", _string(), put=False),
    },
    (*_COMMON, "tags", "status", "router_id", "port_details", "port_forwardings"),
)  # fmt: skip

RESOURCES = (NETWORK, SUBNET, ROUTER, PORT, SECURITY_GROUP, SECURITY_GROUP_RULE, FLOATING_IP)
