"""R00 to R14: what comes before an association, and PDUs, items and fragments that are odd or wrong (PS3.8 §9.3).

The peer is a bare socket, the other side the running gateway; where the gateway would be the requestor it is the
engine. What the engine does with every single bit of it is in tests/ul.
"""

import asyncio
import contextlib
import socket
import ssl
import struct

import pytest

from harmony.dimse import associate as engine_associate
from harmony.ul.negotiation import propose_contexts

VERIFICATION = "1.2.840.10008.1.1"
IMPLICIT = "1.2.840.10008.1.2"
UNKNOWN_ITEMS = (0x11, 0x22, *range(0x5A, 0x100))


# R00


@pytest.mark.parametrize("level", ["PDU", "presentation context", "user information"])
async def test_r00_unknown_items_are_skipped_by_their_length(associate, dimse, wire, level):
    unknown = b"".join(wire.item(item_type, bytes(item_type % 7)) for item_type in UNKNOWN_ITEMS)
    contexts = dimse.CONTEXTS
    if level == "presentation context":
        contexts = [(*each, unknown) for each in contexts]
    requestor = await associate(
        contexts,
        unknown if level == "user information" else b"",
        more=unknown if level == "PDU" else b"",
    )
    assert [result for _, result, _ in requestor.results] == [0] * 5
    await requestor.echo()
    await requestor.release()


# R01, R02


async def test_r01_a_silent_connection_is_closed(gateway, connect):
    sockets = gateway.open_files().count("socket")
    peers = [await connect(gateway.hurried) for _ in range(10)]
    for peer in peers:
        assert await peer.receive_all() == b""
    await gateway.until(lambda: gateway.open_files().count("socket") <= sockets)


@pytest.mark.parametrize(
    "begun", [b"\1\0\0\0\0", b"\1\0\0\0\0\x60", b""], ids=["5 of 6", "header", "dribble"]
)
async def test_r02_half_a_header_or_a_dribble_is_closed(gateway, connect, wire, begun):
    peer = await connect(gateway.hurried)
    await peer.send(begun)
    received = asyncio.create_task(peer.receive_all())
    if begun != b"\1\0\0\0\0":
        with contextlib.suppress(ConnectionError):
            for byte in wire.associate_rq(called=b"ANY")[len(begun) :]:
                await peer.send(bytes((byte,)))
                if (await asyncio.wait([received], timeout=0.02))[0]:
                    break
    assert await received == b""


# R03


@pytest.mark.parametrize("pdu_type", range(1, 8))
async def test_r03_the_longest_length_is_aborted_and_takes_no_memory(
    gateway, connect, associate, wire, pdu_type
):
    peer = await connect(gateway.dicom)
    memory = gateway.memory_bytes
    assert await peer.exchange(bytes((pdu_type, 0, 255, 255, 255, 255))) == wire.ABORT  # PS3.8 AA-1
    requestor = await associate()
    await requestor.send(bytes((pdu_type, 0, 255, 255, 255, 255)))
    assert await requestor.peer.receive_pdu() == wire.provider_abort(6)
    assert gateway.memory_bytes - memory < 8 << 20


# R04, R05


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP"),
        (bytes.fromhex("16 03 01 00 05 01 00 00 01 03"), "TLS"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "SSH"),
    ],
    ids=["HTTP", "TLS", "SSH"],
)
async def test_r04_another_protocol_on_the_dicom_port_is_named(gateway, connect, associate, wire, data, name):
    other, seen = await associate(), len(gateway.log)
    peer = await connect(gateway.dicom)
    await peer.send(data)
    assert await peer.receive_all() == wire.ABORT
    assert name in gateway.log[seen:]
    await other.echo()


async def test_r04_plain_dicom_on_the_tls_port_is_named(gateway, connect, wire):
    seen = len(gateway.log)
    peer = await connect(gateway.dicom_tls)
    await peer.send(wire.associate_rq(called=b"ARCHIVE"))
    await peer.receive_all()
    assert "plain DICOM" in gateway.log[seen:]


