"""Fixtures for every test: free ports, bare sockets, the DICOM files that pydicom ships, what to do without a peer.

Tests that need an outside program (DCMTK, Orthanc, dicom3tools, curl ...) ask `require_peer` for it. Where
it is missing they are skipped and say so; with HARMONY_REQUIRE_PEERS=1, as in CI, they fail instead.
Nothing here downloads anything.
"""

import asyncio
import contextlib
import datetime
import importlib.util
import ipaddress
import itertools
import os
import shutil
import socket
import struct
import sys
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pydicom
import pydicom.data
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from harmony.ul.held import HELD
from tests.faults.ports import free_ports as take_free_ports

# A virtual environment with pynetdicom has a `storescu` of its own; a peer means the system's program.
_PEER_PATH = os.pathsep.join(
    [
        directory
        for directory in os.environ.get("PATH", os.defpath).split(os.pathsep)
        if directory and Path(directory).absolute() != Path(sys.executable).absolute().parent
    ]
    + ["/usr/local/sbin", "/usr/sbin"]  # where Debian puts Orthanc, and not on every user's PATH
)

LEAVING_TIMEOUT_S = 20.0
UNTIL_TIMEOUT_S = 20.0
PATIENCE_S = 10.0
"""A limit for whatever comes over the network that no passing test comes near."""

# Shipped to show what broken files look like.
_BROKEN_SAMPLES = {"badVR.dcm", "rtplan_truncated.dcm"}


@dataclass(frozen=True, slots=True)
class SampleFile:
    """A DICOM file on disk and what a C-STORE of it needs."""

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    data_set: (
        bytes  # everything after the file meta information, as it lies in the file (deflated stays deflated)
    )

    def __repr__(self) -> str:
        return f"<SampleFile {self.path.name}>"


class Wire:
    """PDUs as bytes."""

    RELEASE_RQ = bytes.fromhex("05 00 00000004 00000000")
    RELEASE_RP = bytes.fromhex("06 00 00000004 00000000")
    ABORT = bytes.fromhex("07 00 00000004 00 00 00 00")

    @staticmethod
    def pdu(pdu_type, body):
        return struct.pack(">BBI", pdu_type, 0, len(body)) + body

    @staticmethod
    def item(item_type, body):
        return struct.pack(">BBH", item_type, 0, len(body)) + body

    @staticmethod
    def p_data(fragment, *, context_id=1, control=3):
        return Wire.pdu(4, struct.pack(">IBB", len(fragment) + 2, context_id, control) + fragment)

    @staticmethod
    def provider_abort(reason):
        return bytes((7, 0, 0, 0, 0, 4, 0, 0, 2, reason))

    @staticmethod
    def reject(result, source, reason):
        return bytes((3, 0, 0, 0, 0, 4, 0, result, source, reason))

    @staticmethod
    def context(identifier, abstract, syntaxes, more=b""):
        """A presentation context as it is proposed; more: sub-items at its end."""
        syntaxes = b"".join(Wire.item(0x40, syntax) for syntax in syntaxes)
        return Wire.item(0x20, bytes((identifier, 0, 0, 0)) + Wire.item(0x30, abstract) + syntaxes + more)

    @classmethod
    def associate_rq(
        cls, contexts=None, user_items=b"", *, called=b"CALLED", calling=b"CALLING", user=None, more=b""
    ):
        """user: the whole user information; more: items between the application context and the others."""
        if contexts is None:
            contexts = [(1, b"1.2.840.10008.1.1", [b"1.2.840.10008.1.2"])]
        if user is None:
            user = cls.item(0x51, b"\0\0\x40\0") + cls.item(0x52, b"1.2.3") + user_items
        return cls.pdu(
            1,
            b"\0\1\0\0"
            + called.ljust(16)
            + calling.ljust(16)
            + bytes(32)
            + cls.item(0x10, b"1.2.840.10008.3.1.1.1")
            + more
            + b"".join(cls.context(*each) for each in contexts)
            + (cls.item(0x50, user) if user else b""),
        )

    @classmethod
    def associate_ac(cls, user_items=b"", *, titles=bytes(64), contexts=None):
        """titles: the fields that repeat the request's; contexts: the items of the results."""
        if contexts is None:
            contexts = cls.item(0x21, b"\1\0\0\0" + cls.item(0x40, b"1.2.840.10008.1.2"))
        return cls.pdu(
            2,
            b"\0\1\0\0"
            + titles
            + cls.item(0x10, b"1.2.840.10008.3.1.1.1")
            + contexts
            + cls.item(0x50, cls.item(0x51, b"\0\0\x40\0") + cls.item(0x52, b"1.2.3") + user_items),
        )


