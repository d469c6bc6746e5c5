"""The data dictionary (PS3.6 §6) as queries need it: which tag a name means, which VR a tag has.

The entries are pydicom's, which follow each edition of the standard. Importing pydicom costs a tenth of a
second, so it happens at the first question, not when this module is imported.

Deliberately not here: names for display, value multiplicities, private dictionaries (a private attribute is
UN to whoever has no conformance statement of its maker at hand). Called by the codecs of this package, and
by whoever accepts attribute names from HTTP or a command line.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache

__all__ = ["ambiguous_vr_of", "format_tag", "keyword_of", "tag_of", "vr_of"]

_is_hex_tag = re.compile(r"\(?([0-9A-Fa-f]{4}),?([0-9A-Fa-f]{4})\)?").fullmatch
_LONGEST_NAME = 128  # no keyword is half as long; what is longer is not looked at

# Where the dictionary leaves the choice to another attribute. For US or SS that is Pixel Representation,
# which the decoder knows; for the others OW fits whatever the choice, because Implicit VR says OW always
# (PS3.5 §A.1).
_CHOICES = {"OB or OW": "OW", "US or SS": "US", "US or OW": "OW", "US or SS or OW": "OW", "NONE": "UN"}


def tag_of(name: str) -> int:
    """Return the tag that a keyword (`PatientID`), a snake_case keyword (`patient_id`), eight hex digits of
    either case or `gggg,eeee` mean.

    Raises ValueError naming what is none of these.
    """
    matched = _is_hex_tag(name)
    if matched:
        return int(matched[1] + matched[2], 16)
    if len(name) <= _LONGEST_NAME and (tag := _tags_by_keyword().get(name.replace("_", "").lower())):
        return tag
    raise ValueError(f"{name[:_LONGEST_NAME]!r} is not a DICOM attribute: expected a keyword or ggggeeee")


@lru_cache(maxsize=16384)  # several times what one site's modalities use; a peer can invent four billion
def vr_of(tag: int) -> str:
    """Return the VR that the dictionary gives a tag, UN when it does not know it.

    Of "US or SS" it is US, of everything that may be OW it is OW. Group lengths are UL, private creators LO
    (PS3.5 §7.8.1).
    """
    vr = ambiguous_vr_of(tag)
    return _CHOICES.get(vr, vr)


@lru_cache(maxsize=16384)
def ambiguous_vr_of(tag: int) -> str:
    """Return the VR as the dictionary prints it, `US or SS` included."""
    from pydicom import datadict

    if tag & 0xFFFF == 0:
        return "UL"
    if tag & 0x10000:
        return "LO" if 0x10 <= tag & 0xFFFF <= 0xFF else "UN"
    try:
        return datadict.dictionary_VR(tag)
    except KeyError:
        return "UN"


@lru_cache(maxsize=16384)
def keyword_of(tag: int) -> str:
    """Return the keyword of a tag, "" when the dictionary does not know it."""
    from pydicom import datadict

    return datadict.keyword_for_tag(tag)


def format_tag(tag: int) -> str:
    """Return `GGGGEEEE`, the way the DICOM JSON Model writes a tag (PS3.18 §F.2.2)."""
    return f"{tag:08X}"


@cache
def _tags_by_keyword() -> dict[str, int]:
    """Tags by keyword in lower case; no two keywords differ in case alone."""
    from pydicom.datadict import keyword_dict

    return {keyword.lower(): tag for keyword, tag in keyword_dict.items() if keyword}
