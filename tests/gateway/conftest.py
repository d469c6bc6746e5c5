"""A gateway in this process, senders for it, and an upstream that answers as it is told."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import zipfile
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from harmony.dimse import SCU, Instance, associate
from harmony.dimse.part10 import read_file_meta
from harmony.gateway.app import Gateway
from harmony.gateway.config import LoadedConfig
from harmony.gateway.loading import load
from harmony.http.client import HTTPClient
from harmony.jmix.outbox import Delivery, Outbox, State
from harmony.ul.negotiation import propose_contexts

CT = "1.2.840.10008.5.1.4.1.1.2"
VERIFICATION = "1.2.840.10008.1.1"
IMPLICIT = "1.2.840.10008.1.2"
STUDY = "1.2.3.4.5"
WAIT_S = 20.0


def _element(tag: int, value: bytes) -> bytes:
    """Implicit VR Little Endian (PS3.5 §7.1.3)."""
    group, number = (tag >> 16).to_bytes(2, "little"), (tag & 0xFFFF).to_bytes(2, "little")
    return group + number + len(value).to_bytes(4, "little") + value


def _uid(text: str) -> bytes:
    return text.encode() + b"\0" * (len(text) % 2)


MakeInstance = Callable[..., Instance]


@pytest.fixture
def make_instance() -> MakeInstance:
    """make_instance("1.1"): a CT image; other pixels, study and size by keyword."""

    def make(
        sop_instance_uid: str, *, study: str = STUDY, pixels: bytes = b"\1\2\3\4", sop_class: str = CT
    ) -> Instance:
        data = b"".join(
            (
                _element(0x00080016, _uid(sop_class)),
                _element(0x00080018, _uid(sop_instance_uid)),
                _element(0x0020000D, _uid(study)),
                _element(0x0020000E, _uid(study + ".1")),
                _element(0x7FE00010, pixels),
            )
        )
        return Instance(sop_class, sop_instance_uid, IMPLICIT, data)

    return make


# The gateway


@pytest.fixture
def load_config(tmp_path: Path) -> Callable[[str], LoadedConfig]:
    """load_config(toml): the configuration of a file with this content, storage below tmp_path."""

    def load_text(text: str) -> LoadedConfig:
        path = tmp_path / "config.toml"
        path.write_text(text)
        return load(path, env={})

    return load_text


@dataclass
class Bench:
    """A gateway with one DICOM endpoint (`p`), a jmix endpoint at /jmix, and perhaps an upstream."""

    folder: Path
    dicom_port: int
    http_port: int
    load_config: Callable[[str], LoadedConfig]
    upstream_port: int | None = None
    scp: str = ""
    builder: str | None = ""
    """Options of jmix_builder; None: there is none."""
    middleware: str = "[]"
    """Instead of it."""
    upstream: str = ""
    more: str = ""
    top: str = ""
    """Keys that are in no table."""
    gateway: Gateway | None = None
    grace_s: float = 5.0

    def config(self) -> LoadedConfig:
        backends = '["up"]' if self.upstream_port else "[]"
        upstream = f"""
            [backends.up]
            service = "jmix_backend"
            connection.host = "127.0.0.1"
            connection.port = {self.upstream_port}
            [backends.up.options]
            {"" if "retry_backoff_secs" in self.upstream else "retry_backoff_secs = 0.01"}
            {"" if "retry_backoff_max" in self.upstream else "retry_backoff_max_secs = 0.05"}
            {self.upstream}
        """
        return self.load_config(
            f"""
            {self.top}
            [proxy]
            id = "bench"
            [storage.options]
            path = "{self.folder / "storage"}"
            [network.n.dicom]
            bind_address = "127.0.0.1"
            bind_port = {self.dicom_port}
            [network.n.http]
            bind_address = "127.0.0.1"
            bind_port = {self.http_port}
            [pipelines.p]
            networks = ["n"]
            endpoints = ["scp"]
            middleware = {'["jmix_builder"]' if self.builder is not None else self.middleware}
            backends = {backends}
            [endpoints.scp]
            service = "dicom_scp"
            [endpoints.scp.options]
            local_aet = "GATEWAY"
            {"" if "min_free_bytes" in self.scp else "min_free_bytes = 0"}
            {self.scp}
            [middleware.jmix_builder.options]
            {self.builder or ""}
            {upstream if self.upstream_port else ""}
            [pipelines.q]
            networks = ["n"]
            endpoints = ["jmix"]
            [endpoints.jmix]
            service = "jmix"
            options.path_prefix = "/jmix"
            {self.more}
            """
        )

    async def start(self) -> Gateway:
        self.gateway = Gateway(self.config())
        await self.gateway.start()
        return self.gateway

    async def stop(self, grace_s: float | None = None) -> None:
        gateway, self.gateway = self.gateway, None
        if gateway is not None:
            await gateway.stop(self.grace_s if grace_s is None else grace_s)

    async def restart(self, grace_s: float = 0.0) -> None:
        await self.stop(grace_s)
        await self.start()

    def associate(self, **options: object) -> AbstractAsyncContextManager[SCU]:
        options.setdefault("called_ae_title", "GATEWAY")
        options.setdefault("calling_ae_title", "SENDER")
        options.setdefault("contexts", propose_contexts([(CT, [IMPLICIT]), (VERIFICATION, [IMPLICIT])]))
        return associate("127.0.0.1", self.dicom_port, **options)  # type: ignore[arg-type]

    async def send(self, *instances: Instance, abort: bool = False) -> list[int]:
        """The statuses, over one association."""
        statuses = []
        async with self.associate() as scu:
            for instance in instances:
                statuses.append((await scu.store(instance)).status)
            if abort:
                scu.association.abort()
        return statuses

    @property
    def storage(self) -> Path:
        return self.folder / "storage"

    def files(self) -> list[str]:
        """What is in the archive, by name."""
        return sorted(path.name for path in (self.storage / "dimse").glob("*/*/*"))

    @property
    def outbox_path(self) -> Path:
        return self.storage / "jmix-builder" / "p" / "outbox.sqlite"

    def deliveries(self) -> list[Delivery]:
        with contextlib.closing(Outbox.inspect(self.outbox_path)) as outbox:
            return outbox.deliveries()

    def states(self) -> list[State]:
        return [delivery.state for delivery in self.deliveries()]

    def journals(self) -> list[str]:
        return sorted(path.suffix for path in (self.storage / "jmix-builder" / "p" / "journals").iterdir())

    def envelopes(self) -> list[Path]:
        return sorted((self.storage / "jmix-store").glob("*/*.zip"))

    @contextlib.asynccontextmanager
    async def http(self) -> AsyncIterator[HTTPClient]:
        client = HTTPClient(f"http://127.0.0.1:{self.http_port}/jmix/api/jmix", timeout_s=10.0)
        try:
            yield client
        finally:
            await client.aclose()


@pytest.fixture
async def bench(
    tmp_path: Path,
    free_ports: Callable[[int], list[int]],
    load_config: Callable[[str], LoadedConfig],
) -> AsyncIterator[Bench]:
    """Not started yet: set its options first."""
    dicom_port, http_port = free_ports(2)
    bench = Bench(tmp_path, dicom_port, http_port, load_config)
    yield bench
    await bench.stop(0.0)


# What comes out of it


@dataclass(frozen=True)
class Envelope:
    """What is in an envelope's ZIP."""

    id: str
    objects: tuple[str, ...]
    """SOP Instance UIDs, in the order of the archive."""
    documents: dict[str, object]
    names: tuple[str, ...]
    data: dict[str, bytes]
    """Data sets by SOP Instance UID."""


