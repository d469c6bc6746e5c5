"""C-FIND, C-GET and C-MOVE with DCMTK, Orthanc and pynetdicom, in both roles, on the level of the engine.

Our SCP offers canned data: what matches is not the question here, but that every match, instance, counter, failure and
cancellation gets through. As SCU we ask archives that were filled by DCMTK's storescu.
"""

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from types import SimpleNamespace

import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import UID, generate_uid

from harmony.dimse import (
    SUCCESS_OUTCOME,
    BytesSink,
    CFindRQ,
    CGetRQ,
    CMoveRQ,
    DimseError,
    Instance,
    Services,
    serve,
)
from harmony.dimse.information_model import PATIENT_ROOT, STUDY_ROOT, propose_get, propose_query
from harmony.dimse.move_receiver import MoveReceiver
from harmony.dimse.peer import Peer
from harmony.dimse.query import find, find_handler
from harmony.dimse.retrieve import GetReceiver, RetrieveFailed, get, move
from harmony.dimse.retrieve_scp import Selection, get_handler, move_handler

pytestmark = pytest.mark.interop

CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
JPEG = "1.2.840.10008.1.2.4.50"
NO_DELAY = {"TCP_NODELAY": "1"}
PATIENCE_S = 60.0


def encode(dataset, transfer_syntax_uid):
    """A data set as bytes, in a native little endian transfer syntax."""
    buffer = DicomBytesIO()
    buffer.is_little_endian = True
    buffer.is_implicit_VR = transfer_syntax_uid == IMPLICIT
    write_dataset(buffer, dataset)
    return buffer.getvalue()


def decode(data, transfer_syntax_uid):
    return pydicom.filereader.read_dataset(
        DicomBytesIO(data), transfer_syntax_uid == IMPLICIT, is_little_endian=True
    )


def keys(level, **attributes):
    """An Identifier for whatever context was accepted."""
    dataset = Dataset()
    dataset.QueryRetrieveLevel = level
    for name, value in attributes.items():
        setattr(dataset, name, value)
    return lambda context: encode(dataset, context.transfer_syntax)


@dataclass(frozen=True)
class Image:
    dataset: Dataset
    sop_class_uid: str
    sop_instance_uid: str
    data: bytes  # Explicit VR Little Endian

    @property
    def instance(self):
        return Instance(self.sop_class_uid, self.sop_instance_uid, EXPLICIT, self.data)


def make_study(patient_id, count, *, size=2000):
    """Images of one study: CT in the first series, MR in the second."""
    study, series = generate_uid(), (generate_uid(), generate_uid())
    images = []
    for number in range(count):
        dataset = Dataset()
        dataset.SOPClassUID = (CT, MR)[number % 2]
        dataset.SOPInstanceUID = generate_uid()
        dataset.StudyDate, dataset.StudyTime, dataset.AccessionNumber = "20260102", "030405", "A1"
        dataset.Modality = ("CT", "MR")[number % 2]
        dataset.PatientName, dataset.PatientID = f"Doe^{patient_id}", patient_id
        dataset.PatientBirthDate, dataset.PatientSex = "19700101", "O"
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, series[number % 2]
        dataset.StudyID, dataset.SeriesNumber, dataset.InstanceNumber = "S1", number % 2 + 1, number + 1
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.Rows = dataset.Columns = 10
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
        dataset.PixelRepresentation = 0
        dataset.PixelData = bytes([number % 256, 0]) * 100
        images.append(Image(dataset, dataset.SOPClassUID, dataset.SOPInstanceUID, encode(dataset, EXPLICIT)))
    return images


@pytest.fixture
def archive_files(tmp_path):
    """archive_files(images): the paths of Part 10 files in Explicit VR Little Endian."""
    folder = tmp_path / "to-be-archived"
    folder.mkdir()

    def write(images):
        paths = []
        for image in images:
            image.dataset.file_meta = FileMetaDataset()
            image.dataset.file_meta.TransferSyntaxUID = UID(EXPLICIT)
            paths.append(folder / f"{image.sop_instance_uid}.dcm")
            image.dataset.save_as(paths[-1], enforce_file_format=True)
        return paths

    return write


