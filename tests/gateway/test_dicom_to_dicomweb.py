"""DIMSE in, DICOMweb out: a gateway with dicom_to_dicomweb in front of another pipeline's dicomweb endpoint, and in
front of servers that answer as they are told, fail, hang or break off."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from harmony.archive.index import UniqueKeys
from harmony.archive.levels import Level
from harmony.archive.matcher import MatchingOptions
from harmony.dicom.json_model import encode_data_set, text_of
from harmony.dimse import SCU, Instance, associate
from harmony.dimse.part10 import encode_file_meta
from harmony.dimse.retrieve_scp import Unavailable
from harmony.dimse.source import pieces
from harmony.dimse.status import DimseError
from harmony.gateway.app import Gateway
from harmony.gateway.backend import Query, Retrieve
from harmony.gateway.checks import unsupported
from harmony.gateway.dicomweb_upstream import DicomwebUpstream
from harmony.http import HTTPServer, Request, Response
from harmony.ul.errors import AssociationError
from harmony.ul.negotiation import propose_contexts

PATIENCE_S = 30.0
MEBIBYTE = 1024 * 1024
CT, IMPLICIT, EXPLICIT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
STUDY = "1.2.3.4.5"
SERIES = STUDY + ".1"
JSON = {"Content-Type": "application/dicom+json"}
Handler = Callable[[Request], Awaitable[Response]]


@contextlib.asynccontextmanager
async def listening(handler: Handler) -> AsyncIterator[int]:
    server = HTTPServer(handler)
    await server.start("127.0.0.1", 0)
    try:
        yield server.addresses[0][1]
    finally:
        await server.stop()


class Server:
    """A DICOMweb server that answers as it is told, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.bodies: list[bytes] = []
        self.headers: list[Any] = []
        self.answer: Handler | None = None
        self.response = Response(204)

    async def __call__(self, request: Request) -> Response:
        self.asked.append(request.raw_path + (f"?{request.raw_query}" if request.raw_query else ""))
        self.headers.append(request.headers)
        if self.answer is not None:
            return await self.answer(request)
        self.bodies.append(await request.body.read())
        return self.response


class Bridge:
    """A gateway whose dicom_scp listens on `port`; `backend` is what is behind it."""

    def __init__(self, gateway: Gateway, port: int, backend: DicomwebUpstream) -> None:
        self.gateway = gateway
        self.port = port
        self.backend = backend

    @contextlib.asynccontextmanager
    async def scu(self) -> AsyncIterator[SCU]:
        contexts = propose_contexts([(CT, [IMPLICIT]), (CT, [EXPLICIT])])
        async with (
            asyncio.timeout(PATIENCE_S),
            associate("127.0.0.1", self.port, called_ae_title="BRIDGE", contexts=contexts) as scu,
        ):
            yield scu

    async def store(self, *instances: Instance) -> list[int]:
        async with self.scu() as scu:
            return [(await scu.store(each)).status for each in instances]

    async def refused(self, instance: Instance) -> int:
        async with self.scu() as scu:
            with pytest.raises(DimseError) as refused:
                await scu.store(instance)
        return refused.value.status

    async def find(self, level: Level, **options: Any) -> list[dict[str, Any]]:
        identifier = {
            key: {"vr": vr, "Value": value} if value else {"vr": vr}
            for key, (vr, value) in options.pop("keys", {}).items()
        }
        async with asyncio.timeout(PATIENCE_S):
            return [each async for each in self.backend.query(Query(level, identifier, **options))]

    async def retrieve(self, **keys: Any) -> dict[str, bytes | None]:
        """Data sets by SOP Instance UID; None: not to be had."""
        found: dict[str, bytes | None] = {}
        async with asyncio.timeout(PATIENCE_S):
            selection = await self.backend.retrieve(Retrieve(Level.STUDY, UniqueKeys(**keys)))
            announced = list(selection.sop_instance_uids or ())
            async for item in selection.instances:
                data = None
                if not isinstance(item, Unavailable):
                    data = b"".join([bytes(piece) async for piece in pieces(item.data)])
                found[item.sop_instance_uid] = data
        assert sorted(found) == sorted(announced)
        assert selection.total == len(announced)
        return found


