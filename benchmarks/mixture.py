"""The clients of a soak: what comes to an archive in a day, in rounds that are all alike.

A round (`Mixture.round`) is ASSOCIATIONS associations that come, store a study each and go; a C-FIND and a QIDO-RS
query by Patient ID; a C-GET and a WADO-RS retrieve of some study from before; an association that is aborted, or just
closed, in the middle of an object; and an HTTP client that leaves in the middle of an answer. All of them at the same
time. Nothing grows but the archive: every study is as large as the others, and every query has one match.

What was acknowledged is remembered, study by study (`stored`), for `missing_from` to compare with what the archive says
it has. Whatever does not go as it should is in `failures`.
"""

import asyncio
import json
import random
import socket
import struct
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Mapping
from io import BytesIO
from pathlib import Path

from pydicom.filereader import read_dataset

from benchmarks.draining import get as drain_study
from benchmarks.peers import CALLED_AE_TITLE, WEB_ROOT, PeerError
from benchmarks.preencoded import Encoded, associate_rq, maximum_length_of
from benchmarks.querying import LEVEL, STUDY_UID, Asked, QueryError, ask, studies_of
from benchmarks.workloads import (
    SIZES,
    TRANSFER_SYNTAX_UID,
    Workload,
    create,
    instance_uid,
    patient_id,
    series_uid,
    study_uid,
)
from harmony.dicom.json_model import Model, encode_data_set
from harmony.dimse import STUDY_ROOT, Instance, associate, find, propose_query
from harmony.ul.negotiation import PresentationContext, propose_contexts

__all__ = ["ASSOCIATIONS", "KINDS", "OBJECTS", "ROUND_BYTES", "Mixture"]

ASSOCIATIONS = 4
OBJECTS = 80
"""Stored in a round. One of them is a CT slice, the others are small."""
ROUND_BYTES = 540_000 + OBJECTS * 6000
"""What a round adds to the disk: the CT slice, a small object's pages, and what the index keeps of each."""
KINDS = ("store small", "store CT", "C-FIND", "C-GET", "QIDO-RS", "WADO-RS", "aborted", "hung up")
HEADER_BYTES = 4096  # all UIDs are within
HURRIED_BUFFER_BYTES = 4096  # of the client that leaves: the server has most of the answer still to send
TIMEOUT_S = 60.0
ABORT = struct.pack(">BxIxxBB", 0x07, 4, 0, 0)  # A-ABORT of the service-user (PS3.8 §9.3.8)
RETURNED_COUNT = "00201208"  # Number of Study Related Instances


class Unexpected(Exception):
    """The archive did something else than it was asked."""


