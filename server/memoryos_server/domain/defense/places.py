"""Addresses: how they are written, and how much of one is one place."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from memoryos_server.domain.core.faults import Invalid

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

IPV6_BITS = 64
"""How much of an IPv6 address is one place: a subscriber has at least a network of this length to pick addresses from."""


def address_of(text: str) -> Address:
    """An address; an IPv4 address that is written as an IPv6 one is the IPv4 address.

    Raises:
        ValueError: It is none.
    """
    address = ipaddress.ip_address(text.partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address


def place_of(address: Address) -> str:
    """The place of an address, as a text: IPv4 by address, IPv6 by network."""
    if address.version == 4:
        return str(address)
    return str(ipaddress.IPv6Network((int(address) >> IPV6_BITS << IPV6_BITS, IPV6_BITS)))


def network_of(text: str, param: str = "ip") -> Network:
    """An address or a network in CIDR form; of an address the network that is only it.

    Raises:
        Invalid: It is neither, has bits set beyond its length, or is everything there is.
    """
    try:
        address, slash, length = text.strip().partition("/")
        whole = address_of(address)
        bits = int(length) if slash else whole.max_prefixlen
        if slash and ":" in address and whole.version == 4:
            bits -= 96  # ::ffff:10.0.0.0/104 is 10.0.0.0/8
        found = ipaddress.ip_network((whole, bits), strict=False)
    except ValueError:
        raise Invalid(
            f"{param} must be an IPv4 or IPv6 address, or a network such as 10.0.0.0/8", param=param
        ) from None
    if not found.prefixlen:
        raise Invalid(f"{param} must not be all addresses: defense.enabled switches the defense off", param=param)
    if found.network_address != whole:
        raise Invalid(f"{param} has bits set beyond its length; did you mean {found}?", param=param)
    return found


def written(network: Network) -> str:
    """A network as people write it: without its length if it is one address."""
    return str(network.network_address) if network.prefixlen == network.max_prefixlen else str(network)


def place_named(text: str, param: str = "ip") -> str:
    """The place of a text: an address, or a place as it is listed.

    Raises:
        Invalid: It is neither.
    """
    network = network_of(text, param)
    if network.prefixlen not in (network.max_prefixlen, IPV6_BITS if network.version == 6 else 32):
        raise Invalid(f"{param} must be one address; bans are of addresses, not of networks", param=param)
    return place_of(network.network_address)


class Networks:
    """Networks, and whether an address is in one of them; as fast with many as with one."""

    def __init__(self, networks: Iterable[Network] = ()) -> None:
        self._by_length: dict[tuple[int, int], set[int]] = {}
        for network in networks:
            shift = network.max_prefixlen - network.prefixlen
            self._by_length.setdefault((network.version, shift), set()).add(int(network.network_address) >> shift)

    def __contains__(self, address: Address) -> bool:
        number, version = int(address), address.version
        return any(v == version and number >> shift in found for (v, shift), found in self._by_length.items())
