"""harmony.http.multipart_writer: RFC 2046 §5.1 with the headers of PS3.18 §8.6, piece by piece."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harmony.http import FileSpan, HTTPError, Request, RequestBody, Response
from harmony.http.media_type import parse_media_type
from harmony.http.multipart import multipart_boundary, read_parts
from harmony.http.multipart_writer import MultipartBody, OutgoingPart, multipart_response, new_boundary


class Pieces:
    """Pieces that know whether they have been closed; an exception among them is raised."""

    def __init__(self, *pieces: object) -> None:
        self.pieces = list(pieces)
        self.is_closed = False

    def __aiter__(self) -> "Pieces":
        return self

    async def __anext__(self) -> object:
        if not self.pieces:
            raise StopAsyncIteration
        piece = self.pieces.pop(0)
        if isinstance(piece, Exception):
            raise piece
        return piece

    async def aclose(self) -> None:
        self.is_closed = True


async def collect(body: MultipartBody) -> bytes:
    return b"".join([bytes(piece) async for piece in body])


async def test_expected_bytes() -> None:
    parts = Pieces(
        OutgoingPart("application/dicom", b"first", "http://h/1"),
        OutgoingPart("application/dicom; transfer-syntax=1.2", Pieces(b"sec", memoryview(b"ond"))),
        OutgoingPart("application/dicom", Pieces(b"third"), size_bytes=5),
        OutgoingPart("application/dicom", Pieces()),
    )
    assert await collect(MultipartBody(parts, "b")) == (
        b"--b\r\n"
        b"Content-Type: application/dicom\r\n"
        b"Content-Location: http://h/1\r\n"
        b"Content-Length: 5\r\n"
        b"\r\n"
        b"first\r\n"
        b"--b\r\n"
        b"Content-Type: application/dicom; transfer-syntax=1.2\r\n"
        b"\r\n"
        b"second\r\n"
        b"--b\r\n"
        b"Content-Type: application/dicom\r\n"
        b"Content-Length: 5\r\n"
        b"\r\n"
        b"third\r\n"
        b"--b\r\n"
        b"Content-Type: application/dicom\r\n"
        b"\r\n"
        b"\r\n"
        b"--b--\r\n"
    )


async def test_a_span_of_a_file_leaves_behind_its_headers_unread(tmp_path: Path) -> None:
    path = tmp_path / "digits"
    path.write_bytes(b"0123456789")
    with path.open("rb") as file:
        span = FileSpan(file.fileno(), 2, 5, b"head:")
        body = MultipartBody(Pieces(OutgoingPart("a/b", Pieces(span, b"after"))), "b")
        first = await anext(body)
        assert isinstance(first, FileSpan)
        assert (first.offset, first.size_bytes) == (2, 5)
        assert bytes(first) == b"--b\r\nContent-Type: a/b\r\n\r\nhead:23456"
        assert await collect(body) == b"after\r\n--b--\r\n"


async def test_no_parts_at_all() -> None:
    assert await collect(MultipartBody(Pieces(), "b")) == b"--b--\r\n"


async def test_response() -> None:
    response = multipart_response(
        Pieces(OutgoingPart("a/b", b"x")), root_type="a/b", status=206, headers={"Vary": "Accept"}
    )
    media_type = parse_media_type(response.headers.get("content-type") or "")
    assert (response.status, media_type.essence) == (206, "multipart/related")
    assert media_type.parameters["type"] == "a/b"
    assert response.headers.get("vary") == "Accept"
    body = [piece async for piece in response.body]
    assert body[0].startswith(b"--" + multipart_boundary(media_type) + b"\r\n")


def test_boundaries_differ() -> None:
    assert new_boundary() != new_boundary()
    assert len(new_boundary()) == 32


@given(st.lists(st.lists(st.binary(max_size=40), max_size=4), max_size=4))
async def test_what_is_written_is_read_back(contents: list[list[bytes]]) -> None:
    parts = Pieces(*(OutgoingPart("a/b", Pieces(*pieces)) for pieces in contents))
    body = RequestBody.of(await collect(MultipartBody(parts, "no-such-text-in-there-0123456789")))
    if not contents:
        return
    read = []
    async for part in read_parts(body, b"no-such-text-in-there-0123456789"):
        read.append(b"".join([piece async for piece in part]))
    assert read == [b"".join(pieces) for pieces in contents]


async def test_a_large_first_piece_is_not_copied() -> None:
    large = bytes(100_000)
    body = MultipartBody(Pieces(OutgoingPart("a/b", Pieces(large, b"x"))), "b")
    assert await anext(body) == b"--b\r\nContent-Type: a/b\r\n\r\n"
    assert await anext(body) is large
    assert await anext(body) == b"x"


async def test_content_is_closed_at_its_end_and_parts_at_theirs() -> None:
    first, second = Pieces(b"1"), Pieces(b"2")
    parts = Pieces(OutgoingPart("a/b", first), OutgoingPart("a/b", second))
    body = MultipartBody(parts, "b")
    await anext(body)
    assert not first.is_closed
    await anext(body)
    assert first.is_closed
    assert not second.is_closed
    await body.aclose()
    assert second.is_closed
    assert parts.is_closed
    assert [piece async for piece in body] == []


async def test_a_body_that_was_never_begun_closes_its_parts() -> None:
    parts = Pieces(OutgoingPart("a/b", b"1"))
    await MultipartBody(parts, "b").aclose()
    assert parts.is_closed


async def test_an_error_before_the_first_part_is_a_status(serve) -> None:
    async def handler(request: Request) -> Response:
        return multipart_response(Pieces(HTTPError(404, "nothing")), root_type="a/b")

    served = await serve(handler)
    client = await served.connect()
    await client.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    assert (await client.response())[0] == 404


@pytest.mark.parametrize("pieces", [(HTTPError(502, "no"),), ()])
async def test_the_first_part_begins_with_its_first_piece(serve, pieces) -> None:
    async def handler(request: Request) -> Response:
        content = Pieces(*pieces)
        return multipart_response(Pieces(OutgoingPart("a/b", content)), root_type="a/b")

    client = await (await serve(handler)).connect()
    await client.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    status, _ = await client.head()
    assert status == (502 if pieces else 200)


async def test_an_error_in_the_middle_breaks_the_connection_off(serve) -> None:
    content = Pieces(b"some", RuntimeError("gone"))

    async def handler(request: Request) -> Response:
        return multipart_response(Pieces(OutgoingPart("a/b", content)), root_type="a/b")

    received = await (await serve(handler)).exchange(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    assert b"some" in received or received == b""
    assert b"0\r\n\r\n" not in received
    assert content.is_closed


async def test_a_client_that_leaves_closes_everything(serve) -> None:
    class Endless(Pieces):
        async def __anext__(self) -> bytes:
            return bytes(65536)

    content = Endless()
    parts: AsyncIterator[OutgoingPart] = Pieces(OutgoingPart("a/b", content))  # type: ignore[assignment]

    async def handler(request: Request) -> Response:
        return multipart_response(parts, root_type="a/b")

    served = await serve(handler)
    client = await served.connect()
    await client.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    await client.head()
    connections = list(served.server.connections)
    client.abort()
    async with asyncio.timeout(10.0):
        await asyncio.wait([connection.task for connection in connections])
    assert content.is_closed
    assert parts.is_closed  # type: ignore[attr-defined]
