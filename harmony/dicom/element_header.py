"""Element headers (PS3.5 §7.1.2, §7.1.3) and what they mean for the DICOM JSON Model.

A decoder meets the same few hundred headers in every object, so an `ElementEncoding` remembers each by its first
bytes: which key it has in the model, which VR, and which function makes an element of its value. What the header
does not tell, or tells wrongly, the dictionary does. Called by `harmony.dicom.data_set_decoder`.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Literal, TypeAlias

from harmony.dicom.dictionary import ambiguous_vr_of, vr_of
from harmony.dicom.json_values import Converter, converters
from harmony.dicom.vr import KNOWN_VRS

# Forms of element headers (PS3.5 §7.1.2, §7.1.3). The value of a UN element is Implicit VR Little Endian
# whatever surrounds it (PS3.5 §6.2.2 note 2).
SHORT_LENGTH, LONG_LENGTH, UNKNOWN_VR, NO_VR = range(4)
_LONG_VRS = frozenset("OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())  # noqa: SIM905 (a table)


_IMPLICIT_VR = "1.2.840.10008.1.2"
_EXPLICIT_VR_BIG_ENDIAN = "1.2.840.10008.1.2.2"
UNDEFINED_LENGTH = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
SPECIFIC_CHARACTER_SET = 0x00080005

# form, tag, key in the model, VR, and what turns the value into an element; None: not simply a value.
Header: TypeAlias = tuple[int, int, str, str, Converter | None]


class ElementEncoding:
    """How elements are encoded, with the headers seen so far."""

    def __init__(self, name: str, *, explicit: bool, byteorder: Literal["little", "big"] = "little") -> None:
        order = "<" if byteorder == "little" else ">"
        self.name = name
        self.explicit = explicit
        self.header_bytes = 6 if explicit else 4
        self.headers: dict[bytes, Header] = {}
        self.short_length: Callable[[bytes, int], tuple[int]] = Struct(order + "H").unpack_from
        self.long_length: Callable[[bytes, int], tuple[int]] = Struct(order + "I").unpack_from
        self.item: Callable[[bytes, int], tuple[int, int, int]] = Struct(order + "HHI").unpack_from
        self.item_tags = frozenset(_tag_bytes(tag, byteorder) for tag in (ITEM, SEQUENCE_END))
        self.byteorder = byteorder
        self.converters = converters(byteorder)

    def header(self, prefix: bytes) -> Header:
        """Work out what a header that begins with these bytes means, and remember it."""
        order = self.byteorder
        tag = int.from_bytes(prefix[0:2], order) << 16 | int.from_bytes(prefix[2:4], order)
        form, vr = NO_VR, ""
        if self.explicit and tag >> 16 != 0xFFFE:
            form, vr = explicit_form(prefix[4:6])
        choice = not vr and ambiguous_vr_of(tag) == "US or SS"
        vr = vr or vr_of(tag)
        convert = self.converters.get(vr)
        skipped = tag >> 16 in SKIPPED_GROUPS or tag & 0xFFFF == 0
        if form == UNKNOWN_VR or choice or skipped or tag == SPECIFIC_CHARACTER_SET:
            convert = None
        header = (form, tag, f"{tag:08X}", vr, convert)
        if len(self.headers) < MAXIMUM_HEADERS:
            self.headers[prefix] = header
        return header


SKIPPED_GROUPS = (0x0000, 0x0002, 0xFFFE)  # command, file meta, delimiters: no attributes of a data set
MAXIMUM_HEADERS = 16384  # a peer can invent any number of tags; this many are 4 MB


def _tag_bytes(tag: int, byteorder: Literal["little", "big"]) -> bytes:
    return (tag >> 16).to_bytes(2, byteorder) + (tag & 0xFFFF).to_bytes(2, byteorder)


def explicit_form(vr: bytes) -> tuple[int, str]:
    """Return the form of a header and its VR, "" where the dictionary must tell."""
    name = vr.decode("latin_1")
    if name == "UN":
        return UNKNOWN_VR, ""  # the dictionary may know better than the sender
    if vr in KNOWN_VRS:
        return (LONG_LENGTH if name in _LONG_VRS else SHORT_LENGTH), name
    if vr.isalpha() and vr.isascii() and vr.isupper():
        return LONG_LENGTH, ""  # of a later edition of PS3.5, all of which have a 32-bit length
    if vr == b"\0\0" or all(0x20 <= byte < 0x7F for byte in vr):
        return SHORT_LENGTH, ""  # `??`, blanks, NULs: toolkits that did not know a private attribute
    return NO_VR, ""  # half of the length of an element that is really Implicit VR


IMPLICIT = ElementEncoding("Implicit VR Little Endian", explicit=False)
EXPLICIT_LITTLE_ENDIAN = ElementEncoding("Explicit VR Little Endian", explicit=True)
EXPLICIT_BIG_ENDIAN = ElementEncoding("Explicit VR Big Endian", explicit=True, byteorder="big")


def encoding_of(data: bytes, at: int, transfer_syntax_uid: str) -> ElementEncoding:
    """Return the encoding that the transfer syntax means, or the one that the first element shows."""
    vr = data[at + 4 : at + 6]
    implicit_length = int.from_bytes(data[at + 4 : at + 8], "little")
    fits = implicit_length in (0, UNDEFINED_LENGTH) or implicit_length <= len(data) - at - 8
    if vr in KNOWN_VRS and (transfer_syntax_uid != _IMPLICIT_VR or not fits):
        # Groups are small numbers: the byte that is zero is the high one.
        if data[at] == 0 and data[at + 1] != 0:
            return EXPLICIT_BIG_ENDIAN
        if data[at + 1] == 0 and data[at] != 0:
            return EXPLICIT_LITTLE_ENDIAN
    elif transfer_syntax_uid == _IMPLICIT_VR or (fits and not vr.isalpha()):
        return IMPLICIT
    return EXPLICIT_BIG_ENDIAN if transfer_syntax_uid == _EXPLICIT_VR_BIG_ENDIAN else EXPLICIT_LITTLE_ENDIAN
