"""The `jmix` endpoint: the local envelope store over HTTP (docs/CONFIGURATION.md; document routes under its
prefix).

    GET  /api/jmix?studyInstanceUid=UID     the newest envelope that holds a study
    GET  /api/jmix/{id}                     an envelope: a ZIP, or a gzip tar by Accept
    GET  /api/jmix/{id}/manifest            its manifest.json
    POST /api/jmix                          an upload: 201, 400, 409, 413, 415
    GET  /api/jmix/prime/{studyUid}         make sure there is an envelope of a study: 200, 201, 404

Several endpoints may share a store; the same store serves what `jmix_builder` builds. A study without an envelope is
retrieved from the backend behind the endpoint and packed (`study_envelope`): 502 and 504 say that the backend failed.
Without a backend only `prime` does that, from what the gateway has received.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from harmony.archive.free_space import FreeSpace
from harmony.dimse.status import DimseError
from harmony.gateway.backend_errors import BACKEND_ERRORS, backend_failure
from harmony.gateway.config import Endpoint
from harmony.gateway.envelope_audit import EnvelopeAudit
from harmony.gateway.options import JmixEndpointOptions
from harmony.gateway.study_envelope import NotRetrieved, NotStored, StudyEnvelope, StudyEnvelopes
from harmony.http import FileBody, HTTPError, Request, Response, Router, json_response, normalize_prefix
from harmony.http.accept import Offer, negotiate
from harmony.jmix.limits import EnvelopeError, canonical_envelope_id
from harmony.jmix.reader import ArchiveFormat, check_envelope, format_of_content_type
from harmony.jmix.store import EnvelopeExists, EnvelopeStore

__all__ = ["JmixEndpoint"]

logger = logging.getLogger("harmony.gateway")

OFFERS = (
    Offer("application/zip", ArchiveFormat.ZIP),
    Offer("application/gzip", ArchiveFormat.TAR_GZ, also=("application/x-gtar", "application/x-gzip")),
)
SUFFIXES = {ArchiveFormat.ZIP: "zip", ArchiveFormat.TAR_GZ: "tar.gz"}
FLAGS = {"true": True, "1": True, "false": False, "0": False}


class JmixEndpoint:
    """One endpoint over one store.

    studies: makes envelopes of studies that have none, for `prime`; with on_demand for whoever asks for a study.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        envelopes: EnvelopeStore,
        studies: StudyEnvelopes,
        *,
        on_demand: bool = False,
        audit: EnvelopeAudit | None = None,
    ) -> None:
        options = endpoint.options
        assert isinstance(options, JmixEndpointOptions)
        self._name = endpoint.name
        self._options = options
        self._envelopes = envelopes
        self._studies = studies
        self._on_demand = on_demand
        self._audit = audit or EnvelopeAudit(None)
        self._space = FreeSpace(envelopes.root, minimum_free_bytes=options.min_free_bytes)

    def add_routes(self, router: Router) -> None:
        """Raises RouteConflict when another endpoint of the network has one of them."""
        prefix = normalize_prefix(self._options.path_prefix) + "/api/jmix"
        name = self._name
        router.add("GET", prefix, self.find, name=name, description="envelope of a study")
        router.add("POST", prefix, self.upload, name=name, description="upload an envelope")
        router.add(
            "GET", prefix + "/prime/{study_uid}", self.prime, name=name, description="prepare an envelope"
        )
        router.add("GET", prefix + "/{id}", self.get, name=name, description="envelope")
        router.add(
            "GET", prefix + "/{id}/manifest", self.manifest, name=name, description="manifest of an envelope"
        )

    async def find(self, request: Request) -> Response:
        study_uid = request.query.first("studyInstanceUid")
        if not study_uid:
            raise HTTPError(400, "missing studyInstanceUid")
        wanted = self._wanted(request)
        negotiate(request, OFFERS)  # 406 before anything is retrieved for nothing
        found = await self._studies.find(study_uid)
        if found is None and self._on_demand:
            made = await self._find_or_make(study_uid, wanted, request)
            found = None if made is None else made.id
        self._audit.asked(request)
        if found is None:
            raise HTTPError(404, "no envelope of this study")
        return await self._serve(found, request)

    async def get(self, request: Request) -> Response:
        return await self._serve(self._id(request), request)

    async def manifest(self, request: Request) -> Response:
        try:
            body = await asyncio.to_thread(self._envelopes.manifest, self._id(request))
        except (KeyError, FileNotFoundError):
            raise HTTPError(404, "no such envelope") from None
        return Response(200, {"Content-Type": "application/json"}, body)

    async def prime(self, request: Request) -> Response:
        study_uid = request.path_parameters["study_uid"]
        wanted = self._wanted(request)
        found = await self._studies.find(study_uid)
        if found is not None:
            self._audit.asked(request)
            return json_response({"id": found, "status": "ready"})
        made = await self._find_or_make(study_uid, wanted, request)
        self._audit.asked(request)
        if made is None:
            raise HTTPError(404, "no envelope and no stored objects of this study")
        if not made.is_new:
            return json_response({"id": made.id, "status": "ready"})
        return json_response({"id": made.id, "status": "created"}, 201)

    def _wanted(self, request: Request) -> _Wanted:
        """What the request, or else the endpoint, says about an envelope that is made for it."""
        options = self._options
        return _Wanted(
            skip_hashing=_flag(request, "skip_hashing", options.skip_hashing),
            skip_listing=_flag(request, "skip_listing", options.skip_listing),
        )

    async def _find_or_make(self, study_uid: str, wanted: _Wanted, request: Request) -> StudyEnvelope | None:
        try:
            return await self._studies.find_or_make(
                study_uid, skip_hashing=wanted.skip_hashing, skip_listing=wanted.skip_listing
            )
        except (NotRetrieved, NotStored, *BACKEND_ERRORS) as error:
            answer = _failure(error)
            what = answer.message if isinstance(error, DimseError) else error
            logger.warning("study %s cannot be packed: %s", study_uid, what)
            self._audit.asked(request, good=False)
            raise answer from error

    async def upload(self, request: Request) -> Response:
        content_type = request.headers.get("content-type")
        try:
            format_of_content_type(content_type)
        except EnvelopeError as error:
            raise HTTPError(int(error.kind), str(error)) from error
        request.body.maximum_bytes = self._options.max_upload_bytes
        path = self._envelopes.incoming()
        try:
            self._space.require_now(request.body.content_length or 0)  # before it is sent, where it says
            await _receive(request, path, self._space)
            info = await asyncio.to_thread(check_envelope, path, content_type=content_type)
            stored = await asyncio.to_thread(
                self._envelopes.add_uploaded, path, info, origin="upload", created_at=datetime.now(UTC)
            )
        except EnvelopeError as error:
            raise HTTPError(int(error.kind), str(error)) from error
        except EnvelopeExists as error:
            await self._audit.uploaded(request, path, good=False)
            raise HTTPError(409, "envelope id already exists") from error
        except (OSError, sqlite3.Error) as error:
            logger.error("an upload could not be stored: %s", error)
            raise HTTPError(507, "the upload could not be stored") from error
        finally:
            path.unlink(missing_ok=True)
        await self._audit.uploaded(request, stored.path)
        logger.info(
            "envelope %s uploaded: %d objects, %d bytes", stored.id, info.instance_count, stored.size_bytes
        )
        return json_response({"id": stored.id, "status": "stored"}, 201)

    def _id(self, request: Request) -> str:
        envelope_id = canonical_envelope_id(request.path_parameters["id"])
        if envelope_id is None:
            raise HTTPError(404, "no such envelope")
        return envelope_id

    async def _serve(self, envelope_id: str, request: Request) -> Response:
        try:
            stored = await asyncio.to_thread(self._envelopes.get, envelope_id)
        except KeyError:
            raise HTTPError(404, "no such envelope") from None
        if not stored.path.is_file():
            raise HTTPError(404, "no such envelope")
        choice = negotiate(request, OFFERS)
        wanted = choice.value
        headers = {
            "Content-Type": choice.media_type,
            "Content-Disposition": f'attachment; filename="{envelope_id}.{SUFFIXES[wanted]}"',
            "Vary": "Accept",
        }
        if request.method != "HEAD":
            await self._audit.served(request, stored.path)
        if wanted is stored.format:
            return Response(200, headers, FileBody(stored.path))
        if request.method == "HEAD":
            return Response(200, headers)
        repack = (
            self._envelopes.iter_as_zip if wanted is ArchiveFormat.ZIP else self._envelopes.iter_as_tar_gz
        )
        try:
            chunks = await asyncio.to_thread(repack, envelope_id)
        except (KeyError, FileNotFoundError):  # removed meanwhile
            raise HTTPError(404, "no such envelope") from None
        return Response(200, headers, _in_thread(chunks))


