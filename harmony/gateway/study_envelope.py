"""Envelopes of studies that are already in the local archive, made when somebody asks for them (`prime`).

The folder of a study is looked up by its UID, in the layout of `harmony.archive.files`; its objects are packed as
`jmix_builder` would have packed them. Two requests for one study wait for one build.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from harmony.dicom.uid import is_valid_uid, path_component
from harmony.dimse.part10 import Part10Error, read_file_meta_from
from harmony.jmix.envelope import EnvelopePlan, build_envelope
from harmony.jmix.store import EnvelopeStore

__all__ = ["StudyEnvelopes"]


@dataclass(frozen=True, slots=True)
class _ArchivedObject:
    path: str
    study_instance_uid: str
    series_instance_uid: str
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str


class StudyEnvelopes:
    """Builds into one store. archives: the folders to look into."""

    def __init__(
        self,
        archives: Sequence[Path],
        envelopes: EnvelopeStore,
        *,
        skip_hashing: bool = False,
        skip_listing: bool = False,
    ) -> None:
        self._archives = archives
        self._envelopes = envelopes
        self._skip_hashing = skip_hashing
        self._skip_listing = skip_listing
        self.built_count = 0
        self._builds: dict[str, asyncio.Task[str | None]] = {}

    async def build(self, study_instance_uid: str) -> str | None:
        """The id of a new envelope of the study; None when the archive has no object of it."""
        if not is_valid_uid(study_instance_uid):
            return None
        task = self._builds.get(study_instance_uid)
        if task is None:
            task = asyncio.create_task(asyncio.to_thread(self._build, study_instance_uid))
            self._builds[study_instance_uid] = task
            task.add_done_callback(self._built)
            task.add_done_callback(lambda _: self._builds.pop(study_instance_uid, None))
        return await asyncio.shield(task)

    def _built(self, task: asyncio.Task[str | None]) -> None:
        self.built_count += not task.cancelled() and task.exception() is None and task.result() is not None

    def _build(self, study_instance_uid: str) -> str | None:
        objects = self._objects(study_instance_uid)
        if not objects:
            return None
        envelope_id, created = str(uuid.uuid4()), datetime.now(UTC)
        summary = build_envelope(
            EnvelopePlan(envelope_id, created, objects),
            out_path=self._envelopes.place(envelope_id),
            skip_hashing=self._skip_hashing,
            skip_listing=self._skip_listing,
        )
        self._envelopes.add_built(
            envelope_id,
            manifest=summary.manifest,
            study_instance_uids=summary.study_instance_uids,
            origin="prime",
            created_at=created,
        )
        return envelope_id

    def _objects(self, study_instance_uid: str) -> Sequence[_ArchivedObject]:
        found = []
        study = path_component(study_instance_uid)
        for path in sorted(each for archive in self._archives for each in (archive / study).glob("*/*.dcm")):
            try:
                meta = read_file_meta_from(path)
            except Part10Error:
                continue  # not a file of ours
            found.append(
                _ArchivedObject(
                    str(path),
                    study_instance_uid,
                    path.parent.name,
                    meta.media_storage_sop_class_uid,
                    meta.media_storage_sop_instance_uid,
                    meta.transfer_syntax_uid,
                )
            )
        return found
