"""Operations on one association, in both roles at once (PS3.7 §7.5, §8).

`Exchange` is the upper layer's user: it assembles messages, sends requests out to the services that perform
them, and brings responses back to the invocations that wait for them. Its callbacks never wait, so a C-CANCEL
or an A-ABORT is seen while any handler is at work.

Performing: a C-STORE goes to a sink fragment by fragment; every other request is collected and given to a
handler task as an `Operation`. Invoking: `invoke` sends a request within the negotiated asynchronous
operations window and returns an `Invocation`, an iterator of responses.

Who may be asked what is in `scp.Services`; the convenient ways to ask are in `scu`.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harmony.dimse import command as messages
from harmony.dimse.command import (
    CCancelRQ,
    CEchoRQ,
    CommandError,
    CStoreRQ,
    CStoreRSP,
    Message,
)
from harmony.dimse.message import DATA, LAST, MessageAssembly, MessageWriter
from harmony.dimse.sink import Sink
from harmony.dimse.source import DataSource, StreamSource
from harmony.dimse.status import DimseError, Outcome, Status, StatusClass, classify
from harmony.ul.association import Association
from harmony.ul.errors import (
    AssociationError,
    ConnectionLost,
    DeadlineExceeded,
    RemoteProtocolError,
)
from harmony.ul.negotiation import PresentationContext

if TYPE_CHECKING:
    from harmony.dimse.scp import Services

__all__ = ["Exchange", "Invocation", "Operation", "Response", "StoreRequest"]

logger = logging.getLogger("harmony.dimse")

COLLECTED_DATA_LIMIT = 1 << 20
"""Longest data set that is collected in memory: identifiers and attribute lists, never instances."""

WAITING_RESPONSES_LIMIT = 4 << 20
"""Bytes of responses that wait for a slow consumer before reading from the peer is held."""

RESPONSE_OVERHEAD = 512
"""What a waiting response counts besides its data set, so that empty ones are bounded too."""


@dataclass(frozen=True, slots=True)
class StoreRequest:
    """A C-STORE-RQ on its way to a sink: what is known before the data set comes."""

    command: CStoreRQ
    context: PresentationContext
    association: Association

    @property
    def affected_sop_class_uid(self) -> str:
        return self.command.affected_sop_class_uid

    @property
    def affected_sop_instance_uid(self) -> str:
        return self.command.affected_sop_instance_uid

    @property
    def transfer_syntax_uid(self) -> str:
        """Of the presentation context: the exact encoding of the data set's bytes."""
        return self.context.transfer_syntax

    @property
    def calling_ae_title(self) -> str:
        return self.association.agreed.calling_ae_title

    @property
    def called_ae_title(self) -> str:
        return self.association.agreed.called_ae_title


@dataclass(frozen=True, slots=True)
class Response:
    """One response to an operation we invoked; data_set is None when none came with it."""

    message: Message
    data_set: bytes | None

    @property
    def status(self) -> int:
        return int(getattr(self.message, "status", 0))

    @property
    def status_class(self) -> StatusClass:
        return classify(self.status)


class Operation:
    """A request other than C-STORE, being performed by a handler task.

    request: the message. data_set: its Identifier or list, or None. context: the presentation context it came
    on. cancelled: set when the peer sent C-CANCEL-RQ for it.
    """

    def __init__(
        self, exchange: Exchange, request: Message, data_set: bytes | None, context: PresentationContext
    ) -> None:
        self.exchange = exchange
        self.request = request
        self.data_set = data_set
        self.context = context
        self.cancelled = asyncio.Event()
        self.answered = False

    @property
    def association(self) -> Association:
        return self.exchange.association

    async def respond(self, response: Message, data_set: bytes | None = None) -> None:
        """Send a response, Pending or final; waits while the peer is slow to read. Nothing may follow the
        final one."""
        if self.answered:
            raise RuntimeError("the final response has been sent")
        if classify(getattr(response, "status", 0)) is not StatusClass.PENDING:
            self.answered = True
        await self.exchange.writer.send(self.context.presentation_context_id, response.encode(), data_set)


