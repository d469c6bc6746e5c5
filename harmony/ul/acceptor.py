"""Accept associations: listen, admit, limit, drain (PS3.8 §7.1, §9.1.4).

An `Acceptor` serves one policy for several called AE titles on any number of addresses. TLS handshakes run
beside the accept loop. The answers to those it cannot take are the standard's: rejected-transient,
service-provider (presentation), temporary-congestion (2/3/1) while it drains and local-limit-exceeded (2/3/2)
when it is full.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from harmony.ul.association import Association, AssociationUser, Timeouts
from harmony.ul.items import UserIdentityAC, UserIdentityRQ
from harmony.ul.negotiation import AcceptorPolicy, negotiate
from harmony.ul.pdu import AssociateRJ, AssociateRQ
from harmony.ul.upper_layer import Role, SizeLimits

__all__ = ["Acceptor", "AcceptorLimits", "IdentityVerifier"]

logger = logging.getLogger("harmony.ul")

LISTEN_BACKLOG = 512
"""Connections the kernel keeps while the loop is busy: modalities that open one association per image come in
bursts."""

IdentityVerifier = Callable[[UserIdentityRQ | None, AssociateRQ, str], Awaitable[bytes | None]]
"""Checks a user identity (PS3.7 §D.3.3.7): given the item 58 or None, the whole request and the peer's
address.

Returns the server response for item 59 (b"" for types 1, 2 and 5); None refuses: rejected-permanent, source
2, reason 1.
"""


@dataclass(frozen=True, slots=True)
class AcceptorLimits:
    """How much an acceptor takes on at once."""

    maximum_associations: int = 256
    """Established or being negotiated; more are rejected with 2/3/2."""
    maximum_connections: int = 1024
    """Transport connections in any phase, those without an A-ASSOCIATE-RQ too; more are closed at once."""


class Acceptor:
    """Listens for associations; each gets its own user from `make_user`.

    policy: may be replaced while running; associations keep what they negotiated.
    verify_identity: called for every request when given; runs under `timeouts.associate_s`.
    """

    def __init__(
        self,
        policy: AcceptorPolicy,
        make_user: Callable[[], AssociationUser],
        *,
        timeouts: Timeouts | None = None,
        limits: AcceptorLimits | None = None,
        size_limits: SizeLimits | None = None,
        verify_identity: IdentityVerifier | None = None,
    ) -> None:
        self.policy = policy
        self.limits = limits or AcceptorLimits()
        self._make_user = make_user
        self._timeouts = timeouts or Timeouts()
        self._size_limits = size_limits
        self._verify_identity = verify_identity
        self._servers: list[asyncio.Server] = []
        self._connections: set[Association] = set()
        self._admitted: set[Association] = set()
        self._decisions: set[asyncio.Task[None]] = set()
        self._draining = False
        self._none_admitted = asyncio.Event()
        self._none_admitted.set()
        self._none_connected = asyncio.Event()
        self._none_connected.set()

    @property
    def associations(self) -> frozenset[Association]:
        """Those established or being negotiated."""
        return frozenset(self._admitted)

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """(host, port) of every listening socket, in the order in which they were opened."""
        return [sock.getsockname()[:2] for server in self._servers for sock in server.sockets]

    async def listen(
        self,
        host: str | None,
        port: int,
        *,
        ssl_context: ssl.SSLContext | None = None,
        reuse_port: bool = False,
        sock: socket.socket | None = None,
    ) -> None:
        """Accept associations on one more address; port 0 takes a free one. Raises OSError when it is
        taken."""
        loop = asyncio.get_running_loop()
        handshake_s = self._timeouts.tls_handshake_s if ssl_context is not None else None
        if sock is not None:
            server = await loop.create_server(
                self._make_association, sock=sock, ssl=ssl_context, ssl_handshake_timeout=handshake_s
            )
        else:
            server = await loop.create_server(
                self._make_association,
                host,
                port,
                ssl=ssl_context,
                ssl_handshake_timeout=handshake_s,
                backlog=LISTEN_BACKLOG,
                reuse_port=reuse_port or None,
            )
        self._servers.append(server)

    async def drain(self, grace_s: float) -> None:
        """Stop in order: reject new associations (2/3/1), let the open ones end, abort what is left after
        grace_s.

        The sockets stay open while associations last, so that senders hear a transient rejection, not a
        refused connection. Returns when every connection is closed.
        """
        self._draining = True
        for association in list(self._connections):
            if association not in self._admitted:
                association.abort()
        try:
            async with asyncio.timeout(grace_s):
                await self._none_admitted.wait()
        except TimeoutError:
            logger.warning("%d associations did not end in %g s: aborting them", len(self._admitted), grace_s)
        await self.close()

    async def close(self) -> None:
        """Stop at once: close the sockets, abort every association, wait until all are closed."""
        self._draining = True
        for server in self._servers:
            server.close()
        for association in list(self._connections):
            association.abort()
            association.cut_after_writing()
        await self._none_connected.wait()
        self._servers.clear()

    def _make_association(self) -> Association:
        association = Association(
            Role.ACCEPTOR,
            self._make_user(),
            timeouts=self._timeouts,
            limits=self._size_limits,
            on_connected=self._connected,
            on_request=self._requested,
            on_ended=self._ended,
            on_closed=self._closed,
        )
        return association

    def _connected(self, association: Association) -> None:
        self._connections.add(association)
        self._none_connected.clear()
        if len(self._connections) > self.limits.maximum_connections:
            logger.warning(
                "connection from %s closed: %d connections are open, maximum_connections is %d",
                association.peer_address,
                len(self._connections) - 1,
                self.limits.maximum_connections,
            )
            association.abort()

    def _ended(self, association: Association) -> None:
        self._admitted.discard(association)
        if not self._admitted:
            self._none_admitted.set()

    def _closed(self, association: Association) -> None:
        self._connections.discard(association)
        if not self._connections:
            self._none_connected.set()

    def _requested(self, association: Association, request: AssociateRQ) -> None:
        if self._draining:
            association.answer(AssociateRJ(2, 3, 1))
            return
        if len(self._admitted) >= self.limits.maximum_associations:
            association.answer(AssociateRJ(2, 3, 2))
            return
        self._admitted.add(association)
        self._none_admitted.clear()
        if self._verify_identity is None:
            association.answer(negotiate(request, self.policy))
            return
        task = asyncio.get_running_loop().create_task(self._decide(association, request))
        self._decisions.add(task)
        task.add_done_callback(self._decisions.discard)

    async def _decide(self, association: Association, request: AssociateRQ) -> None:
        assert self._verify_identity is not None
        identity = request.user_information.user_identity_rq
        try:
            async with asyncio.timeout(self._timeouts.associate_s):
                response = await self._verify_identity(identity, request, association.peer_address)
        except Exception:
            logger.exception("association %d: the user identity could not be verified", association.number)
            response = None
        if response is None:
            association.answer(AssociateRJ(1, 2, 1))
            return
        wanted = identity is not None and identity.positive_response_requested
        association.answer(
            negotiate(request, self.policy, identity_response=UserIdentityAC(response) if wanted else None)
        )
