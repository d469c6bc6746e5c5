"""The `dicom_scu` backend: a PACS, reached over DIMSE (its options: docs/CONFIGURATION.md).

Everything streams and nothing is spooled. A query's matches, a retrieve's instances and a store's data set go through
as they come, and whoever is slow at one end is what the other end waits for.

- Associations are kept and used again (`harmony.dimse.pool`), at most `max_associations` at a time, for everything.
- C-FIND in Study Root, in Patient Root for the PATIENT level or when it was asked for, in the other one where the PACS
  has only that (`harmony.gateway.identifiers`).
- Instances come by C-GET, or by C-MOVE to ourselves (`dimse_retrieve_mode`). Unless the requester says what it takes,
  the PACS is asked first what there is (`harmony.gateway.survey`).
- C-STORE goes out with the presentation contexts that the inbound association has, so that one follows the other. Its
  answer is that of the PACS.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing
from dataclasses import replace
from functools import partial
from typing import Final, Literal
from weakref import WeakKeyDictionary

from harmony.archive.index import StoredInstance
from harmony.archive.levels import Level
from harmony.archive.matcher import IdentifierError, Problem
from harmony.dicom.json_model import DataSetError, Model, ModelError, decode_data_set
from harmony.dimse.cancellation import OperationInterrupted
from harmony.dimse.command import PRIORITY_MEDIUM
from harmony.dimse.information_model import Proposal
from harmony.dimse.move_receiver import MoveReceiver, OpenSink
from harmony.dimse.observer import Observer
from harmony.dimse.operation import StoreRequest
from harmony.dimse.peer import Peer
from harmony.dimse.pool import AssociationPool
from harmony.dimse.query import Match
from harmony.dimse.retrieve import GetReceiver, RetrieveResult, get, move
from harmony.dimse.retrieve_scp import Selection, Unavailable
from harmony.dimse.scu import SCU, Instance, NoPresentationContext
from harmony.dimse.sink import AsyncSink, DataStream, Sink
from harmony.dimse.status import DimseError, Outcome, Status
from harmony.dimse.sub_operations import Counters
from harmony.gateway import config, identifiers, storage_contexts
from harmony.gateway.arrivals import Arrivals
from harmony.gateway.backend import Query, Retrieve
from harmony.gateway.config import ListenerTLS
from harmony.gateway.credentials import user_identity_towards
from harmony.gateway.instance_headers import headers_of
from harmony.gateway.options import DicomScuOptions
from harmony.gateway.retrieval import Progress, arriving
from harmony.gateway.storage_contexts import Pair
from harmony.gateway.store_receiver import StoreReceivers
from harmony.gateway.survey import Survey, survey
from harmony.gateway.tls import Certificates
from harmony.ul.association import Association
from harmony.ul.deadlines import Timeouts
from harmony.ul.errors import AssociationError, LocalProtocolError

__all__ = ["DicomSCU"]

logger = logging.getLogger("harmony.gateway")

MOVE_RESPONSE_S: Final = 300.0
"""For a response to a C-MOVE to somebody else, however short timeout_secs is."""

CANCEL_S: Final = 0.5
"""For the final response after C-CANCEL. Whoever has left is to cost nothing after a second, and a PACS that is in the
middle of a large instance, or does not look for C-CANCEL, takes longer: a new association is cheaper."""

UPLOADED_PAIRS: Final = 64
"""SOP classes with transfer syntaxes of single uploads that are proposed together, so that they share associations."""


class DicomSCU:
    """One PACS. A `harmony.gateway.backend.Backend`."""

    def __init__(
        self,
        configured: config.Backend,
        receivers: StoreReceivers | None = None,
        *,
        observer: Observer | None = None,
        certificates: Certificates | None = None,
    ) -> None:
        """receivers: those of the gateway, which backends with the same incoming_store_port share. observer: of the
        associations with the PACS, also those that it opens. certificates: those of the gateway; None: read now, kept.

        Raises ValueError and OSError for what cannot be used: certificates, for the most part.
        """
        options, target = configured.options, configured.target
        assert isinstance(options, DicomScuOptions)
        assert target is not None
        self.name = configured.name
        self.origin = configured.origin
        self.options = options
        self.local_aet = options.local_aet
        certificates = certificates or Certificates()
        context = certificates.client(target.client_tls) if target.tls else None
        self._incoming_tls = None
        if options.incoming_store_use_tls:
            assert target.cert_path is not None
            assert target.key_path is not None
            incoming = ListenerTLS(
                target.cert_path,
                target.key_path,
                target.ca_cert_path,
                options.incoming_store_require_client_cert,
                target.tls_profile,
            )
            self._incoming_tls = certificates.server(incoming)
        self.timeout_s = target.timeout_s
        """Of silence, after which the PACS counts as gone."""
        self.peer = Peer(
            target.host,
            target.port,
            called_ae_title=options.aet or "ANY-SCP",
            calling_ae_title=options.local_aet,
            ssl_context=context,
            server_hostname=target.tls_server_name,
            user_identity=user_identity_towards(configured.authentication),
            maximum_length=options.max_pdu,
            timeouts=Timeouts(
                connect_s=options.connect_timeout_secs,
                associate_s=self.timeout_s,
                pdu_s=self.timeout_s,
                write_s=self.timeout_s,
            ),
            response_s=self.timeout_s,
            observer=observer,
        )
        self._receivers = receivers or StoreReceivers()
        self._listening = AsyncExitStack()  # from start to stop
        self._receiver = GetReceiver()
        self.pool = AssociationPool(
            self.peer,
            identifiers.propose_questions(relational=options.relational),
            services=self._receiver.services,
            maximum_associations=options.max_associations,
            place_s=self.timeout_s,
        )
        self._uploaded: dict[Pair, None] = {}
        self._inbound: WeakKeyDictionary[Association, tuple[list[Pair], Proposal]] = WeakKeyDictionary()
        self._retrieves: set[asyncio.Task[RetrieveResult]] = set()

    def __str__(self) -> str:
        return f"the PACS {self.name} ({self.peer})"

    @property
    def matches_as_asked(self) -> bool:
        return False

    @property
    def can_be_queried(self) -> bool:
        return True

    async def start(self) -> None:
        """A PACS that is down now may be up when it is needed. Raises OSError when incoming_store_port cannot be
        listened on."""
        options = self.options
        if options.dimse_retrieve_mode == "move" and options.persistent_store_scp:
            await self._listening.enter_async_context(self._incoming())

    async def stop(self, grace_s: float) -> None:
        await self.pool.close(grace_s)
        for retrieving in self._retrieves:
            retrieving.cancel()  # its association has ended, or it waits for one
        if self._retrieves:
            await asyncio.wait(self._retrieves)
        await self._listening.aclose()

    def _incoming(self) -> AbstractAsyncContextManager[MoveReceiver]:
        options = self.options
        return self._receivers.listening(
            options.incoming_store_address,
            options.incoming_store_port,
            self.local_aet,
            maximum_length=options.max_pdu,
            timeouts=self.peer.timeouts,
            observer=self.peer.observer,
            ssl_context=self._incoming_tls,
        )

    async def echo(self) -> None:
        """C-ECHO. Raises DimseError and AssociationError."""
        await self.pool.run(lambda scu: scu.echo())

    # Finding

    async def query(self, query: Query) -> AsyncGenerator[Model, None]:
        """C-FIND. Raises IdentifierError for what has no encoding, NoPresentationContext when no information model of
        the PACS has the level, DimseError and AssociationError.

        C-FIND has no offset: what is passed over is asked for as well, in the order that the PACS has."""
        skip, limit = query.offset, query.limit
        if limit is not None:
            query = replace(query, limit=skip + limit)
        async with aclosing(self._find(query)) as matches:
            async for match in matches:
                if skip:
                    skip -= 1
                else:
                    yield identifiers.answer(match, query)

    async def _find(self, query: Query) -> AsyncGenerator[Model, None]:
        classes = [
            model.find for model in identifiers.query_models(query.level, patient_root=query.patient_root)
        ]
        proposal = identifiers.propose_questions(relational=self.options.relational, matching=query.matching)
        matches = self.pool.find(
            classes,
            identifiers.query_identifier(query),
            proposal=proposal,
            limit=query.limit,
            cancel_s=self._cancel_s,
        )
        async with aclosing(matches):
            try:
                async for match in matches:
                    yield _decode(match)
            except ModelError as error:
                raise IdentifierError(identifiers.tag_of_key(error.key), Problem.MALFORMED) from error
            except NoPresentationContext as error:
                raise self._no_model("C-FIND", query.level, error) from error

    def _no_model(self, operation: str, level: Level, error: NoPresentationContext) -> NoPresentationContext:
        return NoPresentationContext(
            f"{self} has no {operation} at the {level.value} level: none of the information models with this level "
            f"was accepted ({error})"
        )

    @property
    def _cancel_s(self) -> float:
        return min(CANCEL_S, self.timeout_s)

    # Retrieving

    async def retrieve(self, retrieve: Retrieve, *, mode: Literal["get", "move"] | None = None) -> Selection:
        """C-GET or C-MOVE to ourselves, which begins when the first instance is asked for. mode: which of them, for
        once; None: dimse_retrieve_mode.

        Raises AssociationError when the PACS is not to be had. So do the instances; and DimseError for a retrieve that
        failed as a whole.
        """
        if identifiers.is_empty(retrieve.keys):
            return _nothing()
        surveyed = Survey()
        if retrieve.accepted is None:
            surveyed = await survey(self._find, retrieve)
            if surveyed.total == 0:
                return _nothing()
        keys = surveyed.complete(retrieve.keys, patient_root=retrieve.patient_root)
        retrieve = replace(retrieve, keys=keys)
        arrivals, progress = Arrivals(), Progress()
        if retrieve.accepted is not None:
            pairs = storage_contexts.with_native(retrieve.accepted)
        elif surveyed.sop_classes:
            pairs = storage_contexts.known_pairs(surveyed.sop_classes, surveyed.transfer_syntaxes)
        else:
            pairs = storage_contexts.all_pairs()
        if (mode or self.options.dimse_retrieve_mode) == "get":
            perform = partial(self._get, retrieve, pairs, arrivals, progress)
        else:
            perform = partial(self._move_here, retrieve, arrivals, progress)
        expected = surveyed.sop_instance_uids
        return Selection(
            arriving(
                perform,
                arrivals,
                expected=expected,
                tasks=self._retrieves,
                name=f"retrieve from {self.name}",
            ),
            sop_instance_uids=expected,
            total=surveyed.total,
            total_so_far=progress.total,
            contexts=[
                (uid, syntax)
                for uid in surveyed.sop_classes
                for syntax in dict.fromkeys((*surveyed.transfer_syntaxes, *storage_contexts.NATIVE))
            ],
        )

    async def _get(
        self, retrieve: Retrieve, pairs: list[Pair], arrivals: Arrivals, progress: Progress
    ) -> RetrieveResult:
        level = identifiers.retrieve_level(retrieve.keys)
        models = identifiers.retrieve_models(level, patient_root=retrieve.patient_root)
        classes = [model.get for model in models]
        proposal = storage_contexts.propose_retrieval(classes, pairs, relational=self.options.relational)

        async def perform(scu: SCU) -> RetrieveResult:
            async with get(
                scu,
                classes,
                identifiers.retrieve_identifier(retrieve.keys),
                arrivals.open_sink,
                receiver=self._receiver,
                priority=retrieve.priority,
                cancel_s=self._cancel_s,
            ) as retrieval:
                return await progress.follow(retrieval)

        try:
            return await self.pool.run(perform, proposal=proposal)
        except NoPresentationContext as error:
            raise self._no_model("C-GET", level, error) from error

    async def _move_here(self, retrieve: Retrieve, arrivals: Arrivals, progress: Progress) -> RetrieveResult:
        async with self._incoming() as moves:
            return await self._move(
                retrieve,
                self.local_aet,
                progress,
                receiver=moves,
                open_sink=arrivals.open_sink,
                response_s=self.timeout_s,
            )

    async def move_to(self, retrieve: Retrieve, destination: str) -> RetrieveResult:
        """C-MOVE to an application entity that the PACS knows by this title; nothing comes here.

        Raises RetrieveFailed for a failure, AssociationError, and ValueError for our own title: that is `retrieve`.
        """
        if destination == self.local_aet:
            raise ValueError(f"{destination} is our own AE title, must be that of somebody else")
        if identifiers.is_empty(retrieve.keys):
            return RetrieveResult(Status.SUCCESS, Counters(None, 0, 0, 0))
        # Nothing is heard of sub-operations elsewhere, and Pending responses are optional (PS3.4 §C.4.2.2.2).
        response_s = max(self.timeout_s, MOVE_RESPONSE_S)
        return await self._move(retrieve, destination, Progress(), response_s=response_s)

    async def _move(
        self,
        retrieve: Retrieve,
        destination: str,
        progress: Progress,
        *,
        response_s: float,
        receiver: MoveReceiver | None = None,
        open_sink: OpenSink | None = None,
    ) -> RetrieveResult:
        level = identifiers.retrieve_level(retrieve.keys)
        models = identifiers.retrieve_models(level, patient_root=retrieve.patient_root)

        async def perform(scu: SCU) -> RetrieveResult:
            async with move(
                scu,
                [model.move for model in models],
                identifiers.retrieve_identifier(retrieve.keys),
                destination,
                receiver=receiver,
                open_sink=open_sink,
                priority=retrieve.priority,
                response_s=response_s,
                cancel_s=self._cancel_s,
            ) as retrieval:
                return await progress.follow(retrieval)

        try:
            return await self.pool.run(perform)
        except NoPresentationContext as error:
            raise self._no_model("C-MOVE", level, error) from error

    async def metadata(self, retrieve: Retrieve, root: str) -> AsyncGenerator[bytes | Unavailable, None]:
        """By retrieving the instances: a C-FIND does not tell the whole header. What follows it is dropped."""
        async with aclosing(headers_of(await self.retrieve(retrieve), root)) as headers:
            async for header in headers:
                yield header

    async def locate(self, retrieve: Retrieve) -> tuple[StoredInstance, Model] | None:
        return None

    async def version(self, retrieve: Retrieve) -> str | None:
        return None

    # Storing

    def store(self, request: StoreRequest) -> Sink:
        """Sends the data set on while it arrives; the status is what the PACS answers."""
        pair = (request.affected_sop_class_uid, request.transfer_syntax_uid)
        proposal = self._proposal_for(request.association, pair)
        command = request.command

        async def send(stream: DataStream) -> Outcome:
            return await self._store(
                Instance(pair[0], request.affected_sop_instance_uid, pair[1], stream),
                proposal,
                priority=command.priority,
                originator=(command.move_originator_ae_title, command.move_originator_message_id),
            )

        return AsyncSink(request.association, send)

    def _proposal_for(self, association: Association, pair: Pair) -> Proposal:
        """The contexts of an inbound association, which are the same for all that comes on it."""
        pairs, proposal = self._inbound.get(association) or ([], None)
        if (
            proposal is None or pair not in pairs
        ):  # a sender may announce another SOP class than its context has
            pairs = [pair, *storage_contexts.accepted_pairs(association)]
            proposal = storage_contexts.propose_store(pairs)
            self._inbound[association] = pairs, proposal
        return proposal

    async def store_instance(self, instance: Instance) -> Outcome:
        pair = (instance.sop_class_uid, instance.transfer_syntax_uid)
        if pair not in self._uploaded and len(self._uploaded) == UPLOADED_PAIRS:
            self._uploaded.clear()
        self._uploaded[pair] = None
        return await self._store(instance, storage_contexts.propose_store(self._uploaded))

    async def _store(
        self,
        instance: Instance,
        proposal: Proposal,
        *,
        priority: int = PRIORITY_MEDIUM,
        originator: tuple[str, int | None] = ("", None),
    ) -> Outcome:
        """Raises DimseError for everything that can go wrong with the PACS: what it answered, 0122 for what it does not
        take, A700 for one that is not to be had, as senders try again later then."""
        once = _Once(instance)

        async def perform(scu: SCU) -> Outcome:
            try:
                return await scu.store(
                    once.instance,
                    priority=priority,
                    move_originator_ae_title=originator[0],
                    move_originator_message_id=originator[1],
                )
            except NoPresentationContext:
                raise
            except AssociationError as error:
                if not once.can_be_repeated:
                    raise OperationInterrupted(f"in the middle of a store: {error}") from error
                raise

        try:
            try:
                return await self.pool.run(perform, proposal=proposal)
            finally:
                await once.close()
        except NoPresentationContext as error:
            logger.info("%s: %s", self, error)
            raise DimseError(
                Status.SOP_CLASS_NOT_SUPPORTED, "the PACS does not take this SOP class so encoded"
            ) from error
        except (AssociationError, LocalProtocolError) as error:  # the latter when the pool is closed
            logger.warning("%s cannot be reached for a C-STORE: %s", self, error)
            raise DimseError(Status.OUT_OF_RESOURCES, "the PACS cannot be reached") from error

    def association_established(self, association: Association) -> None:
        pass

    def association_ended(self, association: Association, error: AssociationError | None) -> None:
        pass


class _Once:
    """The data of an instance to be stored, which may be there only once.

    A source is closed by whoever stores it, and a stream is gone once it has been begun.
    """

    def __init__(self, instance: Instance) -> None:
        self._data = instance.data
        self._stream: _Stream | None = None
        self.instance = instance
        if isinstance(self._data, AsyncIterable):
            self._stream = _Stream(self._data)
            self.instance = replace(instance, data=self._stream)

    @property
    def can_be_repeated(self) -> bool:
        if self._stream is not None:
            return not self._stream.begun
        return isinstance(self._data, bytes | bytearray | memoryview)

    async def close(self) -> None:
        if isinstance(self._data, AsyncGenerator):
            await self._data.aclose()
        elif not isinstance(self._data, bytes | bytearray | memoryview | AsyncIterable):
            self._data.close()


class _Stream:
    """Chunks that come only once."""

    def __init__(self, chunks: AsyncIterable[bytes | memoryview]) -> None:
        self.begun = False
        self._chunks = chunks

    def __aiter__(self) -> AsyncIterator[bytes | memoryview]:
        self.begun = True
        return aiter(self._chunks)


def _decode(match: Match) -> Model:
    try:
        return decode_data_set(match.identifier, match.transfer_syntax_uid)
    except DataSetError as error:
        raise DimseError(Status.CANNOT_UNDERSTAND, "an answer of the PACS cannot be decoded") from error


def _nothing() -> Selection:
    async def instances() -> AsyncGenerator[Instance | Unavailable, None]:
        return
        yield

    return Selection(instances(), sop_instance_uids=(), total=0)