@pytest.fixture
def start_dcmqrscp(require_peer, free_ports, tmp_path):
    """start_dcmqrscp(destinations={"HARMONY": port}) -> its port; an empty DCMTK archive with the AE title ARCHIVE."""
    with contextlib.ExitStack() as running:

        def start(*, destinations=None, options=()):
            (port,) = free_ports(1)
            folder = tmp_path / f"dcmqrscp-{port}"
            folder.mkdir()
            hosts = "\n".join(
                f"host{number} = ({title}, 127.0.0.1, {there})"
                for number, (title, there) in enumerate((destinations or {}).items())
            )
            configuration = tmp_path / f"dcmqrscp-{port}.cfg"
            configuration.write_text(
                f"NetworkTCPPort = {port}\nMaxPDUSize = 131072\nMaxAssociations = 16\n"
                f"HostTable BEGIN\n{hosts}\nHostTable END\nVendorTable BEGIN\nVendorTable END\n"
                f"AETable BEGIN\nARCHIVE {folder} RW (1000, 1024mb) ANY\nAETable END\n"
            )
            log = running.enter_context((tmp_path / f"dcmqrscp-{port}.log").open("wb"))
            process = subprocess.Popen(
                [require_peer("dcmqrscp"), "-c", str(configuration), *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **NO_DELAY},
                start_new_session=True,
            )
            running.callback(stop, process)
            deadline = time.monotonic() + 30
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    return port
                except OSError:
                    assert time.monotonic() < deadline, "dcmqrscp does not listen"
                with contextlib.suppress(subprocess.TimeoutExpired):
                    pytest.fail(f"dcmqrscp ended with {process.wait(timeout=0.02)}")

        yield start


def stop(process):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=10)


@dataclass
class Canned:
    """The services of an archive that has what it was given."""

    images: list
    destinations: dict
    asked: list
    wait_after: int | None = None
    extra: tuple = ()

    def services(self):
        services = Services()
        models = (PATIENT_ROOT, STUDY_ROOT)
        services.operation(CFindRQ, [model.find for model in models], find_handler(self.query))
        services.operation(CGetRQ, [model.get for model in models], get_handler(self.select))
        services.operation(
            CMoveRQ,
            [model.move for model in models],
            move_handler(self.select, lambda title, operation: self.destinations.get(title)),
        )
        services.store_as_scu()
        return services

    async def query(self, operation):
        self.asked.append(operation)
        syntax = operation.context.transfer_syntax
        level = decode(operation.data_set, syntax).get("QueryRetrieveLevel", "")
        if level == "WRONG":
            raise DimseError(0xA900, "unknown level", (0x00080052,))
        for number, image in enumerate(self.images):
            if number == self.wait_after:
                await operation.cancelled.wait()
            answer = Dataset()
            answer.QueryRetrieveLevel = level
            for name in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
                setattr(answer, name, image.dataset.get(name))
            yield encode(answer, syntax)

    async def select(self, operation):
        self.asked.append(operation)

        async def instances():
            for number, image in enumerate(self.images):
                if number == self.wait_after:
                    await operation.cancelled.wait()
                yield image.instance
            for item in self.extra:
                yield item

        everything = [*(image.sop_instance_uid for image in self.images)]
        everything += [item.sop_instance_uid for item in self.extra]
        pairs = {(image.sop_class_uid, EXPLICIT) for image in self.images}
        return Selection(instances(), sop_instance_uids=everything, contexts=pairs)


def data_sets(folder):
    """The data sets of Part 10 files, by SOP Instance UID."""
    found = {}
    for path in folder.iterdir():
        content = path.read_bytes()
        end_of_meta = 144 + int.from_bytes(content[140:144], "little")
        meta = pydicom.filereader.read_file_meta_info(path)
        found[str(meta.MediaStorageSOPInstanceUID)] = content[end_of_meta:]
    return found


