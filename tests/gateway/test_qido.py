"""QIDO-RS over the local archive, and over a PACS: paths, parameters, what is returned, statuses, streaming."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from harmony.archive.files import FileStore
from harmony.archive.indexing import ArchiveIndex
from harmony.archive.levels import Level, level_of
from harmony.dicom.json_model import Model, encode_data_set
from harmony.dimse import DimseError, Instance, Services
from harmony.dimse.scp import Server
from harmony.gateway.backend import Query
from harmony.gateway.backend_errors import BACKEND_ERRORS, backend_failure
from harmony.gateway.config import Backend, Origin, Target
from harmony.gateway.dicom_scu import DicomSCU
from harmony.gateway.local_archive import LocalArchive
from harmony.gateway.options import DicomScpOptions, DicomScuOptions
from harmony.gateway.qido import Qido
from harmony.gateway.query_retrieve import QueryRetrieve
from harmony.http import HTTPError, HTTPServer, Request, Response, Router
from harmony.ul.negotiation import AcceptorPolicy

CT, MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"
IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
ROOT = "http://gateway/dicom"
PATIENCE_S = 20.0


def image(study: str, series: str, number: int, **attributes: Any) -> Instance:
    """Series and instance UIDs continue that of the study."""
    uid = f"{study}.{series}.{number}"
    model: dict[str, Any] = {
        "SOPClassUID": CT, "SOPInstanceUID": uid, "StudyInstanceUID": study, "SeriesInstanceUID": f"{study}.{series}",
        "InstanceNumber": number, "SeriesNumber": int(series), "Modality": "CT", "Rows": 4, "Columns": 2,
        "BitsAllocated": 8, **attributes,
    }  # fmt: skip
    model = {name: {"Value": value if isinstance(value, list) else [value]} for name, value in model.items()}
    return Instance(model["SOPClassUID"]["Value"][0], uid, EXPLICIT, encode_data_set(model, EXPLICIT))


MUELLER = {
    "PatientName": "Müller^Ännchen", "PatientID": "P1", "PatientBirthDate": "19700102", "PatientSex": "F",
    "StudyDate": "20240105", "StudyTime": "2330", "AccessionNumber": "A1", "StudyID": "S1",
    "ReferringPhysicianName": "House^Gregory", "StudyDescription": "Schädel", "TimezoneOffsetFromUTC": "+0100",
}  # fmt: skip
YAMADA = {
    "PatientName": {"Alphabetic": "Yamada^Tarou", "Ideographic": "山田^太郎"}, "PatientID": "P2",
    "StudyDate": "20240210", "StudyTime": "0800", "AccessionNumber": "A2",
}  # fmt: skip
REQUEST = {
    "00400007": {"vr": "LO", "Value": ["head"]},
    "00400009": {"vr": "SH", "Value": ["SPS1"]},
    "00401001": {"vr": "SH", "Value": ["RP1"]},
}

IMAGES = [
    image("1.1", "1", 1, **MUELLER, RequestAttributesSequence=REQUEST, SeriesDescription="axial"),
    image("1.1", "1", 2, **MUELLER, RequestAttributesSequence=REQUEST, SeriesDescription="axial"),
    image("1.1", "2", 1, **MUELLER, SOPClassUID=MR, Modality="MR", NumberOfFrames=3),
    image("1.2", "1", 1, **YAMADA),
    image("1.3", "1", 1, PatientID="P3", StudyDate="20240210", StudyTime="1200"),
]


def add_routes(router: Router, qido: Qido) -> None:
    for pattern, level in (
        ("/studies", Level.STUDY),
        ("/series", Level.SERIES),
        ("/instances", Level.IMAGE),
        ("/studies/{study}", Level.STUDY),
        ("/studies/{study}/series", Level.SERIES),
        ("/studies/{study}/instances", Level.IMAGE),
        ("/studies/{study}/series/{series}", Level.SERIES),
        ("/studies/{study}/series/{series}/instances", Level.IMAGE),
        ("/studies/{study}/series/{series}/instances/{instance}", Level.IMAGE),
    ):

        async def answer(request: Request, level: Level = level) -> Response:
            found = request.path_parameters
            try:
                return await qido.search(
                    request,
                    level,
                    study_uid=found.get("study"),
                    series_uid=found.get("series"),
                    instance_uid=found.get("instance"),
                    root=ROOT,
                )
            except BACKEND_ERRORS as error:
                return backend_failure(error, "PACS").response()
            except HTTPError as error:
                return error.response()

        router.add("GET", pattern, answer)


@dataclass
class Answer:
    status: int
    headers: Any
    content: Any
    chunks: int

    @property
    def warnings(self) -> list[str]:
        return self.headers.get_all("warning")

    def values(self, tag: str) -> list[Any]:
        """Of each result, the first value of an attribute, None where there is none."""
        assert self.status == 200, self.content
        return [each.get(tag, {}).get("Value", [None])[0] for each in self.content]


class Searching:
    """What a client of the service can do. The backend may be replaced."""

    def __init__(self, backend: Any, **options: Any) -> None:
        self.backend = backend
        self.router = Router()
        add_routes(self.router, Qido(backend, **options))

    async def __call__(self, target: str, accept: str = "application/dicom+json") -> Answer:
        async with asyncio.timeout(PATIENCE_S):
            response = await self.router(Request("GET", target, headers={"Accept": accept}))
            body = response.body
            if not isinstance(body, bytes) and body is not None:
                chunks = [bytes(chunk) async for chunk in body]  # type: ignore[union-attr]
                await body.aclose()  # type: ignore[union-attr]
            else:
                chunks = [body] if body else []
        whole = b"".join(chunks)
        return Answer(response.status, response.headers, json.loads(whole) if whole else None, len(chunks))

    async def found(self, target: str, tag: str) -> list[Any]:
        answer = await self(target)
        return [] if answer.status == 204 else sorted(answer.values(tag))


# Where the images are


@pytest.fixture
async def archive(tmp_path: Path) -> AsyncIterator[LocalArchive]:
    index = ArchiveIndex(tmp_path)
    index.open()
    archive = LocalArchive(FileStore(tmp_path, minimum_free_bytes=0), index)
    await archive.start()
    for each in IMAGES:
        assert (await archive.store_instance(each)).status == 0
    yield archive
    await archive.stop(0.0)
    index.close()


def configured(port: int) -> Backend:
    return Backend(
        name="pacs",
        service="dicom_scu",
        options=DicomScuOptions(aet="PACS", local_aet="HARMONY"),
        target=Target("127.0.0.1", port, "dicom", "", False, None, PATIENCE_S, 3),
        authentication=None,
        origin=Origin(Path("config.toml"), "backends.pacs"),
    )


@contextlib.asynccontextmanager
async def pacs_of(services: Services, policy: AcceptorPolicy | None = None) -> AsyncIterator[DicomSCU]:
    """A backend in front of an SCP in this process."""
    server = Server()
    server.add(services, policy or AcceptorPolicy())
    await server.listen("127.0.0.1", 0)
    backend = DicomSCU(configured(server.port))
    await backend.start()
    try:
        yield backend
        assert backend.pool.lent == 0
    finally:
        await backend.stop(0.0)
        await server.drain(0.0)


@pytest.fixture
async def pacs(archive: LocalArchive) -> AsyncIterator[DicomSCU]:
    """The archive behind DIMSE."""
    services = Services()
    query_retrieve = QueryRetrieve(archive, DicomScpOptions(local_aet="PACS"))
    query_retrieve.register(services)
    policy = AcceptorPolicy(extended_negotiation=query_retrieve.extended_negotiation)
    async with pacs_of(services, policy) as backend:
        yield backend


@pytest.fixture
def search(archive: LocalArchive) -> Searching:
    return Searching(archive)


@pytest.fixture(params=["archive", "pacs"])
def either(request: pytest.FixtureRequest) -> Searching:
    return Searching(request.getfixturevalue(request.param))


@dataclass
class Scripted:
    """A backend that yields what is in `script`, raises its exceptions and waits for its events."""

    script: list[Any]
    matches_as_asked: bool = True
    queries: list[Query] = field(default_factory=list)
    given: int = 0
    closed: int = 0

    async def query(self, query: Query) -> AsyncIterator[Any]:
        self.queries.append(query)
        try:
            for each in self.script:
                if isinstance(each, Exception):
                    raise each
                if isinstance(each, asyncio.Event):
                    await each.wait()
                    continue
                self.given += 1
                yield each
        finally:
            self.closed += 1


def study(number: int, size: int = 0) -> dict[str, Any]:
    found = {"0020000D": {"vr": "UI", "Value": [f"1.2.{number}"]}}
    return {"00081030": {"vr": "LO", "Value": ["x" * size]}} | found if size else found


# Resources


@pytest.mark.parametrize(
    ("path", "tag", "expected"),
    [
        ("/studies", "0020000D", ["1.1", "1.2", "1.3"]),
        ("/studies/1.1", "0020000D", ["1.1"]),
        ("/series", "0020000E", ["1.1.1", "1.1.2", "1.2.1", "1.3.1"]),
        ("/studies/1.1/series", "0020000E", ["1.1.1", "1.1.2"]),
        ("/studies/1.1/series/1.1.2", "0020000E", ["1.1.2"]),
        ("/instances", "00080018", ["1.1.1.1", "1.1.1.2", "1.1.2.1", "1.2.1.1", "1.3.1.1"]),
        ("/studies/1.1/instances", "00080018", ["1.1.1.1", "1.1.1.2", "1.1.2.1"]),
        ("/studies/1.1/series/1.1.1/instances", "00080018", ["1.1.1.1", "1.1.1.2"]),
        ("/studies/1.1/series/1.1.1/instances/1.1.1.2", "00080018", ["1.1.1.2"]),
        ("/studies/1.9", "0020000D", []),
        ("/studies/1.9/series", "0020000E", []),
        ("/studies/1.1/series/1.2.1/instances", "00080018", []),
    ],
)
async def test_every_resource(either, path, tag, expected):
    assert await either.found(path, tag) == expected


# PS3.18 Tables 10.6.3-3 to 10.6.3-5, typed from there


def only_where_known(found: dict[str, Any]) -> None:
    """Take out what C-FIND does not ask for: Instance Availability and Timezone Offset From UTC."""
    assert found.pop("00080056", None) in (None, {"vr": "CS", "Value": ["ONLINE"]})
    assert found.pop("00080201", None) in (None, {"vr": "SH", "Value": ["+0100"]})


async def test_what_is_known_of_the_archive_alone(search):
    (found,) = (await search("/studies?PatientID=P1")).content
    assert (found["00080056"]["Value"], found["00080201"]["Value"]) == (["ONLINE"], ["+0100"])


async def test_what_a_study_is_returned_with(either):
    (found,) = (await either("/studies?PatientID=P1")).content
    only_where_known(found)
    assert found == {
        "00080020": {"vr": "DA", "Value": ["20240105"]},
        "00080030": {"vr": "TM", "Value": ["2330"]},
        "00080050": {"vr": "SH", "Value": ["A1"]},
        "00080061": {"vr": "CS", "Value": ["CT", "MR"]},
        "00080090": {"vr": "PN", "Value": [{"Alphabetic": "House^Gregory"}]},
        "00081030": {"vr": "LO", "Value": ["Schädel"]},
        "00081190": {"vr": "UR", "Value": ["http://gateway/dicom/studies/1.1"]},
        "00100010": {"vr": "PN", "Value": [{"Alphabetic": "Müller^Ännchen"}]},
        "00100020": {"vr": "LO", "Value": ["P1"]},
        "00100030": {"vr": "DA", "Value": ["19700102"]},
        "00100040": {"vr": "CS", "Value": ["F"]},
        "0020000D": {"vr": "UI", "Value": ["1.1"]},
        "00200010": {"vr": "SH", "Value": ["S1"]},
        "00201206": {"vr": "IS", "Value": [2]},
        "00201208": {"vr": "IS", "Value": [3]},
    }


async def test_what_a_series_is_returned_with(either):
    (found,) = (await either("/studies/1.1/series?SeriesNumber=1")).content
    only_where_known(found)
    assert found == {
        "00080060": {"vr": "CS", "Value": ["CT"]},
        "0008103E": {"vr": "LO", "Value": ["axial"]},
        "00081190": {"vr": "UR", "Value": ["http://gateway/dicom/studies/1.1/series/1.1.1"]},
        "0020000D": {"vr": "UI", "Value": ["1.1"]},
        "0020000E": {"vr": "UI", "Value": ["1.1.1"]},
        "00200011": {"vr": "IS", "Value": [1]},
        "00201209": {"vr": "IS", "Value": [2]},
        "00400275": {
            "vr": "SQ",
            "Value": [{tag: element for tag, element in REQUEST.items() if tag != "00400007"}],
        },
    }


async def test_what_an_instance_is_returned_with(either):
    (found,) = (await either("/studies/1.1/series/1.1.2/instances")).content
    only_where_known(found)
    assert found == {
        "00080016": {"vr": "UI", "Value": [MR]},
        "00080018": {"vr": "UI", "Value": ["1.1.2.1"]},
        "00081190": {
            "vr": "UR",
            "Value": ["http://gateway/dicom/studies/1.1/series/1.1.2/instances/1.1.2.1"],
        },
        "0020000D": {"vr": "UI", "Value": ["1.1"]},
        "0020000E": {"vr": "UI", "Value": ["1.1.2"]},
        "00200013": {"vr": "IS", "Value": [1]},
        "00280008": {"vr": "IS", "Value": [3]},
        "00280010": {"vr": "US", "Value": [4]},
        "00280011": {"vr": "US", "Value": [2]},
        "00280100": {"vr": "US", "Value": [8]},
    }


async def test_what_has_no_value_is_returned_without_one(either):
    (found,) = (await either("/studies?StudyInstanceUID=1.3")).content
    assert found["00100010"] == {"vr": "PN"}
    assert found["00080050"] == {"vr": "SH"}
    assert "00081030" not in found  # only where it is known


async def test_levels_that_the_path_leaves_open_are_returned_as_well(either):
    for path in ("/series", "/instances"):
        for found in (await either(path)).content:
            assert {"00080060", "00200011", "00201209"} <= found.keys()  # Table 10.6.3-4
            assert {"00080020", "00100020", "00201206", "00201208"} <= found.keys()  # Table 10.6.3-3
    for found in (await either("/studies/1.1/instances")).content:
        assert {"00080060", "00080016"} <= found.keys()
        assert "00100020" not in found


async def test_groups_of_a_person_name(either):
    assert await either.found("/studies?PatientID=P2&PatientName=" + quote("*太郎"), "0020000D") == ["1.2"]
    (found,) = (await either("/studies?StudyInstanceUID=1.2")).content
    assert found["00100010"]["Value"] == [{"Alphabetic": "Yamada^Tarou", "Ideographic": "山田^太郎"}]
    assert "00080005" not in found


# Matching


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", ["1.1", "1.2", "1.3"]),
        ("PatientID=P1", ["1.1"]),
        ("00100020=P1", ["1.1"]),
        ("patientid=P1", ["1.1"]),
        ("PatientName=M*", ["1.1", "1.3"]),  # what is unknown about 1.3 matches (PS3.4 §C.2.2.1.2)
        ("PatientName=M%C3%BCller%5E%C3%84nnchen", ["1.1", "1.3"]),
        ("PatientID=P?", ["1.1", "1.2", "1.3"]),
        ("PatientID=P1&PatientID=P2", ["1.1", "1.2"]),
        ("PatientID=P1%5CP2", ["1.1", "1.2"]),
        ("StudyInstanceUID=1.1,1.3", ["1.1", "1.3"]),
        ("StudyInstanceUID=1.1&StudyInstanceUID=1.3", ["1.1", "1.3"]),
        ("StudyInstanceUID=1.1%5C1.3", ["1.1", "1.3"]),
        ("StudyInstanceUID=*", ["1.1", "1.2", "1.3"]),
        ("StudyInstanceUID=", ["1.1", "1.2", "1.3"]),
        ("StudyDate=20240201-", ["1.2", "1.3"]),
        ("StudyDate=-20240131", ["1.1"]),
        ("StudyDate=20240105", ["1.1"]),
        ("ModalitiesInStudy=MR", ["1.1"]),
        ("Modality=MR", ["1.1"]),
        ("ModalitiesInStudy=MR,SR", ["1.1"]),
        ("SOPClassUID=" + MR, ["1.1"]),
        ("AccessionNumber=A2&PatientID=P2", ["1.2"]),
        ("PatientID=nobody", []),
        # From 20:00 of the first day to 09:00 of the last, not every evening (PS3.18 §8.3.4.3)
        ("StudyDate=20240105-20240210&StudyTime=2000-0900", ["1.1", "1.2"]),
        ("&&PatientID=P1&", ["1.1"]),
    ],
)
async def test_matching_of_studies(either, query, expected):
    assert await either.found(f"/studies?{query}", "0020000D") == expected


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/studies/1.1/series?Modality=MR", ["1.1.2"]),
        ("/series?Modality=CT,MR&PatientID=P1", ["1.1.1", "1.1.2"]),
        ("/series?SeriesInstanceUID=1.2.1,1.3.1", ["1.2.1", "1.3.1"]),
        ("/series?StudyInstanceUID=1.1,1.2&SeriesNumber=1", ["1.1.1", "1.2.1"]),
        (
            "/series?SeriesInstanceUID=1.1.1&RequestAttributesSequence.ScheduledProcedureStepID=SPS1",
            ["1.1.1"],
        ),
        ("/studies/1.1/series?SeriesNumber=1&00400275.00400009=SPS2", []),
        ("/studies/1.1/series?SeriesNumber=1&00400275.RequestedProcedureID=RP*", ["1.1.1"]),
        ("/studies/1.1/series?StudyInstanceUID=1.1,1.2", ["1.1.1", "1.1.2"]),
    ],
)
async def test_matching_of_series(either, target, expected):
    assert await either.found(target, "0020000E") == expected


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/instances?PatientID=P2", ["1.2.1.1"]),
        ("/instances?SOPInstanceUID=1.1.1.2", ["1.1.1.2"]),
        ("/instances?SeriesInstanceUID=1.1.1&InstanceNumber=2", ["1.1.1.2"]),
        ("/studies/1.1/instances?InstanceNumber=1", ["1.1.1.1", "1.1.2.1"]),
        ("/studies/1.1/series/1.1.1/instances?InstanceNumber=1,2", ["1.1.1.1", "1.1.1.2"]),
        ("/studies/1.1/series/1.1.1/instances?Rows=5", []),
    ],
)
async def test_matching_of_instances(either, target, expected):
    assert await either.found(target, "00080018") == expected


async def test_fuzzy_matching(search, pacs):
    assert await search.found("/studies?PatientName=Muller%5EAnnchen&PatientID=P1", "0020000D") == []
    target = "/studies?PatientName=Annchen%20Muler&PatientID=P1&fuzzymatching=true"
    answer = await search(target)
    assert (answer.values("0020000D"), answer.warnings) == (["1.1"], [])
    assert "fuzzymatching parameter is left to the PACS" in (await Searching(pacs)(target)).warnings[0]


async def test_empty_value_matching(search):
    assert await search.found("/studies?AccessionNumber=%22%22&emptyvaluematching=true", "0020000D") == [
        "1.3"
    ]
    assert await search.found("/studies?StudyDescription=%22%22&emptyvaluematching=true", "0020000D") == [
        "1.2",
        "1.3",
    ]


async def test_multiple_value_matching(search):
    both = "/studies?ModalitiesInStudy=CT,MR"
    assert await search.found(both, "0020000D") == ["1.1", "1.2", "1.3"]
    assert await search.found(both + "&multiplevaluematching=true", "0020000D") == ["1.1"]
    assert await search.found(both + "&multivaluematching=true", "0020000D") == ["1.1"]


async def test_a_time_zone(search):
    """20240105 23:30 at +0100 is the next day further east."""
    target = "/studies?StudyDate=20240106&TimezoneOffsetFromUTC="
    assert await search.found(target + "%2B0900", "0020000D") == ["1.1"]
    assert await search.found(target + "%2B0100", "0020000D") == []
    for unencoded in ("+0900", "%200900"):
        assert await search.found(target + unencoded, "0020000D") == ["1.1"]


async def test_unknown_values_do_not_match_where_that_is_wanted(archive):
    search = Searching(archive, match_empty_values=False)
    assert await search.found("/studies?PatientName=M*", "0020000D") == ["1.1"]


# What to return


async def test_includefield(either):
    target = "/studies?PatientID=P1&includefield=00081030,SOPClassesInStudy&includefield=Rows"
    (found,) = (await either(target)).content
    assert sorted(found["00080062"]["Value"]) == [CT, MR]
    assert "00280010" not in found  # of a level below


async def test_includefield_of_a_level_above(either):
    answer = await either(
        "/studies/1.1/series/1.1.2/instances?includefield=PatientName,Modality&includefield="
    )
    assert answer.values("00100010") == [{"Alphabetic": "Müller^Ännchen"}]
    assert answer.values("00080060") == ["MR"]


async def test_includefield_that_is_not_known_is_returned_empty(search):
    (found,) = (await search("/studies/1.3/series?includefield=BodyPartExamined")).content
    assert found["00180015"] == {"vr": "CS"}


async def test_includefield_of_a_sequence(search):
    target = "/studies/1.1/series?SeriesNumber=1&includefield="
    (found,) = (await search(target + "RequestAttributesSequence")).content
    assert found["00400275"]["Value"] == [REQUEST]
    (found,) = (await search(target + "00400275.00400007")).content
    assert found["00400275"]["Value"] == [{"00400007": {"vr": "LO", "Value": ["head"]}}]


async def test_all_attributes(either):
    (found,) = (await either("/studies/1.1/series/1.1.2/instances?includefield=all")).content
    assert found["00100010"]["Value"] == [{"Alphabetic": "Müller^Ännchen"}]
    assert {"00080060", "00280010", "0020000E"} <= found.keys()
    assert not found.keys() & {"00080005", "00080052"}
    for (key, element), after in zip(list(found.items())[:-1], list(found)[1:], strict=True):
        assert key < after
        assert element["vr"]


async def test_bulk_data_are_in_no_answer():
    match = study(1) | {"60003000": {"vr": "OW", "InlineBinary": "AAAA"}}
    (found,) = (await Searching(Scripted([match]))("/studies?includefield=all")).content
    assert "60003000" not in found


async def test_private_attributes(archive):
    model = {
        "SOPClassUID": {"Value": [CT]}, "SOPInstanceUID": {"Value": ["1.4.1.1"]},
        "StudyInstanceUID": {"Value": ["1.4"]}, "SeriesInstanceUID": {"Value": ["1.4.1"]},
        "00231100": {"vr": "LO", "Value": ["ours"]}, "00230011": {"vr": "LO", "Value": ["AcmeCompany"]},
    }  # fmt: skip
    await archive.store_instance(Instance(CT, "1.4.1.1", EXPLICIT, encode_data_set(model, EXPLICIT)))
    target = "/studies/1.4/series/1.4.1/instances?00230010=AcmeCompany&includefield=00231000"
    (found,) = (await Searching(archive)(target)).content
    assert found["00231000"] == {"vr": "LO", "Value": ["ours"]}
    assert found["00230010"] == {"vr": "LO", "Value": ["AcmeCompany"]}


async def test_what_a_pacs_answers_unasked_is_left_out():
    match = study(1) | {
        "00104000": {"vr": "LT", "Value": ["x"]},
        "00080005": {"vr": "CS", "Value": ["ISO_IR 100"]},
    }
    (found,) = (await Searching(Scripted([match]))("/studies")).content
    assert not found.keys() & {"00104000", "00080005"}


# Pages


async def test_pages_cover_everything_once(either):
    everything = (await either("/instances")).values("00080018")
    pages = []
    for offset in range(0, 6, 2):
        answer = await either(f"/instances?limit=2&offset={offset}")
        pages += answer.values("00080018")
        assert bool(answer.warnings) == (offset < 4)
    assert pages == everything
    assert len(set(pages)) == 5
    assert (await either("/instances?offset=5")).status == 204


async def test_a_warning_says_that_there_is_more(either):
    answer = await either("/studies?limit=2")
    assert len(answer.content) == 2
    assert answer.warnings == [
        f'299 {ROOT} "There are additional results that can be requested with offset."'
    ]
    assert (await either("/studies?limit=3")).warnings == []


async def test_no_more_than_the_maximum(archive):
    search = Searching(archive, maximum_results=2)
    for target in ("/studies", "/studies?limit=100"):
        answer = await search(target)
        assert (len(answer.content), len(answer.warnings)) == (2, 1)
    assert (await search("/studies?offset=2")).warnings == []


async def test_a_limit_of_nothing(search):
    assert (await search("/studies?limit=0")).status == 204


async def test_a_long_answer_says_that_it_may_be_cut():
    """Nobody knows when the status leaves."""
    backend = Scripted([study(number, 4000) for number in range(500)])
    answer = await Searching(backend, maximum_results=400)("/studies")
    assert len(answer.content) == 400
    assert "at most 400 results" in answer.warnings[0]
    assert (backend.given, backend.closed) == (401, 1)


# Statuses


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("/studies?PatientNaem=x", "'PatientNaem' is no DICOM attribute"),
        ("/studies?0010002G=x", "'0010002G' is no DICOM attribute"),
        ("/studies?RequestAttributesSequence.Nothing=x", "is no DICOM attribute"),
        ("/series?PatientID.StudyID=x", "'PatientID.StudyID' goes into what is no sequence"),
        ("/series?RequestAttributesSequence=x", "'RequestAttributesSequence' is a sequence"),
        ("/studies?StudyDate=yesterday", "'StudyDate': not a date"),
        ("/studies?00080030=25h", "'00080030': not a date, time"),
        ("/studies?StudyInstanceUID=1.2*", "'StudyInstanceUID': wild cards are not defined"),
        ("/instances?Rows=many", "'Rows' has a value that is no US"),
        ("/series?RequestAttributesSequence.00400244=x", "'RequestAttributesSequence.00400244'"),
        ("/studies?limit=-1", "'limit' must be a whole number"),
        ("/studies?limit=ten", "'limit' must be a whole number"),
        ("/studies?limit=1&limit=2", "'limit' is given twice"),
        ("/studies?offset=1.5", "'offset' must be a whole number"),
        ("/studies?fuzzymatching=maybe", "'fuzzymatching' must be true or false"),
        ("/studies?includefield=PatientNaem", "'includefield' has what is no attribute"),
        ("/studies?includefield=PatientName.PatientID", "'includefield' has a path into what is no sequence"),
        ("/studies?PatientID=1&00100020=2", "is given twice"),
        ("/studies?TimezoneOffsetFromUTC=CET", "'TimezoneOffsetFromUTC' must be an offset"),
        ("/studies/1.1/series?StudyInstanceUID=1.2", "differs from the one in the path"),
        ("/studies/abc/series", "the study in the path is no UID"),
        ("/studies?00020010=1.2", "'00020010' is no attribute of a data set"),
    ],
)
async def test_what_has_no_meaning_is_refused(either, target, reason):
    answer = await either(target)
    assert answer.status == 400
    assert reason in answer.content["error"]


async def test_a_refusal_does_not_repeat_values(search):
    answer = await search("/studies?StudyDate=Doe%5EJohn")
    assert (answer.status, "Doe" in str(answer.content)) == (400, False)


@pytest.mark.parametrize(
    ("parameter", "warning"),
    [
        ("orderby=x", "The parameter orderby is not known, and was ignored."),
        ("_=17", "The parameter _ is not known, and was ignored."),
        ("%0D%0Ax%22=1", "A parameter is not known, and was ignored."),
        (
            "SeriesNumber=7",
            "The parameter SeriesNumber is below the level STUDY of this search, and was ignored.",
        ),
        (
            "InstanceAvailability=OFFLINE",
            "The parameter InstanceAvailability cannot be matched, and was ignored.",
        ),
    ],
)
async def test_what_is_ignored_is_said(either, parameter, warning):
    answer = await either(f"/studies?{parameter}&PatientID=P1")
    assert answer.values("0020000D") == ["1.1"]
    assert answer.warnings == [f'299 {ROOT} "{warning}"']


async def test_no_match(archive):
    answer = await Searching(archive)("/studies?PatientID=nobody&_=1")
    assert (answer.status, answer.content, len(answer.warnings)) == (204, None, 1)
    answer = await Searching(archive, empty_status=200)("/studies?PatientID=nobody")
    assert (answer.status, answer.content) == (200, [])
    assert answer.headers.get("content-type") == "application/dicom+json"


@pytest.mark.parametrize(
    ("accept", "status"),
    [
        ("*/*", 200),
        ("application/json", 200),
        ('multipart/related; type="application/dicom+xml", application/dicom+json;q=0.1', 200),
        ('multipart/related; type="application/dicom+xml"', 406),
        ("text/html", 406),
    ],
)
async def test_media_types(search, accept, status):
    answer = await search("/studies", accept=accept)
    assert answer.status == status
    if status == 200:
        assert answer.headers.get("content-type") == "application/dicom+json"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (DimseError(0xA700, "Doe^John"), 413),
        (DimseError(0xC001, "Doe^John"), 502),
        (TimeoutError("too slow"), 504),
        (OSError(5, "I/O error"), 500),
    ],
)
async def test_failures_before_the_first_match(error, status):
    backend = Scripted([error])
    answer = await Searching(backend)("/studies")
    assert (answer.status, backend.closed) == (status, 1)
    assert "Doe" not in str(answer.content)


async def test_a_failure_that_is_known_before_the_status_leaves():
    answer = await Searching(Scripted([study(1), study(2), DimseError(0xC001)]))("/studies")
    assert answer.status == 502


# Streaming


@contextlib.asynccontextmanager
async def serving(backend: Any) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection on which /studies has been asked for."""
    server = HTTPServer(Searching(backend).router)
    await server.start("127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.addresses[0], limit=1 << 24)
    writer.write(b"GET /studies HTTP/1.1\r\nHost: gateway\r\n\r\n")
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        await server.stop()


async def test_a_failure_in_the_middle_does_not_look_complete():
    backend = Scripted([*(study(number, 4000) for number in range(100)), DimseError(0xC001)])
    received = b""
    async with serving(backend) as (reader, _):
        with contextlib.suppress(ConnectionError):
            while chunk := await reader.read(65536):
                received += chunk
    assert received.startswith(b"HTTP/1.1 200")
    assert not received.endswith(b"0\r\n\r\n")
    assert backend.closed == 1


async def test_matches_leave_before_the_search_ends():
    end = asyncio.Event()
    async with serving(Scripted([*(study(number, 4000) for number in range(100)), end])) as (reader, _):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        await reader.readuntil(b'"1.2.99"')
        end.set()
        assert (await reader.readuntil(b"0\r\n\r\n")).endswith(b"]\r\n0\r\n\r\n")


async def test_a_client_that_leaves_ends_the_search(until):
    backend = Scripted([*(study(number, 4000) for number in range(100)), asyncio.Event()])
    async with serving(backend) as (reader, writer):
        await reader.readuntil(b'"1.2.99"')
        writer.transport.abort()
        await until(lambda: backend.closed)


async def test_a_client_that_does_not_read_is_waited_for(until):
    backend = Scripted([study(number, 60_000) for number in range(5000)])
    async with serving(backend) as (reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        before = -1
        while before != backend.given:  # until nothing moves any more
            before = backend.given
            for _ in range(50):
                await asyncio.sleep(0)
        assert backend.given < 5000
        writer.transport.abort()
        await until(lambda: backend.closed)


# A PACS that knows no relational queries


class Hierarchical(LocalArchive):
    """It refuses what PS3.4 §C.4.1.3.1 does not have: levels above with anything but one unique key."""

    def __init__(self, archive: LocalArchive) -> None:
        super().__init__(archive.files, archive.index)
        self.asked: list[str] = []

    async def query(self, query: Query) -> AsyncGenerator[Model, None]:
        self.asked.append(query.level.value)
        levels = list(Level)
        above = {"STUDY": (), "SERIES": ("0020000D",), "IMAGE": ("0020000D", "0020000E")}[query.level.value]
        if not all(len(query.identifier[key].get("Value", ())) == 1 for key in above):
            raise DimseError(0xA900)
        for key in query.identifier:
            within = levels.index(level_of(key)) >= levels.index(query.level) or query.level is Level.STUDY
            if not within and key not in above and key != "00080201":
                raise DimseError(0xA900)
        async with contextlib.aclosing(super().query(query)) as matches:
            async for match in matches:
                yield match


@pytest.fixture
async def hierarchical(archive: LocalArchive) -> AsyncIterator[tuple[DicomSCU, list[str]]]:
    """A backend in front of it, and the levels that it is asked at."""
    strict = Hierarchical(archive)
    services = Services()
    QueryRetrieve(strict, DicomScpOptions(local_aet="PACS")).register(services)
    async with pacs_of(services) as backend:
        yield backend, strict.asked


async def test_relational_searches_descend(hierarchical):
    backend, asked = hierarchical
    search = Searching(backend)
    assert await search.found("/series?PatientID=P1", "0020000E") == ["1.1.1", "1.1.2"]
    assert asked == ["STUDY", "SERIES"]
    asked.clear()
    assert await search.found("/studies/1.1/instances", "00080018") == ["1.1.1.1", "1.1.1.2", "1.1.2.1"]
    assert asked == ["SERIES", "IMAGE", "IMAGE"]
    asked.clear()
    assert await search.found("/instances?Modality=MR", "00080018") == ["1.1.2.1"]
    assert asked == ["STUDY", "SERIES", "SERIES", "SERIES", "IMAGE"]
    (found,) = (await search("/instances?Modality=MR")).content
    assert found["00100020"]["Value"] == ["P1"]


async def test_an_interval_of_a_pacs_that_matches_dates_and_times_apart(hierarchical):
    search = Searching(hierarchical[0])
    evening_to_morning = "StudyDate=20240105-20240210&StudyTime=2000-0900"
    assert await search.found(f"/studies?{evening_to_morning}", "0020000D") == ["1.1", "1.2"]
    pages = [await search(f"/studies?{evening_to_morning}&limit=1&offset={offset}") for offset in (0, 1)]
    assert sorted(uid for page in pages for uid in page.values("0020000D")) == ["1.1", "1.2"]
    assert [len(page.warnings) for page in pages] == [1, 0]
    assert await search.found(f"/series?{evening_to_morning}&SeriesNumber=1", "0020000E") == [
        "1.1.1",
        "1.2.1",
    ]
    assert await search.found("/studies?StudyTime=2000-2359", "0020000D") == ["1.1"]


async def test_a_descent_goes_no_further_than_is_wanted(hierarchical):
    backend, asked = hierarchical
    answer = await Searching(backend)("/instances?limit=1")
    assert len(answer.content) == 1
    assert len(answer.warnings) == 1
    assert asked.count("IMAGE") <= 2


async def test_a_descent_goes_past_what_is_empty():
    """Studies whose series were deleted; offset and limit count series."""

    class Half(Scripted):
        async def query(self, query: Query) -> AsyncIterator[Any]:
            self.queries.append(query)
            if query.level is Level.STUDY:
                end = None if query.limit is None else query.offset + query.limit
                for number in range(10)[query.offset : end]:
                    yield study(number)
            elif (uid := query.identifier["0020000D"]["Value"][0])[-1] in "579":
                yield {
                    "0020000D": {"vr": "UI", "Value": [uid]},
                    "0020000E": {"vr": "UI", "Value": [uid + ".1"]},
                }

    search = Searching(Half([], matches_as_asked=False))
    assert await search.found("/series", "0020000E") == ["1.2.5.1", "1.2.7.1", "1.2.9.1"]
    for offset, expected, warnings in ((0, ["1.2.5.1"], 1), (1, ["1.2.7.1"], 1), (2, ["1.2.9.1"], 0)):
        answer = await search(f"/series?limit=1&offset={offset}")
        assert (answer.values("0020000E"), len(answer.warnings)) == (expected, warnings)
    assert (await search("/series?limit=1&offset=3")).status == 204


async def test_a_descent_through_too_much():
    backend = Scripted([study(number) for number in range(5000)], matches_as_asked=False)
    answer = await Searching(backend)("/series?Modality=CT")
    assert answer.status == 413
    assert "4096 studies" in answer.content["error"]


# Whatever anyone asks

TEXT = st.characters(
    exclude_characters="\0", exclude_categories=["Cs"]
)  # NUL ends in Request, before any handler
PARAMETERS = st.sampled_from(
    ["PatientName", "PatientID", "00100020", "StudyDate", "StudyTime", "ModalitiesInStudy", "StudyInstanceUID",
     "SeriesInstanceUID", "Modality", "InstanceNumber", "Rows", "PixelData", "TimezoneOffsetFromUTC", "00230010",
     "00231002", "RequestAttributesSequence.ScheduledProcedureStepID", "00400275", "00400275.00400009",
     "00400275.00400275.00400009", "00080005", "00081190", "includefield", "limit", "offset", "fuzzymatching",
     "emptyvaluematching", "multiplevaluematching", "accept", "charset", "orderby", "_", "PatientNaem"]
)  # fmt: skip
VALUES = st.one_of(
    st.sampled_from(
        ["", "*", "P1", "1.1", "1.1,1.2", "1.1\\1.2", "20240101-", "-", "2330", "all", "true", "false", "0", "3", '""',
         "CT", "M?*", "山田*", "+0100", "PatientName,00081030", "a=b=c=d", "application/dicom+json", "1e400"]
    ),
    st.text(TEXT, max_size=12),
)  # fmt: skip
PATHS = st.sampled_from(
    ["/studies", "/series", "/instances", "/studies/1.1", "/studies/1.1/series", "/studies/1.1/instances",
     "/studies/1.1/series/1.1.1/instances", "/studies/%20/series"]
)  # fmt: skip


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(path=PATHS, parameters=st.lists(st.tuples(PARAMETERS | st.text(TEXT, max_size=8), VALUES), max_size=4))
@example(
    path="/series", parameters=[("00400275", ""), ("00400275.00400009", "x"), ("includefield", "00400275")]
)
async def test_any_query_string_has_a_documented_answer(either, path, parameters):
    query = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in parameters)
    answer = await either(f"{path}?{query}")
    assert answer.status in (200, 204, 400, 406)
    if answer.status == 200:
        assert answer.content
        assert answer.headers.get("content-type") == "application/dicom+json"
        for found in answer.content:
            assert found["00081190"]["Value"][0].startswith(ROOT + "/studies/1.")
            assert list(found) == sorted(found)
