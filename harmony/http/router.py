"""Which handler answers a path: a tree of segments.

Patterns are "/jmix/api/jmix/{id}/manifest" or, with a rest that may also be empty, "/studies/{rest*}". At each segment
a literal wins over a parameter and a parameter over a rest, so the longest prefix wins and the order of registration
never matters; two routes of the same shape and method are a conflict at registration, not a surprise at run time. The
most specific path decides: if it has no such method the answer is 405, even when a wider pattern would have taken it.

A trailing slash on the request matches too. HEAD falls back to GET (the server drops the body), OPTIONS is answered
with Allow unless somebody registered it. Matching is on decoded segments; a parameter may hold "/" (from %2F).
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

from harmony.http.message import Request, Response, error_response

__all__ = ["Handler", "Route", "RouteConflict", "Router", "normalize_prefix"]

Handler = Callable[[Request], Awaitable[Response]]

_PARAMETER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)(\*?)\}")


@dataclass(frozen=True, slots=True)
class Route:
    """One registration, as `Router.routes` lists it."""

    methods: tuple[str, ...]
    pattern: str
    handler: Handler
    name: str = ""
    description: str = ""


class RouteConflict(ValueError):
    """Two routes would answer the same method on the same paths. Carries both."""

    def __init__(self, method: str, *, existing: Route, added: Route) -> None:
        super().__init__(
            f"{method} {added.pattern} of {added.name or 'an unnamed route'} is already taken by "
            f"{existing.pattern} of {existing.name or 'an unnamed route'}"
        )
        self.method = method
        self.existing = existing
        self.added = added


@dataclass(slots=True)
class _Node:
    literals: dict[str, _Node] = field(default_factory=dict)
    parameter: _Node | None = None
    rest: _Node | None = None
    routes: dict[str, tuple[Route, tuple[str, ...]]] = field(
        default_factory=dict
    )  # method -> route, its names


class Router:
    """A handler that hands requests on; give it to HTTPServer."""

    def __init__(self) -> None:
        self._root = _Node()
        self._routes: list[Route] = []

    def add(
        self,
        methods: str | Iterable[str],
        pattern: str,
        handler: Handler,
        *,
        name: str = "",
        description: str = "",
    ) -> Route:
        """Register `handler` for these methods; all of them or, on RouteConflict, none.

        Raises ValueError for a pattern that is not one.
        """
        chosen = (methods,) if isinstance(methods, str) else tuple(methods)
        route = Route(tuple(m.upper() for m in chosen), normalize_prefix(pattern), handler, name, description)
        node, names = self._place(route.pattern)
        for method in route.methods:
            if method in node.routes:
                raise RouteConflict(method, existing=node.routes[method][0], added=route)
        for method in route.methods:
            node.routes[method] = (route, names)
        self._routes.append(route)
        return route

    def routes(self) -> list[Route]:
        """Every route, sorted by pattern."""
        return sorted(self._routes, key=lambda route: (route.pattern, route.methods))

    async def __call__(self, request: Request) -> Response:
        """Answer `request`: its handler's response, or 404, 405 or OPTIONS as JSON."""
        found = _find(self._root, _trimmed(request.segments), ())
        if found is None:
            return error_response(404, "Not found")
        node, values = found
        entry = node.routes.get(request.method)
        if entry is None and request.method == "HEAD":
            entry = node.routes.get("GET")
        if entry is not None:
            route, names = entry
            request.path_parameters = dict(zip(names, values, strict=True))
            request.endpoint = route.name
            return await route.handler(request)
        allow = {"Allow": ", ".join(_allowed(node))}
        if request.method == "OPTIONS":
            return Response(200, allow)
        refusal = error_response(405, f"Method {request.method} not allowed")
        refusal.headers = refusal.headers.set("Allow", allow["Allow"])
        return refusal

    def _place(self, pattern: str) -> tuple[_Node, tuple[str, ...]]:
        """The node of `pattern`, made if need be, and the names of its parameters."""
        node, names = self._root, []
        segments = _trimmed(tuple(pattern[1:].split("/")))
        for index, segment in enumerate(segments):
            parameter = _PARAMETER.fullmatch(segment)
            if parameter is None:
                if "{" in segment or "}" in segment or not segment:
                    raise ValueError(
                        f"segment {segment!r} of pattern {pattern!r}: expected text, {{name}} or {{name*}}"
                    )
                node = node.literals.setdefault(segment, _Node())
                continue
            name, star = parameter.groups()
            if name in names:
                raise ValueError(f"pattern {pattern!r} names {{{name}}} twice")
            names.append(name)
            if not star:
                node.parameter = node = node.parameter or _Node()
            elif index == len(segments) - 1:
                node.rest = node = node.rest or _Node()
            else:
                raise ValueError(f"pattern {pattern!r}: {{{name}*}} must be the last segment")
        return node, tuple(names)


def normalize_prefix(prefix: str) -> str:
    """With a leading slash and without a trailing one; "/" for none at all."""
    return "/" + prefix.strip("/")


def _find(
    node: _Node, segments: tuple[str, ...], values: tuple[str, ...]
) -> tuple[_Node, tuple[str, ...]] | None:
    """The most specific node with routes, and the values of its parameters. Tries at most two ways per segment."""
    if segments:
        head, tail = segments[0], segments[1:]
        literal = node.literals.get(head)
        if literal is not None and (found := _find(literal, tail, values)):
            return found
        if node.parameter is not None and head and (found := _find(node.parameter, tail, (*values, head))):
            return found
    elif node.routes:
        return node, values
    if node.rest is not None:
        return node.rest, (*values, "/".join(segments))
    return None


def _trimmed(segments: tuple[str, ...]) -> tuple[str, ...]:
    """Without the empty segment that a trailing slash (or "/" itself) leaves."""
    return segments[:-1] if segments and segments[-1] == "" else segments


def _allowed(node: _Node) -> list[str]:
    methods = set(node.routes) | {"OPTIONS"}
    if "GET" in methods:
        methods.add("HEAD")
    return sorted(methods)
