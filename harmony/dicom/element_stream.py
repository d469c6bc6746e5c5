"""The elements of a data set (PS3.5 §7) while it arrives, those inside sequences included, values in pieces.

`ElementStream` yields events: an element begins, a piece of its value, it ends; a sequence or one of its items begins
and ends; a fragment of encapsulated data begins (PS3.5 §A.4). Values are as in Explicit VR Little Endian, which is what
every encapsulated transfer syntax is encoded in, and what `harmony.dicom.transcode` makes of the native ones before
they are read. Memory does not depend on the data: a window of 64 KiB and a bounded number of open sequences.

An element is named by its path, as PS3.18 leaves to whoever makes URLs of it: tag, item number from 1, tag and so on.

Missing delimiters are supplied, superfluous ones left out; what contradicts itself is a DataSetError. Not here: what
values mean, and which of them anyone wants. Called by `harmony.dicom.bulk_data` and `harmony.dicom.frame_stream`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

from harmony.dicom.data_set_decoder import DataSetError
from harmony.dicom.dictionary import format_tag
from harmony.dicom.element_header import (
    EXPLICIT_LITTLE_ENDIAN,
    IMPLICIT,
    ITEM,
    ITEM_END,
    NO_VR,
    SEQUENCE_END,
    SHORT_LENGTH,
    UNDEFINED_LENGTH,
    UNKNOWN_VR,
    ElementEncoding,
)
from harmony.dicom.json_values import BULK_VRS
from harmony.dicom.transcode import NATIVE_TRANSFER_SYNTAXES, Transcoder
from harmony.dimse.sop_class import EXPLICIT_VR_LITTLE_ENDIAN

__all__ = [
    "Begin",
    "ElementStream",
    "End",
    "Event",
    "Fragment",
    "Path",
    "Piece",
    "Sequence",
    "format_path",
    "parse_path",
]

MAXIMUM_NESTING = 64
"""Sequences inside sequences, as for the decoder; real data sets stay below ten."""

_WINDOW_BYTES = 64 * 1024  # is copied to be looked at

Path: TypeAlias = tuple[int, ...]
"""Tag, item number, tag, ...: odd in length for an element, even for an item."""
Piece: TypeAlias = bytes | memoryview


@dataclass(frozen=True, slots=True)
class Begin:
    """An element that is no sequence begins; pieces of its value follow, then its End."""

    path: Path
    vr: str
    length: int | None
    """None: encapsulated, so Fragments with their pieces follow."""


@dataclass(frozen=True, slots=True)
class Fragment:
    """An item of encapsulated data begins, the offset table included; pieces follow up to the next event."""

    offset: int
    """Of its item tag, counted from the one of the first item, which is the offset table."""
    length: int


@dataclass(frozen=True, slots=True)
class Sequence:
    """A sequence begins (path of an element), or an item of one (path of an item); its End follows."""

    path: Path


@dataclass(frozen=True, slots=True)
class End:
    """What began last and has not ended ends."""


Event: TypeAlias = Begin | Fragment | Sequence | End | bytes | memoryview

_END: Final = End()


class _Level:
    """A data set, a sequence, or encapsulated data, that is being read."""

    __slots__ = ("encoding", "end", "item", "kind", "path")

    def __init__(self, kind: int, path: Path, encoding: ElementEncoding, end: int | None) -> None:
        self.kind = kind
        self.path = path
        self.encoding = encoding
        self.end = end
        """Where it ends by its length; None: at a delimiter."""
        self.item = 0
        """The number of the last item that began; of encapsulated data, where its first one is."""


_DATA_SET, _SEQUENCE, _FRAGMENTS = range(3)


class ElementStream:
    """Any split of the same bytes gives the same events, but for where values are cut into pieces."""

    def __init__(self, transfer_syntax_uid: str) -> None:
        native = transfer_syntax_uid in NATIVE_TRANSFER_SYNTAXES
        self._transcoder = Transcoder(transfer_syntax_uid, EXPLICIT_VR_LITTLE_ENDIAN) if native else None
        self._levels = [_Level(_DATA_SET, (), EXPLICIT_LITTLE_ENDIAN, None)]
        self._carry = b""
        self._position = 0  # in the data set, of the carry or else of the next byte
        self._left = 0  # of a value
        self._in_element = False  # it is an element's, not a fragment's

    def feed(self, data: Piece) -> Iterator[Event]:
        """Read the next bytes; to be iterated to the end, or never fed again. Pieces may be views of `data`.

        Raises DataSetError and TranscodeError."""
        for piece in (data,) if self._transcoder is None else self._transcoder.feed(data):
            yield from self._feed(piece)

    def _feed(self, data: Piece) -> Iterator[Event]:
        view = memoryview(data).cast("B")
        at, size = 0, len(view)
        while at < size:
            if self._left:
                piece = view[at : at + self._left]
                at += len(piece)
                self._left -= len(piece)
                self._position += len(piece)
                yield piece
                if not self._left and self._in_element:
                    yield _END
            else:
                window = self._carry + view[at : at + _WINDOW_BYTES]
                at += _WINDOW_BYTES
                yield from self._read(window)

    def finish(self) -> Iterator[Event]:
        """No more bytes will come. Raises DataSetError when they end inside an element; NULs are padding."""
        for piece in () if self._transcoder is None else self._transcoder.finish():
            yield from self._feed(piece)
        if self._left:
            raise DataSetError(f"the data set ends inside a value, {self._left} bytes before its end")
        if any(self._carry):
            raise DataSetError(f"the data set ends inside an element that begins at byte {self._position}")
        while len(self._levels) > 1:
            level = self._levels.pop()
            if (level.end is not None and level.end > self._position) or level.kind == _FRAGMENTS:
                raise DataSetError(f"the data set ends inside a sequence, at byte {self._position}")
            yield _END

    def _read(self, window: bytes) -> Iterator[Event]:
        """Read the elements that begin in the window; keep the beginning of one that is not complete."""
        at, start, size = 0, self._position, len(window)
        while True:
            level = self._levels[-1]
            if level.end is not None and start + at >= level.end:
                self._levels.pop()
                yield _END
                continue
            if at + 8 > size:
                break
            group, element, length = level.encoding.item(window, at)
            tag = group << 16 | element
            if level.kind != _DATA_SET or group == 0xFFFE:
                value = at + 8
                if level.kind == _DATA_SET:
                    # Of a delimiter only the end of an item of undefined length is in place here.
                    if len(self._levels) > 1 and level.end is None:
                        self._levels.pop()
                        yield _END
                        at = value if tag == ITEM_END else at
                    else:
                        at = value
                    continue
                if tag == ITEM and level.kind == _FRAGMENTS:
                    if length == UNDEFINED_LENGTH:
                        raise DataSetError(f"fragment at byte {start + at} has no length")
                    level.item = level.item or start + at
                    yield Fragment(start + at - level.item, length)
                    self._in_element = False
                elif tag == ITEM:
                    self._push(
                        _DATA_SET,
                        (*level.path, self._next_item(level)),
                        level.encoding,
                        length,
                        start + value,
                    )
                    yield Sequence(self._levels[-1].path)
                    at = value
                    continue
                elif tag == SEQUENCE_END or level.kind == _SEQUENCE:
                    if tag == ITEM_END:
                        at = value
                    elif level.end is None:
                        self._levels.pop()
                        yield _END
                        at = value if tag == SEQUENCE_END else at
                    elif tag == SEQUENCE_END:
                        at = value
                    else:
                        raise DataSetError(f"no item where one was expected, at byte {start + at}")
                    continue
                else:
                    raise DataSetError(f"no fragment where one was expected, at byte {start + at}")
            else:
                prefix = window[at : at + level.encoding.header_bytes]
                form, tag, _, vr, _ = level.encoding.headers.get(prefix) or level.encoding.header(prefix)
                if form == SHORT_LENGTH:
                    (length,) = level.encoding.short_length(window, at + 6)
                    value = at + 8
                elif form == NO_VR:
                    (length,) = level.encoding.long_length(window, at + 4)
                    value = at + 8
                elif at + 12 <= size:
                    (length,) = level.encoding.long_length(window, at + 8)
                    value = at + 12
                else:
                    break
                path = (*level.path, tag)
                encoding = IMPLICIT if form == UNKNOWN_VR else level.encoding
                if length == UNDEFINED_LENGTH and vr in BULK_VRS:
                    self._push(_FRAGMENTS, path, level.encoding, length, start + value)
                    yield Begin(path, vr, None)
                    at = value
                    continue
                if vr == "SQ" or length == UNDEFINED_LENGTH:
                    self._push(_SEQUENCE, path, encoding, length, start + value)
                    yield Sequence(path)
                    at = value
                    continue
                if level.end is not None and start + value + length > level.end:
                    raise DataSetError(
                        f"{format_tag(tag)} at byte {start + at}: length {length} exceeds its item"
                    )
                yield Begin(path, vr, length)
                self._in_element = True
            at = value + length
            piece = window[value:at]
            if piece:
                yield piece
            if len(piece) < length:
                self._left = length - len(piece)
                break
            if self._in_element:
                yield _END
        self._carry = b"" if self._left else window[at:]
        self._position = start + (size if self._left else at)

    def _push(self, kind: int, path: Path, encoding: ElementEncoding, length: int, value: int) -> None:
        if len(self._levels) > 2 * MAXIMUM_NESTING:
            raise DataSetError(f"sequences are nested deeper than {MAXIMUM_NESTING}, at byte {value}")
        end = None if length == UNDEFINED_LENGTH else value + length
        self._levels.append(_Level(kind, path, encoding, end))

    @staticmethod
    def _next_item(level: _Level) -> int:
        level.item += 1
        return level.item


def format_path(path: Path) -> str:
    """A path as part of a URL: `00420011`, `54000100/1/54001010`."""
    return "/".join(str(step) if at % 2 else f"{step:08X}" for at, step in enumerate(path))


def parse_path(text: str) -> Path | None:
    """The path that `format_path` wrote; None when it is none of an element."""
    steps: list[int] = []
    for at, step in enumerate(text.split("/")):
        digits = "0123456789" if at % 2 else "0123456789ABCDEFabcdef"
        if not step or len(step) > 8 or (not at % 2 and len(step) != 8) or step.strip(digits):
            return None
        steps.append(int(step) if at % 2 else int(step, 16))
    return tuple(steps) if len(steps) % 2 and len(steps) <= 2 * MAXIMUM_NESTING else None
