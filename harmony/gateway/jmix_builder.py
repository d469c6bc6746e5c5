"""The `jmix_builder` middleware: received instances become JMIX envelopes, and those go to an upstream.

A Backend around the local archive. Each object is journaled before it can be seen, so that every object whose
sender was told of success is in exactly one envelope, whatever happens in between (docs/DESIGN.md,
"Envelopes"). Under

    <storage>/jmix-builder/<pipeline>/journals/     open and closed journals: work orders
    <storage>/jmix-builder/<pipeline>/outbox.sqlite deliveries, and objects in doubt
    <store_dir>/<id>/<id>.zip                       the envelopes, which the jmix endpoint serves

group = "study": one envelope per association and study, built when the association ends or has been quiet; senders are
answered as soon as their object is safe. group = "instance": one per object, and the sender is answered when the
upstream has answered; an object whose upload failed is handed back to its sender as a failure. Nothing is promised
before, so nothing is journaled; the envelope's id is made from the object, so that a repetition is the same envelope
to the upstream.

Without an upstream the envelopes stay local.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from harmony.archive.files import FileSink, StoredObject
from harmony.archive.index import StoredInstance
from harmony.dicom.json_model import Model
from harmony.dimse.operation import StoreRequest
from harmony.dimse.retrieve_scp import Selection, Unavailable
from harmony.dimse.scu import Instance
from harmony.dimse.sink import Sink, feed
from harmony.dimse.status import Outcome, Status
from harmony.gateway.backend import Query, Retrieve
from harmony.gateway.envelope_builder import ENVELOPE_TYPE, EnvelopeBuilder
from harmony.gateway.envelopes_ahead import EnvelopesAhead
from harmony.gateway.instance_delivery import InstanceDeliveries
from harmony.gateway.jmix_backend import Courier, JmixUpstream
from harmony.gateway.local_archive import Announced, LocalArchive, Upload
from harmony.gateway.options import JmixBuilderOptions
from harmony.jmix import journal as journals
from harmony.jmix.assembly import AssociationEnvelopes, EnvelopeAssembly
from harmony.jmix.journal import Closed, EnvelopeJournal, JournalEntry, JournalHeader, Stored
from harmony.jmix.outbox import InDoubt, Outbox
from harmony.jmix.packing_process import Built
from harmony.jmix.store import EnvelopeStore
from harmony.ul.association import Association
from harmony.ul.errors import AssociationError

__all__ = ["OUTBOX_NAME", "JmixBuilder"]

logger = logging.getLogger("harmony.gateway")

OUTBOX_NAME = "outbox.sqlite"
REBUILD_DELAY_S = 10.0
MAXIMUM_REBUILD_DELAY_S = 300.0
"""A build that failed, on a full disk for example, is tried again, less and less often; its journal waits."""

BOOKS_DELAY_S = 5.0
"""When the disk would not take what is in doubt. Journals stay open meanwhile, which says the same."""

IN_DOUBT_KEPT_S = 7 * 86400.0
"""A sender that has not repeated an object for a week will not do so because of an answer it never got."""


class JmixBuilder:
    """Packs what one pipeline receives. archive: started before this object, and stopped after it."""

    def __init__(
        self,
        pipeline: str,
        options: JmixBuilderOptions,
        *,
        archive: LocalArchive,
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
        self._archive = archive
        self._envelopes = EnvelopeBuilder(options, envelopes, fsync=fsync)
        self._journal_folder = folder / "journals"
        self._outbox_path = folder / OUTBOX_NAME
        self._upstream = upstream
        self._window = window
        self._storage_root = str(archive.files.folder.root)
        self._outbox: Outbox | None = None
        self._courier: Courier | None = None
        self._assembly: EnvelopeAssembly
        self._associations: dict[Association, AssociationEnvelopes] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._books = _Books()
        self._bookkeeper: asyncio.Task[None] | None = None
        self._orders: asyncio.Queue[_Order | None] = asyncio.Queue()
        self._builder: asyncio.Task[None] | None = None
        self._hurried = False
        self._ahead = EnvelopesAhead(self._envelopes.order, envelopes.incoming)
        self._deliveries = InstanceDeliveries(self._envelopes, upstream)

    def __str__(self) -> str:
        return f"pipeline {self._pipeline}, storage folder {self._storage_root}"

    # Backend -----

    @property
    def matches_as_asked(self) -> bool:
        return self._archive.matches_as_asked

    @property
    def can_be_queried(self) -> bool:
        return self._archive.can_be_queried

    async def start(self) -> None:
        orders = await asyncio.to_thread(self._open)
        assert self._outbox is not None
        for path in orders:
            self._orders.put_nowait(_Order(path))
        self._builder = asyncio.create_task(self._build_all(), name=f"jmix_builder {self._pipeline}")
        self._bookkeeper = asyncio.create_task(self._keep_books(), name=f"jmix_builder {self._pipeline}")
        if self._upstream is not None:
            self._courier = Courier(self._outbox, self._upstream)
            await self._courier.start()

    async def stop(self, grace_s: float) -> None:
        """Finish within grace_s; a build that has begun is not cut short. What is left is taken up by the next
        start."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + grace_s
        for envelopes in list(self._associations.values()):
            self._books.complete += envelopes.ended(released=False)
        self._associations.clear()
        if self._outbox is None:
            return
        await self._deliveries.stop(grace_s)
        if self._timer is not None:
            self._timer.cancel()
        if self._bookkeeper is not None:
            self._bookkeeper.cancel()
            await asyncio.wait({self._bookkeeper})
        self._books.complete += self._assembly.due(float("inf"))
        try:
            await self._balance_books()
        except (OSError, sqlite3.Error) as error:
            logger.error("jmix_builder %s: journals are left open: %s", self._pipeline, error)
        self._orders.put_nowait(None)
        if self._builder is not None:
            await asyncio.wait({self._builder}, timeout=max(0.0, deadline - loop.time()))
            self._hurried = True
            await asyncio.wait({self._builder})
        await self._ahead.stop()
        if self._courier is not None:
            await self._courier.stop(max(0.0, deadline - loop.time()))
        await asyncio.to_thread(self._outbox.close)

    def store(self, request: StoreRequest) -> Sink:
        if self._options.group == "instance":
            return self._deliveries.sink(request, self._archive)
        return _StudySink(self, request, self._archive, self._associations[request.association])

    async def store_instance(self, instance: Instance) -> Outcome:
        """As if it were all that an association brought."""
        upload = Upload.of(instance)
        if self._options.group == "instance":
            return await feed(self._deliveries.sink(upload, self._archive), instance.data)
        envelopes = self._assembly.begin("")
        try:
            return await feed(_StudySink(self, upload, self._archive, envelopes), instance.data)
        finally:
            self._books.complete += envelopes.ended(released=True)
            self._books.wanted.set()

    async def echo(self) -> None:
        await self._archive.echo()

    def query(self, query: Query) -> AsyncGenerator[Model, None]:
        return self._archive.query(query)

    async def retrieve(self, retrieve: Retrieve) -> Selection:
        return await self._archive.retrieve(retrieve)

    def metadata(self, retrieve: Retrieve, root: str) -> AsyncGenerator[bytes | Unavailable, None]:
        return self._archive.metadata(retrieve, root)

    async def locate(self, retrieve: Retrieve) -> tuple[StoredInstance, Model] | None:
        return await self._archive.locate(retrieve)

    async def version(self, retrieve: Retrieve) -> str | None:
        return await self._archive.version(retrieve)

    # For those who watch -----

    @property
    def built_count(self) -> int:
        """Envelopes built since the start."""
        return self._envelopes.built_count

    @property
    def outbox(self) -> Outbox | None:
        """None before the start, and without an upstream."""
        return self._outbox if self._upstream is not None else None

    def problem(self) -> str | None:
        """Why it does not do its work, None when it does. An upstream that is down is none: envelopes wait for it.
        Blocking."""
        for task, what in ((self._builder, "building envelopes"), (self._bookkeeper, "keeping books")):
            if task is not None and task.done():
                return f"{what} has ended"
        return self._archive.problem()

    def association_established(self, association: Association) -> None:
        self._associations[association] = self._assembly.begin(association.agreed.calling_ae_title)

    def association_ended(self, association: Association, error: AssociationError | None) -> None:
        envelopes = self._associations.pop(association, None)
        if envelopes is not None:
            self._books.complete += envelopes.ended(released=error is None)
            self._books.wanted.set()

    def arrived(self, journal: EnvelopeJournal, stored: StoredObject) -> None:
        """An object of an envelope has its final name (called by a sink)."""
        self._ahead.add(journal.header, stored)

    def settled(self) -> None:
        """Something that was on its way has arrived or was refused (called by a sink)."""
        if self._timer is None and self._assembly.next_deadline() is not None:
            self._watch()

    # Quiet time -----

    def _watch(self) -> None:
        """Have `_on_quiet` called when an envelope may have been quiet for long enough."""
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._options.quiet_time_secs / 2, self._on_quiet)

    def _on_quiet(self) -> None:
        self._timer = None
        quiet_time_s = self._options.quiet_time_secs
        self._books.complete += self._assembly.due(self._assembly.clock(), quiet_time_s=quiet_time_s)
        self._books.wanted.set()
        if self._assembly.next_deadline(quiet_time_s=quiet_time_s) is not None:
            self._watch()

    def _open_journal(self, origin: str, study_instance_uid: str) -> EnvelopeJournal:
        """A journal for an envelope of this pipeline; OSError when the disk will not take it."""
        header = JournalHeader(
            envelope_id=str(uuid.uuid4()),
            study_instance_uid=study_instance_uid,
            pipeline=self._pipeline,
            origin=origin,
            created=datetime.now(UTC).isoformat(timespec="milliseconds"),
        )
        return EnvelopeJournal(self._journal_folder, header, storage_root=self._storage_root)

    # Books -----

    async def _keep_books(self) -> None:
        """Write down what is in doubt, then close what is complete, whenever there is either.

        In this order: at every moment an object in doubt is in the outbox or at the end of an open journal.
        """
        while True:
            await self._books.wanted.wait()
            self._books.wanted.clear()
            try:
                await self._balance_books()
            except (OSError, sqlite3.Error) as error:
                logger.error(
                    "jmix_builder %s: objects in doubt cannot be written down: %s; trying again in %g s",
                    self._pipeline,
                    error,
                    BOOKS_DELAY_S,
                )
                self._books.wanted.set()
                await asyncio.sleep(BOOKS_DELAY_S)

    async def _balance_books(self) -> None:
        """Raises OSError or sqlite3.Error when the disk will not take it; nothing is forgotten then."""
        books = self._books
        books.collect(self._assembly)
        doubts, answered, complete = list(books.doubts.values()), list(books.answered), list(books.complete)
        if doubts or answered:
            await asyncio.to_thread(self._mark_in_doubt, doubts, answered)
            for stored in doubts:
                if books.doubts.get(stored.sop_instance_uid) is stored:
                    del books.doubts[stored.sop_instance_uid]
            for uid in answered:
                books.answered.pop(uid, None)
        for journal in complete:
            path = journal.close()
            books.complete.remove(journal)
            self._orders.put_nowait(_Order(path))

    def _mark_in_doubt(self, objects: Iterable[Stored | JournalEntry], forget: Iterable[str] = ()) -> None:
        assert self._outbox is not None
        now = time.time()
        doubts = [
            InDoubt(each.sop_instance_uid, each.study_instance_uid, each.size_bytes, None, now)
            for each in objects
        ]
        self._outbox.mark_in_doubt(doubts, forget=forget)

    # Building -----

    def _open(self) -> list[Path]:
        """Blocking: open everything, and take up what an earlier process left: return the closed journals."""
        self._journal_folder.mkdir(parents=True, exist_ok=True)
        outbox = Outbox(self._outbox_path)
        self._outbox = outbox
        try:
            outbox.forget_in_doubt(before=time.time() - IN_DOUBT_KEPT_S)
            found = journals.recover(
                self._journal_folder,
                storage_root=self._storage_root,
                window=self._window,
                remember=lambda interrupted: self._mark_in_doubt(interrupted.in_doubt),
            )
            in_doubt = [each.sop_instance_uid for each in outbox.in_doubt()]
        except BaseException:
            self._outbox = None
            outbox.close()
            raise
        for recovered in found:
            logger.info(
                "envelope %s: taken up again with %d objects%s",
                recovered.journal.header.envelope_id,
                len(recovered.journal.entries),
                ", its association was interrupted" if recovered.interrupted else "",
            )
        self._assembly = EnvelopeAssembly(
            self._open_journal, clock=time.monotonic, window=self._window, in_doubt=in_doubt
        )
        return [recovered.journal.path for recovered in found]

    async def _build_all(self) -> None:
        while (order := await self._orders.get()) is not None and not self._hurried:
            try:
                await self._build_order(order.path)
            except Exception as error:
                delay_s = min(MAXIMUM_REBUILD_DELAY_S, REBUILD_DELAY_S * 2**order.failures)
                logger.error(
                    "envelope %s cannot be built: %s; trying again in %g s",
                    order.path.stem,
                    error,
                    delay_s,
                    exc_info=None if isinstance(error, OSError | sqlite3.Error) else error,
                )
                order.failures = min(order.failures + 1, 16)
                asyncio.get_running_loop().call_later(delay_s, self._orders.put_nowait, order)
                continue
            if self._courier is not None:
                self._courier.wake()

    async def _build_order(self, path: Path) -> None:
        """One closed journal becomes an envelope and a delivery. Every step may be repeated."""
        order = await asyncio.to_thread(journals.read, path, storage_root=self._storage_root)
        if order.entries:
            archive = self._envelopes.store.incoming()
            built = await self._ahead.build(order.header.envelope_id, order.entries, archive)
            await asyncio.to_thread(self._post, order, archive, built)
        else:
            self._ahead.forget(order.header.envelope_id)
        await asyncio.to_thread(order.remove)

    def _post(self, order: Closed, archive: Path, built: Built | None) -> None:
        """Blocking: the envelope into the store, its delivery into the outbox. built: it is at `archive` already."""
        header = order.header
        created = datetime.fromisoformat(header.created)
        if built is None:
            summary = self._envelopes.build(
                header.envelope_id, order.entries, origin=header.origin, created=created
            )
        else:
            summary = self._envelopes.adopt(
                header.envelope_id, archive, built, origin=header.origin, created=created
            )
        if self._upstream is not None:
            assert self._outbox is not None
            self._outbox.enqueue(
                summary.id,
                self._upstream.name,
                payload_path=str(summary.path),
                content_type=ENVELOPE_TYPE,
                content_length=summary.size_bytes,
                origin=header.origin,
                now=time.time(),
            )


