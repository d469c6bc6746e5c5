"""The `dicom_scp` endpoint: a DICOM listener in front of a Backend (its options: docs/CONFIGURATION.md).

One `DicomListener` per address; endpoints that share an address are told apart by the called AE title. C-ECHO is
answered here, everything else by the endpoint's backend. A disabled operation is not accepted in negotiation. Callers
of an endpoint with an `authentication` prove who they are (`dicom_authentication`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from harmony.dimse.move_receiver import OpenSink
from harmony.dimse.observer import Observer
from harmony.dimse.scp import Server, Services, WholeStoreFor
from harmony.gateway.authentication import Gate
from harmony.gateway.backend import Backend
from harmony.gateway.config import Endpoint, Listener
from harmony.gateway.dicom_authentication import IdentityCheck
from harmony.gateway.dimse_policies import DimsePolicies
from harmony.gateway.local_archive import LocalArchive
from harmony.gateway.options import CONNECTIONS_PER_ASSOCIATION, DicomScpOptions
from harmony.gateway.query_retrieve import QueryRetrieve
from harmony.gateway.store_receiver import StoreReceivers
from harmony.gateway.tls import Certificates
from harmony.gateway.workers import ReceivingEndpoint, WorkerPool
from harmony.ul.acceptor import AcceptorLimits
from harmony.ul.association import Association
from harmony.ul.deadlines import Timeouts
from harmony.ul.negotiation import AcceptorPolicy
from harmony.ul.pdu import AssociateAC, AssociateRJ, AssociateRQ

__all__ = ["DicomListener", "DicomSCP", "timeouts_of"]

logger = logging.getLogger("harmony.gateway")


@dataclass(frozen=True, slots=True)
class DicomSCP:
    """One endpoint and what is behind it."""

    endpoint: Endpoint
    backend: Backend
    observer: Observer | None = None
    moves: StoreReceivers | None = None
    """Whose retrieves get what they wait for, before it is the backend's."""
    gate: Gate | None = None
    """Where callers prove who they are; None: they need not."""
    policies: tuple[DimsePolicies, ...] = ()
    """All of them must agree."""
    certificates: Certificates = field(default_factory=Certificates)
    """For destinations of C-MOVE that are called over TLS."""
    receiving: ReceivingEndpoint | None = None
    """What may be handed over to a worker; None: nothing."""

    @property
    def options(self) -> DicomScpOptions:
        options = self.endpoint.options
        assert isinstance(options, DicomScpOptions)
        return options

    @property
    def query_retrieve(self) -> QueryRetrieve:
        return QueryRetrieve(
            self.backend, self.options, observer=self.observer, certificates=self.certificates
        )

    def services(self) -> Services:
        """What this endpoint performs, by its enable_* flags."""
        options, services = self.options, Services()
        if not options.enable_echo:
            services.no_echo()
        open_sink: OpenSink | None = self.backend.store if options.enable_store else None
        whole: WholeStoreFor | None = None
        if options.enable_store and isinstance(self.backend, LocalArchive):
            whole = self.backend.whole_store
        if self.moves is not None:
            open_sink = self.moves.open_sink(open_sink)
            whole = None if whole is None else self.moves.whole_store(whole)
        if open_sink is not None:
            services.store(
                open_sink,
                whole=whole,
                sop_classes=options.sop_classes or None,
                transfer_syntaxes=options.transfer_syntaxes or None,
            )
        if self.backend.can_be_queried:
            self.query_retrieve.register(services)
        if self.observer is not None:
            services.observe(self.observer)
        for each in self.policies:
            services.authorize(each.authorize)
        services.on_association(self.backend.association_established, self.backend.association_ended)
        return services

    def policy(self) -> AcceptorPolicy:
        """Who is let in, and what is announced. The abstract syntaxes are those of the services."""
        options = self.options
        return AcceptorPolicy(
            ae_titles=frozenset() if options.accept_any_called_ae else frozenset({options.local_aet}),
            calling_ae_titles=options.allowed_calling_ae_titles(),
            maximum_length=options.max_pdu,
            maximum_operations_performed=options.max_operations,
            extended_negotiation=self.query_retrieve.extended_negotiation,
        )

    def admit(
        self, request: AssociateRQ, association: Association, policy: AcceptorPolicy
    ) -> AcceptorPolicy | AssociateRJ:
        """What the policies make of the policy for one association."""
        for each in self.policies:
            answer = each.admit(request, association, policy)
            if isinstance(answer, AssociateRJ):
                return answer
            policy = answer
        return policy


