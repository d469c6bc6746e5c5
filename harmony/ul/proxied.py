"""Connections that come through a proxy: its header is read before anything else is (`proxy_protocol`).

A connection is taken from the event loop as soon as it is accepted. Who is not trusted is closed before a byte is read:
nobody must guess whether a header is there (proxy-protocol.txt §2). Of the others exactly the header is taken from the
socket, in a task of its own; what then happens on it, TLS or not, does not know of it. Used by `acceptor` and the HTTP
server.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from typing import cast

from harmony.ul.proxy_protocol import MAXIMUM_BYTES, ProxyHeader, ProxyProtocolError
from harmony.ul.transport import format_peer, peer_of

__all__ = ["ProxiedConnections", "Trust"]

Trust = Callable[[str], bool]
"""Whether a host is a proxy whose word counts."""

Proceed = Callable[[socket.socket, tuple[str, int] | None], Awaitable[object]]
"""Goes on with a socket, which is its own then, for the client named, or the one who connected when it is None. Raises
OSError."""


class ProxiedConnections:
    """Those of one server whose header has not been read."""

    def __init__(self, admit: Callable[[str], bool], *, timeout_s: float, logger: logging.Logger) -> None:
        """admit: given the address of a trusted peer, False closes its connection. timeout_s: for the header."""
        self._admit = admit
        self.timeout_s = timeout_s
        self._logger = logger
        self._reading: set[socket.socket] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._reading)

    def door(self, trusts: Trust, proceed: Proceed) -> asyncio.Protocol:
        """For `loop.create_server`: the protocol of a connection just accepted."""
        return _Door(lambda sock, peer: self._begin(sock, peer, trusts=trusts, proceed=proceed))

    async def close(self) -> None:
        """Cut all of them."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, sock: socket.socket, peer: tuple[str, int], *, trusts: Trust, proceed: Proceed) -> None:
        address = format_peer(peer)
        if not trusts(peer[0]):
            self._logger.info("connection from %s closed: it is no trusted proxy", address)
            sock.close()
            return
        if not self._admit(address):
            sock.close()
            return
        self._reading.add(sock)
        task = asyncio.get_running_loop().create_task(self._pass(sock, address, proceed))
        self._tasks.add(task)
        task.add_done_callback(lambda task: self._ended(task, sock))

    def _ended(self, task: asyncio.Task[None], sock: socket.socket) -> None:
        self._tasks.discard(task)
        if sock in self._reading:  # cancelled, or it failed
            self._reading.discard(sock)
            sock.close()

    async def _pass(self, sock: socket.socket, address: str, proceed: Proceed) -> None:
        try:
            async with asyncio.timeout(self.timeout_s):
                source = await _read_header(sock)
        except TimeoutError:
            self._logger.info("%s: no PROXY header within %g s; closed", address, self.timeout_s)
            return
        except (ProxyProtocolError, OSError) as error:
            self._logger.info("%s: %s; closed", address, error)
            return
        self._reading.discard(sock)
        try:
            await proceed(sock, source)
        except OSError as error:  # ssl.SSLError is one
            self._logger.info("%s, through %s: %s", format_peer(source or ("", 0)), address, error)
        except asyncio.CancelledError:
            sock.close()
            raise


async def _read_header(sock: socket.socket) -> tuple[str, int] | None:
    """Takes the header from a socket and nothing of what follows it."""
    header = ProxyHeader()
    while not header.complete:
        await _readable(sock)
        data = sock.recv(MAXIMUM_BYTES, socket.MSG_PEEK)
        if not data:
            raise ProxyProtocolError("connection closed before the end of the PROXY header")
        sock.recv(header.receive(data))
    return header.source


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(sock.fileno(), readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(sock.fileno())


class _Door(asyncio.Protocol):
    """Takes the socket from a connection just accepted, before anything is read."""

    def __init__(self, admit: Callable[[socket.socket, tuple[str, int]], None]) -> None:
        self._admit = admit

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's are no subclasses, only alike
        transport.pause_reading()
        accepted = transport.get_extra_info("socket")
        try:
            sock = socket.socket(
                accepted.family, accepted.type, accepted.proto, fileno=os.dup(accepted.fileno())
            )
        except OSError:  # out of descriptors
            pass
        else:
            sock.setblocking(False)
            self._admit(sock, peer_of(transport))
        transport.abort()  # closes its own descriptor; the connection lives on in ours
