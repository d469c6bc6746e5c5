"""Accept associations: listen, admit, limit, drain (PS3.8 §7.1, §9.1.4).

An `Acceptor` serves one policy for several called AE titles on any number of addresses. The answers to those it
cannot take are the standard's: rejected-transient, service-provider (presentation), temporary-congestion (2/3/1)
while it drains and local-limit-exceeded (2/3/2) when it is full, or the peer has as much of it as one may have.

TLS handshakes run beside the accept loop (`harmony.ul.tls`): a frozen one delays nobody, a failed one is logged with
its cause. They count as connections; where there are too many, the handshake that has taken longest makes room.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from harmony.ul.association import Association, AssociationUser
from harmony.ul.deadlines import Timeouts
from harmony.ul.held import HELD
from harmony.ul.items import UserIdentityAC, UserIdentityRQ
from harmony.ul.negotiation import AcceptorPolicy, negotiate
from harmony.ul.pdu import AssociateAC, AssociateRJ, AssociateRQ
from harmony.ul.proxied import ProxiedConnections, Trust
from harmony.ul.shares import ConnectionRate, OnceAWhile, Shares, host_of
from harmony.ul.tls import Handshakes, TLSContext
from harmony.ul.upper_layer import Role, SizeLimits

__all__ = ["Acceptor", "AcceptorLimits", "IdentityVerifier", "PolicyChoice", "VerifiedIdentity"]

logger = logging.getLogger("harmony.ul")

LISTEN_BACKLOG = 512
"""Connections the kernel keeps while the loop is busy: modalities that open one association per image come in
bursts."""


@dataclass(frozen=True, slots=True)
class VerifiedIdentity:
    """What an `IdentityVerifier` found out."""

    server_response: bytes | None = b""
    """For item 59, when the peer asked for one: b"" for types 1, 2 and 5. None: there was nothing to verify, so that
    nothing is answered either."""
    principal: object | None = None
    """Who it is, in the verifier's own words: kept as `Association.principal`."""


IdentityVerifier = Callable[
    [UserIdentityRQ | None, AssociateRQ, Association],
    Awaitable[bytes | VerifiedIdentity | AssociateRJ | None],
]
"""Checks a user identity (PS3.7 §D.3.3.7): given the item 58 or None, the whole request and the
association that is to be, for its `peer_address` and `peer_certificate`.

Bytes accept, and are the server response of a `VerifiedIdentity`. None refuses: rejected-permanent, source 2, reason
1. An AssociateRJ refuses in its own way: rejected-transient, for one who is to come back later.
"""

PolicyChoice = Callable[[AssociateRQ, Association], AcceptorPolicy | AssociateRJ]


@dataclass(frozen=True, slots=True)
class AcceptorLimits:
    """How much an acceptor takes on at once."""

    maximum_associations: int = 256
    """Established or being negotiated; more are rejected with 2/3/2."""
    maximum_connections: int = 1024
    """Transport connections in any phase, TLS handshake included. More are closed at once, handshakes before any
    association."""
    maximum_associations_per_calling_ae_title: int = 0
    """Of those above; more are rejected with 2/3/2. 0: no limit but that above, as for everything below."""
    maximum_associations_per_address: int = 0
    maximum_connections_per_address: int = 0
    """More are closed at once, before a TLS handshake."""
    connections_per_second_per_address: float = 0.0
    """On average, see `shares`; more are closed at once. For peers that take a rejection for a reason to try again
    immediately."""


