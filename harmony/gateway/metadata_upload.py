"""Instances that come as metadata and bulk data, put together again (PS3.18 §10.5, §8.6.1.2, Annex F).

The body of such a store begins with a JSON array of data sets in which large values are a BulkDataURI; a part for each
follows, whose Content-Location is that URI:

    metadata.add(body)                                     the first part
    wanted = {uri for model in metadata for uri in bulk_data_uris(model)}
    await spool.add(location, media_type, part)            each of the others that is wanted
    instances = [spool.instance(model) for model in metadata]

The JSON is held, bulk data never: it waits in an unnamed file, as an instance can only be built when all of it is there
and any part may be the last. Native pixel data become Explicit VR Little Endian. Compressed frames, one part each, are
encapsulated as they are, in the transfer syntax that their media type says (PS3.18 §8.7.3.3).

Not here: image/png and image/gif, which would have to be decoded; application/dicom+xml.
"""

from __future__ import annotations

import asyncio
import base64
import os
import tempfile
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self, TypeVar

import msgspec

from harmony.dicom.json_model import PIXEL_DATA, Element, Model, ModelError, tag_of, text_of, texts_of
from harmony.dicom.value_layout import lay_out
from harmony.dimse.scu import Instance
from harmony.dimse.sop_class import (
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
)
from harmony.dimse.status import DimseError, Status
from harmony.gateway.store_report import SOPInstance
from harmony.http import HTTPError
from harmony.http.media_type import MediaType

__all__ = ["BulkSpool", "Metadata", "bulk_data_uris", "described"]

T = TypeVar("T")

TRANSFER_SYNTAX_NOT_SUPPORTED: Final = 0xC122
"""PS3.18 Annex I."""

OCTET_STREAM: Final = "application/octet-stream"

# PS3.18 §8.7.3.3, with the default of each; the two with x- are what they were called before.
_TRANSFER_SYNTAXES: Final = {
    "image/jpeg": "1.2.840.10008.1.2.4.70",
    "image/dicom-rle": "1.2.840.10008.1.2.5",
    "image/x-dicom-rle": "1.2.840.10008.1.2.5",
    "image/jls": "1.2.840.10008.1.2.4.80",
    "image/x-jls": "1.2.840.10008.1.2.4.80",
    "image/jp2": "1.2.840.10008.1.2.4.90",
    "image/jpx": "1.2.840.10008.1.2.4.92",
    "image/jphc": "1.2.840.10008.1.2.4.201",
    "video/mpeg": "1.2.840.10008.1.2.4.101",
    "video/mp4": "1.2.840.10008.1.2.4.102",
    "video/h265": "1.2.840.10008.1.2.4.107",
}

_LITTLE_ENDIAN: Final = (
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
)
"""In all of them native pixel data are the same bytes."""

MAXIMUM_INLINED_BYTES: Final = 16 * 1024 * 1024
"""Of bulk data inside the sequences of one instance: icons and lookup tables, not images."""

PIECE_BYTES: Final = 256 * 1024

_SOP_CLASS, _SOP_INSTANCE, _STUDY, _SERIES = 0x00080016, 0x00080018, 0x0020000D, 0x0020000E
_NUMBER_OF_FRAMES: Final = 0x00280008


class Metadata:
    """The data sets of one request, decoded one at a time: Python objects are ten times as large as their JSON."""

    def __init__(self) -> None:
        self._encoded: list[msgspec.Raw] = []

    def add(self, body: bytes) -> None:
        """body: JSON, an array of data sets or a single one. Raises HTTPError 400, whose message has no content."""
        if body.lstrip(b" \t\r\n").startswith(b"{"):
            self._encoded.append(msgspec.Raw(body))
        else:
            self._encoded += _decode(body, list[msgspec.Raw])

    def __len__(self) -> int:
        return len(self._encoded)

    def __iter__(self) -> Iterator[Model]:
        """Raises HTTPError 400 for one that is no object."""
        for encoded in self._encoded:
            yield _canonical(_decode(encoded, dict[str, Any]))


