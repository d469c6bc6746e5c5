"""Data sets whose large values lie elsewhere, put together without holding those (PS3.18 §8.7.3, PS3.5 §A.4).

`lay_out` encodes a model whose bulk data came apart from it, and says in which order bytes and values follow each
other; whoever writes the data set out reads the values then. Values are anything that has a size.

    lay_out(model, {0x7FE00010: [pixels]})          -> [b"...header of (7FE0,0010)", pixels]
    lay_out(model, {0x7FE00010: frames}, fragments=True)   encapsulated, a fragment for each

Explicit VR Little Endian, as that of every encapsulated transfer syntax is. Only top-level elements; what is inside a
sequence belongs into the model as InlineBinary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from struct import Struct
from typing import Any, Final, Protocol, TypeVar

from harmony.dicom.data_set_decoder import PIXEL_DATA
from harmony.dicom.data_set_encoder import ModelError, encode_data_set
from harmony.dicom.dictionary import format_tag, tag_of, vr_of
from harmony.dicom.element_header import ITEM, SEQUENCE_END, SHORT_LENGTH, UNDEFINED_LENGTH, explicit_form
from harmony.dicom.json_values import BULK_VRS

__all__ = ["Sized", "lay_out"]

_EXPLICIT_VR_LITTLE_ENDIAN: Final = "1.2.840.10008.1.2.1"
_MAXIMUM_SHORT_LENGTH: Final = 0xFFFE
_MAXIMUM_LENGTH: Final = 0xFFFFFFFE
_SPECIFIC_CHARACTER_SET: Final = "00080005"

_SHORT_HEADER = Struct("<HH2sH")
_LONG_HEADER = Struct("<HH2sHI")
_ITEM_HEADER = Struct("<HHI")


class Sized(Protocol):
    """A value, or a piece of one."""

    @property
    def size_bytes(self) -> int: ...


V = TypeVar("V", bound=Sized)


def lay_out(
    model: Mapping[str, Any], values: Mapping[int, Sequence[V]], *, fragments: bool = False
) -> list[bytes | V]:
    """What the data set of `model` consists of, in order.

    values: the pieces of the value of a top-level element, by tag, little-endian, in place of what the model says.
    fragments: those of Pixel Data are fragments, one for each frame, of encapsulated pixel data without a table.
    Raises ModelError for what has no encoding.
    """
    elements = {format_tag(_tag(name)): element for name, element in model.items()}
    vrs: dict[int, str] = {}
    for tag in values:
        element = elements.get(format_tag(tag))
        vr = element.get("vr") if isinstance(element, Mapping) else None
        vrs[tag] = vr if vr and isinstance(vr, str) else vr_of(tag)
        elements[format_tag(tag)] = {"vr": vrs[tag]}
    if any(vr not in BULK_VRS and vr != "UN" for vr in vrs.values()):
        elements[_SPECIFIC_CHARACTER_SET] = {"vr": "CS"}  # text came as JSON does, in UTF-8
    data = encode_data_set(elements, _EXPLICIT_VR_LITTLE_ENDIAN)
    pieces: list[bytes | V] = []
    begin = at = 0
    while at < len(data):
        tag, end = _element(data, at)
        if tag in values:
            pieces.append(data[begin:at])
            pieces += (
                _encapsulated(values[tag])
                if fragments and tag == PIXEL_DATA
                else _native(tag, vrs[tag], values[tag])
            )
            begin = end
        at = end
    pieces.append(data[begin:])
    return [piece for piece in pieces if not isinstance(piece, bytes) or piece]


def _tag(name: str) -> int:
    try:
        return tag_of(name)
    except ValueError as problem:
        raise ModelError(name[:64], str(problem)) from None


def _element(data: bytes, at: int) -> tuple[int, int]:
    """The tag of the element at `at`, and where the next one begins: all lengths are defined, all headers explicit."""
    group, number, vr, length = _SHORT_HEADER.unpack_from(data, at)
    if explicit_form(vr)[0] == SHORT_LENGTH:
        return group << 16 | number, at + 8 + length
    return group << 16 | number, at + 12 + _LONG_HEADER.unpack_from(data, at)[4]


def _native(tag: int, vr: str, value: Sequence[V]) -> list[bytes | V]:
    size = sum(piece.size_bytes for piece in value)
    padding = b"" if size % 2 == 0 else b"\0" if vr in BULK_VRS or vr == "UN" else b" "
    length = size + len(padding)
    if length > _MAXIMUM_LENGTH:
        raise ModelError(format_tag(tag), f"{length} bytes, at most {_MAXIMUM_LENGTH} have a defined length")
    group, number = tag >> 16, tag & 0xFFFF
    if explicit_form(vr.encode())[0] == SHORT_LENGTH:
        if length <= _MAXIMUM_SHORT_LENGTH:
            return [_SHORT_HEADER.pack(group, number, vr.encode(), length), *value, padding]
        vr = "UN"  # PS3.5 §6.2.2 note 2
    return [_LONG_HEADER.pack(group, number, vr.encode(), 0, length), *value, padding]


def _encapsulated(frames: Sequence[V]) -> list[bytes | V]:
    """PS3.5 §A.4: an empty Basic Offset Table, a fragment for each frame."""
    pieces: list[bytes | V] = [
        _LONG_HEADER.pack(PIXEL_DATA >> 16, PIXEL_DATA & 0xFFFF, b"OB", 0, UNDEFINED_LENGTH),
        _item(ITEM, 0),
    ]
    for frame in frames:
        odd = frame.size_bytes % 2
        if frame.size_bytes + odd > _MAXIMUM_LENGTH:
            raise ModelError(format_tag(PIXEL_DATA), "a frame is too long for a fragment")
        pieces += [_item(ITEM, frame.size_bytes + odd), frame, b"\0" * odd]
    return [*pieces, _item(SEQUENCE_END, 0)]


def _item(tag: int, length: int) -> bytes:
    return _ITEM_HEADER.pack(tag >> 16, tag & 0xFFFF, length)
