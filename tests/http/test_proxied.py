"""A server behind a proxy that speaks the PROXY protocol, with and without TLS, on both event loops."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest
import uvloop

from harmony.http import HTTPServer, Request, Response, ServerLimits

HEAD = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
PROXY = b"PROXY TCP4 192.0.2.1 198.51.100.2 41340 443\r\n"
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
PATIENCE_S = 20.0


async def client_and_scheme(request: Request) -> Response:
    return Response(200, {}, f"{request.client[0]} {request.scheme}".encode())


async def body_after(port: int, sent: bytes, then: bytes, *, tls: ssl.SSLContext | None) -> bytes:
    """What is answered to `then`, over TLS or not, behind a header."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(sent)
        if tls is not None:
            await writer.drain()
            await writer.start_tls(tls, server_hostname="127.0.0.1")
        writer.write(then)
        return (await reader.read()).partition(b"\r\n\r\n")[2]
    except OSError:
        return b""
    finally:
        writer.close()


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("secured", [False, True])
def test_the_client_is_the_one_that_the_proxy_names(loop: str, secured: bool, certificate: Path) -> None:
    server_tls = client_tls = None
    if secured:
        server_tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        server_tls.load_cert_chain(certificate)
        client_tls = ssl.create_default_context(cafile=certificate)
    scheme = b"https" if secured else b"http"

    async def check() -> None:
        server = HTTPServer(client_and_scheme, limits=ServerLimits(header_timeout_s=0.5))
        trusted = True
        ((_, port),) = await server.start(
            "127.0.0.1", 0, ssl=server_tls, trusted_proxy=lambda host: trusted and host == "127.0.0.1"
        )
        try:
            assert await body_after(port, PROXY, HEAD, tls=client_tls) == b"192.0.2.1 " + scheme
            assert (
                await body_after(port, b"PROXY UNKNOWN\r\n", HEAD, tls=client_tls) == b"127.0.0.1 " + scheme
            )
            assert await body_after(port, b"", HEAD, tls=None) == b""
            assert await body_after(port, b"PROXY TC", b"", tls=None) == b""  # and no more, in time
            trusted = False
            assert await body_after(port, PROXY, HEAD, tls=None) == b""
        finally:
            await server.stop()

    async def in_time() -> None:
        async with asyncio.timeout(PATIENCE_S):
            await check()

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(in_time())


@pytest.mark.parametrize("loop", LOOPS)
def test_connections_that_wait_for_their_header_count_and_stop_with_the_server(loop: str) -> None:
    async def check() -> None:
        server = HTTPServer(client_and_scheme, limits=ServerLimits(maximum_connections=2))
        ((_, port),) = await server.start("127.0.0.1", 0, trusted_proxy=lambda host: True)
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        assert await body_after(port, PROXY, HEAD, tls=None) == b""
        await server.stop()
        for reader, writer in silent:
            assert await reader.read() == b""
            writer.close()

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(asyncio.wait_for(check(), PATIENCE_S))
