"""Who a request comes from, as trusted proxies say it; in front of policies, over a running gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harmony.gateway.address_range import AddressRange
from harmony.gateway.app import Gateway
from harmony.gateway.config import ConfigError, Listener, LoadedConfig
from harmony.gateway.forwarded import trace
from harmony.http import Request

LISTENER = Listener("127.0.0.1", 80, trusted_proxies=(AddressRange("10.0.0.0/8"), AddressRange("fd00::/8")))
STANDARD = Listener("127.0.0.1", 80, trusted_proxies=LISTENER.trusted_proxies, forwarded_header="Forwarded")


def traced(listener: Listener, peer: str, *fields: tuple[str, str]) -> Request:
    request = Request("GET", "/", headers=[("Host", "inner"), *fields], client=(peer, 1))
    trace(request, listener)
    return request


@pytest.mark.parametrize(
    ("peer", "lines", "client"),
    [
        ("203.0.113.1", ["192.0.2.1"], "203.0.113.1"),  # nobody's proxy: spoofed
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["192.0.2.1"], "192.0.2.1"),
        ("10.0.0.1", ["198.51.100.9, 192.0.2.1"], "192.0.2.1"),
        ("10.0.0.1", ["10.0.0.9, 192.0.2.1"], "192.0.2.1"),  # what the client claims about itself
        ("10.0.0.1", ["198.51.100.9", "192.0.2.1, 10.0.0.2"], "192.0.2.1"),
        ("10.0.0.1", ["10.0.0.3,10.0.0.2"], "10.0.0.3"),
        ("::ffff:10.0.0.1", ["192.0.2.1:4711"], "192.0.2.1"),
        ("fd00::1", ["2001:db8::1"], "2001:db8::1"),
        ("fd00::1", ["[2001:db8::1]:443"], "2001:db8::1"),
        ("10.0.0.1", ["192.0.2.1, unknown"], ""),
        ("10.0.0.1", ["192.0.2.1, 10.0.0.256"], ""),
        ("10.0.0.1", ["192.0.2.1, "], "192.0.2.1"),
        ("10.0.0.1", ["192.0.2.1" + ", 10.0.0.2" * 31], "192.0.2.1"),
        ("10.0.0.1", ["192.0.2.1" + ", 10.0.0.2" * 32], ""),
    ],
)
def test_x_forwarded_for(peer: str, lines: list[str], client: str) -> None:
    request = traced(LISTENER, peer, *(("X-Forwarded-For", line) for line in lines))
    assert request.client[0] == client


@pytest.mark.parametrize(
    ("peer", "lines", "client"),
    [
        ("203.0.113.1", ["for=192.0.2.1"], "203.0.113.1"),
        ("10.0.0.1", ["for=192.0.2.1"], "192.0.2.1"),
        ("10.0.0.1", ['For="[2001:db8:cafe::17]:4711"'], "2001:db8:cafe::17"),
        ("10.0.0.1", ["for=192.0.2.43, for=198.51.100.17;by=203.0.113.60;proto=http"], "198.51.100.17"),
        ("10.0.0.1", ["for=192.0.2.43", 'by="a,b";for=10.0.0.2'], "192.0.2.43"),
        ("10.0.0.1", ["for=192.0.2.43, for=_hidden"], ""),
        ("10.0.0.1", ["for=192.0.2.43, proto=https"], ""),
        # An open quote of the client's must not swallow what the proxy adds.
        ("10.0.0.1", ['for="10.0.0.9, for=192.0.2.1'], ""),
        ("10.0.0.1", ['for=10.0.0.9;x=", for=192.0.2.1;by="a"'], ""),
    ],
)
def test_forwarded(peer: str, lines: list[str], client: str) -> None:
    request = traced(STANDARD, peer, *(("Forwarded", line) for line in lines))
    assert request.client[0] == client


def test_only_the_configured_field_counts() -> None:
    fields = (("X-Forwarded-For", "192.0.2.1"), ("Forwarded", "for=192.0.2.2"))
    assert traced(LISTENER, "10.0.0.1", *fields).client[0] == "192.0.2.1"
    assert traced(STANDARD, "10.0.0.1", *fields).client[0] == "192.0.2.2"


def test_scheme_and_host_are_those_that_a_trusted_proxy_names() -> None:
    fields = (("X-Forwarded-Proto", "HTTPS"), ("X-Forwarded-Host", "pacs.example.org"))
    request = traced(LISTENER, "10.0.0.1", *fields)
    assert (request.scheme, request.headers.get("host")) == ("https", "pacs.example.org")
    request = traced(STANDARD, "10.0.0.1", ("Forwarded", 'for=192.0.2.1;proto=https;host="pacs.example.org"'))
    assert (request.scheme, request.headers.get("host")) == ("https", "pacs.example.org")
    for listener in (LISTENER, STANDARD):
        request = traced(listener, "203.0.113.1", *fields, ("Forwarded", "proto=https;host=evil"))
        assert (request.scheme, request.headers.get("host")) == ("http", "inner")
    assert traced(LISTENER, "10.0.0.1", ("X-Forwarded-Proto", "gopher")).scheme == "http"


@given(st.lists(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60), max_size=3))
def test_whatever_a_client_writes_its_address_is_what_the_proxy_saw(lines: list[str]) -> None:
    fields = [("X-Forwarded-For", line) for line in lines]
    assert traced(LISTENER, "10.0.0.1", *fields, ("X-Forwarded-For", "192.0.2.1")).client[0] == "192.0.2.1"
    claimed = [("Forwarded", line) for line in lines]
    seen = traced(STANDARD, "10.0.0.1", *claimed, ("Forwarded", "for=192.0.2.1")).client[0]
    assert seen == "192.0.2.1"


# A running gateway


CONFIG = """
[proxy]
id = "x"
[network.n.http]
bind_address = "127.0.0.1"
bind_port = {port}
trusted_proxies = ["127.0.0.1"]
{more}
[pipelines.p]
networks = ["n"]
endpoints = ["e"]
middleware = ["guard"]
[endpoints.e]
service = "echo"
options.path_prefix = "/"
[middleware.guard]
type = "policies"
[[middleware.guard.options.policies]]
rules = [{{ type = "ip_allow", options = {{ ip_addresses = ["192.0.2.1"] }} }}]
"""


async def status(port: int, data: bytes) -> int:
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(data)
            line = await reader.readline()
            return int(line.split()[1]) if line else 0
        except ConnectionError:
            return 0
        finally:
            writer.close()


async def test_policies_see_the_client_behind_a_proxy(
    load_config: Callable[[str], LoadedConfig], free_port: int
) -> None:
    gateway = Gateway(load_config(CONFIG.format(port=free_port, more="")))
    await gateway.start()
    try:
        head = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-Forwarded-For: %s\r\n\r\n"
        assert await status(free_port, head % b"192.0.2.1") == 200
        assert await status(free_port, head % b"192.0.2.1, 192.0.2.2") == 403
        assert await status(free_port, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n") == 403
    finally:
        await gateway.stop(0.0)


async def test_policies_see_the_client_of_the_proxy_protocol(
    load_config: Callable[[str], LoadedConfig], free_port: int
) -> None:
    gateway = Gateway(load_config(CONFIG.format(port=free_port, more="proxy_protocol = true")))
    await gateway.start()
    try:
        head = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        line = b"PROXY TCP4 %s 198.51.100.2 41340 80\r\n"
        assert await status(free_port, line % b"192.0.2.1" + head) == 200
        assert await status(free_port, line % b"192.0.2.2" + head) == 403
        assert await status(free_port, head) == 0
        # Behind the first proxy somebody who is none, and claims to be.
        spoofed = head.replace(b"Host: a", b"Host: a\r\nX-Forwarded-For: 192.0.2.1")
        assert await status(free_port, line % b"192.0.2.2" + spoofed) == 403
    finally:
        await gateway.stop(0.0)


def test_the_proxy_protocol_needs_to_know_whom_to_trust(load_config: Callable[[str], LoadedConfig]) -> None:
    config = CONFIG.format(port=8080, more="proxy_protocol = true")
    with pytest.raises(ConfigError, match=r"network\.n\.http\] trusted_proxies: is missing"):
        load_config(config.replace('trusted_proxies = ["127.0.0.1"]', ""))
