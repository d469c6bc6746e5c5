"""Established associations on loopback: data both ways, back-pressure with byte limits, release, deadlines.

The association under test is the requestor; the peer is a bare socket that plays the acceptor.
"""

import asyncio
import contextlib
import itertools
import os
import socket

import pytest

from harmony.ul.association import Association
from harmony.ul.deadlines import Timeouts
from harmony.ul.errors import (
    AssociationAborted,
    ConnectionLost,
    DeadlineExceeded,
    LocalProtocolError,
    RemoteProtocolError,
)
from harmony.ul.transport import RECEIVE_BUFFER_BYTES
from harmony.ul.upper_layer import Role

pytestmark = pytest.mark.usefixtures("no_leaks")


# Data


async def test_p_data_both_ways(pair, make_user, wire):
    user = make_user()
    association, peer = await pair(user=user)
    assert association.write_p_data(wire.p_data(b"out"))
    await association.flushed()
    assert await peer.receive_pdu() == wire.p_data(b"out")
    await peer.send(wire.p_data(b"in") + wire.p_data(b"", control=2))
    await user.until(lambda: user.data == b"in")
    assert not association.write_blocked


async def test_a_user_that_fails_aborts_its_own_association(pair, make_user, wire, caplog):
    def fail(association):
        raise RuntimeError("a defect")

    user = make_user(on_p_data=fail)
    association, peer = await pair(user=user)
    await peer.send(wire.p_data(b"in"))
    assert await peer.receive_pdu() == wire.ABORT
    peer.close()
    await association.wait_closed()
    (error,) = user.ends
    assert isinstance(error, AssociationAborted)
    assert not error.by_peer
    assert "its user failed" in caplog.text


async def test_r06_an_answer_with_data_in_the_same_segment(listener, associate, make_user, wire):
    """A-ASSOCIATE-AC and P-DATA-TF in one segment."""

    async def answer():
        peer = await listener.accept()
        await peer.receive_pdu()
        await peer.send(wire.associate_ac() + wire.p_data(b"early"))

    user = make_user()
    answering = asyncio.create_task(answer())
    await associate(listener.port, user=user)
    await answering
    await user.until(lambda: user.data == b"early")
    assert user.told == ["established"]


async def test_a_large_stream_arrives_whole_and_in_order(pair, make_user, wire):
    user = make_user()
    _, peer = await pair(user=user)
    pieces = [bytes((number % 251,)) * 40_001 for number in range(100)]
    await peer.send(b"".join(wire.p_data(piece, control=0) for piece in pieces))
    await user.until(lambda: len(user.data) == 4_000_100)
    assert user.data == b"".join(pieces)


async def test_a_refused_fragment_aborts_with_its_reason(pair, make_user, wire):
    def refuse(association):
        raise RemoteProtocolError("no such context", source=2, reason=5)

    user = make_user(on_p_data=refuse)
    association, peer = await pair(user=user)
    await peer.send(wire.p_data(b"x"))
    assert await peer.receive_pdu() == wire.provider_abort(5)
    assert isinstance(await association.wait_ended(), AssociationAborted)
    assert "no such context" in str(association.error)


async def test_aborting_from_within_a_fragment(pair, make_user, wire):
    user = make_user(on_p_data=lambda association: association.abort())
    association, peer = await pair(user=user)
    await peer.send(wire.p_data(b"one") + wire.p_data(b"two"))
    assert await peer.receive_pdu() == wire.ABORT
    peer.close()
    await association.wait_closed()
    assert user.data == b"one"
    assert len(user.ends) == 1


# Names and states


async def test_repr_and_properties(pair, listener, wire):
    association, _ = await pair()
    expected = f"<Association {association.number} CALLING->CALLED requestor 127.0.0.1:{listener.port} STA6>"
    assert repr(association) == expected
    assert association.is_open
    assert association.agreed is association.negotiated
    association.abort()
    assert not association.is_open
    assert repr(association).endswith("STA13>")
    with pytest.raises(AssociationAborted):
        association.write_p_data(wire.p_data(b"too late"))
    with pytest.raises(AssociationAborted):
        await association.flushed()


async def test_before_it_is_established(make_user, request_pdu, wire):
    association = Association(Role.REQUESTOR, make_user(), timeouts=Timeouts(), request=request_pdu)
    assert repr(association) == f"<Association {association.number} requestor ? STA4>"
    with pytest.raises(LocalProtocolError):
        _ = association.agreed
    with pytest.raises(LocalProtocolError):
        association.write_p_data(wire.p_data(b"x"))
    association.abort()
    await association.wait_closed()
    with pytest.raises(AssociationAborted):
        await association.wait_established()


