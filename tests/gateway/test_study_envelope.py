"""Envelopes of studies that arrive: complete or not at all, once for all who wait, and never in memory."""

from __future__ import annotations

import asyncio
import resource
import sqlite3
import tracemalloc
import zipfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from harmony.dimse import Instance
from harmony.dimse.retrieve_scp import Selection, Unavailable
from harmony.dimse.status import DimseError, Status
from harmony.gateway.backend import Retrieve
from harmony.gateway.envelope_builder import EnvelopeBuilder
from harmony.gateway.options import JmixBuilderOptions
from harmony.gateway.study_envelope import BATCH_BYTES, NotRetrieved, NotStored, StudyEnvelopes
from harmony.jmix.reader import check_envelope
from harmony.jmix.store import EnvelopeStore
from harmony.ul.errors import ConnectionLost

STUDY = "1.2.3.4.5"
CT = "1.2.840.10008.5.1.4.1.1.2"
IMPLICIT = "1.2.840.10008.1.2"
WAIT_S = 20.0


@dataclass
class Source:
    """What a retrieve yields is in `script`: instances, Unavailable, exceptions to raise, events to wait for."""

    script: list[Any] = field(default_factory=list)
    retrieves: list[Retrieve] = field(default_factory=list)
    closed: int = 0
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when an event is waited for."""

    async def retrieve(self, retrieve: Retrieve) -> Selection:
        self.retrieves.append(retrieve)
        if self.script and isinstance(self.script[0], Exception):
            raise self.script[0]
        return Selection(self._instances())

    async def _instances(self) -> AsyncIterator[Instance | Unavailable]:
        try:
            for each in self.script:
                if isinstance(each, Exception):
                    raise each
                if isinstance(each, asyncio.Event):
                    self.reached.set()
                    await each.wait()
                else:
                    yield each
        finally:
            self.closed += 1


async def arriving(data: bytes, piece_bytes: int = 16_000, *, then: Exception | None = None):
    for start in range(0, len(data), piece_bytes):
        yield data[start : start + piece_bytes]
    if then is not None:
        raise then


@pytest.fixture
def store(tmp_path: Path):
    store = EnvelopeStore(tmp_path / "store")
    store.open()
    yield store
    store.close()


@pytest.fixture
def source() -> Source:
    return Source()


MakeStudies = Callable[..., StudyEnvelopes]


@pytest.fixture
def make_studies(store: EnvelopeStore, source: Source) -> MakeStudies:
    def make(*more: Source, **options: Any) -> StudyEnvelopes:
        builder = EnvelopeBuilder(JmixBuilderOptions(store_dir=store.root, **options), store)
        return StudyEnvelopes([source, *more], builder)  # type: ignore[list-item]

    return make


@pytest.fixture
def left(store: EnvelopeStore) -> Callable[[], list[str]]:
    """left(): everything in the store but its index."""

    def left() -> list[str]:
        return sorted(
            str(path.relative_to(store.root))
            for path in store.root.rglob("*")
            if path.name != "incoming" and not path.name.startswith("jmix-index")
        )

    return left


async def test_everything_that_arrives_is_in_it(make_studies, source, store, make_instance, read_envelope):
    sizes = (0, 1, 4, 15_999, BATCH_BYTES - 200, BATCH_BYTES, 3 * BATCH_BYTES + 7)
    sent = {f"1.{size}": make_instance(f"1.{size}", pixels=bytes(size)) for size in sizes}
    files = {f"2.{size}": make_instance(f"2.{size}", pixels=bytes(size)) for size in sizes}
    source.script = [
        *(replace(each, data=arriving(each.data)) for each in sent.values()),
        *files.values(),
    ]
    made = await make_studies().find_or_make(STUDY)
    assert made.is_new
    found = read_envelope(store.path(made.id))
    assert found.data == {uid: each.data for uid, each in (sent | files).items()}
    assert check_envelope(store.path(made.id)).instance_count == 14
    assert store.get(made.id).origin == "retrieved"
    (retrieve,) = source.retrieves
    assert (retrieve.level.value, retrieve.keys.study_instance_uids) == ("STUDY", (STUDY,))
    assert retrieve.accepted is None
    assert source.closed == 1


async def test_what_is_in_the_store_is_not_retrieved(make_studies, source, make_instance):
    source.script = [make_instance("1.1")]
    studies = make_studies()
    assert await studies.find(STUDY) is None
    made = await studies.find_or_make(STUDY)
    assert await studies.find(STUDY) == made.id
    assert await studies.find_or_make(STUDY) == replace(made, is_new=False)
    assert len(source.retrieves) == 1


@pytest.mark.parametrize("uid", ["", "*", "1.2.*", "../../etc", "1" * 65, "1..2", "1.2\\1.3"])
async def test_what_is_no_uid_is_not_retrieved(make_studies, source, uid):
    assert await make_studies().find_or_make(uid) is None
    assert source.retrieves == []


async def test_nothing_retrieved_is_no_envelope(make_studies, source, left):
    assert await make_studies().find_or_make(STUDY) is None
    assert left() == []


async def test_all_sources_are_asked(make_studies, source, store, make_instance, read_envelope):
    source.script = [make_instance("1.1")]
    made = await make_studies(Source(), Source([make_instance("1.2")])).find_or_make(STUDY)
    assert sorted(read_envelope(store.path(made.id)).data) == ["1.1", "1.2"]


# Failures


async def test_instances_that_are_missing_are_counted(make_studies, source, make_instance, left):
    source.script = [make_instance("1.1"), Unavailable("1.2"), make_instance("1.3"), Unavailable("1.4")]
    with pytest.raises(NotRetrieved, match="2 of 4 instances of the study could not be retrieved"):
        await make_studies().find_or_make(STUDY)
    assert left() == []
    assert source.closed == 1


async def test_study_of_which_nothing_could_be_had(make_studies, source, left):
    source.script = [Unavailable("1.1")]
    with pytest.raises(NotRetrieved, match="1 of 1"):
        await make_studies().find_or_make(STUDY)
    assert left() == []


@pytest.mark.parametrize(
    "error",
    [
        ConnectionLost("gone"),
        DimseError(Status.OUT_OF_RESOURCES, "no"),
        TimeoutError(),
        EOFError("short"),
        OSError(5, "Input/output error"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("place", ["before", "between", "within"])
async def test_errors_pass_as_they_are(make_studies, source, make_instance, left, error, place):
    first, second = make_instance("1.1"), make_instance("1.2", pixels=bytes(2 * BATCH_BYTES))
    source.script = {
        "before": [error],
        "between": [first, error],
        "within": [first, replace(second, data=arriving(second.data, then=error))],
    }[place]
    with pytest.raises(type(error)) as raised:
        await make_studies().find_or_make(STUDY)
    assert raised.value is error
    assert left() == []


async def test_next_request_tries_again(make_studies, source, make_instance):
    source.script = [make_instance("1.1"), ConnectionLost("gone")]
    studies = make_studies()
    with pytest.raises(ConnectionLost):
        await studies.find_or_make(STUDY)
    source.script = [make_instance("1.1")]
    assert (await studies.find_or_make(STUDY)).is_new
    assert len(source.retrieves) == 2


async def test_instance_of_another_study(make_studies, source, make_instance, left):
    source.script = [make_instance("1.1"), make_instance("1.2", study="1.2.9")]
    with pytest.raises(NotRetrieved, match="another"):
        await make_studies().find_or_make(STUDY)
    assert left() == []
    assert source.closed == 1


async def test_uid_that_no_file_can_hold(make_studies, source, make_instance, left):
    source.script = [replace(make_instance("1.1"), sop_instance_uid="1.\u20ac")]
    with pytest.raises(NotRetrieved):
        await make_studies().find_or_make(STUDY)
    assert left() == []


async def test_disk_that_takes_no_more(make_studies, source, make_instance, left):
    """The limit for files stands in for a full disk."""
    large = make_instance("1.1", pixels=bytes(4 * BATCH_BYTES))
    source.script = [replace(large, data=arriving(large.data))]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * BATCH_BYTES, limits[1]))
    try:
        with pytest.raises(NotStored):
            await make_studies().find_or_make(STUDY)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert left() == []
    assert source.closed == 1


async def test_index_that_takes_no_more(make_studies, source, store, make_instance, left, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    source.script = [make_instance("1.1")]
    with monkeypatch.context() as patch:
        patch.setattr(store, "_enter", full)
        with pytest.raises(NotStored):
            await make_studies().find_or_make(STUDY)
    assert left() == []
    assert (await make_studies().find_or_make(STUDY)).is_new


# Waiting


async def test_all_who_wait_share_one_retrieve(make_studies, source, make_instance):
    go = asyncio.Event()
    source.script = [make_instance("1.1"), go, make_instance("1.2")]
    studies = make_studies()
    async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as group:
        waiting = [group.create_task(studies.find_or_make(STUDY)) for _ in range(5)]
        await source.reached.wait()
        waiting.append(group.create_task(studies.find_or_make(STUDY)))
        go.set()
    assert len({task.result() for task in waiting}) == 1
    assert len(source.retrieves) == 1


async def test_different_studies_do_not_wait_for_each_other(make_studies, source, make_instance):
    source.script = [go := asyncio.Event()]
    studies = make_studies()
    async with asyncio.timeout(WAIT_S):
        first = asyncio.create_task(studies.find_or_make(STUDY))
        await source.reached.wait()
        source.script = [make_instance("1.1", study="1.2.9")]
        assert (await studies.find_or_make("1.2.9")).is_new
        go.set()
        assert await first is None


async def test_who_leaves_does_not_take_it_from_the_others(make_studies, source, make_instance):
    go = asyncio.Event()
    source.script = [make_instance("1.1"), go]
    studies = make_studies()
    async with asyncio.timeout(WAIT_S):
        leaving = asyncio.create_task(studies.find_or_make(STUDY))
        staying = asyncio.create_task(studies.find_or_make(STUDY))
        await source.reached.wait()
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert source.closed == 0
        go.set()
        assert (await staying).is_new
    assert len(source.retrieves) == 1


async def test_last_one_to_leave_cancels_it(make_studies, source, make_instance, left, until):
    source.script = [make_instance("1.1"), asyncio.Event()]
    studies = make_studies()
    async with asyncio.timeout(WAIT_S):
        waiting = [asyncio.create_task(studies.find_or_make(STUDY)) for _ in range(3)]
        await source.reached.wait()
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        await until(lambda: source.closed == 1 and left() == [])
        source.script = [make_instance("1.1")]
        assert (await studies.find_or_make(STUDY)).is_new


async def test_who_comes_while_it_is_cancelled_gets_another(make_studies, source, make_instance):
    source.script = [make_instance("1.1"), asyncio.Event()]
    studies = make_studies()
    async with asyncio.timeout(WAIT_S):
        leaving = asyncio.create_task(studies.find_or_make(STUDY))
        await source.reached.wait()
        source.script = [make_instance("1.2")]
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert (await studies.find_or_make(STUDY)).is_new
    assert len(source.retrieves) == 2


async def test_all_who_wait_hear_of_the_failure(make_studies, source):
    go = asyncio.Event()
    source.script = [go, ConnectionLost("gone")]
    studies = make_studies()
    async with asyncio.timeout(WAIT_S):
        waiting = [asyncio.create_task(studies.find_or_make(STUDY)) for _ in range(3)]
        await source.reached.wait()
        go.set()
        results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(result) for result in results] == [ConnectionLost] * 3


async def test_stop_gives_up_what_is_being_made(make_studies, source, make_instance, left):
    source.script = [make_instance("1.1"), asyncio.Event()]
    studies = make_studies()
    async with asyncio.timeout(WAIT_S):
        waiting = asyncio.create_task(studies.find_or_make(STUDY))
        await source.reached.wait()
        await studies.stop(0.0)
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert source.closed == 1
    assert left() == []


# Size


@pytest.mark.parametrize("compression", ["stored", "deflate"])
async def test_instance_of_300_mb_needs_no_memory(make_studies, source, store, make_instance, compression):
    piece, count = bytes(128 * 1024), 2400
    header = make_instance("1.1").data[:-4]

    async def pixels():
        yield header
        for _ in range(count):
            yield piece

    source.script = [Instance(CT, "1.1", IMPLICIT, pixels())]
    studies = make_studies(compression=compression)
    tracemalloc.start()
    try:
        made = await studies.find_or_make(STUDY)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20
    (member,) = (
        each
        for each in check_members(store.path(made.id))
        if each.filename == "payload/series_1/image_001.dcm"
    )
    assert member.file_size > count * len(piece)


def check_members(path: Path):
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return archive.infolist()
