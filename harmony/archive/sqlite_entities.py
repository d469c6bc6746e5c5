"""Rows of the SQLite index as what they stand for: entities in the DICOM JSON model, and stored files.

An entity has the attributes of its level and those above it (`harmony.archive.levels`), and what only the archive
knows: numbers of related objects, Modalities and SOP Classes in Study (PS3.4 §C.3.4), Instance Availability and, of
an instance, the transfer syntax it is stored in. Called by `sqlite_index`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from harmony.archive.index import StoredInstance
from harmony.archive.levels import Entity, instance_attributes, uid_folder
from harmony.archive.sqlite_query import INSTANCE, PATIENT, SERIES, STUDY, Table
from harmony.dicom.uid import path_component

__all__ = ["Found", "Row", "instance_of", "path_of", "patient_of", "series_of", "stored_instance", "study_of"]

Row = tuple[Any, ...]  # as sqlite3 returns it
_decoder: msgspec.json.Decoder[Entity] = msgspec.json.Decoder(Entity)
_ONLINE = {"00080056": {"vr": "CS", "Value": ["ONLINE"]}}


@dataclass(frozen=True, slots=True)
class Found:
    """An entity and where it is."""

    table: Table
    id: int
    uid: str
    """Of the study, series or instance."""
    representative: int
    """The instance whose attributes it has."""
    entity: Entity
    path: str = ""
    """Of an instance's file, relative to the root."""


def patient_of(row: Row) -> Found:
    key, representative, attributes, studies, series, instances = row
    entity = _decoder.decode(attributes) | _ONLINE
    entity["00201200"] = {"vr": "IS", "Value": [studies]}
    entity["00201202"] = {"vr": "IS", "Value": [series]}
    entity["00201204"] = {"vr": "IS", "Value": [instances]}
    return Found(PATIENT, key, "", representative, entity)


def study_of(row: Row) -> Found:
    _, key, uid, representative, attributes, series, instances, modalities, sop_classes = row
    entity = _decoder.decode(attributes) | _ONLINE
    entity["00080061"] = _list("CS", modalities)
    entity["00080062"] = _list("UI", sop_classes)
    entity["00201206"] = {"vr": "IS", "Value": [series]}
    entity["00201208"] = {"vr": "IS", "Value": [instances]}
    return Found(STUDY, key, uid, representative, entity)


def series_of(row: Row, study: Found) -> Found:
    uid, key, representative, attributes, instances = row
    entity = study.entity | _decoder.decode(attributes)
    entity["00201209"] = {"vr": "IS", "Value": [instances]}
    return Found(SERIES, key, uid, representative, entity)


def instance_of(row: Row, header: Entity, study: Found, series: Found) -> Found:
    uid, name, key, _, transfer_syntax_uid = row[:5]
    entity = instance_attributes(header) | series.entity
    entity["00083002"] = _list("UI", transfer_syntax_uid)
    return Found(INSTANCE, key, uid, key, entity, path_of(study.uid, series.uid, uid, name))


def stored_instance(row: Row, root: str, study_uid: str, series_uid: str) -> StoredInstance:
    uid, name, _, sop_class_uid, transfer_syntax_uid, size_bytes, data_set_offset, pixel_data_offset, _ = row
    return StoredInstance(
        f"{root}/{path_of(study_uid, series_uid, uid, name)}",
        study_uid,
        series_uid,
        uid,
        sop_class_uid,
        transfer_syntax_uid,
        size_bytes,
        data_set_offset,
        pixel_data_offset,
    )


def path_of(study_uid: str, series_uid: str, uid: str, name: str) -> str:
    """Return the path relative to the root; name: the column, empty when it follows from the UID."""
    return f"{uid_folder(study_uid)}/{uid_folder(series_uid)}/{name or path_component(uid) + '.dcm'}"


def _list(vr: str, joined: str) -> dict[str, Any]:
    return {"vr": vr, "Value": joined.split("\\")} if joined else {"vr": vr}
