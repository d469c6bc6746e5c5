"""A stream of bytes in both directions with bounds on both: what server connections and the client write and read on.

An asyncio.Protocol keeps what was received and not yet taken; the socket is not read while that is too much. Writing
waits while the transport holds too much, and gives up when the peer takes nothing for a while. So neither a fast sender
nor a slow reader costs memory, and the limit reaches the peer through TCP.

One task takes and writes; it learns of the other side leaving through the `peer_left` callback, wherever it is.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import cast

__all__ = ["Channel", "ChannelClosed", "ChannelStalled"]

READ_HIGH_WATER_BYTES = 256 * 1024
"""Received and not yet taken: above this the socket is not read. One read of asyncio's is as large."""

READ_LOW_WATER_BYTES = 64 * 1024
"""Below this it is read again."""

WRITE_HIGH_WATER_BYTES = 1024 * 1024
"""Written and not yet taken by the kernel: above this `write` waits."""

WRITE_LOW_WATER_BYTES = 256 * 1024

_LINGER_ZERO = struct.pack("ii", 1, 0)  # struct linger: on, zero seconds

JOIN_BYTES = 64 * 1024
"""Pieces up to this size together are joined and sent in one call."""


class ChannelClosed(Exception):
    """Nobody is left to write to."""


class ChannelStalled(ChannelClosed):
    """The peer took nothing for as long as it was given."""


def _nothing() -> None:
    pass


