"""Fixtures for every test: free ports, the DICOM files that pydicom ships, what to do without a peer.

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
import random
import shutil
import socket
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

# A virtual environment with pynetdicom has a `storescu` of its own; a peer means the system's program.
_PEER_PATH = os.pathsep.join(
    [
        directory
        for directory in os.environ.get("PATH", os.defpath).split(os.pathsep)
        if directory and Path(directory).absolute() != Path(sys.executable).absolute().parent
    ]
    + ["/usr/local/sbin", "/usr/sbin"]  # where Debian puts Orthanc, and not on every user's PATH
)

FREE_PORTS = range(20000, 32000)
LEAVING_TIMEOUT_S = 20.0
UNTIL_TIMEOUT_S = 20.0

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


@pytest.fixture
def free_port(free_ports: Callable[[int], list[int]]) -> int:
    """A TCP port on 127.0.0.1 that nobody listens on."""
    return free_ports(1)[0]


@pytest.fixture
def free_ports() -> Callable[[int], list[int]]:
    """free_ports(n): n different TCP ports on 127.0.0.1 that nobody listens on.

    They are below those that systems give to outgoing connections, one of which would else take a port between this
    and the start of the program that it is for.
    """

    def take(count: int) -> list[int]:
        ports: list[int] = []
        for port in random.sample(FREE_PORTS, k=len(FREE_PORTS)):
            if len(ports) == count:
                break
            with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
                ports.append(port)
        assert len(ports) == count
        return ports

    return take


@pytest.fixture
async def no_leaks(caplog: pytest.LogCaptureFixture) -> AsyncIterator[None]:
    """When the test is over no task is left, and the event loop has not complained."""
    before = asyncio.all_tasks()
    yield
    async with asyncio.timeout(LEAVING_TIMEOUT_S):
        while left := asyncio.all_tasks() - before - {asyncio.current_task()}:
            await asyncio.wait(left)
    for record in caplog.get_records("call"):
        if record.name == "asyncio":
            pytest.fail(f"the event loop complained: {record.getMessage()}")


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate and its key, each in a PEM file. The key is not encrypted."""

    certificate: Path
    key: Path


_PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


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
            signed = builder.add_extension(authority, critical=True).sign(self._key, hashes.SHA256())
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
    ) -> Certificate:
        """valid_days: first and last, from now."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        issuer, signing = (common_name, key) if self_signed else (self.name, self._key)
        builder = _certificate(common_name, issuer, key.public_key(), valid_days)
        alternatives = [_general_name(name) for name in names]
        if alternatives:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
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