def _decode(encoded: bytes | msgspec.Raw, expected: type[T]) -> T:
    try:
        return msgspec.json.decode(encoded, type=expected)
    except RecursionError:
        raise HTTPError(400, "the metadata are nested too deep") from None
    except msgspec.ValidationError as error:
        raise HTTPError(400, "the metadata are not an array of DICOM JSON objects (PS3.18 §F.2)") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        # msgspec says where, never what.
        where = str(error) if isinstance(error, msgspec.DecodeError) else "text is not UTF-8"
        raise HTTPError(400, f"the metadata are not JSON: {where}") from error


def _canonical(model: dict[str, Any]) -> Model:
    """With upper-case tags at the top level, where they are looked for. Others stay, for the encoder to refuse."""
    found: dict[str, Any] = {}
    for name, element in model.items():
        try:
            key = f"{tag_of(name):08X}"
        except ValueError:
            key = name
        found[key] = element if isinstance(element, dict) else {"vr": "UN", "Value": element}
    return found


def described(model: Model) -> SOPInstance:
    """Which instance the metadata are of."""
    uids = [text_of(model, tag) for tag in (_SOP_CLASS, _SOP_INSTANCE, _STUDY, _SERIES)]
    return SOPInstance(*(uid.strip(" \0") for uid in uids))


def bulk_data_uris(model: Model) -> Iterator[str]:
    for _, element in _references(model):
        yield element["BulkDataURI"]


def _references(model: Model) -> Iterator[tuple[str, Element]]:
    """Elements whose value is elsewhere, with their tag; "" inside of sequences."""
    waiting: list[tuple[bool, dict[str, Any]]] = [(True, model)]
    while waiting:
        outermost, elements = waiting.pop()
        for tag, element in elements.items():
            if not isinstance(element, dict):
                continue
            if isinstance(element.get("BulkDataURI"), str):
                yield tag if outermost else "", element
            items = element.get("Value")
            if isinstance(items, list):
                waiting += [(False, item) for item in items if isinstance(item, dict)]


@dataclass(frozen=True, slots=True)
class Extent:
    """Where a part lies in the file."""

    offset: int
    size_bytes: int


