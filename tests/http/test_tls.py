"""HTTPS on loopback: who speaks no TLS, certificates that are refused, frozen handshakes, both ends and both loops."""

import asyncio
import contextlib
import logging
import ssl
from pathlib import Path
from typing import Any

import pytest
import uvloop

from harmony.http import Request, Response
from harmony.http.client import HTTPClient, UpstreamError

EVENT_TIMEOUT_S = 10.0


def pytest_asyncio_loop_factories(config: Any, item: Any) -> Any:
    return {"asyncio": asyncio.SelectorEventLoop, "uvloop": uvloop.new_event_loop}


async def hello(request: Request) -> Response:
    return Response(200, body=b"hello")


def server_side(certificate: Any, authority: Any, *, required: bool = False) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=authority.certificate)
    context.load_cert_chain(certificate.certificate, certificate.key)
    context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
    return context


def client_side(trusted: Path, shown: Any = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=trusted)
    if shown is not None:
        context.load_cert_chain(shown.certificate, shown.key)
    return context


async def failure(port: int, scheme: str = "https", **options: Any) -> UpstreamError:
    async with (
        asyncio.timeout(EVENT_TIMEOUT_S),
        HTTPClient(f"{scheme}://127.0.0.1:{port}", **options) as client,
    ):
        with pytest.raises(UpstreamError) as caught:
            await client.request("GET", "/")
    return caught.value


async def test_http_on_a_tls_port_is_answered_and_named(
    serve: Any, authority: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="harmony.http")
    served = await serve(hello, ssl=server_side(authority.issue(), authority))
    answer = await served.exchange(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert answer.endswith(b"\r\n\r\nThis port speaks TLS only: ask for the same with https.\n")
    assert "speaks plain HTTP, not TLS; closed" in caplog.text


async def test_dicom_on_an_https_port_is_named(
    serve: Any, authority: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="harmony.http")
    served = await serve(hello, ssl=server_side(authority.issue(), authority))
    assert await served.exchange(bytes.fromhex("01 00 000000cd 0001")) == bytes.fromhex("15 0303 0002 02 46")
    assert "speaks plain DICOM, not TLS; closed" in caplog.text


async def test_a_certificate_that_does_not_name_its_authoritys_key(serve: Any, authority: Any) -> None:
    """Accepted on every Python; 3.13 refuses it where nobody says otherwise."""
    certificate = authority.issue(names_authority_key=False)
    served = await serve(hello, ssl=server_side(certificate, authority))
    url = f"https://127.0.0.1:{served.server.addresses[0][1]}"
    async with HTTPClient(url, ca_cert_path=authority.certificate) as client:
        assert (await client.request("GET", "/")).body == b"hello"


async def test_the_client_is_told_who_speaks_no_tls(serve: Any, authority: Any) -> None:
    plain = await serve(hello)
    error = await failure(plain.server.addresses[0][1], ca_cert_path=authority.certificate)
    assert error.kind == "connect"
    assert "does not speak TLS" in error.message or "closed during the TLS handshake" in error.message


async def test_the_client_is_told_who_expects_tls() -> None:
    async def alert(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(bytes.fromhex("15 0303 0002 02 46"))
        writer.close()

    server = await asyncio.start_server(alert, "127.0.0.1", 0)
    async with server:
        error = await failure(server.sockets[0].getsockname()[1], "http")
    assert "speaks TLS on this port, and was asked without; the protocol must be https" in error.message


async def test_the_reasons_for_which_a_certificate_is_refused(
    serve: Any, authority: Any, other_authority: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="harmony.http")
    cases: list[tuple[Any, ssl.SSLContext, str, str, str]] = [
        (
            authority.issue(),
            client_side(other_authority.certificate),
            "",
            "nobody that we trust",
            "does not trust",
        ),
        (
            authority.issue(valid_days=(-9, -1)),
            client_side(authority.certificate),
            "",
            "certificate has expired",
            "our certificate has expired",
        ),
        (
            authority.issue(valid_days=(1, 9)),
            client_side(authority.certificate),
            "",
            "not yet valid",
            "does not accept our certificate",
        ),
        (
            authority.issue(),
            client_side(authority.certificate),
            "web.example",
            "Hostname mismatch",
            "does not accept our certificate",
        ),
    ]
    for own, context, name, told, logged in cases:
        served = await serve(hello, ssl=server_side(own, authority))
        caplog.clear()
        error = await failure(
            served.server.addresses[0][1], ssl_context=context, server_hostname=name or None
        )
        assert error.kind == "connect"
        assert told in error.message
        async with asyncio.timeout(EVENT_TIMEOUT_S):
            while served.server.beginning_count:  # noqa: ASYNC110
                await asyncio.sleep(0)
        assert logged in caplog.text


async def test_client_certificates_that_are_refused(
    serve: Any, authority: Any, other_authority: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="harmony.http")
    served = await serve(hello, ssl=server_side(authority.issue(), authority, required=True))
    port = served.server.addresses[0][1]
    for shown, told, logged in (
        (None, "wants a client certificate and was shown none", "showed no client certificate"),
        (other_authority.issue(), "does not trust who signed our certificate", "nobody that we trust"),
        (authority.issue(valid_days=(-9, -1)), "our certificate has expired", "certificate has expired"),
    ):
        error = await failure(port, ssl_context=client_side(authority.certificate, shown))
        assert told in error.message
        assert logged in caplog.text
    context = client_side(authority.certificate, authority.issue())
    async with HTTPClient(f"https://127.0.0.1:{port}", ssl_context=context) as client:
        assert (await client.request("GET", "/")).body == b"hello"


async def test_a_name_other_than_the_host(serve: Any, authority: Any) -> None:
    served = await serve(hello, ssl=server_side(authority.issue(names=("web.example",)), authority))
    url = f"https://127.0.0.1:{served.server.addresses[0][1]}"
    context = client_side(authority.certificate)
    async with HTTPClient(url, ssl_context=lambda: context, server_hostname="web.example") as client:
        assert (await client.request("GET", "/")).body == b"hello"


async def test_r05_frozen_handshakes_delay_nobody(serve: Any, authority: Any) -> None:
    """R05, with more of them than there may be connections."""
    served = await serve(hello, ssl=server_side(authority.issue(), authority), maximum_connections=100)
    host, port = served.server.addresses[0]
    frozen = []
    for number in range(200):
        _, writer = await asyncio.open_connection(host, port)
        frozen.append(writer)
        writer.write(bytes.fromhex("16 03 01 02 00 01 00 01 fc 03 03") if number % 2 else b"")
    context = client_side(authority.certificate)
    async with (
        asyncio.timeout(EVENT_TIMEOUT_S),
        HTTPClient(f"https://{host}:{port}", ssl_context=context) as client,
    ):
        assert (await client.request("GET", "/")).body == b"hello"
    async with asyncio.timeout(EVENT_TIMEOUT_S):
        await served.server.stop()
    for writer in frozen:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
