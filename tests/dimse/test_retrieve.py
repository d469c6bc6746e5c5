"""C-GET and C-MOVE, both roles on loopback: counts, cancellation and abortion at each point, what cannot be sent."""

import asyncio
import contextlib
import itertools
from dataclasses import dataclass, field

import pytest

from harmony.dimse import (
    SUCCESS_OUTCOME,
    BytesSource,
    CCancelRQ,
    CGetRQ,
    CGetRSP,
    CMoveRQ,
    CStoreRQ,
    CStoreRSP,
    DimseError,
    Instance,
    Outcome,
    Services,
    associate,
)
from harmony.dimse.cancellation import OperationInterrupted
from harmony.dimse.information_model import STUDY_ROOT, propose_get, propose_query
from harmony.dimse.move_receiver import MoveReceiver
from harmony.dimse.peer import Peer
from harmony.dimse.retrieve import GetReceiver, RetrieveFailed, RetrieveResult, get, move
from harmony.dimse.retrieve_scp import Selection, Unavailable, get_handler, move_handler
from harmony.dimse.sub_operations import Counters
from harmony.ul import AssociationAborted, AssociationError, DeadlineExceeded, LocalProtocolError

pytestmark = pytest.mark.usefixtures("no_leaks")

CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
JPEG = "1.2.840.10008.1.2.4.50"
IDENTIFIER = b"\x08\x00\x52\x00CS\x06\x00STUDY "


class Source(BytesSource):
    """Remembers whether it was closed."""

    def __init__(self, data):
        super().__init__(data)
        self.closed = False

    def close(self):
        self.closed = True
        super().close()


def instance(number, *, sop_class=CT, syntax=EXPLICIT, size=1000):
    return Instance(sop_class, f"1.2.3.{number}", syntax, Source(bytes([number % 256]) * size))


@dataclass
class Archive:
    """Selects what it is told to; `before[n]` is awaited before the n-th instance (and after the last)."""

    items: list = field(default_factory=list)
    known: str = "uids"
    before: dict = field(default_factory=dict)
    on_select: object = None
    contexts: tuple = ()
    total_so_far: object = None
    announced: list = field(default_factory=list)
    reached: dict = field(default_factory=dict)
    identifiers: list = field(default_factory=list)
    operation: object = None
    closed: int = 0
    served: int = 0

    def event(self, number):
        """Set when the iterator has come to the n-th instance and waits."""
        return self.reached.setdefault(number, asyncio.Event())

    async def select(self, operation):
        self.operation = operation
        self.identifiers.append(operation.data_set)
        if self.on_select is not None:
            await self.on_select()
        uids = self.announced or [each.sop_instance_uid for each in self.items]
        return Selection(
            self.instances(),
            sop_instance_uids=uids if self.known == "uids" else None,
            total=len(self.items) if self.known == "total" else None,
            total_so_far=self.total_so_far,
            contexts=self.contexts,
        )

    async def instances(self):
        try:
            for number in range(len(self.items) + 1):
                self.event(number).set()
                if number in self.before:
                    await self.before[number]()
                if number < len(self.items):
                    self.served += 1
                    yield self.items[number]
        finally:
            self.closed += 1

    @property
    def open_sources(self):
        return [
            each
            for each in self.items[: self.served]
            if isinstance(each, Instance) and isinstance(each.data, Source) and not each.data.closed
        ]