Start = Callable[..., Awaitable[Bridge]]


@pytest.fixture
async def start(
    tmp_path: Path, free_ports: Callable[[int], list[int]], load_config: Callable[[str], Any], no_leaks: None
) -> AsyncIterator[Start]:
    """await start(handler): in front of that, without one of the archive of another pipeline."""
    async with contextlib.AsyncExitStack() as stack:

        async def begin(handler: Handler | None = None, *, options: str = "", more: str = "") -> Bridge:
            dicom, http = free_ports(2)
            behind = http if handler is None else await stack.enter_async_context(listening(handler))
            loaded = load_config(
                f"""
                [proxy]
                id = "bridge"
                [storage.options]
                path = "{tmp_path / "storage"}"
                [network.n.dicom]
                bind_address = "127.0.0.1"
                bind_port = {dicom}
                [network.n.http]
                bind_address = "127.0.0.1"
                bind_port = {http}
                [pipelines.bridge]
                networks = ["n"]
                endpoints = ["scp"]
                middleware = ["dicom_to_dicomweb"]
                backends = ["web"]
                [endpoints.scp]
                service = "dicom_scp"
                options.local_aet = "BRIDGE"
                [backends.web]
                service = "http"
                connection = {{ host = "127.0.0.1", port = {behind}, base_path = "/dicom-web" }}
                [backends.web.options]
                timeout_secs = 1
                {options}
                [pipelines.archive]
                networks = ["n"]
                endpoints = ["archive"]
                [endpoints.archive]
                service = "dicomweb"
                options.path_prefix = "/dicom-web"
                {more}
                """
            )
            assert unsupported(loaded) == []
            gateway = Gateway(loaded)
            await gateway.start()
            stack.push_async_callback(gateway.stop, 0.0)
            backend = next(each for each in gateway.assembly.backends if isinstance(each, DicomwebUpstream))
            return Bridge(gateway, dicom, backend)

        yield begin


# In front of a real one


def image(uid: str, *, study: str = STUDY, pixels: bytes = b"\1\2") -> Instance:
    """In Explicit VR: DICOMweb has no Implicit VR (PS3.18 §8.7.3.5.2)."""
    uids = {"00080016": CT, "00080018": uid, "0020000D": study, "0020000E": study + ".1"}
    header = encode_data_set({key: {"vr": "UI", "Value": [value]} for key, value in uids.items()}, EXPLICIT)
    pixel_data = b"\xe0\x7f\x10\x00OW\0\0" + len(pixels).to_bytes(4, "little") + pixels
    return Instance(CT, uid, EXPLICIT, header + pixel_data)


async def test_stored_found_and_retrieved(start: Start) -> None:
    bridge = await start()
    instances = {
        f"1.{number}": image(f"1.{number}", pixels=bytes([number] * 70_000)) for number in range(1, 4)
    }
    other = image("2.1", study="1.9")
    assert await bridge.store(*instances.values(), other) == [0, 0, 0, 0]
    await bridge.backend.echo()

    uid = ("UI", [])
    studies = await bridge.find(Level.STUDY, keys={"0020000D": uid, "00201208": ("IS", [])})
    assert {text_of(each, 0x0020000D): text_of(each, 0x00201208) for each in studies} == {
        STUDY: "3",
        "1.9": "1",
    }
    assert set(studies[0]) >= {"0020000D", "00201208"}
    assert "00081190" not in studies[0]
    series = await bridge.find(Level.SERIES, keys={"0020000D": ("UI", [STUDY]), "0008103E": ("LO", [])})
    assert [text_of(each, 0x0020000E) for each in series] == [SERIES]
    assert series[0]["0008103E"] == {"vr": "LO"}
    keys = {"0020000D": ("UI", [STUDY, "1.9"]), "00080018": uid}
    assert len(await bridge.find(Level.IMAGE, keys=keys)) == 4
    assert len(await bridge.find(Level.IMAGE, keys=keys, limit=2, offset=1)) == 2
    assert len(await bridge.find(Level.IMAGE, keys=keys, offset=3)) == 1
    assert await bridge.find(Level.STUDY, keys={"0020000D": ("UI", ["1.8"])}) == []

    wanted = {name: each.data for name, each in instances.items()}
    assert await bridge.retrieve(study_instance_uids=[STUDY]) == wanted
    assert await bridge.retrieve(study_instance_uids=[STUDY, "1.9"]) == wanted | {"2.1": other.data}
    assert await bridge.retrieve(series_instance_uids=[SERIES]) == wanted
    assert await bridge.retrieve(sop_instance_uids=["1.2"]) == {"1.2": wanted["1.2"]}
    assert await bridge.retrieve(study_instance_uids=["1.8"]) == {}
    assert await bridge.retrieve(study_instance_uids=[]) == {}