class Mixture:
    """Clients of one archive. `latencies_s` has what each kind of operation took since it was last taken."""

    def __init__(self, folder: Path, *, port: int, http_port: int) -> None:
        self._port, self._http_port = port, http_port
        self._small = _Template(create(SIZES["small"], folder, of_many_studies=True))
        self._ct = _Template(create(SIZES["ct"], folder, of_many_studies=True))
        self._random = random.Random(20)
        self._studies = 0
        self._objects = 0
        self._with_ct: list[int] = []
        self.stored: dict[int, int] = {}
        """Objects acknowledged, by the number of their study."""
        self.latencies_s: dict[str, list[float]] = defaultdict(list)
        self.failures: list[str] = []

    @property
    def acknowledged(self) -> int:
        return sum(self.stored.values())

    async def round(self, number: int) -> None:
        """One of everything."""
        share = OBJECTS // ASSOCIATIONS
        operations: list[tuple[str, Callable[[], Awaitable[None]]]] = [
            ("association", lambda: self._store(share)) for _ in range(ASSOCIATIONS - 1)
        ]
        operations.append(("association", lambda: self._store(share - 1, ct=1)))
        if self.stored:
            study = self._random.choice(list(self.stored)[-100_000:])
            operations += [
                ("C-FIND", lambda: self._find(study)),
                ("C-GET", lambda: self._get(study)),
                ("QIDO-RS", lambda: self._search(study)),
                ("WADO-RS", lambda: self._retrieve(study)),
                ("aborted", lambda: self._abort(politely=number % 2 == 0)),
            ]
        if self._with_ct:
            large = self._random.choice(self._with_ct)
            operations.append(("hung up", lambda: self._hang_up(large)))
        await asyncio.gather(*(self._try(kind, operation) for kind, operation in operations))

    async def _try(self, kind: str, operation: Callable[[], Awaitable[None]]) -> None:
        began = time.perf_counter()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await operation()
        except Exception as error:  # a soak goes on, and tells at its end
            self.failures.append(f"{kind}: {type(error).__name__}: {error}")
            return
        if kind in KINDS:
            self.latencies_s[kind].append(time.perf_counter() - began)

    # Storing ----

    async def _store(self, small: int, *, ct: int = 0) -> None:
        self._studies += 1
        study = self._studies
        contexts = propose_contexts(
            (each.sop_class_uid, [TRANSFER_SYNTAX_UID]) for each in (self._small, self._ct)
        )
        address = ("127.0.0.1", self._port)
        async with associate(*address, called_ae_title=CALLED_AE_TITLE, contexts=contexts) as scu:
            for template, kind in [(self._small, "store small")] * small + [(self._ct, "store CT")] * ct:
                self._objects += 1
                instance = template.instance(study, self._objects)
                began = time.perf_counter()
                await scu.store(instance)
                self.latencies_s[kind].append(time.perf_counter() - began)
                self.stored[study] = self.stored.get(study, 0) + 1
        if ct:
            self._with_ct.append(study)

    async def _abort(self, *, politely: bool) -> None:
        """Leave in the middle of an object of study 0, which nobody is told has arrived."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            sop_class_uid = self._ct.sop_class_uid
            writer.write(associate_rq(called_ae_title=CALLED_AE_TITLE, sop_class_uid=sop_class_uid))
            header = await reader.readexactly(6)
            answer = header + await reader.readexactly(int.from_bytes(header[2:6], "big"))
            encoded = self._ct.encoded(maximum_length_of(answer))
            whole_pdu_bytes = 6 + int.from_bytes(encoded.tail[2:6], "big")
            writer.write(encoded.head)
            writer.write(encoded.tail[: whole_pdu_bytes if politely else len(encoded.tail) // 2])
            if politely:
                writer.write(ABORT)
            await writer.drain()
            if politely:
                await reader.read()  # until the archive has closed the connection
        finally:
            writer.transport.abort()

    # Asking and retrieving ----

    async def _find(self, study: int) -> None:
        try:
            asked: Asked = await asyncio.to_thread(
                ask, self._port, [studies_of(patient_id(study))], associations=1
            )
        except QueryError as error:
            raise Unexpected(str(error)) from error
        if asked.matches != 1:
            raise Unexpected(f"{asked.matches} studies match, 1 expected")

    async def _get(self, study: int) -> None:
        expected = self.stored[study]
        drained = await asyncio.to_thread(drain_study, self._port, study_uid(study))
        if drained.instances < expected:
            raise Unexpected(f"{drained.instances} instances came, {expected} are acknowledged")

    async def _search(self, study: int) -> None:
        body = await self._http(
            f"{WEB_ROOT}/studies?PatientID={patient_id(study)}", accept="application/dicom+json"
        )
        if len(json.loads(body)) != 1:
            raise Unexpected(f"{len(json.loads(body))} studies match, 1 expected")

    async def _retrieve(self, study: int) -> None:
        expected = self.stored[study] * self._small.size_bytes
        body = await self._http(f"{WEB_ROOT}/studies/{study_uid(study)}", accept=_MULTIPART)
        if len(body) < expected:
            raise Unexpected(f"a study of {len(body)} bytes, expected at least {expected}")

    async def metrics(self) -> str:
        return (await self._http("/metrics", accept="text/plain")).decode()

    async def _http(self, path: str, *, accept: str) -> bytes:
        """The body of an answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._http_port)
        try:
            writer.write(_request(path, accept, close=True))
            head = await reader.readuntil(b"\r\n\r\n")
            status = int(head.split(b" ", 2)[1])
            if status != 200:
                raise Unexpected(f"GET {path.partition('?')[0]}: status {status}")
            body = await reader.read()
        finally:
            writer.close()
            await writer.wait_closed()
        return unchunked(body) if b"transfer-encoding: chunked" in head.lower() else body

    async def _hang_up(self, study: int) -> None:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, HURRIED_BUFFER_BYTES)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self._http_port))
        reader, writer = await asyncio.open_connection(sock=sock)
        try:
            writer.write(_request(f"{WEB_ROOT}/studies/{study_uid(study)}", _MULTIPART, close=False))
            await reader.readuntil(b"\r\n\r\n")
        finally:
            writer.transport.abort()

    # What there is in the end ----

    async def missing_from(self) -> tuple[int, list[str]]:
        """How many acknowledged objects the archive does not have, by a C-FIND of all studies, and what is odd."""
        model: Model = {LEVEL: {"vr": "CS", "Value": ["STUDY"]}, STUDY_UID: {"vr": "UI"}}
        model[RETURNED_COUNT] = {"vr": "IS"}
        proposal = propose_query([STUDY_ROOT.find])
        counts: Counter[str] = Counter()

        def encoded(context: PresentationContext) -> bytes:
            return encode_data_set(model, context.transfer_syntax)

        async with associate(
            "127.0.0.1", self._port, called_ae_title=CALLED_AE_TITLE, contexts=proposal.contexts
        ) as scu:
            async for match in find(scu, STUDY_ROOT.find, encoded):
                implicit = match.transfer_syntax_uid == "1.2.840.10008.1.2"
                found = read_dataset(BytesIO(match.identifier), implicit, True)
                counts[str(found.StudyInstanceUID)] += int(found.NumberOfStudyRelatedInstances)
        return compare({study_uid(study): count for study, count in self.stored.items()}, counts)


