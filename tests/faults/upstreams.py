"""What is behind the gateway: a JMIX upstream and a PACS that are dead, slow, hang, talk nonsense or lie.

Each has a pipeline of its own beside the archive, whose peers must not notice. Envelopes have to arrive once in the
end; a search at the PACS has to end with an error, and never with an empty answer.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import http.client
import io
import json
import zipfile
from collections.abc import Awaitable, Callable

from harmony.dimse.part10 import read_file_meta
from harmony.http import HTTPServer, Request, Response
from tests.faults.program import IMPLICIT, element, make_instance, uid
from tests.faults.trial import DICOM_DEADLINES, Trial, fault
from tests.faults.wire import ABORT, FIND, STUDY_ROOT_FIND, command, item, p_data, pdu, us
from tests.faults.witness import Sender

# A JMIX upstream


def _delivering(trial: Trial) -> str:
    port, upstream_port = trial.spare_ports
    return f"""
[network.modalities.dicom]
bind_address = "127.0.0.1"
bind_port = {port}
[pipelines.deliver]
networks = ["modalities"]
endpoints = ["deliver"]
middleware = ["jmix_builder"]
backends = ["upstream"]
[endpoints.deliver]
service = "dicom_scp"
[endpoints.deliver.options]
local_aet = "GATEWAY"
min_free_bytes = 0
storage_dir = "{trial.folder}/delivered"
{DICOM_DEADLINES}
[backends.upstream]
service = "jmix_backend"
timeout_secs = 1
connection.host = "127.0.0.1"
connection.port = {upstream_port}
[backends.upstream.options]
retry_backoff_secs = 0.1
retry_backoff_max_secs = 0.3
"""


class Upstream:
    """Keeps what it is sent, when it feels like it. Envelopes are put into `kept` by their id."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.mood: Callable[[str], Awaitable[Response]] = self.takes
        self.asked = 0
        self.kept: dict[str, list[tuple[str, bytes]]] = {}
        self.server: HTTPServer | None = None

    async def start(self) -> None:
        self.server = HTTPServer(self._answer)
        await self.server.start("127.0.0.1", self.port)

    async def stop(self) -> None:
        if self.server is not None:
            await self.server.stop()
            self.server = None

    async def _answer(self, request: Request) -> Response:
        request.body.maximum_bytes = None
        body = b"".join([chunk async for chunk in request.body])
        self.asked += 1
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            envelope_id = json.loads(archive.read("manifest.json"))["id"]
            contents = [archive.read(name) for name in archive.namelist() if name.endswith(".dcm")]
        answer = await self.mood(envelope_id)
        if self.mood == self.takes:
            if envelope_id in self.kept:
                return Response(409)
            self.kept[envelope_id] = [
                (meta.media_storage_sop_instance_uid, content[meta.data_set_offset :])
                for content in contents
                for meta in [read_file_meta(content)]
            ]
        return answer

    async def takes(self, envelope_id: str) -> Response:
        return _json(201, {"id": envelope_id, "status": "stored"})

    async def fails(self, envelope_id: str) -> Response:
        return Response(500, body=b"out of order")

    async def is_busy(self, envelope_id: str) -> Response:
        return Response(503, {"Retry-After": "1"})

    async def refuses_credentials(self, envelope_id: str) -> Response:
        return Response(401)

    async def hangs(self, envelope_id: str) -> Response:
        await asyncio.sleep(3600)
        raise AssertionError

    async def took_another(self, envelope_id: str) -> Response:
        return _json(201, {"id": "00000000-0000-4000-8000-000000000000", "status": "stored"})


def _json(status: int, answer: object) -> Response:
    return Response(status, {"Content-Type": "application/json"}, json.dumps(answer).encode())


@fault(more=_delivering)
async def jmix_upstream(trial: Trial) -> None:
    """A JMIX upstream that is down, hangs, fails, is busy, refuses, talks nonsense, or took another envelope."""
    port, upstream_port = trial.spare_ports
    upstream = Upstream(upstream_port)
    sent: dict[str, bytes] = {}
    sender = Sender(port, iter(()))
    moods = [
        upstream.fails,
        upstream.took_another,
        upstream.is_busy,
        upstream.refuses_credentials,
        upstream.hangs,
    ]

    async def send() -> None:
        async with sender.association() as scu:
            for _ in range(3):
                number = 920_000 + len(sent)
                instance = make_instance(number, study=f"1.2.7.{number}", size_bytes=5000)
                assert (await scu.store(instance)).status == 0x0000
                sent[instance.sop_instance_uid] = bytes(instance.data)

    for _ in range(trial.many(5, 1)):
        await send()  # while nobody listens
        await trial.served(10)
        async with _nonsense(upstream_port) as answered:
            await send()
            await trial.until(lambda n=answered: len(n) >= 3, "three tries at a server that talks nonsense")
        await upstream.start()
        for mood in moods:
            upstream.mood, asked = mood, upstream.asked
            await send()
            await trial.until(
                lambda n=asked: upstream.asked >= n + 3, f"three tries while it {mood.__name__}"
            )
            trial.injected += 1
        upstream.mood = upstream.takes
        await trial.until(lambda: _count(upstream) == len(sent), "everything delivered")
        await upstream.stop()
        trial.injected += 2
    found = collections.Counter(uid for contents in upstream.kept.values() for uid, _ in contents)
    assert found == collections.Counter(list(sent)), "each object is delivered once"
    assert {uid: data for contents in upstream.kept.values() for uid, data in contents} == sent


def _count(upstream: Upstream) -> int:
    return sum(map(len, upstream.kept.values()))


