"""C-GET and C-MOVE as SCU (PS3.4 §C.4.2, §C.4.3; PS3.7 §9.1.3, §9.1.4).

Both open a `Retrieval` for the length of a block: an iterator of counters while the peer works, then a result.
Leaving the block early, by an exception or a cancellation too, sends C-CANCEL-RQ and waits, not for ever, for the
final response.

    receiver = GetReceiver()
    proposal = propose_get([STUDY_ROOT.get], [(CT_IMAGE_STORAGE, [EXPLICIT_VR_LITTLE_ENDIAN])])
    async with peer.associate(proposal, services=receiver.services) as scu:
        async with get(scu, STUDY_ROOT.get, identifier, open_sink, receiver=receiver) as retrieval:
            async for counters in retrieval: ...
        print(retrieval.result)

The instances of a C-GET arrive on the same association, also when the peer said nothing about roles; those of a
C-MOVE at its destination: a third party, or a server of ours with a `move_receiver.MoveReceiver`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass

from harmony.dimse.cancellation import CANCEL_S, OperationInterrupted, end_early, is_loss, send_cancel
from harmony.dimse.command import PRIORITY_MEDIUM, CGetRQ, CGetRSP, CMoveRQ, CMoveRSP
from harmony.dimse.information_model import Identifier, accepted_context, encode_identifier
from harmony.dimse.invocation import Invocation, Response
from harmony.dimse.move_receiver import Expectation, MessageIDTaken, MoveReceiver, OpenSink
from harmony.dimse.operation import StoreRequest
from harmony.dimse.scp import Services
from harmony.dimse.scu import DEFAULT_RESPONSE_S, SCU
from harmony.dimse.sink import Sink
from harmony.dimse.status import DimseError, Status, StatusClass, classify
from harmony.dimse.sub_operations import Counters, decode_failed_sop_instance_uids
from harmony.ul.association import Association
from harmony.ul.errors import AssociationError, DeadlineExceeded, LocalProtocolError

__all__ = ["GetReceiver", "Retrieval", "RetrieveFailed", "RetrieveResult", "get", "move"]


@dataclass(frozen=True, slots=True)
class RetrieveResult:
    """The final response of a C-GET or C-MOVE."""

    status: int
    """0x0000, 0xB000 with failures or warnings, 0xFE00 when cancelled, or a failure."""
    counters: Counters
    failed_sop_instance_uids: tuple[str, ...] = ()
    """Failed SOP Instance UID List, as far as the peer sent one."""
    failed_data_set: bytes | None = None
    """The data set with that list as it came."""
    error_comment: str = ""
    offending_elements: tuple[int, ...] = ()


class RetrieveFailed(DimseError):
    """The final status is a failure; `result` says what was retrieved all the same."""

    def __init__(self, result: RetrieveResult) -> None:
        super().__init__(result.status, result.error_comment, result.offending_elements)
        self.result = result


class Retrieval:
    """A C-GET or C-MOVE under way: iterate over the Counters of its Pending responses.

    Iteration ends with the final response; it raises RetrieveFailed for a failure status, or Cancel without having been
    asked for, and AssociationError when the association ends first: OperationInterrupted when something has come.
    """

    def __init__(
        self,
        invocation: Invocation,
        scu: SCU,
        *,
        transfer_syntax_uid: str,
        expectation: Expectation | None = None,
        response_s: float | None = None,
    ) -> None:
        """response_s: the longest silence, when the invocation does not watch it itself."""
        self.invocation = invocation
        self.cancelled = False
        """C-CANCEL-RQ has been sent."""
        self._scu = scu
        self._requests_before = scu.exchange.requests_received
        self._pendings = 0
        self._transfer_syntax_uid = transfer_syntax_uid
        self._expectation = expectation
        self._response_s = response_s
        self._result: RetrieveResult | None = None

    @property
    def is_over(self) -> bool:
        """True once the final response has been iterated to."""
        return self._result is not None

    @property
    def result(self) -> RetrieveResult:
        """What the final response said; RuntimeError before it has been iterated to."""
        if self._result is None:
            raise RuntimeError("the retrieve is not over")
        return self._result

    def __aiter__(self) -> AsyncIterator[Counters]:
        return self

    async def __anext__(self) -> Counters:
        if self._result is not None:
            raise StopAsyncIteration
        try:
            response = await self._next_response()
        except AssociationError as error:
            if is_loss(error) and self._something_came():
                raise OperationInterrupted(f"in the middle of a retrieve: {error}") from error
            raise
        counters = _counters(response)
        if response.status_class is StatusClass.PENDING:
            self._pendings += 1
            return counters
        self._result = self._final_result(response, counters)
        self._check()
        raise StopAsyncIteration

    async def final(self) -> RetrieveResult:
        """Skip to the result; raises as the iteration does."""
        async for _ in self:
            pass
        self._check()
        return self.result

    async def cancel(self) -> None:
        """Ask the peer to stop (C-CANCEL-RQ); the iteration goes on to the final response, normally 0xFE00."""
        if not self.cancelled:
            self.cancelled = await send_cancel(self.invocation)

    def _something_came(self) -> bool:
        """A Pending response, or an instance here or at the server that waits for it."""
        return bool(
            self._pendings
            or self._scu.exchange.requests_received != self._requests_before
            or (self._expectation is not None and self._expectation.received)
        )

    def _check(self) -> None:
        status_class = classify(self.result.status)
        if status_class is StatusClass.FAILURE or (status_class is StatusClass.CANCEL and not self.cancelled):
            raise RetrieveFailed(self.result)

    def _final_result(self, response: Response, counters: Counters) -> RetrieveResult:
        message, data_set = response.message, response.data_set
        assert isinstance(message, CGetRSP | CMoveRSP)
        return RetrieveResult(
            message.status,
            counters,
            decode_failed_sop_instance_uids(data_set or b"", self._transfer_syntax_uid),
            data_set,
            message.error_comment,
            message.offending_elements,
        )

    async def _next_response(self) -> Response:
        """The next response. With an expectation, instances that come on other associations are signs of life."""
        expectation, response_s = self._expectation, self._response_s
        if expectation is None or response_s is None:
            return await anext(self.invocation)
        while True:
            received = expectation.received
            try:
                async with asyncio.timeout(response_s):
                    return await anext(self.invocation)
            except TimeoutError:
                if expectation.received == received and not expectation.busy:
                    self._scu.association.abort(DeadlineExceeded("the DIMSE response", response_s))


def _counters(response: Response) -> Counters:
    message = response.message
    assert isinstance(message, CGetRSP | CMoveRSP)
    return Counters(
        message.number_of_remaining_sub_operations,
        message.number_of_completed_sub_operations,
        message.number_of_failed_sub_operations,
        message.number_of_warning_sub_operations,
    )


# --- C-GET ----------------------------------------------------------------------------------------------


class GetReceiver:
    """Brings the C-STORE sub-operations of C-GETs to their sinks, by association.

    services: give them to `associate`; one receiver may serve any number of associations. A C-STORE that no C-GET is
    waiting for is refused with 0x0124.
    """

    def __init__(self) -> None:
        self.services = Services()
        self.services.store(self._open_sink)
        self._waiting: dict[Association, OpenSink] = {}

    def _open_sink(self, request: StoreRequest) -> Sink:
        open_sink = self._waiting.get(request.association)
        if open_sink is None:
            raise DimseError(Status.NOT_AUTHORIZED, "no retrieve waits for this instance")
        return open_sink(request)

    @contextmanager
    def expect(self, association: Association, open_sink: OpenSink) -> Iterator[None]:
        """A C-GET waits for its instances to the end of the block. A C-STORE does not say to which C-GET it belongs,
        so there is one at a time on an association; LocalProtocolError for another."""
        if association in self._waiting:
            raise LocalProtocolError("a C-GET is under way on this association")
        self._waiting[association] = open_sink
        try:
            yield
        finally:
            del self._waiting[association]

    def refuse(self, association: Association) -> None:
        """Take no more instances for a C-GET that is being left."""
        if association in self._waiting:
            self._waiting[association] = _refuse


def _refuse(request: StoreRequest) -> Sink:
    raise DimseError(Status.OUT_OF_RESOURCES, "the retrieve was cancelled")


@asynccontextmanager
async def get(
    scu: SCU,
    sop_class_uid: str | Sequence[str],
    identifier: Identifier,
    open_sink: OpenSink,
    *,
    receiver: GetReceiver,
    priority: int = PRIORITY_MEDIUM,
    cancel_s: float = CANCEL_S,
) -> AsyncIterator[Retrieval]:
    """Retrieve on this association: each instance goes to the sink that open_sink returns for it.

    The association was made with `receiver.services` and the contexts and roles of `propose_get`. open_sink raises
    DimseError to refuse an instance, which the peer then counts as failed. When the block is left before the final
    response, instances that still come are refused. cancel_s: for the final response after C-CANCEL, else the
    association is aborted.
    """
    context = accepted_context(scu, sop_class_uid)
    with receiver.expect(scu.association, open_sink):
        invocation = await scu.invoke(
            lambda message_id: CGetRQ(message_id, context.abstract_syntax, priority),
            context,
            encode_identifier(identifier, context),
        )
        retrieval = Retrieval(invocation, scu, transfer_syntax_uid=context.transfer_syntax)
        try:
            yield retrieval
        finally:
            receiver.refuse(scu.association)
            await end_early(invocation, scu.association, cancelled=retrieval.cancelled, cancel_s=cancel_s)


# --- C-MOVE ---------------------------------------------------------------------------------------------


@asynccontextmanager
async def move(
    scu: SCU,
    sop_class_uid: str | Sequence[str],
    identifier: Identifier,
    destination: str,
    *,
    receiver: MoveReceiver | None = None,
    open_sink: OpenSink | None = None,
    priority: int = PRIORITY_MEDIUM,
    response_s: float | None = DEFAULT_RESPONSE_S,
    cancel_s: float = CANCEL_S,
) -> AsyncIterator[Retrieval]:
    """Have the peer send instances to the application entity that it knows as `destination`.

    receiver, open_sink: for a destination that is a server of ours; every instance that belongs to this move goes to
    the sink that open_sink returns for it. response_s: the longest silence of the peer, on this association and, with a
    receiver, at the server too; then the association is aborted. cancel_s: as for `get`.
    """
    if (receiver is None) != (open_sink is None):
        raise TypeError("receiver and open_sink belong together")
    context = accepted_context(scu, sop_class_uid)
    data = encode_identifier(identifier, context)
    with ExitStack() as stack:
        expectation = None
        if receiver is not None and open_sink is not None:
            expectation = stack.enter_context(_expect(scu, receiver, open_sink))

        def request(message_id: int) -> CMoveRQ:
            if expectation is not None:
                expectation.claim(message_id)
            return CMoveRQ(message_id, context.abstract_syntax, destination, priority)

        # With an expectation the silence is watched here: the invocation sees one association only.
        invocation_s = response_s if expectation is None else None
        invocation = None
        while invocation is None:
            try:
                invocation = await scu.exchange.invoke(request, context, data, response_s=invocation_s)
            except MessageIDTaken:
                pass  # the exchange offers the next one
        retrieval = Retrieval(
            invocation,
            scu,
            transfer_syntax_uid=context.transfer_syntax,
            expectation=expectation,
            response_s=response_s,
        )
        try:
            yield retrieval
        finally:
            await end_early(invocation, scu.association, cancelled=retrieval.cancelled, cancel_s=cancel_s)
            if expectation is not None:
                # The final response has come, perhaps unread: no sub-operation will.
                expectation.given_up = not (
                    retrieval.is_over or (invocation.done and scu.association.is_open)
                )


def _expect(scu: SCU, receiver: MoveReceiver, open_sink: OpenSink) -> AbstractContextManager[Expectation]:
    agreed = scu.association.agreed
    return receiver.expect(
        open_sink, originator_ae_title=agreed.calling_ae_title, peer_ae_title=agreed.called_ae_title
    )
