"""Where the frames of an image are in its pixel data (PS3.5 §8, §A.4; PS3.3 §C.7.6.3).

`FrameLayout` says how long a native frame is. Frames of encapsulated pixel data are made of fragments: which of them,
the Extended or the Basic Offset Table says. Without either it is one fragment per frame when the numbers agree, all of
them when there is one frame, and else a frame begins where a codestream begins (`codestream_begins`).

`FileFrames` finds them in a file and reads nothing but offset tables and the headers of fragments. For pixel data that
arrive there is `harmony.dicom.frame_stream`. Not here: decoding, and the frames of a video, which has none by itself.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from struct import Struct
from typing import Any, Final

from harmony.dicom.json_model import text_of, values_of

__all__ = [
    "FileFrames",
    "FrameError",
    "FrameLayout",
    "Segment",
    "codestream_begins",
    "extended_offset_table",
    "frame_numbers",
    "has_codestream_marker",
    "is_video",
    "offset_table",
    "shifted",
]

MAXIMUM_FRAMES: Final = 10_000_000
"""More than any Number of Frames that is not a mistake."""
MAXIMUM_FRAGMENTS: Final = 1_000_000
"""Walked through without an offset table: some seconds, and 100 MB of positions."""

Segment = tuple[int, int]
"""Offset and length in a file."""

_ITEM: Final = b"\xfe\xff\x00\xe0"
_SEQUENCE_END: Final = b"\xfe\xff\xdd\xe0"
_UNDEFINED: Final = 0xFFFFFFFF
_ITEM_HEADER: Final = Struct("<4sI")
_SYNTAX = "1.2.840.10008.1.2."
_JPEG: Final = tuple(f"{_SYNTAX}4.{number}" for number in (*range(50, 67), 70, 80, 81))
_JPEG_2000: Final = tuple(f"{_SYNTAX}4.{number}" for number in (90, 91, 92, 93, 201, 202, 203))
_VIDEO: Final = tuple(f"{_SYNTAX}4.{number}" for number in range(100, 109))


class FrameError(ValueError):
    """The pixel data are not what the header says, or hold no frames. The message has no patient data."""


@dataclass(frozen=True, slots=True)
class FrameLayout:
    """How many frames there are, and how many bits of native pixel data each takes."""

    frame_count: int
    frame_bits: int

    @classmethod
    def of(cls, header: Mapping[str, Any]) -> FrameLayout:
        """From a header as a DICOM JSON model. Raises FrameError when it is not that of an image."""
        rows, columns = _number(header, 0x00280010), _number(header, 0x00280011)
        bits = _number(header, 0x00280100)
        if not rows or not columns or not bits:
            raise FrameError(
                "not an image: Rows (0028,0010), Columns (0028,0011) or Bits Allocated (0028,0100) missing"
            )
        samples = _number(header, 0x00280002) or 1
        if text_of(header, 0x00280004) in ("YBR_FULL_422", "YBR_PARTIAL_422"):
            samples = 2  # two pixels share what makes their colour (PS3.3 §C.7.6.3.1.2)
        return cls(_number(header, 0x00280008) or 1, rows * columns * samples * bits)

    def native(self, number: int) -> tuple[int, int, int]:
        """Where a native frame is, counted from 1: its first byte, how many bytes it reaches into, and how many bits of
        the first one belong to the frame before. Frames of one bit per pixel follow each other without padding
        (PS3.5 §8.1.1)."""
        first_bit = (number - 1) * self.frame_bits
        end_bit = first_bit + self.frame_bits
        return first_bit // 8, (end_bit + 7) // 8 - first_bit // 8, first_bit % 8

    @property
    def frame_bytes(self) -> int:
        """How long a native frame is on its own."""
        return (self.frame_bits + 7) // 8

    @property
    def is_aligned(self) -> bool:
        """Every native frame is whole bytes."""
        return self.frame_bits % 8 == 0


def frame_numbers(text: str) -> list[int] | None:
    """A frame list as in a URL, `1,2,5`: ascending (PS3.18 §10.1.2); None when it is none."""
    numbers = [
        int(each) if each.isascii() and each.isdigit() and len(each) < 9 else 0 for each in text.split(",")
    ]
    ascending = all(first < second for first, second in pairwise(numbers))
    return numbers if numbers[0] > 0 and ascending else None


def shifted(data: bytes, bits: int, shift: int) -> bytes:
    """`bits` bits from bit `shift` of the data on, the first in the lowest place; the last byte padded with zeros."""
    number = int.from_bytes(data, "little") >> shift & (1 << bits) - 1
    return number.to_bytes((bits + 7) // 8, "little")


def is_video(transfer_syntax_uid: str) -> bool:
    """Its pixel data is one codestream, whatever Number of Frames says."""
    return transfer_syntax_uid.removesuffix(".1") in _VIDEO or transfer_syntax_uid in _VIDEO


def has_codestream_marker(transfer_syntax_uid: str) -> bool:
    """Codestreams of this syntax can be told from the middle of one; of others a fragment is a frame."""
    return transfer_syntax_uid in _JPEG or transfer_syntax_uid in _JPEG_2000


def codestream_begins(first: bytes) -> bool:
    """Four bytes at the start of a fragment are the start of a codestream: SOI of JPEG and JPEG-LS, SOC and SIZ of JPEG
    2000, or the signature box around the latter, which some writers leave in."""
    return first[:2] == b"\xff\xd8" or first == b"\xff\x4f\xff\x51" or first == b"\0\0\0\x0c"


def offset_table(value: bytes, frame_count: int, *, item: str = "I") -> Sequence[int] | None:
    """The offsets of a Basic Offset Table, or with "Q" of an extended one; None when it is empty or cannot be true."""
    size = Struct("<" + item).size
    if not value or len(value) != size * frame_count:
        return None
    offsets = Struct(f"<{frame_count}{item}").unpack(value)
    ascending = all(first < second for first, second in pairwise(offsets))
    return offsets if offsets[0] == 0 and ascending else None


def extended_offset_table(before: bytes, frame_count: int) -> Sequence[int] | None:
    """The offsets of (7FE0,0001), when it and (7FE0,0002) are what `before` ends with (PS3.3 §C.7.6.3.1.8).

    before: the 2 * (12 + 8 * frame_count) bytes before the pixel data, or fewer.
    """
    size = 8 * frame_count
    heads = [
        tag + b"OV\0\0" + size.to_bytes(4, "little") for tag in (b"\xe0\x7f\x01\x00", b"\xe0\x7f\x02\x00")
    ]
    if len(before) != 2 * (12 + size) or before[:12] != heads[0] or before[12 + size : 24 + size] != heads[1]:
        return None
    return offset_table(before[12 : 12 + size], frame_count, item="Q")


class FileFrames:
    """The frames of pixel data in a file. Blocking.

    read: returns `size` bytes at an offset, fewer at the end of the file. pixel_data: where the element begins, in
    little-endian encoding; the value of one of undefined length is encapsulated.
    """

    def __init__(
        self,
        read: Callable[[int, int], bytes],
        pixel_data: int,
        layout: FrameLayout,
        transfer_syntax_uid: str,
    ) -> None:
        """Raises FrameError when there is no pixel data element."""
        self._read = read
        self._layout = layout
        self._syntax = transfer_syntax_uid
        head = read(pixel_data, 12)
        if len(head) == 12 and head[4:6] in (b"OW", b"OB", b"OF", b"OD"):
            self._value, length = pixel_data + 12, int.from_bytes(head[8:12], "little")
        else:
            self._value, length = pixel_data + 8, int.from_bytes(head[4:8], "little")
        self._length = length
        self._pixel_data = pixel_data
        self.is_encapsulated = length == _UNDEFINED
        self._first_item = 0

    @property
    def value(self) -> Segment:
        """Of native pixel data: all of it."""
        return self._value, self._length

    def locate(self, numbers: Sequence[int]) -> Iterator[tuple[int, list[Segment], int]]:
        """Yield for each frame, counted from 1: its number, the parts of the file it is made of, and how many bits of
        the first byte do not belong to it. Raises FrameError for one that is not there."""
        if not self.is_encapsulated:
            for number in numbers:
                first, size, shift = self._layout.native(number)
                if first + size > self._length:
                    raise FrameError(f"frame {number} is beyond the {self._length} bytes of pixel data")
                yield number, [(self._value + first, size)], shift
            return
        fragments = self._fragments(numbers)
        for number in numbers:
            yield number, fragments(number), 0

    def _fragments(self, numbers: Sequence[int]) -> Callable[[int], list[Segment]]:
        count = self._layout.frame_count
        tag, length = self._item(self._value)
        if tag != _ITEM:
            raise FrameError("encapsulated pixel data without a Basic Offset Table item")
        base = self._value + 8 + length
        table = None
        if length == 4 * count:
            table = offset_table(self._read(self._value + 8, length), count)
        elif not length and count <= MAXIMUM_FRAMES:
            size = 2 * (12 + 8 * count)
            if size <= self._pixel_data and self._read(self._pixel_data - size, 4) == b"\xe0\x7f\x01\x00":
                table = extended_offset_table(self._read(self._pixel_data - size, size), count)
        if table is not None and count > 1:
            offsets = table

            def located(number: int) -> list[Segment]:
                if number > count:
                    raise FrameError(f"frame {number} is not there: the image has {count}")
                end = base + offsets[number] if number < count else None
                return self._walk(base + offsets[number - 1], end)

            return located
        single = count == 1
        by_number = not single and not has_codestream_marker(self._syntax)
        segments = self._walk(base, None, maximum=numbers[-1] if by_number else None)
        if single:
            return lambda _: segments
        if by_number or len(segments) == count:
            starts = list(range(len(segments)))
        else:
            starts = [
                at for at, (offset, _) in enumerate(segments) if codestream_begins(self._read(offset, 4))
            ]

        def grouped(number: int) -> list[Segment]:
            if number > len(starts):
                raise FrameError(
                    f"frame {number} is not in the pixel data, which have {len(segments)} fragments"
                )
            return segments[starts[number - 1] : starts[number] if number < len(starts) else None]

        return grouped

    def _walk(self, at: int, end: int | None, *, maximum: int | None = None) -> list[Segment]:
        """The fragments from `at` up to `end`, or up to the delimiter."""
        found: list[Segment] = []
        while (end is None or at < end) and (maximum is None or len(found) < maximum):
            tag, length = self._item(at)
            if tag != _ITEM or length == _UNDEFINED:
                if end is None and tag == _SEQUENCE_END:
                    break
                raise FrameError(f"no fragment at byte {at}, where one was expected")
            found.append((at + 8, length))
            if len(found) > MAXIMUM_FRAGMENTS:
                raise FrameError(f"more than {MAXIMUM_FRAGMENTS} fragments without an offset table")
            at += 8 + length
        return found

    def _item(self, at: int) -> tuple[bytes, int]:
        head = self._read(at, 8)
        if len(head) < 8:
            raise FrameError(f"the pixel data end at byte {at}, in front of a fragment")
        tag, length = _ITEM_HEADER.unpack(head)
        return tag, length


def frame_of(offsets: Sequence[int], offset: int) -> int:
    """The number of the frame that the fragment at an offset belongs to."""
    return bisect_right(offsets, offset)


def _number(header: Mapping[str, Any], tag: int) -> int:
    """A number, or 0 for none that can be used."""
    values = values_of(header, tag)
    number = values[0] if values else 0
    return number if isinstance(number, int) and 0 <= number <= MAXIMUM_FRAMES else 0
