"""Build an envelope: a ZIP of received files with the documents that describe them.

    manifest.json                            profile HARMONY (the default)
    payload/metadata.json
    payload/files.json
    payload/series_1/image_001.dcm           series and images counted from 1

    manifest.json, audit.json                profile JMIX
    payload/metadata.json, files.json
    payload/dicom/<SOPInstanceUID>.dcm

Files are streamed from the disk, read once for their header and once for everything else; series and images follow
Series Number and Instance Number, and the order of arrival where there are none. The archive is written beside its
final place and renamed, so that under its name there is a complete envelope or nothing. The same plan with the same
files gives the same bytes. manifest.json stands last in the archive because it carries the hash of the payload, in the
form that `payload_hash` describes.

Blocking: for a worker thread, where hashing and input/output leave the interpreter to others.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

import msgspec

from harmony.dicom.uid import path_component
from harmony.jmix import documents
from harmony.jmix.documents import Entity, EnvelopeInstance, EnvelopeSeries, EnvelopeStudy, Parties, Profile
from harmony.jmix.header import read_header
from harmony.jmix.journal import PlannedObject
from harmony.jmix.limits import canonical_envelope_id
from harmony.jmix.payload_hash import listing_hash
from harmony.jmix.zipformat import Compression, Member
from harmony.jmix.zipwriter import ZipFileWriter

__all__ = [
    "Compression",
    "Entity",
    "EnvelopePlan",
    "EnvelopeSummary",
    "Parties",
    "PlannedObject",
    "Profile",
    "build_envelope",
]

TEMPORARY_SUFFIX = ".tmp"


@dataclass(frozen=True, slots=True)
class EnvelopePlan:
    """What goes into an envelope, and everything about it that is not read from the files."""

    envelope_id: str
    """A canonical UUID."""
    created: datetime
    """With a time zone. Also the time of the members of the archive."""
    objects: Sequence[PlannedObject]
    """At least one; of one study in profile JMIX."""
    parties: Parties = field(default_factory=Parties)
    classification: str = "confidential"
    """Or "sensitive" or "de-identified"."""


@dataclass(frozen=True, slots=True)
class EnvelopeSummary:
    """An envelope that has been built."""

    id: str
    path: Path
    size_bytes: int
    study_instance_uids: tuple[str, ...]
    instance_count: int
    payload_hash: str | None
    manifest: bytes


def build_envelope(
    plan: EnvelopePlan,
    *,
    out_path: Path,
    profile: Profile = Profile.HARMONY,
    skip_hashing: bool = False,
    skip_listing: bool = False,
    compression: Compression = Compression.STORED,
    fsync: bool = False,
) -> EnvelopeSummary:
    """Write the envelope to `out_path`, whose folder exists; what was there is replaced.

    skip_hashing: no SHA-256 of the files nor of the payload.
    skip_listing: files.json lists only metadata.json, which still names every instance.
    fsync: the envelope and its name are on the disk on return.
    Raises ValueError for a plan that cannot be an envelope, OSError when a file is missing or the disk is full;
    nothing is left behind then.
    """
    if canonical_envelope_id(plan.envelope_id) != plan.envelope_id:
        raise ValueError(f"{plan.envelope_id!r} is not a canonical UUID")
    studies = _arrange(plan.objects, profile)
    temporary = out_path.with_name(out_path.name + TEMPORARY_SUFFIX)
    temporary.unlink(missing_ok=True)  # of an attempt that a crash ended
    try:
        with ZipFileWriter(
            temporary, compression=compression, modified=plan.created, hashing=not skip_hashing
        ) as writer:
            payload_hash = _write_payload(writer, plan, studies, profile=profile, skip_listing=skip_listing)
            manifest = _encode(
                documents.manifest(
                    plan.envelope_id,
                    plan.created,
                    profile=profile,
                    parties=plan.parties,
                    classification=plan.classification,
                    payload_hash=payload_hash,
                )
            )
            if profile is Profile.JMIX:
                writer.add("audit.json", _encode(documents.audit(plan.created, parties=plan.parties)))
            writer.add("manifest.json", manifest)
            size_bytes = writer.finish(fsync=fsync)
        os.replace(temporary, out_path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if fsync:
        _sync_folder(out_path.parent)
    return EnvelopeSummary(
        id=plan.envelope_id,
        path=out_path,
        size_bytes=size_bytes,
        study_instance_uids=tuple(study.study_instance_uid for study in studies),
        instance_count=sum(len(series.instances) for study in studies for series in study.series),
        payload_hash=payload_hash,
        manifest=manifest,
    )


def _write_payload(
    writer: ZipFileWriter,
    plan: EnvelopePlan,
    studies: Sequence[EnvelopeStudy],
    *,
    profile: Profile,
    skip_listing: bool,
) -> str | None:
    """Write everything below payload/; return its hash unless hashing is off."""
    members: dict[str, Member] = {}
    for study in studies:
        for series in study.series:
            for instance in series.instances:
                members[instance.file] = writer.add_file(f"payload/{instance.file}", Path(instance.path))
    metadata = documents.metadata(
        plan.envelope_id, plan.created, profile=profile, studies=studies, members=members
    )
    instances = [] if skip_listing else list(members.items())
    members["metadata.json"] = writer.add("payload/metadata.json", _encode(metadata))
    listing = documents.files([("metadata.json", members["metadata.json"]), *instances])
    members["files.json"] = writer.add("payload/files.json", _encode(listing))
    hashes = {
        file: (member.size_bytes, member.sha256)
        for file, member in members.items()
        if member.sha256 is not None
    }
    return listing_hash(hashes) if hashes else None


def _arrange(objects: Sequence[PlannedObject], profile: Profile) -> list[EnvelopeStudy]:
    """Read the headers, sort into studies and series, and give every instance its name in the envelope."""
    if not objects:
        raise ValueError("an envelope needs at least one object")
    studies: dict[str, dict[str, list[EnvelopeInstance]]] = {}
    for planned in objects:
        header = read_header(planned.path, planned.transfer_syntax_uid)
        instance = EnvelopeInstance(
            planned.path, planned.sop_class_uid, planned.sop_instance_uid, planned.transfer_syntax_uid, header
        )
        series_of_study = studies.setdefault(planned.study_instance_uid, {})
        series_of_study.setdefault(planned.series_instance_uid, []).append(instance)
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


def _encode(document: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