# What is asked


FIND = {"00100020": ("LO", ["P1"]), "00100010": ("PN", []), "00080061": ("CS", ["CT", "MR"])}


@pytest.mark.parametrize(
    ("level", "keys", "asked"),
    [
        (
            Level.STUDY,
            FIND,
            ["/studies?00100020=P1&00080061=CT%5CMR&includefield=00100010&includefield=00080061&limit=1000"],
        ),
        (Level.PATIENT, {"00100010": ("PN", [{"Alphabetic": "M\u00fcl*"}])},
         ["/studies?00100010=M%C3%BCl*&includefield=00100010&limit=1000"]),
        (Level.SERIES, {"0020000D": ("UI", ["1.2"]), "0020000E": ("UI", [])}, ["/studies/1.2/series?limit=1000"]),
        (Level.SERIES, {"0020000E": ("UI", ["1.3"])}, ["/series?0020000E=1.3&limit=1000"]),
        (
            Level.IMAGE,
            {"0020000D": ("UI", ["1.2"]), "0020000E": ("UI", ["1.3", "1.4"])},
            ["/studies/1.2/series/1.3/instances?limit=1000", "/studies/1.2/series/1.4/instances?limit=1000"],
        ),
        (Level.IMAGE, {"00080018": ("UI", ["1.5"])}, ["/instances?00080018=1.5&limit=1000"]),
        (Level.STUDY, {"00080052": ("CS", ["STUDY"]), "00080020": ("DA", ["20260101-"]), "0020000D": ("UI", ["*"])},
         ["/studies?00080020=20260101-&includefield=00080020&limit=1000"]),
        (Level.IMAGE, {"00400275": ("SQ", [{"00400009": {"vr": "SH", "Value": ["S 1"]}}])},
         ["/instances?00400275.00400009=S%201&includefield=00400275&limit=1000"]),
    ],
)  # fmt: skip
async def test_searches(start: Start, level: Level, keys: dict[str, Any], asked: list[str]) -> None:
    server = Server()
    bridge = await start(server)
    assert await bridge.find(level, keys=keys) == []
    assert server.asked == ["/dicom-web" + each for each in asked]
    assert server.headers[0].get("accept") == "application/dicom+json"


async def test_a_strict_server(start: Start) -> None:
    """A caret is sent as browsers do, and as RFC 3986 wants it to one who says that it is wrong."""
    server = Server()

    async def answer(request: Request) -> Response:
        return (
            Response(400)
            if "^" in request.raw_query
            else Response(200, JSON, json.dumps([study("1.2")]).encode())
        )

    server.answer = answer
    bridge = await start(server)
    keys = {"00100010": ("PN", [{"Alphabetic": "Doe^J*"}]), "0020000D": ("UI", [])}
    assert len(await bridge.find(Level.STUDY, keys=keys)) == 1
    assert [each.split("&")[0] for each in server.asked] == [
        "/dicom-web/studies?00100010=Doe^J*",
        "/dicom-web/studies?00100010=Doe%5EJ*",
    ]


