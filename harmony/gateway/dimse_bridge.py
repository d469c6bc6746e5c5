"""The `http` endpoint in front of a `dicom_scu` backend: DIMSE services over HTTP (docs/CONFIGURATION.md).

    GET, POST, PUT  <prefix>          what the body asks for: a query, DICOM files, nothing at all (an echo)
    GET, POST, PUT  <prefix>/echo     and find, get, move, store

What a request asks for is `harmony.gateway.dimse_request`; here it is done and answered. Matches go out as they come,
instances go to a folder as they come (`harmony.gateway.retrieved`), uploads to the PACS as they come. A client that
leaves ends the operation, with C-CANCEL where there is one.

Errors are honest: 4xx for the request, 502 for a PACS that refuses, fails or is not to be had, 504 for one that does
not answer, 507 when the disk takes no more. What goes wrong after the first match resets the connection: a response
that has begun cannot be taken back, and must not look complete.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Final, Literal

import msgspec

from harmony.dicom.json_model import Model
from harmony.dimse.cancellation import close_iterator
from harmony.dimse.retrieve import RetrieveFailed
from harmony.dimse.retrieve_scp import Unavailable
from harmony.dimse.scu import Instance
from harmony.dimse.status import DimseError, Outcome
from harmony.dimse.sub_operations import Counters
from harmony.gateway.audited_backend import AuditedPACS
from harmony.gateway.backend import Query, Retrieve
from harmony.gateway.backend_errors import BACKEND_ERRORS, BackendError, backend_failure, unreachable
from harmony.gateway.config import Endpoint
from harmony.gateway.dicom_scu import DicomSCU
from harmony.gateway.dicom_upload import WatchedBody, uploaded_instance
from harmony.gateway.dimse_request import DimseService, read_request, service_of_path
from harmony.gateway.options import HttpEndpointOptions
from harmony.gateway.retrieved import NotWritten, RetrievedFolder, RetrievedFolders
from harmony.http import HTTPError, Request, Response, Router, json_response, normalize_prefix
from harmony.http.media_type import MediaType, parse_media_type
from harmony.http.multipart import multipart_boundary, read_parts

__all__ = ["DimseBridge"]

logger = logging.getLogger("harmony.gateway")

DICOM_TYPES: Final = ("application/dicom", "application/octet-stream")
MULTIPART: Final = "multipart/related"
JSON_TYPES: Final = ("application/json", "application/dicom+json", "text/json")
HEADERS_AT_ONCE: Final = 32
"""Files whose headers are read in one go of a thread: some milliseconds, some hundred kilobytes of JSON."""

_SPECIFIC_CHARACTER_SET: Final = "00080005"  # what a PACS says there is not true of JSON, which is UTF-8

_Failure = HTTPError | NotWritten | BackendError
_FAILURES: Final = (HTTPError, NotWritten, *BACKEND_ERRORS)


class DimseBridge:
    """One endpoint. folders: where instances are retrieved to. max_body_bytes: of bodies that are JSON."""

    def __init__(
        self,
        endpoint: Endpoint,
        scu: DicomSCU | AuditedPACS,
        folders: RetrievedFolders,
        *,
        max_body_bytes: int,
    ) -> None:
        options = endpoint.options
        assert isinstance(options, HttpEndpointOptions)
        self._name = endpoint.name
        self._options = options
        self._scu = scu
        self._folders = folders
        self._max_body_bytes = max_body_bytes

    def add_routes(self, router: Router) -> None:
        """Raises RouteConflict when another endpoint of the network has one of them."""
        pattern = normalize_prefix(self._options.path_prefix).rstrip("/") + "/{rest*}"
        description = f"DIMSE services of {self._scu.peer.called_ae_title}"
        router.add(("GET", "POST", "PUT"), pattern, self.answer, name=self._name, description=description)

    async def answer(self, request: Request) -> Response:
        service = None
        try:
            service = service_of_path(request.path_parameters["rest"])
            media_type = _media_type(request, service)
            if media_type is not None and media_type.essence in (*DICOM_TYPES, MULTIPART):
                if service not in (None, DimseService.STORE):
                    raise HTTPError(415, f"{service.value} takes no DICOM files: expected application/json")
                service = DimseService.STORE
                return await self._store(request, media_type)
            body = await self._json(request, media_type, service)
            mode = self._scu.options.dimse_retrieve_mode
            understood = read_request(service, request.query, body, retrieve_mode=mode)
            service = understood.service
            if understood.query is not None:
                return await self._find(understood.query)
            if understood.retrieve is None:
                return await self._echo()
            if understood.destination is not None and understood.destination != self._scu.local_aet:
                _require_intent(request, body)
                return await self._move(understood.retrieve, understood.destination)
            return await self._retrieve(service, understood.retrieve)
        except _FAILURES as error:
            return self._failure(service, error)

    async def _json(
        self, request: Request, media_type: MediaType | None, service: DimseService | None
    ) -> object:
        """What the body holds, None when it is empty."""
        body = await request.body.read(self._max_body_bytes)
        if not body.strip():
            return None
        essence = media_type.essence if media_type is not None else JSON_TYPES[0]
        if service is DimseService.STORE:
            raise HTTPError(415, f"Content-Type is {essence}, expected application/dicom or {MULTIPART}")
        if essence not in JSON_TYPES and not essence.endswith("+json"):
            raise HTTPError(415, f"Content-Type is {essence}, expected application/json")
        try:
            decoded: object = msgspec.json.decode(body)
        except RecursionError:
            raise HTTPError(400, "the request body is nested too deep") from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            # msgspec says where, never what.
            where = str(error) if isinstance(error, msgspec.DecodeError) else "text is not UTF-8"
            raise HTTPError(400, f"the request body is not JSON: {where}") from error
        return decoded

    # Echo and find

    async def _echo(self) -> Response:
        await self._scu.echo()
        peer = self._scu.peer
        place = {"host": peer.host, "port": peer.port}
        return json_response(_success(DimseService.ECHO) | {"remote_aet": peer.called_ae_title} | place)

    async def _find(self, query: Query) -> Response:
        matches = _Matches(self._scu.query(query))
        await matches.begin()
        return Response(200, {"Content-Type": "application/json"}, matches)

    # Get and move

    async def _retrieve(self, service: DimseService, retrieve: Retrieve) -> Response:
        folder = await self._folders.new()
        try:
            failed = await self._receive(service, retrieve, folder)
            if not folder.file_count and not failed:
                raise HTTPError(404, "Study not found")
            if not folder.file_count:
                raise HTTPError(502, f"none of {len(failed)} instances could be retrieved")
            await folder.complete()
        except BaseException:
            await folder.remove()
            raise
        logger.info(
            "%s: %s: %d instances in folder %s", self._name, service.value, folder.file_count, folder.id
        )
        content = _success(service)
        if failed:
            text = f"{len(failed)} of {len(failed) + folder.file_count} instances could not be retrieved"
            content |= {"success": False, "error": text, "failed_sop_instance_uids": failed}
        content |= {"folder_id": folder.id, "file_count": folder.file_count, "folder_path": str(folder.path)}
        return Response(
            502 if failed else 200, {"Content-Type": "application/json"}, _FolderContent(content, folder)
        )

    async def _receive(self, service: DimseService, retrieve: Retrieve, folder: RetrievedFolder) -> list[str]:
        """Put what is retrieved into the folder; return the UIDs of what is not to be had."""
        mode: Literal["get", "move"] = "move" if service is DimseService.MOVE else "get"
        selection = await self._scu.retrieve(retrieve, mode=mode)
        failed = []
        try:
            async for each in selection.instances:
                if isinstance(each, Unavailable):
                    failed.append(each.sop_instance_uid)
                else:
                    await folder.add(each)
        finally:
            await close_iterator(selection.instances)
        return failed

    async def _move(self, retrieve: Retrieve, destination: str) -> Response:
        result = await self._scu.move_to(retrieve, destination)
        counts = _counts(result.counters)
        if not any(counts.values()):
            raise HTTPError(404, "Study not found")
        content = _success(DimseService.MOVE) | {"destination": destination} | counts
        content["status"] = f"{result.status:04X}"
        if counts["failed"]:
            text = f"{counts['failed']} of {sum(counts.values())} instances could not be moved"
            return json_response(content | {"success": False, "error": text}, 502)
        return json_response(content)

    # Store

    async def _store(self, request: Request, media_type: MediaType) -> Response:
        if request.method not in ("POST", "PUT"):
            raise HTTPError(405, "a store needs POST or PUT", headers={"Allow": "POST, PUT"})
        request.body.maximum_bytes = self._options.max_upload_bytes
        body = WatchedBody(request.body)
        if media_type.essence == MULTIPART:
            return await self._store_parts(body, media_type)
        instance = await uploaded_instance(body)
        outcome = await self._send(instance, body)
        return json_response(
            _success(DimseService.STORE)
            | _stored(instance, outcome)
            | {"remote_aet": self._scu.peer.called_ae_title}
        )

    async def _send(self, instance: Instance, body: WatchedBody) -> Outcome:
        try:
            return await self._scu.store_instance(instance)
        except Exception:
            if body.error is not None:
                raise body.error from None
            raise

    async def _store_parts(self, body: WatchedBody, media_type: MediaType) -> Response:
        """Store each part, whatever becomes of the others. 200 when all are stored."""
        if media_type.parameters.get("type", DICOM_TYPES[0]).lower() not in DICOM_TYPES:
            raise HTTPError(415, f"the type of {MULTIPART} must be application/dicom")
        done: list[dict[str, Any]] = []
        try:
            async for part in read_parts(body, multipart_boundary(media_type)):
                _require_dicom(part.headers.get("content-type"), len(done) + 1)
                instance = await uploaded_instance(part)
                try:
                    done.append({"success": True} | _stored(instance, await self._send(instance, body)))
                except DimseError as error:
                    if unreachable(error) is not None:
                        raise
                    what = {"success": False, "error": self._answer(error).message}
                    done.append(what | _stored(instance, error.outcome))
            if not done:
                raise HTTPError(400, f"the {MULTIPART} body has no parts")
        except _FAILURES as error:
            return self._failure(DimseService.STORE, error, instances=done)
        failed = sum(not each["success"] for each in done)
        content = _success(DimseService.STORE) | {"remote_aet": self._scu.peer.called_ae_title}
        if failed:
            content |= {"success": False, "error": f"{failed} of {len(done)} instances were not stored"}
        return json_response(content | {"instances": done}, 502 if failed else 200)

    # What went wrong

    def _failure(self, service: DimseService | None, error: _Failure, **more: Any) -> Response:
        failed: Exception = unreachable(error) or error
        if isinstance(failed, DimseError):
            more["status"] = f"{failed.status:04X}"
            if isinstance(failed, RetrieveFailed):
                more |= _counts(failed.result.counters)
        answer = self._answer(failed)
        name = service.value if service is not None else "unknown"
        logger.info("%s: %s answered %d: %s", self._name, name, answer.status, answer.message)
        content = {"operation": name, "success": False, "error": answer.message} | more
        return json_response(content, answer.status, headers=answer.headers)

    def _answer(self, error: Exception) -> HTTPError:
        if isinstance(error, NotWritten):
            logger.error("%s: retrieved instances could not be written: %s", self._name, error)
            return HTTPError(507, "the retrieved instances could not be written")
        return backend_failure(error, self._scu.peer.called_ae_title)


def _success(service: DimseService) -> dict[str, Any]:
    return {"operation": service.value, "success": True}


def _stored(instance: Instance, outcome: Outcome) -> dict[str, Any]:
    return {
        "status": f"{outcome.status:04X}",
        "sop_class_uid": instance.sop_class_uid,
        "sop_instance_uid": instance.sop_instance_uid,
    }


def _counts(counters: Counters) -> dict[str, int]:
    return {
        "completed": counters.completed or 0,
        "failed": counters.failed or 0,
        "warning": counters.warning or 0,
    }


def _media_type(request: Request, service: DimseService | None) -> MediaType | None:
    value = request.headers.get("content-type")
    if not value:
        is_file = service is DimseService.STORE and request.body.content_length != 0
        return MediaType(DICOM_TYPES[0], {}) if is_file else None
    try:
        return parse_media_type(value)
    except ValueError as error:
        raise HTTPError(415, f"Content-Type: {error}") from error


def _require_dicom(content_type: str | None, number: int) -> None:
    if content_type is None:
        return  # what the type of the whole says
    try:
        if parse_media_type(content_type).essence in DICOM_TYPES:
            return
    except ValueError:
        pass
    raise HTTPError(415, f"the Content-Type of part {number} is not application/dicom")


def _require_intent(request: Request, body: object) -> None:
    """Data leave for somewhere else: not because somebody followed a link or sent a form, which need no permission of
    this server from a browser, as JSON does."""
    if request.method not in ("POST", "PUT"):
        raise HTTPError(
            405, "a move to another destination needs POST or PUT", headers={"Allow": "POST, PUT"}
        )
    if body is None:
        raise HTTPError(400, "a move to another destination must be asked for in a JSON body")


def _encoded(model: Model) -> bytes:
    return msgspec.json.encode(
        {tag: element for tag, element in model.items() if tag != _SPECIFIC_CHARACTER_SET}
    )


# Bodies. Both are iterators and no generators: one that nobody began would not be closed.


class _Matches:
    """The response to a find, each match as it arrives."""

    def __init__(self, matches: AsyncGenerator[Model, None]) -> None:
        self._matches = matches
        self._first: Model | None = None
        self._begun = False
        self._over = False

    async def begin(self) -> None:
        """Wait for the first match, or for the end: what goes wrong before has a status of its own."""
        self._first = await anext(self._matches, None)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._over:
            raise StopAsyncIteration
        if not self._begun:
            self._begun = True
            before, match = (
                msgspec.json.encode(_success(DimseService.FIND))[:-1] + b',"matches":[',
                self._first,
            )
        else:
            before, match = b",", await anext(self._matches, None)
        if match is not None:
            return before + _encoded(match)
        self._over = True
        return before.removesuffix(b",") + b"]}"

    async def aclose(self) -> None:
        await self._matches.aclose()


class _FolderContent:
    """The response to a retrieve: the headers of the files in its folder. When the client leaves before the end, nobody
    knows of the folder, and it is removed."""

    def __init__(self, content: dict[str, Any], folder: RetrievedFolder) -> None:
        self._before = msgspec.json.encode(content)[:-1] + b',"instances":['
        self._folder = folder
        self._next = 0
        self._over = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._over:
            raise StopAsyncIteration
        before, self._before = self._before, b","
        headers = await asyncio.to_thread(self._headers)
        self._next += HEADERS_AT_ONCE
        if self._next < self._folder.file_count:
            return before + headers
        self._over = True
        self._folder.release()
        return before + headers + b"]}"

    def _headers(self) -> bytes:
        return b",".join(map(_encoded, self._folder.headers(self._next, HEADERS_AT_ONCE)))

    async def aclose(self) -> None:
        if not self._over:
            await self._folder.remove()
