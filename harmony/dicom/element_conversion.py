"""One native encoding of elements into another (PS3.5 §7.1, annex A): which header an element gets, which VR, and
which words of its value change their byte order.

As a decoder does, a converter meets the same few hundred headers in every object, so a `Conversion` remembers for
each what becomes of it: a `Rule`. Into Explicit VR the dictionary tells the VR, and what it does not know is UN. Of
what depends on other attributes only the kind of dependence is here; `harmony.dicom.data_set_converter` knows them.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from functools import cache
from struct import Struct
from typing import NamedTuple

from harmony.dicom.byte_order import WORD_BYTES
from harmony.dicom.dictionary import ambiguous_vr_of, vr_of
from harmony.dicom.element_header import (
    EXPLICIT_BIG_ENDIAN,
    EXPLICIT_LITTLE_ENDIAN,
    IMPLICIT,
    ITEM,
    ITEM_END,
    MAXIMUM_HEADERS,
    NO_VR,
    SEQUENCE_END,
    SHORT_LENGTH,
    SKIPPED_GROUPS,
    UNDEFINED_LENGTH,
    UNKNOWN_VR,
    ElementEncoding,
    explicit_form,
)
from harmony.dicom.vr import KNOWN_VRS

__all__ = [
    "BITS_ALLOCATED",
    "PIXEL_DATA",
    "PIXEL_REPRESENTATION",
    "Action",
    "Conversion",
    "Rule",
    "conversion",
]

BITS_ALLOCATED, PIXEL_REPRESENTATION, PIXEL_DATA = 0x00280100, 0x00280103, 0x7FE00010

_MAXIMUM_SHORT_LENGTH = 0xFFFF
_MAXIMUM_LONG_LENGTH = UNDEFINED_LENGTH - 1


class Action(IntEnum):
    """What is to be done with an element."""

    COPY = 0
    """Header of the rule, value with its words turned."""
    DROP = 1
    """A group length, which is retired and would be wrong (PS3.5 §7.2); file meta, a command."""
    SEQUENCE = 2
    DELIMITER = 3
    """An item or a delimiter where an element could be."""
    REMEMBER = 4
    """Copy, and remember the value: others depend on it."""
    SIGNED = 5
    """US or SS, as Pixel Representation says."""
    PIXELS = 6
    """OB or OW, as Bits Allocated says."""


class Rule(NamedTuple):
    """What becomes of elements with a certain header."""

    form: int
    """How the header is read, see `harmony.dicom.element_header`."""
    action: Action
    head: bytes
    """The new header up to its length."""
    pack_length: Callable[[int], bytes]
    maximum_length: int
    """That the new header can hold."""
    word_bytes: int
    """Of the words to be turned; 1 when none are."""
    tag: int
    vr: str
    """UN where neither the sender nor the dictionary knows."""


class Conversion:
    """From one encoding into another, with the headers seen so far."""

    def __init__(self, source: ElementEncoding, target: ElementEncoding) -> None:
        self.source = source
        self.target = target
        self.rules: dict[bytes, Rule] = {}
        order = "<" if target.byteorder == "little" else ">"
        self._tag = Struct(order + "HH").pack
        self._pack_short = Struct(order + "H").pack
        self._pack_long = Struct(order + "I").pack
        self.item = self._tag(*divmod(ITEM, 0x10000)) + self._pack_long(UNDEFINED_LENGTH)
        self.empty_item = self._tag(*divmod(ITEM, 0x10000)) + self._pack_long(0)
        self.item_end = self._tag(*divmod(ITEM_END, 0x10000)) + self._pack_long(0)
        self.sequence_end = self._tag(*divmod(SEQUENCE_END, 0x10000)) + self._pack_long(0)

    def rule(self, prefix: bytes) -> Rule:
        """Work out what becomes of elements whose header begins with these bytes, and remember it."""
        source = self.source
        group = int.from_bytes(prefix[0:2], source.byteorder)
        tag = group << 16 | int.from_bytes(prefix[2:4], source.byteorder)
        form, vr = NO_VR, ""
        if source.explicit and group != 0xFFFE:
            form, vr = explicit_form(prefix[4:6])
        chosen = vr
        if not vr:
            chosen = "UN" if form == UNKNOWN_VR else vr_of(tag)
        action = Action.COPY
        if group == 0xFFFE:
            action = Action.DELIMITER
        elif group in SKIPPED_GROUPS or tag & 0xFFFF == 0:
            action = Action.DROP
        elif chosen == "SQ":
            action = Action.SEQUENCE
        elif tag in (BITS_ALLOCATED, PIXEL_REPRESENTATION):
            action = Action.REMEMBER
        elif tag == PIXEL_DATA and chosen in ("OB", "OW"):
            action = Action.PIXELS
        elif not vr and form != UNKNOWN_VR and ambiguous_vr_of(tag) == "US or SS":
            action = Action.SIGNED
        rule = self.rule_for(tag, chosen, form=form, action=action)
        if len(self.rules) < MAXIMUM_HEADERS:
            self.rules[prefix] = rule
        return rule

    def rule_for(self, tag: int, vr: str, *, form: int, action: Action = Action.COPY) -> Rule:
        """The rule for an element whose VR has been decided."""
        head = self._tag(tag >> 16, tag & 0xFFFF)
        pack, maximum = self._pack_long, _MAXIMUM_LONG_LENGTH
        if self.target.explicit:
            name = vr.encode("ascii")
            assert name in KNOWN_VRS
            if explicit_form(name)[0] == SHORT_LENGTH:
                head += name
                pack, maximum = self._pack_short, _MAXIMUM_SHORT_LENGTH
            else:
                head += name + b"\0\0"
        turned = self.source.byteorder != self.target.byteorder
        word_bytes = WORD_BYTES.get(vr, 1) if turned else 1
        return Rule(form, action, head, pack, maximum, word_bytes, tag, vr)

    def unknown(self, rule: Rule) -> Rule:
        """The rule for a value that is too long for the length field of its VR: UN, and as UN little-endian whatever
        surrounds it (PS3.5 §6.2.2 note 2)."""
        word_bytes = WORD_BYTES.get(rule.vr, 1) if self.source.byteorder == "big" else 1
        return self.rule_for(rule.tag, "UN", form=rule.form)._replace(word_bytes=word_bytes)


@cache
def _conversions() -> dict[tuple[str, str], Conversion]:
    encodings = (IMPLICIT, EXPLICIT_LITTLE_ENDIAN, EXPLICIT_BIG_ENDIAN)
    return {
        (source.name, target.name): Conversion(source, target) for source in encodings for target in encodings
    }


def conversion(source: ElementEncoding, target: ElementEncoding) -> Conversion:
    """The conversion between two of the three encodings; everyone's, so that each header is worked out once."""
    return _conversions()[source.name, target.name]
