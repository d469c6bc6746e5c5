"""One envelope per object, and the sender is answered when the upstream has answered (group = "instance").

The upstream's answer becomes the C-STORE status: delivered 0000, worth another try A700, refused for good C000. An
object whose upload failed is handed back to its sender as a failure, so nothing is promised and nothing queued. The
envelope's id is made from the object: when an answer was lost and the sender repeats the object, it is the same
envelope to the upstream, which says that it has it.

Called by `jmix_builder`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import sqlite3
import uuid
from collections.abc import Awaitable
from datetime import UTC, datetime
from pathlib import Path

from harmony.archive.files import Disposition, FileSink, StoredObject
from harmony.archive.stored import refusal
from harmony.dimse.sink import Sink
from harmony.dimse.status import Outcome, Status
from harmony.gateway.envelope_builder import ENVELOPE_TYPE, EnvelopeBuilder
from harmony.gateway.jmix_backend import JmixUpstream, Result, Verdict
from harmony.gateway.local_archive import Announced, LocalArchive

__all__ = ["InstanceDeliveries"]

logger = logging.getLogger("harmony.gateway")

ENVELOPE_NAMESPACE = uuid.UUID("5e7a1d60-3c0e-4f0c-9a55-7a52c1f3d9b4")
"""For the ids of single-object envelopes, which are made from the object (RFC 9562 §5.5)."""


class InstanceDeliveries:
    """Those of one pipeline. upstream: None keeps the envelopes here."""

    def __init__(self, envelopes: EnvelopeBuilder, upstream: JmixUpstream | None) -> None:
        self._envelopes = envelopes
        self._upstream = upstream
        self._deliveries: dict[str, asyncio.Task[Outcome]] = {}  # by envelope id

    def sink(self, announced: Announced, archive: LocalArchive) -> Sink:
        """For one object."""
        return _Sink(self, announced, archive)

    async def stop(self, grace_s: float) -> None:
        """Let uploads end within grace_s; what is cut short is handed back to its sender."""
        if deliveries := list(self._deliveries.values()):
            _, late = await asyncio.wait(deliveries, timeout=grace_s)
            for delivery in late:
                delivery.cancel()
            await asyncio.wait(deliveries)

    async def deliver(self, stored: StoredObject, origin: str) -> Outcome:
        """Build and upload the envelope of one object; the upstream's answer as a C-STORE outcome.

        Senders of the same object at the same time share one delivery. It goes on when its sender has gone.
        """
        envelope_id = await asyncio.to_thread(_envelope_id, stored)
        delivery = self._deliveries.get(envelope_id)
        if delivery is None:
            delivery = asyncio.create_task(self._build_and_upload(envelope_id, stored, origin))
            self._deliveries[envelope_id] = delivery
            delivery.add_done_callback(lambda _: self._deliveries.pop(envelope_id))
        try:
            return await asyncio.shield(delivery)
        except asyncio.CancelledError:
            if delivery.cancelled():  # the gateway stops
                return Outcome(Status.OUT_OF_RESOURCES, "the gateway is stopping")
            raise

    async def _build_and_upload(self, envelope_id: str, stored: StoredObject, origin: str) -> Outcome:
        try:
            path, is_new = await asyncio.to_thread(self._build, envelope_id, stored, origin)
        except OSError as error:
            logger.error("envelope %s cannot be built: %s", envelope_id, error)
            return refusal(error).outcome
        except sqlite3.Error as error:
            logger.error("envelope %s cannot be built: %s", envelope_id, error)
            return Outcome(Status.OUT_OF_RESOURCES, "the envelope could not be stored")
        if self._upstream is None:
            return Outcome(Status.SUCCESS)
        result = Result(Verdict.RETRY, None, "given up, the gateway is stopping")
        try:
            result = await self._upstream.upload(envelope_id, path, ENVELOPE_TYPE)
        finally:
            if result.verdict is not Verdict.DELIVERED:
                logger.warning("envelope %s handed back to its sender: %s", envelope_id, result.error)
                if is_new:
                    self._envelopes.store.remove(envelope_id)
        match result.verdict:
            case Verdict.DELIVERED:
                return Outcome(Status.SUCCESS)
            case Verdict.RETRY:
                return Outcome(Status.OUT_OF_RESOURCES, "the upstream JMIX server cannot take it now")
            case Verdict.PARK:
                return Outcome(Status.CANNOT_UNDERSTAND, "the upstream JMIX server refused it")

    def _build(self, envelope_id: str, stored: StoredObject, origin: str) -> tuple[Path, bool]:
        """Blocking: the envelope's path, and whether it was not there before."""
        with contextlib.suppress(KeyError):
            return self._envelopes.store.path(envelope_id), False
        created = datetime.now(UTC)
        return self._envelopes.build(envelope_id, (stored,), origin=origin, created=created).path, True


class _Sink:
    """A file whose sender is answered when the upstream has answered."""

    __slots__ = ("_deliveries", "_origin", "_sink", "_stored", "abort", "write")

    def __init__(self, deliveries: InstanceDeliveries, announced: Announced, archive: LocalArchive) -> None:
        self._deliveries = deliveries
        self._origin = announced.calling_ae_title
        self._stored: StoredObject | None = None
        self._sink: FileSink = archive.sink(announced, on_stored=self._remember)
        self.write = self._sink.write
        self.abort = self._sink.abort

    def finish(self) -> Outcome | Awaitable[Outcome]:
        answer = self._sink.finish()
        if isinstance(answer, Outcome) and self._stored is None:
            return answer
        return asyncio.ensure_future(self._deliver(answer))

    def _remember(self, stored: StoredObject) -> None:
        if stored.disposition is not Disposition.KEPT_FIRST:
            self._stored = stored

    async def _deliver(self, answer: Outcome | Awaitable[Outcome]) -> Outcome:
        outcome = answer if isinstance(answer, Outcome) else await answer
        if self._stored is None:
            return outcome
        try:
            return await self._deliveries.deliver(self._stored, self._origin)
        except OSError as error:
            raise refusal(error) from error


def _envelope_id(stored: StoredObject) -> str:
    """Blocking: the same for the same bytes under the same UIDs, and only for them."""
    with open(stored.path, "rb", buffering=0) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    name = f"{stored.study_instance_uid}/{stored.sop_instance_uid}/{digest}"
    return str(uuid.uuid5(ENVELOPE_NAMESPACE, name))
