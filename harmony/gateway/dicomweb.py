"""The `dicomweb` endpoint: DICOM over HTTP in front of any Backend (PS3.18; docs/CONFIGURATION.md).

Routes, below the prefix of the endpoint, and which part answers them:

    GET   /studies, /series, /instances and below        searches            `qido`
    GET   /studies/{study} and below, metadata, …        retrieves           `wado`
    GET   …/rendered, …/thumbnail                        pictures            `rendered`
    GET   /wado?requestType=WADO&…                       WADO-URI            `wado`, `rendered`
    POST  /studies, /studies/{study}                     stores              `stow`
    OPTIONS                                              what there is (PS3.18 §8.9), and CORS preflights

A study, series or instance is retrieved when Accept prefers DICOM objects, and described when it prefers JSON or does
not care.

What every answer needs is done here, once: what a backend raises becomes a status, JSON is compressed, the pages that
may read it are told so. An error after an answer has begun breaks the connection off.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from harmony.archive.levels import Level
from harmony.dicom.uid import is_valid_uid
from harmony.gateway.backend import Backend
from harmony.gateway.backend_errors import BACKEND_ERRORS, BackendError, backend_failure
from harmony.gateway.capabilities import Capabilities, Capability
from harmony.gateway.config import Endpoint
from harmony.gateway.mixed_media_types import refuse_mixed_media_types
from harmony.gateway.options import DicomwebOptions
from harmony.gateway.qido import Qido
from harmony.gateway.rendered import PICTURE_PARTS, PICTURES, Rendered
from harmony.gateway.rendered_request import is_picture_uri
from harmony.gateway.service_root import service_root
from harmony.gateway.stow import Stow
from harmony.gateway.wado import Wado
from harmony.http import Headers, HTTPError, Piece, Request, Response, Router, normalize_prefix
from harmony.http.accept import Offer, negotiate
from harmony.http.content_coding import encode_content
from harmony.http.cross_origin import CrossOrigin

__all__ = ["DicomWeb"]

logger = logging.getLogger("harmony.gateway")

DICOM_JSON: Final = "application/dicom+json"
DICOM_PARTS: Final = 'multipart/related; type="application/dicom"'
DICOM_XML: Final = 'multipart/related; type="application/dicom+xml"'
OCTET_PARTS: Final = 'multipart/related; type="application/octet-stream"'

SEARCH, RETRIEVE = "search", "retrieve"
OFFERS: Final = (
    Offer(DICOM_JSON, SEARCH, also=("application/json", "text/json")),
    Offer(DICOM_PARTS, RETRIEVE),
    Offer("application/zip", RETRIEVE),
)
"""Of a study or series, and of an instance."""
INSTANCE_OFFERS: Final = (*OFFERS, Offer("application/dicom", RETRIEVE))

_STUDY = "/studies/{study}"
_SERIES = _STUDY + "/series/{series}"
_INSTANCE = _SERIES + "/instances/{instance}"
_NAMES: Final = ("study", "series", "instance")

Handle = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class _Resource:
    """What one method does at one path."""

    method: str
    path: str
    handle: Handle
    name: str
    """As PS3.18 §10.1 names the transaction."""
    produces: tuple[str, ...] = (DICOM_JSON,)


class DicomWeb:
    """One endpoint. behind: the name of what the backend stands for, as its callers may know it.

    max_body_bytes: of JSON in a store.
    """

    def __init__(self, endpoint: Endpoint, backend: Backend, *, behind: str, max_body_bytes: int) -> None:
        options = endpoint.options
        assert isinstance(options, DicomwebOptions)
        self._name = endpoint.name
        self._options = options
        self._behind = behind
        self._qido = Qido(
            backend,
            maximum_results=options.max_results,
            match_empty_values=options.match_empty_values,
            fuzzy_names=options.fuzzy_names,
            empty_status=options.empty_search_status,
        )
        self._wado = Wado(backend, name=behind)
        self._rendered = Rendered(backend)
        self._stow = Stow(
            backend,
            name=endpoint.name,
            max_upload_bytes=options.max_upload_bytes,
            max_metadata_bytes=max_body_bytes,
        )
        self._cross_origin = CrossOrigin(options.allow_origins, max_age_s=options.preflight_max_age_secs)
        self._resources = tuple(self._table())
        self._capabilities = Capabilities(
            [Capability(each.method, each.path, each.name, each.produces) for each in self._resources]
        )

    def add_routes(self, router: Router) -> None:
        """Raises RouteConflict when another endpoint of the network has one of them."""
        prefix = normalize_prefix(self._options.path_prefix).rstrip("/")
        methods: dict[str, list[str]] = {"/": []}
        for resource in self._resources:
            methods.setdefault(resource.path, []).append(resource.method)
            router.add(
                resource.method,
                prefix + resource.path,
                self._answering(resource.handle),
                name=self._name,
                description=f"{resource.name}, {self._behind}",
            )
        for path, allowed in methods.items():
            pattern = prefix + path if path != "/" else prefix or "/"
            options = self._options_at([*allowed, *(["HEAD"] if "GET" in allowed else []), "OPTIONS"], path)
            router.add("OPTIONS", pattern, options, name=self._name, description="capabilities")

    def _table(self) -> list[_Resource]:
        both = (DICOM_JSON, DICOM_PARTS, "application/zip")
        found = [
            _Resource(method, path, self._searching(level), name)
            for method, path, level, name in (
                ("GET", "/studies", Level.STUDY, "SearchForStudies"),
                ("GET", "/series", Level.SERIES, "SearchForSeries"),
                ("GET", "/instances", Level.IMAGE, "SearchForInstances"),
                ("GET", _STUDY + "/series", Level.SERIES, "SearchForStudySeries"),
                ("GET", _STUDY + "/instances", Level.IMAGE, "SearchForStudyInstances"),
                ("GET", _SERIES + "/instances", Level.IMAGE, "SearchForStudySeriesInstances"),
            )
        ]
        for path, level, what in (
            (_STUDY, Level.STUDY, "Study"),
            (_SERIES, Level.SERIES, "Series"),
            (_INSTANCE, Level.IMAGE, "Instance"),
        ):
            produces = (*both, "application/dicom") if level is Level.IMAGE else both
            found += [
                _Resource("GET", path, self._getting(level), f"Retrieve{what}", produces),
                _Resource(
                    "GET",
                    path + "/metadata",
                    self._metadata,
                    f"Retrieve{what}Metadata",
                    (DICOM_JSON, DICOM_XML),
                ),
                _Resource("GET", path + "/thumbnail", self._thumbnail, f"Retrieve{what}Thumbnail", PICTURES),
            ]
            whole = level is not Level.IMAGE
            found.append(
                _Resource(
                    "GET",
                    path + "/rendered",
                    self._pictures if whole else self._picture,
                    f"RetrieveRendered{what}",
                    PICTURE_PARTS if whole else PICTURES,
                )
            )
        frames = _INSTANCE + "/frames/{frames}"
        return [
            *found,
            _Resource("GET", frames, self._frames, "RetrieveFrames", (OCTET_PARTS,)),
            _Resource("GET", frames + "/rendered", self._picture, "RetrieveRenderedFrames", PICTURES),
            _Resource("GET", frames + "/thumbnail", self._thumbnail, "RetrieveFrameThumbnail", PICTURES),
            _Resource("GET", _INSTANCE + "/bulkdata/{path*}", self._bulk, "RetrieveBulkdata", (OCTET_PARTS,)),
            _Resource("GET", "/wado", self._uri, "RetrieveInstance", ("application/dicom", *PICTURES)),
            _Resource("POST", "/studies", self._store, "StoreInstances"),
            _Resource("POST", _STUDY, self._store, "StoreStudyInstances"),
        ]

    # What the resources do

    def _searching(self, level: Level) -> Handle:
        async def search(request: Request) -> Response:
            study, series, instance = _place(request)
            return await self._qido.search(
                request,
                level,
                study_uid=study,
                series_uid=series,
                instance_uid=instance,
                root=self._root(request),
            )

        return search

    def _getting(self, level: Level) -> Handle:
        search = self._searching(level)
        offers = INSTANCE_OFFERS if level is Level.IMAGE else OFFERS

        async def get(request: Request) -> Response:
            if negotiate(request, offers).value == SEARCH:
                return await search(request)
            return await self._wado.retrieve(request, _uids(request), self._root(request))

        return get

    async def _metadata(self, request: Request) -> Response:
        return await self._wado.metadata(request, _uids(request), self._root(request))

    async def _frames(self, request: Request) -> Response:
        frames = request.path_parameters["frames"]
        return await self._wado.frames(request, _uids(request), frames, self._root(request))

    async def _bulk(self, request: Request) -> Response:
        path = request.path_parameters["path"]
        return await self._wado.bulkdata(request, _uids(request), path, self._root(request))

    async def _picture(self, request: Request) -> Response:
        return await self._rendered.picture(
            request, _uids(request), frames=request.path_parameters.get("frames"), root=self._root(request)
        )

    async def _pictures(self, request: Request) -> Response:
        return await self._rendered.pictures(request, _uids(request), self._root(request))

    async def _thumbnail(self, request: Request) -> Response:
        frames = request.path_parameters.get("frames")
        return await self._rendered.thumbnail(request, _uids(request), frames=frames)

    async def _uri(self, request: Request) -> Response:
        return await (self._rendered.uri if is_picture_uri(request) else self._wado.uri)(request)

    async def _store(self, request: Request) -> Response:
        if not self._cross_origin.permits(request):
            raise HTTPError(403, "pages of this origin may not store here: allow_origins does not have it")
        return await self._stow.store(request, study_uid=_place(request)[0], root=self._root(request))

    # What every answer needs

    def _root(self, request: Request) -> str:
        return service_root(request, self._options.path_prefix, public_url=self._options.public_url)

    def _answering(self, handle: Handle) -> Handle:
        async def answer(request: Request) -> Response:
            try:
                if request.method != "POST":
                    refuse_mixed_media_types(request)
                response = await handle(request)
            except (HTTPError, *BACKEND_ERRORS) as error:
                response = self._failure(request, error).response()
            if isinstance(response.body, AsyncIterable):
                response.body = _Body(response.body, lambda error: self._failure(request, error))
            return self._cross_origin.applied(request, await encode_content(request, response))

        return answer

    def _failure(self, request: Request, error: HTTPError | BackendError) -> HTTPError:
        answer = backend_failure(error, self._behind)
        logger.info("%s: %s answered %d: %s", self._name, request.method, answer.status, answer.message)
        answer.headers = self._cross_origin.headers(request, answer.headers)
        return answer

    def _options_at(self, methods: list[str], path: str) -> Handle:
        """What answers OPTIONS; at the root that describes the service."""

        async def describe(request: Request) -> Response:
            headers = self._cross_origin.options(request, methods)
            if path != "/" or "access-control-request-method" in request.headers:
                return Response(200, headers)
            content_type, body = self._capabilities.document(request, self._root(request))
            return await encode_content(
                request, Response(200, Headers([*headers, ("Content-Type", content_type)]), body)
            )

        return describe


def _place(request: Request) -> tuple[str | None, str | None, str | None]:
    """The UIDs of study, series and instance in the path. Raises HTTPError 400 for what cannot be one."""
    study, series, instance = (request.path_parameters.get(name) for name in _NAMES)
    for name, uid in zip(_NAMES, (study, series, instance), strict=True):
        if uid is not None and not is_valid_uid(uid):
            raise HTTPError(400, f"the {name} in the path is not a UID: 1 to 64 of 0-9 and .")
    return study, series, instance


def _uids(request: Request) -> tuple[str, ...]:
    return tuple(uid for uid in _place(request) if uid is not None)


class _Body:
    """A streamed body whose errors are HTTP's: one that comes before the first chunk still is the answer."""

    def __init__(
        self,
        body: AsyncIterable[Piece],
        failure: Callable[[HTTPError | BackendError], HTTPError],
    ) -> None:
        self._chunks = aiter(body)
        self._failure = failure

    def __aiter__(self) -> AsyncIterator[Piece]:
        return self

    async def __anext__(self) -> Piece:
        try:
            return await anext(self._chunks)
        except (HTTPError, *BACKEND_ERRORS) as error:
            raise self._failure(error) from error

    async def aclose(self) -> None:
        close = getattr(self._chunks, "aclose", None)  # generators have it, an AsyncIterator need not
        if close is not None:
            await close()
