"""STOW-RS over an archive and over a PACS: what is stored, what is said about it, and what is no instance."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from dicomweb_client import DICOMwebClient
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset

from harmony.archive.files import FileStore
from harmony.archive.indexing import ArchiveIndex
from harmony.archive.levels import Level
from harmony.dicom.json_model import decode_data_set, encode_data_set, text_of
from harmony.dimse import BytesSink, Outcome, Services, serve
from harmony.dimse.part10 import encode_file_meta, read_file_meta
from harmony.gateway.backend import Backend, Query
from harmony.gateway.backend_errors import BACKEND_ERRORS, backend_failure
from harmony.gateway.config import Backend as ConfiguredBackend
from harmony.gateway.config import Origin, Target
from harmony.gateway.dicom_scu import DicomSCU
from harmony.gateway.local_archive import LocalArchive
from harmony.gateway.options import DicomScuOptions
from harmony.gateway.stow import Stow
from harmony.http import HTTPError, HTTPServer, Request, RequestBody, Response, Router
from harmony.http.client import HTTPClient

CT, MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"
IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
JPEG_LOSSLESS, JPEG_BASELINE = "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.50"
FILES = 'multipart/related; type="application/dicom"; boundary=b'
METADATA = 'multipart/related; type="application/dicom+json"; boundary=b'
PATIENCE_S = 20.0
MEBIBYTE = 1024 * 1024


def model(study: str = "1.1", number: int = 1, **attributes: Any) -> dict[str, Any]:
    return {
        "00080016": {"vr": "UI", "Value": [CT]},
        "00080018": {"vr": "UI", "Value": [f"{study}.1.{number}"]},
        "00100010": {"vr": "PN", "Value": [{"Alphabetic": "Müller^Anna"}]},
        "0020000D": {"vr": "UI", "Value": [study]},
        "0020000E": {"vr": "UI", "Value": [f"{study}.1"]},
    } | attributes


def file(study: str = "1.1", number: int = 1, *, pixels: bytes = b"\1\2\3\4", **attributes: Any) -> bytes:
    meta = encode_file_meta(
        transfer_syntax_uid=EXPLICIT,
        media_storage_sop_class_uid=CT,
        media_storage_sop_instance_uid=f"{study}.1.{number}",
    )
    data = encode_data_set(model(study, number, **attributes), EXPLICIT)
    return meta + data + b"\xe0\x7f\x10\x00OW\x00\x00" + len(pixels).to_bytes(4, "little") + pixels


def multipart(*parts: bytes | tuple[str, bytes], content_type: str = "application/dicom") -> bytes:
    """Parts are content, or their header lines and content."""
    body = b""
    for part in parts:
        head, content = part if isinstance(part, tuple) else (f"Content-Type: {content_type}", part)
        body += b"--b\r\n" + head.encode() + (b"\r\n" if head else b"") + b"\r\n" + content + b"\r\n"
    return body + b"--b--\r\n"


def uid(value: str) -> dict[str, Any]:
    return {"vr": "UI", "Value": [value]}


def reference(number: int = 1, *, study: str = "1.1", sop_class: str = CT) -> dict[str, Any]:
    return {"00081150": uid(sop_class), "00081155": uid(f"{study}.1.{number}")}


def url(number: int = 1, *, study: str = "1.1") -> dict[str, Any]:
    where = f"http://gateway/web/studies/{study}/series/{study}.1/instances/{study}.1.{number}"
    return {"00081190": {"vr": "UR", "Value": [where]}}


def failure(status: int) -> dict[str, Any]:
    return {"00081197": {"vr": "US", "Value": [status]}}


def sequence(*items: dict[str, Any]) -> dict[str, Any]:
    return {"vr": "SQ", "Value": list(items)}


STUDY_URL = {"00081190": {"vr": "UR", "Value": ["http://gateway/web/studies/1.1"]}}
NO_URL = {"00081190": {"vr": "UR"}}


@dataclass
class Service:
    """POST /studies and /studies/{study} over a backend."""

    backend: Backend
    stow: Stow
    server: HTTPServer

    async def post(
        self, body: Any, content_type: str | None = FILES, *, study: str | None = None
    ) -> tuple[int, Any]:
        headers = {"Content-Type": content_type} if content_type else {}
        host, port = self.server.addresses[0]
        async with (
            asyncio.timeout(PATIENCE_S),
            HTTPClient(f"http://{host}:{port}", timeout_s=PATIENCE_S) as client,
            client.stream(
                "POST", f"/studies/{study}" if study else "/studies", body=body, headers=headers
            ) as answer,
        ):
            content = json.loads(b"".join([chunk async for chunk in answer]))
            kind = "application/json" if "error" in content else "application/dicom+json"
            assert answer.headers.get("content-type") == kind
            return answer.status, content

    async def found(self, **keys: str) -> list[str]:
        """SOP Instance UIDs that a query finds."""
        identifier = {"00080018": {"vr": "UI"}} | {
            tag: {"vr": "UI", "Value": [each]} for tag, each in keys.items()
        }
        matches = self.backend.query(Query(Level.IMAGE, identifier))
        return sorted([text_of(match, 0x00080018) async for match in matches])

    @property
    def root(self) -> str:
        host, port = self.server.addresses[0]
        return f"http://{host}:{port}"


@contextlib.asynccontextmanager
async def served(
    backend: Backend, *, root: str = "http://gateway/web", **options: Any
) -> AsyncIterator[Service]:
    stow = Stow(backend, **options)

    async def store(request: Request) -> Response:
        try:
            return await stow.store(request, study_uid=request.path_parameters.get("study"), root=root)
        except BACKEND_ERRORS as error:
            raise backend_failure(error, "the backend") from error

    router = Router()
    router.add("POST", "/studies", store)
    router.add("POST", "/studies/{study}", store)
    server = HTTPServer(router)
    await server.start("127.0.0.1", 0)
    try:
        yield Service(backend, stow, server)
    finally:
        await server.stop()


@contextlib.asynccontextmanager
async def archive_at(folder: Path, **options: Any) -> AsyncIterator[LocalArchive]:
    index = ArchiveIndex(folder)
    archive = LocalArchive(FileStore(folder, minimum_free_bytes=0, **options), index)
    await archive.start()
    index.open()
    try:
        yield archive
    finally:
        await archive.stop(0.0)
        index.close()


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    """Over an archive."""
    async with archive_at(tmp_path / "dimse") as archive, served(archive) as service:
        yield service


def stored(service: Service, number: int = 1, *, study: str = "1.1") -> Dataset:
    assert isinstance(service.backend, LocalArchive)
    root = Path(service.backend.files.folder.root)
    return dcmread(root / study / f"{study}.1" / f"{study}.1.{number}.dcm")


@dataclass
class Pacs:
    """Stores CT images, nothing else."""

    outcome: Callable[[str], Outcome] = lambda sop_instance_uid: Outcome(0)
    stored: dict[str, bytes] = field(default_factory=dict)

    def services(self) -> Services:
        services = Services()
        services.store(self._open_sink, sop_classes=[CT])
        return services

    def _open_sink(self, request: Any) -> BytesSink:
        def complete(data: bytes) -> Outcome:
            self.stored[request.affected_sop_instance_uid] = data
            return self.outcome(request.affected_sop_instance_uid)

        return BytesSink(complete, maximum_bytes=1 << 30)


@contextlib.asynccontextmanager
async def scu_of(port: int) -> AsyncIterator[DicomSCU]:
    scu = DicomSCU(
        ConfiguredBackend(
            name="pacs",
            service="dicom_scu",
            options=DicomScuOptions(aet="PACS"),
            target=Target("127.0.0.1", port, "dicom", "", False, None, PATIENCE_S, 0),
            authentication=None,
            origin=Origin(Path("config.toml"), "backends.pacs"),
        )
    )
    await scu.start()
    try:
        yield scu
    finally:
        await scu.stop(0.0)


# Files


async def test_files_in_parts(service: Service) -> None:
    status, answer = await service.post(multipart(file(number=1), file(number=2)))
    items = [reference(number) | url(number) for number in (1, 2)]
    assert (status, answer) == (200, STUDY_URL | {"00081199": sequence(*items)})
    assert await service.found() == ["1.1.1.1", "1.1.1.2"]
    assert stored(service).PixelData == b"\1\2\3\4"
    assert stored(service).PatientName == "Müller^Anna"


@pytest.mark.parametrize("content_type", ["application/dicom", "application/octet-stream", None])
async def test_a_single_file(service: Service, content_type: str | None) -> None:
    status, answer = await service.post(file(), content_type)
    assert (status, answer) == (200, STUDY_URL | {"00081199": sequence(reference() | url())})
    assert await service.found() == ["1.1.1.1"]


async def test_files_of_several_studies_have_no_url_in_common(service: Service) -> None:
    status, answer = await service.post(multipart(file("1.1"), file("1.2")))
    items = [reference(study=study) | url(study=study) for study in ("1.1", "1.2")]
    assert (status, answer) == (200, NO_URL | {"00081199": sequence(*items)})


async def test_the_same_again_is_a_success(service: Service) -> None:
    first = await service.post(multipart(file()))
    assert await service.post(multipart(file())) == first
    assert await service.found() == ["1.1.1.1"]


async def test_a_request_for_one_study_takes_no_other(service: Service) -> None:
    body = multipart(file("1.1"), file("1.2"))
    status, answer = await service.post(body, study="1.1")
    assert status == 202
    assert answer == STUDY_URL | {
        "00081198": sequence(reference(study="1.2") | failure(0xA900)),
        "00081199": sequence(reference() | url()),
    }
    assert await service.found() == ["1.1.1.1"]
    status, answer = await service.post(body, study="1.3")
    failed = [reference(study=study) | failure(0xA900) for study in ("1.1", "1.2")]
    assert (status, answer) == (409, NO_URL | {"00081198": sequence(*failed)})


@pytest.mark.parametrize(
    ("content_type", "head"),
    [
        ('multipart/related; type="application/dicom"; boundary="b"', "Content-Type: application/dicom"),
        ("multipart/related; type=application/dicom; boundary=b", "CONTENT-TYPE: application/dicom"),
        ("multipart/related; boundary=b", ""),
        ("Multipart/Related; Boundary=b; Type=Application/DICOM", "content-type:application/dicom"),
        ('multipart/related; start="<1>"; type="application/dicom"; boundary=b', "Content-ID: <1>"),
        ("multipart/related; type=application/octet-stream; boundary=b", "Content-Type: application/octet-stream"),
        (FILES, f"Content-Type: application/dicom; transfer-syntax={EXPLICIT}"),
    ],
)  # fmt: skip
async def test_how_clients_spell_it(service: Service, content_type: str, head: str) -> None:
    assert (await service.post(multipart((head, file())), content_type))[0] == 200


async def test_lines_that_end_in_lf_and_no_closing_boundary(service: Service) -> None:
    body = b"--b\nContent-Type: application/dicom\n\n" + file() + b"\n--b\n\n" + file(number=2) + b"\n--b\n"
    assert (await service.post(body))[0] == 200
    assert await service.found() == ["1.1.1.1", "1.1.1.2"]
    assert stored(service).PixelData == b"\1\2\3\4"


async def test_the_data_set_is_right_about_what_it_is(service: Service) -> None:
    other = encode_file_meta(
        transfer_syntax_uid=EXPLICIT, media_storage_sop_class_uid=CT, media_storage_sop_instance_uid="9.9"
    )
    content = file()
    body = other + content[read_file_meta(content).data_set_offset :]
    assert await service.post(multipart(body)) == (
        200,
        STUDY_URL | {"00081199": sequence(reference() | url())},
    )
    assert await service.found() == ["1.1.1.1"]


async def test_what_cannot_be_found_again_is_not_stored(service: Service) -> None:
    body = multipart(
        file(**{"0020000E": {"vr": "UI"}}),
        file(**{"0020000D": uid("../../etc")}),
        file(**{"00080016": uid(MR)}),
    )
    status, answer = await service.post(body)
    assert (status, answer["00081198"]) == (
        409,
        sequence(
            reference() | failure(0xC000),
            reference() | failure(0xC000),
            reference(sop_class=MR) | failure(0xA900),
        ),
    )
    assert await service.found() == []


async def test_no_room(tmp_path: Path) -> None:
    async with archive_at(tmp_path, maximum_object_bytes=1024) as archive, served(archive) as service:
        status, answer = await service.post(multipart(file(pixels=bytes(2000))))
        assert (status, answer) == (507, NO_URL | {"00081198": sequence(reference() | failure(0xA700))})
        status, answer = await service.post(multipart(file(pixels=bytes(2000)), file(number=2)))
        assert status == 202
        assert answer["00081199"] == sequence(reference(2) | url(2))


async def test_requests_that_are_too_large(tmp_path: Path) -> None:
    async with archive_at(tmp_path) as archive, served(archive, max_upload_bytes=MEBIBYTE) as service:
        status, answer = await service.post(multipart(file(pixels=bytes(2 * MEBIBYTE))))
        assert (status, list(answer)) == (413, ["error"])

        async def chunks() -> AsyncIterator[bytes]:
            yield multipart(file())[:-7]
            yield b"\r\n--b\r\n\r\n" + file(number=2, pixels=bytes(2 * MEBIBYTE))

        # What is stored is said to be.
        status, answer = await service.post(chunks())
        assert status == 202
        assert answer["00081199"] == sequence(reference() | url())
        assert answer["00081198"] == sequence(reference(2) | failure(0xC000))
        assert answer["0008119A"] == sequence(failure(0xC000))
        assert await service.found() == ["1.1.1.1"]


# What is no store


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"", FILES, 400),
        (b"", None, 400),
        (b"--b--\r\n", FILES, 400),
        (b"no boundary", FILES, 400),
        (multipart(file()), "multipart/related; type=application/dicom", 400),
        (multipart(file())[:-40], FILES, 400),
        (b"--b\r\nno colon\r\n\r\n" + file() + b"\r\n--b--", FILES, 400),
        (b"--b\r\nA: " + bytes([65]) * 20_000, FILES, 400),
        (multipart(b"no DICOM file"), FILES, 400),
        (b"no DICOM file", "application/dicom", 400),
        (file()[:300], "application/dicom", 400),
        (multipart(("Content-Type: text/html", file())), FILES, 400),
        (multipart(file()), 'multipart/related; type="application/dicom+xml"; boundary=b', 415),
        (multipart(file()), "multipart/form-data; boundary=b", 415),
        (file(), "image/jpeg", 415),
        (file(), "nonsense", 415),
        (b"{", "application/dicom+json", 400),
        (b"[1]", "application/dicom+json", 400),
        (b"[]", "application/dicom+json", 400),
        (b"[" * 100_000, "application/dicom+json", 400),
        (multipart(b"[{}", content_type="application/dicom+json"), METADATA, 400),
        (multipart(), METADATA, 400),
    ],
)  # fmt: skip
async def test_what_is_no_store(service: Service, body: bytes, content_type: str | None, status: int) -> None:
    assert (await service.post(body, content_type))[0] == status
    assert await service.found() == []


async def test_a_path_that_names_no_study(service: Service) -> None:
    assert await service.post(multipart(file()), study="x") == (
        400,
        {"error": "the study of the path is no UID"},
    )


async def test_a_part_that_is_no_file_does_not_hurt_the_others(service: Service) -> None:
    status, answer = await service.post(multipart(file(), b"no DICOM file", file(number=2)))
    assert status == 202
    assert len(answer["00081199"]["Value"]) == 2
    assert answer["0008119A"] == sequence(failure(0xC000))


async def test_a_body_that_breaks_off_says_what_was_stored(service: Service) -> None:
    status, answer = await service.post(multipart(file(), file(number=2, pixels=bytes(1000)))[:-30])
    assert status == 202
    assert answer["00081199"] == sequence(reference() | url())
    assert answer["00081198"] == sequence(reference(2) | failure(0xC000))
    assert answer["0008119A"] == sequence(failure(0xC000))
    assert await service.found() == ["1.1.1.1"]


@given(body=st.binary(max_size=200), cut=st.integers(0, 500), content_type=st.sampled_from([FILES, METADATA]))
@settings(max_examples=100, deadline=None)
async def test_any_bytes_have_an_answer(
    tmp_path_factory: pytest.TempPathFactory, body: bytes, cut: int, content_type: str
) -> None:
    # Something that was right, with something else in its middle.
    whole = multipart(file()) if content_type is FILES else multipart(
        ("Content-Type: application/dicom+json", json.dumps([model()]).encode())
    )  # fmt: skip
    request = Request(
        "POST",
        "/studies",
        headers={"Content-Type": content_type},
        body=RequestBody.of(whole[:cut], body, whole[cut:]),
    )
    async with archive_at(tmp_path_factory.mktemp("any")) as archive:
        try:
            response = await Stow(archive).store(request, study_uid=None, root="")
        except HTTPError as error:
            status = error.status
        else:
            status = response.status
            assert isinstance(response.body, bytes)
            json.loads(response.body)
        assert status in (200, 202, 400, 409, 413, 415)


@given(size=st.integers(1, 3000), numbers=st.lists(st.integers(1, 9), min_size=1, max_size=4, unique=True))
@settings(max_examples=30, deadline=None)
async def test_a_body_in_any_pieces(
    tmp_path_factory: pytest.TempPathFactory, size: int, numbers: list[int]
) -> None:
    whole = multipart(*(file(number=number, pixels=b"\r\n--" * number) for number in numbers))
    pieces = [whole[at : at + size] for at in range(0, len(whole), size)]
    request = Request("POST", "/studies", headers={"Content-Type": FILES}, body=RequestBody.of(*pieces))
    async with archive_at(tmp_path_factory.mktemp("pieces")) as archive:
        response = await Stow(archive).store(request, study_uid=None, root="http://gateway/web")
        assert isinstance(response.body, bytes)
        items = [reference(number) | url(number) for number in numbers]
        assert (response.status, json.loads(response.body)) == (
            200,
            STUDY_URL | {"00081199": sequence(*items)},
        )


# A PACS


async def test_over_a_pacs(tmp_path: Path) -> None:
    pacs = Pacs()
    pacs.outcome = lambda sop_instance_uid: Outcome(
        {"1.1.1.2": 0xB000, "1.1.1.3": 0xA900}.get(sop_instance_uid, 0), "Müller"
    )
    async with (
        serve(pacs.services(), port=0, ae_title="PACS") as server,
        scu_of(server.port) as scu,
        served(scu) as service,
    ):
        other = file(number=4, **{"00080016": uid(MR)}).replace(CT.encode() + b"\0", MR.encode() + b"\0")
        body = multipart(file(), file(number=2), file(number=3), other)
        status, answer = await service.post(body)
    assert status == 202
    assert answer == STUDY_URL | {
        "00081198": sequence(
            reference(3) | failure(0xA900),
            reference(4, sop_class=MR) | failure(0x0122),
        ),
        "00081199": sequence(
            reference() | url(),
            reference(2) | url(2) | {"00081196": {"vr": "US", "Value": [0xB000]}},
        ),
    }
    content = file()
    assert pacs.stored["1.1.1.1"] == content[read_file_meta(content).data_set_offset :]


async def test_a_pacs_that_is_not_there(free_port: int) -> None:
    async with scu_of(free_port) as scu, served(scu) as service:
        status, answer = await service.post(multipart(file(), file(number=2)))
    assert (status, list(answer)) == (502, ["error"])


async def test_a_pacs_that_is_lost_in_between() -> None:
    pacs = Pacs()
    async with contextlib.AsyncExitStack() as stack:
        listening = await stack.enter_async_context(contextlib.AsyncExitStack())
        server = await listening.enter_async_context(serve(pacs.services(), port=0, ae_title="PACS"))
        scu = await stack.enter_async_context(scu_of(server.port))
        service = await stack.enter_async_context(served(scu))
        gone = asyncio.Event()

        async def chunks() -> AsyncIterator[bytes]:
            whole = multipart(file(), file(number=2), file(number=3))
            second = whole.index(b"--b", 10)
            yield whole[:second] + b"--b\r\n"
            await gone.wait()
            yield whole[second + 5 :]

        async def leave() -> None:
            async with asyncio.timeout(PATIENCE_S):
                while not pacs.stored:  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
            await listening.aclose()
            gone.set()

        (status, answer), _ = await asyncio.gather(service.post(chunks()), leave())
    assert status == 202
    assert answer["00081199"] == sequence(reference() | url())
    assert answer["00081198"] == sequence(reference(2) | failure(0xA700), reference(3) | failure(0xA700))


async def test_a_client_that_leaves_leaves_nothing(service: Service) -> None:
    _, writer = await asyncio.open_connection(*service.server.addresses[0])
    head = f"POST /studies HTTP/1.1\r\nHost: h\r\nContent-Type: {FILES}\r\nContent-Length: 100000000\r\n\r\n"
    writer.write(head.encode() + multipart(file(pixels=bytes(MEBIBYTE)))[:-100])
    assert isinstance(service.backend, LocalArchive)
    root = Path(service.backend.files.folder.root)

    def objects() -> list[Path]:
        return [path for path in root.rglob("*") if path.is_file() and ".index" not in path.parts]

    async with asyncio.timeout(PATIENCE_S):
        while not objects():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        writer.transport.abort()
        while objects():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    assert await service.found() == []


class Counted:
    """A sink that counts bytes."""

    def __init__(self) -> None:
        self.size_bytes = 0

    def write(self, fragment: memoryview) -> None:
        self.size_bytes += len(fragment)

    def finish(self) -> Outcome:
        return Outcome(0)

    def abort(self) -> None:
        pass


async def test_a_part_of_any_size_passes_to_a_pacs() -> None:
    """300 MB, as below; the PACS in this process keeps nothing."""
    sink, services, size = Counted(), Services(), 300 * MEBIBYTE
    services.store(lambda request: sink, sop_classes=[CT])
    async with (
        serve(services, port=0, ae_title="PACS") as server,
        scu_of(server.port) as scu,
        served(scu) as service,
    ):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        status, _ = await service.post(large(size))
        assert status == 200
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 48 * 1024
    content = file()
    assert sink.size_bytes == len(content) - read_file_meta(content).data_set_offset - 4 + size


async def large(size: int) -> AsyncIterator[bytes]:
    """A body with one file whose pixel data are the same zeros again and again."""
    head, tail = multipart(file()).split(b"\1\2\3\4")
    yield head[:-4] + size.to_bytes(4, "little")
    for _ in range(size // MEBIBYTE):
        yield bytes(MEBIBYTE)
    yield tail


async def test_a_part_of_any_size_is_not_held(service: Service) -> None:
    """300 MB, the same zeros again and again, so that only what the service holds counts."""
    size = 300 * MEBIBYTE
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    status, _ = await service.post(large(size))
    assert status == 200
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 48 * 1024
    path = Path(service.backend.files.folder.root, "1.1", "1.1.1", "1.1.1.1.dcm")  # type: ignore[attr-defined]
    assert path.stat().st_size == len(file()) - 4 + size
    path.unlink()


# Metadata and bulk data

PIXELS = {
    "00280002": {"vr": "US", "Value": [1]},
    "00280008": {"vr": "IS", "Value": [2]},
    "00280010": {"vr": "US", "Value": [2]},
    "00280011": {"vr": "US", "Value": [2]},
    "00280100": {"vr": "US", "Value": [8]},
    "7FE00010": {"vr": "OW", "BulkDataURI": "http://elsewhere/1"},
}


def bulk(
    content: bytes, location: str = "http://elsewhere/1", kind: str = "application/octet-stream"
) -> tuple[str, bytes]:
    return f"Content-Type: {kind}\r\nContent-Location: {location}", content


def metadata(*models: dict[str, Any]) -> tuple[str, bytes]:
    return "Content-Type: application/dicom+json", json.dumps(models).encode()


async def test_metadata_with_native_pixel_data(service: Service) -> None:
    body = multipart(
        metadata(
            model(**PIXELS),
            model(number=2, **PIXELS | {"7FE00010": {"vr": "OW", "BulkDataURI": "bulk/2"}}),
        ),
        bulk(b"unused", "http://elsewhere/3"),
        bulk(bytes(range(8)), "http://gateway/web/bulk/2"),
        bulk(b"\1\2\3\4"),
        bulk(b"\5\6\7\x08"),
    )
    status, answer = await service.post(body, METADATA)
    assert (status, answer) == (
        200,
        STUDY_URL | {"00081199": sequence(*(reference(n) | url(n) for n in (1, 2)))},
    )
    found = stored(service)
    assert found.file_meta.TransferSyntaxUID == EXPLICIT
    assert found.PixelData == b"\1\2\3\4\5\6\7\x08"
    assert (found.PatientName, found.SpecificCharacterSet) == ("Müller^Anna", "ISO_IR 192")
    assert stored(service, 2).PixelData == bytes(range(8))
    assert await service.found() == ["1.1.1.1", "1.1.1.2"]


async def test_metadata_without_bulk_data(service: Service) -> None:
    body = json.dumps(model(**{"00080008": {"vr": "CS", "Value": ["A", "B"]}})).encode()
    assert (await service.post(body, "application/dicom+json"))[0] == 200
    assert stored(service).ImageType == ["A", "B"]


async def test_metadata_as_others_write_them(service: Service) -> None:
    lax = {
        "00080016": {"vr": "UI", "Value": [CT]},
        "00080018": {"Value": ["1.1.1.1"]},
        "0020000d": {"vr": "UI", "Value": ["1.1"]},
        "SeriesInstanceUID": {"Value": ["1.1.1"]},
        "00100010": {"vr": "PN", "Value": ["Müller^Anna"]},
        "00100020": {"vr": "LO", "Value": [None]},
        "00100040": {"vr": "CS", "Value": []},
        "00200013": {"vr": "IS", "Value": ["7"]},
        "00280010": {"vr": "US", "Value": ["2"]},
        "00020010": {"vr": "UI", "Value": [IMPLICIT]},
    }
    assert (await service.post(multipart(metadata(lax)), METADATA))[0] == 200
    found = stored(service)
    assert (found.PatientID, found.InstanceNumber, found.Rows) == ("", 7, 2)
    assert found.file_meta.TransferSyntaxUID == EXPLICIT


async def test_bulk_data_of_other_attributes(service: Service) -> None:
    given = model(
        **{
            "00420011": {"vr": "OB", "BulkDataURI": "document"},
            "0040A160": {"vr": "UT", "BulkDataURI": "text"},
            "00281201": {"vr": "OW", "BulkDataURI": "empty"},
            "00880200": {
                "vr": "SQ",
                "Value": [{"7FE00010": {"vr": "OB", "BulkDataURI": "icon"}}],
            },
        }
    )
    body = multipart(
        metadata(given),
        bulk(b"%PDF-", "document", "application/pdf"),
        bulk("Befund: übel".encode(), "text", "text/plain"),
        bulk(b"\1\2", "icon"),
        bulk(b"", "empty"),
    )
    assert (await service.post(body, METADATA))[0] == 200
    found = stored(service)
    assert found.EncapsulatedDocument == b"%PDF-\0"
    assert found.TextValue == "Befund: übel"
    assert found.RedPaletteColorLookupTableData in (b"", None)
    assert found.IconImageSequence[0].PixelData == b"\1\2"


@pytest.mark.parametrize(
    ("kind", "transfer_syntax_uid"),
    [
        ("image/jpeg", JPEG_LOSSLESS),
        (f"image/jpeg; transfer-syntax={JPEG_BASELINE}", JPEG_BASELINE),
        (f'application/octet-stream; transfer-syntax="{JPEG_BASELINE}"', JPEG_BASELINE),
        ("image/jls", "1.2.840.10008.1.2.4.80"),
        ("image/jp2", "1.2.840.10008.1.2.4.90"),
        ("image/dicom-rle", "1.2.840.10008.1.2.5"),
    ],
)
async def test_compressed_frames_become_fragments(
    service: Service, kind: str, transfer_syntax_uid: str
) -> None:
    body = multipart(metadata(model(**PIXELS)), bulk(b"one", kind=kind), bulk(b"two2", kind=kind))
    assert (await service.post(body, METADATA))[0] == 200
    found = stored(service)
    assert found.file_meta.TransferSyntaxUID == transfer_syntax_uid
    # PS3.5 §A.4: item of the (empty) Basic Offset Table, an item for each frame; pydicom leaves out the delimiter.
    assert found.PixelData == (
        b"\xfe\xff\x00\xe0\x00\x00\x00\x00"
        b"\xfe\xff\x00\xe0\x04\x00\x00\x00one\0"
        b"\xfe\xff\x00\xe0\x04\x00\x00\x00two2"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([], 0xC000),
        ([bulk(b"\1\2\3\4", "http://elsewhere/2")], 0xC000),
        ([bulk(b"one", kind="image/jpeg")], 0xC000),
        ([bulk(b"one", kind="image/png")], 0xC122),
    ],
)
async def test_bulk_data_that_do_not_fit(service: Service, parts: list[Any], reason: int) -> None:
    status, answer = await service.post(multipart(metadata(model(**PIXELS)), *parts), METADATA)
    assert (status, answer) == (409, NO_URL | {"00081198": sequence(reference() | failure(reason))})


async def test_bulk_data_of_what_is_no_attribute(service: Service) -> None:
    wrong = model(**{"7FE000!0": {"vr": "OW", "BulkDataURI": "http://elsewhere/1"}})
    status, answer = await service.post(
        multipart(metadata(wrong, model(number=2)), bulk(b"\1\2\3\4")), METADATA
    )
    assert (status, answer["00081198"]) == (202, sequence(reference() | failure(0xC000)))


async def test_metadata_that_have_no_encoding(service: Service) -> None:
    wrong = model(**{"00280010": {"vr": "US", "Value": ["many"]}})
    status, answer = await service.post(multipart(metadata(wrong, model(number=2), {}), b""), METADATA)
    assert (status, answer["00081198"]) == (
        202,
        sequence(
            reference() | failure(0xC000),
            {"00081150": {"vr": "UI"}, "00081155": {"vr": "UI"}} | failure(0xC000),
        ),
    )


async def test_metadata_that_are_too_large(tmp_path: Path) -> None:
    async with archive_at(tmp_path) as archive, served(archive, max_metadata_bytes=500) as service:
        assert (await service.post(b"[" + b" " * 1000, "application/dicom+json"))[0] == 413
        assert (await service.post(multipart(metadata(model()), metadata(model(number=2))), METADATA))[
            0
        ] == 413
        assert await service.found() == []


async def test_bulk_data_over_a_pacs() -> None:
    pacs = Pacs()
    async with (
        serve(pacs.services(), port=0, ae_title="PACS") as server,
        scu_of(server.port) as scu,
        served(scu) as service,
    ):
        status, _ = await service.post(multipart(metadata(model(**PIXELS)), bulk(bytes(8))), METADATA)
    assert status == 200
    assert decode_data_set(pacs.stored["1.1.1.1"], EXPLICIT)["0020000D"] == uid("1.1")
    assert pacs.stored["1.1.1.1"].endswith(b"\xe0\x7f\x10\x00OW\0\0\x08\0\0\0" + bytes(8))


# A client


async def test_dicomweb_client(tmp_path: Path, pydicom_files: list[Any]) -> None:
    data_sets = [
        dcmread(each.path) for each in pydicom_files if each.path.name in ("CT_small.dcm", "MR_small.dcm")
    ]
    async with archive_at(tmp_path) as archive, served(archive) as service:
        client = DICOMwebClient(service.root)
        answer = await asyncio.to_thread(client.store_instances, data_sets)
        urls = [item.RetrieveURL for item in answer.ReferencedSOPSequence]
        assert urls == [
            f"http://gateway/web/studies/{each.StudyInstanceUID}/series/{each.SeriesInstanceUID}"
            f"/instances/{each.SOPInstanceUID}"
            for each in data_sets
        ]
        assert "FailedSOPSequence" not in answer
        assert await service.found() == sorted(each.SOPInstanceUID for each in data_sets)
        answer = await asyncio.to_thread(
            client.store_instances, data_sets[:1], study_instance_uid=data_sets[0].StudyInstanceUID
        )
        assert len(answer.ReferencedSOPSequence) == 1
