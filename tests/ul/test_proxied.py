"""Acceptors behind a proxy: who a peer is, and what becomes of those that are no proxy, with and without TLS (R39)."""

import logging
import socket
import ssl

import pytest

from harmony.ul.acceptor import Acceptor, AcceptorLimits
from harmony.ul.deadlines import Timeouts
from harmony.ul.negotiation import AcceptorPolicy, SupportedAbstractSyntax

pytestmark = pytest.mark.usefixtures("no_leaks")

V1 = b"PROXY TCP4 192.0.2.1 198.51.100.2 41340 104\r\n"
V2 = bytes.fromhex("0D0A0D0A 000D0A51 5549540A 21 11 000C C0000201 C6336402 A17C 0068")


@pytest.fixture
async def behind(no_leaks, make_user):
    """await behind(trusted, ...): the port of an acceptor, and the peers of the requests that it has got."""
    acceptors = []

    async def start(*, trusted=True, ssl_context=None, timeouts=None, limits=None):
        peers = []

        def choose(request, association):
            peers.append((association.peer, association.peer_address))
            return AcceptorPolicy(other_abstract_syntaxes=lambda uid: SupportedAbstractSyntax())

        acceptor = Acceptor(choose, make_user, timeouts=timeouts, limits=limits)
        acceptors.append(acceptor)
        await acceptor.listen("127.0.0.1", 0, ssl_context=ssl_context, trusted_proxy=lambda host: trusted)
        return acceptor.addresses[0][1], peers

    yield start
    for acceptor in acceptors:
        await acceptor.close()


@pytest.mark.parametrize("header", [V1, V2])
async def test_r39_the_peer_is_the_one_that_the_proxy_names(behind, connect, wire, header):
    port, peers = await behind()
    peer = await connect(port)
    assert (await peer.exchange(header + wire.associate_rq()))[0] == 2
    assert peers == [(("192.0.2.1", 41340), "192.0.2.1:41340")]


async def test_a_header_in_pieces(behind, connect, wire):
    port, peers = await behind()
    peer = await connect(port)
    peer.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in V2:
        await peer.send(bytes((byte,)))
    assert (await peer.exchange(wire.associate_rq()))[0] == 2
    assert peers[0][0] == ("192.0.2.1", 41340)


async def test_a_health_check_is_the_proxys_own(behind, connect, wire):
    port, peers = await behind()
    peer = await connect(port)
    assert (await peer.exchange(b"PROXY UNKNOWN\r\n" + wire.associate_rq()))[0] == 2
    assert peers[0][0] == ("127.0.0.1", peer.port)


@pytest.mark.parametrize("header", [V1, V2, b""])
async def test_r39_nobody_else_is_let_in_with_or_without_a_header(behind, connect, wire, caplog, header):
    caplog.set_level(logging.INFO, logger="harmony.ul")
    port, peers = await behind(trusted=False)
    peer = await connect(port)
    try:
        await peer.send(header + wire.associate_rq())
        assert await peer.receive_all() == b""
    except ConnectionError:
        pass
    assert peers == []
    assert "it is no trusted proxy" in caplog.text


async def test_a_proxy_without_a_header_is_closed(behind, connect, wire, caplog):
    caplog.set_level(logging.INFO, logger="harmony.ul")
    port, peers = await behind()
    peer = await connect(port)
    try:
        await peer.send(wire.associate_rq())
        assert await peer.receive_all() == b""
    except ConnectionError:
        pass
    assert peers == []
    assert "expected a PROXY header, something else came" in caplog.text


@pytest.mark.parametrize("sent", [b"", V1[:20], V2[:13]])
async def test_a_header_has_a_deadline(behind, connect, sent):
    port, peers = await behind(timeouts=Timeouts(artim_s=0.05))
    peer = await connect(port)
    await peer.send(sent)
    assert await peer.receive_all() == b""
    assert peers == []


@pytest.mark.parametrize("sent", [b"", V1[:20]])
async def test_a_proxy_that_leaves_before_its_header(behind, connect, wire, sent):
    port, peers = await behind()
    peer = await connect(port)
    await peer.send(sent)
    peer.close()
    other = await connect(port)
    assert (await other.exchange(V1 + wire.associate_rq()))[0] == 2
    assert len(peers) == 1


async def test_the_header_comes_before_the_tls_handshake(behind, connect, wire, server_tls, client_tls):
    port, peers = await behind(ssl_context=server_tls)
    peer = await connect(port)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = client_tls.wrap_bio(incoming, outgoing, server_hostname="localhost")
    await peer.send(V2)

    async def step(call):
        while True:
            try:
                return call()
            except ssl.SSLWantReadError:
                if outgoing.pending:
                    await peer.send(outgoing.read())
                incoming.write(await peer._loop.sock_recv(peer.socket, 65536))
            finally:
                if outgoing.pending:
                    await peer.send(outgoing.read())

    await step(tls.do_handshake)
    await step(lambda: tls.write(wire.associate_rq()))
    assert (await step(lambda: tls.read(1)))[0] == 2
    assert peers == [(("192.0.2.1", 41340), "192.0.2.1:41340")]


async def test_closing_while_headers_are_waited_for(behind, connect):
    port, _ = await behind()
    for sent in (b"", V1[:10]):
        peer = await connect(port)
        await peer.send(sent)


async def test_limits_per_address_are_about_the_clients(behind, connect, wire):
    limits = AcceptorLimits(maximum_connections_per_address=2, maximum_associations_per_address=1)
    port, _ = await behind(limits=limits)

    async def answer(host, *, receive_all=False):
        peer = await connect(port)
        header = b"PROXY TCP4 %s 198.51.100.2 41340 104\r\n" % host
        await peer.send(header + wire.associate_rq())
        return await (peer.receive_all() if receive_all else peer.receive_pdu())

    assert [(await answer(b"192.0.2.%d" % number))[0] for number in range(1, 6)] == [2] * 5
    assert (await answer(b"192.0.2.1")) == wire.reject(2, 3, 2)
    assert await answer(b"192.0.2.1", receive_all=True) == b""
    assert (await answer(b"192.0.2.6"))[0] == 2
