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
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace

from harmony.dimse.command import CEchoRQ, CStoreRQ, Message
from harmony.dimse.exchange import Exchange, Handler, StoreRequest
from harmony.dimse.sink import Sink
from harmony.dimse.sop_class import STORAGE_SOP_CLASSES, VERIFICATION
from harmony.dimse.status import DimseError, Status
from harmony.ul.acceptor import Acceptor, AcceptorLimits, IdentityVerifier
from harmony.ul.association import Association, Timeouts
from harmony.ul.errors import AssociationError
from harmony.ul.negotiation import (
    DEFAULT_MAXIMUM_LENGTH,
    AcceptorPolicy,
    PresentationContext,
    SupportedAbstractSyntax,
)
from harmony.ul.upper_layer import SizeLimits

__all__ = ["Server", "Services", "serve"]

UNCOMPRESSED = frozenset({"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"})
"""Transfer syntaxes for everything that is not an instance: identifiers and attribute lists are small and
native."""


DICOM_ROOT = "1.2.840.10008."
COMPOSITE_STORAGE_ROOTS = ("1.2.840.10008.5.1.4.1.1.", "1.2.840.10008.5.1.4.34.7")
"""Where PS3.6 registers storage SOP classes; a future one is recognized by its root."""
NOT_STORAGE = ("1.2.840.10008.5.1.4.1.1.200.", "1.2.840.10008.5.1.4.1.1.201.")
"""Under the same root, but query/retrieve of protocols and inventories; their storage classes are listed by name."""


def _may_be_storage(uid: str) -> bool:
    """True for storage SOP classes: those of PS3.6, future ones under the same root, and anything private."""
    if uid in STORAGE_SOP_CLASSES:
        return True
    if uid.startswith(DICOM_ROOT):
        return uid.startswith(COMPOSITE_STORAGE_ROOTS) and not uid.startswith(NOT_STORAGE)
    return True


class Services:
    """What an SCP performs. Fill it before it serves; it may be shared by servers and associations."""

    def __init__(self) -> None:
        self._store: Callable[[StoreRequest], Sink] | None = None
        self._store_by_class: dict[str, Callable[[StoreRequest], Sink]] = {}
        self._store_syntaxes: frozenset[str] | None = None
        self._handlers: dict[type[Message], dict[str, Handler]] = {}
        self._performed: dict[str, SupportedAbstractSyntax] = {
            VERIFICATION: SupportedAbstractSyntax(UNCOMPRESSED)
        }
        self._on_established: list[Callable[[Association], None]] = []
        self._on_ended: list[Callable[[Association, AssociationError | None], None]] = []

    # Registering ----

    def no_echo(self) -> None:
        """Do not accept the Verification SOP Class."""
        self._performed.pop(VERIFICATION, None)

    def store(
        self,
        open_sink: Callable[[StoreRequest], Sink],
        *,
        sop_classes: Iterable[str] | None = None,
        transfer_syntaxes: Iterable[str] | None = None,
    ) -> None:
        """Perform C-STORE with the sinks that open_sink returns.

        sop_classes: those it is for; None is any storage SOP class, private and future ones too.
        transfer_syntaxes: those accepted; None is any, as the bytes are not decoded here.
        open_sink raises DimseError to refuse an instance before its data comes.
        """
        syntaxes = None if transfer_syntaxes is None else frozenset(transfer_syntaxes)
        if sop_classes is None:
            self._store = open_sink
            self._store_syntaxes = syntaxes
            return
        for sop_class in sop_classes:
            self._store_by_class[sop_class] = open_sink
            self._performed[sop_class] = SupportedAbstractSyntax(syntaxes)

    def operation(self, request_type: type[Message], sop_classes: Iterable[str], handler: Handler) -> None:
        """Perform another service (C-FIND, C-GET, C-MOVE, C-ECHO, N-...) for SOP classes with a handler."""
        table = self._handlers.setdefault(request_type, {})
        for sop_class in sop_classes:
            table[sop_class] = handler
            if request_type is not CEchoRQ:
                self._performed[sop_class] = SupportedAbstractSyntax(UNCOMPRESSED)

    def on_association(
        self,
        established: Callable[[Association], None] | None = None,
        ended: Callable[[Association, AssociationError | None], None] | None = None,
    ) -> None:
        """Be told of associations; called from the event loop, must not block."""
        if established is not None:
            self._on_established.append(established)
        if ended is not None:
            self._on_ended.append(ended)

    # Asked by negotiation and the exchange ----

    @property
    def abstract_syntaxes(self) -> Mapping[str, SupportedAbstractSyntax]:
        """What is performed, by SOP class; `other_abstract_syntax` knows the rest."""
        return self._performed

    def other_abstract_syntax(self, uid: str) -> SupportedAbstractSyntax | None:
        """Storage SOP classes that nobody listed, where `store` was given for any."""
        if self._store is None or not _may_be_storage(uid):
            return None
        return SupportedAbstractSyntax(self._store_syntaxes)

    def open_sink(self, request: StoreRequest) -> Sink:
        """The sink for one C-STORE; raises DimseError where none was registered."""
        open_sink = self._store_by_class.get(request.command.affected_sop_class_uid, self._store)
        if open_sink is None:
            # Lenient: the command's SOP class differs from the context's, which was accepted for storage.
            open_sink = self._store_by_class.get(request.context.abstract_syntax)
        if open_sink is None:
            raise DimseError(Status.SOP_CLASS_NOT_SUPPORTED, "SOP class not supported for storage")
        return open_sink(request)

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
            callback(association, error)


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
        self._hosted: list[tuple[AcceptorPolicy, Services]] = []
        self.acceptor = Acceptor(
            lambda request: self._host_of(request.called_ae_title)[0],
            lambda: Exchange(self._services_of),
            timeouts=timeouts,
            limits=limits,
            size_limits=size_limits,
            verify_identity=verify_identity,
        )
        self._closed = asyncio.Event()

    def add(self, services: Services, policy: AcceptorPolicy | None = None) -> None:
        """Perform services for the called AE titles of a policy; one without titles takes what no other answers to.

        policy: AE titles, lengths and windows; its abstract syntaxes are replaced by those of the services.
        """
        policy = replace(
            policy or AcceptorPolicy(),
            abstract_syntaxes=services.abstract_syntaxes,
            other_abstract_syntaxes=services.other_abstract_syntax,
        )
        self._hosted.append((policy, services))

    def _host_of(self, called_ae_title: str) -> tuple[AcceptorPolicy, Services]:
        """By title; the last resort is the first one added, whose policy then rejects the title."""
        for hosted in self._hosted:
            if called_ae_title in hosted[0].ae_titles:
                return hosted
        for hosted in self._hosted:
            if not hosted[0].ae_titles:
                return hosted
        return self._hosted[0]

    def _services_of(self, association: Association) -> Services:
        return self._host_of(association.agreed.called_ae_title)[1]

    @property
    def port(self) -> int:
        """Of the first address listened on."""
        return self.acceptor.addresses[0][1]

    async def listen(
        self,
        host: str | None,
        port: int,
        *,
        ssl_context: ssl.SSLContext | None = None,
        reuse_port: bool = False,
    ) -> None:
        """Accept associations on one more address; port 0 takes a free one."""
        await self.acceptor.listen(host, port, ssl_context=ssl_context, reuse_port=reuse_port)

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
    ssl_context: ssl.SSLContext | None = None,
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
