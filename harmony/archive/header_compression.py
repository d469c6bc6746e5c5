"""Compress the headers of stored instances, each with the first header of its series as dictionary.

The instances of a series differ in a handful of attributes. Zstandard with a dictionary (RFC 8878 §5) leaves of the
others next to nothing: measured on CT, MR and ultrasound headers, 100 to 150 bytes instead of 2 000 without a
dictionary, in 2 us instead of 15, and back in 0.5. Levels above 3 take longer and save a dozen bytes.

The price: a header cannot be read without its series' dictionary, which therefore never changes while the series is
there. Prepared dictionaries are kept for the series used last.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec
import zstandard

from harmony.archive.levels import Entity

__all__ = ["HeaderCompressor", "HeaderDamaged", "HeaderDecompressor", "decode_header", "new_dictionary"]

LEVEL = 3
COMPRESSORS = 64
"""Series the writer keeps a prepared dictionary for: 100 KiB each, made in 20 us when it is needed again."""
DECOMPRESSORS = 256
"""The same per reader; each is hardly larger than a header."""
MAXIMUM_HEADER_BYTES = 256 * 1024 * 1024
"""Decompressed; more than the index ever takes in, so anything larger is a damaged row."""

# Quotation marks inside of values are escaped, so this is none.
_REFERENCE = b',"BulkDataURI":'
_without_references = re.compile(rb',"BulkDataURI":"[^"]*"').sub

_encode = msgspec.json.Encoder().encode
_decoder: msgspec.json.Decoder[Entity] = msgspec.json.Decoder(Entity)
_T = TypeVar("_T")


class HeaderDamaged(ValueError):
    """What is stored as a header is none."""


class _Recent(Generic[_T]):
    """What was made for the series used last."""

    def __init__(self, size: int, load: Callable[[int], bytes], make: Callable[[bytes], _T]) -> None:
        self._size = size
        self._load = load
        self._make = make
        self._kept: dict[int, _T] = {}

    def get(self, series: int) -> _T:
        made = self._kept.get(series)
        if made is None:
            made = self._make(self._load(series))
            if len(self._kept) >= self._size:
                del self._kept[next(iter(self._kept))]
            self._kept[series] = made
        return made

    def clear(self) -> None:
        self._kept.clear()


def new_dictionary(header: Entity) -> bytes:
    """Make the dictionary of a series from its first header, as it is to be stored."""
    return zstandard.ZstdCompressor(level=LEVEL).compress(_encode(header))


class HeaderCompressor:
    """Compresses, in one thread at a time. load: returns what `new_dictionary` made for a series."""

    def __init__(self, load: Callable[[int], bytes]) -> None:
        self._recent = _Recent(COMPRESSORS, load, _compressor)

    def compress(self, series: int, header: Entity) -> bytes:
        return self._recent.get(series).compress(_encode(header))

    def forget(self) -> None:
        """Drop what is kept: series were rolled back, and their numbers will be used again."""
        self._recent.clear()


class HeaderDecompressor:
    """Decompresses, in one thread at a time."""

    def __init__(self, load: Callable[[int], bytes]) -> None:
        self._recent = _Recent(DECOMPRESSORS, load, _decompressor)

    def decompress(self, series: int, content: bytes) -> Entity:
        """Return a header, without references to bulk data. Raises HeaderDamaged."""
        encoded = self.encoded(series, content)
        if _REFERENCE in encoded:
            encoded = _without_references(b"", encoded)
        try:
            return decode_header(encoded)
        except msgspec.DecodeError as error:
            raise HeaderDamaged(f"a header of series row {series} cannot be decoded") from error

    def encoded(self, series: int, content: bytes) -> bytes:
        """Return a header as JSON without white space, as it was compressed. Raises HeaderDamaged."""
        try:
            return self._recent.get(series).decompress(content, max_output_size=MAXIMUM_HEADER_BYTES)
        except zstandard.ZstdError as error:
            raise HeaderDamaged(f"a header of series row {series} cannot be decompressed") from error

    def forget(self) -> None:
        """Drop what is kept."""
        self._recent.clear()


def decode_header(encoded: bytes) -> Entity:
    """Decode what `HeaderDecompressor.encoded` returned."""
    return _decoder.decode(encoded)


def _dictionary(stored: bytes) -> zstandard.ZstdCompressionDict:
    content = zstandard.ZstdDecompressor().decompress(stored, max_output_size=MAXIMUM_HEADER_BYTES)
    return zstandard.ZstdCompressionDict(content, dict_type=zstandard.DICT_TYPE_RAWCONTENT)


def _compressor(stored: bytes) -> zstandard.ZstdCompressor:
    dictionary = _dictionary(stored)
    dictionary.precompute_compress(level=LEVEL)
    return zstandard.ZstdCompressor(level=LEVEL, dict_data=dictionary, write_checksum=False)


def _decompressor(stored: bytes) -> zstandard.ZstdDecompressor:
    return zstandard.ZstdDecompressor(dict_data=_dictionary(stored))
