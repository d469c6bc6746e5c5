"""Acceptors on loopback: silence and dribble, other protocols, limits, identity, draining, aborts in every state."""

import asyncio
import contextlib
import logging
import random
import socket
import struct

import pytest

from harmony.ul.acceptor import Acceptor, AcceptorLimits, VerifiedIdentity
from harmony.ul.deadlines import Timeouts
from harmony.ul.errors import AssociationAborted, ConnectionLost, DeadlineExceeded
from harmony.ul.negotiation import AcceptorPolicy, SupportedAbstractSyntax
from harmony.ul.pdu import AssociateRJ
from harmony.ul.upper_layer import SizeLimits

pytestmark = pytest.mark.usefixtures("no_leaks")


# Listening


async def test_listening_that_is_cancelled_leaves_no_socket(free_port, make_user):
    for steps in range(12):
        acceptor = Acceptor(AcceptorPolicy(), make_user)
        listening = asyncio.create_task(acceptor.listen("127.0.0.1", free_port))
        for _ in range(steps):
            await asyncio.sleep(0)
        listening.cancel()
        await asyncio.wait([listening])
        await acceptor.close()
        with socket.socket() as sock:
            assert sock.connect_ex(("127.0.0.1", free_port)) != 0


# Silence, dribble, garbage (R01 to R04)


async def test_r01_a_silent_connection_is_closed_when_artim_expires(serve, connect):
    service = await serve(timeouts=Timeouts(artim_s=0.05))
    peer = await connect(service.port)
    assert await peer.receive_all() == b""
    assert [user.told for user in service.users] == [[]]


async def test_r02_a_dribble_of_bytes_does_not_extend_artim(serve, connect, wire):
    service = await serve(timeouts=Timeouts(artim_s=0.1))
    peer = await connect(service.port)
    received = asyncio.create_task(peer.receive_all())
    with contextlib.suppress(ConnectionError):
        for byte in wire.associate_rq():
            await peer.send(bytes((byte,)))
            done, _ = await asyncio.wait([received], timeout=0.01)
            if done:
                break
    assert received.done()
    assert await received == b""
    assert service.users[0].told == []


async def test_a_title_with_line_breaks_stays_one_line_in_the_log(serve, connect, wire, caplog):
    caplog.set_level(logging.INFO, logger="harmony.ul")
    service = await serve(policy=AcceptorPolicy(other_abstract_syntaxes=lambda _: SupportedAbstractSyntax()))
    peer = await connect(service.port)
    await peer.send(wire.associate_rq(calling=b"EVIL\nINFO forged"))
    await peer.receive_pdu()
    assert not any("\n" in message for message in caplog.messages)
    assert any("EVIL\\nINFO forged" in message for message in caplog.messages)


async def test_a_connection_opened_and_closed_is_nobodys_business(serve, connect, wire, caplog):
    """Health checks of load balancers: no error, no line at INFO."""
    caplog.set_level(logging.INFO, logger="harmony.ul")
    service = await serve()
    for _ in range(20):
        (await connect(service.port)).close()
    peer = await connect(service.port)
    assert (await peer.exchange(wire.associate_rq()))[0] == 2
    assert all("open" in message for message in caplog.messages)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP"),
        (bytes.fromhex("16 03 01 00 05 01 00 00 01 03"), "TLS"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "SSH"),
    ],
)
async def test_r04_other_protocols_are_named_and_closed_at_once(serve, connect, wire, caplog, data, name):
    caplog.set_level(logging.INFO, logger="harmony.ul")
    service = await serve()
    peer = await connect(service.port)
    await peer.send(data)
    assert await peer.receive_all() == wire.ABORT
    assert any(name in message for message in caplog.messages)


async def test_a_wrong_first_pdu_is_aborted_and_the_reason_logged(serve, connect, wire, caplog):
    caplog.set_level(logging.INFO, logger="harmony.ul")
    service = await serve()
    peer = await connect(service.port)
    assert await peer.exchange(wire.RELEASE_RQ) == wire.ABORT
    assert any("RELEASE_RQ" in message for message in caplog.messages)


async def test_limits_on_sizes_are_the_acceptors(serve, connect, wire):
    service = await serve(size_limits=SizeLimits(associate_pdu_bytes=100))
    peer = await connect(service.port)
    assert await peer.exchange(b"\1\0\0\0\0\x65") == wire.ABORT


# Answering


