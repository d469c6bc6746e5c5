"""Associations that are kept: who gets one, when it ends, what happens when it has died; parallel stores."""

import asyncio
import contextlib
from collections import Counter

import pytest

from harmony.dimse import (
    SUCCESS_OUTCOME,
    BytesSink,
    CEchoRQ,
    CFindRQ,
    CFindRSP,
    DimseError,
    Instance,
    NoPresentationContext,
    Outcome,
    Part10Error,
    Services,
    encode_file_meta,
)
from harmony.dimse.cancellation import OperationInterrupted
from harmony.dimse.information_model import PATIENT_ROOT, STUDY_ROOT, propose_query
from harmony.dimse.peer import Peer
from harmony.dimse.pool import AssociationPool
from harmony.dimse.query import find, find_handler
from harmony.dimse.store_many import store_many
from harmony.ul import (
    AcceptorLimits,
    AssociationAborted,
    AssociationRejected,
    ConnectFailed,
    DeadlineExceeded,
    LocalProtocolError,
)

pytestmark = pytest.mark.usefixtures("no_leaks")

CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
VERIFICATION = "1.2.840.10008.1.1"
EXPLICIT = "1.2.840.10008.1.2.1"
JPEG = "1.2.840.10008.1.2.4.50"
QUERY = propose_query([STUDY_ROOT.find])


class Watched(Services):
    """Services that count associations, and count requests on each."""

    def __init__(self):
        super().__init__()
        self.opened = []
        self.ends = []
        self.requests = Counter()
        self.most = 0
        self.on_association(self._open, self._end)

    def _open(self, association):
        self.opened.append(association)
        self.most = max(self.most, len(self.opened) - len(self.ends))

    def _end(self, association, error):
        self.ends.append(error)

    def echo(self, then):
        """then(nth request on its association, operation): what a C-ECHO does."""

        def perform(operation):
            self.requests[operation.association.number] += 1
            return then(self.requests[operation.association.number], operation)

        self.operation(CEchoRQ, [VERIFICATION], perform)


