"""What a DICOMweb service can do, for programs: the answer to OPTIONS (PS3.18 §8.9, Annex H).

WADL for those who ask for it, else the same in JSON, for which the standard names no form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Final
from xml.sax.saxutils import quoteattr

import msgspec

from harmony import __version__
from harmony.http import Request
from harmony.http.accept import Offer, choose

__all__ = ["Capabilities", "Capability"]

KEPT: Final = 8
WADL: Final = "application/vnd.sun.wadl+xml"
OFFERS: Final = (
    Offer("application/json", "json", also=("application/dicom+json",)),
    Offer(WADL, "wadl", also=("application/xml", "text/xml")),
)


@dataclass(frozen=True, slots=True)
class Capability:
    """What a method does at a path, which may have {parameters}."""

    method: str
    path: str
    name: str
    produces: tuple[str, ...]


class Capabilities:
    """What one service can do. Documents are kept for the few names that a service is called by."""

    def __init__(self, listed: Sequence[Capability]) -> None:
        self._json = lru_cache(maxsize=KEPT)(partial(_json, tuple(listed)))
        self._wadl = lru_cache(maxsize=KEPT)(partial(_wadl, tuple(listed)))

    def document(self, request: Request, root: str) -> tuple[str, bytes]:
        """Content-Type and body. root: the URL of the service. Who accepts neither form gets JSON (RFC 9110
        §12.4.1)."""
        choice = choose(request.headers.get("accept"), OFFERS)
        if choice is not None and choice.value == "wadl":
            return WADL, self._wadl(root)
        return "application/json", self._json(root)


def _by_path(listed: Sequence[Capability]) -> dict[str, list[Capability]]:
    found: dict[str, list[Capability]] = {}
    for each in listed:
        found.setdefault(each.path.replace("*}", "}"), []).append(each)
    return found


def _json(listed: Sequence[Capability], root: str) -> bytes:
    resources: list[dict[str, Any]] = [
        {
            "path": path,
            "methods": [
                {"method": each.method, "name": each.name, "produces": each.produces} for each in methods
            ],
        }
        for path, methods in _by_path(listed).items()
    ]
    return msgspec.json.encode({"server": f"harmony/{__version__}", "base": root, "resources": resources})


def _wadl(listed: Sequence[Capability], root: str) -> bytes:
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        '<application xmlns="http://wadl.dev.java.net/2009/02">',
        f"<resources base={quoteattr(root + '/')}>",
    ]
    for path, methods in _by_path(listed).items():
        lines.append(f"<resource path={quoteattr(path.removeprefix('/'))}>")
        for each in methods:
            types = "".join(f"<representation mediaType={quoteattr(one)}/>" for one in each.produces)
            lines.append(
                f"<method name={quoteattr(each.method)} id={quoteattr(each.name)}>"
                f"<response>{types}</response></method>"
            )
        lines.append("</resource>")
    return "\n".join([*lines, "</resources>", "</application>", ""]).encode()
