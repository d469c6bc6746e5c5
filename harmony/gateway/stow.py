"""STOW-RS: instances stored over HTTP (PS3.18 §10.5).

    POST  <service>/studies             of any study
    POST  <service>/studies/{study}     of this one; others are refused

A body is DICOM files, as multipart/related or a single one, or metadata in JSON followed by their bulk data
(`harmony.gateway.metadata_upload`). Files go to the backend as they arrive, whatever their size; what was acknowledged
is found by the next query. Every instance has an entry in the response (`harmony.gateway.store_report`), whatever
becomes of the others, also of those in a body that breaks off later.

A backend that is not to be had is an error of the whole request as long as nothing has been stored; from then on what
is left fails, so that the client knows which it need not send again.

Deliberately not here: routes and the errors of backends as HTTP statuses (the `dicomweb` endpoint), XML.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Final
from urllib.parse import urljoin

from harmony.dicom.uid import is_valid_uid
from harmony.dimse.scu import Instance
from harmony.dimse.status import DimseError, Outcome, Status, StatusClass, describe_status
from harmony.gateway.backend import Backend
from harmony.gateway.backend_errors import unreachable
from harmony.gateway.dicom_upload import WatchedBody, uploaded_instance
from harmony.gateway.metadata_upload import BulkSpool, Metadata, bulk_data_uris, described
from harmony.gateway.options import DEFAULT_LARGEST_UPLOAD_BYTES
from harmony.gateway.store_report import SOPInstance, StoreReport
from harmony.gateway.uploaded_identity import identify, require_identity
from harmony.http import HTTPError, Request, Response
from harmony.http.media_type import MediaType, parse_media_type
from harmony.http.message import DEFAULT_READ_LIMIT_BYTES, RequestBody
from harmony.http.multipart import Part, multipart_boundary, read_parts

__all__ = ["Stow"]

logger = logging.getLogger("harmony.gateway")

FILE_TYPES: Final = ("application/dicom", "application/octet-stream")
METADATA_TYPES: Final = ("application/dicom+json", "application/json")
MULTIPART: Final = "multipart/related"
OCTET_STREAM: Final = MediaType("application/octet-stream", {})


class Stow:
    """The store transaction of one service.

    max_upload_bytes: of a whole request. max_metadata_bytes: of the JSON in one, which is held in memory.
    spool_folder: where bulk data wait for being complete; None: where the system keeps temporary files.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        name: str = "dicomweb",
        max_upload_bytes: int = DEFAULT_LARGEST_UPLOAD_BYTES,
        max_metadata_bytes: int = DEFAULT_READ_LIMIT_BYTES,
        spool_folder: Path | None = None,
    ) -> None:
        self._backend = backend
        self._name = name
        self._max_upload_bytes = max_upload_bytes
        self._max_metadata_bytes = max_metadata_bytes
        self._spool_folder = spool_folder

    async def store(self, request: Request, *, study_uid: str | None, root: str) -> Response:
        """Store what the request holds. root: URL of the service, without a trailing slash, for what is retrieved.

        Raises HTTPError 400, 408, 413, 415 or 507, and what the backend raises, while nothing has been stored.
        """
        if study_uid is not None and not is_valid_uid(study_uid):
            raise HTTPError(400, "the study of the path is no UID")
        request.body.maximum_bytes = self._max_upload_bytes
        store = _Store(self._backend, StoreReport(root), study_uid)
        media_type = _media_type(request.headers.get("content-type"))
        try:
            await self._read(request, media_type, store, root)
        except HTTPError as error:
            if not store.report.has_stored:
                raise
            logger.info("%s: a store broke off: %s", self._name, error.message)
            store.report.failed_unnamed(Status.CANNOT_UNDERSTAND)
        if store.report.is_empty:
            raise HTTPError(400, "the request body has no instances")
        response = store.report.response()
        logger.info("%s: answered a store %d: %r", self._name, response.status, store.report)
        return response

    async def _read(self, request: Request, media_type: MediaType, store: _Store, root: str) -> None:
        if media_type.essence in FILE_TYPES:
            await store.file(request.body)
        elif media_type.essence in METADATA_TYPES:
            metadata = Metadata()
            metadata.add(await request.body.read(self._max_metadata_bytes))
            async with BulkSpool() as spool:
                await store.described(metadata, spool)
        elif media_type.essence == MULTIPART:
            boundary = multipart_boundary(media_type)
            root_type = media_type.parameters.get("type", FILE_TYPES[0]).lower()
            parts = read_parts(request.body, boundary)
            try:
                if root_type in FILE_TYPES:
                    async for part in parts:
                        await store.file(part, part.headers.get("content-type"))
                elif root_type in METADATA_TYPES:
                    await self._read_described(parts, store, f"{root}/studies", request)
                else:
                    raise HTTPError(415, f"{MULTIPART} of this type; expected {' or '.join(_EXPECTED)}")
            finally:
                await parts.aclose()
        else:
            raise HTTPError(415, f"Content-Type: expected {MULTIPART} or {FILE_TYPES[0]}")

    async def _read_described(
        self, parts: AsyncIterator[Part], store: _Store, base: str, request: Request
    ) -> None:
        """Metadata, then the bulk data that they refer to; what nobody refers to is dropped."""

        def locate(location: str) -> str:
            return urljoin(base, location.strip())

        metadata, left = Metadata(), self._max_metadata_bytes
        wanted: set[str] | None = None
        async with BulkSpool(folder=self._spool_folder, locate=locate) as spool:
            async for part in parts:
                content_type = part.headers.get("content-type")
                media_type = _media_type(content_type) if content_type else None
                if wanted is None and (media_type is None or media_type.essence in METADATA_TYPES):
                    body = await _read_part(part, left, request.body)
                    left -= len(body)
                    metadata.add(body)
                    continue
                if wanted is None:
                    wanted = {locate(uri) for model in metadata for uri in bulk_data_uris(model)}
                location = part.headers.get("content-location")
                if location is not None and locate(location) in wanted:
                    await spool.add(location, media_type or OCTET_STREAM, part)
            await store.described(metadata, spool)


