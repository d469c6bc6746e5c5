"""Large studies through a gateway process: memory, clients that stop reading or leave, a PACS that dies (PS3.18 §10.4).

The PACS is in this process. It makes the pixel data while it sends them, counts what has left, and waits or ends where
a test says so. HARMONY_LARGE_TESTS makes the studies of the memory tests 2 GB large, else they have 400 MB.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import struct
import threading
import zipfile
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import pytest

from harmony.archive.matching import compile_query
from harmony.archive.projection import Projection
from harmony.dicom.json_model import decode_data_set, encode_data_set
from harmony.dimse import CFindRQ, CGetRQ, CMoveRQ, Instance, Services, associate, serve
from harmony.dimse.information_model import STUDY_ROOT
from harmony.dimse.peer import Peer
from harmony.dimse.query import find_handler
from harmony.dimse.retrieve_scp import Selection, get_handler, move_handler
from harmony.http.client import HTTPClient
from harmony.http.media_type import parse_media_type
from harmony.http.multipart import multipart_boundary, read_parts
from harmony.ul.negotiation import propose_contexts
from tests.faults.program import beginning, listener, memory_bytes, open_files

CT, EXPLICIT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1"
STUDY, SMALL_STUDY = "1.2.3", "1.2.4"
MULTIPART = 'multipart/related; type="application/dicom"; transfer-syntax=*'
ZIP = "application/zip; transfer-syntax=*"
MB = 1_000_000
STUDY_BYTES = 2000 * MB if "HARMONY_LARGE_TESTS" in os.environ else 400 * MB
INSTANCE_BYTES = 8 * MB
MEMORY_BYTES = 120 * MB
"""Of the gateway at its peak, whatever passes through it."""
UNDER_WAY_BYTES = 32 * MB
"""What the kernel's socket buffers and the bounded ones of the gateway hold together of a study that nobody reads."""
PATIENCE_S = 20.0
FREED_S = 5.0
"""A second is what whoever leaves may cost; a busy machine is given more."""
BLOCK = random.Random(1).randbytes(1 << 20)
LINGER_ZERO = struct.pack("ii", 1, 0)


# The PACS


def header(study: str, number: int) -> bytes:
    model = {
        "00080016": {"vr": "UI", "Value": [CT]},
        "00080018": {"vr": "UI", "Value": [f"{study}.1.{number}"]},
        "00100020": {"vr": "LO", "Value": ["P"]},
        "0020000D": {"vr": "UI", "Value": [study]},
        "0020000E": {"vr": "UI", "Value": [f"{study}.1"]},
    }
    return encode_data_set(model, EXPLICIT)


class Image:
    """The data set of an instance, which is made while it is read."""

    def __init__(self, study: str, number: int, pixel_bytes: int) -> None:
        self._begin = header(study, number) + b"\xe0\x7f\x10\x00OW\0\0" + pixel_bytes.to_bytes(4, "little")
        self._position = 0
        self.size_bytes = len(self._begin) + pixel_bytes

    def read_into(self, places: Sequence[memoryview]) -> None:
        for place in places:
            at = 0
            while at < len(place):
                begun = self._begin[self._position :] or BLOCK
                piece = begun[: len(place) - at]
                place[at : at + len(piece)] = piece
                at += len(piece)
                self._position += len(piece)

    def close(self) -> None:
        pass