async def test_r05_a_thousand_frozen_handshakes_delay_nobody(gateway, connect, authority):
    """500 each with DICOM over TLS and with HTTPS."""
    sockets = gateway.open_files().count("socket")
    trust = ssl.create_default_context(cafile=str(authority.certificate))
    frozen = []
    for _ in range(500):
        for port in (gateway.dicom_tls, gateway.https):
            frozen.append(await connect(port))
            await frozen[-1].send(bytes.fromhex("16 03 01 02 00 01 00 01 fc 03 03"))
    contexts = propose_contexts([(VERIFICATION, [IMPLICIT])])
    async with engine_associate(
        "127.0.0.1", gateway.dicom_tls, called_ae_title="ARCHIVE", contexts=contexts, ssl_context=trust
    ) as scu:
        assert (await scu.echo()).status == 0
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.https, ssl=trust)
    writer.write(b"GET /web/studies HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert (await reader.read()).startswith(b"HTTP/1.1 20")
    writer.close()
    await writer.wait_closed()
    for peer in frozen:
        peer.close()
    await gateway.until(lambda: gateway.open_files().count("socket") <= sockets)


# R06


async def test_r06_a_session_split_anywhere_gives_the_same_answers(gateway, connect, dimse, wire):
    """A-ASSOCIATE-RQ, a C-ECHO and A-RELEASE-RQ in one segment, in any two, and byte by byte."""
    session = (
        wire.associate_rq(called=b"ARCHIVE")
        + wire.p_data(dimse.echo()[:30], control=1)
        + wire.p_data(dimse.echo()[30:])
        + wire.RELEASE_RQ
    )

    async def answers(*pieces):
        peer = await connect(gateway.dicom)
        peer.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            await peer.send(piece)
            await asyncio.sleep(0)
        peer.socket.shutdown(socket.SHUT_WR)
        received = await peer.receive_all()
        peer.close()
        return received

    expected = await answers(session)
    assert expected[:1] == b"\2"
    assert expected.endswith(wire.RELEASE_RP)
    assert dimse.us(0x0900, 0) in expected
    for at in range(1, len(session)):
        assert await answers(session[:at], session[at:]) == expected
    assert await answers(*(session[at : at + 1] for at in range(len(session)))) == expected


async def test_r06_an_answer_and_data_in_one_segment(listener, wire):
    """A-ASSOCIATE-AC and an A-RELEASE-RQ of the acceptor's right behind it."""
    contexts = propose_contexts([(VERIFICATION, [IMPLICIT])])

    async def acceptor():
        peer = await listener.accept()
        await peer.receive_pdu()
        await peer.send(wire.associate_ac() + wire.RELEASE_RQ)
        return await peer.receive_pdu()

    answering = asyncio.create_task(acceptor())
    async with engine_associate("127.0.0.1", listener.port, contexts=contexts):
        assert await answering == wire.RELEASE_RP


# R07 to R10


async def test_r07_odd_transfer_syntaxes_never_refuse_the_association(associate, dimse):
    proposals = [
        [],
        [dimse.IMPLICIT],
        [dimse.IMPLICIT, dimse.IMPLICIT],
        [b"1.2.3.4.5"],
        [b"1.2.3.4.5", dimse.IMPLICIT],
        [dimse.IMPLICIT + b"\0"],
        [b"", b"\xff" * 70, b"no UID", dimse.IMPLICIT],
    ]
    requestor = await associate([(2 * n + 1, dimse.VERIFICATION, each) for n, each in enumerate(proposals)])
    assert [result for _, result, _ in requestor.results] == [4, 0, 0, 4, 0, 0, 0]
    accepted = [syntax.rstrip(b"\0") for _, result, syntax in requestor.results if result == 0]
    assert set(accepted) == {dimse.IMPLICIT}
    await requestor.send(requestor.wire.p_data(dimse.echo(), context_id=11))
    assert await requestor.status() == 0


async def test_r08_even_repeated_and_unordered_context_ids(associate, dimse):
    """Even IDs are refused; of those that are repeated the first counts."""
    identifiers = (255, 2, 1, 1, 0, 7, 3)
    requestor = await associate([(each, dimse.VERIFICATION, [dimse.IMPLICIT]) for each in identifiers])
    assert [(identifier, result == 0) for identifier, result, _ in requestor.results] == [
        (255, True),
        (2, False),
        (1, True),
        (0, False),
        (7, True),
        (3, True),
    ]
    await requestor.echo()


async def test_r08_128_contexts(associate, dimse):
    requestor = await associate(
        [(2 * n + 1, dimse.CT, [dimse.IMPLICIT]) for n in range(127)]
        + dimse.CONTEXTS[:0]
        + [(255, dimse.VERIFICATION, [dimse.IMPLICIT])]
    )
    assert [(identifier, result) for identifier, result, _ in requestor.results] == [
        (2 * n + 1, 0) for n in range(128)
    ]
    await requestor.send(requestor.wire.p_data(dimse.echo(), context_id=255))
    assert await requestor.status() == 0


async def test_r09_an_answer_with_strange_and_missing_contexts(listener, dimse, wire):
    """Asked for 1 and 3; the answer has 5, 2 and 1. 3 is refused then, the others are nothing to us."""
    results = b"".join(
        wire.item(0x21, bytes((identifier, 0, result, 0)) + wire.item(0x40, dimse.IMPLICIT))
        for identifier, result in ((5, 0), (2, 0), (1, 0))
    )

    async def acceptor():
        peer = await listener.accept()
        await peer.receive_pdu()
        await peer.send(wire.associate_ac(contexts=results))
        assert (await peer.receive_pdu())[10] == 1
        response = dimse.command(
            dimse.us(0x0100, 0x8030), dimse.us(0x0120, 1), dimse.us(0x0800, 0x101), dimse.us(0x0900, 0)
        )
        await peer.send(wire.p_data(response))
        await peer.receive_pdu()
        await peer.send(wire.RELEASE_RP)

    answering = asyncio.create_task(acceptor())
    contexts = propose_contexts([(VERIFICATION, [IMPLICIT]), ("1.2.840.10008.5.1.4.1.1.2", [IMPLICIT])])
    async with engine_associate("127.0.0.1", listener.port, contexts=contexts) as scu:
        assert list(scu.association.agreed.contexts) == [1]
        assert (await scu.echo()).status == 0
    await answering


@pytest.mark.parametrize(
    "user",
    [
        b"",
        bytes.fromhex("52 00 0005 312E322E33"),
        *(b"\x51\0\0\4" + value.to_bytes(4, "big") for value in (0, 1, 2, 3, 4, 5, 6, 7, 65535, 2**32 - 1)),
        bytes.fromhex("51 00 0002 4000"),
    ],
    ids=["no user information", "no maximum length", *"0123456", "7", "odd", "2^32-1", "two bytes"],
)
async def test_r10_maximum_lengths(gateway, connect, dimse, wire, user):
    """0 is unlimited; what is too small for any work is taken as 4096. What is absent is the smallest usual."""
    announced = int.from_bytes(user[4:], "big") if user[:4] == b"\x51\0\0\4" else None
    peer = await connect(gateway.dicom)
    answer = await peer.exchange(wire.associate_rq(user=user, called=b"ARCHIVE"))
    assert answer[0] == 2
    assert b"\x51\0\0\4" in answer  # ours
    await peer.send(wire.p_data(dimse.echo()))
    length = int.from_bytes((await peer.receive_pdu())[2:6], "big")
    assert length <= max(announced or 4096, 4096)


# R11


@pytest.mark.parametrize(
    ("titles", "accepted"),
    [
        ({"called": b"ARCHIVE"}, True),
        ({"called": b"ARCHIVE".ljust(16, b"\0")}, True),
        ({"called": b"   ARCHIVE"}, True),
        ({"called": b" " * 16}, False),
        ({"called": b"archive"}, False),
        ({"called": b"\\RCHIVE"}, False),
        ({"called": b"ARCHIV\xc9"}, False),
        ({"calling": b" " * 16}, True),
        ({"calling": bytes(16)}, True),
        ({"calling": b"RADI\\OLOGY"}, True),
        ({"calling": "RÖNTGEN".encode("latin-1")}, True),
        ({"calling": bytes(range(240, 256))}, True),
    ],
    ids=lambda value: repr(value) if isinstance(value, dict) else "",
)
async def test_r11_ae_titles_as_they_come(gateway, connect, dimse, wire, titles, accepted):
    peer = await connect(gateway.dicom)
    answer = await peer.exchange(wire.associate_rq(**{"called": b"ARCHIVE"} | titles))
    if not accepted:
        assert answer == wire.reject(1, 1, 7)
        return
    called, calling = titles.get("called", b"ARCHIVE").ljust(16), titles.get("calling", b"CALLING").ljust(16)
    assert answer[10:42] == called + calling  # byte for byte
    await peer.send(wire.p_data(dimse.echo()))
    assert dimse.us(0x0900, 0) in await peer.receive_pdu()


@pytest.mark.parametrize("called", [b"ANY-SCP", b" " * 16, b"192.168.0.17", b"\xff" * 16])
async def test_r11_any_called_title_where_the_policy_is_any(associate, gateway, called):
    requestor = await associate(port=gateway.hurried, called=called)
    await requestor.echo()


async def test_r11_reserved_fields_of_an_answer_are_not_tested(listener, wire):
    async def acceptor():
        peer = await listener.accept()
        await peer.receive_pdu()
        await peer.send(wire.associate_ac(titles=bytes(range(192, 256))))
        assert await peer.receive_pdu() == wire.RELEASE_RQ
        await peer.send(wire.RELEASE_RP)

    answering = asyncio.create_task(acceptor())
    contexts = propose_contexts([(VERIFICATION, [IMPLICIT])])
    async with engine_associate(
        "127.0.0.1", listener.port, called_ae_title="ASKED", contexts=contexts
    ) as scu:
        assert "->ASKED " in repr(scu.association)
    await answering


# R12 to R14


def pdv(fragment, control=3, *, context_id=1, length=None):
    return (
        struct.pack(">IBB", len(fragment) + 2 if length is None else length, context_id, control) + fragment
    )


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\0\0\0\0",
        b"\0\0\0\1\1",
        pdv(b"abcd", length=7),
        pdv(b"abcd", length=2**32 - 1),
        pdv(b"", 1) + b"\0\0\0",
        pdv(b"", 1) + b"\0",
    ],
    ids=["none", "0", "1", "past the end", "far past the end", "3 bytes behind", "1 byte behind"],
)
async def test_r12_a_pdv_that_does_not_fit_its_pdu_is_aborted(associate, wire, body):
    requestor = await associate()
    await requestor.send(wire.pdu(4, body))
    assert await requestor.peer.receive_pdu() == wire.provider_abort(6)


