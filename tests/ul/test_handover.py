"""Associations that begin in one process and go on in another; here both ends are in one, with a descriptor each."""

import asyncio
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from harmony.ul.acceptor import AcceptorLimits
from harmony.ul.association import Association
from harmony.ul.errors import ConnectionLost
from harmony.ul.handover import adopt
from harmony.ul.pdu import AssociateAC, AssociateRQ

pytestmark = pytest.mark.usefixtures("no_leaks")

PATIENCE_S = 3.0
RELEASE_RQ = b"\5\0\0\0\0\4\0\0\0\0"
RELEASE_RP = b"\6\0\0\0\0\4\0\0\0\0"


async def turn() -> None:
    """One turn of the event loop."""
    await asyncio.sleep(0)


@dataclass
class Elsewhere:
    """Takes associations from an acceptor, as another process does."""

    make_user: Callable
    accepts: bool = True
    given: list[tuple[Association, AssociateRQ, AssociateAC, socket.socket]] = field(default_factory=list)
    aborts: list[Association] = field(default_factory=list)
    users: list = field(default_factory=list)
    adopted: list[Association] = field(default_factory=list)

    def on_accepting(self, association, request, response) -> bool:
        def give(fd: int) -> bool:
            if self.accepts:
                self.given.append((association, request, response, socket.socket(fileno=os.dup(fd))))
            return self.accepts

        association.hand_over(response, give, abort=lambda: self.aborts.append(association))
        return True

    async def until_given(self) -> Association:
        async with asyncio.timeout(PATIENCE_S):
            while not self.given:
                await turn()
        return self.given[0][0]

    async def adopt(self) -> Association:
        association, request, response, sock = self.given.pop(0)
        user = self.make_user()
        self.users.append(user)
        taken = await adopt(
            sock,
            user,
            request=request.encode(),
            response=response,
            peer=association.peer,
            on_releasing=lambda taken: association.ended_elsewhere(None),
            on_closed=lambda taken: association.closed_elsewhere(taken.error),
        )
        self.adopted.append(taken)
        return taken


@pytest.fixture
async def elsewhere(make_user):
    elsewhere = Elsewhere(make_user)
    yield elsewhere
    for association, _, _, sock in elsewhere.given:
        sock.close()
        association.closed_elsewhere(ConnectionLost("the test is over"))
    for association in elsewhere.adopted:
        association.abort()
        association.cut_after_writing()
        async with asyncio.timeout(PATIENCE_S):
            await association.wait_closed()


@pytest.fixture
async def handing_over(serve, elsewhere):
    """await handing_over(...): a Service whose associations go on elsewhere."""

    async def handing_over(**options):
        service = await serve(**options)
        service.acceptor.on_accepting = elsewhere.on_accepting
        return service

    return handing_over


async def test_it_goes_on_where_it_was_handed_to(handing_over, elsewhere, connect, wire):
    service = await handing_over()
    peer = await connect(service.port)
    await peer.send(wire.associate_rq())
    accepted = await elsewhere.until_given()
    taken = await elsewhere.adopt()
    assert (await peer.receive_pdu())[0] == 2  # A-ASSOCIATE-AC
    await peer.send(wire.p_data(b"data"))
    await elsewhere.users[0].until(lambda: elsewhere.users[0].data == b"data")
    assert taken.peer_address == accepted.peer_address
    assert taken.agreed.contexts == accepted.agreed.contexts
    assert await peer.exchange(RELEASE_RQ) == RELEASE_RP
    peer.close()
    async with asyncio.timeout(PATIENCE_S):
        await accepted.wait_closed()
    assert accepted.error is None
    assert service.users[0].told == [], "it never was an association here"
    assert service.acceptor.associations == frozenset()


async def test_it_counts_until_it_is_over_elsewhere(handing_over, elsewhere, connect, wire):
    service = await handing_over(limits=AcceptorLimits(maximum_associations=1))
    peer = await connect(service.port)
    await peer.send(wire.associate_rq())
    await elsewhere.until_given()
    taken = await elsewhere.adopt()
    await peer.receive_pdu()
    other = await connect(service.port)
    # A-ASSOCIATE-RJ: rejected-transient, service-provider (presentation), local-limit-exceeded (PS3.8 Table 9-21)
    assert await other.exchange(wire.associate_rq()) == wire.reject(2, 3, 2)
    peer.close()
    async with asyncio.timeout(PATIENCE_S):
        await taken.wait_closed()
    third = await connect(service.port)
    await third.send(wire.associate_rq())
    await elsewhere.until_given()


async def test_its_place_is_free_when_its_release_is_answered(handing_over, elsewhere, connect, wire):
    service = await handing_over(limits=AcceptorLimits(maximum_associations=1))
    peer = await connect(service.port)
    await peer.send(wire.associate_rq())
    accepted = await elsewhere.until_given()
    await elsewhere.adopt()
    await peer.receive_pdu()
    assert await peer.exchange(RELEASE_RQ) == RELEASE_RP
    assert service.acceptor.associations == frozenset()
    closing = asyncio.create_task(accepted.wait_closed())
    assert await service.until_connected(1) == [accepted]
    peer.close()
    async with asyncio.timeout(PATIENCE_S):
        await closing


