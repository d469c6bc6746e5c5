"""Byte order of values (PS3.5 §7.3): which VRs are made of words of several bytes, and turning those round.

A value may come in any pieces: `WordSwapper` carries the beginning of a word that is split between two of them.
Deliberately not here: byte order of element headers. Called by `harmony.dicom.data_set_converter`.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

__all__ = ["WORD_BYTES", "WordSwapper", "swap_words"]

WORD_BYTES = {
    "AT": 2,
    "FD": 8,
    "FL": 4,
    "OD": 8,
    "OF": 4,
    "OL": 4,
    "OV": 8,
    "OW": 2,
    "SL": 4,
    "SS": 2,
    "SV": 8,
    "UL": 4,
    "US": 2,
    "UV": 8,
}
"""What PS3.5 §7.3 says is turned, VR by VR. AT is a pair of 16-bit numbers. OW is 16-bit words whatever Bits
Allocated says, a pixel of 32 bits included (PS3.5 §8.1.1, §8.2): the words keep their order."""

_TYPECODES = {2: "H", 4: "I", 8: "Q"}


def swap_words(value: bytes | memoryview, word_bytes: int) -> memoryview:
    """Turn every word round, in a copy. `value` is whole words."""
    words = array(_TYPECODES[word_bytes])
    words.frombytes(value)
    words.byteswap()
    return memoryview(words).cast("B")


class WordSwapper:
    """Turns the words of one value round while it arrives. Bytes after its last whole word stay as they are."""

    def __init__(self, word_bytes: int) -> None:
        self._word_bytes = word_bytes
        self._begun = b""  # of a word

    def feed(self, piece: bytes | memoryview) -> Iterator[bytes | memoryview]:
        """Take the next bytes of the value; what is yielded are copies."""
        size = self._word_bytes
        at = 0
        if self._begun:
            at = size - len(self._begun)
            self._begun += piece[:at]
            if len(self._begun) < size:
                return
            yield self._begun[::-1]
            self._begun = b""
        end = len(piece) - (len(piece) - at) % size
        if end > at:
            yield swap_words(piece[at:end], size)
        self._begun = bytes(piece[end:])

    def finish(self) -> bytes:
        """The value is over: return what is left of it."""
        rest, self._begun = self._begun, b""
        return rest
