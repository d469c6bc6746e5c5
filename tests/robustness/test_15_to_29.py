"""R15 to R29: messages that are odd or wrong, releases and aborts, peers that do not read, large amounts (PS3.7).

The peer is a bare socket, the other side the running gateway; where the gateway would be the SCU it is the engine.
What the engine does in detail is in tests/dimse and tests/ul; what it does with a full disk in tests/system.
"""

import os
import socket
import struct

import pytest

from harmony.dimse import DimseError, Instance
from harmony.dimse import associate as engine_associate
from harmony.ul.negotiation import propose_contexts

CT = "1.2.840.10008.5.1.4.1.1.2"
IMPLICIT = "1.2.840.10008.1.2"
GIB = 1 << 30


# R15, R16


@pytest.mark.parametrize(
    "case", ["data first", "command while data is due", "another context", "unknown context"]
)
async def test_r15_fragments_that_cannot_follow_are_aborted(associate, dimse, wire, case):
    store = dimse.store(b"1.2.3.15")
    pdus = {
        "data first": [wire.p_data(b"data", context_id=3, control=2)],
        "command while data is due": [
            wire.p_data(store, context_id=3),
            wire.p_data(b"data", context_id=3, control=0),
            wire.p_data(store, context_id=3),
        ],
        "another context": [wire.p_data(store, context_id=3), wire.p_data(b"data", context_id=5, control=2)],
        "unknown context": [wire.p_data(dimse.echo(), context_id=77)],
    }
    requestor = await associate()
    await requestor.send(*pdus[case])
    assert await requestor.peer.receive_pdu() == wire.provider_abort(5)


async def test_r16_odd_fragments_and_an_odd_data_set_are_stored_as_they_came(gateway, associate, dimse, wire):
    instance = b"1.2.3.16"
    data = dimse.image(instance, bytes(17))
    requestor = await associate()
    await requestor.send(
        wire.p_data(dimse.store(instance), context_id=3),
        wire.p_data(data[:33], context_id=3, control=0),
        wire.p_data(data[33:], context_id=3, control=2),
    )
    assert await requestor.status() == 0
    assert gateway.stored()["1.2.3.16.dcm"].endswith(data)


# R17, R18


@pytest.mark.parametrize(
    "case",
    ["no group length", "wrong group length", "more elements", "several values", "UIDs", "priority missing"],
)
async def test_r17_command_sets_as_they_come_in_the_field(associate, dimse, wire, case):
    def command(*elements, class_uid=dimse.VERIFICATION + b"\0", message_id=b"\x11\0", group_length=None):
        return dimse.command(
            dimse.element(0, 0x0002, class_uid),
            dimse.us(0x0100, 0x30),
            dimse.element(0, 0x0110, message_id),
            dimse.us(0x0800, 0x0101),
            *elements,
            group_length=group_length,
        )

    commands = {
        "no group length": [command(group_length=b"")],
        "wrong group length": [command(group_length=dimse.element(0, 0, b"\xff\xff\xff\xff"))],
        "more elements": [command(dimse.element(0, 0x4000, b"odd"), dimse.element(0, 0x5110, b""))],
        "several values": [command(message_id=b"\x11\0\x12\0")],
        "UIDs": [
            command(class_uid=dimse.VERIFICATION + padding) for padding in (b"", b"\0\0\0", b" ", b"\\1.2.3")
        ],
        "priority missing": [command(dimse.element(0, 0x0001, b"\0\0\0\0"))],
    }
    requestor = await associate()
    for each in commands[case]:
        await requestor.send(wire.p_data(each))
        answer = await requestor.message()
        assert (answer[0x0900], answer[0x0120]) == (b"\0\0", b"\x11\0")


@pytest.mark.parametrize("value", [0x0000, 0x0001, 0x0102, 0xFEFE])
async def test_r18_any_data_set_type_but_0101_announces_a_data_set(gateway, associate, dimse, wire, value):
    instance = b"1.2.3.18.%d" % value
    requestor = await associate()
    await requestor.send(
        wire.p_data(dimse.store(instance, data_set_type=value), context_id=3),
        wire.p_data(dimse.image(instance), context_id=3, control=2),
    )
    assert await requestor.status() == 0
    assert gateway.stored()[instance.decode() + ".dcm"].endswith(dimse.image(instance))


# R19, R20


async def test_r19_a_release_instead_of_the_data_set_is_aborted(gateway, associate, dimse, wire):
    requestor = await associate()
    await requestor.send(wire.p_data(dimse.store(b"1.2.3.19"), context_id=3), wire.RELEASE_RQ)
    assert await requestor.peer.receive_pdu() == wire.ABORT
    assert "1.2.3.19.dcm" not in gateway.stored()


async def test_r20_a_data_set_that_was_not_announced_is_aborted(associate, dimse, wire):
    requestor = await associate()
    await requestor.send(wire.p_data(dimse.echo()), wire.p_data(b"data", control=2))
    assert await requestor.status() == 0
    assert await requestor.peer.receive_pdu() == wire.provider_abort(5)


