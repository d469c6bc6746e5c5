"""Syslog records for audit messages, and the way to a collector.

RFC 5424 says what a record looks like, RFC 5425 how records follow each other over TLS (and, in the same framing, over
plain TCP, RFC 6587 §3.4.1), RFC 5426 puts one into a datagram. PS3.15 A.6 and A.7 ask for the first and the last.

A stream collector never answers. `StreamSender.send` therefore waits until the collector's system has taken every byte
(`SIOCOUTQ`, where the system has it), so that what is lost with a connection is sent again over the next one.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import ssl
import struct
import sys
import termios
from collections.abc import Callable
from datetime import datetime
from typing import Protocol

__all__ = ["DatagramSender", "Sender", "StreamSender", "record"]

PRIORITY_NOTICE, PRIORITY_WARNING = 85, 84
"""Facility 10 (security and authorization), severities 5 and 4."""

MESSAGE_ID = "DICOM+RFC3881"
MAXIMUM_DATAGRAM_BYTES = 65507 - 20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_POLL_S = 0.02
_NIL = "-"


def record(message: bytes, *, at: datetime, host: str, program: str, process: int, failed: bool) -> bytes:
    """One record, without framing. failed: with the priority of a warning."""
    priority = PRIORITY_WARNING if failed else PRIORITY_NOTICE
    header = (
        f"<{priority}>1 {at.isoformat(timespec='milliseconds')} {_name(host, 255)} {_name(program, 48)} "
        f"{process} {MESSAGE_ID} {_NIL} "
    )
    return header.encode("ascii") + _BYTE_ORDER_MARK + message


def _name(text: str, length: int) -> str:
    """PRINTUSASCII (RFC 5424 §6)."""
    return "".join(each if "!" <= each <= "~" else "_" for each in text)[:length] or _NIL


class Sender(Protocol):
    """A way to one collector. Raises OSError (also ssl.SSLError, TimeoutError) when it is not to be had now."""

    async def send(self, records: list[bytes]) -> None:
        """Return when the collector has them all; after an error it may have some."""

    async def close(self) -> None: ...


class StreamSender:
    """Over TCP, with TLS when there is a context. Connects when there is something to send."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        ssl_context: Callable[[], ssl.SSLContext] | None = None,
        server_hostname: str | None = None,
        timeout_s: float = 30.0,
    ) -> None:
        """ssl_context: asked for each connection, so that certificates may change. server_hostname: the name in the
        certificate; None: the host. timeout_s: for connecting, and for the collector to take anything."""
        self._host = host
        self._port = port
        self._ssl_context = ssl_context
        self._server_hostname = server_hostname
        self._timeout_s = timeout_s
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    def __str__(self) -> str:
        return f"{self._host}:{self._port} ({'TLS' if self._ssl_context else 'TCP'})"

    async def send(self, records: list[bytes]) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                reader, writer = await self._connected()
                for each in records:
                    writer.write(b"%d " % len(each) + each)
                await writer.drain()
                await _taken(reader, writer)
        except BaseException:
            await self.close()
            raise

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is not None and (
            self._streams[0].at_eof() or self._streams[1].is_closing()
        ):  # the collector has closed it while there was nothing to send
            await self.close()
        if self._streams is None:
            context = self._ssl_context() if self._ssl_context is not None else None
            name = (self._server_hostname or self._host) if context is not None else None
            self._streams = await asyncio.open_connection(
                self._host, self._port, ssl=context, server_hostname=name
            )
        return self._streams

    async def close(self) -> None:
        streams, self._streams = self._streams, None
        if streams is not None:
            streams[1].transport.abort()


async def _taken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Wait until nothing that was written is on its way any more."""
    transport = writer.transport
    while transport.get_write_buffer_size() or _unacknowledged_bytes(transport.get_extra_info("socket")):
        if reader.at_eof() or transport.is_closing():
            raise ConnectionResetError("the collector closed the connection")
        await asyncio.sleep(_POLL_S)
    if reader.at_eof() or transport.is_closing():
        raise ConnectionResetError("the collector closed the connection")


def _unacknowledged_bytes(sock: socket.socket) -> int:
    """What the peer's system has not acknowledged (TIOCOUTQ, which is SIOCOUTQ); 0 where nobody can say."""
    if not sys.platform.startswith("linux"):
        return 0
    answer = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, struct.pack("i", 0))
    return int(struct.unpack("i", answer)[0])


class DatagramSender:
    """Over UDP: nobody will know what was lost. Longer records than a datagram holds are cut (RFC 5426 §3.1)."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._transport: asyncio.DatagramTransport | None = None

    def __str__(self) -> str:
        return f"{self._host}:{self._port} (UDP)"

    async def send(self, records: list[bytes]) -> None:
        if self._transport is None:
            loop = asyncio.get_running_loop()
            self._transport, _ = await loop.create_datagram_endpoint(
                asyncio.DatagramProtocol, remote_addr=(self._host, self._port)
            )
        for each in records:
            self._transport.sendto(each[:MAXIMUM_DATAGRAM_BYTES])

    async def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
            self._transport = None