async def until(condition):
    """Of things that happen on the other side of a connection, and that nobody announces."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0)


async def forever():
    await asyncio.Event().wait()


def raising(error):
    async def fail():
        raise error

    return fail


@dataclass
class Received:
    """Sinks that keep what came; `answers` by SOP Instance UID, everything else is stored."""

    answers: dict = field(default_factory=dict)
    got: dict = field(default_factory=dict)
    requests: list = field(default_factory=list)

    def open(self, request):
        self.requests.append(request)
        return Sink(self, request)

    def answer(self, request):
        answer = self.answers.get(request.affected_sop_instance_uid, 0x0000)
        return answer(request) if callable(answer) else Outcome(answer)


class Sink:
    def __init__(self, received, request):
        self.received = received
        self.request = request
        self.data = bytearray()

    def write(self, fragment):
        self.data += fragment

    def finish(self):
        self.received.got[self.request.affected_sop_instance_uid] = bytes(self.data)
        return self.received.answer(self.request)

    def abort(self):
        pass


@pytest.fixture
def received():
    return Received()


@pytest.fixture
def getting(serving):
    """async with getting(archive, ...) as scu, with a GetReceiver in scu.receiver."""

    @contextlib.asynccontextmanager
    async def start(archive, *, storage=((CT, (EXPLICIT,)),), **options):
        services = Services()
        services.operation(CGetRQ, [STUDY_ROOT.get], get_handler(archive.select, **options))
        services.store_as_scu()
        async with serving(services) as server:
            proposal = propose_get([STUDY_ROOT.get, "1.2.840.10008.1.1"], storage)
            receiver = GetReceiver()
            async with associate(
                "127.0.0.1",
                server.port,
                contexts=proposal.contexts,
                roles=proposal.roles,
                services=receiver.services,
            ) as scu:
                scu.receiver = receiver
                yield scu

    return start


@pytest.fixture
def world(serving):
    """async with world(archive, storing services, ...) as (scu, server, destination)."""

    @contextlib.asynccontextmanager
    async def start(archive, received, *, timeouts=None, transfer_syntaxes=None, **options):
        storing = Services()
        storing.store(received.open, transfer_syntaxes=transfer_syntaxes)
        ends = []
        storing.on_association(
            lambda association: ends.append(association), lambda association, error: ends.append(error)
        )
        async with serving(storing) as destination:
            port = destination.port

            def resolve(ae_title, operation):
                return {
                    "DEST": Peer("127.0.0.1", port, "DEST", timeouts=timeouts),
                    "NOBODY": Peer("127.0.0.1", 1, "NOBODY", timeouts=timeouts),
                }.get(ae_title)

            services = Services()
            services.operation(CMoveRQ, [STUDY_ROOT.move], move_handler(archive.select, resolve, **options))
            async with serving(services) as server:
                contexts = propose_query([STUDY_ROOT.move]).contexts
                async with associate(
                    "127.0.0.1",
                    server.port,
                    called_ae_title="ARCHIVE",
                    calling_ae_title="MOVER",
                    contexts=contexts,
                ) as scu:
                    scu.ends = ends
                    yield scu

    return start


async def got(scu, received, **options):
    async with get(
        scu, STUDY_ROOT.get, IDENTIFIER, received.open, receiver=scu.receiver, **options
    ) as retrieval:
        return await retrieval.final()


async def moved(scu, destination="DEST", **options):
    async with move(scu, STUDY_ROOT.move, IDENTIFIER, destination, **options) as retrieval:
        return await retrieval.final()


# C-GET


@pytest.mark.parametrize("count", [0, 1, 5])
async def test_get_brings_every_instance(getting, received, count):
    archive = Archive([instance(number) for number in range(count)])
    async with getting(archive) as scu:
        result = await got(scu, received)
        await scu.echo()
    assert result == RetrieveResult(0x0000, Counters(None, count, 0, 0))
    assert received.got == {f"1.2.3.{number}": bytes([number]) * 1000 for number in range(count)}
    assert archive.identifiers == [IDENTIFIER]
    assert archive.open_sources == []
    assert archive.closed == 1
    assert all(request.command.move_originator_ae_title == "" for request in received.requests)


@pytest.mark.parametrize("known", ["uids", "total", "nothing"])
async def test_pending_responses_count(getting, received, known):
    received.answers = {"1.2.3.1": 0xB000, "1.2.3.2": 0xA700}
    archive = Archive([instance(number) for number in range(4)], known=known)
    async with getting(archive, pending_instances=1) as scu:
        async with get(scu, STUDY_ROOT.get, IDENTIFIER, received.open, receiver=scu.receiver) as retrieval:
            told = [counters async for counters in retrieval]
        assert retrieval.result.status == 0xB000
        assert retrieval.result.failed_sop_instance_uids == ("1.2.3.2",)
    rest = (3, 2, 1, 0) if known != "nothing" else (1, 1, 1, 1)
    assert told == [
        Counters(rest[0], 1, 0, 0),
        Counters(rest[1], 1, 0, 1),
        Counters(rest[2], 1, 1, 1),
        Counters(rest[3], 2, 1, 1),
    ]


async def test_a_total_that_shows_on_the_way(getting, received):
    """Nobody knows it at first; a smaller one than was done already is none."""
    totals = iter([None, 4, 5, 1, 1])
    archive = Archive([instance(number) for number in range(4)], known="nothing")
    archive.total_so_far = lambda: next(totals)
    async with (
        getting(archive, pending_instances=1) as scu,
        get(scu, STUDY_ROOT.get, IDENTIFIER, received.open, receiver=scu.receiver) as retrieval,
    ):
        told = [counters.remaining async for counters in retrieval]
    assert told == [1, 2, 2, 0]


KINDS = {"completed": 0x0000, "warning": 0xB007, "failed": 0xC001}


@pytest.mark.parametrize("kinds", list(itertools.product(KINDS, repeat=2)), ids="-".join)
async def test_final_status_of_every_mixture(getting, world, received, kinds):
    """C-GET and C-MOVE alike."""
    received.answers = {f"1.2.3.{number}": KINDS[kind] for number, kind in enumerate(kinds)}
    failed = tuple(f"1.2.3.{number}" for number, kind in enumerate(kinds) if kind == "failed")
    results = []
    async with getting(Archive([instance(0), instance(1)])) as scu:
        with contextlib.suppress(RetrieveFailed):
            async with get(
                scu, STUDY_ROOT.get, IDENTIFIER, received.open, receiver=scu.receiver
            ) as retrieval:
                await retrieval.final()
        results.append(retrieval.result)
    async with world(Archive([instance(0), instance(1)]), received) as scu:
        with contextlib.suppress(RetrieveFailed):
            async with move(scu, STUDY_ROOT.move, IDENTIFIER, "DEST") as retrieval:
                await retrieval.final()
        results.append(retrieval.result)
    status = {("completed",) * 2: 0x0000, ("failed",) * 2: 0xA702}.get(kinds, 0xB000)
    for result in results:
        assert result.status == status
        assert result.counters == Counters(
            None, *(kinds.count(k) for k in ("completed", "failed", "warning"))
        )
        assert result.failed_sop_instance_uids == failed
        assert (result.failed_data_set is None) == (not failed)


async def test_a_failure_is_raised_with_its_result(getting, received):
    received.answers = {"1.2.3.0": 0xA700}
    async with getting(Archive([instance(0)])) as scu:
        with pytest.raises(RetrieveFailed, match="0xA702") as caught:
            await got(scu, received)
        await scu.echo()
    assert isinstance(caught.value, DimseError)
    assert caught.value.result.counters == Counters(None, 0, 1, 0)
    assert caught.value.result.failed_data_set == b"\x08\x00\x58\x00UI\x08\x001.2.3.0\0"


async def test_an_instance_without_a_context_fails_and_the_others_go_on(getting, received):
    items = [instance(0), instance(1, syntax=JPEG), instance(2, sop_class=MR), instance(3)]
    archive = Archive(items)
    async with getting(archive) as scu:
        result = await got(scu, received)
    assert result.status == 0xB000
    assert result.failed_sop_instance_uids == ("1.2.3.1", "1.2.3.2")
    assert sorted(received.got) == ["1.2.3.0", "1.2.3.3"]
    assert archive.open_sources == []


async def test_an_instance_may_be_offered_in_another_transfer_syntax(getting, received):
    asked = []

    async def transcode(item, accepted):
        asked.append((item.sop_instance_uid, item.transfer_syntax_uid, accepted))
        if item.sop_instance_uid == "1.2.3.2":
            return None
        if item.sop_instance_uid == "1.2.3.3":
            raise ValueError("cannot be decoded")
        return Instance(item.sop_class_uid, item.sop_instance_uid, accepted[0], b"explicit")

    archive = Archive([instance(0), *(instance(number, syntax=JPEG) for number in (1, 2, 3))])
    async with getting(archive, transcode=transcode, storage=[(CT, (EXPLICIT, IMPLICIT))]) as scu:
        result = await got(scu, received)
    assert asked == [(f"1.2.3.{number}", JPEG, (EXPLICIT, IMPLICIT)) for number in (1, 2, 3)]
    assert received.got["1.2.3.1"] == b"explicit"
    assert result.counters == Counters(None, 2, 2, 0)
    assert archive.open_sources == []


async def test_instances_that_cannot_be_read(getting, received):
    archive = Archive([Unavailable("1.2.3.0"), instance(1)])
    async with getting(archive) as scu:
        result = await got(scu, received)
    assert (result.status, result.failed_sop_instance_uids) == (0xB000, ("1.2.3.0",))


async def test_instances_that_were_announced_and_do_not_come(getting, received):
    archive = Archive([instance(0), instance(1)], announced=["1.2.3.0", "1.2.3.9", "1.2.3.1"])
    async with getting(archive) as scu:
        result = await got(scu, received)
    assert result == RetrieveResult(
        0xB000, Counters(None, 2, 1, 0), ("1.2.3.9",), b"\x08\x00\x58\x00UI\x08\x001.2.3.9\0"
    )


@pytest.mark.parametrize(
    ("error", "status", "comment"),
    [
        (DimseError(0xA900, "no level"), 0xA900, "no level"),
        (DimseError(0xA701), 0xA701, ""),
        (RuntimeError("defect"), 0xC000, "unable to process"),
        (OSError("disk"), 0xC000, "unable to process"),
    ],
    ids=str,
)
async def test_a_selection_that_fails(getting, received, quiet_errors, error, status, comment):
    async with getting(Archive(on_select=raising(error))) as scu:
        with pytest.raises(RetrieveFailed) as caught:
            await got(scu, received)
        await scu.echo()
    assert caught.value.outcome == Outcome(status, comment)
    assert caught.value.result.counters == Counters(None, None, None, None)
    assert len(quiet_errors()) == isinstance(error, RuntimeError)


@pytest.mark.parametrize("point", [0, 1, 2])
async def test_a_selection_that_fails_on_the_way(getting, received, point):
    archive = Archive([instance(0), instance(1)], before={point: raising(DimseError(0xC123, "tape"))})
    async with getting(archive) as scu:
        with pytest.raises(RetrieveFailed) as caught:
            await got(scu, received)
        await scu.echo()
    assert caught.value.outcome == Outcome(0xC123, "tape")
    assert caught.value.result.counters == Counters(None, point, 0, 0)


async def test_pending_while_the_source_takes_its_time(getting, received, patience):
    go_on = asyncio.Event()
    archive = Archive([instance(0), instance(1)], before={1: go_on.wait})
    async with (
        getting(archive, pending_s=0.01) as scu,
        patience(),
        get(scu, STUDY_ROOT.get, IDENTIFIER, received.open, receiver=scu.receiver) as retrieval,
    ):
        counters = await anext(retrieval)
        while counters.completed == 0:
            counters = await anext(retrieval)
        assert counters == Counters(1, 1, 0, 0)
        assert await anext(retrieval) == Counters(1, 1, 0, 0)
        go_on.set()
        assert (await retrieval.final()).counters == Counters(None, 2, 0, 0)


async def test_r34_instances_without_negotiated_roles(serving, received, patience):
    """An archive that sends although nobody mentioned roles."""

    async def perform(operation):
        (context,) = (c for c in operation.association.agreed.contexts.values() if c.abstract_syntax == CT)
        assert not context.as_scu
        invocation = await operation.exchange.invoke(
            lambda message_id: CStoreRQ(message_id, CT, "1.2.3.4"), context, b"data"
        )
        assert (await invocation.final()).status == 0

    services = Services()
    services.operation(CGetRQ, [STUDY_ROOT.get], perform)
    services.store(lambda request: None)
    receiver = GetReceiver()
    contexts = propose_get([STUDY_ROOT.get], [(CT, [EXPLICIT])]).contexts
    async with (
        serving(services) as server,
        associate("127.0.0.1", server.port, contexts=contexts, services=receiver.services) as scu,
        patience(),
    ):
        scu.receiver = receiver
        assert (await got(scu, received)).status == 0
    assert received.got == {"1.2.3.4": b"data"}


async def test_one_get_at_a_time_on_an_association(getting, received, patience):
    archive = Archive([instance(0)], before={0: forever})
    async with getting(archive) as scu, patience():
        async with get(scu, STUDY_ROOT.get, IDENTIFIER, received.open, receiver=scu.receiver):
            with pytest.raises(LocalProtocolError, match="under way"):
                await got(scu, received)
        await scu.echo()


async def test_an_instance_that_nobody_waits_for_is_refused(serving, uids, patience):
    statuses = []

    async def perform(operation):
        scu_context = operation.association.agreed.contexts[3]
        invocation = await operation.exchange.invoke(
            lambda message_id: CStoreRQ(message_id, CT, "1.2.3.4"), scu_context, b"data"
        )
        statuses.append((await invocation.final()).status)

    services = Services()
    services.operation(CGetRQ, [STUDY_ROOT.get], perform)
    services.store(lambda request: None)
    async with (
        serving(services) as server,
        associate("127.0.0.1", server.port, contexts=uids.CONTEXTS, services=GetReceiver().services) as scu,
        patience(),
    ):
        context = scu.context_for(STUDY_ROOT.get)
        invocation = await scu.invoke(lambda m: CGetRQ(m, STUDY_ROOT.get), context, IDENTIFIER)
        await invocation.final()
    assert statuses == [0x0124]


# Cancellation


@pytest.mark.parametrize("point", ["select", 0, 1, 2])
@pytest.mark.parametrize("kind", ["get", "move"])
async def test_a_cancel_while_the_source_waits(getting, world, received, patience, kind, point):
    selecting = asyncio.Event()

    async def select_for_ever():
        selecting.set()
        await forever()

    archive = Archive(
        [instance(0), instance(1)],
        on_select=select_for_ever if point == "select" else None,
        before={} if point == "select" else {point: forever},
    )
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(patience())
        if kind == "get":
            scu = await stack.enter_async_context(getting(archive))
            opened = get(scu, STUDY_ROOT.get, IDENTIFIER, received.open, receiver=scu.receiver)
        else:
            scu = await stack.enter_async_context(world(archive, received))
            opened = move(scu, STUDY_ROOT.move, IDENTIFIER, "DEST")
        async with opened as retrieval:
            await (selecting if point == "select" else archive.event(point)).wait()
            await retrieval.cancel()
            result = await retrieval.final()
        await scu.echo()
    assert result.status == 0xFE00
    if point == "select":
        assert result.counters == Counters(None, None, None, None)
    else:
        assert result.counters == Counters(2 - point, point, 0, 0)
        assert archive.closed == 1
    assert archive.open_sources == []


@pytest.mark.parametrize("kind", ["get", "move"])
async def test_a_cancel_in_the_middle_of_a_store_lets_it_finish(getting, world, received, patience, kind):
    answer = asyncio.get_running_loop().create_future()
    arrived = asyncio.Event()

    def later(request):
        arrived.set()
        return answer

    received.answers = {"1.2.3.1": later}
    archive = Archive([instance(number) for number in range(4)])
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(patience())
        if kind == "get":
            scu = await stack.enter_async_context(getting(archive))
            opened = get(scu, STUDY_ROOT.get, IDENTIFIER, received.open, receiver=scu.receiver)
        else:
            scu = await stack.enter_async_context(world(archive, received))
            opened = move(scu, STUDY_ROOT.move, IDENTIFIER, "DEST")
        async with opened as retrieval:
            await arrived.wait()
            await retrieval.cancel()
            await archive.operation.cancelled.wait()
            answer.set_result(SUCCESS_OUTCOME)
            result = await retrieval.final()
        await scu.echo()
    assert result.status == 0xFE00
    assert result.counters == Counters(2, 2, 0, 0)
    assert archive.open_sources == []
    assert archive.closed == 1


async def test_a_cancel_after_failures_lists_them(getting, received, patience):
    received.answers = {"1.2.3.0": 0xA700}
    archive = Archive([instance(0), instance(1)], before={1: forever})
    async with (
        getting(archive) as scu,
        patience(),
        get(scu, STUDY_ROOT.get, IDENTIFIER, received.open, receiver=scu.receiver) as retrieval,
    ):
        await archive.event(1).wait()
        await retrieval.cancel()
        result = await retrieval.final()
    assert result.status == 0xFE00
    assert result.counters == Counters(1, 0, 1, 0)
    assert result.failed_sop_instance_uids == ("1.2.3.0",)


async def test_a_cancel_that_was_not_asked_for_is_an_error(serving, received):
    services = Services()
    services.operation(CMoveRQ, [STUDY_ROOT.move], lambda operation: Outcome(0xFE00))
    contexts = propose_query([STUDY_ROOT.move]).contexts
    async with serving(services) as server, associate("127.0.0.1", server.port, contexts=contexts) as scu:
        with pytest.raises(RetrieveFailed, match="0xFE00"):
            await moved(scu)


@pytest.mark.parametrize("how", ["break", "error", "cancelled"])
async def test_leaving_the_block_cancels(getting, received, patience, how):
    archive = Archive([instance(number) for number in range(5)], before={2: forever})

    async def leave(scu):
        async with get(scu, STUDY_ROOT.get, IDENTIFIER, received.open, receiver=scu.receiver) as retrieval:
            await archive.event(2).wait()
            if how == "error":
                raise RuntimeError("enough")
            if how == "cancelled":
                asyncio.current_task().cancel()
                await retrieval.final()

    async with getting(archive) as scu, patience():
        task = asyncio.create_task(leave(scu))
        await asyncio.wait([task])
        if how == "error":
            assert isinstance(task.exception(), RuntimeError)
        else:
            assert task.cancelled() == (how == "cancelled")
        assert archive.closed == 1
        await scu.echo()
    assert len(received.got) == 2


@pytest.mark.parametrize("kind", ["get", "move"])
async def test_a_retrieve_cancelled_at_any_step_leaves_a_usable_association(
    getting, world, received, patience, kind
):
    archive = Archive()
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(patience())
        scu = await stack.enter_async_context(getting(archive) if kind == "get" else world(archive, received))
        for steps in range(0, 80, 2):
            archive.items = [instance(number) for number in range(3)]
            archive.served = 0
            task = asyncio.create_task(got(scu, received) if kind == "get" else moved(scu))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            await scu.echo()
            assert archive.open_sources == []
        archive.items = [instance(number) for number in range(3)]
        archive.served = 0
        result = await (got(scu, received) if kind == "get" else moved(scu))
    assert result.counters == Counters(None, 3, 0, 0)


async def test_an_archive_that_goes_on_after_the_cancel_is_told_no(serving, received, patience):
    statuses = []

    async def perform(operation):
        await operation.cancelled.wait()
        (context,) = (c for c in operation.association.agreed.contexts.values() if c.abstract_syntax == CT)
        invocation = await operation.exchange.invoke(
            lambda message_id: CStoreRQ(message_id, CT, "1.2.3.4"), context, b"data"
        )
        statuses.append((await invocation.final()).status)
        return Outcome(0xFE00)

    services = Services()
    services.operation(CGetRQ, [STUDY_ROOT.get], perform)
    services.store_as_scu()
    receiver = GetReceiver()
    proposal = propose_get([STUDY_ROOT.get], [(CT, [EXPLICIT])])
    async with (
        serving(services) as server,
        associate(
            "127.0.0.1",
            server.port,
            contexts=proposal.contexts,
            roles=proposal.roles,
            services=receiver.services,
        ) as scu,
        patience(),
    ):
        async with get(scu, STUDY_ROOT.get, IDENTIFIER, received.open, receiver=receiver):
            pass
        assert statuses == [0xA700]
    assert received.got == {}


async def test_an_archive_that_ignores_the_cancel_is_aborted(serving, patience):
    services = Services()
    services.operation(CMoveRQ, [STUDY_ROOT.move], lambda operation: forever())
    contexts = propose_query([STUDY_ROOT.move]).contexts
    async with (
        serving(services) as server,
        associate("127.0.0.1", server.port, contexts=contexts) as scu,
        patience(),
    ):
        async with move(scu, STUDY_ROOT.move, IDENTIFIER, "DEST", cancel_s=0.01):
            pass
        assert isinstance(scu.association.error, DeadlineExceeded)


# Abortion


@pytest.mark.parametrize("point", ["select", 0, 1, 2])
@pytest.mark.parametrize("kind", ["get", "move"])
async def test_an_abort_while_the_source_waits(getting, world, received, patience, kind, point):
    """The handler ends, the iterator and every source are closed, the destination's association is aborted."""
    selecting, ended = asyncio.Event(), asyncio.Event()

    async def select_for_ever():
        selecting.set()
        try:
            await forever()
        finally:
            ended.set()

    archive = Archive(
        [instance(0), instance(1)],
        on_select=select_for_ever if point == "select" else None,
        before={} if point == "select" else {point: forever},
    )
    with contextlib.suppress(AssociationError):
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(patience())
            if kind == "get":
                scu = await stack.enter_async_context(getting(archive))
                opened = get(scu, STUDY_ROOT.get, IDENTIFIER, received.open, receiver=scu.receiver)
            else:
                scu = await stack.enter_async_context(world(archive, received))
                opened = move(scu, STUDY_ROOT.move, IDENTIFIER, "DEST")
            async with opened as retrieval:
                await (selecting if point == "select" else archive.event(point)).wait()
                scu.association.abort()
                with pytest.raises(AssociationAborted):
                    await retrieval.final()
            if point == "select":
                await ended.wait()
            else:
                await until(lambda: archive.closed)
            if kind == "move" and point in (1, 2):
                await until(lambda: len(scu.ends) == 2)
                assert isinstance(scu.ends[1], AssociationAborted)
    assert archive.closed == (point != "select")
    assert archive.open_sources == []