class Peer:
    """The other end of a connection, as a bare socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.port = sock.getsockname()[1]
        self._loop = asyncio.get_running_loop()

    async def send(self, data: bytes) -> None:
        async with asyncio.timeout(PATIENCE_S):
            await self._loop.sock_sendall(self.socket, data)

    async def receive(self, size: int) -> bytes:
        """Exactly size bytes, fewer at the end."""
        data = b""
        async with asyncio.timeout(PATIENCE_S):
            while len(data) < size:
                piece = await self._loop.sock_recv(self.socket, size - len(data))
                if not piece:
                    break
                data += piece
        return data

    async def receive_pdu(self) -> bytes:
        header = await self.receive(6)
        return header + await self.receive(int.from_bytes(header[2:6], "big"))

    async def receive_all(self) -> bytes:
        """Everything until the connection is closed; a reset counts as closed."""
        data = b""
        async with asyncio.timeout(PATIENCE_S):
            with contextlib.suppress(ConnectionResetError):
                while piece := await self._loop.sock_recv(self.socket, 65536):
                    data += piece
        return data

    async def exchange(self, data: bytes) -> bytes:
        await self.send(data)
        return await self.receive_pdu()

    def close(self) -> None:
        self.socket.close()

    def reset(self) -> None:
        """Close with RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


class Listener:
    """A listening socket whose connections the test answers itself."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.port = sock.getsockname()[1]
        self.accepted: list[socket.socket] = []

    async def accept(self) -> Peer:
        async with asyncio.timeout(PATIENCE_S):
            sock, _ = await asyncio.get_running_loop().sock_accept(self.socket)
        self.accepted.append(sock)
        return Peer(sock)


@pytest.fixture
def free_port(free_ports: Callable[[int], list[int]]) -> int:
    """A TCP port on 127.0.0.1 that nobody listens on."""
    return free_ports(1)[0]


@pytest.fixture(scope="session")
def free_ports() -> Callable[[int], list[int]]:
    """free_ports(n): n different TCP ports on 127.0.0.1 that nobody listens on."""
    return take_free_ports


@pytest.fixture
async def no_leaks(caplog: pytest.LogCaptureFixture) -> AsyncIterator[None]:
    """When the test is over no task and no memory is left, and the event loop has not complained."""
    before, held = asyncio.all_tasks(), HELD.held_bytes
    yield
    async with asyncio.timeout(LEAVING_TIMEOUT_S):
        while left := asyncio.all_tasks() - before - {asyncio.current_task()}:
            await asyncio.wait(left)
        while held != HELD.held_bytes:  # transports that are closing  # noqa: ASYNC110
            await asyncio.sleep(0)
    for record in caplog.get_records("call"):
        if record.name == "asyncio":
            pytest.fail(f"the event loop complained: {record.getMessage()}")


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate and its key, each in a PEM file. The key is not encrypted."""

    certificate: Path
    key: Path


_PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


_SIGNS_CERTIFICATES = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


