"""Send files over several associations at once and go on after what fails (PS3.4 Annex B, PS3.7 §9.1.1).

An association that is lost is made again, and what was under way on it is sent again: storing an instance twice is
storing it once. A peer that is out of resources (PS3.4 Table B.2-1, A7xx) is given time. Both are bounded, for each
file and for the whole: a peer that is gone, or stays full, must not hold a million files for hours. An association that
the peer does not want besides the others is done without.

What became of each file goes to a callback; nothing is kept. Where to send, with which titles, TLS and operations
window, is a `Peer`; what is proposed is decided in `supply`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Final

from harmony.dicom.transcode import transcode
from harmony.dimse.cancellation import is_loss
from harmony.dimse.peer import Peer
from harmony.dimse.scu import SCU, Instance
from harmony.dimse.source import FileSource
from harmony.dimse.status import DimseError, Outcome, Status
from harmony.send.files import Found, PassedOver, Unreadable
from harmony.send.supply import Contexts, Job, Supply
from harmony.ul.errors import AssociationError, AssociationReleased

__all__ = ["Flood", "Result"]

RETRIES: Final = 3
FIRST_DELAY_S: Final = 1.0
"""Before a repetition; each further one waits twice as long."""

LONGEST_DELAY_S: Final = 30.0

REPETITIONS_AFTER_LOSS: Final = 2
"""Of one file, on new associations: a third loss is more likely its own fault."""

LOSSES_LIMIT: Final = 5
"""Associations lost one after the other without a response in between: then the peer counts as gone."""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one file."""

    found: Found
    tries: int
    size_bytes: int = 0
    """Of its data set."""
    outcome: Outcome | None = None
    """What the peer answered last; None when it did not."""
    error: Exception | None = None
    """Why it is not stored; None when it is, perhaps with a warning."""
    transcoded: bool = False