@pytest.mark.parametrize("kind", ["get", "move"])
async def test_an_abort_in_the_middle_of_a_store(getting, world, received, patience, kind):
    arrived = asyncio.Event()

    def never(request):
        arrived.set()
        return asyncio.get_running_loop().create_future()

    received.answers = {"1.2.3.1": never}
    archive = Archive([instance(number) for number in range(3)])
    with contextlib.suppress(AssociationError):
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(patience())
            if kind == "get":
                scu = await stack.enter_async_context(getting(archive))
                opened = get(scu, STUDY_ROOT.get, IDENTIFIER, received.open, receiver=scu.receiver)
            else:
                scu = await stack.enter_async_context(world(archive, received))
                opened = move(scu, STUDY_ROOT.move, IDENTIFIER, "DEST")
            async with opened as retrieval:
                await arrived.wait()
                scu.association.abort()
                with pytest.raises(AssociationAborted):
                    await retrieval.final()
            await until(lambda: archive.closed)
    assert archive.closed == 1
    assert archive.open_sources == []


@pytest.mark.parametrize("instances", [0, 1])
async def test_an_archive_that_dies_says_whether_something_came(getting, received, instances):
    archive = Archive([instance(0)])
    with contextlib.suppress(AssociationError):
        async with getting(archive) as scu:

            async def die():
                scu.association.abort(AssociationAborted("the peer died"))

            archive.before = {instances: die}
            with pytest.raises(OperationInterrupted if instances else AssociationAborted):
                await got(scu, received)


