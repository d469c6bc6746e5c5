"""harmony.http.multipart: the syntax of RFC 2046 §5.1, in any pieces; what is not that is refused."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from harmony.http import HTTPError, RequestBody
from harmony.http.media_type import parse_media_type
from harmony.http.multipart import (
    MultipartError,
    MultipartParser,
    PartBegin,
    PartEnd,
    multipart_boundary,
    read_parts,
)

TWO_PARTS = (
    b"--b\r\n"
    b"Content-Type: application/dicom\r\n"
    b"\r\n"
    b"first\r\n"
    b"--b\r\n"
    b"Content-Type: application/dicom\r\n"
    b"Content-Location: /2\r\n"
    b"\r\n"
    b"second\r\n"
    b"--b--\r\n"
)


def parse(*pieces: bytes, boundary: bytes = b"b") -> list[tuple[list[tuple[str, str]], bytes]]:
    """Headers and content of each part."""
    parser = MultipartParser(boundary)
    parts: list[tuple[list[tuple[str, str]], bytes]] = []
    is_open = False
    for piece in pieces:
        for event in parser.feed(piece):
            if isinstance(event, PartBegin):
                assert not is_open
                parts.append((list(event.headers), b""))
            elif isinstance(event, bytes):
                assert is_open
                assert event
                parts[-1] = (parts[-1][0], parts[-1][1] + event)
            is_open = not isinstance(event, PartEnd)
    parser.finish()
    assert not is_open
    return parts


def contents(*pieces: bytes, boundary: bytes = b"b") -> list[bytes]:
    return [content for _, content in parse(*pieces, boundary=boundary)]


def outcome(pieces: list[bytes], boundary: bytes) -> object:
    try:
        return parse(*pieces, boundary=boundary)
    except MultipartError as error:
        return error.message


def test_headers_and_content_of_each_part() -> None:
    assert parse(TWO_PARTS) == [
        ([("Content-Type", "application/dicom")], b"first"),
        ([("Content-Type", "application/dicom"), ("Content-Location", "/2")], b"second"),
    ]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"--b\r\n\r\n\r\n--b--", [b""]),
        (b"--b\r\nA: 1\r\n\r\n--b--", [b""]),  # body-part without its optional CRLF
        (b"--b\r\n\r\nx\r\n--b--", [b"x"]),
        (b"--b\r\n\r\n\r\n\r\n--b--", [b"\r\n"]),
        (b"preamble\r\n--b\r\n\r\nx\r\n--b--\r\nepilogue\r\n--b\r\n\r\ny", [b"x"]),
        (b"not --b\r\nnor--b--\r\n--b\r\n\r\nx\r\n--b--", [b"x"]),
        (b"\r\n--b\r\n\r\nx\r\n--b--", [b"x"]),
        (b"--b \t \r\n\r\nx\r\n--b--", [b"x"]),
        (b"--b\r\n\r\nx--b\r\n-\r\n--\r\n--a\n--b\r--b\r\n--b--", [b"x--b\r\n-\r\n--\r\n--a\n--b\r--b"]),
        (b"--b--", []),
        (b"preamble\r\n--b--", []),
        # Lines that end in LF.
        (b"--b\n\nx\n--b--", [b"x"]),
        (b"preamble\n--b \nA: 1\nB: 2;\n c\n\nx\r\n--b\n\n\n--b--\n", [b"x\r", b""]),
        (b"--b\n\nx\n\n--b--", [b"x\n"]),
        # Behind the last part is a boundary that does not close.
        (b"--b\r\n\r\nx\r\n--b", [b"x"]),
        (b"--b\r\n\r\nx\r\n--b-", [b"x"]),
        (b"--b\r\n\r\nx\r\n--b \r\n", [b"x"]),
    ],
)
def test_where_parts_begin_and_end(body: bytes, expected: list[bytes]) -> None:
    assert contents(body) == expected


def test_folded_header_lines_are_one() -> None:
    body = b'--b\r\nContent-Type: multipart/related;\r\n boundary="x";\r\n\ttype=y\r\n\r\n\r\n--b--'
    assert parse(body) == [([("Content-Type", 'multipart/related; boundary="x"; type=y')], b"")]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "does not contain the boundary that Content-Type names"),
        (b"no boundary at all", "does not contain the boundary that Content-Type names"),
        (b"x--b--", "does not contain the boundary that Content-Type names"),
        (b"--b", "ended before its closing boundary, in part 1"),
        (b"--b-", "ended before its closing boundary, in part 1"),
        (b"--b\r\nA: 1\r\n", "ended before its closing boundary, in part 1"),
        (b"--b\r\n\r\nx", "ended before its closing boundary, in part 1"),
        (b"--b\r\n\r\nx\r\n--", "ended before its closing boundary, in part 1"),
        (b"--b\r\n\r\nx\r\n--b\r\nA: 1", "ended before its closing boundary, in part 1"),
        (b"--b\r\n\r\nx\r\n--b\r\n\r\ny\r\n", "ended before its closing boundary, in part 2"),
        (b"--bx\r\n\r\n", "a boundary is followed by something else than the end of its line"),
        (b"--b\n\nx\n--b\r\n", "a boundary is followed by something else than the end of its line"),
        (b"--b\r\n\r\nx\r\n--b\n", "a boundary is followed by something else than the end of its line"),
        (b"--b\r\nA: 1\n\nx", "ended before its closing boundary, in part 1"),
        (b"--b\r\nno colon\r\n\r\n", "a header line of part 1 has no colon"),
        (b"--b\r\nA\0: 1\r\n\r\n", "a header of part 1 has characters that none may have"),
        (b"--b\r\nA: \x01\r\n\r\n", "a header of part 1 has characters that none may have"),
        (b"--b\r\n" + b"A" * 16400, "headers of part 1 exceed 16384 bytes"),
        (b"--b" + b" " * 1025 + b"\r\n", "a boundary is followed by something else than the end of its line"),
    ],
)  # fmt: skip
def test_what_is_refused(body: bytes, message: str) -> None:
    with pytest.raises(MultipartError) as refused:
        parse(body)
    assert (refused.value.status, refused.value.message) == (400, f"multipart body: {message}")


def test_the_number_of_parts_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harmony.http.multipart.MAXIMUM_PARTS", 2)
    assert contents(TWO_PARTS) == [b"first", b"second"]
    with pytest.raises(MultipartError, match="more than 2 parts"):
        parse(TWO_PARTS.removesuffix(b"--\r\n") + b"\r\n\r\nthird\r\n--b--")


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 64])
def test_pieces_of_one_size(size: int) -> None:
    assert parse(*(TWO_PARTS[at : at + size] for at in range(0, len(TWO_PARTS), size))) == parse(TWO_PARTS)


# Built of what matters to the parser, so that what it makes nearly always has boundaries in it.
_FRAGMENTS = st.sampled_from(
    [
        b"\r", b"\n", b"\r\n", b"-", b"--", b"--b", b"\r\n--b", b"\r\n--b--", b"--b\r\n", b"A: 1", b"\r\n\r\n", b" ",
        b"b", b"x",
    ]
)  # fmt: skip


@given(st.lists(_FRAGMENTS, max_size=24).map(b"".join), st.data())
def test_any_split_of_any_input_gives_the_same(body: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=8)))
    pieces = [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    assert outcome(pieces, b"b") == outcome([body], b"b")
    assert outcome([bytes([byte]) for byte in body], b"b") == outcome([body], b"b")


@given(st.lists(st.binary(max_size=200), max_size=5), st.integers(1, 50))
def test_what_was_written_is_read(written: list[bytes], size: int) -> None:
    boundary = b"0123456789-boundary"
    body = b"".join(b"--%s\r\nA: 1\r\n\r\n%s\r\n" % (boundary, content) for content in written)
    body += b"--%s--\r\n" % boundary
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    assert contents(*pieces, boundary=boundary) == written


_BOUNDARY = b"-bo-un-d"
_NEARLY = st.sampled_from(
    [
        (line_end + b"--" + _BOUNDARY)[:size]
        for line_end in (b"\r\n", b"\n", b"\r")
        for size in range(1, len(_BOUNDARY) + 4)
    ]
)  # fmt: skip


@given(
    written=st.lists(
        st.lists(_NEARLY | st.binary(max_size=3), max_size=12).map(b"".join), min_size=1, max_size=4
    ),
    line_end=st.sampled_from([b"\r\n", b"\n"]),
    around=st.tuples(
        st.sampled_from([b"", b"preamble", b"--", b"--" + _BOUNDARY[:-1]]), st.binary(max_size=40)
    ),
    data=st.data(),
)
def test_what_is_nearly_a_boundary_is_content_however_it_is_cut(
    written: list[bytes], line_end: bytes, around: tuple[bytes, bytes], data: st.DataObject
) -> None:
    delimiter = line_end + b"--" + _BOUNDARY
    assume(not any(delimiter in line_end + content + line_end for content in written))
    preamble, epilogue = around
    body = preamble + b"".join(
        delimiter + line_end + b"A: 1" + line_end * 2 + content for content in written
    ) + delimiter + b"--" + epilogue  # fmt: skip
    for at in data.draw(st.lists(st.integers(0, len(body)), min_size=1, max_size=5)):
        assert contents(body[:at], body[at:], boundary=_BOUNDARY) == written
    assert contents(*(bytes([byte]) for byte in body), boundary=_BOUNDARY) == written


@given(st.lists(st.binary(max_size=60), max_size=6))
def test_any_bytes_are_parts_or_an_error(pieces: list[bytes]) -> None:
    assert isinstance(outcome([b"--b\r\n", *pieces], b"b"), list | str)


def test_content_is_not_kept() -> None:
    parser = MultipartParser(b"b")
    list(parser.feed(b"--b\r\n\r\n"))
    for _ in range(100):
        assert sum(len(event) for event in parser.feed(bytes(65536)) if isinstance(event, bytes)) == 65536
    assert len(parser._buffer) == 0


# The reader


async def test_parts_are_read_piece_by_piece() -> None:
    body = RequestBody.of(TWO_PARTS[:50], TWO_PARTS[50:120], TWO_PARTS[120:])
    found = []
    async for part in read_parts(body, b"b"):
        found.append((part.headers.get("content-location"), b"".join([piece async for piece in part])))
    assert found == [(None, b"first"), ("/2", b"second")]


async def test_what_is_left_of_a_part_is_skipped() -> None:
    found = [
        part.headers.get("content-location") async for part in read_parts(RequestBody.of(TWO_PARTS), b"b")
    ]
    assert found == [None, "/2"]


async def turns_of_others(work: Awaitable[object]) -> int:
    """How often another task had its turn meanwhile."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.create_task(count())
    await work
    counting.cancel()
    return turns


