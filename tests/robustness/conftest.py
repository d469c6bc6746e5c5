"""One running gateway for all cases of tests/robustness, a peer without manners, and a look at the gateway afterwards.

Command sets are put together by hand here, so that they can be wrong in any way (PS3.7 §6.3.1: Implicit VR Little
Endian). After each case another peer is served as if nothing had happened, and nothing unexpected is in the log.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.program import beginning, command, listener, memory_bytes, open_files

ROOT = Path(__file__).parents[2]
START_S = 30.0
PATIENCE_S = 20.0

VERIFICATION = b"1.2.840.10008.1.1"
CT = b"1.2.840.10008.5.1.4.1.1.2"
FIND = b"1.2.840.10008.5.1.4.1.2.2.1"
MOVE = b"1.2.840.10008.5.1.4.1.2.2.2"
GET = b"1.2.840.10008.5.1.4.1.2.2.3"
IMPLICIT = b"1.2.840.10008.1.2"
CONTEXTS = [
    (number, uid, [IMPLICIT])
    for number, uid in zip((1, 3, 5, 7, 9), (VERIFICATION, CT, FIND, GET, MOVE), strict=True)
]

CONFIGURATION = """
[network.behind.dicom]
bind_address = "127.0.0.1"
bind_port = {behind}
proxy_protocol = true
trusted_proxies = ["127.0.0.1"]
[network.hurried.dicom]
bind_address = "127.0.0.1"
bind_port = {hurried}

[pipelines.plain]
networks = ["plain"]
endpoints = ["scp", "web"]
[pipelines.secured]
networks = ["secured"]
endpoints = ["scp_tls", "web_tls"]
[pipelines.behind]
networks = ["behind"]
endpoints = ["scp_behind"]
[pipelines.hurried]
networks = ["hurried"]
endpoints = ["scp_hurried"]

[endpoints.scp]
service = "dicom_scp"
[endpoints.scp.options]
local_aet = "ARCHIVE"
min_free_bytes = 0
max_associations = 1500
aet_table.ELSEWHERE = {{ ae_title = "ELSEWHERE", host = "127.0.0.1", port = {elsewhere} }}
[endpoints.scp_tls]
service = "dicom_scp"
[endpoints.scp_tls.options]
local_aet = "ARCHIVE"
min_free_bytes = 0
max_associations = 400
[endpoints.scp_behind]
service = "dicom_scp"
[endpoints.scp_behind.options]
local_aet = "ARCHIVE"
min_free_bytes = 0
[endpoints.scp_hurried]
service = "dicom_scp"
[endpoints.scp_hurried.options]
accept_any_called_ae = true
min_free_bytes = 0
max_object_bytes = 100_000
artim_timeout_secs = 0.4
pdu_timeout_secs = 0.6

[endpoints.web]
service = "dicomweb"
options.path_prefix = "/web"
[endpoints.web_tls]
service = "dicomweb"
options.path_prefix = "/web"
"""


@dataclass(frozen=True)
class Site:
    """The gateway and where it listens."""

    folder: Path
    process: subprocess.Popen[str]
    dicom: int
    dicom_tls: int
    hurried: int
    """With short timeouts, a small limit for objects and any called AE title."""
    behind: int
    """Where a load balancer is trusted, at 127.0.0.1 alone."""
    http: int
    https: int
    elsewhere: int
    """Where the destination of a C-MOVE would listen."""

    @property
    def log(self) -> str:
        return (self.folder / "harmony.log").read_text()

    @property
    def memory_bytes(self) -> int:
        return memory_bytes(self.process.pid)

    def open_files(self) -> list[str]:
        """Names of the open files; `socket` for each of those."""
        return open_files(self.process.pid)

    def stored(self) -> dict[str, bytes]:
        """Every file below the storage with what it is called."""
        paths = (self.folder / "storage" / "dimse").rglob("*.dcm")
        return {path.name: path.read_bytes() for path in paths if path.is_file()}

    async def until(self, condition) -> None:
        """Of what happens in the other process, where there is nothing to await."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.01)


