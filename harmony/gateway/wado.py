"""WADO-RS and WADO-URI over any backend (PS3.18 §10.4, §9): instances, metadata, frames, bulk data.

What goes out is what the backend has, while it comes; nothing is spooled, and nothing is decoded or rendered. What can
be had in which media type:

    instances   multipart/related; type="application/dicom", application/zip; application/dicom for one
    metadata    application/dicom+json; multipart/related; type="application/dicom+xml"; with a BulkDataURI for each
                long value
    frames      native: application/octet-stream; encapsulated: the media type of the transfer syntax; as
                multipart/related, and a single one as a single part
    bulk data   application/octet-stream; pixel data as all their frames when they are encapsulated

A body that looks complete is complete: what goes wrong after it began breaks the connection off. Status 206 says that
some instances are left out, because they cannot be read or not be had in the transfer syntax that was asked for.

Not here: routes and their prefix (`harmony.gateway.dicomweb`), searching, storing, rendering (`rendered`).
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from harmony import __version__
from harmony.archive.index import StoredInstance, UniqueKeys
from harmony.archive.levels import Level
from harmony.dicom.element_stream import parse_path
from harmony.dicom.frames import FrameError, frame_numbers
from harmony.dicom.json_model import DataSetError
from harmony.dicom.transcode import NATIVE_TRANSFER_SYNTAXES, TranscodeError
from harmony.dicom.uid import is_valid_uid
from harmony.dimse.cancellation import close_iterator
from harmony.dimse.scu import Instance
from harmony.dimse.sop_class import EXPLICIT_VR_LITTLE_ENDIAN
from harmony.gateway.backend import Backend, Retrieve
from harmony.gateway.backend_errors import BACKEND_ERRORS, backend_failure
from harmony.gateway.instance_files import (
    DICOM,
    DeliveredInstances,
    FileParts,
    ZippedFiles,
    dicom_type,
    file_content,
    file_size,
    syntax_for,
)
from harmony.gateway.instance_headers import instance_url
from harmony.gateway.metadata_bodies import HeadersOfInstances, MetadataArray, NativeModels
from harmony.gateway.pixel_parts import (
    ArrivingPixelData,
    ArrivingValue,
    PixelData,
    StoredPixelData,
    can_be_read_in_place,
)
from harmony.http import FileBody, HTTPError, Request, Response
from harmony.http.accept import (
    ANY_TRANSFER_SYNTAX,
    DEFAULT_TRANSFER_SYNTAX,
    Choice,
    Offer,
    TransferSyntaxes,
    negotiate,
)
from harmony.http.multipart_writer import OutgoingPart, multipart_response

__all__ = ["Wado", "retrieve_for", "uids_of_uri"]

OCTET_STREAM: Final = "application/octet-stream"
METADATA: Final = "application/dicom+json"
METADATA_IN_XML: Final = "application/dicom+xml"
MEDIA_TYPES: Final[
    dict[str, tuple[str, ...]]
] = {  # PS3.18 Table 8.7.3-5; by suffix of the transfer syntax, with what clients call them too
    **dict.fromkeys(("4.50", "4.51", "4.57", "4.70"), ("image/jpeg",)),
    **dict.fromkeys(("4.80", "4.81"), ("image/jls", "image/x-jls")),
    **dict.fromkeys(("4.90", "4.91"), ("image/jp2",)),
    **dict.fromkeys(("4.92", "4.93"), ("image/jpx",)),
    **dict.fromkeys(("4.201", "4.202", "4.203"), ("image/jphc",)),
    **dict.fromkeys(("4.110", "4.111", "4.112"), ("image/jxl",)),
    **dict.fromkeys(("4.100", "4.101", "4.100.1", "4.101.1"), ("video/mpeg",)),
    **dict.fromkeys(
        (f"4.{number}{more}" for number in range(102, 107) for more in ("", ".1")), ("video/mp4",)
    ),
    **dict.fromkeys(("4.107", "4.108"), ("video/H265",)),
    "5": ("image/dicom-rle", "image/x-dicom-rle"),
}
_SYNTAX_ROOT: Final = "1.2.840.10008.1.2."
_ONLY_OF_PICTURES: Final = ("frameNumber", "region", "presentationUID", "presentationSeriesUID")
"""What a client that asks for a file must not get the whole of instead (PS3.18 §9.1.2.2)."""
_VARY: Final = {"Vary": "Accept"}

_MULTIPART, _SINGLE, _ZIP = "multipart", "single", "zip"
_DICOM_OFFERS: Final = (
    Offer(f'multipart/related; type="{DICOM}"', _MULTIPART, transfer_syntaxes=True),
    Offer("application/zip", _ZIP, transfer_syntaxes=True),
)
_SINGLE_DICOM_OFFER: Final = Offer(DICOM, _SINGLE, transfer_syntaxes=True)
_METADATA_OFFERS: Final = (
    Offer(METADATA, "", also=("application/json",)),
    Offer(f'multipart/related; type="{METADATA_IN_XML}"', "", also=(METADATA_IN_XML,)),
)

PIXEL_DATA: Final = (0x7FE00010,)


class Wado:
    """name: of what is behind this, as clients may know it.

    uids: of the study, series and instance, as many as the resource has. root: the URL of the service
    (`harmony.gateway.service_root`). All methods raise HTTPError.
    """

    def __init__(self, backend: Backend, *, name: str = "the archive") -> None:
        self._backend = backend
        self._name = name

    async def retrieve(self, request: Request, uids: Sequence[str], root: str) -> Response:
        """The instances of a study or series, or one."""
        offers = (*_DICOM_OFFERS, _SINGLE_DICOM_OFFER) if len(uids) == 3 else _DICOM_OFFERS
        choice = negotiate(request, offers)
        try:
            return await self._instances(choice, retrieve_for(uids), uids, root)
        except BACKEND_ERRORS as error:
            raise backend_failure(error, self._name) from error

    async def metadata(self, request: Request, uids: Sequence[str], root: str) -> Response:
        """The headers of instances, in an array. With an ETag for one instance, and where the backend knows a version
        of many."""
        in_xml = negotiate(request, _METADATA_OFFERS).media_type != METADATA
        retrieve = retrieve_for(uids)
        headers = {"Content-Type": METADATA} | _VARY
        try:
            if (
                len(uids) < 3
                and not in_xml
                and (version := await self._backend.version(retrieve)) is not None
            ):
                headers["ETag"] = _etag_of(version, root)
                if _is_known(request, headers["ETag"]):
                    return Response(304, headers)
            found = HeadersOfInstances(self._backend.metadata(retrieve, root))
            await found.begin()
            if in_xml:
                return multipart_response(
                    NativeModels(found), root_type=METADATA_IN_XML, status=found.status, headers=_VARY
                )
            body = MetadataArray(found)
            if len(uids) < 3:
                if found.status != 200:
                    headers.pop("ETag", None)
                return Response(found.status, headers, body)
            content = b"".join([chunk async for chunk in body])
        except BACKEND_ERRORS as error:
            raise backend_failure(error, self._name) from error
        headers["ETag"] = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        if _is_known(request, headers["ETag"]):
            return Response(304, headers)
        return Response(found.status, headers, content)

    async def frames(self, request: Request, uids: Sequence[str], frames: str, root: str) -> Response:
        """frames: the list as it is in the URL."""
        numbers = frame_numbers(frames)
        if numbers is None:
            raise HTTPError(400, "the frame list must be numbers from 1, ascending, separated by commas")
        retrieve = retrieve_for(uids)
        try:
            pixels = await self._stored_pixels(retrieve, numbers)
            if pixels is None:
                instances, instance = await self._first(retrieve)
                pixels = ArrivingPixelData(instances, instance, numbers)
                await _begin(pixels)
        except BACKEND_ERRORS as error:
            raise backend_failure(error, self._name) from error
        return await _pixel_response(request, pixels, f"{instance_url(root, uids)}/frames/", by_number=True)

    async def bulkdata(self, request: Request, uids: Sequence[str], path: str, root: str) -> Response:
        """path: as the metadata have it in a BulkDataURI, behind `bulkdata/`."""
        parsed = parse_path(path)
        retrieve = retrieve_for(uids)
        if parsed is None:
            raise HTTPError(404, "Not found")
        try:
            pixels = await self._stored_pixels(retrieve, None) if parsed == PIXEL_DATA else None
            if pixels is None:
                instances, instance = await self._first(retrieve)
                if parsed == PIXEL_DATA and instance.transfer_syntax_uid not in NATIVE_TRANSFER_SYNTAXES:
                    pixels = ArrivingPixelData(instances, instance, None)
                else:
                    pixels = ArrivingValue(instances, instance, parsed)
                await _begin(pixels)
        except BACKEND_ERRORS as error:
            raise backend_failure(error, self._name) from error
        return await _pixel_response(
            request, pixels, f"{instance_url(root, uids)}/bulkdata/{path}", by_number=False
        )

    async def _stored_pixels(self, retrieve: Retrieve, numbers: Sequence[int] | None) -> PixelData | None:
        located = await self._backend.locate(retrieve)
        if located is None or not can_be_read_in_place(located[0]):
            return None
        pixels = StoredPixelData(*located, numbers)
        await _begin(pixels)
        return pixels

    async def _first(self, retrieve: Retrieve) -> tuple[DeliveredInstances, Instance]:
        selection = await self._backend.retrieve(retrieve)
        instances = DeliveredInstances(selection, TransferSyntaxes({ANY_TRANSFER_SYNTAX: 1.0}))
        await instances.begin()
        return instances, await anext(instances)

    async def uri(self, request: Request) -> Response:
        """WADO-URI: one instance as a DICOM file."""
        query = request.query
        uids = uids_of_uri(request)
        wanted = [
            each.partition(";")[0].strip().lower()
            for each in query.all("contentType")
            for each in each.split(",")
        ]
        if not any(each in (DICOM, "application/*", "*/*") for each in wanted):
            raise HTTPError(406, f"contentType must be {DICOM}")
        for name in _ONLY_OF_PICTURES:
            if query.first(name):
                raise HTTPError(400, f"{name} is of pictures: it has no meaning with contentType={DICOM}")
        syntax = query.first("transferSyntax")
        if syntax and not is_valid_uid(syntax):
            raise HTTPError(400, "transferSyntax must be a UID")
        # One that cannot be had is answered with the default (PS3.18 §9.1.2.2.2).
        weights = {DEFAULT_TRANSFER_SYNTAX: 0.5} | ({syntax: 1.0} if syntax else {})
        choice = Choice(_SINGLE_DICOM_OFFER, 1.0, TransferSyntaxes(weights))
        try:
            return await self._instances(choice, retrieve_for(uids), uids, "")
        except BACKEND_ERRORS as error:
            raise backend_failure(error, self._name) from error

    # Instances

    async def _instances(
        self, choice: Choice[str], retrieve: Retrieve, uids: Sequence[str], root: str
    ) -> Response:
        if choice.value == _SINGLE:
            located = await self._backend.locate(retrieve)
            if located is not None:
                stored = located[0]
                if (
                    syntax_for(stored.transfer_syntax_uid, choice.transfer_syntaxes)
                    == stored.transfer_syntax_uid
                ):
                    return _file(stored)
        instances = DeliveredInstances(await self._backend.retrieve(retrieve), choice.transfer_syntaxes)
        await instances.begin()
        if choice.value == _SINGLE:
            return await _streamed_file(instances)
        if choice.value == _ZIP:
            headers = _VARY | {
                "Content-Type": "application/zip",
                "Content-Disposition": f'attachment; filename="{uids[-1]}.zip"',
            }
            return Response(instances.status, headers, ZippedFiles(instances))
        location = f"{root}/studies/{uids[0]}/series/{uids[1]}" if len(uids) > 1 else None
        parts = FileParts(instances, location=location)
        return multipart_response(parts, root_type=DICOM, status=instances.status, headers=_VARY)


def uids_of_uri(request: Request) -> list[str]:
    """The study, series and instance that a WADO-URI is about (PS3.18 §9.1.2). Raises HTTPError."""
    query = request.query
    if (query.first("requestType") or "").upper() != "WADO":
        raise HTTPError(400, "requestType must be WADO")
    names = ("studyUID", "seriesUID", "objectUID")
    uids = [query.first(name) or "" for name in names]
    for name, uid in zip(names, uids, strict=True):
        if not is_valid_uid(uid):
            raise HTTPError(400, f"{name} must be a UID")
    if query.first("anonymize"):
        raise HTTPError(501, "instances are not anonymized here")
    return uids


def retrieve_for(uids: Sequence[str]) -> Retrieve:
    """What the study, series and instance of a URL stand for. Raises HTTPError 400 for what is no UID."""
    for uid, what in zip(uids, ("study", "series", "instance"), strict=False):
        if not is_valid_uid(uid):
            raise HTTPError(400, f"the {what} of the path must be a UID")
    keys = UniqueKeys(None, *((uid,) for uid in uids))
    return Retrieve((Level.STUDY, Level.SERIES, Level.IMAGE)[len(uids) - 1], keys)


# Instances


def _file(stored: StoredInstance) -> Response:
    headers = _VARY | {"Content-Type": dicom_type(stored.transfer_syntax_uid)}
    return Response(200, headers, FileBody(stored.path))


async def _streamed_file(instances: DeliveredInstances) -> Response:
    instance = await anext(instances)
    headers = _VARY | {"Content-Type": dicom_type(instance.transfer_syntax_uid)}
    body = _Closing(_only_file(instance, instances), instances)
    return Response(200, headers, body, content_length=file_size(instance))


async def _only_file(
    instance: Instance, instances: DeliveredInstances
) -> AsyncGenerator[bytes | memoryview, None]:
    async with aclosing(file_content(instance)) as content:
        async for piece in content:
            yield piece
    async for _ in instances:  # a retrieve that comes to its end need not be cancelled
        pass


# Metadata


def _etag_of(version: str, root: str) -> str:
    """Weak, as it is of the instances and not of the answer's bytes: those depend on the program, and on the URL that
    stands in each BulkDataURI."""
    return f'W/"{hashlib.sha256(f"{__version__} {root} {version}".encode()).hexdigest()[:32]}"'


def _is_known(request: Request, etag: str) -> bool:
    """Whether If-None-Match has it (RFC 9110 §13.1.2)."""
    known = (request.headers.get("if-none-match") or "").split(",")
    return any(each.strip().removeprefix("W/") in (etag.removeprefix("W/"), "*") for each in known)


# Frames and bulk data


async def _begin(pixels: PixelData) -> None:
    try:
        await pixels.begin()
    except FrameError as error:
        await pixels.aclose()
        raise HTTPError(404, str(error)) from error
    except (DataSetError, TranscodeError) as error:
        await pixels.aclose()
        raise HTTPError(500, f"the instance cannot be read: {error}") from error
    except BaseException:
        await pixels.aclose()
        raise


async def _pixel_response(request: Request, pixels: PixelData, url: str, *, by_number: bool) -> Response:
    """by_number: the URL of a frame is url and its number."""
    try:
        form = _negotiate(request, pixels)
        if form.kind == _MULTIPART:
            parts = _Frames(pixels, form.part_type, url, by_number=by_number)
            return multipart_response(parts, root_type=form.media_type, headers=_VARY)
        part = await anext(pixels)
        location = f"{url}{part.number}" if by_number else url
        headers = _VARY | {"Content-Type": form.part_type, "Content-Location": location}
        if part.in_file is not None:
            return Response(200, headers, part.in_file)
        return Response(200, headers, _Closing(part.content, pixels), content_length=part.size_bytes)
    except BaseException:
        await pixels.aclose()
        raise


@dataclass(frozen=True, slots=True)
class _Form:
    """How to send frames."""

    kind: str
    media_type: str
    part_type: str


def _negotiate(request: Request, pixels: PixelData) -> _Form:
    """Raises HTTPError 406. Compressed frames in application/octet-stream are sent to who asks for them by
    `transfer-syntax`: as a media type that means native pixels, but many viewers ask so for whatever is stored."""
    syntax = pixels.transfer_syntax_uid if pixels.is_encapsulated else EXPLICIT_VR_LITTLE_ENDIAN
    types = MEDIA_TYPES.get(syntax.removeprefix(_SYNTAX_ROOT), ()) if pixels.is_encapsulated else ()
    forms: list[Offer[_Form]] = []
    for names in (types, (OCTET_STREAM,)):
        for name in names[:1]:
            part_type = f"{name}; transfer-syntax={syntax}" if pixels.is_encapsulated else name
            for kind, pattern in ((_MULTIPART, 'multipart/related; type="{}"'), (_SINGLE, "{}")):
                if kind == _MULTIPART or pixels.count == 1:
                    media_type, *also = (pattern.format(each) for each in names)
                    form = _Form(kind, name, part_type)
                    forms.append(Offer(media_type, form, also=tuple(also), transfer_syntaxes=True))
    while forms:
        choice = negotiate(request, forms)
        is_default = not pixels.is_encapsulated or choice.value.media_type != OCTET_STREAM
        if choice.transfer_syntaxes.weight(syntax, is_default=is_default):
            return choice.value
        forms.remove(choice.offer)
    raise HTTPError(406, f"nothing is decoded here: the pixel data are in transfer syntax {syntax}")


class _Frames:
    """Frames as the parts of a multipart body."""

    def __init__(self, pixels: PixelData, content_type: str, url: str, *, by_number: bool) -> None:
        self._pixels = pixels
        self._content_type = content_type
        self._url = url
        self._by_number = by_number

    def __aiter__(self) -> AsyncIterator[OutgoingPart]:
        return self

    async def __anext__(self) -> OutgoingPart:
        part = await anext(self._pixels)
        location = f"{self._url}{part.number}" if self._by_number else self._url
        return OutgoingPart(
            self._content_type, part.content, content_location=location, size_bytes=part.size_bytes
        )

    async def aclose(self) -> None:
        await self._pixels.aclose()


class _Closing:
    """A body that closes what it comes from, begun or not."""

    def __init__(
        self, content: AsyncIterator[bytes | memoryview], source: PixelData | DeliveredInstances
    ) -> None:
        self._content = content
        self._source = source

    def __aiter__(self) -> AsyncIterator[bytes | memoryview]:
        return self

    async def __anext__(self) -> bytes | memoryview:
        return await anext(self._content)

    async def aclose(self) -> None:
        try:
            await close_iterator(self._content)
        finally:
            await self._source.aclose()
