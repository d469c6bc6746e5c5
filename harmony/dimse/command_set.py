"""Command sets as bytes: the elements of group 0000, their VRs, and layouts made from message classes (PS3.7 Annex E).

A command set is always Implicit VR Little Endian and always group 0000. The names under "The elements" annotate the
fields of the message classes in `harmony.dimse.command`, which is what calls this module; `compile_layouts` turns
such a class into rows to write it and rows to read it, once, at import.

Reading takes any padding, odd lengths, any order, unknown elements and several values where one belongs. Which
elements a message needs is the message's business.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, fields
from operator import attrgetter
from struct import Struct
from typing import Annotated, Any, Final, NamedTuple, get_type_hints

from harmony.dimse.status import Status

NO_DATA_SET: Final = 0x0101
"""Command Data Set Type: "set to 0101H if no Data Set is present"; any other value means that one follows."""

DATA_SET_PRESENT: Final = 0x0001
"""What we send for the other case. Peers send 0000, 0001, 0102 and 0202."""

MAXIMUM_ERROR_COMMENT_LENGTH: Final = 64
"""Characters of an LO value (PS3.5 Table 6.2-1)."""


# --- Values of the VRs that occur in group 0000 ---------------------------------------------------

_HEADER = Struct("<HHL")
_US_ELEMENT = Struct("<HHLH")
UL_ELEMENT = Struct("<HHLL")
_US = Struct("<H")
_TAG = Struct("<HH")


class VR(NamedTuple):
    """How values of one kind are written and read. Any: the annotated field has the type of the value."""

    encode: Callable[[int, Any], bytes]
    """Element number and value to the whole element."""
    decode: Callable[[bytes], Any]
    """Value field to value; None when there is no value in it."""


def encode_us(number: int, value: int) -> bytes:
    return _US_ELEMENT.pack(0, number, 2, value)


def encode_count(number: int, value: int) -> bytes:
    # A retrieve can have more sub-operations than 16 bits count; better a counter that stays at the top than
    # one that wraps.
    return _US_ELEMENT.pack(0, number, 2, min(value, 0xFFFF))


def decode_us(value: bytes) -> int | None:
    return value[0] | value[1] << 8 if len(value) >= 2 else None


def encode_uid(number: int, value: str) -> bytes:
    data = value.encode("latin-1")
    if len(data) & 1:
        data += b"\0"
    return _HEADER.pack(0, number, len(data)) + data


def decode_uid(value: bytes) -> str | None:
    if b"\\" in value:
        value = value.partition(b"\\")[0]
    return value.rstrip(b"\0 ").decode("latin-1")


def encode_ae(number: int, value: str) -> bytes:
    data = value.encode("latin-1")
    if len(data) & 1:
        data += b" "
    return _HEADER.pack(0, number, len(data)) + data


def decode_ae(value: bytes) -> str | None:
    return value.partition(b"\\")[0].strip(b"\0 ").decode("latin-1")


# The default repertoire has no accents (PS3.5 §6.1.2), LO no control characters, and a backslash would start
# another value.
_TO_LO = {**dict.fromkeys((*range(0x20), 0x7F), " "), ord("\\"): "/"}


def encode_lo(number: int, value: str) -> bytes:
    text = value[:MAXIMUM_ERROR_COMMENT_LENGTH].translate(_TO_LO)
    data = text.encode("ascii", "replace")
    if len(data) & 1:
        data += b" "
    return _HEADER.pack(0, number, len(data)) + data


def decode_lo(value: bytes) -> str | None:
    return value.strip(b"\0 ").decode("latin-1")


def encode_at(number: int, value: tuple[int, ...]) -> bytes:
    data = b"".join([_TAG.pack(tag >> 16, tag & 0xFFFF) for tag in value])
    return _HEADER.pack(0, number, len(data)) + data


def decode_at(value: bytes) -> tuple[int, ...] | None:
    whole = len(value) & ~3
    return tuple([group << 16 | element for group, element in _TAG.iter_unpack(value[:whole])])


def encode_data_set_type(number: int, value: bool) -> bytes:
    return _US_ELEMENT.pack(0, number, 2, DATA_SET_PRESENT if value else NO_DATA_SET)


def decode_data_set_type(value: bytes) -> bool | None:
    return _US.unpack_from(value)[0] != NO_DATA_SET if len(value) >= 2 else None


_UI = VR(encode_uid, decode_uid)
_AE = VR(encode_ae, decode_ae)
_LO = VR(encode_lo, decode_lo)
_AT = VR(encode_at, decode_at)
_NUMBER = VR(encode_us, decode_us)
_COUNT = VR(encode_count, decode_us)
_DATA_SET_TYPE = VR(encode_data_set_type, decode_data_set_type)


# --- The elements of group 0000 (PS3.7 Table E.1-1) -----------------------------------------------


class Element(NamedTuple):
    number: int
    vr: VR


AffectedSOPClassUID = Annotated[str, Element(0x0002, _UI)]
RequestedSOPClassUID = Annotated[str, Element(0x0003, _UI)]
MessageID = Annotated[int, Element(0x0110, _NUMBER)]
MessageIDBeingRespondedTo = Annotated[int, Element(0x0120, _NUMBER)]
MoveDestination = Annotated[str, Element(0x0600, _AE)]
Priority = Annotated[int, Element(0x0700, _NUMBER)]
DataSetPresent = Annotated[bool, Element(0x0800, _DATA_SET_TYPE)]
StatusCode = Annotated[int, Element(0x0900, _NUMBER)]
OffendingElements = Annotated[tuple[int, ...], Element(0x0901, _AT)]
ErrorComment = Annotated[str, Element(0x0902, _LO)]
ErrorID = Annotated[int | None, Element(0x0903, _NUMBER)]
AffectedSOPInstanceUID = Annotated[str, Element(0x1000, _UI)]
RequestedSOPInstanceUID = Annotated[str, Element(0x1001, _UI)]
EventTypeID = Annotated[int, Element(0x1002, _NUMBER)]
EventTypeIDOrNone = Annotated[int | None, Element(0x1002, _NUMBER)]
AttributeIdentifierList = Annotated[tuple[int, ...], Element(0x1005, _AT)]
ActionTypeID = Annotated[int, Element(0x1008, _NUMBER)]
ActionTypeIDOrNone = Annotated[int | None, Element(0x1008, _NUMBER)]
Remaining = Annotated[int | None, Element(0x1020, _COUNT)]
Completed = Annotated[int | None, Element(0x1021, _COUNT)]
Failed = Annotated[int | None, Element(0x1022, _COUNT)]
Warnings = Annotated[int | None, Element(0x1023, _COUNT)]
MoveOriginatorAETitle = Annotated[str, Element(0x1030, _AE)]
MoveOriginatorMessageID = Annotated[int | None, Element(0x1031, _NUMBER)]


# --- Reading --------------------------------------------------------------------------------------


class CommandError(Exception):
    """A command set that is no message of ours.

    fatal: nothing can be answered, the association is to be aborted. Otherwise `response` is the answer, a
    complete command set with `status` in it; if data_set_follows, the data set is still to be read and
    dropped.
    message_id, command_field: what could be read of the request.
    """

    def __init__(
        self,
        reason: str,
        *,
        status: int = Status.PROCESSING_FAILURE,
        command_field: int | None = None,
        message_id: int | None = None,
        data_set_follows: bool = False,
        response: bytes = b"",
    ) -> None:
        super().__init__(reason)
        self.status = status
        self.command_field = command_field
        self.message_id = message_id
        self.data_set_follows = data_set_follows
        self.response = response

    @property
    def fatal(self) -> bool:
        return not self.response


def split_elements(data: bytes) -> dict[int, bytes]:
    """Value fields by element number. Of an element that occurs twice the last one counts.

    An element of another group ends it: Orthanc puts the list of a failed retrieve there, behind group 0000.
    """
    elements: dict[int, bytes] = {}
    offset, size = 0, len(data)
    unpack_header = _HEADER.unpack_from
    while offset < size:
        start = offset + 8
        if start > size:
            raise CommandError(
                f"command set: {size - offset} stray bytes at byte {offset}, expected an element"
            )
        group, number, length = unpack_header(data, offset)
        offset = start + length
        if group and elements:
            break
        if group or offset > size:
            what = f"command set: element ({group:04X},{number:04X}) at byte {start - 8}"
            if group:
                raise CommandError(f"{what}: expected group 0000")
            raise CommandError(f"{what}: length {length} exceeds remaining {size - start}")
        elements[number] = data[start:offset]
    return elements


# --- Layouts --------------------------------------------------------------------------------------


class EncodeRow(NamedTuple):
    number: int
    encode: Callable[[int, Any], bytes]
    when_empty: bool
    """Also send an empty text, a zero, False; None is never sent."""


class DecodeRow(NamedTuple):
    number: int
    decode: Callable[[bytes], Any]
    mandatory: bool
    default: Any


class Decoder(NamedTuple):
    message_type: type[Any]
    rows: tuple[DecodeRow, ...]
    data_set_follows: bool


Encoder = tuple[tuple[EncodeRow, ...], Callable[[Any], tuple[Any, ...]]]


def compile_layouts(message_type: type[Any]) -> tuple[Encoder, Decoder]:
    """The two layouts of a message class: rows by tag to write it, rows by field to construct it."""
    names = {0x0100: "command_field", 0x0800: "data_set_present"}
    encode_rows = {
        0x0100: EncodeRow(0x0100, encode_us, True),
        0x0800: EncodeRow(0x0800, encode_data_set_type, True),
    }
    decode_rows = []
    annotations = get_type_hints(message_type, include_extras=True)
    for field in fields(message_type):
        element: Element = annotations[field.name].__metadata__[0]
        # In a response every UID is optional (PS3.7 Tables 9.3-2 to 10.3-12), in a request only those that
        # may be empty.
        text_of_response = element.vr is _UI and not message_type.is_request
        empty_is_absent = text_of_response or field.default in ("", ())
        mandatory = not text_of_response and (
            field.default is MISSING or (element.vr is _UI and bool(field.default))
        )
        names[element.number] = field.name
        encode_rows[element.number] = EncodeRow(element.number, element.vr.encode, not empty_is_absent)
        default = "" if field.default is MISSING else field.default
        decode_rows.append(DecodeRow(element.number, element.vr.decode, mandatory, default))
    numbers = sorted(encode_rows)
    values_of = attrgetter(*[names[number] for number in numbers])
    data_set_follows = message_type._data_set_fixed_to
    return (
        (tuple([encode_rows[number] for number in numbers]), values_of),
        Decoder(message_type, tuple(decode_rows), data_set_follows),
    )
