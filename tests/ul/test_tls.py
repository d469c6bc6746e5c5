"""TLS on loopback: both sides of ours, bare TLS peers, those who do not speak it, frozen handshakes (R04, R05)."""

import asyncio
import contextlib
import logging
import socket
import ssl

import pytest

from harmony.ul.acceptor import AcceptorLimits
from harmony.ul.deadlines import Timeouts
from harmony.ul.errors import AssociationAborted, ConnectFailed, ConnectionLost, DeadlineExceeded
from harmony.ul.transport import RECEIVE_BUFFER_BYTES

pytestmark = pytest.mark.usefixtures("no_leaks")

PATIENCE_S = 5.0


@pytest.fixture
async def secured(serve, associate, server_tls, client_tls, make_user):
    """await secured(...): a TLS association of ours, its user, and the user at the other end."""

    async def secured(**options):
        service = await serve(ssl_context=server_tls)
        user = make_user()
        association = await associate(
            service.port, user=user, ssl_context=client_tls, server_hostname="localhost", **options
        )
        return association, user, service.user

    return secured


class Stream:
    """A TLS peer that plays the acceptor, on asyncio's streams."""

    def __init__(self, reader, writer):
        self.reader = reader
        self.writer = writer

    async def receive_pdu(self):
        async with asyncio.timeout(PATIENCE_S):
            header = await self.reader.readexactly(6)
            return header + await self.reader.readexactly(int.from_bytes(header[2:], "big"))

    async def send(self, data):
        self.writer.write(data)
        async with asyncio.timeout(PATIENCE_S):
            await self.writer.drain()


@pytest.fixture
async def tls_pair(associate, server_tls, client_tls, wire):
    """await tls_pair(...): an association of ours as requestor, and the Stream at the other end."""
    servers = []
    streams = []

    async def tls_pair(**options):
        connected = asyncio.get_running_loop().create_future()

        def accept(reader, writer):
            streams.append(writer)
            connected.set_result(Stream(reader, writer))

        server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=server_tls)
        servers.append(server)

        async def answer():
            stream = await connected
            await stream.receive_pdu()
            await stream.send(wire.associate_ac())
            return stream

        answering = asyncio.create_task(answer())
        port = server.sockets[0].getsockname()[1]
        association = await associate(port, ssl_context=client_tls, server_hostname="localhost", **options)
        return association, await answering

    yield tls_pair
    for writer in streams:
        writer.transport.abort()
    for server in servers:
        server.close()


async def test_a_session_over_tls(secured, wire):
    association, user, other = await secured()
    assert association.write_p_data(wire.p_data(b"there"))
    assert other.association.write_p_data(wire.p_data(b"back"))
    await other.until(lambda: other.data == b"there")
    await user.until(lambda: user.data == b"back")
    await association.release()
    assert (user.ends, other.ends) == ([None], [None])
    await association.wait_closed()


async def test_nothing_to_write_is_not_blocked(secured, wire):
    """TLS transports compare with `>=`: a write limit of zero would pause a writer that has written everything."""
    association, user, other = await secured()
    for _ in range(5):
        for side in (association, other.association):
            assert not side.write_blocked
            assert side.write_p_data(wire.p_data(b"x"))
            await side.flushed()
    assert "writable" not in user.told + other.told
    assert association._deadlines.write is None


async def test_a_large_stream_over_tls(secured, wire):
    association, _, other = await secured()
    block = bytes(range(256)) * 8000
    for _ in range(4):
        if not association.write_p_data(wire.p_data(block, control=0)):
            await association.flushed()
    await other.until(lambda: len(other.data) == 4 * len(block))
    assert other.data == block * 4
    assert not association.write_blocked


