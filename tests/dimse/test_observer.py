"""What an observer hears: every association and every answer, of either role, once."""

import asyncio
from dataclasses import dataclass, field

import pytest

from harmony.dimse import (
    CEchoRQ,
    CFindRQ,
    CFindRSP,
    CStoreRQ,
    DimseError,
    Instance,
    Outcome,
    Services,
    Status,
    associate,
)
from harmony.dimse.information_model import STUDY_ROOT, propose_query
from harmony.dimse.peer import Peer
from harmony.ul import ConnectFailed, ConnectionLost, propose_contexts

pytestmark = pytest.mark.usefixtures("no_leaks")


@dataclass
class Recorder:
    """`told` is everything but associations, in order."""

    told: list = field(default_factory=list)
    open: set = field(default_factory=set)
    ends: list = field(default_factory=list)
    elapsed: list = field(default_factory=list)
    all_ended: asyncio.Event = field(default_factory=asyncio.Event)

    def established(self, association):
        assert association.is_open
        self.open.add(association)

    def ended(self, association, error):
        self.open.remove(association)
        self.ends.append(error)
        self.all_ended.set()

    def not_established(self, error):
        self.told.append(("not established", type(error)))

    def performed(self, request_type, status, elapsed_s):
        self.told.append(("performed", request_type, status))
        self.elapsed.append(elapsed_s)

    def invoked(self, request_type, status, elapsed_s):
        self.told.append(("invoked", request_type, status))
        self.elapsed.append(elapsed_s)


@pytest.fixture
async def scp():
    return Recorder()


@pytest.fixture
async def scu():
    return Recorder()


def instance(uids, uid="1.2.3"):
    return Instance(uids.CT, uid, uids.EXPLICIT, b"\0" * 16)


async def test_both_sides_hear_of_every_answer(scp, scu, store, serving, connect, uids, patience):
    store.services.observe(scp)
    async with serving(store.services) as server:
        async with connect(server, observer=scu) as client:
            assert len(scp.open) == len(scu.open) == 1
            await client.echo()
            await client.store(instance(uids))
        async with patience():
            await scp.all_ended.wait()
    assert scp.told == [("performed", CEchoRQ, 0), ("performed", CStoreRQ, 0)]
    assert scu.told == [("invoked", CEchoRQ, 0), ("invoked", CStoreRQ, 0)]
    assert scp.ends == scu.ends == [None]
    assert all(0 <= elapsed_s < 60 for elapsed_s in scp.elapsed + scu.elapsed)


@pytest.mark.parametrize("fails", ["write", "finish"])
async def test_failed_store_is_told_with_its_status(
    fails, scp, store, recording_sink, serving, connect, uids
):
    store.make = lambda request: recording_sink(request, fails=fails, error=DimseError(0xA700))
    store.services.observe(scp)
    async with serving(store.services) as server, connect(server) as client:
        with pytest.raises(DimseError):
            await client.store(instance(uids))
    assert scp.told == [("performed", CStoreRQ, 0xA700)]


async def test_store_refused_before_its_data_and_one_answered_later(scp, store, serving, connect, uids):
    made = store.make

    async def later():
        return Outcome(0xB000)

    def make(request):
        if request.affected_sop_instance_uid == "1":
            raise DimseError(0x0122)
        sink = made(request)
        sink.answer = later
        return sink

    store.make = make
    store.services.observe(scp)
    async with serving(store.services) as server, connect(server) as client:
        with pytest.raises(DimseError):
            await client.store(instance(uids, "1"))
        assert (await client.store(instance(uids, "2"))).status == 0xB000
    assert scp.told == [("performed", CStoreRQ, 0x0122), ("performed", CStoreRQ, 0xB000)]


async def test_only_the_final_response_counts(scp, scu, serving):
    async def find(operation):
        request = operation.request
        for _ in range(3):
            await operation.respond(
                CFindRSP(request.message_id, 0xFF00, request.affected_sop_class_uid, data_set_present=True),
                b"\0" * 8,
            )
        await operation.respond(CFindRSP(request.message_id, 0x0000, request.affected_sop_class_uid))

    services = Services()
    services.operation(CFindRQ, [STUDY_ROOT.find], find)
    services.observe(scp)
    async with (
        serving(services) as server,
        Peer("127.0.0.1", server.port, observer=scu).associate(propose_query([STUDY_ROOT.find])) as client,
    ):
        invocation = await client.invoke(
            lambda message_id: CFindRQ(message_id, STUDY_ROOT.find),
            client.context_for(STUDY_ROOT.find),
            b"\0" * 8,
        )
        assert (await invocation.final()).status == 0
    assert scp.told == [("performed", CFindRQ, 0)]
    assert scu.told == [("invoked", CFindRQ, 0)]


