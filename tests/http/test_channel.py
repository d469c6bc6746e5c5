"""harmony.http.channel: pieces of files on their way to a socket; the rest is in test_server and test_client."""

import asyncio
import contextlib
import errno
import os
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from harmony.http import FileSpan, HTTPServer, Piece, Request, Response
from harmony.http.channel import Channel
from harmony.ul.held import HELD

MIB = 1024 * 1024
EVENT_TIMEOUT_S = 10.0
REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture
def digits(tmp_path: Path) -> Iterator[int]:
    """A descriptor of a file that holds 0123456789."""
    path = tmp_path / "digits"
    path.write_bytes(b"0123456789")
    descriptor = os.open(path, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


def answering(*pieces: Piece) -> Any:
    async def stream() -> AsyncIterator[Piece]:
        for piece in pieces:
            yield piece

    async def handler(request: Request) -> Response:
        return Response(200, body=stream())

    return handler


async def happened(event: asyncio.Event) -> None:
    async with asyncio.timeout(EVENT_TIMEOUT_S):
        await event.wait()


BODY = b"6\r\nbefore\r\na\r\nhead:23456\r\n5\r\nafter\r\n2\r\n89\r\n0\r\n\r\n"


def pieces_of(descriptor: int) -> tuple[Piece, ...]:
    span = FileSpan(descriptor, 2, 5, b"head:")
    return b"before", span, b"after", FileSpan(descriptor, 8, 2), FileSpan(descriptor, 10, 0)


async def fetch(server: HTTPServer, *, size_bytes: int = len(BODY), **options: Any) -> bytes:
    """The body of one answer, as it is on the wire."""
    (address,) = await server.start("127.0.0.1", 0, **options)
    context = None
    if options:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        async with asyncio.timeout(EVENT_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(*address, ssl=context)
            writer.write(REQUEST)
            await reader.readuntil(b"\r\n\r\n")
            body = await reader.readexactly(size_bytes)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            return body
    finally:
        await server.stop(1.0)


@pytest.mark.parametrize(
    "new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)
def test_span_goes_between_the_pieces_around_it(digits: int, new_loop: Any) -> None:
    async def main() -> bytes:
        return await fetch(HTTPServer(answering(*pieces_of(digits))))

    with asyncio.Runner(loop_factory=new_loop) as runner:
        assert runner.run(main()) == BODY


async def test_span_is_read_for_tls(digits: int, certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    assert await fetch(HTTPServer(answering(*pieces_of(digits))), ssl=context) == BODY


async def test_span_is_read_where_the_file_system_cannot_send(
    digits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "sendfile", refuse)
    assert await fetch(HTTPServer(answering(*pieces_of(digits)))) == BODY


def test_span_is_bytes_to_who_wants_them(digits: int) -> None:
    span = FileSpan(digits, 2, 5, b"head:")
    assert len(span) == 10
    assert bytes(span) == b"head:23456"
    assert list(span.pieces(2)) == [b"head:", b"23", b"45", b"6"]
    with pytest.raises(EOFError, match="file ended at byte 10"):
        bytes(FileSpan(digits, 8, 5))


@pytest.fixture
def large(tmp_path: Path) -> Iterator[int]:
    """A descriptor of a file of 32 MiB, more than the kernel keeps for a socket."""
    path = tmp_path / "large"
    with path.open("wb") as file:
        for number in range(32):
            file.write(bytes([number]) * MIB)
    descriptor = os.open(path, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


async def test_span_waits_for_a_slow_client_and_arrives_whole(serve: Any, large: int) -> None:
    client = await (await serve(answering(FileSpan(large, 0, 32 * MIB)))).connect(limit=65536)
    await client.send(REQUEST)
    await client.head()
    assert await client.exactly(9) == b"2000000\r\n"
    for number in range(32):
        assert await client.exactly(MIB) == bytes([number]) * MIB
    assert await client.exactly(7) == b"\r\n0\r\n\r\n"


@pytest.mark.parametrize("leave", ["close", "abort"])
async def test_client_leaving_within_a_span_closes_its_source(serve: Any, large: int, leave: str) -> None:
    closed = asyncio.Event()

    async def stream() -> AsyncIterator[Piece]:
        try:
            yield FileSpan(large, 0, 32 * MIB)
            yield FileSpan(large, 0, 32 * MIB)
        finally:
            closed.set()

    async def handler(request: Request) -> Response:
        return Response(200, body=stream())

    served = await serve(handler)
    client = await served.connect(limit=65536)
    await client.send(REQUEST)
    await client.head()
    assert not closed.is_set()
    if leave == "close":
        await client.close()
    else:
        client.abort()
    await happened(closed)


async def test_client_that_takes_nothing_of_a_span_is_given_up(serve: Any, large: int) -> None:
    closed = asyncio.Event()

    async def stream() -> AsyncIterator[Piece]:
        try:
            while True:
                yield FileSpan(large, 0, 32 * MIB)
        finally:
            closed.set()

    async def handler(request: Request) -> Response:
        return Response(200, body=stream())

    client = await (await serve(handler, write_timeout_s=0.1)).connect(limit=1024)
    await client.send(REQUEST)
    await happened(closed)
    await client.closed()


async def test_file_that_becomes_shorter_breaks_the_connection(serve: Any, digits: int) -> None:
    client = await (await serve(answering(FileSpan(digits, 0, 20)))).connect()
    await client.send(REQUEST)
    await client.head()
    with pytest.raises(ConnectionResetError):
        await client.rest()


async def test_at_the_limit_of_all_no_more_is_read_while_something_waits(
    serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HELD, "limit_bytes", HELD.held_bytes + 1)
    pauses: list[int] = []

    async def handler(request: Request) -> Response:
        size = 0
        async for chunk in request.body:
            size += len(chunk)
        (connection,) = served.server.connections
        pauses.append(connection.channel.read_pauses)
        return Response(200, body=b"%d" % size)

    served = await serve(handler)
    client = await served.connect()
    await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n" + bytes(1_000_000))
    assert (await client.response())[2] == b"1000000"  # it goes on, a read at a time
    assert pauses[0] > 1


async def test_what_is_not_in_the_page_cache_is_read_first(tmp_path: Path) -> None:
    path, content = tmp_path / "cold", bytes(range(256)) * 10_000
    path.write_bytes(content)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        server = HTTPServer(answering(FileSpan(descriptor, 10, len(content) - 10)))
        expected = b"%x\r\n" % (len(content) - 10) + content[10:] + b"\r\n0\r\n\r\n"
        assert await fetch(server, size_bytes=len(expected)) == expected
    finally:
        os.close(descriptor)


# Deadlines


async def test_a_wait_ends_at_its_own_deadline_whatever_the_ones_before_were() -> None:
    ours, theirs = socket.socketpair()
    loop = asyncio.get_running_loop()
    with theirs:
        _, channel = await loop.create_connection(Channel, sock=ours)
        for seconds in (0.2, 60.0, 0.1):  # the last one is over before the timer of the others
            theirs.send(b"x")
            await channel.wait_for_data(loop.time() + seconds)
            assert channel.take() == b"x"
        for seconds in (0.3, 0.05):  # and the first of these after it
            deadline = loop.time() + seconds
            with pytest.raises(TimeoutError):
                await channel.wait_for_data(deadline)
            assert loop.time() >= deadline
        channel.abort()
