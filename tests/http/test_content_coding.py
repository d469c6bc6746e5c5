"""harmony.http.content_coding: RFC 9110 §12.5.3, and bodies that come out as they went in."""

import gzip
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from harmony.http import FileBody, Headers, Request, Response
from harmony.http.content_coding import add_vary, chosen_coding, encode_content

LONG = b'{"00100010":{"vr":"PN"}}' * 100
VERY_LONG = LONG * 100
JSON = {"Content-Type": "application/dicom+json"}

CHROME = "gzip, deflate, br, zstd"


@pytest.mark.parametrize(
    ("accept_encoding", "coding"),
    [
        (None, None),
        ("", None),
        (CHROME, "zstd"),
        ("gzip, deflate", "gzip"),  # requests, and browsers over plain HTTP
        ("gzip", "gzip"),
        ("GZIP", "gzip"),
        ("x-gzip", "gzip"),
        ("identity", None),
        ("deflate, br", None),
        ("*", "zstd"),
        ("*;q=0", None),
        ("zstd;q=0, *", "gzip"),
        ("gzip;q=1.0, zstd;q=0.5", "gzip"),
        ("gzip;q=0.5, zstd;q=0.5", "zstd"),
        ("gzip;q=0, identity", None),
        ("identity;q=1, gzip;q=0.5", None),
        ("identity;q=0.5, gzip;q=0.5", "gzip"),
        ("identity;q=0", None),
        ("gzip; q = 0", None),
        ("gzip;q=x, zstd;q=x", None),
        (", ;, gzip", "gzip"),
    ],
)
def test_codings(accept_encoding: str | None, coding: str | None) -> None:
    assert chosen_coding(accept_encoding) == coding


@given(st.text(alphabet=st.sampled_from('gzipstd*;=q01., \t"\\') | st.characters()))
def test_any_text_is_a_coding_or_none(accept_encoding: str) -> None:
    assert chosen_coding(accept_encoding) in ("gzip", "zstd", None)


def request(accept_encoding: str | None = CHROME) -> Request:
    return Request(
        "GET", "/", headers={} if accept_encoding is None else {"Accept-Encoding": accept_encoding}
    )


def decoded(coding: str, body: bytes) -> bytes:
    return (
        gzip.decompress(body)
        if coding == "gzip"
        else zstandard.ZstdDecompressor().decompressobj().decompress(body)
    )


class Chunks:
    """A body that knows whether it was closed."""

    def __init__(self, *chunks: bytes) -> None:
        self.chunks = list(chunks)
        self.is_closed = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self.chunks:
            raise StopAsyncIteration
        return self.chunks.pop(0)

    async def aclose(self) -> None:
        self.is_closed = True


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
@pytest.mark.parametrize("body", [LONG, VERY_LONG])
async def test_whole_bodies(coding: str, body: bytes) -> None:
    response = await encode_content(request(coding), Response(404, JSON, body))
    assert response.status == 404
    assert response.headers.get("content-encoding") == coding
    assert response.headers.get("vary") == "Accept-Encoding"
    assert len(response.body) < len(body) / 5
    assert decoded(coding, response.body) == body


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
async def test_streamed_bodies_leave_chunk_by_chunk(coding: str) -> None:
    decompressor = (
        zlib.decompressobj(zlib.MAX_WBITS | 16)
        if coding == "gzip"
        else zstandard.ZstdDecompressor().decompressobj()
    )
    chunks = [b"[", LONG, VERY_LONG, b"]"]
    body = Chunks(*chunks)
    response = await encode_content(request(coding), Response(200, JSON, body, content_length=7))
    assert response.content_length is None
    pieces = aiter(response.body)
    for chunk in chunks:
        assert decompressor.decompress(await anext(pieces)) == chunk
    assert decompressor.decompress(await anext(pieces)) == b""
    assert decompressor.eof
    with pytest.raises(StopAsyncIteration):
        await anext(pieces)
    await pieces.aclose()
    assert body.is_closed


async def test_a_body_that_was_never_begun_is_closed() -> None:
    body = Chunks(b"x")
    response = await encode_content(request(), Response(200, JSON, body))
    await response.body.aclose()
    assert body.is_closed
    assert [piece async for piece in response.body] == []


@pytest.mark.parametrize(
    "response",
    [
        Response(200, {"Content-Type": "application/dicom"}, VERY_LONG),
        Response(200, {"Content-Type": 'multipart/related; type="application/dicom"; boundary=b'}, VERY_LONG),
        Response(200, {}, VERY_LONG),
        Response(200, JSON, b"[]"),
        Response(200, JSON, None),
        Response(204, JSON, LONG),
        Response(206, JSON, LONG),
        Response(200, {**JSON, "Content-Encoding": "br"}, LONG),
        Response(200, JSON, FileBody(Path("/dev/null"))),
    ],
)
async def test_what_is_left_as_it_is(response: Response) -> None:
    assert await encode_content(request(), response) is response


@pytest.mark.parametrize(
    "content_type", ["application/json", "text/xml; charset=utf-8", "application/vnd.sun.wadl+xml"]
)
async def test_texts_are_compressed(content_type: str) -> None:
    response = await encode_content(request(), Response(200, {"Content-Type": content_type}, LONG))
    assert response.headers.get("content-encoding") == "zstd"


@pytest.mark.parametrize("etag", ['"x"', 'W/"x"'])
async def test_a_validator_is_about_the_content_only(etag: str) -> None:
    response = await encode_content(request(), Response(200, {**JSON, "ETag": etag}, LONG))
    assert response.headers.get("etag") == 'W/"x"'


async def test_vary_is_said_also_when_nothing_is_compressed() -> None:
    response = await encode_content(request(None), Response(200, {**JSON, "Vary": "Accept"}, LONG))
    assert response.body == LONG
    assert "content-encoding" not in response.headers
    assert response.headers.get("vary") == "Accept, Accept-Encoding"


@pytest.mark.parametrize(
    ("varies", "expected"),
    [(None, "Origin"), ("Accept", "Accept, Origin"), ("accept,origin", "accept,origin"), ("*", "*")],
)
def test_vary(varies: str | None, expected: str) -> None:
    headers = Headers({} if varies is None else {"Vary": varies})
    assert add_vary(headers, "Origin").get("vary") == expected
