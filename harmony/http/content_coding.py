"""Compressed answers: gzip and zstd by Accept-Encoding (RFC 9110 §8.4.1, §12.5.3, RFC 8878).

`encode_content` takes a response that a handler has made and returns the one to send. It compresses text that is worth
it, JSON above all: DICOM objects are not, they are large, often compressed already, and must not wait for a compressor.
A body that is streamed is compressed chunk by chunk, and each chunk leaves when it has come; large ones are compressed
in a thread.

Without Accept-Encoding nothing is compressed, though the standard would permit it; a client that forbids `identity` and
has neither coding gets it all the same, as the standard permits. Vary names Accept-Encoding whenever it could have made
a difference.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import Final, Protocol

import zstandard

from harmony.http.accept import split_list, weight_of
from harmony.http.headers import Headers
from harmony.http.media_type import parse_media_type
from harmony.http.message import FileSpan, Piece, Request, Response

__all__ = ["add_vary", "chosen_coding", "encode_content"]

MINIMUM_BYTES: Final = 1024
"""Less fits into one packet anyway."""
IN_THREAD_BYTES: Final = 32 * 1024
"""Compressing this takes about as long as handing it to a thread does."""
GZIP_LEVEL: Final = 6
ZSTD_LEVEL: Final = 3

_COMPRESSED_TYPES: Final = ("application/json", "application/xml", "application/javascript")
_NEVER: Final = (204, 206, 304)
"""No body, or a part of one, whose ranges are counted in the representation as it is."""


class _Compressor(Protocol):
    def compress(self, data: bytes | memoryview) -> bytes: ...

    def flush_block(self) -> bytes:
        """What was compressed so far can be decompressed after this."""

    def finish(self) -> bytes: ...


class _Gzip:
    def __init__(self) -> None:
        self._zlib = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, zlib.MAX_WBITS | 16)

    def compress(self, data: bytes | memoryview) -> bytes:
        return self._zlib.compress(data)

    def flush_block(self) -> bytes:
        return self._zlib.flush(zlib.Z_SYNC_FLUSH)

    def finish(self) -> bytes:
        return self._zlib.flush()


class _Zstd:
    def __init__(self) -> None:
        self._zstd = zstandard.ZstdCompressor(level=ZSTD_LEVEL).compressobj()

    def compress(self, data: bytes | memoryview) -> bytes:
        return self._zstd.compress(data)

    def flush_block(self) -> bytes:
        return self._zstd.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)

    def finish(self) -> bytes:
        return self._zstd.flush()


_CODINGS: Final[dict[str, Callable[[], _Compressor]]] = {"zstd": _Zstd, "gzip": _Gzip}
"""The best one first."""
_NAMES: Final = {"x-gzip": "gzip"}  # RFC 9110 §8.4.1.3


async def encode_content(request: Request, response: Response) -> Response:
    """The response to send, which may be the same one."""
    if (
        response.status in _NEVER
        or response.body is None
        or "content-encoding" in response.headers
        or not _is_text(response.headers.get("content-type"))
    ):
        return response
    body = response.body
    if not isinstance(body, bytes | AsyncIterable):
        return response
    if isinstance(body, bytes) and len(body) < MINIMUM_BYTES:
        return response
    headers = add_vary(response.headers, "Accept-Encoding")
    coding = chosen_coding(request.headers.get("accept-encoding"))
    if coding is None:
        return Response(response.status, headers, body, content_length=response.content_length)
    compressor = _CODINGS[coding]()
    headers = headers.set("Content-Encoding", coding)
    etag = headers.get("etag")
    if etag is not None and not etag.startswith("W/"):  # a strong one is about bytes (RFC 9110 §8.8.3)
        headers = headers.set("ETag", f"W/{etag}")
    if isinstance(body, bytes):
        compressed = await _run(lambda: compressor.compress(body) + compressor.finish(), len(body))
        return Response(response.status, headers, compressed)
    return Response(response.status, headers, _CompressedBody(body, compressor))


def chosen_coding(accept_encoding: str | None) -> str | None:
    """The best content coding there is for a client; None: as it is."""
    weights: dict[str, float] = {}
    for member in split_list(accept_encoding or ""):
        name, _, parameter = (part.strip().lower() for part in member.partition(";"))
        weight = weight_of(parameter.partition("=")[2].strip() or "1")
        if name and weight is not None:
            weights.setdefault(_NAMES.get(name, name), weight)
    others = weights.get("*", 0.0)
    best = max(_CODINGS, key=lambda coding: weights.get(coding, others))
    weight = weights.get(best, others)
    return best if weight and weight >= weights.get("identity", 0.0) else None


def add_vary(headers: Headers, name: str) -> Headers:
    """`headers` whose Vary names this request header as well."""
    varies = headers.get("vary") or ""
    named = [each.strip() for each in varies.split(",") if each.strip()]
    if "*" in named or name.lower() in (each.lower() for each in named):
        return headers
    return headers.set("Vary", ", ".join([*named, name]))


def _is_text(content_type: str | None) -> bool:
    try:
        essence = parse_media_type(content_type or "").essence
    except ValueError:
        return False
    return essence in _COMPRESSED_TYPES or essence.endswith(("+json", "+xml")) or essence.startswith("text/")


async def _run(compress: Callable[[], bytes], size_bytes: int) -> bytes:
    return compress() if size_bytes < IN_THREAD_BYTES else await asyncio.to_thread(compress)


class _CompressedBody:
    """An iterator and no generator, because one that nobody began would not close what it reads."""

    def __init__(self, body: AsyncIterable[Piece], compressor: _Compressor) -> None:
        self._chunks = aiter(body)
        self._compressor = compressor
        self._over = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._over:
            raise StopAsyncIteration
        async for chunk in self._chunks:
            return await _run(lambda: self._compress(chunk), len(chunk))  # noqa: B023 - awaited right here
        self._over = True
        return self._compressor.finish()

    def _compress(self, chunk: Piece) -> bytes:
        if isinstance(chunk, FileSpan):
            chunk = bytes(chunk)
        return self._compressor.compress(chunk) + self._compressor.flush_block()

    async def aclose(self) -> None:
        self._over = True
        close = getattr(self._chunks, "aclose", None)  # generators have it, an AsyncIterator need not
        if close is not None:
            await close()
