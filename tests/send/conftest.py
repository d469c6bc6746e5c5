"""A storage SCP that answers as it is told to, and files to send to it."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from harmony.dimse import (
    SUCCESS_OUTCOME,
    BytesSink,
    DimseError,
    Outcome,
    Services,
    classify,
    encode_file_meta,
)
from harmony.dimse import serve as serve_dimse
from harmony.dimse.peer import Peer
from harmony.dimse.status import StatusClass

CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"


class SCP:
    """Keeps what it gets: (SOP Instance UID, transfer syntax, data set). `answer(uid)` gives a status, or raises."""

    def __init__(self, **store_options):
        self.services = Services()
        self.services.store(self.open, **store_options)
        self.services.on_association(self._begun, self._ended)
        self.answer = lambda uid: 0x0000
        self.received = []
        self.associations = []
        self.ends = []
        self.server = None

    @property
    def peer(self):
        return Peer("127.0.0.1", self.server.port)

    def uids(self):
        return sorted(uid for uid, _, _ in self.received)

    def open(self, request):
        uid = request.command.affected_sop_instance_uid
        self.current = request.association

        def done(data):
            status = self.answer(uid)
            if classify(status) is StatusClass.FAILURE:
                raise DimseError(status, "as told")
            self.received.append((uid, request.context.transfer_syntax, bytes(data)))
            return Outcome(status) if status else SUCCESS_OUTCOME

        return BytesSink(done)

    def _begun(self, association):
        self.associations.append(association)

    def _ended(self, association, error):
        self.ends.append(error)


@pytest.fixture
async def serve():
    """await serve(**options of Services.store): an SCP that listens; `serve_options` go to `harmony.dimse.serve`."""
    async with AsyncExitStack() as running:

        async def start(*, serve_options=None, **store_options):
            scp = SCP(**store_options)
            scp.server = await running.enter_async_context(
                serve_dimse(scp.services, port=0, **(serve_options or {}))
            )
            return scp

        yield start


@pytest.fixture
def write_file(tmp_path):
    """write_file(number, ...): the path of a Part 10 file with the SOP Instance UID 1.2.<number>."""
    folder = tmp_path / "files"

    def write(number: int, *, sop_class: str = CT, syntax: str = EXPLICIT, data: bytes | None = None) -> Path:
        folder.mkdir(exist_ok=True)
        path = folder / f"{number:04}"
        uid = f"1.2.{number}"
        meta = encode_file_meta(
            transfer_syntax_uid=syntax,
            media_storage_sop_class_uid=sop_class,
            media_storage_sop_instance_uid=uid,
        )
        path.write_bytes(bytes(meta) + (data if data is not None else data_set(uid)))
        return path

    write.folder = folder
    return write


def data_set(uid: str) -> bytes:
    """(0008,0018) UI in Explicit VR Little Endian."""
    value = uid.encode() + b"\0" * (len(uid) % 2)
    return b"\x08\x00\x18\x00UI" + len(value).to_bytes(2, "little") + value


@pytest.fixture
def patience():
    """async with patience(): a limit for whatever a test waits for."""
    return lambda: asyncio.timeout(20)
