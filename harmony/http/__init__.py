"""A minimal HTTP/1.1 server on h11, with streamed bodies in both directions, and the client for calling upstreams.

`HTTPServer` runs a handler, usually a `Router`, for each `Request` and sends its `Response`; `harmony.http.client` is
the other direction, imported by name, so that a server does not load it.
"""

from harmony.http.headers import Headers
from harmony.http.message import (
    FileBody,
    FileSpan,
    HTTPError,
    Piece,
    Query,
    Request,
    RequestBody,
    Response,
    error_response,
    json_response,
)
from harmony.http.router import Handler, Route, RouteConflict, Router, normalize_prefix
from harmony.http.server import Exchanged, HTTPServer, ServerLimits

__all__ = [
    "Exchanged",
    "FileBody",
    "FileSpan",
    "HTTPError",
    "HTTPServer",
    "Handler",
    "Headers",
    "Piece",
    "Query",
    "Request",
    "RequestBody",
    "Response",
    "Route",
    "RouteConflict",
    "Router",
    "ServerLimits",
    "error_response",
    "json_response",
    "normalize_prefix",
]