async def test_r06_a_whole_session_in_one_segment(serve, connect, wire):
    """A-ASSOCIATE-RQ, P-DATA-TF and A-RELEASE-RQ in one segment."""
    service = await serve()
    peer = await connect(service.port)
    await peer.send(wire.associate_rq() + wire.p_data(b"data") + wire.RELEASE_RQ)
    assert (await peer.receive_pdu())[0] == 2
    assert await peer.receive_pdu() == wire.RELEASE_RP
    assert service.user.told == ["established", "release", ("ended", None)]
    assert service.user.data == b"data"


async def test_r08_128_contexts_of_62_transfer_syntaxes_are_answered(serve, connect, wire):
    contexts = [
        (
            2 * n + 1,
            b"1.2.840.10008.5.1.4.1.1.%d" % n,
            [b"1.2.840.10008.1.2.4.1234567890.1%02d" % m for m in range(62)],
        )
        for n in range(128)
    ]
    request = wire.associate_rq(contexts)
    assert len(request) > 300_000
    service = await serve()
    peer = await connect(service.port)
    answer = await peer.exchange(request)
    assert answer[0] == 2
    assert answer.count(b"1.2.840.10008.1.2.4.1234567890.100") == 128


async def test_the_acceptor_may_write_as_soon_as_it_is_established(serve, connect, wire, make_user):
    """P-DATA of a user that begins at once goes out behind the A-ASSOCIATE-AC."""

    def begin(association):
        association.write_p_data(wire.p_data(b"first"))

    service = await serve(user=lambda: make_user(on_established=begin))
    peer = await connect(service.port)
    assert (await peer.exchange(wire.associate_rq()))[0] == 2
    assert await peer.receive_pdu() == wire.p_data(b"first")


async def test_calling_and_called_titles_are_policy(serve, connect, wire):
    service = await serve(
        AcceptorPolicy(ae_titles=frozenset({"CALLED"}), calling_ae_titles=frozenset({"CALLING"}))
    )
    assert (await (await connect(service.port)).exchange(wire.associate_rq()))[0] == 2
    for changes, reason in (({"called": b"OTHER"}, 7), ({"calling": b"OTHER"}, 3)):
        peer = await connect(service.port)
        assert await peer.exchange(wire.associate_rq(**changes)) == wire.reject(1, 1, reason)


async def test_the_policy_may_be_replaced_while_running(serve, connect, wire):
    service = await serve()
    service.acceptor.policy = AcceptorPolicy(ae_titles=frozenset({"OTHER"}))
    assert await (await connect(service.port)).exchange(wire.associate_rq()) == wire.reject(1, 1, 7)


async def test_the_policy_may_be_chosen_by_the_address_of_the_peer(serve, connect, wire):
    peers = []

    def choose(request, association):
        peers.append(association.peer)
        if request.called_ae_title == "OTHER":
            return AssociateRJ(2, 3, 2)
        return AcceptorPolicy()

    service = await serve(choose)
    peer = await connect(service.port)
    assert (await peer.exchange(wire.associate_rq()))[0] == 2
    assert peers == [("127.0.0.1", peer.port)]
    peer = await connect(service.port)
    assert await peer.exchange(wire.associate_rq(called=b"OTHER")) == wire.reject(2, 3, 2)
    assert service.acceptor.rejections == {(2, 3, 2): 1}


async def test_a_policy_that_fails_costs_its_own_association_only(serve, connect, wire, caplog):
    def fail(uid):
        raise ZeroDivisionError

    service = await serve(AcceptorPolicy(other_abstract_syntaxes=fail))
    assert await (await connect(service.port)).exchange(wire.associate_rq()) == wire.reject(1, 1, 1)
    assert "ZeroDivisionError" in caplog.text
    service.acceptor.policy = AcceptorPolicy()
    assert (await (await connect(service.port)).exchange(wire.associate_rq()))[0] == 2


async def test_repr_names_titles_role_peer_and_state(serve, connect, wire):
    service = await serve()
    peer = await connect(service.port)
    await peer.exchange(wire.associate_rq())
    (association,) = service.acceptor.associations
    address = f"127.0.0.1:{peer.port}"
    expected = f"<Association {association.number} CALLING->CALLED acceptor {address} STA6>"
    assert repr(association) == expected


