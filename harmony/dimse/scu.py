"""Invoking DIMSE services: `associate` opens an association, `SCU` asks for things on it (PS3.7 §9).

    async with associate("pacs", 104, called_ae_title="PACS", contexts=contexts_for(paths)) as scu:
        await scu.echo()
        for path in paths:
            await scu.store(path)

Instances are sent as they are: `store` takes the context that was accepted for the file's own SOP class and
transfer syntax, and sends the bytes untouched. Concurrent calls are allowed; they share the negotiated
operations window.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from harmony import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from harmony.dimse.command import CEchoRQ, CStoreRQ, CStoreRSP, Message
from harmony.dimse.exchange import Exchange
from harmony.dimse.invocation import Invocation, Response
from harmony.dimse.message import WHOLE_BYTES
from harmony.dimse.observer import Observer
from harmony.dimse.part10 import READ_ONLY, FileMeta, FileMetaIncomplete, read_file_meta, read_file_meta_from
from harmony.dimse.scp import Services
from harmony.dimse.sop_class import (
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    TRANSFER_SYNTAXES,
    VERIFICATION,
)
from harmony.dimse.source import BytesSource, Data, DataSource, FileSource, StreamSource
from harmony.dimse.status import SUCCESS_OUTCOME, DimseError, Outcome, StatusClass
from harmony.ul.association import Association
from harmony.ul.deadlines import Timeouts
from harmony.ul.errors import AssociationError, DeadlineExceeded
from harmony.ul.items import (
    AsynchronousOperationsWindow,
    ExtendedNegotiation,
    ProposedContext,
    RoleSelection,
    UserIdentityRQ,
    UserInformation,
)
from harmony.ul.negotiation import DEFAULT_MAXIMUM_LENGTH, PresentationContext, propose_contexts
from harmony.ul.pdu import AssociateRQ
from harmony.ul.requestor import request_association
from harmony.ul.tls import TLSContext

__all__ = ["SCU", "Instance", "NoPresentationContext", "associate", "contexts_for"]

DEFAULT_RESPONSE_S = 60.0
"""Wait for a response, counted from the last byte sent. Archives that fetch from tape need more."""

HEAD_BYTES = 16 * 1024
"""Read of a file to know what it is: all of a small one, and a copy too many of a large one's beginning."""


class NoPresentationContext(AssociationError):
    """No accepted presentation context fits the request; the message lists what was proposed and what came of
    it."""


@dataclass(frozen=True, slots=True)
class Instance:
    """A SOP Instance to be stored, as an encoded data set without file meta.

    data: a buffer, a DataSource (closed by `store`), or an async iterable of chunks of unknown total length.
    """

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    data: Data


def contexts_for(files: Iterable[str | Path | FileMeta]) -> tuple[ProposedContext, ...]:
    """Contexts for sending these files: one for each pair of SOP class and transfer syntax, and Verification.

    Reads the file meta of paths. LocalProtocolError when they need more than the 128 an association can have.
    """
    pairs: dict[tuple[str, str], None] = {}
    for file in files:
        meta = file if isinstance(file, FileMeta) else read_file_meta_from(file)
        pairs[meta.media_storage_sop_class_uid, meta.transfer_syntax_uid] = None
    proposals = [(sop_class, [syntax]) for sop_class, syntax in pairs]
    return propose_contexts([*proposals, (VERIFICATION, [IMPLICIT_VR_LITTLE_ENDIAN])])


