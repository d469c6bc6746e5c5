"""Which attribute belongs to which level of the Query/Retrieve information models (PS3.4 §C.6, PS3.18 §10.6).

The header of a stored instance holds attributes of four things at once. This module takes it apart: what describes
the patient, the study and the series comes from the modules that PS3.3 §A.1.2 assigns to these entities, everything
else describes the instance. An entity of a level, as the index returns it, has the attributes of that level and of
those above it.

The patient's attributes are those of a study as well: a person is renamed, and what each study recorded stays true.

No I/O and no matching. Called by the index.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

from harmony.dicom.json_model import texts_of
from harmony.dicom.uid import path_component

__all__ = [
    "PATIENT_ATTRIBUTES",
    "SERIES_ATTRIBUTES",
    "STUDY_ATTRIBUTES",
    "Entity",
    "Level",
    "infer_level",
    "instance_attributes",
    "joined",
    "level_of",
    "patient_key",
    "select",
    "uid_folder",
]

Entity = dict[str, dict[str, Any]]
"""A data set in the DICOM JSON model (PS3.18 §F.2): attributes by tag as eight upper-case hex digits."""


class Level(Enum):
    """Query/Retrieve Level (0008,0052), PS3.4 §C.6.1.1. IMAGE is any composite instance."""

    PATIENT = "PATIENT"
    STUDY = "STUDY"
    SERIES = "SERIES"
    IMAGE = "IMAGE"


def _tags(table: str) -> frozenset[str]:
    return frozenset(table.split())


# PS3.3 Tables C.7-1 (Patient) and C.2-2..4, and the optional keys of PS3.4 Table C.6-1
PATIENT_ATTRIBUTES = _tags("""
    00100010 00100020 00100021 00100022 00100024 00100026 00100027 00100028 00100030 00100032 00100033
    00100034 00100035 00100040 00100212 00100213 00100214 00100215 00100216 00100217 00100218 00100219
    00100221 00100222 00100223 00101000 00101001 00101002 00101005 00101040 00101060 00101100 00102110
    00102160 00102201 00102202 00102203 00102292 00102293 00102294 00102295 00102296 00102297 00102298
    00102299 001021F0 00104000 00081120 00120062 00120063 00120064
""")

# PS3.3 Tables C.7-3 (General Study), C.7-4a (Patient Study), C.7-2b/C.7-4b (Clinical Trial), PS3.4 Table C.6-2
STUDY_ATTRIBUTES = PATIENT_ATTRIBUTES | _tags("""
    00080020 00080030 00080050 00080051 00080090 00080096 0008009C 0008009D 00080201 00080220 0008041F
    00081030 00081032 00081048 00081049 00081060 00081062 00081080 00081084 00081110 00101010 00101020
    00101021 00101022 00101023 00101024 00101030 00102000 00102180 001021A0 001021B0 001021C0 001021D0
    00120010 00120020 00120021 00120030 00120031 00120040 00120042 00120050 00120051 00120052 00120081
    00120082 00120083 00120085 0020000D 00200010 00201070 00321032 00321033 00321034 00321060 00321064
    00324000 00380010 00380014 00380060 00380062 00380064 00380300 00380500 00401012
""")

# PS3.3 Tables C.7-5a (General Series), C.7-5b, C.7-6 (Frame of Reference), C.7-8 (General Equipment), Table C.6-3
SERIES_ATTRIBUTES = _tags("""
    00080021 00080031 00080060 00080068 00080070 00080080 00080081 00081010 0008103E 0008103F 00081040
    00081041 00081050 00081052 00081070 00081072 00081090 00081111 00081250 00120060 00120071 00120072
    00180015 00181000 00181008 00181020 00181030 00185100 0020000E 00200011 00200052 00200060 00201040
    00400244 00400245 00400250 00400251 00400253 00400254 00400255 00400260 00400275 00400280 00400555
""")

_ABOVE_INSTANCE = STUDY_ATTRIBUTES | SERIES_ATTRIBUTES

# PS3.4 §C.3.4: in no header, but known to an archive
_COUNTED = {
    Level.PATIENT: _tags("00201200 00201202 00201204"),
    Level.STUDY: _tags("00080061 00080062 00201206 00201208"),
    Level.SERIES: _tags("00201209"),
}


def level_of(tag: str) -> Level:
    """Return the level whose entities have an attribute; IMAGE when no table has it."""
    for level, attributes in (
        (Level.PATIENT, PATIENT_ATTRIBUTES),
        (Level.STUDY, STUDY_ATTRIBUTES),
        (Level.SERIES, SERIES_ATTRIBUTES),
    ):
        if tag in attributes or tag in _COUNTED[level]:
            return level
    return Level.IMAGE


def select(header: Mapping[str, dict[str, Any]], tags: frozenset[str]) -> Entity:
    """Return the attributes of `header` whose tags are in `tags`, in the order of the header."""
    return {tag: element for tag, element in header.items() if tag in tags}


def instance_attributes(header: Mapping[str, dict[str, Any]]) -> Entity:
    """Return what of a header describes the instance alone."""
    return {tag: element for tag, element in header.items() if tag not in _ABOVE_INSTANCE}


def joined(model: Mapping[str, Any], tag: int) -> str:
    """Return all values of an attribute as text, joined by backslash; empty when there are none."""
    return "\\".join(texts_of(model, tag))


def patient_key(header: Mapping[str, Any]) -> str:
    """Return what tells one patient from another.

    That is the Patient ID together with its issuer (PS3.3 §C.7.1.1). People without an ID are told apart by name and
    birth date: to take them all for one person would hand out one's studies as another's.
    """
    patient_id = joined(header, 0x00100020)
    if patient_id:
        return f"{patient_id}\n{joined(header, 0x00100021)}"
    return f"\n\n{joined(header, 0x00100010)}\n{joined(header, 0x00100030)}"


def infer_level(identifier: Mapping[str, Any]) -> Level:
    """Return the level that the keys of an identifier suggest, for requests that do not state one.

    The lowest unique key with a value decides; one that is present without value counts where a key above it has one,
    since then it is what is asked for.
    """

    def filled(tag: int) -> bool:
        return bool(joined(identifier, tag).strip())

    study, series, instance = 0x0020000D, 0x0020000E, 0x00080018
    if filled(instance) or (f"{instance:08X}" in identifier and (filled(study) or filled(series))):
        return Level.IMAGE
    if filled(series) or (f"{series:08X}" in identifier and filled(study)):
        return Level.SERIES
    return Level.STUDY if f"{study:08X}" in identifier else Level.PATIENT


def uid_folder(uid: str) -> str:
    """Return the name of the folder of a study or series, as `harmony.archive.folder` makes it."""
    return path_component(uid) if uid else _NO_UID


_NO_UID = "x-none"