_EXPECTED: Final = (FILE_TYPES[0], METADATA_TYPES[0])


class _Store:
    """One request: what it brings, one instance after the other."""

    def __init__(self, backend: Backend, report: StoreReport, study_uid: str | None) -> None:
        self.report = report
        self._backend = backend
        self._study_uid = study_uid
        self._unreachable = False

    async def file(self, content: AsyncIterator[bytes], content_type: str | None = None) -> None:
        """Store one DICOM file. Raises HTTPError when the body breaks off."""
        if content_type is not None and _media_type(content_type).essence not in FILE_TYPES:
            self.report.failed_unnamed(Status.CANNOT_UNDERSTAND)
            return
        body = WatchedBody(content)
        try:
            upload = await uploaded_instance(body)
        except HTTPError as error:
            if body.error is not None:
                raise
            logger.debug("a part of a store is no DICOM file: %s", error.message)
            self.report.failed_unnamed(Status.CANNOT_UNDERSTAND)
            return
        try:
            try:
                instance, found = await identify(upload)
            except HTTPError:
                named = SOPInstance(upload.sop_class_uid, upload.sop_instance_uid)
                self.report.failed(named, Status.CANNOT_UNDERSTAND)
                raise
            await self._store(instance, found, body)
        finally:
            assert isinstance(upload.data, AsyncGenerator)
            await upload.data.aclose()

    async def described(self, metadata: Metadata, spool: BulkSpool) -> None:
        """Store the instances of metadata whose bulk data have come."""
        for model in metadata:
            found = described(model)
            try:
                instance = spool.instance(model)
            except DimseError as error:
                self._refused(found, error.outcome)
                continue
            await self._store(instance, found)

    async def _store(self, instance: Instance, found: SOPInstance, body: WatchedBody | None = None) -> None:
        try:
            require_identity(found, instance, study_uid=self._study_uid)
            outcome = await self._backend_store(instance)
        except Exception as error:
            if body is not None and body.error is not None:
                self.report.failed(found, Status.CANNOT_UNDERSTAND)
                raise body.error from None
            if not isinstance(error, DimseError) or (unreachable(error) and not self.report.has_stored):
                raise
            self._unreachable = self._unreachable or unreachable(error) is not None
            self._refused(found, error.outcome)
        else:
            if outcome.status_class in (StatusClass.SUCCESS, StatusClass.WARNING):
                self.report.stored(found, outcome)
            else:
                self._refused(found, outcome)

    async def _backend_store(self, instance: Instance) -> Outcome:
        if self._unreachable:
            raise DimseError(Status.OUT_OF_RESOURCES, "the backend was lost within this request")
        return await self._backend.store_instance(instance)

    def _refused(self, found: SOPInstance, outcome: Outcome) -> None:
        # Without the comment: that of a PACS may name a patient.
        logger.info("an instance was not stored: %s", describe_status(outcome.status))
        self.report.failed(found, outcome.status)


async def _read_part(part: Part, limit_bytes: int, body: RequestBody) -> bytes:
    whole = bytearray()
    async for chunk in part:
        if len(whole) + len(chunk) > limit_bytes:
            raise HTTPError(413, f"metadata of more than {limit_bytes} bytes")
        body.collect(len(chunk))
        whole += chunk
    return bytes(whole)


def _media_type(content_type: str | None) -> MediaType:
    """A body that does not say what it is may be a file, which shows."""
    try:
        return parse_media_type(content_type) if content_type else MediaType(FILE_TYPES[0], {})
    except ValueError as error:
        raise HTTPError(415, f"Content-Type: {error}") from error