class Channel(asyncio.Protocol):
    """One connected stream. `opened` is called once it is, `peer_left` when the peer sends no more (maybe twice)."""

    def __init__(
        self, *, opened: Callable[[], None] = _nothing, peer_left: Callable[[], None] = _nothing
    ) -> None:
        self._opened = opened
        self._peer_left = peer_left
        self._loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport
        self.eof = False  # nothing more will be received
        self.error: Exception | None = None  # what ended the connection, if it was no orderly end
        self._lost: asyncio.Future[None] = self._loop.create_future()
        self._incoming: deque[bytes] = deque()
        self.buffered_bytes = 0
        self._data_waiter: asyncio.Future[None] | None = None
        self._reading_paused = False
        self._discarding = False
        self._writing_paused = False
        self._write_waiter: asyncio.Future[None] | None = None
        self.read_pauses = 0
        self.peak_buffered_bytes = 0
        self.peak_unsent_bytes = 0

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.use(
            cast(asyncio.Transport, transport)
        )  # a stream transport: that is what asyncio makes for streams
        self._opened()

    def use(self, transport: asyncio.Transport) -> None:
        """Go on over `transport`: the first one, or TLS on top of it."""
        self.transport = transport
        transport.set_write_buffer_limits(high=WRITE_HIGH_WATER_BYTES, low=WRITE_LOW_WATER_BYTES)

    def data_received(self, data: bytes) -> None:
        if self._discarding:
            return
        self._incoming.append(data)
        self.buffered_bytes += len(data)
        self.peak_buffered_bytes = max(self.peak_buffered_bytes, self.buffered_bytes)
        if self.buffered_bytes > READ_HIGH_WATER_BYTES and not self._reading_paused:
            self.transport.pause_reading()
            self._reading_paused = True
            self.read_pauses += 1
        _wake(self._data_waiter)

    def eof_received(self) -> bool:
        self.eof = True
        self._peer_left()
        _wake(self._data_waiter)
        return False  # the transport flushes what was written, then closes

    def connection_lost(self, exc: Exception | None) -> None:
        self.eof = True
        self.error = exc
        self._writing_paused = False
        if not self._lost.done():
            self._lost.set_result(None)
        self._peer_left()
        _wake(self._data_waiter)
        _wake(self._write_waiter)

    def pause_writing(self) -> None:
        self._writing_paused = True

    def resume_writing(self) -> None:
        self._writing_paused = False
        _wake(self._write_waiter)

    # Receiving

    async def wait_for_data(self, deadline: float | None) -> None:
        """Until something can be taken, nothing more will come, or `wake`. TimeoutError at `deadline` (loop time)."""
        if self._incoming or self.eof:
            return
        self._data_waiter = self._loop.create_future()
        try:
            async with asyncio.timeout_at(deadline):
                await self._data_waiter
        finally:
            self._data_waiter = None

    def wake(self) -> None:
        """End a `wait_for_data` in progress."""
        _wake(self._data_waiter)

    def take(self, maximum_bytes: int | None = None) -> bytes:
        """The first received piece, or that much of it; b"" when there is none."""
        if not self._incoming:
            return b""
        chunk = self._incoming.popleft()
        if maximum_bytes is not None and len(chunk) > maximum_bytes:
            self._incoming.appendleft(chunk[maximum_bytes:])
            chunk = chunk[:maximum_bytes]
        self.buffered_bytes -= len(chunk)
        if self.buffered_bytes <= READ_LOW_WATER_BYTES:
            self._resume_reading()
        return chunk

    def peek(self) -> bytes:
        """The first received piece, left where it is."""
        return self._incoming[0] if self._incoming else b""

    def put_back(self, data: bytes) -> None:
        """Return what was taken too much; it is the next to be taken."""
        self._incoming.appendleft(data)
        self.buffered_bytes += len(data)

    def _resume_reading(self) -> None:
        if self._reading_paused and not self.transport.is_closing():
            self.transport.resume_reading()
        self._reading_paused = False

    # Sending

    async def write(self, *pieces: bytes, timeout_s: float | None) -> None:
        """Hand over pieces; wait while too much is unsent. timeout_s: how long the peer may take nothing at all."""
        if self.eof or self.transport.is_closing():
            raise ChannelClosed("connection closed by the peer")
        if sum(map(len, pieces)) <= JOIN_BYTES:
            self.transport.write(b"".join(pieces))
        else:
            self.transport.writelines(pieces)
        if not self._writing_paused:
            return
        self.peak_unsent_bytes = max(self.peak_unsent_bytes, self.transport.get_write_buffer_size())
        while self._writing_paused:
            unsent = self.transport.get_write_buffer_size()
            self._write_waiter = self._loop.create_future()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._write_waiter
            except TimeoutError:
                if self.transport.get_write_buffer_size() >= unsent:
                    raise ChannelStalled(f"peer took nothing for {timeout_s} s") from None
            finally:
                self._write_waiter = None
        if self._lost.done():
            raise ChannelClosed("connection lost while sending")

    # Ending

    async def linger(self, timeout_s: float) -> None:
        """Send no more, throw away what still comes, until the peer closes or for `timeout_s`."""
        self._discarding = True
        self._incoming.clear()
        self.buffered_bytes = 0
        self._resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        try:
            await self.wait_for_data(self._loop.time() + timeout_s)
        except TimeoutError:
            pass

    async def close(self, *, timeout_s: float) -> None:
        """Send what is unsent, then close; abort when the peer takes nothing for `timeout_s`."""
        if (
            not self.transport.is_closing()
        ):  # asyncio's TLS transport cannot be asked any more when it is closed twice
            self.transport.close()
        while not self._lost.done():
            unsent = self.transport.get_write_buffer_size()
            await asyncio.wait([self._lost], timeout=timeout_s)
            if not self._lost.done() and self.transport.get_write_buffer_size() >= unsent:
                self.abort()
                return

    def abort(self) -> None:
        """Close at once; what is unsent is lost. Idempotent."""
        self.transport.abort()

    def reset(self) -> None:
        """Close at once with a TCP reset, so that the peer cannot take this for an orderly end."""
        sock = self.transport.get_extra_info("socket")
        if sock is not None and not self._lost.done():
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
            except OSError:  # the peer was faster
                pass
        self.transport.abort()


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
