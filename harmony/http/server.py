"""The HTTP server: listeners, the connections they accepted, an orderly end.

One server has one handler and any number of listeners, one per network and each with limits of its own; a request
carries the name of the network it came in on. `stop` closes the listeners and the idle connections at once, lets
requests in flight finish within the grace it is given, and cancels what is left. What happens on a connection is in
connection.py.

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
from harmony.http.message import HTTPError, Request, Response
from harmony.ul.held import HELD
from harmony.ul.proxied import ProxiedConnections, Trust
from harmony.ul.shares import ConnectionRate, OnceAWhile, Shares, host_of
from harmony.ul.tls import PROTOCOL_VERSION_ALERT, Handshakes, TLSContext, name_protocol

__all__ = ["Exchanged", "HTTPServer", "ServerLimits"]

logger = logging.getLogger("harmony.http")

LISTEN_BACKLOG = 512
"""Connections the kernel completes ahead of us: a burst of clients is no reason to refuse any."""

MAXIMUM_REFUSED_CONNECTIONS = 100
"""Connections over the limit that are being told so at one time; any more are closed without a word."""

RETRY = {"Retry-After": "1"}

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
        """limits: of listeners that are started without their own. on_exchanged: told of every request when it is over;
        from the event loop, must neither block nor raise."""
        self.handler = handler
        self.on_exchanged = on_exchanged
        self.limits = limits if limits is not None else ServerLimits()
        self._listeners: list[_Listener] = []
        self._left: list[_Listener] = []
        """Not listening any more, with connections whose handshakes or PROXY headers are not over."""
        self.open_connections: set[Connection] = set()
        self.refused_connections: set[Connection] = set()
        self._stopping = False
        self._tell_handshake_failed: Callable[[str, str], None] | None = None

    @property
    def is_stopping(self) -> bool:
        return self._stopping

    async def start(
        self,
        host: str,
        port: int,
        *,
        ssl: TLSContext | None = None,
        reuse_port: bool = False,
        network: str = "",
        trusted_proxy: Trust | None = None,
        limits: ServerLimits | None = None,
    ) -> list[tuple[str, int]]:
        """Listen on one more address; returns where (port 0: a free one). Raises OSError when that is taken.

        ssl: a context, or a function that is asked for one at every handshake. trusted_proxy: which hosts may connect,
        each connection beginning with a header of the PROXY protocol. limits: of the connections that are accepted
        there; those of the server when left out.
        """
        if self._stopping:
            raise RuntimeError("server was stopped")
        listener = _Listener(self, (host, port), network=network, ssl=ssl, limits=limits or self.limits)
        await listener.start(reuse_port=reuse_port, trusted_proxy=trusted_proxy)
        self._listeners.append(listener)
        return listener.addresses

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where it listens, in the order of the starts."""
        return [address for listener in self._listeners for address in listener.addresses]

    @property
    def connections(self) -> frozenset[Connection]:
        """Those open now."""
        return frozenset(self.open_connections)

    @property
    def beginning_count(self) -> int:
        """Connections that came in and are not HTTP yet: TLS handshakes, and PROXY headers that have not come."""
        return sum(listener.beginning_count for listener in [*self._listeners, *self._left])

    def limit(self, host: str, port: int, limits: ServerLimits) -> None:
        """Have other limits on an address, for what is accepted there from now on."""
        for listener in self._listeners:
            if listener.asked == (host, port):
                listener.follow(limits)

    def on_handshake_failed(self, tell: Callable[[str, str], None] | None) -> None:
        """Have somebody told of TLS handshakes that fail: the peer's address, and why."""
        self._tell_handshake_failed = tell

    def handshake_failed(self, peer_address: str, why: str) -> None:
        """Called by a listener."""
        if self._tell_handshake_failed is not None:
            self._tell_handshake_failed(peer_address, why)

    def stop_listening(self, host: str, port: int) -> None:
        """Close the listener on an address. Connections that were accepted there are closed after the request that is
        in progress."""
        leaving = [each for each in self._listeners if each.asked == (host, port)]
        self._listeners = [each for each in self._listeners if each not in leaving]
        self._left = [each for each in [*self._left, *leaving] if each in leaving or each.beginning_count]
        for listener in leaving:
            listener.stop_listening()

    async def stop(self, grace_s: float = 0.0) -> None:
        """Accept no more, finish what is in progress within `grace_s`, cancel the rest. Idempotent."""
        self._stopping = True
        for listener in self._listeners:
            listener.stop_listening()
        for listener in [*self._listeners, *self._left]:
            await listener.close_beginnings()
        for connection in self.open_connections | self.refused_connections:
            connection.finish_soon()
        if tasks := self._tasks():
            await asyncio.wait(tasks, timeout=grace_s)
        for connection in self.open_connections | self.refused_connections:
            connection.abort()
        if tasks := self._tasks():
            await asyncio.wait(tasks, timeout=CANCEL_TIMEOUT_S)
        self._listeners.clear()
        self._left.clear()

    def _tasks(self) -> list[asyncio.Task[None]]:
        open_now = self.open_connections | self.refused_connections
        return [connection.task for connection in open_now if connection.task is not None]

    def __repr__(self) -> str:
        where = ", ".join(f"{host}:{port}" for host, port in self.addresses)
        return f"<HTTPServer on {where or 'no address'}, {len(self.open_connections)} connections>"


