"""What a gateway takes on at once, as configured: reached, told to the peer, and over again when there is room."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import re
import subprocess
import uuid
import zipfile

import pytest

from harmony.dimse import associate
from harmony.dimse.part10 import encode_file_meta
from harmony.dimse.status import DimseError
from harmony.gateway import memory_limit
from harmony.gateway.app import Gateway
from harmony.gateway.dicom_scp import acceptor_limits
from harmony.gateway.memory_limit import default_held_bytes
from harmony.gateway.options import DicomScpOptions
from harmony.http.client import HTTPClient
from harmony.ul.errors import AssociationRejected, ConnectFailed, ConnectionLost
from harmony.ul.held import HELD
from harmony.ul.negotiation import propose_contexts

LOCAL_LIMIT_EXCEEDED = (2, 3, 2)
ECHO = propose_contexts([("1.2.840.10008.1.1", ["1.2.840.10008.1.2"])])
STUDY = "1.2.3.4.5"


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


HELD_BYTES = 16 << 20
MEMORY = """
    [proxy]
    id = "limited"
    content_limits.max_held_bytes = {held}
    content_limits.max_body_size = 30000000
    [storage.options]
    path = "{storage}"
    [network.n.http]
    bind_address = "127.0.0.1"
    bind_port = {port}
    [network.n.dicom]
    bind_address = "127.0.0.1"
    bind_port = {dicom_port}
    [pipelines.p]
    networks = ["n"]
    endpoints = ["echo"]
    [pipelines.q]
    networks = ["n"]
    endpoints = ["scp"]
    [endpoints.echo]
    service = "echo"
    options.path_prefix = "/echo"
    [endpoints.scp]
    service = "dicom_scp"
    options.local_aet = "SCP"
    [management]
    enabled = true
    network = "n"