async def test_r12_a_pdv_without_content_is_legal(associate, dimse, wire):
    requestor = await associate()
    await requestor.send(wire.pdu(4, pdv(b"", 1)), wire.p_data(dimse.echo()))
    assert await requestor.status() == 0
    await requestor.release()


async def test_r13_messages_in_any_pieces(gateway, associate, dimse, wire):
    """A command in three fragments and the last of it empty; then a data set alike; then two messages in one PDU."""
    instance = b"1.2.3.13"
    command, data = dimse.store(instance), dimse.image(instance)
    requestor = await associate()
    await requestor.send(
        *(wire.p_data(part, context_id=3, control=1) for part in (command[:1], command[1:50], command[50:])),
        wire.p_data(b"", context_id=3, control=3),
        *(wire.p_data(part, context_id=3, control=0) for part in (data[:3], b"", data[3:])),
        wire.p_data(b"", context_id=3, control=2),
        wire.pdu(4, pdv(dimse.echo(21)) + pdv(dimse.echo(22)[:9], 1) + pdv(dimse.echo(22)[9:])),
    )
    answers = [await requestor.message() for _ in range(3)]
    assert [each[0x0900] for each in answers] == [b"\0\0"] * 3
    assert [each[0x0120][0] for each in answers] == [1, 21, 22]
    assert gateway.stored()["1.2.3.13.dcm"].endswith(data)


@pytest.mark.parametrize("reserved", [0x04, 0x80, 0xFC])
async def test_r14_reserved_bits_of_the_control_header_are_ignored(gateway, associate, dimse, wire, reserved):
    instance = b"1.2.3.14.%d" % reserved
    requestor = await associate()
    await requestor.send(
        wire.p_data(dimse.store(instance), context_id=3, control=reserved | 3),
        wire.p_data(dimse.image(instance), context_id=3, control=reserved | 2),
    )
    assert await requestor.status() == 0
    assert gateway.stored()[instance.decode() + ".dcm"].endswith(dimse.image(instance))
