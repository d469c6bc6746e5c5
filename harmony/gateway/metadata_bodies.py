"""The headers of instances in the body of an HTTP response (PS3.18 §10.4.1.1.2): one JSON array, or XML in parts.

`HeadersOfInstances` are those of `Backend.metadata`, as they come; `MetadataArray` and `NativeModels` are bodies of
them. `begin` waits for the first, so that what is wrong before has a status of its own: 404 nothing is there, 502 not
to be had; 206 when it is known by then that some are missing. Those that go missing after a 200 break the connection
off.

Called by `harmony.gateway.wado`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final

import msgspec

from harmony.dicom.json_model import Model
from harmony.dicom.native_model import encode_native_model
from harmony.dimse.retrieve_scp import Unavailable
from harmony.gateway.instance_files import IncompleteRetrieve
from harmony.http import HTTPError
from harmony.http.multipart_writer import OutgoingPart

__all__ = ["HeadersOfInstances", "MetadataArray", "NativeModels"]

_CHUNK_BYTES: Final = 64 * 1024
_LONG_HEADER_BYTES: Final = 64 * 1024
"""Writing a longer one as XML takes milliseconds, which others should not wait for."""


class HeadersOfInstances:
    """An iterator over headers, each a JSON object."""

    def __init__(self, headers: AsyncGenerator[bytes | Unavailable, None]) -> None:
        self.status = 0
        """Known after `begin`."""
        self._headers = headers
        self._first: bytes | None = None
        self._missing = 0
        self._sent = 0

    async def begin(self) -> None:
        """Wait for the first header. Raises HTTPError when there is none, and what the backend raises."""
        try:
            self._first = await self._next()
            if self._first is None:
                if self._missing:
                    raise HTTPError(502, f"none of {self._missing} instances can be read")
                raise HTTPError(404, "Not found")
        except BaseException:
            await self.aclose()
            raise
        self.status = 206 if self._missing else 200

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        header, self._first = self._first, None
        if header is None:
            header = await self._next()
        if header is not None:
            self._sent += 1
            return header
        if self._missing and self.status == 200:
            raise IncompleteRetrieve(
                f"{self._missing} of {self._missing + self._sent} headers could not be sent"
            )
        raise StopAsyncIteration

    async def _next(self) -> bytes | None:
        async for header in self._headers:
            if not isinstance(header, Unavailable):
                return header
            self._missing += 1
        return None

    async def aclose(self) -> None:
        await self._headers.aclose()


class MetadataArray:
    """One JSON array (PS3.18 §F.2.1); the first header leaves as soon as it is there."""

    def __init__(self, headers: HeadersOfInstances) -> None:
        self._headers = headers
        self._begun = False
        self._over = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._over:
            raise StopAsyncIteration
        chunk = bytearray()
        async for header in self._headers:
            first, self._begun = not self._begun, True
            chunk += b"[" if first else b","
            chunk += header
            if first or len(chunk) >= _CHUNK_BYTES:
                return bytes(chunk)
        self._over = True
        return bytes(chunk) + b"]"

    async def aclose(self) -> None:
        await self._headers.aclose()


class NativeModels:
    """Parts for multipart/related, one XML document for each instance (PS3.18 §F.3, PS3.19 §A.1)."""

    def __init__(self, headers: HeadersOfInstances) -> None:
        self._headers = headers

    def __aiter__(self) -> AsyncIterator[OutgoingPart]:
        return self

    async def __anext__(self) -> OutgoingPart:
        header = await anext(self._headers)
        long = len(header) > _LONG_HEADER_BYTES
        return OutgoingPart(
            "application/dicom+xml", await asyncio.to_thread(_in_xml, header) if long else _in_xml(header)
        )

    async def aclose(self) -> None:
        await self._headers.aclose()


def _in_xml(header: bytes) -> bytes:
    model: Model = msgspec.json.decode(header)
    return encode_native_model(model)
