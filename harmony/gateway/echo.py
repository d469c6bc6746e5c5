"""The `echo` endpoint and backend: what a request looks like when it has passed the gateway.

    {"path": "sub/path", "full_path": "/echo/sub/path", "headers": {...}, "original_data": "..."}

The body is text if it is UTF-8, and base64 otherwise, which `original_data_encoding` says. `mw_left` and `mw_right` are
there when a `passthru` saw the request or would see the response.
"""

from __future__ import annotations

import base64
from typing import Final

from harmony.gateway.config import Endpoint
from harmony.gateway.http_authentication import without_credentials
from harmony.gateway.http_backend import METHODS
from harmony.gateway.http_middleware import PASSED_LEFT, PASSED_RIGHT
from harmony.gateway.options import PrefixOptions
from harmony.http import Request, Response, Router, json_response, normalize_prefix

__all__ = ["Echo"]

ECHO_METHODS: Final = ("GET", "POST")
"""Of an endpoint whose service is echo."""


class Echo:
    """An `echo` endpoint, or an `http` one in front of an `echo` backend. max_body_bytes: of what is sent back."""

    def __init__(self, endpoint: Endpoint, *, max_body_bytes: int) -> None:
        options = endpoint.options
        assert isinstance(options, PrefixOptions)
        self._name = endpoint.name
        self._prefix = normalize_prefix(options.path_prefix).rstrip("/")
        self._methods = ECHO_METHODS if endpoint.service == "echo" else METHODS
        self._max_body_bytes = max_body_bytes

    def add_routes(self, router: Router) -> None:
        """Raises RouteConflict when another endpoint of the network has one of them."""
        router.add(self._methods, self._prefix + "/{rest*}", self.answer, name=self._name, description="Echo")

    async def answer(self, request: Request) -> Response:
        body = await request.body.read(self._max_body_bytes)
        headers = request.headers.without(*without_credentials(request))
        content: dict[str, object] = {
            "path": request.path_parameters["rest"],
            "full_path": request.path,
            "headers": {name.lower(): headers.get(name) for name, _ in headers},
        }
        try:
            content["original_data"] = body.decode("utf-8")
        except UnicodeDecodeError:
            content["original_data"] = base64.b64encode(body).decode("ascii")
            content["original_data_encoding"] = "base64"
        for mark in (PASSED_LEFT, PASSED_RIGHT):
            if mark in request.state:
                content[mark] = True
        return json_response(content)