async def test_matching_that_was_negotiated(start: Start) -> None:
    server = Server()
    bridge = await start(server)
    matching = MatchingOptions(fuzzy_names=True, empty_value_matching=True, multiple_value_matching=True)
    await bridge.find(Level.STUDY, matching=matching)
    assert server.asked == [
        "/dicom-web/studies?fuzzymatching=true&emptyvaluematching=true&multiplevaluematching=true&limit=1000"
    ]


async def test_credentials_and_headers(start: Start) -> None:
    server = Server()
    options = 'authentication_ref = "a"\nheaders = { X-Site = "north" }\npath_prefix = "rs"'
    more = '[authentications.a]\nmethod = "bearer"\noptions.token = "t"'
    bridge = await start(server, options=options, more=more)
    await bridge.find(Level.STUDY)
    server.response = Response(200)
    await bridge.backend.store_instance(Instance(CT, "1.2", IMPLICIT, b"\x08\0\x16\0"))
    assert [each.split("?")[0] for each in server.asked] == ["/dicom-web/rs/studies"] * 2
    for headers in server.headers:
        assert (headers.get("authorization"), headers.get("x-site")) == ("Bearer t", "north")


async def test_what_is_stored(start: Start, make_instance) -> None:
    server = Server()
    server.response = Response(200, JSON, b'{"status":"stored"}')
    bridge = await start(server)
    instance = make_instance("1.1")
    assert await bridge.store(instance) == [0]
    assert server.asked == ["/dicom-web/studies"]
    content_type = server.headers[0].get("content-type")
    opening, _, boundary = content_type.partition("; boundary=")
    assert opening == 'multipart/related; type="application/dicom"'
    file = encode_file_meta(
        transfer_syntax_uid=IMPLICIT, media_storage_sop_class_uid=CT, media_storage_sop_instance_uid="1.1"
    )
    line = boundary.encode()
    assert server.bodies == [
        b"--"
        + line
        + b"\r\nContent-Type: application/dicom\r\n\r\n"
        + file
        + instance.data
        + b"\r\n--"
        + line
        + b"--\r\n"
    ]


# What comes back


def study(uid: str, patient: str = "P") -> dict[str, Any]:
    return {
        "0020000D": {"vr": "UI", "Value": [uid]},
        "00100020": {"vr": "LO", "Value": [patient]},
        "00081190": {"vr": "UR", "Value": ["http://elsewhere"]},
        "00280010": {"vr": "US", "Value": ["no number"]},
    }


async def test_pages(start: Start) -> None:
    server = Server()

    async def page(request: Request) -> Response:
        offset = int(dict(request.query).get("offset", "0"))
        found = [study(f"1.{number}", f"P{number % 7}") for number in range(offset, min(offset + 1000, 2345))]
        return Response(200, JSON, json.dumps(found).encode())

    server.answer = page
    bridge = await start(server)
    found = await bridge.find(Level.STUDY, keys={"0020000D": ("UI", []), "00280010": ("US", [])})
    assert [text_of(each, 0x0020000D) for each in found] == [f"1.{number}" for number in range(2345)]
    assert sorted(found[0]) == [
        "00080052",
        "00100020",
        "0020000D",
    ]  # not what is none of its VR, nor what nobody asked for
    patients = await bridge.find(Level.PATIENT, keys={"00100020": ("LO", [])})
    assert sorted(text_of(each, 0x00100020) for each in patients) == [f"P{number}" for number in range(7)]


async def test_a_server_without_pages(start: Start) -> None:
    server = Server()
    found = [study(f"1.{number}") for number in range(1000)]
    server.response = Response(200, JSON, json.dumps(found).encode())
    bridge = await start(server)
    assert len(await bridge.find(Level.STUDY)) == 1000
    assert len(server.asked) == 2
    server.response = Response(200, JSON, json.dumps([*found, study("1.1000")]).encode())
    assert len(await bridge.find(Level.STUDY)) == 1001
    assert len(server.asked) == 3


