"""Where received data sets go: the `Sink` interface and the sinks a program needs first.

A sink takes fragments as views of the receive buffer, valid until `write` returns; nothing is copied on the
way to it. A sink that cannot keep up copies into its own bounded buffer and holds the association's reading:
`AsyncSink` does that for a coroutine that consumes an async iterator.

Where files go and what happens to duplicates is the archive's business. `Drain` and `Collector` are the
exchange's own, for everything that is not an instance.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Protocol

from harmony.dimse.source import Data, pieces
from harmony.dimse.status import SUCCESS_OUTCOME, DimseError, Outcome, Status
from harmony.ul.held import HELD, HeldBytes

__all__ = ["AsyncSink", "BytesSink", "Collector", "DataStream", "Drain", "Flow", "Sink", "WholeStore", "feed"]

CHUNK_OVERHEAD = 64
"""What a waiting chunk counts besides its bytes, so that a peer that sends fragments of two bytes is held too."""

COLLECTED_DATA_LIMIT = 1 << 20
"""Longest data set that is collected in memory: identifiers and attribute lists, never instances."""


class Sink(Protocol):
    """One data set on its way in. Called from the event loop; must not block for long."""

    def write(self, fragment: memoryview) -> None:
        """Consume a fragment: the view is not valid after the call. Raise DimseError to answer with its
        status."""

    def finish(self) -> Outcome | Awaitable[Outcome]:
        """The data set is complete: say what to answer, now or later. DimseError is an answer as well."""

    def abort(self) -> None:
        """The data set will not be completed. Called at most once after any other method, also after
        `finish`."""


WholeStore = Callable[[bytes, Sequence[memoryview]], Outcome | None]
"""Stores an object that is at hand completely, without a Sink: a short cut for those that the receive buffer holds.

Called with the value field of (0000,1000), padding included, and the data set in its fragments, at least one, any of
them empty; they are not valid after the call. It
returns what the sink's `finish` would have returned, or raises what that would have; or it returns None and has done
nothing, and a sink is opened as for any other object. So it need not know what to do when anything is unusual.
"""


class Flow(Protocol):
    """The sender's flow control; an Association is one."""

    def hold_reading(self) -> None: ...

    def continue_reading(self) -> None: ...


class BytesSink:
    """Collects a data set in memory, up to a limit, and passes it on.

    on_complete: called with the bytes; its result is the answer. Larger data sets are answered 0xA700.
    """

    def __init__(
        self, on_complete: Callable[[bytes], Outcome | Awaitable[Outcome]], *, maximum_bytes: int = 1 << 20
    ) -> None:
        self._on_complete = on_complete
        self._maximum_bytes = maximum_bytes
        self._data = bytearray()

    def write(self, fragment: memoryview) -> None:
        if len(self._data) + len(fragment) > self._maximum_bytes:
            self.abort()
            raise DimseError(Status.OUT_OF_RESOURCES, f"data set larger than {self._maximum_bytes} bytes")
        if not HELD.has_room(len(fragment)):
            self.abort()
            raise DimseError(Status.OUT_OF_RESOURCES, "too much memory is in use")
        self._data += fragment
        HELD.take(len(fragment))

    def finish(self) -> Outcome | Awaitable[Outcome]:
        data = bytes(self._data)
        self.abort()
        return self._on_complete(data)

    def abort(self) -> None:
        HELD.give(len(self._data))
        self._data = bytearray()