@dataclass(frozen=True, slots=True)
class _Wanted:
    """None: what the jmix_builder says."""

    skip_hashing: bool | None
    skip_listing: bool | None


def _flag(request: Request, name: str, default: bool | None) -> bool | None:
    text = request.query.first(name)
    if text is None:
        return default
    value = FLAGS.get(text.lower())
    if value is None:
        raise HTTPError(400, f"{name} must be true, false, 1 or 0")
    return value


def _failure(error: Exception) -> HTTPError:
    """The answer when a study could not be retrieved or packed. What a PACS says in words is not repeated: it may name
    patients."""
    match error:
        case NotStored():
            return HTTPError(507, "the envelope could not be stored")
        case NotRetrieved():
            return HTTPError(502, str(error))
        case _:
            return backend_failure(error, "the archive")


async def _receive(request: Request, path: Path, space: FreeSpace) -> None:
    """Write the body to a file as it arrives. OSError when the disk will not take it."""
    with open(path, "xb", buffering=0) as file:  # noqa: ASYNC230 - to the page cache, like received objects
        async for chunk in request.body:
            view = memoryview(chunk)
            space.require(len(view))
            while view:
                view = view[file.write(view) :]
        await asyncio.to_thread(os.fsync, file.fileno())


async def _in_thread(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Pull a blocking iterator in a worker thread, one chunk at a time, at the pace of the client."""
    loop = asyncio.get_running_loop()
    with (
        ThreadPoolExecutor(1, thread_name_prefix="harmony-repack") as worker,
        contextlib.ExitStack() as stack,
    ):
        close = getattr(chunks, "close", None)
        if close is not None:
            stack.callback(close)
        while (chunk := await loop.run_in_executor(worker, next, chunks, None)) is not None:
            yield chunk
