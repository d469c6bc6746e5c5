"""The DICOM JSON Model to data sets (PS3.5 §7): identifiers, responses, whatever a service composes.

Input comes from people and programs outside, so it is read generously (PS3.18 §F.2 and what its readers
were seen to accept): keys in either case or as keywords, no `vr`, numbers as text and text as numbers, person
names as plain strings, empty values as `[]`, `[null]` or `[""]`. What cannot be encoded is an error that
names the attribute. Output is strict: ascending tags, even lengths, defined lengths, no group lengths.

(0008,0005) of the input says nothing about its strings, which are Unicode; that of the output is chosen here.
Deliberately not here: bulk data by reference, encapsulated pixel data. Called by whoever sends a query or
answers one.
"""

from __future__ import annotations

import base64
import binascii
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from struct import Struct, pack
from struct import error as StructError
from typing import Any

from harmony.dicom.character_set import UTF_8, CharacterSet
from harmony.dicom.character_set import character_set as character_set_of
from harmony.dicom.dictionary import format_tag, tag_of, vr_of
from harmony.dicom.json_values import BULK_VRS, NUMBER_FORMATS, PERSON_NAME_GROUPS
from harmony.dicom.vr import KNOWN_VRS

__all__ = ["ModelError", "encode_data_set"]

MAXIMUM_NESTING = 64
"""Sequences inside sequences, as when decoding."""
_MAXIMUM_DECIMAL_STRING = 16  # characters of a DS (PS3.5 §6.2)
_MAXIMUM_SHORT_LENGTH = 0xFFFE

_IMPLICIT_VR = "1.2.840.10008.1.2"
_EXPLICIT_VR_BIG_ENDIAN = "1.2.840.10008.1.2.2"
_DEFLATED_EXPLICIT_VR = "1.2.840.10008.1.2.1.99"

