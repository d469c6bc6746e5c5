"""Real peers for the interoperability tests: DCMTK's storescp, a pynetdicom storage SCP, Orthanc, any tool, and
programs for Node with packages from npm.

Every peer listens on 127.0.0.1 on a port of its own, is ready when its fixture hands it out (a connect
succeeded), and is killed when the test ends. No wait is longer than its deadline and none is a sleep. Missing
programs are `require_peer`'s business: skipped, or failed where HARMONY_REQUIRE_PEERS=1.

The tools block. In a test that serves Harmony from its own event loop call them from a thread:
`await asyncio.to_thread(run_tool, "storescu", "127.0.0.1", port, path)`.
"""

import base64
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from harmony.dimse.part10 import read_file_meta
from harmony.gateway.app import Gateway
from harmony.gateway.loading import load

CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
READY_TIMEOUT_S = 30.0  # Orthanc opens its database and loads its plugins before it listens
STOP_TIMEOUT_S = 10.0
TOOL_TIMEOUT_S = 60.0
NPM_FOLDER = Path(__file__).with_name("npm")
NPM_TIMEOUT_S = 100.0


@dataclass(frozen=True, slots=True)
class Peer:
    """A program that listens for associations, and the folder where it puts what it receives."""

    ae_title: str
    port: int
    folder: Path
    process: "subprocess.Popen[bytes]"
    log: Path  # what the program printed
    http_port: int = 0  # Orthanc only
    host: str = "127.0.0.1"

    def received(self) -> list[Path]:
        """The files that storescp has stored, sorted by name."""
        return sorted(path for path in self.folder.iterdir() if path.is_file())


@dataclass(frozen=True, slots=True)
class ReceivedObject:
    """What a pynetdicom SCP got in one C-STORE."""

    calling_ae_title: str
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    data_set: bytes  # as it came, not decoded


@dataclass(frozen=True, slots=True)
class PynetdicomSCP:
    """A storage SCP on pynetdicom, in a thread of the test process."""

    ae_title: str
    port: int
    objects: list[ReceivedObject] = field(default_factory=list)
    host: str = "127.0.0.1"


@pytest.fixture
def run_tool(require_peer: Callable[[str], str]) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """run_tool("storescu", *arguments, env={"TCP_NODELAY": "1"}, timeout_s=60, status=0, cwd=None).

    Runs a program to its end and returns it with stdout and stderr (one text, in stdout). Fails the test when
    the exit status is not `status` (None accepts any) or when it takes longer than `timeout_s`.
    """

    def run(
        name: str,
        *arguments: object,
        env: Mapping[str, str] | None = None,
        timeout_s: float = TOOL_TIMEOUT_S,
        status: int | None = 0,
        cwd: Path | None = None,
    ) -> "subprocess.CompletedProcess[str]":
        command = [require_peer(name), *map(str, arguments)]
        try:
            finished = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                cwd=cwd,
                timeout=timeout_s,
                encoding="utf-8",
                errors="replace",
                check=False,
            )
        except subprocess.TimeoutExpired as expired:
            printed = (expired.stdout or b"").decode(errors="replace")
            pytest.fail(f"{' '.join(command)} did not end in {timeout_s} s; it printed:\n{printed}")
        if status is not None and finished.returncode != status:
            pytest.fail(f"{' '.join(command)} ended with {finished.returncode}:\n{finished.stdout}")
        return finished

    return run


@pytest.fixture
def start_storescp(
    require_peer: Callable[[str], str], free_ports: Callable[[int], list[int]], tmp_path: Path
) -> Iterator[Callable[..., Peer]]:
    """start_storescp("-pdu", 131072, ..., env={...}) -> Peer: DCMTK's storescp in bit-preserving mode.

    It accepts every transfer syntax it knows and every SOP class, also unknown ones; options add to that.
    """
    with ExitStack() as running:

        def start(*options: object, env: Mapping[str, str] | None = None, ae_title: str = "STORESCP") -> Peer:
            (port,) = free_ports(1)
            folder = tmp_path / f"storescp-{port}"
            folder.mkdir()
            command = [require_peer("storescp"), "+B", "+xa", "-pm", "-dhl", "-aet", ae_title, "-od", folder]
            command += [*options, port]
            log = tmp_path / f"storescp-{port}.log"
            process = running.enter_context(_running(command, log=log, ports=[port], env=env))
            return Peer(ae_title, port, folder, process, log)

        yield start


