"""The `http` backend: requests of an `http` endpoint, forwarded to another HTTP server (RFC 9110 §7.6).

What comes below the endpoint's prefix goes to the same path below the upstream's base path: method, path as it was
encoded, query, headers and body, and back come status, headers and body. Both bodies are streamed at the pace of
whoever reads them, whatever their size, and never looked into.

Of the headers those stay behind that are about one connection only (RFC 9110 §7.6.1). X-Forwarded-For, -Host, -Proto,
-Prefix and Via say where a request came from; headers and credentials of the configuration replace those that came.

An upstream that cannot be reached or breaks off is answered 502, one that does not answer in time 504; when that shows
after the response has begun, the connection is reset, so that it does not look complete. A request is tried again when
no connection came about, so that nothing of it was sent, and its method is idempotent.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Final, cast

from harmony.gateway.addresses import clean_path
from harmony.gateway.config import Backend, Endpoint
from harmony.gateway.forwarded import PEER
from harmony.gateway.http_authentication import without_credentials
from harmony.gateway.http_upstream import upstream_client
from harmony.gateway.options import HttpBackendOptions, HttpEndpointOptions
from harmony.gateway.tls import Certificates
from harmony.http import Headers, HTTPError, Request, Response, Router, normalize_prefix
from harmony.http.client import UpstreamError, UpstreamStream

__all__ = ["HttpForward", "HttpUpstream"]

logger = logging.getLogger("harmony.gateway")

METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})
"""RFC 9110 §9.2.2, as far as they are forwarded."""

FIRST_RETRY_S: Final = 0.1
"""Doubles each time: the ten tries that can be configured take a minute and a half."""

HOP_BY_HOP: Final = (
    "Connection",
    "Keep-Alive",
    "Proxy-Connection",
    "Proxy-Authenticate",
    "Proxy-Authorization",
    "TE",
    "Trailer",
    "Transfer-Encoding",
    "Upgrade",
)
"""RFC 9110 §7.6.1; what Connection names is added to them, and what this gateway has asked for (credentials)."""

VIA: Final = "1.1 harmony"


class HttpUpstream:
    """One upstream, shared by all endpoints in front of it."""

    def __init__(
        self,
        configured: Backend,
        *,
        certificates: Certificates | None = None,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """certificates: those of the gateway; None: read now and kept. pause: between two tries.

        Raises ValueError for an address, headers or credentials that cannot be used, OSError for a CA file that is
        not there."""
        options = configured.options
        assert isinstance(options, HttpBackendOptions)
        assert configured.target is not None
        self.name = configured.name
        self._pause = pause
        self._method = options.method.upper() if options.method is not None else None
        self._headers = Headers(options.headers)
        self._retries = configured.target.max_retries
        self._client = upstream_client(
            configured,
            base_path=configured.target.base_path + clean_path(options.path_prefix),
            maximum_connections=options.max_connections,
            certificates=certificates,
        )

    def __str__(self) -> str:
        return f"backend {self.name}"

    async def forward(self, request: Request, path: str, *, prefix: str) -> Response:
        """path: below the base path, percent-encoded, with the query. prefix: what stood in front of it.

        Raises HTTPError, and what the request body raises.
        """
        method = self._method or request.method
        # No body is the only one that can be sent a second time.
        body = b"" if request.body.content_length == 0 else request.body
        retries = self._retries if method in IDEMPOTENT else 0
        headers = self._request_headers(request, prefix)
        while True:
            exchange = self._client.stream(
                method, path, body=body, content_length=request.body.content_length, headers=headers
            )
            try:
                return await _response(exchange, await exchange.__aenter__(), method, request.method)
            except ValueError as error:
                raise HTTPError(400, f"the request cannot be forwarded: {error}") from error
            except UpstreamError as error:
                if error.kind != "connect" or not retries:
                    raise self._failure(error) from error
            retries -= 1
            await self._pause(FIRST_RETRY_S * 2.0 ** (self._retries - retries - 1))

    async def stop(self, grace_s: float) -> None:
        """Requests under way belong to listeners, which have stopped."""
        await self._client.aclose()

    def _request_headers(self, request: Request, prefix: str) -> Headers:
        headers = _end_to_end(request.headers).without(*without_credentials(request))
        forwarded_for = headers.get("X-Forwarded-For")
        host, _ = cast(tuple[str, int], request.state.get(PEER, request.client))  # only `trace` sets it
        headers = headers.set("X-Forwarded-For", f"{forwarded_for}, {host}" if forwarded_for else host)
        headers = headers.set("X-Forwarded-Proto", request.scheme)
        headers = headers.set("X-Forwarded-Host", request.headers.get("Host") or "")
        headers = headers.set("X-Forwarded-Prefix", prefix)
        headers = headers.add("Via", VIA)
        for name, value in self._headers:
            headers = headers.set(name, value)
        return headers

    def _failure(self, error: UpstreamError) -> HTTPError:
        logger.info("backend %s: %s", self.name, error)
        return _as_http_error(error)


class HttpForward:
    """An `http` endpoint in front of an upstream."""

    def __init__(self, endpoint: Endpoint, upstream: HttpUpstream) -> None:
        options = endpoint.options
        assert isinstance(options, HttpEndpointOptions)
        self._name = endpoint.name
        self._prefix = normalize_prefix(options.path_prefix).rstrip("/")
        self._max_upload_bytes = options.max_upload_bytes
        self._upstream = upstream

    def add_routes(self, router: Router) -> None:
        """Raises RouteConflict when another endpoint of the network has one of them."""
        description = f"Forwarded to {self._upstream.name}"
        router.add(METHODS, self._prefix + "/{rest*}", self.answer, name=self._name, description=description)

    async def answer(self, request: Request) -> Response:
        request.body.maximum_bytes = self._max_upload_bytes
        return await self._upstream.forward(request, self._rest(request), prefix=self._prefix)

    def _rest(self, request: Request) -> str:
        """What follows the prefix, as it was encoded."""
        segments = request.raw_path.split("/")[1 + self._prefix.count("/") :]
        path = "".join("/" + segment for segment in segments)
        return f"{path}?{request.raw_query}" if request.raw_query else path


async def _response(
    exchange: AbstractAsyncContextManager[UpstreamStream],
    upstream: UpstreamStream,
    method: str,
    asked_method: str,
) -> Response:
    """What came, for whoever asked. method: the one that was sent."""
    content = _Content(exchange, upstream)
    try:
        headers = _end_to_end(upstream.headers)
        length = headers.get("Content-Length")
        headers = headers.without("Content-Length")
        known = int(length) if length is not None and length.isdecimal() else None
        if not 200 <= upstream.status <= 599:
            raise HTTPError(502, f"the upstream answered with status {upstream.status}")
        if method != "HEAD" and upstream.status not in (204, 304):
            return Response(upstream.status, headers, content, content_length=known)
        async for _ in content:
            pass  # there is nothing but the end, behind which the connection can be used again
        await content.aclose()
        return Response(upstream.status, headers, content_length=known if asked_method == "HEAD" else None)
    except BaseException:
        await content.aclose()
        raise


class _Content:
    """The body of a response. An iterator and no generator: one that nobody began would not be closed."""

    def __init__(
        self, exchange: AbstractAsyncContextManager[UpstreamStream], upstream: UpstreamStream
    ) -> None:
        self._exchange: AbstractAsyncContextManager[UpstreamStream] | None = exchange
        self._chunks = aiter(upstream)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await anext(self._chunks)
        except UpstreamError as error:
            raise _as_http_error(error) from error

    async def aclose(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            await exchange.__aexit__(None, None, None)


def _as_http_error(error: UpstreamError) -> HTTPError:
    return HTTPError(504 if error.kind == "timeout" else 502, str(error))


def _end_to_end(headers: Headers) -> Headers:
    """Without what is about one connection."""
    named = [name.strip() for name in (headers.get("Connection") or "").split(",")]
    return headers.without(*HOP_BY_HOP, *named)
