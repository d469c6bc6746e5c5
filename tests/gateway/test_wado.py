"""WADO-RS and WADO-URI through a real HTTP server: over an archive, and over the same archive as a PACS over DIMSE."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import resource
import warnings
import zipfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pydicom
import pydicom.encaps
import pytest
from pydicom.uid import UID

from harmony.archive.files import FileStore
from harmony.archive.index import UniqueKeys
from harmony.archive.indexing import ArchiveIndex
from harmony.dicom.json_model import encode_data_set
from harmony.dicom.transcode import Transcoder
from harmony.dimse import Instance, Services, serve
from harmony.dimse.part10 import read_file_meta
from harmony.dimse.retrieve_scp import Selection, Unavailable
from harmony.gateway.config import Backend as BackendTable
from harmony.gateway.config import Origin, Target
from harmony.gateway.dicom_scu import DicomSCU
from harmony.gateway.local_archive import LocalArchive
from harmony.gateway.options import DicomScpOptions, DicomScuOptions
from harmony.gateway.query_retrieve import QueryRetrieve
from harmony.gateway.service_root import service_root
from harmony.gateway.wado import Wado
from harmony.http import Request, Response, Router
from harmony.http.client import HTTPClient, UpstreamError
from harmony.http.server import HTTPServer

CT = "1.2.840.10008.5.1.4.1.1.2"
IMPLICIT, EXPLICIT, DEFLATED, BIG = (f"1.2.840.10008.1.2{suffix}" for suffix in ("", ".1", ".1.99", ".2"))
JPEG, RLE = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.5"
STUDY, SERIES = "1.2.3", "1.2.3.1"
PATIENCE_S = 60.0
DICOM_AS_STORED = 'multipart/related; type="application/dicom"; transfer-syntax=*'


def element(tag: int, vr: str, value: bytes) -> bytes:
    """Explicit VR Little Endian (PS3.5 §7.1.2)."""
    head = (tag >> 16).to_bytes(2, "little") + (tag & 0xFFFF).to_bytes(2, "little") + vr.encode()
    if vr in ("OB", "OW", "UN", "UT"):
        return head + b"\0\0" + len(value).to_bytes(4, "little") + value
    return head + len(value).to_bytes(2, "little") + value


def fragments(*values: bytes) -> bytes:
    """Encapsulated pixel data (PS3.5 §A.4), the Basic Offset Table first."""
    items = b"".join(b"\xfe\xff\x00\xe0" + len(value).to_bytes(4, "little") + value for value in values)
    return b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff" + items + b"\xfe\xff\xdd\xe0\0\0\0\0"


def image(
    number: int,
    *,
    pixels: bytes = b"",
    before: bytes = b"",
    syntax: str = EXPLICIT,
    rows: int = 2,
    columns: int = 3,
    bits: int = 8,
    frames: int = 1,
    series: str = SERIES,
) -> Instance:
    """pixels: the whole element. before: elements between the series and the image's description."""
    uid = f"{series}.{number}"
    model: dict[str, Any] = {
        "SOPClassUID": {"Value": [CT]},
        "SOPInstanceUID": {"Value": [uid]},
        "PatientName": {"Value": [{"Alphabetic": "Müller^P"}]},
        "StudyInstanceUID": {"Value": [STUDY]},
        "SeriesInstanceUID": {"Value": [series]},
    }
    description = {
        "SamplesPerPixel": {"Value": [1]},
        "NumberOfFrames": {"Value": [frames]},
        "Rows": {"Value": [rows]},
        "Columns": {"Value": [columns]},
        "BitsAllocated": {"Value": [bits]},
    }
    data = encode_data_set(model, EXPLICIT) + before + encode_data_set(description, EXPLICIT)
    pixels = pixels or element(
        0x7FE00010, "OB" if bits <= 8 else "OW", bytes([number]) * (rows * columns * frames * bits // 8)
    )
    return Instance(CT, uid, syntax, data + pixels)


@dataclass
class Answer:
    status: int
    headers: Any
    body: bytes = field(repr=False)

    @property
    def type(self) -> str:
        return self.headers.get("content-type", "")

    @property
    def parts(self) -> list[tuple[dict[str, str], bytes]]:
        boundary = self.type.partition("boundary=")[2].encode()
        first, *parts, last = (b"\r\n" + self.body).split(b"\r\n--" + boundary)
        assert (first, last) == (b"", b"--\r\n")
        found = []
        for part in parts:
            head, _, content = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
            lines = [line.split(": ", 1) for line in head.decode().split("\r\n")]
            headers = {name.lower(): value for name, value in lines}
            assert int(headers.get("content-length", len(content))) == len(content)
            found.append((headers, content))
        return found

    @property
    def json(self) -> Any:
        assert self.type == "application/dicom+json"
        return json.loads(self.body)


@dataclass
class Site:
    """A server at / with a Wado over `backend`, which sees what `archive` has."""

    archive: LocalArchive
    backend: Any
    port: int = 0

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def put(self, *instances: Instance) -> None:
        for instance in instances:
            await self.archive.store_instance(instance)

    @contextlib.asynccontextmanager
    async def stream(self, path: str, accept: str | None = None, **more: Any) -> AsyncIterator[Any]:
        headers = ({"Accept": accept} if accept else {}) | more.pop("headers", {})
        async with (
            asyncio.timeout(PATIENCE_S),
            HTTPClient(self.root, timeout_s=PATIENCE_S) as client,
            client.stream(more.pop("method", "GET"), path, headers=headers) as response,
        ):
            yield response

    async def get(self, path: str, accept: str | None = None, **more: Any) -> Answer:
        async with self.stream(path, accept, **more) as response:
            body = b"".join([bytes(chunk) async for chunk in response])
            return Answer(response.status, response.headers, body)


def routes(wado: Wado) -> Router:
    router = Router()
    study, series = "/studies/{study}", "/studies/{study}/series/{series}"
    instance = series + "/instances/{instance}"

    def uids(request: Request) -> list[str]:
        return [
            request.path_parameters[name]
            for name in ("study", "series", "instance")
            if name in request.path_parameters
        ]

    def add(pattern: str, answer: Callable[[Request, list[str], str], Any]) -> None:
        async def handler(request: Request) -> Response:
            response: Response = await answer(request, uids(request), service_root(request, "/"))
            return response

        router.add("GET", pattern, handler)

    for pattern in (study, series, instance):
        add(pattern, wado.retrieve)
        add(pattern + "/metadata", wado.metadata)
    add(instance + "/frames/{list}", lambda r, u, root: wado.frames(r, u, r.path_parameters["list"], root))
    add(
        instance + "/bulkdata/{path*}",
        lambda r, u, root: wado.bulkdata(r, u, r.path_parameters["path"], root),
    )
    add("/wado", lambda r, u, root: wado.uri(r))
    return router


@contextlib.asynccontextmanager
async def serving(site: Site) -> AsyncIterator[Site]:
    server = HTTPServer(routes(Wado(site.backend, name="PACS")))
    [(_, site.port)] = await server.start("127.0.0.1", 0)
    try:
        yield site
    finally:
        await server.stop()


def scu(port: int, **options: Any) -> DicomSCU:
    target = Target("127.0.0.1", port, "dicom", "", False, None, PATIENCE_S, 3)
    table = BackendTable(
        name="pacs",
        service="dicom_scu",
        options=DicomScuOptions(aet="PACS", **options),
        target=target,
        authentication=None,
        origin=Origin(Path("config.toml"), "backends.pacs"),
    )
    return DicomSCU(table)


@pytest.fixture
async def archive(tmp_path: Path, no_leaks: None) -> AsyncIterator[LocalArchive]:
    index = ArchiveIndex(tmp_path)
    index.open()
    archive = LocalArchive(FileStore(tmp_path, duplicates="replace"), index)
    await archive.start()
    try:
        yield archive
    finally:
        await archive.stop(0.0)
        index.close()


@pytest.fixture
async def local(archive: LocalArchive) -> AsyncIterator[Site]:
    async with serving(Site(archive, archive)) as site:
        yield site


@contextlib.asynccontextmanager
async def behind(select_from: Any, archive: LocalArchive, **options: Any) -> AsyncIterator[Site]:
    """A site over a PACS that answers out of `select_from`."""
    services = Services()
    QueryRetrieve(select_from, DicomScpOptions()).register(services)
    async with serve(services, port=0) as server:
        backend = scu(server.port, **options)
        await backend.start()
        try:
            async with serving(Site(archive, backend)) as site:
                yield site
            async with asyncio.timeout(PATIENCE_S):
                while backend.pool.lent:  # noqa: ASYNC110
                    await asyncio.sleep(0)
        finally:
            await backend.stop(0.0)


@pytest.fixture
async def remote(archive: LocalArchive) -> AsyncIterator[Site]:
    async with behind(archive, archive) as site:
        yield site


@pytest.fixture(params=["archive", "pacs"])
def site(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue({"archive": "local", "pacs": "remote"}[request.param])


def path_of(*uids: str) -> str:
    return "".join(
        f"/{level}/{uid}" for level, uid in zip(("studies", "series", "instances"), uids, strict=False)
    )


FIRST = path_of(STUDY, SERIES, f"{SERIES}.1")


def data_set(file: bytes) -> bytes:
    return file[read_file_meta(file).data_set_offset :]


def with_paths(samples: list[Any]) -> list[tuple[Any, str]]:
    """Those of reasonable size with all UIDs; several have the same."""
    found = []
    for sample in samples:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = pydicom.dcmread(sample.path, stop_before_pixels=True)
        uids = (header.get("StudyInstanceUID"), header.get("SeriesInstanceUID"), sample.sop_instance_uid)
        if all(uids) and len(sample.data_set) < 1_000_000 and sample.path.name != "MR_truncated.dcm":
            found.append((sample, path_of(*map(str, uids))))
    return found


# Instances


@pytest.mark.parametrize("level", [1, 2, 3])
async def test_instances_are_parts_of_a_multipart_body(site: Site, level: int) -> None:
    await site.put(image(1), image(2))
    answer = await site.get(path_of(*(STUDY, SERIES, f"{SERIES}.1")[:level]))
    assert answer.status == 200
    assert answer.type.startswith('multipart/related; type="application/dicom"; boundary=')
    assert answer.headers.get("vary") == "Accept"
    found = {}
    for headers, file in answer.parts:
        assert headers["content-type"] == f"application/dicom; transfer-syntax={EXPLICIT}"
        meta = read_file_meta(file)
        found[meta.media_storage_sop_instance_uid] = data_set(file)
        if level > 1:
            assert (
                headers["content-location"]
                == f"{site.root}{path_of(STUDY, SERIES, meta.media_storage_sop_instance_uid)}"
            )
    assert found == {
        each.sop_instance_uid: each.data for each in [image(1), image(2)][: 1 if level == 3 else 2]
    }


async def test_long_and_short_instances_one_after_the_other(site: Site) -> None:
    """Long ones of the archive are sent by the kernel, short ones are not."""
    stored = [
        image(number, pixels=element(0x7FE00010, "OW", bytes([number]) * size))
        for number, size in enumerate((100_000, 10, 3_000_000, 200_000), start=1)
    ]
    await site.put(*stored)
    answer = await site.get(path_of(STUDY), DICOM_AS_STORED)
    found = {read_file_meta(file).media_storage_sop_instance_uid: data_set(file) for _, file in answer.parts}
    assert found == {each.sop_instance_uid: each.data for each in stored}


async def test_samples_go_out_byte_for_byte(site: Site, pydicom_files: list[Any]) -> None:
    """One file of each transfer syntax, as stored; what must not be on the web in Explicit VR Little Endian."""
    samples = {each.transfer_syntax_uid: (each, path) for each, path in with_paths(pydicom_files)}
    assert len(samples) >= 10
    for syntax, (sample, path) in samples.items():
        await site.put(Instance(sample.sop_class_uid, sample.sop_instance_uid, syntax, sample.data_set))
        [(_, file)] = (await site.get(path, DICOM_AS_STORED)).parts
        meta = read_file_meta(file)
        if syntax in (IMPLICIT, BIG):
            transcoder = Transcoder(syntax, EXPLICIT)
            wanted = b"".join(map(bytes, [*transcoder.feed(sample.data_set), *transcoder.finish()]))
            assert (meta.transfer_syntax_uid, data_set(file)) == (EXPLICIT, wanted)
        else:
            assert meta.transfer_syntax_uid == syntax, sample
            sent = data_set(file)
            if syntax == DEFLATED:  # odd in the file; DIMSE knows only even lengths (PS3.5 §A.5)
                sent = sent[: len(sample.data_set)] + sent[len(sample.data_set) :].rstrip(b"\0")
            assert sent == sample.data_set, sample


@pytest.mark.parametrize(
    ("stored", "asked", "sent"),
    [
        (EXPLICIT, "", EXPLICIT),
        (EXPLICIT, f"; transfer-syntax={EXPLICIT}", EXPLICIT),
        (EXPLICIT, f"; transfer-syntax={DEFLATED}", DEFLATED),
        (EXPLICIT, f"; transfer-syntax={IMPLICIT}", None),
        (EXPLICIT, f"; transfer-syntax={JPEG}", None),
        (IMPLICIT, "", EXPLICIT),
        (IMPLICIT, "; transfer-syntax=*", EXPLICIT),
        (BIG, "; transfer-syntax=*", EXPLICIT),
        (DEFLATED, "", EXPLICIT),
        (DEFLATED, "; transfer-syntax=*", DEFLATED),
        (JPEG, "", JPEG),
        (JPEG, "; transfer-syntax=*", JPEG),
        (JPEG, f"; transfer-syntax={JPEG}", JPEG),
        (JPEG, f"; transfer-syntax={EXPLICIT}", None),
        (
            JPEG,
            f'; transfer-syntax={RLE}, multipart/related; type="application/dicom"; transfer-syntax=*; q=0.5',
            JPEG,
        ),
    ],
)
async def test_transfer_syntaxes(local: Site, stored: str, asked: str, sent: str | None) -> None:
    original = image(1)
    assert isinstance(original.data, bytes)
    data = original.data
    if stored == JPEG:
        data = image(1, pixels=fragments(b"", b"\xff\xd8\xff\xd9")).data
    elif stored != EXPLICIT:
        transcoder = Transcoder(EXPLICIT, stored)
        data = b"".join(map(bytes, [*transcoder.feed(data), *transcoder.finish()]))
    await local.put(Instance(CT, original.sop_instance_uid, stored, data))
    answer = await local.get(FIRST, f'multipart/related; type="application/dicom"{asked}')
    single = await local.get(FIRST, f"application/dicom{asked.partition(',')[0]}")
    if sent is None:
        assert (answer.status, single.status) == (406, 406)
        assert "transfer syntax" in json.loads(answer.body)["error"]
        return
    [(headers, file)] = answer.parts
    assert headers["content-type"] == f"application/dicom; transfer-syntax={sent}"
    assert read_file_meta(file).transfer_syntax_uid == sent
    wanted = data if sent == stored else None
    if sent == DEFLATED and stored == EXPLICIT:
        transcoder = Transcoder(DEFLATED, EXPLICIT)
        assert b"".join(map(bytes, [*transcoder.feed(data_set(file)), *transcoder.finish()])) == original.data
    else:
        assert data_set(file) == (wanted or original.data)
    if "q=0.5" not in asked:
        assert single.type == f"application/dicom; transfer-syntax={sent}"
        assert data_set(single.body) == data_set(file)


async def test_some_in_another_transfer_syntax_are_left_out_with_206(site: Site) -> None:
    jpeg = image(2, pixels=fragments(b"", b"\xff\xd8\xff\xd9"), syntax=JPEG)
    await site.put(image(1), jpeg)
    accept = f'multipart/related; type="application/dicom"; transfer-syntax={JPEG}'
    answer = await site.get(path_of(STUDY, SERIES), accept)
    assert answer.status == 206
    assert [data_set(file) for _, file in answer.parts] == [jpeg.data]
    answer = await site.get(path_of(STUDY, SERIES), DICOM_AS_STORED)
    assert (answer.status, len(answer.parts)) == (200, 2)


async def test_a_single_file_has_a_length_and_ranges(local: Site) -> None:
    await local.put(image(1))
    answer = await local.get(FIRST, "application/dicom")
    assert answer.type == f"application/dicom; transfer-syntax={EXPLICIT}"
    assert data_set(answer.body) == image(1).data
    assert int(answer.headers.get("content-length")) == len(answer.body)
    part = await local.get(FIRST, "application/dicom", headers={"Range": "bytes=128-131"})
    assert (part.status, part.body) == (206, b"DICM")


async def test_a_single_file_from_a_pacs(remote: Site) -> None:
    await remote.put(image(1))
    answer = await remote.get(FIRST, "application/dicom")
    assert (answer.status, answer.type) == (200, f"application/dicom; transfer-syntax={EXPLICIT}")
    assert data_set(answer.body) == image(1).data


async def test_a_study_is_not_a_single_file(site: Site) -> None:
    await site.put(image(1))
    assert (await site.get(path_of(STUDY), "application/dicom")).status == 406
    assert (await site.get(path_of(STUDY), 'multipart/related; type="application/dicom+xml"')).status == 406


async def test_instances_in_a_zip_archive(site: Site) -> None:
    await site.put(image(1), image(2), image(1, series="1.2.3.2"))
    answer = await site.get(path_of(STUDY), "application/zip")
    assert (answer.status, answer.type) == (200, "application/zip")
    assert answer.headers.get("content-disposition") == f'attachment; filename="{STUDY}.zip"'
    with zipfile.ZipFile(io.BytesIO(answer.body)) as archive:
        assert archive.testzip() is None
        found = {name: data_set(archive.read(name)) for name in archive.namelist()}
    wanted = [image(1), image(2), image(1, series="1.2.3.2")]
    assert found == {f"{each.sop_instance_uid}.dcm": each.data for each in wanted}


@pytest.mark.parametrize("what", ["", "/metadata", "/frames/1", "/bulkdata/7FE00010"])
async def test_what_is_not_there(site: Site, what: str) -> None:
    await site.put(image(1))
    assert (await site.get(path_of(STUDY, SERIES, "1.2.3.1.9") + what)).status == 404
    assert (await site.get(path_of("1.2.9", SERIES, f"{SERIES}.1") + what)).status == 404
    assert (await site.get(path_of("x", SERIES, f"{SERIES}.1") + what)).status == 400


@pytest.mark.parametrize("what", ["", "/metadata", "/frames/1", "/bulkdata/7FE00010"])
async def test_a_pacs_that_is_not_there(archive: LocalArchive, free_port: int, what: str) -> None:
    backend = scu(free_port)
    await backend.start()
    async with serving(Site(archive, backend)) as site:
        assert (await site.get(FIRST + what)).status == 502
    await backend.stop(0.0)


async def test_head_leaves_nothing_open(site: Site) -> None:
    await site.put(image(1))
    for accept in (DICOM_AS_STORED, "application/zip", "application/dicom"):
        answer = await site.get(FIRST, accept, method="HEAD")
        assert (answer.status, answer.body) == (200, b"")
    assert (await site.get(FIRST + "/frames/1", method="HEAD")).status == 200
    assert open_files(".dcm") == []


def open_files(name: str = "") -> list[str]:
    found = []
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    return [each for each in found if each.endswith(name)]


# A PACS, or an archive, that does as it is told


@dataclass
class Scripted:
    """Behind QueryRetrieve: everything of the archive, but its retrieves go by `script`."""

    archive: LocalArchive
    script: list[Any]
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.archive, name)

    async def retrieve(self, retrieve: Any) -> Selection:
        uids = [each.sop_instance_uid for each in self.script if isinstance(each, Instance | Unavailable)]
        return Selection(self._instances(), sop_instance_uids=uids, contexts=[(CT, EXPLICIT)])

    async def _instances(self) -> AsyncIterator[Any]:
        try:
            for each in self.script:
                if isinstance(each, Exception):
                    raise each
                if isinstance(each, asyncio.Event):
                    await each.wait()
                else:
                    yield each
        finally:
            self.closed.set()


async def test_the_first_part_goes_out_before_the_last_instance_comes(archive: LocalArchive) -> None:
    await archive.store_instance(image(1))
    await archive.store_instance(image(2))
    go_on = asyncio.Event()
    scripted = Scripted(archive, [image(1), go_on, image(2)])
    async with behind(scripted, archive) as site, site.stream(path_of(STUDY), DICOM_AS_STORED) as response:
        begun = b""
        chunks = aiter(response)
        while image(1).data not in begun:
            begun += await anext(chunks)
        go_on.set()
        rest = b"".join([chunk async for chunk in chunks])
    assert image(2).data in rest


@pytest.mark.parametrize("what", ["multipart", "zip", "metadata"])
@pytest.mark.parametrize("how", ["missing", "aborted"])
async def test_a_pacs_that_fails_midway_breaks_the_body_off(
    archive: LocalArchive, what: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken() -> AsyncIterator[bytes]:
        data = image(2).data
        assert isinstance(data, bytes)
        yield data[:100]
        raise OSError("as it was told")

    await archive.store_instance(image(1))
    await archive.store_instance(image(2))
    second = (
        Unavailable(f"{SERIES}.2") if how == "missing" else Instance(CT, f"{SERIES}.2", EXPLICIT, broken())
    )
    scripted = Scripted(archive, [image(1), second])
    path = path_of(STUDY) + ("/metadata" if what == "metadata" else "")
    accept = {"multipart": DICOM_AS_STORED, "zip": "application/zip"}.get(what)
    async with behind(scripted, archive) as site:
        with pytest.raises(UpstreamError):
            await site.get(path, accept)
    assert open_files(".dcm") == []
    caplog.clear()


@pytest.mark.parametrize("accept", [DICOM_AS_STORED, "application/dicom+json"])
async def test_nothing_can_be_read(archive: LocalArchive, accept: str) -> None:
    await archive.store_instance(image(1))
    scripted = Scripted(archive, [Unavailable(f"{SERIES}.1")])
    async with behind(scripted, archive) as site:
        more = "/metadata" if "json" in accept else ""
        assert (await site.get(path_of(STUDY) + more, accept)).status == 502


async def test_some_that_are_missing_from_the_beginning_make_206(archive: LocalArchive) -> None:
    scripted = Scripted(archive, [Unavailable("1"), image(1), Unavailable("2")])
    async with serving(Site(archive, scripted)) as site:
        answer = await site.get(path_of(STUDY), DICOM_AS_STORED)
    assert (answer.status, len(answer.parts)) == (206, 1)


@pytest.mark.parametrize("what", ["", "/metadata"])
async def test_a_client_that_leaves_frees_everything(archive: LocalArchive, what: str) -> None:
    for number in (1, 2):
        await archive.store_instance(image(number))
    scripted = Scripted(archive, [image(1), asyncio.Event(), image(2)])
    async with behind(scripted, archive) as site:
        accept = "application/dicom+json" if what else DICOM_AS_STORED
        async with site.stream(path_of(STUDY) + what, accept) as response:
            await anext(aiter(response))
        async with asyncio.timeout(PATIENCE_S):
            await scripted.closed.wait()
            while site.backend.pool.lent:  # noqa: ASYNC110
                await asyncio.sleep(0)


async def test_a_client_that_leaves_closes_the_file(local: Site) -> None:
    await local.put(image(1, pixels=element(0x7FE00010, "OW", bytes(50_000_000))))
    for path, accept in ((FIRST, DICOM_AS_STORED), (FIRST, "application/zip"), (FIRST, "application/dicom")):
        async with local.stream(path, accept) as response:
            await anext(aiter(response))
        async with asyncio.timeout(PATIENCE_S):
            while open_files(".dcm"):  # noqa: ASYNC110
                await asyncio.sleep(0)


# Metadata


async def test_metadata(site: Site) -> None:
    before = (
        element(0x00281201, "OW", b"\1\2")  # short: in the model
        + element(0x00281202, "OW", bytes(2000))
        + element(0x00281203, "OW", b"")
    )
    await site.put(image(1, before=before), image(2))
    for path in (path_of(STUDY), path_of(STUDY, SERIES)):
        answer = await site.get(path + "/metadata")
        assert (answer.status, len(answer.json)) == (200, 2)
    [model] = (await site.get(FIRST + "/metadata", "application/json")).json
    bulk = f"{site.root}{FIRST}/bulkdata/"
    assert model == {
        "00080016": {"vr": "UI", "Value": [CT]},
        "00080018": {"vr": "UI", "Value": [f"{SERIES}.1"]},
        "00100010": {"vr": "PN", "Value": [{"Alphabetic": "Müller^P"}]},
        "0020000D": {"vr": "UI", "Value": [STUDY]},
        "0020000E": {"vr": "UI", "Value": [SERIES]},
        "00280002": {"vr": "US", "Value": [1]},
        "00280008": {"vr": "IS", "Value": [1]},
        "00280010": {"vr": "US", "Value": [2]},
        "00280011": {"vr": "US", "Value": [3]},
        "00280100": {"vr": "US", "Value": [8]},
        "00281201": {"vr": "OW", "InlineBinary": "AQI="},
        "00281202": {"vr": "OW", "BulkDataURI": f"{bulk}00281202"},
        "00281203": {"vr": "OW"},
        "7FE00010": {"vr": "OB", "BulkDataURI": f"{bulk}7FE00010"},
    }


async def test_metadata_with_private_elements_need_no_file(local: Site, archive: LocalArchive) -> None:
    item = element(0x00091013, "OB", bytes(2000))
    items = b"\xfe\xff\x00\xe0" + len(item).to_bytes(4, "little") + item
    before = (
        element(0x00091010, "OB", b"\1\2")
        + element(0x00091011, "UN", b"")
        + element(0x00091012, "OB", bytes(70_000))
        + b"\x09\x00\x14\x10SQ\0\0" + len(items).to_bytes(4, "little") + items
    )  # fmt: skip
    await local.put(image(1, before=before))
    assert archive.index is not None
    [stored] = archive.index.instances(UniqueKeys(study_instance_uids=[STUDY]))
    os.truncate(stored.path, 0)
    [model] = (await local.get(FIRST + "/metadata")).json
    bulk = f"{local.root}{FIRST}/bulkdata/"
    assert {tag: each for tag, each in model.items() if tag.startswith("0009")} == {
        "00091010": {"vr": "OB", "InlineBinary": "AQI="},
        "00091011": {"vr": "UN"},
        "00091012": {"vr": "OB", "BulkDataURI": f"{bulk}00091012"},
        "00091014": {
            "vr": "SQ",
            "Value": [{"00091013": {"vr": "OB", "BulkDataURI": f"{bulk}00091014/1/00091013"}}],
        },
    }
    assert model["7FE00010"]["BulkDataURI"] == f"{bulk}7FE00010"


async def test_an_etag_spares_the_metadata_of_an_instance(site: Site) -> None:
    await site.put(image(1))
    first = await site.get(FIRST + "/metadata")
    etag = first.headers.get("etag")
    again = await site.get(FIRST + "/metadata", headers={"If-None-Match": f'"other", {etag}'})
    assert (again.status, again.body) == (304, b"")
    assert (await site.get(FIRST + "/metadata", headers={"If-None-Match": '"other"'})).body == first.body


@pytest.mark.parametrize(
    "accept", ['multipart/related; type="application/dicom+xml"', "application/dicom+xml"]
)
async def test_metadata_in_xml(site: Site, accept: str) -> None:
    await site.put(image(1, before=element(0x00281202, "OW", bytes(2000))), image(2))
    for path, count in ((path_of(STUDY), 2), (path_of(STUDY, SERIES), 2), (FIRST, 1)):
        answer = await site.get(path + "/metadata", accept)
        assert answer.status == 200
        assert answer.type.startswith('multipart/related; type="application/dicom+xml"; boundary=')
        assert len(answer.parts) == count
        headers, content = answer.parts[0]
        assert headers["content-type"] == "application/dicom+xml"
        root = ElementTree.fromstring(content)
        found = {each.get("keyword"): list(each) for each in root}
        assert found["SOPInstanceUID"][0].text == f"{SERIES}.1"
        assert [part.text for part in found["PatientName"][0].iter()][2:] == ["Müller", "P"]
        [pixels] = found["PixelData"]
        assert pixels.get("uri") == f"{site.root}{FIRST}/bulkdata/7FE00010"
    assert (await site.get(path_of("9.9") + "/metadata", accept)).status == 404


@pytest.mark.parametrize("uids", [(STUDY,), (STUDY, SERIES)])
async def test_an_etag_spares_the_metadata_of_many_until_they_change(
    local: Site, uids: tuple[str, ...]
) -> None:
    path = path_of(*uids) + "/metadata"
    await local.put(image(1), image(2))
    for change in (image(1, rows=1), image(3)):  # another one in its place, one more
        first = await local.get(path)
        etag = first.headers.get("etag")
        assert etag.startswith('W/"')
        again = await local.get(path, headers={"If-None-Match": etag})
        assert (again.status, again.body, again.headers.get("etag")) == (304, b"", etag)
        again = await local.get(path, headers={"If-None-Match": '"other"'})
        assert (again.status, again.body) == (200, first.body)
        await local.put(change)
        again = await local.get(path, headers={"If-None-Match": etag})
        assert (again.status, again.headers.get("etag") != etag) == (200, True)


async def test_what_is_not_there_is_not_unchanged(local: Site) -> None:
    answer = await local.get(path_of("1.2.3") + "/metadata", headers={"If-None-Match": "*"})
    assert answer.status == 404


async def test_a_study_in_a_pacs_has_no_etag(remote: Site) -> None:
    await remote.put(image(1))
    answer = await remote.get(path_of(STUDY) + "/metadata", headers={"If-None-Match": "*"})
    assert (answer.status, answer.headers.get("etag")) == (200, None)


async def test_metadata_of_samples_is_complete_and_their_bulk_data_can_be_had(
    local: Site, remote: Site, pydicom_files: list[Any]
) -> None:
    """The same from the archive as from the PACS, every attribute that pydicom finds, every reference works."""
    for sample, path in with_paths(pydicom_files):
        await local.put(
            Instance(
                sample.sop_class_uid, sample.sop_instance_uid, sample.transfer_syntax_uid, sample.data_set
            )
        )
        models = []
        for site in (local, remote):
            answer = await site.get(path + "/metadata")
            assert answer.status == 200, (sample, answer.body)
            models.append(json.loads(answer.body.replace(site.root.encode(), b"")))
        assert [vr_of_pixels(each) for each in models[0]] == [vr_of_pixels(each) for each in models[1]], (
            sample
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(sample.path)
            tags = {f"{each.tag:08X}" for each in dataset if each.tag.element and each.tag <= 0x7FE00010}
            assert set(models[0][0]) == tags - {"00080005"}, sample
            for tag, reference in references(models[0][0]):
                bulk = await local.get(reference.removeprefix(local.root))
                assert bulk.status == 200, (sample, reference)
                value = dataset[int(tag, 16)].value
                if sample.transfer_syntax_uid != BIG and isinstance(value, bytes) and "octet" in bulk.type:
                    [(_, content)] = bulk.parts
                    assert content == value, (sample, tag)


def vr_of_pixels(model: dict[str, Any]) -> dict[str, Any]:
    """Without the VR of pixel data of eight bits, which the index does not know."""
    if "7FE00010" in model:
        model = model | {"7FE00010": model["7FE00010"]["BulkDataURI"]}
    return model


def references(model: dict[str, Any]) -> list[tuple[str, str]]:
    """At the top level."""
    return [(tag, each["BulkDataURI"]) for tag, each in model.items() if "BulkDataURI" in each]


async def test_long_sequences_are_in_the_metadata(site: Site) -> None:
    """Of an item each; the index does not hold a sequence of more than 64 KiB."""
    item = element(0x00089215, "LO", b"x" * 64)
    items = b"".join(b"\xfe\xff\x00\xe0" + len(item).to_bytes(4, "little") + item for _ in range(2000))
    sequence = b"\x08\x00\x15\x92SQ\0\0" + len(items).to_bytes(4, "little") + items
    await site.put(image(1, before=sequence))
    [model] = (await site.get(FIRST + "/metadata")).json
    assert len(model["00089215"]["Value"]) == 2000


# Bulk data


async def test_bulk_data_inside_of_sequences(site: Site) -> None:
    value = bytes(range(256)) * 16
    item = element(0x54001010, "OW", value)
    sequence = (
        b"\x00\x54\x00\x01SQ\0\0\xff\xff\xff\xff"
        + b"\xfe\xff\x00\xe0\0\0\0\0"  # an empty one
        + b"\xfe\xff\x00\xe0\xff\xff\xff\xff" + item + b"\xfe\xff\x0d\xe0\0\0\0\0"
        + b"\xfe\xff\xdd\xe0\0\0\0\0"
    )  # fmt: skip
    original = image(1)
    assert isinstance(original.data, bytes)
    pixels = original.data.index(b"\xe0\x7f\x10\x00")
    data = original.data[:pixels] + sequence + original.data[pixels:]
    await site.put(Instance(CT, original.sop_instance_uid, EXPLICIT, data))
    [model] = (await site.get(FIRST + "/metadata")).json
    uri = model["54000100"]["Value"][1]["54001010"]["BulkDataURI"]
    assert uri == f"{site.root}{FIRST}/bulkdata/54000100/2/54001010"
    path = uri.removeprefix(site.root)
    answer = await site.get(path)
    assert answer.type.startswith('multipart/related; type="application/octet-stream"')
    [(headers, content)] = answer.parts
    assert (headers["content-type"], headers["content-location"]) == ("application/octet-stream", uri)
    assert content == value
    single = await site.get(path, "application/octet-stream")
    assert (single.type, single.body) == ("application/octet-stream", value)
    for other in ("54000100/1/54001010", "54000100/3/54001010", "54000100", "x", "54001010"):
        assert (await site.get(f"{FIRST}/bulkdata/{other}")).status == 404, other


async def test_native_pixel_data_as_bulk_data(site: Site) -> None:
    await site.put(image(1, frames=2, bits=16, pixels=element(0x7FE00010, "OW", bytes(range(24)))))
    [(_, content)] = (await site.get(FIRST + "/bulkdata/7FE00010")).parts
    assert content == bytes(range(24))
    assert (await site.get(FIRST + "/bulkdata/7FE00010", "application/octet-stream")).body == bytes(range(24))


async def test_encapsulated_pixel_data_as_bulk_data(site: Site) -> None:
    frames = [b"\xff\xd8one\xff\xd9\0", b"\xff\xd8two\xff\xd9\0"]
    await site.put(image(1, frames=2, pixels=fragments(b"", *frames), syntax=JPEG))
    answer = await site.get(FIRST + "/bulkdata/7FE00010")
    assert answer.type.startswith('multipart/related; type="image/jpeg"')
    assert [content for _, content in answer.parts] == frames
    assert (await site.get(FIRST + "/bulkdata/7FE00010", "application/octet-stream")).status == 406


# Frames


async def test_native_frames(site: Site) -> None:
    await site.put(image(1, frames=3, pixels=element(0x7FE00010, "OB", bytes(range(18)))))
    answer = await site.get(FIRST + "/frames/1,3")
    assert answer.type.startswith('multipart/related; type="application/octet-stream"')
    assert [content for _, content in answer.parts] == [bytes(range(6)), bytes(range(12, 18))]
    assert [headers["content-location"] for headers, _ in answer.parts] == [
        f"{site.root}{FIRST}/frames/{number}" for number in (1, 3)
    ]
    single = await site.get(FIRST + "/frames/2", "application/octet-stream")
    assert (single.type, single.body) == ("application/octet-stream", bytes(range(6, 12)))
    assert int(single.headers.get("content-length")) == 6
    accept = f'multipart/related; type="application/octet-stream"; transfer-syntax={EXPLICIT}'
    assert (await site.get(FIRST + "/frames/2", accept)).status == 200


async def test_frames_of_one_bit_per_pixel(site: Site) -> None:
    """Three frames of 3 x 3 pixels: 27 bits, the first pixel in the lowest one (PS3.5 §8.1.1)."""
    bits = [(1, 0, 0, 0, 1, 0, 0, 0, 1), (1, 1, 1, 1, 1, 1, 1, 1, 1), (0, 1, 0, 1, 0, 1, 0, 1, 0)]
    packed = bytes([0b00010001, 0b11111111, 0b10101011, 0b00000010])
    assert np.packbits(sum(bits, ()), bitorder="little").tobytes() == packed
    await site.put(image(1, rows=3, columns=3, bits=1, frames=3, pixels=element(0x7FE00010, "OB", packed)))
    answer = await site.get(FIRST + "/frames/1,2,3")
    assert [content for _, content in answer.parts] == [
        bytes([0b00010001, 0b1]),
        bytes([0b11111111, 0b1]),
        bytes([0b10101010, 0b0]),
    ]


@pytest.mark.parametrize(
    ("list_", "status"),
    [
        ("1", 200),
        ("0", 400),
        ("", 404),
        ("x", 400),
        ("1,", 400),
        ("2,1", 400),
        ("1,1", 400),
        ("3", 404),
        ("1,3", 404),
    ],
)
async def test_frame_lists(site: Site, list_: str, status: int) -> None:
    await site.put(image(1, frames=2))
    assert (await site.get(f"{FIRST}/frames/{list_}")).status == status


@pytest.mark.parametrize(
    ("accept", "type_"),
    [
        (None, 'multipart/related; type="image/jpeg"'),
        ("*/*", 'multipart/related; type="image/jpeg"'),
        ('multipart/related; type="image/jpeg"', 'multipart/related; type="image/jpeg"'),
        (
            f'multipart/related; type="image/jpeg"; transfer-syntax={JPEG}',
            'multipart/related; type="image/jpeg"',
        ),
        ("image/jpeg", f"image/jpeg; transfer-syntax={JPEG}"),
        (f'multipart/related; type="image/jpeg"; transfer-syntax={RLE}', None),
        ('multipart/related; type="image/jls"', None),
        ("application/octet-stream", None),
        (
            'multipart/related; type="application/octet-stream"; transfer-syntax=*',
            'multipart/related; type="application/octet-stream"',
        ),
        (
            'application/octet-stream, multipart/related; type="image/jpeg"; q=0.1',
            'multipart/related; type="image/jpeg"',
        ),
        ("image/png", None),
    ],
)
async def test_media_types_of_encapsulated_frames(site: Site, accept: str | None, type_: str | None) -> None:
    frame = b"\xff\xd8one\xff\xd9\0"
    await site.put(image(1, pixels=fragments(b"", frame), syntax=JPEG))
    answer = await site.get(FIRST + "/frames/1", accept)
    if type_ is None:
        assert answer.status == 406
        return
    assert (answer.status, answer.type.partition("; boundary")[0]) == (200, type_)
    if "multipart" in type_:
        [(headers, content)] = answer.parts
        part_type = "application/octet-stream" if "octet" in type_ else "image/jpeg"
        assert headers["content-type"] == f"{part_type}; transfer-syntax={JPEG}"
        assert content == frame
    else:
        assert answer.body == frame


async def test_frames_of_samples(site: Site, pydicom_files: list[Any]) -> None:
    """As pydicom has them, in every transfer syntax."""
    syntaxes = set()
    for sample, path in with_paths(pydicom_files):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(sample.path)
            if "PixelData" not in dataset or "Rows" not in dataset:
                continue
            count = int(dataset.get("NumberOfFrames") or 1)
        syntax = UID(sample.transfer_syntax_uid)
        if syntax.is_encapsulated:
            wanted = list(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=count))
        elif dataset.BitsAllocated < 8 or "422" in dataset.PhotometricInterpretation:
            continue
        else:
            size = dataset.Rows * dataset.Columns * dataset.SamplesPerPixel * dataset.BitsAllocated // 8
            pixels = dataset.PixelData
            if syntax == BIG and dataset.BitsAllocated > 8:
                pixels = np.frombuffer(pixels, ">u2").astype("<u2").tobytes()
            wanted = [pixels[at * size : (at + 1) * size] for at in range(count)]
            if syntax == BIG and dataset.BitsAllocated == 8:
                continue
        await site.put(Instance(sample.sop_class_uid, sample.sop_instance_uid, str(syntax), sample.data_set))
        numbers = ",".join(str(number) for number in range(1, count + 1))
        answer = await site.get(f"{path}/frames/{numbers}")
        assert answer.status == 200, (sample, answer.body)
        assert [content for _, content in answer.parts] == wanted, sample
        syntaxes.add(syntax)
    assert len(syntaxes) >= 10


# WADO-URI


@pytest.mark.parametrize(
    ("query", "status"),
    [
        (
            "requestType=WADO&studyUID=1.2.3&seriesUID=1.2.3.1&objectUID=1.2.3.1.1&contentType=application/dicom",
            200,
        ),
        (
            "requestType=WADO&studyUID=1.2.3&seriesUID=1.2.3.1&objectUID=1.2.3.1.1"
            "&contentType=application%2Fdicom&transferSyntax=1.2.840.10008.1.2.4.90",
            200,
        ),
        ("requestType=WADO&studyUID=1.2.3&seriesUID=1.2.3.1&objectUID=1.2.3.1.1&contentType=image/jpeg", 406),
        ("requestType=WADO&studyUID=1.2.3&seriesUID=1.2.3.1&objectUID=1.2.3.1.1", 406),
        ("requestType=WADO&studyUID=1.2.3&seriesUID=1.2.3.1&contentType=application/dicom", 400),
        ("studyUID=1.2.3&seriesUID=1.2.3.1&objectUID=1.2.3.1.1&contentType=application/dicom", 400),
        (
            "requestType=WADO&studyUID=1.2.3&seriesUID=1.2.3.1&objectUID=1.2.3.1.7&contentType=application/dicom",
            404,
        ),
        (
            "requestType=WADO&studyUID=1.2.3&seriesUID=1.2.3.1&objectUID=1.2.3.1.1&contentType=application/dicom"
            "&anonymize=yes",
            501,
        ),
    ],
)
async def test_wado_uri(site: Site, query: str, status: int) -> None:
    await site.put(image(1))
    answer = await site.get("/wado?" + query)
    assert answer.status == status
    if status == 200:
        assert answer.type == f"application/dicom; transfer-syntax={EXPLICIT}"
        assert data_set(answer.body) == image(1).data


# Memory

LARGE_BYTES = 300_000_000


@pytest.mark.parametrize("what", ["", "zip", "/frames/3", "/bulkdata/7FE00010", "/metadata"])
async def test_a_large_instance_passes_in_little_memory(site: Site, what: str) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        whole = image(1, rows=10_000, columns=10_000, frames=3, pixels=b"\xe0\x7f\x10\x00OB\0\0")
        assert isinstance(whole.data, bytes)
        yield whole.data + LARGE_BYTES.to_bytes(4, "little")
        for _ in range(300):
            yield bytes(1_000_000)

    await site.put(Instance(CT, f"{SERIES}.1", EXPLICIT, pieces()))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size = 0
    accept = "application/zip" if what == "zip" else None
    async with site.stream(FIRST + what.removeprefix("zip"), accept) as response:
        assert response.status == 200
        async for chunk in response:
            size += len(chunk)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 60_000  # KiB
    least = {"/frames/3": LARGE_BYTES // 3, "/metadata": 100}.get(what, LARGE_BYTES)
    assert least <= size < least + 10_000
