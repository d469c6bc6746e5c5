"""Real `python -m harmony` processes, a flood of small objects for them, and a look at what they left on the disk."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from harmony.dimse import Instance, associate
from harmony.dimse.part10 import read_file_meta
from harmony.dimse.scu import SCU
from harmony.dimse.status import DimseError
from harmony.http import HTTPServer, Request, Response
from harmony.jmix.outbox import Outbox, State
from harmony.ul.errors import AssociationError
from harmony.ul.negotiation import propose_contexts

CT = "1.2.840.10008.5.1.4.1.1.2"
IMPLICIT = "1.2.840.10008.1.2"
ROOT = Path(__file__).parents[2]
START_S = 20.0
DELIVERY_S = 60.0

Handler = Callable[[Request], Awaitable[Response]]


def element(tag: int, value: bytes) -> bytes:
    """Implicit VR Little Endian (PS3.5 §7.1.3)."""
    return (
        (tag >> 16).to_bytes(2, "little")
        + (tag & 0xFFFF).to_bytes(2, "little")
        + len(value).to_bytes(4, "little")
        + value
    )


def uid(text: str) -> bytes:
    return text.encode() + b"\0" * (len(text) % 2)


def make_instance(number: int, *, study: str, size_bytes: int) -> Instance:
    """A CT image of random pixels."""
    sop_instance_uid = f"1.2.3.{number}"
    data = b"".join(
        (
            element(0x00080016, uid(CT)),
            element(0x00080018, uid(sop_instance_uid)),
            element(0x0020000D, uid(study)),
            element(0x0020000E, uid(study + ".1")),
            element(0x7FE00010, random.Random(number).randbytes(size_bytes)),
        )
    )
    return Instance(CT, sop_instance_uid, IMPLICIT, data)


class Process:
    """One `python -m harmony`, started as often as it is killed."""

    def __init__(self, folder: Path, config: str) -> None:
        self.folder = folder
        self.config = folder / "config.toml"
        self.log = folder / "harmony.log"
        folder.mkdir(exist_ok=True)
        self.config.write_text(config)
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> str:
        """Return the first line of its greeting, which comes when it listens."""
        with open(self.log, "ab") as log:  # noqa: ASYNC230 - a test may block
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "harmony",
                "--config",
                str(self.config),
                cwd=ROOT,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env={**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONUNBUFFERED": "1"},
            )
        assert self.process.stdout is not None
        async with asyncio.timeout(START_S):
            line = (await self.process.stdout.readline()).decode()
        assert line, self.log.read_text()
        return line

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)

    async def wait(self) -> int:
        """The exit status."""
        assert self.process is not None
        assert self.process.stdout is not None
        await self.process.stdout.read()
        return await self.process.wait()

    async def restart(self) -> None:
        """After a kill."""
        await self.wait()
        await self.start()


class Gateway(Process):
    """Receives on `port`, delivers to an upstream."""

    def __init__(
        self,
        folder: Path,
        *,
        port: int,
        upstream_port: int,
        storage: Path | None = None,
        scp: str = "",
        builder: str = "",
        upstream: str = "",
    ) -> None:
        self.port = port
        self.storage = storage or folder / "storage"
        super().__init__(
            folder,
            f"""
            [proxy]
            id = "gateway"
            log_level = "info"
            [storage.options]
            path = "{self.storage}"
            [network.n.dicom]
            bind_address = "127.0.0.1"
            bind_port = {port}
            [pipelines.p]
            networks = ["n"]
            endpoints = ["scp"]
            middleware = ["jmix_builder"]
            backends = ["up"]
            [endpoints.scp]
            service = "dicom_scp"
            [endpoints.scp.options]
            local_aet = "GATEWAY"
            {"" if "min_free_bytes" in scp else "min_free_bytes = 0"}
            {scp}
            [middleware.jmix_builder.options]
            {builder}
            [backends.up]
            service = "jmix_backend"
            connection.host = "127.0.0.1"
            connection.port = {upstream_port}
            [backends.up.options]
            retry_backoff_secs = 0.05
            retry_backoff_max_secs = 0.2
            {upstream}
            """,
        )

    @property
    def outbox_path(self) -> Path:
        return self.storage / "jmix-builder" / "p" / "outbox.sqlite"

    @property
    def is_idle(self) -> bool:
        """Nothing is to be built or to be delivered."""
        if list((self.storage / "jmix-builder" / "p" / "journals").iterdir()):
            return False
        outbox = Outbox.inspect(self.outbox_path)
        try:
            counts = outbox.counts()
        finally:
            outbox.close()
        return not counts[State.PENDING] and not counts[State.IN_PROGRESS]

    async def until_idle(self) -> None:
        async with asyncio.timeout(DELIVERY_S):
            while not self.is_idle:  # noqa: ASYNC110 - there is nothing else in another process to wait for
                await asyncio.sleep(0.02)

    def received(self) -> Iterator[tuple[str, bytes]]:
        """SOP Instance UID and data set of every file under its final name."""
        for path in (self.storage / "dimse").glob("*/*/*"):
            content = path.read_bytes()
            meta = read_file_meta(content)
            assert path.name == meta.media_storage_sop_instance_uid + ".dcm"
            yield meta.media_storage_sop_instance_uid, content[meta.data_set_offset :]


class Upstream(Process):
    """A second Harmony that keeps what it is sent."""

    def __init__(self, folder: Path, *, port: int) -> None:
        self.storage = folder / "storage"
        super().__init__(
            folder,
            f"""
            [proxy]
            id = "upstream"
            log_level = "info"
            [storage.options]
            path = "{self.storage}"
            [network.n.http]
            bind_address = "127.0.0.1"
            bind_port = {port}
            [pipelines.p]
            networks = ["n"]
            endpoints = ["jmix"]
            [endpoints.jmix]
            service = "jmix"
            options.path_prefix = "/"
            """,
        )

    def objects(self) -> Iterator[tuple[str, str, bytes]]:
        """Envelope, SOP Instance UID and data set of every object of every envelope."""
        for path in (self.storage / "jmix-store").glob("*/*.zip"):
            with zipfile.ZipFile(path) as archive:
                assert archive.testzip() is None
                for name in archive.namelist():
                    if name.endswith(".dcm"):
                        content = archive.read(name)
                        meta = read_file_meta(content)
                        yield (
                            path.stem,
                            meta.media_storage_sop_instance_uid,
                            content[meta.data_set_offset :],
                        )


@dataclass
class Flood:
    """Sends objects over several associations at a time until each has been acknowledged.

    on_event: called when a store begins and when it is acknowledged, with the number of such events so far.
    """

    port: int
    instances: list[Instance]
    on_event: Callable[[int], None] = lambda events: None
    associations: int = 4
    per_association: int = 12
    """Objects until an association is released."""
    window: int = 1
    acknowledged: dict[str, Instance] = field(default_factory=dict)
    events: int = 0
    up: asyncio.Event = field(default_factory=asyncio.Event)
    """Whoever kills the gateway clears this."""
    open: set[SCU] = field(default_factory=set)

    async def run(self) -> None:
        self._left = list(self.instances)[::-1]
        async with asyncio.TaskGroup() as group:
            for number in range(self.associations):
                group.create_task(self._send(random.Random(number)))

    def cut(self) -> None:
        """Lose every association, and the responses that are on their way: as when a host goes down."""
        self.up.clear()
        while self.open:
            self.open.pop().association.abort()

    async def _send(self, choice: random.Random) -> None:
        while self._left:
            await self.up.wait()
            count = choice.randint(1, self.per_association)
            mine = [self._left.pop() for _ in range(min(count, len(self._left)))]
            try:
                async with associate(
                    "127.0.0.1",
                    self.port,
                    called_ae_title="GATEWAY",
                    calling_ae_title="FLOOD",
                    contexts=propose_contexts([(CT, [IMPLICIT])]),
                    maximum_operations=self.window if self.window > 1 else None,
                ) as scu:
                    self.open.add(scu)
                    places = asyncio.Semaphore(self.window)
                    async with asyncio.TaskGroup() as group:
                        for instance in mine:
                            await places.acquire()
                            group.create_task(self._store(scu, instance, places))
                    self.open.discard(scu)
            except (AssociationError, ExceptionGroup) as error:
                if isinstance(error, ExceptionGroup) and error.split(AssociationError)[1] is not None:
                    raise
                assert not self.up.is_set(), "who else ended the association?"
            self._left += [each for each in mine if each.sop_instance_uid not in self.acknowledged]

    async def _store(self, scu: SCU, instance: Instance, places: asyncio.Semaphore) -> None:
        self._event()
        try:
            outcome = await scu.store(instance)
        except DimseError as error:
            raise AssertionError(f"{instance.sop_instance_uid} was refused: {error}") from error
        finally:
            places.release()
        assert outcome.status == 0x0000
        self.acknowledged[instance.sop_instance_uid] = instance
        self._event()

    def _event(self) -> None:
        self.events += 1
        self.on_event(self.events)


@pytest.fixture
def make_process() -> type[Process]:
    return Process


@pytest.fixture
def make_gateway() -> type[Gateway]:
    return Gateway


@pytest.fixture
def make_upstream() -> type[Upstream]:
    return Upstream


@pytest.fixture
def make_flood() -> type[Flood]:
    return Flood


@pytest.fixture
def instances() -> Callable[..., list[Instance]]:
    """instances(n): small images of several studies."""

    def make(
        count: int, *, smallest: int = 2_500, largest: int = 50_000, first: int = 1, studies: int = 7
    ) -> list[Instance]:
        sizes = random.Random(count)
        return [
            make_instance(
                number,
                study=f"1.2.9.{number % studies + 1}",
                size_bytes=sizes.randint(smallest, largest) & ~1,
            )
            for number in range(first, first + count)
        ]

    return make


@pytest.fixture
async def processes() -> AsyncIterator[list[Process]]:
    """Those that are put into this list do not outlive the test."""
    started: list[Process] = []
    yield started
    for each in started:
        if each.process is not None:
            if each.process.returncode is None:
                each.kill()
            await each.wait()


@pytest.fixture
async def upstream_server() -> AsyncIterator[Callable[[int, Handler], Awaitable[None]]]:
    """upstream_server(port, handler): an HTTP server in this process."""
    servers: list[HTTPServer] = []

    async def serve(port: int, handler: Handler) -> None:
        async def unlimited(request: Request) -> Response:
            request.body.maximum_bytes = None
            return await handler(request)

        server = HTTPServer(unlimited)
        servers.append(server)
        await server.start("127.0.0.1", port)

    yield serve
    for server in servers:
        await server.stop()