# C-MOVE


async def test_move_to_a_third_party(world, received):
    archive = Archive([instance(0), instance(1, sop_class=MR, syntax=JPEG)])
    async with world(archive, received) as scu:
        result = await moved(scu, priority=2)
        (first, second) = scu.ends[0], scu.ends[1]
    assert result == RetrieveResult(0x0000, Counters(None, 2, 0, 0))
    assert received.got == {"1.2.3.0": b"\0" * 1000, "1.2.3.1": b"\1" * 1000}
    for request in received.requests:
        assert request.calling_ae_title == "ARCHIVE"
        assert request.called_ae_title == "DEST"
        assert request.command.move_originator_ae_title == "MOVER"
        assert request.command.move_originator_message_id == 1
        assert request.command.priority == 2
    assert [request.transfer_syntax_uid for request in received.requests] == [EXPLICIT, JPEG]
    # The second pair was not known beforehand: the association was released and made again.
    assert second is None
    assert first is not None


async def test_known_pairs_need_one_association(world, received):
    archive = Archive(
        [instance(0), instance(1, sop_class=MR, syntax=JPEG)], contexts=((CT, EXPLICIT), (MR, JPEG))
    )
    async with world(archive, received) as scu:
        await moved(scu)
        assert len(scu.ends) == 2
        assert scu.ends[1] is None


