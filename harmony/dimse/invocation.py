"""Operations that we invoke on an association: requests out, responses back (PS3.7 §7.5, §9, §D.3.3.3).

`Invocations` sends a request when the negotiated asynchronous operations window has a place for it, gives it a
Message ID, and knows to which request a response belongs. An `Invocation` is one of them, an iterator of
`Response`s with a byte limit that reaches the peer and a deadline that counts while nothing is heard of it.

`harmony.dimse.exchange` brings the responses, `harmony.dimse.scu` and handlers ask.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

from harmony.dimse.command import CCancelRQ, Message
from harmony.dimse.message import MessageWriter
from harmony.dimse.observer import Observer
from harmony.dimse.source import DataSource, StreamSource
from harmony.dimse.status import Status, StatusClass, classify
from harmony.ul.association import Association
from harmony.ul.errors import AssociationError, AssociationReleased, DeadlineExceeded
from harmony.ul.negotiation import PresentationContext

__all__ = ["Incoming", "Invocation", "Invocations", "Response"]

logger = logging.getLogger("harmony.dimse")

WAITING_RESPONSES_LIMIT = 4 << 20
"""Bytes of responses that wait for a slow consumer before reading from the peer is held."""

RESPONSE_OVERHEAD = 512
"""What a waiting response counts besides its data set, so that empty ones are bounded too."""


class Incoming(Protocol):
    """What the peer does besides responding: the instances of a C-GET come between its responses."""

    @property
    def requests_received(self) -> int:
        """Requests that have begun to arrive on this association."""

    @property
    def storing(self) -> bool:
        """True while a message arrives, or a data set that has arrived is being stored."""


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

    @property
    def is_pending(self) -> bool:
        """Whether more responses follow: FF00 and FF01 (PS3.7 Annex C)."""
        return self.status & 0xFFFE == Status.PENDING


class Invocation:
    """An operation we invoked: iterate over its responses, the final one last.

    Leaving the iteration early does not cancel the operation: `cancel` asks the peer for that, and `abandon`
    says that nobody listens any more. If the association ends first, the iteration raises why.
    """

    def __init__(
        self,
        invocations: Invocations,
        request: Message,
        message_id: int,
        *,
        context_id: int,
        response_s: float | None,
    ) -> None:
        """response_s: the longest silence before each response; then the association is aborted."""
        self.request = request
        self.message_id = message_id
        self.begun_at = perf_counter()
        self.done = False
        """True once the final response has come or the association has ended."""
        self._invocations = invocations
        self._context_id = context_id
        self._response_s = response_s
        self._timer: asyncio.TimerHandle | None = None
        self._requests_seen = 0
        self._responses: deque[Response] = deque()
        self._waiting_bytes = 0
        self._held = False
        self._abandoned = False
        self._waiter: asyncio.Future[None] | None = None
        self._error: AssociationError | None = None
        self._final: Response | None = None

    def __aiter__(self) -> Invocation:
        return self

    async def __anext__(self) -> Response:
        if self._final is not None:
            raise StopAsyncIteration
        while not self._responses:
            if self._error is not None:
                raise self._error
            if self._abandoned:
                raise RuntimeError("the invocation was abandoned")
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        response = self._responses.popleft()
        self._waiting_bytes -= RESPONSE_OVERHEAD + len(response.data_set or b"")
        if self._held and self._waiting_bytes <= WAITING_RESPONSES_LIMIT // 2:
            self._let_go()
        if not response.is_pending:
            self._final = response
        return response

    async def final(self) -> Response:
        """Skip to the final response."""
        while self._final is None:
            await self.__anext__()
        return self._final

    async def cancel(self) -> None:
        """Send C-CANCEL-RQ (PS3.7 §9.3.2.3) unless the final response has come; responses go on until that
        one."""
        if not self.done:
            await self._invocations.writer.send(self._context_id, CCancelRQ(self.message_id).encode())

    def abandon(self) -> None:
        """Nobody will iterate any more: drop what waits and what comes. The operation goes on at the peer and
        keeps its place in the window until the final response."""
        self._abandoned = True
        self._responses.clear()
        self._waiting_bytes = 0
        self._let_go()
        self._wake()

    # For Invocations ----

    def sent(self) -> None:
        """The request has left: the peer's time begins."""
        if not self.done:
            self._restart_timer()

    def put(self, response: Response) -> None:
        """A response has come."""
        self.done = self.done or not response.is_pending
        self._restart_timer()
        if self._abandoned:
            return
        self._responses.append(response)
        self._waiting_bytes += RESPONSE_OVERHEAD + len(response.data_set or b"")
        if self._waiting_bytes > WAITING_RESPONSES_LIMIT and not self._held and not self.done:
            self._held = True
            self._invocations.association.hold_reading()
        self._wake()

    def fail(self, error: AssociationError) -> None:
        """The association has ended, or will without a response."""
        self.done = True
        self._error = error
        self._restart_timer()
        self._let_go()
        self._wake()

    def _restart_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._response_s is not None and not self.done:
            self._requests_seen = self._invocations.incoming.requests_received
            self._timer = asyncio.get_running_loop().call_later(self._response_s, self._silence)

    def _silence(self) -> None:
        """No response for response_s. That is the peer's fault unless it sent us instances meanwhile, or we do not
        read from it ourselves."""
        incoming = self._invocations.incoming
        if self._held or incoming.storing or incoming.requests_received != self._requests_seen:
            self._restart_timer()
            return
        self._timer = None
        self._invocations.association.abort(DeadlineExceeded("the DIMSE response", self._response_s or 0.0))

    def _let_go(self) -> None:
        if self._held:
            self._held = False
            self._invocations.association.continue_reading()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Invocations:
    """The operations outstanding on one association that this side invoked."""

    def __init__(
        self,
        association: Association,
        writer: MessageWriter,
        incoming: Incoming,
        *,
        observer: Observer | None = None,
    ) -> None:
        self._observer = observer
        self.association = association
        self.writer = writer
        self.incoming = incoming
        self._outstanding: dict[int, Invocation] = {}
        self._last_message_id = 0
        self._highest_message_id = 0
        self._window = asyncio.Semaphore(association.agreed.maximum_operations_invoked)
        self._over: AssociationError | None = None

    def __len__(self) -> int:
        return len(self._outstanding)

    async def invoke(
        self,
        make_request: Callable[[int], Message],
        context: PresentationContext,
        data: bytes | DataSource | StreamSource | None = None,
        *,
        response_s: float | None = None,
    ) -> Invocation:
        """Send a request and return its Invocation once the request has left; see `Exchange.invoke`."""
        await self._window.acquire()
        invocation: Invocation | None = None
        message_id = self._next_message_id()
        try:
            request = make_request(message_id)
            command = request.encode()
            async with self.writer.turn:
                if self._over is not None:
                    raise self._over
                invocation = self._outstanding[message_id] = Invocation(
                    self,
                    request,
                    message_id,
                    context_id=context.presentation_context_id,
                    response_s=response_s,
                )
                await self.writer.write(context.presentation_context_id, command, data)
        except BaseException as error:
            if invocation is None:
                self._window.release()
            elif isinstance(error, asyncio.CancelledError):
                # Cancelled while the last bytes left: the peer has the request and will answer it.
                invocation.abandon()
                invocation.sent()
            else:
                self._forget(invocation)
            raise
        invocation.sent()
        return invocation

    def find(self, response: Message) -> Invocation | None:
        """The invocation that a response belongs to; None for one that nobody waits for, which is logged."""
        message_id = int(getattr(response, "message_id_being_responded_to", 0))
        invocation = self._outstanding.get(message_id)
        if invocation is not None:
            if _answers(response, invocation.request):
                return invocation
        elif len(self._outstanding) == 1:
            (only,) = self._outstanding.values()
            if _answers(response, only.request) and self._may_be_meant(response, message_id, only.request):
                logger.warning(
                    "association %d: response to message ID %d taken for %d",
                    self.association.number,
                    message_id,
                    only.message_id,
                )
                return only
        logger.warning(
            "association %d: %s to message ID %d, which has no such operation outstanding: dropped",
            self.association.number,
            type(response).__name__,
            message_id,
        )
        return None

    def _may_be_meant(self, response: Message, message_id: int, request: Message) -> bool:
        """Whether a response with a strange Message ID is for the only operation there is.

        Peers exist that put a counter of their own there. But a second response to an earlier request must not
        be taken for the answer to this one: that would call an object stored that is not.
        """
        named = getattr(response, "affected_sop_instance_uid", "")
        wanted = getattr(request, "affected_sop_instance_uid", "")
        if named and wanted:
            return bool(named == wanted)
        return not 0 < message_id <= self._highest_message_id

    def deliver(self, invocation: Invocation, response: Response) -> None:
        """Give a response to the invocation that `find` returned for it."""
        if not response.is_pending:
            self._forget(invocation)
            self._observe(invocation, response.status)
        invocation.put(response)

    def end(self, error: AssociationError | None) -> None:
        """No response will come any more: the association is over, or the peer has asked to release it."""
        if self._over is not None:
            return
        self._over = error or AssociationReleased("the association was released")
        for invocation in list(self._outstanding.values()):
            self._observe(invocation, None)
            invocation.fail(self._over)
        self._outstanding.clear()
        # Whoever waits for a place finds that it is over, and lets the next one know.
        self._window.release()

    def _observe(self, invocation: Invocation, status: int | None) -> None:
        if self._observer is not None:
            elapsed_s = perf_counter() - invocation.begun_at
            self._observer.invoked(type(invocation.request), status, elapsed_s)

    def _forget(self, invocation: Invocation) -> None:
        if self._outstanding.pop(invocation.message_id, None) is not None:
            self._window.release()

    def _next_message_id(self) -> int:
        """Unique among the outstanding ones; unique on the association until it wraps at 65535."""
        message_id = self._last_message_id
        while True:
            message_id = message_id % 0xFFFF + 1
            if message_id not in self._outstanding:
                self._last_message_id = message_id
                self._highest_message_id = max(self._highest_message_id, message_id)
                return message_id


def _answers(response: Message, request: Message) -> bool:
    return response.command_field == request.command_field | 0x8000
