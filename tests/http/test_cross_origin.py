"""harmony.http.cross_origin: Fetch §3.2, who may read an answer and who may ask at all."""

import pytest

from harmony.http import Headers, Request, Response
from harmony.http.cross_origin import CrossOrigin

VIEWER = "https://viewer.example.org"
OTHER = "https://other.example.org:8443"


def ask(origin: str | None, *, method: str = "OPTIONS") -> Request:
    headers = {} if origin is None else {"Origin": origin, "Access-Control-Request-Method": "POST"}
    return Request(method, "/studies", headers=headers)


def test_nobody_is_allowed_by_default() -> None:
    headers = CrossOrigin().options(ask(VIEWER), ["GET", "OPTIONS"])
    assert list(headers) == [("Allow", "GET, OPTIONS")]
    response = CrossOrigin().applied(ask(VIEWER), Response(200, {"Vary": "Accept"}))
    assert list(response.headers) == [("Vary", "Accept")]


@pytest.mark.parametrize("origin", [None, VIEWER, "null"])
def test_everybody(origin: str | None) -> None:
    everybody = CrossOrigin(("*",), max_age_s=60)
    assert list(everybody.options(ask(origin), ["GET", "POST", "OPTIONS"])) == [
        ("Allow", "GET, POST, OPTIONS"),
        ("Access-Control-Allow-Origin", "*"),
        ("Access-Control-Allow-Methods", "GET, POST, OPTIONS"),
        ("Access-Control-Allow-Headers", "accept, content-type, authorization, x-requested-with, range"),
        ("Access-Control-Max-Age", "60"),
    ]
    assert list(everybody.headers(ask(origin, method="GET"))) == [
        ("Access-Control-Allow-Origin", "*"),
        (
            "Access-Control-Expose-Headers",
            "content-type, content-length, content-location, content-range, warning",
        ),
    ]


@pytest.mark.parametrize(
    ("allow_origins", "origin", "permitted"),
    [
        ((), None, True),  # no browser
        ((), "http://h:1", True),  # a page of this server
        ((), "https://h:1", True),  # the same behind a proxy that ends TLS
        ((), "http://h:2", False),
        ((), VIEWER, False),
        ((), "null", False),
        ((), "", False),
        ((VIEWER,), VIEWER, True),
        ((VIEWER,), OTHER, False),
        (("*",), OTHER, True),
    ],
)
def test_who_may_change_something(
    allow_origins: tuple[str, ...], origin: str | None, permitted: bool
) -> None:
    headers = {"Host": "h:1"} | ({} if origin is None else {"Origin": origin})
    assert CrossOrigin(allow_origins).permits(Request("POST", "/", headers=headers)) is permitted


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [(VIEWER, True), (OTHER, True), (None, False), ("null", False), ("https://viewer.example.org.evil.example", False),
     ("http://viewer.example.org", False), ("", False)],
)  # fmt: skip
def test_some(origin: str | None, allowed: bool) -> None:
    some = CrossOrigin((VIEWER, OTHER))
    for headers in (
        some.options(ask(origin), ["GET"]),
        some.headers(ask(origin), Headers({"Vary": "Accept"})),
    ):
        assert headers.get("access-control-allow-origin") == (origin if allowed else None)
        assert "Origin" in (headers.get("vary") or "")
        assert "access-control-allow-credentials" not in headers
