"""Fixtures for the HTTP tests: a server on a free loopback port, and a client that is only a socket."""

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from ssl import SSLContext
from typing import Any

import pytest

from harmony.http import HTTPServer, Request, Response, ServerLimits
from harmony.ul.held import HELD

EVENT_TIMEOUT_S = 10.0  # an event that has not come by then never will


class RawClient:
    """Bytes in, bytes out."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        async with asyncio.timeout(EVENT_TIMEOUT_S):
            lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = (line.partition(": ") for line in lines[1:] if line)
        return int(lines[0].split(" ")[1]), {name.lower(): value for name, _, value in fields}

    async def exactly(self, count: int) -> bytes:
        async with asyncio.timeout(EVENT_TIMEOUT_S):
            return await self.reader.readexactly(count)

    async def response(self) -> tuple[int, dict[str, str], bytes]:
        """A response with Content-Length."""
        status, headers = await self.head()
        return status, headers, await self.exactly(int(headers.get("content-length", "0")))

    async def rest(self) -> bytes:
        """Everything until the server closes; ConnectionResetError when it aborts."""
        async with asyncio.timeout(EVENT_TIMEOUT_S):
            return await self.reader.read()

    async def closed(self) -> bytes:
        """Everything until the connection ends, one way or the other."""
        collected = bytearray()
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(EVENT_TIMEOUT_S):
                while chunk := await self.reader.read(65536):
                    collected += chunk
        return bytes(collected)

    def abort(self) -> None:
        self.writer.transport.abort()

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


class Served:
    """A running server and ways to reach it."""

    def __init__(self, server: HTTPServer) -> None:
        self.server = server
        self.clients: list[RawClient] = []

    @property
    def url(self) -> str:
        host, port = self.server.addresses[0]
        return f"http://{host}:{port}"

    async def connect(self, *, to: tuple[str, int] | None = None, **options: Any) -> RawClient:
        address = to or self.server.addresses[0]
        client = RawClient(*await asyncio.open_connection(*address, **options))
        self.clients.append(client)
        return client

    async def exchange(self, data: bytes) -> bytes:
        """Send, then everything until the server closes."""
        client = await self.connect()
        await client.send(data)
        return await client.closed()


Serve = Callable[..., Awaitable[Served]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """await serve(handler, ssl=context or None, **limits): a started server; stopped at the end of the test."""
    started: list[Served] = []
    held = HELD.held_bytes

    async def start(
        handler: Callable[[Request], Awaitable[Response]], *, ssl: SSLContext | None = None, **limits: Any
    ) -> Served:
        server = HTTPServer(handler, limits=ServerLimits(**limits))
        await server.start("127.0.0.1", 0, ssl=ssl)
        started.append(Served(server))
        return started[-1]

    yield start
    for served in started:
        for client in served.clients:
            client.abort()
        await served.server.stop()
        assert not served.server.connections
    async with asyncio.timeout(EVENT_TIMEOUT_S):
        while held != HELD.held_bytes:  # noqa: ASYNC110
            await asyncio.sleep(0)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory, require_peer: Callable[[str], str]) -> Path:
    """A self-signed certificate for 127.0.0.1 and its key, in one file."""
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    subprocess.run(
        [require_peer("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
         "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2",
         "-keyout", path, "-out", path.with_suffix(".crt")],
        check=True,
        capture_output=True,
        timeout=60,
    )  # fmt: skip
    path.write_bytes(path.read_bytes() + path.with_suffix(".crt").read_bytes())
    return path