class BulkSpool:
    """The bulk data of one request. folder: where the file lies; None: where the system keeps temporary ones.

    locate: what makes two spellings of a location the same, such as resolving relative ones.
    """

    def __init__(
        self, *, folder: Path | None = None, locate: Callable[[str], str] = lambda location: location
    ) -> None:
        self._folder = folder
        self._locate = locate
        self._file: IO[bytes] | None = None
        self._size_bytes = 0
        self._parts: dict[str, tuple[MediaType, list[Extent]]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is not None:
            await asyncio.to_thread(self._file.close)

    async def add(self, location: str, media_type: MediaType, content: AsyncIterable[bytes]) -> None:
        """Keep one part. Several of one location follow each other: frames. Raises HTTPError 507 for a full disk."""
        begin = self._size_bytes
        try:
            file = self._file
            if file is None:
                file = self._file = await asyncio.to_thread(_temporary_file, self._folder)
            async for chunk in content:
                rest = memoryview(chunk)
                while rest:
                    written = os.pwrite(file.fileno(), rest, self._size_bytes)
                    self._size_bytes += written
                    rest = rest[written:]
        except OSError as error:
            raise HTTPError(
                507, f"bulk data cannot be kept until they are complete: {error.strerror}"
            ) from error
        _, extents = self._parts.setdefault(self._locate(location), (media_type, []))
        extents.append(Extent(begin, self._size_bytes - begin))

    def instance(self, model: Model) -> Instance:
        """Build an instance. Raises DimseError when bulk data are missing, or something has no encoding."""
        values: dict[int, list[Extent]] = {}
        transfer_syntax_uid = EXPLICIT_VR_LITTLE_ENDIAN
        inlined, video = 0, False
        for tag, element in _references(model):
            media_type, extents = self._part(element["BulkDataURI"])
            if tag == f"{PIXEL_DATA:08X}":
                transfer_syntax_uid = _transfer_syntax(media_type)
                video = media_type.essence.startswith("video/")
            elif media_type.essence.startswith(("image/", "video/")):
                raise DimseError(TRANSFER_SYNTAX_NOT_SUPPORTED, "an image that is not Pixel Data")
            if tag:
                values[_tag_of(tag)] = extents
            else:
                inlined += sum(extent.size_bytes for extent in extents)
                if inlined > MAXIMUM_INLINED_BYTES:
                    raise DimseError(
                        Status.OUT_OF_RESOURCES, f"more than {MAXIMUM_INLINED_BYTES} bytes in sequences"
                    )
                element["InlineBinary"] = self._inline(extents)
                del element["BulkDataURI"]
        compressed = transfer_syntax_uid != EXPLICIT_VR_LITTLE_ENDIAN
        if compressed:
            _require_frames(model, len(values[PIXEL_DATA]), video=video)
        try:
            layout = lay_out(model, values, fragments=compressed)
        except ModelError as error:
            raise DimseError(Status.CANNOT_UNDERSTAND, str(error)) from error
        uids = described(model)
        return Instance(uids.sop_class_uid, uids.sop_instance_uid, transfer_syntax_uid, self._data(layout))

    def _part(self, uri: str) -> tuple[MediaType, list[Extent]]:
        try:
            return self._parts[self._locate(uri)]
        except KeyError:
            raise DimseError(Status.CANNOT_UNDERSTAND, "bulk data are missing in the request") from None

    def _inline(self, extents: list[Extent]) -> str:
        return base64.b64encode(
            b"".join(self._read(each.offset, each.size_bytes) for each in extents)
        ).decode()

    async def _data(self, layout: list[bytes | Extent]) -> AsyncGenerator[bytes, None]:
        for piece in layout:
            if isinstance(piece, bytes):
                yield piece
                continue
            for at in range(0, piece.size_bytes, PIECE_BYTES):
                yield self._read(piece.offset + at, min(PIECE_BYTES, piece.size_bytes - at))

    def _read(self, offset: int, size: int) -> bytes:
        if not size:
            return b""
        assert self._file is not None
        data = os.pread(self._file.fileno(), size, offset)
        if len(data) != size:
            raise EOFError(f"bulk data of {size} bytes at {offset}, {len(data)} are there")
        return data


def _temporary_file(folder: Path | None) -> IO[bytes]:
    return tempfile.TemporaryFile(dir=folder)


def _tag_of(name: str) -> int:
    try:
        return tag_of(name)
    except ValueError as error:
        raise DimseError(Status.CANNOT_UNDERSTAND, "an attribute that has no such name") from error


def _transfer_syntax(media_type: MediaType) -> str:
    """Of the instance whose pixel data have this media type."""
    stated = media_type.parameters.get("transfer-syntax", "")
    if media_type.essence == OCTET_STREAM:
        return EXPLICIT_VR_LITTLE_ENDIAN if stated in ("", *_LITTLE_ENDIAN) else stated
    default = _TRANSFER_SYNTAXES.get(media_type.essence)
    if default is None:
        raise DimseError(TRANSFER_SYNTAX_NOT_SUPPORTED, f"Pixel Data of media type {media_type.essence[:64]}")
    return stated or default


def _require_frames(model: Model, parts: int, *, video: bool) -> None:
    """A part for each frame, unless it is a video."""
    stated = texts_of(model, _NUMBER_OF_FRAMES)
    frames = int(stated[0]) if stated and stated[0].strip().isdecimal() and not video else 1
    if parts != frames:
        raise DimseError(Status.CANNOT_UNDERSTAND, f"{parts} parts of compressed pixel data, {frames} frames")