class SCU:
    """One association, seen by the side that invokes. `association` and `exchange` are its lower layers."""

    def __init__(self, association: Association, exchange: Exchange, *, response_s: float | None) -> None:
        self.association = association
        self.exchange = exchange
        self._response_s = response_s
        self._store_contexts: dict[tuple[str, str], PresentationContext] = {}
        self._contexts: dict[str, PresentationContext] = {}
        for context in association.agreed.contexts.values():
            if context.as_scu:
                self._contexts.setdefault(context.abstract_syntax, context)
                self._store_contexts.setdefault((context.abstract_syntax, context.transfer_syntax), context)

    def __repr__(self) -> str:
        return f"<SCU on {self.association!r}>"

    def context_for(self, abstract_syntax: str) -> PresentationContext:
        """The first accepted context of an abstract syntax; NoPresentationContext when there is none."""
        context = self._contexts.get(abstract_syntax)
        if context is None:
            raise NoPresentationContext(
                f"no presentation context for {abstract_syntax} was accepted "
                f"({self.association.agreed.describe_results()})"
            )
        return context

    def accepts(self, sop_class_uid: str, transfer_syntax_uid: str) -> bool:
        """Whether instances of this class can be stored in this transfer syntax."""
        return (sop_class_uid, transfer_syntax_uid) in self._store_contexts

    async def echo(self) -> Outcome:
        """C-ECHO. Raises DimseError for a failure status, AssociationError when the association ends."""
        return _outcome(await _final(await self.invoke(CEchoRQ, self.context_for(VERIFICATION))))

    async def store(
        self,
        what: str | Path | bytes | bytearray | memoryview | Instance,
        *,
        priority: int = 0,
        move_originator_ae_title: str = "",
        move_originator_message_id: int | None = None,
    ) -> Outcome:
        """C-STORE of a Part 10 file (a path, or its bytes) or of an Instance; bytes go out as they are.

        Returns the outcome of success and warning statuses; raises DimseError for failures,
        NoPresentationContext when the SOP class was not accepted with this very transfer syntax,
        AssociationError when the association ends, Part10Error for a file without usable file meta, OSError
        for one that cannot be read.
        """
        instance = _instance(what)
        source: bytes | DataSource | StreamSource
        if isinstance(instance.data, bytes | bytearray | memoryview):
            data = memoryview(instance.data)
            source = bytes(data) if data.nbytes <= WHOLE_BYTES else BytesSource(data)
        elif isinstance(instance.data, AsyncIterable):
            source = StreamSource(instance.data)
        else:
            source = instance.data
        try:
            context = self._store_context(instance)
            invocation = await self.exchange.invoke(
                lambda message_id: CStoreRQ(
                    message_id,
                    instance.sop_class_uid,
                    instance.sop_instance_uid,
                    priority,
                    move_originator_ae_title,
                    move_originator_message_id,
                ),
                context,
                source,
                response_s=self._response_s,
            )
        finally:
            if isinstance(source, StreamSource):
                if isinstance(source.chunks, AsyncGenerator):
                    await source.chunks.aclose()
            elif not isinstance(source, bytes):
                source.close()
        return _outcome(await _final(invocation))

    async def invoke(
        self,
        make_request: Callable[[int], Message],
        context: PresentationContext,
        data: bytes | None = None,
    ) -> Invocation:
        """Any other service: make_request(message_id) on a context, with an encoded data set.

        Iterate over the Invocation to its end, or `abandon` it.
        """
        return await self.exchange.invoke(make_request, context, data, response_s=self._response_s)

    def _store_context(self, instance: Instance) -> PresentationContext:
        context = self._store_contexts.get((instance.sop_class_uid, instance.transfer_syntax_uid))
        if context is not None:
            return context
        accepted = [
            syntax for sop_class, syntax in self._store_contexts if sop_class == instance.sop_class_uid
        ]
        known = (
            "accepted are " + ", ".join(_name(syntax) for syntax in accepted)
            if accepted
            else f"the SOP class was not accepted at all ({self.association.agreed.describe_results()})"
        )
        raise NoPresentationContext(
            f"no presentation context for {instance.sop_class_uid} "
            f"in {_name(instance.transfer_syntax_uid)}: {known}"
        )


def _instance(what: str | Path | bytes | bytearray | memoryview | Instance) -> Instance:
    if isinstance(what, Instance):
        return what
    data: memoryview | FileSource
    if isinstance(what, str | Path):
        meta, data = _open(what)
    else:
        view = memoryview(what)
        meta = read_file_meta(view)
        data = view[meta.data_set_offset :]
    return Instance(
        meta.media_storage_sop_class_uid,
        meta.media_storage_sop_instance_uid,
        meta.transfer_syntax_uid,
        data,
    )


