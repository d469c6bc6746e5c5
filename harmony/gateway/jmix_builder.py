"""The `jmix_builder` middleware: received instances become JMIX envelopes, and those go to an upstream.

A Backend around the local archive. Each object is journaled before it can be seen, so that every object whose
sender was told of success is in exactly one envelope, whatever happens in between (docs/DESIGN.md,
"Envelopes"). Under

    <storage>/jmix-builder/<pipeline>/journals/     open and closed journals: work orders
    <storage>/jmix-builder/<pipeline>/outbox.sqlite deliveries, and objects in doubt
    <store_dir>/<id>/<id>.zip                       the envelopes, which the jmix endpoint serves

group = "study": one envelope per association and study, built when the association ends or has been quiet; senders are
answered as soon as their object is safe. group = "instance": one per object, and the sender is answered when
the upstream has answered; an object whose upload failed is handed back to its sender as a failure, and its id
is made from its UIDs, so that a repetition is the same envelope to the upstream.

Without an upstream the envelopes stay local.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

from harmony.archive.files import FileSink, FileStore, StoredObject
from harmony.dimse.exchange import StoreRequest
from harmony.dimse.sink import Sink
from harmony.dimse.status import Outcome, Status
from harmony.gateway.jmix_backend import Courier, JmixUpstream, Result, Verdict
from harmony.gateway.options import JmixBuilderOptions
from harmony.jmix import journal as journals
from harmony.jmix.assembly import AssociationEnvelopes, EnvelopeAssembly
from harmony.jmix.envelope import (
    Compression,
    Entity,
    EnvelopePlan,
    EnvelopeSummary,
    Parties,
    Profile,
    build_envelope,
)
from harmony.jmix.journal import Closed, EnvelopeJournal, JournalHeader
from harmony.jmix.outbox import InDoubt, Outbox
from harmony.jmix.store import EnvelopeStore
from harmony.ul.association import Association
from harmony.ul.errors import AssociationError

__all__ = ["JmixBuilder"]

logger = logging.getLogger("harmony.gateway")

ENVELOPE_NAMESPACE = uuid.UUID("5e7a1d60-3c0e-4f0c-9a55-7a52c1f3d9b4")
"""For the ids of single-object envelopes, which are made from the object (RFC 9562 §5.5)."""

REBUILD_DELAY_S = 10.0
"""A build that failed, on a full disk for example, is tried again; its journal waits."""

IN_DOUBT_KEPT_S = 7 * 86400.0
"""A sender that has not repeated an object for a week will not do so because of an answer it never got."""


COMPRESSIONS = {
    "stored": Compression.STORED,
    "deflate": Compression.DEFLATE,
    "zstd": Compression.ZSTANDARD,
}


class JmixBuilder:
    """Packs what one pipeline receives. files: opened and closed by this object, as are its outbox and its
    courier."""

    def __init__(
        self,
        pipeline: str,
        options: JmixBuilderOptions,
        *,
        files: FileStore,
        envelopes: EnvelopeStore,
        folder: Path,
        upstream: JmixUpstream | None,
        window: int = 1,
        fsync: bool = False,
    ) -> None:
        """folder: for journals and outbox. window: objects an association may have without an answer at a
        time."""
        self._pipeline = pipeline
        self._options = options
        self._files = files
        self._envelopes = envelopes
        self._folder = folder
        self._upstream = upstream
        self._window = window
        self._fsync = fsync
        self._outbox: Outbox
        self._courier: Courier | None = None
        self._assembly: EnvelopeAssembly
        self._associations: dict[Association, AssociationEnvelopes] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._orders: asyncio.Queue[Path | None] = asyncio.Queue()
        self._builder: asyncio.Task[None] | None = None
        self._storage_root = str(files.folder.root)

    # Backend -----

    async def start(self) -> None:
        await asyncio.to_thread(self._open)
        self._builder = asyncio.create_task(self._build_all(), name=f"jmix_builder {self._pipeline}")
        if self._upstream is not None:
            self._courier = Courier(self._outbox, self._upstream)
            await self._courier.start()

    async def stop(self, grace_s: float) -> None:
        for association in list(self._associations):
            self.association_ended(association, None)
        self._take_due(float("inf"))
        if self._timer is not None:
            self._timer.cancel()
        self._orders.put_nowait(None)
        if self._builder is not None:
            await self._builder
        if self._courier is not None:
            await self._courier.stop(grace_s)
        self._files.close()
        await asyncio.to_thread(self._outbox.close)

    def store(self, request: StoreRequest) -> Sink:
        if self._options.group == "instance":
            return _InstanceSink(self, request)
        envelopes = self._associations[request.association]
        sink = self._open_file(request, envelopes, lambda stored: envelopes.settled(stored.path))
        return _StudySink(sink, envelopes)

    def association_established(self, association: Association) -> None:
        self._associations[association] = self._assembly.begin(association.agreed.calling_ae_title)

    def association_ended(self, association: Association, error: AssociationError | None) -> None:
        envelopes = self._associations.pop(association, None)
        if envelopes is None:
            return
        for journal in envelopes.ended(released=error is None):
            self._order(journal)
        self._remember_doubts()
        self._watch()

    # Receiving -----

    def _open_file(
        self,
        request: StoreRequest,
        journal: AssociationEnvelopes | _InstanceJournal,
        on_stored: Callable[[StoredObject], None] | None,
    ) -> FileSink:
        return self._files.sink(
            sop_class_uid=request.affected_sop_class_uid,
            sop_instance_uid=request.affected_sop_instance_uid,
            transfer_syntax_uid=request.transfer_syntax_uid,
            calling_ae_title=request.calling_ae_title,
            called_ae_title=request.called_ae_title,
            journal=journal,
            on_stored=on_stored,
        )

    def _open_journal(self, origin: str, study_instance_uid: str) -> EnvelopeJournal:
        self._watch()
        return self.new_journal(str(uuid.uuid4()), origin, study_instance_uid)

    def new_journal(self, envelope_id: str, origin: str, study_instance_uid: str) -> EnvelopeJournal:
        """A journal for an envelope of this pipeline; OSError when the disk will not take it."""
        header = JournalHeader(
            envelope_id=envelope_id,
            study_instance_uid=study_instance_uid,
            pipeline=self._pipeline,
            origin=origin,
            created=datetime.now(UTC).isoformat(timespec="milliseconds"),
        )
        return EnvelopeJournal(self._journal_folder, header, storage_root=self._storage_root)

    @property
    def _journal_folder(self) -> Path:
        return self._folder / "journals"

    # Quiet time -----

    def _watch(self) -> None:
        """Have `_on_quiet` called when an envelope may have been quiet for long enough."""
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._options.quiet_time_secs / 2, self._on_quiet)

    def _on_quiet(self) -> None:
        self._timer = None
        self._take_due(self._assembly.clock())
        self._remember_doubts()
        if (
            self._assembly.next_deadline(quiet_time_s=self._options.quiet_time_secs) is not None
            or self._associations
        ):
            self._watch()

    def _take_due(self, now: float) -> None:
        for journal in self._assembly.due(now, quiet_time_s=self._options.quiet_time_secs):
            self._order(journal)

    def _order(self, journal: EnvelopeJournal) -> None:
        self._orders.put_nowait(journal.close())

    def _remember_doubts(self) -> None:
        """Write down what came to be in doubt, and what no longer is; rare, so the loop waits for SQLite."""
        now = time.time()
        if doubts := self._assembly.take_in_doubt():
            self._outbox.mark_in_doubt(
                InDoubt(each.sop_instance_uid, each.study_instance_uid, each.size_bytes, None, now)
                for each in doubts
            )
        for sop_instance_uid in self._assembly.take_no_longer_in_doubt():
            self._outbox.take_in_doubt(sop_instance_uid)

    # Building -----

    def _open(self) -> None:
        """Blocking: open everything, and take up what an earlier process left."""
        self._files.open()
        self._journal_folder.mkdir(parents=True, exist_ok=True)
        self._outbox = Outbox(self._folder / "outbox.sqlite")
        now = time.time()
        self._outbox.forget_in_doubt(before=now - IN_DOUBT_KEPT_S)
        for recovered in journals.recover(
            self._journal_folder, storage_root=self._storage_root, window=self._window
        ):
            self._outbox.mark_in_doubt(
                InDoubt(each.sop_instance_uid, each.study_instance_uid, each.size_bytes, None, now)
                for each in recovered.in_doubt
            )
            logger.info(
                "envelope %s: taken up again with %d objects%s",
                recovered.journal.header.envelope_id,
                len(recovered.journal.entries),
                ", its association was interrupted" if recovered.interrupted else "",
            )
            self._orders.put_nowait(recovered.journal.path)
        self._assembly = EnvelopeAssembly(
            self._open_journal,
            clock=time.monotonic,
            window=self._window,
            in_doubt=[each.sop_instance_uid for each in self._outbox.in_doubt()],
        )

    async def _build_all(self) -> None:
        while (path := await self._orders.get()) is not None:
            try:
                await asyncio.to_thread(self._build_order, path)
            except Exception:
                logger.exception(
                    "envelope %s cannot be built; trying again in %g s", path.stem, REBUILD_DELAY_S
                )
                asyncio.get_running_loop().call_later(REBUILD_DELAY_S, self._orders.put_nowait, path)
                continue
            if self._courier is not None:
                self._courier.wake()

    def _build_order(self, path: Path) -> None:
        """Blocking: one closed journal becomes an envelope and a delivery. Every step may be repeated."""
        order = journals.read(path, storage_root=self._storage_root)
        if order.entries:
            summary = self.build(order)
            if self._upstream is not None:
                self._outbox.enqueue(
                    summary.id,
                    self._upstream.name,
                    payload_path=str(summary.path),
                    content_type="application/zip",
                    content_length=summary.size_bytes,
                    origin=order.header.origin,
                    now=time.time(),
                )
        order.remove()

    def build(self, order: Closed) -> EnvelopeSummary:
        """Blocking: write an envelope into the store and index it. OSError when the disk will not take it."""
        options = self._options
        header = order.header
        out_path = self._envelopes.place(header.envelope_id)
        summary = build_envelope(
            EnvelopePlan(
                header.envelope_id,
                datetime.fromisoformat(header.created),
                order.entries,
                parties=_parties(options),
                classification=options.classification,
            ),
            out_path=out_path,
            profile=Profile(options.profile),
            skip_hashing=options.skip_hashing,
            skip_listing=options.skip_listing,
            compression=COMPRESSIONS[options.compression],
            fsync=self._fsync,
        )
        self._envelopes.add_built(
            summary.id,
            manifest=summary.manifest,
            study_instance_uids=summary.study_instance_uids,
            origin=header.origin,
            created_at=datetime.fromisoformat(header.created),
        )
        logger.info(
            "envelope %s built: %d objects, %d bytes", summary.id, summary.instance_count, summary.size_bytes
        )
        return summary

    async def deliver_now(self, journal: EnvelopeJournal) -> Outcome:
        """Build and upload a single-object envelope; the upstream's answer as a C-STORE outcome."""
        path = journal.close()
        order = await asyncio.to_thread(journals.read, path, storage_root=self._storage_root)
        if not order.entries:
            await asyncio.to_thread(order.remove)
            return Outcome(Status.CANNOT_UNDERSTAND, "the object was not kept")
        summary = await asyncio.to_thread(self.build, order)
        result = Result(Verdict.DELIVERED, None)
        if self._upstream is not None:
            result = await self._upstream.upload(summary.path, "application/zip")
        if result.verdict is not Verdict.DELIVERED:
            logger.warning("envelope %s handed back to its sender: %s", summary.id, result.error)
            await asyncio.to_thread(self._envelopes.remove, summary.id)
        await asyncio.to_thread(order.remove)
        if result.verdict is Verdict.DELIVERED:
            return Outcome(Status.SUCCESS)
        if result.verdict is Verdict.RETRY:
            return Outcome(Status.OUT_OF_RESOURCES, "the upstream JMIX server cannot take it now")
        return Outcome(Status.CANNOT_UNDERSTAND, "the upstream JMIX server refused it")