class Invocation:
    """An operation we invoked: iterate over its responses, the final one last.

    Leaving the iteration early does not cancel the operation; `cancel` asks for that. If the association ends
    first, the iteration raises why. response_s: the longest wait for each response; then the association is
    aborted.
    """

    def __init__(
        self, exchange: Exchange, message_id: int, context_id: int, response_s: float | None
    ) -> None:
        self.message_id = message_id
        self.done = False
        """True once the final response has come or the association has ended."""
        self._exchange = exchange
        self._context_id = context_id
        self._response_s = response_s
        self._responses: deque[Response] = deque()
        self._waiting_bytes = 0
        self._held = False
        self._waiter: asyncio.Future[None] | None = None
        self._error: AssociationError | None = None
        self._exhausted = False

    def __aiter__(self) -> Invocation:
        return self

    async def __anext__(self) -> Response:
        if self._exhausted:
            raise StopAsyncIteration
        if not self._responses and self._error is None:
            await self._wait()
        if not self._responses:
            self._exhausted = True
            raise self._error or ConnectionLost("the association has ended")
        response = self._responses.popleft()
        self._waiting_bytes -= RESPONSE_OVERHEAD + len(response.data_set or b"")
        if self._held and self._waiting_bytes <= WAITING_RESPONSES_LIMIT // 2:
            self._let_go()
        if response.status_class is not StatusClass.PENDING:
            self._exhausted = True
        return response

    async def final(self) -> Response:
        """Skip to the final response."""
        while True:
            response = await self.__anext__()
            if response.status_class is not StatusClass.PENDING:
                return response

    async def cancel(self) -> None:
        """Send C-CANCEL-RQ (PS3.7 §9.3.2.3) unless the final response has come; responses go on until that
        one."""
        if not self.done:
            await self._exchange.writer.send(self._context_id, CCancelRQ(self.message_id).encode())

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            if self._response_s is None:
                await self._waiter
            else:
                async with asyncio.timeout(self._response_s):
                    await self._waiter
        except TimeoutError:
            error = DeadlineExceeded("the DIMSE response", self._response_s or 0.0)
            self._exchange.association.abort(error)
            raise error from None
        finally:
            self._waiter = None

    def put(self, response: Response) -> None:
        """A response has come (called by the exchange)."""
        self._responses.append(response)
        self._waiting_bytes += RESPONSE_OVERHEAD + len(response.data_set or b"")
        if self._waiting_bytes > WAITING_RESPONSES_LIMIT and not self._held:
            self._held = True
            self._exchange.association.hold_reading()
        self._wake()

    def fail(self, error: AssociationError) -> None:
        """The association has ended (called by the exchange)."""
        self._error = error
        self._let_go()
        self._wake()

    def abandon(self) -> None:
        """Nobody will iterate any more: forget what waits and let the peer go on."""
        self._responses.clear()
        self._waiting_bytes = 0
        self._let_go()

    def _let_go(self) -> None:
        if self._held:
            self._held = False
            self._exchange.association.continue_reading()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class _Drain:
    """The sink for what is not wanted: a message whose answer is already known, or one that nobody
    performs."""

    def write(self, fragment: memoryview) -> None:
        pass

    def finish(self) -> Outcome:
        raise AssertionError("a drained message has its outcome already")

    def abort(self) -> None:
        pass


class _Collector:
    """Collects the data set of a request or response that is handled whole."""

    def __init__(self, then: Callable[[bytes], None]) -> None:
        self.then = then
        self.data = bytearray()

    def write(self, fragment: memoryview) -> None:
        if len(self.data) + len(fragment) > COLLECTED_DATA_LIMIT:
            raise DimseError(Status.OUT_OF_RESOURCES, f"data set larger than {COLLECTED_DATA_LIMIT} bytes")
        self.data += fragment

    def finish(self) -> Outcome:
        raise AssertionError("a collector is completed by the exchange")

    def abort(self) -> None:
        self.data.clear()


