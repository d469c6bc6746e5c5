"""Value fields to elements of the DICOM JSON Model (PS3.18 §F.2.2 to §F.2.5), one function per VR.

An element is a plain dict: `{"vr": "LO", "Value": ["A", None]}`; an empty one has `vr` only. Numbers are
JSON numbers where a JSON reader can have no other idea of them than the sender had, else the sender's text.

Bytes that are no value of their VR (four characters in a US, letters in a DS) become text or go missing;
nothing raises. Deliberately not here: element headers (`harmony.dicom.data_set_decoder`) and the way back
(`harmony.dicom.data_set_encoder`).
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from struct import Struct, iter_unpack
from typing import Any, Literal, TypeAlias

from harmony.dicom.character_set import CharacterSet

__all__ = [
    "BULK_VRS",
    "MAXIMUM_INLINE_BYTES",
    "MAXIMUM_SAFE_INTEGER",
    "NUMBER_FORMATS",
    "PERSON_NAME_GROUPS",
    "Converter",
    "Element",
    "Model",
    "converters",
    "inline_binary",
]

Element: TypeAlias = dict[str, Any]  # what json.loads returns; the VR tells what a value is
Model: TypeAlias = dict[str, Element]
Converter: TypeAlias = Callable[[bytes, CharacterSet], Element]

PERSON_NAME_GROUPS = ("Alphabetic", "Ideographic", "Phonetic")
"""PS3.18 §F.2.2, in the order in which `=` separates them (PS3.5 §6.2.1.2)."""
BULK_VRS = frozenset({"OB", "OD", "OF", "OL", "OV", "OW"})
MAXIMUM_INLINE_BYTES = 1024
"""A UN value up to this size is carried as InlineBinary: what Implicit VR makes of a private attribute is
rarely longer, and what is longer is bulk data of some kind."""
MAXIMUM_SAFE_INTEGER = 2**53 - 1
"""JSON readers in the field keep numbers as IEEE doubles."""
NUMBER_FORMATS = {"FD": "d", "FL": "f", "SL": "i", "SS": "h", "SV": "q", "UL": "I", "US": "H", "UV": "Q"}
"""`struct` formats by VR."""

# Neither part of their value when they surround it (PS3.5 §6.2); UI is padded with NUL, the others with
# a space, and each is seen where the other belongs.
_PADDING = " \0"
_STRIPPED = ("AE", "AS", "CS", "DA", "DT", "TM", "UI")  # no VR here gives leading spaces a meaning
_MULTIPLE_TEXTS = ("LO", "SH", "UC")
_SINGLE_TEXTS = ("LT", "ST", "UR", "UT")

_LONGEST_NUMBER = 32  # characters; twice what PS3.5 §6.2 allows, and little for a cache to hold
_is_decimal = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[Ee][+-]?[0-9]{1,4})?").fullmatch
_is_integer = re.compile(r"[+-]?[0-9]{1,20}").fullmatch


def converters(byteorder: Literal["little", "big"]) -> dict[str, Converter]:
    """Return the function for each VR that has a value in the model; SQ and bulk data have none."""
    order = "<" if byteorder == "little" else ">"
    table: dict[str, Converter] = {"PN": _person_names, "UN": _inline, "AT": _attribute_tags(order)}
    table |= {vr: _stripped(vr) for vr in _STRIPPED}
    table |= {vr: _multiple(vr) for vr in _MULTIPLE_TEXTS}
    table |= {vr: _single(vr) for vr in _SINGLE_TEXTS}
    table |= {"DS": _numeric_strings("DS", _decimal_number), "IS": _numeric_strings("IS", _integer_number)}
    table |= {vr: _binary(vr, order + code) for vr, code in NUMBER_FORMATS.items()}
    return table


@lru_cache(maxsize=8192)  # spacings, thicknesses, window widths: the same few thousand again and again
def _decimal_number(text: str) -> int | float | str | None:
    """Return a DS value: a number if that is exactly what the text says, else the text, None if empty."""
    text = text.strip(_PADDING)
    if not text:
        return None
    if not _is_decimal(text):
        return text
    if _is_integer(text):
        return _integer_number(text)
    number = float(text)
    try:
        exact = math.isfinite(number) and Decimal(repr(number)) == Decimal(text)
    except InvalidOperation:
        exact = False
    return number if exact else text


@lru_cache(maxsize=8192)
def _integer_number(text: str) -> int | str | None:
    """Return an IS value: a number if it is one that every JSON reader keeps, else the text, None if empty."""
    text = text.strip(_PADDING)
    if not text:
        return None
    if _is_integer(text) and abs(number := int(text)) <= MAXIMUM_SAFE_INTEGER:
        return number
    return text


def _stripped(vr: str) -> Converter:
    def convert(value: bytes, characters: CharacterSet) -> Element:
        # Not subject to the character set (PS3.5 §6.1.2.2); other bytes than ASCII are a sender's mistake.
        text = (value.decode("ascii") if value.isascii() else characters.decode(value)).strip(_PADDING)
        if not text:
            return {"vr": vr}
        if "\\" not in text and "\0" not in text:
            return {"vr": vr, "Value": [text]}
        return {"vr": vr, "Value": [_clean(piece.strip(_PADDING)) or None for piece in text.split("\\")]}

    return convert


def _multiple(vr: str) -> Converter:
    def convert(value: bytes, characters: CharacterSet) -> Element:
        text = characters.decode(value).rstrip(_PADDING)
        if not text:
            return {"vr": vr}
        if "\\" not in text and "\0" not in text:
            return {"vr": vr, "Value": [text]}
        return {"vr": vr, "Value": [_clean(piece.rstrip(_PADDING)) or None for piece in text.split("\\")]}

    return convert


def _single(vr: str) -> Converter:
    def convert(value: bytes, characters: CharacterSet) -> Element:
        text = _clean(characters.decode(value).rstrip(_PADDING))
        return {"vr": vr, "Value": [text]} if text else {"vr": vr}

    return convert


def _clean(text: str) -> str:
    """Replace NUL inside a text: many a reader of JSON, and every C string, ends there."""
    return text.replace("\0", "\ufffd") if "\0" in text else text


def _person_names(value: bytes, characters: CharacterSet) -> Element:
    text = _clean(characters.decode(value, person_name=True).rstrip(_PADDING))
    if not text:
        return {"vr": "PN"}
    if "\\" not in text and "=" not in text:
        return {"vr": "PN", "Value": [{"Alphabetic": text}]}
    return {"vr": "PN", "Value": [_person_name(name) for name in text.split("\\")]}


def _person_name(text: str) -> dict[str, str] | None:
    """Return the groups of a name in DICOM notation, None when all are empty."""
    groups = zip(PERSON_NAME_GROUPS, text.split("=", 2), strict=False)
    return {name: group for name, padded in groups if (group := padded.rstrip(_PADDING))} or None


def _numeric_strings(vr: str, number: Callable[[str], int | float | str | None]) -> Converter:
    def convert(value: bytes, characters: CharacterSet) -> Element:
        # Other bytes than ASCII are no number, and text like any other.
        text = value.decode("ascii") if value.isascii() else characters.decode(value)
        text = _clean(text.strip(_PADDING))
        if not text:
            return {"vr": vr}
        if "\\" not in text and len(text) <= _LONGEST_NUMBER:
            return {"vr": vr, "Value": [number(text)]}
        pieces = text.split("\\")
        values = [
            number(piece) if len(piece) <= _LONGEST_NUMBER else piece.strip(_PADDING) for piece in pieces
        ]
        return {"vr": vr, "Value": values}

    return convert


def _binary(vr: str, layout: str) -> Converter:
    size = Struct(layout).size
    unpack = Struct(layout).unpack

    def integers(value: bytes, characters: CharacterSet) -> Element:
        if len(value) == size:
            return {"vr": vr, "Value": [*unpack(value)]}
        return {"vr": vr, "Value": values} if (values := numbers(value)) else {"vr": vr}

    def wide_integers(value: bytes, characters: CharacterSet) -> Element:
        values = [each if abs(each) <= MAXIMUM_SAFE_INTEGER else str(each) for each in numbers(value)]
        return {"vr": vr, "Value": values} if values else {"vr": vr}

    def floats(value: bytes, characters: CharacterSet) -> Element:
        # JSON has no literal for these (PS3.18 §F.2.2 is silent); as text is how most peers write them.
        values = [each if math.isfinite(each) else _unbounded(each) for each in numbers(value)]
        return {"vr": vr, "Value": values} if values else {"vr": vr}

    def numbers(value: bytes) -> list[Any]:
        whole = len(value) - len(value) % size  # an odd tail is no number
        return [number for (number,) in iter_unpack(layout, value[:whole])]

    if vr in ("FD", "FL"):
        return floats
    return wide_integers if vr in ("SV", "UV") else integers


def _unbounded(number: float) -> str:
    return "NaN" if math.isnan(number) else "inf" if number > 0 else "-inf"


def _attribute_tags(order: str) -> Converter:
    def convert(value: bytes, characters: CharacterSet) -> Element:
        tags = iter_unpack(order + "HH", value[: len(value) & ~3])
        values = [f"{group:04X}{element:04X}" for group, element in tags]
        return {"vr": "AT", "Value": values} if values else {"vr": "AT"}

    return convert


def _inline(value: bytes, characters: CharacterSet) -> Element:
    if not value or len(value) > MAXIMUM_INLINE_BYTES:
        return {"vr": "UN"}
    return inline_binary("UN", value)


def inline_binary(vr: str, value: bytes) -> Element:
    """An element with the value field as it is in Explicit VR Little Endian (PS3.18 §F.2.7)."""
    return {"vr": vr, "InlineBinary": base64.b64encode(value).decode("ascii")}
