"""DIMSE on one association, in both roles at once (PS3.7 §7.5, §8).

`Exchange` is the upper layer's user: it assembles messages, brings requests to the services that perform them and
responses to the invocations that wait for them. Its callbacks never wait, so a C-CANCEL or an A-ABORT is seen
while any handler is at work.

A C-STORE goes to a sink fragment by fragment. Every other request is collected and given to a handler task as an
`Operation` (`harmony.dimse.operation`). What this side invokes is in `harmony.dimse.invocation`; who may be asked
what is in `scp.Services`; the convenient ways to ask are in `scu`.

Roles (PS3.7 §D.3.3.4) decide what this side invokes, not what it performs: archives send C-GET sub-operations, and
N-EVENT-REPORTs, without having negotiated theirs. What is performed depends on the services given.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Coroutine
from time import perf_counter
from typing import TYPE_CHECKING, Any

from harmony.dimse import command as messages
from harmony.dimse.command import CCancelRQ, CEchoRQ, CStoreRQ, Message
from harmony.dimse.command_set import CommandError
from harmony.dimse.invocation import Invocation, Invocations, Response
from harmony.dimse.message import (
    COMMAND,
    DATA,
    LAST,
    PDU_AND_PDV_HEADERS,
    MessageAssembly,
    MessageWriter,
)
from harmony.dimse.observer import Observer
from harmony.dimse.operation import Handler, Operation, StoreRequest, response_to
from harmony.dimse.sink import COLLECTED_DATA_LIMIT, DRAIN, Collector, Drain, Sink
from harmony.dimse.sop_class import VERIFICATION
from harmony.dimse.source import DataSource, StreamSource
from harmony.dimse.status import SUCCESS_OUTCOME, DimseError, Outcome, Status
from harmony.dimse.store_template import StoreTemplate
from harmony.ul.association import Association
from harmony.ul.errors import (
    AssociationAborted,
    AssociationError,
    AssociationReleased,
    LocalProtocolError,
    RemoteProtocolError,
)
from harmony.ul.held import HELD
from harmony.ul.negotiation import PresentationContext

if TYPE_CHECKING:
    from harmony.dimse.scp import Services

__all__ = ["Exchange", "Handler", "Invocation", "Operation", "Response", "StoreRequest"]

logger = logging.getLogger("harmony.dimse")

MAXIMUM_FRAGMENTS = 256
"""Of an object that is stored in one go. A receive buffer holds 40 of 16 KiB, and one writev(2) takes 1024."""
MAXIMUM_TEMPLATES = 64
"""Kept per association: one for each presentation context and length of a UID, of which a study has three or four."""


class Exchange:
    """DIMSE on one association.

    services: what this side performs, or who says so once the association is established; None performs nothing.
    observer: None takes that of the services, if they have one.
    """

    def __init__(
        self,
        services: Services | Callable[[Association], Services] | None = None,
        *,
        observer: Observer | None = None,
    ) -> None:
        self.receiving = False
        self.requests_received = 0
        self.association: Association
        self.writer: MessageWriter
        self._choose = services if callable(services) else None
        self._services = None if callable(services) else services
        self._observer = observer
        self._assembly = MessageAssembly()
        self._contexts: dict[int, PresentationContext] = {}
        # The message being received, between its command set and the last fragment of its data set:
        self._sink: Sink | Drain | Collector = DRAIN
        self._store: StoreRequest | None = None
        self._outcome: Outcome | None = None  # decided before the data set was complete
        self._answer: bytes | None = None  # a response that is already encoded
        # C-STOREs like earlier ones, by presentation context and length; None where there is no short cut:
        self._templates: dict[tuple[int, int], StoreTemplate | None] = {}
        # One whose data set is next, its command set, and since when; and what has come of it:
        self._announced: tuple[StoreTemplate, bytes, float] | None = None
        self._fragments: list[memoryview] = []
        # Operations under way:
        self._finishing: dict[asyncio.Future[Any], tuple[StoreRequest, Sink]] = {}
        self._operations: dict[int, Operation] = {}  # not answered yet, by Message ID
        self._tasks: set[asyncio.Task[None]] = set()  # handlers, and responses that wait for their turn
        self._invocations: Invocations
        self._holding = False
        self._release_wanted = False
        self._over = False

    @property
    def storing(self) -> bool:
        """True while a message arrives, or a data set that has arrived is being stored."""
        return self.receiving or bool(self._finishing)

    async def invoke(
        self,
        make_request: Callable[[int], Message],
        context: PresentationContext,
        data: bytes | DataSource | StreamSource | None = None,
        *,
        response_s: float | None = None,
    ) -> Invocation:
        """Send a request and return its Invocation once the request has left.

        make_request: called with the message ID. Waits for a place in the asynchronous operations window
        first; concurrent calls are served in order. response_s: the longest silence of the peer before each
        response; then the association is aborted. data is closed by the caller. Raises what ended the
        association, and whatever make_request and a source raise.
        """
        return await self._invocations.invoke(make_request, context, data, response_s=response_s)

    # ul.AssociationUser
    # ----------------------------------------------------------------------------------------

    def established(self, association: Association) -> None:
        self.association = association
        self._contexts = dict(association.agreed.contexts)
        self.writer = MessageWriter(association)
        if self._choose is not None:
            self._services = self._choose(association)
        if self._observer is None and self._services is not None:
            self._observer = self._services.observer
        self._invocations = Invocations(association, self.writer, self, observer=self._observer)
        if self._observer is not None:
            self._observer.established(association)
        if self._services is not None:
            self._services.association_established(association)

    def p_data(
        self, presentation_context_id: int, message_control_header: int, fragment: memoryview, complete: bool
    ) -> None:
        assembly = self._assembly
        if message_control_header & COMMAND:
            self.receiving = True
            command = assembly.command(
                presentation_context_id,
                fragment,
                last=bool(message_control_header & LAST),
                complete=complete,
            )
            if command is None:
                return
            template = self._templates.get((presentation_context_id, len(command)))
            if template is not None and template.matches(command):
                self._announced = (template, command, perf_counter())
                assembly.expects_data = True
            else:
                self._command_received(command)
            return
        if not assembly.expects_data or presentation_context_id != assembly.presentation_context_id:
            assembly.check_data(presentation_context_id)
        if self._announced is not None:
            self._fragments.append(fragment)
            if complete and message_control_header & LAST:
                self._stored_whole()
            elif len(self._fragments) >= MAXIMUM_FRAGMENTS:
                self._go_the_long_way()
            return
        if fragment:
            self._write(fragment)
        if complete and message_control_header & LAST == DATA | LAST:
            self._data_set_complete()

    def p_data_paused(self) -> None:
        if self._announced is not None:
            self._go_the_long_way()

    def release_requested(self) -> None:
        if not self._assembly.idle:
            # PS3.8 §7.2.1.3 leaves no room for the rest of a message after A-RELEASE-RQ; waiting would be
            # forever.
            self.association.abort(
                AssociationAborted(
                    "aborted: A-RELEASE-RQ in the middle of a message, expected the rest of it",
                    by_peer=False,
                )
            )
            return
        self._release_wanted = True
        # The peer may not send P-DATA any more, so nothing that is outstanding will be answered.
        self._invocations.end(AssociationReleased("the peer releases the association"))
        self._release_when_idle()

    def busy(self) -> bool:
        return bool(self._tasks or self._finishing or self._invocations or not self._assembly.idle)

    def writable(self) -> None:
        pass  # the writer waits by itself

    def ended(self, error: AssociationError | None) -> None:
        self._over = True
        sink, self._sink = self._sink, DRAIN
        self._store = self._outcome = self._answer = self._announced = None
        self._fragments = []
        self._abort_sink(sink)
        for _, finishing in self._finishing.values():
            self._abort_sink(finishing)
        for operation in self._operations.values():
            operation.cancelled.set()
        for task in self._tasks:
            task.cancel()
        self._invocations.end(error)
        if self._services is not None:
            self._services.association_ended(self.association, error)
        if self._observer is not None:
            self._observer.ended(self.association, error)

    # Receiving: a command set ----

    def _command_received(self, encoded: bytes, *, received_at: float = 0.0) -> None:
        """received_at: when it was, if that is not now."""
        assembly = self._assembly
        context = self._contexts.get(assembly.presentation_context_id)
        if context is None:
            raise RemoteProtocolError(
                f"message on presentation context {assembly.presentation_context_id}, which was not accepted",
                reason=5,
            )
        try:
            message, data_set_follows = messages.decode(encoded)
        except CommandError as error:
            if error.fatal:
                raise RemoteProtocolError(str(error)) from error
            logger.warning("association %d: %s", self.association.number, error)
            self._answer = error.response
            self._expect(DRAIN, error.data_set_follows)
            return
        if type(message) is CStoreRQ:
            self._store_requested(encoded, message, context, data_set_follows, received_at)
        elif isinstance(message, CCancelRQ):
            self._cancel_requested(message)
            self._expect(DRAIN, data_set_follows)
        elif message.is_request:
            self._operation_requested(message, context, data_set_follows)
        else:
            self._response_received(message, data_set_follows)

    def _expect(self, sink: Drain | Collector, data_set_follows: bool) -> None:
        """The command has been understood; what follows goes to `sink`."""
        self._sink = sink
        if data_set_follows:
            self._assembly.expects_data = True
        else:
            self._message_ended()

    def _store_requested(
        self,
        encoded: bytes,
        command: CStoreRQ,
        context: PresentationContext,
        data_set_follows: bool,
        received_at: float,
    ) -> None:
        self.requests_received += 1
        if not received_at and self._observer is not None:
            received_at = perf_counter()
        request = StoreRequest(command, context, self.association, received_at)
        sink: Sink | Drain = DRAIN
        outcome: Outcome | None = None
        try:
            if self._services is None:
                raise DimseError(Status.SOP_CLASS_NOT_SUPPORTED, "no such service here")
            if not data_set_follows:
                raise DimseError(Status.CANNOT_UNDERSTAND, "C-STORE-RQ without a data set")
            sink = self._services.open_sink(request)
        except Exception as error:
            outcome = self._outcome_of(error)
        if self._over:  # whoever opened the sink ended the association
            self._abort_sink(sink)
            return
        self._store, self._sink, self._outcome = request, sink, outcome
        key = (context.presentation_context_id, len(encoded))
        if outcome is None and key not in self._templates and len(self._templates) < MAXIMUM_TEMPLATES:
            self._templates[key] = self._template_of(encoded, request)
        if data_set_follows:
            self._assembly.expects_data = True
        else:
            self._data_set_complete()

    def _template_of(self, encoded: bytes, request: StoreRequest) -> StoreTemplate | None:
        """How to recognise more of the kind, if there is a short cut for it."""
        store = None if self._services is None else self._services.whole_store(request)
        if store is None:
            return None
        return StoreTemplate.of(
            encoded,
            request.command,
            store,
            presentation_context_id=request.context.presentation_context_id,
            maximum_length=self.association.agreed.peer_maximum_length,
        )

    def _operation_requested(
        self, request: Message, context: PresentationContext, data_set_follows: bool
    ) -> None:
        self.requests_received += 1
        if not data_set_follows:
            self._message_ended()
            self._perform(request, None, context)
            return

        def collected(data: bytes | None) -> None:
            if data is not None:
                self._perform(request, data, context)
                return
            self._answer_at_once(
                request,
                context,
                Outcome(Status.OUT_OF_RESOURCES, f"data set larger than {COLLECTED_DATA_LIMIT} bytes")
                if HELD.has_room(0)
                else Outcome(Status.OUT_OF_RESOURCES, "too much memory is in use"),
            )

        self._expect(Collector(collected, room=HELD), True)

    def _cancel_requested(self, command: CCancelRQ) -> None:
        operation = self._operations.get(command.message_id_being_responded_to)
        if operation is not None:  # unknown or finished: ignored, PS3.7 §9.3.2.3
            operation.cancelled.set()

    def _response_received(self, message: Message, data_set_follows: bool) -> None:
        invocation = self._invocations.find(message)
        if invocation is None:
            self._expect(DRAIN, data_set_follows)
            return
        expected = invocation
        if not data_set_follows:
            self._message_ended()
            self._invocations.deliver(expected, Response(message, None))
            return

        def collected(data: bytes | None) -> None:
            if data is None:
                raise RemoteProtocolError(
                    f"{type(message).__name__} with a data set larger than {COLLECTED_DATA_LIMIT} bytes"
                )
            self._invocations.deliver(expected, Response(message, data))

        self._expect(Collector(collected), True)

    # Receiving: a data set ----

    def _go_the_long_way(self, *, complete: bool = False) -> None:
        """Do with an announced C-STORE what is done with all others. complete: all fragments have come."""
        assert self._announced is not None
        _, command, received_at = self._announced
        fragments, self._fragments, self._announced = self._fragments, [], None
        self._command_received(command, received_at=received_at)
        for fragment in fragments:
            if fragment:
                self._write(fragment)
        if complete and not self._over:
            self._data_set_complete()

    def _stored_whole(self) -> None:
        """Store and answer in one go what has come completely."""
        assert self._announced is not None
        template, command, received_at = self._announced
        try:
            outcome = template.store(command[template.instance_at : template.instance_end], self._fragments)
        except Exception as error:
            outcome = self._outcome_of(error)
        if outcome is None:
            self._go_the_long_way(complete=True)
            return
        self._announced = None
        self._fragments.clear()
        self.requests_received += 1
        context_id = self._assembly.presentation_context_id
        self._message_ended()
        if outcome is not SUCCESS_OUTCOME:
            request = messages.decode(command)[0]
            assert isinstance(request, CStoreRQ)
            store = StoreRequest(request, self._contexts[context_id], self.association, received_at)
            self._respond_to_store(store, outcome)
            return
        if self._observer is not None:
            self._observer.performed(CStoreRQ, 0x0000, perf_counter() - received_at)
        response = template.success(command)
        association = self.association
        if self._over or self.writer.turn.locked() or association.write_blocked:
            self._write_response(context_id, response[PDU_AND_PDV_HEADERS:])
            return
        try:
            association.write_p_data(response)
        except LocalProtocolError:
            pass  # as in _write_response

    def _write(self, fragment: memoryview) -> None:
        """To the sink. When it is refused the outcome is known, and the rest of the message is drained."""
        try:
            self._sink.write(fragment)
        except Exception as error:
            sink, self._sink = self._sink, DRAIN
            self._outcome = self._outcome_of(error)
            self._abort_sink(sink)

    def _data_set_complete(self) -> None:
        store, sink, outcome = self._store, self._sink, self._outcome
        self._message_ended()
        if store is None:
            if isinstance(sink, Collector):
                sink.complete()
            return
        if outcome is None:
            assert not isinstance(sink, Drain | Collector)
            try:
                answer = sink.finish()
                if not isinstance(answer, Outcome):
                    self._finish_later(store, sink, answer)
                    return
                outcome = answer
            except Exception as error:
                self._abort_sink(sink)
                outcome = self._outcome_of(error)
        self._respond_to_store(store, outcome)

    def _message_ended(self) -> None:
        context_id = self._assembly.presentation_context_id
        self._assembly.end()
        answer, self._answer = self._answer, None
        self.receiving = False
        self._store = None
        self._sink = DRAIN
        self._outcome = None
        if answer is not None:
            self._write_response(context_id, answer)

    def _finish_later(self, store: StoreRequest, sink: Sink, answer: Awaitable[Outcome]) -> None:
        future = asyncio.ensure_future(answer)
        self._finishing[future] = (store, sink)
        future.add_done_callback(self._finished)
        self._hold_while_behind()

    def _finished(self, future: asyncio.Future[Outcome]) -> None:
        store, sink = self._finishing.pop(future)
        if self._over:
            if not future.cancelled():
                future.exception()  # counts as seen
            return
        try:
            outcome = future.result()
        except asyncio.CancelledError:
            self._abort_sink(sink)
            outcome = Outcome(Status.CANNOT_UNDERSTAND, "processing was cancelled")
        except Exception as error:
            self._abort_sink(sink)
            outcome = self._outcome_of(error)
        self._respond_to_store(store, outcome)
        self._hold_while_behind()
        self._release_when_idle()

    def _respond_to_store(self, store: StoreRequest, outcome: Outcome) -> None:
        command = store.command
        if outcome is SUCCESS_OUTCOME:
            response = messages.encode_store_rsp(
                command.message_id,
                0x0000,
                command.affected_sop_class_uid,
                command.affected_sop_instance_uid,
            )
        else:
            response = self._encode(command, outcome)
        if self._observer is not None:
            status = _status_of(outcome, Status.CANNOT_UNDERSTAND)
            self._observer.performed(CStoreRQ, status, perf_counter() - store.received_at)
        self._write_response(store.context.presentation_context_id, response)

    # Performing ----

    def _perform(self, request: Message, data_set: bytes | None, context: PresentationContext) -> None:
        message_id = int(getattr(request, "message_id", 0))
        services = self._services
        handler = services.handler(request, context) if services is not None else None
        echoed = isinstance(request, CEchoRQ) and services is not None and services.support_for(VERIFICATION)
        answer: Outcome | None = None
        if handler is None and not echoed:
            answer = Outcome(Status.SOP_CLASS_NOT_SUPPORTED, "no such service here")
        elif services is not None:
            try:
                services.check_authorized(request, context, self.association)
            except Exception as error:
                answer = self._outcome_of(error, Status.PROCESSING_FAILURE)
        if answer is None and handler is not None and message_id in self._operations:
            answer = Outcome(Status.DUPLICATE_INVOCATION, f"message ID {message_id} is in use")
        if answer is not None or handler is None:
            self._answer_at_once(request, context, answer or SUCCESS_OUTCOME)
        else:
            operation = Operation(self, request, data_set, context)
            self._operations[message_id] = operation
            self._begin(self._run(operation, handler))

    def _answer_at_once(self, request: Message, context: PresentationContext, outcome: Outcome) -> None:
        if self._observer is not None:
            self._observer.performed(type(request), outcome.status, 0.0)
        self._write_response(context.presentation_context_id, self._encode(request, outcome))

    async def _run(self, operation: Operation, handler: Handler) -> None:
        """A handler's outermost edge: whatever it does, the request is answered or the association is
        gone."""
        try:
            outcome = handler(operation)
            if inspect.isawaitable(outcome):
                outcome = await outcome
        except asyncio.CancelledError:
            self._answer_operation(operation, Outcome(Status.PROCESSING_FAILURE, "processing was cancelled"))
            raise
        except Exception as error:
            outcome = self._outcome_of(error, Status.PROCESSING_FAILURE)
        self._answer_operation(operation, SUCCESS_OUTCOME if outcome is None else outcome)

    def _answer_operation(self, operation: Operation, outcome: Outcome) -> None:
        if not operation.answered:
            self.operation_answered(operation, _status_of(outcome, Status.PROCESSING_FAILURE))
            response = self._encode(operation.request, outcome)
            self._write_response(operation.context.presentation_context_id, response)

    def operation_answered(self, operation: Operation, status: int) -> None:
        """The final response is about to leave (called by Operation.respond as well)."""
        operation.answered = True
        del self._operations[getattr(operation.request, "message_id", 0)]
        if self._observer is not None:
            elapsed_s = perf_counter() - operation.received_at
            self._observer.performed(type(operation.request), status, elapsed_s)

    def _encode(self, request: Message, outcome: Outcome) -> bytes:
        try:
            return response_to(request, outcome).encode()
        except Exception:
            logger.exception("association %d: %r is no answer", self.association.number, outcome)
            status = Status.CANNOT_UNDERSTAND if isinstance(request, CStoreRQ) else Status.PROCESSING_FAILURE
            return response_to(request, Outcome(status, "processing error")).encode()

    def _outcome_of(self, error: Exception, status: int = Status.CANNOT_UNDERSTAND) -> Outcome:
        """DimseError says what to answer; anything else is a defect of the handler and is logged as one, except
        an association of its own that did not work out."""
        if isinstance(error, DimseError):
            return error.outcome
        if isinstance(error, AssociationError):
            if not self._over:
                logger.warning("association %d: a handler failed: %s", self.association.number, error)
        else:
            logger.error("association %d: a handler failed", self.association.number, exc_info=error)
        return Outcome(status, "processing error")

    def _abort_sink(self, sink: Sink | Drain | Collector) -> None:
        try:
            sink.abort()
        except Exception:
            logger.exception("association %d: a sink failed in abort()", self.association.number)

    # Responding, and pacing ----

    def _write_response(self, presentation_context_id: int, command: bytes) -> None:
        """Write a response without data set now, or behind what is being written."""
        association = self.association
        if self._over or not association.is_open:
            return
        if self.writer.turn.locked() or association.write_blocked:
            self._begin(self._write_in_turn(presentation_context_id, command))
            return
        try:
            self.writer.write_now(presentation_context_id, command)
        except AssociationReleased:
            pass  # we are releasing: what the peer asked in that moment cannot be answered any more

    async def _write_in_turn(self, presentation_context_id: int, command: bytes) -> None:
        try:
            await self.writer.send(presentation_context_id, command)
        except AssociationError:
            pass  # nobody is there to be answered

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)
        self._hold_while_behind()

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not self._over:
            self._hold_while_behind()
            self._release_when_idle()

    def _hold_while_behind(self) -> None:
        """Read nothing while the peer has more outstanding, or more responses left unread, than was negotiated.

        A peer within its window never notices; one that pipelines unasked (R27) is served, a few at a time.
        """
        association = self.association
        performing = len(self._finishing) + len(self._tasks)
        behind = performing > association.agreed.maximum_operations_performed
        if behind and not self._holding:
            self._holding = True
            association.hold_reading()
        elif self._holding and not behind:
            self._holding = False
            association.continue_reading()

    def _release_when_idle(self) -> None:
        """Answer outstanding work before A-RELEASE-RP (P-DATA may still be sent in Sta8)."""
        if self._release_wanted and not self._over and not self._tasks and not self._finishing:
            self.association.respond_release()


def _status_of(outcome: Outcome, otherwise: int) -> int:
    """For an observer. What a sink or handler returned may be no Outcome at all; `_encode` then answers another one."""
    return outcome.status if isinstance(outcome, Outcome) else otherwise
