"""A backend whose doings are told to the audit trail: a Backend around a Backend.

What is stored and retrieved streams through as it is. Whose images they are is read from the header as it passes, or
asked of the backend itself where instances come as files. Who has asked is `activity.CALLER`; for what comes by
C-STORE, the association.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Final, Literal, Protocol

from harmony.archive.index import StoredInstance, UniqueKeys
from harmony.archive.levels import Level
from harmony.audit.message import QueryObject
from harmony.dicom.character_set import ASCII, character_set
from harmony.dicom.json_model import Model, encode_data_set, text_of
from harmony.dicom.scanner import HeaderScanner
from harmony.dimse.cancellation import close_iterator
from harmony.dimse.information_model import PATIENT_ROOT, STUDY_ROOT
from harmony.dimse.operation import StoreRequest
from harmony.dimse.retrieve import RetrieveResult
from harmony.dimse.retrieve_scp import Selection, Unavailable
from harmony.dimse.scu import Instance
from harmony.dimse.sink import Sink
from harmony.dimse.source import pieces
from harmony.dimse.status import Outcome, StatusClass
from harmony.gateway.activity import CALLER, Activity, Caller, Deed, Subject
from harmony.gateway.auditing import Auditor
from harmony.gateway.backend import Backend, Query, Retrieve
from harmony.gateway.dicom_scu import DicomSCU
from harmony.ul.association import Association
from harmony.ul.errors import AssociationError

__all__ = ["AuditedBackend", "AuditedPACS", "AuditedSink", "Tells"]

logger = logging.getLogger("harmony.gateway")

CHARACTER_SET: Final = 0x00080005
PATIENT_NAME: Final = 0x00100010
PATIENT_ID: Final = 0x00100020
STUDY_UID: Final = 0x0020000D
WANTED: Final = frozenset({CHARACTER_SET, PATIENT_NAME, PATIENT_ID, STUDY_UID})

EXPLICIT_LITTLE_ENDIAN: Final = "1.2.840.10008.1.2.1"
LOOKUP_S: Final = 10.0
"""For the backend to say whose study it is."""
REMEMBERED: Final = 1000


class AuditedBackend:
    """backend: what is behind it; started and stopped by whoever made it."""

    def __init__(self, backend: Backend, auditor: Auditor) -> None:
        self.backend = backend
        self._auditor = auditor
        self._subjects: dict[str, Subject] = {}
        """By Study Instance UID, the latest ones."""

    def __str__(self) -> str:
        return str(self.backend)

    @property
    def matches_as_asked(self) -> bool:
        return self.backend.matches_as_asked

    @property
    def can_be_queried(self) -> bool:
        return self.backend.can_be_queried

    async def start(self) -> None:
        await self.backend.start()

    async def stop(self, grace_s: float) -> None:
        await self.backend.stop(grace_s)

    async def echo(self) -> None:
        await self.backend.echo()

    # Finding

    async def query(self, query: Query) -> AsyncGenerator[Model, None]:
        caller, good = CALLER.get(), False
        try:
            async with aclosing(self.backend.query(query)) as matches:
                async for match in matches:
                    yield match
            good = True
        except GeneratorExit:
            good = True  # whoever asked has enough
            raise
        finally:
            if caller is not None:
                self._auditor.query(self._auditor.activity_of(caller.by), _query_object(query), good=good)

    async def retrieve(self, retrieve: Retrieve) -> Selection:
        return self._told(await self.backend.retrieve(retrieve), retrieve)

    def _told(self, selection: Selection, retrieve: Retrieve) -> Selection:
        caller = CALLER.get()
        if caller is not None:
            return replace(selection, instances=self._retrieved(selection.instances, retrieve, caller))
        return selection

    async def _retrieved(
        self, instances: AsyncIterator[Instance | Unavailable], retrieve: Retrieve, caller: Caller
    ) -> AsyncGenerator[Instance | Unavailable, None]:
        given: dict[tuple[str, bool], int] = {}
        try:
            async for instance in instances:
                key = (getattr(instance, "sop_class_uid", ""), isinstance(instance, Instance))
                given[key] = given.get(key, 0) + 1
                yield instance
        finally:
            await close_iterator(instances)
            if given:
                subjects = await self._subjects_of(retrieve.keys)
                self._add(caller, Deed.SENT, subjects, given)

    async def metadata(self, retrieve: Retrieve, root: str) -> AsyncGenerator[bytes | Unavailable, None]:
        given: dict[tuple[str, bool], int] = {}
        caller = CALLER.get()
        try:
            async with aclosing(self.backend.metadata(retrieve, root)) as headers:
                async for header in headers:
                    key = ("", isinstance(header, bytes))
                    given[key] = given.get(key, 0) + 1
                    yield header
        finally:
            if given and caller is not None:
                self._add(caller, Deed.READ, await self._subjects_of(retrieve.keys), given)

    async def version(self, retrieve: Retrieve) -> str | None:
        return await self.backend.version(retrieve)

    async def locate(self, retrieve: Retrieve) -> tuple[StoredInstance, Model] | None:
        located = await self.backend.locate(retrieve)
        caller = CALLER.get()
        if located is not None and caller is not None:
            stored, header = located
            subject = _subject_of(header)
            self._add(caller, Deed.READ, [subject], {(stored.sop_class_uid, True): 1})
        return located

    def _add(
        self,
        caller: Caller,
        deed: Deed,
        subjects: Sequence[Subject],
        given: dict[tuple[str, bool], int],
    ) -> None:
        """Of several studies nobody knows which instance belongs to which: each gets all."""
        activity = self._auditor.activity_of(caller.by)
        for subject in subjects:
            for (sop_class_uid, good), count in given.items():
                activity.add(deed, subject, sop_class_uid, count, destination=caller.destination, good=good)
        self._auditor.progressed(activity)

    async def _subjects_of(self, keys: UniqueKeys) -> list[Subject]:
        """Whose studies they are: asked at the study level, and remembered."""
        studies = list(keys.study_instance_uids or ())
        known = [self._subjects.get(uid) for uid in studies]
        if studies and None not in known:
            return [each for each in known if each is not None]
        identifier: Model = {
            f"{tag:08X}": {"vr": vr}
            for tag, vr in ((PATIENT_NAME, "PN"), (PATIENT_ID, "LO"), (STUDY_UID, "UI"))
        }
        for tag, vr, values in ((PATIENT_ID, "LO", keys.patient_ids), (STUDY_UID, "UI", studies)):
            if values:
                identifier[f"{tag:08X}"] = {"vr": vr, "Value": list(values)}
        found: list[Subject] = []
        try:
            async with asyncio.timeout(LOOKUP_S):
                query = Query(Level.STUDY, identifier, limit=len(studies) or None)
                async with aclosing(self.backend.query(query)) as matches:
                    async for match in matches:
                        found.append(_subject_of(match))
                        self._remember(found[-1])
        except Exception as error:  # of any backend; what happened is to be told all the same
            logger.warning("audit: %s does not say whose study it is: %s", self, type(error).__name__)
        return found or [Subject(uid) for uid in studies] or [Subject("")]

    def _remember(self, subject: Subject) -> None:
        self._subjects[subject.study_instance_uid] = subject
        if len(self._subjects) > REMEMBERED:
            del self._subjects[next(iter(self._subjects))]

    # Storing

    def store(self, request: StoreRequest) -> Sink:
        activity = self._auditor.activity_of(request.association)
        return AuditedSink(
            self.backend.store(request),
            self._auditor,
            activity,
            request.affected_sop_class_uid,
            request.transfer_syntax_uid,
        )

    async def store_instance(self, instance: Instance) -> Outcome:
        caller = CALLER.get()
        if caller is None:
            return await self.backend.store_instance(instance)
        scanner = HeaderScanner(instance.transfer_syntax_uid, WANTED)
        passing = Instance(
            instance.sop_class_uid,
            instance.sop_instance_uid,
            instance.transfer_syntax_uid,
            _scanned(instance.data, scanner),
        )
        good = False
        try:
            outcome = await self.backend.store_instance(passing)
            good = outcome.status_class is not StatusClass.FAILURE
        finally:
            activity = self._auditor.activity_of(caller.by)
            activity.add(Deed.RECEIVED, _subject(scanner), instance.sop_class_uid, good=good)
            self._auditor.progressed(activity)
        return outcome

    def association_established(self, association: Association) -> None:
        self.backend.association_established(association)

    def association_ended(self, association: Association, error: AssociationError | None) -> None:
        self.backend.association_ended(association, error)
        self._auditor.association_ended(association)


class AuditedPACS(AuditedBackend):
    """A DicomSCU, for the endpoint that speaks DIMSE over HTTP and asks for more than a Backend has."""

    def __init__(self, pacs: DicomSCU, auditor: Auditor) -> None:
        super().__init__(pacs, auditor)
        self._pacs = pacs
        self.peer = pacs.peer
        self.options = pacs.options
        self.local_aet = pacs.local_aet

    async def retrieve(self, retrieve: Retrieve, *, mode: Literal["get", "move"] | None = None) -> Selection:
        return self._told(await self._pacs.retrieve(retrieve, mode=mode), retrieve)

    async def move_to(self, retrieve: Retrieve, destination: str) -> RetrieveResult:
        result = await self._pacs.move_to(retrieve, destination)
        caller = CALLER.get()
        if caller is not None:
            counters = result.counters
            good = (counters.completed or 0) + (counters.warning or 0)
            given = {("", True): good, ("", False): counters.failed or 0}
            told = replace(caller, destination=destination)
            self._add(
                told,
                Deed.SENT,
                await self._subjects_of(retrieve.keys),
                {key: count for key, count in given.items() if count},
            )
        return result


class Tells(Protocol):
    """Of an `Auditor`, what a sink needs."""

    def progressed(self, activity: Activity) -> None: ...


class AuditedSink:
    """Reads whose image it is from what passes, and says what became of it."""

    __slots__ = ("_activity", "_auditor", "_scanner", "_sink", "_sop_class_uid")

    def __init__(
        self, sink: Sink, auditor: Tells, activity: Activity, sop_class_uid: str, transfer_syntax_uid: str
    ) -> None:
        self._sink = sink
        self._auditor = auditor
        self._activity = activity
        self._sop_class_uid = sop_class_uid
        self._scanner = HeaderScanner(transfer_syntax_uid, WANTED)

    def write(self, fragment: memoryview) -> None:
        if not self._scanner.done:
            self._scanner.feed(fragment)
        try:
            self._sink.write(fragment)
        except BaseException:
            self._add(good=False)  # refused; what still comes is not for us
            raise

    def finish(self) -> Outcome | Awaitable[Outcome]:
        try:
            outcome = self._sink.finish()
        except BaseException:
            self._add(good=False)
            raise
        if isinstance(outcome, Outcome):
            self._add(good=outcome.status_class is not StatusClass.FAILURE)
            return outcome
        return self._later(outcome)

    async def _later(self, awaited: Awaitable[Outcome]) -> Outcome:
        good = False
        try:
            outcome = await awaited
            good = outcome.status_class is not StatusClass.FAILURE
            return outcome
        finally:
            self._add(good=good)

    def _add(self, *, good: bool) -> None:
        self._activity.add(Deed.RECEIVED, _subject(self._scanner), self._sop_class_uid, good=good)
        self._auditor.progressed(self._activity)

    def abort(self) -> None:
        self._sink.abort()


async def _scanned(data: object, scanner: HeaderScanner) -> AsyncGenerator[bytes | memoryview, None]:
    async with aclosing(pieces(data)) as fragments:  # type: ignore[arg-type]
        async for fragment in fragments:
            if not scanner.done:
                scanner.feed(memoryview(fragment))
            yield fragment


def _subject(scanner: HeaderScanner) -> Subject:
    scanner.finish()
    used = character_set(scanner.text(CHARACTER_SET)) or ASCII
    name = used.decode(scanner.values.get(PATIENT_NAME, b""), person_name=True).strip(" \0")
    return Subject(scanner.text(STUDY_UID), scanner.text(PATIENT_ID), name)


def _subject_of(model: Model) -> Subject:
    return Subject(text_of(model, STUDY_UID), text_of(model, PATIENT_ID), text_of(model, PATIENT_NAME))


def _query_object(query: Query) -> QueryObject:
    """The identifier as a data set; what cannot be encoded in the default repertoire is in UTF-8 (PS3.5 §6.1.2.3)."""
    model = PATIENT_ROOT if query.patient_root else STUDY_ROOT
    identifier = dict(query.identifier) | {"00080052": {"vr": "CS", "Value": [query.level.value]}}
    data = encode_data_set(identifier, EXPLICIT_LITTLE_ENDIAN, character_set="ISO_IR 192")
    return QueryObject(data, model.find, EXPLICIT_LITTLE_ENDIAN)
