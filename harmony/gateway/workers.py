"""Several processes that receive: started, given associations, watched and replaced (`workers = N`).

The first process listens, decides who is let in and counts it; an association that only stores into a local archive is
then handed over to the worker that has the fewest (`harmony.ul.handover`). It counts here until the worker says that it
is over, so that limits, drains and reloads are the same as with one process. What workers store gets into the one index
by the logs that they write (`harmony.archive.worker_log`).

    modality ---> listener: limits, titles, identity, policies          first process
                      |  descriptor, request, answer        ^ ended, counts, what is for the audit trail
                      v                                     |
                  worker 0: C-STORE --> files <--- worker 1: C-STORE
                      |                                     |
                      +-- log --> index, queries <-- log ---+           first process

What is not handed over is served by the first process: queries and retrieves, TLS (whose keys are here), endpoints that
forward or pack what they receive, and everything when no worker is alive.

A worker that dies costs its associations, a hanging one is killed; either is replaced, and what it has stored is
indexed.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Final

from harmony.archive.indexing import ArchiveIndex
from harmony.archive.worker_log import WorkerFeed
from harmony.dimse.sop_class import VERIFICATION, is_storage_sop_class
from harmony.gateway.activity import Deed, Subject
from harmony.gateway.auditing import Auditor
from harmony.gateway.config import LogSettings
from harmony.gateway.handover import (
    Abort,
    Channel,
    Configure,
    Deeds,
    Ended,
    Forget,
    FromWorker,
    Ping,
    Receive,
    Received,
    Receiving,
    Releasing,
    Report,
    SetUp,
    Tally,
    channels,
    receiving_file,
)
from harmony.gateway.metrics import OPERATIONS
from harmony.gateway.tallies import AssociationTally, OperationTally
from harmony.ul.association import Association
from harmony.ul.errors import AssociationAborted, AssociationError, ConnectionLost, LocalProtocolError
from harmony.ul.held import HELD
from harmony.ul.pdu import AssociateAC, AssociateRQ

__all__ = ["ReceivingEndpoint", "WorkerPool"]

logger = logging.getLogger("harmony.gateway")

START_S: Final = 30.0
"""For a new process to import what it needs, which takes half a second on a machine that is idle."""
PING_S: Final = 2.0
HEARTBEAT_S: Final = 30.0
"""Without an answer, a worker is killed. Comparing or naming files may keep it for a while on a slow disk."""
POLL_S: Final = 0.1
"""Between two looks at the logs while associations are open; queries look themselves."""
ABORT_S: Final = 5.0
"""For a worker to abort an association when told to; longer than `association.CLOSE_LINGER_S`."""
END_S: Final = 2.0
"""For a worker to end when everything is over."""
SOON_S: Final = 5.0
"""A worker that dies before has died at once: the next one waits, longer each time."""
MAXIMUM_BACKOFF_S: Final = 30.0
REFRESH_S: Final = 1.0
"""For workers to report when somebody asks for metrics."""

_REQUEST_TYPES: Final = {each.__name__: each for each in OPERATIONS}
_names = itertools.count()
"""Of the logs of this process; no index meets one twice."""


@dataclass(frozen=True, slots=True, eq=False)
class ReceivingEndpoint:
    """An endpoint whose associations may be handed over."""

    receiving: Receiving
    index: ArchiveIndex | None
    tally: AssociationTally | None
    auditor: Auditor | None


@dataclass(slots=True, eq=False)
class _Handed:
    association: Association
    endpoint: ReceivingEndpoint
    deadline: asyncio.TimerHandle | None = None
    """For an abort."""


@dataclass(slots=True, eq=False)
class _Configured:
    """An endpoint that a worker knows."""

    number: int
    feed: WorkerFeed | None
    index: ArchiveIndex | None


@dataclass(slots=True, eq=False)
class _Process:
    """A worker that runs, or is about to."""

    process: asyncio.subprocess.Process
    started_at: float
    channel: Channel = field(init=False)
    associations: dict[int, _Handed] = field(default_factory=dict)
    endpoints: dict[ReceivingEndpoint, _Configured] = field(default_factory=dict)
    pinged: int = 0
    """The number of the last ping."""
    answered: int = 0
    silent_since: float | None = None
    """When the first ping was sent that is not answered."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """Its end of the channel is closed."""
    waiting: dict[int, asyncio.Future[None]] = field(default_factory=dict)
    """Who waits for the answer to a ping."""

    def kill(self) -> None:
        try:
            self.process.kill()
        except ProcessLookupError:
            pass


class _Slot:
    """One of the workers, whatever process it is at the moment."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.running: _Process | None = None
        self.handed_over = 0
        """Associations since the start: of two that have as many, the one that had fewer is next."""
        self.objects = 0
        self.restarts = 0
        self.failures = 0
        """In a row: it died at once."""
        self.task: asyncio.Task[None] | None = None

    @property
    def associations(self) -> int:
        return len(self.running.associations) if self.running is not None else 0


