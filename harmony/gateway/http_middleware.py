"""Middleware of HTTP endpoints: what a request passes on its way to the endpoint's handler.

A `GuardedRouter` stands between an endpoint and the router of a network: every handler that the endpoint registers is
reached through the pipeline's middleware, in the order in which it is listed. A middleware calls `proceed` or answers
itself; what it lets pass streams as if it were not there.

Here: `passthru`, which leaves a mark for `echo`, and `path_filter`; `policies` is in `http_policies`, `basic_auth`,
`jwt_auth` and the `authentication` of an endpoint, which comes before all middleware, in `http_authentication`. A
middleware type that is neither of these nor in `_MAKERS` does nothing to HTTP requests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeGuard

from harmony.gateway.authentication import Authentications
from harmony.gateway.config import Authentication, ConfigError, Endpoint, Middleware, Pipeline
from harmony.gateway.http_authentication import RequireAuthentication
from harmony.gateway.http_policies import HttpPolicies
from harmony.gateway.options import DicomwebOptions, PathFilterOptions, PrefixOptions
from harmony.gateway.path_pattern import PathPattern, is_plain, path_below
from harmony.gateway.providers import of_middleware
from harmony.gateway.rules import Rulebook
from harmony.http import Handler, Request, Response, Route, Router
from harmony.http.cross_origin import CrossOrigin

__all__ = [
    "PASSED_LEFT",
    "PASSED_RIGHT",
    "GuardedRouter",
    "HttpMiddleware",
    "PathFilter",
    "checks_anybody",
    "http_middleware",
]

PASSED_LEFT: Final = "mw_left"
PASSED_RIGHT: Final = "mw_right"
"""Keys of `Request.state`."""


class HttpMiddleware(Protocol):
    async def handle(self, request: Request, proceed: Handler) -> Response:
        """Answer, or return what `proceed` answers."""


class GuardedRouter(Router):
    """Registers handlers with another router, behind middleware; the first one is asked first."""

    def __init__(self, router: Router, middleware: Sequence[HttpMiddleware]) -> None:
        super().__init__()
        self._router = router
        self._middleware = tuple(middleware)

    def add(
        self,
        methods: str | Iterable[str],
        pattern: str,
        handler: Handler,
        *,
        name: str = "",
        description: str = "",
    ) -> Route:
        for each in reversed(self._middleware):
            handler = _behind(each, handler)
        return self._router.add(methods, pattern, handler, name=name, description=description)


def _behind(middleware: HttpMiddleware, handler: Handler) -> Handler:
    async def handle(request: Request) -> Response:
        return await middleware.handle(request, handler)

    return handle


def http_middleware(
    pipeline: Pipeline,
    endpoint: Endpoint,
    *,
    authentications: Authentications,
    rulebook: Rulebook | None = None,
) -> list[HttpMiddleware]:
    """What stands in front of an endpoint. Raises ConfigError for options that have no meaning.

    What is listed on the right only acts as well: a filter must not be without effect. rulebook: for those who share
    rules, and so what these count.
    """
    options = endpoint.options
    prefix = options.path_prefix if isinstance(options, PrefixOptions) else ""
    found: list[HttpMiddleware] = []
    if checks_anybody(endpoint.authentication):
        found.append(_authentication(endpoint.authentication, endpoint, authentications))
    for each in pipeline.middleware:
        if each.type == "policies":
            found.append(HttpPolicies.of(each, rulebook or Rulebook(), prefix=prefix))
        asked = of_middleware(each)
        if checks_anybody(asked):
            found.append(_authentication(asked, endpoint, authentications))
        maker = _MAKERS.get(each.type)
        if maker is not None:
            found.append(maker(each, pipeline, prefix))
    return found


def checks_anybody(asked: Authentication | None) -> TypeGuard[Authentication]:
    return asked is not None and asked.method != "none"


def _authentication(
    asked: Authentication, endpoint: Endpoint, authentications: Authentications
) -> RequireAuthentication:
    options = endpoint.options
    readers = CrossOrigin(options.allow_origins) if isinstance(options, DicomwebOptions) else None
    return RequireAuthentication(authentications.gate(asked), endpoint.name, cross_origin=readers)


@dataclass(frozen=True, slots=True)
class Passthru:
    """Lets everything pass, and says so."""

    left: bool
    right: bool

    async def handle(self, request: Request, proceed: Handler) -> Response:
        for mark, passed in ((PASSED_LEFT, self.left), (PASSED_RIGHT, self.right)):
            if passed:
                request.state[mark] = True
        return await proceed(request)


@dataclass(frozen=True, slots=True)
class PathRule:
    allow: bool
    pattern: PathPattern


class PathFilter:
    """Answers 404, without a body, to paths that no rule allows; the first rule that matches decides.

    Paths are those below the prefix, decoded. A segment that turns into others for somebody who decodes it a second
    time, or decodes %2F, matches no rule.
    """

    def __init__(self, rules: Sequence[PathRule], *, prefix: str = "") -> None:
        self._rules = tuple(rules)
        self._prefix = prefix

    @classmethod
    def of(cls, options: PathFilterOptions, *, prefix: str) -> PathFilter:
        """Raises ValueError."""
        rules = []
        for rule in options.rules:
            if isinstance(rule, str):
                rules.append(PathRule(True, PathPattern.parse(rule)))
                continue
            if len(rule) != 1 or next(iter(rule)) not in ("allow", "deny"):
                raise ValueError("a rule is a path, { allow = path } or { deny = path }")
            verdict, pattern = next(iter(rule.items()))
            rules.append(PathRule(verdict == "allow", PathPattern.parse(pattern)))
        return cls(rules, prefix=prefix)

    async def handle(self, request: Request, proceed: Handler) -> Response:
        path = path_below(request, self._prefix)
        if is_plain(path):
            for rule in self._rules:
                if rule.pattern.matches(path):
                    return await proceed(request) if rule.allow else Response(404)
        return Response(404)


def _passthru(middleware: Middleware, pipeline: Pipeline, prefix: str) -> HttpMiddleware:
    return Passthru(middleware in pipeline.left, middleware in pipeline.right)


def _path_filter(middleware: Middleware, pipeline: Pipeline, prefix: str) -> HttpMiddleware:
    assert isinstance(middleware.options, PathFilterOptions)
    try:
        return PathFilter.of(middleware.options, prefix=prefix)
    except ValueError as error:
        raise ConfigError([middleware.origin.problem("options.rules", str(error))]) from error


_MAKERS: Final[dict[str, Callable[[Middleware, Pipeline, str], HttpMiddleware]]] = {
    "passthru": _passthru,
    "path_filter": _path_filter,
}
