"""A worker: a process that receives for the gateway, `python -m harmony.gateway.worker DESCRIPTOR NAME`.

It listens nowhere and decides nothing. Connections come from the process that has started it (`workers`), accepted and
negotiated; what they bring is stored as that process would store it. It ends when the other end of its channel is
closed: at a stop, when all associations are over; or because the first process is gone, and then as soon as the objects
that are being received have been answered, in LEAVING_S at most.

Signals that stop or reload the gateway are for the first process, also where a terminal or a supervisor sends them to
all of them.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

from harmony.archive.files import FileStore
from harmony.archive.worker_log import WorkerLog
from harmony.dimse.command import CStoreRQ, Message
from harmony.dimse.exchange import Exchange
from harmony.dimse.operation import StoreRequest
from harmony.dimse.scp import Services
from harmony.dimse.sink import Sink
from harmony.gateway.activity import Activity, Party
from harmony.gateway.audited_backend import AuditedSink
from harmony.gateway.descriptors import raise_limit, watch_accepting
from harmony.gateway.dimse_policies import DimsePolicies
from harmony.gateway.event_loop import loop_factory
from harmony.gateway.handover import (
    Abort,
    Channel,
    Configure,
    Deeds,
    Ended,
    Forget,
    Operations,
    Ping,
    Receive,
    Received,
    Receiving,
    Releasing,
    Report,
    SetUp,
    Tally,
    ToWorker,
    read_receiving,
)
from harmony.gateway.log_output import set_up_logging
from harmony.gateway.rules import Rulebook
from harmony.gateway.tallies import AssociationTally, ending_of
from harmony.ul.association import Association
from harmony.ul.handover import adopt
from harmony.ul.held import HELD
from harmony.ul.pdu import AssociateAC, PDUType, decode

__all__ = ["Worker", "main"]

logger = logging.getLogger("harmony.gateway")

LEAVING_S: Final = 10.0
"""For objects that are being received when the first process is gone; `worker_log.LEAVING_S` is longer."""
RECEIVED: Final = 8
"""In a message, so that it stays below the limit whatever is in the header of an object."""
TEXT: Final = 512
"""Characters told of a text from there; those that are valid have 64, or names three times as many."""
PDU_HEADER_BYTES: Final = 6


class _Counted(AssociationTally):
    """Of an endpoint, with what has been reported already."""

    def __init__(self, worker: Worker) -> None:
        super().__init__()
        self._worker = worker
        self._reported = (0, 0)

    def performed(self, request_type: type[Message], status: int, elapsed_s: float) -> None:
        super().performed(request_type, status, elapsed_s)
        if self._worker.is_leaving:
            asyncio.get_running_loop().call_soon(self._worker.abort_idle)

    def take(self, endpoint: str) -> tuple[Tally, int]:
        """What is new, and how many objects were among it."""
        operations = [
            Operations(
                request_type.__name__,
                {status: count for status, count in tally.statuses.items() if status is not None},
                tally.durations.counts,
                tally.durations.sum_s,
            )
            for request_type, tally in self.as_scp.items()
        ]
        stores = self.as_scp.get(CStoreRQ)
        objects = sum(stores.statuses.values()) if stores is not None else 0
        self.as_scp = {}
        received, sent = self.received_bytes, self.sent_bytes
        known_received, known_sent = self._reported
        self._reported = (received, sent)
        return Tally(endpoint, received - known_received, sent - known_sent, operations), objects


class _Endpoint:
    """What an endpoint's associations need here."""

    def __init__(self, worker: Worker, receiving: Receiving, log: Path | None) -> None:
        """log: the folder of the `WorkerLog`. Raises OSError."""
        self.receiving = receiving
        self.tally = _Counted(worker)
        self.files = FileStore(
            receiving.storage_dir,
            durability=receiving.durability,
            duplicates=receiving.duplicates,
            maximum_object_bytes=receiving.maximum_object_bytes,
            minimum_free_bytes=receiving.minimum_free_bytes,
        )
        self.files.open()
        self.log: WorkerLog | None = None
        if log is not None:
            durable = receiving.durability == "fsync"
            self.log = WorkerLog(log, root=self.files.folder.root, durable=durable)
        self._on_stored = self.log.stored if self.log is not None else None
        self.services = Services()
        self.services.store(partial(worker.audited_sink, self) if receiving.is_audited else self.open_sink)
        self.services.observe(self.tally)
        rulebook = Rulebook()
        for each in receiving.policies:
            self.services.authorize(DimsePolicies.of(each, rulebook).authorize)

    def open_sink(self, request: StoreRequest) -> Sink:
        return self.files.sink(
            sop_class_uid=request.affected_sop_class_uid,
            sop_instance_uid=request.affected_sop_instance_uid,
            transfer_syntax_uid=request.transfer_syntax_uid,
            calling_ae_title=request.calling_ae_title,
            called_ae_title=request.called_ae_title,
            journal=self.log,
            on_stored=self._on_stored,
        )

    def close(self) -> None:
        self.files.close()
        if self.log is not None:
            self.log.close()