@dataclass(slots=True)
class Authority:
    """Signs certificates for whoever trusts its own, which is in `certificate`."""

    folder: Path
    name: str
    _key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    _numbers: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))

    @property
    def certificate(self) -> Path:
        path = self.folder / "authority.pem"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            builder = _certificate(self.name, self.name, self._key.public_key())
            authority = x509.BasicConstraints(ca=True, path_length=0)
            key_identifier = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
            builder = builder.add_extension(authority, critical=True)
            builder = builder.add_extension(_SIGNS_CERTIFICATES, critical=True)
            builder = builder.add_extension(key_identifier, critical=False)
            signed = builder.sign(self._key, hashes.SHA256())
            path.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        return path

    def issue(
        self,
        common_name: str = "localhost",
        names: tuple[str, ...] = ("localhost", "127.0.0.1"),
        *,
        valid_days: tuple[float, float] = (-1, 365),
        key: _PrivateKey | None = None,
        self_signed: bool = False,
        names_authority_key: bool = True,
    ) -> Certificate:
        """valid_days: first and last, from now. names_authority_key: as RFC 5280 wants it, and many do without."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        issuer, signing = (common_name, key) if self_signed else (self.name, self._key)
        builder = _certificate(common_name, issuer, key.public_key(), valid_days)
        alternatives = [_general_name(name) for name in names]
        if alternatives:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        if names_authority_key and not self_signed:
            named = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
            builder = builder.add_extension(named, critical=False)
        signed = builder.sign(signing, hashes.SHA256())
        folder = self.certificate.parent / str(next(self._numbers))
        folder.mkdir()
        made = Certificate(folder / "certificate.pem", folder / "key.pem")
        made.certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        made.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.TraditionalOpenSSL,
                serialization.NoEncryption(),
            )
        )
        return made


def _certificate(
    subject: str,
    issuer: str,
    key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey,
    valid_days: tuple[float, float] = (-1, 3650),
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return x509.CertificateBuilder(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]),
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]),
        key,
        x509.random_serial_number(),
        now + datetime.timedelta(days=valid_days[0]),
        now + datetime.timedelta(days=valid_days[1]),
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """authority.issue("name", ("host",)): a certificate that who trusts authority.certificate trusts."""
    return Authority(tmp_path_factory.mktemp("authority"), "Test Authority")


@pytest.fixture(scope="session")
def other_authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """One that nobody trusts."""
    return Authority(tmp_path_factory.mktemp("authority"), "Other Authority")


@pytest.fixture
def wire():
    return Wire


@pytest.fixture
async def connect(no_leaks):
    """connect(port): a Peer connected to 127.0.0.1, closed at the end. host: where it connects from."""
    peers = []

    async def connect(port, *, receive_buffer=None, host=None):
        sock = socket.socket()
        peers.append(sock)
        if host is not None:
            sock.bind((host, 0))
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        return Peer(sock)

    yield connect
    for peer in peers:
        peer.close()


@pytest.fixture
async def listener(no_leaks):
    sock = socket.create_server(("127.0.0.1", 0))
    sock.setblocking(False)
    listener = Listener(sock)
    yield listener
    for each in [sock, *listener.accepted]:
        each.close()


@pytest.fixture(scope="session")
def pydicom_files() -> list[SampleFile]:
    """Every valid DICOM file with a SOP instance inside the installed pydicom package, sorted by path."""
    root = Path(pydicom.data.__file__).parent
    samples = [
        sample for path in sorted(root.rglob("*")) if path.is_file() and (sample := _read_sample(path))
    ]
    assert len(samples) > 100, "pydicom ships far more than 100 sample files; is it installed completely?"
    return samples


def _read_sample(path: Path) -> SampleFile | None:
    content = path.read_bytes()
    # (0002,0000) UL, four bytes long, opens the file meta information and says where it ends (PS3.10 §7.1).
    if path.name in _BROKEN_SAMPLES or content[128:140] != b"DICM\x02\x00\x00\x00UL\x04\x00":
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd values in the files are none of our business
        dataset = pydicom.dcmread(path)
        transfer_syntax_uid = dataset.file_meta.get("TransferSyntaxUID")
        sop_class_uid = dataset.get("SOPClassUID")
        sop_instance_uid = dataset.get("SOPInstanceUID")
    if not (transfer_syntax_uid and sop_class_uid and sop_instance_uid):
        return None  # a DICOMDIR, or a fragment of a data set
    end_of_meta = 144 + int.from_bytes(content[140:144], "little")
    return SampleFile(
        path, str(sop_class_uid), str(sop_instance_uid), str(transfer_syntax_uid), content[end_of_meta:]
    )


@pytest.fixture(scope="session")
def require_peer() -> Callable[[str], str]:
    """require_peer("storescu"): the program's path; skips the test, or fails it, when it is not installed.

    "pynetdicom" asks for the Python package. HARMONY_REQUIRE_PEERS=1 turns the skip into a failure.
    """

    def require(name: str) -> str:
        if name == "pynetdicom":
            spec = importlib.util.find_spec(name)
            found = spec.origin if spec else None
        else:
            found = shutil.which(name, path=_PEER_PATH)
        if found:
            return found
        message = f"peer missing: {name}"
        if os.environ.get("HARMONY_REQUIRE_PEERS") == "1":
            pytest.fail(message, pytrace=False)
        pytest.skip(message)

    return require


@pytest.fixture
def until() -> Callable[[Callable[[], object]], Awaitable[None]]:
    """await until(condition): of what happens in threads and on the disk, where there is nothing to await."""

    async def until(condition: Callable[[], object]) -> None:
        async with asyncio.timeout(UNTIL_TIMEOUT_S):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    return until