@dataclass
class Pacs:
    """studies: how many instances of which size each has. gates: awaited before the n-th instance is sent; with half,
    in the middle of its data."""

    port: int
    destination_port: int
    studies: dict[str, tuple[int, int]] = field(default_factory=dict)
    gates: dict[int, asyncio.Event] = field(default_factory=dict)
    half: bool = False

    def __post_init__(self) -> None:
        self.waiting = asyncio.Event()  # at a gate
        self.retrieves = 0  # under way
        self.associations: list = []

    def opened(self, association) -> None:
        self.associations.append(association)

    def ended(self, association, error) -> None:
        self.associations.remove(association)

    @property
    def sent_bytes(self) -> int:
        return sum(association.sent_bytes for association in self.associations)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        services = Services()
        services.operation(CFindRQ, [STUDY_ROOT.find], find_handler(self._find))
        services.operation(CGetRQ, [STUDY_ROOT.get], get_handler(self._select))
        gateway = Peer("127.0.0.1", self.destination_port, called_ae_title="HARMONY_SCU")
        services.operation(
            CMoveRQ, [STUDY_ROOT.move], move_handler(self._select, lambda title, operation: gateway)
        )
        services.store_as_scu()
        services.on_association(self.opened, self.ended)
        async with serve(services, ae_title="PACS", port=self.port):
            yield

    async def _find(self, operation):
        matcher = compile_query(decode_data_set(operation.data_set, operation.context.transfer_syntax))
        projection = Projection(matcher, level="IMAGE", patient_root=False)
        for study, (count, _) in self.studies.items():
            for number in range(count):
                found = decode_data_set(header(study, number), EXPLICIT)
                if matcher.matches(found):
                    yield encode_data_set(projection.project(found), operation.context.transfer_syntax)

    async def _select(self, operation):
        wanted = decode_data_set(operation.data_set, operation.context.transfer_syntax)
        study = wanted["0020000D"]["Value"][0]
        count, size_bytes = self.studies[study]
        uids = [f"{study}.1.{number}" for number in range(count)]
        return Selection(
            self._instances(study, count, size_bytes), sop_instance_uids=uids, contexts=[(CT, EXPLICIT)]
        )

    async def _instances(self, study, count, size_bytes):
        self.retrieves += 1
        try:
            for number in range(count):
                image = Image(study, number, size_bytes)
                gate = self.gates.get(number) if study == STUDY else None
                if gate is not None and not self.half:
                    await self._wait_at(gate)
                data = self._halves(image, gate) if gate is not None and self.half else image
                yield Instance(CT, f"{study}.1.{number}", EXPLICIT, data)
        finally:
            self.retrieves -= 1

    async def _halves(self, image, gate):
        content = bytearray(image.size_bytes)
        image.read_into([memoryview(content)])
        middle = len(content) // 2
        yield bytes(content[:middle])
        await self._wait_at(gate)
        yield bytes(content[middle:])

    async def _wait_at(self, gate: asyncio.Event) -> None:
        self.waiting.set()
        await gate.wait()
        self.waiting.clear()


# The gateway


@dataclass
class Site:
    """The gateway before the PACS, at /get and /move, and with an archive of its own, at /archive."""

    gateway: object
    pacs: Pacs
    http_port: int
    dicom_port: int
    client: HTTPClient

    @property
    def pid(self) -> int:
        return self.gateway.process.pid

    @property
    def peak_memory_bytes(self) -> int:
        return memory_bytes(self.pid, "VmHWM")

    @property
    def memory_bytes(self) -> int:
        return memory_bytes(self.pid)

    def open_files(self) -> list[str]:
        return open_files(self.pid)

    @contextlib.contextmanager
    def raw(self, path: str, accept: str) -> Iterator[socket.socket]:
        """A connection that has sent a request and reads at its own pace, into a small buffer."""
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
            connection.connect(("127.0.0.1", self.http_port))
            connection.sendall(
                f"GET {path} HTTP/1.1\r\nHost: gateway\r\nAccept: {accept}\r\n\r\n".encode("ascii")
            )
            connection.setblocking(False)
            yield connection

    async def status(self, path: str, accept: str = "*/*") -> int:
        """After the whole body."""
        async with self.client.stream("GET", path, headers={"Accept": accept}) as answer:
            async for _ in answer:
                pass
            return answer.status

    async def fill_archive(self) -> None:
        """With STUDY, as the PACS has it."""
        await store(self.dicom_port, STUDY, *self.pacs.studies[STUDY])


async def store(port: int, study: str, count: int, size_bytes: int) -> None:
    """In an archive."""
    contexts = propose_contexts([(CT, [EXPLICIT])])
    async with associate("127.0.0.1", port, called_ae_title="ARCHIVE", contexts=contexts) as scu:
        for number in range(count):
            image = Image(study, number, size_bytes)
            await scu.store(Instance(CT, f"{study}.1.{number}", EXPLICIT, image))


