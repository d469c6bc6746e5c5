"""A bare TCP peer: sends what it is told, and leaves as it is told."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Awaitable, Callable, Iterable

from tests.faults.wire import associate_rq

PATIENCE_S = 30.0
"""For an answer, or for being cut off: far longer than either takes."""
TCP_REPAIR = 19
"""linux/tcp.h. A socket that is closed in repair mode sends nothing: as if its host had lost its power."""

GONE = (ConnectionError, asyncio.IncompleteReadError, BrokenPipeError)


class Peer:
    """One connection to the gateway."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, port: int, *, receive_buffer_bytes: int | None = None) -> Peer:
        sock = socket.socket()
        sock.setblocking(False)
        if receive_buffer_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
            return cls(*await asyncio.open_connection(sock=sock, limit=1024))

    @classmethod
    async def associated(cls, port: int, *, receive_buffer_bytes: int | None = None) -> Peer:
        """With an association that was accepted."""
        peer = await cls.connect(port, receive_buffer_bytes=receive_buffer_bytes)
        peer.send(associate_rq())
        assert (await peer.pdu())[0] == 2, "A-ASSOCIATE-AC was expected"
        return peer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def pdu(self) -> bytes:
        async with asyncio.timeout(PATIENCE_S):
            head = await self.reader.readexactly(6)
            return head + await self.reader.readexactly(int.from_bytes(head[2:], "big"))

    async def until_cut(self) -> bytes:
        """Wait until the gateway ends the connection; return what it said."""
        said = bytearray()
        with contextlib.suppress(*GONE):
            async with asyncio.timeout(PATIENCE_S):
                while piece := await self.reader.read(1 << 16):
                    said += piece
        return bytes(said)

    async def dribble(self, data: bytes, *, every_s: float) -> float:
        """Send a byte now and then, until the gateway ends the connection; return how long it bore that."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        cut = asyncio.create_task(self.until_cut())
        for number in range(len(data)):
            if cut.done() or self.writer.is_closing():
                break
            self.send(data[number : number + 1])
            await asyncio.wait([cut], timeout=every_s)
        await cut
        return loop.time() - began

    @property
    def socket(self) -> socket.socket:
        return self.writer.get_extra_info("socket")

    def reset(self) -> None:
        """Leave with a TCP reset."""
        with contextlib.suppress(OSError):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    def vanish(self) -> None:
        """Leave without a word; PermissionError where that is not allowed."""
        self.socket.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
        self.writer.transport.abort()

    def close(self) -> None:
        self.writer.transport.abort()


async def crowd(count: int, make: Callable[[int], Awaitable[None]], *, at_once: int = 50) -> None:
    """Have so many peers do something, so many at once."""
    places = asyncio.Semaphore(at_once)

    async def one(number: int) -> None:
        async with places:
            await make(number)

    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(one(number))


async def gather(awaitables: Iterable[Awaitable[Peer]]) -> list[Peer]:
    return list(await asyncio.gather(*awaitables))
