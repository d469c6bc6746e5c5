"""QIDO-RS and real programs: dicomweb-client as the client; DCMTK's dcmqrscp and Orthanc as the PACS.

What Orthanc's own DICOMweb plugin finds in the same Orthanc is what is found through DIMSE.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from dicomweb_client.api import DICOMwebClient

from harmony.archive.files import FileStore
from harmony.archive.indexing import ArchiveIndex
from harmony.archive.levels import Level
from harmony.dicom.json_model import encode_data_set
from harmony.dimse import Instance
from harmony.gateway.config import Backend, Origin, Target
from harmony.gateway.dicom_scu import DicomSCU
from harmony.gateway.local_archive import LocalArchive
from harmony.gateway.options import DicomScuOptions
from harmony.gateway.qido import Qido
from harmony.http import HTTPServer, Request, Response, Router

pytestmark = pytest.mark.interop

CT, MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"
EXPLICIT = "1.2.840.10008.1.2.1"
PATIENCE_S = 60.0
ROOT = "1.2.826.0.1.3680043.10.2"


def image(patient: str, study: int, series: int, number: int, *, sop_class: str = CT) -> Instance:
    """UIDs are ROOT.study, ROOT.study.series, ROOT.study.series.number."""
    uid = f"{ROOT}.{study}.{series}.{number}"
    model = {
        "SOPClassUID": sop_class, "SOPInstanceUID": uid, "StudyInstanceUID": f"{ROOT}.{study}",
        "SeriesInstanceUID": f"{ROOT}.{study}.{series}", "PatientName": f"Müller^{patient}", "PatientID": patient,
        "PatientBirthDate": "19700101", "PatientSex": "O", "StudyDate": f"2024010{study}", "StudyTime": "030405",
        "AccessionNumber": f"A{study}", "StudyID": "S1", "Modality": "CT" if sop_class == CT else "MR",
        "SeriesNumber": series, "InstanceNumber": number, "Rows": 8, "Columns": 8, "BitsAllocated": 8,
    }  # fmt: skip
    attributes = {name: {"Value": [value]} for name, value in model.items()}
    return Instance(
        sop_class, uid, EXPLICIT, encode_data_set(attributes, EXPLICIT, character_set="ISO_IR 100")
    )


IMAGES = [
    *(image("P1", 1, 1, number) for number in (1, 2, 3)),
    image("P1", 1, 2, 1, sop_class=MR),
    image("P1", 2, 1, 1),
    *(image("P2", 3, 1, number) for number in (1, 2)),
]


@dataclass
class Service:
    """A running one. client: of dicomweb-client, whose calls block."""

    client: DICOMwebClient
    orthanc: DICOMwebClient | None = None
    """The plugin of what is behind it, if it is Orthanc."""

    async def call(self, method: str, *arguments: Any, **options: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = await asyncio.to_thread(
            getattr(self.client, method), *arguments, **options
        )
        return found


def uids(found: list[dict[str, Any]], tag: str) -> list[str]:
    return sorted(each[tag]["Value"][0].removeprefix(ROOT + ".") for each in found)


def router_of(qido: Qido) -> Router:
    router = Router()
    for pattern, level in (
        ("/studies", Level.STUDY),
        ("/series", Level.SERIES),
        ("/instances", Level.IMAGE),
        ("/studies/{study}/series", Level.SERIES),
        ("/studies/{study}/instances", Level.IMAGE),
        ("/studies/{study}/series/{series}/instances", Level.IMAGE),
    ):

        async def answer(request: Request, level: Level = level) -> Response:
            found = request.path_parameters
            root = f"http://{request.headers.get('host')}"
            study, series = found.get("study"), found.get("series")
            return await qido.search(request, level, study_uid=study, series_uid=series, root=root)

        router.add("GET", pattern, answer)
    return router


def scu(title: str, port: int) -> DicomSCU:
    return DicomSCU(
        Backend(
            name="pacs",
            service="dicom_scu",
            options=DicomScuOptions(aet=title, local_aet="HARMONY"),
            target=Target("127.0.0.1", port, "dicom", "", False, None, 30.0, 3),
            authentication=None,
            origin=Origin(Path("config.toml"), "backends.pacs"),
        )
    )


@pytest.fixture(params=["archive", "dcmqrscp", "orthanc"])
async def service(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Service]:
    orthanc = None
    async with contextlib.AsyncExitStack() as running, asyncio.timeout(PATIENCE_S):
        backend: LocalArchive | DicomSCU
        if request.param == "archive":
            index = ArchiveIndex(tmp_path / "storage")
            index.open()
            running.callback(index.close)
            backend = LocalArchive(FileStore(tmp_path / "storage", minimum_free_bytes=0), index)
        elif request.param == "dcmqrscp":
            start: Callable[..., Any] = request.getfixturevalue("start_dcmqrscp")
            backend = scu("ARCHIVE", await asyncio.to_thread(start, {}))
        else:
            start = request.getfixturevalue("start_orthanc")
            peer = await asyncio.to_thread(start)
            backend = scu(peer.ae_title, peer.port)
            orthanc = DICOMwebClient(f"http://127.0.0.1:{peer.http_port}/dicom-web")
        await backend.start()
        running.push_async_callback(backend.stop, 0.0)
        for each in IMAGES:
            assert (await backend.store_instance(each)).status == 0
        server = HTTPServer(router_of(Qido(backend, maximum_results=4)))
        await server.start("127.0.0.1", 0)
        running.push_async_callback(server.stop)
        host, port = server.addresses[0]
        yield Service(DICOMwebClient(f"http://{host}:{port}"), orthanc)


async def test_studies(service):
    found = await service.call("search_for_studies")
    assert uids(found, "0020000D") == ["1", "2", "3"]
    found = await service.call(
        "search_for_studies", search_filters={"PatientID": "P1"}, fields=["StudyDescription"]
    )
    assert uids(found, "0020000D") == ["1", "2"]
    assert {each["00100010"]["Value"][0]["Alphabetic"] for each in found} == {"Müller^P1"}
    found = await service.call(
        "search_for_studies", search_filters={"StudyDate": "20240102-", "PatientName": "M*2"}
    )
    assert uids(found, "0020000D") == ["3"]
    assert await service.call("search_for_studies", search_filters={"PatientID": "nobody"}) == []


async def test_series_and_instances(service):
    study = f"{ROOT}.1"
    found = await service.call("search_for_series", study)
    assert uids(found, "0020000E") == ["1.1", "1.2"]
    found = await service.call("search_for_series", study, search_filters={"Modality": "MR"})
    assert uids(found, "0020000E") == ["1.2"]
    found = await service.call("search_for_instances", study, f"{study}.1")
    assert uids(found, "00080018") == ["1.1.1", "1.1.2", "1.1.3"]
    assert {each["00080016"].get("Value", [CT])[0] for each in found} == {
        CT
    }  # dcmqrscp does not know it here


async def test_searches_across_studies(service):
    found = await service.call("search_for_series", search_filters={"PatientID": "P1"})
    assert uids(found, "0020000E") == ["1.1", "1.2", "2.1"]
    found = await service.call("search_for_instances", f"{ROOT}.1")
    assert uids(found, "00080018") == ["1.1.1", "1.1.2", "1.1.3", "1.2.1"]
    found = await service.call("search_for_instances", search_filters={"PatientID": "P2"})
    assert uids(found, "00080018") == ["3.1.1", "3.1.2"]
    assert {each["00100020"]["Value"][0] for each in found} == {"P2"}


async def test_pages(service):
    """Four results at a time; the client asks for the rest by offset."""
    found = await service.call("search_for_instances", get_remaining=True)
    assert len(found) == len({each["00080018"]["Value"][0] for each in found}) == len(IMAGES)
    first = await service.call("search_for_studies", limit=1)
    others = await service.call("search_for_studies", limit=2, offset=1)
    assert uids(first + others, "0020000D") == ["1", "2", "3"]


async def test_the_same_as_orthanc_finds(service):
    if service.orthanc is None:
        return
    for method, arguments, key in (
        ("search_for_studies", (), "0020000D"),
        ("search_for_series", (f"{ROOT}.1",), "0020000E"),
        ("search_for_instances", (f"{ROOT}.3", f"{ROOT}.3.1"), "00080018"),
    ):
        ours = await service.call(method, *arguments)
        theirs = await asyncio.to_thread(getattr(service.orthanc, method), *arguments)
        assert uids(ours, key) == uids(theirs, key)
        ours.sort(key=lambda each: each[key]["Value"])
        theirs.sort(key=lambda each: each[key]["Value"])
        for one, other in zip(ours, theirs, strict=True):
            for attribute in (
                "00100010",
                "00100020",
                "00080020",
                "00080060",
                "00201208",
                "00201209",
                "00280010",
            ):
                if attribute in one:
                    assert one[attribute] == other[attribute]
