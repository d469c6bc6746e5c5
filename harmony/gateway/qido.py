"""Search over HTTP (QIDO-RS, PS3.18 §10.6), in front of any Backend.

What a request asks for is `harmony.gateway.qido_request`. Here it is asked of the backend, and what comes back is
streamed as application/dicom+json: an array, each match in it as it was found, with the attributes that PS3.18 wants at
its level and a Retrieve URL. multipart/related of application/dicom+xml is refused with 406.

The status leaves when the search has begun to be answered, so what goes wrong before the first match is an honest
error; what goes wrong later resets the connection, for half an array must not look complete. A little more is waited
for than the first match, `LOOK_AHEAD_BYTES`, because only a header can say that there are more matches than were
returned: a longer answer whose end is not known by then says that there may be.

- No match: 204 with no body, or 200 with an empty array where that is wanted (CP-2473).
- At most maximum_results, whatever the limit: Warning, and offset gets the rest. A PACS that finds too much to answer
  at all is 413.
- Matches come in the order of the backend. An archive keeps it while nothing is stored; a PACS usually does.
- What a PACS need not know is asked of it in terms that it does (`harmony.gateway.pacs_search`).

Errors of the backend pass as they are (`harmony.gateway.backend_errors`).
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from typing import Final, Literal
from urllib.parse import quote

import msgspec

from harmony.archive.levels import Level
from harmony.dicom.json_model import Element, Model, text_of, vr_of
from harmony.dimse.status import DimseError, Status
from harmony.gateway.backend import Backend
from harmony.gateway.pacs_search import search_pacs
from harmony.gateway.qido_request import Search, Target, read_search
from harmony.http import Headers, HTTPError, Request, Response
from harmony.http.accept import Offer, negotiate

__all__ = ["Qido"]

MAXIMUM_RESULTS: Final = 10_000
"""Some 15 MB of JSON. More is to be asked for with offset."""
LOOK_AHEAD_BYTES: Final = 256 * 1024
"""What is held back before the status leaves: some two hundred matches."""

DICOM_JSON: Final = "application/dicom+json"
OFFERS: Final = (Offer(DICOM_JSON, DICOM_JSON, also=("application/json", "text/json")),)

_RETRIEVE_URL: Final = "00081190"
_OF_MESSAGES: Final = frozenset(("00080005", "00080052", "00080053"))
"""What C-FIND says about its own messages; JSON is UTF-8 (PS3.18 §F.1)."""
_PATHS: Final = (("studies", 0x0020000D), ("series", 0x0020000E), ("instances", 0x00080018))
_UNRESERVED: Final = re.compile(r"[0-9A-Za-z.]*")
_DEPTHS: Final = {Level.STUDY: 1, Level.SERIES: 2, Level.IMAGE: 3}


class Qido:
    """The searches of one endpoint.

    maximum_results: of one answer. match_empty_values, fuzzy_names: as with a `dicom_scp` endpoint; a PACS does as it
    will. empty_status: of an answer without matches.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        maximum_results: int = MAXIMUM_RESULTS,
        match_empty_values: bool = True,
        fuzzy_names: bool = False,
        empty_status: Literal[200, 204] = 204,
    ) -> None:
        self._backend = backend
        self._maximum_results = maximum_results
        self._match_empty_values = match_empty_values
        self._fuzzy_names = fuzzy_names
        self._empty_status = empty_status

    async def search(
        self,
        request: Request,
        level: Level,
        *,
        study_uid: str | None = None,
        series_uid: str | None = None,
        instance_uid: str | None = None,
        root: str,
    ) -> Response:
        """Answer a search for the entities of a level within what the path names, or for the one that it names.

        root: URL of the service, without a slash at its end. Raises HTTPError, and what backends raise.
        """
        negotiate(request, OFFERS)
        search = read_search(
            request.query,
            Target(level, study_uid, series_uid, instance_uid),
            matches_as_asked=self._backend.matches_as_asked,
            match_empty_values=self._match_empty_values,
            fuzzy_names=self._fuzzy_names,
        )
        limit = self._maximum_results if search.limit is None else min(search.limit, self._maximum_results)
        warnings = list(search.warnings)
        headers = Headers({"Content-Type": DICOM_JSON, "Vary": "Accept"})
        if limit == 0:
            return self._empty(headers, root, warnings)
        results = _Results(_matches(self._backend, search, limit + 1), limit, _Answers(search, root))
        try:
            await results.begin()
        except BaseException as error:
            await results.aclose()
            if isinstance(error, DimseError) and error.status == Status.OUT_OF_RESOURCES:
                raise HTTPError(
                    413, "the PACS finds too much to answer: narrow the search, or give a limit"
                ) from error
            raise
        if results.is_empty:
            await results.aclose()
            return self._empty(headers, root, warnings)
        if results.is_cut:
            warnings.append("There are additional results that can be requested with offset.")
        elif not results.is_known:
            warnings.append(
                f"There are at most {limit} results in this answer; more can be requested with offset."
            )
        body = results.whole() if results.is_known else results
        return Response(200, _with_warnings(headers, root, warnings), body)

    def _empty(self, headers: Headers, root: str, warnings: list[str]) -> Response:
        headers = _with_warnings(headers, root, warnings)
        if self._empty_status == 204:
            return Response(204, headers.without("Content-Type"))
        return Response(200, headers, b"[]")


