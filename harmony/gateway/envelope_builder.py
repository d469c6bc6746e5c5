"""Envelopes into a store, as the options of a `jmix_builder` want them: of objects in the archive, or packed while they
arrive, here or in another process.

Called by `jmix_builder` for closed journals, by `instance_delivery` for single objects and by `study_envelope` for
studies that are retrieved, in worker threads.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from harmony.gateway.options import JmixBuilderOptions
from harmony.jmix.envelope import (
    Compression,
    Entity,
    EnvelopePlan,
    EnvelopeSummary,
    Parties,
    PlannedObject,
    Profile,
    build_envelope,
)
from harmony.jmix.packer import EnvelopePacker
from harmony.jmix.packing_process import Built, Order
from harmony.jmix.store import EnvelopeStore

__all__ = ["ENVELOPE_TYPE", "EnvelopeBuilder"]

logger = logging.getLogger("harmony.gateway")

ENVELOPE_TYPE = "application/zip"

COMPRESSIONS = {
    "stored": Compression.STORED,
    "deflate": Compression.DEFLATE,
    "zstd": Compression.ZSTANDARD,
}


class EnvelopeBuilder:
    """Builds into one store. fsync: what is built is on the disk."""

    def __init__(self, options: JmixBuilderOptions, store: EnvelopeStore, *, fsync: bool = False) -> None:
        self.store = store
        self.built_count = 0
        self._counting = threading.Lock()
        self._options = options
        self._fsync = fsync

    def build(
        self,
        envelope_id: str,
        objects: Sequence[PlannedObject],
        *,
        origin: str,
        created: datetime,
    ) -> EnvelopeSummary:
        """Write an envelope into the store and index it; again, if it must be.

        Blocking. Raises OSError or sqlite3.Error when the disk will not take it.
        """
        options = self._options
        summary = build_envelope(
            self._plan(envelope_id, created, objects),
            out_path=self.store.place(envelope_id),
            profile=Profile(options.profile),
            skip_hashing=options.skip_hashing,
            skip_listing=options.skip_listing,
            compression=COMPRESSIONS[options.compression],
            fsync=self._fsync,
        )
        self._enter(summary, origin=origin, created=created)
        return summary

    def order(self, envelope_id: str, created: datetime) -> Order:
        """What `build` would do, for another process to do it; `adopt` the result."""
        options = self._options
        return Order(
            envelope_id,
            created,
            _parties(options),
            options.classification,
            Profile(options.profile),
            options.skip_hashing,
            options.skip_listing,
            COMPRESSIONS[options.compression],
            self._fsync,
        )

    def adopt(
        self, envelope_id: str, archive: Path, built: Built, *, origin: str, created: datetime
    ) -> EnvelopeSummary:
        """Put an archive that another process built, under a temporary name, into the store and index it.

        Blocking. Raises OSError or sqlite3.Error when the disk will not take it.
        """
        path = self.store.place(envelope_id)
        try:
            os.replace(archive, path)
        except OSError:
            archive.unlink(missing_ok=True)
            raise
        summary = EnvelopeSummary(
            envelope_id,
            path,
            built.size_bytes,
            built.study_instance_uids,
            built.instance_count,
            built.payload_hash,
            built.manifest,
        )
        self._enter(summary, origin=origin, created=created)
        return summary

    def packer(
        self,
        envelope_id: str,
        study_instance_uid: str,
        *,
        created: datetime,
        skip_hashing: bool | None = None,
        skip_listing: bool | None = None,
    ) -> EnvelopePacker:
        """For the instances of a study; `keep` or `discard` it. skip_*: in place of what the options say.

        Blocking. Raises OSError.
        """
        options = self._options
        return EnvelopePacker(
            self._plan(envelope_id, created, ()),
            study_instance_uid,
            self.store.incoming(),
            profile=Profile(options.profile),
            skip_hashing=options.skip_hashing if skip_hashing is None else skip_hashing,
            skip_listing=options.skip_listing if skip_listing is None else skip_listing,
            compression=COMPRESSIONS[options.compression],
            fsync=self._fsync,
        )

    def keep(
        self, packer: EnvelopePacker, envelope_id: str, *, origin: str, created: datetime
    ) -> EnvelopeSummary:
        """Finish what was packed, put it into the store and index it. On an error there is nothing in the store.

        Blocking. Raises OSError or sqlite3.Error when the disk will not take it.
        """
        path = self.store.place(envelope_id)
        try:
            summary = packer.finish(path)
            self._enter(summary, origin=origin, created=created)
        except BaseException:
            shutil.rmtree(path.parent, ignore_errors=True)
            raise
        return summary

    def _plan(self, envelope_id: str, created: datetime, objects: Sequence[PlannedObject]) -> EnvelopePlan:
        options = self._options
        return EnvelopePlan(
            envelope_id,
            created,
            objects,
            parties=_parties(options),
            classification=options.classification,
        )

    def _enter(self, summary: EnvelopeSummary, *, origin: str, created: datetime) -> None:
        self.store.add_built(
            summary.id,
            manifest=summary.manifest,
            study_instance_uids=summary.study_instance_uids,
            origin=origin,
            created_at=created,
        )
        with self._counting:  # several threads may build at a time
            self.built_count += 1
        logger.info(
            "envelope %s built: %d objects, %d bytes", summary.id, summary.instance_count, summary.size_bytes
        )


def _parties(options: JmixBuilderOptions) -> Parties:
    sender = Entity(options.sender_id, options.sender)

    def entity(name: str, identifier: str) -> Entity:
        return Entity(identifier or options.sender_id, name) if name or identifier else sender

    return Parties(
        sender=sender,
        requester=entity(options.requester, options.requester_id),
        receiver=(entity(options.receiver, options.receiver_id),),
    )