@pytest.fixture(scope="session")
def gateway(tmp_path_factory, free_ports, authority) -> Iterator[Site]:
    """A `python -m harmony` of its own process, with an archive behind DICOM, DICOM over TLS, and DICOMweb."""
    folder = tmp_path_factory.mktemp("gateway")
    issued = authority.issue()
    names = ("dicom", "dicom_tls", "hurried", "behind", "http", "https", "elsewhere")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    config = folder / "config.toml"
    config.write_text(
        beginning("gateway", folder / "storage")
        + listener("plain", "dicom", ports["dicom"])
        + listener("plain", "http", ports["http"])
        + listener("secured", "dicom", ports["dicom_tls"], issued)
        + listener("secured", "http", ports["https"], issued)
        + CONFIGURATION.format(**ports)
    )
    with open(folder / "harmony.log", "wb") as log:
        process = subprocess.Popen(
            command(config),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    site = Site(folder, process, **ports)
    try:
        assert process.stdout is not None
        greeting = process.stdout.readline()
        assert greeting, site.log
        yield site
        assert process.poll() is None, site.log
    finally:
        process.terminate()
        try:
            process.wait(START_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


# Messages


class Message:
    """Command sets and data sets as bytes, and what is in those that come."""

    CT = CT
    VERIFICATION = VERIFICATION
    FIND = FIND
    MOVE = MOVE
    GET = GET
    IMPLICIT = IMPLICIT
    CONTEXTS = CONTEXTS

    @staticmethod
    def element(group, number, value):
        """In Implicit VR Little Endian."""
        return struct.pack("<HHI", group, number, len(value)) + value

    @classmethod
    def us(cls, number, value):
        return cls.element(0, number, struct.pack("<H", value))

    @classmethod
    def uid(cls, number, value):
        return cls.element(0, number, value + b"\0" * (len(value) % 2))

    @classmethod
    def command(cls, *elements, group_length=None):
        """group_length: None for the right one, b"" for none."""
        content = b"".join(elements)
        if group_length is None:
            group_length = cls.element(0, 0, struct.pack("<I", len(content)))
        return group_length + content

    @classmethod
    def echo(cls, message_id=1):
        return cls.command(
            cls.uid(0x0002, VERIFICATION),
            cls.us(0x0100, 0x30),
            cls.us(0x0110, message_id),
            cls.us(0x0800, 0x0101),
        )

    @classmethod
    def store(cls, instance, message_id=1, *, data_set_type=0):
        return cls.command(
            cls.uid(0x0002, CT),
            cls.us(0x0100, 0x01),
            cls.us(0x0110, message_id),
            cls.us(0x0700, 0),
            cls.us(0x0800, data_set_type),
            cls.uid(0x1000, instance),
        )

    @classmethod
    def query(cls, command_field, sop_class, message_id=1, *, destination=b""):
        return cls.command(
            cls.uid(0x0002, sop_class),
            cls.us(0x0100, command_field),
            cls.us(0x0110, message_id),
            cls.element(0, 0x0600, destination) if destination else b"",
            cls.us(0x0700, 0),
            cls.us(0x0800, 1),
        )

    @classmethod
    def cancel(cls, message_id):
        return cls.command(cls.us(0x0100, 0x0FFF), cls.us(0x0120, message_id), cls.us(0x0800, 0x0101))

    @classmethod
    def image(cls, instance, pixels=bytes(16), *, study=b"1.2.9", sop_class=CT):
        """A CT image without anything in it that nobody needs."""

        def uid(group, number, value):
            return cls.element(group, number, value + b"\0" * (len(value) % 2))

        return (
            uid(0x0008, 0x0016, sop_class)
            + uid(0x0008, 0x0018, instance)
            + cls.element(0x0010, 0x0020, b"P1")
            + uid(0x0020, 0x000D, study)
            + uid(0x0020, 0x000E, study + b".1")
            + cls.element(0x7FE0, 0x0010, pixels)
        )

    @staticmethod
    def elements(content):
        """{element number: value} of a command set."""
        found, at = {}, 0
        while at < len(content):
            group, number, length = struct.unpack_from("<HHI", content, at)
            assert group == 0
            found[number] = content[at + 8 : at + 8 + length]
            at += 8 + length
        assert at == len(content)
        return found


@pytest.fixture
def dimse():
    return Message


@dataclass
class Requestor:
    """An association with the gateway, of a bare socket."""

    peer: object
    wire: object
    answer: bytes
    """What came for the A-ASSOCIATE-RQ."""

    @property
    def results(self) -> list[tuple[int, int, bytes]]:
        """(presentation context ID, result, transfer syntax) as the A-ASSOCIATE-AC has them."""
        assert self.answer[0] == 2, self.answer
        found, at = [], 74
        while at < len(self.answer):
            item_type, length = struct.unpack_from(">BxH", self.answer, at)
            item = self.answer[at + 4 : at + 4 + length]
            if item_type == 0x21:
                found.append((item[0], item[2], item[8:]))
            at += 4 + length
        return found

    async def send(self, *pdus: bytes) -> None:
        """All of them in one segment, as far as the system does so."""
        await self.peer.send(b"".join(pdus))

    async def message(self) -> dict[int, bytes]:
        """The next command set; a data set that comes with it is left out."""
        command = b""
        while True:
            pdu = await self.peer.receive_pdu()
            assert pdu[:1] == b"\4", pdu.hex() or "closed"
            at = 6
            while at < len(pdu):
                length, _, control = struct.unpack_from(">IBB", pdu, at)
                if control & 1:
                    command += pdu[at + 6 : at + 4 + length]
                at += 4 + length
                if control & 2 and command:
                    found = Message.elements(command)
                    if control & 1 and found[0x0800] == b"\1\1":
                        return found
                    if not control & 1:
                        return found

    async def status(self) -> int:
        """Of the next response."""
        return int.from_bytes((await self.message())[0x0900], "little")

    async def echo(self, message_id: int = 99) -> None:
        """It is alive."""
        await self.send(self.wire.p_data(Message.echo(message_id)))
        answer = await self.message()
        assert answer[0x0900] == b"\0\0"
        assert answer[0x0120] == message_id.to_bytes(2, "little")

    async def release(self) -> None:
        assert await self.peer.exchange(self.wire.RELEASE_RQ) == self.wire.RELEASE_RP
        self.peer.socket.shutdown(socket.SHUT_WR)  # whoever asked for the release closes, PS3.8 AR-3
        assert await self.peer.receive_all() == b""


@pytest.fixture
async def associate(gateway, connect, wire):
    """await associate(...): a Requestor; arguments are those of wire.associate_rq, and the port."""

    async def associate(contexts=CONTEXTS, *arguments, port=None, called=b"ARCHIVE", **options):
        peer = await connect(port or gateway.dicom)
        answer = await peer.exchange(wire.associate_rq(contexts, *arguments, called=called, **options))
        return Requestor(peer, wire, answer)

    return associate


@pytest.fixture(autouse=True)
async def unharmed(gateway, associate):
    """Whatever the case did: others are served, and no defect was logged."""
    before = len(gateway.log)
    yield
    requestor = await associate()
    await requestor.echo()
    await requestor.release()
    assert gateway.process.poll() is None
    assert "Traceback" not in gateway.log[before:]
