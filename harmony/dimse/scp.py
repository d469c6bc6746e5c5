"""Performing DIMSE services: which ones, by whom, on which address (PS3.7 §8, PS3.4).

`Services` is a table of handlers by service and SOP class; it also is what negotiation accepts. `serve` puts
it on an address:

    services = Services()
    services.store(lambda request: MySink(request))
    async with serve(services, ae_title="ARCHIVE", port=11112) as server:
        await server.wait_closed()

A C-STORE handler opens a `Sink`. Any other handler gets an `Operation`, in a task of its own. C-ECHO is
answered without one. What no handler was given for is refused in negotiation.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from harmony.dimse.command import CEchoRQ, CStoreRQ, Message, NEventReportRQ
from harmony.dimse.exchange import Exchange
from harmony.dimse.observer import Observer
from harmony.dimse.operation import Handler, StoreRequest
from harmony.dimse.sink import Sink, WholeStore
from harmony.dimse.sop_class import VERIFICATION, is_storage_sop_class
from harmony.dimse.status import DimseError, Status
from harmony.ul.acceptor import Acceptor, AcceptorLimits, IdentityVerifier
from harmony.ul.association import Association
from harmony.ul.deadlines import Timeouts
from harmony.ul.errors import AssociationError
from harmony.ul.negotiation import (
    DEFAULT_MAXIMUM_LENGTH,
    AcceptorPolicy,
    PresentationContext,
    SupportedAbstractSyntax,
)
from harmony.ul.pdu import AssociateRJ, AssociateRQ
from harmony.ul.tls import TLSContext
from harmony.ul.upper_layer import SizeLimits

__all__ = ["Admission", "Authorization", "Server", "Services", "serve"]

logger = logging.getLogger("harmony.dimse")

UNCOMPRESSED = frozenset({"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"})
"""Transfer syntaxes for everything that is not an instance: identifiers and attribute lists are small and
native."""

Authorization = Callable[[Message, PresentationContext, Association], None]
"""Asked about a request, on its context and association; raises DimseError to refuse it."""

WholeStoreFor = Callable[[StoreRequest], WholeStore | None]
"""Asked for the short cut of everything that is like a request but for its Message ID and SOP Instance UID."""

Admission = Callable[[AssociateRQ, Association, AcceptorPolicy], AcceptorPolicy | AssociateRJ]
"""Asked about an association that is requested: the policy for it, the given one or a stricter one, or a refusal."""


class Services:
    """What an SCP performs. Fill it before it serves; it may be shared by servers and associations."""

    def __init__(self) -> None:
        self._store: Callable[[StoreRequest], Sink] | None = None
        self._store_by_class: dict[str, Callable[[StoreRequest], Sink]] = {}
        self._whole_stores: dict[Callable[[StoreRequest], Sink], WholeStoreFor] = {}
        self._handlers: dict[type[Message], dict[str, Handler]] = {}
        # What negotiation accepts in either role, by SOP class; and for storage SOP classes that nobody listed.
        self._as_scp = {VERIFICATION: SupportedAbstractSyntax(UNCOMPRESSED)}
        self._as_scu: dict[str, SupportedAbstractSyntax] = {}
        self._other_storage_as_scp: SupportedAbstractSyntax | None = None
        self._other_storage_as_scu: SupportedAbstractSyntax | None = None
        self.observer: Observer | None = None
        self._authorizations: list[Authorization] = []
        self._on_established: list[Callable[[Association], None]] = []
        self._on_ended: list[Callable[[Association, AssociationError | None], None]] = []

    # Registering ----

    def no_echo(self) -> None:
        """Do not accept the Verification SOP Class."""
        self._as_scp.pop(VERIFICATION, None)

    def store(
        self,
        open_sink: Callable[[StoreRequest], Sink],
        *,
        sop_classes: Iterable[str] | None = None,
        transfer_syntaxes: Iterable[str] | None = None,
        whole: WholeStoreFor | None = None,
    ) -> None:
        """Perform C-STORE with the sinks that open_sink returns.

        sop_classes: those it is for; None is any storage SOP class, private and future ones too.
        transfer_syntaxes: those accepted; None is any, as the bytes are not decoded here.
        open_sink raises DimseError to refuse an instance before its data comes.
        whole: a short cut for instances that come in one fragment. It is asked once for all that are like a request
        but for their Message and SOP Instance UID, and not where requests are to be authorized one by one.
        """
        if whole is not None:
            self._whole_stores[open_sink] = whole
        support = SupportedAbstractSyntax(_set(transfer_syntaxes))
        if sop_classes is None:
            self._store, self._other_storage_as_scp = open_sink, support
        for sop_class in sop_classes or ():
            self._store_by_class[sop_class] = open_sink
            self._as_scp[sop_class] = support

    def store_as_scu(
        self, *, sop_classes: Iterable[str] | None = None, transfer_syntaxes: Iterable[str] | None = None
    ) -> None:
        """Take the SCU role of storage towards requestors that offer the SCP role, as a C-GET needs (PS3.4
        §C.4.3). sop_classes, transfer_syntaxes: as for `store`."""
        support = SupportedAbstractSyntax(_set(transfer_syntaxes), scp=False, scu=True)
        if sop_classes is None:
            self._other_storage_as_scu = support
        self._as_scu.update(dict.fromkeys(sop_classes or (), support))

    def operation(self, request_type: type[Message], sop_classes: Iterable[str], handler: Handler) -> None:
        """Perform another service (C-FIND, C-GET, C-MOVE, C-ECHO, N-...) for SOP classes with a handler."""
        table = self._handlers.setdefault(request_type, {})
        for sop_class in sop_classes:
            table[sop_class] = handler
            if request_type is not CEchoRQ:
                self._as_scp[sop_class] = SupportedAbstractSyntax(UNCOMPRESSED)
            if request_type is NEventReportRQ:
                # Event reports come from the SCP, which may have requested the association to send them.
                self._as_scu[sop_class] = SupportedAbstractSyntax(UNCOMPRESSED, scp=False, scu=True)

    def on_association(
        self,
        established: Callable[[Association], None] | None = None,
        ended: Callable[[Association, AssociationError | None], None] | None = None,
    ) -> None:
        """Be told of associations; called from the event loop, must not block.

        established: may raise, which aborts the association.
        """
        if established is not None:
            self._on_established.append(established)
        if ended is not None:
            self._on_ended.append(ended)

    def authorize(self, authorization: Authorization) -> None:
        """Have each request looked at before it is performed, C-ECHO and C-STORE included."""
        self._authorizations.append(authorization)

    def observe(self, observer: Observer) -> None:
        """Have what is performed, and invoked, on the associations of these services counted by somebody."""
        self.observer = observer

    # Asked by negotiation and the exchange ----

    def support_for(self, abstract_syntax: str) -> SupportedAbstractSyntax | None:
        """The transfer syntaxes and roles for a SOP class; None when nobody performs or wants it."""
        scp, scu = self._as_scp.get(abstract_syntax), self._as_scu.get(abstract_syntax)
        if is_storage_sop_class(abstract_syntax):
            scp, scu = scp or self._other_storage_as_scp, scu or self._other_storage_as_scu
        if scp is None or scu is None:
            return scp or scu
        return replace(scp, scu=True)

    def check_authorized(
        self, request: Message, context: PresentationContext, association: Association
    ) -> None:
        """Raises DimseError for a request that is not to be performed."""
        for authorization in self._authorizations:
            authorization(request, context, association)

    def open_sink(self, request: StoreRequest) -> Sink:
        """The sink for one C-STORE; raises DimseError where none was registered, or the request is not authorized.

        Lenient: the command may name another SOP class than its context, when both are for storage.
        """
        of_command, of_context = request.affected_sop_class_uid, request.context.abstract_syntax
        open_sink = self._opener(of_context)
        if of_command != of_context and open_sink is not None:
            logger.info(
                "association %d: C-STORE of %r on a context for %s",
                request.association.number,
                of_command,
                of_context,
            )
            open_sink = self._opener(of_command) or open_sink
        if open_sink is None:
            raise DimseError(Status.SOP_CLASS_NOT_SUPPORTED, "SOP class not supported for storage")
        self.check_authorized(request.command, request.context, request.association)
        return open_sink(request)

    def whole_store(self, request: StoreRequest) -> WholeStore | None:
        """The short cut for all that are like a request, for which a sink was opened; None when there is none."""
        if self._authorizations or request.affected_sop_class_uid != request.context.abstract_syntax:
            return None
        open_sink = self._opener(request.context.abstract_syntax)
        whole = None if open_sink is None else self._whole_stores.get(open_sink)
        return None if whole is None else whole(request)

    def _opener(self, sop_class: str) -> Callable[[StoreRequest], Sink] | None:
        found = self._store_by_class.get(sop_class)
        if found is None and sop_class not in self._as_scp and is_storage_sop_class(sop_class):
            return self._store
        return found

    def handler(self, request: Message, context: PresentationContext) -> Handler | None:
        """The handler for a request, by its SOP class or that of its context."""
        assert not isinstance(request, CStoreRQ)
        table = self._handlers.get(type(request))
        if table is None:
            return None
        uid = getattr(request, "affected_sop_class_uid", "") or getattr(
            request, "requested_sop_class_uid", ""
        )
        return table.get(uid) or table.get(context.abstract_syntax)

    def association_established(self, association: Association) -> None:
        for callback in self._on_established:
            callback(association)

    def association_ended(self, association: Association, error: AssociationError | None) -> None:
        for callback in self._on_ended:
            try:
                callback(association, error)
            except Exception:  # the others are to be told as well
                logger.exception("association %d: a callback for its end failed", association.number)


def _set(uids: Iterable[str] | None) -> frozenset[str] | None:
    return None if uids is None else frozenset(uids)


@dataclass(frozen=True, slots=True)
class _Hosted:
    policy: AcceptorPolicy
    services: Services
    admit: Admission | None


class Server:
    """Services behind an Acceptor: fill it with `add`, then `listen` on any number of addresses. Or use `serve`."""

    def __init__(
        self,
        *,
        timeouts: Timeouts | None = None,
        limits: AcceptorLimits | None = None,
        size_limits: SizeLimits | None = None,
        verify_identity: IdentityVerifier | None = None,
    ) -> None:
        self._hosted: list[_Hosted] = []
        self.acceptor = Acceptor(
            self._admit,
            lambda: Exchange(self._services_of),
            timeouts=timeouts,
            limits=limits,
            size_limits=size_limits,
            verify_identity=verify_identity,
        )
        self._closed = asyncio.Event()

    def add(
        self, services: Services, policy: AcceptorPolicy | None = None, *, admit: Admission | None = None
    ) -> None:
        """Perform services for the called AE titles of a policy; one without titles takes what no other answers to.

        policy: AE titles, lengths and windows; its abstract syntaxes are replaced by those of the services.
        """
        policy = replace(
            policy or AcceptorPolicy(),
            abstract_syntaxes={},
            other_abstract_syntaxes=services.support_for,
        )
        self._hosted.append(_Hosted(policy, services, admit))

    def follow(self, other: Server) -> None:
        """Host what another server hosts, with its timeouts and limits, from now on. Associations go on as they were
        accepted."""
        self._hosted = other._hosted
        self.acceptor.follow(other.acceptor)

    def _admit(self, request: AssociateRQ, association: Association) -> AcceptorPolicy | AssociateRJ:
        hosted = self._host_of(request.called_ae_title)
        return hosted.policy if hosted.admit is None else hosted.admit(request, association, hosted.policy)

    def _host_of(self, called_ae_title: str) -> _Hosted:
        """By title; the last resort is the first one added, whose policy then rejects the title."""
        for hosted in self._hosted:
            if called_ae_title in hosted.policy.ae_titles:
                return hosted
        for hosted in self._hosted:
            if not hosted.policy.ae_titles:
                return hosted
        return self._hosted[0]

    def _services_of(self, association: Association) -> Services:
        return self._host_of(association.agreed.called_ae_title).services

    @property
    def port(self) -> int:
        """Of the first address listened on."""
        return self.acceptor.addresses[0][1]

    async def listen(
        self,
        host: str | None,
        port: int,
        *,
        ssl_context: TLSContext | None = None,
        reuse_port: bool = False,
        trusted_proxy: Callable[[str], bool] | None = None,
    ) -> None:
        """Accept associations on one more address; port 0 takes a free one.

        trusted_proxy: which hosts may connect, each connection beginning with a header of the PROXY protocol.
        """
        await self.acceptor.listen(
            host, port, ssl_context=ssl_context, reuse_port=reuse_port, trusted_proxy=trusted_proxy
        )

    async def drain(self, grace_s: float) -> None:
        """Let open associations end within grace_s while new ones are rejected 2/3/1, then close."""
        await self.acceptor.drain(grace_s)
        self._closed.set()

    async def close(self) -> None:
        """Abort every association and stop listening."""
        await self.acceptor.close()
        self._closed.set()

    async def wait_closed(self) -> None:
        """Wait until somebody closes the server."""
        await self._closed.wait()


@asynccontextmanager
async def serve(
    services: Services,
    *,
    ae_title: str | None = None,
    host: str | None = "127.0.0.1",
    port: int = 11112,
    ssl_context: TLSContext | None = None,
    maximum_length: int = DEFAULT_MAXIMUM_LENGTH,
    maximum_operations: int = 1,
    timeouts: Timeouts | None = None,
    limits: AcceptorLimits | None = None,
    verify_identity: IdentityVerifier | None = None,
) -> AsyncIterator[Server]:
    """Serve on one address for the length of the block.

    ae_title: the called AE title answered to; None answers to any. host None listens on every interface.
    maximum_operations: the asynchronous operations window offered to peers that ask for one.
    """
    policy = AcceptorPolicy(
        ae_titles=frozenset({ae_title} if ae_title else ()),
        maximum_length=maximum_length,
        maximum_operations_performed=maximum_operations,
    )
    server = Server(timeouts=timeouts, limits=limits, verify_identity=verify_identity)
    server.add(services, policy)
    await server.listen(host, port, ssl_context=ssl_context)
    try:
        yield server
    finally:
        await server.close()
