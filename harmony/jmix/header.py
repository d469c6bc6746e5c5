"""What an envelope's metadata says about an instance, read from the header of its file, or while it arrives.

The header is scanned, not parsed (`harmony.dicom.scanner`): reading stops behind Instance Number, usually within the
first block. Text is decoded with the file's Specific Character Set (PS3.3 §C.12.1.1.2, PS3.5 §6.1); what cannot be is
taken as Latin-1 or gets replacement characters, because a wrong letter in a name is no reason to hold up a study.

Values are as in the file, without padding and unchecked, except the two numbers. Called by `envelope` and `packer`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from harmony.dicom.scanner import HeaderScanner

__all__ = ["HeaderReader", "InstanceHeader", "decode_text"]

SPECIFIC_CHARACTER_SET = 0x00080005
STUDY_DATE = 0x00080020
MODALITY = 0x00080060
STUDY_DESCRIPTION = 0x00081030
SERIES_DESCRIPTION = 0x0008103E
PATIENT_NAME = 0x00100010
PATIENT_ID = 0x00100020
PATIENT_BIRTH_DATE = 0x00100030
PATIENT_SEX = 0x00100040
BODY_PART_EXAMINED = 0x00180015
STUDY_INSTANCE_UID = 0x0020000D
SERIES_INSTANCE_UID = 0x0020000E
SERIES_NUMBER = 0x00200011
INSTANCE_NUMBER = 0x00200013

_WANTED = frozenset(
    (
        SPECIFIC_CHARACTER_SET,
        STUDY_DATE,
        MODALITY,
        STUDY_DESCRIPTION,
        SERIES_DESCRIPTION,
        PATIENT_NAME,
        PATIENT_ID,
        PATIENT_BIRTH_DATE,
        PATIENT_SEX,
        BODY_PART_EXAMINED,
        STUDY_INSTANCE_UID,
        SERIES_INSTANCE_UID,
        SERIES_NUMBER,
        INSTANCE_NUMBER,
    )
)

_DELIMITERS = {0x0A, 0x0D, 0x09, 0x0C, 0x5C, 0x5E, 0x3D}
"""Characters after which code extensions start anew (PS3.5 §6.1.2.5.3): LF, CR, TAB, FF, and in names \\ ^ =."""
_INTEGER = re.compile(r"[+-]?[0-9]{1,11}\Z").match  # IS: up to 12 characters (PS3.5 Table 6.2-1)


@dataclass(frozen=True, slots=True)
class InstanceHeader:
    """Values of one instance; what is missing is empty, or None for a number."""

    study_date: str
    modality: str
    study_description: str
    series_description: str
    patient_name: str
    """As in the file, all component groups: DOE^JOHN."""
    patient_id: str
    patient_birth_date: str
    patient_sex: str
    body_part: str
    study_instance_uid: str
    series_instance_uid: str
    series_number: int | None
    instance_number: int | None


class HeaderReader:
    """Reads the header of one instance from its bytes, with or without file meta, in any pieces.

    A data set that makes no sense gives what was found before that.
    """

    def __init__(self, transfer_syntax_uid: str) -> None:
        self._scanner = HeaderScanner(transfer_syntax_uid, _WANTED)

    def feed(self, piece: memoryview) -> bool:
        """Look at the next bytes; True when no more are needed."""
        return self._scanner.feed(piece)

    def header(self) -> InstanceHeader:
        """What was found; nothing can be fed any more."""
        scanner = self._scanner
        scanner.finish()
        character_sets = [term.strip(" \0") for term in scanner.text(SPECIFIC_CHARACTER_SET).split("\\")]

        def text(tag: int) -> str:
            return decode_text(scanner.values.get(tag, b""), character_sets).strip(" \0")

        return InstanceHeader(
            study_date=text(STUDY_DATE),
            modality=text(MODALITY),
            study_description=text(STUDY_DESCRIPTION),
            series_description=text(SERIES_DESCRIPTION),
            patient_name=text(PATIENT_NAME),
            patient_id=text(PATIENT_ID),
            patient_birth_date=text(PATIENT_BIRTH_DATE),
            patient_sex=text(PATIENT_SEX),
            body_part=text(BODY_PART_EXAMINED),
            study_instance_uid=scanner.text(STUDY_INSTANCE_UID),
            series_instance_uid=scanner.text(SERIES_INSTANCE_UID),
            series_number=_integer(scanner.text(SERIES_NUMBER)),
            instance_number=_integer(scanner.text(INSTANCE_NUMBER)),
        )


def decode_text(value: bytes, character_sets: list[str]) -> str:
    """Decode a value; character_sets: the defined terms of Specific Character Set, [""] when there is none."""
    if value.isascii() and b"\x1b" not in value:
        return value.decode("ascii")
    if character_sets == ["ISO_IR 192"]:
        return value.decode("utf-8", "replace")
    if character_sets in ([""], ["ISO_IR 100"], ["ISO_IR 6"]):  # many files use Latin-1 and do not say so
        return value.decode("latin-1")
    return _decode_extended(value, character_sets)


def _decode_extended(value: bytes, character_sets: list[str]) -> str:
    # Here, because importing pydicom takes longer than building a small envelope, and most never need it.
    from pydicom.charset import decode_bytes, python_encoding

    encodings = [python_encoding.get(term) for term in character_sets]
    known = [encoding for encoding in encodings if encoding is not None]
    if len(known) != len(encodings):
        return value.decode("latin-1")
    try:
        if b"\x1b" in value:
            return decode_bytes(value, known, _DELIMITERS)
        return value.decode(known[0], "replace")
    except (LookupError, UnicodeError, UserWarning):  # the last where warnings are errors
        return value.decode("latin-1")


def _integer(text: str) -> int | None:
    return int(text) if _INTEGER(text) is not None else None
