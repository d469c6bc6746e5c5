"""C-GET and C-MOVE as SCP (PS3.4 §C.4.2, §C.4.3; PS3.7 §9.1.3, §9.1.4).

`get_handler` and `move_handler` turn a function that selects instances into handlers for `Services.operation`. They
send each instance as a C-STORE sub-operation, on the same association or on one with the move destination; count;
send Pending responses now and then; and sum up in the final one.

Instances go out exactly as they are stored. One whose transfer syntax the receiver did not accept is offered to the
`transcode` hook; without one, or without a result, that sub-operation has failed and the others go on.

C-CANCEL ends the wait for the next instance or for the destination at once; a C-STORE under way is finished first.

Which instances match, where they lie and where a destination is are for those above.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Sequence,
)
from dataclasses import dataclass
from typing import Final, Protocol

from harmony.dimse.cancellation import End, Interrupted, Interruption, close_iterator
from harmony.dimse.command import CGetRQ, CGetRSP, CMoveRQ, CMoveRSP
from harmony.dimse.destination import Destination, Pair, Unreachable
from harmony.dimse.operation import Handler, Operation
from harmony.dimse.peer import Peer
from harmony.dimse.query import failure_outcome
from harmony.dimse.scu import DEFAULT_RESPONSE_S, SCU, Instance
from harmony.dimse.sop_class import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN
from harmony.dimse.status import DimseError, Outcome, Status
from harmony.dimse.sub_operations import SubOperations, encode_failed_sop_instance_uids
from harmony.ul.errors import AssociationError

__all__ = [
    "ResolveDestination",
    "Select",
    "Selection",
    "Transcode",
    "Unavailable",
    "get_handler",
    "move_handler",
]

logger = logging.getLogger("harmony.dimse")

PENDING_S: Final = 1.0
"""Between Pending responses: often enough for a progress bar and for every SCU's timeout, too rare to cost anything."""

FALLBACKS: Final = (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN)
"""Proposed to a destination besides the stored transfer syntax, when there is a transcoder."""


@dataclass(frozen=True, slots=True)
class Unavailable:
    """Takes the place of an instance that was selected but cannot be read: its sub-operation has failed."""

    sop_instance_uid: str


@dataclass(frozen=True, slots=True)
class Selection:
    """What a retrieve is about."""

    instances: AsyncIterator[Instance | Unavailable]
    """Asked for the next one when the one before is done; a generator is closed when it is left early. The source of
    each Instance is closed here."""
    sop_instance_uids: Iterable[str] | None = None
    """Of all the instances, when known: then Remaining is right and every failure can be listed."""
    total: int | None = None
    """How many there are, when only that is known."""
    total_so_far: Callable[[], int | None] | None = None
    """How many there seem to be, asked again and again, when that only shows while they come. When nothing is known,
    Pending responses say that 1 remains."""
    contexts: Iterable[Pair] = ()
    """(SOP class, transfer syntax) of the instances, as far as known: what a C-MOVE proposes to its destination."""


Select = Callable[[Operation], Awaitable[Selection]]
"""Finds what a C-GET-RQ or C-MOVE-RQ asks for; raises DimseError to answer with its status."""

ResolveDestination = Callable[[str, Operation], Peer | Awaitable[Peer | None] | None]
"""The application entity that a Move Destination names; None when it is not known."""

Transcode = Callable[[Instance, Sequence[str]], Awaitable[Instance | None]]
"""The instance in one of the transfer syntaxes, which are those that the receiver accepted for its SOP class; None when
that cannot be done. The source of the instance it is given is closed when the sub-operation is over."""


def get_handler(
    select: Select,
    *,
    transcode: Transcode | None = None,
    pending_s: float = PENDING_S,
    pending_instances: int | None = None,
    response_s: float | None = DEFAULT_RESPONSE_S,
) -> Handler:
    """A handler for CGetRQ. The services must also take the SCU role of storage: `Services.store_as_scu`.

    pending_s, pending_instances: a Pending response after that many seconds or sub-operations (None: seconds only).
    response_s: for each C-STORE-RSP. DimseError from select or its instances is answered with its status, any other
    exception with 0xC000.
    """

    async def perform(operation: Operation) -> Outcome | None:
        route = _SameAssociation(SCU(operation.association, operation.exchange, response_s=response_s))
        performance = _Performance(operation, transcode, pending_s, pending_instances)
        return await performance.run(select, lambda selection: route)

    return perform