# Back-pressure


async def test_r26_a_held_association_stops_the_peer(pair, make_user, wire):
    """What a sender can get rid of is bounded by the kernel's buffers and one receive buffer of ours."""
    user = make_user()
    association, peer = await pair(user=user)
    association.hold_reading()
    loop = asyncio.get_running_loop()
    data = wire.p_data(bytes(1_000_000), control=0)
    taken = 0
    with contextlib.suppress(TimeoutError):
        while taken < 200_000_000:
            async with asyncio.timeout(0.1):
                await loop.sock_sendall(peer.socket, data)
            taken += len(data)
    assert taken < 100_000_000
    assert len(user.data) <= RECEIVE_BUFFER_BYTES
    association.hold_reading()
    association.continue_reading()
    assert len(user.data) <= RECEIVE_BUFFER_BYTES
    association.continue_reading()
    await user.until(lambda: len(user.data) >= taken // len(data) * 1_000_000)


async def test_holding_from_within_a_fragment_delivers_one_receive_buffer_at_most(pair, make_user, wire):
    user = make_user(on_p_data=lambda association: association.hold_reading())
    association, peer = await pair(user=user)
    sending = asyncio.create_task(peer.send(wire.p_data(bytes(60_000), control=0) * 50))
    await user.until(lambda: user.data)
    for _ in range(20):
        await asyncio.sleep(0)
    assert 0 < len(user.data) <= RECEIVE_BUFFER_BYTES
    user._on_p_data = None
    while association._holds:
        association.continue_reading()
    await sending
    await user.until(lambda: len(user.data) == 3_000_000)


async def test_the_end_of_the_association_lets_a_held_reader_go(pair, make_user, wire):
    """The peer's close is seen although the user never continues."""
    user = make_user()
    association, peer = await pair(user=user)
    association.hold_reading()
    association.abort()
    await peer.receive_pdu()
    peer.close()
    async with asyncio.timeout(3):
        await association.wait_closed()
    association.continue_reading()
    association.hold_reading()


async def test_a_peer_that_reads_slowly_holds_the_writer(pair, make_user, wire):
    user = make_user()
    association, peer = await pair(user=user)
    block = wire.p_data(bytes(8_000_000), control=0)
    assert association.write_p_data(block) is False
    assert association.write_blocked
    assert "writable" not in user.told
    flushed = asyncio.create_task(association.flushed())
    assert await peer.receive(len(block)) == block
    await flushed
    assert not association.write_blocked
    assert user.told[-1] == "writable"


async def test_r25_a_peer_that_stops_reading_is_aborted_in_time(pair, make_user, wire, monkeypatch):
    """The write deadline ends it; the A-ABORT cannot be delivered, so the connection is cut."""
    monkeypatch.setattr("harmony.ul.association.CLOSE_LINGER_S", 0.05)
    user = make_user()
    association, _ = await pair(user=user, timeouts=Timeouts(write_s=0.05))
    association.write_p_data(wire.p_data(bytes(20_000_000)))
    with pytest.raises(DeadlineExceeded, match="writing"):
        await association.flushed()
    async with asyncio.timeout(3):
        await association.wait_closed()
    assert [type(error) for error in user.ends] == [DeadlineExceeded]


async def test_waiting_for_a_flush_ends_with_the_association(pair, wire):
    association, peer = await pair()
    association.write_p_data(wire.p_data(bytes(20_000_000)))
    flushed = asyncio.create_task(association.flushed())
    await asyncio.sleep(0)
    peer.reset()
    with pytest.raises(ConnectionLost):
        await flushed


async def test_a_cancelled_flush_leaves_the_association_alone(pair, wire):
    association, peer = await pair()
    block = wire.p_data(bytes(20_000_000))
    association.write_p_data(block)
    flushed = asyncio.create_task(association.flushed())
    await asyncio.sleep(0)
    flushed.cancel()
    with pytest.raises(asyncio.CancelledError):
        await flushed
    assert await peer.receive(len(block)) == block
    await association.flushed()
    assert association.is_open


# Release


async def test_release(pair, make_user, wire):
    user = make_user()
    association, peer = await pair(user=user)
    releasing = asyncio.create_task(association.release())
    assert await peer.receive_pdu() == wire.RELEASE_RQ
    await peer.send(wire.p_data(b"late"))
    await peer.send(wire.RELEASE_RP)
    await releasing
    assert user.data == b"late"
    assert user.ends == [None]
    assert await peer.receive_all() == b""  # the requestor of the release closes (AR-3)
    await association.release()
    assert await association.wait_ended() is None


async def test_a_peer_that_closes_instead_of_answering_has_released(pair, make_user, wire):
    user = make_user()
    association, peer = await pair(user=user)
    releasing = asyncio.create_task(association.release())
    await peer.receive_pdu()
    peer.reset()
    await releasing
    assert user.ends == [None]


async def test_a_peer_that_does_not_answer_the_release_is_aborted(pair, make_user, wire):
    user = make_user()
    association, peer = await pair(user=user, timeouts=Timeouts(release_s=0.05))
    with pytest.raises(DeadlineExceeded, match="the release"):
        await association.release()
    assert await peer.receive(20) == wire.RELEASE_RQ + wire.ABORT
    assert [type(error) for error in user.ends] == [DeadlineExceeded]


async def test_release_asked_for_twice_is_sent_once(pair, wire):
    association, peer = await pair()
    releasing = asyncio.gather(association.release(), association.release())
    await peer.receive_pdu()
    await peer.send(wire.RELEASE_RP)
    await releasing
    assert await peer.receive_all() == b""


async def test_a_cancelled_release_goes_on_in_order(pair, make_user, wire):
    user = make_user()
    association, peer = await pair(user=user)
    releasing = asyncio.create_task(association.release())
    await peer.receive_pdu()
    releasing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await releasing
    await peer.send(wire.RELEASE_RP)
    assert await association.wait_ended() is None


async def test_the_peers_release(pair, make_user, wire):
    user = make_user()
    association, peer = await pair(user=user)
    assert await peer.exchange(wire.RELEASE_RQ) == wire.RELEASE_RP
    assert user.told == ["established", "release", ("ended", None)]
    peer.close()
    await association.wait_closed()


async def test_r23_release_collision_as_requestor(pair, make_user, wire):
    """7, 9, 11, 1. We answer at once, then wait for the peer's answer."""
    user = make_user()
    association, peer = await pair(user=user)
    releasing = asyncio.create_task(association.release())
    assert await peer.receive_pdu() == wire.RELEASE_RQ
    assert await peer.exchange(wire.RELEASE_RQ) == wire.RELEASE_RP
    assert user.ends == []
    await peer.send(wire.RELEASE_RP)
    await releasing
    assert user.told == ["established", ("ended", None)]
    assert await peer.receive_all() == b""


async def test_r23_release_collision_as_acceptor(serve, connect, wire):
    """7, 10, 12, 13. We wait for the peer's answer, then give ours."""
    service = await serve()
    peer = await connect(service.port)
    await peer.exchange(wire.associate_rq())
    user = service.user
    releasing = asyncio.create_task(user.association.release())
    assert await peer.receive_pdu() == wire.RELEASE_RQ
    await peer.send(wire.RELEASE_RQ)
    assert await peer.exchange(wire.RELEASE_RP) == wire.RELEASE_RP
    await releasing
    assert user.told == ["established", ("ended", None)]


async def test_r23_release_collision_between_two_of_ours(serve, associate, make_user):
    service = await serve()
    user = make_user()
    association = await associate(service.port, user=user)
    theirs = service.user
    await asyncio.gather(association.release(), theirs.association.release())
    assert (user.ends, theirs.ends) == ([None], [None])
    await association.wait_closed()
    await theirs.association.wait_closed()


# Idle time and deadlines


async def test_an_idle_association_is_released(pair, make_user, wire):
    user = make_user()
    _, peer = await pair(user=user, timeouts=Timeouts(idle_s=0.05))
    assert await peer.receive_pdu() == wire.RELEASE_RQ
    await peer.send(wire.RELEASE_RP)
    await user.until(lambda: user.ends)
    assert user.ends == [None]


async def test_a_busy_association_is_not_idle(pair, make_user, wire):
    user = make_user()
    user.is_busy = True
    calls = itertools.count()
    enough = asyncio.Event()

    def busy():
        if next(calls) == 3:
            enough.set()
        return user.is_busy

    user.busy = busy
    association, peer = await pair(user=user, timeouts=Timeouts(idle_s=0.02))
    await enough.wait()
    assert association.is_open
    user.is_busy = False
    assert await peer.receive_pdu() == wire.RELEASE_RQ
    await peer.send(wire.RELEASE_RP)


async def test_the_rest_of_a_message_has_a_deadline(pair, make_user, wire):
    """Between two PDUs of one message the user says that it is receiving."""
    user = make_user()
    user.receiving = True
    _, peer = await pair(user=user, timeouts=Timeouts(pdu_s=0.05))
    await peer.send(wire.p_data(b"first fragment", control=0))
    assert await peer.receive_pdu() == wire.ABORT
    assert [error.phase for error in user.ends] == ["reading a PDU"]


async def test_a_held_peer_is_not_blamed_for_being_slow(pair, make_user, wire):
    user = make_user()
    association, peer = await pair(user=user, timeouts=Timeouts(pdu_s=0.03))
    await peer.send(wire.p_data(bytes(10))[:15])
    await user.until(lambda: user.data)
    association.hold_reading()
    await peer.send(wire.p_data(bytes(10))[15:])
    expired = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(0.1, expired.set_result, None)
    await expired
    assert association.is_open
    association.continue_reading()
    await user.until(lambda: len(user.data) == 10)
    assert association.is_open


async def test_no_deadline_at_all_is_possible(pair, make_user, wire):
    nothing = Timeouts(
        connect_s=None, associate_s=None, pdu_s=None, write_s=None, idle_s=None, release_s=None
    )
    association, peer = await pair(timeouts=nothing)
    releasing = asyncio.create_task(association.release())
    await peer.receive_pdu()
    await peer.send(wire.RELEASE_RP)
    await releasing


# Abort and loss


async def test_the_reason_given_to_abort_is_what_everyone_hears(pair, make_user):
    user = make_user()
    association, _ = await pair(user=user)
    reason = DeadlineExceeded("the operator's patience", 1)
    association.abort(reason)
    association.abort()
    assert user.ends == [reason]
    assert await association.wait_ended() is reason


async def test_after_our_abort_artim_closes_when_the_peer_does_not(pair, wire):
    association, peer = await pair(timeouts=Timeouts(artim_s=0.05))
    association.abort()
    assert await peer.receive_all() == wire.ABORT
    await association.wait_closed()


async def test_the_peers_abort_says_its_codes(pair, make_user, wire):
    user = make_user()
    _, peer = await pair(user=user)
    await peer.send(wire.provider_abort(200))
    await user.until(lambda: user.ends)
    (error,) = user.ends
    assert (error.by_peer, error.source, error.reason) == (True, 2, 200)
    assert await peer.receive_all() == b""


async def test_half_closing_while_data_is_unread_ends_in_time(pair, make_user, wire, monkeypatch):
    """FIN from a peer that no longer reads: what is still to be written gets the linger time, no more."""
    monkeypatch.setattr("harmony.ul.association.CLOSE_LINGER_S", 0.05)
    user = make_user()
    association, peer = await pair(user=user)
    association.write_p_data(wire.p_data(bytes(20_000_000)))
    peer.socket.shutdown(socket.SHUT_WR)
    async with asyncio.timeout(3):
        await association.wait_closed()
    assert [type(error) for error in user.ends] == [ConnectionLost]


async def test_a_peer_that_floods_after_the_end_is_not_answered_without_bound(
    pair, listener, wire, monkeypatch
):
    """Each A-ASSOCIATE-RQ in Sta13 is answered with an A-ABORT (AA-7), until the peer leaves them unread."""
    monkeypatch.setattr("harmony.ul.association.CLOSE_LINGER_S", 0.05)
    listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    association, peer = await pair()
    association._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    association.abort()
    flood = wire.associate_rq() * 100
    with contextlib.suppress(ConnectionError):
        for _ in range(1000):
            await peer.send(flood)
        pytest.fail("a hundred thousand requests were taken")
    async with asyncio.timeout(3):
        await association.wait_closed()


async def test_a_lost_association_object_does_not_close_a_descriptor_of_others(pair):
    """The socket object that re-arms TCP_QUICKACK borrows the transport's descriptor."""
    association, peer = await pair()
    borrowed = association._socket
    if borrowed is None:
        pytest.skip("no TCP_QUICKACK on this system")
    descriptor = borrowed.fileno()
    association._socket = None
    del borrowed
    with socket.socket(fileno=os.dup(descriptor)) as still_open:
        assert still_open.getpeername() == peer.socket.getsockname()
