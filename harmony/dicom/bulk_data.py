"""Headers without their bulk data, and bulk data by their place (PS3.18 §10.4.1.1.2, §F.2.6).

`HeaderStream` makes of a data set that arrives what `decode_data_set(complete=True)` makes of one that is at hand: the
whole header as a DICOM JSON model, in which long values, and pixel data, have an empty BulkDataURI. It holds no value
that is left out, so memory does not depend on the length of a document, a waveform or an image.

`ValueStream` passes on one such value. `name_bulk_data` fills in the URIs. Paths: `harmony.dicom.element_stream`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from harmony.dicom.data_set_decoder import MAXIMUM_VALUE_BYTES, PIXEL_DATA, DataSetError, decode_data_set
from harmony.dicom.element_header import SHORT_LENGTH, explicit_form
from harmony.dicom.element_stream import Begin, ElementStream, End, Event, Fragment, Path, Piece, Sequence
from harmony.dicom.json_model import Element, Model
from harmony.dicom.json_values import BULK_VRS, MAXIMUM_INLINE_BYTES
from harmony.dimse.sop_class import EXPLICIT_VR_LITTLE_ENDIAN

__all__ = ["HeaderStream", "ValueStream", "name_bulk_data"]

MAXIMUM_HEADER_BYTES: Final = 64 * 1024 * 1024
"""Without bulk data. Functional groups of a hundred thousand frames are longer, and nothing else is."""

_UNDEFINED: Final = b"\xff\xff\xff\xff"
_ITEM: Final = b"\xfe\xff\x00\xe0" + _UNDEFINED
_ITEM_END: Final = b"\xfe\xff\x0d\xe0\0\0\0\0"
_SEQUENCE_END: Final = b"\xfe\xff\xdd\xe0\0\0\0\0"


class HeaderStream:
    """The header of one data set."""

    def __init__(self, transfer_syntax_uid: str) -> None:
        self._elements = ElementStream(transfer_syntax_uid)
        self._header = bytearray()  # in Explicit VR Little Endian, without what is left out
        self._left_out: list[tuple[Path, str]] = []
        self._ends: list[bytes] = []  # delimiters of what is open
        self._keeping = False
        self._over = False

    @property
    def size_bytes(self) -> int:
        """Of what has been kept of it."""
        return len(self._header)

    def feed(self, data: Piece) -> bool:
        """Read the next bytes; True when no more are needed. Raises DataSetError and TranscodeError."""
        if not self._over:
            self._take(self._elements.feed(data))
        return self._over

    def finish(self) -> Model:
        """No more bytes come, or are needed. Raises as `feed` does."""
        if not self._over:
            self._take(self._elements.finish())
        model = decode_data_set(bytes(self._header), EXPLICIT_VR_LITTLE_ENDIAN, complete=True)
        for path, vr in self._left_out:
            _put(model, path, {"vr": vr, "BulkDataURI": ""})
        return model

    def _take(self, events: Iterator[Event]) -> None:
        header = self._header
        for event in events:
            if isinstance(event, Begin):
                self._begin(event)
                if self._over:
                    return
            elif isinstance(event, bytes | memoryview):
                if self._keeping:
                    header += event
            elif isinstance(event, End):
                header += self._ends.pop()
            elif isinstance(event, Sequence):
                if len(event.path) % 2:
                    header += _tag(event.path[-1]) + b"SQ\0\0" + _UNDEFINED
                    self._ends.append(_SEQUENCE_END)
                else:
                    header += _ITEM
                    self._ends.append(_ITEM_END)
        if len(header) > MAXIMUM_HEADER_BYTES:
            raise DataSetError(f"the header is longer than {MAXIMUM_HEADER_BYTES} bytes")

    def _begin(self, element: Begin) -> None:
        self._ends.append(b"")
        limit = MAXIMUM_INLINE_BYTES if element.vr in BULK_VRS or element.vr == "UN" else MAXIMUM_VALUE_BYTES
        length = element.length
        self._keeping = length is not None and length <= limit and element.path != (PIXEL_DATA,)
        if not self._keeping:
            if length != 0:
                self._left_out.append((element.path, element.vr))
            self._over = element.path == (PIXEL_DATA,)
            return
        assert length is not None
        head = _tag(element.path[-1]) + element.vr.encode()
        short = explicit_form(element.vr.encode())[0] == SHORT_LENGTH
        if short and length > 0xFFFF:
            head, short = head[:4] + b"UN", False
        self._header += head + (
            length.to_bytes(2, "little") if short else b"\0\0" + length.to_bytes(4, "little")
        )


class ValueStream:
    """The value of the element with this path, as in Explicit VR Little Endian; of encapsulated data all fragments but
    the offset table, one after the other."""

    def __init__(self, transfer_syntax_uid: str, path: Path) -> None:
        self.is_found = False
        self.is_complete = False
        self.is_encapsulated = False
        self.length: int | None = None
        self._elements = ElementStream(transfer_syntax_uid)
        self._path = path
        self._passing = False

    def feed(self, data: Piece) -> Iterator[Piece]:
        """Yield what of it is in the next bytes, perhaps views of `data`. Raises DataSetError and TranscodeError."""
        if not self.is_complete:
            yield from self._take(self._elements.feed(data))

    def finish(self) -> Iterator[Piece]:
        """No more bytes come."""
        if not self.is_complete:
            yield from self._take(self._elements.finish())

    def _take(self, events: Iterator[Event]) -> Iterator[Piece]:
        for event in events:
            if self.is_complete:
                return
            if isinstance(event, Begin):
                if event.path == self._path:
                    self.is_found = self._passing = True
                    self.length, self.is_encapsulated = event.length, event.length is None
                elif event.path[0] > self._path[0]:
                    self.is_complete = True
            elif isinstance(event, Fragment):
                self._passing = self.is_found and event.offset > 0
            elif isinstance(event, End):
                self.is_complete |= self.is_found
            elif self._passing and isinstance(event, bytes | memoryview):
                yield event


def name_bulk_data(model: Model, prefix: str) -> None:
    """Fill in each BulkDataURI that is empty: prefix, and the path of the element."""
    for tag, element in model.items():
        if "BulkDataURI" in element:
            element["BulkDataURI"] = prefix + tag
        elif element["vr"] == "SQ":
            for number, item in enumerate(element.get("Value", ()), start=1):
                name_bulk_data(item, f"{prefix}{tag}/{number}/")


def _put(model: Model, path: Path, element: Element) -> None:
    """Put an element where its path says, in the order of tags."""
    for tag, number in zip(path[:-1:2], path[1::2], strict=True):
        items = model.get(f"{tag:08X}", {}).get("Value", ())
        if number > len(items):
            return  # of a sequence that was there before: the first counts
        model = items[number - 1]
    key = f"{path[-1]:08X}"
    if not model or key > next(reversed(model)):
        model[key] = element
    elif key not in model:
        model[key] = element
        ordered = sorted(model.items())
        model.clear()
        model.update(ordered)


def _tag(tag: int) -> bytes:
    return (tag >> 16).to_bytes(2, "little") + (tag & 0xFFFF).to_bytes(2, "little")