@dataclass(slots=True, eq=False)
class _Order:
    """A closed journal to be built, and how often that failed."""

    path: Path
    failures: int = 0


class _Books:
    """What has to be written down, and journals that may be closed when it is."""

    def __init__(self) -> None:
        self.wanted = asyncio.Event()
        self.doubts: dict[str, Stored] = {}
        self.answered: dict[str, None] = {}
        self.complete: list[EnvelopeJournal] = []

    def collect(self, assembly: EnvelopeAssembly) -> None:
        """Add what is new to what could not be written down earlier; the later word about an object counts."""
        for stored in assembly.take_in_doubt():
            self.answered.pop(stored.sop_instance_uid, None)
            self.doubts[stored.sop_instance_uid] = stored
        for uid in assembly.take_no_longer_in_doubt():
            self.doubts.pop(uid, None)
            self.answered[uid] = None


class _StudySink:
    """A file whose envelope hears what became of it."""

    __slots__ = ("_builder", "_envelopes", "_sink", "abort", "write")

    def __init__(
        self,
        builder: JmixBuilder,
        announced: Announced,
        archive: LocalArchive,
        envelopes: AssociationEnvelopes,
    ) -> None:
        self._builder = builder
        self._envelopes = envelopes
        self._sink: FileSink = archive.sink(announced, journal=envelopes, on_stored=self._stored)
        self.write = self._sink.write
        self.abort = self._sink.abort

    def finish(self) -> Outcome | Awaitable[Outcome]:
        answer = self._sink.finish()
        if isinstance(answer, Outcome):
            if answer.status != Status.SUCCESS:
                self._refused()
            return answer
        future = asyncio.ensure_future(answer)
        future.add_done_callback(self._finished)
        return future

    def _stored(self, stored: StoredObject) -> None:
        journal = self._envelopes.settled(stored.path)
        if journal is not None:
            self._builder.arrived(journal, stored)
        self._builder.settled()

    def _finished(self, future: asyncio.Future[Outcome]) -> None:
        if future.cancelled() or future.exception() is not None or future.result().status != Status.SUCCESS:
            self._refused()

    def _refused(self) -> None:
        """Or not kept, which was never journaled."""
        try:
            self._envelopes.refused(self._sink.path)
        except OSError as error:
            logger.error("a refused object could not be taken out of its journal: %s", error)
        self._builder.settled()