class Collected(dict):
    """Data sets by SOP Instance UID, from the sinks that `open` makes."""

    def __init__(self):
        super().__init__()
        self.syntaxes = set()

    def open(self, request):
        def complete(data):
            self[request.affected_sop_instance_uid] = data
            self.syntaxes.add(request.transfer_syntax_uid)
            return SUCCESS_OUTCOME

        return BytesSink(complete)


def expected(images):
    return {str(image.sop_instance_uid): image.data for image in images}


# --- Our SCP, DCMTK's SCUs ------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["-P", "-S"])
@pytest.mark.parametrize("count", [0, 3, 200])
async def test_findscu_gets_every_match(run_tool, tmp_path, model, count):
    canned = Canned(make_study("P1", count), {}, [])
    out = tmp_path / "responses"
    out.mkdir()
    async with serve(canned.services(), port=0) as server:
        await asyncio.to_thread(
            run_tool, "findscu", model, "-X", "-od", out, "-k", "QueryRetrieveLevel=IMAGE",
            "-k", "SOPInstanceUID", "127.0.0.1", server.port, env=NO_DELAY,
        )  # fmt: skip
    found = {pydicom.dcmread(path).SOPInstanceUID for path in out.iterdir()}
    assert found == {image.sop_instance_uid for image in canned.images}


async def test_findscu_cancels(run_tool, tmp_path):
    """The query waits for the C-CANCEL after the second match."""
    canned = Canned(make_study("P1", 5), {}, [], wait_after=2)
    async with serve(canned.services(), port=0) as server:
        printed = await asyncio.to_thread(
            run_tool, "findscu", "-v", "-S", "--cancel", 2, "-k", "QueryRetrieveLevel=STUDY",
            "127.0.0.1", server.port, env=NO_DELAY,
        )  # fmt: skip
    assert "Cancel" in printed.stdout
    assert canned.asked[0].cancelled.is_set()


async def test_findscu_is_told_what_is_wrong(run_tool):
    canned = Canned(make_study("P1", 1), {}, [])
    async with serve(canned.services(), port=0) as server:
        printed = await asyncio.to_thread(
            run_tool, "findscu", "-v", "-S", "-k", "QueryRetrieveLevel=WRONG", "127.0.0.1", server.port,
            status=None, env=NO_DELAY,
        )  # fmt: skip
    assert "0xa900" in printed.stdout.lower() or "DataSetDoesNotMatch" in printed.stdout


@pytest.mark.parametrize("count", [0, 1, 7])
async def test_getscu_gets_every_instance(run_tool, tmp_path, count):
    canned = Canned(make_study("P1", count), {}, [])
    out = tmp_path / "got"
    out.mkdir()
    async with serve(canned.services(), port=0) as server:
        await asyncio.to_thread(
            run_tool, "getscu", "-S", "+B", "-od", out, "-k", "QueryRetrieveLevel=STUDY",
            "127.0.0.1", server.port, env=NO_DELAY,
        )  # fmt: skip
    assert data_sets(out) == expected(canned.images)


async def test_getscu_is_told_what_failed(run_tool, tmp_path):
    canned = Canned(make_study("P1", 2), {}, [], extra=(Instance(CT, "1.2.3.4", JPEG, b""),))
    out = tmp_path / "got"
    out.mkdir()
    async with serve(canned.services(), port=0) as server:
        printed = await asyncio.to_thread(
            run_tool, "getscu", "-d", "-S", "+B", "-od", out, "-k", "QueryRetrieveLevel=STUDY",
            "127.0.0.1", server.port, status=None, env=NO_DELAY,
        )  # fmt: skip
    assert data_sets(out) == expected(canned.images)
    assert "0xb000" in printed.stdout.lower()
    assert "Failed Suboperations          : 1" in printed.stdout