# R21, R22


async def test_r21_responses_that_nobody_waits_for_are_ignored(associate, dimse, wire):
    response = dimse.command(
        dimse.us(0x0100, 0x8030), dimse.us(0x0120, 4711), dimse.us(0x0800, 0x0101), dimse.us(0x0900, 0)
    )
    requestor = await associate()
    await requestor.send(wire.p_data(response), wire.p_data(response))
    await requestor.echo()
    await requestor.release()


def identifier(dimse, level=b"STUDY ", study=b""):
    return dimse.element(0x0008, 0x0052, level) + dimse.element(0x0020, 0x000D, study)


async def test_r22_cancels_before_during_and_after_and_of_nothing(associate, dimse, wire):
    requestor = await associate()
    cancel = wire.p_data(dimse.cancel(7), context_id=5)
    await requestor.send(
        cancel,
        wire.p_data(dimse.query(0x20, dimse.FIND, 7), context_id=5),
        wire.p_data(identifier(dimse), context_id=5, control=2),
        cancel,
        cancel,
    )
    while (status := await requestor.status()) in (0xFF00, 0xFF01):
        pass
    assert status in (0xFE00, 0x0000)  # it may have been done already
    await requestor.send(cancel, wire.p_data(dimse.cancel(4711), context_id=5))
    await requestor.echo()
    await requestor.release()


# R23, R24


async def test_r23_a_release_right_behind_a_request_comes_after_its_answer(gateway, associate, dimse, wire):
    instance = b"1.2.3.23"
    requestor = await associate()
    await requestor.send(
        wire.p_data(dimse.store(instance), context_id=3),
        wire.p_data(dimse.image(instance), context_id=3, control=2),
        wire.RELEASE_RQ,
    )
    assert await requestor.status() == 0
    assert await requestor.peer.receive_pdu() == wire.RELEASE_RP
    assert "1.2.3.23.dcm" in gateway.stored()


@pytest.mark.parametrize("how", ["A-ABORT", "RST", "FIN"])
async def test_r24_whatever_ends_an_association_leaves_nothing(gateway, connect, dimse, wire, how):
    """After nothing, half a request, a request, half a PDU, half a data set, a release."""
    sockets, files = gateway.open_files().count("socket"), len(gateway.open_files())
    request = wire.associate_rq(dimse.CONTEXTS, called=b"ARCHIVE")
    store = wire.p_data(dimse.store(b"1.2.3.24"), context_id=3)
    data = wire.p_data(dimse.image(b"1.2.3.24")[:50], context_id=3, control=0)
    for sent in (
        b"",
        request[:50],
        request,
        request + store[:20],
        request + store + data,
        request + wire.RELEASE_RQ,
    ):
        peer = await connect(gateway.dicom)
        await peer.send(sent)
        if len(sent) >= len(request):
            assert (await peer.receive_pdu())[0] == 2
        if how == "RST":
            peer.reset()
        elif how == "FIN":
            peer.close()
        else:
            await peer.send(wire.ABORT)
            peer.socket.shutdown(socket.SHUT_WR)
            await peer.receive_all()
            peer.close()
    await gateway.until(
        lambda: gateway.open_files().count("socket") <= sockets and len(gateway.open_files()) <= files
    )
    assert "1.2.3.24.dcm" not in gateway.stored()


# R25, R26


async def store(port, called, instance, size):
    """An image whose pixels are `size` zeroes, which nobody keeps; the status."""

    async def data():
        head = b"".join(
            struct.pack("<HHI", group, element, len(value)) + value
            for group, element, value in (
                (0x0008, 0x0016, CT.encode() + b"\0"),
                (0x0008, 0x0018, instance.encode() + b"\0" * (len(instance) % 2)),
                (0x0020, 0x000D, b"1.2.9\0"),
                (0x0020, 0x000E, b"1.2.9.1\0"),
            )
        )
        yield head + struct.pack("<HHI", 0x7FE0, 0x0010, min(size, 0xFFFFFFFE))
        piece = bytes(1 << 20)
        for _ in range(size >> 20):
            yield piece

    contexts = propose_contexts([(CT, [IMPLICIT])])
    async with engine_associate("127.0.0.1", port, called_ae_title=called, contexts=contexts) as scu:
        try:
            return (await scu.store(Instance(CT, instance, IMPLICIT, data()))).status
        except DimseError as error:
            return error.status


