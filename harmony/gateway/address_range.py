"""Addresses of peers, and the ranges of them that files name."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from harmony.gateway.written import Written

__all__ = ["AddressRange", "IPAddress", "address_of", "contains"]

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")


class AddressRange(Written):
    """An address, or a network as 192.0.2.0/24; host bits that are set do not count."""

    __slots__ = ("network",)

    def __init__(self, text: str) -> None:
        super().__init__(text)
        network = ipaddress.ip_network(text, strict=False)
        if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED):
            # IPv4 behind an IPv6 socket; addresses are compared as what they are (see `address_of`).
            mapped = network.network_address.ipv4_mapped
            network = ipaddress.ip_network(f"{mapped}/{network.prefixlen - 96}")
        self.network = network

    def __contains__(self, address: IPAddress) -> bool:
        return address in self.network


def address_of(host: str) -> IPAddress | None:
    """A peer's address as sockets say it: without a zone, and IPv4 as IPv4 where an IPv6 socket took it."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def contains(ranges: Sequence[AddressRange], address: IPAddress | None) -> bool:
    return address is not None and any(address in each for each in ranges)