async def test_who_has_no_room_asks_first_what_is_over(handing_over, elsewhere, connect, wire):
    service = await handing_over(limits=AcceptorLimits(maximum_associations=1))
    peer = await connect(service.port)
    await peer.send(wire.associate_rq())
    accepted = await elsewhere.until_given()
    service.acceptor.before_refusing = lambda: accepted.ended_elsewhere(None)
    other = await connect(service.port)
    await other.send(wire.associate_rq())
    async with asyncio.timeout(PATIENCE_S):
        while len(elsewhere.given) != 2:
            await turn()


async def test_what_comes_after_the_request_is_read_where_it_goes_on(handing_over, elsewhere, connect, wire):
    """A peer need not wait for the answer before it is read: its data lie in the kernel."""
    service = await handing_over()
    peer = await connect(service.port)
    await peer.send(wire.associate_rq())
    await elsewhere.until_given()
    await peer.send(wire.p_data(b"early") + RELEASE_RQ)
    await elsewhere.adopt()
    assert (await peer.receive_pdu())[0] == 2
    assert await peer.receive_pdu() == RELEASE_RP
    assert elsewhere.users[0].data == b"early"


async def test_more_than_the_request_stays_here(handing_over, elsewhere, connect, wire):
    """The beginning of the next PDU has been read along with the request; it is not split over two processes."""
    service = await handing_over()
    peer = await connect(service.port)
    data = wire.p_data(b"data")
    await peer.send(wire.associate_rq() + data[:3])
    assert (await peer.receive_pdu())[0] == 2
    await peer.send(data[3:])
    await service.users[0].until(lambda: service.users[0].data == b"data")
    assert elsewhere.given == []


async def test_p_data_before_the_answer_ends_it_as_ever(handing_over, elsewhere, connect, wire):
    """PS3.8 Table 9-10, Evt10 in Sta3: AA-8."""
    service = await handing_over()
    peer = await connect(service.port)
    await peer.send(wire.associate_rq() + wire.p_data(b"data"))
    assert (await peer.receive_pdu())[0] == 7
    assert elsewhere.given == []


async def test_what_nobody_takes_is_answered_here(handing_over, elsewhere, connect, wire):
    elsewhere.accepts = False
    service = await handing_over()
    peer = await connect(service.port)
    assert (await peer.exchange(wire.associate_rq()))[0] == 2
    await peer.send(wire.p_data(b"data"))
    await service.users[0].until(lambda: service.users[0].data == b"data")
    assert await peer.exchange(RELEASE_RQ) == RELEASE_RP


async def test_over_tls_it_stays_here(handing_over, elsewhere, associate, server_tls, client_tls):
    service = await handing_over(ssl_context=server_tls)
    association = await associate(service.port, ssl_context=client_tls, server_hostname="localhost")
    assert elsewhere.given == []
    await association.release()


async def test_a_peer_that_is_gone_is_not_handed_over(handing_over, elsewhere, connect, wire):
    service = await handing_over()
    peer = await connect(service.port)
    (accepted,) = await service.until_connected(1)
    await peer.send(wire.associate_rq() + b"\7\0\0\0\0\4\0\0\0\0")  # A-ABORT
    async with asyncio.timeout(PATIENCE_S):
        await accepted.wait_closed()
    assert elsewhere.given == []


async def test_an_abort_is_passed_on_and_closing_waits_for_the_end(handing_over, elsewhere, connect, wire):
    service = await handing_over()
    peer = await connect(service.port)
    await peer.send(wire.associate_rq())
    accepted = await elsewhere.until_given()
    taken = await elsewhere.adopt()
    await peer.receive_pdu()
    closing = asyncio.create_task(service.acceptor.close())
    await asyncio.sleep(0)
    assert elsewhere.aborts == [accepted]
    assert not closing.done()
    taken.abort()
    taken.cut_after_writing()
    assert (await peer.receive_pdu())[0] == 7
    async with asyncio.timeout(PATIENCE_S):
        await closing


async def test_a_connection_is_not_shut_down_by_who_gives_it_away(handing_over, elsewhere, connect, wire):
    """Its descriptor is closed, and nothing else: the peer sees no end of it."""
    service = await handing_over()
    peer = await connect(service.port)
    await peer.send(wire.associate_rq())
    await elsewhere.until_given()
    for _ in range(20):
        await asyncio.sleep(0)
    reading = asyncio.create_task(peer.receive_pdu())
    await asyncio.wait([reading], timeout=0.05)
    assert not reading.done()
    await elsewhere.adopt()
    assert (await reading)[0] == 2