async def until(condition):
    """Of things that happen on the other side of a connection, and that nobody announces."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0)


async def collect(results):
    return [result async for result in results]


@pytest.fixture
def services():
    return Watched()


@pytest.fixture
def pooling(serving, patience):
    """async with pooling(services, ...) as pool."""

    @contextlib.asynccontextmanager
    async def start(services, *, proposal=QUERY, response_s=60.0, limits=None, **options):
        async with patience(), serving(services, limits=limits) as server:
            peer = Peer("127.0.0.1", server.port, response_s=response_s)
            async with AssociationPool(peer, proposal, **options) as pool:
                yield pool

    return start


async def test_an_idle_association_is_used_again(pooling, services):
    async with pooling(services) as pool:
        for _ in range(3):
            assert await pool.run(lambda scu: scu.echo()) == Outcome(0)
            assert (pool.lent, pool.idle) == (0, 1)
        assert len(services.opened) == 1
    assert (pool.lent, pool.idle) == (0, 0)
    await asyncio.sleep(0)
    assert services.ends == [None]


async def test_no_more_than_allowed_and_first_come_first_served(pooling, services):
    order = []

    async def use(pool, number):
        async with pool.lend() as scu:
            order.append(number)
            await scu.echo()

    async with pooling(services, maximum_associations=2) as pool:
        await asyncio.gather(*(use(pool, number) for number in range(10)))
        assert order == list(range(10))
        assert len(services.opened) == 2
        assert pool.idle == 2


async def test_a_refusal_of_the_service_keeps_the_association(pooling, services):
    services.echo(lambda count, operation: Outcome(0x0122))
    async with pooling(services) as pool:
        for _ in range(2):
            with pytest.raises(DimseError):
                await pool.run(lambda scu: scu.echo())
        assert len(services.opened) == 1


async def test_another_proposal_takes_the_room_of_an_idle_one(pooling, services):
    services.operation(CFindRQ, [STUDY_ROOT.find], lambda operation: None)
    other = propose_query([PATIENT_ROOT.find])
    async with pooling(services, maximum_associations=1) as pool:
        for proposal in (None, other, other, None):
            async with pool.lend(proposal) as scu:
                await scu.echo()
                found = {context.abstract_syntax for context, _ in scu.association.agreed.results}
                assert (PATIENT_ROOT.find in found) == (proposal is other)
        assert len(services.opened) == 3
        assert services.most == 1
        assert services.ends == [None, None]


async def test_an_idle_association_is_released_after_a_while(pooling, services):
    async with pooling(services, idle_s=0.001) as pool:
        await pool.run(lambda scu: scu.echo())
        await until(lambda: services.ends)
        assert services.ends == [None]
        assert pool.idle == 0
        await pool.run(lambda scu: scu.echo())
        assert len(services.opened) == 2


async def test_one_that_the_peer_has_closed_is_not_lent(pooling, services):
    async with pooling(services) as pool:
        async with pool.lend() as scu:
            pass
        services.opened[0].abort()
        await scu.association.wait_ended()
        await pool.run(lambda scu: scu.echo())
        assert len(services.opened) == 2


@pytest.mark.parametrize("check", ["answered", "refused", "silence", "abort"])
async def test_one_that_was_idle_for_long_has_to_answer_first(pooling, services, check):
    def perform(count, operation):
        if count == 1 or len(services.opened) > 1:
            return SUCCESS_OUTCOME
        if check == "abort":
            operation.association.abort()
        if check == "silence":
            return asyncio.get_running_loop().create_future()
        return Outcome(0x0122 if check == "refused" else 0)

    services.echo(perform)
    patient = {"check_s": 0.01} if check == "silence" else {}
    async with pooling(services, check_after_s=0.0, **patient) as pool:
        await pool.run(lambda scu: scu.echo())
        async with pool.lend():
            pass
        assert services.requests[services.opened[0].number] == 2
        assert len(services.opened) == (1 if check in ("answered", "refused") else 2)


async def test_without_verification_there_is_no_check(pooling, services):
    services.operation(CFindRQ, [STUDY_ROOT.find], lambda operation: None)
    services.no_echo()
    async with pooling(services, check_after_s=0.0) as pool:
        for _ in range(2):
            async with pool.lend():
                pass
        assert len(services.opened) == 1


def dying(services):
    """An association that dies of its second request."""

    def perform(count, operation):
        if count == 2:
            operation.association.abort()
        return SUCCESS_OUTCOME

    services.echo(perform)


async def test_an_operation_on_a_stale_association_is_tried_once_more(pooling, services):
    dying(services)
    async with pooling(services) as pool:
        for _ in range(4):
            await pool.run(lambda scu: scu.echo())
        assert len(services.opened) == 4


async def test_once_and_not_on_another_kept_one(pooling, services):
    """Both idle associations are dead; the second try opens a new one."""
    dying(services)
    async with pooling(services) as pool:
        async with pool.lend() as one, pool.lend() as two:
            await one.echo()
            await two.echo()
        assert pool.idle == 2
        await pool.run(lambda scu: scu.echo())
        assert len(services.opened) == 3


async def test_a_new_association_that_dies_is_an_error(pooling, services):
    services.echo(lambda count, operation: operation.association.abort())
    async with pooling(services) as pool:
        with pytest.raises(AssociationAborted):
            await pool.run(lambda scu: scu.echo())
        assert len(services.opened) == 1
        assert (pool.lent, pool.idle) == (0, 0)


async def test_a_slow_peer_is_not_a_stale_one(pooling, services):
    services.echo(
        lambda count, operation: SUCCESS_OUTCOME if count == 1 else asyncio.get_running_loop().create_future()
    )
    async with pooling(services, response_s=0.02) as pool:
        await pool.run(lambda scu: scu.echo())
        with pytest.raises(DeadlineExceeded):
            await pool.run(lambda scu: scu.echo())
        assert len(services.opened) == 1


@pytest.mark.parametrize("how", ["find", "run"])
@pytest.mark.parametrize("matches", [0, 1])
async def test_a_query_is_repeated_only_when_nothing_came(pooling, services, matches, how):
    async def perform(operation):
        services.requests[operation.association.number] += 1
        if services.requests[operation.association.number] == 2:
            for _ in range(matches):
                response = CFindRSP(operation.request.message_id, 0xFF00, data_set_present=True)
                await operation.respond(response, b"match ")
            await operation.exchange.writer.turn.acquire()
            operation.association.abort()

    services.operation(CFindRQ, [STUDY_ROOT.find], perform)

    async def query(pool):
        if how == "find":
            return await collect(pool.find(STUDY_ROOT.find, b""))
        return await pool.run(lambda scu: collect(find(scu, STUDY_ROOT.find, b"")))

    async with pooling(services) as pool:
        assert await query(pool) == []
        if matches:
            with pytest.raises(OperationInterrupted):
                await query(pool)
        else:
            assert await query(pool) == []
        assert len(services.opened) == (1 if matches else 2)


async def test_a_query_left_early_keeps_the_association(pooling, services):
    async def endless(operation):
        while True:
            yield b"match "

    services.operation(CFindRQ, [STUDY_ROOT.find], find_handler(endless))
    async with pooling(services) as pool:
        async with contextlib.aclosing(pool.find(STUDY_ROOT.find, b"")) as matches:
            async for _ in matches:
                break
        assert len([m async for m in pool.find(STUDY_ROOT.find, b"", limit=3)]) == 3
        assert (len(services.opened), pool.idle) == (1, 1)


async def test_an_association_with_something_outstanding_is_not_kept(pooling, services):
    services.echo(lambda count, operation: asyncio.get_running_loop().create_future())
    async with pooling(services) as pool:
        async with pool.lend() as scu:
            task = asyncio.create_task(scu.echo())
            await until(lambda: services.requests)
            task.cancel()
            await asyncio.wait([task])
        assert pool.idle == 0
        await until(lambda: services.ends)
        assert isinstance(services.ends[0], AssociationAborted)


async def test_an_association_that_cannot_be_made_leaves_its_place(pooling, services):
    async with pooling(services, maximum_associations=1) as pool:
        pool.peer, peer = Peer("127.0.0.1", 1), pool.peer
        for _ in range(2):
            with pytest.raises(ConnectFailed):
                await pool.run(lambda scu: scu.echo())
        pool.peer = peer
        await pool.run(lambda scu: scu.echo())


async def test_whoever_stops_waiting_leaves_no_trace(pooling, services):
    async with pooling(services, maximum_associations=1) as pool:
        async with pool.lend():
            waiting = [asyncio.create_task(pool.run(lambda scu: scu.echo())) for _ in range(3)]
            await asyncio.sleep(0)
            waiting[0].cancel()
            waiting[2].cancel()
        await asyncio.wait(waiting)
        assert [task.cancelled() for task in waiting] == [True, False, True]
        await pool.run(lambda scu: scu.echo())
        assert len(services.opened) == 1


async def test_a_user_cancelled_at_any_step_leaves_no_trace(pooling, services):
    async with pooling(services, maximum_associations=1, check_after_s=0.0) as pool:
        await pool.run(lambda scu: scu.echo())
        for steps in range(40):
            task = asyncio.create_task(pool.run(lambda scu: scu.echo()))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert pool.lent == 0
        assert await pool.run(lambda scu: scu.echo()) == Outcome(0)
        assert services.most <= 2  # one, and one whose end the server had not heard of yet


async def test_closing(pooling, services):
    async with pooling(services) as pool:
        await pool.run(lambda scu: scu.echo())
        async with pool.lend(fresh=True) as scu:
            await pool.close()
            assert not scu.association.is_open
            with pytest.raises(LocalProtocolError, match="closed"):
                await pool.run(lambda scu: scu.echo())
        await until(lambda: len(services.ends) == 2)
        assert sorted(type(end).__name__ for end in services.ends) == ["AssociationAborted", "NoneType"]


async def test_waiting_for_a_place_has_a_limit(pooling, services):
    async with pooling(services, maximum_associations=1, place_s=0.02) as pool:
        async with pool.lend() as scu:
            with pytest.raises(DeadlineExceeded, match="waiting for one of 1 associations"):
                await pool.run(lambda scu: scu.echo())
            await scu.echo()
        assert await pool.run(lambda scu: scu.echo()) == Outcome(0)
        assert len(services.opened) == 1


async def test_closing_lets_users_finish(pooling, services):
    async with pooling(services) as pool:
        async with pool.lend() as scu:
            closing = asyncio.create_task(pool.close(5.0))
            await asyncio.sleep(0)
            await scu.echo()
            assert not closing.done()
        await closing
        await until(lambda: services.ends)
        assert services.ends == [None]


async def test_closing_aborts_those_who_take_too_long(pooling, services):
    async with pooling(services) as pool, pool.lend() as scu:
        await pool.close(0.01)
        assert not scu.association.is_open


# Many stores


def file(number, *, sop_class=CT, syntax=EXPLICIT):
    meta = encode_file_meta(
        transfer_syntax_uid=syntax,
        media_storage_sop_class_uid=sop_class,
        media_storage_sop_instance_uid=f"1.2.3.{number}",
    )
    return meta + bytes([number % 256]) * 100


def storing(services, answer=None, **options):
    got = {}

    def open_sink(request):
        def complete(data):
            outcome = answer(request) if answer is not None else SUCCESS_OUTCOME
            got[request.affected_sop_instance_uid] = data
            return outcome

        return BytesSink(complete)

    services.store(open_sink, **options)
    return got


@pytest.mark.parametrize("connections", [1, 3, 8])
async def test_every_file_is_stored(pooling, services, tmp_path, connections):
    got = storing(services)
    paths = []
    for number in range(20):
        paths.append(tmp_path / f"{number}.dcm")
        paths[-1].write_bytes(file(number))
    async with pooling(services, maximum_associations=3) as pool:
        results = await collect(store_many(pool, paths, connections=connections))
        assert services.most <= 3
    assert {result.item for result in results} == set(paths)
    assert all(result.outcome == SUCCESS_OUTCOME and result.error is None for result in results)
    assert got == {f"1.2.3.{number}": bytes([number]) * 100 for number in range(20)}


async def test_nothing_to_store_opens_nothing(pooling, services):
    async with pooling(services) as pool:
        assert await collect(store_many(pool, [])) == []
        assert services.opened == []


async def test_an_asynchronous_source_and_every_kind_of_item(pooling, services):
    got = storing(services)
    items = [file(0), Instance(MR, "1.2.3.1", JPEG, b"data"), file(2, sop_class=MR)]

    async def source():
        for item in items:
            await asyncio.sleep(0)
            yield item

    async with pooling(services) as pool:
        results = await collect(store_many(pool, source(), connections=2))
    assert sorted(map(str, (result.item for result in results))) == sorted(map(str, items))
    assert sorted(got) == ["1.2.3.0", "1.2.3.1", "1.2.3.2"]


async def test_what_fails_fails_alone(pooling, services, tmp_path):
    def answer(request):
        statuses = {"1.2.3.1": 0xB000, "1.2.3.2": 0xA700}
        return Outcome(statuses.get(request.affected_sop_instance_uid, 0))

    got = storing(services, answer, transfer_syntaxes=[EXPLICIT])
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(b"not a DICOM file")
    items = [
        file(0),
        file(1),
        file(2),
        file(3, syntax=JPEG),
        broken,
        tmp_path / "missing.dcm",
        b"",
        file(4),
    ]
    async with pooling(services) as pool:
        results = {result.item: result for result in await collect(store_many(pool, items, connections=2))}
    assert len(results) == len(items)
    assert results[items[0]].error is results[items[1]].error is results[items[7]].error is None
    assert results[items[1]].outcome == Outcome(0xB000)
    assert isinstance(results[items[2]].error, DimseError)
    assert results[items[2]].outcome == Outcome(0xA700)
    assert isinstance(results[items[3]].error, NoPresentationContext)
    assert isinstance(results[broken].error, Part10Error)
    assert isinstance(results[items[5]].error, FileNotFoundError)
    assert isinstance(results[b""].error, Part10Error)
    assert results[items[3]].outcome is results[broken].outcome is None
    assert sorted(got) == ["1.2.3.0", "1.2.3.1", "1.2.3.2", "1.2.3.4"]


async def test_a_peer_that_takes_fewer_associations_gets_everything_on_those(pooling, services):
    got = storing(services)
    async with pooling(services, limits=AcceptorLimits(maximum_associations=1)) as pool:
        results = await collect(store_many(pool, [file(number) for number in range(6)], connections=4))
    assert [result.error for result in results] == [None] * 6
    assert len(got) == 6


async def test_a_peer_that_takes_none_fails_every_item(pooling, services):
    async with pooling(services, limits=AcceptorLimits(maximum_associations=0)) as pool:
        results = await collect(store_many(pool, [file(number) for number in range(6)], connections=2))
    assert len({result.item for result in results}) == 6
    assert all(isinstance(result.error, AssociationRejected) for result in results)


@pytest.mark.parametrize("times", [1, 2])
async def test_an_instance_whose_association_was_lost_is_sent_once_more(pooling, services, times):
    seen = Counter()

    def answer(request):
        seen[request.affected_sop_instance_uid] += 1
        if request.affected_sop_instance_uid == "1.2.3.2" and seen["1.2.3.2"] <= times:
            request.association.abort()
        return SUCCESS_OUTCOME

    storing(services, answer)
    items = [file(number) for number in range(5)]
    async with pooling(services) as pool:
        results = {result.item: result for result in await collect(store_many(pool, items, connections=1))}
    assert len(results) == 5
    failed = [item for item in items if results[item].error is not None]
    assert failed == ([] if times == 1 else [items[2]])
    assert seen["1.2.3.2"] == 2


async def test_a_source_that_can_be_read_once_is_sent_once(pooling, services):
    storing(services, lambda request: request.association.abort() or SUCCESS_OUTCOME)

    async def chunks():
        yield b"data"

    async with pooling(services) as pool:
        (result,) = await collect(store_many(pool, [Instance(CT, "1.2.3", EXPLICIT, chunks())]))
    assert isinstance(result.error, AssociationAborted)
    assert len(services.opened) == 1


async def test_leaving_early_ends_everything(pooling, services):
    storing(services)
    closed = []

    async def source():
        try:
            for number in range(1000):
                yield file(number)
        finally:
            closed.append(True)

    async with pooling(services) as pool:
        async with contextlib.aclosing(store_many(pool, source(), connections=3)) as results:
            async for _ in results:
                break
        assert closed == [True]
        assert pool.lent == 0


async def test_an_item_source_that_fails_is_the_callers_error(pooling, services):
    storing(services)

    def source():
        yield file(0)
        raise RuntimeError("no more")

    results = []
    async with pooling(services) as pool:
        with pytest.raises(RuntimeError, match="no more"):
            results.extend([result async for result in store_many(pool, source(), connections=2)])
        assert pool.lent == 0
