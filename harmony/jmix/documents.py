"""The JSON documents of an envelope: manifest, metadata, file listing and audit, in both profiles.

`HARMONY` is the structure Harmony's documentation shows: manifest.json with `type`, the integer version 1 and
`content`; studies as a map by Study Instance UID that names every instance. Around it stand the keys of the JMIX
specification, so that a reader of either finds what it looks for. `JMIX` is the specification's, valid against its
four schemas: no further keys, one study as an object, audit.json, at least one receiver.

Functions of values only; nothing is read or written here. Called by `envelope`, arranged by `arrangement`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum

from harmony.jmix.header import InstanceHeader
from harmony.jmix.zipformat import Member

__all__ = ["Entity", "EnvelopeInstance", "EnvelopeSeries", "EnvelopeStudy", "Parties", "Profile"]

JMIX_VERSION = "1.0"
UNKNOWN_PATIENT_ID = "UNKNOWN"
"""The specification requires a patient id; not every object has one."""
UNKNOWN_MODALITY = "OT"
"""The specification requires a modality per series; PS3.3 §C.7.3.1.1.1: Other."""

Json = dict[str, object]


class Profile(Enum):
    """Which of the two structures an envelope has; the values are the words of the configuration."""

    HARMONY = "harmony"
    JMIX = "jmix"


@dataclass(frozen=True, slots=True)
class Entity:
    """An organisation or system that sends, requests or receives."""

    id: str
    name: str = ""
    contact: str = ""

    def as_json(self, *, contact: bool = True) -> Json:
        entity: Json = {"id": self.id}
        if self.name:
            entity["name"] = self.name
        if self.contact and contact:
            entity["contact"] = self.contact
        return entity


@dataclass(frozen=True, slots=True)
class Parties:
    """Who an envelope is from and for. At least one receiver."""

    sender: Entity = Entity("org:harmony", "Harmony")
    requester: Entity | None = None
    receiver: tuple[Entity, ...] = (Entity("org:upstream", "Upstream JMIX server"),)

    def __post_init__(self) -> None:
        if not self.receiver:
            raise ValueError("an envelope needs at least one receiver")


@dataclass(frozen=True, slots=True)
class EnvelopeInstance:
    """One instance with its place in the envelope."""

    number: int
    """In the order in which the instances of the envelope came, from 0."""
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    header: InstanceHeader
    file: str = ""
    """Relative to payload/."""


@dataclass(slots=True)
class EnvelopeSeries:
    """Instances of one series, in the order of their numbers."""

    series_instance_uid: str
    instances: list[EnvelopeInstance] = field(default_factory=list)


@dataclass(slots=True)
class EnvelopeStudy:
    """Series of one study, in the order of their numbers."""

    study_instance_uid: str
    series: list[EnvelopeSeries] = field(default_factory=list)

    @property
    def header(self) -> InstanceHeader:
        """Of the first instance, which speaks for the study."""
        return self.series[0].instances[0].header


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC, to the second."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def manifest(
    envelope_id: str,
    created: datetime,
    *,
    profile: Profile,
    parties: Parties,
    classification: str,
    payload_hash: str | None,
) -> Json:
    """Return manifest.json."""
    document: Json = {"id": envelope_id}
    if profile is Profile.HARMONY:
        document |= {"type": "envelope", "version": 1, "content": {"type": "directory", "path": "payload"}}
    else:
        document["version"] = JMIX_VERSION
    document["timestamp"] = timestamp(created)
    document["sender"] = parties.sender.as_json()
    if parties.requester is not None:
        document["requester"] = parties.requester.as_json()
    document["receiver"] = [entity.as_json() for entity in parties.receiver]
    security: Json = {"classification": classification}
    if payload_hash is not None:
        security["payload_hash"] = payload_hash
    document["security"] = security
    return document


def metadata(
    envelope_id: str,
    created: datetime,
    *,
    profile: Profile,
    studies: Sequence[EnvelopeStudy],
    members: Mapping[str, Member],
) -> Json:
    """Return payload/metadata.json. members: what became of each file, by its path relative to payload/."""
    document: Json = {
        "id": envelope_id,
        "version": JMIX_VERSION,
        "timestamp": timestamp(created),
        "patient": patient(studies[0].header),
    }
    if profile is Profile.HARMONY:
        document["studies"] = {study.study_instance_uid: _harmony_study(study, members) for study in studies}
    else:
        document["studies"] = _jmix_study(studies[0])
    return document


def files(members: Iterable[tuple[str, Member]]) -> list[Json]:
    """Return payload/files.json. members: by path relative to payload/. Hashes are bare hexadecimal."""
    listing = []
    for file, member in members:
        entry: Json = {"file": file}
        if member.sha256 is not None:
            entry["hash"] = member.sha256
        entry["size_bytes"] = member.size_bytes
        listing.append(entry)
    return listing


def audit(created: datetime, *, parties: Parties) -> Json:
    """Return audit.json with its first entry."""
    by = parties.sender.as_json(contact=False)
    return {"audit": [{"event": "created", "by": by, "timestamp": timestamp(created)}]}


def patient(header: InstanceHeader) -> Json:
    """Return the specification's patient object; dates and sexes that its schema does not know are left out."""
    result: Json = {"id": header.patient_id or UNKNOWN_PATIENT_ID}
    # Alphabetic=Ideographic=Phonetic; Family^Given^Middle^Prefix^Suffix (PS3.5 §6.2.1)
    alphabetic = header.patient_name.partition("=")[0]
    components = [component.strip() for component in alphabetic.split("^")]
    family, given, middle, prefix, suffix = (components + [""] * 5)[:5]
    name: Json = {"family": family} if family else {}
    if given or middle:
        name["given"] = [*given.split(), *middle.split()]
    if prefix:
        name["prefix"] = prefix
    if suffix:
        name["suffix"] = suffix
    if name:
        name["text"] = " ".join(part for part in (prefix, given, middle, family, suffix) if part)
        result["name"] = name
    birth = header.patient_birth_date
    if len(birth) == 8 and birth.isascii() and birth.isdigit():
        result["dob"] = f"{birth[:4]}-{birth[4:6]}-{birth[6:]}"
    if header.patient_sex in ("M", "F", "O"):
        result["sex"] = header.patient_sex
    return result