async def test_a_held_association_stops_a_tls_peer(tls_pair, make_user, wire):
    user = make_user()
    association, stream = await tls_pair(user=user)
    association.hold_reading()
    data = wire.p_data(bytes(1_000_000), control=0)
    taken = 0
    with contextlib.suppress(TimeoutError):
        while taken < 200_000_000:
            stream.writer.write(data)
            taken += len(data)
            async with asyncio.timeout(0.1):
                await stream.writer.drain()
    assert taken < 100_000_000
    assert len(user.data) <= RECEIVE_BUFFER_BYTES
    association.continue_reading()
    await user.until(lambda: len(user.data) == taken // len(data) * 1_000_000)


async def test_a_tls_peer_that_stops_reading_is_aborted_in_time(tls_pair, make_user, wire, monkeypatch):
    monkeypatch.setattr("harmony.ul.association.CLOSE_LINGER_S", 0.05)
    user = make_user()
    association, stream = await tls_pair(user=user, timeouts=Timeouts(write_s=0.05))
    stream.writer.transport.pause_reading()
    # The transport below keeps the ciphertext of one write out of sight; the next one is seen to be blocked.
    association.write_p_data(wire.p_data(bytes(20_000_000)))
    assert association.write_p_data(wire.p_data(b"more")) is False
    assert association.write_blocked
    with pytest.raises(DeadlineExceeded, match="writing"):
        await association.flushed()
    async with asyncio.timeout(PATIENCE_S):
        await association.wait_closed()
    assert [type(error) for error in user.ends] == [DeadlineExceeded]


@pytest.mark.parametrize("how", ["abort", "close"])
async def test_a_tls_peer_that_goes_away(tls_pair, make_user, how):
    user = make_user()
    association, stream = await tls_pair(user=user)
    getattr(stream.writer.transport, how)()
    async with asyncio.timeout(PATIENCE_S):
        await association.wait_closed()
    assert [type(error) for error in user.ends] == [ConnectionLost]


async def test_aborting_while_held_over_tls(tls_pair, make_user, wire):
    association, stream = await tls_pair(user=make_user())
    association.hold_reading()
    await stream.send(wire.p_data(bytes(100_000)))
    association.abort()
    assert await stream.receive_pdu() == wire.ABORT
    stream.writer.close()
    async with asyncio.timeout(PATIENCE_S):
        await association.wait_closed()


async def test_closing_an_acceptor_with_tls_associations(secured, serve, monkeypatch):
    monkeypatch.setattr("harmony.ul.association.CLOSE_LINGER_S", 0.05)
    association, user, other = await secured()
    other.association.abort()
    assert isinstance(await association.wait_ended(), AssociationAborted)
    assert user.ends[0].by_peer


async def test_the_certificates_of_both_sides(serve, associate, authority, make_user):
    own, theirs = authority.issue("scp.example"), authority.issue("scu.example", ())
    accepting = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=authority.certificate)
    accepting.load_cert_chain(own.certificate, own.key)
    accepting.verify_mode = ssl.CERT_OPTIONAL
    requesting = ssl.create_default_context(cafile=authority.certificate)
    service = await serve(ssl_context=accepting)
    anonymous = await associate(service.port, ssl_context=requesting)
    assert service.user.association.peer_certificate is None
    await anonymous.release()
    service.users.clear()
    requesting.load_cert_chain(theirs.certificate, theirs.key)
    association = await associate(service.port, ssl_context=requesting)
    accepted = service.user.association
    assert accepted.peer_certificate["subject"] == ((("commonName", "scu.example"),),)
    assert association.peer_certificate["subject"] == ((("commonName", "scp.example"),),)
    await association.release()
    await association.wait_closed()
    assert association.peer_certificate["subjectAltName"] == (
        ("DNS", "localhost"),
        ("IP Address", "127.0.0.1"),
    )


async def test_no_certificate_without_tls(serve, associate):
    service = await serve()
    association = await associate(service.port)
    assert association.peer_certificate is None
    assert service.user.association.peer_certificate is None


# Those who do not speak it


