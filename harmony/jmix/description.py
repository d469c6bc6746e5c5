"""Whose images an envelope holds, and how many, as its metadata.json says: for who keeps a record of where they go.

Studies are read in every form that `reader` takes: a map by Study Instance UID, one object, a list of objects. What is
missing, or is not what it should be, is empty: others may have written the document.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from harmony.dicom.uid import is_valid_uid
from harmony.jmix.documents import UNKNOWN_PATIENT_ID

__all__ = ["DescribedStudy", "described_studies"]


@dataclass(frozen=True, slots=True)
class DescribedStudy:
    study_instance_uid: str
    patient_id: str = ""
    patient_name: str = ""
    instances: Mapping[str, int] = field(default_factory=dict)
    """By SOP class; "" for those of which it is not said."""


def described_studies(metadata: Mapping[str, object]) -> tuple[DescribedStudy, ...]:
    """metadata: the document. None of its studies appears twice."""
    patient = _object(metadata.get("patient"))
    patient_id = _text(patient.get("id"))
    patient_id = "" if patient_id == UNKNOWN_PATIENT_ID else patient_id
    name = _text(_object(patient.get("name")).get("text"))
    found: dict[str, DescribedStudy] = {}
    for uid, study in _studies(metadata.get("studies")):
        if is_valid_uid(uid):
            own_name = _text(study.get("patient_name"))
            found[uid] = DescribedStudy(uid, patient_id, own_name or name, _instances(study.get("series")))
    return tuple(found.values())


def _studies(studies: object) -> Iterator[tuple[str, Mapping[str, object]]]:
    if isinstance(studies, list):
        for each in studies:
            yield _text(_object(each).get("study_uid")), _object(each)
    elif isinstance(studies, dict) and "study_uid" in studies:
        yield _text(studies["study_uid"]), studies
    elif isinstance(studies, dict):
        for uid, each in studies.items():
            yield uid, _object(each)


def _instances(series: object) -> Mapping[str, int]:
    counts: dict[str, int] = {}
    for each in series if isinstance(series, list) else ():
        one = _object(each)
        listed, count = one.get("instances"), one.get("instance_count")
        if isinstance(listed, list):
            for entry in listed:
                uid = _text(_object(entry).get("sop_class_uid"))
                uid = uid if is_valid_uid(uid) else ""
                counts[uid] = counts.get(uid, 0) + 1
        elif isinstance(count, int) and count > 0:
            counts[""] = counts.get("", 0) + count
    return counts


def _object(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