class WorkerPool:
    """Keeps `count` workers running between `start` and `stop`."""

    def __init__(self, count: int, log: LogSettings) -> None:
        self._slots = [_Slot(number) for number in range(count)]
        self._log = log
        self._numbers = itertools.count(1)
        self._tallies: dict[str, AssociationTally] = {}
        self._stopped = asyncio.Event()
        self._poll_timer: asyncio.TimerHandle | None = None
        self._ping_timer: asyncio.TimerHandle | None = None

    def __str__(self) -> str:
        return f"{len(self._slots)} workers"

    # Start and stop

    async def start(self) -> None:
        """Returns when all of them answer. Raises OSError."""
        loop = asyncio.get_running_loop()
        starting = [loop.create_task(self._start(slot)) for slot in self._slots]
        try:
            await asyncio.gather(*starting)
        except BaseException:
            for task in starting:
                task.cancel()
            await asyncio.wait(starting)
            await self.stop(0.0)
            raise
        for slot in self._slots:
            slot.task = loop.create_task(self._keep(slot), name=f"worker {slot.number}")
        self._ping()

    async def stop(self, grace_s: float) -> None:
        """When no associations are left to them. Whoever does not end is killed."""
        self._stopped.set()
        for timer in (self._ping_timer, self._poll_timer):
            if timer is not None:
                timer.cancel()
        self._poll_timer = None
        for slot in self._slots:
            if slot.running is not None:
                slot.running.channel.close()  # which is how it is told
                _ended(slot.running)
        keeping = [slot.task for slot in self._slots if slot.task is not None]
        if keeping:
            await asyncio.wait(keeping)
        for slot in self._slots:
            slot.task = None
            if slot.running is not None:  # it was not kept yet
                await self._finish(slot)

    async def _start(self, slot: _Slot) -> None:
        ours, theirs = channels()
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *_path_options(),
                "-m",
                "harmony.gateway.worker",
                str(theirs.fileno()),
                str(slot.number),
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        running = _Process(process, asyncio.get_running_loop().time())
        running.channel = Channel(
            ours,
            FromWorker,
            on_message=lambda message, _: self._told(slot, running, message),
            on_end=lambda: _ended(running),
        )
        slot.running = running
        running.channel.send(self._set_up())
        try:
            async with asyncio.timeout(START_S):
                await self._answer(running)
        except TimeoutError as error:
            raise OSError(f"worker {slot.number} does not start within {START_S:g} s") from error
        if running.ended.is_set():
            raise OSError(f"worker {slot.number} does not start; standard error says why")

    async def _keep(self, slot: _Slot) -> None:
        """Have a worker running, until the pool stops."""
        loop = asyncio.get_running_loop()
        while True:
            running = slot.running
            if running is not None:
                await running.ended.wait()
                lived_s = loop.time() - running.started_at
                await self._finish(slot)
                slot.failures = 0 if lived_s >= SOON_S else slot.failures + 1
            if self._stopped.is_set():
                return
            slot.restarts += 1
            if slot.failures:
                backoff_s = min(MAXIMUM_BACKOFF_S, 0.25 * 2.0**slot.failures)
                logger.error("worker %d: another one is started in %g s", slot.number, backoff_s)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(backoff_s):
                        await self._stopped.wait()
            if self._stopped.is_set():
                return
            try:
                await self._start(slot)
            except OSError as error:
                logger.error("%s", error)
                if slot.running is not None:
                    _ended(slot.running)
                else:
                    slot.failures += 1

    async def _finish(self, slot: _Slot) -> None:
        """A worker whose channel is closed: see it dead, index what it has stored, end its associations."""
        running = slot.running
        assert running is not None
        if not self._stopped.is_set():
            running.kill()  # whatever it still does, nobody learns of it
        try:
            async with asyncio.timeout(END_S):
                status = await running.process.wait()
        except TimeoutError:
            running.kill()
            status = await running.process.wait()
        running.channel.close()
        slot.running = None
        if not self._stopped.is_set():
            logger.error(
                "worker %d (process %d) has ended with %s; %d associations are lost",
                slot.number,
                running.process.pid,
                f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}",
                len(running.associations),
            )
        for configured in running.endpoints.values():
            await _unfollow(configured)
        for handed in list(running.associations.values()):
            self._over(handed, "connection_lost", "the worker that had it has ended")
        running.associations.clear()

    # Handing over

    def hand_over(
        self,
        endpoint: ReceivingEndpoint,
        association: Association,
        request: AssociateRQ,
        response: AssociateAC,
    ) -> bool:
        """Have a worker take an association that is about to be accepted: `Acceptor.on_accepting`."""
        if not _only_stores(request) or not any(slot.running for slot in self._slots):
            return False
        try:
            encoded, answer = request.encode(), response.encode()
        except (LocalProtocolError, ValueError):  # it was taken as it is, but would not be sent so
            return False
        number = next(self._numbers)

        def give(fd: int) -> bool:
            for slot in sorted(self._slots, key=lambda slot: (slot.associations, slot.handed_over)):
                running = slot.running
                if running is None or running.ended.is_set() or not running.answered:
                    continue
                configured = self._configured(running, endpoint)
                if configured is None:
                    continue
                message = Receive(number, configured.number, encoded, answer, association.peer)
                if running.channel.offer(message, fd):
                    slot.handed_over += 1
                    self._has_taken(running, number, _Handed(association, endpoint))
                    return True
            return False

        association.hand_over(response, give, abort=lambda: self._abort(number))
        return True

    def catch_up(self) -> None:
        """Hear of what is over: `Acceptor.before_refusing`."""
        for slot in self._slots:
            if slot.running is not None:
                slot.running.channel.receive()

    def _configured(self, running: _Process, endpoint: ReceivingEndpoint) -> _Configured | None:
        """What the worker knows of an endpoint, told now if need be; None when that is not possible."""
        configured = running.endpoints.get(endpoint)
        if configured is not None:
            return configured
        number, feed, log = next(self._numbers), None, None
        try:
            file = receiving_file(endpoint.receiving)
            try:
                if endpoint.index is not None:
                    feed = endpoint.index.follow(f"{os.getpid()}-{next(_names)}")
                    log = str(feed.directory)
                if not running.channel.offer(Configure(number, log), file):
                    raise BlockingIOError("it does not read what it is told")
            finally:
                os.close(file)
        except OSError as error:
            logger.warning("a worker (process %d) cannot be told: %s", running.process.pid, error)
            if feed is not None and endpoint.index is not None:
                endpoint.index.unfollow(feed)
            return None
        configured = running.endpoints[endpoint] = _Configured(number, feed, endpoint.index)
        if endpoint.tally is not None:
            self._tallies[endpoint.receiving.endpoint] = endpoint.tally
        return configured

    def _has_taken(self, running: _Process, number: int, handed: _Handed) -> None:
        running.associations[number] = handed
        if handed.endpoint.tally is not None:
            handed.endpoint.tally.established(handed.association)
        if self._poll_timer is None:
            self._poll_timer = asyncio.get_running_loop().call_later(POLL_S, self._poll)

    def _abort(self, number: int) -> None:
        for slot in self._slots:
            running = slot.running
            handed = running.associations.get(number) if running is not None else None
            if running is not None and handed is not None and handed.deadline is None:
                running.channel.send(Abort(number))
                handed.deadline = asyncio.get_running_loop().call_later(ABORT_S, running.kill)

    def _poll(self) -> None:
        self._poll_timer = None
        for index in self._indexes():
            index.poll()
        if any(slot.associations for slot in self._slots):
            self._poll_timer = asyncio.get_running_loop().call_later(POLL_S, self._poll)

    def _indexes(self) -> set[ArchiveIndex]:
        return {
            configured.index
            for slot in self._slots
            if slot.running is not None
            for configured in slot.running.endpoints.values()
            if configured.index is not None
        }

    # What workers say

    def _told(self, slot: _Slot, running: _Process, message: FromWorker) -> None:
        match message:
            case Releasing(number):
                handed = running.associations.get(number)
                if handed is not None:
                    handed.association.ended_elsewhere(None)
            case Ended(number, ending, text):
                handed = running.associations.pop(number, None)
                if handed is not None:
                    self._over(handed, ending, text)
            case Report(ping, objects, tallies):
                slot.objects += objects
                for tally in tallies:
                    known = self._tallies.get(tally.endpoint)
                    if known is not None:
                        _add(known, tally)
                self._answered(running, ping)
            case Deeds(number, received):
                handed = running.associations.get(number)
                if handed is not None and handed.endpoint.auditor is not None:
                    _audit(handed.endpoint.auditor, handed.association, received)

    def _over(self, handed: _Handed, ending: str, text: str) -> None:
        endpoint, association = handed.endpoint, handed.association
        if handed.deadline is not None:
            handed.deadline.cancel()
        if endpoint.tally is not None:
            endpoint.tally.ended_by(association, ending)
        if endpoint.auditor is not None:
            endpoint.auditor.association_ended(association)
        association.closed_elsewhere(_error(ending, text))

    # Heartbeat

    def _ping(self) -> None:
        loop = asyncio.get_running_loop()
        for slot in self._slots:
            running = slot.running
            if running is None or not running.answered:
                continue
            if running.silent_since is None:
                running.silent_since = loop.time()
            elif loop.time() - running.silent_since >= HEARTBEAT_S:
                logger.error("worker %d does not answer: it is killed", slot.number)
                running.kill()
                continue
            if running.pinged == running.answered:
                self._ask(running)
        self._ping_timer = loop.call_later(PING_S, self._ping)

    def _ask(self, running: _Process) -> int:
        """Ping; whatever was in the worker's logs until now is decided when it answers."""
        running.pinged += 1
        for configured in running.endpoints.values():
            if configured.feed is not None:
                with configured.feed.lock:
                    configured.feed.asked(running.pinged)
        running.channel.send(Ping(running.pinged))
        return running.pinged

    def _answered(self, running: _Process, ping: int) -> None:
        running.answered = ping
        running.silent_since = None
        for configured in running.endpoints.values():
            if configured.feed is not None:
                with configured.feed.lock:
                    configured.feed.answered(ping)
        for number in [number for number in running.waiting if number <= ping]:
            running.waiting.pop(number).set_result(None)

    async def _answer(self, running: _Process) -> None:
        """Ask a worker, and wait until it answers or is gone."""
        future = asyncio.get_running_loop().create_future()
        running.waiting[self._ask(running)] = future
        if running.ended.is_set():
            future.set_result(None)
        await asyncio.shield(future)

    # For those who watch

    async def refresh(self) -> None:
        """Have what workers have counted until now; who does not answer in REFRESH_S is left out."""
        running = [slot.running for slot in self._slots if slot.running is not None and slot.running.answered]
        asking = [asyncio.create_task(self._answer(each)) for each in running]
        if asking:
            await asyncio.wait(asking, timeout=REFRESH_S)
            for each in asking:
                each.cancel()

    def counts(self) -> list[tuple[int, int, int, int]]:
        """Of each worker its number, associations that it has now, objects and restarts since the start."""
        return [(slot.number, slot.associations, slot.objects, slot.restarts) for slot in self._slots]

    @property
    def process_ids(self) -> list[int]:
        """Of those that run."""
        return [slot.running.process.pid for slot in self._slots if slot.running is not None]

    # Another configuration

    def set_up(self, log: LogSettings) -> None:
        """As the first process is from now on."""
        self._log = log
        for slot in self._slots:
            if slot.running is not None:
                slot.running.channel.send(self._set_up())

    def _set_up(self) -> SetUp:
        """What is held is limited for all together: each may have its part of what the first process may."""
        held_bytes = HELD.limit_bytes // len(self._slots) if HELD.limit_bytes is not None else None
        return SetUp(self._log.number, str(self._log.file) if self._log.file else None, held_bytes)

    async def keep_only(self, endpoints: Collection[ReceivingEndpoint]) -> None:
        """Have workers forget other endpoints, whose associations are over."""
        for slot in self._slots:
            running = slot.running
            if running is None:
                continue
            used = {handed.endpoint for handed in running.associations.values()} | set(endpoints)
            gone = [running.endpoints.pop(each) for each in [*running.endpoints] if each not in used]
            for configured in gone:
                running.channel.send(Forget(configured.number))
            if gone:
                await self._answer(running)  # it has closed their logs
            for configured in gone:
                await _unfollow(configured)