@contextlib.asynccontextmanager
async def _nonsense(port: int):
    """A server that answers with no HTTP, or breaks off; yields what it has answered."""
    answers = (
        b"\0\1\2\3" * 50,
        b"HTTP/1.1 201 Created\r\nContent-Length: 100\r\n\r\n{",
        b"",
        b"HTTP/1.1 999\r\n\r\n",
    )
    answered: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1 << 16)
        said = answers[len(answered) % len(answers)]
        answered.append(said)
        writer.write(said)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", port)
    try:
        yield answered
    finally:
        server.close()
        await server.wait_closed()


# A PACS


def _searching(trial: Trial) -> str:
    port, pacs_port = trial.spare_ports
    return f"""
[network.viewers.http]
bind_address = "127.0.0.1"
bind_port = {port}
[pipelines.pacs]
networks = ["viewers"]
endpoints = ["viewers"]
backends = ["pacs"]
[endpoints.viewers]
service = "dicomweb"
options.path_prefix = "/pacs"
[backends.pacs]
service = "dicom_scu"
timeout_secs = 1
[backends.pacs.options]
aet = "PACS"
host = "127.0.0.1"
port = {pacs_port}
connect_timeout_secs = 1
"""


def _accept(request: bytes) -> bytes:
    """A-ASSOCIATE-AC with every context of an A-ASSOCIATE-RQ accepted."""
    contexts, place = b"", 74
    while place < len(request):
        kind, length = request[place], int.from_bytes(request[place + 2 : place + 4], "big")
        if kind == 0x20:
            number = request[place + 4]
            contexts += item(0x21, bytes((number, 0, 0, 0)) + item(0x40, IMPLICIT.encode()))
        place += 4 + length
    user = item(0x50, item(0x51, b"\0\0\x40\0") + item(0x52, b"1.2.3"))
    return pdu(2, request[6:74] + item(0x10, b"1.2.840.10008.3.1.1.1") + contexts + user)


def _find_rsp(query: bytes, *, status: int, message_id: int | None = None, operation: int = 0x8020) -> bytes:
    """A C-FIND-RSP to a C-FIND-RQ, which is the PDV of a P-DATA-TF."""
    place = query.index(b"\0\0\x10\1\2\0\0\0") + 8  # (0000,0110) Message ID
    number = int.from_bytes(query[place : place + 2], "little") if message_id is None else message_id
    response = command(
        element(0x00000002, uid(STUDY_ROOT_FIND)),
        us(0x00000100, operation),
        us(0x00000120, number),
        us(0x00000800, 0x0101),
        us(0x00000900, status),
    )
    return p_data(response, context_id=query[10] if query[0] == 4 else FIND, control=3)


REJECT = bytes.fromhex("03 00 00000004 00 02 03 02")  # transient, presentation, local limit exceeded
PacsAnswers = tuple[bytes | None, Callable[[bytes], bytes] | None]
"""To the A-ASSOCIATE-RQ (None: an acceptance) and to the first P-DATA-TF (None: nothing)."""

PACS_MOODS: dict[str, PacsAnswers] = {
    "is silent": (b"", None),
    "rejects": (REJECT, None),
    "aborts at once": (ABORT, None),
    "talks nonsense": (b"HTTP/1.1 400 Bad Request\r\n\r\n", None),
    "accepts and is silent": (None, None),
    "accepts and aborts": (None, lambda query: ABORT),
    "accepts and talks nonsense": (None, lambda query: b"\x99" * 100),
    "fails": (None, lambda query: _find_rsp(query, status=0xC001)),
    "is out of resources": (None, lambda query: _find_rsp(query, status=0xA700)),
    "has a status that there is not": (None, lambda query: _find_rsp(query, status=0x1234)),
    "answers another request": (None, lambda query: _find_rsp(query, status=0, message_id=4711)),
    "answers another service": (None, lambda query: _find_rsp(query, status=0, operation=0x8001)),
    "says pending without a match": (None, lambda query: _find_rsp(query, status=0xFF00)),
    "breaks off in its answer": (None, lambda query: _find_rsp(query, status=0)[:-20]),
}


@fault(more=_searching)
async def pacs(trial: Trial) -> None:
    """A PACS that is down, rejects, is silent, aborts, talks nonsense, fails, or answers what nobody asked."""
    port, pacs_port = trial.spare_ports
    answers: PacsAnswers = (b"", None)
    open_now: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_request, to_query = answers
        open_now.add(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            request = await _pdu(reader)
            writer.write(_accept(request) if to_request is None else to_request)
            if to_request is None:
                query = await _pdu(reader)
                if to_query is not None:
                    writer.write(to_query(query))
            while await reader.read(1 << 16):
                pass
        open_now.discard(writer)
        writer.close()

    for _ in range(trial.many(3, 1)):
        assert await asyncio.to_thread(_search, port) in (502, 504), "while it is down"
        trial.injected += 1
        server = await asyncio.start_server(serve, "127.0.0.1", pacs_port)
        moods = list(PACS_MOODS.items())[:: trial.many(1, 3)]
        for mood, answers in moods:  # noqa: B007 - `serve` looks at it
            status = await asyncio.to_thread(_search, port)
            assert status in (502, 504), f"a search while the PACS {mood} was answered {status}"
            trial.injected += 1
        for writer in list(open_now):
            writer.transport.abort()
        server.close()
        await server.wait_closed()


async def _pdu(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readexactly(6)
    return head + await reader.readexactly(int.from_bytes(head[2:], "big"))


def _search(port: int) -> int:
    """The status of a search, 0 when the connection was reset in the middle of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", "/pacs/studies?PatientID=1")
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()