@pytest.mark.parametrize(
    ("status", "body", "refused"),
    [
        (404, b"", None),
        (204, b"", None),
        (200, b"[]", None),
        (200, b"", None),
        (400, b"", 0xA900),
        (403, b"", 0x0124),
        (409, b"", 0xC000),
        (413, b"", 0xA700),
        (500, b"", 0xC000),
        (503, b"", 0xA700),
        (200, b"<html>", 0xC000),
        (200, b"[{]", 0xC000),
        (200, b'[{"0020000D": 1}]', 0xC000),
        (200, b'[{"00081115":' * 10_000, 0xC000),
        (200, b'[{"00081115":{"vr":' + b"[" * 10_000 + b"]" * 10_000 + b"}}]", 0xC000),
    ],
)
async def test_answers_to_a_search(start: Start, status: int, body: bytes, refused: int | None) -> None:
    server = Server()
    server.response = Response(status, JSON, body if status != 204 else None)
    bridge = await start(server)
    if refused is None:
        assert await bridge.find(Level.STUDY) == []
        assert await bridge.retrieve(study_instance_uids=[STUDY]) == {}
        return
    with pytest.raises(DimseError) as raised:
        await bridge.find(Level.STUDY)
    assert raised.value.status == refused
    with pytest.raises(DimseError):
        await bridge.retrieve(study_instance_uids=[STUDY])


async def test_a_single_object_is_a_match(start: Start) -> None:
    server = Server()
    server.response = Response(200, JSON, json.dumps(study("1.2")).encode())
    bridge = await start(server)
    assert [text_of(each, 0x0020000D) for each in await bridge.find(Level.STUDY)] == ["1.2"]


@pytest.mark.parametrize(("status", "dimse"), [(400, 0xA900), (413, 0xA700), (500, 0xC000), (503, 0xA700)])
async def test_a_store_that_is_refused(start: Start, make_instance, status: int, dimse: int) -> None:
    server = Server()
    server.response = Response(status)
    bridge = await start(server)
    assert await bridge.refused(make_instance("1.1")) == dimse


async def test_a_refusal_before_the_end(start: Start, make_instance) -> None:
    server = Server()

    async def full(request: Request) -> Response:
        return Response(507)

    server.answer = full
    bridge = await start(server)
    assert await bridge.refused(make_instance("1.1", pixels=bytes(20 * MEBIBYTE))) == 0xA700


# Retrieves that are not as they should be


def listed(*uids: str) -> bytes:
    return json.dumps(
        [
            {
                "0020000D": {"vr": "UI", "Value": [STUDY]},
                "0020000E": {"vr": "UI", "Value": [SERIES]},
                "00080018": {"vr": "UI", "Value": [uid]},
                "00080016": {"vr": "UI", "Value": [CT]},
            }
            for uid in uids
        ]
    ).encode()


def part(instance: Instance) -> bytes:
    meta = encode_file_meta(
        transfer_syntax_uid=IMPLICIT,
        media_storage_sop_class_uid=CT,
        media_storage_sop_instance_uid=instance.sop_instance_uid,
    )
    assert isinstance(instance.data, bytes)
    return b"--b\r\nContent-Type: application/dicom\r\n\r\n" + meta + instance.data + b"\r\n"


def answering(uids: tuple[str, ...], response: Callable[[], Response]) -> Server:
    server = Server()

    async def answer(request: Request) -> Response:
        if request.path.endswith("/instances"):
            return Response(200, JSON, listed(*uids))
        return response()

    server.answer = answer
    return server


RELATED = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=b'}


async def test_what_does_not_come_is_unavailable(start: Start, make_instance) -> None:
    instance = make_instance("1.1")
    body = part(instance) + b"--b\r\nContent-Type: application/dicom\r\n\r\nno file\r\n--b--\r\n"
    server = answering(("1.1", "1.2"), lambda: Response(200, RELATED, body))
    bridge = await start(server)
    assert await bridge.retrieve(study_instance_uids=[STUDY]) == {"1.1": instance.data, "1.2": None}
    assert server.asked[1:] == [f"/dicom-web/studies/{STUDY}"]
    assert server.headers[1].get("accept") == 'multipart/related; type="application/dicom"; transfer-syntax=*'