@pytest.mark.parametrize("count", [0, 1, 7])
async def test_movescu_to_itself(run_tool, free_port, tmp_path, count):
    canned = Canned(make_study("P1", count), {"MOVESCU": Peer("127.0.0.1", free_port, "MOVESCU")}, [])
    out = tmp_path / "moved"  # movescu +B disregards -od
    out.mkdir()
    async with serve(canned.services(), port=0) as server:
        await asyncio.to_thread(
            run_tool, "movescu", "-S", "+B", "--port", free_port, "-aem", "MOVESCU",
            "-k", "QueryRetrieveLevel=STUDY", "127.0.0.1", server.port, env=NO_DELAY, cwd=out,
        )  # fmt: skip
    assert data_sets(out) == expected(canned.images)


async def test_movescu_to_a_third_party(run_tool, start_storescp):
    storescp = start_storescp("-d", env=NO_DELAY)
    canned = Canned(make_study("P1", 4), {"THIRD": Peer("127.0.0.1", storescp.port, "STORESCP")}, [])
    async with serve(canned.services(), port=0) as server:
        await asyncio.to_thread(
            run_tool, "movescu", "-P", "-aet", "ASKER", "-aec", "US", "-aem", "THIRD",
            "-k", "QueryRetrieveLevel=PATIENT", "127.0.0.1", server.port, env=NO_DELAY,
        )  # fmt: skip
    assert data_sets(storescp.folder) == expected(canned.images)
    log = storescp.log.read_text(errors="replace")
    assert re.search(r"Calling Application Name: +US\b", log)
    assert re.search(r"Move Originator AE Title +: +ASKER\b", log)


@pytest.mark.parametrize(("destination", "status"), [("NOWHERE", "0xa801"), ("DOWN", "0xa702")])
async def test_movescu_is_told_what_is_wrong(run_tool, destination, status):
    canned = Canned(make_study("P1", 3), {"DOWN": Peer("127.0.0.1", 1)}, [])
    async with serve(canned.services(), port=0) as server:
        printed = await asyncio.to_thread(
            run_tool, "movescu", "-d", "-S", "-aem", destination, "-k", "QueryRetrieveLevel=STUDY",
            "127.0.0.1", server.port, status=None, env=NO_DELAY,
        )  # fmt: skip
    assert status in printed.stdout.lower()
    if destination == "DOWN":
        assert all(image.sop_instance_uid in printed.stdout for image in canned.images)


# --- Our SCU, archives ----------------------------------------------------------------------------------


@pytest.fixture(params=["dcmqrscp", "orthanc"])
async def archive(request, run_tool, archive_files):
    """An archive with two studies of two patients, and our server that it knows as HARMONY."""
    moves = MoveReceiver()
    storing = Services()
    storing.store(moves.open_sink)
    studies = make_study("P1", 6), make_study("P2", 4)
    async with asyncio.timeout(PATIENCE_S), serve(storing, port=0) as server:
        if request.param == "dcmqrscp":
            start = request.getfixturevalue("start_dcmqrscp")
            port = await asyncio.to_thread(start, destinations={"HARMONY": server.port})
            title = "ARCHIVE"
        else:
            start = request.getfixturevalue("start_orthanc")
            orthanc = await asyncio.to_thread(start, modalities={"harmony": ("HARMONY", server.port)})
            port, title = orthanc.port, orthanc.ae_title
        paths = archive_files([*studies[0], *studies[1]])
        await asyncio.to_thread(run_tool, "storescu", "-aec", title, "127.0.0.1", port, *paths, env=NO_DELAY)
        yield SimpleNamespace(
            peer=Peer("127.0.0.1", port, title, "HARMONY"), studies=studies, moves=moves, name=request.param
        )


async def values(matches, name):
    return sorted([str(decode(m.identifier, m.transfer_syntax_uid).get(name)) async for m in matches])


