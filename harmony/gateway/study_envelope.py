"""Envelopes of studies that are not in the store yet, made when somebody asks for one.

The study is retrieved from the backends that are behind the endpoint, a PACS or the local archive, and packed while it
arrives: each instance goes into the archive of the envelope as it comes, at the pace of the disk, without having been
anywhere else. The envelope is in the store when it is complete. When an instance is missing there is none, because
nobody could tell that from looking at it.

Whoever asks for a study that is being retrieved waits for the same envelope. When the last one who waits has left, the
retrieve is cancelled.
"""

from __future__ import annotations

import asyncio
import sqlite3
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Final, TypeVar

from harmony.archive.free_space import FreeSpace
from harmony.archive.index import UniqueKeys
from harmony.archive.levels import Level
from harmony.dicom.uid import is_valid_uid
from harmony.dimse.cancellation import close_iterator
from harmony.dimse.part10 import Part10Error
from harmony.dimse.retrieve_scp import Unavailable
from harmony.dimse.scu import Instance
from harmony.dimse.source import pieces
from harmony.gateway.backend import Backend, Retrieve
from harmony.gateway.envelope_builder import EnvelopeBuilder
from harmony.jmix.packer import EnvelopePacker, ForeignInstance

__all__ = ["NotRetrieved", "NotStored", "StudyEnvelope", "StudyEnvelopes"]

T = TypeVar("T")

BATCH_BYTES: Final = 512 * 1024
"""How much of an instance is handed to the thread that writes at a time: a change of threads costs as much as hashing
some 50 KB, and what has just been received is still in the cache."""


CANCEL_S: Final = 1.0
"""For what is being made to end, when the gateway has no more time to stop."""


class NotRetrieved(Exception):
    """The study is there, but not all of it could be had."""


class NotStored(Exception):
    """The store could not take the envelope."""


@dataclass(frozen=True, slots=True)
class StudyEnvelope:
    """An envelope that holds a study."""

    id: str
    is_new: bool
    """It was made because somebody asked for it now."""


@dataclass(slots=True, eq=False)
class _Making:
    """An envelope in the making, and how many wait for it."""

    task: asyncio.Task[StudyEnvelope | None]
    waiting: int = 0


class StudyEnvelopes:
    """The envelopes of one endpoint. sources: where studies are retrieved from, all of them for each study."""

    def __init__(
        self, sources: Sequence[Backend], builder: EnvelopeBuilder, *, minimum_free_bytes: int = 0
    ) -> None:
        """minimum_free_bytes: left on the file system of the store."""
        self._sources = sources
        self._builder = builder
        self._space = FreeSpace(builder.store.root, minimum_free_bytes=minimum_free_bytes)
        self._makings: dict[str, _Making] = {}
        self._running: set[asyncio.Task[StudyEnvelope | None]] = set()

    @property
    def built_count(self) -> int:
        """How many envelopes have been made."""
        return self._builder.built_count

    async def find(self, study_instance_uid: str) -> str | None:
        """The id of the newest envelope of a study that is in the store."""
        return await asyncio.to_thread(self._find, study_instance_uid)

    async def find_or_make(
        self,
        study_instance_uid: str,
        *,
        skip_hashing: bool | None = None,
        skip_listing: bool | None = None,
    ) -> StudyEnvelope | None:
        """The newest envelope of a study, made if there is none; None when the sources have nothing of the study.

        skip_*: for an envelope that is made, in place of what the builder's options say. Raises what `Backend.retrieve`
        raises; NotRetrieved and NotStored.
        """
        if not is_valid_uid(study_instance_uid):
            return None
        making = self._makings.get(study_instance_uid)
        if making is None:
            task = asyncio.create_task(
                self._make(study_instance_uid, skip_hashing=skip_hashing, skip_listing=skip_listing),
                name=f"envelope of study {study_instance_uid}",
            )
            making = self._makings[study_instance_uid] = _Making(task)
            self._running.add(task)
            task.add_done_callback(lambda task: self._ended(study_instance_uid, task))
        making.waiting += 1
        try:
            return await asyncio.shield(making.task)
        finally:
            making.waiting -= 1
            if not making.waiting and not making.task.done():
                making.task.cancel()
                self._forget(study_instance_uid, making.task)

    async def stop(self, grace_s: float) -> None:
        """Give up what is being made. Nobody waits for it any more, but it may still be saying so to a PACS."""
        for task in self._running:
            if not task.cancelling():
                task.cancel()
        if self._running:
            await asyncio.wait(self._running, timeout=max(grace_s, CANCEL_S))

    def _ended(self, study_instance_uid: str, task: asyncio.Task[StudyEnvelope | None]) -> None:
        self._running.discard(task)
        self._forget(study_instance_uid, task)
        if not task.cancelled():
            task.exception()  # counts as seen: those who waited have it

    def _forget(self, study_instance_uid: str, task: asyncio.Task[StudyEnvelope | None]) -> None:
        making = self._makings.get(study_instance_uid)
        if making is not None and making.task is task:
            del self._makings[study_instance_uid]

    def _find(self, study_instance_uid: str) -> str | None:
        """Blocking."""
        store = self._builder.store
        found = store.find_by_study(study_instance_uid)
        try:
            return found if found is not None and store.path(found).is_file() else None
        except KeyError:  # removed in this moment
            return None

    async def _make(
        self, study_instance_uid: str, *, skip_hashing: bool | None, skip_listing: bool | None
    ) -> StudyEnvelope | None:
        # Again: one may have been finished between the caller's look into the store and this task.
        found = await self.find(study_instance_uid)
        if found is not None:
            return StudyEnvelope(found, is_new=False)
        envelope_id, created = str(uuid.uuid4()), datetime.now(UTC)

        def open_packer() -> EnvelopePacker:
            return self._builder.packer(
                envelope_id,
                study_instance_uid,
                created=created,
                skip_hashing=skip_hashing,
                skip_listing=skip_listing,
            )

        retrieve = Retrieve(Level.STUDY, UniqueKeys(study_instance_uids=(study_instance_uid,)))
        failed = 0
        async with _packing(open_packer, self._space) as packing:
            for source in self._sources:
                failed += await _pack_all(source, retrieve, packing)
            if failed:
                total = failed + packing.instance_count
                raise NotRetrieved(f"{failed} of {total} instances of the study could not be retrieved")
            if not packing.instance_count:
                return None
            await packing.keep(
                lambda packer: self._builder.keep(packer, envelope_id, origin="retrieved", created=created)
            )
        return StudyEnvelope(envelope_id, is_new=True)


