"""Fixtures for every test: free ports, the DICOM files that pydicom ships, what to do without a peer.

Tests that need an outside program (DCMTK, Orthanc, dicom3tools, curl ...) ask `require_peer` for it. Where
it is missing they are skipped and say so; with HARMONY_REQUIRE_PEERS=1, as in CI, they fail instead.
Nothing here downloads anything.
"""

import asyncio
import contextlib
import importlib.util
import os
import random
import shutil
import socket
import sys
import warnings
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pydicom
import pydicom.data
import pytest

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
