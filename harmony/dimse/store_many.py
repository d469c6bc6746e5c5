"""Many instances to one peer, over several associations at once (PS3.4 Annex B).

A peer that answers each C-STORE before the next makes one association as slow as the round trip and its disk together;
several hide both. Every instance has its own result, in the order in which they end; one that fails does not stop the
others. Presentation contexts are proposed as the instances show what they need.

    async with contextlib.aclosing(store_many(pool, paths, connections=4)) as results:
        async for result in results: ...
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from harmony.dimse.cancellation import END, End, close_iterator, is_loss
from harmony.dimse.command import PRIORITY_MEDIUM
from harmony.dimse.information_model import MAXIMUM_CONTEXTS, Proposal
from harmony.dimse.part10 import read_file_meta, read_file_meta_from
from harmony.dimse.pool import AssociationPool
from harmony.dimse.scu import SCU, Instance
from harmony.dimse.sop_class import IMPLICIT_VR_LITTLE_ENDIAN, VERIFICATION
from harmony.dimse.status import DimseError, Outcome
from harmony.ul.errors import AssociationError
from harmony.ul.negotiation import propose_contexts

__all__ = ["Storable", "StoreResult", "store_many"]

TRIES: Final = 2
"""For an instance whose association was lost: once more on a new one. Storing it twice is storing it once."""

Storable = str | Path | bytes | Instance
"""A Part 10 file by its path or its bytes, or an Instance."""

_Pair = tuple[str, str]  # SOP class and transfer syntax


@dataclass(frozen=True, slots=True)
class StoreResult:
    """What became of one instance."""

    item: Storable
    """As it was given."""
    outcome: Outcome | None = None
    """What the peer answered; None when it did not."""
    error: Exception | None = None
    """Why it is not stored: a failure status, no presentation context, a file that cannot be read, an association that
    was lost or cannot be made. None when it is, perhaps with a warning."""


@dataclass(slots=True)
class _Job:
    item: Storable
    pair: _Pair
    tries: int = 0

    @property
    def can_be_repeated(self) -> bool:
        """False for sources that are read once."""
        data = self.item.data if isinstance(self.item, Instance) else b""
        return self.tries < TRIES and isinstance(data, bytes | bytearray | memoryview)


async def store_many(
    pool: AssociationPool,
    items: Iterable[Storable] | AsyncIterable[Storable],
    *,
    connections: int = 4,
    pairs: Iterable[_Pair] = (),
    priority: int = PRIORITY_MEDIUM,
) -> AsyncGenerator[StoreResult, None]:
    """Store the items over up to `connections` associations of the pool; yield each result when it is there.

    items: taken one by one as they are needed. pairs: SOP classes with transfer syntaxes to propose from the start.
    Where the peer refuses an association, those it accepted do the work; when there is none, every further item gets
    the error. When the iteration is left early, what is under way is aborted.
    """
    batch = _Batch(pool, items, pairs, priority)
    results: asyncio.Queue[StoreResult | End] = asyncio.Queue(maxsize=max(1, connections))
    work = asyncio.create_task(batch.store_all(results, connections))
    try:
        while not isinstance(result := await results.get(), End):
            yield result
        await work
    finally:
        work.cancel()
        await asyncio.wait([work])
        await batch.close()


class _Batch:
    """What the workers of one `store_many` share."""

    def __init__(
        self,
        pool: AssociationPool,
        items: Iterable[Storable] | AsyncIterable[Storable],
        pairs: Iterable[_Pair],
        priority: int,
    ) -> None:
        self._pool = pool
        self._items = _each(items)
        self._pairs: dict[_Pair, None] = dict.fromkeys(pairs)
        self._priority = priority
        self._turn = asyncio.Lock()  # of the iterator
        self._exhausted = False
        self._working = 0  # jobs taken, without a result yet
        self._handed_back: list[_Job] = []
        self._refusal: AssociationError | None = None
        self._changed = asyncio.Event()  # one of the three above

    async def store_all(self, results: asyncio.Queue[StoreResult | End], connections: int) -> None:
        """Put every result, and END last, unless cancelled: then nobody takes them any more."""
        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(max(1, connections)):
                    workers.create_task(self._work(results))
            while (job := await self._next_now(results)) is not None:
                await self._report(results, StoreResult(job.item, error=self._refusal))
        except BaseExceptionGroup as group:
            await results.put(END)
            raise group.exceptions[0] from None
        await results.put(END)

    async def close(self) -> None:
        await close_iterator(self._items)

    # Jobs ----

    async def _next_now(self, results: asyncio.Queue[StoreResult | End]) -> _Job | None:
        """A job, unless there is none at the moment. Items of which the pair cannot be told are reported at once."""
        async with self._turn:
            while not self._handed_back and not self._exhausted:
                item = await anext(self._items, END)
                if isinstance(item, End):
                    self._exhausted = True
                    self._changed.set()
                    break
                try:
                    job = _Job(item, _pair_of(item))
                except (OSError, ValueError) as error:
                    await results.put(StoreResult(item, error=error))
                    continue
                self._working += 1
                return job
        if not self._handed_back:
            return None
        self._working += 1
        return self._handed_back.pop()

    async def _next(self, results: asyncio.Queue[StoreResult | End]) -> _Job | None:
        """A job; None when there never will be one, as no other worker can hand one back any more."""
        while True:
            job = await self._next_now(results)
            if job is not None or not self._working:
                return job
            self._changed.clear()
            await self._changed.wait()

    def _hand_back(self, job: _Job, refusal: AssociationError) -> None:
        self._handed_back.append(job)
        self._refusal = refusal
        self._working -= 1
        self._changed.set()

    async def _report(self, results: asyncio.Queue[StoreResult | End], result: StoreResult) -> None:
        await results.put(result)
        self._working -= 1
        self._changed.set()

    # Workers ----

    async def _work(self, results: asyncio.Queue[StoreResult | End]) -> None:
        """Store on one association after the other; between two, and while there is nothing to do, hold none."""
        job = await self._next(results)
        while job is not None:
            opened = False
            unfinished: _Job | None = None
            try:
                async with self._pool.lend(self._propose(job.pair), fresh=job.tries > 0) as scu:
                    opened = True
                    unfinished = await self._store_on(scu, job, results)
            except AssociationError as error:
                if opened:  # by the items themselves
                    raise
                self._hand_back(job, error)
                return
            job = unfinished or await self._next(results)

    async def _store_on(
        self, scu: SCU, first: _Job, results: asyncio.Queue[StoreResult | End]
    ) -> _Job | None:
        """Store as long as the association lasts and fits; returns the job that needs another, if any."""
        proposed = {
            (context.abstract_syntax, syntax)
            for context, _ in scu.association.agreed.results
            for syntax in context.transfer_syntaxes
        }
        job: _Job | None = first
        while job is not None and job.pair in proposed and scu.association.is_open:
            job.tries += 1
            try:
                outcome = await scu.store(job.item, priority=self._priority)
                result = StoreResult(job.item, outcome)
            except DimseError as error:
                result = StoreResult(job.item, error.outcome, error)
            except AssociationError as error:
                if is_loss(error) and job.can_be_repeated:
                    return job
                result = StoreResult(job.item, error=error)
            except (OSError, EOFError, ValueError) as error:  # Part10Error is a ValueError
                result = StoreResult(job.item, error=error)
            await self._report(results, result)
            job = await self._next_now(results)
        return job

    def _propose(self, pair: _Pair) -> Proposal:
        """All the pairs seen so far, so that the next association fits what comes."""
        if pair not in self._pairs and len(self._pairs) == MAXIMUM_CONTEXTS - 1:
            self._pairs.clear()
        self._pairs[pair] = None
        contexts = [(sop_class, (syntax,)) for sop_class, syntax in self._pairs]
        return Proposal(propose_contexts([*contexts, (VERIFICATION, (IMPLICIT_VR_LITTLE_ENDIAN,))]))


async def _each(items: Iterable[Storable] | AsyncIterable[Storable]) -> AsyncIterator[Storable]:
    if isinstance(items, AsyncIterable):
        iterator = aiter(items)
        try:
            async for item in iterator:
                yield item
        finally:
            await close_iterator(iterator)
    else:
        for item in items:
            yield item


def _pair_of(item: Storable) -> _Pair:
    if isinstance(item, Instance):
        return item.sop_class_uid, item.transfer_syntax_uid
    meta = read_file_meta(item) if isinstance(item, bytes) else read_file_meta_from(item)
    return meta.media_storage_sop_class_uid, meta.transfer_syntax_uid