ARCHIVE = """
[management]
enabled = true
network = "n"
[pipelines.archive]
networks = ["n"]
endpoints = ["scp", "archive"]
[endpoints.scp]
service = "dicom_scp"
options.local_aet = "ARCHIVE"
options.min_free_bytes = 0
[endpoints.archive]
service = "dicomweb"
options.path_prefix = "/archive"
"""


def archive(storage: Path, http_port: int, dicom_port: int) -> str:
    """A configuration."""
    tables = beginning("gateway", storage) + listener("n", "http", http_port)
    return tables + listener("n", "dicom", dicom_port) + ARCHIVE


FRONT = """
[pipelines.{mode}]
networks = ["n"]
endpoints = ["{mode}"]
backends = ["pacs_{mode}"]
[endpoints.{mode}]
service = "dicomweb"
options.path_prefix = "/{mode}"
[backends.pacs_{mode}]
service = "dicom_scu"
[backends.pacs_{mode}.options]
aet = "PACS"
host = "127.0.0.1"
port = {pacs_port}
dimse_retrieve_mode = "{mode}"
incoming_store_port = {incoming_port}
"""


@pytest.fixture
async def site(tmp_path, free_ports, make_process, processes) -> AsyncIterator[Site]:
    """STUDY of the PACS is as large as the memory tests want it, SMALL_STUDY has one small instance."""
    http_port, dicom_port, pacs_port, incoming_port = free_ports(4)
    configuration = archive(tmp_path / "storage", http_port, dicom_port) + "".join(
        FRONT.format(mode=mode, pacs_port=pacs_port, incoming_port=incoming_port) for mode in ("get", "move")
    )
    gateway = make_process(tmp_path, configuration)
    processes.append(gateway)
    studies = {STUDY: (STUDY_BYTES // INSTANCE_BYTES, INSTANCE_BYTES), SMALL_STUDY: (1, 1000)}
    pacs = Pacs(pacs_port, incoming_port, studies)
    async with pacs.running(), HTTPClient(f"http://127.0.0.1:{http_port}", timeout_s=PATIENCE_S) as client:
        await gateway.start()
        yield Site(gateway, pacs, http_port, dicom_port, client)
        for gate in pacs.gates.values():
            gate.set()


async def read(connection: socket.socket, what: bytes) -> bytes:
    """Until this has come."""
    loop = asyncio.get_running_loop()
    received = b""
    async with asyncio.timeout(PATIENCE_S):
        while what not in received:
            chunk = await loop.sock_recv(connection, 16 * 1024)
            assert chunk, received[-1000:]
            received += chunk
    return received


# Memory


@pytest.mark.timeout(600)
@pytest.mark.parametrize("form", [MULTIPART, ZIP], ids=["multipart", "zip"])
@pytest.mark.parametrize("where", ["get", "move", "archive"])
async def test_a_large_study_passes_in_little_memory(
    site: Site, tmp_path: Path, where: str, form: str
) -> None:
    count, size_bytes = site.pacs.studies[STUDY]
    if where == "archive":
        await site.fill_archive()
    path = f"/{where}/studies/{STUDY}"
    async with site.client.stream("GET", path, headers={"Accept": form}) as answer:
        assert answer.status == 200
        if form == MULTIPART:
            boundary = multipart_boundary(parse_media_type(answer.headers.get("Content-Type")))
            sizes = []
            async for part in read_parts(answer, boundary):
                sizes.append(0)
                async for piece in part:
                    sizes[-1] += len(piece)
        else:
            with open(tmp_path / "study.zip", "wb") as file:  # noqa: ASYNC230
                async for chunk in answer:
                    file.write(chunk)
            with zipfile.ZipFile(tmp_path / "study.zip") as archive:
                assert archive.testzip() is None
                sizes = [member.file_size for member in archive.infolist()]
    assert len(sizes) == count
    assert all(size_bytes < size < size_bytes + 2000 for size in sizes)
    assert site.peak_memory_bytes < MEMORY_BYTES


# A client that stops reading


@pytest.mark.parametrize("form", [MULTIPART, ZIP], ids=["multipart", "zip"])
@pytest.mark.parametrize("where", ["get", "move", "archive"])
async def test_a_client_that_stops_reading_stalls_the_pacs(site: Site, where: str, form: str) -> None:
    if where == "archive":
        await site.fill_archive()
    else:
        assert await site.status(f"/{where}/studies/{SMALL_STUDY}", form) == 200
    with site.raw(f"/{where}/studies/{STUDY}", form) as connection:
        begun = await read(connection, b"\r\n\r\n")

        async def others() -> int:
            """Other clients are served meanwhile."""
            for _ in range(10):
                assert await site.status("/metrics") == 200
                assert await site.status(f"/get/studies/{SMALL_STUDY}", form) == 200
                assert await site.status("/get/studies?PatientID=P") == 200
            return site.pacs.sent_bytes

        sent, before = await others(), 0
        while sent - before > MB:  # what the others cause is far less
            sent, before = await others(), sent
        memory = site.memory_bytes
        for _ in range(3):
            now, before = await others(), sent
            assert now - before < MB
        assert sent < UNDER_WAY_BYTES
        assert site.memory_bytes - memory < 4 * MB
        assert site.peak_memory_bytes < MEMORY_BYTES

        received = len(begun)  # it was stalled and not given up
        last = b""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(PATIENCE_S):
            while not last.endswith(b"\r\n0\r\n\r\n"):
                chunk = await loop.sock_recv(connection, MB)
                assert chunk
                received += len(chunk)
                last = (last + chunk)[-16:]
    assert received > STUDY_BYTES


# A client that leaves

MOMENTS = {  # the instance before which the PACS waits, and whether it does so in the middle of its data
    "in the stream": (None, False),
    "before the first part": (0, False),
    "within a part": (0, True),
    "between two parts": (1, False),
}


@pytest.mark.parametrize("form", [MULTIPART, ZIP], ids=["multipart", "zip"])
@pytest.mark.parametrize(
    ("where", "moment"),
    [(where, moment) for where in ("get", "move") for moment in MOMENTS] + [("archive", "in the stream")],
)
async def test_a_client_that_leaves_frees_everything(site: Site, where: str, moment: str, form: str) -> None:
    number, site.pacs.half = MOMENTS[moment]
    # What is held at a gate has to have come up to there although the client does not read on.
    site.pacs.studies[STUDY] = (8, INSTANCE_BYTES if number is None else 600_000)
    if where == "archive":
        await site.fill_archive()
    path = f"/{where}/studies/{STUDY}"
    assert await site.status(path, form) == 200  # and the association is kept
    open_files, associations = site.open_files(), len(site.pacs.associations)
    if number is not None:
        site.pacs.gates[number] = asyncio.Event()
    for leaving in ("FIN", "RST") * 2:
        with site.raw(path, form) as connection:
            if number is not None:
                async with asyncio.timeout(PATIENCE_S):
                    await site.pacs.waiting.wait()
            if moment != "before the first part":
                await read(connection, b"HTTP/1.1 200 OK")
            if leaving == "RST":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
                connection.close()
            else:
                connection.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(FREED_S):
                while (  # noqa: ASYNC110 - another process
                    site.pacs.retrieves
                    or len(site.pacs.associations) > associations
                    or len(site.open_files()) > len(open_files)
                ):
                    await asyncio.sleep(0.001)
        site.pacs.waiting.clear()
    for gate in site.pacs.gates.values():
        gate.set()
    assert await site.status(path, form) == 200
    assert len(site.open_files()) <= len(open_files)


# A PACS that dies


class Truncated(Exception):
    """The body did not come to its end, and the client was told. What came last is in it."""


def get_with_http_client(
    port: int, path: str, accept: str, begun: threading.Event, go_on: threading.Event
) -> bytes:
    """The body, all but its beginning when it may go on. Blocking: the standard library's client."""
    connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    received = bytearray()
    try:
        connection.request("GET", path, headers={"Accept": accept})
        answer = connection.getresponse()
        assert answer.status == 200
        received += answer.read(1)
        begun.set()
        assert go_on.wait(PATIENCE_S)
        while chunk := answer.read(65536):
            received = (received + chunk)[-1000:]
        return bytes(received)
    except (HTTPException, ConnectionError) as error:
        raise Truncated(type(error).__name__, bytes(received)) from error
    finally:
        connection.close()


def is_well_formed(end_of_body: bytes) -> bool:
    """At the end is a closing boundary, or that of a ZIP archive."""
    return end_of_body.endswith(b"--\r\n") or b"PK\x05\x06" in end_of_body


@pytest.mark.parametrize("half", [False, True], ids=["between instances", "within an instance"])
@pytest.mark.parametrize("form", [MULTIPART, ZIP], ids=["multipart", "zip"])
@pytest.mark.parametrize("where", ["get", "move"])
async def test_a_pacs_that_ends_midway_is_noticed(site: Site, where: str, form: str, half: bool) -> None:
    site.pacs.half = half
    site.pacs.studies[STUDY] = (3, INSTANCE_BYTES)
    path = f"/{where}/studies/{STUDY}"
    go_on = threading.Event()
    go_on.set()
    for death in ("A-ABORT", "RST", "FIN"):
        gate = site.pacs.gates[1] = asyncio.Event()
        client = (get_with_http_client, site.http_port, path, form, threading.Event(), go_on)
        getting = asyncio.create_task(asyncio.to_thread(*client))
        async with asyncio.timeout(PATIENCE_S):
            await site.pacs.waiting.wait()
        for association in list(site.pacs.associations):
            end(association, death)
        with pytest.raises(Truncated) as truncated:
            await getting
        assert not is_well_formed(truncated.value.args[1]), death
        gate.set()
        assert await site.status(path, form) == 200, death
        site.pacs.waiting.clear()


def end(association, death: str) -> None:
    transport = association._transport
    if death == "RST":
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
    if death == "A-ABORT":
        association.abort()
    else:
        transport.abort()


@pytest.mark.parametrize("form", [MULTIPART, ZIP], ids=["multipart", "zip"])
async def test_a_pacs_that_is_killed_is_noticed(
    tmp_path, free_ports, make_process, processes, require_peer, form: str
) -> None:
    """By the standard library's client and by curl."""
    http_port, dicom_port, pacs_port, unused_port, incoming_port = free_ports(5)
    pacs = make_process(
        tmp_path / "pacs",
        archive(tmp_path / "pacs" / "storage", unused_port, pacs_port),
    )
    front = FRONT.format(mode="get", pacs_port=pacs_port, incoming_port=incoming_port)
    gateway = make_process(
        tmp_path / "gateway",
        archive(tmp_path / "gateway" / "storage", http_port, dicom_port)
        + front.replace('aet = "PACS"', 'aet = "ARCHIVE"'),
    )
    processes += [pacs, gateway]
    await pacs.start()
    await gateway.start()
    await store(pacs_port, STUDY, 20, INSTANCE_BYTES)

    path = f"/get/studies/{STUDY}"
    body, begun, go_on = tmp_path / "body", threading.Event(), threading.Event()
    url = f"http://127.0.0.1:{http_port}{path}"
    curl = await asyncio.create_subprocess_exec(
        *(require_peer("curl"), "-sS", "--limit-rate", "4M", "-H", f"Accept: {form}", "-o", body, url),
        stderr=asyncio.subprocess.PIPE,
    )
    client = (get_with_http_client, http_port, path, form, begun, go_on)
    getting = asyncio.create_task(asyncio.to_thread(*client))
    async with asyncio.timeout(PATIENCE_S):
        while not body.exists() or not body.stat().st_size or not begun.is_set():  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    pacs.kill()
    await pacs.wait()
    go_on.set()
    with pytest.raises(Truncated) as truncated:
        await getting
    assert not is_well_formed(truncated.value.args[1])
    async with asyncio.timeout(PATIENCE_S):
        _, said = await curl.communicate()
    assert curl.returncode in (18, 56), said  # a transfer that ended early, a connection that was reset
    assert not is_well_formed(body.read_bytes()[-1000:])
