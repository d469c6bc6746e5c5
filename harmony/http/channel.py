"""A stream of bytes in both directions with bounds on both: what server connections and the client write and read on.

An asyncio.Protocol keeps what was received and not yet taken; the socket is not read while that is too much. Writing
waits while the transport holds too much, and gives up when the peer takes nothing for a while. So neither a fast sender
nor a slow reader costs memory, and the limit reaches the peer through TCP. But for TLS, pieces of files go from the
page cache to the socket without being read here (sendfile(2)); what is not in it yet a thread reads first.

One task takes and writes; it learns of the other side leaving through the `peer_left` callback, wherever it is.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import socket
import struct
import sys
import termios
from collections import deque
from collections.abc import Callable
from typing import cast

from harmony.http.message import FileSpan
from harmony.http.pace import Pace
from harmony.ul.held import HELD

__all__ = ["Channel", "ChannelClosed", "ChannelStalled"]

READ_HIGH_WATER_BYTES = 256 * 1024
"""Received and not yet taken: above this the socket is not read. One read of asyncio's is as large."""

READ_LOW_WATER_BYTES = 64 * 1024
"""Below this it is read again."""

WRITE_HIGH_WATER_BYTES = 1024 * 1024
"""Written and not yet taken by the kernel: above this `write` waits."""

WRITE_LOW_WATER_BYTES = 256 * 1024

_STALLED = "peer took too little for too long"
_LINGER_ZERO = struct.pack("ii", 1, 0)  # struct linger: on, zero seconds

JOIN_BYTES = 64 * 1024
"""Pieces up to this size together are joined and sent in one call."""

SENT_FILE_BYTES = 1024 * 1024
"""Of a file in one call; in between other connections have their turn."""

