"""Instances in another native transfer syntax (PS3.5 annex A): Implicit VR Little Endian, Explicit VR Little Endian,
Deflated Explicit VR Little Endian, Explicit VR Big Endian (retired, still stored and still asked for).

`transcode` is the hook of `harmony.dimse.retrieve_scp` for receivers that do not accept what is stored. `Transcoder` is
the same without input and output: bytes in, bytes out, in constant memory. Nothing is lost except what the encodings
cannot hold: private VRs in Implicit VR.

Deliberately not here: encapsulated transfer syntaxes, in either direction. That would be image codecs.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace

from harmony.dicom.data_set_converter import DataSetConverter, Piece, TranscodeError
from harmony.dicom.vr import KNOWN_VRS
from harmony.dimse.scu import Instance
from harmony.dimse.sop_class import (
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
)
from harmony.dimse.source import Data, pieces

__all__ = ["NATIVE_TRANSFER_SYNTAXES", "TranscodeError", "Transcoder", "in_turns", "transcode"]

NATIVE_TRANSFER_SYNTAXES = (
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_BIG_ENDIAN,
)
"""In the order of preference: keeps the VRs; needs no compression; what only the last resort should be."""

AHEAD_BYTES = 1024 * 1024
"""Converted before anything is sent, so that an error in it, where the headers are, costs one sub-operation. A later
one costs the association: what has been sent of a data set cannot be taken back."""

_INFLATE_INPUT_BYTES = 4 * 1024  # small, because zlib copies what one call leaves over
_INFLATE_OUTPUT_BYTES = 64 * 1024
_COMPRESSION_LEVEL = 1  # while an association waits, speed counts


async def transcode(instance: Instance, accepted: Sequence[str]) -> Instance | None:
    """The instance in the best of the accepted transfer syntaxes; None when that one or its own is not native.

    Raises TranscodeError, here or from the data of the result, when the data set contradicts itself; that data is
    bytes, or an async generator whose pieces are valid until the next one is asked for. The data of `instance` is
    closed when the result has been used.
    """
    target = next((syntax for syntax in NATIVE_TRANSFER_SYNTAXES if syntax in accepted), None)
    if target is None or instance.transfer_syntax_uid not in NATIVE_TRANSFER_SYNTAXES:
        return None
    stream = _stream(instance.data, Transcoder(instance.transfer_syntax_uid, target))
    whole = await anext(stream)
    return replace(instance, transfer_syntax_uid=target, data=whole or stream)


async def _stream(data: Data, transcoder: Transcoder) -> AsyncGenerator[bytes | memoryview, None]:
    """Yield the whole conversion if it is short, else b"" and then the conversion in pieces."""
    ahead: bytearray | None = bytearray()
    async with aclosing(pieces(data)) as source:
        async for original in source:
            for piece in transcoder.feed(original):
                if ahead is None:
                    yield piece
                    continue
                ahead += piece
                if len(ahead) >= AHEAD_BYTES:
                    yield b""
                    yield bytes(ahead)
                    ahead = None
                await asyncio.sleep(0)  # a long header takes its time
            await asyncio.sleep(0)  # and so does what leaves nothing to send
        last = b"".join(transcoder.finish())
        yield last if ahead is None else bytes(ahead) + last


async def in_turns(chunks: AsyncIterable[Piece], transfer_syntax_uid: str) -> AsyncGenerator[Piece, None]:
    """A data set in portions, after each of which others have their turn: what is deflated may be a thousand times as
    long as it looks."""
    deflated = transfer_syntax_uid == DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN
    async for chunk in chunks:
        step = _INFLATE_INPUT_BYTES if deflated else len(chunk)
        for at in range(0, len(chunk), step or 1):
            yield chunk[at : at + step]
            await asyncio.sleep(0)


class Transcoder:
    """Incremental conversion between two of NATIVE_TRANSFER_SYNTAXES. Raises TranscodeError."""

    def __init__(self, transfer_syntax_uid: str, target_transfer_syntax_uid: str) -> None:
        self._inflater = _Inflater() if transfer_syntax_uid == DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN else None
        deflates = target_transfer_syntax_uid == DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN
        self._deflater = _Deflater() if deflates else None
        self._converter = DataSetConverter(
            EXPLICIT_VR_LITTLE_ENDIAN if self._inflater else transfer_syntax_uid,
            EXPLICIT_VR_LITTLE_ENDIAN if deflates else target_transfer_syntax_uid,
        )

    def feed(self, data: bytes | memoryview) -> Iterator[Piece]:
        """Convert the next bytes; to be iterated to the end. Memoryviews may be views of `data`."""
        for piece in (data,) if self._inflater is None else self._inflater.feed(data):
            yield from self._deflated(self._converter.feed(piece))

    def finish(self) -> Iterator[Piece]:
        """No more bytes will come; to be iterated to the end."""
        for piece in () if self._inflater is None else self._inflater.finish():
            yield from self._deflated(self._converter.feed(piece))
        yield from self._deflated(self._converter.finish())
        if self._deflater is not None:
            yield from self._deflater.finish()

    def _deflated(self, converted: Iterable[Piece]) -> Iterable[Piece]:
        return converted if self._deflater is None else self._deflater.feed(converted)


class _Deflater:
    """Raw deflate, made even with a NUL (PS3.5 §A.5)."""

    def __init__(self) -> None:
        self._compressor = zlib.compressobj(_COMPRESSION_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
        self._size = 0

    def feed(self, converted: Iterable[Piece]) -> Iterator[bytes]:
        for piece in converted:
            if compressed := self._compressor.compress(piece):
                self._size += len(compressed)
                yield compressed

    def finish(self) -> Iterator[bytes]:
        rest = self._compressor.flush()
        yield rest + b"\0" * ((self._size + len(rest)) % 2)


class _Inflater:
    """Raw deflate as PS3.5 §A.5 has it, zlib-wrapped as some senders write it, or not deflated at all.

    What it yields at a time is bounded, so a bomb is somebody else's long data set; what follows the end is padding.
    """

    def __init__(self) -> None:
        self._start: bytes | None = b""  # until it shows what this is
        self._decompressor: zlib._Decompress | None = None

    def feed(self, data: bytes | memoryview) -> Iterator[Piece]:
        piece: Piece = data
        if self._start is not None:
            piece = self._start + data
            if len(piece) < 8:
                self._start = piece
                return
            yield from self._begin(piece)
        else:
            yield from self._inflated(piece)

    def finish(self) -> Iterator[Piece]:
        if self._start:
            yield from self._begin(self._start)
        if self._decompressor is not None and not self._decompressor.eof:
            raise TranscodeError("the deflated data set is not complete")

    def _begin(self, start: bytes) -> Iterator[Piece]:
        self._start = None
        if not (start[4:6] in KNOWN_VRS and start[:2] == b"\x08\x00"):
            # RFC 1950 §2.2: the first two bytes of zlib are a multiple of 31, with 8 in the low nibble, which is no
            # beginning that a deflater writes.
            wrapped = start[0] & 0x0F == 8 and start[0] < 0x80 and int.from_bytes(start[:2], "big") % 31 == 0
            self._decompressor = zlib.decompressobj(zlib.MAX_WBITS if wrapped else -zlib.MAX_WBITS)
        yield from self._inflated(start)

    def _inflated(self, data: Piece) -> Iterator[Piece]:
        decompressor = self._decompressor
        if decompressor is None:
            yield data
            return
        try:
            for at in range(0, len(data), _INFLATE_INPUT_BYTES):
                piece: Piece = data[at : at + _INFLATE_INPUT_BYTES]
                while not decompressor.eof:
                    inflated = decompressor.decompress(piece, _INFLATE_OUTPUT_BYTES)
                    if inflated:
                        yield inflated
                    piece = decompressor.unconsumed_tail
                    if not piece and len(inflated) < _INFLATE_OUTPUT_BYTES:
                        break
        except zlib.error:
            raise TranscodeError("the deflated data set cannot be inflated") from None
