"""What DICOMweb clients really send, and what they should never: raw requests to a gateway with an archive.

Each deviation that is known from the field has a test that says what becomes of it. What is hostile gets an answer that
is documented, in bounded time and memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import zlib
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harmony.dicom.frames import FrameError
from harmony.dicom.json_model import encode_data_set
from harmony.dicom.transcode import TranscodeError
from harmony.dimse import Instance
from harmony.dimse.part10 import encode_file_meta
from harmony.dimse.retrieve_scp import Selection
from harmony.gateway.app import Gateway
from harmony.gateway.instance_files import DeliveredInstances
from harmony.gateway.pixel_parts import ArrivingValue
from harmony.http.accept import TransferSyntaxes

CT = "1.2.840.10008.5.1.4.1.1.2"
IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
STUDY, SERIES = "1.2.3", "1.2.3.1"
FILES = 'multipart/related; type="application/dicom"; boundary=b'
METADATA = 'multipart/related; type="application/dicom+json"; boundary=b'
JSON = "application/dicom+json"
PATIENCE_S = 30.0
MEBIBYTE = 1024 * 1024
MEMORY_BYTES = 100 * MEBIBYTE
"""By which the process may grow, its caches included, while something passes that would be far larger."""


@dataclass
class Web:
    """The dicomweb endpoint at /web, spoken to in bytes."""

    port: int

    async def send(self, *pieces: bytes) -> bytes:
        """Everything that comes until the server closes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            async with asyncio.timeout(PATIENCE_S):
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                return await reader.read()
        finally:
            writer.close()

    async def request(
        self,
        method: str,
        target: str,
        body: bytes | Iterable[bytes] = b"",
        *,
        head: str = "",
        version: str = "1.1",
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and the body of the answer, which is not chunked or comes in one chunk at most."""
        pieces = [body] if isinstance(body, bytes) else list(body)
        size = sum(map(len, pieces))
        request = f"{method} {target} HTTP/{version}\r\nHost: gateway\r\nConnection: close\r\n{head}"
        if method == "POST":
            request += f"Content-Length: {size}\r\n"
        answer = await self.send(f"{request}\r\n".encode("latin-1"), *pieces)
        lines, _, content = answer.partition(b"\r\n\r\n")
        status, *fields = lines.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (field.partition(": ") for field in fields)}
        if headers.get("transfer-encoding") == "chunked":
            content = dechunk(content)
        return int(status.split()[1]), headers, content

    async def get(
        self, target: str, accept: str | None = None, **options: Any
    ) -> tuple[int, dict[str, str], bytes]:
        head = "" if accept is None else f"Accept: {accept}\r\n"
        return await self.request("GET", f"/web{target}", head=head, **options)

    async def post(self, body: bytes | Iterable[bytes], content_type: str | None = FILES) -> tuple[int, Any]:
        head = "" if content_type is None else f"Content-Type: {content_type}\r\n"
        status, _, content = await self.request("POST", "/web/studies", body, head=head)
        return status, json.loads(content)

    async def found(self, query: str = "") -> list[str]:
        """SOP Instance UIDs of a search for instances."""
        status, _, content = await self.get(f"/instances{query}")
        assert status in (200, 204), content
        return sorted(each["00080018"]["Value"][0] for each in json.loads(content or b"[]"))


def dechunk(content: bytes) -> bytes:
    whole = b""
    while True:
        size, _, content = content.partition(b"\r\n")
        if not int(size, 16):
            return whole
        whole, content = whole + content[: int(size, 16)], content[int(size, 16) + 2 :]


@pytest.fixture
async def web(tmp_path: Path, free_port: int, load_config: Callable[[str], Any]) -> AsyncIterator[Web]:
    gateway = Gateway(
        load_config(
            f"""
            [proxy]
            id = "malformed"
            [storage.options]
            path = "{tmp_path / "storage"}"
            [network.n.http]
            bind_address = "127.0.0.1"
            bind_port = {free_port}
            [pipelines.p]
            networks = ["n"]
            endpoints = ["web"]
            [endpoints.web]
            service = "dicomweb"
            options.path_prefix = "/web"
            """
        )
    )
    await gateway.start()
    yield Web(free_port)
    await gateway.stop(0.0)


def model(number: int = 1, **attributes: Any) -> dict[str, Any]:
    return {
        "00080016": {"vr": "UI", "Value": [CT]},
        "00080018": {"vr": "UI", "Value": [f"{SERIES}.{number}"]},
        "00080020": {"vr": "DA", "Value": ["20240105"]},
        "0008002A": {"vr": "DT", "Value": ["20240105233000+0100"]},
        "00080030": {"vr": "TM", "Value": ["233000"]},
        "00080201": {"vr": "SH", "Value": ["+0100"]},
        "00100010": {"vr": "PN", "Value": [{"Alphabetic": "A+B C^D"}]},
        "0020000D": {"vr": "UI", "Value": [STUDY]},
        "0020000E": {"vr": "UI", "Value": [SERIES]},
    } | attributes


def file(number: int = 1, *, data: bytes | None = None, more: bytes = b"", syntax: str = EXPLICIT) -> bytes:
    meta = encode_file_meta(
        transfer_syntax_uid=syntax,
        media_storage_sop_class_uid=CT,
        media_storage_sop_instance_uid=f"{SERIES}.{number}",
    )
    return meta + (encode_data_set(model(number), EXPLICIT) + more if data is None else data)


def part(
    content: bytes, head: bytes = b"Content-Type: application/dicom\r\n", *, end: bytes = b"\r\n"
) -> bytes:
    return b"--b" + end + head + end + content + end


def multipart(*contents: bytes) -> bytes:
    return b"".join(map(part, contents)) + b"--b--\r\n"


# What is to be understood


async def test_no_accept_is_any(web: Web) -> None:
    await web.post(multipart(file()))
    status, headers, content = await web.get(f"/studies/{STUDY}/metadata")
    assert (status, headers["content-type"], len(json.loads(content))) == (200, JSON, 1)
    status, headers, content = await web.get(
        f"/studies/{STUDY}/series/{SERIES}/instances/{SERIES}.1/bulkdata/00100010"
    )
    assert status == 200


@pytest.mark.parametrize(
    "accept",
    [
        "multipart/related; type=application/dicom; transfer-syntax=*",
        'multipart/related;type="application/dicom";transfer-syntax="*"',
        'Multipart/Related; TYPE="Application/DICOM"; Transfer-Syntax=*',
        'multipart/related; type="application/dicom"; boundary=stray; transfer-syntax=*',
        "multipart/related; transfer-syntax=*",
        'nonsense, , multipart/related; type="application/dicom"; transfer-syntax=*;;q=1',
    ],
)
async def test_accept_as_clients_quote_it(web: Web, accept: str) -> None:
    await web.post(multipart(file()))
    status, headers, content = await web.get(f"/studies/{STUDY}", accept)
    assert (status, headers["content-type"][:17]) == (200, "multipart/related")
    assert file() in content


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ('multipart/related; type="application/dicom"; boundary="b"', b"b"),
        ("multipart/related; type=application/dicom; boundary=b", b"b"),
        ("multipart/related; type=application/dicom; boundary=a/b=c:d?", b"a/b=c:d?"),
        ("multipart/related; boundary=b; type=application/dicom", b"b"),
        ('multipart/related; boundary="a;b, c"; type="application/dicom"', b"a;b, c"),
        (r'multipart/related; boundary="a\"b"; type="application/dicom"', b'a"b'),
        ("multipart/related;boundary=b;type='application/dicom'", b"b"),
    ],
)
async def test_boundaries_as_clients_quote_them(web: Web, content_type: str, boundary: bytes) -> None:
    body = multipart(file()).replace(b"--b", b"--" + boundary)
    status, answer = await web.post(body, content_type)
    assert status == (415 if "'" in content_type else 200), answer
    assert await web.found() == ([] if "'" in content_type else [f"{SERIES}.1"])


async def test_lines_that_end_in_lf(web: Web) -> None:
    body = part(file(), b"Content-Type: application/dicom\n", end=b"\n") + b"--b--\n"
    assert (await web.post(body))[0] == 200
    assert await web.found() == [f"{SERIES}.1"]


async def test_lines_that_end_in_both_are_refused(web: Web) -> None:
    """Where a part ends decides what is stored."""
    body = part(file(1)) + part(file(2), end=b"\n") + b"--b--\r\n"
    status, answer = await web.post(body)
    assert status == 202
    assert "0008119A" in answer
    assert await web.found() == [f"{SERIES}.1"]


@pytest.mark.parametrize(
    "head", [b"", b"Content-Length: 1\r\n", b"CONTENT-TYPE:application/dicom\r\n", b"X: y\r\n\tz\r\n"]
)
async def test_parts_without_content_type_or_with_a_wrong_length(web: Web, head: bytes) -> None:
    body = part(file(1), head) + part(file(2), head) + b"--b--"
    assert (await web.post(body))[0] == 200
    assert await web.found() == [f"{SERIES}.1", f"{SERIES}.2"]


async def test_preamble_epilogue_padding_and_no_closing_boundary(web: Web) -> None:
    body = b"This is a multi-part message.\r\n" + part(file(1)).replace(b"--b\r\n", b"--b \t\r\n")
    assert (await web.post(body + b"--b--\r\nThe end.\r\n--b\r\n"))[0] == 200
    assert (await web.post(part(file(2)) + b"--b"))[0] == 200
    assert await web.found() == [f"{SERIES}.1", f"{SERIES}.2"]


LAX: list[tuple[str, dict[str, Any], Any]] = [
    ("lower-case key", {"0020000d": {"vr": "UI", "Value": [STUDY]}}, None),
    ("keyword for a key", {"SeriesNumber": {"vr": "IS", "Value": [4]}}, ("00200011", [4])),
    ("no vr", {"00200011": {"Value": [4]}}, ("00200011", [4])),
    ("lower-case vr", {"00200011": {"vr": "is", "Value": [4]}}, ("00200011", [4])),
    ("number as a string", {"00280010": {"vr": "US", "Value": ["512"]}}, ("00280010", [512])),
    ("string as a number", {"00280030": {"vr": "DS", "Value": [0.5, "1"]}}, ("00280030", [0.5, 1])),
    ("null for no value", {"00200011": {"vr": "IS", "Value": [None]}}, ("00200011", None)),
    ("empty string for no value", {"00200011": {"vr": "IS", "Value": [""]}}, ("00200011", None)),
    ("empty array for no value", {"00200011": {"vr": "IS", "Value": []}}, ("00200011", None)),
    ("null for an array", {"00200011": {"vr": "IS", "Value": None}}, ("00200011", None)),
    ("name as a string", {"00080090": {"vr": "PN", "Value": ["X^Y"]}}, ("00080090", [{"Alphabetic": "X^Y"}])),
    ("value without an array", {"00200011": {"vr": "IS", "Value": 4}}, ("00200011", [4])),
]


@pytest.mark.parametrize(("change", "expected"), [each[1:] for each in LAX], ids=[each[0] for each in LAX])
async def test_json_as_others_write_it(web: Web, change: dict[str, Any], expected: Any) -> None:
    given = {key: each for key, each in model().items() if key not in {tag.upper() for tag in change}}
    status, answer = await web.post(json.dumps([given | change]).encode(), JSON)
    assert status == 200, answer
    _, _, content = await web.get(f"/studies/{STUDY}/metadata")
    [stored] = json.loads(content)
    if expected is not None:
        tag, value = expected
        assert stored[tag].get("Value") == value


async def test_nothing_found_is_204_without_a_body(web: Web) -> None:
    status, headers, content = await web.get("/studies?PatientID=nobody", JSON)
    assert (status, content) == (204, b"")
    assert not {"content-length", "content-type", "transfer-encoding"} & set(headers)


@pytest.mark.parametrize(
    ("offset", "expected"),
    [
        ("%2B0900", 1),
        ("+0900", 1),  # a plus that a form encodes a space with
        ("%200900", 1),
        ("-0500", 0),
        ("%2B0100", 0),
    ],
)
async def test_a_plus_that_became_a_space_in_an_offset(web: Web, offset: str, expected: int) -> None:
    """23:30 at +0100 is the next day further east."""
    await web.post(multipart(file()))
    status, _, content = await web.get(f"/studies?StudyDate=20240106&TimezoneOffsetFromUTC={offset}")
    assert (status, len(json.loads(content or b"[]"))) == (200 if expected else 204, expected)


@pytest.mark.parametrize("offset", ["%2B0900", "+0900", "%200900"])
async def test_a_plus_that_became_a_space_in_a_date_time(web: Web, offset: str) -> None:
    await web.post(multipart(file()))
    for time, expected in (("0729", 0), ("0730", 1)):
        query = f"?AcquisitionDateTime=20240106070000{offset}-20240106{time}00{offset}"
        assert len(await web.found(query)) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [("A%2BB%20C%5ED", 1), ("A%2BB+C%5ED", 1), ("A+B+C%5ED", 0), ("A%2BB*", 1)],
)
async def test_plus_and_space_in_a_value(web: Web, value: str, expected: int) -> None:
    await web.post(multipart(file()))
    assert len(await web.found(f"?PatientName={value}")) == expected


@pytest.mark.parametrize("path", ["", "/metadata"])
async def test_http_1_0_is_answered_without_chunks(web: Web, path: str) -> None:
    await web.post(multipart(file()))
    accept = "application/zip" if not path else JSON
    status, headers, content = await web.get(f"/studies/{STUDY}{path}", accept, version="1.0")
    assert status == 200
    assert "transfer-encoding" not in headers
    assert headers["connection"] == "close"
    assert content.endswith(b"]") if path else b"PK\5\6" in content


async def test_chunks_from_a_client_without_a_length(web: Web) -> None:
    body = multipart(file())
    chunks = b"".join(
        b"%x;ext=1\r\n%s\r\n" % (len(body[at : at + 7]), body[at : at + 7]) for at in range(0, len(body), 7)
    )
    head = f"POST /web/studies HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: {FILES}\r\n"
    answer = await web.send(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n", chunks + b"0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK")


# What is hostile


def deep_json(depth: int) -> bytes:
    """A data set with sequences of sequences."""
    opening = b'{"00081140":{"vr":"SQ","Value":['
    return opening * depth + b"{}" + b"]}}" * depth


def inside(content: bytes) -> bytes:
    """A model with one more element."""
    return (
        json.dumps([model()]).encode().removesuffix(b"}]")
        + b',"00081140":{"vr":"SQ","Value":['
        + content
        + b"]}}]"
    )


@pytest.mark.parametrize("depth", [65, 200, 1000, 10_000])
@pytest.mark.parametrize("content_type", [JSON, METADATA])
async def test_r31_json_without_a_bottom_is_no_instance(web: Web, depth: int, content_type: str) -> None:
    body = inside(deep_json(depth))
    if content_type is METADATA:
        body = part(body, f"Content-Type: {JSON}\r\n".encode()) + b"--b--"
    status, answer = await web.post(body, content_type)
    assert status in (400, 409), answer
    assert ("error" in answer) == (status == 400)
    assert await web.found() == []


@pytest.mark.parametrize(
    "body", [b"[" * 10_000, b'{"a":' * 10_000, b'[{"00081140":' * 10_000, b"[" * 1000 + b"]" * 1000]
)
async def test_r31_json_of_brackets_is_400(web: Web, body: bytes) -> None:
    status, answer = await web.post(body, JSON)
    assert (status, list(answer)) == (400, ["error"])


@pytest.mark.parametrize("depth", [100, 5000])
async def test_r31_paths_without_a_bottom_lead_nowhere(web: Web, depth: int) -> None:
    path = ".".join(["00081140"] * depth)
    for target in (f"/studies?{path}=1", f"/studies?includefield={path}"):
        status, _, content = await web.get(target)
        assert status == 400, content
    where = f"/studies/{STUDY}/series/{SERIES}/instances/{SERIES}.1/bulkdata/"
    status, _, content = await web.get(where + "00081140/0/" * depth + "00081150")
    assert status == 404, content


def nested(depth: int, *, defined: bool) -> bytes:
    """A data set of sequences (0008,1140) in Explicit VR Little Endian, one within the other."""
    if not defined:
        return (
            b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * depth
            + b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0" * depth
        )
    lengths = [20 * inner for inner in range(depth)]
    return b"".join(
        b"\x08\x00\x40\x11SQ\0\0"
        + (size + 8).to_bytes(4, "little")
        + b"\xfe\xff\x00\xe0"
        + size.to_bytes(4, "little")
        for size in reversed(lengths)
    )


@pytest.mark.parametrize("defined", [False, True], ids=["undefined lengths", "defined lengths"])
@pytest.mark.parametrize("depth", [100, 10_000])
async def test_r31_a_data_set_without_a_bottom(web: Web, depth: int, defined: bool) -> None:
    """It is stored as it is, as files are; or it is not, when it cannot be found out where it belongs. Who asks for it
    gets an answer, and the others are not hurt."""
    first = {tag: each for tag, each in model().items() if tag < "00081140"}
    rest = {tag: each for tag, each in model().items() if tag > "00081140"}
    data = encode_data_set(first, EXPLICIT) + nested(depth, defined=defined) + encode_data_set(rest, EXPLICIT)
    status, answer = await web.post(multipart(file(data=data), file(2)))
    assert status in (200, 202), answer
    assert f"{SERIES}.2" in await web.found()
    for path in ("", "/metadata"):
        accept = JSON if path else 'multipart/related; type="application/dicom"; transfer-syntax=*'
        assert (await web.get(f"/studies/{STUDY}{path}", accept))[0] in (200, 206)
    where = f"/studies/{STUDY}/series/{SERIES}/instances/{SERIES}.1"
    for path in ("/metadata", "/frames/1", "/bulkdata/7FE00010"):
        assert (await web.get(where + path))[0] in (200, 404, 500)


@pytest.mark.parametrize(
    "more",
    [
        b"\xe0\x7f\x10\x00OW\0\0\xf0\xff\xff\xff" + bytes(100),
        b"\x10\x00\x20\x40LO\xff\xff" + b"x",
        b"\x40\x00\x75\x02SQ\0\0\xf0\xff\xff\xff\xfe\xff\x00\xe0\xf0\xff\xff\xff",
        b"\x40\x00\x75\x02SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff",
        b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xf0\xff\xff\xff",
        b"\xe0\x7f\x10",
    ],
    ids=["pixels", "text", "sequence", "sequence without end", "fragment", "half a tag"],
)
async def test_an_element_that_is_longer_than_its_file(web: Web, more: bytes) -> None:
    """What is there of it is kept, and can be had; it takes no more memory than it has bytes."""
    data = encode_data_set(model(), EXPLICIT)
    status, answer = await web.post(multipart(file(data=data + more)))
    assert status == 200, answer
    where = f"/studies/{STUDY}/series/{SERIES}/instances/{SERIES}.1"
    status, _, content = await web.get(where, "application/dicom; transfer-syntax=*")
    assert (status, content) == (200, file(data=data + more))
    for path in ("/metadata", "/frames/1", "/bulkdata/7FE00010", "/bulkdata/00102040", "/rendered"):
        with contextlib.suppress(ConnectionResetError):  # a value that is cut off does not look complete
            status, _, content = await web.get(where + path)
            assert status in (200, 404, 406, 500, 501), (path, content)


@pytest.mark.parametrize("where", ["before its UIDs", "behind its UIDs", "in its pixels"])
async def test_r31_a_deflated_data_set_that_grows_without_end(web: Web, where: str) -> None:
    """It is a gigabyte of a data set that says to have four, in one megabyte. What is needed of it is inflated."""
    plain = encode_data_set(model(), EXPLICIT)
    long = b"\x09\x00\x10\x10OB\0\0" if where == "before its UIDs" else b"\xe0\x7f\x10\x00OB\0\0"
    if where == "behind its UIDs":
        long = b"\x21\x00\x10\x10UN\0\0"  # private
    size = (4 << 30) - 1024
    begin = (
        encode_data_set({"00080016": model()["00080016"]}, EXPLICIT) if where == "before its UIDs" else plain
    )
    zeros = bytes(16 * MEBIBYTE)
    data = deflated(begin + long + size.to_bytes(4, "little")) + deflated(zeros) * 64
    before = peak_bytes()
    status, answer = await web.post(multipart(file(data=data, syntax=DEFLATED), file(2)))
    assert status in (200, 202), answer
    assert f"{SERIES}.2" in await web.found()
    instance = f"/studies/{STUDY}/series/{SERIES}/instances/{SERIES}.1"
    for path in ("/metadata", "/frames/1"):
        assert (await web.get(instance + path))[0] in (200, 404, 500)
    assert peak_bytes() - before < MEMORY_BYTES


async def test_what_is_inflated_leaves_turns_to_others() -> None:
    """Private data of 128 MB, which are passed over, in a data set of 128 KB."""
    size = 128 * MEBIBYTE
    long = b"\x21\x00\x10\x10UN\0\0" + size.to_bytes(4, "little")
    data = deflated(encode_data_set(model(), EXPLICIT) + long) + deflated(bytes(size))
    instance = Instance(CT, f"{SERIES}.1", DEFLATED, data)

    async def nothing_more() -> AsyncIterator[Instance]:
        return
        yield

    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.create_task(count())
    instances = DeliveredInstances(Selection(nothing_more()), TransferSyntaxes({}))
    pixels = ArrivingValue(instances, instance, (0x7FE00010,))
    with pytest.raises((FrameError, TranscodeError)):
        await pixels.begin()
    await pixels.aclose()
    counting.cancel()
    assert turns >= len(data) // 4096


def deflated(data: bytes) -> bytes:
    """A piece of a deflated data set: what follows may be another."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush(zlib.Z_FULL_FLUSH)


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize(
    ("piece", "count"),
    [
        (b"--b\r\nA: 1\r\n\r\nx\r\n", 1_000_000),
        (b"A", 20 * MEBIBYTE),
        (b"\r\n--", 5 * MEBIBYTE),
        (b"--b\r\nA: " + b"x" * 1000, 10_000),
    ],
    ids=["tiny parts", "no boundary", "nearly boundaries", "headers without end"],
)
async def test_parts_without_end(web: Web, piece: bytes, count: int) -> None:
    block = piece * (count // 100)
    before = peak_bytes()
    try:
        status, answer = await web.post(block for _ in range(100))
    except ConnectionError:  # refused while it was still being sent
        return
    assert status == 400, answer
    assert peak_bytes() - before < MEMORY_BYTES