@pytest.mark.parametrize("model", [PATIENT_ROOT, STUDY_ROOT], ids=lambda model: model.name)
async def test_find_at_every_level(archive, model):
    one = archive.studies[0]
    study, series = one[0].dataset.StudyInstanceUID, one[0].dataset.SeriesInstanceUID
    above = {"PatientID": "P1"} if model is PATIENT_ROOT else {}
    async with archive.peer.associate(propose_query([model.find])) as scu:
        if model is PATIENT_ROOT:
            found = find(scu, model.find, keys("PATIENT", PatientID="", PatientName=""))
            assert await values(found, "PatientID") == ["P1", "P2"]
        found = find(scu, model.find, keys("STUDY", StudyInstanceUID="", **(above or {"PatientID": "P1"})))
        assert await values(found, "StudyInstanceUID") == [study]
        found = find(scu, model.find, keys("SERIES", StudyInstanceUID=study, SeriesInstanceUID="", **above))
        assert await values(found, "SeriesInstanceUID") == sorted(
            {image.dataset.SeriesInstanceUID for image in one}
        )
        found = find(
            scu,
            model.find,
            keys("IMAGE", StudyInstanceUID=study, SeriesInstanceUID=series, SOPInstanceUID="", **above),
        )
        assert await values(found, "SOPInstanceUID") == sorted(
            image.sop_instance_uid for image in one if image.dataset.SeriesInstanceUID == series
        )
        found = find(scu, model.find, keys("STUDY", PatientID="NOBODY", StudyInstanceUID=""))
        assert await values(found, "StudyInstanceUID") == []
        limited = find(scu, model.find, keys("STUDY", PatientID="P*", StudyInstanceUID=""), limit=1)
        assert len(await values(limited, "StudyInstanceUID")) == 1
        await scu.echo()


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
async def test_get(archive, syntax):
    """In the stored transfer syntax byte for byte; in another one the archive re-encodes."""
    one, other = archive.studies
    receiver, collected = GetReceiver(), Collected()
    proposal = propose_get([STUDY_ROOT.get, PATIENT_ROOT.get], [(CT, [syntax]), (MR, [syntax])])
    async with archive.peer.associate(proposal, services=receiver.services) as scu:
        identifier = keys("STUDY", StudyInstanceUID=one[0].dataset.StudyInstanceUID)
        async with get(scu, STUDY_ROOT.get, identifier, collected.open, receiver=receiver) as retrieval:
            result = await retrieval.final()
        assert (result.status, result.counters.completed) == (0x0000, len(one))
        identifier = keys("PATIENT", PatientID="P2")
        async with get(scu, PATIENT_ROOT.get, identifier, collected.open, receiver=receiver) as retrieval:
            result = await retrieval.final()
        assert (result.status, result.counters.completed) == (0x0000, len(other))
    assert collected.syntaxes == {syntax}
    if syntax == EXPLICIT:
        wanted = expected([*one, *other])
    else:
        wanted = {str(i.sop_instance_uid): encode(i.dataset, IMPLICIT) for i in (*one, *other)}
    assert collected == wanted


async def test_get_without_a_context_for_some(archive):
    one = archive.studies[0]
    receiver, collected = GetReceiver(), Collected()
    proposal = propose_get([STUDY_ROOT.get], [(CT, [EXPLICIT])])
    async with archive.peer.associate(proposal, services=receiver.services) as scu:
        identifier = keys("STUDY", StudyInstanceUID=one[0].dataset.StudyInstanceUID)
        with contextlib.suppress(RetrieveFailed):
            async with get(scu, STUDY_ROOT.get, identifier, collected.open, receiver=receiver) as retrieval:
                await retrieval.final()
        result = retrieval.result
    sendable = expected([image for image in one if image.sop_class_uid == CT])
    if archive.name == "orthanc":  # gives up at the first one
        assert collected.items() <= sendable.items()
        assert (result.status, result.counters.failed) == (0xC000, 1)
    else:
        assert collected == sendable
        assert (result.status, result.counters.failed) == (0xB000, 3)
        assert len(result.failed_sop_instance_uids) == 3


async def test_get_left_early(archive):
    """The association goes on, whether the archive heeds C-CANCEL or was too fast for it."""
    one = archive.studies[0]
    receiver, collected = GetReceiver(), Collected()
    proposal = propose_get([STUDY_ROOT.get, "1.2.840.10008.1.1"], [(CT, [EXPLICIT]), (MR, [EXPLICIT])])
    async with archive.peer.associate(proposal, services=receiver.services) as scu:
        identifier = keys("STUDY", StudyInstanceUID=one[0].dataset.StudyInstanceUID)
        async with get(scu, STUDY_ROOT.get, identifier, collected.open, receiver=receiver):
            pass
        assert scu.association.is_open
        await scu.echo()