def _open(path: str | Path) -> tuple[FileMeta, memoryview | FileSource]:
    """A file's meta information and data set. The file is opened once, and a small one is read whole with it."""
    descriptor = os.open(path, READ_ONLY)
    try:
        head = os.read(descriptor, HEAD_BYTES)
        try:
            meta = read_file_meta(head)
        except FileMetaIncomplete:
            meta = read_file_meta_from(path)
        if len(head) == HEAD_BYTES:
            if meta.data_set_offset > len(head) - 2:  # whether the group goes on cannot be seen
                meta = read_file_meta_from(path)
            return meta, FileSource(path, offset=meta.data_set_offset, descriptor=descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return meta, memoryview(head)[meta.data_set_offset :]


def _name(transfer_syntax: str) -> str:
    name = TRANSFER_SYNTAXES.get(transfer_syntax)
    return f"{transfer_syntax} ({name})" if name else transfer_syntax


async def _final(invocation: Invocation) -> Response:
    try:
        return await invocation.final()
    except asyncio.CancelledError:
        invocation.abandon()
        raise


def _outcome(response: Response) -> Outcome:
    message = response.message
    if type(message) is CStoreRSP and message.status == 0 and not message.error_comment:
        return SUCCESS_OUTCOME
    outcome = Outcome(
        response.status,
        getattr(message, "error_comment", ""),
        getattr(message, "offending_elements", ()),
    )
    if response.status_class not in (StatusClass.SUCCESS, StatusClass.WARNING):
        raise DimseError(outcome.status, outcome.error_comment, outcome.offending_elements)
    return outcome


@asynccontextmanager
async def associate(
    host: str,
    port: int,
    *,
    called_ae_title: str = "ANY-SCP",
    calling_ae_title: str = "HARMONY_SCU",
    contexts: Sequence[ProposedContext] | None = None,
    roles: Sequence[RoleSelection] = (),
    extended_negotiations: Sequence[ExtendedNegotiation] = (),
    user_identity: UserIdentityRQ | None = None,
    maximum_operations: int | None = None,
    maximum_length: int = DEFAULT_MAXIMUM_LENGTH,
    services: Services | None = None,
    ssl_context: TLSContext | None = None,
    server_hostname: str | None = None,
    timeouts: Timeouts | None = None,
    response_s: float | None = DEFAULT_RESPONSE_S,
    observer: Observer | None = None,
) -> AsyncIterator[SCU]:
    """An association for the length of the block: released at its end, aborted when the block raises.

    contexts: proposals (see `propose_contexts`, `contexts_for`); only Verification by default.
    maximum_operations: asynchronous operations window to ask for; None does not ask, as some peers drop the
    connection when asked. services: what we perform on this association, for peers that take the SCU role
    (C-GET). observer: None takes that of the services, if they have one. Raises ConnectFailed,
    AssociationRejected, AssociationAborted, ConnectionLost, DeadlineExceeded.
    """
    if contexts is None:
        contexts = propose_contexts([(VERIFICATION, [IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN])])
    window = None
    if maximum_operations is not None:
        window = AsynchronousOperationsWindow(maximum_operations, 1)
    request = AssociateRQ(
        called_ae_title,
        calling_ae_title,
        tuple(contexts),
        UserInformation(
            maximum_length=maximum_length,
            implementation_class_uid=IMPLEMENTATION_CLASS_UID,
            implementation_version_name=IMPLEMENTATION_VERSION_NAME,
            asynchronous_operations_window=window,
            role_selections=tuple(roles),
            extended_negotiations=tuple(extended_negotiations),
            user_identity_rq=user_identity,
        ),
    )
    exchange = Exchange(services, observer=observer)
    try:
        association = await request_association(
            host,
            port,
            request,
            exchange,
            ssl_context=ssl_context,
            server_hostname=server_hostname,
            timeouts=timeouts,
        )
    except AssociationError as error:
        if observer is not None:
            observer.not_established(error)
        raise
    try:
        yield SCU(association, exchange, response_s=response_s)
    except BaseException:
        association.abort()
        association.cut_after_writing()  # nobody waits for the peer to close, and the loop may end with the block
        raise
    else:
        try:
            await association.release()
        except DeadlineExceeded:
            pass  # a peer that does not answer a release has been aborted; what was asked of it was answered