@pytest.fixture
def start_dcmqrscp(
    require_peer: Callable[[str], str], free_ports: Callable[[int], list[int]], tmp_path: Path
) -> Iterator[Callable[..., int]]:
    """start_dcmqrscp({"HARMONY": port}, option...) -> its port; an empty DCMTK archive with the AE title ARCHIVE.

    It moves to the AE titles given, which are expected at these ports.
    """
    with ExitStack() as running:

        def start(destinations: Mapping[str, int], *options: str) -> int:
            (port,) = free_ports(1)
            folder = tmp_path / f"dcmqrscp-{port}"
            folder.mkdir()
            hosts = "\n".join(
                f"host{number} = ({title}, 127.0.0.1, {there})"
                for number, (title, there) in enumerate(destinations.items())
            )
            configuration = tmp_path / f"dcmqrscp-{port}.cfg"
            configuration.write_text(
                f"NetworkTCPPort = {port}\nMaxPDUSize = 131072\nMaxAssociations = 16\n"
                f"HostTable BEGIN\n{hosts}\nHostTable END\nVendorTable BEGIN\nVendorTable END\n"
                f"AETable BEGIN\nARCHIVE {folder} RW (1000, 1024mb) ANY\nAETable END\n"
            )
            command = [require_peer("dcmqrscp"), "-c", configuration, *options]
            log = tmp_path / f"dcmqrscp-{port}.log"
            running.enter_context(_running(command, log=log, ports=[port], env={"TCP_NODELAY": "1"}))
            return port

        yield start


@pytest.fixture
def start_orthanc(
    require_peer: Callable[[str], str], free_ports: Callable[[int], list[int]], tmp_path: Path
) -> Iterator[Callable[..., Peer]]:
    """start_orthanc(modalities={"harmony": ("HARMONY_SCP", port)}, options={...}) -> Peer with its http_port.

    An empty Orthanc (with `port` the one that had it before, again) with the DICOMweb plugin at
    /dicom-web/, no authentication, called AE title not checked.
    `options` are added to, or replace, keys of its configuration.
    """
    with ExitStack() as running:

        def start(
            *,
            modalities: Mapping[str, tuple[str, int]] | None = None,
            options: Mapping[str, Any] | None = None,
            ae_title: str = "ORTHANC",
            port: int | None = None,
        ) -> Peer:
            free, http_port = free_ports(2)
            port = port or free
            folder = tmp_path / f"orthanc-{port}"
            folder.mkdir(exist_ok=True)  # the one of an Orthanc that had this port before
            plugins = [
                str(path)
                for place in ("/usr/share/orthanc/plugins", "/usr/local/share/orthanc/plugins")
                for path in Path(place).glob("libOrthancDicomWeb.*")
            ]
            configuration = {
                "Name": "Interop",
                "StorageDirectory": str(folder),
                "IndexDirectory": str(folder),
                "Plugins": plugins,
                "DicomAet": ae_title,
                "DicomPort": port,
                "DicomCheckCalledAet": False,
                "DicomAlwaysAllowEcho": True,
                "DicomAlwaysAllowStore": True,
                "DicomAlwaysAllowFind": True,
                "DicomAlwaysAllowGet": True,
                "DicomAlwaysAllowMove": True,
                "UnknownSopClassAccepted": True,
                "DicomModalities": {
                    name: [title, "127.0.0.1", modality_port]
                    for name, (title, modality_port) in (modalities or {}).items()
                },
                "HttpPort": http_port,
                "RemoteAccessAllowed": False,
                "AuthenticationEnabled": False,
                "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
                **(options or {}),
            }
            configuration_file = tmp_path / f"orthanc-{port}.json"
            configuration_file.write_text(json.dumps(configuration))
            command = [require_peer("Orthanc"), configuration_file]
            log = tmp_path / f"orthanc-{port}.log"
            process = running.enter_context(_running(command, log=log, ports=[port, http_port]))
            return Peer(ae_title, port, folder, process, log, http_port=http_port)

        yield start