class Acceptor:
    """Listens for associations; each gets its own user from `make_user`.

    policy: one for all, or chosen for each request (by called AE title, say, or by the address of the association that
    is to be); an AssociateRJ refuses. It may be replaced while running, associations keep what they negotiated.
    verify_identity: called for every request when given, as a task that has `timeouts.associate_s` and is cancelled
    when the peer goes away.
    """

    def __init__(
        self,
        policy: AcceptorPolicy | PolicyChoice,
        make_user: Callable[[], AssociationUser],
        *,
        timeouts: Timeouts | None = None,
        limits: AcceptorLimits | None = None,
        size_limits: SizeLimits | None = None,
        verify_identity: IdentityVerifier | None = None,
    ) -> None:
        self.policy = policy
        self.limits = limits or AcceptorLimits()
        self.rejections: Counter[tuple[int, int, int]] = Counter()
        """How many associations were rejected, by result, source and reason (PS3.8 Table 9-21)."""
        self.on_rejected: Callable[[Association, AssociateRQ, AssociateRJ], None] | None = None
        """Told of each of them; from the event loop, must neither block nor raise."""
        self.on_accepting: Callable[[Association, AssociateRQ, AssociateAC], bool] | None = None
        """Asked before an association is accepted with this answer: True has handed it over (`harmony.ul.handover`).
        It counts here until that is reported to be over."""
        self.before_refusing: Callable[[], None] | None = None
        """Called when there is no room for an association, to hear of the ends of those that were handed over."""
        self._make_user = make_user
        self._timeouts = timeouts or Timeouts()
        self._size_limits = size_limits
        self._verify_identity = verify_identity
        self._servers: list[asyncio.Server] = []
        self._connections: set[Association] = set()
        self._admitted: set[Association] = set()
        self._decisions: dict[Association, asyncio.Task[None]] = {}
        self._handshakes = Handshakes(
            self._admit_handshake, timeout_s=self._timeouts.tls_handshake_s, logger=logger
        )
        self._proxied = ProxiedConnections(
            self._admit_proxied, timeout_s=self._timeouts.artim_s, logger=logger
        )
        self._admitted_titles: Shares[Association] = Shares()
        self._admitted_hosts: Shares[Association] = Shares()
        self._connected_hosts: Shares[Association] = Shares()
        self._rate = ConnectionRate()
        self._is_to_be_told = OnceAWhile()
        self._draining = False
        self._closing = False
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
        ssl_context: TLSContext | None = None,
        reuse_port: bool = False,
        sock: socket.socket | None = None,
        trusted_proxy: Trust | None = None,
    ) -> None:
        """Accept associations on one more address; port 0 takes a free one. Raises OSError when it is
        taken. When it is cancelled, `close` leaves nothing open.

        ssl_context: a context, or a function that is asked for one at every handshake. trusted_proxy: which hosts may
        connect, each connection beginning with a header of the PROXY protocol.
        """
        loop = asyncio.get_running_loop()

        def accepted(peer: tuple[str, int] | None = None) -> asyncio.BaseProtocol:
            if ssl_context is None:
                return self._make_association(peer=peer)
            return self._handshakes.door(ssl_context, functools.partial(self._over_tls, peer=peer), peer=peer)

        async def proceed(proxied: socket.socket, peer: tuple[str, int] | None) -> None:
            await loop.connect_accepted_socket(lambda: accepted(peer), proxied)

        make_protocol: Callable[[], asyncio.BaseProtocol] = accepted
        if trusted_proxy is not None:
            trusts = trusted_proxy
            make_protocol = lambda: self._proxied.door(trusts, proceed)  # noqa: E731
        if sock is not None:
            server = await loop.create_server(
                make_protocol, sock=sock, backlog=LISTEN_BACKLOG, start_serving=False
            )
        else:
            server = await loop.create_server(
                make_protocol,
                host,
                port,
                backlog=LISTEN_BACKLOG,
                reuse_port=reuse_port or None,
                start_serving=False,
            )
        self._servers.append(server)  # before it serves, which takes a moment in which we may be cancelled
        await server.start_serving()

    def on_handshake_failed(self, tell: Callable[[str, str], None] | None) -> None:
        """Have somebody told of TLS handshakes that fail: the peer's address, and why."""
        self._handshakes.on_failed = tell

    @property
    def timeouts(self) -> Timeouts:
        return self._timeouts

    def follow(self, other: Acceptor) -> None:
        """Take on the timeouts, limits and checks of another acceptor, for associations that are accepted from now
        on."""
        self.limits = other.limits
        self._timeouts = other._timeouts
        self._size_limits = other._size_limits
        self._verify_identity = other._verify_identity
        self._handshakes.timeout_s = self._timeouts.tls_handshake_s
        self._proxied.timeout_s = self._timeouts.artim_s

    def stop_listening(self) -> None:
        """Close the sockets listened on; associations, and requests for one that have come in, go on."""
        for server in self._servers:
            server.close()
        self._servers.clear()

    async def drain(self, grace_s: float) -> None:
        """Stop in order: reject new associations (2/3/1), let the open ones end, abort what is left after
        grace_s.

        The sockets stay open while associations last, so that senders hear a transient rejection, not a
        refused connection. Returns when every connection is closed.
        """
        # A connection whose request is still on its way gets its 2/3/1 too; one that stays silent is cut by `close`.
        self._draining = True
        try:
            async with asyncio.timeout(grace_s):
                await self._none_admitted.wait()
        except TimeoutError:
            logger.warning("%d associations did not end in %g s: aborting them", len(self._admitted), grace_s)
        await self.close()

    async def close(self) -> None:
        """Stop at once: close the sockets, abort every association, wait until all are closed."""
        self._draining = self._closing = True
        self.stop_listening()
        await self._proxied.close()
        for association in list(self._connections):
            association.abort()
            association.cut_after_writing()
        await self._handshakes.close()
        await asyncio.gather(*self._decisions.values(), return_exceptions=True)
        await self._none_connected.wait()

    def _make_association(
        self,
        connected: Callable[[Association], None] | None = None,
        *,
        peer: tuple[str, int] | None = None,
    ) -> Association:
        return Association(
            Role.ACCEPTOR,
            self._make_user(),
            peer=peer,
            timeouts=self._timeouts,
            limits=self._size_limits,
            on_connected=connected or self._connected,
            on_request=self._requested,
            on_ended=self._ended,
            on_closed=self._closed,
        )

    def _over_tls(self, shaken: Callable[[], None], *, peer: tuple[str, int] | None = None) -> Association:
        def connected(association: Association) -> None:
            shaken()
            self._join(association)

        return self._make_association(connected, peer=peer)

    def _admit_handshake(self, peer_address: str) -> bool:
        return not self._closing and self._has_share(host_of(peer_address)) and self._has_room(peer_address)

    def _connected(self, association: Association) -> None:
        has_room = self._has_share(association.peer[0]) and self._has_room(association.peer_address)
        self._join(association)
        if not has_room:
            association.abort()

    def _join(self, association: Association) -> None:
        self._connections.add(association)
        self._connected_hosts.take(association, association.peer[0])
        self._none_connected.clear()
        if self._closing:
            association.abort()

    def _has_room(self, peer_address: str) -> bool:
        count = len(self._connections) + len(self._handshakes) + len(self._proxied)
        if count < self.limits.maximum_connections or self._handshakes.drop_oldest():
            return True
        logger.warning(
            "connection from %s closed: %d connections are open, maximum_connections is %d",
            peer_address,
            count,
            self.limits.maximum_connections,
        )
        return False

    def _has_share(self, host: str) -> bool:
        """Whether one more connection is within what one address may have; it counts for the rate if so."""
        limits, now = self.limits, asyncio.get_running_loop().time()
        count = self._connected_hosts.count(host) + self._handshakes.count(host)
        maximum = limits.maximum_connections_per_address
        if maximum and count >= maximum:
            problem = f"it has {maximum} open, which is maximum_connections_per_address"
        elif not self._rate.admit(host, limits.connections_per_second_per_address, now=now):
            problem = (
                f"more than connections_per_second_per_address, {limits.connections_per_second_per_address:g}"
            )
        else:
            return True
        if self._is_to_be_told((host, problem), now=now):
            logger.warning("connections from %s are closed: %s", host, problem)
        return False

    def _admit_proxied(self, peer_address: str) -> bool:
        return not self._closing and self._has_room(peer_address)

    def _ended(self, association: Association) -> None:
        decision = self._decisions.get(association)
        if decision is not None:
            decision.cancel()  # nobody waits for the answer any more
        self._admitted.discard(association)
        self._admitted_titles.release(association)
        self._admitted_hosts.release(association)
        if not self._admitted:
            self._none_admitted.set()

    def _closed(self, association: Association) -> None:
        self._connections.discard(association)
        self._connected_hosts.release(association)
        if not self._connections:
            self._none_connected.set()

    def _requested(self, association: Association, request: AssociateRQ) -> None:
        if self._draining:
            self._reject(association, request, AssociateRJ(2, 3, 1))
            return
        full = self._limit_reached(association, request)
        if full and self.before_refusing is not None:
            self.before_refusing()
            full = self._limit_reached(association, request)
        if full:
            if self._is_to_be_told(full, now=asyncio.get_running_loop().time()):
                logger.warning("associations are rejected: %s", full)
            self._reject(association, request, AssociateRJ(2, 3, 2))
            return
        self._admitted.add(association)
        self._admitted_titles.take(association, request.calling_ae_title)
        self._admitted_hosts.take(association, association.peer[0])
        self._none_admitted.clear()
        if self._verify_identity is None:
            self._answer(association, request, None)
            return
        self._decisions[association] = asyncio.get_running_loop().create_task(
            self._decide(association, request, self._verify_identity)
        )

    def _limit_reached(self, association: Association, request: AssociateRQ) -> str | None:
        """Why there is no room for one more association of this peer, in words."""
        limits, title, host = self.limits, request.calling_ae_title, association.peer[0]
        if HELD.is_full:
            return f"{HELD.held_bytes} bytes are held for peers, and no more than {HELD.limit_bytes} may be"
        if len(self._admitted) >= limits.maximum_associations:
            return f"maximum_associations, {limits.maximum_associations}, are open"
        if not self._admitted_titles.has_room(title, limits.maximum_associations_per_calling_ae_title):
            maximum = limits.maximum_associations_per_calling_ae_title
            return f"{title!r} has {maximum} open, which is maximum_associations_per_calling_ae_title"
        if not self._admitted_hosts.has_room(host, limits.maximum_associations_per_address):
            maximum = limits.maximum_associations_per_address
            return f"{host} has {maximum} open, which is maximum_associations_per_address"
        return None

    async def _decide(self, association: Association, request: AssociateRQ, verify: IdentityVerifier) -> None:
        identity = request.user_information.user_identity_rq
        try:
            async with asyncio.timeout(self._timeouts.associate_s):
                response = await verify(identity, request, association)
        except Exception:
            logger.exception("association %d: the user identity could not be verified", association.number)
            response = None
        finally:
            del self._decisions[association]
        if response is None or isinstance(response, AssociateRJ):
            self._reject(association, request, response or AssociateRJ(1, 2, 1))
            return
        verified = response if isinstance(response, VerifiedIdentity) else VerifiedIdentity(response)
        association.principal = verified.principal
        answer = None
        if identity is not None and identity.positive_response_requested:
            answer = verified.server_response
        self._answer(association, request, UserIdentityAC(answer) if answer is not None else None)

    def _answer(
        self, association: Association, request: AssociateRQ, identity_response: UserIdentityAC | None
    ) -> None:
        """Negotiate; a policy or user that fails costs its own association only, and the peer gets an answer."""
        try:
            policy = self.policy(request, association) if callable(self.policy) else self.policy
            response: AssociateAC | AssociateRJ
            if isinstance(policy, AssociateRJ):
                response = policy
            else:
                response = negotiate(request, policy, identity_response=identity_response)
            if isinstance(response, AssociateRJ):
                self._reject(association, request, response)
            elif self.on_accepting is None or not self.on_accepting(association, request, response):
                association.answer(response)
        except Exception:
            logger.exception("association %d could not be accepted", association.number)
            association.answer(AssociateRJ(1, 1, 1))  # nothing happens when an A-ASSOCIATE-AC has been sent
            association.abort()

    def _reject(self, association: Association, request: AssociateRQ, rejection: AssociateRJ) -> None:
        self.rejections[rejection.result, rejection.source, rejection.reason] += 1
        if self.on_rejected is not None:
            self.on_rejected(association, request, rejection)
        association.answer(rejection)
