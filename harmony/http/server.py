"""The HTTP server: listeners, the connections they accepted, an orderly end.

One server has one handler and any number of listeners, one per network; a request carries the name of the network it
came in on. `stop` closes the listeners and the idle connections at once, lets requests in flight finish within the
grace it is given, and cancels what is left. What happens on a connection is in connection.py.

TLS handshakes run beside the accept loop (`harmony.ul.tls`); where there are too many connections the one that has
taken longest makes room. Who speaks HTTP on a TLS port is answered 400 and told so.

The gateway starts it; a `Router` is a handler, and so is anything that wraps one.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
from collections.abc import Awaitable, Callable

from harmony.http.connection import LINGER_TIMEOUT_S, Connection, Exchanged, ServerLimits
from harmony.http.message import Request, Response
from harmony.ul.proxied import ProxiedConnections, Trust
from harmony.ul.tls import PROTOCOL_VERSION_ALERT, Handshakes, TLSContext, name_protocol

__all__ = ["Exchanged", "HTTPServer", "ServerLimits"]

logger = logging.getLogger("harmony.http")

LISTEN_BACKLOG = 512
"""Connections the kernel completes ahead of us: a burst of clients is no reason to refuse any."""

MAXIMUM_REFUSED_CONNECTIONS = 100
"""Connections over the limit that are being told so at one time; any more are closed without a word."""

CANCEL_TIMEOUT_S = 5.0
"""How long cancelled handlers may clean up before `stop` returns without them."""


class HTTPServer:
    """A minimal HTTP/1.1 server: `start` it on each network, `stop` it once."""

    def __init__(
        self,
        handler: Callable[[Request], Awaitable[Response]],
        *,
        limits: ServerLimits | None = None,
        on_exchanged: Callable[[Exchanged], None] | None = None,
    ) -> None:
        """on_exchanged: told of every request when it is over; from the event loop, must neither block nor raise."""
        self.handler = handler
        self.on_exchanged = on_exchanged
        self.limits = limits if limits is not None else ServerLimits()
        self._listeners: list[tuple[tuple[str, int], asyncio.Server]] = []
        """Each with the address that was asked for."""
        self._connections: set[Connection] = set()
        self._refused: set[Connection] = set()
        self._proxied = ProxiedConnections(
            self._admit_proxied, timeout_s=self.limits.header_timeout_s, logger=logger
        )
        self._stopping = False
        self._handshakes = Handshakes(
            self._admit_handshake,
            timeout_s=self.limits.header_timeout_s,
            logger=logger,
            answer_plain=_answer_plain,
            shutdown_timeout_s=LINGER_TIMEOUT_S,
        )

    async def start(
        self,
        host: str,
        port: int,
        *,
        ssl: TLSContext | None = None,
        reuse_port: bool = False,
        network: str = "",
        trusted_proxy: Trust | None = None,
    ) -> list[tuple[str, int]]:
        """Listen on one more address; returns where (port 0: a free one). Raises OSError when that is taken.

        ssl: a context, or a function that is asked for one at every handshake. trusted_proxy: which hosts may connect,
        each connection beginning with a header of the PROXY protocol.
        """
        if self._stopping:
            raise RuntimeError("server was stopped")
        scheme = "https" if ssl is not None else "http"

        loop = asyncio.get_running_loop()

        def make(
            connected: Callable[[], None] | None = None, client: tuple[str, int] | None = None
        ) -> asyncio.Protocol:
            connection = Connection(
                self, network=network, scheme=scheme, client=client, on_connected=connected
            )
            connection.accepted_on = (host, port)
            return connection.channel

        def accept(client: tuple[str, int] | None = None) -> asyncio.Protocol:
            if ssl is None:
                return make(client=client)
            return self._handshakes.door(ssl, functools.partial(make, client=client), peer=client)

        async def proceed(sock: socket.socket, client: tuple[str, int] | None) -> None:
            await loop.connect_accepted_socket(lambda: accept(client), sock)

        make_protocol: Callable[[], asyncio.Protocol] = accept
        if trusted_proxy is not None:
            trusts = trusted_proxy
            make_protocol = lambda: self._proxied.door(trusts, proceed)  # noqa: E731
        listener = await loop.create_server(
            make_protocol, host, port, backlog=LISTEN_BACKLOG, reuse_port=reuse_port or None
        )
        self._listeners.append(((host, port), listener))
        return _addresses(listener)

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where it listens, in the order of the starts."""
        return [address for _, listener in self._listeners for address in _addresses(listener)]

    @property
    def connections(self) -> frozenset[Connection]:
        """Those open now."""
        return frozenset(self._connections)

    def on_handshake_failed(self, tell: Callable[[str, str], None] | None) -> None:
        """Have somebody told of TLS handshakes that fail: the peer's address, and why."""
        self._handshakes.on_failed = tell

    def stop_listening(self, host: str, port: int) -> None:
        """Close the listener on an address. Connections that were accepted there are closed after the request that is
        in progress."""
        for asked, listener in self._listeners:
            if asked == (host, port):
                listener.close()
        self._listeners = [each for each in self._listeners if each[0] != (host, port)]
        for connection in self._connections:
            if connection.accepted_on == (host, port):
                connection.finish_soon()

    async def stop(self, grace_s: float = 0.0) -> None:
        """Accept no more, finish what is in progress within `grace_s`, cancel the rest. Idempotent."""
        self._stopping = True
        for _, listener in self._listeners:
            listener.close()
        await self._proxied.close()
        await self._handshakes.close()
        for connection in self._connections | self._refused:
            connection.finish_soon()
        if tasks := self._tasks():
            await asyncio.wait(tasks, timeout=grace_s)
        for connection in self._connections | self._refused:
            connection.abort()
        if tasks := self._tasks():
            await asyncio.wait(tasks, timeout=CANCEL_TIMEOUT_S)
        self._listeners.clear()

    def _admit_proxied(self, peer_address: str) -> bool:
        room = self.limits.maximum_connections - len(self._connections) - len(self._proxied)
        return room > 0 and not self._stopping

    def _admit_handshake(self, peer_address: str) -> bool:
        if len(self._connections) + len(self._handshakes) >= self.limits.maximum_connections:
            self._handshakes.drop_oldest()
        return not self._stopping

    def opened(self, connection: Connection) -> bool:
        """A connection was accepted; False when it is one too many. Called by the connection."""
        if len(self._connections) < self.limits.maximum_connections and not self._stopping:
            self._connections.add(connection)
            return True
        if len(self._refused) >= MAXIMUM_REFUSED_CONNECTIONS:
            connection.channel.abort()
        self._refused.add(connection)
        return False

    def closed(self, connection: Connection) -> None:
        """Its task has ended. Called by the connection."""
        self._connections.discard(connection)
        self._refused.discard(connection)

    def _tasks(self) -> list[asyncio.Task[None]]:
        open_now = self._connections | self._refused
        return [connection.task for connection in open_now if connection.task is not None]

    def __repr__(self) -> str:
        where = ", ".join(f"{host}:{port}" for host, port in self.addresses)
        return f"<HTTPServer on {where or 'no address'}, {len(self._connections)} connections>"


_SPEAK_TLS = b"This port speaks TLS only: ask for the same with https.\n"


def _answer_plain(first: bytes) -> bytes:
    if name_protocol(first) != "plain HTTP":
        return PROTOCOL_VERSION_ALERT
    head = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
    return (head % len(_SPEAK_TLS)).encode() + _SPEAK_TLS


def _addresses(listener: asyncio.Server) -> list[tuple[str, int]]:
    return [(str(name[0]), int(name[1])) for name in (sock.getsockname() for sock in listener.sockets)]