async def test_ipv6_peers_have_brackets(no_leaks, make_user, wire):
    acceptor = Acceptor(AcceptorPolicy(), make_user)
    try:
        await acceptor.listen("::1", 0)
    except OSError:
        pytest.skip("no IPv6 on this machine")
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET6) as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, ("::1", acceptor.addresses[0][1]))
        await loop.sock_sendall(sock, wire.associate_rq())
        await loop.sock_recv(sock, 1)
        (association,) = acceptor.associations
        assert association.peer_address == f"[::1]:{sock.getsockname()[1]}"
        await acceptor.close()


# How many (R32)


async def test_r32_300_idle_connections_delay_nobody(serve, connect, wire):
    service = await serve()
    for _ in range(300):
        await connect(service.port)
    peer = await connect(service.port)
    assert (await peer.exchange(wire.associate_rq()))[0] == 2


async def test_one_association_too_many_is_rejected_until_another_ends(serve, connect, wire):
    service = await serve(limits=AcceptorLimits(maximum_associations=2))
    first, second = await connect(service.port), await connect(service.port)
    for peer in (first, second):
        assert (await peer.exchange(wire.associate_rq()))[0] == 2
    third = await connect(service.port)
    assert await third.exchange(wire.associate_rq()) == wire.reject(2, 3, 2)
    assert len(service.acceptor.associations) == 2
    assert await first.exchange(wire.RELEASE_RQ) == wire.RELEASE_RP
    fourth = await connect(service.port)
    assert (await fourth.exchange(wire.associate_rq()))[0] == 2
    assert await (await connect(service.port)).exchange(wire.associate_rq()) == wire.reject(2, 3, 2)
    assert service.acceptor.rejections == {(2, 3, 2): 2}


async def test_one_connection_too_many_is_closed(serve, connect, wire, caplog):
    service = await serve(limits=AcceptorLimits(maximum_connections=2))
    first, second = await connect(service.port), await connect(service.port)
    assert (await second.exchange(wire.associate_rq()))[0] == 2
    assert (await first.exchange(wire.associate_rq()))[0] == 2
    assert await (await connect(service.port)).receive_all() == b""
    assert "maximum_connections is 2" in caplog.text
    second.reset()
    await service.users[1].until(lambda: service.users[1].ends)
    await service.until_connected(1)
    assert (await (await connect(service.port)).exchange(wire.associate_rq()))[0] == 2


async def test_one_association_too_many_of_a_calling_ae_title(serve, connect, wire, caplog):
    service = await serve(limits=AcceptorLimits(maximum_associations_per_calling_ae_title=2))
    first, second = await connect(service.port), await connect(service.port)
    for peer in (first, second):
        assert (await peer.exchange(wire.associate_rq(calling=b"MODALITY")))[0] == 2
    for calling in (b"MODALITY", b" MODALITY"):  # leading spaces are not significant (PS3.8 Table 9-11)
        third = await connect(service.port)
        assert await third.exchange(wire.associate_rq(calling=calling)) == wire.reject(2, 3, 2)
    assert (await (await connect(service.port)).exchange(wire.associate_rq(calling=b"PACS")))[0] == 2
    assert caplog.text.count("'MODALITY' has 2 open, which is maximum_associations_per_calling_ae_title") == 1
    assert await first.exchange(wire.RELEASE_RQ) == wire.RELEASE_RP
    assert (await (await connect(service.port)).exchange(wire.associate_rq(calling=b"MODALITY")))[0] == 2
    assert service.acceptor.rejections == {(2, 3, 2): 2}


async def test_one_association_too_many_of_an_address(serve, connect, wire, caplog):
    service = await serve(limits=AcceptorLimits(maximum_associations_per_address=2))
    first, second = await connect(service.port), await connect(service.port)
    for peer in (first, second):
        assert (await peer.exchange(wire.associate_rq()))[0] == 2
    third = await connect(service.port)
    assert await third.exchange(wire.associate_rq(calling=b"ANOTHER")) == wire.reject(2, 3, 2)
    elsewhere = await connect(service.port, host="127.0.0.2")
    assert (await elsewhere.exchange(wire.associate_rq()))[0] == 2
    assert "127.0.0.1 has 2 open, which is maximum_associations_per_address" in caplog.text
    second.reset()
    await service.users[1].until(lambda: service.users[1].ends)
    assert (await (await connect(service.port)).exchange(wire.associate_rq()))[0] == 2