async def test_what_was_there_a_moment_ago(start: Start) -> None:
    bridge = await start(answering(("1.1",), lambda: Response(404)))
    assert await bridge.retrieve(study_instance_uids=[STUDY]) == {"1.1": None}


async def test_a_single_file(start: Start, make_instance) -> None:
    instance = make_instance("1.1")
    file = part(instance).partition(b"\r\n\r\n")[2][:-2]
    bridge = await start(
        answering(("1.1",), lambda: Response(200, {"Content-Type": "application/dicom"}, file))
    )
    assert await bridge.retrieve(sop_instance_uids=["1.1"]) == {"1.1": instance.data}


@pytest.mark.parametrize(
    ("response", "status"),
    [
        (lambda: Response(500), 0xC000),
        (lambda: Response(200, {"Content-Type": "text/html"}, b"<p>"), 0xC000),
        (lambda: Response(200, {"Content-Type": "multipart/related"}, b"<p>"), 0xC000),
        (lambda: Response(200, RELATED, b"no boundary"), 0xC000),
    ],
)
async def test_answers_to_a_retrieve(start: Start, response: Callable[[], Response], status: int) -> None:
    bridge = await start(answering(("1.1",), response))
    with pytest.raises(DimseError) as raised:
        await bridge.retrieve(study_instance_uids=[STUDY])
    assert raised.value.status == status


@pytest.mark.parametrize("ending", ["reset", "hang"])
async def test_a_server_that_dies_within_a_part(start: Start, make_instance, ending: str) -> None:
    first, second = make_instance("1.1"), make_instance("1.2", pixels=bytes(100_000))
    let_go = asyncio.Event()

    async def chunks() -> AsyncIterator[bytes]:
        yield part(first) + part(second)[:50_000]
        if ending == "hang":
            await let_go.wait()
        raise RuntimeError("the server dies")

    bridge = await start(answering(("1.1", "1.2", "1.3"), lambda: Response(200, RELATED, chunks())))
    selection = await bridge.backend.retrieve(Retrieve(Level.STUDY, UniqueKeys(study_instance_uids=[STUDY])))
    came: list[str] = []
    async with asyncio.timeout(PATIENCE_S):
        async for item in selection.instances:
            if isinstance(item, Unavailable):
                came.append("not " + item.sop_instance_uid)
            elif item.sop_instance_uid == "1.1":
                came.append(item.sop_instance_uid)
                assert b"".join([bytes(piece) async for piece in pieces(item.data)]) == first.data
            else:
                came.append(item.sop_instance_uid)
                with pytest.raises(AssociationError):
                    async for _ in pieces(item.data):
                        pass
    let_go.set()
    assert came == ["1.1", "1.2", "not 1.3"]


async def test_a_server_that_hangs(start: Start, make_instance) -> None:
    server, let_go = Server(), asyncio.Event()

    async def hang(request: Request) -> Response:
        await let_go.wait()
        return Response(204)

    server.answer = hang
    bridge = await start(server)
    assert await bridge.refused(make_instance("1.1")) == 0xA700
    with pytest.raises(AssociationError):
        await bridge.find(Level.STUDY)
    with pytest.raises(AssociationError):
        await bridge.backend.echo()
    let_go.set()


async def test_a_server_that_is_down_and_comes_back(start: Start, make_instance, free_ports) -> None:
    (nobody,) = free_ports(1)
    bridge = await start(options=f'port = {nobody}\nhost = "127.0.0.1"\nmax_retries = 1')
    assert await bridge.refused(make_instance("1.1")) == 0xA700
    with pytest.raises(AssociationError):
        await bridge.find(Level.STUDY)
    with pytest.raises(AssociationError):
        await bridge.retrieve(study_instance_uids=[STUDY])
    server = HTTPServer(Server())
    await server.start("127.0.0.1", nobody)
    try:
        assert await bridge.find(Level.STUDY) == []
    finally:
        await server.stop()


# Large ones


