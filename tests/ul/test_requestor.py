"""Requesting associations on loopback: every phase has its deadline, every failure its error, cancelling closes."""

import asyncio
import socket

import pytest

from harmony.ul.deadlines import Timeouts
from harmony.ul.errors import (
    AssociationAborted,
    AssociationRejected,
    ConnectFailed,
    ConnectionLost,
    DeadlineExceeded,
    LocalProtocolError,
)
from harmony.ul.pdu import AssociateRQ
from harmony.ul.requestor import request_association

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
def request_from(listener, request_pdu, make_user):
    """request_from(...): a task that requests an association of the listener, and its user."""

    def request_from(**options):
        user = make_user()
        asking = request_association("127.0.0.1", listener.port, request_pdu, user, **options)
        return asyncio.create_task(asking), user

    return request_from


async def test_the_request_on_the_wire(listener, request_from, wire):
    asking, user = request_from()
    peer = await listener.accept()
    request = await peer.receive_pdu()
    assert request == wire.associate_rq()
    await peer.send(wire.associate_ac())
    association = await asking
    assert user.told == ["established"]
    assert user.association is association
    assert [*association.agreed.contexts] == [1]
    assert await association.wait_established() is association.agreed
    association.abort()
    peer.close()
    await association.wait_closed()


async def test_requestor_and_acceptor_of_ours(serve, associate):
    service = await serve()
    association = await associate(service.port)
    assert association.agreed.called_ae_title == "CALLED"
    await association.release()
    assert service.user.ends == [None]


@pytest.mark.parametrize(
    ("codes", "transient"), [((1, 1, 7), False), ((2, 3, 2), True), ((200, 201, 202), False)]
)
async def test_r33_a_rejection(listener, request_from, wire, codes, transient):
    asking, user = request_from()
    peer = await listener.accept()
    await peer.receive_pdu()
    await peer.send(wire.reject(*codes))
    with pytest.raises(AssociationRejected) as raised:
        await asking
    assert (raised.value.result, raised.value.source, raised.value.reason) == codes
    assert raised.value.transient is transient
    assert await peer.receive_all() == b""
    assert user.told == []


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (bytes.fromhex("07 00 00000004 00 00 02 01"), AssociationAborted, "by the peer"),
        (bytes.fromhex("05 00 00000004 00000000"), AssociationAborted, "RELEASE_RQ"),
        (bytes.fromhex("02 00 FFFFFFFF"), AssociationAborted, "exceeds"),
        (bytes.fromhex("02 00 00000004 00000000"), AssociationAborted, "length 4"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", AssociationAborted, "HTTP"),
        (bytes.fromhex("15 03 01 00 02 02 46"), AssociationAborted, "TLS alert"),
        (b"", ConnectionLost, "closed"),
        (b"\2\0\0", ConnectionLost, "closed"),
    ],
)
async def test_other_answers(listener, request_from, answer, error, text):
    asking, user = request_from()
    peer = await listener.accept()
    await peer.receive_pdu()
    await peer.send(answer)
    if error is ConnectionLost:
        peer.close()
    with pytest.raises(error, match=text):
        await asking
    assert user.told == []


async def test_nobody_listens(free_port, request_pdu, make_user):
    with pytest.raises(ConnectFailed, match=f"127.0.0.1:{free_port}"):
        await request_association("127.0.0.1", free_port, request_pdu, make_user())


async def test_a_name_that_is_none(request_pdu, make_user):
    with pytest.raises(ConnectFailed):
        await request_association("a" * 64 + ".invalid", 104, request_pdu, make_user())


async def test_a_listener_that_does_not_accept(request_pdu, make_user):
    """The kernel drops what its full backlog cannot take: connecting runs into its deadline."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        server.listen(0)
        waiting = []
        for _ in range(3):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(server.getsockname())
            waiting.append(sock)
        with pytest.raises(DeadlineExceeded, match="connecting to"):
            await request_association(
                "127.0.0.1",
                server.getsockname()[1],
                request_pdu,
                make_user(),
                timeouts=Timeouts(connect_s=0.05),
            )
        for sock in waiting:
            sock.close()


async def test_a_peer_that_connects_but_does_not_answer(listener, request_from, wire):
    asking, user = request_from(timeouts=Timeouts(associate_s=0.05))
    peer = await listener.accept()
    with pytest.raises(DeadlineExceeded, match="the association request"):
        await asking
    assert await peer.receive_all() == wire.associate_rq() + wire.ABORT
    assert user.told == []


async def test_a_request_that_cannot_be_encoded_opens_nothing(listener, make_user):
    request = AssociateRQ("CALLED", "CALLING", ())
    with pytest.raises(LocalProtocolError):
        await request_association("127.0.0.1", listener.port, request, make_user())
    listener.socket.setblocking(False)
    with pytest.raises(BlockingIOError):
        listener.socket.accept()


async def test_cancelling_while_waiting_for_the_answer_closes_the_connection(listener, request_from, wire):
    asking, user = request_from()
    peer = await listener.accept()
    await peer.receive_pdu()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert await peer.receive_all() == wire.ABORT
    assert user.told == []


@pytest.mark.parametrize("turns", range(6))
async def test_cancelling_at_any_moment_leaves_nothing_behind(listener, request_from, turns):
    asking, user = request_from()
    for _ in range(turns):
        await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert user.told == []