def timeouts_of(options: DicomScpOptions) -> Timeouts:
    return Timeouts(
        artim_s=options.artim_timeout_secs,
        release_s=options.association_timeout_secs,
        pdu_s=options.pdu_timeout_secs,
        write_s=options.pdu_timeout_secs,
        idle_s=options.idle_timeout_secs,
    )


def acceptor_limits(options: DicomScpOptions) -> AcceptorLimits:
    return AcceptorLimits(
        maximum_associations=options.max_associations,
        maximum_connections=options.max_connections or CONNECTIONS_PER_ASSOCIATION * options.max_associations,
        maximum_associations_per_calling_ae_title=options.max_associations_per_ae,
        maximum_associations_per_address=options.max_associations_per_address,
        maximum_connections_per_address=options.max_connections_per_address,
        connections_per_second_per_address=options.max_connection_rate,
    )


class DicomListener:
    """The server on one address."""

    def __init__(
        self, address: Listener, scps: Sequence[DicomSCP], *, workers: WorkerPool | None = None
    ) -> None:
        """scps: at least one; timers, and limits on associations and connections, are those of the first. workers:
        who takes associations that only store."""
        self.address = address
        self.scps = tuple(scps)
        self._workers = workers
        options = self.scps[0].options
        self.server = Server(
            timeouts=timeouts_of(options),
            limits=acceptor_limits(options),
            verify_identity=IdentityCheck(self._gate_of) if any(scp.gate for scp in self.scps) else None,
        )
        for scp in self.scps:
            self.server.add(scp.services(), scp.policy(), admit=scp.admit if scp.policies else None)
        if workers is not None:
            self.server.acceptor.on_accepting = self._hand_over
            self.server.acceptor.before_refusing = workers.catch_up

    def _hand_over(self, association: Association, request: AssociateRQ, response: AssociateAC) -> bool:
        """`Acceptor.on_accepting`. Those who receive for retrieves of ours as well receive here."""
        scp = self._scp_of(request)
        if self._workers is None or scp is None or scp.receiving is None:
            return False
        if self.address.tls is not None or scp.moves is not None:
            return False
        return self._workers.hand_over(scp.receiving, association, request, response)

    def _gate_of(self, request: AssociateRQ) -> tuple[str, Gate | None]:
        scp = self._scp_of(request)
        return (scp.endpoint.name, scp.gate) if scp is not None else ("", None)

    def _scp_of(self, request: AssociateRQ) -> DicomSCP | None:
        """That which answers to the called AE title. A title that nobody has is refused in negotiation."""
        titles = {title: scp for scp in self.scps for title in scp.policy().ae_titles}
        any_title = next((scp for scp in self.scps if scp.options.accept_any_called_ae), None)
        return titles.get(request.called_ae_title, any_title)

    @property
    def receiving(self) -> list[ReceivingEndpoint]:
        """What may be handed over."""
        return [scp.receiving for scp in self.scps if scp.receiving is not None]

    async def start(self) -> None:
        """Listen. Raises OSError naming the address when it is taken, or a certificate cannot be read."""
        context, tls = None, self.address.tls
        if tls is not None:
            context = await asyncio.to_thread(self.scps[0].certificates.server, tls)
        trusted = self.address.trusts if self.address.proxy_protocol else None
        await self.server.listen(
            self.address.host, self.address.port, ssl_context=context, trusted_proxy=trusted
        )

    def follow(self, other: DicomListener) -> None:
        """Have the endpoints of another listener, which has not started, from now on. Associations go on as they were
        accepted."""
        self.scps = other.scps
        self._workers = other._workers
        self.server.follow(other.server)

    async def stop(self, grace_s: float) -> None:
        """Let associations end within grace_s, rejecting new ones, then abort what is left."""
        await self.server.drain(grace_s)