@pytest.fixture
def read_envelope() -> Callable[[bytes | Path], Envelope]:
    def read(what: bytes | Path) -> Envelope:
        content = what.read_bytes() if isinstance(what, Path) else what
        objects, documents, data = [], {}, {}
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for name in archive.namelist():
                member = archive.read(name)
                if name.endswith(".dcm"):
                    meta = read_file_meta(member)
                    objects.append(meta.media_storage_sop_instance_uid)
                    data[objects[-1]] = member[meta.data_set_offset :]
                else:
                    documents[name] = json.loads(member)
            manifest = documents["manifest.json"]
            assert isinstance(manifest, dict)
            return Envelope(manifest["id"], tuple(objects), documents, tuple(archive.namelist()), data)

    return read


@dataclass(frozen=True)
class Received:
    """One request."""

    request_line: str
    headers: dict[str, str]
    body: bytes


@dataclass
class ScriptedUpstream:
    """Answers 201, or whatever is next in `answers`.

    A status; a status and a body, as "201 {}"; "hang": nothing until `let_go` is set; "close": the connection is closed
    instead of answering; "close early": before the body has been read.
    """

    port: int = 0
    answers: deque[int | str] = field(default_factory=deque)
    requests: list[Received] = field(default_factory=list)
    arrived: asyncio.Queue[Received] = field(default_factory=asyncio.Queue)
    let_go: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            request_line, *lines = head.removesuffix("\r\n\r\n").split("\r\n")
            headers = {
                name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
            }
            answer = self.answers.popleft() if self.answers else 201
            if answer == "close early":
                self._heard(Received(request_line, headers, b""))
                return
            body = await reader.readexactly(int(headers["content-length"]))
            self._heard(Received(request_line, headers, body))
            if answer == "hang":
                await self.let_go.wait()
            elif answer != "close":
                status, _, told = str(answer).partition(" ")
                text = told.encode() or b'{"error":"as it was told"}'
                writer.write(
                    f"HTTP/1.1 {status} Told\r\nContent-Length: {len(text)}\r\nConnection: close\r\n\r\n".encode()
                    + text
                )
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def _heard(self, request: Received) -> None:
        self.requests.append(request)
        self.arrived.put_nowait(request)

    async def next(self) -> Received:
        async with asyncio.timeout(WAIT_S):
            return await self.arrived.get()


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    upstream = ScriptedUpstream()
    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        await upstream.serve(reader, writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    upstream.port = server.sockets[0].getsockname()[1]
    yield upstream
    upstream.let_go.set()
    server.close()
    await server.wait_closed()
    await asyncio.gather(*serving)


@pytest.fixture
def forward(bench: Bench, upstream: ScriptedUpstream) -> Bench:
    """The bench, with the scripted upstream behind it."""
    bench.upstream_port = upstream.port
    return bench
