"""The http backend: a gateway between a client and a real HTTP server, what passes it and what does not."""

from __future__ import annotations

import asyncio
import contextlib
import resource
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import jwt
import pytest

from harmony.gateway.app import Gateway
from harmony.gateway.config import Backend, ConfigError, Origin, Target
from harmony.gateway.http_backend import HttpUpstream
from harmony.gateway.options import HttpBackendOptions
from harmony.http import HTTPError, HTTPServer, Request, RequestBody, Response
from harmony.http.client import HTTPClient, UpstreamError, UpstreamResponse

PATIENCE_S = 20.0
MEBIBYTE = 1024 * 1024
Handler = Callable[[Request], Awaitable[Response]]


@contextlib.asynccontextmanager
async def listening(handler: Handler) -> AsyncIterator[int]:
    server = HTTPServer(handler)
    await server.start("127.0.0.1", 0)
    try:
        yield server.addresses[0][1]
    finally:
        await server.stop()


class Upstream:
    """Keeps what it got; answers with `response`, or as `answer` does."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.bodies: list[bytes] = []
        self.response = Response(200, {"Content-Type": "text/plain"}, b"Hello from Backend")
        self.answer: Handler | None = None

    async def __call__(self, request: Request) -> Response:
        self.requests.append(request)
        if self.answer is not None:
            return await self.answer(request)
        self.bodies.append(await request.body.read())
        return self.response


class Front:
    """A gateway with an http endpoint at `prefix`, on this port."""

    def __init__(self, port: int) -> None:
        self.port = port

    @contextlib.asynccontextmanager
    async def client(self, **options: Any) -> AsyncIterator[HTTPClient]:
        async with (
            asyncio.timeout(PATIENCE_S),
            HTTPClient(f"http://127.0.0.1:{self.port}", timeout_s=PATIENCE_S, **options) as client,
        ):
            yield client

    async def ask(self, method: str, path: str, **options: Any) -> UpstreamResponse:
        async with self.client() as client:
            return await client.request(method, path, **options)


@pytest.fixture
async def upstream() -> Upstream:
    return Upstream()


@pytest.fixture
async def start(
    free_port: int, load_config: Callable[[str], Any]
) -> AsyncIterator[Callable[..., Awaitable[Front]]]:
    """await start(port or handler, prefix=..., backend="options", more="tables", middleware="names")."""
    async with contextlib.AsyncExitStack() as stack:

        async def begin(
            behind: int | Handler,
            *,
            prefix: str = "/front",
            backend: str = "",
            http: str = "",
            more: str = "",
            middleware: str = "",
        ) -> Front:
            port = behind if isinstance(behind, int) else await stack.enter_async_context(listening(behind))
            config = load_config(
                f"""
                [proxy]
                id = "forward"
                [network.n.http]
                bind_address = "127.0.0.1"
                bind_port = {free_port}
                [pipelines.p]
                networks = ["n"]
                endpoints = ["e"]
                middleware = [{middleware}]
                backends = ["b"]
                [endpoints.e]
                service = "http"
                options.path_prefix = "{prefix}"
                {http}
                [backends.b]
                service = "http"
                connection = {{ host = "127.0.0.1", port = {port} }}
                {backend}
                {more}
                """
            )
            gateway = Gateway(config)
            await gateway.start()
            stack.push_async_callback(gateway.stop, 0.0)
            return Front(free_port)

        yield begin


# What passes


async def test_a_static_site_behind_the_root(start) -> None:
    async def site(request: Request) -> Response:
        if request.path == "/data.json":
            return Response(200, {"Content-Type": "application/json"}, b'{"message": "hello"}')
        if request.path == "/":
            return Response(200, {"Content-Type": "text/html"}, b"<p>Hello from Backend</p>")
        return Response(404, {"Content-Type": "text/plain"}, b"not here")

    front = await start(site, prefix="/")
    answer = await front.ask("GET", "/")
    assert (answer.status, answer.headers.get("content-type")) == (200, "text/html")
    assert answer.body == b"<p>Hello from Backend</p>"
    answer = await front.ask("GET", "/data.json", headers={"Accept": "application/json"})
    assert (answer.status, answer.body) == (200, b'{"message": "hello"}')
    answer = await front.ask("GET", "/nonexistent")
    assert (answer.status, answer.body) == (404, b"not here")


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_methods_and_bodies(upstream, start, method: str) -> None:
    front = await start(upstream)
    answer = await front.ask(method, "/front/a", body=b"\0\xff body")
    assert (answer.status, answer.body) == (200, b"Hello from Backend")
    assert (upstream.requests[0].method, upstream.bodies) == (method, [b"\0\xff body"])


@pytest.mark.parametrize(
    ("prefix", "base", "asked", "target"),
    [
        ("/front", "", "/front", "/"),
        ("/front", "", "/front/", "/"),
        ("/front", "", "/front/a/b", "/a/b"),
        ("/front", "/base", "/front", "/base"),
        ("/front", "/base", "/front/", "/base/"),
        ("/front", "/base", "/front?q=1", "/base?q=1"),
        ("/front", "/base", "/front/a%20b%2Fc/d%C3%BC;x?q=%20+&&r", "/base/a%20b%2Fc/d%C3%BC;x?q=%20+&&r"),
        ("/front/more", "/base/two", "/front/more/a/", "/base/two/a/"),
        ("/", "", "/a?b", "/a?b"),
        ("/", "/base", "/front/a", "/base/front/a"),
    ],
)
async def test_paths(upstream, start, prefix: str, base: str, asked: str, target: str) -> None:
    front = await start(upstream, prefix=prefix, backend=f'options.base_path = "{base}"' if base else "")
    assert (await front.ask("GET", asked)).status == 200
    request = upstream.requests[0]
    assert request.raw_path + (f"?{request.raw_query}" if request.raw_query else "") == target


async def test_a_path_prefix_behind_the_base_path(upstream, start) -> None:
    front = await start(upstream, backend='options = { base_path = "/base", path_prefix = "v2/" }')
    await front.ask("GET", "/front/a")
    assert upstream.requests[0].raw_path == "/base/v2/a"


async def test_a_base_url(upstream, start) -> None:
    async with listening(upstream) as port:
        front = await start(1, backend=f'options.base_url = "http://127.0.0.1:{port}/base%20/"')
        await front.ask("GET", "/front/a")
    assert upstream.requests[0].raw_path == "/base%20/a"


async def test_request_headers(upstream, start) -> None:
    front = await start(upstream, backend='options.headers = { X-Site = "north", X-Kept = "ours" }')
    sent = [
        ("Authorization", "Basic dTpw"),
        ("Cookie", "a=b"),
        ("X-Kept", "theirs"),
        ("X-Many", "1"),
        ("X-Many", "2"),
        ("X-Forwarded-For", "192.0.2.1"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Prefix", "/lie"),
        ("TE", "trailers"),
        ("Keep-Alive", "timeout=5"),
        ("Proxy-Authorization", "secret"),
    ]
    await front.ask("GET", "/front/a", headers=sent)
    got = upstream.requests[0].headers
    assert got.get("authorization") == "Basic dTpw"
    assert got.get("cookie") == "a=b"
    assert got.get_all("x-many") == ["1", "2"]
    assert (got.get("x-site"), got.get_all("x-kept")) == ("north", ["ours"])
    assert got.get("x-forwarded-for") == "192.0.2.1, 127.0.0.1"
    assert got.get("x-forwarded-proto") == "http"
    assert got.get("x-forwarded-host") == f"127.0.0.1:{front.port}"
    assert got.get("x-forwarded-prefix") == "/front"
    assert got.get("via") == "1.1 harmony"
    assert got.get("host") != f"127.0.0.1:{front.port}"
    for name in ("te", "keep-alive", "proxy-authorization", "content-length", "transfer-encoding"):
        assert name not in got


async def test_headers_that_connection_names_stay_behind(upstream, start) -> None:
    front = await start(upstream)
    reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
    writer.write(
        b"GET /front HTTP/1.1\r\nHost: h\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nX-End: 1\r\n\r\n"
    )
    async with asyncio.timeout(PATIENCE_S):
        assert b"200" in await reader.readline()
        await reader.read()
    writer.close()
    assert "x-hop" not in upstream.requests[0].headers
    assert "x-end" in upstream.requests[0].headers


async def test_response_headers(upstream, start) -> None:
    upstream.response = Response(
        207,
        [
            ("Set-Cookie", "a=1"),
            ("Set-Cookie", "b=2"),
            ("Server", "upstream"),
            ("Date", "Tue, 24 Nov 2026 15:00:00 GMT"),
            ("Content-Encoding", "gzip"),
            ("X-Hop", "1"),
            ("Connection", "X-Hop"),
            ("Keep-Alive", "timeout=5"),
        ],
        b"not really gzip",
    )
    front = await start(upstream)
    answer = await front.ask("GET", "/front")
    assert (answer.status, answer.body) == (207, b"not really gzip")
    assert answer.headers.get_all("set-cookie") == ["a=1", "b=2"]
    assert answer.headers.get_all("server") == ["upstream"]
    assert answer.headers.get_all("date") == ["Tue, 24 Nov 2026 15:00:00 GMT"]
    assert answer.headers.get("content-encoding") == "gzip"
    assert answer.headers.get_all("content-length") == ["15"]


@pytest.mark.parametrize(
    "status", [201, 204, 206, 301, 304, 400, 401, 404, 409, 418, 429, 500, 502, 503, 507]
)
async def test_statuses(upstream, start, status: int) -> None:
    body = None if status in (204, 304) else b"why"
    upstream.response = Response(status, {"Location": "/elsewhere"}, body)
    front = await start(upstream)
    async with front.client() as client:
        # Twice, so that what remains of the first exchange would show.
        for _ in range(2):
            answer = await client.request("GET", "/front")
            assert (answer.status, answer.body) == (status, body or b"")
            assert answer.headers.get("location") == "/elsewhere"


async def test_head(upstream, start) -> None:
    upstream.response = Response(200, {}, None, content_length=1234)
    front = await start(upstream)
    async with front.client() as client:
        for _ in range(2):
            answer = await client.request("HEAD", "/front")
            assert (answer.status, answer.body, answer.headers.get("content-length")) == (200, b"", "1234")
    assert upstream.requests[0].method == "HEAD"


async def test_a_configured_method(upstream, start) -> None:
    front = await start(upstream, backend='options.method = "put"')
    await front.ask("POST", "/front", body=b"x")
    assert (upstream.requests[0].method, upstream.bodies) == ("PUT", [b"x"])


@pytest.mark.parametrize(
    ("table", "header", "value"),
    [
        ('method = "basic"\noptions = { username = "u", password = "p" }', "authorization", "Basic dTpw"),
        ('method = "bearer"\noptions.token = "t"', "authorization", "Bearer t"),
        ('method = "api_key"\noptions = { api_key = "k", header_name = "X-Key" }', "x-key", "k"),
    ],
)
async def test_credentials(upstream, start, table: str, header: str, value: str) -> None:
    front = await start(
        upstream, backend='options.authentication_ref = "a"', more=f"[authentications.a]\n{table}"
    )
    await front.ask("GET", "/front", headers={header: "the client's"})
    assert upstream.requests[0].headers.get_all(header) == [value]


# Streaming


async def test_both_bodies_are_streamed_at_the_same_time(upstream, start) -> None:
    async def back(request: Request) -> Response:
        return Response(200, {}, request.body)

    upstream.answer = back
    front = await start(upstream)
    returned: asyncio.Queue[bytes] = asyncio.Queue()

    async def body() -> AsyncIterator[bytes]:
        yield b"first"
        assert await returned.get() == b"first"
        yield b"second"
        assert await returned.get() == b"second"

    async with (
        front.client() as client,
        client.stream("POST", "/front", body=body()) as response,
    ):
        async for chunk in response:
            returned.put_nowait(chunk)
    assert returned.empty()


@pytest.mark.parametrize("known", [True, False])
async def test_bodies_of_any_size_are_not_held(upstream, start, known: bool) -> None:
    size = 200 * MEBIBYTE
    chunk = bytes(MEBIBYTE)

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(size // MEBIBYTE):
            yield chunk

    async def there_and_back(request: Request) -> Response:
        assert request.body.content_length == (size if known else None)
        async for _ in request.body:
            pass
        return Response(200, {}, chunks(), content_length=size if known else None)

    upstream.answer = there_and_back
    front = await start(upstream)
    received = 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with (
        front.client() as client,
        client.stream("POST", "/front", body=chunks(), content_length=size if known else None) as response,
    ):
        assert response.headers.get("content-length") == (str(size) if known else None)
        async for piece in response:
            received += len(piece)
    assert received == size
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024


async def test_a_client_that_leaves_leaves_the_upstream(upstream, start) -> None:
    left = asyncio.Event()

    async def endless(request: Request) -> Response:
        async def chunks() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield bytes(65536)
            finally:
                left.set()

        return Response(200, {}, chunks())

    upstream.answer = endless
    front = await start(upstream)
    async with front.client() as client, client.stream("GET", "/front") as response:
        await anext(aiter(response))
    async with asyncio.timeout(PATIENCE_S):
        await left.wait()


async def test_an_upstream_that_wants_no_more(upstream, start) -> None:
    """It answers before it has read the request; nobody sends it the rest."""

    async def refuse(request: Request) -> Response:
        return Response(413, {"Connection": "close"}, b"too much")

    upstream.answer = refuse
    front = await start(upstream)

    async def body() -> AsyncIterator[bytes]:
        yield b"some"
        await asyncio.Event().wait()

    async with front.client() as client, client.stream("POST", "/front", body=body()) as response:
        assert response.status == 413


async def test_a_request_that_is_too_large(upstream, start) -> None:
    front = await start(upstream, http="options.max_upload_bytes = 1000")
    assert (await front.ask("POST", "/front", body=bytes(1000))).status == 200
    assert (await front.ask("POST", "/front", body=bytes(1001))).status == 413


# What goes wrong


async def test_nobody_is_there(start, free_ports: Callable[[int], list[int]]) -> None:
    front = await start(free_ports(2)[1], backend="options.max_retries = 1")
    for method in ("GET", "POST"):
        answer = await front.ask(method, "/front")
        assert answer.status == 502
        assert answer.body.startswith(b'{"error":"upstream 127.0.0.1:')


async def test_an_idempotent_request_is_tried_again(upstream, free_port: int) -> None:
    server = HTTPServer(upstream)
    slept: list[float] = []

    async def begin_to_listen(delay_s: float) -> None:
        slept.append(delay_s)
        if len(slept) == 2:
            await server.start("127.0.0.1", free_port)

    configured = Backend(
        name="b",
        service="http",
        options=HttpBackendOptions(),
        target=Target("127.0.0.1", free_port, "http", "", False, None, PATIENCE_S, 2),
        authentication=None,
        origin=Origin(None, "backends.b"),
    )
    behind = HttpUpstream(configured, pause=begin_to_listen)

    async def ask(method: str) -> Response:
        request = Request(method, "/a", body=RequestBody.of(b"x"))
        return await behind.forward(request, "/a", prefix="")

    with pytest.raises(HTTPError):
        await ask("POST")
    assert slept == []
    response = await ask("PUT")
    assert response.status == 200
    assert isinstance(response.body, AsyncIterator)
    assert [chunk async for chunk in response.body] == [b"Hello from Backend"]
    await response.body.aclose()  # type: ignore[attr-defined]
    assert (slept, upstream.bodies) == ([0.1, 0.2], [b"x"])
    await behind.stop(0.0)
    await server.stop()


@contextlib.asynccontextmanager
async def raw(answer: bytes | None) -> AsyncIterator[int]:
    """A port where requests are answered so, and the connection closed; None: never."""
    done = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            if answer is None:
                await done.wait()
            else:
                writer.write(answer)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        done.set()
        server.close()
        await server.wait_closed()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 999 What\r\nContent-Length: 0\r\n\r\n",
    ],
)
async def test_an_upstream_that_breaks_off_before_its_content(start, answer: bytes) -> None:
    async with raw(answer) as port:
        front = await start(port)
        assert (await front.ask("GET", "/front")).status == 502


async def test_an_upstream_that_breaks_off_in_its_content(start) -> None:
    async with raw(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\nhello") as port:
        front = await start(port)
        with pytest.raises(UpstreamError, match="closed the connection"):
            await front.ask("GET", "/front")


async def test_an_upstream_that_does_not_answer(start) -> None:
    async with raw(None) as port:
        front = await start(port, backend="timeout_secs = 1")
        answer = await front.ask("GET", "/front")
        assert answer.status == 504


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ('options.headers = { "X Y" = "1" }', "header name 'X Y' is not a token"),
        ('options.headers = { X = "a\\nb" }', "value of header X has a control character"),
        ('options.ca_cert_path = "nowhere.pem"\nconnection.protocol = "https"', "nowhere.pem"),
    ],
)  # fmt: skip
async def test_what_cannot_be_configured(start, tmp_path: Path, backend: str, message: str) -> None:
    if "connection" in backend:
        backend = backend.replace("connection.protocol", "options.protocol")
    with pytest.raises(ConfigError) as refused:
        await start(1, backend=backend)
    assert message in str(refused.value)


# With middleware


async def test_middleware_in_front(upstream, start) -> None:
    front = await start(
        upstream,
        middleware='"passthru", "public"',
        more="""
        [middleware.public]
        type = "path_filter"
        options.rules = [{ deny = "/a/secret" }, "/a/{*rest}"]
        """,
    )
    assert (await front.ask("GET", "/front/a/b")).status == 200
    for path in ("/front", "/front/a/secret", "/front/a/%73ecret", "/front/a/x%2F..%2Fsecret"):
        answer = await front.ask("GET", path)
        assert (answer.status, answer.body) == (404, b"")
    assert [request.raw_path for request in upstream.requests] == ["/a/b"]


@pytest.mark.parametrize(
    ("table", "header", "passed_on"),
    [
        (
            'method = "basic"\noptions = { username = "u", password = "p" }',
            ("Authorization", "Basic dTpw"),
            False,
        ),
        (
            'method = "api_key"\noptions = { api_key = "k", header_name = "X-Key" }',
            ("X-Key", "k"),
            False,
        ),
        (
            'method = "jwt"\noptions = { use_hs256 = true, hs256_secret = "%s", issuer = "i" }' % ("x" * 32),
            (
                "Authorization",
                "Bearer " + jwt.encode({"iss": "i", "exp": 4102444800}, "x" * 32, algorithm="HS256"),
            ),
            True,
        ),
    ],
)
async def test_credentials_for_the_gateway_stay_here(start, upstream, table, header, passed_on) -> None:
    front = await start(upstream, http='authentication = "a"', more=f"[authentications.a]\n{table}")
    assert (await front.ask("GET", "/front")).status == 401
    assert (await front.ask("GET", "/front", headers=[header])).status == 200
    (request,) = upstream.requests
    assert (header[0] in request.headers) is passed_on
