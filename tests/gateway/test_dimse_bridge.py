"""The http endpoint of a running gateway in front of a PACS that does as it is told: every operation, every status."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from harmony.archive.matching import compile_query
from harmony.archive.projection import Projection
from harmony.dicom.json_model import decode_data_set, encode_data_set
from harmony.dimse import CFindRQ, CGetRQ, CMoveRQ, DimseError, Instance, Outcome, Services, serve
from harmony.dimse.command import CEchoRQ
from harmony.dimse.information_model import PATIENT_ROOT, STUDY_ROOT
from harmony.dimse.part10 import encode_file_meta, read_file_meta
from harmony.dimse.peer import Peer
from harmony.dimse.query import find_handler
from harmony.dimse.retrieve_scp import Selection, Unavailable, get_handler, move_handler
from harmony.dimse.sink import BytesSink
from harmony.gateway.app import Gateway
from harmony.gateway.config import ConfigError
from harmony.gateway.retrieved import MARKER
from harmony.http.client import HTTPClient, UpstreamError

CT, MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"
IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
VERIFICATION = "1.2.840.10008.1.1"
BOUNDARY_B = "multipart/related; boundary=b"
PATIENCE_S = 20.0


def image(study: str, number: int, *, patient: str = "P1", sop_class: str = CT, size: int = 100) -> Instance:
    series = f"{study}.1"
    model = {
        "SpecificCharacterSet": {"Value": ["ISO_IR 100"]},
        "SOPClassUID": {"Value": [sop_class]},
        "SOPInstanceUID": {"Value": [f"{series}.{number}"]},
        "PatientName": {"Value": [{"Alphabetic": f"Müller^{patient}"}]},
        "PatientID": {"Value": [patient]},
        "StudyInstanceUID": {"Value": [study]},
        "SeriesInstanceUID": {"Value": [series]},
    }
    data = encode_data_set(model, EXPLICIT, character_set="ISO_IR 100")
    pixels = b"\xe0\x7f\x10\x00OW\x00\x00" + size.to_bytes(4, "little") + bytes([number]) * size
    return Instance(sop_class, f"{series}.{number}", EXPLICIT, data + pixels)


def part10(instance: Instance) -> bytes:
    assert isinstance(instance.data, bytes)
    meta = encode_file_meta(
        transfer_syntax_uid=instance.transfer_syntax_uid,
        media_storage_sop_class_uid=instance.sop_class_uid,
        media_storage_sop_instance_uid=instance.sop_instance_uid,
    )
    return meta + instance.data


@dataclass
class Pacs:
    """Has `images`. before[n]: awaited before the n-th match or instance, and after the last one.

    fails: the status of every operation. unavailable: SOP Instance UIDs that it cannot read. outcome: of a C-STORE.
    """

    images: list[Instance] = field(default_factory=list)
    before: dict[int, Callable[[], Any]] = field(default_factory=dict)
    fails: int = 0
    unavailable: tuple[str, ...] = ()
    outcome: Callable[[str], Outcome] = lambda uid: Outcome(0)
    destinations: dict[str, Peer] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.stored: dict[str, bytes] = {}
        self.cancelled = asyncio.Event()
        self.left = asyncio.Event()

    def services(self) -> Services:
        services = Services()
        services.operation(CEchoRQ, [VERIFICATION], lambda operation: Outcome(self.fails, "Doe^John"))
        models = (STUDY_ROOT, PATIENT_ROOT)
        services.operation(CFindRQ, [model.find for model in models], find_handler(self._find))
        services.operation(CGetRQ, [model.get for model in models], get_handler(self._select))
        resolve = move_handler(self._select, lambda title, _: self.destinations.get(title))
        services.operation(CMoveRQ, [model.move for model in models], resolve)
        services.store_as_scu()
        services.store(self._open_sink, sop_classes=[CT])
        return services

    def _open_sink(self, request: Any) -> BytesSink:
        uid = request.affected_sop_instance_uid

        def complete(data: bytes) -> Outcome:
            self.stored[uid] = data
            return self.outcome(uid)

        return BytesSink(complete, maximum_bytes=1 << 30)

    def _begin(self, operation: Any) -> tuple[str, dict[str, Any]]:
        if self.fails:
            raise DimseError(self.fails, "Doe^John")
        identifier = decode_data_set(operation.data_set, operation.context.transfer_syntax)
        level = identifier["00080052"]["Value"][0]
        self.asked.append((type(operation.request).__name__, level))
        return level, identifier

    async def _wait(self, number: int, operation: Any) -> None:
        if number in self.before:
            try:
                await self.before[number]()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise

    async def _find(self, operation: Any) -> AsyncIterator[bytes]:
        level, identifier = self._begin(operation)
        matcher = compile_query(identifier)
        projection = Projection(matcher, level=level, patient_root=False)
        answers: list[Any] = []
        for each in self.images:
            header = decode_data_set(each.data, each.transfer_syntax_uid)  # type: ignore[arg-type]
            answer = projection.project(header) | {"00080005": {"vr": "CS", "Value": ["ISO_IR 100"]}}
            if matcher.matches(header) and answer not in answers:
                # The survey that precedes a retrieve is not what a test wants to hold up.
                if level != "IMAGE":
                    await self._wait(len(answers), operation)
                answers.append(answer)
                yield encode_data_set(answer, operation.context.transfer_syntax, character_set="ISO_IR 100")
        if level != "IMAGE":
            await self._wait(len(answers), operation)

    async def _select(self, operation: Any) -> Selection:
        _, identifier = self._begin(operation)
        matcher = compile_query(identifier)
        chosen = [
            each
            for each in self.images
            if matcher.matches(decode_data_set(each.data, each.transfer_syntax_uid))  # type: ignore[arg-type]
        ]

        async def instances() -> AsyncIterator[Instance | Unavailable]:
            for number, each in enumerate(chosen):
                await self._wait(number, operation)
                yield (
                    Unavailable(each.sop_instance_uid) if each.sop_instance_uid in self.unavailable else each
                )
            await self._wait(len(chosen), operation)

        uids = [each.sop_instance_uid for each in chosen]
        return Selection(instances(), sop_instance_uids=uids, contexts=[(CT, EXPLICIT), (MR, EXPLICIT)])


@dataclass
class Bridge:
    """A gateway with an http endpoint at /dicom in front of the PACS, or of nothing when it is not listening."""

    storage: Path
    http_port: int
    gateway: Gateway | None = None

    @contextlib.asynccontextmanager
    async def stream(
        self, method: str, path: str, body: Any = b"", content_type: str | None = "application/json"
    ) -> AsyncIterator[Any]:
        if not isinstance(body, bytes) and not hasattr(body, "__aiter__"):
            body = json.dumps(body).encode()
        headers = {"Content-Type": content_type} if content_type and body else {}
        async with (
            asyncio.timeout(PATIENCE_S),
            HTTPClient(f"http://127.0.0.1:{self.http_port}", timeout_s=PATIENCE_S) as client,
            client.stream(method, path, body=body, headers=headers) as response,
        ):
            yield response

    async def ask(
        self, method: str, path: str, body: Any = b"", content_type: str | None = "application/json"
    ) -> tuple[int, Any]:
        async with self.stream(method, path, body, content_type) as response:
            assert response.headers.get("content-type") == "application/json"
            return response.status, json.loads(b"".join([chunk async for chunk in response]))

    async def post(
        self, path: str, body: Any = b"", content_type: str = "application/json"
    ) -> tuple[int, Any]:
        return await self.ask("POST", path, body, content_type)

    @property
    def retrieved(self) -> list[str]:
        """What is below the folder of retrieved instances."""
        return sorted(path.name for path in (self.storage / "retrieved").iterdir())


@pytest.fixture
def pacs() -> Pacs:
    return Pacs([image("1.1", 1), image("1.1", 2), image("1.2", 1, patient="P2")])


@pytest.fixture
async def start(
    tmp_path: Path, free_ports: Callable[[int], list[int]], load_config: Callable[[str], Any], no_leaks: None
) -> AsyncIterator[Callable[..., Any]]:
    """await start(pacs, scu={"option": value}, http="options", proxy="tables") -> Bridge; pacs None: nobody there."""
    async with contextlib.AsyncExitStack() as stack:

        async def begin(
            pacs: Pacs | None,
            *,
            scu: dict[str, Any] | None = None,
            http: str = "",
            proxy: str = "",
            prefix: str = "/dicom",
        ) -> Bridge:
            http_port, pacs_port, incoming_port = free_ports(3)
            if pacs is not None:
                server = await stack.enter_async_context(serve(pacs.services(), port=0, ae_title="PACS"))
                pacs_port = server.port
                pacs.destinations.setdefault(
                    "HARMONY", Peer("127.0.0.1", incoming_port, called_ae_title="HARMONY")
                )
            backend = {
                "aet": '"PACS"',
                "host": '"127.0.0.1"',
                "port": pacs_port,
                "local_aet": '"HARMONY"',
                "incoming_store_address": '"127.0.0.1"',
                "incoming_store_port": incoming_port,
                "timeout_secs": 20,
            } | (scu or {})
            config = load_config(
                f"""
                [proxy]
                id = "bridge"
                {proxy}
                [storage.options]
                path = "{tmp_path / "storage"}"
                [network.n.http]
                bind_address = "127.0.0.1"
                bind_port = {http_port}
                [pipelines.p]
                networks = ["n"]
                endpoints = ["e"]
                backends = ["b"]
                [endpoints.e]
                service = "http"
                options.path_prefix = "{prefix}"
                {http}
                [backends.b]
                service = "dicom"
                [backends.b.options]
                """
                + "\n".join(f"{key} = {value}" for key, value in backend.items())
            )
            bridge = Bridge(tmp_path / "storage", http_port, Gateway(config))
            await bridge.gateway.start()
            stack.push_async_callback(bridge.gateway.stop, 0.0)
            return bridge

        yield begin


async def forever() -> None:
    await asyncio.Event().wait()


# Echo


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/dicom/echo", b""),
        ("GET", "/dicom/echo", b""),
        ("GET", "/dicom", b""),
        ("POST", "/dicom/", b""),
        ("PUT", "/dicom/ECHO/", b""),
        ("POST", "/dicom", {"operation": "C-ECHO"}),
    ],
)
async def test_echo(pacs, start, method: str, path: str, body: Any) -> None:
    bridge = await start(pacs)
    status, answer = await bridge.ask(method, path, body)
    port = answer.pop("port")
    assert isinstance(port, int)
    assert (status, answer) == (
        200,
        {"operation": "echo", "success": True, "remote_aet": "PACS", "host": "127.0.0.1"},
    )


async def test_the_prefix_may_be_the_root(pacs, start) -> None:
    bridge = await start(pacs, prefix="/")
    assert (await bridge.post("/echo"))[0] == 200
    assert (await bridge.post("/"))[1]["operation"] == "echo"
    assert (await bridge.post("/find", {"PatientID": "P1"}))[1]["operation"] == "find"
    assert (await bridge.post("/dicom/echo"))[0] == 404


async def test_one_folder_has_one_time_to_live(load_config) -> None:
    backends = "".join(
        f"""
        [backends.{name}]
        service = "dicom_scu"
        options = {{ aet = "PACS", host = "h", retrieve_ttl_secs = {ttl_s} }}
        [endpoints.{name}]
        service = "http"
        options.path_prefix = "/{name}"
        [pipelines.{name}]
        networks = ["n"]
        endpoints = ["{name}"]
        backends = ["{name}"]
        """
        for name, ttl_s in (("a", 60), ("b", 61))
    )
    with pytest.raises(
        ConfigError, match=r"retrieve_ttl_secs: is 61, must be 60, as elsewhere with this storage_dir"
    ):
        Gateway(load_config(f"[proxy]\nid = 'x'\n[network.n.http]\n{backends}"))


# Find

MATCH_OF_P1 = {
    "00100010": {"vr": "PN", "Value": [{"Alphabetic": "Müller^P1"}]},
    "00100020": {"vr": "LO", "Value": ["P1"]},
    "0020000D": {"vr": "UI", "Value": ["1.1"]},
}


def matches_of(answer: Any) -> list[Any]:
    """Without what a PACS adds of its own."""
    return [
        {key: element for key, element in match.items() if key not in ("00080052", "00080054")}
        for match in answer["matches"]
    ]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/dicom/find", {"PatientID": "P1", "PatientName": "", "StudyInstanceUID": ""}),
        ("/dicom", {"operation": "C-FIND", "query": {"PatientID": "P1", "PatientName": None, "StudyInstanceUID": "*"}}),
        ("/dicom/find", {"00100020": {"vr": "LO", "Value": ["P1"]}, "00100010": {"vr": "PN"}, "0020000D": {}}),
        ("/dicom/find?PatientID=P1&PatientName=&StudyInstanceUID=", b""),
    ],
)  # fmt: skip
async def test_find(pacs, start, path: str, body: Any) -> None:
    bridge = await start(pacs)
    status, answer = await bridge.post(path, body)
    assert status == 200
    assert list(answer) == ["operation", "success", "matches"]
    assert (answer["operation"], answer["success"]) == ("find", True)
    assert matches_of(answer) == [MATCH_OF_P1]  # (0008,0005) is not true of JSON
    assert pacs.asked == [("CFindRQ", "STUDY")]


async def test_find_at_the_patient_level(pacs, start) -> None:
    bridge = await start(pacs)
    status, answer = await bridge.post("/dicom/find", {"patient_id": "P2", "query_level": "PATIENT"})
    assert (status, matches_of(answer)) == (200, [{"00100020": {"vr": "LO", "Value": ["P2"]}}])
    assert pacs.asked == [("CFindRQ", "PATIENT")]


async def test_a_find_that_finds_nothing(pacs, start) -> None:
    bridge = await start(pacs)
    assert await bridge.post("/dicom/find", {"PatientID": "nobody", "StudyInstanceUID": ""}) == (
        200,
        {"operation": "find", "success": True, "matches": []},
    )


async def test_a_limit_cancels_the_find(pacs, start) -> None:
    pacs.before[1] = forever
    bridge = await start(pacs)
    status, answer = await bridge.post("/dicom/find?max_results=1", {"StudyInstanceUID": ""})
    assert (status, len(answer["matches"])) == (200, 1)
    await pacs.cancelled.wait()


async def test_matches_are_sent_as_they_arrive(pacs, start) -> None:
    go_on = asyncio.Event()
    pacs.before[1] = go_on.wait
    bridge = await start(pacs)
    async with bridge.stream("POST", "/dicom/find", {"StudyInstanceUID": ""}) as response:
        assert response.status == 200
        begun = b""
        chunks = aiter(response)
        while b"1.1" not in begun:
            begun += await anext(chunks)
        go_on.set()
        whole = json.loads(begun + b"".join([chunk async for chunk in chunks]))
    assert [match["0020000D"]["Value"] for match in whole["matches"]] == [["1.1"], ["1.2"]]


async def test_a_client_that_leaves_cancels_the_find(pacs, start) -> None:
    pacs.before[1] = forever
    bridge = await start(pacs)
    async with bridge.stream("POST", "/dicom/find", {"StudyInstanceUID": ""}) as response:
        await anext(aiter(response))
    async with asyncio.timeout(PATIENCE_S):
        await pacs.cancelled.wait()


async def test_a_client_that_leaves_before_the_first_match_cancels_the_find(pacs, start) -> None:
    asked = asyncio.Event()

    async def hold() -> None:
        asked.set()
        await forever()

    pacs.before[0] = hold
    bridge = await start(pacs)
    _, writer = await asyncio.open_connection("127.0.0.1", bridge.http_port)
    body = b'{"StudyInstanceUID":""}'
    writer.write(
        b"POST /dicom/find HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
        % (len(body), body)
    )
    async with asyncio.timeout(PATIENCE_S):
        await asked.wait()
        writer.close()
        await pacs.cancelled.wait()


async def test_a_find_that_fails_after_a_match_does_not_look_complete(pacs, start) -> None:
    async def fail() -> None:
        raise DimseError(0xC001)

    pacs.before[1] = fail
    bridge = await start(pacs)
    collected = b""
    async with bridge.stream("POST", "/dicom/find", {"StudyInstanceUID": ""}) as response:
        assert response.status == 200
        try:
            async for chunk in response:
                collected += chunk
        except UpstreamError:
            pass
        else:
            pytest.fail("the response ended as if it were complete")
    assert b"1.1" in collected
    with pytest.raises(json.JSONDecodeError):
        json.loads(collected)


async def test_a_head_request_leaves_nothing_open(pacs, start) -> None:
    pacs.before[1] = forever
    bridge = await start(pacs)
    async with bridge.stream("HEAD", "/dicom/find?StudyInstanceUID=") as response:
        assert response.status == 200
    async with asyncio.timeout(PATIENCE_S):
        await pacs.cancelled.wait()


# Get, and move to ourselves


@pytest.mark.parametrize(
    ("body", "operation", "asked"),
    [
        ({"operation": "C-GET", "query": {"StudyInstanceUID": "1.1"}}, "get", "CGetRQ"),
        ({"operation": "C-MOVE", "destination": "HARMONY", "query": {"StudyInstanceUID": "1.1"}}, "move", "CMoveRQ"),
        ({"operation": "C-MOVE", "query": {"StudyInstanceUID": "1.1"}}, "move", "CMoveRQ"),
        ({"StudyInstanceUID": "1.1"}, "get", "CGetRQ"),
    ],
)  # fmt: skip
async def test_instances_are_retrieved_into_a_folder(pacs, start, body, operation: str, asked: str) -> None:
    bridge = await start(pacs)
    status, answer = await bridge.post("/dicom", body)
    assert status == 200
    assert (asked, "STUDY") in pacs.asked
    instances = answer.pop("instances")
    folder = Path(answer["folder_path"])
    assert answer == {
        "operation": operation,
        "success": True,
        "folder_id": folder.name,
        "file_count": 2,
        "folder_path": str(bridge.storage / "retrieved" / folder.name),
    }
    assert folder.is_absolute()
    assert sorted(path.name for path in folder.glob("*.dcm")) == ["1.1.1.1.dcm", "1.1.1.2.dcm"]
    for each in pacs.images[:2]:
        content = (folder / f"{each.sop_instance_uid}.dcm").read_bytes()
        meta = read_file_meta(content)
        assert meta.media_storage_sop_class_uid == CT
        assert content[meta.data_set_offset :] == each.data
    assert [instance["00080018"]["Value"] for instance in instances] == [["1.1.1.1"], ["1.1.1.2"]]
    assert instances[0]["00100010"] == {"vr": "PN", "Value": [{"Alphabetic": "Müller^P1"}]}
    assert not {"7FE00010", "00080005"} & instances[0].keys()


async def test_a_query_alone_follows_the_retrieve_mode(pacs, start) -> None:
    bridge = await start(pacs, scu={"dimse_retrieve_mode": '"move"'})
    assert (await bridge.post("/dicom", {"StudyInstanceUID": "1.2"}))[1]["operation"] == "move"
    assert (await bridge.post("/dicom/get", {"StudyInstanceUID": "1.2"}))[1]["operation"] == "get"
    assert [kind for kind, _ in pacs.asked if kind != "CFindRQ"] == ["CMoveRQ", "CGetRQ"]


async def test_many_instances_are_listed_in_pieces(pacs, start) -> None:
    pacs.images = [image("1.1", number) for number in range(1, 71)]
    bridge = await start(pacs)
    status, answer = await bridge.ask("GET", "/dicom/get?StudyInstanceUID=1.1")
    assert (status, answer["file_count"], len(answer["instances"])) == (200, 70, 70)
    assert len({instance["00080018"]["Value"][0] for instance in answer["instances"]}) == 70


@pytest.mark.parametrize("operation", ["get", "move"])
async def test_a_study_that_is_not_there(pacs, start, operation: str) -> None:
    bridge = await start(pacs)
    assert await bridge.post(f"/dicom/{operation}", {"StudyInstanceUID": "1.9"}) == (
        404,
        {"operation": operation, "success": False, "error": "Study not found"},
    )
    assert bridge.retrieved == []


async def test_instances_that_could_not_be_retrieved_are_no_success(pacs, start) -> None:
    pacs.unavailable = ("1.1.1.2",)
    bridge = await start(pacs)
    status, answer = await bridge.post("/dicom/get", {"StudyInstanceUID": "1.1"})
    assert status == 502
    assert answer["success"] is False
    assert answer["error"] == "1 of 2 instances could not be retrieved"
    assert answer["failed_sop_instance_uids"] == ["1.1.1.2"]
    assert (answer["file_count"], len(answer["instances"])) == (1, 1)
    assert [path.name for path in Path(answer["folder_path"]).glob("*.dcm")] == ["1.1.1.1.dcm"]


async def test_no_instance_could_be_retrieved(pacs, start) -> None:
    pacs.unavailable = ("1.1.1.1", "1.1.1.2")
    bridge = await start(pacs)
    status, answer = await bridge.post("/dicom/get", {"StudyInstanceUID": "1.1"})
    assert (status, answer["success"]) == (502, False)
    assert bridge.retrieved == []


async def test_a_retrieve_that_fails_leaves_nothing(pacs, start) -> None:
    async def fail() -> None:
        raise DimseError(0xA702)

    pacs.before[0] = fail
    bridge = await start(pacs)
    status, answer = await bridge.post("/dicom/get", {"StudyInstanceUID": "1.1"})
    assert (status, answer["operation"], answer["success"]) == (502, "get", False)
    assert bridge.retrieved == []


@pytest.mark.parametrize("operation", ["get", "move"])
async def test_a_client_that_leaves_cancels_the_retrieve(pacs, start, until, operation: str) -> None:
    begun = asyncio.Event()

    async def hold() -> None:
        begun.set()
        await forever()

    pacs.before[1] = hold
    bridge = await start(pacs)
    _, writer = await asyncio.open_connection("127.0.0.1", bridge.http_port)
    body = b'{"StudyInstanceUID":"1.1"}'
    writer.write(
        b"POST /dicom/%s HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
        % (operation.encode(), len(body), body)
    )
    async with asyncio.timeout(PATIENCE_S):
        await begun.wait()
        assert [name[0] for name in bridge.retrieved] == ["."]
        writer.close()
        await pacs.cancelled.wait()
    await until(lambda: bridge.retrieved == [])


async def test_a_client_that_does_not_get_the_answer_has_no_folder(pacs, start, until) -> None:
    bridge = await start(pacs)
    async with bridge.stream("HEAD", "/dicom/get?StudyInstanceUID=1.1") as response:
        assert response.status == 200
    await until(lambda: bridge.retrieved == [])


async def test_a_full_disk(pacs, start, monkeypatch) -> None:
    bridge = await start(pacs)
    (folders,) = bridge.gateway.assembly.retrieved.values()
    monkeypatch.setattr(folders.space, "minimum_free_bytes", 2**62)
    assert await bridge.post("/dicom/get", {"StudyInstanceUID": "1.1"}) == (
        507,
        {"operation": "get", "success": False, "error": "the retrieved instances could not be written"},
    )
    assert bridge.retrieved == []


async def test_the_folder_is_where_it_was_configured(pacs, start, tmp_path) -> None:
    bridge = await start(pacs, scu={"storage_dir": f'"{tmp_path}/elsewhere"'})
    status, answer = await bridge.post("/dicom/get", {"StudyInstanceUID": "1.1"})
    folder = Path(answer["folder_path"])
    assert (status, folder.parent) == (200, tmp_path / "elsewhere")
    assert (folder / MARKER).exists()


# Move to others


async def test_move_to_somebody_else(pacs, start) -> None:
    other = Pacs()
    async with serve(other.services(), port=0) as server:
        pacs.destinations["OTHER"] = Peer("127.0.0.1", server.port, called_ae_title="OTHER")
        bridge = await start(pacs)
        body = {"operation": "C-MOVE", "destination": "OTHER", "query": {"StudyInstanceUID": "1.1"}}
        status, answer = await bridge.post("/dicom", body)
    assert (status, answer) == (
        200,
        {
            "operation": "move",
            "success": True,
            "destination": "OTHER",
            "completed": 2,
            "failed": 0,
            "warning": 0,
            "status": "0000",
        },
    )
    assert other.stored == {each.sop_instance_uid: each.data for each in pacs.images[:2]}
    assert bridge.retrieved == []


async def test_move_to_a_destination_that_the_pacs_does_not_know(pacs, start) -> None:
    bridge = await start(pacs)
    status, answer = await bridge.post("/dicom/move", {"StudyInstanceUID": "1.1", "destination": "NOBODY"})
    assert (status, answer["success"], answer["status"]) == (502, False, "A801")
    assert answer["error"] == "PACS answered 0xA801 Refused: move destination unknown"


async def test_a_move_with_failures_is_no_success(pacs, start) -> None:
    other = Pacs(outcome=lambda uid: Outcome(0xA700 if uid == "1.1.1.2" else 0))
    async with serve(other.services(), port=0) as server:
        pacs.destinations["OTHER"] = Peer("127.0.0.1", server.port, called_ae_title="OTHER")
        bridge = await start(pacs)
        status, answer = await bridge.post("/dicom/move", {"StudyInstanceUID": "1.1", "destination": "OTHER"})
    assert (status, answer) == (
        502,
        {
            "operation": "move",
            "success": False,
            "destination": "OTHER",
            "completed": 1,
            "failed": 1,
            "warning": 0,
            "status": "B000",
            "error": "1 of 2 instances could not be moved",
        },
    )


async def test_a_move_of_nothing(pacs, start) -> None:
    pacs.destinations["OTHER"] = Peer("127.0.0.1", 1)
    bridge = await start(pacs)
    status, answer = await bridge.post("/dicom/move", {"StudyInstanceUID": "1.9", "destination": "OTHER"})
    assert (status, answer["error"]) == (404, "Study not found")


async def test_data_leave_only_on_purpose(pacs, start) -> None:
    bridge = await start(pacs)
    query = "/dicom/move?StudyInstanceUID=1.1&destination=OTHER"
    status, answer = await bridge.ask("GET", query)
    assert (status, answer["error"]) == (405, "a move to another destination needs POST or PUT")
    status, answer = await bridge.post(query)
    assert (status, answer["error"]) == (
        400,
        "a move to another destination must be asked for in a JSON body",
    )
    assert pacs.asked == []


# Store


@pytest.mark.parametrize("path", ["/dicom/store", "/dicom"])
@pytest.mark.parametrize("content_type", ["application/dicom", "application/octet-stream"])
@pytest.mark.parametrize("method", ["POST", "PUT"])
async def test_store(pacs, start, method: str, path: str, content_type: str) -> None:
    bridge = await start(pacs)
    instance = image("1.7", 3)
    assert await bridge.ask(method, path, part10(instance), content_type) == (
        200,
        {
            "operation": "store",
            "success": True,
            "status": "0000",
            "sop_class_uid": CT,
            "sop_instance_uid": "1.7.1.3",
            "remote_aet": "PACS",
        },
    )
    assert pacs.stored == {"1.7.1.3": instance.data}


async def test_a_store_of_unknown_length(pacs, start) -> None:
    bridge = await start(pacs)
    instance = image("1.7", 3, size=3_000_000)
    content = part10(instance)

    async def chunks() -> AsyncIterator[bytes]:
        for at in range(0, len(content), 70_001):
            yield content[at : at + 70_001]

    status, _ = await bridge.post("/dicom/store", chunks(), "application/dicom")
    assert status == 200
    assert pacs.stored == {"1.7.1.3": instance.data}


async def test_a_store_with_a_warning_is_a_success(pacs, start) -> None:
    pacs.outcome = lambda uid: Outcome(0xB000)
    bridge = await start(pacs)
    status, answer = await bridge.post("/dicom/store", part10(image("1.7", 3)), "application/dicom")
    assert (status, answer["success"], answer["status"]) == (200, True, "B000")


async def test_a_store_that_the_pacs_refuses(pacs, start) -> None:
    pacs.outcome = lambda uid: Outcome(0xA900, "Doe^John")
    bridge = await start(pacs)
    assert await bridge.post("/dicom/store", part10(image("1.7", 3)), "application/dicom") == (
        502,
        {
            "operation": "store",
            "success": False,
            "error": "PACS answered 0xA900 Error: data set or identifier does not match SOP class",
            "status": "A900",
        },
    )


async def test_a_sop_class_that_the_pacs_does_not_take(pacs, start) -> None:
    bridge = await start(pacs)
    status, answer = await bridge.post(
        "/dicom/store", part10(image("1.7", 3, sop_class=MR)), "application/dicom"
    )
    assert (status, answer["success"], answer["status"]) == (502, False, "0122")
    assert MR in answer["error"]


@pytest.mark.parametrize(
    ("method", "path", "body", "content_type", "status", "error"),
    [
        ("POST", "/dicom/store", b"", "", 400, "store: the body must be a DICOM file"),
        ("POST", "/dicom/store", b"{}", "application/dicom", 400, "the body is no DICOM file that could be sent"),
        ("POST", "/dicom/store", b"{}", "application/json", 415, "Content-Type is application/json, expected"),
        ("POST", "/dicom/store", b"{}", "text/plain", 415, "Content-Type is text/plain, expected application/dicom"),
        ("POST", "/dicom/store", b"x", "nonsense", 415, "Content-Type: not a media type"),
        ("POST", "/dicom/find", b"x", "application/dicom", 415, "find takes no DICOM files: expected application/json"),
        ("POST", "/dicom/find", b"x", "text/xml", 415, "Content-Type is text/xml, expected application/json"),
        ("POST", "/dicom/find", b"{", "application/json", 400, "the request body is not JSON: "),
        ("POST", "/dicom/find", b"[" * 100_000, "application/json", 400, "the request body is "),
        ("POST", "/dicom/find", b'{"Nonsense": 1}', "application/json", 400, "'Nonsense' is not known: expected "),
        ("POST", "/dicom/find", b"", "", 400, "find: there is no key"),
        ("POST", "/dicom/nonsense", b"", "", 404, "no such path here: expected echo, find, get, move or store"),
        ("GET", "/dicom/store", b"x", "application/dicom", 405, "a store needs POST or PUT"),
        ("POST", "/dicom/store", b"x", "multipart/related", 400, "multipart body: Content-Type has no boundary"),
        ("POST", "/dicom/store", b"x", "multipart/related; boundary=b; type=image/jpeg", 415, "the type of multipart/"),
        ("POST", "/dicom/store", b"--b--", BOUNDARY_B, 400, "the multipart/related body has no parts"),
        ("POST", "/dicom/store", b"--b\r\nContent-Type: text/plain\r\n\r\nx\r\n--b--", BOUNDARY_B, 415,
         "the Content-Type of part 1 is not application/dicom"),
    ],
)  # fmt: skip
async def test_requests_that_are_refused(
    pacs, start, method, path, body, content_type, status, error
) -> None:
    bridge = await start(pacs)
    answered, answer = await bridge.ask(method, path, body, content_type)
    assert (answered, answer["success"]) == (status, False)
    assert answer["error"].startswith(error)
    assert pacs.asked == []
    assert pacs.stored == {}


async def test_other_methods_are_not_allowed(pacs, start) -> None:
    bridge = await start(pacs)
    async with bridge.stream("DELETE", "/dicom/find") as response:
        assert (response.status, response.headers.get("allow")) == (405, "GET, HEAD, OPTIONS, POST, PUT")
    async with bridge.stream("OPTIONS", "/dicom/find") as response:
        assert (response.status, response.headers.get("allow")) == (200, "GET, HEAD, OPTIONS, POST, PUT")


async def test_json_bodies_have_a_limit(pacs, start) -> None:
    bridge = await start(pacs, proxy="[proxy.content_limits]\nmax_body_size = 1024")
    status, answer = await bridge.post("/dicom/find", {"PatientID": "x" * 1024})
    assert (status, answer["success"]) == (413, False)
    # It is none of files.
    status, _ = await bridge.post("/dicom/store", part10(image("1.7", 3, size=10_000)), "application/dicom")
    assert status == 200


async def test_uploads_have_a_limit_of_their_own(pacs, start) -> None:
    bridge = await start(pacs, http="options.max_upload_bytes = 5000")
    content = part10(image("1.7", 3, size=100_000))

    async def chunks() -> AsyncIterator[bytes]:
        for at in range(0, len(content), 1000):
            yield content[at : at + 1000]

    for body in (content, chunks()):
        with contextlib.suppress(UpstreamError):  # the server may close while we are still sending
            status, answer = await bridge.post("/dicom/store", body, "application/dicom")
            assert (status, answer["operation"], answer["success"]) == (413, "store", False)
    assert pacs.stored == {}


# Store of many


def multipart(*contents: bytes, content_type: str = "Content-Type: application/dicom\r\n") -> bytes:
    parts = [b"--b\r\n" + content_type.encode() + b"\r\n" + content + b"\r\n" for content in contents]
    return b"".join(parts) + b"--b--\r\n"


MANY = 'multipart/related; type="application/dicom"; boundary=b'


@pytest.mark.parametrize("content_type", ["Content-Type: application/dicom\r\n", ""])
async def test_store_of_many(pacs, start, content_type: str) -> None:
    bridge = await start(pacs)
    instances = [image("1.7", number) for number in range(1, 4)]
    body = multipart(*map(part10, instances), content_type=content_type)
    status, answer = await bridge.post("/dicom/store", body, MANY)
    assert (status, answer) == (
        200,
        {
            "operation": "store",
            "success": True,
            "remote_aet": "PACS",
            "instances": [
                {
                    "success": True,
                    "status": "0000",
                    "sop_class_uid": CT,
                    "sop_instance_uid": f"1.7.1.{number}",
                }
                for number in range(1, 4)
            ],
        },
    )
    assert pacs.stored == {each.sop_instance_uid: each.data for each in instances}


async def test_one_of_many_is_refused(pacs, start) -> None:
    pacs.outcome = lambda uid: Outcome(0xA700 if uid == "1.7.1.2" else 0)
    bridge = await start(pacs)
    body = multipart(*(part10(image("1.7", number)) for number in range(1, 4)))
    status, answer = await bridge.post("/dicom/store", body, MANY)
    assert (status, answer["success"], answer["error"]) == (502, False, "1 of 3 instances were not stored")
    assert [(each["success"], each["status"]) for each in answer["instances"]] == [
        (True, "0000"),
        (False, "A700"),
        (True, "0000"),
    ]
    assert answer["instances"][1]["error"] == "PACS answered 0xA700 Refused: out of resources"
    assert sorted(pacs.stored) == ["1.7.1.1", "1.7.1.2", "1.7.1.3"]


async def test_a_body_that_is_wrong_in_the_middle_tells_what_was_stored(pacs, start) -> None:
    bridge = await start(pacs)
    body = multipart(part10(image("1.7", 1)), b"this is no file", part10(image("1.7", 3)))
    status, answer = await bridge.post("/dicom/store", body, MANY)
    assert (status, answer["success"]) == (400, False)
    assert [each["sop_instance_uid"] for each in answer["instances"]] == ["1.7.1.1"]
    assert list(pacs.stored) == ["1.7.1.1"]


async def test_a_body_that_ends_in_the_middle_of_a_part(pacs, start) -> None:
    bridge = await start(pacs)
    body = multipart(part10(image("1.7", 1)), part10(image("1.7", 2, size=200_000)))[:-100_000]
    status, answer = await bridge.post("/dicom/store", body, MANY)
    assert (status, answer["success"]) == (400, False)
    assert answer["error"] == "multipart body: ended before its closing boundary, in part 2"
    assert [each["sop_instance_uid"] for each in answer["instances"]] == ["1.7.1.1"]
    assert list(pacs.stored) == ["1.7.1.1"]


# A PACS that is not to be had


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Accepts connections, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


EVERYTHING: list[tuple[str, Any, str]] = [
    ("/dicom/echo", b"", "application/json"),
    ("/dicom/find", {"StudyInstanceUID": ""}, "application/json"),
    ("/dicom/get", {"StudyInstanceUID": "1.1"}, "application/json"),
    ("/dicom/move", {"StudyInstanceUID": "1.1"}, "application/json"),
    ("/dicom/move", {"StudyInstanceUID": "1.1", "destination": "OTHER"}, "application/json"),
    ("/dicom/store", part10(image("1.7", 3)), "application/dicom"),
    ("/dicom/store", multipart(part10(image("1.7", 3))), MANY),
]
by_operation = pytest.mark.parametrize(("path", "body", "content_type"), EVERYTHING)


@by_operation
async def test_a_pacs_that_is_not_there(start, path: str, body: Any, content_type: str) -> None:
    bridge = await start(None)
    status, answer = await bridge.post(path, body, content_type)
    assert (status, answer["operation"], answer["success"]) == (502, path.removeprefix("/dicom/"), False)
    assert "cannot connect" in answer["error"]
    assert bridge.retrieved == []


@by_operation
async def test_a_pacs_that_rejects_us(pacs, start, path: str, body: Any, content_type: str) -> None:
    bridge = await start(pacs, scu={"aet": '"WRONG"'})
    status, answer = await bridge.post(path, body, content_type)
    assert (status, answer["success"]) == (502, False)
    assert "association rejected" in answer["error"]


@by_operation
async def test_a_pacs_that_does_not_answer(
    start, silent_port, path: str, body: Any, content_type: str
) -> None:
    bridge = await start(None, scu={"timeout_secs": 1, "port": silent_port})
    status, answer = await bridge.post(path, body, content_type)
    assert (status, answer["success"]) == (504, False)
    assert "took longer than" in answer["error"]


@pytest.mark.parametrize("size", [10, 1_000_000])
async def test_a_pacs_that_stops_answering_in_the_middle_of_a_store(pacs, start, size: int) -> None:
    bridge = await start(pacs, scu={"timeout_secs": 1})
    never: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    pacs.outcome = lambda uid: never  # type: ignore[assignment,return-value]
    status, answer = await bridge.post(
        "/dicom/store", part10(image("1.7", 3, size=size)), "application/dicom"
    )
    assert (status, answer["success"]) == (504, False)
    assert "took longer than 1 s" in answer["error"]


async def test_a_port_of_ours_that_is_taken(pacs, start, silent_port: int) -> None:
    bridge = await start(pacs, scu={"incoming_store_port": silent_port})
    status, answer = await bridge.post("/dicom/move", {"StudyInstanceUID": "1.1"})
    assert (status, answer["success"]) == (500, False)
    assert f"incoming_store_port {silent_port} cannot be listened on" in answer["error"]
    assert bridge.retrieved == []


@by_operation
async def test_a_pacs_that_fails(pacs, start, path: str, body: Any, content_type: str) -> None:
    pacs.fails = 0xA700
    pacs.destinations["OTHER"] = Peer("127.0.0.1", 1)
    pacs.outcome = lambda uid: Outcome(0xA700, "Doe^John")
    bridge = await start(pacs)
    status, answer = await bridge.post(path, body, content_type)
    assert (status, answer["success"]) == (502, False)
    assert "Doe" not in json.dumps(answer)
    single = answer["instances"][0] if "instances" in answer else answer
    assert single["status"] == "A700"