@pytest.mark.parametrize(
    ("sent", "named"),
    [
        (None, "plain DICOM"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "plain HTTP"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "SSH"),
        (b"\x00", "something that begins with 0x00"),
    ],
)
async def test_who_speaks_no_tls_on_a_tls_port_is_named(
    serve, connect, server_tls, wire, caplog, sent, named
):
    caplog.set_level(logging.INFO, logger="harmony.ul")
    service = await serve(ssl_context=server_tls)
    peer = await connect(service.port)
    await peer.send(sent or wire.associate_rq())
    assert await peer.receive_all() == bytes.fromhex("15 0303 0002 02 46")  # fatal alert, protocol_version
    assert f"127.0.0.1:{peer.port} speaks {named}, not TLS; closed" in caplog.messages
    assert service.users == []


async def test_a_peer_that_leaves_without_a_word(serve, connect, server_tls, caplog):
    """A port scan, or the health check of a load balancer: nothing to tell anybody."""
    caplog.set_level(logging.INFO, logger="harmony.ul")
    service = await serve(ssl_context=server_tls)
    peer = await connect(service.port)
    peer.socket.shutdown(socket.SHUT_WR)
    assert await peer.receive_all() == b""
    assert caplog.messages == []


async def test_plain_requestor_and_tls_acceptor(serve, server_tls, associate):
    service = await serve(ssl_context=server_tls)
    with pytest.raises(AssociationAborted, match="this looks like a TLS alert: the peer expects TLS"):
        await associate(service.port)


async def test_plain_requestor_and_an_acceptor_that_only_closes(listener, associate):
    async def close():
        peer = await listener.accept()
        await peer.receive_pdu()
        peer.close()

    closing = asyncio.create_task(close())
    with pytest.raises(ConnectionLost, match="closed the connection without an answer; does it expect TLS"):
        await associate(listener.port)
    await closing


async def test_tls_requestor_and_plain_acceptor(serve, associate, client_tls, caplog):
    caplog.set_level(logging.INFO, logger="harmony.ul")
    service = await serve()
    with pytest.raises(ConnectFailed, match=r"does not speak TLS on this port|does the peer speak TLS"):
        await associate(service.port, ssl_context=client_tls, server_hostname="localhost")
    assert "the peer speaks TLS, on a port without" in caplog.text


# Certificates that are refused


@pytest.fixture
async def handshake_failure(serve, associate, authority, caplog):
    """await handshake_failure(...): what the requestor was told, and what the acceptor wrote down."""

    async def handshake_failure(*, own, trusted, theirs=None, required=False, host="localhost"):
        caplog.set_level(logging.INFO, logger="harmony.ul")
        accepting = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=authority.certificate)
        accepting.load_cert_chain(own.certificate, own.key)
        accepting.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
        requesting = ssl.create_default_context(cafile=trusted)
        if theirs is not None:
            requesting.load_cert_chain(theirs.certificate, theirs.key)
        service = await serve(ssl_context=accepting)
        with pytest.raises((ConnectFailed, ConnectionLost)) as caught:
            await associate(service.port, ssl_context=requesting, server_hostname=host)
        async with asyncio.timeout(PATIENCE_S):
            while len(service.acceptor._handshakes):  # noqa: ASYNC110
                await asyncio.sleep(0)
        (line,) = [message for message in caplog.messages if message.startswith("127.0.0.1:")]
        return str(caught.value), line

    return handshake_failure


async def test_an_authority_that_is_not_trusted(handshake_failure, authority, other_authority):
    told, logged = await handshake_failure(own=authority.issue(), trusted=other_authority.certificate)
    assert "TLS certificate refused: " in told
    assert "signed by nobody that we trust" in told
    assert "the peer does not trust who signed our certificate" in logged


async def test_a_self_signed_certificate(handshake_failure, authority):
    own = authority.issue(self_signed=True)
    told, logged = await handshake_failure(own=own, trusted=authority.certificate)
    assert "TLS certificate refused: self-signed certificate" in told.replace("self signed", "self-signed")
    assert "the peer does not trust who signed our certificate" in logged