async def test_many_small_parts_leave_turns_to_others() -> None:
    body = RequestBody.of(b"--b\r\n\r\n\r\n" * 1000 + b"--b--")
    assert await turns_of_others(read_all(body)) >= 999


async def read_all(chunks: AsyncIterable[bytes]) -> list[bytes]:
    return [b"".join([piece async for piece in part]) async for part in read_parts(chunks, b"b")]


async def test_errors_of_the_body_come_through() -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield TWO_PARTS[:42]
        raise HTTPError(408, "no more of the request body")

    with pytest.raises(HTTPError, match="no more of the request body"):
        await read_all(broken())


async def test_a_body_that_ends_early_is_an_error_in_its_last_part() -> None:
    parts = read_parts(RequestBody.of(TWO_PARTS[:42]), b"b")
    part = await anext(parts)
    assert await anext(part) == b"fi"
    with pytest.raises(MultipartError, match="ended before its closing boundary"):
        await part.skip()
    await parts.aclose()


@pytest.mark.parametrize("boundary", ["", " ", "x ", "x" * 201, "\x7f", "ü"])
def test_boundaries_that_are_none(boundary: str) -> None:
    with pytest.raises(MultipartError, match="no boundary"):
        multipart_boundary(parse_media_type(f'multipart/related; boundary="{boundary}"'))


@pytest.mark.parametrize("boundary", ["b", "x" * 200, "gc0pJq0M:08jU534c0p", "a b", "=_?/.,-+()'"])
def test_boundaries(boundary: str) -> None:
    media_type = parse_media_type(f'multipart/related; boundary="{boundary}"')
    assert multipart_boundary(media_type) == boundary.encode()