def move_handler(
    select: Select,
    resolve_destination: ResolveDestination,
    *,
    transcode: Transcode | None = None,
    pending_s: float = PENDING_S,
    pending_instances: int | None = None,
) -> Handler:
    """A handler for CMoveRQ; arguments as for `get_handler`.

    resolve_destination: asked before anything else; None is answered 0xA801. The destination's Peer has the deadlines
    of its associations. Without instances there is no association (PS3.4 §C.4.2.2.3 asks for none).
    """

    async def perform(operation: Operation) -> Outcome | None:
        request = operation.request
        assert isinstance(request, CMoveRQ)
        try:
            found = resolve_destination(request.move_destination, operation)
            peer = await found if inspect.isawaitable(found) else found
        except Exception as error:
            return failure_outcome(operation, error)
        if peer is None:
            return Outcome(Status.MOVE_DESTINATION_UNKNOWN, "move destination unknown")
        fallbacks = FALLBACKS if transcode is not None else ()
        performance = _Performance(operation, transcode, pending_s, pending_instances)
        return await performance.run(
            select,
            lambda selection: Destination.of(operation, peer, selection.contexts, fallbacks=fallbacks),
        )

    return perform


class _Route(Protocol):
    """Where the instances go; a Destination is one."""

    async def scu_for(self, pair: Pair) -> SCU: ...

    def responded(self) -> None: ...

    async def close(self, *, abort: bool = False) -> None: ...


class _SameAssociation:
    """Of a C-GET: back to where the request came from."""

    def __init__(self, scu: SCU) -> None:
        self._scu = scu

    async def scu_for(self, pair: Pair) -> SCU:
        return self._scu

    def responded(self) -> None:
        pass

    async def close(self, *, abort: bool = False) -> None:
        pass