async def test_one_connection_too_many_of_an_address(serve, connect, wire, caplog):
    service = await serve(limits=AcceptorLimits(maximum_connections_per_address=2))
    first = await connect(service.port)
    await service.until_connected(1)
    second = await connect(service.port)
    assert (await second.exchange(wire.associate_rq()))[0] == 2
    for _ in range(2):
        assert await (await connect(service.port)).receive_all() == b""
    elsewhere = await connect(service.port, host="127.0.0.2")
    assert (await elsewhere.exchange(wire.associate_rq()))[0] == 2
    assert caplog.text.count("maximum_connections_per_address") == 1
    first.close()
    await service.until_connected(2)
    assert (await (await connect(service.port)).exchange(wire.associate_rq()))[0] == 2


async def test_who_connects_too_fast_is_closed_and_others_are_served(serve, connect, wire, caplog):
    service = await serve(limits=AcceptorLimits(connections_per_second_per_address=0.001))
    peer = await connect(service.port)
    assert (await peer.exchange(wire.associate_rq()))[0] == 2
    for _ in range(3):
        assert await (await connect(service.port)).receive_all() == b""
    elsewhere = await connect(service.port, host="127.0.0.2")
    assert (await elsewhere.exchange(wire.associate_rq()))[0] == 2
    assert caplog.text.count("127.0.0.1 are closed: more than connections_per_second_per_address, 0.001") == 1
    assert await peer.exchange(wire.RELEASE_RQ) == wire.RELEASE_RP  # who is here stays
    service.acceptor.limits = AcceptorLimits()  # as at a reload
    assert (await (await connect(service.port)).exchange(wire.associate_rq()))[0] == 2


async def test_counters_return_to_zero_in_any_order(serve, connect, wire):
    """Silent, rejected, released, aborted, reset and closed, begun and ended in a different order each time."""
    limits = AcceptorLimits(
        maximum_associations_per_calling_ae_title=3,
        maximum_associations_per_address=6,
        maximum_connections_per_address=9,
    )
    service = await serve(limits=limits)
    order = random.Random(5)
    for _ in range(30):
        peers = [await connect(service.port) for _ in range(12)]
        for peer in order.sample(peers, 10):
            with contextlib.suppress(ConnectionError):
                await peer.send(wire.associate_rq(calling=order.choice([b"ONE", b"TWO", b"THREE"])))
        for peer in order.sample(peers, 12):
            with contextlib.suppress(ConnectionError):
                match order.choice(["release", "abort", "reset", "close"]):
                    case "release":
                        await peer.send(wire.RELEASE_RQ)
                        peer.close()
                    case "abort":
                        await peer.send(wire.ABORT)
                        peer.close()
                    case "reset":
                        peer.reset()
                    case "close":
                        peer.close()
    await service.until_connected(0)
    acceptor = service.acceptor
    for shares in (acceptor._admitted_titles, acceptor._admitted_hosts, acceptor._connected_hosts):
        assert len(shares) == 0
        assert not shares._counts
    assert acceptor.associations == frozenset()
    assert (await (await connect(service.port)).exchange(wire.associate_rq()))[0] == 2


async def test_limits_are_followed(serve, connect, wire, make_user):
    service = await serve(limits=AcceptorLimits(maximum_associations_per_address=1))
    first = await connect(service.port)
    assert (await first.exchange(wire.associate_rq()))[0] == 2
    assert await (await connect(service.port)).exchange(wire.associate_rq()) == wire.reject(2, 3, 2)
    other = Acceptor(
        service.acceptor.policy, make_user, limits=AcceptorLimits(maximum_associations_per_address=2)
    )
    service.acceptor.follow(other)
    assert (await (await connect(service.port)).exchange(wire.associate_rq()))[0] == 2
    assert await (await connect(service.port)).exchange(wire.associate_rq()) == wire.reject(2, 3, 2)


# User identity (PS3.7 §D.3.3.7)


def identity_item(wire, *, respond=True):
    return wire.item(0x58, bytes((2, respond)) + b"\0\4user\0\6secret")


async def test_an_identity_is_verified_and_answered(serve, connect, wire):
    seen = []

    async def verify(identity, request, association):
        seen.append((identity.user_identity_type, identity.primary_field, identity.secondary_field))
        seen.append((request.calling_ae_title, association.peer_address))
        return b""

    service = await serve(verify_identity=verify)
    peer = await connect(service.port)
    answer = await peer.exchange(wire.associate_rq(user_items=identity_item(wire)))
    assert answer[0] == 2
    assert bytes.fromhex("59 00 0002 0000") in answer
    assert seen == [(2, b"user", b"secret"), ("CALLING", f"127.0.0.1:{peer.port}")]