@pytest.fixture
def pynetdicom_scp(
    require_peer: Callable[[str], str], free_port: int, monkeypatch: pytest.MonkeyPatch
) -> Iterator[PynetdicomSCP]:
    """A storage SCP for any storage SOP class in any transfer syntax; it keeps the data sets as they came."""
    require_peer("pynetdicom")
    import pynetdicom
    from pynetdicom import evt
    from pynetdicom.sop_class import Verification

    # A switch of the whole library; other tests get it back as it was.
    monkeypatch.setattr(pynetdicom._config, "UNRESTRICTED_STORAGE_SERVICE", True)
    scp = PynetdicomSCP("PYNETDICOM", free_port)

    def handle_store(event: evt.Event) -> int:
        request = event.request
        scp.objects.append(
            ReceivedObject(
                calling_ae_title=event.assoc.requestor.ae_title,
                sop_class_uid=str(request.AffectedSOPClassUID),
                sop_instance_uid=str(request.AffectedSOPInstanceUID),
                transfer_syntax_uid=str(event.context.transfer_syntax),
                data_set=request.DataSet.getvalue(),
            )
        )
        return 0x0000

    entity = pynetdicom.AE(scp.ae_title)
    entity.add_supported_context(Verification)
    server = entity.start_server(
        (scp.host, scp.port), block=False, evt_handlers=[(evt.EVT_C_STORE, handle_store)]
    )
    try:
        yield scp
    finally:
        server.shutdown()


@pytest.fixture(scope="session")
def run_npm(require_peer: Callable[[str], str]) -> Callable[..., None]:
    """run_npm("ci", ...): npm, in the folder of the programs for it. What it cannot fetch is a missing peer."""

    def run(*arguments: object) -> None:
        require_peer("node")
        command = [require_peer("npm"), *map(str, arguments)]
        command += ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        try:
            finished = subprocess.run(
                command,
                cwd=NPM_FOLDER,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=NPM_TIMEOUT_S,
                text=True,
                check=False,
            )
            reason = finished.stdout.strip() if finished.returncode else ""
        except subprocess.TimeoutExpired:
            reason = f"nothing came in {NPM_TIMEOUT_S} s"
        if reason:
            require_peer(f"npm packages: npm {arguments[0]}: {reason[-1000:]}")

    return run


@pytest.fixture(scope="session")
def npm_packages(run_npm: Callable[..., None]) -> Path:
    """The folder of the programs for Node, with the packages of its package-lock.json beside them."""
    lock = NPM_FOLDER / "package-lock.json"
    installed = NPM_FOLDER / "node_modules" / ".package-lock.json"  # written last
    if not installed.exists() or installed.stat().st_mtime < lock.stat().st_mtime:
        run_npm("ci")
    return NPM_FOLDER


@pytest.fixture(scope="session")
def npm_viewer(require_peer: Callable[[str], str], run_npm: Callable[..., None]) -> Path:
    """The folder with the web pages of the viewer that package.json names.

    They are built already: of the package only they are fetched and kept, not the hundreds of others that it was
    built from, nor what it infers with.
    """
    require_peer("chromium")  # or there is nothing to fetch it for
    pinned = json.loads((NPM_FOLDER / "package.json").read_text())["viewer"]
    viewer = NPM_FOLDER / "viewer" / pinned["version"]
    if viewer.exists():
        return viewer
    viewer.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=viewer.parent) as temporary:
        folder = Path(temporary)
        run_npm("pack", f"{pinned['name']}@{pinned['version']}", "--pack-destination", folder)
        (package,) = folder.glob("*.tgz")
        digest = hashlib.sha512(package.read_bytes()).digest()
        assert f"sha512-{base64.b64encode(digest).decode()}" == pinned["integrity"]
        with tarfile.open(package) as archive:
            for member in archive:
                name = Path(member.name)
                if not name.is_relative_to("package/dist") or "ort" in name.parts or name.suffix == ".map":
                    continue
                if content := archive.extractfile(member):
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    (folder / name).write_bytes(content.read())
        (folder / "package" / "dist").rename(viewer)
    return viewer


@pytest.fixture
def run_node(
    require_peer: Callable[[str], str], npm_packages: Path
) -> Callable[[str, Mapping[str, Any]], Any]:
    """run_node("client.mjs", task): one of our programs for Node, JSON in and out."""

    def run(program: str, task: Mapping[str, Any]) -> Any:
        finished = subprocess.run(
            [require_peer("node"), npm_packages / program],
            input=json.dumps(task),
            capture_output=True,
            text=True,
            timeout=NPM_TIMEOUT_S,
            check=False,
        )
        assert finished.returncode == 0, finished.stderr
        return json.loads(finished.stdout)

    return run