"""


async def test_memory_held_for_all(load_config, connect, free_ports, tmp_path, until, monkeypatch):
    monkeypatch.setattr(HELD, "limit_bytes", None)  # as it was, afterwards
    # Bodies and streams that other tests make without a connection are given back by nobody.
    monkeypatch.setattr(HELD, "held_bytes", 0)
    port, dicom_port = free_ports(2)
    text = MEMORY.format(held=HELD_BYTES, storage=tmp_path, port=port, dicom_port=dicom_port)
    gateway = Gateway(load_config(text))
    await gateway.start()
    try:
        here = await connect(port)
        assert await status(here) == 200
        # A body of which all but the last byte has come, and is held.
        _, writer = await connect(port)
        writer.write(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % HELD_BYTES)
        writer.write(bytes(HELD_BYTES - 1))
        await writer.drain()
        await until(lambda: HELD.held_bytes == HELD_BYTES - 1)
        body = b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab"
        assert await status(await connect(port), body) == 503
        assert await status(here) == 200  # who holds nothing goes on
        monitor = await connect(port)
        monitor[1].write(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
        async with asyncio.timeout(10):
            assert b"harmony_held_bytes 1.67772" in await monitor[0].readuntil(
                b"harmony_held_limit_bytes 1.6"
            )
        HELD.take(1)
        try:
            assert await status(await connect(port)) == 503
            refused = associate("127.0.0.1", dicom_port, called_ae_title="SCP", contexts=ECHO)
            assert await rejection(refused) == LOCAL_LIMIT_EXCEEDED
        finally:
            HELD.give(1)
        writer.transport.abort()
        await until(lambda: HELD.held_bytes == 0)
        async with associate("127.0.0.1", dicom_port, called_ae_title="SCP", contexts=ECHO) as scu:
            await scu.echo()
        assert await status(await connect(port), body) == 200
    finally:
        await gateway.stop(0.0)


def test_a_quarter_of_the_memory_that_there_is(monkeypatch, tmp_path):
    container = tmp_path / "memory.max"
    monkeypatch.setattr(memory_limit, "_CONTAINER", container)
    machine = default_held_bytes()
    assert machine == max(256 << 20, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4)
    for text, expected in (
        ("max\n", machine),
        (f"{1100 << 20}\n", min(machine, 275 << 20)),
        ("1000\n", 256 << 20),
    ):
        container.write_text(text)
        assert default_held_bytes() == expected


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


# Disks


MIB = 1 << 20
DISK_BYTES, FILLER_BYTES, MINIMUM_FREE_BYTES = 48 * MIB, 40 * MIB, 16 * MIB


@pytest.fixture
def small_disk(tmp_path):
    """A file system of DISK_BYTES."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", disk], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here (it takes root): {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def envelope(size_bytes: int = 0) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        metadata = {"studies": {"1.2": {"study_uid": "1.2", "series": []}}}
        archive.writestr("payload/metadata.json", json.dumps(metadata))
        archive.writestr("payload/more", bytes(size_bytes))
        archive.writestr(
            "manifest.json", json.dumps({"id": str(uuid.uuid4()), "type": "envelope", "version": 1})
        )
    return out.getvalue()


def part10(instance) -> bytes:
    meta = encode_file_meta(
        transfer_syntax_uid=instance.transfer_syntax_uid,
        media_storage_sop_class_uid=instance.sop_class_uid,
        media_storage_sop_instance_uid=instance.sop_instance_uid,
    )
    return meta + instance.data


class Stores:
    """A gateway that stores on a small disk, in every way there is."""

    def __init__(self, bench, make_instance) -> None:
        self.bench = bench
        self._make_instance = make_instance
        self._number = 0
        bench.builder = None
        bench.folder = bench.folder / "disk"
        bench.scp = f"min_free_bytes = {MINIMUM_FREE_BYTES}"
        bench.more = f"""
            options.min_free_bytes = {MINIMUM_FREE_BYTES}
            [pipelines.web]
            networks = ["n"]
            endpoints = ["web"]
            backends = ["folder"]
            [endpoints.web]
            service = "dicomweb"
            options.path_prefix = "/dicom-web"
            [backends.folder]
            service = "storage"
            options.root = "{bench.folder}/folder"
            options.min_free_bytes = {MINIMUM_FREE_BYTES}
        """

    def instance(self):
        self._number += 1
        return self._make_instance(f"1.{self._number}")

    async def _request(self, method: str, path: str, body: bytes = b"", content_type: str = "") -> int:
        async with HTTPClient(f"http://127.0.0.1:{self.bench.http_port}", timeout_s=10.0) as client:
            headers = {"Content-Type": content_type} if content_type else {}
            return (await client.request(method, path, body=body, headers=headers)).status

    async def dimse(self) -> int:
        async with self.bench.associate() as scu:
            try:
                return (await scu.store(self.instance())).status
            except DimseError as error:
                return error.status

    async def stow(self) -> int:
        return await self._request("POST", "/dicom-web/studies", part10(self.instance()), "application/dicom")

    async def upload(self, size_bytes: int = 0) -> int:
        return await self._request("POST", "/jmix/api/jmix", envelope(size_bytes), "application/zip")

    async def prime(self) -> int:
        return await self._request("GET", f"/jmix/api/jmix/prime/{STUDY}")

    async def all(self) -> list[int]:
        return [await self.dimse(), await self.stow(), await self.upload(), await self.prime()]


async def test_a_disk_that_is_almost_full_and_not_any_more(small_disk, bench, make_instance, monkeypatch):
    """Refused before it is full: A700, and 507 by HTTP. Who stores nothing is served meanwhile."""
    monkeypatch.setattr("harmony.archive.free_space.CHECK_S", 0.0)  # it may take a second until it is seen
    stores = Stores(bench, make_instance)
    await bench.start()
    assert await stores.dimse() == 0x0000
    filler = small_disk / "filler"
    filler.write_bytes(bytes(FILLER_BYTES))
    assert await stores.all() == [0xA700, 507, 507, 507]
    async with bench.associate() as scu:
        await scu.echo()
    filler.unlink()
    assert await stores.all() == [0x0000, 200, 201, 201]


async def test_an_upload_that_would_fill_the_disk(small_disk, bench, make_instance):
    stores = Stores(bench, make_instance)
    await bench.start()
    assert await stores.upload(DISK_BYTES - MINIMUM_FREE_BYTES) == 507
    assert list((bench.storage / "jmix-store" / "incoming").iterdir()) == []
    assert await stores.upload(MIB) == 201