@pytest.mark.parametrize("identity", [None, False])
async def test_no_response_item_without_the_wish_for_one(serve, connect, wire, identity):
    async def verify(identity, request, association):
        return b"ticket"

    items = b"" if identity is None else identity_item(wire, respond=False)
    service = await serve(verify_identity=verify)
    answer = await (await connect(service.port)).exchange(wire.associate_rq(user_items=items))
    assert answer[0] == 2
    assert b"ticket" not in answer


async def test_a_refused_identity_is_rejected(serve, connect, wire):
    async def refuse(identity, request, association):
        return None

    service = await serve(verify_identity=refuse)
    peer = await connect(service.port)
    assert await peer.exchange(wire.associate_rq(user_items=identity_item(wire))) == wire.reject(1, 2, 1)
    assert service.acceptor.associations == frozenset()


async def test_a_verifier_may_say_how_to_reject(serve, connect, wire):
    async def not_now(identity, request, association):
        return AssociateRJ(2, 2, 1)

    service = await serve(verify_identity=not_now)
    peer = await connect(service.port)
    assert await peer.exchange(wire.associate_rq(user_items=identity_item(wire))) == wire.reject(2, 2, 1)
    assert service.acceptor.rejections == {(2, 2, 1): 1}


@pytest.mark.parametrize(("response", "answered"), [(b"ticket", True), (None, False)])
async def test_the_association_keeps_who_it_is(serve, connect, wire, response, answered):
    async def verify(identity, request, association):
        return VerifiedIdentity(response, principal="alice")

    service = await serve(verify_identity=verify)
    peer = await connect(service.port)
    answer = await peer.exchange(wire.associate_rq(user_items=identity_item(wire)))
    assert answer[0] == 2
    assert (b"ticket" in answer) is answered
    assert (bytes.fromhex("59 00") in answer) is answered
    (association,) = service.acceptor.associations
    assert association.principal == "alice"


async def test_the_verifier_of_a_request_is_the_one_that_it_met(serve, connect, wire):
    async def refuse(identity, request, association):
        return None

    service = await serve(verify_identity=refuse)
    requested = service.acceptor._requested

    def requested_and_replaced(association, request):
        requested(association, request)
        service.acceptor._verify_identity = None

    service.acceptor._requested = requested_and_replaced
    peer = await connect(service.port)
    assert await peer.exchange(wire.associate_rq()) == wire.reject(1, 2, 1)


async def test_a_verifier_that_raises_rejects(serve, connect, wire, caplog):
    async def fail(identity, request, association):
        raise LookupError("no directory")

    service = await serve(verify_identity=fail)
    peer = await connect(service.port)
    assert await peer.exchange(wire.associate_rq(user_items=identity_item(wire))) == wire.reject(1, 2, 1)
    assert "no directory" in caplog.text
    assert "secret" not in caplog.text


async def test_a_verifier_that_hangs_rejects_in_time(serve, connect, wire):
    async def hang(identity, request, association):
        await asyncio.Event().wait()

    service = await serve(verify_identity=hang, timeouts=Timeouts(associate_s=0.05))
    peer = await connect(service.port)
    assert await peer.exchange(wire.associate_rq()) == wire.reject(1, 2, 1)


async def test_a_verifier_whose_answer_cannot_be_sent_rejects(serve, connect, wire):
    async def overdo(identity, request, association):
        return bytes(70000)

    service = await serve(verify_identity=overdo)
    peer = await connect(service.port)
    assert await peer.exchange(wire.associate_rq(user_items=identity_item(wire))) == wire.reject(1, 1, 1)


@pytest.mark.parametrize("how", ["close", "reset", "abort", "p-data"])
async def test_the_verifier_is_cancelled_when_the_peer_goes_away(serve, connect, wire, how):
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def hang(identity, request, association):
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    service = await serve(verify_identity=hang)
    peer = await connect(service.port)
    await peer.send(wire.associate_rq())
    await begun.wait()
    if how in ("close", "reset"):
        getattr(peer, how)()
    else:
        await peer.send(wire.ABORT if how == "abort" else wire.p_data(b"too early"))
    async with asyncio.timeout(5):
        await cancelled.wait()
    assert service.acceptor.associations == frozenset()
    assert service.users[0].told == []


