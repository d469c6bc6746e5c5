"""harmony.http.server and .connection: real sockets on loopback, requests typed by hand (RFC 9112)."""

import asyncio
import contextlib
import logging
import random
import re
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harmony import __version__
from harmony.http import (
    Exchanged,
    FileBody,
    HTTPError,
    HTTPServer,
    Request,
    Response,
    Router,
    ServerLimits,
    error_response,
    json_response,
)

MIB = 1024 * 1024
EVENT_TIMEOUT_S = 10.0


async def hello(request: Request) -> Response:
    return Response(200, {"Content-Type": "text/plain"}, b"hello")


async def echo(request: Request) -> Response:
    """The request body, as it comes."""
    return Response(200, body=request.body, content_length=request.body.content_length)


async def count(request: Request) -> Response:
    total = 0
    async for chunk in request.body:
        total += len(chunk)
    return json_response(total)


async def happened(event: asyncio.Event) -> None:
    async with asyncio.timeout(EVENT_TIMEOUT_S):
        await event.wait()


async def until(condition: Callable[[], bool]) -> None:
    """Turns of the loop, not time, until something without an event of its own is so."""
    async with asyncio.timeout(EVENT_TIMEOUT_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


def undated(response: bytes) -> bytes:
    return re.sub(rb"Date: [^\r]+", b"Date: D", response)


# Responses as bytes


async def test_response_is_exactly_this(serve: Any) -> None:
    served = await serve(hello)
    response = await served.exchange(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert undated(response).decode() == (
        "HTTP/1.1 200 OK\r\n"
        "Content-Type: text/plain\r\n"
        "Content-Length: 5\r\n"
        f"Server: harmony/{__version__}\r\n"
        "X-Content-Type-Options: nosniff\r\n"
        "Date: D\r\n"
        "Connection: close\r\n"
        "\r\n"
        "hello"
    )
    assert re.search(rb"Date: \w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT\r\n", response)


async def test_two_requests_in_one_segment_are_answered_in_order(serve: Any) -> None:
    async def path(request: Request) -> Response:
        return Response(200, body=request.path.encode())

    served = await serve(path)
    client = await served.connect()
    await client.send(
        b"POST /one HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
        b"\r\n"  # an empty line more than asked for, as some clients send (RFC 9112 §2.2)
        b"GET /two HTTP/1.1\r\nHost: a\r\n\r\n"
        b"GET /three HTTP/1.1\r\nHost: a\r\n\r\n"
    )
    assert [(await client.response())[2] for _ in range(3)] == [b"/one", b"/two", b"/three"]
    assert len(served.server.connections) == 1


SPLIT_REQUEST = (
    b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nT: 1\r\n\r\n"
    b"GET /b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
)


async def test_every_split_of_a_request_gives_the_same_response(serve: Any) -> None:
    async def describe(request: Request) -> Response:
        body = await request.body.read()
        return json_response([request.method, request.path, body.decode(), request.headers.get("host")])

    served = await serve(describe)
    whole = undated(await served.exchange(SPLIT_REQUEST))
    assert whole.count(b"HTTP/1.1 200 OK") == 2
    assert b'["POST","/a","abcde","a"]' in whole
    for cut in range(1, len(SPLIT_REQUEST)):
        client = await served.connect()
        await client.send(SPLIT_REQUEST[:cut])
        await asyncio.sleep(0)  # lets the server see the first part alone, most of the time
        await client.send(SPLIT_REQUEST[cut:])
        assert undated(await client.closed()) == whole
    client = await served.connect()
    for offset in range(len(SPLIT_REQUEST)):
        await client.send(SPLIT_REQUEST[offset : offset + 1])
        await asyncio.sleep(0)
    assert undated(await client.closed()) == whole


async def test_head_has_the_headers_of_get_and_no_body(serve: Any) -> None:
    closed = asyncio.Event()

    async def stream() -> AsyncIterator[bytes]:
        try:
            yield b"never"
        finally:
            closed.set()

    router = Router()
    router.add("GET", "/plain", hello)
    router.add("GET", "/stream", lambda _: _done(Response(200, body=stream(), content_length=5)))
    served = await serve(router)
    client = await served.connect()
    for path in (b"/plain", b"/stream"):
        await client.send(b"HEAD " + path + b" HTTP/1.1\r\nHost: a\r\n\r\n")
        status, headers = await client.head()
        assert (status, headers["content-length"]) == (200, "5")
    await client.send(b"GET /plain HTTP/1.1\r\nHost: a\r\n\r\n")  # nothing was left in between
    assert (await client.response())[2] == b"hello"
    assert not closed.is_set()  # the generator was not even started


async def _done(response: Response) -> Response:
    return response


async def test_stream_without_length_is_chunked_or_for_1_0_ends_with_the_connection(serve: Any) -> None:
    async def stream() -> AsyncIterator[bytes | memoryview]:
        buffer = bytearray(b"abc")
        yield memoryview(buffer)
        buffer[:] = b"xyz"  # the view was copied before this
        yield b""
        yield memoryview(buffer)

    async def handler(request: Request) -> Response:
        return Response(200, body=stream())

    served = await serve(handler)
    head, _, body = (
        await served.exchange(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    ).partition(b"\r\n\r\n")
    assert b"Transfer-Encoding: chunked" in head
    assert body == b"3\r\nabc\r\n3\r\nxyz\r\n0\r\n\r\n"
    head, _, body = (await served.exchange(b"GET / HTTP/1.0\r\n\r\n")).partition(b"\r\n\r\n")
    assert b"Transfer-Encoding" not in head
    assert b"Connection: close" in head
    assert body == b"abcxyz"


async def test_empty_stream_has_length_zero_and_204_none(serve: Any) -> None:
    async def nothing() -> AsyncIterator[bytes]:
        for chunk in ():
            yield chunk

    async def handler(request: Request) -> Response:
        return Response(204) if request.path == "/204" else Response(200, body=nothing())

    client = await (await serve(handler)).connect()
    await client.send(b"GET /204 HTTP/1.1\r\nHost: a\r\n\r\n")
    status, headers = await client.head()
    assert status == 204
    assert "content-length" not in headers
    await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    status, headers = await client.head()
    assert (status, headers["content-length"]) == (200, "0")


async def test_framing_headers_of_a_handler_are_ours_to_decide(serve: Any) -> None:
    async def handler(request: Request) -> Response:
        return Response(200, {"Content-Length": "99", "Transfer-Encoding": "gzip", "Server": "mine"}, b"abc")

    client = await (await serve(handler)).connect()
    await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    status, headers, body = await client.response()
    assert (status, headers["content-length"], headers["server"], body) == (200, "3", "mine", b"abc")
    assert "transfer-encoding" not in headers


# Request bodies


async def test_expect_continue_is_answered_when_the_handler_reads(serve: Any) -> None:
    go = asyncio.Event()

    async def handler(request: Request) -> Response:
        await go.wait()
        return await echo(request)

    client = await (await serve(handler)).connect()
    await client.send(b"PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await client.reader.read(1)
    go.set()
    assert await client.exactly(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
    await client.send(b"ok")
    assert (await client.response())[2] == b"ok"


async def test_expect_continue_is_not_answered_when_the_handler_refuses(serve: Any) -> None:
    async def handler(request: Request) -> Response:
        raise HTTPError(409, "already there")

    served = await serve(handler)
    response = await served.exchange(
        b"PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
    )
    assert response.startswith(
        b"HTTP/1.1 409 Conflict\r\n"
    )  # and closed: whether a body follows nobody knows
    assert b"Connection: close" in response


async def test_large_upload_to_a_slow_handler_keeps_memory_bounded(serve: Any) -> None:
    seen = asyncio.Event()

    async def slow(request: Request) -> Response:
        total = 0
        await seen.wait()
        async for chunk in request.body:
            total += len(chunk)
            await asyncio.sleep(0)
        return json_response(total)

    served = await serve(slow)
    client = await served.connect()
    piece = b"10000\r\n" + bytes(65536) + b"\r\n"

    async def send() -> None:
        await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(320):
            await client.send(piece)
        await client.send(b"0\r\n\r\n")

    sending = asyncio.create_task(send())
    (connection,) = await _connections(served.server, 1)
    await until(lambda: connection.channel.read_pauses > 0)
    assert not sending.done()
    seen.set()
    await sending
    assert (await client.response())[2] == b"20971520"
    assert connection.channel.peak_buffered_bytes <= 2 * 256 * 1024


async def _connections(server: HTTPServer, number: int) -> list[Any]:
    await until(lambda: len(server.connections) == number)
    return list(server.connections)


async def test_large_response_to_a_slow_client_keeps_memory_bounded(serve: Any) -> None:
    produced = 0

    async def stream() -> AsyncIterator[bytes]:
        nonlocal produced
        for _ in range(512):
            produced += 65536
            yield bytes(65536)

    async def handler(request: Request) -> Response:
        return Response(200, body=stream(), content_length=32 * MIB)

    served = await serve(handler)
    client = await served.connect(limit=65536)
    await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    (connection,) = await _connections(served.server, 1)
    await until(lambda: connection.channel.peak_unsent_bytes > 0)
    assert produced < 32 * MIB
    await client.head()
    remaining = 32 * MIB
    async with asyncio.timeout(EVENT_TIMEOUT_S):
        while remaining:
            remaining -= len(await client.reader.read(65536))
    assert connection.channel.peak_unsent_bytes <= MIB + 65536


async def test_body_over_the_default_limit_is_413(serve: Any) -> None:
    served = await serve(count, maximum_body_bytes=10)
    answers = [
        await served.exchange(b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n" + rest)
        for rest in (
            b"Content-Length: 10\r\n\r\n0123456789",
            b"Content-Length: 11\r\n\r\n0123456789a",
            b"Transfer-Encoding: chunked\r\n\r\n8\r\n01234567\r\n8\r\n01234567\r\n0\r\n\r\n",
            b"Content-Length: 99999999999999999999\r\n\r\n",
        )
    ]
    assert [answer[9:12] for answer in answers] == [b"200", b"413", b"413", b"413"]
    assert b'{"error":"request body of 11 bytes or more, at most 10 accepted"}' in answers[1]


async def test_short_unread_body_is_skipped_and_a_long_one_closes_after_the_answer(serve: Any) -> None:
    served = await serve(hello)
    client = await served.connect()
    await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n" + bytes(100000))
    assert (await client.response())[0] == 200
    await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 50000000\r\n\r\n" + bytes(100000))
    status, headers, body = await client.response()
    assert (status, headers["connection"], body) == (200, "close", b"hello")
    # The client may go on for a while without its answer being lost to a reset; the server's end is closed.
    await client.send(bytes(MIB))
    assert await client.rest() == b""


async def test_broken_chunk_framing_is_400(serve: Any) -> None:
    served = await serve(count)
    response = await served.exchange(
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n"
    )
    assert response.startswith(b"HTTP/1.1 400 ")
    assert b"nonsense" not in response


async def test_body_without_progress_is_408(serve: Any) -> None:
    served = await serve(count, body_read_timeout_s=0.05)
    response = await served.exchange(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nabc")
    assert response.startswith(b"HTTP/1.1 408 ")
    assert b"Connection: close" in response


async def test_body_that_dribbles_is_408(serve: Any) -> None:
    # A byte is progress, and would have been enough for ever.
    client = await (await serve(count, body_read_timeout_s=0.2, minimum_rate=1000)).connect()
    await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n")
    answer = asyncio.create_task(client.head())
    while not answer.done():
        await client.send(b"a")
        await asyncio.wait([answer], timeout=0.01)
    status, headers = await answer
    assert (status, headers["connection"]) == (408, "close")


async def test_body_that_dribbles_is_borne_without_a_least_rate(serve: Any) -> None:
    client = await (await serve(count, body_read_timeout_s=1.0, minimum_rate=0)).connect()
    await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 150\r\n\r\n")
    answer = asyncio.create_task(client.response())
    for _ in range(150):
        await client.send(b"a")
        await asyncio.wait([answer], timeout=0.01)
    assert (await answer)[0] == 200


# Heads that are refused


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # no Host (RFC 9112 §3.2)
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: y\0\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 501),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"GET /%zz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 400),
        (b"GET relative HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 400),
        (b"hello\r\n\r\n", 400),
    ],
)
async def test_bad_heads_are_refused_with_json(serve: Any, head: bytes, status: int) -> None:
    served = await serve(hello)
    response = await served.exchange(head)
    assert response.startswith(b"HTTP/1.1 %d " % status)
    assert b"\r\nContent-Type: application/json\r\n" in response
    assert b'\r\n\r\n{"error":"' in response


async def test_head_limit_counts_the_same_bytes_however_they_come(serve: Any) -> None:
    served = await serve(hello, maximum_header_bytes=1000)
    start, end = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX: ", b"\r\n\r\n"
    fits = start + b"x" * (1000 - len(start) - len(end)) + end
    exceeds = start + b"x" * (1001 - len(start) - len(end)) + end
    assert (await served.exchange(fits)).startswith(b"HTTP/1.1 200 ")
    assert (await served.exchange(exceeds)).startswith(b"HTTP/1.1 431 ")
    for cut in (10, 999, 1000):
        client = await served.connect()
        await client.send(exceeds[:cut])
        await asyncio.sleep(0)
        await client.send(exceeds[cut:])
        assert (await client.closed()).startswith(b"HTTP/1.1 431 ")


async def test_dribbling_a_head_does_not_extend_its_deadline(serve: Any) -> None:
    served = await serve(hello, header_timeout_s=0.2)
    client = await served.connect()

    async def dribble() -> None:
        with contextlib.suppress(ConnectionError):
            await client.send(b"GET / HTTP/1.1\r\nHost: a\r\nX: ")
            while not client.reader.at_eof():
                await client.send(b"x")
                await asyncio.sleep(0.01)

    dribbling = asyncio.create_task(dribble())
    response = await client.closed()
    await dribbling
    assert response.startswith(b"HTTP/1.1 408 Request Timeout\r\n")


async def test_silent_and_idle_connections_are_closed_without_a_word(serve: Any) -> None:
    silent = await (await serve(hello, header_timeout_s=0.05)).connect()
    assert await silent.rest() == b""
    idle = await (await serve(hello, idle_keep_alive_timeout_s=0.05)).connect()
    await idle.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (await idle.response())[0] == 200
    assert await idle.rest() == b""


@pytest.mark.parametrize(
    ("first", "name"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "TLS"),
        (b"\x01\x00\x00\x00\x00\xcd\x00\x01", "DICOM"),
    ],
)
async def test_other_protocols_are_closed_at_once_and_named(
    serve: Any, caplog: pytest.LogCaptureFixture, first: bytes, name: str
) -> None:
    served = await serve(hello)
    with caplog.at_level(logging.INFO, "harmony.http"):
        assert await served.exchange(first) == b""
    assert [record for record in caplog.messages if f"speaks {name}" in record]


async def test_connections_over_the_limit_are_answered_503(serve: Any) -> None:
    served = await serve(hello, maximum_connections=1)
    first = await served.connect()
    await first.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (await first.response())[0] == 200
    second = await served.connect()
    status, headers, _ = await second.response()
    assert (status, headers["retry-after"], headers["connection"]) == (503, "1", "close")
    await first.close()
    await _connections(served.server, 0)
    third = await served.connect()
    await third.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (await third.response())[0] == 200


GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


async def test_connections_of_one_address_over_its_limit_are_answered_429(serve: Any, caplog: Any) -> None:
    served = await serve(hello, maximum_connections_per_address=2)
    first, second = await served.connect(), await served.connect()
    for client in (first, second):
        await client.send(GET)
        assert (await client.response())[0] == 200
    for _ in range(2):
        status, headers, _ = await (await served.connect()).response()
        assert (status, headers["retry-after"], headers["connection"]) == (429, "1", "close")
    assert caplog.text.count("127.0.0.1 has 2 open, maximum_connections_per_address") == 1
    elsewhere = await served.connect(local_addr=("127.0.0.2", 0))
    for client in (elsewhere, first):  # others are served meanwhile, and who is there already
        await client.send(GET)
        assert (await client.response())[0] == 200
    await second.close()
    await _connections(served.server, 2)
    third = await served.connect()
    await third.send(GET)
    assert (await third.response())[0] == 200


async def test_each_listener_has_its_own_limits(serve: Any) -> None:
    served = await serve(hello, maximum_connections=1)
    ((host, port),) = await served.server.start(
        "127.0.0.1", 0, limits=ServerLimits(maximum_connections=2, maximum_header_bytes=100)
    )
    first = await served.connect()
    await first.send(GET)
    assert (await first.response())[0] == 200
    others = [await served.connect(to=(host, port)) for _ in range(3)]
    for client in others[:2]:
        await client.send(GET)
        assert (await client.response())[0] == 200
    assert (await others[2].response())[0] == 503
    assert (await (await served.connect()).response())[0] == 503
    await others[0].send(b"GET / HTTP/1.1\r\nHost: a\r\nX-Long: " + b"x" * 100)
    assert (await others[0].response())[0] == 431
    await first.send(GET[:-2] + b"X-Long: " + b"x" * 100 + b"\r\n\r\n")
    assert (await first.response())[0] == 200


@pytest.mark.parametrize("seed", range(3))
async def test_counters_return_to_zero_in_any_order(serve: Any, seed: int) -> None:
    served = await serve(hello, maximum_connections=6, maximum_connections_per_address=4)
    order = random.Random(seed)
    for _ in range(10):
        clients = [
            await served.connect(local_addr=(order.choice(["127.0.0.1", "127.0.0.2", "127.0.0.3"]), 0))
            for _ in range(10)
        ]
        for client in order.sample(clients, 10):
            with contextlib.suppress(ConnectionError):
                match order.choice(["silent", "part", "request", "garbage"]):
                    case "part":
                        await client.send(GET[:10])
                    case "request":
                        await client.send(GET)
                    case "garbage":
                        await client.send(b"\x16\x03\x01")
        for client in order.sample(clients, 10):
            with contextlib.suppress(ConnectionError):
                client.abort() if order.random() < 0.5 else await client.close()
    await _connections(served.server, 0)
    (listener,) = served.server._listeners
    await until(lambda: not served.server.refused_connections)
    assert len(listener._hosts) == 0
    assert not listener._hosts._counts


async def test_requests_per_connection_are_limited(serve: Any) -> None:
    served = await serve(hello, maximum_requests_per_connection=2)
    client = await served.connect()
    await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 3)
    assert "connection" not in (await client.response())[1]
    assert (await client.response())[1]["connection"] == "close"
    assert await client.rest() == b""


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_garbage_is_answered_with_an_error_or_closed(data: st.DataObject) -> None:
    garbage = data.draw(
        st.one_of(
            st.binary(max_size=200),
            st.lists(
                st.sampled_from(
                    [b"GET ", b"POST / ", b"HTTP/1.1\r\n", b"Host: a\r\n", b"\r\n", b"Content-Length: 5\r\n", b"\0",
                     b"Transfer-Encoding: chunked\r\n", b"ffffffffffffffff\r\n", b"3\r\nabc", b"0\r\n\r\n", b"\xff"]
                ),
                max_size=12,
            ).map(b"".join),
        )
    )  # fmt: skip

    async def run() -> tuple[bytes, bytes]:
        server = HTTPServer(echo)
        ((host, port),) = await server.start("127.0.0.1", 0)
        answers = []
        for request in (garbage, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"):
            reader, writer = await asyncio.open_connection(host, port)
            with contextlib.suppress(ConnectionError):
                writer.write(request)
                if request is garbage:
                    for _ in range(10):  # turns of the loop: time for an answer, before the end cancels it
                        await asyncio.sleep(0)
                    writer.write_eof()
            answers.append(b"")
            with contextlib.suppress(ConnectionError):
                while chunk := await reader.read(65536):
                    answers[-1] += chunk
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        await server.stop()
        return answers[0], answers[1]

    answer, after = asyncio.run(run())
    assert answer == b"" or re.match(rb"HTTP/1\.1 (200|100|4\d\d|50[15]) ", answer)
    assert after.startswith(b"HTTP/1.1 200 ")


# Handlers that fail, clients that leave


async def test_exception_is_500_without_its_text_and_is_logged(
    serve: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(request: Request) -> Response:
        raise RuntimeError("patient DOE")

    client = await (await serve(handler)).connect()
    for _ in range(2):  # the connection lives on
        await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        status, _, body = await client.response()
        assert (status, body) == (500, b'{"error":"internal error"}')
    assert "RuntimeError: patient DOE" in caplog.text


async def test_head_that_is_refused_is_answered_without_a_body(
    serve: Any, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await (await serve(hello)).exchange(b"HEAD / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.endswith(b"\r\n\r\n")
    assert not caplog.records


async def test_a_broken_request_body_behind_a_begun_response_is_no_error_of_ours(
    serve: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(request: Request) -> Response:
        async def body() -> AsyncIterator[bytes]:
            async for chunk in request.body:
                yield chunk

        return Response(200, (), body())

    client = await (await serve(handler)).connect()
    await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
    await client.head()
    await client.exactly(len(b"5\r\nhello\r\n"))
    with caplog.at_level(logging.INFO, "harmony.http"):
        await client.send(b"patient\r\n")
        assert await client.closed() == b""
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert record.getMessage().endswith("response broke off: malformed request")


@pytest.mark.parametrize("answer", [None, "text"])
async def test_what_is_not_a_response_is_500(serve: Any, answer: object) -> None:
    async def handler(request: Request) -> Any:
        return answer

    client = await (await serve(handler)).connect()
    await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (await client.response())[0] == 500


async def test_cancelled_inner_task_is_500_not_a_lost_connection(serve: Any) -> None:
    async def handler(request: Request) -> Response:
        inner = asyncio.create_task(asyncio.Event().wait())
        inner.cancel()
        await inner
        return Response()

    client = await (await serve(handler)).connect()
    await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (await client.response())[0] == 500


async def test_stream_that_fails_before_its_first_chunk_is_a_proper_error(serve: Any) -> None:
    async def stream() -> AsyncIterator[bytes]:
        raise HTTPError(502, "upstream refused")
        yield b""

    async def handler(request: Request) -> Response:
        return Response(200, body=stream())

    client = await (await serve(handler)).connect()
    await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    status, _, body = await client.response()
    assert (status, body) == (502, b'{"error":"upstream refused"}')


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
@pytest.mark.parametrize("length", [None, 10])
async def test_stream_that_fails_later_breaks_the_connection(
    serve: Any, version: bytes, length: int | None
) -> None:
    sent = asyncio.Event()

    async def stream() -> AsyncIterator[bytes]:
        yield b"abc"
        await sent.wait()
        raise RuntimeError("broke")

    async def handler(request: Request) -> Response:
        return Response(200, body=stream(), content_length=length)

    client = await (await serve(handler)).connect()
    await client.send(b"GET / HTTP/" + version + b"\r\nHost: a\r\n\r\n")
    await client.head()
    assert b"abc" in await client.reader.read(100)
    sent.set()
    with pytest.raises(
        ConnectionResetError
    ):  # not a clean end: also a 1.0 client sees that something is missing
        await client.rest()


@pytest.mark.parametrize("chunks", [[b"abc"], [b"abc", b"defghij", b"x"]])
async def test_stream_that_disagrees_with_its_length_breaks_the_connection(
    serve: Any, chunks: list[bytes]
) -> None:
    async def stream() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    async def handler(request: Request) -> Response:
        return Response(200, body=stream(), content_length=10)

    served = await serve(handler)
    client = await served.connect()
    await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    with pytest.raises(ConnectionResetError):
        await client.rest()


@pytest.mark.parametrize("leave", ["abort", "close"])
async def test_client_leaving_cancels_a_waiting_handler(serve: Any, leave: str) -> None:
    entered, cancelled, cleaned = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def handler(request: Request) -> Response:
        entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            await asyncio.sleep(0.01)  # clean-up that waits is not cancelled a second time
            cleaned.set()
            raise
        return Response()

    served = await serve(handler)
    client = await served.connect()
    await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    await happened(entered)
    client.abort() if leave == "abort" else await client.close()
    await happened(cancelled)
    await happened(cleaned)
    await _connections(served.server, 0)


@pytest.mark.parametrize("endless", [True, False], ids=["blocked in write", "waiting for its source"])
async def test_client_leaving_closes_a_streaming_generator(serve: Any, endless: bool) -> None:
    closed = asyncio.Event()

    async def stream() -> AsyncIterator[bytes]:
        try:
            yield b"first"
            while endless:
                yield bytes(65536)
            await asyncio.Event().wait()
        finally:
            closed.set()

    async def handler(request: Request) -> Response:
        return Response(200, body=stream())

    served = await serve(handler)
    client = await served.connect()
    await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    await client.head()
    assert not closed.is_set()
    client.abort()
    await happened(closed)


class OneChunk:
    """A body of one chunk. (Generators clean up when they end, before they are closed.)"""

    def __init__(self) -> None:
        self.chunks = [b"all of it"]

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self.chunks:
            raise StopAsyncIteration
        return self.chunks.pop()


@pytest.mark.parametrize("leave", ["abort", "close", "server stops"])
@pytest.mark.parametrize("closed_while", ["the body is over", "the client has left"])
async def test_closing_a_body_is_not_cancelled(serve: Any, leave: str, closed_while: str) -> None:
    closing, go_on, closed = asyncio.Event(), asyncio.Event(), asyncio.Event()

    class Body(OneChunk):
        async def __anext__(self) -> bytes:
            if not self.chunks and closed_while == "the client has left":
                await asyncio.Event().wait()
            return await super().__anext__()

        async def aclose(self) -> None:
            closing.set()
            await go_on.wait()
            closed.set()

    async def handler(request: Request) -> Response:
        return Response(200, body=Body())

    served = await serve(handler)
    client = await served.connect()
    await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    await client.head()
    if closed_while == "the client has left":
        client.abort()
    await happened(closing)
    (connection,) = served.server.connections
    if leave == "server stops":
        connection.abort()
        await asyncio.sleep(0)
    else:
        client.abort() if leave == "abort" else await client.close()
        await until(lambda: connection.channel.eof)
    go_on.set()
    await happened(closed)
    await _connections(served.server, 0)


async def test_closing_a_body_has_a_deadline(
    serve: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("harmony.http.connection.BODY_CLOSE_TIMEOUT_S", 0.01)

    class Body(OneChunk):
        async def aclose(self) -> None:
            await asyncio.Event().wait()

    async def handler(request: Request) -> Response:
        return Response(200, body=Body())

    served = await serve(handler)
    await served.exchange(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    await _connections(served.server, 0)
    assert "a body was not closed within 0.01 s" in caplog.text


async def test_client_leaving_within_its_upload_cancels_the_handler(serve: Any) -> None:
    entered, cancelled = asyncio.Event(), asyncio.Event()

    async def handler(request: Request) -> Response:
        try:
            async for _ in request.body:
                entered.set()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return Response()

    served = await serve(handler)
    client = await served.connect()
    await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nabc")
    await happened(entered)
    await client.close()
    await happened(cancelled)


async def test_client_that_reads_nothing_is_given_up(serve: Any) -> None:
    closed = asyncio.Event()

    async def stream() -> AsyncIterator[bytes]:
        try:
            while True:
                yield bytes(65536)
        finally:
            closed.set()

    async def handler(request: Request) -> Response:
        return Response(200, body=stream())

    served = await serve(handler, write_timeout_s=0.1)
    client = await served.connect(limit=1024)
    await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    await happened(closed)
    await _connections(served.server, 0)


async def test_client_that_reads_too_slowly_is_given_up(serve: Any) -> None:
    closed = asyncio.Event()

    async def stream() -> AsyncIterator[bytes]:
        try:
            while True:
                yield bytes(65536)
        finally:
            closed.set()

    async def handler(request: Request) -> Response:
        return Response(200, body=stream())

    served = await serve(handler, write_timeout_s=0.3, minimum_rate=1_000_000_000)
    client = await served.connect(limit=1024)
    await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    over = asyncio.create_task(closed.wait())
    with contextlib.suppress(ConnectionError):
        while not over.done():
            await client.reader.read(65536)
            await asyncio.wait([over], timeout=0.01)
    await happened(closed)


async def test_an_address_that_connects_too_often_is_429(serve: Any) -> None:
    served = await serve(count, connections_per_second_per_address=0.2)  # two at once
    request = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    answers = [await served.exchange(request) for _ in range(3)]
    assert [answer.split()[1] for answer in answers] == [b"200", b"200", b"429"]
    assert b"Retry-After: 1\r\n" in answers[2]


async def test_body_read_after_the_answer_is_an_error(serve: Any) -> None:
    kept: list[Request] = []

    async def handler(request: Request) -> Response:
        kept.append(request)
        return Response()

    client = await (await serve(handler)).connect()
    await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc" * 2)
    await client.response()
    await client.response()
    with pytest.raises(RuntimeError, match="after its request"):
        await kept[0].body.read()


# Stopping


async def test_stop_closes_idle_connections_and_finishes_what_is_in_flight(serve: Any) -> None:
    entered, go = asyncio.Event(), asyncio.Event()

    async def handler(request: Request) -> Response:
        if request.path == "/slow":
            entered.set()
            await go.wait()
        return Response(200, body=b"done")

    served = await serve(handler)
    idle, busy = await served.connect(), await served.connect()
    await idle.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    await idle.response()
    await busy.send(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
    await happened(entered)
    host, port = served.server.addresses[0]
    stopping = asyncio.create_task(served.server.stop(EVENT_TIMEOUT_S))
    assert await idle.rest() == b""
    with pytest.raises(OSError):
        await asyncio.open_connection(host, port)
    assert not stopping.done()
    go.set()
    status, headers, body = await busy.response()
    assert (status, headers["connection"], body) == (200, "close", b"done")
    assert await busy.rest() == b""
    await stopping


async def test_stop_cancels_what_exceeds_the_grace(serve: Any) -> None:
    entered, cancelled = asyncio.Event(), asyncio.Event()

    async def handler(request: Request) -> Response:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return Response()

    served = await serve(handler)
    client = await served.connect()
    await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    await happened(entered)
    await served.server.stop(0.05)
    assert cancelled.is_set()
    assert await client.closed() == b""
    await served.server.stop()  # once more changes nothing


async def test_several_networks_on_one_server() -> None:
    async def handler(request: Request) -> Response:
        return json_response([request.network, request.scheme, request.client[0]])

    server = HTTPServer(handler)
    try:
        await server.start("127.0.0.1", 0, network="inside")
        await server.start("127.0.0.1", 0, network="outside", reuse_port=True)
        assert len(server.addresses) == 2
        for (host, port), name in zip(server.addresses, ("inside", "outside"), strict=True):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            answer = await reader.read()
            writer.close()
            await writer.wait_closed()
            assert answer.endswith(f'["{name}","http","127.0.0.1"]'.encode())
    finally:
        await server.stop()
    with pytest.raises(RuntimeError):
        await server.start("127.0.0.1", 0)


# Files


@pytest.fixture
def served_file(tmp_path: Path) -> Path:
    path = tmp_path / "file.bin"
    path.write_bytes(b"0123456789")
    return path


@pytest.mark.parametrize(
    ("asked", "status", "content_range", "body"),
    [
        ("", 200, None, b"0123456789"),
        ("Range: bytes=0-0\r\n", 206, "bytes 0-0/10", b"0"),
        ("Range: bytes=2-4\r\n", 206, "bytes 2-4/10", b"234"),
        ("Range: bytes=7-\r\n", 206, "bytes 7-9/10", b"789"),
        ("Range: bytes=7-999999999999999999\r\n", 206, "bytes 7-9/10", b"789"),
        ("Range: bytes=-3\r\n", 206, "bytes 7-9/10", b"789"),
        ("Range: bytes=-30\r\n", 206, "bytes 0-9/10", b"0123456789"),
        ("Range: bytes=10-\r\n", 416, "bytes */10", None),
        ("Range: bytes=-0\r\n", 416, "bytes */10", None),
        ("Range: bytes=4-2\r\n", 200, None, b"0123456789"),
        ("Range: bytes=-\r\n", 200, None, b"0123456789"),
        ("Range: bytes=0-1,4-5\r\n", 200, None, b"0123456789"),
        ("Range: items=0-1\r\n", 200, None, b"0123456789"),
        ('Range: bytes=0-1\r\nIf-Range: "v1"\r\n', 206, "bytes 0-1/10", b"01"),
        ('Range: bytes=0-1\r\nIf-Range: "v2"\r\n', 200, None, b"0123456789"),
    ],
)
async def test_file_and_its_ranges(
    serve: Any, served_file: Path, asked: str, status: int, content_range: str | None, body: bytes | None
) -> None:
    async def handler(request: Request) -> Response:
        return Response(200, {"ETag": '"v1"'}, FileBody(served_file))

    client = await (await serve(handler)).connect()
    await client.send(f"GET / HTTP/1.1\r\nHost: a\r\n{asked}\r\n".encode())
    got = await client.response()
    assert got[0] == status
    assert got[1].get("content-range") == content_range
    if body is not None:
        assert got[2] == body
        assert got[1]["accept-ranges"] == "bytes"


async def test_part_of_a_file_and_head_of_it(serve: Any, served_file: Path) -> None:
    async def handler(request: Request) -> Response:
        return Response(200, body=FileBody(served_file, offset=2, length=5))

    client = await (await serve(handler)).connect()
    await client.send(b"GET / HTTP/1.1\r\nHost: a\r\nRange: bytes=1-9\r\n\r\n")
    status, headers, body = await client.response()
    assert (status, headers["content-range"], body) == (206, "bytes 1-4/5", b"3456")
    await client.send(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
    status, headers = await client.head()
    assert (status, headers["content-length"]) == (200, "5")


async def test_missing_file_is_404_and_impossible_ones_500(
    serve: Any, tmp_path: Path, served_file: Path
) -> None:
    bodies = {
        "/missing": FileBody(tmp_path / "none"),
        "/directory": FileBody(tmp_path),
        "/beyond": FileBody(served_file, offset=5, length=6),
    }

    async def handler(request: Request) -> Response:
        return Response(200, body=bodies[request.path])

    client = await (await serve(handler)).connect()
    statuses = []
    for path in bodies:
        await client.send(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        statuses.append((await client.response())[0])
    assert statuses == [404, 500, 500]


async def test_large_file_arrives_whole(serve: Any, tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(bytes(range(256)) * (3 * MIB // 256) + b"end")

    async def handler(request: Request) -> Response:
        return Response(200, body=FileBody(path))

    client = await (await serve(handler)).connect()
    await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (await client.response())[2] == path.read_bytes()


# Logs, TLS, a client that others wrote


async def test_access_log_has_no_query_values(serve: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "harmony.http"):
        client = await (await serve(hello)).connect()
        await client.send(b"GET /studies?PatientName=DOE HTTP/1.1\r\nHost: a\r\n\r\n")
        await client.response()
        await client.close()
    assert any(message.startswith("GET /studies 200 5 bytes ") for message in caplog.messages)
    assert "DOE" not in caplog.text


async def test_error_responses_helper_reaches_the_wire(serve: Any) -> None:
    async def handler(request: Request) -> Response:
        return error_response(400, "missing studyInstanceUid", parameter="studyInstanceUid")

    client = await (await serve(handler)).connect()
    await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (await client.response())[
        2
    ] == b'{"error":"missing studyInstanceUid","parameter":"studyInstanceUid"}'


async def test_curl_over_http_and_tls(
    tmp_path: Path, certificate: Path, require_peer: Callable[[str], str]
) -> None:
    curl = require_peer("curl")
    source = tmp_path / "upload.bin"
    source.write_bytes(bytes(range(256)) * 12000)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = HTTPServer(echo)
    try:
        (plain,) = await server.start("127.0.0.1", 0)
        (secure,) = await server.start("127.0.0.1", 0, ssl=context)
        for url in (f"http://127.0.0.1:{plain[1]}/", f"https://127.0.0.1:{secure[1]}/"):
            for extra in ([], ["-H", "Transfer-Encoding: chunked"]):
                target = tmp_path / "download.bin"
                process = await asyncio.create_subprocess_exec(
                    curl, "-sS", "--cacert", str(certificate), "-T", str(source), "-o", str(target),
                    "-w", "%{http_code}", *extra, url, "-T", str(source), "-o", str(target), url,
                    stdout=asyncio.subprocess.PIPE,
                )  # fmt: skip
                output, _ = await process.communicate()
                assert process.returncode == 0
                assert output == b"200200"
                assert target.read_bytes() == source.read_bytes()
    finally:
        await server.stop(1.0)


async def test_the_certificate_of_a_client_is_in_its_requests(serve: Any, authority: Any) -> None:
    async def subject(request: Request) -> Response:
        certificate = request.client_certificate
        return json_response(certificate and certificate["subject"])

    own = authority.issue()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=authority.certificate)
    context.load_cert_chain(own.certificate, own.key)
    context.verify_mode = ssl.CERT_OPTIONAL
    unasked = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    unasked.load_cert_chain(own.certificate, own.key)
    anonymous = ssl.create_default_context(cafile=authority.certificate)
    named = ssl.create_default_context(cafile=authority.certificate)
    theirs = authority.issue("viewer.example", ())
    named.load_cert_chain(theirs.certificate, theirs.key)
    null, name = b"null", b'[[["commonName","viewer.example"]]]'
    for accepting, requesting, expected in (
        (context, anonymous, null),
        (context, named, name),
        (unasked, named, null),
        (None, None, null),
    ):
        client = await (await serve(subject, ssl=accepting)).connect(ssl=requesting)
        for _ in range(2):
            await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert (await client.response())[2] == expected


async def test_echo_streams_in_both_directions_at_once(serve: Any) -> None:
    client = await (await serve(echo)).connect()
    await client.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
    _, headers = await client.head()
    assert headers["transfer-encoding"] == "chunked"
    assert await client.exactly(8) == b"3\r\none\r\n"  # before the request has ended
    await client.send(b"3\r\ntwo\r\n0\r\n\r\n")
    assert await client.exactly(13) == b"3\r\ntwo\r\n0\r\n\r\n"


# Statistics


async def test_every_request_is_reported_when_it_is_over(serve: Any) -> None:
    router = Router()
    router.add("POST", "/echo", echo, name="echoes")
    router.add("GET", "/broken", lambda request: 1 / 0, name="broken")  # type: ignore[arg-type, return-value]
    seen: list[Exchanged] = []
    served = await serve(router)
    served.server.on_exchanged = seen.append
    client = await served.connect()
    await client.send(b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello")
    assert (await client.response())[2] == b"hello"
    await client.send(b"GET /broken HTTP/1.1\r\nHost: h\r\n\r\n")
    assert (await client.response())[0] == 500
    await client.send(b"GET /nothing HTTP/1.1\r\nHost: h\r\n\r\n")
    assert (await client.response())[0] == 404
    await client.send(b"GET /a/../b HTTP/1.1\r\nHost: h\r\n\r\n")
    assert (await client.response())[0] == 400
    await until(lambda: len(seen) == 4)
    assert [(each.method, each.status) for each in seen] == [
        ("POST", 200),
        ("GET", 500),
        ("GET", 404),
        ("GET", 400),
    ]
    first = seen[0]
    assert first.request is not None
    assert (first.request.endpoint, first.request.body.received_bytes, first.sent_bytes) == ("echoes", 5, 5)
    assert first.elapsed_s >= 0
    assert [each.request and each.request.endpoint for each in seen[1:]] == ["broken", "", None]


async def test_client_that_leaves_before_the_answer_is_reported_with_status_0(serve: Any) -> None:
    reached = asyncio.Event()

    async def never(request: Request) -> Response:
        reached.set()
        await asyncio.Event().wait()
        raise AssertionError

    seen: list[Exchanged] = []
    served = await serve(never)
    served.server.on_exchanged = seen.append
    client = await served.connect()
    await client.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    await happened(reached)
    client.abort()
    await until(lambda: len(seen) == 1)
    assert (seen[0].status, seen[0].sent_bytes) == (0, 0)