def _path_options() -> tuple[str, ...]:
    """`-m` looks in the working directory first, where a program that is installed does not look at all."""
    try:
        looks_there = "" in sys.path or os.getcwd() in sys.path
    except FileNotFoundError:
        looks_there = False
    return () if looks_there else ("-P",)


def _ended(running: _Process) -> None:
    running.ended.set()
    for future in running.waiting.values():
        if not future.done():
            future.set_result(None)
    running.waiting.clear()


async def _unfollow(configured: _Configured) -> None:
    if configured.feed is not None and configured.index is not None:
        await asyncio.to_thread(configured.index.unfollow, configured.feed)


def _only_stores(request: AssociateRQ) -> bool:
    """Storage and nothing else but verification. One that wants verification alone is not worth the while."""
    proposed = {context.abstract_syntax for context in request.presentation_contexts}
    stores = {uid for uid in proposed if is_storage_sop_class(uid)}
    return bool(stores) and proposed - stores <= {VERIFICATION}


def _add(known: AssociationTally, tally: Tally) -> None:
    known.add_bytes(received=tally.received_bytes, sent=tally.sent_bytes)
    for each in tally.operations:
        operations = known.as_scp.setdefault(_REQUEST_TYPES[each.request_type], OperationTally())
        operations.add_all(each.statuses, each.counts, each.sum_s)


def _audit(auditor: Auditor, association: Association, received: Iterable[Received]) -> None:
    activity = auditor.activity_of(association)
    for each in received:
        subject = Subject(each.study_instance_uid, each.patient_id, each.patient_name)
        activity.add(Deed.RECEIVED, subject, each.sop_class_uid, each.count, good=each.good)
    auditor.progressed(activity)


def _error(ending: str, text: str) -> AssociationError | None:
    match ending:
        case "released":
            return None
        case "aborted_by_peer" | "aborted_by_us":
            return AssociationAborted(text, by_peer=ending == "aborted_by_peer")
    return ConnectionLost(text)