# Stopping (R40)


async def test_r40_draining_rejects_new_ones_and_lets_open_ones_finish(serve, connect, wire):
    service = await serve()
    silent = await connect(service.port)
    early = await connect(service.port)
    peer = await connect(service.port)
    await peer.exchange(wire.associate_rq())
    draining = asyncio.create_task(service.acceptor.drain(5))
    late = await connect(service.port)
    for requestor in (early, late):  # connected before or after, the request decides
        assert await requestor.exchange(wire.associate_rq()) == wire.reject(2, 3, 1)
    await peer.send(wire.p_data(b"still here"))
    assert await peer.exchange(wire.RELEASE_RQ) == wire.RELEASE_RP
    await draining
    assert await silent.receive_all() == b""
    assert service.user.ends == [None]
    assert service.user.data == b"still here"
    with pytest.raises(ConnectionRefusedError):
        await connect(late.socket.getpeername()[1])


async def test_r40_draining_aborts_what_is_left_after_the_grace(serve, connect, wire):
    service = await serve()
    peer = await connect(service.port)
    await peer.exchange(wire.associate_rq())
    await service.acceptor.drain(0.02)
    assert await peer.receive_all() == wire.ABORT
    (error,) = service.user.ends
    assert isinstance(error, AssociationAborted)
    assert not error.by_peer


async def test_draining_nothing_returns(serve, connect):
    service = await serve()
    port = service.port
    await service.acceptor.drain(5)
    with pytest.raises(ConnectionRefusedError):
        await connect(port)


async def test_close_waits_for_every_connection_in_every_phase(serve, connect, wire):
    async def hang(identity, request, association):
        begun.set()
        await asyncio.Event().wait()

    begun = asyncio.Event()
    service = await serve()
    silent, open_, released = [await connect(service.port) for _ in range(3)]
    await silent.send(wire.associate_rq()[:50])
    await open_.exchange(wire.associate_rq())
    await released.exchange(wire.associate_rq())
    await released.exchange(wire.RELEASE_RQ)
    service.acceptor._verify_identity = hang
    deciding = await connect(service.port)
    await deciding.send(wire.associate_rq())
    await begun.wait()
    await service.acceptor.close()
    assert [await peer.receive_all() for peer in (silent, open_, released, deciding)] == [
        b"",
        wire.ABORT,
        b"",
        wire.ABORT,
    ]
    assert len(asyncio.all_tasks()) == 1
    await service.acceptor.close()


async def test_close_does_not_wait_for_a_peer_that_does_not_read(serve, connect, wire, monkeypatch):
    monkeypatch.setattr("harmony.ul.association.CLOSE_LINGER_S", 0.05)
    service = await serve()
    peer = await connect(service.port, receive_buffer=4096)
    await peer.exchange(wire.associate_rq())
    assert service.user.association.write_p_data(wire.p_data(bytes(20_000_000))) is False
    await service.acceptor.close()
    assert service.acceptor.associations == frozenset()


# However it ends (R24)

STATES = ["Sta2", "Sta2 mid-PDU", "Sta3", "Sta6", "Sta6 mid-PDU", "Sta7", "Sta8", "Sta10", "Sta12", "Sta13"]


@pytest.fixture
async def in_state(serve, connect, wire, make_user):
    """in_state("Sta7"): the service, its association and the peer, once the association is in that state."""

    async def hang(identity, request, association):
        await asyncio.Event().wait()

    releases = []

    async def in_state(name):
        options = {"verify_identity": hang} if name == "Sta3" else {}
        service = await serve(user=lambda: make_user(answer_release=False), **options)
        peer = await connect(service.port)
        (association,) = await service.until_connected(1)
        state, _, middle = name.partition(" ")
        if state == "Sta2" and middle:
            await peer.send(wire.associate_rq()[:-1])
        if state == "Sta3":
            await peer.send(wire.associate_rq())
        if state not in ("Sta2", "Sta3"):
            await peer.exchange(wire.associate_rq())
            if middle:
                await peer.send(wire.p_data(bytes(100))[:50])
            if state in ("Sta7", "Sta10", "Sta12"):
                releases.append(asyncio.create_task(association.release()))
                await peer.receive_pdu()
            if state in ("Sta8", "Sta10", "Sta12", "Sta13"):
                await peer.send(wire.RELEASE_RQ)
            if state == "Sta12":
                await peer.send(wire.RELEASE_RP)
            if state == "Sta13":
                await service.user.until_told("release")
                association.respond_release()
        # The association answers a release collision itself, so that Sta12 goes on to Sta13 at once.
        await service.until_state(association, "STA13" if state == "Sta12" else state.upper(), bool(middle))
        return service, association, peer

    yield in_state
    async with asyncio.timeout(5):
        await asyncio.gather(*releases)


