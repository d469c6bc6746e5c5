"""Which web pages may use a service: CORS (Fetch §3.2), and OPTIONS (RFC 9110 §9.3.7).

A browser asks before a page of another origin may do what a form could not (the preflight), and lets the page read an
answer only when that allows its origin. Who is not allowed gets an answer without these headers: the browser refuses,
other programs do not notice. Credentials are never allowed: this server knows no cookies.

What a page may send without being asked about is refused when it changes something: `permits` is for handlers of POST.

`*` lets every page that somebody in the network has open read what is served here, so nobody is allowed by default.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from harmony.http.content_coding import add_vary
from harmony.http.headers import Headers
from harmony.http.message import Request, Response

__all__ = ["CrossOrigin"]

REQUEST_HEADERS: Final = ("accept", "content-type", "authorization", "x-requested-with", "range")
"""What pages may send: viewers do send these."""
RESPONSE_HEADERS: Final = ("content-type", "content-length", "content-location", "content-range", "warning")
"""What pages may read besides the few that they always may."""


@dataclass(frozen=True, slots=True)
class CrossOrigin:
    """allow_origins: as browsers send them ("https://viewer.example.org"), or "*" for all; empty: nobody."""

    allow_origins: tuple[str, ...] = ()
    allow_headers: tuple[str, ...] = REQUEST_HEADERS
    expose_headers: tuple[str, ...] = RESPONSE_HEADERS
    max_age_s: int = 600

    def permits(self, request: Request) -> bool:
        """Whether no page, one of this server, or one that is allowed sends this. Browsers name the origin of every
        POST (Fetch §3.2.2), other programs do not."""
        origin = request.headers.get("origin")
        if origin is None or "*" in self.allow_origins or origin in self.allow_origins:
            return True
        return origin.partition("://")[2] == request.headers.get("host")

    def options(self, request: Request, methods: Iterable[str]) -> Headers:
        """The headers of the answer to OPTIONS, a preflight or not, at a resource that has these methods."""
        listed = ", ".join(methods)
        headers = self.headers(request, Headers({"Allow": listed}))
        if "access-control-allow-origin" not in headers:
            return headers
        return Headers(
            [
                *headers.without("access-control-expose-headers"),
                ("Access-Control-Allow-Methods", listed),
                ("Access-Control-Allow-Headers", ", ".join(self.allow_headers)),
                ("Access-Control-Max-Age", str(self.max_age_s)),
            ]
        )

    def headers(self, request: Request, headers: Headers = Headers()) -> Headers:  # noqa: B008 - immutable
        """`headers` of an answer, with what allows the page that asks, if there is one, to read it."""
        if not self.allow_origins:
            return headers
        if "*" in self.allow_origins:
            allowed: str | None = "*"
        else:
            headers = add_vary(headers, "Origin")
            origin = request.headers.get("origin")
            # Scheme and host of an origin are in lower case already (Fetch §3.1, RFC 6454 §6.2).
            allowed = origin if origin in self.allow_origins else None
        if allowed is None:
            return headers
        headers = headers.set("Access-Control-Allow-Origin", allowed)
        return headers.set("Access-Control-Expose-Headers", ", ".join(self.expose_headers))

    def applied(self, request: Request, response: Response) -> Response:
        """The same response with these headers."""
        response.headers = self.headers(request, response.headers)
        return response