async def test_more_pairs_than_contexts(world, received):
    """128 contexts to an association."""
    pairs = [(f"1.2.840.10008.5.1.4.1.1.{1000 + number}", EXPLICIT) for number in range(130)]
    archive = Archive(
        [instance(number, sop_class=pair[0]) for number, pair in enumerate(pairs)], contexts=pairs
    )
    async with world(archive, received) as scu:
        result = await moved(scu)
        associations = [end for end in scu.ends if end is not None]
    assert result.counters.completed == 130
    assert sorted(len(association.agreed.contexts) for association in associations) == [2, 128]


async def test_r38_an_unknown_destination_comes_before_anything_else(world, received):
    archive = Archive([instance(0)])
    async with world(archive, received) as scu:
        with pytest.raises(RetrieveFailed) as caught:
            await moved(scu, "ELSEWHERE")
    assert caught.value.status == 0xA801
    assert caught.value.result.counters == Counters(None, None, None, None)
    assert archive.identifiers == []


async def test_r38_nothing_to_send_needs_no_association(world, received):
    async with world(Archive(), received) as scu:
        result = await moved(scu)
        assert scu.ends == []
    assert result == RetrieveResult(0x0000, Counters(None, 0, 0, 0))


@pytest.mark.parametrize("known", ["uids", "total", "nothing"])
async def test_a_destination_that_is_not_there_fails_everything(world, received, known):
    archive = Archive([instance(number) for number in range(3)], known=known)
    async with world(archive, received) as scu:
        with pytest.raises(RetrieveFailed) as caught:
            await moved(scu, "NOBODY")
    result = caught.value.result
    assert result.status == 0xA702
    assert result.counters == Counters(None, 0, 1 if known == "nothing" else 3, 0)
    listed = 3 if known == "uids" else 1
    assert result.failed_sop_instance_uids == tuple(f"1.2.3.{number}" for number in range(listed))
    assert archive.open_sources == []
    assert archive.closed == 1
    assert archive.served == 1


