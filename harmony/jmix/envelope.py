"""Build an envelope: a ZIP of received files with the documents that describe them.

    manifest.json                            profile HARMONY (the default)
    payload/metadata.json
    payload/files.json
    payload/series_1/image_001.dcm           series and images counted from 1

    manifest.json, audit.json                profile JMIX
    payload/metadata.json, files.json
    payload/dicom/<SOPInstanceUID>.dcm

Files are streamed from the disk, in the order of the plan, and each is read once: for its header, its hashes and its
bytes. So an envelope can be begun with the files that are there (`EnvelopeFile`) and completed when all are
(`build_envelope`). The names that `arrangement` gives follow from all the headers; members get them last, and the
directory lists them in that order.

The archive is written under a temporary name and renamed, so that under its own there is a complete envelope or
nothing. The same plan with the same files gives the same bytes, whether it was begun earlier or not. manifest.json
stands last in the archive because it carries the hash of the payload, in the form that `payload_hash` describes.

Instances that are not files but arrive are the business of `packer`, over the same EnvelopeFile.

Blocking: for a worker thread, where hashing and input/output leave the interpreter to others.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import msgspec

from harmony.jmix import documents
from harmony.jmix.arrangement import LONGEST_NAME_BYTES, arrange
from harmony.jmix.documents import Entity, EnvelopeInstance, EnvelopeStudy, Parties, Profile
from harmony.jmix.header import HeaderReader, InstanceHeader
from harmony.jmix.journal import PlannedObject
from harmony.jmix.limits import canonical_envelope_id
from harmony.jmix.payload_hash import listing_hash
from harmony.jmix.zipformat import Compression, Member
from harmony.jmix.zipstream import UnnamedMember
from harmony.jmix.zipwriter import ZipFileWriter

__all__ = [
    "Compression",
    "Entity",
    "EnvelopeFile",
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
    objects: Sequence[PlannedObject] = ()
    """At least one, of one study in profile JMIX; none for a `packer`, to which they come later."""
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
    begun: EnvelopeFile | None = None,
) -> EnvelopeSummary:
    """Write the envelope to `out_path`, whose folder exists; what was there is replaced.

    skip_hashing: no SHA-256 of the files nor of the payload.
    skip_listing: files.json lists only metadata.json, which still names every instance.
    fsync: the envelope and its name are on the disk on return.
    begun: made with the same options, and with what is to be the beginning of the envelope; it is completed, or
        discarded when the plan begins with something else.
    Raises ValueError for a plan that cannot be an envelope, OSError when a file is missing or the disk is full;
    nothing is left behind then.
    """
    if begun is not None and not begun.is_beginning_of(plan):
        begun.discard()
        begun = None
    envelope = begun or EnvelopeFile(
        plan,
        out_path.with_name(out_path.name + TEMPORARY_SUFFIX),
        profile=profile,
        skip_hashing=skip_hashing,
        skip_listing=skip_listing,
        compression=compression,
        fsync=fsync,
    )
    try:
        for planned in plan.objects[envelope.instance_count :]:
            envelope.add_file(planned)
        return envelope.complete(out_path)
    except BaseException:
        envelope.discard()
        raise


class EnvelopeFile:
    """The archive of one envelope, under a temporary name until it is complete.

    What fails leaves it good for `discard` only. One thread at a time.
    """

    def __init__(
        self,
        plan: EnvelopePlan,
        temporary: Path,
        *,
        profile: Profile,
        skip_hashing: bool,
        skip_listing: bool,
        compression: Compression,
        fsync: bool,
    ) -> None:
        """temporary: on the file system of the envelope; what is there, of an attempt that a crash ended, is replaced.

        plan.objects count for nothing here. The other arguments are those of `build_envelope`.
        """
        if canonical_envelope_id(plan.envelope_id) != plan.envelope_id:
            raise ValueError(f"{plan.envelope_id!r} is not a canonical UUID")
        self.plan = plan
        self._profile = profile
        self._skip_listing = skip_listing
        self._fsync = fsync
        self._files: list[PlannedObject] = []
        self._instances: list[tuple[str, str, EnvelopeInstance]] = []
        self._unnamed: list[UnnamedMember] = []
        self._temporary = temporary
        temporary.unlink(missing_ok=True)
        self.writer = ZipFileWriter(
            temporary, compression=compression, modified=plan.created, hashing=not skip_hashing
        )
        """For instances that are added with `add`."""

    @property
    def instance_count(self) -> int:
        """How many instances are in it."""
        return len(self._instances)

    def is_beginning_of(self, plan: EnvelopePlan) -> bool:
        """Whether its files are the first ones of a plan, which is the same otherwise."""
        mine, its = self.plan, plan.objects[: len(self._files)]
        return (mine.envelope_id, mine.created) == (plan.envelope_id, plan.created) and [
            _identity(planned) for planned in self._files
        ] == [_identity(planned) for planned in its]

    def add_file(self, planned: PlannedObject, buffer: memoryview | None = None) -> None:
        """Add an instance that is a file. buffer: as `ZipFileWriter.add_file` takes it."""
        reader = HeaderReader(planned.transfer_syntax_uid)
        member = self.writer.add_file(
            Path(planned.path), longest_name_bytes=LONGEST_NAME_BYTES, look=reader.feed, buffer=buffer
        )
        self._files.append(planned)
        self.add(
            planned.study_instance_uid,
            planned.series_instance_uid,
            (planned.sop_class_uid, planned.sop_instance_uid, planned.transfer_syntax_uid),
            reader.header(),
            member,
        )

    def add(
        self,
        study_instance_uid: str,
        series_instance_uid: str,
        uids: tuple[str, str, str],
        header: InstanceHeader,
        member: UnnamedMember,
    ) -> None:
        """Add an instance that was written to `writer`. uids: SOP class, SOP instance, transfer syntax."""
        instance = EnvelopeInstance(len(self._instances), *uids, header)
        self._instances.append((study_instance_uid, series_instance_uid, instance))
        self._unnamed.append(member)

    def complete(self, out_path: Path) -> EnvelopeSummary:
        """Name the members, add the documents and give the envelope its final name; what is there is replaced.

        Raises ValueError when what was added cannot be an envelope.
        """
        plan, writer = self.plan, self.writer
        studies = arrange(self._instances, self._profile)
        members: dict[str, Member] = {}
        for study in studies:
            for series in study.series:
                for instance in series.instances:
                    unnamed = self._unnamed[instance.number]
                    members[instance.file] = writer.name(unnamed, f"payload/{instance.file}")
        payload_hash = self._describe_payload(studies, members)
        manifest = _encode(
            documents.manifest(
                plan.envelope_id,
                plan.created,
                profile=self._profile,
                parties=plan.parties,
                classification=plan.classification,
                payload_hash=payload_hash,
            )
        )
        if self._profile is Profile.JMIX:
            writer.add("audit.json", _encode(documents.audit(plan.created, parties=plan.parties)))
        writer.add("manifest.json", manifest)
        size_bytes = writer.finish(fsync=self._fsync)
        os.replace(self._temporary, out_path)
        if self._fsync:
            _sync_folder(out_path.parent)
        return EnvelopeSummary(
            id=plan.envelope_id,
            path=out_path,
            size_bytes=size_bytes,
            study_instance_uids=tuple(study.study_instance_uid for study in studies),
            instance_count=len(members),
            payload_hash=payload_hash,
            manifest=manifest,
        )

    def discard(self) -> None:
        """Leave nothing behind; idempotent."""
        self.writer.close()
        self._temporary.unlink(missing_ok=True)

    def _describe_payload(self, studies: Sequence[EnvelopeStudy], members: dict[str, Member]) -> str | None:
        """Write the two documents below payload/; return its hash unless hashing is off."""
        plan = self.plan
        metadata = documents.metadata(
            plan.envelope_id, plan.created, profile=self._profile, studies=studies, members=members
        )
        instances = [] if self._skip_listing else list(members.items())
        described = dict(members)
        described["metadata.json"] = self.writer.add("payload/metadata.json", _encode(metadata))
        listing = documents.files([("metadata.json", described["metadata.json"]), *instances])
        described["files.json"] = self.writer.add("payload/files.json", _encode(listing))
        hashes = {
            file: (member.size_bytes, member.sha256)
            for file, member in described.items()
            if member.sha256 is not None
        }
        return listing_hash(hashes) if hashes else None


def _identity(planned: PlannedObject) -> tuple[str, ...]:
    return (
        planned.path,
        planned.study_instance_uid,
        planned.series_instance_uid,
        planned.sop_class_uid,
        planned.sop_instance_uid,
        planned.transfer_syntax_uid,
    )


def _encode(document: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
