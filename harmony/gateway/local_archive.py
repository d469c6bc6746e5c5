"""The local archive as a backend: what an endpoint receives becomes a Part 10 file, and is found again.

It is what a pipeline with `backends = []` has, what the `storage` backend is, and what `jmix_builder` packs envelopes
from. Files are `harmony.archive.files`, the index over them `harmony.archive.indexing`; an object that was acknowledged
is found by the next query.

Several pipelines may have the same folder. Each has a LocalArchive with options of its own for what it receives; they
share the one index, which the gateway opens before and closes after them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from harmony.archive.files import FileSink, FileStore
from harmony.archive.index import ArchiveIndexError, StoredInstance, UniqueKeys
from harmony.archive.indexing import ArchiveIndex, stream
from harmony.archive.matching import compile_query
from harmony.archive.projection import Projection
from harmony.archive.stored import Journal, JournalChain, StoredObject
from harmony.dicom.json_model import Model
from harmony.dimse.operation import StoreRequest
from harmony.dimse.retrieve_scp import Selection, Unavailable
from harmony.dimse.scu import Instance
from harmony.dimse.sink import Sink, WholeStore, feed
from harmony.dimse.source import FileSource
from harmony.dimse.status import Outcome
from harmony.gateway.backend import Query, Retrieve
from harmony.gateway.instance_headers import stored_header
from harmony.ul.association import Association
from harmony.ul.errors import AssociationError

__all__ = ["Announced", "LocalArchive", "Upload"]

LISTED_INSTANCES = 4096
"""A selection up to this size is read from the index at once, some 2 MB; a larger one is streamed."""
LISTED_UIDS = 65536
"""And of one up to this size the UIDs are known beforehand, so that every failure can be listed."""


class Announced(Protocol):
    """What is known of an object before its data set comes; a StoreRequest is one."""

    @property
    def affected_sop_class_uid(self) -> str: ...
    @property
    def affected_sop_instance_uid(self) -> str: ...
    @property
    def transfer_syntax_uid(self) -> str: ...
    @property
    def calling_ae_title(self) -> str: ...
    @property
    def called_ae_title(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Upload:
    """The same of an object that no association brings."""

    affected_sop_class_uid: str
    affected_sop_instance_uid: str
    transfer_syntax_uid: str
    calling_ae_title: str = ""
    called_ae_title: str = ""

    @staticmethod
    def of(instance: Instance) -> Upload:
        return Upload(instance.sop_class_uid, instance.sop_instance_uid, instance.transfer_syntax_uid)


class LocalArchive:
    """A `Backend` over a FileStore, which it opens and closes.

    index: of the FileStore's folder, open while this is started. None: what is received cannot be queried.
    """

    def __init__(self, files: FileStore, index: ArchiveIndex | None = None) -> None:
        self.files = files
        self.index = index

    def __str__(self) -> str:
        return f"the storage folder {self.files.folder.root}"

    @property
    def matches_as_asked(self) -> bool:
        return True

    @property
    def can_be_queried(self) -> bool:
        return self.index is not None

    async def start(self) -> None:
        await asyncio.to_thread(self.files.open)

    async def stop(self, grace_s: float) -> None:
        self.files.close()

    async def echo(self) -> None:
        """It is here, so it answers."""

    def problem(self) -> str | None:
        """Why it does not take or find objects now, for whoever watches the gateway. Blocking."""
        return self.files.problem() or (self.index.problem() if self.index is not None else None)

    # Storing

    def store(self, request: StoreRequest) -> Sink:
        return self.sink(request)

    def sink(
        self,
        announced: Announced,
        *,
        journal: Journal | None = None,
        on_stored: Callable[[StoredObject], None] | None = None,
    ) -> FileSink:
        """The sink of `FileStore.sink` for one object, which gets into the index as well."""
        journal, on_stored = self._indexed(journal, on_stored)
        return self.files.sink(
            sop_class_uid=announced.affected_sop_class_uid,
            sop_instance_uid=announced.affected_sop_instance_uid,
            transfer_syntax_uid=announced.transfer_syntax_uid,
            calling_ae_title=announced.calling_ae_title,
            called_ae_title=announced.called_ae_title,
            journal=journal,
            on_stored=on_stored,
        )

    def whole_store(self, request: StoreRequest) -> WholeStore | None:
        """The short cut of `store` for what comes in one fragment: `harmony.dimse.scp.WholeStoreFor`."""
        journal, on_stored = self._indexed(None, None)
        return self.files.whole_objects(
            sop_class_uid=request.affected_sop_class_uid,
            transfer_syntax_uid=request.transfer_syntax_uid,
            calling_ae_title=request.calling_ae_title,
            called_ae_title=request.called_ae_title,
            journal=journal,
            on_stored=on_stored,
        )

    def _indexed(
        self, journal: Journal | None, on_stored: Callable[[StoredObject], None] | None
    ) -> tuple[Journal | None, Callable[[StoredObject], None] | None]:
        """The same, and the index as well."""
        index = self.index
        if index is None:
            return journal, on_stored
        return (
            index if journal is None else JournalChain(index, journal),
            index.stored if on_stored is None else _both(index.stored, on_stored),
        )

    async def store_instance(self, instance: Instance) -> Outcome:
        return await feed(self.sink(Upload.of(instance)), instance.data)

    def association_established(self, association: Association) -> None:
        pass

    def association_ended(self, association: Association, error: AssociationError | None) -> None:
        pass

    # Finding

    async def query(self, query: Query) -> AsyncGenerator[Model, None]:
        index = self._index()
        matcher = query.compiled or compile_query(query.identifier, query.matching)
        projection = Projection(matcher, level=query.level.value, patient_root=query.patient_root)

        def ask(within_s: float | None = None) -> Iterator[Model]:
            return index.query(
                query.level, matcher, limit=query.limit, offset=query.offset, within_s=within_s
            )

        found = index.at_once(ask)
        if found is not None:
            for entity in found:
                yield entity if query.all_attributes else projection.project(entity)
            return
        answers = stream(ask)
        try:
            async for entity in answers:
                yield entity if query.all_attributes else projection.project(entity)
        finally:
            await answers.aclose()

    async def retrieve(self, retrieve: Retrieve) -> Selection:
        """Instances come as they are stored, whatever `retrieve.accepted` says."""
        index, keys = self._index(), retrieve.keys
        few = index.at_once(lambda within_s: index.instances(keys, within_s=within_s))
        if few is not None:
            listed, uids, pairs, total = _survey(iter(few))
        else:
            listed, uids, pairs, total = await asyncio.to_thread(lambda: _survey(index.instances(keys)))
        return Selection(
            _instances(index, retrieve.keys, listed),
            sop_instance_uids=uids,
            total=total,
            contexts=pairs,
        )

    async def metadata(self, retrieve: Retrieve, root: str) -> AsyncGenerator[bytes | Unavailable, None]:
        index = self._index()
        answers = stream(
            lambda: (stored_header(*each, root) for each in index.encoded_headers(retrieve.keys))
        )
        try:
            async for header in answers:
                yield header
        finally:
            await answers.aclose()

    async def locate(self, retrieve: Retrieve) -> tuple[StoredInstance, Model] | None:
        index, keys = self._index(), retrieve.keys
        found = index.at_once(lambda within_s: islice(index.headers(keys, within_s=within_s), 1))
        if found is not None:
            return found[0] if found else None
        return await asyncio.to_thread(lambda: next(index.headers(keys), None))

    async def version(self, retrieve: Retrieve) -> str | None:
        """Of what the index knows, for that is what metadata are made from; no file is looked at."""
        index, keys = self._index(), retrieve.keys
        found = index.at_once(lambda within_s: iter((index.version(keys, within_s=within_s),)))
        return (found[0] if found is not None else await asyncio.to_thread(index.version, keys)) or None

    def _index(self) -> ArchiveIndex:
        if self.index is None:
            raise ArchiveIndexError("this archive has no index")
        return self.index


def _both(
    first: Callable[[StoredObject], None], second: Callable[[StoredObject], None]
) -> Callable[[StoredObject], None]:
    def both(stored: StoredObject) -> None:
        first(stored)
        second(stored)

    return both


def _survey(
    found: Iterator[StoredInstance],
) -> tuple[list[StoredInstance] | None, list[str] | None, list[tuple[str, str]], int]:
    """Blocking, as what it is given may be: the instances when they are few, their UIDs unless they are very many, the
    pairs of SOP class and transfer syntax, and the number."""
    first = list(islice(found, LISTED_INSTANCES + 1))
    pairs = {(each.sop_class_uid, each.transfer_syntax_uid): None for each in first}
    uids = [each.sop_instance_uid for each in first]
    if len(first) <= LISTED_INSTANCES:
        return first, uids, list(pairs), len(first)
    total = len(first)
    for each in found:
        total += 1
        pairs[each.sop_class_uid, each.transfer_syntax_uid] = None
        if total <= LISTED_UIDS:
            uids.append(each.sop_instance_uid)
    return None, uids if total <= LISTED_UIDS else None, list(pairs), total


async def _instances(
    index: ArchiveIndex, keys: UniqueKeys, listed: list[StoredInstance] | None
) -> AsyncGenerator[Instance | Unavailable, None]:
    if listed is not None:
        for stored in listed:
            yield _instance(stored)
        return
    answers = stream(lambda: index.instances(keys))
    try:
        async for stored in answers:
            yield _instance(stored)
    finally:
        await answers.aclose()


def _instance(stored: StoredInstance) -> Instance | Unavailable:
    try:
        source = FileSource(stored.path, offset=stored.data_set_offset)
    except OSError:  # removed in this moment, or unreadable
        return Unavailable(stored.sop_instance_uid)
    return Instance(stored.sop_class_uid, stored.sop_instance_uid, stored.transfer_syntax_uid, source)
