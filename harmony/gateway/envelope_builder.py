"""From objects in the archive to an envelope in the store, as the options of a `jmix_builder` want it.

Called by `jmix_builder` for closed journals and by `instance_delivery` for single objects, in worker threads.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from datetime import datetime

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
            EnvelopePlan(
                envelope_id,
                created,
                objects,
                parties=_parties(options),
                classification=options.classification,
            ),
            out_path=self.store.place(envelope_id),
            profile=Profile(options.profile),
            skip_hashing=options.skip_hashing,
            skip_listing=options.skip_listing,
            compression=COMPRESSIONS[options.compression],
            fsync=self._fsync,
        )
        self.store.add_built(
            envelope_id,
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
        return summary


def _parties(options: JmixBuilderOptions) -> Parties:
    sender = Entity(options.sender_id, options.sender)

    def entity(name: str, identifier: str) -> Entity:
        return Entity(identifier or options.sender_id, name) if name or identifier else sender

    return Parties(
        sender=sender,
        requester=entity(options.requester, options.requester_id),
        receiver=(entity(options.receiver, options.receiver_id),),
    )
