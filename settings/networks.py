"""Networks in the one spelling that Neutron answers with, so that what it has is what was declared.

Neutron takes every spelling and answers as netaddr's IPNetwork writes it: with the length, IPv6 compressed and in lower
case (neutron, extensions/securitygroup.py, convert_ip_prefix_to_cidr). Bits of a host it keeps.
"""

from ipaddress import IPv4Network, IPv6Network, ip_network

# Where netaddr, as inet_ntop(3), writes the end of an address as IPv4, and Python 3.11 does not.
_WITH_IPV4 = (IPv6Network("::/96"), IPv6Network("::ffff:0:0/96"))
_LOOPBACK = IPv6Network("::1/128")


def canonical(text: str) -> str:
    """A network as Neutron writes it; ValueError says what is wrong with it."""
    try:
        network = ip_network(text)
        if "%" in text:
            raise ValueError("it names an interface")
    except ValueError as error:
        raise ValueError(f"is not a CIDR ({error}); write a network like 192.0.2.0/24 or 2001:db8::/32") from None
    if network.prefixlen == 0:
        raise ValueError("lets the whole internet in; name the networks from which somebody must get there")
    if isinstance(network, IPv6Network) and network != _LOOPBACK and any(map(network.subnet_of, _WITH_IPV4)):
        raise ValueError("is IPv4 in IPv6, which nobody comes from; write it as IPv4, like 192.0.2.0/24")
    return str(network)


def spellings(network: str) -> list[str]:
    """How else a network in canonical form may have been written."""
    known = ip_network(network)
    address = known.network_address
    ends = [f"/{known.prefixlen}", *([f"/{known.netmask}"] if isinstance(known, IPv4Network) else [])]
    if known.prefixlen == known.max_prefixlen:
        ends.append("")
    bases = [base for each in (address.compressed, address.exploded) for base in (each, each.upper())]
    return [text for text in dict.fromkeys(base + end for end in ends for base in bases) if text != network]
