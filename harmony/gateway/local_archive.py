"""The local archive as a backend: what a DICOM endpoint receives becomes a Part 10 file, and that is all.

It is what a pipeline with `backends = []` has, and what `jmix_builder` packs envelopes from.
"""

from __future__ import annotations

import asyncio

from harmony.archive.files import FileStore
from harmony.dimse.exchange import StoreRequest
from harmony.dimse.sink import Sink
from harmony.ul.association import Association
from harmony.ul.errors import AssociationError

__all__ = ["LocalArchive"]


class LocalArchive:
    """A `Backend` over a FileStore, which it opens and closes."""

    def __init__(self, files: FileStore) -> None:
        self.files = files

    def __str__(self) -> str:
        return f"the storage folder {self.files.folder.root}"

    async def start(self) -> None:
        await asyncio.to_thread(self.files.open)

    async def stop(self, grace_s: float) -> None:
        self.files.close()

    def store(self, request: StoreRequest) -> Sink:
        return self.files.sink(
            sop_class_uid=request.affected_sop_class_uid,
            sop_instance_uid=request.affected_sop_instance_uid,
            transfer_syntax_uid=request.transfer_syntax_uid,
            calling_ae_title=request.calling_ae_title,
            called_ae_title=request.called_ae_title,
        )

    def association_established(self, association: Association) -> None:
        pass

    def association_ended(self, association: Association, error: AssociationError | None) -> None:
        pass