class DataStream:
    """The data set as an async iterator of bytes, for the consumer of an AsyncSink.

    Iteration ends with the data set, never before: when the association ends first, the consumer is cancelled, or the
    iteration raises what whoever made the stream gives to `fail`.
    """

    def __init__(self, flow: Flow, maximum_bytes: int) -> None:
        self._flow = flow
        self._maximum_bytes = maximum_bytes
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._held = False
        self._complete = False
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    def put(self, fragment: memoryview) -> None:
        """Copy a fragment in; hold the sender when more than the limit waits."""
        self._chunks.append(bytes(fragment))
        size = len(fragment) + CHUNK_OVERHEAD
        self._size += size
        HELD.take(size)
        if (self._size > self._maximum_bytes or HELD.is_full) and not self._held:
            self._held = True
            self._flow.hold_reading()
        self._wake()

    def complete(self) -> None:
        """No more fragments come."""
        self._complete = True
        self._wake()

    def fail(self, error: Exception) -> None:
        """The rest is not to be had: drop what waits, and raise this to the consumer from now on."""
        self._error = error
        self.drop()
        self._wake()

    def drop(self) -> None:
        """Forget what waits, which nobody will take, and give the sender back its flow."""
        self._chunks.clear()
        HELD.give(self._size)
        self._size = 0
        self.let_go()

    def let_go(self) -> None:
        """Give the sender back its flow, whatever is still waiting."""
        if self._held:
            self._held = False
            self._flow.continue_reading()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        while not self._chunks:
            if self._error is not None:
                raise self._error
            if self._complete:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        chunk = self._chunks.popleft()
        size = len(chunk) + CHUNK_OVERHEAD
        self._size -= size
        HELD.give(size)
        if self._held and self._size <= self._maximum_bytes // 2:
            self.let_go()
        return chunk


class AsyncSink:
    """Hands a data set to a coroutine while it arrives, with a bounded buffer and back-pressure to the
    sender.

    consume: awaited once with a DataStream; its result is the answer. When it returns or raises before the
    end, the rest of the data set is dropped and that is the answer. It is cancelled when the association ends
    first. flow: the association the data comes from (`StoreRequest.association`).
    """

    def __init__(
        self,
        flow: Flow,
        consume: Callable[[DataStream], Awaitable[Outcome | None]],
        *,
        maximum_buffered_bytes: int = 1 << 20,
    ) -> None:
        self._stream = DataStream(flow, maximum_buffered_bytes)
        self._task: asyncio.Task[Outcome] = asyncio.ensure_future(self._run(consume))
        self._task.add_done_callback(self._ended)

    async def _run(self, consume: Callable[[DataStream], Awaitable[Outcome | None]]) -> Outcome:
        return await consume(self._stream) or SUCCESS_OUTCOME

    def _ended(self, task: asyncio.Task[Outcome]) -> None:
        self._stream.drop()
        if not task.cancelled():
            task.exception()  # counts as seen: it is the answer, if anybody still waits for one

    def write(self, fragment: memoryview) -> None:
        if not self._task.done():
            self._stream.put(fragment)

    def finish(self) -> Awaitable[Outcome]:
        self._stream.complete()
        return self._task

    def abort(self) -> None:
        self._task.cancel()


async def feed(sink: Sink, data: Data) -> Outcome:
    """Write a data set that is not coming from an association into a sink; return what the sink says of it.

    Raises what the sink raises, or the data; the sink has been aborted then.
    """
    try:
        async with aclosing(pieces(data)) as fragments:
            async for fragment in fragments:
                sink.write(memoryview(fragment))
        answer = sink.finish()
        return answer if isinstance(answer, Outcome) else await answer
    except BaseException:
        sink.abort()
        raise


class Drain:
    """The sink for what is not wanted: a message whose answer is already known, or one that nobody
    performs."""

    def write(self, fragment: memoryview) -> None:
        pass

    def abort(self) -> None:
        pass


DRAIN = Drain()


class Collector:
    """Collects the data set of a request or response that is handled whole.

    then: called with it, or with None when it is longer than COLLECTED_DATA_LIMIT, or than `room` has. room: None for
    what we have asked for ourselves.
    """

    def __init__(self, then: Callable[[bytes | None], None], *, room: HeldBytes | None = None) -> None:
        self._then = then
        self._room = room
        self._data: bytearray | None = bytearray()

    def write(self, fragment: memoryview) -> None:
        if self._data is None:
            return
        if len(self._data) + len(fragment) > COLLECTED_DATA_LIMIT or not (
            self._room is None or self._room.has_room(len(fragment))
        ):
            self.abort()
            return
        self._data += fragment
        HELD.take(len(fragment))

    def complete(self) -> None:
        data = None if self._data is None else bytes(self._data)
        self.abort()
        self._then(data)

    def abort(self) -> None:
        if self._data is not None:
            HELD.give(len(self._data))
            self._data = None
