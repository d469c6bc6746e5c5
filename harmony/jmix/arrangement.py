"""Which instance of an envelope stands where: studies, series and images in order, and the names of their files.

    series_1/image_001.dcm                   profile HARMONY: series and images counted from 1
    dicom/<SOPInstanceUID>.dcm               profile JMIX

Series and images follow Series Number and Instance Number, and the order of arrival where there are none. Functions of
values only. Called by `envelope` and `packer`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from harmony.dicom.uid import path_component
from harmony.jmix.documents import EnvelopeInstance, EnvelopeSeries, EnvelopeStudy, Profile

__all__ = ["LONGEST_NAME_BYTES", "arrange"]

LONGEST_NAME_BYTES = 112
"""Of a file, payload/ included: a UID has up to 64 characters, a number in a name up to 20."""


def arrange(objects: Iterable[tuple[str, str, EnvelopeInstance]], profile: Profile) -> list[EnvelopeStudy]:
    """Sort instances into studies and series, and give each its name.

    objects: Study Instance UID, Series Instance UID and instance, in the order of arrival.
    Raises ValueError for what cannot be one envelope.
    """
    studies: dict[str, dict[str, list[EnvelopeInstance]]] = {}
    for study_instance_uid, series_instance_uid, instance in objects:
        studies.setdefault(study_instance_uid, {}).setdefault(series_instance_uid, []).append(instance)
    if not studies:
        raise ValueError("an envelope needs at least one object")
    if profile is Profile.JMIX and len(studies) > 1:
        raise ValueError(f"an envelope of profile jmix holds one study, not {len(studies)}")
    arranged = []
    for study_instance_uid, by_series in studies.items():
        series_list = [
            EnvelopeSeries(uid, sorted(instances, key=_instance_order))
            for uid, instances in by_series.items()
        ]
        arranged.append(EnvelopeStudy(study_instance_uid, sorted(series_list, key=_series_order)))
    all_series = [series for study in arranged for series in study.series]
    if profile is Profile.HARMONY:
        _name_by_number(all_series)
    else:
        _name_by_uid(all_series)
    return arranged


def _instance_order(instance: EnvelopeInstance) -> tuple[bool, int]:
    """Sorting is stable: instances without a number come last, in the order of arrival."""
    number = instance.header.instance_number
    return number is None, number or 0


def _series_order(series: EnvelopeSeries) -> tuple[bool, int]:
    number = series.instances[0].header.series_number
    return number is None, number or 0


def _name_by_number(all_series: Sequence[EnvelopeSeries]) -> None:
    for series_number, series in enumerate(all_series, 1):
        digits = max(3, len(str(len(series.instances))))
        series.instances = [
            replace(instance, file=f"series_{series_number}/image_{number:0{digits}}.dcm")
            for number, instance in enumerate(series.instances, 1)
        ]


def _name_by_uid(all_series: Sequence[EnvelopeSeries]) -> None:
    taken: dict[str, int] = {}
    for series in all_series:
        named = []
        for instance in series.instances:
            name = path_component(instance.sop_instance_uid)
            count = taken[name] = taken.get(name, 0) + 1
            # Different data under one SOP Instance UID, which the archive was told to keep.
            suffix = f"-{count}" if count > 1 else ""
            named.append(replace(instance, file=f"dicom/{name}{suffix}.dcm"))
        series.instances = named