@pytest.fixture
def start_program(tmp_path: Path) -> Iterator[Callable[..., None]]:
    """start_program(toml, port...): `python -m harmony` in a process of its own, from the moment that it listens there.

    The configuration gets a name and a storage folder below tmp_path.
    """
    with ExitStack() as running:

        def start(text: str, *ports: int) -> None:
            path = tmp_path / "config.toml"
            path.write_text(
                f'[proxy]\nid = "interop"\n[storage.options]\npath = "{tmp_path / "storage"}"\n' + text
            )
            command = [sys.executable, "-m", "harmony", "--config", path]
            running.enter_context(_running(command, log=tmp_path / "harmony.log", ports=list(ports)))

        yield start


@pytest.fixture
async def start_gateway(tmp_path: Path) -> AsyncIterator[Callable[[str], Awaitable[Gateway]]]:
    """await start_gateway(toml): a gateway in this process and event loop, stopped when the test ends.

    The configuration gets a name and a storage folder below tmp_path.
    """
    async with AsyncExitStack() as running:

        async def start(text: str) -> Gateway:
            path = tmp_path / "config.toml"
            path.write_text(
                f'[proxy]\nid = "interop"\n[storage.options]\npath = "{tmp_path / "storage"}"\n' + text
            )
            gateway = Gateway(load(path, env={}))
            await gateway.start()
            running.push_async_callback(gateway.stop, 0.0)
            return gateway

        yield start


@pytest.fixture
def ct_file(tmp_path: Path) -> Callable[..., Path]:
    """ct_file(number, study=..., series=1, patient=...): a CT image of 8 x 8 pixels, Explicit VR Little Endian.

    Its SOP Instance UID is `<study>.<series>.<number>`.
    """

    def write(number: int, *, study: str = "1.2.3.4.5", series: int = 1, patient: str = "PATIENT123") -> Path:
        dataset = Dataset()
        dataset.SOPClassUID, dataset.SOPInstanceUID = CT_IMAGE_STORAGE, f"{study}.{series}.{number}"
        dataset.StudyDate, dataset.StudyTime, dataset.AccessionNumber = "20260102", "030405", "A1"
        dataset.Modality, dataset.PatientName, dataset.PatientID = "CT", "Doe^Jane", patient
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, f"{study}.{series}"
        dataset.StudyID, dataset.SeriesNumber, dataset.InstanceNumber = "S1", series, number
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.Rows = dataset.Columns = 8
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
        dataset.PixelRepresentation, dataset.PixelData = 0, bytes([number, 0]) * 64
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = tmp_path / f"{dataset.SOPInstanceUID}.dcm"
        dataset.save_as(path, enforce_file_format=True)
        return path

    return write


@pytest.fixture
def data_sets() -> Callable[[Iterable[Path]], dict[str, bytes]]:
    """data_sets(paths): what is behind the file meta of Part 10 files, by SOP Instance UID."""

    def read(paths: Iterable[Path]) -> dict[str, bytes]:
        found = {}
        for path in paths:
            content = path.read_bytes()
            meta = read_file_meta(content)
            found[meta.media_storage_sop_instance_uid] = content[meta.data_set_offset :]
        return found

    return read


@contextmanager
def _running(
    command: list[object], *, log: Path, ports: list[int], env: Mapping[str, str] | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a server from the moment that all its ports accept connections until the block ends."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            start_new_session=True,  # storescp --fork and its children are stopped together
        )
    try:
        deadline = time.monotonic() + READY_TIMEOUT_S
        for port in ports:
            _wait_until_listening(process, port, deadline=deadline, log=log)
        yield process
    finally:
        _stop(process)


def _wait_until_listening(
    process: "subprocess.Popen[bytes]", port: int, *, deadline: float, log: Path
) -> None:
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                pytest.fail(f"nothing listens on port {port} after {READY_TIMEOUT_S} s:\n{_tail(log)}")
        try:
            # Between two attempts wait for the one other thing that can happen: that it ends instead.
            status = process.wait(timeout=0.02)
        except subprocess.TimeoutExpired:
            continue
        pytest.fail(f"{process.args!r} ended with {status} before it listened:\n{_tail(log)}")


def _stop(process: "subprocess.Popen[bytes]") -> None:
    # Killed, not asked: its state is thrown away anyway and Orthanc takes seconds to say goodbye.
    # The group is there even when its leader has ended and forked children have not.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=STOP_TIMEOUT_S)


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-4000:]