def compare(acknowledged: Mapping[str, int], counts: Mapping[str, int]) -> tuple[int, list[str]]:
    """Objects of `acknowledged` that are missing in `counts`, and sentences about every study that differs."""
    missing, odd = 0, list[str]()
    for study in sorted({*acknowledged, *counts}):
        expected, there = acknowledged.get(study, 0), counts.get(study, 0)
        missing += max(0, expected - there)
        if expected != there:
            odd.append(f"study {study}: {expected} objects acknowledged, {there} in the archive")
    return missing, odd


def unchunked(body: bytes) -> bytes:
    """What a body in chunks carries (RFC 9112 §7.1). Raises Unexpected when the last chunk is missing."""
    pieces, at = [], 0
    while size := int(body[at : (end := body.find(b"\r\n", at))].partition(b";")[0] or b"0", 16):
        pieces.append(body[end + 2 : end + 2 + size])
        at = end + 2 + size + 2
    if not body.endswith(b"0\r\n\r\n"):
        raise Unexpected("the answer ends before its last chunk")
    return b"".join(pieces)


_MULTIPART = 'multipart/related; type="application/dicom"'


def _request(path: str, accept: str, *, close: bool) -> bytes:
    connection = "close" if close else "keep-alive"
    return (
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: {accept}\r\nConnection: {connection}\r\n\r\n"
    ).encode()


class _Template:
    """One object of which there are copies in every study."""

    def __init__(self, workload: Workload) -> None:
        data = bytes(workload.data_set())
        self._workload = workload
        self._head, self._tail = data[:HEADER_BYTES], data[HEADER_BYTES:]
        for value in (instance_uid(0), study_uid(0), series_uid(0), patient_id(0)):
            if self._head.count(value.encode()) != 1:
                raise PeerError(f"{value} is not once in the header of {workload.path}")
        self.sop_class_uid = workload.size.sop_class_uid
        self.size_bytes = len(data)

    def instance(self, study: int, number: int) -> Instance:
        head = self._head
        for value, its in (
            (instance_uid(0), instance_uid(number)),
            (study_uid(0), study_uid(study)),
            (series_uid(0), series_uid(study)),
            (patient_id(0), patient_id(study)),
        ):
            head = head.replace(value.encode(), its.encode())
        data = head + self._tail
        return Instance(self.sop_class_uid, instance_uid(number), TRANSFER_SYNTAX_UID, data)

    def encoded(self, maximum_length: int) -> Encoded:
        """The template itself, object 0 of study 0, as it goes over the wire."""
        return Encoded.encode(self._workload, maximum_length)
