"""What a gateway takes on at once, as configured: reached, told to the peer, and over again when there is room."""

from __future__ import annotations

import asyncio
import contextlib
import re

import pytest

from harmony.gateway.app import Gateway
from harmony.gateway.dicom_scp import acceptor_limits
from harmony.gateway.options import DicomScpOptions
from harmony.ul.errors import AssociationRejected, ConnectFailed, ConnectionLost

LOCAL_LIMIT_EXCEEDED = (2, 3, 2)


@pytest.fixture
def receiver(bench):
    bench.builder = None
    return bench


async def rejection(association) -> tuple[int, int, int]:
    with pytest.raises(AssociationRejected) as rejected:
        await association.__aenter__()
    error = rejected.value
    return error.result, error.source, error.reason


async def test_associations_of_one_calling_ae_title(receiver):
    receiver.scp = "max_associations_per_ae = 2"
    await receiver.start()
    async with contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(receiver.associate())
        await stack.enter_async_context(receiver.associate())
        assert await rejection(receiver.associate()) == LOCAL_LIMIT_EXCEEDED
        async with receiver.associate(calling_ae_title="ANOTHER") as scu:
            await scu.echo()
        await first.association.release()
        async with receiver.associate() as scu:
            await scu.echo()


async def test_associations_from_one_address_and_a_reload(receiver):
    receiver.scp = "max_associations_per_address = 1"
    gateway = await receiver.start()
    gateway._load = receiver.config
    async with receiver.associate() as scu:
        assert await rejection(receiver.associate(calling_ae_title="ANOTHER")) == LOCAL_LIMIT_EXCEEDED
        receiver.scp = "max_associations_per_address = 2"
        await gateway.reload()
        async with receiver.associate() as another:
            await another.echo()
            assert await rejection(receiver.associate()) == LOCAL_LIMIT_EXCEEDED
        await scu.echo()


@pytest.mark.parametrize(
    "limit", ["max_connections = 1", "max_connections_per_address = 1", "max_connection_rate = 0.001"]
)
async def test_connections(receiver, limit):
    receiver.scp = limit
    await receiver.start()
    async with receiver.associate() as scu:
        with pytest.raises((ConnectionLost, ConnectFailed)):
            await receiver.associate().__aenter__()
        await scu.echo()
    if "rate" in limit:
        return
    for acceptor in [each.server.acceptor for each in receiver.gateway.assembly.dicom]:
        for association in acceptor._connections.copy():
            await association.wait_closed()
    async with receiver.associate() as scu:
        await scu.echo()


def test_four_connections_for_each_association_unless_it_is_said():
    assert acceptor_limits(DicomScpOptions(max_associations=10)).maximum_connections == 40
    assert acceptor_limits(DicomScpOptions(max_associations=10, max_connections=11)).maximum_connections == 11


# HTTP


NETWORK = """
    [proxy]
    id = "limited"
    [network.n.http]
    bind_address = "127.0.0.1"
    bind_port = {port}
    {limits}
    [pipelines.p]
    networks = ["n"]
    endpoints = ["echo"]
    [endpoints.echo]
    service = "echo"
    options.path_prefix = "/echo"
"""
REQUEST = b"GET /echo HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture
async def connect():
    """connect(port): a client connected to 127.0.0.1, closed at the end."""
    writers = []

    async def connect(port: int, *, host: str = "127.0.0.1"):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(host, 0))
        writers.append(writer)
        return reader, writer

    yield connect
    for writer in writers:
        writer.transport.abort()


async def status(client, request: bytes = REQUEST) -> int:
    reader, writer = client
    writer.write(request)
    async with asyncio.timeout(10):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = re.search(r"content-length: (\d+)", head, re.IGNORECASE)
        await reader.readexactly(int(length[1]) if length else 0)
    return int(head.split()[1])


@pytest.fixture
async def serve(free_port, load_config):
    """serve("max_connections = 1"): a gateway whose only endpoint is an echo; its port."""
    gateways = []

    async def serve(limits: str = ""):
        def read():
            return load_config(NETWORK.format(port=free_port, limits=serve.limits))

        serve.limits = limits
        gateway = Gateway(read(), load=read)
        gateways.append(gateway)
        await gateway.start()
        return gateway

    yield serve
    for gateway in gateways:
        await gateway.stop(0.0)


async def test_http_connections_in_total_and_a_reload(serve, connect, free_port):
    gateway = await serve("max_connections = 1")
    first = await connect(free_port)
    assert await status(first) == 200
    assert await status(await connect(free_port), b"") == 503
    serve.limits = "max_connections = 2"
    await gateway.reload()
    assert await status(first) == 200  # the same connection
    second = await connect(free_port)
    assert await status(second) == 200
    assert await status(await connect(free_port), b"") == 503
    second[1].close()
    await second[1].wait_closed()
    async with asyncio.timeout(10):
        while len(gateway._listeners.http.connections) != 1:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert await status(await connect(free_port)) == 200


async def test_http_connections_of_one_address(serve, connect, free_port):
    await serve("max_connections_per_address = 1")
    first = await connect(free_port)
    assert await status(first) == 200
    assert await status(await connect(free_port), b"") == 429
    assert await status(await connect(free_port, host="127.0.0.2")) == 200
    assert await status(first) == 200


async def test_http_header_bytes(serve, connect, free_port):
    await serve("max_header_bytes = 1024")
    long = REQUEST[:-2] + b"X-Long: " + bytes(1024).replace(b"\0", b"x") + b"\r\n\r\n"
    assert await status(await connect(free_port), long) == 431
    assert await status(await connect(free_port)) == 200


@pytest.mark.parametrize(
    ("limit", "sent", "answer"),
    [
        ("header_timeout_secs = 0.1", b"GET /echo HTTP/1.1\r\n", b"HTTP/1.1 408"),
        ("idle_timeout_secs = 0.1", REQUEST, b"HTTP/1.1 200"),
        (
            "body_timeout_secs = 0.1",
            b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab",
            b"HTTP/1.1 408",
        ),
    ],
)
async def test_http_phases_that_take_too_long(serve, connect, free_port, limit, sent, answer):
    await serve(limit)
    reader, writer = await connect(free_port)
    writer.write(sent)
    async with asyncio.timeout(10):  # others are served meanwhile
        assert await status(await connect(free_port)) == 200
        assert (await reader.read()).startswith(answer)
    assert await status(await connect(free_port)) == 200