class _Listener:
    """One address, and the limits of what is accepted there; the owner of its connections."""

    def __init__(
        self,
        server: HTTPServer,
        asked: tuple[str, int],
        *,
        network: str,
        ssl: TLSContext | None,
        limits: ServerLimits,
    ) -> None:
        """asked: the address as it was asked for."""
        self.asked = asked
        self.limits = limits
        self._server = server
        self._network = network
        self._ssl = ssl
        self._sockets: asyncio.Server | None = None
        self._hosts: Shares[Connection] = Shares()
        self._rate = ConnectionRate()
        self._proxied = ProxiedConnections(
            self._admit_proxied, timeout_s=limits.header_timeout_s, logger=logger
        )
        self._handshakes = Handshakes(
            self._admit_handshake,
            timeout_s=limits.header_timeout_s,
            logger=logger,
            answer_plain=_answer_plain,
            shutdown_timeout_s=LINGER_TIMEOUT_S,
        )
        self._handshakes.on_failed = server.handshake_failed
        self._is_to_be_told = OnceAWhile()

    @property
    def addresses(self) -> list[tuple[str, int]]:
        names = [sock.getsockname() for sock in self._sockets.sockets] if self._sockets is not None else []
        return [(str(name[0]), int(name[1])) for name in names]

    @property
    def beginning_count(self) -> int:
        return len(self._proxied) + len(self._handshakes)

    @property
    def on_exchanged(self) -> Callable[[Exchanged], None] | None:
        return self._server.on_exchanged

    def handler(self, request: Request) -> Awaitable[Response]:
        return self._server.handler(request)

    async def start(self, *, reuse_port: bool, trusted_proxy: Trust | None) -> None:
        loop = asyncio.get_running_loop()

        async def proceed(sock: socket.socket, client: tuple[str, int] | None) -> None:
            await loop.connect_accepted_socket(lambda: self._accept(client), sock)

        make_protocol: Callable[[], asyncio.Protocol] = self._accept
        if trusted_proxy is not None:
            trusts = trusted_proxy
            make_protocol = lambda: self._proxied.door(trusts, proceed)  # noqa: E731
        host, port = self.asked
        self._sockets = await loop.create_server(
            make_protocol, host, port, backlog=LISTEN_BACKLOG, reuse_port=reuse_port or None
        )

    def _accept(self, client: tuple[str, int] | None = None) -> asyncio.Protocol:
        if self._ssl is None:
            return self._make(client=client)
        return self._handshakes.door(self._ssl, functools.partial(self._make, client=client), peer=client)

    def _make(
        self, connected: Callable[[], None] | None = None, client: tuple[str, int] | None = None
    ) -> asyncio.Protocol:
        scheme = "https" if self._ssl is not None else "http"
        connection = Connection(
            self, network=self._network, scheme=scheme, client=client, on_connected=connected
        )
        return connection.channel

    def follow(self, limits: ServerLimits) -> None:
        self.limits = limits
        self._proxied.timeout_s = self._handshakes.timeout_s = limits.header_timeout_s

    def stop_listening(self) -> None:
        if self._sockets is not None:
            self._sockets.close()
        for connection in self._hosts:
            connection.finish_soon()

    async def close_beginnings(self) -> None:
        await self._proxied.close()
        await self._handshakes.close()

    # Who may connect

    def _admit_proxied(self, peer_address: str) -> bool:
        room = self.limits.maximum_connections - len(self._hosts) - len(self._proxied)
        return room > 0 and not self._server.is_stopping

    def _admit_handshake(self, peer_address: str) -> bool:
        """Whoever shakes hands can be told afterwards that there are too many connections; but nobody may have more
        handshakes than connections."""
        host, maximum = host_of(peer_address), self.limits.maximum_connections_per_address
        if maximum and self._handshakes.count(host) >= maximum:
            self._tell(f"{host} has {maximum} handshakes under way, maximum_connections_per_address")
            return False
        if not self._is_within_rate(host):
            return False
        if len(self._hosts) + len(self._handshakes) >= self.limits.maximum_connections:
            self._handshakes.drop_oldest()
        return not self._server.is_stopping

    def opened(self, connection: Connection) -> HTTPError | None:
        """A connection was accepted; the answer to it when it is one too many. Called by the connection."""
        refusal = self._refusal(connection)
        if refusal is None:
            self._hosts.take(connection, connection.client[0])
            self._server.open_connections.add(connection)
            return None
        if len(self._server.refused_connections) >= MAXIMUM_REFUSED_CONNECTIONS:
            connection.channel.abort()
        self._server.refused_connections.add(connection)
        return refusal

    def _refusal(self, connection: Connection) -> HTTPError | None:
        limits, host = self.limits, connection.client[0]
        if self._server.is_stopping:
            return HTTPError(503, "the server stops", headers=RETRY)
        if HELD.is_full:
            self._tell("too much memory is in use, max_held_bytes")
            return HTTPError(503, "too much memory is in use", headers=RETRY)
        if len(self._hosts) >= limits.maximum_connections:
            self._tell(f"maximum_connections, {limits.maximum_connections}, are open")
            return HTTPError(503, "too many connections", headers=RETRY)
        if not self._hosts.has_room(host, limits.maximum_connections_per_address):
            maximum = limits.maximum_connections_per_address
            self._tell(f"{host} has {maximum} open, maximum_connections_per_address")
            return HTTPError(429, "too many connections from your address", headers=RETRY)
        if self._ssl is None and not self._is_within_rate(host):
            return HTTPError(429, "too many connections from your address", headers=RETRY)
        return None

    def _is_within_rate(self, host: str) -> bool:
        per_second = self.limits.connections_per_second_per_address
        if self._rate.admit(host, per_second, now=asyncio.get_running_loop().time()):
            return True
        self._tell(f"{host} opens more than {per_second:g} per second, max_connection_rate")
        return False

    def _tell(self, what: str) -> None:
        if self._is_to_be_told(what, now=asyncio.get_running_loop().time()):
            logger.warning("connections to %s:%d are refused: %s", *self.asked, what)

    def closed(self, connection: Connection) -> None:
        """Its task has ended. Called by the connection."""
        self._hosts.release(connection)
        self._server.open_connections.discard(connection)
        self._server.refused_connections.discard(connection)


_SPEAK_TLS = b"This port speaks TLS only: ask for the same with https.\n"


def _answer_plain(first: bytes) -> bytes:
    if name_protocol(first) != "plain HTTP":
        return PROTOCOL_VERSION_ALERT
    head = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
    return (head % len(_SPEAK_TLS)).encode() + _SPEAK_TLS