_DRAIN = _Drain()


class Exchange:
    """DIMSE on one association.

    services: what this side performs, or who says so once the association is established; None performs nothing.
    """

    def __init__(self, services: Services | Callable[[Association], Services] | None = None) -> None:
        self.receiving = False
        self.association: Association
        self.writer: MessageWriter
        self._choose = services if callable(services) else None
        self._services = None if callable(services) else services
        self._assembly = MessageAssembly()
        self._contexts: dict[int, PresentationContext] = {}
        # The message being received, between its command set and the last fragment of its data set:
        self._sink: Sink | _Drain | _Collector = _DRAIN
        self._store: StoreRequest | None = None
        self._outcome: Outcome | None = None  # decided before the data set was complete
        self._answer: bytes | None = None  # a response that is already encoded
        # Operations under way:
        self._finishing: dict[asyncio.Future[Any], tuple[StoreRequest, Sink]] = {}
        self._operations: dict[int, tuple[Operation, asyncio.Task[None]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._invocations: dict[int, Invocation] = {}
        self._last_message_id = 0
        self._window: asyncio.Semaphore
        self._holding = False
        self._release_wanted = False
        self._over = False

    # ul.AssociationUser
    # ----------------------------------------------------------------------------------------

    def established(self, association: Association) -> None:
        self.association = association
        agreed = association.agreed
        self._contexts = dict(agreed.contexts)
        self.writer = MessageWriter(association)
        self._window = asyncio.Semaphore(agreed.maximum_operations_invoked)
        if self._choose is not None:
            self._services = self._choose(association)
        if self._services is not None:
            self._services.association_established(association)

    def p_data(
        self, presentation_context_id: int, message_control_header: int, fragment: memoryview, complete: bool
    ) -> None:
        if message_control_header & 1:
            self.receiving = True
            command = self._assembly.command(
                presentation_context_id,
                fragment,
                last=bool(message_control_header & LAST),
                complete=complete,
            )
            if command is not None:
                self._command_received(command)
            return
        assembly = self._assembly
        if not assembly.expects_data or presentation_context_id != assembly.presentation_context_id:
            assembly.check_data(presentation_context_id)
        if fragment:
            try:
                self._sink.write(fragment)
            except Exception as error:
                self._sink_failed(error)
        if complete and message_control_header & LAST == DATA | LAST:
            self._data_set_complete()

    def release_requested(self) -> None:
        self._release_wanted = True
        if not self._assembly.idle:
            # PS3.8 §7.2.1.3 leaves no room for the rest of a message after A-RELEASE-RQ; waiting would be
            # forever.
            self.association.abort()
            return
        self._release_when_idle()

    def busy(self) -> bool:
        return bool(
            self._operations or self._finishing or self._invocations or self._tasks or not self._assembly.idle
        )

    def writable(self) -> None:
        self._hold_while_behind()

    def ended(self, error: AssociationError | None) -> None:
        self._over = True
        if not self._assembly.idle:
            self._abort_sink(self._sink)
            self._sink = _DRAIN
        for _, sink in self._finishing.values():
            self._abort_sink(sink)
        for operation, task in self._operations.values():
            operation.cancelled.set()
            task.cancel()
        for task in self._tasks:
            task.cancel()
        reason = error or ConnectionLost("the association was released")
        for invocation in list(self._invocations.values()):
            invocation.done = True
            invocation.fail(reason)
        self._invocations.clear()
        # Whoever waits for a place in the window finds the association over, and lets the next one know.
        self._window.release()
        if self._services is not None:
            self._services.association_ended(self.association, error)

    # Receiving: a command set ----

    def _command_received(self, encoded: bytes) -> None:
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
            self._expect(_DRAIN, error.data_set_follows)
            return
        if type(message) is CStoreRQ:
            self._store_requested(message, context, data_set_follows)
        elif isinstance(message, CCancelRQ):
            self._cancel_requested(message)
            self._expect(_DRAIN, data_set_follows)
        elif message.is_request:
            self._operation_requested(message, context, data_set_follows)
        else:
            self._response_received(message, data_set_follows)

    def _expect(self, sink: Sink | _Drain | _Collector, data_set_follows: bool) -> None:
        """The command has been understood; what follows goes to `sink`."""
        self._sink = sink
        if data_set_follows:
            self._assembly.expects_data = True
        else:
            self._message_ended()

    def _store_requested(
        self, command: CStoreRQ, context: PresentationContext, data_set_follows: bool
    ) -> None:
        request = StoreRequest(command, context, self.association)
        self._store = request
        sink: Sink | _Drain = _DRAIN
        try:
            if not context.as_scp or self._services is None:
                raise DimseError(Status.SOP_CLASS_NOT_SUPPORTED, "not performed in this role")
            if not data_set_follows:
                raise DimseError(Status.CANNOT_UNDERSTAND, "C-STORE-RQ without a data set")
            sink = self._services.open_sink(request)
        except Exception as error:
            self._outcome = self._outcome_of(error)
        self._sink = sink
        if data_set_follows:
            self._assembly.expects_data = True
        else:
            self._data_set_complete()

    def _operation_requested(
        self, request: Message, context: PresentationContext, data_set_follows: bool
    ) -> None:
        if not data_set_follows:
            self._message_ended()
            self._perform(request, None, context)
            return
        self._expect(_Collector(lambda data: self._perform(request, data, context)), True)

    def _cancel_requested(self, command: CCancelRQ) -> None:
        found = self._operations.get(command.message_id_being_responded_to)
        if found is not None:  # unknown or finished: ignored, PS3.7 §9.3.2.3
            found[0].cancelled.set()

    def _response_received(self, message: Message, data_set_follows: bool) -> None:
        message_id = int(getattr(message, "message_id_being_responded_to", 0))
        invocation = self._invocations.get(message_id)
        if invocation is None and len(self._invocations) == 1:
            # Peers exist that echo a counter of their own; with one operation outstanding it can only be that
            # one.
            (invocation,) = self._invocations.values()
            logger.warning(
                "association %d: response to message ID %d taken for %d",
                self.association.number,
                message_id,
                invocation.message_id,
            )
        if invocation is None:
            logger.warning(
                "association %d: response to unknown message ID %d", self.association.number, message_id
            )
            self._expect(_DRAIN, data_set_follows)
            return
        expected = invocation
        if data_set_follows:
            self._expect(_Collector(lambda data: self._deliver(expected, Response(message, data))), True)
        else:
            self._message_ended()
            self._deliver(expected, Response(message, None))

    def _deliver(self, invocation: Invocation, response: Response) -> None:
        if response.status_class is not StatusClass.PENDING:
            invocation.done = True
            if self._invocations.pop(invocation.message_id, None) is not None:
                self._window.release()
        invocation.put(response)
        self._release_when_idle()

    # Receiving: a data set ----

    def _sink_failed(self, error: Exception) -> None:
        """A fragment was refused: the outcome is known, the rest of the message is drained."""
        sink, self._sink = self._sink, _DRAIN
        self._outcome = self._outcome_of(error)
        self._abort_sink(sink)

    def _data_set_complete(self) -> None:
        store, sink, outcome = self._store, self._sink, self._outcome
        self._message_ended()
        if store is None:
            if isinstance(sink, _Collector):
                sink.then(bytes(sink.data))
            return
        if outcome is None:
            try:
                answer = sink.finish()
            except Exception as error:
                self._abort_sink(sink)
                answer = self._outcome_of(error)
            if not isinstance(answer, Outcome):
                self._finish_later(store, sink, answer)
                return
            outcome = answer
        self._respond_to_store(store, outcome)

    def _message_ended(self) -> None:
        context_id = self._assembly.presentation_context_id
        self._assembly.end()
        answer, self._answer = self._answer, None
        self.receiving = False
        self._store = None
        self._sink = _DRAIN
        self._outcome = None
        if answer is not None:
            self._write_response(context_id, answer)

    def _finish_later(
        self, store: StoreRequest, sink: Sink | _Drain | _Collector, answer: Awaitable[Outcome]
    ) -> None:
        future = asyncio.ensure_future(answer)
        self._finishing[future] = (store, sink)
        future.add_done_callback(self._finished)
        self._hold_while_behind()

    def _finished(self, future: asyncio.Future[Outcome]) -> None:
        store, sink = self._finishing.pop(future)
        if future.cancelled():
            outcome = Outcome(Status.CANNOT_UNDERSTAND, "processing was cancelled")
        else:
            error = future.exception()
            if isinstance(error, Exception):
                self._abort_sink(sink)
                outcome = self._outcome_of(error)
            elif error is not None:
                raise error
            else:
                outcome = future.result()
        if not self._over:
            self._respond_to_store(store, outcome)
            self._hold_while_behind()
            self._release_when_idle()

    def _respond_to_store(self, store: StoreRequest, outcome: Outcome) -> None:
        command = store.command
        response = CStoreRSP(
            command.message_id,
            outcome.status,
            command.affected_sop_class_uid,
            command.affected_sop_instance_uid,
            outcome.error_comment,
            outcome.offending_elements,
        )
        self._write_response(store.context.presentation_context_id, response.encode())

    def _write_response(self, presentation_context_id: int, command: bytes) -> None:
        """Write a small response now, or behind the message that is being written."""
        if self._over or not self.association.is_open:
            return
        if self.writer.busy:
            self._spawn(self.writer.send(presentation_context_id, command))
            return
        self.writer.write_now(presentation_context_id, command)
        if self.association.write_blocked:
            self._hold_while_behind()

    def _hold_while_behind(self) -> None:
        """Read nothing while the peer leaves our responses unread or has more outstanding than was
        negotiated.

        A peer within its window never notices; one that pipelines unasked (R27) is served, a few at a time.
        """
        association = self.association
        performing = len(self._finishing) + len(self._operations)
        behind = association.write_blocked and not self._invocations
        behind = behind or performing > association.agreed.maximum_operations_performed
        if behind and not self._holding:
            self._holding = True
            association.hold_reading()
        elif self._holding and not behind:
            self._holding = False
            association.continue_reading()

    # Performing ----

    def _perform(self, request: Message, data_set: bytes | None, context: PresentationContext) -> None:
        message_id = int(getattr(request, "message_id", 0))
        operation = Operation(self, request, data_set, context)
        handler = self._services.handler(request, context) if self._services and context.as_scp else None
        if handler is None:
            if isinstance(request, CEchoRQ) and self._services is not None and context.as_scp:
                self._write_response(
                    context.presentation_context_id, response_to(request, Outcome(Status.SUCCESS)).encode()
                )
                return
            refusal = Outcome(Status.SOP_CLASS_NOT_SUPPORTED, "no such service here")
            self._write_response(context.presentation_context_id, response_to(request, refusal).encode())
            return
        if message_id in self._operations:
            duplicate = Outcome(Status.DUPLICATE_INVOCATION, f"message ID {message_id} is in use")
            self._write_response(context.presentation_context_id, response_to(request, duplicate).encode())
            return
        task = asyncio.get_running_loop().create_task(self._run(operation, handler))
        self._operations[message_id] = (operation, task)
        task.add_done_callback(lambda _: self._operation_ended(message_id))
        self._hold_while_behind()

    def _operation_ended(self, message_id: int) -> None:
        self._operations.pop(message_id, None)
        if not self._over:
            self._hold_while_behind()
            self._release_when_idle()

    async def _run(self, operation: Operation, handler: Handler) -> None:
        """A handler's outermost edge: whatever it does, the request is answered or the association is
        gone."""
        try:
            outcome = handler(operation)
            if inspect.isawaitable(outcome):
                outcome = await outcome
            if outcome is None:
                outcome = Outcome(Status.SUCCESS)
        except asyncio.CancelledError:
            raise
        except AssociationError:
            return
        except Exception as error:
            outcome = self._outcome_of(error, Status.PROCESSING_FAILURE)
        if not operation.answered and not self._over:
            operation.answered = True
            try:
                await self.writer.send(
                    operation.context.presentation_context_id,
                    response_to(operation.request, outcome).encode(),
                )
            except AssociationError:
                pass

    def _outcome_of(self, error: Exception, status: int = Status.CANNOT_UNDERSTAND) -> Outcome:
        """DimseError says what to answer; anything else is a defect of the handler and is logged as one."""
        if isinstance(error, DimseError):
            return error.outcome
        logger.error("association %d: a handler failed", self.association.number, exc_info=error)
        return Outcome(status, "processing error")

    def _abort_sink(self, sink: Sink | _Drain | _Collector) -> None:
        try:
            sink.abort()
        except Exception:
            logger.exception("association %d: a sink failed in abort()", self.association.number)

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.get_running_loop().create_task(_quietly(work))
        self._tasks.add(task)
        task.add_done_callback(self._spawned_ended)

    def _spawned_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not self._over:
            self._release_when_idle()

    def _release_when_idle(self) -> None:
        """Answer outstanding work before A-RELEASE-RP (P-DATA may still be sent in Sta8).

        Our own invocations are not waited for: a peer that releases will not answer them any more.
        """
        performing = self._operations or self._finishing or self._tasks
        if self._release_wanted and not self._over and not performing:
            self.association.respond_release()

    # Invoking ----

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
        first; concurrent calls are served in order. Raises what ended the association. data is closed by the
        caller.
        """
        await self._window.acquire()
        if self._over or not self.association.is_open:
            self._window.release()
            raise self.association.error or ConnectionLost("the association has ended")
        message_id = self._next_message_id()
        invocation = Invocation(self, message_id, context.presentation_context_id, response_s)
        self._invocations[message_id] = invocation
        try:
            await self.writer.send(context.presentation_context_id, make_request(message_id).encode(), data)
        except BaseException:
            if self._invocations.pop(message_id, None) is not None:
                self._window.release()
            raise
        return invocation

    def _next_message_id(self) -> int:
        """Unique among the outstanding ones; unique on the association until it wraps at 65535."""
        message_id = self._last_message_id
        while True:
            message_id = message_id % 0xFFFF + 1
            if message_id not in self._invocations:
                self._last_message_id = message_id
                return message_id


Handler = Callable[[Operation], Awaitable[Outcome | None] | Outcome | None]
"""Performs an operation. It may send responses itself; the Outcome it returns is the final one if it did
not."""


async def _quietly(work: Awaitable[None]) -> None:
    try:
        await work
    except AssociationError:
        pass  # the association has ended: its users know


_RESPONSE_TYPES: dict[int, type[Any]] = {
    message_type.command_field: message_type
    for message_type in vars(messages).values()
    if isinstance(message_type, type)
    and issubclass(message_type, messages._Message)
    and hasattr(message_type, "command_field")
    and not message_type.is_request
}


def response_to(request: Message, outcome: Outcome) -> Message:
    """The final response to a request, of the type that belongs to it, with an outcome and nothing else to
    say."""
    response_type = _RESPONSE_TYPES[request.command_field | 0x8000]
    uid = getattr(request, "affected_sop_class_uid", "") or getattr(request, "requested_sop_class_uid", "")
    response: Message = response_type(
        message_id_being_responded_to=getattr(request, "message_id", 0),
        status=outcome.status,
        affected_sop_class_uid=uid,
        error_comment=outcome.error_comment,
    )
    return response
