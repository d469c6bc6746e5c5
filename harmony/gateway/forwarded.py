"""Who a request comes from when proxies stand in between: X-Forwarded-For or Forwarded (RFC 7239).

What is said there is believed as far as the ones who say it are trusted: from the right, which the nearest proxy wrote,
to the first address that is no trusted proxy; that is the client. Everything left of it the client may have made up.
One of the two fields counts, the configured one: a proxy that writes the one passes on the other as the client sent it.

Where a client cannot be told (a trusted proxy says `unknown`, or something that is no address), the request has none:
no rule allows it for its address. Scheme and host of the URLs in answers are those that the nearest proxy names.
"""

from __future__ import annotations

import re
from typing import Final

from harmony.gateway.address_range import address_of
from harmony.gateway.config import Listener
from harmony.http import Request

__all__ = ["PEER", "trace"]

PEER: Final = "peer"
"""Key of `Request.state`: who connected, where that is not the client."""

MAXIMUM_HOPS: Final = 32
"""Trusted proxies in a row; whoever needs more has made a loop."""

_NODE: Final = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::[0-9]{1,5})?|([0-9.]+)(?::[0-9]{1,5})?|([0-9A-Fa-f:.]+)")
"""RFC 7239 §6: an IPv4 address or an IPv6 address in brackets, perhaps with a port; X-Forwarded-For has bare ones."""
_PAIR: Final = re.compile(r'\s*([A-Za-z-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;,"]*))\s*')
_SCHEMES: Final = ("http", "https")


def trace(request: Request, listener: Listener) -> None:
    """Give a request the client, scheme and host that the trusted proxies of a listener say it has."""
    if not listener.trusts(request.client[0]):
        return
    if listener.forwarded_header == "Forwarded":
        hops = [
            _pairs(element) for line in request.headers.get_all("forwarded") for element in _elements(line)
        ]
        nodes = [hop.get("for", "") for hop in hops]
        last = hops[-1] if hops else {}
        scheme, host = last.get("proto"), last.get("host")
    else:
        listed = ",".join(request.headers.get_all("x-forwarded-for")).split(",")
        nodes = [each for each in listed if each.strip()]
        scheme, host = _last(request, "x-forwarded-proto"), _last(request, "x-forwarded-host")
    request.state[PEER] = request.client
    request.client = _client(request.client, nodes, listener)
    if scheme is not None and scheme.lower() in _SCHEMES:
        request.scheme = scheme.lower()
    if host:
        request.headers = request.headers.set("Host", host)


def _client(peer: tuple[str, int], nodes: list[str], listener: Listener) -> tuple[str, int]:
    client = peer
    for node in nodes[: -MAXIMUM_HOPS - 1 : -1]:
        if not listener.trusts(client[0]):
            return client
        found = _NODE.fullmatch(node.strip())
        host = next((group for group in found.groups() if group), "") if found is not None else ""
        if address_of(host) is None:
            return "", 0
        client = host, 0
    return client if len(nodes) < MAXIMUM_HOPS or not listener.trusts(client[0]) else ("", 0)


def _last(request: Request, name: str) -> str | None:
    values = request.headers.get_all(name)
    return values[-1].rpartition(",")[2].strip() if values else None


def _elements(line: str) -> list[str]:
    """Split at commas outside of quoted strings."""
    return re.findall(r'(?:[^,"]|"(?:[^"\\]|\\.)*"?)+', line)


def _pairs(element: str) -> dict[str, str]:
    """An element of Forwarded; empty for one that is none."""
    pairs: dict[str, str] = {}
    at = 0
    while at < len(element):
        found = _PAIR.match(element, at)
        if found is None or found[1].lower() in pairs:
            return {}
        quoted, plain = found[2], found[3]
        pairs[found[1].lower()] = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
        at = found.end()
        if at < len(element):
            if element[at] != ";":
                return {}
            at += 1
    return pairs
