"""harmony.http.client against our own server, and against upstreams played by hand that behave badly."""

import asyncio
import base64
import json
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from harmony.http import HTTPError, HTTPServer, Request, Response, json_response
from harmony.http.client import Authentication, AuthenticationKind, HTTPClient, UpstreamError

MIB = 1024 * 1024

Upstream = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture
async def upstream() -> AsyncIterator[Callable[[Upstream], Awaitable[str]]]:
    """await upstream(conversation): the URL of a server that holds this conversation on each connection."""
    servers: list[asyncio.Server] = []
    writers: list[asyncio.StreamWriter] = []

    async def start(conversation: Upstream) -> str:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.append(writer)
            await conversation(reader, writer)

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        servers.append(server)
        return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    yield start
    for writer in writers:
        writer.transport.abort()
    for server in servers:
        server.close()


@pytest.fixture
def upload_file(tmp_path: Path) -> Path:
    path = tmp_path / "envelope.zip"
    path.write_bytes(bytes(range(256)) * (2 * MIB // 256))
    return path


async def describe(request: Request) -> Response:
    body = await request.body.read()
    return json_response(
        {
            "method": request.method,
            "target": request.raw_path + ("?" + request.raw_query if request.raw_query else ""),
            "headers": {name.lower(): value for name, value in request.headers},
            "length": len(body),
        },
        201,
        headers={"X-Answer": "yes"},
    )


async def test_request_head_is_exactly_this(upstream: Any) -> None:
    heads: list[bytes] = []

    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")

    url = await upstream(conversation)
    async with HTTPClient(f"{url}/base/", authentication=Authentication.bearer("t0k3n")) as client:
        await client.request(
            "GET", "/a?b=c", headers={"Connection": "upgrade", "X-A": "1", "authorization": "no"}
        )
    host = url.removeprefix("http://").encode()
    assert heads == [
        b"GET /base/a?b=c HTTP/1.1\r\nHost: " + host + b"\r\nX-A: 1\r\nUser-Agent: harmony/0.1.0\r\n"
        b"Accept-Encoding: identity\r\nAuthorization: Bearer t0k3n\r\n\r\n"
    ]


async def test_upload_has_content_length_and_arrives_whole(serve: Any, upload_file: Path) -> None:
    bodies: list[bytes] = []

    async def handler(request: Request) -> Response:
        assert request.headers.get("content-length") == str(2 * MIB)
        assert "transfer-encoding" not in request.headers
        assert request.headers.get("content-type") == "application/zip"
        bodies.append(await request.body.read())
        return json_response({"id": "x"}, 201)

    async with HTTPClient((await serve(handler)).url) as client:
        answer = await client.upload("POST", "/up", file_path=upload_file, content_type="application/zip")
        again = await client.upload("POST", "/up", file_path=upload_file, content_type="application/zip")
    assert (answer.status, answer.body, again.status) == (201, b'{"id":"x"}', 201)
    assert bodies == [upload_file.read_bytes()] * 2


async def test_connection_is_kept_and_used_again(serve: Any) -> None:
    served = await serve(describe)
    async with HTTPClient(served.url) as client:
        for _ in range(3):
            assert (await client.request("POST", "/", body=b"abc")).headers.get("x-answer") == "yes"
            assert len(served.server.connections) == 1


async def test_requests_at_once_are_limited_to_the_connections(serve: Any) -> None:
    served = await serve(describe)
    async with HTTPClient(served.url, maximum_connections=2) as client:
        answers = await asyncio.gather(*(client.request("GET", f"/{n}") for n in range(20)))
        assert [answer.status for answer in answers] == [201] * 20
        assert len(served.server.connections) <= 2


async def test_no_free_connection_is_a_timeout(serve: Any) -> None:
    never = asyncio.Event()

    async def handler(request: Request) -> Response:
        await never.wait()
        return Response()

    async with HTTPClient((await serve(handler)).url, timeout_s=0.1, maximum_connections=1) as client:
        results = await asyncio.gather(
            client.request("GET", "/"), client.request("GET", "/"), return_exceptions=True
        )
    assert [getattr(result, "kind", None) for result in results] == ["timeout", "timeout"]


# Answers that come early


async def test_early_answer_to_an_upload_is_heard(serve: Any, upload_file: Path) -> None:
    with upload_file.open("ab") as file:
        file.truncate(64 * MIB)

    async def handler(request: Request) -> Response:
        raise HTTPError(409, "envelope id already exists")

    async with HTTPClient((await serve(handler)).url) as client:
        answer = await client.upload("POST", "/", file_path=upload_file, content_type="application/zip")
    assert (answer.status, answer.body) == (409, b'{"error":"envelope id already exists"}')


async def test_early_answer_of_an_upstream_that_stops_reading_is_heard(
    upstream: Any, upload_file: Path
) -> None:
    with upload_file.open("ab") as file:
        file.truncate(64 * MIB)

    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        # Neither reads on nor closes; the informational response before the answer is to be passed over.
        writer.write(
            b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno"
        )

    async with HTTPClient(await upstream(conversation)) as client:
        answer = await client.upload("POST", "/", file_path=upload_file, content_type="application/zip")
    assert (answer.status, answer.body) == (401, b"no")


async def test_redirect_is_returned_not_followed(serve: Any) -> None:
    asked: list[str] = []

    async def handler(request: Request) -> Response:
        asked.append(request.path)
        return Response(307, {"Location": "/elsewhere"})

    async with HTTPClient((await serve(handler)).url) as client:
        answer = await client.request("POST", "/here", body=b"x")
    assert (answer.status, answer.headers.get("location"), asked) == (307, "/elsewhere", ["/here"])


# Upstreams that fail


async def failure(client: HTTPClient, method: str = "GET") -> UpstreamError:
    async with client:
        with pytest.raises(UpstreamError) as failed:
            await client.request(method, "/secret-path?PatientName=DOE")
    assert "DOE" not in str(failed.value)
    assert "secret" not in str(failed.value)
    return failed.value


async def test_refused_connection_is_a_connect_error(free_port: int) -> None:
    error = await failure(HTTPClient(f"http://127.0.0.1:{free_port}/secret-path"))
    assert error.kind == "connect"
    assert f"127.0.0.1:{free_port}" in error.message


@pytest.mark.timeout(10)  # it used to spin, with the whole event loop
async def test_upstream_that_closes_before_the_request_has_left(
    upstream: Any, upload_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is killed just after it has accepted."""

    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    url = await upstream(conversation)
    async with HTTPClient(url) as client:
        connect = client._connect

        async def connect_and_be_left() -> Any:
            link = await connect()
            while not link.channel.eof:  # noqa: ASYNC110
                await asyncio.sleep(0)
            return link

        monkeypatch.setattr(client, "_connect", connect_and_be_left)
        for sending in (
            client.upload("POST", "/", file_path=upload_file, content_type="application/zip"),
            client.request("GET", "/"),
        ):
            with pytest.raises(UpstreamError) as error:
                await sending
            assert error.value.kind == "protocol"
            assert "closed the connection" in str(error.value)


async def test_silent_upstream_is_a_timeout(upstream: Any) -> None:
    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    error = await failure(HTTPClient(await upstream(conversation), timeout_s=0.1))
    assert error.kind == "timeout"


async def test_upstream_that_accepts_nothing_is_a_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:  # the kernel accepts, nobody reads
        error = await failure(HTTPClient(f"http://127.0.0.1:{listening.getsockname()[1]}", timeout_s=0.1))
    assert error.kind == "timeout"


async def test_upstream_that_stops_reading_an_upload_is_a_timeout(upstream: Any, upload_file: Path) -> None:
    with upload_file.open("ab") as file:
        file.truncate(64 * MIB)

    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")

    async with HTTPClient(await upstream(conversation), timeout_s=0.2) as client:
        with pytest.raises(UpstreamError) as failed:
            await client.upload("POST", "/", file_path=upload_file, content_type="application/zip")
    assert failed.value.kind == "timeout"
    assert "took nothing" in failed.value.message


async def test_dribbled_response_ends_at_the_deadline_of_the_whole(upstream: Any) -> None:
    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"x")
            await asyncio.sleep(0.01)

    error = await failure(HTTPClient(await upstream(conversation), timeout_s=0.3))
    assert error.kind == "timeout"
    assert "not finished" in error.message


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        b"\x02\x00\x00\x00\x00\xb8",
        b"secret DOE\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200000,
    ],
)
async def test_answer_that_is_cut_off_or_not_http_is_a_protocol_error(upstream: Any, answer: bytes) -> None:
    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    error = await failure(HTTPClient(await upstream(conversation)))
    assert error.kind == "protocol"


async def test_response_that_ends_with_the_connection_is_whole(upstream: Any) -> None:
    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\n\r\nabc")
        writer.close()

    async with HTTPClient(await upstream(conversation)) as client:
        assert (await client.request("GET", "/")).body == b"abc"


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_only_idempotent_requests_are_sent_again_on_a_stale_connection(
    upstream: Any, method: str
) -> None:
    connections: list[int] = []

    async def conversation(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(0)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")  # the second request on this connection is lost
        writer.close()

    async with HTTPClient(await upstream(conversation)) as client:
        await client.request(method, "/")
        if method == "GET":
            assert (await client.request(method, "/")).status == 200
            assert len(connections) == 2
        else:
            with pytest.raises(UpstreamError) as failed:
                await client.request(method, "/")
            assert failed.value.kind == "protocol"
            assert len(connections) == 1


async def test_long_response_is_truncated_and_says_so(serve: Any) -> None:
    async def handler(request: Request) -> Response:
        return Response(200, body=b"x" * (101 if request.path == "/long" else 100))

    async with HTTPClient((await serve(handler)).url, maximum_response_bytes=100) as client:
        long, fitting = await client.request("GET", "/long"), await client.request("GET", "/")
    assert (long.body, long.truncated) == (b"x" * 100, True)
    assert (fitting.body, fitting.truncated) == (b"x" * 100, False)


async def test_file_that_shrinks_is_a_local_error_and_never_a_whole_upload(
    serve: Any, upload_file: Path
) -> None:
    ended = asyncio.Event()

    async def handler(request: Request) -> Response:
        with upload_file.open("r+b") as file:
            file.truncate(MIB)
        try:
            await request.body.read(64 * MIB)
        except asyncio.CancelledError:
            ended.set()
            raise
        return Response()

    with upload_file.open("ab") as file:
        file.truncate(64 * MIB)
    async with HTTPClient((await serve(handler)).url) as client:
        with pytest.raises(EOFError):
            await client.upload("POST", "/", file_path=upload_file, content_type="application/zip")
    async with asyncio.timeout(10):
        await ended.wait()


async def test_missing_file_is_an_os_error(serve: Any, tmp_path: Path) -> None:
    async with HTTPClient((await serve(describe)).url) as client:
        with pytest.raises(FileNotFoundError):
            await client.upload("POST", "/", file_path=tmp_path / "none", content_type="a/b")


# Streams


async def test_stream_sends_and_receives_chunks_as_they_come(serve: Any) -> None:
    got_first = asyncio.Event()

    async def echo(request: Request) -> Response:
        return Response(200, body=request.body)

    async def chunks() -> AsyncIterator[bytes]:
        yield b"one"
        await got_first.wait()  # the answer begins before the request has ended
        yield b"two"

    served = await serve(echo)
    async with HTTPClient(served.url) as client, client.stream("POST", "/", body=chunks()) as response:
        assert response.status == 200
        received = []
        async for chunk in response:
            received.append(chunk)
            got_first.set()
    assert received == [b"one", b"two"]


async def test_body_that_fails_while_the_answer_is_read_is_reported(serve: Any) -> None:
    async def echo(request: Request) -> Response:
        return Response(200, body=request.body)

    async def chunks() -> AsyncIterator[bytes]:
        yield b"one"
        await failing.wait()
        raise LookupError("the source broke")

    failing = asyncio.Event()
    served = await serve(echo)
    async with HTTPClient(served.url) as client, client.stream("POST", "/", body=chunks()) as response:
        answer = aiter(response)
        assert await anext(answer) == b"one"
        failing.set()
        with pytest.raises(LookupError):
            await anext(answer)


async def test_leaving_a_stream_early_closes_its_connection(serve: Any) -> None:
    closed = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        try:
            while True:
                yield bytes(65536)
        finally:
            closed.set()

    async def handler(request: Request) -> Response:
        return Response(200, body=endless())

    async with HTTPClient((await serve(handler)).url) as client:
        async with client.stream("GET", "/") as response:
            assert await anext(aiter(response))
        async with asyncio.timeout(10):
            await closed.wait()


async def test_cancelled_request_closes_its_connection_and_its_body(serve: Any) -> None:
    entered, cancelled, body_closed = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def handler(request: Request) -> Response:
        entered.set()
        try:
            await request.body.read()
        finally:
            cancelled.set()
        return Response()

    async def body() -> AsyncIterator[bytes]:
        try:
            yield b"first"
            await asyncio.Event().wait()
        finally:
            body_closed.set()

    served = await serve(handler)
    async with HTTPClient(served.url) as client:

        async def ask() -> None:
            async with client.stream("POST", "/", body=body()):
                pass

        asking = asyncio.create_task(ask())
        async with asyncio.timeout(10):
            await entered.wait()
            asking.cancel()
            await asyncio.wait([asking])
            await cancelled.wait()
            await body_closed.wait()
        assert asking.cancelled()


# Who we are, and whom we trust


@pytest.mark.parametrize(
    ("authentication", "header", "value"),
    [
        (
            Authentication.basic("user", "pä:ss"),
            "authorization",
            "Basic " + base64.b64encode("user:pä:ss".encode()).decode(),
        ),
        (Authentication.bearer("abc.def"), "authorization", "Bearer abc.def"),
        (Authentication.api_key("k3y"), "x-api-key", "k3y"),
        (Authentication.api_key("k3y", header="X-Other"), "x-other", "k3y"),
    ],
    ids=["basic", "bearer", "api_key", "api_key header"],
)
async def test_authentication_is_sent(
    serve: Any, authentication: Authentication, header: str, value: str
) -> None:
    async def handler(request: Request) -> Response:
        return Response(200, body=(request.headers.get(header) or "").encode())

    async with HTTPClient((await serve(handler)).url, authentication=authentication) as client:
        assert (await client.request("GET", "/")).body.decode() == value
    assert value not in repr(authentication)
    assert authentication.kind.value in repr(authentication)


def test_no_authentication_and_impossible_ones() -> None:
    assert Authentication.none().kind is AuthenticationKind.NONE
    for make in (
        lambda: Authentication.bearer("a\r\nX: secret"),
        lambda: Authentication.api_key("secret\n"),
        lambda: Authentication.basic("a:b", "secret"),
        lambda: Authentication.api_key("secret", header="bad name"),
    ):
        with pytest.raises(ValueError) as refused:
            make()
        assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "host",
        "ftp://host",
        "http://",
        "http://user:secret@host",
        "http://host:secret",
        "http://h?a=secret",
        "http://h/#secret",
    ],
)
def test_base_urls_that_are_refused_without_quoting_them(url: str) -> None:
    with pytest.raises(ValueError) as refused:
        HTTPClient(url)
    assert "secret" not in str(refused.value)


async def test_paths_and_headers_that_cannot_be_sent_are_refused(free_port: int) -> None:
    client = HTTPClient(f"http://127.0.0.1:{free_port}")
    for path in ("/a b", "/a\r\nX: y", "/ü"):
        with pytest.raises(ValueError, match="cannot be sent"):
            await client.request("GET", path)
    with pytest.raises(ValueError, match="control character"):
        await client.request("GET", "/", headers={"X": "a\r\nb"})


async def test_tls_upstream_is_checked_against_the_given_certificate(
    certificate: Path, upload_file: Path
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = HTTPServer(describe)
    ((_, port),) = await server.start("127.0.0.1", 0, ssl=context)
    url = f"https://127.0.0.1:{port}"
    try:
        async with HTTPClient(url, ca_cert_path=certificate) as client:
            answer = await client.upload("POST", "/", file_path=upload_file, content_type="a/b")
            assert b'"length":2097152' in answer.body
        async with HTTPClient(url, verify=False) as client:
            assert (await client.request("GET", "/")).status == 201
        assert (await failure(HTTPClient(url))).kind == "connect"
    finally:
        await server.stop()


@pytest.mark.parametrize(
    ("base", "path", "target"),
    [
        ("", "", "/"),
        ("", "a", "/a"),
        ("", "?q", "/?q"),
        ("/base/", "", "/base"),
        ("/base", "/", "/base/"),
        ("/base", "?q", "/base?q"),
        ("/base", "/a?q", "/base/a?q"),
    ],
)
async def test_paths_are_appended_to_the_base(serve: Any, base: str, path: str, target: str) -> None:
    served = await serve(describe)
    async with HTTPClient(served.url + base) as client:
        answer = await client.request("GET", path)
    assert json.loads(answer.body)["target"] == target