async def test_a_certificate_that_has_expired(handshake_failure, authority):
    own = authority.issue(valid_days=(-10, -1))
    told, logged = await handshake_failure(own=own, trusted=authority.certificate)
    assert "TLS certificate refused: certificate has expired" in told
    assert "the peer says that our certificate has expired" in logged


async def test_a_certificate_that_is_not_valid_yet(handshake_failure, authority):
    own = authority.issue(valid_days=(1, 10))
    told, logged = await handshake_failure(own=own, trusted=authority.certificate)
    assert "TLS certificate refused: certificate is not yet valid" in told
    assert "the peer does not accept our certificate" in logged


async def test_a_certificate_for_another_host(handshake_failure, authority):
    told, logged = await handshake_failure(
        own=authority.issue(), trusted=authority.certificate, host="pacs.example"
    )
    assert "TLS certificate refused: Hostname mismatch" in told
    assert "pacs.example" in told
    assert "the peer does not accept our certificate" in logged


async def test_no_client_certificate_where_one_is_required(handshake_failure, authority):
    told, logged = await handshake_failure(
        own=authority.issue(), trusted=authority.certificate, required=True
    )
    assert "the peer wants a client certificate and was shown none" in told
    assert "the peer showed no client certificate, which is required here" in logged


async def test_a_client_certificate_that_is_not_trusted(handshake_failure, authority, other_authority):
    told, logged = await handshake_failure(
        own=authority.issue(), trusted=authority.certificate, theirs=other_authority.issue()
    )
    assert "the peer does not trust who signed our certificate" in told
    assert "signed by nobody that we trust" in logged


async def test_a_client_certificate_that_has_expired(handshake_failure, authority):
    told, logged = await handshake_failure(
        own=authority.issue(), trusted=authority.certificate, theirs=authority.issue(valid_days=(-10, -1))
    )
    assert "the peer says that our certificate has expired" in told
    assert "TLS certificate refused: certificate has expired" in logged


async def test_versions_without_overlap(serve, associate, server_tls, client_tls, caplog):
    caplog.set_level(logging.INFO, logger="harmony.ul")
    server_tls.minimum_version = ssl.TLSVersion.TLSv1_3
    client_tls.maximum_version = ssl.TLSVersion.TLSv1_2
    service = await serve(ssl_context=server_tls)
    with pytest.raises(ConnectFailed, match="no TLS version in common"):
        await associate(service.port, ssl_context=client_tls, server_hostname="localhost")
    assert "no TLS version in common" in caplog.text


async def test_a_context_asked_for_at_every_handshake(serve, associate, authority):
    """On both sides: certificates may change while a port is listened on."""
    names = ["one.example", "two.example"]

    def accepting():
        own = authority.issue(names.pop(0))
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(own.certificate, own.key)
        return context

    asked = []

    def requesting():
        asked.append(ssl.create_default_context(cafile=authority.certificate))
        return asked[-1]

    service = await serve(ssl_context=accepting)
    seen = []
    for _ in range(2):
        association = await associate(service.port, ssl_context=requesting)
        seen.append(association.peer_certificate["subject"][0][0][1])
        await association.release()
    assert seen == ["one.example", "two.example"]
    assert len(asked) == 2


# Silence and frozen handshakes


@pytest.mark.parametrize("sent", [b"", bytes.fromhex("16 03 01 02 00 01 00 01 fc 03 03")])
async def test_r05_frozen_handshakes_delay_nobody(serve, connect, associate, server_tls, client_tls, sent):
    """Connections on which nothing comes, or a ClientHello begun and never finished, two hundred times: more than
    there may be connections, and yet each who can finish is let in."""
    service = await serve(ssl_context=server_tls, limits=AcceptorLimits(maximum_connections=150))
    for number in range(200):
        peer = await connect(service.port)
        await peer.send(sent)
        if number in (10, 190):
            association = await associate(service.port, ssl_context=client_tls, server_hostname="localhost")
    await association.release()
    async with asyncio.timeout(PATIENCE_S):
        await service.acceptor.close()
    assert len(asyncio.all_tasks()) == 1