class Flood:
    """One run over the files.

    associations: at the same time, at most. as_stored: never in another transfer syntax. retries: after a transient
    refusal of a file or an association, and after associations that cannot be made. on_item: called with the Result of
    each file that was found, with the others as they were found. on_bytes: with the size of what is about to be
    written, also when it is written again.
    """

    def __init__(
        self,
        peer: Peer,
        items: Iterator[Found | PassedOver | Unreadable],
        *,
        on_item: Callable[[Result | PassedOver | Unreadable], None],
        on_bytes: Callable[[int], None] = lambda size: None,
        associations: int = 4,
        as_stored: bool = False,
        retries: int = RETRIES,
        first_delay_s: float = FIRST_DELAY_S,
    ) -> None:
        self.open = 0
        """Associations."""
        self.given_up: list[AssociationError] = []
        """Why there are fewer associations than asked for."""
        self._peer = peer
        self._contexts = Contexts(fallbacks=not as_stored)
        self._supply = Supply(items, self._contexts, aside=on_item)
        self._on_item = on_item
        self._on_bytes = on_bytes
        self._as_stored = as_stored
        self._retries = retries
        self._first_delay_s = first_delay_s
        self._lanes = [_Lane() for _ in range(max(1, associations))]
        self._stop = asyncio.Event()
        self._stays_full = False  # the last file that met a full peer met it until the end

    async def run(self) -> None:
        """Send everything. Raises defects only."""
        filling = asyncio.create_task(self._supply.fill())
        for lane in self._lanes:
            lane.task = asyncio.create_task(self._work(lane))
        running: set[asyncio.Task[None]] = {filling, *(lane.task for lane in self._lanes if lane.task)}
        try:
            while any(lane.task in running for lane in self._lanes):
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    if not task.cancelled():
                        task.result()
                if self._supply.over:
                    self._end_openings()
            await self._fail_the_rest()
            await filling
        finally:
            for task in running | {filling}:
                task.cancel()
            await asyncio.wait(running | {filling})

    def stop(self) -> None:
        """Begin nothing more; what is under way is finished, and the associations are released."""
        self._stop.set()
        self._supply.stop()
        self._end_openings()

    def abort(self) -> None:
        """End at once, with A-ABORT."""
        self.stop()
        for lane in self._lanes:
            if lane.task is not None:
                lane.task.cancel()

    def _end_openings(self) -> None:
        """Nobody needs the associations that are still being made."""
        for lane in self._lanes:
            if lane.opening and lane.task is not None:
                lane.task.cancel()

    async def _fail_the_rest(self) -> None:
        """No association can be made any more."""
        while (group := await self._supply.next_group()) is not None:
            while (job := await self._supply.take(group)) is not None:
                error = self.given_up[-1] if self.given_up else None
                self._on_item(Result(job.found, job.tries, error=error))

    # Associations ----

    async def _work(self, lane: _Lane) -> None:
        """One association after the other, as long as there is something to send and the peer takes part."""
        while (group := await self._supply.next_group()) is not None:
            lane.opening = True
            stack = AsyncExitStack()
            try:
                scu = await stack.enter_async_context(self._peer.associate(self._contexts.proposal(group)))
            except AssociationError as error:
                lane.refusals += 1
                spare = self.open > 0 and not lane.has_been_open
                if spare or lane.refusals > self._retries:
                    self.given_up.append(error)
                    return
                await asyncio.sleep(self._delay_s(lane.refusals))
                continue
            finally:
                lane.opening = False
            lane.has_been_open = True
            lane.refusals = 0
            lane.answered = lane.lost = False
            self.open += 1
            try:
                async with stack:
                    await self._store_on(scu, group, lane)
            except AssociationError:
                pass  # while it was released
            finally:
                self.open -= 1
            lane.losses = lane.losses + 1 if lane.lost and not lane.answered else 0
            if lane.losses >= LOSSES_LIMIT:
                lost = scu.association.error
                self.given_up.append(lost or AssociationReleased("the peer ends every association"))
                return

    async def _store_on(self, scu: SCU, group: int, lane: _Lane) -> None:
        """Store on one association, as many at a time as its operations window has places."""
        places = min(self._peer.maximum_operations or 1, scu.association.agreed.maximum_operations_invoked)
        async with asyncio.TaskGroup() as workers:
            for _ in range(places):
                workers.create_task(self._store_in_turn(scu, group, lane))

    async def _store_in_turn(self, scu: SCU, group: int, lane: _Lane) -> None:
        proposed = {
            (context.abstract_syntax, syntax)
            for context, _ in scu.association.agreed.results
            for syntax in context.transfer_syntaxes
        }
        while scu.association.is_open and (job := await self._supply.take(group)) is not None:
            # The pair may have joined the group, and the peer may have left, while this waited.
            if job.found.pair not in proposed or not scu.association.is_open:
                self._supply.hand_back(job)
                return
            await self._store(scu, job, lane)

    # Files ----

    async def _store(self, scu: SCU, job: Job, lane: _Lane) -> None:
        attempt = _Attempt()
        for repetition in range(self._retries + 1):
            outcome: Outcome | None = None
            error: Exception | None = None
            job.tries += 1
            try:
                outcome = await self._send(scu, job.found, attempt)
                self._stays_full = False
            except DimseError as refused:
                outcome, error = refused.outcome, refused
            except AssociationError as lost:
                error = lost
                lane.lost = not scu.association.is_open
                if is_loss(lost) and job.losses < min(self._retries, REPETITIONS_AFTER_LOSS):
                    job.losses += 1
                    if not self._stop.is_set():
                        self._supply.hand_back(job)
                        return
            except (OSError, EOFError, ValueError) as unusable:  # TranscodeError is a ValueError
                error = unusable
            if outcome is not None:
                lane.answered = True
            if outcome is None or not _is_transient(outcome.status):
                break
            if repetition == self._retries:
                self._stays_full = True
            if self._stays_full or not await self._wait(self._delay_s(repetition + 1)):
                break
        self._on_item(Result(job.found, job.tries, attempt.size_bytes, outcome, error, attempt.transcoded))

    async def _send(self, scu: SCU, found: Found, attempt: _Attempt) -> Outcome:
        source: bytes | _CountedFile
        if found.data_set is not None:
            source = found.data_set
            attempt.size_bytes = len(source)
            self._on_bytes(attempt.size_bytes)
        else:
            source = _CountedFile(found, self._on_bytes)
            attempt.size_bytes = source.size_bytes
        instance = Instance(found.sop_class_uid, found.sop_instance_uid, found.transfer_syntax_uid, source)
        if (
            not self._as_stored
            and not scu.accepts(*found.pair)
            and (accepted := _accepted(scu, found.sop_class_uid))
        ):
            try:
                converted = await transcode(instance, accepted)
            except BaseException:
                if isinstance(source, _CountedFile):
                    source.close()
                raise
            attempt.transcoded = converted is not None
            instance = converted or instance
        return await scu.store(instance)

    def _delay_s(self, repetition: int) -> float:
        return min(self._first_delay_s * 2.0 ** (repetition - 1), LONGEST_DELAY_S)

    async def _wait(self, delay_s: float) -> bool:
        """False when the flood is stopped meanwhile."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), delay_s)
        return not self._stop.is_set()


@dataclass(slots=True, eq=False)
class _Lane:
    """One association at a time."""

    task: asyncio.Task[None] | None = None
    opening: bool = False
    has_been_open: bool = False
    refusals: int = 0
    """One after the other."""
    answered: bool = False
    """Anything on this association."""
    lost: bool = False
    """This association was, with something under way."""
    losses: int = 0
    """One after the other, and none of them answered anything."""


@dataclass(slots=True)
class _Attempt:
    size_bytes: int = 0
    transcoded: bool = False


class _CountedFile(FileSource):
    """Says how much of it is read."""

    def __init__(self, found: Found, on_bytes: Callable[[int], None]) -> None:
        super().__init__(found.path, offset=found.data_set_offset)
        self._on_bytes = on_bytes

    def read_into(self, places: Sequence[memoryview]) -> None:
        super().read_into(places)
        self._on_bytes(sum(map(len, places)))


def _accepted(scu: SCU, sop_class_uid: str) -> tuple[str, ...]:
    """Transfer syntaxes."""
    return tuple(
        context.transfer_syntax
        for context in scu.association.agreed.contexts.values()
        if context.abstract_syntax == sop_class_uid and context.as_scu
    )


def _is_transient(status: int) -> bool:
    """Refused for want of resources, which may be there a little later (PS3.4 Table B.2-1, PS3.7 §C.5.22)."""
    return status & 0xFF00 == Status.OUT_OF_RESOURCES or status == Status.RESOURCE_LIMITATION