async def test_a_destination_that_accepts_no_context_fails_each(world, received):
    archive = Archive([instance(0, syntax=JPEG), instance(1)])
    async with world(archive, received, transfer_syntaxes=[EXPLICIT]) as scu:
        result = await moved(scu)
    assert result.failed_sop_instance_uids == ("1.2.3.0",)
    assert result.status == 0xB000


async def test_fallbacks_are_proposed_where_there_is_a_transcoder(world, received):
    async def transcode(item, accepted):
        return Instance(item.sop_class_uid, item.sop_instance_uid, accepted[0], b"explicit")

    archive = Archive([instance(0, syntax=JPEG)])
    async with world(archive, received, transfer_syntaxes=[EXPLICIT], transcode=transcode) as scu:
        assert (await moved(scu)).status == 0
    assert received.got == {"1.2.3.0": b"explicit"}


async def test_a_destination_that_aborts_costs_one_instance(world, received):
    def abort(request):
        request.association.abort()
        return SUCCESS_OUTCOME

    received.answers = {"1.2.3.1": abort}
    archive = Archive([instance(number) for number in range(4)])
    async with world(archive, received) as scu:
        result = await moved(scu)
    assert result.status == 0xB000
    assert result.counters == Counters(None, 3, 1, 0)
    assert result.failed_sop_instance_uids == ("1.2.3.1",)