_READ_FILE_BYTES = 256 * 1024
_NO_NOWAIT = frozenset((errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS))
_CANNOT_SEND_FILE = frozenset((errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP))  # what some file systems say


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
        self._deadline: float | None = None  # of that
        self._alarm: asyncio.TimerHandle | None = None
        self._reading_paused = False
        self._discarding = False
        self._writing_paused = False
        self._write_waiter: asyncio.Future[None] | None = None
        self._own: socket.socket | None = None
        self._sent_since_pause = 0
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
        HELD.take(len(data))
        self.peak_buffered_bytes = max(self.peak_buffered_bytes, self.buffered_bytes)
        if (self.buffered_bytes > READ_HIGH_WATER_BYTES or HELD.is_full) and not self._reading_paused:
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
        if self._alarm is not None:
            self._alarm.cancel()
        if self._own is not None:
            self._own.close()
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
        self._set_alarm(deadline)
        try:
            await self._data_waiter
        finally:
            self._data_waiter = None

    def _set_alarm(self, deadline: float | None) -> None:
        """One timer for all waits, set again when it is over too early: data come long before nearly every deadline."""
        self._deadline = deadline
        if deadline is None or (self._alarm is not None and self._alarm.when() <= deadline):
            return
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = self._loop.call_at(deadline, self._alarmed)

    def _alarmed(self) -> None:
        self._alarm = None
        waiter, deadline = self._data_waiter, self._deadline
        if waiter is None or waiter.done() or deadline is None:
            return
        if self._loop.time() < deadline:
            self._set_alarm(deadline)
        else:
            waiter.set_exception(TimeoutError())

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
        HELD.give(len(chunk))
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
        HELD.take(len(data))

    def _drop(self) -> None:
        """Forget what was received and not taken."""
        self._incoming.clear()
        HELD.give(self.buffered_bytes)
        self.buffered_bytes = 0

    def _resume_reading(self) -> None:
        if self._reading_paused and not self.transport.is_closing():
            self.transport.resume_reading()
        self._reading_paused = False

    # Sending

    async def write(self, *pieces: bytes | FileSpan, pace: Pace) -> None:
        """Hand over pieces; wait while too much is unsent. pace: how long for the peer to take it.

        A FileSpan has been sent, or handed over, on return. Raises EOFError when its file has become shorter.
        """
        if self.eof or self.transport.is_closing():
            raise ChannelClosed("connection closed by the peer")
        whole = [piece for piece in pieces if not isinstance(piece, FileSpan)]
        if len(whole) < len(pieces):
            await self._write_with_files(pieces, pace)
            return
        if sum(map(len, whole)) <= JOIN_BYTES:
            self.transport.write(b"".join(whole))
        else:
            self.transport.writelines(whole)
        if self._writing_paused:
            await self._wait_until_taken(pace)

    async def _wait_until_taken(self, pace: Pace) -> None:
        """Until the transport says that it may have more."""
        self.peak_unsent_bytes = max(self.peak_unsent_bytes, self.transport.get_write_buffer_size())
        while self._writing_paused:
            unsent, began = self.transport.get_write_buffer_size(), self._loop.time()
            self._write_waiter = self._loop.create_future()
            HELD.take(unsent)
            try:
                await asyncio.wait([self._write_waiter], timeout=pace.left_s)
            finally:
                HELD.give(unsent)
                self._write_waiter = None
            taken = unsent - self.transport.get_write_buffer_size()
            if not pace.waited(self._loop.time() - began, max(0, taken)) and self._writing_paused:
                raise ChannelStalled(_STALLED)
        if self._lost.done():
            raise ChannelClosed("connection lost while sending")

    # Sending files

    async def _write_with_files(self, pieces: tuple[bytes | FileSpan, ...], pace: Pace) -> None:
        if self.transport.get_extra_info("sslcontext") is not None:
            await self._write_read(pieces, pace)
            return
        if self.transport.get_write_buffer_size():
            await self._drain(pace)
        sock = self._own_socket()
        before = b""
        for number, piece in enumerate(pieces):
            if not isinstance(piece, FileSpan):
                before += piece
                continue
            await self._send(sock, before + piece.head, socket.MSG_MORE, pace)
            before = b""
            sent_bytes = await self._send_file(sock, piece, pace)
            if sent_bytes < piece.size_bytes:
                left = FileSpan(piece.descriptor, piece.offset + sent_bytes, piece.size_bytes - sent_bytes)
                await self._write_read((left, *pieces[number + 1 :]), pace)
                return
        if before:
            await self._send(sock, before, 0, pace)

    def _own_socket(self) -> socket.socket:
        """A descriptor of our own: event loops let nobody else wait for those of their transports."""
        if self._lost.done():
            raise ChannelClosed("connection lost while sending")
        if self._own is None:
            shared = self.transport.get_extra_info("socket")
            descriptor = os.dup(shared.fileno())
            self._own = socket.socket(shared.family, shared.type, shared.proto, fileno=descriptor)
        return self._own

    async def _write_read(self, pieces: tuple[bytes | FileSpan, ...], pace: Pace) -> None:
        """The same, read here."""
        for piece in pieces:
            for each in piece.pieces(_READ_FILE_BYTES) if isinstance(piece, FileSpan) else (piece,):
                await self.write(each, pace=pace)

    async def _drain(self, pace: Pace) -> None:
        """Until the kernel has everything."""
        self.transport.set_write_buffer_limits(high=0)
        try:
            await self._wait_until_taken(pace)
        finally:
            self.transport.set_write_buffer_limits(high=WRITE_HIGH_WATER_BYTES, low=WRITE_LOW_WATER_BYTES)

    async def _send(self, sock: socket.socket, data: bytes, flags: int, pace: Pace) -> None:
        while data:
            try:
                data = data[sock.send(data, flags) :]
            except BlockingIOError:
                await self._until_writable(sock, pace)
            except OSError as error:
                raise ChannelClosed(f"connection lost while sending: {error.strerror}") from error

    async def _send_file(self, sock: socket.socket, span: FileSpan, pace: Pace) -> int:
        """Send a file's bytes; return how many, which is fewer only where the file system cannot do that."""
        sent_bytes = 0
        while sent_bytes < span.size_bytes:
            wanted = min(SENT_FILE_BYTES, span.size_bytes - sent_bytes)
            offset = span.offset + sent_bytes
            if not (_is_cached(span.descriptor, offset) and _is_cached(span.descriptor, offset + wanted - 1)):
                await self._read_ahead(span.descriptor, offset, wanted)
            try:
                count = os.sendfile(sock.fileno(), span.descriptor, offset, wanted)
            except BlockingIOError:
                await self._until_writable(sock, pace)
                continue
            except OSError as error:
                if error.errno in _CANNOT_SEND_FILE:
                    break
                raise ChannelClosed(f"connection lost while sending: {error.strerror}") from error
            if not count:
                raise EOFError(f"file ended at byte {offset}, it has become shorter")
            sent_bytes += count
            self._sent_since_pause += count
            if self._sent_since_pause >= SENT_FILE_BYTES:
                self._sent_since_pause = 0
                await asyncio.sleep(0)
        return sent_bytes

    async def _read_ahead(self, descriptor: int, offset: int, size_bytes: int) -> None:
        """Have a thread wait for the disk."""
        reading = self._loop.run_in_executor(None, _read_into_cache, descriptor, offset, size_bytes)
        try:
            await asyncio.shield(reading)
        except asyncio.CancelledError:
            # The thread still reads from the descriptor; closing it now could hand its number to another file.
            await asyncio.wait([reading])
            raise

    async def _until_writable(self, sock: socket.socket, pace: Pace) -> None:
        """Until the kernel takes more. It says so when a good part of its buffer is free; less is progress, too."""
        self._sent_since_pause = 0  # others have their turn meanwhile
        self._write_waiter = waiter = self._loop.create_future()
        self._loop.add_writer(sock, _wake, waiter)
        try:
            while not waiter.done():
                unsent, began = _unsent_bytes(sock), self._loop.time()
                await asyncio.wait([waiter], timeout=pace.left_s)
                taken = max(
                    0, unsent - _unsent_bytes(sock), int(waiter.done())
                )  # there is room: it took some
                if not pace.waited(self._loop.time() - began, taken) and not waiter.done():
                    raise ChannelStalled(_STALLED)
        finally:
            self._loop.remove_writer(sock)
            self._write_waiter = None
        if self._lost.done():
            raise ChannelClosed("connection lost while sending")

    # Ending

    async def linger(self, timeout_s: float) -> None:
        """Send no more, throw away what still comes, until the peer closes or for `timeout_s`."""
        self._discarding = True
        self._drop()
        self._resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        try:
            await self.wait_for_data(self._loop.time() + timeout_s)
        except TimeoutError:
            pass

    async def close(self, *, pace: Pace) -> None:
        """Send what is unsent, then close; abort when the peer takes too long for it."""
        if (
            not self.transport.is_closing()
        ):  # asyncio's TLS transport cannot be asked any more when it is closed twice
            self.transport.close()
        while not self._lost.done():
            unsent, began = self.transport.get_write_buffer_size(), self._loop.time()
            await asyncio.wait([self._lost], timeout=pace.left_s)
            taken = unsent - self.transport.get_write_buffer_size()
            if not pace.waited(self._loop.time() - began, max(0, taken)) and not self._lost.done():
                self.abort()
                return

    def abort(self) -> None:
        """Close at once; what is unsent, or was not taken, is lost. Idempotent."""
        self._discarding = True
        self._drop()
        self.transport.abort()

    def reset(self) -> None:
        """Close at once with a TCP reset, so that the peer cannot take this for an orderly end."""
        sock = self.transport.get_extra_info("socket")
        if sock is not None and not self._lost.done():
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
            except OSError:  # the peer was faster
                pass
        self.abort()


def _is_cached(descriptor: int, offset: int) -> bool:
    """Whether a byte of a file can be had without waiting; True as well where the file system cannot tell."""
    try:
        os.preadv(descriptor, [bytearray(1)], offset, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_NOWAIT:
            raise
    return True


def _read_into_cache(descriptor: int, offset: int, size_bytes: int) -> None:
    end = offset + size_bytes
    while offset < end and (count := len(os.pread(descriptor, min(_READ_FILE_BYTES, end - offset), offset))):
        offset += count


def _unsent_bytes(sock: socket.socket) -> int:
    """What the kernel has of it and the peer has not acknowledged."""
    return int.from_bytes(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
