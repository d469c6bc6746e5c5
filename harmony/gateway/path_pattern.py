"""Patterns for the paths of requests, below the prefix of an endpoint: what `path_filter` and rules are written in.

`/a/{id}` is any one segment in place of `{id}`; `/a/{*rest}` and `/a/*` are `/a` and everything below it. Slashes at
the end do not count. Segments are compared decoded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from harmony.http import Request, normalize_prefix

__all__ = ["PathPattern", "is_plain", "path_below"]


@dataclass(frozen=True, slots=True)
class PathPattern:
    segments: tuple[str, ...]
    rest: bool

    @classmethod
    def parse(cls, pattern: str) -> Self:
        """Raises ValueError."""
        segments = tuple(segment for segment in pattern.split("/") if segment)
        rest = bool(segments) and (
            segments[-1] == "*" or (segments[-1].startswith("{*") and segments[-1].endswith("}"))
        )
        if rest:
            segments = segments[:-1]
        for segment in segments:
            variable = len(segment) > 2 and segment[0] == "{" and segment[-1] == "}"
            if "*" in segment or not (variable or ("{" not in segment and "}" not in segment)):
                raise ValueError(f'pattern "{pattern}": expected text, {{name}}, or {{*name}} at the end')
        return cls(segments, rest)

    def matches(self, path: tuple[str, ...]) -> bool:
        if len(path) < len(self.segments) or (len(path) > len(self.segments) and not self.rest):
            return False
        return all(
            mine[0] == "{" or mine == theirs for mine, theirs in zip(self.segments, path, strict=False)
        )


def path_below(request: Request, prefix: str) -> tuple[str, ...]:
    """The decoded segments of a path behind the prefix of the endpoint."""
    skipped = len([segment for segment in normalize_prefix(prefix).split("/") if segment])
    path = request.segments[skipped:]
    return path[:-1] if path and not path[-1] else path  # a trailing slash, or nothing at all


def is_plain(path: tuple[str, ...]) -> bool:
    """Whether no segment turns into others for somebody who decodes it a second time, or decodes %2F."""
    return all(segment and not any(character in segment for character in "/\\%") for segment in path)