class _StudySink:
    """A file that tells its envelope when it came to nothing; when it is stored, the archive tells it."""

    __slots__ = ("_envelopes", "_sink", "abort", "write")

    def __init__(self, sink: FileSink, envelopes: AssociationEnvelopes) -> None:
        self._sink = sink
        self._envelopes = envelopes
        self.write = sink.write
        self.abort = sink.abort

    def finish(self) -> Outcome | Awaitable[Outcome]:
        answer = self._sink.finish()
        if isinstance(answer, Outcome):
            self._settle(answer)
            return answer
        future = asyncio.ensure_future(answer)
        future.add_done_callback(self._finished)
        return future

    def _finished(self, future: asyncio.Future[Outcome]) -> None:
        if future.cancelled() or future.exception() is not None:
            self._envelopes.settled(self._sink.path)
        else:
            self._settle(future.result())

    def _settle(self, outcome: Outcome) -> None:
        if outcome.status != Status.SUCCESS:
            self._envelopes.settled(self._sink.path)


class _InstanceJournal:
    """The archive's journal for a single-object envelope, opened when the object is known."""

    def __init__(self, builder: JmixBuilder, origin: str) -> None:
        self._builder = builder
        self._origin = origin
        self.journal: EnvelopeJournal | None = None

    def append(self, stored: StoredObject) -> None:
        if stored.disposition.name == "KEPT_FIRST":
            return
        if self.journal is None:
            name = f"{stored.study_instance_uid}/{stored.sop_instance_uid}/{stored.size_bytes}"
            envelope_id = str(uuid.uuid5(ENVELOPE_NAMESPACE, name))
            self.journal = self._builder.new_journal(envelope_id, self._origin, stored.study_instance_uid)
        self.journal.append(stored)

    def sync(self) -> None:
        if self.journal is not None:
            self.journal.sync()


class _InstanceSink:
    """A file whose sender is answered when the upstream has answered."""

    def __init__(self, builder: JmixBuilder, request: StoreRequest) -> None:
        self._builder = builder
        self._journal = _InstanceJournal(builder, request.calling_ae_title)
        self._sink = builder._open_file(request, self._journal, None)
        self.write = self._sink.write
        self.abort = self._sink.abort

    async def _deliver(self, answer: Outcome | Awaitable[Outcome]) -> Outcome:
        outcome = answer if isinstance(answer, Outcome) else await answer
        journal = self._journal.journal
        if journal is None:
            return outcome
        return await self._builder.deliver_now(journal)

    def finish(self) -> Awaitable[Outcome]:
        return asyncio.ensure_future(self._deliver(self._sink.finish()))


def _parties(options: JmixBuilderOptions) -> Parties:
    sender = Entity(options.sender_id, options.sender)

    def entity(name: str, identifier: str) -> Entity:
        return Entity(identifier or options.sender_id, name) if name or identifier else sender

    return Parties(
        sender=sender,
        requester=entity(options.requester, options.requester_id),
        receiver=(entity(options.receiver, options.receiver_id),),
    )