def _harmony_study(study: EnvelopeStudy, members: Mapping[str, Member]) -> Json:
    header = study.header
    result: Json = {
        "study_uid": study.study_instance_uid,
        "patient_name": header.patient_name,
        "study_date": header.study_date,
        "modality": header.modality,
    }
    if header.study_description:
        result["study_description"] = header.study_description
    result["series"] = [_harmony_series(series, members) for series in study.series]
    return result


def _harmony_series(series: EnvelopeSeries, members: Mapping[str, Member]) -> Json:
    header = series.instances[0].header
    result: Json = {"series_uid": series.series_instance_uid, "modality": header.modality}
    if header.series_number is not None:
        result["series_number"] = header.series_number
    if header.series_description:
        result["series_description"] = header.series_description
    if header.body_part:
        result["body_part"] = header.body_part
    result["instance_count"] = len(series.instances)
    result["instances"] = [
        _harmony_instance(instance, members[instance.file]) for instance in series.instances
    ]
    return result


def _harmony_instance(instance: EnvelopeInstance, member: Member) -> Json:
    result: Json = {
        "sop_instance_uid": instance.sop_instance_uid,
        "sop_class_uid": instance.sop_class_uid,
        "transfer_syntax_uid": instance.transfer_syntax_uid,
    }
    if instance.header.instance_number is not None:
        result["instance_number"] = instance.header.instance_number
    result["file"] = instance.file
    result["size_bytes"] = member.size_bytes
    return result


def _jmix_study(study: EnvelopeStudy) -> Json:
    result: Json = {}
    if study.header.study_description:
        result["study_description"] = study.header.study_description
    result["study_uid"] = study.study_instance_uid
    series_list = []
    for series in study.series:
        header = series.instances[0].header
        entry: Json = {
            "series_uid": series.series_instance_uid,
            "modality": header.modality or UNKNOWN_MODALITY,
        }
        if header.body_part:
            entry["body_part"] = header.body_part
        entry["instance_count"] = len(series.instances)
        series_list.append(entry)
    result["series"] = series_list
    return result