_SPECIFIC_CHARACTER_SET = 0x00080005
_LONG_VRS = frozenset("OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())  # noqa: SIM905 (a table)
_VRS = frozenset(vr.decode() for vr in KNOWN_VRS)
_BINARY_VRS = BULK_VRS | {"UN"}
_NUL_PADDED_VRS = _BINARY_VRS | {"UI"}  # PS3.5 §6.2; the others are padded with a space
_WORD_BYTES = {"OD": 8, "OF": 4, "OL": 4, "OV": 8, "OW": 2}


_LEFT_OUT_GROUPS = frozenset((0x0000, 0x0002, 0xFFFE))
_TEXT_VRS = _VRS - _BINARY_VRS - NUMBER_FORMATS.keys() - {"AT", "SQ"}


class ModelError(ValueError):
    """Something in a model has no encoding."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key}: {problem}")
        self.key = key
        """Where: `00100020`, or inside a sequence `00400100[0].00080060`."""


def encode_data_set(
    model: Mapping[str, Any], transfer_syntax_uid: str, *, character_set: str | None = None
) -> bytes:
    r"""Encode a model as a data set in a transfer syntax; every encapsulated one is Explicit VR LE.

    character_set: a value of (0008,0005) to use if it has all the characters, such as the requester's, several
        terms separated by `\`; otherwise, or without it, ISO_IR 192. Stated in (0008,0005) where characters
        outside ASCII are used, and where the model has that attribute.
    File meta, command elements and group lengths in the model are left out.
    Raises ModelError (a ValueError) naming the attribute that cannot be encoded.
    """
    for characters in _candidates(character_set):
        encoder = _Encoder(characters, transfer_syntax_uid)
        try:
            data = encoder.data_set(model)
        except UnicodeEncodeError:
            continue  # only the last candidate, UTF-8, has everything
        break
    if transfer_syntax_uid == _DEFLATED_EXPLICIT_VR:
        deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        data = deflater.compress(data) + deflater.flush()
        data += b"\0" * (len(data) % 2)  # PS3.5 §A.5
    return data


def _candidates(specific_character_set: str | None) -> list[CharacterSet]:
    wanted = character_set_of(specific_character_set)
    return [UTF_8] if wanted is None or not wanted.defined_terms else [wanted, UTF_8]


class _Encoder:
    """Encodes one model with one character set.

    UnicodeEncodeError from any method: the set lacks a character.
    """

    def __init__(self, characters: CharacterSet, transfer_syntax_uid: str) -> None:
        self._characters = characters
        self._explicit = transfer_syntax_uid != _IMPLICIT_VR
        self._order = ">" if transfer_syntax_uid == _EXPLICIT_VR_BIG_ENDIAN else "<"
        self._header = Struct(self._order + "HHI").pack
        self._short_header = Struct(self._order + "HH2sH").pack
        self._long_header = Struct(self._order + "HH2sHI").pack
        self._beyond_ascii = False

    def data_set(self, model: Mapping[str, Any]) -> bytes:
        elements = self._elements(model, path="", depth=0)
        if self._beyond_ascii or _SPECIFIC_CHARACTER_SET in elements:
            terms = "\\".join(self._characters.defined_terms).encode("ascii")
            elements[_SPECIFIC_CHARACTER_SET] = self._element(
                _SPECIFIC_CHARACTER_SET, "CS", terms, key="00080005"
            )
        return b"".join(elements[tag] for tag in sorted(elements))

    def _elements(self, model: Mapping[str, Any], *, path: str, depth: int) -> dict[int, bytes]:
        if depth > MAXIMUM_NESTING:
            raise ModelError(path, f"sequences are nested deeper than {MAXIMUM_NESTING} levels")
        elements: dict[int, bytes] = {}
        for name, element in model.items():
            try:
                tag, formatted = _tag(name)
            except ValueError as problem:
                raise ModelError(f"{path}{name[:64]}", str(problem)) from None
            if tag >> 16 in _LEFT_OUT_GROUPS or not tag & 0xFFFF:
                continue
            key = path + formatted
            # Nearly all are plain dicts, and asking an abstract class takes many times longer.
            if type(element) is not dict and not isinstance(element, Mapping):
                raise ModelError(key, f"expected an object with vr and Value, not {type(element).__name__}")
            if tag == _SPECIFIC_CHARACTER_SET:
                elements.update({} if depth else {tag: b""})  # items have that of the data set
                continue
            vr = element.get("vr") or vr_of(tag)
            if not isinstance(vr, str) or vr not in _VRS:
                vr = "UN"  # PS3.18 §F.2 has no others
            elements[tag] = self._element(tag, vr, self._value(element, vr, key, depth), key=key)
        return elements

    def _element(self, tag: int, vr: str, value: bytes, *, key: str) -> bytes:
        if len(value) % 2:
            value += b"\0" if vr in _NUL_PADDED_VRS else b" "
        group, number, length = tag >> 16, tag & 0xFFFF, len(value)
        if not self._explicit:
            return self._header(group, number, length) + value
        if vr not in _LONG_VRS:
            if length <= _MAXIMUM_SHORT_LENGTH:
                return self._short_header(group, number, vr.encode(), length) + value
            if self._order == ">" and (vr in NUMBER_FORMATS or vr == "AT"):
                raise ModelError(key, f"{length} bytes are too long for {vr} in Explicit VR Big Endian")
            vr = "UN"  # PS3.5 §6.2.2 note 2: a value too long for the length field of its VR
        return self._long_header(group, number, vr.encode(), 0, length) + value

    def _value(self, element: Mapping[str, Any], vr: str, key: str, depth: int) -> bytes:
        if element.get("InlineBinary") is not None:
            return self._inline(element["InlineBinary"], vr, key)
        if element.get("BulkDataURI") is not None:
            raise ModelError(key, "BulkDataURI cannot be resolved here: expected Value or InlineBinary")
        values = element.get("Value")
        if type(values) is list and len(values) == 1 and type(values[0]) is str and vr in _TEXT_VRS:
            return self._text(values[0], vr, key)  # most elements
        if values is None:
            return b""
        if not isinstance(values, Sequence) or isinstance(values, str):
            values = [values]
        if vr == "SQ":
            return b"".join(self._item(item, f"{key}[{at}]", depth) for at, item in _items(values))
        if not values or (len(values) == 1 and values[0] in (None, "", {})):
            return b""
        if vr in NUMBER_FORMATS:
            return self._numbers(values, vr, key)
        if vr == "AT":
            return b"".join(self._attribute_tag(value, key) for value in values)
        if vr in BULK_VRS:
            raise ModelError(key, f"expected InlineBinary for {vr}, not Value")
        texts = [_person_name(value, key) if vr == "PN" else _text(value, vr, key) for value in values]
        return self._text("\\".join(texts), vr, key)

    def _item(self, item: object, key: str, depth: int) -> bytes:
        if not isinstance(item, Mapping):
            raise ModelError(key, f"expected an object for an item, not {type(item).__name__}")
        elements = self._elements(item, path=f"{key}.", depth=depth + 1)
        data = b"".join(elements[tag] for tag in sorted(elements))
        return self._header(0xFFFE, 0xE000, len(data)) + data

    def _text(self, text: str, vr: str, key: str) -> bytes:
        if text.isascii() and not self._characters.code_extensions:
            return text.encode("ascii")
        self._beyond_ascii |= not text.isascii()
        try:
            return self._characters.encode(text, person_name=vr == "PN")
        except UnicodeEncodeError as error:
            if self._characters is not UTF_8:
                raise
            raise ModelError(key, f"not Unicode: {error.reason}") from None

    def _numbers(self, values: Sequence[Any], vr: str, key: str) -> bytes:
        real = vr in ("FD", "FL")
        try:
            numbers = [_real(value) if real else _integer(value) for value in values]
            return pack(f"{self._order}{len(numbers)}{NUMBER_FORMATS[vr]}", *numbers)
        except (ValueError, TypeError, OverflowError, StructError):
            raise ModelError(key, f"a value is no number that {vr} can hold") from None

    def _attribute_tag(self, value: object, key: str) -> bytes:
        try:
            tag = value if isinstance(value, int) else tag_of(str(value))
            return pack(self._order + "HH", tag >> 16, tag & 0xFFFF)
        except (ValueError, StructError):
            raise ModelError(key, "a value is no tag: expected eight hex digits") from None

    def _inline(self, text: object, vr: str, key: str) -> bytes:
        try:
            data = base64.b64decode(text, validate=True) if isinstance(text, str) else None
        except (binascii.Error, ValueError):
            data = None
        if data is None or vr not in _BINARY_VRS:
            raise ModelError(key, f"InlineBinary of {vr} is not base64 of a binary value")
        size = _WORD_BYTES.get(vr, 1)
        if self._order == ">" and size > 1:
            whole = len(data) - len(data) % size
            words = [data[at : at + size][::-1] for at in range(0, whole, size)]
            return b"".join(words) + data[whole:]  # in the model it is little-endian (PS3.18 §F.2.7)
        return data


@lru_cache(maxsize=16384)  # as for the dictionary: peers can invent others
def _tag(name: str) -> tuple[int, str]:
    """A tag, and how it is written. Raises ValueError."""
    tag = tag_of(name)
    return tag, format_tag(tag)


def _items(values: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    if len(values) == 1 and values[0] in (None, ""):
        return  # how some writers say "no items"
    yield from ((at, {} if item is None else item) for at, item in enumerate(values))


def _text(value: Any, vr: str, key: str) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ModelError(key, f"expected a string for {vr}, not {type(value).__name__}")
    if isinstance(value, int):
        return str(value)
    if not math.isfinite(value):
        raise ModelError(key, f"{value} is no value of {vr}")
    if vr == "IS" and value.is_integer():
        return str(int(value))
    return _decimal_string(value)


def _decimal_string(number: float) -> str:
    """Return a number as a DS, as exactly as its 16 characters allow (PS3.5 §6.2)."""
    text = repr(number)
    digits = 16
    while len(text) > _MAXIMUM_DECIMAL_STRING:
        digits -= 1
        text = f"{number:.{digits}g}"
    return text


def _person_name(value: Any, key: str) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    if not isinstance(value, Mapping):
        raise ModelError(key, f"expected a person name, not {type(value).__name__}")
    groups = [value.get(name) or "" for name in PERSON_NAME_GROUPS]
    if not all(isinstance(group, str) for group in groups):
        raise ModelError(key, "a group of a person name is no string")
    return "=".join(groups).rstrip("=")


def _integer(value: Any) -> int:
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise TypeError
    return int(value)


def _real(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError
    return math.nan if value is None else float(value)  # null is what some writers make of NaN