async def test_a_destination_that_aborts_every_time_is_given_up(world, received):
    def abort(request):
        request.association.abort()
        return SUCCESS_OUTCOME

    received.answers = {f"1.2.3.{number}": abort for number in range(100)}
    archive = Archive([instance(number) for number in range(100)])
    async with world(archive, received) as scu:
        with pytest.raises(RetrieveFailed) as caught:
            await moved(scu)
    assert caught.value.result.counters == Counters(None, 0, 100, 0)
    assert len(caught.value.result.failed_sop_instance_uids) == 100
    assert len(received.requests) == 3
    assert archive.open_sources == []


async def test_a_cancel_while_the_destination_is_called(serving, patience, received):
    """A destination that accepts TCP and says nothing."""
    called, left = asyncio.Event(), asyncio.Event()

    async def silent(reader, writer):
        called.set()
        while await reader.read(65536):
            pass
        left.set()
        writer.close()

    silence = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = silence.sockets[0].getsockname()[1]
    archive = Archive([instance(0)])
    services = Services()
    services.operation(
        CMoveRQ, [STUDY_ROOT.move], move_handler(archive.select, lambda *_: Peer("127.0.0.1", port))
    )
    contexts = propose_query([STUDY_ROOT.move]).contexts
    async with (
        serving(services) as server,
        associate("127.0.0.1", server.port, contexts=contexts) as scu,
        patience(),
    ):
        async with move(scu, STUDY_ROOT.move, IDENTIFIER, "DEST") as retrieval:
            await called.wait()
            await retrieval.cancel()
            result = await retrieval.final()
        await left.wait()
    silence.close()
    await silence.wait_closed()
    assert result.status == 0xFE00
    assert result.counters == Counters(1, 0, 0, 0)
    assert archive.open_sources == []


async def test_resolving_may_take_its_time_or_fail(serving, received):
    async def resolve(ae_title, operation):
        if ae_title == "BROKEN":
            raise DimseError(0xC002, "no directory")
        return None

    services = Services()
    services.operation(CMoveRQ, [STUDY_ROOT.move], move_handler(Archive().select, resolve))
    contexts = propose_query([STUDY_ROOT.move]).contexts
    async with serving(services) as server, associate("127.0.0.1", server.port, contexts=contexts) as scu:
        for destination, status in (("X", 0xA801), ("BROKEN", 0xC002)):
            with pytest.raises(RetrieveFailed) as caught:
                await moved(scu, destination)
            assert caught.value.status == status


