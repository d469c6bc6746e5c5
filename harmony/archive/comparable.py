"""The one form in which values are compared, of keys and of what is stored (PS3.4 §C.2.2.2.1).

Blanks that are no part of a value, several ways to write a number, a date or a time, letters composed or with
combining accents: what means the same becomes the same text. An index keeps it beside its values.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

from harmony.archive.date_time import comparable
from harmony.archive.person_name import name_groups

__all__ = [
    "BINARY_VRS",
    "NUMBER_VRS",
    "RANGE_VRS",
    "WILDCARD_VRS",
    "comparable_of",
    "name_keys",
    "number",
    "text_value",
]

# PS3.4 §C.2.2.2.4; no others have wildcards.
WILDCARD_VRS = frozenset({"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"})
RANGE_VRS = frozenset({"DA", "DT", "TM"})
NUMBER_VRS = frozenset({"DS", "FD", "FL", "IS", "SL", "SS", "SV", "UL", "US", "UV"})
# Leading spaces are part of the value in these only (PS3.5 §6.2).
_LEADING_SPACE_VRS = frozenset({"LT", "ST", "UC", "UR", "UT"})
BINARY_VRS = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"})


def comparable_of(vr: str, value: Any, *, utc_offset_minutes: int = 0) -> str | None:
    """Return the text by which a value of a model is compared, for an index to keep beside it.

    None for what cannot be compared: null, binary values, items. Texts that are no date or time are returned
    as they are: they equal nothing but themselves. Names are folded, without accents, groups separated by `=`.
    """
    if value is None or vr in BINARY_VRS or vr == "SQ":
        return None
    if vr == "PN":
        return "=".join(name_groups(value, accents=True)).rstrip("=")
    if vr in NUMBER_VRS:
        return number(value)
    text = str(value)
    if vr in RANGE_VRS:
        return comparable(vr, text, utc_offset_minutes=utc_offset_minutes) or text.strip()
    return text_value(vr, text)


def name_keys(element: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield each group of each name of a PN element, folded as in `comparable_of`: what name keys look for."""
    seen: set[str] = set()
    for value in (element or {}).get("Value") or ():
        for group in name_groups(value, accents=True):
            if group and group not in seen:
                seen.add(group)
                yield group


def text_value(vr: str, text: str) -> str:
    text = text.rstrip(" \0") if vr in _LEADING_SPACE_VRS else text.strip(" \0")
    if vr == "AT":
        return text.upper()
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def number(value: Any) -> str:
    """Return the one text of a number, however it is written; what is no number stays as it is."""
    if isinstance(value, str):
        text = value.strip(" \0")
        try:
            return str(int(text)) if text.lstrip("+-").isdecimal() else number(float(text))
        except ValueError:
            return text
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    return str(value)