async def test_move_to_ourselves_two_at_once(archive):
    """They never mix, though both associations begin with the same Message ID."""

    async def retrieve(images):
        collected = Collected()
        async with archive.peer.associate(propose_query([STUDY_ROOT.move])) as scu:
            identifier = keys("STUDY", StudyInstanceUID=images[0].dataset.StudyInstanceUID)
            async with move(
                scu,
                STUDY_ROOT.move,
                identifier,
                "HARMONY",
                receiver=archive.moves,
                open_sink=collected.open,
            ) as retrieval:
                result = await retrieval.final()
        assert (result.status, result.counters.completed) == (0x0000, len(images))
        return collected

    one, other = await asyncio.gather(*(retrieve(images) for images in archive.studies))
    assert one == expected(archive.studies[0])
    assert other == expected(archive.studies[1])
    assert len(archive.moves) == 0


async def test_move_to_nowhere(archive):
    async with archive.peer.associate(propose_query([STUDY_ROOT.move])) as scu:
        identifier = keys("STUDY", StudyInstanceUID=archive.studies[0][0].dataset.StudyInstanceUID)
        with pytest.raises(RetrieveFailed):
            async with move(scu, STUDY_ROOT.move, identifier, "NOWHERE") as retrieval:
                await retrieval.final()
        await scu.echo()


# --- pynetdicom, both ways ------------------------------------------------------------------------------


@pytest.fixture
def pynetdicom_archive(require_peer, free_port):
    """start(images, destinations) -> Peer: handlers in the way of pynetdicom's qrscp, over canned data."""
    require_peer("pynetdicom")
    from pynetdicom import AE, evt

    with contextlib.ExitStack() as running:

        def start(images, destinations):
            def handle_find(event):
                for image in images:
                    if event.is_cancelled:
                        yield 0xFE00, None
                        return
                    answer = Dataset()
                    answer.QueryRetrieveLevel = event.identifier.QueryRetrieveLevel
                    answer.SOPInstanceUID = image.sop_instance_uid
                    yield 0xFF00, answer

            def instances(event):
                for image in images:
                    if event.is_cancelled:
                        yield 0xFE00, None
                        return
                    yield 0xFF00, image.dataset

            def handle_get(event):
                yield len(images)
                yield from instances(event)

            def handle_move(event):
                destination = destinations.get(event.move_destination)
                if destination is None:
                    yield None, None
                    return
                yield destination
                yield from handle_get(event)

            entity = AE("PYNETDICOM")
            for model in (PATIENT_ROOT, STUDY_ROOT):
                for uid in (model.find, model.get, model.move):
                    entity.add_supported_context(uid)
            entity.add_supported_context("1.2.840.10008.1.1")
            for uid in (CT, MR):
                entity.add_supported_context(uid, EXPLICIT, scu_role=True, scp_role=True)
                entity.add_requested_context(uid, EXPLICIT)
            handlers = [
                (evt.EVT_C_FIND, handle_find),
                (evt.EVT_C_GET, handle_get),
                (evt.EVT_C_MOVE, handle_move),
            ]
            server = entity.start_server(("127.0.0.1", free_port), block=False, evt_handlers=handlers)
            running.callback(server.shutdown)
            return Peer("127.0.0.1", free_port, "PYNETDICOM", "HARMONY")

        yield start


def with_meta(images):
    for image in images:
        image.dataset.file_meta = FileMetaDataset()
        image.dataset.file_meta.TransferSyntaxUID = UID(EXPLICIT)
    return images