class Worker:
    """One, over its end of the channel."""

    def __init__(self, sock: socket.socket, name: str) -> None:
        self.is_leaving = False
        self._name = name
        self._channel = Channel(sock, ToWorker, on_message=self._told, on_end=self._leave)
        self._endpoints: dict[int, _Endpoint] = {}
        self._associations: dict[int, Association] = {}
        self._activities: dict[Association, tuple[int, Activity]] = {}
        self._adopting: dict[int, asyncio.Task[None]] = {}
        self._unwanted: set[int] = set()
        """Of those being adopted."""
        self._over = asyncio.Event()

    async def run(self) -> None:
        """Until the first process is gone, and all associations are over."""
        await self._over.wait()
        for endpoint in self._endpoints.values():
            endpoint.close()

    # What is said to us

    def _told(self, message: ToWorker, fd: int) -> None:
        match message:
            case Receive():
                sock = socket.socket(fileno=fd) if fd >= 0 else None
                task = asyncio.get_running_loop().create_task(self._receive(message, sock))
                self._adopting[message.association] = task
            case Abort(number):
                if number in self._associations:
                    _abort(self._associations[number])
                elif number in self._adopting:
                    self._unwanted.add(number)
            case Ping(number):
                self._report(number)
            case Configure(receiving, log):
                self._configure(receiving, Path(log) if log is not None else None, fd)
            case Forget(receiving):
                endpoint = self._endpoints.pop(receiving, None)
                if endpoint is not None:
                    endpoint.close()
            case SetUp(level, file, held_bytes):
                HELD.limit_bytes = held_bytes
                self._set_up_logging(level, Path(file) if file is not None else None)

    def _configure(self, number: int, log: Path | None, fd: int) -> None:
        try:
            self._endpoints[number] = _Endpoint(self, read_receiving(fd), log)
        except OSError as error:  # its associations are refused then, one by one
            logger.error("nothing can be received: %s", error)

    def _set_up_logging(self, level: int, file: Path | None) -> None:
        try:
            set_up_logging(level, file, who=f"worker {self._name}")
        except OSError as error:
            logger.error("the log file: %s", error)

    # Associations

    async def _receive(self, message: Receive, sock: socket.socket | None) -> None:
        number = message.association
        try:
            endpoint = self._endpoints.get(message.receiving)
            if sock is None or endpoint is None:
                raise OSError(
                    "no descriptor is left" if sock is None else "its endpoint cannot be served here"
                )
            response = decode(PDUType.ASSOCIATE_AC, message.response[PDU_HEADER_BYTES:])
            assert isinstance(response, AssociateAC)
            await adopt(
                sock,
                Exchange(partial(self._established, number, endpoint)),
                request=message.request,
                response=response,
                peer=message.peer,
                timeouts=endpoint.receiving.timeouts,
                on_releasing=lambda _: self._channel.send(Releasing(number)),
                on_closed=partial(self._closed, number),
            )
        except OSError as error:
            if sock is not None:
                sock.close()
            logger.warning("an association could not be taken over: %s", error)
            self._channel.send(Ended(number, "aborted_by_us", str(error)))
        finally:
            del self._adopting[number]
            if number in self._unwanted:
                self._unwanted.discard(number)
                if number in self._associations:
                    _abort(self._associations[number])
            self._leave_when_idle()

    def _established(self, number: int, endpoint: _Endpoint, association: Association) -> Services:
        self._associations[number] = association
        if endpoint.receiving.is_audited:
            self._activities[association] = (number, Activity(_nobody))
        return endpoint.services

    def _closed(self, number: int, association: Association) -> None:
        self._associations.pop(number, None)
        told = self._activities.pop(association, None)
        if told is not None:
            self._tell(*told)
        error = association.error
        self._channel.send(Ended(number, ending_of(error), str(error) if error is not None else ""))
        self._leave_when_idle()

    # What is told of them

    def audited_sink(self, endpoint: _Endpoint, request: StoreRequest) -> Sink:
        _, activity = self._activities[request.association]
        return AuditedSink(
            endpoint.open_sink(request),
            self,
            activity,
            request.affected_sop_class_uid,
            request.transfer_syntax_uid,
        )

    def progressed(self, activity: Activity) -> None:
        """It is told with the next report."""

    def _report(self, ping: int) -> None:
        for number, activity in self._activities.values():
            self._tell(number, activity)
        taken = [each.tally.take(each.receiving.endpoint) for each in self._endpoints.values()]
        objects = sum(count for _, count in taken)
        self._channel.send(Report(ping, objects, [tally for tally, _ in taken]))

    def _tell(self, number: int, activity: Activity) -> None:
        counts, activity.counts = activity.counts, {}
        received = [
            Received(
                subject.study_instance_uid[:TEXT],
                subject.patient_id[:TEXT],
                subject.patient_name[:TEXT],
                sop_class_uid,
                count,
                good,
            )
            for (_, _, good), subjects in counts.items()
            for subject, classes in subjects.items()
            for sop_class_uid, count in classes.items()
        ]
        for start in range(0, len(received), RECEIVED):
            self._channel.send(Deeds(number, received[start : start + RECEIVED]))

    # The end

    def _leave(self) -> None:
        self.is_leaving = True
        asyncio.get_running_loop().call_later(LEAVING_S, self._abort_all)
        self.abort_idle()
        self._leave_when_idle()

    def abort_idle(self) -> None:
        """Nobody is left to account for associations: end those that have no object on its way."""
        for association in list(self._associations.values()):
            user = association.user
            if not isinstance(user, Exchange) or not user.storing:
                _abort(association)

    def _abort_all(self) -> None:
        for association in list(self._associations.values()):
            _abort(association)
        self._over.set()

    def _leave_when_idle(self) -> None:
        if self.is_leaving and not self._associations and not self._adopting:
            self._over.set()


def _abort(association: Association) -> None:
    association.abort()
    association.cut_after_writing()


def _nobody() -> Party:
    raise AssertionError("who it is, is known where the association was accepted")


def main(arguments: Sequence[str]) -> int:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    descriptor, name = arguments
    raise_limit()
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_work(int(descriptor), name))
    return 0


async def _work(descriptor: int, name: str) -> None:
    watch_accepting(asyncio.get_running_loop())
    await Worker(socket.socket(fileno=descriptor), name).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