async def test_a_large_object_is_not_held(start: Start) -> None:
    size = 100 * MEBIBYTE
    chunk = bytes(MEBIBYTE)
    server = Server()
    stored = 0

    async def pixels() -> AsyncIterator[bytes]:
        for _ in range(size // MEBIBYTE):
            yield chunk

    async def file() -> AsyncIterator[bytes]:
        yield part(Instance(CT, "1.1", IMPLICIT, b""))[:-2]
        async for each in pixels():
            yield each
        yield b"\r\n--b--\r\n"

    async def answer(request: Request) -> Response:
        nonlocal stored
        if request.method == "POST":
            async for piece in request.body:
                stored += len(piece)
            return Response(200)
        if request.path.endswith("/instances"):
            return Response(200, JSON, listed("1.1"))
        return Response(200, RELATED, file())

    server.answer = answer
    bridge = await start(server)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert await bridge.store(Instance(CT, "1.1", IMPLICIT, pixels())) == [0]
    assert stored > size
    selection = await bridge.backend.retrieve(Retrieve(Level.STUDY, UniqueKeys(study_instance_uids=[STUDY])))
    received = 0
    async for item in selection.instances:
        assert isinstance(item, Instance)
        async for piece in pieces(item.data):
            received += len(piece)
    assert received == size
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 48 * 1024


async def test_a_sender_that_leaves_leaves_nothing(start: Start) -> None:
    """The request that was being sent is broken off, so that the server does not store what is not complete."""
    server, begun = Server(), asyncio.Event()
    outcome: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def answer(request: Request) -> Response:
        try:
            async for _ in request.body:
                begun.set()
        except BaseException:
            outcome.set_result("broken off")
            raise
        outcome.set_result("complete")
        return Response(200)

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(MEBIBYTE)
            if begun.is_set():
                raise RuntimeError("the sender dies")

    server.answer = answer
    bridge = await start(server)
    with contextlib.suppress(Exception):
        await bridge.store(Instance(CT, "1.1", IMPLICIT, endless()))
    async with asyncio.timeout(PATIENCE_S):
        assert await outcome == "broken off"


# Configurations


def configuration(endpoint: str, middleware: str, backend: str) -> str:
    return f"""
        [proxy]
        id = "x"
        [network.n.dicom]
        bind_port = 11112
        [network.n.http]
        bind_port = 8080
        [pipelines.p]
        networks = ["n"]
        endpoints = ["e"]
        middleware = [{middleware}]
        backends = ["b"]
        [endpoints.e]
        service = "{endpoint}"
        {'options.path_prefix = "/e"' if endpoint != "dicom_scp" else ""}
        [backends.b]
        service = "{backend}"
        {'connection = { host = "h", port = 1 }' if backend != "storage" else 'options.root = "x"'}
    """


@pytest.mark.parametrize(
    ("endpoint", "middleware", "backend", "problem"),
    [
        ("dicom_scp", '"dicom_to_dicomweb"', "http", None),
        ("dicom_scp", '"passthru", "dicom_to_dicomweb"', "http", None),
        (
            "dicom_scp",
            "",
            "http",
            'backends: lists "b"; a dicom_scp endpoint in front of http needs the middleware',
        ),
        ("dicom_scp", '"dicom_to_dicomweb"', "storage", "which needs an http backend, the DICOMweb server"),
        ("dicom_scp", '"dicom_to_dicomweb"', "dicom_scu", "which needs an http backend, the DICOMweb server"),
        ("http", '"dicom_to_dicomweb"', "http", "which needs a dicom_scp endpoint"),
        ("dicomweb", '"dicom_to_dicomweb"', "http", "which needs a dicom_scp endpoint"),
        (
            "dicom_scp",
            '"jmix_builder", "dicom_to_dicomweb"',
            "http",
            "packing what is sent to an HTTP server",
        ),
    ],
)
def test_configurations(
    load_config, endpoint: str, middleware: str, backend: str, problem: str | None
) -> None:
    found = [str(each) for each in unsupported(load_config(configuration(endpoint, middleware, backend)))]
    if problem is None:
        assert found == []
    else:
        assert any(problem in each for each in found), found