async def test_responses_on_the_wire(serving, raw_peer, uids, received):
    """A cancel for a finished request is ignored; the final response has the mandatory elements only once."""
    services = Services()
    services.operation(CGetRQ, [STUDY_ROOT.get], get_handler(Archive([instance(7)]).select))
    services.store_as_scu()
    services.store(received.open)
    async with serving(services) as server:
        peer = await raw_peer(server.port, roles=[(CT, True, True)])
        peer.send_message(7, CGetRQ(9, STUDY_ROOT.get, 1), IDENTIFIER)
        store = await peer.next()
        assert store.message == CStoreRQ(1, CT, "1.2.3.7", 1)
        assert (store.context_id, store.data_set) == (3, b"\7" * 1000)
        peer.send_message(3, CStoreRSP(1, 0xA700))
        final = await peer.next()
        assert final.message == CGetRSP(9, 0xA702, STUDY_ROOT.get, None, 0, 1, 0, data_set_present=True)
        assert final.data_set == b"\x08\x00\x58\x00UI\x08\x001.2.3.7\0"
        peer.send_message(7, CCancelRQ(9))
        await peer.echo()


# C-MOVE to ourselves


async def test_r38_two_moves_to_ourselves_never_mix(serving, received, patience):
    """Two associations, so both would begin with Message ID 1; the instances come interleaved."""
    gates = {b"A ": asyncio.Event(), b"B ": asyncio.Event()}

    async def select(operation):
        name = operation.data_set

        async def instances():
            for number in range(5):
                if number == 2:
                    gates[name].set()
                    await asyncio.gather(*(gate.wait() for gate in gates.values()))
                yield Instance(CT, f"1.{name.decode().strip()}.{number}", EXPLICIT, name * 100)

        return Selection(instances())

    moves = MoveReceiver()
    storing = Services()
    storing.store(moves.open_sink)
    async with serving(storing) as destination:
        archive = Services()
        archive.operation(
            CMoveRQ, [STUDY_ROOT.move], move_handler(select, lambda *_: Peer("127.0.0.1", destination.port))
        )
        async with serving(archive) as server, patience():

            async def retrieve(name):
                mine = Received()
                contexts = propose_query([STUDY_ROOT.move]).contexts
                async with (
                    associate("127.0.0.1", server.port, contexts=contexts) as scu,
                    move(
                        scu, STUDY_ROOT.move, name, "SELF", receiver=moves, open_sink=mine.open
                    ) as retrieval,
                ):
                    result = await retrieval.final()
                assert result.counters.completed == 5
                return mine

            a, b = await asyncio.gather(retrieve(b"A "), retrieve(b"B "))
    assert a.got == {f"1.A.{number}": b"A " * 100 for number in range(5)}
    assert b.got == {f"1.B.{number}": b"B " * 100 for number in range(5)}
    ids = {request.command.move_originator_message_id for each in (a, b) for request in each.requests}
    assert len(ids) == 2
    assert len(moves) == 0


async def test_instances_are_signs_of_life(serving, received, patience):
    """The archive sends no Pending; as long as instances come the move is not late, afterwards it is."""
    stuck = asyncio.Event()
    moves = MoveReceiver()
    storing = Services()
    storing.store(moves.open_sink)
    arrived = asyncio.Event()
    answer = asyncio.get_running_loop().create_future()

    def later(request):
        arrived.set()
        return answer

    received.answers = {"1.2.3.0": later}
    archive = Archive([instance(0)], before={1: stuck.wait})
    async with serving(storing) as destination:
        services = Services()
        services.operation(
            CMoveRQ,
            [STUDY_ROOT.move],
            move_handler(archive.select, lambda *_: Peer("127.0.0.1", destination.port), pending_s=1000.0),
        )
        contexts = propose_query([STUDY_ROOT.move]).contexts
        with contextlib.suppress(DeadlineExceeded):
            async with (
                serving(services) as server,
                associate("127.0.0.1", server.port, contexts=contexts) as scu,
                patience(),
                move(
                    scu,
                    STUDY_ROOT.move,
                    IDENTIFIER,
                    "SELF",
                    receiver=moves,
                    open_sink=received.open,
                    response_s=0.05,
                ) as retrieval,
            ):
                final = asyncio.create_task(retrieval.final())
                await arrived.wait()
                done, _ = await asyncio.wait([final], timeout=0.3)  # six times the limit
                assert not done
                answer.set_result(SUCCESS_OUTCOME)
                with pytest.raises(DeadlineExceeded, match="DIMSE response"):
                    await final
    assert received.got == {"1.2.3.0": b"\0" * 1000}


async def test_receiver_and_sink_belong_together(serving, received):
    contexts = propose_query([STUDY_ROOT.move]).contexts
    async with serving(Services()) as server, associate("127.0.0.1", server.port, contexts=contexts) as scu:
        with pytest.raises(TypeError, match="belong together"):
            await moved(scu, receiver=MoveReceiver())
