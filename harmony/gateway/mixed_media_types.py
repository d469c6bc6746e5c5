"""DICOM and rendered media types in one request, which PS3.18 §8.7.4 forbids: whoever wants either does not say what.

DICOM media types are here `application/dicom`, `application/dicom+json` and `application/dicom+xml`, alone or as the
type of multipart/related; rendered ones the images and videos that are asked for as they are. As the type of
multipart/related an image may be a compressed frame as well, and text is what programs list that know nothing of DICOM,
so that neither counts. Members with q=0 are not asked for.

Called by `harmony.gateway.dicomweb` for whatever is retrieved.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from harmony.http import HTTPError, Request
from harmony.http.accept import REMEMBERED_LENGTH, accepted, parse_accept
from harmony.http.media_type import MediaType

__all__ = ["refuse_mixed_media_types"]

DICOM_TYPES: Final = ("application/dicom", "application/dicom+json", "application/dicom+xml")
RENDERED_KINDS: Final = ("image", "video")


def refuse_mixed_media_types(request: Request) -> None:
    """Raises HTTPError 400 for a request that accepts both. `contentType` is the Accept of a WADO-URI."""
    for value in (accepted(request), ", ".join(request.query.all("contentType"))):
        if not value:
            continue
        mixed = _remembered(value) if len(value) <= REMEMBERED_LENGTH else _mixed(value)
        if mixed:
            raise HTTPError(400, f"{mixed} must not be acceptable at the same time")


def _mixed(accept: str) -> str:
    """The two types, if it has such."""
    wanted = [each.media_type for each in parse_accept(accept) if each.weight]
    dicom = next(filter(_is_dicom, wanted), None)
    rendered = next(filter(_is_rendered, wanted), None)
    return f"{dicom.essence} and {rendered.essence}" if dicom and rendered else ""


_remembered = lru_cache(maxsize=256)(_mixed)


def _is_dicom(wanted: MediaType) -> bool:
    multipart = wanted.essence == "multipart/related"
    return (wanted.parameters.get("type", "").lower() if multipart else wanted.essence) in DICOM_TYPES


def _is_rendered(wanted: MediaType) -> bool:
    return wanted.essence.partition("/")[0] in RENDERED_KINDS