async def test_r25_a_peer_that_stops_reading_is_aborted_and_the_file_closed(gateway, connect, dimse, wire):
    """It asks for an object with C-GET, and does not read it: nothing moves for pdu_timeout_secs."""
    assert await store(gateway.dicom, "ARCHIVE", "1.2.3.25", 32 << 20) == 0
    sockets, seen = gateway.open_files().count("socket"), len(gateway.log)
    peer = await connect(gateway.hurried, receive_buffer=4096)
    role = wire.item(0x54, struct.pack(">H", len(dimse.CT)) + dimse.CT + b"\1\1")
    assert (await peer.exchange(wire.associate_rq(dimse.CONTEXTS, role)))[0] == 2
    keys = dimse.element(0x0008, 0x0052, b"IMAGE ") + b"".join(
        dimse.element(*each)
        for each in (
            (0x0008, 0x0018, b"1.2.3.25"),
            (0x0020, 0x000D, b"1.2.9\0"),
            (0x0020, 0x000E, b"1.2.9.1\0"),
        )
    )
    await peer.send(
        wire.p_data(dimse.query(0x10, dimse.GET), context_id=7) + wire.p_data(keys, context_id=7, control=2)
    )
    assert (await peer.receive(6))[0] == 4  # it has begun
    await gateway.until(lambda: gateway.open_files().count("socket") <= sockets)
    await gateway.until(lambda: not any(name.endswith(".dcm") for name in gateway.open_files()))
    assert "writing to the peer" in gateway.log[seen:]


async def test_r26_what_comes_faster_than_the_disk_is_not_kept_in_memory(gateway):
    memory = gateway.memory_bytes
    assert await store(gateway.dicom, "ARCHIVE", "1.2.3.26", 200 << 20) == 0
    assert gateway.memory_bytes - memory < 32 << 20
    for path in (gateway.folder / "storage").rglob("1.2.3.26.dcm"):
        path.unlink()


# R27, R28


async def test_r27_pipelining_without_negotiation_is_served_in_order(associate, dimse, wire):
    requestor = await associate()
    await requestor.send(*(wire.p_data(dimse.echo(number)) for number in range(1, 51)))
    answers = [await requestor.message() for _ in range(50)]
    assert [(each[0x0120][0], each[0x0900]) for each in answers] == [(n, b"\0\0") for n in range(1, 51)]
    await requestor.release()


async def test_r28_an_object_over_the_limit_is_drained_and_refused(gateway, associate, dimse, wire):
    requestor = await associate(port=gateway.hurried)
    await requestor.send(wire.p_data(dimse.store(b"1.2.3.28"), context_id=3))
    for _ in range(30):
        await requestor.send(wire.p_data(bytes(10_000), context_id=3, control=0))
    await requestor.send(wire.p_data(b"", context_id=3, control=2))
    assert await requestor.status() == 0xA700
    await requestor.echo()
    await requestor.release()
    assert "1.2.3.28.dcm" not in gateway.stored()


# R29


async def test_r29_a_stored_object_beyond_32_bits_has_its_length(gateway, associate, connect, dimse, wire):
    """A sparse file: 5 GiB of it are a hole, and nobody reads them here."""
    instance = b"1.2.3.29.1"
    data = b"".join(
        struct.pack("<HH2sH", group, element, b"UI", len(value)) + value
        for group, element, value in (
            (0x0008, 0x0016, dimse.CT + b"\0"),
            (0x0008, 0x0018, instance),
            (0x0020, 0x000D, b"1.2.29"),
            (0x0020, 0x000E, b"1.2.29.1"),
        )
    )
    requestor = await associate([(3, dimse.CT, [b"1.2.840.10008.1.2.1"])])
    await requestor.send(
        wire.p_data(dimse.store(instance), context_id=3), wire.p_data(data, context_id=3, control=2)
    )
    assert await requestor.status() == 0
    (path,) = (gateway.folder / "storage").rglob("1.2.3.29.1.dcm")
    size = path.stat().st_size + 5 * GIB
    os.truncate(path, size)
    peer = await connect(gateway.http, receive_buffer=4096)
    await peer.send(
        b"GET /web/studies/1.2.29/series/1.2.29.1/instances/1.2.3.29.1 HTTP/1.1\r\nHost: x\r\n"
        b"Accept: application/dicom; transfer-syntax=*\r\n\r\n"
    )
    head = (await peer.receive(1000)).partition(b"\r\n\r\n")[0]
    assert head.startswith(b"HTTP/1.1 200")
    assert f"content-length: {size}".encode() in head.lower()
    peer.close()
    path.unlink()


@pytest.mark.timeout(600)
@pytest.mark.skipif(os.environ.get("HARMONY_LARGE_TESTS") != "1", reason="5 GiB: HARMONY_LARGE_TESTS=1")
async def test_r29_an_object_of_5_gib(gateway):
    memory = gateway.memory_bytes
    assert await store(gateway.dicom, "ARCHIVE", "1.2.3.29", 5 * GIB) == 0
    assert gateway.memory_bytes - memory < 64 << 20
    (path,) = (gateway.folder / "storage").rglob("1.2.3.29.dcm")
    assert path.stat().st_size > 5 * GIB
    path.unlink()