async def test_handler_that_returns_or_raises(scp, serving):
    services = Services()
    services.operation(CEchoRQ, ["1.2.840.10008.1.1"], lambda operation: Outcome(Status.NOT_AUTHORIZED))
    services.observe(scp)
    async with serving(services) as server, associate("127.0.0.1", server.port) as client:
        with pytest.raises(DimseError):
            await client.echo()
    assert scp.told == [("performed", CEchoRQ, 0x0124)]


async def test_request_of_a_service_nobody_performs(scp, raw_peer, serving, uids):
    services = Services()
    services.observe(scp)
    async with serving(services) as server:
        peer = await raw_peer(
            server.port, contexts=propose_contexts([("1.2.840.10008.1.1", ["1.2.840.10008.1.2"])])
        )
        peer.send_message(1, CFindRQ(7, STUDY_ROOT.find), b"\0" * 8)
        await peer.next()
    assert scp.told == [("performed", CFindRQ, 0x0122)]


async def test_operation_that_is_never_answered(scu, serving, patience):
    reached = asyncio.Event()

    async def never(operation):
        reached.set()
        await operation.cancelled.wait()
        operation.association.abort()

    services = Services()
    services.operation(CEchoRQ, ["1.2.840.10008.1.1"], never)
    async with serving(services) as server, associate("127.0.0.1", server.port, observer=scu) as client:
        echo = asyncio.create_task(client.echo())
        async with patience():
            await reached.wait()
            client.association.abort()
            await asyncio.wait({echo})
        assert echo.exception() is not None
    assert scu.told == [("invoked", CEchoRQ, None)]


async def test_association_that_was_not_made(scu, free_port):
    with pytest.raises(ConnectFailed):
        async with associate("127.0.0.1", free_port, observer=scu):
            pass
    assert scu.told == [("not established", ConnectFailed)]


async def test_lost_association_and_its_bytes(scp, store, raw_peer, serving, patience):
    store.services.observe(scp)
    async with serving(store.services) as server:
        peer = await raw_peer(server.port)
        (association,) = scp.open
        received, sent = association.received_bytes, association.sent_bytes
        assert received > 0
        assert sent > 0
        await peer.echo()
        # PS3.7 §9.1.5: a C-ECHO-RQ is one PDU; the response comes back as one.
        assert association.received_bytes - received > 6 + 4 + 2
        assert association.sent_bytes - sent > 6 + 4 + 2
        peer.association._transport.abort()
        async with patience():
            await scp.all_ended.wait()
    assert [type(error) for error in scp.ends] == [ConnectionLost]


async def test_association_that_its_services_refuse(scp, serving, patience, quiet_errors):
    def refuse(association):
        raise RuntimeError("a defect")

    services = Services()
    services.on_association(refuse)
    services.observe(scp)
    async with serving(services) as server:
        with pytest.raises(Exception, match="abort"):
            async with associate("127.0.0.1", server.port) as client:
                await client.echo()
        async with patience():
            await scp.all_ended.wait()
    assert scp.open == set()
    assert len(quiet_errors()) == 1


async def test_handler_and_sink_that_return_nonsense(scp, store, serving, connect, uids, quiet_errors):
    async def nonsense():
        return "nonsense"

    made = store.make

    def make(request):
        sink = made(request)
        sink.answer = nonsense
        return sink

    store.make = make
    store.services.operation(CEchoRQ, ["1.2.840.10008.1.1"], lambda operation: "nonsense")
    store.services.observe(scp)
    async with serving(store.services) as server, connect(server) as client:
        with pytest.raises(DimseError):
            await client.echo()
        with pytest.raises(DimseError):
            await client.store(instance(uids))
    assert scp.told == [("performed", CEchoRQ, 0x0110), ("performed", CStoreRQ, 0xC000)]
    assert len(quiet_errors()) == 2