@pytest.mark.parametrize("sent", [b"", bytes.fromhex("16 03 01 02 00 01")])
async def test_a_handshake_has_a_deadline(serve, connect, server_tls, sent):
    service = await serve(ssl_context=server_tls, timeouts=Timeouts(tls_handshake_s=0.05))
    peer = await connect(service.port)
    await peer.send(sent)
    assert await peer.receive_all() == b""
    assert not [user for user in service.users if user.told]


async def test_handshakes_count_as_connections(serve, connect, associate, server_tls, client_tls, caplog):
    service = await serve(ssl_context=server_tls, limits=AcceptorLimits(maximum_connections=2))
    frozen = [await connect(service.port) for _ in range(3)]
    assert await frozen[0].receive_all() == b""  # the oldest made room
    for _ in range(2):
        await associate(service.port, ssl_context=client_tls, server_hostname="localhost")
    for peer in frozen[1:]:
        assert await peer.receive_all() == b""
    assert "maximum_connections" not in caplog.text
    assert await (await connect(service.port)).receive_all() == b""  # an association makes no room
    assert "maximum_connections is 2" in caplog.text


async def test_handshakes_count_as_connections_of_their_address(
    serve, connect, associate, server_tls, client_tls
):
    service = await serve(ssl_context=server_tls, limits=AcceptorLimits(maximum_connections_per_address=2))
    frozen = await connect(service.port)
    association = await associate(service.port, ssl_context=client_tls, server_hostname="localhost")
    with pytest.raises(ConnectFailed):
        await associate(service.port, ssl_context=client_tls, server_hostname="localhost")
    frozen.close()
    await service.until_connected_from("127.0.0.1", 1)
    again = await associate(service.port, ssl_context=client_tls, server_hostname="localhost")
    for each in (association, again):
        await each.release()
        await each.wait_closed()
    await service.until_connected(0)
    assert len(service.acceptor._connected_hosts) == 0


async def test_a_finished_handshake_counts_once(serve, associate, server_tls, client_tls):
    service = await serve(ssl_context=server_tls, limits=AcceptorLimits(maximum_connections=1))
    for _ in range(3):
        association = await associate(service.port, ssl_context=client_tls, server_hostname="localhost")
        assert association.is_open
        await association.release()
        await association.wait_closed()
        await service.until_connected(0)


async def test_a_handshake_the_peer_freezes_runs_into_the_connect_deadline(listener, associate, client_tls):
    with pytest.raises(DeadlineExceeded, match="connecting"):
        await associate(
            listener.port,
            ssl_context=client_tls,
            server_hostname="localhost",
            timeouts=Timeouts(connect_s=0.05),
        )
    peer = await listener.accept()
    assert (await peer.receive_all())[:1] == b"\x16"


async def test_closing_during_handshakes(serve, connect, server_tls):
    service = await serve(ssl_context=server_tls)
    peers = [await connect(service.port) for _ in range(3)]
    await peers[0].send(b"\x16\x03\x01")
    await asyncio.sleep(0)
    async with asyncio.timeout(PATIENCE_S):
        await service.acceptor.close()
    for peer in peers:
        assert await peer.receive_all() == b""


@pytest.mark.parametrize("turns", [1, 3, 5, 8, 12])
async def test_cancelling_a_tls_request_at_any_moment(serve, associate, server_tls, client_tls, turns):
    service = await serve(ssl_context=server_tls)
    asking = asyncio.create_task(associate(service.port, ssl_context=client_tls, server_hostname="localhost"))
    for _ in range(turns):
        await asyncio.sleep(0)
    asking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asking
