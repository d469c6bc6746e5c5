"""The dicomweb endpoint of a running gateway, over an archive and over a PACS that is another pipeline's archive: what
gets where by path and Accept, what every answer has, and a client that others wrote."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import json
import zipfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from xml.etree import ElementTree

import pydicom
import pytest
import zstandard
from dicomweb_client import DICOMwebClient

from harmony.dimse.part10 import read_file_meta
from harmony.gateway.app import Gateway
from harmony.gateway.checks import unsupported
from harmony.gateway.config import ConfigError
from harmony.gateway.loading import load
from harmony.http import RequestBody
from harmony.http.client import HTTPClient, UpstreamError, UpstreamResponse
from harmony.http.media_type import parse_media_type
from harmony.http.multipart import multipart_boundary, read_parts

PATIENCE_S = 20.0
DICOM = 'multipart/related; type="application/dicom"; transfer-syntax=*'
JSON = "application/dicom+json"
CHROME = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8"


@dataclass
class Web:
    """A running gateway: an archive at /archive, the same as a PACS behind C-FIND and C-GET at /pacs."""

    root: str
    client: HTTPClient

    async def ask(
        self, path: str, accept: str | None = None, *, method: str = "GET", body: bytes = b"", **headers: str
    ) -> UpstreamResponse:
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        if accept is not None:
            fields["Accept"] = accept
        async with asyncio.timeout(PATIENCE_S):
            return await self.client.request(method, path, body=body, headers=fields)

    async def json(self, path: str, accept: str | None = JSON, **headers: str) -> Any:
        answer = await self.ask(path, accept, **headers)
        assert answer.status == 200, answer.body
        assert answer.headers.get("content-type") == JSON
        return json.loads(answer.body)

    async def parts(self, path: str, accept: str = DICOM) -> list[tuple[str, bytes]]:
        answer = await self.ask(path, accept)
        assert answer.status == 200, answer.body
        media_type = parse_media_type(answer.headers.get("content-type") or "")
        assert media_type.essence == "multipart/related"
        found = []
        async for part in read_parts(RequestBody.of(answer.body), multipart_boundary(media_type)):
            found.append((part.headers.get("content-type") or "", b"".join([piece async for piece in part])))
        return found


@dataclass
class Sample:
    content: bytes
    study: str
    series: str
    instance: str

    @classmethod
    def of(cls, path: Path) -> Sample:
        read = pydicom.dcmread(path, stop_before_pixels=True)
        return cls(path.read_bytes(), read.StudyInstanceUID, read.SeriesInstanceUID, str(read.SOPInstanceUID))

    @property
    def path(self) -> str:
        return f"/studies/{self.study}/series/{self.series}/instances/{self.instance}"


@pytest.fixture(scope="session")
def samples(pydicom_files: list[Any]) -> dict[str, Sample]:
    wanted = ("CT_small.dcm", "MR_small.dcm")
    return {each.path.name: Sample.of(each.path) for each in pydicom_files if each.path.name in wanted}


@pytest.fixture(scope="session")
def ct(samples: dict[str, Sample]) -> Sample:
    return samples["CT_small.dcm"]


def configuration(storage: Path, http_port: int, dicom_port: int, options: str = "", more: str = "") -> str:
    return f"""
        [proxy]
        id = "web"
        [storage.options]
        path = "{storage}"
        [network.n.http]
        bind_address = "127.0.0.1"
        bind_port = {http_port}
        [network.n.dicom]
        bind_address = "127.0.0.1"
        bind_port = {dicom_port}
        [pipelines.archive]
        networks = ["n"]
        endpoints = ["scp", "archive"]
        middleware = ["dicomweb_bridge"]
        [endpoints.scp]
        service = "dicom_scp"
        options = {{ local_aet = "PACS", min_free_bytes = 0 }}
        [endpoints.archive]
        service = "dicomweb"
        [endpoints.archive.options]
        path_prefix = "/archive"
        {options}
        [pipelines.pacs]
        networks = ["n"]
        endpoints = ["pacs"]
        backends = ["pacs"]
        [endpoints.pacs]
        service = "dicomweb"
        [endpoints.pacs.options]
        path_prefix = "/pacs"
        {options}
        [backends.pacs]
        service = "dicom_scu"
        options = {{ aet = "PACS", host = "127.0.0.1", port = {dicom_port}, timeout_secs = 20 }}
        [pipelines.nobody]
        networks = ["n"]
        endpoints = ["nobody"]
        backends = ["nobody"]
        [endpoints.nobody]
        service = "dicomweb"
        options.path_prefix = "/nobody"
        [backends.nobody]
        service = "dicom_scu"
        options = {{ aet = "NOBODY", host = "127.0.0.1", port = 1, timeout_secs = 5 }}
        {more}
    """


Start = Callable[..., Any]


@pytest.fixture
async def start(
    tmp_path: Path, free_ports: Callable[[int], list[int]], load_config: Callable[[str], Any], no_leaks: None
) -> AsyncIterator[Start]:
    """await start(options="…", more="…") -> Web"""
    async with contextlib.AsyncExitStack() as stack:

        async def begin(options: str = "", more: str = "") -> Web:
            http_port, dicom_port = free_ports(2)
            loaded = load_config(configuration(tmp_path / "s", http_port, dicom_port, options, more))
            assert unsupported(loaded) == []
            gateway = Gateway(loaded)
            await gateway.start()
            stack.push_async_callback(gateway.stop, 0.0)
            root = f"http://127.0.0.1:{http_port}"
            client = await stack.enter_async_context(HTTPClient(root, timeout_s=PATIENCE_S))
            return Web(root, client)

        yield begin


@pytest.fixture
async def web(start: Start, samples: dict[str, Sample]) -> Web:
    """With the samples in it, which came through STOW."""
    web: Web = await start()
    body = b"".join(
        b"--b\r\nContent-Type: application/dicom\r\n\r\n" + sample.content + b"\r\n"
        for sample in samples.values()
    )
    answer = await web.ask(
        "/archive/studies",
        method="POST",
        body=body + b"--b--\r\n",
        Content_Type='multipart/related; type="application/dicom"; boundary=b',
    )
    assert answer.status == 200, answer.body
    assert len(json.loads(answer.body)["00081199"]["Value"]) == len(samples)
    return web


both = pytest.mark.parametrize("prefix", ["/archive", "/pacs"])


def values(answer: list[dict[str, Any]], tag: str) -> list[Any]:
    return sorted(each[tag]["Value"][0] for each in answer)


# What gets where


@both
async def test_searches(web: Web, samples: dict[str, Sample], ct: Sample, prefix: str) -> None:
    every = list(samples.values())
    assert values(await web.json(prefix + "/studies"), "0020000D") == sorted(each.study for each in every)
    assert values(await web.json(prefix + "/series"), "0020000E") == sorted(each.series for each in every)
    assert values(await web.json(prefix + "/instances"), "00080018") == sorted(
        each.instance for each in every
    )
    study = f"{prefix}/studies/{ct.study}"
    assert values(await web.json(study + "/series"), "0020000E") == [ct.series]
    assert values(await web.json(study + "/instances"), "00080018") == [ct.instance]
    assert values(await web.json(f"{study}/series/{ct.series}/instances"), "00080018") == [ct.instance]
    assert values(await web.json(prefix + "/studies?Modality=CT"), "0020000D") == [ct.study]
    answer = await web.ask(prefix + "/studies?PatientName=Nobody", JSON)
    assert (answer.status, answer.body) == (204, b"")


@both
@pytest.mark.parametrize(
    ("accept", "retrieves"),
    [
        (None, False),
        ("*/*", False),
        (CHROME, False),
        (JSON, False),
        ("application/json", False),
        (DICOM, True),
        ('multipart/related; type="application/dicom"', True),
        ("multipart/related", True),
        ("multipart/*", True),
        ("application/dicom+json;q=0.5, multipart/related", True),
        ("application/dicom+json, multipart/related;q=0.5", False),
    ],
)
async def test_accept_decides(web: Web, ct: Sample, prefix: str, accept: str | None, retrieves: bool) -> None:
    study = f"/studies/{ct.study}"
    for path in (study, f"{study}/series/{ct.series}", ct.path):
        if retrieves:
            assert accept is not None
            [(content_type, content)] = await web.parts(prefix + path, accept)
            assert content_type.startswith("application/dicom")
            read = pydicom.dcmread(io.BytesIO(content))
            assert read.SOPInstanceUID == ct.instance
            assert read == pydicom.dcmread(io.BytesIO(ct.content))
        else:
            [found] = await web.json(prefix + path, accept)
            assert found["0020000D"]["Value"] == [ct.study]
            assert found["00081190"]["Value"] == [web.root + prefix + path]


@both
async def test_one_instance_as_one_file_and_a_series_as_a_zip(web: Web, ct: Sample, prefix: str) -> None:
    answer = await web.ask(prefix + ct.path, "application/dicom; transfer-syntax=*")
    assert (answer.status, answer.headers.get("content-type", "").partition(";")[0]) == (
        200,
        "application/dicom",
    )
    meta = read_file_meta(answer.body)
    assert meta.media_storage_sop_instance_uid == ct.instance
    assert answer.body[meta.data_set_offset :] == ct.content[read_file_meta(ct.content).data_set_offset :]
    answer = await web.ask(f"{prefix}/studies/{ct.study}?accept=application/zip")
    with zipfile.ZipFile(io.BytesIO(answer.body)) as archive:
        [name] = archive.namelist()
        assert pydicom.dcmread(io.BytesIO(archive.read(name))).SOPInstanceUID == ct.instance


@both
async def test_metadata_and_bulk_data_and_frames(web: Web, ct: Sample, prefix: str) -> None:
    pixels = pydicom.dcmread(io.BytesIO(ct.content)).PixelData
    study = f"/studies/{ct.study}"
    for path in (study, f"{study}/series/{ct.series}", ct.path):
        [header] = await web.json(f"{prefix}{path}/metadata")
        assert header["00080018"]["Value"] == [ct.instance]
        uri = header["7FE00010"]["BulkDataURI"]
        assert uri.startswith(f"{web.root}{prefix}{ct.path}/bulkdata/")
    octets = "application/octet-stream"
    answer = await web.ask(uri.removeprefix(web.root), octets)
    assert (answer.status, answer.body) == (200, pixels)
    assert await web.parts(f"{prefix}{ct.path}/frames/1", f"multipart/related; type={octets}") == [
        (octets, pixels)
    ]
    assert (await web.ask(f"{prefix}{ct.path}/frames/2", octets)).status == 404
    assert (await web.ask(f"{prefix}{ct.path}/frames/x", octets)).status == 400


@both
async def test_wado_uri(web: Web, ct: Sample, prefix: str) -> None:
    query = f"studyUID={ct.study}&seriesUID={ct.series}&objectUID={ct.instance}"
    answer = await web.ask(f"{prefix}/wado?requestType=WADO&{query}&contentType=application/dicom")
    assert pydicom.dcmread(io.BytesIO(answer.body)).SOPInstanceUID == ct.instance
    assert (await web.ask(f"{prefix}/wado?{query}")).status == 400


@both
async def test_store(start: Start, samples: dict[str, Sample], ct: Sample, prefix: str) -> None:
    web = await start()
    wrong = await web.ask(
        f"{prefix}/studies/1.2.3", method="POST", body=ct.content, Content_Type="application/dicom"
    )
    assert wrong.status == 409
    answer = await web.ask(
        f"{prefix}/studies/{ct.study}", method="POST", body=ct.content, Content_Type="application/dicom"
    )
    assert answer.status == 200, answer.body
    stored = json.loads(answer.body)
    assert stored["00081190"]["Value"] == [f"{web.root}{prefix}/studies/{ct.study}"]
    assert stored["00081199"]["Value"][0]["00081190"]["Value"] == [web.root + prefix + ct.path]
    assert values(await web.json("/archive/instances"), "00080018") == [ct.instance]
    assert (
        await web.ask(f"{prefix}/studies", method="POST", body=b"x", Content_Type="text/plain")
    ).status == 415


# Errors


@both
async def test_errors(web: Web, ct: Sample, prefix: str) -> None:
    for path, accept, status in (
        ("/studies/x/series", JSON, 400),
        (f"/studies/{ct.study}/series/1..2/instances", JSON, 400),
        ("/studies/..%2F..%2Fetc", DICOM, 400),
        ("/studies?StudyDate=tomorrow", JSON, 400),
        ("/studies/1.2.3", DICOM, 404),
        ("/studies/1.2.3/metadata", JSON, 404),
        (ct.path + "/bulkdata/nothing", "*/*", 404),
        ("/patients", JSON, 404),
        ("", JSON, 405),
        ("/studies", "text/html", 406),
        (ct.path, "text/html", 406),
        (ct.path + "/rendered", "text/html", 406),
        (ct.path + "/frames/x/rendered", "image/jpeg", 400),
        (ct.path + "/frames/9/rendered", "image/jpeg", 404),
        ("/studies/9.9/rendered", "image/jpeg", 404),
        ("/studies/1.2.3/thumbnail", "*/*", 404),
    ):
        answer = await web.ask(prefix + path, accept)
        assert answer.status == status, (path, answer.body)
        assert json.loads(answer.body)["error"]
    answer = await web.ask(f"{prefix}/studies", JSON, method="DELETE")
    assert (answer.status, answer.headers.get("allow")) == (405, "GET, HEAD, OPTIONS, POST")


async def test_what_can_be_had_is_said_when_nothing_is_acceptable(web: Web, ct: Sample) -> None:
    answer = await web.ask("/archive" + ct.path, "text/html")
    message = json.loads(answer.body)["error"]
    for media_type in (
        JSON,
        'multipart/related; type="application/dicom"',
        "application/zip",
        "application/dicom",
    ):
        assert media_type in message


async def test_a_pacs_that_is_not_there(web: Web, ct: Sample) -> None:
    for path, accept in (
        ("/studies", JSON),
        ("/instances", JSON),
        (ct.path, DICOM),
        (ct.path, "application/dicom"),
        (f"/studies/{ct.study}", "application/zip"),
        (ct.path + "/metadata", JSON),
        (ct.path + "/frames/1", "*/*"),
    ):
        answer = await web.ask("/nobody" + path, accept)
        assert answer.status == 502, (path, answer.status)
        assert "cannot connect" in json.loads(answer.body)["error"]
    answer = await web.ask(
        "/nobody/studies", method="POST", body=ct.content, Content_Type="application/dicom"
    )
    assert answer.status == 502


# What every answer has


@pytest.mark.parametrize(("coding", "decode"), [("gzip", gzip.decompress), ("zstd", None)])
@both
async def test_json_is_compressed(web: Web, ct: Sample, prefix: str, coding: str, decode: Any) -> None:
    path = f"{prefix}{ct.path}/metadata"
    plain = await web.ask(path, JSON)
    assert "content-encoding" not in plain.headers
    answer = await web.ask(path, JSON, Accept_Encoding=coding)
    assert answer.headers.get("content-encoding") == coding
    assert {"Accept", "Accept-Encoding"} <= set((answer.headers.get("vary") or "").split(", "))
    assert len(answer.body) < len(plain.body) / 2
    body = (
        decode(answer.body)
        if decode
        else zstandard.ZstdDecompressor().decompressobj().decompress(answer.body)
    )
    assert body == plain.body
    searched = f"{prefix}/studies/{ct.study}/instances?includefield=all"
    answer = await web.ask(searched, JSON, Accept_Encoding=coding)
    assert answer.headers.get("content-encoding") == coding
    answer = await web.ask(prefix + ct.path, DICOM, Accept_Encoding=coding)
    assert "content-encoding" not in answer.headers


async def test_nobody_else_s_pages_by_default(web: Web, ct: Sample) -> None:
    for path, method in (
        ("/archive/studies", "GET"),
        ("/archive/studies", "OPTIONS"),
        ("/archive" + ct.path, "GET"),
    ):
        answer = await web.ask(path, JSON, method=method, Origin="https://viewer.example.org")
        assert answer.status == 200
        assert not [name for name, _ in answer.headers if name.startswith("access-control")]


async def test_other_pages_do_not_store(start: Start, ct: Sample) -> None:
    web = await start()
    for origin, status in (("https://other.example.org", 403), ("null", 403), (web.root, 200)):
        # Without a Content-Type a browser does not ask first.
        answer = await web.ask("/archive/studies", method="POST", body=ct.content, Origin=origin)
        assert answer.status == status, answer.body
        assert (await web.ask("/archive/studies", JSON)).status == (204 if status == 403 else 200)


PATHS = (
    "/", "/studies", "/series", "/instances", "/studies/1", "/studies/1/series", "/studies/1/instances",
    "/studies/1/metadata", "/studies/1/rendered", "/studies/1/series/2", "/studies/1/series/2/metadata",
    "/studies/1/series/2/instances", "/studies/1/series/2/instances/3", "/studies/1/series/2/instances/3/metadata",
    "/studies/1/series/2/instances/3/frames/1,2", "/studies/1/series/2/instances/3/bulkdata/7FE00010", "/wado",
)  # fmt: skip


@both
async def test_preflights_of_every_route(start: Start, prefix: str) -> None:
    web = await start('allow_origins = ["*"]')
    for path in PATHS:
        answer = await web.ask(
            prefix + path,
            method="OPTIONS",
            Origin="https://viewer.example.org",
            Access_Control_Request_Method="POST",
            Access_Control_Request_Headers="content-type",
        )
        assert (answer.status, answer.body) == (200, b"")
        assert answer.headers.get("access-control-allow-origin") == "*"
        allowed = answer.headers.get("access-control-allow-methods") or ""
        assert "OPTIONS" in allowed
        assert ("POST" in allowed) == (path in ("/studies", "/studies/1"))
        assert ("GET" in allowed) == (path != "/")
        assert {"accept", "content-type"} <= set(
            (answer.headers.get("access-control-allow-headers") or "").split(", ")
        )


async def test_pages_that_are_allowed_can_read_answers_and_errors(start: Start, ct: Sample) -> None:
    viewer = "https://viewer.example.org"
    web = await start(f'allow_origins = ["{viewer}"]')
    for path, status in (
        ("/archive/studies", 204),
        ("/archive/studies/x", 400),
        ("/archive/studies/1.2.3/metadata", 404),
        ("/archive/studies?accept=text/html", 406),
        (f"/pacs/studies/{ct.study}/metadata", 404),
    ):
        answer = await web.ask(path, Origin=viewer)
        assert answer.status == status
        assert answer.headers.get("access-control-allow-origin") == viewer
        assert "warning" in (answer.headers.get("access-control-expose-headers") or "")
        other = await web.ask(path, Origin="https://other.example.org")
        assert "access-control-allow-origin" not in other.headers
        assert "Origin" in (other.headers.get("vary") or "")


async def test_capabilities(start: Start) -> None:
    web = await start()
    answer = await web.ask("/archive", method="OPTIONS")
    assert (answer.status, answer.headers.get("content-type")) == (200, "application/json")
    described = json.loads(answer.body)
    assert described["base"] == web.root + "/archive"
    methods = {
        each["path"]: [method["name"] for method in each["methods"]] for each in described["resources"]
    }
    assert methods["/studies"] == ["SearchForStudies", "StoreInstances"]
    assert methods["/studies/{study}"] == ["RetrieveStudy", "StoreStudyInstances"]
    assert methods["/studies/{study}/rendered"] == ["RetrieveRenderedStudy"]
    answer = await web.ask("/archive/", "application/vnd.sun.wadl+xml", method="OPTIONS")
    assert answer.headers.get("content-type") == "application/vnd.sun.wadl+xml"
    tree = ElementTree.fromstring(answer.body)
    name = "{http://wadl.dev.java.net/2009/02}"
    assert tree.find(f"{name}resources").get("base") == web.root + "/archive/"  # type: ignore[union-attr]
    listed = [each.get("path") for each in tree.iter(f"{name}resource")]
    assert "studies/{study}/series/{series}/instances/{instance}/bulkdata/{path}" in listed


async def test_urls_behind_a_proxy(start: Start, ct: Sample) -> None:
    web = await start('public_url = "https://pacs.example.org/web/"')
    answer = await web.ask(
        "/archive/studies", method="POST", body=ct.content, Content_Type="application/dicom"
    )
    assert json.loads(answer.body)["00081190"]["Value"] == [
        f"https://pacs.example.org/web/studies/{ct.study}"
    ]
    [header] = await web.json(f"/archive{ct.path}/metadata")
    assert header["7FE00010"]["BulkDataURI"].startswith(f"https://pacs.example.org/web{ct.path}/bulkdata/")


async def test_options_reach_the_searches(start: Start, samples: dict[str, Sample]) -> None:
    web = await start("max_results = 1\nempty_search_status = 200")
    assert await web.json("/archive/studies") == []
    for sample in samples.values():
        await web.ask(
            "/archive/studies", method="POST", body=sample.content, Content_Type="application/dicom"
        )
    answer = await web.ask("/archive/studies", JSON)
    assert len(json.loads(answer.body)) == 1
    assert "additional results" in (answer.headers.get("warning") or "")


async def test_uploads_are_limited(start: Start, ct: Sample) -> None:
    web = await start("max_upload_bytes = 1000")
    with contextlib.suppress(UpstreamError):  # refused before it was sent, which may break the sending off
        answer = await web.ask(
            "/archive/studies", method="POST", body=ct.content, Content_Type="application/dicom"
        )
        assert answer.status == 413


async def test_head(web: Web, ct: Sample) -> None:
    answer = await web.ask(f"/archive{ct.path}/metadata", JSON, method="HEAD")
    assert (answer.status, answer.body, answer.headers.get("content-type")) == (200, b"", JSON)


@both
@pytest.mark.parametrize("accept", [DICOM, "application/zip"])
async def test_a_client_that_leaves(web: Web, ct: Sample, prefix: str, accept: str) -> None:
    large = pydicom.dcmread(io.BytesIO(ct.content))
    large.SOPInstanceUID = large.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    large.Rows, large.Columns, large.PixelData = 2048, 4096, bytes(2048 * 4096 * 2)
    file = io.BytesIO()
    large.save_as(file)
    answer = await web.ask(
        "/archive/studies", method="POST", body=file.getvalue(), Content_Type="application/dicom"
    )
    assert answer.status == 200
    path = f"{prefix}/studies/{ct.study}"
    async with web.client.stream("GET", path, headers={"Accept": accept}) as answer:
        assert answer.status == 200
        await anext(aiter(answer))
    assert len(await web.json(f"{prefix}/studies/{ct.study}/instances")) == 2


# What it stands in front of


@pytest.mark.parametrize("backends", ["[]", '["s"]'])
async def test_an_archive_that_nobody_sends_to(
    start: Start, ct: Sample, tmp_path: Path, backends: str
) -> None:
    web = await start(
        more=f"""
        [pipelines.other]
        networks = ["n"]
        endpoints = ["other"]
        backends = {backends}
        [endpoints.other]
        service = "dicomweb"
        options.path_prefix = "/"
        [backends.s]
        service = "storage"
        options.root = "{tmp_path / "apart"}"
        """
    )
    answer = await web.ask("/studies", method="POST", body=ct.content, Content_Type="application/dicom")
    assert answer.status == 200, answer.body
    assert values(await web.json("/instances"), "00080018") == [ct.instance]
    apart = backends != "[]"
    assert (tmp_path / "apart" / "dimse").exists() == apart
    assert (await web.ask("/archive/instances", JSON)).status == (204 if apart else 200)


async def test_a_jmix_endpoint_may_have_the_same_prefix(start: Start, ct: Sample) -> None:
    web = await start(
        more="""
        [pipelines.jmix]
        networks = ["n"]
        endpoints = ["jmix"]
        [endpoints.jmix]
        service = "jmix"
        options.path_prefix = "/archive"
        """
    )
    await web.ask("/archive/studies", method="POST", body=ct.content, Content_Type="application/dicom")
    assert (await web.ask(f"/archive/api/jmix/prime/{ct.study}")).status == 201


async def test_without_an_index_there_is_nothing_to_search(
    tmp_path: Path, load_config: Callable[[str], Any]
) -> None:
    text = configuration(tmp_path, 8042, 11112).replace("min_free_bytes = 0", "index = false")
    with pytest.raises(ConfigError, match="index"):
        Gateway(load_config(text))


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ('public_url = "pacs.example.org"', "a URL such as"),
        ('public_url = "https://h/web?x"', "a URL such as"),
        ('allow_origins = ["https://viewer.example.org/"]', "an origin such as"),
        ('allow_origins = ["viewer.example.org"]', "an origin such as"),
        ("empty_search_status = 404", "one of 200, 204"),
        ("max_results = 0", "from 1"),
    ],
)
def test_options_that_are_refused(tmp_path: Path, options: str, allowed: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(configuration(tmp_path, 8042, 11112, options))
    with pytest.raises(ConfigError, match=allowed):
        load(path, env={})


@pytest.mark.parametrize(
    ("service", "middleware", "backends", "problem"),
    [
        ("dicomweb", "[]", '["b"]', "a dicomweb endpoint in front of jmix_backend"),
        ("dicomweb", '["jmix_builder"]', "[]", "packing what a dicomweb endpoint stores"),
        ("jmix", '["dicomweb_bridge"]', "[]", "dicomweb_bridge without a dicomweb endpoint"),
        ("dicomweb", '["dicomweb_bridge"]', "[]", None),
    ],
)
def test_what_cannot_be_run(
    load_config: Callable[[str], Any], service: str, middleware: str, backends: str, problem: str | None
) -> None:
    loaded = load_config(
        f"""
        [proxy]
        id = "web"
        [network.n.http]
        [pipelines.p]
        networks = ["n"]
        endpoints = ["e"]
        middleware = {middleware}
        backends = {backends}
        [endpoints.e]
        service = "{service}"
        options.path_prefix = "/web"
        [backends.b]
        service = "jmix_backend"
        connection.host = "h"
        """
    )
    found = [each.message for each in unsupported(loaded)]
    assert len(found) == (problem is not None)
    assert problem is None or problem in found[0]


# A client that others wrote


@both
async def test_dicomweb_client(start: Start, samples: dict[str, Sample], ct: Sample, prefix: str) -> None:
    web = await start()
    client = DICOMwebClient(web.root + prefix)
    read = [pydicom.dcmread(io.BytesIO(sample.content)) for sample in samples.values()]
    await asyncio.to_thread(client.store_instances, read)
    studies = await asyncio.to_thread(client.search_for_studies)
    assert {each["0020000D"]["Value"][0] for each in studies} == {sample.study for sample in samples.values()}
    [instance] = await asyncio.to_thread(client.retrieve_study, ct.study)
    assert instance == pydicom.dcmread(io.BytesIO(ct.content))
    uids = (ct.study, ct.series, ct.instance)
    metadata = await asyncio.to_thread(client.retrieve_instance_metadata, *uids)
    assert metadata["00080018"]["Value"] == [ct.instance]
    [frame] = await asyncio.to_thread(client.retrieve_instance_frames, *uids, [1])
    assert frame == instance.PixelData
    # It leaves the port out of Host, which only works with the usual one.
    path = urlsplit(metadata["7FE00010"]["BulkDataURI"]).path
    [bulk] = await asyncio.to_thread(client.retrieve_bulkdata, web.root + path)
    assert bulk == instance.PixelData
