"""A DICOMweb server behind DICOM endpoints: `dicom_to_dicomweb` with an `http` backend (PS3.18 §10.4 to §10.6).

    C-FIND          QIDO-RS at the level of the query, page by page, decoded while it arrives
    C-GET, C-MOVE   a QIDO-RS search for what there is, then WADO-RS; instances are sent on while they arrive
    C-STORE         STOW-RS, one request for each instance, sent on while it arrives

Data sets go through as they are, in the transfer syntax that the server has them in (`transfer-syntax=*`); nothing is
spooled. A server that cannot be reached is an AssociationError, like a PACS; one that refuses is a DimseError with the
status that `stow_client` has for it. Address, TLS, credentials and limits are those of the `http` backend.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Final

import msgspec

from harmony.archive.index import StoredInstance, UniqueKeys
from harmony.archive.levels import Level, patient_key
from harmony.archive.matcher import IdentifierError, Problem
from harmony.dicom.json_model import Model, ModelError, encode_data_set, text_of
from harmony.dimse.operation import StoreRequest
from harmony.dimse.part10 import encode_file_meta
from harmony.dimse.retrieve_scp import Selection, Unavailable
from harmony.dimse.scu import Instance
from harmony.dimse.sink import AsyncSink, DataStream, Sink
from harmony.dimse.sop_class import EXPLICIT_VR_LITTLE_ENDIAN
from harmony.dimse.source import pieces
from harmony.dimse.status import DimseError, Outcome, Status, StatusClass
from harmony.gateway import config
from harmony.gateway.addresses import clean_path
from harmony.gateway.backend import Query, Retrieve
from harmony.gateway.dicom_upload import uploaded_instance
from harmony.gateway.http_upstream import upstream_client
from harmony.gateway.identifiers import is_empty, key_elements, matches_keys, tag_of_key
from harmony.gateway.instance_headers import headers_of
from harmony.gateway.options import HttpBackendOptions
from harmony.gateway.qido_client import Search, match_of, searches, unique_key
from harmony.gateway.storage_contexts import NATIVE
from harmony.gateway.stow_client import refusal, store_outcome
from harmony.gateway.tls import Certificates
from harmony.gateway.wado_client import (
    DICOM,
    RELATED_DICOM,
    SURVEYED,
    ResponseBody,
    Survey,
    WatchedContent,
    files_of,
    lost,
)
from harmony.http import Headers, HTTPError
from harmony.http.client import UpstreamError, UpstreamStream
from harmony.http.json_array import JSONArrayError, read_json_array
from harmony.http.multipart_writer import MultipartBody, OutgoingPart, new_boundary
from harmony.ul.association import Association
from harmony.ul.errors import AssociationError

__all__ = ["DicomwebUpstream"]

logger = logging.getLogger("harmony.gateway")

JSON: Final = "application/dicom+json"

PAGE: Final = 1000
"""Matches that are asked for at a time: servers have limits of their own, and may not say so."""
MAXIMUM_PATIENTS: Final = 100_000
"""In one answer at the PATIENT level; they are told apart by what is remembered of them."""
MAXIMUM_REPORT_BYTES: Final = 1024 * 1024
"""Of the response to a store."""
FIRST_RETRY_S: Final = 0.1
"""Doubles each time, as in `http_backend`."""

_STUDY: Final = 0x0020000D


class DicomwebUpstream:
    """One DICOMweb server. A `harmony.gateway.backend.Backend`."""

    def __init__(self, configured: config.Backend, *, certificates: Certificates | None = None) -> None:
        """certificates: those of the gateway; None: read now and kept.

        Raises ValueError for an address, headers or credentials that cannot be used, OSError for a CA file that is
        not there."""
        options, target = configured.options, configured.target
        assert isinstance(options, HttpBackendOptions)
        assert target is not None
        self.name = configured.name
        self._headers = Headers(options.headers)
        self._retries = target.max_retries
        self._client = upstream_client(
            configured,
            base_path=target.base_path + clean_path(options.path_prefix),
            maximum_connections=options.max_connections,
            certificates=certificates,
        )

    def __str__(self) -> str:
        return f"the DICOMweb server {self.name}"

    @property
    def matches_as_asked(self) -> bool:
        return False

    @property
    def can_be_queried(self) -> bool:
        return True

    async def start(self) -> None:
        """A server that is down now may be up when it is needed."""

    async def stop(self, grace_s: float) -> None:
        """Requests under way belong to associations, which have ended."""
        await self._client.aclose()

    async def echo(self) -> None:
        """A search for one study."""
        async with self._get("/studies?limit=1", JSON) as response:
            if not _is_success(response.status) and response.status != 404:
                raise self._refused(response.status)

    # Finding

    async def query(self, query: Query) -> AsyncGenerator[Model, None]:
        """QIDO-RS. Raises DimseError and AssociationError, and IdentifierError for a key that has no encoding."""
        try:
            encode_data_set(query.identifier, EXPLICIT_VR_LITTLE_ENDIAN)
        except ModelError as error:
            raise IdentifierError(tag_of_key(error.key), Problem.MALFORMED) from error
        skip, left = query.offset, query.limit
        async with aclosing(self._matches(query)) as matches:
            async for match in matches:
                if skip:
                    skip -= 1
                    continue
                if left == 0:
                    return
                yield match
                left = None if left is None else left - 1

    async def _matches(self, query: Query) -> AsyncGenerator[Model, None]:
        patients: set[str] = set()
        for search in searches(query):
            async with aclosing(self._search(search, query)) as found:
                async for each in found:
                    if query.level is Level.PATIENT:
                        patient = patient_key(each)
                        if patient in patients:
                            continue
                        if len(patients) == MAXIMUM_PATIENTS:
                            raise DimseError(Status.OUT_OF_RESOURCES, "too many patients: narrow the search")
                        patients.add(patient)
                    yield _encodable(match_of(each, query, search))

    async def _search(self, search: Search, query: Query) -> AsyncGenerator[Model, None]:
        """All pages of one search. The first match of a page tells a server that knows no offset."""
        level = Level.STUDY if query.level is Level.PATIENT else query.level
        offset, first, strict = 0, "", False
        while True:
            count, more = 0, False
            path = search.path(offset=offset, limit=PAGE, strict=strict)
            async with self._get(path, JSON) as response:
                if response.status == 400 and not strict and "^" in path:
                    strict = True
                    continue
                if response.status in (204, 404):
                    return
                if not _is_success(response.status):
                    raise self._refused(response.status)
                more = "299" in (response.headers.get("Warning") or "")
                async with aclosing(self._models(response)) as models:
                    async for model in models:
                        if not count:
                            key = unique_key(model, level)
                            if offset and key == first:
                                return
                            first = key
                        count += 1
                        yield model
            if not count or count > PAGE or (count < PAGE and not more):
                return
            offset += count

    async def _models(self, response: UpstreamStream) -> AsyncGenerator[Model, None]:
        try:
            async with aclosing(read_json_array(ResponseBody(response))) as objects:
                async for encoded in objects:
                    yield msgspec.json.decode(encoded, type=dict[str, dict[str, object]])
        except (JSONArrayError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise DimseError(
                Status.CANNOT_UNDERSTAND, "an answer of the DICOMweb server is no DICOM JSON"
            ) from error

    # Retrieving

    async def retrieve(self, retrieve: Retrieve) -> Selection:
        """WADO-RS, which begins when the first instance is asked for. Raises what `query` does.

        So do the instances, when nothing has come; later, what does not come is Unavailable.
        """
        there = await self._survey(retrieve)
        return Selection(
            self._instances(there),
            sop_instance_uids=there.uids,
            total=len(there.uids),
            contexts=[
                (uid, syntax)
                for uid in there.sop_classes
                for syntax in dict.fromkeys((*there.transfer_syntaxes, *NATIVE))
            ],
        )

    async def _survey(self, retrieve: Retrieve) -> Survey:
        """What there is to be retrieved, and where."""
        there, keys = Survey(), retrieve.keys
        if is_empty(keys):
            return there
        restricted = [keys]
        if (
            keys.study_instance_uids is None
            and keys.series_instance_uids is None
            and keys.sop_instance_uids is None
        ):
            # Of a patient: its studies, as there are servers that do not search instances everywhere.
            query = Query(Level.STUDY, {**key_elements(keys), "0020000D": {"vr": "UI"}})
            async with aclosing(self.query(query)) as studies:
                uids = [text_of(study, _STUDY) async for study in studies if matches_keys(study, keys)]
            restricted = [UniqueKeys(study_instance_uids=[uid]) for uid in uids if uid]
        returned: Model = {f"{tag:08X}": {"vr": "UI"} for tag in SURVEYED}
        for each in restricted:
            identifier = returned | key_elements(each)
            query = Query(Level.IMAGE, {key: identifier[key] for key in sorted(identifier)})
            async with aclosing(self.query(query)) as instances:
                async for instance in instances:
                    if matches_keys(instance, each):
                        there.add(instance, each)
        return there

    async def _instances(self, there: Survey) -> AsyncGenerator[Instance | Unavailable, None]:
        missing = dict.fromkeys(there.uids)
        any_came = False
        for path in there.paths:
            try:
                async with aclosing(self._retrieved(path)) as instances:
                    async for instance in instances:
                        if instance.sop_instance_uid in missing:
                            del missing[instance.sop_instance_uid]
                            any_came = True
                            yield instance
            except (DimseError, AssociationError) as error:
                if not any_came:
                    raise
                logger.warning("%s: a retrieve broke off: %s", self, error)
                break
        for uid in missing:
            yield Unavailable(uid)

    async def _retrieved(self, path: str) -> AsyncGenerator[Instance, None]:
        """The instances of one request. The data of each is read before the next is asked for."""
        async with self._get(path, RELATED_DICOM) as response:
            if response.status in (204, 404, 410):
                return
            if not _is_success(response.status):
                raise self._refused(response.status)
            body = ResponseBody(response)
            try:
                async with aclosing(files_of(body, response.headers)) as files:
                    async for file in files:
                        content = WatchedContent(file)
                        try:
                            instance = await uploaded_instance(content)
                        except HTTPError as error:
                            if content.error is not None:
                                raise
                            logger.warning("%s: a part is no DICOM file: %s", self, error.message)
                            continue
                        yield instance
                        if content.error is not None:
                            raise content.error
            except HTTPError as error:
                raise DimseError(
                    Status.CANNOT_UNDERSTAND,
                    "what the DICOMweb server sent is no multipart/related of DICOM files",
                ) from error

    async def metadata(self, retrieve: Retrieve, root: str) -> AsyncGenerator[bytes | Unavailable, None]:
        """By retrieving the instances, as their headers are."""
        async with aclosing(headers_of(await self.retrieve(retrieve), root)) as headers:
            async for header in headers:
                yield header

    async def locate(self, retrieve: Retrieve) -> tuple[StoredInstance, Model] | None:
        return None

    async def version(self, retrieve: Retrieve) -> str | None:
        return None

    # Storing

    def store(self, request: StoreRequest) -> Sink:
        """Sends the data set on while it arrives; the status is what the server answers."""

        async def send(stream: DataStream) -> Outcome:
            return await self.store_instance(
                Instance(
                    request.affected_sop_class_uid,
                    request.affected_sop_instance_uid,
                    request.transfer_syntax_uid,
                    stream,
                )
            )

        return AsyncSink(request.association, send)

    async def store_instance(self, instance: Instance) -> Outcome:
        """STOW-RS. Raises DimseError for every failure; A700 for a server that is not to be had, as senders try again
        later then."""
        boundary = new_boundary()
        headers = self._headers.set("Accept", JSON).set(
            "Content-Type", f'multipart/related; type="{DICOM}"; boundary={boundary}'
        )
        body = MultipartBody(_one_part(instance), boundary)
        try:
            async with self._client.stream(
                "POST", "/studies", body=_Bytes(body), headers=headers
            ) as response:
                report = bytearray()
                async for chunk in response:
                    report += chunk
                    if len(report) > MAXIMUM_REPORT_BYTES:
                        break
                outcome = store_outcome(response.status, bytes(report), instance.sop_instance_uid)
        except UpstreamError as error:
            logger.warning("%s cannot be reached for a C-STORE: %s", self, error)
            raise DimseError(Status.OUT_OF_RESOURCES, "the DICOMweb server cannot be reached") from lost(
                error
            )
        finally:
            await body.aclose()
        if outcome.status_class not in (StatusClass.SUCCESS, StatusClass.WARNING):
            raise DimseError(outcome.status, outcome.error_comment)
        return outcome

    def association_established(self, association: Association) -> None:
        pass

    def association_ended(self, association: Association, error: AssociationError | None) -> None:
        pass

    # Requests

    @asynccontextmanager
    async def _get(self, path: str, accept: str) -> AsyncIterator[UpstreamStream]:
        """Raises AssociationError when no response begins; tried again as long as no connection comes about."""
        headers = self._headers.set("Accept", accept)
        async with AsyncExitStack() as stack:
            for tried in range(self._retries + 1):
                try:
                    exchange = self._client.stream("GET", path, headers=headers)
                    response = await stack.enter_async_context(exchange)
                    break
                except UpstreamError as error:
                    if error.kind != "connect" or tried == self._retries:
                        raise lost(error) from error
                await asyncio.sleep(FIRST_RETRY_S * 2.0**tried)
            yield response

    def _refused(self, http_status: int) -> DimseError:
        status = refusal(http_status)
        logger.info("%s answered %d", self, http_status)
        if Outcome(status).status_class is not StatusClass.FAILURE:
            status = Status.CANNOT_UNDERSTAND
        return DimseError(status, f"the DICOMweb server answered {http_status}")


class _Bytes:
    """A request body, of bytes."""

    def __init__(self, body: MultipartBody) -> None:
        self._body = body

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        return bytes(await anext(self._body))


async def _one_part(instance: Instance) -> AsyncGenerator[OutgoingPart, None]:
    yield OutgoingPart(DICOM, _file(instance))


async def _file(instance: Instance) -> AsyncGenerator[bytes | memoryview, None]:
    yield encode_file_meta(
        transfer_syntax_uid=instance.transfer_syntax_uid,
        media_storage_sop_class_uid=instance.sop_class_uid,
        media_storage_sop_instance_uid=instance.sop_instance_uid,
    )
    async with aclosing(pieces(instance.data)) as fragments:
        async for fragment in fragments:
            yield fragment


def _encodable(match: Model) -> Model:
    """Without attributes whose values are none of their VR: one of them must not cost the whole match."""
    while True:
        try:
            encode_data_set(match, EXPLICIT_VR_LITTLE_ENDIAN)
            return match
        except ModelError as error:
            key = error.key[:8]
            if key not in match:
                raise DimseError(
                    Status.CANNOT_UNDERSTAND, "an answer of the DICOMweb server cannot be encoded"
                ) from error
            match = {each: element for each, element in match.items() if each != key}


def _is_success(http_status: int) -> bool:
    return 200 <= http_status < 300