def _matches(backend: Backend, search: Search, limit: int) -> AsyncGenerator[Model, None]:
    query = replace(search.query, limit=limit)
    return backend.query(query) if backend.matches_as_asked else search_pacs(backend.query, query)


def _with_warnings(headers: Headers, root: str, warnings: list[str]) -> Headers:
    """Warning as PS3.18 §8.5.1 has it; RFC 9111 §5.5 has given it up since."""
    for text in warnings:
        headers = headers.add("Warning", f'299 {root or "-"} "{text}"')
    return headers


class _Answers:
    """What becomes of a match."""

    def __init__(self, search: Search, root: str) -> None:
        self._all = search.query.all_attributes
        self._level = search.query.level
        self._always: Model = {tag: {"vr": vr_of(int(tag, 16))} for tag in search.always}
        if_known = frozenset(search.if_known) - set(search.if_present)
        wanted = {*search.always, *search.if_known, *search.if_present, _RETRIEVE_URL} - _OF_MESSAGES
        self._wanted = [(tag, tag in if_known, self._always.get(tag)) for tag in sorted(wanted)]
        """In the order of the answer: whether to leave it out when it has no value, what stands for it when it is not
        there."""
        self._root = root

    def encode(self, match: Model) -> bytes:
        url: Element = {"vr": "UR", "Value": [self._retrieve_url(match)]}
        answer: Model = {}
        if self._all:
            # Bulk data are what /metadata and /bulkdata are for.
            known = {tag: each for tag, each in match.items() if "InlineBinary" not in each}
            answer = self._always | known | {_RETRIEVE_URL: url}
            return msgspec.json.encode({tag: answer[tag] for tag in sorted(answer.keys() - _OF_MESSAGES)})
        found = match | {_RETRIEVE_URL: url}
        for tag, only_if_known, blank in self._wanted:
            element = found.get(tag, blank)
            if element is not None and not (only_if_known and "Value" not in element):
                answer[tag] = element
        return msgspec.json.encode(answer)

    def _retrieve_url(self, match: Model) -> str:
        path = self._root
        for name, tag in _PATHS[: _DEPTHS[self._level]]:
            uid = text_of(match, tag)
            path += f"/{name}/{uid if _UNRESERVED.fullmatch(uid) else quote(uid, safe='')}"
        return path


class _Results:
    """The body: an array. An iterator and no generator, as one that nobody began would not be closed."""

    def __init__(self, matches: AsyncGenerator[Model, None], limit: int, answers: _Answers) -> None:
        """matches: one more than limit when there are more."""
        self._matches = matches
        self._answers = answers
        self._limit = limit
        self._count = 0
        self._ahead: deque[bytes] = deque()
        self._before = b"["
        self._ended = False
        self._over = False
        self.is_cut = False
        """There are more than limit."""

    async def begin(self) -> None:
        """Wait for the end or LOOK_AHEAD_BYTES of matches."""
        held = 0
        while held < LOOK_AHEAD_BYTES and (encoded := await self._next()) is not None:
            self._ahead.append(encoded)
            held += len(encoded)

    @property
    def is_empty(self) -> bool:
        return self._ended and not self._count

    @property
    def is_known(self) -> bool:
        """All of them have come."""
        return self._ended

    def whole(self) -> bytes:
        """The body of an answer that is known, instead of iterating; closed already."""
        return b"[" + b",".join(self._ahead) + b"]"

    async def _next(self) -> bytes | None:
        """The next match, None at the end or at the limit."""
        if self._ended:
            return None
        match = await anext(self._matches, None)
        self.is_cut = match is not None and self._count == self._limit
        if match is None or self.is_cut:
            self._ended = True
            await self._matches.aclose()  # nobody waits for what comes after the limit
            return None
        self._count += 1
        return self._answers.encode(match)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._over:
            raise StopAsyncIteration
        if self._ahead:
            chunk = self._before + b",".join(self._ahead)
            self._ahead.clear()
        else:
            encoded = await self._next()
            if encoded is None:
                self._over = True
                return b"]"
            chunk = self._before + encoded
        self._before = b","
        return chunk

    async def aclose(self) -> None:
        await self._matches.aclose()
