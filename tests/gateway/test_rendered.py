"""Rendered resources, thumbnails and WADO-URI of images: over an archive, and over the same archive as a PACS."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate

from harmony.archive.files import FileStore
from harmony.archive.indexing import ArchiveIndex
from harmony.dimse import Instance, Services, serve
from harmony.dimse.part10 import read_file_meta
from harmony.gateway.config import Backend as BackendTable
from harmony.gateway.config import Endpoint, Origin, Target
from harmony.gateway.dicom_scu import DicomSCU
from harmony.gateway.dicomweb import DicomWeb
from harmony.gateway.local_archive import LocalArchive
from harmony.gateway.options import DicomScpOptions, DicomScuOptions, DicomwebOptions
from harmony.gateway.query_retrieve import QueryRetrieve
from harmony.http import Router
from harmony.http.client import HTTPClient, UpstreamError
from harmony.http.server import HTTPServer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")

CT, REPORT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.88.11"
JPEG_LOSSLESS = "1.2.840.10008.1.2.4.70"
EXPLICIT, DEFLATED, BIG = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"
STUDY, SERIES = "1.2.3", "1.2.3.1"
ORIGIN = Origin(Path("config.toml"), "web")
PATIENCE_S = 60.0
ROWS = [[0, 51, 102, 255], [0, 0, 255, 255]]
"""What the two frames of `image` look like."""


def image(number: int, *, syntax: str = EXPLICIT, pixels: bool = True, frames: int = 2) -> Instance:
    """Of one row and four columns. Without pixels it is a report."""
    data = Dataset()
    data.SOPClassUID, data.SOPInstanceUID = CT if pixels else REPORT, f"{SERIES}.{number}"
    data.PatientID, data.StudyInstanceUID, data.SeriesInstanceUID = "P1", STUDY, SERIES
    data.InstanceNumber = number
    if pixels:
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.Rows, data.Columns, data.NumberOfFrames = 1, 4, frames
        data.BitsAllocated = data.BitsStored = 8
        data.HighBit, data.PixelRepresentation = 7, 0
        data.PixelData = bytes((10, 20, 30, 60, 7, 7, 9, 9))
        if syntax == JPEG_LOSSLESS:
            data.PixelData = encapsulate([b"no codestream"] * frames)
        data["PixelData"].VR = "OB"
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    written = io.BytesIO()
    pydicom.dcmwrite(written, data, enforce_file_format=True)
    file = written.getvalue()
    return Instance(
        data.SOPClassUID, data.SOPInstanceUID, syntax, file[read_file_meta(file).data_set_offset :]
    )


class Site:
    """A dicomweb endpoint at / over a backend that sees what the archive has."""

    def __init__(self, archive: LocalArchive, port: int) -> None:
        self.archive = archive
        self._root = f"http://127.0.0.1:{port}"

    async def put(self, *instances: Instance) -> None:
        for instance in instances:
            await self.archive.store_instance(instance)

    async def get(self, path: str, accept: str = "image/png") -> tuple[int, str, bytes]:
        async with (
            HTTPClient(self._root, timeout_s=PATIENCE_S) as client,
            client.stream("GET", path, headers={"Accept": accept}) as response,
        ):
            body = b"".join([bytes(chunk) async for chunk in response])
            return response.status, response.headers.get("content-type", ""), body


@contextlib.asynccontextmanager
async def serving(archive: LocalArchive, backend: Any) -> AsyncIterator[Site]:
    endpoint = Endpoint(
        name="web",
        service="dicomweb",
        options=DicomwebOptions(path_prefix=""),
        networks=(),
        listeners=(),
        authentication=None,
        origin=ORIGIN,
    )
    router = Router()
    DicomWeb(endpoint, backend, behind="PACS", max_body_bytes=1000).add_routes(router)
    server = HTTPServer(router)
    [(_, port)] = await server.start("127.0.0.1", 0)
    try:
        yield Site(archive, port)
    finally:
        await server.stop()


@pytest.fixture(params=["archive", "pacs"])
async def site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    index = ArchiveIndex(tmp_path)
    index.open()
    archive = LocalArchive(FileStore(tmp_path, duplicates="replace"), index)
    await archive.start()
    try:
        if request.param == "archive":
            async with serving(archive, archive) as found:
                yield found
            return
        services = Services()
        QueryRetrieve(archive, DicomScpOptions()).register(services)
        async with serve(services, port=0) as pacs:
            target = Target("127.0.0.1", pacs.port, "dicom", "", False, None, PATIENCE_S, 3)
            table = BackendTable(
                name="pacs",
                service="dicom_scu",
                options=DicomScuOptions(aet="PACS"),
                target=target,
                authentication=None,
                origin=ORIGIN,
            )
            backend = DicomSCU(table)
            await backend.start()
            try:
                async with serving(archive, backend) as found:
                    yield found
            finally:
                await backend.stop(0.0)
    finally:
        await archive.stop(0.0)
        index.close()


def path_of(*uids: str) -> str:
    return "".join(
        f"/{level}/{uid}" for level, uid in zip(("studies", "series", "instances"), uids, strict=False)
    )


FIRST = path_of(STUDY, SERIES, f"{SERIES}.1")


def rows(picture: bytes) -> list[Any]:
    with Image.open(io.BytesIO(picture)) as opened:
        values: list[Any] = np.asarray(opened.convert("L")).tolist()
        return values


@pytest.mark.parametrize("syntax", [EXPLICIT, DEFLATED, BIG])
async def test_an_instance_and_its_frames(site: Site, syntax: str) -> None:
    await site.put(image(1, syntax=syntax))
    for path, expected in (("", ROWS[0]), ("/frames/1", ROWS[0]), ("/frames/2", ROWS[1])):
        status, media_type, picture = await site.get(f"{FIRST}{path}/rendered")
        assert (status, media_type, rows(picture)) == (200, "image/png", [expected])


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("*/*", "image/jpeg"),
        ("image/*", "image/jpeg"),
        ("image/gif", "image/gif"),
        ("image/webp,image/png", "image/png"),
    ],
)
async def test_media_types(site: Site, accept: str, media_type: str) -> None:
    await site.put(image(1))
    for resource in ("rendered", "thumbnail"):
        status, found, picture = await site.get(f"{FIRST}/{resource}", accept)
        assert (status, found) == (200, media_type)
        with Image.open(io.BytesIO(picture)) as opened:
            assert Image.MIME[opened.format or ""] == media_type
            animated = resource == "rendered" and media_type == "image/gif"
            assert getattr(opened, "n_frames", 1) == (2 if animated else 1)
            assert opened.size == ((4, 1) if resource == "rendered" else (128, 32))


async def test_several_frames_are_parts(site: Site) -> None:
    await site.put(image(1))
    status, media_type, body = await site.get(
        f"{FIRST}/frames/1,2/rendered", 'multipart/related; type="image/png"'
    )
    assert status == 200
    assert media_type.startswith('multipart/related; type="image/png"; boundary=')
    _, *parts, _ = body.split(b"--" + media_type.partition("boundary=")[2].encode())
    assert [rows(part.partition(b"\r\n\r\n")[2]) for part in parts] == [[each] for each in ROWS]
    assert [f"/frames/{number}/rendered\r\n".encode() in parts[number - 1] for number in (1, 2)] == [
        True,
        True,
    ]
    assert (await site.get(f"{FIRST}/frames/1,2/rendered", "image/png"))[0] == 406


async def test_parameters(site: Site) -> None:
    await site.put(image(1))
    _, _, picture = await site.get(f"{FIRST}/rendered?window=20,20,linear-exact&annotation=patient&unknown=1")
    assert rows(picture) == [[0, 128, 255, 255]]
    _, _, picture = await site.get(f"{FIRST}/rendered?viewport=2,2,1,0,2,1")
    assert rows(picture) == [[51, 102]]
    _, _, picture = await site.get(f"{FIRST}/rendered?viewport=8,8,,,,")
    assert np.array(rows(picture)).shape == (2, 8)
    _, _, picture = await site.get(f"{FIRST}/thumbnail?viewport=40,40")
    assert np.array(rows(picture)).shape == (10, 40)


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("?window=1", 400),
        ("?window=1,0,linear", 400),
        ("?window=1,2,cubic", 400),
        ("?window=nan,2,linear", 400),
        ("?quality=0", 400),
        ("?quality=101", 400),
        ("?quality=best", 400),
        ("?viewport=0,1", 400),
        ("?viewport=5", 400),
        ("?viewport=100000,1", 400),
        ("?viewport=1,1,1,1,0,1", 400),
        ("?viewport=1,1,0,0,1,1,1", 400),
        ("?viewport=1,1,9,0", 406),
    ],
)
async def test_parameters_that_mean_nothing(site: Site, query: str, status: int) -> None:
    await site.put(image(1))
    assert (await site.get(f"{FIRST}/rendered{query}"))[0] == status


async def test_what_is_not_there(site: Site) -> None:
    await site.put(image(1), image(2, pixels=False))
    for path, accept, status in (
        (f"{FIRST}/frames/3/rendered", "image/png", 404),
        (f"{FIRST}/frames/0/rendered", "image/png", 400),
        (f"{FIRST}/frames/2,1/thumbnail", "image/png", 400),
        (f"{FIRST}/rendered", "video/mp4", 406),
        (f"{FIRST[:-1]}2/rendered", "image/png", 406),
        (f"{FIRST[:-1]}7/rendered", "image/png", 404),
        (f"{path_of('9.9')}/rendered", "*/*", 404),
        (f"{path_of(STUDY)}/rendered", "video/mp4", 406),
        (f"{path_of('9.9')}/thumbnail", "image/png", 404),
    ):
        assert (await site.get(path, accept))[0] == status, path


PARTS = 'multipart/related; type="image/png"'


def parts_of(media_type: str, body: bytes) -> list[tuple[bytes, bytes]]:
    """Headers and content."""
    _, *parts, end = body.split(b"--" + media_type.partition("boundary=")[2].encode())
    assert end == b"--\r\n"
    return [part.removesuffix(b"\r\n").partition(b"\r\n\r\n")[::2] for part in parts]


@pytest.mark.parametrize("uids", [(STUDY,), (STUDY, SERIES)])
async def test_all_images_of_a_study_or_series(site: Site, uids: tuple[str, ...]) -> None:
    """A report among them is passed over."""
    await site.put(image(1), image(2, pixels=False), image(3, syntax=BIG))
    path = f"{path_of(*uids)}/rendered"
    status, media_type, body = await site.get(f"{path}?window=20,20,linear-exact", PARTS)
    assert (status, media_type.partition("; boundary")[0]) == (200, PARTS)
    parts = parts_of(media_type, body)
    assert [rows(content) for _, content in parts] == [[[0, 128, 255, 255]]] * 2
    if len(uids) == 2:
        for number, (headers, _) in zip((1, 3), parts, strict=True):
            assert f"{path}".replace("/rendered", f"/instances/{SERIES}.{number}/rendered\r\n").encode() in (
                headers + b"\r\n"
            )
    assert (await site.get(path, "*/*"))[1].startswith('multipart/related; type="image/jpeg"; ')
    status, _, body = await site.get(path, "image/png")
    assert status == 406
    assert b"several images" in body
    assert (await site.get(f"{path}?quality=0", PARTS))[0] == 400


async def test_the_only_image_of_a_study(site: Site) -> None:
    await site.put(image(1, pixels=False), image(2))
    status, media_type, picture = await site.get(f"{path_of(STUDY)}/rendered")
    assert (status, media_type, rows(picture)) == (200, "image/png", [ROWS[0]])
    _, _, animation = await site.get(f"{path_of(STUDY)}/rendered", "image/gif")
    with Image.open(io.BytesIO(animation)) as opened:
        assert getattr(opened, "n_frames", 1) == 2


async def test_a_study_without_images_is_not_rendered(site: Site) -> None:
    await site.put(image(1, pixels=False))
    assert (await site.get(f"{path_of(STUDY)}/rendered", PARTS))[0] == 406


async def test_an_image_that_cannot_be_rendered_among_others(site: Site) -> None:
    """Known beforehand it is a 206; later half of an answer must not look like all of it."""
    await site.put(image(1, syntax=JPEG_LOSSLESS), image(2), image(3))
    status, media_type, body = await site.get(f"{path_of(STUDY)}/rendered", PARTS)
    assert (status, len(parts_of(media_type, body))) == (206, 2)
    await site.put(image(4, syntax=JPEG_LOSSLESS))
    assert (await site.get(f"{path_of(STUDY)}/rendered", PARTS))[0] == 206
    await site.put(image(1))
    with pytest.raises(UpstreamError):
        await site.get(f"{path_of(STUDY)}/rendered", PARTS)


async def test_thumbnail_of_the_first_image(site: Site) -> None:
    await site.put(image(1, pixels=False), image(2))
    for uids in ((STUDY,), (STUDY, SERIES)):
        status, _, picture = await site.get(f"{path_of(*uids)}/thumbnail?viewport=4,4")
        assert (status, rows(picture)) == (200, [ROWS[0]])
    status, _, picture = await site.get(f"{FIRST[:-1]}2/frames/2/thumbnail?viewport=4,4")
    assert (status, rows(picture)) == (200, [ROWS[1]])


async def test_a_study_without_images(site: Site) -> None:
    await site.put(image(1, pixels=False))
    assert (await site.get(f"{path_of(STUDY)}/thumbnail"))[0] == 406


URI = f"/wado?requestType=WADO&studyUID={STUDY}&seriesUID={SERIES}&objectUID={SERIES}.1"


@pytest.mark.parametrize(
    ("query", "status", "expected"),
    [
        ("&contentType=image/png", 200, ROWS[0]),
        ("&contentType=image/png&frameNumber=2", 200, ROWS[1]),
        ("&contentType=image/webp,image/png&windowCenter=20&windowWidth=20", 200, [0, 134, 255, 255]),
        ("&contentType=image/png&columns=4", 200, ROWS[0]),
        ("&contentType=image/png&frameNumber=3", 404, None),
        ("&contentType=image/png&frameNumber=x", 400, None),
        ("&contentType=image/png&windowCenter=20", 400, None),
        ("&contentType=image/png&rows=x", 400, None),
        ("&contentType=image/png&region=0.25,0,0.75,1", 200, ROWS[0][1:3]),
        ("&contentType=image/png&region=0,0,1.0,1", 200, ROWS[0]),
        ("&contentType=image/png&region=0.25,0,0.75,1&columns=2&frameNumber=2", 200, ROWS[1][1:3]),
        ("&contentType=image/png&region=0,0,0.01,0.01", 200, ROWS[0][:1]),
        ("&contentType=image/png&region=0.5,0,0.5,1", 400, None),
        ("&contentType=image/png&region=0,0,2,1", 400, None),
        ("&contentType=image/png&region=0,0,1", 400, None),
        ("&contentType=image/png&region=0,0,nan,1", 400, None),
        ("&contentType=image/png&region=a,b,c,d", 400, None),
        ("&contentType=image/png&presentationUID=1.2", 501, None),
        ("&contentType=image/png&charset=utf-8&annotation=patient", 200, ROWS[0]),
        ("&contentType=application/dicom,image/png", 400, None),
        ("&contentType=application/dicom&frameNumber=1", 400, None),
        ("&contentType=application/dicom&region=0,0,1,1", 400, None),
        ("&contentType=application/dicom&presentationUID=1.2", 400, None),
        ("&contentType=application/dicom&transferSyntax=JPEG", 400, None),
        ("&contentType=image/webp", 406, None),
    ],
)
async def test_wado_uri(site: Site, query: str, status: int, expected: list[int] | None) -> None:
    await site.put(image(1))
    found, _, picture = await site.get(URI + query)
    assert found == status
    if expected is not None:
        assert rows(picture) == [expected]


async def test_wado_uri_is_a_jpeg_unless_it_says_otherwise(site: Site) -> None:
    await site.put(image(1))
    assert (await site.get(URI))[:2] == (200, "image/jpeg")
    assert (await site.get(URI + "&contentType=application/dicom"))[1].startswith("application/dicom;")


async def test_without_the_extra(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    await site.put(image(1))
    monkeypatch.setitem(sys.modules, "PIL", None)
    for path in (f"{FIRST}/rendered", f"{FIRST}/frames/1/thumbnail", URI):
        status, _, body = await site.get(path)
        assert status == 501
        assert b"harmony-dicom[render]" in body


def test_the_gateway_does_not_import_what_renders() -> None:
    program = (
        "import sys, harmony.gateway.dicomweb\n"
        "print('PIL' in sys.modules, 'harmony.dicom.rendering' in sys.modules)"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert finished.stdout.split() == ["False", "False"]