async def _pack_all(source: Backend, retrieve: Retrieve, packing: _Packing) -> int:
    """Retrieve from one source; return how many instances could not be had."""
    failed = 0
    selection = await source.retrieve(retrieve)
    try:
        async for instance in selection.instances:
            if isinstance(instance, Unavailable):
                failed += 1
            else:
                await packing.add(instance)
    finally:
        await close_iterator(selection.instances)
    return failed


@asynccontextmanager
async def _packing(open_packer: Callable[[], EnvelopePacker], space: FreeSpace) -> AsyncIterator[_Packing]:
    """A packing for the length of a block, at whose end everything that was not kept is gone."""
    worker = ThreadPoolExecutor(1, thread_name_prefix="harmony-pack")
    packing = _Packing(open_packer, worker, space)
    try:
        yield packing
    finally:
        # In the one thread, behind what a cancelled block may have left there.
        discarding = worker.submit(packing.discard)
        worker.shutdown(wait=False)
        await asyncio.shield(asyncio.wrap_future(discarding))


class _Packing:
    """An EnvelopePacker with a thread of its own, fed by the event loop."""

    def __init__(
        self, open_packer: Callable[[], EnvelopePacker], worker: ThreadPoolExecutor, space: FreeSpace
    ) -> None:
        self._open_packer = open_packer
        self._space = space
        self._worker = worker
        self._packer: EnvelopePacker | None = None
        self._batch = memoryview(bytearray(BATCH_BYTES))
        self._filled = 0
        self.instance_count = 0

    async def add(self, instance: Instance) -> None:
        """Pack an instance to its end."""
        begun = False
        async with aclosing(pieces(instance.data)) as fragments:
            async for fragment in fragments:
                rest = memoryview(fragment)
                while rest:
                    place = self._batch[self._filled : self._filled + len(rest)]
                    place[:] = rest[: len(place)]
                    self._filled += len(place)
                    rest = rest[len(place) :]
                    if self._filled == BATCH_BYTES:
                        await self._do(partial(self._pass_on, instance, first=not begun, last=False))
                        begun = True
        await self._do(partial(self._pass_on, instance, first=not begun, last=True))
        self.instance_count += 1

    async def keep(self, keep: Callable[[EnvelopePacker], object]) -> None:
        """Let `keep` have the packer, in the thread."""
        packer = self._packer
        assert packer is not None
        await self._do(partial(keep, packer))

    def discard(self) -> None:
        """Blocking. Nothing happens after `keep`."""
        if self._packer is not None:
            self._packer.discard()

    async def _do(self, function: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._worker, function)
        except (OSError, sqlite3.Error) as error:
            raise NotStored(f"the envelope store cannot take the envelope: {error}") from error
        except (ForeignInstance, Part10Error) as error:
            raise NotRetrieved(str(error)) from error

    def _pass_on(self, instance: Instance, *, first: bool, last: bool) -> None:
        """Blocking: give what has been collected to the packer."""
        self._space.require(self._filled)
        if self._packer is None:
            self._packer = self._open_packer()
        if first:
            self._packer.begin(
                instance.sop_class_uid, instance.sop_instance_uid, instance.transfer_syntax_uid
            )
        self._packer.write(self._batch[: self._filled])
        self._filled = 0
        if last:
            self._packer.end()