@pytest.mark.parametrize("how", ["A-ABORT", "RST", "FIN", "garbage"])
@pytest.mark.parametrize("state", STATES)
async def test_r24_the_peer_ends_it_in_any_state(in_state, wire, state, how):
    """One `ended` for whoever heard `established`, none else; the transport is closed; nobody hangs."""
    service, association, peer = await in_state(state)
    if how == "A-ABORT":
        await peer.send(wire.ABORT)
    elif how == "garbage":
        await peer.send(b"\xee" * 1000)
        peer.socket.shutdown(socket.SHUT_WR)
    elif how == "RST":
        peer.reset()
    if how == "FIN":
        peer.close()
    if "mid-PDU" in state and how == "A-ABORT":
        peer.socket.shutdown(socket.SHUT_WR)  # the rest of the PDU never comes
    async with asyncio.timeout(5):
        await association.wait_closed()
    (user,) = service.users
    assert len(user.ends) == user.told.count("established") <= 1
    assert service.acceptor.associations == frozenset()
    assert await association.wait_ended() is association.error


@pytest.mark.parametrize("reads", [True, False], ids=["peer reads", "peer neither reads nor closes"])
@pytest.mark.parametrize("state", STATES)
async def test_r24_we_abort_in_any_state(in_state, wire, monkeypatch, state, reads):
    monkeypatch.setattr("harmony.ul.association.CLOSE_LINGER_S", 0.05)
    service, association, peer = await in_state(state)
    association._core._artim_timeout_s = 0.05
    if association._core.state == 13:
        association._core.deadline = asyncio.get_running_loop().time() + 0.05
    association.abort()
    association.abort()
    if reads:
        released = wire.RELEASE_RP if state in ("Sta12", "Sta13") else b""
        assert await peer.receive_all() == (released or (b"" if "Sta2" in state else wire.ABORT))
        peer.close()
    async with asyncio.timeout(5):
        await association.wait_closed()
    (user,) = service.users
    assert len(user.ends) == user.told.count("established") <= 1
    association.abort()


async def test_a_peer_that_closes_after_its_release_has_released(in_state, wire):
    """A reset right after A-RELEASE-RQ: the release counts (the answers it did not wait for were not wanted)."""
    service, association, peer = await in_state("Sta8")
    peer.reset()
    assert await association.wait_ended() is None
    assert service.user.ends == [None]


async def test_loss_without_a_release_is_a_connection_lost(in_state):
    _, association, peer = await in_state("Sta6")
    peer.reset()
    assert isinstance(await association.wait_ended(), ConnectionLost)


async def test_a_user_that_does_not_answer_a_release_may_still_send(in_state, wire):
    _, association, peer = await in_state("Sta8")
    association.write_p_data(wire.p_data(b"an answer still due"))
    assert await peer.receive_pdu() == wire.p_data(b"an answer still due")
    association.respond_release()
    assert await peer.receive_pdu() == wire.RELEASE_RP


async def test_a_supported_abstract_syntax_with_options(serve, connect, wire):
    supported = {"1.2.840.10008.1.1": SupportedAbstractSyntax(frozenset({"1.2.840.10008.1.2.1"}))}
    service = await serve(AcceptorPolicy(abstract_syntaxes=supported))
    answer = await (await connect(service.port)).exchange(wire.associate_rq())
    assert struct.pack(">BBHBBBB", 0x21, 0, 25, 1, 0, 4, 0) in answer


async def test_phases_of_an_association_have_deadlines(serve, connect, wire):
    service = await serve(timeouts=Timeouts(pdu_s=0.05))
    peer = await connect(service.port)
    await peer.exchange(wire.associate_rq())
    await peer.send(wire.p_data(bytes(100))[:50])
    assert await peer.receive_pdu() == wire.ABORT
    (error,) = service.user.ends
    assert isinstance(error, DeadlineExceeded)
    assert error.phase == "reading a PDU"
