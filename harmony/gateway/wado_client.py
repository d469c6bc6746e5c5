"""What WADO-RS brings: files in a multipart response, read while they arrive (PS3.18 §10.4, §8.7.3).

    async with aclosing(files_of(ResponseBody(response), response.headers)) as files:
        async for file in files:
            instance = await uploaded_instance(WatchedContent(file))

A response may as well be one file. Called by `dicomweb_upstream`, which asks.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote

from harmony.archive.index import UniqueKeys
from harmony.dicom.json_model import Model, text_of, texts_of
from harmony.http import Headers, HTTPError
from harmony.http.client import UpstreamError, UpstreamStream
from harmony.http.media_type import MediaType, parse_media_type
from harmony.http.multipart import multipart_boundary, read_parts
from harmony.ul.errors import AssociationError

__all__ = [
    "DICOM",
    "RELATED_DICOM",
    "SURVEYED",
    "ResponseBody",
    "Survey",
    "WatchedContent",
    "files_of",
    "lost",
]

DICOM: Final = "application/dicom"
RELATED_DICOM: Final = f'multipart/related; type="{DICOM}"; transfer-syntax=*'
"""As the server has them, whatever that is."""

_STUDY, _SERIES, _INSTANCE, _SOP_CLASS = 0x0020000D, 0x0020000E, 0x00080018, 0x00080016
_AVAILABLE_TRANSFER_SYNTAX: Final = 0x00083002
SURVEYED: Final = (_SOP_CLASS, _INSTANCE, _STUDY, _SERIES, _AVAILABLE_TRANSFER_SYNTAX)
"""What a Survey wants to know of each instance."""


@dataclass(slots=True)
class Survey:
    """What a retrieve will bring."""

    uids: dict[str, None] = field(default_factory=dict)
    sop_classes: dict[str, None] = field(default_factory=dict)
    transfer_syntaxes: dict[str, None] = field(default_factory=dict)
    paths: dict[str, None] = field(default_factory=dict)
    """Of the requests: whole studies or series where those are what is wanted."""

    def add(self, instance: Model, keys: UniqueKeys) -> None:
        study, series, uid = (text_of(instance, tag) for tag in (_STUDY, _SERIES, _INSTANCE))
        if not study or not series or not uid:
            return
        self.uids[uid] = None
        self.sop_classes.update(dict.fromkeys(filter(None, texts_of(instance, _SOP_CLASS))))
        syntaxes = texts_of(instance, _AVAILABLE_TRANSFER_SYNTAX)
        self.transfer_syntaxes.update(dict.fromkeys(filter(None, syntaxes)))
        path = f"/studies/{quote(study, safe='')}"
        if keys.series_instance_uids is not None or keys.sop_instance_uids is not None:
            path += f"/series/{quote(series, safe='')}"
        if keys.sop_instance_uids is not None:
            path += f"/instances/{quote(uid, safe='')}"
        self.paths[path] = None


class ResponseBody:
    """The body of a response, whose end before its time is an AssociationError."""

    def __init__(self, response: UpstreamStream) -> None:
        self._chunks = aiter(response)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await anext(self._chunks)
        except UpstreamError as error:
            raise lost(error) from error


class WatchedContent:
    """The content of a file, and what went wrong with it: whoever sends it on does not tell."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self.error: Exception | None = None
        self._chunks = chunks

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await anext(self._chunks)
        except (HTTPError, AssociationError) as error:
            self.error = error
            raise


async def files_of(
    body: AsyncIterator[bytes], headers: Headers
) -> AsyncGenerator[AsyncIterator[bytes], None]:
    """The parts of a response, or the whole of one that is a file itself. Raises HTTPError for what is neither."""
    media_type = _media_type(headers)
    if media_type.essence == DICOM:
        yield body
    elif media_type.essence.startswith("multipart/"):
        async with aclosing(read_parts(body, multipart_boundary(media_type))) as parts:
            async for part in parts:
                yield part
    else:
        raise HTTPError(400, "neither multipart nor a DICOM file")


def _media_type(headers: Headers) -> MediaType:
    try:
        return parse_media_type(headers.get("Content-Type") or "")
    except ValueError as error:
        raise HTTPError(400, f"Content-Type: {error}") from error


def lost(error: UpstreamError) -> AssociationError:
    return AssociationError(str(error))
