"""The frames of an image while it arrives (`harmony.dicom.frames` finds them in a file).

`FrameStream` is fed a whole data set. It keeps what of the header it needs, and passes on the pixel data of the frames
it was asked for in the pieces in which they come; of the others nothing is kept. Only a native frame that does not
begin with a byte is held until it is complete: one bit per pixel, so half a megabyte for a large one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from harmony.dicom.element_stream import Begin, ElementStream, End, Fragment, Path, Piece
from harmony.dicom.frames import (
    FrameError,
    FrameLayout,
    codestream_begins,
    frame_of,
    has_codestream_marker,
    is_video,
    offset_table,
    shifted,
)
from harmony.dicom.json_model import Model, decode_data_set
from harmony.dimse.sop_class import EXPLICIT_VR_LITTLE_ENDIAN

__all__ = ["FrameBegin", "FrameEnd", "FrameEvent", "FrameStream"]

PIXEL_DATA_PATHS: Final[tuple[Path, ...]] = ((0x7FE00008,), (0x7FE00009,), (0x7FE00010,))
"""Float, Double Float, and Pixel Data (PS3.3 §C.7.6.3, §C.7.6.24, §C.7.6.25); an image has one of them."""
_DESCRIPTION: Final = {  # tag, as the header of an element in front of its length
    tag: (tag >> 16).to_bytes(2, "little") + (tag & 0xFFFF).to_bytes(2, "little") + vr
    for tag, vr in (
        (0x00280002, b"US"),
        (0x00280004, b"CS"),
        (0x00280008, b"IS"),
        (0x00280010, b"US"),
        (0x00280011, b"US"),
        (0x00280100, b"US"),
    )
}
_MAXIMUM_VALUE_BYTES = 64
_MAXIMUM_TABLE_BYTES = 64 * 1024 * 1024
_MARKER_BYTES = 4


@dataclass(frozen=True, slots=True)
class FrameBegin:
    """A frame that was asked for begins; its pieces follow, then its FrameEnd."""

    number: int
    size_bytes: int | None
    """None: of an encapsulated frame that is not known."""
    is_encapsulated: bool


@dataclass(frozen=True, slots=True)
class FrameEnd:
    """The frame is complete."""


FrameEvent: TypeAlias = FrameBegin | FrameEnd | bytes | memoryview


class FrameStream:
    """The frames of one data set. numbers: ascending, from 1; None: all of them."""

    def __init__(self, transfer_syntax_uid: str, numbers: Sequence[int] | None) -> None:
        self.layout: FrameLayout | None = None
        """Known when the pixel data begin."""
        self.is_complete = False
        """All the frames have been passed on; no more bytes are needed."""
        self._syntax = transfer_syntax_uid
        self._numbers = numbers
        self._elements = ElementStream(transfer_syntax_uid)
        self._path: Path = ()
        self._value = b""
        self._description = b""
        self._extended_table = False
        self._frames: _Native | _Encapsulated | None = None

    def feed(self, data: Piece) -> Iterator[FrameEvent]:
        """Read the next bytes; to be iterated to the end. Pieces may be views of `data`. Raises FrameError for frames
        that are not there, DataSetError and TranscodeError."""
        if self.is_complete:
            return
        for event in self._elements.feed(data):
            yield from self._event(event)
            if self.is_complete:
                return

    def finish(self) -> Iterator[FrameEvent]:
        """No more bytes will come. Raises FrameError when frames are missing."""
        if self.is_complete:
            return
        for event in self._elements.finish():
            yield from self._event(event)
        if not self.is_complete:
            raise FrameError(
                "the data set has no pixel data" if self._frames is None else "frames are missing"
            )

    def _event(self, event: object) -> Iterator[FrameEvent]:
        if self._frames is not None:
            if isinstance(event, Fragment):
                yield from self._frames.fragment(event)
            elif isinstance(event, bytes | memoryview):
                yield from self._frames.piece(event)
            elif isinstance(event, End):
                yield from self._frames.end()
            self.is_complete = self._frames.is_complete
        elif isinstance(event, Begin):
            self._path, self._value = event.path, b""
            if event.path in PIXEL_DATA_PATHS:
                self._begin(event)
        elif isinstance(event, bytes | memoryview):
            if (
                len(self._path) == 1
                and self._path[0] in _DESCRIPTION
                and len(self._value) <= _MAXIMUM_VALUE_BYTES
            ):
                self._value += event
        elif isinstance(event, End) and len(self._path) == 1:
            if self._path[0] in _DESCRIPTION and len(self._value) <= _MAXIMUM_VALUE_BYTES:
                length = len(self._value).to_bytes(2, "little")
                self._description += _DESCRIPTION[self._path[0]] + length + self._value
            self._extended_table |= self._path == (0x7FE00001,)
            self._path = ()

    def _begin(self, event: Begin) -> None:
        header: Model = decode_data_set(self._description, EXPLICIT_VR_LITTLE_ENDIAN)
        layout = self.layout = FrameLayout.of(header)
        if event.length is None and is_video(self._syntax):
            layout = FrameLayout(1, layout.frame_bits)
        numbers = self._numbers if self._numbers is not None else range(1, layout.frame_count + 1)
        if numbers[-1] > layout.frame_count:
            raise FrameError(f"frame {numbers[-1]} is not there: the image has {layout.frame_count}")
        if event.length is None:
            # With an extended table each frame is one fragment (PS3.3 §C.7.6.3.1.8).
            by_marker = has_codestream_marker(self._syntax) and not self._extended_table
            self._frames = _Encapsulated(layout.frame_count, numbers, by_marker=by_marker)
        else:
            if layout.native(numbers[-1])[0] + layout.native(numbers[-1])[1] > event.length:
                raise FrameError(f"frame {numbers[-1]} is beyond the {event.length} bytes of pixel data")
            self._frames = _Native(layout, numbers)


class _Native:
    """Cuts native pixel data into frames."""

    def __init__(self, layout: FrameLayout, numbers: Sequence[int]) -> None:
        self.is_complete = False
        self._layout = layout
        self._numbers = numbers
        self._next = 0  # index of the frame that is looked for
        self._position = 0
        self._begun = False
        self._held = bytearray()

    def fragment(self, fragment: Fragment) -> Iterator[FrameEvent]:
        return iter(())

    def end(self) -> Iterator[FrameEvent]:
        return iter(())

    def piece(self, piece: Piece) -> Iterator[FrameEvent]:
        layout = self._layout
        start = self._position  # of the piece
        self._position += len(piece)
        while not self.is_complete:
            first, size, shift = layout.native(self._numbers[self._next])
            part = piece[max(0, first - start) : max(0, first + size - start)]
            if not self._begun:
                if self._position <= first:
                    return
                self._begun = True
                self._held.clear()
                yield FrameBegin(self._numbers[self._next], layout.frame_bytes, is_encapsulated=False)
            if not layout.is_aligned:
                self._held += part
            elif part:
                yield part
            if self._position < first + size:
                return
            if not layout.is_aligned:
                yield shifted(bytes(self._held), layout.frame_bits, shift)
            yield FrameEnd()
            self._begun = False
            self._next += 1
            self.is_complete = self._next == len(self._numbers)


class _Encapsulated:
    """Tells frames by their fragments.

    by_marker: without an offset table a frame begins where a codestream does; if the first fragment shows that
    codestreams cannot be told here, a fragment is a frame.
    """

    def __init__(self, frame_count: int, numbers: Sequence[int], *, by_marker: bool) -> None:
        self.is_complete = False
        self._frame_count = frame_count
        self._numbers = numbers
        self._next = 0
        self._by_marker = by_marker
        self._table: Sequence[int] | None = None
        self._table_value: bytearray | None = bytearray()  # until it is complete
        self._base = 0  # offset of the item after the table
        self._number = 0  # of the frame that is arriving
        self._offset = 0  # of the fragment that is arriving
        self._undecided: bytes | None = None  # its beginning, until it is known whether it begins a frame
        self._begun = False  # a frame that is wanted

    def fragment(self, fragment: Fragment) -> Iterator[FrameEvent]:
        if self._base == 0 and fragment.offset == 0:
            if fragment.length > _MAXIMUM_TABLE_BYTES:
                raise FrameError(f"a Basic Offset Table of {fragment.length} bytes")
            self._base = 8 + fragment.length
            return
        if self._table_value is not None:
            self._table = offset_table(bytes(self._table_value), self._frame_count)
            self._table_value = None
        yield from self._decided(b"", short=True)
        self._offset = fragment.offset - self._base
        if self._frame_count == 1:
            yield from self._belongs(1)
        elif self._table is not None:
            yield from self._belongs(frame_of(self._table, self._offset))
        elif self._by_marker:
            self._undecided = b""
        else:
            yield from self._belongs(self._number + 1)

    def piece(self, piece: Piece) -> Iterator[FrameEvent]:
        if self._table_value is not None:
            self._table_value += piece
        elif self._undecided is not None:
            yield from self._decided(piece, short=False)
        elif self._begun:
            yield piece

    def end(self) -> Iterator[FrameEvent]:
        yield from self._decided(b"", short=True)
        yield from self._end_frame()

    def _decided(self, piece: Piece, *, short: bool) -> Iterator[FrameEvent]:
        """Find out whether the fragment whose beginning has arrived begins a frame. short: it has no more bytes."""
        if self._undecided is None:
            return
        self._undecided += piece
        if len(self._undecided) < _MARKER_BYTES and not short:
            return
        first, self._undecided = self._undecided, None
        begins = codestream_begins(first[:_MARKER_BYTES])
        if self._number == 0 and not begins:
            self._by_marker = False
        yield from self._belongs(self._number + (begins or not self._by_marker))
        if self._begun and first:
            yield first

    def _belongs(self, number: int) -> Iterator[FrameEvent]:
        """The fragment that begins is of this frame."""
        if number == self._number:
            return
        yield from self._end_frame()
        self._number = number
        if not self.is_complete and number == self._numbers[self._next]:
            self._begun = True
            yield FrameBegin(number, None, is_encapsulated=True)

    def _end_frame(self) -> Iterator[FrameEvent]:
        if self._begun:
            self._begun = False
            self._next += 1
            self.is_complete = self._next == len(self._numbers)
            yield FrameEnd()
