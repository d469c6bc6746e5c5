"""Instances on their way through: from C-STORE sub-operations to whoever asks for one after the other.

A C-GET or C-MOVE of ours brings instances when the PACS likes; the consumer of a Selection takes them when it likes.
`Arrivals` is between the two. Its sinks give each data set to the consumer while it arrives; one that comes before its
turn waits with a bounded buffer, and its association is not read from when that is full. A sub-operation is answered
when its data has been read to the end, or the next instance is asked for.

When the association of an instance ends, reading its data raises why. One `Arrivals` is for one retrieve.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Final

from harmony.dimse.operation import StoreRequest
from harmony.dimse.scu import Instance
from harmony.dimse.sink import DataStream, Sink
from harmony.dimse.status import SUCCESS_OUTCOME, DimseError, Outcome, Status
from harmony.ul.errors import ConnectionLost

__all__ = ["Arrivals"]

MAXIMUM_BUFFERED_BYTES: Final = 1 << 20
"""Of each association, while the consumer is behind."""

_LEFT = Outcome(Status.OUT_OF_RESOURCES, "the retrieve was cancelled")


class Arrivals:
    """Iterate over it for the instances; each one's data is valid until the next is asked for."""

    def __init__(self, *, maximum_buffered_bytes: int = MAXIMUM_BUFFERED_BYTES) -> None:
        self.handed_over = 0
        """Instances that the consumer has got."""
        self._maximum_buffered_bytes = maximum_buffered_bytes
        self._waiting: deque[_Arrival] = deque()
        self._current: _Arrival | None = None
        self._over = False
        self._closed = False
        self._waiter: asyncio.Future[None] | None = None

    # For the services that receive

    def open_sink(self, request: StoreRequest) -> Sink:
        """The sink for one sub-operation; a refusal once nobody is interested any more."""
        if self._closed:
            raise DimseError(_LEFT.status, _LEFT.error_comment)
        arrival = _Arrival(self, request, self._maximum_buffered_bytes)
        self._waiting.append(arrival)
        self._wake()
        return arrival

    def forget(self, arrival: _Arrival) -> None:
        """It will not be complete."""
        if arrival in self._waiting:
            self._waiting.remove(arrival)

    def end(self) -> None:
        """No more sub-operations come; iteration ends with what is here."""
        self._over = True
        self._wake()

    # For the consumer

    def __aiter__(self) -> AsyncIterator[Instance]:
        return self

    async def __anext__(self) -> Instance:
        self._done_with_current()
        while not self._waiting:
            if self._over or self._closed:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        self._current = self._waiting.popleft()
        self.handed_over += 1
        return self._current.instance

    def close(self) -> None:
        """Refuse what is under way and what still comes; the consumer leaves."""
        self._closed = True
        if self._current is not None:
            self._current.answer(_LEFT)
            self._current = None
        while self._waiting:
            self._waiting.popleft().answer(_LEFT)
        self._wake()

    def _done_with_current(self) -> None:
        if self._current is not None:
            self._current.answer(SUCCESS_OUTCOME)
            self._current = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class _Arrival:
    """The sink of one sub-operation, and the data of its instance."""

    def __init__(self, arrivals: Arrivals, request: StoreRequest, maximum_buffered_bytes: int) -> None:
        self._arrivals = arrivals
        self._association = request.association
        self._stream = DataStream(request.association, maximum_buffered_bytes)
        self._answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.instance = Instance(
            request.affected_sop_class_uid,
            request.affected_sop_instance_uid,
            request.transfer_syntax_uid,
            self,
        )

    def answer(self, outcome: Outcome) -> None:
        """The consumer is done with it; what has not been read is dropped."""
        if not self._answer.done():
            self._answer.set_result(outcome)
        self._stream.fail(ValueError("the data of an instance that was left behind"))

    # Sink

    def write(self, fragment: memoryview) -> None:
        if not self._answer.done():
            self._stream.put(fragment)

    def finish(self) -> asyncio.Future[Outcome]:
        self._stream.complete()
        return self._answer

    def abort(self) -> None:
        self._answer.cancel()
        self._stream.fail(self._association.error or ConnectionLost("the association has ended"))
        self._arrivals.forget(self)

    # The data

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await anext(self._stream)
        except StopAsyncIteration:
            if not self._answer.done():
                self._answer.set_result(SUCCESS_OUTCOME)
            raise
