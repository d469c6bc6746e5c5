"""Middleware of HTTP endpoints: which paths a path_filter lets pass, and in which order requests meet several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from harmony.gateway.authentication import Authentications
from harmony.gateway.config import ConfigError
from harmony.gateway.http_middleware import GuardedRouter, PathFilter, http_middleware
from harmony.gateway.options import PathFilterOptions
from harmony.http import Handler, Request, Response, RouteConflict, Router


async def answer(request: Request) -> Response:
    return Response(200, {}, b"passed")


async def passes(rules: Sequence[Any], path: str, *, prefix: str = "") -> bool:
    path_filter = PathFilter.of(PathFilterOptions(rules=tuple(rules)), prefix=prefix)
    response = await path_filter.handle(Request("GET", path), answer)
    assert (response.status, response.body) in ((200, b"passed"), (404, None))
    return response.status == 200


@pytest.mark.parametrize(
    ("rules", "path", "expected"),
    [
        ([], "/", False),
        (["/"], "/", True),
        ([""], "/", True),
        (["/"], "/a", False),
        (["/a"], "/a", True),
        (["/a"], "/a/", True),
        (["/a/"], "/a", True),
        (["a"], "/a", True),
        (["/a"], "/A", False),
        (["/a"], "/ab", False),
        (["/a"], "/a/b", False),
        (["/a"], "/%61", True),
        (["/a/{id}"], "/a/b", True),
        (["/a/{id}"], "/a", False),
        (["/a/{id}"], "/a/b/c", False),
        (["/a/{id}/c"], "/a/b/c", True),
        (["/a/{*rest}"], "/a", True),
        (["/a/{*rest}"], "/a/b/c", True),
        (["/a/*"], "/a/b/c", True),
        (["/a/*"], "/b", False),
        (["/*"], "/", True),
        (["/b", "/a"], "/a", True),
        ([{"allow": "/a"}], "/a", True),
        ([{"deny": "/a"}, {"allow": "/{*rest}"}], "/a", False),
        ([{"deny": "/a"}, {"allow": "/{*rest}"}], "/b", True),
        ([{"allow": "/a/b"}, {"deny": "/a/*"}, "/*"], "/a/b", True),
        ([{"allow": "/a/b"}, {"deny": "/a/*"}, "/*"], "/a/c", False),
        # What somebody behind the filter may take for another path.
        (["/*"], "/a%2Fb", False),
        (["/*"], "/a%5Cb", False),
        (["/*"], "/a%252Fb", False),
        (["/*"], "/a//b", False),
    ],
)
async def test_which_paths_pass(rules: Sequence[Any], path: str, expected: bool) -> None:
    assert await passes(rules, path) is expected


@pytest.mark.parametrize(
    ("prefix", "path", "expected"),
    [
        ("/x", "/x/a", True),
        ("/x/y", "/x/y/a", True),
        ("/", "/a", True),
        ("/x", "/x", False),
        ("/a", "/a", False),
    ],
)
async def test_paths_are_those_below_the_prefix(prefix: str, path: str, expected: bool) -> None:
    assert await passes(["/a"], path, prefix=prefix) is expected


@dataclass
class Noting:
    """Notes when a request comes, and when its response goes."""

    name: str
    notes: list[str]

    async def handle(self, request: Request, proceed: Handler) -> Response:
        self.notes.append(f"{self.name} request")
        response = await proceed(request)
        self.notes.append(f"{self.name} response")
        return response


async def test_the_first_listed_is_the_first_asked() -> None:
    router, notes = Router(), list[str]()
    guarded = GuardedRouter(router, [Noting("1", notes), Noting("2", notes)])
    route = guarded.add("GET", "/a", answer, name="e", description="d")
    assert router.routes() == [route]
    assert (route.name, route.description) == ("e", "d")
    assert (await router(Request("GET", "/a"))).body == b"passed"
    assert notes == ["1 request", "2 request", "2 response", "1 response"]
    with pytest.raises(RouteConflict):
        guarded.add("GET", "/a", answer)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ('"/a/{*rest}/b"', 'pattern "/a/{*rest}/b": expected text'),
        ('"/a/{id"', 'pattern "/a/{id": expected text'),
        ('"/a*"', 'pattern "/a*": expected text'),
        ('{ forbid = "/a" }', "a rule is a path, { allow = path } or { deny = path }"),
        ('{ allow = "/a", deny = "/b" }', "a rule is a path, { allow = path } or { deny = path }"),
    ],
)
def test_rules_without_a_meaning(load_config, rule: str, message: str) -> None:
    config = load_config(
        f"""
        [proxy]
        id = "x"
        [network.n.http]
        [pipelines.p]
        networks = ["n"]
        endpoints = ["e"]
        middleware = ["f"]
        [endpoints.e]
        service = "echo"
        options.path_prefix = "/x"
        [middleware.f]
        type = "path_filter"
        options.rules = [{rule}]
        """
    )
    pipeline = config.pipelines["p"]
    with pytest.raises(ConfigError) as refused:
        http_middleware(pipeline, pipeline.endpoints[0], authentications=Authentications())
    assert f"[middleware.f] options.rules: {message}" in str(refused.value)