async def test_our_scu_and_pynetdicom(pynetdicom_archive):
    images = with_meta(make_study("P1", 5))
    moves, collected, got = MoveReceiver(), Collected(), Collected()
    storing = Services()
    storing.store(moves.open_sink)
    async with asyncio.timeout(PATIENCE_S), serve(storing, port=0) as server:
        peer = pynetdicom_archive(images, {"HARMONY": ("127.0.0.1", server.port)})
        receiver = GetReceiver()
        proposal = propose_get(
            [STUDY_ROOT.find, STUDY_ROOT.get, STUDY_ROOT.move, "1.2.840.10008.1.1"],
            [(CT, [EXPLICIT]), (MR, [EXPLICIT])],
        )
        async with peer.associate(proposal, services=receiver.services) as scu:
            found = find(scu, STUDY_ROOT.find, keys("IMAGE"))
            assert await values(found, "SOPInstanceUID") == sorted(i.sop_instance_uid for i in images)
            found = find(scu, STUDY_ROOT.find, keys("IMAGE"), limit=2)
            assert len(await values(found, "SOPInstanceUID")) == 2
            async with get(scu, STUDY_ROOT.get, keys("STUDY"), got.open, receiver=receiver) as retrieval:
                result = await retrieval.final()
            assert (result.status, result.counters.completed) == (0x0000, 5)
            async with move(
                scu, STUDY_ROOT.move, keys("STUDY"), "HARMONY", receiver=moves, open_sink=collected.open
            ) as retrieval:
                told = [counters async for counters in retrieval]
            assert retrieval.result.status == 0
            assert [counters.completed for counters in told] == [1, 2, 3, 4, 5]
            with pytest.raises(RetrieveFailed, match="0xA801"):
                async with move(scu, STUDY_ROOT.move, keys("STUDY"), "NOWHERE") as retrieval:
                    await retrieval.final()
    assert got == collected == expected(images)


async def test_pynetdicom_and_our_scp(require_peer, start_storescp):
    require_peer("pynetdicom")
    from pynetdicom import AE, build_role, evt

    images = make_study("P1", 6)
    storescp = start_storescp("+xe", env=NO_DELAY)
    unsendable = Instance("1.2.3.4.5", "1.2.3.4", JPEG, b"")
    canned = Canned(images, {"THIRD": Peer("127.0.0.1", storescp.port)}, [], extra=(unsendable,))
    got = {}

    def handle_store(event):
        got[str(event.request.AffectedSOPInstanceUID)] = event.request.DataSet.getvalue()
        return 0x0000

    def ask(port):
        entity = AE("ASKER")
        for uid in (STUDY_ROOT.find, STUDY_ROOT.get, STUDY_ROOT.move):
            entity.add_requested_context(uid)
        for uid in (CT, MR):
            entity.add_requested_context(uid, EXPLICIT)
        roles = [build_role(uid, scp_role=True) for uid in (CT, MR)]
        association = entity.associate(
            "127.0.0.1", port, ext_neg=roles, evt_handlers=[(evt.EVT_C_STORE, handle_store)]
        )
        assert association.is_established
        identifier = Dataset()
        identifier.QueryRetrieveLevel = "STUDY"
        found = list(association.send_c_find(identifier, STUDY_ROOT.find))
        retrieved = list(association.send_c_get(identifier, STUDY_ROOT.get))
        moved = list(association.send_c_move(identifier, "THIRD", STUDY_ROOT.move))
        unknown = list(association.send_c_move(identifier, "NOWHERE", STUDY_ROOT.move))
        association.release()
        return found, retrieved, moved, unknown

    async with serve(canned.services(), port=0) as server:
        found, retrieved, moved, unknown = await asyncio.to_thread(ask, server.port)
    assert [status.Status for status, _ in found] == [0xFF00] * 6 + [0x0000]
    assert {answer.SOPInstanceUID for _, answer in found[:-1]} == {i.sop_instance_uid for i in images}
    for responses in (retrieved, moved):
        status, failed = responses[-1]
        assert status.Status == 0xB000
        assert status.NumberOfCompletedSuboperations == 6
        assert status.NumberOfFailedSuboperations == 1
        assert failed.FailedSOPInstanceUIDList == "1.2.3.4"
    assert got == data_sets(storescp.folder) == expected(images)
    assert unknown[-1][0].Status == 0xA801