class _Performance:
    """One C-GET or C-MOVE being performed."""

    def __init__(
        self,
        operation: Operation,
        transcode: Transcode | None,
        pending_s: float,
        pending_instances: int | None,
    ) -> None:
        request = operation.request
        assert isinstance(request, CGetRQ | CMoveRQ)
        self._operation = operation
        self._request = request
        self._transcode = transcode
        self._pending_s = pending_s
        self._pending_instances = pending_instances
        self._accounts: SubOperations | None = None  # None until something was selected
        self._total_so_far: Callable[[], int | None] | None = None
        self._storing_here = False  # a sub-operation is under way on the association of the request
        self._clock = asyncio.get_running_loop().time
        self._told_at = self._clock()
        self._told_done = 0

    async def run(self, select: Select, route_of: Callable[[Selection], _Route]) -> Outcome | None:
        if self._operation.data_set is None:
            return Outcome(Status.DATA_SET_DOES_NOT_MATCH_SOP_CLASS, "request without an Identifier")
        await self._respond_finally(await self._perform(select, route_of))
        return None

    async def _perform(self, select: Select, route_of: Callable[[Selection], _Route]) -> Outcome:
        operation = self._operation
        selection: Selection | None = None
        route: _Route | None = None
        with Interruption(operation.cancelled) as interruption:
            try:
                selection = await interruption.wait(lambda: select(operation))
                accounts = SubOperations(expected=selection.sop_instance_uids, total=selection.total)
                self._accounts = accounts
                self._total_so_far = selection.total_so_far
                route = route_of(selection)
                async with self._telling():
                    await self._send_all(selection, accounts, route, interruption)
                outcome = Outcome(accounts.final_status())
            except Interrupted:
                outcome = Outcome(Status.CANCEL)
            except Exception as error:
                outcome = failure_outcome(operation, error)
            except BaseException:  # the association of the request is over
                if route is not None:
                    await route.close(abort=True)
                raise
            finally:
                if selection is not None:
                    await close_iterator(selection.instances)
        if route is not None:
            await route.close()
        return outcome

    # Sub-operations ----

    async def _send_all(
        self, selection: Selection, accounts: SubOperations, route: _Route, interruption: Interruption
    ) -> None:
        while not isinstance(item := await interruption.next(selection.instances), End):
            if isinstance(item, Unavailable):
                accounts.count(item.sop_instance_uid, Status.PROCESSING_FAILURE)
            else:
                try:
                    status = await self._send(item, route, interruption)
                except Unreachable as error:
                    logger.warning("%s: destination unreachable: %s", self, error.__cause__)
                    accounts.count(item.sop_instance_uid, Status.PROCESSING_FAILURE)
                    break
                accounts.count(item.sop_instance_uid, status)
            await self._tell_when_due()
            # A source that never waits must not keep the C-CANCEL from being read.
            await asyncio.sleep(0)
        # The rest, after a break; and what was announced and did not come.
        accounts.fail_remaining()

    async def _send(self, instance: Instance, route: _Route, interruption: Interruption) -> int:
        """The status of one sub-operation; its source is closed in any case."""
        pair = (instance.sop_class_uid, instance.transfer_syntax_uid)
        try:
            scu = await interruption.wait(lambda: route.scu_for(pair))
            converted = await self._as_accepted(instance, scu)
            if converted is None:
                return Status.SOP_CLASS_NOT_SUPPORTED
            try:
                status = await self._store(converted, scu)
            except DimseError as refused:
                status = refused.status
            route.responded()
            return status
        except (Interrupted, Unreachable):
            raise
        except AssociationError as error:
            if not self._operation.association.is_open or isinstance(route, _SameAssociation):
                raise
            logger.warning("%s: a sub-operation failed: %s", self, error)
        except Exception:
            logger.exception("%s: a sub-operation failed", self)
        finally:
            await _close_source(instance)
        return Status.PROCESSING_FAILURE

    async def _as_accepted(self, instance: Instance, scu: SCU) -> Instance | None:
        """The instance in a transfer syntax that was accepted, its own if possible."""
        accepted = tuple(
            context.transfer_syntax
            for context in scu.association.agreed.contexts.values()
            if context.abstract_syntax == instance.sop_class_uid and context.as_scu
        )
        if instance.transfer_syntax_uid in accepted:
            return instance
        converted = None
        if accepted and self._transcode is not None:
            converted = await self._transcode(instance, accepted)
        if converted is None:
            logger.info(
                "%s: no context for %s in %s", self, instance.sop_class_uid, instance.transfer_syntax_uid
            )
        return converted

    async def _store(self, instance: Instance, scu: SCU) -> int:
        request = self._request
        originator, message_id = "", None
        if isinstance(request, CMoveRQ):
            originator = self._operation.association.agreed.calling_ae_title
            message_id = request.message_id
        self._storing_here = scu.association is self._operation.association
        try:
            outcome = await scu.store(
                instance,
                priority=request.priority,
                move_originator_ae_title=originator,
                move_originator_message_id=message_id,
            )
        finally:
            self._storing_here = False
        return outcome.status

    # Responses ----

    @contextlib.asynccontextmanager
    async def _telling(self) -> AsyncIterator[None]:
        """Pending responses also while a source or a destination takes its time."""
        ticker = asyncio.get_running_loop().create_task(self._tick())
        try:
            yield
        finally:
            ticker.cancel()
            await asyncio.wait([ticker])

    async def _tick(self) -> None:
        with contextlib.suppress(AssociationError):
            while True:
                await asyncio.sleep(self._pending_s)
                if not self._storing_here:
                    await self._tell_when_due()

    async def _tell_when_due(self) -> None:
        accounts = self._accounts
        assert accounts is not None
        now = self._clock()
        many = self._pending_instances
        due = many is not None and accounts.done - self._told_done >= many
        if not due and now < self._told_at + self._pending_s:
            return
        self._told_at, self._told_done = now, accounts.done
        remaining = self._remaining(accounts)
        await self._operation.respond(
            self._response(Outcome(Status.PENDING), 1 if remaining is None else remaining)
        )

    def _remaining(self, accounts: SubOperations) -> int | None:
        if accounts.remaining is None and self._total_so_far is not None:
            total = self._total_so_far()
            return None if total is None else max(0, total - accounts.done)
        return accounts.remaining

    async def _respond_finally(self, outcome: Outcome) -> None:
        accounts, data_set, remaining = self._accounts, None, None
        if accounts is not None:
            if outcome.status == Status.CANCEL:
                remaining = self._remaining(accounts)  # in no other final response, PS3.4 §C.4.2.1.6
            if accounts.failed_sop_instance_uids:
                data_set = encode_failed_sop_instance_uids(
                    accounts.failed_sop_instance_uids, self._operation.context.transfer_syntax
                )
        response = self._response(outcome, remaining, data_set_present=data_set is not None)
        await self._operation.respond(response, data_set)

    def _response(
        self, outcome: Outcome, remaining: int | None, *, data_set_present: bool = False
    ) -> CGetRSP | CMoveRSP:
        accounts, request = self._accounts, self._request
        return (CGetRSP if isinstance(request, CGetRQ) else CMoveRSP)(
            request.message_id,
            outcome.status,
            request.affected_sop_class_uid,
            number_of_remaining_sub_operations=remaining,
            number_of_completed_sub_operations=accounts.completed if accounts else None,
            number_of_failed_sub_operations=accounts.failed if accounts else None,
            number_of_warning_sub_operations=accounts.warning if accounts else None,
            error_comment=outcome.error_comment,
            offending_elements=outcome.offending_elements,
            data_set_present=data_set_present,
        )

    def __str__(self) -> str:
        return f"association {self._operation.association.number}: {type(self._request).__name__}"


async def _close_source(instance: Instance) -> None:
    data = instance.data
    if isinstance(data, AsyncGenerator):
        await data.aclose()
    elif not isinstance(data, bytes | bytearray | memoryview | AsyncIterable):
        data.close()
